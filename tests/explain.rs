//! Why a score: what answers say of it, against values worked out here by the definition.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use scoregate_model::package::Repository;
use scoregate_schemas::Rollout;
use scoregate_schemas::manifest::Output;
use scoregate_schemas::rollout::Canary;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::cached::{Callers, KEY, metric, post, scores, told, without_ids};
use crate::support::graph::{FLOAT, Handmade, share_model, zeros};
use crate::support::redis::Redis;
use crate::support::{
    Answer, CANARY, Case, Gateway, PREDICT, REFERENCE, Request, Settings, case, check, complaints, customer,
    publish_ratio_model, repository, scratch, shared, wait_for,
};

const BATCH: &str = "/v1/predict/batch";

/// How far values may be from those worked out here: the graph answers in float32.
const CLOSE: f64 = 1e-6;

/// How many layers make a model slow: some milliseconds.
const SLOW: usize = 24;

const FEATURES: [&str; 6] =
    ["tenure_days", "monthly_spend", "support_tickets_30d", "plan_tier", "country", "last_login_hours"];

/// The rows that those of the model `share` are compared with: `top` and `bottom`.
const SHARES: [[f64; 2]; 4] = [[1.0, 8.0], [2.0, 8.0], [1.0, 16.0], [3.0, 8.0]];

/// The same of the models `iris` and `price`: `a`, `b`, `c` and `scale`, and `a` and `scale`.
const IRISES: [[f64; 4]; 3] = [[0.25, 0.5, 0.25, 1.0], [0.5, 0.25, 0.25, 1.0], [0.125, 0.125, 0.75, 1.0]];
const PRICES: [[f64; 2]; 3] = [[8.0, 4.0], [2.0, 1.0], [64.0, 8.0]];

/// Rows as JSON objects.
fn objects<const N: usize>(names: [&str; N], rows: &[[f64; N]]) -> Value {
    let object = |row: &[f64; N]| {
        let members = names.iter().zip(row).map(|(name, value)| ((*name).into(), json!(value)));
        Value::Object(members.collect())
    };
    rows.iter().map(object).collect()
}

/// The model `share`, in a repository.
fn publish_share(models: &Path, layers: usize) {
    let (model, output) = share_model("1", false, layers);
    model.reference("background", objects(["top", "bottom"], &SHARES)).publish(models, output);
}

/// The models `share`, `iris` of three classes, `price` with a value, and `ratio` without a background.
fn models() -> TempDir {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    publish_share(models.path(), 0);
    Handmade::numbers("iris", 3)
        .labels(&["setosa", "versicolor", "virginica"])
        .output("numbers", FLOAT)
        .reference("background", objects(["a", "b", "c", "scale"], &IRISES))
        .publish(models.path(), Output::Probabilities { name: "numbers".into(), classes: 3, positive: 0 });
    let importance = json!({"space": "target", "method": "exact", "rows": 3, "base_value": 4.0, "features": [
        {"name": "a", "mean_absolute": 2.5}, {"name": "scale", "mean_absolute": 0.5}]});
    Handmade::numbers("price", 1)
        .output("numbers", FLOAT)
        .reference("background", objects(["a", "scale"], &PRICES))
        .reference("importance", importance)
        .publish(models.path(), Output::Value { name: "numbers".into() });
    publish_ratio_model(models.path());
    models
}

/// A gateway that takes its time to explain, so that a machine which is busy with all tests at once changes no method.
fn patient() -> Settings {
    Settings::new().set("SCOREGATE_EXPLAIN_BUDGET", "10s")
}

fn serving(settings: Settings, models: &TempDir, file: &str) -> Settings {
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let settings = settings.models(models.path()).set("SCOREGATE_STATE_DIR", "state");
    settings.set("SCOREGATE_DEFAULT_MODEL", "share")
}

/// Base value and values by the definition: over all orders in which features become known, what each adds on average. What
/// is not known yet is as in each background row.
fn shapley<const N: usize>(
    model: impl Fn([f64; N]) -> f64,
    row: [f64; N],
    background: &[[f64; N]],
) -> (f64, [f64; N]) {
    let mean_with = |known: usize| {
        let answer = |other: &[f64; N]| {
            model(std::array::from_fn(|at| if known >> at & 1 == 1 { row[at] } else { other[at] }))
        };
        background.iter().map(answer).sum::<f64>() / background.len() as f64
    };
    let factorial = |number: u32| (1..=u64::from(number)).product::<u64>() as f64;
    let count = u32::try_from(N).unwrap();
    let values = std::array::from_fn(|at| {
        let others = (0..1_usize << N).filter(|known| known >> at & 1 == 0);
        let gains = others.map(|known| {
            let size = known.count_ones();
            let weight = factorial(size) * factorial(count - size - 1) / factorial(count);
            weight * (mean_with(known | 1 << at) - mean_with(known))
        });
        gains.sum()
    });
    (mean_with(0), values)
}

fn explanations(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["explanations"].clone()
}

fn members(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The features in the order of their values' size, without those that change nothing, `most` of them.
fn ranked(explanation: &Value, most: usize) -> Vec<&str> {
    let values = explanation["values"].as_object().unwrap();
    let mut ranked: Vec<(&str, f64)> =
        values.iter().map(|(name, value)| (name.as_str(), number(value).abs())).collect();
    ranked.retain(|(_, size)| *size > 0.0);
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.into_iter().take(most).map(|(name, _)| name).collect()
}

/// What values come to, with the base.
fn total(explanation: &Value) -> f64 {
    let values = explanation["values"].as_object().unwrap();
    number(&explanation["base_value"]) + values.values().map(number).sum::<f64>()
}

fn assert_close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < CLOSE, "{what}: found {found}, expected {expected}");
}

/// Checks base and values of a full explanation.
fn assert_values<const N: usize>(explanation: &Value, names: [&str; N], (base, values): (f64, [f64; N])) {
    assert_close(number(&explanation["base_value"]), base, "base");
    assert_eq!(members(&explanation["values"]), names);
    for (name, expected) in names.iter().zip(values) {
        assert_close(number(&explanation["values"][name]), expected, name);
    }
    assert!(number(&explanation["additivity_error"]) < CLOSE, "{explanation}");
}

