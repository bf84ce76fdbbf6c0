//! Neighbouring leaves taken together: one look-up of what all of them are worth to each player.
//!
//! For some leaves of a tree a column matters only by which of their conditions its value meets, and few combinations
//! occur. A piece is a table over the combinations of all its columns. A row's place in it is a sum: each threshold that
//! the row's value has reached moves it by a fixed step. Joining leaves saves look-ups, and memory too as long as they
//! share conditions; where it stops doing so is decided by a price for memory that rises until everything fits.

use std::hint::{black_box, select_unpredictable};

use super::game::{Odds, StandIns, Tables};
use super::grove::{Branch, Ground, Path, Paths, Tree};

/// Leaves of one piece at most, which are the bits of a word.
const MOST_LEAVES: usize = 64;
/// Combinations of one piece at most.
const MOST_ROWS: usize = 4096;
/// Players on a leaf's path at most, as a table doubles with each.
const MOST_PLAYERS: usize = 12;

/// Measured costs in nanoseconds, by which plans are compared: a look-up, a step of one, a number of one, and what a leaf
/// without table takes per player of its path and altogether.
const LOOKUP: f64 = 20.0;
const STEP: f64 = 0.8;
const NUMBER: f64 = 1.0;
const DIRECT: f64 = 40.0;
const DIRECT_PLAYER: f64 = 15.0;

/// Pieces that are looked up at once.
const TOGETHER: usize = 64;

/// Prices of a byte in nanoseconds.
const FIRST_PRICE: f64 = 0.002;
const PRICE_GROWTH: f64 = 1.6;

/// The columns of a piece: which combinations of conditions their values meet.
struct Frame {
    columns: Vec<FrameColumn>,
    /// Ascending.
    players: Vec<u32>,
    rows: usize,
    steps: usize,
}

struct FrameColumn {
    column: u32,
    /// The different sets of leaves whose conditions a value meets, one bit per leaf.
    states: Vec<u64>,
    /// The state of rank 0.
    first: usize,
    /// Ranks from which on the state is another one.
    changes: Vec<(u32, usize)>,
}

impl Frame {
    /// None if the piece would be too large.
    fn new(paths: &[Path]) -> Option<Self> {
        if paths.len() > MOST_LEAVES || paths.iter().any(|path| path.players.len() > MOST_PLAYERS) {
            return None;
        }
        let mut flips: Vec<(u32, u32, u64)> = Vec::new();
        let mut firsts: Vec<(u32, u64)> = Vec::new();
        let mut players: Vec<u32> = Vec::new();
        for (leaf, path) in paths.iter().enumerate() {
            let bit = 1 << leaf;
            for condition in &path.columns {
                let column = condition.column;
                flips.extend(condition.ranks.flips.iter().map(|flip| (column, *flip, bit)));
                let at = firsts.iter().position(|(found, _)| *found == column).unwrap_or_else(|| {
                    firsts.push((column, u64::MAX));
                    firsts.len() - 1
                });
                if !condition.ranks.first {
                    firsts[at].1 &= !bit;
                }
            }
            players.extend(path.players.iter().map(|(player, _)| *player));
        }
        players.sort_unstable();
        players.dedup();
        firsts.sort_unstable();
        flips.sort_unstable();
        let mut columns: Vec<FrameColumn> = Vec::with_capacity(firsts.len());
        let (mut rows, mut steps, mut flips) = (1, 0, flips.into_iter().peekable());
        for (column, mut state) in firsts {
            let mut found = FrameColumn { column, states: vec![state], first: 0, changes: Vec::new() };
            let mut last = 0;
            while let Some((_, flip, bit)) = flips.next_if(|(of, _, _)| *of == column) {
                state ^= bit;
                // All flips of one rank are one change.
                if flips.peek().is_some_and(|(of, next, _)| (*of, *next) == (column, flip)) {
                    continue;
                }
                let at = found.states.iter().position(|seen| *seen == state).unwrap_or_else(|| {
                    found.states.push(state);
                    found.states.len() - 1
                });
                if at != last {
                    found.changes.push((flip, at));
                    last = at;
                }
            }
            rows *= found.states.len();
            steps += found.changes.len();
            if rows > MOST_ROWS {
                return None;
            }
            columns.push(found);
        }
        Some(Self { columns, players, rows, steps })
    }
}

