//! Tree ensembles: whether each tree is one, and points at nothing that is not there.
//!
//! ONNX Runtime follows the nodes' numbers without looking where they lead, and loads trees by recursion.

use std::borrow::Cow;
use std::collections::HashMap;

use scoregate_schemas::onnx::{AttributeProto, NodeProto, TensorProto};

use super::tensors::numbers;
use super::widths::Widths;
use super::{Fault, Limits, TreeFault, called, quoted};

/// Whether a node is an ensemble of trees.
fn is_ensemble(node: &NodeProto) -> bool {
    node.domain() == "ai.onnx.ml"
        && matches!(node.op_type(), "TreeEnsembleClassifier" | "TreeEnsembleRegressor" | "TreeEnsemble")
}

/// Checks a node that is an ensemble of trees; any other passes.
pub(super) fn check(node: &NodeProto, widths: &Widths<'_>, limits: &Limits) -> Result<(), Fault> {
    if !is_ensemble(node) {
        return Ok(());
    }
    let input = node.input.first().ok_or_else(|| attribute(node, "it has no input".into()))?;
    let width = widths.get(input.as_str()).copied();
    match node.op_type() {
        "TreeEnsemble" => check_by_index(node, width, limits),
        _ => check_by_number(node, width, limits),
    }
}

fn attribute(node: &NodeProto, problem: String) -> Fault {
    Fault::Attribute { node: called(node), problem }
}

fn lengths(node: &NodeProto, problem: String) -> Fault {
    Fault::Lengths { node: called(node), problem }
}

/// The attributes of a node, those that are not there being empty.
struct Attributes<'g>(&'g NodeProto);

impl<'g> Attributes<'g> {
    fn get(&self, name: &str) -> Option<&'g AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name() == name)
    }

    fn ints(&self, name: &str) -> &'g [i64] {
        self.get(name).map_or(&[], |attribute| &attribute.ints)
    }

    fn strings(&self, name: &str) -> &'g [Vec<u8>] {
        self.get(name).map_or(&[], |attribute| &attribute.strings)
    }

    /// A list of floats, or the tensor that may stand in its place under a name of its own.
    fn floats(&self, name: &str) -> Result<Cow<'g, [f32]>, Fault> {
        let tensor = self.tensor(&format!("{name}_as_tensor"))?;
        let floats = self.get(name).map_or(&[][..], |attribute| &attribute.floats);
        match tensor {
            Some(_) if !floats.is_empty() => {
                Err(attribute(self.0, format!("{name} is given twice, as a list and as a tensor")))
            }
            Some(tensor) => Ok(Cow::Owned(tensor)),
            None => Ok(Cow::Borrowed(floats)),
        }
    }

    /// A tensor of numbers. In float32 a threshold or a weight is as finite as in float64, or it is refused.
    fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>, Fault> {
        let read = |tensor: &TensorProto| {
            #[expect(clippy::cast_possible_truncation, reason = "only what is no number is of interest")]
            let all =
                numbers(tensor, usize::MAX).map(|all| all.into_iter().map(|value| value as f32).collect());
            all.ok_or_else(|| attribute(self.0, format!("{name} is no tensor of numbers")))
        };
        match self.get(name) {
            None => Ok(None),
            Some(held) => match &held.t {
                Some(tensor) => read(tensor).map(Some),
                None => Err(attribute(self.0, format!("{name} holds no tensor, expected one"))),
            },
        }
    }
}

/// Checks that lists which are there have one length.
fn same_length(
    node: &NodeProto,
    name: &str,
    length: usize,
    others: &[(&str, usize, bool)],
) -> Result<(), Fault> {
    for (other, found, may_be_absent) in others {
        if *found != length && !(*may_be_absent && *found == 0) {
            return Err(lengths(node, format!("{name} has {length} entries, {other} has {found}")));
        }
    }
    Ok(())
}

/// A comparison, or a leaf.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Compare,
    Equal,
    Leaf,
}

fn mode(name: &[u8]) -> Option<Mode> {
    Some(match name {
        b"BRANCH_LEQ" | b"BRANCH_LT" | b"BRANCH_GTE" | b"BRANCH_GT" | b"BRANCH_NEQ" => Mode::Compare,
        b"BRANCH_EQ" => Mode::Equal,
        b"LEAF" => Mode::Leaf,
        _ => return None,
    })
}

