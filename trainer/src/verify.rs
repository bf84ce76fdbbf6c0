//! What ONNX Runtime makes of an exported graph, against the trainer's own double precision.

use std::path::{Path, PathBuf};

use scoregate_model::features::RowReader;
use scoregate_model::runtime::{self, Runtime, Session, SessionOptions};
use scoregate_schemas::feature_schema::FeatureSchema;
use scoregate_schemas::manifest::{Bindings, Output};
use serde_json::Value;

use crate::data::Table;

/// How far a graph's probability may be from the trainer's own, absolute.
pub const TOLERANCE: f64 = 1e-6;

/// Rows per body handed to the reader.
const ROWS_PER_BODY: usize = 4_096;

/// Why a graph is not published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// ONNX Runtime cannot be loaded, refuses the graph or fails to run it.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// A row of the training data does not pass as a request.
    #[error("row {row} of the data, sent as a request, does not pass the feature schema: {message}")]
    Row {
        /// Row of the data, from 0.
        row: usize,
        /// What is wrong.
        message: String,
    },
    /// The graph computes something else.
    #[error(
        "the graph does not reproduce the model: row {row} of the data differs most, ONNX Runtime {served}, the trainer {expected}; \
         {beyond} of {rows} rows are beyond {TOLERANCE:e}"
    )]
    Differs {
        /// The worst row of the data, from 0.
        row: usize,
        /// ONNX Runtime's probability.
        served: f64,
        /// The trainer's.
        expected: f64,
        /// Rows beyond the tolerance.
        beyond: usize,
        /// Rows compared.
        rows: usize,
    },
}

/// Finds and loads ONNX Runtime: `library` if given, else where [`runtime::locate_library`] looks.
///
/// # Errors
/// If it is not there or cannot be loaded.
pub fn load_runtime(library: Option<&Path>) -> Result<Runtime, runtime::Error> {
    let library = match library {
        Some(library) => library.to_path_buf(),
        None => runtime::locate_library(&std::env::current_exe().unwrap_or_else(|_| PathBuf::from(".")))?,
    };
    Runtime::load(&library)
}

/// A graph that scores rows of a table the way a gateway scores requests: as JSON, through the schema, in ONNX Runtime.
#[derive(Debug)]
pub struct Scorer {
    reader: RowReader,
    session: Session,
}

impl Scorer {
    /// Opens `graph`.
    ///
    /// # Errors
    /// [`Error::Runtime`] if ONNX Runtime refuses it or it does not fit bindings and output.
    pub fn open(
        runtime: &Runtime,
        graph: &[u8],
        schema: &FeatureSchema,
        bindings: &Bindings,
        output: &Output,
    ) -> Result<Self, Error> {
        let reader = RowReader::new(schema, bindings);
        let session = runtime.session(graph, &reader, bindings, output, &SessionOptions::default())?;
        Ok(Self { reader, session })
    }

    /// The probabilities of the positive class of `rows` of `table`, one float32 each.
    ///
    /// # Errors
    /// [`Error::Row`] for a row that does not pass as a request, [`Error::Runtime`] if the graph fails.
    pub fn probabilities(&mut self, table: &Table, rows: &[usize]) -> Result<Vec<f64>, Error> {
        let mut probabilities = Vec::with_capacity(rows.len());
        for part in rows.chunks(ROWS_PER_BODY) {
            let body =
                Value::Array(part.iter().map(|&row| Value::Object(table.raw_row(row))).collect()).to_string();
            let refused = |row: usize, message| Error::Row { row, message };
            let read = self.reader.json_rows(body.as_bytes(), ROWS_PER_BODY);
            let read = read.map_err(|error| refused(part[0], error.to_string()))?.rows;
            if let Some(bad) = read.faults.first() {
                let details = bad.faults.iter().map(|fault| {
                    format!("{} {}", self.reader.pointer(&fault.place), self.reader.detail(fault))
                });
                return Err(refused(part[bad.index], details.collect::<Vec<_>>().join("; ")));
            }
            probabilities.extend(self.session.run(&read)?.positive().map(f64::from));
        }
        Ok(probabilities)
    }
}

/// Holds ONNX Runtime's probabilities to the trainer's and returns the largest difference. `rows` are rows of the data, for
/// the message.
///
/// # Errors
/// [`Error::Differs`] naming the worst row if a difference exceeds [`TOLERANCE`].
pub fn compare(rows: &[usize], served: &[f64], expected: &[f64]) -> Result<f64, Error> {
    let differences = || std::iter::zip(served, expected).map(|(served, expected)| (served - expected).abs());
    // NaN sorts above every number, so that it is never within tolerance.
    let Some((at, worst)) = differences().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) else {
        return Ok(0.0);
    };
    if worst <= TOLERANCE {
        return Ok(worst);
    }
    let beyond = differences().filter(|difference| !(0.0..=TOLERANCE).contains(difference)).count();
    Err(Error::Differs {
        row: rows[at],
        served: served[at],
        expected: expected[at],
        beyond,
        rows: served.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_worst_row() {
        assert_eq!(compare(&[4, 9], &[0.5, 0.25], &[0.5, 0.25]).unwrap(), 0.0);
        let refused = compare(&[4, 9, 11], &[0.5, 0.25, 0.1], &[0.5, 0.35, 0.101]).unwrap_err().to_string();
        assert!(refused.contains("row 9 of the data") && refused.contains("2 of 3 rows"), "{refused}");
    }

    #[test]
    fn an_answer_that_is_no_number_is_no_agreement() {
        assert!(matches!(
            compare(&[0, 1], &[0.5, f64::NAN], &[0.5, 0.5]),
            Err(Error::Differs { row: 1, beyond: 1, .. })
        ));
    }
}
