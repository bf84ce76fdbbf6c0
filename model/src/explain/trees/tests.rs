//! Against all coalitions of the same double evaluation, and what is read against what ONNX Runtime 1.31.1 does.

use scoregate_schemas::onnx::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, TypeTensorType, TypeValue, ValueInfoProto,
};

use super::ensemble::{Next, Node, Test};
use super::*;
use crate::random::Random;

/// How far a value may be from the one of all coalitions.
const TOLERANCE: f64 = 1e-9;
/// Random ensembles of each property.
const CASES: usize = 300;
/// Memory for tables: none, too little for all, enough.
const MEMORY: [usize; 3] = [0, 3_000, TABLE_BYTES];

/// Values on and between the thresholds, which are -2, -1, 0, 1, 2.
fn value(random: &mut Random) -> f64 {
    match random.below(12) {
        0 => f64::NAN,
        1 => [f64::INFINITY, f64::NEG_INFINITY, -0.0][random.below(3)],
        at => (at as f64 - 7.0) / 2.0,
    }
}

struct Shape {
    columns: usize,
    outputs: usize,
    levels: usize,
    /// In percent, how often a node within these levels is a leaf.
    leaf: usize,
    only_comparisons: bool,
}

fn ensemble(random: &mut Random, trees: usize, shape: &Shape) -> Ensemble {
    let mut made = Ensemble {
        precision: if random.below(2) == 0 { Precision::Single } else { Precision::Double },
        nodes: Vec::new(),
        roots: Vec::new(),
        ends: Vec::new(),
        weights: Vec::new(),
        base: (0..shape.outputs).map(|_| random.normal()).collect(),
        link: Link::Identity,
        columns: Columns::Each,
    };
    for _ in 0..trees {
        let root = grow(random, &mut made, shape, shape.levels);
        made.roots.push(root);
    }
    made
}

fn grow(random: &mut Random, made: &mut Ensemble, shape: &Shape, levels: usize) -> Next {
    if levels == 0 || random.below(100) < shape.leaf {
        for output in 0..shape.outputs {
            if random.below(3) > 0 {
                made.weights.push((output as u32, random.normal()));
            }
        }
        made.ends.push(made.weights.len() as u32);
        return Next::Leaf(made.ends.len() as u32 - 1);
    }
    let threshold = random.below(5) as f64 - 2.0;
    let test = match random.below(if shape.only_comparisons { 4 } else { 7 }) {
        0 => Test::AtMost(threshold),
        1 => Test::Below(threshold),
        2 => Test::AtLeast(threshold),
        3 => Test::Above(threshold),
        4 => Test::Equals(threshold),
        5 => Test::Differs(threshold),
        _ => Test::OneOf((0..random.below(4)).map(|_| random.below(5) as f64 - 2.0).collect()),
    };
    let at = made.nodes.len();
    let (column, missing) = (random.below(shape.columns) as u32, random.below(3) == 0);
    made.nodes.push(Node { column, test, missing, yes: Next::Leaf(0), no: Next::Leaf(0) });
    let yes = grow(random, made, shape, levels - 1);
    let no = grow(random, made, shape, levels - 1);
    (made.nodes[at].yes, made.nodes[at].no) = (yes, no);
    Next::Node(at as u32)
}

fn rows(random: &mut Random, count: usize, columns: usize) -> Vec<f64> {
    (0..count * columns).map(|_| value(random)).collect()
}

fn margins(ensemble: &Ensemble, row: &[f64]) -> Vec<f64> {
    let mut margins = vec![0.0; ensemble.outputs()];
    ensemble.margin(row, &mut margins);
    margins
}

/// `v(S)` for all coalitions S, by output: the mean over the background.
fn interventional(
    ensemble: &Ensemble,
    players: &[Option<u32>],
    count: usize,
    row: &[f64],
    background: &Matrix<'_>,
) -> Vec<Vec<f64>> {
    let mut values = vec![vec![0.0; 1 << count]; ensemble.outputs()];
    for coalition in 0..1_usize << count {
        for other in background.rows() {
            let is_present = |player: &Option<u32>| player.is_none_or(|player| coalition >> player & 1 == 1);
            let mixed = players.iter().zip(row.iter().zip(other));
            let mixed: Vec<f64> =
                mixed.map(|(player, (own, other))| if is_present(player) { *own } else { *other }).collect();
            for (values, margin) in values.iter_mut().zip(margins(ensemble, &mixed)) {
                values[coalition] += margin / background.rows().len() as f64;
            }
        }
    }
    values
}

