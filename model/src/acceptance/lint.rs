//! Vets an ONNX file without ONNX Runtime: what it refuses never reaches the library, which takes much on trust.
//!
//! A model file is a program from somebody else. This module reads it, says plainly what it found, and lets through what
//! converters of tabular models write and nothing that runs without end, reads other files, or makes ONNX Runtime read or
//! write out of bounds. It knows no operator list: an operator that ONNX Runtime lacks is refused by ONNX Runtime.
//!
//! Run it where memory is limited, and give ONNX Runtime the encoding of the [`ModelProto`] that it returns rather than
//! the file: then what was vetted is what is loaded, whatever another reader would make of the file.

use std::collections::{HashMap, HashSet};

use prost::Message;
use scoregate_schemas::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, TypeValue,
    ValueInfoProto,
};

mod file;
mod operators;
pub(crate) mod tensors;
mod trees;
mod widths;

/// How large the parts of a model may be. What a real model of tabular data has is far below each default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file. Default 512 MiB: ONNX Runtime itself ends at 2 GiB.
    pub file_bytes: usize,
    /// Bytes that the file takes once decoded, estimated before it is. Default 4 GiB; usually three times the file.
    pub decoded_bytes: usize,
    /// Nodes of the graph. Default 50,000.
    pub nodes: usize,
    /// Inputs, and outputs. Default 10,000 each.
    pub values: usize,
    /// Nodes of all trees of an ensemble. Default 20,000,000.
    pub tree_nodes: usize,
    /// Levels of a tree. Default 1,000: ONNX Runtime loads trees by recursion, and 3,000 levels overflow a stack of 2 MiB.
    pub tree_depth: u32,
    /// Classes or targets of a node. Default 10,000: each row is given that many numbers.
    pub classes: usize,
    /// Elements of a tensor, held in the file or made from constants in it. Default 2^26 (256 MiB of float32).
    pub elements: u64,
    /// Columns of a value, where they are known. Default 65,536: 4,096 rows of them take 1 GiB.
    pub columns: usize,
    /// Bytes of a name. Default 1,000.
    pub name_bytes: usize,
    /// Bytes of a text among the constants. Default 1,000: a look-up may answer each row with the longest.
    pub text_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 512 << 20,
            decoded_bytes: 4 << 30,
            nodes: 50_000,
            values: 10_000,
            tree_nodes: 20_000_000,
            tree_depth: 1_000,
            classes: 10_000,
            elements: 1 << 26,
            columns: 1 << 16,
            name_bytes: 1_000,
            text_bytes: 1_000,
        }
    }
}

/// The newest operator sets that ONNX Runtime 1.31.1 takes, by domain. Any other domain is refused.
const OPERATOR_SETS: [(&str, i64); 2] = [("", 26), ("ai.onnx.ml", 5)];
/// The newest format of model files that ONNX Runtime 1.31.1 takes.
const IR_VERSION: i64 = 13;

