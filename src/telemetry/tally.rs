//! What is counted of one version. It goes when the version does, so that what is told never grows with the versions that were.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::gauge::ConstGauge;
use scoregate_model::explain::Method;
use scoregate_model::features::FeatureRows;
use scoregate_model::watch::{Findings, Watch};

use super::buckets::{Buckets, SECONDS, SHARES, Spread, Times};
use super::trace::TraceId;

/// What is told in place of the name of a model that is not there: no model can be called so.
pub const UNKNOWN_MODEL: &str = "(unknown)";

/// Labels and their values.
pub(super) struct Labels<'l, const N: usize>(pub(super) [(&'static str, &'l str); N]);

impl<const N: usize> EncodeLabelSet for Labels<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|label| label.encode(encoder.encode_label()))
    }
}

/// What an exemplar carries.
#[derive(Debug, Clone)]
pub(super) struct TraceLabel(TraceId);

impl EncodeLabelSet for TraceLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("trace_id", self.0.to_string().as_str()).encode(encoder.encode_label())
    }
}

/// Which answers are timed together: of one route, with the same outcome at the cache, explained or not, of the same class of
/// statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) route: &'static str,
    pub(super) cache: &'static str,
    pub(super) is_explained: bool,
    pub(super) class: &'static str,
}

/// How long answers took.
#[derive(Debug, Default)]
pub(super) struct Durations {
    kinds: RwLock<Vec<(Kind, HistogramWithExemplars<TraceLabel>)>>,
}

/// What has to be known of the answers of a version to hold them against those of another.
#[derive(Debug, Default)]
struct Answers {
    answered: AtomicU64,
    failed: AtomicU64,
    scored: AtomicU64,
    refused: AtomicU64,
    /// How long requests of one row took that had to be computed, and nothing else.
    singles: Times,
}

/// How many requests a version has answered, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Requests that were answered or failed; what clients did wrong is neither, and what there was no time or room for, or nothing to
    /// explain it with yet, says nothing of the version; nor does a batch for whose versions together the time was too short. None of
    /// them are those that were pinned to it.
    pub requests: u64,
    /// Those that the version has failed.
    pub failed: u64,
    /// Rows that were scored.
    pub rows: u64,
    /// Rows that did not pass, of requests that were answered or refused for them.
    pub refused: u64,
    /// How long requests of one row took that were computed and not explained.
    pub singles: Spread,
}

impl Answered {
    /// What has been answered since it was `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failed: self.failed.saturating_sub(before.failed),
            rows: self.rows.saturating_sub(before.rows),
            refused: self.refused.saturating_sub(before.refused),
            singles: self.singles.since(&before.singles),
        }
    }
}

