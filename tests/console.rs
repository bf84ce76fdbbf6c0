//! The operator's console, in a browser; and what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use scoregate_model::package::Repository;
use scoregate_schemas::Rollout;
use scoregate_schemas::manifest::Output as GraphOutput;
use scoregate_schemas::rollout::Canary;

use crate::shadow::{Way, publish};
use crate::support::graph::{FLOAT, Handmade, publish_share_model};
use crate::support::world::bearer;
use crate::support::{
    Answer, Client, Gateway, PREDICT, REFERENCE, Request, Settings, customer, node_packages, node_program,
    repository, scratch, wait_for,
};

const LIVE: &str = "/v1/monitoring/live";
const SCOPES: &str = "monitoring:read,models:read,score:predict";
/// What a name may not be taken for.
const MARKUP: &str = "<img src=x onerror=globalThis.owned=1>";

fn admin(gateway: &Gateway, request: &Request) -> Answer {
    Client::connect(gateway.admin_addr).ask(request)
}

fn with(key: &str, target: &str) -> Request {
    Request::get(target).header("X-Api-Key", key)
}

/// The series of a document of `/metrics`: by name and labels, their values. Histograms by their samples.
fn scraped(gateway: &Gateway) -> BTreeMap<(String, BTreeMap<String, String>), f64> {
    let text = admin(gateway, &Request::get("/metrics")).text();
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once('=').unwrap();
            let value = value.trim_matches('"');
            let bound = || format!("{:?}", value.parse::<f64>().unwrap());
            (name.to_owned(), if name == "le" { bound() } else { value.to_owned() })
        });
        found.insert((name.to_owned(), labels.collect()), value.parse().unwrap());
    }
    found
}

/// The same of what [`LIVE`] answers.
fn flattened(live: &Value) -> BTreeMap<(String, BTreeMap<String, String>), f64> {
    let mut found = BTreeMap::new();
    for (name, all) in live["metrics"].as_object().unwrap() {
        for series in all.as_array().unwrap() {
            let series = series.as_object().unwrap();
            let labels =
                series.iter().filter_map(|(label, value)| Some((label.clone(), value.as_str()?.to_owned())));
            let labels: BTreeMap<String, String> = labels.collect();
            let Some(counts) = series.get("counts") else {
                found.insert((name.clone(), labels), series["value"].as_f64().unwrap());
                continue;
            };
            let bounds = live["bounds"][name]
                .as_array()
                .unwrap()
                .iter()
                .map(|bound| format!("{:?}", bound.as_f64().unwrap()));
            let mut sum = 0.0;
            for (count, bound) in counts.as_array().unwrap().iter().zip(bounds.chain(["inf".to_owned()])) {
                sum += count.as_f64().unwrap();
                let mut labels = labels.clone();
                labels.insert("le".into(), bound);
                found.insert((format!("{name}_bucket"), labels), sum);
            }
            found.insert((format!("{name}_count"), labels.clone()), sum);
            found.insert((format!("{name}_sum"), labels), series["sum"].as_f64().unwrap());
        }
    }
    found
}