/// Why a file is refused. The messages name what the file calls its parts, escaped and cut short.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No bytes.
    #[error("the file is empty; expected an ONNX model: export it again, or upload it completely")]
    EmptyFile,
    /// Too many bytes.
    #[error("the file has {found} bytes and at most {limit} are taken; export a smaller model")]
    TooLarge {
        /// Bytes of the file.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A small file that would take much memory.
    #[error(
        "the file would take {found} bytes of memory to read and at most {limit} are given; export the model again"
    )]
    TooManyParts {
        /// Bytes, estimated.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Another format.
    #[error("the file is {what}, expected an ONNX model; {advice}")]
    NotOnnx {
        /// What it looks like.
        what: &'static str,
        /// How to come by an ONNX model.
        advice: &'static str,
    },
    /// The file ends within a part.
    #[error(
        "the file ends too early: {announced} bytes were announced at byte {at} and {left} are left; copy it again"
    )]
    Truncated {
        /// Where the part begins.
        at: usize,
        /// How long it says it is.
        announced: u64,
        /// How much there is.
        left: usize,
    },
    /// Bytes behind the model.
    #[error(
        "found {what} at byte {at}, where the model should go on or end; copy the file again, without additions"
    )]
    TrailingBytes {
        /// What stands there.
        what: String,
        /// Where.
        at: usize,
    },
    /// Damaged inside.
    #[error("the file is a damaged ONNX model: {0}; export or copy it again")]
    Malformed(#[from] prost::DecodeError),
    /// No graph.
    #[error("the ONNX model has no graph, and so computes nothing; export it again")]
    NoGraph,
    /// No input or no output.
    #[error("the graph has no {0}s; expected at least one: a model takes features and answers a score")]
    NoValues(&'static str),
    /// Too many nodes, inputs or outputs.
    #[error("found {found} {what}, at most {limit} are taken; export a smaller model")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Weights outside the file.
    #[error(
        "tensor {tensor} keeps its values in another file, and a model may name no files; save it whole \
         (torch.onnx.export(…, external_data=False), or onnx.save(onnx.load(\"model.onnx\"), \"whole.onnx\"))"
    )]
    ExternalData {
        /// The tensor.
        tensor: String,
    },
    /// Functions within the model.
    #[error(
        "the model defines operators of its own ({function}), which are not taken; inline them \
         (onnx.inliner.inline_local_functions), or leave that step out of the pipeline"
    )]
    LocalFunctions {
        /// The first.
        function: String,
    },
    /// A training graph.
    #[error("the model carries a training graph, expected one for scoring alone; export it for inference")]
    TrainingInfo,
    /// Operators of another domain.
    #[error(
        "{node} is of the domain {domain}, expected one of ONNX's own, ai.onnx and ai.onnx.ml; choose converter options \
         that need no such operator"
    )]
    UnknownDomain {
        /// The node.
        node: String,
        /// Its domain.
        domain: String,
    },
    /// No version of an operator set that is used.
    #[error("the model does not say which version of the operator set {domain} it uses; export it again")]
    OpsetMissing {
        /// The domain.
        domain: String,
    },
    /// An operator set that ONNX Runtime does not know, or two at once.
    #[error(
        "the model uses version {found} of the operator set {domain}, expected 1 to {newest}; export it with an older \
         target_opset"
    )]
    OpsetVersion {
        /// The domain.
        domain: String,
        /// Its version.
        found: i64,
        /// The newest that is taken.
        newest: i64,
    },
    /// A format version that ONNX Runtime does not know.
    #[error(
        "the model's format version (ir_version) is {found}, expected 1 to {IR_VERSION}; export it with an older onnx"
    )]
    IrVersion {
        /// What is there.
        found: i64,
    },
    /// Loops, branches, anything that holds a graph of its own.
    #[error(
        "{node} holds a graph of its own (as loops and branches do), and a model may not: its running time could have no \
         end; nearest neighbours and Gaussian processes are converted so, and cannot be served"
    )]
    ControlFlow {
        /// The node.
        node: String,
    },
    /// Answers that differ from call to call.
    #[error(
        "{node} draws random numbers or is set to training, expected a score that depends on the row alone; export the model for inference"
    )]
    Random {
        /// The node.
        node: String,
    },
    /// A name that is none.
    #[error("the {what} name {name} {problem}; expected at most {limit} bytes, without control characters")]
    Name {
        /// Of what.
        what: &'static str,
        /// The name, cut short.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
        /// The longest.
        limit: usize,
    },
    /// One name for two things.
    #[error("the name {name} is given to two {what}s, expected one each; export the model again")]
    DuplicateName {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A value that comes from nowhere.
    #[error("{user} takes the value {name}, which nothing makes; export the model again")]
    UndefinedValue {
        /// Who takes it.
        user: String,
        /// The value.
        name: String,
    },
    /// A cycle, or nodes out of order.
    #[error(
        "{node} takes the value {name} before it is made: the graph runs in a circle or out of order; export the model again"
    )]
    NotSorted {
        /// Who takes it.
        node: String,
        /// The value.
        name: String,
    },
    /// An input that no row can fill.
    #[error(
        "the input {name} is {found}, expected a tensor of float, double, int64, int32, bool or string; export the model \
         with one of them"
    )]
    InputType {
        /// The input.
        name: String,
        /// What it is.
        found: String,
    },
    /// A tensor that contradicts itself.
    #[error("the tensor {name} {problem}; export the model again")]
    TensorData {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor that would fill the memory.
    #[error("{what} has {found} elements, at most {limit} are taken; no model of tabular data needs it")]
    GiantTensor {
        /// The tensor, or the node that makes it.
        what: String,
        /// The elements; `u64::MAX` where they cannot be counted.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A tensor whose size a row chooses.
    #[error(
        "the size of what {node} makes depends on the values of a row, so that one row could fill the memory; expected sizes \
         that follow from the number of rows and columns"
    )]
    SizeFromValues {
        /// The node.
        node: String,
    },
    /// An attribute that is missing, there twice, of the wrong type or out of range.
    #[error("{node}: {problem}; export the model again")]
    Attribute {
        /// The node.
        node: String,
        /// What is wrong.
        problem: String,
    },
    /// Lists that belong together and differ in length.
    #[error("{node}: {problem}; expected lists that fit each other: export the model again")]
    Lengths {
        /// The node.
        node: String,
        /// Which, and how they differ.
        problem: String,
    },
    /// A tree that is none.
    #[error("{node}, {place}: {problem}")]
    Tree {
        /// The node of the graph.
        node: String,
        /// Where in the ensemble.
        place: String,
        /// What is wrong.
        problem: TreeFault,
    },
}

