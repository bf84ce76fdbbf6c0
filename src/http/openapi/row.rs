//! A model's feature schema → the JSON Schema of the rows that it takes and of the answers that it gives.
//!
//! What is said here is what [`scoregate_model::features`] checks, as far as JSON Schema can say it. It cannot say that an integer
//! has to be one that the graph's float32 input holds exactly; and it counts characters, where texts are limited by bytes as well.

use scoregate_model::features::MAX_TEXT_BYTES;
use scoregate_model::package::Package;
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::feature_schema::{Field, Kind, Missing, Role, Unknown};
use scoregate_schemas::manifest::{Bindings, Element, Task};
use serde_json::{Map, Value, json};

use crate::config::Settings;
use crate::registry::Version;

/// The most known categories that are listed of a field which takes others, too.
const MOST_KNOWN: usize = 100;

/// The most rows of an example.
const EXAMPLE_ROWS: usize = 2;

/// What is documented of a model's live version.
#[derive(Debug)]
pub(crate) struct Described<'m> {
    pub(super) name: &'m str,
    pub(super) schema: &'m FeatureSchema,
    bindings: &'m Bindings,
    task: Task,
    labels: &'m [String],
    pub(super) max_batch_rows: usize,
}

impl<'m> Described<'m> {
    /// A version that is loaded.
    pub(super) fn loaded(version: &'m Version) -> Self {
        Self {
            name: &version.manifest.name,
            schema: &version.schema,
            bindings: &version.manifest.bindings,
            task: version.task,
            labels: &version.labels,
            max_batch_rows: version.max_batch_rows,
        }
    }

    /// A version that is only published; where these `settings` are the gateway's.
    pub(crate) fn published(package: &'m Package, settings: &'m Settings) -> Self {
        let manifest = &package.manifest;
        let own = settings.model.get(&manifest.name);
        Self {
            name: &manifest.name,
            schema: &package.schema,
            bindings: &manifest.bindings,
            task: manifest.output.task(),
            labels: own.and_then(|own| own.labels.as_ref()).unwrap_or(&manifest.labels),
            max_batch_rows: settings.serving(&manifest.name).max_batch_rows,
        }
    }

    /// A model of two classes, of which only the schema is known.
    #[cfg(test)]
    pub(super) fn of_schema(name: &'m str, schema: &'m FeatureSchema) -> Self {
        static BINDINGS: Bindings = Bindings::Columns { columns: Vec::new() };
        Self { name, schema, bindings: &BINDINGS, task: Task::Binary, labels: &[], max_batch_rows: 10 }
    }

    /// The schema of a row.
    pub(super) fn row(&self) -> Value {
        let fields = &self.schema.fields;
        let properties: Map<String, Value> =
            fields.iter().map(|field| (field.name.clone(), self.field(field))).collect();
        let required: Vec<&str> =
            fields.iter().filter(|field| is_required(field)).map(|field| field.name.as_str()).collect();
        let mut row = json!({ "type": "object" });
        // Not the title, by which generators would call it.
        if let Some(text) = self.schema.document().get("description") {
            row["description"] = text.clone();
        }
        row["properties"] = properties.into();
        if !required.is_empty() {
            row["required"] = required.into();
        }
        row["additionalProperties"] = false.into();
        row["examples"] = json!([self.example()]);
        row
    }

    /// A row that scores. It is put together of the schema's own examples, or made up: no customer's data stands here.
    pub(super) fn example(&self) -> Value {
        let shown = self.schema.fields.iter().filter(|field| {
            let is_shown = match field.role {
                Role::Feature => true,
                Role::Entity | Role::Ignore => field.required,
            };
            is_shown || is_required(field)
        });
        shown.map(|field| (field.name.clone(), self.example_of(field))).collect::<Map<_, _>>().into()
    }

    /// Rows that score, no two of which name the same entity.
    pub(super) fn example_rows(&self) -> Value {
        let entity = self.schema.entity().filter(|field| field.required);
        let count = if entity.is_some() { 1 } else { EXAMPLE_ROWS };
        vec![self.example(); count].into()
    }

