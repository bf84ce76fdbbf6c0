//! Limits of size, time and work in hand: each is answered as such, and everyone else is served meanwhile.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::support::{
    Answer, Client, Gateway, REFERENCE, Request, Settings, customer, gzip, pause, shared, wait_for,
    wait_within,
};

const BATCH: &str = "/v1/predict/batch";

/// A JSON batch of this many rows.
fn rows(count: usize) -> String {
    let mut body = String::with_capacity(count * 140);
    body.push('[');
    for row in 0..count {
        if row > 0 {
            body.push(',');
        }
        body.push_str(&customer(&[("tenure_days", &(row % 3_000).to_string())]));
    }
    body.push(']');
    body
}

#[test]
fn a_body_is_refused_by_its_announced_size_before_it_is_sent() {
    let gateway = shared();
    let request = gateway
        .with_key(Request::post("/v1/predict", ""))
        .header("Content-Length", (16 << 20).to_string() + "0");
    let mut client = gateway.connect();
    client.send(request.head());
    let answers = client.answers_until_close();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].status, answers[0].code().as_str()), (413, "body_too_large"));
}

#[test]
fn a_body_of_unknown_size_is_refused_once_it_is_too_large() {
    let gateway = Settings::new().set("SCOREGATE_MAX_BODY_BYTES", "1000").start();
    let chunked = |size: usize| {
        let request = Request::post("/v1/predict", "").header("Transfer-Encoding", "chunked");
        let mut client = gateway.connect();
        client.send(gateway.with_key(request).head());
        client.send(format!("{size:x}\r\n{}\r\n0\r\n\r\n", " ".repeat(size)));
        client.answer().unwrap()
    };
    assert_eq!(chunked(1_000).code(), "malformed_json", "as large as allowed");
    let refused = chunked(1_001);
    assert_eq!((refused.status, refused.code().as_str()), (413, "body_too_large"));
    let exactly = format!("{REFERENCE}{}", " ".repeat(1_000 - REFERENCE.len()));
    assert_eq!(gateway.post("/v1/predict", &exactly).status, 200);
    assert_eq!(gateway.post("/v1/predict", format!("{exactly} ")).status, 413);
}

#[test]
fn the_decoded_size_of_a_gzip_body_counts() {
    let gateway = Settings::new().set("SCOREGATE_MAX_BODY_BYTES", "100000").start();
    let post = |decoded: &[u8]| {
        let request = Request::post("/v1/predict", gzip(decoded)).header("Content-Encoding", "gzip");
        gateway.ask(&gateway.with_key(request))
    };
    let mut body = REFERENCE.as_bytes().to_vec();
    body.resize(100_000, b' ');
    assert_eq!(post(&body).status, 200);
    body.push(b' ');
    assert_eq!((post(&body).status, post(&body).code().as_str()), (413, "body_too_large"));
}

#[test]
fn gzip_bombs_do_not_grow_the_process() {
    let gateway = Gateway::start();
    let once = gzip(&vec![b' '; 200 << 20]);
    let request = gateway.with_key(Request::post("/v1/predict", once).header("Content-Encoding", "gzip"));
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
    let before = gateway.resident();
    for _ in 0..4 {
        assert_eq!(gateway.ask(&request).status, 413);
    }
    let growth = gateway.peak().saturating_sub(before);
    // Decoding stops at the limit of 16 MiB; the buffer doubles as it grows.
    assert!(growth < 72 << 20, "{growth} bytes at the peak");
}

#[test]
fn a_batch_takes_a_hundred_thousand_rows_and_no_more() {
    let gateway = Settings::new().set("SCOREGATE_ANSWER_TIMEOUT", "60s").start();
    // Empty objects are refused row by row, which is enough to be counted.
    let empty = |count: usize| format!("[{}{{}}]", "{},".repeat(count - 1));
    assert_eq!(gateway.post(BATCH, empty(100_000)).status, 422);
    let answer = gateway.post(BATCH, empty(100_001));
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_many_rows"));
    let ndjson = Request::post(BATCH, "{}\n".repeat(100_001)).content_type("application/x-ndjson");
    assert_eq!(gateway.ask(&gateway.with_key(ndjson)).code(), "too_many_rows");
    let header = "tenure_days,monthly_spend,support_tickets_30d,plan_tier,country,last_login_hours\n";
    let csv = Request::post(BATCH, format!("{header}{}", "1\n".repeat(100_001))).content_type("text/csv");
    assert_eq!(gateway.ask(&gateway.with_key(csv)).code(), "too_many_rows");
}