#[test]
fn what_is_told_is_what_metrics_tell() {
    let settings = Settings::new().set("SCOREGATE_QUOTA", "60000/min").set("SCOREGATE_CACHE", "memory");
    let key = settings.key_with(&["--name", "console", "--scopes", SCOPES]);
    let gateway = settings.start();
    for _ in 0..3 {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    }
    assert_eq!(gateway.post(PREDICT, customer(&[("plan_tier", "\"gold\"")])).status, 200);
    assert_eq!(gateway.post(PREDICT, customer(&[("tenure_days", "\"many\"")])).status, 422);
    assert_eq!(gateway.post("/v1/models/nobody/predict", REFERENCE).status, 404);
    assert_eq!(gateway.post("/v1/predict?explain=full", REFERENCE).status, 200);
    let answer = admin(&gateway, &with(&key, LIVE));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let (live, expected) = (flattened(&answer.json()), scraped(&gateway));
    // What asking changes, and time.
    let moves = |name: &str, labels: &BTreeMap<String, String>| {
        let is_own = |label: &str, value: &str| labels.get(label).is_some_and(|found| found == value);
        name.starts_with("process_")
            || [
                "scoregate_response_body_bytes_total",
                "scoregate_requests_in_flight",
                "scoregate_connections_total",
            ]
            .contains(&name)
            || is_own("route", LIVE)
            || is_own("kind", "key")
            || is_own("policy", "rows")
    };
    let names: BTreeSet<&String> = expected.keys().map(|(name, _)| name).collect();
    assert!(names.len() > 30, "{names:?}");
    for ((name, labels), value) in &expected {
        if !moves(name, labels) {
            assert_eq!(live.get(&(name.clone(), labels.clone())), Some(value), "{name} {labels:?}");
        }
    }
    assert_eq!(
        live.keys().filter(|key| !expected.contains_key(*key)).collect::<Vec<_>>(),
        Vec::<&(String, BTreeMap<_, _>)>::new()
    );
    // Every histogram ends above all numbers, or nobody could make quantiles of it.
    let without_end = |(name, labels): &(String, BTreeMap<String, String>)| {
        let mut labels = labels.clone();
        labels.insert("le".into(), "inf".into());
        let base = name.strip_suffix("_sum").filter(|_| name != "process_sum")?;
        (!expected.contains_key(&(format!("{base}_bucket"), labels))).then(|| name.clone())
    };
    assert_eq!(expected.keys().filter_map(without_end).collect::<Vec<_>>(), Vec::<String>::new());
    let body = answer.json();
    assert_eq!(body["quotas"][0], json!({"plan": null, "quota": "60000/min", "models": {}}));
    assert_eq!(body["cache"], json!({"mode": "memory", "ttl_s": 60.0}));
    assert_eq!(body["redis"], Value::Null);
}

#[test]
fn who_may_not_look_is_refused() {
    let settings = Settings::new();
    let plan = "[quota]\ndefault = \"60000/min\"\n[plan.tiny]\nquota = \"2/hour\"\n";
    fs::write(settings.directory().join("scoregate.toml"), plan).unwrap();
    let key = settings.key_with(&["--name", "console", "--scopes", "monitoring:read"]);
    let few = settings.key_with(&["--name", "few", "--scopes", "monitoring:read", "--models", "saas_churn"]);
    let gateway = settings.start();
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    assert_eq!(admin(&gateway, &with(&key, LIVE)).status, 200);
    assert_eq!(admin(&gateway, &with(&gateway.key, LIVE)).code(), "insufficient_scope");
    assert_eq!(admin(&gateway, &Request::get(LIVE)).code(), "missing_credentials");
    assert_eq!(admin(&gateway, &with(&key, &format!("{LIVE}?x=1"))).code(), "invalid_parameter");
    let picture = with(&key, LIVE).header("Accept", "image/png");
    assert_eq!(admin(&gateway, &picture).code(), "not_acceptable");
    // Of other models not even the name is told, and of plans its own.
    let told = admin(&gateway, &with(&few, LIVE));
    let plans = |answer: &Answer| -> Vec<Value> {
        answer.json()["quotas"].as_array().unwrap().iter().map(|plan| plan["plan"].clone()).collect()
    };
    assert_eq!(plans(&told), [json!(null)]);
    assert_eq!(plans(&admin(&gateway, &with(&key, LIVE))), [json!(null), json!("tiny")]);
    assert!(told.text().contains("saas_churn") && !told.text().contains("\"churn\""), "{}", told.text());
    for target in [LIVE, "/console", "/console/main.js"] {
        assert_eq!(gateway.ask(&with(&key, target)).code(), "not_found", "{target}");
    }
}

