//! [`Worth`]: what it costs to compute the scores of a version, how often they are found, and so whether looking for them saves
//! time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Level;

/// A level whose look-ups cost no more than this share of computing is used whether it finds anything or not.
const NEGLIGIBLE: f64 = 0.01;

/// What a level has to save, as a multiple of what it costs: estimates are estimates.
const MARGIN: f64 = 1.25;

/// Batches of rows that cost less than this many digests are not looked for: to work out their keys alone would be felt.
const DIGESTS: f64 = 20.0;

/// What a digest costs, in seconds.
const DIGEST: f64 = 250e-9;

/// How fast averages forget.
const STEP: f64 = 1.0 / 64.0;

/// What is known of a level before it was ever used.
const FOUND_AT_FIRST: f64 = 0.5;

/// How many rows a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// One.
    Single,
    /// Many, which are computed in one run and looked up at once.
    Batch,
}

/// A moving average that many threads add to. An update that is lost to a race costs nothing.
#[derive(Debug)]
pub(super) struct Average(AtomicU64);

impl Average {
    pub(super) fn new(value: f64) -> Self {
        Self(AtomicU64::new(value.to_bits()))
    }

    pub(super) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Adds `count` observations of `value`.
    pub(super) fn note(&self, value: f64, count: usize) {
        let weight = match count {
            1 => STEP,
            _ => 1.0 - (1.0 - STEP).powi(i32::try_from(count).unwrap_or(i32::MAX)),
        };
        let before = self.get();
        self.0.store((before + (value - before) * weight).to_bits(), Ordering::Relaxed);
    }
}

/// What a level costs per row, in seconds: measured, and the same for all versions.
#[derive(Debug)]
pub(super) struct Price {
    look_up: Average,
    store: Average,
}

impl Price {
    /// Guesses, until it was measured.
    pub(super) fn guess(look_up: Duration, store: Duration) -> Self {
        Self { look_up: Average::new(look_up.as_secs_f64()), store: Average::new(store.as_secs_f64()) }
    }

    /// Notes what it took to look up `rows` rows.
    pub(super) fn looked_up(&self, took: Duration, rows: usize) {
        self.look_up.note(took.as_secs_f64() / rows.max(1) as f64, 1);
    }

    /// Notes what it took to store `rows` rows.
    pub(super) fn stored(&self, took: Duration, rows: usize) {
        self.store.note(took.as_secs_f64() / rows.max(1) as f64, 1);
    }
}

/// What caching the scores of one version costs and saves.
#[derive(Debug)]
pub struct Worth {
    /// What it takes to compute a score, in seconds, by [`Size`].
    compute: [Average; 2],
    /// The share of look-ups that find a score, by [`Level`].
    found: [Average; 2],
}

/// What a level costs and saves, by the present estimates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Whether scores are looked for there.
    pub used: bool,
    /// The share of look-ups that find one.
    pub hit_ratio: f64,
    /// What a look-up costs, and storing what it did not find, in seconds.
    pub cost: f64,
    /// What it saves beyond that, in seconds; negative if it costs more than it saves.
    pub saving: f64,
}

impl Worth {
    /// Of a version that takes this long for one row, and for each row of many.
    pub fn new(single: Duration, row: Duration) -> Self {
        Self {
            compute: [single, row].map(|cost| Average::new(cost.as_secs_f64())),
            found: [FOUND_AT_FIRST, FOUND_AT_FIRST].map(Average::new),
        }
    }

    /// Notes that a run of `rows` rows took so long.
    pub fn computed(&self, size: Size, took: Duration, rows: usize) {
        self.compute[size as usize].note(took.as_secs_f64() / rows.max(1) as f64, 1);
    }

    /// What it takes to compute a score, in seconds.
    pub fn compute(&self, size: Size) -> f64 {
        self.compute[size as usize].get()
    }

    /// Notes that of `rows` rows this share was found.
    pub(super) fn looked_up(&self, level: Level, share: f64, rows: usize) {
        self.found[level as usize].note(share, rows);
    }

    /// Whether anything could be saved at all that is worth working out keys for.
    pub(super) fn is_worth_a_key(&self, size: Size) -> bool {
        size == Size::Single || self.compute(size) >= DIGESTS * DIGEST
    }

    /// What a level costs and saves at this price.
    pub(super) fn estimate(&self, level: Level, size: Size, price: &Price) -> Estimate {
        let (compute, hit_ratio) = (self.compute(size), self.found[level as usize].get());
        let (look_up, store) = (price.look_up.get(), price.store.get());
        let cost = look_up + (1.0 - hit_ratio) * store;
        let saves = hit_ratio * compute;
        let used = look_up + store <= NEGLIGIBLE * compute || saves > MARGIN * cost;
        Estimate { used, hit_ratio, cost, saving: saves - cost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: (u64, u64) = (500, 1_500);
    const REDIS: (u64, u64) = (100_000, 20_000);

    fn price((look_up, store): (u64, u64)) -> Price {
        Price::guess(Duration::from_nanos(look_up), Duration::from_nanos(store))
    }

    #[test]
    fn a_level_is_used_where_it_saves_time() {
        for (price_of, compute_us, hit_ratio, used) in [
            // In process, even a quick model is worth it if most rows are found, and a slow one always is.
            (MEMORY, 15, 0.9, true),
            (MEMORY, 15, 0.0, false),
            (MEMORY, 500, 0.0, true),
            // A round trip is not worth 15 µs, whatever is found.
            (REDIS, 15, 1.0, false),
            (REDIS, 500, 0.0, false),
            (REDIS, 500, 0.2, false),
            (REDIS, 500, 0.5, true),
            (REDIS, 20_000, 0.0, true),
        ] {
            let worth = Worth::new(Duration::from_micros(compute_us), Duration::from_micros(1));
            for _ in 0..1_000 {
                worth.looked_up(Level::Memory, hit_ratio, 1);
            }
            let estimate = worth.estimate(Level::Memory, Size::Single, &price(price_of));
            assert_eq!(estimate.used, used, "{price_of:?} {compute_us} µs {hit_ratio}: {estimate:?}");
            assert!((estimate.hit_ratio - hit_ratio).abs() < 1e-3, "{estimate:?}");
        }
    }

    #[test]
    fn what_is_measured_takes_the_place_of_guesses() {
        let worth = Worth::new(Duration::from_micros(10), Duration::from_micros(1));
        let price = price(REDIS);
        let before = worth.estimate(Level::Redis, Size::Single, &price);
        assert!(!before.used && before.saving < 0.0, "{before:?}");
        for _ in 0..1_000 {
            worth.computed(Size::Single, Duration::from_millis(2), 2);
            price.looked_up(Duration::from_micros(80), 1);
            price.stored(Duration::from_micros(100), 10);
        }
        worth.looked_up(Level::Redis, 1.0, 1_000);
        let after = worth.estimate(Level::Redis, Size::Single, &price);
        assert!(after.used, "{after:?}");
        assert!((after.cost - 80e-6).abs() < 1e-6 && (after.saving - 920e-6).abs() < 1e-6, "{after:?}");
        assert!(!worth.is_worth_a_key(Size::Batch) && worth.is_worth_a_key(Size::Single));
    }
}
