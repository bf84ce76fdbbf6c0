//! What ONNX Runtime makes of an exported graph, against the trainer's own double precision.

use std::path::{Path, PathBuf};
use std::time::Duration;

use scoregate_model::explain::importance::Importance;
use scoregate_model::explain::trees::TABLE_BYTES;
use scoregate_model::explain::{Explainer, Source};
use scoregate_model::features::{FeatureRows, RowReader};
use scoregate_model::runtime::{self, Answers, Runtime, Session, SessionOptions};
use scoregate_schemas::feature_schema::FeatureSchema;
use scoregate_schemas::manifest::{Bindings, Output};
use serde_json::Value;

use crate::data::Table;
use crate::export::{LABEL, nearest};
use crate::publish;
use crate::train::Trained;

/// How far a graph's probability may be from the trainer's own, absolute.
pub const TOLERANCE: f64 = 1e-6;

/// Rows per body handed to the reader.
const ROWS_PER_BODY: usize = 4_096;

/// Training rows that are explained at most, evenly spread over the fold.
const EXPLAINED_ROWS: usize = 20_000;

/// How long that may take.
const EXPLAINED: Duration = Duration::from_secs(5);

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
        "the graph does not reproduce the model ({what}): row {row} of the data differs most, ONNX Runtime {served}, \
         the trainer {expected}; {beyond} of {rows} rows are beyond {TOLERANCE:e}"
    )]
    Differs {
        /// Which answer, and of which graph.
        what: &'static str,
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
    /// The graph's label and its probability disagree.
    #[error(
        "the graph does not follow its threshold of {threshold}: row {row} of the data, the farthest from it, has the label \
         {label} at the probability {probability}; {wrong} of {rows} labels are wrong"
    )]
    Label {
        /// The row of the data, from 0.
        row: usize,
        /// The graph's label.
        label: i64,
        /// The graph's probability.
        probability: f64,
        /// The schema's threshold.
        threshold: f64,
        /// Rows whose label is wrong.
        wrong: usize,
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
            let read = self.read(table, part)?;
            probabilities.extend_from_slice(self.session.run(&read)?.values());
        }
        Ok(probabilities)
    }

    /// At most [`ROWS_PER_BODY`] rows of `table`, read as the body of a request.
    fn read(&self, table: &Table, rows: &[usize]) -> Result<FeatureRows, Error> {
        let body =
            Value::Array(rows.iter().map(|&row| Value::Object(table.raw_row(row))).collect()).to_string();
        let refused = |row: usize, message| Error::Row { row, message };
        let read = self.reader.json_rows(body.as_bytes(), rows.len());
        let read = read.map_err(|error| refused(rows[0], error.to_string()))?.rows;
        if let Some(bad) = read.faults.first() {
            let details = bad
                .faults
                .iter()
                .map(|fault| format!("{} {}", self.reader.pointer(&fault.place), self.reader.detail(fault)));
            return Err(refused(rows[bad.index], details.collect::<Vec<_>>().join("; ")));
        }
        Ok(read)
    }
}

/// Which features move the answers of a trained model most, over its training fold.
///
/// # Errors
/// [`Error`] if rows do not pass as requests, or the graph fails.
pub fn importance(runtime: &Runtime, trained: &Trained, table: &Table) -> Result<Option<Importance>, Error> {
    let Trained { graph, schema, bindings, output, .. } = trained;
    let mut scorer = Scorer::open(runtime, graph, schema, bindings, output)?;
    let background = publish::background(table, trained);
    let source = Source {
        graph,
        bindings,
        output,
        reader: &scorer.reader,
        background: &background,
        covers: None,
        runtime,
        table_bytes: TABLE_BYTES,
    };
    let Some(explainer) = Explainer::new(&source, &mut scorer.session)? else { return Ok(None) };
    let train = &trained.folds.train;
    let count = train.len().min(EXPLAINED_ROWS);
    let rows: Vec<usize> = (0..count).map(|part| train[part * train.len() / count]).collect();
    let read = scorer.read(table, &rows)?;
    let answers = scorer.session.run(&read)?.values().to_vec();
    let mut run = |rows: &FeatureRows| Ok(scorer.session.run(rows)?.values().to_vec());
    Ok(explainer.importance(&read, &answers, EXPLAINED, &mut run)?)
}

/// A graph that was held to its model.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The test fold's probabilities of the positive class, as a gateway serves them.
    pub served: Vec<f64>,
    /// The largest difference from the trainer's.
    pub worst: f64,
}

