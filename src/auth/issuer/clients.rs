//! The clients of the built-in issuer: who they are, what they may ask for, and how they prove it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use argon2::password_hash::{PasswordHash, PasswordHasher, SaltString};
use argon2::{ARGON2ID_IDENT, Argon2, Params};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use scoregate_model::package::check_name;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::secrets::Memory;
use crate::audit::{self, Actor, Event};
use crate::auth::file::{
    self, ListFile, Named, NewEntry, check_models, hexadecimal, parse_time, random, time_after,
};
use crate::auth::{MODEL, Scope};
use crate::follow::{self, Followed};

/// The most memory that checking one secret may take, in KiB: what the clients file says is believed up to here.
const MAX_MEMORY: u32 = 64 * 1024;
/// The most passes over it.
const MAX_PASSES: u32 = 10;

/// One entry of the clients file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Unique, and the subject of its tokens.
    pub id: String,
    /// What it is for; clients of one name may live side by side for rotation.
    pub name: String,
    /// The hash of its secret, as a PHC string (argon2id).
    pub secret_argon2: String,
    /// What its tokens may allow.
    pub scopes: Vec<Scope>,
    /// The models that they may be used for; `*` is all.
    #[serde(default = "all_models")]
    pub models: Vec<String>,
    /// The tenant that it belongs to.
    #[serde(default)]
    pub tenant: Option<String>,
    /// The plan that it is on.
    #[serde(default)]
    pub plan: Option<String>,
    /// When it ends to be given tokens, RFC 3339.
    #[serde(default)]
    pub expires_at: Option<String>,
}

fn all_models() -> Vec<String> {
    vec!["*".into()]
}

impl Client {
    /// Whether it is given no more tokens. A time that cannot be read is refused with its file.
    pub(super) fn has_expired(&self, now: SystemTime) -> bool {
        let ends = self.expires_at.as_deref().and_then(|text| parse_time(text).ok());
        ends.is_some_and(|ends| now >= ends)
    }

    /// The scopes of a token for which `requested` was asked, separated by spaces; all that it may have if nothing was.
    /// A client of some models only gets tokens that name them.
    pub(super) fn scopes(&self, requested: Option<&str>) -> Option<String> {
        let any_model = self.models.iter().any(|model| model == "*");
        let mut granted: Vec<&str> = Vec::new();
        match requested {
            None => granted.extend(self.scopes.iter().map(|scope| scope.as_str())),
            Some(requested) => {
                for name in requested.split(' ').filter(|name| !name.is_empty()) {
                    let may = match name.strip_prefix(MODEL) {
                        Some(model) if any_model => check_name("model", model).is_ok(),
                        Some(model) => self.models.iter().any(|own| own == model),
                        None => self.scopes.iter().any(|own| own.as_str() == name),
                    };
                    if !may {
                        return None;
                    }
                    granted.push(name);
                }
            }
        }
        let mut scopes = String::new();
        let mut add = |name: &str| {
            if !scopes.split(' ').any(|there| there == name) {
                scopes.push_str(if scopes.is_empty() { "" } else { " " });
                scopes.push_str(name);
            }
        };
        granted.iter().for_each(|name| add(name));
        if !any_model && !granted.iter().any(|name| name.starts_with(MODEL)) {
            self.models.iter().for_each(|model| add(&format!("{MODEL}{model}")));
        }
        Some(scopes)
    }
}

impl Named for Client {
    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// A file of clients, as the command line edits it. What is done to it is recorded.
#[derive(Debug)]
pub struct ClientsFile {
    file: ListFile,
    log: audit::Log,
}

impl ClientsFile {
    /// The clients file at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>, log: audit::Log) -> Self {
        Self { file: ListFile::new(path, "OAuth clients"), log }
    }

    /// The clients in the file; none if there is no file.
    ///
    /// # Errors
    /// [`file::Error`] if it cannot be read or is no list of clients.
    pub fn read(&self) -> Result<Vec<Client>, file::Error> {
        let clients: Vec<Client> = self.file.read()?;
        self.check(&clients)?;
        Ok(clients)
    }

    /// The one client of this name or id.
    ///
    /// # Errors
    /// [`file::Error`] if the file cannot be used, has none, or has several.
    pub fn find(&self, name_or_id: &str) -> Result<Client, file::Error> {
        let is_meant = |client: &Client| client.id == name_or_id || client.name == name_or_id;
        let mut found: Vec<Client> = self.read()?.into_iter().filter(is_meant).collect();
        match (found.pop(), found.len()) {
            (None, _) => Err(self.file.unknown(name_or_id)),
            (Some(client), 0) => Ok(client),
            (Some(_), _) => {
                Err(file::Error::Ambiguous { path: self.file.path().into(), wanted: name_or_id.into() })
            }
        }
    }

