//! Canaries that are judged by what they answer: bad ones are taken back within their bounds, good ones go all the way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scoregate_model::package::Repository;
use scoregate_schemas::Rollout;
use scoregate_schemas::manifest::Output;
use scoregate_schemas::rollout::Canary;
use serde_json::{Value, json};

use crate::shadow::{Way, admin, change, comparison, empty, publish, roll_out, start, start_under};
use crate::support::bucket::{Bucket, REPOSITORY};
use crate::support::cached::metric;
use crate::support::graph::{FLOAT, Handmade, share_model};
use crate::support::redis::Proxy;
use crate::support::{Answer, Gateway, PATIENCE, Request, pause, wait_for, wait_within};

const PREDICT: &str = "/v1/models/duel/predict";
const BATCH: &str = "/v1/models/duel/predict/batch";

/// Longer than it takes until a canary is looked at again.
const LOOKED_AT: Duration = Duration::from_millis(2_500);

/// What the gateway has recorded to have done by itself.
fn deeds(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.settings.directory().join("state/audit.jsonl");
    let text = fs::read_to_string(log).unwrap_or_default();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["actor"]["kind"] == "gateway" && event.get("verdict").is_some()).collect()
}

fn rollout(models: &Path) -> Rollout {
    Repository::new(models).read_rollout("duel").unwrap().unwrap()
}

fn canary(percent: f64) -> Value {
    json!({"live": "1", "canaries": [{"version": "2", "percent": percent}]})
}

/// Rows about so many customers, from the first one on.
fn rows(first: u32, count: u32) -> String {
    let row = |at: u32| {
        let a = f64::from(at * 37 % 200) / 100.0 - 1.0;
        json!({"a": a, "b": 0.125, "who": format!("customer-{at}")})
    };
    Value::Array((first..first + count).map(row).collect()).to_string()
}

fn batch(gateway: &Gateway, rows: &str) -> Answer {
    let answer = gateway.post(BATCH, rows);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// What is thought of the only canary.
fn verdict(gateway: &Gateway) -> Option<Value> {
    let found = admin(gateway, Request::get("/v1/monitoring/comparisons?model=duel")).json();
    let [verdict] = &found["verdicts"].as_array().unwrap()[..] else { return None };
    Some(verdict.clone())
}

/// What the gateway complains of that it has decided on a canary and cannot do.
fn complaints(gateway: &Gateway) -> Vec<String> {
    gateway.log().into_iter().filter(|line| line.contains("cannot be done")).collect()
}

/// Waits until nobody is a canary any more.
fn until_gone(gateway: &Gateway) {
    let found = wait_within(PATIENCE, || {
        let found = gateway.get("/v1/models/duel/rollout").json();
        found["canaries"].as_array().unwrap().is_empty().then_some(found)
    });
    let Some(found) = found else {
        panic!("the canary is not taken back:\n{}", gateway.log().join("\n"));
    };
    assert_eq!(found["live"], "1");
}

/// Waits until version 2 is no canary any more.
fn until_dropped(gateway: &Gateway) -> Value {
    until_gone(gateway);
    let [deed] = deeds(gateway).try_into().unwrap();
    assert_eq!((&deed["action"], &deed["target"]), (&json!("canary.dropped"), &json!("duel@2")));
    assert_eq!((&deed["actor"]["id"], &deed["verdict"]), (&json!("scoregate"), &json!("bad")));
    deed
}

#[test]
fn one_that_fails_is_taken_back_after_a_few_requests() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    // A golden row is right, and what clients send is not: no package tells.
    publish(models.path(), "2", Way::Ratio);
    let gateway = start(models.path(), "", &[]);
    roll_out(&gateway, "duel", &canary(50.0));
    // What was answered before it was first looked at does not count.
    pause(LOOKED_AT);
    let ask = |who: u32| {
        let row = json!({"a": 2, "b": 1, "who": format!("customer-{who}")});
        gateway.post(PREDICT, row.to_string())
    };
    // Nine failures convict nobody, be they all that it did.
    let mut customers = 0..;
    let mut failed = 0;
    while failed < 9 {
        let answer = ask(customers.next().unwrap());
        assert!(matches!(answer.status, 200 | 500), "{}", answer.text());
        failed += u64::from(answer.status == 500);
    }
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()).canaries.len(), deeds(&gateway).len()), (1, 0));
    while failed < 10 {
        failed += u64::from(ask(customers.next().unwrap()).status == 500);
    }
    let deed = until_dropped(&gateway);
    assert_eq!(
        (&deed["rule"], &deed["requests"], &deed["found"]),
        (&json!("error_rate"), &json!(10), &json!(1.0))
    );
    for who in customers.take(100) {
        assert_eq!(ask(who).status, 200, "everybody is the live version's again");
    }
    // Who comes later is told what happened: by every gateway that shares the repository, and more by this one.
    let told = gateway.get("/v1/models/duel/rollout").json();
    assert_eq!(
        (&told["changed_by"]["kind"], &told["changed_for"]["rule"]),
        (&json!("gateway"), &json!("error_rate"))
    );
    assert_eq!(
        (&told["changed_for"]["version"], &told["changed_for"]["action"]),
        (&json!("2"), &json!("drop"))
    );
    let told = wait_for("the next look", || {
        let told = admin(&gateway, Request::get("/v1/monitoring/comparisons?model=duel")).json();
        (told["verdicts"] == json!([])).then_some(told)
    });
    let [past] = &told["past"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!((&past["version"], &past["action"]), (&json!("2"), &json!("drop")));
    assert_eq!((&past["verdict"]["rule"], &past["verdict"]["requests"]), (&json!("error_rate"), &json!(10)));
    let counted = metric(
        &gateway,
        "scoregate_guard_decisions_total{model=\"duel\",action=\"drop\",rule=\"error_rate\"}",
    );
    assert_eq!(counted, 1);
}