    /// The annotations of a field, as its schema has them.
    fn property(&self, field: &Field) -> Option<&Map<String, Value>> {
        self.schema.document().get("properties")?.get(&field.name)?.as_object()
    }

    fn field(&self, field: &Field) -> Value {
        let mut schema = Map::new();
        for name in ["title", "description", "deprecated", "format"] {
            if let Some(text) = self.property(field).and_then(|property| property.get(name)) {
                schema.insert(name.into(), text.clone());
            }
        }
        let is_nullable = !is_required(field);
        match &field.kind {
            Kind::Category { values: Some(values) } if field.unknown == Unknown::Reject => {
                let mut values: Vec<Value> = values.iter().map(|value| value.as_str().into()).collect();
                if is_nullable {
                    values.push(Value::Null);
                }
                schema.insert("type".into(), typed("string", is_nullable));
                schema.insert("enum".into(), values.into());
            }
            Kind::Category { values } => {
                let mut text = self.text(field);
                text.insert("type".into(), typed("string", is_nullable));
                // Those that training has met; others are taken as well. Categories that are personal data are not named.
                let known = values.as_ref().filter(|known| known.len() <= MOST_KNOWN && !field.pii);
                match known {
                    None => schema.extend(text),
                    Some(known) => {
                        let known = json!({ "type": "string", "enum": known });
                        schema.insert("anyOf".into(), json!([known, text]));
                    }
                }
            }
            Kind::Boolean => {
                schema.insert("type".into(), typed("boolean", is_nullable));
            }
            Kind::Number => {
                schema.insert("type".into(), typed("number", is_nullable));
                schema.extend(self.bounds(field));
            }
            Kind::Integer => {
                schema.insert("type".into(), typed("integer", is_nullable));
                schema.insert("format".into(), "int64".into());
                schema.extend(self.bounds(field));
            }
        }
        if let Missing::Impute(value) = &field.missing {
            schema.insert("default".into(), value.clone());
        }
        if field.role == Role::Ignore {
            // Of another type it is not looked at.
            let kind = match field.kind {
                Kind::Number | Kind::Integer => "number",
                Kind::Boolean => "boolean",
                Kind::Category { .. } => "string",
            };
            return json!({ "description": "Accepted and dropped.", "anyOf": [schema, { "not": { "type": kind } }] });
        }
        schema.insert("examples".into(), json!([self.example_of(field)]));
        schema.into()
    }

    /// How long a text may be, and what may stand in it.
    fn text(&self, field: &Field) -> Map<String, Value> {
        let mut schema = Map::new();
        if let Some(minimum) = field.length.minimum {
            schema.insert("minLength".into(), minimum.into());
        }
        let maximum = field.length.maximum.unwrap_or(MAX_TEXT_BYTES).min(MAX_TEXT_BYTES);
        schema.insert("maxLength".into(), maximum.into());
        let pattern = match field.role {
            Role::Entity => r"^[^\u0000-\u001f\u007f-\u009f]*$",
            Role::Feature | Role::Ignore => r"^[^\u0000]*$",
        };
        schema.insert("pattern".into(), pattern.into());
        // A character takes up to four bytes.
        if maximum > MAX_TEXT_BYTES / 4 {
            let own =
                self.property(field).and_then(|property| property.get("description")).and_then(Value::as_str);
            let description = format!("{} At most {MAX_TEXT_BYTES} bytes of UTF-8.", own.unwrap_or_default());
            schema.insert("description".into(), description.trim_start().into());
        }
        schema
    }

    /// The schema's bounds, and those of the graph's input where they are narrower.
    fn bounds(&self, field: &Field) -> Map<String, Value> {
        let range = field.range;
        let (least, most) = self.held(field).unzip();
        let mut bounds = Map::new();
        for (name, bound) in
            [("exclusiveMinimum", range.exclusive_minimum), ("exclusiveMaximum", range.exclusive_maximum)]
        {
            if let Some(bound) = bound {
                bounds.insert(name.into(), number(bound));
            }
        }
        let least = least.filter(|least| range.exclusive_minimum.is_none_or(|bound| bound < *least));
        let most = most.filter(|most| range.exclusive_maximum.is_none_or(|bound| bound > *most));
        let least = [range.minimum, least].into_iter().flatten().reduce(f64::max);
        let most = [range.maximum, most].into_iter().flatten().reduce(f64::min);
        for (name, bound) in [("minimum", least), ("maximum", most)] {
            bounds.extend(bound.map(|bound| (name.to_owned(), number(bound))));
        }
        bounds
    }

