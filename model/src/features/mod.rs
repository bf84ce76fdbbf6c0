//! JSON or CSV rows → checked feature columns, by the feature schema.
//!
//! One row and many take the same path. A [`RowReader`] is compiled once per model version; it reads a body straight into
//! [`FeatureRows`], one column per feature, without a document in between. Whether one row is bad never depends on
//! another: a bad row leaves a [`RowFault`] and no trace in the columns.

mod csv;
mod json;

use std::borrow::Cow;

use rustc_hash::FxHashMap;
use scoregate_schemas::feature_schema::{FeatureSchema, Field, Kind, Missing, Role, Unknown, escape};
use scoregate_schemas::manifest::{Bindings, Element};
use serde_json::Value;

pub use self::csv::CsvHeader;

/// The longest category or entity accepted, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Faults beyond this many in one body are counted, not described: a small body must not make a large answer.
pub const MAX_DESCRIBED_FAULTS: usize = 1_000;

/// A schema compiled for reading rows.
#[derive(Debug)]
pub struct RowReader {
    fields: Vec<FieldReader>,
    by_name: FxHashMap<Box<str>, usize>,
    features: usize,
}

/// One field of the schema, compiled.
#[derive(Debug)]
struct FieldReader {
    field: Field,
    /// Where its values go.
    slot: Slot,
    /// Category → code, for fields with listed values.
    codes: FxHashMap<Box<str>, u32>,
    /// The largest magnitude below which every integer is held exactly by the graph's input.
    exact_below: f64,
    /// Whether the graph's input is float32.
    float32: bool,
    /// What takes the place of a missing value.
    substitute: Option<Substitute>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Feature(usize),
    Entity,
    Ignored,
}

#[derive(Debug, Clone, PartialEq)]
enum Substitute {
    Number(f64),
    Text(String),
    /// Nothing is stored: an absent entity, an ignored field.
    Nothing,
}

/// Checked rows as columns.
#[derive(Debug, Default, Clone)]
pub struct FeatureRows {
    /// One column per feature in the order of the schema's features; all of the length of `indices`.
    pub columns: Vec<Column>,
    /// For each checked row its place among the rows that were sent, ascending.
    pub indices: Vec<u32>,
    /// How many rows were sent.
    pub submitted: usize,
    /// The rows that did not pass, in the order of their places.
    pub faults: Vec<RowFault>,
    /// Whom each checked row is about; empty where no row names one.
    pub entities: Vec<Option<Box<str>>>,
    described: usize,
}

/// The checked values of one feature.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Numbers, integers, and booleans as 0 or 1; NaN where missing values pass.
    Number(Vec<f64>),
    /// Categories.
    Category(CategoryColumn),
}

/// Categories by code: below the number of listed values an index into them, from there on an index into `others`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CategoryColumn {
    /// One code per row.
    pub codes: Vec<u32>,
    /// Values that the schema does not list, one per row that has one.
    pub others: Vec<Box<str>>,
}

