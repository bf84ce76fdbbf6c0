//! Follows the repository: unknown packages are tried in the [sandbox](crate::sandbox), those that a rollout names loaded, and the
//! [`Registry`] is given a new snapshot whenever something has changed.
//!
//! One thread decides. It lists the repository every half second, which costs a look at the names and times of files and
//! reads none that it knows. Trying and loading are done on threads of their own, so that a package which takes its
//! time holds up no other. Whatever goes wrong with a version, the one before it serves on; a version that is loaded is not loaded anew
//! when it becomes something else.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use scoregate_model::acceptance::accept::Accepted;
use scoregate_model::runtime::Runtime;

use super::crew::Crew;
use super::explainer::Unprepared;
use super::seen::{Seen, Stage};
use super::tools::{Tools, reasons_of};
use super::version::Version;
use super::watched::Watched;
use super::{Error, Registry, Role, Snapshot};
use crate::config::Settings;
use crate::sandbox::Reasons;

/// How long a start waits for models that are still being tried, once one of them answers.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// How long the longest wait is while something is to be done that no thread reports.
const DUE: Duration = Duration::from_secs(1);

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
    /// The threads that try, load and prepare.
    crew: Crew,
    /// How many threads wait for a package that is tried.
    trying: usize,
    /// How many threads load a version.
    loading: usize,
    /// Versions that are loaded and whose scores are to be explained when asked for, in the order in which they were: one after another is
    /// prepared for that, once none is being loaded, so that it takes one core from scoring at most.
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

/// Has a [`Watcher`] look at the repository at once.
#[derive(Debug, Clone)]
pub struct Waker(Sender<Report>);

impl Waker {
    /// Wakes it, if it has not ended.
    pub fn wake(&self) {
        let _ = self.0.send(Report::Changed);
    }
}

/// What a thread reports.
enum Report {
    /// Something in the repository has changed.
    Changed,
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

impl Watcher {
    /// Watches the repository that `settings` name. Nothing is done before [`Watcher::settle`].
    pub fn new(settings: Settings, runtime: Runtime) -> Self {
        let (report, reports) = channel();
        let tools = Tools::new(settings, runtime);
        Self {
            tools: Arc::new(tools),
            registry: Arc::new(Registry::new(Waker(report.clone()))),
            models: BTreeMap::new(),
            unlisted: None,
            report,
            reports,
            crew: Crew::default(),
            trying: 0,
            loading: 0,
            unprepared: VecDeque::new(),
            preparing: false,
            seen: 0,
            changed: true,
            retired: Vec::new(),
        }
    }