impl Answers {
    fn observe(&self, kind: Kind, has_failed: bool, took: Duration) {
        if has_failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if kind.class != "2xx" {
            return;
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        let is_single = !kind.route.ends_with("/batch") && !kind.is_explained;
        if is_single && matches!(kind.cache, "none" | "miss") {
            self.singles.observe(took);
        }
    }
}

impl Durations {
    pub(super) fn observe(&self, kind: Kind, took: Duration, trace: Option<TraceId>) {
        let find = |known: &[(Kind, HistogramWithExemplars<TraceLabel>)]| {
            known.iter().find(|(other, _)| *other == kind).map(|(_, found)| found.clone())
        };
        let found = find(&self.kinds.read().unwrap_or_else(PoisonError::into_inner));
        let found = found.unwrap_or_else(|| {
            let mut known = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
            find(&known).unwrap_or_else(|| {
                let fresh = HistogramWithExemplars::new(SECONDS.iter().copied());
                known.push((kind, fresh.clone()));
                fresh
            })
        });
        let now = trace.map(|_| std::time::SystemTime::now());
        found.observe(took.as_secs_f64(), trace.map(TraceLabel), now);
    }
}

/// What is counted of one version.
#[derive(Debug)]
pub struct Tally {
    /// The model's name.
    pub(super) model: Arc<str>,
    /// The version's name.
    pub(super) version: Arc<str>,
    digest: String,
    loading: Duration,
    loaded_at: SystemTime,
    watch: Watch,
    features: Vec<Feature>,
    pub(super) durations: Durations,
    answers: Answers,
    /// Rows that were scored and that did not pass, by route.
    rows: Mutex<Vec<(&'static str, [u64; 2])>>,
    /// Scores, where there are bounds to count them between.
    scores: Option<Buckets>,
    /// Whether these are probabilities, rather than values.
    has_probabilities: bool,
    runs: Buckets,
    explanations: [Buckets; Method::ALL.len()],
    /// Rows that were to be explained and are not, by why.
    unexplained: Mutex<BTreeMap<&'static str, u64>>,
    /// Rows that were to be compared with those of another version, by [`Compared`].
    compared: [AtomicU64; Compared::ALL.len()],
}

/// What became of a row that was to be scored beside the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Both versions have scored it.
    Scored,
    /// There was no room for it.
    Dropped,
    /// One version has scored it, and the other could not be run.
    Failed,
    /// One version has scored it, and the other does not take it.
    Refused,
}

impl Compared {
    const ALL: [Self; 4] = [Self::Scored, Self::Dropped, Self::Failed, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::Scored => "scored",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What is unusual about one feature.
#[derive(Debug)]
struct Feature {
    name: String,
    findings: [AtomicU64; 4],
}

/// Who a tally is of.
#[derive(Debug)]
pub struct Counted<'c> {
    /// The model's name.
    pub model: &'c str,
    /// The version's name.
    pub version: &'c str,
    /// `sha256:…` of the graph.
    pub digest: &'c str,
    /// How long loading it took.
    pub loading: Duration,
    /// When it was loaded.
    pub loaded_at: SystemTime,
    /// Bounds to count its values between; none if its scores are probabilities, which have bounds of their own.
    pub value_bounds: Option<&'c [f64]>,
}

impl Tally {
    /// Nothing yet, of a version whose features are called `features`.
    pub fn new<'f>(counted: &Counted<'_>, watch: Watch, features: impl Iterator<Item = &'f str>) -> Self {
        let feature = |name: &str| Feature { name: name.into(), findings: Default::default() };
        Self {
            model: counted.model.into(),
            version: counted.version.into(),
            digest: counted.digest.into(),
            loading: counted.loading,
            loaded_at: counted.loaded_at,
            watch,
            features: features.map(feature).collect(),
            durations: Durations::default(),
            answers: Answers::default(),
            rows: Mutex::default(),
            scores: Some(counted.value_bounds.unwrap_or(SHARES))
                .filter(|bounds| !bounds.is_empty())
                .map(Buckets::new),
            has_probabilities: counted.value_bounds.is_none(),
            runs: Buckets::new(SECONDS),
            explanations: Method::ALL.map(|_| Buckets::new(SECONDS)),
            unexplained: Mutex::default(),
            compared: Default::default(),
        }
    }

    /// How many requests it has answered so far, and how.
    pub fn answered(&self) -> Answered {
        let Answers { answered, failed, scored, refused, singles } = &self.answers;
        let failed = failed.load(Ordering::Relaxed);
        Answered {
            requests: answered.load(Ordering::Relaxed) + failed,
            failed,
            rows: scored.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            singles: singles.spread(),
        }
    }

    /// Counts a request by which it may be held against another version: whether it is this one that failed, and how many rows were
    /// scored and were not.
    pub(super) fn judge(&self, kind: Kind, has_failed: bool, took: Duration, [scored, refused]: [usize; 2]) {
        self.answers.observe(kind, has_failed, took);
        self.answers.scored.fetch_add(scored as u64, Ordering::Relaxed);
        self.answers.refused.fetch_add(refused as u64, Ordering::Relaxed);
    }

    /// Looks at the rows from `first` on, and says what is unusual about them, by feature.
    pub(super) fn look(&self, rows: &FeatureRows, first: usize) -> Vec<(usize, Findings)> {
        let mut all = Vec::new();
        self.watch.look(rows, first..rows.len(), |feature, found| all.push((feature, found)));
        all
    }

