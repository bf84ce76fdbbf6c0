//! The built-in issuer from outside: who gets a token, what it is worth, how its keys change, and what a flood does to it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::tokens::{decode, now, segments};
use crate::support::world::bearer;
use crate::support::{
    Answer, Client, Gateway, PREDICT, REFERENCE, Request, Settings, Stop, complaints, wait_for, wait_within,
};

const ISSUER: &str = "https://scores.example";
const TOKEN: &str = "/oauth/token";
/// What a client accepts that wants to have refusals as problem documents.
const PROBLEMS: &str = "application/json, application/problem+json";

/// Settings with the issuer switched on, whose keys are its own.
fn issuing() -> Settings {
    let settings = Settings::new();
    let keys = settings.directory().join("issuer_keys.json");
    settings.set("SCOREGATE_OAUTH_ISSUER", ISSUER).set("SCOREGATE_OAUTH_KEYS_FILE", keys.to_str().unwrap())
}

/// A client's id and secret.
struct Credentials {
    id: String,
    secret: String,
}

/// Makes a client by the command line.
fn create(settings: &Settings, arguments: &[&str]) -> Credentials {
    let output = settings.run(&[&["clients", "create"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().count(), 1, "a secret stands alone on standard output: {printed}");
    let made: Value = serde_json::from_str(&printed).unwrap();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    Credentials { id: text("client_id"), secret: text("client_secret") }
}

impl Credentials {
    fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.id, self.secret)))
    }

    /// The request for a token, with what else the form says.
    fn request(&self, more: &str) -> Request {
        form(&format!("grant_type=client_credentials{more}")).header("Authorization", self.basic())
    }

    /// A token with these scopes, or all.
    fn token(&self, gateway: &Gateway, scope: &str) -> String {
        let scope =
            if scope.is_empty() { String::new() } else { format!("&scope={}", scope.replace(' ', "+")) };
        let answer = gateway.ask(&self.request(&scope));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["access_token"].as_str().unwrap().into()
    }
}

fn form(body: &str) -> Request {
    Request::post(TOKEN, body).content_type("application/x-www-form-urlencoded")
}

fn claims(token: &str) -> Value {
    serde_json::from_slice(&decode(segments(token)[1])).unwrap()
}

fn header(token: &str) -> Value {
    serde_json::from_slice(&decode(segments(token)[0])).unwrap()
}

#[test]
fn an_issuer_may_be_all_that_a_gateway_is() {
    let settings = issuing().set("SCOREGATE_OAUTH_ONLY", "true");
    // There is neither a model nor a library to run one with, and nothing asks for them.
    let nowhere = settings.directory().join("nowhere").to_str().unwrap().to_owned();
    let settings = settings.set("SCOREGATE_MODELS_DIR", &nowhere).set("ORT_DYLIB_PATH", &nowhere);
    let shop = create(&settings, &["--name", "shop", "--scopes", "score:predict,models:read"]);
    let gateway = settings.start();
    let token = shop.token(&gateway, "");
    let answer = gateway.ask(&bearer(&token));
    assert_eq!((answer.status, &answer.json()["code"]), (404, &json!("unknown_model")));
}

