//! Metrics: what is counted of requests, rows, features and models; how many series there can be; and that dashboards and alerts ask for
//! what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use scoregate_model::package::Repository;
use scoregate_schemas::Rollout;
use scoregate_schemas::manifest::Output;
use serde_json::{Value, json};

use crate::support::constant;
use crate::support::graph::{FLOAT, Handmade};
use crate::support::tls::{Authority, connect};
use crate::support::{
    Client, Gateway, PATIENCE, PREDICT, REFERENCE, Request, Settings, customer, repository, scratch,
    wait_for, wait_within,
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
    let before = scrape(&gateway);
    for (code, status) in
        [("internal", 500), ("model_output_invalid", 500), ("overloaded", 503), ("deadline", 504)]
    {
        let series =
            format!("scoregate_responses_total{{route=\"{PREDICT}\",status=\"{status}\",code=\"{code}\"}}");
        assert_eq!(value(&before, &series), 0.0, "the first of them is one more than before");
    }
    for _ in 0..2 {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    }
    for _ in 0..2 {
        assert_eq!(gateway.post("/v1/predict?explain=full", REFERENCE).status, 200);
    }
    // Of three rows one is refused, one has an unseen category and a number beyond the reference.
    let strange = customer(&[("country", "\"Atlantis\""), ("monthly_spend", "1e9")]);
    let batch = format!("[{REFERENCE},{strange},{{}}]");
    assert_eq!(gateway.post("/v1/models/churn/predict/batch", &batch).status, 200);
    assert_eq!(gateway.post(PREDICT, "{}").status, 422);
    assert_eq!(gateway.post("/v1/models/nobody/predict", REFERENCE).status, 404);
    assert_eq!(gateway.ask(&Request::get("/nowhere")).status, 404);
    let document = scrape(&gateway);
    let of = "model=\"churn\",version=\"2026-05-17_01\"";
    let duration = |route: &str, of: &str, cache: &str, explained: &str, class: &str| {
        let labels =
            format!("route=\"{route}\",{of},cache=\"{cache}\",explained=\"{explained}\",status=\"{class}\"");
        value(&document, &format!("scoregate_request_duration_seconds_count{{{labels}}}"))
    };
    // What the cache had to do with an explanation is told in place of what it had to do with the score.
    for explained in ["no", "yes"] {
        for cache in ["miss", "hit"] {
            assert_eq!(duration(PREDICT, of, cache, explained, "2xx"), 1.0, "{cache} {explained}");
        }
    }
    assert_eq!(duration(PREDICT, of, "none", "no", "4xx"), 1.0);
    // No model can be called so.
    let stranger = "model=\"(unknown)\",version=\"\"";
    assert_eq!(duration("/v1/models/{model}/predict", stranger, "none", "no", "4xx"), 1.0);
    assert_eq!(duration("unmatched", "model=\"\",version=\"\"", "none", "no", "4xx"), 1.0);
    for (series, expected) in [
        (format!("scoregate_rows_total{{route=\"{PREDICT}\",{of},outcome=\"scored\"}}"), 4.0),
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
        (format!("scoregate_responses_total{{route=\"{PREDICT}\",status=\"200\",code=\"ok\"}}"), 4.0),
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
        (format!("scoregate_score_count{{{of}}}"), 6.0),
        // What was found in the cache took no explaining.
        (format!("scoregate_explanation_seconds_count{{{of},method=\"linear\"}}"), 1.0),
        ("scoregate_model_versions{model=\"churn\",state=\"live\"}".into(), 1.0),
        ("scoregate_request_body_bytes_total".into(), (4 * REFERENCE.len() + 2 + batch.len()) as f64),
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
    let left = |route: &str| {
        let series =
            format!("scoregate_responses_total{{route=\"{route}\",status=\"499\",code=\"client_left\"}} ");
        let document = scrape(&gateway);
        document.lines().find_map(|line| line.strip_prefix(&series)).map(ToOwned::to_owned)
    };
    let in_flight =
        |count: f64| (value(&scrape(&gateway), "scoregate_requests_in_flight") == count).then_some(());
    // In the middle of its body, politely and not.
    let request = gateway.with_key(Request::post(PREDICT, REFERENCE));
    for (at, politely) in [(1, true), (2, false)] {
        let mut client = gateway.connect();
        client.send(request.head());
        client.send(&REFERENCE[..10]);
        wait_for("the request to be there", || in_flight(2.0));
        if politely {
            client.finish_sending();
        }
        drop(client);
        wait_for("the end of the request", || (left(PREDICT)? == at.to_string()).then_some(()));
    }
    // While it is worked for.
    const BATCH: &str = "/v1/predict/batch";
    let rows = vec![customer(&[("country", "\"Atlantis\"")]); 50_000].join(",");
    let request = gateway.with_key(Request::post(BATCH, format!("[{rows}]")));
    let mut client = gateway.connect();
    client.send(request.bytes());
    wait_for("the request to be there", || in_flight(2.0));
    drop(client);
    wait_for("the end of the request", || (left(BATCH)? == "1").then_some(()));
    wait_for("the end of its work", || in_flight(1.0));
    let document = scrape(&gateway);
    assert!(!document.contains("malformed_body\"} 1"), "{document}");
    // Its rows were looked at, and not scored.
    let of = "model=\"churn\",version=\"2026-05-17_01\"";
    let unseen = format!("scoregate_feature_findings_total{{{of},feature=\"country\",finding=\"unseen\"}}");
    assert_eq!(value(&document, &unseen), 0.0);
}

#[test]
fn findings_are_counted_of_rows_that_are_scored() {
    let gateway = Settings::new().set("SCOREGATE_QUOTA", "100/min").start();
    let strange = customer(&[("country", "\"Atlantis\"")]);
    let batch = format!("[{}]", vec![strange; 90].join(","));
    let mut client = gateway.connect();
    let statuses =
        [(); 4].map(|()| client.ask(&gateway.with_key(Request::post("/v1/predict/batch", &batch))).status);
    assert_eq!(statuses, [200, 429, 429, 429]);
    let document = scrape(&gateway);
    let of = "model=\"churn\",version=\"2026-05-17_01\"";
    let unseen = format!("scoregate_feature_findings_total{{{of},feature=\"country\",finding=\"unseen\"}}");
    let scored = format!("scoregate_rows_total{{route=\"/v1/predict/batch\",{of},outcome=\"scored\"}}");
    assert_eq!((value(&document, &unseen), value(&document, &scored)), (90.0, 90.0));
}

#[test]
fn values_are_counted_between_the_deciles_of_the_reference() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    Handmade::numbers("price", 1)
        .output("numbers", FLOAT)
        .reference("score", json!({"edges": [1.0, 2.5, 4.0], "counts": [1, 1, 1, 1]}))
        .publish(models.path(), Output::Value { name: "numbers".into() });
    let gateway = Settings::new()
        .models(models.path())
        .set("SCOREGATE_STATE_DIR", "state")
        .set("SCOREGATE_DEFAULT_MODEL", "price")
        .start();
    for price in ["2.5", "2.75", "100"] {
        assert_eq!(gateway.post(PREDICT, format!("{{\"a\":{price},\"scale\":1}}")).status, 200);
    }
    let document = scrape(&gateway);
    for (bound, count) in [("1.0", 0.0), ("2.5", 1.0), ("4.0", 2.0), ("+Inf", 3.0)] {
        let series = format!("scoregate_value_bucket{{le=\"{bound}\",model=\"price\",version=\"1\"}}");
        assert_eq!(value(&document, &series), count, "{bound}");
    }
    assert!(!document.contains("scoregate_score_count{"), "they are no probabilities");
}

