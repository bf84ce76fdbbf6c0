//! CORS on real listeners: off by default, for the origins that the operator names, and never on the admin one.

use serde_json::Value;

use crate::support::world::bearer;
use crate::support::{Answer, Client, Gateway, REFERENCE, Request, Settings, complaints, shared};

const PREDICT: &str = "/v1/predict";
const PAGE: &str = "https://app.example.com";

/// Everything of an answer that speaks of CORS.
fn cors(answer: &Answer) -> Vec<&str> {
    let names = answer.headers.iter().map(|(name, _)| name.as_str());
    names.filter(|name| name.to_ascii_lowercase().starts_with("access-control-")).collect()
}

fn preflight(target: &str, origin: &str) -> Request {
    Request::new("OPTIONS", target)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", "authorization,content-type,x-api-key")
}

fn post(origin: &str) -> Request {
    Request::post(PREDICT, REFERENCE).header("Origin", origin)
}

fn gateway(origins: &str) -> Gateway {
    Settings::new().set("SCOREGATE_CORS_ORIGINS", origins).start()
}

#[test]
fn off_by_default_there_is_no_trace_of_it() {
    let gateway = shared();
    let refused = gateway.ask(&preflight(PREDICT, PAGE));
    assert_eq!((refused.status, refused.code().as_str()), (405, "method_not_allowed"));
    for answer in [refused, gateway.ask(&post(PAGE)), gateway.ask(&gateway.with_key(post(PAGE)))] {
        assert!(cors(&answer).is_empty() && answer.header("vary").is_none(), "{answer:?}");
    }
}

#[test]
fn a_preflight_is_answered_without_credentials() {
    let gateway = gateway(&format!("https://other.example.com, {PAGE}"));
    for target in [PREDICT, "/v1/predict/batch", "/v1/metadata"] {
        let answer = gateway.ask(&preflight(target, PAGE));
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        assert!(answer.body.is_empty());
        assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
        assert_eq!(answer.header("vary"), Some("origin"));
        assert_eq!(answer.header("access-control-max-age"), Some("7200"));
        assert_eq!(answer.header("access-control-allow-credentials"), None, "cookies are not used");
        assert!(answer.header("x-request-id").is_some());
        let list = |name: &str| answer.header(name).unwrap().to_ascii_lowercase();
        let methods = list("access-control-allow-methods");
        for method in ["get", "post", "put", "delete"] {
            assert!(methods.split(',').any(|held| held.trim() == method), "{method}: {methods}");
        }
        let headers = list("access-control-allow-headers");
        let expected = [
            "authorization",
            "content-type",
            "accept",
            "x-api-key",
            "x-request-id",
            "traceparent",
            "x-model-version",
        ];
        for header in expected {
            assert!(headers.split(',').any(|held| held.trim() == header), "{header}: {headers}");
        }
    }
    let options = gateway.ask(&Request::new("OPTIONS", PREDICT).header("Origin", PAGE));
    assert_eq!(options.status, 405, "what is no preflight is no route either");
}

