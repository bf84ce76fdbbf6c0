//! What only operators reach: the admin listener's own routes, and the record of what they did there.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Answer, Client, Gateway, Request, Settings, repository, scratch, wait_within};

/// A repository of one model with two versions, of which the first is live.
fn two_versions() -> tempfile::TempDir {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    let fitted = repository().models.join("churn");
    let version = std::fs::read_dir(&fitted).unwrap().map(|entry| entry.unwrap().path());
    let version = version.filter(|path| path.join("manifest.json").is_file()).min().unwrap();
    for name in ["a", "b"] {
        let into = models.path().join("churn").join(name);
        std::fs::create_dir_all(&into).unwrap();
        for file in std::fs::read_dir(&version).unwrap().map(|entry| entry.unwrap().path()) {
            std::fs::copy(&file, into.join(file.file_name().unwrap())).unwrap();
        }
        let manifest = into.join("manifest.json");
        let mut document: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
        document["version"] = name.into();
        std::fs::write(&manifest, document.to_string()).unwrap();
    }
    std::fs::write(models.path().join("churn/rollout.json"), r#"{"live":"a"}"#).unwrap();
    models
}

fn gateway(models: &Path) -> Settings {
    Settings::new().models(models).set("SCOREGATE_STATE_DIR", "state")
}

fn ask(address: SocketAddr, request: &Request) -> Answer {
    Client::connect(address).ask(request)
}

fn put(key: &str, model: &str, body: &str) -> Request {
    let request = Request::new("PUT", &format!("/v1/models/{model}/rollout")).header("X-Api-Key", key);
    let length = body.len().to_string();
    request.header("Content-Type", "application/json").header("Content-Length", length).body(body)
}

fn live(gateway: &Gateway) -> String {
    gateway.get("/v1/models/churn").json()["live"].as_str().unwrap_or_default().to_owned()
}

/// The lines of the audit log.
fn audit(gateway: &Gateway) -> Vec<Value> {
    let path = gateway.settings.directory().join("state/audit.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_version_is_promoted_on_the_admin_listener_and_the_record_says_by_whom() {
    let models = two_versions();
    let settings = gateway(models.path());
    let operator = settings.key_with(&["--name", "operator", "--scopes", "models:write"]);
    let gateway = settings.start();
    assert_eq!(live(&gateway), "a");

    let promote = put(&operator, "churn", r#"{"live":"b"}"#);
    assert_eq!(
        ask(gateway.addr, &promote).code(),
        "method_not_allowed",
        "the public listener only tells of rollouts"
    );
    let promoted = ask(gateway.admin_addr, &promote);
    assert_eq!((promoted.status, promoted.json()["live"].as_str()), (200, Some("b")));
    let followed = wait_within(Duration::from_secs(10), || (live(&gateway) == "b").then_some(()));
    assert!(followed.is_some(), "b is not live");

    for (body, status, code) in [
        (r#"{"live":"c"}"#, 404, "unknown_version"),
        (r#"{"live":"../a"}"#, 422, "invalid_rollout"),
        (r#"{"live":1}"#, 422, "invalid_rollout"),
        (r#"{"live":"a","ghost":"b"}"#, 422, "invalid_rollout"),
        ("[]", 422, "invalid_rollout"),
        ("", 422, "invalid_rollout"),
    ] {
        let refused = ask(gateway.admin_addr, &put(&operator, "churn", body));
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{body}");
    }
    let nobody = ask(gateway.admin_addr, &put(&operator, "nobody", r#"{"live":"a"}"#));
    assert_eq!((nobody.status, nobody.code().as_str()), (404, "unknown_model"));
    let scores = ask(gateway.admin_addr, &put(&gateway.key, "churn", r#"{"live":"a"}"#));
    assert_eq!((scores.status, scores.code().as_str()), (403, "insufficient_scope"));
    let anybody = put("", "churn", r#"{"live":"a"}"#).without("x-api-key");
    assert_eq!(ask(gateway.admin_addr, &anybody).code(), "missing_credentials");

    let events = audit(&gateway);
    let promotions: Vec<&Value> =
        events.iter().filter(|event| event["action"] == "version.promoted").collect();
    let [promotion] = promotions.as_slice() else { panic!("{promotions:?}") };
    assert_eq!(promotion["target"], "churn@b");
    assert_eq!(promotion["actor"]["kind"], "caller");
    let id = promotion["actor"]["id"].as_str().unwrap();
    assert!(id.starts_with("key_"), "{id}");
    let made = events.iter().find(|event| event["action"] == "key.created" && event["target"] == id);
    assert_eq!(made.unwrap()["actor"]["kind"], "operator", "the same log says who made the key");
    assert!(events.iter().all(|event| !event.to_string().contains(&operator[3..])));
}

#[test]
fn what_cannot_be_recorded_is_not_done() {
    let models = two_versions();
    let settings = gateway(models.path());
    let operator = settings.key_with(&["--name", "operator", "--scopes", "models:write"]);
    let gateway = settings.start();
    let log = gateway.settings.directory().join("state/audit.jsonl");
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    let refused = ask(gateway.admin_addr, &put(&operator, "churn", r#"{"live":"b"}"#));
    assert_eq!((refused.status, refused.code().as_str()), (500, "audit_unavailable"));
    assert!(!refused.text().contains("audit.jsonl"), "{}", refused.text());
    let rollout = std::fs::read_to_string(models.path().join("churn/rollout.json")).unwrap();
    assert_eq!(rollout, r#"{"live":"a"}"#);
    assert_eq!(gateway.post("/v1/predict", crate::support::REFERENCE).status, 200, "scoring goes on");
}

#[test]
fn metrics_are_on_the_admin_listener_and_count_credentials() {
    let gateway = Settings::new().start();
    let predict = || Request::post("/v1/predict", crate::support::REFERENCE);
    assert_eq!(gateway.ask(&gateway.with_key(predict())).status, 200);
    assert_eq!(gateway.ask(&predict()).status, 401);
    assert_eq!(gateway.ask(&predict().header("Authorization", "Bearer x.y.z")).status, 401);
    assert_eq!(ask(gateway.addr, &Request::get("/metrics")).status, 404);
    let answer = ask(gateway.admin_addr, &Request::get("/metrics"));
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let open = Request::get("/metrics").header("Accept", "application/openmetrics-text; version=1.0.0");
    let open = ask(gateway.admin_addr, &open);
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    for expected in [
        "scoregate_credentials_total{kind=\"key\",outcome=\"accepted\"} 1",
        "scoregate_credentials_total{kind=\"none\",outcome=\"missing\"} 1",
    ] {
        assert!(answer.text().lines().any(|line| line == expected), "{expected}\n{}", answer.text());
    }
}
