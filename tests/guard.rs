//! Canaries that are judged by what they answer: bad ones are taken back within their bounds, good ones go all the way.

use std::fs;
use std::path::Path;
use std::time::Duration;

use scoregate_model::package::Repository;
use scoregate_schemas::Rollout;
use serde_json::{Value, json};

use crate::shadow::{Way, comparison, empty, publish, roll_out, start};
use crate::support::{Answer, Client, Gateway, PATIENCE, Request, pause, wait_for, wait_within};

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

/// Waits until version 2 is no canary any more.
fn until_dropped(gateway: &Gateway, models: &Path) -> Value {
    let dropped = wait_within(PATIENCE, || rollout(models).canaries.is_empty().then_some(()));
    assert!(dropped.is_some(), "the canary is not taken back:\n{}", gateway.log().join("\n"));
    let found = wait_for("the gateway to follow", || {
        let found = gateway.get("/v1/models/duel/rollout").json();
        found["canaries"].as_array().unwrap().is_empty().then_some(found)
    });
    assert_eq!(found["live"], "1");
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
    let deed = until_dropped(&gateway, models.path());
    assert_eq!(
        (&deed["rule"], &deed["requests"], &deed["found"]),
        (&json!("error_rate"), &json!(10), &json!(1.0))
    );
    for who in customers.take(100) {
        assert_eq!(ask(who).status, 200, "everybody is the live version's again");
    }
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
    let request = gateway.with_key(Request::get("/v1/monitoring/comparisons?model=duel"));
    let found = Client::connect(gateway.admin_addr).ask(&request).json();
    let [verdict] = &found["verdicts"].as_array().unwrap()[..] else {
        panic!("one canary is judged: {found}")
    };
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
    let deed = until_dropped(&gateway, models.path());
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
    let deed = until_dropped(&gateway, models.path());
    assert_eq!((&deed["rule"], &deed["limit"]), (&json!("psi"), &json!(0.01)));
    assert!(deed["found"].as_f64().unwrap() > 0.01, "{deed}");
}

#[test]
fn a_good_one_goes_up_the_steps_and_is_live_in_the_end() {
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Sum);
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
    let gateways = [start(models.path(), file, &[]), start(models.path(), file, &[])];
    roll_out(&gateways[0], "duel", &canary(100.0));
    wait_for("the other one to follow", || {
        let found = gateways[1].get("/v1/models/duel/rollout").json();
        let states: Vec<&Value> =
            found["versions"].as_array()?.iter().map(|version| &version["state"]).collect();
        (states == ["live", "canary"]).then_some(())
    });
    for gateway in &gateways {
        batch(gateway, &rows(0, 1_000));
    }
    wait_for("the canary to be taken back", || rollout(models.path()).canaries.is_empty().then_some(()));
    let revision = rollout(models.path()).revision;
    pause(LOOKED_AT);
    let done: usize = gateways.iter().map(|gateway| deeds(gateway).len()).sum();
    assert_eq!((done, rollout(models.path()).revision), (1, revision), "it is done once");
    for gateway in &gateways {
        let complaints: Vec<String> =
            gateway.log().into_iter().filter(|line| line.contains("cannot be done")).collect();
        assert!(complaints.is_empty(), "{complaints:?}");
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
    for _ in 0..30 {
        let request = Request::post(PREDICT, r#"{"a":2,"b":1}"#).header("X-Model-Version", "canary");
        assert_eq!(gateway.ask(&gateway.with_key(request)).status, 500);
    }
    pause(LOOKED_AT);
    assert_eq!((rollout(models.path()).canaries.len(), deeds(&gateway).len()), (1, 0));
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
    let complaints: Vec<String> =
        gateway.log().into_iter().filter(|line| line.contains("cannot be done")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}