/// `TreeEnsembleClassifier` and `TreeEnsembleRegressor`, whose nodes name each other by a number within their tree.
fn check_by_number(node: &NodeProto, width: Option<usize>, limits: &Limits) -> Result<(), Fault> {
    let attributes = Attributes(node);
    let (trees, ids) = (attributes.ints("nodes_treeids"), attributes.ints("nodes_nodeids"));
    let (features, modes) = (attributes.ints("nodes_featureids"), attributes.strings("nodes_modes"));
    let (yes, no) = (attributes.ints("nodes_truenodeids"), attributes.ints("nodes_falsenodeids"));
    let thresholds = attributes.floats("nodes_values")?;
    let count = ids.len();
    if count > limits.tree_nodes {
        return Err(Fault::TooMany { what: "nodes of trees", found: count, limit: limits.tree_nodes });
    }
    let others = [
        ("nodes_treeids", trees.len(), false),
        ("nodes_featureids", features.len(), false),
        ("nodes_modes", modes.len(), false),
        ("nodes_truenodeids", yes.len(), false),
        ("nodes_falsenodeids", no.len(), false),
        ("nodes_values", thresholds.len(), false),
        ("nodes_hitrates", attributes.floats("nodes_hitrates")?.len(), true),
        ("nodes_missing_value_tracks_true", attributes.ints("nodes_missing_value_tracks_true").len(), true),
    ];
    same_length(node, "nodes_nodeids", count, &others)?;
    if count == 0 {
        return Err(lengths(node, "it has no nodes".into()));
    }
    let fault = |at: usize, problem| Fault::Tree {
        node: called(node),
        place: format!("node {} of tree {}", ids[at], trees[at]),
        problem,
    };
    let read: Result<Vec<Mode>, Fault> = (0..count)
        .map(|at| {
            let unknown = || fault(at, TreeFault::Mode(quoted(&String::from_utf8_lossy(&modes[at]))));
            let mode = mode(&modes[at]).ok_or_else(unknown)?;
            if mode != Mode::Leaf {
                check_split(features[at], thresholds[at], width).map_err(|problem| fault(at, problem))?;
            }
            Ok(mode)
        })
        .collect();
    let modes = read?;
    let index = Index::new(trees, ids).map_err(|at| fault(at, TreeFault::DuplicateNode))?;
    let mut walk = Walk::new(count, limits.tree_depth);
    for tree in &index.trees {
        let children = |at: usize| {
            if modes[at] == Mode::Leaf {
                return Ok(None);
            }
            let find = |id: i64| index.find(ids, tree, id).ok_or((at, TreeFault::MissingNode(id)));
            Ok(Some([find(yes[at])?, find(no[at])?]))
        };
        // LightGBM's splits on a set of categories are converted to a chain of equalities with one destination.
        let may_join = |before: usize, at: usize| {
            modes[before] == Mode::Equal && modes[at] == Mode::Equal && features[before] == features[at]
        };
        walk.tree(tree.start, children, may_join).map_err(|(at, problem)| fault(at, problem))?;
    }
    if let Some(at) = walk.first_unreached() {
        return Err(fault(at, TreeFault::Unreachable));
    }
    check_weights(node, &attributes, &index, ids, &modes, limits)
}

/// Checks one split: what it compares, and with what.
fn check_split(feature: i64, threshold: f32, width: Option<usize>) -> Result<(), TreeFault> {
    let within = usize::try_from(feature).is_ok_and(|feature| feature < width.unwrap_or(i32::MAX as usize));
    if !within {
        return Err(TreeFault::Feature { found: feature, width: width.unwrap_or(i32::MAX as usize) });
    }
    // Infinities are fine: LightGBM's own thresholds are float64, and the largest of them is one in float32.
    if threshold.is_nan() { Err(TreeFault::Threshold) } else { Ok(()) }
}

