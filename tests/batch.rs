//! Batches: each row succeeds or fails on its own, in every format, and order is kept.

use serde_json::Value;

use crate::support::{
    Answer, Gateway, REFERENCE, Request, case, check, customer, customer_without, gzip, problem_faults,
    shared,
};

const BATCH: &str = "/v1/predict/batch";

fn ndjson(body: impl AsRef<[u8]>) -> Request {
    Request::post(BATCH, body).content_type("application/x-ndjson")
}

fn csv(body: impl AsRef<[u8]>) -> Request {
    Request::post(BATCH, body).content_type("text/csv")
}

const HEADER: &str = "tenure_days,monthly_spend,support_tickets_30d,plan_tier,country,last_login_hours";
const RECORD: &str = "214,49.0,1,pro,US,5";

fn ask(gateway: &Gateway, request: Request) -> Answer {
    gateway.ask(&gateway.with_key(request))
}

/// Per row `scored`, or its faults as `pointer code`.
fn outcomes(rows: &[Value]) -> Vec<String> {
    rows.iter()
        .enumerate()
        .map(|(at, row)| {
            assert_eq!(row["index"], at, "{row}");
            if row["churn_probability"].is_f64() {
                assert!(
                    row.get("error").is_none()
                        && row["prediction"].is_string()
                        && row["prediction_id"].is_string()
                );
                return "scored".into();
            }
            assert_eq!(row["error"]["code"], "invalid_row", "{row}");
            let faults = row["error"]["errors"].as_array().unwrap();
            let text = |fault: &Value, name: &str| fault[name].as_str().unwrap().to_owned();
            let faults =
                faults.iter().map(|fault| format!("{} {}", text(fault, "pointer"), text(fault, "code")));
            faults.collect::<Vec<_>>().join(", ")
        })
        .collect()
}

fn predictions(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["predictions"].as_array().unwrap().clone()
}

fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Good and bad rows by turns.
fn mixed() -> Vec<String> {
    vec![
        REFERENCE.into(),
        customer(&[("tenure_days", "\"214\"")]),
        customer(&[("country", "\"DE\"")]),
        customer_without("plan_tier"),
        customer(&[("tenure_days", "-1"), ("last_login_hour", "3")]),
        "17".into(),
        "[]".into(),
        "null".into(),
        customer(&[("monthly_spend", "12.5")]),
    ]
}

fn expected(prefix: &str) -> Vec<String> {
    let pointer = |rest: &str| format!("{prefix}{rest}");
    vec![
        "scored".into(),
        pointer("/1/tenure_days type"),
        "scored".into(),
        pointer("/3/plan_tier required"),
        format!("{}, {}", pointer("/4/tenure_days range"), pointer("/4/last_login_hour unknown_field")),
        pointer("/5 type"),
        pointer("/6 type"),
        pointer("/7 type"),
        "scored".into(),
    ]
}

#[test]
fn a_bad_row_fails_alone_in_json() {
    let gateway = shared();
    let array = format!("[{}]", mixed().join(","));
    let answer = gateway.post(BATCH, &array);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let document = answer.json();
    assert_eq!(document.as_object().unwrap().keys().collect::<Vec<_>>(), ["model_version", "predictions"]);
    assert_eq!(outcomes(&predictions(&answer)), expected("#"));
    assert_eq!(
        outcomes(&predictions(&gateway.post(BATCH, format!("{{\"rows\":{array}}}")))),
        expected("#/rows")
    );
    let detail = &document["predictions"][4]["error"]["errors"][1]["detail"];
    assert!(detail.as_str().unwrap().contains("did you mean \"last_login_hours\"?"), "{detail}");
}

#[test]
fn a_bad_line_fails_alone_in_ndjson_and_the_answer_is_ndjson() {
    let gateway = shared();
    let mut rows = mixed();
    rows.push("{\"tenure_days\":1".into());
    rows.push(format!("{REFERENCE} {REFERENCE}"));
    rows.push(customer(&[("country", "\"\\ud800\"")]));
    rows.push(customer(&[("tenure_days", "NaN")]));
    rows.push(REFERENCE.replace("{\"tenure_days\"", "{\"tenure_days\":1,\"tenure_days\""));
    rows.push(REFERENCE.into());
    let mut expected = expected("#");
    for at in 9..14 {
        expected.push(format!("#/{at} malformed"));
    }
    expected.push("scored".into());
    // Blank lines, CRLF and a missing or present end of the last line change nothing.
    for body in [rows.join("\n"), format!("\n{}\n\n", rows.join("\n\n")), rows.join("\r\n")] {
        for media_type in ["application/x-ndjson", "application/jsonl", "application/x-ndjson; charset=UTF-8"]
        {
            let answer = ask(&gateway, ndjson(&body).content_type(media_type));
            assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
            assert_eq!(outcomes(&lines(&answer)), expected);
        }
    }
}