/// What can be wrong with an ensemble of trees.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TreeFault {
    /// Too many levels.
    #[error(
        "the tree is deeper than {0} levels, which ONNX Runtime can crash on; limit max_depth, or encode categories in fewer splits"
    )]
    Depth(u32),
    /// A node that leads to one of those above it, or that two nodes lead to.
    #[error(
        "found a second way to this node, expected a tree (a circle would never end); export the model again"
    )]
    Cycle,
    /// Nodes that no way leads to.
    #[error("no way leads here from the root, which is the first node of a tree; export the model again")]
    Unreachable,
    /// A way to nowhere.
    #[error("it names node {0}, which is not there; export the model again")]
    MissingNode(i64),
    /// One id for two nodes, or a tree in two places.
    #[error("its number is given twice; export the model again")]
    DuplicateNode,
    /// An unknown comparison.
    #[error(
        "found the mode {0}, expected BRANCH_LEQ, _LT, _GTE, _GT, _EQ, _NEQ or LEAF; export the model again"
    )]
    Mode(String),
    /// A threshold that nothing compares with.
    #[error(
        "the threshold is NaN, expected a number (or an infinity): every comparison with it is false; export the model again"
    )]
    Threshold,
    /// A leaf that no score can be made of.
    #[error("found the weight {0}, expected a finite number; fit the model again, on finite targets")]
    Leaf(f64),
    /// A weight for a class that is not there.
    #[error("found class {found} of {classes}, counted from 0; export the model again")]
    Class {
        /// The class.
        found: i64,
        /// How many there are.
        classes: usize,
    },
    /// A weight for a target that is not there.
    #[error("found target {found} of {targets}, counted from 0; export the model again")]
    Target {
        /// The target.
        found: i64,
        /// How many there are.
        targets: usize,
    },
    /// A split on a column that is not there.
    #[error(
        "it splits on feature {found} of {width}, counted from 0; export the model with the columns that it was fitted on"
    )]
    Feature {
        /// The feature.
        found: i64,
        /// How many there are, as far as is known.
        width: usize,
    },
}

