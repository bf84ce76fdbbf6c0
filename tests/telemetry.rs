//! What a gateway tells of itself, which are metrics and log lines for its operator, and nothing to anybody else: gateway and
//! trainer make no connection that was not configured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::authority::{Authority, Reply};
use crate::support::tokens::{AUDIENCE, Key, Mint, key_set};
use crate::support::world::bearer;
use crate::support::{
    Client, PREDICT, REFERENCE, Request, Settings, repository, scratch, trainer_binary, wait_for,
};

/// What makes `strace` write every network call and every opened file of a process and its threads to `trace`, as a
/// process beside the traced one, which stays our child.
pub(crate) fn strace(trace: &Path) -> Vec<String> {
    let found = Command::new("strace").arg("--version").output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "strace is missing: run `cargo xtask test`, which installs it"
    );
    let words = ["strace", "-D", "-f", "-e", "trace=%network,openat,open", "-o", trace.to_str().unwrap()];
    words.map(ToOwned::to_owned).to_vec()
}

/// The trace once the traced process has ended.
pub(crate) fn finished(trace: &Path) -> String {
    wait_for("the end of the trace", || {
        let text = std::fs::read_to_string(trace).unwrap_or_default();
        let first = text.split_whitespace().next()?.to_owned();
        text.lines().any(|line| line.starts_with(&first) && line.contains("+++ exited with")).then_some(text)
    })
}

/// Every line that would be a connection going out, or preparing one.
pub(crate) fn outbound(trace: &str) -> Vec<&str> {
    let is_outbound = |line: &&str| {
        let is_datagram = line.contains("socket(AF_INET") && !line.contains("SOCK_STREAM");
        let is_lookup =
            line.contains("/etc/resolv.conf") || line.contains("/etc/hosts") || line.contains("libnss");
        line.contains("connect(")
            || line.contains("sendto(AF_INET")
            || line.contains("sendmmsg(")
            || is_datagram
            || is_lookup
    };
    trace.lines().filter(is_outbound).collect()
}

pub(crate) fn trace_file(name: &str) -> PathBuf {
    scratch().join(format!("{name}.trace"))
}

#[test]
fn the_gateway_connects_to_nothing() {
    let trace = trace_file("gateway");
    let wrapper = strace(&trace);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let gateway = Settings::new()
        .set("PATH", "/usr/bin:/bin")
        .set("SCOREGATE_DRAIN_DELAY", "0s")
        .under(&wrapper)
        .start();
    for _ in 0..20 {
        assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
    }
    let batch = format!("[{}]", vec![REFERENCE; 5_000].join(","));
    assert_eq!(gateway.post("/v1/predict/batch", batch).status, 200);
    assert_eq!(gateway.get("/v1/metadata").status, 200);
    assert_eq!(gateway.ask(&Request::get("/health")).status, 200);
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.exit().code, Some(0));
    let trace = finished(&trace);
    // The trace saw the library and the listeners, so it would have seen a connection.
    assert!(trace.contains("libonnxruntime.so"), "the trace misses the library");
    assert_eq!(trace.matches("socket(AF_INET").count(), 2, "two listeners and nothing else");
    assert!(trace.contains("bind(") && trace.contains("accept4("), "the trace misses the listeners");
    assert_eq!(outbound(&trace), Vec::<&str>::new());
}

#[test]
fn the_trainer_connects_to_nothing() {
    let trace = trace_file("trainer");
    let wrapper = strace(&trace);
    let models = tempfile::tempdir_in(scratch()).unwrap();
    let output = Command::new(&wrapper[0])
        .args(&wrapper[1..])
        .arg(trainer_binary())
        .args(["fit", "--data"])
        .arg(&repository().churn_csv)
        .arg("--schema")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/churn.json"))
        .arg("--models-dir")
        .arg(models.path())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = finished(&trace);
    assert!(trace.contains("libonnxruntime.so"), "the trace misses the library");
    assert_eq!(trace.matches("socket(").count(), 0, "the trainer has no business with sockets");
    assert_eq!(outbound(&trace), Vec::<&str>::new());
}

/// A library in the place of ONNX Runtime that does nothing but tell what it sees in the environment when it is loaded.
const WITNESS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void witness(void) {
    const char *telemetry = getenv("ORT_DISABLE_TELEMETRY"), *config = getenv("ORT_LOAD_CONFIG_FROM_MODEL");
    fprintf(stderr, "ORT_DISABLE_TELEMETRY=%s ORT_LOAD_CONFIG_FROM_MODEL=%s\n",
            telemetry ? telemetry : "unset", config ? config : "unset");
}
"#;