/// The names of the keys that are published.
fn published(gateway: &Gateway) -> BTreeSet<String> {
    let answer = gateway.ask(&Request::get("/.well-known/jwks.json"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().into()).collect()
}

#[test]
fn a_client_gets_a_token_and_scores() {
    let settings = issuing();
    let shop = create(&settings, &["--name", "shop", "--scopes", "score:predict,models:read"]);
    let gateway = settings.start();
    let by_body =
        form(&format!("grant_type=client_credentials&client_id={}&client_secret={}", shop.id, shop.secret));
    for request in [shop.request(""), by_body] {
        let answer = gateway.ask(&request);
        assert_eq!(answer.status, 200, "{}", answer.text());
        for (name, value) in
            [("content-type", "application/json"), ("cache-control", "no-store"), ("pragma", "no-cache")]
        {
            assert_eq!(answer.header(name), Some(value), "{name}");
        }
        let document = answer.json();
        let members: Vec<&String> = document.as_object().unwrap().keys().collect();
        assert_eq!(members, ["access_token", "token_type", "expires_in", "scope"]);
        assert_eq!((&document["token_type"], &document["expires_in"]), (&json!("Bearer"), &json!(900)));
        assert_eq!(document["scope"], "score:predict models:read");
        let token = document["access_token"].as_str().unwrap();
        let (header, claims) = (header(token), claims(token));
        assert_eq!((&header["typ"], &header["alg"]), (&json!("at+jwt"), &json!("ES256")));
        assert!(published(&gateway).contains(header["kid"].as_str().unwrap()));
        for (name, value) in [
            ("iss", ISSUER),
            ("aud", ISSUER),
            ("sub", &shop.id),
            ("client_id", &shop.id),
            ("scope", "score:predict models:read"),
        ] {
            assert_eq!(claims[name], value, "{name}");
        }
        let time = |name: &str| claims[name].as_u64().unwrap();
        assert!(now().abs_diff(time("iat")) <= 5 && time("exp") - time("iat") == 900, "{claims}");
        assert!(claims["jti"].as_str().unwrap().len() >= 22, "{claims}");
        let scored = gateway.ask(&bearer(token));
        assert_eq!(scored.status, 200, "{}", scored.text());
        assert_eq!(
            gateway
                .ask(&Request::get("/v1/metadata").header("Authorization", format!("Bearer {token}")))
                .status,
            200
        );
    }
    let keys = gateway.ask(&Request::get("/.well-known/jwks.json")).text();
    assert!(!keys.contains("\"d\""), "a private key is published: {keys}");
    assert!(!gateway.log_so_far().join("\n").contains(&shop.secret), "the secret is in the log");
    let stored = fs::read_to_string(gateway.settings.directory().join("oauth_clients.json")).unwrap();
    assert!(!stored.contains(&shop.secret) && stored.contains("$argon2id$"), "{stored}");
}

#[test]
fn two_lines_of_curl_get_a_token_and_score() {
    let settings = issuing();
    let shop = create(&settings, &["--name", "shop", "--scopes", "score:predict"]);
    let gateway = settings.start();
    let url = format!("http://{}", gateway.addr);
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail-with-body"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let user = format!("{}:{}", shop.id, shop.secret);
    let granted =
        curl(&["--user", &user, "--data", "grant_type=client_credentials", &format!("{url}/oauth/token")]);
    let token = format!("Authorization: Bearer {}", granted["access_token"].as_str().unwrap());
    let scored = curl(&["--header", &token, "--json", REFERENCE, &format!("{url}/v1/predict")]);
    assert!(scored["churn_probability"].as_f64().is_some(), "{scored}");
}

#[test]
fn a_token_allows_what_the_client_may_and_asked_for() {
    let settings = issuing();
    let shop = create(&settings, &["--name", "shop", "--scopes", "score:predict,models:read"]);
    let one = create(
        &settings,
        &["--name", "one", "--scopes", "score:predict", "--models", "churn", "--tenant", "north"],
    );
    let gateway = settings.start();
    let scope_of = |more: &str| gateway.ask(&shop.request(more)).json()["scope"].clone();
    assert_eq!(scope_of("&scope=score%3Apredict"), "score:predict");
    assert_eq!(scope_of("&scope="), "score:predict models:read", "what is empty is absent");
    let reads = shop.token(&gateway, "models:read");
    let refused = gateway.ask(&bearer(&reads));
    assert_eq!((refused.status, refused.code().as_str()), (403, "insufficient_scope"));
    for scope in ["models:write", "score:predict+models:write", "everything", "Score:Predict"] {
        let answer = gateway.ask(&shop.request(&format!("&scope={scope}")));
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_scope")), "{scope}");
    }
    let many: Vec<String> = (0..6_000).map(|at| format!("model:{at}")).collect();
    for more in [many.join("+"), vec!["score:predict"; 4_000].join("+")] {
        let answer = gateway.ask(&shop.request(&format!("&scope={more}")));
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_scope")));
    }
    let less = shop.token(&gateway, "score:predict model:saas_churn");
    assert_eq!(
        gateway.ask(&bearer(&less)).code(),
        "model_not_allowed",
        "a client may ask for a token for one model"
    );
    let more = gateway.ask(&one.request("&scope=score:predict+model:saas_churn"));
    assert_eq!(
        (more.status, &more.json()["error"]),
        (400, &json!("invalid_scope")),
        "a model that is not the client's"
    );
    let token = one.token(&gateway, "");
    assert_eq!(claims(&token)["tenant"], "north");
    assert_eq!(gateway.ask(&bearer(&token)).status, 200);
    let other = Request::post("/v1/models/saas_churn/predict", "{}")
        .header("Authorization", format!("Bearer {token}"));
    assert_eq!(gateway.ask(&other).code(), "model_not_allowed");
}

#[test]
fn who_proves_to_be_no_client_gets_nothing() {
    let settings = issuing();
    let shop = create(&settings, &["--name", "shop", "--scopes", "score:predict"]);
    let wrong = |id: &str, secret: &str| Credentials { id: id.into(), secret: secret.into() };
    let gateway = settings.start();
    let body = |id: &str, secret: &str| {
        form(&format!("grant_type=client_credentials&client_id={id}&client_secret={secret}"))
    };
    let grant = "grant_type=client_credentials";
    let cases = [
        ("wrong secret", wrong(&shop.id, "wrong").request(""), 401, "invalid_client"),
        ("wrong secret in the body", body(&shop.id, "wrong"), 401, "invalid_client"),
        ("unknown client", wrong("nobody", &shop.secret).request(""), 401, "invalid_client"),
        ("the name for the id", wrong("shop", &shop.secret).request(""), 401, "invalid_client"),
        ("no secret", body(&shop.id, ""), 401, "invalid_client"),
        (
            "a part of the secret",
            wrong(&shop.id, &shop.secret[..shop.secret.len() - 1]).request(""),
            401,
            "invalid_client",
        ),
        (
            "a secret with more",
            wrong(&shop.id, &format!("{}\u{0}", shop.secret)).request(""),
            401,
            "invalid_client",
        ),
        ("nobody", form(grant), 401, "invalid_client"),
        (
            "a key",
            form(grant).header("Authorization", format!("Bearer {}", gateway.key)),
            401,
            "invalid_client",
        ),
        (
            "both ways",
            form(&format!("{grant}&client_id={}&client_secret={}", shop.id, shop.secret))
                .header("Authorization", shop.basic()),
            400,
            "invalid_request",
        ),
        (
            "no grant type",
            form("scope=score:predict").header("Authorization", shop.basic()),
            400,
            "invalid_request",
        ),
        (
            "another grant type",
            form("grant_type=password&username=a&password=b").header("Authorization", shop.basic()),
            400,
            "unsupported_grant_type",
        ),
        ("a grant type twice", shop.request(&format!("&{grant}")), 400, "invalid_request"),
        (
            "JSON",
            Request::post(TOKEN, json!({"grant_type": "client_credentials"}).to_string())
                .header("Authorization", shop.basic()),
            415,
            "invalid_request",
        ),
        (
            "in the query",
            Request::post(&format!("{TOKEN}?{grant}"), "")
                .content_type("application/x-www-form-urlencoded")
                .header("Authorization", shop.basic()),
            400,
            "invalid_request",
        ),
        ("too much", shop.request(&format!("&x={}", "x".repeat(70_000))), 413, "invalid_request"),
    ];
    for (name, request, status, error) in cases {
        let is_basic = request.head().windows(6).any(|bytes| bytes == b"Basic ");
        for accept in [None, Some("application/json"), Some("*/*"), Some(PROBLEMS)] {
            let request =
                accept.into_iter().fold(request.clone(), |request, accept| request.header("Accept", accept));
            let answer = gateway.ask(&request);
            let document = answer.json();
            assert_eq!(
                (answer.status, &document["error"]),
                (status, &json!(error)),
                "{name}: {}",
                answer.text()
            );
            assert!(
                document["error_description"].as_str().is_some_and(|text| !text.is_empty()),
                "{name}: {document}"
            );
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{name}");
            match accept {
                Some(PROBLEMS) => assert_eq!(complaints(&answer), Vec::<String>::new(), "{name}"),
                _ => assert_eq!(answer.header("content-type"), Some("application/json"), "{name}"),
            }
            let expected: &[&str] =
                if status == 401 && is_basic { &["Basic realm=\"scoregate\""] } else { &[] };
            if status != 401 || is_basic {
                assert_eq!(answer.all("www-authenticate"), expected, "{name}");
            }
            for secret in [&shop.secret, "wrong", "nobody"] {
                assert!(!answer.text().contains(secret), "{name}: {}", answer.text());
            }
        }
    }
    // Nobody learns which clients there are.
    let detail = |answer: Answer| answer.json()["error_description"].clone();
    let [unknown, known] = [wrong("nobody", "wrong"), wrong(&shop.id, "wrong")]
        .map(|wrong| detail(gateway.ask(&wrong.request(""))));
    assert_eq!(unknown, known);
    assert_eq!(gateway.ask(&Request::get(TOKEN)).status, 405);
    assert_eq!(gateway.ask(&shop.request("")).status, 200, "the right one still");
}

#[test]
fn clients_expire_and_are_revoked_within_five_seconds() {
    const SOON: Duration = Duration::from_secs(5);
    let settings = issuing();
    let short = create(&settings, &["--name", "short", "--scopes", "score:predict", "--expires", "4s"]);
    let gateway = settings.start();
    let status = |client: &Credentials| gateway.ask(&client.request("")).status;
    assert_eq!(status(&short), 200);
    let late = create(&gateway.settings, &["--name", "late", "--scopes", "score:predict"]);
    assert!(
        wait_within(SOON, || (status(&late) == 200).then_some(())).is_some(),
        "a new client is not taken up"
    );
    assert!(
        wait_within(SOON, || (status(&short) == 401).then_some(())).is_some(),
        "an expired client gets tokens"
    );
    let listed = gateway.settings.run(&["clients", "list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains(&late.id) && !listed.contains(&late.secret) && !listed.contains("argon2"),
        "{listed}"
    );
    assert!(gateway.settings.run(&["clients", "revoke", "late"]).status.success());
    assert!(
        wait_within(SOON, || (status(&late) == 401).then_some(())).is_some(),
        "a revoked client gets tokens"
    );
    assert!(!gateway.settings.run(&["clients", "revoke", "nobody"]).status.success());
    let twice = gateway.settings.run(&["clients", "create", "--name", "x", "--scopes", "everything"]);
    assert!(!twice.status.success() && String::from_utf8_lossy(&twice.stderr).contains("score:predict"));
}

#[test]
fn the_issuer_is_off_unless_it_is_switched_on() {
    let gateway = crate::support::shared();
    for request in [
        form("grant_type=client_credentials"),
        Request::get("/.well-known/jwks.json"),
        Request::get("/.well-known/oauth-authorization-server"),
    ] {
        let answer = gateway.ask(&request);
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{request:?}");
    }
    let answer = gateway.ask(&Request::get("/.well-known/oauth-protected-resource"));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["resource"], format!("http://{}", gateway.addr));
}

#[test]
fn documents_say_where_tokens_come_from() {
    let settings =
        issuing().set("SCOREGATE_JWT_ISSUER", "https://company.example").set("SCOREGATE_JWT_AUDIENCE", "x");
    let settings = settings.set("SCOREGATE_JWT_JWKS", "keys.json");
    let key = crate::support::tokens::Key::p256("key");
    fs::write(
        settings.directory().join("keys.json"),
        crate::support::tokens::key_set([key.jwk()]).to_string(),
    )
    .unwrap();
    let gateway = settings.start();
    for addr in [gateway.addr, gateway.admin_addr] {
        let get = |path: &str| {
            let answer = Client::connect(addr).ask(&Request::get(path));
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (200, Some("application/json")),
                "{path}"
            );
            answer.json()
        };
        let server = get("/.well-known/oauth-authorization-server");
        for (name, value) in [
            ("issuer", ISSUER.to_owned()),
            ("token_endpoint", format!("{ISSUER}/oauth/token")),
            ("jwks_uri", format!("{ISSUER}/.well-known/jwks.json")),
        ] {
            assert_eq!(server[name], value, "{name}");
        }
        assert_eq!(server["grant_types_supported"], json!(["client_credentials"]));
        let methods = &server["token_endpoint_auth_methods_supported"];
        assert_eq!(methods, &json!(["client_secret_basic", "client_secret_post"]));
        let resource = get("/.well-known/oauth-protected-resource");
        assert_eq!(resource["resource"], ISSUER);
        assert_eq!(resource["authorization_servers"], json!([ISSUER, "https://company.example"]));
        assert_eq!(resource["bearer_methods_supported"], json!(["header"]));
        assert!(resource["scopes_supported"].as_array().unwrap().contains(&json!("score:predict")));
    }
}

