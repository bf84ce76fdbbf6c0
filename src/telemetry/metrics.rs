//! What is counted, by the names that dashboards use.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::access::Access;
use super::buckets::{Buckets, SECONDS};
use super::lines::Lines;
use super::notes::Record;
use super::process::Process;
use super::tally::{Kind, Tallies, Tally};
use super::trace::{TraceCounts, TraceId};
use crate::auth;
use crate::cache::{Estimate, Level};
use crate::webhook::WebhookCounts;

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    credentials: Family<CredentialLabels, Counter>,
    /// Of the kinds of credentials, those that were accepted: looked up once.
    accepted: [Counter; 4],
    key_sets: Family<KeySetLabels, Counter>,
    quota_rows: QuotaRows,
    redis: RedisCounts,
    cache: CacheCounts,
    cache_gauges: CacheGauges,
    requests: RequestCounts,
    queue: Queue,
    work: WorkGauges,
    connections: ConnectionCounts,
    versions: Family<StateLabels, Gauge>,
    rollouts: RolloutGauges,
    last_read: LastRead,
    guard: Decisions,
    traces: TraceCounts,
    webhooks: WebhookCounts,
    lines_dropped: Counter,
    /// The log whose lines these are; none until it is known.
    log: Option<Lines>,
    /// Held by whoever writes what is there at the moment: two at once would mix theirs.
    writing: Mutex<()>,
}

/// What is counted of requests, besides what their version counts.
#[derive(Debug, Clone)]
pub struct RequestCounts {
    tallies: Tallies,
    responses: Family<ResponseLabels, Counter>,
    received: Counter,
    sent: Counter,
    in_flight: Gauge,
}

impl RequestCounts {
    fn register(registry: &mut Registry) -> Self {
        let counts = Self {
            tallies: Tallies::default(),
            responses: Family::default(),
            received: Counter::default(),
            sent: Counter::default(),
            in_flight: Gauge::default(),
        };
        registry.register(
            "scoregate_responses",
            "Answers by route, status and the code of the problem, which is ok where there is none",
            counts.responses.clone(),
        );
        registry.register(
            "scoregate_request_body_bytes",
            "Bytes of the bodies of requests, as they came",
            counts.received.clone(),
        );
        registry.register(
            "scoregate_response_body_bytes",
            "Bytes of the bodies of answers",
            counts.sent.clone(),
        );
        registry.register(
            "scoregate_requests_in_flight",
            "Requests that wait for an answer",
            counts.in_flight.clone(),
        );
        registry.register_collector(Box::new(counts.tallies.clone()));
        counts
    }

    /// Requests that wait for an answer, counted by whoever watches them.
    pub(super) fn in_flight(&self) -> &Gauge {
        &self.in_flight
    }

    /// Tells of answers to `route` of this status and code from now on, though there was none: where the first is one too many,
    /// it has to be seen that there was none before.
    pub fn begin(&self, route: &'static str, status: u16, code: &'static str) {
        drop(self.responses.get_or_create(&ResponseLabels { route, status, code }));
    }

    /// Counts a request that was answered.
    pub(super) fn count(
        &self,
        kind: Kind,
        status: u16,
        record: &Record,
        took: Duration,
        bytes: u64,
        trace: Option<TraceId>,
    ) {
        let code = record.code.unwrap_or("ok");
        self.responses.get_or_create(&ResponseLabels { route: kind.route, status, code }).inc();
        self.received.inc_by(record.received as u64);
        self.sent.inc_by(bytes);
        let all_worked: Duration = record.parts().map(|part| part.worked).sum();
        for (at, part) in record.parts().enumerate() {
            let Some(tally) = &part.tally else {
                self.tallies.others(code == "unknown_model").observe(kind, took, trace);
                continue;
            };
            // Those beside the version that has failed can do nothing about it.
            if kind.class != FAILED || !record.is_beside(at) {
                let class = if part.has_failed { FAILED } else { kind.class };
                let kind = Kind { class, is_explained: part.explained.is_some(), ..kind };
                // As long as it would have taken without the others.
                let took = took.saturating_sub(all_worked - part.worked);
                tally.durations.observe(kind, took, trace);
                // Whoever names a version tries it: that is no sample of what it is sent.
                if !record.is_pinned {
                    let has_failed = class == FAILED && record.is_fault_of(at);
                    // Whoever tries again until there is room is told of the same refused rows each time.
                    let is_answered = class == "2xx" || status == 422;
                    let rows = if is_answered { [part.scored, part.rejected] } else { [0; 2] };
                    tally.judge(kind, has_failed, took, rows);
                }
            }
            if part.scored + part.rejected > 0 {
                tally.rows(kind.route, [part.scored, part.rejected]);
            }
            tally.found(&part.findings);
            if let Some((method, took)) = part.explained.zip(part.explaining) {
                tally.explained(method, took);
            }
        }
    }
}

