//! What trying and loading a version take: the sandbox, what was accepted before, and the audit log.

use std::path::Path;
use std::time::Duration;

use scoregate_model::acceptance::accept::Accepted;
use scoregate_model::acceptance::child::Death;
use scoregate_model::package::{self, Package, Repository};
use scoregate_model::runtime::Runtime;

use super::explainer::Unprepared;
use super::records::Records;
use super::version::{Loading, STACK_BYTES, Version};
use crate::audit::{self, Actor, Event};
use crate::config::Settings;
use crate::sandbox::{AcceptJob, Job, Reasons, Sandbox, Verdict};

/// What the directories for ONNX Runtime's notes are called, and when one that is left must be of a run that is dead.
const SCRATCH: (&str, Duration) = (".scoregate-", Duration::from_secs(3_600));
/// What the threads that try and load need.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) repository: Repository,
    pub(super) settings: Settings,
    runtime: Runtime,
    sandbox: Sandbox,
    pub(super) records: Records,
    log: audit::Log,
}

impl Tools {
    /// For the repository that `settings` name.
    pub(super) fn new(settings: Settings, runtime: Runtime) -> Self {
        Self {
            repository: Repository::new(&settings.models.dir),
            sandbox: Sandbox::new(&settings.models, settings.scoring.workers),
            records: Records::open(&settings.state.dir, &runtime),
            log: audit::Log::new(&settings.state.dir),
            settings,
            runtime,
        }
    }

    /// Has a package tried in a process of its own, and writes down if it passes.
    pub(super) fn accept(&self, model: &str, directory: &Path) -> Result<Accepted, Reasons> {
        let threads = self.settings.serving(model).intra_op_threads;
        let scratch = self.scratch()?;
        let job = AcceptJob {
            directory: directory.into(),
            library: self.runtime.library().into(),
            intra_op_threads: threads,
            scratch: scratch.path().into(),
        };
        match self.sandbox.run(&Job::Accept(job)) {
            Ok(Verdict::Accepted(accepted)) => {
                self.records.keep(&accepted, threads);
                Ok(accepted)
            }
            Ok(Verdict::Refused(reasons)) => Err(reasons),
            // It has not met the model.
            Err(death @ Death::Start(_)) => Err(Reasons { code: "no_process".into(), ..death.into() }),
            Err(death) => Err(death.into()),
        }
    }

    pub(super) fn load(
        &self,
        model: &str,
        directory: &Path,
        accepted: &Accepted,
    ) -> Result<(Version, Option<Unprepared>), Reasons> {
        let workers = self.settings.scoring.workers;
        let scratch = self.scratch()?;
        let loading = Loading {
            runtime: &self.runtime,
            // The threads of connections and the blocking ones may all score at once.
            sessions: 2 * workers,
            is_compared: self.settings.shadow.sample > 0.0,
            workers,
            memory: self.settings.models.memory as u64,
            scratch: scratch.path(),
        };
        Version::load(directory, accepted, &self.settings.serving(model), &loading).map_err(|error| {
            let (code, reason) = (error.code().into(), error.reason());
            Reasons { code, reason, detail: format!("{:#}", anyhow::Error::from(error)) }
        })
    }

    /// Prepares what explains the scores of `version`.
    pub(super) fn prepare(&self, version: &Version, unprepared: Unprepared) {
        version.prepare(unprepared, &self.runtime);
    }

    /// A directory for ONNX Runtime's notes, removed when it is dropped.
    fn scratch(&self) -> Result<tempfile::TempDir, Reasons> {
        let builder = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix(SCRATCH.0);
            builder
        };
        builder().tempdir_in(&self.settings.state.dir).or_else(|_| builder().tempdir()).map_err(|error| {
            let reason = "there is no directory to write to".to_string();
            Reasons { code: "no_scratch".into(), detail: format!("{reason}: {error}"), reason }
        })
    }

    /// Records that `version` answers from now on: who published or promoted it may have left no record. Answers wait
    /// neither for the disk nor for a lock, and go on without a record.
    pub(super) fn record(&self, model: &str, version: &Version) {
        let name = format!("{model}@{}", version.manifest.version);
        let event = Event::new(Actor::gateway(), "version.live", name.as_str())
            .with("digest", version.digest.as_str());
        let log = self.log.clone();
        let task = move || {
            if let Err(error) = log.record(&event) {
                unrecorded(&name, &error.into());
            }
        };
        if let Err(error) = std::thread::Builder::new().name("scoregate-audit".into()).spawn(task) {
            unrecorded(model, &error.into());
        }
    }

    /// Removes what runs that were killed have left in the state directory.
    pub(super) fn sweep(&self) {
        let (prefix, dead) = SCRATCH;
        let dead = dead.max(2 * self.settings.models.timeout);
        for entry in std::fs::read_dir(&self.settings.state.dir).into_iter().flatten().flatten() {
            let age =
                entry.metadata().and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let is_ours = entry.file_name().to_string_lossy().starts_with(prefix);
            if is_ours
                && is_directory
                && age.is_some_and(|age| age > dead)
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(directory = %entry.path().display(), error = %error, "what an earlier run has left cannot be removed");
            }
        }
    }
}

fn unrecorded(what: &str, error: &anyhow::Error) {
    let error = format!("{error:#}");
    tracing::error!(error, what, "a version is live, and the audit log does not say so");
}

pub(super) fn reasons_of(error: package::Error) -> Reasons {
    let (code, reason) = (error.code().into(), error.reason());
    Reasons { code, reason, detail: format!("{:#}", anyhow::Error::from(error)) }
}

/// Loads one version for a command, as the gateway would, and what explains its scores: one that nobody has served yet is
/// tried first.
///
/// # Errors
/// [`Reasons`] why the gateway would not serve it.
pub fn load_offline(
    mut settings: Settings,
    runtime: Runtime,
    model: &str,
    version: &str,
) -> Result<Version, Reasons> {
    // It is compared with no other beside answers.
    settings.shadow.sample = 0.0;
    let tools = Tools::new(settings, runtime);
    let directory = tools.repository.directory(model, version);
    let digest = Package::read(&directory).map_err(reasons_of)?.manifest_digest;
    let threads = tools.settings.serving(model).intra_op_threads;
    let accepted = match tools.records.find(&digest, threads) {
        Some(accepted) => accepted,
        None => tools.accept(model, &directory)?,
    };
    let no_thread = |detail: String| Reasons { code: "no_thread".into(), reason: detail.clone(), detail };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let load = || {
            let (version, unprepared) = tools.load(model, &directory, &accepted)?;
            if let Some(unprepared) = unprepared {
                tools.prepare(&version, unprepared);
            }
            Ok(version)
        };
        let thread = thread.spawn_scoped(scope, load).map_err(|error| no_thread(error.to_string()))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
