//! Testers name the version that is to answer them, by `x-model-version`.

use serde_json::json;
use tempfile::TempDir;

use crate::support::cached::{Callers, post};
use crate::support::graph::share_model;
use crate::support::{Gateway, Request, Settings, scratch, wait_for};

const PIN: &str = "x-model-version";
const PREDICT: &str = "/v1/models/share/predict";
const BATCH: &str = "/v1/models/share/predict/batch";
const ROW: &str = r#"{"customer":"c-1","top":1,"bottom":4}"#;

/// Versions of the model `share`, whose rows are about customers.
fn models(versions: &[&str]) -> TempDir {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    for version in versions {
        let (model, output) = share_model(version, false, 0);
        model
            .entity("customer")
            .reference("background", json!([{"top": 1, "bottom": 2}]))
            .publish(models.path(), output);
    }
    models
}

fn start(models: &TempDir) -> Gateway {
    let settings = Settings::new().models(models.path());
    settings.set("SCOREGATE_STATE_DIR", "state").set("SCOREGATE_DEFAULT_MODEL", "share").start()
}

fn change(gateway: &Gateway, arguments: &[&str]) {
    let done = gateway.settings.run(&[&["models"], arguments].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn wait_for_state(gateway: &Gateway, version: &str, state: &str) {
    wait_for(&format!("{version} to be {state}"), || {
        let found = gateway.get(&format!("/v1/models/share/versions/{version}")).json();
        (found["state"] == state).then_some(())
    });
}

/// The version that answers, or status and code of the problem.
fn pinned(gateway: &Gateway, pin: impl AsRef<[u8]>) -> String {
    let answer = gateway.ask(&gateway.with_key(Request::post(PREDICT, ROW).header(PIN, pin)));
    match answer.status {
        200 => answer.json()["model_version"].as_str().unwrap().into(),
        status => format!("{status} {}", answer.code()),
    }
}

#[test]
fn a_version_that_is_loaded_answers_whoever_names_it() {
    let models = models(&["1", "2", "3", "4", "5"]);
    let gateway = start(&models);
    for version in ["2", "3", "4", "5"] {
        wait_for_state(&gateway, version, "accepted");
    }
    assert_eq!(pinned(&gateway, "stable"), "1");
    assert_eq!(pinned(&gateway, "1"), "1");
    assert_eq!(pinned(&gateway, "canary"), "404 unknown_version", "there is none");
    let missing = gateway.ask(&gateway.with_key(Request::post(PREDICT, ROW).header(PIN, "canary"))).json();
    assert!(missing["detail"].as_str().unwrap().contains("no canary now"), "{missing}");
    assert_eq!(pinned(&gateway, "2"), "409 version_not_loaded");
    change(&gateway, &["canary", "share@2", "--percent", "0"]);
    change(&gateway, &["canary", "share@3", "--percent", "100"]);
    change(&gateway, &["shadow", "share@4"]);
    for (version, state) in [("2", "canary"), ("3", "canary"), ("4", "shadow")] {
        wait_for_state(&gateway, version, state);
    }
    for (pin, expected) in [
        ("stable", "1"),
        ("canary", "2"),
        ("1", "1"),
        ("2", "2"),
        ("3", "3"),
        ("4", "4"),
        ("5", "409 version_not_loaded"),
        ("6", "404 unknown_version"),
        ("", "400 invalid_request"),
        ("1, 2", "404 unknown_version"),
        ("Stable", "404 unknown_version"),
        ("../1", "404 unknown_version"),
    ] {
        assert_eq!(pinned(&gateway, pin), expected, "{pin}");
    }
    assert_eq!(pinned(&gateway, "vérsion"), "400 invalid_request");
    // Nobody else meets the tester's versions.
    assert_eq!(gateway.post(PREDICT, ROW).json()["model_version"], "3");
    let twice = Request::post(PREDICT, ROW).header(PIN, "1").header(PIN, "1");
    let twice = gateway.ask(&gateway.with_key(twice));
    assert_eq!((twice.status, twice.code().as_str()), (400, "invalid_request"));
    assert!(twice.json()["detail"].as_str().unwrap().contains(PIN), "{}", twice.text());
    let missing = gateway.ask(&gateway.with_key(Request::post(PREDICT, ROW).header(PIN, "5"))).json();
    assert!(missing["detail"].as_str().unwrap().contains("0 percent"), "{missing}");

    // Every way of scoring is pinned.
    for (target, pin) in [("/v1/predict", "2"), (PREDICT, "4"), (PREDICT, "canary")] {
        let request = Request::post(&format!("{target}?explain=full"), ROW).header(PIN, pin);
        let answer = gateway.ask(&gateway.with_key(request)).json();
        assert_eq!(answer["model_version"], if pin == "canary" { "2" } else { pin }, "{answer}");
        assert!(answer["explanations"]["values"]["top"].is_number(), "{answer}");
    }
    let rows = ["c-1", "c-2", "c-3"].map(|name| ROW.replace("c-1", name));
    let json = Request::post(BATCH, format!("[{}]", rows.join(","))).header(PIN, "2");
    let answer = gateway.ask(&gateway.with_key(json)).json();
    assert_eq!(answer["model_version"], "2");
    assert!(answer["predictions"].as_array().unwrap().iter().all(|row| row.get("model_version").is_none()));
    let lines = Request::post(BATCH, rows.join("\n")).content_type("application/x-ndjson").header(PIN, "4");
    let answer = gateway.ask(&gateway.with_key(lines)).text();
    assert_eq!(answer.matches("\"model_version\":\"4\"").count(), 3, "{answer}");
    // What is no scoring passes the header over.
    let read = gateway.ask(&gateway.with_key(Request::get("/v1/models").header(PIN, "none")));
    assert_eq!(read.status, 200);
}

#[test]
fn whoever_may_not_read_models_may_not_choose_among_them() {
    let models = models(&["1"]);
    let settings = Callers::new();
    let (scorer, reader) = (
        settings.with_scopes("scorer", "score:predict"),
        settings.with_scopes("reader", "score:predict,models:read"),
    );
    let other = settings.with_scopes("other", "models:read");
    let gateway = settings
        .gateway("off")
        .models(models.path())
        .set("SCOREGATE_STATE_DIR", "state")
        .set("SCOREGATE_DEFAULT_MODEL", "share")
        .start_with(&reader);
    for target in [PREDICT, "/v1/predict", BATCH] {
        let body = if target == BATCH { format!("[{ROW}]") } else { ROW.to_owned() };
        let ask = |key: &str| gateway.ask(&post(target, key, &body).header(PIN, "1"));
        assert_eq!(ask(&reader).status, 200);
        let refused = ask(&scorer);
        assert_eq!((refused.status, refused.code().as_str()), (403, "insufficient_scope"));
        assert!(refused.header("www-authenticate").unwrap().contains("scope=\"models:read\""));
        // Whichever version is asked for: what there is, is not told.
        let unknown = gateway.ask(&post(target, &scorer, &body).header(PIN, "none"));
        assert_eq!((unknown.status, unknown.code().as_str()), (403, "insufficient_scope"));
        let refused = ask(&other);
        assert!(refused.header("www-authenticate").unwrap().contains("scope=\"score:predict\""));
        assert_eq!(gateway.ask(&post(target, &scorer, &body)).status, 200, "nothing is pinned");
    }
    let nobody = gateway.ask(&Request::post(PREDICT, ROW).header(PIN, "1"));
    assert_eq!(nobody.status, 401);
    let unknown = gateway.ask(&post("/v1/models/none/predict", &reader, ROW).header(PIN, "1"));
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "unknown_model"));
}

#[test]
fn a_version_that_is_called_like_a_label_is_meant_by_it() {
    let models = models(&["1", "2", "canary"]);
    let gateway = start(&models);
    for version in ["2", "canary"] {
        wait_for_state(&gateway, version, "accepted");
    }
    change(&gateway, &["canary", "share@2", "--percent", "0"]);
    wait_for_state(&gateway, "2", "canary");
    assert_eq!(pinned(&gateway, "canary"), "2");
    change(&gateway, &["shadow", "share@canary"]);
    wait_for_state(&gateway, "canary", "shadow");
    assert_eq!((pinned(&gateway, "canary"), pinned(&gateway, "stable")), ("canary".into(), "1".into()));
}
