//! Scores what was answered once more with another version, beside the answers and never in their way.
//!
//! What the live version has answered is scored by the shadow, what a canary has answered by the live version. One thread at the
//! lowest priority does it: where the processor has nothing to spare, rows find no room in the queue and are dropped, and answers
//! are what they were.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use scoregate_model::comparison::{Comparison, Side, Summary};
use scoregate_model::features::{BodyError, FaultCode, FeatureRows};
use scoregate_model::runtime::Score;
use serde::Serialize;

use crate::config::ShadowSettings;
use crate::registry::{Snapshot, Split, Version};
use crate::telemetry::Spread;
use crate::telemetry::tally::Compared;

/// How many answers may wait.
const MAX_JOBS: usize = 4_096;
/// Rows that are run together at the most, unless one body has more.
const MAX_ROWS: usize = 1_024;
/// How long rows gather: nobody is woken for them.
const GATHER: Duration = Duration::from_millis(10);
/// How long nothing may come before the thread waits to be woken.
const IDLE: Duration = Duration::from_secs(1);
/// Of so many runs one is timed, for which both versions have to run.
const TIMED: u64 = 8;
/// How many rows are added to what is known before others may look at it.
const ADDED: usize = 256;
/// What a job takes beside its body.
const JOB_BYTES: usize = 256;

/// How rows were written in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One JSON object.
    Row,
    /// A JSON array of them, or an object with that.
    Json,
    /// One to a line.
    Ndjson,
    /// Records of CSV below a header.
    Csv,
}

/// Rows that one version has answered: what was sent, and what was answered.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The whole body, decoded.
    pub body: &'a [u8],
    /// How rows are written in it.
    pub form: Form,
    /// The places of the rows that this version has answered, among those that were sent, ascending: as [`FeatureRows::indices`];
    /// of a single row `[0]`.
    pub places: &'a [u32],
    /// The numbers of each of these rows, row after row.
    pub scores: &'a [f64],
}

/// Compares versions with each other.
#[derive(Debug)]
pub struct Shadows {
    jobs: SyncSender<Box<Job>>,
    shared: Arc<Shared>,
    settings: ShadowSettings,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of what waits.
    bytes: AtomicUsize,
    pairs: Mutex<BTreeMap<Key, Pair>>,
}

/// The model, its live version and the other one.
type Key = (String, String, String);

/// What was answered, and waits to be scored once more.
#[derive(Debug)]
struct Job {
    split: Arc<Split>,
    answered: Arc<Version>,
    body: Vec<u8>,
    form: Form,
    /// Of a single row none, which is there without saying.
    places: Vec<u32>,
    scores: Vec<f64>,
}

impl Job {
    fn places(&self) -> &[u32] {
        if self.form == Form::Row { &[0] } else { &self.places }
    }

    fn bytes(&self) -> usize {
        taken(&self.body, &self.places, &self.scores)
    }
}

/// What a job takes in memory, about.
fn taken(body: &[u8], places: &[u32], scores: &[f64]) -> usize {
    JOB_BYTES + body.len() + size_of_val(places) + size_of_val(scores)
}

/// The version with which what `answered` has answered is compared, and which of the two is not the live one.
fn other<'s>(split: &'s Split, answered: &'s Arc<Version>) -> Option<(&'s Arc<Version>, &'s Arc<Version>)> {
    if Arc::ptr_eq(&split.live, answered) {
        return split.shadow.as_ref().map(|shadow| (shadow, shadow));
    }
    let is_canary = split.canaries.iter().any(|canary| Arc::ptr_eq(&canary.version, answered));
    is_canary.then_some((&split.live, answered))
}

