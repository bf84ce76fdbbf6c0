//! How good predicted probabilities are: ranking, accuracy, calibration and decisions, with bootstrap intervals.
//!
//! Formulas, for rows `i` with probability `pᵢ` and outcome `yᵢ` in {0, 1}:
//!
//! - **ROC AUC**: the share of (positive, negative) pairs that are ranked rightly, a tied pair counting one half (the
//!   Mann–Whitney statistic), which is the area under the trapezoid ROC curve.
//! - **PR AUC**: average precision, `Σ (Rₖ − Rₖ₋₁) Pₖ` over the different probabilities from high to low; tied rows enter
//!   together, and nothing is interpolated (scikit-learn's `average_precision_score`).
//! - **Brier score**: mean of `(pᵢ − yᵢ)²`.
//! - **Log loss**: mean of `−ln pᵢ` over positive and `−ln(1 − pᵢ)` over negative rows, in nats. Probabilities are clipped to
//!   [2⁻⁵², 1 − 2⁻⁵²] for it alone (as scikit-learn does), since isotonic calibration may answer 0 or 1.
//! - **Expected calibration error** (Naeini, Cooper and Hauskrecht 2015): over [`BINS`] bins of equal width, bin `⌊10 p⌋`, the mean
//!   of `|mean p − share of positives|`, weighted by rows.
//!
//! Intervals are bootstrap percentiles, 2.5 % to 97.5 %, over rows drawn with replacement.

use scoregate_schemas::manifest::{
    CalibrationBin, Confusion, Estimate, Evaluation, MulticlassEvaluation, RegressionEvaluation,
};

use crate::random::Random;

/// Bins of the calibration table and of the expected calibration error.
pub const BINS: usize = 10;

/// Resamples of a bootstrap, unless asked otherwise.
pub const RESAMPLES: usize = 500;

/// Why predictions cannot be measured.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// Every prediction needs its outcome.
    #[error("found {probabilities} probabilities and {outcomes} outcomes, expected as many of each")]
    Lengths {
        /// Number of probabilities.
        probabilities: usize,
        /// Number of outcomes.
        outcomes: usize,
    },
    /// A ranking needs rows of both classes.
    #[error("found {positives} positive rows of {rows}, expected at least one row of each class")]
    OneClass {
        /// Rows of the positive class.
        positives: usize,
        /// All rows.
        rows: usize,
    },
    /// There is nothing to measure.
    #[error("found no row with an outcome that can be used")]
    NoRows,
    /// A value is no probability.
    #[error("row {row}: found {value}, expected a probability from 0 to 1")]
    NotAProbability {
        /// Index of the row.
        row: usize,
        /// What was found.
        value: f64,
    },
}

/// How intervals are drawn.
#[derive(Debug, Clone, Copy)]
pub struct Bootstrap {
    /// Number of resamples; with none, intervals are the estimate itself.
    pub resamples: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Every metric of one sample of rows.
#[derive(Debug, Clone, PartialEq)]
struct Measures {
    /// Absent where the sample holds one class only.
    ranking: Option<(f64, f64)>,
    brier: f64,
    log_loss: f64,
    calibration_error: f64,
    /// True positives, false positives, true negatives, false negatives.
    confusion: [f64; 4],
    bins: [Bin; BINS],
}

/// Rows, sum of probabilities and number of positives in one calibration bin.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bin {
    rows: f64,
    predicted: f64,
    positives: f64,
}

/// Rows sorted by probability, so that a resample costs one pass and no sorting.
struct Ranked {
    rows: Vec<Row>,
}

struct Row {
    probability: f64,
    positive: bool,
    predicted_positive: bool,
    squared_error: f64,
    loss: f64,
    bin: usize,
}

