//! A training CSV → columns, checked by the feature schema.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use scoregate_model::features::{Cell, FaultCode, FieldFault, Place, RowReader};
use scoregate_model::package::digest_of;
use scoregate_schemas::feature_schema::{FeatureSchema, Field, Kind, Missing};
use scoregate_schemas::manifest::Bindings;
use serde_json::Value;

/// Mistakes that a message describes; further ones are counted.
const SHOWN: usize = 20;

/// Training data: one column per feature, and the outcomes.
#[derive(Debug, Clone)]
pub struct Table {
    /// The features in the schema's order, all of the same length.
    pub features: Vec<Feature>,
    /// Per row whether the target is the positive class.
    pub positives: Vec<bool>,
    /// `sha256:` and the digest of the file's bytes.
    pub digest: String,
    /// Columns of the file that the schema does not name, in the file's order.
    pub ignored: Vec<String>,
}

/// One feature's column.
#[derive(Debug, Clone)]
pub struct Feature {
    /// What the schema says of it.
    pub field: Field,
    /// Its values; where `missing`, the schema's substitute.
    pub values: Values,
    /// Per row whether the cell was empty.
    pub missing: Vec<bool>,
}

/// A column's values.
#[derive(Debug, Clone)]
pub enum Values {
    /// Numbers, integers, and booleans as 0 and 1.
    Numbers(Vec<f64>),
    /// Categories: per row an index into `names`, which holds each category once, in the order of the file.
    Categories {
        /// The categories.
        names: Vec<String>,
        /// One index per row.
        codes: Vec<u32>,
    },
}

/// Why a file is no training data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The schema does not name a target.
    #[error("the schema names no target column: add \"x-scoregate\": {{\"target\": \"…\"}} at its root")]
    NoTarget,
    /// A number's missing values would reach the model as NaN.
    #[error(
        "\"missing\": \"pass\" on {}: a logistic regression takes no NaN; use \"reject\" or {{\"impute\": value}} in the schema",
        .0.join(", ")
    )]
    MissingPass(Vec<String>),
    /// The header lacks columns or names one twice.
    #[error("line 1: {0}")]
    Header(String),
    /// Cells or records do not fit the schema.
    #[error("{total} mistake(s) in the data:{}{}", shown(.first), more(*.total, .first.len()))]
    Cells {
        /// All mistakes.
        total: usize,
        /// The first of them.
        first: Vec<Mistake>,
    },
    /// There are no rows.
    #[error("the file holds no rows below its header")]
    Empty,
    /// The target has other than two values.
    #[error("column {column}: found the values {}; expected two, one of them {positive} (the schema's \"positive\")", .found.join(", "))]
    Target {
        /// The target's column.
        column: String,
        /// The positive value.
        positive: String,
        /// The values found, at most the first few.
        found: Vec<String>,
    },
}

/// One cell or record that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line of the file where the record begins, from 1.
    pub line: u64,
    /// Name of the column; empty for a record as a whole.
    pub column: String,
    /// What the file holds.
    pub found: String,
    /// What the schema expects.
    pub expected: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}", self.line)?;
        if !self.column.is_empty() {
            write!(f, ", column {}", self.column)?;
        }
        write!(f, ": found {}, {}", self.found, self.expected)
    }
}

fn shown(first: &[Mistake]) -> String {
    first.iter().map(|mistake| format!("\n  {mistake}")).collect()
}

fn more(total: usize, shown: usize) -> String {
    if total > shown { format!("\n  and {} more", total - shown) } else { String::new() }
}

/// How the trainer's graphs take features: categories as strings, everything else as float32, one input each.
///
/// An input is called like its feature, unless a value inside the graph has that name.
pub fn bindings(schema: &FeatureSchema) -> Bindings {
    Bindings::columns_of(schema, crate::export::input_name)
}

