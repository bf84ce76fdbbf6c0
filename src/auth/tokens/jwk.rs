//! Key sets (RFC 7517): which keys an issuer signs with, and whether one of them signed a token.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use arc_swap::ArcSwapOption;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::{self, aws_lc};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};

use super::json::{Object, Value};
use super::reason::Reason;

/// The most keys of one set.
const MAX_KEYS: usize = 100;
/// The fewest bytes of a shared secret.
const MIN_SECRET_BYTES: usize = 32;
/// What only private and shared keys have.
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Why a document is no usable set of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no JSON object with a list of keys.
    #[error("expected a JSON object with a list \"keys\", found something else")]
    NotASet,
    /// It is too large.
    #[error("found {0} keys, expected at most {MAX_KEYS}")]
    TooMany(usize),
    /// Signatures cannot be checked with any of them.
    #[error("found {found} keys, expected one that signatures can be checked with; the first: {why}")]
    NoneUsable {
        /// How many there are.
        found: usize,
        /// Why the first of them cannot be used.
        why: &'static str,
    },
    /// It is no secret that could not be guessed.
    #[error("found a secret of {0} bytes, expected at least {MIN_SECRET_BYTES}")]
    ShortSecret(usize),
}

/// What a key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
    Secret,
}

impl Kind {
    /// Whether signatures of this algorithm are checked with such a key.
    fn fits(self, algorithm: Algorithm) -> bool {
        match self {
            Self::Rsa => algorithm.family() == AlgorithmFamily::Rsa,
            Self::P256 => algorithm == Algorithm::ES256,
            Self::P384 => algorithm == Algorithm::ES384,
            Self::Ed25519 => algorithm == Algorithm::EdDSA,
            Self::Secret => algorithm == Algorithm::HS256,
        }
    }
}

/// A key that signatures are checked with.
#[derive(Debug)]
pub struct Key {
    kid: Option<String>,
    /// The one algorithm that it is for, where it says so.
    algorithm: Option<Algorithm>,
    kind: Kind,
    key: DecodingKey,
    /// Whether it has left the set in use.
    withdrawn: AtomicBool,
}

impl Key {
    fn new(kid: Option<&str>, algorithm: Option<Algorithm>, kind: Kind, key: DecodingKey) -> Self {
        Self { kid: kid.map(Into::into), algorithm, kind, key, withdrawn: AtomicBool::new(false) }
    }

