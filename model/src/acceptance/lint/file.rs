//! What a file is, before it is decoded: its format, its end, and how much memory reading it takes.

use std::mem::size_of;

use scoregate_schemas::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    TrainingInfoProto, TypeProto, ValueInfoProto,
};

use super::{Fault, Limits};

/// Checks size and format of a file, and that it is one whole message and no more.
///
/// Decoders merge messages that stand one behind the other, and pass over fields that they do not know. So the fields of
/// the outermost message are walked here: one that a model has once must not come again, and all have to be known.
pub(super) fn check(bytes: &[u8], limits: &Limits) -> Result<(), Fault> {
    if bytes.is_empty() {
        return Err(Fault::EmptyFile);
    }
    if bytes.len() > limits.file_bytes {
        return Err(Fault::TooLarge { found: bytes.len(), limit: limits.file_bytes });
    }
    if let Some((what, advice)) = recognise(bytes) {
        return Err(Fault::NotOnnx { what, advice });
    }
    let unknown = Fault::NotOnnx { what: "of no format that is known here", advice: EXPORT };
    let mut fields = Fields { bytes, at: 0 };
    let mut seen = [false; 32];
    let mut decoded = 0;
    while fields.at < bytes.len() {
        let at = fields.at;
        let field = match fields.next() {
            Ok(field) => field,
            Err(Broken::Overrun { announced, left }) if is_known(bytes, at) => {
                return Err(Fault::Truncated { at, announced, left });
            }
            Err(_) if seen.contains(&true) => {
                return Err(Fault::TrailingBytes { what: "something that is no part of a model".into(), at });
            }
            Err(_) => return Err(unknown),
        };
        let Some((name, once)) = model_field(field.tag) else {
            return Err(if seen.contains(&true) {
                Fault::TrailingBytes { what: format!("the unknown field {}", field.tag), at }
            } else {
                unknown
            });
        };
        let seen = &mut seen[field.tag as usize];
        if once && *seen {
            return Err(Fault::TrailingBytes { what: format!("a second {name}"), at });
        }
        *seen = true;
        decoded += cost_of(Kind::Model, &field, 0, limits.decoded_bytes.saturating_sub(decoded));
        if decoded > limits.decoded_bytes {
            return Err(Fault::TooManyParts { found: decoded, limit: limits.decoded_bytes });
        }
    }
    Ok(())
}

/// Whether a known field of a model begins at `at`, be it cut off.
fn is_known(bytes: &[u8], at: usize) -> bool {
    let key = Fields { bytes, at }.varint();
    key.is_ok_and(|key| {
        matches!(key & 7, 0 | 2) && u32::try_from(key >> 3).is_ok_and(|tag| model_field(tag).is_some())
    })
}

/// The fields of `ModelProto`: their names, and whether a model has them once.
fn model_field(tag: u32) -> Option<(&'static str, bool)> {
    Some(match tag {
        1 => ("ir_version", true),
        2 => ("producer_name", true),
        3 => ("producer_version", true),
        4 => ("domain", true),
        5 => ("model_version", true),
        6 => ("doc_string", true),
        7 => ("graph", true),
        8 => ("opset_import", false),
        14 => ("metadata_props", false),
        20 => ("training_info", false),
        25 => ("functions", false),
        26 => ("configuration", false),
        _ => return None,
    })
}

/// One field of a message.
struct Field<'a> {
    tag: u32,
    /// The content, where the field has a length.
    content: Option<&'a [u8]>,
}

/// Why there is no further field.
enum Broken {
    /// It goes on behind the end.
    Overrun { announced: u64, left: usize },
    /// It is none.
    Garbage,
}

/// The fields of a message, one by one.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Broken::Overrun { announced: 1, left: 0 })?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Broken::Garbage)
    }

    fn take(&mut self, announced: u64) -> Result<&'a [u8], Broken> {
        let left = self.bytes.len() - self.at;
        let length = usize::try_from(announced).ok().filter(|length| *length <= left);
        let length = length.ok_or(Broken::Overrun { announced, left })?;
        let content = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(content)
    }

    fn next(&mut self) -> Result<Field<'a>, Broken> {
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).ok().filter(|tag| *tag > 0).ok_or(Broken::Garbage)?;
        let content = match key & 7 {
            0 => self.varint().map(|_| None)?,
            1 => self.take(8).map(|_| None)?,
            2 => {
                let length = self.varint()?;
                Some(self.take(length)?)
            }
            5 => self.take(4).map(|_| None)?,
            _ => return Err(Broken::Garbage),
        };
        Ok(Field { tag, content })
    }
}

