//! JSON or CSV rows → checked feature columns, by the feature schema.
//!
//! One row and many take the same path. A [`RowReader`] is compiled once per model version; it reads a body straight into
//! [`FeatureRows`], one column per feature, without a document in between. Whether one row is bad never depends on
//! another: a bad row leaves a [`RowFault`] and no trace in the columns.

mod columns;
mod csv;
mod field;
mod json;
pub mod probe;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use rustc_hash::FxHashMap;
use scoregate_schemas::feature_schema::{FeatureSchema, Field, Kind, Role, escape};
use scoregate_schemas::manifest::Bindings;
use serde_json::{Map, Value};

pub use self::columns::{CategoryColumn, Column, FeatureRows};
pub use self::field::Cell;
use self::field::{FieldReader, Slot, describe_range};
pub use self::json::JsonRows;

pub use scoregate_schemas::feature_schema::MAX_TEXT_BYTES;

/// Faults beyond this many in one body are counted, not described: a small body must not make a large answer.
pub const MAX_DESCRIBED_FAULTS: usize = 1_000;

/// A schema compiled for reading rows.
#[derive(Debug)]
pub struct RowReader {
    fields: Vec<FieldReader>,
    by_name: FxHashMap<Box<str>, usize>,
    features: usize,
}

/// One row that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFault {
    /// Its place among the rows that were sent.
    pub index: usize,
    /// What is wrong with it; empty beyond [`MAX_DESCRIBED_FAULTS`].
    pub faults: Vec<FieldFault>,
    /// Whom it is about, where it says so all the same.
    pub entity: Option<Box<str>>,
}

/// What is wrong with one field of a row, or with the row itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFault {
    /// Which field.
    pub place: Place,
    /// What is wrong.
    pub code: FaultCode,
}

/// Where in a row a fault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The row as a whole.
    Row,
    /// A field of the schema, by its position among all fields.
    Field(usize),
    /// A field that the schema does not have.
    Unknown(Box<str>),
}

/// What is wrong with a value. `as_str` is the stable code that clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultCode {
    /// The value is of another JSON type, or a CSV cell does not read as the field's type.
    Type,
    /// The value is null or absent.
    Required,
    /// The schema has no such field.
    UnknownField,
    /// The number lies outside the schema's bounds.
    Range,
    /// The text is longer or shorter than allowed.
    Length,
    /// The category is not listed, and unknown ones do not pass.
    Category,
    /// The integer cannot be held exactly by the graph's input.
    Precision,
    /// The number is too large for the graph's input.
    Overflow,
    /// The text holds a NUL character, or an entity a control character.
    Character,
    /// Another row of the same body is about the same entity.
    DuplicateEntity,
    /// The line or record cannot be parsed, or names a field twice.
    Malformed,
    /// The CSV record has more or fewer cells than the header.
    Columns,
}

impl FaultCode {
    /// The stable code that clients see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Required => "required",
            Self::UnknownField => "unknown_field",
            Self::Range => "range",
            Self::Length => "length",
            Self::Category => "unknown_category",
            Self::Precision => "precision",
            Self::Overflow => "overflow",
            Self::Character => "character",
            Self::DuplicateEntity => "duplicate_entity",
            Self::Malformed => "malformed",
            Self::Columns => "columns",
        }
    }
}

/// Why a body as a whole cannot be read as rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The body is not JSON. The message names line and column, never a value.
    #[error("malformed JSON: {0}")]
    Json(String),
    /// An object names the same field twice, so that its meaning depends on the reader.
    #[error("malformed JSON: an object names the same field twice, at line {line} column {column}")]
    DuplicateField {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// The JSON document is a scalar.
    #[error("expected {expected}")]
    Root {
        /// What was expected instead.
        expected: &'static str,
    },
    /// The document is of the wrong shape: pointers and what was expected there.
    #[error("{detail}")]
    Shape {
        /// JSON pointer, as a URI fragment.
        pointer: String,
        /// Code of the fault.
        code: FaultCode,
        /// What was found and expected.
        detail: String,
    },
    /// The CSV header does not fit the schema.
    #[error("the CSV header does not fit the model's features")]
    Header(Vec<FieldFault>),
    /// There are no rows.
    #[error("expected at least one row")]
    Empty,
    /// There are more rows than allowed.
    #[error("more than {limit} rows")]
    TooManyRows {
        /// The limit.
        limit: usize,
    },
}

