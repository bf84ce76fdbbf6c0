//! ONNX nodes → [`Ensemble`]: `TreeEnsembleClassifier`, `TreeEnsembleRegressor` and `TreeEnsemble` as ONNX Runtime reads them.

use std::borrow::Cow;

use rustc_hash::{FxBuildHasher, FxHashMap};
use scoregate_schemas::onnx::{AttributeProto, GraphProto, NodeProto, TypeValue};

use super::ensemble::{Columns, Ensemble, Link, Next, Node, Precision, Test};
use crate::acceptance::lint::tensors::{DOUBLE, FLOAT, INT32, INT64, numbers};

/// How many decisions a path may have.
pub const MOST_LEVELS: u32 = 512;

/// Why trees are not taken. The model may be a good one all the same, which a method for any model explains.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// There is not exactly one ensemble to read.
    #[error("the graph has {0} tree ensembles, expected one")]
    Count(usize),
    /// The node is none of the three.
    #[error("the node is a {0}, expected a TreeEnsembleClassifier, TreeEnsembleRegressor or TreeEnsemble")]
    Operator(String),
    /// Trees that are not added up.
    #[error("the trees are aggregated by {0}, expected SUM or AVERAGE")]
    Aggregate(String),
    /// A post-transform that is not followed.
    #[error("the node's post_transform is {0}, expected NONE, LOGISTIC or SOFTMAX")]
    Transform(String),
    /// The runtime's answer for two classes is no sum of leaves.
    #[error(
        "for these weights of two classes ONNX Runtime's scores depend on which leaves have any, or leave some out"
    )]
    TwoClasses,
    /// Two branches lead to one node.
    #[error("two branches lead to one node of tree {0}, or one leads back")]
    Shared(usize),
    /// A path is too long.
    #[error("a path has more than {MOST_LEVELS} decisions")]
    Levels,
    /// The input is of a type that is not compared as numbers are.
    #[error("the trees take a tensor of ONNX type {0}, expected floats or integers")]
    Input(i32),
    /// The attributes do not describe trees.
    #[error("the node's attributes describe no trees: {0}")]
    Malformed(&'static str),
}

impl Ensemble {
    /// Reads the one ensemble of a graph. Returns it with its node's position.
    ///
    /// The type of its input is looked up: a graph's input, what a `Cast` makes, or what the graph states of its values;
    /// where none says it, trees with float64 tensors take float64 and others float32.
    ///
    /// # Errors
    /// [`Unsupported`] where there is not exactly one, or where this is no plain sum of trees.
    pub fn of_graph(graph: &GraphProto) -> Result<(usize, Self), Unsupported> {
        let found: Vec<usize> = (0..graph.node.len()).filter(|at| is_ensemble(&graph.node[*at])).collect();
        let [at] = found.as_slice() else { return Err(Unsupported::Count(found.len())) };
        let node = &graph.node[*at];
        let name = node.input.first().ok_or(Unsupported::Malformed("no input"))?;
        let precision = match element(graph, name) {
            Some(FLOAT | INT32 | INT64) => Precision::Single,
            Some(DOUBLE) => Precision::Double,
            Some(other) => return Err(Unsupported::Input(other)),
            None if has_doubles(node) => Precision::Double,
            None => Precision::Single,
        };
        Ok((*at, Self::of_node(node, precision)?))
    }

