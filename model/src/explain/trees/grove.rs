//! Trees for one output, made ready for tables: conditions are sets of ranks, and each branch knows who takes it.

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

    /// The paths to all leaves, in the order of a walk that takes true branches first, and for each split which of them
    /// lead through it.
    pub(super) fn paths(&self, ground: &Ground<'_>) -> (Vec<Path>, Vec<(u32, u32)>) {
        let mut walk = PathWalk {
            tree: self,
            ground,
            columns: Vec::new(),
            players: Vec::new(),
            paths: Vec::new(),
            ranges: vec![(0, 0); self.splits.len()],
        };
        walk.visit(self.root);
        (walk.paths, walk.ranges)
    }
}

/// The conditions on the way to a leaf.
#[derive(Debug, Default)]
pub(super) struct Path {
    pub(super) value: f64,
    /// The ranks that each column has to have, where not all do.
    pub(super) columns: Vec<Condition>,
    /// Each player of whom something is asked, and who stands in.
    pub(super) players: Vec<(u32, Odds)>,
}

/// The ranks that a column has to have.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) column: u32,
    /// Place of the column's player among the players of the path.
    pub(super) slot: usize,
    pub(super) ranks: Steps,
}

struct PathWalk<'a> {
    tree: &'a Tree,
    ground: &'a Ground<'a>,
    columns: Vec<(u32, Steps)>,
    players: Vec<(u32, Odds)>,
    paths: Vec<Path>,
    ranges: Vec<(u32, u32)>,
}

impl PathWalk<'_> {
    fn visit(&mut self, branch: Branch) {
        let at = match branch {
            Branch::Split(at) => at as usize,
            Branch::Leaf(value) => {
                let path = self.path(value);
                return self.paths.push(path);
            }
        };
        let split = &self.tree.splits[at];
        let player = self.ground.players[split.column as usize];
        let start = u32::try_from(self.paths.len()).unwrap_or(u32::MAX);
        let column = place(&mut self.columns, split.column, Steps::all);
        let slot = place(&mut self.players, player, || self.ground.stand_ins.certain());
        let (steps, odds) = (self.columns[column].1.clone(), self.players[slot].1);
        for side in 0..2 {
            let holds = if side == 0 { steps.and(&split.holds) } else { steps.and(&split.holds.opposite()) };
            self.columns[column].1 = holds;
            self.players[slot].1 = odds.and(split.odds[side]);
            self.visit(split.branches[side]);
        }
        // What was asked for the first time here stays in the lists, asking for nothing.
        self.columns[column].1 = steps;
        self.players[slot].1 = odds;
        self.ranges[at] = (start, u32::try_from(self.paths.len()).unwrap_or(u32::MAX));
    }

    /// The path to here; an empty one worth nothing if no coalition can take it.
    fn path(&self, value: f64) -> Path {
        let player_of = |column: u32| self.ground.players[column as usize];
        let certain = self.ground.stand_ins.certain();
        let asks = |player: u32| {
            self.columns.iter().any(|(column, steps)| player_of(*column) == player && !steps.is_all())
        };
        let never = |(player, odds): &(u32, Odds)| {
            let impossible =
                |(column, steps): &(u32, Steps)| player_of(*column) == *player && steps.is_empty();
            odds.is_none() && self.columns.iter().any(impossible)
        };
        if value == 0.0 || self.players.iter().any(never) {
            return Path::default();
        }
        let asked = |(player, odds): &&(u32, Odds)| *odds != certain || asks(*player);
        let players: Vec<(u32, Odds)> = self.players.iter().filter(asked).copied().collect();
        let condition = |(column, ranks): &(u32, Steps)| {
            let slot = players.iter().position(|(player, _)| *player == player_of(*column))?;
            (!ranks.is_all()).then(|| Condition { column: *column, slot, ranks: ranks.clone() })
        };
        Path { value, columns: self.columns.iter().filter_map(condition).collect(), players }
    }
}

/// The place of `key` in a list, to whose end it is put if it is new.
fn place<T>(list: &mut Vec<(u32, T)>, key: u32, new: impl FnOnce() -> T) -> usize {
    list.iter().position(|(found, _)| *found == key).unwrap_or_else(|| {
        list.push((key, new()));
        list.len() - 1
    })
}
