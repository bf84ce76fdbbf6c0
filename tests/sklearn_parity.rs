//! The trainer against the real scikit-learn, fitted on the same folds, and against its own graph in Python's ONNX Runtime.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, whose table is its result")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use scoregate_model::metrics;
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::feature_schema::Kind;
use scoregate_trainer::calibrate::Method;
use scoregate_trainer::console::Progress;
use scoregate_trainer::data::Table;
use scoregate_trainer::fit::ClassWeight;
use scoregate_trainer::simulate::{self, Simulation};
use scoregate_trainer::train::{Options, Trained, train};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::python;

/// Largest difference of a coefficient, both fits converged.
const COEFFICIENTS: f64 = 1e-4;
/// Largest difference of ROC AUC and Brier score on the test fold.
const METRICS: f64 = 1e-4;
/// Largest difference of a test row's probability.
const PROBABILITIES: f64 = 1e-5;
/// Largest difference between the graph in ONNX Runtime and the trainer's double precision.
const GRAPH: f64 = 1e-6;

#[derive(Deserialize)]
struct Answer {
    scikit_learn: String,
    cases: Vec<Case>,
}

/// What Python says of one way to fit.
#[derive(Deserialize)]
struct Case {
    coefficients: BTreeMap<String, f64>,
    intercept: f64,
    iterations: u64,
    probabilities: Vec<f64>,
    roc_auc: f64,
    brier: f64,
    graph_probabilities: Vec<f64>,
    graph_labels: Vec<i64>,
}

#[test]
fn simulated_customers_agree_with_scikit_learn() {
    let mut text = Vec::new();
    simulate::write(Simulation { rows: 20_000, seed: 42, missing_rate: 0.0 }, &mut text, None).unwrap();
    check("simulated", "churn", &text);
}