/// `v(S)` for all coalitions S, by output: down both branches where an absent player decides.
fn path_dependent(
    ensemble: &Ensemble,
    players: &[Option<u32>],
    count: usize,
    row: &[f64],
    covers: &[[u64; 2]],
) -> Vec<Vec<f64>> {
    struct Tree<'a>(&'a Ensemble, &'a [Option<u32>], &'a [f64], &'a [[u64; 2]]);
    impl Tree<'_> {
        fn value(&self, next: Next, coalition: usize, output: u32) -> f64 {
            let Self(ensemble, players, row, covers) = self;
            let at = match next {
                Next::Node(at) => at as usize,
                Next::Leaf(leaf) => {
                    let weights = ensemble.of_leaf(leaf).iter();
                    return weights.filter(|(of, _)| *of == output).map(|(_, weight)| weight).sum();
                }
            };
            let node = &ensemble.nodes[at];
            let column = node.column as usize;
            if players[column].is_none_or(|player| coalition >> player & 1 == 1) {
                let holds = node.holds(ensemble.rounded(row[column]));
                return self.value(if holds { node.yes } else { node.no }, coalition, output);
            }
            let [yes, no] = [node.yes, node.no].map(|next| self.value(next, coalition, output));
            match covers[at] {
                [0, 0] => f64::midpoint(yes, no),
                [one, other] => (one as f64 * yes + other as f64 * no) / (one + other) as f64,
            }
        }
    }
    let tree = Tree(ensemble, players, row, covers);
    let of_output = |output: usize| {
        let value = |coalition| {
            let trees = ensemble.roots.iter().map(|root| tree.value(*root, coalition, output as u32));
            ensemble.base[output] + trees.sum::<f64>()
        };
        (0..1_usize << count).map(value).collect()
    };
    (0..ensemble.outputs()).map(of_output).collect()
}

/// Shapley's definition.
fn shapley(values: &[f64], players: usize) -> Vec<f64> {
    let factorial = |n: usize| (1..=n).map(|k| k as f64).product::<f64>();
    let of_player = |player: usize| {
        (0..values.len())
            .filter(|coalition| coalition >> player & 1 == 0)
            .map(|coalition| {
                let present = coalition.count_ones() as usize;
                let weight = factorial(present) * factorial(players - 1 - present) / factorial(players);
                weight * (values[coalition | 1 << player] - values[coalition])
            })
            .sum()
    };
    (0..players).map(of_player).collect()
}

/// Compares both methods with all coalitions, with little memory and with much, and checks that values add up.
fn check(random: &mut Random, ensemble: &Ensemble, players: &[Option<u32>], background_rows: usize) {
    let columns = players.len();
    let count = players.iter().flatten().max().map_or(0, |last| *last as usize + 1);
    let constants: Vec<Option<f64>> =
        players.iter().map(|player| player.is_none().then(|| value(random))).collect();
    let settle = |rows: &mut [f64]| {
        for row in rows.chunks_exact_mut(columns) {
            row.iter_mut().zip(&constants).for_each(|(value, constant)| *value = constant.unwrap_or(*value));
        }
    };
    let mut background = rows(random, background_rows, columns);
    let mut explained = rows(random, 4, columns);
    settle(&mut background);
    settle(&mut explained);
    let background = Matrix::new(&background, columns).unwrap();
    let covers = ensemble.covers(&background).unwrap();
    for row in explained.chunks_exact(columns) {
        for bytes in MEMORY {
            for is_interventional in [true, false] {
                let (explainer, games) = if is_interventional {
                    (
                        Explainer::interventional(ensemble, players, &background, bytes).unwrap(),
                        interventional(ensemble, players, count, row, &background),
                    )
                } else {
                    (
                        Explainer::path_dependent(ensemble, players, &background, bytes).unwrap(),
                        path_dependent(ensemble, players, count, row, &covers),
                    )
                };
                let mut values = vec![f64::NAN; ensemble.outputs() * count];
                let mut scratch = explainer.scratch();
                explainer.explain(row, &mut scratch, &mut values).unwrap();
                if !is_interventional && bytes == MEMORY[1] {
                    let yes: Vec<u64> = covers.iter().map(|[yes, _]| *yes).collect();
                    let counted = background_rows as u64;
                    let counted =
                        Explainer::with_covers(ensemble, players, row, &yes, counted, bytes).unwrap();
                    let mut again = vec![f64::NAN; values.len()];
                    counted.explain(row, &mut counted.scratch(), &mut again).unwrap();
                    assert_eq!(again, values, "covers that were counted before are as good");
                }
                for (output, (game, margin)) in games.iter().zip(margins(ensemble, row)).enumerate() {
                    let values = &values[output * count..][..count];
                    let base = explainer.base(output);
                    assert!((base - game[0]).abs() < TOLERANCE, "base {base} of {}", game[0]);
                    let sum: f64 = values.iter().sum();
                    assert!((base + sum - margin).abs() < TOLERANCE, "{base} and {values:?} make {margin}");
                    for (found, expected) in values.iter().zip(shapley(game, count)) {
                        let which = if is_interventional { "interventional" } else { "path-dependent" };
                        assert!(
                            (found - expected).abs() < TOLERANCE,
                            "{which}: {found} of {expected}, {bytes} bytes"
                        );
                    }
                    let mut alone = vec![f64::NAN; count];
                    explainer.explain_output(row, output, &mut scratch, &mut alone).unwrap();
                    assert_eq!(alone, values);
                }
                // An explainer that would not stay within its memory, beyond what the steps of pieces take.
                let tables: usize = explainer.outputs.iter().map(|output| output.pieces.values()).sum();
                assert!(tables * 8 <= bytes, "{tables} numbers in {bytes} bytes");
            }
        }
    }
}

