//! A model version, loaded, checked and warm.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use scoregate_model::acceptance::accept::{Accepted, Trial};
use scoregate_model::acceptance::{self, Golden, Refusal};
use scoregate_model::comparison::Decision;
use scoregate_model::explain::importance::Importance;
use scoregate_model::features::{FeatureRows, RowReader};
use scoregate_model::inspect::Served;
use scoregate_model::package::{self, Package};
use scoregate_model::reference::FeatureReference;
use scoregate_model::runtime::{self, Runtime, Scores, Session, SessionOptions};
use scoregate_model::watch::Watch;
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::{Manifest, Task};

use tokio::sync::SetOnce;

use super::explainer::{Prepared, Unexplained, Unprepared};
use crate::cache::Worth;
use crate::config::{ExplainMode, ExplainSettings, Serving};
use crate::telemetry::tally::{Counted, Tally};

/// What opening a session may take of the stack: ONNX Runtime reads trees by recursion, and the child process that tries a
/// model has as much.
pub const STACK_BYTES: usize = 16 * 1024 * 1024;

/// Sessions that take longer than this to open are opened by several threads.
const QUICK: Duration = Duration::from_millis(20);

/// A model version, loaded, checked and warm.
#[derive(Debug)]
pub struct Version {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Its schema.
    pub schema: FeatureSchema,
    /// Reads rows for it.
    pub reader: RowReader,
    /// What it answers about a row.
    pub task: Task,
    /// Whether it answers in float32: its numbers then have no more digits than that.
    pub float32: bool,
    /// The probability of the positive class from which on a row is labelled positive: the manifest's, or the operator's.
    pub threshold: f64,
    /// The manifest's labels, or the operator's.
    pub labels: Vec<String>,
    /// The most rows of one batch.
    pub max_batch_rows: usize,
    /// `sha256:…` of the graph.
    pub digest: String,
    /// How its golden rows came out.
    pub golden: Golden,
    /// What one row, or one more row of many, costs on this machine.
    pub cost: Cost,
    /// A digest of all that its scores depend on but the row: two versions never have the same one.
    pub fingerprint: [u8; 32],
    /// What caching its scores costs and saves.
    pub worth: Worth,
    /// How its scores are explained.
    pub explain: ExplainSettings,
    /// How important its features are, where the package says so.
    pub importance: Option<Importance>,
    /// The nodes that run, by execution provider, as ONNX Runtime counts them.
    pub execution_providers: BTreeMap<String, usize>,
    /// How many sessions it holds.
    pub sessions: usize,
    /// What is counted of it.
    pub tally: Arc<Tally>,
    /// What its sessions hold in memory, as measured when it was tried; that of accelerators not counted.
    session_bytes: u64,
    /// What explains its scores, once that is prepared.
    prepared: SetOnce<Result<Arc<Prepared>, Unexplained>>,
    /// How its features were distributed where it was trained; empty where its package does not say.
    pub distributions: Vec<FeatureReference>,
    /// The edges between which its scores were counted there, ascending; empty where its package does not say.
    pub score_edges: Vec<f64>,
    pool: Pool,
    /// The session of whoever scores beside the answers: no thread that answers waits for it, and it for none of them.
    aside: Pool,
    accelerator: Option<Accelerator>,
}

/// What scoring costs, measured when the version was warmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// A run of one row.
    pub run: Duration,
    /// Each row of a large run.
    pub row: Duration,
}

/// Sessions on another device, for runs that are worth the way there.
#[derive(Debug)]
struct Accelerator {
    pool: Pool,
    min_rows: usize,
}

/// Why one version cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The graph was refused, or the package is not whole.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The package is not the one that was accepted.
    #[error("the package was changed since it was accepted")]
    Changed,
    /// The model's own settings do not fit it.
    #[error("the settings of model {model} do not fit it: {problem}")]
    Settings {
        /// The model.
        model: String,
        /// What was found and expected.
        problem: String,
    },
    /// Its sessions would hold more memory than a model may.
    #[error(
        "its {sessions} sessions would hold {} MiB of memory, and a model may have {} MiB; raise SCOREGATE_MODEL_MEMORY, or \
         lower SCOREGATE_WORKERS, of which each takes two sessions; what compares versions takes one, unless SCOREGATE_SHADOW_SAMPLE is 0", .needed.div_ceil(1 << 20), .limit >> 20
    )]
    Memory {
        /// How many sessions are opened.
        sessions: usize,
        /// What they would hold, as one was measured, in bytes.
        needed: u64,
        /// What they may.
        limit: u64,
    },
    /// The system has no more threads.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