/// One row that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFault {
    /// Its place among the rows that were sent.
    pub index: usize,
    /// What is wrong with it; empty beyond [`MAX_DESCRIBED_FAULTS`].
    pub faults: Vec<FieldFault>,
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
        let Bindings::Columns { columns } = bindings;
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
                let element = columns.iter().find(|column| column.feature == field.name).map(|column| column.element);
                FieldReader::new(field.clone(), slot, element)
            })
            .collect();
        let by_name = fields.iter().enumerate().map(|(at, reader)| (reader.field.name.as_str().into(), at)).collect();
        Self { fields, by_name, features }
    }

    /// The listed categories of each feature in order; empty for numbers and for categories without a list.
    pub fn categories(&self) -> impl Iterator<Item = &[String]> {
        self.fields.iter().filter(|reader| matches!(reader.slot, Slot::Feature(_))).map(|reader| {
            match &reader.field.kind {
                Kind::Category { values: Some(values) } => values.as_slice(),
                _ => &[],
            }
        })
    }

    /// The fields that rows may name, in the schema's order.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().map(|reader| &reader.field)
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
            (FaultCode::Range, Some(reader)) => format!("expected a number {}", describe_range(&reader.field)).into(),
            (FaultCode::Range, None) => "expected a number within bounds".into(),
            (FaultCode::Length, _) => format!("expected text within the schema's length, at most {MAX_TEXT_BYTES} bytes").into(),
            (FaultCode::Category, Some(reader)) => match &reader.field.kind {
                Kind::Category { values: Some(values) } if values.len() <= 20 => {
                    format!("expected one of {}", values.join(", ")).into()
                }
                _ => "expected one of the listed categories".into(),
            },
            (FaultCode::Category, None) => "expected one of the listed categories".into(),
            (FaultCode::Precision, Some(reader)) => {
                let kind = if reader.float32 { "float32" } else { "float64" };
                format!("expected an integer that {kind} holds exactly; this one would be changed silently").into()
            }
            (FaultCode::Precision, None) => "expected an integer that the model's input holds exactly".into(),
            (FaultCode::Overflow, _) => "expected a number within the range of the model's input".into(),
            (FaultCode::Character, _) => "expected text without control characters".into(),
            (FaultCode::DuplicateEntity, _) => "another row of this body is about the same entity; send each once".into(),
            (FaultCode::Malformed, _) => "expected one well-formed JSON object, each field named once".into(),
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
        let (known, distance) = self.fields().map(|f| (f.name.as_str(), distance(&f.name))).min_by_key(|(_, d)| *d)?;
        let prefix = known.to_lowercase().starts_with(&lower) || lower.starts_with(&known.to_lowercase());
        (distance <= 1 + known.len() / 3 || (prefix && name.len() >= 3)).then_some(known)
    }

    /// Room for `rows` rows.
    pub fn empty(&self, rows: usize) -> FeatureRows {
        let mut columns = Vec::with_capacity(self.features);
        for reader in self.fields.iter().filter(|reader| matches!(reader.slot, Slot::Feature(_))) {
            columns.push(match reader.field.kind {
                Kind::Category { .. } => {
                    Column::Category(CategoryColumn { codes: Vec::with_capacity(rows), others: Vec::new() })
                }
                _ => Column::Number(Vec::with_capacity(rows)),
            });
        }
        FeatureRows { columns, indices: Vec::with_capacity(rows), ..FeatureRows::default() }
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

/// One checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'t> {
    /// A number; NaN where a missing value passes.
    Number(f64),
    /// A listed category, by its index.
    Listed(u32),
    /// Text that the schema does not list.
    Text(Cow<'t, str>),
    /// Nothing: an absent entity, an ignored field.
    Nothing,
}

impl Cell<'_> {
    fn into_owned(self) -> Cell<'static> {
        match self {
            Self::Number(number) => Cell::Number(number),
            Self::Listed(code) => Cell::Listed(code),
            Self::Text(text) => Cell::Text(Cow::Owned(text.into_owned())),
            Self::Nothing => Cell::Nothing,
        }
    }
}

impl FieldReader {
    fn new(field: Field, slot: Slot, element: Option<Element>) -> Self {
        let codes = match &field.kind {
            Kind::Category { values: Some(values) } => {
                values.iter().zip(0..).map(|(value, code)| (value.as_str().into(), code)).collect()
            }
            _ => FxHashMap::default(),
        };
        let float32 = matches!(element, Some(Element::Float32));
        let substitute = match (&field.missing, slot) {
            (_, Slot::Entity | Slot::Ignored) => (!field.required).then_some(Substitute::Nothing),
            (Missing::Reject, _) => None,
            (Missing::Pass, _) if matches!(field.kind, Kind::Category { .. }) => Some(Substitute::Text(String::new())),
            (Missing::Pass, _) => Some(Substitute::Number(f64::NAN)),
            (Missing::Impute(Value::String(text)), _) => Some(Substitute::Text(text.clone())),
            (Missing::Impute(Value::Bool(value)), _) => Some(Substitute::Number(f64::from(u8::from(*value)))),
            (Missing::Impute(value), _) => value.as_f64().map(Substitute::Number),
        };
        let exact_below = if float32 { 16_777_216.0 } else { 9_007_199_254_740_992.0 };
        Self { field, slot, codes, exact_below, float32, substitute }
    }

