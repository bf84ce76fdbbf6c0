//! A server that a task starts, waits for, asks and ends; it never outlives the task.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::http1;
use crate::workspace::pause;

/// How many of its last lines a failed server is quoted with.
const QUOTED_LINES: usize = 30;

/// Process groups of the servers that run now.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
/// Whether a signal is what the task waits for.
static SIGNAL_AWAITED: AtomicBool = AtomicBool::new(false);
static SIGNAL_ARRIVED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C and its kin end the servers too, which as groups of their own would not hear of it.
pub(crate) fn end_servers_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("could not listen for signals")?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if SIGNAL_AWAITED.load(Ordering::SeqCst) {
                SIGNAL_ARRIVED.store(true, Ordering::SeqCst);
                continue;
            }
            for &group in running().iter() {
                // A server that ended meanwhile is what is wanted.
                let _ = killpg(group, Signal::SIGTERM);
            }
            // The status that shells give to a command which a signal ended.
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server process.
pub(crate) struct Server {
    name: String,
    child: Child,
    log: PathBuf,
    started: Instant,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts `command`, which is to listen on `address`; what it prints goes to the file `log`.
    pub(crate) fn start(name: &str, command: &mut Command, address: SocketAddr, log: &Path) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("could not create {}", log.display()))?;
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A group of its own: Ctrl-C reaches the task alone, which then ends the server in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        running().push(Pid::from_raw(child.id().cast_signed()));
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), started, address })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a GET of `path` answers 200, and says how long after the start that was.
    pub(crate) fn wait_ready(&mut self, path: &str, limit: Duration) -> Result<Duration> {
        let (address, request) = (self.address, http1::get(self.address, path, None));
        self.wait_until(limit, || {
            let answer = http1::exchange(address, &request)?;
            if answer.status != 200 {
                bail!("{path} answers {}: {}", answer.status, answer.body);
            }
            Ok(())
        })
    }

    /// Waits until `look` finds nothing wrong, and says how long after the start that was.
    pub(crate) fn wait_until(&mut self, limit: Duration, look: impl Fn() -> Result<()>) -> Result<Duration> {
        loop {
            let found = look();
            let elapsed = self.started.elapsed();
            let Err(wrong) = found else { return Ok(elapsed) };
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before it was ready.{}", self.name, self.last_words());
            }
            if elapsed > limit {
                bail!(
                    "{} is not ready after {} s; {wrong:#}.{}",
                    self.name,
                    limit.as_secs(),
                    self.last_words()
                );
            }
            pause(Duration::from_millis(1));
        }
    }

    /// Sends one request; an answer other than 200 is an error that quotes it and the server's log.
    pub(crate) fn ask(&self, request: &[u8]) -> Result<String> {
        let answer = http1::exchange(self.address, request)
            .map_err(|error| anyhow!("{error:#}: {} did not answer.{}", self.name, self.last_words()))?;
        if answer.status != 200 {
            let (status, body) = (answer.status, answer.body);
            bail!("{} answered {status}, expected 200: {body}{}", self.name, self.last_words());
        }
        Ok(answer.body)
    }

    /// Waits until the server ends by itself, which is an error, or a signal asks for its end.
    pub(crate) fn wait_for_end_or_signal(&mut self) -> Result<()> {
        SIGNAL_AWAITED.store(true, Ordering::SeqCst);
        while !SIGNAL_ARRIVED.load(Ordering::SeqCst) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended by itself with {status}.{}", self.name, self.last_words());
            }
            pause(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Ends the server with SIGTERM and expects it to drain and exit 0 within `limit`.
    pub(crate) fn stop(mut self, limit: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return self.check_exit(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs {} s after SIGTERM.{}", self.name, limit.as_secs(), self.last_words());
            }
            pause(Duration::from_millis(5));
        }
    }

    fn check_exit(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        bail!(
            "{} ended with {status} after SIGTERM, expected exit status 0.{}",
            self.name,
            self.last_words()
        );
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        killpg(self.group(), signal).with_context(|| format!("could not send {signal} to {}", self.name))
    }

    /// The end of the server's log, introduced, for the end of an error message.
    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
        if last.is_empty() {
            return format!(" It logged nothing to {}.", self.log.display());
        }
        format!(" The end of {}:\n{}", self.log.display(), last.join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        running().retain(|&group| group != self.group());
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Nobody is left to hear about a failure here.
        let _ = self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// `wanted` if nothing listens there, otherwise a free port of this machine; 0 asks for any.
pub(crate) fn free_address(wanted: u16) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", wanted))
        .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))
        .context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}
