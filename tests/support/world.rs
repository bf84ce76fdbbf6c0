//! A gateway that trusts several issuers, and all that signs their tokens.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::{Value, json};

use super::authority::{Authority, Reply};
use super::tokens::{AUDIENCE, Key, Mint, decode, encode, key_set, now};
use super::{Answer, CANARY, Client, Gateway, PREDICT, REFERENCE, Request, Settings, python, wait_for};

/// The issuers of [`World`]: with defaults; told otherwise in everything; with a secret beside its keys; of opaque tokens.
pub(crate) const PLAIN: &str = "https://plain.example/tenant";
pub(crate) const OTHER: &str = "https://other.example";
pub(crate) const SECRET: &str = "https://secret.example";
pub(crate) const OPAQUE: &str = "https://opaque.example";

/// The request for a score with a token.
pub(crate) fn bearer(token: &str) -> Request {
    Request::post(PREDICT, REFERENCE).header("Authorization", format!("Bearer {token}"))
}

/// A gateway that trusts four issuers, and whatever signs their tokens.
pub(crate) struct World {
    pub(crate) authority: Authority,
    /// Whoever connects to it has believed a token.
    pub(crate) trap: Authority,
    pub(crate) rsa: Key,
    pub(crate) p256: Key,
    /// A second one of its kind, so that a token has to say which.
    pub(crate) p256_too: Key,
    pub(crate) p384: Key,
    pub(crate) ed25519: Key,
    pub(crate) only_rs256: Key,
    pub(crate) encrypts: Key,
    pub(crate) signs_only: Key,
    pub(crate) octets: Key,
    pub(crate) secret: Key,
    pub(crate) other: Key,
    /// Of nobody whom the gateway knows.
    pub(crate) attacker: Key,
    pub(crate) attacker_rsa: Key,
    /// A token of [`PLAIN`] whose signature holds by a key of 1,024 bits in its set.
    pub(crate) weak: String,
    pub(crate) gateway: Gateway,
}

/// The world that tests share as long as any of them holds it.
pub(crate) fn world() -> Arc<World> {
    static SHARED: Mutex<Weak<World>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let world = Arc::new(World::new());
        *shared = Arc::downgrade(&world);
        world
    })
}

impl World {
    /// With the issuer of opaque tokens, too.
    pub(crate) fn new() -> Self {
        Self::with(true)
    }

    /// With it or without.
    pub(crate) fn with(is_asked: bool) -> Self {
        Self::over(Settings::new(), is_asked)
    }

    /// The same over what is set already.
    pub(crate) fn over(settings: Settings, is_asked: bool) -> Self {
        let (authority, trap) = (Authority::start(), Authority::start());
        let [rsa, only_rs256, attacker_rsa] = ["rsa", "only-rs256", "rsa"].map(Key::rsa);
        let [p256, p256_too, encrypts, signs_only, other, attacker] =
            ["p256", "p256-too", "encrypts", "signs-only", "other", "p256"].map(Key::p256);
        let (p384, ed25519) = (Key::p384("p384"), Key::ed25519("ed25519"));
        let octets = Key::secret("octets", &[b'k'; 32]);
        let secret = Key::secret("secret", b"a secret that is shared and not a short one");

        let weak = Mint::new(&rsa, PLAIN).header("kid", json!("weak"));
        let message = format!("{}.{}", encode(weak.header_text()), encode(weak.claims_text()));
        let (weak_modulus, weak_signature) = weak_rsa(&message);
        let with_modulus = |kid: &str, n: Value, e: &str| json!({"kty": "RSA", "kid": kid, "n": n, "e": e});
        authority.set(
            "/plain",
            Reply::Json(key_set([
                rsa.jwk(),
                p256.jwk(),
                p256_too.jwk(),
                p384.jwk(),
                ed25519.jwk(),
                only_rs256.jwk_with("alg", json!("RS256")),
                encrypts.jwk_with("use", json!("enc")),
                signs_only.jwk_with("key_ops", json!(["sign"])),
                with_modulus("weak", json!(weak_modulus), "AQAB"),
                with_modulus("exponent-one", rsa.jwk()["n"].clone(), "AQ"),
                // The point is of P-256 and the name of its curve is not.
                p256.jwk_with("kid", json!("wrong-curve")).as_object().map(with_curve_p384).unwrap(),
                octets.jwk(),
            ])),
        );
        authority.set("/other", Reply::Json(key_set([other.jwk(), rsa.jwk()])));
        authority.set("/secret", Reply::Json(key_set([p256.jwk(), octets.jwk()])));
        authority.set("/introspect", introspection());

        let settings = settings
            .set("SCOREGATE_LOG", "info,scoregate=debug")
            .set("SCOREGATE_JWT_DENY_LIST", "denied.txt");
        let file = |name: &str, text: &str| fs::write(settings.directory().join(name), text).unwrap();
        let url = authority.url();
        file("denied.txt", "revoked-before-the-start\n");
        file("secret.txt", "a secret that is shared and not a short one\n");
        file("client-secret.txt", "sesame");
        let asked = format!(
            r#"
                [[auth.issuer]]
                issuer = "{OPAQUE}"
                audience = "{AUDIENCE}"
                introspection = "{url}/introspect"
                introspection_client_id = "gateway"
                introspection_client_secret_file = "client-secret.txt"
                introspection_cache = "2s"
                "#
        );
        let asked = if is_asked { asked.as_str() } else { "" };
        file(
            "scoregate.toml",
            &format!(
                r#"
                [[auth.issuer]]
                issuer = "{PLAIN}"
                audience = ["{AUDIENCE}", "urn:second"]
                jwks = "{url}/plain"

                [[auth.issuer]]
                issuer = "{OTHER}"
                audience = "{AUDIENCE}"
                jwks = "{url}/other"
                algorithms = ["ES256"]
                typ = ["JWT", ""]
                scope_claim = "permissions"
                tenant_claim = "org"
                leeway = "5s"
                max_lifetime = "10m"

                [[auth.issuer]]
                issuer = "{SECRET}"
                audience = "{AUDIENCE}"
                jwks = "{url}/secret"
                hs256_secret_file = "secret.txt"
                {asked}
                "#
            ),
        );
        let gateway = settings.start();
        let world = Self {
            authority,
            trap,
            rsa,
            p256,
            p256_too,
            p384,
            ed25519,
            only_rs256,
            encrypts,
            signs_only,
            octets,
            secret,
            other,
            attacker,
            attacker_rsa,
            weak: format!("{message}.{weak_signature}"),
            gateway,
        };
        for mint in [world.mint(), Mint::new(&world.secret, SECRET).without_header("kid")] {
            let token = mint.token();
            wait_for("the keys", || (world.gateway.ask(&bearer(&token)).status == 200).then_some(()));
        }
        let other = world.other().token();
        wait_for("the keys", || (world.gateway.ask(&bearer(&other)).status == 200).then_some(()));
        world
    }