#[test]
fn values_are_those_of_all_coalitions() {
    let mut random = Random::new(20_261_122, "coalitions");
    for case in 0..CASES {
        let shape = Shape {
            columns: 1 + random.below(8),
            outputs: 1 + random.below(3),
            levels: random.below(7),
            leaf: 15,
            only_comparisons: case % 3 == 0,
        };
        let trees = 1 + random.below(4);
        let ensemble = ensemble(&mut random, trees, &shape);
        // Columns by themselves, several as one player, and some that are the same everywhere.
        let players: Vec<Option<u32>> = (0..shape.columns as u32)
            .map(|column| match case % 4 {
                0 => Some(column % 3),
                1 if random.below(4) == 0 => None,
                _ => Some(column),
            })
            .collect();
        let background_rows = 1 + random.below(20);
        check(&mut random, &ensemble, &players, background_rows);
    }
}

#[test]
fn deep_trees_come_back_to_the_same_features() {
    let mut random = Random::new(20_261_122, "depth");
    for case in 0..8 {
        let shape = Shape { columns: 7, outputs: 1, levels: 12, leaf: 12, only_comparisons: case % 2 == 0 };
        let ensemble = ensemble(&mut random, 2, &shape);
        let players: Vec<Option<u32>> =
            (0..7).map(|column| Some(if case < 4 { column } else { column / 2 })).collect();
        check(&mut random, &ensemble, &players, 30);
    }
}

#[test]
fn paths_of_many_players_are_walked() {
    let mut random = Random::new(20_261_122, "chain");
    // A chain of one decision per player: a table would have 2^14 rows.
    let mut chain = ensemble(
        &mut random,
        1,
        &Shape { columns: 1, outputs: 1, levels: 0, leaf: 0, only_comparisons: true },
    );
    (chain.weights, chain.ends) = ((0..15).map(|_| (0, random.normal())).collect(), (1..=15).collect());
    chain.nodes = (0..14)
        .map(|at| Node {
            column: at,
            test: Test::AtMost(random.normal()),
            missing: false,
            yes: Next::Leaf(at),
            no: if at == 13 { Next::Leaf(14) } else { Next::Node(at + 1) },
        })
        .collect();
    chain.roots = vec![Next::Node(0)];
    let (background, row) = (rows(&mut random, 9, 14), rows(&mut random, 1, 14));
    let background = Matrix::new(&background, 14).unwrap();
    let players: Vec<Option<u32>> = (0..14).map(Some).collect();
    let covers = chain.covers(&background).unwrap();
    let explainers = [
        (
            Explainer::interventional(&chain, &players, &background, TABLE_BYTES).unwrap(),
            interventional(&chain, &players, 14, &row, &background),
        ),
        (
            Explainer::path_dependent(&chain, &players, &background, TABLE_BYTES).unwrap(),
            path_dependent(&chain, &players, 14, &row, &covers),
        ),
    ];
    for (explainer, game) in explainers {
        let mut values = vec![0.0; 14];
        explainer.explain(&row, &mut explainer.scratch(), &mut values).unwrap();
        assert!(explainer.outputs[0].walk.bytes() > 0, "the last leaves are walked to");
        for (found, expected) in values.iter().zip(shapley(&game[0], 14)) {
            assert!((found - expected).abs() < TOLERANCE, "{found} of {expected}");
        }
    }
}

#[test]
fn the_longest_paths_are_explained() {
    let mut random = Random::new(20_261_122, "longest");
    // A leaf beside every node; tree ensembles may be as deep as that and no deeper.
    let chain = |random: &mut Random, levels: i64| {
        let node =
            |at: i64| (2 * at, at % 3, "BRANCH_LEQ", at as f32 * 0.03 - 8.0, 2 * at + 1, 2 * at + 2, at % 2);
        let nodes: Vec<_> =
            (0..levels).flat_map(|at| [node(at), leaf(2 * at + 1)]).chain([leaf(2 * levels)]).collect();
        let leaves = (0..levels).map(|at| 2 * at + 1).chain([2 * levels]);
        let leaves: Vec<(i64, f32)> = leaves.map(|at| (at, random.normal() as f32)).collect();
        Ensemble::of_node(&regressor(&nodes, &leaves), Precision::Single)
    };
    let deepest = i64::from(MOST_LEVELS);
    assert_eq!(chain(&mut random, deepest + 1), Err(Unsupported::Levels));
    let made = chain(&mut random, deepest).unwrap();
    check(&mut random, &made, &[Some(0), Some(1), Some(2)], 20);
}

#[test]
fn a_full_background_and_constant_trees() {
    let mut random = Random::new(20_261_122, "background");
    let shape = Shape { columns: 4, outputs: 2, levels: 4, leaf: 10, only_comparisons: false };
    let made = ensemble(&mut random, 3, &shape);
    let players: Vec<Option<u32>> = (0..4).map(Some).collect();
    check(&mut random, &made, &players, MOST_BACKGROUND_ROWS);
    // Trees of one leaf.
    let made = ensemble(&mut random, 3, &Shape { levels: 0, ..shape });
    check(&mut random, &made, &players, 5);
    // No player at all.
    let row = [0.0; 4];
    let explainer =
        Explainer::interventional(&made, &[None; 4], &Matrix::new(&row, 4).unwrap(), TABLE_BYTES).unwrap();
    explainer.explain(&row, &mut explainer.scratch(), &mut []).unwrap();
    assert!((explainer.base(1) - margins(&made, &row)[1]).abs() < TOLERANCE);
}

