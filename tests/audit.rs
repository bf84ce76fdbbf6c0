//! The record of who did what: what it holds, that nothing is done without it, and that it holds up nobody.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use scoregate_model::package::Repository;
use serde_json::Value;

use crate::support::{
    Answer, Client, PREDICT, REFERENCE, Request, Settings, badfile, repository, scratch, wait_for,
};

/// Somebody else.
const STRANGER: u32 = 12_345;

/// A gateway with an issuer, whose state directory is its own.
fn issuing() -> Settings {
    let settings = Settings::new().set("SCOREGATE_OAUTH_ISSUER", "https://scores.example");
    let keys = settings.directory().join("issuer_keys.json");
    settings.set("SCOREGATE_STATE_DIR", "state").set("SCOREGATE_OAUTH_KEYS_FILE", keys.to_str().unwrap())
}

fn log(settings: &Settings) -> PathBuf {
    settings.directory().join("state/audit.jsonl")
}

fn events(settings: &Settings, action: &str) -> Vec<Value> {
    let text = fs::read_to_string(log(settings)).unwrap_or_default();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["action"] == action).collect()
}

/// Lets the disk be full as far as the audit log is concerned.
fn fill(settings: &Settings) {
    let log = log(settings);
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    let _ = fs::remove_file(&log);
    symlink("/dev/full", &log).unwrap();
}