#[test]
fn keys_rotate_without_a_refusal() {
    let settings =
        issuing().set("SCOREGATE_OAUTH_KEY_ROTATION", "8s").set("SCOREGATE_OAUTH_TOKEN_TTL", "30s");
    let shop = create(&settings, &["--name", "shop", "--scopes", "score:predict"]);
    let gateway = settings.start();
    let kid = |token: &str| header(token)["kid"].as_str().unwrap().to_owned();
    let first = shop.token(&gateway, "");
    assert_eq!(published(&gateway), BTreeSet::from([kid(&first)]));
    // Announced before it signs, and fetched before that by whoever keeps the keys for as long as they may be.
    let kept = gateway.ask(&Request::get("/.well-known/jwks.json"));
    assert_eq!(kept.header("cache-control"), Some("public, max-age=2"));
    wait_for("a new key", || (published(&gateway).len() > 1).then_some(()));
    let announced = shop.token(&gateway, "");
    let mut seen = BTreeSet::from([kid(&first), kid(&announced)]);
    wait_for("two changes of the key that signs", || {
        let token = shop.token(&gateway, "");
        assert!(published(&gateway).contains(&kid(&token)), "a key signs that is not published");
        assert_eq!(gateway.ask(&bearer(&token)).status, 200);
        seen.insert(kid(&token));
        (seen.len() >= 3).then_some(())
    });
    assert_eq!(gateway.ask(&bearer(&first)).status, 200, "a token by a key that signs no more");
    // Kept over a restart.
    let directory = gateway.settings.directory().join("issuer_keys.json");
    let kept = fs::read_to_string(&directory).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o077, 0, "others may read the keys");
    assert!(seen.iter().all(|kid| kept.contains(kid)), "{seen:?}");
}

