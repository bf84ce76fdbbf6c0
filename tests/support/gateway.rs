//! A gateway in a process of its own, on free ports, with its log read as it is written.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{Answer, Client, PATIENCE, Request, repository, scratch, wait_for, wait_within};

/// The settings of a gateway that is to be started.
#[derive(Debug)]
pub(crate) struct Settings {
    directory: TempDir,
    environment: BTreeMap<String, String>,
    wrapper: Vec<String>,
    binary: PathBuf,
    flags: Vec<String>,
}

impl Settings {
    /// The repository of fitted models, free ports, JSON logs, no quotas, no keys yet.
    pub(crate) fn new() -> Self {
        let models = repository().models.to_str().unwrap();
        // Shared, so that a package which many tests serve is tried once.
        let state = scratch().join("state");
        Self::bare()
            .set("SCOREGATE_STATE_DIR", state.to_str().unwrap())
            .set("SCOREGATE_MODELS_DIR", models)
            .set("SCOREGATE_ADDR", "127.0.0.1:0")
            .set("SCOREGATE_ADMIN_ADDR", "127.0.0.1:0")
            .set("SCOREGATE_LOG_FORMAT", "json")
            // Tests send faster than any quota lets them; those of quotas set one.
            .set("SCOREGATE_QUOTA", "off")
    }

    /// Nothing set, in an empty working directory.
    pub(crate) fn bare() -> Self {
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        let binary = env!("CARGO_BIN_EXE_scoregate").into();
        Self { directory, environment: BTreeMap::new(), wrapper: Vec::new(), binary, flags: Vec::new() }
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    pub(crate) fn models(self, directory: &Path) -> Self {
        self.set("SCOREGATE_MODELS_DIR", directory.to_str().unwrap())
    }

    /// Runs the gateway under another program, such as `strace`.
    pub(crate) fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
        self
    }

