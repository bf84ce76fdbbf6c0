//! Rows of single-row requests that arrive together on one thread are run together.
//!
//! A run of one row costs ten microseconds and each further row a tenth of one, so that rows which are there at the same
//! moment should share a run. Nothing ever waits for that: the first row schedules the run behind what its thread has ready
//! to do already, and the requests among that add theirs. A thread with one request runs one row.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use scoregate_model::features::{BodyError, FeatureRows, RowFault};
use scoregate_model::runtime::Score;
use tokio::sync::oneshot;

use super::recall::{self, Looked, Missed, Recall, Scored, Sought};
use super::{Engine, Error, run_one};
use crate::cache::{Join, Lead, Status};
use crate::registry::Version;
use crate::telemetry::notes::Stage;

/// Why one row has no score.
#[derive(Debug)]
pub enum RowError {
    /// The body is not one JSON object.
    Body(BodyError),
    /// The row does not pass the schema.
    Row(RowFault),
    /// Scoring failed.
    Scoring(Error),
}

impl From<Error> for RowError {
    fn from(error: Error) -> Self {
        Self::Scoring(error)
    }
}

/// Reads one row by itself.
///
/// # Errors
/// [`RowError`] if the body is no row that passes.
pub fn read_alone(version: &Version, body: &[u8]) -> Result<FeatureRows, RowError> {
    let mut rows = version.reader.empty(1);
    read(version, body, &mut rows)?;
    Ok(rows)
}

/// Scores one checked row by itself, if it was not before.
///
/// # Errors
/// [`Error`] if scoring fails.
pub async fn score_alone(
    version: &Arc<Version>,
    row: FeatureRows,
    engine: &Engine,
    recall: &Recall<'_>,
) -> Result<Scored, Error> {
    let sought = Sought::score(version);
    recall.notes.look(&row, 0);
    recall.notes.end(Stage::Validation);
    match recall.look_up(version, sought, &row, 0) {
        Looked::Found(scored) => {
            recall.notes.end(Stage::Cache);
            Ok(scored)
        }
        Looked::Missed(missed) => {
            let compute = recall::compute(engine, version, row);
            recall.find_or_compute(engine, sought, missed, compute).await
        }
        Looked::Bypassed => {
            let score = recall::compute(engine, version, row).await?;
            recall.notes.end(Stage::Run);
            Ok(Scored { score, status: Status::default() })
        }
    }
}

/// Scores one row, if it was not before, together with others that are there at the same moment. Whoever needs the row
/// afterwards has it put into `copy`.
///
/// # Errors
/// [`RowError`] if the body is no row that passes, or scoring fails.
pub async fn score_together(
    version: &Arc<Version>,
    body: &[u8],
    engine: &Engine,
    recall: &Recall<'_>,
    copy: Option<&mut FeatureRows>,
) -> Result<Scored, RowError> {
    let sought = Sought::score(version);
    let step = {
        let gathering = Gathering::of(version);
        let mut gathered = gathering.lock();
        read(version, body, &mut gathered.rows)?;
        let last = gathered.rows.len() - 1;
        recall.notes.look(&gathered.rows, last);
        recall.notes.end(Stage::Validation);
        if let Some(copy) = copy {
            *copy = gathered.rows.single(last);
        }
        match recall.look_up(version, sought, &gathered.rows, last) {
            Looked::Found(scored) => {
                recall.notes.end(Stage::Cache);
                gathered.rows.forget_last();
                return Ok(scored);
            }
            Looked::Bypassed => Step::Run(gathered.join(&gathering, version, engine.inline_budget()), None),
            // Nothing is asked for elsewhere: the row can stay with the others, unless somebody computes it already.
            Looked::Missed(missed) if !missed.plan.has_redis() => match recall.join(&missed) {
                None => {
                    let score = gathered.join(&gathering, version, engine.inline_budget());
                    Step::Run(score, Some((missed, None)))
                }
                Some(Join::Lead(lead)) => {
                    let score = gathered.join(&gathering, version, engine.inline_budget());
                    Step::Run(score, Some((missed, Some(lead))))
                }
                Some(Join::Follow(_) | Join::Landed(..)) => Step::Seek(gathered.take_last(), missed),
            },
            Looked::Missed(missed) => Step::Seek(gathered.take_last(), missed),
        }
    };
    match step {
        Step::Run(score, missed) => {
            if missed.is_some() {
                recall.notes.end(Stage::Cache);
            }
            let score = score.await.map_err(|_| Error::Panicked)??;
            recall.notes.end(Stage::Run);
            Ok(match missed {
                Some((missed, lead)) => recall.land(missed, score, lead),
                None => Scored { score, status: Status::default() },
            })
        }
        Step::Seek(row, missed) => {
            let compute = recall::compute(engine, version, row);
            Ok(recall.find_or_compute(engine, sought, missed, compute).await?)
        }
    }
}

