//! A histogram that many threads count in without waiting for each other.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// Upper bounds of times, in seconds: the work of one row takes some ten microseconds, that of a large batch a second.
pub(super) const SECONDS: &[f64] = &[
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 10.0,
];

/// Upper bounds of probabilities.
pub(super) const SHARES: &[f64] = &[
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95,
    1.0,
];

/// Counts between bounds.
#[derive(Debug)]
pub(super) struct Buckets {
    bounds: Box<[f64]>,
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    /// The sum of what was counted, as the bits of a number.
    sum: AtomicU64,
}

impl Buckets {
    pub(super) fn new(bounds: &[f64]) -> Self {
        Self {
            bounds: bounds.into(),
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts `values`; those that are no numbers are left out.
    pub(super) fn observe(&self, values: impl IntoIterator<Item = f64>) {
        let mut sum = 0.0;
        for value in values.into_iter().filter(|value| !value.is_nan()) {
            let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
            self.counts[bucket].fetch_add(1, Ordering::Relaxed);
            sum += value;
        }
        let add = |bits: u64| Some((f64::from_bits(bits) + sum).to_bits());
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    pub(super) fn observe_time(&self, took: Duration) {
        self.observe([took.as_secs_f64()]);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    pub(super) fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// How many bins there are for times that double.
const STEPS: usize = 8;

/// How many times they double: from a nanosecond to a minute.
const DOUBLINGS: usize = 36;

/// Times in bins so fine that quantiles of them can be held against each other.
#[derive(Debug)]
pub(super) struct Times(Box<[AtomicU64]>);

impl Default for Times {
    fn default() -> Self {
        Self((0..STEPS * DOUBLINGS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Times {
    pub(super) fn observe(&self, took: Duration) {
        self.0[bin(took)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn spread(&self) -> Spread {
        Spread(self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

/// How times were spread at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread(Vec<u64>);

impl Default for Spread {
    fn default() -> Self {
        Self(vec![0; STEPS * DOUBLINGS])
    }
}

impl Spread {
    /// Counts one more.
    pub fn observe(&mut self, took: Duration) {
        self.0[bin(took)] += 1;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many are longer, to within a tenth.
    pub fn above(&self, time: Duration) -> u64 {
        self.0[bin(time) + 1..].iter().sum()
    }

    /// Those that were not there `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().zip(&before.0).map(|(now, before)| now.saturating_sub(*before)).collect())
    }

    /// What a share of the times does not exceed, to within a tenth; nothing if there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (share * self.count() as f64).ceil().max(1.0) as u64;
        let mut found = 0;
        let at = self.0.iter().position(|count| {
            found += count;
            found >= wanted
        })?;
        Some(Duration::from_secs_f64(1e-9 * 2_f64.powf((at as f64 + 0.5) / STEPS as f64)))
    }
}

fn bin(took: Duration) -> usize {
    let doublings = (took.as_secs_f64() * 1e9).max(1.0).log2();
    ((doublings * STEPS as f64) as usize).min(STEPS * DOUBLINGS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_within_a_tenth() {
        let times = Times::default();
        assert_eq!(times.spread().quantile(0.5), None);
        for millis in 1..=1_000 {
            times.observe(Duration::from_millis(millis));
        }
        let spread = times.spread();
        for (share, expected) in [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0), (0.0, 0.001)] {
            let found = spread.quantile(share).unwrap().as_secs_f64();
            assert!((found / expected - 1.0).abs() < 0.1, "{share}: {found}");
        }
        let above = spread.above(Duration::from_millis(900));
        assert!((50..150).contains(&above) && spread.above(Duration::MAX) == 0, "{above}");
        let mut other = spread.clone();
        other.observe(Duration::ZERO);
        other.observe(Duration::from_secs(1_000_000));
        assert_eq!((other.count(), other.since(&spread).count()), (1_002, 2));
        assert!(other.since(&spread).quantile(0.5).unwrap() <= Duration::from_nanos(2));
    }
}
