//! Watches each request from its head to its answer: what is counted, traced and logged of it.

use std::time::{Duration, Instant, SystemTime};

use hyper::Method;

use super::access::{self, Access};
use super::metrics::RequestCounts;
use super::notes::{Notes, Record};
use super::tally::Kind;
use super::trace::{self, Context, Trace, Tracer, Value};
use crate::cache::{Outcome, Status};

/// What is told of requests for which no route is known.
pub const UNMATCHED: &str = "unmatched";

/// The status of a request whose client left before it was answered, as other servers log it.
const CLIENT_LEFT: u16 = 499;

/// Watches requests.
#[derive(Debug)]
pub struct Requests {
    counts: RequestCounts,
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
    notes: Notes,
    is_finished: bool,
}

impl Requests {
    /// Counts in `counts`.
    pub fn new(counts: RequestCounts, tracer: Option<Tracer>) -> Self {
        Self { counts, access: None, tracer }
    }

    /// Writes a line for each request from now on.
    pub fn log(&mut self, access: Access) {
        self.access = Some(access);
    }

    /// Waits until traces are sent, for a moment.
    pub fn flush(&self, patience: Duration) {
        if let Some(tracer) = &self.tracer {
            tracer.flush(patience);
        }
    }

    /// Begins to watch a request that `traceparent` may say more of.
    pub fn watch(
        &self,
        method: &Method,
        route: &'static str,
        id: &str,
        traceparent: Option<&[u8]>,
    ) -> Watched<'_> {
        let parent = traceparent.and_then(Context::read);
        let context = match &self.tracer {
            // Probes and scrapes come for ever, and are traced only where somebody says so.
            Some(_) if parent.is_none() && is_routine(route) => None,
            Some(tracer) => Some(tracer.context(parent)),
            None => parent,
        };
        let is_traced = self.tracer.is_some() && context.is_some_and(|context| context.sampled().is_some());
        self.counts.in_flight().inc();
        Watched {
            requests: self,
            begin: Instant::now(),
            method: known(method),
            route,
            id: id.to_owned(),
            // What nobody is told of has no identity that anybody could look for.
            context: context.filter(|_| parent.is_some() || is_traced),
            notes: Notes::new(is_traced),
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
        let took = self.begin.elapsed();
        let Requests { counts, access, tracer } = self.requests;
        counts.in_flight().dec();
        let mut record = std::mem::take(&mut *self.notes.lock());
        if status == CLIENT_LEFT {
            record.code = Some("client_left");
        }
        // Strangers do not decide what the collector is told.
        let may_be_told = |context: &Context| context.parent.is_none() || record.caller.is_some();
        let traced = self.context.filter(|context| record.stages.is_some() && may_be_told(context));
        let kind = Kind { route: self.route, cache: cache_outcome(record.cache), class: class(status) };
        let exemplar = traced.map(|context| context.trace);
        counts.count(kind, status, &record, took, bytes, exemplar);
        if let Some(access) = access {
            access.write(&access::Line {
                now: SystemTime::now(),
                id: &self.id,
                method: self.method,
                route: self.route,
                status,
                took,
                cache: kind.cache,
                bytes,
                trace: self.context.map(|context| context.trace),
                record: &record,
            });
        }
        if let (Some(tracer), Some(context)) = (tracer, traced) {
            let ends = record.stages.take().unwrap_or_default();
            tracer.send(Trace {
                context,
                method: self.method,
                route: self.route,
                status,
                code: record.code,
                end: SystemTime::now(),
                took,
                stages: trace::durations(self.begin, ends),
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
    if let Some(tally) = &record.tally {
        all.push(text("scoregate.model", &tally.model));
        all.push(text("scoregate.version", &tally.version));
        all.push(text("scoregate.cache", cache));
        all.push(number("scoregate.rows", (record.scored + record.rejected) as u64));
        all.push(number("scoregate.rows_rejected", record.rejected as u64));
    }
    all.extend(record.explained.map(|(method, _)| text("scoregate.explanation", method.as_str())));
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
