//! One fault at a time in a model that is fine otherwise, and models that look odd and are fine.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use scoregate_schemas::onnx::{
    FunctionProto, OperatorSetIdProto, StringStringEntryProto, TensorShapeDimension,
    TensorShapeDimensionValue, TensorShapeProto, TrainingInfoProto, TypeProto, TypeSequenceType,
    TypeTensorType,
};

use super::tensors::{BOOL, DOUBLE, FLOAT, INT64, STRING, UINT8};
use super::*;

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(7),
        ints: ints.to_vec(),
        ..AttributeProto::default()
    }
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(6),
        floats: floats.to_vec(),
        ..AttributeProto::default()
    }
}

fn strings(name: &str, strings: &[&str]) -> AttributeProto {
    let strings = strings.iter().map(|text| text.as_bytes().to_vec()).collect();
    AttributeProto { name: Some(name.into()), r#type: Some(8), strings, ..AttributeProto::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(2), i: Some(value), ..AttributeProto::default() }
}

fn tensor_attribute(name: &str, tensor: TensorProto) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(4), t: Some(tensor), ..AttributeProto::default() }
}

fn node(
    domain: &str,
    operator: &str,
    inputs: &[&str],
    outputs: &[&str],
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        op_type: Some(operator.into()),
        domain: Some(domain.into()),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: outputs.iter().map(ToString::to_string).collect(),
        attribute,
        ..NodeProto::default()
    }
}

fn core(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    node("", operator, inputs, outputs, Vec::new())
}

fn value(name: &str, kind: i32, columns: i64) -> ValueInfoProto {
    let dimension = |value| TensorShapeDimension { value: Some(value), denotation: None };
    let dim = vec![
        dimension(TensorShapeDimensionValue::DimParam("N".into())),
        dimension(TensorShapeDimensionValue::DimValue(columns)),
    ];
    let tensor = TypeTensorType { elem_type: Some(kind), shape: Some(TensorShapeProto { dim }) };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..ValueInfoProto::default() }
}

