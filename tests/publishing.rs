//! Versions that appear, change and disappear while a gateway runs: only what is whole and accepted ever answers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scoregate_model::package::{Repository, digest_of};
use scoregate_schemas::Rollout;
use scoregate_schemas::manifest::Output;
use serde_json::{Value, json};

use crate::support::constant::{ask, constant, number, probability, publish};
use crate::support::graph::{FLOAT, Handmade, ints, zeros};
use crate::support::{
    Client, Gateway, Request, Settings, is_full, pause, scratch, target, wait_for, wait_within,
};
use crate::upload::{BOUNDARY, form};

/// How soon a version that was published or promoted has to answer, in a build with optimisation.
const SOON: Duration = Duration::from_secs(2);
/// The same for a build without optimisation on a machine that runs other tests as well.
pub(crate) const LATE: Duration = Duration::from_secs(10);

/// Holds a time to what it may be in this build.
pub(crate) fn check_soon(what: &str, found: Duration) {
    let limit = if is_full() { SOON } else { LATE };
    assert!(found <= limit, "{what} and served after {found:?}, expected {limit:?}");
}

pub(crate) fn empty() -> tempfile::TempDir {
    tempfile::tempdir_in(scratch()).unwrap()
}

pub(crate) fn promote(models: &Path, model: &str, version: &str) {
    Repository::new(models).write_rollout(model, &Rollout::of(version)).unwrap();
}

pub(crate) fn gateway(models: &Path) -> Settings {
    // A state directory of its own: nothing is known from other tests.
    Settings::new()
        .models(models)
        .set("SCOREGATE_STATE_DIR", "state")
        .set("SCOREGATE_DEFAULT_MODEL", "steady")
}

/// How long it takes until `model` answers with `version`.
pub(crate) fn until_served(gateway: &Gateway, model: &str, version: &str) -> Duration {
    let started = Instant::now();
    let served =
        wait_within(LATE, || ask(gateway, model).is_ok_and(|(live, _)| live == version).then_some(()));
    assert!(served.is_some(), "{model} {version} is not served:\n{}", gateway.log().join("\n"));
    started.elapsed()
}

/// The log lines with this message, about this model and version.
pub(crate) fn lines(gateway: &Gateway, message: &str, model: &str, version: &str) -> Vec<Value> {
    let lines = gateway.log();
    let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| {
            line["message"].as_str().is_some_and(|text| text.contains(message))
                && line["model.name"] == model
                && line["model.version"] == version
        })
        .collect()
}

/// The line that says why a version is refused, once it is there; it stands there once.
pub(crate) fn refusal(gateway: &Gateway, model: &str, version: &str) -> Value {
    let found = || {
        let refused = lines(gateway, "", model, version).into_iter().filter(|line| line["code"].is_string());
        let refused: Vec<Value> = refused.collect();
        assert!(refused.len() < 2, "it is said more than once: {refused:?}");
        refused.into_iter().next()
    };
    wait_for(&format!("the refusal of {model} {version}"), found)
}

pub(crate) fn state(gateway: &Gateway, model: &str, version: &str) -> Value {
    gateway.get(&format!("/v1/models/{model}/versions/{version}")).json()
}

/// The processes that the gateway has started and that run.
fn children(gateway: &Gateway) -> Vec<i32> {
    let parent = gateway.pid().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let (state, of) = (fields.next()?, fields.next()?);
            (of == parent && state != "Z").then_some(pid)
        })
        .collect()
}

#[test]
fn a_version_is_served_soon_after_it_was_published_or_promoted() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    let gateway = gateway(models.path()).start();
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    assert_eq!(ask(&gateway, "late"), Err("unknown_model".into()));

    // The first version of a new model is live at once; to be sure what is timed, the clock starts before it is written.
    let started = Instant::now();
    publish(models.path(), "late", "1", 0.5);
    until_served(&gateway, "late", "1");
    let published = started.elapsed();

    // A further one waits, however long it is there.
    publish(models.path(), "steady", "2", 0.75);
    wait_for("the second version to be accepted", || {
        (state(&gateway, "steady", "2")["state"] == "accepted").then_some(())
    });
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    let output = Settings::bare().models(models.path()).run(&["models", "promote", "steady@2"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("within 2 seconds"));
    let promoted = until_served(&gateway, "steady", "2");
    println!("served {published:?} after publishing and {promoted:?} after promoting");
    check_soon("published", published);
    check_soon("promoted", promoted);
    assert_eq!(ask(&gateway, "steady"), Ok(("2".into(), 0.75)));
    // And back again.
    promote(models.path(), "steady", "1");
    until_served(&gateway, "steady", "1");
}

