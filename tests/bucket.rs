//! Models in a bucket of an S3-compatible store: gateways follow it, whoever writes to it loses nothing, and what it is worth is known
//! while it is away.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, RwLock};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use scoregate::repository::Store;
use scoregate::rollout::change::{Asked, Change};
use scoregate::{audit, config};
use scoregate_model::package::{self, Package};
use scoregate_schemas::{Manifest, Rollout};
use serde_json::{Value, json};

use crate::support::bucket::{Bucket, REPOSITORY};
use crate::support::constant::{self, Importable};
use crate::support::redis::{Proxy, Redis};
use crate::support::tls::Authority;
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
    roll_out(gateway, writer, model, &json!({"live": version}))
}

/// Replaces the rollout of a model through the gateway's admin listener.
fn roll_out(gateway: &Gateway, writer: &str, model: &str, rollout: &Value) -> (u16, Value) {
    let body = rollout.to_string();
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
        constant::ask(gateway, model).is_ok_and(|(live, _)| live == version).then_some(())
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

/// When a gateway says that it last read the bucket.
fn last_read(gateway: &Gateway) -> f64 {
    let scraped = crate::support::Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let name = "scoregate_repository_last_read_timestamp_seconds ";
    let found = scraped.lines().find_map(|line| line.strip_prefix(name));
    found.unwrap_or_else(|| panic!("no {name}in\n{scraped}")).parse().unwrap()
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
    store_by(bucket.port, state)
}

/// The same, that reaches it at `port`.
fn store_by(port: u16, state: &Path) -> Store {
    let endpoint = format!("http://127.0.0.1:{port}");
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
                bucket.copy(&constant::publish(elsewhere.path(), model, version, score), model, version);
            }
        };
        publish("1", 0.25);
        let [(one, writer), (other, _)] = [start(of_both()), start(of_both())];
        for gateway in [&one, &other] {
            assert_eq!(constant::ask(gateway, model), Ok(("1".into(), 0.25)));
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
                    assert_eq!(constant::ask(gateway, model), Ok((version.into(), score)));
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
    constant::publish(models.path(), "steady", "1", 0.25);
    constant::publish(models.path(), "steady", "2", 0.75);
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
    assert_eq!(constant::ask(&other, "steady"), Ok(("2".into(), 0.75)));
    proxy.mend();
    until_served(&other, "steady", "1");
    let after = swap("2");
    assert!(after < LATE, "notices come again after the way was cut: {after:?}");
}

