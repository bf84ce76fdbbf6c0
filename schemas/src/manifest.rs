//! The manifest of a published model version: what the graph takes, what it answers, and where it comes from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::feature_schema::{FeatureSchema, Kind};

/// The version of the manifest's own format; a reader refuses others.
pub const FORMAT: u32 = 1;

/// `manifest.json` of a model package.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The model's name; equals the name of the directory above the package.
    pub name: String,
    /// The version's name; equals the name of the package's directory.
    pub version: String,
    /// When it was published, RFC 3339 in UTC.
    pub created_at: String,
    /// Every other file of the package, by name: `sha256:` and 64 hexadecimal digits.
    pub files: BTreeMap<String, String>,
    /// The whole feature schema, learned categories included, so that a version is self-contained.
    pub schema: Value,
    /// How features reach the graph.
    pub bindings: Bindings,
    /// Where the graph's answer is.
    pub output: Output,
    /// The probability of the positive class from which on a row is labelled positive.
    pub threshold: f64,
    /// `[negative, positive]`.
    pub labels: Vec<String>,
    /// How far the served probability may be from the golden rows' (absolute).
    pub tolerance: f64,
    /// Metrics on rows that training never saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Evaluation>,
    /// How the model was fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// What made this package.
    pub source: Source,
}

/// `rollout.json`, beside the versions of a model: which of them answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The version that answers.
    pub live: String,
}

/// How features reach the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Bindings {
    /// One `[N, 1]` tensor per feature, as scikit-learn pipelines export.
    Columns {
        /// One entry per feature, in the order of the schema's features.
        columns: Vec<ColumnBinding>,
    },
}

impl Bindings {
    /// One input per feature, called as `input` says: strings for categories, float32 for everything else.
    pub fn columns_of(schema: &FeatureSchema, input: impl Fn(&str) -> String) -> Self {
        let columns = schema.features().map(|field| ColumnBinding {
            feature: field.name.clone(),
            input: input(&field.name),
            element: if matches!(field.kind, Kind::Category { .. }) {
                Element::String
            } else {
                Element::Float32
            },
        });
        Self::Columns { columns: columns.collect() }
    }
}

/// The graph input that takes one feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnBinding {
    /// The feature's name in the schema.
    pub feature: String,
    /// The graph input's name.
    pub input: String,
    /// The input's element type.
    #[serde(rename = "type")]
    pub element: Element,
}

/// Element type of a graph input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Element {
    /// `tensor(float)`
    Float32,
    /// `tensor(double)`
    Float64,
    /// `tensor(int64)`
    Int64,
    /// `tensor(string)`
    String,
}

/// Where the graph's answer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Output {
    /// A float tensor `[N, classes]` of probabilities.
    Probabilities {
        /// The graph output's name.
        name: String,
        /// The number of columns.
        classes: usize,
        /// The column of the positive class.
        positive: usize,
    },
}

/// An estimate with its bootstrap percentile interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The value on the holdout.
    pub value: f64,
    /// 2.5 % percentile of the resamples.
    pub lower: f64,
    /// 97.5 % percentile of the resamples.
    pub upper: f64,
}

/// Metrics on a holdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Rows of the holdout.
    pub rows: usize,
    /// Rows of the positive class.
    pub positives: usize,
    /// Area under the ROC curve.
    pub roc_auc: Estimate,
    /// Average precision.
    pub pr_auc: Estimate,
    /// Mean squared error of the probability.
    pub brier: Estimate,
    /// Mean negative log-likelihood, natural logarithm.
    pub log_loss: Estimate,
    /// Expected calibration error over equal-width bins.
    pub expected_calibration_error: Estimate,
    /// Counts at the decision threshold.
    pub confusion: Confusion,
    /// Predicted against observed share by bin of predicted probability; empty bins are left out.
    pub calibration: Vec<CalibrationBin>,
}

/// Counts of decisions at a threshold, each with its bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confusion {
    /// The threshold.
    pub threshold: f64,
    /// Positive rows labelled positive.
    pub true_positives: Estimate,
    /// Negative rows labelled positive.
    pub false_positives: Estimate,
    /// Negative rows labelled negative.
    pub true_negatives: Estimate,
    /// Positive rows labelled negative.
    pub false_negatives: Estimate,
}

/// One bin of a calibration table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationBin {
    /// Lower edge, inclusive.
    pub from: f64,
    /// Upper edge, exclusive but for the last bin.
    pub to: f64,
    /// Rows in the bin.
    pub rows: usize,
    /// Mean predicted probability.
    pub predicted: f64,
    /// Observed share of positive rows, with its interval.
    pub observed: Estimate,
}

/// How a model was fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// `scoregate-trainer` and its version.
    pub trainer: String,
    /// Rows of the data.
    pub rows: usize,
    /// Rows of the training, calibration and test folds.
    pub folds: [usize; 3],
    /// The seed of split and bootstrap.
    pub seed: u64,
    /// Digest of the CSV's bytes, `sha256:…`.
    pub data_digest: String,
    /// Hyper-parameters and fitted facts by name (C, class weight, calibration, iterations, …).
    pub parameters: BTreeMap<String, Value>,
}

/// What made a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Whether the trainer or an import made it.
    pub kind: SourceKind,
    /// The producer that the graph itself names, with its version.
    pub producer: String,
}

/// Whether the trainer or an import made a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// `scoregate-trainer fit`
    Trainer,
    /// `scoregate import`
    Import,
}
