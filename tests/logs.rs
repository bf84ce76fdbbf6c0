//! Logs: a line for each request, levels that change at run time, and the proof that nothing which a client sent is told to anybody.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::authority::{Authority, Reply};
use crate::support::cached::{Callers, KEY, metric};
use crate::support::graph::picking;
use crate::support::redis::Redis;
use crate::support::tokens::{AUDIENCE, Key, Mint, encode, key_set, segments};
use crate::support::{
    Client, Gateway, PREDICT, REFERENCE, Request, Settings, customer, gzip, pause, repository, wait_for,
};

/// The lines of the log.
fn all(gateway: &Gateway) -> impl Iterator<Item = Value> {
    gateway.log().into_iter().filter_map(|line| serde_json::from_str(&line).ok())
}

/// The lines of requests that are no probes, by the identifier of each.
fn requests(gateway: &Gateway) -> BTreeMap<String, Value> {
    let lines = all(gateway).filter(|line| line["target"] == "scoregate::access");
    lines.map(|line| (line["request_id"].as_str().unwrap().to_owned(), line)).collect()
}

/// The line of a request, once it is there.
fn line(gateway: &Gateway, id: &str) -> Value {
    wait_for("the line of a request", || requests(gateway).remove(id))
}

#[test]
fn each_request_leaves_one_line_and_none_of_its_values() {
    let gateway = Settings::new().set("SCOREGATE_CACHE", "memory").start();
    let ask = |id: &str, request: Request| gateway.ask(&request.header("X-Request-Id", id)).status;
    let keyed = |request: Request| gateway.with_key(request);
    let strange = customer(&[("country", "\"Atlantis\""), ("monthly_spend", "1e9")]);
    let rows = format!("[{REFERENCE},{strange},{{}}]");
    assert_eq!(ask("first", keyed(Request::post(PREDICT, REFERENCE))), 200);
    assert_eq!(ask("again", keyed(Request::post(PREDICT, REFERENCE))), 200);
    assert_eq!(ask("why", keyed(Request::post("/v1/predict?explain=true", &strange))), 200);
    assert_eq!(ask("batch", keyed(Request::post("/v1/models/churn/predict/batch", &rows))), 200);
    assert_eq!(ask("wrong", Request::post(PREDICT, REFERENCE).header("X-Api-Key", "sg_wrong")), 401);
    assert_eq!(ask("nobody", keyed(Request::post("/v1/models/nobody/predict", REFERENCE))), 404);
    assert_eq!(ask("nowhere", Request::new("BREW", "/nowhere")), 404);
    assert_eq!(ask("a\"b\\c", Request::get("/health")), 200);
    let reader = gateway.settings.key_with(&["--name", "reader", "--scopes", "models:read"]);
    let scopeless = |id: &str| ask(id, Request::post(PREDICT, REFERENCE).header("X-Api-Key", &reader));
    wait_for("the new key", || (scopeless("reader") == 403).then_some(()));

    let first = line(&gateway, "first");
    for (name, expected) in [
        ("level", json!("INFO")),
        ("route", json!(PREDICT)),
        ("method", json!("POST")),
        ("status", json!(200)),
        ("model", json!("churn")),
        ("version", json!("2026-05-17_01")),
        ("rows", json!(1)),
        ("rows_rejected", json!(0)),
        ("cache", json!("miss")),
        ("missing", json!(0)),
        ("unseen", json!(0)),
        ("rare", json!(0)),
        ("out_of_range", json!(0)),
        ("bytes_in", json!(REFERENCE.len())),
    ] {
        assert_eq!(first[name], expected, "{name} in {first}");
    }
    assert!(first["receive_ms"].as_f64().unwrap() >= 0.0, "{first}");
    let latency = first["latency_ms"].as_f64().unwrap();
    assert!(latency > 0.0 && latency < 10_000.0, "{first}");
    assert!(first["caller"].as_str().is_some_and(|caller| !caller.is_empty()), "{first}");
    assert!(first["bytes_out"].as_u64().unwrap() > 100 && first["code"].is_null(), "{first}");
    assert_eq!(line(&gateway, "again")["cache"], "hit");
    let why = line(&gateway, "why");
    assert_eq!(
        (&why["unseen"], &why["out_of_range"], &why["explanation"]),
        (&json!(1), &json!(1), &json!("linear"))
    );
    let batch = line(&gateway, "batch");
    assert_eq!(
        (&batch["rows"], &batch["rows_rejected"], &batch["unseen"]),
        (&json!(3), &json!(1), &json!(1))
    );
    assert_eq!(batch["route"], "/v1/models/{model}/predict/batch");
    let wrong = line(&gateway, "wrong");
    assert_eq!(
        (&wrong["code"], &wrong["caller"], &wrong["model"]),
        (&json!("invalid_key"), &Value::Null, &Value::Null)
    );
    assert_eq!(line(&gateway, "nobody")["code"], "unknown_model");
    // Who it was is known, though it may not.
    wait_for("who was refused", || {
        let mut lines = requests(&gateway).into_values();
        let refused = lines.find(|line| line["code"] == "insufficient_scope")?;
        assert!(refused["caller"].is_string(), "{refused}");
        Some(())
    });
    let nowhere = line(&gateway, "nowhere");
    assert_eq!((&nowhere["route"], &nowhere["method"]), (&json!("unmatched"), &json!("other")));
    let probe = all(&gateway).find(|line| line["request_id"] == "a\"b\\c").unwrap();
    assert_eq!(
        (&probe["route"], &probe["target"]),
        (&json!("/health"), &json!("scoregate::access::routine"))
    );
    assert_eq!(requests(&gateway).len(), 8);
}

