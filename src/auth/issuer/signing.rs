//! The signing keys of the built-in issuer: announced before they sign, and published until the last token that they signed
//! has expired.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::EncodingKey;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::LEEWAY;
use crate::audit::{self, Actor, Event};
use crate::auth::file::{self, ListFile, parse_time, time_after};
use crate::auth::tokens::jwk::KeySet;
use crate::follow::{self, Followed};

/// The least notice of a new key: replicas look at the file every second, and believe what they see twice.
const MIN_NOTICE: Duration = Duration::from_secs(5);
/// The notice that is enough for whoever fetches the key set now and then.
const MAX_NOTICE: Duration = Duration::from_secs(3_600);

/// The most keys at a time. Where keys change much faster than tokens end, the next one waits until an old one has gone.
const MAX_KEYS: usize = 64;

/// One entry of the keys file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The thumbprint of the public key (RFC 7638).
    kid: String,
    /// The private key, PKCS #8 in base64.
    pkcs8: String,
    created_at: String,
    /// From when on it signs, until the next one does.
    signs_from: String,
}

/// When keys come and go.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    rotation: Duration,
    token_ttl: Duration,
}

impl Schedule {
    /// How long before it signs a new key is published.
    fn notice(self) -> Duration {
        (self.rotation / 4).clamp(MIN_NOTICE, MAX_NOTICE)
    }

    /// From when on a further key is to sign, if it is time to make it. `signs_from` is that of the keys there are, in order.
    fn next(self, signs_from: &[SystemTime], now: SystemTime) -> Option<SystemTime> {
        match signs_from.last() {
            None => Some(now),
            Some(_) if signs_from.len() >= MAX_KEYS => None,
            Some(newest) => {
                let from = now + self.notice();
                (from >= *newest + self.rotation).then_some(from)
            }
        }
    }

    /// How many of the first keys have signed nothing that is still valid.
    fn outlived(self, signs_from: &[SystemTime], now: SystemTime) -> usize {
        let is_over = |successor: &&SystemTime| now >= **successor + self.token_ttl + LEEWAY;
        signs_from.iter().skip(1).take_while(is_over).count()
    }
}

/// The file that holds the keys; replicas share it. What is done to it is recorded.
#[derive(Debug)]
pub(super) struct KeysFile {
    file: ListFile,
    schedule: Schedule,
    log: audit::Log,
}

impl KeysFile {
    pub(super) fn new(
        path: impl Into<PathBuf>,
        rotation: Duration,
        token_ttl: Duration,
        log: audit::Log,
    ) -> Self {
        let schedule = Schedule { rotation, token_ttl };
        Self { file: ListFile::new(path, "signing keys"), schedule, log }
    }

    /// Makes a key if there is none or the next one is due, and removes those that nobody needs. Of several gateways one
    /// does it.
    ///
    /// # Errors
    /// [`file::Error`] if the file cannot be used, or the key not recorded.
    pub(super) fn maintain(&self, now: SystemTime) -> Result<(), file::Error> {
        let is_due = |entries: &[Entry]| -> Result<_, file::Error> {
            let signs_from = times(entries).map_err(|message| self.file.content_error(message))?;
            Ok((self.schedule.outlived(&signs_from, now), self.schedule.next(&signs_from, now)))
        };
        if is_due(&self.file.read()?)? == (0, None) {
            return Ok(());
        }
        self.file.make_directory()?;
        self.file.edit(|entries: &mut Vec<Entry>| {
            // Another may have done it meanwhile.
            let (outlived, next) = is_due(entries)?;
            for retired in entries.drain(..outlived) {
                self.log.record(&Event::new(Actor::gateway(), "signing_key.retired", retired.kid))?;
            }
            if let Some(from) = next {
                let entry = entry(now, from)?;
                let event = Event::new(Actor::gateway(), "signing_key.created", &entry.kid)
                    .with("signs_from", entry.signs_from.as_str());
                self.log.record(&event)?;
                entries.push(entry);
            }
            Ok(())
        })
    }

    /// How long before it signs a new key is in the file.
    pub(super) fn notice(&self) -> Duration {
        self.schedule.notice()
    }

    /// The keys in the file, as they are now.
    ///
    /// # Errors
    /// [`follow::Error`] if there is none that can sign.
    pub(super) fn follow(&self) -> Result<Followed<SigningKeys>, follow::Error> {
        let parse = |texts: &[Vec<u8>]| SigningKeys::parse(&texts[0]);
        Followed::open("signing keys", vec![self.file.path().into()], parse)
    }
}