    /// Reads a node whose input is rounded to `precision`.
    ///
    /// # Errors
    /// [`Unsupported`] where this is no plain sum of trees.
    pub fn of_node(node: &NodeProto, precision: Precision) -> Result<Self, Unsupported> {
        let attributes = Attributes(node);
        if !is_ensemble(node) {
            return Err(Unsupported::Operator(node.op_type().into()));
        }
        if node.op_type() == "TreeEnsemble" {
            let (raw, outputs) = by_index(attributes)?;
            let average = match attributes.int("aggregate_function", 1) {
                0 => true,
                1 => false,
                other => return Err(Unsupported::Aggregate(other.to_string())),
            };
            let link = link(
                ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"]
                    .get(usize::try_from(attributes.int("post_transform", 0)).unwrap_or(usize::MAX))
                    .copied()
                    .unwrap_or("unknown"),
            )?;
            return regression(raw, outputs, average, link, Vec::new(), precision);
        }
        let average = match attributes.text("aggregate_function", "SUM") {
            "SUM" => false,
            "AVERAGE" => true,
            other => return Err(Unsupported::Aggregate(other.into())),
        };
        let link = link(attributes.text("post_transform", "NONE"))?;
        let base = attributes.floats("base_values")?.into_owned();
        if node.op_type() == "TreeEnsembleRegressor" {
            let outputs = usize::try_from(attributes.int("n_targets", 0)).unwrap_or(0);
            let raw = by_number(attributes, "target", outputs)?;
            return regression(raw, outputs, average, link, base, precision);
        }
        let labels =
            attributes.ints("classlabels_int64s").len() + attributes.strings("classlabels_strings").len();
        let raw = by_number(attributes, "class", labels)?;
        // ONNX Runtime's classifier adds up whatever the attribute says, which the operator does not have.
        classification(raw, labels, link, base, precision)
    }
}

fn is_ensemble(node: &NodeProto) -> bool {
    node.domain() == "ai.onnx.ml"
        && matches!(node.op_type(), "TreeEnsembleClassifier" | "TreeEnsembleRegressor" | "TreeEnsemble")
}

/// The type of a value of the graph, where the graph says it.
fn element(graph: &GraphProto, name: &str) -> Option<i32> {
    let stated = graph.input.iter().chain(&graph.value_info).find(|value| value.name() == name);
    if let Some(TypeValue::TensorType(tensor)) =
        stated.and_then(|value| value.r#type.as_ref()).and_then(|kind| kind.value.as_ref())
    {
        return tensor.elem_type;
    }
    let maker = graph.node.iter().find(|node| node.output.iter().any(|found| found == name))?;
    let to = || maker.attribute.iter().find(|attribute| attribute.name() == "to");
    (maker.op_type() == "Cast").then(to).flatten().and_then(|to| i32::try_from(to.i()).ok())
}

fn has_doubles(node: &NodeProto) -> bool {
    let is_double = |name: &str| {
        let tensor = node.attribute.iter().find(|attribute| attribute.name() == name);
        tensor.and_then(|held| held.t.as_ref()).is_some_and(|tensor| tensor.data_type() == DOUBLE)
    };
    is_double("nodes_values_as_tensor") || is_double("nodes_splits")
}

fn link(transform: &str) -> Result<Link, Unsupported> {
    match transform {
        "NONE" => Ok(Link::Identity),
        "LOGISTIC" => Ok(Link::Logistic),
        "SOFTMAX" => Ok(Link::Softmax),
        other => Err(Unsupported::Transform(other.into())),
    }
}

/// The attributes of a node, those that are not there being empty.
#[derive(Clone, Copy)]
struct Attributes<'g>(&'g NodeProto);

impl<'g> Attributes<'g> {
    fn get(self, name: &str) -> Option<&'g AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name() == name)
    }

    fn ints(self, name: &str) -> &'g [i64] {
        self.get(name).map_or(&[], |attribute| &attribute.ints)
    }

    fn strings(self, name: &str) -> &'g [Vec<u8>] {
        self.get(name).map_or(&[], |attribute| &attribute.strings)
    }

    fn int(self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, AttributeProto::i)
    }

    fn text(self, name: &str, default: &'g str) -> &'g str {
        let held = self.get(name).and_then(|attribute| attribute.s.as_deref());
        held.map_or(default, |bytes| std::str::from_utf8(bytes).unwrap_or("unreadable"))
    }

    fn tensor(self, name: &str) -> Result<Option<Vec<f64>>, Unsupported> {
        let Some(held) = self.get(name) else { return Ok(None) };
        let read = held.t.as_ref().and_then(|tensor| numbers(tensor, usize::MAX));
        read.map(Some).ok_or(Unsupported::Malformed("a tensor that holds no numbers"))
    }

    /// A list of floats, or the tensor that may stand in its place.
    fn floats(self, name: &str) -> Result<Cow<'static, [f64]>, Unsupported> {
        if let Some(tensor) = self.tensor(&format!("{name}_as_tensor"))? {
            return Ok(Cow::Owned(tensor));
        }
        let list = self.get(name).map(|held| held.floats.iter().map(|value| f64::from(*value)).collect());
        Ok(list.map_or(Cow::Borrowed(&[]), Cow::Owned))
    }
}

