//! Every framing that is refused and every one that is not, through a real hyper server.

use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::*;

/// Reads at most `step` bytes at a time, or random numbers of them.
struct Trickle<S> {
    io: S,
    step: Step,
}

#[derive(Clone, Copy)]
enum Step {
    AtMost(usize),
    Random(Random),
}

impl Step {
    fn next(&mut self) -> usize {
        match self {
            Self::AtMost(step) => *step,
            Self::Random(random) => 1 + random.below(40),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Trickle<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let step = self.step.next().min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(step));
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        let bytes = part.filled().len();
        buf.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Trickle<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A peer in memory: what it sends, and what it has been sent.
struct Script {
    sends: Vec<u8>,
    sent: usize,
    receives: Vec<u8>,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = buf.remaining().min(self.sends.len() - self.sent);
        buf.put_slice(&self.sends[self.sent..self.sent + bytes]);
        self.sent += bytes;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.receives.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// xorshift64: the same numbers in every run.
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

type Seen = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Answers 200 with the method, the target and the body; 400 to a body that hyper could not read.
async fn echo(request: Request<Incoming>, seen: Seen) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let Ok(body) = request.into_body().collect().await else {
        let mut refused = Response::new(Full::default());
        *refused.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(refused);
    };
    let body = body.to_bytes();
    seen.lock().unwrap().push((line.clone(), body.to_vec()));
    Ok(Response::new(Full::new([line.as_bytes(), b" ", &body].concat().into())))
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    builder
}

/// Serves [`echo`] on an ephemeral port for as long as the runtime lives.
fn serve(runtime: &Runtime, step: Step) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let service = service_fn(|request| echo(request, Seen::default()));
            let io = TokioIo::new(StrictFraming::new(Trickle { io, step }));
            tokio::spawn(builder().serve_connection(io, service));
        }
    });
    address
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// The statuses and bodies of everything that a server sent.
fn answers(mut bytes: &[u8]) -> Vec<(u16, String)> {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let end = memchr::memmem::find(bytes, b"\r\n\r\n").expect("a whole head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        let (body, rest) = bytes[end + 4..].split_at(length);
        answers.push((status, String::from_utf8_lossy(body).into_owned()));
        bytes = rest;
    }
    answers
}

/// Sends bytes, keeps its own side open, and returns the answers and whether the server closed.
fn talk(address: SocketAddr, bytes: &[u8]) -> (Vec<(u16, String)>, bool) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.write_all(bytes).unwrap();
    let mut received = Vec::new();
    let closed = match socket.read_to_end(&mut received) {
        Ok(_) => true,
        Err(e) if e.kind() == ErrorKind::WouldBlock => false,
        Err(e) => panic!("the connection was reset after {:?}: {e}", String::from_utf8_lossy(&received)),
    };
    (answers(&received), closed)
}

fn statuses(answers: &[(u16, String)]) -> Vec<u16> {
    answers.iter().map(|(status, _)| *status).collect()
}

fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /p HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}").into_bytes()
}

fn get(fields: &str) -> Vec<u8> {
    format!("GET /g HTTP/1.1\r\n{fields}\r\n").into_bytes()
}