#[test]
fn a_package_that_is_copied_in_slowly_is_served_only_when_it_is_whole() {
    let (models, elsewhere) = (empty(), empty());
    publish(models.path(), "steady", "1", 0.25);
    let gateway = gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "20ms").start();
    let source = publish(elsewhere.path(), "copied", "1", 0.5);
    let names = ["manifest.json", "model.onnx", "golden.jsonl"];
    for (round, order) in [[0, 1, 2], [1, 2, 0], [2, 0, 1]].into_iter().enumerate() {
        let model = format!("copied{round}");
        let target = models.path().join(&model).join("1");
        fs::create_dir_all(&target).unwrap();
        for name in order.map(|at| names[at]) {
            let mut bytes = fs::read(source.join(name)).unwrap();
            if name == "manifest.json" {
                let mut manifest: Value = serde_json::from_slice(&bytes).unwrap();
                manifest["name"] = model.clone().into();
                bytes = manifest.to_string().into_bytes();
            }
            // Half of it, and after a while the rest.
            for part in [bytes.len() / 2, bytes.len()] {
                assert_eq!(ask(&gateway, &model), Err("unknown_model".into()), "{name} is not whole");
                fs::write(target.join(name), &bytes[..part]).unwrap();
                pause(Duration::from_millis(100));
            }
        }
        until_served(&gateway, &model, "1");
        assert_eq!(ask(&gateway, &model).unwrap().1, 0.5);
        assert_eq!(lines(&gateway, "model loaded", &model, "1").len(), 1);
    }
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
}

