//! Logs: one line per event on standard error, JSON unless a person is watching; and [`metrics`].

pub mod metrics;

use std::io::IsTerminal;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// The most lines that wait to be written, two or three megabytes. Where there are more, their reader has stopped reading.
const MAX_LINES: usize = 8 * 1024;

/// The log while it is written. A thread of its own does that: whoever has something to say never waits for a reader, and what
/// finds no place in the queue is dropped and counted. What waits in it when this is dropped is written then, if that takes no
/// longer than a second.
#[derive(Debug)]
pub struct Log {
    dropped: ErrorCounter,
    _writer: WorkerGuard,
}

impl Log {
    /// Starts logging.
    ///
    /// # Errors
    /// What is wrong with the filter.
    pub fn start(settings: &LogSettings) -> Result<Self, String> {
        let filter = EnvFilter::try_new(&settings.filter).map_err(|error| error.to_string())?;
        let json = match settings.format {
            LogFormat::Json => true,
            LogFormat::Text => false,
            LogFormat::Auto => !std::io::stderr().is_terminal(),
        };
        let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_LINES);
        let (queue, writer) = queue.thread_name("scoregate-log").finish(std::io::stderr());
        let dropped = queue.error_counter();
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue);
        if json {
            lines.json().flatten_event(true).with_current_span(false).init();
        } else {
            lines.init();
        }
        Ok(Self { dropped, _writer: writer })
    }

    /// How many lines were dropped, now and later.
    pub(crate) fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}
