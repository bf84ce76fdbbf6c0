//! `rollout.json`, beside the versions of a model: which of them answers whom.

use serde::{Deserialize, Serialize};

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
    /// How many times the rollout has changed: whoever changes it says which one was read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub revision: u64,
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
