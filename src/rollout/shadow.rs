//! Scores what was answered once more with another version, beside the answers and never in their way.
//!
//! What the live version has answered is scored by the shadow, what a canary has answered by the live version. One thread at the
//! lowest priority does it: where the processor has nothing to spare, rows find no room in the queue and are dropped, and answers
//! are what they were.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use scoregate_model::comparison::{Comparison, Side, Summary};
use scoregate_model::features::{BodyError, FaultCode, FeatureRows};
use scoregate_model::runtime::Score;
use serde::Serialize;

use super::guard::{Agreement, Verdicts};
use crate::config::ShadowSettings;
use crate::registry::{Registry, Snapshot, Split, Version};
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

/// The rows of a request that one version has answered.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The version.
    pub version: &'a Arc<Version>,
    /// The places of its rows among those that were sent, ascending: as [`FeatureRows::indices`]; of a single row `[0]`.
    pub places: &'a [u32],
    /// The numbers of each of these rows, row after row.
    pub scores: &'a [f64],
}

/// Compares versions with each other.
#[derive(Debug)]
pub struct Shadows {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
    settings: ShadowSettings,
    /// What the guard makes of it.
    pub verdicts: Verdicts,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of what waits.
    bytes: AtomicUsize,
    pairs: Mutex<BTreeMap<Key, Pair>>,
    /// Which versions there are to compare now, once that is known.
    registry: OnceLock<Arc<Registry>>,
    /// Held while models are run.
    running: Mutex<()>,
    is_stopped: AtomicBool,
}

/// The model, its live version and the other one.
type Key = (String, String, String);

/// A request that was answered, and waits to be scored once more.
#[derive(Debug)]
struct Job {
    pieces: Vec<Piece>,
    bytes: usize,
}

/// What one version has answered of it.
#[derive(Debug)]
struct Piece {
    split: Arc<Split>,
    answered: Arc<Version>,
    /// The whole body, decoded.
    body: Bytes,
    form: Form,
    /// Of a single row none, which is there without saying.
    places: Vec<u32>,
    scores: Vec<f64>,
}

impl Piece {
    fn places(&self) -> &[u32] {
        if self.form == Form::Row { &[0] } else { &self.places }
    }
}

/// Two versions that are compared, and on which terms: with others it is another comparison.
#[derive(Debug, Clone)]
struct Terms {
    live: Weak<Version>,
    other: Weak<Version>,
    role: &'static str,
    since: Option<String>,
    slots: Vec<(u16, u16)>,
}

impl PartialEq for Terms {
    fn eq(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.live, &other.live)
            && Weak::ptr_eq(&self.other, &other.other)
            && self.role == other.role
            && self.since == other.since
            && self.slots == other.slots
    }
}

impl Terms {
    /// On which terms `other` is compared with the live version of `split`, if it is.
    fn of(split: &Split, other: &Version) -> Option<Self> {
        let is_other = |version: &Arc<Version>| std::ptr::eq(Arc::as_ptr(version), other);
        let terms = |version: &Arc<Version>, role, since, slots| Self {
            live: Arc::downgrade(&split.live),
            other: Arc::downgrade(version),
            role,
            since,
            slots,
        };
        if let Some(canary) = split.canaries.iter().find(|canary| is_other(&canary.version)) {
            let slots = canary.slots.clone();
            return Some(terms(&canary.version, "canary", canary.since.clone(), slots));
        }
        let shadow = split.shadow.as_ref().filter(|shadow| is_other(shadow))?;
        Some(terms(shadow, "shadow", None, Vec::new()))
    }
}

/// The version with which what `answered` has answered is compared, and which of the two is not the live one.
fn other<'s>(split: &'s Split, answered: &'s Arc<Version>) -> Option<(&'s Arc<Version>, &'s Arc<Version>)> {
    if Arc::ptr_eq(&split.live, answered) {
        return split.shadow.as_ref().map(|shadow| (shadow, shadow));
    }
    let is_canary = split.canaries.iter().any(|canary| Arc::ptr_eq(&canary.version, answered));
    is_canary.then_some((&split.live, answered))
}