#[test]
fn one_that_decides_otherwise_is_taken_back_once_enough_rows_were_compared() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Opposite);
    let gateway = start(models.path(), "[guard]\nmin_rows = 500\nmax_psi = 100\n", &[]);
    roll_out(&gateway, "duel", &canary(100.0));
    batch(&gateway, &rows(0, 450));
    comparison(&gateway, "duel", "2", 450);
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()).canaries.len(), deeds(&gateway).len()), (1, 0), "it is too early");
    let verdict = verdict(&gateway).expect("one canary is judged");
    for (name, expected) in [
        ("version", json!("2")),
        ("percent", json!(100.0)),
        ("verdict", json!("waiting")),
        ("rows_compared", json!(450)),
        ("rows_needed", json!(500)),
    ] {
        assert_eq!(verdict[name], expected, "{name} of {verdict}");
    }
    batch(&gateway, &rows(450, 50));
    let deed = until_dropped(&gateway);
    assert_eq!(
        (&deed["rule"], &deed["rows_compared"], &deed["limit"]),
        (&json!("flips"), &json!(500), &json!(0.1))
    );
    assert!(deed["found"].as_f64().unwrap() > 0.9, "{deed}");
}

#[test]
fn one_whose_scores_are_others_is_taken_back() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Tilted);
    let file = "[guard]\nmode = \"off\"\n[model.duel.guard]\nmode = \"rollback\"\nmin_rows = 200\nmax_flips = 1\n\
                max_psi = 0.01\n";
    let gateway = start(models.path(), file, &[]);
    roll_out(&gateway, "duel", &canary(50.0));
    batch(&gateway, &rows(0, 1_000));
    let deed = until_dropped(&gateway);
    assert_eq!((&deed["rule"], &deed["limit"]), (&json!("psi"), &json!(0.01)));
    assert!(deed["found"].as_f64().unwrap() > 0.01, "{deed}");
}

