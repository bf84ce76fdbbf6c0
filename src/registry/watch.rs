//! Follows the repository: unknown packages are tried in the [sandbox](crate::sandbox), live ones loaded, and the
//! [`Registry`] is given a new snapshot whenever something has changed.
//!
//! One thread decides. It lists the repository every half second, which costs a look at the names and times of files and
//! reads none that it knows. Trying and loading are done on threads of their own, so that a package which takes its
//! time holds up no other. Whatever goes wrong with a version, the one before it serves on.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use scoregate_model::acceptance::accept::Accepted;
use scoregate_model::package::{self, MANIFEST, ROLLOUT, Repository, digest_of};
use scoregate_model::runtime::Runtime;
use scoregate_schemas::manifest::Manifest;

use super::records::Records;
use super::version::{Loading, STACK_BYTES, Version};
use super::{Error, Model, Published, Refused, Registry, Snapshot, State};
use crate::config::Settings;
use crate::rollout;
use crate::sandbox::{AcceptJob, Job, Reasons, Sandbox, Verdict};

/// The largest manifest that is read.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// Keeps a [`Registry`] in step with a repository.
#[derive(Debug)]
pub struct Watcher {
    tools: Arc<Tools>,
    registry: Arc<Registry>,
    models: BTreeMap<String, Watched>,
    /// Why the repository could not be listed the last time.
    unlisted: Option<String>,
    report: Sender<Done>,
    reports: Receiver<Done>,
    /// How many threads wait for a package that is tried.
    trying: usize,
    /// How many threads load a version.
    loading: usize,
    /// Counts what was seen, so that what is reported of something that has changed since is told apart.
    seen: u64,
    /// Versions that answer no more requests, but for those that they had begun: freed here, not by a request.
    retired: Vec<Arc<Version>>,
}

/// What the threads that try and load need.
#[derive(Debug)]
struct Tools {
    repository: Repository,
    settings: Settings,
    runtime: Runtime,
    sandbox: Sandbox,
    records: Records,
}

/// A model, as it is watched.
#[derive(Debug, Default)]
struct Watched {
    versions: BTreeMap<String, Seen>,
    /// What the choice of the live version hangs on, as it was when it was made.
    basis: Basis,
    /// The version that is to answer.
    wanted: Option<String>,
    /// Why there is none, if there is none.
    unclear: Option<Reasons>,
    /// The version that answers, and the digest of its manifest.
    live: Option<(Arc<Version>, String)>,
    /// What was last logged about why the wanted version does not answer.
    complaint: Option<String>,
}

#[derive(Debug, Default, PartialEq)]
struct Basis {
    rollout: Option<Stamp>,
    versions: Vec<(String, String)>,
}

/// A version, as it was seen.
#[derive(Debug)]
struct Seen {
    /// Which sight of it this is.
    id: u64,
    /// Its files, taken before any of them was read.
    files: BTreeMap<String, Stamp>,
    manifest: Option<Arc<Manifest>>,
    manifest_digest: String,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// To be tried.
    New,
    /// It is being tried.
    Trying,
    /// It may be served.
    Accepted(Arc<Accepted>),
    /// It is being loaded.
    Loading(Arc<Accepted>),
    /// It may not be served, unless its files change.
    Refused { reasons: Reasons, since: Instant, logged: bool },
}

impl Stage {
    fn refused(reasons: Reasons) -> Self {
        Self::Refused { reasons, since: Instant::now(), logged: false }
    }
}

/// What tells that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a thread has come to.
struct Done {
    model: String,
    version: String,
    id: u64,
    outcome: Outcome,
}

enum Outcome {
    Tried(Result<Accepted, Reasons>),
    Loaded(Box<Result<Version, Reasons>>, Duration),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some(Self {
            inode: found.ino(),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Every file of a directory.
    fn of_all(directory: &Path) -> BTreeMap<String, Self> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let stamp = Self::of(&entry.path())?;
                Some((entry.file_name().to_string_lossy().into_owned(), stamp))
            })
            .collect()
    }
}

impl Watcher {
    /// Watches the repository that `settings` name. Nothing is done before [`Watcher::settle`].
    pub fn new(settings: Settings, runtime: Runtime) -> Self {
        let (report, reports) = channel();
        let tools = Tools {
            repository: Repository::new(&settings.models.dir),
            sandbox: Sandbox::new(&settings.models, settings.scoring.workers),
            records: Records::open(&settings.state.dir, &runtime),
            settings,
            runtime,
        };
        Self {
            tools: Arc::new(tools),
            registry: Arc::default(),
            models: BTreeMap::new(),
            unlisted: None,
            report,
            reports,
            trying: 0,
            loading: 0,
            seen: 0,
            retired: Vec::new(),
        }
    }

