//! The feature schema: JSON Schema draft 2020-12 with `x-scoregate` annotations, read into checked fields.
//!
//! The order of `properties` is the order of features. Keywords that would constrain a value but that the gateway does
//! not check are refused here, so that a schema never promises more than is enforced.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Map, Value};

/// The dialect that a schema must declare, if it declares one.
pub const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The longest category or entity accepted, in bytes, whatever a schema says.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Keywords that describe without constraining; they are kept in the document and shown to clients.
const ANNOTATIONS: &[&str] = &[
    "title",
    "description",
    "examples",
    "default",
    "deprecated",
    "$comment",
    "format",
    "readOnly",
    "writeOnly",
];

/// A feature schema, checked.
#[derive(Debug, Clone)]
pub struct FeatureSchema {
    document: Map<String, Value>,
    /// Every property in file order, entities and ignored fields included.
    pub fields: Vec<Field>,
    /// The column of a training CSV that holds the outcome.
    pub target: Option<String>,
    /// The target's value for the positive class; `1` if the schema does not say.
    pub positive: Value,
    /// `[negative, positive]`, or one label per class; empty for regression. Absent: `[negative, positive]` for what is trained
    /// here, the graph's own for what is brought.
    pub labels: Option<Vec<String>>,
    /// The probability of the positive class from which on a row is labelled positive.
    pub threshold: f64,
}

/// One property of a feature schema.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// The property's name, as clients send it.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// What it is for.
    pub role: Role,
    /// What happens when it is null or absent.
    pub missing: Missing,
    /// Whether categories outside [`Kind::Category`]'s values are accepted.
    pub unknown: Unknown,
    /// Inclusive and exclusive bounds of numbers.
    pub range: Range,
    /// Bounds of a string's length in characters.
    pub length: Length,
    /// Whether the schema lists it under `required`. A feature whose `missing` is [`Missing::Reject`] is needed anyway.
    pub required: bool,
    /// How its categories become numbers, for graphs that take no text.
    pub encode: Option<Encode>,
    /// Whether its values are personal data.
    pub pii: bool,
}

/// How categories become numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Encode {
    /// One column: this number for each category. What is not in it is NaN; the empty text stands for a missing value.
    Map(Vec<(String, f64)>),
    /// One column of 0 or 1 per listed category, in their order; all are 0 for any other value.
    OneHot,
}

/// A field's type.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// `"type": "number"`
    Number,
    /// `"type": "integer"`: a number without fraction.
    Integer,
    /// `"type": "boolean"`; reaches a graph as 0 or 1.
    Boolean,
    /// `"type": "string"`
    Category {
        /// The values of `enum`; absent where training is to learn them, or where any text will do.
        values: Option<Vec<String>>,
    },
}

/// What a field is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reaches the graph.
    #[default]
    Feature,
    /// Names who is scored; never reaches the graph.
    Entity,
    /// Accepted and dropped.
    Ignore,
}

/// What happens when a value is null or absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Missing {
    /// The row is refused.
    #[default]
    Reject,
    /// This value takes its place.
    Impute(Value),
    /// The graph receives NaN (numbers) or the empty string (categories).
    Pass,
}

/// What happens to a category outside `enum`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// The row is refused.
    #[default]
    Reject,
    /// The value is accepted and counted.
    Pass,
}

/// Bounds of a number, each as the schema gives it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Range {
    /// `minimum`
    pub minimum: Option<f64>,
    /// `maximum`
    pub maximum: Option<f64>,
    /// `exclusiveMinimum`
    pub exclusive_minimum: Option<f64>,
    /// `exclusiveMaximum`
    pub exclusive_maximum: Option<f64>,
}

impl Range {
    /// Whether `value` lies within all bounds. NaN does not, where there are any.
    pub fn contains(&self, value: f64) -> bool {
        self.minimum.is_none_or(|bound| value >= bound)
            && self.maximum.is_none_or(|bound| value <= bound)
            && self.exclusive_minimum.is_none_or(|bound| value > bound)
            && self.exclusive_maximum.is_none_or(|bound| value < bound)
    }
}

/// Bounds of a string's length in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Length {
    /// `minLength`
    pub minimum: Option<usize>,
    /// `maxLength`
    pub maximum: Option<usize>,
}