/// How large a piece would be.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: u32,
    width: u32,
    steps: u32,
}

impl Size {
    fn bytes(self) -> f64 {
        f64::from(self.rows) * f64::from(self.width) * 8.0
    }

    fn cost(self, price: f64) -> f64 {
        if self.width == 0 {
            return 0.0;
        }
        LOOKUP + f64::from(self.steps) * STEP + f64::from(self.width) * NUMBER + self.bytes() * price
    }
}

/// What could be done with one tree.
#[derive(Debug)]
pub(super) struct Options {
    /// By split; none where the piece would be too large.
    splits: Vec<Option<Size>>,
    /// By leaf, with the number of its players.
    leaves: Vec<(Option<Size>, u32)>,
    pub(super) ranges: Vec<(u32, u32)>,
}

/// What is done with the leaves of one tree.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Ranges of leaves, each of which is a piece, in order.
    pub(super) pieces: Vec<(u32, u32)>,
    /// Leaves without table, in order.
    pub(super) direct: Vec<u32>,
}

/// What the leaves below a branch take.
#[derive(Debug, Clone, Copy, Default)]
struct Price {
    cost: f64,
    bytes: f64,
    /// Whether they are one piece.
    is_piece: bool,
}

impl Options {
    pub(super) fn new(tree: &Tree, ground: &Ground<'_>) -> Self {
        let size = |paths: &[Path]| {
            let to = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            Frame::new(paths).map(|frame| Size {
                rows: to(frame.rows),
                width: to(frame.players.len()),
                steps: to(frame.steps),
            })
        };
        let ranges = tree.ranges();
        let mut splits = vec![None; tree.splits.len()];
        let mut leaves: Vec<(Option<Size>, u32)> = Vec::with_capacity(tree.splits.len() + 1);
        paths(tree, ground, &ranges).each(
            |_, _| true,
            |block, paths| {
                leaves.extend(paths.iter().map(|path| {
                    let count = u32::try_from(path.players.len()).unwrap_or(u32::MAX);
                    (size(std::slice::from_ref(path)), count)
                }));
                let Branch::Split(first) = block.branch else { return };
                // A tree has one leaf more than splits, which stand together, before those below them.
                for at in (first as usize..first as usize + paths.len() - 1).rev() {
                    let split = &tree.splits[at];
                    let (start, end) = ranges[at];
                    // A piece is no smaller than one within it.
                    let mut leaf = [start, end - 1].into_iter();
                    let fits = split.branches.iter().all(|branch| {
                        let leaf = leaf.next().unwrap_or(start);
                        match branch {
                            Branch::Split(below) => splits[*below as usize].is_some(),
                            Branch::Leaf(_) => leaves[leaf as usize].0.is_some(),
                        }
                    });
                    if fits {
                        let of_split = (start - block.start) as usize..(end - block.start) as usize;
                        splits[at] = size(&paths[of_split]);
                    }
                }
            },
        );
        Self { splits, leaves, ranges }
    }

    /// What each split takes at a price of memory where it is done as cheaply as can be; returns what the whole tree takes.
    fn prices(&self, tree: &Tree, price: f64, splits: &mut Vec<Price>) -> Price {
        splits.clear();
        splits.resize(self.splits.len(), Price::default());
        for (at, split) in tree.splits.iter().enumerate().rev() {
            let (start, end) = self.ranges[at];
            let [one, other] = [(split.branches[0], start), (split.branches[1], end - 1)]
                .map(|(branch, leaf)| self.price(branch, leaf, price, splits));
            let apart =
                Price { cost: one.cost + other.cost, bytes: one.bytes + other.bytes, is_piece: false };
            splits[at] = match self.splits[at] {
                Some(size) if size.cost(price) < apart.cost => {
                    Price { cost: size.cost(price), bytes: size.bytes(), is_piece: true }
                }
                _ => apart,
            };
        }
        self.price(tree.root, 0, price, splits)
    }

