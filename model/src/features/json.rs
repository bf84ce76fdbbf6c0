//! JSON and NDJSON bodies → feature rows, in one pass over the bytes.
//!
//! Every visitor takes every JSON type: a wrong type is a fault of its row, and only malformed JSON ends the parse.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::columns::RowBuilder;
use super::field::{FieldReader, Slot};
use super::{BodyError, Cell, FaultCode, FeatureRows, Place, RowReader};

/// The longest unknown field name that an answer repeats.
const MAX_ECHOED_NAME: usize = 128;

impl RowReader {
    /// Reads a body that is one JSON object as a further row of `rows`. A row that does not pass is no error but the last
    /// fault of `rows`.
    ///
    /// # Errors
    /// [`BodyError`] if the body is not one JSON object; `rows` are as they were then.
    pub fn json_row(&self, body: &[u8], rows: &mut FeatureRows) -> Result<(), BodyError> {
        let mark = rows.mark();
        let mut state = State::default();
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let seed = SingleRow { reader: self, rows, state: &mut state };
        let read = seed.deserialize(&mut deserializer).and_then(|()| deserializer.end());
        read.map_err(|error| {
            rows.rewind(&mark);
            state.body_error(&error)
        })
    }

    /// Whom a body that is one JSON object is about, as [`RowReader::json_row`] would read it; nothing if it does not say, or is no
    /// such body. It is read up to there only.
    pub fn entity_of(&self, body: &[u8]) -> Option<String> {
        let mut found = None;
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        // What follows is for whoever reads the row.
        let _ = deserializer.deserialize_any(EntityOf { reader: self, found: &mut found });
        found
    }

    /// Reads a body that is a JSON array of objects, or an object with that array as its member `rows`.
    ///
    /// # Errors
    /// [`BodyError`] if the body is not of this shape, has no rows or more than `limit`; bad rows are faults in the answer.
    pub fn json_rows(&self, body: &[u8], limit: usize) -> Result<JsonRows, BodyError> {
        // A row takes some 16 bytes per field at least; where the guess is low, the columns grow.
        let guess = (body.len() / (self.fields.len() * 16 + 1)).clamp(1, limit.min(8_192));
        let mut rows = self.empty(guess);
        let mut state = State::default();
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let seed = Rows { reader: self, rows: &mut rows, state: &mut state, limit, nested: false };
        seed.deserialize(&mut deserializer)
            .and_then(|()| deserializer.end())
            .map_err(|error| state.body_error(&error))?;
        if rows.submitted == 0 {
            return Err(BodyError::Empty);
        }
        rows.refuse_duplicate_entities();
        Ok(JsonRows { rows, prefix: if state.nested { "#/rows" } else { "#" } })
    }

    /// Reads a body of one JSON object per line; blank lines are passed over.
    ///
    /// # Errors
    /// [`BodyError`] if there are no rows or more than `limit`; a malformed line is a fault in the answer.
    pub fn ndjson_rows(&self, body: &[u8], limit: usize) -> Result<FeatureRows, BodyError> {
        let mut rows = self.empty((body.len() / 64).clamp(1, limit.min(8_192)));
        for line in body.split(|byte| *byte == b'\n') {
            if line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
                continue;
            }
            if rows.submitted == limit {
                return Err(BodyError::TooManyRows { limit });
            }
            let mut state = State::default();
            let mut deserializer = serde_json::Deserializer::from_slice(line);
            let mark = rows.mark();
            let seed = Row { reader: self, rows: &mut rows, state: &mut state };
            if seed.deserialize(&mut deserializer).and_then(|()| deserializer.end()).is_err() {
                // What the line had left before it broke off goes with it.
                rows.rewind(&mark);
                rows.refuse(FaultCode::Malformed);
            }
        }
        if rows.submitted == 0 {
            return Err(BodyError::Empty);
        }
        rows.refuse_duplicate_entities();
        Ok(rows)
    }
}

/// The rows of a JSON body and where in it they stood.
#[derive(Debug)]
pub struct JsonRows {
    /// The rows.
    pub rows: FeatureRows,
    /// What the JSON pointer to a row begins with: `#`, or `#/rows`.
    pub prefix: &'static str,
}

/// Why a visitor gave up, since a `serde_json::Error` carries text only.
#[derive(Default)]
struct State {
    stop: Option<Stop>,
    nested: bool,
}

enum Stop {
    DuplicateField,
    Other(BodyError),
}

impl State {
    fn stop<E: serde::de::Error>(&mut self, stop: Stop) -> E {
        self.stop = Some(stop);
        E::custom("stopped")
    }

