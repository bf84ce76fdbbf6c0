//! Events of rollouts that somebody else is told, signed as the standard has it.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::shadow::{Way, change, empty, publish, roll_out, start};
use crate::support::authority::{Authority, Question, Reply};
use crate::support::cached::metric;
use crate::support::{Gateway, Request, Settings, python, wait_for};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PATH: &str = "/hooks";

/// Version 1 and 2 of `duel`, and a gateway that tells `receiver`.
fn telling(receiver: &Authority, models: &std::path::Path, file: &str) -> Gateway {
    publish(models, "1", Way::Sum);
    publish(models, "2", Way::Opposite);
    let secret = models.join(".secret");
    fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let url = format!("{}{PATH}", receiver.url());
    let environment = [
        ("SCOREGATE_WEBHOOK_URL", url.as_str()),
        ("SCOREGATE_WEBHOOK_SECRET_FILE", secret.to_str().unwrap()),
    ];
    start(models, file, &environment)
}

/// What was told, as the library of the standard reads it; it refuses what is not signed so.
fn verified(questions: &[Question]) -> Vec<Value> {
    let messages: Vec<Value> = questions
        .iter()
        .map(|question| json!({"headers": question.headers, "body": String::from_utf8(question.body.clone()).unwrap()}))
        .collect();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/webhooks.py");
    let mut child = Command::new(python())
        .args(["-B", script, SECRET])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(Value::from(messages).to_string().as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn events_are_told_in_order_and_verify() {
    let receiver = Authority::start();
    receiver.set(PATH, Reply::status(204));
    let models = empty();
    let gateway = telling(&receiver, models.path(), "[guard]\nmin_rows = 100\n");
    roll_out(&gateway, "duel", &json!({"live": "1", "shadow": "2"}));
    roll_out(&gateway, "duel", &json!({"live": "1", "canaries": [{"version": "2", "percent": 100}]}));
    let row = |at: u32| json!({"a": 1, "b": 0.5, "who": format!("very-secret-{at}")});
    let rows: Vec<Value> = (0..200).map(row).collect();
    assert_eq!(gateway.post("/v1/models/duel/predict/batch", Value::from(rows).to_string()).status, 200);
    let questions = wait_for("three events", || {
        let questions = receiver.questions();
        (questions.len() == 3).then_some(questions)
    });
    let told = verified(&questions);
    let types: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["shadow.set", "canary.set", "canary.dropped"]);
    let [shadow, canary, dropped] = &told[..] else { unreachable!("there are three") };
    for event in &told {
        assert_eq!((&event["data"]["model"], &event["data"]["version"]), (&json!("duel"), &json!("2")));
        assert!(event["data"]["digest"].as_str().unwrap().starts_with("sha256:"));
        assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
    }
    assert_eq!(shadow["data"]["actor"]["kind"], "caller");
    assert_eq!((&canary["data"]["percent"], &canary["data"]["revision"]), (&json!(100.0), &json!(2)));
    assert_eq!(
        (&dropped["data"]["actor"]["kind"], &dropped["data"]["verdict"]),
        (&json!("gateway"), &json!("bad"))
    );
    assert!(dropped["data"]["rule"].is_string() && dropped["data"]["rows_compared"].as_u64().unwrap() >= 100);
    for question in &questions {
        assert!(question.headers["user-agent"].starts_with("scoregate/"));
        assert!(!String::from_utf8_lossy(&question.body).contains("very-secret"));
    }
    let log = gateway.log().join("\n");
    assert!(!log.contains(&SECRET[6..]), "{log}");
}

#[test]
fn what_is_not_taken_is_sent_again_and_is_the_same() {
    let receiver = Authority::start();
    let count = Arc::new(AtomicUsize::new(0));
    let made = {
        let count = Arc::clone(&count);
        // A redirect is not followed: whoever it leads to was never named.
        move |_: &Question| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::status(500),
            1 => Reply::redirect("/elsewhere"),
            _ => Reply::status(200),
        }
    };
    receiver.set(PATH, Reply::Made(Arc::new(made)));
    let models = empty();
    let gateway = telling(&receiver, models.path(), "");
    roll_out(&gateway, "duel", &json!({"live": "1", "shadow": "2"}));
    let questions = wait_for("the third time", || {
        let questions = receiver.questions();
        (questions.len() == 3).then_some(questions)
    });
    assert_eq!(receiver.count("/elsewhere"), 0);
    let told = verified(&questions);
    assert!(told.iter().all(|event| *event == told[0]), "{told:?}");
    let id = |question: &Question| question.headers["webhook-id"].clone();
    assert!(questions.iter().all(|question| id(question) == id(&questions[0])));
    let metric = "scoregate_webhooks_total{outcome=\"sent\"} 1";
    wait_for("the count", || {
        let request = Request::get("/metrics");
        let metrics = crate::support::Client::connect(gateway.admin_addr).ask(&request).text();
        metrics.contains(metric).then_some(())
    });
}

/// How many events have come to this.
fn count(gateway: &Gateway, outcome: &str) -> u64 {
    metric(gateway, &format!("scoregate_webhooks_total{{outcome=\"{outcome}\"}}"))
}

