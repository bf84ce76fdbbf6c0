//! What is answered about a row, byte for byte: binary, multiclass and regression models, whatever their graphs answer with.

use std::sync::OnceLock;

use scoregate_schemas::manifest::{ClassKeys, Link, Output};
use serde_json::{Value, json};

use crate::support::graph::{DOUBLE, FLOAT, Handmade, int, ints};
use crate::support::{Answer, Case, Gateway, Request, Settings, case, check, scratch};

/// Labels that JSON and CSV both have to escape.
const LABELS: [&str; 3] = ["a \"low\" one", "mid\\dle", "hoch, über 9"];

fn probabilities(name: &str, classes: usize, positive: usize) -> Output {
    Output::Probabilities { name: name.into(), classes, positive }
}

fn keys(names: &[&str]) -> ClassKeys {
    ClassKeys::Strings(names.iter().map(ToString::to_string).collect())
}

/// One gateway over every model of this page.
fn gateway() -> &'static Gateway {
    static GATEWAY: OnceLock<(tempfile::TempDir, Gateway)> = OnceLock::new();
    let (_, gateway) = GATEWAY.get_or_init(|| {
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        publish(directory.path());
        let settings = Settings::new().models(directory.path()).set("SCOREGATE_INLINE_BUDGET", "1s");
        (directory, settings.start())
    });
    gateway
}

fn publish(models: &std::path::Path) {
    let row = |a: f64, b: f64, c: f64| json!({"a": a, "b": b, "c": c, "scale": 1});
    let three = |name: &str| {
        let golden = (row(0.25, 0.5, 0.125), json!([0.25, 0.5, 0.125]));
        Handmade::numbers(name, 3).labels(&LABELS).golden(golden.0, golden.1)
    };
    let keyed = |name: &str, keys: &ClassKeys| three(name).zipmap("numbers", "maps", keys);
    three("tensor").output("numbers", FLOAT).publish(models, probabilities("numbers", 3, 0));

    // A ZipMap at the very end is cut. One whose classes the manifest takes in another order is not: the maps are read.
    let letters = keys(&["x", "y", "z"]);
    let zipmap = |keys| Output::Zipmap { name: "maps".into(), keys, positive: 0, link: None };
    keyed("zipmap_cut", &letters).publish(models, zipmap(letters.clone()));
    Handmade::numbers("zipmap_read", 3)
        .labels(&[LABELS[2], LABELS[0], LABELS[1]])
        .zipmap("numbers", "maps", &letters)
        .golden(row(0.25, 0.5, 0.125), json!([0.125, 0.25, 0.5]))
        .publish(models, zipmap(keys(&["z", "x", "y"])));
    let numbers = |of: &[i64]| ClassKeys::Integers(of.to_vec());
    Handmade::numbers("zipmap_integers", 3)
        .labels(&[LABELS[1], LABELS[0], LABELS[2]])
        .zipmap("numbers", "maps", &numbers(&[-1, 7, 8]))
        .golden(row(0.25, 0.5, 0.125), json!([0.5, 0.25, 0.125]))
        .publish(models, zipmap(numbers(&[7, -1, 8])));

    // One output per class.
    let apart = |model: Handmade, name: &str| {
        model
            .node("Div", &[name, "scale"], &format!("p_{name}"), Vec::new())
            .output(&format!("p_{name}"), FLOAT)
    };
    ["a", "b", "c"].into_iter().fold(three("columns"), apart).publish(
        models,
        Output::Columns { names: ["p_a", "p_b", "p_c"].map(Into::into).into(), positive: 0 },
    );

    // Scores that need a link, and the same link in the graph.
    let line = (row(1.0, 2.0, -3.0), json!([0.267_623_154_1, 0.727_475_157_2, 0.004_901_688_723]));
    let softmax =
        |name| Handmade::numbers(name, 3).labels(&["x", "y", "z"]).golden(line.0.clone(), line.1.clone());
    softmax("softmax")
        .node("Softmax", &["numbers"], "softmax", vec![int("axis", 1)])
        .output("softmax", FLOAT)
        .publish(models, probabilities("softmax", 3, 0));
    let margin = |classes, positive, link| Output::Margin { name: "numbers".into(), classes, positive, link };
    softmax("margin").output("numbers", FLOAT).publish(models, margin(3, 0, Link::Softmax));

    // Binary models, of which `a` is always the positive class: one column, a plain list, two columns, one output per class,
    // maps that are read because their classes are taken in another order, scores.
    let half = json!({"a": 0.5, "b": 0.25, "scale": 1});
    let binary = |name, count| {
        let mut row = half.clone();
        if count == 1 {
            row.as_object_mut().unwrap().shift_remove("b");
        }
        Handmade::numbers(name, count).labels(&["no", "yes"]).golden(row, json!(0.5))
    };
    binary("one", 1).output("numbers", FLOAT).publish(models, probabilities("numbers", 1, 0));
    binary("list", 1)
        .node("ReduceMax", &["numbers"], "list", vec![ints("axes", &[1]), int("keepdims", 0)])
        .output("list", FLOAT)
        .publish(models, probabilities("list", 1, 0));
    binary("two", 2).output("numbers", FLOAT).publish(models, probabilities("numbers", 2, 0));
    ["b", "a"]
        .into_iter()
        .fold(binary("two_columns", 2), apart)
        .publish(models, Output::Columns { names: ["p_b", "p_a"].map(Into::into).into(), positive: 1 });
    binary("two_maps", 2).zipmap("numbers", "maps", &numbers(&[0, 1])).publish(
        models,
        Output::Zipmap { name: "maps".into(), keys: numbers(&[1, 0]), positive: 1, link: None },
    );
    Handmade::numbers("log_odds", 1)
        .labels(&["no", "yes"])
        .golden(json!({"a": 0, "scale": 1}), json!(0.5))
        .output("numbers", FLOAT)
        .publish(models, margin(1, 0, Link::Sigmoid));

    // Regression, in single and in double precision.
    Handmade::numbers("float", 1)
        .golden(json!({"a": -1, "scale": 3}), json!(-1.0 / 3.0))
        .output("numbers", FLOAT)
        .publish(models, Output::Value { name: "numbers".into() });
    Handmade::new("double", &["a", "scale"])
        .node("Cast", &["a"], "a64", vec![int("to", DOUBLE.into())])
        .node("Cast", &["scale"], "scale64", vec![int("to", DOUBLE.into())])
        .node("Div", &["a64", "scale64"], "value", Vec::new())
        .output("value", DOUBLE)
        .golden(json!({"a": -1, "scale": 3}), json!(-1.0 / 3.0))
        .publish(models, Output::Value { name: "value".into() });

    // Features that are called as columns of an answer are.
    Handmade::new("clash", &["value", "error", "scoregate_error"])
        .node("Add", &["value", "error"], "sum", Vec::new())
        .node("Add", &["sum", "scoregate_error"], "total", Vec::new())
        .output("total", FLOAT)
        .publish(models, Output::Value { name: "total".into() });
}