impl Table {
    /// Reads `path` by `schema`.
    ///
    /// # Errors
    /// [`Error`]; for cells that do not fit, all are counted and the first are described by line and column.
    pub fn read(path: &Path, schema: &FeatureSchema) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        Self::parse(&bytes, schema)
    }

    /// Reads the bytes of a CSV file with a header by `schema`.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn parse(bytes: &[u8], schema: &FeatureSchema) -> Result<Self, Error> {
        let target = schema.target.as_deref().ok_or(Error::NoTarget)?;
        let passing =
            |field: &&Field| field.missing == Missing::Pass && !matches!(field.kind, Kind::Category { .. });
        let passing: Vec<String> =
            schema.features().filter(passing).map(|field| field.name.clone()).collect();
        if !passing.is_empty() {
            return Err(Error::MissingPass(passing));
        }
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text);
        let mut record = csv::ByteRecord::new();
        let mut mistakes = Mistakes::default();
        // Reading from memory fails for nothing: a flexible reader takes any bytes.
        let mut next = |record: &mut csv::ByteRecord| reader.read_byte_record(record).unwrap_or(false);
        if !next(&mut record) {
            return Err(Error::Header(
                "found an empty file, expected a header with the names of the columns".into(),
            ));
        }
        let header = Header::match_up(&record, schema, target)?;
        let rows = RowReader::new(schema, &bindings(schema));
        let mut columns: Vec<Reading> =
            schema.features().zip(&header.features).map(|(field, at)| Reading::new(field, *at)).collect();
        let mut outcomes = Outcomes::new(&schema.positive);
        while next(&mut record) {
            let line = record.position().map_or(0, csv::Position::line);
            if record.len() != header.names.len() {
                mistakes.add(
                    line,
                    "",
                    format!("{} cells", record.len()),
                    format!("expected {}, as many as the header has", header.names.len()),
                );
                continue;
            }
            for column in &mut columns {
                column.take(&rows, &record[column.at], line, &mut mistakes);
            }
            outcomes.take(&record[header.target], line, target, &mut mistakes);
        }
        if mistakes.total > 0 {
            return Err(Error::Cells { total: mistakes.total, first: mistakes.first });
        }
        if outcomes.positives.is_empty() {
            return Err(Error::Empty);
        }
        let positives = outcomes.finish(target, &schema.positive)?;
        Ok(Self {
            features: columns.into_iter().map(|column| column.feature).collect(),
            positives,
            digest: digest_of(bytes),
            ignored: header.ignored(schema, target),
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.positives.len()
    }

    /// The row as a client would send it: features in order, missing values as null.
    pub fn raw_row(&self, row: usize) -> serde_json::Map<String, Value> {
        self.features.iter().map(|feature| (feature.field.name.clone(), feature.raw(row))).collect()
    }
}

impl Feature {
    /// The cell of `row` as a client would send it; null where it was empty.
    fn raw(&self, row: usize) -> Value {
        if self.missing[row] {
            return Value::Null;
        }
        match (&self.values, &self.field.kind) {
            (Values::Categories { names, codes }, _) => names[codes[row] as usize].as_str().into(),
            (Values::Numbers(numbers), Kind::Boolean) => (numbers[row] != 0.0).into(),
            // Beyond 2^24 a request must write a number with a fraction, or it is refused as an integer that float32 rounds.
            #[expect(clippy::cast_possible_truncation, reason = "the branch is for whole numbers that fit")]
            (Values::Numbers(numbers), _)
                if numbers[row].fract() == 0.0 && numbers[row].abs() <= 16_777_216.0 =>
            {
                (numbers[row] as i64).into()
            }
            (Values::Numbers(numbers), _) => numbers[row].into(),
        }
    }
}

#[derive(Default)]
struct Mistakes {
    total: usize,
    first: Vec<Mistake>,
}

impl Mistakes {
    fn add(&mut self, line: u64, column: &str, found: String, expected: String) {
        self.total += 1;
        if self.first.len() < SHOWN {
            self.first.push(Mistake { line, column: column.into(), found, expected });
        }
    }
}

