//! API keys: 256 random bits that only their owner knows; the gateway stores and compares SHA-256 digests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::file::{
    self, ListFile, Named, NewEntry, check_models, hexadecimal, parse_time, random, time_after,
};
use super::{Caller, Error, Grant, Identity, Scope};
use crate::audit::{self, Actor, Event};
use crate::follow::{self, Followed};

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
    /// The tenant that its caller belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The plan that its caller is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
}

impl Key {
    fn caller(&self) -> Caller {
        Caller::new(Identity {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            plan: self.plan.clone(),
            grant: Grant::new(&self.scopes, &self.models),
        })
    }
}

fn all_models() -> Vec<String> {
    vec!["*".into()]
}

impl Named for Key {
    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// A file of keys, as the command line edits it. What is done to it is recorded.
#[derive(Debug)]
pub struct KeysFile {
    file: ListFile,
    log: audit::Log,
}

impl KeysFile {
    /// The keys file at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>, log: audit::Log) -> Self {
        Self { file: ListFile::new(path, "API keys"), log }
    }

    /// The keys in the file; none if there is no file.
    ///
    /// # Errors
    /// [`file::Error`] if it cannot be read or is no list of keys.
    pub fn read(&self) -> Result<Vec<Key>, file::Error> {
        let keys: Vec<Key> = self.file.read()?;
        self.check(&keys)?;
        Ok(keys)
    }

    /// Makes a key and stores its digest. Returns its id and the key itself, which is nowhere else.
    ///
    /// # Errors
    /// [`file::Error`] if the file cannot be read or written, or the key not recorded.
    pub fn create(&self, new: NewEntry, now: SystemTime) -> Result<(String, String), file::Error> {
        check_models(&new.models)?;
        let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()?));
        let entry = Key {
            id: format!("key_{}", hexadecimal(&random::<6>()?)),
            name: new.name,
            sha256: hexadecimal(&digest(key.as_bytes())),
            scopes: new.scopes,
            models: new.models,
            expires_at: new.expires.map(|expires| time_after(now, expires)).transpose()?,
            tenant: new.tenant,
            plan: new.plan,
        };
        let id = entry.id.clone();
        self.file.edit(|keys: &mut Vec<Key>| {
            self.check(keys)?;
            let names: Vec<&str> = entry.scopes.iter().map(|scope| scope.as_str()).collect();
            let event = Event::new(Actor::operator(), "key.created", &entry.id)
                .with("name", entry.name.as_str())
                .with("scopes", names)
                .with("models", entry.models.as_slice())
                .with("tenant", entry.tenant.as_deref())
                .with("plan", entry.plan.as_deref())
                .with("expires_at", entry.expires_at.as_deref());
            self.log.record(&event)?;
            keys.push(entry);
            Ok(())
        })?;
        Ok((id, key))
    }

    /// Removes every key of this name, or the one with this id, and returns their ids.
    ///
    /// # Errors
    /// [`file::Error::Unknown`] if there is none, others if the file cannot be read or written, or this not recorded.
    pub fn revoke(&self, name_or_id: &str) -> Result<Vec<String>, file::Error> {
        self.file.remove(name_or_id, |key: &Key| {
            let event = Event::new(Actor::operator(), "key.revoked", &key.id).with("name", key.name.as_str());
            self.log.record(&event)
        })
    }

    fn check(&self, keys: &[Key]) -> Result<(), file::Error> {
        Ring::new(keys.to_vec()).map(drop).map_err(|message| self.file.content_error(message))
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
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
    caller: Caller,
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
            check_models(&key.models).map_err(|error| wrong(&error.to_string()))?;
            let expires_at = key.expires_at.as_deref().map(parse_time).transpose();
            let expires_at =
                expires_at.map_err(|expected| wrong(&format!("expected {expected} as expires_at")))?;
            let mut prefix = [0; 8];
            prefix.copy_from_slice(&digest[..8]);
            let entry = Entry { digest, expires_at, caller: key.caller() };
            ring.keys.entry(prefix).or_default().push(entry);
        }
        Ok(ring)
    }

    /// The ring that a keys file holds.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &[u8]) -> Result<Self, String> {
        let keys =
            serde_json::from_slice(text).map_err(|error| format!("expected a list of API keys: {error}"))?;
        Self::new(keys)
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
        Ok(entry.caller.clone())
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

