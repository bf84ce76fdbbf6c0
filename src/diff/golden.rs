//! What two versions answer to the golden rows of each, and a memory of it for gateways.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use scoregate_model::features::{FeatureRows, RowReader};
use scoregate_model::package::GoldenRow;
use scoregate_model::runtime::{self, Scores};
use scoregate_schemas::manifest::Task;
use serde::Serialize;

use crate::aside::Aside;
use crate::registry::Version;

/// Golden rows that are scored at once, at most: those of clients are not to wait long for them.
pub const PART: usize = 256;

/// So many pairs of versions are remembered: more than one model ever has loaded at once.
const REMEMBERED: usize = 256;

/// What both versions answer to the golden rows of one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GoldenDiff {
    /// Whose golden rows they are.
    pub rows_of: String,
    /// How many there are.
    pub rows: usize,
    /// How many of them, the last ones, were not looked at.
    #[serde(skip_serializing_if = "is_none")]
    pub left_out: usize,
    /// How many both took.
    pub compared: usize,
    /// How many the one refused.
    pub refused_by_from: usize,
    /// How many the other refused.
    pub refused_by_to: usize,
    /// The mean of how far the answers to a row are apart; of several classes at the one that is furthest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_difference: Option<f64>,
    /// The largest of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_difference: Option<f64>,
    /// The row of which that is, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_row: Option<usize>,
    /// How many rows get another label; nothing of values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flips: Option<usize>,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

/// What two versions answer to golden rows, which are taken part by part.
#[derive(Debug)]
pub struct Comparison {
    from: Scorer,
    to: Scorer,
    /// Of several classes, where the other has each of the one.
    places: Vec<usize>,
    found: Vec<GoldenDiff>,
    /// How many of the last ones' rows were looked at, and the sum of their differences.
    seen: usize,
    sum: f64,
}

impl Comparison {
    /// Of these two.
    ///
    /// # Errors
    /// A sentence: why their answers cannot be compared.
    pub fn new(from: &Arc<Version>, to: &Arc<Version>) -> Result<Self, String> {
        if from.task != to.task {
            return Err("the two answer different questions, so that their scores cannot be compared".into());
        }
        // Of several classes, each probability is held against that of the same label.
        let place = |label: &String| to.labels.iter().position(|known| known == label);
        let places: Option<Vec<usize>> = match from.task {
            Task::Multiclass { .. } => from.labels.iter().map(place).collect(),
            Task::Binary | Task::Regression => Some(vec![0]),
        };
        let is_same_class = from.task != Task::Binary || from.labels.last() == to.labels.last();
        let Some(places) = places.filter(|_| is_same_class) else {
            return Err(
                "their classes are called differently, so that their scores cannot be compared".into()
            );
        };
        let (from, to) = (Scorer::new(from), Scorer::new(to));
        Ok(Self { from, to, places, found: Vec::new(), seen: 0, sum: 0.0 })
    }

    /// The `rows` golden rows of a version follow, or the first of them.
    pub fn begin(&mut self, rows_of: &str, rows: usize) {
        (self.seen, self.sum) = (0, 0.0);
        self.found.push(GoldenDiff {
            rows_of: rows_of.into(),
            rows,
            left_out: rows,
            compared: 0,
            refused_by_from: 0,
            refused_by_to: 0,
            mean_difference: None,
            largest_difference: None,
            worst_row: None,
            flips: (self.from.version.task != Task::Regression).then_some(0),
        });
    }

    /// Takes the next rows.
    ///
    /// # Errors
    /// A sentence: why answers to them cannot be compared.
    pub fn take(&mut self, rows: &[GoldenRow]) -> Result<(), String> {
        let (from, to) = (&self.from, &self.to);
        let Some(found) = self.found.last_mut() else { return Ok(()) };
        let (mut one, mut other, mut taken) =
            (from.reader.empty(rows.len()), to.reader.empty(rows.len()), Vec::new());
        for row in rows {
            self.seen += 1;
            let took = (take(&from.reader, row, &mut one), take(&to.reader, row, &mut other));
            found.refused_by_from += usize::from(!took.0);
            found.refused_by_to += usize::from(!took.1);
            match took {
                (true, true) => taken.push(self.seen),
                (true, false) => one.forget_last(),
                (false, true) => other.forget_last(),
                (false, false) => {}
            }
        }
        let (was, is) = (from.run(&one)?, to.run(&other)?);
        for ((row, was), is) in taken.iter().zip(was.rows()).zip(is.rows()) {
            let pairs = was.iter().zip(&self.places).map(|(was, place)| (was - is[*place]).abs());
            let apart = pairs.fold(0.0, f64::max);
            self.sum += apart;
            if found.largest_difference.is_none_or(|largest| apart > largest) {
                (found.worst_row, found.largest_difference) = (Some(*row), Some(apart));
            }
            if let Some(flips) = &mut found.flips {
                *flips += usize::from(decision(&from.version, was) != decision(&to.version, is));
            }
        }
        found.left_out = found.left_out.saturating_sub(rows.len());
        found.compared += taken.len();
        found.mean_difference = (found.compared > 0).then(|| self.sum / found.compared as f64);
        Ok(())
    }

