//! Answers about rows as bytes: the reference contract, field for field.
//!
//! Answers are written straight into one buffer: what is the same for every row of a batch is prepared once.

use std::iter::Peekable;
use std::slice;
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

/// Writes the answers of one version: what stands around the numbers is the same for every row of it.
pub(crate) struct Answers<'v> {
    version: &'v Version,
    /// What stands before each number of a row.
    names: Vec<Vec<u8>>,
    /// What follows the last one, for each decision, where there is no explanation.
    endings: Vec<Vec<u8>>,
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

/// Which label a row's numbers stand for; see [`Decision::of`](scoregate_model::comparison::Decision::of). Regression has none.
pub(super) fn decide(version: &Version, numbers: &[f64]) -> usize {
    version.decision().of(numbers)
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
            reasons: reasons.map(|reasons| (reasons, None)),
        }
    }

    /// Takes the explanations of the rows.
    pub(crate) fn explain(&mut self, explained: Explained) {
        if let Some((_, explanations)) = &mut self.reasons {
            *explanations = Some(explained);
        }
    }

    /// How many bytes a scored row of a batch takes at the most, without what CSV repeats of the body; `with_version` where a row
    /// that is no record of CSV says which version it is from.
    pub(super) fn row_bytes(&self, format: Format, with_version: bool) -> usize {
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
        let version = if with_version { version + 19 } else { 0 };
        // `{"index":1234567,` and `"},` around them.
        numbers + names + ending + version + ULID_LEN + 20
    }

    /// To these rows, for which the model answered `scores`, or could not.
    pub(crate) fn to(self, rows: &'v FeatureRows, scores: Result<&'v Scores, &'static str>) -> Part<'v> {
        Part { answers: self, rows, scores, faults: rows.faults.iter().peekable(), next: 0 }
    }

    /// How row `row` is explained, or why it is not; nothing where it was not to be.
    fn why(&self, row: usize) -> Option<(&Reasons<'v>, Result<Explanation, Skipped>)> {
        let (reasons, explained) = self.reasons.as_ref()?;
        Some((reasons, explained.as_ref()?.of(row)?))
    }

    /// Numbers, label, explanations and identifier, without braces.
    fn score(&self, out: &mut Vec<u8>, numbers: &[f64], rows: &FeatureRows, row: usize, ids: &mut Ids) {
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
        out.extend_from_slice(ids.write(&mut [0; ULID_LEN]).as_bytes());
        out.push(b'"');
    }

    /// The columns that it adds, but for the last three: see [`added_columns`]. `cell` is for the memory.
    fn push_cells(
        &self,
        record: &mut csv::ByteRecord,
        numbers: &[f64],
        rows: &FeatureRows,
        row: usize,
        cell: &mut Vec<u8>,
    ) {
        let version = self.version;
        for number in numbers {
            cell.clear();
            write_number(cell, version, *number);
            record.push_field(cell);
        }
        if let Some(label) = version.labels.get(decide(version, numbers)) {
            record.push_field(label.as_bytes());
        }
        if let Some((reasons, explained)) = &self.reasons {
            let why = explained.as_ref().and_then(|explained| explained.of(row));
            reasons.write_cells(record, why.and_then(Result::ok).as_ref(), rows, row);
        }
    }

    fn added_columns(&self) -> Vec<String> {
        added_columns(self.version, self.reasons.as_ref().map(|(reasons, _)| reasons))
    }
}

/// The answers of one version to its rows, one after another.
pub(crate) struct Part<'r> {
    answers: Answers<'r>,
    rows: &'r FeatureRows,
    /// The code of why there are none.
    scores: Result<&'r Scores, &'static str>,
    faults: Peekable<slice::Iter<'r, RowFault>>,
    /// The next of the checked rows.
    next: usize,
}

impl<'r> Part<'r> {
    /// What is to be said of the row that was sent in place `index`, if that is one of its own and those before it were asked for.
    fn row(&mut self, index: usize) -> Row<'r> {
        if let Some(fault) = self.faults.next_if(|fault| fault.index == index) {
            return Row::Refused(fault, &self.answers.version.reader);
        }
        let at = self.next;
        self.next += 1;
        match self.scores {
            Ok(scores) => {
                let width = self.answers.version.task.width();
                Row::Scored(at, &scores.values()[at * width..][..width])
            }
            Err(code) => Row::Failed(code),
        }
    }
}