#[test]
fn the_page_holds_nothing_and_may_load_nothing_from_elsewhere() {
    let gateway = Gateway::start();
    let page = admin(&gateway, &Request::get("/console"));
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains("data:"), "{policy}");
    let mut names: Vec<String> = Vec::new();
    let (mut all, mut size) = (vec!["/console".to_owned()], 0);
    while let Some(target) = all.pop() {
        let file = admin(&gateway, &Request::get(&target));
        assert_eq!((file.status, file.header("content-security-policy")), (200, Some(policy)), "{target}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        let tag = file.header("etag").unwrap();
        assert_eq!(
            admin(&gateway, &Request::get(&target).header("If-None-Match", tag)).status,
            304,
            "{target}"
        );
        let text = file.text();
        size += text.len();
        for secret in ["churn", "tenure_days", "2026-05-17_01"] {
            assert!(!text.contains(secret), "{target}: {secret}");
        }
        for part in text.split('"') {
            let name = part.strip_prefix("./").or_else(|| part.strip_prefix("console/")).map(String::from);
            if let Some(name) = name.filter(|name| !names.contains(name)) {
                all.push(format!("/console/{name}"));
                names.push(name);
            }
        }
        names.push(target);
    }
    assert!(names.contains(&"history.js".into()), "{names:?}");
    assert!(size < 90_000, "{size} bytes");
    for nothing in ["/console/", "/console/..%2fmain.js", "/console/other.js"] {
        assert_eq!(admin(&gateway, &Request::get(nothing)).code(), "not_found", "{nothing}");
    }
}

#[test]
fn a_model_that_is_called_unknown_is_told_of_to_its_callers_alone() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    for model in ["unknown", "other"] {
        Handmade::numbers(model, 1)
            .output("numbers", FLOAT)
            .reference("background", json!([{"a": 10.0, "scale": 1.0}]))
            .publish(models.path(), GraphOutput::Value { name: "numbers".into() });
    }
    let settings = Settings::new().models(models.path());
    let few = settings.key_with(&["--name", "few", "--scopes", SCOPES, "--models", "other"]);
    let gateway = settings.start();
    let row = json!({"a": 12.5, "scale": 1.0}).to_string();
    assert_eq!(gateway.post("/v1/models/unknown/predict", &row).status, 200);
    // Somebody asks for a model that is not there.
    assert_eq!(gateway.post("/v1/models/nobody/predict", &row).status, 404);
    let told = admin(&gateway, &with(&few, LIVE)).json();
    let durations = told["metrics"]["scoregate_request_duration_seconds"].as_array().unwrap();
    let of = |model: &str| durations.iter().filter(|series| series["model"] == model).count();
    assert_eq!((of("unknown"), of("(unknown)")), (0, 1), "{durations:?}");
}

