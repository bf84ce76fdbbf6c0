//! Rows made up from a feature schema, to try a model with before anyone sends it a real one.

use scoregate_schemas::feature_schema::{FeatureSchema, Field, Kind, Missing, Role, Unknown};
use serde_json::{Map, Value};

use crate::random::Random;

/// Numbers of a feature without bounds or examples.
const NUMBERS: [f64; 6] = [1.0, 0.0, 2.0, 0.5, 10.0, 100.0];

/// `count` rows as a client would send them. The first is typical: every feature has its first example, its default, its
/// first category or a number in the middle of its bounds. The others draw from all that the schema allows, its bounds
/// included, and now and then leave out what may be missing. The same schema gives the same rows.
pub fn rows(schema: &FeatureSchema, count: usize) -> Vec<Map<String, Value>> {
    let mut random = Random::new(0, "probe");
    let drawn: Vec<(&Field, Vec<Value>)> = schema
        .fields
        .iter()
        .filter(|field| field.role != Role::Ignore)
        .map(|field| (field, choices(schema, field)))
        .collect();
    let row = |at: usize| {
        let members = drawn.iter().map(|(field, choices)| {
            let value = match field.role {
                // Rows of one body have to be about different entities.
                Role::Entity => Value::from(format!("probe-{at}")),
                _ if at == 0 => choices.first().cloned().unwrap_or_default(),
                _ if may_be_missing(field) && random.below(8) == 0 => Value::Null,
                _ => choices.get(random.below(choices.len())).cloned().unwrap_or_default(),
            };
            (field.name.clone(), value)
        });
        members.collect()
    };
    (0..count).map(row).collect()
}

fn may_be_missing(field: &Field) -> bool {
    field.missing != Missing::Reject
}

/// Values that `field` may have, the typical one first.
fn choices(schema: &FeatureSchema, field: &Field) -> Vec<Value> {
    let property = schema.document().get("properties").and_then(|properties| properties.get(&field.name));
    let said = |name: &str| property.and_then(|property| property.get(name));
    let examples = said("examples").and_then(Value::as_array).into_iter().flatten().chain(said("default"));
    let made: Vec<Value> = match &field.kind {
        Kind::Boolean => vec![false.into(), true.into()],
        Kind::Category { values } => {
            let mut values = values.clone().unwrap_or_default();
            if values.is_empty() || field.unknown == Unknown::Pass {
                let length = &field.length;
                let most = length.maximum.unwrap_or(5).max(length.minimum.unwrap_or(0));
                values.push(
                    "other".chars().cycle().take(most.clamp(length.minimum.unwrap_or(0), 1_000)).collect(),
                );
            }
            values.into_iter().map(Value::from).collect()
        }
        Kind::Number => numbers(field).into_iter().map(Value::from).collect(),
        Kind::Integer => {
            let whole = numbers(field).into_iter().flat_map(|number| [number.floor(), number.ceil()]);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a bound beyond 64 bits passes no row anyway"
            )]
            whole.map(|number| Value::from(number as i64)).collect()
        }
    };
    let mut choices: Vec<Value> = Vec::new();
    for value in examples.chain(&made) {
        if field.accepts(value) && !choices.contains(value) {
            choices.push(value.clone());
        }
    }
    choices
}

/// Numbers within the field's bounds, the one in the middle first and the bounds themselves last.
fn numbers(field: &Field) -> Vec<f64> {
    let range = &field.range;
    // An exclusive bound is no value itself: the next number that float32 tells apart is.
    let beside = |bound: f64, sign: f64| bound + sign * bound.abs().max(1.0) * 1e-3;
    let least = range.minimum.or(range.exclusive_minimum.map(|bound| beside(bound, 1.0)));
    let most = range.maximum.or(range.exclusive_maximum.map(|bound| beside(bound, -1.0)));
    match (least, most) {
        (None, None) => NUMBERS.to_vec(),
        (Some(least), None) => NUMBERS.iter().map(|number| least + number).chain([least]).collect(),
        (None, Some(most)) => NUMBERS.iter().map(|number| most - number).chain([most]).collect(),
        (Some(least), Some(most)) => {
            let between = |share: f64| least + (most - least) * share;
            [0.5, 0.25, 0.75, 0.1, 0.9, 0.0, 1.0].map(between).to_vec()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::RowReader;
    use scoregate_schemas::manifest::Bindings;
    use serde_json::json;

    fn schema(properties: Value) -> FeatureSchema {
        let document =
            json!({"type": "object", "properties": properties, "x-scoregate": {"labels": ["no", "yes"]}});
        FeatureSchema::from_document(document).unwrap()
    }

    fn read(schema: &FeatureSchema, rows: &[Map<String, Value>]) -> (usize, usize) {
        let reader = RowReader::new(schema, &Bindings::columns_of(schema, str::to_owned));
        let body = serde_json::to_vec(rows).unwrap();
        let read = reader.json_rows(&body, usize::MAX).unwrap().rows;
        (read.len(), read.faults.len())
    }

    #[test]
    fn rows_pass_the_schema_that_they_are_drawn_from() {
        let schema = schema(json!({
            "id": {"type": "string", "x-scoregate": {"role": "entity"}},
            "note": {"type": "string", "x-scoregate": {"role": "ignore"}},
            "free": {"type": "number"},
            "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "count": {"type": "integer", "minimum": 3},
            "small": {"type": "integer", "minimum": 3, "maximum": 4},
            "below": {"type": "number", "maximum": -5},
            "flag": {"type": ["boolean", "null"]},
            "plan": {"type": "string", "enum": ["basic", "pro"], "x-scoregate": {"unknown": "pass", "missing": "pass"}},
            "city": {"type": "string", "minLength": 9},
            "code": {"type": "string", "maxLength": 2},
        }));
        let rows = rows(&schema, 200);
        assert_eq!(read(&schema, &rows), (200, 0));
        assert!(rows.iter().any(|row| row["flag"].is_null()), "missing values are tried");
        assert!(rows.iter().any(|row| row["plan"] == "other"), "unknown categories are tried");
        assert!(
            rows.iter().any(|row| row["count"] == 3) && rows.iter().any(|row| row["small"] == 4),
            "bounds are tried"
        );
        assert_eq!(rows, super::rows(&schema, 200), "the same schema gives the same rows");
    }

    #[test]
    fn the_first_row_is_typical() {
        let schema = schema(json!({
            "age": {"type": "number", "minimum": 20, "maximum": 60},
            "spend": {"type": "number", "minimum": 0, "examples": [49.5, 12]},
            "tier": {"type": "string", "enum": ["a", "b"], "default": "b"},
            "free": {"type": "number"},
        }));
        let expected = json!({"age": 40.0, "spend": 49.5, "tier": "b", "free": 1.0});
        assert_eq!(Value::Object(rows(&schema, 1).remove(0)), expected);
    }

    #[test]
    fn a_schema_that_nothing_passes_gives_rows_that_do_not_pass() {
        let schema = schema(json!({"none": {"type": "number", "minimum": 2, "maximum": 1}}));
        assert_eq!(read(&schema, &rows(&schema, 3)), (0, 3));
    }
}
