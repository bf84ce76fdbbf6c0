//! May this version be served? Golden rows through the served path, compared within the stated tolerance.

use serde_json::Value;

use crate::features::RowReader;
use crate::package::Package;
use crate::runtime::{self, Session};

/// Why a version is not served.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The graph cannot be loaded or run, or answers no probabilities.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// A golden row does not pass the version's own schema.
    #[error("golden row {row} does not pass the feature schema: {message}")]
    GoldenRow {
        /// The row, from 1.
        row: usize,
        /// What is wrong with it.
        message: String,
    },
    /// The served probability differs from the one that the model's own library gave.
    #[error(
        "golden row {row} differs most: served {served}, expected {expected}, {beyond} of {rows} rows beyond the tolerance \
         of {tolerance}"
    )]
    Golden {
        /// The worst row, from 1.
        row: usize,
        /// Its served probability.
        served: f64,
        /// Its expected probability.
        expected: f64,
        /// How many rows are beyond the tolerance.
        beyond: usize,
        /// How many rows there are.
        rows: usize,
        /// The tolerance, absolute.
        tolerance: f64,
    },
}

/// How golden rows came out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Golden {
    /// How many rows there were.
    pub rows: usize,
    /// The largest absolute difference.
    pub worst: f64,
}

/// Scores the package's golden rows through `reader` and `session`, as requests are.
///
/// # Errors
/// [`Refusal`] if a row cannot be scored or differs by more than the manifest's tolerance.
pub fn check_golden(package: &Package, reader: &RowReader, session: &mut Session) -> Result<Golden, Refusal> {
    if package.golden.is_empty() {
        return Ok(Golden { rows: 0, worst: 0.0 });
    }
    let rows = Value::Array(package.golden.iter().map(|row| Value::Object(row.features.clone())).collect());
    let unreadable = |row, message| Refusal::GoldenRow { row, message };
    let read = reader.json_rows(rows.to_string().as_bytes(), usize::MAX);
    let rows = read.map_err(|error| unreadable(1, error.to_string()))?.rows;
    if let Some(bad) = rows.faults.first() {
        let details = bad
            .faults
            .iter()
            .map(|fault| format!("{} {}", reader.pointer(&fault.place), reader.detail(fault)));
        return Err(unreadable(bad.index + 1, details.collect::<Vec<_>>().join("; ")));
    }
    let scores = session.run(&rows)?;
    let tolerance = package.manifest.tolerance;
    let differences = || {
        let expected = package.golden.iter().map(|row| row.expected);
        scores
            .positive()
            .map(f64::from)
            .zip(expected)
            .map(|(served, expected)| (served, expected, (served - expected).abs()))
    };
    let worst = differences().enumerate().max_by(|(_, a), (_, b)| a.2.total_cmp(&b.2));
    let Some((row, (served, expected, worst))) = worst else { return Ok(Golden { rows: 0, worst: 0.0 }) };
    if worst > tolerance {
        let beyond = differences().filter(|(_, _, difference)| *difference > tolerance).count();
        let rows = package.golden.len();
        return Err(Refusal::Golden { row: row + 1, served, expected, beyond, rows, tolerance });
    }
    Ok(Golden { rows: package.golden.len(), worst })
}
