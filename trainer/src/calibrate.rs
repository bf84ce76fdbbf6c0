//! Log-odds → calibrated probabilities, fitted on rows that the model was not fitted on.
//!
//! Both methods follow scikit-learn's `CalibratedClassifierCV` on a fitted model. Neither linfa's `platt_scaling` nor
//! linfa-linear's `IsotonicRegression` is used: the first counts its smoothed targets and answers in float32 and stops at a
//! mean gradient of 1e-5, which is short of the 1e-6 that an exported graph is held to; the second takes knots from rows it has
//! not sorted, does not pool ties, and turns the curve round where the correlation is negative.

use ndarray::Array1;

use crate::fit::{self, Convergence, Problem, nine_digits, sigmoid};

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
            Method::Platt => platt(log_odds, positives).map(|(calibration, convergence)| (calibration, Some(convergence))),
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
        let mut rows: Vec<(f64, f64)> =
            std::iter::zip(log_odds, positives).map(|(&x, &positive)| (x, f64::from(u8::from(positive)))).collect();
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
