//! Publishing that ends in the middle, at any step: there is the whole version or none, and another try publishes it.

use std::path::Path;
use std::time::Duration;

use scoregate_model::package::{Package, Repository};

use crate::support::bucket::{Bucket, Moment, Trap};
use crate::support::constant::{Importable, ask_constant};
use crate::support::{Gateway, Settings, is_full, scratch, wait_for, wait_within};

/// How often somebody is killed.
fn rounds() -> usize {
    if is_full() { 50 } else { 10 }
}

/// What changes something that others can see.
const CALLS: &str = "mkdir,openat,write,fsync,fchmod,chmod,rename,renameat,renameat2,unlink,rmdir";

fn empty() -> tempfile::TempDir {
    tempfile::tempdir_in(scratch()).unwrap()
}

/// A gateway that looks at the repository all the time.
fn watching(settings: Settings) -> Gateway {
    settings.set("SCOREGATE_POLL_INTERVAL", "10ms").set("SCOREGATE_DEFAULT_MODEL", "steady").start()
}

fn settings() -> Settings {
    Settings::new().set("SCOREGATE_STATE_DIR", "state")
}

/// Nothing that is wrong with any version was ever seen.
fn check_nothing_refused(gateway: &Gateway) {
    let lines = gateway.log();
    let wrong = ["version refused", "model not served", "cannot be served", "altered", "panicked"];
    let found: Vec<_> = lines.iter().filter(|line| wrong.iter().any(|word| line.contains(word))).collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// Publishes `version` again, which fails only if it is there.
fn publish_again(settings: &Settings, importable: &Importable, version: &str) -> bool {
    let arguments = importable.arguments(version);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = settings.run(&arguments);
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() || error.contains("is published already"), "{error}");
    done.status.success()
}

/// Waits until the gateway may serve each of `versions`, and has it answer with the last.
fn check_usable(gateway: &Gateway, settings: &Settings, model: &str, versions: &[String], score: f32) {
    for version in versions {
        let accepted = wait_within(Duration::from_secs(60), || {
            let shown = gateway.get(&format!("/v1/models/{model}/versions/{version}")).json();
            ["accepted", "live"].contains(&shown["state"].as_str()?).then_some(())
        });
        assert!(accepted.is_some(), "{version} is not accepted:\n{}", gateway.log().join("\n"));
    }
    let last = versions.last().unwrap();
    let promoted = settings.run(&["models", "promote", &format!("{model}@{last}")]);
    assert!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    wait_for("the last version", || {
        (ask_constant(gateway, model) == Ok((last.clone(), score))).then_some(())
    });
    check_nothing_refused(gateway);
}

/// A call by its name, and the how many-th of that name it is.
type Call<'c> = (&'c str, usize);

/// Runs `scoregate` with `arguments` under strace, which kills it at the call `at`, where one is given, and says which calls it made.
fn traced(settings: &Settings, arguments: &[&str], at: Option<Call<'_>>) -> Vec<String> {
    let log = empty();
    let log = log.path().join("calls");
    let trace = format!("trace={CALLS}");
    // Only its first thread, in which it publishes: what it starts to examine the model is another process.
    let mut words = vec!["strace", "-qq", "-o", log.to_str().unwrap(), "-e", &trace];
    let inject = at.map(|(name, number)| format!("inject={name}:signal=SIGKILL:when={number}"));
    if let Some(inject) = &inject {
        words.extend(["-e", inject]);
    }
    let done = settings.run_under(&words, arguments);
    assert_eq!(at.is_none(), done.status.success(), "{at:?}: {}", String::from_utf8_lossy(&done.stderr));
    let calls = std::fs::read_to_string(log).unwrap();
    assert_eq!(at.is_some(), calls.contains("+++ killed by SIGKILL +++"), "{at:?}: {calls}");
    calls.lines().filter(|line| !line.starts_with("+++")).map(str::to_owned).collect()
}