impl Ranked {
    fn new(probabilities: &[f64], positives: &[bool], threshold: f64) -> Result<Self, Error> {
        if probabilities.len() != positives.len() {
            return Err(Error::Lengths { probabilities: probabilities.len(), outcomes: positives.len() });
        }
        if let Some(row) = probabilities.iter().position(|p| !(0.0..=1.0).contains(p)) {
            return Err(Error::NotAProbability { row, value: probabilities[row] });
        }
        let count = positives.iter().filter(|positive| **positive).count();
        if count == 0 || count == positives.len() {
            return Err(Error::OneClass { positives: count, rows: positives.len() });
        }
        let mut rows: Vec<Row> = std::iter::zip(probabilities, positives)
            .map(|(&probability, &positive)| Row {
                probability,
                positive,
                predicted_positive: probability >= threshold,
                squared_error: (probability - f64::from(u8::from(positive))).powi(2),
                loss: loss(probability, positive),
                bin: bin(probability),
            })
            .collect();
        // A stable sort: equal probabilities keep the order of the data, and sums are the same at every run.
        rows.sort_by(|a, b| a.probability.total_cmp(&b.probability));
        Ok(Self { rows })
    }

    /// Measures the sample in which sorted row `i` occurs `counts[i]` times.
    fn measure(&self, counts: &[u32]) -> Measures {
        let mut bins = [Bin::default(); BINS];
        let (mut squared_error, mut loss) = (0.0, 0.0);
        let mut confusion = [0.0; 4];
        for (row, &count) in std::iter::zip(&self.rows, counts) {
            let count = f64::from(count);
            squared_error += count * row.squared_error;
            loss += count * row.loss;
            let cell = match (row.predicted_positive, row.positive) {
                (true, true) => 0,
                (true, false) => 1,
                (false, false) => 2,
                (false, true) => 3,
            };
            confusion[cell] += count;
            let bin = &mut bins[row.bin];
            bin.rows += count;
            bin.predicted += count * row.probability;
            bin.positives += if row.positive { count } else { 0.0 };
        }
        let rows: f64 = bins.iter().map(|bin| bin.rows).sum();
        let gaps: f64 = bins.iter().map(|bin| (bin.predicted - bin.positives).abs()).sum();
        Measures {
            ranking: self.ranking(counts, confusion[0] + confusion[3], confusion[1] + confusion[2]),
            brier: squared_error / rows,
            log_loss: loss / rows,
            calibration_error: gaps / rows,
            confusion,
            bins,
        }
    }

    /// ROC AUC and average precision.
    fn ranking(&self, counts: &[u32], positives: f64, negatives: f64) -> Option<(f64, f64)> {
        if positives == 0.0 || negatives == 0.0 {
            return None;
        }
        let (mut pairs, mut precision) = (0.0, 0.0);
        let (mut above_positives, mut above) = (0.0, 0.0);
        let mut end = self.rows.len();
        while end > 0 {
            let probability = self.rows[end - 1].probability;
            let (mut tied_positives, mut tied) = (0.0, 0.0);
            while end > 0 && self.rows[end - 1].probability == probability {
                end -= 1;
                let count = f64::from(counts[end]);
                tied += count;
                tied_positives += if self.rows[end].positive { count } else { 0.0 };
            }
            if tied > 0.0 {
                pairs += (tied - tied_positives) * (above_positives + 0.5 * tied_positives);
                above += tied;
                above_positives += tied_positives;
                precision += tied_positives * above_positives / above;
            }
        }
        Some((pairs / (positives * negatives), precision / positives))
    }
}

fn loss(probability: f64, positive: bool) -> f64 {
    let right = if positive { probability } else { 1.0 - probability };
    -right.clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln()
}

/// The calibration bin of a probability; the last one holds 1.0 as well.
pub fn bin(probability: f64) -> usize {
    ((probability * BINS as f64) as usize).min(BINS - 1)
}

/// Area under the ROC curve of `scores` (any finite numbers, higher for more likely positive).
///
/// # Errors
/// If lengths differ, or rows of one class are missing.
pub fn roc_auc(scores: &[f64], positives: &[bool]) -> Result<f64, Error> {
    ranking_of(scores, positives).map(|(auc, _)| auc)
}

/// Average precision of `scores` (any finite numbers, higher for more likely positive).
///
/// # Errors
/// If lengths differ, or rows of one class are missing.
pub fn average_precision(scores: &[f64], positives: &[bool]) -> Result<f64, Error> {
    ranking_of(scores, positives).map(|(_, precision)| precision)
}

