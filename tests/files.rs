//! `scoregate score` and `scoregate explain`: files scored offline, as the gateway scores the same rows.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::support::{Settings, repository, shared};

/// Rows of one part of a file, which is scored by one thread.
const PART: usize = 4_096;

fn settings() -> Settings {
    Settings::new()
}

fn run(settings: &Settings, arguments: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } = settings.run(arguments);
    let said = String::from_utf8(if status.success() { stdout } else { stderr }).unwrap();
    (status.success(), said)
}

fn read(settings: &Settings, name: &str) -> String {
    fs::read_to_string(settings.directory().join(name)).unwrap()
}

fn write(settings: &Settings, name: &str, text: impl AsRef<[u8]>) {
    fs::write(settings.directory().join(name), text).unwrap();
}

/// The records of a CSV, by the names of its columns.
fn records(text: &str) -> Vec<Value> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let names = reader.headers().unwrap().clone();
    let record = |record: csv::StringRecord| {
        let cells = names.iter().zip(record.iter()).map(|(name, cell)| (name.to_string(), json!(cell)));
        Value::Object(cells.collect())
    };
    reader.records().map(|found| record(found.unwrap())).collect()
}

/// What the gateway answers the same file.
fn served(target: &str, body: &str, media_type: &str) -> Value {
    let gateway = shared();
    let request = crate::support::Request::post(target, body).content_type(media_type);
    let answer = gateway.ask(&gateway.with_key(request));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn a_csv_is_scored_as_the_gateway_scores_it_with_the_outcome_left_where_it_is() {
    let settings = settings();
    // More than two parts, so that places and the header are those of the whole.
    let data = fs::read_to_string(&repository().churn_csv).unwrap();
    let (header, rows) = data.split_once('\n').unwrap();
    let rows = rows.lines().cycle().take(2 * PART + 100);
    let lines: Vec<&str> = std::iter::once(header).chain(rows).collect();
    write(&settings, "rows.csv", lines.join("\n"));
    let (done, said) = run(
        &settings,
        &["score", "--model", "churn", "--input", "rows.csv", "--output", "out.csv", "--explain"],
    );
    assert!(done, "{said}");
    let rows = lines.len() - 1;
    assert!(said.contains(&format!("scored {rows} of {rows} rows with churn")), "{said}");
    let found = records(&read(&settings, "out.csv"));
    assert_eq!(found.len(), rows);
    let sent = records(&lines.join("\n"));
    for (at, (row, sent)) in found.iter().zip(&sent).enumerate() {
        assert_eq!(
            (&row["customer_id"], &row["churned"]),
            (&sent["customer_id"], &sent["churned"]),
            "row {at}"
        );
    }
    // The gateway refuses the outcome, which is no field of requests, and rows of one batch about the same customer.
    let features = |line: &&str| {
        let (line, _) = line.rsplit_once(',').unwrap();
        line.split_once(',').unwrap().1.to_owned() + "\n"
    };
    let without: String = lines.iter().map(features).collect();
    let answer = served("/v1/predict/batch?explain=true", &without, "text/csv");
    for (row, expected) in found.iter().zip(answer["predictions"].as_array().unwrap()) {
        assert_eq!(row["churn_probability"].as_str().unwrap(), expected["churn_probability"].to_string());
        assert_eq!(row["prediction"], expected["prediction"]);
        let top: Vec<&str> = expected["explanations"]["top_features"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(row["top_features"], top.join(";"));
    }
}

#[test]
fn every_line_of_ndjson_is_explained_in_its_place() {
    let settings = settings();
    let row = |days: usize| {
        json!({"tenure_days": days, "monthly_spend": 49.0, "support_tickets_30d": 1,
        "plan_tier": "pro", "country": "US", "last_login_hours": 5})
    };
    let mut lines: Vec<String> = (0..PART + 5).map(|days| row(days % 900).to_string()).collect();
    lines[PART + 1] = r#"{"tenure_days":"many"}"#.into();
    lines[3] = "no JSON".into();
    // Blank lines are no rows.
    lines.insert(2, String::new());
    write(&settings, "rows.ndjson", lines.join("\n"));
    let arguments =
        ["--input", "rows.ndjson", "--output", "out.jsonl", "--space", "log_odds", "--top-k", "2"];
    let (done, said) = run(&settings, &[&["explain", "--model", "churn"], &arguments[..]].concat());
    assert!(done, "{said}");
    let text = read(&settings, "out.jsonl");
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), PART + 5);
    assert!(said.contains(&format!("scored {} of {} rows", PART + 3, PART + 5)), "{said}");
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(answer["index"], at);
        if [3, PART + 1].contains(&at) {
            let pointer = answer["error"]["errors"][0]["pointer"].as_str().unwrap();
            assert!(pointer.starts_with(&format!("#/{at}")), "{answer}");
            continue;
        }
        let why = &answer["explanations"];
        assert_eq!((&why["space"], &why["method"]), (&json!("log_odds"), &json!("linear")));
        assert_eq!(why["top_features"].as_array().unwrap().len(), 2);
        assert!(why["additivity_error"].as_f64().unwrap() < 1e-9, "{answer}");
    }
    // The same row has the same values wherever it stands, and so in the gateway.
    let body = format!("[{}]", row(7));
    let answer = served("/v1/predict/batch?explain=full&top_k=2", &body, "application/json");
    let [first, later] = [7, 7 + 900].map(|at: usize| &answers[at]["explanations"]);
    assert_eq!(first, later);
    assert_eq!(first, &answer["predictions"][0]["explanations"]);
}

