//! API keys on a real listener: every way of getting them wrong, challenges, scopes, and the keys file followed live.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::{Case, Gateway, REFERENCE, Request, Settings, case, check, shared, wait_within};

const PREDICT: &str = "/v1/predict";

fn post() -> Request {
    Request::post(PREDICT, REFERENCE)
}

/// The challenge with these parameters and the place where a client learns where tokens come from.
fn bearer_challenge(gateway: &Gateway, parameters: &str) -> String {
    let resource = format!("http://{}/.well-known/oauth-protected-resource", gateway.addr);
    format!("Bearer {parameters}, resource_metadata=\"{resource}\"")
}

fn challenges(gateway: &Gateway, request: &Request) -> Vec<String> {
    let answer = gateway.ask(request);
    answer.all("www-authenticate").into_iter().map(ToOwned::to_owned).collect()
}

#[test]
fn every_malformed_or_unknown_credential_is_refused() {
    let gateway = shared();
    let key = gateway.key.as_str();
    let bearer = |value: &str| post().header("Authorization", value);
    let api_key = |value: &[u8]| post().header("X-Api-Key", value);
    let long = format!("sg_{}", "a".repeat(8 * 1024));
    let unknown = format!("sg_{}", "A".repeat(43));
    let cases: Vec<Case> = vec![
        case("1 none", post(), 401, "missing_credentials", &[]),
        case("1 none for metadata", Request::get("/v1/metadata"), 401, "missing_credentials", &[]),
        case("1 none for a batch", Request::post("/v1/predict/batch", "[]"), 401, "missing_credentials", &[]),
        case(
            "1 none for an unknown model",
            Request::post("/v1/models/nobody/predict", "{}"),
            401,
            "missing_credentials",
            &[],
        ),
        case("2 Basic", bearer("Basic dXNlcjpwYXNz"), 401, "missing_credentials", &[]),
        case("2 unknown scheme", bearer(&format!("Key {key}")), 401, "missing_credentials", &[]),
        case("2 no scheme", bearer(key), 401, "missing_credentials", &[]),
        case("3 empty Bearer", bearer("Bearer"), 400, "invalid_request", &[]),
        case("3 Bearer and a space", bearer("Bearer "), 400, "invalid_request", &[]),
        case(
            "4 two Authorization headers",
            bearer(&format!("Bearer {key}")).header("Authorization", format!("Bearer {key}")),
            400,
            "invalid_request",
            &[],
        ),
        case("4 two keys", api_key(key.as_bytes()).header("X-Api-Key", key), 400, "invalid_request", &[]),
        case(
            "5 key and Bearer",
            bearer(&format!("Bearer {key}")).header("X-Api-Key", key),
            400,
            "invalid_request",
            &[],
        ),
        case(
            "6 in the query",
            Request::post(&format!("{PREDICT}?access_token={key}"), REFERENCE),
            400,
            "invalid_request",
            &[],
        ),
        case("7 space in the token", bearer(&format!("Bearer {key} {key}")), 400, "invalid_request", &[]),
        case("7 comma in the token", bearer(&format!("Bearer {key},{key}")), 400, "invalid_request", &[]),
        case("8 key above 8 KiB", api_key(long.as_bytes()), 431, "credential_too_large", &[]),
        case("8 token above 8 KiB", bearer(&format!("Bearer {long}")), 431, "credential_too_large", &[]),
        case(
            "8 a million dots would be cut off here",
            bearer(&format!("Bearer {}", ".".repeat(9_000))),
            431,
            "credential_too_large",
            &[],
        ),
        case("85 unknown", api_key(unknown.as_bytes()), 401, "invalid_key", &[]),
        case("85 unknown as Bearer", bearer(&format!("Bearer {unknown}")), 401, "invalid_key", &[]),
        case("85 no key of ours", api_key(b"password"), 401, "invalid_key", &[]),
        case("85 empty", api_key(b""), 401, "invalid_key", &[]),
        case("88 prefix of a valid one", api_key(&key.as_bytes()[..key.len() - 1]), 401, "invalid_key", &[]),
        case("88 longer than a valid one", api_key(format!("{key}A").as_bytes()), 401, "invalid_key", &[]),
        case("88 in another case", api_key(key.to_uppercase().as_bytes()), 401, "invalid_key", &[]),
        case("89 no ASCII", api_key("sg_\u{e9}\u{e8}".as_bytes()), 401, "invalid_key", &[]),
        case("89 no UTF-8", api_key(b"sg_\xff\xfe"), 401, "invalid_key", &[]),
        case("a token", bearer("Bearer eyJhbGciOiJub25lIn0.e30."), 401, "invalid_token", &[]),
    ];
    check(&gateway, &cases);
    for case in &cases {
        let answer = gateway.ask(&case.request);
        let api_key = "ApiKey realm=\"scoregate\"".to_owned();
        let expected = match case.code {
            "missing_credentials" => vec![bearer_challenge(&gateway, "realm=\"scoregate\""), api_key],
            "invalid_key" => vec![api_key],
            "invalid_request" => vec![bearer_challenge(&gateway, "error=\"invalid_request\"")],
            "invalid_token" => vec![bearer_challenge(&gateway, "error=\"invalid_token\"")],
            _ => Vec::new(),
        };
        assert_eq!(answer.all("www-authenticate"), expected, "{}", case.name);
        assert!(!answer.text().contains(key), "{}: the key is in the answer", case.name);
    }
    let log = gateway.log_so_far().join("\n");
    assert!(!log.contains(&key[3..]), "the key is in the log");
}