/// What happens to a row that was read.
enum Step {
    /// It waits for the run of all that were gathered.
    Run(oneshot::Receiver<Result<Score, Error>>, Option<(Missed, Option<Lead>)>),
    /// It goes its own way.
    Seek(FeatureRows, Missed),
}

fn read(version: &Version, body: &[u8], rows: &mut FeatureRows) -> Result<(), RowError> {
    version.reader.json_row(body, rows).map_err(RowError::Body)?;
    rows.take_fault().map_or(Ok(()), |fault| Err(RowError::Row(fault)))
}

/// The rows that a thread gathers for one version.
#[derive(Clone)]
struct Gathering {
    /// Weak, so that no thread keeps a version that is served no more.
    version: Weak<Version>,
    gathered: Arc<Mutex<Gathered>>,
}

struct Gathered {
    rows: FeatureRows,
    /// The rows of the run before, for their memory.
    running: FeatureRows,
    /// Who waits for each row.
    waiting: Vec<oneshot::Sender<Result<Score, Error>>>,
}

thread_local! {
    /// One per version that this thread has met; the lock is for threads that hand a run over, and never waited for.
    static GATHERINGS: RefCell<Vec<Gathering>> = const { RefCell::new(Vec::new()) };
}

impl Gathering {
    /// This thread's for `version`.
    fn of(version: &Arc<Version>) -> Self {
        GATHERINGS.with_borrow_mut(|gatherings| {
            // The place of a version is not another's as long as there is a weak reference to it.
            let same = |gathering: &&Self| gathering.version.as_ptr() == Arc::as_ptr(version);
            if let Some(found) = gatherings.iter().find(same) {
                return found.clone();
            }
            gatherings.retain(|gathering| gathering.version.strong_count() > 0);
            let (rows, running) = (version.reader.empty(16), version.reader.empty(16));
            let gathered = Gathered { rows, running, waiting: Vec::new() };
            let fresh = Self { version: Arc::downgrade(version), gathered: Arc::new(Mutex::new(gathered)) };
            gatherings.push(fresh.clone());
            fresh
        })
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(|poisoned| {
            // A panic may have left half a row behind. Everyone who waits is told, and the rows begin anew.
            let mut gathered = PoisonError::into_inner(poisoned);
            gathered.waiting.clear();
            gathered.rows.clear();
            self.gathered.clear_poison();
            gathered
        })
    }
}

impl Gathered {
    /// Has the row that was read last run with the others. A run may take `budget`: rows beyond that make another.
    fn join(
        &mut self,
        gathering: &Gathering,
        version: &Arc<Version>,
        budget: Duration,
    ) -> oneshot::Receiver<Result<Score, Error>> {
        let (sender, score) = oneshot::channel();
        self.waiting.push(sender);
        let rows = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        if version.cost.row.saturating_mul(rows) >= budget {
            self.run(version);
        } else if rows == 1 {
            let (gathering, version) = (gathering.clone(), Arc::clone(version));
            tokio::spawn(async move { gathering.lock().run(&version) });
        }
        score
    }

    /// Takes the row that was read last away from the others.
    fn take_last(&mut self) -> FeatureRows {
        let row = self.rows.single(self.rows.len() - 1);
        self.rows.forget_last();
        row
    }

    /// Runs what has been gathered and answers everyone. If the run fails, each row is run by itself: one row's bad answer
    /// is not another's.
    fn run(&mut self, version: &Version) {
        // Those of a run that was brought forward are answered already.
        if self.waiting.is_empty() {
            return;
        }
        // Set aside first, so that a panic leaves no row behind without its caller.
        let mut waiting = std::mem::take(&mut self.waiting);
        std::mem::swap(&mut self.rows, &mut self.running);
        self.rows.clear();
        let begin = Instant::now();
        match version.run(&self.running) {
            Ok(scores) => {
                // A row that others are run with costs no more than what it adds.
                let (took, rows) = (begin.elapsed(), waiting.len());
                let spent = if rows > 1 { took.saturating_sub(version.cost.run) } else { took };
                version.worth.computed(spent, rows);
                for (caller, score) in waiting.into_iter().zip(scores.scores()) {
                    // A caller that has left needs no answer.
                    let _ = caller.send(Ok(score));
                }
            }
            Err(error) if waiting.len() == 1 => drop(waiting.remove(0).send(Err(error.into()))),
            Err(_) => {
                for (row, caller) in waiting.into_iter().enumerate() {
                    let _ = caller.send(run_one(version, &self.running.single(row)));
                }
            }
        }
    }
}
