//! Access tokens on a real listener: every way of getting them wrong, what holds, scopes, early revocation, introspection.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::support::authority::{Authority, Reply};
use crate::support::forged::{Forged, forged};
use crate::support::tls;
use crate::support::tokens::{AUDIENCE, Key, Mint, decode, encode, key_set, now, segments, twin};
use crate::support::world::{OPAQUE, PLAIN, SECRET, World, active, bearer, introspection, opaque, world};
use crate::support::{
    Answer, CANARY, Client, PREDICT, REFERENCE, Request, Settings, complaints, wait_for, wait_within,
};

/// How soon a change of a file has to be taken up.
const SOON: Duration = Duration::from_secs(5);

/// A problem document without what differs from request to request.
fn same(answer: &Answer) -> Value {
    let mut document = answer.json();
    document["request_id"] = Value::Null;
    document
}

#[test]
fn every_forged_token_is_refused_alike() {
    // Of its own: what others are refused for would be counted here. Nobody is asked about tokens, so that all that can be
    // wrong with one has to be seen.
    let world = World::with(false);
    let valid = world.mint().token();
    assert_eq!(world.ask(&valid).status, 200);
    let refused = world.ask(&world.mint().alg("none").with_signature(|_| Vec::new()));
    let expected = same(&refused);
    assert_eq!(expected["code"], "invalid_token");
    let fetched = world.authority.count("/plain");

    let cases = forged(&world);
    let (mut wrong, mut told) = (Vec::new(), Vec::new());
    println!("\n{:<24} token", "reason");
    for Forged { name, token, reason } in &cases {
        let before = world.reasons();
        let answer = world.ask(token);
        let mut complaints = complaints(&answer);
        if (answer.status, answer.all("www-authenticate"))
            != (401, vec![world.challenge("error=\"invalid_token\"").as_str()])
        {
            complaints.push(format!("{} {:?}", answer.status, answer.all("www-authenticate")));
        }
        if same(&answer) != expected {
            complaints.push("another body than the others".into());
        }
        if token.split('.').any(|segment| segment.len() > 8 && answer.text().contains(segment)) {
            complaints.push("a part of the token is in the answer".into());
        }
        let after = world.reasons();
        let counted: Vec<&String> = after
            .iter()
            .filter(|(reason, count)| before.get(*reason) != Some(*count))
            .map(|(reason, _)| reason)
            .collect();
        println!("{:<24} {name}", counted.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(" "));
        if counted != [reason] {
            complaints.push(format!("expected the reason {reason}, found {counted:?}"));
        }
        told.push((answer.json()["request_id"].clone(), *reason));
        if !complaints.is_empty() {
            wrong.push(format!("{name}: {}\n    {}", complaints.join("; "), answer.text()));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));

    assert_eq!(world.trap.connections(), 0, "somebody believed where a token said that its key is");
    let fetched = world.authority.count("/plain") - fetched;
    assert!(fetched <= 1, "unknown keys made {fetched} fetches");
    assert_eq!(world.ask(&valid).status, 200);
    // The log tells the operator what nobody else is told.
    let log = wait_for("the last refusal in the log", || {
        let log = world.gateway.log();
        let (last, _) = told.last().unwrap();
        log.iter().any(|line| line.contains(last.as_str().unwrap())).then_some(log)
    });
    let lines: BTreeMap<String, String> = log
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "credential refused")
        .map(|line| (line["request_id"].to_string(), line["reason"].as_str().unwrap().to_owned()))
        .collect();
    for (id, reason) in told {
        assert_eq!(lines.get(&id.to_string()).map(String::as_str), Some(reason), "{id}");
    }
    // Whom a token that holds is from, the line of its request says: the issuer and the subject.
    let log = log.join("\n").replace(&format!("#{CANARY}\",\"model\""), "");
    assert!(!log.contains(CANARY), "a claim is in the log:\n{log}");
    for Forged { name, token, .. } in &cases {
        let parts = token.split('.').filter(|part| part.len() > 16);
        assert!(
            parts.into_iter().all(|part| !log.contains(part)),
            "{name}: a part of the token is in the log"
        );
    }
}