impl Shadows {
    /// Starts the thread that compares.
    ///
    /// # Errors
    /// The system's, if it has no more threads.
    pub fn start(settings: &ShadowSettings) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel(MAX_JOBS);
        let shared = Arc::<Shared>::default();
        let worker = Worker { waiting, shared: Arc::clone(&shared), runs: 0 };
        std::thread::Builder::new().name("scoregate-shadow".into()).spawn(move || worker.work())?;
        Ok(Self { jobs, shared, settings: settings.clone() })
    }

    /// Whether anybody wants to know what `answered`, which is one of `split`, has answered: as cheap as it can be asked.
    pub fn wants(&self, split: &Split, answered: &Arc<Version>) -> bool {
        self.settings.sample > 0.0 && other(split, answered).is_some()
    }

    /// Takes what `answered` has answered, for those who want to know; what cannot be taken is counted and forgotten. The body is
    /// copied only if it is taken.
    pub fn offer(&self, split: &Arc<Split>, answered: &Arc<Version>, rows: Answered<'_>) {
        let Answered { body, form, places, scores } = rows;
        let Some((_, compared)) = other(split, answered) else { return };
        if places.is_empty() || (self.settings.sample < 1.0 && rand::random::<f64>() >= self.settings.sample)
        {
            return;
        }
        let places = if form == Form::Row { &[] } else { places };
        let bytes = taken(body, places, scores);
        let drop = || compared.tally.compared(Compared::Dropped, scores.len() / answered.task.width());
        if self.shared.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.settings.max_bytes {
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return drop();
        }
        let job = Job {
            split: Arc::clone(split),
            answered: Arc::clone(answered),
            body: body.into(),
            form,
            places: places.into(),
            scores: scores.into(),
        };
        if self.jobs.try_send(Box::new(job)).is_err() {
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            drop();
        }
    }

    /// Forgets pairs of versions that are not compared any more, or not with the same share.
    pub fn keep(&self, models: &Snapshot) {
        let is_compared = |(model, live, other): &Key, pair: &Pair| {
            let split = models.models.get(model).and_then(|model| model.split.as_ref());
            split.is_some_and(|split| {
                let is_other = |version: &Arc<Version>| version.manifest.version == *other;
                let canary = split.canaries.iter().find(|canary| is_other(&canary.version));
                let is_same = match canary {
                    Some(canary) => pair.since == canary.since,
                    None => pair.since.is_none() && split.shadow.as_ref().is_some_and(is_other),
                };
                // Rows of a rollout that is not seen here yet have come already.
                pair.revision > split.revision || split.live.manifest.version == *live && is_same
            })
        };
        self.shared.pairs().retain(|key, pair| is_compared(key, pair));
    }

    /// What is known of the pairs of those models that are `wanted`.
    pub fn reports(&self, wanted: impl Fn(&str) -> bool) -> Vec<Report> {
        let pairs = self.shared.pairs();
        pairs.iter().filter(|((model, ..), _)| wanted(model)).map(|(key, pair)| pair.report(key)).collect()
    }

    /// What is known of one pair: a model's live version and another one, since when that has its share.
    pub fn report(&self, model: &str, live: &str, other: &str, since: Option<&str>) -> Option<Report> {
        let key = (model.to_owned(), live.to_owned(), other.to_owned());
        let pairs = self.shared.pairs();
        pairs.get(&key).filter(|pair| pair.since.as_deref() == since).map(|pair| pair.report(&key))
    }
}

impl Shared {
    fn pairs(&self) -> MutexGuard<'_, BTreeMap<Key, Pair>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a version compares with the live one, on the same rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// Its live version.
    pub live: String,
    /// The other one.
    pub version: String,
    /// Whether that is the shadow, or else a canary.
    pub role: &'static str,
    /// Since when a canary has the share that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Rows that one has scored and the other does not take, by what is wrong with them first.
    pub refused: BTreeMap<&'static str, u64>,
    /// Rows that one has scored, and the other could not be run.
    pub failed: u64,
    /// What their scores have been.
    #[serde(flatten)]
    pub scores: Summary,
    /// What a row takes the processor in runs of both versions on the same rows.
    pub run_seconds_per_row: RunTimes,
}

