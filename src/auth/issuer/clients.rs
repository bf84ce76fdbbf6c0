//! The clients of the built-in issuer: who they are, what they may ask for, and how they prove it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

use super::Error;
use super::secrets::Memory;
use crate::audit::{self, Actor, Event};
use crate::auth::file::{
    self, ListFile, Named, NewEntry, check_models, hexadecimal, parse_time, random, time_after,
};
use crate::auth::{MODEL, Scope};
use crate::follow::Followed;

/// The most memory that checking one secret may take, in KiB: what the clients file says is believed up to here.
const MAX_MEMORY: u32 = 64 * 1024;
/// The most passes over it.
const MAX_PASSES: u32 = 10;
/// The most scopes that may be asked for at a time.
const MAX_SCOPES: usize = 64;
/// The longest list of scopes in a token: base64 makes 5.4 KiB of it, and whole tokens have 8.
const MAX_SCOPE_BYTES: usize = 4 * 1024;

/// Why a client is given no token with some scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// It may not have all of them.
    #[error("the client may not have all of the scopes that it asked for")]
    Denied,
    /// A token has no room for them.
    #[error("found more scopes than a token has room for, expected fewer: ask for the models that you use")]
    TooMany,
}

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
    ///
    /// # Errors
    /// [`ScopeError`] if there is no such token.
    pub(super) fn scopes(&self, requested: Option<&str>) -> Result<String, ScopeError> {
        let any_model = self.models.iter().any(|model| model == "*");
        let may_have = |name: &str| match name.strip_prefix(MODEL) {
            Some(model) if any_model => check_name("model", model).is_ok(),
            Some(model) => self.models.iter().any(|own| own == model),
            None => self.scopes.iter().any(|own| own.as_str() == name),
        };
        let mut granted: Vec<String> = match requested {
            None => self.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            Some(requested) => {
                let names = || requested.split(' ').filter(|name| !name.is_empty());
                if names().nth(MAX_SCOPES).is_some() {
                    return Err(ScopeError::TooMany);
                }
                if !names().all(may_have) {
                    return Err(ScopeError::Denied);
                }
                names().map(str::to_owned).collect()
            }
        };
        if !any_model && !granted.iter().any(|name| name.starts_with(MODEL)) {
            granted.extend(self.models.iter().map(|model| format!("{MODEL}{model}")));
        }
        let mut seen = HashSet::new();
        granted.retain(|name| seen.insert(name.clone()));
        let scopes = granted.join(" ");
        if scopes.len() <= MAX_SCOPE_BYTES { Ok(scopes) } else { Err(ScopeError::TooMany) }
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
        entry.scopes(None).map_err(|_| file::Error::TooManyModels)?;
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
        by_id(clients.to_vec()).map(drop).map_err(|message| self.file.content_error(message))
    }
}

fn hash(secret: &str, salt: &[u8]) -> Result<String, argon2::password_hash::Error> {
    let salt = SaltString::encode_b64(salt)?;
    Ok(Argon2::default().hash_password(secret.as_bytes(), &salt)?.to_string())
}

/// The clients of a list by their ids, in order.
///
/// # Errors
/// What is wrong with which client.
fn by_id(clients: Vec<Client>) -> Result<BTreeMap<String, Client>, String> {
    let mut entries = BTreeMap::new();
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
        if entries.insert(id.clone(), client).is_some() {
            return Err(wrong("its id is there twice"));
        }
    }
    Ok(entries)
}

/// What is remembered of secrets that were right: from one reading of the file to the next, too.
struct Proofs {
    /// What the digests begin with.
    key: [u8; 32],
    by_client: Mutex<HashMap<String, Proof>>,
}

struct Proof {
    /// The hash that the secret was compared with.
    secret_argon2: String,
    digest: [u8; 32],
}

impl Proofs {
    fn new() -> Result<Self, file::Error> {
        Ok(Self { key: random()?, by_client: Mutex::default() })
    }

    fn digest(&self, text: &str) -> [u8; 32] {
        Sha256::new().chain_update(self.key).chain_update(text).finalize().into()
    }

    fn by_client(&self) -> MutexGuard<'_, HashMap<String, Proof>> {
        self.by_client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Proofs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Proofs").finish_non_exhaustive()
    }
}

/// The clients that there are.
#[derive(Debug)]
pub(super) struct Clients {
    by_id: BTreeMap<String, Client>,
    proofs: Arc<Proofs>,
}

impl Clients {
    /// The clients of a list.
    ///
    /// # Errors
    /// What is wrong with which client.
    fn new(clients: Vec<Client>, proofs: Arc<Proofs>) -> Result<Self, String> {
        let by_id = by_id(clients)?;
        proofs.by_client().retain(|id, _| by_id.contains_key(id));
        Ok(Self { by_id, proofs })
    }

