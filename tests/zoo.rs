//! Models of every library and converter, imported and served, against the answers of their own libraries.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{Gateway, Settings, python, repository, scratch, wait_for};

/// How far a served answer may be from the library's own: absolute for probabilities, relative for values.
const TOLERANCE: f64 = 1e-5;
/// How many conversions have to be faithful at least.
const FAITHFUL: usize = 50;
/// How a conversion is refused that does not answer as the library does: as it is, or through no link at all.
const GIVEN_AWAY: [&str; 2] = ["golden_mismatch", "link_unproved"];
/// How many of a case's rows are sent one by one besides.
const SINGLE_ROWS: usize = 5;

/// `case.json` of tests/python/zoo.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    task: String,
    /// As the gateway is to call the classes; of regression none.
    labels: Vec<String>,
    threshold: f64,
    library: String,
    converter: String,
    /// Flags of the import.
    flags: Vec<String>,
    /// The code of the refusal, where the import is to be refused.
    refused: Option<String>,
    /// What the converter gets wrong, where it does.
    unfaithful: Option<String>,
    notes: String,
}

#[test]
fn models_of_every_library_are_served_as_the_library_answers() {
    let zoo = scratch().join("zoo");
    make(&zoo);
    let cases = cases(&zoo);
    let settings = Settings::new().models(&scratch().join("zoo-models"));
    for case in &cases {
        let directory = zoo.join(&case.name);
        if case.unfaithful.is_some() {
            // The library's own answers give the conversion away.
            let refusal = import(&settings, case, &directory, "golden_of_library.jsonl");
            assert!(
                GIVEN_AWAY.contains(&refusal.as_deref().unwrap_or_default()),
                "{}: {refusal:?}",
                case.name
            );
        }
        assert_eq!(import(&settings, case, &directory, "golden.jsonl"), case.refused, "{}", case.name);
    }
    let served: Vec<&Case> = cases.iter().filter(|case| case.refused.is_none()).collect();
    let gateway = settings.set("SCOREGATE_DEFAULT_MODEL", &served[0].name).start();

    println!("\nlargest differences (relative for values)");
    println!("case                    library              converter           rows   library  ONNX Runtime");
    let mut failures = Vec::new();
    let mut faithful = 0;
    for case in served {
        let directory = zoo.join(&case.name);
        let [expected, graph]: [Vec<Value>; 2] =
            ["expected.json", "onnxruntime.json"].map(|name| read(&directory.join(name)));
        let rows: Vec<Value> = read(&directory.join("rows.json"));
        let answers = score(&gateway, case, &rows);
        let from_library = difference(case, &answers, &expected);
        let from_graph = difference(case, &answers, &graph);
        let Case { name, library, converter, notes, .. } = case;
        let remark = case.unfaithful.as_ref().unwrap_or(notes);
        println!(
            "{name:<23} {library:<20} {converter:<18} {:>5}  {from_library:>8.1e}      {from_graph:>8.1e}  {remark}",
            rows.len()
        );
        // What is served is what the graph says. Where that is not what the library says, it is the graph's own doing.
        let as_stated = (from_library <= TOLERANCE) == case.unfaithful.is_none();
        faithful += usize::from(case.unfaithful.is_none());
        if !(as_stated && from_graph <= TOLERANCE) {
            failures.push(name);
        }
    }
    assert!(failures.is_empty(), "not as stated: {failures:?}");
    assert!(faithful >= FAITHFUL, "only {faithful} faithful conversions");
}

