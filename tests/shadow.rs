//! What is scored beside the answers: its numbers are those of numpy, and the answers are what they were.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use scoregate_schemas::manifest::Output;
use serde_json::{Value, json};

use crate::support::constant::number;
use crate::support::graph::{FLOAT, Handmade, share_model};
use crate::support::{Answer, Client, Gateway, Request, Settings, is_full, pause, python, scratch, wait_for};

const COMPARISONS: &str = "/v1/monitoring/comparisons";
const PREDICT: &str = "/v1/models/duel/predict";
const BATCH: &str = "/v1/models/duel/predict/batch";

/// The edges of the reference between which features and scores are counted.
const EDGES: [f64; 4] = [-0.5, 0.0, 0.25, 0.5];
const SCORE_EDGES: [f64; 4] = [0.3, 0.45, 0.55, 0.7];

/// How a version of `duel` scores a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// `sigmoid(a + b)`
    Sum,
    /// `sigmoid(a + b + 1/12)`: a little other, as one that was trained again.
    Shifted,
    /// `sigmoid(a + a b)`
    Tilted,
    /// `sigmoid(-(a + b))`
    Opposite,
    /// `a / b`, which is no probability of some rows.
    Ratio,
}

/// A version of a model whose rows are about somebody.
pub(crate) fn duel(version: &str, way: Way) -> Handmade {
    let sigmoid = |margin: f64| 1.0 / (1.0 + (-margin).exp());
    let (a, b) = (0.25, 0.5);
    let model = Handmade::new("duel", &["a", "b"]).version(version).labels(&["no", "yes"]).entity("who");
    let (model, expected) = match way {
        Way::Sum => (model.node("Add", &["a", "b"], "margin", Vec::new()), sigmoid(a + b)),
        Way::Shifted => {
            let by = 1.0 / 12.0;
            let model = model.node("Constant", &[], "shift", vec![number(by)]);
            let model = model.node("Add", &["a", "b"], "sum", Vec::new());
            (model.node("Add", &["sum", "shift"], "margin", Vec::new()), sigmoid(a + b + f64::from(by)))
        }
        Way::Tilted => {
            let model = model.node("Mul", &["a", "b"], "product", Vec::new());
            (model.node("Add", &["a", "product"], "margin", Vec::new()), sigmoid(a + a * b))
        }
        Way::Opposite => {
            let model = model.node("Add", &["a", "b"], "sum", Vec::new());
            (model.node("Neg", &["sum"], "margin", Vec::new()), sigmoid(-(a + b)))
        }
        Way::Ratio => (model.node("Div", &["a", "b"], "score", Vec::new()), a / b),
    };
    let model = match way {
        Way::Ratio => model,
        _ => model.node("Sigmoid", &["margin"], "score", Vec::new()),
    };
    let bins = |edges: &[f64]| json!({"edges": edges, "counts": vec![10; edges.len() + 1]});
    let feature = |name: &str| {
        let mut feature = json!({"name": name, "missing": 0, "kind": "numeric"});
        feature.as_object_mut().unwrap().extend(bins(&EDGES).as_object().unwrap().clone());
        feature
    };
    model
        .output("score", FLOAT)
        .golden(json!({"a": a, "b": b}), json!(expected))
        .reference("format", json!(1))
        .reference("rows", json!(50))
        .reference("features", json!([feature("a"), feature("b")]))
        .reference("score", bins(&SCORE_EDGES))
        .reference("background", json!([]))
}

pub(crate) fn publish(models: &Path, version: &str, way: Way) {
    duel(version, way).publish(models, score());
}

fn score() -> Output {
    Output::Probabilities { name: "score".into(), classes: 1, positive: 0 }
}

pub(crate) fn empty() -> tempfile::TempDir {
    tempfile::tempdir_in(scratch()).unwrap()
}

/// A gateway over `models` whose caller may do everything, with this settings file.
pub(crate) fn start(models: &Path, file: &str, environment: &[(&str, &str)]) -> Gateway {
    start_under(&[], models, file, environment)
}

/// The same, under another program.
pub(crate) fn start_under(
    wrapper: &[&str],
    models: &Path,
    file: &str,
    environment: &[(&str, &str)],
) -> Gateway {
    let mut settings = Settings::new()
        .under(wrapper)
        .models(models)
        .set("SCOREGATE_STATE_DIR", "state")
        .set("SCOREGATE_DEFAULT_MODEL", "duel")
        .set("SCOREGATE_CACHE", "off")
        .set("SCOREGATE_QUOTA", "off");
    for (name, value) in environment {
        settings = settings.set(name, value);
    }
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let scopes = "score:predict,models:read,models:write,monitoring:read";
    let key = settings.key_with(&["--name", "ops", "--scopes", scopes]);
    settings.start_with(&key)
}