#[test]
fn an_event_that_is_not_wanted_is_given_up_and_the_next_one_is_sent() {
    let receiver = Authority::start();
    let asked = AtomicUsize::new(0);
    let made = move |_: &Question| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::status(410),
        _ => Reply::status(204),
    };
    receiver.set(PATH, Reply::Made(Arc::new(made)));
    let models = empty();
    let gateway = telling(&receiver, models.path(), "");
    roll_out(&gateway, "duel", &json!({"live": "1", "shadow": "2"}));
    roll_out(&gateway, "duel", &json!({"live": "1"}));
    wait_for("an event that is taken", || (count(&gateway, "sent") > 0).then_some(()));
    let told = verified(&receiver.questions());
    let types: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["shadow.set", "shadow.dropped"]);
    assert_eq!(["sent", "failed", "dropped"].map(|outcome| count(&gateway, outcome)), [1, 1, 0]);
}

#[test]
fn a_receiver_that_hangs_holds_up_nobody() {
    /// How many events may wait; one more is on its way.
    const WAITING: u64 = 256;
    /// Well below the ten seconds that one event may take.
    const AT_ONCE: Duration = Duration::from_secs(5);
    let receiver = Authority::start();
    receiver.set(PATH, Reply::Hang);
    let models = empty();
    let gateway =
        telling(&receiver, models.path(), "[guard]\nmode = \"off\"\n[server]\ndrain_delay = \"0s\"\n");
    let canaries = ["2", "3", "4", "5", "6", "7", "8", "9"];
    for version in &canaries[1..] {
        publish(models.path(), version, Way::Sum);
    }
    let shares = |percent: u32| {
        let share = |version: &&str| json!({"version": version, "percent": percent});
        json!({"live": "1", "canaries": canaries.iter().map(share).collect::<Vec<_>>()})
    };
    roll_out(&gateway, "duel", &shares(1));
    wait_for("the first event", || (receiver.count(PATH) == 1).then_some(()));
    let mut events = canaries.len() as u64;
    for percent in [2, 1].into_iter().cycle().take(33) {
        let begun = Instant::now();
        change(&gateway, "/v1/models/duel/rollout", &shares(percent));
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        events += canaries.len() as u64;
    }
    let counts = ["sent", "failed", "dropped"].map(|outcome| count(&gateway, outcome));
    assert_eq!(counts, [0, 0, events - WAITING - 1]);
    gateway.signal(Signal::SIGTERM);
    let begun = Instant::now();
    let exit = gateway.exit();
    assert!(begun.elapsed() < 2 * AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(exit.code, Some(0));
    let left = format!("\"events\":{}", WAITING + 1);
    assert!(exit.log.contains(&left), "{}", exit.log);
}

#[test]
fn a_gateway_without_its_secret_does_not_start() {
    let settings = Settings::new()
        .set("SCOREGATE_WEBHOOK_URL", "https://hooks.example.com/")
        .set("SCOREGATE_WEBHOOK_SECRET_FILE", "webhook.secret");
    let file = settings.directory().join("webhook.secret");
    settings.key();
    fs::write(&file, "hunter2-hunter2-hunter2-hunter2").unwrap();
    let done = settings.run(&["serve"]);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        !done.status.success() && text.contains("expected whsec_ and 24 to 64 bytes in base64"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    fs::remove_file(&file).unwrap();
    let text = String::from_utf8_lossy(&settings.run(&["serve"]).stderr).into_owned();
    assert!(text.contains("SCOREGATE_WEBHOOK_SECRET_FILE"), "{text}");
}

#[test]
fn what_a_command_does_is_told_by_it() {
    let receiver = Authority::start();
    receiver.set(PATH, Reply::status(204));
    let models = empty();
    publish(models.path(), "1", Way::Sum);
    publish(models.path(), "2", Way::Opposite);
    let secret = models.path().join(".secret");
    fs::write(&secret, SECRET).unwrap();
    let settings = Settings::new().models(models.path()).set("SCOREGATE_STATE_DIR", "state");
    let settings = settings.set("SCOREGATE_WEBHOOK_SECRET_FILE", secret.to_str().unwrap());
    let settings = settings.set("SCOREGATE_WEBHOOK_URL", &format!("{}{PATH}", receiver.url()));
    let run = |arguments: &[&str]| {
        let done = settings.run(arguments);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stderr).unwrap()
    };
    assert_eq!(run(&["models", "promote", "duel@2"]), "");
    let told = verified(&receiver.questions());
    let [event] = &told[..] else { panic!("{told:?}") };
    let found = [&event["type"], &event["data"]["version"], &event["data"]["actor"]["kind"]];
    assert_eq!(found, [&json!("version.promoted"), &json!("2"), &json!("operator")]);
    // What nobody takes is done all the same.
    receiver.set(PATH, Reply::status(500));
    let warned = run(&["models", "rollback", "duel"]);
    assert!(warned.contains("the webhook was not told"), "{warned}");
    let rollout = fs::read_to_string(models.path().join("duel/rollout.json")).unwrap();
    assert!(rollout.contains(r#""live": "1""#) || rollout.contains(r#""live":"1""#), "{rollout}");
    fs::write(&secret, "short").unwrap();
    let warned = run(&["models", "shadow", "duel@2"]);
    assert!(warned.contains("expected whsec_"), "{warned}");
}