#[test]
fn saas_churn_agrees_with_scikit_learn() {
    check("saas_churn", "saas_churn", &std::fs::read(root().join("tests/data/saas_churn.csv")).unwrap());
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Fits every way on `text` and compares with Python.
fn check(data: &str, schema: &str, text: &[u8]) {
    let schema = std::fs::read(root().join(format!("schemas/{schema}.json"))).unwrap();
    let schema = FeatureSchema::parse(&schema).unwrap();
    let table = Table::parse(text, &schema).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut trained = Vec::new();
    let mut cases = Vec::new();
    for class_weight in [ClassWeight::None, ClassWeight::Balanced] {
        for calibration in [Method::None, Method::Platt, Method::Isotonic] {
            let options = Options { seed: 7, class_weight, calibration, c: 1.0 };
            let run = train(&table, &schema, options, &mut Progress::quiet()).unwrap();
            let graph = format!("{}.onnx", trained.len());
            std::fs::write(directory.path().join(&graph), &run.graph).unwrap();
            let named = |name: &str| run.training.parameters[name].clone();
            cases.push(json!({
                "class_weight": named("class_weight"), "calibration": named("calibration"), "c": options.c, "graph": graph
            }));
            trained.push(run);
        }
    }
    write_folds(&directory.path().join("folds.csv"), &table, &trained[0]);
    let of_kind = |category: bool| -> Vec<&str> {
        let is_category = |kind: &Kind| matches!(kind, Kind::Category { .. });
        schema
            .features()
            .filter(|field| is_category(&field.kind) == category)
            .map(|field| field.name.as_str())
            .collect()
    };
    let given = json!({"numbers": of_kind(false), "categories": of_kind(true), "cases": cases});
    std::fs::write(directory.path().join("cases.json"), given.to_string()).unwrap();
    let answer = ask_python(directory.path());
    assert_eq!(answer.cases.len(), trained.len());

    println!("\n{data}: {} rows, scikit-learn {}, largest differences", table.rows(), answer.scikit_learn);
    println!("weights   calibration  coefficients    ROC AUC      Brier  probabilities  graph");
    let mut failures = Vec::new();
    for ((run, theirs), case) in trained.iter().zip(&answer.cases).zip(&cases) {
        let name = format!("{:<9} {:<11}", text_of(&case["class_weight"]), text_of(&case["calibration"]));
        let found = differences(&table, run, theirs);
        let [coefficients, auc, brier, probabilities, graph] = found;
        println!(
            "{name}  {coefficients:>12.1e}  {auc:>9.1e}  {brier:>9.1e}  {probabilities:>13.1e}  {graph:.1e}"
        );
        let bounds = [COEFFICIENTS, METRICS, METRICS, PROBABILITIES, GRAPH];
        if found.iter().zip(bounds).any(|(difference, bound)| difference.is_nan() || *difference > bound) {
            failures.push(name);
        }
        assert!(run.fitted.convergence.converged && theirs.iterations < 1_000, "both fits converged");
        for (label, probability) in theirs.graph_labels.iter().zip(&theirs.graph_probabilities) {
            assert_eq!(*label == 1, *probability >= schema.threshold, "the label follows the threshold");
        }
    }
    assert!(failures.is_empty(), "beyond the bounds: {failures:?}");
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Largest differences of coefficients, ROC AUC, Brier score, and probabilities (the graph's from scikit-learn's), and of the
/// graph from the trainer's double precision.
fn differences(table: &Table, run: &Trained, theirs: &Case) -> [f64; 5] {
    let largest = |differences: &mut dyn Iterator<Item = f64>| differences.map(f64::abs).fold(0.0, f64::max);
    // A category that the schema lists and no training row has is no column for scikit-learn, and 0 here.
    let own = run.columns.iter().zip(&run.fitted.coefficients);
    let coefficients =
        largest(&mut own.map(|(column, own)| own - theirs.coefficients.get(column).copied().unwrap_or(0.0)));
    let known = theirs.coefficients.keys().all(|column| run.columns.contains(column));
    assert!(known, "every column of scikit-learn's is one here");

    let test = &run.folds.test;
    let outcomes: Vec<bool> = test.iter().map(|&row| table.positives[row]).collect();
    let bootstrap = metrics::Bootstrap { resamples: 0, seed: 0 };
    let own = metrics::evaluate(&theirs.graph_probabilities, &outcomes, 0.5, bootstrap).unwrap();
    let between = |a: &[f64], b: &[f64]| {
        assert_eq!(a.len(), b.len());
        largest(&mut a.iter().zip(b).map(|(a, b)| a - b))
    };
    [
        coefficients.max((run.fitted.intercept - theirs.intercept).abs()),
        (own.roc_auc.value - theirs.roc_auc).abs(),
        (own.brier.value - theirs.brier).abs(),
        between(&theirs.graph_probabilities, &theirs.probabilities),
        between(&theirs.graph_probabilities, &run.pipeline.served_probabilities(table, test)),
    ]
}

/// Writes raw features, outcome and fold of every row.
fn write_folds(path: &Path, table: &Table, run: &Trained) {
    let mut file = csv::Writer::from_path(path).unwrap();
    let names = table.features.iter().map(|feature| feature.field.name.as_str());
    file.write_record(names.chain(["outcome", "fold"])).unwrap();
    for (rows, fold) in
        [(&run.folds.train, "train"), (&run.folds.calibration, "calibration"), (&run.folds.test, "test")]
    {
        for &row in rows {
            let cells = table.raw_row(row).into_iter().map(|(_, value)| match value {
                Value::String(text) => text,
                other => other.to_string(),
            });
            let outcome = u8::from(table.positives[row]).to_string();
            file.write_record(cells.chain([outcome, fold.to_owned()])).unwrap();
        }
    }
    file.flush().unwrap();
}

fn ask_python(directory: &Path) -> Answer {
    let script = root().join("tests/python/sklearn_parity.py");
    let mut command = Command::new(python());
    let output = command.arg(script).arg(directory).env("ORT_DISABLE_TELEMETRY", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
