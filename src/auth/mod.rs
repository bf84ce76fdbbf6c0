//! A credential → a [`Caller`]: who it is and what it may do. No HTTP types.

pub mod keys;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

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

/// A verified caller.
#[derive(Debug, Clone)]
pub struct Caller {
    key: Arc<keys::Key>,
}

impl Caller {
    /// The caller's identity in logs.
    pub fn id(&self) -> &str {
        &self.key.id
    }

    /// Whether the caller may do what `scope` names.
    pub fn may(&self, scope: Scope) -> bool {
        self.key.scopes.contains(&scope)
    }

    /// Whether the caller may use `model`.
    pub fn may_use(&self, model: &str) -> bool {
        self.key.models.iter().any(|allowed| allowed == "*" || allowed == model)
    }
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
    /// The key is unknown, revoked or expired; which of them is nobody's business.
    #[error("the API key is not valid")]
    InvalidKey,
    /// A bearer token, which nothing here verifies.
    #[error("the access token is not valid")]
    InvalidToken,
    /// The caller lacks a scope.
    #[error("the credential lacks the scope {0}")]
    InsufficientScope(Scope),
    /// The caller may not use this model.
    #[error("the credential is not valid for this model")]
    ModelNotAllowed,
}