/// Asks the admin listener with the key.
pub(crate) fn admin(gateway: &Gateway, request: Request) -> Answer {
    Client::connect(gateway.admin_addr).ask(&gateway.with_key(request))
}

/// Changes the rollout at `target`; the answer.
pub(crate) fn change(gateway: &Gateway, target: &str, rollout: &Value) -> Value {
    let body = rollout.to_string();
    let put = Request::new("PUT", target)
        .header("Content-Type", "application/json")
        .header("Content-Length", body.len().to_string())
        .body(body);
    let answer = admin(gateway, put);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Changes the rollout of a model, and waits until this gateway has done so.
pub(crate) fn roll_out(gateway: &Gateway, model: &str, rollout: &Value) {
    let target = format!("/v1/models/{model}/rollout");
    change(gateway, &target, rollout);
    wait_for("the rollout", || {
        let found = gateway.get(&target).json();
        let versions = found["versions"].as_array()?;
        let is_loaded = |version: &Value| version["state"] == version["role"];
        versions.iter().all(is_loaded).then_some(())
    });
}

/// What is known of a pair of versions, once so many rows were seen of it.
pub(crate) fn comparison(gateway: &Gateway, model: &str, version: &str, rows: u64) -> Value {
    wait_for(&format!("{rows} rows of {model} {version}"), || {
        let answer = admin(gateway, Request::get(&format!("{COMPARISONS}?model={model}")));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let found = answer.json();
        let pairs = found["comparisons"].as_array().unwrap();
        let pair = pairs.iter().find(|pair| pair["version"] == version)?;
        let refused = pair["refused"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>();
        let seen = pair["rows"].as_u64().unwrap() + pair["failed"].as_u64().unwrap() + refused;
        (seen == rows).then(|| pair.clone())
    })
}

/// The features of row `at`, of the same every time.
fn features(at: u32) -> [f64; 2] {
    let [a, b] = [at * 37 % 200, at * 91 % 171];
    [f64::from(a) / 100.0 - 1.0, f64::from(b) / 85.0 - 1.0]
}

fn row(at: u32) -> Value {
    let [a, b] = features(at);
    json!({"a": a, "b": b, "who": format!("customer-{at}")})
}

/// Rows in every form that a body can have.
fn bodies() -> Vec<(&'static str, &'static str, String)> {
    let lines = |rows: std::ops::Range<u32>| rows.map(|at| format!("{}\n", row(at))).collect::<String>();
    let records = (600..900).map(|at| {
        let [a, b] = features(at);
        format!("customer-{at},{b},{a}\n")
    });
    let csv = format!("who,b,a\n{}", records.collect::<String>());
    let list: Vec<Value> = (0..300).map(row).collect();
    let mut bodies = vec![
        (BATCH, "application/json", json!({ "rows": list }).to_string()),
        (BATCH, "application/x-ndjson", lines(300..600)),
        (BATCH, "text/csv", csv),
    ];
    bodies.extend((900..1_000).map(|at| (PREDICT, "application/json", row(at).to_string())));
    bodies
}

/// The scores of all rows, in order, as one version answers them: the one that is named, or with an empty name whichever does.
fn scores(gateway: &Gateway, version: &str) -> Vec<f64> {
    let mut scores = Vec::new();
    let mut client = gateway.connect();
    for (target, media_type, body) in bodies() {
        let request = Request::post(target, body).content_type(media_type);
        let request = if version.is_empty() { request } else { request.header("X-Model-Version", version) };
        let answer = client.ask(&gateway.with_key(request));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        let values: Vec<Value> = match (target, media_type) {
            (PREDICT, _) => vec![answer.json()],
            (_, "application/x-ndjson") => {
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
            }
            _ => answer.json()["predictions"].as_array().unwrap().clone(),
        };
        scores.extend(values.iter().map(|value| value["duel_probability"].as_f64().unwrap()));
    }
    assert_eq!(scores.len(), 1_000);
    scores
}

/// The same numbers by numpy.
fn by_numpy(live: &[f64], other: &[f64]) -> Value {
    let rows: Vec<[f64; 2]> = (0..1_000).map(features).collect();
    let question =
        json!({"live": live, "other": other, "rows": rows, "edges": EDGES, "score_edges": SCORE_EDGES});
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/comparison.py");
    let mut child = Command::new(python())
        .arg("-B")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(question.to_string().as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Compares numbers by name.
fn check(found: &Value, expected: &Value, tolerance: f64) {
    for (name, expected) in expected.as_object().unwrap() {
        let (found, expected) = (found[name].as_f64().unwrap(), expected.as_f64().unwrap());
        assert!((found - expected).abs() <= tolerance, "{name}: {found}, expected {expected}");
    }
}

#[test]
fn the_numbers_of_a_shadow_are_numpys() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Tilted);
    let gateway = start(models.path(), "", &[]);
    roll_out(&gateway, "duel", &json!({"live": "1", "shadow": "2"}));
    // Whoever pins the shadow is answered by it, and that is compared with nothing.
    let other = scores(&gateway, "2");
    let live = scores(&gateway, "stable");
    let found = comparison(&gateway, "duel", "2", 1_000);
    assert_eq!(
        (&found["role"], &found["live"], &found["refused"]),
        (&json!("shadow"), &json!("1"), &json!({}))
    );
    let expected = by_numpy(&live, &other);
    // Answers have the digits of a float32; so does numpy's question.
    check(&found, &expected["scores"], 1e-6);
    check(&found["flips"], &expected["flips"], 0.0);
    let told = found["features"].as_array().unwrap();
    assert_eq!(told.len(), 2);
    for feature in told {
        let expected = &expected["features"][feature["name"].as_str().unwrap()];
        check(feature, &json!({"share": expected["share"]}), 1e-5);
        assert_eq!(feature["worst"]["values"], json!({"bin": {"number": expected["bin"], "of": 5}}));
        assert_eq!(feature["worst"]["rows"], expected["rows"]);
    }
    let times = &found["run_seconds_per_row"];
    assert!(times["runs"].as_u64().unwrap() > 0, "{times}");
    for side in ["live", "version"] {
        let [half, most] = ["p50", "p99"].map(|name| times[side][name].as_f64().unwrap());
        assert!(half > 0.0 && half <= most && most < 1.0, "{times}");
    }
    assert!(!found.to_string().contains("customer"), "no value of a row is told: {found}");
    let metrics = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let line = "scoregate_shadow_rows_total{model=\"duel\",version=\"2\",outcome=\"scored\"} 1000";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn what_a_canary_answers_is_compared_with_the_live_version() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Tilted);
    let gateway = start(models.path(), "[guard]\nmode = \"off\"\n", &[]);
    let canary = |percent: f64| json!({"live": "1", "canaries": [{"version": "2", "percent": percent}]});
    roll_out(&gateway, "duel", &canary(100.0));
    // What testers ask is no sample of what it is sent.
    scores(&gateway, "canary");
    let other = scores(&gateway, "");
    let found = comparison(&gateway, "duel", "2", 1_000);
    assert_eq!(found["role"], "canary");
    let live = scores(&gateway, "stable");
    check(&found, &by_numpy(&live, &other)["scores"], 1e-6);
    // Another share begins anew.
    roll_out(&gateway, "duel", &canary(50.0));
    let some: String = (0..200).map(|at| format!("{}\n", row(at))).collect();
    let request = Request::post(BATCH, some).content_type("application/x-ndjson");
    let answer = gateway.ask(&gateway.with_key(request)).text();
    let by_canary = answer.lines().filter(|line| line.contains("\"model_version\":\"2\"")).count() as u64;
    assert!((50..150).contains(&by_canary), "{by_canary}");
    let again = comparison(&gateway, "duel", "2", by_canary);
    assert_ne!(again["since"], found["since"]);
}

#[test]
fn a_rollout_that_is_written_by_hand_is_compared_too() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Tilted);
    let gateway = start(models.path(), "[guard]\nmode = \"off\"\n", &[]);
    let rows = |count| Value::Array((0..count).map(row).collect()).to_string();
    let canary = |percent: f64| json!({"live": "1", "canaries": [{"version": "2", "percent": percent}]});
    roll_out(&gateway, "duel", &canary(50.0));
    roll_out(&gateway, "duel", &canary(100.0));
    assert_eq!(gateway.post(BATCH, rows(100)).status, 200);
    comparison(&gateway, "duel", "2", 100);
    // It has no revision, which is less than any other, and does not say since when.
    for (percent, count) in [(99.99, 200), (100.0, 300)] {
        fs::write(models.path().join("duel/rollout.json"), canary(percent).to_string()).unwrap();
        wait_for("the gateway to follow", || {
            let found = gateway.get("/v1/models/duel/rollout").json();
            (found["canaries"][0]["percent"] == percent).then_some(())
        });
        wait_for("what was compared before to be forgotten", || {
            let request = gateway.with_key(Request::get(COMPARISONS));
            let found = Client::connect(gateway.admin_addr).ask(&request).json();
            found["comparisons"].as_array().unwrap().is_empty().then_some(())
        });
        let answer = gateway.post(BATCH, rows(count));
        let others = answer.text().matches("\"model_version\":\"1\"").count() as u64;
        comparison(&gateway, "duel", "2", u64::from(count) - others);
    }
}

