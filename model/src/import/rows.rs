//! The rows of a reference CSV, as a client would send them, with the outcome beside them.

use std::path::Path;

use scoregate_schemas::FeatureSchema;
use scoregate_schemas::feature_schema::{Field, Kind, Role};
use serde_json::{Map, Value};

use super::Fault;
use crate::features::{FeatureRows, RowReader};

/// Reference rows that pass the schema.
#[derive(Debug)]
pub(super) struct ReferenceRows {
    /// As a client sends them; entities are left out, missing values are null.
    pub(super) raw: Vec<Map<String, Value>>,
    /// The same, checked.
    pub(super) checked: FeatureRows,
    /// What the target column holds, where there is one; empty cells are none.
    pub(super) outcomes: Option<Vec<Option<String>>>,
    /// Columns that the schema does not name.
    pub(super) ignored: Vec<String>,
    /// Rows that do not pass, and what is wrong with the first of them.
    pub(super) refused: Option<(usize, String)>,
}

/// What a column of the CSV is.
enum Column<'s> {
    Field(&'s Field),
    Target,
    Ignored,
}

/// Reads the CSV at `path`.
///
/// # Errors
/// [`Fault::Reference`] if it cannot be read, lacks a needed column, or none of its rows passes.
pub(super) fn read(path: &Path, schema: &FeatureSchema, reader: &RowReader) -> Result<ReferenceRows, Fault> {
    let wrong = |what: String| Fault::Reference(format!("{}: {what}", path.display()));
    let text = std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let mut file = csv::ReaderBuilder::new().from_reader(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text));
    let header =
        file.headers().map_err(|error| wrong(format!("its header cannot be read: {error}")))?.clone();
    let mut ignored = Vec::new();
    let columns: Vec<Column<'_>> = header
        .iter()
        .map(|name| match schema.fields.iter().find(|field| field.name == name) {
            _ if schema.target.as_deref() == Some(name) => Column::Target,
            Some(field) if field.role == Role::Feature => Column::Field(field),
            Some(_) => Column::Ignored,
            None => {
                ignored.push(name.to_string());
                Column::Ignored
            }
        })
        .collect();
    let absent: Vec<&str> = schema
        .features()
        .map(|field| field.name.as_str())
        .filter(|name| !header.iter().any(|column| column == *name))
        .collect();
    if !absent.is_empty() {
        return Err(wrong(format!(
            "it has no column {}; every feature of the schema needs one",
            absent.join(", ")
        )));
    }
    let has_target = columns.iter().any(|column| matches!(column, Column::Target));
    let mut rows = ReferenceRows {
        raw: Vec::new(),
        checked: reader.empty(1_024),
        outcomes: has_target.then(Vec::new),
        ignored,
        refused: None,
    };
    let mut record = csv::StringRecord::new();
    let mut line = 1;
    while file.read_record(&mut record).map_err(|error| wrong(error.to_string()))? {
        line += 1;
        let (mut raw, mut outcome) = (Map::new(), None);
        for (column, cell) in columns.iter().zip(&record) {
            match column {
                Column::Field(field) => drop(raw.insert(field.name.clone(), value(field, cell))),
                Column::Target => outcome = (!cell.is_empty()).then(|| cell.to_string()),
                Column::Ignored => {}
            }
        }
        let text = serde_json::to_vec(&raw).map_err(|error| wrong(error.to_string()))?;
        let read = reader.json_row(&text, &mut rows.checked).map_err(|error| error.to_string());
        let fault = read.err().or_else(|| {
            let fault = rows.checked.take_fault()?;
            let described = fault
                .faults
                .iter()
                .map(|fault| format!("{} {}", reader.pointer(&fault.place), reader.detail(fault)));
            Some(described.collect::<Vec<_>>().join("; "))
        });
        if let Some(fault) = fault {
            let refused = rows.refused.get_or_insert((0, format!("line {line}: {fault}")));
            refused.0 += 1;
            continue;
        }
        rows.raw.push(raw);
        if let Some(outcomes) = &mut rows.outcomes {
            outcomes.push(outcome);
        }
    }
    if rows.raw.is_empty() {
        let why =
            rows.refused.map_or_else(String::new, |(count, first)| format!(" ({count} do not; {first})"));
        return Err(wrong(format!("none of its rows passes the schema{why}")));
    }
    Ok(rows)
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