    /// What was found.
    pub fn finish(self) -> Vec<GoldenDiff> {
        self.found
    }
}

/// Reads a golden row; false if it does not pass.
fn take(reader: &RowReader, row: &GoldenRow, rows: &mut FeatureRows) -> bool {
    let before = rows.len();
    reader.read_map(&row.features, rows);
    rows.len() > before
}

/// The label of an answer.
fn decision<'v>(version: &'v Version, answer: &[f64]) -> Option<&'v String> {
    let at = match version.task {
        Task::Regression => return None,
        Task::Binary => usize::from(answer.first().is_some_and(|share| *share >= version.threshold)),
        Task::Multiclass { .. } => {
            // Of equals the first.
            let best = answer.iter().enumerate().rev().max_by(|one, other| one.1.total_cmp(other.1));
            best.map_or(0, |(at, _)| at)
        }
    };
    version.labels.get(at)
}

/// Scores golden rows with a version.
#[derive(Debug)]
struct Scorer {
    version: Arc<Version>,
    /// Golden rows need not say whom they are about, and may be about the same.
    reader: RowReader,
}

impl Scorer {
    fn new(version: &Arc<Version>) -> Self {
        let reader = RowReader::new(&version.schema.with_ignored_entity(), &version.manifest.bindings);
        Self { version: Arc::clone(version), reader }
    }

    fn run(&self, rows: &FeatureRows) -> Result<Scores, String> {
        if rows.is_empty() {
            return Ok(Scores::new(self.version.task.width(), Vec::new()));
        }
        let name = &self.version.manifest.version;
        self.version.run_uncounted(rows).map_err(|error| match error {
            runtime::Error::Output(_) => {
                format!("version {name} has no usable answer to some golden row")
            }
            _ => format!("version {name} failed at the golden rows"),
        })
    }
}

/// Two versions, by their fingerprints, which never change.
pub type Pair = [[u8; 32]; 2];

/// Where a gateway finds out how versions differ.
#[derive(Debug)]
pub struct Diffs {
    /// Reads what is on the disk: nobody else waits for it.
    pub files: Aside,
    /// Whoever holds it is the only one that scores golden rows.
    pub turn: tokio::sync::Mutex<()>,
    /// What is known of golden rows, the latest last.
    known: Mutex<VecDeque<(Pair, Vec<GoldenDiff>)>>,
}

impl Diffs {
    /// Knows nothing yet.
    ///
    /// # Errors
    /// The system's, if it has no more threads.
    pub fn start() -> std::io::Result<Self> {
        Ok(Self {
            files: Aside::start("scoregate-diff")?,
            turn: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        })
    }

    /// What was found out about two versions.
    pub fn known(&self, pair: &Pair) -> Option<Vec<GoldenDiff>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(known, _)| known == pair).map(|(_, found)| found.clone())
    }

    /// Remembers what was found out about two versions, and forgets what is oldest.
    pub fn remember(&self, pair: Pair, found: &[GoldenDiff]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == REMEMBERED {
            known.pop_front();
        }
        known.push_back((pair, found.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_out_last_is_remembered() {
        let diffs = Diffs::start().unwrap();
        let pair = |number: usize| [[u8::try_from(number % 256).unwrap(); 32], [u8::from(number > 255); 32]];
        for number in 0..REMEMBERED + 2 {
            assert!(diffs.known(&pair(number)).is_none());
            diffs.remember(pair(number), &[]);
        }
        for number in 0..REMEMBERED + 2 {
            assert_eq!(diffs.known(&pair(number)).is_some(), number > 1, "{number}");
        }
    }
}
