//! Every rule, through [`Tokens`](super::Tokens), with keys and tokens made here.

mod answers;
mod fetched;
mod remembered;
mod rules;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaEncoding, RsaKeyPair, RsaPublicKeyComponents,
};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Tokens;
use super::parse::MAX_BYTES;
use crate::auth::{Caller, Error};
use crate::config::{IssuerSettings, KeyLocation};

/// Seconds since 1970 at which everything happens.
pub(super) const NOW: u64 = 1_800_000_000;
/// Whose tokens they are.
pub(super) const ISSUER: &str = "https://issuer.example";

/// The time `seconds` after 1970.
pub(super) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Settings of an issuer with keys at `keys`.
pub(super) fn settings(keys: KeyLocation) -> IssuerSettings {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    IssuerSettings {
        issuer: ISSUER.into(),
        audience: vec!["scores".into(), "https://scores.example".into()],
        keys,
        hs256_secret_file: None,
        algorithms: vec![RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA],
        typ: vec!["at+jwt".into()],
        scope_claim: None,
        tenant_claim: "tenant".into(),
        plan_claim: "plan".into(),
        leeway: Duration::from_secs(60),
        max_lifetime: Duration::from_secs(86_400),
        cooldown: Duration::from_secs(30),
        refresh: Duration::from_secs(600),
        allow_http: false,
        introspection: None,
    }
}

/// A private key and what is known of it in public.
pub(super) enum Signer {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Secret(Vec<u8>),
}

impl Signer {
    pub(super) fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    pub(super) fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(super) fn p384() -> Self {
        Self::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }

    pub(super) fn ed25519() -> Self {
        Self::Ed25519(Ed25519KeyPair::generate().unwrap())
    }

    /// The public key, called `kid`.
    pub(super) fn jwk(&self, kid: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Rsa(pair) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "kid": kid, "n": text(&public.n), "e": text(&public.e)})
            }
            Self::P256(pair) | Self::P384(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "kid": kid, "x": text(x), "y": text(y)})
            }
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": text(pair.public_key().as_ref())})
            }
            Self::Secret(secret) => json!({"kty": "oct", "kid": kid, "k": text(secret)}),
        }
    }

    /// A signature, by the algorithm called `name` where there are several.
    pub(super) fn sign(&self, name: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let encoding: &dyn RsaEncoding = match name {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Self::P256(pair) | Self::P384(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Secret(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
            }
        }
    }

    /// A signed token of these texts, whatever they are.
    pub(super) fn token(&self, header: &str, payload: &str) -> String {
        let name = serde_json::from_str::<Value>(header).unwrap_or_default();
        let name = name["alg"].as_str().unwrap_or_default();
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", encode(header), encode(payload));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(name, message.as_bytes()));
        format!("{message}.{signature}")
    }
}

/// A header that holds.
pub(super) fn header() -> Value {
    json!({"typ": "at+jwt", "alg": "ES256", "kid": "k1"})
}

/// Claims that hold.
pub(super) fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "scores", "sub": "shop", "exp": NOW + 300, "iat": NOW, "jti": "t1",
        "client_id": "shop", "scope": "score:predict model:churn",
    })
}

/// `object` with `changes`, of which `null` takes away.
pub(super) fn with(mut object: Value, changes: Value) -> String {
    let members = object.as_object_mut().unwrap();
    let Value::Object(changes) = changes else { panic!("{changes}") };
    for (name, value) in changes {
        if value.is_null() { drop(members.remove(&name)) } else { drop(members.insert(name, value)) }
    }
    object.to_string()
}

/// A set of keys.
pub(super) fn jwks(keys: &[Value]) -> String {
    json!({"keys": keys}).to_string()
}

/// An issuer's keys, in a file.
pub(super) struct Files {
    directory: TempDir,
}

impl Files {
    pub(super) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// Writes a file and says where it is.
    pub(super) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Settings of an issuer with these keys.
    pub(super) fn settings(&self, keys: &[Value]) -> IssuerSettings {
        settings(KeyLocation::File(self.write("keys.json", jwks(keys))))
    }
}

/// What a token comes to, told shortly: the caller's id, or the reason.
pub(super) fn told(found: Result<Caller, Error>) -> String {
    match found {
        Ok(caller) => caller.id().to_owned(),
        Err(error) => error.reason().to_owned(),
    }
}

/// What `token` comes to at the time `now`.
pub(super) async fn verified(tokens: &Tokens, token: &str, now: u64) -> String {
    told(tokens.verify(token, None, at(now)).await)
}

/// The caller of every token that holds.
pub(super) const SHOP: &str = "https://issuer.example#shop";

/// SHA-256 in base64url.
pub(super) fn thumbprint(bytes: &[u8]) -> ([u8; 32], String) {
    let digest = digest::digest(&digest::SHA256, bytes);
    (digest.as_ref().try_into().unwrap(), URL_SAFE_NO_PAD.encode(digest))
}