impl TreeFault {
    fn code(&self) -> &'static str {
        match self {
            Self::Depth(_) => "tree_depth",
            Self::Cycle => "tree_cycle",
            Self::Unreachable => "tree_unreachable",
            Self::MissingNode(_) => "tree_missing_node",
            Self::DuplicateNode => "tree_duplicate_node",
            Self::Mode(_) => "tree_mode",
            Self::Threshold => "tree_threshold",
            Self::Leaf(_) => "tree_leaf",
            Self::Class { .. } => "tree_class",
            Self::Target { .. } => "tree_target",
            Self::Feature { .. } => "tree_feature",
        }
    }
}

impl Fault {
    /// A stable code, in `snake_case`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EmptyFile => "empty_file",
            Self::TooLarge { .. } => "too_large",
            Self::TooManyParts { .. } => "too_many_parts",
            Self::NotOnnx { .. } => "not_onnx",
            Self::Truncated { .. } => "truncated",
            Self::TrailingBytes { .. } => "trailing_bytes",
            Self::Malformed(_) => "malformed_model",
            Self::NoGraph => "no_graph",
            Self::NoValues(_) => "no_values",
            Self::TooMany { .. } => "too_many",
            Self::ExternalData { .. } => "external_data",
            Self::LocalFunctions { .. } => "local_functions",
            Self::TrainingInfo => "training_info",
            Self::UnknownDomain { .. } => "unknown_domain",
            Self::OpsetMissing { .. } => "opset_missing",
            Self::OpsetVersion { .. } => "opset_version",
            Self::IrVersion { .. } => "ir_version",
            Self::ControlFlow { .. } => "control_flow",
            Self::Random { .. } => "random",
            Self::Name { .. } => "bad_name",
            Self::DuplicateName { .. } => "duplicate_name",
            Self::UndefinedValue { .. } => "undefined_value",
            Self::NotSorted { .. } => "not_sorted",
            Self::InputType { .. } => "input_type",
            Self::TensorData { .. } => "tensor_data",
            Self::GiantTensor { .. } => "giant_tensor",
            Self::SizeFromValues { .. } => "size_from_values",
            Self::Attribute { .. } => "attribute",
            Self::Lengths { .. } => "lengths",
            Self::Tree { problem, .. } => problem.code(),
        }
    }
}

/// Reads and vets an ONNX file.
///
/// # Errors
/// [`Fault`] for the first thing that is wrong with it.
pub fn lint(bytes: &[u8], limits: &Limits) -> Result<ModelProto, Fault> {
    file::check(bytes, limits)?;
    let model = ModelProto::decode(bytes)?;
    check(&model, limits)?;
    Ok(model)
}

/// Vets a model that has been read.
fn check(model: &ModelProto, limits: &Limits) -> Result<(), Fault> {
    let graph = model.graph.as_ref().ok_or(Fault::NoGraph)?;
    every_tensor(model, &mut |tensor| tensors::refuse_external(tensor))?;
    let found = model.ir_version.unwrap_or(0);
    if !(1..=IR_VERSION).contains(&found) {
        return Err(Fault::IrVersion { found });
    }
    if let Some(function) = model.functions.first() {
        return Err(Fault::LocalFunctions { function: quoted(function.name()) });
    }
    if !model.training_info.is_empty() {
        return Err(Fault::TrainingInfo);
    }
    check_operator_sets(model, graph)?;
    check_counts(graph, limits)?;
    for node in &graph.node {
        check_node(node, limits)?;
    }
    for tensor in &graph.initializer {
        tensors::check(tensor, limits)?;
    }
    for tensor in &graph.sparse_initializer {
        tensors::check_sparse(tensor, limits)?;
    }
    check_names(graph, limits)?;
    // Files of format version 3 and before list their weights among the inputs.
    let weights = weights(graph);
    for input in graph.input.iter().filter(|input| !weights.contains(input.name())) {
        check_input(input)?;
    }
    let constants = tensors::Constants::of(graph);
    operators::check(graph, &constants, limits)?;
    let widths = widths::of(graph, &constants, limits)?;
    for node in &graph.node {
        operators::check_lengths(node, &widths, limits)?;
        trees::check(node, &widths, limits)?;
    }
    Ok(())
}

