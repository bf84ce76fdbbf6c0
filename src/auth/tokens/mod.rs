//! Access tokens → callers: [`Tokens`].
//!
//! [`parse`] takes a token apart, [`key_source`] has its issuer's keys, of which [`jwk`] finds the one that signed it, and
//! [`claims`] says whether and for whom it holds. [`memory`] spares all of it for a token that was here before. What cannot be
//! read here, [`introspection`] asks its issuer about.

mod claims;
mod introspection;
mod json;
pub mod jwk;
mod key_source;
mod memory;
mod parse;
mod reason;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use jsonwebtoken::AlgorithmFamily;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::claims::{Claims, Voucher, seconds};
use self::introspection::Introspection;
use self::json::{Object, Value};
use self::jwk::{Held, Key, KeySet};
use self::key_source::Keys;
use self::memory::Memory;
use self::parse::{Header, Segments};
use super::certificates::ClientCertificate;
use super::{Caller, Error, fetch};
use crate::config::IssuerSettings;
use crate::follow::{self, Followed};

pub(super) use self::parse::MAX_BYTES;
pub use self::reason::Reason;

/// SHA-256 of a token.
type Digest = [u8; 32];

/// Everything that access tokens are checked with.
#[derive(Debug)]
pub struct Tokens {
    issuers: Vec<Arc<Issuer>>,
    /// The one issuer that is asked about its tokens: nothing would say which of several a token without a structure is from.
    introspection: Option<Arc<Introspection>>,
    deny_list: Option<Followed<HashSet<String>>>,
    /// Tokens whose signature was checked.
    memory: Memory<Remembered>,
}

/// A token that held. For as long as its key is in use it still does, but for what changes with the moment.
#[derive(Debug)]
struct Remembered {
    claims: Claims,
    key: Arc<Key>,
}

/// One whose tokens are taken.
#[derive(Debug)]
struct Issuer {
    settings: Arc<IssuerSettings>,
    secret: Option<Secret>,
    keys: Keys,
}

/// A secret that an issuer shares with the gateway.
#[derive(Debug)]
struct Secret {
    file: Followed<KeySet>,
    held: Held,
}

impl Tokens {
    /// Opens what the settings of the `issuers` name. The `deny_list` is a file of token ids (`jti`), one a line; `own` is the
    /// issuer that is built in, with its keys.
    ///
    /// # Errors
    /// [`follow::Error`] if a file cannot be used.
    pub fn open(
        issuers: &[IssuerSettings],
        deny_list: Option<&Path>,
        own: Option<(IssuerSettings, watch::Receiver<Arc<KeySet>>)>,
    ) -> Result<Self, follow::Error> {
        let own = own.map(|(settings, keys)| {
            let keys = Keys::own(&settings, keys);
            Issuer::open(&settings, keys)
        });
        let others = issuers.iter().map(|settings| Issuer::open(settings, Keys::open(settings)?));
        let issuers = own.into_iter().chain(others).map(|issuer| issuer.map(Arc::new));
        let issuers = issuers.collect::<Result<Vec<_>, _>>()?;
        let introspection = issuers.iter().find_map(|issuer| {
            let settings = issuer.settings.introspection.as_ref()?;
            Some(Introspection::open(&issuer.settings, settings).map(Arc::new))
        });
        Ok(Self {
            issuers,
            introspection: introspection.transpose()?,
            deny_list: deny_list
                .map(|path| Followed::open("denied tokens", vec![path.into()], denied))
                .transpose()?,
            memory: Memory::default(),
        })
    }

