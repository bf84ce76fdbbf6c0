//! Bad requests to predict: every numbered case gets its status, code and pointers, and no answer repeats a value.
//!
//! The table is used twice: here case by case, and by the campaign of a million requests.

use crate::support::{
    CANARY, Case, REFERENCE, Request, Settings, case, check, customer, customer_without, gzip,
    publish_ratio_model, shared,
};

const PREDICT: &str = "/v1/predict";
const BATCH: &str = "/v1/predict/batch";

fn post(body: impl AsRef<[u8]>) -> Request {
    Request::post(PREDICT, body)
}

/// The reference customer with one member replaced by JSON text.
fn with(name: &str, value: &str) -> String {
    customer(&[(name, value)])
}

/// 1 to 16: what is no JSON document, or none that means one thing.
fn malformed_json() -> Vec<Case> {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    let mut bodies: Vec<(String, Vec<u8>)> = vec![
        ("1 empty".into(), b"".to_vec()),
        ("1 white space only".into(), b" \r\n\t".to_vec()),
        ("2 no name".into(), b"{x}".to_vec()),
        ("2 cut off".into(), REFERENCE[..60].into()),
        ("3 trailing comma".into(), REFERENCE.replace("5}", "5,}").into()),
        ("4 comment".into(), REFERENCE.replace("5}", "5/*c*/}").into()),
        ("4 line comment".into(), format!("// c\n{REFERENCE}").into()),
        ("5 single quotes".into(), REFERENCE.replace('"', "'").into()),
        ("9 too large for a double".into(), with("tenure_days", "1e400").into()),
        ("9 in an unknown field".into(), with("other", "-1e400").into()),
        ("10 two documents".into(), REFERENCE.repeat(2).into()),
        ("10 a comma after it".into(), format!("{REFERENCE},").into()),
        ("11 byte order mark".into(), format!("\u{feff}{REFERENCE}").into()),
        ("12 lone surrogate".into(), with("country", "\"\\ud800\"").into()),
        ("12 in an unknown field".into(), with("other", "\"\\udc00x\"").into()),
        ("12 in a name".into(), with("\\ud800", "1").into()),
        ("14 a feature twice".into(), REFERENCE.replace("5}", "5,\"tenure_days\":214}").into()),
        ("14 twice under escapes".into(), REFERENCE.replace("5}", "5,\"\\u0074enure_days\":214}").into()),
        ("14 an unknown field twice".into(), customer(&[("other", "1,\"other\":2")]).into()),
        ("15 deep arrays".into(), with("other", &deep("[", "]")).into()),
        ("15 deep objects".into(), with("other", &deep("{\"a\":", "}")).into()),
        ("15 deep in a feature".into(), with("tenure_days", &deep("[", "]")).into()),
        ("15 deep root, never closed".into(), "[".repeat(100_000).into()),
        ("raw newline in a string".into(), with("country", "\"U\nS\"").into()),
        ("bad escape".into(), with("country", "\"\\x55S\"").into()),
        ("Python's True".into(), with("tenure_days", "True").into()),
    ];
    for (name, number) in [
        ("6 NaN", "NaN"),
        ("6 -NaN", "-NaN"),
        ("7 Infinity", "Infinity"),
        ("7 -Infinity", "-Infinity"),
        ("8 leading zero", "01"),
        ("8 leading point", ".5"),
        ("8 trailing point", "1."),
        ("8 hexadecimal", "0x10"),
        ("8 plus", "+1"),
        ("8 underscore", "1_000"),
    ] {
        bodies.push((name.into(), with("tenure_days", number).into()));
    }
    for bytes in [&b"\xff"[..], b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"] {
        let mut body = br#"{"country":""#.to_vec();
        body.extend_from_slice(bytes);
        body.extend_from_slice(br#""}"#);
        bodies.push((format!("13 no UTF-8: {bytes:x?}"), body));
    }
    for (name, root) in [("null", "null"), ("a number", "7"), ("a string", "\"x\""), ("a boolean", "true")] {
        bodies.push((format!("16 {name} as root"), root.into()));
    }
    let mut cases = Vec::new();
    for (name, body) in bodies {
        let row = [b"[".as_slice(), &body, b"]"].concat();
        let is_row = !name.starts_with("1 ")
            && !name.starts_with("10 ")
            && !name.starts_with("11 ")
            && !name.starts_with("16 ");
        if is_row {
            cases.push(case(
                format!("{name}, in a batch"),
                Request::post(BATCH, row),
                400,
                "malformed_json",
                &[],
            ));
        }
        cases.push(case(name, post(body), 400, "malformed_json", &[]));
    }
    for (name, body) in [
        ("10 two documents", "[{}][{}]"),
        ("11 byte order mark", "\u{feff}[{}]"),
        ("16 null", "null"),
        ("16 a string", "\"x\""),
    ] {
        cases.push(case(
            format!("{name}, in a batch"),
            Request::post(BATCH, body),
            400,
            "malformed_json",
            &[],
        ));
    }
    cases
}

/// 32 to 34, 36, 37, 41 to 43: what the head asks for and announces.
fn head() -> Vec<Case> {
    let typed = |media_type: &str| post(REFERENCE).content_type(media_type);
    let encoded = |encoding: &str| post(gzip(REFERENCE.as_bytes())).header("Content-Encoding", encoding);
    let bomb = gzip(&vec![b' '; 17 << 20]);
    let mut cases = vec![
        case(
            "32 unknown model",
            Request::post("/v1/models/nobody/predict", REFERENCE),
            404,
            "unknown_model",
            &[],
        ),
        case("34 HTML wanted", post(REFERENCE).header("Accept", "text/html"), 406, "not_acceptable", &[]),
        case(
            "34 JSON refused",
            post(REFERENCE).header("Accept", "application/json;q=0"),
            406,
            "not_acceptable",
            &[],
        ),
        case(
            "34 CSV wanted for JSON",
            Request::post(BATCH, "[]").header("Accept", "text/csv"),
            406,
            "not_acceptable",
            &[],
        ),
        case("37 gzip bomb", post(bomb).header("Content-Encoding", "gzip"), 413, "body_too_large", &[]),
        case(
            "41 no content type",
            post(REFERENCE).without("content-type"),
            415,
            "unsupported_media_type",
            &[],
        ),
        case(
            "41 two content types",
            post(REFERENCE).header("Content-Type", "application/json"),
            415,
            "unsupported_media_type",
            &[],
        ),
        case("41 CSV for a single row", typed("text/csv"), 415, "unsupported_media_type", &[]),
        case("43 stacked encodings", encoded("gzip, gzip"), 415, "unsupported_encoding", &[]),
        case(
            "43 in two headers",
            encoded("gzip").header("Content-Encoding", "gzip"),
            415,
            "unsupported_encoding",
            &[],
        ),
    ];
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE"] {
        cases.push(case(
            format!("33 {method}"),
            Request::new(method, PREDICT),
            405,
            "method_not_allowed",
            &[],
        ));
    }
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "",
        "application/json; charset=utf-16",
        "\u{fc}",
    ] {
        cases.push(case(format!("41 {media_type:?}"), typed(media_type), 415, "unsupported_media_type", &[]));
    }
    for encoding in ["br", "deflate", "zstd", "gzip;q=1", ""] {
        cases.push(case(format!("42 {encoding:?}"), encoded(encoding), 415, "unsupported_encoding", &[]));
    }
    cases
}

