//! Models in a bucket of an S3-compatible store: gateways follow it, whoever writes to it loses nothing, and what it is worth is known
//! while it is away.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use scoregate::repository::Store;
use scoregate::rollout::change::{Asked, Change};
use scoregate::{audit, config};
use scoregate_model::package::{self, Package};
use scoregate_schemas::{Manifest, Rollout};
use serde_json::{Value, json};

use crate::support::bucket::{Bucket, REPOSITORY};
use crate::support::constant::{Importable, ask_constant, publish_constant};
use crate::support::redis::{Proxy, Redis};
use crate::support::{
    Gateway, Request, Settings, is_full, pause, scratch, trainer_binary, wait_for, wait_within,
};

/// How soon a change has to have reached every gateway, in a build with optimisation.
const SOON: Duration = Duration::from_secs(2);
/// The same where Redis tells them.
const AT_ONCE: Duration = Duration::from_millis(300);
/// The same for a build without optimisation on a machine that runs other tests as well.
const LATE: Duration = Duration::from_secs(10);

/// Holds what is typical of some times to what it may be in this build: tests that run beside this one may hold any of them up.
fn check_soon(mut found: Vec<Duration>, limit: Duration) {
    found.sort();
    let slowest = found[found.len() - 1];
    // Nothing excuses one that takes much longer than the others.
    let (limit, longest) = if is_full() { (limit, limit.max(SOON)) } else { (LATE, LATE) };
    assert!(
        found[found.len() / 2] <= limit && slowest <= longest,
        "live everywhere after {found:?}, expected {limit:?}, and never more than {longest:?}"
    );
}

fn empty() -> tempfile::TempDir {
    tempfile::tempdir_in(scratch()).unwrap()
}

fn settings() -> Settings {
    Settings::new().set("SCOREGATE_STATE_DIR", "state").set("SCOREGATE_DEFAULT_MODEL", "steady")
}

/// A gateway with two keys: one that scores and reads, and one that may change models.
fn start(settings: Settings) -> (Gateway, String) {
    let writer = settings.key_with(&["--name", "writer", "--scopes", "models:write,models:read"]);
    (settings.start(), writer)
}

/// Makes `version` the live one through the gateway's admin listener.
fn promote(gateway: &Gateway, writer: &str, model: &str, version: &str) -> (u16, Value) {
    let body = json!({"live": version}).to_string();
    let request = Request::new("PUT", &format!("/v1/models/{model}/rollout"))
        .header("Content-Type", "application/json")
        .header("Content-Length", body.len().to_string())
        .header("X-Api-Key", writer)
        .body(&body);
    let answer = crate::support::Client::connect(gateway.admin_addr).ask(&request);
    (answer.status, answer.json())
}

fn until_served(gateway: &Gateway, model: &str, version: &str) {
    let served = wait_within(2 * LATE, || {
        ask_constant(gateway, model).is_ok_and(|(live, _)| live == version).then_some(())
    });
    assert!(served.is_some(), "{model} {version} is not served:\n{}", gateway.log().join("\n"));
}

fn state(gateway: &Gateway, model: &str, version: &str) -> Value {
    gateway.get(&format!("/v1/models/{model}/versions/{version}")).json()["state"].clone()
}

/// Waits until the gateway may serve a version.
fn until_accepted(gateway: &Gateway, model: &str, version: &str) {
    let accepted = || (state(gateway, model, version) == "accepted").then_some(());
    let found = wait_within(2 * LATE, accepted);
    assert!(found.is_some(), "{model} {version} is not accepted:\n{}", gateway.log().join("\n"));
}

fn said(gateway: &Gateway, text: &str) -> bool {
    gateway.log().iter().any(|line| line.contains(text))
}

