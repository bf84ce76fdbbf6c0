//! A credential → a [`Caller`]: who it is and what it may do. No HTTP types.
//!
//! [`keys`] are made by the operator, [`tokens`] by an authorisation server, which may be the [`issuer`] built in, and
//! [`certificates`] are shown when a TLS connection is made. [`Auth`] holds them all; [`fetch`] is the only part that asks
//! other servers.

pub mod certificates;
pub mod fetch;
pub mod file;
pub mod issuer;
pub mod keys;
pub mod tokens;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use self::certificates::ClientCertificate;
use self::issuer::Issuer;
use crate::config::Settings;
use crate::follow::{self, Followed};

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Score rows.
    #[serde(rename = "score:predict")]
    ScorePredict,
    /// Run jobs.
    #[serde(rename = "score:jobs")]
    ScoreJobs,
    /// Report outcomes.
    #[serde(rename = "feedback:write")]
    FeedbackWrite,
    /// Read metadata.
    #[serde(rename = "models:read")]
    ModelsRead,
    /// Publish versions and change the rollout.
    #[serde(rename = "models:write")]
    ModelsWrite,
    /// Read monitoring.
    #[serde(rename = "monitoring:read")]
    MonitoringRead,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 6] = [
        Self::ScorePredict,
        Self::ScoreJobs,
        Self::FeedbackWrite,
        Self::ModelsRead,
        Self::ModelsWrite,
        Self::MonitoringRead,
    ];

    /// The scope's name, as keys and tokens carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScorePredict => "score:predict",
            Self::ScoreJobs => "score:jobs",
            Self::FeedbackWrite => "feedback:write",
            Self::ModelsRead => "models:read",
            Self::ModelsWrite => "models:write",
            Self::MonitoringRead => "monitoring:read",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl std::str::FromStr for Scope {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == name);
        found.ok_or_else(|| {
            format!("found the scope \"{}\", expected one of {}", name.escape_debug(), known())
        })
    }
}

/// What a caller was granted: scopes, and the models that they hold for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// What it may do; one bit per scope.
    scopes: u8,
    /// The models that it may use; none given means all.
    models: Option<BTreeSet<String>>,
}

/// What a scope `model:NAME` begins with.
const MODEL: &str = "model:";

impl Grant {
    /// `scopes` for `models`, of which `*` is all.
    pub fn new(scopes: &[Scope], models: &[String]) -> Self {
        let all = models.iter().any(|model| model == "*");
        let scopes = scopes.iter().fold(0, |bits, scope| bits | scope.bit());
        Self { scopes, models: (!all).then(|| models.iter().cloned().collect()) }
    }

    /// What the scopes of a token grant. `model:NAME` restricts to the models so named; scopes that mean nothing here are
    /// somebody else's.
    pub fn of_scopes<'s>(names: impl IntoIterator<Item = &'s str>) -> Self {
        let mut grant = Self::default();
        for name in names {
            if let Some(model) = name.strip_prefix(MODEL) {
                grant.models.get_or_insert_default().insert(model.to_owned());
            } else if let Some(scope) = Scope::ALL.into_iter().find(|scope| scope.as_str() == name) {
                grant.scopes |= scope.bit();
            }
        }
        grant
    }

    /// Whether it covers `scope`.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes & scope.bit() != 0
    }

    /// Whether it covers all models, those to come as well.
    pub fn has_every_model(&self) -> bool {
        self.models.is_none()
    }

    /// Whether it covers `model`.
    pub fn has_model(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.contains(model))
    }
}

impl Scope {
    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A verified caller.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Identity>);

/// Who a caller is, whatever the credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What it is called in logs and counted by: the key's id, `<issuer>#<subject>`, `client:<issuer>#<client>` where the issuer
    /// names no subject, `certificate:<name>`.
    pub id: String,
    /// Those whose data may be mixed with its own; nobody's if none is named.
    pub tenant: Option<String>,
    /// Its plan, which says how many rows it may have scored; the default quota's if none is named.
    pub plan: Option<String>,
    /// What it may do.
    pub grant: Grant,
}

impl Caller {
    /// Only what verifies a credential makes one.
    fn new(identity: Identity) -> Self {
        Self(Arc::new(identity))
    }

    /// A caller of this name and plan that may do nothing.
    #[cfg(test)]
    pub(crate) fn named(id: &str, plan: Option<&str>) -> Self {
        let plan = plan.map(Into::into);
        Self::new(Identity { id: id.into(), tenant: None, plan, grant: Grant::default() })
    }