/// 44 to 64: well-formed rows that do not pass the schema.
fn rows() -> Vec<Case> {
    let canary = format!("\"{CANARY}\"");
    let mut cases = Vec::new();
    let mut row = |name: &str, body: String, faults: &[&'static str]| {
        cases.push(case(name, post(body), 422, "invalid_row", faults));
    };
    row("44 missing feature", customer_without("country"), &["#/country required"]);
    row(
        "44 every feature missing",
        "{}".into(),
        &[
            "#/tenure_days required",
            "#/monthly_spend required",
            "#/support_tickets_30d required",
            "#/plan_tier required",
            "#/country required",
            "#/last_login_hours required",
        ],
    );
    row("45 unknown field", with("tenure", &canary), &["#/tenure unknown_field"]);
    row("45 with a pointer to escape", with("a/b~c", &canary), &["#/a~1b~0c unknown_field"]);
    row("45 the target", with("churned", "1"), &["#/churned unknown_field"]);
    row("46 text for a number", with("tenure_days", &canary), &["#/tenure_days type"]);
    row("46 digits in quotes", with("tenure_days", "\"1\""), &["#/tenure_days type"]);
    row("47 boolean for a number", with("monthly_spend", "true"), &["#/monthly_spend type"]);
    row("47 boolean for a category", with("country", "false"), &["#/country type"]);
    row("48 null", with("last_login_hours", "null"), &["#/last_login_hours required"]);
    row("48 null for a category", with("country", "null"), &["#/country required"]);
    row("49 number for a category", with("plan_tier", "987654321"), &["#/plan_tier type"]);
    row("49 object for a number", with("tenure_days", &format!("{{{canary}:1}}")), &["#/tenure_days type"]);
    row("49 array for a category", with("plan_tier", &format!("[{canary}]")), &["#/plan_tier type"]);
    row("51 beyond float32", with("monthly_spend", "1e39"), &["#/monthly_spend overflow"]);
    row("51 negative", with("tenure_days", "-3.5e38"), &["#/tenure_days overflow"]);
    row("52 fraction for an integer", with("support_tickets_30d", "1.5"), &["#/support_tickets_30d type"]);
    row(
        "53 beyond int64",
        with("support_tickets_30d", "99999999999999999999"),
        &["#/support_tickets_30d precision"],
    );
    row(
        "53 int64 maximum",
        with("support_tickets_30d", "9223372036854775807"),
        &["#/support_tickets_30d precision"],
    );
    row("54 2^24 + 1", with("tenure_days", "16777217"), &["#/tenure_days precision"]);
    row("54 for an integer", with("support_tickets_30d", "16777217"), &["#/support_tickets_30d precision"]);
    row("below the minimum", with("tenure_days", "-0.5"), &["#/tenure_days range"]);
    row(
        "61 text of 1 KiB and more",
        with("country", &format!("\"{}\"", CANARY.repeat(110))),
        &["#/country length"],
    );
    row(
        "61 longer than the schema allows",
        with("plan_tier", &format!("\"{}\"", "x".repeat(65))),
        &["#/plan_tier length"],
    );
    row("61 empty", with("country", "\"\""), &["#/country length"]);
    row("62 NUL", with("country", &format!("\"{CANARY}\\u0000\"")), &["#/country character"]);
    row(
        "63 control character in an id",
        with("customer_id", &format!("\"{CANARY}\\u001b[31m\"")),
        &["#/customer_id character"],
    );
    row("63 line feed in an id", with("customer_id", "\"a\\nb\""), &["#/customer_id character"]);
    row("63 C1 control in an id", with("customer_id", "\"a\u{85}b\""), &["#/customer_id character"]);
    row("63 id too long", with("customer_id", &format!("\"{}\"", "i".repeat(65))), &["#/customer_id length"]);
    row(
        "several at once, in the order sent",
        customer(&[("tenure_days", &canary), ("plan_tier", "1"), ("nonsense", &canary)]),
        &["#/tenure_days type", "#/plan_tier type", "#/nonsense unknown_field"],
    );
    let csv = |body: String| Request::post(BATCH, body).content_type("text/csv");
    let header = "tenure_days,monthly_spend,support_tickets_30d,plan_tier,country,last_login_hours";
    let ids = format!("[{0},{0}]", with("customer_id", &canary));
    cases.extend([
        case("60 array for an object", post(format!("[{REFERENCE}]")), 422, "invalid_row", &["# type"]),
        case("55 no rows", Request::post(BATCH, "[]"), 422, "invalid_rows", &[]),
        case(
            "56 too many rows",
            Request::post(BATCH, format!("[{}{{}}]", "{},".repeat(100_000))),
            413,
            "too_many_rows",
            &[],
        ),
        case("57 ragged", csv(format!("{header}\n{CANARY},1\n")), 422, "invalid_rows", &["#/0 columns"]),
        case(
            "58 extra column",
            csv(format!("{header},other\n1,2,3,pro,US,4,{CANARY}\n")),
            422,
            "invalid_rows",
            &["#/other unknown_field"],
        ),
        case("59 too few columns", csv(format!("country\n{CANARY}\n")), 422, "invalid_rows", &[]),
        case(
            "64 an entity twice",
            Request::post(BATCH, ids),
            422,
            "invalid_rows",
            &["#/0 duplicate_entity", "#/1 duplicate_entity"],
        ),
        case(
            "62 NUL in CSV",
            csv(format!("{header}\n1,2,3,pro,{CANARY}\0,4\n")),
            422,
            "invalid_rows",
            &["#/0/country character"],
        ),
    ]);
    cases
}