    /// A token of [`PLAIN`] that holds.
    pub(crate) fn mint(&self) -> Mint<'_> {
        Mint::new(&self.p256, PLAIN)
    }

    /// A token of [`OTHER`] that holds.
    pub(crate) fn other(&self) -> Mint<'_> {
        let scopes = json!(["score:predict", "models:read"]);
        let mint = Mint::new(&self.other, OTHER).header("typ", json!("JWT")).without("scope");
        mint.claim("permissions", scopes)
    }

    pub(crate) fn ask(&self, token: &str) -> Answer {
        self.gateway.ask(&bearer(token))
    }

    pub(crate) fn challenge(&self, parameters: &str) -> String {
        let resource = format!("http://{}/.well-known/oauth-protected-resource", self.gateway.addr);
        format!("Bearer {parameters}, resource_metadata=\"{resource}\"")
    }

    /// How many tokens were refused for which reason so far.
    pub(crate) fn reasons(&self) -> BTreeMap<String, u64> {
        let answer = Client::connect(self.gateway.admin_addr).ask(&Request::get("/metrics"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut reasons = BTreeMap::new();
        for line in answer.text().lines() {
            let Some(rest) = line.strip_prefix("scoregate_credentials_total{kind=\"token\",outcome=\"")
            else {
                continue;
            };
            let (reason, count) = rest.split_once("\"} ").unwrap();
            reasons.insert(reason.to_owned(), count.parse().unwrap());
        }
        reasons
    }
}

fn with_curve_p384(jwk: &serde_json::Map<String, Value>) -> Value {
    let mut jwk = jwk.clone();
    jwk.insert("crv".into(), json!("P-384"));
    Value::Object(jwk)
}

/// A token that is no JWT; the authority answers with `answer` when it is asked about it.
pub(crate) fn opaque(answer: &Value) -> String {
    format!("opaque~{}", encode(answer.to_string()))
}

/// Answers as the token says, to whom knows the secret.
pub(crate) fn introspection() -> Reply {
    Reply::Made(Arc::new(|question| {
        let is_known =
            question.headers.get("authorization").is_some_and(|value| value == "Basic Z2F0ZXdheTpzZXNhbWU=");
        if question.method != "POST" || !is_known {
            return Reply::status(401);
        }
        let token = question.parameter("token").unwrap_or_default();
        let answer =
            token.strip_prefix("opaque~").map(|answer| serde_json::from_slice(&decode(answer)).unwrap());
        Reply::Json(answer.unwrap_or_else(|| json!({"active": false})))
    }))
}

/// What an authority says of a token that holds.
pub(crate) fn active() -> Value {
    json!({
        "active": true, "iss": OPAQUE, "aud": AUDIENCE, "sub": CANARY, "client_id": CANARY, "exp": now() + 300,
        "scope": "score:predict models:read", "token_type": "Bearer",
    })
}

/// The modulus of an RSA key of 1,024 bits and its signature of `message`.
fn weak_rsa(message: &str) -> (String, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/weak_rsa.py");
    let output = Command::new(python()).args(["-B", script, message]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let (modulus, signature) = printed.trim().split_once('\n').unwrap();
    (modulus.into(), signature.into())
}
