//! What holds and what does not: one row per rule.

use serde_json::{Value, json};

use super::super::jwk::{self, KeySet};
use super::super::{Reason, Tokens};
use super::*;
use crate::auth::Scope;
use crate::auth::certificates::ClientCertificate;

/// Checks what a token of this `header` and `payload` comes to.
async fn check(
    tokens: &Tokens,
    signer: &Signer,
    (what, header, payload, expected): (&str, String, String, &str),
) {
    let token = signer.token(&header, &payload);
    assert_eq!(verified(tokens, &token, NOW).await, expected, "{what}: {header} {payload}");
}

#[tokio::test]
async fn structure_and_header() {
    let (files, signer) = (Files::new(), Signer::p256());
    let attacker = Signer::p256();
    let mut settings = files.settings(&[signer.jwk("k1"), Signer::rsa().jwk("k2")]);
    settings.typ.push("application/jose-at+jwt".into());
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    let good = signer.token(&header().to_string(), &claims().to_string());
    let [first, second, third] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    // 64 bytes of signature are 86 characters, the last of which has four bits that mean nothing.
    let last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = last.find(third.chars().last().unwrap()).unwrap();
    let twin = format!("{}{}", &third[..85], &last[bits + 1..bits + 2]);
    let plus = |text: &str| text.replace('-', "+").replace('_', "/");
    let nested = format!("{{\"alg\":\"ES256\",\"x\":{}{}}}", "[".repeat(200), "]".repeat(200));
    for (what, token, expected) in [
        ("as it should be", good.clone(), SHOP),
        ("two segments", format!("{first}.{second}"), "structure"),
        ("four segments", format!("{good}."), "structure"),
        ("five segments", format!("{good}.{second}.{third}"), "structure"),
        ("only dots", "..".into(), "structure"),
        ("nothing", String::new(), "structure"),
        ("padding", format!("{first}=.{second}.{third}"), "structure"),
        ("padding of the payload", format!("{first}.{second}=.{third}"), "payload"),
        ("padding of the signature", format!("{good}=="), "signature"),
        ("bits that mean nothing", format!("{first}.{second}.{twin}"), "signature"),
        ("no signature", format!("{first}.{second}."), "signature"),
        ("zeros for a signature", format!("{first}.{second}.{}", encode(&[0; 64])), "signature"),
        (
            "another alphabet",
            format!("{}.{}.{}", plus(&encode(b"{\"a\":\"\xfb\xff\"}")), second, third),
            "structure",
        ),
        ("a header that is no JSON", format!("{}.{second}.{third}", encode(b"{")), "structure"),
        ("a header that is no object", format!("{}.{second}.{third}", encode(b"[]")), "structure"),
        (
            "a header that is no UTF-8",
            format!("{}.{second}.{third}", encode(b"{\"alg\":\"\xff\"}")),
            "structure",
        ),
        ("a header nested deeply", format!("{}.{second}.{third}", encode(nested.as_bytes())), "structure"),
        ("a payload that is a list", format!("{first}.{}.{third}", encode(b"[]")), "payload"),
        ("a payload and more", format!("{first}.{}.{third}", encode(b"{}x")), "payload"),
        ("a payload nested deeply", format!("{first}.{}.{third}", encode(nested.as_bytes())), "payload"),
        ("a payload that is no UTF-8", format!("{first}.{}.{third}", encode(b"{\"a\":\"\xff\"}")), "payload"),
        (
            "signed JSON",
            json!({"payload": second, "protected": first, "signature": third}).to_string(),
            "structure",
        ),
        ("too long", format!("{good}{}", "A".repeat(MAX_BYTES)), "too_long"),
        ("many dots", ".".repeat(MAX_BYTES), "structure"),
    ] {
        assert_eq!(verified(&tokens, &token, NOW).await, expected, "{what}");
    }
    let signature_of = |payload: Value| {
        let other = signer.token(&header().to_string(), &payload.to_string());
        other.rsplit('.').next().unwrap().to_owned()
    };
    let swapped = format!("{first}.{second}.{}", signature_of(json!({"iss": ISSUER})));
    assert_eq!(verified(&tokens, &swapped, NOW).await, "signature", "another token's signature");
    let flipped = signer.token(&header().to_string(), &with(claims(), json!({"sub": "shoq"})));
    let flipped = format!("{first}.{}.{third}", flipped.split('.').nth(1).unwrap());
    assert_eq!(verified(&tokens, &flipped, NOW).await, "signature", "another payload");

    let changed = |changes| with(header(), changes);
    let twice =
        |member: &str| format!("{}{member}}}", &header().to_string()[..header().to_string().len() - 1]);
    for (what, header, expected) in [
        ("alg twice", twice(r#","alg":"ES256""#), "structure"),
        ("another member twice", twice(r#","x":1,"x":1"#), "structure"),
        ("no alg", changed(json!({"alg": null})), "algorithm"),
        ("alg none", changed(json!({"alg": "none"})), "algorithm"),
        ("alg nOnE", changed(json!({"alg": "nOnE"})), "algorithm"),
        ("alg that is no text", changed(json!({"alg": 1})), "algorithm"),
        ("alg in small letters", changed(json!({"alg": "es256"})), "algorithm"),
        ("alg that is not listed", changed(json!({"alg": "HS256"})), "algorithm"),
        ("unknown alg", changed(json!({"alg": "ES256K"})), "algorithm"),
        ("crit", changed(json!({"crit": ["exp"]})), "critical"),
        ("empty crit", changed(json!({"crit": []})), "critical"),
        ("crit null", twice(r#","crit":null"#), "critical"),
        ("b64 false", changed(json!({"b64": false})), "critical"),
        ("b64 true", changed(json!({"b64": true})), "critical"),
        ("zip", changed(json!({"zip": "DEF"})), "critical"),
        ("application in front", changed(json!({"typ": "Application/AT+JWT"})), SHOP),
        ("application in front of the other", changed(json!({"typ": "jose-at+jwt"})), SHOP),
        ("an ID token", changed(json!({"typ": "JWT"})), "type"),
        ("a logout token", changed(json!({"typ": "logout+jwt"})), "type"),
        ("no typ", changed(json!({"typ": null})), "type"),
        ("an empty typ", changed(json!({"typ": ""})), "type"),
        ("a typ that is no text", changed(json!({"typ": ["at+jwt"]})), "header"),
        ("a kid that is no text", changed(json!({"kid": 1})), "header"),
        ("unknown kid", changed(json!({"kid": "k3"})), "unknown_key"),
        ("a path for a kid", changed(json!({"kid": "../../dev/null"})), "unknown_key"),
        ("SQL for a kid", changed(json!({"kid": "' OR 1=1 --"})), "unknown_key"),
        ("a URL for a kid", changed(json!({"kid": "http://127.0.0.1:1/"})), "unknown_key"),
        ("an empty kid", changed(json!({"kid": ""})), "unknown_key"),
        ("a key for another algorithm", changed(json!({"kid": "k2"})), "key_mismatch"),
        ("an algorithm of another curve", changed(json!({"alg": "ES384"})), "key_mismatch"),
        ("no kid, but one key that fits", changed(json!({"kid": null})), SHOP),
        ("a key of its own, signed by ours", changed(json!({"jwk": attacker.jwk("k1")})), SHOP),
    ] {
        check(&tokens, &signer, (what, header, claims().to_string(), expected)).await;
    }
    for (what, member) in [
        ("jwk", json!({"jwk": attacker.jwk("k1")})),
        ("jku", json!({"jku": "https://attacker.example/keys"})),
        ("x5u", json!({"x5u": "https://attacker.example/chain"})),
        ("x5c", json!({"x5c": ["MIIB"]})),
    ] {
        check(&tokens, &attacker, (what, changed(member), claims().to_string(), "signature")).await;
    }
}

#[tokio::test]
async fn types_may_be_told_otherwise() {
    let (files, signer) = (Files::new(), Signer::p256());
    let mut settings = files.settings(&[signer.jwk("k1")]);
    settings.typ = vec!["JWT".into(), String::new()];
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    for (typ, expected) in
        [(json!("jwt"), SHOP), (json!(null), SHOP), (json!(""), "type"), (json!("at+jwt"), "type")]
    {
        let header = with(header(), json!({"typ": typ}));
        check(&tokens, &signer, ("typ", header, claims().to_string(), expected)).await;
    }
}

#[tokio::test]
async fn claims_that_do_not_hold() {
    let (files, signer) = (Files::new(), Signer::p256());
    let other = IssuerSettings {
        issuer: "https://other.example".into(),
        ..settings(KeyLocation::File(files.write("other.json", jwks(&[Signer::p256().jwk("k1")]))))
    };
    let denied = files.write("denied", "revoked\n\n  t9 \r\n");
    let tokens = Tokens::open(&[files.settings(&[signer.jwk("k1")]), other], Some(&denied), None).unwrap();
    let twice =
        |member: &str| format!("{}{member}}}", &claims().to_string()[..claims().to_string().len() - 1]);
    let raw = |name: &str, text: &str| {
        with(claims(), json!({ name: null })).replacen('{', &format!("{{\"{name}\":{text},"), 1)
    };
    let changed = |changes| with(claims(), changes);
    for (what, payload, expected) in [
        ("no iss", changed(json!({"iss": null})), "issuer"),
        ("iss a number", changed(json!({"iss": 1})), "issuer"),
        ("iss a list", changed(json!({"iss": [ISSUER]})), "issuer"),
        ("iss with a slash", changed(json!({"iss": format!("{ISSUER}/")})), "issuer"),
        ("iss in capitals", changed(json!({"iss": "https://Issuer.example"})), "issuer"),
        (
            "another issuer, whose key it is not",
            changed(json!({"iss": "https://other.example"})),
            "signature",
        ),
        ("exp twice", twice(&format!(",\"exp\":{}", NOW + 300)), "payload"),
        ("scope twice", twice(r#","scope":"score:predict""#), "payload"),
        ("an unknown claim twice", twice(r#","x":1,"x":1"#), "payload"),
        ("no aud", changed(json!({"aud": null})), "audience"),
        ("aud null", raw("aud", "null"), "audience"),
        ("aud a number", changed(json!({"aud": 1})), "audience"),
        ("aud an object", changed(json!({"aud": {"scores": 1}})), "audience"),
        ("aud an empty list", changed(json!({"aud": []})), "audience"),
        ("aud of mixed types", changed(json!({"aud": ["scores", 1]})), "audience"),
        ("aud of which ours is the beginning", changed(json!({"aud": "scores2"})), "audience"),
        ("aud that is the beginning of ours", changed(json!({"aud": ["score"]})), "audience"),
        ("aud of several", changed(json!({"aud": ["x", "https://scores.example"]})), SHOP),
        ("no sub", changed(json!({"sub": null})), "subject"),
        ("sub empty", changed(json!({"sub": ""})), "subject"),
        ("sub a number", changed(json!({"sub": 1})), "subject"),
        ("no exp", changed(json!({"exp": null})), "expiry"),
        ("exp a text", changed(json!({"exp": (NOW + 300).to_string()})), "expiry"),
        ("exp a bool", changed(json!({"exp": true})), "expiry"),
        ("exp null", raw("exp", "null"), "expiry"),
        ("exp negative", changed(json!({"exp": -1})), "expiry"),
        ("exp far away", changed(json!({"exp": u64::MAX})), "expiry"),
        ("exp very far away", raw("exp", "1e18"), "expiry"),
        ("exp beyond all numbers", raw("exp", "1e400"), "payload"),
        ("exp in the year 9999", changed(json!({"exp": 253_402_300_799_u64})), "lifetime"),
        ("exp with a fraction", changed(json!({"exp": NOW as f64 + 0.5})), SHOP),
        ("exp within the leeway", changed(json!({"exp": NOW - 50, "iat": NOW - 100})), SHOP),
        ("exp at the end of the leeway", changed(json!({"exp": NOW - 60, "iat": NOW - 100})), "expired"),
        ("exp long ago", changed(json!({"exp": NOW - 999, "iat": NOW - 1_000})), "expired"),
        ("exp long ago, and no iat", changed(json!({"exp": NOW - 999, "iat": null})), "expired"),
        ("expired and for somebody else", changed(json!({"exp": 9, "iat": 1, "aud": "x"})), "audience"),
        ("expired and revoked", changed(json!({"exp": 9, "iat": 1, "jti": "revoked"})), "revoked"),
        ("nbf to come", changed(json!({"nbf": NOW + 61})), "not_before"),
        ("nbf within the leeway", changed(json!({"nbf": NOW + 60})), SHOP),
        ("nbf a text", changed(json!({"nbf": "0"})), "not_before"),
        ("nbf null", raw("nbf", "null"), "not_before"),
        ("iat to come", changed(json!({"iat": NOW + 61})), "issued_at"),
        ("iat within the leeway", changed(json!({"iat": NOW + 60})), SHOP),
        ("iat a text", changed(json!({"iat": "0"})), "issued_at"),
        ("no iat", changed(json!({"iat": null})), SHOP),
        ("exp before iat", changed(json!({"exp": NOW + 10, "iat": NOW + 20})), "lifetime"),
        ("exp at iat", changed(json!({"exp": NOW, "iat": NOW})), "lifetime"),
        ("valid for a day", changed(json!({"exp": NOW + 86_400})), SHOP),
        ("valid for too long", changed(json!({"exp": NOW + 86_461})), "lifetime"),
        ("valid for too long, and no iat", changed(json!({"exp": NOW + 86_461, "iat": null})), "lifetime"),
        ("jti a number", changed(json!({"jti": 1})), "token_id"),
        ("jti on the deny list", changed(json!({"jti": "revoked"})), "revoked"),
        ("jti in the deny list's last line", changed(json!({"jti": "t9"})), "revoked"),
        ("no jti", changed(json!({"jti": null})), SHOP),
        ("scope a number", changed(json!({"scope": 1})), "scope_claim"),
        ("scope a list of mixed types", changed(json!({"scope": ["score:predict", 1]})), "scope_claim"),
        ("scp null", changed(json!({"scope": null})).replacen('{', r#"{"scp":null,"#, 1), "scope_claim"),
        ("tenant a number", changed(json!({"tenant": 1})), "tenant"),
        ("tenant empty", changed(json!({"tenant": ""})), "tenant"),
        ("plan a number", changed(json!({"plan": 1})), "plan"),
        ("plan empty", changed(json!({"plan": ""})), "plan"),
    ] {
        check(&tokens, &signer, (what, header().to_string(), payload, expected)).await;
    }
}

#[tokio::test]
async fn what_the_caller_may_do() {
    let (files, signer) = (Files::new(), Signer::p256());
    let own = IssuerSettings {
        issuer: "https://other.example".into(),
        scope_claim: Some("permissions".into()),
        tenant_claim: "org".into(),
        plan_claim: "tier".into(),
        ..files.settings(&[signer.jwk("k1")])
    };
    let tokens = Tokens::open(&[files.settings(&[signer.jwk("k1")]), own], None, None).unwrap();
    let predict = vec![Scope::ScorePredict];
    for (changes, scopes, tenant) in [
        (json!({}), predict.clone(), None),
        (json!({"scope": null, "scp": ["score:predict", "x"]}), predict.clone(), None),
        (json!({"scope": "models:read  score:predict"}), vec![Scope::ScorePredict, Scope::ModelsRead], None),
        (json!({"scope": "score:predict", "scp": "models:read"}), predict.clone(), None),
        (json!({"scope": "score:predicts score:PREDICT ascore:predict"}), vec![], None),
        (json!({"scope": ["score:predict models:read"]}), vec![], None),
        (json!({"scope": null}), vec![], None),
        (json!({"scope": ""}), vec![], None),
        (json!({"tenant": "acme"}), predict.clone(), Some("acme")),
        (json!({"iss": "https://other.example", "org": "acme", "tenant": 1}), vec![], Some("acme")),
        (json!({"iss": "https://other.example", "permissions": "score:predict", "scope": 1}), predict, None),
    ] {
        let token = signer.token(&header().to_string(), &with(claims(), changes.clone()));
        let caller = tokens.verify(&token, None, at(NOW)).await.unwrap();
        let found: Vec<Scope> = Scope::ALL.into_iter().filter(|scope| caller.may(*scope)).collect();
        assert_eq!((found, caller.tenant()), (scopes, tenant), "{changes}");
    }
    let token = signer.token(&header().to_string(), &claims().to_string());
    let caller = tokens.verify(&token, None, at(NOW)).await.unwrap();
    assert!(caller.may_use("churn") && !caller.may_use("other"));
    assert_eq!(caller.plan(), None);
    for (claims_of_plan, plan) in [
        (json!({"plan": "free"}), "free"),
        (json!({"iss": "https://other.example", "tier": "gold", "plan": 1}), "gold"),
    ] {
        let token = signer.token(&header().to_string(), &with(claims(), claims_of_plan));
        assert_eq!(tokens.verify(&token, None, at(NOW)).await.unwrap().plan(), Some(plan));
    }
}

#[tokio::test]
async fn tokens_bound_to_a_certificate() {
    let (files, signer) = (Files::new(), Signer::p256());
    let tokens = Tokens::open(&[files.settings(&[signer.jwk("k1")])], None, None).unwrap();
    let certificate = |bytes: &[u8]| ClientCertificate {
        sha256: thumbprint(bytes).0,
        dns: Vec::new(),
        uris: Vec::new(),
        common_name: None,
    };
    let (own, other) = (certificate(b"own"), certificate(b"other"));
    let digest = thumbprint(b"own").1;
    for (what, cnf, shown, expected) in [
        ("its own", json!({"x5t#S256": digest}), Some(&own), SHOP),
        ("its own, but expired", json!({"x5t#S256": digest}), Some(&own), "expired"),
        ("another", json!({"x5t#S256": digest}), Some(&other), "certificate"),
        ("none", json!({"x5t#S256": digest}), None, "certificate"),
        ("of the older kind", json!({"x5t": digest}), Some(&own), "confirmation"),
        ("by another key too", json!({"x5t#S256": digest, "jkt": "x"}), Some(&own), "confirmation"),
        ("by another key", json!({"jwk": {}}), Some(&own), "confirmation"),
        ("by nothing", json!({}), Some(&own), "confirmation"),
        ("by a text", json!("x"), Some(&own), "confirmation"),
        ("by a number", json!({"x5t#S256": 1}), Some(&own), "confirmation"),
        ("by too little", json!({"x5t#S256": &digest[..40]}), Some(&own), "confirmation"),
        ("with padding", json!({"x5t#S256": format!("{digest}=")}), Some(&own), "confirmation"),
    ] {
        let token = signer.token(&header().to_string(), &with(claims(), json!({"cnf": cnf})));
        let now = if expected == "expired" { NOW + 360 } else { NOW };
        // The second time it is asked again: nothing was remembered.
        for _ in 0..2 {
            assert_eq!(told(tokens.verify(&token, shown, at(now)).await), expected, "{what}");
        }
    }
    let token = signer.token(&header().to_string(), &with(claims(), json!({"cnf": {"x5t#S256": digest}})));
    assert_eq!(told(tokens.verify(&token, Some(&own), at(NOW)).await), SHOP);
    assert_eq!(told(tokens.verify(&token, Some(&other), at(NOW)).await), "certificate");
    assert_eq!(told(tokens.verify(&token, None, at(NOW)).await), "certificate");
}

#[tokio::test]
async fn every_algorithm_and_no_confusion_of_them() {
    let (rsa, p256, p384, ed25519) = (Signer::rsa(), Signer::p256(), Signer::p384(), Signer::ed25519());
    let files = Files::new();
    let secret = b"0123456789abcdef0123456789abcdef".to_vec();
    let secret_file = files.write("secret", [&secret[..], b"\n"].concat());
    let oct = Signer::Secret(b"fedcba9876543210fedcba9876543210".to_vec());
    let only = |kid, signer: &Signer, alg: &str| {
        let mut jwk = signer.jwk(kid);
        jwk["alg"] = alg.into();
        jwk
    };
    let keys = [
        rsa.jwk("rsa"),
        p256.jwk("p256"),
        p384.jwk("p384"),
        ed25519.jwk("ed"),
        oct.jwk("oct"),
        only("only", &rsa, "PS256"),
        p256.jwk("twin"),
        Signer::p256().jwk("twin"),
    ];
    let mut settings = files.settings(&keys);
    settings.hs256_secret_file = Some(secret_file);
    settings.algorithms.push(Algorithm::HS256);
    let tokens = Tokens::open(&[settings.clone()], None, None).unwrap();
    let point = &URL_SAFE_NO_PAD.decode(rsa.jwk("")["n"].as_str().unwrap()).unwrap();
    for (alg, kid, signer, expected) in [
        ("RS256", Some("rsa"), &rsa, SHOP),
        ("RS384", Some("rsa"), &rsa, SHOP),
        ("RS512", Some("rsa"), &rsa, SHOP),
        ("PS256", Some("rsa"), &rsa, SHOP),
        ("PS384", Some("rsa"), &rsa, SHOP),
        ("PS512", Some("rsa"), &rsa, SHOP),
        ("ES256", Some("p256"), &p256, SHOP),
        ("ES384", Some("p384"), &p384, SHOP),
        ("EdDSA", Some("ed"), &ed25519, SHOP),
        ("Ed25519", Some("ed"), &ed25519, SHOP),
        ("HS256", None, &Signer::Secret(secret.clone()), SHOP),
        ("HS256", Some("whatever"), &Signer::Secret(secret.clone()), SHOP),
        ("HS256", None, &Signer::Secret(Vec::new()), "signature"),
        ("HS256", Some("rsa"), &Signer::Secret(point.clone()), "signature"),
        ("HS256", Some("oct"), &oct, "signature"),
        ("HS384", None, &Signer::Secret(secret), "algorithm"),
        ("PS256", Some("only"), &rsa, SHOP),
        ("RS256", Some("only"), &rsa, "key_mismatch"),
        ("RS256", Some("p256"), &rsa, "key_mismatch"),
        ("ES256", Some("rsa"), &p256, "key_mismatch"),
        ("ES256", Some("p384"), &p384, "key_mismatch"),
        ("ES256", Some("oct"), &p256, "unknown_key"),
        ("RS256", None, &rsa, SHOP),
        ("PS256", None, &rsa, "ambiguous_key"),
        ("ES256", None, &p256, "ambiguous_key"),
        ("ES256", Some("twin"), &p256, SHOP),
    ] {
        let mut header = json!({"typ": "at+jwt", "alg": alg});
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        check(&tokens, signer, (alg, header.to_string(), claims().to_string(), expected)).await;
    }
    settings.algorithms = vec![Algorithm::ES256];
    let tokens = Tokens::open(&[settings], None, None).unwrap();
    let header = json!({"typ": "at+jwt", "alg": "RS256", "kid": "rsa"}).to_string();
    check(&tokens, &rsa, ("not listed", header, claims().to_string(), "algorithm")).await;
}

#[test]
fn keys_that_are_used_and_keys_that_are_not() {
    let (rsa, p256, p384, ed25519) = (Signer::rsa(), Signer::p256(), Signer::p384(), Signer::ed25519());
    let changed = |signer: &Signer, changes| -> Value {
        serde_json::from_str(&with(signer.jwk("k"), changes)).unwrap()
    };
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let n = URL_SAFE_NO_PAD.decode(rsa.jwk("k")["n"].as_str().unwrap()).unwrap();
    let mut even = n.clone();
    even[255] &= 0xfe;
    let small = &n[..n.len() - 1];
    let zeros = [&[0, 0], &n[..]].concat();
    let point = URL_SAFE_NO_PAD.decode(p256.jwk("k")["x"].as_str().unwrap()).unwrap();
    let modulus = "its modulus is no odd number of 2048 to 8192 bits";
    let exponent = "its exponent is no odd number from 3 to 2^32";
    let none = "its kty and crv are none of RSA, P-256, P-384 and Ed25519";
    let number = "a number of it is missing or no base64url";
    let alg = "its alg is no signature by such a key";
    let length = "its coordinates do not have the length of its curve's";
    for (key, expected) in [
        (rsa.jwk("k"), None),
        (p256.jwk("k"), None),
        (p384.jwk("k"), None),
        (ed25519.jwk("k"), None),
        (changed(&rsa, json!({"n": text(&zeros)})), None),
        (
            changed(
                &rsa,
                json!({"kid": null, "use": "sig", "key_ops": ["verify"], "alg": "PS512", "x5c": []}),
            ),
            None,
        ),
        (changed(&p256, json!({"alg": "ES256"})), None),
        (changed(&ed25519, json!({"alg": "Ed25519"})), None),
        (changed(&rsa, json!({"n": text(small)})), Some(modulus)),
        (changed(&rsa, json!({"n": text(&even)})), Some(modulus)),
        (changed(&rsa, json!({"n": text(&[0xff; 1025])})), Some(modulus)),
        (changed(&rsa, json!({"n": ""})), Some(modulus)),
        (changed(&rsa, json!({"n": format!("{}=", text(&n))})), Some(number)),
        (changed(&rsa, json!({"n": null})), Some(number)),
        (changed(&rsa, json!({"n": 1})), Some(number)),
        (changed(&rsa, json!({"e": "AQ"})), Some(exponent)),
        (changed(&rsa, json!({"e": "Ag"})), Some(exponent)),
        (changed(&rsa, json!({"e": ""})), Some(exponent)),
        (changed(&rsa, json!({"e": text(&[1, 0, 0, 0, 1])})), Some(exponent)),
        (changed(&rsa, json!({"use": "enc"})), Some("it is not for signatures")),
        (changed(&rsa, json!({"use": 1})), Some("it is not for signatures")),
        (changed(&rsa, json!({"key_ops": ["sign"]})), Some("its key_ops do not allow to verify")),
        (changed(&rsa, json!({"key_ops": "verify"})), Some("its key_ops do not allow to verify")),
        (changed(&rsa, json!({"kid": 1})), Some("its kid is no text")),
        (changed(&rsa, json!({"alg": "RSA-OAEP"})), Some(alg)),
        (changed(&rsa, json!({"alg": "ES256"})), Some(alg)),
        (changed(&rsa, json!({"alg": "HS256"})), Some(alg)),
        (changed(&rsa, json!({"alg": 1})), Some(alg)),
        (changed(&rsa, json!({"d": "AQ"})), Some("it is a private or shared key")),
        (changed(&p256, json!({"crv": "P-384"})), Some(length)),
        (changed(&p256, json!({"crv": "secp256k1"})), Some(none)),
        (changed(&p256, json!({"crv": null})), Some(none)),
        (changed(&p256, json!({"alg": "ES384"})), Some(alg)),
        (changed(&p256, json!({"x": text(&point[..31])})), Some(length)),
        (changed(&p256, json!({"x": text(&[1; 32])})), Some("its point is not on its curve")),
        (changed(&p384, json!({"y": text(&[0; 48])})), Some("its point is not on its curve")),
        (changed(&ed25519, json!({"x": text(&[1; 31])})), Some("it is no Ed25519 key")),
        (changed(&ed25519, json!({"crv": "X25519"})), Some(none)),
        (Signer::Secret(vec![7; 32]).jwk("k"), Some("it is a private or shared key")),
        (json!({"kty": "oct"}), Some(none)),
        (json!({}), Some(none)),
    ] {
        let found = KeySet::parse(jwks(std::slice::from_ref(&key)).as_bytes()).map(|set| set.len());
        let expected = expected.map_or(Ok(1), |why| Err(jwk::Error::NoneUsable { found: 1, why }));
        assert_eq!(found, expected, "{key}");
    }
    let many = |keys: usize| jwks(&vec![p256.jwk("k"); keys]);
    for (document, expected) in [
        (many(100), Ok(100)),
        (many(101), Err(jwk::Error::TooMany(101))),
        (jwks(&[json!({}), p256.jwk("k")]), Ok(1)),
        // All keys withdrawn.
        (jwks(&[]), Ok(0)),
        (json!({"keys": {}}).to_string(), Err(jwk::Error::NotASet)),
        (json!({"keys": [1]}).to_string(), Err(jwk::Error::NotASet)),
        ("[]".into(), Err(jwk::Error::NotASet)),
        ("<html>".into(), Err(jwk::Error::NotASet)),
        (format!("{{\"keys\":[],\"keys\":[{}]}}", p256.jwk("k")), Err(jwk::Error::NotASet)),
    ] {
        assert_eq!(KeySet::parse(document.as_bytes()).map(|set| set.len()), expected, "{document:.100}");
    }
}

#[test]
fn secrets_are_long_enough() {
    let secret = [b's'; 32];
    for (text, expected) in [
        (secret.to_vec(), Ok(1)),
        ([&secret[..], b"\n"].concat(), Ok(1)),
        ([&secret[..], b"\r\n"].concat(), Ok(1)),
        ([&secret[..31], b"\n"].concat(), Err(jwk::Error::ShortSecret(31))),
        (b"\n".to_vec(), Err(jwk::Error::ShortSecret(0))),
        (Vec::new(), Err(jwk::Error::ShortSecret(0))),
    ] {
        let found = KeySet::of_secret(&text);
        assert_eq!(found.as_ref().map(KeySet::len), expected.as_ref().copied(), "{text:?}");
        assert!(!format!("{found:?}").contains("115, 115"), "a secret that is shown: {found:?}");
    }
    let files = Files::new();
    let mut settings = settings(KeyLocation::Nowhere);
    settings.hs256_secret_file = Some(files.write("secret", "short"));
    let refused = Tokens::open(&[settings], None, None).unwrap_err().to_string();
    assert!(refused.ends_with("secret: found a secret of 5 bytes, expected at least 32"), "{refused}");
}

#[test]
fn reasons_have_names_of_their_own() {
    let mut names: Vec<&str> = Reason::ALL.into_iter().map(Reason::as_str).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
}