impl RowReader {
    /// Compiles `schema` for a graph bound by `bindings`.
    pub fn new(schema: &FeatureSchema, bindings: &Bindings) -> Self {
        let mut features = 0;
        let fields: Vec<FieldReader> = schema
            .fields
            .iter()
            .map(|field| {
                let slot = match field.role {
                    Role::Feature => {
                        features += 1;
                        Slot::Feature(features - 1)
                    }
                    Role::Entity => Slot::Entity,
                    Role::Ignore => Slot::Ignored,
                };
                FieldReader::new(field.clone(), slot, &bindings.elements_of(&field.name))
            })
            .collect();
        let by_name =
            fields.iter().enumerate().map(|(at, reader)| (reader.field.name.as_str().into(), at)).collect();
        Self { fields, by_name, features }
    }

    /// The fields that reach the graph, in order.
    pub fn features(&self) -> impl Iterator<Item = &Field> {
        self.fields
            .iter()
            .filter(|reader| matches!(reader.slot, Slot::Feature(_)))
            .map(|reader| &reader.field)
    }

    /// How many values the schema lists of each feature, in their order.
    pub(super) fn listed(&self) -> impl Iterator<Item = usize> {
        let is_feature = |reader: &&FieldReader| matches!(reader.slot, Slot::Feature(_));
        self.fields.iter().filter(is_feature).map(|reader| reader.codes.len())
    }

