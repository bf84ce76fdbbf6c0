//! Events of rollouts that somebody else is told, signed as the standard has it.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::shadow::{Way, empty, publish, roll_out, start};
use crate::support::authority::{Authority, Question, Reply};
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
