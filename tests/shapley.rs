//! Shapley values of real models against shap, the libraries' own contributions, and all coalitions of players.

#![expect(clippy::print_stdout, reason = "a test, whose tables are its result")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use scoregate_model::explain::trees::{Ensemble, Explainer, Matrix, TABLE_BYTES};
use scoregate_schemas::onnx::ModelProto;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{Gateway, Settings, is_full, python, repository, scratch};

/// How far values may be from those of other libraries: in log-odds, of regressions relative to the largest answer.
const TOLERANCE: f64 = 1e-5;
/// How far they may be from all coalitions of the same double evaluation.
const SAME_EVALUATION: f64 = 1e-9;
/// Players of whom all coalitions are tried at most.
const MOST_PLAYERS: usize = 8;
/// How many models there are at least.
const MODELS: usize = 20;
/// How many of them are served at least.
const SERVED: usize = 20;
/// How many standard errors a sampled value may be off.
const STANDARD_ERRORS: f64 = 5.0;
/// What adding up the values of columns misses a group by, at least.
const GROUPS_MATTER: f64 = 1e-3;
/// Who says what in `case.json`, and by which of our methods it is to be compared.
const OTHERS: [(&str, &str, usize); 4] = [
    ("interventional", "shap, interventional", INTERVENTIONAL),
    ("by_path", "shap, path-dependent", BY_PATH),
    ("own", "the library's own contributions", BY_PATH),
    ("coalitions", "all coalitions by the library", INTERVENTIONAL),
];
const INTERVENTIONAL: usize = 0;
const BY_PATH: usize = 1;

/// `case.json` of tests/python/shapley/trees.py.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    /// The player of every column.
    players: Vec<u32>,
    is_regression: bool,
    /// What the ensemble's node answers in ONNX Runtime, by row.
    answers: Vec<Vec<f64>>,
    /// By [`OTHERS`].
    compared: BTreeMap<String, Compared>,
    /// shap's values of columns, added up for each player.
    summed: Option<Values>,
}

/// By row, output and player.
type Values = Vec<Vec<Vec<f64>>>;

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Compared {
    /// Of the first rows, as many as there are; and what they are relative to, by output, where that is told.
    Found {
        values: Values,
        base: Option<Vec<f64>>,
    },
    WhyNot {
        why_not: String,
    },
}

/// What one of our methods says of all rows.
struct Ours {
    base: Vec<f64>,
    values: Values,
}

#[test]
fn values_of_trees_are_those_of_other_libraries() {
    let directory = scratch().join("shapley-trees");
    make(&["trees", directory.to_str().unwrap()]);
    let mut directories: Vec<PathBuf> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    assert!(directories.len() >= MODELS, "only {} models", directories.len());

    println!("\nlargest differences (relative to the largest answer for regressions)");
    println!(
        "{:<26}{:>6}{:>9}{:>6}{:>6}{:>11}{:>11}{:>14}{:>11}{:>11}{:>11}{:>14}",
        "model",
        "trees",
        "players",
        "rows",
        "NaN",
        "node",
        "added up",
        "coalitions",
        "shap int.",
        "shap path",
        "own path",
        "coalitions of",
    );
    println!("{:>84}{:>47}", "evaluated here", "the library");
    let mut remarks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut failures = Vec::new();
    for directory in directories {
        compare(&directory, &mut remarks, &mut failures);
    }
    println!("Not compared:");
    for (remark, cases) in remarks {
        println!("  {remark}: {}", cases.join(", "));
    }
    assert!(failures.is_empty(), "too far off:\n{}", failures.join("\n"));
}