    /// Reads one member of a set.
    fn parse(jwk: &Object<'_>) -> Result<Self, &'static str> {
        let text = |name: &str| jwk.get(name).and_then(Value::text);
        // A server that publishes a private key is no reason to believe what is signed with it.
        if PRIVATE.iter().any(|name| jwk.get(name).is_some()) {
            return Err("it is a private or shared key");
        }
        if jwk.get("use").is_some() && text("use") != Some("sig") {
            return Err("it is not for signatures");
        }
        let operations = jwk.get("key_ops").map(|operations| operations.texts().unwrap_or_default());
        if operations.is_some_and(|operations| !operations.contains(&"verify")) {
            return Err("its key_ops do not allow to verify");
        }
        if jwk.get("kid").is_some() && text("kid").is_none() {
            return Err("its kid is no text");
        }
        let bytes = |name: &str| {
            let decoded = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            decoded.ok_or("a number of it is missing or no base64url")
        };
        let (kind, key) = match (text("kty"), text("crv")) {
            (Some("RSA"), _) => (Kind::Rsa, rsa(&bytes("n")?, &bytes("e")?)?),
            (Some("EC"), Some("P-256")) => {
                (Kind::P256, point(&ECDSA_P256_SHA256_FIXED, 32, &bytes("x")?, &bytes("y")?)?)
            }
            (Some("EC"), Some("P-384")) => {
                (Kind::P384, point(&ECDSA_P384_SHA384_FIXED, 48, &bytes("x")?, &bytes("y")?)?)
            }
            (Some("OKP"), Some("Ed25519")) => {
                let x = bytes("x")?;
                ParsedPublicKey::new(&ED25519, &x).map_err(|_| "it is no Ed25519 key")?;
                (Kind::Ed25519, DecodingKey::from_ed_der(&x))
            }
            _ => return Err("its kty and crv are none of RSA, P-256, P-384 and Ed25519"),
        };
        let algorithm = match jwk.get("alg") {
            None => None,
            Some(named) => {
                let named = named.text().and_then(algorithm).filter(|named| kind.fits(*named));
                Some(named.ok_or("its alg is no signature by such a key")?)
            }
        };
        Ok(Self::new(text("kid"), algorithm, kind, key))
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        self.kind.fits(algorithm) && self.algorithm.is_none_or(|own| own == algorithm)
    }

    /// Whether it is the same key, said to be for the same.
    fn is_same(&self, other: &Self) -> bool {
        let same_material = match (self.key.kind(), other.key.kind()) {
            (DecodingKeyKind::SecretOrDer(one), DecodingKeyKind::SecretOrDer(other)) => one == other,
            (
                DecodingKeyKind::RsaModulusExponent { n, e },
                DecodingKeyKind::RsaModulusExponent { n: other_n, e: other_e },
            ) => n == other_n && e == other_e,
            _ => false,
        };
        same_material && (self.kind, self.algorithm, &self.kid) == (other.kind, other.algorithm, &other.kid)
    }

    /// Whether it has left the set in use, so that what it signed holds no longer.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }
}

/// The algorithm called `name`. `Ed25519` is the newer name of the one kind of EdDSA that there is here (RFC 9864).
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    if name == "Ed25519" { Some(Algorithm::EdDSA) } else { name.parse().ok() }
}

fn rsa(n: &[u8], e: &[u8]) -> Result<DecodingKey, &'static str> {
    let (n, e) = (without_zeros(n), without_zeros(e));
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) || n.last().is_none_or(|last| last % 2 == 0) {
        return Err("its modulus is no odd number of 2048 to 8192 bits");
    }
    if e.is_empty() || e.len() > 4 || e[e.len() - 1] % 2 == 0 || e == [1] {
        return Err("its exponent is no odd number from 3 to 2^32");
    }
    RsaPublicKeyComponents { n, e }
        .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
        .map_err(|_| "it is no RSA key")?;
    Ok(DecodingKey::from_rsa_raw_components(n, e))
}

/// Numbers may come with zeros in front, which change nothing.
fn without_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

fn point(
    algorithm: &'static dyn VerificationAlgorithm,
    length: usize,
    x: &[u8],
    y: &[u8],
) -> Result<DecodingKey, &'static str> {
    if x.len() != length || y.len() != length {
        return Err("its coordinates do not have the length of its curve's");
    }
    let point = [&[4], x, y].concat();
    ParsedPublicKey::new(algorithm, &point).map_err(|_| "its point is not on its curve")?;
    Ok(DecodingKey::from_ec_der(&point))
}

/// What an issuer signs with.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Arc<Key>>,
}

impl KeySet {
    /// Reads a JWKS document. Keys that cannot be used are left out. A set without any keys is what an issuer publishes that
    /// has withdrawn all of them; one with keys of which none can be used is a mistake.
    ///
    /// # Errors
    /// [`Error`] if it is none, or has keys but no usable one.
    pub fn parse(document: &[u8]) -> Result<Self, Error> {
        let document = Object::parse(document).ok_or(Error::NotASet)?;
        let Some(Value::List(found)) = document.get("keys") else { return Err(Error::NotASet) };
        if found.len() > MAX_KEYS {
            return Err(Error::TooMany(found.len()));
        }
        let (mut keys, mut why) = (Vec::new(), None);
        for (index, jwk) in found.iter().enumerate() {
            let Value::Object(jwk) = jwk else { return Err(Error::NotASet) };
            match Key::parse(jwk) {
                Ok(key) => keys.push(Arc::new(key)),
                Err(reason) => {
                    // Whoever can read the set can sign: the operator of the issuer has to know.
                    if jwk.get("d").is_some() {
                        tracing::warn!(key = index, "a key set holds a private key, which is not used");
                    }
                    tracing::debug!(key = index, reason, "a key of a key set is not used");
                    why.get_or_insert(reason);
                }
            }
        }
        match why {
            Some(why) if keys.is_empty() => Err(Error::NoneUsable { found: found.len(), why }),
            _ => Ok(Self { keys }),
        }
    }

