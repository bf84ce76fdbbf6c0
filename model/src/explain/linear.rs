//! Shapley values of a margin that is a weighted sum of encoded columns: each feature's part of it, less its mean.
//!
//! Against the background, the value of a feature is the sum over its columns of `coefficient × (column − mean of the column over
//! the background)`, for every coalition of the others (Lundberg and Lee 2017, corollary 1).

use super::encode::{Encoder, OfFeature};
use crate::features::{Column, FeatureRows};

/// A margin that is linear in encoded columns: one or more weighted sums.
#[derive(Debug, Clone)]
pub(super) struct LinearForm {
    pub(super) encoder: Encoder,
    /// `coefficients[output * columns + column]`
    pub(super) coefficients: Vec<f64>,
    /// One per output.
    pub(super) intercepts: Vec<f64>,
}

impl LinearForm {
    /// What turns rows into columns.
    pub(super) fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Number of margins.
    pub(super) fn outputs(&self) -> usize {
        self.intercepts.len()
    }

    /// The coefficients of an output, one per column.
    ///
    /// # Panics
    /// If there is no such output.
    pub(super) fn coefficients(&self, output: usize) -> &[f64] {
        let width = self.encoder.width();
        &self.coefficients[output * width..(output + 1) * width]
    }

    /// Writes the margins of an encoded row, one per output.
    pub(super) fn margin(&self, encoded: &[f64], margins: &mut [f64]) {
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

    /// The same of all outputs.
    fn parts(&self, feature: &OfFeature, rows: &FeatureRows, row: usize, parts: &mut [f64]) {
        let width = self.encoder.width();
        parts.fill(0.0);
        feature.each(rows, row, |at, number| {
            for (output, part) in parts.iter_mut().enumerate() {
                *part += weighed(self.coefficients[output * width + at], number);
            }
        });
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
pub(super) struct Linear {
    form: LinearForm,
    features: usize,
    /// Per output, what does not depend on the row.
    starts: Vec<f64>,
    /// Per output, the mean margin over the background.
    pub(super) bases: Vec<f64>,
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
    pub(super) fn new(form: LinearForm, features: usize, background: &FeatureRows) -> Self {
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
        let (mut bases, mut parts) = (starts.clone(), vec![0.0; outputs]);
        let mut listed = vec![Vec::new(); features];
        for feature in form.encoder.features() {
            let means = &mut means[feature.number() * outputs..][..outputs];
            for row in 0..rows {
                form.parts(feature, background, row, &mut parts);
                means.iter_mut().zip(&parts).for_each(|(sum, part)| *sum += part);
            }
            means.iter_mut().for_each(|sum| *sum /= rows as f64);
            bases.iter_mut().zip(&*means).for_each(|(base, mean)| *base += mean);
            let (rows, lines) = (feature.listed_rows(), &mut listed[feature.number()]);
            lines.reserve_exact(rows.len() * outputs);
            for row in 0..rows.len() {
                form.parts(feature, &rows, row, &mut parts);
                lines.extend_from_slice(&parts);
            }
        }
        Self { form, features, starts, bases, means, listed }
    }

    /// Number of margins.
    pub(super) fn outputs(&self) -> usize {
        self.form.outputs()
    }

    /// Memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let lists = [&self.starts, &self.bases, &self.means, &self.form.coefficients, &self.form.intercepts];
        self.form.encoder.bytes()
            + size_of_val(self.listed.as_slice())
            + lists.into_iter().chain(&self.listed).map(|list| size_of_val(list.as_slice())).sum::<usize>()
    }

    /// Writes how much each feature of row `row` moves the margin of `output` away from its base: `values[feature]`. Returns the
    /// base and the margin, which base and values make together, but for rounding in double precision.
    ///
    /// # Panics
    /// If there is no such row or output, or `values` has not one entry per feature.
    pub(super) fn explain(
        &self,
        rows: &FeatureRows,
        row: usize,
        output: usize,
        values: &mut [f64],
    ) -> (f64, f64) {
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