/// Compares one model with everybody, and prints its line.
fn compare(directory: &Path, remarks: &mut BTreeMap<String, Vec<String>>, failures: &mut Vec<String>) {
    let case: Case = read(&directory.join("case.json"));
    let graph = ModelProto::decode(fs::read(directory.join("model.onnx")).unwrap().as_slice()).unwrap();
    let (_, ensemble) = Ensemble::of_graph(graph.graph.as_ref().unwrap()).unwrap();
    let columns = case.players.len();
    let [background, reference, rows] =
        ["background", "reference", "rows"].map(|part| numbers(&directory.join(part)));
    let [background, reference, rows] =
        [&background, &reference, &rows].map(|values| Matrix::new(values, columns).unwrap());

    let players: Vec<Option<u32>> = case.players.iter().copied().map(Some).collect();
    let explainers = [
        Explainer::interventional(&ensemble, &players, &background, TABLE_BYTES).unwrap(),
        Explainer::path_dependent(&ensemble, &players, &reference, TABLE_BYTES).unwrap(),
    ];
    let ours = explainers.map(|explainer| explain(&explainer, &rows));
    let margins: Vec<Vec<f64>> = rows.rows().map(|row| margin(&ensemble, row)).collect();
    let largest = margins.iter().flatten().fold(1.0_f64, |largest, margin| largest.max(margin.abs()));
    let scale = if case.is_regression { largest } else { 1.0 };

    let mut check = |what: &str, difference: Option<f64>, most: f64| {
        let Some(difference) = difference else { return String::new() };
        let difference = difference / scale;
        if difference.is_nan() || difference > most {
            failures.push(format!("{}: {what}: {difference:.1e}", case.name));
        }
        format!("{difference:.1e}")
    };
    let answers: Vec<Vec<f64>> = rows.rows().map(|row| ensemble.answer(row)).collect();
    let node = check("the node's answer", Some(largest_of(&answers, &case.answers)), TOLERANCE);
    let sums = ours.iter().map(|ours| additivity(ours, &margins)).fold(0.0, worst);
    let sums = check("values and base added up", Some(sums), SAME_EVALUATION);
    let coalitions = (player_count(&case.players) <= MOST_PLAYERS).then(|| {
        let tried = if is_full() { rows.rows().len() } else { 6 };
        by_coalitions(&ensemble, &case.players, &background, &rows, tried, &ours[INTERVENTIONAL])
    });
    let coalitions = check("all coalitions, evaluated here", coalitions, SAME_EVALUATION);
    let [by_shap, by_path, own, by_library] = OTHERS.map(|(name, what, method)| {
        let difference = match &case.compared[name] {
            Compared::Found { values, base } => Some(from_others(&ours[method], values, base.as_deref())),
            Compared::WhyNot { why_not } => {
                remarks.entry(format!("{what}: {why_not}")).or_default().push(case.name.clone());
                None
            }
        };
        check(what, difference, TOLERANCE)
    });
    println!(
        "{:<26}{:>6}{:>9}{:>6}{:>6}{node:>11}{sums:>11}{coalitions:>14}{by_shap:>11}{by_path:>11}{own:>11}{by_library:>14}",
        case.name,
        ensemble.trees(),
        player_count(&case.players),
        rows.rows().len(),
        rows.rows().filter(|row| row.iter().any(|value| value.is_nan())).count(),
    );
    if let Some(summed) = &case.summed {
        // Were it enough to add up columns, this test would not tell whether groups are explained.
        let missed = from_others(&ours[INTERVENTIONAL], summed, None);
        println!(
            "{:>26} the columns of its players, explained by shap and added up, miss by {missed:.1e}",
            ""
        );
        assert!(missed > GROUPS_MATTER, "{}: {missed}", case.name);
    }
}

/// One more than the last one's number.
fn player_count(players: &[u32]) -> usize {
    players.iter().max().map_or(0, |last| *last as usize + 1)
}

fn explain(explainer: &Explainer, rows: &Matrix<'_>) -> Ours {
    let (outputs, players) = (explainer.outputs(), explainer.players());
    let mut scratch = explainer.scratch();
    let mut values = vec![0.0; outputs * players];
    let of_row = |row| {
        explainer.explain(row, &mut scratch, &mut values).unwrap();
        values.chunks(players).map(<[f64]>::to_vec).collect()
    };
    Ours {
        values: rows.rows().map(of_row).collect(),
        base: (0..outputs).map(|output| explainer.base(output)).collect(),
    }
}

fn margin(ensemble: &Ensemble, row: &[f64]) -> Vec<f64> {
    let mut margins = vec![0.0; ensemble.outputs()];
    ensemble.margin(row, &mut margins);
    margins
}

/// How far base and values are from the margins.
fn additivity(ours: &Ours, margins: &[Vec<f64>]) -> f64 {
    let of_row = |(values, margins): (&Vec<Vec<f64>>, &Vec<f64>)| {
        let outputs = ours.base.iter().zip(values).zip(margins);
        outputs
            .map(|((base, values), margin)| (base + values.iter().sum::<f64>() - margin).abs())
            .fold(0.0, worst)
    };
    ours.values.iter().zip(margins).map(of_row).fold(0.0, worst)
}

