//! Which requests are traced, and as parts of what: W3C trace context in and out, and the way to the collector.

use std::fmt;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use hyper::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::notes::Stage;
use super::otlp::{self, Message};
use crate::config::TraceSettings;

/// The most requests whose spans wait to be sent.
const MAX_WAITING: usize = 4 * 1024;

/// The longest `tracestate` that is kept: what the standard has everybody keep.
const MAX_STATE: usize = 512;

/// The identity of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub(super) u128);

impl fmt::Display for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// Of which trace a request is a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub(super) trace: TraceId,
    /// What caused the request, where its client says so.
    pub(super) parent: Option<u64>,
    /// The request itself.
    pub(super) span: u64,
    /// Whether it is told to the collector.
    pub(super) is_sampled: bool,
}

impl Context {
    /// That of a request with these headers; of two there is none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all("traceparent").iter();
        let first = all.next()?;
        if all.next().is_some() { None } else { Self::read(first.as_bytes()) }
    }

    /// Reads a `traceparent` ([Trace Context](https://www.w3.org/TR/trace-context/)); one that is malformed is none.
    pub fn read(header: &[u8]) -> Option<Self> {
        let text = str::from_utf8(header).ok()?;
        let is_lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let mut parts = text.split('-');
        let mut part = |length: usize| {
            parts.next().filter(|part| part.len() == length && part.bytes().all(is_lower_hex))
        };
        let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        // Later versions may say more behind.
        if version == "ff" || (version == "00" && text.len() != 55) {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
        let span = u64::from_str_radix(parent, 16).ok().filter(|span| *span != 0)?;
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace: TraceId(trace), parent: None, span, is_sampled })
    }

    /// As a `traceparent`.
    pub fn write(&self) -> String {
        format!("00-{}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }

    /// The trace, if it is told to the collector.
    pub(super) fn sampled(&self) -> Option<TraceId> {
        self.is_sampled.then_some(self.trace)
    }
}

/// What the `tracestate` of these headers says for the collector; nothing if that is long, or no visible ASCII.
pub(super) fn state_of(headers: &HeaderMap) -> String {
    let mut state = String::new();
    for part in headers.get_all("tracestate") {
        let Ok(part) = part.to_str() else { return String::new() };
        if !state.is_empty() {
            state.push(',');
        }
        state.push_str(part);
    }
    if state.len() > MAX_STATE { String::new() } else { state }
}

/// A request that was answered, on its way to the collector.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) context: Context,
    pub(super) state: String,
    pub(super) method: &'static str,
    pub(super) route: &'static str,
    pub(super) status: u16,
    /// Why it is refused.
    pub(super) code: Option<&'static str>,
    pub(super) end: SystemTime,
    pub(super) took: Duration,
    /// What took how long, one after the other.
    pub(super) stages: Vec<(Stage, Duration)>,
    pub(super) attributes: Vec<(&'static str, Value)>,
}

/// A value of an attribute.
#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Number(i64),
}

/// The ends of stages as times that each took.
pub(super) fn durations(begin: Instant, ends: Vec<(Stage, Instant)>) -> Vec<(Stage, Duration)> {
    let mut before = begin;
    let took = |(stage, end): (Stage, Instant)| {
        (stage, end.saturating_duration_since(std::mem::replace(&mut before, end)))
    };
    ends.into_iter().map(took).collect()
}

/// What became of requests that were to be told to the collector.
#[derive(Debug, Clone, Default)]
pub struct TraceCounts {
    /// It has them.
    pub sent: Counter,
    /// There was no place for them.
    pub dropped: Counter,
    /// It did not take them.
    pub failed: Counter,
}

/// Decides which requests are traced, and hands them over.
#[derive(Debug)]
pub struct Tracer {
    sample: f64,
    waiting: Sender<Message>,
    counts: TraceCounts,
}

impl Tracer {
    /// Starts the thread that sends.
    ///
    /// # Errors
    /// The system's, if it has no more threads; a client for HTTP that cannot be made.
    pub fn start(settings: &TraceSettings, counts: TraceCounts) -> std::io::Result<Self> {
        let (waiting, taken) = tokio::sync::mpsc::channel(MAX_WAITING);
        otlp::start(settings, taken, counts.clone())?;
        Ok(Self { sample: settings.sample, waiting, counts })
    }