#[test]
fn work_beyond_the_bound_is_shed_with_503_and_retry_after() {
    let gateway = Settings::new()
        .set("SCOREGATE_MAX_QUEUED_ROWS", "20000")
        .set("SCOREGATE_ANSWER_TIMEOUT", "60s")
        .start();
    let body = rows(20_000);
    let request = gateway.with_key(Request::post(BATCH, &body)).bytes();
    let round = || -> Vec<Answer> {
        std::thread::scope(|scope| {
            let ask = || {
                let mut client = gateway.connect();
                client.send(&request);
                client.answer().unwrap()
            };
            let askers: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
            askers.into_iter().map(|asker| asker.join().unwrap()).collect()
        })
    };
    // Six at a time meet each other sooner or later.
    let mut answers = Vec::new();
    wait_for("somebody to be shed", || {
        answers.extend(round());
        answers.iter().any(|answer| answer.status != 200).then_some(())
    });
    let (scored, shed): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(!scored.is_empty(), "nobody was served");
    for answer in shed {
        assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    }
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200, "what was held is given back");
}

#[test]
fn an_answered_request_holds_no_place_any_more() {
    let gateway = Settings::new().set("SCOREGATE_MAX_QUEUED_ROWS", "1000").start();
    let request = gateway.with_key(Request::post(BATCH, rows(1_000)));
    let mut client = gateway.connect();
    // One after the other, each as large as the bound: none of them ever meets another.
    for turn in 0..200 {
        let answer = client.ask(&request);
        assert_eq!(answer.status, 200, "turn {turn}: {}", answer.text());
    }
}

#[test]
fn bodies_in_memory_are_bounded() {
    // On a busy machine the answer to another batch takes a while, for which the body has to be waited for.
    let settings = Settings::new().set("SCOREGATE_MAX_QUEUED_BYTES", "1000000");
    let gateway = settings.set("SCOREGATE_BODY_TIMEOUT", "60s").start();
    let mut holder = gateway.connect();
    let body = rows(6_000);
    assert!(body.len() > 600_000 && body.len() < 1_000_000);
    let request = gateway.with_key(Request::post(BATCH, &body));
    // What is only announced holds nothing: nobody could be kept out by promises.
    holder.send(request.clone().header("Expect", "100-continue").head());
    assert_eq!(holder.answer().unwrap().status, 100);
    assert_eq!(gateway.ask(&request).status, 200);
    // What has arrived does.
    holder.send(&body[..450_000]);
    let shed =
        wait_for("somebody to be shed", || Some(gateway.ask(&request)).filter(|answer| answer.status != 200));
    assert_eq!((shed.status, shed.code().as_str()), (503, "overloaded"));
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200, "small bodies still fit");
    holder.send(&body[450_000..]);
    assert_eq!(holder.answer().unwrap().status, 200);
    assert_eq!(gateway.ask(&request).status, 200);
}

#[test]
fn an_answer_that_takes_too_long_is_a_504() {
    let gateway = Settings::new().set("SCOREGATE_ANSWER_TIMEOUT", "5ms").start();
    let answer = gateway.post(BATCH, rows(20_000));
    assert_eq!((answer.status, answer.code().as_str()), (504, "deadline"), "67: {}", answer.text());
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
}

#[test]
fn health_answers_quickly_while_large_batches_run() {
    let gateway = Settings::new().set("SCOREGATE_ANSWER_TIMEOUT", "60s").start();
    let request = gateway.with_key(Request::post(BATCH, rows(30_000))).bytes();
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = gateway.connect();
                    client.send(&request);
                    client.answer().unwrap().status
                })
            })
            .collect();
        let mut client = gateway.connect();
        let mut worst = Duration::ZERO;
        while !askers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let asked = Instant::now();
            assert_eq!(client.ask(&Request::get("/health/ready")).status, 200);
            worst = worst.max(asked.elapsed());
        }
        // Generous, as the tests share their processors with each other; unserved, it would take seconds.
        assert!(worst < Duration::from_secs(2), "health took {worst:?}");
        assert!(askers.into_iter().all(|asker| asker.join().unwrap() == 200));
    });
}

