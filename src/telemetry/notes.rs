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
pub struct Notes {
    record: Option<Arc<Mutex<Record>>>,
    /// Of which version's rows these are, by its place among those that answer.
    part: usize,
}

/// What is noted. Nothing of it is a value that a client sent.
#[derive(Debug, Default)]
pub struct Record {
    /// Who it is from.
    pub(super) caller: Option<Caller>,
    /// What the version does that answers.
    pub(super) first: Part,
    /// And the others, where the rows of a batch go to several.
    pub(super) others: Vec<Part>,
    /// The place of the one that is at work, or was last.
    pub(super) at_work: Option<usize>,
    /// Whether it names the version that answers.
    pub(super) is_pinned: bool,
    /// What the cache had to do with it.
    pub(super) cache: Status,
    /// Bytes of its body.
    pub(super) received: usize,
    /// How long its body was waited for.
    pub(super) receiving: Option<Duration>,
    /// Whether its client left in the middle of its body.
    pub(super) has_left: bool,
    /// Why it is refused, by the code of the problem.
    pub(super) code: Option<&'static str>,
    /// When each stage ended, where somebody wants to know.
    pub(super) stages: Option<Vec<(Stage, Instant)>>,
}

/// What is noted of one version that answers.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Where that is counted.
    pub(super) tally: Option<Arc<Tally>>,
    /// How many of its rows were scored.
    pub(super) scored: usize,
    /// How many did not pass.
    pub(super) rejected: usize,
    /// What is unusual about those that pass, by feature.
    pub(super) findings: Vec<(usize, Findings)>,
    /// How its scores are explained.
    pub(super) explained: Option<Method>,
    /// How long that took, if it was not known before.
    pub(super) explaining: Option<Duration>,
    /// How long it was at work, where there are several.
    pub(super) worked: Duration,
    /// Whether it has failed, and others have not.
    pub(super) has_failed: bool,
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
        Self { record: Some(Arc::new(Mutex::new(Record { stages, ..Record::default() }))), part: 0 }
    }

    /// Those of a request.
    pub fn of(parts: &Parts) -> Self {
        parts.extensions.get().cloned().unwrap_or_default()
    }

    fn lock(&self) -> Option<MutexGuard<'_, Record>> {
        Some(self.record.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
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

    fn note_part(&self, note: impl FnOnce(&mut Part)) {
        self.note(|record| {
            if let Some(part) = record.part(self.part) {
                note(part);
            }
        });
    }

    /// Where its rows are counted.
    fn tally(&self) -> Option<Arc<Tally>> {
        self.lock()?.part(self.part)?.tally.clone()
    }

    /// Those about the rows of one version among several that answer.
    pub fn of_part(&self, part: usize, tally: &Arc<Tally>) -> Self {
        self.note(|record| {
            if record.others.len() < part {
                record.others.resize_with(part, Part::default);
            }
        });
        let own = Self { record: self.record.clone(), part };
        own.version(tally);
        own
    }

    /// Who it is from.
    pub fn caller(&self, caller: &Caller) {
        self.note(|record| record.caller = Some(caller.clone()));
    }

    /// Which version answers.
    pub fn version(&self, tally: &Arc<Tally>) {
        self.note_part(|part| part.tally = Some(Arc::clone(tally)));
    }

    /// It names the version that answers.
    pub fn pinned(&self) {
        self.note(|record| record.is_pinned = true);
    }

    /// It is at work from now on, whatever becomes of it.
    pub fn begin_work(&self) {
        self.note(|record| record.at_work = Some(self.part));
    }

    /// It was at work for so long, and is no longer.
    pub fn end_work(&self, took: Duration) {
        self.note(|record| record.at_work = None);
        self.note_part(|part| part.worked += took);
    }

    /// It has failed, and others have not.
    pub fn failed(&self) {
        self.note_part(|part| part.has_failed = true);
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
        self.note_part(|part| (part.scored, part.rejected) = (scored, rejected));
    }

    /// Looks for what is unusual about the rows from `first` on, which is counted once they are scored.
    pub fn look(&self, rows: &FeatureRows, first: usize) {
        // Without the lock, for which whoever ends the request would wait.
        if let Some(tally) = self.tally() {
            let findings = tally.look(rows, first);
            self.note_part(|part| part.findings = findings);
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
        self.note_part(|part| part.explained = Some(method));
    }

    /// How long explaining took what was not known before.
    pub fn explaining(&self, took: Duration) {
        self.note_part(|part| part.explaining = Some(took));
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
    fn part(&mut self, at: usize) -> Option<&mut Part> {
        match at.checked_sub(1) {
            None => Some(&mut self.first),
            Some(at) => self.others.get_mut(at),
        }
    }

    /// Whether the version at this place is beside what has failed: another one has, or was at work by then.
    pub(super) fn is_beside(&self, at: usize) -> bool {
        let is_to_blame = |(at, part): (usize, &Part)| part.has_failed || self.at_work == Some(at);
        let other = self.parts().enumerate().find(|part| is_to_blame(*part));
        other.is_some() && !self.parts().enumerate().nth(at).is_some_and(is_to_blame)
    }

    /// Whether it is the version at this place that has failed: not if there was no room or no time to begin, or nothing to explain it
    /// with yet. Where several answer, the time is up for whichever comes last.
    pub(super) fn is_fault_of(&self, at: usize) -> bool {
        let (is_alone, is_at_work) = (self.others.is_empty(), self.at_work == Some(at));
        let has_failed = self.parts().nth(at).is_some_and(|part| part.has_failed);
        has_failed
            || match self.code {
                Some("model_output_invalid" | "internal") => is_alone || is_at_work,
                Some("deadline") => is_alone && is_at_work,
                _ => false,
            }
    }

    /// What each of the versions does that answer.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Its rows: how many were scored, and how many did not pass.
    pub(super) fn rows(&self) -> [usize; 2] {
        self.parts().fold([0; 2], |[scored, rejected], part| [scored + part.scored, rejected + part.rejected])
    }

    /// How its scores are explained.
    pub(super) fn explained(&self) -> Option<Method> {
        self.parts().find_map(|part| part.explained)
    }

    /// Shares are of rows that were scored.
    pub(super) fn forget_findings_of_nothing(&mut self) {
        for part in std::iter::once(&mut self.first).chain(&mut self.others).filter(|part| part.scored == 0) {
            part.findings.clear();
        }
    }

    /// What is unusual about its rows, all features together.
    pub(super) fn all_findings(&self) -> Findings {
        self.parts().flat_map(|part| &part.findings).fold(Findings::default(), |mut all, (_, found)| {
            all += *found;
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_no_fault_of_a_version() {
        for (code, at_work, has_failed, expected) in [
            (Some("internal"), None, false, true),
            (Some("model_output_invalid"), None, false, true),
            (Some("deadline"), Some(0), false, true),
            (Some("deadline"), Some(1), false, false),
            (Some("deadline"), None, false, false),
            (Some("overloaded"), Some(0), false, false),
            (Some("explanations_preparing"), None, false, false),
            (Some("quota_unavailable"), None, false, false),
            (None, None, true, true),
            (None, None, false, false),
        ] {
            let first = Part { has_failed, ..Part::default() };
            let record = Record { first, code, at_work, ..Record::default() };
            assert_eq!(record.is_fault_of(0), expected, "{code:?}, {at_work:?} at work");
        }
    }

    #[test]
    fn of_several_versions_those_that_fail_are_to_blame() {
        // Whether each of two has failed; whose fault it is, and who is beside that.
        for (code, at_work, failed, fault, beside) in [
            // The second one had no row that it takes, or the first one.
            (Some("internal"), None, [true, false], [true, false], [false, true]),
            (Some("model_output_invalid"), None, [false, true], [false, true], [true, false]),
            (Some("internal"), None, [true, true], [true, true], [false, false]),
            // Explaining came to nothing, after the first one had failed already.
            (Some("internal"), Some(1), [true, false], [true, true], [false, false]),
            (Some("internal"), Some(1), [false, false], [false, true], [true, false]),
            // Whoever comes first has time.
            (Some("deadline"), Some(1), [false, false], [false, false], [true, false]),
            (Some("deadline"), Some(0), [false, false], [false, false], [false, true]),
            (Some("overloaded"), None, [false, false], [false, false], [false, false]),
            (None, None, [false, true], [false, true], [true, false]),
        ] {
            let [first, second] = failed.map(|has_failed| Part { has_failed, ..Part::default() });
            let record = Record { first, others: vec![second], code, at_work, ..Record::default() };
            let found = ([0, 1].map(|at| record.is_fault_of(at)), [0, 1].map(|at| record.is_beside(at)));
            assert_eq!(found, (fault, beside), "{code:?}, {at_work:?} at work, {failed:?}");
        }
    }
}
