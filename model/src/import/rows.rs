//! The rows of a reference CSV, as a client would send them, with the outcome beside them.

use std::path::Path;

use scoregate_schemas::FeatureSchema;
use scoregate_schemas::feature_schema::{Field, Kind};
use serde_json::{Map, Value};

use super::{Fault, read_file};
use crate::features::{FeatureRows, RowReader};

/// Reference rows that pass the schema. There may be millions: they are kept as columns, and a row as a client would send it
/// is read again where it is asked for.
#[derive(Debug)]
pub(super) struct ReferenceRows<'s> {
    text: Vec<u8>,
    columns: Vec<Column<'s>>,
    /// Where the record of each row begins.
    offsets: Vec<usize>,
    /// The rows, checked.
    pub(super) checked: FeatureRows,
    /// Per feature whether each row's value is missing.
    pub(super) missing: Vec<Vec<bool>>,
    /// What the target column holds, where there is one; empty cells are none.
    pub(super) outcomes: Option<Vec<Option<String>>>,
    /// Columns that the schema does not name.
    pub(super) ignored: Vec<String>,
    /// Rows that do not pass, and what is wrong with the first of them.
    pub(super) refused: Option<(usize, String)>,
}

/// What a column of the CSV is.
#[derive(Debug)]
enum Column<'s> {
    /// A feature, and its place among the schema's.
    Feature(usize, &'s Field),
    Target,
    Ignored,
}

impl ReferenceRows<'_> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Rows as a client sends them; entities are left out, missing values are null.
    pub(super) fn raw(&self, rows: impl IntoIterator<Item = usize>) -> Vec<Map<String, Value>> {
        let read = |row: usize| {
            let from = &self.text[self.offsets[row]..];
            let mut file = csv::ReaderBuilder::new().has_headers(false).from_reader(from);
            let mut record = csv::StringRecord::new();
            // It was read before.
            let _ = file.read_record(&mut record);
            members(&self.columns, &record)
        };
        rows.into_iter().map(read).collect()
    }
}

/// The features of a record.
fn members(columns: &[Column<'_>], record: &csv::StringRecord) -> Map<String, Value> {
    let features = columns.iter().zip(record).filter_map(|(column, cell)| match column {
        Column::Feature(_, field) => Some((field.name.clone(), value(field, cell))),
        Column::Target | Column::Ignored => None,
    });
    features.collect()
}

/// Reads the CSV at `path`.
///
/// # Errors
/// [`Fault::Io`] if it cannot be read, [`Fault::Reference`] if it is no CSV, lacks a needed column, or none of its rows passes.
pub(super) fn read<'s>(
    path: &Path,
    schema: &'s FeatureSchema,
    reader: &RowReader,
) -> Result<ReferenceRows<'s>, Fault> {
    let wrong = |problem: String| Fault::Reference { path: path.into(), problem };
    let mut text = read_file(path)?;
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    }
    let mut file = csv::ReaderBuilder::new().from_reader(text.as_slice());
    let header =
        file.headers().map_err(|error| wrong(format!("its header cannot be read: {error}")))?.clone();
    let mut ignored = Vec::new();
    let columns: Vec<Column<'_>> = header
        .iter()
        .map(|name| {
            let feature = schema.features().enumerate().find(|(_, field)| field.name == name);
            match feature {
                _ if schema.target.as_deref() == Some(name) => Column::Target,
                Some((at, field)) => Column::Feature(at, field),
                None => {
                    if !schema.fields.iter().any(|field| field.name == name) {
                        ignored.push(name.to_string());
                    }
                    Column::Ignored
                }
            }
        })
        .collect();
    let names: Vec<&str> = schema.features().map(|field| field.name.as_str()).collect();
    let absent: Vec<&str> =
        names.iter().copied().filter(|name| !header.iter().any(|column| column == *name)).collect();
    if !absent.is_empty() {
        return Err(wrong(format!(
            "it has no column {}; every feature of the schema needs one",
            absent.join(", ")
        )));
    }
    let mut outcomes = columns.iter().any(|column| matches!(column, Column::Target)).then(Vec::new);
    let (mut checked, mut offsets, mut refused) = (reader.empty(1_024), Vec::new(), None);
    let mut missing = vec![Vec::new(); names.len()];
    let mut record = csv::StringRecord::new();
    let mut body = Vec::new();
    loop {
        let at = file.position().clone();
        if !file.read_record(&mut record).map_err(|error| wrong(error.to_string()))? {
            break;
        }
        body.clear();
        serde_json::to_writer(&mut body, &members(&columns, &record))
            .map_err(|error| wrong(error.to_string()))?;
        let read = reader.json_row(&body, &mut checked).map_err(|error| error.to_string());
        let fault = read.err().or_else(|| {
            let fault = checked.take_fault()?;
            let described = fault
                .faults
                .iter()
                .map(|fault| format!("{} {}", reader.pointer(&fault.place), reader.detail(fault)));
            Some(described.collect::<Vec<_>>().join("; "))
        });
        if let Some(fault) = fault {
            refused.get_or_insert_with(|| (0, format!("line {}: {fault}", at.line()))).0 += 1;
            continue;
        }
        offsets.push(usize::try_from(at.byte()).unwrap_or(usize::MAX));
        for (column, cell) in columns.iter().zip(&record) {
            match (column, &mut outcomes) {
                (Column::Feature(at, _), _) => missing[*at].push(cell.is_empty()),
                (Column::Target, Some(outcomes)) => {
                    outcomes.push((!cell.is_empty()).then(|| cell.to_string()));
                }
                _ => {}
            }
        }
    }
    if offsets.is_empty() {
        let why = refused.map_or_else(String::new, |(count, first)| format!(" ({count} do not; {first})"));
        return Err(wrong(format!("none of its rows passes the schema{why}")));
    }
    drop(file);
    Ok(ReferenceRows { text, columns, offsets, checked, missing, outcomes, ignored, refused })
}

/// A cell as a client would send it.
fn value(field: &Field, cell: &str) -> Value {
    if cell.is_empty() {
        return Value::Null;
    }
    let text = || Value::from(cell);
    match field.kind {
        Kind::Category { .. } => text(),
        Kind::Boolean => match cell.to_ascii_lowercase().as_str() {
            "true" | "1" => true.into(),
            "false" | "0" => false.into(),
            _ => text(),
        },
        Kind::Number | Kind::Integer => {
            let whole = cell.parse::<i64>().map(Value::from);
            whole.unwrap_or_else(|_| match cell.parse::<f64>() {
                // 3.0 is how a column of integers with gaps is often written.
                Ok(number) if field.kind == Kind::Integer && number.fract() == 0.0 && number.abs() < 9e15 =>
                {
                    #[expect(clippy::cast_possible_truncation, reason = "whole, and within 2^53")]
                    (number as i64).into()
                }
                Ok(number) if number.is_finite() => number.into(),
                _ => text(),
            })
        }
    }
}