#[test]
fn what_holds_is_accepted() {
    let world = world();
    let mint = || world.mint();
    let rsa = |alg| Mint::new(&world.rsa, PLAIN).alg(alg);
    let of_secret = || Mint::new(&world.secret, SECRET);
    let valid = mint().token();
    let [header, payload, signature] = segments(&valid);
    let mut cases = vec![
        ("ES256", mint().token()),
        ("ES256 by another key", Mint::new(&world.p256_too, PLAIN).token()),
        ("ES384", Mint::new(&world.p384, PLAIN).token()),
        ("EdDSA", Mint::new(&world.ed25519, PLAIN).token()),
        ("RS256 by a key of RS256", Mint::new(&world.only_rs256, PLAIN).token()),
        ("HS256", of_secret().token()),
        ("HS256 without kid", of_secret().without_header("kid").token()),
        ("ES256 beside HS256", Mint::new(&world.p256, SECRET).token()),
        ("the same once more", valid.clone()),
        (
            "the other signature that holds",
            format!("{header}.{payload}.{}", encode(twin(&decode(signature)))),
        ),
        ("no kid and one key that fits", Mint::new(&world.p384, PLAIN).without_header("kid").token()),
        (
            "no kid and one key that fits, EdDSA",
            Mint::new(&world.ed25519, PLAIN).without_header("kid").token(),
        ),
        ("typ with its prefix", mint().header("typ", json!("application/at+jwt")).token()),
        ("typ in capitals", mint().header("typ", json!("AT+JWT")).token()),
        ("a header with what nobody knows", mint().header("x", json!({"y": [1]})).token()),
        (
            "a header with a URL that nobody follows",
            mint().header("jku", json!(format!("{}/jwks", world.trap.url()))).token(),
        ),
        (
            "expired within leeway",
            mint().claim("iat", json!(now() - 300)).claim("exp", json!(now() - 50)).token(),
        ),
        ("not yet valid within leeway", mint().claim("nbf", json!(now() + 50)).token()),
        ("made in the future within leeway", mint().claim("iat", json!(now() + 50)).token()),
        ("nbf in the past", mint().claim("nbf", json!(now() - 1_000)).token()),
        ("a fraction of a second", mint().claim("exp", json!(now() as f64 + 299.5)).token()),
        ("without iat, jti and client_id", mint().without("iat").without("jti").without("client_id").token()),
        ("several audiences", mint().claim("aud", json!(["urn:x", AUDIENCE])).token()),
        ("the second audience", mint().claim("aud", json!("urn:second")).token()),
        ("scp as a list", mint().without("scope").claim("scp", json!(["x", "score:predict"])).token()),
        ("scp as a text", mint().without("scope").claim("scp", json!("score:predict x")).token()),
        ("scope as a list", mint().claim("scope", json!(["score:predict"])).token()),
        (
            "claims that nobody knows",
            mint().claim("x", json!({"exp": "1", "iss": [1], "y": [[[{}]]]})).token(),
        ),
        (
            "spaces in its JSON",
            mint().token_of(
                mint().header_text().replace(',', " ,\n "),
                mint().claims_text().replace(',', " ,\t "),
            ),
        ),
        ("an issuer that is told otherwise", world.other().token()),
        ("without typ where that may be", world.other().without_header("typ").token()),
        ("a tenant", mint().claim("tenant", json!("north")).token()),
        ("opaque", opaque(&active())),
        ("opaque, the same once more", opaque(&active())),
    ];
    for alg in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        cases.push((alg, rsa(alg).token()));
    }
    let wrong: Vec<String> = cases
        .iter()
        .map(|(name, token)| (name, world.ask(token)))
        .filter(|(_, answer)| answer.status != 200)
        .map(|(name, answer)| format!("{name}: {}", answer.text()))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    for scheme in ["bearer", "BEARER", "bEaReR  "] {
        let request = Request::post(PREDICT, REFERENCE).header("Authorization", format!("{scheme} {valid}"));
        assert_eq!(world.gateway.ask(&request).status, 200, "{scheme}");
    }
    assert_eq!(world.trap.connections(), 0);
}