    /// Makes a client and stores the hash of its secret. Returns its id and the secret itself, which is nowhere else.
    ///
    /// # Errors
    /// [`file::Error`] if the file cannot be read or written, or the client not recorded.
    pub fn create(&self, new: NewEntry, now: SystemTime) -> Result<(String, SecretString), file::Error> {
        check_models(&new.models)?;
        let secret = URL_SAFE_NO_PAD.encode(random::<32>()?);
        let entry = Client {
            id: format!("client_{}", hexadecimal(&random::<6>()?)),
            name: new.name,
            secret_argon2: hash(&secret, &random::<16>()?).map_err(file::Error::Hash)?,
            scopes: new.scopes,
            models: new.models,
            tenant: new.tenant,
            plan: new.plan,
            expires_at: new.expires.map(|expires| time_after(now, expires)).transpose()?,
        };
        let id = entry.id.clone();
        self.file.edit(|clients: &mut Vec<Client>| {
            let names: Vec<&str> = entry.scopes.iter().map(|scope| scope.as_str()).collect();
            let event = Event::new(Actor::operator(), "client.created", &entry.id)
                .with("name", entry.name.as_str())
                .with("scopes", names)
                .with("models", entry.models.as_slice())
                .with("tenant", entry.tenant.as_deref())
                .with("plan", entry.plan.as_deref())
                .with("expires_at", entry.expires_at.as_deref());
            clients.push(entry);
            self.check(clients)?;
            self.log.record(&event)?;
            Ok(())
        })?;
        Ok((id, secret.into()))
    }

    /// Removes every client of this name, or the one with this id, and returns their ids. Tokens that they have hold until
    /// they expire.
    ///
    /// # Errors
    /// [`file::Error::Unknown`] if there is none, others if the file cannot be read or written, or this not recorded.
    pub fn revoke(&self, name_or_id: &str) -> Result<Vec<String>, file::Error> {
        self.file.remove(name_or_id, |client: &Client| {
            let event = Event::new(Actor::operator(), "client.revoked", &client.id)
                .with("name", client.name.as_str());
            self.log.record(&event)
        })
    }

    fn check(&self, clients: &[Client]) -> Result<(), file::Error> {
        Clients::new(clients.to_vec()).map(drop).map_err(|message| self.file.content_error(message))
    }
}

fn hash(secret: &str, salt: &[u8]) -> Result<String, argon2::password_hash::Error> {
    let salt = SaltString::encode_b64(salt)?;
    Ok(Argon2::default().hash_password(secret.as_bytes(), &salt)?.to_string())
}

/// The clients that there are, by id.
#[derive(Debug, Default)]
pub(super) struct Clients {
    entries: HashMap<String, Entry>,
    /// What the digests of remembered secrets begin with.
    key: [u8; 32],
}

#[derive(Debug)]
struct Entry {
    client: Client,
    /// The digest of the secret, once it has been found to be right. It is gone with the entry when the file changes.
    remembered: OnceLock<[u8; 32]>,
}

