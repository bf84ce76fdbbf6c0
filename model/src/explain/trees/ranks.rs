//! Where a value stands among the thresholds of its column, so that every test is one on whole numbers.

use super::ensemble::{Node, Test};

/// The different thresholds of one column, ascending.
///
/// With `n` of them a value has one of `2n + 2` ranks: `2i` below threshold `i` and above the one before, `2i + 1` on it,
/// `2n` above all, and `2n + 1` if it is missing.
#[derive(Debug, Clone, Default)]
pub(super) struct Cuts(Vec<f64>);

impl Cuts {
    pub(super) fn new(mut thresholds: Vec<f64>) -> Self {
        thresholds.sort_unstable_by(f64::total_cmp);
        thresholds.dedup_by(|one, other| one == other);
        Self(thresholds)
    }

    pub(super) fn rank(&self, value: f64) -> u32 {
        if value.is_nan() {
            return self.missing();
        }
        let at = self.0.partition_point(|threshold| *threshold < value);
        let on = self.0.get(at).is_some_and(|threshold| *threshold == value);
        2 * u32::try_from(at).unwrap_or(u32::MAX / 2) + u32::from(on)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.0.as_slice())
    }

    /// The rank of a missing value, which is the last.
    fn missing(&self) -> u32 {
        u32::try_from(2 * self.0.len() + 1).unwrap_or(u32::MAX)
    }

    /// The ranks that take a node's true branch.
    pub(super) fn holds(&self, node: &Node) -> Steps {
        let on = |threshold: f64| self.rank(threshold);
        let mut steps = match &node.test {
            Test::AtMost(threshold) => Steps { first: true, flips: vec![on(*threshold) + 1] },
            Test::Below(threshold) => Steps { first: true, flips: vec![on(*threshold)] },
            Test::AtLeast(threshold) => Steps { first: false, flips: vec![on(*threshold)] },
            Test::Above(threshold) => Steps { first: false, flips: vec![on(*threshold) + 1] },
            Test::Equals(threshold) => {
                Steps { first: false, flips: vec![on(*threshold), on(*threshold) + 1] }
            }
            Test::Differs(threshold) => {
                Steps { first: true, flips: vec![on(*threshold), on(*threshold) + 1] }
            }
            Test::OneOf(members) => {
                let mut ranks: Vec<u32> = members.iter().map(|member| on(*member)).collect();
                ranks.sort_unstable();
                ranks.dedup();
                // Ranks of thresholds are odd, so that no two stand side by side.
                Steps { first: false, flips: ranks.into_iter().flat_map(|rank| [rank, rank + 1]).collect() }
            }
        };
        let missing = self.missing();
        if steps.contains(missing - 1) != node.holds(f64::NAN) {
            steps.flips.push(missing);
        }
        steps
    }
}

/// A set of ranks: whether it holds rank 0, and each rank from which on that is the other way round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) first: bool,
    /// Ascending and different.
    pub(super) flips: Vec<u32>,
}

impl Steps {
    pub(super) fn all() -> Self {
        Self { first: true, flips: Vec::new() }
    }

    pub(super) fn is_all(&self) -> bool {
        self.first && self.flips.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.first && self.flips.is_empty()
    }

    pub(super) fn contains(&self, rank: u32) -> bool {
        let flips = self.flips.iter().take_while(|flip| **flip <= rank).count();
        self.first ^ (flips % 2 == 1)
    }

    pub(super) fn opposite(&self) -> Self {
        Self { first: !self.first, flips: self.flips.clone() }
    }

    /// The ranks that are in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        let (mut one, mut two) = (self.first, other.first);
        let mut both =
            Self { first: one && two, flips: Vec::with_capacity(self.flips.len() + other.flips.len()) };
        let (mut at, mut beside) = (0, 0);
        let mut last = both.first;
        while at < self.flips.len() || beside < other.flips.len() {
            let next = |flips: &[u32], at: usize| flips.get(at).copied().unwrap_or(u32::MAX);
            let flip = next(&self.flips, at).min(next(&other.flips, beside));
            if self.flips.get(at) == Some(&flip) {
                one = !one;
                at += 1;
            }
            if other.flips.get(beside) == Some(&flip) {
                two = !two;
                beside += 1;
            }
            if (one && two) != last {
                last = !last;
                both.flips.push(flip);
            }
        }
        both
    }
}