    /// The caller's identity in logs.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The tenant that the caller belongs to, if one is named; else it is its own.
    pub fn tenant(&self) -> Option<&str> {
        self.0.tenant.as_deref()
    }

    /// The caller's plan, if it has one.
    pub fn plan(&self) -> Option<&str> {
        self.0.plan.as_deref()
    }

    /// Whether the caller may do what `scope` names.
    pub fn may(&self, scope: Scope) -> bool {
        self.0.grant.has(scope)
    }

    /// Whether the caller may use `model`.
    pub fn may_use(&self, model: &str) -> bool {
        self.0.grant.has_model(model)
    }

    /// Whether it may use every model.
    pub fn may_use_all(&self) -> bool {
        self.0.grant.has_every_model()
    }
}

/// What a request shows to say who it is from.
#[derive(Debug, Clone, Copy)]
pub enum Credential<'r> {
    /// An API key.
    Key(&'r str),
    /// A bearer token that is no API key.
    UnverifiedToken(&'r str),
    /// Nothing but, perhaps, the certificate of its connection.
    None,
}

/// Why a credential is no caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no credential.
    #[error("the request carries no credential")]
    Missing,
    /// The credential is malformed, or there are several.
    #[error("{0}")]
    InvalidRequest(&'static str),
    /// The credential is larger than any of ours.
    #[error("the credential is larger than 8 KiB")]
    TooLarge,
    /// The key is unknown, revoked or expired; which of them is nobody's business.
    #[error("the API key is not valid")]
    InvalidKey,
    /// A token that does not hold; why is for the log only.
    #[error("the access token is not valid")]
    InvalidToken(tokens::Reason),
    /// A token that was valid: the one thing that an honest client has to be told.
    #[error("the access token has expired; get a new one")]
    ExpiredToken,
    /// What the token has to be checked with cannot be had at the moment.
    #[error("access tokens cannot be checked at the moment; try again later")]
    Unavailable {
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The caller lacks a scope.
    #[error("the credential lacks the scope {0}")]
    InsufficientScope(Scope),
    /// The caller may not use this model.
    #[error("the credential is not valid for this model")]
    ModelNotAllowed,
}

impl Error {
    /// A stable name for logs and metrics. For clients it would say too much.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::InvalidRequest(_) => "malformed",
            Self::TooLarge => "too_large",
            Self::InvalidKey => "key",
            Self::InvalidToken(reason) => reason.as_str(),
            Self::ExpiredToken => "expired",
            Self::Unavailable { .. } => "unavailable",
            Self::InsufficientScope(_) => "scope",
            Self::ModelNotAllowed => "model",
        }
    }
}

/// Everything that credentials are checked with.
#[derive(Debug)]
pub struct Auth {
    /// API keys.
    pub keys: Followed<keys::Ring>,
    /// Access tokens.
    pub tokens: tokens::Tokens,
    /// Certificates that are identities.
    pub certificates: certificates::Certificates,
}

impl Auth {
    /// Opens what the settings name; tokens of `issuer`, where there is one, hold too.
    ///
    /// # Errors
    /// [`follow::Error`] if a file of credentials cannot be used.
    pub fn open(settings: &Settings, issuer: Option<&Issuer>) -> Result<Self, follow::Error> {
        let own = issuer.map(|issuer| (issuer.settings_for_verification(), issuer.keys()));
        Ok(Self {
            keys: keys::follow(&settings.auth.api_keys_file)?,
            tokens: tokens::Tokens::open(&settings.auth.issuers, settings.auth.deny_list.as_deref(), own)?,
            certificates: certificates::Certificates::new(&settings.auth.certificates),
        })
    }

    /// Keeps all of it up to date for as long as the gateway runs.
    pub async fn follow(&self) {
        tokio::join!(self.keys.follow(|_| ()), self.tokens.follow());
    }

    /// The caller that `credential` belongs to at the time `now`. A certificate counts as an identity only if there is no
    /// other credential; tokens may be bound to it.
    ///
    /// # Errors
    /// [`Error`] saying what to fix, to an honest client.
    pub async fn verify(
        &self,
        credential: Credential<'_>,
        certificate: Option<&ClientCertificate>,
        now: SystemTime,
    ) -> Result<Caller, Error> {
        match credential {
            Credential::Key(key) => self.keys.get().verify(key, now),
            Credential::UnverifiedToken(token) => self.tokens.verify(token, certificate, now).await,
            Credential::None => {
                certificate.and_then(|shown| self.certificates.caller(shown)).ok_or(Error::Missing)
            }
        }
    }
}
