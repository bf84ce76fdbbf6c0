//! What is counted, by the names that dashboards use.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing_appender::non_blocking::ErrorCounter;

use super::Log;
use crate::auth;

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    credentials: Family<CredentialLabels, Counter>,
    /// Of the kinds of credentials, those that were accepted: looked up once.
    accepted: [Counter; 4],
    key_sets: Family<KeySetLabels, Counter>,
    quota_rows: QuotaRows,
    redis: RedisCounts,
    lines_dropped: Counter,
    /// The log whose lines these are; none until it is known.
    log: Option<ErrorCounter>,
}

/// Requests to Redis by what became of them.
#[derive(Debug, Clone, Default)]
pub struct RedisCounts {
    /// Those with an answer in time.
    pub answered: Counter,
    /// Those that Redis, or the way to it, failed.
    pub failed: Counter,
    /// Those without an answer in time.
    pub late: Counter,
    /// Those that were not sent, because Redis was out of reach.
    pub out_of_reach: Counter,
}

impl RedisCounts {
    fn of(requests: &Family<OutcomeLabels, Counter>) -> Self {
        let count = |outcome| requests.get_or_create(&OutcomeLabels { outcome }).clone();
        Self {
            answered: count("answered"),
            failed: count("failed"),
            late: count("late"),
            out_of_reach: count("out_of_reach"),
        }
    }
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Rows by the policy of a quota and whether it let them through.
#[derive(Debug, Clone, Default)]
pub struct QuotaRows(Family<QuotaLabels, Counter>);

impl QuotaRows {
    /// The counts of a policy: rows that it admitted, and those that it refused.
    pub fn of(&self, policy: &str) -> [Counter; 2] {
        ["admitted", "refused"]
            .map(|outcome| self.0.get_or_create(&QuotaLabels { policy: policy.into(), outcome }).clone())
    }
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QuotaLabels {
    policy: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CredentialLabels {
    kind: &'static str,
    /// `accepted`, or why not.
    outcome: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KeySetLabels {
    issuer: String,
    outcome: &'static str,
}

/// What a request shows to say who it is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An API key.
    Key,
    /// An access token.
    Token,
    /// Nothing but the certificate of its connection.
    Certificate,
    /// Nothing, or nothing that can be read.
    None,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Key, Self::Token, Self::Certificate, Self::None];

    /// A stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::None => "none",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let credentials = Family::<CredentialLabels, Counter>::default();
        registry.register(
            "scoregate_credentials",
            "Requests by the kind of their credential and whether it was accepted, else why not",
            credentials.clone(),
        );
        let key_sets = Family::<KeySetLabels, Counter>::default();
        registry.register("scoregate_key_set_fetches", "Fetches of issuers' key sets", key_sets.clone());
        let quota_rows = QuotaRows::default();
        registry.register(
            "scoregate_quota_rows",
            "Rows by the policy of a quota and whether it let them through",
            quota_rows.0.clone(),
        );
        let requests = Family::<OutcomeLabels, Counter>::default();
        registry.register(
            "scoregate_redis_requests",
            "Requests to Redis by what became of them",
            requests.clone(),
        );
        let redis = RedisCounts::of(&requests);
        let lines_dropped = Counter::default();
        registry.register(
            "scoregate_log_lines_dropped",
            "Log lines that were not written because their reader is too slow",
            lines_dropped.clone(),
        );
        let accepted = |kind: Kind| {
            let labels = CredentialLabels { kind: kind.as_str(), outcome: "accepted" };
            credentials.get_or_create(&labels).clone()
        };
        let accepted = Kind::ALL.map(accepted);
        Self { registry, credentials, accepted, key_sets, quota_rows, redis, lines_dropped, log: None }
    }
}

impl Metrics {
    /// Where requests to Redis are counted.
    pub fn redis(&self) -> RedisCounts {
        self.redis.clone()
    }

    /// Where rows under a quota are counted.
    pub fn quota_rows(&self) -> QuotaRows {
        self.quota_rows.clone()
    }

    /// Counts the lines that `log` drops.
    pub fn watch(&mut self, log: &Log) {
        self.log = Some(log.dropped());
    }

    /// Counts one request by its credential and by what finally became of it.
    pub fn count_credential(&self, kind: Kind, refused: Option<auth::Error>) {
        match refused {
            None => drop(self.accepted[kind as usize].inc()),
            Some(error) => {
                let labels = CredentialLabels { kind: kind.as_str(), outcome: error.reason() };
                self.credentials.get_or_create(&labels).inc();
            }
        }
    }

    /// All counts in the text format of OpenMetrics, which Prometheus reads as its own; `key_sets` are issuers with the
    /// fetches of their keys that went well and those that did not.
    pub fn encode<'i>(&self, key_sets: impl Iterator<Item = (&'i str, u64, u64)>) -> String {
        for (issuer, well, badly) in key_sets {
            for (outcome, count) in [("ok", well), ("failed", badly)] {
                let labels = KeySetLabels { issuer: issuer.into(), outcome };
                self.key_sets.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
            }
        }
        let dropped = self.log.as_ref().map_or(0, ErrorCounter::dropped_lines);
        self.lines_dropped.inner().store(dropped as u64, Ordering::Relaxed);
        let mut document = String::new();
        text::encode(&mut document, &self.registry).expect("a text can always be appended to");
        document
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_rows_and_fetches_are_counted_by_outcome() {
        let metrics = Metrics::default();
        metrics.count_credential(Kind::Key, None);
        metrics.count_credential(Kind::Key, Some(auth::Error::InvalidKey));
        metrics.count_credential(Kind::Certificate, None);
        metrics.count_credential(Kind::None, Some(auth::Error::InvalidRequest("two")));
        let [admitted, refused] = metrics.quota_rows().of("rows");
        admitted.inc_by(5);
        metrics.quota_rows().of("rows")[0].inc();
        refused.inc_by(2);
        for fetched in 1..=2 {
            let document = metrics.encode([("https://issuer", fetched, 0)].into_iter());
            for line in [
                "scoregate_credentials_total{kind=\"key\",outcome=\"accepted\"} 1".to_owned(),
                "scoregate_credentials_total{kind=\"key\",outcome=\"key\"} 1".to_owned(),
                "scoregate_credentials_total{kind=\"none\",outcome=\"malformed\"} 1".to_owned(),
                "scoregate_credentials_total{kind=\"token\",outcome=\"accepted\"} 0".to_owned(),
                "scoregate_quota_rows_total{policy=\"rows\",outcome=\"admitted\"} 6".to_owned(),
                "scoregate_quota_rows_total{policy=\"rows\",outcome=\"refused\"} 2".to_owned(),
                "scoregate_credentials_total{kind=\"certificate\",outcome=\"accepted\"} 1".to_owned(),
                "scoregate_log_lines_dropped_total 0".to_owned(),
                format!(
                    "scoregate_key_set_fetches_total{{issuer=\"https://issuer\",outcome=\"ok\"}} {fetched}"
                ),
            ] {
                assert!(document.lines().any(|found| found == line), "{line}\n{document}");
            }
        }
    }
}
