//! A small blocking HTTP/1.1 client over a raw socket, so that malformed bytes can be sent and whatever comes back is seen.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A request, headers in the order in which they are sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    announces_length: bool,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            headers: vec![("Host".into(), b"gateway".to_vec())],
            body: Vec::new(),
            announces_length: method == "POST",
        }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A JSON body posted to `target`.
    pub(crate) fn post(target: &str, body: impl AsRef<[u8]>) -> Self {
        Self::new("POST", target).header("Content-Type", "application/json").body(body)
    }

    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.into(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(held, _)| !held.eq_ignore_ascii_case(name));
        self
    }

    /// Replaces the content type.
    pub(crate) fn content_type(self, media_type: &str) -> Self {
        self.without("content-type").header("Content-Type", media_type)
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(held, _)| held.eq_ignore_ascii_case(name))
    }

    /// Bytes of the body.
    pub(crate) fn size(&self) -> usize {
        self.body.len()
    }

    /// The whole request as it goes over the wire, with its Content-Length.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The head with Content-Length and the empty line.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        if self.announces_length && !self.has("content-length") && !self.has("transfer-encoding") {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }
}

/// An answer, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Every value of a header, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(held, _)| held.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that is there once at most.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is there {} times: {self:?}", all.len());
        all.first().copied()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// The `code` of a problem document.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().into()
    }

    /// The probability of a single answer.
    pub(crate) fn probability(&self) -> f64 {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["churn_probability"].as_f64().unwrap()
    }
}

/// What goes over a socket: bytes as they are, or TLS.
pub(crate) trait Stream: Read + Write + Send + std::fmt::Debug {}

impl<S: Read + Write + Send + std::fmt::Debug> Stream for S {}

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    socket: TcpStream,
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        Self::over(addr, |socket| socket)
    }

    /// A connection on whose socket lies what `wrap` makes of it.
    pub(crate) fn over<S: Stream + 'static>(addr: SocketAddr, wrap: impl FnOnce(TcpStream) -> S) -> Self {
        let socket = TcpStream::connect(addr).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let stream = Box::new(wrap(socket.try_clone().unwrap()));
        Self { socket, stream, unread: Vec::new() }
    }

    /// Sends bytes; a peer that has hung up already is no failure here, its answer says why.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        match self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush()) {
            Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                panic!("{error}")
            }
            _ => {}
        }
    }

    /// Tells the peer that nothing more will come.
    pub(crate) fn finish_sending(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    /// Whether the peer has answered something, or closed the connection; reads nothing.
    pub(crate) fn has_answer(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let seen = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(false).unwrap();
        !matches!(seen, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask(&mut self, request: &Request) -> Answer {
        self.send(request.bytes());
        self.answer().unwrap_or_else(|| panic!("the connection was closed without an answer to {request:?}"))
    }

    /// The next answer; none if the peer closed the connection.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more() {
                assert!(self.unread.is_empty(), "cut off: {:?}", String::from_utf8_lossy(&self.unread));
                return None;
            }
        };
        let head = String::from_utf8(self.unread.drain(..end).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().strip_prefix("HTTP/1.").unwrap()[2..5].parse().unwrap();
        let headers = lines.map(|line| line.split_once(':').unwrap());
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length: usize = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        assert!(
            answer.header("transfer-encoding").is_none(),
            "this client reads no chunked answers: {answer:?}"
        );
        while self.unread.len() < length {
            assert!(self.read_more(), "the answer was cut off: {answer:?}");
        }
        answer.body = self.unread.drain(..length).collect();
        Some(answer)
    }

    /// Every answer up to the end of the connection, which the peer has to close.
    pub(crate) fn answers_until_close(&mut self) -> Vec<Answer> {
        std::iter::from_fn(|| self.answer()).collect()
    }

    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    self.unread.extend_from_slice(&buffer[..count]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }
}