/// What rows take, by version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunTimes {
    /// How many runs of each were timed.
    pub runs: u64,
    /// Of the live version.
    pub live: Option<Quantiles>,
    /// Of the other one.
    pub version: Option<Quantiles>,
}

/// What half of the times do not exceed, and 99 of a hundred.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half.
    pub p50: f64,
    /// 99 of a hundred.
    pub p99: f64,
}

impl Quantiles {
    fn of(spread: &Spread) -> Option<Self> {
        let quantile = |share| Some(spread.quantile(share)?.as_secs_f64());
        Some(Self { p50: quantile(0.5)?, p99: quantile(0.99)? })
    }
}

/// Two versions that are compared.
#[derive(Debug)]
struct Pair {
    role: &'static str,
    since: Option<String>,
    /// The newest revision of the rollout of which rows have come.
    revision: u64,
    comparison: Comparison,
    refused: BTreeMap<&'static str, u64>,
    failed: u64,
    /// Of the live version and of the other one.
    times: [Spread; 2],
}

impl Pair {
    fn new(split: &Split, other: &Version, role: &'static str, since: Option<&str>) -> Self {
        let live = &split.live;
        let side = |version| Side { decision: Version::decision(version), labels: &version.labels };
        let comparison =
            Comparison::new(side(live), side(other), &live.score_edges, &live.reader, &live.distributions);
        Self {
            role,
            since: since.map(Into::into),
            revision: split.revision,
            comparison,
            refused: BTreeMap::new(),
            failed: 0,
            times: Default::default(),
        }
    }

    fn report(&self, (model, live, version): &Key) -> Report {
        let [first, second] = &self.times;
        Report {
            model: model.clone(),
            live: live.clone(),
            version: version.clone(),
            role: self.role,
            since: self.since.clone(),
            refused: self.refused.clone(),
            failed: self.failed,
            scores: self.comparison.summary(),
            run_seconds_per_row: RunTimes {
                runs: first.count(),
                live: Quantiles::of(first),
                version: Quantiles::of(second),
            },
        }
    }
}

/// Rows as one version reads them.
struct Read {
    rows: FeatureRows,
    /// For each row that was answered which one of these it is, or why it is none.
    at: Vec<Result<usize, FaultCode>>,
}

impl Read {
    /// Reads the rows of `jobs`: one body, or several of one row each.
    fn new(version: &Version, jobs: &[Job]) -> Self {
        match jobs {
            [job] if job.form != Form::Row => Self::batch(version, job),
            jobs => Self::singles(version, jobs),
        }
    }

    fn singles(version: &Version, jobs: &[Job]) -> Self {
        let mut rows = version.reader.empty(jobs.len());
        let read = |job: &Job| {
            let before = rows.len();
            match version.reader.json_row(&job.body, &mut rows) {
                Ok(()) if rows.len() > before => Ok(before),
                Ok(()) => {
                    let fault = rows.take_fault();
                    let first = fault.and_then(|fault| fault.faults.first().map(|fault| fault.code));
                    Err(first.unwrap_or(FaultCode::Malformed))
                }
                Err(error) => Err(fault_of(&error)),
            }
        };
        let at = jobs.iter().map(read).collect();
        Self { rows, at }
    }