fn edit_manifest(version: &Path, edit: impl FnOnce(&mut Value)) {
    let path = version.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

/// Replaces a file and writes its digest into the manifest.
fn sign(version: &Path, name: &str, bytes: &[u8]) {
    fs::write(version.join(name), bytes).unwrap();
    edit_manifest(version, |manifest| manifest["files"][name] = digest_of(bytes).into());
}

/// Puts a pipe, at whose other end is nobody, in the place of a file.
fn pipe(file: &Path) {
    fs::remove_file(file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(file).status().unwrap().success());
}

/// Why the version that is to answer does not, as clients see it.
fn obstacle(gateway: &Gateway, model: &str) -> Value {
    gateway.get(&format!("/v1/models/{model}")).json()["refusal"]["code"].clone()
}

type Edit = fn(&Path);

#[test]
fn what_is_refused_is_never_served_and_the_version_before_serves_on() {
    let cases: [(&str, &str, Edit); 10] = [
        ("piped", "package_altered", |version| pipe(&version.join("model.onnx"))),
        ("piped_manifest", "package_altered", |version| pipe(&version.join("manifest.json"))),
        ("altered", "package_altered", |version| {
            let mut bytes = fs::read(version.join("model.onnx")).unwrap();
            bytes[40] ^= 1;
            fs::write(version.join("model.onnx"), bytes).unwrap();
        }),
        ("halved", "package_altered", |version| {
            let bytes = fs::read(version.join("model.onnx")).unwrap();
            fs::write(version.join("model.onnx"), &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("partial", "package_incomplete", |version| fs::remove_file(version.join("golden.jsonl")).unwrap()),
        ("garbled", "invalid_manifest", |version| fs::write(version.join("manifest.json"), "{").unwrap()),
        ("another", "package_altered", |version| {
            edit_manifest(version, |manifest| manifest["name"] = "x".into())
        }),
        ("no_model", "not_onnx", |version| sign(version, "model.onnx", b"tree\nversion=v4\nnum_class=1\n")),
        ("unfaithful", "golden_mismatch", |version| {
            sign(version, "golden.jsonl", b"{\"features\":{\"a\":1},\"expected\":0.1}\n");
        }),
        ("unbound", "binding_mismatch", |version| {
            edit_manifest(version, |manifest| manifest["bindings"]["columns"][0]["input"] = "b".into());
        }),
    ];
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    let gateway = gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "50ms").start();
    let codes: BTreeMap<&str, &str> = cases.iter().map(|(name, code, _)| (*name, *code)).collect();
    for (name, _, edit) in &cases {
        let staged = empty();
        let version = publish(staged.path(), "steady", name, 0.5);
        edit(&version);
        // It appears in one step, and is to answer at once.
        promote(models.path(), "steady", name);
        fs::rename(version, models.path().join("steady").join(name)).unwrap();
        let line = refusal(&gateway, "steady", name);
        assert_eq!(line["code"].as_str(), Some(codes[name]), "{name}: {line}");
        assert_eq!(line["serving"], "1", "{name}: {line}");
        let shown = state(&gateway, "steady", name);
        assert_eq!(
            (&shown["state"], &shown["refusal"]["code"]),
            (&json!("refused"), &json!(codes[name])),
            "{shown}"
        );
        assert_eq!(obstacle(&gateway, "steady"), codes[name], "{name}");
        assert_eq!(shown.get("schema").or(shown.get("features")), None, "{shown}");
        for secret in [models.path().to_str().unwrap(), "onnxruntime", ".cc"] {
            assert!(!shown.to_string().contains(secret), "{name}: {shown}");
        }
        assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)), "{name}");
    }
    // Each was said once, whatever else happened since; what is mended is served.
    pause(Duration::from_millis(300));
    for (name, _, _) in &cases {
        refusal(&gateway, "steady", name);
    }
    assert_eq!(lines(&gateway, "model loaded", "steady", "1").len(), 1);
    let staged = empty();
    let whole = publish(staged.path(), "steady", "halved", 0.5);
    promote(models.path(), "steady", "halved");
    fs::copy(whole.join("model.onnx"), models.path().join("steady/halved/model.onnx")).unwrap();
    until_served(&gateway, "steady", "halved");
    assert_eq!(ask(&gateway, "steady"), Ok(("halved".into(), 0.5)));
}

#[test]
fn what_is_lost_while_running_is_served_on() {
    let models = empty();
    let first = publish(models.path(), "steady", "1", 0.25);
    publish(models.path(), "steady", "2", 0.5);
    let gateway = gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "50ms").start();
    let rollout = models.path().join("steady/rollout.json");
    assert_eq!(obstacle(&gateway, "steady"), Value::Null);
    let complaint = |text: &str, code: &str| {
        wait_for(text, || gateway.log().iter().any(|line| line.contains(text)).then_some(()));
        wait_for(code, || (obstacle(&gateway, "steady") == code).then_some(()));
        assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)), "{text}");
    };
    fs::write(&rollout, "{").unwrap();
    complaint("is no rollout", "invalid_rollout");
    promote(models.path(), "steady", "3");
    complaint("has no version 3", "unknown_version");
    promote(models.path(), "steady", "1");
    let aside = models.path().join(".aside");
    fs::rename(&first, &aside).unwrap();
    complaint("has no version 1; it has 2", "unknown_version");
    fs::rename(models.path().join("steady"), models.path().join(".steady")).unwrap();
    complaint("is in the repository no more", "removed");
    fs::rename(models.path(), models.path().with_extension("gone")).unwrap();
    pause(Duration::from_millis(300));
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)), "the whole repository is gone");
    fs::rename(models.path().with_extension("gone"), models.path()).unwrap();
    fs::rename(models.path().join(".steady"), models.path().join("steady")).unwrap();
    promote(models.path(), "steady", "2");
    until_served(&gateway, "steady", "2");
}

