//! Models made by hand, whose answers a test chooses.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;
use scoregate_model::package::{GOLDEN, MODEL, REFERENCE, Repository};
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::{self, Bindings, ClassKeys, Manifest, Output, Source, SourceKind};
use scoregate_schemas::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeDimension,
    TensorShapeDimensionValue, TensorShapeProto, TypeMapType, TypeProto, TypeSequenceType, TypeTensorType,
    TypeValue, ValueInfoProto,
};
use serde_json::{Value, json};

/// `TensorProto.DataType.FLOAT`
pub(crate) const FLOAT: i32 = 1;
/// `TensorProto.DataType.INT64`
const INT64: i32 = 7;
/// `TensorProto.DataType.STRING`
const STRING: i32 = 8;
/// `TensorProto.DataType.BOOL`
pub(crate) const BOOL: i32 = 9;
/// `TensorProto.DataType.DOUBLE`
pub(crate) const DOUBLE: i32 = 11;
/// `AttributeProto.AttributeType.INT`
const INT: i32 = 2;
/// `AttributeProto.AttributeType.INTS`
const INTS: i32 = 7;
/// `AttributeProto.AttributeType.STRINGS`
const STRINGS: i32 = 8;

/// A model of numeric features. Its graph begins with one float32 input `[N, 1]` per feature.
#[derive(Debug, Clone)]
pub(crate) struct Handmade {
    name: String,
    version: String,
    labels: Vec<String>,
    features: Vec<String>,
    /// Those of them that a row need not have.
    optional: Vec<String>,
    /// What rows may say of whom they are about.
    entity: Option<String>,
    nodes: Vec<NodeProto>,
    outputs: Vec<ValueInfoProto>,
    golden: Vec<Value>,
    reference: serde_json::Map<String, Value>,
}

impl Handmade {
    /// A model without labels and nodes.
    pub(crate) fn new(name: &str, features: &[&str]) -> Self {
        Self {
            name: name.into(),
            version: "1".into(),
            labels: Vec::new(),
            features: texts(features),
            optional: Vec::new(),
            entity: None,
            nodes: Vec::new(),
            outputs: Vec::new(),
            golden: Vec::new(),
            reference: serde_json::Map::new(),
        }
    }

    /// A model whose value `numbers`, a float32 tensor `[N, count]`, holds a row's features `a`, `b`, `c`, …, each divided by
    /// the row's feature `scale`: by 0, they are infinite or NaN.
    pub(crate) fn numbers(name: &str, count: usize) -> Self {
        const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
        let features = &NAMES[..count];
        let model = Self::new(name, &[features, &["scale"]].concat());
        model.node("Concat", features, "together", vec![int("axis", 1)]).node(
            "Div",
            &["together", "scale"],
            "numbers",
            Vec::new(),
        )
    }

    pub(crate) fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    pub(crate) fn version(mut self, version: &str) -> Self {
        self.version = version.into();
        self
    }

    pub(crate) fn labels(mut self, labels: &[&str]) -> Self {
        self.labels = texts(labels);
        self
    }

    /// Lets rows leave a feature out: the graph is given NaN then.
    pub(crate) fn optional(mut self, feature: &str) -> Self {
        self.optional.push(feature.into());
        self
    }

    /// Lets rows say whom they are about.
    pub(crate) fn entity(mut self, field: &str) -> Self {
        self.entity = Some(field.into());
        self
    }

    /// Adds a node of ONNX's own domain.
    pub(crate) fn node(
        mut self,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attribute: Vec<AttributeProto>,
    ) -> Self {
        self.nodes.push(NodeProto {
            op_type: Some(operator.into()),
            input: texts(inputs),
            output: vec![output.into()],
            attribute,
            ..NodeProto::default()
        });
        self
    }

    /// Adds a ZipMap, and the sequence of maps that it makes as an output.
    pub(crate) fn zipmap(mut self, input: &str, output: &str, keys: &ClassKeys) -> Self {
        let (key, classes) = match keys {
            ClassKeys::Integers(keys) => (INT64, ints("classlabels_int64s", keys)),
            ClassKeys::Strings(keys) => {
                let strings = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
                (STRING, AttributeProto { strings, ..attribute("classlabels_strings", STRINGS) })
            }
        };
        self = self.node("ZipMap", &[input], output, vec![classes]);
        if let Some(zipmap) = self.nodes.last_mut() {
            zipmap.domain = Some("ai.onnx.ml".into());
        }
        let map = TypeMapType { key_type: Some(key), value_type: Some(Box::new(kind(tensor_type(FLOAT)))) };
        let map = kind(TypeValue::MapType(map));
        let sequence = TypeSequenceType { elem_type: Some(Box::new(map)) };
        self.outputs.push(value(output, TypeValue::SequenceType(sequence)));
        self
    }