impl From<package::Error> for LoadError {
    fn from(error: package::Error) -> Self {
        Self::Refused(error.into())
    }
}

impl From<runtime::Error> for LoadError {
    fn from(error: runtime::Error) -> Self {
        Self::Refused(error.into())
    }
}

impl LoadError {
    /// A stable name for what is wrong.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Changed => "package_changed",
            Self::Settings { .. } => "settings",
            Self::Memory { .. } => "model_memory",
            Self::Thread(_) => "no_thread",
        }
    }

    /// A sentence for clients, without paths and without text of ONNX Runtime.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.reason(),
            other => other.to_string(),
        }
    }
}

/// What loading needs besides the package.
#[derive(Debug)]
pub(super) struct Loading<'l> {
    pub(super) runtime: &'l Runtime,
    /// As many as threads that may score at once, so that none is waited for.
    pub(super) sessions: usize,
    /// Whether versions are compared beside the answers, on a session more.
    pub(super) is_compared: bool,
    /// Threads that may open sessions at once.
    pub(super) workers: usize,
    /// What the sessions of one version may hold in memory, in bytes.
    pub(super) memory: u64,
    /// Where ONNX Runtime may write its notes.
    pub(super) scratch: &'l Path,
}

impl Version {
    /// Loads the package in `directory`, which was accepted, and warms it: digests, sessions and a few rows. Only what
    /// acceptance has not seen, which are execution providers, has to reproduce the golden rows once more. What explains its
    /// scores is prepared at once only where every score is to be explained; otherwise [`Version::prepare`] is to be called. Call this
    /// on a stack of [`STACK_BYTES`].
    pub(super) fn load(
        directory: &Path,
        accepted: &Accepted,
        serving: &Serving,
        loading: &Loading<'_>,
    ) -> Result<(Self, Option<Unprepared>), LoadError> {
        let begin = Instant::now();
        let package = Package::read(directory)?;
        if package.manifest_digest != accepted.manifest_digest {
            return Err(LoadError::Changed);
        }
        serving
            .check(&package.manifest)
            .map_err(|problem| LoadError::Settings { model: package.manifest.name.clone(), problem })?;
        let sessions = loading.sessions;
        let opened = sessions + usize::from(loading.is_compared);
        let session_bytes = accepted.session_bytes.saturating_mul(opened as u64);
        if session_bytes > loading.memory {
            return Err(LoadError::Memory { sessions: opened, needed: session_bytes, limit: loading.memory });
        }
        let reader = RowReader::new(&package.schema, &package.manifest.bindings);
        // Golden rows and background need not say whom they are about.
        let known = RowReader::new(&package.schema.with_optional_entity(), &package.manifest.bindings);
        let trial = Trial::few(&package, &known);
        let served = runtime::prepare(&package.graph, &package.manifest.output)?;
        let providers = &serving.execution_providers;
        let on_cpu: Vec<_> = providers.iter().copied().filter(|found| !found.is_accelerator()).collect();
        let options = |execution_providers: &[_]| SessionOptions {
            intra_op_threads: serving.intra_op_threads,
            execution_providers: execution_providers.to_vec(),
        };
        let opener =
            Opener { package: &package, served: &served, reader: &known, trial: &trial, loading, accepted };
        let (mut pool, golden) = opener.open(&options(&on_cpu), sessions)?;
        // By one thread, whose priority is the lowest: those that ONNX Runtime would start have another.
        let alone = SessionOptions { intra_op_threads: 1, ..options(&on_cpu) };
        let aside = loading.is_compared.then(|| opener.one(&alone)).transpose()?;
        let aside = Pool::new(aside.into_iter().collect());
        let cost = measure(&mut pool[0], &trial)?;
        let (task, float32) = (pool[0].task(), pool[0].is_float32());
        let accelerator = if on_cpu.len() < providers.len() {
            let (pool, _) = opener.open(&options(providers), sessions)?;
            Some(Accelerator { pool: Pool::new(pool), min_rows: serving.gpu_min_rows })
        } else {
            None
        };
        let execution_providers = if providers.is_empty() {
            accepted.execution_providers.clone()
        } else {
            opener.count_nodes(&options(providers))?
        };
        let digest = package.digest().to_string();
        let mut fingerprint = blake3::Hasher::new_derive_key("scoregate 2026-11 fingerprints of versions");
        // Other releases may rewrite the graph in other ways, other devices round in other ways.
        let device = format!("{providers:?} {}", serving.intra_op_threads);
        let release = env!("CARGO_PKG_VERSION");
        for part in [&package.manifest_digest, &digest, loading.runtime.build(), release, &device] {
            fingerprint.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let counted = Counted {
            model: &package.manifest.name,
            version: &package.manifest.version,
            digest: &digest,
            loading: begin.elapsed(),
            loaded_at: SystemTime::now(),
            value_bounds: (task == Task::Regression).then_some(&package.score_edges),
        };
        let watch = Watch::new(&reader, &package.distributions);
        let names = package.schema.features().map(|field| field.name.as_str());
        let tally = Arc::new(Tally::new(&counted, watch, names));
        let manifest = Arc::new(package.manifest);
        let version = Self {
            tally,
            fingerprint: *fingerprint.finalize().as_bytes(),
            worth: Worth::new(cost.run, cost.row),
            explain: serving.explain.clone(),
            importance: package.importance,
            task,
            float32,
            threshold: serving.threshold.unwrap_or(manifest.threshold),
            labels: serving.labels.clone().unwrap_or_else(|| manifest.labels.clone()),
            max_batch_rows: serving.max_batch_rows,
            digest,
            golden,
            cost,
            execution_providers,
            sessions,
            session_bytes,
            prepared: SetOnce::new(),
            distributions: package.distributions,
            score_edges: package.score_edges,
            pool: Pool::new(pool),
            aside,
            accelerator,
            reader,
            manifest: Arc::clone(&manifest),
            schema: package.schema,
        };
        if serving.explain.mode == ExplainMode::Off {
            version.explain_by(Err(Unexplained::Off));
            return Ok((version, None));
        }
        let unprepared = Unprepared {
            manifest,
            graph: package.graph,
            served,
            reader: known,
            background: package.background,
            covers: package.covers,
            options: options(&on_cpu),
            settings: serving.explain.clone(),
            cost,
            spare: loading.memory.saturating_sub(session_bytes),
        };
        if serving.explain.mode.is_default() {
            version.prepare(unprepared, loading.runtime);
            return Ok((version, None));
        }
        Ok((version, Some(unprepared)))
    }

    /// Prepares what explains its scores. Call this on a stack of [`STACK_BYTES`].
    pub(super) fn prepare(&self, unprepared: Unprepared, runtime: &Runtime) {
        let prepare = AssertUnwindSafe(|| unprepared.prepare(runtime));
        self.explain_by(std::panic::catch_unwind(prepare).unwrap_or_else(|_| {
            let (model, version) = (&self.manifest.name, &self.manifest.version);
            tracing::error!(
                model.name = model,
                model.version = version,
                "preparing what explains a version panicked; this is a mistake in the gateway"
            );
            Err(Unexplained::Unusable)
        }));
    }

    fn explain_by(&self, prepared: Result<Arc<Prepared>, Unexplained>) {
        // It is prepared once.
        let _ = self.prepared.set(prepared);
    }

    /// What explains its scores.
    ///
    /// # Errors
    /// [`Unexplained`] if nothing does, or not yet.
    pub fn explainer(&self) -> Result<&Arc<Prepared>, Unexplained> {
        let prepared = self.prepared.get().map(Result::as_ref);
        prepared.unwrap_or(Err(&Unexplained::Preparing)).map_err(Unexplained::clone)
    }

    /// The same, and waits while it is being prepared, at most for so long.
    ///
    /// # Errors
    /// As [`Version::explainer`].
    pub async fn explainer_within(&self, patience: Duration) -> Result<&Arc<Prepared>, Unexplained> {
        if self.prepared.get().is_none() {
            // Whoever waited in vain is told so below.
            let _ = tokio::time::timeout(patience, self.prepared.wait()).await;
        }
        self.explainer()
    }

    /// What its sessions hold in memory, as measured when it was tried, and what explains its scores, in bytes; that of
    /// accelerators not counted.
    pub fn memory_bytes(&self) -> u64 {
        let explainer = self.explainer().map_or(0, |prepared| prepared.explainer.bytes());
        self.session_bytes.saturating_add(explainer as u64)
    }

    /// Scores checked rows on a session of a pool: the accelerator's, where there is one and the rows are worth it.
    ///
    /// # Errors
    /// [`runtime::Error`] if the run fails or answers no probabilities or values; it holds no value of a row.
    pub fn run(&self, rows: &FeatureRows) -> Result<Scores, runtime::Error> {
        Ok(self.run_unless(rows, &|| false)?.expect("nothing stops it"))
    }

    /// Scores as [`Version::run`] does, and asks `stop` between two parts of a large run; nothing if it was to stop.
    ///
    /// # Errors
    /// As [`Version::run`].
    pub fn run_unless(
        &self,
        rows: &FeatureRows,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Scores>, runtime::Error> {
        let begin = Instant::now();
        let scores = self.score(rows, stop);
        self.tally.ran(begin.elapsed());
        scores
    }

    /// Scores as [`Version::run`] does, where it does, but for nobody who sent rows: it is not counted among the runs of those.
    ///
    /// # Errors
    /// As [`Version::run`].
    pub fn run_uncounted(&self, rows: &FeatureRows) -> Result<Scores, runtime::Error> {
        Ok(self.score(rows, &|| false)?.expect("nothing stops it"))
    }

    fn score(&self, rows: &FeatureRows, stop: &dyn Fn() -> bool) -> Result<Option<Scores>, runtime::Error> {
        let scores = match &self.accelerator {
            Some(accelerator) if rows.len() >= accelerator.min_rows => {
                accelerator.pool.lend().run_unless(rows, stop)
            }
            _ => self.pool.lend().run_unless(rows, stop),
        };
        scores.map_err(runtime::Error::without_values)
    }

    /// Scores as [`Version::run`] does, on the processor and a session of its own, for one thread that is not in the way of answers: it
    /// is not counted among the runs that are.
    ///
    /// # Errors
    /// As [`Version::run`].
    pub fn run_aside(&self, rows: &FeatureRows) -> Result<Scores, runtime::Error> {
        let scores = self.aside.lend().run_unless(rows, &|| false);
        Ok(scores.map_err(runtime::Error::without_values)?.expect("nothing stops it"))
    }

    /// How it decides.
    pub fn decision(&self) -> Decision {
        Decision { task: self.task, float32: self.float32, threshold: self.threshold }
    }
}

/// Opens the sessions of a version.
struct Opener<'o> {
    package: &'o Package,
    served: &'o Served,
    reader: &'o RowReader,
    trial: &'o Trial,
    loading: &'o Loading<'o>,
    accepted: &'o Accepted,
}

impl Opener<'_> {
    /// As many `sessions` as are wanted, all of them warm, and how the golden rows came out.
    fn open(&self, options: &SessionOptions, sessions: usize) -> Result<(Vec<Session>, Golden), LoadError> {
        let started = Instant::now();
        let mut first = self.one(options)?;
        let slow = started.elapsed() > QUICK;
        let manifest = &self.package.manifest;
        let golden = if options.execution_providers.is_empty() {
            self.accepted.golden
        } else {
            acceptance::check_golden(&self.package.golden, manifest.tolerance, self.reader, &mut first)?
        };
        // What the graph answers is not looked at: made-up rows may have no usable answer.
        let single = self.trial.singles(1);
        let warm_up = |session: &mut Session| -> Result<(), LoadError> {
            for row in single.iter().chain(&single) {
                session.run_raw(row)?;
            }
            Ok(())
        };
        warm_up(&mut first)?;
        let (more, threads) = (sessions - 1, if slow { self.loading.workers } else { 1 });
        let warm = || -> Result<Session, LoadError> {
            let mut session = self.one(options)?;
            warm_up(&mut session)?;
            Ok(session)
        };
        let mut pool = vec![first];
        if threads < 2 {
            for _ in 0..more {
                pool.push(warm()?);
            }
            return Ok((pool, golden));
        }
        let opened = std::thread::scope(|scope| {
            let part = |thread: usize| more * (thread + 1) / threads - more * thread / threads;
            let open = |count: usize| {
                let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
                builder.spawn_scoped(scope, move || (0..count).map(|_| warm()).collect::<Result<Vec<_>, _>>())
            };
            let opening: Vec<_> = (0..threads).map(|thread| open(part(thread))).collect();
            let mut opened = Vec::with_capacity(more);
            for thread in opening {
                match thread.map_err(LoadError::Thread)?.join() {
                    Ok(sessions) => opened.extend(sessions?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok::<_, LoadError>(opened)
        })?;
        pool.extend(opened);
        Ok((pool, golden))
    }

    fn one(&self, options: &SessionOptions) -> Result<Session, runtime::Error> {
        let manifest = &self.package.manifest;
        let (bindings, output) = (&manifest.bindings, &manifest.output);
        self.loading.runtime.session_of(self.served, self.reader, bindings, output, options)
    }

    fn count_nodes(&self, options: &SessionOptions) -> Result<BTreeMap<String, usize>, LoadError> {
        let Package { graph, manifest, .. } = self.package;
        let (runtime, scratch) = (self.loading.runtime, self.loading.scratch);
        let (bindings, output) = (&manifest.bindings, &manifest.output);
        let rows = self.trial.rows(1_000);
        Ok(runtime.nodes_by_provider(graph, self.reader, bindings, output, options, &rows, scratch)?)
    }
}

/// Sessions that wait to be lent.
#[derive(Debug)]
struct Pool(Mutex<Vec<Session>>);

impl Pool {
    fn new(sessions: Vec<Session>) -> Self {
        Self(Mutex::new(sessions))
    }

    fn lend(&self) -> Lease<'_> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // There are as many sessions as threads that score, so that one is always free.
        Lease { session: Some(pool.pop().expect("a session per scoring thread")), pool: &self.0 }
    }
}

/// A session on loan from its pool; goes back when dropped, after a panic too.
struct Lease<'p> {
    session: Option<Session>,
    pool: &'p Mutex<Vec<Session>>,
}

impl Lease<'_> {
    fn run_unless(
        &mut self,
        rows: &FeatureRows,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Scores>, runtime::Error> {
        let session = self.session.as_mut().expect("a lease holds its session until it is dropped");
        session.run_unless(rows, stop)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).extend(self.session.take());
    }
}

/// The cost of one row and of each row of many: the fastest of a few rounds, which noise disturbs least. Single rows differ
/// from each other: of one row again and again the processor foresees the way through the trees.
fn measure(session: &mut Session, trial: &Trial) -> Result<Cost, runtime::Error> {
    let mut fastest = |runs: &[FeatureRows], rounds: u32| -> Result<Duration, runtime::Error> {
        let mut best = Duration::MAX;
        for _ in 0..rounds {
            let started = Instant::now();
            for rows in runs {
                match session.run(rows) {
                    // Rows that were made up may have no usable answer: acceptance has judged that.
                    Ok(_) | Err(runtime::Error::Output(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            best = best.min(started.elapsed());
        }
        let rows = runs.iter().map(FeatureRows::len).sum::<usize>().max(1);
        Ok(best / u32::try_from(rows).unwrap_or(u32::MAX))
    };
    Ok(Cost { run: fastest(&trial.singles(32), 3)?, row: fastest(&[trial.rows(256)], 2)? })
}