/// The class of statuses that say that something has failed here.
const FAILED: &str = "5xx";

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResponseLabels {
    route: &'static str,
    status: u16,
    code: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    model: String,
    state: &'static str,
}

/// How long work waits for a thread that is made for what takes long.
#[derive(Debug, Clone)]
pub struct Queue(Arc<Buckets>);

impl Default for Queue {
    fn default() -> Self {
        Self(Arc::new(Buckets::new(SECONDS)))
    }
}

impl Queue {
    /// Counts work that has waited.
    pub fn waited(&self, time: Duration) {
        self.0.observe_time(time);
    }
}

impl Collector for Queue {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Work that left the connections' threads, by the time that it waited for another";
        let mut metric =
            encoder.encode_descriptor("scoregate_queue_seconds", help, None, MetricType::Histogram)?;
        self.0.encode(&mut metric)
    }
}

/// What is there at the moment, for a scrape.
#[derive(Debug, Default)]
pub struct Present {
    /// The cache of scores.
    pub cache: CacheState,
    /// The work in hand.
    pub work: InHand,
    /// The versions that answer.
    pub live: Vec<Arc<Tally>>,
    /// How many versions of each model are in which state.
    pub versions: Vec<(String, &'static str, i64)>,
    /// Which versions of each model answer whom.
    pub rollouts: Vec<RolledOut>,
    /// When the bucket was last read, where there is one.
    pub last_read: Option<SystemTime>,
}

/// Which versions of a model answer whom.
#[derive(Debug)]
pub struct RolledOut {
    /// The model.
    pub model: String,
    /// How many times its rollout had changed that is followed.
    pub revision: u64,
    /// Each version that is loaded, what it is, and how much of everything it answers, from 0 to 1.
    pub shares: Vec<(String, &'static str, f64)>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ShareLabels {
    model: String,
    version: String,
    role: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

#[derive(Debug, Default)]
struct RolloutGauges {
    shares: Family<ShareLabels, Gauge<f64, AtomicU64>>,
    revisions: Family<ModelLabels, Gauge>,
}

impl RolloutGauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "scoregate_rollout_share",
            "The share of everything that each loaded version answers, by what it is: live, canary, shadow or previous",
            gauges.shares.clone(),
        );
        registry.register(
            "scoregate_rollout_revision",
            "The revision of each model's rollout that is followed here",
            gauges.revisions.clone(),
        );
        gauges
    }

    fn set(&self, rollouts: Vec<RolledOut>) {
        // What changes its role, and versions that are loaded no more, are told of no more as they were.
        self.shares.clear();
        self.revisions.clear();
        for RolledOut { model, revision, shares } in rollouts {
            for (version, role, share) in shares {
                self.shares.get_or_create(&ShareLabels { model: model.clone(), version, role }).set(share);
            }
            let revision = i64::try_from(revision).unwrap_or(i64::MAX);
            self.revisions.get_or_create(&ModelLabels { model }).set(revision);
        }
    }
}

/// When the bucket was last read; no series where there is none.
#[derive(Debug, Clone, Default)]
struct LastRead(Arc<Mutex<Option<SystemTime>>>);

impl LastRead {
    fn lock(&self) -> MutexGuard<'_, Option<SystemTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for LastRead {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let name = "scoregate_repository_last_read_timestamp_seconds";
        let help = "When the bucket with the models was last read, in seconds since 1970; 0 if that never worked since the start";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let Some(at) = *self.lock() else { return Ok(()) };
        ConstGauge::new(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()).encode(metric)
    }
}

/// How much of the work that is bounded is in hand.
#[derive(Debug, Default)]
pub struct InHand {
    /// Rows that wait for a thread or run on one that serves no connections.
    pub scoring: Held,
    /// What explaining has in hand, in rows' worth of time.
    pub explaining: Held,
    /// Bytes of bodies and answers in memory.
    pub bytes: Held,
}

