//! What is a feature schema, and what every mistake in one is called.

use super::*;
use serde_json::json;

fn mistakes(document: Value) -> Vec<String> {
    match FeatureSchema::from_document(document) {
        Ok(_) => Vec::new(),
        Err(Error::Invalid(mistakes)) => mistakes.iter().map(ToString::to_string).collect(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn keeps_the_order_of_properties() {
    let schema = FeatureSchema::parse(
        br#"{"type":"object","properties":{"z":{"type":"number"},"id":{"type":"string","x-scoregate":{"role":"entity"}},"a":{"type":"integer"}}}"#,
    )
    .unwrap();
    assert_eq!(schema.features().map(|field| field.name.as_str()).collect::<Vec<_>>(), ["z", "a"]);
    assert_eq!(schema.entity().unwrap().name, "id");
    assert_eq!((schema.threshold, schema.positive.clone()), (0.5, json!(1)));
}

#[test]
fn reports_every_mistake_at_once() {
    let found = mistakes(json!({
        "type": "array", "oneOf": [],
        "properties": {
            "a/b": {"type": "number", "pattern": "x", "x-scoregate": {"rol": "feature"}},
            "c": {"type": "string", "enum": ["x", "x", 3], "minimum": 0},
            "d": {"type": ["number", "string"]},
            "e": {"type": "integer", "x-scoregate": {"missing": {"impute": 1.5}}}
        },
        "required": ["nope"],
        "x-scoregate": {"threshold": 2, "labels": ["one"], "target": "c"}
    }));
    for pointer in [
        "#/oneOf",
        "#/type",
        "#/properties/a~1b/pattern",
        "#/properties/a~1b/x-scoregate",
        "#/properties/c/enum/1",
        "#/properties/c/enum/2",
        "#/properties/c/minimum",
        "#/properties/d/type",
        "#/properties/e/x-scoregate/missing/impute",
        "#/required/0",
        "#/x-scoregate/threshold",
        "#/x-scoregate/labels",
        "#/x-scoregate/target",
    ] {
        assert!(
            found.iter().any(|mistake| mistake.starts_with(&format!("{pointer}: "))),
            "{pointer} not in {found:#?}"
        );
    }
    assert_eq!(found.len(), 13, "{found:#?}");
}

#[test]
fn learned_categories_pass_when_unknown() {
    let schema =
        FeatureSchema::from_document(json!({"properties": {"country": {"type": "string"}}})).unwrap();
    let learned = schema.with_categories("country", &["DE".into(), "US".into()]).unwrap();
    assert_eq!(learned.fields[0].kind, Kind::Category { values: Some(vec!["DE".into(), "US".into()]) });
    assert_eq!(learned.fields[0].unknown, Unknown::Pass);
    assert_eq!(learned.document()["properties"]["country"]["enum"], json!(["DE", "US"]));
    assert!(schema.with_categories("nope", &[]).is_err());
}

#[test]
fn names_are_escaped_for_pointers_in_fragments() {
    for (name, escaped) in
        [("tenure_days", "tenure_days"), ("a/b~c", "a~1b~0c"), ("a b%", "a%20b%25"), ("ü", "%C3%BC")]
    {
        assert_eq!(escape(name), escaped);
    }
}

#[test]
fn a_nullable_feature_passes_missing_values_on() {
    let schema =
        FeatureSchema::from_document(json!({"properties": {"x": {"type": ["number", "null"]}}})).unwrap();
    assert_eq!(schema.fields[0].missing, Missing::Pass);
}
