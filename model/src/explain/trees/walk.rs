//! Leaves without a table: walked to for every row, all of a tree on one way.
//!
//! On the way down it is known which players the row agrees with and who stands in for the others. A branch that no
//! coalition can take is not entered. Of background rows, each one that can still get to a leaf pays the weights
//! (u - 1)! v! / (u + v)! to the u players that only the explained row satisfies, and takes u! (v - 1)! / (u + v)! from the v
//! that only the background row does (Štrumbelj and Kononenko 2014; Lundberg et al. 2020). Of covers, the Shapley value is
//! the integral of how the leaf's chance grows with each player's presence, all others being present with probability t
//! (Owen 1972), a polynomial that Gauss's quadrature integrates exactly.

use super::game::{Odds, StandIns};
use super::grove::{Branch, Ground, Tree};
use super::ranks::Steps;

#[derive(Debug, Clone, Copy)]
enum Next {
    Split(u32),
    Leaf(f64),
    /// Leaves that have a table, or that nobody can reach.
    Nothing,
}

/// The ranks that take a true branch: as [`Steps`] says, the first two changes beside the rest, as there are seldom more and trees
/// are larger than caches.
#[derive(Debug)]
struct Holds {
    first: bool,
    two: [u32; 2],
    more: Option<Box<[u32]>>,
}

impl Holds {
    fn new(steps: &Steps) -> Self {
        // No value has this rank.
        let flip = |at: usize| steps.flips.get(at).copied().unwrap_or(u32::MAX);
        let more = steps.flips.get(2..).filter(|more| !more.is_empty());
        Self { first: steps.first, two: [flip(0), flip(1)], more: more.map(Into::into) }
    }

    fn contains(&self, rank: u32) -> bool {
        let two = self.first ^ (self.two[0] <= rank) ^ (self.two[1] <= rank);
        match &self.more {
            Some(more) => two ^ (more.partition_point(|flip| *flip <= rank) % 2 == 1),
            None => two,
        }
    }
}

#[derive(Debug)]
struct Split {
    column: u32,
    holds: Holds,
    /// The column's player's place among those of the path.
    slot: u32,
    player: u32,
    /// Whether the player is new on the path.
    is_new: bool,
    next: [Next; 2],
    /// Who stands in for the player on the path up to and with each branch.
    odds: [Odds; 2],
}

/// The leaves without table of one output.
#[derive(Debug, Default)]
pub(super) struct Walk {
    splits: Vec<Split>,
    roots: Vec<Next>,
    /// Players of one path at most.
    slots: usize,
    by: By,
}

#[derive(Debug)]
enum By {
    /// At `u * (slots + 1) + v`, what each of the u gets, and each of the v gives.
    Background { all: u128, gets: Vec<f64>, gives: Vec<f64> },
    /// Where the integral is looked at, and with what weight.
    Covers { points: Vec<f64>, weights: Vec<f64> },
}

impl Default for By {
    fn default() -> Self {
        Self::Covers { points: Vec::new(), weights: Vec::new() }
    }
}

/// What a walk remembers of the path that it is on.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// By slot: the player, whether the row agrees with it, and who stands in.
    path: Vec<(u32, bool, Odds)>,
    /// By background row, for one leaf: how many players only the explained row satisfies, and what each of them gets.
    alone: Box<[u32; 128]>,
    gets: Box<[f64; 128]>,
    /// By level and point: the chance that players who are present with that probability get here, by the point's weight.
    chances: Vec<f64>,
    /// By slot and point: one over the player's part in that.
    inverses: Vec<f64>,
    /// Inverses to come back to.
    before: Vec<f64>,
}

impl Walk {
    /// Adds the leaves of a tree whose places, in the order of a walk, are `leaves`.
    pub(super) fn push(&mut self, tree: &Tree, ground: &Ground<'_>, leaves: &[u32]) {
        if leaves.is_empty() {
            return;
        }
        let mut path = Vec::new();
        let mut leaf = 0;
        let root = self.grow(tree, ground, tree.root, leaves, &mut leaf, &mut path);
        self.roots.push(root);
    }