#[test]
fn only_an_expired_token_is_told_apart() {
    let world = world();
    let forged = world.ask(&world.mint().with_signature(|_| vec![1; 64]));
    let expired = world.mint().claim("iat", json!(now() - 900)).claim("exp", json!(now() - 70));
    let less_leeway = world.other().claim("iat", json!(now() - 300)).claim("exp", json!(now() - 10));
    for (name, token) in
        [("67 expired", expired.token()), ("67 expired, of an issuer with less leeway", less_leeway.token())]
    {
        let answer = world.ask(&token);
        assert_eq!(complaints(&answer), Vec::<String>::new(), "{name}");
        assert_eq!(
            (answer.status, answer.code()),
            (401, "invalid_token".into()),
            "{name}: {}",
            answer.text()
        );
        let challenges = answer.all("www-authenticate");
        assert_eq!(challenges.len(), 1, "{challenges:?}");
        for parameter in [
            "error=\"invalid_token\"",
            "error_description=\"the access token has expired\"",
            "resource_metadata=\"",
        ] {
            assert!(
                challenges[0].starts_with("Bearer ") && challenges[0].contains(parameter),
                "{challenges:?}"
            );
        }
        let (mut expired, mut forged) = (same(&answer), same(&forged));
        assert_ne!(expired["detail"], forged["detail"], "{name}");
        (expired["detail"], forged["detail"]) = (Value::Null, Value::Null);
        assert_eq!(expired, forged, "{name}: they differ in detail alone");
    }
}

#[test]
fn a_remembered_token_expires() {
    let world = world();
    // The issuer whose leeway is five seconds.
    let token = world.other().claim("iat", json!(now() - 60)).claim("exp", json!(now() - 2)).token();
    assert_eq!(world.ask(&token).status, 200, "within leeway");
    let gone = wait_within(Duration::from_secs(10), || (world.ask(&token).status == 401).then_some(now()));
    assert!(gone.is_some(), "a remembered token holds beyond its time");
}

#[test]
fn malformed_requests_are_told_so() {
    let world = world();
    let mint = world.mint();
    let valid = mint.token();
    let [header, payload, signature] = segments(&valid);
    let long = |bytes: usize| {
        let plain = mint.clone().claim("x", json!("")).token().len();
        mint.clone().claim("x", json!("x".repeat((bytes - plain) * 3 / 4))).token()
    };
    let at_limit = long(8 * 1024 - 10);
    assert!(
        at_limit.len() > 8 * 1024 - 64 && at_limit.len() + "Bearer ".len() <= 8 * 1024,
        "{}",
        at_limit.len()
    );
    assert_eq!(world.ask(&at_limit).status, 200, "a token of nearly 8 KiB");
    let million_dots = ".".repeat(1_000_000);
    for (name, token, status, code) in [
        ("8 above 8 KiB", long(8 * 1024 + 64), 431, "credential_too_large"),
        (
            "8 kid of 16 KiB",
            mint.clone().header("kid", json!("k".repeat(16 * 1024))).token(),
            431,
            "credential_too_large",
        ),
        ("7 comma", format!("{valid},{valid}"), 400, "invalid_request"),
        ("7 space", format!("{header} {payload} {signature}"), 400, "invalid_request"),
        (
            "24 JSON serialisation",
            json!({"protected": header, "payload": payload, "signature": signature}).to_string(),
            400,
            "invalid_request",
        ),
        (
            "51 payload not encoded",
            format!("{header}.{}.{signature}", mint.claims_text()),
            400,
            "invalid_request",
        ),
    ] {
        let answer = world.ask(&token);
        assert_eq!(complaints(&answer), Vec::<String>::new(), "{name}");
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{name}: {}", answer.text());
        if status == 400 {
            assert_eq!(
                answer.all("www-authenticate"),
                [world.challenge("error=\"invalid_request\"")],
                "{name}"
            );
        }
    }
    // More than a head may be: refused before anybody looks at the token.
    assert_eq!(world.ask(&million_dots).status, 431, "8 a million dots");
    let twice = bearer(&valid).header("X-Api-Key", &world.gateway.key);
    assert_eq!(world.gateway.ask(&twice).status, 400, "5 a token and a key");
    let in_query = Request::post(&format!("{PREDICT}?access_token={valid}"), REFERENCE);
    assert_eq!(world.gateway.ask(&in_query).status, 400, "6 a token in the query");
}

