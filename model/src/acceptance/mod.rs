//! May this version be served? A [`lint`] of the file, then golden rows through the served path, compared within the stated
//! tolerance.

pub mod accept;
pub mod child;
pub mod lint;

use std::time::Duration;

use scoregate_schemas::manifest::Task;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::features::{FeatureRows, RowReader};
use crate::package::{self, GoldenRow};
use crate::runtime::{self, Session};

/// Why a version is not served.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The package is not whole.
    #[error(transparent)]
    Package(#[from] package::Error),
    /// The file is no model that is taken.
    #[error(transparent)]
    Lint(#[from] lint::Fault),
    /// The graph cannot be loaded or run, or answers no probabilities. Nothing of it holds a value of a row.
    #[error(transparent)]
    Runtime(runtime::Error),
    /// A golden row does not pass the version's own schema.
    #[error("golden row {row} does not pass the feature schema: {message}")]
    GoldenRow {
        /// The row, from 1.
        row: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A golden row expects another kind of answer than the model gives.
    #[error("golden row {row} expects {found} number(s), the model answers {expected} per row")]
    GoldenWidth {
        /// The row, from 1.
        row: usize,
        /// How many numbers it expects.
        found: usize,
        /// How many the model answers.
        expected: usize,
    },
    /// The served answer differs from the one that the model's own library gave.
    #[error(
        "golden row {row} differs most: served {served}, expected {expected}, {beyond} of {rows} rows beyond the {tolerance}"
    )]
    Golden {
        /// The worst row, from 1.
        row: usize,
        /// The number that was served.
        served: f64,
        /// The number that was expected.
        expected: f64,
        /// How many rows are beyond the tolerance.
        beyond: usize,
        /// How many rows there are.
        rows: usize,
        /// What was allowed.
        tolerance: Tolerance,
    },
    /// Rows that were made up by the schema have no usable answer.
    #[error(
        "{unusable} of {rows} rows that were made up by the feature schema have no usable answer; give bounds, \"examples\" or \
         \"enum\" in the schema that say what a row is like, or golden rows"
    )]
    Drawn {
        /// How many of them.
        unusable: usize,
        /// How many there are.
        rows: usize,
        /// What is wrong with the first of them.
        #[source]
        first: runtime::Error,
    },
    /// There is no row to try the model with.
    #[error("no row could be made up that passes the feature schema; publish golden rows with the model")]
    NoRow,
    /// A row's answer depends on the rows beside it.
    #[error(
        "row {row} is answered {alone} by itself and {together} among others; a score has to depend on its own row alone"
    )]
    Together {
        /// The row, from 1, among those that were tried.
        row: usize,
        /// The number that it gets alone.
        alone: f64,
        /// The number that it gets among others.
        together: f64,
    },
    /// A single row takes too long.
    #[error("a single row took {took:.1?}, at most {limit:?} is taken; export a smaller model")]
    TooSlow {
        /// How long it took, the better of two.
        took: Duration,
        /// How long it may take.
        limit: Duration,
    },
}

impl From<runtime::Error> for Refusal {
    fn from(error: runtime::Error) -> Self {
        // Golden and reference rows are somebody's, and this reaches the log.
        Self::Runtime(error.without_values())
    }
}

impl Refusal {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Package(error) => error.code(),
            Self::Drawn { first, .. } => Self::code_of(first),
            Self::Runtime(error) => Self::code_of(error),
            Self::NoRow => "no_row",
            Self::Together { .. } => "row_dependent",
            Self::TooSlow { .. } => "too_slow",
            Self::Lint(fault) => fault.code(),
            Self::GoldenRow { .. } | Self::GoldenWidth { .. } => "invalid_golden",
            Self::Golden { .. } => "golden_mismatch",
        }
    }

    fn code_of(error: &runtime::Error) -> &'static str {
        match error {
            error if error.is_memory() => child::MEMORY,
            runtime::Error::Graph(_) => "graph_refused",
            runtime::Error::Binding(_) => "binding_mismatch",
            runtime::Error::Run(_) | runtime::Error::RunOfRows(_) => "run_failed",
            runtime::Error::Output(_) => "model_output_invalid",
            runtime::Error::LibraryMissing { .. }
            | runtime::Error::Library { .. }
            | runtime::Error::Provider { .. }
            | runtime::Error::Profile(_) => "runtime_unavailable",
        }
    }

    /// A sentence for clients: it holds no path and no text of ONNX Runtime, which is in the sources of errors alone.
    pub fn reason(&self) -> String {
        match self {
            Self::Package(error) => error.reason(),
            Self::Runtime(error) if error.is_memory() => "ONNX Runtime ran out of memory".into(),
            Self::Runtime(runtime::Error::LibraryMissing { .. } | runtime::Error::Library { .. }) => {
                "ONNX Runtime cannot be loaded".into()
            }
            Self::Runtime(runtime::Error::Provider { name, .. }) => {
                format!("the execution provider {name} cannot be used")
            }
            other => other.to_string(),
        }
    }
}

/// Values below this share of the largest expected one are compared on that scale.
const NEAR_ZERO: f64 = 1e-3;