#[test]
fn connections_are_counted_by_how_they_ended() {
    let authority = Authority::new("ca");
    let gateway = Settings::new().set("SCOREGATE_BODY_TIMEOUT", "1s").tls(&authority.server()).start();
    let trusted = authority.trusted(None);
    let count = |outcome: &str| {
        let document = connect(gateway.admin_addr, &trusted).ask(&Request::get("/metrics")).text();
        value(&document, &format!("scoregate_connections_total{{outcome=\"{outcome}\"}}"))
    };
    for outcome in ["framing", "tls", "timeout"] {
        assert_eq!(count(outcome), 0.0, "{outcome}");
    }
    let mut twice = connect(gateway.addr, &trusted);
    twice.send("GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eq!(twice.answers_until_close()[0].status, 400);
    wait_for("what is no request", || (count("framing") == 1.0).then_some(()));
    // No TLS is spoken there.
    Client::connect(gateway.addr).send(Request::get("/health").bytes());
    wait_for("what is no TLS", || (count("tls") == 1.0).then_some(()));
    let mut slow = connect(gateway.addr, &trusted);
    slow.send("GET /health HTTP/1.1\r\n");
    wait_for("what does not end", || (count("timeout") == 1.0).then_some(()));
    assert!(count("served") >= 3.0, "each scrape had a connection of its own");
}

#[test]
fn nothing_is_counted_where_nothing_is_to_be() {
    let gateway = Settings::new().set("SCOREGATE_METRICS", "off").start();
    let request = gateway.with_key(Request::post(PREDICT, REFERENCE)).header("X-Request-Id", "logged");
    assert_eq!(gateway.ask(&request).status, 200);
    let document = scrape(&gateway);
    for name in [
        "requests_in_flight 1",
        "responses_total{",
        "request_duration_seconds_count{",
        "rows_total{",
        "model_info{",
    ] {
        assert!(!document.contains(&format!("scoregate_{name}")), "{name} in {document}");
    }
    assert!(value(&document, "process_resident_memory_bytes") > 0.0);
    wait_for("its line", || gateway.log().iter().any(|line| line.contains("\"logged\"")).then_some(()));
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
    // The one before the live version is kept for a rollback, and the one before that is not.
    for version in ["second", "third"] {
        let fitted = Command::new(crate::support::trainer_binary())
            .args(["fit", "--schema", schema, "--version", version])
            .arg("--data")
            .arg(&repository().churn_csv)
            .arg("--models-dir")
            .arg(models.0.path())
            .env_clear()
            .output()
            .unwrap();
        assert!(fitted.status.success(), "{}", String::from_utf8_lossy(&fitted.stderr));
        let promoted = gateway.settings.run(&["models", "promote", &format!("churn@{version}")]);
        assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
        wait_for("the version", || {
            let answer = gateway.post(PREDICT, REFERENCE);
            (answer.json()["model_version"] == version).then_some(())
        });
    }
    let document = scrape(&gateway);
    for version in ["second", "third"] {
        assert!(document.contains(&format!("version=\"{version}\"")));
    }
    let stale: Vec<&str> = document.lines().filter(|line| line.contains("2026-05-17_01")).collect();
    assert_eq!(stale, Vec::<&str>::new());
}

#[test]
fn what_versions_are_and_how_much_they_answer_is_told() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    for (version, score) in [("1", 0.1), ("2", 0.2), ("3", 0.3), ("4", 0.4)] {
        constant::publish(models.path(), "steps", version, score);
    }
    Repository::new(models.path()).write_rollout("steps", &Rollout::of("1")).unwrap();
    let gateway = Settings::new().models(models.path()).set("SCOREGATE_STATE_DIR", "state").start();
    let told = || {
        let document = scrape(&gateway);
        let lines = document.lines().filter_map(|line| line.strip_prefix("scoregate_rollout_"));
        lines.map(ToOwned::to_owned).collect::<BTreeSet<_>>()
    };
    let rolled_out = |expected: [&str; 5]| {
        let expected = expected.map(ToOwned::to_owned).into();
        let _ = wait_within(PATIENCE, || (told() == expected).then_some(()));
        assert_eq!(told(), expected);
    };
    let change = |arguments: &[&str]| {
        let changed = gateway.settings.run(&[&["models"], arguments].concat());
        assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
    };
    change(&["promote", "steps@2"]);
    change(&["canary", "steps@3", "--percent", "5"]);
    change(&["shadow", "steps@4"]);
    rolled_out([
        r#"share{model="steps",version="1",role="previous"} 0.0"#,
        r#"share{model="steps",version="2",role="live"} 0.95"#,
        r#"share{model="steps",version="3",role="canary"} 0.05"#,
        r#"share{model="steps",version="4",role="shadow"} 0.0"#,
        r#"revision{model="steps"} 3"#,
    ]);
    // What was another thing before is told of once.
    change(&["promote", "steps@3"]);
    change(&["canary", "steps@1", "--percent", "100"]);
    rolled_out([
        r#"share{model="steps",version="1",role="canary"} 1.0"#,
        r#"share{model="steps",version="2",role="previous"} 0.0"#,
        r#"share{model="steps",version="3",role="live"} 0.0"#,
        r#"share{model="steps",version="4",role="shadow"} 0.0"#,
        r#"revision{model="steps"} 5"#,
    ]);
}