/// Checks what the leaves of a classifier or regressor add to which class or target.
fn check_weights(
    node: &NodeProto,
    attributes: &Attributes<'_>,
    index: &Index,
    ids: &[i64],
    modes: &[Mode],
    limits: &Limits,
) -> Result<(), Fault> {
    let is_classifier = node.op_type() == "TreeEnsembleClassifier";
    let (prefix, outcomes) = if is_classifier {
        let strings = attributes.strings("classlabels_strings").len();
        let numbers = attributes.ints("classlabels_int64s").len();
        if (strings == 0) == (numbers == 0) {
            return Err(attribute(node, format!("found {strings} text labels and {numbers} number labels")));
        }
        ("class", strings + numbers)
    } else {
        let targets = attributes.get("n_targets").map_or(0, AttributeProto::i);
        let count = usize::try_from(targets).ok().filter(|targets| *targets > 0);
        (
            "target",
            count.ok_or_else(|| attribute(node, format!("n_targets is {targets}, expected 1 or more")))?,
        )
    };
    if outcomes > limits.classes {
        let what = if is_classifier { "classes" } else { "targets" };
        return Err(Fault::TooMany { what, found: outcomes, limit: limits.classes });
    }
    let name = |part: &str| format!("{prefix}_{part}");
    let (trees, nodes) = (attributes.ints(&name("treeids")), attributes.ints(&name("nodeids")));
    let (outcome, weights) = (attributes.ints(&name("ids")), attributes.floats(&name("weights"))?);
    let others = [
        (&*name("treeids"), trees.len(), false),
        (&*name("nodeids"), nodes.len(), false),
        (&*name("weights"), weights.len(), false),
    ];
    same_length(node, &name("ids"), outcome.len(), &others)?;
    let by_number: HashMap<i64, &Tree> = index.trees.iter().map(|tree| (tree.number, tree)).collect();
    let mut tree = &index.trees[0];
    for at in 0..outcome.len() {
        let fault = |problem| Fault::Tree {
            node: called(node),
            place: format!("the weight {at} for node {} of tree {}", nodes[at], trees[at]),
            problem,
        };
        if tree.number != trees[at] {
            tree = by_number.get(&trees[at]).ok_or_else(|| fault(TreeFault::MissingNode(nodes[at])))?;
        }
        let leaf = index.find(ids, tree, nodes[at]).filter(|leaf| modes[*leaf] == Mode::Leaf);
        leaf.ok_or_else(|| fault(TreeFault::MissingNode(nodes[at])))?;
        check_outcome(outcome[at], weights[at], outcomes, is_classifier).map_err(fault)?;
    }
    let base = attributes.floats("base_values")?;
    if let Some(value) = base.iter().find(|value| !value.is_finite()) {
        let problem = TreeFault::Leaf(f64::from(*value));
        return Err(Fault::Tree { node: called(node), place: "base_values".into(), problem });
    }
    if base.len() > 1 && base.len() != outcomes {
        return Err(lengths(node, format!("base_values has {} entries for {outcomes} outcomes", base.len())));
    }
    Ok(())
}

fn check_outcome(found: i64, weight: f32, outcomes: usize, is_classifier: bool) -> Result<(), TreeFault> {
    if !usize::try_from(found).is_ok_and(|outcome| outcome < outcomes) {
        return Err(if is_classifier {
            TreeFault::Class { found, classes: outcomes }
        } else {
            TreeFault::Target { found, targets: outcomes }
        });
    }
    if weight.is_finite() { Ok(()) } else { Err(TreeFault::Leaf(f64::from(weight))) }
}

/// A tree: its number, and where its nodes stand.
struct Tree {
    number: i64,
    start: usize,
    end: usize,
    /// Positions in the order of the nodes' numbers; empty if they are the order in which the nodes stand.
    order: Vec<u32>,
}

/// The trees of an ensemble, each of which stands in one piece.
struct Index {
    trees: Vec<Tree>,
}

impl Index {
    /// Finds the trees, or the position of a number that is there twice.
    fn new(trees: &[i64], ids: &[i64]) -> Result<Self, usize> {
        let mut found: Vec<Tree> = Vec::new();
        let mut numbers = std::collections::HashSet::new();
        let mut start = 0;
        while start < trees.len() {
            let number = trees[start];
            if !numbers.insert(number) {
                return Err(start);
            }
            let end =
                trees[start..].iter().position(|other| *other != number).map_or(trees.len(), |at| start + at);
            let of_tree = &ids[start..end];
            let mut order = Vec::new();
            if !of_tree.is_sorted_by(|one, other| one < other) {
                order = (0..u32::try_from(of_tree.len()).unwrap_or(u32::MAX)).collect();
                order.sort_unstable_by_key(|at| of_tree[*at as usize]);
                let twice =
                    order.windows(2).find(|pair| of_tree[pair[0] as usize] == of_tree[pair[1] as usize]);
                if let Some(pair) = twice {
                    return Err(start + pair[1] as usize);
                }
            }
            found.push(Tree { number, start, end, order });
            start = end;
        }
        Ok(Self { trees: found })
    }