#[test]
fn an_answer_says_which_features_count_most() {
    let gateway = patient().start();
    let row = customer(&[("country", "\"Neverland\"")]);
    for row in [REFERENCE, &row] {
        let plain = gateway.post(PREDICT, row);
        let brief = gateway.post("/v1/predict?explain=true", row);
        let full = gateway.post("/v1/predict?explain=full", row);
        assert_eq!(
            members(&brief.json()),
            ["model_version", "churn_probability", "prediction", "explanations", "prediction_id"]
        );
        let (top, full) = (explanations(&brief), explanations(&full));
        assert_eq!(members(&top), ["top_features"]);
        assert_eq!(
            members(&full),
            ["top_features", "method", "space", "base_value", "values", "additivity_error"]
        );
        assert_eq!(members(&full["values"]), FEATURES);
        assert_eq!(full["top_features"], top["top_features"]);
        let sent: Value = serde_json::from_str(row).unwrap();
        let label = |name: &str| match &sent[name] {
            Value::String(category) => format!("{name}={category}"),
            _ => name.to_owned(),
        };
        let expected: Vec<String> = ranked(&full, 3).into_iter().map(label).collect();
        assert_eq!((json!(expected), expected.len()), (top["top_features"].clone(), 3));
        assert!(number(&full["additivity_error"]) < CLOSE, "{full}");
        // All else is as it is without.
        let text = without_ids(&brief.text()).replace(&top.to_string(), "{\"top_features\":[]}");
        assert_eq!(text, without_ids(&plain.text()));
        assert_eq!(text, without_ids(&gateway.post("/v1/predict?explain=false", row).text()));
    }
}

