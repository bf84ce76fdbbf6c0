//! Broken and oversized framing on a real listener: one refusal, the connection closed, nothing smuggled.

use crate::support::{Client, Gateway, REFERENCE, Request, shared};

/// Sends raw bytes and returns the statuses that came before the connection was closed.
fn statuses(gateway: &Gateway, bytes: &[u8]) -> Vec<u16> {
    let mut client = gateway.connect();
    client.send(bytes);
    client.answers_until_close().iter().map(|answer| answer.status).collect()
}

/// A predict request with these header lines and this raw body, and a second request hidden behind it.
fn smuggler(gateway: &Gateway, lines: &str, body: &str) -> Vec<u8> {
    let hidden = "GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n";
    let key = &gateway.key;
    format!(
        "POST /v1/predict HTTP/1.1\r\nHost: gateway\r\nX-Api-Key: {key}\r\nContent-Type: application/json\r\n{lines}\r\n{body}{hidden}"
    )
    .into_bytes()
}

#[test]
fn ambiguous_framing_gets_one_400_and_the_connection_closed() {
    let gateway = shared();
    let length = REFERENCE.len();
    let chunks = format!("{length:x}\r\n{REFERENCE}\r\n0\r\n\r\n");
    let predict = |lines: &str, body: &str| smuggler(&gateway, lines, body);
    let get = |head: &str| format!("{head}\r\nGET /health HTTP/1.1\r\nHost: gateway\r\n\r\n").into_bytes();
    let extension = "e".repeat(20_000);
    for (name, bytes) in [
        (
            "17 length and chunked",
            predict(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &chunks),
        ),
        ("17 chunked and length", predict("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", &chunks)),
        (
            "18 differing lengths",
            predict(&format!("Content-Length: {length}\r\nContent-Length: 4\r\n"), REFERENCE),
        ),
        ("19 plus", predict(&format!("Content-Length: +{length}\r\n"), REFERENCE)),
        ("19 minus", predict("Content-Length: -1\r\n", REFERENCE)),
        ("19 overflow", predict("Content-Length: 18446744073709551616\r\n", REFERENCE)),
        ("20 a list", predict(&format!("Content-Length: {length}, {length}\r\n"), REFERENCE)),
        ("21 unknown coding", predict("Transfer-Encoding: xchunked\r\n", &chunks)),
        ("22 coding twice", predict("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &chunks)),
        ("22 in one line", predict("Transfer-Encoding: chunked, chunked\r\n", &chunks)),
        (
            "23 HTTP/1.0 with a coding",
            b"POST /v1/predict HTTP/1.0\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_vec(),
        ),
        ("24 bad chunk size", predict("Transfer-Encoding: chunked\r\n", "xyz\r\n{}\r\n0\r\n\r\n")),
        ("24 signed chunk size", predict("Transfer-Encoding: chunked\r\n", "+2\r\n{}\r\n0\r\n\r\n")),
        ("24 chunk longer than said", predict("Transfer-Encoding: chunked\r\n", "1\r\n{}\r\n0\r\n\r\n")),
        (
            "25 chunk extension of 20 KB",
            predict(
                "Transfer-Encoding: chunked\r\n",
                &format!("{length:x};{extension}\r\n{REFERENCE}\r\n0\r\n\r\n"),
            ),
        ),
        ("26 folded line", predict(&format!("Content-Length: {length}\r\nX-Folded: a\r\n b\r\n"), REFERENCE)),
        ("27 space before the colon", predict(&format!("Content-Length : {length}\r\n"), REFERENCE)),
        ("28 bare LF after a header", predict(&format!("Content-Length: {length}\nX: y\r\n"), REFERENCE)),
        ("28 bare LF after the request line", get("GET /health HTTP/1.1\nHost: gateway\r\n")),
        ("28 bare LFs only", get("GET /health HTTP/1.1\nHost: gateway\n\n")),
        ("29 no Host", get("GET /health HTTP/1.1\r\nX: y\r\n")),
        ("30 two Hosts", get("GET /health HTTP/1.1\r\nHost: gateway\r\nHost: other\r\n")),
        ("30 two equal Hosts", get("GET /health HTTP/1.1\r\nHost: gateway\r\nHost: gateway\r\n")),
        ("31 NUL in a header", get("GET /health HTTP/1.1\r\nHost: gateway\r\nX: a\0b\r\n")),
        ("31 NUL in a name", get("GET /health HTTP/1.1\r\nHost: gateway\r\nX\0: a\r\n")),
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
    ] {
        assert_eq!(statuses(&gateway, &bytes), [400], "{name}");
        let before = [Request::get("/health").bytes(), bytes].concat();
        assert_eq!(statuses(&gateway, &before), [200, 400], "{name}, after a good request");
    }
}

#[test]
fn oversized_heads_are_refused_by_what_is_too_large() {
    let gateway = shared();
    let long = format!("/v1/predict?{}", "q".repeat(70_000));
    let mut many = Request::get("/health");
    for _ in 0..101 {
        many = many.header("X-Filler", "f");
    }
    let large = Request::get("/health").header("X-Filler", "f".repeat(64_000));
    for (name, request, status) in [
        ("38 URI of 70 KB", Request::get(&long), 414),
        ("39 101 headers", many, 431),
        ("40 header of 64 KB", large, 431),
    ] {
        assert_eq!(statuses(&gateway, &request.bytes()), [status], "{name}");
    }
}

#[test]
fn well_framed_bodies_are_read_in_whatever_pieces_they_come() {
    let gateway = shared();
    let expected = gateway.post("/v1/predict", REFERENCE).probability();
    let chunked = |body: &str| {
        gateway.with_key(Request::post("/v1/predict", body).header("Transfer-Encoding", "chunked"))
    };
    let pieces: String = REFERENCE.chars().map(|piece| format!("1;n=v\r\n{piece}\r\n")).collect();
    let mut client = gateway.connect();
    for _ in 0..3 {
        assert_eq!(
            client.ask(&chunked(&format!("{pieces}0\r\nX-Trailer: t\r\n\r\n"))).probability(),
            expected
        );
    }
    let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
    for byte in request.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.answer().unwrap().probability(), expected);
}

#[test]
fn a_body_that_breaks_off_costs_nobody_anything() {
    let gateway = shared();
    for cut in [0, 1, 50] {
        let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
        let mut client = gateway.connect();
        client.send(request.head());
        client.send(&REFERENCE[..cut]);
        client.finish_sending();
        let answers = client.answers_until_close();
        assert!(answers.iter().all(|answer| answer.status == 400) && answers.len() <= 1, "{answers:?}");
    }
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
}

#[test]
fn expect_100_continue_is_honoured_after_admission_only() {
    let gateway = shared();
    let request = gateway.with_key(Request::post("/v1/predict", REFERENCE).header("Expect", "100-continue"));
    let mut client = gateway.connect();
    client.send(request.head());
    assert_eq!(client.answer().unwrap().status, 100);
    client.send(REFERENCE);
    assert_eq!(client.answer().unwrap().status, 200);

    let unknown = Request::post("/v1/predict", REFERENCE).header("Expect", "100-continue");
    let mut client = Client::connect(gateway.addr);
    client.send(unknown.head());
    assert_eq!(client.answer().unwrap().status, 401, "nobody is asked for a body that will not be read");
}
