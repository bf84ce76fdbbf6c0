//! Exact Shapley values of tree ensembles, from the nodes of an ONNX graph.
//!
//! Players are what a client knows as one feature: a column of the encoded rows, or several together. Two value functions:
//!
//! - **interventional**: `v(S)` is the mean margin over at most [`MOST_BACKGROUND_ROWS`] background rows, each with the
//!   explained row's columns for the players in `S` (Janzing et al. 2020; Lundberg et al. 2020);
//! - **path-dependent**: a tree's value for `S` goes down both branches where an absent player decides, weighted by how many
//!   reference rows took them (Lundberg et al. 2020). Where no reference row got to, both branches count half; `shap` refuses
//!   such trees.
//!
//! Units are those of the margin: log-odds of a binary classifier whose [`Link`] is logistic, a class's score before the
//! softmax, the target's own of a regression. A group of columns is one player, exactly: its conditions on a path hold all
//! together or not.
//!
//! What depends on the background alone is computed at load: how much each of a piece's leaves pays to whom for every
//! combination of conditions that a row can meet. Explaining a row is then a sum of table rows. What does not fit the
//! memory that tables may take is walked for each row.

mod ensemble;
mod game;
mod grove;
mod pieces;
mod ranks;
mod read;
#[cfg(test)]
mod tests;
mod walk;

pub use ensemble::{Columns, Ensemble, Link, Precision};
pub use read::{MOST_LEVELS, Unsupported};

use ensemble::Next;
use game::{Odds, StandIns, Tables};
use grove::{Ground, Role, Tree};
use pieces::{Options, Pieces};
use ranks::Cuts;
use walk::Walk;

/// Background rows at most, one bit of a word each.
pub const MOST_BACKGROUND_ROWS: usize = 128;

/// Memory that the tables of one explainer take at most, unless told otherwise.
pub const TABLE_BYTES: usize = 128 << 20;

/// Steps that preparing an explainer takes at most: for each leaf and each output that it adds to, one for each decision on the way
/// to it, and [`LEAF_STEPS`] for what is kept of it. Four million take some half a second.
pub const MOST_STEPS: u64 = 1 << 24;

/// As many steps as the memory for a leaf counts for.
const LEAF_STEPS: u64 = 8;

/// Why an explainer cannot be made, or a row not be explained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Rows of another length.
    #[error("rows have {found} columns, expected {expected}")]
    Width {
        /// Columns that are there.
        found: usize,
        /// Columns that the trees, or the players, speak of.
        expected: usize,
    },
    /// No rows, or more than can be taken.
    #[error("found {found} background or reference rows, expected 1 to {limit}")]
    Rows {
        /// Rows that are there.
        found: usize,
        /// Rows at most.
        limit: usize,
    },
    /// Covers of other trees.
    #[error("found covers of {found} nodes, expected {expected}")]
    Covers {
        /// Nodes that have one.
        found: usize,
        /// Nodes that there are.
        expected: usize,
    },
    /// A node whose true branch more rows take than get to it.
    #[error(
        "found {found} rows on the true branch of node {node}, expected at most the {expected} that get to it"
    )]
    Cover {
        /// The node, from 0.
        node: usize,
        /// Rows on its true branch.
        found: u64,
        /// Rows that get to it.
        expected: u64,
    },
    /// Trees that would take too long to prepare, and too much memory.
    #[error(
        "the trees have {leaves} leaves, and preparing the ways to them for all outputs takes {found} steps, \
         expected at most {MOST_STEPS}; fewer or smaller trees take less"
    )]
    TooLarge {
        /// Leaves of all trees.
        leaves: usize,
        /// Steps that preparing the trees would take.
        found: u64,
    },
    /// A column without player that is not the same everywhere.
    #[error("column {0} belongs to no player, but its value is not the same in all rows")]
    NotConstant(usize),
    /// A list of values of another length.
    #[error("there is room for {found} values, expected {expected}: one per output and player")]
    Values {
        /// Room that is there.
        found: usize,
        /// Outputs times players.
        expected: usize,
    },
}

