//! API keys: 256 random bits that only their owner knows; the gateway stores and compares SHA-256 digests.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Caller, Error, Scope};

/// What every key begins with.
pub const PREFIX: &str = "sg_";

/// One entry of the keys file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Unique, and what logs name.
    pub id: String,
    /// What it is for; keys of one name may live side by side for rotation.
    pub name: String,
    /// SHA-256 of the key, in hexadecimal.
    pub sha256: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The models that it may use; `*` is all.
    #[serde(default = "all_models")]
    pub models: Vec<String>,
    /// When it ends to be valid, RFC 3339.
    #[serde(default)]
    pub expires_at: Option<String>,
}

fn all_models() -> Vec<String> {
    vec!["*".into()]
}

/// What can be wrong with a keys file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// It is no list of keys.
    #[error("{} is no list of API keys: {message}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A key cannot be valid for that long.
    #[error("found an end of validity beyond the year 9999, expected an earlier one such as 90d")]
    Expiry,
    /// No key has this name or id.
    #[error("no key of {} has the name or id \"{}\"", .path.display(), .key.escape_debug())]
    NoSuchKey {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        key: String,
    },
}

/// A file of keys, as the command line edits it.
#[derive(Debug)]
pub struct KeysFile {
    path: PathBuf,
}

impl KeysFile {
    /// The keys file at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The keys in the file; none if there is no file.
    ///
    /// # Errors
    /// [`FileError`] if it cannot be read or is no list of keys.
    pub fn read(&self) -> Result<Vec<Key>, FileError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.io_error("read", source)),
        };
        self.parse(&text)?;
        serde_json::from_slice(&text).map_err(|error| self.content_error(error.to_string()))
    }

    fn parse(&self, text: &[u8]) -> Result<Ring, FileError> {
        let keys: Vec<Key> =
            serde_json::from_slice(text).map_err(|error| self.content_error(error.to_string()))?;
        Ring::new(keys).map_err(|message| self.content_error(message))
    }

    /// Makes a key and stores its digest. The key itself is returned and nowhere else.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be read or written.
    pub fn create(
        &self,
        name: &str,
        scopes: Vec<Scope>,
        models: Vec<String>,
        expires: Option<Duration>,
    ) -> Result<String, FileError> {
        let _lock = self.lock()?;
        let mut keys = self.read()?;
        let secret = random(32).map_err(|error| self.content_error(error))?;
        let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
        let id = random(6).map_err(|error| self.content_error(error))?;
        let expires_at = expires.map(|expires| {
            let seconds = i64::try_from(expires.as_secs()).ok()?;
            let at = OffsetDateTime::now_utc().checked_add(time::Duration::seconds(seconds))?;
            at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok()
        });
        let expires_at = match expires_at {
            Some(None) => return Err(FileError::Expiry),
            other => other.flatten(),
        };
        keys.push(Key {
            id: format!("key_{}", hexadecimal(&id)),
            name: name.into(),
            sha256: hexadecimal(&digest(key.as_bytes())),
            scopes,
            models,
            expires_at,
        });
        self.write(&keys)?;
        Ok(key)
    }

    /// Removes every key of this name, or the one with this id, and says how many there were.
    ///
    /// # Errors
    /// [`FileError::NoSuchKey`] if there is none, others if the file cannot be read or written.
    pub fn revoke(&self, name_or_id: &str) -> Result<usize, FileError> {
        let _lock = self.lock()?;
        let mut keys = self.read()?;
        let before = keys.len();
        keys.retain(|key| key.name != name_or_id && key.id != name_or_id);
        let revoked = before - keys.len();
        if revoked == 0 {
            return Err(FileError::NoSuchKey { path: self.path.clone(), key: name_or_id.into() });
        }
        self.write(&keys)?;
        Ok(revoked)
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }

    /// Keeps other commands from editing the file until the lock is dropped. The directory is what is locked: the file
    /// itself is replaced.
    fn lock(&self) -> Result<fs::File, FileError> {
        let lock = || -> std::io::Result<fs::File> {
            let directory = fs::File::open(self.directory())?;
            directory.lock()?;
            Ok(directory)
        };
        lock().map_err(|source| self.io_error("lock the directory of", source))
    }

    /// Replaces the file in one step, readable by its owner only.
    fn write(&self, keys: &[Key]) -> Result<(), FileError> {
        let directory = self.directory();
        let mut text =
            serde_json::to_vec_pretty(keys).map_err(|error| self.content_error(error.to_string()))?;
        text.push(b'\n');
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(|source| self.io_error("write", source))
    }

    fn io_error(&self, action: &'static str, source: std::io::Error) -> FileError {
        FileError::Io { action, path: self.path.clone(), source }
    }

    fn content_error(&self, message: String) -> FileError {
        FileError::Content { path: self.path.clone(), message }
    }
}