    /// The request's own context: as its parent has it, else by chance.
    pub fn context(&self, parent: Option<Context>) -> Context {
        match parent {
            Some(parent) => Context { parent: Some(parent.span), span: random_span(), ..parent },
            None => {
                let trace = rand::random::<u128>().max(1);
                // As other implementations do it: by the last bytes, which are random.
                let chance = (trace as u64 >> 11) as f64 / (1_u64 << 53) as f64;
                let is_sampled = chance < self.sample;
                let span = if is_sampled { random_span() } else { 0 };
                Context { trace: TraceId(trace), parent: None, span, is_sampled }
            }
        }
    }

    /// Hands over a trace, which is made only if there is a place for it.
    pub(super) fn send(&self, trace: impl FnOnce() -> Trace) {
        match self.waiting.try_reserve() {
            Ok(place) => place.send(Message::Trace(Box::new(trace()))),
            Err(TrySendError::Full(()) | TrySendError::Closed(())) => drop(self.counts.dropped.inc()),
        }
    }

    /// Waits until what was handed over is sent, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, is_done) = mpsc::channel();
        if self.waiting.try_send(Message::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(patience);
        }
    }
}

fn random_span() -> u64 {
    rand::random::<u64>().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_as_the_standard_has_it() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = Context::read(header.as_bytes()).unwrap();
        assert_eq!((context.write().as_str(), context.sampled()), (header, Some(context.trace)));
        let unsampled = Context::read(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02").unwrap();
        assert_eq!(unsampled.sampled(), None);
        assert!(
            Context::read(b"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-will-be").is_some()
        );
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        ] {
            assert_eq!(Context::read(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(Context::read(b"00-\xff"), None);
        let mut headers = HeaderMap::new();
        assert_eq!(Context::of(&headers), None);
        headers.append("traceparent", header.parse().unwrap());
        assert_eq!(Context::of(&headers), Some(context));
        headers.append("traceparent", header.parse().unwrap());
        assert_eq!(Context::of(&headers), None);
    }

    #[test]
    fn what_clients_say_beside_it_is_kept_if_it_is_short() {
        let state = |parts: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for part in parts {
                headers.append("tracestate", hyper::header::HeaderValue::from_bytes(part).unwrap());
            }
            state_of(&headers)
        };
        let (longest, longer) = ([b'x'; MAX_STATE], [b'x'; MAX_STATE + 1]);
        assert_eq!(state(&[]), "");
        assert_eq!(state(&[b"a=1,b=2", b"c=3"]), "a=1,b=2,c=3");
        assert_eq!(state(&[&longest]).len(), MAX_STATE);
        assert_eq!(state(&[&longer]), "");
        assert_eq!(state(&[b"a=1", b"b=\xe9"]), "");
    }

    #[test]
    fn a_trace_is_made_only_if_there_is_a_place_for_it() {
        let (waiting, mut taken) = tokio::sync::mpsc::channel(1);
        let tracer = Tracer { sample: 1.0, waiting, counts: TraceCounts::default() };
        let trace = || Trace {
            context: tracer.context(None),
            state: String::new(),
            method: "GET",
            route: "/",
            status: 200,
            code: None,
            end: SystemTime::UNIX_EPOCH,
            took: Duration::ZERO,
            stages: Vec::new(),
            attributes: Vec::new(),
        };
        tracer.send(trace);
        tracer.send(|| panic!("there is no place for it"));
        assert_eq!(tracer.counts.dropped.get(), 1);
        assert!(taken.try_recv().is_ok());
        tracer.send(trace);
        assert!(taken.try_recv().is_ok());
    }

    #[test]
    fn parents_decide_and_else_chance_does() {
        let tracer = |sample| {
            let (waiting, _taken) = tokio::sync::mpsc::channel(1);
            Tracer { sample, waiting, counts: TraceCounts::default() }
        };
        let parent = Context::read(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let child = tracer(0.0).context(Some(parent));
        assert_eq!((child.trace, child.parent, child.is_sampled), (parent.trace, Some(parent.span), true));
        assert_ne!(child.span, parent.span);
        assert!(!tracer(1.0).context(Some(Context { is_sampled: false, ..parent })).is_sampled);
        for (sample, expected) in [(0.0, 0..=0), (0.1, 800..=1_200), (1.0, 10_000..=10_000)] {
            let tracer = tracer(sample);
            let sampled = (0..10_000).filter(|_| tracer.context(None).is_sampled).count();
            assert!(expected.contains(&sampled), "{sampled} of 10,000 at {sample}");
        }
    }
}
