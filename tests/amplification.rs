//! Small bodies that could cost a lot: none of at most 1 MiB takes much processor time, memory or answer.

use std::time::Duration;

use crate::support::{Answer, Gateway, REFERENCE, Request, Settings, customer, gzip};

const MIB: usize = 1 << 20;

/// Processor time that one body may take: 100 ms of an optimised build.
fn allowed() -> Duration {
    Duration::from_millis(if cfg!(debug_assertions) { 3_000 } else { 100 })
}

/// Processor time of the gateway so far, in the kernel's ticks of 10 ms.
fn processor_time(gateway: &Gateway) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// As many numbered copies of `item` as fit into a body of 1 MiB, `#` standing for the number.
fn fill(open: &str, item: &str, separator: &str, close: &str) -> String {
    let mut body = String::from(open);
    for at in 0.. {
        let next = item.replace('#', &at.to_string());
        if body.len() + separator.len() + next.len() + close.len() > MIB {
            break;
        }
        if at > 0 {
            body.push_str(separator);
        }
        body.push_str(&next);
    }
    body + close
}

/// Name, request, and how many bytes of answer are allowed for each byte of body.
fn bodies() -> Vec<(&'static str, Request, usize)> {
    const PREDICT: &str = "/v1/predict";
    const BATCH: &str = "/v1/predict/batch";
    let with = |name: &str, value: String| Request::post(PREDICT, customer(&[(name, value.as_str())]));
    let reference = REFERENCE.trim_end_matches('}');
    let row_of_unknowns = |item: &str| fill(&format!("{reference},"), item, ",", "}");
    let columns = |name: &str| fill("", name, ",", "\n1\n");
    let csv = |body: String| Request::post(BATCH, body).content_type("text/csv");
    let ndjson = |body: String| Request::post(BATCH, body).content_type("application/x-ndjson");
    vec![
        ("digits after the point", with("tenure_days", format!("0.{}", "1".repeat(MIB - 200))), 1),
        ("digits before an exponent", with("tenure_days", format!("1{}e-1000000", "0".repeat(MIB - 200))), 1),
        ("zeros after the point", with("tenure_days", format!("0.{}1", "0".repeat(MIB - 200))), 1),
        ("an exponent of a megabyte", with("tenure_days", format!("1e-{}", "9".repeat(MIB - 200))), 1),
        (
            "half way between two doubles",
            with("tenure_days", format!("9007199254740993.{}1", "0".repeat(MIB - 200))),
            1,
        ),
        ("a long category", with("country", format!("\"{}\"", "x".repeat(MIB - 200))), 1),
        ("escapes", with("country", format!("\"{}\"", "\\u0041".repeat(MIB / 6 - 40))), 1),
        ("a long unknown name", with(&"n".repeat(MIB - 200), "1".into()), 1),
        ("many unknown names", Request::post(PREDICT, row_of_unknowns("\"a#\":1")), 10),
        ("many names like ours", Request::post(PREDICT, row_of_unknowns("\"tenure_days#\":1")), 10),
        (
            "many names of 64 characters",
            Request::post(PREDICT, row_of_unknowns(&format!("\"{}#\":1", "\u{e9}".repeat(28)))),
            10,
        ),
        (
            "many unknown names in a batch",
            Request::post(BATCH, format!("[{}]", row_of_unknowns("\"a#\":1"))),
            10,
        ),
        (
            "rows of unknown names",
            Request::post(BATCH, fill("[", "{\"tenure_dayz\":1,\"b\":2}", ",", "]")),
            10,
        ),
        ("one unknown name many times", Request::post(PREDICT, row_of_unknowns("\"a\":1")), 1),
        ("rows of nothing", Request::post(BATCH, format!("[{}{{}}]", "{},".repeat(99_999))), 10),
        (
            "nested arrays",
            Request::post(PREDICT, format!("{reference},\"a\":{}{}}}", "[".repeat(120), "]".repeat(120))),
            10,
        ),
        (
            "a wide array in an unknown field",
            Request::post(PREDICT, fill(&format!("{reference},\"a\":["), "0", ",", "]}")),
            1,
        ),
        ("lines of rubbish", ndjson("x\n".repeat(100_000)), 10),
        ("blank lines", ndjson("\n".repeat(MIB)), 1),
        ("columns", csv(columns("a#")), 10),
        ("columns like ours", csv(columns("tenure_days#")), 10),
        ("one column many times", csv(columns("tenure_days")), 10),
        ("quotes", csv("\"".repeat(MIB)), 1),
        ("carriage returns", csv("\r".repeat(MIB)), 1),
        ("white space", Request::post(PREDICT, " ".repeat(MIB)), 1),
        (
            "gzip members of nothing",
            Request::post(PREDICT, gzip(b"").repeat(MIB / 20)).header("Content-Encoding", "gzip"),
            1,
        ),
    ]
}

#[test]
fn no_body_of_a_megabyte_costs_much() {
    let gateway = Settings::new().set("SCOREGATE_ANSWER_TIMEOUT", "60s").start();
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
    let mut wrong = Vec::new();
    for (name, request, factor) in bodies() {
        let request = gateway.with_key(request);
        let (time, peak) = (processor_time(&gateway), gateway.resident());
        let answer: Answer = gateway.ask(&request);
        let took = processor_time(&gateway) - time;
        let grown = gateway.resident().saturating_sub(peak);
        println!(
            "{name}: {} in, {} {} out, {took:?}, {grown} bytes more",
            request.size(),
            answer.status,
            answer.body.len()
        );
        if answer.status >= 500 {
            wrong.push(format!("{name}: answered {}", answer.status));
        }
        if took > allowed() {
            wrong.push(format!("{name}: {took:?} of processor time, allowed are {:?}", allowed()));
        }
        if answer.body.len() > 4_096 + factor * request.size() {
            wrong.push(format!("{name}: {} bytes answered for {}", answer.body.len(), request.size()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let peak = gateway.peak();
    assert!(peak < 256 << 20, "{peak} bytes resident at the peak");
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
}