    /// Makes a tensor of `element` an output; its shape is what it turns out to be.
    pub(crate) fn output(mut self, name: &str, element: i32) -> Self {
        self.outputs.push(value(name, tensor_type(element)));
        self
    }

    /// Adds a golden row.
    pub(crate) fn golden(mut self, features: Value, expected: Value) -> Self {
        self.golden.push(json!({"features": features, "expected": expected}));
        self
    }

    /// Adds a member of `reference.json`, such as `background`: the rows that others are compared with when they are explained.
    pub(crate) fn reference(mut self, member: &str, value: Value) -> Self {
        self.reference.insert(member.into(), value);
        self
    }

    /// Publishes it.
    pub(crate) fn publish(self, models: &Path, output: Output) {
        // What a row may look like, for whoever has none.
        let example = |name: &str| if name == "scale" { 1.0 } else { 0.25 };
        let mut properties: serde_json::Map<String, Value> = self
            .features
            .iter()
            .map(|name| {
                let kind =
                    if self.optional.contains(name) { json!(["number", "null"]) } else { json!("number") };
                (name.clone(), json!({"type": kind, "examples": [example(name)]}))
            })
            .collect();
        if let Some(entity) = &self.entity {
            properties.insert(entity.clone(), json!({"type": "string", "x-scoregate": {"role": "entity"}}));
        }
        let required: Vec<&String> =
            self.features.iter().filter(|name| !self.optional.contains(name)).collect();
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.name,
            "type": "object",
            "properties": properties,
            "required": required,
            "x-scoregate": {"target": "outcome"},
        });
        let checked = FeatureSchema::from_document(schema.clone()).unwrap();
        let manifest = Manifest {
            format: manifest::FORMAT,
            name: self.name.clone(),
            version: self.version.clone(),
            created_at: "2026-01-01T00:00:00Z".into(),
            files: BTreeMap::new(),
            schema,
            bindings: Bindings::columns_of(&checked, str::to_owned),
            output,
            changes: Vec::new(),
            threshold: 0.5,
            labels: self.labels.clone(),
            tolerance: 1e-6,
            metrics: None,
            training: None,
            source: Source { kind: SourceKind::Import, producer: "a test 1.0".into() },
        };
        let golden: String = self.golden.iter().map(|row| format!("{row}\n")).collect();
        let graph = self.graph().encode_to_vec();
        let mut files = vec![(MODEL, graph.as_slice())];
        if !golden.is_empty() {
            files.push((GOLDEN, golden.as_bytes()));
        }
        let reference = Value::Object(self.reference).to_string();
        if reference != "{}" {
            files.push((REFERENCE, reference.as_bytes()));
        }
        Repository::new(models).publish(manifest, &files).unwrap();
    }

    fn graph(&self) -> ModelProto {
        let opset = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.into()),
            version: Some(version),
        };
        let graph = GraphProto {
            name: Some(self.name.clone()),
            node: self.nodes.clone(),
            input: self.features.iter().map(|name| column(name)).collect(),
            output: self.outputs.clone(),
            ..GraphProto::default()
        };
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset("", 17), opset("ai.onnx.ml", 3)],
            graph: Some(graph),
            ..ModelProto::default()
        }
    }
}

/// Publishes model `ratio`, which answers P(positive) = `top / bottom`: NaN for 0/0, infinity for 1/0, 2 for 2/1.
pub(crate) fn publish_ratio_model(models: &Path) {
    // `probabilities = Concat(bottom - bottom, top / bottom)`
    Handmade::new("ratio", &["top", "bottom"])
        .labels(&["no", "yes"])
        .node("Sub", &["bottom", "bottom"], "zero", Vec::new())
        .node("Div", &["top", "bottom"], "ratio", Vec::new())
        .node("Concat", &["zero", "ratio"], "probabilities", vec![int("axis", 1)])
        .output("probabilities", FLOAT)
        .publish(models, Output::Probabilities { name: "probabilities".into(), classes: 2, positive: 1 });
}