    /// What a branch takes: one to a split that is in `splits`, or to leaf `leaf`.
    fn price(&self, branch: Branch, leaf: u32, price: f64, splits: &[Price]) -> Price {
        if let Branch::Split(at) = branch {
            return splits[at as usize];
        }
        let (size, players) = self.leaves[leaf as usize];
        let directly = DIRECT + DIRECT_PLAYER * f64::from(players);
        match size.map(|size| (size.bytes(), size.cost(price))) {
            Some((bytes, cost)) if cost <= directly => Price { cost, bytes, is_piece: true },
            _ => Price { cost: directly, bytes: 0.0, is_piece: false },
        }
    }

    /// The cheapest plan at a price of memory.
    fn plan(&self, tree: &Tree, price: f64, splits: &mut Vec<Price>) -> Plan {
        self.prices(tree, price, splits);
        let mut plan = Plan::default();
        let mut open = vec![(tree.root, 0)];
        while let Some((branch, start)) = open.pop() {
            let found = self.price(branch, start, price, splits);
            match branch {
                // Leaves that nobody can reach, or that are worth nothing.
                _ if found.is_piece && found.cost == 0.0 => {}
                Branch::Split(at) if found.is_piece => plan.pieces.push(self.ranges[at as usize]),
                Branch::Leaf(_) if found.is_piece => plan.pieces.push((start, start + 1)),
                Branch::Leaf(_) => plan.direct.push(start),
                Branch::Split(at) => {
                    let branches = tree.splits[at as usize].branches;
                    // The first leaf of the second branch is the one after the last of the first.
                    let middle = match branches[0] {
                        Branch::Split(below) => self.ranges[below as usize].1,
                        Branch::Leaf(_) => start + 1,
                    };
                    open.extend([(branches[1], middle), (branches[0], start)]);
                }
            }
        }
        plan
    }
}

/// The paths of a tree as far as tables are made of them.
pub(super) fn paths<'a>(tree: &'a Tree, ground: &'a Ground<'a>, ranges: &'a [(u32, u32)]) -> Paths<'a> {
    Paths { tree, ground, ranges, leaves: MOST_LEAVES as u32, players: MOST_PLAYERS }
}

/// Plans all trees within `bytes`.
pub(super) fn plan(trees: &[Tree], options: &[Options], bytes: usize) -> Vec<Plan> {
    let (mut price, mut splits) = (FIRST_PRICE, Vec::new());
    loop {
        let each = trees.iter().zip(options);
        let taken: f64 =
            each.clone().map(|(tree, options)| options.prices(tree, price, &mut splits).bytes).sum();
        // A high enough price leaves no table at all.
        if taken <= bytes as f64 {
            return each.map(|(tree, options)| options.plan(tree, price, &mut splits)).collect();
        }
        price *= PRICE_GROWTH;
    }
}

/// A threshold of a piece: from `rank` on, a value's place is moved.
#[derive(Debug, Clone, Copy)]
struct Step {
    column: u32,
    rank: u32,
    by: u32,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Where its steps and its players end; they begin where those of the piece before end.
    steps: u32,
    players: u32,
    /// The place of a row whose values are all of rank 0.
    start: u64,
}

/// All pieces of one output.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    steps: Vec<Step>,
    players: Vec<u32>,
    values: Vec<f64>,
}

impl Pieces {
    /// Adds a piece of these leaves.
    pub(super) fn push(&mut self, paths: &[Path], stand_ins: StandIns, tables: &mut Tables) {
        let Some(frame) = Frame::new(paths) else { unreachable!("a plan takes pieces that fit") };
        let width = frame.players.len();
        let base = self.values.len();
        self.values.resize(base + frame.rows * width, 0.0);
        for (leaf, path) in paths.iter().enumerate() {
            let odds: Vec<Odds> = path.players.iter().map(|(_, odds)| *odds).collect();
            tables.fill(&odds, path.value, stand_ins);
            fill(&mut self.values[base..], &frame, leaf, path, &tables.values);
        }
        let (mut start, mut stride) = (base as u64, width);
        for column in &frame.columns {
            let place = |state: usize| u32::try_from(state * stride).unwrap_or(u32::MAX);
            start += u64::from(place(column.first));
            let mut last = column.first;
            for (rank, state) in &column.changes {
                // Places may go down: in 32 bits that comes round.
                let by = place(*state).wrapping_sub(place(last));
                self.steps.push(Step { column: column.column, rank: *rank, by });
                last = *state;
            }
            stride *= column.states.len();
        }
        self.players.extend(&frame.players);
        let end = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        self.pieces.push(Piece { steps: end(self.steps.len()), players: end(self.players.len()), start });
    }

