//! Metrics: what is counted of requests, rows, features and models; how many series there can be; and that dashboards and alerts ask for
//! what is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{
    Client, Gateway, PREDICT, REFERENCE, Request, Settings, customer, repository, scratch, wait_for,
};

fn scrape(gateway: &Gateway) -> String {
    let accept = "application/openmetrics-text; version=1.0.0";
    let answer = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics").header("Accept", accept));
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    answer.text()
}

/// The value of a series, `name{labels}`.
fn value(document: &str, series: &str) -> f64 {
    let found = document.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let found = found.unwrap_or_else(|| panic!("no {series} in\n{document}"));
    found.split(' ').next().unwrap().parse().unwrap()
}

fn series(document: &str) -> usize {
    document.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn requests_rows_features_scores_and_models_are_counted() {
    let gateway = Settings::new().set("SCOREGATE_CACHE", "memory").start();
    for _ in 0..2 {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    }
    assert_eq!(gateway.post("/v1/predict?explain=full", REFERENCE).status, 200);
    // Of three rows one is refused, one has an unseen category and a number beyond the reference.
    let strange = customer(&[("country", "\"Atlantis\""), ("monthly_spend", "1e9")]);
    let batch = format!("[{REFERENCE},{strange},{{}}]");
    assert_eq!(gateway.post("/v1/models/churn/predict/batch", &batch).status, 200);
    assert_eq!(gateway.post(PREDICT, "{}").status, 422);
    assert_eq!(gateway.post("/v1/models/nobody/predict", REFERENCE).status, 404);
    assert_eq!(gateway.ask(&Request::get("/nowhere")).status, 404);
    let document = scrape(&gateway);
    let of = "model=\"churn\",version=\"2026-05-17_01\"";
    let duration = |route: &str, of: &str, cache: &str, class: &str| {
        let labels = format!("route=\"{route}\",{of},cache=\"{cache}\",status=\"{class}\"");
        value(&document, &format!("scoregate_request_duration_seconds_count{{{labels}}}"))
    };
    // What the cache had to do with an explanation is told in place of what it had to do with the score.
    assert_eq!((duration(PREDICT, of, "miss", "2xx"), duration(PREDICT, of, "hit", "2xx")), (2.0, 1.0));
    assert_eq!(duration(PREDICT, of, "none", "4xx"), 1.0);
    let stranger = "model=\"unknown\",version=\"\"";
    assert_eq!(duration("/v1/models/{model}/predict", stranger, "none", "4xx"), 1.0);
    assert_eq!(duration("unmatched", "model=\"\",version=\"\"", "none", "4xx"), 1.0);
    for (series, expected) in [
        (format!("scoregate_rows_total{{route=\"{PREDICT}\",{of},outcome=\"scored\"}}"), 3.0),
        (format!("scoregate_rows_total{{route=\"{PREDICT}\",{of},outcome=\"rejected\"}}"), 1.0),
        (
            format!(
                "scoregate_rows_total{{route=\"/v1/models/{{model}}/predict/batch\",{of},outcome=\"scored\"}}"
            ),
            2.0,
        ),
        (
            format!(
                "scoregate_rows_total{{route=\"/v1/models/{{model}}/predict/batch\",{of},outcome=\"rejected\"}}"
            ),
            1.0,
        ),
        (format!("scoregate_responses_total{{route=\"{PREDICT}\",status=\"200\",code=\"ok\"}}"), 3.0),
        (
            format!("scoregate_responses_total{{route=\"{PREDICT}\",status=\"422\",code=\"invalid_row\"}}"),
            1.0,
        ),
        ("scoregate_responses_total{route=\"unmatched\",status=\"404\",code=\"not_found\"}".into(), 1.0),
        (format!("scoregate_feature_findings_total{{{of},feature=\"country\",finding=\"unseen\"}}"), 1.0),
        (
            format!(
                "scoregate_feature_findings_total{{{of},feature=\"monthly_spend\",finding=\"out_of_range\"}}"
            ),
            1.0,
        ),
        (format!("scoregate_feature_findings_total{{{of},feature=\"country\",finding=\"missing\"}}"), 0.0),
        (format!("scoregate_score_count{{{of}}}"), 5.0),
        (format!("scoregate_explanation_seconds_count{{{of},method=\"linear\"}}"), 1.0),
        ("scoregate_model_versions{model=\"churn\",state=\"live\"}".into(), 1.0),
        (
            "scoregate_request_body_bytes_total".into(),
            (4 * REFERENCE.len() - REFERENCE.len() + 2 + batch.len()) as f64,
        ),
        ("scoregate_rows_in_hand{work=\"scoring\"}".into(), 0.0),
        ("scoregate_rows_in_hand_limit{work=\"scoring\"}".into(), 200_000.0),
        ("scoregate_rows_in_hand_limit{work=\"explaining\"}".into(), 50_000.0),
        ("scoregate_bytes_in_hand_limit".into(), 268_435_456.0),
        // The scrape itself.
        ("scoregate_requests_in_flight".into(), 1.0),
    ] {
        assert_eq!(value(&document, &series), expected, "{series}");
    }
    assert!(value(&document, &format!("scoregate_run_seconds_count{{{of}}}")) >= 1.0);
    assert!(value(&document, &format!("scoregate_model_load_seconds{{{of}}}")) > 0.0);
    let (resident, told) = (gateway.resident() as f64, value(&document, "process_resident_memory_bytes"));
    assert!((told / resident - 1.0).abs() < 0.2, "{told} of {resident}");
    assert!(value(&document, "process_cpu_seconds_total") > 0.0);
    assert!(value(&document, "process_open_fds") < value(&document, "process_max_fds"));
    let digest = gateway.get("/v1/metadata").json()["digest"].as_str().unwrap().to_owned();
    assert_eq!(value(&document, &format!("scoregate_model_info{{{of},digest=\"{digest}\"}}")), 1.0);
}

#[test]
fn a_client_that_leaves_is_counted() {
    let gateway = Gateway::start();
    let request = gateway.with_key(Request::post(PREDICT, REFERENCE));
    let mut client = gateway.connect();
    client.send(request.head());
    client.send(&REFERENCE[..10]);
    let series =
        format!("scoregate_responses_total{{route=\"{PREDICT}\",status=\"499\",code=\"client_left\"}} 1");
    wait_for("the request to be there", || {
        let in_flight = value(&scrape(&gateway), "scoregate_requests_in_flight");
        (in_flight == 2.0).then_some(())
    });
    drop(client);
    // What breaks off is told as such where the handler still hears of it.
    wait_for("the end of the request", || {
        let document = scrape(&gateway);
        let is_over = value(&document, "scoregate_requests_in_flight") == 1.0;
        let is_counted =
            document.lines().any(|line| line == series || line.contains("code=\"malformed_body\""));
        (is_over && is_counted).then_some(())
    });
}

#[test]
fn ten_thousand_made_up_names_make_no_series() {
    let gateway = Gateway::start();
    let mut client = gateway.connect();
    let key = gateway.key.clone();
    for at in 0..10_000_u32 {
        // A hash of its number, so that no two are alike.
        let name = format!("{:08x}", at.wrapping_mul(2_654_435_761));
        let target = match at % 4 {
            0 => format!("/v1/models/{name}/predict"),
            1 => format!("/v1/models/{name}"),
            2 => format!("/{name}"),
            _ => format!("/v1/models/churn/versions/{name}"),
        };
        let request = match at % 4 {
            0 => Request::post(&target, REFERENCE),
            2 => Request::new(if at % 8 == 2 { "GET" } else { "BREW" }, &target),
            _ => Request::get(&target),
        };
        assert_eq!(client.ask(&request.header("X-Api-Key", &key)).status, 404, "{target}");
    }
    let document = scrape(&gateway);
    assert!(series(&document) < 2_000, "{} series", series(&document));
    let total =
        value(&document, "scoregate_responses_total{route=\"unmatched\",status=\"404\",code=\"not_found\"}");
    assert_eq!(total, 2_500.0);
}

#[test]
fn a_version_that_answers_no_more_is_told_of_no_more() {
    let models = repository().copy_of("churn");
    let gateway = Settings::new().models(models.0.path()).start();
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/churn.json");
    let fitted = Command::new(crate::support::trainer_binary())
        .args(["fit", "--schema", schema, "--version", "second"])
        .arg("--data")
        .arg(&repository().churn_csv)
        .arg("--models-dir")
        .arg(models.0.path())
        .env_clear()
        .output()
        .unwrap();
    assert!(fitted.status.success(), "{}", String::from_utf8_lossy(&fitted.stderr));
    let promoted = gateway.settings.run(&["models", "promote", "churn@second"]);
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    wait_for("the second version", || {
        let answer = gateway.post(PREDICT, REFERENCE);
        (answer.json()["model_version"] == "second").then_some(())
    });
    let document = scrape(&gateway);
    assert!(document.contains("version=\"second\""));
    let stale: Vec<&str> = document.lines().filter(|line| line.contains("2026-05-17_01")).collect();
    assert_eq!(stale, Vec::<&str>::new());
}

/// Names of metrics in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    let words = expression.split(|character| !is_part(character));
    words
        .filter(|word| ["scoregate_", "scoregate:", "process_"].iter().any(|prefix| word.starts_with(prefix)))
        .map(Into::into)
        .collect()
}