/// What is held of something, and how much may be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    /// Now.
    pub held: usize,
    /// At most.
    pub limit: usize,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WorkLabels {
    work: &'static str,
}

#[derive(Debug, Default)]
struct WorkGauges {
    rows: Family<WorkLabels, Gauge>,
    most_rows: Family<WorkLabels, Gauge>,
    bytes: Gauge,
    most_bytes: Gauge,
}

impl WorkGauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "scoregate_rows_in_hand",
            "Rows that wait or run away from the connections' threads, and what is being explained, in rows' worth of time",
            gauges.rows.clone(),
        );
        registry.register(
            "scoregate_rows_in_hand_limit",
            "How many may be, before requests are turned away",
            gauges.most_rows.clone(),
        );
        registry.register(
            "scoregate_bytes_in_hand",
            "Bytes that bodies and answers take in memory",
            gauges.bytes.clone(),
        );
        registry.register(
            "scoregate_bytes_in_hand_limit",
            "How many they may take, before requests are turned away",
            gauges.most_bytes.clone(),
        );
        gauges
    }

    fn set(&self, now: &InHand) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (work, Held { held, limit }) in [("scoring", now.scoring), ("explaining", now.explaining)] {
            self.rows.get_or_create(&WorkLabels { work }).set(gauge(held));
            self.most_rows.get_or_create(&WorkLabels { work }).set(gauge(limit));
        }
        self.bytes.set(gauge(now.bytes.held));
        self.most_bytes.set(gauge(now.bytes.limit));
    }
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
    /// Rows of quotas that were let through without Redis knowing.
    pub alone: Counter,
}

impl RedisCounts {
    fn of(requests: &Family<OutcomeLabels, Counter>, alone: &Counter) -> Self {
        let count = |outcome| requests.get_or_create(&OutcomeLabels { outcome }).clone();
        Self {
            answered: count("answered"),
            failed: count("failed"),
            late: count("late"),
            out_of_reach: count("out_of_reach"),
            alone: alone.clone(),
        }
    }
}

/// Connections by how they ended.
#[derive(Debug)]
pub struct ConnectionCounts {
    /// Nothing was wrong with what came.
    pub served: Counter,
    /// What came is no HTTP/1.1, or is ambiguous.
    pub framing: Counter,
    /// There was no TLS to be made.
    pub tls: Counter,
    /// The peer kept the gateway waiting for too long.
    pub timeout: Counter,
}

