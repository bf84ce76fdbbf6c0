//! Model files that nobody should serve, each made from a good one, and the code that each is refused with.

use prost::Message;
use scoregate_schemas::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TensorShapeDimension, TensorShapeDimensionValue, TensorShapeProto,
    TrainingInfoProto, TypeProto, TypeTensorType, TypeValue, ValueInfoProto,
};
use serde_json::{Value, json};

use super::graph::{BOOL, FLOAT, int, ints};

/// `TensorProto.DataType.INT64`
const INT64: i32 = 7;
/// `TensorProto.DataType.FLOAT16`
const FLOAT16: i32 = 10;
const ML: &str = "ai.onnx.ml";

/// A file that has to be refused.
pub(crate) struct BadFile {
    pub(crate) name: &'static str,
    /// What is wrong with it.
    pub(crate) how: &'static str,
    made: Made,
    /// The code that `scoregate import` and a running gateway give it.
    pub(crate) code: &'static str,
    /// The code that `scoregate import` gives it, where it finds something before the model is tried as a version is.
    pub(crate) import: Option<&'static str>,
}

enum Made {
    /// From nothing.
    Whole(fn() -> Vec<u8>),
    /// By a change to the good model.
    Edited(fn(&mut ModelProto)),
}

impl BadFile {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self.made {
            Made::Whole(make) => make(),
            Made::Edited(edit) => {
                let mut model = good();
                edit(&mut model);
                model.encode_to_vec()
            }
        }
    }
}

fn bad(name: &'static str, code: &'static str, how: &'static str, make: fn() -> Vec<u8>) -> BadFile {
    BadFile { name, how, made: Made::Whole(make), code, import: None }
}

fn edited(name: &'static str, code: &'static str, how: &'static str, edit: fn(&mut ModelProto)) -> BadFile {
    BadFile { name, how, made: Made::Edited(edit), code, import: None }
}

/// The feature schema of all these models.
pub(crate) fn schema(name: &str) -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        "type": "object",
        "properties": {
            "a": {"type": "number", "minimum": 0, "maximum": 1},
            "b": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["a", "b"],
        "x-scoregate": {"target": "outcome", "labels": ["no", "yes"]},
    })
}