#[test]
fn a_good_one_goes_up_the_steps_and_is_live_in_the_end() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Shifted);
    let file = "[guard]\nmode = \"promote\"\nmin_rows = 50\nsteps = [5, 25, 100]\nhold = \"1s\"\n";
    let gateway = start(models.path(), file, &[]);
    roll_out(&gateway, "duel", &canary(5.0));
    let mut first = 0;
    let promoted = wait_for("the canary to be promoted", || {
        let answer = batch(&gateway, &rows(first, 2_000)).json();
        first += 2_000;
        let all = answer["predictions"].as_array().unwrap();
        assert!(all.iter().all(|one| one.get("error").is_none()), "no row is lost on the way");
        let found = rollout(models.path());
        (found.live == "2").then_some(found)
    });
    assert_eq!((promoted.previous.as_deref(), promoted.canaries.len()), (Some("1"), 0));
    let deeds = deeds(&gateway);
    let told: Vec<(&str, Option<f64>)> =
        deeds.iter().map(|deed| (deed["action"].as_str().unwrap(), deed["percent"].as_f64())).collect();
    assert_eq!(
        told,
        [("canary.set", Some(25.0)), ("canary.set", Some(100.0)), ("version.promoted", None)],
        "{deeds:?}"
    );
    for deed in &deeds {
        assert_eq!((&deed["verdict"], &deed["target"]), (&json!("good"), &json!("duel@2")));
        for count in ["rows", "rows_compared"] {
            assert!(deed[count].as_u64().unwrap() >= 50, "{deed}");
        }
    }
    let past = wait_for("three decisions to be told of", || {
        let told = admin(&gateway, Request::get("/v1/monitoring/comparisons")).json();
        told["past"].as_array().filter(|past| past.len() == 3).cloned()
    });
    let actions: Vec<&Value> = past.iter().map(|one| &one["action"]).collect();
    assert_eq!(actions, ["promote", "step", "step"], "the last one first");
    for one in &past {
        // It is not the same version: some rows are decided otherwise.
        let flips = one["comparison"]["flips"]["share"].as_f64().unwrap();
        assert!((0.005..0.1).contains(&flips), "{one}");
    }
    wait_for("the new version to answer everybody", || {
        let answer = batch(&gateway, &rows(0, 10)).json();
        let others =
            answer["predictions"].as_array().unwrap().iter().any(|one| one.get("model_version").is_some());
        (answer["model_version"] == "2" && !others).then_some(())
    });
}

#[test]
fn of_two_gateways_one_takes_it_back() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Opposite);
    let file = "[guard]\nmin_rows = 100\n";
    // Neither finds out by looking what the other has done.
    Repository::new(models.path())
        .write_rollout("duel", &Rollout { canaries: vec![Canary::of("2", 100.0)], ..Rollout::of("1") })
        .unwrap();
    let blind = [("SCOREGATE_POLL_INTERVAL", "1h")];
    let gateways = [start(models.path(), file, &blind), start(models.path(), file, &blind)];
    for gateway in &gateways {
        wait_for("the canary to be loaded", || {
            let found = gateway.get("/v1/models/duel/rollout").json();
            let states: Vec<&Value> =
                found["versions"].as_array()?.iter().map(|version| &version["state"]).collect();
            (states == ["live", "canary"]).then_some(())
        });
    }
    pause(LOOKED_AT);
    std::thread::scope(|scope| {
        for gateway in &gateways {
            scope.spawn(|| batch(gateway, &rows(0, 1_000)));
        }
    });
    for gateway in &gateways {
        let judged = || gateway.log().iter().any(|line| line.contains("a canary is bad")).then_some(());
        wait_for("both to come to the same", judged);
    }
    let revision = rollout(models.path()).revision;
    pause(LOOKED_AT);
    let done: usize = gateways.iter().map(|gateway| deeds(gateway).len()).sum();
    assert_eq!((done, rollout(models.path()).revision), (1, revision), "it is done once");
    for gateway in &gateways {
        assert_eq!(complaints(gateway), Vec::<String>::new());
    }
}

#[test]
fn testers_judge_themselves() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Opposite);
    let gateway = start(models.path(), "[guard]\nmin_rows = 10\n", &[]);
    roll_out(&gateway, "duel", &canary(0.0));
    let request = Request::post(BATCH, rows(0, 100)).header("X-Model-Version", "canary");
    let answer = gateway.ask(&gateway.with_key(request));
    assert_eq!((answer.status, &answer.json()["model_version"]), (200, &json!("2")));
    comparison(&gateway, "duel", "2", 100);
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()).canaries.len(), deeds(&gateway).len()), (1, 0));
}