    /// The caller that `unverified_token` belongs to, shown at the time `now` over a connection with this `certificate`.
    ///
    /// # Errors
    /// [`Error::InvalidToken`], [`Error::ExpiredToken`] or [`Error::Unavailable`].
    pub async fn verify(
        &self,
        unverified_token: &str,
        certificate: Option<&ClientCertificate>,
        now: SystemTime,
    ) -> Result<Caller, Error> {
        if unverified_token.len() > MAX_BYTES {
            return Err(Error::InvalidToken(Reason::TooLong));
        }
        let now = seconds(now);
        let digest = sha256(unverified_token);
        if let Some(remembered) = self.remembered(&digest, now) {
            return self.caller(&remembered.claims, certificate, now);
        }
        let invalid = Error::InvalidToken;
        let segments = Segments::of(unverified_token);
        let header = segments.as_ref().ok().and_then(|segments| Object::parse(segments.header()));
        let (segments, header) = match (&segments, &header) {
            (Ok(segments), Some(header)) => (segments, header),
            (Err(reason), _) if *reason != Reason::Structure => return Err(invalid(*reason)),
            _ => {
                let introspection = self.introspection.as_ref().ok_or(invalid(Reason::Structure))?;
                return self.ask(introspection, digest, unverified_token, certificate, now).await;
            }
        };
        let payload = Object::parse(segments.payload()).ok_or(invalid(Reason::Payload))?;
        let issuer = payload.get("iss").and_then(Value::text);
        let issuer =
            issuer.and_then(|name| self.issuers.iter().find(|issuer| issuer.settings.issuer == name));
        let issuer = issuer.ok_or(invalid(Reason::Issuer))?;
        if let Some(introspection) = self.sole_judge_of(issuer) {
            return self.ask(introspection, digest, unverified_token, certificate, now).await;
        }
        let header = Header::of(header).map_err(invalid)?;
        header.check(&issuer.settings).map_err(invalid)?;
        let key = issuer.verify(&header, segments).await?;
        let claims = Claims::check(&payload, Voucher::Signature, &issuer.settings, now).map_err(invalid)?;
        let caller = self.caller(&claims, certificate, now);
        if caller.is_ok() && !claims.are_bound() {
            self.memory.insert(digest, Arc::new(Remembered { claims, key }));
        }
        caller
    }

    /// Keeps keys, secrets and the deny list up to date for as long as the gateway runs, and asks issuers what there is to ask.
    /// Nothing is fetched before.
    pub async fn follow(&self) {
        let is_remote = self.introspection.is_some() || self.issuers.iter().any(|it| it.keys.are_remote());
        let client = is_remote.then(fetch::Client::new);
        let client = client.and_then(|client| {
            let told = |error| tracing::error!(error = %anyhow::Error::from(error), "nothing can be fetched");
            client.map_err(told).ok()
        });
        let mut tasks = JoinSet::new();
        for issuer in &self.issuers {
            let (issuer, client) = (Arc::clone(issuer), client.clone());
            tasks.spawn(async move { issuer.follow(client.as_ref()).await });
        }
        if let (Some(introspection), Some(client)) = (&self.introspection, client) {
            let introspection = Arc::clone(introspection);
            tasks.spawn(async move { introspection.follow(&client).await });
        }
        match &self.deny_list {
            Some(file) => file.follow(|_| ()).await,
            None => std::future::pending().await,
        }
    }

    /// Waits until the keys of every issuer that has to be asked for them were fetched once, well or badly. [`Tokens::follow`]
    /// does that.
    pub async fn tried(&self) {
        for issuer in &self.issuers {
            issuer.keys.tried().await;
        }
    }