/// The domain under the name that it has here: ONNX knows the core domain under two.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

fn check_operator_sets(model: &ModelProto, graph: &GraphProto) -> Result<(), Fault> {
    let shown = |domain: &str| if domain.is_empty() { "ai.onnx".to_owned() } else { quoted(domain) };
    // Converters write the same import twice, so that only contradictions are refused.
    let mut versions = HashMap::new();
    for import in &model.opset_import {
        let (domain, found) = (domain(import.domain()), import.version());
        let Some((_, newest)) = OPERATOR_SETS.into_iter().find(|(known, _)| *known == domain) else {
            continue;
        };
        let before = *versions.entry(domain).or_insert(found);
        if !(1..=newest).contains(&found) || before != found {
            return Err(Fault::OpsetVersion { domain: shown(domain), found, newest });
        }
    }
    for node in &graph.node {
        let domain = domain(node.domain());
        if !OPERATOR_SETS.iter().any(|(known, _)| *known == domain) {
            return Err(Fault::UnknownDomain { node: called(node), domain: shown(domain) });
        }
        if !versions.contains_key(domain) {
            return Err(Fault::OpsetMissing { domain: shown(domain) });
        }
    }
    if versions.is_empty() { Err(Fault::OpsetMissing { domain: shown("") }) } else { Ok(()) }
}

fn check_counts(graph: &GraphProto, limits: &Limits) -> Result<(), Fault> {
    for (what, found, limit) in [
        ("nodes", graph.node.len(), limits.nodes),
        ("inputs", graph.input.len(), limits.values.saturating_add(graph.initializer.len())),
        ("outputs", graph.output.len(), limits.values),
        ("initializers", graph.initializer.len(), limits.nodes),
        ("sparse initializers", graph.sparse_initializer.len(), limits.nodes),
    ] {
        if found > limit {
            return Err(Fault::TooMany { what, found, limit });
        }
    }
    for (what, values) in [("input", &graph.input), ("output", &graph.output)] {
        if values.is_empty() {
            return Err(Fault::NoValues(what));
        }
    }
    Ok(())
}

fn check_node(node: &NodeProto, limits: &Limits) -> Result<(), Fault> {
    for (what, name) in [("node", node.name()), ("operator", node.op_type())] {
        check_name(what, name, limits)?;
    }
    for name in node.input.iter().chain(&node.output) {
        check_name("value", name, limits)?;
    }
    let slots = node.input.len() + node.output.len() + node.attribute.len();
    if slots > limits.nodes {
        return Err(Fault::TooMany {
            what: "inputs, outputs and attributes of one node",
            found: slots,
            limit: limits.nodes,
        });
    }
    let wrong = |problem| Fault::Attribute { node: called(node), problem };
    let mut seen = HashSet::new();
    for attribute in &node.attribute {
        check_name("attribute", attribute.name(), limits)?;
        if !seen.insert(attribute.name()) {
            return Err(wrong(format!("found the attribute {} twice", quoted(attribute.name()))));
        }
        if attribute.ref_attr_name.is_some() {
            return Err(wrong(format!("attribute {} refers to a function's", quoted(attribute.name()))));
        }
        if attribute.g.is_some() || !attribute.graphs.is_empty() {
            return Err(Fault::ControlFlow { node: called(node) });
        }
        check_payload(attribute).map_err(wrong)?;
        if attribute.s.iter().chain(&attribute.strings).any(|text| text.len() > limits.text_bytes) {
            let (name, limit) = (quoted(attribute.name()), limits.text_bytes);
            return Err(wrong(format!("attribute {name} holds a text of more than {limit} bytes")));
        }
        for tensor in attribute.t.iter().chain(&attribute.tensors) {
            tensors::check(tensor, limits)?;
        }
        for tensor in attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors) {
            tensors::check_sparse(tensor, limits)?;
        }
    }
    if matches!(node.op_type(), "Loop" | "If" | "Scan" | "SequenceMap") && domain(node.domain()).is_empty() {
        return Err(Fault::ControlFlow { node: called(node) });
    }
    Ok(())
}