#[test]
fn what_testers_ask_convicts_nobody() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Ratio);
    let gateway = start(models.path(), "", &[]);
    roll_out(&gateway, "duel", &canary(5.0));
    // What was answered before it was first looked at does not count.
    pause(LOOKED_AT);
    for _ in 0..30 {
        let request = Request::post(PREDICT, r#"{"a":2,"b":1}"#).header("X-Model-Version", "canary");
        assert_eq!(gateway.ask(&gateway.with_key(request)).status, 500);
    }
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()).canaries.len(), deeds(&gateway).len()), (1, 0));
    let verdict = verdict(&gateway).expect("one canary is judged");
    assert_eq!((&verdict["version"], &verdict["requests"]), (&json!("2"), &json!(0)));
}

#[test]
fn two_that_are_good_do_not_stand_in_each_others_way() {
    let models = empty();
    for version in ["1", "2", "3"] {
        publish(models.path(), version, Way::Sum);
    }
    let file = "[guard]\nmode = \"promote\"\nmin_rows = 50\nsteps = [5, 100]\nhold = \"0s\"\n";
    let gateway = start(models.path(), file, &[]);
    let share = |version: &str, percent: f64| json!({"version": version, "percent": percent});
    roll_out(&gateway, "duel", &json!({"live": "1", "canaries": [share("2", 5.0), share("3", 30.0)]}));
    let mut first = 0;
    wait_for("both to have been promoted", || {
        batch(&gateway, &rows(first, 2_000));
        first += 2_000;
        let found = rollout(models.path());
        (found.live != "1" && found.canaries.is_empty()).then_some(())
    });
    assert_eq!(complaints(&gateway), Vec::<String>::new());
}

/// A version of `duel` that scores `top / bottom`, and takes its time.
fn publish_slow(models: &Path, version: &str, layers: usize) {
    let (model, output) = share_model(version, false, layers);
    model.name("duel").entity("who").publish(models, output);
}

/// A row about a customer, for such a version.
fn share(who: u32) -> String {
    json!({"top": 1, "bottom": 4, "who": format!("customer-{who}")}).to_string()
}

#[test]
fn one_that_is_slow_is_taken_back_once_it_is_known_how_long_the_live_version_takes() {
    let models = empty();
    publish_slow(models.path(), "1", 0);
    // Slower than what a machine that is busy with other tests does to the live version.
    publish_slow(models.path(), "2", 400);
    let file = "[guard]\nmin_rows = 100\nmax_latency_ratio = 1.5\nlatency_floor = \"10ms\"\n";
    let gateway = start(models.path(), file, &[]);
    roll_out(&gateway, "duel", &canary(20.0));
    pause(LOOKED_AT);
    let (mut customers, mut answered) = (0.., [0_u64; 2]);
    let mut ask = |answered: &mut [u64; 2]| {
        let answer = gateway.post(PREDICT, share(customers.next().unwrap()));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answered[usize::from(answer.json()["model_version"] == "2")] += 1;
    };
    while answered[0] < 99 {
        ask(&mut answered);
    }
    assert!(answered[1] > 10, "{answered:?}");
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()).canaries.len(), deeds(&gateway).len()), (1, 0), "it is too early");
    wait_for("the canary to be taken back", || {
        ask(&mut answered);
        rollout(models.path()).canaries.is_empty().then_some(())
    });
    let deed = until_dropped(&gateway);
    assert_eq!(deed["rule"], "latency");
    let [found, limit] = ["found", "limit"].map(|name| deed[name].as_f64().unwrap());
    assert!(found > limit && limit >= 0.01, "{deed}");
}