/// Encoded rows, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f64],
    columns: usize,
    rows: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` numbers each.
    ///
    /// # Errors
    /// [`Error::Width`] if `values` holds no whole number of rows, or rows have no columns.
    pub fn new(values: &'a [f64], columns: usize) -> Result<Self, Error> {
        if columns == 0 || !values.len().is_multiple_of(columns) {
            return Err(Error::Width { found: values.len(), expected: columns });
        }
        Ok(Self { values, columns, rows: values.len() / columns })
    }

    /// One row, which may have no columns.
    fn one(values: &'a [f64]) -> Self {
        Self { values, columns: values.len(), rows: 1 }
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f64]> + use<'a> {
        let Self { values, columns, rows } = *self;
        (0..rows).map(move |row| &values[row * columns..(row + 1) * columns])
    }
}

/// How a row's margins came about, player by player: everything that does not depend on the row.
#[derive(Debug)]
pub struct Explainer {
    precision: Precision,
    /// Encoded columns of a row.
    width: usize,
    players: usize,
    /// The players' columns: where they stand in a row, and their thresholds.
    columns: Vec<(usize, Cuts)>,
    outputs: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    base: f64,
    pieces: Pieces,
    walk: Walk,
}

/// Memory to explain one row after the other in, so that none is allocated for each.
#[derive(Debug, Clone)]
pub struct Scratch {
    ranks: Vec<u32>,
    walk: walk::State,
}

impl Explainer {
    /// Explains against background rows of equal weight. `players` says for each encoded column whose it is, none for one
    /// that is the same in every row; `values` are then in the order of the players' numbers.
    ///
    /// # Errors
    /// [`Error`] if there are no rows or more than [`MOST_BACKGROUND_ROWS`], they do not have one column for each entry of
    /// `players`, these are fewer than the trees ask for, or a column without player differs between rows.
    pub fn interventional(
        ensemble: &Ensemble,
        players: &[Option<u32>],
        background: &Matrix<'_>,
        table_bytes: usize,
    ) -> Result<Self, Error> {
        let count = background.rows().len();
        if !(1..=MOST_BACKGROUND_ROWS).contains(&count) {
            return Err(Error::Rows { found: count, limit: MOST_BACKGROUND_ROWS });
        }
        let roots = roots(ensemble)?;
        let roles = roles(ensemble, players, background)?;
        let all = u128::MAX >> (128 - count);
        let holds = ensemble.nodes.iter().map(|node| {
            let holds = |row: &[f64]| node.holds(ensemble.rounded(row[node.column as usize]));
            let rows = background.rows().enumerate();
            let rows = rows.fold(0, |rows, (at, row)| rows | u128::from(holds(row)) << at);
            [rows, all & !rows].map(|rows| Odds { rows, ratio: 1.0 })
        });
        let odds = holds.collect();
        let stand_ins = StandIns { all, is_background: true };
        Ok(Self::new(ensemble, players, (roots, roles), odds, stand_ins, table_bytes))
    }

    /// Explains by how many of the reference rows take each branch. `players` is as for [`Explainer::interventional`].
    ///
    /// # Errors
    /// [`Error`] as there, but that there may be any number of rows.
    pub fn path_dependent(
        ensemble: &Ensemble,
        players: &[Option<u32>],
        reference: &Matrix<'_>,
        table_bytes: usize,
    ) -> Result<Self, Error> {
        if reference.rows().len() == 0 {
            return Err(Error::Rows { found: 0, limit: usize::MAX });
        }
        let roots = roots(ensemble)?;
        let roles = roles(ensemble, players, reference)?;
        let covers = ensemble.covers(reference)?;
        Ok(Self::by_covers(ensemble, players, (roots, roles), &covers, table_bytes))
    }

    /// Explains as [`Explainer::path_dependent`] does, by covers that were counted before: of `rows` reference rows, `covers` says
    /// for each node how many took its true branch, as [`Ensemble::covers`] counts them. `constants` is one row, of which only
    /// the columns without player are looked at.
    ///
    /// # Errors
    /// [`Error`] if there are no rows, `covers` has not one number per node or one that is greater than what gets to its node, or
    /// `constants` has not one column for each entry of `players`, or these are fewer than the trees ask for.
    pub fn with_covers(
        ensemble: &Ensemble,
        players: &[Option<u32>],
        constants: &[f64],
        covers: &[u64],
        rows: u64,
        table_bytes: usize,
    ) -> Result<Self, Error> {
        if rows == 0 {
            return Err(Error::Rows { found: 0, limit: usize::MAX });
        }
        if constants.len() != players.len() {
            return Err(Error::Width { found: constants.len(), expected: players.len() });
        }
        let roots = roots(ensemble)?;
        let roles = roles(ensemble, players, &Matrix::one(constants))?;
        let covers = ensemble.both_covers(covers, rows)?;
        Ok(Self::by_covers(ensemble, players, (roots, roles), &covers, table_bytes))
    }

    fn by_covers(
        ensemble: &Ensemble,
        players: &[Option<u32>],
        told: (Vec<Vec<Next>>, Vec<Role>),
        covers: &[[u64; 2]],
        table_bytes: usize,
    ) -> Self {
        let odds = covers.iter().map(|[yes, no]| {
            let ratio = |cover: u64| if yes + no == 0 { 0.5 } else { cover as f64 / (yes + no) as f64 };
            [Odds { rows: 1, ratio: ratio(*yes) }, Odds { rows: 1, ratio: ratio(*no) }]
        });
        let odds = odds.collect();
        Self::new(ensemble, players, told, odds, StandIns { all: 1, is_background: false }, table_bytes)
    }

    fn new(
        ensemble: &Ensemble,
        players: &[Option<u32>],
        (roots, roles): (Vec<Vec<Next>>, Vec<Role>),
        odds: Vec<[Odds; 2]>,
        stand_ins: StandIns,
        table_bytes: usize,
    ) -> Self {
        let (mut places, mut of) = (Vec::new(), Vec::new());
        for (column, role) in roles.iter().enumerate() {
            if let Role::Of { player, .. } = role {
                places.push(column);
                of.push(*player);
            }
        }
        let mut thresholds = vec![Vec::new(); places.len()];
        for node in &ensemble.nodes {
            if let Role::Of { at, .. } = roles[node.column as usize] {
                thresholds[at as usize].extend_from_slice(node.test.thresholds());
            }
        }
        let cuts = thresholds.into_iter().map(Cuts::new).collect();
        let ground = Ground { ensemble, roles, cuts, players: of, stand_ins, odds };
        let share = table_bytes / ensemble.outputs();
        let outputs = roots.iter().enumerate();
        let outputs = outputs.map(|(output, roots)| Output::new(&ground, roots, output, share)).collect();
        Self {
            precision: ensemble.precision(),
            width: players.len(),
            players: players.iter().flatten().max().map_or(0, |last| *last as usize + 1),
            columns: places.into_iter().zip(ground.cuts).collect(),
            outputs,
        }
    }

    /// Number of outputs, as of the ensemble.
    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// Number of players: one more than the last one's number.
    pub fn players(&self) -> usize {
        self.players
    }

    /// What an output's values are relative to: the margin when every player is absent.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn base(&self, output: usize) -> f64 {
        self.outputs[output].base
    }

    /// Memory that it takes, in bytes: tables, trees, and thresholds.
    pub fn bytes(&self) -> usize {
        let outputs = self.outputs.iter().map(|output| output.pieces.bytes() + output.walk.bytes());
        let cuts = self.columns.iter().map(|(_, cuts)| cuts.bytes());
        size_of_val(self.columns.as_slice())
            + size_of_val(self.outputs.as_slice())
            + outputs.chain(cuts).sum::<usize>()
    }

    /// Memory for [`Explainer::explain`], for one row at a time.
    pub fn scratch(&self) -> Scratch {
        Scratch {
            ranks: vec![0; self.columns.len()],
            walk: Walk::state(self.outputs.iter().map(|output| &output.walk)),
        }
    }

    /// Writes how much each player of a row moves each output away from its base: `values[output * players + player]`.
    /// With the base they add up to the margin, but for rounding in double precision.
    ///
    /// # Errors
    /// [`Error::Width`] if the row has not one number per encoded column, [`Error::Values`] if `values` has another length.
    pub fn explain(&self, row: &[f64], scratch: &mut Scratch, values: &mut [f64]) -> Result<(), Error> {
        let expected = self.outputs.len() * self.players;
        if values.len() != expected {
            return Err(Error::Values { found: values.len(), expected });
        }
        self.rank(row, scratch)?;
        values.fill(0.0);
        if self.players == 0 {
            return Ok(());
        }
        let of_output = values.chunks_exact_mut(self.players);
        for (output, values) in self.outputs.iter().zip(of_output) {
            output.explain(&scratch.ranks, &mut scratch.walk, values);
        }
        Ok(())
    }

    /// As [`Explainer::explain`], of one output: `values[player]`.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn explain_output(
        &self,
        row: &[f64],
        output: usize,
        scratch: &mut Scratch,
        values: &mut [f64],
    ) -> Result<(), Error> {
        if values.len() != self.players {
            return Err(Error::Values { found: values.len(), expected: self.players });
        }
        self.rank(row, scratch)?;
        values.fill(0.0);
        self.outputs[output].explain(&scratch.ranks, &mut scratch.walk, values);
        Ok(())
    }

    /// Finds where the values of a row stand among the thresholds.
    #[expect(clippy::cast_possible_truncation, reason = "the graph rounds as well")]
    fn rank(&self, row: &[f64], scratch: &mut Scratch) -> Result<(), Error> {
        if row.len() != self.width {
            return Err(Error::Width { found: row.len(), expected: self.width });
        }
        let is_single = self.precision == Precision::Single;
        for ((place, cuts), rank) in self.columns.iter().zip(&mut scratch.ranks) {
            let value = row[*place];
            *rank = cuts.rank(if is_single { f64::from(value as f32) } else { value });
        }
        Ok(())
    }
}

impl Output {
    /// `roots` are those of the trees that add to the output.
    fn new(ground: &Ground<'_>, roots: &[Next], output: usize, table_bytes: usize) -> Self {
        let number = u32::try_from(output).unwrap_or(u32::MAX);
        let trees: Vec<Tree> = roots.iter().map(|root| Tree::new(ground, *root, number)).collect();
        let options: Vec<Options> = trees.iter().map(|tree| Options::new(tree, ground)).collect();
        let plans = pieces::plan(&trees, &options, table_bytes);
        let (mut pieces, mut walk, mut tables) = (Pieces::default(), Walk::default(), Tables::default());
        let mut base = ground.ensemble.base[output];
        for ((tree, options), plan) in trees.iter().zip(&options).zip(plans) {
            base += tree.expected(ground.stand_ins);
            // Paths are walked again, where there are tables: those of all trees would take much memory.
            let mut planned = plan.pieces.iter().peekable();
            let is_wanted = |start, end| {
                let next = plan.pieces.partition_point(|piece: &(u32, u32)| piece.0 < start);
                plan.pieces.get(next).is_some_and(|piece| piece.0 < end)
            };
            pieces::paths(tree, ground, &options.ranges).each(is_wanted, |block, paths| {
                let end = block.start + paths.len() as u32;
                while let Some((from, to)) = planned.next_if(|piece| piece.0 < end) {
                    let paths = &paths[(from - block.start) as usize..(to - block.start) as usize];
                    pieces.push(paths, ground.stand_ins, &mut tables);
                }
            });
            walk.push(tree, ground, &plan.direct);
        }
        pieces.shrink();
        walk.finish(ground.stand_ins);
        Self { base, pieces, walk }
    }

    fn explain(&self, ranks: &[u32], walk: &mut walk::State, values: &mut [f64]) {
        self.pieces.explain(ranks, values);
        self.walk.explain(ranks, walk, values);
    }
}

/// For each output the roots of the trees that add to it.
fn roots(ensemble: &Ensemble) -> Result<Vec<Vec<Next>>, Error> {
    let mut roots = vec![Vec::new(); ensemble.outputs()];
    let mut found = 0;
    for root in &ensemble.roots {
        let mut open = vec![(*root, LEAF_STEPS)];
        while let Some((next, steps)) = open.pop() {
            match next {
                Next::Node(at) => {
                    let node = &ensemble.nodes[at as usize];
                    open.extend([(node.yes, steps + 1), (node.no, steps + 1)]);
                }
                Next::Leaf(leaf) => {
                    for (output, _) in ensemble.of_leaf(leaf) {
                        found += steps;
                        let of_output: &mut Vec<Next> = &mut roots[*output as usize];
                        if of_output.last() != Some(root) {
                            of_output.push(*root);
                        }
                    }
                }
            }
        }
    }
    if found > MOST_STEPS {
        return Err(Error::TooLarge { leaves: ensemble.leaves(), found });
    }
    Ok(roots)
}

/// What each encoded column is.
fn roles(ensemble: &Ensemble, players: &[Option<u32>], rows: &Matrix<'_>) -> Result<Vec<Role>, Error> {
    if rows.columns() != players.len() {
        return Err(Error::Width { found: rows.columns(), expected: players.len() });
    }
    ensemble.check_width(players.len())?;
    let mut is_used = vec![false; players.len()];
    ensemble.nodes.iter().for_each(|node| is_used[node.column as usize] = true);
    let mut at = 0;
    let role = |(column, (player, is_used)): (usize, (&Option<u32>, bool))| match player {
        _ if !is_used => Ok(Role::Unused),
        Some(player) => {
            at += 1;
            Ok(Role::Of { player: *player, at: at - 1 })
        }
        None => {
            let mut values = rows.rows().map(|row| ensemble.rounded(row[column]));
            let first = values.next().unwrap_or(f64::NAN);
            let is_same = values.all(|value| value == first || (value.is_nan() && first.is_nan()));
            if is_same { Ok(Role::Constant(first)) } else { Err(Error::NotConstant(column)) }
        }
    };
    players.iter().zip(is_used).enumerate().map(role).collect()
}
