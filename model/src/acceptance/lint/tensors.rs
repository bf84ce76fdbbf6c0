//! Tensors within a model: whether they hold what they say, and what the constants among them are.

use std::collections::HashMap;

use scoregate_schemas::onnx::{AttributeProto, GraphProto, SparseTensorProto, TensorProto};

use super::{Fault, Limits, quoted};

/// `TensorProto.DataType.FLOAT`
pub(crate) const FLOAT: i32 = 1;
/// `TensorProto.DataType.UINT8`
pub(super) const UINT8: i32 = 2;
/// `TensorProto.DataType.INT32`
pub(crate) const INT32: i32 = 6;
/// `TensorProto.DataType.INT64`
pub(crate) const INT64: i32 = 7;
/// `TensorProto.DataType.STRING`
pub(crate) const STRING: i32 = 8;
/// `TensorProto.DataType.BOOL`
pub(crate) const BOOL: i32 = 9;
/// `TensorProto.DataType.DOUBLE`
pub(crate) const DOUBLE: i32 = 11;

/// Refuses a tensor that keeps its values in another file.
pub(super) fn refuse_external(tensor: &TensorProto) -> Result<(), Fault> {
    if tensor.external_data.is_empty() && tensor.data_location() == 0 {
        return Ok(());
    }
    Err(Fault::ExternalData { tensor: quoted(tensor.name()) })
}

/// How many elements a shape has; none if that is no number of elements.
fn elements(dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(1_u64, |count, dim| count.checked_mul(u64::try_from(*dim).ok()?))
}

/// Checks that a tensor is whole and no larger than it may be.
pub(super) fn check(tensor: &TensorProto, limits: &Limits) -> Result<(), Fault> {
    super::check_name("tensor", tensor.name(), limits)?;
    let wrong = |problem: String| Fault::TensorData { name: quoted(tensor.name()), problem };
    let count = count(tensor.name(), &tensor.dims, limits)?;
    // Each list, and how many of its numbers make an element of the tensor's type, times two.
    let lists = [
        tensor.float_data.len(),
        tensor.int32_data.len(),
        tensor.string_data.len(),
        tensor.int64_data.len(),
        tensor.double_data.len(),
        tensor.uint64_data.len(),
    ];
    let Some((bytes, list, per_element)) = (match tensor.data_type() {
        FLOAT => Some((4, 0, 1)),
        UINT8 | 3 | BOOL => Some((1, 1, 1)),
        4 | 5 | 10 | 16 => Some((2, 1, 1)),
        INT32 => Some((4, 1, 1)),
        INT64 => Some((8, 3, 1)),
        STRING => Some((0, 2, 1)),
        DOUBLE => Some((8, 4, 1)),
        12 => Some((4, 5, 1)),
        13 => Some((8, 5, 1)),
        14 => Some((8, 0, 2)),
        15 => Some((16, 4, 2)),
        _ => None,
    }) else {
        return Err(wrong(format!(
            "is of the type {}, expected numbers of at least 8 bits, booleans or strings",
            tensor.data_type()
        )));
    };
    if tensor.segment.is_some() {
        return Err(wrong("is a part of a larger one, expected it whole".into()));
    }
    if tensor.string_data.iter().any(|text| text.len() > limits.text_bytes) {
        return Err(wrong(format!("holds a text of more than {} bytes", limits.text_bytes)));
    }
    let held = match &tensor.raw_data {
        Some(_) if bytes == 0 => {
            return Err(wrong("holds strings as raw bytes, expected a list of strings".into()));
        }
        Some(raw) => raw.len() as u64,
        None => lists[list] as u64,
    };
    let expected = count * if tensor.raw_data.is_some() { bytes } else { per_element };
    if held != expected {
        let unit = if tensor.raw_data.is_some() { "bytes" } else { "values" };
        return Err(wrong(format!(
            "of the shape {:?} holds {held} {unit}, expected {expected}",
            tensor.dims
        )));
    }
    let is_alone = |at| tensor.raw_data.is_none() && at == list;
    if lists.iter().enumerate().any(|(at, held)| *held > 0 && !is_alone(at)) {
        return Err(wrong("holds its values twice, expected them in the one place for its type".into()));
    }
    Ok(())
}

/// Checks a sparse tensor, which ONNX Runtime makes dense.
pub(super) fn check_sparse(tensor: &SparseTensorProto, limits: &Limits) -> Result<(), Fault> {
    let name = tensor.values.as_ref().map_or("", TensorProto::name);
    let (Some(values), Some(indices)) = (&tensor.values, &tensor.indices) else {
        let problem = "is sparse and has no values or no indices, expected both".into();
        return Err(Fault::TensorData { name: quoted(name), problem });
    };
    check(values, limits)?;
    check(indices, limits)?;
    count(name, &tensor.dims, limits).map(drop)
}