#[test]
fn a_key_may_come_in_either_header_and_bearer_in_any_case() {
    let gateway = shared();
    let key = &gateway.key;
    for request in [
        post().header("X-Api-Key", key),
        post().header("x-API-key", key),
        post().header("Authorization", format!("Bearer {key}")),
        post().header("Authorization", format!("bearer {key}")),
        post().header("Authorization", format!("BEARER   {key}")),
    ] {
        assert_eq!(gateway.ask(&request).status, 200, "{request:?}");
    }
}

#[test]
fn a_key_does_what_its_scopes_and_models_allow() {
    let settings = Settings::new();
    let scores = settings.key_with(&["--name", "scores", "--scopes", "score:predict"]);
    let reads = settings.key_with(&["--name", "reads", "--scopes", "models:read,score:jobs"]);
    let one = settings.key_with(&[
        "--name",
        "one",
        "--scopes",
        "score:predict,models:read",
        "--models",
        "saas_churn",
    ]);
    let gateway = settings.start();
    let predict = |key: &str| post().header("X-Api-Key", key);
    let metadata = |key: &str| Request::get("/v1/metadata").header("X-Api-Key", key);
    check(
        &gateway,
        &[
            case("78 no scope to score", predict(&reads), 403, "insufficient_scope", &[]),
            case("78 no scope to read", metadata(&scores), 403, "insufficient_scope", &[]),
            case("another model", predict(&one), 403, "model_not_allowed", &[]),
            case("another model's metadata", metadata(&one), 403, "model_not_allowed", &[]),
            // Whether a model exists is not told to those who may not use it.
            case(
                "a model that is not there",
                Request::post("/v1/models/nobody/predict", REFERENCE).header("X-Api-Key", &one),
                403,
                "model_not_allowed",
                &[],
            ),
        ],
    );
    let escaped = Request::post("/v1/models/%63hurn/predict", REFERENCE);
    assert_eq!(
        gateway.ask(&escaped.clone().header("X-Api-Key", &one)).status,
        403,
        "escapes in the path hide nothing"
    );
    assert_eq!(gateway.ask(&escaped.header("X-Api-Key", &scores)).status, 200);
    assert_eq!(
        challenges(&gateway, &predict(&reads)),
        [bearer_challenge(&gateway, "error=\"insufficient_scope\", scope=\"score:predict\"")]
    );
    assert_eq!(
        challenges(&gateway, &metadata(&scores)),
        [bearer_challenge(&gateway, "error=\"insufficient_scope\", scope=\"models:read\"")]
    );
    assert_eq!(gateway.ask(&predict(&scores)).status, 200);
    assert_eq!(gateway.ask(&metadata(&reads)).status, 200);
    let allowed = Request::post("/v1/models/saas_churn/predict", "{}").header("X-Api-Key", &one);
    assert_eq!(gateway.ask(&allowed).status, 422, "past admission, up to the row");
}