#[test]
fn what_is_shed_for_lack_of_room_convicts_nobody() {
    let models = empty();
    publish_slow(models.path(), "1", 0);
    publish_slow(models.path(), "2", 300);
    // Room for one row that takes long.
    let gateway = start(models.path(), "", &[("SCOREGATE_MAX_QUEUED_ROWS", "1")]);
    for who in 0..20 {
        assert_eq!(gateway.post(PREDICT, share(who)).status, 200);
    }
    roll_out(&gateway, "duel", &canary(100.0));
    pause(LOOKED_AT);
    let shed = AtomicU64::new(0);
    let ask = |who: u32| {
        let mut client = gateway.connect();
        while shed.load(Ordering::Relaxed) < 50 {
            let answer = client.ask(&gateway.with_key(Request::post(PREDICT, share(who))));
            if answer.status != 200 {
                assert_eq!(answer.code(), "overloaded", "{}", answer.text());
                shed.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for who in 0..4 {
            scope.spawn(move || ask(who));
        }
    });
    let name = "scoregate_request_duration_seconds_count{route=\"/v1/models/{model}/predict\",model=\"duel\",version=\"2\",\
                cache=\"none\",explained=\"no\",status=\"5xx\"}";
    assert!(metric(&gateway, name) >= 50, "it is the canary that had no room");
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()).canaries.len(), deeds(&gateway).len()), (1, 0));
}

#[test]
fn one_that_refuses_what_the_live_version_takes_is_doubtful_and_stays_as_it_is() {
    let models = empty();
    let version = |version: &str| {
        Handmade::new("duel", &["a", "b"])
            .version(version)
            .labels(&["no", "yes"])
            .entity("who")
            .node("Sigmoid", &["a"], "score", Vec::new())
            .output("score", FLOAT)
            .golden(json!({"a": 0.0, "b": 0.0}), json!(0.5))
    };
    let score = || Output::Probabilities { name: "score".into(), classes: 1, positive: 0 };
    version("1").optional("b").publish(models.path(), score());
    version("2").publish(models.path(), score());
    let file = "[guard]\nmode = \"promote\"\nmin_rows = 50\nsteps = [50, 100]\nhold = \"0s\"\n";
    let gateway = start(models.path(), file, &[]);
    change(&gateway, "/v1/models/duel/rollout?breaking=true", &canary(50.0));
    let before = rollout(models.path());
    // One row in five lacks what only the canary needs.
    let row = |at: u32| match at % 5 {
        0 => json!({"a": 0.25, "who": format!("customer-{at}")}),
        _ => json!({"a": 0.25, "b": 1.0, "who": format!("customer-{at}")}),
    };
    let rows = Value::Array((0..1_000).map(row).collect()).to_string();
    let found = wait_for("a doubtful canary", || {
        batch(&gateway, &rows);
        verdict(&gateway).filter(|found| found["verdict"] != "waiting")
    });
    assert_eq!((&found["verdict"], &found["rule"]), (&json!("doubtful"), &json!("refused_rows")), "{found}");
    let [share, limit] = ["found", "limit"].map(|name| found[name].as_f64().unwrap());
    assert!((0.15..0.25).contains(&share) && limit < share, "{found}");
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()), deeds(&gateway).len()), (before, 0));
    // Whoever promotes it all the same is told.
    let answer = change(&gateway, "/v1/models/duel/rollout?breaking=true", &json!({"live": "2"}));
    let warning = answer["warnings"][0].as_str().unwrap();
    assert!(warning.contains("version 2 is doubtful") && warning.contains("refused_rows"), "{warning}");
}

#[test]
fn what_cannot_be_written_is_tried_again_and_said_once() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Opposite);
    // The superuser may write everywhere, unless it has no capability.
    let is_root = nix::unistd::geteuid().is_root();
    let wrapper = if is_root { &["setpriv", "--bounding-set=-all", "--inh-caps=-all"][..] } else { &[] };
    let gateway = start_under(wrapper, models.path(), "[guard]\nmin_rows = 100\n", &[]);
    roll_out(&gateway, "duel", &canary(100.0));
    let may_be_written = |mode| {
        fs::set_permissions(models.path().join("duel"), fs::Permissions::from_mode(mode)).unwrap();
    };
    may_be_written(0o555);
    batch(&gateway, &rows(0, 200));
    // Whatever is tried is recorded, and then what has come of it.
    let tries = || deeds(&gateway).len();
    let failures = || {
        let log = fs::read_to_string(gateway.settings.directory().join("state/audit.jsonl"));
        log.unwrap_or_default().matches("rollout.change_failed").count()
    };
    wait_for("a second time", || (failures() == 2).then_some(()));
    let error = wait_for("why it cannot be done", || Some(verdict(&gateway)?["error"].as_str()?.to_owned()));
    assert!(error.contains("rollout.json") && !error.contains('/'), "no path is told: {error}");
    may_be_written(0o755);
    until_gone(&gateway);
    let said = complaints(&gateway);
    assert_eq!((tries(), said.len()), (3, 1), "{said:?}");
}