#[test]
fn a_bad_record_fails_alone_in_csv() {
    let gateway = shared();
    let body = format!(
        "{HEADER}\n{RECORD}\nx,49.0,1,pro,US,5\n214,49.0,1,pro\n{RECORD},6\n,49.0,1,pro,US,5\n214,inf,1,pro,US,5\n{RECORD}\n"
    );
    let expected = [
        "scored",
        "#/1/tenure_days type",
        "#/2 columns",
        "#/3 columns",
        "#/4/tenure_days required",
        "#/5/monthly_spend type",
        "scored",
    ];
    assert_eq!(outcomes(&predictions(&ask(&gateway, csv(&body)))), expected);
    let crlf = body.replace('\n', "\r\n");
    assert_eq!(outcomes(&predictions(&ask(&gateway, csv(crlf)))), expected);
}

#[test]
fn csv_is_answered_as_csv_with_columns_added_if_that_is_accepted() {
    let gateway = shared();
    let reference = gateway.post("/v1/predict", REFERENCE).probability();
    let body = "country,customer_id,tenure_days,monthly_spend,support_tickets_30d,plan_tier,last_login_hours\n\
        US,\"a, \"\"b\"\"\",214,49.0,1,pro,5\n\
        US,c-2,many,49.0,1,pro,5\n\
        US,c-3\n";
    let answer = ask(&gateway, csv(body).header("Accept", "text/csv"));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/csv")), "{}", answer.text());
    let text = answer.text();
    let mut reader = csv_reader(&text);
    let rows: Vec<Vec<String>> =
        reader.records().map(|record| record.unwrap().iter().map(ToOwned::to_owned).collect()).collect();
    let added = ["churn_probability", "prediction", "prediction_id", "model_version", "error"];
    assert_eq!(
        rows[0][..7],
        [
            "country",
            "customer_id",
            "tenure_days",
            "monthly_spend",
            "support_tickets_30d",
            "plan_tier",
            "last_login_hours"
        ]
    );
    assert_eq!(rows[0][7..], added);
    assert!(rows.iter().all(|row| row.len() == 12), "{rows:?}");
    assert_eq!(rows[1][..7], ["US", "a, \"b\"", "214", "49.0", "1", "pro", "5"]);
    assert_eq!(rows[1][7].parse::<f64>().unwrap(), reference);
    assert_eq!((rows[1][9].len(), rows[1][11].as_str()), (26, ""));
    assert_eq!((rows[2][1].as_str(), rows[2][7].as_str(), rows[2][9].as_str()), ("c-2", "", ""));
    assert!(rows[2][11].contains("tenure_days") && !rows[2][11].contains("many"), "{:?}", rows[2]);
    assert_eq!((rows[3][1].as_str(), rows[3][7].as_str()), ("c-3", ""));
    assert!(!rows[3][11].is_empty());
}

fn csv_reader(text: &str) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes())
}

