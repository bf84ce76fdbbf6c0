//! Tokens whose signature was checked before: [`Memory`].

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::Digest;
use super::claims::Claims;
use super::jwk::Key;

/// The most tokens that are remembered; of more, those are forgotten that were not used for the longest time.
const MAX_TOKENS: u64 = 65_536;

/// A token that held, and for as long as it does not end and its key is in use still does, but for what changes with the moment.
#[derive(Debug)]
pub(super) struct Remembered {
    claims: Claims,
    key: Arc<Key>,
}

impl Remembered {
    /// What it claims.
    pub(super) fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// Tokens that held, by their digest. Nobody gets in without a signature. A signature can be written in several ways (ES256),
/// which are several tokens here.
#[derive(Debug)]
pub(super) struct Memory(Cache<Digest, Arc<Remembered>>);

impl Default for Memory {
    fn default() -> Self {
        // New tokens always find room: what is used least would keep tokens that have long ended.
        let cache = Cache::builder().max_capacity(MAX_TOKENS).eviction_policy(EvictionPolicy::lru());
        Self(cache.build())
    }
}

impl Memory {
    /// The token with this digest, if it was here before and its key is still in use. It may have ended in the meantime, but is
    /// forgotten then. `now` is in seconds since 1970.
    pub(super) fn get(&self, digest: &Digest, now: f64) -> Option<Arc<Remembered>> {
        let remembered = self.0.get(digest)?;
        let is_withdrawn = remembered.key.is_withdrawn();
        if is_withdrawn || remembered.claims.have_ended(now) {
            self.0.invalidate(digest);
        }
        (!is_withdrawn).then_some(remembered)
    }

    /// Remembers a token that `key` has signed.
    pub(super) fn insert(&self, digest: Digest, claims: Claims, key: Arc<Key>) {
        self.0.insert(digest, Arc::new(Remembered { claims, key }));
    }
}