/// Why a document is not a feature schema.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document is not JSON.
    #[error("the feature schema is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The document is JSON, but not a schema that can be enforced; every mistake is listed.
    #[error("the feature schema has {} mistake(s):{}", .0.len(), .0.iter().map(|m| format!("\n  {m}")).collect::<String>())]
    Invalid(Vec<Mistake>),
}

/// One mistake in a feature schema and where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {message}")]
pub struct Mistake {
    /// JSON pointer into the schema document, as a URI fragment.
    pub pointer: String,
    /// What was found and what was expected.
    pub message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootExtension {
    target: Option<String>,
    positive: Option<Value>,
    labels: Option<Vec<String>>,
    threshold: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldExtension {
    #[serde(default)]
    role: Role,
    missing: Option<Value>,
    #[serde(default)]
    unknown: Unknown,
    encode: Option<Value>,
    #[serde(default)]
    pii: bool,
}

impl FeatureSchema {
    /// Reads a schema from JSON text.
    ///
    /// # Errors
    /// [`Error::Json`] if the text is not JSON, [`Error::Invalid`] with every mistake otherwise.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        Self::from_document(serde_json::from_slice(text)?)
    }

    /// Reads a schema from a JSON document.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every mistake.
    pub fn from_document(document: Value) -> Result<Self, Error> {
        let mut mistakes = Mistakes::default();
        let Value::Object(document) = document else {
            mistakes.add("#", "expected a JSON object".into());
            return Err(Error::Invalid(mistakes.0));
        };
        let schema = Self::read(document, &mut mistakes);
        if mistakes.0.is_empty() { Ok(schema) } else { Err(Error::Invalid(mistakes.0)) }
    }

    fn read(document: Map<String, Value>, mistakes: &mut Mistakes) -> Self {
        const KNOWN: &[&str] =
            &["$schema", "$id", "type", "properties", "required", "additionalProperties", "x-scoregate"];
        for key in document.keys() {
            if !KNOWN.contains(&key.as_str()) && !ANNOTATIONS.contains(&key.as_str()) {
                mistakes.add(&format!("#/{}", escape(key)), unsupported(key, KNOWN));
            }
        }
        if let Some(dialect) = document.get("$schema")
            && dialect.as_str().map(|text| text.trim_end_matches('#')) != Some(DIALECT)
        {
            mistakes.add("#/$schema", format!("found {dialect}, expected \"{DIALECT}\""));
        }
        if document.get("type").is_some_and(|kind| kind != "object") {
            mistakes.add("#/type", "expected \"object\"".into());
        }
        if document.get("additionalProperties").is_some_and(|value| value != &Value::Bool(false)) {
            mistakes
                .add("#/additionalProperties", "expected false: unknown fields are always refused".into());
        }
        let extension: RootExtension = mistakes.extension("#", document.get("x-scoregate"));
        let mut fields = Vec::new();
        match document.get("properties") {
            Some(Value::Object(properties)) => {
                fields
                    .extend(properties.iter().map(|(name, property)| Field::read(name, property, mistakes)));
            }
            _ => mistakes.add("#/properties", "expected an object with one property per field".into()),
        }
        if !fields.is_empty() && !fields.iter().any(|field| field.role == Role::Feature) {
            mistakes.add("#/properties", "expected at least one property of role \"feature\"".into());
        }
        if let Some(second) = fields.iter().filter(|field| field.role == Role::Entity).nth(1) {
            let pointer = format!("#/properties/{}", escape(&second.name));
            mistakes.add(&pointer, "a second property of role \"entity\"; expected at most one".into());
        }
        match document.get("required") {
            None => {}
            Some(Value::Array(names)) => {
                for (index, name) in names.iter().enumerate() {
                    match fields.iter_mut().find(|field| Some(field.name.as_str()) == name.as_str()) {
                        Some(field) => field.required = true,
                        None => {
                            mistakes.add(&format!("#/required/{index}"), format!("{name} is not a property"))
                        }
                    }
                }
            }
            Some(_) => mistakes.add("#/required", "expected an array of property names".into()),
        }
        if let Some(target) = &extension.target
            && fields.iter().any(|field| &field.name == target && field.role == Role::Feature)
        {
            mistakes.add(
                "#/x-scoregate/target",
                format!("\"{target}\" is a feature as well: it would leak the outcome"),
            );
        }
        let positive = extension.positive.unwrap_or_else(|| Value::from(1));
        if positive.is_null() || positive.is_array() || positive.is_object() {
            mistakes.add("#/x-scoregate/positive", "expected a number, a string or a boolean".into());
        }
        let labels = extension.labels;
        if let Some(labels) = &labels
            && (labels.len() == 1
                || labels.iter().enumerate().any(|(index, label)| labels[..index].contains(label)))
        {
            let message = "expected two or more different labels, or none at all for regression";
            mistakes.add("#/x-scoregate/labels", message.into());
        }
        let threshold = extension.threshold.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&threshold) {
            mistakes.add("#/x-scoregate/threshold", format!("found {threshold}, expected 0 to 1"));
        }
        Self { document, fields, target: extension.target, positive, labels, threshold }
    }