#[test]
fn gateways_that_share_the_keys_take_each_others_tokens() {
    let first = issuing();
    let shop = create(&first, &["--name", "shop", "--scopes", "score:predict"]);
    let shared = |name: &str| first.directory().join(name).to_str().unwrap().to_owned();
    let others: Vec<Settings> = (0..2)
        .map(|_| {
            Settings::new()
                .set("SCOREGATE_OAUTH_ISSUER", ISSUER)
                .set("SCOREGATE_OAUTH_KEYS_FILE", &shared("issuer_keys.json"))
                .set("SCOREGATE_OAUTH_CLIENTS_FILE", &shared("oauth_clients.json"))
                .set("SCOREGATE_OAUTH_KEY_ROTATION", "8s")
        })
        .collect();
    let first = first.set("SCOREGATE_OAUTH_KEY_ROTATION", "8s");
    // All at once, with no key there yet.
    let gateways: Vec<Gateway> = std::thread::scope(|scope| {
        let started: Vec<_> =
            std::iter::once(first).chain(others).map(|settings| scope.spawn(|| settings.start())).collect();
        started.into_iter().map(|started| started.join().unwrap()).collect()
    });
    let mut kids = BTreeSet::new();
    let start = Instant::now();
    // Through changes of the key, which any of them may make.
    while start.elapsed() < Duration::from_secs(20) {
        for issuing in &gateways {
            let token = shop.token(issuing, "");
            kids.insert(header(&token)["kid"].as_str().unwrap().to_owned());
            for taking in &gateways {
                let answer = taking.ask(&bearer(&token));
                assert_eq!(answer.status, 200, "{}: {}", header(&token), answer.text());
            }
        }
    }
    // One key at the start, and one more for each change: not one for each gateway.
    assert!((2..=4).contains(&kids.len()), "{kids:?}");
}