/// Model `pick`, which answers with what stands at place `a * b` of a table of two: there is nothing at most places.
pub(crate) fn picking() -> (Handmade, Output) {
    /// `TensorProto.DataType.INT64`
    const INT64: i64 = 7;
    let model = Handmade::new("pick", &["a", "b"])
        .node("Mul", &["a", "b"], "product", Vec::new())
        .node("Cast", &["product"], "place", vec![int("to", INT64)])
        .node("Concat", &["b", "b"], "table", vec![int("axis", 1)])
        .node("GatherElements", &["table", "place"], "picked", vec![int("axis", 1)])
        .output("picked", FLOAT)
        .golden(json!({"a": 1, "b": 1}), json!(1.0))
        .golden(json!({"a": 1, "b": 0}), json!(0.0))
        .reference("background", json!([{"a": 1, "b": 1}, {"a": 0, "b": 1}]));
    (model, Output::Value { name: "picked".into() })
}

/// Publishes model `share`, which answers P(positive) = `top / bottom` or, `turned`, what is left of it to 1, both without
/// rounding where `bottom` is a power of two. Each of the `layers` makes a run of one row some 0.1 ms slower.
pub(crate) fn publish_share_model(models: &Path, version: &str, turned: bool, layers: usize) {
    let (model, output) = share_model(version, turned, layers);
    model.publish(models, output);
}

/// The model that [`publish_share_model`] publishes.
pub(crate) fn share_model(version: &str, turned: bool, layers: usize) -> (Handmade, Output) {
    const WIDTH: i64 = 512;
    let mut model = Handmade::new("share", &["top", "bottom"]).version(version).labels(&["no", "yes"]);
    model = match turned {
        false => model.node("Div", &["top", "bottom"], "share", Vec::new()),
        true => model.node("Sub", &["bottom", "top"], "rest", Vec::new()).node(
            "Div",
            &["rest", "bottom"],
            "share",
            Vec::new(),
        ),
    };
    let mut answer = "share";
    if layers > 0 {
        model = model
            .node("Constant", &[], "spread", vec![zeros([1, WIDTH])])
            .node("Constant", &[], "weights", vec![zeros([WIDTH, WIDTH])])
            .node("MatMul", &["top", "spread"], "layer0", Vec::new());
        for at in 0..layers {
            let (before, after) = (format!("layer{at}"), format!("layer{}", at + 1));
            model = model.node("MatMul", &[&before, "weights"], &after, Vec::new());
        }
        model = model
            .node("ReduceMin", &[&format!("layer{layers}")], "nothing", vec![ints("axes", &[1])])
            .node("Add", &["share", "nothing"], "late", Vec::new());
        answer = "late";
    }
    let expected = if turned { 0.75 } else { 0.25 };
    let model = model.output(answer, FLOAT).golden(json!({"top": 1, "bottom": 4}), json!(expected));
    (model, Output::Probabilities { name: answer.into(), classes: 1, positive: 0 })
}

/// The attribute of a `Constant` that holds zeros of this shape.
pub(crate) fn zeros(shape: [i64; 2]) -> AttributeProto {
    /// `AttributeProto.AttributeType.TENSOR`
    const TENSOR: i32 = 4;
    let bytes = usize::try_from(shape[0] * shape[1]).unwrap() * size_of::<f32>();
    let tensor = TensorProto {
        dims: shape.to_vec(),
        data_type: Some(FLOAT),
        raw_data: Some(vec![0; bytes]),
        ..TensorProto::default()
    };
    AttributeProto {
        name: Some("value".into()),
        r#type: Some(TENSOR),
        t: Some(tensor),
        ..AttributeProto::default()
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(kind), ..AttributeProto::default() }
}

/// An attribute that is an integer.
pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, INT) }
}

/// An attribute that is a list of integers.
pub(crate) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..attribute(name, INTS) }
}

fn kind(value: TypeValue) -> TypeProto {
    TypeProto { value: Some(value), denotation: None }
}

fn tensor_type(element: i32) -> TypeValue {
    TypeValue::TensorType(TypeTensorType { elem_type: Some(element), shape: None })
}

fn value(name: &str, of: TypeValue) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind(of)), ..ValueInfoProto::default() }
}

/// A float32 tensor `[N, 1]`.
fn column(name: &str) -> ValueInfoProto {
    let dimension = |value| TensorShapeDimension { value: Some(value), denotation: None };
    let shape = TensorShapeProto {
        dim: vec![
            dimension(TensorShapeDimensionValue::DimParam("N".into())),
            dimension(TensorShapeDimensionValue::DimValue(1)),
        ],
    };
    value(name, TypeValue::TensorType(TypeTensorType { elem_type: Some(FLOAT), shape: Some(shape) }))
}