#[test]
fn rows_that_a_shadow_does_not_take_are_counted_by_why() {
    let models = empty();
    // The live version takes rows without `b`, and calls a third feature its own.
    let live = Handmade::new("duel", &["a", "b", "c"])
        .version("1")
        .labels(&["no", "yes"])
        .optional("b")
        .optional("c")
        .node("Sigmoid", &["a"], "score", Vec::new())
        .output("score", FLOAT)
        .golden(json!({"a": 0.0}), json!(0.5));
    live.publish(models.path(), score());
    publish(models.path(), "2", Way::Sum);
    let gateway = start(models.path(), "", &[]);
    roll_out(&gateway, "duel", &json!({"live": "1", "shadow": "2"}));
    let both = json!([{"a": 1, "b": 1}, {"a": 1}, {"a": 1, "b": 1, "c": 1}, {"x": 1}, {"a": 1, "b": null}]);
    assert_eq!(gateway.post(BATCH, both.to_string()).status, 200);
    assert_eq!(gateway.post(PREDICT, r#"{"a":1,"b":2,"c":3}"#).status, 200);
    assert_eq!(gateway.post(PREDICT, r#"{"a":1}"#).status, 200);
    // A header that the shadow does not know refuses each record.
    let csv = gateway.with_key(Request::post(BATCH, "a,b,c\n1,1,1\n1,1,\n").content_type("text/csv"));
    assert_eq!(gateway.ask(&csv).status, 200);
    let found = comparison(&gateway, "duel", "2", 8);
    assert_eq!((found["rows"].as_u64(), found["failed"].as_u64()), (Some(1), Some(0)), "{found}");
    assert_eq!(found["refused"], json!({"unknown_field": 4, "required": 3}), "{found}");
}

#[test]
fn a_shadow_that_fails_fails_no_answer() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Ratio);
    let gateway = start(models.path(), "", &[]);
    roll_out(&gateway, "duel", &json!({"live": "1", "shadow": "2"}));
    // Two is no probability, and neither is infinity. They fail alone, though they are run with others.
    for b in ["0.5", "0", "2"] {
        let answer = gateway.post(PREDICT, format!("{{\"a\":1,\"b\":{b}}}"));
        assert_eq!((answer.status, &answer.json()["model_version"]), (200, &json!("1")));
    }
    let rows =
        json!([{"a": 1, "b": 4}, {"a": 1, "b": 0}, {"a": 1, "b": 2}, {"a": 1, "b": 8}, {"a": 3, "b": 1}]);
    assert_eq!(gateway.post(BATCH, rows.to_string()).status, 200);
    let found = comparison(&gateway, "duel", "2", 8);
    assert_eq!((found["rows"].as_u64(), found["failed"].as_u64()), (Some(4), Some(4)), "{found}");
}

#[test]
fn a_sample_of_the_requests_is_compared() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Tilted);
    let gateway = start(models.path(), "", &[("SCOREGATE_SHADOW_SAMPLE", "0.25")]);
    roll_out(&gateway, "duel", &json!({"live": "1", "shadow": "2"}));
    let mut client = gateway.connect();
    for at in 0..800 {
        let answer = client.ask(&gateway.with_key(Request::post(PREDICT, row(at).to_string())));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let mut before = 0;
    let compared = wait_for("the last of them", || {
        pause(Duration::from_millis(500));
        let found = admin(&gateway, Request::get(COMPARISONS)).json()["comparisons"][0]["rows"].as_u64()?;
        (std::mem::replace(&mut before, found) == found).then_some(found)
    });
    // Five standard deviations of 800 draws.
    assert!((139..=261).contains(&compared), "{compared} of 800");
}

#[test]
fn comparisons_are_for_those_who_may_see_them() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Tilted);
    let gateway = start(models.path(), "", &[]);
    roll_out(&gateway, "duel", &json!({"live": "1", "shadow": "2"}));
    assert_eq!(gateway.post(PREDICT, row(1).to_string()).status, 200);
    comparison(&gateway, "duel", "2", 1);
    let other =
        gateway.settings.key_with(&["--name", "other", "--scopes", "monitoring:read", "--models", "else"]);
    let reader = gateway.settings.key_with(&["--name", "reader", "--scopes", "models:read"]);
    let ask = |key: &str, query: &str| {
        let request = Request::get(&format!("{COMPARISONS}{query}")).header("X-Api-Key", key);
        Client::connect(gateway.admin_addr).ask(&request)
    };
    wait_for("the keys", || (ask(&other, "").status == 200).then_some(()));
    assert_eq!(ask(&other, "").json()["comparisons"], json!([]));
    for (key, query, status, code) in [
        (&other, "?model=duel", 403, "model_not_allowed"),
        (&reader, "", 403, "insufficient_scope"),
        (&gateway.key, "?model=nothing", 404, "unknown_model"),
        (&gateway.key, "?model=", 400, "invalid_parameter"),
        (&gateway.key, "?modell=duel", 400, "invalid_parameter"),
        (&gateway.key, "?model=duel&model=duel", 400, "invalid_parameter"),
    ] {
        let answer = ask(key, query);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{query}");
    }
    assert_eq!(ask(&gateway.key, "").json()["comparisons"].as_array().unwrap().len(), 1);
    assert_eq!(gateway.get(COMPARISONS).code(), "not_found", "the public listener has nothing of it");
    // What is not compared any more is not told any more.
    roll_out(&gateway, "duel", &json!({"live": "1"}));
    wait_for("nothing to be compared", || {
        ask(&gateway.key, "").json()["comparisons"].as_array().unwrap().is_empty().then_some(())
    });
}