#[test]
fn a_token_does_what_its_scopes_and_models_allow() {
    let world = world();
    let of = |scope: &str| world.mint().claim("scope", json!(scope)).token();
    let ask = |request: Request, token: &str| {
        world.gateway.ask(&request.header("Authorization", format!("Bearer {token}")))
    };
    let predict = || Request::post(PREDICT, REFERENCE);
    let refused = |name: &str, answer: Answer, scope: &str| {
        assert_eq!(complaints(&answer), Vec::<String>::new(), "{name}");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "insufficient_scope"),
            "{name}: {}",
            answer.text()
        );
        let parameters = format!("error=\"insufficient_scope\", scope=\"{scope}\"");
        assert_eq!(answer.all("www-authenticate"), [world.challenge(&parameters)], "{name}");
    };
    for scope in [
        "",
        " ",
        "models:read",
        "score",
        "score:predic",
        "score:predictx",
        "xscore:predict",
        "score:predict2",
        "predict",
        "score:*",
        "*",
        "Score:Predict",
        "SCORE:PREDICT",
        "score:predict,models:read",
        "score:predict\tmodels:read",
        "model:churn",
    ] {
        refused(&format!("78–80 {scope:?}"), ask(predict(), &of(scope)), "score:predict");
    }
    refused("78 no scope", ask(predict(), &world.mint().without("scope").token()), "score:predict");
    refused(
        "78 an empty list",
        ask(predict(), &world.mint().claim("scope", json!([])).token()),
        "score:predict",
    );
    refused(
        "79 two in one member",
        ask(predict(), &world.mint().claim("scope", json!(["models:read score:predict"])).token()),
        "score:predict",
    );
    let claim_of_others = world.other().without("permissions").claim("scope", json!("score:predict"));
    refused(
        "the scopes of another claim than the issuer's",
        ask(predict(), &claim_of_others.token()),
        "score:predict",
    );
    for target in ["/v1/metadata", "/v1/models", "/v1/models/churn", "/v1/models/churn/versions"] {
        refused(target, ask(Request::get(target), &of("score:predict")), "models:read");
        assert_eq!(ask(Request::get(target), &of("models:read")).status, 200, "{target}");
    }
    refused(
        "batch",
        ask(Request::post("/v1/predict/batch", format!("[{REFERENCE}]")), &of("models:read")),
        "score:predict",
    );

    // Admin routes are on their own listener and take their own scope.
    let mut admin = Client::connect(world.gateway.admin_addr);
    let rollout = |token: &str| {
        Request::new("PUT", "/v1/models/churn/rollout")
            .header("Content-Type", "application/json")
            .header("Authorization", format!("Bearer {token}"))
            .header("Content-Length", "2")
            .body("{}")
    };
    refused(
        "81 an admin route with the scope to predict",
        admin.ask(&rollout(&of("score:predict models:read"))),
        "models:write",
    );
    let write = of("models:write");
    let answer = admin.ask(&rollout(&write));
    assert!(
        answer.status != 401 && answer.status != 403,
        "past admission, up to the body: {}",
        answer.text()
    );
    // The rollout may be read there.
    assert_eq!(world.gateway.ask(&rollout(&write)).status, 405, "no admin route is public");

    // Models.
    let of_churn = of("score:predict models:read model:churn");
    assert_eq!(ask(Request::post("/v1/models/churn/predict", REFERENCE), &of_churn).status, 200);
    for target in ["/v1/models/saas_churn/predict", "/v1/models/nobody/predict"] {
        let answer = ask(Request::post(target, REFERENCE), &of_churn);
        assert_eq!((answer.status, answer.code().as_str()), (403, "model_not_allowed"), "{target}");
        assert!(answer.all("www-authenticate")[0].contains("error=\"insufficient_scope\""), "{answer:?}");
    }
    let of_two = of("score:predict model:saas_churn model:churn");
    assert_eq!(ask(predict(), &of_two).status, 200);
    let of_no_model = of("score:predict model:");
    assert_eq!(ask(predict(), &of_no_model).status, 403, "a model without a name is no model");
    let listed = ask(Request::get("/v1/models"), &of_churn);
    assert!(listed.status == 200 && !listed.text().contains("saas_churn"), "{}", listed.text());
}

