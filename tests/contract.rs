//! The reference contract: request and answer field for field, the same score by every way in, metadata, health.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::support::{Answer, Gateway, REFERENCE, Request, Settings, case, check, repository, shared};

const VERSION: &str = "2026-05-17_01";

/// The golden rows of the fitted churn model: features, and the probability that the trainer computed itself.
fn golden(count: usize) -> Vec<(Map<String, Value>, f64)> {
    let text = std::fs::read_to_string(repository().version("churn").join("golden.jsonl")).unwrap();
    let rows = text.lines().take(count).map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["features"].as_object().unwrap().clone(), row["expected"].as_f64().unwrap()))
        .collect()
}

fn is_ulid(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ".contains(&byte))
}

#[test]
fn the_reference_request_gets_the_reference_answer() {
    let gateway = shared();
    for target in ["/v1/predict", "/v1/models/churn/predict"] {
        let answer = gateway.post(target, REFERENCE);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/json")),
            "{}",
            answer.text()
        );
        let body = answer.json();
        let probability = body["churn_probability"].as_f64().unwrap();
        assert!(probability > 0.0 && probability < 1.0);
        let label = if probability >= 0.5 { "churn" } else { "retain" };
        let id = body["prediction_id"].as_str().unwrap();
        assert!(is_ulid(id), "{id}");
        // The shortest digits that give this float32 again: nothing was rounded away.
        let digits = (probability as f32).to_string();
        assert_eq!(
            answer.text(),
            format!(
                r#"{{"model_version":"{VERSION}","churn_probability":{digits},"prediction":"{label}","explanations":{{"top_features":[]}},"prediction_id":"{id}"}}"#
            )
        );
    }
}

#[test]
fn every_answer_has_a_new_prediction_id() {
    let gateway = shared();
    let mut ids = HashSet::new();
    let mut client = gateway.connect();
    for _ in 0..50 {
        let answer = client.ask(&gateway.with_key(Request::post("/v1/predict", REFERENCE)));
        ids.insert(answer.json()["prediction_id"].as_str().unwrap().to_owned());
    }
    let batch = format!("[{}]", vec![REFERENCE; 50].join(","));
    let answer = gateway.post("/v1/predict/batch", batch).json();
    for row in answer["predictions"].as_array().unwrap() {
        let id = row["prediction_id"].as_str().unwrap();
        assert!(is_ulid(id));
        ids.insert(id.to_owned());
    }
    assert_eq!(ids.len(), 100);
}

#[test]
fn every_way_in_gives_the_same_probability_and_it_is_the_trainers() {
    /// The manifest's tolerance: what float32 may lose against the trainer's double precision.
    const TOLERANCE: f64 = 1e-6;
    let gateway = shared();
    let rows = golden(60);
    let objects: Vec<String> = rows.iter().map(|(row, _)| Value::Object(row.clone()).to_string()).collect();
    let mut client = gateway.connect();
    let single: Vec<f64> = objects
        .iter()
        .map(|row| client.ask(&gateway.with_key(Request::post("/v1/predict", row))).probability())
        .collect();
    for (row, (found, (_, expected))) in single.iter().zip(&rows).enumerate() {
        assert!(
            (found - expected).abs() <= TOLERANCE,
            "golden row {row}: served {found}, expected {expected}"
        );
    }
    let of_json = |answer: &Answer| -> Vec<f64> {
        let answer = answer.json();
        let rows = answer["predictions"].as_array().unwrap();
        rows.iter().map(|row| row["churn_probability"].as_f64().unwrap()).collect()
    };
    let array = format!("[{}]", objects.join(","));
    assert_eq!(of_json(&gateway.post("/v1/predict/batch", &array)), single, "JSON array");
    let wrapped = format!("{{\"rows\":{array}}}");
    assert_eq!(of_json(&gateway.post("/v1/models/churn/predict/batch", wrapped)), single, "rows");

    let ndjson = Request::post("/v1/predict/batch", objects.join("\n")).content_type("application/x-ndjson");
    let ndjson = gateway.ask(&gateway.with_key(ndjson)).text();
    let lines = ndjson.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ndjson: Vec<f64> = lines.map(|line| line["churn_probability"].as_f64().unwrap()).collect();
    assert_eq!(ndjson, single, "NDJSON");

    let names: Vec<&String> = rows[0].0.keys().collect();
    let mut csv = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",");
    for (row, _) in &rows {
        let cells =
            names.iter().map(|name| row[*name].as_str().map_or_else(|| row[*name].to_string(), Into::into));
        csv.push('\n');
        csv.push_str(&cells.collect::<Vec<_>>().join(","));
    }
    let csv =
        gateway.ask(&gateway.with_key(Request::post("/v1/predict/batch", csv).content_type("text/csv")));
    assert_eq!(of_json(&csv), single, "CSV");
}