#[test]
fn a_version_that_was_accepted_may_not_change_under_its_name() {
    let models = empty();
    let first = publish(models.path(), "steady", "1", 0.25);
    let second = publish(models.path(), "steady", "2", 0.5);
    let gateway = gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "50ms").start();
    let until = |version: &str, expected: &str| {
        wait_for(&format!("{version} to be {expected}"), || {
            (state(&gateway, "steady", version)["state"] == expected).then_some(())
        });
    };
    until("2", "accepted");
    let original = fs::read(second.join("manifest.json")).unwrap();
    for version in [&first, &second] {
        edit_manifest(version, |manifest| manifest["threshold"] = 0.9.into());
    }
    for version in ["1", "2"] {
        assert_eq!(refusal(&gateway, "steady", version)["code"], "version_changed");
    }
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)), "what is loaded serves on");
    assert_eq!(state(&gateway, "steady", "1")["state"], "live");
    assert_eq!(state(&gateway, "steady", "2")["refusal"]["code"], "version_changed");
    assert_eq!(obstacle(&gateway, "steady"), "version_changed");
    // As it was, or as a version of which nobody knows, it may be served.
    fs::write(second.join("manifest.json"), original).unwrap();
    until("2", "accepted");
    fs::remove_dir_all(&second).unwrap();
    wait_for("the version to be forgotten", || {
        (gateway.get("/v1/models/steady/versions/2").status == 404).then_some(())
    });
    publish(models.path(), "steady", "2", 0.75);
    promote(models.path(), "steady", "2");
    until_served(&gateway, "steady", "2");
    assert_eq!(ask(&gateway, "steady"), Ok(("2".into(), 0.75)));
    assert_eq!(obstacle(&gateway, "steady"), Value::Null);
}

#[test]
fn a_copy_that_claims_to_be_earlier_replaces_nothing_that_answers() {
    let (models, staged) = (empty(), empty());
    publish(models.path(), "steady", "1", 0.25);
    fs::remove_file(models.path().join("steady/rollout.json")).unwrap();
    let gateway = gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "50ms").start();
    let copy = publish(staged.path(), "steady", "0", 0.5);
    edit_manifest(&copy, |manifest| manifest["created_at"] = "1999-01-01T00:00:00Z".into());
    fs::rename(copy, models.path().join("steady/0")).unwrap();
    wait_for("the copy to be accepted", || {
        (state(&gateway, "steady", "0")["state"] == "accepted").then_some(())
    });
    pause(Duration::from_millis(300));
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    promote(models.path(), "steady", "0");
    until_served(&gateway, "steady", "0");
}

#[test]
fn a_copy_under_another_name_is_refused_though_its_manifest_was_accepted() {
    let models = empty();
    let path = publish(models.path(), "steady", "1", 0.25);
    let gateway = gateway(models.path()).start();
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    let copy = models.path().join("steady/2");
    fs::create_dir(&copy).unwrap();
    // The manifest comes last, as it does when a version is published.
    for file in fs::read_dir(&path)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|file| !file.ends_with("manifest.json"))
    {
        fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    fs::copy(path.join("manifest.json"), copy.join("manifest.json")).unwrap();
    let refused = refusal(&gateway, "steady", "2");
    assert_eq!(refused["code"], "package_altered", "{refused}");
    assert_eq!(state(&gateway, "steady", "2")["state"], "refused");
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
}

#[test]
fn a_model_that_takes_its_time_holds_up_no_start_of_the_others() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    for model in ["endless", "later"] {
        laborious(model, "1", ENDLESS).publish(models.path(), late());
    }
    let started = Instant::now();
    let gateway = gateway(models.path()).set("SCOREGATE_MODEL_TIMEOUT", "50s").start();
    assert!(started.elapsed() < Duration::from_secs(40), "it waited for what is still being tried");
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    assert_eq!(ask(&gateway, "endless"), Err("unknown_model".into()));
    assert_eq!(state(&gateway, "endless", "1")["state"], "checking");
}

#[test]
fn what_dead_runs_have_left_in_the_state_directory_is_cleared_away() {
    let (models, left) = (empty(), empty());
    publish(models.path(), "steady", "1", 0.25);
    let (old, young) = (left.path().join(".scoregate-old"), left.path().join(".scoregate-young"));
    for directory in [&old, &young] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("notes"), "").unwrap();
    }
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(86_400);
    fs::File::open(&old).unwrap().set_modified(yesterday).unwrap();
    let _gateway = gateway(models.path()).set("SCOREGATE_STATE_DIR", left.path().to_str().unwrap()).start();
    assert!(!old.exists(), "nobody has needed it for a day");
    assert!(young.exists(), "another gateway may be at it");
}

