//! What is known of a request, noted on its way and read once, when it is answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::http::request::Parts;
use scoregate_model::explain::Method;
use scoregate_model::features::FeatureRows;
use scoregate_model::watch::Findings;

use super::tally::Tally;
use crate::auth::Caller;
use crate::cache::Status;

/// The notes of one request, which travel with it; none are taken of one that nobody watches.
#[derive(Debug, Clone, Default)]
pub struct Notes(Option<Arc<Mutex<Record>>>);

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
    /// What is unusual about the rows that pass, by feature.
    pub(super) findings: Vec<(usize, Findings)>,
    /// Bytes of its body.
    pub(super) received: usize,
    /// How long its body was waited for.
    pub(super) receiving: Option<Duration>,
    /// Whether its client left in the middle of its body.
    pub(super) has_left: bool,
    /// How its scores are explained.
    pub(super) explained: Option<Method>,
    /// How long that took, if it was not known before.
    pub(super) explaining: Option<Duration>,
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
    /// The body is on its way.
    Body,
    /// Do its rows pass?
    Validation,
    /// Looking for scores that were computed before.
    Cache,
    /// ONNX Runtime, and what is waited for it.
    Run,
    /// Why.
    Explanation,
}

impl Stage {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Body => "body",
            Self::Validation => "validation",
            Self::Cache => "cache",
            Self::Run => "run",
            Self::Explanation => "explanation",
        }
    }
}

impl Notes {
    /// Empty ones; with the ends of stages if the request `is_traced`.
    pub fn new(is_traced: bool) -> Self {
        let stages = is_traced.then(|| Vec::with_capacity(8));
        Self(Some(Arc::new(Mutex::new(Record { stages, ..Record::default() }))))
    }

    /// Those of a request.
    pub fn of(parts: &Parts) -> Self {
        parts.extensions.get().cloned().unwrap_or_default()
    }

    fn lock(&self) -> Option<MutexGuard<'_, Record>> {
        Some(self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, note: impl FnOnce(&mut Record)) {
        if let Some(mut record) = self.lock() {
            note(&mut record);
        }
    }

    /// All of them, at the end.
    pub(super) fn take(&self) -> Option<Record> {
        Some(std::mem::take(&mut *self.lock()?))
    }

    /// Where its rows are counted.
    fn tally(&self) -> Option<Arc<Tally>> {
        self.lock()?.tally.clone()
    }

    /// Who it is from.
    pub fn caller(&self, caller: &Caller) {
        self.note(|record| record.caller = Some(caller.clone()));
    }

    /// Which version answers.
    pub fn version(&self, tally: &Arc<Tally>) {
        self.note(|record| record.tally = Some(Arc::clone(tally)));
    }

    /// How large its body is.
    pub fn received(&self, bytes: usize) {
        self.note(|record| record.received = bytes);
    }

    /// How long its body was waited for.
    pub fn receiving(&self, took: Duration) {
        self.note(|record| record.receiving = Some(took));
    }

    /// Its client left in the middle of its body.
    pub fn left(&self) {
        self.note(|record| record.has_left = true);
    }

    /// What became of its rows.
    pub fn rows(&self, scored: usize, rejected: usize) {
        self.note(|record| (record.scored, record.rejected) = (scored, rejected));
    }

    /// Looks for what is unusual about the rows from `first` on, which is counted once they are scored.
    pub fn look(&self, rows: &FeatureRows, first: usize) {
        // Without the lock, for which whoever ends the request would wait.
        if let Some(tally) = self.tally() {
            let findings = tally.look(rows, first);
            self.note(|record| record.findings = findings);
        }
    }

    /// Counts the scores of rows, given by the numbers of each.
    pub fn scores<'s>(&self, rows: impl Iterator<Item = &'s [f64]>) {
        if let Some(tally) = self.tally() {
            tally.score(rows);
        }
    }

    /// What the cache had to do with it.
    pub fn cache(&self, status: Status) {
        self.note(|record| record.cache = status);
    }

    /// How its scores are explained.
    pub fn explained(&self, method: Method) {
        self.note(|record| record.explained = Some(method));
    }

    /// How long explaining took what was not known before.
    pub fn explaining(&self, took: Duration) {
        self.note(|record| record.explaining = Some(took));
    }

    /// Why it is refused.
    pub fn refused(&self, code: &'static str) {
        self.note(|record| record.code = Some(code));
    }

    /// A stage has ended.
    pub fn end(&self, stage: Stage) {
        self.note(|record| {
            if let Some(stages) = &mut record.stages {
                stages.push((stage, Instant::now()));
            }
        });
    }
}

impl Record {
    /// What is unusual about its rows, all features together.
    pub(super) fn all_findings(&self) -> Findings {
        self.findings.iter().fold(Findings::default(), |mut all, (_, found)| {
            all += *found;
            all
        })
    }
}