/// Every view in a browser. Screenshots lie in `target/tmp/console`.
#[test]
fn an_operator_sees_and_tries_everything() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    for (model, version) in
        [("churn", "2026-05-17_01"), ("churn", "2026-05-18_01"), ("saas_churn", "2026-05-17_01")]
    {
        let to = models.path().join(model).join(version);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(repository().version(model)).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    // A version of which a file is not what its manifest says.
    let altered = models.path().join("churn/2026-05-18_01");
    let manifest = fs::read_to_string(altered.join("manifest.json")).unwrap();
    fs::write(altered.join("manifest.json"), manifest.replace("2026-05-17_01", "2026-05-18_01")).unwrap();
    fs::write(altered.join("golden.jsonl"), "{}\n").unwrap();
    let top = format!("top{MARKUP}");
    Handmade::new("odd", &[&top, "bottom"])
        .labels(&["no", MARKUP])
        .node("Div", &[&top, "bottom"], "share", Vec::new())
        .output("share", FLOAT)
        .publish(models.path(), GraphOutput::Probabilities { name: "share".into(), classes: 1, positive: 0 });
    // Rows of which much may be left out.
    let forms = models.path().join("forms/1");
    fs::create_dir_all(&forms).unwrap();
    for file in fs::read_dir(repository().version("churn")).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), forms.join(file.file_name())).unwrap();
    }
    let manifest = fs::read(forms.join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    (manifest["name"], manifest["version"]) = (json!("forms"), json!("1"));
    let properties = &mut manifest["schema"]["properties"];
    properties.as_object_mut().unwrap().shift_remove("customer_id");
    properties["toString"] = json!({"type": "string", "x-scoregate": {"role": "entity"}});
    properties["monthly_spend"] =
        json!({"type": ["number", "null"], "x-scoregate": {"missing": {"impute": 10}}});
    properties["plan_tier"] = json!({"type": ["string", "null"], "enum": ["basic", "pro", "business"]});
    fs::write(forms.join("manifest.json"), manifest.to_string()).unwrap();
    // Several classes, and a value.
    let classes = GraphOutput::Probabilities { name: "numbers".into(), classes: 3, positive: 0 };
    Handmade::numbers("classes", 3)
        .labels(&["no", "perhaps", "yes"])
        .output("numbers", FLOAT)
        .reference("background", json!([{"a": 0.25, "b": 0.5, "c": 0.25, "scale": 1.0}]))
        .publish(models.path(), classes);
    Handmade::numbers("value", 1)
        .output("numbers", FLOAT)
        .reference("background", json!([{"a": 10.0, "scale": 1.0}]))
        .publish(models.path(), GraphOutput::Value { name: "numbers".into() });
    // Two versions, of which one scores what the other answers.
    for (version, turned) in [("one", false), ("two", true)] {
        publish_share_model(models.path(), version, turned, 0);
    }
    let rollout = Rollout { shadow: Some("two".into()), ..Rollout::of("one") };
    Repository::new(models.path()).write_rollout("share", &rollout).unwrap();
    // Two that are tried: one of them decides otherwise, and cannot be taken back, because the gateway may not write there. (The superuser
    // may write everywhere, unless it has no capability.)
    for (version, way) in [("1", Way::Sum), ("2", Way::Opposite), ("3", Way::Sum)] {
        publish(models.path(), version, way);
    }
    let canaries = vec![Canary::of("2", 95.0), Canary::of("3", 5.0)];
    let rollout = Rollout { canaries, ..Rollout::of("1") };
    Repository::new(models.path()).write_rollout("duel", &rollout).unwrap();
    let may_be_written = |mode| {
        fs::set_permissions(models.path().join("duel"), fs::Permissions::from_mode(mode)).unwrap();
    };
    may_be_written(0o555);
    let is_root = nix::unistd::geteuid().is_root();
    let wrapper = if is_root { &["setpriv", "--bounding-set=-all", "--inh-caps=-all"][..] } else { &[] };
    let settings = Settings::new()
        .under(wrapper)
        .models(models.path())
        .set("SCOREGATE_CACHE", "memory")
        .set("SCOREGATE_OAUTH_ISSUER", "https://scores.example")
        .set("SCOREGATE_OAUTH_KEYS_FILE", "issuer_keys.json");
    let file = "[quota]\ndefault = \"60000/min\"\n[plan.tiny]\nquota = \"2/hour\"\n\
                [model.duel.guard]\nmin_rows = 100\nmax_psi = 100\n";
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let settings = settings.set("SCOREGATE_QUOTA", "60000/min");
    let key = settings.key_with(&["--name", "console", "--scopes", SCOPES]);
    let poor = settings.key_with(&["--name", "poor", "--scopes", "models:read,score:predict"]);
    let watcher = settings.key_with(&["--name", "watcher", "--scopes", "monitoring:read"]);
    let reader = settings.key_with(&["--name", "reader", "--scopes", "monitoring:read,models:read"]);
    let limited = settings.key_with(&["--name", "limited", "--scopes", SCOPES, "--plan", "tiny"]);
    let made = settings.run(&["clients", "create", "--name", "console", "--scopes", SCOPES]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let gateway = settings.start();
    let made = gateway.settings.run(&["token", "--client", "console"]);
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    assert_eq!(gateway.ask(&bearer(&token)).status, 200, "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(gateway.post(PREDICT, customer(&[("plan_tier", "\"gold\"")])).status, 200);

    wait_for("the shadow", || {
        let two = gateway.get("/v1/models/share/versions/two").json();
        (two["state"] == "shadow").then_some(())
    });
    for top in 0..20 {
        let row = json!({"top": top, "bottom": 32}).to_string();
        assert_eq!(gateway.post("/v1/models/share/predict", row).status, 200);
    }
    let verdicts = || {
        let found = admin(&gateway, &with(&key, "/v1/monitoring/comparisons?model=duel")).json();
        let verdicts: [Value; 2] = found["verdicts"].as_array()?.clone().try_into().ok()?;
        Some(verdicts)
    };
    wait_for("the guard to look", verdicts);
    let row = |at: u32| json!({"a": f64::from(at % 200) / 100.0 - 1.0, "b": 0.125, "who": format!("customer-{at}")});
    let rows = Value::Array((0..400).map(row).collect());
    assert_eq!(gateway.post("/v1/models/duel/predict/batch", rows.to_string()).status, 200);
    let verdicts = wait_for("what the guard cannot do", || {
        let verdicts = verdicts()?;
        let compared: u64 = verdicts.iter().filter_map(|verdict| verdict["rows_compared"].as_u64()).sum();
        (compared == 400 && verdicts[0]["error"].is_string()).then_some(verdicts)
    });
    let expected = gateway.post("/v1/predict?explain=full", REFERENCE).json();
    let screenshots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console");
    fs::create_dir_all(&screenshots).unwrap();
    let row: Value = serde_json::from_str(REFERENCE).unwrap();
    let given = json!({
        "url": format!("http://{}", gateway.admin_addr), "publicUrl": format!("http://{}", gateway.addr),
        "process": gateway.pid(), "key": key, "token": token, "wrong": format!("sg_{}", "x".repeat(43)),
        "poor": poor, "watcher": watcher, "reader": reader, "limited": limited, "row": row,
        "bad": {"tenure_days": "many"}, "binary": env!("CARGO_BIN_EXE_scoregate"),
        "strange": "schlüssel€", "sources": Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/console"),
        "directory": gateway.settings.directory(), "screenshots": screenshots,
    });
    let file = scratch().join("console.json");
    fs::write(&file, given.to_string()).unwrap();
    let script = node_packages().join("console.mjs");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/console.mjs"), &script).unwrap();
    // Answers are compared with what the gateway says itself, which the script ends with.
    let output = Command::new(node_program()).arg(script).arg(&file).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_str(&printed).unwrap();

    for asked in seen["requests"].as_array().unwrap() {
        assert!(asked.as_str().unwrap().starts_with(given["url"].as_str().unwrap()), "{asked}");
    }
    assert_eq!(seen["complaints"], json!([]));
    for (view, violations) in seen["violations"].as_object().unwrap() {
        assert_eq!(violations, &json!([]), "{view}");
    }
    assert!(!seen["shell"].as_str().unwrap().contains("churn"));
    for who in ["wrong", "poor", "none", "strange"] {
        assert_eq!(seen[who], json!({"views": 0, "focus": "credential"}), "{who}");
    }
    for theme in ["light", "dark"] {
        check(&seen[theme], &expected, &row);
        check_canaries(&seen[theme], &verdicts);
    }
    may_be_written(0o755);
    // What was refused before: once for each theme, and once in each form.
    let refused = |theme: &str| {
        let all = seen[theme]["Refusals and failures"].as_array().unwrap();
        all.iter().find(|row| row[0] == "invalid_row").unwrap()[4].as_str().unwrap().to_owned()
    };
    assert_eq!((refused("light"), refused("dark")), ("1".into(), "2".into()));
    assert_ne!(seen["light"]["background"], seen["dark"]["background"]);
    assert_eq!(seen["switched"], seen["dark"]["background"]);
    let [scrolled, focus, selected] = [0, 1, 2].map(|at| &seen["stays"][at]);
    assert_eq!((scrolled, focus), (&json!(60), &json!("Rows under quotas")));
    assert!(selected.as_str().unwrap().contains('_'), "{selected}");
    let form = seen["form"].as_object().unwrap();
    assert_eq!(form["toString"], json!(["", [], null, true]));
    let told = |name: &str| [form[name][1].clone(), form[name][2].clone(), form[name][3].clone()];
    assert_eq!(told("monthly_spend"), [json!([]), json!(null), json!(true)]);
    assert_eq!(told("plan_tier"), [json!(["", "basic", "pro", "business"]), json!(null), json!(true)]);
    assert_eq!(told("tenure_days"), [json!([]), json!("true"), json!(false)]);
    assert_eq!(seen["hash"], json!(["view-traffic"]));
    let history = json!([[false, 0, null], [true, 2, 1], [false, 0, null], [true, 1, 0.5]]);
    assert_eq!(seen["history"], history);
    // Who watches is no traffic, and neither is who may not.
    let refusals = seen["refusals"].as_array().unwrap();
    assert!(!refusals.is_empty() && refusals.iter().all(|row| row[2] != "/v1/models"), "{refusals:?}");
    for width in seen["widths"].as_array().unwrap() {
        assert_eq!(width[1], width[2], "{width}");
    }
    assert_eq!(seen["asked"]["hidden"], 0);
    assert!(seen["asked"]["shown"].as_u64().unwrap() > 0);
    assert!(seen["reader"].as_str().unwrap().contains("lacks the scope score:predict"));
    assert_eq!((&seen["revoked"], &seen["views"]), (&json!(0), &json!(4)));
    for name in ["traffic", "models", "score"] {
        for theme in ["light", "dark"] {
            let screenshot = fs::metadata(screenshots.join(format!("{name}-{theme}.png"))).unwrap();
            assert!(screenshot.len() > 10_000, "{name} {theme}");
        }
    }
}