fn key_of(live: &Version, other: &Version) -> Key {
    let name = |version: &Version| version.manifest.version.clone();
    (live.manifest.name.clone(), name(live), name(other))
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
        Ok(Self { jobs, shared, settings: settings.clone(), verdicts: Verdicts::default() })
    }

    /// Asks `registry` from now on which versions there are to compare: what requests tell that began before a change is late.
    pub fn follow(&self, registry: Arc<Registry>) {
        // There is one.
        let _ = self.shared.registry.set(registry);
    }

    /// Runs no model any more, once the run that is under way has ended; that is waited for for as long as `patience` lasts.
    pub fn stop(&self, patience: Duration) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        let end = Instant::now() + patience;
        while matches!(self.shared.running.try_lock(), Err(TryLockError::WouldBlock)) && Instant::now() < end
        {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Whether anybody wants to know what `answered`, which is one of `split`, has answered: as cheap as it can be asked.
    pub fn wants(&self, split: &Split, answered: &Arc<Version>) -> bool {
        self.settings.sample > 0.0 && other(split, answered).is_some()
    }

    /// Takes what was answered to a request, for those who want to know; what cannot be taken is counted and forgotten. `body` is that
    /// of the request, decoded, in which rows are written in `form`; it is shared.
    pub fn offer<'a>(
        &self,
        split: &Arc<Split>,
        body: &Bytes,
        form: Form,
        answered: impl IntoIterator<Item = Answered<'a>>,
    ) {
        if self.settings.sample < 1.0 && rand::random::<f64>() >= self.settings.sample {
            return;
        }
        let is_wanted = |rows: &Answered<'_>| !rows.places.is_empty() && self.wants(split, rows.version);
        let piece = |Answered { version, places, scores }: Answered<'_>| Piece {
            split: Arc::clone(split),
            answered: Arc::clone(version),
            body: body.clone(),
            form,
            places: if form == Form::Row { Vec::new() } else { places.into() },
            scores: scores.into(),
        };
        let pieces: Vec<Piece> = answered.into_iter().filter(is_wanted).map(piece).collect();
        if pieces.is_empty() {
            return;
        }
        let taken = |piece: &Piece| JOB_BYTES + size_of_val(&*piece.places) + size_of_val(&*piece.scores);
        let job = Job { bytes: body.len() + pieces.iter().map(taken).sum::<usize>(), pieces };
        let bytes = job.bytes;
        let before = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        let refused = if before + bytes > self.settings.max_bytes {
            Some(job)
        } else {
            self.jobs
                .try_send(job)
                .err()
                .map(|(TrySendError::Full(job) | TrySendError::Disconnected(job))| job)
        };
        if let Some(job) = refused {
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            job.pieces.iter().for_each(drop_piece);
        }
    }

    /// Forgets pairs of versions that are not compared any more, or on other terms.
    pub fn keep(&self, models: &Snapshot) {
        let is_compared = |(model, _, other): &Key, pair: &Pair| {
            let split = models.models.get(model).and_then(|model| model.split.as_ref())?;
            let other = split.versions().find(|version| version.manifest.version == *other)?;
            Some(Terms::of(split, other)? == pair.terms)
        };
        self.shared.pairs().retain(|key, pair| is_compared(key, pair) == Some(true));
    }

    /// What is known of the pairs of those models that are `wanted`.
    pub fn reports(&self, wanted: impl Fn(&str) -> bool) -> Vec<Report> {
        let pairs = self.shared.pairs();
        pairs.iter().filter(|((model, ..), _)| wanted(model)).map(|(key, pair)| pair.report(key)).collect()
    }

    /// How the scores of `other` agree with those of the live version of `split`; nothing if none were compared yet.
    pub fn agreement(&self, split: &Split, other: &Version) -> Option<Agreement> {
        let terms = Terms::of(split, other)?;
        let pairs = self.shared.pairs();
        let pair = pairs.get(&key_of(&split.live, other)).filter(|pair| pair.terms == terms)?;
        Some(Agreement {
            comparable: pair.comparison.is_comparable(),
            rows: pair.comparison.rows(),
            psi: pair.comparison.psi(),
            flips: pair.comparison.flips(),
        })
    }
}

/// Counts rows that are not scored once more.
fn drop_piece(piece: &Piece) {
    if let Some((_, compared)) = other(&piece.split, &piece.answered) {
        compared.tally.compared(Compared::Dropped, piece.places().len());
    }
}

