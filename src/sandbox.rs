//! A process of its own in which unknown models are tried, before this one touches them: `scoregate sandbox`, which the
//! gateway and `import` start from their own executable.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use scoregate_model::acceptance::Refusal;
use scoregate_model::acceptance::accept::{Accepted, accept};
use scoregate_model::acceptance::child::{self, Death, Limits};
use scoregate_model::import::{Examined, Fault, Request, examine};
use scoregate_model::runtime::{Runtime, SessionOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{self, ModelSettings};
use crate::registry::STACK_BYTES;

/// By how much the priority is lower there: where everything is busy, a thread has a third of what one that scores has. Not less, as its
/// time is limited by the clock.
const NICENESS: i32 = 5;

/// What is to be done in the sandbox.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Try a published package; the report is a [`Verdict`].
    Accept(AcceptJob),
    /// Look at a model from outside; the report is a [`Finding`].
    Import(Box<ImportJob>),
}

/// A package to be tried.
#[derive(Debug, Serialize, Deserialize)]
pub struct AcceptJob {
    /// The package.
    pub directory: PathBuf,
    /// The library of ONNX Runtime.
    pub library: PathBuf,
    /// Threads within one operator.
    pub intra_op_threads: usize,
    /// An empty directory that may be written to.
    pub scratch: PathBuf,
}

/// A model from outside to be looked at.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImportJob {
    /// The files, and what is said about them.
    pub request: Request,
    /// The library of ONNX Runtime.
    pub library: PathBuf,
}

/// What a model from outside is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It may be published, like this.
    Examined(Box<Examined>),
    /// It may not.
    Refused(Reasons),
    /// Nobody can tell, for a reason that is not the model's: ONNX Runtime is not there, or a file cannot be read.
    Unknown(String),
}

/// Whether a package may be served.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may.
    Accepted(Accepted),
    /// It may not.
    Refused(Reasons),
}

/// Why a package may not be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reasons {
    /// A stable name for what is wrong.
    pub code: String,
    /// A sentence for clients.
    pub reason: String,
    /// All of it, for the log.
    pub detail: String,
}

impl From<Refusal> for Reasons {
    fn from(refusal: Refusal) -> Self {
        let (code, reason) = (refusal.code().into(), refusal.reason());
        Self { code, reason, detail: format!("{:#}", anyhow::Error::from(refusal)) }
    }
}

impl From<Fault> for Finding {
    fn from(fault: Fault) -> Self {
        let (is_known, code, reason) = (fault.is_known(), fault.code().into(), fault.reason());
        let detail = format!("{:#}", anyhow::Error::from(fault));
        if is_known { Self::Refused(Reasons { code, reason, detail }) } else { Self::Unknown(detail) }
    }
}

impl From<Death> for Reasons {
    fn from(death: Death) -> Self {
        let (code, reason) = (death.code().into(), death.reason());
        Self { code, reason, detail: format!("{:#}", anyhow::Error::from(death)) }
    }
}

/// Starts such processes.
#[derive(Debug)]
pub struct Sandbox {
    limits: Limits,
    library_path: Option<OsString>,
}

impl Sandbox {
    /// With the limits that the settings give; `processors` may be busy for the whole time.
    pub fn new(settings: &ModelSettings, processors: usize) -> Self {
        let limits = Limits {
            memory_bytes: settings.memory as u64,
            time: settings.timeout,
            processors: u32::try_from(processors).unwrap_or(u32::MAX),
        };
        Self { limits, library_path: config::library_path() }
    }

    /// Has `job` done and returns its report.
    ///
    /// # Errors
    /// [`Death`] if there is none.
    pub fn run<R: DeserializeOwned>(&self, job: &Job) -> Result<R, Death> {
        let executable = std::env::current_exe().ok().filter(|path| path.is_file());
        // The link leads to this very program even after its file was replaced.
        let mut command = Command::new(executable.unwrap_or_else(|| "/proc/self/exe".into()));
        command.arg0("scoregate").arg("sandbox").env_clear();
        // The dynamic linker's own, for a library of ONNX Runtime that needs others.
        command.envs(self.library_path.as_ref().map(|path| ("LD_LIBRARY_PATH", path)));
        child::run(command, job, &self.limits)
    }
}

/// In the sandbox: does the job that stands on standard input.
///
/// # Errors
/// If there is none, or nobody takes the report.
pub fn work() -> anyhow::Result<()> {
    let job: Job = child::job().context("this command is for the gateway itself")?;
    // What scores goes first. One that cannot be slowed tries the model all the same.
    let _ = rustix::process::nice(NICENESS);
    match job {
        Job::Accept(job) => {
            let judged = on_deep_stack(&job.library, |runtime| judge(&job, runtime));
            let verdict = match judged.and_then(|judged| judged.map_err(Reasons::from)) {
                Ok(accepted) => Verdict::Accepted(accepted),
                Err(reasons) => Verdict::Refused(reasons),
            };
            child::report(&verdict)?;
        }
        Job::Import(job) => {
            let finding = match on_deep_stack(&job.library, |runtime| examine(runtime, &job.request)) {
                Ok(Ok(examined)) => Finding::Examined(Box::new(examined)),
                Ok(Err(fault)) => fault.into(),
                Err(Reasons { detail, .. }) => Finding::Unknown(detail),
            };
            child::report(&finding)?;
        }
    }
    Ok(())
}

/// Loads ONNX Runtime while this is the only thread, and does `work` on a thread whose stack is as large as the gateway's
/// where it opens sessions. What is in the way of that is the machine's.
fn on_deep_stack<T: Send>(library: &Path, work: impl FnOnce(&Runtime) -> T + Send) -> Result<T, Reasons> {
    let runtime = Runtime::load(library).map_err(Refusal::from)?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, || work(&runtime)).map_err(|error| {
            let reason = "cannot start a thread to try the model on".to_string();
            Reasons { code: "no_thread".into(), detail: format!("{reason}: {error}"), reason }
        })?;
        match thread.join() {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn judge(job: &AcceptJob, runtime: &Runtime) -> Result<Accepted, Refusal> {
    let options = SessionOptions { intra_op_threads: job.intra_op_threads, execution_providers: Vec::new() };
    accept(&job.directory, runtime, &options, &job.scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_with_a_model_is_held_against_it() {
        let io = Fault::Io { path: "model.onnx".into(), source: std::io::Error::other("EIO") };
        let missing = scoregate_model::runtime::Error::LibraryMissing { tried: Vec::new() };
        for fault in [io, missing.into()] {
            assert!(matches!(Finding::from(fault), Finding::Unknown(_)));
        }
        let Finding::Refused(Reasons { code, .. }) = Finding::from(Fault::Link("no link".into())) else {
            panic!("that is the model's")
        };
        assert_eq!(code, "link_unproved");
    }
}