#[test]
fn the_answer_to_csv_is_chosen_by_accept() {
    let gateway = shared();
    let body = format!("{HEADER}\n{RECORD}\n");
    for (accept, expected) in [
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/*", "text/csv"),
        ("text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        ("text/csv;q=0.5, application/*", "application/json"),
    ] {
        let answer = ask(&gateway, csv(&body).header("Accept", accept));
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(expected)), "{accept}");
    }
}

#[test]
fn a_csv_header_that_does_not_fit_refuses_the_body() {
    let gateway = shared();
    let keyed = |body: &str| gateway.with_key(csv(body));
    let extra = format!("{HEADER},tenure_dayz\n{RECORD},1\n");
    let few = "tenure_days,monthly_spend,support_tickets_30d,plan_tier\n214,49.0,1,pro\n";
    let twice = format!("{HEADER},country\n{RECORD},US\n");
    check(
        &gateway,
        &[
            case("58 extra column", keyed(&extra), 422, "invalid_rows", &["#/tenure_dayz unknown_field"]),
            case(
                "59 too few",
                keyed(few),
                422,
                "invalid_rows",
                &["#/country required", "#/last_login_hours required"],
            ),
            case("a column twice", keyed(&twice), 422, "invalid_rows", &["#/country malformed"]),
            case("no header", keyed(RECORD), 422, "invalid_rows", &[]),
        ],
    );
    let detail = ask(&gateway, csv(extra)).json()["errors"][0]["detail"].to_string();
    assert!(detail.contains("tenure_days"), "{detail}");
}

#[test]
fn a_batch_of_which_nothing_scores_is_422_with_every_fault() {
    let gateway = shared();
    let none = format!("[{},{}]", customer_without("country"), customer(&[("tenure_days", "true")]));
    let keyed = |request: Request| gateway.with_key(request);
    let faults = &["#/0/country required", "#/1/tenure_days type"];
    let records = format!("{HEADER}\nx,49.0,1,pro,US,5\n214\n");
    check(
        &gateway,
        &[
            case("JSON", keyed(Request::post(BATCH, &none)), 422, "invalid_rows", faults),
            case(
                "rows",
                keyed(Request::post(BATCH, format!("{{\"rows\":{none}}}"))),
                422,
                "invalid_rows",
                &["#/rows/0/country required", "#/rows/1/tenure_days type"],
            ),
            case("NDJSON", keyed(ndjson("{}x\n[]")), 422, "invalid_rows", &["#/0 malformed", "#/1 type"]),
            case("CSV", keyed(csv(&records)), 422, "invalid_rows", &["#/0/tenure_days type", "#/1 columns"]),
            case("empty array", keyed(Request::post(BATCH, "[]")), 422, "invalid_rows", &[]),
            case("empty rows", keyed(Request::post(BATCH, "{\"rows\":[]}")), 422, "invalid_rows", &[]),
            case("no line", keyed(ndjson("")), 422, "invalid_rows", &[]),
            case("blank lines", keyed(ndjson("\n \r\n")), 422, "invalid_rows", &[]),
            case("no record", keyed(csv(format!("{HEADER}\n"))), 422, "invalid_rows", &[]),
            case("empty CSV", keyed(csv("")), 422, "invalid_rows", &[]),
            case(
                "no rows member",
                keyed(Request::post(BATCH, "{}")),
                422,
                "invalid_rows",
                &["#/rows required"],
            ),
            case(
                "rows of another type",
                keyed(Request::post(BATCH, "{\"rows\":7}")),
                422,
                "invalid_rows",
                &["#/rows type"],
            ),
            case(
                "a member beside rows",
                keyed(Request::post(BATCH, format!("{{\"rows\":[{REFERENCE}],\"x/y\":1}}"))),
                422,
                "invalid_rows",
                &["#/x~1y unknown_field"],
            ),
            case("one row without array", keyed(Request::post(BATCH, REFERENCE)), 422, "invalid_rows", &[]),
        ],
    );
    let all = format!("[{}]", vec!["{}"; 200].join(","));
    let listed = problem_faults(&gateway.post(BATCH, all)).len();
    assert_eq!(listed, 100, "a large refusal lists the first hundred faults");
}

#[test]
fn gzip_bodies_are_read() {
    let gateway = shared();
    let many = format!("[{}]", vec![REFERENCE; 3_000].join(","));
    for encoding in ["gzip", "x-gzip", "GZIP"] {
        let request = Request::post(BATCH, gzip(many.as_bytes())).header("Content-Encoding", encoding);
        assert_eq!(predictions(&ask(&gateway, request)).len(), 3_000);
    }
    let members = [gzip(&many.as_bytes()[..1_000]), gzip(&many.as_bytes()[1_000..])].concat();
    let request = Request::post(BATCH, members).header("Content-Encoding", "gzip");
    assert_eq!(predictions(&ask(&gateway, request)).len(), 3_000, "gzip members one after another");
    let single = Request::post("/v1/predict", gzip(REFERENCE.as_bytes())).header("Content-Encoding", "gzip");
    assert_eq!(ask(&gateway, single).status, 200);
    let broken =
        |bytes: &[u8]| gateway.with_key(Request::post(BATCH, bytes).header("Content-Encoding", "gzip"));
    let whole = gzip(many.as_bytes());
    check(
        &gateway,
        &[
            case("cut off", broken(&whole[..whole.len() - 9]), 400, "malformed_gzip", &[]),
            case("plain", broken(b"[]"), 400, "malformed_gzip", &[]),
            case("empty", broken(b""), 400, "malformed_gzip", &[]),
            case(
                "rubbish after it",
                broken(&[whole.as_slice(), b"rubbish"].concat()),
                400,
                "malformed_gzip",
                &[],
            ),
        ],
    );
}

#[test]
fn rows_of_one_entity_are_refused_each() {
    let gateway = shared();
    let of = |id: &str| customer(&[("customer_id", &format!("\"{id}\""))]);
    let rows = [of("a"), of("b"), of("a"), REFERENCE.into(), REFERENCE.into(), of("c"), of("a")];
    let expected = [
        "#/0 duplicate_entity",
        "scored",
        "#/2 duplicate_entity",
        "scored",
        "scored",
        "scored",
        "#/6 duplicate_entity",
    ];
    assert_eq!(outcomes(&predictions(&gateway.post(BATCH, format!("[{}]", rows.join(","))))), expected);
    assert_eq!(outcomes(&lines(&ask(&gateway, ndjson(rows.join("\n"))))), expected);
}

#[test]
fn a_large_batch_keeps_its_order() {
    let gateway = shared();
    let tenure = |row: usize| (row * 7919) % 3_000;
    let rows = |count: usize| (0..count).map(|row| customer(&[("tenure_days", &tenure(row).to_string())]));
    // More than one run of ONNX Runtime.
    let answer = gateway.post(BATCH, format!("[{}]", rows(10_000).collect::<Vec<_>>().join(",")));
    let found = predictions(&answer);
    assert_eq!(outcomes(&found), vec!["scored"; 10_000]);
    let mut client = gateway.connect();
    for row in [0, 1, 4_095, 4_096, 8_191, 8_192, 9_999] {
        let one =
            client.ask(&gateway.with_key(Request::post("/v1/predict", rows(row + 1).next_back().unwrap())));
        assert_eq!(found[row]["churn_probability"].as_f64().unwrap(), one.probability(), "row {row}");
    }
}