/// Rows and the answers of the good model, which follow from its leaves.
pub(crate) const ROWS: [(&str, f64); 3] =
    [(r#"{"a":0.25,"b":0.25}"#, 0.25), (r#"{"a":0.25,"b":0.875}"#, 0.75), (r#"{"a":0.875,"b":0.5}"#, 0.125)];

/// The golden rows of the good model.
pub(crate) fn golden() -> String {
    ROWS.iter().map(|(row, expected)| format!("{{\"features\":{row},\"expected\":{expected}}}\n")).collect()
}

/// A model of one tree over `x[N, 2]`: a ≤ 0.5 → (b ≤ 0.5 → 0.25, 0.75), 0.125.
pub(crate) fn good() -> ModelProto {
    let tree = vec![
        ints("nodes_treeids", &[0, 0, 0, 0, 0]),
        ints("nodes_nodeids", &[0, 1, 2, 3, 4]),
        ints("nodes_featureids", &[0, 1, 0, 0, 0]),
        floats("nodes_values", &[0.5, 0.5, 0.0, 0.0, 0.0]),
        strings("nodes_modes", &["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"]),
        ints("nodes_truenodeids", &[1, 3, 0, 0, 0]),
        ints("nodes_falsenodeids", &[2, 4, 0, 0, 0]),
        ints("class_treeids", &[0, 0, 0, 0, 0, 0]),
        ints("class_nodeids", &[3, 3, 4, 4, 2, 2]),
        ints("class_ids", &[0, 1, 0, 1, 0, 1]),
        floats("class_weights", &[0.75, 0.25, 0.25, 0.75, 0.875, 0.125]),
        ints("classlabels_int64s", &[0, 1]),
        AttributeProto {
            name: Some("post_transform".into()),
            r#type: Some(3),
            s: Some("NONE".into()),
            ..Default::default()
        },
    ];
    let graph = GraphProto {
        name: Some("tree".into()),
        node: vec![node(ML, "TreeEnsembleClassifier", &["x"], &["label", "probabilities"], tree)],
        input: vec![value("x", FLOAT, 2)],
        output: vec![value("label", INT64, 0), value("probabilities", FLOAT, 2)],
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        producer_name: Some("a test".into()),
        opset_import: vec![opset("", 17), opset(ML, 3)],
        graph: Some(graph),
        ..Default::default()
    }
}

/// The good model, but that its answer is NaN where `a` and `b` are both zero.
pub(crate) fn nan_for_zero() -> ModelProto {
    let mut model = good();
    let sum = node("", "ReduceMax", &["x"], &["highest"], vec![ints("axes", &[1])]);
    // 1 for every row that has anything in it, NaN for the others; and then zero.
    let one = core("Div", &["highest", "highest"], "one");
    noise(&mut model, vec![sum, one, core("Sub", &["one", "one"], "noise")]);
    model
}

/// Every bad file.
pub(crate) fn table() -> Vec<BadFile> {
    let mut table = vec![
        bad("empty", "empty_file", "no bytes", Vec::new),
        bad("pickle", "not_onnx", "a scikit-learn pickle", || {
            b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x07sklearn".to_vec()
        }),
        bad("zip", "not_onnx", "a zip archive, as torch.save writes", || {
            b"PK\x03\x04\x14\0\0\0\0\0archive/data.pkl".to_vec()
        }),
        bad("elf", "not_onnx", "the program that runs this test", || {
            std::fs::read("/proc/self/exe").unwrap()[..4096].to_vec()
        }),
        bad("xgboost_json", "not_onnx", "XGBoost's own JSON", || {
            br#"{"learner":{"gradient_booster":{}}}"#.to_vec()
        }),
        bad("lightgbm_text", "not_onnx", "LightGBM's own text", || {
            b"tree\nversion=v4\nnum_class=1\n".to_vec()
        }),
        bad("catboost_cbm", "not_onnx", "CatBoost's own format", || b"CBM1\x10\0\0\0".to_vec()),
        bad("hdf5", "not_onnx", "a Keras file", || b"\x89HDF\r\n\x1a\n\0\0".to_vec()),
        bad("noise", "not_onnx", "text of no format", || b"a model, honestly".to_vec()),
        bad("truncated", "truncated", "the first half of a good file", || {
            let bytes = good().encode_to_vec();
            bytes[..bytes.len() / 2].to_vec()
        }),
        bad("zeros_behind", "trailing_bytes", "a good file and 64 zeros", || {
            [good().encode_to_vec(), vec![0; 64]].concat()
        }),
        bad("two_models", "trailing_bytes", "two good files, one behind the other", || {
            [good().encode_to_vec(), good().encode_to_vec()].concat()
        }),
        bad("damaged", "malformed_model", "a good file with a name that is no text", || {
            let mut bytes = good().encode_to_vec();
            let name = bytes.windows(4).position(|window| window == b"tree").unwrap();
            bytes[name] = 0xff;
            bytes
        }),
        bad("millions_of_parts", "too_many_parts", "8 MB that take 5 GB once they are read", || {
            let wrapped = |key: u8, content: &[u8]| {
                let mut bytes = vec![key];
                prost::encoding::encode_varint(content.len() as u64, &mut bytes);
                [&bytes, content].concat()
            };
            let attributes = b"\x2a\0".repeat(4_000_000);
            [&b"\x08\x08"[..], &wrapped(0x3a, &wrapped(0x0a, &attributes))].concat()
        }),
        edited("no_graph", "no_graph", "no graph", |model| model.graph = None),
        edited("new_format", "ir_version", "a format version of the future", |model| {
            model.ir_version = Some(99)
        }),
        edited("new_opset", "opset_version", "operator set 27", |model| {
            model.opset_import[0].version = Some(27)
        }),
        edited("new_ml_opset", "opset_version", "ai.onnx.ml 6", |model| {
            model.opset_import[1].version = Some(6)
        }),
        edited("custom_domain", "unknown_domain", "an operator of a vendor", |model| {
            graph(model).node[0].domain = Some("com.example".into());
        }),
        edited("local_function", "local_functions", "an operator defined in the file", |model| {
            model.functions.push(FunctionProto { name: Some("f".into()), ..Default::default() });
        }),
        edited("training_graph", "training_info", "a training graph", |model| {
            model.training_info.push(TrainingInfoProto::default());
        }),
        edited("external_absolute", "external_data", "weights in /etc/passwd", |model| {
            graph(model).initializer.push(external("/etc/passwd"));
        }),
        edited("external_above", "external_data", "weights in a file above the package", |model| {
            graph(model).initializer.push(external("../elsewhere"));
        }),
        edited("external_beside", "external_data", "weights in a file of the package", |model| {
            let value = AttributeProto {
                name: Some("value".into()),
                r#type: Some(4),
                t: Some(external("elsewhere")),
                ..Default::default()
            };
            graph(model).node.push(node("", "Constant", &[], &["w"], vec![value]));
        }),
        edited("external_proc", "external_data", "a sparse tensor in /proc/self/mem", |model| {
            let sparse = SparseTensorProto { values: Some(external("/proc/self/mem")), ..Default::default() };
            graph(model).sparse_initializer.push(sparse);
        }),
        edited("endless_loop", "control_flow", "a loop of 2^62 rounds", endless_loop),
        edited("branch", "control_flow", "a branch", |model| {
            let branch = |name: &str| subgraph(name, vec![core("Identity", &["x"], "y")], "y");
            let attributes = vec![branch("then_branch"), branch("else_branch")];
            graph(model).initializer.push(tensor("yes", BOOL, &[], &[1]));
            graph(model).node.push(node("", "If", &["yes"], &["z"], attributes));
        }),
        edited("scan", "control_flow", "a scan", |model| {
            let body = subgraph("body", vec![core("Identity", &["x"], "y")], "y");
            graph(model).node.push(node("", "Scan", &["x"], &["z"], vec![body, int("num_scan_inputs", 1)]));
        }),
        edited("random", "random", "noise on the scores", |model| {
            noise(model, vec![core("RandomUniformLike", &["plain"], "noise")]);
        }),
        edited("giant_constant", "giant_tensor", "ConstantOfShape of 2^34 elements", |model| {
            graph(model).initializer.push(longs("giant", &[1 << 17, 1 << 17]));
            graph(model).node.push(core("ConstantOfShape", &["giant"], "much"));
        }),
        edited("giant_weight", "giant_tensor", "a weight that says it has 2^34 elements", |model| {
            graph(model).initializer.push(tensor("giant", FLOAT, &[1 << 34], &[]));
        }),
        edited("giant_tile", "giant_tensor", "Tile by 2^34", |model| {
            graph(model).initializer.push(longs("giant", &[1 << 20, 1 << 14]));
            graph(model).node.push(core("Tile", &["x", "giant"], "much"));
        }),
        edited("overflowing_weight", "giant_tensor", "dimensions whose product overflows", |model| {
            graph(model).initializer.push(tensor("giant", FLOAT, &[i64::MAX, 2], &[]));
        }),
        edited("short_weight", "tensor_data", "a weight that holds less than it says", |model| {
            graph(model).initializer.push(tensor("short", FLOAT, &[3], &[0; 8]));
        }),
        edited("negative_dimension", "tensor_data", "a weight of a negative size", |model| {
            graph(model).initializer.push(tensor("short", FLOAT, &[-1], &[]));
        }),
        edited("a_row_says_how_much", "size_from_values", "Tile by a feature of the row", |model| {
            let cast = node("", "Cast", &["x"], &["times"], vec![int("to", INT64.into())]);
            graph(model).node.extend([cast, core("Tile", &["x", "times"], "much")]);
        }),
        edited("nul_in_a_name", "bad_name", "NUL in a name", |model| {
            graph(model).input[0].name = Some("x\0".into());
            graph(model).node[0].input[0] = "x\0".into();
        }),
        edited("made_twice", "duplicate_name", "a value that two nodes make", |model| {
            graph(model).node.push(core("Identity", &["x"], "probabilities"));
        }),
        edited("graph_cycle", "not_sorted", "a graph that runs in a circle", |model| {
            graph(model).node.extend([core("Add", &["x", "q"], "p"), core("Add", &["x", "p"], "q")]);
        }),
        edited("from_nowhere", "undefined_value", "a value that nothing makes", |model| {
            graph(model).node[0].input[0] = "nothing".into();
        }),
        edited("half_floats", "input_type", "an input of float16", |model| {
            graph(model).input[0] = value("x", FLOAT16, 2)
        }),
        edited("deep_tree", "tree_depth", "a tree of 3,000 levels", |model| chain(model, 3_000)),
        edited("deeper_tree", "tree_depth", "a tree of 200,000 levels", |model| chain(model, 200_000)),
        edited("tree_cycle", "tree_cycle", "a node that leads to the root", |model| {
            held(model, "nodes_truenodeids").ints[1] = 0;
        }),
        edited("own_child", "tree_cycle", "a node that is its own child", |model| {
            held(model, "nodes_falsenodeids").ints[1] = 1;
        }),
        edited("two_parents", "tree_cycle", "a node with two parents", |model| {
            held(model, "nodes_falsenodeids").ints[1] = 2;
        }),
        edited("missing_child", "tree_missing_node", "a node that leads nowhere", |model| {
            held(model, "nodes_truenodeids").ints[1] = 77;
        }),
        edited("feature_beyond", "tree_feature", "a split on column 2 of 2", |model| {
            held(model, "nodes_featureids").ints[1] = 2;
        }),
        edited("feature_far_beyond", "tree_feature", "a split on column 2^31", |model| {
            held(model, "nodes_featureids").ints[1] = 1 << 31;
        }),
        edited("negative_feature", "tree_feature", "a split on column -1", |model| {
            held(model, "nodes_featureids").ints[1] = -1;
        }),
        edited("class_beyond", "tree_class", "a weight for class 1,000 of 2", |model| {
            held(model, "class_ids").ints[0] = 1_000;
        }),
        edited("short_list", "lengths", "fewer thresholds than nodes", |model| {
            held(model, "nodes_values").floats.truncate(2);
        }),
        edited("nan_threshold", "tree_threshold", "a threshold of NaN", |model| {
            held(model, "nodes_values").floats[0] = f32::NAN;
        }),
        edited("infinite_leaf", "tree_leaf", "a leaf of infinity", |model| {
            held(model, "class_weights").floats[0] = f32::INFINITY;
        }),
        edited("nan_leaf", "tree_leaf", "a leaf of NaN", |model| {
            held(model, "class_weights").floats[0] = f32::NAN
        }),
        edited("unknown_mode", "tree_mode", "an unknown comparison", |model| {
            held(model, "nodes_modes").strings[0] = b"BRANCH_PERHAPS".to_vec();
        }),
        edited("same_node_twice", "tree_duplicate_node", "two nodes of one number", |model| {
            held(model, "nodes_nodeids").ints[4] = 3;
        }),
        edited("orphans", "tree_unreachable", "nodes that no way leads to", |model| {
            held(model, "nodes_modes").strings[1] = b"LEAF".to_vec();
            held(model, "class_nodeids").ints = vec![1, 1, 2, 2, 2, 2];
        }),
        // What only ONNX Runtime can tell, and what only a run can.
        edited("unknown_operator", "graph_refused", "an operator that does not exist", |model| {
            noise(model, vec![core("Divine", &["x"], "noise")]);
        }),
        edited("wrong_types", "graph_refused", "a sum of floats and integers", |model| {
            noise(model, vec![node("", "Cast", &["x"], &["noise"], vec![int("to", INT64.into())])]);
        }),
        edited("other_answers", "golden_mismatch", "other leaves than the golden rows know", |model| {
            held(model, "class_weights").floats = vec![0.5; 6];
        }),
        edited("never_a_number", "model_output_invalid", "NaN for every row", |model| {
            let zero = core("Sub", &["plain", "plain"], "zero");
            noise(model, vec![zero, core("Div", &["zero", "zero"], "noise")]);
        }),
        edited("a_row_of_its_neighbours", "row_dependent", "answers that hang on the rows beside", |model| {
            // No golden row is as high as 0.9, so that they show nothing of it.
            graph(model).initializer.push(tensor("bar", FLOAT, &[], &0.9_f32.to_le_bytes()));
            let highest = node("", "ReduceMax", &["x"], &["highest"], vec![int("keepdims", 0)]);
            let above = core("Sub", &["highest", "bar"], "above");
            noise(model, vec![highest, above, core("Relu", &["above"], "noise")]);
        }),
        edited("forever", "child_timeout", "5,000 products of large matrices", |model| {
            graph(model).initializer.push(longs("shape", &[1_500, 1_500]));
            let sum = node("", "ReduceSum", &["x"], &["sum"], vec![int("keepdims", 0)]);
            let mut nodes =
                vec![core("ConstantOfShape", &["shape"], "zeros"), sum, core("Add", &["zeros", "sum"], "m0")];
            let product = |at| core("MatMul", &[&format!("m{at}"), "zeros"], &format!("m{}", at + 1));
            nodes.extend((0..5_000).map(product));
            nodes.push(node("", "ReduceMax", &["m5000"], &["noise"], vec![int("keepdims", 0)]));
            noise(model, nodes);
        }),
        edited("without_bounds", "child_memory", "rows doubled 40 times", |model| {
            let mut nodes = vec![core("Identity", &["x"], "d0")];
            let double = |at| {
                let half = format!("d{at}");
                node("", "Concat", &[&half, &half], &[&format!("d{}", at + 1)], vec![int("axis", 0)])
            };
            nodes.extend((0..40).map(double));
            nodes.push(node("", "ReduceMin", &["d40"], &["noise"], vec![int("keepdims", 0)]));
            noise(model, nodes);
        }),
    ];
    table.extend([
        BadFile {
            import: Some("output_unclear"),
            ..edited("one_row_for_all", "model_output_invalid", "one answer however many rows", |model| {
                graph(model).node[0].output[1] = "plain".into();
                let mean = node("", "ReduceMean", &["plain"], &["probabilities"], vec![ints("axes", &[0])]);
                graph(model).node.push(mean);
            })
        },
        BadFile {
            import: Some("dynamic_columns"),
            ..edited(
                "open_columns",
                "run_failed",
                "an input of any number of columns, a split on column 9",
                |model| {
                    set_columns(model, TensorShapeDimensionValue::DimParam("columns".into()));
                    held(model, "nodes_featureids").ints[1] = 9;
                },
            )
        },
        BadFile {
            import: Some("bindings_unclear"),
            ..edited(
                "three_columns",
                "binding_mismatch",
                "an input of three columns for two features",
                |model| {
                    set_columns(model, TensorShapeDimensionValue::DimValue(3));
                },
            )
        },
        BadFile {
            import: Some("link_unproved"),
            ..edited("beyond_one", "model_output_invalid", "probabilities of 5", |model| {
                held(model, "class_weights").floats = vec![5.0; 6];
            })
        },
    ]);
    table
}

fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().unwrap()
}

/// An attribute of the tree.
fn held<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut AttributeProto {
    graph(model).node[0].attribute.iter_mut().find(|attribute| attribute.name() == name).unwrap()
}

/// Has `nodes` make `noise` from `x` and `plain`, the tree's answer, and adds it to the answer.
fn noise(model: &mut ModelProto, nodes: Vec<NodeProto>) {
    let graph = graph(model);
    graph.node[0].output[1] = "plain".into();
    graph.node.extend(nodes);
    graph.node.push(core("Add", &["plain", "noise"], "probabilities"));
}

/// A tree that is a chain of `levels` levels: each branch leads to a leaf and to the next branch.
fn chain(model: &mut ModelProto, levels: i64) {
    let branches = levels - 1;
    let count = 2 * branches + 1;
    let of = |value: &dyn Fn(i64) -> i64| (0..count).map(value).collect::<Vec<_>>();
    held(model, "nodes_treeids").ints = of(&|_| 0);
    held(model, "nodes_nodeids").ints = of(&|at| at);
    held(model, "nodes_featureids").ints = of(&|_| 0);
    held(model, "nodes_values").floats = vec![0.5; count.try_into().unwrap()];
    held(model, "nodes_truenodeids").ints = of(&|at| if at < branches { branches + 1 + at } else { 0 });
    held(model, "nodes_falsenodeids").ints = of(&|at| if at < branches { at + 1 } else { 0 });
    let mode = |at| if at < branches { "BRANCH_LEQ" } else { "LEAF" };
    held(model, "nodes_modes").strings = (0..count).map(|at| mode(at).into()).collect();
    held(model, "class_treeids").ints = vec![0, 0];
    held(model, "class_nodeids").ints = vec![branches, branches];
    held(model, "class_ids").ints = vec![0, 1];
    held(model, "class_weights").floats = vec![0.75, 0.25];
}

/// A loop that counts to 2^62.
fn endless_loop(model: &mut ModelProto) {
    let body = GraphProto {
        name: Some("body".into()),
        node: vec![core("Identity", &["go"], "go_on"), core("Add", &["sum", "sum"], "more")],
        input: vec![scalar("round", INT64), scalar("go", BOOL), scalar("sum", FLOAT)],
        output: vec![scalar("go_on", BOOL), scalar("more", FLOAT)],
        ..Default::default()
    };
    let body =
        AttributeProto { name: Some("body".into()), r#type: Some(5), g: Some(body), ..Default::default() };
    graph(model).initializer.extend([longs("rounds", &[1 << 62]), tensor("yes", BOOL, &[], &[1])]);
    graph(model).initializer[0].dims.clear();
    let sum = node("", "ReduceSum", &["x"], &["start"], vec![int("keepdims", 0)]);
    noise(model, vec![sum, node("", "Loop", &["rounds", "yes", "start"], &["noise"], vec![body])]);
}

fn subgraph(name: &str, nodes: Vec<NodeProto>, output: &str) -> AttributeProto {
    let graph = GraphProto {
        name: Some(name.into()),
        node: nodes,
        output: vec![value(output, FLOAT, 2)],
        ..Default::default()
    };
    AttributeProto { name: Some(name.into()), r#type: Some(5), g: Some(graph), ..Default::default() }
}

fn set_columns(model: &mut ModelProto, columns: TensorShapeDimensionValue) {
    let kind = graph(model).input[0].r#type.as_mut().unwrap().value.as_mut().unwrap();
    let TypeValue::TensorType(tensor) = kind else { panic!("the input is a tensor") };
    tensor.shape.as_mut().unwrap().dim[1].value = Some(columns);
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(6), floats: floats.to_vec(), ..Default::default() }
}

fn strings(name: &str, strings: &[&str]) -> AttributeProto {
    let strings = strings.iter().map(|text| text.as_bytes().to_vec()).collect();
    AttributeProto { name: Some(name.into()), r#type: Some(8), strings, ..Default::default() }
}

fn node(
    domain: &str,
    operator: &str,
    inputs: &[&str],
    outputs: &[&str],
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    NodeProto {
        op_type: Some(operator.into()),
        domain: Some(domain.into()),
        input: texts(inputs),
        output: texts(outputs),
        attribute,
        ..Default::default()
    }
}

fn core(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    node("", operator, inputs, &[output], Vec::new())
}

/// A tensor `[N, columns]`, or `[N]` for no columns.
fn value(name: &str, element: i32, columns: i64) -> ValueInfoProto {
    let rows = TensorShapeDimensionValue::DimParam("N".into());
    let columns = (columns > 0).then_some(TensorShapeDimensionValue::DimValue(columns));
    typed(name, element, [Some(rows), columns].into_iter().flatten().collect())
}

fn scalar(name: &str, element: i32) -> ValueInfoProto {
    typed(name, element, Vec::new())
}

fn typed(name: &str, element: i32, dimensions: Vec<TensorShapeDimensionValue>) -> ValueInfoProto {
    let dim =
        dimensions.into_iter().map(|value| TensorShapeDimension { value: Some(value), denotation: None });
    let shape = TensorShapeProto { dim: dim.collect() };
    let tensor = TypeTensorType { elem_type: Some(element), shape: Some(shape) };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
}

fn tensor(name: &str, element: i32, dims: &[i64], raw: &[u8]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(element),
        dims: dims.to_vec(),
        raw_data: Some(raw.to_vec()),
        ..Default::default()
    }
}

/// A list of integers.
fn longs(name: &str, values: &[i64]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, INT64, &[values.len().try_into().unwrap()], &raw)
}

fn external(location: &str) -> TensorProto {
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    TensorProto {
        name: Some("elsewhere".into()),
        data_type: Some(FLOAT),
        dims: vec![1],
        data_location: Some(1),
        external_data: vec![entry("location", location)],
        ..Default::default()
    }
}