fn longs(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(INT64),
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn reals(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(FLOAT),
        float_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn model(
    nodes: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    inputs: &[(&str, i64)],
    output: &str,
) -> ModelProto {
    let graph = GraphProto {
        name: Some("test".into()),
        node: nodes,
        initializer,
        input: inputs.iter().map(|(name, columns)| value(name, FLOAT, *columns)).collect(),
        output: vec![value(output, FLOAT, 2)],
        ..GraphProto::default()
    };
    let set =
        |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![set("", 17), set("ai.onnx.ml", 3)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// A tree of two levels over `x[N, 2]`: 0 → (1 → (3, 4), 2).
fn classifier() -> NodeProto {
    let attributes = vec![
        ints("nodes_treeids", &[0, 0, 0, 0, 0]),
        ints("nodes_nodeids", &[0, 1, 2, 3, 4]),
        ints("nodes_featureids", &[0, 1, 0, 0, 0]),
        floats("nodes_values", &[0.5, 1.5, 0.0, 0.0, 0.0]),
        strings("nodes_modes", &["BRANCH_LEQ", "BRANCH_GT", "LEAF", "LEAF", "LEAF"]),
        ints("nodes_truenodeids", &[1, 3, 0, 0, 0]),
        ints("nodes_falsenodeids", &[2, 4, 0, 0, 0]),
        ints("nodes_missing_value_tracks_true", &[0, 0, 0, 0, 0]),
        ints("class_treeids", &[0, 0, 0]),
        ints("class_nodeids", &[2, 3, 4]),
        ints("class_ids", &[0, 1, 1]),
        floats("class_weights", &[0.25, 0.5, 0.75]),
        ints("classlabels_int64s", &[0, 1]),
    ];
    node("ai.onnx.ml", "TreeEnsembleClassifier", &["x"], &["label", "probabilities"], attributes)
}

fn ensemble() -> ModelProto {
    model(vec![classifier()], Vec::new(), &[("x", 2)], "probabilities")
}

/// `TreeEnsemble` of operator set 5: node 0 → (node 1 → leaves 0 and 1, leaf 2), node 1 a membership.
fn ensemble_of_set_five() -> ModelProto {
    let numbers = |values: &[f32]| reals("", &[i64::try_from(values.len()).unwrap()], values);
    let modes = TensorProto {
        data_type: Some(UINT8),
        dims: vec![2],
        raw_data: Some(vec![0, 6]),
        ..Default::default()
    };
    let attributes = vec![
        ints("tree_roots", &[0]),
        tensor_attribute("nodes_modes", modes),
        ints("nodes_featureids", &[0, 1]),
        tensor_attribute("nodes_splits", numbers(&[0.5, f32::NAN])),
        ints("nodes_truenodeids", &[1, 0]),
        ints("nodes_trueleafs", &[0, 1]),
        ints("nodes_falsenodeids", &[2, 1]),
        ints("nodes_falseleafs", &[1, 1]),
        ints("leaf_targetids", &[0, 0, 0]),
        tensor_attribute("leaf_weights", numbers(&[0.1, 0.2, 0.3])),
        tensor_attribute("membership_values", numbers(&[1.0, 2.0, f32::NAN])),
        int("n_targets", 1),
    ];
    let node = node("ai.onnx.ml", "TreeEnsemble", &["x"], &["score"], attributes);
    let mut model = model(vec![node], Vec::new(), &[("x", 2)], "score");
    model.opset_import[1].version = Some(5);
    model
}

fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

fn held<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut AttributeProto {
    let attributes = &mut graph(model).node[0].attribute;
    attributes.iter_mut().find(|attribute| attribute.name() == name).unwrap()
}

fn code(bytes: &[u8]) -> &'static str {
    lint(bytes, &Limits::default()).map_or_else(|fault| fault.code(), |_| "fine")
}

/// The code that a change to a model leads to, and the change.
type Change = (&'static str, fn(&mut ModelProto));

/// Checks the code that each change to `model` leads to.
#[track_caller]
fn refuse(model: fn() -> ModelProto, changes: &[Change]) {
    assert_eq!(code(&model().encode_to_vec()), "fine");
    for (at, (expected, change)) in changes.iter().enumerate() {
        let mut changed = model();
        change(&mut changed);
        let found = lint(&changed.encode_to_vec(), &Limits::default());
        let fault = found.expect_err(&format!("change {at} is let through, expected {expected}"));
        assert_eq!(fault.code(), *expected, "change {at}: {fault}");
    }
}

#[track_caller]
fn take(model: &ModelProto) {
    lint(&model.encode_to_vec(), &Limits::default()).unwrap();
}

#[test]
fn other_formats_are_called_by_their_names() {
    let message = |bytes: &[u8]| lint(bytes, &Limits::default()).unwrap_err().to_string();
    assert_eq!(code(b""), "empty_file");
    for (bytes, named) in [
        (&b"\x80\x04\x95"[..], "Python pickle"),
        (b"\x78\x9cxyz", "zlib"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x7fELF\x02", "Linux program"),
        (b"\x89HDF\r\n\x1a\n..", "HDF5"),
        (br#"{"learner":{"attributes":{}}}"#, "XGBoost model as JSON"),
        (b"{L\0\0\0\0\0\0\0\x01", "UBJ"),
        (b"tree\nversion=v4\nnum_class=1", "LightGBM model in its text format"),
        (b"CBM1....", "CatBoost model in its own format"),
        (br#"{"features_info":{}}"#, "CatBoost model as JSON"),
        (br#" {"name":"tree","tree_info":[]}"#, "LightGBM model as JSON"),
        (br#"{"a":1}"#, "JSON"),
        (b"<?xml version=\"1.0\"?><PMML/>", "PMML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"\x1c\0\0\0ORTM", "ONNX Runtime's own format"),
        (b"hello world", "no format that is known"),
        (b"\xff\xff\xff\xff", "no format that is known"),
    ] {
        let said = message(bytes);
        assert!(code(bytes) == "not_onnx" && said.contains(named), "{named}: {said}");
    }
}

#[test]
fn a_file_is_one_whole_message() {
    let whole = ensemble().encode_to_vec();
    for end in [1, 5, whole.len() / 2, whole.len() - 1] {
        assert!(["truncated", "not_onnx", "no_graph"].contains(&code(&whole[..end])), "cut at {end}");
    }
    assert_eq!(code(&whole[..whole.len() / 2]), "truncated");
    for more in [&whole[..], b"\0", b"\0\0\0\0", b"trailing", b"\xff\xff\xff", b"\x98\x06\x01"] {
        assert_eq!(code(&[&whole, more].concat()), "trailing_bytes", "{more:?}");
    }
    let huge_announcement = [&whole[..], b"\x3a\xff\xff\xff\xff\x0f"].concat();
    assert_eq!(code(&huge_announcement), "truncated");
    let mut damaged = whole.clone();
    // The first byte of the graph, behind its key and length.
    damaged[5] = 0xff;
    assert_eq!(code(&damaged), "malformed_model");
    let no_graph = ModelProto { graph: None, ..ensemble() };
    assert_eq!(code(&no_graph.encode_to_vec()), "no_graph");
}

#[test]
fn sizes_are_checked_before_the_file_is_decoded() {
    let bytes = ensemble().encode_to_vec();
    let limited = |limits: Limits| lint(&bytes, &limits).unwrap_err().code();
    assert_eq!(limited(Limits { file_bytes: bytes.len() - 1, ..Limits::default() }), "too_large");
    assert!(lint(&bytes, &Limits { file_bytes: bytes.len(), ..Limits::default() }).is_ok());
    assert_eq!(limited(Limits { decoded_bytes: 1_000, ..Limits::default() }), "too_many_parts");
    // A node of two bytes takes two hundred in memory.
    let mut many = ensemble();
    graph(&mut many).node.extend(std::iter::repeat_n(NodeProto::default(), 100_000));
    let limits = Limits { decoded_bytes: 10 << 20, ..Limits::default() };
    assert_eq!(lint(&many.encode_to_vec(), &limits).unwrap_err().code(), "too_many_parts");
    assert_eq!(code(&many.encode_to_vec()), "too_many");
}

#[test]
fn the_estimate_of_memory_is_from_above() {
    let mut large = ensemble();
    held(&mut large, "nodes_modes").strings = vec![b"BRANCH_LEQ".to_vec(); 10_000];
    held(&mut large, "nodes_treeids").ints = vec![1; 10_000];
    let bytes = large.encode_to_vec();
    // 24 for each vector, 10 for the text, 8 for the integer.
    let needed = 10_000 * (24 + 10 + 8);
    let limits = Limits { decoded_bytes: needed, ..Limits::default() };
    assert_eq!(lint(&bytes, &limits).unwrap_err().code(), "too_many_parts");
}

#[test]
fn no_file_is_named_anywhere() {
    fn external(name: &str) -> TensorProto {
        let entry =
            StringStringEntryProto { key: Some("location".into()), value: Some("/etc/passwd".into()) };
        TensorProto { external_data: vec![entry], ..reals(name, &[0], &[]) }
    }
    fn with_subgraph(tensor: TensorProto) -> NodeProto {
        let inner = GraphProto { initializer: vec![tensor], ..GraphProto::default() };
        let branch = AttributeProto {
            name: Some("then_branch".into()),
            r#type: Some(5),
            g: Some(inner),
            ..AttributeProto::default()
        };
        node("", "If", &["x"], &["y"], vec![branch])
    }
    refuse(
        ensemble,
        &[
            ("external_data", |model| graph(model).initializer.push(external("w"))),
            ("external_data", |model| {
                graph(model)
                    .initializer
                    .push(TensorProto { data_location: Some(1), ..reals("w", &[0], &[]) });
            }),
            ("external_data", |model| {
                let sparse =
                    SparseTensorProto { values: Some(external("w")), ..SparseTensorProto::default() };
                graph(model).sparse_initializer.push(sparse);
            }),
            ("external_data", |model| {
                let constant =
                    node("", "Constant", &[], &["c"], vec![tensor_attribute("value", external("v"))]);
                graph(model).node.push(constant);
            }),
            ("external_data", |model| {
                let sparse =
                    SparseTensorProto { indices: Some(external("i")), ..SparseTensorProto::default() };
                graph(model).node[0].attribute[0].sparse_tensors.push(sparse);
            }),
            ("external_data", |model| graph(model).node.push(with_subgraph(external("deep")))),
            ("external_data", |model| {
                let function =
                    FunctionProto { node: vec![with_subgraph(external("f"))], ..FunctionProto::default() };
                model.functions.push(function);
            }),
            ("external_data", |model| {
                let algorithm = GraphProto { initializer: vec![external("t")], ..GraphProto::default() };
                let info = TrainingInfoProto { algorithm: Some(algorithm), ..TrainingInfoProto::default() };
                model.training_info.push(info);
            }),
        ],
    );
}

#[test]
fn what_the_model_may_be_made_of() {
    refuse(
        ensemble,
        &[
            ("ir_version", |model| model.ir_version = None),
            ("ir_version", |model| model.ir_version = Some(14)),
            ("ir_version", |model| model.ir_version = Some(-1)),
            ("opset_version", |model| model.opset_import[0].version = Some(27)),
            ("opset_version", |model| model.opset_import[1].version = Some(6)),
            ("opset_version", |model| model.opset_import[0].version = Some(0)),
            ("opset_version", |model| {
                let again = OperatorSetIdProto { domain: Some("ai.onnx".into()), version: Some(9) };
                model.opset_import.push(again);
            }),
            ("opset_missing", |model| {
                model.opset_import.pop();
            }),
            ("opset_missing", |model| model.opset_import.clear()),
            ("local_functions", |model| model.functions.push(FunctionProto::default())),
            ("training_info", |model| model.training_info.push(TrainingInfoProto::default())),
            ("unknown_domain", |model| graph(model).node[0].domain = Some("com.microsoft".into())),
            ("unknown_domain", |model| graph(model).node[0].domain = Some("evil".into())),
            ("no_values", |model| graph(model).output.clear()),
            ("no_values", |model| graph(model).input.clear()),
            ("control_flow", |model| graph(model).node.push(core("Loop", &["x"], &["y"]))),
            ("control_flow", |model| graph(model).node.push(core("If", &["x"], &["y"]))),
            ("control_flow", |model| graph(model).node.push(core("Scan", &["x"], &["y"]))),
            ("control_flow", |model| graph(model).node.push(core("SequenceMap", &["x"], &["y"]))),
            ("control_flow", |model| {
                let body = AttributeProto {
                    name: Some("body".into()),
                    r#type: Some(10),
                    graphs: vec![GraphProto::default()],
                    ..AttributeProto::default()
                };
                graph(model).node.push(node("", "Abs", &["x"], &["y"], vec![body]));
            }),
            ("too_many", |model| {
                let nodes = (0..50_000).map(|at| core("Abs", &["x"], &[&format!("y{at}")]));
                graph(model).node.extend(nodes);
            }),
            ("input_type", |model| graph(model).input[0] = value("x", 10, 2)),
            ("input_type", |model| graph(model).input[0].r#type = None),
            ("input_type", |model| {
                let sequence = TypeValue::SequenceType(TypeSequenceType::default());
                graph(model).input[0].r#type = Some(TypeProto { value: Some(sequence), denotation: None });
            }),
        ],
    );
}

#[test]
fn the_newest_and_the_same_twice_are_fine() {
    let mut model = ensemble();
    model.ir_version = Some(13);
    model.opset_import[0].version = Some(26);
    model.opset_import[1].version = Some(5);
    // skl2onnx imports ai.onnx.ml twice; other exporters import what they do not use.
    let set =
        |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    model.opset_import.extend([set("ai.onnx.ml", 5), set("com.microsoft", 1)]);
    take(&model);
}

#[test]
fn a_score_depends_on_the_row_alone() {
    refuse(
        ensemble,
        &[
            ("random", |model| graph(model).node.push(core("RandomNormalLike", &["x"], &["y"]))),
            ("random", |model| graph(model).node.push(core("RandomUniform", &[], &["y"]))),
            ("random", |model| graph(model).node.push(core("Multinomial", &["x"], &["y"]))),
            ("random", |model| graph(model).node.push(core("Bernoulli", &["x"], &["y"]))),
            ("random", |model| graph(model).node.push(core("Dropout", &["x", "", "x"], &["y"]))),
            ("random", |model| {
                let training = vec![int("training_mode", 1)];
                graph(model).node.push(node("", "BatchNormalization", &["x"], &["y"], training));
            }),
        ],
    );
    let mut model = ensemble();
    let off = TensorProto {
        name: Some("off".into()),
        data_type: Some(BOOL),
        raw_data: Some(vec![0]),
        ..TensorProto::default()
    };
    graph(&mut model).initializer.push(off);
    graph(&mut model)
        .node
        .extend([core("Dropout", &["x"], &["y"]), core("Dropout", &["x", "", "off"], &["z"])]);
    take(&model);
}

#[test]
fn names_are_names_and_unique() {
    refuse(
        ensemble,
        &[
            ("bad_name", |model| graph(model).input[0].name = Some("x\0y".into())),
            ("bad_name", |model| graph(model).input[0].name = Some(String::new())),
            ("bad_name", |model| graph(model).output[0].name = None),
            ("bad_name", |model| graph(model).node[0].name = Some("n".repeat(1_001))),
            ("bad_name", |model| graph(model).node[0].output[0] = "a\nb".into()),
            ("bad_name", |model| graph(model).node[0].op_type = Some("\u{1b}[2J".into())),
            ("bad_name", |model| graph(model).initializer.push(reals("", &[1], &[0.0]))),
            ("duplicate_name", |model| {
                let again = graph(model).input[0].clone();
                graph(model).input.push(again);
            }),
            ("duplicate_name", |model| {
                let again = graph(model).output[0].clone();
                graph(model).output.push(again);
            }),
            ("duplicate_name", |model| graph(model).node[0].output = vec!["y".into(), "y".into()]),
            ("duplicate_name", |model| graph(model).node[0].output[0] = "x".into()),
            ("duplicate_name", |model| {
                graph(model).initializer = vec![reals("w", &[1], &[0.0]), reals("w", &[1], &[0.0])];
            }),
            ("duplicate_name", |model| graph(model).initializer.push(reals("label", &[1], &[0.0]))),
            ("undefined_value", |model| graph(model).node[0].input[0] = "nothing".into()),
            ("undefined_value", |model| graph(model).output[0].name = Some("nothing".into())),
            ("not_sorted", |model| graph(model).node[0].input[0] = "label".into()),
            ("not_sorted", |model| {
                let nodes = &mut graph(model).node;
                nodes.insert(0, core("Add", &["x", "b"], &["a"]));
                nodes.insert(1, core("Add", &["x", "a"], &["b"]));
            }),
        ],
    );
}

#[test]
fn a_message_shows_no_raw_name() {
    let mut model = ensemble();
    graph(&mut model).node[0].input[0] = "\u{202e}\u{7f}\"".into();
    graph(&mut model).node[0].name = Some("n".repeat(500));
    let said = lint(&model.encode_to_vec(), &Limits::default()).unwrap_err().to_string();
    assert!(said.contains("\\u{202e}") && said.contains("\\u{7f}") && said.len() < 400, "{said}");
}

#[test]
fn attributes_hold_what_they_say() {
    refuse(
        ensemble,
        &[
            ("attribute", |model| held(model, "nodes_values").r#type = Some(7)),
            ("attribute", |model| held(model, "nodes_values").ints = vec![1]),
            ("attribute", |model| held(model, "nodes_values").ref_attr_name = Some("other".into())),
            ("attribute", |model| {
                let again = held(model, "nodes_values").clone();
                graph(model).node[0].attribute.push(again);
            }),
            ("attribute", |model| {
                let again = tensor_attribute("nodes_values_as_tensor", reals("", &[5], &[0.0; 5]));
                graph(model).node[0].attribute.push(again);
            }),
            ("attribute", |model| {
                graph(model).node[0].attribute.push(strings("classlabels_strings", &["no", "yes"]));
            }),
            ("attribute", |model| held(model, "classlabels_int64s").ints.clear()),
        ],
    );
    // The first format version had no types.
    let mut model = ensemble();
    graph(&mut model).node[0].attribute.iter_mut().for_each(|attribute| attribute.r#type = None);
    take(&model);
}

#[test]
fn tensors_are_what_their_shapes_say() {
    fn add(model: &mut ModelProto, tensor: TensorProto) {
        graph(model).initializer.push(tensor);
    }
    refuse(
        ensemble,
        &[
            ("tensor_data", |model| add(model, reals("w", &[3], &[1.0, 2.0]))),
            ("tensor_data", |model| add(model, reals("w", &[-1], &[]))),
            ("tensor_data", |model| add(model, reals("w", &[-2, -1], &[1.0, 2.0]))),
            ("tensor_data", |model| {
                add(model, TensorProto { data_type: Some(INT64), ..reals("w", &[1], &[1.0]) })
            }),
            ("tensor_data", |model| add(model, TensorProto { data_type: Some(99), ..reals("w", &[0], &[]) })),
            ("tensor_data", |model| add(model, TensorProto { data_type: None, ..reals("w", &[0], &[]) })),
            ("tensor_data", |model| {
                let raw = TensorProto {
                    raw_data: Some(vec![0; 7]),
                    float_data: Vec::new(),
                    ..reals("w", &[2], &[])
                };
                add(model, raw);
            }),
            ("tensor_data", |model| {
                add(model, TensorProto { raw_data: Some(vec![0; 8]), ..reals("w", &[2], &[1.0, 2.0]) });
            }),
            ("tensor_data", |model| {
                add(model, TensorProto { int64_data: vec![1], ..reals("w", &[1], &[1.0]) })
            }),
            ("tensor_data", |model| {
                add(
                    model,
                    TensorProto {
                        data_type: Some(STRING),
                        raw_data: Some(Vec::new()),
                        ..reals("w", &[0], &[])
                    },
                );
            }),
            ("giant_tensor", |model| add(model, reals("w", &[1 << 40], &[]))),
            ("giant_tensor", |model| add(model, reals("w", &[i64::MAX, i64::MAX], &[]))),
            ("giant_tensor", |model| {
                let sparse = SparseTensorProto {
                    values: Some(reals("w", &[1], &[1.0])),
                    indices: Some(longs("", &[1], &[0])),
                    dims: vec![1 << 20, 1 << 20],
                };
                graph(model).sparse_initializer.push(sparse);
            }),
            ("tensor_data", |model| graph(model).sparse_initializer.push(SparseTensorProto::default())),
        ],
    );
    let mut model = ensemble();
    let kinds = [(STRING, 0), (DOUBLE, 8), (FLOAT, 4), (BOOL, 1), (INT64, 8), (10, 2), (3, 1)];
    for (at, (kind, bytes)) in kinds.into_iter().enumerate() {
        let mut tensor = TensorProto {
            name: Some(format!("w{at}")),
            dims: vec![2],
            data_type: Some(kind),
            ..TensorProto::default()
        };
        match kind {
            STRING => tensor.string_data = vec![b"a".to_vec(), Vec::new()],
            _ => tensor.raw_data = Some(vec![0; 2 * bytes]),
        }
        add(&mut model, tensor);
    }
    add(&mut model, reals("masked", &[2], &[f32::NAN, f32::NEG_INFINITY]));
    add(&mut model, reals("scalar", &[], &[1.0]));
    add(&mut model, reals("nothing", &[0, 5], &[]));
    take(&model);
}

#[test]
fn nothing_in_the_file_asks_for_a_giant() {
    fn sized(model: &mut ModelProto, operator: &str, inputs: &[&str], size: &[i64]) {
        let graph = graph(model);
        graph.initializer.push(longs("size", &[size.len().try_into().unwrap()], size));
        graph.node.push(core(operator, inputs, &["y"]));
    }
    refuse(
        ensemble,
        &[
            ("giant_tensor", |model| sized(model, "ConstantOfShape", &["size"], &[1 << 17, 1 << 17])),
            ("giant_tensor", |model| sized(model, "Expand", &["x", "size"], &[1 << 34])),
            ("giant_tensor", |model| sized(model, "Tile", &["x", "size"], &[1 << 20, 1 << 20])),
            ("giant_tensor", |model| sized(model, "OneHot", &["x", "size", "x"], &[1 << 34])),
            ("giant_tensor", |model| sized(model, "Pad", &["x", "size"], &[0, 0, 0, 1 << 34])),
            ("giant_tensor", |model| sized(model, "Resize", &["x", "", "", "size"], &[1, 1 << 34])),
            ("giant_tensor", |model| {
                graph(model).initializer.push(longs("none", &[], &[0]));
                graph(model).initializer.push(longs("one", &[], &[1]));
                sized(model, "Range", &["none", "size", "one"], &[1 << 34]);
            }),
            ("giant_tensor", |model| {
                graph(model).initializer.push(longs("none", &[], &[0]));
                sized(model, "Range", &["none", "size", "none"], &[1]);
            }),
            // The size by way of a node.
            ("giant_tensor", |model| {
                let value = tensor_attribute("value", longs("", &[1], &[1 << 34]));
                graph(model).node.push(node("", "Constant", &[], &["size"], vec![value]));
                graph(model).node.push(core("ConstantOfShape", &["size"], &["y"]));
            }),
            ("giant_tensor", |model| {
                let value = ints("value_ints", &[1 << 20, 1 << 20]);
                graph(model).node.push(node("", "Constant", &[], &["size"], vec![value]));
                graph(model).node.push(core("ConstantOfShape", &["size"], &["y"]));
            }),
            ("giant_tensor", |model| {
                let pads = ints("pads", &[0, 0, 0, 1 << 34]);
                graph(model).node.push(node("", "Pad", &["x"], &["y"], vec![pads]));
            }),
            ("giant_tensor", |model| {
                let indexes = ints("ngram_indexes", &[1 << 34]);
                graph(model).node.push(node("", "TfIdfVectorizer", &["x"], &["y"], vec![indexes]));
            }),
            // A row that says how large something is.
            ("size_from_values", |model| {
                graph(model).node.extend([core("Cast", &["x"], &["n"]), core("Tile", &["x", "n"], &["y"])]);
            }),
            ("size_from_values", |model| graph(model).node.push(core("ConstantOfShape", &["x"], &["y"]))),
            ("size_from_values", |model| graph(model).node.push(core("Range", &["x", "x", "x"], &["y"]))),
            // All that is made, not each by itself.
            ("giant_tensor", |model| {
                let size = longs("size", &[1], &[1 << 25]);
                graph(model).initializer.push(size);
                for name in ["a", "b", "c"] {
                    graph(model).node.push(core("ConstantOfShape", &["size"], &[name]));
                }
            }),
        ],
    );
    // As skl2onnx does: as many ones as there are rows.
    let mut model = ensemble();
    graph(&mut model).initializer.push(longs("size", &[1], &[1_000]));
    graph(&mut model).node.extend([
        core("Shape", &["x"], &["rows"]),
        core("ConstantOfShape", &["rows"], &["y"]),
        core("Expand", &["y", "size"], &["z"]),
    ]);
    take(&model);
}

#[test]
fn no_row_chooses_a_size() {
    // Whatever counts, finds or cuts by the values of a row.
    for (operator, inputs) in [
        ("NonZero", &["x"][..]),
        ("Compress", &["weight", "x"]),
        ("Unique", &["x"]),
        ("TopK", &["x", "x"]),
        ("Slice", &["x", "zero", "x"]),
        ("Slice", &["x", "x", "size"]),
        ("Slice", &["x", "zero", "size", "zero", "x"]),
        ("Reshape", &["x", "x"]),
        ("Expand", &["weight", "x"]),
        ("Tile", &["weight", "x"]),
        ("Pad", &["x", "x"]),
        ("OneHot", &["x", "x", "weight"]),
        ("Range", &["zero", "x", "size"]),
        ("Split", &["x", "x"]),
        ("Squeeze", &["x", "x"]),
        ("ReduceSum", &["x", "x"]),
        ("NonMaxSuppression", &["x", "weight", "size"]),
        ("StringSplit", &["x"]),
        ("StringConcat", &["x", "x"]),
        ("StringNormalizer", &["x"]),
    ] {
        let mut model = ensemble();
        graph(&mut model).initializer.extend([
            longs("size", &[1], &[2]),
            longs("zero", &[1], &[0]),
            reals("weight", &[1], &[1.0]),
        ]);
        graph(&mut model).node.push(core(operator, inputs, &["y"]));
        assert_eq!(code(&model.encode_to_vec()), "size_from_values", "{operator} {inputs:?}");
    }
    // Neither do the values of a row by way of a size, nor one number of rows by way of arithmetic.
    let by_way_of = |nodes: Vec<NodeProto>| {
        let mut model = ensemble();
        graph(&mut model)
            .initializer
            .extend([longs("times", &[1], &[100_000_000]), longs("one", &[1], &[1])]);
        graph(&mut model).node.extend(nodes);
        code(&model.encode_to_vec())
    };
    let blow_up = || {
        vec![
            core("Shape", &["some"], &["shape"]),
            core("Mul", &["shape", "times"], &["size"]),
            core("Expand", &["one", "size"], &["large"]),
            core("ReduceSum", &["large"], &["y"]),
        ]
    };
    let found = vec![core("Greater", &["x", "one"], &["where"]), core("NonZero", &["where"], &["some"])];
    assert_eq!(by_way_of([found, blow_up()].concat()), "size_from_values");
    assert_eq!(
        by_way_of([vec![core("Identity", &["x"], &["some"])], blow_up()].concat()),
        "size_from_values"
    );
    let rows = || core("Shape", &["x"], &["rows"]);
    let only_then = vec![
        rows(),
        core("Equal", &["rows", "one"], &["is"]),
        core("Where", &["is", "times", "rows"], &["size"]),
        core("ConstantOfShape", &["size"], &["y"]),
    ];
    assert_eq!(by_way_of(only_then), "size_from_values");
    // A type that sizes begin again in from zero.
    let narrow = |to| {
        vec![
            rows(),
            node("", "Cast", &["rows"], &["size"], vec![int("to", to)]),
            core("ConstantOfShape", &["size"], &["y"]),
        ]
    };
    assert_eq!(by_way_of(narrow(3)), "size_from_values");
    // As torch does: as many rows of the learned token as there are rows.
    let mut model = ensemble();
    graph(&mut model).initializer.extend([
        longs("first", &[1], &[0]),
        longs("columns", &[1], &[8]),
        reals("token", &[1, 8], &[0.5; 8]),
    ]);
    graph(&mut model).node.extend([
        rows(),
        node("", "Gather", &["rows", "first"], &["count"], vec![int("axis", 0)]),
        node("", "Cast", &["count"], &["whole"], vec![int("to", 7)]),
        node("", "Concat", &["whole", "columns"], &["size"], vec![int("axis", 0)]),
        core("Expand", &["token", "size"], &["y"]),
    ]);
    take(&model);
}

#[test]
fn no_row_is_given_a_long_text() {
    let mapper = |text: &str| {
        let values = vec![ints("keys_int64s", &[0, 1]), strings("values_strings", &["a", text])];
        let mut model = ensemble();
        graph(&mut model).node.push(node("ai.onnx.ml", "LabelEncoder", &["label"], &["y"], values));
        model
    };
    take(&mapper(&"x".repeat(1_000)));
    assert_eq!(code(&mapper(&"x".repeat(1_001)).encode_to_vec()), "attribute");
    let table = |text: String| {
        let mut model = ensemble();
        graph(&mut model).initializer.push(TensorProto {
            name: Some("table".into()),
            dims: vec![1],
            data_type: Some(STRING),
            string_data: vec![text.into_bytes()],
            ..TensorProto::default()
        });
        model
    };
    take(&table("x".repeat(1_000)));
    assert_eq!(code(&table("x".repeat(1_001)).encode_to_vec()), "tensor_data");
}

#[test]
fn trees_are_trees() {
    refuse(
        ensemble,
        &[
            ("lengths", |model| {
                held(model, "nodes_values").floats.pop();
            }),
            ("lengths", |model| held(model, "nodes_treeids").ints.push(0)),
            ("lengths", |model| {
                held(model, "nodes_modes").strings.pop();
            }),
            ("lengths", |model| {
                held(model, "nodes_missing_value_tracks_true").ints.pop();
            }),
            ("lengths", |model| {
                held(model, "class_ids").ints.pop();
            }),
            ("lengths", |model| {
                held(model, "class_weights").floats.pop();
            }),
            ("lengths", |model| {
                graph(model).node[0].attribute.retain(|held| !held.name().starts_with("nodes_"))
            }),
            ("lengths", |model| graph(model).node[0].attribute.push(floats("base_values", &[0.0; 3]))),
            ("tree_mode", |model| held(model, "nodes_modes").strings[1] = b"BRANCH_MAYBE".to_vec()),
            ("tree_mode", |model| held(model, "nodes_modes").strings[1] = vec![0xff]),
            ("tree_threshold", |model| held(model, "nodes_values").floats[1] = f32::NAN),
            ("tree_leaf", |model| held(model, "class_weights").floats[0] = f32::INFINITY),
            ("tree_leaf", |model| held(model, "class_weights").floats[2] = f32::NAN),
            ("tree_leaf", |model| graph(model).node[0].attribute.push(floats("base_values", &[f32::NAN]))),
            ("tree_class", |model| held(model, "class_ids").ints[0] = 2),
            ("tree_class", |model| held(model, "class_ids").ints[0] = -1),
            ("tree_feature", |model| held(model, "nodes_featureids").ints[0] = 2),
            ("tree_feature", |model| held(model, "nodes_featureids").ints[0] = -1),
            ("tree_feature", |model| held(model, "nodes_featureids").ints[0] = i64::MAX),
            ("tree_duplicate_node", |model| held(model, "nodes_nodeids").ints[4] = 3),
            ("tree_duplicate_node", |model| held(model, "nodes_treeids").ints[2] = 7),
            ("tree_missing_node", |model| held(model, "nodes_truenodeids").ints[1] = 9),
            ("tree_missing_node", |model| held(model, "nodes_falsenodeids").ints[0] = -1),
            ("tree_missing_node", |model| held(model, "class_nodeids").ints[0] = 9),
            ("tree_missing_node", |model| held(model, "class_treeids").ints[0] = 1),
            // A weight at a node that is no leaf.
            ("tree_missing_node", |model| held(model, "class_nodeids").ints[0] = 0),
            ("tree_cycle", |model| held(model, "nodes_truenodeids").ints[1] = 0),
            ("tree_cycle", |model| held(model, "nodes_truenodeids").ints[0] = 0),
            ("tree_cycle", |model| held(model, "nodes_falsenodeids").ints[1] = 1),
            ("tree_cycle", |model| held(model, "nodes_falsenodeids").ints[1] = 3),
            ("tree_cycle", |model| held(model, "nodes_falsenodeids").ints[1] = 2),
            ("tree_unreachable", |model| {
                held(model, "nodes_modes").strings[1] = b"LEAF".to_vec();
                held(model, "class_nodeids").ints = vec![2, 1, 1];
            }),
        ],
    );
}

#[test]
fn regressors_have_targets() {
    fn regressor() -> ModelProto {
        let mut model = ensemble();
        let node = &mut graph(&mut model).node[0];
        node.op_type = Some("TreeEnsembleRegressor".into());
        node.output = vec!["probabilities".into()];
        node.attribute.retain(|held| held.name() != "classlabels_int64s");
        for attribute in &mut node.attribute {
            attribute.name = Some(attribute.name().replace("class_", "target_"));
        }
        node.attribute.push(int("n_targets", 2));
        model
    }
    refuse(
        regressor,
        &[
            ("tree_target", |model| held(model, "target_ids").ints[0] = 2),
            ("tree_target", |model| held(model, "target_ids").ints[0] = -1),
            ("tree_leaf", |model| held(model, "target_weights").floats[0] = f32::NAN),
            ("attribute", |model| held(model, "n_targets").i = Some(0)),
            ("attribute", |model| held(model, "n_targets").i = Some(-5)),
            ("too_many", |model| held(model, "n_targets").i = Some(1 << 40)),
            ("attribute", |model| {
                graph(model).node[0].attribute.pop();
            }),
        ],
    );
    // Thresholds and weights may be tensors of doubles.
    let mut model = regressor();
    let doubles = |name: &str, values: &[f64]| {
        let tensor = TensorProto {
            dims: vec![values.len().try_into().unwrap()],
            data_type: Some(DOUBLE),
            double_data: values.to_vec(),
            ..TensorProto::default()
        };
        tensor_attribute(name, tensor)
    };
    graph(&mut model).node[0]
        .attribute
        .retain(|held| !["nodes_values", "target_weights"].contains(&held.name()));
    graph(&mut model).node[0].attribute.extend([
        doubles("nodes_values_as_tensor", &[0.5, 1.5, 0.0, 0.0, 0.0]),
        doubles("target_weights_as_tensor", &[0.5, 1.5, 0.5]),
    ]);
    take(&model);
    held(&mut model, "target_weights_as_tensor").t.as_mut().unwrap().double_data[1] = f64::NAN;
    assert_eq!(code(&model.encode_to_vec()), "tree_leaf");
}

/// A tree that is a chain of `levels` levels, numbered from its root.
fn chain(levels: i64, mode: &str) -> ModelProto {
    let mut model = ensemble();
    let branches = levels - 1;
    // Branch k leads to leaf `branches + k` and to branch k + 1, the last one to two leaves.
    let count = 2 * branches + 1;
    let of = |value: &dyn Fn(i64) -> i64| (0..count).map(value).collect::<Vec<_>>();
    held(&mut model, "nodes_treeids").ints = of(&|_| 0);
    held(&mut model, "nodes_nodeids").ints = of(&|at| at);
    held(&mut model, "nodes_featureids").ints = of(&|_| 0);
    held(&mut model, "nodes_missing_value_tracks_true").ints = of(&|_| 0);
    held(&mut model, "nodes_values").floats = vec![0.5; count.try_into().unwrap()];
    held(&mut model, "nodes_truenodeids").ints = of(&|at| if at < branches { branches + 1 + at } else { 0 });
    held(&mut model, "nodes_falsenodeids").ints = of(&|at| if at < branches { at + 1 } else { 0 });
    held(&mut model, "nodes_modes").strings =
        (0..count).map(|at| if at < branches { mode.into() } else { b"LEAF".to_vec() }).collect();
    held(&mut model, "class_treeids").ints = vec![0];
    held(&mut model, "class_nodeids").ints = vec![branches];
    held(&mut model, "class_ids").ints = vec![0];
    held(&mut model, "class_weights").floats = vec![0.5];
    model
}

#[test]
fn trees_are_a_thousand_levels_deep_at_most() {
    take(&chain(1_000, "BRANCH_LEQ"));
    for levels in [1_001, 3_000, 100_000] {
        assert_eq!(code(&chain(levels, "BRANCH_LEQ").encode_to_vec()), "tree_depth");
    }
}

/// LightGBM's split on the set {1, 2, 3} as onnxmltools writes it: equalities with one destination.
fn membership() -> ModelProto {
    let mut model = chain(4, "BRANCH_EQ");
    // Nodes 0, 1, 2 are the chain, 3 its end, 4 the shared destination; 5 and 6 hang on 4.
    held(&mut model, "nodes_truenodeids").ints = vec![4, 4, 4, 0, 5, 0, 0];
    held(&mut model, "nodes_falsenodeids").ints = vec![1, 2, 3, 0, 6, 0, 0];
    held(&mut model, "nodes_modes").strings =
        ["BRANCH_EQ", "BRANCH_EQ", "BRANCH_EQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"]
            .map(Into::into)
            .to_vec();
    held(&mut model, "class_nodeids").ints = vec![3];
    model
}

#[test]
fn a_chain_of_equalities_may_share_its_destination() {
    refuse(
        membership,
        &[
            // Another feature, another comparison, another branch, another order: no set of categories.
            ("tree_cycle", |model| held(model, "nodes_featureids").ints[1] = 1),
            ("tree_cycle", |model| held(model, "nodes_modes").strings[1] = b"BRANCH_LEQ".to_vec()),
            ("tree_cycle", |model| held(model, "nodes_falsenodeids").ints[2] = 4),
            ("tree_cycle", |model| held(model, "nodes_truenodeids").ints[4] = 4),
            ("tree_cycle", |model| held(model, "nodes_truenodeids").ints[4] = 1),
            ("tree_cycle", |model| held(model, "nodes_falsenodeids").ints[4] = 3),
        ],
    );
    // What hangs on the destination is as deep as the chain is long.
    let bytes = membership().encode_to_vec();
    let limited = |tree_depth| lint(&bytes, &Limits { tree_depth, ..Limits::default() });
    assert!(limited(5).is_ok());
    assert_eq!(limited(4).unwrap_err().code(), "tree_depth");
}

#[test]
fn numbers_of_nodes_need_not_be_places() {
    let mut model = ensemble();
    held(&mut model, "nodes_nodeids").ints = vec![70, -3, 5, 0, 1_000];
    held(&mut model, "nodes_truenodeids").ints = vec![-3, 0, 0, 0, 0];
    held(&mut model, "nodes_falsenodeids").ints = vec![5, 1_000, 0, 0, 0];
    held(&mut model, "class_nodeids").ints = vec![5, 0, 1_000];
    take(&model);
    // The first is the root.
    held(&mut model, "nodes_nodeids").ints.swap(0, 2);
    held(&mut model, "nodes_modes").strings.swap(0, 2);
    assert_ne!(code(&model.encode_to_vec()), "fine");
}

#[test]
fn infinite_thresholds_are_fine() {
    let mut model = ensemble();
    held(&mut model, "nodes_values").floats = vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, 0.0];
    take(&model);
}

#[test]
fn trees_of_operator_set_five_are_trees() {
    refuse(
        ensemble_of_set_five,
        &[
            ("lengths", |model| {
                held(model, "nodes_trueleafs").ints.pop();
            }),
            ("lengths", |model| held(model, "leaf_targetids").ints.push(0)),
            ("lengths", |model| held(model, "tree_roots").ints.clear()),
            ("lengths", |model| {
                held(model, "membership_values").t = Some(reals("", &[2], &[1.0, 2.0]));
            }),
            ("lengths", |model| {
                held(model, "membership_values").t = Some(reals("", &[2], &[f32::NAN, f32::NAN]));
            }),
            ("attribute", |model| held(model, "n_targets").i = Some(0)),
            ("attribute", |model| held(model, "leaf_weights").name = Some("leaf_wights".into())),
            ("tree_mode", |model| held(model, "nodes_modes").t.as_mut().unwrap().raw_data = Some(vec![0, 7])),
            ("tree_feature", |model| held(model, "nodes_featureids").ints[1] = 2),
            ("tree_threshold", |model| {
                held(model, "nodes_splits").t.as_mut().unwrap().float_data[0] = f32::NAN;
            }),
            ("tree_leaf", |model| {
                held(model, "leaf_weights").t.as_mut().unwrap().float_data[0] = f32::INFINITY;
            }),
            ("tree_target", |model| held(model, "leaf_targetids").ints[0] = 1),
            ("tree_missing_node", |model| held(model, "nodes_truenodeids").ints[0] = 2),
            ("tree_missing_node", |model| held(model, "nodes_falsenodeids").ints[0] = 3),
            ("tree_missing_node", |model| held(model, "tree_roots").ints[0] = 2),
            ("tree_cycle", |model| held(model, "nodes_truenodeids").ints[0] = 0),
            ("tree_cycle", |model| held(model, "tree_roots").ints.push(1)),
            ("tree_unreachable", |model| held(model, "tree_roots").ints[0] = 1),
        ],
    );
}

#[test]
fn widths_follow_from_the_inputs() {
    // x[N, 2] scaled, beside z[N, 3] imputed: five columns in all.
    let with = |feature: i64, before: Vec<NodeProto>, initializer: Vec<TensorProto>| {
        let mut trees = classifier();
        trees.input[0] = "features".into();
        trees.attribute.iter_mut().find(|held| held.name() == "nodes_featureids").unwrap().ints[0] = feature;
        model([before, vec![trees]].concat(), initializer, &[("x", 2), ("z", 3)], "probabilities")
    };
    let concat = || {
        vec![
            node(
                "ai.onnx.ml",
                "Scaler",
                &["x"],
                &["s"],
                vec![floats("offset", &[0.0, 1.0]), floats("scale", &[1.0])],
            ),
            node("ai.onnx.ml", "Imputer", &["z"], &["i"], vec![floats("imputed_value_floats", &[0.0; 3])]),
            core("Cast", &["i"], &["c"]),
            node("", "Concat", &["s", "c"], &["features"], vec![int("axis", 1)]),
        ]
    };
    take(&with(4, concat(), Vec::new()));
    assert_eq!(code(&with(5, concat(), Vec::new()).encode_to_vec()), "tree_feature");
    let reshape = || vec![core("Reshape", &["x", "shape"], &["features"])];
    let shape = |columns| vec![longs("shape", &[2], &[-1, columns])];
    take(&with(6, reshape(), shape(7)));
    assert_eq!(code(&with(7, reshape(), shape(7)).encode_to_vec()), "tree_feature");
    let product = || vec![core("MatMul", &["x", "w"], &["m"]), core("Sub", &["m", "b"], &["features"])];
    let weights = || vec![reals("w", &[2, 3], &[0.0; 6]), reals("b", &[1, 3], &[0.0; 3])];
    take(&with(2, product(), weights()));
    assert_eq!(code(&with(3, product(), weights()).encode_to_vec()), "tree_feature");
    let gather = || vec![node("", "Gather", &["x", "at"], &["features"], vec![int("axis", 1)])];
    let taken = || vec![longs("at", &[2], &[1, 0])];
    take(&with(1, gather(), taken()));
    assert_eq!(code(&with(2, gather(), taken()).encode_to_vec()), "tree_feature");

    // What is not known is left to ONNX Runtime, which refuses to run trees that look further.
    take(&with(9, vec![core("Mystery", &["x"], &["features"])], Vec::new()));

    // A value beside itself, again and again, is soon wider than any memory.
    let doubling = |times: usize| {
        let name = |at: usize| if at == 0 { "x".to_owned() } else { format!("twice{at}") };
        let nodes = (0..times)
            .map(|at| node("", "Concat", &[&name(at), &name(at)], &[&name(at + 1)], vec![int("axis", 1)]));
        let mut model = ensemble();
        graph(&mut model).node.extend(nodes);
        model
    };
    take(&doubling(15));
    assert_eq!(code(&doubling(16).encode_to_vec()), "too_many");
    assert_eq!(code(&doubling(90).encode_to_vec()), "too_many");
}

#[test]
fn lists_fit_each_other() {
    type Attributes = fn() -> Vec<AttributeProto>;
    let cases: [(&str, &str, Attributes); 26] = [
        ("fine", "LinearClassifier", || {
            vec![
                floats("coefficients", &[0.0; 4]),
                floats("intercepts", &[0.0; 2]),
                ints("classlabels_ints", &[0, 1]),
            ]
        }),
        ("fine", "LinearClassifier", || {
            vec![
                floats("coefficients", &[0.0; 2]),
                floats("intercepts", &[0.0]),
                ints("classlabels_ints", &[0, 1]),
            ]
        }),
        ("lengths", "LinearClassifier", || {
            vec![
                floats("coefficients", &[0.0; 3]),
                floats("intercepts", &[0.0; 2]),
                ints("classlabels_ints", &[0, 1]),
            ]
        }),
        // Two columns go in, three coefficients a class.
        ("lengths", "LinearClassifier", || {
            vec![
                floats("coefficients", &[0.0; 6]),
                floats("intercepts", &[0.0; 2]),
                ints("classlabels_ints", &[0, 1]),
            ]
        }),
        ("lengths", "LinearClassifier", || {
            vec![
                floats("coefficients", &[0.0; 4]),
                floats("intercepts", &[0.0; 2]),
                ints("classlabels_ints", &[0, 1, 2]),
            ]
        }),
        ("fine", "LinearRegressor", || vec![floats("coefficients", &[0.0; 2]), floats("intercepts", &[0.0])]),
        ("lengths", "LinearRegressor", || {
            vec![floats("coefficients", &[0.0; 2]), floats("intercepts", &[0.0; 2])]
        }),
        ("lengths", "LinearRegressor", || vec![floats("coefficients", &[0.0; 3])]),
        ("lengths", "LinearRegressor", || vec![floats("coefficients", &[0.0; 2]), int("targets", -1)]),
        ("fine", "SVMRegressor", || {
            vec![
                floats("coefficients", &[0.0; 3]),
                floats("support_vectors", &[0.0; 6]),
                int("n_supports", 3),
                floats("rho", &[0.0]),
            ]
        }),
        ("lengths", "SVMRegressor", || {
            vec![
                floats("coefficients", &[0.0; 2]),
                floats("support_vectors", &[0.0; 6]),
                int("n_supports", 3),
                floats("rho", &[0.0]),
            ]
        }),
        ("fine", "SVMClassifier", || {
            vec![
                floats("coefficients", &[0.0; 3]),
                floats("support_vectors", &[0.0; 6]),
                ints("vectors_per_class", &[1, 2]),
                floats("rho", &[0.0]),
            ]
        }),
        ("lengths", "SVMClassifier", || {
            vec![
                floats("coefficients", &[0.0; 3]),
                floats("support_vectors", &[0.0; 6]),
                ints("vectors_per_class", &[1, 4]),
                floats("rho", &[0.0]),
            ]
        }),
        ("lengths", "SVMClassifier", || {
            vec![
                floats("coefficients", &[0.0; 3]),
                floats("support_vectors", &[0.0; 6]),
                ints("vectors_per_class", &[-1, 4]),
                floats("rho", &[0.0]),
            ]
        }),
        ("lengths", "SVMClassifier", || {
            vec![
                floats("coefficients", &[0.0; 3]),
                floats("support_vectors", &[0.0; 6]),
                ints("vectors_per_class", &[1, 2]),
            ]
        }),
        ("fine", "Scaler", || vec![floats("offset", &[0.0; 2]), floats("scale", &[1.0])]),
        ("lengths", "Scaler", || vec![floats("offset", &[0.0; 2]), floats("scale", &[1.0; 3])]),
        ("lengths", "Imputer", || vec![floats("imputed_value_floats", &[0.0; 3])]),
        ("fine", "LabelEncoder", || vec![strings("keys_strings", &["a"]), ints("values_int64s", &[1])]),
        ("lengths", "LabelEncoder", || {
            vec![strings("keys_strings", &["a", "b"]), ints("values_int64s", &[1])]
        }),
        ("lengths", "LabelEncoder", || vec![strings("keys_strings", &["a"])]),
        ("lengths", "OneHotEncoder", || vec![strings("cats_strings", &["a"]), ints("cats_int64s", &[1])]),
        ("lengths", "ZipMap", Vec::new),
        ("lengths", "CategoryMapper", || vec![strings("cats_strings", &["a"]), ints("cats_int64s", &[1, 2])]),
        ("lengths", "FeatureVectorizer", || vec![ints("inputdimensions", &[1, 2])]),
        ("lengths", "FeatureVectorizer", || vec![ints("inputdimensions", &[20_000])]),
    ];
    for (expected, operator, attributes) in cases {
        let node = node("ai.onnx.ml", operator, &["x"], &["y"], attributes());
        let found = code(&model(vec![node], Vec::new(), &[("x", 2)], "y").encode_to_vec());
        assert_eq!(found, expected, "{operator} {:?}", attributes());
    }
    let tf_idf = |attributes| {
        let node = node("", "TfIdfVectorizer", &["x"], &["y"], attributes);
        code(&model(vec![node], Vec::new(), &[("x", 2)], "y").encode_to_vec())
    };
    let pool =
        || vec![ints("pool_int64s", &[1, 2]), ints("ngram_counts", &[0]), ints("ngram_indexes", &[0, 1])];
    assert_eq!(tf_idf(pool()), "fine");
    for (at, wrong) in [(1, vec![3]), (1, vec![1, 0]), (2, vec![-1, 0])] {
        let mut attributes = pool();
        attributes[at].ints = wrong;
        assert_eq!(tf_idf(attributes), "lengths");
    }
}

#[test]
fn codes_are_snake_case_and_messages_say_what_to_do() {
    let mut model = ensemble();
    held(&mut model, "nodes_truenodeids").ints[1] = 0;
    let fault = lint(&model.encode_to_vec(), &Limits::default()).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "the node \"TreeEnsembleClassifier\" that makes \"label\", node 0 of tree 0: found a second way to this node, \
         expected a tree (a circle would never end); export the model again"
    );
    assert_eq!(fault.code(), "tree_cycle");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, rng_seed: RngSeed::Fixed(20_261_122), ..ProptestConfig::default() })]

    /// Whatever is done to the bytes, there is a model or a fault, and what is let through is let through again.
    #[test]
    fn damaged_bytes_never_panic(
        which in 0..3_usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let mut bytes = [ensemble, ensemble_of_set_five, membership][which]().encode_to_vec();
        for (at, byte, kind) in edits {
            if bytes.is_empty() { break }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Ok(model) = lint(&bytes, &Limits::default()) {
            prop_assert!(lint(&model.encode_to_vec(), &Limits::default()).is_ok());
        }
    }

    /// The same for bytes of which every field may be there: messages made of messages.
    #[test]
    fn any_fields_never_panic(
        fields in prop::collection::vec((1..27_u8, 0..6_u8, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
    ) {
        let mut bytes = Vec::new();
        for (tag, wire, content) in fields {
            let key = u32::from(tag) << 3 | u32::from(wire);
            if key > 127 {
                bytes.extend([(key & 0x7f) as u8 | 0x80, (key >> 7) as u8]);
            } else {
                bytes.push(key as u8);
            }
            if wire == 2 {
                bytes.push(content.len() as u8);
            }
            bytes.extend(content);
        }
        let _ = lint(&bytes, &Limits::default());
    }
}
