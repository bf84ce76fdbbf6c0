//! Publishing that ends in the middle, at any step: there is the whole version or none, and another try publishes it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scoregate_model::package::{Package, Repository};

use crate::support::bucket::{Bucket, Moment, Trap};
use crate::support::constant::{self, Importable};
use crate::support::{
    Answer, Client, Gateway, Request, Settings, is_full, pause, scratch, wait_for, wait_within,
};
use crate::upload::{BOUNDARY, form};

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
        (constant::ask(gateway, model) == Ok((last.clone(), score))).then_some(())
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

/// A gateway that is sent versions and killed, again and again; what it has on the disk stays.
struct Sent<'w> {
    /// The first one's, whose working directory has the state and the keys.
    first: Settings,
    key: String,
    writer: String,
    importable: Importable,
    /// Where its models are.
    on: Box<dyn Fn(Settings) -> Settings + 'w>,
}

impl<'w> Sent<'w> {
    fn new(on: impl Fn(Settings) -> Settings + 'w) -> Self {
        let first = on(settings());
        let importable = Importable::new("steady", 0.75);
        assert!(publish_again(&first, &importable, "first"));
        let writer = first.key_with(&["--name", "writer", "--scopes", "models:write,models:read"]);
        Self { key: first.key(), writer, first, importable, on: Box::new(on) }
    }

    fn state(&self) -> PathBuf {
        self.first.directory().join("state")
    }

    fn start(&self, wrapper: &[&str]) -> Gateway {
        let settings = (self.on)(Settings::new())
            .set("SCOREGATE_STATE_DIR", self.state().to_str().unwrap())
            .set("SCOREGATE_API_KEYS_FILE", self.first.directory().join("api_keys.json").to_str().unwrap())
            .set("SCOREGATE_DEFAULT_MODEL", "steady");
        settings.under(wrapper).start_with(&self.key)
    }

    fn until_accepted(&self, gateway: &Gateway, version: &str) {
        let accepted = wait_within(Duration::from_secs(60), || {
            let shown = gateway.get(&format!("/v1/models/steady/versions/{version}")).json();
            ["accepted", "live"].contains(&shown["state"].as_str()?).then_some(())
        });
        assert!(accepted.is_some(), "{version} is not accepted:\n{}", gateway.log().join("\n"));
    }