fn ranking_of(scores: &[f64], positives: &[bool]) -> Result<(f64, f64), Error> {
    // Ranks stand in for the scores, which need not be probabilities.
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    let scale = sorted.len().max(1) as f64;
    let ranks: Vec<f64> =
        scores.iter().map(|score| sorted.partition_point(|other| other < score) as f64 / scale).collect();
    let ranked = Ranked::new(&ranks, positives, 0.5)?;
    let count = positives.iter().filter(|positive| **positive).count();
    let (positive, negative) = (count as f64, (positives.len() - count) as f64);
    ranked
        .ranking(&vec![1; scores.len()], positive, negative)
        .ok_or(Error::OneClass { positives: count, rows: positives.len() })
}

/// Measures `probabilities` of the positive class against outcomes; a row counts as labelled positive from `threshold` on.
///
/// A resample without one of the classes says nothing about ranking and is left out of those two intervals, and one
/// without rows in a bin out of that bin's. Counts of the confusion table are per holdout, not shares.
///
/// # Errors
/// If lengths differ, a value is no probability, or rows of one class are missing.
pub fn evaluate(
    probabilities: &[f64],
    positives: &[bool],
    threshold: f64,
    bootstrap: Bootstrap,
) -> Result<Evaluation, Error> {
    let ranked = Ranked::new(probabilities, positives, threshold)?;
    let rows = ranked.rows.len();
    let measured = ranked.measure(&vec![1; rows]);
    let mut random = Random::new(bootstrap.seed, "bootstrap");
    let mut counts = vec![0_u32; rows];
    let resamples: Vec<Measures> = (0..bootstrap.resamples)
        .map(|_| {
            counts.fill(0);
            for _ in 0..rows {
                counts[random.below(rows)] += 1;
            }
            ranked.measure(&counts)
        })
        .collect();
    let estimate = |read: &dyn Fn(&Measures) -> Option<f64>| -> Option<Estimate> {
        let value = read(&measured)?;
        let mut drawn: Vec<f64> = resamples.iter().filter_map(read).collect();
        drawn.sort_by(f64::total_cmp);
        let bound = |share| percentile(&drawn, share).unwrap_or(value);
        Some(Estimate { value, lower: bound(0.025), upper: bound(0.975) })
    };
    let whole = |read: &dyn Fn(&Measures) -> f64| {
        estimate(&|measures| Some(read(measures))).unwrap_or(Estimate {
            value: f64::NAN,
            lower: f64::NAN,
            upper: f64::NAN,
        })
    };
    let count = positives.iter().filter(|positive| **positive).count();
    let one_class = || Error::OneClass { positives: count, rows };
    let calibration = (0..BINS)
        .filter_map(|index| {
            let share = |measures: &Measures| {
                let bin = measures.bins[index];
                (bin.rows > 0.0).then(|| bin.positives / bin.rows)
            };
            let bin = measured.bins[index];
            Some(CalibrationBin {
                from: index as f64 / BINS as f64,
                to: (index + 1) as f64 / BINS as f64,
                rows: bin.rows as usize,
                predicted: bin.predicted / bin.rows,
                observed: estimate(&share)?,
            })
        })
        .collect();
    Ok(Evaluation {
        rows,
        positives: count,
        roc_auc: estimate(&|measures| measures.ranking.map(|(auc, _)| auc)).ok_or_else(one_class)?,
        pr_auc: estimate(&|measures| measures.ranking.map(|(_, precision)| precision))
            .ok_or_else(one_class)?,
        brier: whole(&|measures| measures.brier),
        log_loss: whole(&|measures| measures.log_loss),
        expected_calibration_error: whole(&|measures| measures.calibration_error),
        confusion: Confusion {
            threshold,
            true_positives: whole(&|measures| measures.confusion[0]),
            false_positives: whole(&|measures| measures.confusion[1]),
            true_negatives: whole(&|measures| measures.confusion[2]),
            false_negatives: whole(&|measures| measures.confusion[3]),
        },
        calibration,
    })
}

/// The quantile `share` of sorted values, linear between neighbours (numpy's default); absent if there are none.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let position = share * (sorted.len().checked_sub(1)? as f64);
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    Some(sorted[below] + (position - below as f64) * (sorted[above] - sorted[below]))
}