    /// Adds what a row is worth to each player; `ranks` are those of its values, by column.
    ///
    /// Tables are larger than caches, so that most of the time goes by waiting for memory. The places of many pieces are
    /// found first and looked at together, without a branch in between: the processor then waits for all of them at once.
    pub(super) fn explain(&self, ranks: &[u32], values: &mut [f64]) {
        let (mut steps, mut players) = (self.steps.as_slice(), self.players.as_slice());
        let (mut steps_before, mut players_before) = (0, 0);
        let mut starts = [0; TOGETHER];
        for pieces in self.pieces.chunks(TOGETHER) {
            for (start, piece) in starts.iter_mut().zip(pieces) {
                let (of_piece, rest) = steps.split_at((piece.steps - steps_before) as usize);
                (steps, steps_before) = (rest, piece.steps);
                let moved = of_piece.iter().fold(0_u32, |moved, step| {
                    let is_reached = ranks[step.column as usize] >= step.rank;
                    moved.wrapping_add(select_unpredictable(is_reached, step.by, 0))
                });
                // A step down came round in 32 bits: the sum is that of signed ones.
                *start = piece.start.wrapping_add_signed(i64::from(moved.cast_signed())) as usize;
            }
            let starts = &starts[..pieces.len()];
            black_box(starts.iter().map(|start| self.values[*start]).sum::<f64>());
            for (start, piece) in starts.iter().zip(pieces) {
                let (of_piece, rest) = players.split_at((piece.players - players_before) as usize);
                (players, players_before) = (rest, piece.players);
                for (player, value) in of_piece.iter().zip(&self.values[*start..][..of_piece.len()]) {
                    values[*player as usize] += value;
                }
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.pieces.as_slice())
            + size_of_val(self.steps.as_slice())
            + size_of_val(self.players.as_slice())
            + size_of_val(self.values.as_slice())
    }

    /// How many numbers the tables hold.
    #[cfg(test)]
    pub(super) fn values(&self) -> usize {
        self.values.len()
    }

    pub(super) fn shrink(&mut self) {
        self.pieces.shrink_to_fit();
        self.steps.shrink_to_fit();
        self.players.shrink_to_fit();
        self.values.shrink_to_fit();
    }
}

/// Adds one leaf's table to its piece's.
fn fill(values: &mut [f64], frame: &Frame, leaf: usize, path: &Path, of_leaf: &[f64]) {
    let count = path.players.len();
    if count == 0 {
        return;
    }
    let width = frame.players.len();
    let places: Vec<usize> =
        path.players.iter().map(|(player, _)| frame.players.binary_search(player).unwrap_or(0)).collect();
    let everybody = (1_usize << count) - 1;
    // For each column and state, the players that are left of those whose conditions are met.
    let left: Vec<Vec<usize>> = frame
        .columns
        .iter()
        .map(|column| {
            let asked = path.columns.iter().find(|condition| condition.column == column.column);
            let without = asked.map_or(everybody, |condition| everybody & !(1 << condition.slot));
            let left = |state: &u64| if state >> leaf & 1 == 1 { everybody } else { without };
            column.states.iter().map(left).collect()
        })
        .collect();
    let mut states = vec![0; frame.columns.len()];
    for row in values.chunks_exact_mut(width) {
        let met = states.iter().zip(&left).fold(everybody, |met, (state, left)| met & left[*state]);
        for (place, value) in places.iter().zip(&of_leaf[met * count..][..count]) {
            row[*place] += value;
        }
        for (state, column) in states.iter_mut().zip(&frame.columns) {
            *state += 1;
            if *state < column.states.len() {
                break;
            }
            *state = 0;
        }
    }
}