    /// The clients that a file holds.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &[u8], proofs: Arc<Proofs>) -> Result<Self, String> {
        let clients = serde_json::from_slice(text)
            .map_err(|error| format!("expected a list of OAuth clients: {error}"))?;
        Self::new(clients, proofs)
    }

    /// The client called `id`, unless its time is over.
    pub(super) fn get(&self, id: &str, now: SystemTime) -> Option<&Client> {
        self.by_id.get(id).filter(|client| !client.has_expired(now))
    }

    /// Whether `secret` is known to be that of `id`, without the work that its hash takes.
    pub(super) fn remembers(&self, id: &str, secret: &str) -> bool {
        let digest = self.proofs.digest(secret);
        let proofs = self.proofs.by_client();
        // A proof ends with the hash that it was for.
        self.by_id.get(id).zip(proofs.get(id)).is_some_and(|(client, proof)| {
            proof.secret_argon2 == client.secret_argon2 && bool::from(proof.digest.ct_eq(&digest))
        })
    }

    /// Whether a secret of `id` has been right before, be it this one or another.
    pub(super) fn has_proved(&self, id: &str) -> bool {
        self.proofs.by_client().contains_key(id)
    }

    /// Whether `secret` is that of `id`. Takes some 20 milliseconds and 19 MiB, whether there is such a client or not.
    pub(super) fn verify(&self, id: &str, secret: &str, memory: &mut Memory) -> bool {
        let Some(client) = self.by_id.get(id) else {
            // Who asks must not learn from the time it takes which clients there are.
            memory.work_in_vain(self.any_hash(id), secret);
            return false;
        };
        let is_right = memory.is_hash_of(&client.secret_argon2, secret);
        if is_right {
            let proof =
                Proof { secret_argon2: client.secret_argon2.clone(), digest: self.proofs.digest(secret) };
            self.proofs.by_client().insert(id.to_owned(), proof);
        }
        is_right
    }

    /// The hash of some client, the same each time for an `id`: files may hold hashes that take more or less work.
    fn any_hash(&self, id: &str) -> Option<&str> {
        let [first, second, ..] = self.proofs.digest(id);
        let at = usize::from(u16::from_le_bytes([first, second])).checked_rem(self.by_id.len())?;
        self.by_id.values().nth(at).map(|client| client.secret_argon2.as_str())
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
/// [`Error`] if it cannot be read or is no list of clients.
pub(super) fn follow(path: &Path) -> Result<Followed<Clients>, Error> {
    let proofs = Arc::new(Proofs::new()?);
    let absent = Clients { by_id: BTreeMap::new(), proofs: Arc::clone(&proofs) };
    let parse = move |texts: &[Vec<u8>]| Clients::parse(&texts[0], Arc::clone(&proofs));
    Ok(Followed::open_or("OAuth clients", path.into(), absent, parse)?)
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

    fn proofs() -> Arc<Proofs> {
        Arc::new(Proofs::new().unwrap())
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
        let clients = Clients::new(file.read().unwrap(), proofs()).unwrap();
        assert!(!clients.remembers(&id, secret));
        let mut memory = Memory::default();
        assert!(!clients.verify(&id, &secret[1..], &mut memory));
        assert!(!clients.verify("nobody", secret, &mut memory));
        assert!(!clients.remembers(&id, secret));
        assert!(clients.verify(&id, secret, &mut memory));
        assert!(clients.remembers(&id, secret));
        assert!(!clients.remembers(&id, &secret[1..]));
        assert!(!clients.remembers("nobody", secret));
        assert!(!format!("{:?}", clients.proofs).contains('['), "neither the key nor a digest");
    }

    #[test]
    fn what_was_proved_outlives_a_change_of_the_file_that_leaves_it_alone() {
        let (_directory, file) = file();
        let (id, secret) = file.create(shop(), SystemTime::now()).unwrap();
        let secret = secret.expose_secret();
        let proofs = proofs();
        let read = |list: Vec<Client>| Clients::new(list, Arc::clone(&proofs)).unwrap();
        let list = file.read().unwrap();
        let first = read(list.clone());
        assert!(!first.has_proved(&id));
        assert!(first.verify(&id, secret, &mut Memory::default()) && first.has_proved(&id));
        file.create(NewEntry { name: "other".into(), ..shop() }, SystemTime::now()).unwrap();
        let longer = read(file.read().unwrap());
        assert!(longer.remembers(&id, secret) && longer.has_proved(&id));
        // The id has another secret now.
        let mut changed = list.clone();
        changed[0].secret_argon2 = hash("another secret", b"another salt").unwrap();
        let changed = read(changed);
        assert!(!changed.remembers(&id, secret) && changed.has_proved(&id));
        let gone = read(Vec::new());
        assert!(!gone.remembers(&id, secret) && !gone.has_proved(&id));
        assert!(!read(list).has_proved(&id), "nothing is kept of a client that was not there");
    }

    #[test]
    fn a_client_that_there_is_not_costs_as_much_as_one_that_there_is() {
        let hash = |m_cost: u32| {
            let salt = SaltString::encode_b64(b"some salt").unwrap();
            let argon2 = Argon2::from(Params::new(m_cost, 1, 1, None).unwrap());
            argon2.hash_password(b"secret", &salt).unwrap().to_string()
        };
        let client = |id: &str, hash: String| Client {
            id: id.into(),
            name: id.into(),
            secret_argon2: hash,
            scopes: Vec::new(),
            models: all_models(),
            tenant: None,
            plan: None,
            expires_at: None,
        };
        let (small, large) = (client("small", hash(64)), client("large", hash(1_024)));
        let kibibytes = |clients: &[Client], id: &str| {
            let clients = Clients::new(clients.to_vec(), proofs()).unwrap();
            let mut memory = Memory::default();
            // Right for another, and still no proof.
            assert!(!clients.verify(id, "secret", &mut memory) && !clients.has_proved(id));
            memory.kibibytes()
        };
        assert_eq!(kibibytes(std::slice::from_ref(&small), "nobody"), 64);
        assert_eq!(kibibytes(std::slice::from_ref(&large), "nobody"), 1_024);
        assert_eq!(kibibytes(&[], "nobody"), 19_456);
        let both = Clients::new(vec![small, large], proofs()).unwrap();
        let names: Vec<String> = (0..64).map(|at| format!("nobody-{at}")).collect();
        let hashes: HashSet<_> = names.iter().map(|name| both.any_hash(name)).collect();
        assert_eq!(hashes.len(), 2, "not the same for everybody");
        assert!(names.iter().all(|name| both.any_hash(name) == both.any_hash(name)));
    }

    #[test]
    fn a_client_is_found_by_its_id_or_a_name_that_is_its_own_and_ends() {
        let (_directory, file) = file();
        let expires = Some(Duration::from_secs(60));
        let (id, _) = file.create(NewEntry { expires, ..shop() }, SystemTime::now()).unwrap();
        assert_eq!(file.find("shop").unwrap().id, id);
        let clients = Clients::new(file.read().unwrap(), proofs()).unwrap();
        assert!(clients.get(&id, SystemTime::now()).is_some());
        assert!(clients.get(&id, SystemTime::now() + Duration::from_secs(61)).is_none());
        file.create(shop(), SystemTime::now()).unwrap();
        assert!(matches!(file.find("shop"), Err(file::Error::Ambiguous { .. })));
        assert_eq!(file.find(&id).unwrap().id, id);
        assert_eq!(file.revoke("shop").unwrap().len(), 2);
        assert!(matches!(file.find(&id), Err(file::Error::Unknown { .. })));
        assert!(matches!(file.revoke("shop"), Err(file::Error::Unknown { .. })));
        let models = (0..300).map(|at| format!("model-number-{at}")).collect();
        let many = file.create(NewEntry { models, ..shop() }, SystemTime::now());
        assert!(matches!(many, Err(file::Error::TooManyModels)));
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
            (&["*"][..], None, Ok("score:predict models:read")),
            (&["*"], Some("models:read"), Ok("models:read")),
            (&["*"], Some("models:read  models:read"), Ok("models:read")),
            (&["*"], Some("score:predict model:churn"), Ok("score:predict model:churn")),
            (&["*"], Some("model:../etc"), Err(ScopeError::Denied)),
            (&["*"], Some("model:*"), Err(ScopeError::Denied)),
            (&["*"], Some("models:write"), Err(ScopeError::Denied)),
            (&["*"], Some("score"), Err(ScopeError::Denied)),
            (&["*"], Some("Score:Predict"), Err(ScopeError::Denied)),
            (&["a", "b"], None, Ok("score:predict models:read model:a model:b")),
            (&["a", "b"], Some("score:predict"), Ok("score:predict model:a model:b")),
            (&["a", "b"], Some("score:predict model:b"), Ok("score:predict model:b")),
            (&["a", "b"], Some("score:predict model:c"), Err(ScopeError::Denied)),
        ] {
            let granted = client(models).scopes(requested);
            assert_eq!(granted.as_deref(), expected.as_ref().map(|text| *text), "{models:?} {requested:?}");
        }
    }

    #[test]
    fn no_token_has_more_scopes_than_it_has_room_for() {
        let client = |models: Vec<String>| Client {
            id: "client_1".into(),
            name: "shop".into(),
            secret_argon2: String::new(),
            scopes: vec![Scope::ScorePredict],
            models,
            tenant: None,
            plan: None,
            expires_at: None,
        };
        let names = |count: usize| (0..count).map(|at| format!("model:m{at}")).collect::<Vec<_>>().join(" ");
        let any = client(all_models());
        assert_eq!(any.scopes(Some(&names(MAX_SCOPES))), Ok(names(MAX_SCOPES)));
        // As many as a request has room for, and the same one as often.
        for many in [names(MAX_SCOPES + 1), names(6_500), "score:predict ".repeat(4_000)] {
            assert_eq!(any.scopes(Some(&many)), Err(ScopeError::TooMany));
        }
        // Names as long as they may be.
        let long = (0..MAX_SCOPES).map(|at| format!("model:{at:064}")).collect::<Vec<_>>().join(" ");
        assert_eq!(any.scopes(Some(&long)), Err(ScopeError::TooMany));
        let many = client((0..2_000).map(|at| format!("m{at}")).collect());
        assert_eq!(many.scopes(None), Err(ScopeError::TooMany));
        assert_eq!(many.scopes(Some("model:m1999")), Ok("model:m1999".into()));
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