    /// Whose tokens are taken.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.issuers.iter().map(|issuer| issuer.settings.issuer.as_str())
    }

    /// Those whose keys are fetched, with the fetches that went well and those that did not.
    pub fn fetches(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.issuers.iter().filter(|issuer| issuer.keys.are_remote()).map(|issuer| {
            let (fetched, failed) = issuer.keys.fetches();
            (issuer.settings.issuer.as_str(), fetched, failed)
        })
    }

    /// The token with this digest, if it was here before and its key is still in use. One that has ended in the meantime is
    /// forgotten from now on.
    fn remembered(&self, digest: &Digest, now: f64) -> Option<Arc<Remembered>> {
        let remembered = self.memory.get(digest)?;
        let is_withdrawn = remembered.key.is_withdrawn();
        if is_withdrawn || remembered.claims.have_ended(now) {
            self.memory.remove(digest);
        }
        (!is_withdrawn).then_some(remembered)
    }

    /// Who is asked about all tokens of the `issuer`, as there is nothing else to check them with.
    fn sole_judge_of(&self, issuer: &Issuer) -> Option<&Arc<Introspection>> {
        let has_key = issuer.secret.is_some() || issuer.keys.are_somewhere();
        let own = |introspection: &&Arc<Introspection>| Arc::ptr_eq(&introspection.issuer, &issuer.settings);
        self.introspection.as_ref().filter(|_| !has_key).filter(own)
    }

    /// The caller that the issuer says the token belongs to.
    async fn ask(
        &self,
        introspection: &Introspection,
        digest: Digest,
        unverified_token: &str,
        certificate: Option<&ClientCertificate>,
        now: f64,
    ) -> Result<Caller, Error> {
        let answer = introspection.answer(digest, unverified_token, now).await?;
        let claims = answer.claims.as_ref().map_err(|reason| Error::InvalidToken(*reason))?;
        self.caller(claims, certificate, now)
    }

    fn caller(
        &self,
        claims: &Claims,
        certificate: Option<&ClientCertificate>,
        now: f64,
    ) -> Result<Caller, Error> {
        let denied = self.deny_list.as_ref().map(Followed::get);
        claims.caller(certificate, denied.as_ref().map(|denied| &***denied), now)
    }
}

impl Issuer {
    fn open(settings: &IssuerSettings, keys: Keys) -> Result<Self, follow::Error> {
        Ok(Self {
            settings: Arc::new(settings.clone()),
            secret: settings.hs256_secret_file.as_deref().map(Secret::open).transpose()?,
            keys,
        })
    }

    /// The key that signed the token. Shared secrets and public keys are never taken for each other.
    async fn verify(&self, header: &Header<'_>, segments: &Segments<'_>) -> Result<Arc<Key>, Error> {
        let (algorithm, message, signature) = (header.algorithm, segments.message, segments.signature);
        if algorithm.family() != AlgorithmFamily::Hmac {
            return self.keys.verify(algorithm, header.kid, message, signature).await;
        }
        let secret = self.secret.as_ref().and_then(|secret| secret.held.get());
        let secret = secret.ok_or(Error::InvalidToken(Reason::Algorithm))?;
        // There is one secret, whatever the token calls it.
        secret.verify(algorithm, None, message, signature).cloned().map_err(Error::InvalidToken)
    }

    async fn follow(&self, client: Option<&fetch::Client>) {
        let secret = async {
            if let Some(secret) = &self.secret {
                let replace = |set: &Arc<KeySet>| {
                    secret.held.replace(set);
                };
                secret.file.follow(replace).await;
            }
        };
        tokio::join!(secret, self.keys.follow(client));
    }
}

impl Secret {
    fn open(path: &Path) -> Result<Self, follow::Error> {
        let parse = |texts: &[Vec<u8>]| KeySet::of_secret(&texts.concat()).map_err(|error| error.to_string());
        let file = Followed::open("an issuer's secret", vec![path.into()], parse)?;
        let held = Held::default();
        held.replace(&file.get());
        Ok(Self { file, held })
    }
}

fn sha256(unverified_token: &str) -> Digest {
    let mut found = Digest::default();
    found.copy_from_slice(digest::digest(&digest::SHA256, unverified_token.as_bytes()).as_ref());
    found
}

/// Reads the deny list.
fn denied(texts: &[Vec<u8>]) -> Result<HashSet<String>, String> {
    let text = String::from_utf8(texts.concat())
        .map_err(|_| "found bytes that are no UTF-8, expected token ids, one a line")?;
    Ok(text.lines().map(str::trim).filter(|id| !id.is_empty()).map(Into::into).collect())
}