#[test]
fn what_cannot_be_explained_is_refused() {
    let mut random = Random::new(1, "refused");
    let shape = Shape { columns: 3, outputs: 1, levels: 3, leaf: 0, only_comparisons: true };
    let made = ensemble(&mut random, 8, &shape);
    let explain = |players: &[Option<u32>], rows: &[f64]| {
        let rows = Matrix::new(rows, players.len())?;
        Explainer::interventional(&made, players, &rows, TABLE_BYTES)
    };
    assert_eq!(explain(&[Some(0); 2], &[0.0; 4]).unwrap_err(), Error::Width { found: 2, expected: 3 });
    assert_eq!(explain(&[Some(0); 3], &[]).unwrap_err(), Error::Rows { found: 0, limit: 128 });
    assert_eq!(explain(&[Some(0); 3], &[0.0; 3 * 129]).unwrap_err(), Error::Rows { found: 129, limit: 128 });
    let players = [Some(0), None, Some(1)];
    assert_eq!(explain(&players, &[0.0, 1.0, 0.0, 0.0, 2.0, 0.0]).unwrap_err(), Error::NotConstant(1));
    assert!(explain(&players, &[0.0, f64::NAN, 0.0, 0.0, f64::NAN, 0.0]).is_ok());
    assert_eq!(Matrix::new(&[0.0; 4], 3).unwrap_err(), Error::Width { found: 4, expected: 3 });
    let explainer = explain(&players, &[0.0; 3]).unwrap();
    let mut scratch = explainer.scratch();
    assert_eq!(
        explainer.explain(&[0.0; 2], &mut scratch, &mut [0.0; 2]).unwrap_err(),
        Error::Width { found: 2, expected: 3 }
    );
    assert_eq!(
        explainer.explain(&[0.0; 3], &mut scratch, &mut [0.0; 3]).unwrap_err(),
        Error::Values { found: 3, expected: 2 }
    );
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: Some(name.into()), ints: ints.to_vec(), ..AttributeProto::default() }
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto { name: Some(name.into()), floats: floats.to_vec(), ..AttributeProto::default() }
}

fn texts(name: &str, texts: &[&str]) -> AttributeProto {
    let strings = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    AttributeProto { name: Some(name.into()), strings, ..AttributeProto::default() }
}

fn text(name: &str, text: &str) -> AttributeProto {
    AttributeProto { name: Some(name.into()), s: Some(text.into()), ..AttributeProto::default() }
}

fn int(name: &str, int: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), i: Some(int), ..AttributeProto::default() }
}

fn tensor(name: &str, values: &[f64]) -> AttributeProto {
    let tensor = TensorProto {
        dims: vec![values.len() as i64],
        data_type: Some(11),
        double_data: values.to_vec(),
        ..TensorProto::default()
    };
    AttributeProto { name: Some(name.into()), t: Some(tensor), ..AttributeProto::default() }
}

fn node(kind: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: vec!["x".into()],
        op_type: Some(kind.into()),
        domain: Some("ai.onnx.ml".into()),
        attribute: attributes,
        ..NodeProto::default()
    }
}