/// A cell for a message: quoted, and cut where it is long.
fn quoted(cell: &[u8]) -> String {
    let text = String::from_utf8_lossy(cell);
    if text.is_empty() {
        "an empty cell".into()
    } else if text.chars().count() > 40 {
        format!("{:?}…", text.chars().take(40).collect::<String>())
    } else {
        format!("{text:?}")
    }
}

/// Which column of the file holds what.
struct Header {
    names: Vec<String>,
    features: Vec<usize>,
    target: usize,
}

impl Header {
    fn match_up(record: &csv::ByteRecord, schema: &FeatureSchema, target: &str) -> Result<Self, Error> {
        let names: Vec<String> =
            record.iter().map(|cell| String::from_utf8_lossy(cell).trim().to_owned()).collect();
        let wanted: Vec<&str> = schema.features().map(|field| field.name.as_str()).chain([target]).collect();
        let mut places = Vec::with_capacity(wanted.len());
        let (mut lacking, mut twice) = (Vec::new(), Vec::new());
        for name in &wanted {
            let mut found = names.iter().enumerate().filter(|(_, column)| column == name).map(|(at, _)| at);
            match (found.next(), found.next()) {
                (Some(at), None) => places.push(at),
                (Some(_), Some(_)) => twice.push(*name),
                (None, _) => lacking.push(*name),
            }
        }
        if !lacking.is_empty() || !twice.is_empty() {
            let mut parts = Vec::new();
            if !lacking.is_empty() {
                parts.push(format!("found no column {}", lacking.join(", ")));
            }
            if !twice.is_empty() {
                parts.push(format!("found {} more than once", twice.join(", ")));
            }
            return Err(Error::Header(format!(
                "{}; the columns are {}; expected {}, each once",
                parts.join(" and "),
                names.join(", "),
                wanted.join(", ")
            )));
        }
        let target = places.pop().unwrap_or_default();
        Ok(Self { names, features: places, target })
    }

    fn ignored(&self, schema: &FeatureSchema, target: &str) -> Vec<String> {
        let known = |name: &str| name == target || schema.fields.iter().any(|field| field.name == name);
        self.names.iter().filter(|name| !known(name)).cloned().collect()
    }
}

/// A feature's column while it is read.
struct Reading {
    at: usize,
    feature: Feature,
    known: HashMap<String, u32>,
}

impl Reading {
    fn new(field: &Field, at: usize) -> Self {
        let values = match field.kind {
            Kind::Category { .. } => Values::Categories { names: Vec::new(), codes: Vec::new() },
            _ => Values::Numbers(Vec::new()),
        };
        Self {
            at,
            feature: Feature { field: field.clone(), values, missing: Vec::new() },
            known: HashMap::new(),
        }
    }

    fn take(&mut self, rows: &RowReader, cell: &[u8], line: u64, mistakes: &mut Mistakes) {
        let name = &self.feature.field.name;
        let read = std::str::from_utf8(cell)
            .map_err(|_| FaultCode::Malformed)
            .and_then(|text| rows.read_cell(name, text));
        let read = match read {
            Ok(read) => read,
            Err(FaultCode::Malformed) => {
                return mistakes.add(line, name, quoted(cell), "expected UTF-8 text".into());
            }
            Err(FaultCode::Required) => {
                let expected =
                    "expected a value (or give the property \"missing\": {\"impute\": value} in the schema)";
                return mistakes.add(line, name, quoted(cell), expected.into());
            }
            Err(code) => {
                let place =
                    rows.fields().position(|field| &field.name == name).map_or(Place::Row, Place::Field);
                let expected = rows.detail(&FieldFault { place, code }).into_owned();
                return mistakes.add(line, name, quoted(cell), expected);
            }
        };
        self.feature.missing.push(cell.is_empty());
        match (&mut self.feature.values, read) {
            (Values::Numbers(numbers), Cell::Number(number)) => numbers.push(number),
            (Values::Categories { names, codes }, Cell::Listed(code)) => {
                let listed = match &self.feature.field.kind {
                    Kind::Category { values: Some(values) } => {
                        values.get(code as usize).map_or("", String::as_str)
                    }
                    _ => "",
                };
                codes.push(intern(names, &mut self.known, listed));
            }
            (Values::Categories { names, codes }, Cell::Text(text)) => {
                codes.push(intern(names, &mut self.known, &text));
            }
            (_, _) => {
                self.feature.missing.pop();
                mistakes.add(
                    line,
                    &self.feature.field.name,
                    quoted(cell),
                    "expected a value of the schema's type".into(),
                );
            }
        }
    }
}

