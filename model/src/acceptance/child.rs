//! A process of its own for what may crash, hang or eat memory: a job in, a report out, and limits that hold.
//!
//! The parent calls [`run`], which starts the executable again. There, first of all, [`job`] takes the limits upon the
//! process and reads what is to be done, and [`report`] says what came out. Whatever happens in between, the parent hears a
//! report or a [`Death`]; and when the parent dies, so does the child.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getppid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The code of a child that crashed or said nothing.
pub const CRASHED: &str = "child_crashed";
/// The code of a child that needed too much memory.
pub const MEMORY: &str = "child_memory";
/// The same where the system killed it, for whatever it was that took the memory.
pub const KILLED: &str = "child_killed";
/// The code of a child that took too long.
pub const TIMEOUT: &str = "child_timeout";
/// The code of a child whose report is longer than one may be.
pub const REPORT: &str = "child_report";

/// The largest report.
const MAX_REPORT_BYTES: u64 = 64 << 20;
/// What is kept of the child's standard error.
const MAX_WORDS_BYTES: u64 = 16 << 10;
/// Open files: the library, the package, a profile.
const MAX_FILES: u64 = 64;
/// The largest file that a child may write: ONNX Runtime's notes on a run.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What a child may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Address space, which is what can be limited; ONNX Runtime itself takes some 100 MiB of it.
    pub memory_bytes: u64,
    /// Time by the clock.
    pub time: Duration,
    /// How many processors it may keep busy for that time.
    pub processors: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, time: Duration::from_secs(60), processors: 1 }
    }
}

/// Why a child gave no report.
#[derive(Debug, thiserror::Error)]
pub enum Death {
    /// It could not be started or spoken to.
    #[error("cannot start a process to try the model in")]
    Start(#[source] io::Error),
    /// A signal ended it.
    #[error("the process that tried the model crashed ({signal}){words}")]
    Crashed {
        /// The signal's name.
        signal: String,
        /// The end of what it wrote on standard error.
        words: Words,
    },
    /// It needed more memory than it may have.
    #[error("the process that tried the model needed more than {} MiB of memory", .limit >> 20)]
    Memory {
        /// How many bytes it may have.
        limit: u64,
    },
    /// It was killed, which nobody does but the system where memory is short: its own limit ends in another way. Whether this model
    /// took the memory, or others, nobody can tell.
    #[error("the process that tried the model was killed, as the system does where memory is short")]
    Killed,
    /// It took longer than it may.
    #[error("the process that tried the model was not done after {limit:?}")]
    Timeout {
        /// How long it may take.
        limit: Duration,
    },
    /// It said more than is listened to.
    #[error(
        "the process that tried the model gave a report of more than {} MiB; give fewer or shorter rows", .limit >> 20
    )]
    Long {
        /// How many bytes a report may have.
        limit: u64,
    },
    /// It ended without a report.
    #[error("the process that tried the model ended without a report ({status}){words}")]
    Silent {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote on standard error.
        words: Words,
    },
}

/// The last line that a child wrote on standard error, where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(String);

impl fmt::Display for Words {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => write!(formatter, ": {}", line.trim().escape_debug()),
            None => Ok(()),
        }
    }
}

impl Death {
    /// A stable name for what happened.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Start(_) | Self::Crashed { .. } | Self::Silent { .. } => CRASHED,
            Self::Memory { .. } => MEMORY,
            Self::Killed => KILLED,
            Self::Timeout { .. } => TIMEOUT,
            Self::Long { .. } => REPORT,
        }
    }

    /// A sentence for clients: without what the child wrote.
    pub fn reason(&self) -> String {
        match self {
            Self::Crashed { signal, .. } => format!("the process that tried the model crashed ({signal})"),
            Self::Silent { .. } => "the process that tried the model ended without a report".into(),
            other => other.to_string(),
        }
    }

    fn of(status: ExitStatus, words: Words, limits: &Limits) -> Self {
        let allocation = ["bad_alloc", "bad allocation", "memory allocation of", "Failed to allocate memory"];
        if allocation.iter().any(|text| words.0.contains(text)) {
            return Self::Memory { limit: limits.memory_bytes };
        }
        match status.signal().map(Signal::try_from) {
            Some(Ok(Signal::SIGXCPU)) => Self::Timeout { limit: limits.time },
            Some(Ok(Signal::SIGKILL)) => Self::Killed,
            Some(Ok(signal)) => Self::Crashed { signal: signal.as_str().into(), words },
            Some(Err(_)) => Self::Crashed { signal: status.to_string(), words },
            None => Self::Silent { status, words },
        }
    }
}