#[test]
fn a_document_of_rows_comes_back_as_one() {
    let settings = settings();
    write(&settings, "rows.json", format!("{{\"rows\":[{}]}}", crate::support::REFERENCE));
    let (done, said) =
        run(&settings, &["explain", "--model", "churn", "--input", "rows.json", "--output", "out.json"]);
    assert!(done, "{said}");
    let answer: Value = serde_json::from_str(&read(&settings, "out.json")).unwrap();
    assert_eq!(answer["predictions"].as_array().unwrap().len(), 1);
    assert_eq!(answer["predictions"][0]["explanations"]["values"].as_object().unwrap().len(), 6);
}

#[test]
fn what_cannot_be_done_is_said_and_leaves_no_file() {
    let settings = settings();
    let header = "tenure_days,monthly_spend,support_tickets_30d,plan_tier,country,last_login_hours";
    write(&settings, "good.csv", format!("{header}\n214,49,1,pro,US,5\n"));
    write(
        &settings,
        "renamed.csv",
        format!("{}\n214,49,1,pro,US,5\n", header.replace("tenure_days", "tenure")),
    );
    write(&settings, "empty.csv", "");
    write(&settings, "header.csv", format!("{header}\n"));
    write(&settings, "bad.csv", format!("{header}\nmany,49,1,pro,US,5\n"));
    write(&settings, "rows.json", "[1");
    let before: Vec<_> = names(settings.directory());
    for (arguments, expected) in [
        (&["score", "--input", "renamed.csv", "--output", "out.csv"][..], "did you mean \"tenure_days\""),
        (&["score", "--input", "empty.csv", "--output", "out.csv"], "expected a header"),
        (&["score", "--input", "header.csv", "--output", "out.csv"], "no rows"),
        (&["score", "--input", "absent.csv", "--output", "out.csv"], "cannot read absent.csv"),
        (&["score", "--input", "rows.json", "--output", "out.json"], "JSON"),
        (&["score", "--input", "good.csv", "--output", "out.json"], "expected the same kind of file"),
        (&["score", "--input", "good.csv", "--output", "out.parquet"], "expected a file called .csv"),
        (&["score", "--input", "good.csv", "--output", "absent/out.csv"], "cannot write"),
        (&["score", "--input", "good.csv", "--output", "out.csv", "--top-k", "2"], "--explain"),
        (
            &["explain", "--input", "good.csv", "--output", "out.csv", "--space", "margin"],
            "log_odds or probability",
        ),
        (&["explain", "--input", "good.csv", "--output", "out.csv", "--class", "maybe"], "retain, churn"),
        (
            &["explain", "--input", "good.csv", "--output", "out.csv", "--method", "tree_interventional"],
            "linear",
        ),
    ] {
        let (done, said) = run(&settings, &[arguments, &["--model", "churn"]].concat());
        assert!(!done && said.contains(expected), "{arguments:?}: {said}");
        assert_eq!(names(settings.directory()), before, "{arguments:?}");
    }
    let (done, said) =
        run(&settings, &["score", "--input", "good.csv", "--output", "out.csv", "--model", "chrun"]);
    assert!(!done && said.contains("no version of model \"chrun\""), "{said}");
    // Refused rows say why in the file, which is written all the same.
    let (done, said) =
        run(&settings, &["score", "--input", "bad.csv", "--output", "out.csv", "--model", "churn"]);
    assert!(!done && said.contains("scored 0 of 1 rows"), "{said}");
    assert_eq!(records(&read(&settings, "out.csv"))[0]["error"], "tenure_days expected number");
}

/// The names in a directory, but for that of what the gateway remembers.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let names = entries.map(|name| name.to_string_lossy().into_owned()).filter(|name| name != "state");
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