/// A model whose runs make a square matrix of as many rows as they have, and `matrices` products of it.
fn laborious(model: &str, version: &str, matrices: usize) -> Handmade {
    let mut made = constant(model, version, 0.5)
        .node("Transpose", &["a"], "across", vec![ints("perm", &[1, 0])])
        .node("MatMul", &["a", "across"], "m0", Vec::new());
    for at in 0..matrices {
        made = made.node("MatMul", &[&format!("m{at}"), "m0"], &format!("m{}", at + 1), Vec::new());
    }
    made.node("ReduceMin", &[&format!("m{matrices}")], "least", vec![ints("axes", &[1])])
        .node("Mul", &["least", "nothing"], "naught", Vec::new())
        .node("Add", &["naught", "probability"], "late", Vec::new())
        .output("late", FLOAT)
}

#[test]
fn a_model_says_what_its_sessions_hold() {
    let models = empty();
    let widths = [1, 1_000, 1_000];
    let mut made = constant("steady", "1", 0.5);
    let mut value = "nothing".to_string();
    for (at, shape) in [[widths[0], widths[1]], [widths[1], widths[2]]].into_iter().enumerate() {
        let (weights, next) = (format!("weights{at}"), format!("layer{at}"));
        made = made.node("Constant", &[], &weights, vec![zeros(shape)]);
        made = made.node("MatMul", &[&value, &weights], &next, Vec::new());
        value = next;
    }
    made.node("ReduceMin", &[&value], "least", vec![ints("axes", &[1])])
        .node("Add", &["least", "probability"], "late", Vec::new())
        .output("late", FLOAT)
        .publish(models.path(), late());
    let gateway = gateway(models.path()).start();
    let shown = state(&gateway, "steady", "1");
    let (sessions, bytes) = (shown["sessions"].as_u64().unwrap(), shown["memory_bytes"].as_u64().unwrap());
    // A million weights of four bytes, of which every session has a copy of its own.
    assert!(bytes > sessions * 3_000_000, "{bytes} bytes in {sessions} sessions");
}

/// A model whose run of a thousand rows needs a million million numbers.
fn greedy(model: &str, version: &str) -> Handmade {
    constant(model, version, 0.5)
        .node("Transpose", &["a"], "across", vec![ints("perm", &[1, 0])])
        .node("MatMul", &["a", "across"], "square", Vec::new())
        .node("Flatten", &["square"], "flat", vec![crate::support::graph::int("axis", 2)])
        .node("Transpose", &["flat"], "flat_across", vec![ints("perm", &[1, 0])])
        .node("MatMul", &["flat", "flat_across"], "huge", Vec::new())
        .node("ReduceMin", &["huge"], "least", vec![ints("axes", &[0, 1])])
        .node("Mul", &["least", "nothing"], "naught", Vec::new())
        .node("Add", &["naught", "probability"], "late", Vec::new())
        .output("late", FLOAT)
}

fn late() -> Output {
    Output::Probabilities { name: "late".into(), classes: 1, positive: 0 }
}

/// A product of two thousand matrices of a thousand rows takes minutes.
const ENDLESS: usize = 2_000;

