//! Trees for one output, made ready for tables: conditions are sets of ranks, and each branch knows who takes it.

use std::rc::Rc;

use super::ensemble::{Ensemble, Next};
use super::game::{Odds, StandIns};
use super::ranks::{Cuts, Steps};

/// What a column of encoded rows is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Role {
    /// No tree asks for it.
    Unused,
    /// It is a player's, and stands at `at` among such columns.
    Of { player: u32, at: u32 },
    /// It is the same in all rows.
    Constant(f64),
}

/// What all trees share.
pub(super) struct Ground<'e> {
    pub(super) ensemble: &'e Ensemble,
    /// By encoded column.
    pub(super) roles: Vec<Role>,
    /// By place among the players' columns.
    pub(super) cuts: Vec<Cuts>,
    /// The player of each of these columns.
    pub(super) players: Vec<u32>,
    pub(super) stand_ins: StandIns,
    /// For each node of the ensemble, who takes its true and its false branch.
    pub(super) odds: Vec<[Odds; 2]>,
}

/// Where a branch leads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Branch {
    Split(u32),
    Leaf(f64),
}

/// A decision on a player's column.
#[derive(Debug)]
pub(super) struct Split {
    /// Place among the players' columns.
    pub(super) column: u32,
    /// The ranks that take the true branch.
    pub(super) holds: Steps,
    /// The true and the false branch.
    pub(super) branches: [Branch; 2],
    pub(super) odds: [Odds; 2],
}

/// A tree for one output. Splits stand before those below them.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: Branch,
    pub(super) splits: Vec<Split>,
}

impl Tree {
    /// What a tree of the ensemble says of one output. Decisions on constants are taken, and those that change nothing go.
    pub(super) fn new(ground: &Ground<'_>, root: Next, output: u32) -> Self {
        let mut tree = Self { root: Branch::Leaf(0.0), splits: Vec::new() };
        tree.root = tree.grow(ground, root, output);
        tree
    }

    fn grow(&mut self, ground: &Ground<'_>, next: Next, output: u32) -> Branch {
        let at = match next {
            Next::Node(at) => at as usize,
            Next::Leaf(leaf) => {
                let weights = ground.ensemble.of_leaf(leaf).iter();
                return Branch::Leaf(weights.filter(|(of, _)| *of == output).map(|(_, weight)| weight).sum());
            }
        };
        let node = &ground.ensemble.nodes[at];
        let column = match ground.roles[node.column as usize] {
            Role::Of { at, .. } => at,
            Role::Constant(value) => {
                return self.grow(ground, if node.holds(value) { node.yes } else { node.no }, output);
            }
            Role::Unused => unreachable!("a column that a node asks for is used"),
        };
        let place = self.splits.len();
        let holds = ground.cuts[column as usize].holds(node);
        let branches = [Branch::Leaf(0.0); 2];
        self.splits.push(Split { column, holds, branches, odds: ground.odds[at] });
        let branches = [node.yes, node.no].map(|next| self.grow(ground, next, output));
        if let [Branch::Leaf(one), Branch::Leaf(other)] = branches
            && one == other
        {
            self.splits.truncate(place);
            return branches[0];
        }
        self.splits[place].branches = branches;
        Branch::Split(u32::try_from(place).unwrap_or(u32::MAX))
    }

    /// The mean over what stands in for all players.
    pub(super) fn expected(&self, stand_ins: StandIns) -> f64 {
        let mut sum = 0.0;
        let mut open = vec![(self.root, stand_ins.certain())];
        while let Some((branch, odds)) = open.pop() {
            match branch {
                Branch::Leaf(value) => sum += value * stand_ins.chance(odds),
                Branch::Split(at) => {
                    let split = &self.splits[at as usize];
                    open.extend((0..2).map(|side| (split.branches[side], odds.and(split.odds[side]))));
                }
            }
        }
        sum
    }

    /// For each split, which leaves lie below it: those from the first number up to the second, in the order of a walk that
    /// takes true branches first.
    pub(super) fn ranges(&self) -> Vec<(u32, u32)> {
        // Of leaves that a split has, counted from the last one: splits stand before those below them.
        let mut counts = vec![0; self.splits.len()];
        let count = |counts: &[u32], branch| match branch {
            Branch::Split(at) => counts[at as usize],
            Branch::Leaf(_) => 1,
        };
        for (at, split) in self.splits.iter().enumerate().rev() {
            counts[at] = split.branches.iter().map(|branch| count(&counts, *branch)).sum();
        }
        let mut ranges = vec![(0, 0); self.splits.len()];
        let mut open = vec![(self.root, 0)];
        while let Some((branch, start)) = open.pop() {
            let Branch::Split(at) = branch else { continue };
            let branches = self.splits[at as usize].branches;
            ranges[at as usize] = (start, start + counts[at as usize]);
            open.extend([(branches[0], start), (branches[1], start + count(&counts, branches[0]))]);
        }
        ranges
    }
}

/// The conditions on the way to a leaf.
#[derive(Debug, Default)]
pub(super) struct Path {
    pub(super) value: f64,
    /// The ranks that each column has to have, where not all do. There are none of more players than were asked for.
    pub(super) columns: Vec<Condition>,
    /// Each player of whom something is asked, and who stands in.
    pub(super) players: Vec<(u32, Odds)>,
}

/// The ranks that a column has to have.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub(super) column: u32,
    /// Place of the column's player among the players of the path.
    pub(super) slot: usize,
    pub(super) ranks: Rc<Steps>,
}