#[test]
fn a_directory_has_whole_versions_or_none() {
    let models = empty();
    let importable = Importable::new("steady", 0.75);
    let command = settings().models(models.path());
    assert!(publish_again(&command, &importable, "first"));
    let gateway = watching(settings().models(models.path()));
    let import = |version: &str, at: Option<Call<'_>>| {
        let arguments = importable.arguments(version);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        traced(&command, &arguments, at)
    };
    // How many calls there are, and with which it begins to write into the repository.
    let calls = import("counted", None);
    let root = models.path().to_str().unwrap();
    let first = calls.iter().position(|call| call.contains(root) && call.contains(".publishing-"));
    let first = first.expect("a hidden directory is made");
    let name = |at: usize| calls[at].split('(').next().unwrap();
    let (rounds, count) = (rounds(), calls.len() - first);
    assert!(count >= 10, "{calls:#?}");
    let mut versions = vec!["counted".to_owned()];
    let mut left = 0;
    for round in 0..rounds {
        let version = format!("killed-{round}");
        // Spread over all of them, the last one among them.
        let at = first + round * (count - 1) / (rounds - 1);
        let number = (0..=at).filter(|before| name(*before) == name(at)).count();
        import(&version, Some((name(at), number)));
        // Whatever is there by that name is whole.
        let repository = Repository::new(models.path());
        let is_there = repository.versions("steady").unwrap().contains(&version);
        if is_there {
            Package::read(&repository.directory("steady", &version)).unwrap();
        } else {
            left += 1;
        }
        assert_eq!(publish_again(&command, &importable, &version), !is_there, "{version} at {}", calls[at]);
        versions.push(version);
    }
    println!("{rounds} killed, of which {left} before the version was there, of {count} calls");
    assert!(left >= rounds / 4, "kills have to come before the version is there, too");
    check_usable(&gateway, &command, "steady", &versions, 0.75);
}

#[test]
fn a_bucket_has_whole_versions_or_none() {
    let bucket = Bucket::start();
    let trap = Trap::before(&bucket);
    let importable = Importable::new("steady", 0.75);
    // One mirror for all who publish, so that each has the same to ask.
    let command = Bucket::by(settings(), trap.port);
    assert!(publish_again(&command, &importable, "first"));
    let gateway = watching(bucket.of(settings()));
    let import = |version: &str, last: Option<(usize, Moment)>| {
        let arguments = importable.arguments(version);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        trap.run(last, || command.start_command(&arguments))
    };
    let (count, is_done) = import("counted", None);
    assert!(is_done && count > 8, "{count} requests");
    let mut versions = vec!["counted".to_owned()];
    let (mut left, rounds) = (0, rounds());
    for round in 0..rounds {
        let version = format!("killed-{round}");
        let moment = [Moment::Before, Moment::Half, Moment::After][round % 3];
        // The first requests see what is there, before the model is examined.
        let at = 1 + round * (count - 2) / (rounds - 1);
        let (_, is_done) = import(&version, Some((at, moment)));
        assert!(!is_done, "it was killed at request {at} of {count}, {moment:?}");
        let is_there = bucket.get(&format!("steady/{version}/manifest.json")).is_some();
        left += usize::from(!is_there);
        let again = publish_again(&command, &importable, &version);
        assert_eq!(again, !is_there, "{version} at request {at} of {count}, {moment:?}");
        versions.push(version);
    }
    println!("{rounds} killed, of which {left} before the version was there, of {count} requests");
    assert!(left >= rounds / 4 && left < rounds, "kills have to come before and after: {left}");
    check_usable(&gateway, &command, "steady", &versions, 0.75);
    // Whoever begins with nothing finds all of them whole.
    let fresh = bucket.of(settings());
    let listed = fresh.run(&["models", "list"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(listed.lines().count(), versions.len() + 2, "{listed}");
    let mirrors = fresh.directory().join("state/buckets");
    let mirror = std::fs::read_dir(mirrors).unwrap().next().unwrap().unwrap().path();
    for version in &versions {
        Package::read(&Path::new(&mirror).join("steady").join(version)).unwrap();
    }
}