    /// Counts what is unusual about rows that were scored.
    pub(super) fn found(&self, findings: &[(usize, Findings)]) {
        for (feature, found) in findings {
            for (counter, count) in self.features[*feature].findings.iter().zip(found.counts()) {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// Counts the scores of rows, given by the numbers of each: the probability of the positive class, or of the likeliest,
    /// or the value.
    pub(super) fn score<'s>(&self, rows: impl Iterator<Item = &'s [f64]>) {
        if let Some(scores) = &self.scores {
            scores.observe(rows.map(|numbers| numbers.iter().copied().fold(f64::NAN, f64::max)));
        }
    }

    /// Counts a run of the model.
    pub fn ran(&self, took: Duration) {
        self.runs.observe_time(took);
    }

    /// Counts rows that were to be explained and are not.
    pub fn unexplained(&self, reason: &'static str, rows: usize) {
        let mut counts = self.unexplained.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(reason).or_default() += rows as u64;
    }

    /// Counts rows that were to be scored beside the answers.
    pub fn compared(&self, outcome: Compared, rows: usize) {
        self.compared[outcome as usize].fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Counts an answer of which explanations were computed.
    pub(super) fn explained(&self, method: Method, took: Duration) {
        self.explanations[method as usize].observe_time(took);
    }

    pub(super) fn rows(&self, route: &'static str, counts: [usize; 2]) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let at = rows.iter().position(|(known, _)| *known == route).unwrap_or_else(|| {
            rows.push((route, [0; 2]));
            rows.len() - 1
        });
        for (total, more) in rows[at].1.iter_mut().zip(counts) {
            *total += more as u64;
        }
    }
}

/// Tells what is counted of the versions that answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Tallies(Arc<TalliesInner>);

#[derive(Debug, Default)]
struct TalliesInner {
    live: Mutex<Vec<Arc<Tally>>>,
    /// Of requests that no version answers.
    others: Durations,
    /// Of those that ask for a model that is not there.
    strangers: Durations,
}

impl Tallies {
    /// Whose counts are told from now on.
    pub(super) fn set(&self, live: Vec<Arc<Tally>>) {
        *self.0.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }

