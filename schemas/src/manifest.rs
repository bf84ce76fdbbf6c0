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
    /// What is changed in the graph when it is loaded, in plain words; the file stays as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// The probability of the positive class from which on a row is labelled positive.
    pub threshold: f64,
    /// `[negative, positive]`, one label per class in their order, or none for regression.
    pub labels: Vec<String>,
    /// How far a served answer may be from the golden rows': absolute for probabilities, for regression relative to the
    /// expected value, or to a thousandth of the largest expected one.
    pub tolerance: f64,
    /// Metrics: of the trainer on rows that training never saw, of an import on the reference that came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// How the model was fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// What made this package.
    pub source: Source,
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
    /// Tensors `[N, F]` of several features side by side, as gradient boosting libraries export. A feature takes one column,
    /// or one per category where its schema says `one_hot`.
    Matrix {
        /// One entry per graph input; together they name every feature.
        inputs: Vec<MatrixBinding>,
    },
}

/// The features that a graph input takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixBinding {
    /// The graph input's name.
    pub input: String,
    /// The input's element type.
    #[serde(rename = "type")]
    pub element: Element,
    /// The features' names in the order of their columns.
    pub features: Vec<String>,
}

/// One graph input and the features that fill it from left to right, whatever the kind of the bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundInput<'b> {
    /// The graph input's name.
    pub input: &'b str,
    /// The input's element type.
    pub element: Element,
    /// The features' names.
    pub features: &'b [String],
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

    /// Every graph input and the features that it takes.
    pub fn inputs(&self) -> Vec<BoundInput<'_>> {
        match self {
            Self::Columns { columns } => columns
                .iter()
                .map(|column| BoundInput {
                    input: &column.input,
                    element: column.element,
                    features: std::slice::from_ref(&column.feature),
                })
                .collect(),
            Self::Matrix { inputs } => inputs
                .iter()
                .map(|matrix| BoundInput {
                    input: &matrix.input,
                    element: matrix.element,
                    features: &matrix.features,
                })
                .collect(),
        }
    }

    /// The element types of the inputs that take `feature`.
    pub fn elements_of(&self, feature: &str) -> Vec<Element> {
        let takes = |input: &BoundInput<'_>| input.features.iter().any(|name| name == feature);
        self.inputs().into_iter().filter(takes).map(|input| input.element).collect()
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
    /// `tensor(int32)`
    Int32,
    /// `tensor(bool)`
    Bool,
    /// `tensor(string)`
    String,
}

impl Element {
    /// As the manifest writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Int64 => "int64",
            Self::Int32 => "int32",
            Self::Bool => "bool",
            Self::String => "string",
        }
    }
}

/// Where the graph's answer is, and what it needs to become one.
///
/// `classes` counts the columns of the tensor; with one column it is the positive class's. `positive` is the place of the
/// positive class of two. Of more than two the columns are in the order of the manifest's labels, and `positive` is without
/// meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Output {
    /// A tensor `[N, classes]` of probabilities; `[N]` will do for one column.
    Probabilities {
        /// The graph output's name.
        name: String,
        /// The number of columns.
        classes: usize,
        /// The column of the positive class.
        #[serde(default)]
        positive: usize,
    },
    /// A tensor `[N, classes]` of scores that `link` turns into probabilities.
    Margin {
        /// The graph output's name.
        name: String,
        /// The number of columns.
        classes: usize,
        /// The column of the positive class.
        #[serde(default)]
        positive: usize,
        /// What turns a row of scores into probabilities.
        link: Link,
    },
    /// A sequence of one map per row, from class to probability.
    Zipmap {
        /// The graph output's name.
        name: String,
        /// The classes as the maps name them, in the order of the labels.
        keys: ClassKeys,
        /// The place of the positive class among them.
        #[serde(default)]
        positive: usize,
        /// What turns the values of a map into probabilities, where they are scores.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link: Option<Link>,
    },
    /// One tensor `[N, 1]` or `[N]` of probabilities per class.
    Columns {
        /// The graph outputs' names, in the order of the labels.
        names: Vec<String>,
        /// The place of the positive class among them.
        #[serde(default)]
        positive: usize,
    },
    /// A tensor `[N, 1]` or `[N]` of values: regression.
    Value {
        /// The graph output's name.
        name: String,
    },
}

