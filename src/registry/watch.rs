//! Follows the repository: unknown packages are tried in the [sandbox](crate::sandbox), live ones loaded, and the
//! [`Registry`] is given a new snapshot whenever something has changed.
//!
//! One thread decides. It lists the repository every half second, which costs a look at the names and times of files and
//! reads none that it knows. Trying and loading are done on threads of their own, so that a package which takes its
//! time holds up no other. Whatever goes wrong with a version, the one before it serves on.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use scoregate_model::acceptance::accept::Accepted;
use scoregate_model::package::{self, MANIFEST, MODEL, ROLLOUT, Repository};
use scoregate_model::runtime::Runtime;
use scoregate_schemas::FeatureSchema;

use super::explainer::Unprepared;
use super::tools::{Tools, reasons_of};
use super::version::{STACK_BYTES, Version};
use super::{Error, Model, Published, Refused, Registry, Snapshot, Split, State, Stated};
use crate::config::Settings;
use crate::files::Stamp;
use crate::rollout::{self, Candidate};
use crate::sandbox::Reasons;

/// How long a start waits for models that are still being tried, once one of them answers.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How long a version rests that was not tried or loaded for want of something that the machine could not give.
const REST: Duration = Duration::from_secs(5);
/// The longest time of publication and digest that are remembered of a version which is not served.
const MAX_SHOWN_BYTES: usize = 128;

/// Keeps a [`Registry`] in step with a repository.
#[derive(Debug)]
pub struct Watcher {
    tools: Arc<Tools>,
    registry: Arc<Registry>,
    models: BTreeMap<String, Watched>,
    /// Why the repository could not be listed the last time.
    unlisted: Option<String>,
    report: Sender<Report>,
    reports: Receiver<Report>,
    /// How many threads wait for a package that is tried.
    trying: usize,
    /// How many threads load a version.
    loading: usize,
    /// Versions whose scores are to be explained when asked for, in the order in which they began to answer: one after another is
    /// prepared for that, so that preparing takes one core from scoring at most.
    unprepared: VecDeque<(Weak<Version>, Unprepared)>,
    /// Whether a thread does that.
    preparing: bool,
    /// Counts what was seen, so that what is reported of something that has changed since is told apart.
    seen: u64,
    /// Whether anything has changed since requests were shown how things are.
    changed: bool,
    /// Versions that answer no more requests, but for those that they had begun: freed here, not by a request.
    retired: Vec<Arc<Version>>,
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
    /// The version that answers.
    live: Option<Live>,
    /// What was last logged about why the wanted version does not answer, and of which version.
    complaint: Option<(Option<String>, String)>,
}

#[derive(Debug)]
struct Live {
    version: Arc<Version>,
    manifest_digest: String,
    stated: Arc<Stated>,
}

#[derive(Debug, Default, PartialEq)]
struct Basis {
    rollout: Option<Stamp>,
    /// Every version and which sight of it this is.
    versions: Vec<(String, u64)>,
}

/// A version, as it was seen.
#[derive(Debug)]
struct Seen {
    /// Which sight of it this is.
    id: u64,
    /// Its files, taken before any of them was read.
    files: BTreeMap<String, Stamp>,
    manifest_digest: String,
    /// The digest of the manifest when a version of this name was accepted: it may have no other from then on.
    accepted_digest: Option<String>,
    /// Of the manifest, where it can be read.
    created_at: Option<String>,
    /// Of the graph, as the manifest says.
    digest: Option<String>,
    /// All that the manifest says, unless the version is refused: who made that one up may have made it large.
    stated: Option<Arc<Stated>>,
    stage: Stage,
    /// What was logged about why it is refused.
    said: Option<String>,
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
    /// It may not be served, unless its files change; or it rests, where that is [the machine's](is_of_machine) fault.
    Refused { reasons: Reasons, since: Instant },
}