    /// The position of a tree's node.
    fn find(&self, ids: &[i64], tree: &Tree, id: i64) -> Option<usize> {
        let of_tree = &ids[tree.start..tree.end];
        // Nearly every converter numbers the nodes of a tree from 0 as they stand.
        let guess = usize::try_from(id).ok().filter(|at| of_tree.get(*at) == Some(&id));
        let found = guess.or_else(|| {
            if tree.order.is_empty() {
                of_tree.binary_search(&id).ok()
            } else {
                let at = tree.order.binary_search_by_key(&id, |at| of_tree[*at as usize]).ok()?;
                Some(tree.order[at] as usize)
            }
        });
        found.map(|at| tree.start + at)
    }
}

/// `TreeEnsemble`, whose nodes name each other, and leaves of their own, by position.
fn check_by_index(node: &NodeProto, width: Option<usize>, limits: &Limits) -> Result<(), Fault> {
    /// `BRANCH_MEMBER`, the last of the modes.
    const MEMBER: f32 = 6.0;
    let attributes = Attributes(node);
    let needed =
        |name: &str| attributes.tensor(name)?.ok_or_else(|| attribute(node, format!("it has no {name}")));
    let (modes, splits, weights) = (needed("nodes_modes")?, needed("nodes_splits")?, needed("leaf_weights")?);
    let (features, targets) = (attributes.ints("nodes_featureids"), attributes.ints("leaf_targetids"));
    let (yes, no) = (attributes.ints("nodes_truenodeids"), attributes.ints("nodes_falsenodeids"));
    let (yes_is_leaf, no_is_leaf) = (attributes.ints("nodes_trueleafs"), attributes.ints("nodes_falseleafs"));
    let count = features.len();
    if count > limits.tree_nodes {
        return Err(Fault::TooMany { what: "nodes of trees", found: count, limit: limits.tree_nodes });
    }
    let others = [
        ("nodes_modes", modes.len(), false),
        ("nodes_splits", splits.len(), false),
        ("nodes_truenodeids", yes.len(), false),
        ("nodes_falsenodeids", no.len(), false),
        ("nodes_trueleafs", yes_is_leaf.len(), false),
        ("nodes_falseleafs", no_is_leaf.len(), false),
        ("nodes_hitrates", attributes.tensor("nodes_hitrates")?.unwrap_or_default().len(), true),
        ("nodes_missing_value_tracks_true", attributes.ints("nodes_missing_value_tracks_true").len(), true),
    ];
    same_length(node, "nodes_featureids", count, &others)?;
    same_length(node, "leaf_targetids", targets.len(), &[("leaf_weights", weights.len(), false)])?;
    let fault = |place: String, problem| Fault::Tree { node: called(node), place, problem };
    let at_node = |at: usize, problem| fault(format!("node {at}"), problem);
    for at in 0..count {
        if !(0.0..=MEMBER).contains(&modes[at]) {
            return Err(at_node(at, TreeFault::Mode(modes[at].to_string())));
        }
        // A membership has its values elsewhere.
        let threshold = if modes[at] < MEMBER { splits[at] } else { 0.0 };
        check_split(features[at], threshold, width).map_err(|problem| at_node(at, problem))?;
    }
    let memberships = modes.iter().filter(|mode| **mode >= MEMBER).count();
    let members = attributes.tensor("membership_values")?.unwrap_or_default();
    let ends = members.iter().filter(|value| value.is_nan()).count();
    if ends != memberships || members.last().is_some_and(|value| !value.is_nan()) {
        return Err(lengths(
            node,
            format!("membership_values has {ends} sets for {memberships} memberships"),
        ));
    }
    let outcomes = attributes.get("n_targets").map_or(0, AttributeProto::i);
    let outcomes = usize::try_from(outcomes).ok().filter(|count| (1..=limits.classes).contains(count));
    let outcomes = outcomes
        .ok_or_else(|| attribute(node, format!("expected n_targets from 1 to {}", limits.classes)))?;
    for (at, (target, weight)) in targets.iter().zip(&weights).enumerate() {
        let problem = check_outcome(*target, *weight, outcomes, false);
        problem.map_err(|problem| fault(format!("leaf {at}"), problem))?;
    }
    let roots = attributes.ints("tree_roots");
    if roots.is_empty() {
        return Err(lengths(node, "it has no tree_roots".into()));
    }
    let mut walk = Walk::new(count, limits.tree_depth);
    let children = |at: usize| {
        let child = |id: i64, is_leaf: bool| {
            let limit = if is_leaf { targets.len() } else { count };
            let found = usize::try_from(id).ok().filter(|child| *child < limit);
            found.ok_or((at, TreeFault::MissingNode(id))).map(|child| (!is_leaf).then_some(child))
        };
        let (one, other) = (child(yes[at], yes_is_leaf[at] != 0)?, child(no[at], no_is_leaf[at] != 0)?);
        Ok(Some([one, other]))
    };
    for root in roots {
        let start = usize::try_from(*root).ok().filter(|root| *root < count);
        let start = start.ok_or_else(|| fault("tree_roots".into(), TreeFault::MissingNode(*root)))?;
        walk.tree(start, children, |_, _| false).map_err(|(at, problem)| at_node(at, problem))?;
    }
    match walk.first_unreached() {
        Some(at) => Err(at_node(at, TreeFault::Unreachable)),
        None => Ok(()),
    }
}