/// Number, column, mode, threshold, true and false branch, and whether missing values track true.
type Listed = (i64, i64, &'static str, f32, i64, i64, i64);

/// A tree of the given nodes.
fn tree_of(nodes: &[Listed]) -> Vec<AttributeProto> {
    let all = |part: fn(&Listed) -> i64| nodes.iter().map(part).collect::<Vec<_>>();
    vec![
        ints("nodes_treeids", &vec![0; nodes.len()]),
        ints("nodes_nodeids", &all(|node| node.0)),
        ints("nodes_featureids", &all(|node| node.1)),
        texts("nodes_modes", &nodes.iter().map(|node| node.2).collect::<Vec<_>>()),
        floats("nodes_values", &nodes.iter().map(|node| node.3).collect::<Vec<_>>()),
        ints("nodes_truenodeids", &all(|node| node.4)),
        ints("nodes_falsenodeids", &all(|node| node.5)),
        ints("nodes_missing_value_tracks_true", &all(|node| node.6)),
    ]
}

fn leaf(number: i64) -> Listed {
    (number, 0, "LEAF", 0.0, 0, 0, 0)
}

/// A classifier of two classes by `x <= 0`, whose two leaves have `weights` for each class of `ids`.
fn two_classes(ids: &[i64], weights: &[f32], base: &[f32], transform: &str) -> Result<Ensemble, Unsupported> {
    let mut attributes = tree_of(&[(0, 0, "BRANCH_LEQ", 0.0, 1, 2, 0), leaf(1), leaf(2)]);
    let each = |leaf: i64| vec![leaf; ids.len()];
    attributes.extend([
        ints("class_treeids", &vec![0; weights.len()]),
        ints("class_nodeids", &[each(1), each(2)].concat()),
        ints("class_ids", &[ids, ids].concat()),
        floats("class_weights", weights),
        ints("classlabels_int64s", &[0, 1]),
        text("post_transform", transform),
        floats("base_values", base),
    ]);
    Ensemble::of_node(&node("TreeEnsembleClassifier", attributes), Precision::Single)
}

#[test]
fn two_classes_are_answered_as_onnx_runtime_does() {
    const MIXED: [f32; 2] = [-0.2, 0.7];
    const POSITIVE: [f32; 2] = [0.2, 0.7];
    const BOTH: [f32; 4] = [0.2, -0.2, -0.7, 0.7];
    type Case = (&'static [i64], &'static [f32], &'static [f32], &'static str, [[f64; 2]; 2]);
    // ONNX Runtime 1.31.1's scores for -1 and for 1.
    let cases: [Case; 16] = [
        (&[0], &POSITIVE, &[], "NONE", [[0.8, 0.2], [0.3, 0.7]]),
        (&[0], &MIXED, &[], "NONE", [[0.2, -0.2], [-0.7, 0.7]]),
        (&[0], &POSITIVE, &[0.3], "NONE", [[0.5, 0.5], [0.0, 1.0]]),
        (&[0], &MIXED, &[0.3], "NONE", [[-0.1, 0.1], [-1.0, 1.0]]),
        (&[0], &MIXED, &[0.1, 0.4], "NONE", [[-0.1, 0.0], [0.8, 0.0]]),
        (&[1], &MIXED, &[], "NONE", [[0.0, -0.2], [0.0, 0.7]]),
        (&[1], &MIXED, &[0.3], "NONE", [[0.0, -0.2], [0.0, 0.7]]),
        (&[0, 1], &BOTH, &[], "NONE", [[0.2, -0.2], [-0.7, 0.7]]),
        (&[0, 1], &BOTH, &[0.3], "NONE", [[0.5, -0.2], [-0.4, 0.7]]),
        (&[0], &POSITIVE, &[], "LOGISTIC", [[0.4502, 0.5498], [0.3318, 0.6682]]),
        (&[0], &MIXED, &[0.3], "LOGISTIC", [[0.475, 0.525], [0.2689, 0.7311]]),
        (&[1], &MIXED, &[], "LOGISTIC", [[0.5, 0.4502], [0.5, 0.6682]]),
        (&[0], &MIXED, &[0.3], "SOFTMAX", [[-0.1, 0.1], [-1.0, 1.0]]),
        (&[0], &POSITIVE, &[0.3], "SOFTMAX", [[0.5, 0.5], [0.0, 1.0]]),
        (&[1], &MIXED, &[], "SOFTMAX", [[0.5498, 0.4502], [0.3318, 0.6682]]),
        (&[0, 1], &BOTH, &[], "SOFTMAX", [[0.5987, 0.4013], [0.1978, 0.8022]]),
    ];
    for (ids, weights, base, transform, expected) in cases {
        let read = two_classes(ids, weights, base, transform).unwrap();
        for (value, expected) in [-1.0, 1.0].into_iter().zip(expected) {
            let found = read.answer(&[value]);
            let is_near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-4);
            assert!(found.len() == 2 && is_near, "{ids:?} {base:?} {transform}: {found:?} of {expected:?}");
        }
    }
    // What the second class's leaves add is lost.
    assert_eq!(two_classes(&[0, 1], &BOTH, &[0.1, 0.4], "NONE"), Err(Unsupported::TwoClasses));
    assert_eq!(two_classes(&[1], &MIXED, &[0.1, 0.4], "NONE"), Err(Unsupported::TwoClasses));
    assert_eq!(two_classes(&[0], &MIXED, &[], "PROBIT"), Err(Unsupported::Transform("PROBIT".into())));
}

/// A regressor of one tree whose leaves `1..` add these weights.
fn regressor(nodes: &[Listed], leaves: &[(i64, f32)]) -> NodeProto {
    let mut attributes = tree_of(nodes);
    attributes.extend([
        ints("target_treeids", &vec![0; leaves.len()]),
        ints("target_nodeids", &leaves.iter().map(|leaf| leaf.0).collect::<Vec<_>>()),
        ints("target_ids", &vec![0; leaves.len()]),
        floats("target_weights", &leaves.iter().map(|leaf| leaf.1).collect::<Vec<_>>()),
        int("n_targets", 1),
    ]);
    node("TreeEnsembleRegressor", attributes)
}

