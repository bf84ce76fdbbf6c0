//! Model files that nobody should serve: refused by `scoregate import` with a reason, and by a running gateway that goes on
//! serving what it has.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prost::Message;
use scoregate_model::package::{GOLDEN, MODEL, Repository};
use scoregate_schemas::Rollout;
use scoregate_schemas::manifest::{
    self, Bindings, Element, Manifest, MatrixBinding, Output as Answer, Source, SourceKind,
};
use serde_json::Value;

use crate::support::badfile::{self, ROWS};
use crate::support::{Gateway, Request, Settings, Stop, pause, scratch, wait_for};

/// How long a model may take in the sandbox: enough for every one that ends, on a busy machine too.
const SANDBOX_TIMEOUT: &str = "10s";

/// Publishes `graph` as a version of `name`, as if somebody had signed it: digests hold, golden rows are the good model's.
fn publish(models: &Path, name: &str, version: &str, graph: &[u8]) {
    let binding = MatrixBinding {
        input: "x".into(),
        element: Element::Float32,
        features: vec!["a".into(), "b".into()],
    };
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: name.into(),
        version: version.into(),
        created_at: "2026-01-01T00:00:00Z".into(),
        files: std::collections::BTreeMap::new(),
        schema: badfile::schema(name),
        bindings: Bindings::Matrix { inputs: vec![binding] },
        output: Answer::Probabilities { name: "probabilities".into(), classes: 2, positive: 1 },
        changes: Vec::new(),
        threshold: 0.5,
        labels: vec!["no".into(), "yes".into()],
        tolerance: 1e-6,
        metrics: None,
        training: None,
        source: Source { kind: SourceKind::Import, producer: "a test".into() },
    };
    let golden = badfile::golden();
    let files = [(MODEL, graph), (GOLDEN, golden.as_bytes())];
    Repository::new(models).publish(manifest, &files).unwrap();
}

/// Makes a version the one that is to answer.
fn promote(models: &Path, name: &str, version: &str) {
    Repository::new(models).write_rollout(name, &Rollout::of(version)).unwrap();
}

fn settings(models: &Path) -> Settings {
    Settings::new()
        .models(models)
        .set("SCOREGATE_MODEL_TIMEOUT", SANDBOX_TIMEOUT)
        .set("SCOREGATE_POLL_INTERVAL", "50ms")
        .set("SCOREGATE_DEFAULT_MODEL", "tree")
}

/// A file of the name `elsewhere` that tells whether anybody opens it: a pipe, which waits for a writer.
struct Tripwire(PathBuf);

impl Tripwire {
    fn lay(path: PathBuf) -> Self {
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        Self(path)
    }

    /// Whether somebody has it open for reading, or waits to.
    fn is_touched(&self) -> bool {
        /// `O_NONBLOCK` of Linux on x86-64 and aarch64: opening fails where nobody reads.
        const NO_WAITING: i32 = 0o4000;
        fs::OpenOptions::new().write(true).custom_flags(NO_WAITING).open(&self.0).is_ok()
    }
}

fn import(settings: &Settings, file: &Path, directory: &Path, name: &str) -> Output {
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    settings.run(&[
        "import",
        file.to_str().unwrap(),
        "--name",
        name,
        "--schema",
        &text(directory.join("schema.json")),
        "--golden",
        &text(directory.join("golden.jsonl")),
    ])
}

/// A directory with schema and golden rows of the good model.
fn workplace() -> tempfile::TempDir {
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    fs::write(directory.path().join("schema.json"), badfile::schema("tree").to_string()).unwrap();
    fs::write(directory.path().join("golden.jsonl"), badfile::golden()).unwrap();
    directory
}

/// What no message may hold: stack traces, and names of sources.
fn complaints(said: &str) -> Vec<&'static str> {
    let leaks = [
        "panicked",
        "stack backtrace",
        "RUST_BACKTRACE",
        "onnxruntime_src",
        ".cc:",
        ".cc ",
        ".rs:",
        "terminate called",
    ];
    leaks.into_iter().filter(|leak| said.contains(leak)).collect()
}