    fn body_error(&mut self, error: &serde_json::Error) -> BodyError {
        match self.stop.take() {
            Some(Stop::DuplicateField) => {
                BodyError::DuplicateField { line: error.line(), column: error.column() }
            }
            Some(Stop::Other(error)) => error,
            None => BodyError::Json(error.to_string()),
        }
    }
}

/// Visits scalars by handing each to one expression.
macro_rules! scalars {
    ($visitor:ident => $body:expr) => {
        fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Self::Value, E> {
            let $visitor = self;
            $body
        }
        fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Self::Value, E> {
            let $visitor = self;
            $body
        }
        fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Self::Value, E> {
            let $visitor = self;
            $body
        }
        fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Self::Value, E> {
            let $visitor = self;
            $body
        }
        fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
            let $visitor = self;
            $body
        }
        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            let $visitor = self;
            $body
        }
    };
}

/// Reads and drops any value. It recurses, so that the parser's depth limit holds in ignored places too, and reads
/// strings, so that their escapes and UTF-8 are checked there too.
struct Skip;

impl<'de> DeserializeSeed<'de> for Skip {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    scalars!(_visitor => Ok(()));

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(Skip)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Skip)?.is_some() {
            map.next_value_seed(Skip)?;
        }
        Ok(())
    }
}

/// A whole body that is to be one row.
struct SingleRow<'s> {
    reader: &'s RowReader,
    rows: &'s mut FeatureRows,
    state: &'s mut State,
}

impl<'de> DeserializeSeed<'de> for SingleRow<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SingleRow<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    scalars!(visitor => Err(visitor.state.stop(Stop::Other(BodyError::Root { expected: "a JSON object with one member per feature" }))));

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(Skip)?.is_some() {}
        let error = BodyError::Shape {
            pointer: "#".into(),
            code: FaultCode::Type,
            detail: "expected one object, found an array; arrays of rows go to the batch endpoint".into(),
        };
        Err(self.state.stop(Stop::Other(error)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Row { reader: self.reader, rows: self.rows, state: self.state }.visit_map(map)
    }
}

/// A whole body that is to be many rows.
struct Rows<'s> {
    reader: &'s RowReader,
    rows: &'s mut FeatureRows,
    state: &'s mut State,
    limit: usize,
    /// Whether this is the value of `rows` already.
    nested: bool,
}

impl<'de> DeserializeSeed<'de> for Rows<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Rows<'_> {
    fn shape<E: serde::de::Error>(self, pointer: &str, code: FaultCode, detail: &str) -> E {
        let error = BodyError::Shape { pointer: pointer.into(), code, detail: detail.into() };
        self.state.stop(Stop::Other(error))
    }
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("rows")
    }

    scalars!(visitor => if visitor.nested {
        Err(visitor.shape("#/rows", FaultCode::Type, "expected an array of objects"))
    } else {
        Err(visitor.state.stop(Stop::Other(BodyError::Root { expected: "a JSON array of objects, or {\"rows\": [...]}" })))
    });

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        loop {
            if self.rows.submitted == self.limit {
                // One more row than allowed, whatever it is.
                if sequence.next_element_seed(Skip)?.is_none() {
                    return Ok(());
                }
                return Err(self.state.stop(Stop::Other(BodyError::TooManyRows { limit: self.limit })));
            }
            let row = Row { reader: self.reader, rows: self.rows, state: self.state };
            if sequence.next_element_seed(row)?.is_none() {
                return Ok(());
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.nested {
            while map.next_key_seed(Skip)?.is_some() {
                map.next_value_seed(Skip)?;
            }
            return Err(self.shape(
                "#/rows",
                FaultCode::Type,
                "expected an array of objects, found an object",
            ));
        }
        while let Some(key) = map.next_key::<String>()? {
            if key != "rows" {
                let pointer = format!("#/{}", scoregate_schemas::feature_schema::escape(&echoed(&key)));
                map.next_value_seed(Skip)?;
                return Err(self.shape(
                    &pointer,
                    FaultCode::UnknownField,
                    "expected \"rows\" as the only member",
                ));
            }
            if std::mem::replace(&mut self.state.nested, true) {
                return Err(self.state.stop(Stop::DuplicateField));
            }
            let inner = Rows {
                reader: self.reader,
                rows: &mut *self.rows,
                state: &mut *self.state,
                limit: self.limit,
                nested: true,
            };
            map.next_value_seed(inner)?;
        }
        if self.state.nested {
            Ok(())
        } else {
            Err(self.shape(
                "#/rows",
                FaultCode::Required,
                "expected an array of objects as member \"rows\", found none",
            ))
        }
    }
}