/// How far an answer may be from a golden row's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// Of probabilities.
    Absolute(f64),
    /// Of values, relative to the expected one, or to a thousandth of the largest expected one.
    Relative(f64),
}

impl std::fmt::Display for Tolerance {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absolute(tolerance) => write!(formatter, "tolerance of {tolerance}"),
            Self::Relative(tolerance) => write!(formatter, "relative tolerance of {tolerance}"),
        }
    }
}

impl Tolerance {
    /// What `task` is measured by.
    pub fn of(task: Task, tolerance: f64) -> Self {
        if task == Task::Regression { Self::Relative(tolerance) } else { Self::Absolute(tolerance) }
    }

    fn limit(self) -> f64 {
        match self {
            Self::Absolute(tolerance) | Self::Relative(tolerance) => tolerance,
        }
    }

    /// Whether two numbers are further apart than is allowed.
    fn is_exceeded(self, served: f64, expected: f64) -> bool {
        self.distance(served, expected, 1.0) > self.limit()
    }

    /// How far apart two numbers are, on the scale of the tolerance; NaN is as far as can be. Relative to a number smaller than
    /// `scale`, the difference is taken relative to that.
    fn distance(self, served: f64, expected: f64, scale: f64) -> f64 {
        let difference = (served - expected).abs();
        let distance = match self {
            Self::Absolute(_) => difference,
            Self::Relative(_) => difference / expected.abs().max(scale),
        };
        if distance.is_nan() { f64::INFINITY } else { distance }
    }
}

/// How golden rows came out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// How many rows there were.
    pub rows: usize,
    /// The largest difference, absolute for probabilities and relative for values.
    pub worst: f64,
}

/// Scores golden rows through `reader` and `session`, as requests are.
///
/// # Errors
/// [`Refusal`] if a row cannot be scored or differs by more than `tolerance`.
pub fn check_golden(
    golden: &[GoldenRow],
    tolerance: f64,
    reader: &RowReader,
    session: &mut Session,
) -> Result<Golden, Refusal> {
    if golden.is_empty() {
        return Ok(Golden { rows: 0, worst: 0.0 });
    }
    let rows = read_rows(golden.iter().map(|row| &row.features), reader)
        .map_err(|(row, message)| Refusal::GoldenRow { row: row + 1, message })?;
    let scores = session.run(&rows)?;
    compare_golden(golden, scores.rows(), Tolerance::of(session.task(), tolerance))
}

/// Reads rows that are known to be good, as one body.
///
/// # Errors
/// The first row that does not pass, from 0, and what is wrong with it.
pub fn read_rows<'r>(
    rows: impl IntoIterator<Item = &'r Map<String, Value>>,
    reader: &RowReader,
) -> Result<FeatureRows, (usize, String)> {
    let mut read = reader.empty(256);
    for (at, row) in rows.into_iter().enumerate() {
        // One by one: that two rows are about the same entity does no harm here.
        let body = serde_json::to_vec(row).map_err(|error| (at, error.to_string()))?;
        reader.json_row(&body, &mut read).map_err(|error| (at, error.to_string()))?;
        if let Some(bad) = read.take_fault() {
            let details = bad
                .faults
                .iter()
                .map(|fault| format!("{} {}", reader.pointer(&fault.place), reader.detail(fault)));
            return Err((at, details.collect::<Vec<_>>().join("; ")));
        }
    }
    Ok(read)
}

/// Holds answers, one line of numbers per golden row, to what is expected.
///
/// # Errors
/// [`Refusal::Golden`] naming the worst row, [`Refusal::GoldenWidth`] for a row that expects another number of numbers.
pub fn compare_golden<'s>(
    golden: &[GoldenRow],
    served: impl Iterator<Item = &'s [f64]>,
    tolerance: Tolerance,
) -> Result<Golden, Refusal> {
    let greatest =
        golden.iter().flat_map(|row| row.expected.values()).fold(0.0, |most: f64, x| most.max(x.abs()));
    // Values near zero among large ones need not be right to their own last digit.
    let scale = if greatest > 0.0 { greatest * NEAR_ZERO } else { 1.0 };
    let (mut worst, mut beyond) = ((0, 0.0, 0.0, 0.0), 0);
    for (at, (row, served)) in golden.iter().zip(served).enumerate() {
        let expected = row.expected.values();
        if expected.len() != served.len() {
            let (found, expected) = (expected.len(), served.len());
            return Err(Refusal::GoldenWidth { row: at + 1, found, expected });
        }
        let mut furthest: f64 = 0.0;
        for (served, expected) in served.iter().zip(expected) {
            let distance = tolerance.distance(*served, *expected, scale);
            furthest = furthest.max(distance);
            if distance > worst.3 {
                worst = (at, *served, *expected, distance);
            }
        }
        beyond += usize::from(furthest > tolerance.limit());
    }
    let (row, served, expected, worst) = worst;
    if beyond > 0 {
        let rows = golden.len();
        return Err(Refusal::Golden { row: row + 1, served, expected, beyond, rows, tolerance });
    }
    Ok(Golden { rows: golden.len(), worst })
}