/// Whether an attribute holds what its type says and nothing else: two readers must not see two things.
fn check_payload(attribute: &AttributeProto) -> Result<(), String> {
    // The numbers are those of `AttributeProto.AttributeType`.
    let held = [
        (1, attribute.f.is_some()),
        (2, attribute.i.is_some()),
        (3, attribute.s.is_some()),
        (4, attribute.t.is_some()),
        (6, !attribute.floats.is_empty()),
        (7, !attribute.ints.is_empty()),
        (8, !attribute.strings.is_empty()),
        (9, !attribute.tensors.is_empty()),
        (11, attribute.sparse_tensor.is_some()),
        (12, !attribute.sparse_tensors.is_empty()),
        (13, attribute.tp.is_some()),
        (14, !attribute.type_protos.is_empty()),
    ];
    let declared = attribute.r#type();
    let mut held = held.into_iter().filter(|(_, is_held)| *is_held).map(|(kind, _)| kind);
    let (first, second) = (held.next(), held.next());
    let fits = match first {
        // An empty list holds nothing, whatever its type is.
        None => true,
        // Files of the first format version declare no types.
        Some(kind) => declared == 0 || declared == kind,
    };
    if fits && second.is_none() {
        return Ok(());
    }
    Err(format!("attribute {} holds something else than its type {declared} says", quoted(attribute.name())))
}

fn check_input(input: &ValueInfoProto) -> Result<(), Fault> {
    let found = match input.r#type.as_ref().and_then(|kind| kind.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => match tensor.elem_type() {
            tensors::FLOAT
            | tensors::INT32
            | tensors::INT64
            | tensors::STRING
            | tensors::BOOL
            | tensors::DOUBLE => {
                return Ok(());
            }
            other => format!("a tensor of type {other}"),
        },
        Some(TypeValue::SequenceType(_)) => "a sequence".into(),
        Some(TypeValue::MapType(_)) => "a map".into(),
        Some(_) => "no plain tensor".into(),
        None => "of no type".into(),
    };
    Err(Fault::InputType { name: quoted(input.name()), found })
}

/// Whether every value has one maker, which stands before its users.
fn check_names(graph: &GraphProto, limits: &Limits) -> Result<(), Fault> {
    let inputs: HashSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
    let mut made: HashSet<&str> = HashSet::new();
    let mut make = |what: &'static str, name, may_be_input: bool| -> Result<(), Fault> {
        if !made.insert(name) || (!may_be_input && inputs.contains(name)) {
            return Err(Fault::DuplicateName { what, name: quoted(name) });
        }
        Ok(())
    };
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
    for tensor in graph.initializer.iter().chain(sparse) {
        check_given_name("initializer", tensor.name(), limits)?;
        make("initializer", tensor.name(), true)?;
    }
    for node in &graph.node {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            make("value", output, false)?;
        }
    }
    for (what, values) in [("input", &graph.input), ("output", &graph.output)] {
        let mut seen = HashSet::new();
        for value in values {
            check_given_name(what, value.name(), limits)?;
            if !seen.insert(value.name()) {
                return Err(Fault::DuplicateName { what, name: quoted(value.name()) });
            }
        }
    }
    let mut known = weights(graph);
    known.extend(&inputs);
    for node in &graph.node {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            if known.contains(name.as_str()) {
                continue;
            }
            let (user, name_shown) = (called(node), quoted(name));
            return Err(if made.contains(name.as_str()) {
                Fault::NotSorted { node: user, name: name_shown }
            } else {
                Fault::UndefinedValue { user, name: name_shown }
            });
        }
        known.extend(node.output.iter().map(String::as_str));
    }
    for output in &graph.output {
        if !known.contains(output.name()) {
            return Err(Fault::UndefinedValue {
                user: "the list of outputs".into(),
                name: quoted(output.name()),
            });
        }
    }
    Ok(())
}