/// What the dashboard and the rules ask for.
fn queries() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dashboard = std::fs::read(root.join("deploy/grafana/scoregate.json")).unwrap();
    let dashboard: Value = serde_json::from_slice(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut queries: Vec<String> = targets.map(|target| target["expr"].as_str().unwrap().into()).collect();
    assert!(queries.len() > 20, "{queries:?}");
    let rules = std::fs::read_to_string(root.join("deploy/prometheus/rules.yml")).unwrap();
    let (mut found, mut folded) = (Vec::new(), false);
    for line in rules.lines() {
        let text = line.trim();
        if let Some(expression) = text.strip_prefix("expr: ") {
            folded = expression == ">-";
            found.push(expression.replace(">-", ""));
        } else if folded && !text.starts_with("for:") && !text.starts_with('-') {
            found.last_mut().unwrap().push_str(text);
        } else {
            folded = false;
        }
    }
    assert!(found.len() > 15, "{found:?}");
    queries.extend(found);
    queries
}

#[test]
fn dashboards_and_alerts_ask_for_what_is_there() {
    let settings = Settings::new().set("SCOREGATE_CACHE", "memory").set("SCOREGATE_QUOTA", "1000/min");
    let gateway = settings.start();
    assert_eq!(gateway.post("/v1/predict?explain=true", REFERENCE).status, 200);
    let document = scrape(&gateway);
    let known: BTreeSet<&str> = document
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect();
    // Families whose first series comes with the first of what they count.
    let declared: BTreeSet<String> = document
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.into() })
        .collect();
    let rules =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/rules.yml"));
    let rules = rules.unwrap();
    let recorded: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let mut asked = 0;
    for query in queries() {
        for name in names(&query) {
            asked += 1;
            let is_known = known.contains(&*name) || declared.contains(&name) || recorded.contains(&*name);
            assert!(is_known, "{name} of {query} is no metric");
        }
    }
    assert!(asked > 40, "{asked}");
}

