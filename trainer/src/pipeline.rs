//! The fitted model in double precision: scaling, one-hot encoding, coefficients and calibration in one place.
//!
//! This is the trainer's own answer; an exported graph is held to it.

use ndarray::ArrayView1;

use crate::calibrate::Calibration;
use crate::data::{Table, Values};
use crate::encode::{Encoder, Encoding, places};

/// A fitted model.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// One term per feature, in the schema's order.
    pub terms: Vec<Term>,
    /// Log-odds of a row of mean numbers and unknown categories.
    pub intercept: f64,
    /// From log-odds to probability.
    pub calibration: Calibration,
}

/// What one feature adds to the log-odds.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// The feature's name.
    pub feature: String,
    /// How its value counts.
    pub effect: Effect,
}

/// How a feature's value counts.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// `(x − mean) / scale · coefficient`
    Linear {
        /// The training fold's mean.
        mean: f64,
        /// Its standard deviation.
        scale: f64,
        /// Log-odds per standard deviation.
        coefficient: f64,
    },
    /// The coefficient of the category; 0 if unknown.
    Categorical {
        /// The categories.
        categories: Vec<String>,
        /// One per category, in log-odds.
        coefficients: Vec<f64>,
    },
}

impl Pipeline {
    /// Puts an encoding and the coefficients of its columns together, not calibrated.
    pub fn new(
        table: &Table,
        encoding: &Encoding,
        coefficients: ArrayView1<'_, f64>,
        intercept: f64,
    ) -> Self {
        let mut left = coefficients.iter().copied();
        let terms = std::iter::zip(&table.features, &encoding.encoders).map(|(feature, encoder)| Term {
            feature: feature.field.name.clone(),
            effect: match encoder {
                Encoder::Standard { mean, scale } => {
                    Effect::Linear { mean: *mean, scale: *scale, coefficient: left.next().unwrap_or(0.0) }
                }
                Encoder::OneHot { categories } => Effect::Categorical {
                    categories: categories.clone(),
                    coefficients: left.by_ref().take(categories.len()).collect(),
                },
            },
        });
        Self { terms: terms.collect(), intercept, calibration: Calibration::None }
    }

    /// Log-odds of `rows` of `table`, before calibration, with numbers as the file holds them.
    pub fn log_odds(&self, table: &Table, rows: &[usize]) -> Vec<f64> {
        self.sum(table, rows, |number| number)
    }

    /// Probabilities of `rows` of `table` as a gateway scores them: numbers rounded to float32 first.
    #[expect(clippy::cast_possible_truncation, reason = "a graph's inputs are float32")]
    pub fn served_probabilities(&self, table: &Table, rows: &[usize]) -> Vec<f64> {
        let log_odds = self.sum(table, rows, |number| f64::from(number as f32));
        log_odds.into_iter().map(|x| self.calibration.probability(x)).collect()
    }

    fn sum(&self, table: &Table, rows: &[usize], round: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut sums = vec![self.intercept; rows.len()];
        for (term, feature) in std::iter::zip(&self.terms, &table.features) {
            match (&term.effect, &feature.values) {
                (Effect::Linear { mean, scale, coefficient }, Values::Numbers(numbers)) => {
                    for (sum, &row) in sums.iter_mut().zip(rows) {
                        *sum += (round(numbers[row]) - mean) / scale * coefficient;
                    }
                }
                (Effect::Categorical { categories, coefficients }, Values::Categories { names, codes }) => {
                    let effects: Vec<f64> = places(categories, names)
                        .into_iter()
                        .map(|place| place.map_or(0.0, |place| coefficients[place]))
                        .collect();
                    for (sum, &row) in sums.iter_mut().zip(rows) {
                        *sum += effects[codes[row] as usize];
                    }
                }
                // A feature keeps its kind, so that its effect always fits it.
                (Effect::Linear { .. }, Values::Categories { .. })
                | (Effect::Categorical { .. }, Values::Numbers(_)) => {}
            }
        }
        sums
    }
}