/// How long each of so many requests on one connection takes that this version answers, sorted.
fn times(gateway: &Gateway, version: &str, count: usize) -> Vec<Duration> {
    let mut client = gateway.connect();
    let request = Request::post("/v1/models/share/predict", r#"{"top":1,"bottom":4}"#);
    let request = gateway.with_key(request.header("X-Model-Version", version));
    let ask = |_| {
        let begin = Instant::now();
        let answer = client.ask(&request);
        assert_eq!((answer.status, &answer.json()["model_version"]), (200, &json!(version)));
        begin.elapsed()
    };
    let mut times: Vec<Duration> = (0..count).map(ask).collect();
    times.sort();
    times
}

#[test]
fn a_slow_shadow_delays_nobody_and_is_what_is_dropped() {
    let models = empty();
    for (version, layers) in [("1", 0), ("2", 60)] {
        let (model, output) = share_model(version, false, layers);
        model.publish(models.path(), output);
    }
    // Room for some rows.
    let gateway = start(models.path(), "", &[("SCOREGATE_SHADOW_QUEUE_BYTES", "20000")]);
    let count = if is_full() { 20_000 } else { 2_000 };
    let before = times(&gateway, "1", count);
    roll_out(&gateway, "share", &json!({"live": "1", "shadow": "2"}));
    let waited = times(&gateway, "2", 50);
    let beside = times(&gateway, "1", count);
    let metric = |outcome: &str| {
        let metrics = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
        let name =
            format!("scoregate_shadow_rows_total{{model=\"share\",version=\"2\",outcome=\"{outcome}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or(0)
    };
    let scored = wait_for("what waits", || {
        let (scored, dropped) = (metric("scored"), metric("dropped"));
        (scored + dropped == count as u64).then_some(scored)
    });
    assert!(scored > 0 && scored < count as u64, "{scored} of {count} were scored");
    let at = |times: &[Duration], share: usize| times[times.len() * share / 1_000];
    let [before_50, beside_50, waited_50] = [&before, &beside, &waited].map(|times| at(times, 500));
    let (before_99, beside_99) = (at(&before, 990), at(&beside, 990));
    println!(
        "p50 {before_50:?} → {beside_50:?}, p99 {before_99:?} → {beside_99:?}; whoever asks the shadow waits {waited_50:?}"
    );
    // All other tests run on the same processors: medians tell whether anybody waits for the shadow.
    let limit = before_50 + waited_50 / 2;
    assert!(beside_50 < limit, "{beside_50:?}, expected {limit:?}");
    if is_full() {
        let limit = before_99 * 2 + Duration::from_millis(1);
        assert!(beside_99 < limit, "{beside_99:?}, expected {limit:?}");
    }
}