#[test]
fn prometheus_takes_the_rules_and_what_is_scraped() {
    let promtool = |arguments: &[&str], input: Option<&str>| {
        let mut command = Command::new("promtool");
        command.args(arguments);
        if let Some(input) = input {
            let file = scratch().join("metrics.txt");
            std::fs::write(&file, input).unwrap();
            command.stdin(std::fs::File::open(file).unwrap());
        }
        let output = command.output().expect("promtool (`cargo xtask test` installs it) starts");
        let told = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&told).into_owned())
    };
    let root = env!("CARGO_MANIFEST_DIR");
    for (kind, file) in [("rules", "rules.yml"), ("config", "prometheus.yml")] {
        let (code, told) = promtool(&["check", kind, &format!("{root}/deploy/prometheus/{file}")], None);
        assert_eq!(code, Some(0), "{told}");
    }
    let test = format!("{root}/tests/data/alerts.yml");
    let (code, told) = promtool(&["test", "rules", &test], None);
    assert_eq!(code, Some(0), "{told}");
    let gateway = Gateway::start();
    assert_eq!(gateway.post("/v1/predict?explain=true", REFERENCE).status, 200);
    let older = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics"));
    assert_eq!(older.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let (code, told) = promtool(&["check", "metrics"], Some(&older.text()));
    assert_eq!(code, Some(0), "{told}");
}