/// What a thread reports.
enum Report {
    /// What has come of a version.
    Done(Done),
    /// What explains a version is prepared.
    Prepared,
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
    Loaded(Box<Result<(Version, Option<Unprepared>), Reasons>>, Duration),
}

/// The stamp of what is at `path` itself, be it a link.
fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::symlink_metadata(path).ok().map(|found| Stamp::of(&found))
}

/// Those of every file of a directory.
fn stamps(directory: &Path) -> BTreeMap<String, Stamp> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_string_lossy().into_owned(), stamp(&entry.path())?)))
        .collect()
}

impl Watcher {
    /// Watches the repository that `settings` name. Nothing is done before [`Watcher::settle`].
    pub fn new(settings: Settings, runtime: Runtime) -> Self {
        let (report, reports) = channel();
        let tools = Tools::new(settings, runtime);
        Self {
            tools: Arc::new(tools),
            registry: Arc::default(),
            models: BTreeMap::new(),
            unlisted: None,
            report,
            reports,
            trying: 0,
            loading: 0,
            unprepared: VecDeque::new(),
            preparing: false,
            seen: 0,
            changed: true,
            retired: Vec::new(),
        }
    }

    /// Tries and loads until every model's live version answers or is refused; one that takes its time is not waited for
    /// long if others answer. Versions that are not live are tried after that: none of them may hold up a start.
    ///
    /// # Errors
    /// [`Error`] if no model can be served.
    pub fn settle(&mut self) -> Result<Arc<Registry>, Error> {
        self.tools.sweep();
        self.tools.repository.models()?;
        let started = Instant::now();
        loop {
            self.look();
            self.go_on();
            let served = self.models.values().any(|watched| watched.live.is_some());
            let patient = !served || started.elapsed() < START_PATIENCE;
            if !patient || self.models.values().all(Watched::is_settled) {
                break;
            }
            self.wait();
        }
        if self.models.is_empty() {
            let directory = self.tools.repository.root().display().to_string();
            return Err(Error::NoModel { directory });
        }
        for model in self.tools.settings.model.keys().filter(|model| !self.models.contains_key(*model)) {
            tracing::warn!(
                model.name = model,
                "the settings have a table for a model that is not in the repository"
            );
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
        while let Some(report) = next {
            match report {
                Report::Prepared => self.preparing = false,
                Report::Done(done) => {
                    match &done.outcome {
                        Outcome::Tried(_) => self.trying -= 1,
                        Outcome::Loaded(..) => self.loading -= 1,
                    }
                    self.take(done);
                }
            }
            next = self.reports.try_recv().ok();
        }
    }

    /// Lists the repository and sees what has changed.
    fn look(&mut self) {
        let listed = match self.tools.repository.models() {
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
        let Self { tools, models, seen, changed, .. } = self;
        let mut there = BTreeMap::new();
        for model in listed {
            match tools.repository.versions(&model) {
                Ok(versions) if versions.is_empty() => {}
                Ok(versions) => drop(there.insert(model, Some(versions))),
                Err(error) => {
                    // Its versions stay as they were seen, and the other models are not concerned.
                    *changed |= models.entry(model.clone()).or_default().lose(reasons_of(error));
                    there.insert(model, None);
                }
            }
        }
        // Of a model that has gone its version answers on.
        let before = models.len();
        models.retain(|model, watched| there.contains_key(model) || watched.live.is_some());
        *changed |= models.len() != before;
        for (model, watched) in models.iter_mut().filter(|(model, _)| !there.contains_key(*model)) {
            let detail = format!("model {model} is in the repository no more");
            *changed |= watched.lose(Reasons { code: "removed".into(), reason: detail.clone(), detail });
            watched.versions.clear();
            watched.wanted = None;
        }
        let listed = there.into_iter().filter_map(|(model, versions)| Some((model, versions?)));
        for (model, versions) in listed {
            let watched = models.entry(model.clone()).or_default();
            let before = watched.versions.len();
            watched.versions.retain(|version, _| versions.contains(version));
            *changed |= watched.versions.len() != before;
            for version in versions {
                let directory = tools.repository.directory(&model, &version);
                let known = watched.versions.get(&version);
                if known.is_some_and(|known| known.is_unchanged(&directory)) {
                    continue;
                }
                *seen += 1;
                let fresh = Seen::look(*seen, &directory, tools, &model, known);
                watched.versions.insert(version, fresh);
                *changed = true;
            }
            *changed |= watched.choose(&tools.repository, &model);
        }
    }

    /// Takes up what a thread has come to, unless its version has changed in the meantime.
    fn take(&mut self, done: Done) {
        let Done { model, version: name, id, outcome } = done;
        let Some(watched) = self.models.get_mut(&model) else { return };
        let Some(seen) = watched.versions.get_mut(&name).filter(|seen| seen.id == id) else { return };
        self.changed = true;
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
                seen.accept(accepted);
            }
            Outcome::Tried(Err(reasons)) => seen.refuse(reasons),
            Outcome::Loaded(loaded, duration) => match *loaded {
                Ok((version, unprepared)) => {
                    tracing::info!(
                        model.name = model,
                        model.version = name,
                        model.digest = version.digest,
                        golden.rows = version.golden.rows,
                        golden.worst = version.golden.worst,
                        run_us = version.cost.run.as_secs_f64() * 1e6,
                        row_ns = version.cost.row.as_secs_f64() * 1e9,
                        sessions = version.sessions,
                        memory_bytes = version.memory_bytes(),
                        duration_ms = duration.as_secs_f64() * 1e3,
                        "model loaded"
                    );
                    if let Stage::Loading(accepted) = &seen.stage {
                        seen.stage = Stage::Accepted(Arc::clone(accepted));
                    }
                    let fresh = Arc::new(version);
                    let retired = if watched.wanted.as_ref() == Some(&name) {
                        let live = Live {
                            stated: Arc::new(Stated::new(Arc::clone(&fresh.manifest), &fresh.schema)),
                            manifest_digest: seen.manifest_digest.clone(),
                            version: fresh,
                        };
                        self.tools.record(&model, &live.version);
                        let unprepared = unprepared.map(|found| (Arc::downgrade(&live.version), found));
                        self.unprepared.extend(unprepared);
                        watched.live.replace(live).map(|before| before.version)
                    } else {
                        // Another one was promoted in the meantime.
                        Some(fresh)
                    };
                    self.retired.extend(retired);
                }
                Err(reasons) => seen.refuse(reasons),
            },
        }
    }