    /// The schema as a JSON document, as it was read.
    pub fn document(&self) -> &Map<String, Value> {
        &self.document
    }

    /// The target's value for the positive class, where the schema says it.
    pub fn stated_positive(&self) -> Option<&Value> {
        self.document.get("x-scoregate")?.get("positive")
    }

    /// The same schema for rows that may name whom they are about, which nobody looks at.
    #[must_use]
    pub fn with_ignored_entity(&self) -> Self {
        let mut schema = self.with_optional_entity();
        for field in schema.fields.iter_mut().filter(|field| field.role == Role::Entity) {
            field.role = Role::Ignore;
        }
        schema
    }

    /// The schema for rows that need not say whom they are about: those of a reference, and such as are made up.
    pub fn with_optional_entity(&self) -> Self {
        let mut schema = self.clone();
        for field in schema.fields.iter_mut().filter(|field| field.role == Role::Entity) {
            field.required = false;
        }
        schema
    }

    /// The labels of a binary classifier where the schema names none.
    pub fn default_labels() -> Vec<String> {
        vec!["negative".into(), "positive".into()]
    }

    /// The fields that reach the graph, in order.
    pub fn features(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| field.role == Role::Feature)
    }

    /// The field that names who is scored, if there is one.
    pub fn entity(&self) -> Option<&Field> {
        self.fields.iter().find(|field| field.role == Role::Entity)
    }

    /// The schema with `values` as the categories of field `name`, unknown ones passing: what training writes into a
    /// manifest once it has learned them.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the result is not a schema, such as for a `name` that is no property.
    pub fn with_categories(&self, name: &str, values: &[String]) -> Result<Self, Error> {
        let mut document = Value::Object(self.document.clone());
        let property = document.pointer_mut("/properties").and_then(|properties| properties.get_mut(name));
        if let Some(Value::Object(property)) = property {
            property.insert("enum".into(), values.into());
            let extension = property.entry("x-scoregate").or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(extension) = extension {
                extension.insert("unknown".into(), "pass".into());
            }
            Self::from_document(document)
        } else {
            Err(Error::Invalid(vec![Mistake {
                pointer: format!("#/properties/{}", escape(name)),
                message: "no such property".into(),
            }]))
        }
    }
}