    /// Tries and loads until every model's live version answers or is refused. Versions that are not live are tried on
    /// after that: none of them may hold up a start.
    ///
    /// # Errors
    /// [`Error`] if no model can be served.
    pub fn settle(&mut self) -> Result<Arc<Registry>, Error> {
        if self.tools.repository.list()?.is_empty() {
            let directory = self.tools.repository.root().display().to_string();
            return Err(Error::NoModel { directory });
        }
        loop {
            self.look();
            self.go_on();
            if self.models.values().all(Watched::is_settled) {
                break;
            }
            self.wait();
        }
        for (model, watched) in &mut self.models {
            watched.complain(model, Duration::ZERO);
        }
        if self.models.values().any(|watched| watched.live.is_some()) {
            return Ok(Arc::clone(&self.registry));
        }
        let why = self.models.iter().map(|(model, watched)| {
            (model.clone(), watched.obstacle().map_or_else(String::new, |reasons| reasons.detail.clone()))
        });
        Err(Error::NoneServable(why.collect()))
    }

    /// Follows the repository until `stopped`.
    pub fn follow(mut self, stopped: impl Fn() -> bool) {
        while !stopped() {
            let step = || {
                self.wait();
                self.look();
                self.go_on();
                self.retired.retain(|version| Arc::strong_count(version) > 1);
            };
            if std::panic::catch_unwind(AssertUnwindSafe(step)).is_err() {
                tracing::error!(
                    "following the repository panicked, and goes on; this is a mistake in the gateway"
                );
            }
        }
    }

    /// Waits until a thread has come to something, or it is time to look again.
    fn wait(&mut self) {
        let mut next = self.reports.recv_timeout(self.tools.settings.models.poll_interval).ok();
        while let Some(done) = next {
            match &done.outcome {
                Outcome::Tried(_) => self.trying -= 1,
                Outcome::Loaded(..) => self.loading -= 1,
            }
            self.take(done);
            next = self.reports.try_recv().ok();
        }
    }

