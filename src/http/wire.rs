//! Answers about rows as bytes: the reference contract, field for field.
//!
//! Answers are written straight into one buffer: what is the same for every row of a batch is prepared once.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::RngCore;
use scoregate_model::explain::Explanation;
use scoregate_model::features::{FeatureRows, RowFault, RowReader};
use scoregate_model::runtime::Scores;
use scoregate_schemas::manifest::Task;
use serde::Serialize;
use ulid::{ULID_LEN, Ulid};

use super::body::Format;
use super::explain::{Explained, Reasons};
use crate::registry::Version;
use crate::scoring::Skipped;

/// New identifiers: sortable by time, 80 bits of chance, one random draw per answer and counted up from there.
#[derive(Debug)]
pub(super) struct Ids(Ulid);

impl Ids {
    /// A fresh start.
    pub(super) fn new() -> Self {
        let mut random = [0; 16];
        rand::rng().fill_bytes(&mut random[..10]);
        // The top bit stays clear, so that counting up never overflows into the time.
        let random = u128::from_le_bytes(random) & ((1 << 79) - 1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Ulid::from_parts(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), random))
    }

    /// The next identifier.
    pub(super) fn write<'b>(&mut self, buffer: &'b mut [u8; ULID_LEN]) -> &'b str {
        self.0 = self.0.increment().unwrap_or(self.0);
        self.0.array_to_str(buffer)
    }
}

/// Writes the answers of one request: what stands around the numbers is the same for every row of a version.
pub(crate) struct Answers<'v> {
    version: &'v Version,
    /// What stands before each number of a row.
    names: Vec<Vec<u8>>,
    /// What follows the last one, for each decision, where there is no explanation.
    endings: Vec<Vec<u8>>,
    ids: Ids,
    /// The place of the first row among all that are answered.
    first: usize,
    /// Where scores are explained: how that is written, and the explanations once there are any.
    reasons: Option<(Reasons<'v>, Option<Explained>)>,
}

/// `"model_version":"2026-05-17_01",`
fn write_version(out: &mut Vec<u8>, version: &Version) {
    out.extend_from_slice(b"\"model_version\":\"");
    out.extend_from_slice(version.manifest.version.as_bytes());
    out.extend_from_slice(b"\",");
}

/// What stands before number `column` of a row: `"churn_probability":`, `"value":`, or for the classes in their turn
/// `"probabilities":{"basic":` and `,"pro":`.
fn write_name(out: &mut Vec<u8>, version: &Version, column: usize) {
    match version.task {
        Task::Binary => {
            // A model's name is plain ASCII without quotes.
            out.push(b'"');
            out.extend_from_slice(version.manifest.name.as_bytes());
            out.extend_from_slice(b"_probability\":");
        }
        Task::Multiclass { .. } => {
            out.extend_from_slice(if column == 0 { b"\"probabilities\":{" } else { b"," });
            json(out, &version.labels[column]);
            out.push(b':');
        }
        Task::Regression => out.extend_from_slice(b"\"value\":"),
    }
}

/// `,"prediction":"retain","explanations":`
fn write_decision(out: &mut Vec<u8>, version: &Version, decision: usize) {
    if let Task::Multiclass { .. } = version.task {
        out.push(b'}');
    }
    if let Some(label) = version.labels.get(decision) {
        out.extend_from_slice(b",\"prediction\":");
        json(out, label);
    }
    out.extend_from_slice(b",\"explanations\":");
}

/// What stands before the identifier.
const BEFORE_ID: &[u8] = b",\"prediction_id\":\"";

/// `,"prediction":"retain","explanations":{"top_features":[]},"prediction_id":"`
fn write_ending(out: &mut Vec<u8>, version: &Version, decision: usize) {
    write_decision(out, version, decision);
    out.extend_from_slice(b"{\"top_features\":[]}");
    out.extend_from_slice(BEFORE_ID);
}

/// A number with no more digits than the graph gives it.
pub(super) fn write_number(out: &mut Vec<u8>, version: &Version, number: f64) {
    if version.float32 { json(out, &(number as f32)) } else { json(out, &number) }
}

/// A number as it is written.
pub(super) fn number_text(version: &Version, number: f64) -> String {
    let mut text = Vec::new();
    write_number(&mut text, version, number);
    String::from_utf8(text).expect("a number is ASCII")
}