/// What was seen in one theme of canaries, which are judged so.
fn check_canaries(seen: &Value, verdicts: &[Value; 2]) {
    let text = |name: &str| seen[name].as_str().unwrap();
    let [bad, waiting] = verdicts;
    assert_eq!((&bad["verdict"], &waiting["verdict"]), (&json!("bad"), &json!("waiting")));
    let share = 100.0 * bad["found"].as_f64().unwrap();
    assert!(share > 90.0, "{bad}");
    for part in [
        format!(
            "2 at 95.00 % is bad: it decides otherwise on {share:.2} % of the rows, at most 10.00 % are allowed."
        ),
        format!("What follows could not be done yet: {}", bad["error"].as_str().unwrap()),
        format!("3 at 5.00 % is waiting: {} of 100 rows compared", waiting["rows_compared"]),
    ] {
        assert!(text("judged").contains(&part), "{part}: {}", text("judged"));
    }
    assert_eq!(seen["faults of canaries"], 2, "the verdict and what cannot be done");
    let [version, what, why, when] = [0, 1, 2, 3].map(|at| seen["past"][0][at].as_str().unwrap());
    assert_eq!((version, what), ("0", "taken back"));
    assert!(why.starts_with("bad: it decides otherwise on") && when.starts_with("2026-01-02 03:04:05"));
    // By which version a row is scored can be chosen.
    assert_eq!(seen["offered"], json!(["as for clients", "1 (live)", "2 (canary)", "3 (canary)"]));
    for (version, decision) in [("1", "yes"), ("2", "no")] {
        let answer = text(&format!("answer of {version}"));
        assert!(answer.contains(&format!("Decision {decision}")), "{version}: {answer}");
        let asked: Value = serde_json::from_str(text(&format!("asked of {version}"))).unwrap();
        assert_eq!((&asked["model_version"], &asked["prediction"]), (&json!(version), &json!(decision)));
    }
    assert_eq!(seen["afterwards"], json!(["", "as for clients"]), "another model has other versions");
}