/// Fits and converts the models with the real libraries.
fn make(directory: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/zoo");
    let mut command = Command::new(python());
    let output = command.arg("-B").arg(script).arg(directory).arg(&repository().churn_csv).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn cases(directory: &Path) -> Vec<Case> {
    let mut directories: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    let cases: Vec<Case> = directories.iter().map(|directory| read(&directory.join("case.json"))).collect();
    let libraries: BTreeSet<&str> =
        cases.iter().map(|case| case.library.split(' ').next().unwrap()).collect();
    assert_eq!(libraries, BTreeSet::from(["catboost", "lightgbm", "scikit-learn", "xgboost-cpu"]));
    cases
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs `scoregate import` with these golden rows, if they are there; returns the code if it refuses.
fn import(settings: &Settings, case: &Case, directory: &Path, golden: &str) -> Option<String> {
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let mut arguments = vec!["import".into(), file("model.onnx"), "--name".into(), case.name.clone()];
    arguments.extend(["--schema".into(), file("schema.json"), "--reference".into(), file("reference.csv")]);
    if directory.join(golden).exists() {
        arguments.extend(["--golden".into(), file(golden)]);
    }
    arguments.extend(case.flags.iter().cloned());
    let output = settings.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => None,
        Some(3) => {
            let code = said.strip_prefix("error[").and_then(|said| said.split_once("]: "));
            Some(code.unwrap_or_else(|| panic!("{}: {said}", case.name)).0.into())
        }
        other => panic!("{}: {other:?}: {said}", case.name),
    }
}

/// Scores every row in one batch, and the first ones by themselves as well; one list of numbers per row.
fn score(gateway: &Gateway, case: &Case, rows: &[Value]) -> Vec<Vec<f64>> {
    let target = format!("/v1/models/{}/predict", case.name);
    // A gateway is ready before the last of many models was tried.
    let answer = wait_for(&format!("{} to be served", case.name), || {
        let answer = gateway.post(&format!("{target}/batch"), json!(rows).to_string());
        (answer.status != 404).then_some(answer)
    });
    assert_eq!(answer.status, 200, "{}: {}", case.name, answer.text());
    let batch = answer.json();
    let answers: Vec<Vec<f64>> =
        batch["predictions"].as_array().unwrap().iter().map(|row| numbers(case, row)).collect();
    assert_eq!(answers.len(), rows.len(), "{}", case.name);
    for (row, of_batch) in rows.iter().zip(&answers).take(SINGLE_ROWS) {
        let answer = gateway.post(&target, row.to_string());
        assert_eq!(answer.status, 200, "{}: {}", case.name, answer.text());
        let alone = numbers(case, &answer.json());
        assert!(distance(case, &alone, of_batch) <= TOLERANCE, "{}: {alone:?} {of_batch:?}", case.name);
    }
    answers
}

/// The numbers of one answer, whose shape and prediction are those of the case's task.
fn numbers(case: &Case, answer: &Value) -> Vec<f64> {
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{}: {answer}", case.name));
    let prediction = || answer["prediction"].as_str().unwrap();
    match case.task.as_str() {
        "regression" => {
            assert!(answer.get("prediction").is_none(), "{answer}");
            vec![number(&answer["value"])]
        }
        "binary" => {
            let probability = number(&answer[format!("{}_probability", case.name)]);
            assert_eq!(prediction(), case.labels[usize::from(probability >= case.threshold)], "{answer}");
            vec![probability]
        }
        _ => {
            let probabilities = answer["probabilities"].as_object().unwrap();
            assert_eq!(probabilities.keys().collect::<Vec<_>>(), case.labels.iter().collect::<Vec<_>>());
            let numbers: Vec<f64> = probabilities.values().map(number).collect();
            let most = numbers.iter().copied().fold(f64::MIN, f64::max);
            assert!(number(&probabilities[prediction()]) >= most, "{answer}");
            numbers
        }
    }
}

/// The largest difference of any row.
fn difference(case: &Case, answers: &[Vec<f64>], expected: &[Value]) -> f64 {
    assert_eq!(answers.len(), expected.len(), "{}", case.name);
    let of_rows = answers.iter().zip(expected).map(|(answer, expected)| {
        let expected: Vec<f64> = match expected {
            Value::Array(classes) => classes.iter().map(|value| value.as_f64().unwrap()).collect(),
            value => vec![value.as_f64().unwrap()],
        };
        distance(case, answer, &expected)
    });
    of_rows.fold(0.0, f64::max)
}

fn distance(case: &Case, answer: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(answer.len(), expected.len(), "{}", case.name);
    let of_numbers = answer.iter().zip(expected).map(|(answer, expected)| {
        let scale = if case.task == "regression" { expected.abs().max(1.0) } else { 1.0 };
        (answer - expected).abs() / scale
    });
    of_numbers.fold(0.0, f64::max)
}