/// What goes to the child's standard input.
#[derive(Serialize, Deserialize)]
struct Order<J> {
    limits: Limits,
    /// Who waits for the report.
    parent: i32,
    job: J,
}

/// Runs `command`, which is to call [`job`] and [`report`], on `job` and waits for its report. It gets no environment but
/// what `command` has set.
///
/// # Errors
/// [`Death`] if it gives none.
pub fn run<J: Serialize, R: DeserializeOwned>(
    mut command: Command,
    job: &J,
    limits: &Limits,
) -> Result<R, Death> {
    let parent = i32::try_from(std::process::id()).unwrap_or(0);
    let order = serde_json::to_vec(&Order { limits: *limits, parent, job });
    let order = order.map_err(|error| Death::Start(error.into()))?;
    // A group of its own, so that whatever it may have started ends with it.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(Death::Start)?;
    let (report, words, ended) = converse(&mut child, &order, limits).map_err(Death::Start)?;
    let words = Words(String::from_utf8_lossy(&words).into_owned());
    match ended {
        None => Err(Death::Timeout { limit: limits.time }),
        Some(_) if report.len() as u64 > MAX_REPORT_BYTES => Err(Death::Long { limit: MAX_REPORT_BYTES }),
        Some(status) => match serde_json::from_slice(&report) {
            Ok(report) if status.success() => Ok(report),
            _ => Err(Death::of(status, words, limits)),
        },
    }
}

/// Gives the child its order, and takes what it writes until it ends or its time is over; how it ended, in the first case.
fn converse(
    child: &mut Child,
    order: &[u8],
    limits: &Limits,
) -> io::Result<(Vec<u8>, Vec<u8>, Option<ExitStatus>)> {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // A child that ends before it has read everything is judged by its end.
        scope.spawn(move || input.map(|mut input| input.write_all(order)));
        let report = scope.spawn(move || drain(output, MAX_REPORT_BYTES + 1));
        let words = scope.spawn(move || drain(errors, MAX_WORDS_BYTES));
        let (ended, end) = mpsc::channel();
        scope.spawn(move || {
            // It stays a zombie, so that its number is nobody else's until the group was told to end.
            let waited = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            let _ = ended.send(waited);
        });
        let in_time = end.recv_timeout(limits.time).is_ok();
        // One that is alone and dead already is no failure.
        let _ = killpg(pid, Signal::SIGKILL);
        let status = child.wait()?;
        let bytes = |thread: std::thread::ScopedJoinHandle<'_, Vec<u8>>| thread.join().unwrap_or_default();
        Ok((bytes(report), bytes(words), in_time.then_some(status)))
    })
}

/// Reads to the end and keeps the first `most` bytes, so that the writer is never held up.
fn drain(from: Option<impl Read>, most: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut from) = from {
        // What was read before an error is all that there is.
        let _ = from.by_ref().take(most).read_to_end(&mut kept);
        let _ = io::copy(&mut from, &mut io::sink());
    }
    kept
}

/// In the child, first of all: reads the order from standard input and takes its limits upon this process.
///
/// # Errors
/// If there is no order on standard input, or a limit cannot be set.
pub fn job<J: DeserializeOwned>() -> io::Result<J> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_no_new_privs()?;
    let mut order = Vec::new();
    io::stdin().read_to_end(&mut order)?;
    let Order { limits, parent, job } = serde_json::from_slice(&order)?;
    if getppid().as_raw() != parent {
        return Err(io::Error::other("whoever asked for this has ended"));
    }
    confine(&limits)?;
    Ok(job)
}

fn confine(limits: &Limits) -> io::Result<()> {
    // A second more than the clock gives, so that a whole number of seconds never ends it early.
    let seconds = limits.time.as_secs().saturating_add(1).saturating_mul(limits.processors.max(1).into());
    // The system says SIGXCPU at the first limit, which is no other end's signal, and SIGKILL at the second.
    setrlimit(Resource::RLIMIT_CPU, seconds, seconds.saturating_add(5))?;
    for (resource, most) in [
        (Resource::RLIMIT_AS, limits.memory_bytes),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, MAX_FILES),
        (Resource::RLIMIT_FSIZE, MAX_FILE_BYTES),
    ] {
        setrlimit(resource, most, most)?;
    }
    Ok(())
}