#[test]
fn missing_values_go_where_onnx_runtime_sends_them() {
    // ONNX Runtime 1.31.1 for NaN, -∞, 1, 2, 2.5 and ∞ at the threshold 2, where missing values do not track true.
    for (mode, expected) in [
        ("BRANCH_LEQ", [0, 1, 1, 1, 0, 0]),
        ("BRANCH_LT", [0, 1, 1, 0, 0, 0]),
        ("BRANCH_GTE", [0, 0, 0, 1, 1, 1]),
        ("BRANCH_GT", [0, 0, 0, 0, 1, 1]),
        ("BRANCH_EQ", [0, 0, 0, 1, 0, 0]),
        ("BRANCH_NEQ", [1, 1, 1, 0, 1, 1]),
    ] {
        for tracks_true in [0, 1] {
            let file =
                regressor(&[(0, 0, mode, 2.0, 1, 2, tracks_true), leaf(1), leaf(2)], &[(1, 1.0), (2, 0.0)]);
            let read = Ensemble::of_node(&file, Precision::Single).unwrap();
            let values = [f64::NAN, f64::NEG_INFINITY, 1.0, 2.0, 2.5, f64::INFINITY];
            for (at, (value, expected)) in values.into_iter().zip(expected).enumerate() {
                let expected = if at == 0 && tracks_true == 1 { 1 } else { expected };
                assert_eq!(margins(&read, &[value]), [f64::from(expected)], "{mode} {tracks_true} {value}");
            }
        }
    }
}

#[test]
fn a_chain_of_equalities_is_one_membership() {
    let nodes = [
        (0, 0, "BRANCH_EQ", 1.0, 3, 1, 0),
        (1, 0, "BRANCH_EQ", 3.0, 3, 2, 1),
        (2, 0, "BRANCH_EQ", 5.0, 3, 4, 0),
        (3, 1, "BRANCH_LEQ", 0.0, 5, 6, 0),
        leaf(4),
        leaf(5),
        leaf(6),
    ];
    let read =
        Ensemble::of_node(&regressor(&nodes, &[(4, 1.0), (5, 2.0), (6, 3.0)]), Precision::Single).unwrap();
    assert_eq!(read.nodes.len(), 2);
    for (value, expected) in [(1.0, 2.0), (2.0, 1.0), (3.0, 2.0), (5.0, 2.0), (f64::NAN, 1.0)] {
        assert_eq!(margins(&read, &[value, -1.0]), [expected]);
    }
    // Another feature in between: two ways to one node, which is no tree.
    let mut other = nodes;
    other[1].1 = 1;
    let refused = Ensemble::of_node(&regressor(&other, &[(4, 1.0), (5, 2.0), (6, 3.0)]), Precision::Single);
    assert_eq!(refused, Err(Unsupported::Shared(0)));
    // A way back.
    let circle = [(0, 0, "BRANCH_LEQ", 1.0, 1, 2, 0), (1, 1, "BRANCH_LEQ", 3.0, 0, 2, 1), leaf(2)];
    assert_eq!(
        Ensemble::of_node(&regressor(&circle, &[(2, 1.0)]), Precision::Single),
        Err(Unsupported::Shared(0))
    );
}

#[test]
fn chains_that_disagree_about_missing_values_are_read_as_onnx_runtime_does() {
    // What ONNX Runtime 1.31.1 answers for NaN, by the type of its input.
    for (members, tracks_true, single, double) in [
        (&[1.0, 2.0][..], &[0, 1][..], 0.0, 0.0),
        (&[1.0, 2.0], &[1, 0], 1.0, 1.0),
        (&[31.0, 32.0], &[0, 1], 0.0, 0.0),
        (&[5.0, 33.0], &[0, 1], 1.0, 0.0),
        (&[64.0, 65.0], &[0, 1], 1.0, 1.0),
        (&[0.0, 1.0], &[0, 1], 1.0, 1.0),
        (&[2.5, 3.0], &[0, 1], 1.0, 1.0),
        (&[2.0, 40.0], &[0, 1], 1.0, 0.0),
        (&[1.0, 2.0, 3.0, 40.0], &[0, 1, 1, 0], 0.0, 0.0),
        (&[1.0, 2.0, 3.0, 40.0], &[0, 0, 0, 1], 1.0, 0.0),
        (&[1.0, 70.0, 2.0], &[0, 0, 1], 1.0, 1.0),
    ] {
        let count = members.len() as i64;
        let chain = members.iter().zip(tracks_true).zip(0..).map(|((member, tracks), at)| {
            let next = if at + 1 == count { count + 1 } else { at + 1 };
            (at, 0, "BRANCH_EQ", *member as f32, count, next, *tracks)
        });
        let nodes: Vec<Listed> = chain.chain([leaf(count), leaf(count + 1)]).collect();
        for (precision, expected) in [(Precision::Single, single), (Precision::Double, double)] {
            let read = Ensemble::of_node(&regressor(&nodes, &[(count, 1.0)]), precision).unwrap();
            assert_eq!(margins(&read, &[f64::NAN]), [expected], "{members:?} {tracks_true:?} {precision:?}");
            let is_in = |value: f64| f64::from(u8::from(members.contains(&value)));
            for value in [1.0, 2.0, 4.0, 33.0, 40.0] {
                assert_eq!(margins(&read, &[value]), [is_in(value)], "{members:?} {value}");
            }
        }
    }
}