/// The answer to a batch: each row by the version that it belongs to, in the order of the rows sent.
pub(crate) struct Batch<'r> {
    parts: Vec<Part<'r>>,
    /// Which part each row that was sent belongs to; to the first of them if nothing is said.
    owners: &'r [u8],
    /// The place of the first row among all that are answered.
    first: usize,
    ids: Ids,
}

impl<'r> Batch<'r> {
    /// Of these parts, of which there is one at least.
    pub(crate) fn new(parts: Vec<Part<'r>>, owners: &'r [u8]) -> Self {
        Self { parts, owners, first: 0, ids: Ids::new() }
    }

    /// For a part of more rows, whose first one is in this place among all.
    pub(crate) fn starting_at(mut self, first: usize) -> Self {
        self.first = first;
        self
    }

    fn owner(&self, index: usize) -> usize {
        self.owners.get(index).map_or(0, |owner| usize::from(*owner))
    }

    /// How many rows were sent.
    fn submitted(&self) -> usize {
        self.parts[0].rows.submitted
    }

    /// How many bytes the scored rows take at the most, were all of them of the version with the longest.
    fn bytes(&self, format: Format) -> usize {
        let parts = self.parts.iter().enumerate();
        let rows = parts.map(|(at, part)| part.answers.row_bytes(format, tells_version(format, at)));
        self.submitted() * rows.max().unwrap_or_default()
    }