/// One row of many.
struct Row<'s> {
    reader: &'s RowReader,
    rows: &'s mut FeatureRows,
    state: &'s mut State,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a row")
    }

    scalars!(visitor => {
        visitor.rows.refuse(FaultCode::Type);
        Ok(())
    });

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(Skip)?.is_some() {}
        self.rows.refuse(FaultCode::Type);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut builder = RowBuilder::new(self.reader, self.rows);
        let mut unknown: Vec<Box<str>> = Vec::new();
        let mut expected = 0;
        while let Some(key) = map.next_key_seed(Key { reader: self.reader, expected })? {
            match key {
                Named::Field(at) => {
                    if !builder.name(at) {
                        return Err(self.state.stop(Stop::DuplicateField));
                    }
                    map.next_value_seed(Value { builder: &mut builder, at })?;
                    expected = at + 1;
                }
                Named::Unknown(name) => {
                    if unknown.contains(&name) {
                        return Err(self.state.stop(Stop::DuplicateField));
                    }
                    map.next_value_seed(Skip)?;
                    builder.fault(Place::Unknown(echoed(&name).into()), FaultCode::UnknownField);
                    if unknown.len() < 64 {
                        unknown.push(name);
                    }
                }
            }
        }
        builder.finish();
        Ok(())
    }
}

/// A whole body of which nothing is wanted but whom it is about.
struct EntityOf<'s> {
    reader: &'s RowReader,
    found: &'s mut Option<String>,
}

impl<'de> Visitor<'de> for EntityOf<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a row")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut expected = 0;
        while let Some(key) = map.next_key_seed(Key { reader: self.reader, expected })? {
            let field = match key {
                Named::Field(at) => {
                    expected = at + 1;
                    Some(&self.reader.fields[at]).filter(|field| field.slot == Slot::Entity)
                }
                Named::Unknown(_) => None,
            };
            match field {
                Some(field) => return map.next_value_seed(Text { field, found: self.found }),
                None => map.next_value::<IgnoredAny>()?,
            };
        }
        Ok(())
    }
}

/// The value of a field, if it is text that passes.
struct Text<'s> {
    field: &'s FieldReader,
    found: &'s mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if let Ok(Cell::Text(text)) = self.field.string(text) {
            *self.found = Some(text.into_owned());
        }
        Ok(())
    }
}

/// An unknown name as an answer may repeat it: bounded, without control characters.
fn echoed(name: &str) -> String {
    name.chars().filter(|character| !character.is_control()).take(MAX_ECHOED_NAME).collect()
}

enum Named {
    Field(usize),
    Unknown(Box<str>),
}

/// A member's name. `expected` is where the schema's order would have it: most clients send that order.
struct Key<'s> {
    reader: &'s RowReader,
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Named;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Named, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Named;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Named, E> {
        if self.reader.fields.get(self.expected).is_some_and(|reader| reader.field.name == name) {
            return Ok(Named::Field(self.expected));
        }
        Ok(match self.reader.by_name.get(name) {
            Some(at) => Named::Field(*at),
            None => Named::Unknown(name.into()),
        })
    }
}

/// The value of a known field.
struct Value<'b, 'r> {
    builder: &'b mut RowBuilder<'r>,
    at: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Value<'_, '_> {
    fn put<E>(self, cell: Result<Cell<'_>, FaultCode>) -> Result<(), E> {
        self.builder.put(self.at, cell);
        Ok(())
    }
}

impl<'de> Visitor<'de> for Value<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a feature value")
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        let cell = self.builder.reader.fields[self.at].float(value);
        self.put(cell)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        let cell = self.builder.reader.fields[self.at]
            .integer(value as f64, value as f64 as u128 == u128::from(value));
        self.put(cell)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        let cell = self.builder.reader.fields[self.at]
            .integer(value as f64, value as f64 as i128 == i128::from(value));
        self.put(cell)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        let cell = self.builder.reader.fields[self.at].boolean(value);
        self.put(cell)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        let reader: &RowReader = self.builder.reader;
        let cell = reader.fields[self.at].string(value);
        self.builder.put(self.at, cell);
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.builder.put_missing(self.at);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(Skip)?.is_some() {}
        let cell = self.builder.reader.fields[self.at].other();
        self.put(cell)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Skip)?.is_some() {
            map.next_value_seed(Skip)?;
        }
        let cell = self.builder.reader.fields[self.at].other();
        self.put(cell)
    }
}