    /// Begins to send a version: all of it, or what is left without the last `less` bytes.
    fn begin(&self, gateway: &Gateway, version: &str, less: usize) -> Client {
        let arguments = self.importable.arguments(version);
        let file = |flag: &str| {
            let at = arguments.iter().position(|argument| argument == flag).unwrap();
            fs::read(&arguments[at + 1]).unwrap()
        };
        // As many rows as take a while to examine.
        let rows: String = (0..40_000).map(|at| format!("{}\n", f64::from(at % 97) / 97.0)).collect();
        let body = form(&[
            ("version", version.as_bytes()),
            ("schema", &file("--schema")),
            ("golden", &file("--golden")),
            ("bindings", &file("--bindings")),
            ("reference", format!("a\n{rows}").as_bytes()),
            ("model", &file("import")),
        ]);
        let request = Request::new("POST", "/v1/models/steady/versions")
            .header("X-Api-Key", &self.writer)
            .header("Content-Type", format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(&body);
        let mut client = Client::connect(gateway.admin_addr);
        client.send(request.head());
        client.send(&body[..body.len() - less]);
        client
    }

    fn send(&self, gateway: &Gateway, version: &str) -> Answer {
        self.begin(gateway, version, 0).answer().unwrap()
    }

    /// What is in hand of uploads, or was left.
    fn uploads(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.state().join("uploads")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    /// Waits for the end of a gateway that is killed and of whatever it has started; then starts another one, which finds `version` as
    /// `is_there` says, and publishes it if it is not.
    fn take_up(&self, killed: Gateway, version: &str, is_there: impl Fn() -> bool) -> bool {
        let place = killed.settings.directory().to_path_buf();
        let exit = killed.exit();
        assert_eq!(exit.code, None, "it was to be killed: {}", exit.log);
        wait_for("all that it has started to end", || processes_in(&place).is_empty().then_some(()));
        let is_there = is_there();
        let gateway = self.start(&[]);
        assert_eq!(self.uploads(), Vec::<PathBuf>::new(), "{version}");
        if is_there {
            self.until_accepted(&gateway, version);
        } else {
            assert_eq!(
                gateway.get(&format!("/v1/models/steady/versions/{version}")).status,
                404,
                "{version}"
            );
        }
        let answer = self.send(&gateway, version);
        let expected = if is_there { (409, "version_exists") } else { (201, "") };
        assert_eq!(answer.status, expected.0, "{version}: {}", answer.text());
        self.until_accepted(&gateway, version);
        check_nothing_refused(&gateway);
        is_there
    }
}

/// Processes that work in `directory`, which may be gone, by what the system tells of each.
fn processes_in(directory: &Path) -> Vec<PathBuf> {
    let directory = directory.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    // One that has ended and was not waited for works nowhere.
    let works_there = |process: &PathBuf| {
        fs::read_link(process.join("cwd")).is_ok_and(|at| at.to_string_lossy().starts_with(directory))
    };
    processes.filter(works_there).collect()
}

#[test]
fn a_gateway_that_is_killed_while_it_takes_in_a_version_leaves_it_whole_or_not_at_all() {
    let models = empty();
    let sent = Sent::new(|settings| settings.models(models.path()));
    let is_there = |version: &str| {
        let repository = Repository::new(models.path());
        let is_there = repository.versions("steady").unwrap().iter().any(|found| found == version);
        if is_there {
            Package::read(&repository.directory("steady", version)).unwrap();
        }
        is_there
    };
    // While it comes, and while it is examined.
    let gateway = sent.start(&[]);
    sent.until_accepted(&gateway, "first");
    let client = sent.begin(&gateway, "half", 1_000);
    wait_for("a part of it", || fs::metadata(sent.uploads().pop()?.join("reference.csv")).ok());
    gateway.signal(Signal::SIGKILL);
    assert!(!sent.take_up(gateway, "half", || is_there("half")));
    drop(client);
    let mut left = 0;
    for round in 0..rounds() / 5 {
        let version = format!("examined-{round}");
        let gateway = sent.start(&[]);
        sent.until_accepted(&gateway, "half");
        let client = sent.begin(&gateway, &version, 0);
        let place = gateway.settings.directory().to_path_buf();
        let examiner = wait_for("the process that examines it", || {
            let is_bound = |process: &PathBuf| {
                let read = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
                read("cmdline").contains("sandbox") && read("status").contains("NoNewPrivs:\t1")
            };
            processes_in(&place).into_iter().find(is_bound)
        });
        if round % 2 == 0 {
            // It cannot end by itself.
            let number = examiner.file_name().unwrap().to_str().unwrap().parse().unwrap();
            kill(Pid::from_raw(number), Signal::SIGSTOP).unwrap();
        } else {
            pause(Duration::from_millis(20) * u32::try_from(round).unwrap());
        }
        gateway.signal(Signal::SIGKILL);
        left += usize::from(!sent.take_up(gateway, &version, || is_there(&version)));
        drop(client);
    }
    assert!(left > 0, "kills have to come while it is examined");
    // While it is published: at calls of the thread that does, which no other thread has made as often by then.
    let traced = |version: &str, at: Option<&Call<'_>>| {
        let log = sent.first.directory().join(format!("{version}.calls"));
        let trace = format!("trace={CALLS}");
        let inject = at.map(|(name, number)| format!("inject={name}:signal=SIGKILL:when={number}"));
        let mut words = vec!["strace", "-D", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace];
        words.extend(inject.iter().flat_map(|inject| ["-e", inject]));
        let gateway = sent.start(&words);
        sent.until_accepted(&gateway, "half");
        (sent.begin(&gateway, version, 0), gateway, log)
    };
    let (mut client, gateway, log) = traced("counted", None);
    assert_eq!(client.answer().unwrap().status, 201);
    gateway.signal(Signal::SIGKILL);
    assert!(sent.take_up(gateway, "counted", || is_there("counted")));
    let calls = calls_of_publisher(&fs::read_to_string(log).unwrap());
    assert!(calls.len() >= 8, "{calls:?}");
    let (rounds, mut left) = (rounds() / 2, 0);
    for round in 0..rounds {
        let version = format!("killed-{round}");
        let (name, number) = &calls[round * (calls.len() - 1) / (rounds - 1)];
        let (_client, gateway, _) = traced(&version, Some(&(name, *number)));
        left += usize::from(!sent.take_up(gateway, &version, || is_there(&version)));
    }
    println!("{rounds} killed while they published, {left} before the version was there, of {calls:?}");
    assert!(left > 0 && left < rounds, "kills have to come before and after: {left}");
}

/// The calls with which a thread publishes, from the first that is seen in the repository: each by its name and the how many-th of
/// that name it is in that thread, where no other thread had made as many by then.
fn calls_of_publisher(log: &str) -> Vec<(String, usize)> {
    let calls = log.lines().filter_map(|line| {
        let (thread, call) = line.split_once(' ')?;
        let (name, _) = call.trim_start().split_once('(')?;
        (!name.contains(['<', '+', '-', ' '])).then_some((thread, name, call))
    });
    let calls: Vec<(&str, &str, &str)> = calls.collect();
    let is_first = |call: &str| call.contains("mkdir(") && call.contains(".publishing-");
    let first = calls.iter().position(|(_, _, call)| is_first(call)).expect("a hidden directory is made");
    let publisher = calls[first].0;
    let (mut made, mut found) = (HashMap::<(&str, &str), usize>::new(), Vec::new());
    for (at, (thread, name, _)) in calls.iter().enumerate() {
        let number = *made.entry((*thread, *name)).and_modify(|number| *number += 1).or_insert(1);
        let is_alone =
            made.iter().all(|((other, called), count)| other == thread || called != name || *count < number);
        // What others do all the time comes sooner or later than it did here.
        let is_steady = !["write", "openat"].contains(name);
        if *thread == publisher && at >= first && is_alone && is_steady {
            found.push(((*name).to_owned(), number));
        }
    }
    found
}

#[test]
fn a_gateway_that_is_killed_while_it_publishes_in_a_bucket_leaves_the_version_whole_or_not_at_all() {
    let bucket = Bucket::start();
    let trap = Trap::before(&bucket);
    // Looking at the bucket is no part of what is counted.
    let sent = Sent::new(|settings| Bucket::by(settings, trap.port).set("SCOREGATE_POLL_INTERVAL", "60s"));
    let is_there = |version: &str| bucket.get(&format!("steady/{version}/manifest.json")).is_some();
    let gateway = sent.start(&[]);
    sent.until_accepted(&gateway, "first");
    trap.arm(&gateway, None);
    assert_eq!(sent.send(&gateway, "counted").status, 201);
    let count = trap.arm(&gateway, None);
    assert!(count >= 6, "{count} requests");
    gateway.signal(Signal::SIGKILL);
    assert!(sent.take_up(gateway, "counted", || is_there("counted")));
    let (rounds, mut left) = (rounds() / 2, 0);
    for round in 0..rounds {
        let version = format!("killed-{round}");
        let moment = [Moment::Before, Moment::Half, Moment::After][round % 3];
        let at = round * (count - 1) / (rounds - 1);
        let gateway = sent.start(&[]);
        sent.until_accepted(&gateway, "counted");
        trap.arm(&gateway, Some((at, moment)));
        let client = sent.begin(&gateway, &version, 0);
        left += usize::from(!sent.take_up(gateway, &version, || is_there(&version)));
        drop(client);
    }
    println!(
        "{rounds} killed while they published, {left} before the version was there, of {count} requests"
    );
    assert!(left > 0 && left < rounds, "kills have to come before and after: {left}");
    // Whoever begins with nothing finds all of them whole.
    let fresh = bucket.of(settings());
    assert!(fresh.run(&["models", "list"]).status.success());
    let mirrors = fresh.directory().join("state/buckets");
    let mirror = fs::read_dir(mirrors).unwrap().next().unwrap().unwrap().path();
    for version in (0..rounds).map(|round| format!("killed-{round}")) {
        Package::read(&mirror.join("steady").join(version)).unwrap();
    }
}
