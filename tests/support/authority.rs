//! The HTTP side of an authorisation server, in the tests' own process: answers as it is told, and counts who asks.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::{PATIENCE, pause};

/// What somebody asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Question {
    /// A parameter of a form.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        let mut pairs = url::form_urlencoded::parse(&self.body);
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

/// How a path is answered.
#[derive(Clone)]
pub(crate) enum Reply {
    /// 200 with a JSON document.
    Json(Value),
    /// Anything.
    Other { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// 200 and then the body one byte at a time.
    Drip(Vec<u8>, Duration),
    /// 200 and then so many bytes of white space before the body, without a length.
    Padded(usize, Vec<u8>),
    /// A JSON document after a while.
    Late(Value, Duration),
    /// Nothing, for as long as the peer waits.
    Hang,
    /// The connection is closed.
    Close,
    /// What this makes of the question.
    Made(Arc<dyn Fn(&Question) -> Reply + Send + Sync>),
}

impl Reply {
    /// An answer of this status without a body.
    pub(crate) fn status(status: u16) -> Self {
        Self::Other { status, headers: Vec::new(), body: Vec::new() }
    }

    /// A redirect.
    pub(crate) fn redirect(to: &str) -> Self {
        Self::Other { status: 302, headers: vec![("Location", to.into())], body: Vec::new() }
    }

    /// 200 with this body.
    pub(crate) fn body(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::Other { status: 200, headers: vec![("Content-Type", content_type.into())], body: body.into() }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Reply")
    }
}

#[derive(Debug, Default)]
struct State {
    replies: Mutex<BTreeMap<String, Reply>>,
    questions: Mutex<Vec<Question>>,
    connections: AtomicUsize,
    has_ended: AtomicBool,
}

/// A server that ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) addr: SocketAddr,
    state: Arc<State>,
}

impl Authority {
    /// On a free port of this machine.
    pub(crate) fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Where another one was.
    pub(crate) fn start_at(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.has_ended.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { addr, state }
    }

    /// Its URL, without a slash at the end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers `path` so from now on.
    pub(crate) fn set(&self, path: &str, reply: Reply) {
        self.state.replies.lock().unwrap_or_else(PoisonError::into_inner).insert(path.into(), reply);
    }

    /// How often `path` was asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.questions().iter().filter(|question| question.path == path).count()
    }

    /// All that was asked.
    pub(crate) fn questions(&self) -> Vec<Question> {
        self.state.questions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.state.has_ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts, which then lets go of the port.
        drop(TcpStream::connect(self.addr));
        super::wait_within(PATIENCE, || TcpListener::bind(self.addr).is_ok().then_some(()));
    }
}

impl State {
    fn serve(&self, stream: TcpStream) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let Some(question) = read(&mut reader) else { return };
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).push(question.clone());
        let replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reply = replies.get(&question.path).cloned().unwrap_or_else(|| Reply::status(404));
        drop(replies);
        while let Reply::Made(make) = reply {
            reply = make(&question);
        }
        // A peer that has enough hangs up, which is its right.
        let _ = self.answer(stream, reply);
    }

    fn answer(&self, mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
        const HEAD: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n";
        match reply {
            Reply::Json(value) => {
                let body = value.to_string();
                write!(stream, "{HEAD}Content-Length: {}\r\n\r\n{body}", body.len())
            }
            Reply::Other { status, headers, body } => {
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n",
                    body.len()
                )?;
                for (name, value) in headers {
                    write!(stream, "{name}: {value}\r\n")?;
                }
                stream.write_all(b"\r\n")?;
                stream.write_all(&body)
            }
            Reply::Drip(body, every) => {
                write!(stream, "{HEAD}Content-Length: {}\r\n\r\n", body.len())?;
                for byte in body {
                    pause(every);
                    stream.write_all(&[byte])?;
                }
                Ok(())
            }
            Reply::Padded(count, body) => {
                write!(stream, "{HEAD}\r\n")?;
                let spaces = [b' '; 64 * 1024];
                for _ in 0..count.div_ceil(spaces.len()) {
                    stream.write_all(&spaces)?;
                }
                stream.write_all(&body)
            }
            Reply::Late(value, after) => {
                pause(after);
                self.answer(stream, Reply::Json(value))
            }
            Reply::Hang => {
                // The peer's end of the connection ends the wait.
                let _ = stream.read(&mut [0]);
                Ok(())
            }
            Reply::Close => Ok(()),
            Reply::Made(_) => unreachable!("it was made into another one"),
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Question> {
    let mut line = String::new();
    let mut next = || {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let line = next()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length: &String| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Question { method, path, headers, body })
}