fn chunked(body: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// Each of these must be refused with one 400, and what follows it must never be read.
fn refused() -> Vec<(&'static str, Vec<u8>)> {
    let extension = "e".repeat(20_000);
    let trailers = "T: v\r\n".repeat(2_000);
    vec![
        ("length and chunked", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("chunked and length", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")),
        ("differing lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello")),
        ("equal lengths", post("Content-Length: 5\r\ncontent-length: 5\r\n", "hello")),
        ("length with plus", post("Content-Length: +7\r\n", "1234567")),
        ("negative length", post("Content-Length: -1\r\n", "")),
        ("length over u64", post("Content-Length: 18446744073709551616\r\n", "")),
        ("length of u64::MAX", post("Content-Length: 18446744073709551615\r\n", "")),
        ("list of lengths", post("Content-Length: 7, 7\r\n", "1234567")),
        ("empty length", post("Content-Length:\r\n", "")),
        ("hexadecimal length", post("Content-Length: 0x5\r\n", "hello")),
        ("length with a space", post("Content-Length: 1 0\r\n", "hellohello")),
        ("unknown coding", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
        ("two codings", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")),
        ("chunked twice in a list", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n")),
        ("identity", post("Transfer-Encoding: identity\r\n", "")),
        ("empty coding", post("Transfer-Encoding:\r\n", "0\r\n\r\n")),
        ("coding twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("coding with parameter", post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n")),
        ("chunked on 1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        ("bad chunk size", chunked("xyz\r\nhello\r\n0\r\n\r\n")),
        ("no chunk size", chunked("\r\nhello\r\n0\r\n\r\n")),
        ("signed chunk size", chunked("+5\r\nhello\r\n0\r\n\r\n")),
        ("chunk size with 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("chunk size over u64", chunked("10000000000000000\r\nhello\r\n0\r\n\r\n")),
        ("space after chunk size", chunked("5 \r\nhello\r\n0\r\n\r\n")),
        ("space before chunk size", chunked(" 5\r\nhello\r\n0\r\n\r\n")),
        ("chunk longer than its size", chunked("4\r\nhello\r\n0\r\n\r\n")),
        ("chunk shorter than its size", chunked("6\r\nhello\r\n0\r\n\r\n")),
        ("bare LF after chunk size", chunked("5\nhello\r\n0\r\n\r\n")),
        ("bare CR after chunk size", chunked("5\rhello\r\n0\r\n\r\n")),
        ("bare LF after chunk", chunked("5\r\nhello\n0\r\n\r\n")),
        ("bare LF after last chunk", chunked("5\r\nhello\r\n0\n\r\n")),
        ("bare LF at the end", chunked("5\r\nhello\r\n0\r\n\n")),
        ("bare LF in extension", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n")),
        ("NUL in extension", chunked("5;a\0b\r\nhello\r\n0\r\n\r\n")),
        ("NUL in last extension", chunked("0;a\0b\r\n\r\n")),
        ("20 KB extension", chunked(&format!("5;{extension}\r\nhello\r\n0\r\n\r\n"))),
        ("20 KB of zeros", chunked(&format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(20_000)))),
        ("trailer without name", chunked("0\r\n: v\r\n\r\n")),
        ("trailer without colon", chunked("0\r\nname\r\n\r\n")),
        ("folded trailer", chunked("0\r\nT: v\r\n w\r\n\r\n")),
        ("bare LF in trailer", chunked("0\r\nT: v\nU: w\r\n\r\n")),
        ("NUL in trailer", chunked("0\r\nT: \0\r\n\r\n")),
        ("length in trailer", chunked("0\r\nContent-Length: 5\r\n\r\n")),
        ("long trailers", chunked(&format!("0\r\n{trailers}\r\n"))),
        ("folded field", get("Host: a\r\nX: a\r\n b\r\n")),
        ("folded with tab", get("Host: a\r\nX: a\r\n\tTransfer-Encoding: chunked\r\n")),
        ("space before first field", get(" Host: a\r\n")),
        ("space before colon", get("Host: a\r\nX : a\r\n")),
        ("tab before colon", post("Content-Length\t: 5\r\n", "hello")),
        ("space in name", get("Host: a\r\nX Y: a\r\n")),
        ("no colon", get("Host: a\r\nX\r\n")),
        ("no name", get("Host: a\r\n: a\r\n")),
        ("parenthesis in name", get("Host: a\r\nX(Y): a\r\n")),
        ("non-ASCII name", get("Host: a\r\nX\u{e9}: a\r\n")),
        ("bare LF after field", get("Host: a\nX: a\r\n")),
        ("bare LF after line", b"GET / HTTP/1.1\nHost: a\r\n\r\n".to_vec()),
        ("bare LF at the end of a head", b"GET / HTTP/1.1\r\nHost: a\r\n\n".to_vec()),
        ("bare LFs only", b"GET / HTTP/1.1\nHost: a\n\n".to_vec()),
        ("bare LF before a request", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("bare CR in value", get("Host: a\r\nX: a\rY: b\r\n")),
        ("bare CRs only", b"GET / HTTP/1.1\rHost: a\r\r\r\n\r\n".to_vec()),
        ("CR CR LF", get("Host: a\r\nX: a\r\r\n")),
        ("NUL in value", get("Host: a\r\nX: a\0b\r\n")),
        ("NUL in name", get("Host: a\r\nX\0: a\r\n")),
        ("ESC in value", get("Host: a\r\nX: a\x1b[1m\r\n")),
        ("DEL in value", get("Host: a\r\nX: a\x7f\r\n")),
        ("no Host", get("X: a\r\n")),
        ("no field", get("")),
        ("two Hosts", get("Host: a\r\nHost: b\r\n")),
        ("two equal Hosts", get("Host: a\r\nhOST: a\r\n")),
        ("two Hosts on 1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n".to_vec()),
        ("user in Host", get("Host: a@b\r\n")),
        ("space in Host", get("Host: a b\r\n")),
        ("path in Host", get("Host: a/b\r\n")),
        ("preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_vec()),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec()),
        ("lower-case version", b"GET / http/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("tab for space", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("space at the end of the line", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n".to_vec()),
        ("space in target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("non-ASCII target", "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("fragment in target", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("no method", b" / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("bad method", b"G{T / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("TLS client hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
    ]
}

/// Requests that must be answered 200, with what the service makes of them.
fn accepted() -> Vec<(Vec<u8>, &'static str)> {
    vec![
        (get("Host: a\r\n"), "GET /g "),
        (get("hOsT:a\r\n"), "GET /g "),
        (get("Host: [::1]:8080 \t\r\nX:\r\nY: \t \u{e9}\tz \r\n"), "GET /g "),
        (get("Host:\r\n"), "GET /g "),
        ([b"\r\n\r\n".to_vec(), get("Host: a\r\n")].concat(), "GET /g "),
        (get("Host: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"), "GET /g "),
        (get("Host: a\r\nContent-Length: 0\r\n"), "GET /g "),
        (post("Content-Length: 5\r\n", "hello"), "POST /p hello"),
        (post("Content-Length: 0005\r\n", "he\n\0o"), "POST /p he\n\0o"),
        (post("Content-Length:5\t \r\nX: y\r\n", "\r\n\r\n!"), "POST /p \r\n\r\n!"),
        (chunked("0\r\n\r\n"), "POST /p "),
        (chunked("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), "POST /p hello!"),
        (chunked("00A\r\n0\r\n\r\nGET /\r\n00\r\n\r\n"), "POST /p 0\r\n\r\nGET /"),
        (chunked("5;a=b\r\nhello\r\n0 ; c=\"d\"\r\n\r\n"), "POST /p hello"),
        (chunked("5\r\nhello\r\n0\r\nChecksum: 1\r\nU:\r\n\r\n"), "POST /p hello"),
        (post("transfer-encoding:CHUNKED \r\n", "5\r\nhello\r\n0\r\n\r\n"), "POST /p hello"),
    ]
}

fn close() -> Vec<u8> {
    b"GET /close HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_vec()
}

fn steps() -> [Step; 4] {
    [Step::AtMost(usize::MAX), Step::AtMost(1), Step::AtMost(7), Step::Random(Random(11))]
}

#[test]
fn refuses_each_violation_with_one_400_and_closes() {
    let runtime = runtime();
    for step in steps() {
        let address = serve(&runtime, step);
        for (name, bytes) in refused() {
            let (answers, closed) = talk(address, &[bytes, get("Host: a\r\n")].concat());
            assert_eq!((statuses(&answers), closed), (vec![400], true), "{name}");
        }
    }
}

#[test]
fn answers_requests_before_a_violation_in_order_and_none_after_it() {
    let runtime = runtime();
    for step in steps() {
        let address = serve(&runtime, step);
        for (name, bytes) in refused() {
            let good = post("Content-Length: 5\r\n", "hello");
            let pipelined = [good, chunked("1\r\n!\r\n0\r\n\r\n"), bytes, get("Host: a\r\n")].concat();
            let (answers, closed) = talk(address, &pipelined);
            assert_eq!((statuses(&answers), closed), (vec![200, 200, 400], true), "{name}");
            assert_eq!(answers[1].1, "POST /p !");
        }
    }
}

#[test]
fn accepts_what_is_well_framed_in_whatever_pieces_it_comes() {
    let runtime = runtime();
    for step in steps() {
        let address = serve(&runtime, step);
        let mut all = Vec::new();
        for (bytes, answer) in accepted() {
            let (answers, closed) = talk(address, &[bytes.clone(), close()].concat());
            let expected = [(200, answer.to_owned()), (200, "GET /close ".to_owned())];
            assert_eq!((answers.as_slice(), closed), (&expected[..], true));
            all.extend(bytes);
        }
        all.extend(close());
        let (answers, closed) = talk(address, &all);
        assert_eq!((statuses(&answers), closed), (vec![200; accepted().len() + 1], true));
    }
}

#[test]
fn keeps_the_framing_of_old_versions_and_odd_methods() {
    let runtime = runtime();
    let address = serve(&runtime, Step::AtMost(usize::MAX));
    let old = b"POST /p HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(talk(address, old), (vec![(200, "POST /p hello".to_owned())], true));
    let options = b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(talk(address, options), (vec![(200, "OPTIONS * ".to_owned())], true));
    let absolute = b"GET http://a/b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(talk(address, absolute), (vec![(200, "GET http://a/b ".to_owned())], true));
}

#[test]
fn answers_oversized_heads_as_hyper_does() {
    let runtime = runtime();
    let uri = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "u".repeat(70_000)).into_bytes();
    let huge_uri = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "u".repeat(1_000_000)).into_bytes();
    let fields = |count: usize| "F: v\r\n".repeat(count);
    let cases = [
        (uri, 414),
        (huge_uri, 414),
        (get(&format!("Host: a\r\n{}", fields(100))), 431),
        (get(&format!("Host: a\r\nX: {}\r\n", "v".repeat(64_000))), 431),
        (get(&format!("Host: a\r\nX: {}\r\n", "v".repeat(64 * 1024))), 431),
        (get(&format!("Host: a\r\nX: {}\r\n", "v".repeat(1_000_000))), 431),
        (get(&format!("Host: a\r\n{}", fields(20_000))), 431),
    ];
    for step in [Step::AtMost(usize::MAX), Step::AtMost(1_000), Step::Random(Random(5))] {
        let address = serve(&runtime, step);
        for (bytes, status) in &cases {
            let (answers, closed) = talk(address, bytes);
            assert_eq!((statuses(&answers), closed), (vec![*status], true));
            let (answers, closed) = talk(address, &[get("Host: a\r\n"), bytes.clone()].concat());
            assert_eq!((statuses(&answers), closed), (vec![200, *status], true));
        }
        let most = get(&format!("Host: a\r\nConnection: close\r\n{}", fields(98)));
        assert_eq!(statuses(&talk(address, &most).0), [200]);
        let longest = get(&format!("Host: a\r\nConnection: close\r\nX: {}\r\n", "v".repeat(61_000)));
        assert_eq!(statuses(&talk(address, &longest).0), [200]);
    }
}

#[test]
fn continues_a_request_that_expects_it() {
    let runtime = runtime();
    let address = serve(&runtime, Step::AtMost(usize::MAX));
    let mut socket = TcpStream::connect(address).unwrap();
    socket
        .write_all(&post("Expect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n", ""))
        .unwrap();
    let mut interim = [0; 25];
    socket.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"hello").unwrap();
    let mut received = Vec::new();
    socket.read_to_end(&mut received).unwrap();
    assert_eq!(answers(&received), [(200, "POST /p hello".to_owned())]);
}

#[test]
fn lingers_after_a_refusal_but_not_for_long() {
    let runtime = runtime();
    let address = serve(&runtime, Step::AtMost(usize::MAX));
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(&get("X: no host\r\n")).unwrap();
    // If the server did not read on, either this or the read below would meet a reset.
    socket.write_all(&vec![b'x'; 2 << 20]).unwrap();
    let mut received = Vec::new();
    socket.read_to_end(&mut received).unwrap();
    assert_eq!(statuses(&answers(&received)), [400]);

    let mut socket = TcpStream::connect(address).unwrap();
    let start = Instant::now();
    socket.write_all(&get("X: no host\r\n")).unwrap();
    while socket.write_all(&[b'x'; 4096]).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10), "still reading");
    }
}

/// Serves one scripted peer in memory; returns what the service saw and what the peer got.
fn run(runtime: &Runtime, sends: Vec<u8>, step: Step) -> (Vec<(String, Vec<u8>)>, Vec<u16>) {
    let seen = Seen::default();
    let script = Script { sends, sent: 0, receives: Vec::new() };
    let io = TokioIo::new(StrictFraming::new(Trickle { io: script, step }));
    let service = service_fn(|request| echo(request, Arc::clone(&seen)));
    let mut connection = builder().half_close(true).serve_connection(io, service);
    // An error only repeats what the answers say.
    let _ = runtime.block_on(&mut connection);
    let received = connection.into_parts().io.into_inner().io.io.receives;
    let seen = seen.lock().unwrap().clone();
    (seen, statuses(&answers(&received)))
}

#[test]
fn refuses_a_control_character_at_every_place_of_every_request() {
    let runtime = runtime();
    // A body with a Content-Length may hold anything.
    let is_checked = |bytes: &[u8]| !bytes.windows(15).any(|bytes| bytes == b"Content-Length:");
    for (bytes, _) in accepted().iter().filter(|(bytes, _)| is_checked(bytes)) {
        for at in 0..bytes.len() {
            for step in [usize::MAX, at.max(1), 1] {
                let sends = [&bytes[..at], b"\x01\n", &bytes[at..], &get("Host: a\r\n")].concat();
                let (seen, statuses) = run(&runtime, sends, Step::AtMost(step));
                assert_eq!(
                    (seen, statuses),
                    (vec![], vec![400]),
                    "{at} of {:?}",
                    String::from_utf8_lossy(bytes)
                );
            }
        }
    }
}

/// What the naive parser below makes of a whole input.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Complete,
    Unfinished,
    Refused,
}

/// RFC 9112 in the plainest way, over the whole input: the requests with their bodies, and how it ends.
fn reference(input: &[u8]) -> (Vec<(String, Vec<u8>)>, End) {
    let mut requests = Vec::new();
    let mut rest = input;
    loop {
        while let Some(after) = rest.strip_prefix(b"\r\n") {
            rest = after;
        }
        if rest.is_empty() {
            return (requests, End::Complete);
        }
        match reference_request(&mut rest) {
            Ok(request) => requests.push(request),
            Err(end) => return (requests, end),
        }
    }
}

fn reference_line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], End> {
    for (at, &b) in rest.iter().enumerate() {
        match b {
            b'\r' if rest.get(at + 1) == Some(&b'\n') => {
                let line = &rest[..at];
                *rest = &rest[at + 2..];
                return Ok(line);
            }
            b'\r' if rest.len() == at + 1 => return Err(End::Unfinished),
            b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => return Err(End::Refused),
        }
    }
    Err(End::Unfinished)
}

fn reference_take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], End> {
    let length = usize::try_from(length).unwrap();
    let taken = rest.get(..length).ok_or(End::Unfinished)?;
    *rest = &rest[length..];
    Ok(taken)
}

fn reference_fields(rest: &mut &[u8]) -> Result<Vec<(String, Vec<u8>)>, End> {
    let mut fields = Vec::new();
    loop {
        let line = reference_line(rest)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let mut halves = line.splitn(2, |b| *b == b':');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else { return Err(End::Refused) };
        let is_token = |b: &u8| b.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char::from(*b));
        if name.is_empty() || !name.iter().all(is_token) {
            return Err(End::Refused);
        }
        let name = String::from_utf8(name.to_ascii_lowercase()).unwrap();
        fields.push((name, value.trim_ascii().to_vec()));
    }
}

fn reference_request(rest: &mut &[u8]) -> Result<(String, Vec<u8>), End> {
    let line = reference_line(rest)?;
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let [method, target, version] = words[..] else { return Err(End::Refused) };
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char::from(*b));
    if method.is_empty() || !method.iter().all(is_token) || target.is_empty() {
        return Err(End::Refused);
    }
    if !target.iter().all(|b| (b'!'..=b'~').contains(b) && *b != b'#')
        || ![&b"HTTP/1.0"[..], b"HTTP/1.1"].contains(&version)
    {
        return Err(End::Refused);
    }
    let fields = reference_fields(rest)?;
    let all =
        |name: &str| fields.iter().filter(|field| field.0 == name).map(|field| &field.1).collect::<Vec<_>>();
    let (hosts, lengths, codings) = (all("host"), all("content-length"), all("transfer-encoding"));
    let is_host = |b: &u8| b.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:[]".contains(char::from(*b));
    if hosts.len() > 1 || hosts.iter().any(|host| !host.iter().all(is_host)) {
        return Err(End::Refused);
    }
    if version == b"HTTP/1.1" && hosts.is_empty() || lengths.len() + codings.len() > 1 {
        return Err(End::Refused);
    }
    let name = format!("{} {}", String::from_utf8_lossy(method), String::from_utf8_lossy(target));
    if let Some(length) = lengths.first() {
        let text = std::str::from_utf8(length).map_err(|_| End::Refused)?;
        if !text.chars().all(|c| c.is_ascii_digit()) {
            return Err(End::Refused);
        }
        let length = text.parse::<i64>().map_err(|_| End::Refused)?;
        return Ok((name, reference_take(rest, length as u64)?.to_vec()));
    }
    let Some(coding) = codings.first() else { return Ok((name, Vec::new())) };
    if !coding.eq_ignore_ascii_case(b"chunked") || version != b"HTTP/1.1" {
        return Err(End::Refused);
    }
    let mut body = Vec::new();
    loop {
        let line: String = reference_line(rest)?.iter().map(|b| char::from(*b)).collect();
        let size = match line.split_once(';') {
            Some((size, _)) => size.trim_end_matches([' ', '\t']),
            None => line.as_str(),
        };
        if !size.chars().all(|c| c.is_ascii_hexdigit()) || line.len() + 2 > MAX_CHUNK_LINE {
            return Err(End::Refused);
        }
        let size = u64::from_str_radix(size, 16).map_err(|_| End::Refused)?;
        if size == 0 {
            break;
        }
        body.extend(reference_take(rest, size)?);
        if reference_take(rest, 2)? != b"\r\n" {
            return Err(End::Refused);
        }
    }
    let forbidden = ["host", "content-length", "transfer-encoding"];
    if reference_fields(rest)?.iter().any(|(name, _)| forbidden.contains(&name.as_str())) {
        return Err(End::Refused);
    }
    Ok((name, body))
}

/// Two or three requests, good or bad, with a few random changes.
fn mutant(random: &mut Random) -> Vec<u8> {
    const PIECES: [&[u8]; 22] = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"0",
        b"5",
        b"\x7f",
        b"\xc3\xa9",
        b"0\r\n\r\n",
        b"Host: b\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"HTTP/1.0",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b" b\r\n",
        b"f;x=y\r\n",
    ];
    let (good, bad) = (accepted(), refused());
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(3) {
        match random.below(4) {
            0 => bytes.extend(bad[random.below(bad.len())].1.iter().take(300)),
            _ => bytes.extend(&good[random.below(good.len())].0),
        }
    }
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(4) {
            0 => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
            1 => drop(bytes.drain(at..(at + 1 + random.below(4)).min(bytes.len()))),
            2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            _ if random.below(4) == 0 => bytes.truncate(at),
            _ => {}
        }
    }
    bytes
}

#[test]
fn agrees_with_a_naive_parser_and_hyper_on_random_requests() {
    let runtime = runtime();
    let mut random = Random(0x5eed);
    let mut counts = [0; 3];
    for round in 0..20_000 {
        let bytes = mutant(&mut random);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (requests, end) = reference(&bytes);
        let mut framing = Framing::default();
        let mut rest = bytes.as_slice();
        let mut is_refused = false;
        while !rest.is_empty() && !is_refused {
            let (piece, later) = rest.split_at((1 + random.below(60)).min(rest.len()));
            is_refused = framing.follow(piece).is_err();
            rest = later;
        }
        match end {
            End::Refused => assert!(is_refused, "round {round}: accepted {text:?}"),
            End::Complete => assert!(!is_refused, "round {round}: refused {text:?}"),
            // A line can be wrong by itself although the naive parser waits for the rest of its section.
            End::Unfinished => {}
        }
        counts[end as usize] += 1;

        let step = [Step::AtMost(1 + random.below(80)), Step::AtMost(usize::MAX)][random.below(2)];
        let (seen, statuses) = run(&runtime, bytes, step);
        assert!(requests.starts_with(&seen), "round {round}: {text:?} was read as {seen:?}");
        // Hyper closes after an HTTP/1.0 request, and never reads what follows.
        let reads_all = !text.contains("HTTP/1.0");
        if reads_all && end == End::Complete && statuses.iter().all(|status| *status == 200) {
            assert_eq!(seen, requests, "round {round}: {text:?}");
        }
        let refusals = statuses.iter().filter(|status| **status != 200 && **status != 100).count();
        assert!(refusals <= 1, "round {round}: {text:?} was answered {statuses:?}");
        if reads_all && is_refused {
            assert_eq!(statuses.last(), Some(&400), "round {round}: {text:?}");
        }
    }
    assert!(counts.iter().all(|count| *count > 1_000), "too few of some kind: {counts:?}");
}