    /// Runs the gateway with a disk of this size at `place`, which the shell expands, and which nobody else sees but by
    /// [`Gateway::see`].
    pub(crate) fn on_disk(self, size: &str, place: &str) -> Self {
        let may = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).output();
        let may = may.is_ok_and(|output| output.status.success());
        assert!(
            may,
            "found no user namespaces, expected `unshare --map-root-user --mount true` to work, to make a small disk"
        );
        let script =
            format!(r#"mkdir -p "{place}" && mount -t tmpfs -o size={size} none "{place}" && exec "$@""#);
        self.under(&["unshare", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
    }

    /// Runs this binary in place of cargo's.
    pub(crate) fn binary(mut self, binary: &Path) -> Self {
        self.binary = binary.into();
        self
    }

    /// Flags of `serve`.
    pub(crate) fn flags(mut self, flags: &[&str]) -> Self {
        self.flags = flags.iter().map(ToString::to_string).collect();
        self
    }

    /// The working directory, where `api_keys.json` lies by default.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let binary = self.binary.to_str().unwrap();
        let mut words =
            self.wrapper.iter().map(String::as_str).chain([binary]).chain(arguments.iter().copied());
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_clear().envs(&self.environment).current_dir(self.directory.path());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command to its end under another program, such as `strace`.
    pub(crate) fn run_under(&self, wrapper: &[&str], arguments: &[&str]) -> Output {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(&self.binary).args(arguments);
        command.env_clear().envs(&self.environment).current_dir(self.directory.path()).output().unwrap()
    }

    /// Starts a command whose output nobody reads.
    pub(crate) fn start_command(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Makes a key with all that tests of scoring need.
    pub(crate) fn key(&self) -> String {
        self.key_with(&["--name", "test", "--scopes", "score:predict,models:read"])
    }

    /// Makes a key.
    pub(crate) fn key_with(&self, arguments: &[&str]) -> String {
        let made = self.run_keys(&[&["create"], arguments].concat());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let printed = String::from_utf8(made.stdout).unwrap();
        assert_eq!(printed.lines().count(), 1, "a key stands alone on standard output: {printed}");
        printed.trim().into()
    }

    /// Runs `scoregate keys`, without any setting but the working directory.
    pub(crate) fn run_keys(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scoregate"));
        command.arg("keys").args(arguments).env_clear().current_dir(self.directory.path()).output().unwrap()
    }

    /// Starts the gateway with a key and waits until it is ready.
    pub(crate) fn start(self) -> Gateway {
        let key = self.key();
        self.start_with(&key)
    }

    /// Starts the gateway, which knows the `key` already, and waits until it is ready.
    pub(crate) fn start_with(self, key: &str) -> Gateway {
        let mut gateway = self.spawn();
        gateway.key = key.into();
        let ready = gateway.wait_for_line("ready");
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        (gateway.addr, gateway.admin_addr) = (address("addr"), address("admin_addr"));
        gateway
    }

    /// Starts the gateway and waits for nothing.
    pub(crate) fn spawn(self) -> Gateway {
        let flags: Vec<&str> =
            std::iter::once("serve").chain(self.flags.iter().map(String::as_str)).collect();
        let mut command = self.command(&flags);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::default();
        let (stderr, lines) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        std::thread::spawn(move || {
            for line in stderr.lines() {
                let Ok(line) = line else { break };
                lines.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Gateway { child, log, addr: nowhere, admin_addr: nowhere, key: String::new(), settings: self }
    }
}

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

/// A gateway; killed when dropped.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    log: Log,
    pub(crate) addr: SocketAddr,
    pub(crate) admin_addr: SocketAddr,
    /// A key of scopes `score:predict` and `models:read`.
    pub(crate) key: String,
    pub(crate) settings: Settings,
}

/// How a gateway ended.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    /// All that it wrote on standard error.
    pub(crate) log: String,
}

impl Gateway {
    /// With default settings over the fitted models.
    pub(crate) fn start() -> Self {
        Settings::new().start()
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    /// Sends one request on a connection of its own.
    pub(crate) fn ask(&self, request: &Request) -> Answer {
        self.connect().ask(request)
    }

    /// Posts JSON with the key.
    pub(crate) fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask(&self.with_key(Request::post(target, body)))
    }

    /// Gets with the key.
    pub(crate) fn get(&self, target: &str) -> Answer {
        self.ask(&self.with_key(Request::get(target)))
    }

    pub(crate) fn with_key(&self, request: Request) -> Request {
        request.header("X-Api-Key", &self.key)
    }

    /// A file as the gateway sees it, which may have disks of its own.
    pub(crate) fn see(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid())).join(path.strip_prefix("/").unwrap())
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Every log line so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every log line about the requests that were answered so far: lines are written in order, a moment after what they tell of.
    pub(crate) fn log_so_far(&self) -> Vec<String> {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("mark-{}-", MARKS.fetch_add(1, Ordering::Relaxed));
        self.ask(&Request::get("/health").header("X-Request-Id", &mark));
        wait_for("the log", || {
            let log = self.log();
            log.iter().any(|line| line.contains(&mark)).then_some(log)
        })
    }

    /// The first log line with this message, once it is there.
    pub(crate) fn wait_for_line(&mut self, message: &str) -> Value {
        let found = wait_within(PATIENCE, || {
            // Whether it has ended is asked before the log is read, so that its last words are not missed.
            let ended = self.child.try_wait().unwrap().is_some();
            let lines = self.log();
            let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let line = lines.find(|line| line["message"] == message);
            if line.is_some() || ended { Some(line) } else { None }
        });
        match found.flatten() {
            Some(line) => line,
            None => panic!("the gateway never said \"{message}\":\n{}", self.log().join("\n")),
        }
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory that it ever had, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Lets [`Gateway::peak`] begin anew at what is resident now.
    pub(crate) fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// How the gateway ended, once it has.
    pub(crate) fn exit(mut self) -> Exit {
        let status = wait_for("the gateway to end", || self.child.try_wait().unwrap());
        // The reader of the log ends with the pipe, and only it holds the log besides this.
        wait_within(Duration::from_secs(5), || (Arc::strong_count(&self.log.0) == 1).then_some(()));
        Exit { code: status.code(), log: self.log().join("\n") }
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The keys file.
    pub(crate) fn keys_file(&self) -> PathBuf {
        self.settings.directory().join("api_keys.json")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gateway with default settings that tests share as long as any of them holds it.
pub(crate) fn shared() -> Arc<Gateway> {
    static SHARED: Mutex<Weak<Gateway>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let gateway = Arc::new(Gateway::start());
        *shared = Arc::downgrade(&gateway);
        gateway
    })
}
