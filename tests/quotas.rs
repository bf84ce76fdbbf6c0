//! Quotas in rows: what a caller is told, when it is refused, and when it is let in again. One gateway that counts alone.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Answer, Client, Gateway, PREDICT, REFERENCE, Request, Settings, gzip, wait_for, wait_within,
};

const BATCH: &str = "/v1/predict/batch";

fn limited(quota: &str) -> Settings {
    Settings::new().set("SCOREGATE_QUOTA", quota)
}

/// A batch of as many rows.
fn rows(count: usize) -> String {
    format!("[{}]", vec![REFERENCE; count].join(","))
}

fn with_key(key: &str, request: Request) -> Request {
    request.header("X-Api-Key", key)
}

/// What the header says of one policy: rows left, and seconds.
fn left(answer: &Answer, policy: &str) -> (u64, u64) {
    let header = answer.header("ratelimit").unwrap_or_else(|| panic!("no quota in {answer:?}"));
    let item = header.split(", ").find_map(|item| item.strip_prefix(&format!("\"{policy}\";r=")));
    let item = item.unwrap_or_else(|| panic!("no {policy} in {header}"));
    let (rows, seconds) = item.split_once(";t=").unwrap();
    (rows.parse().unwrap(), seconds.parse().unwrap())
}

/// Whether the answer is that of somebody without a quota.
fn is_unlimited(answer: &Answer) -> bool {
    ["ratelimit", "ratelimit-policy", "x-ratelimit-limit"].iter().all(|name| answer.header(name).is_none())
}

/// What was counted by the name and labels of a metric.
fn counted(gateway: &Gateway, series: &str) -> u64 {
    let answer = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics"));
    let text = answer.text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    line.unwrap_or_else(|| panic!("{series} is not in\n{text}"))
}