#[test]
fn the_label_follows_the_threshold_of_the_manifest() {
    let (models, version) = repository().copy_of("churn");
    let path = version.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let probability = shared().post("/v1/predict", REFERENCE).probability();
    let mut label_at = |threshold: f64| {
        manifest["threshold"] = threshold.into();
        std::fs::write(&path, manifest.to_string()).unwrap();
        let answer = Settings::new().models(models.path()).start().post("/v1/predict", REFERENCE);
        assert_eq!(answer.probability(), probability);
        answer.json()["prediction"].as_str().unwrap().to_owned()
    };
    assert_eq!(label_at(probability), "churn", "the threshold itself is positive");
    assert_eq!(label_at(probability + 1e-3), "retain");
}

#[test]
fn entities_and_the_order_of_members_do_not_change_the_score() {
    let gateway = shared();
    let reference = gateway.post("/v1/predict", REFERENCE).probability();
    let mut row: Map<String, Value> = serde_json::from_str(REFERENCE).unwrap();
    row.insert("customer_id".into(), json!("c-0000042"));
    assert_eq!(gateway.post("/v1/predict", Value::Object(row.clone()).to_string()).probability(), reference);
    let reversed: Map<String, Value> = row.into_iter().rev().collect();
    assert_eq!(gateway.post("/v1/predict", Value::Object(reversed).to_string()).probability(), reference);
}

#[test]
fn a_request_id_is_kept_if_it_is_short_and_visible_and_replaced_otherwise() {
    let gateway = shared();
    let answer_to = |id: &[u8]| {
        let request = gateway.with_key(Request::post("/v1/predict", REFERENCE)).header("X-Request-Id", id);
        gateway.ask(&request).header("x-request-id").unwrap().to_owned()
    };
    let longest = "i".repeat(128);
    for kept in ["a", "req-42/!~", longest.as_str()] {
        assert_eq!(answer_to(kept.as_bytes()), kept);
    }
    for replaced in [&b""[..], b"two words", "gr\u{fc}n".as_bytes(), &[b'i'; 129]] {
        assert!(is_ulid(&answer_to(replaced)));
    }
    assert!(is_ulid(gateway.post("/v1/predict", REFERENCE).header("x-request-id").unwrap()));
    let refused = gateway.ask(&Request::get("/nowhere").header("X-Request-Id", "mine"));
    assert_eq!(
        (refused.header("x-request-id"), refused.json()["request_id"].as_str()),
        (Some("mine"), Some("mine"))
    );
}

#[test]
fn one_connection_takes_many_requests_pipelined_ones_too() {
    let gateway = shared();
    let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
    let mut client = gateway.connect();
    client.send(request.bytes().repeat(20));
    let probabilities: Vec<f64> = (0..20).map(|_| client.answer().unwrap().probability()).collect();
    assert!(probabilities.iter().all(|probability| *probability == probabilities[0]));
    assert_eq!(client.ask(&Request::get("/health").header("Connection", "close")).status, 200);
    assert!(client.answer().is_none(), "the connection stays open after Connection: close");
}

