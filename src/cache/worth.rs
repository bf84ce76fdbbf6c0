//! [`Worth`]: what it costs to compute the scores of a version, how often they are found, and so whether looking for them saves
//! time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Level;

/// A level whose look-ups cost no more than this share of computing is used whether it finds anything or not.
const NEGLIGIBLE: f64 = 0.01;

/// What a level has to save, as a multiple of what it costs: estimates are estimates.
const MARGIN: f64 = 1.25;

/// Rows that cost less than this many digests are not looked for: to work out their keys alone would be felt.
const DIGESTS: f64 = 20.0;

/// What a digest costs, in seconds.
const DIGEST: f64 = 250e-9;

/// How many observations the share that is found follows.
const REMEMBERED: u32 = 64;

/// How many observations what is supposed at first stands for.
const SUPPOSED: u32 = 4;

/// How far one observation moves what is typical.
const NUDGE: f64 = 1.0 / 16.0;

/// The share that is supposed before anything was observed.
const FOUND_AT_FIRST: f64 = 0.5;

/// How many rows a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// One.
    Single,
    /// Many, which are computed in one run and looked up at once.
    Batch,
}

impl Size {
    pub(super) fn of(rows: usize) -> Self {
        if rows == 1 { Self::Single } else { Self::Batch }
    }
}

/// A share that follows what is observed of late. An update that is lost to a race costs nothing.
#[derive(Debug)]
struct Share {
    value: AtomicU64,
    /// How many observations there were, up to where no more are counted.
    count: AtomicU32,
}

impl Share {
    fn new(value: f64) -> Self {
        Self { value: AtomicU64::new(value.to_bits()), count: AtomicU32::new(0) }
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.value.load(Ordering::Relaxed))
    }

    /// Notes that this share was found. The first observations say more than what was supposed before them.
    fn note(&self, observed: f64) {
        let (before, count) = (self.get(), self.count.load(Ordering::Relaxed));
        if count < REMEMBERED {
            self.count.store(count + 1, Ordering::Relaxed);
        }
        let weight = 1.0 / f64::from((count + SUPPOSED).min(REMEMBERED));
        self.value.store((before + (observed - before) * weight).to_bits(), Ordering::Relaxed);
    }
}

/// The time, in seconds, that half of the observations of late were below. The mean would be that of the few during which the
/// thread did not run.
#[derive(Debug)]
struct Typical(AtomicU64);

impl Typical {
    fn new(guess: Duration) -> Self {
        Self(AtomicU64::new(guess.as_secs_f64().max(1e-9).to_bits()))
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Notes that `rows` rows took so long.
    fn note(&self, took: Duration, rows: usize) {
        let (before, observed) = (self.get(), took.as_secs_f64() / rows.max(1) as f64);
        let after = if observed > before { before * (1.0 + NUDGE) } else { before / (1.0 + NUDGE) };
        self.0.store(after.max(1e-9).to_bits(), Ordering::Relaxed);
    }
}

/// What a level costs per row, in seconds: measured, and the same for all versions.
#[derive(Debug)]
pub(super) struct Price {
    look_up: Typical,
    store: Typical,
}

impl Price {
    /// Guesses, until it was measured.
    pub(super) fn guess(look_up: Duration, store: Duration) -> Self {
        Self { look_up: Typical::new(look_up), store: Typical::new(store) }
    }

    /// Notes what it took to look up `rows` rows.
    pub(super) fn looked_up(&self, took: Duration, rows: usize) {
        self.look_up.note(took, rows);
    }

    /// Notes what it took to store `rows` rows.
    pub(super) fn stored(&self, took: Duration, rows: usize) {
        self.store.note(took, rows);
    }
}

/// What caching the scores of one version costs and saves.
#[derive(Debug)]
pub struct Worth {
    /// What it takes to compute the score of a single row.
    single: Typical,
    /// What a run takes, and each row of many, in seconds, as measured when the version was loaded.
    run: f64,
    row: f64,
    /// The share of look-ups that find a score, or would, by [`Level`] and [`Size`].
    found: [[Share; 2]; 2],
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
    /// Whether it would save anything if everything were found.
    pub could_pay: bool,
}

impl Worth {
    /// Of a version that takes this long for one row, and for each row of many.
    pub fn new(run: Duration, row: Duration) -> Self {
        // A batch has all its rows wait for Redis, and few batches tell that there is nothing.
        let in_redis = [FOUND_AT_FIRST, 0.0].map(Share::new);
        let (single, found) = (Typical::new(run), [[FOUND_AT_FIRST; 2].map(Share::new), in_redis]);
        Self { single, run: run.as_secs_f64(), row: row.as_secs_f64(), found }
    }

    /// Notes that it took so long to compute `rows` single rows.
    pub fn computed(&self, took: Duration, rows: usize) {
        self.single.note(took, rows);
    }

