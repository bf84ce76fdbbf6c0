//! All coalitions of a few features.
//!
//! Sets of features are bits of a word, feature 0 the lowest. Two background rows with the same values for the absent features
//! make the same row: they are of one *class* of that set. The classes of all sets are numbered through, so that each number
//! stands for one row to run.

use rustc_hash::{FxHashMap, FxHashSet};

use super::asking::{Asking, Meeting};
use crate::runtime;

/// Which background rows are the same, for each set of absent features.
#[derive(Debug)]
pub(super) struct Coalitions {
    features: usize,
    /// For each background row and set of absent features the class among those of the set.
    classes: Vec<u8>,
    /// For each set of absent features the number of its first class, and then the number of all classes.
    starts: Vec<u32>,
    /// For each class its first background row.
    firsts: Vec<u8>,
}

impl Coalitions {
    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.classes.len() + size_of_val(self.starts.as_slice()) + self.firsts.len()
    }

    /// `firsts` says for each feature and row which row is the first one with the same value.
    pub(super) fn new(firsts: &[Vec<u8>], rows: usize) -> Self {
        let (features, sets) = (firsts.len(), 1 << firsts.len());
        let mut coalitions =
            Self { features, classes: vec![0; rows * sets], starts: vec![0, 1], firsts: vec![0] };
        let mut found = FxHashMap::default();
        for absent in 1..sets {
            // Rows of a class of all but one of the features, with the same value for that one.
            let (feature, less) = (absent.trailing_zeros() as usize, absent & (absent - 1));
            found.clear();
            for (row, first) in firsts[feature].iter().enumerate() {
                let next = found.len() as u8;
                let class = *found.entry((coalitions.classes[row * sets + less], first)).or_insert(next);
                coalitions.classes[row * sets + absent] = class;
                if class == next {
                    coalitions.firsts.push(row as u8);
                }
            }
            coalitions.starts.push(coalitions.firsts.len() as u32);
        }
        coalitions
    }

    /// Rows of one explanation at most: without those that are the explained one, or one of the background.
    pub(super) fn rows_at_most(&self) -> usize {
        let last = self.starts.len() - 1;
        self.starts[last - 1].saturating_sub(1) as usize
    }

    /// Rows that [`Coalitions::values`] runs.
    pub(super) fn rows(&self, meeting: &Meeting) -> usize {
        let differing = sets_of(meeting);
        let others = differing.iter().enumerate().filter(|(_, set)| **set != 0);
        let known: FxHashSet<usize> = others.map(|(row, set)| self.class(row, *set)).collect();
        self.rows_of(&differing).count() - known.len()
    }

    /// The Shapley value of each feature. `value` is the explained row's number, `answers` are those of the background rows.
    pub(super) fn values(
        &self,
        meeting: &Meeting,
        asking: &mut Asking<'_, '_>,
        value: f64,
        answers: &[f64],
    ) -> Result<Vec<f64>, runtime::Error> {
        let differing = sets_of(meeting);
        // Not a number until it is known.
        let mut numbers = vec![f64::NAN; self.firsts.len()];
        for (row, (differing, answer)) in differing.iter().zip(answers).enumerate() {
            numbers[self.class(row, *differing)] = *answer;
        }
        numbers[0] = value;
        let mut asked = Vec::new();
        for (absent, class, row) in self.rows_of(&differing) {
            if numbers[class].is_nan() {
                asking.ask(row, &[absent as u64])?;
                asked.push(class);
            }
        }
        asking.flush()?;
        for (class, number) in asked.into_iter().zip(asking.numbers()) {
            numbers[class] = *number;
        }
        let mut worth = vec![0.0; 1 << self.features];
        for (row, differing) in differing.iter().enumerate() {
            for (present, worth) in worth.iter_mut().enumerate() {
                *worth += numbers[self.class(row, differing & !present)];
            }
        }
        worth.iter_mut().for_each(|worth| *worth /= answers.len() as f64);
        Ok(shapley(&worth, self.features))
    }

    /// The rows but the explained one that coalitions need, for the features in which each background row differs: which features
    /// are absent, the class and its first background row.
    fn rows_of(&self, differing: &[usize]) -> impl Iterator<Item = (usize, usize, usize)> {
        let classes = (1..1 << self.features).flat_map(move |absent: usize| {
            let classes = self.starts[absent] as usize..self.starts[absent + 1] as usize;
            classes.map(move |class| (absent, class, usize::from(self.firsts[class])))
        });
        // A class whose rows share a value with the explained one makes the row of a smaller set.
        classes.filter(move |(absent, _, row)| absent & !differing[*row] == 0)
    }

    /// The class of a background row.
    fn class(&self, row: usize, absent: usize) -> usize {
        self.starts[absent] as usize + usize::from(self.classes[row << self.features | absent])
    }
}

/// For each background row the set of features in which it differs.
fn sets_of(meeting: &Meeting) -> Vec<usize> {
    let set = |features: &Vec<usize>| features.iter().fold(0, |set, feature| set | 1 << feature);
    meeting.differing().iter().map(set).collect()
}

/// The Shapley values of a game, from the worth of each set of its players.
fn shapley(worth: &[f64], players: usize) -> Vec<f64> {
    // A set of s players has the weight s! (n - 1 - s)! / n!.
    let mut weights = vec![1.0 / players.max(1) as f64; players];
    for size in 1..players {
        weights[size] = weights[size - 1] * size as f64 / (players - size) as f64;
    }
    let value = |player: usize| {
        let without = (0..worth.len()).filter(|set| set >> player & 1 == 0);
        without
            .map(|set| weights[set.count_ones() as usize] * (worth[set | 1 << player] - worth[set]))
            .sum::<f64>()
    };
    (0..players).map(value).collect()
}