/// What was seen in one theme.
fn check(seen: &Value, expected: &Value, row: &Value) {
    let text = |name: &str| seen[name].as_str().unwrap();
    let tiles = seen["tiles"].as_object().unwrap();
    assert_eq!((tiles.len(), &tiles["In flight"]), (8, &json!("0")), "{tiles:?}");
    assert!(tiles["p99"].as_str().unwrap().ends_with('s') && tiles["Failures"] == "0 %", "{tiles:?}");
    assert!(
        seen["lines"].as_array().unwrap().iter().filter(|length| length.as_u64() > Some(10)).count() >= 5
    );
    assert_eq!(
        seen["Plans"],
        json!([["Without a plan", "all models", "60000/min"], ["tiny", "all models", "2/hour"]])
    );
    for part in
        ["saas_churn", "2026-05-17_01", "Golden rows", "CPU: ", "Loaded here since", "sha256:", "refused"]
    {
        assert!(text("models").contains(part), "{part}: {}", text("models"));
    }
    assert_eq!(
        seen["rollout"],
        json!([
            ["one", "live", "100.00 %", "loaded"],
            ["two", "shadow: nobody gets its answers", "", "loaded"]
        ])
    );
    // Of 20 rows from 0 to 19/32, those of less than a half are a no to the one and a yes to the other; one half is a yes to both.
    for part in ["20 rows", "19 rows, 95.00 %", "1 at most"] {
        assert!(text("compared").contains(part), "{part}: {}", text("compared"));
    }
    let golden = |version: &str| json!([version, "1 of 1", "0.5", "0.5", "1", "1"]);
    assert_eq!(seen["golden"], json!([golden("one"), golden("two")]));
    assert!(text("diff").contains("Nothing breaks"), "{}", text("diff"));
    assert_eq!(seen["undisturbed"], json!([1, seen["rollout"]]));
    // What is drawn is what metrics tell at that moment.
    let metric = |series: &str| -> u64 {
        let found = text("metrics").lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    };
    let of = "model=\"churn\",version=\"2026-05-17_01\"";
    let scored = metric(&format!("scoregate_rows_total{{route=\"{PREDICT}\",{of},outcome=\"scored\"}}"));
    let in_form =
        format!("scoregate_rows_total{{route=\"/v1/models/{{model}}/predict\",{of},outcome=\"scored\"}}");
    let scored = scored + if text("metrics").contains(&in_form) { metric(&in_form) } else { 0 };
    assert_eq!(text("scored"), format!("{scored} rows scored"));
    for row in seen["features"].as_array().unwrap() {
        for (at, finding) in ["missing", "unseen", "rare", "out_of_range"].into_iter().enumerate() {
            let feature = row[0].as_str().unwrap();
            let series = format!(
                "scoregate_feature_findings_total{{{of},feature=\"{feature}\",finding=\"{finding}\"}}"
            );
            let shown: f64 = row[at + 1].as_str().unwrap().trim_end_matches(" %").parse().unwrap();
            let expected = 100.0 * metric(&series) as f64 / scored as f64;
            assert!((shown - expected).abs() <= 0.5, "{feature} {finding}: {shown}, {expected}");
            assert_eq!(shown > 10.0, (feature, finding) == ("plan_tier", "unseen"), "{feature} {finding}");
        }
    }
    let bars = seen["histogram"].as_array().unwrap();
    let mut below = 0;
    for (at, bar) in bars.iter().enumerate() {
        let bound = format!("{:?}", (at + 1) as f64 / 20.0);
        let reached = metric(&format!("scoregate_score_bucket{{le=\"{bound}\",{of}}}"));
        assert!(
            bar.as_str().unwrap().ends_with(&format!(
                " to {}: {} {}",
                bound.trim_end_matches(".0"),
                reached - below,
                if reached - below == 1 { "row" } else { "rows" }
            )),
            "{bar}"
        );
        below = reached;
    }
    assert_eq!((bars.len(), below), (20, scored));

    let example = seen["example"].as_object().unwrap();
    let names: Vec<&String> = row.as_object().unwrap().keys().collect();
    assert_eq!(example.keys().skip(1).collect::<Vec<_>>(), names);
    assert_eq!((&example["tenure_days"], &example["country"]), (&json!("214"), &json!("US")));
    let raw: Value = serde_json::from_str(text("raw")).unwrap();
    let told = |answer: &Value| [answer["churn_probability"].clone(), answer["explanations"].clone()];
    assert_eq!(told(&raw), told(expected));
    let percent = format!("{:.2} %", 100.0 * expected["churn_probability"].as_f64().unwrap());
    assert!(text("answer").contains("scoregate-memory; ") && !text("answer").contains("fwd=request"));
    for part in ["Decision retain", &percent, "2026-05-17_01", "log-odds"] {
        assert!(text("answer").contains(part), "{part}: {}", text("answer"));
    }
    // A shell asks the same.
    assert_eq!(told(&serde_json::from_str(text("asked")).unwrap()), told(expected));
    let values: &Map<String, Value> = expected["explanations"]["values"].as_object().unwrap();
    let explained = seen["explained"].as_array().unwrap();
    assert_eq!(explained.len(), values.len() + 2);
    for (line, top) in explained[1..].iter().zip(expected["explanations"]["top_features"].as_array().unwrap())
    {
        let name = top.as_str().unwrap().split('=').next().unwrap();
        let value = values[name].as_f64().unwrap();
        assert!(line[0].as_str().unwrap().starts_with(&format!("{name} = ")), "{line}");
        let sign = if value > 0.0 { '+' } else { '−' };
        let shown: f64 = line[1].as_str().unwrap().strip_prefix(sign).unwrap().parse().unwrap();
        assert!((shown - value.abs()).abs() <= 0.005 * value.abs(), "{line}: {value}");
    }
    let longest = explained[1..=values.len()].iter().zip(seen["bars"].as_array().unwrap().iter().skip(1));
    let widths: Vec<f64> = longest.map(|(_, width)| width.as_f64().unwrap()).collect();
    assert!(widths.is_sorted_by(|one, other| one >= other) && widths[0] > 50.0, "{widths:?}");
    assert!(
        text("shell").contains("$API_KEY") || text("shell").contains("$ACCESS_TOKEN"),
        "{}",
        text("shell")
    );
    assert!(!text("shell").contains("sg_") && !text("shell").contains("eyJ"));

    let faults = seen["faults"].as_object().unwrap();
    for name in ["tenure_days", "last_login_hours"] {
        assert!(
            !faults[name][0].as_str().unwrap().is_empty() && faults[name][1] == "true",
            "{name}: {faults:?}"
        );
    }
    assert_eq!(faults["country"], json!(["", null]));
    assert_eq!(text("focus"), "tenure_days");
    assert_eq!(seen["skipped"], json!(["view", "#score"]));
    assert!(text("odd").contains(&format!("Decision {MARKUP}")), "{}", text("odd"));
    assert!(text("odd").contains(&format!("top{MARKUP}")) && text("oddFeatures").contains(MARKUP));
    for (name, parts) in [
        ("classes", ["Decision no", "50.00 %", "25.00 %", "Why no"]),
        ("value", ["Value 12.5", "a = 12.5", "+2.5", "Base value"]),
    ] {
        assert!(parts.iter().all(|part| text(name).contains(part)), "{parts:?}: {}", text(name));
    }
    assert_eq!(seen["owned"], json!([null, 0]));
    assert!(!text("kept").contains("sg_") && !text("kept").contains("eyJ"), "{}", text("kept"));
    assert_eq!(seen["afterReload"], true);
}