/// Points of the ROC curve, (false positive rate, true positive rate) from (0, 0) to (1, 1), one per different score.
///
/// # Errors
/// If lengths differ, a value is no probability, or rows of one class are missing.
pub fn roc_curve(probabilities: &[f64], positives: &[bool]) -> Result<Vec<(f64, f64)>, Error> {
    let ranked = Ranked::new(probabilities, positives, 0.5)?;
    let positive_rows = positives.iter().filter(|positive| **positive).count() as f64;
    let negative_rows = positives.len() as f64 - positive_rows;
    let mut points = vec![(0.0, 0.0)];
    let (mut false_positives, mut true_positives) = (0.0, 0.0);
    for (index, row) in ranked.rows.iter().enumerate().rev() {
        if row.positive {
            true_positives += 1.0;
        } else {
            false_positives += 1.0;
        }
        if index == 0 || ranked.rows[index - 1].probability != row.probability {
            points.push((false_positives / negative_rows, true_positives / positive_rows));
        }
    }
    Ok(points)
}

/// Metrics of class probabilities: for each row its class, and one probability per class.
///
/// # Errors
/// [`Error::NoRows`] if there are none.
pub fn evaluate_classes(rows: &[(usize, &[f64])]) -> Result<MulticlassEvaluation, Error> {
    if rows.is_empty() {
        return Err(Error::NoRows);
    }
    let (mut right, mut log_loss, mut brier) = (0_usize, 0.0, 0.0);
    for (class, probabilities) in rows {
        let own = probabilities.get(*class).copied().unwrap_or(0.0);
        // The first of equals, as answers are labelled.
        let first_of_equals = probabilities.iter().position(|other| *other == greatest(probabilities));
        right += usize::from(first_of_equals == Some(*class));
        log_loss -= own.clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln();
        let error =
            |(at, probability): (usize, &f64)| (probability - f64::from(u8::from(at == *class))).powi(2);
        brier += probabilities.iter().enumerate().map(error).sum::<f64>();
    }
    let count = rows.len() as f64;
    Ok(MulticlassEvaluation {
        rows: rows.len(),
        accuracy: right as f64 / count,
        log_loss: log_loss / count,
        brier: brier / count,
    })
}

fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Metrics of values: for each row its outcome and what was predicted.
///
/// # Errors
/// [`Error::NoRows`] if there are none.
pub fn evaluate_values(rows: &[(f64, f64)]) -> Result<RegressionEvaluation, Error> {
    if rows.is_empty() {
        return Err(Error::NoRows);
    }
    let count = rows.len() as f64;
    let mean = rows.iter().map(|(outcome, _)| outcome).sum::<f64>() / count;
    let squares: f64 = rows.iter().map(|(outcome, predicted)| (outcome - predicted).powi(2)).sum();
    let absolute: f64 = rows.iter().map(|(outcome, predicted)| (outcome - predicted).abs()).sum();
    let variance: f64 = rows.iter().map(|(outcome, _)| (outcome - mean).powi(2)).sum();
    Ok(RegressionEvaluation {
        rows: rows.len(),
        rmse: (squares / count).sqrt(),
        mae: absolute / count,
        r2: (variance > 0.0).then(|| 1.0 - squares / variance),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROBABILITIES: [f64; 12] = [0.1, 0.4, 0.35, 0.8, 0.8, 0.2, 0.6, 0.95, 0.35, 0.05, 0.6, 1.0];
    const OUTCOMES: [u8; 12] = [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1];
    const NO_BOOTSTRAP: Bootstrap = Bootstrap { resamples: 0, seed: 0 };

    fn outcomes() -> Vec<bool> {
        OUTCOMES.iter().map(|outcome| *outcome == 1).collect()
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-14, "found {found}, expected {expected}");
    }

    /// Expected numbers: scikit-learn 1.9.1 (`roc_auc_score`, `average_precision_score`, `brier_score_loss`, `log_loss`,
    /// `confusion_matrix`), and numpy for the calibration error.
    #[test]
    fn agrees_with_scikit_learn_where_scores_are_tied() {
        let found = evaluate(&PROBABILITIES, &outcomes(), 0.6, NO_BOOTSTRAP).unwrap();
        close(found.roc_auc.value, 0.8611111111111112);
        close(found.pr_auc.value, 0.8472222222222221);
        close(found.brier.value, 0.1466666666666667);
        close(found.log_loss.value, 0.4397295026153793);
        close(found.expected_calibration_error.value, 0.20833333333333334);
        let Confusion { true_positives, false_positives, true_negatives, false_negatives, .. } =
            found.confusion;
        let counts =
            [true_positives, false_positives, true_negatives, false_negatives].map(|count| count.value);
        assert_eq!(counts, [5.0, 1.0, 5.0, 1.0]);
        assert_eq!((found.rows, found.positives), (12, 6));
    }

    /// Expected number: scikit-learn 1.9.1, `log_loss` with one negative row at probability 1.
    #[test]
    fn a_certain_mistake_costs_a_finite_log_loss() {
        let mut positives = outcomes();
        positives[11] = false;
        let found = evaluate(&PROBABILITIES, &positives, 0.5, NO_BOOTSTRAP).unwrap();
        close(found.log_loss.value, 3.4433672850418087);
    }

    /// Expected points: scikit-learn 1.9.1, `roc_curve(drop_intermediate=False)`.
    #[test]
    fn the_roc_curve_has_one_point_per_score() {
        let sixths = [(0, 0), (0, 1), (0, 2), (1, 3), (1, 5), (2, 5), (3, 6), (4, 6), (5, 6), (6, 6)];
        let expected: Vec<(f64, f64)> =
            sixths.iter().map(|(x, y)| (f64::from(*x) / 6.0, f64::from(*y) / 6.0)).collect();
        assert_eq!(roc_curve(&PROBABILITIES, &outcomes()).unwrap(), expected);
    }

    #[test]
    fn margins_rank_as_probabilities_do() {
        let margins: Vec<f64> = PROBABILITIES.iter().map(|p| 40.0 * p - 17.0).collect();
        close(roc_auc(&margins, &outcomes()).unwrap(), 0.8611111111111112);
        close(average_precision(&margins, &outcomes()).unwrap(), 0.8472222222222221);
    }

    #[test]
    fn the_calibration_table_leaves_empty_bins_out() {
        let found =
            evaluate(&[0.05, 0.15, 0.15, 1.0], &[false, true, false, true], 0.5, NO_BOOTSTRAP).unwrap();
        let bins: Vec<_> =
            found.calibration.iter().map(|bin| (bin.from, bin.rows, bin.observed.value)).collect();
        assert_eq!(bins, [(0.0, 1, 0.0), (0.1, 2, 0.5), (0.9, 1, 1.0)]);
    }

    #[test]
    fn refuses_what_cannot_be_measured() {
        let refused = |probabilities: &[f64], positives: &[bool]| {
            evaluate(probabilities, positives, 0.5, NO_BOOTSTRAP).unwrap_err()
        };
        assert_eq!(refused(&[0.5], &[]), Error::Lengths { probabilities: 1, outcomes: 0 });
        assert_eq!(refused(&[], &[]), Error::OneClass { positives: 0, rows: 0 });
        assert_eq!(refused(&[0.1, 0.2], &[true, true]), Error::OneClass { positives: 2, rows: 2 });
        assert_eq!(refused(&[0.1, 1.5], &[true, false]), Error::NotAProbability { row: 1, value: 1.5 });
        assert!(matches!(refused(&[f64::NAN, 0.5], &[true, false]), Error::NotAProbability { row: 0, .. }));
    }

    /// The bootstrap's standard error of a mean is `s/√n`; its 95 % interval is about ± 1.96 of it.
    #[test]
    fn intervals_are_as_wide_as_theory_says() {
        let rows = 2_000;
        let mut random = Random::new(5, "test");
        let probabilities: Vec<f64> = (0..rows).map(|_| random.uniform()).collect();
        let positives: Vec<bool> = probabilities.iter().map(|p| random.uniform() < *p).collect();
        let found = evaluate(&probabilities, &positives, 0.5, Bootstrap { resamples: 500, seed: 1 }).unwrap();
        let errors: Vec<f64> = probabilities
            .iter()
            .zip(&positives)
            .map(|(p, y)| (p - f64::from(u8::from(*y))).powi(2))
            .collect();
        let mean = errors.iter().sum::<f64>() / rows as f64;
        let deviation = (errors.iter().map(|error| (error - mean).powi(2)).sum::<f64>() / rows as f64).sqrt();
        let expected = 2.0 * 1.96 * deviation / (rows as f64).sqrt();
        let width = found.brier.upper - found.brier.lower;
        // A percentile of 500 resamples is itself uncertain by about 7 % of the width.
        assert!((width / expected - 1.0).abs() < 0.15, "{width} against {expected}");
        assert!(found.brier.lower < found.brier.value && found.brier.value < found.brier.upper);
        let again = evaluate(&probabilities, &positives, 0.5, Bootstrap { resamples: 500, seed: 1 }).unwrap();
        assert_eq!(found, again);
    }

    /// Ten equally spaced values: numpy's `percentile` gives 0.225 and 8.775.
    #[test]
    fn percentiles_are_linear_between_neighbours() {
        let sorted: Vec<f64> = (0..10).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.025), Some(0.225));
        close(percentile(&sorted, 0.975).unwrap(), 8.775);
        assert_eq!(percentile(&[], 0.5), None);
    }

    proptest! {
        #[test]
        fn the_auc_is_the_share_of_pairs_ranked_rightly(rows in prop::collection::vec((0_u8..6, any::<bool>()), 2..40)) {
            let probabilities: Vec<f64> = rows.iter().map(|(score, _)| f64::from(*score) / 5.0).collect();
            let positives: Vec<bool> = rows.iter().map(|(_, positive)| *positive).collect();
            prop_assume!(positives.contains(&true) && positives.contains(&false));
            let (mut right, mut pairs) = (0.0, 0.0);
            for (p, _) in rows.iter().filter(|row| row.1) {
                for (n, _) in rows.iter().filter(|row| !row.1) {
                    right += if p > n { 1.0 } else if p == n { 0.5 } else { 0.0 };
                    pairs += 1.0;
                }
            }
            prop_assert!((roc_auc(&probabilities, &positives).unwrap() - right / pairs).abs() < 1e-12);
            let found = evaluate(&probabilities, &positives, 0.5, Bootstrap { resamples: 20, seed: 3 }).unwrap();
            prop_assert!((found.roc_auc.value - right / pairs).abs() < 1e-12);
            let curve = roc_curve(&probabilities, &positives).unwrap();
            let area: f64 = curve.windows(2).map(|pair| (pair[1].0 - pair[0].0) * (pair[1].1 + pair[0].1) / 2.0).sum();
            prop_assert!((area - right / pairs).abs() < 1e-12, "the trapezoid area under the curve is the same number");
        }
    }

    #[test]
    fn class_probabilities_are_measured_as_scikit_learn_does() {
        // sklearn.metrics 1.9.1: accuracy_score, log_loss; the Brier score summed over the classes.
        let rows = [(0, [0.7, 0.2, 0.1]), (1, [0.5, 0.4, 0.1]), (2, [0.1, 0.1, 0.8]), (1, [0.4, 0.4, 0.2])];
        let rows: Vec<(usize, &[f64])> = rows.iter().map(|(class, line)| (*class, line.as_slice())).collect();
        let found = evaluate_classes(&rows).unwrap();
        assert_eq!((found.rows, found.accuracy), (4, 0.5));
        assert!((found.log_loss - 0.603_099_989_750_313_1).abs() < 1e-12, "{}", found.log_loss);
        assert!((found.brier - 0.345).abs() < 1e-12, "{}", found.brier);
        assert_eq!(evaluate_classes(&[]), Err(Error::NoRows));
    }

    #[test]
    fn values_are_measured_as_scikit_learn_does() {
        // sklearn.metrics 1.9.1: root_mean_squared_error, mean_absolute_error, r2_score.
        let found = evaluate_values(&[(3.0, 2.5), (-0.5, 0.0), (2.0, 2.0), (7.0, 8.0)]).unwrap();
        assert!((found.rmse - 0.612_372_435_695_794_5).abs() < 1e-12);
        assert!((found.mae - 0.5).abs() < 1e-12);
        assert!((found.r2.unwrap() - 0.948_608_137_044_968).abs() < 1e-12);
        assert_eq!(evaluate_values(&[(1.0, 1.0)]).unwrap().r2, None);
    }
}