    fn grow(
        &mut self,
        tree: &Tree,
        ground: &Ground<'_>,
        branch: Branch,
        leaves: &[u32],
        leaf: &mut u32,
        path: &mut Vec<(u32, Odds)>,
    ) -> Next {
        let at = match branch {
            Branch::Split(at) => at as usize,
            Branch::Leaf(value) => {
                *leaf += 1;
                let is_direct = leaves.binary_search(&(*leaf - 1)).is_ok();
                return if is_direct { Next::Leaf(value) } else { Next::Nothing };
            }
        };
        let split = &tree.splits[at];
        let player = ground.players[split.column as usize];
        let found = path.iter().position(|(of, _)| *of == player);
        let slot = found.unwrap_or(path.len());
        let before = found.map_or(ground.stand_ins.certain(), |slot| path[slot].1);
        if found.is_none() {
            path.push((player, before));
        }
        self.slots = self.slots.max(path.len());
        let place = self.splits.len();
        let odds = split.odds.map(|odds| before.and(odds));
        self.splits.push(Split {
            column: split.column,
            holds: Holds::new(&split.holds),
            slot: u32::try_from(slot).unwrap_or(u32::MAX),
            player,
            is_new: found.is_none(),
            next: [Next::Nothing; 2],
            odds,
        });
        let mut next = [Next::Nothing; 2];
        for side in 0..2 {
            path[slot].1 = odds[side];
            next[side] = self.grow(tree, ground, split.branches[side], leaves, leaf, path);
        }
        path[slot].1 = before;
        if found.is_none() {
            path.pop();
        }
        if let [Next::Nothing, Next::Nothing] = next {
            self.splits.truncate(place);
            return Next::Nothing;
        }
        self.splits[place].next = next;
        Next::Split(u32::try_from(place).unwrap_or(u32::MAX))
    }

    /// Computes the weights, once all trees are there.
    pub(super) fn finish(&mut self, stand_ins: StandIns) {
        self.splits.shrink_to_fit();
        if !stand_ins.is_background {
            let (points, weights) = gauss(self.slots.div_ceil(2));
            self.by = By::Covers { points, weights };
            return;
        }
        let (size, rows) = (self.slots + 1, f64::from(stand_ins.all.count_ones()));
        let mut gets = vec![0.0; size * size];
        let mut gives = vec![0.0; size * size];
        for with in 0..size {
            // u! v! / (u + v)!
            let mut both = 1.0 / rows;
            for without in 0..size {
                let at = with * size + without;
                gets[at] = both / with.max(1) as f64;
                gives[at] = both / without.max(1) as f64;
                both *= (without + 1) as f64 / (with + without + 1) as f64;
            }
        }
        self.by = By::Background { all: stand_ins.all, gets, gives };
    }

    /// What all of these walks can remember their paths in, one after the other.
    pub(super) fn state<'w>(walks: impl Iterator<Item = &'w Self>) -> State {
        let (mut slots, mut inverses) = (0, 0);
        for walk in walks {
            let points = if let By::Covers { points, .. } = &walk.by { points.len() } else { 0 };
            (slots, inverses) = (slots.max(walk.slots), inverses.max(walk.slots * points));
        }
        State {
            path: Vec::with_capacity(slots),
            alone: Box::new([0; 128]),
            gets: Box::new([0.0; 128]),
            chances: Vec::new(),
            inverses: vec![1.0; inverses],
            before: Vec::new(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let more = self.splits.iter().filter_map(|split| split.holds.more.as_deref());
        let weights = match &self.by {
            By::Background { gets: one, gives: other, .. } | By::Covers { points: one, weights: other } => {
                size_of_val(one.as_slice()) + size_of_val(other.as_slice())
            }
        };
        size_of_val(self.splits.as_slice())
            + more.map(size_of_val).sum::<usize>()
            + size_of_val(self.roots.as_slice())
            + weights
    }

    /// Adds what a row is worth to each player; `ranks` are those of its values, by column.
    pub(super) fn explain(&self, ranks: &[u32], state: &mut State, values: &mut [f64]) {
        let mut step = Step { walk: self, ranks, state, values };
        match &self.by {
            By::Background { all, gets, gives } => {
                for root in &self.roots {
                    step.state.path.clear();
                    step.rows(*root, *all, gets, gives);
                }
            }
            By::Covers { points, weights } => {
                for root in &self.roots {
                    step.state.path.clear();
                    step.state.before.clear();
                    step.state.chances.clear();
                    step.state.chances.extend_from_slice(weights);
                    step.covers(*root, points);
                }
            }
        }
    }
}

struct Step<'a> {
    walk: &'a Walk,
    ranks: &'a [u32],
    state: &'a mut State,
    values: &'a mut [f64],
}