/// Where a branch leads in the file: positions among what it lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Node(usize),
    Leaf(usize),
}

struct RawNode {
    column: u32,
    test: Test,
    missing: bool,
    yes: Target,
    no: Target,
}

/// What a file lists.
struct Raw {
    /// A node's fields, or none where the position is a leaf's.
    nodes: Vec<Option<RawNode>>,
    roots: Vec<Target>,
    /// By leaf: output and weight.
    weights: Vec<Vec<(u32, f64)>>,
}

fn column(number: i64) -> Result<u32, Unsupported> {
    // The runtime keeps them as 32-bit integers.
    let within = i32::try_from(number).ok().and_then(|number| u32::try_from(number).ok());
    within.ok_or(Unsupported::Malformed("a column that is no number from 0 to 2147483647"))
}

fn position(number: i64, limit: usize) -> Result<usize, Unsupported> {
    let found = usize::try_from(number).ok().filter(|found| *found < limit);
    found.ok_or(Unsupported::Malformed("a branch or an output that is not there"))
}

fn not_nan(threshold: f64) -> Result<f64, Unsupported> {
    if threshold.is_nan() {
        Err(Unsupported::Malformed("a threshold that is no number"))
    } else {
        Ok(threshold)
    }
}

/// The three comparable lists of a classifier or regressor: nodes that name each other by a number within their tree.
fn by_number(attributes: Attributes<'_>, prefix: &str, outputs: usize) -> Result<Raw, Unsupported> {
    let (trees, ids) = (attributes.ints("nodes_treeids"), attributes.ints("nodes_nodeids"));
    let (columns, modes) = (attributes.ints("nodes_featureids"), attributes.strings("nodes_modes"));
    let (yes, no) = (attributes.ints("nodes_truenodeids"), attributes.ints("nodes_falsenodeids"));
    let missing = attributes.ints("nodes_missing_value_tracks_true");
    let thresholds = attributes.floats("nodes_values")?;
    let lengths = [trees.len(), columns.len(), modes.len(), yes.len(), no.len(), thresholds.len()];
    if ids.is_empty() || lengths.iter().any(|length| *length != ids.len()) {
        return Err(Unsupported::Malformed("lists of different lengths, or empty ones"));
    }
    let mut found = FxHashMap::with_capacity_and_hasher(ids.len(), FxBuildHasher);
    let mut roots = Vec::new();
    for (at, place) in trees.iter().zip(ids).enumerate() {
        if found.insert(place, at).is_some() {
            return Err(Unsupported::Malformed("a node that is there twice"));
        }
        // A tree's first node is its root.
        if at == 0 || trees[at - 1] != trees[at] {
            roots.push(at);
        }
    }
    let target = |at: usize| if modes[at] == b"LEAF" { Target::Leaf(at) } else { Target::Node(at) };
    let find = |tree: &i64, id: &i64| found.get(&(tree, id)).copied();
    let mut nodes = Vec::with_capacity(ids.len());
    for at in 0..ids.len() {
        if modes[at] == b"LEAF" {
            nodes.push(None);
            continue;
        }
        let threshold = not_nan(thresholds[at])?;
        let test = match modes[at].as_slice() {
            b"BRANCH_LEQ" => Test::AtMost(threshold),
            b"BRANCH_LT" => Test::Below(threshold),
            b"BRANCH_GTE" => Test::AtLeast(threshold),
            b"BRANCH_GT" => Test::Above(threshold),
            b"BRANCH_EQ" => Test::Equals(threshold),
            b"BRANCH_NEQ" => Test::Differs(threshold),
            _ => return Err(Unsupported::Malformed("a node of an unknown mode")),
        };
        let child = |id: &i64| {
            find(&trees[at], id)
                .map(target)
                .ok_or(Unsupported::Malformed("a branch to a node that is not there"))
        };
        nodes.push(Some(RawNode {
            column: column(columns[at])?,
            test,
            missing: missing.get(at) == Some(&1),
            yes: child(&yes[at])?,
            no: child(&no[at])?,
        }));
    }
    let list = |part: &str| attributes.ints(&format!("{prefix}_{part}"));
    let (of_tree, of_node, output) = (list("treeids"), list("nodeids"), list("ids"));
    let added = attributes.floats(&format!("{prefix}_weights"))?;
    if [of_tree.len(), of_node.len(), added.len()].iter().any(|length| *length != output.len()) {
        return Err(Unsupported::Malformed("lists of weights of different lengths"));
    }
    let mut weights = vec![Vec::new(); ids.len()];
    for (at, weight) in added.iter().enumerate() {
        let leaf = find(&of_tree[at], &of_node[at]).ok_or(Unsupported::Malformed("a weight of no node"))?;
        // The runtime leaves out what a decision weighs.
        if nodes[leaf].is_none() {
            weights[leaf].push((position(output[at], outputs)? as u32, *weight));
        }
    }
    Ok(Raw { nodes, roots: roots.into_iter().map(target).collect(), weights })
}