/// A tree of so many levels, each of whose nodes asks for a column of its own if `is_wide`, whether it is at most 0.
fn full(levels: u32, is_wide: bool) -> Ensemble {
    let nodes = (1_u32 << levels) - 1;
    let next = |at: u32| if at < nodes { Next::Node(at) } else { Next::Leaf(at - nodes) };
    let node = |at: u32| Node {
        column: if is_wide { at } else { 0 },
        test: Test::AtMost(0.0),
        missing: false,
        yes: next(2 * at + 1),
        no: next(2 * at + 2),
    };
    Ensemble {
        precision: Precision::Single,
        nodes: (0..nodes).map(node).collect(),
        roots: vec![next(0)],
        ends: (1..=nodes + 1).collect(),
        weights: (0..=nodes).map(|leaf| (0, f64::from(leaf % 7) - 2.0)).collect(),
        base: vec![0.5],
        link: Link::Identity,
        columns: Columns::Each,
    }
}

#[test]
fn leaves_of_many_columns_take_no_longer_than_their_paths() {
    // Were each leaf's path made of all columns that were asked for before, this took hours.
    let (made, mut random) = (full(13, true), Random::new(4, "wide"));
    let width = made.width();
    let players: Vec<Option<u32>> = (0..width as u32).map(Some).collect();
    let background = rows(&mut random, 5, width);
    let matrix = Matrix::new(&background, width).unwrap();
    for memory in MEMORY {
        for explainer in [
            Explainer::interventional(&made, &players, &matrix, memory).unwrap(),
            Explainer::path_dependent(&made, &players, &matrix, memory).unwrap(),
        ] {
            let row = rows(&mut random, 1, width);
            let mut values = vec![0.0; width];
            explainer.explain(&row, &mut explainer.scratch(), &mut values).unwrap();
            let sum = explainer.base(0) + values.iter().sum::<f64>();
            assert!((sum - margins(&made, &row)[0]).abs() < TOLERANCE);
        }
    }
}

#[test]
fn trees_that_are_too_large_are_refused() {
    let mut made = full(16, false);
    made.roots = vec![made.roots[0]; 11];
    let found = 11 * (1 << 16) * (16 + 8);
    let error = Error::TooLarge { leaves: 1 << 16, found };
    let refused = Err(error.clone());
    let matrix = Matrix::new(&[0.0; 3], 1).unwrap();
    let tried = |made: &Ensemble| {
        let covers = vec![0; made.nodes.len()];
        [
            Explainer::interventional(made, &[Some(0)], &matrix, 0).map(|_| ()),
            Explainer::path_dependent(made, &[Some(0)], &matrix, 0).map(|_| ()),
            Explainer::with_covers(made, &[Some(0)], &[0.0], &covers, 3, 0).map(|_| ()),
        ]
    };
    assert_eq!(tried(&made), [refused.clone(), refused.clone(), refused.clone()]);
    let sentence = error.to_string();
    assert!(sentence.contains("65536 leaves") && sentence.contains("17301504 steps"), "{sentence}");
    made.roots.truncate(1);
    assert_eq!(tried(&made), [Ok(()), Ok(()), Ok(())]);
}

#[test]
fn memory_counts_trees_and_tables() {
    let made = full(9, true);
    assert!(made.bytes() >= 511 * size_of::<Node>() + 512 * size_of::<(u32, f64)>());
    let players: Vec<Option<u32>> = (0..511).map(Some).collect();
    let zeros = vec![0.0; 511];
    let matrix = Matrix::new(&zeros, 511).unwrap();
    let explainer = |memory| Explainer::interventional(&made, &players, &matrix, memory).unwrap().bytes();
    // Without tables there are splits, and thresholds.
    assert!(explainer(0) > 511 * 80, "{}", explainer(0));
}

#[test]
fn trees_without_columns_are_explained() {
    let made = full(0, false);
    assert_eq!((made.width(), margins(&made, &[])), (0, vec![-1.5]));
    assert_eq!(Matrix::new(&[], 0).unwrap_err(), Error::Width { found: 0, expected: 0 });
    let explainer = Explainer::with_covers(&made, &[], &[], &[], 3, TABLE_BYTES).unwrap();
    assert_eq!((explainer.players(), explainer.base(0)), (0, -1.5));
    assert_eq!(explainer.explain(&[], &mut explainer.scratch(), &mut []), Ok(()));
}