    fn missing(&self) -> Result<Cell<'_>, FaultCode> {
        match &self.substitute {
            None => Err(FaultCode::Required),
            Some(Substitute::Number(number)) => Ok(Cell::Number(*number)),
            Some(Substitute::Text(text)) => {
                Ok(self.codes.get(text.as_str()).map_or(Cell::Text(Cow::Borrowed(text)), |code| Cell::Listed(*code)))
            }
            Some(Substitute::Nothing) => Ok(Cell::Nothing),
        }
    }

    /// A JSON integer, or a CSV cell written as one. `exact` says whether `value` is what was written.
    fn integer(&self, value: f64, exact: bool) -> Result<Cell<'static>, FaultCode> {
        if !matches!(self.field.kind, Kind::Number | Kind::Integer) {
            return self.other();
        }
        if value.abs() > self.exact_below && (!exact || !self.holds(value)) {
            return Err(FaultCode::Precision);
        }
        self.bounded(value)
    }

    /// A JSON number written with a fraction or an exponent. From 2^64 on it may have been written as an integer, so it has
    /// to be exact there.
    fn float(&self, value: f64) -> Result<Cell<'static>, FaultCode> {
        match self.field.kind {
            Kind::Number => {}
            Kind::Integer if value.fract() == 0.0 => return self.integer(value, true),
            Kind::Integer => return Err(FaultCode::Type),
            _ => return self.other(),
        }
        #[expect(clippy::cast_possible_truncation, reason = "an overflow to infinity is what is looked for")]
        if self.float32 && (value as f32).is_infinite() {
            return Err(FaultCode::Overflow);
        }
        if value.abs() >= 18_446_744_073_709_551_616.0 && !self.holds(value) {
            return Err(FaultCode::Precision);
        }
        self.bounded(value)
    }

    /// Whether the graph's input holds `value` without rounding.
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what is looked for")]
    fn holds(&self, value: f64) -> bool {
        !self.float32 || f64::from(value as f32) == value
    }

    fn bounded(&self, value: f64) -> Result<Cell<'static>, FaultCode> {
        if self.field.range.contains(value) { Ok(Cell::Number(value)) } else { Err(FaultCode::Range) }
    }

    fn boolean(&self, value: bool) -> Result<Cell<'static>, FaultCode> {
        match self.field.kind {
            Kind::Boolean => Ok(Cell::Number(f64::from(u8::from(value)))),
            _ => self.other(),
        }
    }

    /// A value of a type that is not the field's.
    fn other(&self) -> Result<Cell<'static>, FaultCode> {
        if self.slot == Slot::Ignored { Ok(Cell::Nothing) } else { Err(FaultCode::Type) }
    }

    fn string<'t>(&self, text: &'t str) -> Result<Cell<'t>, FaultCode> {
        let Kind::Category { values } = &self.field.kind else { return self.other() };
        if let Some(code) = self.codes.get(text) {
            return Ok(Cell::Listed(*code));
        }
        if values.is_some() && self.field.unknown == Unknown::Reject {
            return Err(FaultCode::Category);
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(FaultCode::Length);
        }
        let length = self.field.length;
        if (length.minimum.is_some() || length.maximum.is_some())
            && !(length.minimum.unwrap_or(0)..=length.maximum.unwrap_or(usize::MAX)).contains(&text.chars().count())
        {
            return Err(FaultCode::Length);
        }
        if text.contains('\0') || (self.slot == Slot::Entity && text.contains(char::is_control)) {
            return Err(FaultCode::Character);
        }
        Ok(Cell::Text(Cow::Borrowed(text)))
    }

    /// A CSV cell that is not empty.
    fn text<'t>(&self, text: &'t str) -> Result<Cell<'t>, FaultCode> {
        match self.field.kind {
            Kind::Category { .. } => self.string(text),
            Kind::Boolean => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" => self.boolean(true),
                "false" | "0" => self.boolean(false),
                _ => self.other(),
            },
            Kind::Number | Kind::Integer => {
                let text = text.trim();
                // `parse` would read "inf" and "NaN" as well.
                if !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) {
                    return self.other();
                }
                let Ok(value) = text.parse::<f64>() else { return self.other() };
                if value.is_infinite() {
                    return Err(FaultCode::Overflow);
                }
                if text.contains(['.', 'e', 'E']) {
                    self.float(value)
                } else {
                    // The digits of an integer beyond 2^53 may differ from the number that was read.
                    self.integer(value, text.parse::<i64>().is_ok_and(|whole| whole as f64 as i128 == i128::from(whole)))
                }
            }
        }
    }
}