#[test]
fn a_bucket_that_is_away_puts_off_what_was_decided() {
    let (bucket, packages) = (Bucket::start(), empty());
    for (version, way) in [("1", Way::Sum), ("2", Way::Opposite)] {
        publish(packages.path(), version, way);
        bucket.copy(&packages.path().join("duel").join(version), "duel", version);
    }
    let proxy = Proxy::before(bucket.port);
    let environment = [
        ("SCOREGATE_MODELS_DIR", REPOSITORY),
        ("SCOREGATE_S3_ENDPOINT", &format!("http://127.0.0.1:{}", proxy.port)),
        ("AWS_ACCESS_KEY_ID", "gate"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let gateway = start(packages.path(), "[guard]\nmin_rows = 100\n", &environment);
    roll_out(&gateway, "duel", &canary(100.0));
    proxy.cut();
    batch(&gateway, &rows(0, 200));
    wait_for("why it cannot be done", || verdict(&gateway)?["error"].as_str().map(drop));
    // It is tried again, and each time takes another while to fail, which is no news.
    pause(LOOKED_AT);
    let said = complaints(&gateway);
    assert_eq!(said.len(), 1, "{said:?}");
    proxy.mend();
    until_dropped(&gateway);
}

#[test]
fn one_that_the_rollout_says_is_let_alone_is_and_what_is_taken_back_does_not_come_back_by_a_rollback() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Ratio);
    let gateway = start(models.path(), "", &[]);
    let answered = |live: &str, canaries: Value| {
        roll_out(&gateway, "duel", &json!({"live": live, "canaries": canaries}));
    };
    let guarded = |guard: &str| json!([{"version": "2", "percent": 100, "guard": guard}]);
    // It was live before, which is no reason to return to it.
    answered("2", json!([]));
    answered("1", guarded("off"));
    assert_eq!(rollout(models.path()).previous.as_deref(), Some("2"));
    pause(LOOKED_AT);
    let fail = || {
        for who in 0..20 {
            let row = json!({"a": 2, "b": 1, "who": format!("customer-{who}")});
            assert_eq!(gateway.post(PREDICT, row.to_string()).status, 500);
        }
    };
    fail();
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()).canaries.len(), verdict(&gateway)), (1, None));
    answered("1", guarded("rollback"));
    pause(LOOKED_AT);
    fail();
    until_dropped(&gateway);
    let found = rollout(models.path());
    assert_eq!((found.previous, found.taken_back.as_deref()), (None, Some("2")));
    let back = Request::new("POST", "/v1/models/duel/rollback");
    let back = admin(&gateway, back);
    assert_eq!((back.status, back.code().as_str()), (409, "no_previous_version"), "{}", back.text());
    assert_eq!(rollout(models.path()).live, "1");
}

#[test]
fn where_nothing_is_compared_scores_convict_nobody() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Opposite);
    let file = "[guard]\nmode = \"promote\"\nmin_rows = 50\nsteps = [100]\nhold = \"1s\"\n";
    let gateway = start(models.path(), file, &[("SCOREGATE_SHADOW_SAMPLE", "0")]);
    roll_out(&gateway, "duel", &canary(100.0));
    wait_for("the canary to be promoted", || {
        batch(&gateway, &rows(0, 100));
        (rollout(models.path()).live == "2").then_some(())
    });
    let [deed] = deeds(&gateway).try_into().unwrap();
    assert_eq!((&deed["verdict"], deed.get("rows_compared")), (&json!("good"), None));
}
