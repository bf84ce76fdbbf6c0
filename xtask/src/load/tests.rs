//! A load against small servers of known behaviour.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::*;

/// A server whose every connection is handled by `handle`, until the test's process ends.
fn server(handle: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || handle(stream));
        }
    });
    address
}

/// Reads one request (the tests' requests are single small segments); `false` at the end of the connection.
fn request_arrives(stream: &mut TcpStream) -> bool {
    let mut request = [0; 1024];
    stream.read(&mut request).is_ok_and(|count| count > 0)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn run(address: SocketAddr, connections: usize, pace: Pace, limit: Limit) -> Outcome {
    let requests = [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()];
    Load { address, requests: &requests, connections, pace, limit }.run().unwrap()
}

#[test]
fn as_many_requests_are_sent_as_were_asked_for() {
    let address = server(|mut stream| {
        while request_arrives(&mut stream) {
            stream.write_all(OK).unwrap();
        }
    });
    let outcome = run(address, 3, Pace::AsAnswered, Limit::Requests(1000));
    assert_eq!(outcome.tally(), "200: 1000");
    let outcome = run(address, 3, Pace::Steady(500.0), Limit::For(Duration::from_millis(400)));
    assert_eq!(outcome.tally(), "200: 200");
    assert!(outcome.elapsed >= Duration::from_millis(390), "{:?}", outcome.elapsed);
}

/// What a load of so many requests a second over one connection comes to that is told to end after a while.
fn told_after(duration: Duration, address: SocketAddr, per_second: f64) -> Outcome {
    let told = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| run(address, 1, Pace::Steady(per_second), Limit::Until(&told)));
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(duration);
        told.store(true, Ordering::Relaxed);
        load.join().unwrap()
    })
}

#[test]
fn a_load_ends_when_it_is_told_to() {
    let address = server(|mut stream| {
        while request_arrives(&mut stream) {
            stream.write_all(OK).unwrap();
        }
    });
    let outcome = told_after(Duration::from_millis(300), address, 500.0);
    assert_eq!(outcome.tally(), format!("200: {}", outcome.answers()));
    assert!(outcome.answers() >= 140, "{}", outcome.answers());
}

#[test]
fn what_was_due_when_a_load_was_told_to_end_counts() {
    let address = server(|mut stream| {
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        while request_arrives(&mut stream) {
            let _ = never.recv_timeout(Duration::from_millis(20));
            stream.write_all(OK).unwrap();
        }
    });
    // Half a second at a hundred a second, of which the server answers fifty at most.
    let outcome = told_after(Duration::from_millis(500), address, 100.0);
    assert_eq!(outcome.tally(), format!("200: {}", outcome.answers()));
    assert!(outcome.answers() >= 45, "{}", outcome.answers());
    assert!(outcome.latency(1.0) > Duration::from_millis(400), "{:?}", outcome.latency(1.0));
}

#[test]
fn a_stall_counts_against_every_request_that_was_due_during_it() {
    let address = server(|mut stream| {
        let mut first = true;
        while request_arrives(&mut stream) {
            if std::mem::take(&mut first) {
                let (_keep, never) = std::sync::mpsc::channel::<()>();
                let _ = never.recv_timeout(Duration::from_millis(500));
            }
            stream.write_all(OK).unwrap();
        }
    });
    let outcome = run(address, 1, Pace::Steady(100.0), Limit::For(Duration::from_secs(1)));
    assert_eq!(outcome.tally(), "200: 100");
    // Fifty requests were due during the stall; they waited 500, 490, 480, … ms, the median of all just about 0.
    assert!(outcome.latency(0.75) > Duration::from_millis(200), "{:?}", outcome.latency(0.75));
    assert!(outcome.latency(1.0) > Duration::from_millis(480), "{:?}", outcome.latency(1.0));
}

#[test]
fn lost_connections_and_refusals_are_errors() {
    let address = server(|mut stream| {
        for answer in [OK, b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"] {
            if request_arrives(&mut stream) {
                stream.write_all(answer).unwrap();
            }
        }
        request_arrives(&mut stream);
    });
    let outcome = run(address, 1, Pace::AsAnswered, Limit::Requests(9));
    let counted: u64 = outcome.unanswered.values().sum();
    assert_eq!((outcome.statuses[&200], outcome.statuses[&503], counted), (3, 3, 3), "{}", outcome.tally());
    assert!((outcome.error_rate() - 6.0 / 9.0).abs() < 1e-9, "{}", outcome.error_rate());
}

#[test]
fn a_polite_close_is_no_error() {
    let address = server(|mut stream| {
        if request_arrives(&mut stream) {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").unwrap();
        }
    });
    assert_eq!(run(address, 2, Pace::AsAnswered, Limit::Requests(20)).tally(), "200: 20");
}