/// Where a child is: some trees keep their leaves apart, and those need no visit.
trait Child: Copy {
    fn position(self) -> Option<usize>;
}

impl Child for usize {
    fn position(self) -> Option<usize> {
        Some(self)
    }
}

impl Child for Option<usize> {
    fn position(self) -> Option<usize> {
        self
    }
}

/// A walk over all trees of an ensemble, which reaches each node once.
struct Walk {
    /// The level of each node, from 1; 0 where none has been reached.
    level: Vec<u32>,
    /// The last node that led to each one by its true branch, plus one.
    by: Vec<u32>,
    limit: u32,
}

impl Walk {
    fn new(count: usize, limit: u32) -> Self {
        Self { level: vec![0; count], by: vec![0; count], limit }
    }

    /// Walks the tree whose root is at `start`. `children` are those of the true and of the false branch.
    ///
    /// Two nodes may lead to the same child only by their true branches, where the second is the first one's false branch
    /// and `may_join` says so of them. Such a chain cannot close a circle: the child was new when the first led to it, and
    /// all nodes between it and the root have been reached before.
    fn tree<C: Child>(
        &mut self,
        start: usize,
        children: impl Fn(usize) -> Result<Option<[C; 2]>, (usize, TreeFault)>,
        may_join: impl Fn(usize, usize) -> bool,
    ) -> Result<(), (usize, TreeFault)> {
        if self.level[start] > 0 {
            return Err((start, TreeFault::Cycle));
        }
        self.level[start] = 1;
        let mut open = vec![start];
        while let Some(at) = open.pop() {
            let Some([yes, no]) = children(at)? else { continue };
            let level = self.level[at] + 1;
            if level > self.limit {
                return Err((at, TreeFault::Depth(self.limit)));
            }
            if let Some(child) = yes.position() {
                let before = (self.by[child] as usize).checked_sub(1);
                if self.level[child] == 0 {
                    open.push(child);
                } else {
                    let continues = |before: usize| {
                        let next = children(before).ok().flatten().and_then(|[_, no]| no.position());
                        next == Some(at) && may_join(before, at)
                    };
                    if !before.is_some_and(continues) {
                        return Err((child, TreeFault::Cycle));
                    }
                }
                // The end of a chain is its deepest node, and what it leads to waits on the stack below it.
                self.level[child] = level;
                self.by[child] = u32::try_from(at + 1).unwrap_or(u32::MAX);
            }
            if let Some(child) = no.position() {
                if self.level[child] > 0 {
                    return Err((child, TreeFault::Cycle));
                }
                self.level[child] = level;
                open.push(child);
            }
        }
        Ok(())
    }

    fn first_unreached(&self) -> Option<usize> {
        self.level.iter().position(|level| *level == 0)
    }
}
