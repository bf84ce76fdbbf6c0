//! What the command line prints: results on stdout, progress and remarks on stderr.

use std::io::{self, Write};
use std::time::Instant;

/// Prints one line of a result.
///
/// # Errors
/// If standard output does not take it, such as a pipe whose reader has left.
pub fn result(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// Prints one line about what is going on. Nobody listening is no reason to stop.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Reports phases of a long command: one line each, with the time that it took.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    quiet: bool,
}

impl Progress {
    /// Progress on stderr.
    pub fn start() -> Self {
        Self { started: Instant::now(), quiet: false }
    }

    /// No progress, for callers that are not a command line.
    pub fn quiet() -> Self {
        Self { started: Instant::now(), quiet: true }
    }

    /// Says that `phase` is done, how long it took and what came of it.
    pub fn done(&mut self, phase: &str, outcome: &str) {
        if !self.quiet {
            note(&format!("{phase:<10} {:>7.0} ms  {outcome}", self.started.elapsed().as_secs_f64() * 1e3));
        }
        self.started = Instant::now();
    }

    /// Says something between phases.
    pub fn remark(&self, line: &str) {
        if !self.quiet {
            note(line);
        }
    }
}