/// The words of an expression that are names of something, each with what follows it.
fn words(expression: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    expression.match_indices(is_part).filter_map(move |(at, _)| {
        let starts = !expression[..at].ends_with(is_part);
        let rest = &expression[at..];
        let end = rest.find(|character| !is_part(character)).unwrap_or(rest.len());
        starts.then(|| rest.split_at(end))
    })
}

/// Names of metrics in an expression.
fn names(expression: &str) -> BTreeSet<&str> {
    let prefixes = ["scoregate_", "scoregate:", "process_"];
    words(expression)
        .map(|(word, _)| word)
        .filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

/// The labels that an expression names, with the value that they are to have where it names one.
fn labels(expression: &str) -> BTreeSet<(&str, Option<&str>)> {
    let chosen = words(expression).filter_map(|(word, rest)| {
        let matched =
            ["=~", "!=", "="].iter().find_map(|operator| Some((*operator, rest.strip_prefix(operator)?)));
        let (operator, value) = matched?;
        let value = value.strip_prefix('"')?.split('"').next()?;
        Some((word, (operator == "=").then_some(value)))
    });
    let grouped = words(expression).filter(|(word, _)| ["by", "on", "group_left"].contains(word));
    let grouped = grouped.filter_map(|(_, rest)| rest.trim_start().strip_prefix('(')?.split(')').next());
    chosen.chain(grouped.flat_map(words).map(|(word, _)| (word, None))).collect()
}

/// What the dashboard asks for, with its variables replaced as Grafana does it.
fn dashboard() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/scoregate.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    // A row has none.
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    queries
        .map(|query| query.replace("$__rate_interval", "5m").replace("$model", "churn|saas_churn"))
        .collect()
}