#[test]
fn who_may_not_send_notices_is_told_and_changes_all_the_same() {
    let (models, redis) = (empty(), Redis::start());
    constant::publish(models.path(), "steady", "1", 0.25);
    constant::publish(models.path(), "steady", "2", 0.75);
    redis.allow(&[&["on", ">secret", "~scoregate:*", "+evalsha", "+eval", "+get", "+set", "+mget", "+time"]]);
    let url = format!("redis://gate:secret@127.0.0.1:{}", redis.port);
    let (gateway, writer) = start(settings().models(models.path()).set("SCOREGATE_REDIS_URL", &url));
    wait_for("a word about it", || said(&gateway, "Redis passes on no notices").then_some(()));
    until_accepted(&gateway, "steady", "2");
    assert_eq!(promote(&gateway, &writer, "steady", "2").0, 200);
    until_served(&gateway, "steady", "2");
    assert!(!said(&gateway, "Redis is lost"), "{}", gateway.log().join("\n"));
    let promoted = gateway.settings.run(&["models", "promote", "steady@1"]);
    let error = String::from_utf8_lossy(&promoted.stderr).into_owned();
    assert!(promoted.status.success(), "{error}");
    assert!(
        error.contains("warning: replicas are not told through Redis") && error.contains("publish"),
        "{error}"
    );
    until_served(&gateway, "steady", "1");
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
    assert_eq!(constant::ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    let listed = gateway.settings.run(&["models", "list"]);
    let (out, error) = (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
    assert!(listed.status.success() && out.contains("steady\t1\tlive"), "{out} {error}");
    assert!(error.starts_with("warning: ") && error.contains("as it was the last time"), "{error}");
    let compared = gateway.settings.run(&["models", "diff", "steady@1", "2"]);
    let (out, error) = (String::from_utf8_lossy(&compared.stdout), String::from_utf8_lossy(&compared.stderr));
    assert!(compared.status.success() && out.starts_with("steady: 1 → 2\n"), "{out} {error}");
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
    assert_eq!(last_read(&second), 0.0, "never since it was started");
    assert_eq!(constant::ask(&second, "steady"), Ok(("1".into(), 0.25)));
    let direct = bucket.of(settings());
    let promoted = direct.run(&["models", "promote", "steady@2"]);
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    assert_eq!(constant::ask(&second, "steady"), Ok(("1".into(), 0.25)));
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
fn when_the_bucket_was_last_read_is_told_and_stands_still_while_it_cannot_be() {
    let bucket = Bucket::start();
    let proxy = Proxy::before(bucket.port);
    import(&bucket.of(settings()), "steady", "1", 0.25);
    let (gateway, _) = start(Bucket::by(settings(), proxy.port));
    let later_than = |before: f64| {
        wait_for("another look at the bucket", || Some(last_read(&gateway)).filter(|at| *at > before))
    };
    let at = later_than(later_than(0.0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - at).abs() < 10.0, "read at {at}, and it is {now}");
    proxy.cut();
    wait_for("a word about it", || said(&gateway, "the bucket cannot be read").then_some(()));
    let at = last_read(&gateway);
    // It looks again, in vain, and says no more of it.
    let told = || gateway.log_so_far().into_iter().filter(|line| !line.contains("scoregate::access")).count();
    let before = told();
    pause(Duration::from_secs(4));
    assert_eq!((last_read(&gateway), told()), (at, before), "{}", gateway.log().join("\n"));
    proxy.mend();
    later_than(at);
}

#[test]
fn a_store_with_a_certificate_of_ones_own_is_believed_where_its_authority_is_named() {
    let (bucket, authority, place) = (Bucket::start(), Authority::new("own"), empty());
    let port = bucket.by_tls(&authority.server());
    let ca = place.path().join("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    let by = |settings: Settings, port: u16| {
        Bucket::by(settings, port).set("SCOREGATE_S3_ENDPOINT", &format!("https://localhost:{port}"))
    };
    let with_ca = |settings: Settings| settings.set("SCOREGATE_S3_CA", ca.to_str().unwrap());
    import(&with_ca(by(settings(), port)), "steady", "1", 0.25);
    let (gateway, _) = start(with_ca(by(settings(), port)));
    assert_eq!(constant::ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    assert!(last_read(&gateway) > 0.0);

    // Without it nobody vouches for the store: what was mirrored is all there is.
    let state = gateway.settings.directory().join("state");
    let (again, _) = start(by(settings(), port).set("SCOREGATE_STATE_DIR", state.to_str().unwrap()));
    assert_eq!(constant::ask(&again, "steady"), Ok(("1".into(), 0.25)));
    let why = "invalid peer certificate: UnknownIssuer";
    assert!(said(&again, "the bucket cannot be read") && said(&again, why), "{}", again.log().join("\n"));
    assert_eq!(last_read(&again), 0.0);
    assert!(!said(&again, "rustls") && !said(&again, "object_store"), "{}", again.log().join("\n"));

    // And nobody is believed in another's place.
    let elsewhere = bucket.by_tls(&authority.server_of(&["elsewhere.example"]));
    for (settings, why) in [
        (with_ca(by(settings(), elsewhere)), "certificate not valid for name \\\"localhost\\\""),
        (by(settings(), port), why),
    ] {
        settings.key();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1));
        assert!(exit.log.contains("the bucket cannot be read") && exit.log.contains(why), "{}", exit.log);
    }
    fs::write(&ca, "none").unwrap();
    let broken = with_ca(by(settings(), port));
    broken.key();
    let exit = broken.spawn().exit();
    assert!(exit.code == Some(1) && exit.log.contains("found no certificate in"), "{}", exit.log);
}

#[test]
fn a_mirror_without_room_serves_on_and_is_filled_once_there_is_some() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    bucket.copy(&constant::publish(elsewhere.path(), "steady", "1", 0.25), "steady", "1");
    bucket.put("steady/rollout.json", br#"{"live":"1"}"#);
    let (gateway, _) = start(bucket.of(settings()).on_disk("1m", "state"));
    assert_eq!(constant::ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    let filler = gateway.see(&gateway.settings.directory().join("state/filler"));
    assert!(fs::write(&filler, vec![0; 1 << 20]).is_err(), "the disk is full");
    bucket.copy(&constant::publish(elsewhere.path(), "steady", "2", 0.75), "steady", "2");
    bucket.put("steady/rollout.json", br#"{"live":"2"}"#);
    wait_for("a word about it", || said(&gateway, "No space left on device").then_some(()));
    assert_eq!(constant::ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    fs::remove_file(&filler).unwrap();
    until_served(&gateway, "steady", "2");
    let mirrors = gateway.see(&gateway.settings.directory().join("state/buckets"));
    let mirror = fs::read_dir(mirrors).unwrap().next().unwrap().unwrap().path();
    let left = fs::read_dir(mirror.join("steady")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(".mirroring-")).collect();
    assert!(left.is_empty(), "{left:?}");
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
            assert_eq!(constant::ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
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
    bucket.copy(&constant::publish(elsewhere.path(), "copied", "1", 0.5), "copied", "1");
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
    assert_eq!(constant::ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
    assert_eq!(constant::ask(&gateway, "copied"), Ok(("1".into(), 0.5)));

    // And is refused everywhere else, with the reason.
    bucket.copy(&constant::publish(elsewhere.path(), "whole", "1", 0.5), "whole", "1");
    let (fresh, _) = start(bucket.of(settings()).set("SCOREGATE_DEFAULT_MODEL", "whole"));
    for model in ["steady", "copied"] {
        let shown = wait_for("the refusal", || {
            let shown = fresh.get(&format!("/v1/models/{model}")).json();
            shown["refusal"]["code"].is_string().then_some(shown)
        });
        assert_eq!(shown["refusal"]["code"], "package_altered", "{shown}");
        assert_eq!(constant::ask(&fresh, model), Err("unknown_model".into()));
    }
    assert_eq!(constant::ask(&fresh, "whole"), Ok(("1".into(), 0.5)));

    // What is mended is served.
    bucket.copy(&constant::publish(empty().path(), "copied", "1", 0.5), "copied", "1");
    until_served(&fresh, "copied", "1");
}

#[test]
fn only_what_is_whole_is_fetched_and_what_is_gone_is_removed() {
    let bucket = Bucket::start();
    let elsewhere = empty();
    bucket.copy(&constant::publish(elsewhere.path(), "steady", "1", 0.25), "steady", "1");
    let (gateway, writer) = start(bucket.of(settings()));
    bucket.copy(&constant::publish(elsewhere.path(), "steady", "0", 0.5), "steady", "0");
    let package = constant::publish(elsewhere.path(), "steady", "2", 0.75);
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
    assert_eq!(constant::ask(&gateway, "steady"), Ok(("2".into(), 0.75)));
    let listed = gateway.settings.run(&["models", "list"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let listed: Vec<&str> = listed.lines().skip(1).collect();
    assert!(listed.len() == 2 && listed[1].starts_with("steady\t2\tlive\t"), "{listed:?}");
}

#[test]
fn a_large_version_is_uploaded_in_parts_and_fetched() {
    let (bucket, elsewhere, state) = (Bucket::start(), empty(), empty());
    let (manifest, mut files) = taken_apart(&constant::publish(elsewhere.path(), "steady", "1", 0.25));
    let mut reference = br#"{"rows":0,"padding":""#.to_vec();
    reference.extend((0..20_u32 << 20).map(|at| b'a' + u8::try_from(at % 23).unwrap()));
    reference.extend(br#""}"#);
    files.insert("reference.json".into(), reference);
    let place = store(&bucket, state.path()).publish(manifest, &borrowed(&files)).unwrap();
    assert_eq!(place, Path::new(&format!("{REPOSITORY}/steady/1")));
    let (gateway, _) = start(bucket.of(settings()));
    assert_eq!(constant::ask(&gateway, "steady"), Ok(("1".into(), 0.25)));
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
        bucket.copy(&constant::publish(elsewhere.path(), "steady", version, 0.25), "steady", version);
    }
    bucket.put("steady/rollout.json", br#"{"live":"1"}"#);
    let changes: u32 = if is_full() { 50 } else { 10 };
    let states = [empty(), empty()];
    // What each writes first is on its way at the same time.
    let (written, both) = (AtomicUsize::new(0), Barrier::new(2));
    let port = bucket.by_way_of(move |line| {
        let is_change = line.starts_with("PUT ") && line.contains("/rollout.json");
        if is_change && written.fetch_add(1, Ordering::SeqCst) < 2 {
            both.wait();
        }
        true
    });
    std::thread::scope(|scope| {
        for (state, version) in states.iter().zip(["2", "3"]) {
            let (store, log) = (store_by(port, state.path()), audit::Log::new(state.path()));
            scope.spawn(move || {
                for at in 1..=changes {
                    let percent = f64::from(at) / 100.0;
                    let change = Change::Canary { version: version.into(), percent, guard: None };
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
    bucket.copy(&constant::publish(elsewhere.path(), "broken", "1", 0.5), "broken", "1");
    bucket.put("broken/rollout.json", &vec![b' '; (256 << 10) + 1]);
    for (version, score) in [("1", 0.25), ("2", 0.75)] {
        bucket.copy(&constant::publish(elsewhere.path(), "steady", version, score), "steady", version);
    }
    bucket.put("steady/rollout.json", br#"{"live":"1"}"#);
    let (gateway, writer) = start(bucket.of(settings()));
    until_served(&gateway, "steady", "1");
    until_accepted(&gateway, "steady", "2");
    wait_for("a word about it", || said(&gateway, "a rollout cannot be mirrored").then_some(()));
    // A change elsewhere, with a canary of which a part is missing: the live version waits for none of that.
    let third = constant::publish(elsewhere.path(), "steady", "3", 0.5);
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
        .map(|score: f32| constant::publish(&elsewhere.path().join(score.to_string()), "steady", "1", score));
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
    // Nor where it is not known any more what was mirrored.
    fs::remove_file(store.local().root().join("steady/.1.objects.json")).unwrap();
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
            taken_apart(&constant::publish(&place, "steady", &version, score))
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

#[test]
fn what_is_to_be_live_waits_for_no_other_version() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    let copy = |model: &str, version: &str, score: f32| {
        bucket.copy(&constant::publish(elsewhere.path(), model, version, score), model, version);
    };
    copy("steady", "1", 0.25);
    copy("steady", "2", 0.75);
    let (gate, on_its_way) = (Arc::new(RwLock::new(())), Arc::new(AtomicUsize::new(0)));
    let closed = gate.write().unwrap();
    let port = bucket.by_way_of({
        let (gate, on_its_way) = (Arc::clone(&gate), Arc::clone(&on_its_way));
        move |line| {
            if line.contains("/9/model.onnx") {
                on_its_way.fetch_add(1, Ordering::SeqCst);
                drop(gate.read());
            }
            true
        }
    });
    let (gateway, writer) = start(Bucket::by(settings(), port));
    until_accepted(&gateway, "steady", "2");
    for model in ["large", "steady"] {
        copy(model, "9", 0.5);
    }
    wait_for("two versions on their way", || (on_its_way.load(Ordering::SeqCst) == 2).then_some(()));
    // Whoever changes something does not fetch them as well, though there is no rollout yet.
    let (status, answer) = promote(&gateway, &writer, "steady", "2");
    assert_eq!((status, &answer["previous"]), (200, &json!("1")), "{answer}");
    assert_eq!(on_its_way.load(Ordering::SeqCst), 2);
    until_served(&gateway, "steady", "2");
    copy("steady", "3", 0.125);
    bucket.put("steady/rollout.json", br#"{"live":"3"}"#);
    until_served(&gateway, "steady", "3");
    drop(closed);
    until_accepted(&gateway, "steady", "9");
}

#[test]
fn nobody_is_live_because_another_version_cannot_be_fetched() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    for version in ["1", "2", "3"] {
        bucket.copy(&constant::publish(elsewhere.path(), "steady", version, 0.25), "steady", version);
    }
    let without = |file: &'static str| {
        Bucket::by(settings(), bucket.by_way_of(move |line| !line.contains(&format!("/steady/1/{file}"))))
    };
    let refused = |settings: &Settings, arguments: &[&str], why: &str| {
        let done = settings.run(&[&["models"], arguments].concat());
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && error.contains(why), "{arguments:?}: {error}");
        assert_eq!(bucket.get("steady/rollout.json"), None, "{arguments:?}");
    };
    let (shadow, canary) = (["shadow", "steady@3"], ["canary", "steady@3", "--percent", "5"]);
    // Which one was published first cannot be told.
    refused(&without("manifest.json"), &shadow, "steady/1/manifest.json");
    let graph = bucket.get("steady/1/model.onnx").unwrap();
    bucket.delete("steady/1/model.onnx");
    refused(&bucket.of(settings()), &shadow, "version 1 is not all there");
    bucket.put("steady/1/model.onnx", &graph);
    // It can, and what its rows are need not be known for a shadow.
    let hindered = without("model.onnx");
    refused(&hindered, &canary, "steady/1");
    let done = hindered.run(&[&["models"], &shadow[..]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let rollout: Rollout = serde_json::from_slice(&bucket.get("steady/rollout.json").unwrap()).unwrap();
    assert_eq!((rollout.live.as_str(), rollout.shadow.as_deref()), ("1", Some("3")));
}

#[test]
fn a_mirror_that_somebody_empties_is_filled_with_all_that_was_there() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    for (version, score) in [("1", 0.25), ("2", 0.75)] {
        bucket.copy(&constant::publish(elsewhere.path(), "steady", version, score), "steady", version);
    }
    let rollout = br#"{"live":"1","canaries":[{"version":"2","percent":100}]}"#;
    bucket.put("steady/rollout.json", rollout);
    let (gateway, _) = start(bucket.of(settings()));
    until_served(&gateway, "steady", "2");
    let mirrors = gateway.settings.directory().join("state/buckets");
    let mirror = fs::read_dir(mirrors).unwrap().next().unwrap().unwrap().path();
    // Something may be written there at this moment.
    wait_for("an empty mirror", || fs::remove_dir_all(&mirror).ok());
    wait_for("the rollout", || {
        fs::read(mirror.join("steady/rollout.json")).ok().filter(|found| found == rollout)
    });
    for version in ["1", "2"] {
        wait_for("the versions", || Package::read(&mirror.join("steady").join(version)).ok());
    }
    until_served(&gateway, "steady", "2");
    assert!(!said(&gateway, "the bucket cannot be read"), "{}", gateway.log().join("\n"));
}

#[test]
fn canaries_shadows_and_rollbacks_are_followed_from_gateway_to_gateway() {
    let (bucket, elsewhere) = (Bucket::start(), empty());
    for (version, score) in [("1", 0.25), ("2", 0.75), ("3", 0.5)] {
        bucket.copy(&constant::publish(elsewhere.path(), "steady", version, score), "steady", version);
    }
    let [(one, writer), (other, other_writer)] = [start(bucket.of(settings())), start(bucket.of(settings()))];
    let both = [&one, &other];
    for gateway in both {
        until_accepted(gateway, "steady", "3");
    }
    let told = |gateway: &Gateway| {
        let rollout = gateway.get("/v1/models/steady/rollout").json();
        let canaries = rollout["canaries"].as_array().cloned().unwrap_or_default();
        let canaries: Vec<Value> = canaries.iter().map(|canary| canary["version"].clone()).collect();
        json!([rollout["live"], canaries, rollout["shadow"], rollout["revision"]])
    };
    let until_told = |expected: Value| {
        for gateway in both {
            let found = wait_within(2 * LATE, || (told(gateway) == expected).then_some(()));
            assert!(found.is_some(), "{}, expected {expected}", told(gateway));
        }
    };
    let pinned = |gateway: &Gateway| {
        let request = Request::new("POST", "/v1/models/steady/predict")
            .header("Content-Type", "application/json")
            .header("X-Api-Key", &gateway.key)
            .header("X-Model-Version", "canary")
            .header("Content-Length", "9")
            .body(r#"{"a":0.5}"#);
        let answer = gateway.ask(&request);
        (answer.status == 200).then(|| constant::version_and_score("steady", &answer.json()))
    };
    let roll_back = |gateway: &Gateway, writer: &str| {
        let request = Request::new("POST", "/v1/models/steady/rollback")
            .header("X-Api-Key", writer)
            .header("Content-Length", "0");
        let answer = crate::support::Client::connect(gateway.admin_addr).ask(&request);
        assert_eq!(answer.status, 200, "{}", answer.text());
    };

    let rollout = json!({"live": "1", "canaries": [{"version": "2", "percent": 0}], "shadow": "3"});
    assert_eq!(roll_out(&one, &writer, "steady", &rollout).0, 200);
    until_told(json!(["1", ["2"], "3", 1]));
    for gateway in both {
        assert_eq!(wait_for("the canary", || pinned(gateway)), ("2".into(), 0.75));
        assert_eq!(constant::ask(gateway, "steady"), Ok(("1".into(), 0.25)));
    }
    let rollout = json!({"live": "1", "canaries": [{"version": "2", "percent": 100}], "shadow": "3"});
    assert_eq!(roll_out(&other, &other_writer, "steady", &rollout).0, 200);
    for gateway in both {
        until_served(gateway, "steady", "2");
    }
    // What one has begun the other takes back.
    roll_back(&one, &writer);
    until_told(json!(["1", [], null, 3]));
    for gateway in both {
        until_served(gateway, "steady", "1");
        assert_eq!(pinned(gateway), None);
    }
    assert_eq!(promote(&other, &other_writer, "steady", "2").0, 200);
    for gateway in both {
        until_served(gateway, "steady", "2");
    }
    roll_back(&one, &writer);
    until_told(json!(["1", [], null, 5]));
    for gateway in both {
        until_served(gateway, "steady", "1");
    }
}