    /// As one JSON document. Rows of another version than the first say so.
    pub(crate) fn json(mut self, prefix: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.bytes(Format::Json));
        out.push(b'{');
        write_version(&mut out, self.parts[0].answers.version);
        out.extend_from_slice(b"\"predictions\":[");
        for index in 0..self.submitted() {
            if index > 0 {
                out.push(b',');
            }
            let owner = self.owner(index);
            self.row(&mut out, index, owner, prefix, tells_version(Format::Json, owner));
        }
        out.extend_from_slice(b"]}");
        out
    }

    /// As one JSON object per line.
    pub(crate) fn ndjson(mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes(Format::Ndjson));
        for index in 0..self.submitted() {
            let owner = self.owner(index);
            self.row(&mut out, index, owner, "#", tells_version(Format::Ndjson, owner));
            out.push(b'\n');
        }
        out
    }

    fn row(&mut self, out: &mut Vec<u8>, index: usize, owner: usize, prefix: &str, with_version: bool) {
        let Self { parts, first, ids, .. } = self;
        let part = &mut parts[owner];
        out.extend_from_slice(b"{\"index\":");
        out.extend_from_slice(itoa::Buffer::new().format(*first + index).as_bytes());
        out.push(b',');
        if with_version {
            write_version(out, part.answers.version);
        }
        match part.row(index) {
            Row::Scored(at, numbers) => part.answers.score(out, numbers, part.rows, at, ids),
            Row::Refused(fault, reader) => row_error(out, fault, *first, reader, prefix),
            Row::Failed(code) => row_failure(out, code),
        }
        out.push(b'}');
    }

    /// As the records of a CSV body with the [`added_columns`]: those of the first version, and what others have besides.
    pub(crate) fn csv(mut self, body: &[u8]) -> Vec<u8> {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(body);
        let buffer = Vec::with_capacity(body.len() + self.bytes(Format::Csv));
        let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(buffer);
        let mut record = csv::ByteRecord::new();
        let mut next = |record: &mut csv::ByteRecord| reader.read_byte_record(record).unwrap_or(false);
        next(&mut record);
        let width = record.len();
        let (columns, places) = self.columns();
        for name in &columns {
            record.push_field(name.as_bytes());
        }
        let mut write =
            |record: &csv::ByteRecord| writer.write_byte_record(record).expect("a vector takes every byte");
        write(&record);
        let (mut own, mut cell) = (csv::ByteRecord::new(), Vec::new());
        for index in 0..self.submitted() {
            next(&mut record);
            // A ragged record is squared, so that the added columns stand where the header says.
            record.truncate(width);
            while record.len() < width {
                record.push_field(b"");
            }
            let owner = self.owner(index);
            let part = &mut self.parts[owner];
            let row = part.row(index);
            match row {
                // Its columns are those of the header.
                Row::Scored(at, numbers) if places[owner].is_empty() => {
                    part.answers.push_cells(&mut record, numbers, part.rows, at, &mut cell);
                }
                Row::Scored(at, numbers) => {
                    own.clear();
                    part.answers.push_cells(&mut own, numbers, part.rows, at, &mut cell);
                    for place in &places[owner] {
                        record.push_field(place.and_then(|place| own.get(place)).unwrap_or_default());
                    }
                }
                Row::Refused(..) | Row::Failed(_) => {
                    (LAST_COLUMNS..columns.len()).for_each(|_| record.push_field(b""));
                }
            }
            let mut id = [0; ULID_LEN];
            let (id, error) = match row {
                Row::Scored(..) => (self.ids.write(&mut id), String::new()),
                Row::Refused(fault, reader) => ("", fault_text(fault, reader)),
                Row::Failed(code) => ("", code.to_owned()),
            };
            record.push_field(id.as_bytes());
            record.push_field(part.answers.version.manifest.version.as_bytes());
            record.push_field(error.as_bytes());
            write(&record);
        }
        writer.into_inner().unwrap_or_default()
    }

    /// The columns of all versions, and where among its own each version has those before the last three; nothing where all are
    /// its own.
    fn columns(&self) -> (Vec<String>, Vec<Vec<Option<usize>>>) {
        let own: Vec<Vec<String>> = self.parts.iter().map(|part| part.answers.added_columns()).collect();
        let (scores, last) = own[0].split_at(own[0].len() - LAST_COLUMNS);
        let mut all = scores.to_vec();
        let scores_of = |columns: &[String]| columns[..columns.len() - LAST_COLUMNS].to_vec();
        for name in own[1..].iter().flat_map(|columns| scores_of(columns)) {
            if !all.contains(&name) {
                all.push(name);
            }
        }
        let place = |columns: &[String]| {
            let own = scores_of(columns);
            if own == all {
                return Vec::new();
            }
            all.iter().map(|name| own.iter().position(|other| other == name)).collect()
        };
        let places = own.iter().map(|columns| place(columns)).collect();
        all.extend_from_slice(last);
        (all, places)
    }
}

/// Whether a row says by itself which version it is from: a document of JSON says it of the first part's once.
pub(super) fn tells_version(format: Format, part: usize) -> bool {
    format == Format::Ndjson || part > 0
}

/// What is wrong with a row, in a cell of CSV.
fn fault_text(fault: &RowFault, reader: &RowReader) -> String {
    let described = fault.faults.iter().map(|fault| {
        let place = reader.pointer(&fault.place);
        format!("{} {}", place.trim_start_matches('/'), reader.detail(fault)).trim_start().to_string()
    });
    let text = described.collect::<Vec<_>>().join("; ");
    if text.is_empty() { "invalid_row".into() } else { text }
}

#[derive(Clone, Copy)]
enum Row<'r> {
    /// Its place among the checked rows of its version, and its numbers.
    Scored(usize, &'r [f64]),
    Refused(&'r RowFault, &'r RowReader),
    /// The run of its version failed, which this code is for.
    Failed(&'static str),
}

/// How many columns of an answer in CSV follow those of scores and explanations: `prediction_id`, `model_version` and `error`.
const LAST_COLUMNS: usize = 3;

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

/// `"error":{…}` in the place of the score of a row whose version could not be run.
fn row_failure(out: &mut Vec<u8>, code: &str) {
    out.extend_from_slice(b"\"error\":{\"code\":");
    json(out, code);
    out.extend_from_slice(b",\"errors\":[]}");
}

/// JSON of anything.
pub(super) fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a vector takes every byte");
}