impl Field {
    fn read(name: &str, property: &Value, mistakes: &mut Mistakes) -> Self {
        const KNOWN: &[&str] = &[
            "type",
            "enum",
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "minLength",
            "maxLength",
            "x-scoregate",
        ];
        let pointer = format!("#/properties/{}", escape(name));
        let empty = Map::new();
        let property = property.as_object().unwrap_or_else(|| {
            mistakes.add(&pointer, "expected an object".into());
            &empty
        });
        if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
            mistakes.add(&pointer, "expected a name of 1 to 128 bytes without control characters".into());
        }
        for key in property.keys() {
            if !KNOWN.contains(&key.as_str()) && !ANNOTATIONS.contains(&key.as_str()) {
                mistakes.add(&format!("{pointer}/{}", escape(key)), unsupported(key, KNOWN));
            }
        }
        let extension: FieldExtension = mistakes.extension(&pointer, property.get("x-scoregate"));
        let mut nullable = false;
        let kind = match property.get("type") {
            Some(Value::String(kind)) => Kind::named(kind),
            Some(Value::Array(kinds)) => {
                let mut named = kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null");
                nullable = kinds.iter().any(|kind| kind == "null");
                let first = named.next().and_then(Kind::named);
                if named.next().is_some() { None } else { first }
            }
            _ => None,
        };
        let mut kind = kind.unwrap_or_else(|| {
            let expected =
                "expected \"number\", \"integer\", \"boolean\" or \"string\", or one of them with \"null\"";
            mistakes.add(&format!("{pointer}/type"), expected.into());
            Kind::Number
        });
        if let Some(listed) = property.get("enum") {
            match &mut kind {
                Kind::Category { values } => *values = Some(categories(listed, &pointer, mistakes)),
                _ => mistakes
                    .add(&format!("{pointer}/enum"), "supported for \"string\" only; use bounds".into()),
            }
        }
        let encode = match (extension.encode, &mut kind) {
            (None, _) => None,
            (Some(encode), Kind::Category { values }) => Encode::read(&encode, values, &pointer, mistakes),
            (Some(_), _) => {
                let message = "supported for \"string\" only: everything else is a number already";
                mistakes.add(&format!("{pointer}/x-scoregate/encode"), message.into());
                None
            }
        };
        let mut bound = |key: &str| {
            let value = property.get(key)?;
            if matches!(kind, Kind::Category { .. } | Kind::Boolean) {
                mistakes.add(&format!("{pointer}/{key}"), "supported for numbers only".into());
            }
            value.as_f64().or_else(|| {
                mistakes.add(&format!("{pointer}/{key}"), format!("found {value}, expected a number"));
                None
            })
        };
        let range = Range {
            minimum: bound("minimum"),
            maximum: bound("maximum"),
            exclusive_minimum: bound("exclusiveMinimum"),
            exclusive_maximum: bound("exclusiveMaximum"),
        };
        let mut bound = |key: &str| {
            let value = property.get(key)?;
            if !matches!(kind, Kind::Category { .. }) {
                mistakes.add(&format!("{pointer}/{key}"), "supported for \"string\" only".into());
            }
            value.as_u64().and_then(|value| usize::try_from(value).ok()).or_else(|| {
                mistakes.add(
                    &format!("{pointer}/{key}"),
                    format!("found {value}, expected a length in characters"),
                );
                None
            })
        };
        let length = Length { minimum: bound("minLength"), maximum: bound("maxLength") };
        let role = extension.role;
        if role == Role::Entity && kind != (Kind::Category { values: None }) {
            let message = "expected \"string\" without \"enum\" for the role \"entity\": it names someone";
            mistakes.add(&format!("{pointer}/type"), message.into());
        }
        let missing = match extension.missing {
            // A null that the type allows has to lead somewhere: to the model, as a missing value.
            None if nullable && role == Role::Feature => Missing::Pass,
            None => Missing::Reject,
            Some(Value::String(text)) if text == "reject" => Missing::Reject,
            Some(Value::String(text)) if text == "pass" => Missing::Pass,
            Some(Value::Object(mut object)) if object.len() == 1 && object.contains_key("impute") => {
                Missing::Impute(object.remove("impute").unwrap_or_default())
            }
            Some(other) => {
                let message =
                    format!("found {other}, expected \"reject\", \"pass\" or {{\"impute\": value}}");
                mistakes.add(&format!("{pointer}/x-scoregate/missing"), message);
                Missing::Reject
            }
        };
        let field = Self {
            name: name.into(),
            kind,
            role,
            missing,
            unknown: extension.unknown,
            range,
            length,
            required: false,
            encode,
            pii: extension.pii,
        };
        if let Missing::Impute(value) = &field.missing
            && !field.accepts(value)
        {
            let message = format!("found {value}, expected a value that the property itself accepts");
            mistakes.add(&format!("{pointer}/x-scoregate/missing/impute"), message);
        }
        field
    }

    /// The columns that it takes in a matrix of numbers.
    pub fn width(&self) -> usize {
        match (&self.encode, &self.kind) {
            (Some(Encode::OneHot), Kind::Category { values: Some(values) }) => values.len(),
            _ => 1,
        }
    }

    /// Whether a JSON value is of this field's type and within its bounds. An unknown category is, where they pass.
    pub fn accepts(&self, value: &Value) -> bool {
        match (&self.kind, value) {
            (Kind::Number, Value::Number(number)) => number.as_f64().is_some_and(|x| self.range.contains(x)),
            (Kind::Integer, Value::Number(number)) => {
                number.as_f64().is_some_and(|x| x.fract() == 0.0 && self.range.contains(x))
            }
            (Kind::Boolean, Value::Bool(_)) => true,
            (Kind::Category { values }, Value::String(text)) => {
                let count = text.chars().count();
                self.length.minimum.is_none_or(|bound| count >= bound)
                    && self.length.maximum.is_none_or(|bound| count <= bound)
                    && (self.unknown == Unknown::Pass
                        || values.as_ref().is_none_or(|values| values.iter().any(|value| value == text)))
            }
            _ => false,
        }
    }
}

