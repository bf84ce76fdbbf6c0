//! [`Memory`]: what was found out about tokens, by their digest, so that it need not be found out again.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Digest;

/// Into how many parts it is divided, so that threads seldom wait for each other.
const SHARDS: usize = 64;
/// How many tokens one generation of a part holds: 65,536 in all.
const GENERATION: usize = 512;

/// What is known about the tokens that were used last.
///
/// There are two generations. A token that is used belongs to the young one; when that is full, it becomes the old one, and what
/// was in the old one is forgotten. This keeps no exact order, but taking a token in costs hardly more than a look into a map. An
/// exact one would be felt beside an RS256 signature of 18 µs: moka's cache took 1 µs for it, and 5 µs once it was full.
pub(super) struct Memory<V> {
    shards: Box<[Mutex<Shard<V>>]>,
}

struct Shard<V> {
    young: HashMap<Digest, Arc<V>>,
    old: HashMap<Digest, Arc<V>>,
}

impl<V> Shard<V> {
    /// Takes a token into the young generation. Returns what is forgotten.
    #[must_use]
    fn keep(&mut self, digest: Digest, value: Arc<V>) -> HashMap<Digest, Arc<V>> {
        self.young.insert(digest, value);
        if self.young.len() < GENERATION {
            return HashMap::new();
        }
        let young = std::mem::replace(&mut self.young, HashMap::with_capacity(GENERATION));
        std::mem::replace(&mut self.old, young)
    }
}

impl<V> Default for Memory<V> {
    fn default() -> Self {
        let shard = || Mutex::new(Shard { young: HashMap::new(), old: HashMap::new() });
        Self { shards: (0..SHARDS).map(|_| shard()).collect() }
    }
}

impl<V> Memory<V> {
    /// What is known about a token.
    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<V>> {
        let mut shard = self.shard(digest);
        if let Some(value) = shard.young.get(digest) {
            return Some(Arc::clone(value));
        }
        let value = shard.old.remove(digest)?;
        let forgotten = shard.keep(*digest, Arc::clone(&value));
        drop(shard);
        // Many of them, and nobody has to wait for that.
        drop(forgotten);
        Some(value)
    }

    /// Remembers something about a token.
    pub(super) fn insert(&self, digest: Digest, value: Arc<V>) {
        // The lock is given back before what is forgotten goes.
        let _forgotten = self.shard(&digest).keep(digest, value);
    }

    /// Forgets a token.
    pub(super) fn remove(&self, digest: &Digest) {
        let mut shard = self.shard(digest);
        shard.young.remove(digest);
        shard.old.remove(digest);
    }

    fn shard(&self, digest: &Digest) -> MutexGuard<'_, Shard<V>> {
        // Each byte of a digest is as good as any other.
        let shard = &self.shards[usize::from(digest[0]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> fmt::Debug for Memory<V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_bounded() {
        let memory = Memory::default();
        // All in one part.
        let digest = |number: u16| {
            let mut digest = Digest::default();
            digest[1..3].copy_from_slice(&number.to_le_bytes());
            digest
        };
        let used = digest(u16::MAX);
        memory.insert(used, Arc::new(u16::MAX));
        for number in 0..10_000 {
            memory.insert(digest(number), Arc::new(number));
            assert_eq!(memory.get(&used).as_deref(), Some(&u16::MAX), "after {number}");
            assert_eq!(memory.get(&digest(number)).as_deref(), Some(&number));
        }
        let kept = |number: &u16| {
            let shard = memory.shard(&used);
            shard.young.contains_key(&digest(*number)) || shard.old.contains_key(&digest(*number))
        };
        let count = (0..10_000).filter(kept).count();
        assert!((GENERATION - 1..2 * GENERATION).contains(&count), "{count}");
        assert!((10_000 - 500..10_000).all(|number| kept(&number)), "the last ones");
        memory.remove(&used);
        assert_eq!(memory.get(&used), None);
    }
}