/// `TreeEnsemble`, whose nodes name each other, and leaves of their own, by position. Returns the number of outputs too.
fn by_index(attributes: Attributes<'_>) -> Result<(Raw, usize), Unsupported> {
    let needed = |name: &str| attributes.tensor(name)?.ok_or(Unsupported::Malformed("a list is missing"));
    let (modes, splits, added) = (needed("nodes_modes")?, needed("nodes_splits")?, needed("leaf_weights")?);
    let (columns, output) = (attributes.ints("nodes_featureids"), attributes.ints("leaf_targetids"));
    let (yes, no) = (attributes.ints("nodes_truenodeids"), attributes.ints("nodes_falsenodeids"));
    let (yes_is_leaf, no_is_leaf) = (attributes.ints("nodes_trueleafs"), attributes.ints("nodes_falseleafs"));
    let missing = attributes.ints("nodes_missing_value_tracks_true");
    let members = attributes.tensor("membership_values")?.unwrap_or_default();
    let lengths = [modes.len(), splits.len(), yes.len(), no.len(), yes_is_leaf.len(), no_is_leaf.len()];
    if lengths.iter().any(|length| *length != columns.len()) || output.len() != added.len() {
        return Err(Unsupported::Malformed("lists of different lengths"));
    }
    let outputs = usize::try_from(attributes.int("n_targets", 0)).unwrap_or(0);
    let mut sets = members.split(|member| member.is_nan());
    let mut nodes = Vec::with_capacity(columns.len());
    for at in 0..columns.len() {
        let threshold = if modes[at] == 6.0 { Ok(0.0) } else { not_nan(splits[at]) }?;
        let test = match modes[at] {
            0.0 => Test::AtMost(threshold),
            1.0 => Test::Below(threshold),
            2.0 => Test::AtLeast(threshold),
            3.0 => Test::Above(threshold),
            4.0 => Test::Equals(threshold),
            5.0 => Test::Differs(threshold),
            6.0 => Test::OneOf(
                sets.next().ok_or(Unsupported::Malformed("a set of members is missing"))?.to_vec(),
            ),
            _ => return Err(Unsupported::Malformed("a node of an unknown mode")),
        };
        let child = |id: i64, is_leaf: i64| match is_leaf {
            0 => position(id, columns.len()).map(Target::Node),
            _ => position(id, output.len()).map(Target::Leaf),
        };
        nodes.push(Some(RawNode {
            column: column(columns[at])?,
            test,
            missing: missing.get(at) == Some(&1),
            yes: child(yes[at], yes_is_leaf[at])?,
            no: child(no[at], no_is_leaf[at])?,
        }));
    }
    let weights: Result<Vec<_>, Unsupported> = output
        .iter()
        .zip(added)
        .map(|(output, weight)| Ok(vec![(position(*output, outputs)? as u32, weight)]))
        .collect();
    let roots =
        attributes.ints("tree_roots").iter().map(|root| position(*root, columns.len()).map(Target::Node));
    let roots = roots.collect::<Result<Vec<_>, _>>()?;
    Ok((Raw { nodes, roots, weights: weights? }, outputs))
}

