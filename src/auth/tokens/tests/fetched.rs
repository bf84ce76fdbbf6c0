//! Keys that are fetched: found, rotated, kept during an outage, and not asked for too often.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::super::Tokens;
use super::*;
use crate::auth::fetch::stub::{Stub, answer, ok};

/// A server whose answers can be changed, by path; it takes its time.
struct Server {
    stub: Stub,
    documents: Arc<Mutex<Vec<(String, String)>>>,
}

impl Server {
    async fn start(delay: Duration) -> Self {
        let documents: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let served = Arc::clone(&documents);
        let stub = Stub::start(move |request| {
            let served = Arc::clone(&served);
            async move {
                tokio::time::sleep(delay).await;
                let path = request.split(' ').nth(1).unwrap().to_owned();
                let served = served.lock().unwrap();
                let found = served.iter().find(|(known, _)| *known == path);
                found.map_or_else(|| answer("404 Not Found", "", ""), |(_, answer)| answer.clone())
            }
        })
        .await;
        Self { stub, documents }
    }

    /// Answers at `path` with `answer` from now on.
    fn serve(&self, path: &str, answer: String) {
        let mut documents = self.documents.lock().unwrap();
        documents.retain(|(known, _)| known != path);
        documents.push((path.into(), answer));
    }

    /// The paths that were asked for.
    fn asked(&self) -> Vec<String> {
        let path = |request: &String| request.split(' ').nth(1).unwrap().to_owned();
        self.stub.requests().iter().map(path).collect()
    }

    fn settings(&self) -> IssuerSettings {
        settings(KeyLocation::Url(self.stub.at("keys")))
    }
}

/// Runs `script` while `tokens` are followed.
async fn following(tokens: &Tokens, script: impl Future<Output = ()>) {
    tokio::select! {
        () = tokens.follow() => panic!("it follows for ever"),
        () = script => {}
    }
}