/// What turns scores into probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// The logistic function, of each score by itself.
    Sigmoid,
    /// The exponentials of a row's scores, over their sum.
    Softmax,
}

/// The classes of a ZipMap, as its maps name them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassKeys {
    /// `map(int64, …)`
    Integers(Vec<i64>),
    /// `map(string, …)`
    Strings(Vec<String>),
}

impl ClassKeys {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Integers(keys) => keys.len(),
            Self::Strings(keys) => keys.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The classes as text.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Integers(keys) => keys.iter().map(ToString::to_string).collect(),
            Self::Strings(keys) => keys.clone(),
        }
    }
}

/// What a model answers about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// The probability of the positive class.
    Binary,
    /// One probability per class.
    Multiclass {
        /// The number of classes.
        classes: usize,
    },
    /// A value in the target's own unit.
    Regression,
}

impl Task {
    /// How many numbers answer a row.
    pub fn width(self) -> usize {
        match self {
            Self::Binary | Self::Regression => 1,
            Self::Multiclass { classes } => classes,
        }
    }
}

impl Output {
    /// The names of the graph outputs that are read.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Probabilities { name, .. }
            | Self::Margin { name, .. }
            | Self::Zipmap { name, .. }
            | Self::Value { name } => vec![name],
            Self::Columns { names, .. } => names.iter().map(String::as_str).collect(),
        }
    }

    /// The place of the positive class.
    pub fn positive(&self) -> usize {
        match self {
            Self::Probabilities { positive, .. }
            | Self::Margin { positive, .. }
            | Self::Zipmap { positive, .. }
            | Self::Columns { positive, .. } => *positive,
            Self::Value { .. } => 0,
        }
    }

    /// How many numbers the graph gives per row.
    pub fn columns(&self) -> usize {
        match self {
            Self::Probabilities { classes, .. } | Self::Margin { classes, .. } => *classes,
            Self::Zipmap { keys, .. } => keys.len(),
            Self::Columns { names, .. } => names.len(),
            Self::Value { .. } => 1,
        }
    }

    /// What turns the graph's numbers into probabilities, where they are scores.
    pub fn link(&self) -> Option<Link> {
        match self {
            Self::Margin { link, .. } => Some(*link),
            Self::Zipmap { link, .. } => *link,
            Self::Probabilities { .. } | Self::Columns { .. } | Self::Value { .. } => None,
        }
    }

    /// What is answered about a row.
    pub fn task(&self) -> Task {
        match (self, self.columns()) {
            (Self::Value { .. }, _) => Task::Regression,
            (_, ..=2) => Task::Binary,
            (_, classes) => Task::Multiclass { classes },
        }
    }
}

/// How good a model is, by what it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metrics {
    /// Of a probability.
    Binary(Box<Evaluation>),
    /// Of one probability per class.
    Multiclass(MulticlassEvaluation),
    /// Of a value.
    Regression(RegressionEvaluation),
}

/// Metrics of class probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MulticlassEvaluation {
    /// Rows that they are taken over.
    pub rows: usize,
    /// Share of rows whose most likely class is theirs.
    pub accuracy: f64,
    /// Mean negative log-likelihood, natural logarithm.
    pub log_loss: f64,
    /// Mean over the rows of the squared errors' sum over the classes.
    pub brier: f64,
}

/// Metrics of values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegressionEvaluation {
    /// Rows that they are taken over.
    pub rows: usize,
    /// Root of the mean squared error, in the target's unit.
    pub rmse: f64,
    /// Mean absolute error, in the target's unit.
    pub mae: f64,
    /// Share of the target's variance that is explained; absent where the target does not vary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r2: Option<f64>,
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
