//! Key sets that redirect, dawdle, are broken, too large, gone or changed: what becomes of tokens then.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::authority::{Authority, Reply};
use crate::support::tokens::{AUDIENCE, Key, Mint, key_set};
use crate::support::world::bearer;
use crate::support::{Answer, Gateway, REFERENCE, Settings, complaints, pause, wait_for, wait_within};

/// How long a key set that cannot be had is watched: several attempts.
const WATCH: Duration = Duration::from_secs(9);
/// By how much all attempts may make the gateway grow.
const GROWTH: u64 = 48 * 1024 * 1024;

/// A place where keys may be, and whether they are found there.
struct Place {
    name: &'static str,
    found: bool,
    /// Instead of the key set at `/<name>`.
    jwks: Option<String>,
}

#[test]
fn what_becomes_of_tokens_by_how_the_key_set_answers() {
    let (authority, elsewhere) = (Authority::start(), Authority::start());
    let (key, url) = (Key::p256("key"), authority.url());
    let good = key_set([key.jwk()]);
    let text = good.to_string();
    elsewhere.set("/keys", Reply::Json(good.clone()));
    authority.set("/good", Reply::Json(good.clone()));

    let secret = Key::secret("oct", &[7; 32]);
    let mut private = key.jwk();
    private["d"] = json!("AAAA");
    let many = |count: usize| {
        key_set(
            (0..count).map(|number| key.jwk_with("kid", json!(format!("key-{number}")))).chain([key.jwk()]),
        )
    };
    let redirect = |to: &str| Reply::redirect(to);
    let json_of = |value: Value| Reply::Json(value);
    let status = Reply::status;
    // What is served, and whether keys are found in it.
    let answers: Vec<(&'static str, bool, Reply)> = vec![
        ("plain", true, json_of(good.clone())),
        ("type-of-key-sets", true, Reply::body("application/jwk-set+json", text.clone())),
        ("late", true, Reply::Late(good.clone(), Duration::from_secs(1))),
        ("redirect", true, redirect(&format!("{url}/good"))),
        ("redirect-by-path", true, redirect("/good")),
        ("redirect-three-times", true, redirect("/redirect-once-more")),
        ("redirect-elsewhere", false, redirect(&format!("{}/keys", elsewhere.url()))),
        ("redirect-elsewhere-in-the-end", false, redirect("/redirect-elsewhere")),
        ("redirect-in-a-circle", false, redirect("/redirect-in-a-circle")),
        ("redirect-to-a-file", false, redirect("file:///etc/passwd")),
        ("redirect-to-nowhere", false, status(302)),
        ("drips", false, Reply::Drip(text.clone().into_bytes(), Duration::from_millis(500))),
        ("hangs", false, Reply::Hang),
        ("closes", false, Reply::Close),
        ("status-404", false, status(404)),
        ("status-500", false, status(500)),
        ("status-401", false, status(401)),
        ("status-204", false, status(204)),
        ("endless", false, Reply::Padded(1 << 30, text.clone().into_bytes())),
        ("two-mebibytes", false, Reply::Padded(2 << 20, text.clone().into_bytes())),
        ("cut-off", false, Reply::body("application/json", &text.as_bytes()[..text.len() - 5])),
        ("no-json", false, Reply::body("text/html", "<html>sign in</html>")),
        ("nothing", false, Reply::body("application/json", "")),
        ("no-utf-8", false, Reply::body("application/json", b"{\"keys\":\"\xff\"}".to_vec())),
        ("a-list", false, json_of(json!([key.jwk()]))),
        ("a-single-key", false, json_of(key.jwk())),
        ("keys-no-list", false, json_of(json!({"keys": {"key": key.jwk()}}))),
        ("unusable-keys-only", false, json_of(key_set([json!({"kty": "AKP", "kid": "new"})]))),
        ("secrets-only", false, json_of(key_set([secret.jwk()]))),
        ("a-private-key-only", false, json_of(key_set([private.clone()]))),
        (
            "another-private-key",
            true,
            json_of(key_set([
                {
                    let mut other = private;
                    other["kid"] = json!("other");
                    other
                },
                key.jwk(),
            ])),
        ),
        (
            "unusable-keys-besides",
            true,
            json_of(key_set([
                json!({"kty": "AKP", "kid": "new"}),
                json!({"kty": 1}),
                json!({}),
                secret.jwk(),
                key.jwk(),
            ])),
        ),
        ("a-hundred-keys", true, json_of(many(99))),
        ("a-thousand-keys", false, json_of(many(1_000))),
        ("a-mebibyte-of-empty-keys", false, Reply::body("application/json", empty_keys())),
        (
            "deep",
            false,
            Reply::body(
                "application/json",
                format!("{{\"keys\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)),
            ),
        ),
    ];
    let mut places = Vec::new();
    for (name, found, reply) in answers {
        authority.set(&format!("/{name}"), reply);
        places.push(Place { name, found, jwks: None });
    }
    authority.set("/redirect-once-more", redirect("/redirect-by-path"));
    let absent = {
        let gone = Authority::start();
        gone.url()
    };
    places.push(Place { name: "absent", found: false, jwks: Some(format!("{absent}/keys")) });
    places.push(Place { name: "no-such-host", found: false, jwks: Some("https://keys.invalid/keys".into()) });
    places.push(Place {
        name: "no-tls",
        found: false,
        jwks: Some(format!("https://{}/good", authority.addr)),
    });
    places.push(Place { name: "a-file", found: true, jwks: Some("keys.json".into()) });

    let settings = Settings::new();
    fs::write(settings.directory().join("keys.json"), &text).unwrap();
    let mut file = String::new();
    for Place { name, jwks, .. } in &places {
        let jwks = jwks.clone().unwrap_or_else(|| format!("{url}/{name}"));
        write!(file, "[[auth.issuer]]\nissuer = \"https://{name}.example\"\n").unwrap();
        write!(file, "audience = \"{AUDIENCE}\"\njwks = \"{jwks}\"\n").unwrap();
    }
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let gateway = settings.start();
    let start = Instant::now();
    let before = gateway.resident();
    let found: Vec<Answer> = std::thread::scope(|scope| {
        let asked: Vec<_> = places
            .iter()
            .map(|place| {
                let (gateway, key) = (&gateway, &key);
                scope.spawn(move || {
                    let token = Mint::new(key, &format!("https://{}.example", place.name)).token();
                    let ask = || gateway.ask(&bearer(&token));
                    let accepted = || {
                        let answer = ask();
                        (answer.status == 200).then_some(answer)
                    };
                    wait_within(WATCH, accepted).unwrap_or_else(ask)
                })
            })
            .collect();
        assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200, "a key needs no key set");
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let log = gateway.log();
    println!("\n{:<30} {:>6} {:>8}  what the log says", "key set", "status", "requests");
    let mut wrong = Vec::new();
    for (place, answer) in places.iter().zip(&found) {
        let said = last_words(&log, place.name);
        let requests = authority.count(&format!("/{}", place.name));
        println!("{:<30} {:>6} {requests:>8}  {said}", place.name, answer.status);
        let is_right = match place.found {
            true => answer.status == 200,
            false => {
                answer.status == 503
                    && answer.code() == "credentials_unavailable"
                    && answer.header("retry-after").is_some()
                    && complaints(answer).is_empty()
                    && !said.is_empty()
            }
        };
        if !is_right {
            wrong.push(format!("{}: {} {}", place.name, answer.status, answer.text()));
        }
        // After a failure a second passes, then longer and longer.
        let allowed = 2 + start.elapsed().as_secs() as usize;
        assert!(
            requests <= allowed || place.name.starts_with("redirect"),
            "{}: {requests} requests",
            place.name
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(elsewhere.connections(), 0, "a redirect to another host was followed");
    let growth = gateway.peak().saturating_sub(before);
    assert!(growth <= GROWTH, "it grew by {growth} bytes");
    assert!(!log.join("\n").contains("panicked"));
}

/// A set of keys as large as may be, of nothing but keys without members.
fn empty_keys() -> String {
    format!("{{\"keys\":[{}]}}", vec!["{}"; 349_000].join(","))
}

#[test]
fn a_key_set_takes_no_more_than_ten_times_its_text() {
    const ISSUER: &str = "https://issuer.example";
    let (authority, key) = (Authority::start(), Key::p256("key"));
    let good = key_set([key.jwk()]);
    let text = empty_keys();
    assert!((1_000_000..1 << 20).contains(&text.len()), "{}", text.len());
    // As large, but taking nothing more: what it costs to fetch and log anything at all is no matter here.
    authority.set("/keys", Reply::Padded(15 << 16, good.to_string().into_bytes()));
    let gateway = impatient(ISSUER, &format!("{}/keys", authority.url()));
    let token = Mint::new(&key, ISSUER).token();
    wait_for("the keys", || (gateway.ask(&bearer(&token)).status == 200).then_some(()));
    gateway.forget_peak();
    let before = gateway.peak();
    authority.set("/keys", Reply::body("application/json", text.clone()));
    wait_for("a complaint", || {
        gateway.log().iter().any(|line| line.contains("no usable key set")).then_some(())
    });
    let growth = gateway.peak().saturating_sub(before);
    println!("{} bytes of keys: {growth} bytes of growth", text.len());
    assert!(growth <= 10 * text.len() as u64, "it grew by {growth} bytes");
    assert_eq!(gateway.ask(&bearer(&token)).status, 200, "the keys before");
}

/// What the log said last of this issuer's keys.
fn last_words(log: &[String], name: &str) -> String {
    let issuer = format!("https://{name}.example");
    let lines = log.iter().rev().filter(|line| line.contains(&format!("{issuer}\"")));
    let line = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()).next().unwrap_or_default();
    [&line["message"], &line["error"]]
        .map(|value| value.as_str().unwrap_or_default())
        .join(": ")
        .trim_matches([':', ' '])
        .into()
}

#[test]
fn keys_are_discovered_from_the_issuer() {
    let (authority, elsewhere) = (Authority::start(), Authority::start());
    let (key, url) = (Key::p256("key"), authority.url());
    authority.set("/keys", Reply::Json(key_set([key.jwk()])));
    elsewhere.set("/keys", Reply::Json(key_set([key.jwk()])));
    let metadata = |issuer: &str, keys: &str| Reply::Json(json!({"issuer": issuer, "jwks_uri": keys}));
    let of = |name: &str| format!("{url}{name}");
    let rfc = |name: &str| format!("/.well-known/oauth-authorization-server{name}");
    let oidc = |name: &str| format!("{name}/.well-known/openid-configuration");
    authority.set(&rfc(""), metadata(&url, &of("/keys")));
    authority.set(&rfc("/rfc"), metadata(&of("/rfc"), &of("/keys")));
    authority.set(&oidc("/oidc"), metadata(&of("/oidc"), &of("/keys")));
    authority.set(&rfc("/elsewhere"), metadata(&of("/elsewhere"), &format!("{}/keys", elsewhere.url())));
    authority.set(&rfc("/liar"), metadata(&of("/rfc"), &of("/keys")));
    authority.set(&oidc("/liar-by-a-slash"), metadata(&of("/liar-by-a-slash/"), &of("/keys")));
    authority.set(&rfc("/unsafe"), metadata(&of("/unsafe"), "http://keys.invalid/keys"));
    authority.set(&rfc("/file"), metadata(&of("/file"), "file:///etc/passwd"));
    authority.set(&rfc("/no-keys"), Reply::Json(json!({"issuer": of("/no-keys")})));
    authority.set(&rfc("/broken"), Reply::body("application/json", "{"));
    let issuers = [
        ("", true),
        ("/rfc", true),
        ("/oidc", true),
        ("/elsewhere", true),
        ("/liar", false),
        ("/liar-by-a-slash", false),
        ("/unsafe", false),
        ("/file", false),
        ("/no-keys", false),
        ("/broken", false),
        ("/nothing", false),
    ];
    let settings = Settings::new();
    let tables = issuers
        .map(|(name, _)| format!("[[auth.issuer]]\nissuer = \"{}\"\naudience = \"{AUDIENCE}\"\n", of(name)));
    fs::write(settings.directory().join("scoregate.toml"), tables.concat()).unwrap();
    let gateway = settings.start();
    println!("\n{:<18} status", "issuer");
    for (name, found) in issuers {
        let token = Mint::new(&key, &of(name)).token();
        let patience = if found { WATCH } else { Duration::from_secs(2) };
        let status = || gateway.ask(&bearer(&token)).status;
        let accepted = wait_within(patience, || (status() == 200).then_some(200));
        let status = accepted.unwrap_or_else(status);
        println!("{name:<18} {status}");
        assert_eq!(status, if found { 200 } else { 503 }, "{name}\n{}", gateway.log().join("\n"));
    }
}

/// A gateway that trusts one issuer whose keys are at `jwks`, and looks at them every second.
fn impatient(issuer: &str, jwks: &str) -> Gateway {
    let settings = Settings::new();
    let file = format!(
        "[[auth.issuer]]\nissuer = \"{issuer}\"\naudience = \"{AUDIENCE}\"\njwks = \"{jwks}\"\n\
         cooldown = \"1s\"\nrefresh = \"1s\"\n"
    );
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    settings.start()
}

#[test]
fn keys_come_go_and_come_back() {
    const ISSUER: &str = "https://issuer.example";
    let [first, second, third] = ["first", "second", "third"].map(Key::p256);
    let set = |keys: &[&Key]| Reply::Json(key_set(keys.iter().map(|key| key.jwk())));
    let addr = {
        let gone = Authority::start();
        gone.addr
    };
    let mut gateway = impatient(ISSUER, &format!("http://{addr}/keys"));
    let status = |gateway: &Gateway, token: &str| gateway.ask(&bearer(token)).status;
    let token_of = |key: &Key| Mint::new(key, ISSUER).token();
    let becomes = |gateway: &Gateway, token: &str, expected: u16| {
        let what = format!("the status {expected}");
        wait_for(&what, || (status(gateway, token) == expected).then_some(()));
    };

    // Absent at the start: keys of the gateway's own work, and tokens as soon as it is there.
    let by_first = token_of(&first);
    let answer = gateway.ask(&bearer(&by_first));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "credentials_unavailable"),
        "{}",
        answer.text()
    );
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
    assert_eq!(gateway.get("/health/ready").status, 200);
    let authority = Authority::start_at(addr);
    authority.set("/keys", set(&[&first]));
    becomes(&gateway, &by_first, 200);

    // Rotated: the new key is known at once, the old one until it is gone, whether its tokens are remembered or not.
    let (old, by_second) = (token_of(&first), token_of(&second));
    authority.set("/keys", set(&[&second, &first]));
    becomes(&gateway, &by_second, 200);
    assert_eq!((status(&gateway, &by_first), status(&gateway, &old)), (200, 200));
    authority.set("/keys", set(&[&second]));
    becomes(&gateway, &by_first, 401);
    assert_eq!((status(&gateway, &old), status(&gateway, &token_of(&first))), (401, 401));
    assert_eq!(status(&gateway, &by_second), 200);
    // The same name for another key.
    let impostor = Key::p256("second");
    authority.set("/keys", set(&[&impostor]));
    becomes(&gateway, &by_second, 401);
    becomes(&gateway, &token_of(&impostor), 200);
    authority.set("/keys", set(&[&second]));
    becomes(&gateway, &by_second, 200);

    // An empty set is no mistake: all keys have left.
    authority.set("/keys", set(&[]));
    becomes(&gateway, &by_second, 401);
    assert_eq!(status(&gateway, &token_of(&second)), 401);
    authority.set("/keys", set(&[&second]));
    becomes(&gateway, &by_second, 200);

    // Broken and then down: what is known goes on, and is not mistaken for what is not.
    let unusable = Reply::Json(key_set([json!({"kty": "AKP"})]));
    for reply in [Reply::status(500), Reply::body("application/json", "{"), unusable, Reply::Hang] {
        let attempt = |reply| {
            let asked = authority.count("/keys");
            authority.set("/keys", reply);
            wait_for("an attempt", || (authority.count("/keys") > asked).then_some(()));
        };
        attempt(reply);
        assert_eq!((status(&gateway, &by_second), status(&gateway, &token_of(&second))), (200, 200));
        // The more attempts fail one after another, the longer the next one would take to come.
        attempt(set(&[&second]));
    }
    drop(authority);
    let down = Instant::now();
    let mut refused = 0;
    while down.elapsed() < Duration::from_secs(5) {
        assert_eq!((status(&gateway, &by_second), status(&gateway, &token_of(&second))), (200, 200));
        let unknown = gateway.ask(&bearer(&token_of(&third)));
        assert!(matches!(unknown.status, 401 | 503), "{}", unknown.text());
        refused += 1;
        pause(Duration::from_millis(100));
    }
    assert!(refused > 0);

    // Back with other keys.
    let authority = Authority::start_at(addr);
    authority.set("/keys", set(&[&third]));
    becomes(&gateway, &token_of(&third), 200);
    becomes(&gateway, &by_second, 401);
    assert!(gateway.is_running());
}

#[test]
fn a_new_key_is_known_at_the_first_token_of_it() {
    const ISSUER: &str = "https://issuer.example";
    let [old, new, newer] = ["old", "new", "newer"].map(Key::ed25519);
    let authority = Authority::start();
    authority.set("/keys", Reply::Json(key_set([old.jwk()])));
    let settings = Settings::new()
        .set("SCOREGATE_JWT_ISSUER", ISSUER)
        .set("SCOREGATE_JWT_AUDIENCE", AUDIENCE)
        .set("SCOREGATE_JWT_JWKS", &format!("{}/keys", authority.url()));
    let gateway = settings.start();
    let status = |key: &Key| gateway.ask(&bearer(&Mint::new(key, ISSUER).token())).status;
    wait_for("the keys", || (status(&old) == 200).then_some(()));
    assert_eq!(authority.count("/keys"), 1);
    authority.set("/keys", Reply::Json(key_set([new.jwk(), old.jwk()])));
    assert_eq!(status(&new), 200, "the first token by the new key");
    assert_eq!((status(&old), authority.count("/keys")), (200, 2));
    // The second one within the cool-down has to wait for its end.
    authority.set("/keys", Reply::Json(key_set([newer.jwk(), new.jwk()])));
    assert_eq!((status(&newer), authority.count("/keys")), (401, 2));
}

#[test]
fn a_file_of_keys_is_followed() {
    const ISSUER: &str = "https://issuer.example";
    let [old, new] = ["old", "new"].map(Key::rsa);
    let settings = Settings::new();
    let file = settings.directory().join("keys.json");
    let write =
        |keys: &[&Key]| fs::write(&file, key_set(keys.iter().map(|key| key.jwk())).to_string()).unwrap();
    write(&[&old]);
    let settings = settings
        .set("SCOREGATE_JWT_ISSUER", ISSUER)
        .set("SCOREGATE_JWT_AUDIENCE", AUDIENCE)
        .set("SCOREGATE_JWT_JWKS", "keys.json");
    let gateway = settings.start();
    let status = |key: &Key| gateway.ask(&bearer(&Mint::new(key, ISSUER).token())).status;
    assert_eq!((status(&old), status(&new)), (200, 401));
    write(&[&new]);
    wait_for("the new key", || (status(&new) == 200).then_some(()));
    assert_eq!(status(&old), 401);
    fs::write(&file, "{").unwrap();
    wait_for("a complaint", || gateway.log().iter().any(|line| line.contains("not changed")).then_some(()));
    assert_eq!(status(&new), 200);
}
