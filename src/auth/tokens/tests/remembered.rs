//! Tokens that were here before.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use super::super::jwk::KeySet;
use super::super::{Tokens, sha256};
use super::*;

fn set(keys: &[Value]) -> Arc<KeySet> {
    Arc::new(KeySet::parse(jwks(keys).as_bytes()).unwrap())
}

/// Whether `token` is remembered.
fn has(tokens: &Tokens, token: &str) -> bool {
    tokens.remembered(&sha256(token), NOW as f64).is_some()
}

#[tokio::test]
async fn a_token_is_remembered_until_it_ends() {
    let (files, signer) = (Files::new(), Signer::p256());
    let tokens = Tokens::open(&[files.settings(&[signer.jwk("k1")])], None, None).unwrap();
    let token = signer.token(&header().to_string(), &claims().to_string());
    assert!(!has(&tokens, &token));
    assert_eq!(verified(&tokens, &token, NOW).await, SHOP);
    assert!(has(&tokens, &token));
    // The same judgement as a fresh check's, at each moment.
    for (now, expected) in
        [(NOW + 1, SHOP), (NOW + 359, SHOP), (NOW + 360, "expired"), (NOW + 361, "expired")]
    {
        let fresh = Tokens::open(&[files.settings(&[signer.jwk("k1")])], None, None).unwrap();
        assert_eq!(verified(&tokens, &token, now).await, expected, "remembered");
        assert_eq!(verified(&fresh, &token, now).await, expected, "fresh");
    }
    assert!(!has(&tokens, &token), "it has ended");
    // Another spelling of the signature is another token.
    assert_eq!(verified(&tokens, &format!("{token}A"), NOW).await, "signature");
}

#[tokio::test]
async fn what_does_not_hold_is_not_remembered() {
    let (files, signer) = (Files::new(), Signer::p256());
    let tokens = Tokens::open(&[files.settings(&[signer.jwk("k1")])], None, None).unwrap();
    for changes in
        [json!({"exp": NOW - 100, "iat": NOW - 200}), json!({"aud": "x"}), json!({"nbf": NOW + 100})]
    {
        let token = signer.token(&header().to_string(), &with(claims(), changes.clone()));
        assert_ne!(verified(&tokens, &token, NOW).await, SHOP, "{changes}");
        assert!(!has(&tokens, &token), "{changes}");
    }
    let bound = json!({"cnf": {"x5t#S256": thumbprint(b"x").1}});
    let token = signer.token(&header().to_string(), &with(claims(), bound));
    let shown = crate::auth::certificates::ClientCertificate {
        sha256: thumbprint(b"x").0,
        dns: Vec::new(),
        uris: Vec::new(),
        common_name: None,
    };
    assert_eq!(told(tokens.verify(&token, Some(&shown), at(NOW)).await), SHOP);
    assert!(!has(&tokens, &token), "it is bound to a certificate");
}

#[tokio::test]
async fn a_token_is_forgotten_when_its_key_leaves() {
    let (first, second) = (Signer::p256(), Signer::p256());
    let (publish, keys) = watch::channel(set(&[first.jwk("k1"), second.jwk("k2")]));
    let tokens = Tokens::open(&[], None, Some((settings(KeyLocation::Nowhere), keys))).unwrap();
    let of = |signer: &Signer, kid: &str| {
        signer.token(&with(header(), json!({"kid": kid})), &claims().to_string())
    };
    let (one, two) = (of(&first, "k1"), of(&second, "k2"));
    assert_eq!(verified(&tokens, &one, NOW).await, SHOP);
    assert_eq!(verified(&tokens, &two, NOW).await, SHOP);
    let third = Signer::p256();
    publish.send_replace(set(&[second.jwk("k2"), third.jwk("k3")]));
    // Nothing follows the keys here: a key that is not known is looked for at once.
    assert_eq!(verified(&tokens, &of(&third, "k3"), NOW).await, SHOP);
    assert!(!has(&tokens, &one) && has(&tokens, &two), "the key that stayed is the same");
    assert_eq!(verified(&tokens, &one, NOW).await, "unknown_key");
    // The same name for another key is another key.
    publish.send_replace(set(&[third.jwk("k2")]));
    let follow = async {
        tokio::select! {
            () = tokens.follow() => {}
            () = async { while has(&tokens, &two) { tokio::task::yield_now().await } } => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(10), follow).await.expect("forgotten");
    assert_eq!(verified(&tokens, &two, NOW).await, "signature");
}

#[tokio::test]
async fn files_are_followed() {
    let (files, first, second) = (Files::new(), Signer::p256(), Signer::p256());
    let secrets = [Signer::Secret(vec![b'a'; 32]), Signer::Secret(vec![b'b'; 40])];
    let mut settings = files.settings(&[first.jwk("k1")]);
    settings.hs256_secret_file = Some(files.write("secret", [b'a'; 32]));
    settings.algorithms.push(Algorithm::HS256);
    let denied = files.write("denied", "");
    let tokens = Tokens::open(&[settings], Some(&denied), None).unwrap();
    let shared = json!({"typ": "at+jwt", "alg": "HS256"}).to_string();
    let [a, b] = [&secrets[0], &secrets[1]].map(|secret| secret.token(&shared, &claims().to_string()));
    let [one, two] =
        [&first, &second].map(|signer| signer.token(&header().to_string(), &claims().to_string()));
    let other = first.token(&header().to_string(), &with(claims(), json!({"jti": "t2"})));
    let script = async {
        let found = async || {
            let mut found = Vec::new();
            for token in [&a, &b, &one, &two, &other] {
                found.push(verified(&tokens, token, NOW).await);
            }
            found
        };
        let expect = async |what: &str, expected: [&str; 5]| {
            let begun = std::time::Instant::now();
            while found().await != expected {
                assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {:?}", found().await);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(found().await, expected, "{what}: remembered where it holds");
        };
        expect("at first", [SHOP, "signature", SHOP, "signature", SHOP]).await;
        files.write("secret", "too short");
        files.write("keys.json", "{}");
        // Time for several looks: nothing happens that could be waited for.
        tokio::time::sleep(Duration::from_millis(300)).await;
        expect("files that cannot be used", [SHOP, "signature", SHOP, "signature", SHOP]).await;
        files.write("secret", [b'b'; 40]);
        expect("another secret", ["signature", SHOP, SHOP, "signature", SHOP]).await;
        files.write("denied", "t1\n");
        expect("one token denied", ["signature", "revoked", "revoked", "signature", SHOP]).await;
        files.write("denied", "\n");
        files.write("keys.json", jwks(&[second.jwk("k1")]));
        expect("another key", ["signature", SHOP, "signature", SHOP, "signature"]).await;
    };
    tokio::select! {
        () = tokens.follow() => panic!("it follows for ever"),
        () = script => {}
    }
}
