//! Keys, key sets and access tokens, right ones and wrong ones of every kind; signed without the library that the gateway
//! checks them with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use super::CANARY;

/// What tokens for the gateway say as `aud`.
pub(crate) const AUDIENCE: &str = "https://scores.example";

/// The order of the group of P-256.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
    0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Base64url without padding.
pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What base64url without padding stands for.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

#[derive(Debug)]
enum Pair {
    Rsa(rsa::KeyPair),
    Ecdsa(EcdsaKeyPair, &'static EcdsaSigningAlgorithm),
    Ed25519(Ed25519KeyPair),
    Secret(Vec<u8>),
}

/// A key that signs tokens.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) kid: String,
    /// What it signs with unless it is told otherwise.
    pub(crate) alg: &'static str,
    pair: Pair,
}

impl Key {
    pub(crate) fn rsa(kid: &str) -> Self {
        Self::new(kid, "RS256", Pair::Rsa(rsa::KeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    pub(crate) fn p256(kid: &str) -> Self {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        Self::new(kid, "ES256", Pair::Ecdsa(EcdsaKeyPair::generate(algorithm).unwrap(), algorithm))
    }

    pub(crate) fn p384(kid: &str) -> Self {
        let algorithm = &ECDSA_P384_SHA384_FIXED_SIGNING;
        Self::new(kid, "ES384", Pair::Ecdsa(EcdsaKeyPair::generate(algorithm).unwrap(), algorithm))
    }

    pub(crate) fn ed25519(kid: &str) -> Self {
        Self::new(kid, "EdDSA", Pair::Ed25519(Ed25519KeyPair::generate().unwrap()))
    }

    pub(crate) fn secret(kid: &str, secret: &[u8]) -> Self {
        Self::new(kid, "HS256", Pair::Secret(secret.into()))
    }

    fn new(kid: &str, alg: &'static str, pair: Pair) -> Self {
        Self { kid: kid.into(), alg, pair }
    }

    /// What a key set says of it.
    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Rsa(pair) => {
                let public = pair.public_key();
                let [n, e] = [public.modulus(), public.exponent()]
                    .map(|number| encode(number.big_endian_without_leading_zero()));
                json!({"kty": "RSA", "n": n, "e": e})
            }
            Pair::Ecdsa(pair, algorithm) => {
                let crv = if *algorithm == &ECDSA_P384_SHA384_FIXED_SIGNING { "P-384" } else { "P-256" };
                // One byte that says that the point is not compressed, and both coordinates.
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": crv, "x": encode(x), "y": encode(y)})
            }
            Pair::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key())})
            }
            Pair::Secret(secret) => json!({"kty": "oct", "k": encode(secret)}),
        };
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk
    }

    /// [`Key::jwk`] with a member replaced or added.
    pub(crate) fn jwk_with(&self, member: &str, value: Value) -> Value {
        let mut jwk = self.jwk();
        jwk[member] = value;
        jwk
    }

    /// The public key as others write it: SubjectPublicKeyInfo and, for RSA, the key alone; DER.
    pub(crate) fn public_der(&self) -> Vec<Vec<u8>> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let public = pair.public_key();
                let info: PublicKeyX509Der<'_> = public.as_der().unwrap();
                vec![info.as_ref().into(), public.as_ref().into()]
            }
            Pair::Ecdsa(pair, _) => {
                let info: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                vec![info.as_ref().into(), pair.public_key().as_ref().into()]
            }
            Pair::Ed25519(pair) => vec![pair.public_key().as_ref().into()],
            Pair::Secret(_) => Vec::new(),
        }
    }

    /// Its signature of `message` by `alg`.
    pub(crate) fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match (&self.pair, alg) {
            (Pair::Rsa(pair), _) => {
                let padding: &'static dyn RsaEncoding = match alg {
                    "RS256" => &RSA_PKCS1_SHA256,
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    other => panic!("an RSA key does not sign with {other}"),
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signature).unwrap();
                signature
            }
            (Pair::Ecdsa(pair, _), "ES256" | "ES384") => pair.sign(&random, message).unwrap().as_ref().into(),
            (Pair::Ed25519(pair), "EdDSA") => pair.sign(message).as_ref().into(),
            (Pair::Secret(secret), "HS256") => hmac_of(hmac::HMAC_SHA256, secret, message),
            (Pair::Secret(secret), "HS384") => hmac_of(hmac::HMAC_SHA384, secret, message),
            (Pair::Secret(secret), "HS512") => hmac_of(hmac::HMAC_SHA512, secret, message),
            (_, other) => panic!("this key does not sign with {other}"),
        }
    }

    /// An ECDSA signature in DER, as TLS has it and tokens do not.
    pub(crate) fn sign_der(&self, message: &[u8]) -> Vec<u8> {
        let Pair::Ecdsa(pair, _) = &self.pair else { panic!("only ECDSA has a DER form") };
        let pkcs8 = pair.to_pkcs8v1().unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref()).unwrap();
        pair.sign(&SystemRandom::new(), message).unwrap().as_ref().into()
    }
}