/// How far our values are from Shapley's definition, the worth of a coalition being the mean margin over the background rows with
/// the explained row's columns where those are of its members; of `tried` rows, spread over all.
fn by_coalitions(
    ensemble: &Ensemble,
    players: &[u32],
    background: &Matrix<'_>,
    rows: &Matrix<'_>,
    tried: usize,
    ours: &Ours,
) -> f64 {
    let count = player_count(players);
    let step = rows.rows().len() / tried;
    let mut most = 0.0_f64;
    for (row, values) in rows.rows().zip(&ours.values).step_by(step) {
        let mut worth = vec![vec![0.0; 1 << count]; ensemble.outputs()];
        for coalition in 0..1_usize << count {
            for other in background.rows() {
                let mixed: Vec<f64> = (players.iter().zip(row).zip(other))
                    .map(|((player, own), other)| if coalition >> player & 1 == 1 { *own } else { *other })
                    .collect();
                for (worth, margin) in worth.iter_mut().zip(margin(ensemble, &mixed)) {
                    worth[coalition] += margin / background.rows().len() as f64;
                }
            }
        }
        for ((worth, values), base) in worth.iter().zip(values).zip(&ours.base) {
            most = worst(most, (worth[0] - base).abs());
            most = (0..count).fold(most, |most, player| {
                worst(most, (shapley(worth, count, player) - values[player]).abs())
            });
        }
    }
    most
}

/// What a player adds to a coalition, in the mean over all orders in which players can come.
fn shapley(worth: &[f64], players: usize, player: usize) -> f64 {
    let factorial = |n: usize| (1..=n).map(|k| k as f64).product::<f64>();
    let of_coalition = |coalition: usize| {
        let before = coalition.count_ones() as usize;
        let orders = factorial(before) * factorial(players - 1 - before);
        orders / factorial(players) * (worth[coalition | 1 << player] - worth[coalition])
    };
    (0..worth.len()).filter(|coalition| coalition >> player & 1 == 0).map(of_coalition).sum()
}

/// Where a library has both classes of two, or ours has, the positive one's are compared.
fn from_others(ours: &Ours, values: &Values, base: Option<&[f64]>) -> f64 {
    assert!(!values.is_empty() && values.len() <= ours.values.len(), "{} rows", values.len());
    let of_rows = ours.values.iter().zip(values).map(|(ours, theirs)| {
        let (ours, theirs) = same_outputs(ours, theirs);
        largest_of(ours, theirs)
    });
    let of_values = of_rows.fold(0.0, worst);
    let of_base = base.map_or(0.0, |base| {
        let (ours, theirs) = same_outputs(&ours.base, base);
        distance(ours, theirs)
    });
    worst(of_values, of_base)
}

fn same_outputs<'o, T>(ours: &'o [T], theirs: &'o [T]) -> (&'o [T], &'o [T]) {
    if ours.len() == theirs.len() {
        return (ours, theirs);
    }
    assert_eq!((ours.len().min(theirs.len()), ours.len().max(theirs.len())), (1, 2), "outputs");
    (&ours[ours.len() - 1..], &theirs[theirs.len() - 1..])
}

fn largest_of(ours: &[Vec<f64>], theirs: &[Vec<f64>]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(ours, theirs)| distance(ours, theirs)).fold(0.0, worst)
}

fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(one, other)| (one - other).abs()).fold(0.0, worst)
}

/// The larger one; not a number is the worst of all.
fn worst(one: f64, other: f64) -> f64 {
    if one.is_nan() || one > other { one } else { other }
}

/// `explained.json` of tests/python/shapley/served.py.
#[derive(Debug, Deserialize)]
struct Served {
    name: String,
    /// How its answers have to be explained.
    method: String,
    space: String,
    features: Vec<String>,
    rows: Vec<Value>,
    /// What all coalitions say, by space.
    spaces: BTreeMap<String, Compared>,
    /// What shap's LinearExplainer says in [`Served::space`].
    linear: Compared,
    task: String,
    labels: Vec<String>,
}

/// What an answer says of its explanation.
struct Said {
    method: String,
    class: Option<String>,
    base: f64,
    values: Vec<f64>,
    errors: Option<Vec<f64>>,
    additivity_error: f64,
}

/// The largest differences of a model in one space.
#[derive(Default)]
struct Off {
    added_up: f64,
    coalitions: f64,
    /// From shap's LinearExplainer, where there is one.
    linear: Option<f64>,
    /// The largest standard error, where values are sampled.
    error: Option<f64>,
}