fn path(model: &str) -> String {
    format!("/v1/models/{model}/predict")
}

fn ask(model: &str, row: &str) -> Answer {
    let answer = gateway().post(&path(model), row);
    assert_eq!(answer.status, 200, "{model} {row}: {}", answer.text());
    answer
}

fn batch(model: &str, media_type: &str, accept: &str, body: &str) -> Answer {
    let request = Request::post(&format!("{}/batch", path(model)), body)
        .content_type(media_type)
        .header("Accept", accept);
    let answer = gateway().ask(&gateway().with_key(request));
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some(accept)),
        "{model}: {}",
        answer.text()
    );
    answer
}

/// The answer's text with every prediction id replaced by `ID`.
fn without_ids(text: &str) -> String {
    let mut parts = text.split("\"prediction_id\":\"");
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        assert!(part[..26].bytes().all(|byte| byte.is_ascii_alphanumeric()), "{part}");
        out.push_str("\"prediction_id\":\"ID");
        out.push_str(&part[26..]);
    }
    out
}

#[test]
fn a_multiclass_answer_has_a_probability_per_label_and_the_most_likely_label() {
    let answer = ask("tensor", r#"{"a":0.25,"b":0.5,"c":0.125,"scale":1}"#).text();
    assert_eq!(
        without_ids(&answer),
        r#"{"model_version":"1","probabilities":{"a \"low\" one":0.25,"mid\\dle":0.5,"hoch, über 9":0.125},"prediction":"mid\\dle","explanations":{"top_features":[]},"prediction_id":"ID"}"#
    );
    // Of equals the first, and no digit is rounded away: 1/3 in float32.
    let thirds = ask("tensor", r#"{"a":1,"b":1,"c":1,"scale":3}"#).json();
    assert_eq!(thirds["prediction"], LABELS[0]);
    assert_eq!(thirds["probabilities"][LABELS[2]], json!(0.333_333_34));
    assert_eq!(ask("tensor", r#"{"a":0,"b":0.5,"c":0.5,"scale":1}"#).json()["prediction"], LABELS[1]);
}

#[test]
fn a_regression_answer_is_a_value_with_as_many_digits_as_the_graph_gives() {
    for (model, row, digits) in [
        ("double", r#"{"a":1,"scale":3}"#, "0.3333333333333333"),
        ("double", r#"{"a":-1152921504606846976,"scale":1e-30}"#, "-1.1529215009508443e+48"),
        ("double", r#"{"a":0,"scale":3}"#, "0.0"),
        ("float", r#"{"a":1,"scale":3}"#, "0.33333334"),
        ("float", r#"{"a":-1234.5,"scale":1}"#, "-1234.5"),
    ] {
        let expected = format!(
            r#"{{"model_version":"1","value":{digits},"explanations":{{"top_features":[]}},"prediction_id":"ID"}}"#
        );
        assert_eq!(without_ids(&ask(model, row).text()), expected, "{model} {row}");
    }
}

#[test]
fn the_same_numbers_give_the_same_answer_however_the_graph_gives_them() {
    for (a, b, c) in [(0.25, 0.5, 0.125), (1.0, 0.0, 0.0), (0.1, 0.7, 0.2), (0.4, 0.4, 0.2)] {
        let row = format!(r#"{{"a":{a},"b":{b},"c":{c},"scale":1}}"#);
        let expected = ask("tensor", &row).json();
        let rows = format!("[{row},{row}]");
        for model in ["zipmap_cut", "zipmap_read", "zipmap_integers", "columns"] {
            let mut answers = vec![ask(model, &row).json()];
            let batch = gateway().post(&format!("{}/batch", path(model)), &rows).json();
            answers.extend(batch["predictions"].as_array().unwrap().iter().cloned());
            assert_eq!(answers.len(), 3, "{model}: {batch}");
            for answer in answers {
                // Compared as objects: the order of the labels is the manifest's.
                assert_eq!(answer["probabilities"], expected["probabilities"], "{model} {row}");
                // Of equals the first is the first of the model's own labels.
                if a != b {
                    assert_eq!(answer["prediction"], expected["prediction"], "{model} {row}");
                }
            }
        }
    }
    let read = ask("zipmap_read", r#"{"a":0.25,"b":0.5,"c":0.125,"scale":1}"#).text();
    assert!(read.contains(r#"{"hoch, über 9":0.125,"a \"low\" one":0.25,"mid\\dle":0.5}"#), "{read}");
}

#[test]
fn a_binary_answer_is_the_same_however_the_graph_gives_it() {
    let (single, double) = (r#"{"a":0.625,"scale":1}"#, r#"{"a":0.625,"b":0.75,"scale":1}"#);
    for (model, row) in
        [("one", single), ("list", single), ("two", double), ("two_columns", double), ("two_maps", double)]
    {
        let text = without_ids(&ask(model, row).text());
        let expected = format!(
            r#"{{"model_version":"1","{model}_probability":0.625,"prediction":"yes","explanations":{{"top_features":[]}},"prediction_id":"ID"}}"#
        );
        assert_eq!(text, expected);
    }
}

#[test]
fn a_score_is_linked_to_a_probability() {
    /// What float32 may lose against double precision.
    const TOLERANCE: f64 = 1e-7;
    for score in [-30.0_f64, -1.5, 0.0, 0.1, 4.0, 80.0] {
        let answer = ask("log_odds", &format!(r#"{{"a":{score},"scale":1}}"#)).json();
        let found = answer["log_odds_probability"].as_f64().unwrap();
        let expected = 1.0 / (1.0 + (-score).exp());
        assert!((found - expected).abs() <= TOLERANCE, "{score}: {found}, expected {expected}");
        assert_eq!(answer["prediction"], if found >= 0.5 { "yes" } else { "no" }, "{score}");
    }
    // -1e-9 in log-odds is less than 0.5, and is written as 0.5: what is decided agrees with what is read.
    let answer = ask("log_odds", r#"{"a":-1,"scale":1e9}"#).json();
    assert_eq!((answer["log_odds_probability"].as_f64(), &answer["prediction"]), (Some(0.5), &json!("yes")));

    for row in [r#"{"a":1,"b":2,"c":-3,"scale":1}"#, r#"{"a":500,"b":500,"c":-500,"scale":1}"#] {
        let (margin, softmax) = (ask("margin", row).json(), ask("softmax", row).json());
        for label in ["x", "y", "z"] {
            let [found, expected] =
                [&margin, &softmax].map(|answer| answer["probabilities"][label].as_f64().unwrap());
            assert!((found - expected).abs() <= TOLERANCE, "{row} {label}: {found}, expected {expected}");
        }
        assert_eq!(margin["prediction"], softmax["prediction"]);
    }
}

#[test]
fn a_batch_answers_each_row_as_it_would_be_answered_alone() {
    let tensor = [
        r#"{"a":0.25,"b":0.5,"c":0.125,"scale":1}"#,
        r#"{"a":"x","b":0.5,"c":0.125,"scale":1}"#,
        r#"{"a":1,"b":0,"c":0,"scale":1}"#,
    ];
    let fault = r##""error":{"code":"invalid_row","errors":[{"pointer":"#/1/a","code":"type","detail":"expected number"}]}"##;
    let scored = [
        r#""probabilities":{"a \"low\" one":0.25,"mid\\dle":0.5,"hoch, über 9":0.125},"prediction":"mid\\dle","explanations":{"top_features":[]},"prediction_id":"ID""#,
        r#""probabilities":{"a \"low\" one":1.0,"mid\\dle":0.0,"hoch, über 9":0.0},"prediction":"a \"low\" one","explanations":{"top_features":[]},"prediction_id":"ID""#,
    ];
    let rows = [scored[0], fault, scored[1]];
    let json = batch("tensor", "application/json", "application/json", &format!("[{}]", tensor.join(",")));
    let objects: Vec<String> =
        rows.iter().enumerate().map(|(at, row)| format!(r#"{{"index":{at},{row}}}"#)).collect();
    assert_eq!(
        without_ids(&json.text()),
        format!(r#"{{"model_version":"1","predictions":[{}]}}"#, objects.join(","))
    );
    let ndjson = batch("tensor", "application/x-ndjson", "application/x-ndjson", &tensor.join("\n"));
    let lines: String = rows
        .iter()
        .enumerate()
        .map(|(at, row)| format!("{{\"index\":{at},\"model_version\":\"1\",{row}}}\n"))
        .collect();
    assert_eq!(without_ids(&ndjson.text()), lines);

    let values = batch(
        "double",
        "application/json",
        "application/json",
        r#"[{"a":1,"scale":3},{"a":1},{"a":1,"scale":4}]"#,
    );
    assert_eq!(
        without_ids(&values.text()),
        r##"{"model_version":"1","predictions":[{"index":0,"value":0.3333333333333333,"explanations":{"top_features":[]},"prediction_id":"ID"},{"index":1,"error":{"code":"invalid_row","errors":[{"pointer":"#/1/scale","code":"required","detail":"expected a value, found none"}]}},{"index":2,"value":0.25,"explanations":{"top_features":[]},"prediction_id":"ID"}]}"##
    );
}

/// The records of a CSV answer, each prediction id replaced by `ID` where there is one.
fn records(answer: &Answer) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(answer.body.as_slice());
    let mut records: Vec<Vec<String>> =
        reader.records().map(|record| record.unwrap().iter().map(ToOwned::to_owned).collect()).collect();
    let id = records[0].iter().position(|name| name == "prediction_id").unwrap();
    for record in &mut records[1..] {
        if record[id].len() == 26 {
            record[id] = "ID".into();
        }
    }
    records
}

#[test]
fn csv_answers_add_the_columns_of_the_task() {
    let ask = |model, body| records(&batch(model, "text/csv", "text/csv", body));
    let added: Vec<String> = LABELS.iter().map(|label| format!("probability_{label}")).collect();
    let rest = ["prediction", "prediction_id", "model_version", "error"];
    let header: Vec<&str> =
        ["a", "b", "c", "scale"].into_iter().chain(added.iter().map(String::as_str)).chain(rest).collect();
    assert_eq!(
        ask("tensor", "a,b,c,scale\n0.25,0.5,0.125,1\nx,1,1,1\n1,1,1,3\n"),
        [
            header,
            vec!["0.25", "0.5", "0.125", "1", "0.25", "0.5", "0.125", LABELS[1], "ID", "1", ""],
            vec!["x", "1", "1", "1", "", "", "", "", "", "1", "a expected number"],
            vec!["1", "1", "1", "3", "0.33333334", "0.33333334", "0.33333334", LABELS[0], "ID", "1", ""],
        ]
    );
    assert_eq!(
        ask("double", "scale,a\n3,1\n,1\n"),
        [
            vec!["scale", "a", "value", "prediction_id", "model_version", "error"],
            vec!["3", "1", "0.3333333333333333", "ID", "1", ""],
            vec!["", "1", "", "", "1", "scale expected a value, found none"],
        ]
    );
    assert_eq!(
        ask("one", "a,scale\n1,4\n"),
        [
            vec!["a", "scale", "one_probability", "prediction", "prediction_id", "model_version", "error"],
            vec!["1", "4", "0.25", "no", "ID", "1", ""],
        ]
    );
}

#[test]
fn a_column_that_csv_answers_add_never_has_the_name_of_a_field() {
    assert_eq!(
        records(&batch("clash", "text/csv", "text/csv", "value,error,scoregate_error\n1,2,0.5\n")),
        [
            vec![
                "value",
                "error",
                "scoregate_error",
                "scoregate_value",
                "prediction_id",
                "model_version",
                "scoregate_scoregate_error"
            ],
            vec!["1", "2", "0.5", "3.5", "ID", "1", ""],
        ]
    );
}

#[test]
fn numbers_that_are_no_answer_are_a_500_for_every_task_and_for_the_whole_batch() {
    let gateway = gateway();
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |model: &str, good: &str, name: &str, bad: &str| {
        assert_eq!(gateway.post(&path(model), good).status, 200, "{model} {good}");
        let many = [format!("[{good},{bad},{good}]"), format!("[{bad}]")];
        let targets = [path(model), format!("{}/batch", path(model)), format!("{}/batch", path(model))];
        for (target, body) in targets.iter().zip([bad.to_owned()].into_iter().chain(many)) {
            let name = format!("{model}: {name}: {body}");
            let request = gateway.with_key(Request::post(target, body));
            cases.push(case(name, request, 500, "model_output_invalid", &[]));
        }
    };
    let good = r#"{"a":0.5,"b":0.25,"c":0.25,"scale":1}"#;
    for model in ["tensor", "zipmap_cut", "zipmap_read", "zipmap_integers", "columns"] {
        add(model, good, "NaN", r#"{"a":0,"b":0.5,"c":0.5,"scale":0}"#);
        add(model, good, "infinite", r#"{"a":1,"b":1,"c":1,"scale":0}"#);
        add(model, good, "above one", r#"{"a":0.5,"b":0.5,"c":1.1,"scale":1}"#);
        add(model, good, "below zero", r#"{"a":-0.1,"b":0.5,"c":0.5,"scale":1}"#);
    }
    add("margin", good, "infinite scores", r#"{"a":1,"b":1,"c":1,"scale":0}"#);
    for model in ["one", "list"] {
        add(model, r#"{"a":0.5,"scale":1}"#, "NaN", r#"{"a":0,"scale":0}"#);
        add(model, r#"{"a":0.5,"scale":1}"#, "above one", r#"{"a":1.5,"scale":1}"#);
    }
    add("log_odds", r#"{"a":5,"scale":1}"#, "a score of NaN", r#"{"a":0,"scale":0}"#);
    for model in ["float", "double"] {
        add(model, r#"{"a":-5e9,"scale":1}"#, "NaN", r#"{"a":0,"scale":0}"#);
        add(model, r#"{"a":5e9,"scale":1}"#, "infinite", r#"{"a":1,"scale":0}"#);
    }
    check(gateway, &cases);
    // Nothing of it is left behind.
    let value: Value = ask("double", r#"{"a":1,"scale":4}"#).json();
    assert_eq!(value["value"], 0.25);
}