/// The margins of a regressor.
fn regression(
    mut raw: Raw,
    outputs: usize,
    average: bool,
    link: Link,
    base: Vec<f64>,
    precision: Precision,
) -> Result<Ensemble, Unsupported> {
    if outputs == 0 || !(base.is_empty() || base.len() == outputs) {
        return Err(Unsupported::Malformed("no outputs, or another number of base values"));
    }
    if average {
        let trees = raw.roots.len() as f64;
        raw.weights.iter_mut().flatten().for_each(|(_, weight)| *weight /= trees);
    }
    let base = if base.is_empty() { vec![0.0; outputs] } else { base };
    // For a single target ONNX Runtime follows none of these two.
    let link = if outputs == 1 { Link::Identity } else { link };
    assemble(raw, base, link, Columns::Each, precision)
}

/// The margins of a classifier, of which ONNX Runtime treats those of two classes in ways of their own.
fn classification(
    raw: Raw,
    labels: usize,
    link: Link,
    base: Vec<f64>,
    precision: Precision,
) -> Result<Ensemble, Unsupported> {
    let (zeros, each) = (|count: usize| vec![0.0; count], Columns::Each);
    if labels == 0 || !(base.is_empty() || base.len() == labels || (labels == 2 && base.len() == 1)) {
        return Err(Unsupported::Malformed("no classes, or another number of base values"));
    }
    if labels != 2 {
        let link = if labels == 1 { Link::Identity } else { link };
        let base = if base.is_empty() { zeros(labels) } else { base };
        return assemble(raw, base, link, each, precision);
    }
    let weighs = |class: u32| move |leaf: &Vec<(u32, f64)>| leaf.iter().any(|(output, _)| *output == class);
    if !raw.weights.iter().any(weighs(1)) {
        if base.len() == 2 {
            // A class that nothing weighs is scored 0, whatever its base value.
            return assemble(raw, vec![base[0], 0.0], link, each, precision);
        }
        // One weight per leaf says the positive class's margin. Where no weight is negative it is taken for a probability.
        let columns =
            if link != Link::Logistic && raw.weights.iter().flatten().all(|(_, weight)| *weight >= 0.0) {
                Columns::Complement
            } else {
                Columns::Opposite
            };
        let link = if link == Link::Logistic { link } else { Link::Identity };
        let base = if base.is_empty() { zeros(1) } else { base };
        return assemble(raw, base, link, columns, precision);
    }
    // The runtime asks of each row whether any leaf weighed the class. It has to be so for every row.
    let is_certain = |class: u32| raw.roots.iter().any(|root| all_leaves(&raw, *root, weighs(class)));
    // With two base values, what the first class's leaves add counts for the second, and what the second's add is lost.
    if !is_certain(1) || base.len() == 2 {
        return Err(Unsupported::TwoClasses);
    }
    let first = match base.first() {
        Some(base) if raw.weights.iter().any(weighs(0)) => {
            if !is_certain(0) {
                return Err(Unsupported::TwoClasses);
            }
            *base
        }
        _ => 0.0,
    };
    assemble(raw, vec![first, 0.0], link, each, precision)
}

/// Whether all leaves of a tree are as asked.
fn all_leaves(raw: &Raw, root: Target, is_so: impl Fn(&Vec<(u32, f64)>) -> bool) -> bool {
    let mut open = vec![root];
    // A path that leads back would go on for ever; such trees are refused later.
    for _ in 0..=2 * raw.nodes.len() {
        match open.pop() {
            Some(Target::Leaf(leaf)) if !is_so(&raw.weights[leaf]) => return false,
            Some(Target::Node(node)) => {
                open.extend(raw.nodes[node].iter().flat_map(|node| [node.yes, node.no]))
            }
            Some(Target::Leaf(_)) => {}
            None => return true,
        }
    }
    false
}