fn admitted(gateway: &Gateway) -> u64 {
    counted(gateway, r#"scoregate_quota_rows_total{policy="rows",outcome="admitted"}"#)
}

#[test]
fn answers_say_what_is_left_and_refusals_when_to_come_again() {
    // One row comes back in 8,640 s: nothing does while the test runs.
    let gateway = limited("10/day").start();
    for sent in 1..=10 {
        let answer = gateway.post(PREDICT, REFERENCE);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("ratelimit-policy"), Some(r#""rows";q=10;w=86400;scorer-unit="rows""#));
        if sent == 1 {
            assert_eq!(answer.header("ratelimit"), Some(r#""rows";r=9;t=8640"#));
        }
        let (left, seconds) = left(&answer, "rows");
        assert_eq!((left, seconds.div_ceil(8_640)), (10 - sent, sent));
        assert_eq!(answer.header("retry-after"), None);
        assert!(answer.all("x-ratelimit-limit").is_empty(), "only for those who ask for it");
    }
    for request in
        [Request::post(PREDICT, REFERENCE), Request::post(BATCH, rows(3)), Request::get("/v1/models")]
    {
        let refused = gateway.ask(&gateway.with_key(request.header("X-Request-Id", "7")));
        assert_eq!(refused.status, 429, "{}", refused.text());
        assert_eq!(refused.header("content-type"), Some("application/problem+json"));
        assert_eq!(refused.header("ratelimit-policy"), Some(r#""rows";q=10;w=86400;scorer-unit="rows""#));
        let (left, seconds) = left(&refused, "rows");
        assert!(left == 0 && (8_000..=8_640).contains(&seconds), "{refused:?}");
        assert_eq!(refused.header("retry-after"), Some(seconds.to_string().as_str()));
        let document = refused.json();
        let path = document["instance"].clone();
        assert_eq!(
            document,
            json!({
                "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
                "title": "Request cannot be satisfied as assigned quota has been exceeded",
                "status": 429,
                "code": "quota_exceeded",
                "detail": format!(
                    "the quota of 10/day rows is used up; as many rows are let through in {seconds} s"
                ),
                "instance": path,
                "request_id": "7",
                "violated-policies": ["rows"],
            })
        );
        assert!([PREDICT, BATCH, "/v1/models"].iter().any(|known| path == *known));
    }
    assert_eq!(admitted(&gateway), 10);
    assert_eq!(counted(&gateway, r#"scoregate_quota_rows_total{policy="rows",outcome="refused"}"#), 3);
}

#[test]
fn rows_come_back_when_the_answer_said_they_would() {
    let gateway = limited("1/s").start();
    let mut client = gateway.connect();
    let request = gateway.with_key(Request::post(PREDICT, REFERENCE));
    let mut sent = Instant::now();
    // On a slow machine a row may have come back between two requests.
    let (refused, seconds) = wait_for("a refusal", || {
        let now = Instant::now();
        let answer = client.ask(&request);
        match answer.status {
            429 => Some((Instant::now(), left(&answer, "rows").1)),
            _ => {
                sent = now;
                None
            }
        }
    });
    assert_eq!(seconds, 1, "less than a second is one");
    let back = wait_for("a row", || (client.ask(&request).status == 200).then(Instant::now));
    assert!(back - sent >= Duration::from_secs(1), "{:?} after the one before", back - sent);
    assert!(back - refused < Duration::from_secs(3), "{:?} after the refusal", back - refused);
}

#[test]
fn batches_count_their_rows() {
    let gateway = limited("100000/day").start();
    let ask = |request: Request| gateway.ask(&gateway.with_key(request));
    let kind = |media_type: &str, body: String| Request::post(BATCH, body).content_type(media_type);
    let header = "tenure_days,monthly_spend,support_tickets_30d,plan_tier,country,last_login_hours\n";
    let csv = |count: usize| format!("{header}{}", "214,49.0,1,pro,US,5\n".repeat(count));
    let zipped = Request::post(BATCH, gzip(rows(40).as_bytes())).header("Content-Encoding", "gzip");
    let mut rest = 100_000;
    // Few rows are scored on the thread that took them, many on another.
    for (what, request, status, cost) in [
        ("JSON", Request::post(BATCH, rows(30)), 200, 30),
        ("many rows", Request::post(BATCH, rows(20_000)), 200, 20_000),
        ("NDJSON", kind("application/x-ndjson", format!("{REFERENCE}\n").repeat(20)), 200, 20),
        ("CSV", kind("text/csv", csv(10)), 200, 10),
        ("CSV in CSV", kind("text/csv", csv(10)).header("Accept", "text/csv"), 200, 10),
        ("gzip", zipped, 200, 40),
        ("one row", Request::post(BATCH, rows(1)), 200, 1),
        ("rows that fail", Request::post(BATCH, "[{},{},{}]"), 422, 3),
        ("some that fail", Request::post(BATCH, format!("[{{}},{REFERENCE},{{}}]")), 200, 3),
        ("no rows", Request::post(BATCH, "[]"), 422, 1),
        // What is refused before there are rows costs the one row that every request does.
        ("no JSON", Request::post(BATCH, rows(9).trim_end_matches(']')), 400, 1),
        ("no type that is known", kind("text/plain", rows(9)), 415, 1),
        ("a parameter", Request::post("/v1/predict/batch?a=b", rows(9)), 400, 1),
        ("an unknown model", Request::post("/v1/models/nobody/predict/batch", rows(9)), 404, 1),
        ("one row that fails", Request::post(PREDICT, "{}"), 422, 1),
        ("metadata", Request::get("/v1/metadata"), 200, 1),
        ("a version", Request::get("/v1/models/churn/versions/none"), 404, 1),
    ] {
        let answer = ask(request);
        rest -= cost;
        let found = (answer.status, left(&answer, "rows").0);
        // A row comes back in less than a second.
        assert!(
            found.0 == status && (rest..=rest + 60).contains(&found.1),
            "{what}: {found:?}, {rest} expected"
        );
        rest = found.1;
    }
    // What is refused before admission costs nothing, and says nothing of quotas.
    let anonymous = gateway.ask(&Request::post(PREDICT, REFERENCE));
    assert!(anonymous.status == 401 && is_unlimited(&anonymous), "{anonymous:?}");
    let unknown = ask(Request::get("/nowhere"));
    assert!(unknown.status == 404 && is_unlimited(&unknown), "{unknown:?}");
}

#[test]
fn a_batch_is_let_in_whole_or_not_at_all() {
    let gateway = limited("100/day").start();
    let large = gateway.post(BATCH, rows(101));
    assert_eq!((large.status, large.code().as_str()), (413, "too_many_rows"));
    assert!(
        large.text().contains("101 rows") && large.text().contains("at most 100 rows"),
        "{}",
        large.text()
    );
    assert_eq!(left(&large, "rows").0, 99, "it cost its one row");
    let refused = gateway.post(BATCH, rows(100));
    assert_eq!((refused.status, left(&refused, "rows").0), (429, 98));
    // Two rows have to come back: all hundred are needed when it is sent again.
    let (_, seconds) = left(&refused, "rows");
    assert!((1_700..=1_728).contains(&seconds), "{seconds}");
    assert_eq!(refused.header("retry-after"), Some(seconds.to_string().as_str()));
    assert_eq!((gateway.post(BATCH, rows(98)).status, gateway.post(PREDICT, REFERENCE).status), (200, 429));
    assert_eq!(admitted(&gateway), 100);
    let fresh = limited("100/day").start();
    assert_eq!(fresh.post(BATCH, rows(100)).status, 200, "a burst is the whole quota");
}

#[test]
fn plans_have_quotas_of_their_own_and_models_too() {
    let settings = Settings::new().set("SCOREGATE_QUOTA", "50/day");
    let file = "[plan.free]\nquota = \"20/day\"\n[plan.free.models]\nsaas_churn = \"5/day\"\n\
                [plan.staff]\nquota = \"off\"\n[plan.staff.models]\nsaas_churn = \"7/hour\"\n";
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let key = |name: &str, plan: &[&str]| {
        settings.key_with(&[&["--name", name, "--scopes", "score:predict,models:read"], plan].concat())
    };
    let free = key("free", &["--plan", "free"]);
    let staff = key("staff", &["--plan", "staff"]);
    let lost = [key("lost", &["--plan", "platinum"]), key("also lost", &["--plan", "platinum"])];
    let gateway = settings.start();
    let predict = |key: &str, model: &str| {
        // What is in the row does not matter to who counts it.
        gateway.ask(&with_key(key, Request::post(&format!("/v1/models/{model}/predict"), REFERENCE)))
    };
    let other = predict(&free, "churn");
    assert_eq!(other.header("ratelimit-policy"), Some(r#""rows";q=20;w=86400;scorer-unit="rows""#));
    for sent in 1..=5 {
        let answer = predict(&free, "saas_churn");
        assert_eq!(
            answer.header("ratelimit-policy"),
            Some(
                r#""rows";q=20;w=86400;scorer-unit="rows", "rows-saas_churn";q=5;w=86400;scorer-unit="rows""#
            )
        );
        assert_eq!((left(&answer, "rows").0, left(&answer, "rows-saas_churn").0), (19 - sent, 5 - sent));
    }
    let refused = predict(&free, "saas_churn");
    assert_eq!((refused.status, &refused.json()["violated-policies"]), (429, &json!(["rows-saas_churn"])));
    assert_eq!((left(&refused, "rows"), left(&refused, "rows-saas_churn").0), ((14, 0), 0));
    let (_, seconds) = left(&refused, "rows-saas_churn");
    assert_eq!(refused.header("retry-after"), Some(seconds.to_string().as_str()));
    // The other model goes on, with all rows that the refused one has not taken.
    assert_eq!(left(&predict(&free, "churn"), "rows").0, 13);

    assert!(is_unlimited(&predict(&staff, "churn")));
    let one = predict(&staff, "saas_churn");
    assert_eq!(one.header("ratelimit-policy"), Some(r#""rows-saas_churn";q=7;w=3600;scorer-unit="rows""#));

    for key in &lost {
        assert_eq!(
            left(&predict(key, "churn"), "rows").0,
            49,
            "an unknown plan is the default, each for itself"
        );
    }
    let warnings = gateway.log_so_far().into_iter().filter(|line| line.contains("a caller's plan is not in"));
    let warnings: Vec<Value> = warnings.map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!((&warnings[0]["level"], &warnings[0]["plan"]), (&"WARN".into(), &"platinum".into()));
    let refused =
        counted(&gateway, r#"scoregate_quota_rows_total{policy="rows-saas_churn",outcome="refused"}"#);
    assert_eq!(refused, 1);
}

#[test]
fn plans_change_while_the_gateway_runs() {
    let settings = limited("5/day");
    let write = |directory: &Path, text: &str| fs::write(directory.join("scoregate.toml"), text).unwrap();
    let key = settings.key_with(&["--name", "free", "--scopes", "score:predict", "--plan", "free"]);
    let mut gateway = settings.start();
    let directory = gateway.settings.directory().to_owned();
    let request = with_key(&key, Request::post(PREDICT, REFERENCE));
    let policy = |answer: &Answer| answer.header("ratelimit-policy").map(ToOwned::to_owned);
    let first = gateway.ask(&request);
    assert_eq!(
        policy(&first).as_deref(),
        Some(r#""rows";q=5;w=86400;scorer-unit="rows""#),
        "no such plan yet"
    );
    let changed = |quota: u64| {
        let expected = format!("\"rows\";q={quota};w=86400;scorer-unit=\"rows\"");
        wait_within(Duration::from_secs(10), || {
            let answer = gateway.ask(&request);
            (policy(&answer).as_ref() == Some(&expected)).then_some(answer)
        })
        .unwrap_or_else(|| panic!("the quota never became {quota} rows"))
    };
    write(&directory, "[plan.free]\nquota = \"1000/day\"\n");
    assert_eq!(changed(1_000).status, 200, "who had used up the old quota has the new one");
    write(&directory, "[plan.free]\nquota = \"100000/day\"\n");
    changed(100_000);
    let batch = gateway.ask(&with_key(&key, Request::post(BATCH, rows(5_000))));
    assert_eq!(batch.status, 200);
    // Nobody gets the burst anew by a change: the share that was taken stays.
    let before = left(&gateway.ask(&request), "rows").0;
    assert!(before < 95_000, "{before}");
    write(&directory, "[plan.free]\nquota = \"20/day\"\n");
    let after = left(&changed(20), "rows").0;
    let expected = before * 20 / 100_000 - 1;
    assert!(after.abs_diff(expected) <= 1, "{before} of 100000 rows became {after} of 20");
    write(&directory, "[plan.free]\nquota = \"twenty\"\n");
    gateway.wait_for_line("plans not changed: the file cannot be used");
    let answer = gateway.ask(&request);
    assert_eq!(policy(&answer).as_deref(), Some(r#""rows";q=20;w=86400;scorer-unit="rows""#));
}

#[test]
fn callers_are_counted_apart() {
    let settings = limited("5/day");
    let other = settings.key_with(&["--name", "test", "--scopes", "score:predict"]);
    let gateway = settings.start();
    for _ in 0..5 {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    }
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 429);
    // A key of the same name is another caller.
    let answer = gateway.ask(&with_key(&other, Request::post(PREDICT, REFERENCE)));
    assert_eq!((answer.status, left(&answer, "rows").0), (200, 4));
}

#[test]
fn tokens_carry_the_plan_of_their_client() {
    let settings = Settings::new().set("SCOREGATE_OAUTH_ISSUER", "https://issuer.example");
    let keys = settings.directory().join("issuer_keys.json");
    let settings = settings.set("SCOREGATE_OAUTH_KEYS_FILE", keys.to_str().unwrap());
    let settings = settings.set("SCOREGATE_QUOTA", "50/day");
    fs::write(settings.directory().join("scoregate.toml"), "[plan.free]\nquota = \"20/day\"\n").unwrap();
    // The issuer makes its keys when it starts.
    let gateway = settings.start();
    let run = |arguments: &[&str]| {
        let output = gateway.settings.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let mut tokens = Vec::new();
    for (name, plan) in [("shop", &["--plan", "free"][..]), ("web", &[])] {
        run(&[&["clients", "create", "--name", name, "--scopes", "score:predict"], plan].concat());
        tokens.push(run(&["token", "--client", name]));
        tokens.push(run(&["token", "--client", name]));
    }
    let left_of = |token: &str| {
        let request = Request::post(PREDICT, REFERENCE).header("Authorization", format!("Bearer {token}"));
        left(&gateway.ask(&request), "rows").0
    };
    let found: Vec<u64> = tokens.iter().map(|token| left_of(token)).collect();
    assert_eq!(found, [19, 18, 49, 48], "two tokens of one client are one caller");
}

#[test]
fn a_quota_can_be_switched_off_and_told_in_the_older_way() {
    let gateway = limited("off").start();
    for request in
        [Request::post(PREDICT, REFERENCE), Request::post(BATCH, rows(70_000)), Request::get("/v1/models")]
    {
        let answer = gateway.ask(&gateway.with_key(request));
        assert!(answer.status == 200 && is_unlimited(&answer), "{} {:?}", answer.status, answer.headers);
    }
    let gateway = limited("2/day").set("SCOREGATE_QUOTA_LEGACY_HEADERS", "true").start();
    for (status, remaining) in [(200, "1"), (200, "0"), (429, "0")] {
        let answer = gateway.post(PREDICT, REFERENCE);
        let (_, seconds) = left(&answer, "rows");
        let expected =
            [Some("2"), Some(remaining), Some(&seconds.to_string())].map(|value| value.map(str::to_owned));
        let names = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
        let found = names.map(|name| answer.header(name).map(str::to_owned));
        assert_eq!((answer.status, found), (status, expected));
    }
}

#[test]
fn operators_have_a_quota_as_well() {
    let settings = limited("3/day");
    let operator = settings.key_with(&["--name", "operator", "--scopes", "models:write"]);
    let gateway = settings.start();
    let put = with_key(&operator, Request::new("PUT", "/v1/models/churn/rollout"))
        .header("Content-Type", "application/json")
        .header("Content-Length", "2")
        .body("[]");
    let statuses: Vec<(u16, u64)> = (0..4)
        .map(|_| Client::connect(gateway.admin_addr).ask(&put))
        .map(|answer| (answer.status, left(&answer, "rows").0))
        .collect();
    assert_eq!(statuses, [(422, 2), (422, 1), (422, 0), (429, 0)]);
}

#[test]
fn sixty_four_connections_get_exactly_the_thousand_rows_that_there_are() {
    // One row comes back in 86 s.
    let gateway = limited("1000/day").start();
    let start = Instant::now();
    let single = gateway.with_key(Request::post(PREDICT, REFERENCE)).bytes();
    let batch = gateway.with_key(Request::post(BATCH, rows(7))).bytes();
    let (ones, sevens, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..64 {
            let (gateway, single, batch) = (&gateway, &single, &batch);
            let (ones, sevens, refused) = (&ones, &sevens, &refused);
            scope.spawn(move || {
                let mut client = gateway.connect();
                for _ in 0..30 {
                    // A quarter of them send batches.
                    let (request, scored) = if number % 4 == 0 { (batch, sevens) } else { (single, ones) };
                    client.send(request);
                    let answer = client.answer().unwrap();
                    match answer.status {
                        200 => scored.fetch_add(1, Ordering::Relaxed),
                        429 => refused.fetch_add(1, Ordering::Relaxed),
                        status => panic!("{status}: {}", answer.text()),
                    };
                }
            });
        }
    });
    let back = start.elapsed().as_secs() / 86;
    let (ones, sevens) = (ones.into_inner(), sevens.into_inner());
    let scored = ones + 7 * sevens;
    let admitted = admitted(&gateway);
    assert!((1_000..=1_000 + back).contains(&admitted), "{admitted} rows admitted, {back} came back");
    // A batch that is refused leaves the one row taken that it was let in as.
    assert!(scored <= admitted && sevens > 0 && ones > 0, "{ones} single rows, {sevens} batches, {admitted}");
    assert_eq!(ones + sevens + refused.into_inner(), 64 * 30);
    assert_eq!(left(&gateway.post(PREDICT, REFERENCE), "rows").0, 0);
}