    /// Lists the repository and sees what has changed.
    fn look(&mut self) {
        let listed = match self.tools.repository.list() {
            Ok(listed) => listed,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                if self.unlisted.as_ref() != Some(&error) {
                    tracing::error!(error, "the repository cannot be listed; what is loaded is served on");
                    self.unlisted = Some(error);
                }
                return;
            }
        };
        self.unlisted = None;
        let Self { tools, models, seen, .. } = self;
        // Of a model that has gone its version answers on.
        models.retain(|model, watched| listed.contains_key(model) || watched.live.is_some());
        for (model, watched) in models.iter_mut().filter(|(model, _)| !listed.contains_key(*model)) {
            watched.versions.clear();
            watched.basis = Basis::default();
            watched.wanted = None;
            let detail = format!("model {model} is in the repository no more");
            watched.unclear = Some(Reasons { code: "removed".into(), reason: detail.clone(), detail });
        }
        for (model, versions) in listed {
            let watched = models.entry(model.clone()).or_default();
            watched.versions.retain(|version, _| versions.contains(version));
            for version in &versions {
                let directory = tools.repository.directory(&model, version);
                if watched.versions.get(version).is_some_and(|known| known.is_unchanged(&directory)) {
                    continue;
                }
                *seen += 1;
                let fresh =
                    Seen::look(*seen, &directory, tools, tools.settings.serving(&model).intra_op_threads);
                watched.versions.insert(version.clone(), fresh);
            }
            watched.choose(&tools.repository, &model, &versions);
        }
    }

    /// Takes up what a thread has come to, unless its version has changed in the meantime.
    fn take(&mut self, done: Done) {
        let Done { model, version: name, id, outcome } = done;
        let Some(watched) = self.models.get_mut(&model) else { return };
        let Some(seen) = watched.versions.get_mut(&name).filter(|seen| seen.id == id) else { return };
        match outcome {
            Outcome::Tried(Ok(accepted)) => {
                tracing::info!(
                    model.name = model,
                    model.version = name,
                    golden.rows = accepted.golden.rows,
                    golden.worst = accepted.golden.worst,
                    probe.rows = accepted.drawn,
                    probe.unusable = accepted.unusable,
                    session_bytes = accepted.session_bytes,
                    "version accepted"
                );
                seen.stage = Stage::Accepted(Arc::new(accepted));
            }
            Outcome::Tried(Err(reasons)) => seen.stage = Stage::refused(reasons),
            Outcome::Loaded(loaded, duration) => match *loaded {
                Ok(version) => {
                    tracing::info!(
                        model.name = model,
                        model.version = name,
                        model.digest = version.digest,
                        golden.rows = version.golden.rows,
                        golden.worst = version.golden.worst,
                        run_us = version.cost.run.as_secs_f64() * 1e6,
                        row_ns = version.cost.row.as_secs_f64() * 1e9,
                        sessions = version.sessions,
                        memory_bytes = version.memory_bytes,
                        duration_ms = duration.as_secs_f64() * 1e3,
                        "model loaded"
                    );
                    if let Stage::Loading(accepted) = &seen.stage {
                        seen.stage = Stage::Accepted(Arc::clone(accepted));
                    }
                    let fresh = Arc::new(version);
                    let retired = if watched.wanted.as_ref() == Some(&name) {
                        let live = (Arc::clone(&fresh), seen.manifest_digest.clone());
                        watched.live.replace(live).map(|(before, _)| before)
                    } else {
                        // Another one was promoted in the meantime.
                        Some(fresh)
                    };
                    self.retired.extend(retired);
                }
                Err(reasons) => seen.stage = Stage::refused(reasons),
            },
        }
    }

    /// Starts what can be started, shows requests how things are now, and says what has to be said about it.
    fn go_on(&mut self) {
        while self.start_next() {}
        self.show();
        for (model, watched) in &mut self.models {
            watched.complain(model, self.tools.settings.models.poll_interval);
        }
    }

    /// Starts what is most urgent: loading, then trying what is to answer, then trying the rest. As many at once as there are
    /// workers, and one more for what is to answer: a package that takes its time must not hold it up.
    fn start_next(&mut self) -> bool {
        let workers = self.tools.settings.scoring.workers;
        let (trying, may_load) = (self.trying, self.loading < workers);
        let urgency = |model: &Watched, version: &str, seen: &Seen| {
            let wanted = model.wanted.as_deref() == Some(version);
            match &seen.stage {
                Stage::Accepted(_) if wanted && may_load && !model.is_live(seen) => Some(0),
                Stage::New if wanted && trying <= workers => Some(1),
                Stage::New if trying < workers => Some(2),
                _ => None,
            }
        };
        let waiting = self.models.iter().flat_map(|(name, model)| {
            let of_model = model.versions.iter();
            of_model.filter_map(move |(version, seen)| {
                Some((urgency(model, version, seen)?, name.as_str(), version.as_str()))
            })
        });
        let next = waiting.min().map(|(_, model, version)| (model.to_owned(), version.to_owned()));
        let Some((model, version)) = next else { return false };
        let Some(seen) = self.models.get_mut(&model).and_then(|model| model.versions.get_mut(&version))
        else {
            return false;
        };
        let (tools, report, id) = (Arc::clone(&self.tools), self.report.clone(), seen.id);
        let directory = tools.repository.directory(&model, &version);
        let work: Box<dyn FnOnce() -> Outcome + Send> = match &seen.stage {
            Stage::Accepted(accepted) => {
                let (accepted, model) = (Arc::clone(accepted), model.clone());
                seen.stage = Stage::Loading(Arc::clone(&accepted));
                Box::new(move || {
                    let started = Instant::now();
                    let loaded = caught(|| tools.load(&model, &directory, &accepted));
                    Outcome::Loaded(Box::new(loaded), started.elapsed())
                })
            }
            _ => {
                let model = model.clone();
                seen.stage = Stage::Trying;
                Box::new(move || Outcome::Tried(caught(|| tools.accept(&model, &directory))))
            }
        };
        let (of, name) = (model.clone(), version.clone());
        let task = move || {
            let outcome = work();
            // The watcher has ended if nobody listens.
            let _ = report.send(Done { model: of, version: name, id, outcome });
        };
        let thread = std::thread::Builder::new().name("scoregate-model".into()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(task) {
            let detail = format!("cannot start a thread: {error}");
            let reasons =
                Reasons { code: "no_thread".into(), reason: "cannot start a thread".into(), detail };
            seen.stage = Stage::refused(reasons);
        } else if matches!(seen.stage, Stage::Trying) {
            self.trying += 1;
        } else {
            self.loading += 1;
        }
        true
    }

    /// Puts a snapshot of how things are in the place of the one before.
    fn show(&self) {
        let models = self.models.iter().map(|(name, watched)| (name.clone(), watched.show()));
        self.registry.put(Snapshot { models: models.collect() });
    }
}

/// What `work` comes to; a panic in it is a refusal like any other.
fn caught<T>(work: impl FnOnce() -> Result<T, Reasons>) -> Result<T, Reasons> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let detail = "the thread panicked; this is a mistake in the gateway";
        Err(Reasons { code: "internal".into(), reason: "the gateway failed".into(), detail: detail.into() })
    })
}