#[test]
fn the_deny_list_is_followed_within_five_seconds() {
    let mut world = World::new();
    let token = world.mint().claim("jti", json!("stolen")).token();
    let other = world.mint().claim("jti", json!("stolen-not")).token();
    let of_introspection = {
        let mut answer = active();
        answer["jti"] = json!("stolen");
        opaque(&answer)
    };
    let status = |world: &World, token: &str| world.ask(token).status;
    for token in [&token, &other, &of_introspection] {
        assert_eq!(status(&world, token), 200);
    }
    let file = world.gateway.settings.directory().join("denied.txt");
    fs::write(&file, "revoked-before-the-start\nstolen\n").unwrap();
    let revoked = wait_within(SOON, || (status(&world, &token) == 401).then_some(()));
    assert!(revoked.is_some(), "a revoked token that is remembered scores on");
    assert_eq!(status(&world, &of_introspection), 401, "an answer that is remembered");
    assert_eq!(status(&world, &other), 200);
    // A list that is gone is no pardon.
    fs::remove_file(&file).unwrap();
    let said = wait_within(SOON, || {
        world.gateway.log().iter().any(|line| line.contains("not changed")).then_some(())
    });
    assert!(said.is_some(), "nobody said that the list is gone");
    assert_eq!(status(&world, &token), 401);
    assert!(world.gateway.is_running());
}

#[test]
fn what_cannot_be_checked_is_told_when_to_come_again() {
    let authority = Authority::start();
    authority.set("/introspect", Reply::Close);
    authority.set("/keys", Reply::status(500));
    let settings = Settings::new();
    fs::write(settings.directory().join("client-secret.txt"), "sesame").unwrap();
    let url = authority.url();
    fs::write(
        settings.directory().join("scoregate.toml"),
        format!(
            "[[auth.issuer]]\nissuer = \"{PLAIN}\"\naudience = \"{AUDIENCE}\"\njwks = \"{url}/keys\"\n\
             [[auth.issuer]]\nissuer = \"{OPAQUE}\"\naudience = \"{AUDIENCE}\"\nintrospection = \"{url}/introspect\"\n\
             introspection_client_id = \"gateway\"\nintrospection_client_secret_file = \"client-secret.txt\"\n"
        ),
    )
    .unwrap();
    let gateway = settings.start();
    let key = Key::p256("p256");
    let token = Mint::new(&key, PLAIN).token();
    let unavailable = |name: &str, token: &str| {
        let answer = gateway.ask(&bearer(token));
        assert_eq!(complaints(&answer), Vec::<String>::new(), "{name}");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "credentials_unavailable"),
            "{name}: {}",
            answer.text()
        );
        let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&after), "{name}: {after}");
    };
    unavailable("83 no keys yet", &token);
    unavailable("84 introspection down", &opaque(&active()));
    for (name, token) in
        [("structure", "a.b.c".to_owned()), ("issuer", Mint::new(&key, "https://nobody.example").token())]
    {
        let answer = gateway.ask(&bearer(&token));
        assert!(
            answer.status == 401 || (name == "structure" && answer.status == 503),
            "{name}: {}",
            answer.text()
        );
    }
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200, "a key needs no authority");

    authority.set("/keys", Reply::Json(key_set([key.jwk()])));
    authority.set("/introspect", introspection());
    wait_for("the keys", || (gateway.ask(&bearer(&token)).status == 200).then_some(()));
    wait_for("introspection", || (gateway.ask(&bearer(&opaque(&active()))).status == 200).then_some(()));
}

