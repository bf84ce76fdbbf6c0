//! The audit log: who did what to which model or key, one JSON document a line, appended and never rewritten.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scoregate_schemas::rollout::Author;
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::aside::Aside;
use crate::files;

/// How long a record that a client waits for may take, all in.
const PATIENCE: Duration = Duration::from_secs(2);
/// What it is called in the state directory.
const FILE: &str = "audit.jsonl";

/// Why an action could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error(
    "the audit log {} cannot be written; make it writable, or set SCOREGATE_STATE_DIR",
    .path.display()
)]
pub struct Error {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Actor {
    kind: &'static str,
    id: String,
}

impl Actor {
    /// Whoever runs this command, by the operating system's account.
    pub fn operator() -> Self {
        let uid = nix::unistd::getuid();
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        Self { kind: "operator", id: user.map_or_else(|| uid.to_string(), |user| user.name) }
    }

    /// A caller of the gateway, by the id that logs name it by.
    pub fn caller(id: impl Into<String>) -> Self {
        Self { kind: "caller", id: id.into() }
    }

    /// The gateway of its own accord.
    pub fn gateway() -> Self {
        Self { kind: "gateway", id: "scoregate".into() }
    }

    /// As a rollout names whoever has changed it.
    pub fn author(&self) -> Author {
        Author { kind: self.kind.into(), id: self.id.clone() }
    }
}

/// One line of the log, but for its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    actor: Actor,
    action: &'static str,
    target: String,
    #[serde(flatten)]
    details: Map<String, Value>,
}

impl Event {
    /// `actor` did `action`, such as `key.created`, to `target`.
    pub fn new(actor: Actor, action: &'static str, target: impl Into<String>) -> Self {
        Self { actor, action, target: target.into(), details: Map::new() }
    }

    /// The same event with one more fact; never a secret.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, fact: impl Into<Value>) -> Self {
        self.details.insert(name.into(), fact.into());
        self
    }
}

/// The log of a state directory. Gateways and commands that share the directory append to one file.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// The log in `state_dir`. Nothing is made before there is something to record.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE) }
    }

    /// Records an event; on return it is on the disk.
    ///
    /// # Errors
    /// [`Error`] if it is not recorded: what was to be done must not be done then.
    pub fn record(&self, event: &Event) -> Result<(), Error> {
        self.append(event).and_then(|file| file.sync_data()).map_err(|source| self.error(source))
    }

    /// Records an event of which there are many, such as a token issued, and leaves it to the system when the disk has it.
    ///
    /// # Errors
    /// [`Error`] if it is not recorded.
    pub fn note(&self, event: &Event) -> Result<(), Error> {
        self.append(event).map(drop).map_err(|source| self.error(source))
    }

    /// Opened for each event: the file may be moved away and kept elsewhere at any time.
    fn open(&self) -> std::io::Result<File> {
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).mode(0o600);
        match options.open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let directory = files::parent(&self.path);
        files::make_directory(directory)?;
        let file = options.create(true).open(&self.path)?;
        files::give_to_owner_of(&file, directory)?;
        Ok(file)
    }

    fn append(&self, event: &Event) -> std::io::Result<File> {
        #[derive(Serialize)]
        struct Line<'e> {
            time: String,
            #[serde(flatten)]
            event: &'e Event,
        }
        let mut file = self.open()?;
        // Appending is atomic on local disks; on others, the lock makes it so.
        files::lock(&file)?;
        let time = OffsetDateTime::now_utc().format(&Rfc3339).map_err(std::io::Error::other)?;
        let mut line = Vec::new();
        if !ends_a_line(&mut file)? {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, &Line { time, event })?;
        line.push(b'\n');
        file.write_all(&line)?;
        file.unlock()?;
        Ok(file)
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error { path: self.path.clone(), source }
    }
}

/// Records what clients wait for, on a thread of its own: neither a disk nor a lock may hold up those that serve.
#[derive(Debug)]
pub struct Recorder {
    log: Log,
    thread: Aside,
}

impl Recorder {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's, if it has no more threads.
    pub fn start(log: Log) -> std::io::Result<Self> {
        Ok(Self { log, thread: Aside::start("scoregate-audit")? })
    }

    /// See [`Log::note`].
    ///
    /// # Errors
    /// [`Error`] if it is not recorded, or not within two seconds.
    pub async fn note(&self, event: Event) -> Result<(), Error> {
        let log = self.log.clone();
        let noted = tokio::time::timeout(PATIENCE, self.thread.run(move || log.note(&event)));
        let failed = |why: String| self.log.error(std::io::Error::other(why));
        match noted.await {
            Ok(Ok(noted)) => noted,
            Ok(Err(_)) => Err(failed("too many records wait for it".into())),
            Err(_) => Err(failed(format!("it does not answer within {PATIENCE:?}"))),
        }
    }
}