impl Tools {
    /// Has a package tried in a process of its own, and writes down if it passes.
    fn accept(&self, model: &str, directory: &Path) -> Result<Accepted, Reasons> {
        let threads = self.settings.serving(model).intra_op_threads;
        let scratch = self.scratch()?;
        let job = AcceptJob {
            directory: directory.into(),
            library: self.runtime.library().into(),
            intra_op_threads: threads,
            scratch: scratch.path().into(),
        };
        match self.sandbox.run(&Job::Accept(job))? {
            Verdict::Accepted(accepted) => {
                self.records.keep(&accepted, threads);
                Ok(accepted)
            }
            Verdict::Refused(reasons) => Err(reasons),
        }
    }

    fn load(&self, model: &str, directory: &Path, accepted: &Accepted) -> Result<Version, Reasons> {
        let workers = self.settings.scoring.workers;
        let scratch = self.scratch()?;
        let loading = Loading {
            runtime: &self.runtime,
            // The threads of connections and the blocking ones may all score at once.
            sessions: 2 * workers,
            workers,
            scratch: scratch.path(),
        };
        Version::load(directory, accepted, &self.settings.serving(model), &loading).map_err(|error| {
            let (code, reason) = (error.code().into(), error.reason());
            Reasons { code, reason, detail: format!("{:#}", anyhow::Error::from(error)) }
        })
    }

    /// A directory for ONNX Runtime's notes, removed when it is dropped.
    fn scratch(&self) -> Result<tempfile::TempDir, Reasons> {
        let builder = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix(".scoregate-");
            builder
        };
        builder().tempdir_in(&self.settings.state.dir).or_else(|_| builder().tempdir()).map_err(|error| {
            let reason = "there is no directory to write to".to_string();
            Reasons { code: "no_scratch".into(), detail: format!("{reason}: {error}"), reason }
        })
    }
}

impl Seen {
    fn look(id: u64, directory: &Path, tools: &Tools, intra_op_threads: usize) -> Self {
        let files = Stamp::of_all(directory);
        let mut seen = Self { id, files, manifest: None, manifest_digest: String::new(), stage: Stage::New };
        let refuse = |error: package::Error| {
            let (code, reason) = (error.code().into(), error.reason());
            let reasons = Reasons { code, reason, detail: format!("{:#}", anyhow::Error::from(error)) };
            Stage::refused(reasons)
        };
        match read_manifest(&directory.join(MANIFEST)) {
            Ok((manifest, digest)) => {
                // A name that is no plain one is not looked for.
                let absent = |name: &&String| {
                    !seen.files.contains_key(*name) && package::check_name("file", name).is_ok()
                };
                let absent = manifest.files.keys().find(absent);
                seen.stage = match absent {
                    Some(name) => refuse(package::Error::Io {
                        action: "read",
                        path: directory.join(name),
                        source: std::io::ErrorKind::NotFound.into(),
                    }),
                    None => tools
                        .records
                        .find(&digest, intra_op_threads)
                        .map_or(Stage::New, |accepted| Stage::Accepted(Arc::new(accepted))),
                };
                seen.manifest = Some(Arc::new(manifest));
                seen.manifest_digest = digest;
            }
            Err(error) => seen.stage = refuse(error),
        }
        seen
    }

    /// Whether its files are as they were. Of a version that was accepted only the manifest is looked at: the digests in it
    /// hold the rest, and are checked when it is loaded.
    fn is_unchanged(&self, directory: &Path) -> bool {
        match &self.stage {
            Stage::Accepted(_) | Stage::Loading(_) => {
                self.files.get(MANIFEST).copied() == Stamp::of(&directory.join(MANIFEST))
            }
            _ => self.files == Stamp::of_all(directory),
        }
    }

    fn reasons(&self) -> Option<&Reasons> {
        match &self.stage {
            Stage::Refused { reasons, .. } => Some(reasons),
            _ => None,
        }
    }
}

fn read_manifest(path: &Path) -> Result<(Manifest, String), package::Error> {
    use std::io::Read;
    let io = |source| package::Error::Io { action: "read", path: PathBuf::from(path), source };
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text).map_err(io)?;
    let manifest = serde_json::from_slice(&text)
        .map_err(|source| package::Error::Manifest { path: path.into(), source })?;
    Ok((manifest, digest_of(&text)))
}