/// Every case that is one well-framed request; without credentials.
pub(crate) fn table() -> Vec<Case> {
    [malformed_json(), head(), rows()].into_iter().flatten().collect()
}

#[test]
fn each_case_is_refused_as_the_table_says() {
    let gateway = shared();
    let cases: Vec<Case> =
        table().into_iter().map(|case| Case { request: gateway.with_key(case.request), ..case }).collect();
    check(&gateway, &cases);
    let log = gateway.log_so_far().join("\n");
    assert!(!log.contains(CANARY), "a value stands in the log");
}

#[test]
fn the_wrong_method_is_told_the_right_one() {
    let gateway = shared();
    let allow = |request: Request| gateway.ask(&request).header("allow").map(ToOwned::to_owned);
    assert_eq!(allow(Request::get(PREDICT)).as_deref(), Some("POST"));
    let health = allow(Request::post("/health", "")).unwrap();
    assert!(health.contains("GET") && !health.contains("POST"), "{health}");
}

#[test]
fn what_only_looks_bad_is_scored() {
    let gateway = shared();
    for (name, body) in [
        ("2^24", with("tenure_days", "16777216")),
        ("an integer that float32 holds", with("tenure_days", "16777218")),
        ("1.0 for an integer", with("support_tickets_30d", "1.0")),
        ("an exponent", with("support_tickets_30d", "1e2")),
        ("minus zero", with("tenure_days", "-0")),
        ("the largest float32", with("monthly_spend", "3.4028234663852886e38")),
        ("a number too small for float32", with("monthly_spend", "1e-320")),
        ("50 unseen category", with("country", "\"ZZ\"")),
        ("50 unseen plan", with("plan_tier", "\"enterprise\"")),
        ("text of 64 characters, more bytes", with("country", &format!("\"{}\"", "\u{1f600}".repeat(64)))),
        ("escapes", with("country", "\"\\u0055\\u0053\"")),
        ("an id that is null", with("customer_id", "null")),
        ("white space around", format!(" \r\n\t{REFERENCE}\r\n")),
    ] {
        let answer = gateway.post(PREDICT, body);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    }
    for (accept, content_type) in [
        ("*/*", "application/json; charset=utf-8"),
        ("application/*, text/html", "APPLICATION/JSON"),
        ("text/html;q=0.9, application/json;q=0.1", "application/json ; charset=\"UTF-8\""),
    ] {
        let request = post(REFERENCE).content_type(content_type).header("Accept", accept);
        assert_eq!(gateway.ask(&gateway.with_key(request)).status, 200, "{accept} {content_type}");
    }
    let escaped = gateway.post(PREDICT, with("country", "\"\\u0055\\u0053\"")).probability();
    assert_eq!(escaped, gateway.post(PREDICT, REFERENCE).probability());
}