#[test]
fn values_are_those_of_the_definition_over_the_gateways_own_scores() {
    let gateway = patient().start();
    let reference = fs::read(repository().version("churn").join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let background: Vec<&Map<String, Value>> =
        reference["background"].as_array().unwrap().iter().map(|row| row.as_object().unwrap()).collect();
    let row = customer(&[("country", "\"Neverland\""), ("tenure_days", "3")]);
    for row in [REFERENCE, &row] {
        let sent: Map<String, Value> = serde_json::from_str(row).unwrap();
        let mix = |known: usize, other: &Map<String, Value>| {
            let value = |(at, name): (usize, &&str)| {
                let from = if known >> at & 1 == 1 { &sent } else { other };
                ((*name).to_owned(), from[*name].clone())
            };
            Value::Object(FEATURES.iter().enumerate().map(value).collect())
        };
        let rows: Vec<Value> =
            (0..64).flat_map(|known| background.iter().map(move |other| mix(known, other))).collect();
        let answer = gateway.post(BATCH, json!(rows).to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        let scores: Vec<f64> = answer["predictions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|score| number(&score["churn_probability"]))
            .collect();
        let means: Vec<f64> = scores
            .chunks(background.len())
            .map(|scores| scores.iter().sum::<f64>() / scores.len() as f64)
            .collect();
        // A game of six players: of a background of one row, each number stands for itself.
        let game = |known: [f64; 6]| {
            means[known.iter().enumerate().map(|(at, is_known)| (*is_known as usize) << at).sum::<usize>()]
        };
        let expected = shapley(game, [1.0; 6], &[[0.0; 6]]);
        let explained = explanations(&gateway.post("/v1/predict?explain=full&space=probability", row));
        assert_eq!((&explained["method"], &explained["space"]), (&json!("exact"), &json!("probability")));
        assert_values(&explained, FEATURES, expected);
        assert_close(total(&explained), gateway.post(PREDICT, row).probability(), "the score");
    }
}

#[test]
fn every_task_is_explained_in_its_own_terms() {
    let models = models();
    let gateway = serving(patient(), &models, "").start();
    let ask = |model: &str, query: &str, row: &str| {
        explanations(&gateway.post(&format!("/v1/models/{model}/predict?explain=full{query}"), row))
    };
    // Two classes.
    let share = |query: &str| ask("share", query, r#"{"top":3,"bottom":32}"#);
    let (base, values) = shapley(|[top, bottom]| top / bottom, [3.0, 32.0], &SHARES);
    let explained = share("&space=probability");
    assert_values(&explained, ["top", "bottom"], (base, values));
    assert!(explained.get("class").is_none());
    let turned = share("&space=probability&class=no");
    assert_values(&turned, ["top", "bottom"], (1.0 - base, values.map(|value| -value)));
    assert_eq!(turned["class"], "no");
    assert!(share("&space=probability&class=yes").get("class").is_none());
    let log_odds = |[top, bottom]: [f64; 2]| (top / (bottom - top)).ln();
    let explained = share("&space=log_odds");
    assert_eq!(explained["space"], "log_odds");
    assert_values(&explained, ["top", "bottom"], shapley(log_odds, [3.0, 32.0], &SHARES));

    // Several classes: the most likely one, or the one that is asked for.
    let row = [0.125, 0.25, 0.625, 1.0];
    let body = json!({"a": row[0], "b": row[1], "c": row[2], "scale": row[3]}).to_string();
    for (query, class) in [("", 2), ("&class=setosa", 0), ("&class=versicolor", 1), ("&class=virginica", 2)] {
        let explained = ask("iris", query, &body);
        assert_eq!(explained["class"], ["setosa", "versicolor", "virginica"][class]);
        let expected = shapley(|row| row[class] / row[3], row, &IRISES);
        assert_values(&explained, ["a", "b", "c", "scale"], expected);
        // What changes nothing is no reason.
        assert_eq!(explained["top_features"], json!([(["a", "b", "c"][class])]));
        assert_close(total(&explained), row[class], "the class's probability");
    }

    // A value.
    let explained = ask("price", "", r#"{"a":24,"scale":2}"#);
    assert_eq!((&explained["space"], explained.get("class")), (&json!("target"), None));
    assert_values(&explained, ["a", "scale"], shapley(|[a, scale]| a / scale, [24.0, 2.0], &PRICES));
}

#[test]
fn as_many_features_are_named_as_asked_for() {
    let gateway = patient().start();
    let all = explanations(&gateway.post("/v1/predict?explain=full&top_k=99", REFERENCE));
    let names = ranked(&all, 99);
    assert!(names.len() > 4, "{all}");
    for top_k in [1, 2, 4, 99] {
        let target = format!("/v1/predict?explain=true&top_k={top_k}");
        let top = explanations(&gateway.post(&target, REFERENCE));
        let expected: Vec<&Value> = all["top_features"].as_array().unwrap().iter().take(top_k).collect();
        assert_eq!(top["top_features"], json!(expected));
        assert_eq!(expected.len(), top_k.min(names.len()));
    }
    let settings = patient().set("SCOREGATE_EXPLAIN_TOP_K", "2").set("SCOREGATE_EXPLAIN", "true");
    let top = explanations(&settings.start().post(PREDICT, REFERENCE));
    assert_eq!(top["top_features"].as_array().unwrap()[..], all["top_features"].as_array().unwrap()[..2]);
}

#[test]
fn what_cannot_be_explained_is_refused() {
    let models = models();
    let gateway = serving(patient(), &models, "[model.iris]\nexplain = \"off\"\n").start();
    let row = r#"{"top":1,"bottom":4}"#;
    let ask = |target: &str| gateway.with_key(Request::post(target, row));
    let canary = format!("/v1/predict?{CANARY}={CANARY}");
    let canary_class = format!("/v1/predict?explain=true&class={CANARY}");
    let mut cases: Vec<Case> = [
        "/v1/predict?explain=yes",
        "/v1/predict?explain",
        "/v1/predict?explain=true&explain=full",
        "/v1/predict?explain=true&top_k=0",
        "/v1/predict?explain=true&top_k=many",
        "/v1/predict?explain=true&space=odds",
        "/v1/predict?explain=true&space=target",
        "/v1/predict?explain=true&space=margin",
        "/v1/predict?explain=true&method=shap",
        "/v1/predict?explain=true&method=linear&space=probability",
        "/v1/predict?top_k=3",
        "/v1/predict?space=probability",
        "/v1/predict?explain=false&class=yes",
        "/v1/predict/batch?method=exact",
        "/v1/predict/batch?explain=true&top_k=1&top_k=1",
        "/v1/models/price/predict?explain=true&class=yes",
        "/v1/models/iris/predict?top_k=1",
        &canary,
        &canary_class,
    ]
    .map(|target| case(target, ask(target), 400, "invalid_parameter", &[]))
    .into();
    for (target, code) in [
        ("/v1/models/ratio/predict?explain=true", "no_background"),
        ("/v1/models/ratio/predict/batch?explain=full", "no_background"),
        ("/v1/models/iris/predict?explain=true", "explanations_off"),
    ] {
        cases.push(case(target, ask(target), 409, code, &[]));
    }
    let picture = |target: &str| ask(target).header("Accept", "image/svg+xml");
    let none = "/v1/models/ratio/predict";
    cases.push(case("a picture without a background", picture(none), 409, "no_background", &[]));
    cases.push(case("half a picture", picture("/v1/predict?explain=true"), 400, "invalid_parameter", &[]));
    cases.push(case("pictures of a batch", picture(BATCH), 406, "not_acceptable", &[]));
    let png = ask(PREDICT).header("Accept", "image/png");
    cases.push(case("another picture", png, 406, "not_acceptable", &[]));
    let html = Request::post("/v1/predict?explain=true", "<p>").content_type("text/html");
    cases.push(case("no row", gateway.with_key(html), 415, "unsupported_media_type", &[]));
    check(&gateway, &cases);
    for (target, expected) in [
        ("/v1/predict?explain=true&space=target", "expected probability or log_odds"),
        ("/v1/predict?explain=true&class=maybe", "expected no, yes"),
        ("/v1/models/ratio/predict?explain=true", "--reference"),
    ] {
        let answer = gateway.post(target, row);
        assert!(answer.text().contains(expected), "{target}: {}", answer.text());
    }
    // Nobody has to ask.
    for target in ["/v1/models/ratio/predict", "/v1/models/ratio/predict?explain=false"] {
        assert_eq!(explanations(&gateway.post(target, row)), json!({"top_features": []}));
    }
}

#[test]
fn a_model_is_explained_by_default_where_its_score_says_so() {
    let models = models();
    let file = "[explain]\nmode = \"true\"\n[model.share]\nexplain = \"full\"\nexplain_when = \"probability >= 0.5\"\n\
                [model.iris]\nexplain_when = \"prediction = virginica\"\n[model.price]\nexplain_when = \"value < 10\"\n";
    let gateway = serving(patient(), &models, file).start();
    let is_explained = |answer: &Value| {
        let top = answer["explanations"]["top_features"].as_array().unwrap();
        !top.is_empty()
    };
    let share = |top: f64| json!({"top": 8.0 * top, "bottom": 8});
    let iris = |c: f64| json!({"a": 0.5, "b": 0.125, "c": c, "scale": 1});
    let price = |a: f64| json!({"a": a, "scale": 1});
    let half = f64::from(0.5_f32.next_down());
    for (model, row, expected) in [
        ("share", share(0.5), true),
        ("share", share(0.75), true),
        ("share", share(half), false),
        ("share", share(0.25), false),
        ("iris", iris(0.375), false),
        ("iris", iris(0.625), true),
        ("price", price(9.5), true),
        ("price", price(10.0), false),
        // There is nothing to compare it with.
        ("ratio", json!({"top": 1, "bottom": 2}), false),
    ] {
        let ask = |query: &str| {
            let answer = gateway.post(&format!("/v1/models/{model}/predict{query}"), row.to_string());
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()
        };
        let answer = ask("");
        assert_eq!(is_explained(&answer), expected, "{answer}");
        assert_eq!(answer["explanations"].get("values").is_some(), expected && model == "share", "{answer}");
        assert!(!is_explained(&ask("?explain=false")));
        if model != "ratio" {
            assert!(is_explained(&ask("?explain=true")), "{model} {row}");
        }
    }
    // How is said without whether.
    let answer = gateway.post("/v1/predict?space=log_odds&top_k=1", share(0.75).to_string()).json();
    assert_eq!(answer["explanations"]["space"], "log_odds");
    assert_eq!(answer["explanations"]["top_features"].as_array().unwrap().len(), 1);
    // Of a batch, each row for itself.
    let tops = [0.25, 0.5, 0.75, 0.125, 0.625];
    let rows: Vec<Value> = tops.map(share).into();
    for format in ["application/json", "application/x-ndjson", "text/csv"] {
        let answers = batch(&gateway, BATCH, format, &rows, &["top", "bottom"]);
        for (top, answer) in tops.iter().zip(&answers) {
            let single = explanations(&gateway.post(PREDICT, share(*top).to_string()));
            assert_eq!(&single["top_features"], &answer["top_features"], "{format} {top}");
            assert_eq!(answer["top_features"].as_array().unwrap().is_empty(), *top < 0.5);
        }
    }
    let warned = gateway.log_so_far().join("\n");
    assert!(warned.contains("scores are to be explained and cannot be"), "{warned}");
}

#[test]
fn a_condition_has_to_fit_its_model() {
    let models = models();
    let file = "[explain]\nmode = \"true\"\n[model.price]\nexplain_when = \"probability > 0.5\"\n\
                [model.iris]\nexplain_when = \"prediction = rose\"\n";
    let gateway = serving(patient(), &models, file).start();
    for (model, expected) in [("price", "expected value"), ("iris", "one of setosa, versicolor, virginica")] {
        let answer = gateway.get(&format!("/v1/models/{model}")).json();
        assert_eq!(answer["refusal"]["code"], "settings", "{answer}");
        assert!(answer["refusal"]["reason"].as_str().unwrap().contains(expected), "{answer}");
    }
}

/// The `explanations` of each row of a batch, whose answer is in the format of the body. In CSV they are put together from its
/// columns.
fn batch(gateway: &Gateway, target: &str, format: &str, rows: &[Value], names: &[&str]) -> Vec<Value> {
    let texts: Vec<String> = rows.iter().map(Value::to_string).collect();
    let body = match format {
        "application/json" => format!("[{}]", texts.join(",")),
        "application/x-ndjson" => texts.join("\n"),
        _ => {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(names).unwrap();
            for row in rows {
                let cell = |name: &&str| match &row[*name] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                writer.write_record(names.iter().map(cell)).unwrap();
            }
            String::from_utf8(writer.into_inner().unwrap()).unwrap()
        }
    };
    let request = Request::post(target, body).content_type(format).header("Accept", format);
    let answer = gateway.ask(&gateway.with_key(request));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let of = |row: &Value| row.get("explanations").cloned().unwrap_or(Value::Null);
    match format {
        "application/json" => answer.json()["predictions"].as_array().unwrap().iter().map(of).collect(),
        "application/x-ndjson" => {
            answer.text().lines().map(|line| of(&serde_json::from_str(line).unwrap())).collect()
        }
        _ => csv_explanations(&answer.text(), names.len()),
    }
}

fn csv_explanations(text: &str, sent: usize) -> Vec<Value> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header: Vec<String> = reader.headers().unwrap().iter().map(Into::into).collect();
    let explained = |record: csv::StringRecord| {
        let cells: BTreeMap<&str, &str> =
            header.iter().map(String::as_str).zip(record.iter()).skip(sent).collect();
        if !cells["error"].is_empty() {
            return Value::Null;
        }
        let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let top = cells.get("top_features").copied().unwrap_or_default();
        let top: Vec<&str> = top.split(';').filter(|name| !name.is_empty()).collect();
        let mut explained = json!({"top_features": top});
        if cells.get("base_value").is_some_and(|base| !base.is_empty()) {
            explained["method"] = json!(cells["explanation_method"]);
            explained["space"] = json!(cells["explanation_space"]);
            explained["base_value"] = parsed(cells["base_value"]);
            // In the order of the columns.
            let values = header.iter().filter_map(|name| {
                let feature = name.strip_prefix("explain_")?;
                Some((feature.to_owned(), parsed(cells[name.as_str()])))
            });
            explained["values"] = Value::Object(values.collect());
        }
        explained
    };
    reader.records().map(|record| explained(record.unwrap())).collect()
}

#[test]
fn a_batch_explains_each_row_as_it_would_be_alone() {
    let gateway = patient().start();
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let row = |members: &[(&str, &str)]| parse(&customer(members));
    let rows = [
        parse(REFERENCE),
        row(&[("country", "\"DE\""), ("plan_tier", "\"basic\"")]),
        row(&[("tenure_days", "-1")]),
        row(&[("country", "\"Never, \\\"land\\\"\""), ("monthly_spend", "900")]),
        parse(REFERENCE),
    ];
    for format in ["application/json", "application/x-ndjson", "text/csv"] {
        for query in ["?explain=true", "?explain=full", "?explain=full&space=probability&top_k=6", ""] {
            let found = batch(&gateway, &format!("{BATCH}{query}"), format, &rows, &FEATURES);
            assert_eq!(found.len(), rows.len());
            for (row, found) in rows.iter().zip(&found) {
                let answer = gateway.post(&format!("{PREDICT}{query}"), row.to_string());
                if answer.status == 422 {
                    assert_eq!(found, &Value::Null);
                    continue;
                }
                let mut alone = explanations(&answer);
                if format == "text/csv" {
                    alone.as_object_mut().unwrap().shift_remove("additivity_error");
                    if query.is_empty() {
                        // There is no column.
                        alone = json!({"top_features": []});
                    }
                }
                assert_eq!(found, &alone, "{format} {query} {row}");
            }
        }
    }
}

#[test]
fn columns_of_explanations_stand_where_the_header_says() {
    let models = models();
    Handmade::new("odd", &["top_features", "base_value", "x"])
        .labels(&["no", "yes"])
        .node("Min", &["top_features", "base_value", "x"], "least", Vec::new())
        .output("least", FLOAT)
        .reference("background", json!([{"top_features": 0.5, "base_value": 0.25, "x": 1}]))
        .publish(models.path(), Output::Probabilities { name: "least".into(), classes: 1, positive: 0 });
    let gateway = serving(patient(), &models, "").start();
    let header = |target: &str, body: &str| {
        let request = Request::post(target, body).content_type("text/csv").header("Accept", "text/csv");
        let answer = gateway.ask(&gateway.with_key(request));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut reader = csv::Reader::from_reader(&answer.body[..]);
        let header = reader.headers().unwrap().clone();
        // The reader takes no record of another width.
        assert_eq!(reader.records().map(Result::unwrap).count(), 2);
        header.iter().collect::<Vec<_>>().join(",")
    };
    let body = "x,base_value,top_features\n0.5,1,1\n,1,1\n";
    let odd = "x,base_value,top_features,odd_probability,prediction";
    for (query, more) in [
        ("", ""),
        ("?explain=true", ",scoregate_top_features"),
        (
            "?explain=full",
            ",scoregate_top_features,scoregate_base_value,explanation_method,explanation_space,explanation_class,\
             explanation_stepped_down_from,additivity_error,largest_standard_error,explain_top_features,\
             explain_base_value,explain_x",
        ),
    ] {
        let found = header(&format!("/v1/models/odd/predict/batch{query}"), body);
        assert_eq!(found, format!("{odd}{more},prediction_id,model_version,error"));
    }
}

#[test]
fn explanations_are_kept_as_scores_are() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    publish_share(models.path(), SLOW);
    let callers = Callers::new();
    let (north, north_too, south) =
        (callers.of("a", "north"), callers.of("b", "north"), callers.of("c", "south"));
    let gateway =
        serving(callers.gateway("memory").set("SCOREGATE_EXPLAIN_BUDGET", "10s"), &models, "").start();
    const MISS: &str = "scoregate-memory; fwd=miss; stored";
    const HIT: &str = "scoregate-memory; hit; ttl=T";
    let row = |top: u32| format!("{{\"top\":{top},\"bottom\":1024}}");
    let ask = |key: &str, query: &str, top: u32, control: &str| {
        let request = post(&format!("{PREDICT}{query}"), key, row(top));
        let request = if control.is_empty() { request } else { request.header("Cache-Control", control) };
        let answer = gateway.ask(&request);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    };
    let mut first: BTreeMap<(&str, u32), Value> = BTreeMap::new();
    for (key, query, top, control, expected) in [
        (&north, "?explain=full", 1, "", MISS),
        (&north, "?explain=full", 1, "", HIT),
        (&north_too, "?explain=full", 1, "", HIT),
        (&south, "?explain=full", 1, "", MISS),
        (&south, "?explain=full", 1, "", HIT),
        (&north, "?explain=full", 2, "", MISS),
        // How much of it is told, and by which name the default goes, makes no difference.
        (&north, "?explain=true", 1, "", HIT),
        (&north, "?explain=true&top_k=1", 1, "", HIT),
        (&north, "?explain=full&space=probability", 1, "", HIT),
        (&north, "?explain=full&space=log_odds", 1, "", MISS),
        (&north, "?explain=full&space=log_odds", 1, "", HIT),
        (&north, "?explain=full&class=no", 1, "", MISS),
        (&north, "?explain=full&class=no", 1, "", HIT),
        (&north, "?explain=full&method=permutation_sampling", 1, "", MISS),
        (&north, "?explain=full&method=permutation_sampling", 1, "", HIT),
        (&north, "?explain=full", 3, "no-store", "scoregate-memory; fwd=miss"),
        (&north, "?explain=full", 3, "", MISS),
        (&north, "?explain=full", 3, "no-cache", "scoregate-memory; fwd=request; stored"),
        (&north, "?explain=full", 3, "max-age=60", HIT),
        // The score was kept all along.
        (&north, "", 1, "", HIT),
    ] {
        let answer = ask(key, query, top, control);
        assert_eq!(told(&answer), expected, "{query} {top} {control}");
        let found = explanations(&answer);
        let before = first.entry((query, top)).or_insert_with(|| found.clone());
        assert_eq!(&found, before, "{query} {top} {control}");
    }
    let entries = metric(&gateway, "scoregate_cache_entries");
    // Four scores, and seven explanations.
    assert_eq!(entries, 4 + 7);
    // Batches find what single rows have left, and the other way round.
    let asked = |tops: &[u32]| {
        let rows: Vec<String> = tops.iter().map(|top| row(*top)).collect();
        let target = format!("{BATCH}?explain=full");
        let answer = gateway.ask(&post(&target, &north, format!("[{}]", rows.join(","))));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answers = answer.json();
        for (top, found) in tops.iter().zip(answers["predictions"].as_array().unwrap()) {
            assert_eq!(found["explanations"], explanations(&ask(&south, "?explain=full", *top, "")));
        }
        told(&answer)
    };
    let partial = "scoregate-memory; fwd=partial; detail=\"3 of 5 rows\"; stored";
    assert_eq!(asked(&[1, 2, 4, 4, 3]), partial);
    assert_eq!(asked(&[1, 2, 4, 4, 3]), HIT);
    assert_eq!(told(&ask(&north, "?explain=true", 4, "")), HIT);
}

#[test]
fn replicas_share_explanations_through_redis() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    publish_share(models.path(), 0);
    let (redis, callers) = (Redis::start(), Callers::new());
    let key = callers.of("a", "north");
    let gateways = [0, 1].map(|_| serving(callers.replica(&redis.url(), KEY), &models, "").start());
    let ask = |at: usize, query: &str| {
        gateways[at].ask(&post(&format!("{PREDICT}{query}"), &key, r#"{"top":1,"bottom":32}"#))
    };
    let first = ask(0, "?explain=full");
    let missed = "scoregate-redis; fwd=miss, scoregate-memory; fwd=miss; stored";
    assert_eq!(told(&first), missed);
    // The score and its explanation are written behind the answer.
    wait_for("both to be written", || (scores(&redis).len() == 2).then_some(()));
    let second = ask(1, "?explain=full");
    let found = "scoregate-redis; hit; ttl=T, scoregate-memory; fwd=miss; stored";
    assert_eq!(told(&second), found);
    assert_eq!(explanations(&second), explanations(&first));
    assert_eq!(told(&ask(1, "?explain=full&space=log_odds")), missed);
    assert_eq!(told(&ask(1, "?explain=full")), "scoregate-memory; hit; ttl=T");
}

#[test]
fn a_method_steps_down_when_there_is_no_time() {
    let models = models();
    let file = "[model.iris]\nexplain_budget = \"1us\"\n";
    let gateway = serving(patient(), &models, file).start();
    let row = [0.25, 0.125, 0.625, 1.0];
    let one = objects(["a", "b", "c", "scale"], &[row])[0].to_string();
    let rows = format!("[{one},{one},{one}]");
    let ask = |gateway: &Gateway, query: &str| {
        let target = format!("/v1/models/iris/predict?explain=full{query}");
        explanations(&gateway.post(&target, &one))
    };
    for query in ["", "&method=exact"] {
        let target = format!("/v1/models/iris/predict/batch?explain=full{query}");
        let batch = gateway.post(&target, &rows).json();
        let of_batch = batch["predictions"].as_array().unwrap().iter().map(|row| &row["explanations"]);
        for explained in of_batch.chain([&ask(&gateway, query)]) {
            assert_eq!(explained["method"], "permutation_sampling", "{explained}");
            assert_eq!(explained["stepped_down_from"], "exact");
            // However little is known, it adds up.
            assert_close(total(explained), row[2], "the score");
        }
    }
    let sampled = ask(&gateway, "&method=permutation_sampling");
    assert_eq!(
        (&sampled["method"], sampled.get("stepped_down_from")),
        (&json!("permutation_sampling"), None)
    );
    let gateway = serving(patient(), &models, "").start();
    let exact = ask(&gateway, "");
    assert_eq!((&exact["method"], exact.get("stepped_down_from")), (&json!("exact"), None));
    assert_values(&exact, ["a", "b", "c", "scale"], shapley(|row| row[2] / row[3], row, &IRISES));
}

#[test]
fn a_batch_that_nobody_has_time_to_explain_is_told_how_many_rows_can_be() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    publish_share(models.path(), SLOW);
    let settings = Settings::new().set("SCOREGATE_ANSWER_TIMEOUT", "1s");
    let file = "[explain]\nmode = \"true\"\n[model.share]\nexplain_when = \"probability > 0.5\"\n";
    let gateway = serving(settings, &models, file).start();
    // All of them different.
    let rows = |count: usize| {
        let row = |at: usize| format!("{{\"top\":{},\"bottom\":8}}", 4.5 + at as f64 / 4_096.0);
        format!("[{}]", (0..count).map(row).collect::<Vec<_>>().join(","))
    };
    let answer = gateway.post("/v1/predict/batch?explain=true", rows(10_000));
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_many_rows"), "{}", answer.text());
    assert_eq!(complaints(&answer), Vec::<String>::new());
    let text = answer.text();
    let fit: usize = text.split("at most ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((1..10_000).contains(&fit) && text.contains("explain=false"), "{text}");
    // Whoever did not ask gets all scores, and as many reasons as there was time for.
    let is_mixed =
        [200, 400, 800, 1_200, 1_600, 2_000, 2_400, 3_200, 4_000, 6_000].into_iter().any(|count| {
            let answer = gateway.post(BATCH, rows(count));
            if answer.status == 504 {
                // Scores alone took all the time.
                return false;
            }
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            let found = answer["predictions"].as_array().unwrap();
            let (explained, skipped): (Vec<&Value>, Vec<&Value>) =
                found.iter().partition(|row| row["explanations"].get("skipped").is_none());
            for row in &skipped {
                assert_eq!(row["explanations"], json!({"top_features": [], "skipped": "time"}));
                assert!(number(&row["share_probability"]) > 0.5);
            }
            !explained.is_empty() && !skipped.is_empty()
        });
    assert!(is_mixed, "some of the sizes are too many for the time, and not all of it goes into scores");
    // What is not explained needs no time for it.
    assert_eq!(gateway.post("/v1/predict/batch?explain=false", rows(100)).status, 200);
}

#[test]
fn a_version_answers_while_what_explains_it_is_prepared() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    // One after another is prepared: to run the background through all of them takes seconds.
    let (model, output) = share_model("1", false, 2 * SLOW);
    let background: Vec<[f64; 2]> = (1..=100).map(|at| [f64::from(at), 128.0]).collect();
    let model = model.reference("background", objects(["top", "bottom"], &background));
    let names = ["share", "share2", "share3", "share4", "share5", "share6"];
    for name in names {
        model.clone().name(name).publish(models.path(), output.clone());
    }
    // What is being prepared is waited for half as long.
    let settings = Settings::new().set("SCOREGATE_ANSWER_TIMEOUT", "200ms");
    let gateway = serving(settings.set("SCOREGATE_EXPLAIN_BUDGET", "10ms"), &models, "").start();
    let row = r#"{"top":1,"bottom":256}"#;
    let url = |name: &str, query: &str| format!("/v1/models/{name}/predict{query}");
    let ask = |name: &str| gateway.post(&url(name, "?explain=true"), row);
    let is_early = |answer: &Answer| answer.code() == "explanations_preparing";
    let early = names.iter().map(|name| (name, ask(name))).find(|(_, answer)| is_early(answer));
    let (name, early) = early.expect("a model that is not prepared yet");
    assert_eq!((early.status, early.header("retry-after")), (503, Some("1")), "{}", early.text());
    assert_eq!(complaints(&early), Vec::<String>::new());
    // On a busy machine not every answer is in time.
    let plain = || Some(gateway.post(&url(name, ""), row)).filter(|answer| answer.status == 200);
    wait_for("a score while that is so", plain);
    for name in names {
        // Some are still being tried.
        let late = wait_for("an explained score", || Some(ask(name)).filter(|answer| answer.status == 200));
        let named = late.json()["explanations"]["top_features"].as_array().map(Vec::len);
        assert_eq!(named, Some(2), "{}", late.text());
    }
    drop(gateway);
    // Where every score is to be explained, the version answers once it can be.
    let settings = patient().set("SCOREGATE_EXPLAIN", "true");
    let gateway = serving(settings, &models, "").start();
    let first =
        wait_for("a score", || Some(gateway.post(PREDICT, row)).filter(|answer| answer.status == 200));
    assert!(first.json()["explanations"]["top_features"].is_array(), "{}", first.text());
}

#[test]
fn a_version_that_replaces_another_explains_from_its_first_answer_on() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    let background: Vec<[f64; 2]> = (1..=100).map(|at| [f64::from(at), 128.0]).collect();
    for version in ["1", "2", "3"] {
        // To run the background through it takes longer than anybody waits for it.
        let (model, output) = share_model(version, false, 2 * SLOW);
        model.reference("background", objects(["top", "bottom"], &background)).publish(models.path(), output);
    }
    let settings = Settings::new().set("SCOREGATE_ANSWER_TIMEOUT", "200ms");
    let gateway = serving(settings.set("SCOREGATE_EXPLAIN_BUDGET", "10ms"), &models, "").start();
    let ask = || gateway.post(&format!("{PREDICT}?explain=true"), r#"{"top":1,"bottom":256}"#);
    let until = |version: &str, is_explained: bool| {
        wait_for(&format!("an explained score by version {version}"), || {
            let answer = ask();
            let code = if answer.status == 200 { String::new() } else { answer.code() };
            assert!(!is_explained || code != "explanations_preparing", "{}", answer.text());
            (answer.status == 200 && answer.json()["model_version"] == version).then_some(())
        });
    };
    until("1", false);
    let repository = Repository::new(models.path());
    let canary = Canary::of("2", 100.0);
    repository.write_rollout("share", &Rollout { canaries: vec![canary], ..Rollout::of("1") }).unwrap();
    until("2", true);
    repository.write_rollout("share", &Rollout::of("3")).unwrap();
    until("3", true);
}

#[test]
fn what_a_batch_had_little_time_for_is_not_kept_for_single_rows() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    publish_share(models.path(), SLOW);
    let callers = Callers::new();
    let key = callers.of("a", "north");
    let settings = callers.gateway("memory").set("SCOREGATE_ANSWER_TIMEOUT", "2s");
    let gateway = serving(settings.set("SCOREGATE_EXPLAIN_BUDGET", "900ms"), &models, "").start();
    let row = |top: u32| format!("{{\"top\":{top},\"bottom\":4096}}");
    let query = "?explain=full&method=permutation_sampling";
    let body = format!("[{}]", (1..40).map(row).collect::<Vec<_>>().join(","));
    let batch = gateway.ask(&post(&format!("{BATCH}{query}"), &key, body));
    assert_eq!(batch.status, 200, "{}", batch.text());
    let alone = gateway.ask(&post(&format!("{PREDICT}{query}"), &key, row(1)));
    assert_eq!(told(&alone), "scoregate-memory; fwd=miss; stored");
    let error = |explained: &Value| number(&explained["standard_errors"]["top"]);
    let coarse = &batch.json()["predictions"][0]["explanations"];
    assert!(error(&explanations(&alone)) <= error(coarse), "{coarse}");
}

#[test]
fn a_row_that_the_closed_form_does_not_hold_for_is_run() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    // The logistic function of a - b, and a half where that is more: the background never gets there.
    Handmade::new("bent", &["a", "b"])
        .labels(&["no", "yes"])
        .node("Sub", &["a", "b"], "margin", Vec::new())
        .node("Sigmoid", &["margin"], "risen", Vec::new())
        .node("Constant", &[], "nothing", vec![zeros([1, 1])])
        .node("Sigmoid", &["nothing"], "half", Vec::new())
        .node("Min", &["risen", "half"], "bent", Vec::new())
        .output("bent", FLOAT)
        .reference("background", objects(["a", "b"], &[[1.0, 2.0], [0.5, 3.0], [-1.0, 0.25]]))
        .publish(models.path(), Output::Probabilities { name: "bent".into(), classes: 1, positive: 0 });
    let gateway = serving(patient(), &models, "").set("SCOREGATE_DEFAULT_MODEL", "bent").start();
    let explained = |a: f64, b: f64| {
        let row = json!({"a": a, "b": b}).to_string();
        let alone = explanations(&gateway.post("/v1/predict?explain=full", &row));
        let batch = gateway.post("/v1/predict/batch?explain=full", format!("[{row}]")).json();
        let together = batch["predictions"][0]["explanations"].clone();
        assert_eq!(together.get("stepped_down_from"), alone.get("stepped_down_from"));
        assert_close(total(&together), total(&alone), "what is explained");
        alone
    };
    let usual = explained(1.0, 3.0);
    assert_eq!((&usual["method"], &usual["space"]), (&json!("linear"), &json!("log_odds")));
    assert_close(total(&usual), -2.0, "the log-odds");
    let bent = explained(3.0, 1.0);
    assert_eq!((&bent["method"], &bent["stepped_down_from"]), (&json!("exact"), &json!("linear")));
    assert_eq!(bent["space"], "log_odds");
    // Those of a half, not of what it would be.
    assert_close(total(&bent), 0.0, "the log-odds");
}

#[test]
fn the_memory_of_a_batch_includes_its_explanations() {
    let models = models();
    let settings = patient().set("SCOREGATE_MAX_QUEUED_BYTES", "400000");
    let gateway = serving(settings, &models, "").start();
    let ask = |query: &str, rows: usize| {
        let row = |at: usize| format!("{{\"top\":1,\"bottom\":{}}}", 65_536 + at);
        let body = format!("[{}]", (0..rows).map(row).collect::<Vec<_>>().join(","));
        let request = gateway.with_key(Request::post(&format!("{BATCH}{query}"), body));
        // The memory of the answer before is given back a moment after it has arrived.
        wait_for("room", || Some(gateway.ask(&request)).filter(|answer| answer.status != 503))
    };
    let fit = ["", "?explain=true", "?explain=full"].map(|query| {
        let answer = ask(query, 3_000);
        assert_eq!((answer.status, answer.code().as_str()), (413, "too_many_rows"), "{}", answer.text());
        let text = answer.text();
        let fit: usize = text.split("at most ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert_eq!(ask(query, fit).status, 200, "{query}");
        fit
    });
    assert!(fit[0] > fit[1] && fit[1] > fit[2] && fit[2] > 100, "{fit:?}");
}

#[test]
fn a_score_that_cannot_be_explained_is_answered_to_whoever_did_not_ask() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    // 3/2 is no probability.
    let (model, output) = share_model("1", false, 0);
    model.reference("background", json!([{"top": 1, "bottom": 2}])).publish(models.path(), output);
    let gateway = serving(patient().set("SCOREGATE_EXPLAIN", "true"), &models, "").start();
    let (good, bad) = (r#"{"top":1,"bottom":4}"#, r#"{"top":3,"bottom":4}"#);
    let rows = format!("[{good},{bad},{good}]");
    assert_eq!(explanations(&gateway.post(PREDICT, bad)), json!({"top_features": [], "skipped": "unusable"}));
    assert_eq!(explanations(&gateway.post(PREDICT, good)), json!({"top_features": ["bottom"]}));
    let answer = gateway.post(BATCH, &rows).json();
    let found: Vec<&Value> = answer["predictions"].as_array().unwrap().iter().collect();
    assert_eq!(
        found.iter().map(|row| number(&row["share_probability"])).collect::<Vec<_>>(),
        [0.25, 0.75, 0.25]
    );
    let is_explained = |row: &&Value| row["explanations"]["top_features"] == json!(["bottom"]);
    assert_eq!(found.iter().map(is_explained).collect::<Vec<_>>(), [true, false, true]);
    // A batch that asks gets all else, too; a single row that asks is told.
    let asked = gateway.post("/v1/predict/batch?explain=true", &rows).json();
    let reasons = |answer: &Value, row: usize| answer["predictions"][row]["explanations"].clone();
    assert_eq!(reasons(&asked, 1), json!({"top_features": [], "skipped": "unusable"}));
    assert_eq!(reasons(&asked, 2), json!({"top_features": ["bottom"]}));
    let answer = gateway.post("/v1/predict?explain=true", bad);
    assert_eq!((answer.status, answer.code().as_str()), (500, "model_output_invalid"));
    assert_eq!(complaints(&answer), Vec::<String>::new());
    // Of whoever did not ask one row, and one of each batch.
    let version = gateway.post(PREDICT, good).json()["model_version"].as_str().unwrap().to_owned();
    let series = format!(
        "scoregate_unexplained_rows_total{{model=\"share\",version=\"{version}\",reason=\"unusable\"}}"
    );
    assert_eq!(metric(&gateway, &series), 3);
}

/// What every picture is answered with.
fn assert_picture(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("image/svg+xml"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    assert_eq!(answer.header("content-security-policy"), Some(policy));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    let text = answer.text();
    assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
    assert!(!text.contains("<script"), "{text}");
}

#[test]
fn one_row_is_explained_by_a_picture() {
    let gateway = shared();
    let draw = |query: &str, row: &str, accept: &str| {
        let request = Request::post(&format!("{PREDICT}{query}"), row).header("Accept", accept);
        gateway.ask(&gateway.with_key(request))
    };
    let row = customer(&[("country", "\"<script>&\""), ("tenure_days", "3")]);
    for (query, accept) in [
        ("", "image/svg+xml"),
        ("?explain=full&top_k=1&space=probability", "image/svg+xml, application/json;q=0.5"),
        ("?class=retain", "image/*"),
    ] {
        let answer = draw(query, &row, accept);
        assert_picture(&answer);
        // All but one feature are put together where one is asked for.
        for (part, expected) in
            [("churn_probability 0.", true), ("&lt;script&gt;&amp;", !query.contains("top_k=1"))]
        {
            assert_eq!(answer.text().contains(part), expected, "{part}: {}", answer.text());
        }
    }
    for accept in ["application/json, image/svg+xml", "*/*", "image/svg+xml;q=0.5, */*"] {
        assert_eq!(explanations(&draw("", REFERENCE, accept)), json!({"top_features": []}), "{accept}");
    }
    assert_eq!(draw("", "{}", "image/svg+xml").code(), "invalid_row");
}

/// What is said at `target` of a version, once what explains it is prepared.
fn described(gateway: &Gateway, target: &str) -> Value {
    wait_for("what explains a model", || {
        let found = gateway.get(target).json();
        (!found["explanations"].to_string().contains("still being prepared")).then_some(found)
    })
}

#[test]
fn a_model_says_how_it_is_explained() {
    let models = models();
    let gateway = serving(patient(), &models, "[model.iris]\nexplain = \"off\"\n").start();
    let of = |model: &str| described(&gateway, &format!("/v1/models/{model}/versions/1"));
    let share = of("share");
    let said = &share["explanations"];
    assert_eq!((&said["mode"], &said["background_rows"]), (&json!("on_request"), &json!(4)));
    assert_eq!(said["spaces"].as_array().unwrap()[0], said["default_space"]);
    for word in ["exact", "permutation_sampling"] {
        assert!(said["methods"].as_array().unwrap().contains(&json!(word)), "{said}");
    }
    assert!(said["cost_us"].as_f64().unwrap() > 0.0, "{said}");
    assert!(share.get("importance").is_none());
    let explained = gateway.post("/v1/predict?explain=full", r#"{"top":1,"bottom":4}"#);
    assert_eq!(explanations(&explained)["space"], said["default_space"]);
    let (iris, ratio) = (of("iris")["explanations"].clone(), of("ratio")["explanations"].clone());
    assert_eq!((&iris["mode"], &iris["methods"], &iris["spaces"]), (&json!("off"), &json!([]), &json!([])));
    assert_eq!(ratio["background_rows"], 0);
    assert!(ratio["reason"].as_str().unwrap().contains("--reference"), "{ratio}");
    assert_eq!(described(&shared(), "/v1/metadata")["explanations"]["background_rows"], 100);

    // How important features are.
    assert_eq!(of("price")["importance"]["features"][0], json!({"name": "a", "mean_absolute": 2.5}));
    let target = "/v1/models/price/importance.svg";
    let picture = gateway.get(target);
    assert_picture(&picture);
    assert!(picture.text().contains("scale"), "{}", picture.text());
    let get = |target: &str| gateway.with_key(Request::get(target));
    check(
        &gateway,
        &[
            case("no importance", get("/v1/models/share/importance.svg"), 404, "no_importance", &[]),
            case("no model", get("/v1/models/nobody/importance.svg"), 404, "unknown_model", &[]),
            case("a query", get("/v1/models/price/importance.svg?x=1"), 400, "invalid_parameter", &[]),
            case("as HTML", get(target).header("Accept", "text/html"), 406, "not_acceptable", &[]),
            case("no key", Request::get(target), 401, "missing_credentials", &[]),
            case(
                "another method",
                gateway.with_key(Request::post(target, "{}")),
                405,
                "method_not_allowed",
                &[],
            ),
        ],
    );
}