#[test]
fn a_model_that_hangs_crashes_or_eats_memory_is_named_and_the_gateway_serves_on() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    let mut gateway = gateway(models.path())
        .set("SCOREGATE_POLL_INTERVAL", "50ms")
        .set("SCOREGATE_MODEL_TIMEOUT", "3s")
        .set("SCOREGATE_MODEL_MEMORY", "1073741824")
        .start();
    greedy("greedy", "1").publish(models.path(), late());
    let line = refusal(&gateway, "greedy", "1");
    assert_eq!(line["code"], "child_memory", "{line}");

    let started = Instant::now();
    laborious("endless", "1", ENDLESS).publish(models.path(), late());
    let line = refusal(&gateway, "endless", "1");
    assert_eq!(line["code"], "child_timeout", "{line}");
    assert!(started.elapsed() >= Duration::from_secs(3), "it was given less time than it may have");

    laborious("crash", "1", ENDLESS).publish(models.path(), late());
    let child = wait_for("the process that tries it", || children(&gateway).first().copied());
    kill(Pid::from_raw(child), Signal::SIGABRT).unwrap();
    let line = refusal(&gateway, "crash", "1");
    assert_eq!(line["code"], "child_crashed", "{line}");
    assert!(line["error"].as_str().unwrap().contains("SIGABRT"), "{line}");

    for model in ["greedy", "endless", "crash"] {
        assert_eq!(ask(&gateway, model), Err("unknown_model".into()));
        assert_eq!(state(&gateway, model, "1")["state"], "refused");
    }
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    // What the same machinery does in time is served.
    laborious("patient", "1", 0).publish(models.path(), late());
    until_served(&gateway, "patient", "1");
    assert!(gateway.is_running());
    assert!(children(&gateway).is_empty(), "every process has ended");
}

#[test]
fn a_model_whose_sessions_would_fill_the_memory_is_not_loaded() {
    let (models, state) = (empty(), empty());
    publish(models.path(), "steady", "1", 0.25);
    // Its session holds a matrix of 4,096 rows and columns, which are 64 MiB; two a worker, and one more, make more than a gigabyte.
    laborious("wide", "1", 0).publish(models.path(), late());
    let start = |workers: &str| {
        let settings = gateway(models.path()).set("SCOREGATE_STATE_DIR", state.path().to_str().unwrap());
        settings.set("SCOREGATE_MODEL_MEMORY", "1073741824").set("SCOREGATE_WORKERS", workers).start()
    };
    let gateway = start("16");
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    assert_eq!(ask(&gateway, "wide"), Err("unknown_model".into()));
    let line = refusal(&gateway, "wide", "1");
    assert_eq!(line["code"], "model_memory", "{line}");
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("33 sessions") && error.contains("1024 MiB"), "{error}");
    assert!(error.contains("SCOREGATE_MODEL_MEMORY") && error.contains("SCOREGATE_WORKERS"), "{error}");
    drop(gateway);
    // What was measured is remembered, and fewer sessions fit.
    assert_eq!(ask(&start("1"), "wide"), Ok(("1".into(), 0.5)));
}

#[test]
fn what_is_tried_ends_with_the_gateway() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    laborious("endless", "1", ENDLESS).publish(models.path(), late());
    // This one is live: the gateway waits for it for a while before it is ready without it.
    let settings = gateway(models.path());
    settings.key();
    let gateway = settings.spawn();
    let child = wait_for("the process that tries it", || children(&gateway).first().copied());
    gateway.signal(Signal::SIGKILL);
    wait_for("the process to end", || {
        let stat = fs::read_to_string(format!("/proc/{child}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn a_version_that_is_not_live_holds_up_no_start() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    laborious("steady", "2", ENDLESS).publish(models.path(), late());
    let gateway = gateway(models.path()).set("SCOREGATE_WORKERS", "1").start();
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    assert_eq!(state(&gateway, "steady", "2")["state"], "checking");
}

#[test]
fn packages_that_take_their_time_hold_up_no_promotion() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    publish(models.path(), "steady", "2", 0.5);
    let gateway = gateway(models.path()).set("SCOREGATE_WORKERS", "1").start();
    wait_for("the second version to be accepted", || {
        (state(&gateway, "steady", "2")["state"] == "accepted").then_some(())
    });
    laborious("steady", "3", ENDLESS).publish(models.path(), late());
    wait_for("the process that tries it", || (!children(&gateway).is_empty()).then_some(()));
    promote(models.path(), "steady", "2");
    until_served(&gateway, "steady", "2");
    publish(models.path(), "fresh", "1", 0.75);
    until_served(&gateway, "fresh", "1");
    assert_eq!(state(&gateway, "steady", "3")["state"], "checking", "it is still being tried");
}

#[test]
fn a_model_without_golden_rows_is_tried_with_rows_of_its_schema() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    let gateway = gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "50ms").start();
    let made = |name: &str| Handmade::new(name, &["a"]).labels(&["no", "yes"]);
    let constant = |name: &str, value: f32| {
        let made = made(name).node("Constant", &[], "number", vec![number(value)]);
        made.node("Sub", &["a", "a"], "nothing", Vec::new()).node(
            "Add",
            &["nothing", "number"],
            "probability",
            Vec::new(),
        )
    };
    let cases = [
        ("nowhere", "model_output_invalid", constant("nowhere", f32::NAN)),
        ("above", "model_output_invalid", constant("above", 1.5)),
        // The share of a row in the sum of all: 1 for a row that is alone.
        (
            "together",
            "row_dependent",
            made("together").node(
                "Softmax",
                &["a"],
                "probability",
                vec![crate::support::graph::int("axis", 0)],
            ),
        ),
        // One answer, however many rows.
        (
            "single",
            "model_output_invalid",
            constant("single", 0.0).node("ReduceMean", &["probability"], "mean", vec![ints("axes", &[0, 1])]),
        ),
    ];
    for (name, code, model) in cases {
        let output = if name == "single" { "mean" } else { "probability" };
        let probability = Output::Probabilities { name: output.into(), classes: 1, positive: 0 };
        model.output(output, FLOAT).publish(models.path(), probability);
        let line = refusal(&gateway, name, "1");
        assert_eq!(line["code"], code, "{name}: {line}");
    }
    constant("plain", 0.5).output("probability", FLOAT).publish(models.path(), probability());
    until_served(&gateway, "plain", "1");
}