fn describe_range(field: &Field) -> String {
    let range = field.range;
    let bounds = [
        range.minimum.map(|bound| format!("of at least {bound}")),
        range.exclusive_minimum.map(|bound| format!("greater than {bound}")),
        range.maximum.map(|bound| format!("of at most {bound}")),
        range.exclusive_maximum.map(|bound| format!("less than {bound}")),
    ];
    bounds.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

impl FeatureRows {
    /// The number of checked rows.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether no row passed.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Forgets all rows and keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
        self.indices.clear();
        self.faults.clear();
        self.entities.clear();
        self.submitted = 0;
        self.described = 0;
    }

    fn truncate(&mut self, rows: usize) {
        for column in &mut self.columns {
            column.truncate(rows);
        }
    }

    /// Refuses every row whose entity another row of the body names too: an outcome reported by entity could not tell
    /// them apart.
    fn refuse_duplicate_entities(&mut self) {
        if self.entities.is_empty() {
            return;
        }
        self.entities.resize(self.indices.len(), None);
        let mut count: FxHashMap<&str, u32> = FxHashMap::default();
        for entity in self.entities.iter().flatten() {
            *count.entry(entity).or_default() += 1;
        }
        if count.values().all(|count| *count == 1) {
            return;
        }
        let keep: Vec<bool> =
            self.entities.iter().map(|entity| entity.as_deref().is_none_or(|entity| count[entity] == 1)).collect();
        for (index, _) in self.indices.iter().zip(&keep).filter(|(_, keep)| !**keep) {
            let fault = FieldFault { place: Place::Row, code: FaultCode::DuplicateEntity };
            let described = self.described < MAX_DESCRIBED_FAULTS;
            self.described += usize::from(described);
            let faults = if described { vec![fault] } else { Vec::new() };
            self.faults.push(RowFault { index: *index as usize, faults });
        }
        self.faults.sort_by_key(|fault| fault.index);
        retain(&mut self.indices, &keep);
        retain(&mut self.entities, &keep);
        for column in &mut self.columns {
            match column {
                Column::Number(values) => retain(values, &keep),
                Column::Category(column) => retain(&mut column.codes, &keep),
            }
        }
    }
}

fn retain<T>(values: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    values.retain(|_| keep.next().is_none_or(|keep| *keep));
}

impl Column {
    #[cfg(any(test, debug_assertions))]
    fn len(&self) -> usize {
        match self {
            Self::Number(values) => values.len(),
            Self::Category(column) => column.codes.len(),
        }
    }

    fn truncate(&mut self, rows: usize) {
        match self {
            Self::Number(values) => values.truncate(rows),
            Self::Category(column) => {
                // The others of dropped rows stay behind unused until the column is cleared.
                column.codes.truncate(rows);
                if rows == 0 {
                    column.others.clear();
                }
            }
        }
    }
}