    fn example_of(&self, field: &Field) -> Value {
        let property = self.property(field);
        let stated = property.and_then(|property| property.get("examples")).and_then(Value::as_array);
        let stated =
            stated.filter(|_| !field.pii).into_iter().flatten().find(|value| self.takes(field, value));
        stated.cloned().unwrap_or_else(|| made_up(field, |value| self.takes(field, value)))
    }

    /// Whether a row with this value is scored: the schema allows it, and the graph's input holds it.
    fn takes(&self, field: &Field, value: &Value) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "rounding is what is looked for")]
        let is_held = |number: f64| {
            let is_between = |(least, most)| (least..=most).contains(&number);
            let is_exact = number.fract() != 0.0 || f64::from(number as f32) == number;
            self.held(field).is_none_or(is_between) && (!self.is_single(field) || is_exact)
        };
        field.accepts(value) && value.as_f64().is_none_or(is_held)
    }

    fn is_single(&self, field: &Field) -> bool {
        self.bindings.elements_of(&field.name).contains(&Element::Float32)
    }

    /// The least and the greatest number that the graph's input holds. Those of a double and of a 64-bit integer go without saying.
    fn held(&self, field: &Field) -> Option<(f64, f64)> {
        if self.bindings.elements_of(&field.name).contains(&Element::Int32) {
            Some((i32::MIN.into(), i32::MAX.into()))
        } else if field.kind == Kind::Number && self.is_single(field) {
            Some((f32::MIN.into(), f32::MAX.into()))
        } else {
            None
        }
    }

    /// The labels of which one may be explained.
    pub(super) fn classes(&self) -> &'m [String] {
        if self.task == Task::Regression { &[] } else { self.labels }
    }

    /// The members of an answer besides those that every answer has.
    fn answer(&self) -> (Map<String, Value>, Vec<String>) {
        let probability = json!({ "type": "number", "minimum": 0, "maximum": 1 });
        let label = json!({
            "type": "string", "enum": self.labels, "description": "The label that is decided for."
        });
        let members = match self.task {
            Task::Binary => {
                vec![(format!("{}_probability", self.name), probability), ("prediction".into(), label)]
            }
            Task::Multiclass { .. } => {
                let classes: Map<String, Value> =
                    self.labels.iter().map(|label| (label.clone(), probability.clone())).collect();
                let probabilities =
                    json!({ "type": "object", "properties": classes, "required": self.labels });
                vec![("probabilities".into(), probabilities), ("prediction".into(), label)]
            }
            Task::Regression => vec![("value".into(), json!({ "type": "number" }))],
        };
        let required = members.iter().map(|(name, _)| name.clone()).collect();
        (members.into_iter().collect(), required)
    }

    /// The schema of the answer to one row.
    pub(super) fn score(&self) -> Value {
        self.answer_with("model_version", json!({ "type": "string" }))
    }

    /// The schema of the answer to a row of a batch.
    pub(super) fn scored_row(&self) -> Value {
        let place = "Its place among the rows that were sent.";
        let place = json!({ "type": "integer", "minimum": 0, "description": place });
        let mut row = self.answer_with("index", place);
        row["properties"]["model_version"] = json!({ "$ref": "#/components/schemas/RowVersion" });
        row
    }

    fn answer_with(&self, first: &str, schema: Value) -> Value {
        let (members, names) = self.answer();
        let mut properties = Map::from_iter([(first.to_owned(), schema)]);
        properties.extend(members);
        properties.insert("explanations".into(), json!({ "$ref": "#/components/schemas/Explanations" }));
        properties.insert("prediction_id".into(), json!({ "type": "string" }));
        let mut required = vec![first.to_owned()];
        required.extend(names);
        required.extend(["explanations", "prediction_id"].map(String::from));
        json!({ "type": "object", "properties": properties, "required": required })
    }
}