#[test]
fn lines_of_requests_can_be_left_out() {
    for (name, value, logged) in [
        ("SCOREGATE_LOG_ACCESS", "off", [false, false]),
        ("SCOREGATE_LOG_ACCESS", "errors", [false, true]),
        ("SCOREGATE_LOG", "info,scoregate::access=off", [false, false]),
        ("SCOREGATE_LOG", "warn,scoregate::cli=info", [false, false]),
        ("SCOREGATE_LOG", "info,scoregate::access::routine=off", [true, true]),
    ] {
        let gateway = Settings::new().set(name, value).set("SCOREGATE_DRAIN_DELAY", "0s").start();
        let mut client = gateway.connect();
        assert_eq!(client.ask(&gateway.with_key(Request::post(PREDICT, REFERENCE))).status, 200);
        assert_eq!(client.ask(&Request::post(PREDICT, REFERENCE)).status, 401);
        assert_eq!(client.ask(&Request::get("/health")).status, 200);
        gateway.signal(nix::sys::signal::Signal::SIGTERM);
        let log = gateway.exit().log;
        let found = [200, 401].map(|status| log.contains(&format!("\"status\":{status},")));
        assert_eq!(found, logged, "{name}={value}: {log}");
        assert!(!log.contains("::access::routine"), "{name}={value}: {log}");
    }
}

#[test]
fn the_level_follows_the_settings_file() {
    let settings = Settings::new();
    let file = settings.directory().join("scoregate.toml");
    std::fs::write(&file, "[log]\nfilter = \"info,scoregate::access=off\"\n").unwrap();
    let mut gateway = settings.start();
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    std::fs::write(&file, "[log]\nfilter = \"debug\"\n").unwrap();
    gateway.wait_for_line("the log's filter has changed");
    assert_eq!(requests(&gateway).len(), 0, "they were left out until now");
    // Told at this level only.
    let refused = Request::post(PREDICT, REFERENCE).header("X-Request-Id", "stranger");
    assert_eq!(gateway.ask(&refused).status, 401);
    line(&gateway, "stranger");
    gateway.wait_for_line("credential refused");
    // What is no filter changes nothing.
    std::fs::write(&file, "[log]\nfilter = \"a=b=c\"\n").unwrap();
    gateway.wait_for_line("the log's filter not changed: the file cannot be used");
    assert_eq!(
        gateway.ask(&refused.clone().without("X-Request-Id").header("X-Request-Id", "later")).status,
        401
    );
    line(&gateway, "later");
}

