//! Log-odds → calibrated probabilities, fitted on rows that the model was not fitted on.
//!
//! Both methods follow scikit-learn's `CalibratedClassifierCV` on a fitted model. Neither linfa's `platt_scaling` nor
//! linfa-linear's `IsotonicRegression` is used: the first counts its smoothed targets and answers in float32 and stops at a
//! mean gradient of 1e-5, which is short of the 1e-6 that an exported graph is held to; the second takes knots from rows it has
//! not sorted, does not pool ties, and turns the curve round where the correlation is negative.

use ndarray::Array1;

use crate::fit::{self, nine_digits};
use crate::minimise::{Convergence, Problem, sigmoid};

/// Log-odds closer than this are one point of an isotonic curve. It bounds how steep a segment can be, so that the last
/// bits of the log-odds, which another summation order may change, do not show in the probability.
pub const ISOTONIC_TIES: f64 = 1e-6;

/// Which calibration to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Method {
    /// The model's own sigmoid.
    None,
    /// A sigmoid with slope and intercept of its own (Platt 1999).
    #[default]
    Platt,
    /// An increasing step curve, linear between its knots (Zadrozny and Elkan 2002).
    Isotonic,
}

/// From log-odds to the probability of the positive class.
#[derive(Debug, Clone, PartialEq)]
pub enum Calibration {
    /// `sigmoid(x)`
    None,
    /// `sigmoid(slope · x + intercept)`
    Platt {
        /// Factor of the log-odds.
        slope: f64,
        /// Added to them, in log-odds.
        intercept: f64,
    },
    /// Linear between knots, constant outside.
    Isotonic(Isotonic),
}

/// An increasing, piecewise linear curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Isotonic {
    /// (log-odds, probability), strictly increasing in the first and increasing in the second; at least one.
    pub knots: Vec<(f64, f64)>,
}

impl Calibration {
    /// Fits `method` on log-odds and outcomes of the calibration fold, and says how well Platt's fit converged.
    ///
    /// # Errors
    /// [`fit::Error`] if rows of one class are missing.
    pub fn fit(
        method: Method,
        log_odds: &[f64],
        positives: &[bool],
    ) -> Result<(Self, Option<Convergence>), fit::Error> {
        match method {
            Method::None => Ok((Self::None, None)),
            Method::Platt => {
                platt(log_odds, positives).map(|(calibration, convergence)| (calibration, Some(convergence)))
            }
            Method::Isotonic => Ok((Self::Isotonic(Isotonic::fit(log_odds, positives)), None)),
        }
    }

    /// The probability of the positive class at `log_odds`.
    pub fn probability(&self, log_odds: f64) -> f64 {
        match self {
            Self::None => sigmoid(log_odds),
            Self::Platt { slope, intercept } => sigmoid(slope * log_odds + intercept),
            Self::Isotonic(curve) => curve.at(log_odds),
        }
    }
}

/// Platt scaling with Platt's targets: `(n₊ + 1)/(n₊ + 2)` for positive and `1/(n₋ + 2)` for negative rows, which keep the
/// sigmoid finite where the classes do not overlap.
fn platt(log_odds: &[f64], positives: &[bool]) -> Result<(Calibration, Convergence), fit::Error> {
    let count = positives.iter().filter(|positive| **positive).count();
    if count == 0 || count == positives.len() {
        return Err(fit::Error::OneClass { positives: count, rows: positives.len() });
    }
    let (positive, negative) = (count as f64, (positives.len() - count) as f64);
    let (high, low) = ((positive + 1.0) / (positive + 2.0), 1.0 / (negative + 2.0));
    let problem = Problem {
        x: log_odds,
        columns: 1,
        targets: positives.iter().map(|&positive| if positive { high } else { low }).collect(),
        weights: vec![1.0; positives.len()],
        alpha: 0.0,
    };
    let start = Array1::from_vec(vec![0.0, ((positive + 1.0) / (negative + 1.0)).ln()]);
    let optimum = problem.minimise(start, 1e-8, 1_000)?;
    let [slope, intercept] = [0, 1].map(|at| nine_digits(optimum.parameters[at]));
    Ok((Calibration::Platt { slope, intercept }, optimum.convergence))
}

impl Isotonic {
    /// Fits by pooling adjacent violators (Best and Chakravarti 1990), as scikit-learn's `IsotonicRegression` does with
    /// `out_of_bounds="clip"`: rows of equal log-odds are averaged first, and knots inside flat stretches are dropped.
    /// scikit-learn counts log-odds as equal within 1e-15, this within [`ISOTONIC_TIES`].
    pub fn fit(log_odds: &[f64], positives: &[bool]) -> Self {
        let mut rows: Vec<(f64, f64)> = std::iter::zip(log_odds, positives)
            .map(|(&x, &positive)| (x, f64::from(u8::from(positive))))
            .collect();
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Points: first log-odds of a tie, sum of outcomes, number of rows.
        let mut points: Vec<(f64, f64, f64)> = Vec::new();
        for (x, y) in rows {
            match points.last_mut() {
                Some(point) if x - point.0 < ISOTONIC_TIES => {
                    point.1 += y;
                    point.2 += 1.0;
                }
                _ => points.push((x, y, 1.0)),
            }
        }
        // Blocks of pooled points: sum of outcomes, number of rows, number of points.
        let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
        for &(_, sum, count) in &points {
            blocks.push((sum, count, 1));
            while let [.., left, right] = blocks.as_slice()
                && left.0 * right.1 >= right.0 * left.1
            {
                let pooled = (left.0 + right.0, left.1 + right.1, left.2 + right.2);
                blocks.pop();
                blocks.pop();
                blocks.push(pooled);
            }
        }
        let mut knots = Vec::new();
        let mut first = 0;
        for (sum, count, length) in blocks {
            knots.push((points[first].0, sum / count));
            if length > 1 {
                knots.push((points[first + length - 1].0, sum / count));
            }
            first += length;
        }
        Self { knots }
    }