/// Whether what is written next begins a line; it does not after a writer was cut off, by a full disk for example.
fn ends_a_line(file: &mut File) -> std::io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn lines(log: &Log) -> Vec<Value> {
        let text = fs::read_to_string(&log.path).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn an_event_is_one_line_whatever_strings_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::new(&directory.path().join("new"));
        let target = "shop\n{\"action\":\"forged\"}\r\u{1b}[2J\u{2028}";
        let event = Event::new(Actor::caller("key_1"), "client.created", target).with("scopes", vec!["a\nb"]);
        log.record(&event).unwrap();
        log.note(&Event::new(Actor::operator(), "key.revoked", "key_2")).unwrap();
        let lines = lines(&log);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0]["target"], target);
        assert_eq!(lines[0]["actor"], serde_json::json!({"kind": "caller", "id": "key_1"}));
        assert_eq!(lines[0]["scopes"], serde_json::json!(["a\nb"]));
        assert!(OffsetDateTime::parse(lines[0]["time"].as_str().unwrap(), &Rfc3339).is_ok());
        assert_eq!(lines[1]["actor"]["kind"], "operator");
        assert!(!lines[1]["actor"]["id"].as_str().unwrap().is_empty());
        assert_eq!(fs::metadata(&log.path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn writers_at_once_tear_no_line() {
        const WRITERS: usize = 8;
        const EVENTS: usize = 50;
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                // Each with its own log, as processes have.
                let log = Log::new(directory.path());
                scope.spawn(move || {
                    for at in 0..EVENTS {
                        let event = Event::new(Actor::gateway(), "token.issued", format!("{writer}.{at}"))
                            .with("filling", "x".repeat(5_000));
                        log.note(&event).unwrap();
                    }
                });
            }
        });
        let mut targets: Vec<String> = lines(&Log::new(directory.path()))
            .iter()
            .map(|line| line["target"].as_str().unwrap().to_owned())
            .collect();
        targets.sort();
        targets.dedup();
        assert_eq!(targets.len(), WRITERS * EVENTS);
    }

    #[test]
    fn a_line_that_was_cut_off_costs_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::new(directory.path());
        fs::write(&log.path, "{\"time\":\"20").unwrap();
        log.record(&Event::new(Actor::gateway(), "signing_key.created", "kid")).unwrap();
        let text = fs::read_to_string(&log.path).unwrap();
        let whole: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(whole["target"], "kid");
    }

    #[test]
    fn a_log_that_cannot_be_written_says_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        // A file in the directory's place stops whoever runs this, the superuser too.
        let place = directory.path().join("state");
        fs::write(&place, "").unwrap();
        let log = Log::new(&place);
        let event = Event::new(Actor::gateway(), "signing_key.created", "kid");
        let error = log.record(&event).unwrap_err();
        assert!(error.to_string().contains(&format!("{}/audit.jsonl", place.display())), "{error}");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::new(directory.path());
        std::os::unix::fs::symlink("/dev/full", &log.path).unwrap();
        let event = Event::new(Actor::gateway(), "token.issued", "client_1");
        assert_eq!(log.record(&event).unwrap_err().source.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(log.note(&event).unwrap_err().source.kind(), std::io::ErrorKind::StorageFull);
    }

    #[tokio::test]
    async fn whoever_locks_the_log_holds_up_its_writers_only_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::new(directory.path());
        let event = || Event::new(Actor::gateway(), "token.issued", "client_1");
        log.note(&event()).unwrap();
        let recorder = Recorder::start(log.clone()).unwrap();
        let held = File::open(&log.path).unwrap();
        held.lock_shared().unwrap();
        let others = async {
            // This thread goes on while the record waits.
            for _ in 0..10 {
                tokio::time::sleep(PATIENCE / 100).await;
            }
            std::time::Instant::now()
        };
        let noted = async { (recorder.note(event()).await, std::time::Instant::now()) };
        let ((refused, at), others) = tokio::join!(noted, others);
        assert!(refused.is_err() && others < at);
        drop(held);
        // What was given up may still be under way.
        while recorder.note(event()).await.is_err() {}
        assert_eq!(lines(&log).last().unwrap()["target"], "client_1");
    }

    #[test]
    fn a_log_that_the_superuser_begins_is_its_directory_s() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(directory.path(), Some(12_345), Some(12_345)).unwrap();
        }
        let log = Log::new(&directory.path().join("state"));
        log.note(&Event::new(Actor::operator(), "key.created", "key_1")).unwrap();
        let owner = |path: &Path| fs::metadata(path).unwrap().uid();
        assert_eq!(owner(&log.path), owner(directory.path()));
        assert_eq!(owner(log.path.parent().unwrap()), owner(directory.path()));
    }
}
