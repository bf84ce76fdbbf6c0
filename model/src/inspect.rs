//! Reading and rewriting graphs: what a graph computes that nobody asks for is cut before it is served.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message;
use scoregate_schemas::manifest::{ClassKeys, Output, Task};
use scoregate_schemas::onnx::{
    GraphProto, ModelProto, NodeProto, TypeProto, TypeTensorType, TypeValue, ValueInfoProto,
};

/// Why a graph cannot be read or rewritten.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not an ONNX model.
    #[error("the file is not an ONNX model: {0}")]
    NotOnnx(#[from] prost::DecodeError),
    /// The model has no graph.
    #[error("the ONNX model has no graph")]
    NoGraph,
    /// The graph has no such output.
    #[error("the graph has no output \"{name}\"; it has {}", .outputs.join(", "))]
    NoOutput {
        /// The output that was asked for.
        name: String,
        /// The outputs that are there.
        outputs: Vec<String>,
    },
}

/// A graph made ready to be served: it computes the one answer, and takes codes where it would look strings up.
#[derive(Debug, Clone)]
pub struct Served {
    /// The bytes of the rewritten model.
    pub graph: Vec<u8>,
    /// How many nodes are left, those of subgraphs not counted.
    pub nodes: usize,
    /// The string inputs that take codes now, by name.
    pub lookups: BTreeMap<String, Lookup>,
    /// The names of the outputs that hold the answer.
    pub outputs: Vec<String>,
    /// Whether the output holds the asked-for column alone.
    pub one_column: bool,
    /// Whether the output is a sequence of maps.
    pub maps: bool,
    /// What was changed in the graph, in plain words.
    pub changes: Vec<String>,
}

/// What a string → integer `LabelEncoder` does, so that its input can take the integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    codes: HashMap<String, i64>,
    default: i64,
}

impl Lookup {
    /// The integer that the encoder gives for `text`.
    pub fn code(&self, text: &str) -> i64 {
        self.codes.get(text).copied().unwrap_or(self.default)
    }
}

/// Rewrites a model for serving: the answer is all that it computes. A ZipMap at the end is cut, so that the tensor of its
/// input is the answer; of a binary classifier's tensor the positive class's column is taken, where columns are put
/// together at the very end; nodes that do not lead there go, and so do the string look-ups at its inputs. The answer is
/// the same; inputs stay, in their order.
///
/// # Errors
/// [`Error`] if the bytes are not an ONNX model with this output.
pub fn prepare(bytes: &[u8], output: &Output) -> Result<Served, Error> {
    let mut model = ModelProto::decode(bytes)?;
    let graph = model.graph.as_mut().ok_or(Error::NoGraph)?;
    let names = output.names();
    for name in &names {
        if !graph.output.iter().any(|value| value.name() == *name) {
            let outputs = graph.output.iter().map(|value| format!("\"{}\"", value.name())).collect();
            return Err(Error::NoOutput { name: (*name).into(), outputs });
        }
    }
    let (before, mut changes) = (graph.node.len(), Vec::new());
    graph.output.retain(|value| names.contains(&value.name()));
    let mut maps = matches!(output, Output::Zipmap { .. });
    if let Output::Zipmap { name, keys, .. } = output
        && cut_zipmap(graph, name, keys)
    {
        maps = false;
        changes.push(format!("the ZipMap behind \"{name}\" is cut: its tensor is read as it is"));
    }
    let one_column = output.task() == Task::Binary
        && output.link().is_none()
        && !maps
        && names.len() == 1
        && take_column(graph, output.positive(), output.columns());
    if one_column {
        changes.push("the positive class's column is taken before it is put beside the other".into());
    }
    // A declared shape may be wrong, and a tensor of the real one would be refused for it; ONNX Runtime infers it anyway.
    for value in &mut graph.output {
        if let Some(TypeValue::TensorType(tensor)) =
            value.r#type.as_mut().and_then(|kind| kind.value.as_mut())
        {
            tensor.shape = None;
        }
    }
    cut(graph);
    let lookups = take_lookups(graph);
    for input in lookups.keys() {
        changes.push(format!("the look-up of strings at input \"{input}\" is done while rows are read"));
    }
    let nodes = graph.node.len();
    if nodes < before {
        changes.push(format!("{nodes} of {before} nodes are left: the others lead to no answer"));
    }
    // With a single output its name may have become another's.
    let outputs = match graph.output.as_slice() {
        [only] => vec![only.name().to_string()],
        _ => names.iter().map(ToString::to_string).collect(),
    };
    Ok(Served { graph: model.encode_to_vec(), nodes, lookups, outputs, one_column, maps, changes })
}