#[test]
fn an_unknown_field_is_told_its_closest_neighbour() {
    let gateway = shared();
    for (sent, meant) in [
        ("tenure", Some("tenure_days")),
        ("TenureDays", Some("tenure_days")),
        ("last_login_hour", Some("last_login_hours")),
        ("monthlyspend", Some("monthly_spend")),
        ("Country", Some("country")),
        ("quite_another_thing", None),
    ] {
        let detail =
            gateway.post(PREDICT, with(sent, "1")).json()["errors"][0]["detail"].as_str().unwrap().to_owned();
        match meant {
            Some(meant) => {
                assert!(detail.contains(&format!("did you mean \"{meant}\"?")), "{sent}: {detail}")
            }
            None => assert!(!detail.contains("did you mean"), "{sent}: {detail}"),
        }
    }
}

#[test]
fn integers_that_would_change_silently_are_refused_however_they_are_written() {
    let gateway = shared();
    // 2^63 overflows int64; 2^64 + 1 is no float32, though the nearest double (2^64) is one.
    for digits in
        ["9223372036854775808", "18446744073709551617", "-9223372036854775809", "36893488147419103233"]
    {
        let answer = gateway.post(PREDICT, with("support_tickets_30d", digits));
        assert_eq!(answer.status, 422, "{digits}: {}", answer.text());
    }
}

#[test]
fn a_model_that_answers_no_probability_is_a_500_and_never_null() {
    let models = tempfile::tempdir_in(crate::support::scratch()).unwrap();
    publish_ratio_model(models.path());
    let gateway = Settings::new().models(models.path()).set("SCOREGATE_DEFAULT_MODEL", "ratio").start();
    let row = |top: &str, bottom: &str| format!("{{\"top\":{top},\"bottom\":{bottom}}}");
    let good = gateway.post(PREDICT, row("1", "4"));
    assert_eq!((good.status, good.json()["ratio_probability"].as_f64()), (200, Some(0.25)));
    let keyed = |request: Request| gateway.with_key(request);
    let mut cases = Vec::new();
    for (name, top, bottom) in
        [("68 NaN", "0", "0"), ("68 infinite", "1", "0"), ("above one", "2", "1"), ("below zero", "-1", "2")]
    {
        let one = row(top, bottom);
        cases.push(case(name, keyed(post(&one)), 500, "model_output_invalid", &[]));
        let many = format!("[{},{one}]", row("1", "2"));
        cases.push(case(
            format!("{name} in a batch"),
            keyed(Request::post(BATCH, many)),
            500,
            "model_output_invalid",
            &[],
        ));
    }
    check(&gateway, &cases);
    assert_eq!(gateway.post(PREDICT, row("1", "4")).status, 200, "it scores on");
    let log = gateway.log_so_far().join("\n");
    assert!(
        log.contains("model_output_invalid") && log.contains("not finite"),
        "the operator finds the reason:\n{log}"
    );
}
