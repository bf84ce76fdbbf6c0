//! An S3-compatible store in a process of its own, and a way to it on which a command meets its end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::tls::Pair;
use super::{Answer, Client, Gateway, Request, Settings, python};

/// The repository in the store.
pub(crate) const REPOSITORY: &str = "s3://models/production/eu";
/// What the names of its objects begin with.
const PREFIX: &str = "/models/production/eu/";

/// The store with the empty bucket `models`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Bucket {
    child: Child,
    pub(crate) port: u16,
}

impl Bucket {
    pub(crate) fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/s3.py");
        let mut command = Command::new(python());
        command.arg(program).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().expect("the store says its port");
        let bucket = Self { child, port };
        assert_eq!(bucket.ask("PUT", "/models", b"").status, 200);
        bucket
    }

    /// `settings` of a gateway or a command that finds its models here, by way of `port`.
    pub(crate) fn by(settings: Settings, port: u16) -> Settings {
        settings
            .set("SCOREGATE_MODELS_DIR", REPOSITORY)
            .set("SCOREGATE_S3_ENDPOINT", &format!("http://127.0.0.1:{port}"))
            .set("AWS_ACCESS_KEY_ID", "gate")
            .set("AWS_SECRET_ACCESS_KEY", "secret")
    }

    /// The same, directly.
    pub(crate) fn of(&self, settings: Settings) -> Settings {
        Self::by(settings, self.port)
    }

    /// A port at which the same is reached by TLS alone, with this certificate. The store answers one request on each connection.
    pub(crate) fn by_tls(&self, pair: &Pair) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (store, config) = (SocketAddr::from(([127, 0, 0, 1], self.port)), pair.shown());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { break };
                let config = Arc::clone(&config);
                std::thread::spawn(move || pass_on(client, config, store));
            }
        });
        port
    }

    /// A port at which the same is reached by requests that `may_pass`, which is told their first line and may take its time; others are
    /// forbidden.
    pub(crate) fn by_way_of(&self, may_pass: impl Fn(&str) -> bool + Send + Sync + 'static) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (store, may_pass) = (SocketAddr::from(([127, 0, 0, 1], self.port)), Arc::new(may_pass));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(mut client) = client else { break };
                let may_pass = Arc::clone(&may_pass);
                std::thread::spawn(move || {
                    let asked = request(&mut client)?;
                    let line = asked.split(|byte| *byte == b'\r').next().unwrap_or_default();
                    let answer = if may_pass(&String::from_utf8_lossy(line)) {
                        answer(&asked, store)?
                    } else {
                        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
                    };
                    client.write_all(&answer).ok()
                });
            }
        });
        port
    }

    fn ask(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        let credential = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, \
                          Signature=0";
        let request = Request::new(method, target)
            .header("Authorization", credential)
            .header("Content-Type", "application/octet-stream")
            .header("Content-Length", body.len().to_string())
            .body(body);
        Client::connect(SocketAddr::from(([127, 0, 0, 1], self.port))).ask(&request)
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        assert_eq!(self.ask("PUT", &format!("{PREFIX}{key}"), bytes).status, 200, "{key}");
    }

    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let answer = self.ask("GET", &format!("{PREFIX}{key}"), b"");
        (answer.status == 200).then_some(answer.body)
    }

    pub(crate) fn delete(&self, key: &str) {
        assert_eq!(self.ask("DELETE", &format!("{PREFIX}{key}"), b"").status, 204, "{key}");
    }

    /// The names of all objects.
    pub(crate) fn keys(&self) -> Vec<String> {
        let listed = self.ask("GET", "/models?list-type=2", b"").text();
        let keys = listed.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        keys.filter_map(|(key, _)| Some(key.strip_prefix(&PREFIX["/models/".len()..])?.to_owned())).collect()
    }

    /// Puts the files of a package here as they are, the manifest last.
    pub(crate) fn copy(&self, package: &Path, model: &str, version: &str) {
        let mut names: Vec<String> = fs::read_dir(package)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_by_key(|name| name == "manifest.json");
        for name in names {
            self.put(&format!("{model}/{version}/{name}"), &fs::read(package.join(&name)).unwrap());
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes on one request that comes by TLS, and its answer. Whoever does not like the certificate sends none.
fn pass_on(client: TcpStream, config: Arc<ServerConfig>, store: SocketAddr) -> Option<()> {
    let mut client = StreamOwned::new(ServerConnection::new(config).unwrap(), client);
    let answer = answer(&request(&mut client)?, store)?;
    client.write_all(&answer).ok()?;
    client.conn.send_close_notify();
    client.flush().ok()
}

/// What the store answers to a request.
fn answer(request: &[u8], store: SocketAddr) -> Option<Vec<u8>> {
    let (mut store, mut answer) = (TcpStream::connect(store).ok()?, Vec::new());
    store.write_all(request).ok()?;
    store.read_to_end(&mut answer).ok()?;
    Some(answer)
}

/// When a command is killed that asks the store something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before the store has heard of it.
    Before,
    /// When the store has heard half of it.
    Half,
    /// When the store has done it, and the command does not know.
    After,
}

/// A proxy before the store that kills whoever sends the request with a certain number. The store answers one request on each
/// connection.
#[derive(Debug)]
pub(crate) struct Trap {
    pub(crate) port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    store: SocketAddr,
    requests: AtomicUsize,
    /// Which request is the last, from 0, and when in it.
    last: Mutex<Option<(usize, Moment)>>,
    /// Who is killed.
    victim: Mutex<Option<Pid>>,
}

impl Trap {
    /// One that lets everything through.
    pub(crate) fn before(bucket: &Bucket) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let store = SocketAddr::from(([127, 0, 0, 1], bucket.port));
        let state = Arc::new(State {
            store,
            requests: AtomicUsize::new(0),
            last: Mutex::new(None),
            victim: Mutex::new(None),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { break };
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Self { port, state }
    }

    /// Counts from 0 again, and kills who `start` starts at the request that is given, if one is. Says how many requests it sent, and
    /// whether it succeeded.
    pub(crate) fn run(&self, last: Option<(usize, Moment)>, start: impl FnOnce() -> Child) -> (usize, bool) {
        self.set(last, None);
        let mut child = start();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        *self.state.victim.lock().unwrap_or_else(PoisonError::into_inner) = Some(pid);
        let status = child.wait().unwrap();
        (self.set(None, None), status.success())
    }

    /// Counts from 0 again, and kills a gateway at the request that is given, if one is. Says how many there were before.
    pub(crate) fn arm(&self, gateway: &Gateway, last: Option<(usize, Moment)>) -> usize {
        self.set(last, Some(Pid::from_raw(gateway.pid())))
    }

    fn set(&self, last: Option<(usize, Moment)>, victim: Option<Pid>) -> usize {
        *self.state.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
        *self.state.victim.lock().unwrap_or_else(PoisonError::into_inner) = victim;
        self.state.requests.swap(0, Ordering::SeqCst)
    }
}

impl State {
    fn serve(&self, mut client: TcpStream) {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let moment = last.and_then(|(last, moment)| (number == last).then_some(moment));
        if moment == Some(Moment::Before) {
            return self.kill();
        }
        let Ok(mut store) = TcpStream::connect(self.store) else { return };
        let Some(request) = request(&mut client) else { return };
        if moment == Some(Moment::Half) {
            let _ = store.write_all(&request[..request.len() / 2]);
            self.kill();
            let _ = store.shutdown(Shutdown::Both);
            return;
        }
        let mut answer = Vec::new();
        if store.write_all(&request).is_err() || store.read_to_end(&mut answer).is_err() {
            return;
        }
        if moment.is_some() {
            return self.kill();
        }
        let _ = client.write_all(&answer);
    }

    fn kill(&self) {
        // It is told at once after it was started, which takes less time than connecting takes it.
        let victim = super::wait_for("the one to kill", || {
            *self.victim.lock().unwrap_or_else(PoisonError::into_inner)
        });
        kill(victim, Signal::SIGKILL).unwrap();
    }
}

/// A whole request with a body of a stated length.
fn request(client: &mut impl Read) -> Option<Vec<u8>> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 64 * 1024]);
    loop {
        let count = client.read(&mut buffer).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
        if bytes.len() >= end + 4 + length {
            return Some(bytes);
        }
    }
}