/// Makes a client by the command line; what it shows to be given tokens.
fn client(settings: &Settings) -> String {
    let made = settings.run(&["clients", "create", "--name", "shop", "--scopes", "score:predict"]);
    assert!(made.status.success(), "{}", said(&made));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let pair = format!("{}:{}", made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    format!("Basic {}", STANDARD.encode(pair))
}

fn token(credentials: &str) -> Request {
    Request::post("/oauth/token", "grant_type=client_credentials")
        .content_type("application/x-www-form-urlencoded")
        .header("Authorization", credentials)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Copies the fitted version of model `churn` into a repository under another name.
fn copy_in(models: &Path, name: &str) {
    let (copy, version) = repository().copy_of("churn");
    let path = version.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["version"] = name.into();
    fs::write(&path, manifest.to_string()).unwrap();
    fs::create_dir_all(models.join("churn")).unwrap();
    fs::rename(version, models.join("churn").join(name)).unwrap();
    drop(copy);
}

#[test]
fn nothing_is_promoted_published_or_issued_while_it_cannot_be_recorded() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    copy_in(models.path(), "a");
    copy_in(models.path(), "b");
    let rollout = models.path().join("churn/rollout.json");
    fs::write(&rollout, r#"{"live":"a"}"#).unwrap();
    let settings = issuing().models(models.path());
    let operator = settings.key_with(&["--name", "operator", "--scopes", "models:write"]);
    let shop = client(&settings);
    let gateway = settings.start();
    let settings = &gateway.settings;
    assert_eq!(gateway.ask(&token(&shop)).status, 200);
    fill(settings);

    let body = r#"{"live":"b"}"#;
    let promote = Request::new("PUT", "/v1/models/churn/rollout")
        .header("X-Api-Key", &operator)
        .header("Content-Type", "application/json")
        .header("Content-Length", body.len().to_string())
        .body(body);
    let refused = Client::connect(gateway.admin_addr).ask(&promote);
    assert_eq!((refused.status, refused.code().as_str()), (500, "audit_unavailable"));
    let promoted = settings.run(&["models", "promote", "churn@b"]);
    assert!(!promoted.status.success() && said(&promoted).contains("audit.jsonl"), "{}", said(&promoted));
    assert_eq!(fs::read_to_string(&rollout).unwrap(), r#"{"live":"a"}"#);

    let place = tempfile::tempdir_in(scratch()).unwrap();
    let write = |name: &str, text: &[u8]| {
        let path = place.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let import = [
        "import",
        &write("model.onnx", &badfile::good().encode_to_vec()),
        "--name",
        "tree",
        "--schema",
        &write("schema.json", badfile::schema("tree").to_string().as_bytes()),
        "--golden",
        &write("golden.jsonl", badfile::golden().as_bytes()),
    ];
    let refused = settings.run(&import);
    assert!(!refused.status.success() && said(&refused).contains("audit.jsonl"), "{}", said(&refused));
    assert!(Repository::new(models.path()).versions("tree").unwrap().is_empty(), "it is published");

    let refused = gateway.ask(&token(&shop));
    assert_eq!((refused.status, refused.code().as_str()), (503, "temporarily_unavailable"));
    assert!(!refused.text().contains("access_token") && refused.header("retry-after").is_some());
    let made = settings.run(&["token", "--client", "shop"]);
    assert!(!made.status.success() && made.stdout.is_empty(), "{}", said(&made));
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200, "scoring goes on");

    // The same things, once there is room.
    fs::remove_file(log(settings)).unwrap();
    let imported = settings.run(&import);
    assert!(imported.status.success(), "{}", said(&imported));
    assert!(settings.run(&["models", "promote", "churn@b"]).status.success());
    assert_eq!(gateway.ask(&token(&shop)).status, 200);
    let published = events(settings, "version.published");
    let [published] = published.as_slice() else { panic!("{published:?}") };
    assert!(published["target"].as_str().unwrap().starts_with("tree@"), "{published}");
    assert_eq!(events(settings, "version.promoted")[0]["target"], "churn@b");
    // It is there already: nothing is done, and nothing recorded.
    let again =
        [&import[..], &["--version", published["target"].as_str().unwrap().rsplit('@').next().unwrap()]];
    assert!(!settings.run(&again.concat()).status.success());
    assert_eq!(events(settings, "version.published").len(), 1);
}

#[test]
fn whatever_version_goes_live_is_recorded_by_the_gateway() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    copy_in(models.path(), "a");
    let gateway = Settings::new().models(models.path()).set("SCOREGATE_STATE_DIR", "state").start();
    let live = |count: usize| {
        wait_for("the record of a version that is live", || {
            Some(events(&gateway.settings, "version.live")).filter(|events| events.len() == count)
        })
    };
    assert_eq!(live(1)[0]["target"], "churn@a", "at the start");
    // Without a word to the gateway or its commands.
    copy_in(models.path(), "b");
    fs::write(models.path().join("churn/rollout.json"), r#"{"live":"b"}"#).unwrap();
    let events = live(2);
    assert_eq!((&events[1]["target"], &events[1]["actor"]["kind"]), (&"churn@b".into(), &"gateway".into()));
    assert!(events[1]["digest"].as_str().unwrap().starts_with("sha256:"), "{}", events[1]);
    // Nor does the lack of a record stop a version.
    fill(&gateway.settings);
    fs::write(models.path().join("churn/rollout.json"), r#"{"live":"a"}"#).unwrap();
    wait_for("version a", || (gateway.get("/v1/models/churn").json()["live"] == "a").then_some(()));
    wait_for("a complaint", || {
        gateway.log().iter().any(|line| line.contains("the audit log does not say so")).then_some(())
    });
}

#[test]
fn whoever_locks_the_log_holds_up_no_scoring() {
    let settings = issuing();
    let shop = client(&settings);
    let gateway = settings.start();
    assert_eq!(gateway.ask(&token(&shop)).status, 200);
    let held = File::open(log(&gateway.settings)).unwrap();
    held.lock_shared().unwrap();
    // More than there are threads, so that each of them has one that waits.
    let answers: Vec<(Answer, Duration)> = std::thread::scope(|scope| {
        let ask = || {
            let begun = Instant::now();
            (gateway.ask(&token(&shop)), begun.elapsed())
        };
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        let begun = Instant::now();
        while !asking.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let sent = Instant::now();
            assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
            assert!(sent.elapsed() < Duration::from_secs(1), "a row waited {:?}", sent.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(30), "tokens are waited for for ever");
        }
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (answer, took) in answers {
        assert_eq!((answer.status, answer.code().as_str()), (503, "temporarily_unavailable"));
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    drop(held);
    wait_for("a token", || (gateway.ask(&token(&shop)).status == 200).then_some(()));
}

#[test]
fn a_pipe_in_the_place_of_a_file_holds_up_nobody() {
    let mut gateway = issuing().set("SCOREGATE_DRAIN_DELAY", "0s").start();
    for file in ["api_keys.json", "issuer_keys.json", "oauth_clients.json"] {
        let path = gateway.settings.directory().join(file);
        let _ = fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    }
    wait_for("complaints about all", || {
        let log = gateway.log();
        let complaints = log.iter().filter(|line| line.contains("no regular file"));
        (complaints.count() >= 3).then_some(())
    });
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200, "the keys stay as they were");
    assert!(gateway.is_running());
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(gateway.exit().code, Some(0));
}

/// Owner, group and mode.
fn whose(path: &Path) -> (u32, u32, u32) {
    let found = fs::metadata(path).unwrap();
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_command_of_the_superuser_leaves_the_files_to_the_gateway_s_user() {
    let settings = issuing();
    let stranger = is_root().then_some(STRANGER);
    chown(settings.directory(), stranger, stranger).unwrap();
    settings.key();
    client(&settings);
    let file = |name: &str| settings.directory().join(name);
    let (owner, _, _) = whose(settings.directory());
    for name in ["api_keys.json", "oauth_clients.json", "state", "state/audit.jsonl"] {
        assert_eq!(whose(&file(name)).0, owner, "{name}");
    }
    let keys = file("api_keys.json");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o640)).unwrap();
    let before = whose(&keys);
    assert!(settings.run(&["keys", "revoke", "test"]).status.success());
    assert_eq!(whose(&keys), before);
}

#[test]
fn a_command_that_would_lock_out_the_gateway_changes_nothing() {
    if !is_root() {
        // Nobody else can make a file that is not their own.
        eprintln!("NOT TESTED: this test has to be run by root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let binary = directory.path().join("scoregate");
    fs::copy(env!("CARGO_BIN_EXE_scoregate"), &binary).unwrap();
    let keys = directory.path().join("api_keys.json");
    let run = |user: u32, arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(arguments).env_clear().current_dir(directory.path()).uid(user).gid(user);
        command.output().unwrap()
    };
    let made = run(0, &["keys", "create", "--name", "web", "--scopes", "score:predict"]);
    assert!(made.status.success(), "{}", said(&made));
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o644)).unwrap();
    let before = (whose(&keys), fs::read(&keys).unwrap());
    // With the lock that the superuser has made, and without it.
    for expected in ["api_keys.json.lock", "cannot keep the owner"] {
        let refused = run(STRANGER, &["keys", "revoke", "web"]);
        assert!(!refused.status.success());
        assert!(said(&refused).contains(expected), "{}", said(&refused));
        assert_eq!((whose(&keys), fs::read(&keys).unwrap()), before);
        let _ = fs::remove_file(directory.path().join("api_keys.json.lock"));
    }
}

#[test]
fn models_that_cannot_be_are_no_key_s() {
    let settings = Settings::new();
    for kind in ["keys", "clients"] {
        let arguments =
            [kind, "create", "--name", "web", "--scopes", "score:predict", "--models", "other,,chu rn"];
        let refused = settings.run(&arguments);
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{kind}");
        assert!(said(&refused).contains("expected a model's name"), "{kind}: {}", said(&refused));
    }
}