fn count(name: &str, dims: &[i64], limits: &Limits) -> Result<u64, Fault> {
    if let Some(negative) = dims.iter().find(|dim| **dim < 0) {
        let problem = format!("has the dimension {negative}, expected 0 or more");
        return Err(Fault::TensorData { name: quoted(name), problem });
    }
    let found = elements(dims).unwrap_or(u64::MAX);
    if found > limits.elements {
        return Err(Fault::GiantTensor {
            what: format!("the tensor {}", quoted(name)),
            found,
            limit: limits.elements,
        });
    }
    Ok(found)
}

/// The values of a graph that are given in the file, by name.
pub(super) struct Constants<'g>(HashMap<&'g str, Given<'g>>);

/// How a constant is given.
enum Given<'g> {
    Tensor(&'g TensorProto),
    /// By an attribute that holds one number or a list of them.
    Attribute(&'g AttributeProto),
}

impl<'g> Constants<'g> {
    pub(super) fn of(graph: &'g GraphProto) -> Self {
        let mut constants = HashMap::new();
        for node in graph.node.iter().filter(|node| node.op_type() == "Constant") {
            let (Some(output), Some(attribute)) = (node.output.first(), node.attribute.first()) else {
                continue;
            };
            let given = attribute.t.as_ref().map_or(Given::Attribute(attribute), Given::Tensor);
            constants.insert(output.as_str(), given);
        }
        constants.extend(graph.initializer.iter().map(|tensor| (tensor.name(), Given::Tensor(tensor))));
        Self(constants)
    }

    /// The shape of a constant; none if it is no constant.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        Some(match self.0.get(name)? {
            Given::Tensor(tensor) => tensor.dims.clone(),
            Given::Attribute(attribute) => {
                let listed = attribute.ints.len() + attribute.floats.len() + attribute.strings.len();
                if listed > 0 { vec![i64::try_from(listed).ok()?] } else { Vec::new() }
            }
        })
    }

    /// Whether a value is a constant that is false; what is not known to be is not.
    pub(super) fn is_false(&self, name: &str) -> bool {
        let Some(Given::Tensor(tensor)) = self.0.get(name) else { return false };
        let raw = tensor.raw_data.as_deref();
        tensor.data_type() == BOOL && raw.map_or_else(|| tensor.int32_data == [0], |raw| raw == [0])
    }

    /// A constant as numbers; none if it is no constant, or holds strings. A list is cut short at a thousand, as no shape
    /// and no range is longer.
    pub(super) fn numbers(&self, name: &str) -> Option<Vec<f64>> {
        let all = match self.0.get(name)? {
            Given::Tensor(tensor) => numbers(tensor, 1_000)?,
            Given::Attribute(attribute) => {
                let ints = attribute.ints.iter().chain(&attribute.i).take(1_000).map(|value| *value as f64);
                let floats =
                    attribute.floats.iter().chain(&attribute.f).take(1_000).map(|value| f64::from(*value));
                ints.chain(floats).collect()
            }
        };
        Some(all)
    }
}

/// The first `most` numbers that a tensor of floats or signed integers holds; none if it is of another type.
#[expect(clippy::cast_precision_loss, reason = "what is beyond 2^53 is beyond every limit as well")]
pub(crate) fn numbers(tensor: &TensorProto, most: usize) -> Option<Vec<f64>> {
    fn read<const SIZE: usize>(raw: &[u8], most: usize, number: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
        raw.as_chunks::<SIZE>().0.iter().take(most).map(|bytes| number(*bytes)).collect()
    }
    let raw = tensor.raw_data.as_deref();
    Some(match (tensor.data_type(), raw) {
        (FLOAT, Some(raw)) => read(raw, most, |bytes| f64::from(f32::from_le_bytes(bytes))),
        (FLOAT, None) => tensor.float_data.iter().take(most).map(|value| f64::from(*value)).collect(),
        (DOUBLE, Some(raw)) => read(raw, most, f64::from_le_bytes),
        (DOUBLE, None) => tensor.double_data.iter().take(most).copied().collect(),
        (INT32, Some(raw)) => read(raw, most, |bytes| f64::from(i32::from_le_bytes(bytes))),
        (UINT8, Some(raw)) => read(raw, most, |[byte]| f64::from(byte)),
        (INT32 | UINT8, None) => tensor.int32_data.iter().take(most).map(|value| f64::from(*value)).collect(),
        (INT64, Some(raw)) => read(raw, most, |bytes| i64::from_le_bytes(bytes) as f64),
        (INT64, None) => tensor.int64_data.iter().take(most).map(|value| *value as f64).collect(),
        _ => return None,
    })
}