#[test]
fn served_models_are_explained_as_all_coalitions_say() {
    let directory = scratch().join("shapley-served");
    make(&["served", directory.to_str().unwrap(), repository().version("churn").to_str().unwrap()]);
    let models = scratch().join("shapley-models");
    let churn = models.join("churn/2026-05-17_01");
    fs::create_dir_all(&churn).unwrap();
    for file in fs::read_dir(repository().version("churn")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), churn.join(file.file_name())).unwrap();
    }
    // Time enough for everything: what is compared is no number of samples.
    let settings = Settings::new()
        .models(&models)
        .set("SCOREGATE_DEFAULT_MODEL", "churn")
        .set("SCOREGATE_CACHE", "off")
        .set("SCOREGATE_EXPLAIN_BUDGET", "4s");
    let mut cases: Vec<Served> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| read(&entry.unwrap().path().join("explained.json")))
        .collect();
    cases.sort_by(|one: &Served, other| one.name.cmp(&other.name));
    assert!(cases.len() >= SERVED, "only {} models", cases.len());
    for case in cases.iter().filter(|case| case.name != "churn") {
        import(&settings, &case.name, &directory.join(&case.name));
    }
    let gateway = settings.start();

    println!(
        "\nlargest differences of what the gateway answers (relative to the largest value for regressions)"
    );
    println!(
        "{:<28}{:>9}{:>6}  {:<21}{:<12}{:>10}{:>14}{:>16}{:>14}",
        "model",
        "features",
        "rows",
        "method",
        "space",
        "added up",
        "coalitions",
        "LinearExplainer",
        "probability",
    );
    let mut failures = Vec::new();
    for case in &cases {
        let told = explain_served(&gateway, case, &mut failures);
        println!("{told}");
    }
    println!("Standard errors are in brackets where values are sampled.\nNot compared:");
    let mut remarks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for case in &cases {
        if let Compared::WhyNot { why_not } = &case.linear {
            remarks.entry(why_not).or_default().push(&case.name);
        }
    }
    for (remark, cases) in remarks {
        println!("  shap's LinearExplainer, {remark}: {}", cases.join(", "));
    }
    assert!(failures.is_empty(), "not as expected:\n{}", failures.join("\n"));
}

/// Compares one model's answers with everybody, and says its line.
fn explain_served(gateway: &Gateway, case: &Served, failures: &mut Vec<String>) -> String {
    let mut cells = vec![String::new(); 4];
    for space in case.spaces.keys() {
        let off = compare_in(gateway, case, space, failures);
        let shown = match off.error {
            Some(error) => format!("{:.0e} ({error:.0e})", off.coalitions),
            None => format!("{:.1e}", off.coalitions),
        };
        if *space == case.space {
            cells[0] = format!("{:.1e}", off.added_up);
            cells[1] = shown;
            cells[2] = off.linear.map(|linear| format!("{linear:.1e}")).unwrap_or_default();
        } else {
            cells[3] = shown;
        }
    }
    let [added_up, coalitions, linear, probability] = <[String; 4]>::try_from(cells).unwrap();
    format!(
        "{:<28}{:>9}{:>6}  {:<21}{:<12}{added_up:>10}{coalitions:>14}{linear:>16}{probability:>14}",
        case.name,
        case.features.len(),
        case.rows.len(),
        case.method,
        case.space,
    )
}