impl Watched {
    /// Chooses the version that is to answer, if what the choice hangs on has changed.
    fn choose(&mut self, repository: &Repository, model: &str, versions: &[String]) {
        let digests = self.versions.iter().map(|(name, seen)| (name.clone(), seen.manifest_digest.clone()));
        let basis = Basis {
            rollout: Stamp::of(&repository.root().join(model).join(ROLLOUT)),
            versions: digests.collect(),
        };
        // What could not be read may be readable by now.
        let unread = self.unclear.as_ref().is_some_and(|reasons| reasons.code == "package_unreadable");
        if basis == self.basis && !unread {
            return;
        }
        self.basis = basis;
        match rollout::live(repository, model, versions) {
            Ok(version) => (self.wanted, self.unclear) = (Some(version), None),
            Err(error) => {
                let (code, reason) = (error.code().into(), error.reason());
                let detail = format!("{:#}", anyhow::Error::from(error));
                (self.wanted, self.unclear) = (None, Some(Reasons { code, reason, detail }));
            }
        }
    }

    fn wanted(&self) -> Option<&Seen> {
        self.versions.get(self.wanted.as_ref()?)
    }

    /// Whether `seen` is the version that answers, as it answers.
    fn is_live(&self, seen: &Seen) -> bool {
        self.live.as_ref().is_some_and(|(_, digest)| *digest == seen.manifest_digest)
    }

    /// Why the version that is to answer does not.
    fn obstacle(&self) -> Option<&Reasons> {
        self.unclear.as_ref().or_else(|| self.wanted()?.reasons())
    }

    /// Whether all is done that can be done for an answer.
    fn is_settled(&self) -> bool {
        self.obstacle().is_some() || self.wanted().is_some_and(|wanted| self.is_live(wanted))
    }

    /// Logs once why versions are refused, and why the one that is to answer does not. A package whose files are not whole
    /// may be in the middle of being copied: it is given `grace`.
    fn complain(&mut self, model: &str, grace: Duration) {
        let mut copying = false;
        for (name, seen) in &mut self.versions {
            let Stage::Refused { reasons, since, logged } = &mut seen.stage else { continue };
            let wanted = self.wanted.as_ref() == Some(name);
            if is_of_files(&reasons.code) && since.elapsed() < grace {
                copying |= wanted || self.unclear.is_some();
            } else if !*logged && !wanted {
                let Reasons { code, detail, .. } = reasons;
                tracing::warn!(
                    model.name = model,
                    model.version = name,
                    code,
                    error = detail,
                    "version refused"
                );
                *logged = true;
            }
        }
        let Some(Reasons { code, detail, .. }) = self.obstacle() else {
            self.complaint = None;
            return;
        };
        if copying || self.complaint.as_ref() == Some(detail) {
            return;
        }
        let version = self.wanted.as_deref().unwrap_or_default();
        match &self.live {
            None => tracing::error!(
                model.name = model,
                model.version = version,
                code,
                error = detail,
                "model not served"
            ),
            Some((live, _)) => tracing::error!(
                model.name = model,
                model.version = version,
                serving = live.manifest.version,
                code,
                error = detail,
                "what is to answer cannot be served; the version before serves on"
            ),
        }
        self.complaint = Some(detail.clone());
        let wanted = self.wanted.as_ref().and_then(|wanted| self.versions.get_mut(wanted));
        if let Some(Stage::Refused { logged, .. }) = wanted.map(|seen| &mut seen.stage) {
            *logged = true;
        }
    }

    fn show(&self) -> Model {
        let live = self.live.as_ref().map(|(version, _)| Arc::clone(version));
        let mut versions: BTreeMap<String, Published> =
            self.versions.iter().map(|(name, seen)| (name.clone(), seen.show())).collect();
        if let Some(version) = &live {
            let published = Published {
                manifest: Some(Arc::clone(&version.manifest)),
                golden: Some(version.golden),
                state: State::Live(Arc::clone(version)),
            };
            versions.insert(version.manifest.version.clone(), published);
        }
        Model { live, versions }
    }
}

/// Whether a package is refused for files that are missing or not what the manifest says.
fn is_of_files(code: &str) -> bool {
    matches!(code, "package_incomplete" | "package_altered" | "package_unreadable" | "invalid_manifest")
}

impl Seen {
    fn show(&self) -> Published {
        let (golden, state) = match &self.stage {
            Stage::New | Stage::Trying => (None, State::Checking),
            Stage::Accepted(accepted) | Stage::Loading(accepted) => (Some(accepted.golden), State::Accepted),
            Stage::Refused { reasons, .. } => {
                let (code, reason) = (reasons.code.clone(), reasons.reason.clone());
                (None, State::Refused(Refused { code, reason }))
            }
        };
        Published { manifest: self.manifest.clone(), golden, state }
    }
}
