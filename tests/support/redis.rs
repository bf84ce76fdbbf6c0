//! Redis servers in processes of their own, a cluster of them, a pair with a sentinel, and a proxy that spoils the way to one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{pause, scratch, wait_for, wait_within};

/// The password of servers that have one.
pub(crate) const SECRET: &str = "a-secret-of-redis";

/// What a user has to be allowed, by the page on Redis, and what besides in a cluster, at servers that sentinels watch, and at
/// sentinels.
pub(crate) const RIGHTS: [&str; 12] = [
    "on",
    ">secret",
    "~scoregate:*",
    "&scoregate:*",
    "+evalsha",
    "+eval",
    "+get",
    "+set",
    "+mget",
    "+time",
    "+subscribe",
    "+publish",
];
pub(crate) const CLUSTER_RIGHTS: [&str; 3] = ["+ping", "+cluster|slots", "+asking"];
pub(crate) const MASTER_RIGHTS: [&str; 1] = ["+role"];
pub(crate) const SENTINEL_RIGHTS: [&str; 3] = ["on", ">secret", "+sentinel|get-master-addr-by-name"];

/// A Redis server with an empty database; killed when dropped.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Child,
    pub(crate) port: u16,
    directory: TempDir,
    arguments: Vec<String>,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Redis {
    /// A server that keeps nothing on disk.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// The same with further arguments of `redis-server`.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        // Somebody else may have got the port in the meantime.
        let started = (0..10).find_map(|_| {
            let port = free_port();
            let mut all: Vec<String> = ["--bind", "127.0.0.1", "--save", "", "--port"].map(Into::into).into();
            all.push(port.to_string());
            all.extend(arguments.iter().map(ToString::to_string));
            let mut child = run(directory.path(), &all);
            wait_listening(&mut child, port).then_some((child, port, all))
        });
        let (child, port, arguments) = started.expect("redis-server (`cargo xtask test` installs it) starts");
        Self { child, port, directory, arguments }
    }

    /// A sentinel that watches the server on `port` under the name `main`, and alone decides that it is lost. It and its servers
    /// have a [`SECRET`].
    pub(crate) fn sentinel(port: u16) -> Self {
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        let own = free_port();
        let config = directory.path().join("sentinel.conf");
        let text = format!(
            "bind 127.0.0.1\nport {own}\nsentinel monitor main 127.0.0.1 {port} 1\n\
             sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 2000\n\
             requirepass {SECRET}\nsentinel auth-pass main {SECRET}\n"
        );
        std::fs::write(&config, text).unwrap();
        let arguments = vec![config.to_str().unwrap().to_owned(), "--sentinel".into()];
        let mut child = run(directory.path(), &arguments);
        assert!(wait_listening(&mut child, own), "a sentinel starts");
        Self { child, port: own, directory, arguments }
    }

    /// Where it is, for the gateway.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What it answers to a command.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let mut command = Command::new("redis-cli");
        // Servers without a password complain on standard error alone.
        command.env("REDISCLI_AUTH", SECRET);
        let output = command.args(["-p", &port]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Gives the user `gate` such rights.
    pub(crate) fn allow(&self, rights: &[&[&str]]) {
        assert_eq!(self.ask(&[&["ACL", "SETUSER", "gate"], &rights.concat()[..]].concat()), "OK");
    }

    /// What that user was not allowed, but for what newer servers are told of clients by the library.
    pub(crate) fn denied(&self) -> Vec<String> {
        let log = self.ask(&["--raw", "ACL", "LOG"]);
        let objects = log.lines().zip(log.lines().skip(1)).filter(|(name, _)| *name == "object");
        let objects = objects.map(|(_, object)| object.to_owned());
        objects.filter(|object| object != "client|setinfo").collect()
    }

    /// The names of its keys.
    pub(crate) fn keys(&self) -> Vec<String> {
        let keys = self.ask(&["--raw", "KEYS", "*"]);
        keys.lines().filter(|key| !key.is_empty()).map(str::to_owned).collect()
    }

    /// The keys that never expire.
    pub(crate) fn keys_for_ever(&self) -> String {
        let script = "local found = {} for _, key in ipairs(redis.call('KEYS', '*')) do \
                      if redis.call('PTTL', key) == -1 then table.insert(found, key) end end return found";
        self.ask(&["--raw", "EVAL", script, "0"])
    }

    /// How many policies it has been asked about since it started, each of which is read once; none while it is not there.
    pub(crate) fn questions(&self) -> u64 {
        let statistics = self.ask(&["INFO", "commandstats"]);
        let calls = |line: &str| {
            let calls = line.strip_prefix("cmdstat_get:calls=")?;
            calls.split(',').next()?.parse::<u64>().ok()
        };
        statistics.lines().find_map(calls).unwrap_or(0)
    }

    /// The bytes that lie under `key`; none if there are none.
    pub(crate) fn value(&self, key: &str) -> Option<Vec<u8>> {
        let (length, mut stream) = self.raw(&[b"GET", key.as_bytes()]);
        let length = length.strip_prefix('$').unwrap_or_else(|| panic!("{length}"));
        // A length of -1 is that of nothing.
        let mut value = vec![0; usize::try_from(length.parse::<i64>().unwrap()).ok()?];
        stream.read_exact(&mut value).unwrap();
        Some(value)
    }

    /// Puts bytes under `key`, for a minute.
    pub(crate) fn put(&self, key: &str, value: &[u8]) {
        let (answer, _) = self.raw(&[b"SET", key.as_bytes(), value, b"PX", b"60000"]);
        assert_eq!(answer, "+OK");
    }

    /// The first line that it answers to a command of any bytes, which no command line could take, and whatever follows.
    fn raw(&self, words: &[&[u8]]) -> (String, BufReader<TcpStream>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            command.extend_from_slice(word);
            command.extend_from_slice(b"\r\n");
        }
        stream.write_all(&command).unwrap();
        let (mut stream, mut line) = (BufReader::new(stream), String::new());
        stream.read_line(&mut line).unwrap();
        (line.trim_end().into(), stream)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Ends it like a power cut.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Redis::kill`]: where it was, and empty.
    pub(crate) fn start_again(&mut self) {
        let started = wait_within(super::PATIENCE, || {
            self.child = run(self.directory.path(), &self.arguments);
            wait_listening(&mut self.child, self.port).then_some(())
        });
        started.expect("redis-server starts where it was");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(directory: &Path, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(arguments).current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until the process takes connections, or has ended.
fn wait_listening(child: &mut Child, port: u16) -> bool {
    wait_for("redis-server to listen or to end", || {
        if child.try_wait().unwrap().is_some() {
            return Some(false);
        }
        TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(true)
    })
}

/// A cluster of three masters.
#[derive(Debug)]
pub(crate) struct Cluster(pub(crate) Vec<Redis>);

impl Cluster {
    pub(crate) fn start() -> Self {
        let nodes = (0..3).map(|_| {
            let port = free_port().to_string();
            Redis::with(&["--cluster-enabled", "yes", "--cluster-port", &port])
        });
        let nodes: Vec<Redis> = nodes.collect();
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let mut command = Command::new("redis-cli");
        command.args(["--cluster", "create"]).args(&addresses).arg("--cluster-yes");
        let made = command.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Self(nodes);
        wait_for("the cluster", || {
            let is_whole = |node: &Redis| node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
            cluster.0.iter().all(is_whole).then_some(())
        });
        cluster
    }

    pub(crate) fn url(&self) -> String {
        let addresses: Vec<String> = self.0.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    /// The keys of all.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.0.iter().flat_map(Redis::keys).collect()
    }

    /// The node that serves `key`.
    pub(crate) fn owner(&self, key: &str) -> usize {
        let owner = self.0.iter().position(|node| node.keys().iter().any(|held| held == key));
        owner.unwrap_or_else(|| panic!("nobody has {key}"))
    }

    /// Moves the slot of `key` to the node `to` as an operator does, staying for a while between all steps: keys are then on
    /// one node or the other, and the slot belongs to the first.
    pub(crate) fn move_slot(&self, key: &str, to: usize, stay: Duration) {
        let from = self.owner(key);
        let id = |at: usize| self.0[at].ask(&["CLUSTER", "MYID"]);
        let (slot, port) = (self.0[0].ask(&["CLUSTER", "KEYSLOT", key]), self.0[to].port.to_string());
        let done = |at: usize, words: &[&str]| {
            let answer = self.0[at].ask(words);
            assert!(["OK", "NOKEY"].contains(&answer.as_str()), "{words:?}: {answer}");
        };
        done(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
        done(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
        pause(stay);
        let keys = self.0[from].ask(&["--raw", "CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
        for key in keys.lines().filter(|key| !key.is_empty()) {
            done(from, &["MIGRATE", "127.0.0.1", &port, key, "0", "1000"]);
        }
        pause(stay);
        for at in [to, from] {
            done(at, &["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
        }
        for at in 0..self.0.len() {
            let _ = self.0[at].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
        }
    }
}

/// A proxy before a server, which can be told to spoil the way.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    is_cut: AtomicBool,
    /// How late everything comes back, in milliseconds.
    delay: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub(crate) fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            target: SocketAddr::from(([127, 0, 0, 1], port)),
            is_cut: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { break };
                shared.serve(client);
            }
        });
        Self { port: own, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Cuts every connection, and every further one at once.
    pub(crate) fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
        let mut open = self.state.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub(crate) fn mend(&self) {
        self.state.is_cut.store(false, Ordering::SeqCst);
    }

    /// Everything that comes back comes late.
    pub(crate) fn delay(&self, delay: Duration) {
        self.state.delay.store(delay.as_millis().try_into().unwrap(), Ordering::SeqCst);
    }
}

impl State {
    fn serve(self: &Arc<Self>, client: TcpStream) {
        if self.is_cut.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(self.target) else { return };
        for (from, to, is_answer) in [(&client, &server, false), (&server, &client, true)] {
            to.set_nodelay(true).unwrap();
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let state = Arc::clone(self);
            std::thread::spawn(move || {
                let mut buffer = [0; 64 * 1024];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    let delay = state.delay.load(Ordering::SeqCst);
                    if is_answer && delay > 0 {
                        pause(Duration::from_millis(delay));
                    }
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.extend([client, server]);
    }
}