fn intern(names: &mut Vec<String>, known: &mut HashMap<String, u32>, text: &str) -> u32 {
    if let Some(code) = known.get(text) {
        return *code;
    }
    let code = u32::try_from(names.len()).unwrap_or(u32::MAX);
    names.push(text.to_owned());
    known.insert(text.to_owned(), code);
    code
}

/// The target's column while it is read.
struct Outcomes {
    positive: Positive,
    positives: Vec<bool>,
    /// The different values met, at most a few.
    met: Vec<String>,
}

enum Positive {
    Number(f64),
    Text(String),
}

impl Outcomes {
    fn new(positive: &Value) -> Self {
        let positive = match positive {
            Value::Number(number) => Positive::Number(number.as_f64().unwrap_or(f64::NAN)),
            Value::Bool(value) => Positive::Text(value.to_string()),
            Value::String(text) => Positive::Text(text.clone()),
            other => Positive::Text(other.to_string()),
        };
        Self { positive, positives: Vec::new(), met: Vec::new() }
    }

    fn take(&mut self, cell: &[u8], line: u64, column: &str, mistakes: &mut Mistakes) {
        let Some(text) = std::str::from_utf8(cell).ok().map(str::trim).filter(|text| !text.is_empty()) else {
            return mistakes.add(line, column, quoted(cell), "expected an outcome".into());
        };
        let (positive, canonical) = match &self.positive {
            Positive::Number(wanted) => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => (number == *wanted, number.to_string()),
                _ => {
                    return mistakes.add(
                        line,
                        column,
                        quoted(cell),
                        format!("expected a number, {wanted} if positive"),
                    );
                }
            },
            // CSV writers disagree on the case of booleans.
            Positive::Text(wanted) if wanted == "true" || wanted == "false" => {
                (text.eq_ignore_ascii_case(wanted), text.to_ascii_lowercase())
            }
            Positive::Text(wanted) => (text == wanted, text.to_owned()),
        };
        if self.met.len() < 5 && !self.met.contains(&canonical) {
            self.met.push(canonical);
        }
        self.positives.push(positive);
    }

    fn finish(self, column: &str, positive: &Value) -> Result<Vec<bool>, Error> {
        if self.met.len() == 2 && self.positives.contains(&true) {
            Ok(self.positives)
        } else {
            Err(Error::Target { column: column.into(), positive: positive.to_string(), found: self.met })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> FeatureSchema {
        FeatureSchema::from_document(json!({
            "properties": {
                "id": {"type": "string", "x-scoregate": {"role": "entity"}},
                "days": {"type": "integer", "minimum": 0},
                "spend": {"type": "number", "x-scoregate": {"missing": {"impute": 20}}},
                "plan": {"type": "string", "enum": ["basic", "pro"]},
                "active": {"type": "boolean"}
            },
            "x-scoregate": {"target": "churned", "positive": 1}
        }))
        .unwrap()
    }

    fn refused(text: &str) -> String {
        Table::parse(text.as_bytes(), &schema()).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_the_schema_allows() {
        let text = "\u{feff}note,days,spend,plan,churned,active\nx,3,,pro,1.0,TRUE\ny,4,2.5,basic,0,0\n";
        let table = Table::parse(text.as_bytes(), &schema()).unwrap();
        assert_eq!((table.rows(), table.positives.as_slice()), (2, &[true, false][..]));
        assert_eq!(table.ignored, ["note"]);
        assert_eq!(
            table.raw_row(0),
            *json!({"days":3,"spend":null,"plan":"pro","active":true}).as_object().unwrap()
        );
        assert_eq!(
            table.raw_row(1),
            *json!({"days":4,"spend":2.5,"plan":"basic","active":false}).as_object().unwrap()
        );
        let Values::Numbers(spend) = &table.features[1].values else { panic!() };
        assert_eq!(spend, &[20.0, 2.5]);
        assert!(table.digest.starts_with("sha256:") && table.digest.len() == 71);
    }

    #[test]
    fn names_line_column_found_and_expected_of_every_mistake() {
        let text = "days,spend,plan,churned,active\n-1,2,pro,1,true\n1.5,two,gold,maybe,1\n1,2\n,,,,\n16777217,1,pro,0,true\n";
        assert_eq!(
            refused(text).lines().collect::<Vec<_>>(),
            [
                "11 mistake(s) in the data:",
                "  line 2, column days: found \"-1\", expected a number of at least 0",
                "  line 3, column days: found \"1.5\", expected integer",
                "  line 3, column spend: found \"two\", expected number",
                "  line 3, column plan: found \"gold\", expected one of basic, pro",
                "  line 3, column churned: found \"maybe\", expected a number, 1 if positive",
                "  line 4: found 2 cells, expected 5, as many as the header has",
                "  line 5, column days: found an empty cell, expected a value (or give the property \"missing\": {\"impute\": value} in the schema)",
                "  line 5, column plan: found an empty cell, expected a value (or give the property \"missing\": {\"impute\": value} in the schema)",
                "  line 5, column active: found an empty cell, expected a value (or give the property \"missing\": {\"impute\": value} in the schema)",
                "  line 5, column churned: found an empty cell, expected an outcome",
                "  line 6, column days: found \"16777217\", expected an integer that float32 holds exactly; this one would be changed silently",
            ]
        );
    }

    #[test]
    fn counts_the_mistakes_that_it_does_not_show() {
        let rows = "x,1,pro,0,true\n".repeat(30);
        let message = refused(&format!("days,spend,plan,churned,active\n{rows}"));
        assert!(message.starts_with("30 mistake(s)") && message.ends_with("and 10 more"), "{message}");
        assert_eq!(message.lines().count(), 22);
    }

    #[test]
    fn headers_and_targets_are_checked() {
        assert_eq!(
            refused("days,spend,spend,active\n"),
            "line 1: found no column plan, churned and found spend more than once; the columns are days, spend, spend, active; \
             expected days, spend, plan, active, churned, each once"
        );
        assert_eq!(refused("days,spend,plan,churned,active\n"), "the file holds no rows below its header");
        assert!(refused("").starts_with("line 1: found an empty file"));
        let rows = "1,1,pro,0,true\n1,1,pro,2,true\n1,1,pro,1,true\n";
        assert_eq!(
            refused(&format!("days,spend,plan,churned,active\n{rows}")),
            "column churned: found the values 0, 2, 1; expected two, one of them 1 (the schema's \"positive\")"
        );
    }

    #[test]
    fn a_number_that_passes_missing_values_is_refused() {
        let schema = FeatureSchema::from_document(json!({
            "properties": {"x": {"type": "number", "x-scoregate": {"missing": "pass"}}},
            "x-scoregate": {"target": "y"}
        }));
        let refused = Table::parse(b"x,y\n1,0\n", &schema.unwrap()).unwrap_err();
        assert!(matches!(refused, Error::MissingPass(names) if names == ["x"]));
    }
}
