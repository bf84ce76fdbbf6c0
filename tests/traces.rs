//! Traces: a request is found by its trace, from its client through the gateway, in a collector that others wrote; and a collector
//! that is not there costs nothing.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::authority::{Authority, Reply};
use crate::support::collector::Collector;
use crate::support::redis::free_port;
use crate::support::{Client, Gateway, PREDICT, REFERENCE, Request, Settings, wait_for};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn traced(request: Request, trace: &str, flags: &str) -> Request {
    request.header("Traceparent", format!("00-{trace}-{PARENT}-{flags}"))
}

fn metrics(gateway: &Gateway) -> String {
    let accept = "application/openmetrics-text; version=1.0.0";
    Client::connect(gateway.admin_addr).ask(&Request::get("/metrics").header("Accept", accept)).text()
}

fn count(gateway: &Gateway, outcome: &str) -> u64 {
    let name = format!("scoregate_traces_total{{outcome=\"{outcome}\"}} ");
    let document = metrics(gateway);
    document.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

#[test]
fn a_request_is_found_in_the_collector_by_what_its_client_and_the_exemplar_say() {
    let collector = Collector::start();
    // The cache is asked for the score, and for its explanation.
    for (at, endpoint, protocol, cache, asked) in
        [(1, collector.http(), "http", "off", 0), (2, collector.grpc(), "grpc", "memory", 2)]
    {
        let gateway = Settings::new()
            .set("SCOREGATE_CACHE", cache)
            .set("SCOREGATE_OTLP_ENDPOINT", &endpoint)
            .set("SCOREGATE_OTLP_PROTOCOL", protocol)
            .set("SCOREGATE_TRACE_SAMPLE", "0")
            .start();
        let trace = format!("{at:032x}");
        let request = gateway.with_key(Request::post("/v1/predict?explain=true", REFERENCE));
        let answer = gateway.ask(&traced(request, &trace, "01"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let told = answer.header("traceparent").unwrap();
        let span = told.strip_prefix(&format!("00-{trace}-")).unwrap().strip_suffix("-01").unwrap();
        assert_ne!(span, PARENT);

        let spans = collector.spans(&trace, 6 + asked);
        assert_eq!(spans.len(), 6 + asked, "{spans:#?}");
        assert_eq!(spans.iter().filter(|span| span["name"] == "cache").count(), asked, "{spans:#?}");
        let named = |name: &str| -> &Value {
            spans.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("{name} in {spans:#?}"))
        };
        let request = named("POST /v1/predict");
        assert_eq!((&request["context"]["span_id"], &request["parent_id"]), (&span.into(), &PARENT.into()));
        let attributes = request["attributes"].to_string();
        for expected in ["/v1/predict", "churn", "2026-05-17_01", "linear"] {
            assert!(attributes.contains(expected), "{expected} in {attributes}");
        }
        let time = |span: &Value, name: &str| span[name].as_str().unwrap().to_owned();
        let mut before = time(request, "start_time");
        for stage in ["admission", "body", "validation", "run", "explanation"] {
            let part = named(stage);
            assert_eq!(part["parent_id"], span, "{stage}");
            let (start, end) = (time(part, "start_time"), time(part, "end_time"));
            assert!(
                before <= start && start <= end && end <= time(request, "end_time"),
                "{stage} in {spans:#?}"
            );
            before = end;
        }

        let document = metrics(&gateway);
        let exemplar = format!(" # {{trace_id=\"{trace}\"}} ");
        let line = document.lines().find(|line| line.contains(&exemplar)).unwrap();
        assert!(line.starts_with("scoregate_request_duration_seconds_bucket{"), "{line}");
        assert!(document.ends_with("# EOF\n"));
        // The older format has none: its readers would stumble.
        let older = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
        assert!(!older.contains("trace_id"));
        wait_for("the count of traces", || (count(&gateway, "sent") == 1).then_some(()));
    }
}

#[test]
fn parents_decide_and_what_is_not_traced_goes_on() {
    // Nobody answers there, and nothing has to.
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let start = |sample: &str| {
        Settings::new()
            .set("SCOREGATE_OTLP_ENDPOINT", &endpoint)
            .set("SCOREGATE_TRACE_SAMPLE", sample)
            .start()
    };
    let post = |gateway: &Gateway| gateway.with_key(Request::post(PREDICT, REFERENCE));
    let gateway = start("1");
    let told = gateway.ask(&traced(post(&gateway), TRACE, "00"));
    let told = told.header("traceparent").unwrap();
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"), "{told}");
    assert!(gateway.ask(&post(&gateway)).header("traceparent").unwrap().ends_with("-01"));
    // Strangers have nothing traced, whatever they say.
    let stranger = gateway.ask(&traced(Request::post(PREDICT, REFERENCE), TRACE, "01"));
    assert_eq!(stranger.status, 401);
    // Malformed ones are as if there were none.
    let malformed = gateway.ask(&post(&gateway).header("Traceparent", format!("00-{TRACE}-{PARENT}")));
    assert!(!malformed.header("traceparent").unwrap().contains(TRACE));
    wait_for("what cannot be sent to be counted", || (count(&gateway, "failed") == 2).then_some(()));

    let gateway = start("0");
    assert_eq!(gateway.ask(&post(&gateway)).header("traceparent"), None);
    // Without a collector the context is handed back as it came.
    let gateway = Gateway::start();
    let told = gateway.ask(&traced(post(&gateway), TRACE, "01"));
    assert_eq!(told.header("traceparent"), Some(format!("00-{TRACE}-{PARENT}-01").as_str()));
    assert_eq!(gateway.ask(&post(&gateway)).header("traceparent"), None);
}

/// A collector in the tests' own process, that answers with `body`.
fn collector(body: &[u8]) -> Authority {
    let collector = Authority::start();
    collector.set("/v1/traces", Reply::body("application/x-protobuf", body));
    collector
}

fn holds(place: &[u8], text: &str) -> bool {
    place.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn spans_that_a_collector_rejects_are_lost_and_its_reason_is_told_once() {
    // `partial_success`: 5 spans, "no room".
    let collector = collector(b"\x0a\x0b\x08\x05\x12\x07no room");
    let gateway = Settings::new()
        .set("SCOREGATE_OTLP_ENDPOINT", &collector.url())
        .set("SCOREGATE_TRACE_SAMPLE", "1")
        .start();
    let post = || gateway.ask(&gateway.with_key(Request::post(PREDICT, REFERENCE))).status;
    for lost in 1..=3 {
        assert_eq!(post(), 200);
        wait_for("what is rejected to be counted", || (count(&gateway, "failed") == lost).then_some(()));
    }
    assert_eq!(count(&gateway, "sent"), 0);
    let told = gateway.log().iter().filter(|line| line.contains("rejects 5 of the spans: no room")).count();
    assert_eq!(told, 1, "{:#?}", gateway.log());
    collector.set("/v1/traces", Reply::status(200));
    assert_eq!(post(), 200);
    wait_for("what is taken to be counted", || (count(&gateway, "sent") == 1).then_some(()));
}

#[test]
fn collectors_are_told_who_tells_and_what_clients_say_beside_their_trace() {
    let collector = collector(b"");
    let settings = Settings::new();
    let file = settings.directory().join("headers");
    std::fs::write(&file, "X-Tenant: ours\nAuthorization: Bearer s3cret\n").unwrap();
    let gateway = settings
        .set("SCOREGATE_OTLP_ENDPOINT", &collector.url())
        .set("SCOREGATE_OTLP_HEADERS_FILE", file.to_str().unwrap())
        .set("SCOREGATE_TRACE_SAMPLE", "0")
        .start();
    let request = gateway.with_key(Request::post(PREDICT, REFERENCE)).header("Tracestate", "vendor=kept");
    // One that names its parent twice names none.
    let twice = traced(traced(request.clone(), TRACE, "01"), TRACE, "01");
    assert_eq!(gateway.ask(&twice).header("traceparent"), None);
    assert!(gateway.ask(&traced(request, TRACE, "01")).header("traceparent").is_some());
    let told = wait_for("the trace", || collector.questions().pop());
    assert_eq!(
        (told.headers["x-tenant"].as_str(), told.headers["authorization"].as_str()),
        ("ours", "Bearer s3cret")
    );
    assert!(holds(&told.body, "service.instance.id") && holds(&told.body, "vendor=kept"));
    let log = gateway.log().join("\n");
    assert!(!log.contains("s3cret"), "{log}");
}

#[test]
fn a_dead_collector_costs_nothing() {
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Settings::new()
        .set("SCOREGATE_OTLP_ENDPOINT", &format!("http://{}", silent.local_addr().unwrap()))
        .set("SCOREGATE_TRACE_SAMPLE", "1")
        .set("SCOREGATE_DRAIN_DELAY", "0s")
        .start();
    let request = gateway.with_key(Request::post(PREDICT, REFERENCE));
    let mut client = gateway.connect();
    let mut sent = 0;
    wait_for("traces to be dropped", || {
        for _ in 0..1_000 {
            sent += 1;
            assert_eq!(client.ask(&request).status, 200);
        }
        (count(&gateway, "dropped") > 0).then_some(())
    });
    let dropped = count(&gateway, "dropped");
    // Some thousand wait, a batch is on its way, and those of batches before have failed.
    assert!(dropped < sent, "{dropped} of {sent}");
    // In turn with a gateway that has none, so that both have as much of the machine.
    let without = Gateway::start();
    let request_without = without.with_key(Request::post(PREDICT, REFERENCE));
    let mut client_without = without.connect();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..2_000 {
        let both = [(&mut client, &request), (&mut client_without, &request_without)];
        for (times, (client, request)) in times.iter_mut().zip(both) {
            let begun = Instant::now();
            assert_eq!(client.ask(request).status, 200);
            times.push(begun.elapsed());
        }
    }
    let [with, without] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    assert!(with < without * 3 / 2, "{with:?} with it, {without:?} without");
    assert!(count(&gateway, "dropped") > dropped, "there was no place for them");
    let told = Instant::now();
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(gateway.exit().code, Some(0));
    assert!(told.elapsed() < Duration::from_secs(10), "it does not wait for the collector");
}