/// What the rules ask for.
fn rules() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/rules.yml");
    let rules = std::fs::read_to_string(file).unwrap();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let (mut found, mut folded): (Vec<String>, Option<usize>) = (Vec::new(), None);
    for line in rules.lines() {
        // A folded expression goes on as long as lines lie deeper than its name.
        if folded.is_some_and(|above| depth(line) > above) {
            let expression = found.last_mut().unwrap();
            expression.push_str(line.trim());
            expression.push(' ');
            continue;
        }
        folded = None;
        if let Some(expression) = line.trim().strip_prefix("expr: ") {
            folded = (expression == ">-").then(|| depth(line));
            found.push(if folded.is_some() { String::new() } else { expression.into() });
        }
    }
    found
}

#[test]
fn dashboards_and_alerts_ask_for_what_is_there() {
    let settings = Settings::new().set("SCOREGATE_CACHE", "memory").set("SCOREGATE_QUOTA", "1000/min");
    let gateway = settings.start();
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    assert_eq!(gateway.post("/v1/predict?explain=true", REFERENCE).status, 200);
    let document = scrape(&gateway);
    // Every family with its labels and their values; those whose first series comes with the first of what they count have none yet.
    let mut known: BTreeMap<String, BTreeSet<(String, String)>> = BTreeMap::new();
    for line in document.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            known.entry(if kind == "counter" { format!("{name}_total") } else { name.into() }).or_default();
        } else if !line.starts_with('#') {
            let (series, _) = line.split_once("} ").or_else(|| line.split_once(' ')).unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.split(',').filter_map(|label| label.split_once('='));
            let labels = labels.map(|(label, value)| (label.to_owned(), value.trim_matches('"').to_owned()));
            known.entry(name.into()).or_default().extend(labels);
        }
    }
    let (dashboard, rules) = (dashboard(), rules());
    assert!(dashboard.len() > 30 && rules.len() == 31, "{} {}", dashboard.len(), rules.len());
    let (mut asked, mut looked, mut silent) = (0, 0, BTreeSet::new());
    for query in dashboard.iter().chain(&rules) {
        let recorded = |name: &str| name.starts_with("scoregate:");
        let names: Vec<&str> = names(query).into_iter().filter(|name| !recorded(name)).collect();
        for name in &names {
            asked += 1;
            assert!(known.contains_key(*name), "{name} of {query} is no metric");
        }
        let has_series = |name: &&str| document.lines().any(|line| line.starts_with(name));
        silent.extend(names.iter().copied().filter(|name| !has_series(name)));
        if !names.iter().all(has_series) {
            continue;
        }
        let there: BTreeSet<&(String, String)> = names.iter().flat_map(|name| &known[*name]).collect();
        for (label, value) in labels(query) {
            // Prometheus itself adds these.
            if ["job", "instance"].contains(&label) {
                continue;
            }
            looked += 1;
            // No version is refused here.
            let value = value.filter(|value| *value != "refused");
            let is_there =
                there.iter().any(|(name, found)| name == label && value.is_none_or(|value| value == found));
            assert!(is_there, "no series of {names:?} has {label} {value:?}, as {query} has it");
        }
    }
    assert!(asked > 60 && looked > 100, "{asked} {looked}");
    // Of these there are none before something is wrong, where models are in a directory, or without anything rolled out.
    let none = [
        "scoregate_guard_decisions_total",
        "scoregate_repository_last_read_timestamp_seconds",
        "scoregate_shadow_rows_total",
        "scoregate_unexplained_rows_total",
    ];
    assert_eq!(silent, BTreeSet::from(none));
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
    // The dashboard's expressions, each as a rule that records it. JSON is YAML, too.
    let recorded = dashboard().into_iter().enumerate();
    let recorded = recorded.map(|(at, query)| json!({"record": format!("panel:{at}"), "expr": query}));
    let recorded = json!({"groups": [{"name": "dashboard", "rules": recorded.collect::<Vec<_>>()}]});
    let file = scratch().join("dashboard.yml");
    std::fs::write(&file, recorded.to_string()).unwrap();
    let (code, told) = promtool(&["check", "rules", file.to_str().unwrap()], None);
    assert_eq!(code, Some(0), "{told}");
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
