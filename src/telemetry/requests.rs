//! Watches each request from its head to its answer: what is counted, traced and logged of it.

use std::time::{Duration, Instant, SystemTime};

use hyper::{HeaderMap, Method};

use super::access::{self, Access};
use super::metrics::RequestCounts;
use super::notes::{Notes, Record};
use super::tally::Kind;
use super::trace::{self, Context, Trace, Tracer, Value};
use crate::cache::{Outcome, Status};
use crate::config::AccessLog;

/// What is told of requests for which no route is known.
pub const UNMATCHED: &str = "unmatched";

/// The status of a request whose client left before it was answered, as other servers log it.
const CLIENT_LEFT: u16 = 499;

/// Watches requests.
#[derive(Debug)]
pub struct Requests {
    counts: Option<RequestCounts>,
    access: Option<Access>,
    tracer: Option<Tracer>,
}

/// A request that is being answered; whose client has left if it is dropped before it is finished.
#[derive(Debug)]
pub struct Watched<'r> {
    requests: &'r Requests,
    begin: Instant,
    method: &'static str,
    route: &'static str,
    id: String,
    context: Option<Context>,
    /// What its client's own tracing says beside `traceparent`.
    state: String,
    notes: Notes,
    is_finished: bool,
}

impl Requests {
    /// Counts in `counts`, where there is somebody to tell.
    pub fn new(counts: Option<RequestCounts>, tracer: Option<Tracer>) -> Self {
        Self { counts, access: None, tracer }
    }

    /// Writes lines of requests from now on, if any are wanted.
    pub fn log(&mut self, access: Access) {
        self.access = (access.which != AccessLog::Off).then_some(access);
    }

    /// Waits until traces are sent, for a moment.
    pub fn flush(&self, patience: Duration) {
        if let Some(tracer) = &self.tracer {
            tracer.flush(patience);
        }
    }

    /// Begins to watch a request of which trace its `headers` may say it is a part; of one that nobody is told of, no notes are
    /// taken.
    pub fn watch(&self, method: &Method, route: &'static str, id: &str, headers: &HeaderMap) -> Watched<'_> {
        let parent = Context::of(headers);
        let context = match &self.tracer {
            // Probes and scrapes come for ever, and are traced only where somebody says so.
            Some(_) if parent.is_none() && is_routine(route) => None,
            Some(tracer) => Some(tracer.context(parent)),
            None => parent,
        };
        let is_traced = self.tracer.is_some() && context.is_some_and(|context| context.sampled().is_some());
        if let Some(counts) = &self.counts {
            counts.in_flight().inc();
        }
        let is_told = self.counts.is_some() || self.access.is_some() || is_traced;
        Watched {
            requests: self,
            begin: Instant::now(),
            method: known(method),
            route,
            id: id.to_owned(),
            // What nobody is told of has no identity that anybody could look for.
            context: context.filter(|_| parent.is_some() || is_traced),
            state: if is_traced && parent.is_some() { trace::state_of(headers) } else { String::new() },
            notes: if is_told { Notes::new(is_traced) } else { Notes::default() },
            is_finished: false,
        }
    }
}

impl Watched<'_> {
    /// What is noted of it on its way.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// What its client is told of its trace.
    pub fn traceparent(&self) -> Option<String> {
        self.context.map(|context| context.write())
    }

    /// It is answered, with so many bytes.
    pub fn finish(mut self, status: u16, bytes: u64) {
        self.end(status, bytes);
    }

    fn end(&mut self, status: u16, bytes: u64) {
        self.is_finished = true;
        let Some(mut record) = self.notes.take() else { return };
        let took = self.begin.elapsed();
        let status = if record.has_left { CLIENT_LEFT } else { status };
        if status == CLIENT_LEFT {
            record.code = Some("client_left");
        }
        record.forget_findings_of_nothing();
        // How fast a client sends is not how fast the gateway answers.
        let answering = took.saturating_sub(record.receiving.unwrap_or_default());
        let Requests { counts, access, tracer } = self.requests;
        // Strangers do not decide what the collector is told.
        let may_be_told = |context: &Context| context.parent.is_none() || record.caller.is_some();
        let traced = self.context.filter(|context| record.stages.is_some() && may_be_told(context));
        let kind = Kind {
            route: self.route,
            cache: cache_outcome(record.cache),
            is_explained: record.explained().is_some(),
            class: class(status),
        };
        if let Some(counts) = counts {
            counts.in_flight().dec();
            counts.count(kind, status, &record, answering, bytes, traced.map(|context| context.trace));
        }
        if let Some(access) = access {
            access.write(&access::Line {
                now: SystemTime::now(),
                id: &self.id,
                method: self.method,
                route: self.route,
                status,
                took: answering,
                is_routine: is_routine(self.route),
                cache: kind.cache,
                bytes,
                trace: self.context.map(|context| context.trace),
                record: &record,
            });
        }
        if let (Some(tracer), Some(context)) = (tracer, traced) {
            tracer.send(|| Trace {
                context,
                state: std::mem::take(&mut self.state),
                method: self.method,
                route: self.route,
                status,
                code: record.code,
                end: SystemTime::now(),
                took,
                stages: trace::durations(self.begin, record.stages.take().unwrap_or_default()),
                attributes: attributes(&self.id, kind.cache, &record),
            });
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.end(CLIENT_LEFT, 0);
        }
    }
}

fn attributes(id: &str, cache: &str, record: &Record) -> Vec<(&'static str, Value)> {
    let text = |name, value: &str| (name, Value::Text(value.into()));
    let number = |name, value: u64| (name, Value::Number(i64::try_from(value).unwrap_or(i64::MAX)));
    let mut all = vec![text("scoregate.request_id", id)];
    all.extend(record.caller.as_ref().map(|caller| text("scoregate.caller", caller.id())));
    if let Some(tally) = &record.first.tally {
        let [scored, rejected] = record.rows();
        all.push(text("scoregate.model", &tally.model));
        all.push(text("scoregate.version", &tally.version));
        if !record.others.is_empty() {
            all.push(number("scoregate.versions", record.parts().count() as u64));
        }
        all.push(text("scoregate.cache", cache));
        all.push(number("scoregate.rows", (scored + rejected) as u64));
        all.push(number("scoregate.rows_rejected", rejected as u64));
    }
    all.extend(record.explained().map(|method| text("scoregate.explanation", method.as_str())));
    all
}

/// A method by its name, if it is one of the known: clients may make up others.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

fn is_routine(route: &str) -> bool {
    route.starts_with("/health") || route == "/metrics"
}

fn class(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// What became of a request at the cache, in one word: at the level that decided.
fn cache_outcome(status: Status) -> &'static str {
    match (status.memory, status.redis) {
        (None, None) => "none",
        (Some(Outcome::Hit(_)), _) | (_, Some(Outcome::Hit(_))) => "hit",
        (Some(Outcome::Partial { .. }), _) | (_, Some(Outcome::Partial { .. })) => "partial",
        _ if status.collapsed => "collapsed",
        _ => "miss",
    }
}