#[test]
fn trees_by_index_are_read() {
    let file = node(
        "TreeEnsemble",
        vec![
            int("n_targets", 2),
            ints("tree_roots", &[0, 2]),
            ints("nodes_featureids", &[0, 1, 1]),
            tensor("nodes_modes", &[6.0, 0.0, 3.0]),
            tensor("nodes_splits", &[0.0, 0.5, 0.1]),
            ints("nodes_truenodeids", &[1, 0, 1]),
            ints("nodes_falsenodeids", &[2, 1, 2]),
            ints("nodes_trueleafs", &[0, 1, 1]),
            ints("nodes_falseleafs", &[1, 1, 1]),
            ints("nodes_missing_value_tracks_true", &[1, 0, 0]),
            tensor("membership_values", &[2.0, 7.0, f64::NAN]),
            ints("leaf_targetids", &[0, 1, 0]),
            tensor("leaf_weights", &[1.0, 10.0, 100.0]),
            int("aggregate_function", 0),
        ],
    );
    let read = Ensemble::of_node(&file, Precision::Double).unwrap();
    assert_eq!((read.outputs(), read.trees(), read.width()), (2, 2, 2));
    // The mean of two trees, to three places: nobody rounds 0.1 to float32 here.
    for (row, expected) in [
        ([2.0, 0.1], [50.5, 0.0]),
        ([7.0, 0.100_000_000_1], [0.5, 5.0]),
        ([3.0, 0.1], [100.0, 0.0]),
        ([f64::NAN, 0.6], [0.0, 10.0]),
    ] {
        assert_eq!(margins(&read, &row), expected, "{row:?}");
    }
    let mut bad = file.clone();
    bad.attribute[1] = ints("tree_roots", &[0, 3]);
    assert!(matches!(Ensemble::of_node(&bad, Precision::Double), Err(Unsupported::Malformed(_))));
    bad.attribute[1] = ints("tree_roots", &[0, 1]);
    assert_eq!(Ensemble::of_node(&bad, Precision::Double), Err(Unsupported::Shared(1)));
    bad.attribute.pop();
    bad.attribute.push(int("aggregate_function", 2));
    assert_eq!(Ensemble::of_node(&bad, Precision::Double), Err(Unsupported::Aggregate("2".into())));
}

#[test]
fn the_graph_says_how_rows_are_rounded() {
    let file = regressor(&[(0, 0, "BRANCH_LEQ", 0.1, 1, 2, 0), leaf(1), leaf(2)], &[(1, 1.0), (2, 0.0)]);
    let graph = |element: i32| {
        let kind = TypeValue::TensorType(TypeTensorType { elem_type: Some(element), shape: None });
        let r#type = Some(TypeProto { value: Some(kind), ..TypeProto::default() });
        let input = ValueInfoProto { name: Some("x".into()), r#type, ..ValueInfoProto::default() };
        GraphProto { node: vec![file.clone()], input: vec![input], ..GraphProto::default() }
    };
    let (at, single) = Ensemble::of_graph(&graph(1)).unwrap();
    assert_eq!((at, single.precision()), (0, Precision::Single));
    // 0.1 in float32 is above the float64 of that name.
    assert_eq!(margins(&single, &[0.100_000_001]), [1.0]);
    let double = Ensemble::of_graph(&graph(11)).unwrap().1;
    assert_eq!(margins(&double, &[0.1]), [1.0]);
    assert_eq!(margins(&double, &[0.100_000_002]), [0.0]);
    assert_eq!(Ensemble::of_graph(&graph(8)), Err(Unsupported::Input(8)));
    let mut two = graph(1);
    two.node.push(file.clone());
    assert_eq!(Ensemble::of_graph(&two), Err(Unsupported::Count(2)));
    assert_eq!(Ensemble::of_graph(&GraphProto::default()), Err(Unsupported::Count(0)));
    let mut cast = graph(8);
    cast.node[0].input = vec!["y".into()];
    let mut maker = node("Cast", vec![int("to", 11)]);
    maker.output = vec!["y".into()];
    cast.node.push(maker);
    assert_eq!(Ensemble::of_graph(&cast).unwrap().1.precision(), Precision::Double);
}

#[test]
fn covers_of_other_trees_are_refused() {
    let mut random = Random::new(11, "covers");
    let shape = Shape { columns: 3, outputs: 1, levels: 4, leaf: 0, only_comparisons: true };
    let ensemble = ensemble(&mut random, 2, &shape);
    let players = [Some(0), Some(1), None];
    let mut background = rows(&mut random, 20, 3);
    background.chunks_exact_mut(3).for_each(|row| row[2] = 1.0);
    let covers = ensemble.covers(&Matrix::new(&background, 3).unwrap()).unwrap();
    assert_eq!(
        ensemble.both_covers(&covers.iter().map(|[yes, _]| *yes).collect::<Vec<_>>(), 20),
        Ok(covers.clone())
    );
    let mut yes: Vec<u64> = covers.iter().map(|[yes, _]| *yes).collect();
    let make = |constants: &[f64], yes: &[u64], rows: u64| {
        Explainer::with_covers(&ensemble, &players, constants, yes, rows, TABLE_BYTES).map(|_| ())
    };
    assert_eq!(make(&[0.0, 0.0, 1.0], &yes, 20), Ok(()));
    assert_eq!(make(&[0.0, 0.0, 1.0], &yes, 0), Err(Error::Rows { found: 0, limit: usize::MAX }));
    assert_eq!(make(&[0.0; 2], &yes, 20), Err(Error::Width { found: 2, expected: 3 }));
    assert_eq!(make(&[0.0; 3], &yes[1..], 20), Err(Error::Covers { found: 29, expected: 30 }));
    let Next::Node(root) = ensemble.roots[0] else { panic!("a tree of four levels begins with a node") };
    yes[root as usize] = 21;
    let node = root as usize;
    assert_eq!(make(&[0.0; 3], &yes, 20), Err(Error::Cover { node, found: 21, expected: 20 }));
    yes[root as usize] = u64::MAX;
    assert_eq!(make(&[0.0; 3], &yes, 20), Err(Error::Cover { node, found: u64::MAX, expected: 20 }));
}