/// Puts nodes into the order of a walk, so that each is reached once.
fn assemble(
    raw: Raw,
    base: Vec<f64>,
    link: Link,
    columns: Columns,
    precision: Precision,
) -> Result<Ensemble, Unsupported> {
    let Raw { mut nodes, roots, weights: listed } = raw;
    let (mut placed, mut ends, mut weights) = (Vec::with_capacity(nodes.len()), Vec::new(), Vec::new());
    let mut leaf = |at: usize| -> Result<Next, Unsupported> {
        let of_leaf: &[(u32, f64)] = listed.get(at).map_or(&[], |weights| weights);
        if (1..of_leaf.len()).any(|at| of_leaf[..at].iter().any(|(output, _)| *output == of_leaf[at].0)) {
            // For a single output ONNX Runtime takes the first one alone.
            return Err(Unsupported::Malformed("a leaf that adds twice to one output"));
        }
        weights.extend_from_slice(of_leaf);
        ends.push(u32::try_from(weights.len()).map_err(|_| Unsupported::Malformed("too many weights"))?);
        Ok(Next::Leaf(u32::try_from(ends.len() - 1).unwrap_or(u32::MAX)))
    };
    let mut placed_roots = Vec::with_capacity(roots.len());
    for (tree, root) in roots.into_iter().enumerate() {
        /// Where a branch that is to be filled in stands: a placed node and which of its branches, or the root.
        type From = Option<(usize, bool)>;
        let mut open: Vec<(From, Target, u32)> = vec![(None, root, 0)];
        while let Some((from, target, level)) = open.pop() {
            if level > MOST_LEVELS {
                return Err(Unsupported::Levels);
            }
            let next = match target {
                Target::Leaf(at) => leaf(at)?,
                Target::Node(at) => {
                    let mut node = nodes[at].take().ok_or(Unsupported::Shared(tree))?;
                    join(&mut node, &mut nodes, precision);
                    let place = placed.len();
                    open.push((Some((place, false)), node.no, level + 1));
                    open.push((Some((place, true)), node.yes, level + 1));
                    let RawNode { column, test, missing, .. } = node;
                    placed.push(Node { column, test, missing, yes: Next::Leaf(0), no: Next::Leaf(0) });
                    Next::Node(u32::try_from(place).map_err(|_| Unsupported::Malformed("too many nodes"))?)
                }
            };
            match from {
                None => placed_roots.push(next),
                Some((parent, true)) => placed[parent].yes = next,
                Some((parent, false)) => placed[parent].no = next,
            }
        }
    }
    Ok(Ensemble { precision, nodes: placed, roots: placed_roots, ends, weights, base, link, columns })
}

/// Takes a chain of equalities of one column with one destination, as which LightGBM's splits on a set of categories are
/// converted, for the one membership that it is.
///
/// Where decisions of a chain disagree about missing values, ONNX Runtime 1.31.1 has rules of its own: it makes one decision of
/// neighbours that compare with whole numbers from 1 to the bits of its thresholds, which are as its input is, and looks at the
/// first one's flag alone.
fn join(node: &mut RawNode, nodes: &mut [Option<RawNode>], precision: Precision) {
    let Test::Equals(first) = node.test else { return };
    let bits = match precision {
        Precision::Single => 32.0,
        Precision::Double => 64.0,
    };
    let is_bit = |member: f64| member.fract() == 0.0 && (1.0..=bits).contains(&member);
    let mut members = vec![first];
    while let Target::Node(at) = node.no
        && let Some(RawNode { column, test: Test::Equals(member), missing, yes, no }) = &nodes[at]
        && (*column, *yes) == (node.column, node.yes)
    {
        let is_merged = is_bit(*member) && members.last().is_some_and(|before| is_bit(*before));
        node.missing |= *missing && !is_merged;
        members.push(*member);
        node.no = *no;
        nodes[at] = None;
    }
    if members.len() > 1 {
        node.test = Test::OneOf(members);
    }
}