#[test]
fn an_expired_key_is_refused() {
    let settings = Settings::new();
    let key = settings.key_with(&["--name", "short", "--scopes", "score:predict", "--expires", "2s"]);
    let made = Instant::now();
    let gateway = settings.start();
    let request = post().header("X-Api-Key", &key);
    let refused = wait_within(Duration::from_secs(10), || {
        let answer = gateway.ask(&request);
        let early = made.elapsed() < Duration::from_secs(1);
        assert!(answer.status == 200 || !early, "refused before its time: {}", answer.text());
        (answer.status == 401).then_some(answer)
    });
    let refused = refused.expect("87: an expired key scores on");
    assert_eq!(refused.code(), "invalid_key");
    // Unknown, revoked and expired keys look alike.
    let unknown = gateway.ask(&post().header("X-Api-Key", format!("sg_{}", "A".repeat(43))));
    assert_eq!(unknown.json()["detail"], refused.json()["detail"]);
}

#[test]
fn the_keys_file_is_followed_within_five_seconds() {
    const SOON: Duration = Duration::from_secs(5);
    let mut gateway = Settings::new().start();
    let status = |gateway: &Gateway, key: &str| gateway.ask(&post().header("X-Api-Key", key)).status;
    let old = gateway.settings.key_with(&["--name", "web", "--scopes", "score:predict"]);
    assert!(
        wait_within(SOON, || (status(&gateway, &old) == 200).then_some(())).is_some(),
        "a new key is not taken up"
    );
    let new = gateway.settings.key_with(&["--name", "rotated", "--scopes", "score:predict"]);
    assert!(wait_within(SOON, || (status(&gateway, &new) == 200).then_some(())).is_some());
    assert_eq!(status(&gateway, &old), 200, "both live while clients change over");

    let revoked = gateway.settings.run_keys(&["revoke", "web"]);
    assert!(revoked.status.success());
    assert!(
        wait_within(SOON, || (status(&gateway, &old) == 401).then_some(())).is_some(),
        "86: a revoked key scores on"
    );
    assert_eq!(status(&gateway, &new), 200);

    // A file that cannot be used changes nothing and is complained about.
    let keys = std::fs::read(gateway.keys_file()).unwrap();
    std::fs::write(gateway.keys_file(), "{").unwrap();
    gateway.wait_for_line("API keys not changed: the file cannot be used");
    assert_eq!(status(&gateway, &new), 200);
    std::fs::write(gateway.keys_file(), keys).unwrap();
    // Revoking the last key leaves nobody: nothing is open by accident.
    std::fs::write(gateway.keys_file(), "[]").unwrap();
    assert!(wait_within(SOON, || (status(&gateway, &new) == 401).then_some(())).is_some());
    assert!(gateway.is_running());
}

#[test]
fn a_key_is_printed_once_and_alone_and_only_its_digest_is_stored() {
    let settings = Settings::new();
    let key = settings.key();
    assert!(key.starts_with("sg_") && key.len() >= 3 + 43, "{key}");
    assert!(key[3..].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
    let file = settings.directory().join("api_keys.json");
    let stored = std::fs::read_to_string(&file).unwrap();
    assert!(!stored.contains(&key[3..]));
    let listed = String::from_utf8(settings.run_keys(&["list"]).stdout).unwrap();
    assert!(listed.contains("score:predict") && !listed.contains(&key[3..]), "{listed}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o077,
        0,
        "others may read the keys file"
    );
    let nobody = settings.run_keys(&["revoke", "nobody"]);
    assert!(!nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("nobody"));
    let scope = settings.run_keys(&["create", "--name", "x", "--scopes", "score:everything"]);
    assert!(String::from_utf8_lossy(&scope.stderr).contains("score:predict"), "the known scopes are named");
}

#[test]
fn without_keys_the_gateway_refuses_to_start_and_says_how_to_make_one() {
    let exit = Settings::new().spawn().exit();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("scoregate keys create --name web --scopes score:predict"), "{}", exit.log);
    let settings = Settings::new();
    std::fs::write(settings.directory().join("api_keys.json"), "[]").unwrap();
    assert_eq!(settings.spawn().exit().code, Some(1), "an empty file is no key either");
    let settings = Settings::new();
    std::fs::write(settings.directory().join("api_keys.json"), "{\"web\":1}").unwrap();
    let exit = settings.spawn().exit();
    assert!(exit.code == Some(1) && exit.log.contains("api_keys.json"), "{}", exit.log);
}