/// HMAC of `message`.
fn hmac_of(algorithm: hmac::Algorithm, secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, secret), message).as_ref().into()
}

/// DER as PEM.
pub(crate) fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

/// What is signed with an exponent of one: the padded digest itself, which everybody can make (RFC 8017, 9.2).
pub(crate) fn padded_digest(message: &[u8], length: usize) -> Vec<u8> {
    const SHA256_INFO: [u8; 19] = [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
        0x04, 0x20,
    ];
    let digest = digest::digest(&digest::SHA256, message);
    let mut padded = vec![0, 1];
    padded.resize(length - SHA256_INFO.len() - digest.as_ref().len() - 1, 0xff);
    padded.push(0);
    padded.extend_from_slice(&SHA256_INFO);
    padded.extend_from_slice(digest.as_ref());
    padded
}

/// The other signature that holds for the same message under the same P-256 key: (r, n − s).
pub(crate) fn twin(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at(32);
    let mut other = [0; 32];
    let mut borrow = 0;
    for at in (0..32).rev() {
        let difference = i16::from(P256_ORDER[at]) - i16::from(s[at]) - borrow;
        borrow = i16::from(difference < 0);
        other[at] = difference.rem_euclid(256).try_into().unwrap();
    }
    [r, &other].concat()
}

/// The document of a key set.
pub(crate) fn key_set(keys: impl IntoIterator<Item = Value>) -> Value {
    json!({"keys": keys.into_iter().collect::<Vec<_>>()})
}

/// A token that is about to be made.
#[derive(Debug, Clone)]
pub(crate) struct Mint<'k> {
    key: &'k Key,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl<'k> Mint<'k> {
    /// One that holds, of `issuer` for [`AUDIENCE`], with the scope to score; whoever repeats its subject is found out.
    pub(crate) fn new(key: &'k Key, issuer: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (now, count) = (now(), COUNT.fetch_add(1, Ordering::Relaxed));
        let header = json!({"typ": "at+jwt", "alg": key.alg, "kid": key.kid});
        let claims = json!({
            "iss": issuer, "aud": AUDIENCE, "sub": CANARY, "client_id": CANARY, "iat": now, "exp": now + 300,
            "jti": format!("token-{count}"), "scope": "score:predict models:read",
        });
        let map = |value| serde_json::from_value(value).unwrap();
        Self { key, header: map(header), claims: map(claims) }
    }

    /// With another signature.
    pub(crate) fn alg(self, alg: &str) -> Self {
        self.header("alg", json!(alg))
    }

    /// With a member of the header replaced or added.
    pub(crate) fn header(mut self, name: &str, value: Value) -> Self {
        self.header.insert(name.into(), value);
        self
    }

    /// Without a member of the header.
    pub(crate) fn without_header(mut self, name: &str) -> Self {
        self.header.shift_remove(name).unwrap();
        self
    }

    /// With a claim replaced or added.
    pub(crate) fn claim(mut self, name: &str, value: Value) -> Self {
        self.claims.insert(name.into(), value);
        self
    }

    /// Without a claim.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.claims.shift_remove(name).unwrap();
        self
    }

    /// The header as JSON.
    pub(crate) fn header_text(&self) -> String {
        Value::Object(self.header.clone()).to_string()
    }

    /// The claims as JSON.
    pub(crate) fn claims_text(&self) -> String {
        Value::Object(self.claims.clone()).to_string()
    }

    /// The token, signed by its key as its header says.
    pub(crate) fn token(&self) -> String {
        self.token_of(self.header_text(), self.claims_text())
    }

    /// A token of these bytes with a signature that holds for them.
    pub(crate) fn token_of(&self, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        let alg = self.header.get("alg").and_then(Value::as_str).unwrap_or(self.key.alg);
        self.signed_by(header, claims, |message| self.key.sign(alg, message))
    }

    /// A token of these bytes with any signature.
    pub(crate) fn signed_by(
        &self,
        header: impl AsRef<[u8]>,
        claims: impl AsRef<[u8]>,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> String {
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = sign(message.as_bytes());
        format!("{message}.{}", encode(signature))
    }

    /// The token with this signature, whatever its header says.
    pub(crate) fn with_signature(&self, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        self.signed_by(self.header_text(), self.claims_text(), sign)
    }
}

/// The segments of a token.
pub(crate) fn segments(token: &str) -> [&str; 3] {
    let segments: Vec<&str> = token.split('.').collect();
    segments.try_into().unwrap()
}