#[test]
fn tokens_without_structure_are_asked_about() {
    let world = world();
    let with = |member: &str, value: Value| {
        let mut answer = active();
        answer[member] = value;
        opaque(&answer)
    };
    let without = |member: &str| {
        let mut answer = active();
        answer.as_object_mut().unwrap().shift_remove(member).unwrap();
        opaque(&answer)
    };
    for (name, token) in [
        ("76 inactive", with("active", json!(false))),
        ("76 unknown", "opaque-token-of-nobody".into()),
        ("76 a JWT that cannot be checked without asking", Mint::new(&world.p256, OPAQUE).token()),
        ("another issuer", with("iss", json!(PLAIN))),
        ("another audience", with("aud", json!("urn:x"))),
        ("no audience", without("aud")),
        ("expired", with("exp", json!(now() - 600))),
        ("exp as a text", with("exp", json!("1"))),
        ("not yet", with("nbf", json!(now() + 600))),
        ("no token of ours", with("token_type", json!("mac"))),
        ("sub a number", with("sub", json!(1))),
        ("bound to a certificate", with("cnf", json!({"x5t#S256": encode([7; 32])}))),
        ("bound to what is not known", with("cnf", json!({"jkt": "x"}))),
        ("revoked", with("jti", json!("revoked-before-the-start"))),
    ] {
        let answer = world.ask(&token);
        assert_eq!(complaints(&answer), Vec::<String>::new(), "{name}");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "invalid_token"),
            "{name}: {}",
            answer.text()
        );
    }
    // An answer that is none says nothing of the token.
    for (name, token) in [
        ("active as a text", with("active", json!("true"))),
        ("active as a number", with("active", json!(1))),
        ("without active", without("active")),
        ("a list", opaque(&json!([active()]))),
    ] {
        let answer = world.ask(&token);
        let found = (answer.status, answer.code());
        assert_eq!(found, (503, "credentials_unavailable".into()), "{name}: {}", answer.text());
    }
    let few = with("scope", json!("models:read"));
    assert_eq!(world.ask(&few).code(), "insufficient_scope");
    assert_eq!(world.ask(&without("iss")).status, 200, "whom it was asked of has issued it");
    assert_eq!(world.ask(&with("aud", json!(["urn:x", AUDIENCE]))).status, 200);

    // Asked once for as long as the answer is believed, then again; a no is believed, too.
    for (answer, status) in [(active(), 200), (json!({"active": false, "x": 1}), 401)] {
        let mut answer = answer;
        answer["once"] = json!(status);
        let token = opaque(&answer);
        let asked = || {
            world
                .authority
                .questions()
                .iter()
                .filter(|question| question.parameter("token").as_ref() == Some(&token))
                .count()
        };
        for _ in 0..20 {
            assert_eq!(world.ask(&token).status, status);
        }
        // Two seconds may have passed on a busy machine.
        assert!(asked() <= 3, "asked {} times", asked());
        if status == 200 {
            wait_for("the next question", || {
                world.ask(&token);
                (asked() >= 2).then_some(())
            });
        }
    }
}