/// Names of headers that proxies and other servers believe, each in many spellings; none is one that the gateway reads.
fn spoofed_names() -> BTreeSet<String> {
    const NAMES: [&str; 30] = [
        "Api-Key",
        "Authorization",
        "User",
        "Email",
        "Groups",
        "Preferred-Username",
        "Access-Token",
        "Id-Token",
        "Auth-Request-User",
        "Auth-Request-Access-Token",
        "Client-Id",
        "Client-Cert",
        "Client-Cert-Chain",
        "SSL-Client-Cert",
        "SSL-Client-Verify",
        "SSL-Client-S-DN",
        "Tls-Client-Cert",
        "Tls-Client-Cert-Info",
        "Remote-User",
        "For",
        "Proto",
        "Port",
        "Real-Ip",
        "Original-Url",
        "Rewrite-Url",
        "Tenant",
        "Scope",
        "Scopes",
        "Amzn-Oidc-Data",
        "Cf-Access-Jwt-Assertion",
    ];
    const PREFIXES: [&str; 10] = [
        "",
        "X-",
        "X-Forwarded-",
        "X-Original-",
        "Proxy-",
        "HTTP-",
        "HTTP-X-",
        "X-X-",
        "Forwarded-",
        "X-Envoy-",
    ];
    let mut names = BTreeSet::new();
    for (prefix, name) in PREFIXES.iter().flat_map(|prefix| NAMES.iter().map(move |name| (prefix, name))) {
        let dashes = format!("{prefix}{name}");
        names.insert(dashes.replace('-', "_"));
        names.insert(dashes.replacen('-', "_", 1).to_lowercase());
        names.insert(format!("{}_{}", dashes.replace('-', ""), "x"));
        names.insert(format!("{}_", dashes.to_uppercase()));
        names.insert(dashes);
    }
    names.retain(|name| !["x-api-key", "authorization"].contains(&name.to_lowercase().as_str()));
    names
}

#[test]
fn spoofed_headers_change_nothing() {
    let gateway = shared();
    let (key, names) = (&gateway.key, spoofed_names());
    assert!(names.len() >= 1_000, "{}", names.len());
    let mut client = gateway.connect();
    for name in names {
        for value in [key.clone(), format!("Bearer {key}")] {
            let answer = client.ask(&post().header(&name, value));
            assert_eq!((answer.status, answer.code().as_str()), (401, "missing_credentials"), "{name}");
        }
    }
    assert_eq!(client.ask(&gateway.with_key(post())).status, 200, "the same key where it belongs");
    let method = Request::get("/v1/metadata")
        .header("X-HTTP-Method-Override", "POST")
        .header("X-Api-Key", &gateway.key);
    assert_eq!(gateway.ask(&method).status, 200);
}

#[test]
fn a_code_has_one_title_wherever_it_comes_from() {
    let gateway = Settings::new()
        .set("SCOREGATE_OAUTH_ISSUER", "https://scores.example")
        .set("SCOREGATE_OAUTH_KEYS_FILE", "issuer_keys.json")
        .start();
    let form = Request::post("/oauth/token", "").content_type("application/x-www-form-urlencoded");
    let [token, credential] =
        [form, post().header("Authorization", "Bearer ")].map(|request| gateway.ask(&request).json());
    for member in ["type", "title", "status", "code"] {
        assert_eq!(token[member], credential[member], "{member}");
    }
    assert_eq!(token["code"], "invalid_request");
}
