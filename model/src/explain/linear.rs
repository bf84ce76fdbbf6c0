//! Shapley values of a margin that is a weighted sum of encoded columns: each feature's part of it, less its mean.
//!
//! Against the background, the value of a feature is the sum over its columns of `coefficient × (column − mean of the column over
//! the background)`, for every coalition of the others (Lundberg and Lee 2017, corollary 1).

use super::encode::{Encoder, OfFeature};
use crate::features::{Column, FeatureRows};

/// A margin that is linear in encoded columns: one or more weighted sums.
#[derive(Debug, Clone)]
pub struct LinearForm {
    pub(super) encoder: Encoder,
    /// `coefficients[output * columns + column]`
    pub(super) coefficients: Vec<f64>,
    /// One per output.
    pub(super) intercepts: Vec<f64>,
}

impl LinearForm {
    /// What turns rows into columns.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Number of margins.
    pub fn outputs(&self) -> usize {
        self.intercepts.len()
    }

    /// The coefficients of an output, one per column.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn coefficients(&self, output: usize) -> &[f64] {
        let width = self.encoder.width();
        &self.coefficients[output * width..(output + 1) * width]
    }

    /// What every row begins with, one number per output.
    pub fn intercepts(&self) -> &[f64] {
        &self.intercepts
    }

    /// Writes the margins of an encoded row, one per output.
    pub fn margin(&self, encoded: &[f64], margins: &mut [f64]) {
        for (output, margin) in margins.iter_mut().enumerate() {
            *margin = self.intercepts[output] + weighted(self.coefficients(output), encoded);
        }
    }

    /// What one feature's columns add to an output.
    fn part(&self, feature: &OfFeature, rows: &FeatureRows, row: usize, output: usize) -> f64 {
        let (coefficients, mut sum) = (self.coefficients(output), 0.0);
        feature.each(rows, row, |at, number| sum += weighed(coefficients[at], number));
        sum
    }

    /// How large the terms of an output's sum are together, which tells how far float32 may be off.
    pub(super) fn size(&self, encoded: &[f64], output: usize) -> f64 {
        let terms =
            self.coefficients(output).iter().zip(encoded).map(|(weight, x)| weighed(*weight, *x).abs());
        self.intercepts[output].abs() + terms.sum::<f64>()
    }

    /// The one margin that is the outputs' sum with these weights, plus a constant.
    pub(super) fn combine(mut self, weights: &[f64], constant: f64) -> Self {
        let width = self.encoder.width();
        let column = |at| {
            weights
                .iter()
                .enumerate()
                .map(|(output, weight)| weight * self.coefficients[output * width + at])
                .sum()
        };
        self.coefficients = (0..width).map(column).collect();
        self.intercepts = vec![constant + weighted(weights, &self.intercepts)];
        self
    }
}

/// A column without weight counts for nothing, even where it is no number.
fn weighed(weight: f64, x: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * x }
}

fn weighted(weights: &[f64], columns: &[f64]) -> f64 {
    weights.iter().zip(columns).map(|(weight, x)| weighed(*weight, *x)).sum()
}

/// Explains a linear margin against background rows. What depends on the background is computed at load.
#[derive(Debug, Clone)]
pub struct Linear {
    form: LinearForm,
    features: usize,
    /// Per output, what does not depend on the row.
    starts: Vec<f64>,
    /// Per output, the mean margin over the background.
    bases: Vec<f64>,
    /// Per feature and output, the mean over the background of its part of the margin.
    means: Vec<f64>,
    /// Per feature that is a category: its part of the margin for each listed one, a line with one number per output each.
    listed: Vec<Vec<f64>>,
}

impl Linear {
    /// Explains against `background`, rows with `features` features.
    ///
    /// # Panics
    /// If there are no rows.
    pub fn new(form: LinearForm, features: usize, background: &FeatureRows) -> Self {
        assert!(!background.is_empty(), "a mean needs rows");
        let (outputs, rows) = (form.outputs(), background.len());
        let mut means = vec![0.0; features * outputs];
        let mut starts = form.intercepts.clone();
        for (output, start) in starts.iter_mut().enumerate() {
            let coefficients = form.coefficients(output);
            for (at, number) in form.encoder.constants() {
                *start += weighed(coefficients[*at as usize], *number);
            }
        }
        let mut bases = starts.clone();
        for (output, base) in bases.iter_mut().enumerate() {
            for feature in form.encoder.features() {
                let parts = (0..rows).map(|row| form.part(feature, background, row, output));
                let mean = parts.sum::<f64>() / rows as f64;
                means[feature.number() * outputs + output] = mean;
                *base += mean;
            }
        }
        let mut listed = vec![Vec::new(); features];
        for feature in form.encoder.features() {
            let (rows, number) = (feature.listed_rows(), feature.number());
            for row in 0..rows.len() {
                for output in 0..outputs {
                    listed[number].push(form.part(feature, &rows, row, output));
                }
            }
        }
        Self { form, features, starts, bases, means, listed }
    }

    /// Number of margins.
    pub fn outputs(&self) -> usize {
        self.form.outputs()
    }

    /// The mean of an output's margin over the background.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn base(&self, output: usize) -> f64 {
        self.bases[output]
    }

    /// Bytes that what is computed beforehand takes.
    pub fn bytes(&self) -> usize {
        let listed: usize = self.listed.iter().map(|lines| size_of_val(lines.as_slice())).sum();
        listed + size_of_val(self.form.coefficients.as_slice())
    }

    /// Writes how much each feature of row `row` moves the margin of `output` away from its base: `values[feature]`. Returns the
    /// base and the margin, which base and values make together, but for rounding in double precision.
    ///
    /// # Panics
    /// If there is no such row or output, or `values` has not one entry per feature.
    pub fn explain(&self, rows: &FeatureRows, row: usize, output: usize, values: &mut [f64]) -> (f64, f64) {
        assert_eq!(values.len(), self.features, "one value per feature");
        let (outputs, mut margin) = (self.outputs(), self.starts[output]);
        values.fill(0.0);
        for feature in self.form.encoder.features() {
            let number = feature.number();
            let listed = match &rows.columns[number] {
                Column::Category(column) => {
                    self.listed[number].get(column.codes[row] as usize * outputs + output)
                }
                Column::Number(_) => None,
            };
            let part = listed.copied().unwrap_or_else(|| self.form.part(feature, rows, row, output));
            values[number] = part - self.means[number * outputs + output];
            margin += part;
        }
        (self.bases[output], margin)
    }
}
