//! What is published is held to its model as it is, in ONNX Runtime, and not only as a gateway rewrites it.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write;
use std::sync::OnceLock;

use prost::Message;
use scoregate_model::random::Random;
use scoregate_model::runtime::Runtime;
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::onnx::{ModelProto, TensorProto};
use scoregate_trainer::calibrate::Method;
use scoregate_trainer::console::Progress;
use scoregate_trainer::data::Table;
use scoregate_trainer::train::{Options, Trained, train};
use scoregate_trainer::verify::{self, Error, TOLERANCE};
use serde_json::{Value, json};

/// Every name that a value inside the graph has, or had or could be taken for.
const NUMBERS: [&str; 9] = [
    "intercept",
    "one",
    "probability",
    "probabilities",
    "label",
    "log_odds",
    "log_odds/intercept",
    "probability/one",
    "input/label",
];
const CATEGORIES: [&str; 4] = ["plan", "plan/weigh", "plan/index", "label/class"];

/// Loaded once, before any test does its work.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| verify::load_runtime(None).unwrap())
}

fn schema() -> FeatureSchema {
    let number = |name: &&str| ((*name).to_owned(), json!({"type": "number"}));
    let category =
        |name: &&str| ((*name).to_owned(), json!({"type": "string", "enum": ["basic", "pro", "gold"]}));
    let properties: serde_json::Map<String, Value> =
        NUMBERS.iter().map(number).chain(CATEGORIES.iter().map(category)).collect();
    let required: Vec<&String> = properties.keys().collect();
    FeatureSchema::from_document(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "names",
        "type": "object",
        "required": required,
        "additionalProperties": false,
        "properties": properties,
        "x-scoregate": {
            "target": "outcome", "positive": "1", "labels": ["stays", "leaves"], "threshold": 0.5
        }
    }))
    .unwrap()
}

fn table() -> Table {
    let mut random = Random::new(3, "names");
    let mut text = [NUMBERS.as_slice(), &CATEGORIES, &["outcome"]].concat().join(",");
    for _ in 0..3_000 {
        let mut log_odds = 0.0;
        text.push('\n');
        for at in 0..NUMBERS.len() {
            let number = random.normal();
            log_odds += number * (at as f64 - 4.0) / 4.0;
            write!(text, "{number},").unwrap();
        }
        for _ in CATEGORIES {
            let category = random.below(3);
            log_odds += category as f64 - 1.0;
            write!(text, "{},", ["basic", "pro", "gold"][category]).unwrap();
        }
        let outcome = random.uniform() < 1.0 / (1.0 + (-log_odds).exp());
        write!(text, "{}", u8::from(outcome)).unwrap();
    }
    Table::parse(text.as_bytes(), &schema()).unwrap()
}

fn trained(table: &Table, calibration: Method) -> Trained {
    let options = Options { calibration, ..Options::default() };
    train(table, &schema(), options, &mut Progress::quiet()).unwrap()
}

#[test]
fn features_may_be_called_like_values_of_the_graph() {
    let (runtime, table) = (runtime(), table());
    for calibration in [Method::None, Method::Platt, Method::Isotonic] {
        let trained = trained(&table, calibration);
        let verified = verify::verify(runtime, &trained, &table).unwrap();
        assert_eq!(verified.served.len(), trained.folds.test.len());
        assert!(verified.worst <= TOLERANCE, "{}", verified.worst);
    }
}

#[test]
fn what_a_gateway_cuts_from_the_graph_is_verified_too() {
    let (runtime, table) = (runtime(), table());
    let sound = trained(&table, Method::Platt);
    // Neither constant is in the graph that a gateway runs.
    let refused = |constant: &str, value: f32| {
        let mut trained = sound.clone();
        let mut model = ModelProto::decode(trained.graph.as_slice()).unwrap();
        let constants = &mut model.graph.as_mut().unwrap().initializer;
        let found: &mut TensorProto = constants.iter_mut().find(|tensor| tensor.name() == constant).unwrap();
        found.raw_data = Some(value.to_le_bytes().to_vec());
        trained.graph = model.encode_to_vec();
        verify::verify(runtime, &trained, &table).unwrap_err()
    };
    let label = refused("label/threshold", 0.6);
    assert!(matches!(label, Error::Label { label: 0, probability, .. } if probability < 0.6), "{label}");
    let negative = refused("probability/one", 0.999_99).to_string();
    assert!(negative.contains("as published, the negative class") && negative.contains("row "), "{negative}");
}