impl CategoryColumn {
    /// The text of row `row`, where `listed` are the schema's values.
    pub fn text<'c>(&'c self, row: usize, listed: &'c [String]) -> &'c str {
        let code = self.codes[row] as usize;
        if code < listed.len() { &listed[code] } else { &self.others[code - listed.len()] }
    }
}

/// One row on its way into [`FeatureRows`]: every field at most once, then [`RowBuilder::finish`].
struct RowBuilder<'r> {
    reader: &'r RowReader,
    rows: &'r mut FeatureRows,
    faults: Vec<FieldFault>,
    refused: bool,
    /// Bit per field that was named; fields beyond 64 in `named_more`.
    named: u64,
    named_more: Vec<bool>,
    entity: Option<Box<str>>,
}

impl<'r> RowBuilder<'r> {
    fn new(reader: &'r RowReader, rows: &'r mut FeatureRows) -> Self {
        let named_more = if reader.fields.len() > 64 { vec![false; reader.fields.len() - 64] } else { Vec::new() };
        Self { reader, rows, faults: Vec::new(), refused: false, named: 0, named_more, entity: None }
    }

    /// Marks field `at` as named; false if it was before.
    fn name(&mut self, at: usize) -> bool {
        if at < 64 {
            let fresh = self.named & (1 << at) == 0;
            self.named |= 1 << at;
            fresh
        } else {
            !std::mem::replace(&mut self.named_more[at - 64], true)
        }
    }

    fn is_named(&self, at: usize) -> bool {
        if at < 64 { self.named & (1 << at) != 0 } else { self.named_more[at - 64] }
    }

    /// Stores the value of field `at`, or what is wrong with it.
    fn put(&mut self, at: usize, cell: Result<Cell<'_>, FaultCode>) {
        match cell {
            Err(code) => self.fault(Place::Field(at), code),
            Ok(cell) => match (self.reader.fields[at].slot, cell) {
                (Slot::Feature(column), cell) => {
                    let listed = self.reader.fields[at].codes.len();
                    match (&mut self.rows.columns[column], cell) {
                        (Column::Number(values), Cell::Number(number)) => values.push(number),
                        (Column::Category(column), Cell::Listed(code)) => column.codes.push(code),
                        (Column::Category(column), Cell::Text(text)) => {
                            let code = u32::try_from(listed + column.others.len()).unwrap_or(u32::MAX);
                            column.codes.push(code);
                            column.others.push(text.into_owned().into_boxed_str());
                        }
                        _ => self.fault(Place::Field(at), FaultCode::Type),
                    }
                }
                (Slot::Entity, Cell::Text(text)) => self.entity = Some(text.into_owned().into_boxed_str()),
                (Slot::Entity | Slot::Ignored, _) => {}
            },
        }
    }

    fn fault(&mut self, place: Place, code: FaultCode) {
        self.refused = true;
        if self.rows.described < MAX_DESCRIBED_FAULTS {
            self.rows.described += 1;
            self.faults.push(FieldFault { place, code });
        }
    }

    /// Fills what was not named, and keeps the row or its faults.
    fn finish(mut self) {
        let index = self.rows.submitted;
        let before = self.rows.indices.len();
        for at in 0..self.reader.fields.len() {
            if !self.is_named(at) {
                let reader = self.reader;
                self.put(at, reader.fields[at].missing());
            }
        }
        self.rows.submitted += 1;
        if !self.refused {
            debug_assert!(self.rows.columns.iter().all(|column| column.len() == before + 1), "a value per feature");
            self.rows.indices.push(u32::try_from(index).unwrap_or(u32::MAX));
            if self.entity.is_some() || !self.rows.entities.is_empty() {
                self.rows.entities.resize(before, None);
                self.rows.entities.push(self.entity);
            }
        } else {
            self.rows.truncate(before);
            self.rows.faults.push(RowFault { index, faults: self.faults });
        }
    }
}