    /// The curve at `x`.
    pub fn at(&self, x: f64) -> f64 {
        let above = self.knots.partition_point(|knot| knot.0 < x);
        match (above.checked_sub(1).map(|below| self.knots[below]), self.knots.get(above)) {
            (None, Some(first)) => first.1,
            (Some(last), None) => last.1,
            (Some(below), Some(above)) => {
                let slope = (above.1 - below.1) / (above.0 - below.0);
                // Rounding must not lift the curve above its next knot, and a probability above 1.
                (below.1 + slope * (x - below.0)).min(above.1)
            }
            (None, None) => f64::NAN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG_ODDS: [f64; 14] = [-2.0, -1.5, -1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.5, 2.0, 2.5];
    const OUTCOMES: [u8; 14] = [0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1];

    fn outcomes() -> Vec<bool> {
        OUTCOMES.iter().map(|outcome| *outcome == 1).collect()
    }

    /// Expected numbers: Newton's method on Platt's loss in numpy; scikit-learn 1.9.1's `_SigmoidCalibration` stops at
    /// 0.7418850853 and 0.1692483598.
    #[test]
    fn platt_scaling_agrees_with_scikit_learn() {
        let (calibration, convergence) = Calibration::fit(Method::Platt, &LOG_ODDS, &outcomes()).unwrap();
        let Calibration::Platt { slope, intercept } = calibration else { panic!("{calibration:?}") };
        assert!((slope - 0.7418848767962618).abs() < 1e-8 && (slope - 0.7418850853).abs() < 1e-6, "{slope}");
        assert!(
            (intercept - 0.16924823843346906).abs() < 1e-8 && (intercept - 0.1692483598).abs() < 1e-6,
            "{intercept}"
        );
        assert!(convergence.unwrap().converged);
    }

    /// Expected numbers: scikit-learn 1.9.1, `IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1)`.
    #[test]
    fn the_isotonic_curve_agrees_with_scikit_learn() {
        let curve = Isotonic::fit(&LOG_ODDS, &outcomes());
        let expected = [
            (-2.0, 0.0),
            (-1.5, 0.25),
            (-0.5, 0.25),
            (0.0, 0.5),
            (0.25, 0.5),
            (0.5, 0.75),
            (1.0, 0.75),
            (1.5, 1.0),
            (2.5, 1.0),
        ];
        assert_eq!(curve.knots, expected);
        let asked = [-3.0, -1.75, -0.75, 0.1, 0.9, 1.2, 9.0];
        let answers = [0.0, 0.125, 0.25, 0.5, 0.75, 0.85, 1.0];
        for (x, expected) in asked.into_iter().zip(answers) {
            assert!((curve.at(x) - expected).abs() < 1e-15, "at {x}: {}", curve.at(x));
        }
    }

    #[test]
    fn perfectly_separated_scores_still_calibrate() {
        let log_odds: Vec<f64> = (0..20).map(|row| f64::from(row) - 9.5).collect();
        let positives: Vec<bool> = log_odds.iter().map(|x| *x > 0.0).collect();
        let (calibration, convergence) = Calibration::fit(Method::Platt, &log_odds, &positives).unwrap();
        assert!(convergence.unwrap().converged);
        // Platt's targets keep the probability of the last row near 11/12 rather than 1.
        assert!(calibration.probability(9.5) > 0.9 && calibration.probability(9.5) < 1.0);
        let curve = Isotonic::fit(&log_odds, &positives);
        assert_eq!((curve.at(-0.5), curve.at(0.0), curve.at(0.5)), (0.0, 0.5, 1.0));
    }

    #[test]
    fn one_class_is_no_calibration_fold_for_platt() {
        assert!(Calibration::fit(Method::Platt, &[0.0, 1.0], &[true, true]).is_err());
    }

    proptest! {
        #[test]
        fn an_isotonic_curve_rises_from_knot_to_knot(rows in prop::collection::vec((-3.0_f64..3.0, any::<bool>()), 1..60)) {
            let (x, y): (Vec<f64>, Vec<bool>) = rows.into_iter().unzip();
            let curve = Isotonic::fit(&x, &y);
            prop_assert!(curve.knots.windows(2).all(|pair| pair[0].0 + 0.99 * ISOTONIC_TIES < pair[1].0 && pair[0].1 <= pair[1].1));
            let mut sorted = x.clone();
            sorted.sort_by(f64::total_cmp);
            let fitted: Vec<f64> = sorted.iter().map(|x| curve.at(*x)).collect();
            prop_assert!(fitted.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(fitted.iter().all(|p| (0.0..=1.0).contains(p)));
            // Pooling keeps the total of the outcomes.
            let total = y.iter().filter(|positive| **positive).count() as f64;
            prop_assert!((fitted.iter().sum::<f64>() - total).abs() < 1e-6 * x.len() as f64);
        }
    }
}