#[test]
fn how_fast_a_client_sends_is_not_how_fast_it_is_answered() {
    let gateway = Gateway::start();
    let request = gateway.with_key(Request::post(PREDICT, REFERENCE)).header("X-Request-Id", "slow");
    let mut client = gateway.connect();
    client.send(request.head());
    client.send(&REFERENCE[..10]);
    let in_flight = || metric(&gateway, "scoregate_requests_in_flight");
    wait_for("the request to be there", || (in_flight() == 2).then_some(()));
    pause(Duration::from_millis(700));
    client.send(&REFERENCE[10..]);
    assert_eq!(client.answer().unwrap().status, 200);
    let line = line(&gateway, "slow");
    let time = |name: &str| line[name].as_f64().unwrap();
    assert!(time("receive_ms") >= 700.0 && time("latency_ms") < 500.0, "{line}");
    let document = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let sum = format!("scoregate_request_duration_seconds_sum{{route=\"{PREDICT}\",model=\"churn\",");
    let sum = document.lines().find(|line| line.starts_with(&sum)).unwrap();
    assert!(sum.rsplit(' ').next().unwrap().parse::<f64>().unwrap() < 0.5, "{sum}");
}

/// What stands in the places of a request, and must come out of none.
const NUMBER: &str = "48151623.4211";
/// A place beyond the end of a table, which ONNX Runtime names when it is asked for it.
const PLACE: &str = "4815162";
const TEXT: &str = "CANARYxq7Zu";