#[test]
fn every_bad_file_is_refused_at_import_with_its_reason() {
    let (directory, models) = (workplace(), tempfile::tempdir_in(scratch()).unwrap());
    let settings = settings(models.path());
    let file = directory.path().join("model.onnx");
    let tripwires: Vec<Tripwire> =
        [directory.path().parent().unwrap(), directory.path(), settings.directory()]
            .iter()
            .map(|place| place.join("elsewhere"))
            .filter(|path| !path.exists())
            .map(Tripwire::lay)
            .collect();
    let table = badfile::table();
    assert!(table.len() >= 30, "{} files", table.len());
    let (over, mut wrong) = (AtomicBool::new(false), Vec::new());
    std::thread::scope(|scope| {
        let stop = Stop(&over);
        let watch = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert!(!tripwires.iter().any(Tripwire::is_touched), "a file outside was opened");
                pause(Duration::from_millis(1));
            }
        });
        println!("| file | what it is | exit | code | s |\n| --- | --- | --: | --- | --: |");
        for bad in &table {
            fs::write(&file, bad.bytes()).unwrap();
            let started = Instant::now();
            let output = import(&settings, &file, directory.path(), "tree");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let expected = bad.import.unwrap_or(bad.code);
            let code = said.strip_prefix("error[").and_then(|said| said.split(']').next()).unwrap_or("none");
            println!(
                "| {} | {} | {:?} | {code} | {:.2} |",
                bad.name,
                bad.how,
                output.status.code(),
                started.elapsed().as_secs_f64()
            );
            let sentence = said.split_once("]: ").map_or("", |(_, sentence)| sentence.trim());
            let leaks = complaints(&said);
            if output.status.code() != Some(3) || code != expected || sentence.len() < 20 || !leaks.is_empty()
            {
                wrong.push(format!(
                    "{}: expected {expected}, {:?}, {leaks:?}: {said}",
                    bad.name, output.status
                ));
            }
        }
        drop(stop);
        watch.join().unwrap();
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!models.path().join("tree").exists(), "nothing was published");
    // The wires work, and so does the import.
    let touched = std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::File::open(&tripwires[0].0).unwrap());
        wait_for("a touched wire to be noticed", || tripwires[0].is_touched().then_some(()));
        reader.join().is_ok()
    });
    assert!(touched);
    fs::write(&file, badfile::good().encode_to_vec()).unwrap();
    let output = import(&settings, &file, directory.path(), "tree");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a version has become, once it is no longer being checked: its state, and its code where it is refused.
fn verdict(gateway: &Gateway, model: &str, version: &str) -> (String, String) {
    let target = format!("/v1/models/{model}/versions/{version}");
    wait_for("a verdict", || {
        let answer = gateway.get(&target);
        // It may not have been seen yet.
        let document = if answer.status == 200 { answer.json() } else { return None };
        let state = document["state"].as_str().unwrap().to_owned();
        let code = document["refusal"]["code"].as_str().unwrap_or_default().to_owned();
        // What is altered on disk while it is read would be refused for that, and is not here.
        (state != "checking").then_some((state, code))
    })
}

/// Whether the log says that `version` is refused, with `code` and a sentence.
fn is_logged(gateway: &Gateway, version: &str, code: &str) -> bool {
    gateway.log().iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).any(|line| {
        line["model.version"] == version
            && line["code"] == code
            && line["error"].as_str().is_some_and(|error| error.len() >= 20)
    })
}