#[test]
fn answers_and_refusals_can_be_read_by_the_page() {
    let gateway = gateway(PAGE);
    for (request, status) in [
        (gateway.with_key(post(PAGE)), 200),
        (post(PAGE), 401),
        (gateway.with_key(Request::post(PREDICT, "{").header("Origin", PAGE)), 400),
        (gateway.with_key(Request::post(PREDICT, "{}").header("Origin", PAGE)), 422),
        (Request::get("/nowhere").header("Origin", PAGE), 404),
        (Request::get(PREDICT).header("Origin", PAGE), 405),
    ] {
        let answer = gateway.ask(&request);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(complaints(&answer), Vec::<String>::new(), "{request:?}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE), "{status}");
        assert_eq!(answer.header("vary"), Some("origin"), "{status}");
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        let exposed = answer.header("access-control-expose-headers").unwrap().to_ascii_lowercase();
        for header in [
            "x-request-id",
            "traceparent",
            "www-authenticate",
            "retry-after",
            "ratelimit",
            "ratelimit-policy",
            "cache-status",
        ] {
            assert!(exposed.split(',').any(|held| held.trim() == header), "{header}: {exposed}");
        }
        assert_eq!(status == 405, answer.header("allow").is_some(), "other headers stay as they are");
        assert_eq!(status == 401, !answer.all("www-authenticate").is_empty());
    }
}

#[test]
fn a_foreign_origin_is_told_nothing() {
    let gateway = gateway(PAGE);
    for origin in [
        "https://evil.example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.example",
        "https://APP.example.com",
        "null",
        "",
    ] {
        for request in [preflight(PREDICT, origin), gateway.with_key(post(origin)), post(origin)] {
            let answer = gateway.ask(&request);
            assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
            assert_eq!(answer.header("vary"), Some("origin"), "caches must not mix them up");
        }
    }
    let own = gateway.ask(&gateway.with_key(Request::post(PREDICT, REFERENCE)));
    assert_eq!(
        (own.status, own.header("access-control-allow-origin")),
        (200, None),
        "a client that is no page"
    );
    assert_eq!(own.header("vary"), Some("origin"));
}

#[test]
fn a_page_gets_a_token_and_scores_with_it() {
    let settings = Settings::new()
        .set("SCOREGATE_CORS_ORIGINS", PAGE)
        .set("SCOREGATE_OAUTH_ISSUER", "https://scores.example")
        .set("SCOREGATE_OAUTH_KEYS_FILE", "issuer_keys.json");
    let made = settings.run(&["clients", "create", "--name", "page", "--scopes", "score:predict"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let gateway = settings.start();
    let form = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}",
        made["client_id"].as_str().unwrap(),
        made["client_secret"].as_str().unwrap()
    );
    let asking = |origin: &str| {
        let request = Request::post("/oauth/token", &form).header("Origin", origin);
        request.content_type("application/x-www-form-urlencoded")
    };
    let allowed = gateway.ask(&preflight("/oauth/token", PAGE));
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (200, Some(PAGE)));
    let given = gateway.ask(&asking(PAGE));
    assert_eq!(given.status, 200, "{}", given.text());
    assert_eq!(given.header("access-control-allow-origin"), Some(PAGE));
    let token = given.json()["access_token"].as_str().unwrap().to_owned();
    let scored = gateway.ask(&bearer(&token).header("Origin", PAGE));
    assert_eq!((scored.status, scored.header("access-control-allow-origin")), (200, Some(PAGE)));
    for request in [preflight("/oauth/token", "https://evil.example"), asking("https://evil.example")] {
        assert_eq!(gateway.ask(&request).header("access-control-allow-origin"), None);
    }
}

#[test]
fn the_admin_listener_takes_no_part_in_it() {
    for origins in ["*", PAGE] {
        let gateway = gateway(origins);
        let of_page = |request: Request| request.header("Origin", PAGE);
        let preflight = preflight("/metrics", PAGE);
        let scored = gateway.with_key(post(PAGE));
        for (request, status) in
            [(of_page(Request::get("/metrics")), 200), (of_page(Request::get("/health")), 200), (scored, 200)]
        {
            let answer = Client::connect(gateway.admin_addr).ask(&request);
            assert_eq!(answer.status, status, "{}", answer.text());
            assert!(cors(&answer).is_empty() && answer.header("vary").is_none(), "{answer:?}");
        }
        let refused = Client::connect(gateway.admin_addr).ask(&preflight);
        assert_eq!(refused.status, 405, "{}", refused.text());
        assert!(cors(&refused).is_empty(), "{refused:?}");
    }
}

#[test]
fn any_origin_may_be_allowed_and_none_that_is_malformed() {
    let gateway = gateway("*");
    for request in [preflight(PREDICT, PAGE), gateway.with_key(post("https://x.example")), post("null")] {
        let answer = gateway.ask(&request);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
    for origins in ["app.example.com", "https://app.example.com/", "https://app.example.com/path"] {
        let exit = Settings::new().set("SCOREGATE_CORS_ORIGINS", origins).spawn().exit();
        assert_eq!(exit.code, Some(1), "{origins}");
        assert!(exit.log.contains("SCOREGATE_CORS_ORIGINS"), "{}", exit.log);
    }
}