/// In the child, last of all: says what came out. Nothing else may be written to standard output.
///
/// # Errors
/// If the parent has gone.
pub fn report<R: Serialize>(report: &R) -> io::Result<()> {
    let text = serde_json::to_vec(report)?;
    let mut output = io::stdout().lock();
    output.write_all(&text)?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Runs a shell script in place of a child that keeps to the rules.
    fn shell(script: &str, limits: &Limits) -> Result<serde_json::Value, Death> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env_clear();
        run(command, &"job", limits)
    }

    #[test]
    fn a_report_comes_back_and_the_job_arrives() {
        let report = shell("cat", &Limits::default()).unwrap();
        assert_eq!(report["job"], "job");
        assert_eq!(report["parent"], std::process::id());
    }

    #[test]
    fn every_end_without_a_report_has_its_name() {
        let limits = Limits::default();
        let cases = [
            ("kill -SEGV $$", CRASHED, "SIGSEGV"),
            ("kill -ABRT $$", CRASHED, "SIGABRT"),
            ("echo 'terminate called: std::bad_alloc' >&2; kill -ABRT $$", MEMORY, "2048 MiB"),
            ("kill -KILL $$", KILLED, "memory is short"),
            ("kill -XCPU $$", TIMEOUT, "60s"),
            ("echo first >&2; echo why >&2; exit 3", CRASHED, "why"),
            ("echo '{'", CRASHED, "without a report"),
            ("echo 1; exit 1", CRASHED, "exit status: 1"),
            ("true", CRASHED, "without a report"),
        ];
        for (script, code, says) in cases {
            let death = shell(script, &limits).unwrap_err();
            assert_eq!(death.code(), code, "{script}: {death}");
            assert!(death.to_string().contains(says), "{script}: {death}");
        }
        let nowhere = run::<_, ()>(Command::new("/nowhere"), &1, &limits);
        assert_eq!(nowhere.unwrap_err().code(), CRASHED);
    }

    #[test]
    fn a_child_that_hangs_is_ended_with_all_that_it_started() {
        let limits = Limits { time: Duration::from_millis(300), ..Limits::default() };
        let started = Instant::now();
        // Its own child keeps standard output open, and would keep the reader waiting.
        let death = shell("sleep 600 & wait", &limits).unwrap_err();
        assert_eq!(death.code(), TIMEOUT);
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        // What it left behind ends with it, whether or not it ended in time.
        let started = Instant::now();
        assert!(shell("sleep 600 & exit 0", &Limits::default()).is_err());
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    }

    #[test]
    fn a_report_that_is_too_long_is_called_so() {
        let long = format!("head -c {} /dev/zero", MAX_REPORT_BYTES + 1);
        let death = shell(&long, &Limits::default()).unwrap_err();
        assert_eq!((death.code(), death.reason().contains("64 MiB")), (REPORT, true), "{death}");
        // One that is as long as it may be is read: this one is no JSON.
        let longest = format!("head -c {MAX_REPORT_BYTES} /dev/zero");
        assert_eq!(shell(&longest, &Limits::default()).unwrap_err().code(), CRASHED);
    }

    /// Set for the test that is a child itself.
    const IS_CHILD: &str = "SCOREGATE_TEST_IS_CHILD";

    #[test]
    #[expect(clippy::disallowed_methods, reason = "nothing else tells the child from the test")]
    fn a_child_that_used_up_its_processors_has_taken_too_long() {
        if std::env::var_os(IS_CHILD).is_some() {
            let _: String = job().unwrap();
            // Where there are several processors, their time is over before that of the clock.
            std::thread::scope(|scope| {
                (0..4).for_each(|_| {
                    drop(scope.spawn(|| {
                        loop {
                            std::hint::black_box(0);
                        }
                    }))
                })
            });
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "acceptance::child::tests::a_child_that_used_up_its_processors_has_taken_too_long",
        ]);
        command.env_clear().env(IS_CHILD, "1");
        let limits = Limits { time: Duration::from_secs(3), ..Limits::default() };
        let death = run::<_, ()>(command, &"job", &limits).unwrap_err();
        assert_eq!(death.code(), TIMEOUT, "{death}");
    }

    #[test]
    fn a_child_that_talks_without_end_is_not_kept() {
        let limits = Limits { time: Duration::from_millis(500), ..Limits::default() };
        let death = shell("yes >&2 & yes", &limits).unwrap_err();
        assert_eq!(death.code(), TIMEOUT);
    }
}
