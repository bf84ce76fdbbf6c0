//! Tokens that do not hold: every way of getting one wrong but being too old.

use serde_json::{Value, json};

use super::CANARY;
use super::tokens::{AUDIENCE, Key, Mint, decode, encode, now, padded_digest, pem, segments, twin};
use super::world::{OTHER, PLAIN, SECRET, World};

/// A token that does not hold.
pub(crate) struct Forged {
    /// Its row and what is wrong with it.
    pub(crate) name: String,
    pub(crate) token: String,
    /// For which reason it has to be refused.
    pub(crate) reason: &'static str,
}

/// Every way of getting a token wrong but being too old.
pub(crate) fn forged(world: &World) -> Vec<Forged> {
    let mint = || world.mint();
    let valid = mint().token();
    let [header, payload, signature] = segments(&valid);
    let (header_text, claims_text) = (mint().header_text(), mint().claims_text());
    let mut all = Vec::new();
    let mut case = |name: &str, token: String, reason| all.push(Forged { name: name.into(), token, reason });

    // Structure.
    case("9 two segments", format!("{header}.{payload}"), "structure");
    case("9 one segment", header.into(), "structure");
    case("10 four segments", format!("{valid}.{signature}"), "structure");
    case("11 JWE", format!("{}.AA.AA.AA.AA", encode(r#"{"alg":"RSA-OAEP","enc":"A256GCM"}"#)), "structure");
    case("12 dots alone", "..".into(), "structure");
    case("12 no payload", format!("{header}..{signature}"), "payload");
    case("12 no header", format!(".{payload}.{signature}"), "structure");
    case("13 padding", format!("{valid}=="), "signature");
    let signed =
        |message: String| format!("{message}.{}", encode(world.p256.sign("ES256", message.as_bytes())));
    case("13 padded payload", signed(format!("{header}.{payload}=")), "payload");
    case("13 padded header", signed(format!("{header}=.{payload}")), "structure");
    let unsafe_alphabet =
        std::iter::repeat_with(|| mint().token()).find(|token| segments(token)[2].contains(['-', '_']));
    let (message, unsafe_signature) = unsafe_alphabet.as_deref().unwrap().rsplit_once('.').unwrap();
    let unsafe_signature = unsafe_signature.replace('-', "+").replace('_', "/");
    case("14 plus and slash", format!("{message}.{unsafe_signature}"), "signature");
    case("15 bits that are not canonical", non_canonical(&valid), "signature");
    let claims = (0..3).map(|count| mint().claim("x", json!("x".repeat(count))));
    let claims = claims.into_iter().find(|mint| mint.claims_text().len() % 3 != 0);
    let uncanonical = encode(claims.unwrap().claims_text());
    case(
        "15 bits that are not canonical in the payload",
        signed(format!("{header}.{}", non_canonical(&uncanonical))),
        "payload",
    );
    case("16 header not JSON", mint().token_of("alg", &claims_text), "structure");
    case("16 header an array", mint().token_of(r#"["ES256"]"#, &claims_text), "structure");
    case("16 header empty", mint().token_of("", &claims_text), "structure");
    case("17 payload an array", mint().token_of(&header_text, format!("[{claims_text}]")), "payload");
    case("17 payload a text", mint().token_of(&header_text, "\"claims\""), "payload");
    case("17 payload null", mint().token_of(&header_text, "null"), "payload");
    case("18 bytes after the payload", mint().token_of(&header_text, format!("{claims_text}x")), "payload");
    case("18 a second payload", mint().token_of(&header_text, format!("{claims_text}{{}}")), "payload");
    case(
        "18 bytes after the header",
        mint().token_of(format!("{header_text}{{}}"), &claims_text),
        "structure",
    );
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    case(
        "19 depth of 200",
        mint().token_of(&header_text, twice(&claims_text, &format!("\"x\":{deep}"))),
        "payload",
    );
    case(
        "19 depth of 200 in the header",
        mint().token_of(twice(&header_text, &format!("\"x\":{deep}")), &claims_text),
        "structure",
    );
    case(
        "20 exp twice",
        mint().token_of(&header_text, twice(&claims_text, &format!("\"exp\":{}", now() + 600))),
        "payload",
    );
    case(
        "20 exp twice, escaped",
        mint().token_of(&header_text, twice(&claims_text, &format!("\"\\u0065xp\":{}", now() + 600))),
        "payload",
    );
    case(
        "21 scope twice",
        mint().token_of(&header_text, twice(&claims_text, "\"scope\":\"models:write\"")),
        "payload",
    );
    case(
        "21 an unknown claim twice",
        mint()
            .claim("x", json!(1))
            .token_of(&header_text, twice(&mint().claim("x", json!(1)).claims_text(), "\"x\":2")),
        "payload",
    );
    case(
        "22 alg twice",
        mint().token_of(twice(&header_text, "\"alg\":\"ES256\""), &claims_text),
        "structure",
    );
    case("22 kid twice", mint().token_of(twice(&header_text, "\"kid\":\"p256\""), &claims_text), "structure");
    case(
        "23 no UTF-8",
        mint().token_of(
            &header_text,
            [claims_text.trim_end_matches('}').as_bytes(), b",\"x\":\"\xff\"}"].concat(),
        ),
        "payload",
    );
    case(
        "23 no UTF-8 in the header",
        mint().token_of(
            [header_text.trim_end_matches('}').as_bytes(), b",\"x\":\"\xff\"}"].concat(),
            &claims_text,
        ),
        "structure",
    );
    case(
        "24 JSON serialisation in base64",
        encode(json!({"protected": header, "payload": payload, "signature": signature}).to_string()),
        "structure",
    );

    // Cryptography.
    for none in ["none", "nOnE", "NONE", "None", ""] {
        let name = format!("25 alg {none:?}");
        case(&name, mint().alg(none).with_signature(|_| Vec::new()), "algorithm");
        case(
            &format!("{name} with a signature"),
            mint().alg(none).with_signature(|text| world.p256.sign("ES256", text)),
            "algorithm",
        );
    }
    case("27 alg missing", mint().without_header("alg").token(), "algorithm");
    case(
        "27 alg a number",
        mint().header("alg", json!(256)).with_signature(|text| world.p256.sign("ES256", text)),
        "algorithm",
    );
    for unlisted in ["ES512", "ES256K", "HS256", "HS384", "HS512", "es256", "RS1", "dir"] {
        let token = mint().alg(unlisted).with_signature(|text| world.p256.sign("ES256", text));
        case(&format!("28 alg {unlisted}"), token, "algorithm");
    }
    let rsa_of_other = Mint::new(&world.rsa, OTHER).header("typ", json!("JWT"));
    case("28 an algorithm that the issuer does not use", rsa_of_other.token(), "algorithm");
    for (issuer, reason) in [(PLAIN, "algorithm"), (SECRET, "signature")] {
        for key in [&world.rsa, &world.p256] {
            for der in key.public_der() {
                for (form, secret) in [("PEM", pem(&der).into_bytes()), ("DER", der.clone())] {
                    let confused = Key::secret(&key.kid, &secret);
                    case(
                        &format!("29 HS256 with the public {form} of {}, {issuer}", key.kid),
                        Mint::new(&confused, issuer).token(),
                        reason,
                    );
                }
            }
            let confused = Key::secret(&key.kid, key.jwk().to_string().as_bytes());
            case(
                &format!("30 HS256 with the JWK of {}, {issuer}", key.kid),
                Mint::new(&confused, issuer).token(),
                reason,
            );
        }
    }
    let unsigned = |signature: Vec<u8>| mint().with_signature(|_| signature);
    case("31 no signature", unsigned(Vec::new()), "signature");
    case("32 r and s are nought", unsigned(vec![0; 64]), "signature");
    case(
        "32 r and s are the order",
        unsigned([twin(&[0; 64]), twin(&[0; 64])].map(|bytes| bytes[32..].to_vec()).concat()),
        "signature",
    );
    case("33 ECDSA in DER", mint().with_signature(|text| world.p256.sign_der(text)), "signature");
    case(
        "34 another token's signature",
        format!("{}.{signature}", mint().token().rsplit_once('.').unwrap().0),
        "signature",
    );
    for at in [0, 31, 32, 63] {
        case(&format!("35 bit flipped in byte {at} of the signature"), flipped(&valid, 2, at), "signature");
    }
    // A bit within a text leaves the JSON what it is.
    let subject = claims_text.find(CANARY).unwrap();
    case("35 bit flipped in the subject", flipped(&valid, 1, subject), "signature");
    let of_key = |key: &Key, alg: &str, by: &Key, by_alg: &str| {
        mint().header("kid", json!(key.kid)).alg(alg).with_signature(|text| by.sign(by_alg, text))
    };
    case("36 ES256 for an RSA key", of_key(&world.rsa, "ES256", &world.p256, "ES256"), "key_mismatch");
    case("36 RS256 for an EC key", of_key(&world.p256, "RS256", &world.rsa, "RS256"), "key_mismatch");
    case("36 EdDSA for an EC key", of_key(&world.p256, "EdDSA", &world.ed25519, "EdDSA"), "key_mismatch");
    case(
        "36 PS256 for a key of RS256",
        of_key(&world.only_rs256, "PS256", &world.only_rs256, "PS256"),
        "key_mismatch",
    );
    case("37 RSA of 1,024 bits", world.weak.clone(), "unknown_key");
    let exponent_one = Mint::new(&world.rsa, PLAIN).header("kid", json!("exponent-one"));
    case(
        "38 an exponent of one",
        exponent_one.with_signature(|text| padded_digest(text, 256)),
        "unknown_key",
    );
    case("39 ES256 for P-384", of_key(&world.p384, "ES256", &world.p384, "ES384"), "key_mismatch");
    case("39 ES384 for P-256", of_key(&world.p256, "ES384", &world.p256, "ES256"), "key_mismatch");
    case(
        "39 a key with the wrong curve's name",
        mint().header("kid", json!("wrong-curve")).token(),
        "unknown_key",
    );
    case("40 oct of the set", Mint::new(&world.octets, SECRET).token(), "signature");
    case("40 oct of the set where no secret is", Mint::new(&world.octets, PLAIN).token(), "algorithm");
    case("41 use of the key is enc", Mint::new(&world.encrypts, PLAIN).token(), "unknown_key");
    case("41 key_ops without verify", Mint::new(&world.signs_only, PLAIN).token(), "unknown_key");

    // Header.
    let trap = world.trap.url();
    for (row, name, value) in [
        ("42", "jwk", world.attacker.jwk()),
        ("43", "jku", json!(format!("{trap}/jwks"))),
        ("44", "x5u", json!(format!("{trap}/cert.pem"))),
        ("45", "x5c", json!(["MIIBszCCAVmgAwIBAgIUOB=="])),
    ] {
        let known = Mint::new(&world.attacker, PLAIN).header(name, value.clone());
        case(&format!("{row} attacker's {name} under a known kid"), known.token(), "signature");
        let unknown = known.header("kid", json!("attacker"));
        case(&format!("{row} attacker's {name}"), unknown.token(), "unknown_key");
    }
    let rsa_by_attacker = Mint::new(&world.attacker_rsa, PLAIN).header("jku", json!(format!("{trap}/jwks")));
    case("43 attacker's RSA key and jku under a known kid", rsa_by_attacker.token(), "signature");
    for kid in [
        "../../../../etc/passwd",
        "' OR '1'='1",
        "p256' --",
        "/dev/null",
        "p256\u{0}",
        "P256",
        &format!("{trap}/key"),
        "file:///etc/passwd",
        "",
    ] {
        case(&format!("46 kid {kid:?}"), mint().header("kid", json!(kid)).token(), "unknown_key");
    }
    case("46 kid a number", mint().header("kid", json!(1)).token(), "header");
    case("46 kid a list", mint().header("kid", json!(["p256"])).token(), "header");
    case("47 unknown kid", mint().header("kid", json!("nobody")).token(), "unknown_key");
    case("48 no kid and two keys that fit", mint().without_header("kid").token(), "ambiguous_key");
    case(
        "49 crit with an unknown member",
        mint().header("crit", json!(["x"])).header("x", json!(1)).token(),
        "critical",
    );
    case(
        "49 crit with a known member",
        mint().header("crit", json!(["exp"])).header("exp", json!(1)).token(),
        "critical",
    );
    case("49 crit that is no list", mint().header("crit", json!("x")).token(), "critical");
    case("50 crit empty", mint().header("crit", json!([])).token(), "critical");
    let unencoded = mint().header("b64", json!(false));
    case("51 b64 false", unencoded.token(), "critical");
    case("51 b64 false and critical", unencoded.clone().header("crit", json!(["b64"])).token(), "critical");
    case("52 zip", mint().header("zip", json!("DEF")).token(), "critical");
    for typ in [
        "JWT",
        "id+jwt",
        "logout+jwt",
        "refresh+jwt",
        "dpop+jwt",
        "secevent+jwt",
        "at+jwt ",
        "at",
        "text/at+jwt",
        "",
    ] {
        case(&format!("53 typ {typ:?}"), mint().header("typ", json!(typ)).token(), "type");
    }
    case("53 typ missing", mint().without_header("typ").token(), "type");
    case("53 typ a number", mint().header("typ", json!(1)).token(), "header");
    case("53 typ of another issuer", world.other().header("typ", json!("at+jwt")).token(), "type");

    // Claims.
    case("54 iss missing", mint().without("iss").token(), "issuer");
    case("55 iss a number", mint().claim("iss", json!(1)).token(), "issuer");
    case("55 iss null", mint().claim("iss", Value::Null).token(), "issuer");
    case("56 iss a list", mint().claim("iss", json!([PLAIN])).token(), "issuer");
    for iss in [
        format!("{PLAIN}/"),
        PLAIN.to_uppercase(),
        PLAIN.replace("plain", "Plain"),
        format!(" {PLAIN}"),
        "https://plain.example".into(),
        String::new(),
    ] {
        case(&format!("57 iss {iss:?}"), mint().claim("iss", json!(iss)).token(), "issuer");
    }
    case("58 aud missing", mint().without("aud").token(), "audience");
    for aud in [json!(1), json!({"aud": AUDIENCE}), Value::Null, json!(true)] {
        case(&format!("59 aud {aud}"), mint().claim("aud", aud).token(), "audience");
    }
    case("60 aud empty", mint().claim("aud", json!([])).token(), "audience");
    case("60 aud an empty text", mint().claim("aud", json!("")).token(), "audience");
    case("61 aud with a number", mint().claim("aud", json!([AUDIENCE, 1])).token(), "audience");
    case("61 aud with a list", mint().claim("aud", json!([[AUDIENCE]])).token(), "audience");
    for aud in [
        "https://scores.example/",
        "https://scores.exampl",
        "https://scores.example.evil.example",
        "HTTPS://SCORES.EXAMPLE",
        "https://other.example",
    ] {
        case(&format!("62 aud {aud}"), mint().claim("aud", json!(aud)).token(), "audience");
    }
    case(
        "62 two audiences in one text",
        mint().claim("aud", json!(format!("{AUDIENCE} urn:x"))).token(),
        "audience",
    );
    case("63 sub missing", mint().without("sub").token(), "subject");
    for sub in [json!(1), json!(""), Value::Null, json!([CANARY])] {
        case(&format!("63 sub {sub}"), mint().claim("sub", sub).token(), "subject");
    }
    case("64 exp missing", mint().without("exp").token(), "expiry");
    for exp in [
        json!((now() + 300).to_string()),
        json!(true),
        Value::Null,
        json!([now() + 300]),
        json!({}),
        json!(-1),
        json!(u64::MAX),
        json!(1e18),
        json!(-1e300),
    ] {
        case(&format!("65–68 exp {exp}"), mint().claim("exp", exp).token(), "expiry");
    }
    for exp in ["1e400", "-1e400", "18446744073709551616", "9223372036854775808", "NaN", "1e", "0x7fffffff"] {
        let text = mint().without("exp").claims_text();
        let reason =
            if exp.parse::<f64>().is_ok_and(|number| number.is_finite()) { "expiry" } else { "payload" };
        case(
            &format!("69 exp {exp}"),
            mint().token_of(&header_text, twice(&text, &format!("\"exp\":{exp}"))),
            reason,
        );
    }
    case("68 valid for years", mint().claim("exp", json!(now() + 10 * 365 * 86_400)).token(), "lifetime");
    case(
        "68 valid for longer than this issuer's may be",
        world.other().claim("exp", json!(now() + 900)).token(),
        "lifetime",
    );
    case(
        "68 valid for years, without iat",
        mint().without("iat").claim("exp", json!(now() + 10 * 365 * 86_400)).token(),
        "lifetime",
    );
    case("70 nbf in the future", mint().claim("nbf", json!(now() + 120)).token(), "not_before");
    for nbf in [json!("0"), Value::Null, json!(u64::MAX), json!(-1)] {
        case(&format!("71 nbf {nbf}"), mint().claim("nbf", nbf).token(), "not_before");
    }
    case("72 iat in the future", mint().claim("iat", json!(now() + 120)).token(), "issued_at");
    for iat in [json!("0"), Value::Null, json!([now()])] {
        case(&format!("72 iat {iat}"), mint().claim("iat", iat).token(), "issued_at");
    }
    case(
        "73 exp is iat",
        mint().claim("iat", json!(now() + 30)).claim("exp", json!(now() + 30)).token(),
        "lifetime",
    );
    case(
        "73 exp before iat",
        mint().claim("iat", json!(now() + 30)).claim("exp", json!(now() + 20)).token(),
        "lifetime",
    );
    case("74 revoked", mint().claim("jti", json!("revoked-before-the-start")).token(), "revoked");
    case("74 jti a number", mint().claim("jti", json!(1)).token(), "token_id");
    case(
        "75 this issuer's key, that issuer's name",
        world.mint().header("typ", json!("JWT")).claim("iss", json!(OTHER)).token(),
        "unknown_key",
    );
    case("75 that issuer's key, this issuer's name", Mint::new(&world.other, PLAIN).token(), "unknown_key");
    case("75 a secret's token of an issuer without", Mint::new(&world.secret, PLAIN).token(), "algorithm");
    let thumbprint = encode([7; 32]);
    case(
        "77 bound to a certificate, without one",
        mint().claim("cnf", json!({"x5t#S256": thumbprint})).token(),
        "certificate",
    );
    for cnf in [
        json!({}),
        json!("x"),
        Value::Null,
        json!({"jkt": thumbprint}),
        json!({"x5t#S256": 1}),
        json!({"x5t#S256": ""}),
        json!({"jwk": world.p256.jwk()}),
        json!({"kid": "p256"}),
        json!({"x5t#S256": thumbprint, "jkt": thumbprint}),
    ] {
        case(
            &format!("77 cnf {}", cnf.to_string().chars().take(24).collect::<String>()),
            mint().claim("cnf", cnf).token(),
            "confirmation",
        );
    }
    for scope in
        [json!(1), json!([1]), json!({"score:predict": true}), Value::Null, json!(["score:predict", 1])]
    {
        case(&format!("scope {scope}"), mint().claim("scope", scope).token(), "scope_claim");
    }
    case("tenant a number", mint().claim("tenant", json!(1)).token(), "tenant");
    case(
        "an expired token that is for somebody else",
        mint()
            .claim("exp", json!(now() - 600))
            .claim("iat", json!(now() - 900))
            .claim("aud", json!("urn:x"))
            .token(),
        "audience",
    );
    case(
        "an expired token with another's signature",
        mint()
            .claim("exp", json!(now() - 600))
            .claim("iat", json!(now() - 900))
            .with_signature(|_| decode(signature)),
        "signature",
    );
    all
}

/// Base64url whose last character has one of the bits set that stand for nothing.
fn non_canonical(text: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = text.split_at(text.len() - 1);
    let at = ALPHABET.find(last).unwrap();
    format!("{rest}{}", &ALPHABET[at + 1..at + 2])
}

/// The token with the lowest bit of one byte of one segment flipped.
fn flipped(token: &str, segment: usize, at: usize) -> String {
    let mut segments = segments(token).map(str::to_owned);
    let mut bytes = decode(&segments[segment]);
    bytes[at] ^= 1;
    segments[segment] = encode(bytes);
    segments.join(".")
}

/// JSON text with `member` a second time.
fn twice(object: &str, member: &str) -> String {
    format!("{},{member}}}", object.strip_suffix('}').unwrap())
}