/// Compares one model's answers in one space, of several classes for each and for the most likely one.
fn compare_in(gateway: &Gateway, case: &Served, space: &str, failures: &mut Vec<String>) -> Off {
    let is_default = space == case.space;
    let Compared::Found { values, base: Some(base) } = &case.spaces[space] else {
        panic!("{}: all coalitions are tried in every space", case.name)
    };
    let largest = values.iter().flatten().flatten().fold(1.0_f64, |most, value| most.max(value.abs()));
    let scale = if case.task == "regression" { largest } else { 1.0 };
    let mut queries = vec![if is_default { String::new() } else { format!("&space={space}") }];
    if case.task == "multiclass" {
        queries.extend(
            case.labels.iter().map(|label| format!("{}&class={label}", queries[0])).collect::<Vec<_>>(),
        );
    }

    let mut off = Off::default();
    for query in queries {
        let said = ask(gateway, case, space, &query);
        for (row, said) in said.iter().enumerate() {
            let output = said.class.as_ref().map_or(0, |class| {
                case.labels.iter().position(|label| label == class).expect("a class of the model")
            });
            assert!(!query.contains("class=") || query.ends_with(said.class.as_ref().unwrap()), "{query}");
            off.added_up = worst(off.added_up, said.additivity_error / scale);
            let differences = said.values.iter().zip(&values[row][output]);
            let differences: Vec<f64> =
                differences.map(|(ours, theirs)| (ours - theirs).abs() / scale).collect();
            off.coalitions = differences.iter().copied().fold(off.coalitions, worst);
            match &said.errors {
                None => off.coalitions = worst(off.coalitions, (said.base - base[output]).abs() / scale),
                Some(errors) => {
                    off.error = Some(errors.iter().copied().fold(off.error.unwrap_or_default(), worst));
                    let mut each = differences.iter().zip(errors);
                    if !each.all(|(difference, error)| *difference <= STANDARD_ERRORS * error + TOLERANCE) {
                        failures.push(format!("{}: {differences:?}, standard errors {errors:?}", case.name));
                    }
                }
            }
            if is_default && said.method != case.method {
                failures.push(format!("{}: {} and not {}", case.name, said.method, case.method));
            }
            if let (true, Compared::Found { values, .. }) = (is_default, &case.linear) {
                let found = distance(&said.values, &values[row][output]) / scale;
                off.linear = Some(worst(off.linear.unwrap_or_default(), found));
            }
        }
        // Sampled values depend on how much time there is for each.
        if is_default && off.error.is_none() {
            let target = format!("/v1/models/{}/predict/batch?explain=full{query}", case.name);
            let batch = gateway.post(&target, json!(case.rows).to_string());
            assert_eq!(batch.status, 200, "{}: {}", case.name, batch.text());
            for (alone, row) in said.iter().zip(batch.json()["predictions"].as_array().unwrap()) {
                let of_batch = read_said(case, &row["explanations"]);
                off.coalitions = worst(off.coalitions, distance(&alone.values, &of_batch.values) / scale);
            }
        }
    }
    let coalitions = if off.error.is_some() { 0.0 } else { off.coalitions };
    let linear = off.linear.unwrap_or_default();
    for (what, found) in [("added up", off.added_up), ("coalitions", coalitions), ("LinearExplainer", linear)]
    {
        if found.is_nan() || found > TOLERANCE {
            failures.push(format!("{} in {space}, {what}: {found:.1e}", case.name));
        }
    }
    off
}

/// Has every row explained by itself.
fn ask(gateway: &Gateway, case: &Served, space: &str, query: &str) -> Vec<Said> {
    let target = format!("/v1/models/{}/predict?explain=full{query}", case.name);
    let of_row = |row: &Value| {
        let answer = gateway.post(&target, row.to_string());
        assert_eq!(answer.status, 200, "{}: {}", case.name, answer.text());
        let explained = &answer.json()["explanations"];
        assert_eq!(explained["space"], *space, "{}: {explained}", case.name);
        read_said(case, explained)
    };
    case.rows.iter().map(of_row).collect()
}

fn read_said(case: &Served, explained: &Value) -> Said {
    let by_feature = |values: &Value| -> Option<Vec<f64>> {
        let values = values.as_object()?;
        assert_eq!(values.keys().collect::<Vec<_>>(), case.features.iter().collect::<Vec<_>>());
        Some(values.values().map(|value| value.as_f64().unwrap()).collect())
    };
    Said {
        method: explained["method"].as_str().unwrap().into(),
        class: explained["class"].as_str().map(String::from),
        base: explained["base_value"].as_f64().unwrap(),
        values: by_feature(&explained["values"]).unwrap_or_else(|| panic!("{}: {explained}", case.name)),
        errors: by_feature(&explained["standard_errors"]),
        additivity_error: explained["additivity_error"].as_f64().unwrap(),
    }
}

/// Publishes a model.
fn import(settings: &Settings, name: &str, directory: &Path) {
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let [model, schema, reference, golden] =
        ["model.onnx", "schema.json", "reference.csv", "golden.jsonl"].map(file);
    let output = settings.run(&[
        "import",
        &model,
        "--name",
        name,
        "--schema",
        &schema,
        "--reference",
        &reference,
        "--golden",
        &golden,
    ]);
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Fits the models with the real libraries.
fn make(arguments: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/shapley");
    let output = Command::new(python()).arg("-B").arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Little-endian float64.
fn numbers(path: &Path) -> Vec<f64> {
    fs::read(path).unwrap().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}