#[test]
fn nothing_that_a_client_sent_is_in_any_log_trace_metric_error_or_key() {
    const ISSUER: &str = "https://login.example";
    let (redis, collector, signer) = (Redis::start(), Authority::start(), Key::p256("key"));
    let authority = Authority::start();
    authority.set("/keys", Reply::Json(key_set([signer.jwk()])));
    collector.set("/v1/traces", Reply::status(200));
    let callers = Callers::new();
    let key = callers.alone("honest");
    let operator = callers.with_scopes("operator", "monitoring:read");
    let models = repository().copy_of("churn");
    let (picking, output) = picking();
    picking.publish(models.0.path(), output);
    let replica = callers.replica(&redis.url(), KEY);
    let headers = replica.directory().join("headers");
    std::fs::write(&headers, format!("x-collector-key: {TEXT}\n")).unwrap();
    let gateway = replica
        .models(models.0.path())
        .set("SCOREGATE_STATE_DIR", "state")
        .set("SCOREGATE_OAUTH_ISSUER", "https://own.example")
        .set("SCOREGATE_OTLP_HEADERS_FILE", headers.to_str().unwrap())
        .set("SCOREGATE_JWT_ISSUER", ISSUER)
        .set("SCOREGATE_JWT_AUDIENCE", AUDIENCE)
        .set("SCOREGATE_JWT_JWKS", &format!("{}/keys", authority.url()))
        .set("SCOREGATE_OTLP_ENDPOINT", &collector.url())
        .set("SCOREGATE_TRACE_SAMPLE", "1")
        .set("SCOREGATE_QUOTA", "1000000/min")
        .set("SCOREGATE_LOG", "trace")
        .start_with(&key);
    let token = Mint::new(&signer, ISSUER)
        .claim("scope", json!("score:predict"))
        .claim("email", json!(TEXT))
        .claim("jti", json!(TEXT))
        .token();
    let forged = Mint::new(&signer, ISSUER).header("kid", json!(TEXT)).claim("sub", json!(TEXT)).token();
    let quoted = format!("\"{TEXT}\"");
    let texts = [("plan_tier", quoted.as_str()), ("country", &quoted), ("customer_id", &quoted)];
    let numbers = ["tenure_days", "monthly_spend", "last_login_hours"].map(|feature| (feature, NUMBER));
    let strange = customer(&[&texts[..], &numbers].concat());
    let wrong: Vec<String> = ["tenure_days", "monthly_spend", "support_tickets_30d", "last_login_hours"]
        .iter()
        .map(|feature| customer(&[(feature, &quoted)]))
        .chain(["plan_tier", "country", "customer_id"].iter().map(|feature| customer(&[(feature, NUMBER)])))
        .chain([
            format!("[\"{TEXT}\"]"),
            format!("{{{TEXT}"),
            format!("\"{TEXT}"),
            customer(&[("support_tickets_30d", NUMBER)]),
        ])
        .collect();
    let post = |body: &str| Request::post(PREDICT, body);
    let keyed = |request: Request| request.header("X-Api-Key", &key);
    let batch = |media: &str, body: &str| keyed(Request::post("/v1/predict/batch", body).content_type(media));
    let header =
        "customer_id,tenure_days,monthly_spend,support_tickets_30d,plan_tier,country,last_login_hours";
    let mut asked = vec![
        keyed(post(&strange)),
        keyed(post(&strange)),
        post(&strange).header("Authorization", format!("Bearer {token}")),
        post(&strange).header("Authorization", format!("Bearer {forged}")),
        post(&strange).header("Authorization", format!("Bearer {}", token.replace('.', ".."))),
        post(&strange).header("Authorization", format!("Bearer {TEXT}")),
        post(&strange).header("Authorization", format!("Basic {}", encode(TEXT))),
        post(&strange).header("X-Api-Key", format!("sg_{TEXT}{TEXT}{TEXT}{TEXT}")),
        post(&strange).header("X-Api-Key", TEXT),
        post(&strange),
        keyed(Request::post(&format!("/v1/predict?{TEXT}={TEXT}"), &strange)),
        keyed(Request::post(&format!("/v1/predict?explain={TEXT}"), &strange)),
        keyed(Request::post(&format!("/v1/predict?explain=true&class={TEXT}"), &strange)),
        Request::post(&format!("/v1/predict?access_token={TEXT}"), &strange),
        keyed(Request::post("/v1/predict?explain=full", &strange)),
        keyed(Request::get(&format!("/v1/metadata?{TEXT}"))),
        batch("application/json", &format!("[{strange},{}]", customer(&[("tenure_days", &quoted)]))),
        batch("application/x-ndjson", &format!("{strange}\n{{\"{TEXT}\n")),
        batch(
            "text/csv",
            &format!("{header}\n{TEXT},{NUMBER},1,1,{TEXT},{TEXT},1\n{TEXT},{TEXT},1,1,a,b,1\n"),
        ),
        keyed(post(&strange).content_type(TEXT)),
        keyed(post("").body(gzip(strange.as_bytes()))).header("Content-Encoding", "gzip"),
        keyed(post(&strange)).header("Content-Encoding", TEXT),
        keyed(Request::new(TEXT, PREDICT)),
    ];
    asked.extend(wrong.iter().map(|body| keyed(post(body))));
    // The run fails at once, in a batch, and where the row is mixed with others to explain it.
    let (outside, mixed) = (format!("{{\"a\":{PLACE},\"b\":1}}"), format!("{{\"a\":{PLACE},\"b\":0}}"));
    let pick = |how: &str, body: &str| keyed(Request::post(&format!("/v1/models/pick/{how}"), body));
    let failing = [
        pick("predict", &outside),
        pick("predict/batch", &format!("[{{\"a\":1,\"b\":1}},{outside}]")),
        pick("predict?explain=true", &mixed),
        pick("predict/batch?explain=true", &format!("[{mixed}]")),
    ];
    assert_eq!(gateway.ask(&pick("predict", &mixed)).status, 200, "it is the others that fail");
    asked.extend(failing);
    let form = "application/x-www-form-urlencoded";
    asked.push(
        Request::post(
            "/oauth/token",
            format!("grant_type=client_credentials&client_id=a&client_secret={TEXT}"),
        )
        .content_type(form),
    );
    asked.push(
        Request::post("/oauth/token", "grant_type=client_credentials")
            .content_type(form)
            .header("Authorization", format!("Basic {}", encode(format!("a:{TEXT}")))),
    );
    let (mut errors, count) = (Vec::new(), asked.len());
    for (at, request) in asked.into_iter().enumerate() {
        let request = request
            .header("User-Agent", TEXT)
            .header("Cookie", format!("session={TEXT}"))
            .header("Referer", format!("https://{TEXT}.example/"))
            .header("X-Forwarded-For", TEXT)
            .header("Tracestate", format!("{}={TEXT}", TEXT.to_lowercase()))
            .header("Baggage", format!("user={TEXT}"))
            .header("Traceparent", TEXT)
            .header("Accept-Language", TEXT)
            .header(&format!("X-{TEXT}"), TEXT)
            .header("X-Request-Id", format!("asked-{at}"));
        let answer = gateway.ask(&request);
        if answer.status != 200 {
            errors.push(answer.text());
            errors.extend(answer.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        } else if let Some(failed) = answer.text().split("\"error\":").nth(1) {
            errors.push(failed.into());
        }
        line(&gateway, &format!("asked-{at}"));
    }
    assert!(errors.len() > 50, "{errors:#?}");
    let failed = |line: &Value| {
        let said = line["error"].as_str().unwrap_or_default();
        said.contains("failed to run the graph: ") && said.contains(" in the GatherElements node ")
    };
    let failed = all(&gateway).filter(failed).count();
    assert!(failed >= 4, "what failed is told: {:#?}", gateway.log());

    let last = format!("asked-{}", count - 1);
    let holds = |place: &[u8], text: &str| place.windows(text.len()).any(|window| window == text.as_bytes());
    let traces = wait_for("the traces of requests", || {
        let all: Vec<u8> = collector.questions().into_iter().flat_map(|question| question.body).collect();
        holds(&all, &last).then_some(all)
    });
    let stored = wait_for("scores in Redis", || {
        let keys = redis.keys();
        keys.iter().any(|key| key.starts_with("scoregate:score:")).then_some(keys)
    });
    let mut places: Vec<(String, Vec<u8>)> = vec![("the traces".into(), traces)];
    places.extend(gateway.log_so_far().into_iter().map(|line| ("the log".to_owned(), line.into_bytes())));
    places.extend(errors.into_iter().map(|error| ("an error".to_owned(), error.into_bytes())));
    for accept in ["text/plain", "application/openmetrics-text"] {
        let metrics =
            Client::connect(gateway.admin_addr).ask(&Request::get("/metrics").header("Accept", accept));
        places.push(("the metrics".into(), metrics.body));
    }
    for target in ["/v1/monitoring/live", "/openapi.json"] {
        let request = Request::get(target).header("X-Api-Key", &operator);
        let told = Client::connect(gateway.admin_addr).ask(&request);
        assert_eq!(told.status, 200, "{target}: {}", told.text());
        places.push((target.into(), told.body));
    }
    for name in stored {
        places.push(("Redis".into(), redis.value(&name).unwrap_or_default()));
        places.push(("a key of Redis".into(), name.into_bytes()));
    }
    let [_, claims, signature] = segments(&token);
    let secrets =
        [TEXT, &TEXT.to_lowercase(), NUMBER, PLACE, "4.81516", &encode(TEXT), claims, signature, &key];
    // The search finds what is there.
    assert!(places.iter().filter(|(_, place)| holds(place, "asked-")).count() > 30);
    for secret in secrets {
        for (name, place) in &places {
            assert!(!holds(place, secret), "{secret} in {name}: {}", String::from_utf8_lossy(place));
        }
    }
}