    /// Tries and loads until every model's live version and its canaries answer or are refused; one that takes its time is not waited
    /// for long if others answer. Other versions are tried after that: none of them may hold up a start.
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
            let served = self.models.values().any(|watched| watched.is_served());
            let patient = !served || started.elapsed() < START_PATIENCE;
            if !patient || self.models.values().all(Watched::is_settled) {
                break;
            }
            self.wait();
        }
        if self.models.is_empty() {
            let directory = self.tools.settings.models.name();
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
        if self.models.values().any(|watched| watched.is_served()) {
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
        let interval = self.tools.settings.models.poll_interval;
        // What rests, is waited for, or is to be freed does not wait for the next look at a repository that is looked at seldom.
        let is_due = !self.retired.is_empty() || !self.models.values().all(Watched::is_at_rest);
        let interval = if is_due { interval.min(DUE) } else { interval };
        let mut next = self.reports.recv_timeout(interval).ok();
        while let Some(report) = next {
            match report {
                Report::Changed => {}
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
        models.retain(|model, watched| there.contains_key(model) || watched.is_served());
        *changed |= models.len() != before;
        for (model, watched) in models.iter_mut().filter(|(model, _)| !there.contains_key(*model)) {
            let detail = format!("model {model} is in the repository no more");
            *changed |= watched.lose(Reasons { code: "removed".into(), reason: detail.clone(), detail });
            watched.versions.clear();
        }
        let listed: Vec<_> =
            there.into_iter().filter_map(|(model, versions)| Some((model, versions?))).collect();
        let mut chosen = Vec::new();
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
            if watched.choose(&tools.repository, &model) {
                *changed = true;
                chosen.push(model);
            }
        }
        for model in chosen {
            self.arrange(&model);
        }
    }

    /// Puts the versions of a model where its rollout has them.
    fn arrange(&mut self, model: &str) {
        let Some(watched) = self.models.get_mut(model) else { return };
        let arranged = watched.arrange();
        self.changed |= arranged.changed;
        self.retired.extend(arranged.retired);
        if let Some(live) = arranged.live {
            self.tools.record(model, &live);
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
                    self.unprepared.extend(unprepared.map(|found| (Arc::downgrade(&fresh), found)));
                    self.retired.extend(watched.take_up(fresh));
                    self.arrange(&model);
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

    /// Starts what is most urgent: loading, then trying what is to answer everybody, then canaries, shadows and what a rollback returns
    /// to, then trying the rest. As many at once as there are workers, and one more for what is to answer everybody, unless another
    /// version of that model is being tried: a package that takes its time must not hold up the other models.
    fn start_next(&mut self) -> bool {
        let workers = self.tools.settings.scoring.workers;
        let (trying, loading) = (self.trying, self.loading);
        let waiting = self.models.iter().flat_map(|(name, model)| {
            let idle = !model.versions.values().any(|seen| matches!(seen.stage, Stage::Trying));
            let urgency = move |version: &String, seen: &Seen| {
                let role = model.role(version);
                let is_live = role == Some(Role::Live);
                match (&seen.stage, role) {
                    (Stage::Accepted(_), Some(role)) => {
                        let may_load = loading < workers + usize::from(is_live);
                        (may_load && !model.is_loaded(version, seen)).then_some((Some(role), false))
                    }
                    (Stage::New, Some(role)) => {
                        (trying < workers + usize::from(is_live && idle)).then_some((Some(role), true))
                    }
                    (Stage::New, None) => (trying < workers).then_some((None, true)),
                    _ => None,
                }
            };
            let of_model = model.versions.iter();
            of_model.filter_map(move |(version, seen)| {
                let (role, is_new) = urgency(version, seen)?;
                // What has no role comes last.
                Some(((role.is_none(), role, is_new), name.as_str(), version.as_str()))
            })
        });
        let next = waiting.min().map(|(_, model, version)| (model.to_owned(), version.to_owned()));
        let Some((model, version)) = next else { return false };
        let Some(watched) = self.models.get_mut(&model) else { return false };
        // Where a version answers already, the next one answers for it only when it can explain as well: whoever asks for that waits for
        // nothing, but it comes as much later. The first one answers at once.
        let is_ready_whole =
            watched.is_served() && matches!(watched.role(&version), Some(Role::Live | Role::Canary));
        let Some(seen) = watched.versions.get_mut(&version) else { return false };
        let (tools, report, id) = (Arc::clone(&self.tools), self.report.clone(), seen.id);
        let directory = tools.repository.directory(&model, &version);
        let work: Box<dyn FnOnce() -> Outcome + Send> = match &seen.stage {
            Stage::Accepted(accepted) => {
                let (accepted, model) = (Arc::clone(accepted), model.clone());
                seen.stage = Stage::Loading(Arc::clone(&accepted));
                Box::new(move || {
                    let started = Instant::now();
                    let loaded = caught(|| {
                        let (version, mut unprepared) = tools.load(&model, &directory, &accepted)?;
                        if let Some(unprepared) = unprepared.take_if(|_| is_ready_whole) {
                            tools.prepare(&version, unprepared);
                        }
                        Ok((version, unprepared))
                    });
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
        let tell = move |outcome| {
            // The watcher has ended if nobody listens.
            let _ = report.send(Report::Done(Done { model: of, version: name, id, outcome }));
        };
        if let Err(error) = self.crew.run(work, tell) {
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
        };
        let tell = move |()| {
            // The watcher has ended if nobody listens.
            let _ = report.send(Report::Prepared);
        };
        match self.crew.run(task, tell) {
            Ok(()) => {
                // The thread takes what it is given before it has done.
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