    fn batch(version: &Version, job: &Job) -> Self {
        let reader = &version.reader;
        let rows = match job.form {
            Form::Csv => reader.csv_rows(&job.body, usize::MAX),
            Form::Ndjson => reader.ndjson_rows(&job.body, usize::MAX),
            Form::Row | Form::Json => reader.json_rows(&job.body, usize::MAX).map(|read| read.rows),
        };
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                let at = job.places.iter().map(|_| Err(fault_of(&error))).collect();
                return Self { rows: reader.empty(0), at };
            }
        };
        let find = |place: &u32| {
            rows.indices.binary_search(place).map_err(|_| {
                let fault = rows.faults.binary_search_by_key(&(*place as usize), |fault| fault.index);
                let faults = fault.map_or(&[][..], |at| &rows.faults[at].faults);
                faults.first().map_or(FaultCode::Malformed, |fault| fault.code)
            })
        };
        let at = job.places.iter().map(find).collect();
        Self { rows, at }
    }

    /// Runs those rows that pass: the score of each, if it has a usable one, and what that took the processor.
    fn run(&self, version: &Version) -> (Vec<Option<Score>>, Duration) {
        let passed: Vec<usize> = self.at.iter().filter_map(|at| at.as_ref().ok().copied()).collect();
        let begin = processor_time();
        let scores = if passed.is_empty() { Vec::new() } else { run_some(version, &self.rows, &passed) };
        (scores, processor_time().saturating_sub(begin))
    }

    /// What each row takes the processor.
    fn time(&self, version: &Version) -> Duration {
        let (scores, took) = self.run(version);
        per_row(took, scores.len())
    }
}

/// Runs some of the rows. One whose answer is no usable one fails a run of many: it is looked for by halves.
fn run_some(version: &Version, rows: &FeatureRows, some: &[usize]) -> Vec<Option<Score>> {
    let few = (some.len() < rows.len()).then(|| rows.select(some));
    match (version.run_aside(few.as_ref().unwrap_or(rows)), some) {
        (Ok(scores), _) => scores.scores().map(Some).collect(),
        (Err(_), [_]) => vec![None],
        (Err(_), some) => {
            let (one, two) = some.split_at(some.len() / 2);
            let mut scores = run_some(version, rows, one);
            scores.append(&mut run_some(version, rows, two));
            scores
        }
    }
}

/// What is wrong with each row of a body that cannot be read as rows.
fn fault_of(error: &BodyError) -> FaultCode {
    match error {
        BodyError::Header(faults) => faults.first().map_or(FaultCode::Columns, |fault| fault.code),
        BodyError::Shape { code, .. } => *code,
        BodyError::Json(_)
        | BodyError::DuplicateField { .. }
        | BodyError::Root { .. }
        | BodyError::Empty
        | BodyError::TooManyRows { .. } => FaultCode::Malformed,
    }
}

fn per_row(took: Duration, rows: usize) -> Duration {
    took / u32::try_from(rows.max(1)).unwrap_or(u32::MAX)
}

/// How long this thread has had a processor: what it is held up by others does not count.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

struct Worker {
    waiting: Receiver<Box<Job>>,
    shared: Arc<Shared>,
    runs: u64,
}