/// The models and versions that a gateway over `models` tried before it was ready, and whether it warned of its state
/// directory.
fn tried(models: &Path, state: &Path) -> (Vec<String>, bool) {
    let gateway = gateway(models).set("SCOREGATE_STATE_DIR", state.to_str().unwrap()).start();
    let lines = gateway.log();
    let lines: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let accepted = lines.iter().filter(|line| line["message"] == "version accepted");
    let mut accepted: Vec<String> = accepted
        .map(|line| {
            format!("{}@{}", line["model.name"].as_str().unwrap(), line["model.version"].as_str().unwrap())
        })
        .collect();
    accepted.sort();
    let warnings =
        lines.iter().filter(|line| line["message"].as_str().unwrap().contains("SCOREGATE_STATE_DIR"));
    (accepted, warnings.count() == 1)
}

#[test]
fn what_was_accepted_is_remembered_by_its_manifest() {
    let (models, state) = (empty(), empty());
    let version = publish(models.path(), "steady", "1", 0.25);
    publish(models.path(), "other", "1", 0.5);
    assert_eq!(tried(models.path(), state.path()), (vec!["other@1".into(), "steady@1".into()], false));
    assert_eq!(tried(models.path(), state.path()), (vec![], false));
    // Another manifest is another package, even if nothing else has changed.
    edit_manifest(&version, |manifest| manifest["tolerance"] = 1e-5.into());
    assert_eq!(tried(models.path(), state.path()), (vec!["steady@1".into()], false));
    assert_eq!(tried(models.path(), state.path()), (vec![], false));
    // A record that cannot be read is none.
    for record in fs::read_dir(state.path().join("accepted")).unwrap() {
        fs::write(record.unwrap().path(), "{").unwrap();
    }
    assert_eq!(tried(models.path(), state.path()), (vec!["other@1".into(), "steady@1".into()], false));
    // What is remembered does not excuse what was altered since.
    fs::write(version.join("golden.jsonl"), "").unwrap();
    let gateway = gateway(models.path()).set("SCOREGATE_STATE_DIR", state.path().to_str().unwrap()).start();
    assert_eq!(refusal(&gateway, "steady", "1")["code"], "package_altered");
    assert_eq!(ask(&gateway, "steady"), Err("unknown_model".into()));
    assert_eq!(ask(&gateway, "other"), Ok(("1".into(), 0.5)));
}

#[test]
fn without_a_state_directory_everything_is_tried_anew() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.25);
    // A file is no directory, whoever asks.
    let state = models.path().join("state");
    fs::write(&state, "").unwrap();
    for _ in 0..2 {
        assert_eq!(tried(models.path(), &state), (vec!["steady@1".into()], true));
    }
}