/// The messages that a model is made of.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Value,
    Type,
    TypeTensor,
    Shape,
    Function,
    Training,
    Quantisation,
    Device,
    Sharding,
    ShardedDim,
    /// One without messages in it.
    Small,
}

/// The message that a field holds, if it holds one.
fn message(kind: Kind, tag: u32) -> Option<Kind> {
    use Kind::{
        Attribute, Device, Function, Graph, Model, Node, Quantisation, Shape, ShardedDim, Sharding, Small,
        Sparse, Tensor, Training, Type, TypeTensor, Value,
    };
    Some(match (kind, tag) {
        (Model, 7) | (Attribute, 6 | 11) | (Training, 1 | 2) => Graph,
        (Model, 20) => Training,
        (Model, 25) => Function,
        (Graph, 1) | (Function, 7) => Node,
        (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
        (Graph, 15) | (Attribute, 22 | 23) => Sparse,
        (Graph, 11..=13) | (Function, 12) => Value,
        (Graph, 14) => Quantisation,
        (Node, 5) | (Function, 11) => Attribute,
        (Node, 10) => Device,
        (Device, 2) => Sharding,
        (Sharding, 4) => ShardedDim,
        (Attribute, 14 | 15) | (Value, 2) => Type,
        // Sequences, maps and optionals hold a type; it is counted as if they were one themselves.
        (Type, 1 | 8) => TypeTensor,
        (Type, 4 | 5 | 9) => Type,
        (TypeTensor, 2) => Shape,
        (Model, 8 | 14 | 26)
        | (Graph, 16)
        | (Node, 9)
        | (Tensor, 3 | 13 | 16)
        | (Value, 4)
        | (Type, 7)
        | (Shape, 1)
        | (Function, 9 | 14)
        | (Training, 3 | 4)
        | (Quantisation, 2)
        | (Sharding, 3)
        | (ShardedDim, 1) => Small,
        _ => return None,
    })
}

fn size_of_message(kind: Kind) -> usize {
    match kind {
        Kind::Model => size_of::<ModelProto>(),
        Kind::Graph => size_of::<GraphProto>(),
        Kind::Node => size_of::<NodeProto>(),
        Kind::Attribute => size_of::<AttributeProto>(),
        Kind::Tensor => size_of::<TensorProto>(),
        Kind::Sparse => size_of::<SparseTensorProto>(),
        Kind::Value => size_of::<ValueInfoProto>(),
        Kind::Type => 2 * size_of::<TypeProto>(),
        Kind::Function => size_of::<FunctionProto>(),
        Kind::Training => size_of::<TrainingInfoProto>(),
        _ => 128,
    }
}

/// Estimates what a field takes once decoded, from above but for the spare room of lists; stops beyond `budget`.
fn cost_of(kind: Kind, field: &Field<'_>, depth: usize, budget: usize) -> usize {
    /// A number in a list.
    const NUMBER: usize = 8;
    /// A string, its length and what the allocator keeps with it.
    const STRING: usize = 48;
    let Some(content) = field.content else { return NUMBER };
    let Some(inner) = message(kind, field.tag) else {
        // Packed integers take one byte here and eight there.
        let is_packed = matches!((kind, field.tag), (Kind::Tensor, 1 | 5 | 7 | 11) | (Kind::Attribute, 8));
        return STRING + if is_packed { content.len() * NUMBER } else { content.len() };
    };
    let mut cost = size_of_message(inner);
    // The decoder says what is wrong with a message that goes deeper, or that breaks off.
    if depth > 100 {
        return cost;
    }
    let mut fields = Fields { bytes: content, at: 0 };
    while fields.at < content.len() && cost <= budget {
        let Ok(field) = fields.next() else { break };
        cost += cost_of(inner, &field, depth + 1, budget - cost);
    }
    cost
}

const EXPORT: &str = "export one from the library that the model was fitted with (skl2onnx, onnxmltools, CatBoost's \
    save_model(format=\"onnx\"), torch.onnx.export)";
const SKLEARN: &str = "convert the fitted model with skl2onnx.to_onnx(model, X[:1]) and save its SerializeToString(); never \
    load a pickle that you did not write";
const XGBOOST: &str = "convert the fitted model with onnxmltools.convert_xgboost(model, initial_types=...)";
const LIGHTGBM: &str = "convert the fitted model with onnxmltools.convert_lightgbm(model, initial_types=...)";
const CATBOOST: &str = "save the fitted model with model.save_model(\"model.onnx\", format=\"onnx\")";

/// Formats that are not ONNX and easily taken for it: how they begin, what they are, how to come by ONNX instead.
const FORMATS: [(&[u8], &str, &str); 25] = [
    (b"\x80\x02", "a Python pickle (scikit-learn, joblib)", SKLEARN),
    (b"\x80\x03", "a Python pickle (scikit-learn, joblib)", SKLEARN),
    (b"\x80\x04", "a Python pickle (scikit-learn, joblib)", SKLEARN),
    (b"\x80\x05", "a Python pickle (scikit-learn, joblib)", SKLEARN),
    (b"\x78\x01", "compressed with zlib (as joblib.dump does)", SKLEARN),
    (b"\x78\x5e", "compressed with zlib (as joblib.dump does)", SKLEARN),
    (b"\x78\x9c", "compressed with zlib (as joblib.dump does)", SKLEARN),
    (b"\x78\xda", "compressed with zlib (as joblib.dump does)", SKLEARN),
    (b"\x1f\x8b", "compressed with gzip", "unpack it, and see what is in it"),
    (b"BZh", "compressed with bzip2", "unpack it, and see what is in it"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it, and see what is in it"),
    (
        b"PK\x03\x04",
        "a zip archive (PyTorch, Keras, H2O, NumPy)",
        "unpack it if the ONNX file is in it, or export the model (torch.onnx.export, tf2onnx)",
    ),
    (b"\x7fELF", "a Linux program or library", EXPORT),
    (b"MZ", "a Windows program or library", EXPORT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "convert the model with tf2onnx"),
    (b"\x93NUMPY", "a NumPy array", EXPORT),
    (b"{L\0\0\0\0\0\0", "XGBoost's binary JSON (UBJ)", XGBOOST),
    (b"binf", "an XGBoost model in its old binary format", XGBOOST),
    (b"tree\nversion=", "a LightGBM model in its text format", LIGHTGBM),
    (b"CBM1", "a CatBoost model in its own format", CATBOOST),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch it with git lfs pull"),
    (b"<!DOCTYPE", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"<", "XML (PMML), or ONNX's text format", EXPORT),
    (b"ir_version:", "ONNX's text format", "save it with onnx.save(model, \"model.onnx\")"),
];

/// What a file is that is not ONNX, and how to come by ONNX instead.
fn recognise(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let known = FORMATS.iter().find(|(magic, ..)| bytes.starts_with(magic));
    if let Some((_, what, advice)) = known {
        return Some((what, advice));
    }
    match bytes.get(4..8) {
        Some(b"TFL3") => return Some(("a TensorFlow Lite model", "convert the model with tf2onnx")),
        Some(b"ORTM") => {
            return Some((
                "a model in ONNX Runtime's own format (.ort)",
                "give the .onnx file that it was made from",
            ));
        }
        _ => {}
    }
    // An opening brace or bracket is no field of a model: it would be of a wire type that there is not.
    let text = bytes.trim_ascii_start();
    if !text.starts_with(b"{") && !text.starts_with(b"[") {
        return None;
    }
    let head = &text[..text.len().min(4096)];
    let has = |word: &[u8]| head.windows(word.len()).any(|window| window == word);
    Some(if has(b"\"learner\"") {
        ("an XGBoost model as JSON", XGBOOST)
    } else if has(b"\"tree_info\"") || has(b"\"feature_names\":") && has(b"\"max_feature_idx\"") {
        ("a LightGBM model as JSON", LIGHTGBM)
    } else if has(b"\"features_info\"") || has(b"\"oblivious_trees\"") || has(b"\"model_info\"") {
        ("a CatBoost model as JSON", CATBOOST)
    } else {
        ("JSON", EXPORT)
    })
}
