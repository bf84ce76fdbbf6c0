//! Tokens that their issuer is asked about.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::super::Tokens;
use super::*;
use crate::auth::certificates::ClientCertificate;
use crate::auth::fetch::stub::{Stub, answer, ok};
use crate::config::IntrospectionSettings;

/// What begins a token that somebody has made up.
const MADE_UP: &str = "made-up";

/// An issuer that says about every token what the test sets, but for those that are made up.
struct Server {
    stub: Stub,
    says: Arc<Mutex<String>>,
    files: Files,
}

impl Server {
    async fn start(delay: Duration) -> Self {
        let says: Arc<Mutex<String>> = Arc::default();
        let said = Arc::clone(&says);
        let stub = Stub::start(move |request| {
            let said = Arc::clone(&said);
            async move {
                tokio::time::sleep(delay).await;
                if request.contains(&format!("token={MADE_UP}")) {
                    ok(r#"{"active":false}"#)
                } else {
                    said.lock().unwrap().clone()
                }
            }
        })
        .await;
        Self { stub, says, files: Files::new() }
    }

    fn say(&self, answer: String) {
        *self.says.lock().unwrap() = answer;
    }

    fn settings(&self) -> IssuerSettings {
        let mut settings = settings(KeyLocation::Nowhere);
        settings.introspection = Some(IntrospectionSettings {
            endpoint: self.stub.at("introspect"),
            client_id: "gateway".into(),
            client_secret_file: self.files.write("client", "hidden\n"),
            cache: Duration::from_secs(30),
        });
        settings
    }
}

async fn following(tokens: &Tokens, script: impl Future<Output = ()>) {
    tokio::select! {
        () = tokens.follow() => panic!("it follows for ever"),
        () = script => {}
    }
}

/// What an issuer says about a token that holds.
fn active() -> Value {
    json!({"active": true, "aud": "scores", "sub": "shop", "exp": NOW + 300, "scope": "score:predict"})
}

#[tokio::test]
async fn what_the_issuer_says_decides() {
    let server = Server::start(Duration::ZERO).await;
    let tokens = Tokens::open(&[server.settings()], None, None).unwrap();
    following(&tokens, async {
        let changed = |changes| ok(&with(active(), changes));
        for (number, (what, answer, expected)) in [
            ("active", changed(json!({})), SHOP),
            ("with its issuer", changed(json!({"iss": ISSUER, "token_type": "bearer"})), SHOP),
            (
                "for a client",
                changed(json!({"sub": null, "client_id": "shop"})),
                "client:https://issuer.example#shop",
            ),
            ("for a client without a name", changed(json!({"sub": null, "client_id": ""})), "subject"),
            ("no subject, but one said", changed(json!({"sub": "", "client_id": "shop"})), "subject"),
            ("without end", changed(json!({"exp": null})), SHOP),
            ("inactive", ok(r#"{"active":false}"#), "inactive"),
            ("another issuer", changed(json!({"iss": "x"})), "issuer"),
            ("for others", changed(json!({"aud": ["x"]})), "audience"),
            ("for nobody", changed(json!({"aud": null})), "audience"),
            ("of nobody", changed(json!({"sub": null})), "subject"),
            ("expired", changed(json!({"exp": NOW - 60})), "expired"),
            ("an end that is no time", changed(json!({"exp": "x"})), "expiry"),
            ("not yet", changed(json!({"nbf": NOW + 61})), "not_before"),
            ("of another type", changed(json!({"token_type": "DPoP"})), "type"),
            ("bound to a key", changed(json!({"cnf": {"jkt": "x"}})), "confirmation"),
            (
                "bound to a certificate",
                changed(json!({"cnf": {"x5t#S256": thumbprint(b"x").1}})),
                "certificate",
            ),
            ("active a text", changed(json!({"active": "true"})), "unavailable"),
            ("active not said", changed(json!({"active": null})), "unavailable"),
            ("a list", ok("[]"), "unavailable"),
            ("no JSON", ok("<html>"), "unavailable"),
            ("active twice", ok(r#"{"active":false,"active":true}"#), "unavailable"),
            ("an error", answer("401 Unauthorized", "", &active().to_string()), "unavailable"),
            ("nothing", String::new(), "unavailable"),
        ]
        .into_iter()
        .enumerate()
        {
            server.say(answer);
            let token = format!("opaque-{number}");
            assert_eq!(verified(&tokens, &token, NOW).await, expected, "{what}");
            let asked = server.stub.requests();
            assert!(asked.last().unwrap().ends_with(&format!("token={token}&token_type_hint=access_token")));
            // A failure is no answer; answers are remembered.
            server.say(ok(&with(active(), json!({"sub": "another"}))));
            let again = verified(&tokens, &token, NOW).await;
            if expected == "unavailable" {
                assert_eq!(again, "https://issuer.example#another", "{what}");
            } else {
                assert_eq!((again.as_str(), server.stub.requests().len()), (expected, asked.len()), "{what}");
            }
        }
        assert!(!format!("{tokens:?}").contains("hidden"), "a secret that is shown");
    })
    .await;
}

#[tokio::test]
async fn answers_are_looked_at_every_time() {
    let server = Server::start(Duration::ZERO).await;
    let denied = server.files.write("denied", "t9");
    let tokens = Tokens::open(&[server.settings()], Some(&denied), None).unwrap();
    let certificate = |bytes: &[u8]| ClientCertificate {
        sha256: thumbprint(bytes).0,
        dns: Vec::new(),
        uris: Vec::new(),
        common_name: None,
    };
    following(&tokens, async {
        server.say(ok(&with(active(), json!({"cnf": {"x5t#S256": thumbprint(b"own").1}}))));
        for (shown, now, expected) in [
            (b"own".as_slice(), NOW, SHOP),
            (b"other", NOW, "certificate"),
            (b"own", NOW + 359, SHOP),
            (b"own", NOW + 360, "expired"),
        ] {
            let found = tokens.verify("opaque", Some(&certificate(shown)), at(now)).await;
            assert_eq!(told(found), expected, "{now}");
        }
        assert_eq!(server.stub.requests().len(), 1);
        server.say(ok(&with(active(), json!({"jti": "t9"}))));
        assert_eq!(verified(&tokens, "opaque2", NOW).await, "revoked");
    })
    .await;
}

#[tokio::test]
async fn answers_are_believed_for_a_while() {
    let server = Server::start(Duration::ZERO).await;
    let mut settings = server.settings();
    settings.introspection.as_mut().unwrap().cache = Duration::from_millis(200);
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    following(&tokens, async {
        server.say(ok(&active().to_string()));
        assert_eq!(verified(&tokens, "opaque", NOW).await, SHOP);
        server.say(ok(r#"{"active":false}"#));
        assert_eq!(verified(&tokens, "opaque", NOW).await, SHOP);
        let begun = std::time::Instant::now();
        while verified(&tokens, "opaque", NOW).await == SHOP {
            assert!(begun.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(verified(&tokens, "opaque", NOW).await, "inactive");
    })
    .await;
}

#[tokio::test]
async fn equal_tokens_ask_once_and_not_too_many_at_a_time() {
    let server = Server::start(Duration::from_millis(300)).await;
    server.say(ok(&active().to_string()));
    let tokens = Arc::new(Tokens::open(&[server.settings()], None, None).unwrap());
    following(&tokens, async {
        let mut asking = tokio::task::JoinSet::new();
        let mut ask = |token: String| {
            let tokens = Arc::clone(&tokens);
            asking.spawn(async move { verified(&tokens, &token, NOW).await });
        };
        (0..50).for_each(|_| ask("opaque".into()));
        (0..100).for_each(|number| ask(format!("opaque-{number}")));
        let found = asking.join_all().await;
        let count = |expected: &str| found.iter().filter(|found| *found == expected).count();
        assert_eq!((count(SHOP), count("unavailable")), (50 + 31, 69));
        assert_eq!(server.stub.requests().len(), 32);
        // They are over, and others can be asked.
        assert_eq!(verified(&tokens, "opaque-99", NOW).await, SHOP);
    })
    .await;
}

#[tokio::test]
async fn texts_that_others_make_up_do_not_get_in_the_way_of_an_active_token() {
    let delay = Duration::from_millis(200);
    let server = Server::start(delay).await;
    server.say(ok(&active().to_string()));
    let mut settings = server.settings();
    settings.introspection.as_mut().unwrap().cache = Duration::from_millis(1_000);
    let tokens = Arc::new(Tokens::open(&[settings], None, None).unwrap());
    following(&tokens, async {
        assert_eq!(verified(&tokens, "opaque", NOW).await, SHOP);
        let begun = std::time::Instant::now();
        let (mut made_up, mut slowest) = (tokio::task::JoinSet::new(), Duration::ZERO);
        let mut number = 0;
        while begun.elapsed() < Duration::from_secs(4) {
            for _ in 0..100 {
                let (tokens, token) = (Arc::clone(&tokens), format!("{MADE_UP}-{number}"));
                made_up.spawn(async move { verified(&tokens, &token, NOW).await });
                number += 1;
            }
            let asked = std::time::Instant::now();
            assert_eq!(verified(&tokens, "opaque", NOW).await, SHOP, "after {:?}", begun.elapsed());
            slowest = slowest.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        made_up.abort_all();
        assert!(slowest < delay, "somebody waited {slowest:?} for an answer that could be asked for before");
        let about_it = server.stub.requests().iter().filter(|asked| asked.contains("token=opaque&")).count();
        assert!((4..=8).contains(&about_it), "asked {about_it} times about one token");
    })
    .await;
}

#[tokio::test]
async fn an_issuer_is_not_flooded_with_what_others_make_up() {
    let server = Server::start(Duration::ZERO).await;
    let tokens = Tokens::open(&[server.settings()], None, None).unwrap();
    following(&tokens, async {
        let begun = std::time::Instant::now();
        let mut refused = [0, 0];
        let mut number = 0;
        while begun.elapsed() < Duration::from_millis(2_500) {
            match verified(&tokens, &format!("{MADE_UP}-{number}"), NOW).await.as_str() {
                "inactive" => refused[0] += 1,
                "unavailable" => refused[1] += 1,
                other => panic!("{other}"),
            }
            number += 1;
        }
        let asked = server.stub.requests().len();
        // One may have begun before the flood, and another one just before its end.
        let seconds = 2 + begun.elapsed().as_secs() as usize;
        assert!((1..=100 * seconds).contains(&asked), "{asked} questions in {seconds} s");
        assert_eq!((refused[0], refused[0] + refused[1]), (asked, number));
        assert!(refused[1] > 0, "only {number} could be made up in that time");
    })
    .await;
}

#[tokio::test]
async fn an_active_token_is_asked_about_anew_before_its_answer_ends() {
    let server = Server::start(Duration::ZERO).await;
    let mut settings = server.settings();
    settings.introspection.as_mut().unwrap().cache = Duration::from_secs(2);
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    following(&tokens, async {
        server.say(ok(&active().to_string()));
        assert_eq!(verified(&tokens, "opaque", NOW).await, SHOP);
        // Nobody answers any more: what was said holds for its time, and a broken server is not hammered.
        server.say(answer("500 Internal Server Error", "", ""));
        let begun = std::time::Instant::now();
        while verified(&tokens, "opaque", NOW).await == SHOP {
            assert!(begun.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(begun.elapsed() > Duration::from_millis(1_900), "{:?}", begun.elapsed());
        assert_eq!(server.stub.requests().len(), 2);
        assert_eq!(verified(&tokens, "opaque", NOW).await, "unavailable");
        assert_eq!(server.stub.requests().len(), 2, "a second has not passed");
        server.say(ok(&active().to_string()));
        while verified(&tokens, "opaque", NOW).await != SHOP {
            assert!(begun.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(server.stub.requests().len(), 3);
    })
    .await;
}

#[tokio::test]
async fn only_tokens_that_cannot_be_read_are_asked_about() {
    let (server, signer) = (Server::start(Duration::ZERO).await, Signer::p256());
    server.say(ok(&active().to_string()));
    let signed = signer.token(&header().to_string(), &claims().to_string());
    let other = signer.token(&header().to_string(), &with(claims(), json!({"iss": "https://other.example"})));
    // With keys the signature decides.
    let mut settings = server.settings();
    settings.keys = KeyLocation::File(server.files.write("keys.json", jwks(&[signer.jwk("k1")])));
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    following(&tokens, async {
        assert_eq!(verified(&tokens, &signed, NOW).await, SHOP);
        let forged = Signer::p256().token(&header().to_string(), &claims().to_string());
        assert_eq!(verified(&tokens, &forged, NOW).await, "signature");
        assert_eq!(server.stub.requests().len(), 0);
        assert_eq!(verified(&tokens, "opaque", NOW).await, SHOP);
        assert_eq!(server.stub.requests().len(), 1);
    })
    .await;
    // Without any, the issuer is asked about its own.
    let tokens = Tokens::open(&[server.settings()], None, None).unwrap();
    following(&tokens, async {
        assert_eq!(verified(&tokens, &signed, NOW).await, SHOP);
        assert_eq!(server.stub.requests().len(), 2);
        assert_eq!(verified(&tokens, &other, NOW).await, "issuer");
        assert_eq!(server.stub.requests().len(), 2);
    })
    .await;
}
