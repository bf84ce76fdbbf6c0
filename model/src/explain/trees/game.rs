//! The game that one leaf is: who has to be there for a row to reach it, and what that is worth to each.
//!
//! A leaf pays its value to a coalition S if the row meets the conditions of all players in S, with the chance that
//! whatever stands in for the absent ones meets theirs. So everything follows from the set F of players whose conditions
//! the row meets, and from the chances q(T) that those in T are met in their players' absence. With the Shapley weights
//! w(s) = s! (D - 1 - s)! / D! of D players,
//!
//! ```text
//! value of player i = Y(F) - Y(F \ i) - Z(F \ i),
//! Y(F) = sum over S within F, S not empty, of w(|S| - 1) q(not S),    Z(F) = sum over S within F of w(|S|) q(not S),
//! ```
//!
//! and both sums for all F together take D 2^D steps. That each leaf's table depends on the background alone is the idea
//! of Woodelf (Nadel and Wettenstein 2025); the sums over subsets are the usual transform (Yates 1937).

/// Who takes a player's branches on a path when the player is absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Odds {
    /// The background rows that take them, one bit each.
    pub(super) rows: u128,
    /// The share of the covers that takes them.
    pub(super) ratio: f64,
}

impl Odds {
    pub(super) fn and(self, other: Self) -> Self {
        Self { rows: self.rows & other.rows, ratio: self.ratio * other.ratio }
    }

    /// Whether nobody takes them.
    pub(super) fn is_none(self) -> bool {
        self.rows == 0 || self.ratio == 0.0
    }
}

/// What is the same for every leaf: who stands in for absent players.
#[derive(Debug, Clone, Copy)]
pub(super) struct StandIns {
    /// As many bits as there are background rows; one where covers stand in.
    pub(super) all: u128,
    pub(super) is_background: bool,
}

impl StandIns {
    pub(super) fn certain(self) -> Odds {
        Odds { rows: self.all, ratio: 1.0 }
    }

    /// The chance that somebody takes the branches.
    pub(super) fn chance(self, odds: Odds) -> f64 {
        f64::from(odds.rows.count_ones()) / f64::from(self.all.count_ones()) * odds.ratio
    }
}

/// Tables of one leaf after another, in the same memory.
#[derive(Debug, Default)]
pub(super) struct Tables {
    odds: Vec<Odds>,
    with: Vec<f64>,
    without: Vec<f64>,
    /// What the leaf is worth to player `i` if the row meets the conditions of the players in `F`, at `F * D + i`.
    pub(super) values: Vec<f64>,
}

impl Tables {
    /// Fills the table of a leaf worth `value`, of whose D players `players` says who stands in for them.
    pub(super) fn fill(&mut self, players: &[Odds], value: f64, stand_ins: StandIns) {
        let count = players.len();
        let sets = 1_usize << count;
        self.odds.clear();
        self.odds.push(stand_ins.certain());
        for player in players {
            for before in 0..self.odds.len() {
                self.odds.push(self.odds[before].and(*player));
            }
        }
        let weights = shapley_weights(count);
        self.with.clear();
        self.without.clear();
        for set in 0..sets {
            let chance = value * stand_ins.chance(self.odds[sets - 1 - set]);
            let present = set.count_ones() as usize;
            self.with.push(present.checked_sub(1).map_or(0.0, |before| weights[before] * chance));
            self.without.push(weights.get(present).map_or(0.0, |weight| weight * chance));
        }
        for sums in [&mut self.with, &mut self.without] {
            for player in 0..count {
                let half = 1 << player;
                for block in sums.chunks_exact_mut(2 * half) {
                    let (without, with) = block.split_at_mut(half);
                    with.iter_mut().zip(without).for_each(|(with, without)| *with += *without);
                }
            }
        }
        self.values.clear();
        for set in 0..sets {
            for player in 0..count {
                let others = set & !(1 << player);
                self.values.push(self.with[set] - self.with[others] - self.without[others]);
            }
        }
    }
}

/// s! (D - 1 - s)! / D! for each s below D.
fn shapley_weights(count: usize) -> Vec<f64> {
    let mut weights = Vec::with_capacity(count);
    let mut weight = 1.0 / count.max(1) as f64;
    for present in 0..count {
        weights.push(weight);
        weight *= (present + 1) as f64 / (count - 1 - present).max(1) as f64;
    }
    weights
}