#[test]
fn a_model_is_served_as_its_own_settings_say() {
    let models = empty();
    publish(models.path(), "steady", "1", 0.5);
    publish(models.path(), "other", "1", 0.5);
    publish(models.path(), "wrong", "1", 0.5);
    let settings = gateway(models.path());
    let file = "[model.steady]\nthreshold = 0.6\nlabels = [\"stay\", \"go\"]\nmax_batch_rows = 2\n\
                [model.wrong]\nlabels = [\"a\", \"b\", \"c\"]\n[model.nobody]\nthreshold = 0.5\n";
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let gateway = settings.start();
    let prediction = |model: &str| {
        gateway.post(&format!("/v1/models/{model}/predict"), r#"{"a":1}"#).json()["prediction"].clone()
    };
    assert_eq!((prediction("steady"), prediction("other")), (json!("stay"), json!("yes")));
    let batch = |model: &str| {
        let rows = r#"[{"a":1},{"a":2},{"a":3}]"#;
        gateway.post(&format!("/v1/models/{model}/predict/batch"), rows).status
    };
    assert_eq!((batch("steady"), batch("other")), (413, 200));
    let line = refusal(&gateway, "wrong", "1");
    assert_eq!(line["code"], "settings", "{line}");
    assert!(line["error"].as_str().unwrap().contains("found 3, expected 2"), "{line}");
    let unknown: Vec<String> = gateway
        .log()
        .into_iter()
        .filter(|line| line.contains("a model that is not in the repository"))
        .collect();
    assert!(unknown.len() == 1 && unknown[0].contains("nobody"), "{unknown:?}");
}

#[test]
fn a_version_that_the_machine_could_not_try_is_tried_again() {
    let (models, place) = (empty(), empty());
    publish(models.path(), "steady", "1", 0.25);
    let library = place.path().join("libonnxruntime.so");
    let link = || symlink(target().join("onnxruntime/libonnxruntime.so"), &library).unwrap();
    link();
    let gateway = gateway(models.path()).set("ORT_DYLIB_PATH", library.to_str().unwrap()).start();
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    // The processes that try versions load it anew.
    fs::remove_file(&library).unwrap();
    fs::write(&library, "no library").unwrap();
    publish(models.path(), "steady", "2", 0.75);
    promote(models.path(), "steady", "2");
    let line = refusal(&gateway, "steady", "2");
    assert_eq!(line["code"], "runtime_unavailable", "{line}");
    assert_eq!(state(&gateway, "steady", "2")["state"], "checking", "that says nothing of the version");
    assert_eq!(ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    fs::remove_file(&library).unwrap();
    link();
    wait_for("the version to be live", || (ask(&gateway, "steady") == Ok(("2".into(), 0.75))).then_some(()));
}

#[test]
fn an_upload_is_not_refused_because_the_system_killed_what_examined_it() {
    let (models, staged) = (empty(), empty());
    publish(models.path(), "steady", "1", 0.25);
    laborious("steady", "2", ENDLESS).publish(staged.path(), late());
    let read = |file: &str| fs::read(staged.path().join("steady/2").join(file)).unwrap();
    let settings = gateway(models.path());
    let key = settings.key_with(&["--name", "publisher", "--scopes", "models:write"]);
    let gateway = settings.start();
    let parts: [(&str, &[u8]); 3] =
        [("model", &read("model.onnx")), ("golden", &read("golden.jsonl")), ("task", b"binary")];
    let request = Request::new("POST", "/v1/models/steady/versions")
        .header("X-Api-Key", key)
        .header("Content-Type", format!("multipart/form-data; boundary=\"{BOUNDARY}\""))
        .body(form(&parts));
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| Client::connect(gateway.admin_addr).ask(&request));
        let at_work = |child: &i32| {
            let mapped = fs::read_to_string(format!("/proc/{child}/maps")).unwrap_or_default();
            mapped.contains("libonnxruntime")
        };
        let child = wait_for("a process at work", || children(&gateway).into_iter().find(at_work));
        kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
        asked.join().unwrap()
    });
    assert_eq!((answer.status, answer.code()), (500, "repository_unavailable".into()), "{}", answer.text());
}
