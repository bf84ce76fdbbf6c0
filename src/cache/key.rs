//! [`Key`]: which row of whom it is that a score answers, as a digest that only those with the secret can work out; and what
//! of a score lies in Redis, sealed with the same secret.

use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore;
use scoregate_model::runtime::Score;

/// The least that a secret may have.
const MIN_SECRET_BYTES: usize = 32;

/// The most that is read of a file.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Which row of whom, for which version: a keyed BLAKE3 digest of 256 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A number that is spread evenly over keys; each `part` gives another one.
    pub(super) fn spread(&self, part: usize) -> u64 {
        let bytes = self.0[8 * part..8 * part + 8].try_into().expect("eight bytes are eight bytes");
        u64::from_le_bytes(bytes)
    }

    /// What it is called in Redis.
    pub(super) fn name(&self) -> String {
        let mut name = String::with_capacity(64);
        name.push_str("scoregate:score:");
        URL_SAFE_NO_PAD.encode_string(self.0, &mut name);
        name
    }
}

/// No text that can be told from any other: it is a digest.
impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key")
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.spread(0));
    }
}

/// Keys are spread evenly already, and by a secret: nobody can choose two that meet.
pub(super) type Spread = BuildHasherDefault<Passed>;

/// The hash of a [`Key`].
#[derive(Default)]
pub(super) struct Passed(u64);

impl Hasher for Passed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}, the key of the cache", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is too little in it.
    #[error(
        "{}, the key of the cache, holds {found} bytes, expected at least {MIN_SECRET_BYTES} random ones; make it with \
         `head -c 32 /dev/urandom > {}` and give it to all replicas", .path.display(), .path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// How many bytes there are.
        found: usize,
    },
}

/// What makes digests and seals.
pub(super) struct Secret {
    digests: [u8; 32],
    seals: LessSafeKey,
}

impl Secret {
    /// One that nobody else has.
    pub(super) fn random() -> Self {
        let mut secret = [0; MIN_SECRET_BYTES];
        rand::rng().fill_bytes(&mut secret);
        Self::new(&secret)
    }

    /// The one in a file.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        use io::Read as _;
        let read = || {
            // A pipe would be waited for.
            if !std::fs::metadata(path)?.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            let mut secret = Vec::new();
            std::fs::File::open(path)?.take(MAX_SECRET_BYTES).read_to_end(&mut secret)?;
            Ok(secret)
        };
        let secret = read().map_err(|source| Error::Read { path: path.into(), source })?;
        if secret.len() < MIN_SECRET_BYTES {
            return Err(Error::Short { path: path.into(), found: secret.len() });
        }
        Ok(Self::new(&secret))
    }

    fn new(secret: &[u8]) -> Self {
        let seals = blake3::derive_key("scoregate 2026-11 seals of scores in Redis", secret);
        Self {
            digests: blake3::derive_key("scoregate 2026-11 keys of scores", secret),
            seals: LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM_SIV, &seals).expect("the key is as long as the cipher's"),
            ),
        }
    }

    /// The key of what `bytes` say without doubt.
    pub(super) fn key(&self, bytes: &[u8]) -> Key {
        Key(*blake3::keyed_hash(&self.digests, bytes).as_bytes())
    }

    /// A score as it lies in Redis under `key`, computed at `at`, since 1970.
    ///
    /// The nonce comes from the key, so that one is used again only for another score of the same row: this cipher shows no
    /// more then than whether the two are equal.
    pub(super) fn seal(&self, key: &Key, score: &Score, at: Duration) -> Vec<u8> {
        let mut text = Vec::with_capacity(8 + 8 * score.values().len() + AES_256_GCM_SIV.tag_len());
        text.extend_from_slice(&u64::try_from(at.as_millis()).unwrap_or(u64::MAX).to_le_bytes());
        for number in score.values() {
            text.extend_from_slice(&number.to_bits().to_le_bytes());
        }
        self.seals
            .seal_in_place_append_tag(nonce(key), Aad::from(key.0), &mut text)
            .expect("a score is far shorter than what the cipher takes");
        text
    }

    /// The score that lies in Redis under `key` and when it was computed; none if it is not as it was sealed under this key, or
    /// has another number of numbers than `width`.
    pub(super) fn open_sealed(
        &self,
        key: &Key,
        mut sealed: Vec<u8>,
        width: usize,
    ) -> Option<(Score, Duration)> {
        let text = self.seals.open_in_place(nonce(key), Aad::from(key.0), &mut sealed).ok()?;
        let (at, numbers) = text.split_first_chunk::<8>()?;
        let (numbers, rest) = numbers.as_chunks::<8>();
        if !rest.is_empty() || numbers.len() != width {
            return None;
        }
        let number = |bytes: &[u8; 8]| f64::from_bits(u64::from_le_bytes(*bytes));
        let score = match numbers {
            [one] => Score::One(number(one)),
            many => Score::Classes(many.iter().map(number).collect()),
        };
        Some((score, Duration::from_millis(u64::from_le_bytes(*at))))
    }
}