    /// What it takes to compute the score of a row, in seconds, in a request of `rows` rows.
    pub fn compute(&self, rows: usize) -> f64 {
        match rows {
            1 => self.single.get(),
            _ => self.run / rows.max(1) as f64 + self.row,
        }
    }

    /// Notes the share of one request's rows that was found, or would have been.
    pub(super) fn looked_up(&self, level: Level, size: Size, share: f64) {
        self.found[level as usize][size as usize].note(share);
    }

    /// Whether anything could be saved at all that is worth working out keys for.
    pub(super) fn is_worth_keys(&self, rows: usize) -> bool {
        self.compute(rows) >= DIGESTS * DIGEST
    }

    /// What a level costs and saves at this price, in requests of `rows` rows.
    pub(super) fn estimate(&self, level: Level, rows: usize, price: &Price) -> Estimate {
        let (compute, hit_ratio) =
            (self.compute(rows), self.found[level as usize][Size::of(rows) as usize].get());
        let (look_up, store) = (price.look_up.get(), price.store.get());
        let cost = look_up + (1.0 - hit_ratio) * store;
        let saves = hit_ratio * compute;
        let used = look_up + store <= NEGLIGIBLE * compute || saves > MARGIN * cost;
        Estimate { used, hit_ratio, cost, saving: saves - cost, could_pay: look_up < compute }
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
        for (price_of, compute_us, hit_ratio, used, could_pay) in [
            // In process, even a quick model is worth it if most rows are found, and a slow one always is.
            (MEMORY, 15, 0.9, true, true),
            (MEMORY, 15, 0.0, false, true),
            (MEMORY, 500, 0.0, true, true),
            // A round trip is not worth 15 µs, whatever is found.
            (REDIS, 15, 1.0, false, false),
            (REDIS, 500, 0.0, false, true),
            (REDIS, 500, 0.2, false, true),
            (REDIS, 500, 0.5, true, true),
            (REDIS, 20_000, 0.0, true, true),
        ] {
            let worth = Worth::new(Duration::from_micros(compute_us), Duration::from_micros(1));
            for _ in 0..1_000 {
                worth.looked_up(Level::Memory, Size::Single, hit_ratio);
            }
            let estimate = worth.estimate(Level::Memory, 1, &price(price_of));
            let case = format!("{price_of:?} {compute_us} µs {hit_ratio}: {estimate:?}");
            assert_eq!((estimate.used, estimate.could_pay), (used, could_pay), "{case}");
            assert!((estimate.hit_ratio - hit_ratio).abs() < 1e-3, "{case}");
            assert!(worth.is_worth_keys(1), "{case}");
        }
    }

    #[test]
    fn batches_are_judged_by_their_number_of_rows() {
        let worth = Worth::new(Duration::from_micros(10), Duration::from_nanos(200));
        for (rows, is_worth_keys) in [(1, true), (2, true), (3, false), (1_000, false)] {
            assert_eq!(worth.is_worth_keys(rows), is_worth_keys, "{rows} rows");
        }
        // What batches find says nothing of single rows.
        worth.looked_up(Level::Memory, Size::Batch, 0.0);
        assert!(worth.estimate(Level::Memory, 1, &price(MEMORY)).hit_ratio >= FOUND_AT_FIRST);
        assert!(worth.estimate(Level::Memory, 2, &price(MEMORY)).hit_ratio < FOUND_AT_FIRST);
    }

    #[test]
    fn a_few_observations_outweigh_what_was_supposed() {
        let share = Share::new(FOUND_AT_FIRST);
        (0..4).for_each(|_| share.note(0.0));
        assert!(share.get() < 0.25, "{}", share.get());
        (0..1_000).for_each(|_| share.note(1.0));
        assert!(share.get() > 0.999);
        share.note(0.0);
        assert!((share.get() - 63.0 / 64.0).abs() < 1e-3, "{}", share.get());
    }

    #[test]
    fn what_is_measured_takes_the_place_of_guesses() {
        let worth = Worth::new(Duration::from_micros(10), Duration::from_micros(1));
        let price = price(REDIS);
        let before = worth.estimate(Level::Redis, 1, &price);
        assert!(!before.used && before.saving < 0.0, "{before:?}");
        for round in 0..1_000 {
            // Now and then the thread did not run.
            let late = if round % 10 == 0 { Duration::from_millis(50) } else { Duration::ZERO };
            worth.computed(Duration::from_millis(2) + late, 2);
            price.looked_up(Duration::from_micros(80) + late, 1);
            price.stored(Duration::from_micros(100) + late, 10);
            worth.looked_up(Level::Redis, Size::Single, 1.0);
        }
        let after = worth.estimate(Level::Redis, 1, &price);
        assert!(after.used, "{after:?}");
        assert!((after.cost / 80e-6 - 1.0).abs() < 0.15, "{after:?}");
        assert!((after.saving / 920e-6 - 1.0).abs() < 0.15, "{after:?}");
    }
}