/// Follows the keys file at `path`, which need not exist yet.
///
/// # Errors
/// [`follow::Error`] if it cannot be read or is no list of keys.
pub fn follow(path: &Path) -> Result<Followed<Ring>, follow::Error> {
    Followed::open_or("API keys", path.into(), Ring::default(), |texts| Ring::parse(&texts[0]))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn file() -> (tempfile::TempDir, KeysFile) {
        let directory = tempfile::tempdir().unwrap();
        let log = audit::Log::new(directory.path());
        let file = KeysFile::new(directory.path().join("keys.json"), log);
        (directory, file)
    }

    fn web() -> NewEntry {
        let (scopes, models) = (vec![Scope::ScorePredict], vec!["churn".into()]);
        NewEntry { name: "web".into(), scopes, models, ..NewEntry::default() }
    }

    fn create(file: &KeysFile, new: NewEntry) -> String {
        file.create(new, SystemTime::now()).unwrap().1
    }

    #[test]
    fn a_key_is_stored_as_its_digest_only_and_verifies() {
        let (directory, file) = file();
        let key = create(&file, web());
        assert!(key.starts_with(PREFIX) && key.len() == PREFIX.len() + 43, "{key}");
        for entry in fs::read_dir(directory.path()).unwrap() {
            assert!(!fs::read_to_string(entry.unwrap().path()).unwrap().contains(&key[3..]));
        }
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
        let (old, new) = (create(&file, web()), create(&file, web()));
        let ring = Ring::new(file.read().unwrap()).unwrap();
        let old_id = ring.verify(&old, SystemTime::now()).unwrap().id().to_string();
        assert!(ring.verify(&new, SystemTime::now()).is_ok());
        assert_eq!(file.revoke(&old_id).unwrap(), [old_id]);
        let ring = Ring::new(file.read().unwrap()).unwrap();
        assert!(ring.verify(&old, SystemTime::now()).is_err());
        assert!(ring.verify(&new, SystemTime::now()).is_ok());
        assert!(matches!(file.revoke("nobody"), Err(file::Error::Unknown { .. })));
    }

    #[test]
    fn keys_made_at_once_are_all_kept() {
        let (_directory, file) = file();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| create(&file, web()));
            }
        });
        assert_eq!(file.read().unwrap().len(), 8);
    }

    #[test]
    fn a_key_expires() {
        let (_directory, file) = file();
        let lasting = |days: u64| NewEntry { expires: Some(Duration::from_secs(days * 86_400)), ..web() };
        let key = create(&file, lasting(1));
        let ring = Ring::new(file.read().unwrap()).unwrap();
        assert!(ring.verify(&key, SystemTime::now()).is_ok());
        let later = SystemTime::now() + Duration::from_secs(86_401);
        assert_eq!(ring.verify(&key, later).unwrap_err(), Error::InvalidKey);
        let forever = file.create(lasting(3_000_000), SystemTime::now());
        assert!(matches!(forever, Err(file::Error::Expiry)));
    }

    #[test]
    fn a_key_names_models_that_there_can_be() {
        let (_directory, file) = file();
        for (models, odd) in [(["other", ""], ""), (["chu rn", "other"], "chu rn"), (["*", "../a"], "../a")] {
            let new = NewEntry { models: models.map(Into::into).into(), ..web() };
            let refused = file.create(new, SystemTime::now()).unwrap_err();
            assert!(matches!(&refused, file::Error::Model(found) if found == odd), "{refused}");
        }
        assert_eq!(file.read().unwrap(), []);
    }

    #[test]
    fn whoever_could_read_the_keys_can_read_them_after_a_change() {
        use std::os::unix::fs::{MetadataExt, chown};
        let (_directory, file) = file();
        let path = file.file.path();
        create(&file, web());
        let found =
            |path: &Path| fs::metadata(path).map(|at| (at.uid(), at.gid(), at.mode() & 0o777)).unwrap();
        assert_eq!(found(path).2, 0o600);
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        // As somebody else's where that can be, as with a gateway that runs as another user than this command.
        let somebody = nix::unistd::geteuid().is_root().then_some(12_345);
        chown(path, somebody, somebody).unwrap();
        let before = found(path);
        file.revoke("web").unwrap();
        assert_eq!(found(path), before);
    }

    #[test]
    fn what_cannot_be_recorded_is_not_done() {
        let (directory, file) = file();
        let key = create(&file, web());
        let text = fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
        let event: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((&event["action"], &event["name"]), (&"key.created".into(), &"web".into()));
        assert!(!text.contains(&key[3..]));
        let blocked = KeysFile::new(directory.path().join("keys.json"), audit::Log::new(file.file.path()));
        assert!(matches!(blocked.create(web(), SystemTime::now()), Err(file::Error::Audit(_))));
        assert!(matches!(blocked.revoke("web"), Err(file::Error::Audit(_))));
        assert_eq!(file.read().unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_is_no_list_of_keys_says_what_is_wrong() {
        let (_directory, file) = file();
        let digits = "0".repeat(64);
        let odd_model =
            format!(r#"[{{"id":"a","name":"a","sha256":"{digits}","scopes":[],"models":["a b"]}}]"#);
        for (text, expected) in [
            ("{}", "expected a sequence"),
            (r#"[{"id":"a","name":"a","sha256":"00","scopes":[]}]"#, "64 hexadecimal digits"),
            (r#"[{"id":"a","name":"a","sha256":"00","scopes":["score:everything"]}]"#, "unknown variant"),
            (&odd_model, "found the model \"a b\""),
        ] {
            fs::write(file.file.path(), text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            let error = file.create(web(), SystemTime::now()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(
                fs::read_to_string(file.file.path()).unwrap(),
                text,
                "what is not understood is not replaced"
            );
        }
    }
}