fn random(bytes: usize) -> Result<Vec<u8>, String> {
    let mut buffer = vec![0; bytes];
    rand::rngs::OsRng
        .try_fill_bytes(&mut buffer)
        .map_err(|error| format!("no randomness from the system: {error}"))?;
    Ok(buffer)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The keys that are valid, found by digest.
#[derive(Debug, Default)]
pub struct Ring {
    /// By the first eight bytes of the digest. Finding an entry says nothing about a key: whoever can choose these bytes has
    /// found a preimage. The whole digest is compared in constant time.
    keys: HashMap<[u8; 8], Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    digest: [u8; 32],
    expires_at: Option<SystemTime>,
    key: Arc<Key>,
}

impl Ring {
    /// A ring of `keys`.
    ///
    /// # Errors
    /// What is wrong with which key.
    pub fn new(keys: Vec<Key>) -> Result<Self, String> {
        let mut ring = Self::default();
        let mut ids = std::collections::HashSet::new();
        for key in keys {
            let wrong = |what: &str| format!("key \"{}\": {what}", key.id.escape_debug());
            if !ids.insert(key.id.clone()) {
                return Err(wrong("its id is there twice"));
            }
            let digest =
                decode(&key.sha256).ok_or_else(|| wrong("expected 64 hexadecimal digits as sha256"))?;
            let expires_at =
                key.expires_at.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339)).transpose();
            let expires_at = expires_at.map_err(|_| wrong("expected an RFC 3339 time as expires_at"))?;
            let mut prefix = [0; 8];
            prefix.copy_from_slice(&digest[..8]);
            let entry = Entry { digest, expires_at: expires_at.map(Into::into), key: Arc::new(key) };
            ring.keys.entry(prefix).or_default().push(entry);
        }
        Ok(ring)
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The caller that `key` belongs to at the time `now`.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] if the key is unknown or has expired.
    pub fn verify(&self, key: &str, now: SystemTime) -> Result<Caller, Error> {
        let digest = digest(key.as_bytes());
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&digest[..8]);
        let entries = self.keys.get(&prefix).map_or(&[][..], Vec::as_slice);
        let entry =
            entries.iter().find(|entry| entry.digest.ct_eq(&digest).into()).ok_or(Error::InvalidKey)?;
        if entry.expires_at.is_some_and(|expires_at| now >= expires_at) {
            return Err(Error::InvalidKey);
        }
        Ok(Caller { key: Arc::clone(&entry.key) })
    }
}

