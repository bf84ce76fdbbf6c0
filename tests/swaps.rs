//! Versions replaced again and again under load: no request fails, each answer's version and score belong together, and what was replaced
//! is let go.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::publishing::{empty, gateway, state, until_served};
use crate::support::constant::publish;
use crate::support::{Client, Gateway, Request, Stop, is_full, wait_for};

/// How many versions take turns.
const VERSIONS: usize = 5;
/// How many connections score all the time: every second one single rows, the others batches.
const CLIENTS: usize = 4;

/// What a version answers, whatever it is asked.
fn score(version: usize) -> f32 {
    (version + 1) as f32 / 8.0
}

/// Makes a version the live one.
fn promote(admin: &mut Client, operator: &str, version: usize) {
    let body = format!(r#"{{"live":"{version}"}}"#);
    let request = Request::new("PUT", "/v1/models/steady/rollout")
        .header("X-Api-Key", operator)
        .header("Content-Type", "application/json")
        .header("Content-Length", body.len().to_string())
        .body(body);
    let answer = admin.ask(&request);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Asks until `stop`; how often it was answered.
fn load(gateway: &Gateway, batch: bool, stop: &AtomicBool) -> usize {
    let mut client = gateway.connect();
    let target = if batch { "/v1/predict/batch" } else { "/v1/predict" };
    let body = if batch { r#"[{"a":1},{"a":2}]"# } else { r#"{"a":1}"# };
    let request = gateway.with_key(Request::post(target, body));
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        let answer = client.ask(&request);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        let version: usize = answer["model_version"].as_str().unwrap().parse().unwrap();
        let rows = if batch { answer["predictions"].as_array().unwrap().clone() } else { vec![answer] };
        for row in rows {
            let found = row["steady_probability"].as_f64().unwrap();
            assert_eq!(found, f64::from(score(version)), "version {version}: {row}");
        }
        asked += 1;
    }
    asked
}

#[test]
fn swaps_under_load_lose_no_request_and_mix_no_versions() {
    let swaps = if is_full() { 1_000 } else { 60 };
    // From when on memory may grow no more.
    let settled = swaps / 10;
    let models = empty();
    for version in 0..VERSIONS {
        publish(models.path(), "steady", &version.to_string(), score(version));
    }
    let settings = gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "20ms");
    let operator = settings.key_with(&["--name", "operator", "--scopes", "models:write"]);
    let gateway = settings.start();
    for version in 1..VERSIONS {
        wait_for("every version to be accepted", || {
            (state(&gateway, "steady", &version.to_string())["state"] == "accepted").then_some(())
        });
    }
    let (stop, gateway) = (AtomicBool::new(false), &gateway);
    let (asked, resident) = std::thread::scope(|scope| {
        let over = Stop(&stop);
        let stop = &stop;
        let clients: Vec<_> =
            (0..CLIENTS).map(|at| scope.spawn(move || load(gateway, at % 2 == 0, stop))).collect();
        let mut admin = Client::connect(gateway.admin_addr);
        let mut resident = 0;
        for swap in 1..=swaps {
            promote(&mut admin, &operator, swap % VERSIONS);
            until_served(gateway, "steady", &(swap % VERSIONS).to_string());
            if swap.is_multiple_of(settled) {
                println!("{} MiB resident after {swap} swaps", gateway.resident() >> 20);
            }
            if swap == settled {
                resident = gateway.resident();
            }
        }
        drop(over);
        let asked: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        (asked, resident)
    });
    assert!(asked > swaps, "there was no load: {asked} requests");
    let growth = gateway.resident() as f64 / resident as f64 - 1.0;
    println!("{swaps} swaps under {asked} requests; memory {:+.1} % since the {settled}th", growth * 100.0);
    // After few swaps the allocator still finds its feet.
    let allowed = if is_full() { 0.05 } else { 0.1 };
    assert!(growth < allowed, "{:.1} % more memory after {swaps} swaps than after {settled}", growth * 100.0);
    let loaded = || gateway.log().iter().filter(|line| line.contains("model loaded")).count();
    wait_for("the last swap in the log", || (loaded() > swaps).then_some(()));
    assert_eq!(loaded(), swaps + 1, "each was let go before its turn came again");
    // The version that answers, and the one before.
    let metrics = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let held = metrics.lines().filter(|line| line.starts_with("scoregate_model_loaded_timestamp_seconds{"));
    assert_eq!(held.count(), 2, "{metrics}");
}

#[test]
fn rollbacks_under_load_lose_no_request_though_what_is_taken_back_is_let_go() {
    const ROLLBACKS: usize = 10;
    let models = empty();
    for version in 0..2 {
        publish(models.path(), "steady", &version.to_string(), score(version));
    }
    let settings = gateway(models.path());
    let operator = settings.key_with(&["--name", "operator", "--scopes", "models:write"]);
    let gateway = settings.start();
    let wait_until = |expected: &str| {
        wait_for(&format!("version 1 to be {expected}"), || {
            (state(&gateway, "steady", "1")["state"] == expected).then_some(())
        });
    };
    wait_until("accepted");
    let (stop, gateway) = (AtomicBool::new(false), &gateway);
    let asked: usize = std::thread::scope(|scope| {
        let over = Stop(&stop);
        let stop = &stop;
        let clients: Vec<_> =
            (0..CLIENTS).map(|at| scope.spawn(move || load(gateway, at % 2 == 0, stop))).collect();
        let mut admin = Client::connect(gateway.admin_addr);
        for _ in 0..ROLLBACKS {
            promote(&mut admin, &operator, 1);
            wait_until("live");
            let request = Request::new("POST", "/v1/models/steady/rollback").header("X-Api-Key", &operator);
            assert_eq!(admin.ask(&request).status, 200);
            wait_until("accepted");
        }
        drop(over);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(asked > ROLLBACKS, "there was no load: {asked} requests");
    let loaded = || gateway.log().iter().filter(|line| line.contains("model loaded")).count();
    wait_for("the last one in the log", || (loaded() > ROLLBACKS).then_some(()));
    assert_eq!(loaded(), ROLLBACKS + 1, "what is taken back is let go, and what answers again is loaded");
}
