//! Rows → folds for training, calibration and test, each with the data's share of positive rows.

use scoregate_model::random::Random;

/// Rows of a class that a split needs at least: fewer leave a fold without any.
pub const LEAST_PER_CLASS: usize = 5;

/// Rows of each fold, ascending. Together they are all rows, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folds {
    /// 60 %: scaling, categories and coefficients come from these.
    pub train: Vec<usize>,
    /// 20 %: calibration is fitted on these.
    pub calibration: Vec<usize>,
    /// 20 %: metrics and golden rows come from these.
    pub test: Vec<usize>,
}

/// A class is too small to be split.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "found {rows} rows of the {class} class, expected at least {LEAST_PER_CLASS} to split into three folds"
)]
pub struct TooFewRows {
    /// `positive` or `negative`.
    pub class: &'static str,
    /// How many there are.
    pub rows: usize,
}

impl Folds {
    /// Splits the rows of each class 60/20/20 in an order drawn by `seed`. Sizes are rounded down for calibration and test.
    ///
    /// # Errors
    /// [`TooFewRows`] if a class has fewer than [`LEAST_PER_CLASS`] rows.
    pub fn stratified(positives: &[bool], seed: u64) -> Result<Self, TooFewRows> {
        let mut folds = Self { train: Vec::new(), calibration: Vec::new(), test: Vec::new() };
        let mut random = Random::new(seed, "split");
        for (class, label) in [(false, "negative"), (true, "positive")] {
            let mut rows: Vec<usize> = (0..positives.len()).filter(|row| positives[*row] == class).collect();
            if rows.len() < LEAST_PER_CLASS {
                return Err(TooFewRows { class: label, rows: rows.len() });
            }
            random.shuffle(&mut rows);
            let fifth = rows.len() / 5;
            folds.test.extend(rows.drain(..fifth));
            folds.calibration.extend(rows.drain(..fifth));
            folds.train.extend(rows);
        }
        for fold in [&mut folds.train, &mut folds.calibration, &mut folds.test] {
            fold.sort_unstable();
        }
        Ok(folds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn too_small_a_class_is_refused() {
        let mut positives = vec![false; 100];
        positives[..4].fill(true);
        assert_eq!(Folds::stratified(&positives, 1), Err(TooFewRows { class: "positive", rows: 4 }));
    }

    proptest! {
        #[test]
        fn folds_hold_every_row_once_and_keep_the_share(positives in prop::collection::vec(any::<bool>(), 40..400), seed: u64) {
            prop_assume!(positives.iter().filter(|p| **p).count() >= 5 && positives.iter().filter(|p| !**p).count() >= 5);
            let folds = Folds::stratified(&positives, seed).unwrap();
            let mut all: Vec<usize> = [&folds.train, &folds.calibration, &folds.test].into_iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..positives.len()).collect::<Vec<_>>());
            let count = positives.iter().filter(|p| **p).count();
            for fold in [&folds.calibration, &folds.test] {
                prop_assert_eq!(fold.iter().filter(|row| positives[**row]).count(), count / 5);
                prop_assert_eq!(fold.len(), count / 5 + (positives.len() - count) / 5);
            }
            prop_assert_eq!(folds, Folds::stratified(&positives, seed).unwrap());
        }
    }
}