/// Whether a row without the field, or with null in its place, is refused.
fn is_required(field: &Field) -> bool {
    match field.role {
        Role::Feature => field.missing == Missing::Reject,
        Role::Entity | Role::Ignore => field.required,
    }
}

fn typed(kind: &str, is_nullable: bool) -> Value {
    if is_nullable { json!([kind, "null"]) } else { kind.into() }
}

/// A number without a fraction that it does not need.
fn number(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
    if value.fract() == 0.0 && value.abs() < 9e15 { (value as i64).into() } else { value.into() }
}

/// A value that is taken.
fn made_up(field: &Field, is_taken: impl Fn(&Value) -> bool) -> Value {
    match &field.kind {
        Kind::Boolean => true.into(),
        Kind::Category { values } => {
            // Where nothing else passes, what is listed is no secret.
            let is_shown = !field.pii || field.unknown == Unknown::Reject;
            let listed = values.as_ref().filter(|_| is_shown).and_then(|values| values.first());
            listed
                .cloned()
                .unwrap_or_else(|| {
                    let least = field.length.minimum.unwrap_or(0);
                    let most = field.length.maximum.unwrap_or(MAX_TEXT_BYTES);
                    let text: String = "text".chars().cycle().take(least.max(4).min(most)).collect();
                    text
                })
                .into()
        }
        Kind::Number | Kind::Integer => {
            let range = field.range;
            let candidates = [
                Some(1.0),
                range.minimum,
                range.maximum,
                range.exclusive_minimum.map(|bound| bound.floor() + 1.0),
                range.exclusive_maximum.map(|bound| bound.ceil() - 1.0),
                Some(
                    (range.exclusive_minimum.or(range.minimum).unwrap_or(0.0)
                        + range.exclusive_maximum.or(range.maximum).unwrap_or(0.0))
                        / 2.0,
                ),
            ];
            // Beyond 2^24 not every integer is one of float32: those beside it are.
            #[expect(clippy::cast_possible_truncation, reason = "rounding is what is looked for")]
            let beside = |value: f64| [(value as f32).next_up(), (value as f32).next_down()].map(f64::from);
            let candidates = candidates.into_iter().flatten();
            let mut values = candidates.clone().chain(candidates.flat_map(beside)).map(number);
            values.find(is_taken).unwrap_or_else(|| 0.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema_of(property: Value) -> FeatureSchema {
        FeatureSchema::from_document(json!({ "type": "object", "properties": { "x": property } })).unwrap()
    }

    #[test]
    fn what_is_made_up_passes() {
        for property in [
            json!({ "type": "number" }),
            json!({ "type": "number", "minimum": 2.5 }),
            json!({ "type": "number", "maximum": -2.5 }),
            json!({ "type": "number", "exclusiveMinimum": 0.25, "exclusiveMaximum": 0.75 }),
            json!({ "type": "number", "exclusiveMinimum": 7, "maximum": 9 }),
            json!({ "type": "integer", "minimum": 10, "maximum": 10 }),
            json!({ "type": "integer", "exclusiveMinimum": 10, "maximum": 11 }),
            json!({ "type": "integer", "exclusiveMaximum": -3 }),
            json!({ "type": "boolean" }),
            json!({ "type": "string" }),
            json!({ "type": "string", "minLength": 9 }),
            json!({ "type": "string", "maxLength": 2 }),
            json!({ "type": "string", "enum": ["a", "b"] }),
            json!({ "type": "string", "enum": ["a", "b"], "x-scoregate": { "pii": true } }),
            // An example that does not pass is no example.
            json!({ "type": "number", "minimum": 5, "examples": ["five", 4] }),
            json!({ "type": ["integer", "null"], "examples": [null] }),
        ] {
            let schema = schema_of(property);
            let example = Described::of_schema("m", &schema).example();
            assert!(schema.fields[0].accepts(&example["x"]), "{example} {:?}", schema.fields[0]);
        }
    }

    /// The bindings of a graph whose input for `x` is of `element`.
    fn bindings_of(element: &str) -> Bindings {
        let column = json!({ "feature": "x", "input": "x", "type": element });
        serde_json::from_value(json!({ "kind": "columns", "columns": [column] })).unwrap()
    }

    #[test]
    fn what_the_graph_does_not_hold_is_not_allowed_and_no_example() {
        for (property, element, bounds, example) in [
            (
                json!({ "type": "integer", "minimum": 16_777_217 }),
                "float32",
                [json!(16_777_217), json!(null)],
                json!(16_777_218),
            ),
            (
                json!({ "type": "integer", "maximum": -16_777_217, "examples": [-16_777_217] }),
                "float32",
                [json!(null), json!(-16_777_217)],
                json!(-16_777_218),
            ),
            (
                json!({ "type": "number", "minimum": -1e300 }),
                "float32",
                [json!(f64::from(f32::MIN)), json!(f64::from(f32::MAX))],
                json!(1),
            ),
            (
                json!({ "type": "integer", "maximum": 1e12, "minimum": 5 }),
                "int32",
                [json!(5), json!(i32::MAX)],
                json!(5),
            ),
            (
                json!({ "type": "integer", "exclusiveMinimum": -1e12, "examples": [3_000_000_000_i64] }),
                "int32",
                [json!(i32::MIN), json!(i32::MAX)],
                json!(1),
            ),
            (
                json!({ "type": "number", "minimum": -1e300 }),
                "float64",
                [json!(-1e300), json!(null)],
                json!(1),
            ),
        ] {
            let (schema, bindings) = (schema_of(property.clone()), bindings_of(element));
            let row = Described { bindings: &bindings, ..Described::of_schema("m", &schema) }.row();
            let told = &row["properties"]["x"];
            assert_eq!([&told["minimum"], &told["maximum"]], [&bounds[0], &bounds[1]], "{property}");
            assert_eq!(row["examples"][0]["x"], example, "{property}");
        }
    }

    #[test]
    fn texts_that_bytes_limit_say_so() {
        for (property, expected) in [
            (json!({ "type": "string" }), json!("At most 1024 bytes of UTF-8.")),
            (
                json!({ "type": "string", "description": "Who." , "maxLength": 900 }),
                json!("Who. At most 1024 bytes of UTF-8."),
            ),
            (json!({ "type": "string", "maxLength": 256 }), json!(null)),
        ] {
            let row = Described::of_schema("m", &schema_of(property.clone())).row();
            assert_eq!(row["properties"]["x"]["description"], expected, "{property}");
        }
    }

    #[test]
    fn personal_data_is_not_shown() {
        for (property, seen) in [
            (
                json!({ "type": "string", "enum": ["Ann"], "x-scoregate": { "unknown": "pass", "pii": true } }),
                false,
            ),
            (json!({ "type": "string", "examples": ["Ann"], "x-scoregate": { "pii": true } }), false),
            (json!({ "type": "string", "enum": ["Ann"], "x-scoregate": { "unknown": "pass" } }), true),
        ] {
            let row = Described::of_schema("m", &schema_of(property.clone())).row();
            assert_eq!(row.to_string().contains("Ann"), seen, "{property}");
        }
    }

    #[test]
    fn what_may_be_missing_may_be_null() {
        for (property, kind, is_required) in [
            (json!({ "type": "number" }), json!("number"), true),
            (json!({ "type": ["number", "null"] }), json!(["number", "null"]), false),
            (
                json!({ "type": "number", "x-scoregate": { "missing": { "impute": 3 } } }),
                json!(["number", "null"]),
                false,
            ),
        ] {
            let row = Described::of_schema("m", &schema_of(property.clone())).row();
            assert_eq!(row["properties"]["x"]["type"], kind, "{property}");
            assert_eq!(!row["required"].is_null(), is_required, "{property}");
        }
    }
}