#[test]
fn megabytes_in_chunks_of_one_byte_do_not_grow_the_process() {
    let gateway = Settings::new().set("SCOREGATE_BODY_TIMEOUT", "60s").start();
    let request = gateway.with_key(Request::post("/v1/predict", "").header("Transfer-Encoding", "chunked"));
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
    let before = gateway.resident();
    let mut client = gateway.connect();
    client.send(request.head());
    client.send(b"1\r\n \r\n".repeat(3_000_000 - REFERENCE.len()));
    client.send(format!("{:x}\r\n{REFERENCE}\r\n0\r\n\r\n", REFERENCE.len()));
    assert_eq!(client.answer().unwrap().status, 200);
    let growth = gateway.peak().saturating_sub(before);
    // The body takes 3 MB, twice that while its buffer grows; one more vector entry per chunk would take 96 MB.
    assert!(growth < 16_000_000, "{growth} bytes at the peak");
}

#[test]
fn a_body_that_stalls_is_a_408() {
    let gateway = Settings::new().set("SCOREGATE_BODY_TIMEOUT", "300ms").start();
    let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
    let mut client = gateway.connect();
    client.send(request.head());
    client.send(&REFERENCE[..20]);
    let asked = Instant::now();
    let answers = client.answers_until_close();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].status, answers[0].code().as_str()), (408, "body_timeout"));
    assert!(asked.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_request_that_trickles_is_cut_off_all_the_same() {
    let gateway = Settings::new().set("SCOREGATE_BODY_TIMEOUT", "1s").start();
    let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
    let bytes = request.bytes();
    for from in [0, request.head().len()] {
        let mut client = gateway.connect();
        client.send(&bytes[..from]);
        let started = Instant::now();
        let mut sent = 0;
        // Each byte comes in time, all of them do not.
        for byte in &bytes[from..] {
            if client.has_answer() {
                break;
            }
            client.send([*byte]);
            sent += 1;
            pause(Duration::from_millis(50));
        }
        let took = started.elapsed();
        assert!(took < Duration::from_secs(5), "{sent} bytes were taken in {took:?}");
        assert!(client.answers_until_close().iter().all(|answer| answer.status == 408));
    }
}

#[test]
fn an_answer_that_nobody_reads_does_not_hold_its_connection_for_ever() {
    let gateway = Settings::new()
        .set("SCOREGATE_BODY_TIMEOUT", "2s")
        .set("SCOREGATE_IDLE_TIMEOUT", "2s")
        .set("SCOREGATE_ANSWER_TIMEOUT", "20s")
        .start();
    let request = gateway.with_key(Request::post(BATCH, rows(60_000))).bytes();
    let mut client = gateway.connect();
    client.send(&request);
    // The answer is larger than what the sockets hold. Nobody reads; the gateway has to give up by itself.
    let connections = || std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    wait_for("the answer to begin", || client.has_answer().then_some(()));
    let held = connections();
    let given_up = wait_within(Duration::from_secs(15), || (connections() < held).then_some(()));
    assert!(given_up.is_some(), "the connection is still held after 15 s");
}

#[test]
fn two_hundred_stalled_sockets_are_closed_in_time_while_others_are_served() {
    let gateway = Settings::new().set("SCOREGATE_BODY_TIMEOUT", "2s").start();
    let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
    let started = Instant::now();
    // A quarter each: silent, stalled in the request line, in the head, in the body.
    let stalled: Vec<Client> = (0..200)
        .map(|at| {
            let bytes = request.bytes();
            let mut client = gateway.connect();
            let until = [0, 10, request.head().len() - 20, bytes.len() - 10][at % 4];
            client.send(&bytes[..until]);
            client
        })
        .collect();
    let mut client = gateway.connect();
    while started.elapsed() < Duration::from_secs(3) {
        assert_eq!(client.ask(&request).status, 200);
        assert_eq!(gateway.ask(&request).status, 200, "on a connection of its own");
    }
    for mut client in stalled {
        let answers = client.answers_until_close();
        assert!(answers.iter().all(|answer| answer.status == 408), "{answers:?}");
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(15), "closed after {took:?} only");
}

#[test]
fn an_idle_connection_outlives_the_time_of_a_head_but_not_its_own() {
    let gateway =
        Settings::new().set("SCOREGATE_BODY_TIMEOUT", "500ms").set("SCOREGATE_IDLE_TIMEOUT", "2s").start();
    let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
    let mut client = gateway.connect();
    for _ in 0..2 {
        assert_eq!(client.ask(&request).status, 200);
        let closed = wait_within(Duration::from_secs(1), || client.has_answer().then_some(()));
        assert!(closed.is_none(), "closed as if it had stalled");
    }
    let asked = Instant::now();
    assert!(client.answer().is_none());
    assert!(asked.elapsed() < Duration::from_secs(10), "closed after {:?} only", asked.elapsed());

    // A head that has begun has the time of a head, on a connection that was idle too.
    let mut client = gateway.connect();
    assert_eq!(client.ask(&request).status, 200);
    client.send(&request.bytes()[..20]);
    let asked = Instant::now();
    assert!(client.answers_until_close().iter().all(|answer| answer.status == 408));
    assert!(asked.elapsed() < Duration::from_millis(1_700), "closed after {:?} only", asked.elapsed());
}

#[test]
fn connections_beyond_the_bound_wait_for_a_place() {
    let gateway =
        Settings::new().set("SCOREGATE_MAX_CONNECTIONS", "2").set("SCOREGATE_BODY_TIMEOUT", "5s").start();
    let mut held = [gateway.connect(), gateway.connect()];
    for client in &mut held {
        assert_eq!(client.ask(&Request::get("/health")).status, 200);
    }
    let mut waiting = std::net::TcpStream::connect(gateway.addr).unwrap();
    waiting.write_all(&Request::get("/health").bytes()).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let early = std::io::Read::read(&mut waiting, &mut [0; 1]);
    assert!(early.is_err(), "a third connection was served: {early:?}");
    drop(held);
    waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut status = [0; 12];
    std::io::Read::read_exact(&mut waiting, &mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
}

#[test]
fn a_peer_that_takes_nothing_of_its_answer_gives_its_memory_back() {
    let gateway = Settings::new()
        .set("SCOREGATE_IDLE_TIMEOUT", "3s")
        .set("SCOREGATE_ANSWER_TIMEOUT", "60s")
        .set("SCOREGATE_MAX_QUEUED_BYTES", "25000000")
        .start();
    // Larger than the buffers of both sockets; beside an answer there is no room for another body.
    let request = gateway.with_key(Request::post(BATCH, rows(100_000)));
    let close = request.clone().header("Connection", "close");
    let pipelined =
        [request.bytes(), gateway.with_key(Request::post("/v1/predict", REFERENCE)).bytes()].concat();
    for (how, bytes) in [("keep-alive", request.bytes()), ("close", close.bytes()), ("pipelined", pipelined)]
    {
        let mut peer = gateway.connect();
        peer.send(&bytes);
        wait_for("the answer to wait for its peer", || peer.has_answer().then_some(()));
        let shed = gateway.ask(&request);
        assert_eq!((shed.status, shed.code().as_str()), (503, "overloaded"), "{how}: the answer counts");
        let scored = wait_within(Duration::from_secs(30), || {
            Some(gateway.ask(&request)).filter(|answer| answer.status == 200)
        });
        assert!(scored.is_some(), "{how}: the answer that nobody takes still holds its memory");
        drop(peer);
    }
}

/// Many clients send a head and its body apart. A refusal that comes in between must not cost them the next request.
#[test]
fn a_connection_outlives_a_refusal_that_comes_before_the_body() {
    let gateway = shared();
    let scored = gateway.with_key(Request::post("/v1/predict", REFERENCE));
    let announced = |size: usize| {
        let request = Request::post("/v1/predict", "").without("Content-Length");
        request.header("Content-Length", size.to_string())
    };
    let chunked = Request::post("/v1/predict", "").without("Content-Length");
    let unsent = REFERENCE.to_string();
    for (request, body) in [
        (announced(unsent.len()), unsent.clone()),
        (announced(60_000), " ".repeat(60_000)),
        (
            chunked.header("Transfer-Encoding", "chunked"),
            format!("{:x}\r\n{unsent}\r\n0\r\n\r\n", unsent.len()),
        ),
        (gateway.with_key(announced(2)).content_type("text/plain"), "{}".into()),
    ] {
        let mut client = gateway.connect();
        client.send(request.head());
        let refused = client.answer().unwrap();
        assert!(matches!(refused.status, 401 | 415), "{refused:?}");
        assert_eq!(refused.header("connection"), None, "{request:?}");
        client.send(body);
        assert_eq!(client.ask(&scored).status, 200, "{request:?}");
    }
    // What is too large to be read for nothing is announced to be the end, and so it is.
    let mut client = gateway.connect();
    client.send(announced(70_000).head());
    let answers = client.answers_until_close();
    assert_eq!((answers.len(), answers[0].status), (1, 401));
    assert_eq!(answers[0].header("connection"), Some("close"));
}