fn decode(hexadecimal: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if hexadecimal.len() != 64 || !hexadecimal.is_ascii() {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hexadecimal[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(digest)
}

/// The keys file as a running gateway sees it: read again when it changes, and kept as it was while it is unreadable.
#[derive(Debug)]
pub struct LiveKeys {
    path: PathBuf,
    ring: ArcSwap<Ring>,
}

/// How often the keys file is looked at: a revoked key must be refused within five seconds.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

impl LiveKeys {
    /// Reads the keys for the first time.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be read or is no list of keys.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = KeysFile::new(path);
        let ring = Ring::new(file.read()?).map_err(|message| file.content_error(message))?;
        Ok(Self { path: path.into(), ring: ArcSwap::from_pointee(ring) })
    }

    /// The keys as they are now.
    pub fn ring(&self) -> arc_swap::Guard<Arc<Ring>> {
        self.ring.load()
    }

    /// Follows the file for as long as the gateway runs.
    pub async fn follow(&self) {
        let mut seen: Option<Vec<u8>> = None;
        let mut failed = String::new();
        let mut timer = tokio::time::interval(RELOAD_EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let file = KeysFile::new(&self.path);
        loop {
            timer.tick().await;
            // Read here: the blocking threads may be busy scoring, and a revocation must not wait for them. The text itself
            // is compared: a file that is replaced within the clock's resolution has changed all the same.
            let text = match fs::read(&self.path) {
                Ok(text) if seen.as_ref() == Some(&text) => continue,
                Ok(text) => Ok(text),
                Err(source) => Err(file.io_error("read", source)),
            };
            let read = text.and_then(|text| Ok((file.parse(&text)?, text)));
            match read {
                Ok((ring, text)) => {
                    self.ring.store(Arc::new(ring));
                    failed.clear();
                    if seen.replace(text).is_some() {
                        tracing::info!(path = %self.path.display(), "API keys read again");
                    }
                }
                Err(error) => {
                    // Told once, tried again every time.
                    let error = format!("{:#}", anyhow::Error::from(error));
                    if error != failed {
                        tracing::error!(error, "API keys not changed: the file cannot be used");
                        failed = error;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, KeysFile) {
        let directory = tempfile::tempdir().unwrap();
        let file = KeysFile::new(directory.path().join("keys.json"));
        (directory, file)
    }

    #[test]
    fn a_key_is_stored_as_its_digest_only_and_verifies() {
        let (_directory, file) = file();
        let key = file.create("web", vec![Scope::ScorePredict], vec!["churn".into()], None).unwrap();
        assert!(key.starts_with(PREFIX) && key.len() == PREFIX.len() + 43, "{key}");
        assert!(!fs::read_to_string(&file.path).unwrap().contains(&key[3..]));
        let ring = Ring::new(file.read().unwrap()).unwrap();
        let caller = ring.verify(&key, SystemTime::now()).unwrap();
        assert!(caller.may(Scope::ScorePredict) && !caller.may(Scope::ModelsRead));
        assert!(caller.may_use("churn") && !caller.may_use("other"));
        for wrong in [&key[..key.len() - 1], &format!("{key}A"), "sg_", "", &key.to_lowercase()] {
            assert_eq!(ring.verify(wrong, SystemTime::now()).unwrap_err(), Error::InvalidKey, "{wrong}");
        }
    }

    #[test]
    fn keys_of_one_name_live_side_by_side_until_revoked() {
        let (_directory, file) = file();
        let scopes = || vec![Scope::ScorePredict];
        let old = file.create("web", scopes(), all_models(), None).unwrap();
        let new = file.create("web", scopes(), all_models(), None).unwrap();
        let ring = Ring::new(file.read().unwrap()).unwrap();
        let old_id = ring.verify(&old, SystemTime::now()).unwrap().id().to_string();
        assert!(ring.verify(&new, SystemTime::now()).is_ok());
        assert_eq!(file.revoke(&old_id).unwrap(), 1);
        let ring = Ring::new(file.read().unwrap()).unwrap();
        assert!(ring.verify(&old, SystemTime::now()).is_err());
        assert!(ring.verify(&new, SystemTime::now()).is_ok());
        assert!(matches!(file.revoke("nobody"), Err(FileError::NoSuchKey { .. })));
    }

    #[test]
    fn keys_made_at_once_are_all_kept() {
        let (_directory, file) = file();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| file.create("web", vec![Scope::ScorePredict], all_models(), None).unwrap());
            }
        });
        assert_eq!(file.read().unwrap().len(), 8);
    }

    #[test]
    fn a_key_expires() {
        let (_directory, file) = file();
        let key = file.create("web", vec![], all_models(), Some(Duration::from_secs(3_600))).unwrap();
        let ring = Ring::new(file.read().unwrap()).unwrap();
        assert!(ring.verify(&key, SystemTime::now()).is_ok());
        let later = SystemTime::now() + Duration::from_secs(3_601);
        assert_eq!(ring.verify(&key, later).unwrap_err(), Error::InvalidKey);
        let forever = file.create("web", vec![], all_models(), Some(Duration::from_secs(3_000_000 * 86_400)));
        assert!(matches!(forever, Err(FileError::Expiry)));
    }

    #[test]
    fn a_file_that_is_no_list_of_keys_says_what_is_wrong() {
        let (_directory, file) = file();
        for (text, expected) in [
            ("{}", "expected a sequence"),
            (r#"[{"id":"a","name":"a","sha256":"00","scopes":[]}]"#, "64 hexadecimal digits"),
            (r#"[{"id":"a","name":"a","sha256":"00","scopes":["score:everything"]}]"#, "unknown variant"),
        ] {
            fs::write(&file.path, text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