#[test]
fn a_slow_introspection_holds_up_nobody_else() {
    let authority = Authority::start();
    authority.set("/introspect", Reply::Hang);
    authority.set("/keys", Reply::Json(key_set([])));
    let settings = Settings::new();
    fs::write(settings.directory().join("client-secret.txt"), "sesame").unwrap();
    let file = format!(
        "[[auth.issuer]]\nissuer = \"{OPAQUE}\"\naudience = \"{AUDIENCE}\"\nintrospection = \"{}/introspect\"\n\
         introspection_client_id = \"gateway\"\nintrospection_client_secret_file = \"client-secret.txt\"\n",
        authority.url()
    );
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let gateway = settings.start();
    let waiting: Vec<_> = (0..200)
        .map(|number| {
            let mut client = gateway.connect();
            client.send(bearer(&format!("opaque-{number}")).bytes());
            client
        })
        .collect();
    let start = std::time::Instant::now();
    for _ in 0..50 {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "held up for {:?}", start.elapsed());
    for mut client in waiting {
        let answer = client.answer().unwrap();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "credentials_unavailable"),
            "{}",
            answer.text()
        );
        assert!(answer.header("retry-after").is_some());
    }
}

#[test]
fn a_bound_token_holds_over_its_own_certificate_alone() {
    let authority = Authority::start();
    let key = Key::p256("key");
    authority.set("/keys", Reply::Json(key_set([key.jwk()])));
    authority.set("/introspect", introspection());
    let ca = tls::Authority::new("clients");
    let [own, another] =
        ["own", "another"].map(|common_name| ca.client(tls::Names { common_name, ..tls::Names::default() }));
    let settings =
        Settings::new().tls(&ca.server()).client_ca(&ca).set("SCOREGATE_TLS_CLIENT_AUTH", "optional");
    fs::write(settings.directory().join("client-secret.txt"), "sesame").unwrap();
    let url = authority.url();
    let file = format!(
        "[[auth.issuer]]\nissuer = \"{PLAIN}\"\naudience = \"{AUDIENCE}\"\njwks = \"{url}/keys\"\n\
         [[auth.issuer]]\nissuer = \"{OPAQUE}\"\naudience = \"{AUDIENCE}\"\nintrospection = \"{url}/introspect\"\n\
         introspection_client_id = \"gateway\"\nintrospection_client_secret_file = \"client-secret.txt\"\n"
    );
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let gateway = settings.start();
    let ask = |token: &str, shown: Option<&tls::Pair>| {
        tls::connect(gateway.addr, &ca.trusted(shown)).ask(&bearer(token))
    };
    let unbound = Mint::new(&key, PLAIN).token();
    wait_for("the keys", || (ask(&unbound, None).status == 200).then_some(()));
    assert_eq!(ask(&unbound, Some(&another)).status, 200, "a token that is not bound");

    let confirmation = json!({"x5t#S256": encode(digest(&SHA256, &own.der))});
    let mut answer = active();
    answer["cnf"] = confirmation.clone();
    for token in [Mint::new(&key, PLAIN).claim("cnf", confirmation).token(), opaque(&answer)] {
        // What was accepted once is not remembered for others.
        for (shown, status) in [(Some(&own), 200), (Some(&another), 401), (None, 401), (Some(&own), 200)] {
            let answer = ask(&token, shown);
            assert_eq!(answer.status, status, "{}", answer.text());
            if status == 401 {
                assert_eq!(answer.code(), "invalid_token");
                assert!(complaints(&answer).is_empty());
            }
        }
    }
    let mut client = tls::connect(gateway.addr, &ca.trusted(Some(&own)));
    let spoofed = bearer(
        &Mint::new(&key, PLAIN)
            .claim("cnf", json!({"x5t#S256": encode(digest(&SHA256, &another.der))}))
            .token(),
    );
    let spoofed = spoofed
        .header("X-Client-Cert", another.cert.replace('\n', ""))
        .header("X-Forwarded-Client-Cert", "Hash=x");
    assert_eq!(client.ask(&spoofed).status, 401, "a certificate in a header is no certificate");
}