#[test]
fn metadata_describes_the_default_model() {
    let gateway = shared();
    let answer = gateway.get("/v1/metadata");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let body = answer.json();
    let manifest = std::fs::read(repository().version("churn").join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for (name, expected) in [
        ("model", json!("churn")),
        ("model_version", json!(VERSION)),
        (
            "features",
            json!([
                "tenure_days",
                "monthly_spend",
                "support_tickets_30d",
                "plan_tier",
                "country",
                "last_login_hours"
            ]),
        ),
        ("target", json!("churned")),
        ("schema", manifest["schema"].clone()),
        ("digest", manifest["files"]["model.onnx"].clone()),
        ("created_at", manifest["created_at"].clone()),
    ] {
        assert_eq!(body[name], expected, "{name}");
    }
    for metric in ["roc_auc", "brier"] {
        assert_eq!(body["training"][metric], manifest["metrics"][metric]["value"], "{metric}");
    }
    // The simulated truth is learnable: far from a coin, far from perfect.
    let auc = body["training"]["roc_auc"].as_f64().unwrap();
    assert!((0.65..0.95).contains(&auc), "{auc}");
    assert!(body["execution_providers"]["CPUExecutionProvider"].as_u64().unwrap() > 0);
    let countries = body["schema"]["properties"]["country"]["enum"].as_array().unwrap();
    assert!(countries.contains(&json!("US")), "training learns the countries: {countries:?}");
}

#[test]
fn health_is_open_on_both_listeners() {
    let gateway = shared();
    for addr in [gateway.addr, gateway.admin_addr] {
        for path in ["/health", "/health/live", "/health/ready"] {
            let answer = crate::support::Client::connect(addr).ask(&Request::get(path));
            assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"ok"}"#), "{addr} {path}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
        }
        let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
        assert_eq!(crate::support::Client::connect(addr).ask(&request).status, 200, "{addr}");
    }
}

#[test]
fn what_is_not_there_is_said_to_be_not_there() {
    let gateway = shared();
    let keyed = |request: Request| gateway.with_key(request);
    check(
        &gateway,
        &[
            case("no route", keyed(Request::get("/")), 404, "not_found", &[]),
            case("no such path below a route", keyed(Request::get("/v1/predict/x")), 404, "not_found", &[]),
            case("slash at the end", keyed(Request::post("/v1/predict/", REFERENCE)), 404, "not_found", &[]),
            case(
                "unknown model",
                keyed(Request::post("/v1/models/nobody/predict", REFERENCE)),
                404,
                "unknown_model",
                &[],
            ),
            case(
                "other case",
                keyed(Request::post("/v1/models/Churn/predict", REFERENCE)),
                404,
                "unknown_model",
                &[],
            ),
            case(
                "a path as a model",
                keyed(Request::post("/v1/models/..%2fchurn/predict", REFERENCE)),
                404,
                "unknown_model",
                &[],
            ),
            case(
                "NUL as a model",
                keyed(Request::post("/v1/models/%00/predict", REFERENCE)),
                404,
                "unknown_model",
                &[],
            ),
            case(
                "no UTF-8 as a model",
                keyed(Request::post("/v1/models/%ff/predict/batch", REFERENCE)),
                404,
                "unknown_model",
                &[],
            ),
            case(
                "a query",
                keyed(Request::post("/v1/predict?verbose=1", REFERENCE)),
                400,
                "invalid_parameter",
                &[],
            ),
        ],
    );
}

#[test]
fn another_default_model_answers_without_its_name() {
    let gateway: Gateway = Settings::new().set("SCOREGATE_DEFAULT_MODEL", "saas_churn").start();
    assert_eq!(gateway.get("/v1/metadata").json()["model"], "saas_churn");
    assert_eq!(gateway.post("/v1/models/churn/predict", REFERENCE).status, 200);
    let without = Settings::new().set("SCOREGATE_DEFAULT_MODEL", "nobody").start();
    assert_eq!(without.post("/v1/predict", REFERENCE).code(), "unknown_model");
    assert_eq!(without.post("/v1/models/churn/predict", REFERENCE).status, 200);
}