/// A new key.
fn entry(now: SystemTime, from: SystemTime) -> Result<Entry, file::Error> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(file::Error::Key)?;
    let pkcs8 = pair.to_pkcs8v1().map_err(file::Error::Key)?;
    Ok(Entry {
        kid: Public::of(&pair).kid(),
        pkcs8: STANDARD.encode(pkcs8.as_ref()),
        created_at: time_after(now, Duration::ZERO)?,
        signs_from: time_after(from, Duration::ZERO)?,
    })
}

fn times(entries: &[Entry]) -> Result<Vec<SystemTime>, String> {
    let time = |entry: &Entry| {
        parse_time(&entry.signs_from).map_err(|expected| {
            format!("key {}: expected {expected} as signs_from", entry.kid.escape_debug())
        })
    };
    let times: Vec<SystemTime> = entries.iter().map(time).collect::<Result<_, _>>()?;
    if times.is_sorted() { Ok(times) } else { Err("expected the keys in the order of signs_from".into()) }
}

/// What is published of a key.
struct Public {
    x: String,
    y: String,
}

impl Public {
    fn of(pair: &EcdsaKeyPair) -> Self {
        // A point that is not compressed: 4, then the coordinates, of the same length.
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        Self { x: URL_SAFE_NO_PAD.encode(x), y: URL_SAFE_NO_PAD.encode(y) }
    }

    /// The thumbprint (RFC 7638).
    fn kid(&self) -> String {
        let Self { x, y } = self;
        let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        URL_SAFE_NO_PAD.encode(Sha256::digest(text))
    }
}

/// The keys that there are.
#[derive(Debug)]
pub(super) struct SigningKeys {
    /// In the order in which they sign; there is at least one.
    keys: Vec<SigningKey>,
    /// The key set, as it is published.
    jwks: Arc<[u8]>,
    /// The same, to verify with.
    published: Arc<KeySet>,
}

/// A key that can sign.
#[derive(Debug)]
pub(super) struct SigningKey {
    pub(super) kid: String,
    pub(super) key: EncodingKey,
    signs_from: SystemTime,
}