/// The number that is written for `number`: what is decided has to agree with what is read.
fn written(version: &Version, number: f64) -> f64 {
    if version.float32 { f64::from(number as f32) } else { number }
}

/// Whether a number reaches the threshold as it is written: a float32 that is written 0.7 reaches a threshold of 0.7, which
/// is a little more than that float32.
fn reaches(float32: bool, number: f64, threshold: f64) -> bool {
    if float32 { number as f32 >= threshold as f32 } else { number >= threshold }
}

/// Which label a row's numbers stand for: by the threshold, or the most likely one and of equals the first. Regression has
/// none.
pub(super) fn decide(version: &Version, numbers: &[f64]) -> usize {
    match version.task {
        Task::Binary => usize::from(reaches(version.float32, numbers[0], version.threshold)),
        Task::Multiclass { .. } => {
            let number = |at: usize| written(version, numbers[at]);
            (1..numbers.len()).fold(0, |best, at| if number(at) > number(best) { at } else { best })
        }
        Task::Regression => 0,
    }
}

/// The answer to one row, and how it came about.
pub(super) fn one(
    version: &Version,
    numbers: &[f64],
    why: Option<(&Reasons<'_>, Result<&Explanation, Skipped>, &FeatureRows)>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.push(b'{');
    write_version(&mut out, version);
    for (column, number) in numbers.iter().enumerate() {
        write_name(&mut out, version, column);
        write_number(&mut out, version, *number);
    }
    let decision = decide(version, numbers);
    match why {
        None => write_ending(&mut out, version, decision),
        Some((reasons, why, row)) => {
            write_decision(&mut out, version, decision);
            match why {
                Ok(explanation) => reasons.write(&mut out, explanation, row, 0),
                Err(why) => Reasons::write_skipped(&mut out, why),
            }
            out.extend_from_slice(BEFORE_ID);
        }
    }
    out.extend_from_slice(Ids::new().write(&mut [0; ULID_LEN]).as_bytes());
    out.extend_from_slice(b"\"}");
    out
}

impl<'v> Answers<'v> {
    pub(crate) fn new(version: &'v Version, reasons: Option<Reasons<'v>>) -> Self {
        let texts = |count: usize, write: fn(&mut Vec<u8>, &Version, usize)| {
            let text = |at| {
                let mut text = Vec::new();
                write(&mut text, version, at);
                text
            };
            (0..count).map(text).collect()
        };
        Self {
            version,
            names: texts(version.task.width(), write_name),
            endings: texts(version.labels.len().max(1), write_ending),
            ids: Ids::new(),
            first: 0,
            reasons: reasons.map(|reasons| (reasons, None)),
        }
    }

    /// Takes the explanations of the rows.
    pub(crate) fn explain(&mut self, explained: Explained) {
        if let Some((_, explanations)) = &mut self.reasons {
            *explanations = Some(explained);
        }
    }

    /// For a part of more rows, whose first one is in this place among all.
    pub(crate) fn starting_at(mut self, first: usize) -> Self {
        self.first = first;
        self
    }

    /// How many bytes a scored row of a batch takes at the most, without what CSV repeats of the body.
    pub(super) fn row_bytes(&self, format: Format) -> usize {
        // As ryu writes them, which serde_json does.
        let digits = if self.version.float32 { 16 } else { 24 };
        let reasons = self.reasons.as_ref().map_or(0, |(reasons, _)| reasons.bytes(format));
        let numbers = self.names.len() * digits + reasons;
        let version = self.version.manifest.version.len();
        if format == Format::Csv {
            let label = self.version.labels.iter().map(String::len).max().unwrap_or_default();
            // Commas, and the quotes that a label may need.
            return numbers + self.names.len() + 2 * label + ULID_LEN + version + 8;
        }
        let names: usize = self.names.iter().map(Vec::len).sum();
        let ending = self.endings.iter().map(Vec::len).max().unwrap_or_default();
        let version = if format == Format::Ndjson { version + 19 } else { 0 };
        // `{"index":1234567,` and `"},` around them.
        numbers + names + ending + version + ULID_LEN + 20
    }

    /// How row `row` is explained, or why it is not; nothing where it was not to be.
    fn why(&self, row: usize) -> Option<(&Reasons<'v>, Result<Explanation, Skipped>)> {
        let (reasons, explained) = self.reasons.as_ref()?;
        Some((reasons, explained.as_ref()?.of(row)?))
    }

    /// Numbers, label, explanations and identifier, without braces.
    fn score(&mut self, out: &mut Vec<u8>, numbers: &[f64], rows: &FeatureRows, row: usize) {
        for (name, number) in self.names.iter().zip(numbers) {
            out.extend_from_slice(name);
            write_number(out, self.version, *number);
        }
        let decision = decide(self.version, numbers);
        match self.why(row) {
            None => out.extend_from_slice(&self.endings[decision]),
            Some((reasons, why)) => {
                write_decision(out, self.version, decision);
                match why {
                    Ok(explanation) => reasons.write(out, &explanation, rows, row),
                    Err(why) => Reasons::write_skipped(out, why),
                }
                out.extend_from_slice(BEFORE_ID);
            }
        }
        out.extend_from_slice(self.ids.write(&mut [0; ULID_LEN]).as_bytes());
        out.push(b'"');
    }

    /// The answer to a batch as one JSON document, in the order of the rows sent.
    pub(crate) fn json_batch(&mut self, rows: &FeatureRows, scores: &Scores, prefix: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + rows.submitted * self.row_bytes(Format::Json));
        out.push(b'{');
        write_version(&mut out, self.version);
        out.extend_from_slice(b"\"predictions\":[");
        self.each(
            rows,
            scores,
            |answers, out, index, row| {
                if index > 0 {
                    out.push(b',');
                }
                answers.batch_row(out, index, rows, row, prefix, false);
            },
            &mut out,
        );
        out.extend_from_slice(b"]}");
        out
    }

    /// The answer to a batch as one JSON object per line.
    pub(crate) fn ndjson_batch(&mut self, rows: &FeatureRows, scores: &Scores) -> Vec<u8> {
        let mut out = Vec::with_capacity(rows.submitted * self.row_bytes(Format::Ndjson));
        self.each(
            rows,
            scores,
            |answers, out, index, row| {
                answers.batch_row(out, index, rows, row, "#", true);
                out.push(b'\n');
            },
            &mut out,
        );
        out
    }

    /// The records of a CSV body with the [`added_columns`].
    pub(crate) fn csv_batch(&mut self, body: &[u8], rows: &FeatureRows, scores: &Scores) -> Vec<u8> {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(body);
        let mut writer = csv::WriterBuilder::new()
            .flexible(true)
            .from_writer(Vec::with_capacity(body.len() + rows.submitted * self.row_bytes(Format::Csv)));
        let mut record = csv::ByteRecord::new();
        let mut next = |record: &mut csv::ByteRecord| reader.read_byte_record(record).unwrap_or(false);
        next(&mut record);
        let width = record.len();
        let added = added_columns(self.version, self.reasons.as_ref().map(|(reasons, _)| reasons));
        for name in &added {
            record.push_field(name.as_bytes());
        }
        // What a refused row leaves empty: all but its version and its error.
        let empty = added.len() - 2;
        let mut write =
            |record: &csv::ByteRecord| writer.write_byte_record(record).expect("a vector takes every byte");
        write(&record);
        let mut cell = Vec::new();
        self.each(
            rows,
            scores,
            |answers, _, _, row| {
                let version = answers.version;
                next(&mut record);
                // A ragged record is squared, so that the added columns stand where the header says.
                record.truncate(width);
                while record.len() < width {
                    record.push_field(b"");
                }
                match row {
                    Row::Scored(at, numbers) => {
                        for number in numbers {
                            cell.clear();
                            write_number(&mut cell, version, *number);
                            record.push_field(&cell);
                        }
                        if let Some(label) = version.labels.get(decide(version, numbers)) {
                            record.push_field(label.as_bytes());
                        }
                        if let Some((reasons, explained)) = &answers.reasons {
                            let why = explained.as_ref().and_then(|explained| explained.of(at));
                            reasons.write_cells(&mut record, why.and_then(Result::ok).as_ref(), rows, at);
                        }
                        record.push_field(answers.ids.write(&mut [0; ULID_LEN]).as_bytes());
                        record.push_field(version.manifest.version.as_bytes());
                        record.push_field(b"");
                    }
                    Row::Refused(fault, reader) => {
                        (0..empty).for_each(|_| record.push_field(b""));
                        record.push_field(version.manifest.version.as_bytes());
                        let described = fault.faults.iter().map(|fault| {
                            let place = reader.pointer(&fault.place);
                            format!("{} {}", place.trim_start_matches('/'), reader.detail(fault))
                                .trim_start()
                                .to_string()
                        });
                        let mut text = described.collect::<Vec<_>>().join("; ");
                        if text.is_empty() {
                            text.push_str("invalid_row");
                        }
                        record.push_field(text.as_bytes());
                    }
                }
                write(&record);
            },
            &mut Vec::new(),
        );
        writer.into_inner().unwrap_or_default()
    }

    /// Calls `write` for every row that was sent, in order.
    fn each(
        &mut self,
        rows: &FeatureRows,
        scores: &Scores,
        mut write: impl FnMut(&mut Self, &mut Vec<u8>, usize, Row<'_>),
        out: &mut Vec<u8>,
    ) {
        let version = self.version;
        let mut faults = rows.faults.iter().peekable();
        let mut scored = scores.rows().enumerate();
        for index in 0..rows.submitted {
            let row = match faults.next_if(|fault| fault.index == index) {
                Some(fault) => Row::Refused(fault, &version.reader),
                None => {
                    let (row, numbers) = scored.next().expect("a row is either refused or scored");
                    Row::Scored(row, numbers)
                }
            };
            write(self, out, index, row);
        }
    }

    fn batch_row(
        &mut self,
        out: &mut Vec<u8>,
        index: usize,
        rows: &FeatureRows,
        row: Row<'_>,
        prefix: &str,
        with_version: bool,
    ) {
        out.extend_from_slice(b"{\"index\":");
        out.extend_from_slice(itoa::Buffer::new().format(self.first + index).as_bytes());
        out.push(b',');
        if with_version {
            write_version(out, self.version);
        }
        match row {
            Row::Scored(at, numbers) => self.score(out, numbers, rows, at),
            Row::Refused(fault, reader) => row_error(out, fault, self.first, reader, prefix),
        }
        out.push(b'}');
    }
}

enum Row<'r> {
    /// Its place among the checked rows, and its numbers.
    Scored(usize, &'r [f64]),
    Refused(&'r RowFault, &'r RowReader),
}

/// The columns that an answer in CSV adds to those sent: the numbers, `prediction` where there are labels, those of the
/// explanation where there are any, `prediction_id`, `model_version` and `error`. One that is called as a field of the model's
/// schema is, or as the outcome, gets `scoregate_` in front, whether that was sent or not, so that a name means the same column
/// in every answer of a version.
fn added_columns(version: &Version, reasons: Option<&Reasons<'_>>) -> Vec<String> {
    let mut names = match version.task {
        Task::Binary => vec![format!("{}_probability", version.manifest.name)],
        Task::Multiclass { .. } => {
            version.labels.iter().map(|label| format!("probability_{label}")).collect()
        }
        Task::Regression => vec!["value".to_string()],
    };
    if !version.labels.is_empty() {
        names.push("prediction".into());
    }
    names.extend(reasons.into_iter().flat_map(Reasons::columns));
    names.extend(["prediction_id", "model_version", "error"].map(String::from));
    for name in &mut names {
        let is_taken = |name: &str| {
            let schema = &version.schema;
            schema.fields.iter().any(|field| field.name == name) || schema.target.as_deref() == Some(name)
        };
        while is_taken(name) {
            name.insert_str(0, "scoregate_");
        }
    }
    names
}

/// `"error":{…}` in the place of a refused row's score.
fn row_error(out: &mut Vec<u8>, fault: &RowFault, first: usize, reader: &RowReader, prefix: &str) {
    out.extend_from_slice(b"\"error\":{\"code\":\"invalid_row\",\"errors\":[");
    for (at, one) in fault.faults.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"pointer\":");
        json(out, &format!("{prefix}/{}{}", first + fault.index, reader.pointer(&one.place)));
        out.extend_from_slice(b",\"code\":");
        json(out, one.code.as_str());
        out.extend_from_slice(b",\"detail\":");
        json(out, &reader.detail(one));
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

/// JSON of anything.
pub(super) fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a vector takes every byte");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_agrees_with_the_number_that_is_written() {
        for (number, threshold, expected) in [
            (0.7_f32, 0.7, true),
            (0.7_f32.next_down(), 0.7, false),
            (0.3, 0.3, true),
            (0.3_f32.next_down(), 0.3, false),
        ] {
            assert_eq!(reaches(true, number.into(), threshold), expected, "{number} and {threshold}");
        }
        assert!(reaches(false, 0.7, 0.7) && !reaches(false, f64::from(0.7_f32), 0.7), "of double it is less");
    }
}