/// Publishes a version by `scoregate import`.
fn import(settings: &Settings, model: &str, version: &str, score: f32) {
    let importable = Importable::new(model, score);
    let arguments = importable.arguments(version);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = settings.run(&arguments);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A store in this process, with a mirror of its own in `state`.
fn store(bucket: &Bucket, state: &Path) -> Store {
    let endpoint = format!("http://127.0.0.1:{}", bucket.port);
    let environment = [
        ("SCOREGATE_MODELS_DIR", REPOSITORY),
        ("SCOREGATE_STATE_DIR", state.to_str().unwrap()),
        ("SCOREGATE_S3_ENDPOINT", &endpoint),
        ("AWS_ACCESS_KEY_ID", "gate"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let sources = config::Sources { environment, ..config::Sources::default() };
    Store::open(&config::Settings::load(sources).unwrap()).unwrap()
}

/// The manifest of a version in a directory, and its files.
fn taken_apart(package: &Path) -> (Manifest, BTreeMap<String, Vec<u8>>) {
    let manifest: Manifest =
        serde_json::from_slice(&fs::read(package.join("manifest.json")).unwrap()).unwrap();
    let files = manifest.files.keys().map(|name| (name.clone(), fs::read(package.join(name)).unwrap()));
    let files = files.collect();
    (Manifest { files: BTreeMap::new(), ..manifest }, files)
}

fn borrowed(files: &BTreeMap<String, Vec<u8>>) -> Vec<(&str, &[u8])> {
    files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect()
}

#[test]
fn gateways_on_one_bucket_follow_each_other() {
    let (bucket, redis) = (Bucket::start(), Redis::start());
    for (has_redis, limit) in [(false, SOON), (true, AT_ONCE)] {
        let model = if has_redis { "told" } else { "steady" };
        let of_both = || {
            let settings = bucket.of(settings()).set("SCOREGATE_DEFAULT_MODEL", model);
            if has_redis {
                // Looking alone would take long.
                settings.set("SCOREGATE_REDIS_URL", &redis.url()).set("SCOREGATE_POLL_INTERVAL", "60s")
            } else {
                settings
            }
        };
        // Published by a command, or copied in by hand.
        let elsewhere = empty();
        let publish = |version: &str, score: f32| {
            if has_redis {
                import(&of_both(), model, version, score);
            } else {
                bucket.copy(&publish_constant(elsewhere.path(), model, version, score), model, version);
            }
        };
        publish("1", 0.25);
        let [(one, writer), (other, _)] = [start(of_both()), start(of_both())];
        for gateway in [&one, &other] {
            assert_eq!(ask_constant(gateway, model), Ok(("1".into(), 0.25)));
        }
        publish("2", 0.75);
        for gateway in [&one, &other] {
            until_accepted(gateway, model, "2");
        }
        let swaps =
            [("2", 0.75), ("1", 0.25), ("2", 0.75), ("1", 0.25), ("2", 0.75)].map(|(version, score)| {
                let begun = Instant::now();
                assert_eq!(promote(&one, &writer, model, version).0, 200);
                for gateway in [&one, &other] {
                    until_served(gateway, model, version);
                    assert_eq!(ask_constant(gateway, model), Ok((version.into(), score)));
                }
                begun.elapsed()
            });
        println!("{model}: live everywhere after {swaps:?}");
        check_soon(swaps.into(), limit);
        // And by a command, elsewhere.
        let done = of_both().run(&["models", "promote", &format!("{model}@1")]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for gateway in [&one, &other] {
            until_served(gateway, model, "1");
        }
        assert!(!said(&one, "panicked") && !said(&other, "panicked"));
    }
}

#[test]
fn gateways_on_one_directory_are_told_by_redis() {
    let (models, redis) = (empty(), Redis::start());
    publish_constant(models.path(), "steady", "1", 0.25);
    publish_constant(models.path(), "steady", "2", 0.75);
    let proxy = Proxy::before(redis.port);
    let on = |url: &str| {
        let settings = settings().models(models.path()).set("SCOREGATE_REDIS_URL", url);
        settings.set("SCOREGATE_POLL_INTERVAL", "60s")
    };
    let [(one, writer), (other, _)] = [start(on(&redis.url())), start(on(&proxy.url()))];
    for gateway in [&one, &other] {
        until_accepted(gateway, "steady", "2");
    }
    let swap = |version: &str| {
        let begun = Instant::now();
        assert_eq!(promote(&one, &writer, "steady", version).0, 200);
        for gateway in [&one, &other] {
            until_served(gateway, "steady", version);
        }
        begun.elapsed()
    };
    let swaps = ["2", "1", "2", "1", "2"].map(swap);
    println!("told by Redis: live everywhere after {swaps:?}");
    check_soon(swaps.into(), AT_ONCE);
    // A notice that was missed is made up for when the way is open again.
    proxy.cut();
    assert_eq!(promote(&one, &writer, "steady", "1").0, 200);
    until_served(&one, "steady", "1");
    pause(Duration::from_millis(300));
    assert_eq!(ask_constant(&other, "steady"), Ok(("2".into(), 0.75)));
    proxy.mend();
    until_served(&other, "steady", "1");
    let after = swap("2");
    assert!(after < LATE, "notices come again after the way was cut: {after:?}");
}

#[test]
fn who_may_not_send_notices_is_told_and_changes_all_the_same() {
    let (models, redis) = (empty(), Redis::start());
    publish_constant(models.path(), "steady", "1", 0.25);
    publish_constant(models.path(), "steady", "2", 0.75);
    redis.allow(&[&["on", ">secret", "~scoregate:*", "+evalsha", "+eval", "+get", "+set", "+mget", "+time"]]);
    let url = format!("redis://gate:secret@127.0.0.1:{}", redis.port);
    let (gateway, writer) = start(settings().models(models.path()).set("SCOREGATE_REDIS_URL", &url));
    wait_for("a word about it", || said(&gateway, "Redis passes on no notices").then_some(()));
    until_accepted(&gateway, "steady", "2");
    assert_eq!(promote(&gateway, &writer, "steady", "2").0, 200);
    until_served(&gateway, "steady", "2");
    assert!(!said(&gateway, "Redis is lost"), "{}", gateway.log().join("\n"));
}

#[test]
fn a_gateway_starts_from_its_mirror_while_the_store_is_away() {
    let bucket = Bucket::start();
    let proxy = Proxy::before(bucket.port);
    let by_proxy = Bucket::by(settings(), proxy.port);
    import(&by_proxy, "steady", "1", 0.25);
    import(&by_proxy, "steady", "2", 0.75);
    let (gateway, writer) = start(by_proxy);
    until_accepted(&gateway, "steady", "2");

    // While it runs: it scores, says so once, and refuses what it could not keep.
    proxy.cut();
    wait_for("a word about it", || said(&gateway, "the bucket cannot be read").then_some(()));
    let (status, problem) = promote(&gateway, &writer, "steady", "2");
    assert_eq!((status, &problem["code"]), (500, &json!("repository_unavailable")), "{problem}");
    assert_eq!(ask_constant(&gateway, "steady"), Ok(("1".into(), 0.25)));
    let listed = gateway.settings.run(&["models", "list"]);
    let (out, error) = (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
    assert!(listed.status.success() && out.contains("steady\t1\tlive"), "{out} {error}");
    assert!(error.starts_with("warning: ") && error.contains("as it was the last time"), "{error}");
    let promoted = gateway.settings.run(&["models", "promote", "steady@2"]);
    assert!(!promoted.status.success());
    let error = String::from_utf8_lossy(&promoted.stderr);
    assert!(error.contains(REPOSITORY) && !error.contains("secret"), "{error}");

    // After a start: the same, and what has changed meanwhile arrives once the store is there.
    let key = gateway.key.clone();
    let place = gateway.settings.directory().join("state");
    let again = Bucket::by(Settings::new(), proxy.port)
        .set("SCOREGATE_STATE_DIR", place.to_str().unwrap())
        .set("SCOREGATE_DEFAULT_MODEL", "steady")
        .set("SCOREGATE_API_KEYS_FILE", gateway.keys_file().to_str().unwrap());
    gateway.signal(Signal::SIGKILL);
    let begun = Instant::now();
    let second = again.start_with(&key);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(said(&second, "the bucket cannot be read"), "{}", second.log().join("\n"));
    assert_eq!(ask_constant(&second, "steady"), Ok(("1".into(), 0.25)));
    let direct = bucket.of(settings());
    let promoted = direct.run(&["models", "promote", "steady@2"]);
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    assert_eq!(ask_constant(&second, "steady"), Ok(("1".into(), 0.25)));
    proxy.mend();
    until_served(&second, "steady", "2");
    assert!(said(&second, "the bucket can be read again"));

    // Without a mirror there is nothing to serve, and that is said with the name of the place.
    proxy.cut();
    let nothing = Bucket::by(settings(), proxy.port);
    nothing.key();
    let exit = nothing.spawn().exit();
    assert_eq!(exit.code, Some(1));
    assert!(exit.log.contains("the bucket cannot be read") && exit.log.contains(REPOSITORY), "{}", exit.log);
}

#[test]
fn a_store_that_hangs_delays_no_score() {
    let bucket = Bucket::start();
    let settings = bucket.of(settings());
    import(&settings, "steady", "1", 0.25);
    import(&settings, "steady", "2", 0.75);
    let (gateway, writer) = start(settings);
    until_accepted(&gateway, "steady", "2");
    bucket.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| {
        // Whoever changes something waits, and nobody else.
        let change = scope.spawn(|| promote(&gateway, &writer, "steady", "2"));
        while begun.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            assert_eq!(ask_constant(&gateway, "steady"), Ok(("1".into(), 0.25)));
            longest = longest.max(asked.elapsed());
        }
        bucket.signal(Signal::SIGCONT);
        let (status, answer) = change.join().unwrap();
        assert_eq!(status, 200, "{answer}");
    });
    println!("the longest of all scores took {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    until_served(&gateway, "steady", "2");
}

#[test]
fn what_was_altered_in_the_bucket_is_never_served() {
    let bucket = Bucket::start();
    let elsewhere = empty();
    import(&bucket.of(settings()), "steady", "1", 0.25);
    bucket.copy(&publish_constant(elsewhere.path(), "copied", "1", 0.5), "copied", "1");
    let (gateway, _) = start(bucket.of(settings()));
    until_served(&gateway, "copied", "1");
    let published = bucket.keys().into_iter().find(|key| {
        key.starts_with("steady/1/") && key.ends_with("/model.onnx") && key.split('/').count() == 4
    });
    let published = published.expect("what was published has its digest in its name");
    for key in [published.as_str(), "copied/1/model.onnx"] {
        let mut bytes = bucket.get(key).unwrap();
        bytes[40] ^= 1;
        bucket.put(key, &bytes);
    }
    // It stays as it was where it was fetched before.
    wait_for("a word about both", || {
        let lines = gateway.log();
        let altered = lines.iter().filter(|line| line.contains("was altered in the bucket")).count();
        (altered == 2).then_some(())
    });
    pause(Duration::from_millis(1_500));
    let lines = gateway.log();
    assert_eq!(lines.iter().filter(|line| line.contains("was altered in the bucket")).count(), 2);
    assert_eq!(ask_constant(&gateway, "steady"), Ok(("1".into(), 0.25)));
    assert_eq!(ask_constant(&gateway, "copied"), Ok(("1".into(), 0.5)));

    // And is refused everywhere else, with the reason.
    bucket.copy(&publish_constant(elsewhere.path(), "whole", "1", 0.5), "whole", "1");
    let (fresh, _) = start(bucket.of(settings()).set("SCOREGATE_DEFAULT_MODEL", "whole"));
    for model in ["steady", "copied"] {
        let shown = wait_for("the refusal", || {
            let shown = fresh.get(&format!("/v1/models/{model}")).json();
            shown["refusal"]["code"].is_string().then_some(shown)
        });
        assert_eq!(shown["refusal"]["code"], "package_altered", "{shown}");
        assert_eq!(ask_constant(&fresh, model), Err("unknown_model".into()));
    }
    assert_eq!(ask_constant(&fresh, "whole"), Ok(("1".into(), 0.5)));

    // What is mended is served.
    bucket.copy(&publish_constant(empty().path(), "copied", "1", 0.5), "copied", "1");
    until_served(&fresh, "copied", "1");
}

#[test]
fn only_what_is_whole_is_fetched_and_what_is_gone_is_removed() {
    let bucket = Bucket::start();
    let elsewhere = empty();
    bucket.copy(&publish_constant(elsewhere.path(), "steady", "1", 0.25), "steady", "1");
    let (gateway, writer) = start(bucket.of(settings()));
    bucket.copy(&publish_constant(elsewhere.path(), "steady", "0", 0.5), "steady", "0");
    let package = publish_constant(elsewhere.path(), "steady", "2", 0.75);
    // As tools copy it: in the order of the names, the manifest in between.
    for name in ["golden.jsonl", "manifest.json"] {
        bucket.put(&format!("steady/2/{name}"), &fs::read(package.join(name)).unwrap());
    }
    for stray in
        ["steady/2/.partial", "steady/notes.txt", "README.md", "steady/3/model.onnx", ".x/1/manifest.json"]
    {
        bucket.put(stray, b"?");
    }
    pause(Duration::from_millis(1_500));
    assert_eq!(state(&gateway, "steady", "2"), Value::Null);
    bucket.put("steady/2/model.onnx", &fs::read(package.join("model.onnx")).unwrap());
    until_accepted(&gateway, "steady", "2");
    assert_eq!(promote(&gateway, &writer, "steady", "2").0, 200);
    until_served(&gateway, "steady", "2");

    until_accepted(&gateway, "steady", "0");
    bucket.delete("steady/0/manifest.json");
    wait_for("version 0 to be gone", || (state(&gateway, "steady", "0") == Value::Null).then_some(()));
    assert_eq!(ask_constant(&gateway, "steady"), Ok(("2".into(), 0.75)));
    let listed = gateway.settings.run(&["models", "list"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let listed: Vec<&str> = listed.lines().skip(1).collect();
    assert!(listed.len() == 2 && listed[1] == "steady\t2\tlive", "{listed:?}");
}

#[test]
fn a_large_version_is_uploaded_in_parts_and_fetched() {
    let (bucket, elsewhere, state) = (Bucket::start(), empty(), empty());
    let (manifest, mut files) = taken_apart(&publish_constant(elsewhere.path(), "steady", "1", 0.25));
    let mut reference = br#"{"rows":0,"padding":""#.to_vec();
    reference.extend((0..20_u32 << 20).map(|at| b'a' + u8::try_from(at % 23).unwrap()));
    reference.extend(br#""}"#);
    files.insert("reference.json".into(), reference);
    let place = store(&bucket, state.path()).publish(manifest, &borrowed(&files)).unwrap();
    assert_eq!(place, Path::new(&format!("{REPOSITORY}/steady/1")));
    let (gateway, _) = start(bucket.of(settings()));
    assert_eq!(ask_constant(&gateway, "steady"), Ok(("1".into(), 0.25)));
    let mirrors = gateway.settings.directory().join("state/buckets");
    let mirror = fs::read_dir(mirrors).unwrap().next().unwrap().unwrap().path();
    let package = Package::read(&mirror.join("steady/1")).unwrap();
    assert_eq!(fs::read(package.directory.join("reference.json")).unwrap(), files["reference.json"]);
}

#[test]
fn the_trainer_makes_no_directory_that_is_called_like_a_bucket() {
    let place = empty();
    let mut fit = Command::new(trainer_binary());
    fit.args(["fit", "--data", "a.csv", "--schema", "a.json"]).current_dir(place.path());
    let output = fit.env("SCOREGATE_MODELS_DIR", REPOSITORY).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains(REPOSITORY) && error.contains("--models-dir"),
        "{error}"
    );
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn of_those_who_change_a_rollout_at_once_each_records_what_it_did() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    for version in ["1", "2", "3"] {
        bucket.copy(&publish_constant(elsewhere.path(), "steady", version, 0.25), "steady", version);
    }
    bucket.put("steady/rollout.json", br#"{"live":"1"}"#);
    let changes: u32 = if is_full() { 50 } else { 10 };
    let states = [empty(), empty()];
    std::thread::scope(|scope| {
        for (state, version) in states.iter().zip(["2", "3"]) {
            let (store, log) = (store(&bucket, state.path()), audit::Log::new(state.path()));
            scope.spawn(move || {
                for at in 1..=changes {
                    let percent = f64::from(at) / 100.0;
                    let change = Change::Canary { version: version.into(), percent };
                    let asked =
                        Asked::new(&store, &log, "steady", audit::Actor::operator(), SystemTime::now());
                    change.carry_out(&asked).unwrap();
                }
            });
        }
    });
    // What each says that it did, less what it says that it did not.
    let mut done = BTreeMap::<u64, i32>::new();
    let mut lost = 0;
    for state in &states {
        let text = fs::read_to_string(state.path().join("audit.jsonl")).unwrap();
        for event in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let is_lost = event["action"] == "rollout.change_failed";
            assert_eq!(event["code"] == "rollout_changed", is_lost, "{event}");
            lost += u32::from(is_lost);
            *done.entry(event["revision"].as_u64().unwrap()).or_default() += if is_lost { -1 } else { 1 };
        }
    }
    println!("{lost} of {} changes lost a race and were made anew", 2 * changes);
    let expected: BTreeMap<u64, i32> = (1..=u64::from(2 * changes)).map(|revision| (revision, 1)).collect();
    assert_eq!(done, expected);
    assert!(lost > 0, "nobody ever lost a race");
    // Only what was named is fetched.
    for (state, others) in states.iter().zip(["3", "2"]) {
        let mirrors = fs::read_dir(state.path().join("buckets")).unwrap();
        let mirror = mirrors.map(|entry| entry.unwrap().path()).next().unwrap();
        assert!(mirror.join("steady/1").is_dir() && !mirror.join("steady").join(others).exists());
    }
}

#[test]
fn what_is_wrong_with_one_model_holds_up_no_other() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    // The first in every list, whose rollout is too large to be one.
    bucket.copy(&publish_constant(elsewhere.path(), "broken", "1", 0.5), "broken", "1");
    bucket.put("broken/rollout.json", &vec![b' '; (256 << 10) + 1]);
    for (version, score) in [("1", 0.25), ("2", 0.75)] {
        bucket.copy(&publish_constant(elsewhere.path(), "steady", version, score), "steady", version);
    }
    bucket.put("steady/rollout.json", br#"{"live":"1"}"#);
    let (gateway, writer) = start(bucket.of(settings()));
    until_served(&gateway, "steady", "1");
    until_accepted(&gateway, "steady", "2");
    wait_for("a word about it", || said(&gateway, "a rollout cannot be mirrored").then_some(()));
    // A change elsewhere, with a canary of which a part is missing: the live version waits for none of that.
    let third = publish_constant(elsewhere.path(), "steady", "3", 0.5);
    bucket.put("steady/3/manifest.json", &fs::read(third.join("manifest.json")).unwrap());
    bucket.put("steady/rollout.json", br#"{"live":"2","canaries":[{"version":"3","percent":50}]}"#);
    until_served(&gateway, "steady", "2");
    // Commands say which version is not there, and do what can be done without.
    let promoted = gateway.settings.run(&["models", "promote", "steady@3"]);
    let error = String::from_utf8_lossy(&promoted.stderr).into_owned();
    assert!(!promoted.status.success() && error.contains("has no version 3"), "{error}");
    assert_eq!(promote(&gateway, &writer, "steady", "1").0, 200);
    until_served(&gateway, "steady", "1");
    assert!(!said(&gateway, "the bucket cannot be read"), "{}", gateway.log().join("\n"));
}

#[test]
fn a_version_that_was_replaced_as_a_whole_stays_as_it_was_published() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    let packages = [0.25, 0.75]
        .map(|score: f32| publish_constant(&elsewhere.path().join(score.to_string()), "steady", "1", score));
    let publish = |at: usize| bucket.copy(&packages[at], "steady", "1");
    publish(0);
    let state = empty();
    let store = store(&bucket, state.path());
    store.refresh(None).unwrap();
    let published = Package::read(&store.local().directory("steady", "1")).unwrap();
    publish(1);
    assert_eq!(store.refresh(None).unwrap(), []);
    let found = Package::read(&store.local().directory("steady", "1")).unwrap();
    assert_eq!(found.graph, published.graph);
    // Somebody has deleted it, and means it.
    bucket.delete("steady/1/manifest.json");
    store.refresh(None).unwrap();
    publish(1);
    store.refresh(None).unwrap();
    assert_ne!(Package::read(&store.local().directory("steady", "1")).unwrap().graph, published.graph);
}

#[test]
fn of_those_who_write_at_once_nobody_loses_anything() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    let rounds = if is_full() { 20 } else { 5 };
    let states = [empty(), empty()];
    let stores = states.each_ref().map(|state| store(&bucket, state.path()));
    let reader = empty();
    let reader = store(&bucket, reader.path());
    let refused = |error: &package::Error| matches!(error, package::Error::Exists { .. });
    for round in 0..rounds {
        let version = round.to_string();
        // Two models under one name: the files of one must not be found with the manifest of the other.
        let packages = [0.25, 0.75].map(|score| {
            let place = elsewhere.path().join(score.to_string());
            taken_apart(&publish_constant(&place, "steady", &version, score))
        });
        let both = Barrier::new(2);
        let published = std::thread::scope(|scope| {
            let threads = [0, 1].map(|at| {
                let (store, both, (manifest, files)) = (&stores[at], &both, packages[at].clone());
                scope.spawn(move || {
                    both.wait();
                    store.publish(manifest, &borrowed(&files))
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let winners: Vec<usize> = (0..2).filter(|at| published[*at].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{published:?}");
        assert!(
            published.iter().filter_map(|published| published.as_ref().err()).all(refused),
            "{published:?}"
        );
        reader.refresh(Some("steady")).unwrap();
        let package = Package::read(&reader.local().directory("steady", &version)).unwrap();
        assert_eq!(package.graph, packages[winners[0]].1["model.onnx"], "round {round}");
    }
    assert_eq!(reader.local().read_rollout("steady").unwrap().unwrap().live, "0", "the first goes live");

    // Each adds to what is there.
    let (threads, changes) = (2, if is_full() { 100 } else { 20 });
    std::thread::scope(|scope| {
        for store in &stores {
            scope.spawn(move || {
                for _ in 0..changes {
                    let add = |rollout: Option<&Rollout>| {
                        let mut rollout = rollout.cloned().unwrap();
                        rollout.revision += 1;
                        Ok::<_, package::Error>(rollout)
                    };
                    store.change_rollout("steady", add).unwrap();
                }
            });
        }
    });
    let text = bucket.get("steady/rollout.json").unwrap();
    let rollout: Rollout = serde_json::from_slice(&text).unwrap();
    assert_eq!(rollout.revision, threads * changes);
    for store in &stores {
        store.refresh(None).unwrap();
        assert_eq!(store.local().read_rollout("steady").unwrap().unwrap(), rollout);
    }
}