/// Neighbouring leaves, which are all those below a branch of a tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) branch: Branch,
    /// Number of the first one.
    pub(super) start: u32,
}

/// The ways to the leaves of a tree, a few neighbouring leaves at a time: all of a large tree's would take much memory.
pub(super) struct Paths<'a> {
    pub(super) tree: &'a Tree,
    pub(super) ground: &'a Ground<'a>,
    /// As [`Tree::ranges`] finds them.
    pub(super) ranges: &'a [(u32, u32)],
    /// Leaves that come together at most.
    pub(super) leaves: u32,
    /// Players on a path at most for conditions to be told.
    pub(super) players: usize,
}

impl Paths<'_> {
    /// Calls `each` with the largest blocks of leaves that come together, in order, and the paths to them; blocks are passed by
    /// where `is_wanted` refuses the leaves of a branch, which it is asked by their numbers.
    pub(super) fn each(&self, is_wanted: impl Fn(u32, u32) -> bool, each: impl FnMut(Block, &[Path])) {
        let mut walk = PathWalk {
            asked: self,
            is_wanted,
            each,
            columns: Vec::new(),
            players: Vec::new(),
            paths: Vec::new(),
            is_within: false,
        };
        walk.visit(self.tree.root, 0, false);
    }
}

struct PathWalk<'a, W, E> {
    asked: &'a Paths<'a>,
    is_wanted: W,
    each: E,
    /// The columns of the path so far, whose slots are places in `players`.
    columns: Vec<Condition>,
    players: Vec<(u32, Odds)>,
    /// Those to the leaves of one block.
    paths: Vec<Path>,
    /// Whether this is within a block.
    is_within: bool,
}

impl<W: Fn(u32, u32) -> bool, E: FnMut(Block, &[Path])> PathWalk<'_, W, E> {
    /// Visits a branch whose first leaf is `start`; no coalition can take a branch that `is_dead`.
    fn visit(&mut self, branch: Branch, start: u32, is_dead: bool) {
        let end = match branch {
            Branch::Split(at) => self.asked.ranges[at as usize].1,
            Branch::Leaf(_) => start + 1,
        };
        if !self.is_within && !(self.is_wanted)(start, end) {
            return;
        }
        let is_block = !self.is_within && end - start <= self.asked.leaves;
        self.is_within |= is_block;
        match branch {
            Branch::Leaf(value) if is_dead || value == 0.0 => self.paths.push(Path::default()),
            Branch::Leaf(value) => {
                let path = self.path(value);
                self.paths.push(path);
            }
            Branch::Split(at) => self.branch(at as usize, start, is_dead),
        }
        if is_block {
            (self.each)(Block { branch, start }, &self.paths);
            self.paths.clear();
            self.is_within = false;
        }
    }

    fn branch(&mut self, at: usize, start: u32, is_dead: bool) {
        let (tree, ground) = (self.asked.tree, self.asked.ground);
        let split = &tree.splits[at];
        let player = ground.players[split.column as usize];
        let (columns, players) = (self.columns.len(), self.players.len());
        let slot = self.players.iter().position(|(found, _)| *found == player).unwrap_or_else(|| {
            self.players.push((player, ground.stand_ins.certain()));
            players
        });
        let column =
            self.columns.iter().position(|found| found.column == split.column).unwrap_or_else(|| {
                self.columns.push(Condition { column: split.column, slot, ranks: Rc::new(Steps::all()) });
                columns
            });
        let (ranks, odds) = (Rc::clone(&self.columns[column].ranks), self.players[slot].1);
        let mut start = start;
        for (side, branch) in split.branches.into_iter().enumerate() {
            let holds = if side == 0 { ranks.and(&split.holds) } else { ranks.and(&split.holds.opposite()) };
            self.players[slot].1 = odds.and(split.odds[side]);
            let is_empty = |found: &Condition| found.slot == slot && found.ranks.is_empty();
            self.columns[column].ranks = Rc::new(holds);
            let is_dead = is_dead || (self.players[slot].1.is_none() && self.columns.iter().any(is_empty));
            self.visit(branch, start, is_dead);
            if let Branch::Split(below) = branch {
                start = self.asked.ranges[below as usize].1;
            } else {
                start += 1;
            }
        }
        // What was asked for the first time here goes; it is at the end.
        self.columns[column].ranks = ranks;
        self.players[slot].1 = odds;
        self.columns.truncate(columns);
        self.players.truncate(players);
    }

    /// The path to here, where somebody can get to.
    fn path(&self, value: f64) -> Path {
        let certain = self.asked.ground.stand_ins.certain();
        let mut is_asked: Vec<bool> = self.players.iter().map(|(_, odds)| *odds != certain).collect();
        let conditions = || self.columns.iter().filter(|condition| !condition.ranks.is_all());
        conditions().for_each(|condition| is_asked[condition.slot] = true);
        let players = self.players.iter().zip(&is_asked).filter(|(_, is_asked)| **is_asked);
        let players: Vec<(u32, Odds)> = players.map(|(player, _)| *player).collect();
        let mut columns = Vec::new();
        if players.len() <= self.asked.players {
            let slots: Vec<usize> = is_asked
                .iter()
                .scan(0, |next, is_asked| {
                    *next += usize::from(*is_asked);
                    Some(next.wrapping_sub(1))
                })
                .collect();
            columns.extend(
                conditions().map(|condition| Condition { slot: slots[condition.slot], ..condition.clone() }),
            );
        }
        Path { value, columns, players }
    }
}