impl ConnectionCounts {
    fn of(connections: &Family<OutcomeLabels, Counter>) -> Self {
        let count = |outcome| connections.get_or_create(&OutcomeLabels { outcome }).clone();
        Self {
            served: count("served"),
            framing: count("framing"),
            tls: count("tls"),
            timeout: count("timeout"),
        }
    }
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// What became of rows at the cache of scores.
#[derive(Debug, Clone, Default)]
pub struct CacheCounts {
    /// By level, the one in process before Redis.
    pub levels: [LevelCounts; 2],
    /// Those that were being computed for somebody else.
    pub collapsed: Counter,
    /// Those that were asked of Redis in vain.
    pub failed: Counter,
    /// Those that Redis had, but not as they were written.
    pub garbled: Counter,
    /// Those that Redis had for longer than they are kept, or that another clock dates to a time to come.
    pub expired: Counter,
    /// Those that were written to Redis.
    pub stored: Counter,
    /// Those that were not, because Redis was too slow or out of reach.
    pub dropped: Counter,
}

/// Rows that were looked up at one level.
#[derive(Debug, Clone, Default)]
pub struct LevelCounts {
    /// Those that were found.
    pub hits: Counter,
    /// Those that were not.
    pub misses: Counter,
}

impl CacheCounts {
    fn of(rows: &Family<CacheLabels, Counter>) -> Self {
        let count = |level: Level, outcome| {
            let labels = CacheLabels { level: level.as_str(), outcome };
            rows.get_or_create(&labels).clone()
        };
        Self {
            levels: Level::ALL
                .map(|level| LevelCounts { hits: count(level, "hit"), misses: count(level, "miss") }),
            collapsed: count(Level::Memory, "collapsed"),
            failed: count(Level::Redis, "failed"),
            garbled: count(Level::Redis, "garbled"),
            expired: count(Level::Redis, "expired"),
            stored: count(Level::Redis, "stored"),
            dropped: count(Level::Redis, "dropped"),
        }
    }
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CacheLabels {
    level: &'static str,
    outcome: &'static str,
}

/// Which level of the cache is told about, for which version.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WorthLabels {
    model: String,
    version: String,
    level: &'static str,
}

/// What the cache of scores looks like at the moment.
#[derive(Debug, Default)]
pub struct CacheState {
    /// How many scores are kept in process.
    pub entries: u64,
    /// The memory that they take.
    pub bytes: u64,
    /// Of each live version, by model and version, what each level costs and saves.
    pub levels: Vec<(String, String, Level, Estimate)>,
}

#[derive(Debug, Default)]
struct CacheGauges {
    entries: Gauge,
    bytes: Gauge,
    used: Family<WorthLabels, Gauge>,
    hit_ratio: Family<WorthLabels, Gauge<f64, AtomicU64>>,
    saving: Family<WorthLabels, Gauge<f64, AtomicU64>>,
}

impl CacheGauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "scoregate_cache_entries",
            "Scores that are kept in process",
            gauges.entries.clone(),
        );
        registry.register("scoregate_cache_bytes", "The memory that they take, about", gauges.bytes.clone());
        registry.register(
            "scoregate_cache_level_used",
            "Whether scores of single rows are looked for at a level of the cache, which is where that saves time",
            gauges.used.clone(),
        );
        registry.register(
            "scoregate_cache_hit_ratio",
            "The share of look-ups at a level that found a score of late",
            gauges.hit_ratio.clone(),
        );
        registry.register(
            "scoregate_cache_saving_seconds",
            "What a look-up at a level saves on average, its own cost taken off; negative if it costs more than it saves",
            gauges.saving.clone(),
        );
        gauges
    }

    fn set(&self, state: CacheState) {
        self.entries.set(i64::try_from(state.entries).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(state.bytes).unwrap_or(i64::MAX));
        // Versions that answer no more are told of no more.
        self.used.clear();
        self.hit_ratio.clear();
        self.saving.clear();
        for (model, version, level, estimate) in state.levels {
            let labels = WorthLabels { model, version, level: level.as_str() };
            self.used.get_or_create(&labels).set(estimate.used.into());
            self.hit_ratio.get_or_create(&labels).set(estimate.hit_ratio);
            self.saving.get_or_create(&labels).set(estimate.saving);
        }
    }
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
struct DecisionLabels {
    model: String,
    /// `drop`, `step`, `promote`, or `failed` each time that one of these could not be carried out.
    action: &'static str,
    /// What was broken, or nothing.
    rule: &'static str,
}

/// What was decided on canaries; that it is counted is told before anything is.
#[derive(Debug, Clone, Default)]
struct Decisions(Family<DecisionLabels, Counter>);

impl Collector for Decisions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let name = "scoregate_guard_decisions";
        let help = "What was decided on canaries by what was done, drop, step or promote, or failed where it could not be, and by the rule that was broken";
        self.0.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }
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
pub enum CredentialKind {
    /// An API key.
    Key,
    /// An access token.
    Token,
    /// Nothing but the certificate of its connection.
    Certificate,
    /// Nothing, or nothing that can be read.
    None,
}