/// Makes the tensor that a ZipMap turns into maps the output itself, if the ZipMap's classes are `keys`, in that order.
fn cut_zipmap(graph: &mut GraphProto, output: &str, keys: &ClassKeys) -> bool {
    let Some(zipmap) = graph.node.iter().find(|node| node.output.iter().any(|found| found == output)) else {
        return false;
    };
    if zipmap_keys(zipmap).as_ref() != Some(keys) {
        return false;
    }
    let Some(tensor) = zipmap.input.first().cloned() else { return false };
    // A tensor that is an input itself cannot be an output as well.
    if graph.input.iter().any(|input| input.name() == tensor) {
        return false;
    }
    let kind = TypeValue::TensorType(TypeTensorType { elem_type: Some(FLOAT), shape: None });
    graph.output = vec![ValueInfoProto {
        name: Some(tensor),
        r#type: Some(TypeProto { value: Some(kind), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }];
    true
}

/// The classes of a ZipMap node, in the order of its input's columns.
pub fn zipmap_keys(node: &NodeProto) -> Option<ClassKeys> {
    (node.op_type() == "ZipMap" && node.domain() == "ai.onnx.ml").then(|| class_labels(node))?
}

/// The classes that a node's attributes name, in the order of its columns.
pub fn class_labels(node: &NodeProto) -> Option<ClassKeys> {
    node.attribute.iter().find_map(|attribute| match attribute.name() {
        "classlabels_int64s" | "classlabels_ints" if !attribute.ints.is_empty() => {
            Some(ClassKeys::Integers(attribute.ints.clone()))
        }
        "classlabels_strings" if !attribute.strings.is_empty() => {
            let names = attribute.strings.iter().map(|name| String::from_utf8(name.clone()).ok());
            names.collect::<Option<Vec<_>>>().map(ClassKeys::Strings)
        }
        _ => None,
    })
}

/// Makes the value that becomes column `column` of the output the output itself, if that is put together from one value
/// per class. That spares the other classes' columns and the copying.
fn take_column(graph: &mut GraphProto, column: usize, classes: usize) -> bool {
    let Some(output) = graph.output.first().map(|value| value.name().to_string()) else { return false };
    let producer = |name: &str| graph.node.iter().find(|node| node.output.iter().any(|found| found == name));
    let Some(concat) =
        producer(&output).filter(|node| node.op_type() == "Concat" && node.domain().is_empty())
    else {
        return false;
    };
    let by_column = concat
        .attribute
        .iter()
        .any(|attribute| attribute.name() == "axis" && matches!(attribute.i(), 1 | -1));
    let Some(value) = concat.input.get(column).filter(|_| by_column && concat.input.len() == classes) else {
        return false;
    };
    if producer(value).is_none() {
        return false;
    }
    let value = value.clone();
    graph.output[0].name = Some(value);
    true
}

/// The graphs that a node holds within.
pub(crate) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// Removes the nodes and weights that do not lead to an output.
fn cut(graph: &mut GraphProto) {
    // Nodes stand in topological order, so that one walk from the end meets every consumer before its producer.
    let mut needed: HashSet<String> = graph.output.iter().map(|value| value.name().to_string()).collect();
    let mut nodes = std::mem::take(&mut graph.node);
    nodes.reverse();
    nodes.retain(|node| {
        let keep = node.output.iter().any(|name| needed.contains(name));
        if keep {
            needed.extend(node.input.iter().cloned());
            // A subgraph may use any value of the graph around it.
            subgraphs(node).for_each(|inner| uses(inner, &mut needed));
        }
        keep
    });
    nodes.reverse();
    graph.node = nodes;
    graph.initializer.retain(|tensor| needed.contains(tensor.name()));
}

/// Adds every name that a subgraph, or one within it, takes in.
pub(crate) fn uses(graph: &GraphProto, names: &mut HashSet<String>) {
    for node in &graph.node {
        names.extend(node.input.iter().cloned());
        subgraphs(node).for_each(|inner| uses(inner, names));
    }
    names.extend(graph.output.iter().map(|value| value.name().to_string()));
}

/// Cuts every `LabelEncoder` from strings to integers that alone consumes an input: the input takes the integers. Strings
/// are the slowest tensors that there are: ONNX Runtime copies each one, and hashes it again.
fn take_lookups(graph: &mut GraphProto) -> BTreeMap<String, Lookup> {
    let mut lookups = BTreeMap::new();
    if graph.node.iter().any(|node| subgraphs(node).next().is_some()) {
        return lookups;
    }
    for at in (0..graph.node.len()).rev() {
        let Some(lookup) = lookup(&graph.node[at]) else { continue };
        let (input, output) = (graph.node[at].input[0].clone(), graph.node[at].output[0].clone());
        let consumers = graph.node.iter().flat_map(|node| &node.input).filter(|name| **name == input).count();
        let is_output = graph.output.iter().any(|value| value.name() == output || value.name() == input);
        let Some(declared) = graph.input.iter_mut().find(|value| value.name() == input) else { continue };
        let Some(TypeValue::TensorType(tensor)) =
            declared.r#type.as_mut().and_then(|kind| kind.value.as_mut())
        else {
            continue;
        };
        if consumers != 1 || is_output || tensor.elem_type() != STRING {
            continue;
        }
        tensor.elem_type = Some(INT64);
        graph.node.remove(at);
        for name in graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|name| **name == output) {
            name.clone_from(&input);
        }
        graph.value_info.retain(|value| value.name() != output);
        lookups.insert(input, lookup);
    }
    lookups
}

/// `TensorProto.DataType.FLOAT`
const FLOAT: i32 = 1;
/// `TensorProto.DataType.STRING`
const STRING: i32 = 8;
/// `TensorProto.DataType.INT64`
const INT64: i32 = 7;

/// The look-up that `node` is, if it is one from strings to integers and nothing else.
fn lookup(node: &NodeProto) -> Option<Lookup> {
    if node.op_type() != "LabelEncoder"
        || node.domain() != "ai.onnx.ml"
        || node.input.len() != 1
        || node.output.len() != 1
    {
        return None;
    }
    let (mut keys, mut values, mut default) = (None, None, -1);
    for attribute in &node.attribute {
        match attribute.name() {
            "keys_strings" => keys = Some(&attribute.strings),
            "values_int64s" => values = Some(&attribute.ints),
            "default_int64" => default = attribute.i(),
            _ => return None,
        }
    }
    let (keys, values) = (keys?, values?);
    let codes: Option<HashMap<String, i64>> = keys
        .iter()
        .zip(values)
        .map(|(key, value)| Some((String::from_utf8(key.clone()).ok()?, *value)))
        .collect();
    // A key that is there twice has a meaning that only the runtime knows.
    codes
        .filter(|codes| codes.len() == keys.len() && keys.len() == values.len())
        .map(|codes| Lookup { codes, default })
}

#[cfg(test)]
mod tests {
    use super::*;
    use scoregate_schemas::onnx::{AttributeProto, TensorProto};

    fn probabilities(name: &str, positive: usize, classes: usize) -> Output {
        Output::Probabilities { name: name.into(), classes, positive }
    }

    fn node(inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: outputs.iter().map(ToString::to_string).collect(),
            ..NodeProto::default()
        }
    }

    fn model() -> Vec<u8> {
        let value = |name: &str| ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() };
        let tensor = |name: &str| TensorProto { name: Some(name.into()), ..TensorProto::default() };
        let graph = GraphProto {
            node: vec![
                node(&["x", "w"], &["margin"]),
                node(&["margin"], &["probabilities", "aside"]),
                node(&["probabilities", "t"], &["above"]),
                node(&["above"], &["label"]),
            ],
            initializer: vec![tensor("w"), tensor("t")],
            input: vec![value("x"), value("unused")],
            output: vec![value("label"), value("probabilities")],
            ..GraphProto::default()
        };
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    #[test]
    fn what_does_not_lead_to_the_output_is_cut() {
        let served = prepare(&model(), &probabilities("probabilities", 1, 2)).unwrap();
        let graph = ModelProto::decode(served.graph.as_slice()).unwrap().graph.unwrap();
        assert_eq!((graph.node.len(), served.nodes), (2, 2));
        assert_eq!(graph.initializer.iter().map(TensorProto::name).collect::<Vec<_>>(), ["w"]);
        assert_eq!(graph.output.iter().map(ValueInfoProto::name).collect::<Vec<_>>(), ["probabilities"]);
        assert_eq!(graph.input.len(), 2, "inputs stay, used or not");
        assert_eq!(prepare(&model(), &probabilities("label", 1, 2)).unwrap().nodes, 4);
    }

    #[test]
    fn the_asked_for_column_is_taken_before_it_is_put_with_others() {
        let graph = |axis: i64| {
            let mut concat = node(&["p0", "p1"], &["probabilities"]);
            concat.op_type = Some("Concat".into());
            let axis =
                AttributeProto { name: Some("axis".into()), i: Some(axis), ..AttributeProto::default() };
            concat.attribute = vec![axis];
            let value = |name: &str| ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() };
            let graph = GraphProto {
                node: vec![node(&["x"], &["p1"]), node(&["one", "p1"], &["p0"]), concat],
                input: vec![value("x")],
                output: vec![value("probabilities")],
                ..GraphProto::default()
            };
            ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
        };
        for (axis, column, classes, nodes, output) in [
            (1, 1, 2, 1, "p1"),
            (-1, 0, 2, 2, "p0"),
            (0, 1, 2, 3, "probabilities"),
            (1, 1, 3, 3, "probabilities"),
        ] {
            let served = prepare(&graph(axis), &probabilities("probabilities", column, classes)).unwrap();
            assert_eq!(
                (served.nodes, served.outputs[0].as_str(), served.one_column),
                (nodes, output, nodes < 3)
            );
        }
    }

    /// `plan` (a string) → LabelEncoder → Gather, with `plan` consumed `more` times besides.
    fn encoder(keys: &[&str], more: &[NodeProto]) -> Vec<u8> {
        let attribute = |name: &str| AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
        let mut look_up = node(&["plan"], &["code"]);
        look_up.op_type = Some("LabelEncoder".into());
        look_up.domain = Some("ai.onnx.ml".into());
        look_up.attribute = vec![
            AttributeProto {
                strings: keys.iter().map(|key| key.as_bytes().to_vec()).collect(),
                ..attribute("keys_strings")
            },
            AttributeProto { ints: (1..).take(keys.len()).collect(), ..attribute("values_int64s") },
            AttributeProto { i: Some(0), ..attribute("default_int64") },
        ];
        let kind =
            TypeValue::TensorType(TypeTensorType { elem_type: Some(STRING), ..TypeTensorType::default() });
        let input = ValueInfoProto {
            name: Some("plan".into()),
            r#type: Some(TypeProto { value: Some(kind), ..TypeProto::default() }),
            ..ValueInfoProto::default()
        };
        let graph = GraphProto {
            node: [vec![look_up, node(&["table", "code"], &["score"])], more.to_vec()].concat(),
            input: vec![input],
            output: vec![ValueInfoProto { name: Some("score".into()), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        };
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    #[test]
    fn a_string_look_up_at_an_input_becomes_a_code() {
        let served = prepare(&encoder(&["basic", "pro"], &[]), &probabilities("score", 1, 2)).unwrap();
        let graph = ModelProto::decode(served.graph.as_slice()).unwrap().graph.unwrap();
        assert_eq!(
            (graph.node.len(), graph.node[0].input.as_slice()),
            (1, &["table".to_string(), "plan".into()][..])
        );
        let kind = graph.input[0].r#type.as_ref().unwrap().value.as_ref().unwrap();
        assert!(matches!(kind, TypeValue::TensorType(tensor) if tensor.elem_type() == INT64));
        let lookup = &served.lookups["plan"];
        assert_eq!(["basic", "pro", "gold", ""].map(|text| lookup.code(text)), [1, 2, 0, 0]);
    }

    #[test]
    fn a_look_up_that_means_more_stays() {
        let twice = encoder(&["basic", "basic"], &[]);
        let elsewhere = encoder(&["basic", "pro"], &[node(&["plan"], &["score"])]);
        for graph in [twice, elsewhere] {
            assert!(prepare(&graph, &probabilities("score", 1, 2)).unwrap().lookups.is_empty());
        }
    }

    #[test]
    fn what_is_no_such_model_says_so() {
        assert!(matches!(prepare(b"PK\x03\x04", &probabilities("label", 1, 2)), Err(Error::NotOnnx(_))));
        assert!(matches!(prepare(b"", &probabilities("label", 1, 2)), Err(Error::NoGraph)));
        let error = prepare(&model(), &probabilities("score", 1, 2)).unwrap_err().to_string();
        assert_eq!(error, "the graph has no output \"score\"; it has \"label\", \"probabilities\"");
    }
}