    /// The fields that rows may name, in the schema's order.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().map(|reader| &reader.field)
    }

    /// Appends checked row `row` to `out`, in one form for all ways of writing it. Two rows of one schema have the same form
    /// only if the graph is given the same values.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn write_canonical(&self, rows: &FeatureRows, row: usize, out: &mut Vec<u8>) {
        for reader in &self.fields {
            let Slot::Feature(column) = reader.slot else { continue };
            match &rows.columns[column] {
                // Of missing values there is one kind, whatever its bits.
                Column::Number(values) if values[row].is_nan() => {
                    out.extend_from_slice(&f64::NAN.to_bits().to_le_bytes());
                }
                Column::Number(values) => out.extend_from_slice(&values[row].to_bits().to_le_bytes()),
                Column::Category(column) => {
                    let code = column.codes[row] as usize;
                    match code.checked_sub(reader.codes.len()) {
                        None => out.extend_from_slice(&column.codes[row].to_le_bytes()),
                        Some(other) => {
                            let text = column.others[other].as_bytes();
                            out.extend_from_slice(&u32::MAX.to_le_bytes());
                            out.extend_from_slice(&(text.len() as u64).to_le_bytes());
                            out.extend_from_slice(text);
                        }
                    }
                }
            }
        }
    }

    /// Whether rows may name whom they are about.
    pub fn has_entity(&self) -> bool {
        self.fields.iter().any(|reader| reader.slot == Slot::Entity)
    }

    /// Whether every body becomes the same rows as with `other`, faults included.
    pub fn reads_as(&self, other: &Self) -> bool {
        let mut pairs = self.fields.iter().zip(&other.fields);
        self.fields.len() == other.fields.len() && pairs.all(|(field, other)| field.reads_as(other))
    }

    /// Where a fault is within its row: `/tenure_days`, or nothing for the row itself.
    pub fn pointer(&self, place: &Place) -> String {
        match place {
            Place::Row => String::new(),
            Place::Field(at) => format!("/{}", escape(&self.fields[*at].field.name)),
            Place::Unknown(name) => format!("/{}", escape(name)),
        }
    }

    /// A sentence on what was expected. It never repeats the value.
    pub fn detail(&self, fault: &FieldFault) -> Cow<'static, str> {
        let field = match &fault.place {
            Place::Field(at) => Some(&self.fields[*at]),
            Place::Row | Place::Unknown(_) => None,
        };
        match (fault.code, field) {
            (FaultCode::Type, None) => "expected an object with one member per feature".into(),
            (FaultCode::Type, Some(reader)) => match reader.field.kind {
                Kind::Number => "expected number".into(),
                Kind::Integer => "expected integer".into(),
                Kind::Boolean => "expected boolean".into(),
                Kind::Category { .. } => "expected string".into(),
            },
            (FaultCode::Required, _) => "expected a value, found none".into(),
            (FaultCode::UnknownField, _) => match &fault.place {
                Place::Unknown(name) => match self.closest(name) {
                    Some(known) => format!("the model has no such feature; did you mean \"{known}\"?").into(),
                    None => "the model has no such feature".into(),
                },
                Place::Row | Place::Field(_) => "the model has no such feature".into(),
            },
            (FaultCode::Range, Some(reader)) => {
                format!("expected a number {}", describe_range(&reader.field)).into()
            }
            (FaultCode::Range, None) => "expected a number within bounds".into(),
            (FaultCode::Length, _) => {
                format!("expected text within the schema's length, at most {MAX_TEXT_BYTES} bytes").into()
            }
            (FaultCode::Category, Some(reader)) => match &reader.field.kind {
                Kind::Category { values: Some(values) } if values.len() <= 20 => {
                    format!("expected one of {}", values.join(", ")).into()
                }
                _ => "expected one of the listed categories".into(),
            },
            (FaultCode::Category, None) => "expected one of the listed categories".into(),
            (FaultCode::Precision, Some(reader)) => format!(
                "expected an integer that {} holds exactly; this one would be changed silently",
                reader.element_name()
            )
            .into(),
            (FaultCode::Precision, None) => "expected an integer that the model's input holds exactly".into(),
            (FaultCode::Overflow, _) => "expected a number within the range of the model's input".into(),
            (FaultCode::Character, _) => "expected text without control characters".into(),
            (FaultCode::DuplicateEntity, _) => {
                "another row of this body is about the same entity; send each once".into()
            }
            (FaultCode::Malformed, Some(_)) => "expected the column once, and UTF-8 in its cells".into(),
            (FaultCode::Malformed, None) => {
                "expected one well-formed JSON object, each field named once".into()
            }
            (FaultCode::Columns, _) => "expected as many cells as the header has columns".into(),
        }
    }

    /// The known field whose name is closest to `name`, if any is close.
    fn closest(&self, name: &str) -> Option<&str> {
        if name.len() > 64 {
            return None;
        }
        let lower = name.to_lowercase();
        let distance = |known: &str| strsim::damerau_levenshtein(&lower, &known.to_lowercase());
        let (known, distance) =
            self.fields().map(|f| (f.name.as_str(), distance(&f.name))).min_by_key(|(_, d)| *d)?;
        let prefix = known.to_lowercase().starts_with(&lower) || lower.starts_with(&known.to_lowercase());
        (distance <= 1 + known.len() / 3 || (prefix && name.len() >= 3)).then_some(known)
    }

    /// Room for `rows` rows.
    pub fn empty(&self, rows: usize) -> FeatureRows {
        let mut columns = Vec::with_capacity(self.features);
        for field in self.features() {
            columns.push(match field.kind {
                Kind::Category { .. } => {
                    Column::Category(CategoryColumn { codes: Vec::with_capacity(rows), others: Vec::new() })
                }
                _ => Column::Number(Vec::with_capacity(rows)),
            });
        }
        FeatureRows { columns, indices: Vec::with_capacity(rows), ..FeatureRows::default() }
    }

    /// Reads a row as clients send it into `rows`, if it passes.
    pub fn read_map(&self, row: &Map<String, Value>, rows: &mut FeatureRows) {
        if let Ok(body) = serde_json::to_vec(row)
            && self.json_row(&body, rows).is_ok()
        {
            let _ = rows.take_fault();
        }
    }

    /// Reads one cell of a CSV file into the field called `name`; for readers of files with columns of their own, such as
    /// a training set.
    ///
    /// # Errors
    /// The [`FaultCode`] of a cell that does not pass; [`FaultCode::UnknownField`] if the schema has no such feature.
    pub fn read_cell<'t>(&self, name: &str, text: &'t str) -> Result<Cell<'t>, FaultCode> {
        let at = *self.by_name.get(name).ok_or(FaultCode::UnknownField)?;
        let reader = &self.fields[at];
        if text.is_empty() { reader.missing().map(Cell::into_owned) } else { reader.text(text) }
    }
}