    /// Starts what can be started, shows requests how things are now, and says what has to be said about it.
    fn go_on(&mut self) {
        while self.start_next() {}
        self.start_preparing();
        if std::mem::take(&mut self.changed) {
            self.show();
        }
        for (model, watched) in &mut self.models {
            watched.complain(model, self.tools.settings.models.poll_interval);
        }
    }

    /// Starts what is most urgent: loading, then trying what is to answer, then trying the rest. As many at once as there are
    /// workers, and one more for what is to answer, unless another version of that model is being tried: a package that
    /// takes its time must not hold up the other models.
    fn start_next(&mut self) -> bool {
        let workers = self.tools.settings.scoring.workers;
        let (trying, may_load) = (self.trying, self.loading < workers);
        let waiting = self.models.iter().flat_map(|(name, model)| {
            let idle = !model.versions.values().any(|seen| matches!(seen.stage, Stage::Trying));
            let urgency = move |version: &String, seen: &Seen| {
                let wanted = model.wanted.as_ref() == Some(version);
                match &seen.stage {
                    Stage::Accepted(_) if wanted && may_load && !model.is_live(seen) => Some(0),
                    Stage::New if wanted && trying < workers + usize::from(idle) => Some(1),
                    Stage::New if trying < workers => Some(2),
                    _ => None,
                }
            };
            let of_model = model.versions.iter();
            of_model.filter_map(move |(version, seen)| {
                Some((urgency(version, seen)?, name.as_str(), version.as_str()))
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
            let _ = report.send(Report::Done(Done { model: of, version: name, id, outcome }));
        };
        let thread = std::thread::Builder::new().name("scoregate-model".into()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(task) {
            let detail = format!("cannot start a thread: {error}");
            let reasons =
                Reasons { code: "no_thread".into(), reason: "cannot start a thread".into(), detail };
            seen.refuse(reasons);
            self.changed = true;
        } else if matches!(seen.stage, Stage::Trying) {
            self.trying += 1;
        } else {
            self.loading += 1;
        }
        true
    }

    /// Starts to prepare what explains the next version that needs it, once those that are to answer do.
    fn start_preparing(&mut self) {
        if self.preparing || self.loading > 0 {
            return;
        }
        // One that answers no more needs it no more.
        let mut waiting = std::iter::from_fn(|| self.unprepared.pop_front());
        let next = waiting.find_map(|(version, unprepared)| Some((version.upgrade()?, unprepared)));
        let Some((version, unprepared)) = next else { return };
        let (tools, report) = (Arc::clone(&self.tools), self.report.clone());
        // Handed over once there is a thread, so that it is still here if there is none.
        let (work, taken) = channel::<(Arc<Version>, Unprepared)>();
        let task = move || {
            if let Ok((version, unprepared)) = taken.recv() {
                tools.prepare(&version, unprepared);
            }
            // The watcher has ended if nobody listens.
            let _ = report.send(Report::Prepared);
        };
        let thread = std::thread::Builder::new().name("scoregate-explain".into()).stack_size(STACK_BYTES);
        match thread.spawn(task) {
            Ok(_) => {
                // The thread takes what it is given before it ends.
                let _ = work.send((version, unprepared));
                self.preparing = true;
            }
            Err(error) => {
                tracing::warn!(
                    model.name = version.manifest.name,
                    model.version = version.manifest.version,
                    error = %error,
                    "cannot start a thread; what explains this version is prepared later"
                );
                self.unprepared.push_front((Arc::downgrade(&version), unprepared));
            }
        }
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

impl Seen {
    /// Looks at a version that is new, has changed, or has rested, after it was `known`.
    fn look(id: u64, directory: &Path, tools: &Tools, model: &str, known: Option<&Self>) -> Self {
        let rested =
            known.filter(|known| known.reasons().is_some_and(|reasons| is_of_machine(&reasons.code)));
        let mut seen = Self {
            id,
            files: stamps(directory),
            manifest_digest: String::new(),
            accepted_digest: known.and_then(|known| known.accepted_digest.clone()),
            created_at: None,
            digest: None,
            stated: None,
            stage: Stage::New,
            said: rested.and_then(|known| known.said.clone()),
        };
        if let Err(reasons) = seen.read(directory, tools, model) {
            seen.refuse(reasons);
        }
        seen
    }

    fn read(&mut self, directory: &Path, tools: &Tools, model: &str) -> Result<(), Reasons> {
        let (manifest, manifest_digest) = package::read_manifest(directory).map_err(reasons_of)?;
        let short = |text: &&String| text.len() <= MAX_SHOWN_BYTES;
        self.created_at = Some(&manifest.created_at).filter(short).cloned();
        self.digest = manifest.files.get(MODEL).filter(short).cloned();
        self.manifest_digest = manifest_digest;
        package::check_place(&manifest, directory).map_err(reasons_of)?;
        if self.accepted_digest.as_ref().is_some_and(|accepted| *accepted != self.manifest_digest) {
            let reason = "the version is another than the one that was accepted under this name, and versions never \
                          change; publish it under a new name";
            let code = "version_changed".into();
            return Err(Reasons { code, reason: reason.into(), detail: reason.into() });
        }
        // A name that is no plain one is not looked for.
        let absent =
            |name: &&String| !self.files.contains_key(*name) && package::check_name("file", name).is_ok();
        if let Some(name) = manifest.files.keys().find(absent) {
            let (path, source) = (directory.join(name), std::io::ErrorKind::NotFound.into());
            return Err(reasons_of(package::Error::Io { action: "read", path, source }));
        }
        let schema = FeatureSchema::from_document(manifest.schema.clone());
        let schema = schema.map_err(|error| reasons_of(error.into()))?;
        self.stated = Some(Arc::new(Stated::new(Arc::new(manifest), &schema)));
        let threads = tools.settings.serving(model).intra_op_threads;
        if let Some(accepted) = tools.records.find(&self.manifest_digest, threads) {
            self.accept(accepted);
        }
        Ok(())
    }

    fn accept(&mut self, accepted: Accepted) {
        self.accepted_digest = Some(accepted.manifest_digest.clone());
        self.stage = Stage::Accepted(Arc::new(accepted));
    }

    fn refuse(&mut self, reasons: Reasons) {
        if !is_of_machine(&reasons.code) {
            self.stated = None;
        }
        self.stage = Stage::Refused { reasons, since: Instant::now() };
    }

    /// Whether there is nothing new to see: its files are as they were, and it has not rested long enough to be tried again.
    /// Of a version that was accepted only the manifest is looked at: the digests in it hold the rest, and are checked when
    /// it is loaded.
    fn is_unchanged(&self, directory: &Path) -> bool {
        match &self.stage {
            Stage::Accepted(_) | Stage::Loading(_) => {
                self.files.get(MANIFEST).copied() == stamp(&directory.join(MANIFEST))
            }
            Stage::Refused { reasons, since } if is_of_machine(&reasons.code) && since.elapsed() >= REST => {
                false
            }
            _ => self.files == stamps(directory),
        }
    }

    fn reasons(&self) -> Option<&Reasons> {
        match &self.stage {
            Stage::Refused { reasons, .. } => Some(reasons),
            _ => None,
        }
    }
}

impl Watched {
    /// Notes why nothing can be said of its versions any more. True if that is news.
    fn lose(&mut self, reasons: Reasons) -> bool {
        self.basis = Basis::default();
        let news = self.unclear.as_ref() != Some(&reasons);
        self.unclear = Some(reasons);
        news
    }

    /// Chooses the version that is to answer, if what the choice hangs on has changed. True if it comes out differently.
    fn choose(&mut self, repository: &Repository, model: &str) -> bool {
        let basis = Basis {
            rollout: stamp(&repository.root().join(model).join(ROLLOUT)),
            versions: self.versions.iter().map(|(name, seen)| (name.clone(), seen.id)).collect(),
        };
        // What could not be read may be readable by now.
        let unread = self.unclear.as_ref().is_some_and(|reasons| reasons.code == "package_unreadable");
        if basis == self.basis && !unread {
            return false;
        }
        self.basis = basis;
        let candidates: Vec<_> = self
            .versions
            .iter()
            .map(|(version, seen)| Candidate { version, created_at: seen.created_at.as_deref() })
            .collect();
        let serving = self.live.as_ref().map(|live| live.version.manifest.version.as_str());
        let (wanted, unclear) = match rollout::choose(repository, model, &candidates, serving) {
            Ok(version) => (Some(version), None),
            Err(error) => {
                // Why a manifest does not say when it was published says more than that it does not.
                let unread = match &error {
                    rollout::Error::Unknown { version, .. } => self.versions.get(version),
                    _ => None,
                };
                let reasons = unread.and_then(Seen::reasons).cloned().unwrap_or_else(|| Reasons {
                    code: error.code().into(),
                    reason: error.reason(),
                    detail: format!("{:#}", anyhow::Error::from(error)),
                });
                (None, Some(reasons))
            }
        };
        let news = self.wanted != wanted || self.unclear != unclear;
        (self.wanted, self.unclear) = (wanted, unclear);
        news
    }

    fn wanted(&self) -> Option<&Seen> {
        self.versions.get(self.wanted.as_ref()?)
    }

    /// Whether `seen` is the version that answers, as it answers.
    fn is_live(&self, seen: &Seen) -> bool {
        self.live.as_ref().is_some_and(|live| live.manifest_digest == seen.manifest_digest)
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
            let Stage::Refused { reasons, since } = &seen.stage else { continue };
            let wanted = self.wanted.as_ref() == Some(name);
            if is_of_files(&reasons.code) && since.elapsed() < grace {
                copying |= wanted || self.unclear.is_some();
            } else if !wanted && seen.said.as_ref() != Some(&reasons.detail) {
                let Reasons { code, detail, .. } = reasons;
                tracing::warn!(
                    model.name = model,
                    model.version = name,
                    code,
                    error = detail,
                    "version refused"
                );
                seen.said = Some(detail.clone());
            }
        }
        let Some(Reasons { code, detail, .. }) = self.obstacle() else {
            // What is tried again may fail again, which is no news.
            if self.wanted().is_some_and(|wanted| self.is_live(wanted)) {
                self.complaint = None;
            }
            return;
        };
        let complaint = Some((self.wanted.clone(), detail.clone()));
        if copying || self.complaint == complaint {
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
            Some(live) => tracing::error!(
                model.name = model,
                model.version = version,
                serving = live.version.manifest.version,
                code,
                error = detail,
                "what is to answer cannot be served; the version before serves on"
            ),
        }
        let said = Some(detail.clone());
        self.complaint = complaint;
        let wanted = self.wanted.as_ref().and_then(|wanted| self.versions.get_mut(wanted));
        if let Some(wanted) = wanted.filter(|wanted| matches!(wanted.stage, Stage::Refused { .. })) {
            wanted.said = said;
        }
    }

    fn show(&self) -> Model {
        let mut versions: BTreeMap<String, Published> =
            self.versions.iter().map(|(name, seen)| (name.clone(), seen.show())).collect();
        if let Some(Live { version, stated, .. }) = &self.live {
            let published = Published {
                stated: Some(Arc::clone(stated)),
                created_at: Some(version.manifest.created_at.clone()),
                digest: Some(version.digest.clone()),
                golden: Some(version.golden),
                state: State::Live(Arc::clone(version)),
            };
            versions.insert(version.manifest.version.clone(), published);
        }
        let split = self.live.as_ref().map(|live| Arc::new(Split::of(Arc::clone(&live.version))));
        Model { split, versions, refusal: self.obstacle().map(Refused::of) }
    }
}

/// Whether a package is refused for files that are missing or not what the manifest says.
fn is_of_files(code: &str) -> bool {
    matches!(code, "package_incomplete" | "package_altered" | "package_unreadable" | "invalid_manifest")
}

/// Whether the machine could not do its part, which says nothing of the model and may be over soon.
fn is_of_machine(code: &str) -> bool {
    matches!(code, "no_process" | "no_thread" | "no_scratch" | "package_unreadable")
}

impl Refused {
    fn of(reasons: &Reasons) -> Self {
        Self { code: reasons.code.clone(), reason: reasons.reason.clone() }
    }
}

impl Seen {
    fn show(&self) -> Published {
        let (golden, state) = match &self.stage {
            Stage::New | Stage::Trying => (None, State::Checking),
            Stage::Accepted(accepted) | Stage::Loading(accepted) => (Some(accepted.golden), State::Accepted),
            Stage::Refused { reasons, .. } if is_of_machine(&reasons.code) => (None, State::Checking),
            Stage::Refused { reasons, .. } => (None, State::Refused(Refused::of(reasons))),
        };
        let (created_at, digest) = (self.created_at.clone(), self.digest.clone());
        Published { stated: self.stated.clone(), created_at, digest, golden, state }
    }
}