    /// Where requests that no version answers are timed; a model that nobody knows has no name of its own.
    pub(super) fn others(&self, is_unknown_model: bool) -> &Durations {
        if is_unknown_model { &self.0.strangers } else { &self.0.others }
    }
}

impl Collector for Tallies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let live = self.0.live.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut family = encoder.encode_descriptor(
            "scoregate_request_duration_seconds",
            "Requests by route, version, outcome at the cache, whether they are explained and class of status, by the time from \
             head to answer without waiting for the client's body",
            None,
            MetricType::Histogram,
        )?;
        let others = [(&self.0.others, "", ""), (&self.0.strangers, UNKNOWN_MODEL, "")];
        let live_durations = live.iter().map(|tally| (&tally.durations, &*tally.model, &*tally.version));
        for (durations, model, version) in others.into_iter().chain(live_durations) {
            for (kind, histogram) in &*durations.kinds.read().unwrap_or_else(PoisonError::into_inner) {
                let Kind { route, cache, is_explained, class } = *kind;
                let labels = Labels([
                    ("route", route),
                    ("model", model),
                    ("version", version),
                    ("cache", cache),
                    ("explained", if is_explained { "yes" } else { "no" }),
                    ("status", class),
                ]);
                histogram.encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_rows",
            "Rows by route, version and whether they were scored",
            None,
            MetricType::Counter,
        )?;
        for tally in &live {
            for (route, counts) in &*tally.rows.lock().unwrap_or_else(PoisonError::into_inner) {
                for (outcome, count) in ["scored", "rejected"].into_iter().zip(counts) {
                    let labels = [
                        ("route", *route),
                        ("model", &tally.model),
                        ("version", &tally.version),
                        ("outcome", outcome),
                    ];
                    ConstCounter::new(*count).encode(family.encode_family(&Labels(labels))?)?;
                }
            }
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_feature_findings",
            "Values of scored rows that are missing, unseen, rare or out of range, by feature",
            None,
            MetricType::Counter,
        )?;
        for tally in &live {
            for feature in &tally.features {
                for (finding, count) in Findings::NAMES.into_iter().zip(&feature.findings) {
                    let labels = Labels([
                        ("model", &tally.model),
                        ("version", &tally.version),
                        ("feature", &feature.name),
                        ("finding", finding),
                    ]);
                    let count = ConstCounter::new(count.load(Ordering::Relaxed));
                    count.encode(family.encode_family(&labels)?)?;
                }
            }
        }
        for (name, help, are_probabilities) in [
            (
                "scoregate_score",
                "Answers by their probability of the positive class, or of the likeliest of several",
                true,
            ),
            (
                "scoregate_value",
                "Answers of models without classes by their value, between the deciles of the reference",
                false,
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for tally in live.iter().filter(|tally| tally.has_probabilities == are_probabilities) {
                if let Some(scores) = &tally.scores {
                    let labels = Labels([("model", &tally.model), ("version", &tally.version)]);
                    scores.encode(&mut family.encode_family(&labels)?)?;
                }
            }
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_run_seconds",
            "Runs of ONNX Runtime, of which rows that arrive together share one",
            None,
            MetricType::Histogram,
        )?;
        for tally in &live {
            let labels = Labels([("model", &tally.model), ("version", &tally.version)]);
            tally.runs.encode(&mut family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_explanation_seconds",
            "Answers of which explanations were computed, by method, by the time that this took",
            None,
            MetricType::Histogram,
        )?;
        for tally in &live {
            for (method, times) in Method::ALL.into_iter().zip(&tally.explanations) {
                if !times.is_empty() {
                    let labels = Labels([
                        ("model", &*tally.model),
                        ("version", &*tally.version),
                        ("method", method.as_str()),
                    ]);
                    times.encode(&mut family.encode_family(&labels)?)?;
                }
            }
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_unexplained_rows",
            "Rows that were to be explained and are not, by why, as answers say it",
            None,
            MetricType::Counter,
        )?;
        for tally in &live {
            for (reason, count) in &*tally.unexplained.lock().unwrap_or_else(PoisonError::into_inner) {
                let labels =
                    Labels([("model", &*tally.model), ("version", &*tally.version), ("reason", reason)]);
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_shadow_rows",
            "Rows that were to be scored beside the answers, by the shadow or canary that they are for and what became of them",
            None,
            MetricType::Counter,
        )?;
        for tally in &live {
            let counts = tally.compared.each_ref().map(|count| count.load(Ordering::Relaxed));
            if counts.iter().any(|count| *count > 0) {
                for (outcome, count) in Compared::ALL.into_iter().zip(counts) {
                    let labels = [
                        ("model", &*tally.model),
                        ("version", &*tally.version),
                        ("outcome", outcome.as_str()),
                    ];
                    ConstCounter::new(count).encode(family.encode_family(&Labels(labels))?)?;
                }
            }
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_model_info",
            "The versions that are loaded, by the digests of their graphs",
            None,
            MetricType::Gauge,
        )?;
        for tally in &live {
            let labels =
                Labels([("model", &*tally.model), ("version", &*tally.version), ("digest", &tally.digest)]);
            ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_model_load_seconds",
            "How long loading the version took",
            None,
            MetricType::Gauge,
        )?;
        for tally in &live {
            let labels = Labels([("model", &*tally.model), ("version", &*tally.version)]);
            ConstGauge::new(tally.loading.as_secs_f64()).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "scoregate_model_loaded_timestamp_seconds",
            "When the version was loaded, in seconds since 1970",
            None,
            MetricType::Gauge,
        )?;
        for tally in &live {
            let labels = Labels([("model", &*tally.model), ("version", &*tally.version)]);
            let since = tally.loaded_at.duration_since(UNIX_EPOCH).unwrap_or_default();
            ConstGauge::new(since.as_secs_f64()).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
