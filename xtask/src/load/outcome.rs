//! What came of a load: latencies, answers by status, and what was never answered.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

/// Latencies to three digits, from a nanosecond to ten minutes, and what became of each request.
pub(crate) struct Outcome {
    /// Nanoseconds from when a request was due to when its answer was complete, whatever its status.
    latency: Histogram<u64>,
    /// Nanoseconds from when a request was due to when this generator sent it although a connection was free.
    lateness: Histogram<u64>,
    /// Answers by status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Requests without an answer, by what happened instead.
    pub(crate) unanswered: BTreeMap<String, u64>,
    pub(crate) elapsed: Duration,
}

const LONGEST: Duration = Duration::from_secs(600);

impl Outcome {
    pub(super) fn new() -> Result<Self> {
        let histogram = || {
            Histogram::new_with_max(LONGEST.as_nanos() as u64, 3)
                .context("could not make a histogram of latencies")
        };
        Ok(Self {
            latency: histogram()?,
            lateness: histogram()?,
            statuses: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            elapsed: Duration::ZERO,
        })
    }

    pub(super) fn answered(&mut self, status: u16, latency: Duration) {
        self.latency.saturating_record(latency.as_nanos() as u64);
        *self.statuses.entry(status).or_default() += 1;
    }

    pub(super) fn sent_late(&mut self, by: Duration) {
        self.lateness.saturating_record(by.as_nanos() as u64);
    }

    pub(super) fn unanswered(&mut self, why: &str, count: u64) {
        if count > 0 {
            *self.unanswered.entry(why.to_owned()).or_default() += count;
        }
    }

    /// Answers of any status.
    pub(crate) fn answers(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// All that were to be sent.
    pub(crate) fn requests(&self) -> u64 {
        self.answers() + self.unanswered.values().sum::<u64>()
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers() as f64 / self.elapsed.as_secs_f64()
    }

    /// Requests that got no answer, or one of 400 and above.
    pub(crate) fn errors(&self) -> u64 {
        let refused: u64 = self.statuses.range(400..).map(|(_, count)| count).sum();
        refused + self.unanswered.values().sum::<u64>()
    }

    /// The share of requests in `[0, 1]` that ended in an error.
    pub(crate) fn error_rate(&self) -> f64 {
        let all = self.requests();
        if all == 0 { 0.0 } else { self.errors() as f64 / all as f64 }
    }

    /// The latency that the share `quantile` of answers did not exceed.
    pub(crate) fn latency(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.latency.value_at_quantile(quantile))
    }

    /// How late the generator itself sent the share `quantile` of its requests.
    pub(crate) fn lateness(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.lateness.value_at_quantile(quantile))
    }

    /// Every kind of answer and non-answer with its count, for people.
    pub(crate) fn tally(&self) -> String {
        let statuses = self.statuses.iter().map(|(status, count)| format!("{status}: {count}"));
        let unanswered = self.unanswered.iter().map(|(why, count)| format!("{why}: {count}"));
        let tally: Vec<String> = statuses.chain(unanswered).collect();
        tally.join(", ")
    }
}