impl SigningKeys {
    /// The keys that a file holds.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &[u8]) -> Result<Self, String> {
        let entries: Vec<Entry> = serde_json::from_slice(text)
            .map_err(|error| format!("expected a list of signing keys: {error}"))?;
        if entries.is_empty() {
            return Err("found no signing key, expected at least one".into());
        }
        let (mut keys, mut published) = (Vec::new(), Vec::new());
        for (entry, signs_from) in entries.iter().zip(times(&entries)?) {
            let wrong = |what: &str| format!("key {}: {what}", entry.kid.escape_debug());
            let pkcs8 = STANDARD.decode(&entry.pkcs8).map_err(|_| wrong("expected base64 as pkcs8"))?;
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
                .map_err(|_| wrong("expected a P-256 key in PKCS #8 as pkcs8"))?;
            let public = Public::of(&pair);
            if public.kid() != entry.kid {
                return Err(wrong("its kid is not its thumbprint"));
            }
            let Public { x, y } = public;
            let kid = entry.kid.clone();
            published.push(json!({
                "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid, "x": x, "y": y,
            }));
            keys.push(SigningKey { kid, key: EncodingKey::from_ec_der(&pkcs8), signs_from });
        }
        let jwks = json!({"keys": published}).to_string().into_bytes();
        let published = KeySet::parse(&jwks).map_err(|error| error.to_string())?;
        Ok(Self { keys, jwks: jwks.into(), published: Arc::new(published) })
    }

    /// The key that signs at the time `now`: the last whose time has come. Should the clock be before them all, the first.
    pub(super) fn current(&self, now: SystemTime) -> &SigningKey {
        self.keys.iter().rev().find(|key| key.signs_from <= now).unwrap_or(&self.keys[0])
    }

    /// The key set, as it is published.
    pub(super) fn jwks(&self) -> Arc<[u8]> {
        Arc::clone(&self.jwks)
    }

    /// The keys to verify with.
    pub(super) fn published(&self) -> Arc<KeySet> {
        Arc::clone(&self.published)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const TTL: Duration = Duration::from_secs(900);

    /// A keys file whose directory is not there yet, and the time at which the test begins.
    fn file(rotation: Duration) -> (tempfile::TempDir, KeysFile, SystemTime) {
        let directory = tempfile::tempdir().unwrap();
        let log = audit::Log::new(directory.path());
        let file = KeysFile::new(directory.path().join("state/keys.json"), rotation, TTL, log);
        (directory, file, SystemTime::UNIX_EPOCH + 20_000 * DAY)
    }

    /// The keys after what is due at `now` was done: those published, and the one that signs.
    fn at(file: &KeysFile, now: SystemTime) -> (Vec<String>, String) {
        file.maintain(now).unwrap();
        let keys = SigningKeys::parse(&fs::read(file.file.path()).unwrap()).unwrap();
        assert_eq!(keys.published.len(), keys.keys.len());
        let jwks: serde_json::Value = serde_json::from_slice(&keys.jwks).unwrap();
        let published = jwks["keys"].as_array().unwrap().iter().map(|key| {
            assert!(key.get("d").is_none());
            key["kid"].as_str().unwrap().to_owned()
        });
        (published.collect(), keys.current(now).kid.clone())
    }

    #[test]
    fn a_key_is_announced_before_it_signs_and_published_until_its_tokens_have_expired() {
        let (directory, file, start) = file(30 * DAY);
        let (published, first) = at(&file, start);
        assert_eq!(published, std::slice::from_ref(&first), "the first key signs at once");
        let hour = Duration::from_secs(3_600);
        let before = start + 30 * DAY - hour - Duration::from_secs(2);
        assert_eq!(at(&file, before), (vec![first.clone()], first.clone()));
        let announced = start + 30 * DAY - hour;
        let (published, signs) = at(&file, announced);
        assert_eq!((published.len(), &signs), (2, &first), "announced, not signing yet");
        let second = published[1].clone();
        let turn = announced + hour;
        assert_eq!(at(&file, turn - Duration::from_secs(1)).1, first);
        assert_eq!(at(&file, turn), (vec![first.clone(), second.clone()], second.clone()));
        let last = turn + TTL + LEEWAY;
        assert_eq!(at(&file, last - Duration::from_secs(1)).0.len(), 2);
        assert_eq!(at(&file, last), (vec![second.clone()], second.clone()));
        // A gateway that slept for a year announces its next key all the same.
        let woken = last + 365 * DAY;
        let (published, signs) = at(&file, woken);
        assert_eq!((published.len(), signs), (2, second));
        assert_eq!(at(&file, woken + hour).1, published[1]);
        let log = fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
        assert_eq!(log.matches("signing_key.created").count(), 3);
        let retired: Vec<&str> = log.lines().filter(|line| line.contains("signing_key.retired")).collect();
        assert!(retired.len() == 1 && retired[0].contains(&first), "{log}");
        assert_eq!(fs::metadata(file.file.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn keys_that_change_quickly_are_announced_all_the_same() {
        let (_directory, file, start) = file(Duration::from_secs(1));
        let mut signed = Vec::new();
        let mut known: Vec<String> = Vec::new();
        // As many steps as it takes to have more keys than there may be.
        for step in 0..60 + 2 * u32::try_from(MAX_KEYS).unwrap() {
            let now = start + step * Duration::from_millis(500);
            let (published, signs) = at(&file, now);
            assert!(step == 0 || known.contains(&signs), "at {step}: {signs} was not announced");
            // Another replica knows what was published three seconds ago.
            if step % 6 == 0 {
                known = published;
            }
            signed.push(signs);
        }
        signed.dedup();
        assert!(signed.len() > 5 && signed.len() <= MAX_KEYS, "{signed:?}");
        assert_eq!(known.len(), MAX_KEYS);
        let later = start + TTL + 2 * LEEWAY;
        assert!(at(&file, later).0.len() < MAX_KEYS, "there is room again");
    }

    #[test]
    fn of_gateways_that_start_at_once_one_makes_the_key() {
        let (directory, file, start) = file(DAY);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| file.maintain(start).unwrap());
            }
        });
        assert_eq!(at(&file, start).0.len(), 1);
        // An operator who fears for a key takes it away, and there is another at once.
        let (_, first) = at(&file, start);
        fs::write(file.file.path(), "[]").unwrap();
        assert_ne!(at(&file, start).1, first);
        assert!(!fs::read_to_string(directory.path().join("audit.jsonl")).unwrap().contains("pkcs8"));
    }

    #[test]
    fn a_clock_before_all_keys_takes_the_first() {
        let (_directory, file, start) = file(DAY);
        let (_, first) = at(&file, start);
        assert_eq!(at(&file, start - 10 * DAY).1, first);
    }

    #[test]
    fn a_file_that_holds_no_keys_says_what_is_wrong() {
        let (_directory, file, start) = file(DAY);
        let (_, kid) = at(&file, start);
        let text = fs::read_to_string(file.file.path()).unwrap();
        for (text, expected) in [
            ("{}".to_string(), "expected a list"),
            ("[]".to_string(), "found no signing key"),
            (text.replace(&kid, "other"), "not its thumbprint"),
            (text.replace("\"pkcs8\": \"", "\"pkcs8\": \"AAAA"), "expected a P-256 key"),
            (text.replace("\"pkcs8\": \"", "\"pkcs8\": \"!"), "expected base64"),
            (text.replace("\"signs_from\": \"", "\"signs_from\": \"x"), "an RFC 3339 time"),
        ] {
            let error = SigningKeys::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