#[test]
fn a_running_gateway_serves_on_whatever_appears() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    publish(models.path(), "tree", "good", &badfile::good().encode_to_vec());
    let settings = settings(models.path());
    // Beside the versions, and where the gateway runs.
    let tripwires = [models.path().join("tree"), settings.directory().into()]
        .map(|place: PathBuf| Tripwire::lay(place.join("elsewhere")));
    let gateway = settings.start();
    let (over, polls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let stop = Stop(&over);
        let poll = scope.spawn(|| {
            let mut client = gateway.connect();
            let mut at = 0;
            while !over.load(Ordering::Relaxed) {
                let (row, expected) = ROWS[at % ROWS.len()];
                let request = gateway.with_key(Request::post("/v1/models/tree/predict", row));
                let answer = client.ask(&request);
                assert_eq!(answer.status, 200, "{}", answer.text());
                let answer = answer.json();
                assert_eq!(answer["model_version"], "good", "{answer}");
                assert_eq!(answer["tree_probability"], expected, "{answer}");
                at += 1;
                polls.store(at, Ordering::Relaxed);
                pause(Duration::from_millis(2));
            }
        });
        println!("| file | what it is | code | answers meanwhile | s |\n| --- | --- | --- | --: | --: |");
        for bad in badfile::table() {
            let (started, before) = (Instant::now(), polls.load(Ordering::Relaxed));
            publish(models.path(), "tree", bad.name, &bad.bytes());
            promote(models.path(), "tree", bad.name);
            let (state, code) = verdict(&gateway, "tree", bad.name);
            // The code stands in the log by the time that it is shown, or a moment later.
            let logged = wait_for_log(&gateway, bad.name, &code);
            let answered = polls.load(Ordering::Relaxed) - before;
            let seconds = started.elapsed().as_secs_f64();
            println!("| {} | {} | {code} | {answered} | {seconds:.2} |", bad.name, bad.how);
            if state != "refused" || code != bad.code || !logged {
                let log = gateway.log();
                let about: Vec<&String> = log.iter().filter(|line| line.contains(bad.name)).collect();
                wrong.push(format!(
                    "{}: expected {}, {state} {code}, logged {logged}: {about:?}",
                    bad.name, bad.code
                ));
            }
            assert!(!poll.is_finished(), "the client gave up");
            assert!(!tripwires.iter().any(Tripwire::is_touched), "a file outside was opened");
        }
        drop(stop);
        poll.join().unwrap();
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let described = gateway.get("/v1/models/tree").text();
    assert_eq!(complaints(&described), Vec::<&str>::new(), "what clients see of refused versions");
    assert!(!described.contains(scratch().to_str().unwrap()), "no path: {described}");
    // What is good goes live all the same.
    let mut better = badfile::good();
    better.producer_name = Some("another".into());
    publish(models.path(), "tree", "better", &better.encode_to_vec());
    promote(models.path(), "tree", "better");
    wait_for("the better version", || {
        let answer = gateway.post("/v1/models/tree/predict", ROWS[0].0).json();
        (answer["model_version"] == "better").then_some(())
    });
}

fn wait_for_log(gateway: &Gateway, version: &str, code: &str) -> bool {
    crate::support::wait_within(Duration::from_secs(5), || is_logged(gateway, version, code).then_some(()))
        .is_some()
}

#[test]
fn a_model_that_fails_for_some_rows_harms_no_other() {
    let (directory, models) = (workplace(), tempfile::tempdir_in(scratch()).unwrap());
    publish(models.path(), "tree", "good", &badfile::good().encode_to_vec());
    let file = directory.path().join("model.onnx");
    fs::write(&file, badfile::nan_for_zero().encode_to_vec()).unwrap();
    let settings = settings(models.path());
    let output = import(&settings, &file, directory.path(), "brittle");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let gateway = settings.start();
    let ask = |model: &str, row: &str| gateway.post(&format!("/v1/models/{model}/predict"), row);
    for turn in 0..20 {
        for (row, expected) in ROWS {
            for model in ["brittle", "tree"] {
                let answer = ask(model, row);
                assert_eq!(answer.status, 200, "{model} {turn}: {}", answer.text());
                assert_eq!(answer.json()[format!("{model}_probability")], expected, "{model} {turn}");
            }
        }
        let failed = ask("brittle", r#"{"a":0,"b":0}"#);
        assert_eq!(
            (failed.status, failed.code().as_str()),
            (500, "model_output_invalid"),
            "{}",
            failed.text()
        );
        assert_eq!(ask("tree", r#"{"a":0,"b":0}"#).json()["tree_probability"], 0.25);
    }
    let batch = format!("[{},{{\"a\":0,\"b\":0}}]", ROWS[0].0);
    let failed = gateway.post("/v1/models/brittle/predict/batch", batch);
    assert!(failed.text().contains("model_output_invalid"), "{}", failed.text());
}
