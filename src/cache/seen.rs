//! [`Seen`]: which rows have come up within the time that scores are kept, whether they are kept or not.
//!
//! How often a cache would find something cannot be learned from the cache while it is not used, and not while it is still
//! filling. So the keys themselves are remembered, or rather some bits of them, in a table of fixed size.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::key::Key;

/// How many keys are remembered at most: one for each eight bytes of a mebibyte.
const SLOTS: usize = 1 << 17;

/// The bits of a slot that say when its key came up, in seconds since the start; the others are of the key.
const SECONDS: u32 = 24;

/// The keys of late. A slot is taken by whichever key came last; an update that is lost to a race costs nothing.
pub(super) struct Seen {
    slots: Box<[AtomicU64]>,
    start: Instant,
    ttl_s: u64,
}

impl Seen {
    /// Of the last `ttl`.
    pub(super) fn new(ttl: Duration, start: Instant) -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self { slots, start, ttl_s: ttl.as_secs_f64().ceil() as u64 }
    }

    /// Whether a score would have been kept for this key; from now on it would.
    pub(super) fn note(&self, key: &Key, now: Instant) -> bool {
        let mask = (1 << SECONDS) - 1;
        // An empty slot is no key's: seconds count from one.
        let second = (now.saturating_duration_since(self.start).as_secs() + 1) & mask;
        let slot = &self.slots[key.spread(1) as usize % SLOTS];
        let (found, tag) = (slot.load(Ordering::Relaxed), key.spread(2) & !mask);
        let is_kept = found & !mask == tag
            && found & mask != 0
            && second.wrapping_sub(found & mask) & mask < self.ttl_s.min(mask);
        if !is_kept {
            slot.store(tag | second, Ordering::Relaxed);
        }
        is_kept
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Secret;
    use super::*;

    #[test]
    fn a_key_is_remembered_for_as_long_as_its_score_would_be() {
        let start = Instant::now();
        let (seen, secret) = (Seen::new(Duration::from_secs(60), start), Secret::random());
        let (key, other) = (secret.key(b"a"), secret.key(b"b"));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!seen.note(&key, at(0)) && seen.note(&key, at(0)) && seen.note(&key, at(59)));
        assert!(!seen.note(&other, at(59)));
        // A score is not kept for longer because it is asked for.
        assert!(!seen.note(&key, at(60)) && seen.note(&key, at(119)) && !seen.note(&key, at(120)));
    }

    #[test]
    fn what_repeats_is_told_from_what_does_not() {
        let start = Instant::now();
        let (seen, secret) = (Seen::new(Duration::from_secs(60), start), Secret::random());
        let keys: Vec<Key> = (0..10_000_u32).map(|number| secret.key(&number.to_le_bytes())).collect();
        let found = || keys.iter().filter(|key| seen.note(key, start)).count();
        assert_eq!(found(), 0);
        // Some take one another's slots.
        let again = found();
        assert!((8_000..=10_000).contains(&again), "{again}");
    }
}