/// The names of the weights.
fn weights(graph: &GraphProto) -> HashSet<&str> {
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
    graph.initializer.iter().chain(sparse).map(TensorProto::name).collect()
}

/// Checks a name that has to be there.
fn check_given_name(what: &'static str, name: &str, limits: &Limits) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::Name { what, name: quoted(name), problem: "is empty", limit: limits.name_bytes });
    }
    check_name(what, name, limits)
}

fn check_name(what: &'static str, name: &str, limits: &Limits) -> Result<(), Fault> {
    let limit = limits.name_bytes;
    let problem = if name.len() > limit {
        "is too long"
    } else if name.chars().any(char::is_control) {
        "has control characters in it"
    } else {
        return Ok(());
    };
    Err(Fault::Name { what, name: quoted(name), problem, limit })
}

/// A name as messages show it: what a file says must not be able to forge a line of a log.
fn quoted(name: &str) -> String {
    let mut shown: String = name.chars().take(80).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    format!("\"{}\"", shown.escape_debug())
}

/// A node as messages show it.
fn called(node: &NodeProto) -> String {
    let operator = quoted(node.op_type());
    match (node.name(), node.output.first()) {
        ("", Some(output)) => format!("the node {operator} that makes {}", quoted(output)),
        (name, _) => format!("the node {operator} called {}", quoted(name)),
    }
}

/// Shows every tensor of a model to `look`, wherever it is.
fn every_tensor(
    model: &ModelProto,
    look: &mut impl FnMut(&TensorProto) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let training =
        model.training_info.iter().flat_map(|info| info.initialization.iter().chain(&info.algorithm));
    for graph in model.graph.iter().chain(training) {
        tensors_of_graph(graph, look)?;
    }
    for function in &model.functions {
        for node in &function.node {
            node.attribute.iter().try_for_each(|attribute| tensors_of_attribute(attribute, look))?;
        }
        function.attribute_proto.iter().try_for_each(|attribute| tensors_of_attribute(attribute, look))?;
    }
    Ok(())
}

// The depth of these two is that of the file, which the decoder bounds to a hundred.
fn tensors_of_graph(
    graph: &GraphProto,
    look: &mut impl FnMut(&TensorProto) -> Result<(), Fault>,
) -> Result<(), Fault> {
    graph.initializer.iter().try_for_each(&mut *look)?;
    graph.sparse_initializer.iter().flat_map(parts).try_for_each(&mut *look)?;
    let mut attributes = graph.node.iter().flat_map(|node| &node.attribute);
    attributes.try_for_each(|attribute| tensors_of_attribute(attribute, look))
}

fn tensors_of_attribute(
    attribute: &AttributeProto,
    look: &mut impl FnMut(&TensorProto) -> Result<(), Fault>,
) -> Result<(), Fault> {
    attribute.t.iter().chain(&attribute.tensors).try_for_each(&mut *look)?;
    let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
    sparse.flat_map(parts).try_for_each(&mut *look)?;
    attribute.g.iter().chain(&attribute.graphs).try_for_each(|graph| tensors_of_graph(graph, look))
}

fn parts(tensor: &SparseTensorProto) -> impl Iterator<Item = &TensorProto> {
    tensor.values.iter().chain(&tensor.indices)
}

#[cfg(test)]
mod tests;