/// Waits until `token` comes to `expected`.
async fn until(tokens: &Tokens, token: &str, expected: &str) {
    let begun = std::time::Instant::now();
    loop {
        let found = verified(tokens, token, NOW).await;
        if found == expected {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "found {found}, expected {expected}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn token(signer: &Signer, kid: &str) -> String {
    signer.token(&with(header(), json!({"kid": kid})), &claims().to_string())
}

#[tokio::test]
async fn the_first_request_waits_for_the_first_keys() {
    let (server, signer) = (Server::start(Duration::from_millis(50)).await, Signer::p256());
    server.serve("/keys", ok(&jwks(&[signer.jwk("k1")])));
    let tokens = Tokens::open(&[server.settings()], None, None).unwrap();
    following(&tokens, async {
        assert_eq!(verified(&tokens, &token(&signer, "k1"), NOW).await, SHOP);
        assert_eq!(server.asked(), ["/keys"]);
        assert_eq!(tokens.fetches().collect::<Vec<_>>(), [(ISSUER, 1, 0)]);
        assert_eq!(tokens.issuers().collect::<Vec<_>>(), [ISSUER]);
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_one_fetch() {
    let (server, signer, attacker) =
        (Server::start(Duration::from_millis(100)).await, Signer::p256(), Signer::p256());
    server.serve("/keys", ok(&jwks(&[signer.jwk("k1")])));
    let tokens = Arc::new(Tokens::open(&[server.settings()], None, None).unwrap());
    following(&tokens, async {
        let valid = token(&signer, "k1");
        assert_eq!(verified(&tokens, &valid, NOW).await, SHOP);
        let mut flood = tokio::task::JoinSet::new();
        for number in 0..1_000 {
            let (tokens, token) = (Arc::clone(&tokens), token(&attacker, &format!("bogus-{number}")));
            flood.spawn(async move { verified(&tokens, &token, NOW).await });
        }
        while server.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
        // The fetch takes its time. A valid token, remembered or not, does not wait for it.
        let fresh = signer.token(&header().to_string(), &with(claims(), json!({"jti": "t2"})));
        let begun = std::time::Instant::now();
        assert_eq!(verified(&tokens, &valid, NOW).await, SHOP);
        assert_eq!(verified(&tokens, &fresh, NOW).await, SHOP);
        assert!(begun.elapsed() < Duration::from_millis(50), "{:?}", begun.elapsed());
        while let Some(found) = flood.join_next().await {
            assert_eq!(found.unwrap(), "unknown_key");
        }
        // Within the cool-down nobody waits any more.
        let begun = std::time::Instant::now();
        assert_eq!(verified(&tokens, &token(&attacker, "bogus"), NOW).await, "unknown_key");
        assert!(begun.elapsed() < Duration::from_millis(50), "{:?}", begun.elapsed());
        assert_eq!(server.asked().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_bad_signature_is_a_reason_to_look_only_without_a_name() {
    let (server, signers, attacker) =
        (Server::start(Duration::ZERO).await, [Signer::p256(), Signer::p256()], Signer::p256());
    let nameless = |signer: &Signer| {
        let mut key = signer.jwk("");
        key.as_object_mut().unwrap().remove("kid");
        ok(&jwks(&[key]))
    };
    let unnamed =
        |signer: &Signer| signer.token(&with(header(), json!({"kid": null})), &claims().to_string());
    server.serve("/keys", ok(&jwks(&[signers[0].jwk("k1")])));
    let tokens = Tokens::open(&[server.settings()], None, None).unwrap();
    following(&tokens, async {
        assert_eq!(verified(&tokens, &token(&signers[0], "k1"), NOW).await, SHOP);
        assert_eq!(verified(&tokens, &token(&attacker, "k1"), NOW).await, "signature");
        assert_eq!(server.asked().len(), 1, "attackers would drive it");
        server.serve("/keys", nameless(&signers[1]));
        assert_eq!(verified(&tokens, &unnamed(&signers[1]), NOW).await, SHOP, "a change without names");
        assert_eq!(server.asked().len(), 2);
        for _ in 0..10 {
            assert_eq!(verified(&tokens, &unnamed(&attacker), NOW).await, "signature");
        }
        assert_eq!(server.asked().len(), 2, "within the cool-down");
    })
    .await;
}

#[tokio::test]
async fn an_empty_set_withdraws_all_keys() {
    let (server, signer) = (Server::start(Duration::ZERO).await, Signer::p256());
    let mut settings = server.settings();
    settings.refresh = Duration::from_millis(50);
    server.serve("/keys", ok(&jwks(&[signer.jwk("k1")])));
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    following(&tokens, async {
        let valid = token(&signer, "k1");
        assert_eq!(verified(&tokens, &valid, NOW).await, SHOP);
        server.serve("/keys", ok(&jwks(&[])));
        until(&tokens, &valid, "unknown_key").await;
        assert_eq!(tokens.fetches().next().unwrap().2, 0, "no failure");
        server.serve("/keys", ok(&jwks(&[signer.jwk("k1")])));
        until(&tokens, &valid, SHOP).await;
    })
    .await;
}

/// Keys come from a host whose name has to be looked up, and the runtime that verifies has no thread to do that with.
#[test]
fn whoever_verifies_fetches_nothing() {
    let signer = Signer::p256();
    let elsewhere =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = elsewhere.block_on(Server::start(Duration::ZERO));
    server.serve("/keys", ok(&jwks(&[signer.jwk("k1")])));
    let mut url = server.stub.at("keys");
    url.set_host(Some("localhost")).unwrap();
    let tokens = Arc::new(Tokens::open(&[settings(KeyLocation::Url(url))], None, None).unwrap());
    let followed = Arc::clone(&tokens);
    elsewhere.spawn(async move { followed.follow().await });
    let here =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    here.spawn_blocking(move || released.recv());
    here.block_on(async {
        until(&tokens, &token(&signer, "k1"), SHOP).await;
        // One that has to be asked for by whoever verifies.
        server.serve("/keys", ok(&jwks(&[signer.jwk("k2")])));
        assert_eq!(verified(&tokens, &token(&signer, "k2"), NOW).await, SHOP);
    });
    drop(release);
}

#[tokio::test]
async fn a_new_key_is_found_once_per_cooldown() {
    let (server, signers) =
        (Server::start(Duration::ZERO).await, [Signer::p256(), Signer::p256(), Signer::p256()]);
    let mut settings = server.settings();
    settings.cooldown = Duration::from_millis(300);
    server.serve("/keys", ok(&jwks(&[signers[0].jwk("k0")])));
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    following(&tokens, async {
        let [first, second, third] = [0, 1, 2].map(|number| token(&signers[number], &format!("k{number}")));
        assert_eq!(verified(&tokens, &first, NOW).await, SHOP);
        server.serve("/keys", ok(&jwks(&[signers[1].jwk("k1")])));
        assert_eq!(verified(&tokens, &first, NOW).await, SHOP, "nobody knows yet");
        assert_eq!(verified(&tokens, &second, NOW).await, SHOP, "at the first look");
        assert_eq!(verified(&tokens, &first, NOW).await, "unknown_key", "its key has left");
        server.serve("/keys", ok(&jwks(&[signers[2].jwk("k2")])));
        until(&tokens, &third, SHOP).await;
        assert_eq!(server.asked().len(), 3);
    })
    .await;
}

#[tokio::test]
async fn an_outage_keeps_the_keys_that_are_there() {
    let (server, signer) = (Server::start(Duration::ZERO).await, Signer::p256());
    let mut settings = server.settings();
    settings.refresh = Duration::from_millis(50);
    let keys = ok(&jwks(&[signer.jwk("k1")]));
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    following(&tokens, async {
        // Never any keys: whether the token holds cannot be said, unless it is no token of this issuer.
        let valid = token(&signer, "k1");
        let found = tokens.verify(&valid, None, at(NOW)).await;
        assert!(
            matches!(found, Err(Error::Unavailable { retry_after }) if retry_after >= Duration::from_secs(1))
        );
        assert_eq!(verified(&tokens, &token(&signer, "k2"), NOW).await, "unavailable");
        assert_eq!(verified(&tokens, "x.y.z", NOW).await, "structure");
        let other =
            signer.token(&header().to_string(), &with(claims(), json!({"iss": "https://other.example"})));
        assert_eq!(verified(&tokens, &other, NOW).await, "issuer");
        let typ = signer.token(&with(header(), json!({"typ": "JWT"})), &claims().to_string());
        assert_eq!(verified(&tokens, &typ, NOW).await, "type");
        assert_eq!(
            tokens.fetches().collect::<Vec<_>>(),
            [(ISSUER, 0, 1)],
            "nobody's token brings it forward"
        );
        server.serve("/keys", keys);
        until(&tokens, &valid, SHOP).await;
        let unusable = ok(&jwks(&[json!({"kty": "AKP"})]));
        for broken in [unusable, ok("<html>"), answer("500 Internal Server Error", "", ""), "x".into()] {
            let (_, _, failed) = tokens.fetches().next().unwrap();
            server.serve("/keys", broken);
            while tokens.fetches().next().unwrap().2 == failed {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let fresh =
                signer.token(&header().to_string(), &with(claims(), json!({"jti": failed.to_string()})));
            assert_eq!(verified(&tokens, &fresh, NOW).await, SHOP);
            server.serve("/keys", ok(&jwks(&[signer.jwk("k1")])));
            let fetched = tokens.fetches().next().unwrap().1;
            while tokens.fetches().next().unwrap().1 == fetched {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn keys_are_where_the_metadata_says() {
    let signer = Signer::p256();
    for (path, metadata) in [
        ("", "/.well-known/oauth-authorization-server"),
        ("", "/.well-known/openid-configuration"),
        ("realms/a", "/.well-known/oauth-authorization-server/realms/a"),
        ("realms/a/", "/.well-known/oauth-authorization-server/realms/a"),
        ("realms/a", "/realms/a/.well-known/openid-configuration"),
    ] {
        let server = Server::start(Duration::ZERO).await;
        let issuer = server.stub.at(path).to_string();
        let mut settings = settings(KeyLocation::Discovered);
        settings.issuer.clone_from(&issuer);
        server.serve(
            metadata,
            ok(&json!({"issuer": issuer, "jwks_uri": server.stub.at("k").as_str()}).to_string()),
        );
        server.serve("/k", ok(&jwks(&[signer.jwk("k1")])));
        let tokens = Tokens::open(&[settings], None, None).unwrap();
        following(&tokens, async {
            let valid = signer.token(&header().to_string(), &with(claims(), json!({"iss": issuer})));
            assert_eq!(verified(&tokens, &valid, NOW).await, format!("{issuer}#shop"), "{metadata}");
            let unknown =
                signer.token(&with(header(), json!({"kid": "k2"})), &with(claims(), json!({"iss": issuer})));
            assert_eq!(verified(&tokens, &unknown, NOW).await, "unknown_key", "{metadata}");
            let asked = server.asked();
            assert_eq!(asked[asked.len() - 3..], [metadata, "/k", "/k"], "found once: {asked:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn metadata_of_others_is_not_believed() {
    let signer = Signer::p256();
    for (what, metadata) in [
        ("another issuer", json!({"issuer": "https://attacker.example", "jwks_uri": "/k"})),
        ("no issuer", json!({"jwks_uri": "/k"})),
        ("no keys", json!({"issuer": "/"})),
        ("unsafe keys", json!({"issuer": "/", "jwks_uri": "http://192.0.2.1/k"})),
        ("keys in a file", json!({"issuer": "/", "jwks_uri": "file:///k"})),
        ("a list", json!([])),
    ] {
        let server = Server::start(Duration::ZERO).await;
        let mut settings = settings(KeyLocation::Discovered);
        settings.issuer = server.stub.url.to_string();
        let own = |text: &str| text.replace("\"/\"", &json!(settings.issuer).to_string());
        let own =
            own(&metadata.to_string()).replace("\"/k\"", &json!(server.stub.at("k").as_str()).to_string());
        server.serve("/.well-known/oauth-authorization-server", ok(&own));
        server.serve("/k", ok(&jwks(&[signer.jwk("k1")])));
        let valid = signer.token(&header().to_string(), &with(claims(), json!({"iss": settings.issuer})));
        let tokens = Tokens::open(&[settings], None, None).unwrap();
        following(&tokens, async {
            assert_eq!(verified(&tokens, &valid, NOW).await, "unavailable", "{what}");
            assert!(!server.asked().contains(&"/k".to_owned()), "{what}");
        })
        .await;
    }
}

#[tokio::test]
async fn nothing_is_fetched_for_tokens_of_others() {
    let (server, signer) = (Server::start(Duration::ZERO).await, Signer::p256());
    server.serve("/keys", ok(&jwks(&[signer.jwk("k1")])));
    let tokens = Tokens::open(&[server.settings()], None, None).unwrap();
    following(&tokens, async {
        assert_eq!(verified(&tokens, &token(&signer, "k1"), NOW).await, SHOP);
        let url = server.stub.at("attacker").to_string();
        for member in [json!({"jku": url}), json!({"x5u": url}), json!({"jwk": {"kid": "x"}})] {
            let header = with(header(), member);
            let token = Signer::p256().token(&header, &claims().to_string());
            assert_eq!(verified(&tokens, &token, NOW).await, "signature", "{header}");
        }
        let other = signer.token(&header().to_string(), &with(claims(), json!({"iss": url})));
        assert_eq!(verified(&tokens, &other, NOW).await, "issuer");
        assert_eq!(server.asked(), ["/keys"]);
    })
    .await;
}