impl Clients {
    /// The clients of a list.
    ///
    /// # Errors
    /// What is wrong with which client.
    fn new(clients: Vec<Client>) -> Result<Self, String> {
        let key = random().map_err(|error| error.to_string())?;
        let mut entries = HashMap::new();
        for client in clients {
            let id = client.id.clone();
            let wrong = |what: &str| format!("client \"{}\": {what}", id.escape_debug());
            if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong("expected visible ASCII characters as id"));
            }
            check_hash(&client.secret_argon2).map_err(|expected| wrong(&format!("expected {expected}")))?;
            if client.models.is_empty() {
                return Err(wrong("expected models, or [\"*\"] for all"));
            }
            if client.tenant.as_deref() == Some("") {
                return Err(wrong("expected a tenant's name, or none"));
            }
            if client.plan.as_deref() == Some("") {
                return Err(wrong("expected a plan's name, or none"));
            }
            check_models(&client.models).map_err(|error| wrong(&error.to_string()))?;
            let expires_at = client.expires_at.as_deref().map(parse_time).transpose();
            expires_at.map_err(|expected| wrong(&format!("expected {expected} as expires_at")))?;
            let entry = Entry { client, remembered: OnceLock::new() };
            if entries.insert(id.clone(), entry).is_some() {
                return Err(wrong("its id is there twice"));
            }
        }
        Ok(Self { entries, key })
    }

    /// The clients that a file holds.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &[u8]) -> Result<Self, String> {
        let clients = serde_json::from_slice(text)
            .map_err(|error| format!("expected a list of OAuth clients: {error}"))?;
        Self::new(clients)
    }

    /// The client called `id`, unless its time is over.
    pub(super) fn get(&self, id: &str, now: SystemTime) -> Option<&Client> {
        let entry = self.entries.get(id)?;
        Some(&entry.client).filter(|client| !client.has_expired(now))
    }

    /// Whether `secret` is known to be that of `id`, without the work that its hash takes.
    pub(super) fn remembers(&self, id: &str, secret: &str) -> bool {
        let known = self.entries.get(id).and_then(|entry| entry.remembered.get());
        known.is_some_and(|known| known.ct_eq(&self.digest(secret)).into())
    }

    /// Whether `secret` is that of `id`. Takes some 20 milliseconds and 19 MiB, whether there is such a client or not.
    pub(super) fn verify(&self, id: &str, secret: &str, memory: &mut Memory) -> bool {
        let Some(entry) = self.entries.get(id) else {
            // Who asks must not learn from the time it takes which clients there are.
            memory.work_in_vain(secret);
            return false;
        };
        let is_right = memory.is_hash_of(&entry.client.secret_argon2, secret);
        if is_right {
            // Two that are right at the same time remember the same.
            let _ = entry.remembered.set(self.digest(secret));
        }
        is_right
    }

    fn digest(&self, secret: &str) -> [u8; 32] {
        Sha256::new().chain_update(self.key).chain_update(secret).finalize().into()
    }
}

/// Checks that a secret can be compared with `text`, at a cost that is bounded.
fn check_hash(text: &str) -> Result<(), &'static str> {
    let expected = "an argon2id PHC string of at most 64 MiB and 10 passes as secret_argon2";
    let hash = PasswordHash::new(text).map_err(|_| expected)?;
    let params = Params::try_from(&hash).map_err(|_| expected)?;
    let is_bounded = params.m_cost() <= MAX_MEMORY && params.t_cost() <= MAX_PASSES && params.p_cost() == 1;
    let is_whole = hash.salt.is_some() && hash.hash.is_some();
    if hash.algorithm == ARGON2ID_IDENT && is_whole && is_bounded { Ok(()) } else { Err(expected) }
}