fn nonce(key: &Key) -> Nonce {
    let bytes: [u8; NONCE_LEN] = key.0[..NONCE_LEN].try_into().expect("a key is longer than a nonce");
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_millis(1_700_000_000_123);

    #[test]
    fn what_was_sealed_opens_under_its_own_key_alone() {
        let (ours, theirs) = (Secret::new(&[1; 32]), Secret::new(&[2; 32]));
        let (key, other) = (ours.key(b"a"), ours.key(b"b"));
        for (score, width) in
            [(Score::One(0.25), 1), (Score::Classes([0.2, 0.3, 0.5].into()), 3), (Score::One(-0.0), 1)]
        {
            let sealed = ours.seal(&key, &score, AT);
            assert_eq!(ours.open_sealed(&key, sealed.clone(), width), Some((score.clone(), AT)));
            assert_eq!(ours.open_sealed(&key, sealed.clone(), width + 1), None, "another width");
            assert_eq!(ours.open_sealed(&other, sealed.clone(), width), None, "another key");
            assert_eq!(theirs.open_sealed(&key, sealed.clone(), width), None, "another secret");
            for at in 0..sealed.len() {
                let mut garbled = sealed.clone();
                garbled[at] ^= 1;
                assert_eq!(ours.open_sealed(&key, garbled, width), None, "byte {at}");
                assert_eq!(ours.open_sealed(&key, sealed[..at].to_vec(), width), None, "{at} bytes");
            }
            let number = score.values()[0].to_le_bytes();
            assert!(!sealed.windows(8).any(|window| window == number), "a score can be read");
        }
        assert_eq!(ours.open_sealed(&key, Vec::new(), 1), None);
    }

    #[test]
    fn keys_are_told_apart_by_what_they_are_of_and_by_the_secret() {
        let secret = Secret::new(&[1; 32]);
        assert!(secret.key(b"a") == secret.key(b"a"));
        assert!(secret.key(b"a") != secret.key(b"b"));
        assert!(secret.key(b"a") != Secret::new(&[2; 32]).key(b"a"));
        assert!(Secret::random().key(b"a") != Secret::random().key(b"a"));
        let name = secret.key(b"a").name();
        assert_eq!((name.len(), name.starts_with("scoregate:score:")), (59, true), "{name}");
    }

    #[test]
    fn a_secret_has_at_least_32_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(matches!(Secret::open(&path), Err(Error::Read { .. })));
        assert!(matches!(Secret::open(directory.path()), Err(Error::Read { .. })));
        std::fs::write(&path, [7; 31]).unwrap();
        assert!(matches!(Secret::open(&path), Err(Error::Short { found: 31, .. })));
        std::fs::write(&path, [7; 32]).unwrap();
        assert!(Secret::open(&path).unwrap().key(b"a") == Secret::new(&[7; 32]).key(b"a"));
    }
}