impl Shared {
    /// Whether what was answered by `split` is of the terms on which `other` is compared now.
    fn is_current(&self, split: &Split, terms: &Terms, other: &Version) -> bool {
        let Some(registry) = self.registry.get() else { return true };
        let now = registry.split(&split.live.manifest.name);
        now.and_then(|now| Terms::of(&now, other)).is_some_and(|now| now == *terms)
    }

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
    terms: Terms,
    comparison: Comparison,
    refused: BTreeMap<&'static str, u64>,
    failed: u64,
    /// Of the live version and of the other one.
    times: [Spread; 2],
}

impl Pair {
    fn new(live: &Version, other: &Version, terms: &Terms) -> Self {
        let side = |version| Side { decision: Version::decision(version), labels: &version.labels };
        let comparison =
            Comparison::new(side(live), side(other), &live.score_edges, &live.reader, &live.distributions);
        Self {
            terms: terms.clone(),
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
            role: self.terms.role,
            since: self.terms.since.clone(),
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
    fn new(version: &Version, jobs: &[Piece]) -> Self {
        match jobs {
            [job] if job.form != Form::Row => Self::batch(version, job),
            jobs => Self::singles(version, jobs),
        }
    }

    fn singles(version: &Version, jobs: &[Piece]) -> Self {
        let mut rows = version.reader.empty(jobs.len());
        let read = |job: &Piece| {
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

    fn batch(version: &Version, job: &Piece) -> Self {
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
    waiting: Receiver<Job>,
    shared: Arc<Shared>,
    runs: u64,
}

/// What one version has answered, and what has to be known to compare that.
struct Group {
    pieces: Vec<Piece>,
    live: Arc<Version>,
    answered: Arc<Version>,
    /// The version that scores it once more.
    counterpart: Arc<Version>,
    /// The one of the two that is not the live one.
    compared: Arc<Version>,
    terms: Terms,
}

impl Group {
    /// Nothing if nobody wants to know any more, on the terms on which it was answered.
    fn new(pieces: Vec<Piece>, shared: &Shared) -> Option<Self> {
        let first = pieces.first()?;
        let (counterpart, compared) = other(&first.split, &first.answered)?;
        let terms = Terms::of(&first.split, compared)?;
        if !shared.is_current(&first.split, &terms, compared) {
            pieces.iter().for_each(drop_piece);
            return None;
        }
        let (counterpart, compared) = (Arc::clone(counterpart), Arc::clone(compared));
        let (live, answered) = (Arc::clone(&first.split.live), Arc::clone(&first.answered));
        Some(Self { pieces, live, answered, counterpart, compared, terms })
    }

    fn is_shadow(&self) -> bool {
        Arc::ptr_eq(&self.answered, &self.live)
    }

    fn rows(&self) -> usize {
        self.pieces.iter().map(|piece| piece.places().len()).sum()
    }
}

impl Worker {
    fn work(mut self) {
        // Of this thread alone, as Linux has it. Where it is not allowed, the thread works on as it is.
        if let Err(error) = rustix::process::setpriority_process(None, 19) {
            tracing::warn!(%error, "what is scored beside the answers has the same priority as they");
        }
        let mut quiet = Instant::now();
        while !self.is_stopped() {
            let mut pieces = Vec::new();
            let (mut rows, mut bytes) = (0, 0);
            let mut take = |job: Job| {
                rows += job.pieces.iter().map(|piece| piece.places().len()).sum::<usize>();
                bytes += job.bytes;
                pieces.extend(job.pieces);
                rows < MAX_ROWS
            };
            loop {
                match self.waiting.try_recv() {
                    Ok(job) => {
                        if !take(job) {
                            break;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if !pieces.is_empty() {
                quiet = Instant::now();
            } else if quiet.elapsed() < IDLE {
                std::thread::park_timeout(GATHER);
                continue;
            } else {
                // Only now does the next one who has something to tell have to wake somebody.
                let Ok(job) = self.waiting.recv() else { return };
                quiet = Instant::now();
                (pieces, bytes) = (job.pieces, job.bytes);
            }
            self.score(pieces);
            self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.is_stopped.load(Ordering::SeqCst)
    }

    fn score(&mut self, mut pieces: Vec<Piece>) {
        while !pieces.is_empty() {
            let (together, rest) = split_off(pieces);
            pieces = rest;
            let shared = Arc::clone(&self.shared);
            let running = shared.running.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_stopped() {
                return;
            }
            let Some(group) = Group::new(together, &shared) else { continue };
            if catch_unwind(AssertUnwindSafe(|| self.compare(&group))).is_err() {
                group.compared.tally.compared(Compared::Failed, group.rows());
            }
            drop(running);
        }
    }

    /// Runs what has to be run for a group, and books what comes of it.
    fn compare(&mut self, group: &Group) {
        let Group { pieces, live, answered, counterpart, compared, terms } = group;
        let is_shadow = group.is_shadow();
        self.runs += 1;
        let read = Read::new(counterpart, pieces);
        // The live version's reader says what features are.
        let known = is_shadow.then(|| Read::new(live, pieces));
        let (scores, took) = read.run(counterpart);
        let is_timed = self.runs % TIMED == 1;
        let own = is_timed.then(|| match &known {
            Some(known) => known.time(answered),
            None => Read::new(answered, pieces).time(answered),
        });
        let failed = scores.iter().filter(|score| score.is_none()).count();
        let key = key_of(live, compared);
        {
            let mut pairs = self.shared.pairs();
            let fresh = || Pair::new(live, compared, terms);
            let pair = pairs.entry(key.clone()).or_insert_with(fresh);
            if pair.terms != *terms {
                *pair = fresh();
            }
            for code in read.at.iter().filter_map(|at| at.as_ref().err()) {
                *pair.refused.entry(code.as_str()).or_default() += 1;
            }
            pair.failed += failed as u64;
            if let Some(own) = own.filter(|_| failed < scores.len()) {
                let took = per_row(took, scores.len());
                let times = if is_shadow { [own, took] } else { [took, own] };
                for (spread, took) in pair.times.iter_mut().zip(times) {
                    spread.observe(took);
                }
            }
        }
        let scored = self.add(group, &key, known.as_ref().unwrap_or(&read), &read, &scores);
        for (outcome, rows) in [
            (Compared::Scored, scored),
            (Compared::Failed, failed),
            (Compared::Refused, read.at.len() - scores.len()),
        ] {
            compared.tally.compared(outcome, rows);
        }
    }

    /// Counts the rows that both versions have scored, and says how many they are: those that were `read` have these `scores`, and
    /// their features are as the live version has them.
    fn add(&self, group: &Group, key: &Key, features: &Read, read: &Read, scores: &[Option<Score>]) -> usize {
        let width = group.answered.task.width();
        let told = group.pieces.iter().flat_map(|piece| piece.scores.chunks_exact(width));
        let mut counterparts = scores.iter();
        let mut both = told.zip(&read.at).zip(&features.at).filter_map(|((told, at), row)| {
            let found = at.as_ref().ok().and_then(|_| counterparts.next())?.as_ref()?;
            Some((*row.as_ref().ok()?, told, found.values()))
        });
        let mut scored = 0;
        loop {
            // A few at a time: whoever wants to know what is known waits for a thread that may have to wait itself.
            let mut pairs = self.shared.pairs();
            let Some(pair) = pairs.get_mut(key).filter(|pair| pair.terms == group.terms) else {
                return scored;
            };
            let before = scored;
            for (row, told, found) in both.by_ref().take(ADDED) {
                let (one, two) = if group.is_shadow() { (told, found) } else { (found, told) };
                pair.comparison.add(&features.rows, row, one, two);
                scored += 1;
            }
            if scored - before < ADDED {
                return scored;
            }
        }
    }
}

/// The first of some pieces with those that can be read and run with it, and the others: single rows that the same version has answered
/// under the same split.
fn split_off(mut pieces: Vec<Piece>) -> (Vec<Piece>, Vec<Piece>) {
    let first = &pieces[0];
    if first.form != Form::Row {
        let rest = pieces.split_off(1);
        return (pieces, rest);
    }
    let (answered, split) = (Arc::clone(&first.answered), Arc::clone(&first.split));
    pieces.into_iter().partition(|piece| {
        piece.form == Form::Row
            && Arc::ptr_eq(&piece.answered, &answered)
            && Arc::ptr_eq(&piece.split, &split)
    })
}
