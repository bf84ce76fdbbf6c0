//! A graph made by hand, whose answers a test chooses.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;
use scoregate_model::package::{MODEL, Repository};
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::{self, Bindings, Manifest, Output, Source, SourceKind};
use scoregate_schemas::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeDimension,
    TensorShapeDimensionValue, TensorShapeProto, TypeProto, TypeTensorType, TypeValue, ValueInfoProto,
};

/// `TensorProto.DataType.FLOAT`
const FLOAT: i32 = 1;
/// `AttributeProto.AttributeType.INT`
const INT: i32 = 2;

/// Publishes model `ratio`, which answers P(positive) = `top / bottom`: NaN for 0/0, infinity for 1/0, 2 for 2/1.
pub(crate) fn publish_ratio_model(models: &Path) {
    let schema = serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ratio",
        "type": "object",
        "properties": {"top": {"type": "number"}, "bottom": {"type": "number"}},
        "required": ["top", "bottom"],
        "x-scoregate": {"target": "outcome", "positive": 1, "labels": ["no", "yes"], "threshold": 0.5},
    });
    let checked = FeatureSchema::from_document(schema.clone()).unwrap();
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: "ratio".into(),
        version: "1".into(),
        created_at: "2026-01-01T00:00:00Z".into(),
        files: BTreeMap::new(),
        schema,
        bindings: Bindings::columns_of(&checked, str::to_owned),
        output: Output::Probabilities { name: "probabilities".into(), classes: 2, positive: 1 },
        threshold: 0.5,
        labels: vec!["no".into(), "yes".into()],
        tolerance: 1e-6,
        metrics: None,
        training: None,
        source: Source { kind: SourceKind::Import, producer: "a test".into() },
    };
    Repository::new(models).publish(manifest, &[(MODEL, &ratio_graph().encode_to_vec())]).unwrap();
}

/// `probabilities = Concat(bottom - bottom, top / bottom)`.
fn ratio_graph() -> ModelProto {
    let axis = AttributeProto {
        name: Some("axis".into()),
        i: Some(1),
        r#type: Some(INT),
        ..AttributeProto::default()
    };
    let graph = GraphProto {
        name: Some("ratio".into()),
        node: vec![
            node("Sub", &["bottom", "bottom"], "zero", Vec::new()),
            node("Div", &["top", "bottom"], "ratio", Vec::new()),
            node("Concat", &["zero", "ratio"], "probabilities", vec![axis]),
        ],
        input: vec![floats("top", 1), floats("bottom", 1)],
        output: vec![floats("probabilities", 2)],
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn node(operator: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(operator.into()),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

/// A float tensor `[N, columns]`.
fn floats(name: &str, columns: i64) -> ValueInfoProto {
    let dimension = |value| TensorShapeDimension { value: Some(value), denotation: None };
    let shape = TensorShapeProto {
        dim: vec![
            dimension(TensorShapeDimensionValue::DimParam("N".into())),
            dimension(TensorShapeDimensionValue::DimValue(columns)),
        ],
    };
    let tensor = TypeTensorType { elem_type: Some(FLOAT), shape: Some(shape) };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..ValueInfoProto::default() }
}