impl CredentialKind {
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
        let alone = Counter::default();
        registry.register(
            "scoregate_quota_rows_alone",
            "Rows that were let through by this gateway alone, of quotas that are shared through Redis",
            alone.clone(),
        );
        let redis = RedisCounts::of(&requests, &alone);
        let rows = Family::<CacheLabels, Counter>::default();
        registry.register(
            "scoregate_cache_rows",
            "Rows that were looked up in the cache of scores, by level and what became of them",
            rows.clone(),
        );
        let cache = CacheCounts::of(&rows);
        let cache_gauges = CacheGauges::register(&mut registry);
        let lines_dropped = Counter::default();
        registry.register(
            "scoregate_log_lines_dropped",
            "Log lines that were not written, because their reader is too slow or they cannot be",
            lines_dropped.clone(),
        );
        let requests = RequestCounts::register(&mut registry);
        let queue = Queue::default();
        registry.register_collector(Box::new(queue.clone()));
        let work = WorkGauges::register(&mut registry);
        let connections = Family::<OutcomeLabels, Counter>::default();
        registry.register(
            "scoregate_connections",
            "Connections by how they ended: served, refused for their framing or their TLS, or given up for keeping the gateway waiting",
            connections.clone(),
        );
        let connections = ConnectionCounts::of(&connections);
        let versions = Family::<StateLabels, Gauge>::default();
        registry.register(
            "scoregate_model_versions",
            "Published versions of each model by what has become of them",
            versions.clone(),
        );
        let rollouts = RolloutGauges::register(&mut registry);
        let last_read = LastRead::default();
        registry.register_collector(Box::new(last_read.clone()));
        let guard = Decisions::default();
        registry.register_collector(Box::new(guard.clone()));
        let traced = Family::<OutcomeLabels, Counter>::default();
        registry.register(
            "scoregate_traces",
            "Requests that were to be told to the collector of traces, by what became of that",
            traced.clone(),
        );
        let count = |outcome| traced.get_or_create(&OutcomeLabels { outcome }).clone();
        let traces = TraceCounts { sent: count("sent"), dropped: count("dropped"), failed: count("failed") };
        let told = Family::<OutcomeLabels, Counter>::default();
        registry.register(
            "scoregate_webhooks",
            "Events that were to be told to the webhook, by what became of that",
            told.clone(),
        );
        let count = |outcome| told.get_or_create(&OutcomeLabels { outcome }).clone();
        let webhooks =
            WebhookCounts { sent: count("sent"), dropped: count("dropped"), failed: count("failed") };
        registry.register_collector(Box::new(Process));
        let accepted = |kind: CredentialKind| {
            let labels = CredentialLabels { kind: kind.as_str(), outcome: "accepted" };
            credentials.get_or_create(&labels).clone()
        };
        let accepted = CredentialKind::ALL.map(accepted);
        Self {
            registry,
            credentials,
            accepted,
            key_sets,
            quota_rows,
            redis,
            cache,
            cache_gauges,
            requests,
            queue,
            work,
            connections,
            versions,
            rollouts,
            last_read,
            guard,
            traces,
            webhooks,
            lines_dropped,
            log: None,
            writing: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Where requests to Redis are counted.
    pub fn redis(&self) -> RedisCounts {
        self.redis.clone()
    }

    /// Where rows at the cache of scores are counted.
    pub fn cache(&self) -> CacheCounts {
        self.cache.clone()
    }

    /// Where rows under a quota are counted.
    pub fn quota_rows(&self) -> QuotaRows {
        self.quota_rows.clone()
    }

    /// Where requests are counted.
    pub fn requests(&self) -> RequestCounts {
        self.requests.clone()
    }

    /// Where work that waits for a thread is counted.
    pub fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Where connections that have ended are counted.
    pub fn connections(&self) -> &ConnectionCounts {
        &self.connections
    }

    /// Where requests that are traced are counted.
    pub fn traces(&self) -> TraceCounts {
        self.traces.clone()
    }

    /// What is counted of events that others are told.
    pub fn webhooks(&self) -> WebhookCounts {
        self.webhooks.clone()
    }

    /// Counts what was decided on a canary of `model`: `action` is `drop`, `step` or `promote`, or `failed` each time that it could not
    /// be done; `rule` is the one that was broken, empty if none was.
    pub fn count_decision(&self, model: &str, action: &'static str, rule: &'static str) {
        self.guard.0.get_or_create(&DecisionLabels { model: model.into(), action, rule }).inc();
    }

    /// Counts the lines that are dropped where `access` writes.
    pub fn watch(&mut self, access: &Access) {
        self.log = Some(access.lines.clone());
    }

    /// Counts one request by its credential and by what finally became of it.
    pub fn count_credential(&self, kind: CredentialKind, refused: Option<auth::Error>) {
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
    pub fn encode<'i>(
        &self,
        key_sets: impl Iterator<Item = (&'i str, u64, u64)>,
        present: Present,
    ) -> String {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.cache_gauges.set(present.cache);
        self.work.set(&present.work);
        self.requests.tallies.set(present.live);
        self.rollouts.set(present.rollouts);
        *self.last_read.lock() = present.last_read;
        self.versions.clear();
        for (model, state, count) in present.versions {
            self.versions.get_or_create(&StateLabels { model, state }).set(count);
        }
        for (issuer, well, badly) in key_sets {
            for (outcome, count) in [("ok", well), ("failed", badly)] {
                let labels = KeySetLabels { issuer: issuer.into(), outcome };
                self.key_sets.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
            }
        }
        let dropped = self.log.as_ref().map_or(0, Lines::dropped);
        self.lines_dropped.inner().store(dropped, Ordering::Relaxed);
        let mut document = String::new();
        text::encode(&mut document, &self.registry).expect("a text can always be appended to");
        document
    }
}

/// A document of OpenMetrics in the older format of Prometheus: counters are called as their samples are, and there are no exemplars.
pub fn in_older_format(document: &str) -> String {
    let mut older = String::with_capacity(document.len());
    let lines = || document.lines().filter(|line| !line.starts_with("# EOF") && !line.starts_with("# UNIT"));
    let counters: Vec<&str> =
        lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in lines() {
        let comment = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match comment.and_then(|rest| rest.split_once(' ')) {
            Some((name, rest)) if counters.contains(&name) => {
                let kind = &line[..7];
                older.extend([kind, name, "_total ", rest]);
            }
            _ => older.push_str(line.rfind(" # {trace_id=").map_or(line, |exemplar| &line[..exemplar])),
        }
        older.push('\n');
    }
    older
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
    fn what_a_rollout_was_is_told_no_more() {
        let metrics = Metrics::default();
        let tell = |shares: &[(&str, &'static str, f64)], revision| {
            let shares = shares.iter().map(|(version, role, share)| ((*version).into(), *role, *share));
            let rollout = RolledOut { model: "churn".into(), revision, shares: shares.collect() };
            let present = Present { rollouts: vec![rollout], ..Present::default() };
            let document = metrics.encode(std::iter::empty(), present);
            let lines = document.lines().filter_map(|line| line.strip_prefix("scoregate_rollout_"));
            lines.map(ToOwned::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        let series = |lines: &[&str]| lines.iter().map(ToString::to_string).collect();
        assert_eq!(
            tell(&[("1", "live", 0.95), ("2", "canary", 0.05)], 7),
            series(&[
                r#"share{model="churn",version="1",role="live"} 0.95"#,
                r#"share{model="churn",version="2",role="canary"} 0.05"#,
                r#"revision{model="churn"} 7"#,
            ])
        );
        assert_eq!(
            tell(&[("2", "live", 1.0), ("1", "previous", 0.0)], 8),
            series(&[
                r#"share{model="churn",version="2",role="live"} 1.0"#,
                r#"share{model="churn",version="1",role="previous"} 0.0"#,
                r#"revision{model="churn"} 8"#,
            ])
        );
        assert_eq!(metrics.encode(std::iter::empty(), Present::default()).matches("churn").count(), 0);
    }

    #[test]
    fn decisions_are_counted_by_what_was_done() {
        let metrics = Metrics::default();
        for action in ["failed", "failed", "drop"] {
            metrics.count_decision("churn", action, "psi");
        }
        metrics.count_decision("churn", "promote", "");
        let document = metrics.encode(std::iter::empty(), Present::default());
        for (action, rule, count) in [("failed", "psi", 2), ("drop", "psi", 1), ("promote", "", 1)] {
            let labels = format!("model=\"churn\",action=\"{action}\",rule=\"{rule}\"");
            let line = format!("scoregate_guard_decisions_total{{{labels}}} {count}");
            assert!(document.lines().any(|found| found == line), "{line}\n{document}");
        }
    }

    #[test]
    fn credentials_rows_and_fetches_are_counted_by_outcome() {
        let metrics = Metrics::default();
        metrics.count_credential(CredentialKind::Key, None);
        metrics.count_credential(CredentialKind::Key, Some(auth::Error::InvalidKey));
        metrics.count_credential(CredentialKind::Certificate, None);
        metrics.count_credential(CredentialKind::None, Some(auth::Error::InvalidRequest("two")));
        let [admitted, refused] = metrics.quota_rows().of("rows");
        admitted.inc_by(5);
        metrics.quota_rows().of("rows")[0].inc();
        refused.inc_by(2);
        for fetched in 1..=2 {
            let document = metrics.encode([("https://issuer", fetched, 0)].into_iter(), Present::default());
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