impl Worker {
    fn work(mut self) {
        // Of this thread alone, as Linux has it. Where it is not allowed, the thread works on as it is.
        if let Err(error) = rustix::process::setpriority_process(None, 19) {
            tracing::warn!(%error, "what is scored beside the answers has the same priority as they");
        }
        let mut quiet = Instant::now();
        loop {
            let mut jobs = Vec::new();
            let mut rows = 0;
            while rows < MAX_ROWS {
                match self.waiting.try_recv() {
                    Ok(job) => {
                        rows += job.places().len();
                        jobs.push(*job);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if !jobs.is_empty() {
                quiet = Instant::now();
                self.score(jobs);
            } else if quiet.elapsed() < IDLE {
                std::thread::park_timeout(GATHER);
            } else {
                // Only now does the next one who has something to tell have to wake somebody.
                let Ok(job) = self.waiting.recv() else { return };
                quiet = Instant::now();
                self.score(vec![*job]);
            }
        }
    }

    fn score(&mut self, mut jobs: Vec<Job>) {
        let bytes: usize = jobs.iter().map(Job::bytes).sum();
        while let Some(first) = jobs.first() {
            let (answered, split) = (Arc::clone(&first.answered), Arc::clone(&first.split));
            let is_single = first.form == Form::Row;
            let is_same = |job: &Job| {
                is_single
                    && job.form == Form::Row
                    && Arc::ptr_eq(&job.answered, &answered)
                    && Arc::ptr_eq(&job.split, &split)
            };
            let (mut group, rest) = match is_single {
                true => jobs.into_iter().partition(is_same),
                false => {
                    let rest = jobs.split_off(1);
                    (jobs, rest)
                }
            };
            jobs = rest;
            let rows = group.iter().map(|job| job.places().len()).sum();
            let compare = AssertUnwindSafe(|| self.compare(&split, &answered, &group));
            if catch_unwind(compare).is_err()
                && let Some((_, compared)) = other(&split, &answered)
            {
                compared.tally.compared(Compared::Failed, rows);
            }
            group.clear();
        }
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn compare(&mut self, split: &Split, answered: &Arc<Version>, jobs: &[Job]) {
        let Some((counterpart, compared)) = other(split, answered) else { return };
        let live = &split.live;
        let is_shadow = Arc::ptr_eq(answered, live);
        self.runs += 1;
        let read = Read::new(counterpart, jobs);
        // The live version's reader says what features are.
        let known = is_shadow.then(|| Read::new(live, jobs));
        let (scores, took) = read.run(counterpart);
        let is_timed = self.runs % TIMED == 1;
        let timed = is_timed.then(|| match &known {
            Some(known) => known.time(answered),
            None => Read::new(answered, jobs).time(answered),
        });
        let canary = split.canaries.iter().find(|canary| Arc::ptr_eq(&canary.version, answered));
        let since = canary.and_then(|canary| canary.since.as_deref());
        let name = |version: &Version| version.manifest.version.clone();
        let key = (live.manifest.name.clone(), name(live), name(compared));
        let role = if is_shadow { "shadow" } else { "canary" };
        let failed = scores.iter().filter(|score| score.is_none()).count();
        {
            let mut pairs = self.shared.pairs();
            let fresh = || Pair::new(split, compared, role, since);
            let pair = pairs.entry(key.clone()).or_insert_with(fresh);
            if pair.since.as_deref() != since || pair.role != role {
                if split.revision < pair.revision {
                    // They are of a share that it has no more.
                    return;
                }
                *pair = fresh();
            }
            pair.revision = pair.revision.max(split.revision);
            for code in read.at.iter().filter_map(|at| at.as_ref().err()) {
                *pair.refused.entry(code.as_str()).or_default() += 1;
            }
            pair.failed += failed as u64;
            if let Some(own) = timed.filter(|_| failed < scores.len()) {
                let took = per_row(took, scores.len());
                let times = if is_shadow { [own, took] } else { [took, own] };
                for (spread, took) in pair.times.iter_mut().zip(times) {
                    spread.observe(took);
                }
            }
        }
        let features = known.as_ref().unwrap_or(&read);
        let told = jobs.iter().flat_map(|job| job.scores.chunks_exact(answered.task.width()));
        let mut counterparts = scores.iter();
        let mut both = told.zip(&read.at).zip(&features.at).filter_map(|((told, at), row)| {
            let found = at.as_ref().ok().and_then(|_| counterparts.next())?.as_ref()?;
            Some((*row.as_ref().ok()?, told, found.values()))
        });
        let mut scored = 0;
        loop {
            // A few at a time: whoever wants to know what is known waits for a thread that may have to wait itself.
            let mut pairs = self.shared.pairs();
            let Some(pair) = pairs.get_mut(&key).filter(|pair| pair.since.as_deref() == since) else { break };
            let before = scored;
            for (row, told, found) in both.by_ref().take(ADDED) {
                let (one, two) = if is_shadow { (told, found) } else { (found, told) };
                pair.comparison.add(&features.rows, row, one, two);
                scored += 1;
            }
            if scored - before < ADDED {
                break;
            }
        }
        for (outcome, rows) in [
            (Compared::Scored, scored),
            (Compared::Failed, failed),
            (Compared::Refused, read.at.len() - scores.len()),
        ] {
            compared.tally.compared(outcome, rows);
        }
    }
}