#[test]
fn a_token_can_be_made_by_the_command_line() {
    let settings = issuing();
    create(&settings, &["--name", "shop", "--scopes", "score:predict,models:read"]);
    let make = |settings: &Settings, arguments: &[&str]| settings.run(&[&["token"], arguments].concat());
    let refused = |settings: &Settings, arguments: &[&str], said: &str| {
        let output = make(settings, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(said) && output.stdout.is_empty(), "{error}");
    };
    refused(&settings, &["--client", "shop"], "has to have been started once");
    refused(&Settings::new(), &["--client", "shop"], "SCOREGATE_OAUTH_ISSUER");
    let gateway = settings.start();
    let settings = &gateway.settings;
    refused(settings, &["--client", "nobody", "--scopes", "score:predict"], "nobody");
    refused(settings, &["--client", "shop", "--scopes", "models:write"], "models:write");
    let made = make(settings, &["--client", "shop", "--scopes", "score:predict", "--expires", "5m"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let printed = String::from_utf8(made.stdout).unwrap();
    assert_eq!(printed.lines().count(), 1, "{printed}");
    let claims = claims(printed.trim());
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 300);
    assert_eq!(claims["scope"], "score:predict");
    assert_eq!(gateway.ask(&bearer(printed.trim())).status, 200);
}

#[test]
fn what_was_done_is_in_the_audit_log() {
    let settings = issuing();
    let state = settings.directory().join("state");
    let settings = settings.set("SCOREGATE_STATE_DIR", state.to_str().unwrap());
    let shop = create(&settings, &["--name", "shop", "--scopes", "score:predict"]);
    let gateway = settings.start();
    let token = shop.token(&gateway, "");
    assert!(gateway.settings.run(&["clients", "revoke", "shop"]).status.success());
    let text = fs::read_to_string(state.join("audit.jsonl")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(state.join("audit.jsonl")).unwrap().permissions().mode() & 0o077, 0);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |action: &str| lines.iter().filter(|line| line["action"] == action).collect::<Vec<_>>();
    for action in ["client.created", "signing_key.created", "token.issued", "client.revoked"] {
        let found = of(action);
        assert_eq!(found.len(), 1, "{action}: {text}");
        assert!(
            found[0]["time"].as_str().unwrap().ends_with('Z') && found[0]["target"].is_string(),
            "{}",
            found[0]
        );
        assert!(
            ["operator", "caller", "gateway"].map(Value::from).contains(&found[0]["actor"]["kind"]),
            "{}",
            found[0]
        );
    }
    let jti = claims(&token)["jti"].as_str().unwrap().to_owned();
    assert!(of("token.issued")[0].to_string().contains(&jti), "the token cannot be told from others: {text}");
    assert!(of("token.issued")[0].to_string().contains(&shop.id), "{text}");
    assert!(
        !text.contains(&shop.secret) && !text.contains(segments(&token)[2]),
        "a secret is in the audit log"
    );
}

#[test]
fn a_flood_of_wrong_secrets_leaves_scoring_alone() {
    // More than may wait.
    const FLOODERS: usize = 100;
    // Two comparisons at a time take 19 MiB each.
    const GROWTH: u64 = 96 * 1024 * 1024;
    let settings = issuing();
    let shop = create(&settings, &["--name", "shop", "--scopes", "score:predict"]);
    let gateway = settings.start();
    let token = shop.token(&gateway, "");
    for _ in 0..100 {
        assert_eq!(gateway.ask(&bearer(&token)).status, 200);
    }
    let before = gateway.resident();
    let has_ended = AtomicBool::new(false);
    let goes_on = || !has_ended.load(Ordering::Relaxed);
    let (refused, busy, served, granted, slowest) = std::thread::scope(|scope| {
        let scoring = scope.spawn(|| {
            let mut client = gateway.connect();
            let (mut served, mut slowest) = (0, Duration::ZERO);
            while goes_on() {
                let start = Instant::now();
                assert_eq!(client.ask(&bearer(&token)).status, 200);
                slowest = slowest.max(start.elapsed());
                served += 1;
            }
            (served, slowest)
        });
        // Its secret was right once.
        let asking = scope.spawn(|| {
            let mut client = gateway.connect();
            let mut granted = 0;
            while goes_on() {
                let answer = client.ask(&shop.request(""));
                assert_eq!(answer.status, 200, "after {granted} tokens: {}", answer.text());
                granted += 1;
            }
            granted
        });
        let _stop = Stop(&has_ended);
        let floods: Vec<_> = (0..FLOODERS)
            .map(|flooder| {
                let (gateway, shop) = (&gateway, &shop);
                scope.spawn(move || {
                    let mut client = gateway.connect();
                    let (mut refused, mut busy) = (0, 0);
                    while goes_on() {
                        let id = if flooder % 2 == 0 { shop.id.clone() } else { format!("nobody-{flooder}") };
                        let wrong = Credentials { id, secret: format!("wrong-{flooder}-{refused}-{busy}") };
                        let answer = client.ask(&wrong.request(""));
                        match answer.status {
                            401 => refused += 1,
                            503 => {
                                assert!(answer.header("retry-after").is_some());
                                assert_eq!(answer.json()["error"], "temporarily_unavailable");
                                busy += 1;
                            }
                            other => panic!("{other} {}", answer.text()),
                        }
                    }
                    (refused, busy)
                })
            })
            .collect();
        let reads = || gateway.log().iter().filter(|line| line.contains("OAuth clients read again")).count();
        let before = reads();
        create(&gateway.settings, &["--name", "other", "--scopes", "score:predict"]);
        wait_for("the changed file", || (reads() > before).then_some(()));
        // And for some time after that.
        let count = reads();
        create(&gateway.settings, &["--name", "third", "--scopes", "score:predict"]);
        wait_for("the file changed again", || (reads() > count).then_some(()));
        has_ended.store(true, Ordering::Relaxed);
        let counts: Vec<(usize, usize)> = floods.into_iter().map(|flood| flood.join().unwrap()).collect();
        let (served, slowest) = scoring.join().unwrap();
        let (refused, busy) =
            counts.into_iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        (refused, busy, served, asking.join().unwrap(), slowest)
    });
    println!(
        "{refused} wrong secrets refused, {busy} turned away; {granted} tokens given and {served} rows scored meanwhile, \
         the slowest in {slowest:?}"
    );
    assert!(
        refused > 0 && busy > FLOODERS && served > 10 && granted > 10,
        "{refused} {busy} {served} {granted}"
    );
    assert!(slowest < Duration::from_secs(2), "a row waited for {slowest:?}");
    let growth = gateway.peak().saturating_sub(before);
    assert!(growth <= GROWTH, "it grew by {growth} bytes");
    wait_for("a token", || (gateway.ask(&shop.request("")).status == 200).then_some(()));
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
}
