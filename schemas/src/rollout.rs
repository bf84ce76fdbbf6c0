//! `rollout.json`, beside the versions of a model: which of them answers whom.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How many slots there are: every entity falls into one of them by hash, and a hundredth of a percent is the smallest share.
pub const SLOTS: u16 = 10_000;

/// Which versions of a model answer, and whom.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The version that answers everybody for whom no other one is named.
    pub live: String,
    /// Versions that answer a share of the entities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canaries: Vec<Canary>,
    /// A version that scores what the others answer, and whose answers nobody gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<String>,
    /// The version that was live before: what a rollback returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Why there is none to return to: this one was taken back. It answers again only if somebody promotes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_back: Option<String>,
    /// How many times the rollout has changed: whoever changes it says which one was read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub revision: u64,
    /// When that was last, RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<String>,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<Author>,
    /// Why, where a guard did it: what with which version, its verdict, and what that hangs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_for: Option<Map<String, Value>>,
}

/// Who has changed a rollout, as the audit log names them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Author {
    /// `operator`, `caller` or `gateway`.
    pub kind: String,
    /// Which one.
    pub id: String,
}

/// What becomes of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// Nothing.
    Off,
    /// One that breaks a rule is dropped.
    Rollback,
    /// That, and one that breaks none is given more and promoted in the end.
    Promote,
}

impl GuardMode {
    /// What is expected where one is written.
    pub const EXPECTED: &str = "off, rollback or promote";

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Rollback => "rollback",
            Self::Promote => "promote",
        }
    }
}

impl FromStr for GuardMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let modes = [Self::Off, Self::Rollback, Self::Promote];
        modes.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| Self::EXPECTED.into())
    }
}

/// A version that answers a share of the entities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// The version.
    pub version: String,
    /// The share, from 0 to 100, in steps of a hundredth.
    pub percent: f64,
    /// The slots that are this share, from the first to the one before the second. They are part of the rollout, so that an entity
    /// that met this version meets it again when the share has grown, whatever other canaries came and went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<(u16, u16)>,
    /// Since when it answers this share, RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// What becomes of it by what it answers; as the settings say if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardMode>,
}

impl Canary {
    /// A share of the entities, whose slots are given by whoever changes the rollout.
    pub fn of(version: impl Into<String>, percent: f64) -> Self {
        Self { version: version.into(), percent, slots: Vec::new(), since: None, guard: None }
    }
}

impl Rollout {
    /// One version that answers everybody.
    pub fn of(live: impl Into<String>) -> Self {
        Self { live: live.into(), ..Self::default() }
    }

    /// Every version that has a task now, the live one first; each once. The one before is loaded besides.
    pub fn versions(&self) -> Vec<&str> {
        let all = std::iter::once(&self.live).chain(self.canaries.iter().map(|canary| &canary.version));
        let mut found: Vec<&str> = Vec::new();
        for version in all.chain(&self.shadow) {
            if !found.contains(&version.as_str()) {
                found.push(version);
            }
        }
        found
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
