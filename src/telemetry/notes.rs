//! What is known of a request, noted on its way and read once, when it is answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::http::request::Parts;
use scoregate_model::explain::Method;
use scoregate_model::watch::Findings;

use super::tally::Tally;
use crate::auth::Caller;
use crate::cache::Status;

/// The notes of one request, which travel with it.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<Record>>);

/// What is noted. Nothing of it is a value that a client sent.
#[derive(Debug, Default)]
pub struct Record {
    /// Who it is from.
    pub(super) caller: Option<Caller>,
    /// The version that answers.
    pub(super) tally: Option<Arc<Tally>>,
    /// How many rows were scored.
    pub(super) scored: usize,
    /// How many did not pass.
    pub(super) rejected: usize,
    /// What the cache had to do with it.
    pub(super) cache: Status,
    /// What is unusual about its rows.
    pub(super) findings: Findings,
    /// Bytes of its body.
    pub(super) received: usize,
    /// How its scores were explained, and how long that took.
    pub(super) explained: Option<(Method, Duration)>,
    /// Why it is refused, by the code of the problem.
    pub(super) code: Option<&'static str>,
    /// When each stage ended, where somebody wants to know.
    pub(super) stages: Option<Vec<(Stage, Instant)>>,
}

/// A part of a request, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Who is it, and may it?
    Admission,
    /// The body, and whether its rows pass.
    Validation,
    /// Looking for scores that were computed before.
    Cache,
    /// ONNX Runtime, and what is waited for it.
    Run,
    /// Why.
    Explanation,
    /// Everything after.
    Answer,
}

impl Stage {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Validation => "validation",
            Self::Cache => "cache",
            Self::Run => "run",
            Self::Explanation => "explanation",
            Self::Answer => "answer",
        }
    }
}

impl Notes {
    /// Empty ones; with the ends of stages if the request `is_traced`.
    pub fn new(is_traced: bool) -> Self {
        let stages = is_traced.then(|| Vec::with_capacity(8));
        Self(Arc::new(Mutex::new(Record { stages, ..Record::default() })))
    }

    /// Those of a request; of one that nobody watches, some that nobody reads.
    pub fn of(parts: &Parts) -> Self {
        parts.extensions.get().cloned().unwrap_or_default()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who it is from.
    pub fn caller(&self, caller: &Caller) {
        self.lock().caller = Some(caller.clone());
    }

    /// Which version answers.
    pub fn version(&self, tally: &Arc<Tally>) {
        self.lock().tally = Some(Arc::clone(tally));
    }

    /// How large its body is.
    pub fn received(&self, bytes: usize) {
        self.lock().received = bytes;
    }

    /// What became of its rows.
    pub fn rows(&self, scored: usize, rejected: usize) {
        let mut record = self.lock();
        (record.scored, record.rejected) = (scored, rejected);
    }

    /// What is unusual about its rows.
    pub fn findings(&self, findings: Findings) {
        self.lock().findings = findings;
    }

    /// What the cache had to do with it.
    pub fn cache(&self, status: Status) {
        self.lock().cache = status;
    }

    /// How its scores were explained, and how long that took.
    pub fn explained(&self, method: Method, took: Duration) {
        self.lock().explained = Some((method, took));
    }

    /// Why it is refused.
    pub fn refused(&self, code: &'static str) {
        self.lock().code = Some(code);
    }

    /// A stage has ended.
    pub fn end(&self, stage: Stage) {
        if let Some(stages) = &mut self.lock().stages {
            stages.push((stage, Instant::now()));
        }
    }
}