/// Runs the whole test fold through the graph twice, as a gateway rewrites it to serve it, and as it is published for
/// anyone else to run, and holds every answer to the trainer's: both probabilities of a row and its label.
///
/// # Errors
/// [`Error::Differs`] or [`Error::Label`] naming the worst row, [`Error::Row`] for a row that does not pass as a request,
/// [`Error::Runtime`] if the graph fails.
pub fn verify(runtime: &Runtime, trained: &Trained, table: &Table) -> Result<Verified, Error> {
    let Trained { graph, schema, bindings, output, .. } = trained;
    let rows = &trained.folds.test;
    let mut scorer = Scorer::open(runtime, graph, schema, bindings, output)?;
    let mut published = runtime.unmodified(graph, &scorer.reader, bindings, output, LABEL)?;
    let (mut served, mut answers) = (Vec::with_capacity(rows.len()), Answers::default());
    for part in rows.chunks(ROWS_PER_BODY) {
        let read = scorer.read(table, part)?;
        served.extend_from_slice(scorer.session.run(&read)?.values());
        let Answers { probabilities, labels } = published.run(&read)?;
        answers.probabilities.extend(probabilities);
        answers.labels.extend(labels);
    }
    let column = |at| answers.probabilities.iter().skip(at).step_by(2).copied().map(f64::from);
    let (negative, positive): (Vec<f64>, Vec<f64>) = (column(0).collect(), column(1).collect());
    let expected = trained.pipeline.served_probabilities(table, rows);
    let complement: Vec<f64> = expected.iter().map(|probability| 1.0 - probability).collect();
    let worst = compare("as a gateway serves it", rows, &served, &expected)?
        .max(compare("as published, the positive class", rows, &positive, &expected)?)
        .max(compare("as published, the negative class", rows, &negative, &complement)?);
    check_labels(rows, &answers.labels, &positive, schema.threshold)?;
    Ok(Verified { served, worst })
}

/// Holds every label to its probability: 1 from `threshold` on, else 0, both as float32.
///
/// # Errors
/// [`Error::Label`] naming the wrong one that is farthest from the threshold.
fn check_labels(rows: &[usize], labels: &[i64], probabilities: &[f64], threshold: f64) -> Result<(), Error> {
    let reached = |at: usize| nearest(probabilities[at]) >= nearest(threshold);
    let wrong = |at: &usize| labels[*at] != i64::from(reached(*at));
    let distance = |at: &usize| (probabilities[*at] - threshold).abs();
    let all = || (0..rows.len()).filter(wrong);
    let Some(at) = all().max_by(|a, b| distance(a).total_cmp(&distance(b))) else { return Ok(()) };
    Err(Error::Label {
        row: rows[at],
        label: labels[at],
        probability: probabilities[at],
        threshold,
        wrong: all().count(),
        rows: rows.len(),
    })
}

/// Holds ONNX Runtime's probabilities to the trainer's and returns the largest difference. `what` says whose they are and
/// `rows` are rows of the data, both for the message.
///
/// # Errors
/// [`Error::Differs`] naming the worst row if a difference exceeds [`TOLERANCE`].
fn compare(what: &'static str, rows: &[usize], served: &[f64], expected: &[f64]) -> Result<f64, Error> {
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
        what,
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
        assert_eq!(compare("as published", &[4, 9], &[0.5, 0.25], &[0.5, 0.25]).unwrap(), 0.0);
        let refused = compare("as published", &[4, 9, 11], &[0.5, 0.25, 0.1], &[0.5, 0.35, 0.101])
            .unwrap_err()
            .to_string();
        assert!(refused.contains("row 9 of the data") && refused.contains("2 of 3 rows"), "{refused}");
        assert!(refused.contains("(as published)"), "{refused}");
    }

    #[test]
    fn names_the_wrong_label_that_is_farthest_from_the_threshold() {
        let rows = [4, 9, 11, 12];
        check_labels(&rows, &[0, 1, 1, 0], &[0.4, 0.5, 0.6, 0.1], 0.5).unwrap();
        let refused = check_labels(&rows, &[1, 0, 0, 0], &[0.4, 0.5, 0.7, 0.1], 0.5).unwrap_err().to_string();
        assert!(refused.contains("row 11 of the data") && refused.contains("3 of 4 labels"), "{refused}");
        assert!(check_labels(&rows, &[0, 2, 1, 0], &[0.4, 0.5, 0.6, 0.1], 0.5).is_err(), "2 is no label");
    }

    #[test]
    fn an_answer_that_is_no_number_is_no_agreement() {
        assert!(matches!(
            compare("as published", &[0, 1], &[0.5, f64::NAN], &[0.5, 0.5]),
            Err(Error::Differs { row: 1, beyond: 1, .. })
        ));
    }
}