/// Follows the clients file at `path`, which need not exist yet.
///
/// # Errors
/// [`follow::Error`] if it cannot be read or is no list of clients.
pub(super) fn follow(path: &Path) -> Result<Followed<Clients>, follow::Error> {
    let parse = |texts: &[Vec<u8>]| Clients::parse(&texts[0]);
    Followed::open_or("OAuth clients", path.into(), Clients::default(), parse)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use secrecy::ExposeSecret;

    use super::*;

    fn file() -> (tempfile::TempDir, ClientsFile) {
        let directory = tempfile::tempdir().unwrap();
        let log = audit::Log::new(directory.path());
        let file = ClientsFile::new(directory.path().join("clients.json"), log);
        (directory, file)
    }

    fn shop() -> NewEntry {
        let scopes = vec![Scope::ScorePredict, Scope::ModelsRead];
        NewEntry { name: "shop".into(), scopes, models: all_models(), ..NewEntry::default() }
    }

    #[test]
    fn a_secret_is_stored_as_its_hash_only_and_remembered_once_it_was_right() {
        let (directory, file) = file();
        let (id, secret) = file.create(shop(), SystemTime::now()).unwrap();
        let secret = secret.expose_secret();
        assert_eq!(secret.len(), 43);
        for entry in fs::read_dir(directory.path()).unwrap() {
            assert!(!fs::read_to_string(entry.unwrap().path()).unwrap().contains(secret));
        }
        assert!(file.read().unwrap()[0].secret_argon2.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        let clients = Clients::new(file.read().unwrap()).unwrap();
        assert!(!clients.remembers(&id, secret));
        let mut memory = Memory::default();
        assert!(!clients.verify(&id, &secret[1..], &mut memory));
        assert!(!clients.verify("nobody", secret, &mut memory));
        assert!(!clients.remembers(&id, secret));
        assert!(clients.verify(&id, secret, &mut memory));
        assert!(clients.remembers(&id, secret));
        assert!(!clients.remembers(&id, &secret[1..]));
        assert!(!clients.remembers("nobody", secret));
    }

    #[test]
    fn a_client_is_found_by_its_id_or_a_name_that_is_its_own_and_ends() {
        let (_directory, file) = file();
        let expires = Some(Duration::from_secs(60));
        let (id, _) = file.create(NewEntry { expires, ..shop() }, SystemTime::now()).unwrap();
        assert_eq!(file.find("shop").unwrap().id, id);
        let clients = Clients::new(file.read().unwrap()).unwrap();
        assert!(clients.get(&id, SystemTime::now()).is_some());
        assert!(clients.get(&id, SystemTime::now() + Duration::from_secs(61)).is_none());
        file.create(shop(), SystemTime::now()).unwrap();
        assert!(matches!(file.find("shop"), Err(file::Error::Ambiguous { .. })));
        assert_eq!(file.find(&id).unwrap().id, id);
        assert_eq!(file.revoke("shop").unwrap().len(), 2);
        assert!(matches!(file.find(&id), Err(file::Error::Unknown { .. })));
        assert!(matches!(file.revoke("shop"), Err(file::Error::Unknown { .. })));
        let odd = file.create(NewEntry { models: vec!["a b".into()], ..shop() }, SystemTime::now());
        assert!(matches!(odd, Err(file::Error::Model(_))));
    }

    #[test]
    fn tokens_get_what_was_asked_for_and_never_more_than_the_client_has() {
        let client = |models: &[&str]| Client {
            id: "client_1".into(),
            name: "shop".into(),
            secret_argon2: String::new(),
            scopes: vec![Scope::ScorePredict, Scope::ModelsRead],
            models: models.iter().map(|model| (*model).into()).collect(),
            tenant: None,
            plan: None,
            expires_at: None,
        };
        for (models, requested, expected) in [
            (&["*"][..], None, Some("score:predict models:read")),
            (&["*"], Some("models:read"), Some("models:read")),
            (&["*"], Some("models:read  models:read"), Some("models:read")),
            (&["*"], Some("score:predict model:churn"), Some("score:predict model:churn")),
            (&["*"], Some("model:../etc"), None),
            (&["*"], Some("model:*"), None),
            (&["*"], Some("models:write"), None),
            (&["*"], Some("score"), None),
            (&["*"], Some("Score:Predict"), None),
            (&["a", "b"], None, Some("score:predict models:read model:a model:b")),
            (&["a", "b"], Some("score:predict"), Some("score:predict model:a model:b")),
            (&["a", "b"], Some("score:predict model:b"), Some("score:predict model:b")),
            (&["a", "b"], Some("score:predict model:c"), None),
        ] {
            let granted = client(models).scopes(requested);
            assert_eq!(granted.as_deref(), expected, "{models:?} {requested:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_list_of_clients_says_what_is_wrong() {
        let (_directory, file) = file();
        let entry = |hash: &str, more: &str| {
            format!(r#"{{"id":"a","name":"a","secret_argon2":"{hash}","scopes":["score:predict"]{more}}}"#)
        };
        let salt_and_hash = "c29tZXNhbHRzb21lc2FsdA$bm90IGEgaGFzaCBvZiBhbnl0aGluZyBhdCBhbGwuLi4";
        let right = format!("$argon2id$v=19$m=19456,t=2,p=1${salt_and_hash}");
        assert!(check_hash(&right).is_ok());
        for (text, expected) in [
            ("{}".to_string(), "expected a sequence"),
            (format!("[{}]", entry("secret", "")), "an argon2id PHC string"),
            (format!("[{}]", entry(&right.replace("argon2id", "argon2i"), "")), "an argon2id PHC string"),
            (format!("[{}]", entry(&right.replace("19456", "1945600"), "")), "at most 64 MiB"),
            (format!("[{}]", entry("$argon2id$v=19$m=19456,t=2,p=1", "")), "an argon2id PHC string"),
            (format!("[{}]", entry(&right, r#","models":[]"#)), "expected models"),
            (format!("[{}]", entry(&right, r#","tenant":"""#)), "expected a tenant"),
            (format!("[{}]", entry(&right, r#","plan":"""#)), "expected a plan"),
            (format!("[{}]", entry(&right, r#","models":["a b"]"#)), "found the model"),
            (format!("[{}]", entry(&right, r#","expires_at":"soon""#)), "an RFC 3339 time"),
            (format!("[{}]", entry(&right, r#","secret":"x""#)), "unknown field"),
            (format!("[{0},{0}]", entry(&right, "")), "its id is there twice"),
        ] {
            fs::write(file.file.path(), &text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(file.create(shop(), SystemTime::now()).is_err(), "{text}");
        }
    }
}