    /// The one key that a shared secret is. The last line's end is not part of it.
    ///
    /// # Errors
    /// [`Error::ShortSecret`].
    pub fn of_secret(secret: &[u8]) -> Result<Self, Error> {
        let secret = secret.strip_suffix(b"\r\n").or(secret.strip_suffix(b"\n")).unwrap_or(secret);
        if secret.len() < MIN_SECRET_BYTES {
            return Err(Error::ShortSecret(secret.len()));
        }
        let key = Key::new(None, Some(Algorithm::HS256), Kind::Secret, DecodingKey::from_secret(secret));
        Ok(Self { keys: vec![Arc::new(key)] })
    }

    /// How many keys can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key called `kid` that signed `message`. Without a `kid` only one key may come into question.
    ///
    /// # Errors
    /// [`Reason::UnknownKey`], [`Reason::AmbiguousKey`], [`Reason::KeyMismatch`] or [`Reason::Signature`].
    pub fn verify(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        message: &[u8],
        signature: &str,
    ) -> Result<&Arc<Key>, Reason> {
        let named = || self.keys.iter().filter(|key| kid.is_none() || key.kid.as_deref() == kid);
        let fitting = || named().filter(|key| key.fits(algorithm));
        match (kid, fitting().count()) {
            (Some(_), 0) if named().next().is_some() => return Err(Reason::KeyMismatch),
            (_, 0) => return Err(Reason::UnknownKey),
            (None, 2..) => return Err(Reason::AmbiguousKey),
            _ => {}
        }
        install_provider();
        let signed = |key: &&Arc<Key>| crypto::verify(signature, message, &key.key, algorithm) == Ok(true);
        fitting().find(signed).ok_or(Reason::Signature)
    }
}

/// Says once which library checks signatures, wherever the process has not done so yet.
fn install_provider() {
    static INSTALLED: Once = Once::new();
    // Whoever was first has installed the same one: there is no other in this build.
    INSTALLED.call_once(|| {
        let _ = aws_lc::DEFAULT_PROVIDER.install_default();
    });
}

/// The set in use, which can be replaced.
#[derive(Debug, Default)]
pub(super) struct Held {
    set: ArcSwapOption<KeySet>,
    /// Replacing is looking at the old set and storing the new one.
    replacing: Mutex<()>,
}

impl Held {
    /// The set in use, if there has ever been one.
    pub(super) fn get(&self) -> Option<Arc<KeySet>> {
        self.set.load_full()
    }

    /// Takes `new` into use. Keys that stay are the same as before; those that leave are withdrawn. Says whether anything has
    /// changed.
    pub(super) fn replace(&self, new: &KeySet) -> bool {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let set = self.set.load_full();
        let old = set.as_ref().map_or(&[][..], |old| &old.keys);
        let known = |key: &Arc<Key>| old.iter().find(|old| old.is_same(key)).cloned();
        let keys: Vec<Arc<Key>> =
            new.keys.iter().map(|key| known(key).unwrap_or_else(|| Arc::clone(key))).collect();
        let has = |set: &[Arc<Key>], key: &Arc<Key>| set.iter().any(|other| Arc::ptr_eq(other, key));
        let leaving: Vec<&Arc<Key>> = old.iter().filter(|key| !has(&keys, key)).collect();
        let changed = set.is_none() || !leaving.is_empty() || keys.iter().any(|key| !has(old, key));
        self.set.store(Some(Arc::new(KeySet { keys: keys.clone() })));
        for key in leaving {
            key.withdrawn.store(true, Ordering::Release);
        }
        changed
    }
}
