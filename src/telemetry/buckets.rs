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