impl Step<'_> {
    /// Puts a split's player on the path, if it is new; returns how it was before, and whether its true branch is taken.
    fn enter(&mut self, split: &Split) -> ((u32, bool, Odds), bool) {
        let slot = split.slot as usize;
        if split.is_new {
            self.state.path.push((split.player, true, split.odds[0]));
        }
        (self.state.path[slot], split.holds.contains(self.ranks[split.column as usize]))
    }

    /// Takes it away again, or puts it back as it was.
    fn leave(&mut self, split: &Split, before: (u32, bool, Odds)) {
        if split.is_new {
            self.state.path.pop();
        } else {
            self.state.path[split.slot as usize] = before;
        }
    }

    /// Goes on where the background rows of `left` stand in for all players that the row does not agree with.
    fn rows(&mut self, next: Next, left: u128, gets: &[f64], gives: &[f64]) {
        let split = match next {
            Next::Nothing => return,
            Next::Leaf(value) => return self.rows_at_leaf(value, left, gets, gives),
            Next::Split(at) => &self.walk.splits[at as usize],
        };
        let (before, holds) = self.enter(split);
        for (side, odds) in split.odds.into_iter().enumerate() {
            let agrees = before.1 && holds == (side == 0);
            let left = if agrees { left } else { left & odds.rows };
            if left != 0 {
                self.state.path[split.slot as usize] = (split.player, agrees, odds);
                self.rows(split.next[side], left, gets, gives);
            }
        }
        self.leave(split, before);
    }

    fn rows_at_leaf(&mut self, value: f64, left: u128, gets: &[f64], gives: &[f64]) {
        let size = self.walk.slots + 1;
        let State { path, alone, gets: got, .. } = &mut *self.state;
        let (alone, got): (&mut [u32; 128], &mut [f64; 128]) = (alone, got);
        bits(left, |row| alone[row] = 0);
        let mut absent = 0;
        for (_, agrees, odds) in path.iter() {
            if *agrees {
                bits(left & !odds.rows, |row| alone[row] += 1);
            } else {
                absent += 1;
            }
        }
        let mut given = 0.0;
        bits(left, |row| {
            let at = alone[row] as usize * size + absent;
            got[row] = gets[at];
            given += gives[at];
        });
        for (player, agrees, odds) in path.iter() {
            let mut paid = 0.0;
            if *agrees {
                bits(left & !odds.rows, |row| paid += got[row]);
            } else {
                paid = -given;
            }
            self.values[*player as usize] += value * paid;
        }
    }

    /// Goes on with the chances of the last level.
    fn covers(&mut self, next: Next, points: &[f64]) {
        let split = match next {
            Next::Nothing => return,
            Next::Leaf(value) => return self.covers_at_leaf(value, points.len()),
            Next::Split(at) => &self.walk.splits[at as usize],
        };
        let (before, holds) = self.enter(split);
        let slot = split.slot as usize * points.len()..(split.slot as usize + 1) * points.len();
        let (start, saved) = (self.state.chances.len() - points.len(), self.state.before.len());
        if split.is_new {
            self.state.inverses[slot.clone()].fill(1.0);
        }
        self.state.before.extend_from_slice(&self.state.inverses[slot.clone()]);
        for (side, odds) in split.odds.into_iter().enumerate() {
            let agrees = before.1 && holds == (side == 0);
            if !agrees && odds.ratio == 0.0 {
                continue;
            }
            self.state.path[split.slot as usize] = (split.player, agrees, odds);
            let State { chances, inverses, before, .. } = &mut *self.state;
            for (at, (point, inverse)) in points.iter().zip(&mut inverses[slot.clone()]).enumerate() {
                // The player is there with this probability.
                let part = odds.ratio * (1.0 - point) + if agrees { *point } else { 0.0 };
                // What it had is taken out, and what it has now is put in.
                chances.push(chances[start + at] * before[saved + at] * part);
                *inverse = 1.0 / part;
            }
            self.covers(split.next[side], points);
            self.state.chances.truncate(start + points.len());
        }
        let State { inverses, before: stack, .. } = &mut *self.state;
        inverses[slot].copy_from_slice(&stack[saved..]);
        stack.truncate(saved);
        self.leave(split, before);
    }

    fn covers_at_leaf(&mut self, value: f64, points: usize) {
        let State { path, chances, inverses, .. } = &*self.state;
        let chances = &chances[chances.len() - points..];
        for ((player, agrees, odds), inverses) in path.iter().zip(inverses.chunks_exact(points)) {
            let others: f64 = chances.iter().zip(inverses).map(|(chance, inverse)| chance * inverse).sum();
            self.values[*player as usize] += value * (f64::from(u8::from(*agrees)) - odds.ratio) * others;
        }
    }
}

/// Calls `each` with the places of the bits of a word, one half after the other.
#[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart")]
fn bits(word: u128, mut each: impl FnMut(usize)) {
    for (mut half, from) in [(word as u64, 0), ((word >> 64) as u64, 64)] {
        while half != 0 {
            each(from + half.trailing_zeros() as usize);
            half &= half - 1;
        }
    }
}

/// Points and weights of Gauss's quadrature on [0, 1], exact for polynomials of degree below `2 * count`: the roots of
/// Legendre's polynomial, by Newton's method.
fn gauss(count: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut points, mut weights) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for root in 0..count {
        let mut x = (std::f64::consts::PI * (root as f64 + 0.75) / (count as f64 + 0.5)).cos();
        let mut slope = 0.0;
        for _ in 0..100 {
            let (mut before, mut value) = (1.0, x);
            for degree in 2..=count {
                let degree = degree as f64;
                (before, value) =
                    (value, ((2.0 * degree - 1.0) * x * value - (degree - 1.0) * before) / degree);
            }
            slope = count as f64 * (x * value - before) / (x * x - 1.0);
            let step = value / slope;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        points.push((1.0 - x) / 2.0);
        weights.push(1.0 / ((1.0 - x * x) * slope * slope));
    }
    (points, weights)
}
