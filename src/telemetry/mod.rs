//! What is told of the gateway: logs, one line per event on standard error, JSON unless a person is watching; [`metrics`]; and
//! traces.
//!
//! [`requests`] watches each request, on whose way [`notes`] are taken: its line in the log ([`access`]), its counts ([`tally`] has those
//! of a version) and its spans ([`trace`]) are all made of these, once it is answered.

pub mod access;
mod buckets;
mod lines;
pub mod metrics;
pub mod notes;
mod otlp;
mod process;
pub mod requests;
pub mod samples;
pub mod tally;
pub mod trace;

use std::io::IsTerminal;
use std::path::Path;

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use self::access::Access;
pub use self::buckets::Spread;
use self::lines::{Lines, Writer};
use crate::config::{AccessLog, LogFormat, LogSettings, log_filter_of};
use crate::follow::{self, Followed};

/// The log while it is written. A thread of its own does that: whoever has something to say never waits for a reader, and what
/// finds no place in the queue is dropped and counted. What waits in it when this is dropped is written then, if that takes no
/// longer than a second.
#[derive(Debug)]
pub struct Log {
    lines: Lines,
    is_json: bool,
    access: AccessLog,
    filter: Filter,
    _writer: Writer,
}

/// The filter of the log, which may be changed.
#[derive(Debug, Clone)]
pub struct Filter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// What it is, and what it was when the gateway started.
    initial: String,
    is_followed: bool,
}

/// What others' code tells of each try at something whose failure is told here, once.
const TOLD_ALREADY: &str = "object_store::client::retry=off,rustls_platform_verifier=off";

/// The filter that `text` says; it may name what is told already.
fn filter_of(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("{TOLD_ALREADY},{text}"))
}

impl Log {
    /// Starts logging.
    ///
    /// # Errors
    /// What is wrong with the filter, or that there is no thread.
    pub fn start(settings: &LogSettings) -> Result<Self, String> {
        let filter = filter_of(&settings.filter).map_err(|error| error.to_string())?;
        let is_json = match settings.format {
            LogFormat::Json => true,
            LogFormat::Text => false,
            LogFormat::Auto => !std::io::stderr().is_terminal(),
        };
        let lines = Lines::default();
        let writer =
            lines.write_to(std::io::stderr()).map_err(|error| format!("cannot start a thread: {error}"))?;
        let (filter, handle) = reload::Layer::new(filter);
        let events = tracing_subscriber::fmt::layer().with_writer(lines.clone());
        let events = if is_json {
            events.json().flatten_event(true).with_current_span(false).boxed()
        } else {
            events.with_ansi(std::io::stderr().is_terminal()).boxed()
        };
        tracing_subscriber::registry().with(filter).with(events).init();
        std::panic::set_hook(Box::new(|panic| tell_panic(panic.location())));
        let filter = Filter { handle, initial: settings.filter.clone(), is_followed: settings.is_followed };
        Ok(Self { lines, is_json, access: settings.access, filter, _writer: writer })
    }

    /// Where lines of requests go.
    pub fn access(&self) -> Access {
        Access { lines: self.lines.clone(), is_json: self.is_json, which: self.access }
    }

    /// The filter.
    pub fn filter(&self) -> Filter {
        self.filter.clone()
    }
}

/// A panic is a line as others are. What it says of itself may quote what a client sent, and is left out.
fn tell_panic(location: Option<&std::panic::Location<'_>>) {
    let thread = std::thread::current();
    let location = location.map(ToString::to_string);
    tracing::error!(thread = thread.name(), location, "a thread panicked; this is a mistake in the gateway");
}

impl Filter {
    /// Takes up the filter of the settings `file` whenever it changes, for as long as the process runs; unless the environment
    /// says what it is.
    ///
    /// # Errors
    /// [`follow::Error`] if the file cannot be used.
    pub async fn follow(self, file: Option<&Path>) -> Result<(), follow::Error> {
        let Some(file) = file.filter(|_| self.is_followed) else { return Ok(()) };
        let parse = |texts: &[Vec<u8>]| log_filter_of(texts.first().map_or(&[][..], Vec::as_slice));
        let followed = Followed::open_or("the log's filter", file.into(), self.initial.clone(), parse)?;
        let mut now = self.initial;
        followed
            .follow(|filter| {
                if **filter == now {
                    return;
                }
                match filter_of(filter).map(|filter| self.handle.reload(filter)) {
                    Ok(Ok(())) => {
                        now.clone_from(filter);
                        tracing::info!(filter = %**filter, "the log's filter has changed");
                    }
                    _ => tracing::error!(filter = %**filter, "the log's filter cannot be changed"),
                }
            })
            .await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_line_that_says_where_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        let lines = Lines::default();
        let writer = lines.write_to(std::fs::File::create(&file).unwrap()).unwrap();
        let events = tracing_subscriber::fmt::layer().with_writer(lines).json().flatten_event(true);
        let subscriber = tracing_subscriber::registry().with(events);
        tracing::subscriber::with_default(subscriber, || {
            tell_panic(Some(std::panic::Location::caller()));
        });
        drop(writer);
        let line: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!((&line["level"], &line["target"]), (&"ERROR".into(), &"scoregate::telemetry".into()));
        assert!(line["thread"].as_str().unwrap().contains("a_panic_is_a_line"), "{line}");
        assert!(line["location"].as_str().unwrap().starts_with(file!()), "{line}");
        assert_eq!(line.as_object().unwrap().len(), 6, "{line}");
    }
}