#[test]
fn telemetry_is_off_in_the_environment_before_the_library_is_loaded() {
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    let (source, library) = (directory.path().join("witness.c"), directory.path().join("libwitness.so"));
    std::fs::write(&source, WITNESS).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(compiled.expect("cc is missing, with which cargo links as well").success());
    let settings = Settings::new()
        .set("ORT_DYLIB_PATH", library.to_str().unwrap())
        .set("ORT_DISABLE_TELEMETRY", "0")
        .set("ORT_LOAD_CONFIG_FROM_MODEL", "1");
    settings.key();
    let exit = settings.spawn().exit();
    assert!(exit.log.contains("ORT_DISABLE_TELEMETRY=1 ORT_LOAD_CONFIG_FROM_MODEL=unset"), "{}", exit.log);
    assert_eq!(exit.code, Some(1), "and a library that is not ONNX Runtime is refused: {}", exit.log);
}

#[test]
fn what_becomes_of_each_credential_is_counted_once_and_logged() {
    const ISSUER: &str = "https://login.example";
    let (authority, signer) = (Authority::start(), Key::p256("key"));
    authority.set("/keys", Reply::Json(key_set([signer.jwk()])));
    let settings = Settings::new()
        .set("SCOREGATE_JWT_ISSUER", ISSUER)
        .set("SCOREGATE_JWT_AUDIENCE", AUDIENCE)
        .set("SCOREGATE_JWT_JWKS", &format!("{}/keys", authority.url()));
    let reads = settings.key_with(&["--name", "reads", "--scopes", "models:read", "--models", "saas_churn"]);
    let gateway = settings.start();
    let post = || Request::post(PREDICT, REFERENCE);
    let get = |target: &str| Request::get(target).header("X-Api-Key", &reads);
    let mint = || Mint::new(&signer, ISSUER);
    let scope = |scope: &str| bearer(&mint().claim("scope", json!(scope)).token());
    let cases = [
        (gateway.with_key(post()), 200, "key", "accepted"),
        // Once past admission, what is wrong with the rest makes no difference.
        (gateway.with_key(Request::post(PREDICT, "{")), 400, "key", "accepted"),
        (gateway.with_key(Request::post("/v1/models/nobody/predict", "{}")), 404, "key", "accepted"),
        (get("/v1/models"), 200, "key", "accepted"),
        (post().header("X-Api-Key", &reads), 403, "key", "scope"),
        (get("/v1/metadata"), 403, "key", "model"),
        (get("/v1/models/churn/versions"), 403, "key", "model"),
        (post().header("X-Api-Key", "sg_wrong"), 401, "key", "key"),
        (bearer(&mint().token()), 200, "token", "accepted"),
        (bearer(&mint().claim("aud", json!("https://another.example")).token()), 401, "token", "audience"),
        (bearer("x.y.z"), 401, "token", "structure"),
        (scope("models:read"), 403, "token", "scope"),
        (scope("score:predict model:another"), 403, "token", "model"),
        (post(), 401, "none", "missing"),
        (post().header("Authorization", "Bearer "), 400, "none", "malformed"),
        (post().header("X-Api-Key", "a".repeat(9_000)), 431, "none", "too_large"),
    ];
    let mut expected = BTreeMap::new();
    for (at, (request, status, kind, outcome)) in cases.iter().enumerate() {
        let answer = gateway.ask(&request.clone().header("X-Request-Id", format!("case-{at}")));
        assert_eq!(answer.status, *status, "case {at}: {}", answer.text());
        *expected.entry(format!("{{kind=\"{kind}\",outcome=\"{outcome}\"}}")).or_insert(0_u64) += 1;
    }
    let metrics = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let counts = |name: &str| -> BTreeMap<String, u64> {
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        let counts = lines.map(|(labels, count)| (labels.to_owned(), count.parse().unwrap()));
        counts.filter(|(_, count)| *count > 0).collect()
    };
    assert_eq!(counts("scoregate_credentials_total"), expected);
    let fetches = format!("{{issuer=\"{ISSUER}\",outcome=\"ok\"}}");
    assert_eq!(counts("scoregate_key_set_fetches_total"), BTreeMap::from([(fetches, 1)]));
    assert!(metrics.lines().any(|line| line == "scoregate_log_lines_dropped_total 0"), "{metrics}");

    // Each refusal is a line with its reason, but for those of whoever passes by.
    let told = || -> BTreeMap<String, String> {
        let lines = gateway.log();
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let refusals = lines.filter(|line| line["message"] == "credential refused");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        refusals.map(|line| (text(&line["request_id"]), text(&line["reason"]))).collect()
    };
    let refused =
        cases.iter().enumerate().filter(|(_, (.., outcome))| !["accepted", "missing"].contains(outcome));
    let refused: BTreeMap<String, String> =
        refused.map(|(at, (.., outcome))| (format!("case-{at}"), (*outcome).to_owned())).collect();
    wait_for("the last refusal in the log", || told().contains_key("case-15").then_some(()));
    assert_eq!(told(), refused);
}