impl Encode {
    /// Reads `encode`; `values` are the categories of `enum`, or become those of the map where there is no `enum`.
    fn read(
        encode: &Value,
        values: &mut Option<Vec<String>>,
        pointer: &str,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let at = |name: &str| format!("{pointer}/x-scoregate/encode{name}");
        match encode {
            Value::String(text) if text == "one_hot" => {
                if values.is_none() {
                    mistakes
                        .add(&at(""), "one_hot needs \"enum\", whose order is that of the columns".into());
                }
                Some(Self::OneHot)
            }
            Value::Object(map) if !map.is_empty() => {
                let mut numbers = Vec::with_capacity(map.len());
                for (category, number) in map {
                    match number.as_f64().filter(|number| number.is_finite()) {
                        Some(number) => numbers.push((category.clone(), number)),
                        None => {
                            let message = format!("found {number}, expected a number");
                            mistakes.add(&at(&format!("/{}", escape(category))), message);
                        }
                    }
                }
                for category in values.iter().flatten().filter(|category| !map.contains_key(*category)) {
                    mistakes.add(&at(""), format!("it has no number for \"{category}\" of \"enum\""));
                }
                if let Some(listed) = values {
                    for category in map.keys().filter(|key| !key.is_empty() && !listed.contains(key)) {
                        mistakes.add(
                            &at(""),
                            format!("\"{category}\" is not in \"enum\": add it there, or leave it out here"),
                        );
                    }
                }
                let listed = || map.keys().filter(|category| !category.is_empty()).cloned().collect();
                values.get_or_insert_with(listed);
                Some(Self::Map(numbers))
            }
            other => {
                let message = format!("found {other}, expected \"one_hot\" or {{\"category\": number, …}}");
                mistakes.add(&at(""), message);
                None
            }
        }
    }
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "number" => Self::Number,
            "integer" => Self::Integer,
            "boolean" => Self::Boolean,
            "string" => Self::Category { values: None },
            _ => return None,
        })
    }
}

fn categories(listed: &Value, pointer: &str, mistakes: &mut Mistakes) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    let mut known = HashSet::new();
    let Some(listed) = listed.as_array().filter(|listed| !listed.is_empty()) else {
        mistakes.add(&format!("{pointer}/enum"), "expected a non-empty array of strings".into());
        return values;
    };
    for (index, value) in listed.iter().enumerate() {
        match value {
            // A null beside the categories only repeats what `type` and `missing` say.
            Value::Null => {}
            Value::String(text) if text.contains('\0') => {
                mistakes
                    .add(&format!("{pointer}/enum/{index}"), "a category cannot hold a NUL character".into());
            }
            Value::String(text) if !known.insert(text) => {
                mistakes.add(&format!("{pointer}/enum/{index}"), format!("\"{text}\" is listed twice"));
            }
            Value::String(text) => values.push(text.clone()),
            other => {
                mistakes.add(&format!("{pointer}/enum/{index}"), format!("found {other}, expected a string"))
            }
        }
    }
    values
}

#[derive(Default)]
struct Mistakes(Vec<Mistake>);

impl Mistakes {
    fn add(&mut self, pointer: &str, message: String) {
        self.0.push(Mistake { pointer: pointer.into(), message });
    }

    fn extension<T: Default + for<'de> Deserialize<'de>>(
        &mut self,
        pointer: &str,
        value: Option<&Value>,
    ) -> T {
        let Some(value) = value else { return T::default() };
        T::deserialize(value).unwrap_or_else(|error| {
            self.add(&format!("{pointer}/x-scoregate"), error.to_string());
            T::default()
        })
    }
}

fn unsupported(key: &str, known: &[&str]) -> String {
    format!(
        "the keyword \"{key}\" is not enforced here and would promise too much; expected one of {}",
        known.join(", ")
    )
}

/// Escapes a name for use as one token of a JSON pointer in a URI fragment (RFC 6901, 6).
pub fn escape(name: &str) -> std::borrow::Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._!$&'()*+,;=:@?".contains(&byte);
    if name.bytes().all(plain) {
        return name.into();
    }
    let mut escaped = String::with_capacity(name.len() + 8);
    for byte in name.bytes() {
        match byte {
            b'~' => escaped.push_str("~0"),
            b'/' => escaped.push_str("~1"),
            _ if plain(byte) => escaped.push(char::from(byte)),
            _ => {
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests;
