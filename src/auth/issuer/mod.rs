//! The issuer that is built in: client credentials → access tokens (RFC 9068).
//!
//! [`clients`] are made by the operator, [`signing`] keys by the issuer itself, and [`secrets`] is where a client's secret
//! is compared.

pub mod clients;
mod secrets;
mod signing;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Header};
use secrecy::SecretString;
use serde::Serialize;
use tokio::sync::watch;

use self::clients::{Client, Clients, ScopeError};
use self::secrets::{Busy, Comparer};
use self::signing::{KeysFile, SigningKeys};
use super::file::{self, random};
use super::tokens::{MAX_BYTES, jwk::KeySet};
use crate::aside::{Aside, Undone};
use crate::audit::{self, Actor, Event};
use crate::config::{IssuerSettings, KeyLocation, OauthSettings};
use crate::follow::{self, Followed};

/// By how much the clocks of those who verify its tokens may differ.
const LEEWAY: Duration = Duration::from_secs(60);
/// How often it is looked whether a signing key is due.
const EVERY: Duration = Duration::from_secs(1);

/// Why the issuer cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(transparent)]
    Follow(#[from] follow::Error),
    /// The signing keys cannot be made, or nothing else that has to be random.
    #[error(transparent)]
    Keys(#[from] file::Error),
    /// The system has no more threads.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Why no token is given.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// There is no such client, or the secret is not its own; which of them is nobody's business.
    #[error("no client has this id and secret")]
    Client,
    /// There is no token with the scopes that the client asked for.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// Too many secrets wait to be compared.
    #[error("too many clients ask for tokens at the moment; try again later")]
    Busy,
    /// The token cannot be signed.
    #[error("the token cannot be signed")]
    Sign(#[from] jsonwebtoken::errors::Error),
    /// The system gave no random bytes.
    #[error("the token has no id")]
    Random(#[source] file::Error),
    /// It cannot be recorded.
    #[error("the token cannot be recorded")]
    Unrecorded,
}

impl From<Busy> for GrantError {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

/// A token that was issued.
#[derive(Debug)]
pub struct AccessToken {
    /// The token itself.
    pub token: SecretString,
    /// How long it is valid.
    pub expires_in: Duration,
    /// What it allows, separated by spaces.
    pub scope: String,
    /// What the audit log and the deny list call it by.
    id: String,
    /// Which key signed it.
    kid: String,
}

/// The issuer of a gateway.
#[derive(Debug)]
pub struct Issuer {
    settings: OauthSettings,
    clients: Followed<Clients>,
    keys_file: Arc<KeysFile>,
    /// Where the keys file is kept up to date.
    keeper: Aside,
    keys: Followed<SigningKeys>,
    /// The keys to verify its tokens with.
    published: watch::Sender<Arc<KeySet>>,
    comparer: Comparer,
    recorder: audit::Recorder,
}

impl Issuer {
    /// The issuer that `settings` describe, with a key to sign with: if there is none yet, it is made at the time `now`.
    ///
    /// # Errors
    /// [`Error`] if a file cannot be used.
    pub fn open(settings: &OauthSettings, log: audit::Log, now: SystemTime) -> Result<Self, Error> {
        let keys_file = keys_file(settings, log.clone());
        keys_file.maintain(now)?;
        let keys = keys_file.follow()?;
        let published = watch::Sender::new(keys.get().published());
        Ok(Self {
            settings: settings.clone(),
            clients: clients::follow(&settings.clients_file)?,
            keys_file: Arc::new(keys_file),
            keeper: Aside::start("scoregate-signing").map_err(Error::Thread)?,
            keys,
            published,
            comparer: Comparer::start().map_err(Error::Thread)?,
            recorder: audit::Recorder::start(log).map_err(Error::Thread)?,
        })
    }

    /// Follows the clients and the keys, and changes the signing key when its time has come, for as long as the gateway runs.
    pub async fn follow(&self) {
        let publish = |keys: &Arc<SigningKeys>| {
            self.published.send_if_modified(|published| {
                let is_new = !Arc::ptr_eq(published, &keys.published());
                *published = keys.published();
                is_new
            });
        };
        tokio::join!(self.clients.follow(|_| ()), self.keys.follow(publish), self.maintain());
    }

    async fn maintain(&self) {
        let mut failed = String::new();
        let mut timer = tokio::time::interval(EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let keys_file = Arc::clone(&self.keys_file);
            match self.keeper.run(move || keys_file.maintain(SystemTime::now())).await {
                Ok(Ok(())) => failed.clear(),
                Err(Undone) => tracing::error!(
                    "keeping the signing keys panicked, and goes on; this is a mistake in the gateway"
                ),
                // Told once, tried again every time.
                Ok(Err(error)) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    if error != failed {
                        tracing::error!(
                            error,
                            "the signing keys stay as they are: their file cannot be changed"
                        );
                        failed = error;
                    }
                }
            }
        }
    }

    /// The name of the issuer, which is the URL that it is reached by.
    pub fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    /// How its tokens are to be verified.
    pub fn settings_for_verification(&self) -> IssuerSettings {
        IssuerSettings {
            issuer: self.settings.issuer.clone(),
            audience: vec![self.settings.audience.clone()],
            // They are handed over, see `keys`.
            keys: KeyLocation::Nowhere,
            hs256_secret_file: None,
            algorithms: vec![Algorithm::ES256],
            typ: vec!["at+jwt".into()],
            scope_claim: Some("scope".into()),
            tenant_claim: "tenant".into(),
            plan_claim: "plan".into(),
            leeway: LEEWAY,
            // Tokens from before the setting was lowered are to be taken, too.
            max_lifetime: self.settings.token_ttl.max(Duration::from_secs(86_400)),
            cooldown: Duration::from_secs(30),
            refresh: Duration::from_secs(600),
            allow_http: false,
            introspection: None,
        }
    }

    /// The keys that its tokens are verified with, now and in the future.
    pub fn keys(&self) -> watch::Receiver<Arc<KeySet>> {
        self.published.subscribe()
    }

    /// The keys that its tokens are verified with, as a document (RFC 7517).
    pub fn jwks(&self) -> Arc<[u8]> {
        self.keys.get().jwks()
    }

    /// How long before it signs a new key is among them.
    pub fn notice(&self) -> Duration {
        self.keys_file.notice()
    }

    /// A token for the client that proves to be `client_id`, with the scopes that it asks for, or else all of its own.
    ///
    /// # Errors
    /// [`GrantError`] saying why there is none.
    pub async fn grant(
        &self,
        client_id: &str,
        client_secret: &str,
        requested: Option<&str>,
        now: SystemTime,
    ) -> Result<AccessToken, GrantError> {
        let clients = self.clients.get_full();
        if !clients.remembers(client_id, client_secret) {
            let (clients, id, secret) =
                (Arc::clone(&clients), client_id.to_owned(), client_secret.to_owned());
            let is_stranger = !clients.has_proved(client_id);
            if !self.comparer.run(is_stranger, move |memory| clients.verify(&id, &secret, memory)).await? {
                return Err(GrantError::Client);
            }
        }
        let client = clients.get(client_id, now).ok_or(GrantError::Client)?;
        let token = issue(&self.settings, &self.keys.get(), client, requested, self.settings.token_ttl, now)?;
        let actor = Actor::caller(format!("{}#{client_id}", self.settings.issuer));
        self.recorder.note(token.event(actor, client)).await.map_err(|error| {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error, client.id = client_id, "no token is given: it cannot be recorded");
            GrantError::Unrecorded
        })?;
        Ok(token)
    }
}

/// Why the command line cannot make a token.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The client is not there.
    #[error(transparent)]
    Clients(#[from] file::Error),
    /// Its time is over.
    #[error("the client \"{0}\" has expired")]
    Expired(String),
    /// There are no keys.
    #[error(
        "the gateway that is to take the token has to have been started once; SCOREGATE_OAUTH_KEYS_FILE says where its signing keys are"
    )]
    Keys(#[from] follow::Error),
    /// Gateways keep a key as long as the tokens that they themselves issue are valid.
    #[error("found a validity of {0:?}, expected from 1s to {1:?} as SCOREGATE_OAUTH_TOKEN_TTL says")]
    Lifetime(Duration, Duration),
    /// The client may have less.
    #[error("the client \"{client}\" may have the scopes {allowed}; found \"{}\"", .found.escape_debug())]
    Scope {
        /// The client's name.
        client: String,
        /// What it may have.
        allowed: String,
        /// What was asked for.
        found: String,
    },
    /// See [`GrantError`].
    #[error(transparent)]
    Grant(GrantError),
    /// It could not be recorded.
    #[error(transparent)]
    Audit(#[from] audit::Error),
}

/// A token for the client of this name or id, made from the files of the issuer that `settings` describe, for whoever may
/// read them.
///
/// # Errors
/// [`MakeError`] saying why there is none.
pub fn make(
    settings: &OauthSettings,
    log: audit::Log,
    client: &str,
    requested: Option<&str>,
    lifetime: Option<Duration>,
    now: SystemTime,
) -> Result<AccessToken, MakeError> {
    let client = clients::ClientsFile::new(&settings.clients_file, log.clone()).find(client)?;
    if client.has_expired(now) {
        return Err(MakeError::Expired(client.name));
    }
    let lifetime = lifetime.unwrap_or(settings.token_ttl);
    if !(Duration::from_secs(1)..=settings.token_ttl).contains(&lifetime) {
        return Err(MakeError::Lifetime(lifetime, settings.token_ttl));
    }
    let keys = keys_file(settings, log.clone()).follow()?;
    let token = match issue(settings, &keys.get(), &client, requested, lifetime, now) {
        Ok(token) => token,
        Err(GrantError::Scope(ScopeError::Denied)) => {
            let (allowed, found) = (client.scopes(None).unwrap_or_default(), requested.unwrap_or_default());
            return Err(MakeError::Scope { client: client.name, allowed, found: found.into() });
        }
        Err(error) => return Err(MakeError::Grant(error)),
    };
    log.record(&token.event(Actor::operator(), &client))?;
    Ok(token)
}

fn keys_file(settings: &OauthSettings, log: audit::Log) -> KeysFile {
    KeysFile::new(&settings.keys_file, settings.key_rotation, settings.token_ttl, log)
}

/// Makes a token.
fn issue(
    settings: &OauthSettings,
    keys: &SigningKeys,
    client: &Client,
    requested: Option<&str>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<AccessToken, GrantError> {
    #[derive(Serialize)]
    struct Claims<'c> {
        iss: &'c str,
        sub: &'c str,
        aud: &'c str,
        client_id: &'c str,
        iat: u64,
        exp: u64,
        jti: &'c str,
        scope: &'c str,
        #[serde(skip_serializing_if = "Option::is_none")]
        tenant: Option<&'c str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        plan: Option<&'c str>,
    }
    let scope = client.scopes(requested)?;
    let id = URL_SAFE_NO_PAD.encode(random::<16>().map_err(GrantError::Random)?);
    let key = keys.current(now);
    // A clock before 1970 is wrong enough for tokens that nobody takes.
    let iat = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = Claims {
        iss: &settings.issuer,
        sub: &client.id,
        aud: &settings.audience,
        client_id: &client.id,
        iat,
        exp: iat + lifetime.as_secs(),
        jti: &id,
        scope: &scope,
        tenant: client.tenant.as_deref(),
        plan: client.plan.as_deref(),
    };
    let header =
        Header { typ: Some("at+jwt".into()), kid: Some(key.kid.clone()), ..Header::new(Algorithm::ES256) };
    let token = jsonwebtoken::encode(&header, &claims, &key.key)?;
    // A long tenant or issuer may leave too little room.
    if token.len() > MAX_BYTES {
        return Err(ScopeError::TooMany.into());
    }
    Ok(AccessToken {
        token: token.into(),
        expires_in: Duration::from_secs(lifetime.as_secs()),
        scope,
        id,
        kid: key.kid.clone(),
    })
}

impl AccessToken {
    fn event(&self, actor: Actor, client: &Client) -> Event {
        Event::new(actor, "token.issued", &client.id)
            .with("name", client.name.as_str())
            .with("jti", self.id.as_str())
            .with("kid", self.kid.as_str())
            .with("scope", self.scope.as_str())
            .with("expires_in", self.expires_in.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use secrecy::ExposeSecret;
    use serde_json::Value;

    use super::clients::ClientsFile;
    use super::*;
    use crate::auth::Scope;
    use crate::auth::file::NewEntry;

    struct Place {
        _directory: tempfile::TempDir,
        settings: OauthSettings,
        log: audit::Log,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let settings = OauthSettings {
                issuer: "https://scores.example/gateway".into(),
                audience: "scores".into(),
                clients_file: directory.path().join("clients.json"),
                keys_file: directory.path().join("state/keys.json"),
                token_ttl: Duration::from_secs(900),
                key_rotation: Duration::from_secs(30 * 86_400),
                only: false,
            };
            let log = audit::Log::new(directory.path());
            Self { _directory: directory, settings, log }
        }

        fn client(&self, models: &str) -> (String, String) {
            let new = NewEntry {
                name: "shop".into(),
                scopes: vec![Scope::ScorePredict, Scope::ModelsRead],
                models: vec![models.into()],
                tenant: Some("acme".into()),
                plan: Some("free".into()),
                expires: None,
            };
            let file = ClientsFile::new(&self.settings.clients_file, self.log.clone());
            let (id, secret) = file.create(new, SystemTime::now()).unwrap();
            (id, secret.expose_secret().to_owned())
        }

        fn issuer(&self) -> Issuer {
            Issuer::open(&self.settings, self.log.clone(), SystemTime::now()).unwrap()
        }

        fn make(&self, scope: Option<&str>, lifetime: Option<u64>) -> Result<AccessToken, MakeError> {
            let lifetime = lifetime.map(Duration::from_secs);
            make(&self.settings, self.log.clone(), "shop", scope, lifetime, SystemTime::now())
        }
    }

    /// The header and the claims of a token whose signature holds by the published keys.
    fn read(token: &AccessToken, issuer: &Issuer) -> (Header, Value) {
        let token = token.token.expose_secret();
        let header = jsonwebtoken::decode_header(token).unwrap();
        let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&issuer.jwks()).unwrap();
        let jwk = jwks.find(header.kid.as_ref().unwrap()).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&["scores"]);
        let key = DecodingKey::from_jwk(jwk).unwrap();
        (header, jsonwebtoken::decode(token, &key, &validation).unwrap().claims)
    }

    #[tokio::test]
    async fn a_client_gets_a_token_that_says_what_it_may_do() {
        let place = Place::new();
        let (id, secret) = place.client("churn");
        let issuer = place.issuer();
        let now = SystemTime::now();
        let token = issuer.grant(&id, &secret, Some("score:predict"), now).await.unwrap();
        let (header, claims) = read(&token, &issuer);
        assert_eq!(header.typ.as_deref(), Some("at+jwt"));
        assert_eq!(token.scope, "score:predict model:churn");
        let (iat, exp) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
        assert_eq!((iat, exp - iat), (now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 900));
        for (claim, expected) in [
            ("iss", "https://scores.example/gateway"),
            ("aud", "scores"),
            ("sub", &id),
            ("client_id", &id),
            ("scope", "score:predict model:churn"),
            ("tenant", "acme"),
            ("plan", "free"),
        ] {
            assert_eq!(claims[claim], expected, "{claim}");
        }
        let again = issuer.grant(&id, &secret, None, now).await.unwrap();
        assert_ne!(claims["jti"], read(&again, &issuer).1["jti"]);
        for (id, secret, scope) in [
            (id.as_str(), &secret[1..], None),
            (id.as_str(), "", None),
            ("shop", secret.as_str(), None),
            ("nobody", secret.as_str(), None),
        ] {
            let refused = issuer.grant(id, secret, scope, now).await;
            assert!(matches!(refused, Err(GrantError::Client)), "{id} {secret}");
        }
        let refused = issuer.grant(&id, &secret, Some("models:write"), now).await;
        assert!(matches!(refused, Err(GrantError::Scope(ScopeError::Denied))));
    }

    #[tokio::test]
    async fn no_token_is_larger_than_the_gateway_takes() {
        let mut place = Place::new();
        let (id, secret) = place.client("*");
        let names = (0..64).map(|at| format!("model:{at:057}")).collect::<Vec<_>>().join(" ");
        let largest = place.issuer().grant(&id, &secret, Some(&names), SystemTime::now()).await.unwrap();
        let length = largest.token.expose_secret().len();
        assert!((MAX_BYTES / 2..=MAX_BYTES).contains(&length), "{length}");
        place.settings.audience = "x".repeat(MAX_BYTES / 4);
        let refused = place.issuer().grant(&id, &secret, Some(&names), SystemTime::now()).await;
        assert!(matches!(refused, Err(GrantError::Scope(ScopeError::TooMany))));
    }

    #[tokio::test]
    async fn what_happened_is_recorded_without_secrets() {
        let place = Place::new();
        let (id, secret) = place.client("*");
        let issuer = place.issuer();
        let token = issuer.grant(&id, &secret, None, SystemTime::now()).await.unwrap();
        let made = place.make(Some("models:read"), Some(60)).unwrap();
        let text = std::fs::read_to_string(place._directory.path().join("audit.jsonl")).unwrap();
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let actions: Vec<_> = events.iter().map(|event| event["action"].as_str().unwrap()).collect();
        assert_eq!(actions, ["client.created", "signing_key.created", "token.issued", "token.issued"]);
        assert_eq!(events[2]["actor"]["id"], format!("https://scores.example/gateway#{id}"));
        assert_eq!(events[2]["jti"], read(&token, &issuer).1["jti"]);
        assert_eq!(
            (&events[3]["actor"]["kind"], &events[3]["scope"]),
            (&"operator".into(), &"models:read".into())
        );
        let signature =
            |token: &AccessToken| token.token.expose_secret().rsplit('.').next().unwrap().to_owned();
        for hidden in [secret, signature(&token), signature(&made)] {
            assert!(!text.contains(&hidden));
        }
    }

    #[test]
    fn the_command_line_makes_a_token_from_the_same_files() {
        let place = Place::new();
        assert!(matches!(place.make(None, None), Err(MakeError::Clients(file::Error::Unknown { .. }))));
        place.client("*");
        assert!(matches!(place.make(None, None), Err(MakeError::Keys(_))), "no gateway was ever started");
        let issuer = place.issuer();
        let token = place.make(Some("score:predict"), Some(60)).unwrap();
        assert_eq!((token.expires_in.as_secs(), token.scope.as_str()), (60, "score:predict"));
        assert_eq!(read(&token, &issuer).1["scope"], "score:predict");
        assert!(matches!(place.make(None, Some(901)), Err(MakeError::Lifetime(..))));
        let error = place.make(Some("models:write"), None).unwrap_err().to_string();
        assert!(error.contains("score:predict models:read") && error.contains("models:write"), "{error}");
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_recorded_is_not_given() {
        let place = Place::new();
        let (id, secret) = place.client("*");
        let issuer = place.issuer();
        let log = place._directory.path().join("audit.jsonl");
        std::fs::remove_file(&log).unwrap();
        std::os::unix::fs::symlink("/dev/full", &log).unwrap();
        let refused = issuer.grant(&id, &secret, None, SystemTime::now()).await;
        assert!(matches!(refused, Err(GrantError::Unrecorded)), "{refused:?}");
        assert!(matches!(place.make(None, None), Err(MakeError::Audit(_))));
        std::fs::remove_file(&log).unwrap();
        issuer.grant(&id, &secret, None, SystemTime::now()).await.unwrap();
    }

    #[tokio::test]
    async fn changes_of_clients_and_keys_are_followed() {
        let place = Place::new();
        let issuer = place.issuer();
        let mut keys = issuer.keys();
        let script = async {
            let (id, secret) = place.client("*");
            let now = SystemTime::now();
            let before = loop {
                match issuer.grant(&id, &secret, None, now).await {
                    Ok(token) => break token,
                    Err(error) => assert!(matches!(error, GrantError::Client), "{error}"),
                }
            };
            let jwks = issuer.jwks();
            keys.mark_unchanged();
            // An operator who fears for the key.
            std::fs::write(&place.settings.keys_file, "[]").unwrap();
            keys.changed().await.unwrap();
            assert_ne!(issuer.jwks(), jwks);
            let after = issuer.grant(&id, &secret, None, now).await.unwrap();
            assert_ne!(before.kid, after.kid);
            ClientsFile::new(&place.settings.clients_file, place.log.clone()).revoke(&id).unwrap();
            while issuer.grant(&id, &secret, None, now).await.is_ok() {
                tokio::time::sleep(EVERY / 20).await;
            }
            assert!(matches!(issuer.grant(&id, &secret, None, now).await, Err(GrantError::Client)));
        };
        tokio::select! {
            () = issuer.follow() => {}
            done = tokio::time::timeout(Duration::from_secs(60), script) => done.unwrap(),
        }
    }
}
