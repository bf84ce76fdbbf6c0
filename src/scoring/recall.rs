//! Scores and explanations that were computed before take the place of a run, for one row and for the rows of a batch.

use std::collections::HashMap;
use std::future::Future;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scoregate_model::features::FeatureRows;
use scoregate_model::runtime::{Score, Scores};

use super::{Engine, Error};
use crate::auth::Caller;
use crate::cache::{Asked, Cache, Join, Key, Lead, Outcome, Plan, Status, Wish, Worth};
use crate::registry::Version;
use crate::telemetry::notes::{Notes, Stage};

/// What a request needs to be answered from the cache.
#[derive(Debug, Clone, Copy)]
pub struct Recall<'r> {
    /// The scores that were computed before.
    pub cache: &'r Cache,
    /// Whose are looked at.
    pub caller: &'r Caller,
    /// What the request wants of them.
    pub wish: Wish,
    /// Where the ends of its stages are noted.
    pub notes: &'r Notes,
}

/// What is looked for of a row: its score, or its explanation as numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sought<'v> {
    pub(super) asked: Asked,
    /// How many numbers it is.
    pub(super) width: usize,
    /// What caching it costs and saves.
    pub(super) worth: &'v Worth,
}

impl<'v> Sought<'v> {
    /// Scores of a version.
    pub(super) fn score(version: &'v Version) -> Self {
        Self { asked: Asked::Score, width: version.task.width(), worth: &version.worth }
    }
}

/// A score, and what the cache had to do with it.
#[derive(Debug)]
pub struct Scored {
    /// The score.
    pub score: Score,
    /// What became of the request at the cache.
    pub status: Status,
}

/// What the cache in process has of one row.
#[derive(Debug)]
pub(super) enum Looked {
    /// It is not worth looking.
    Bypassed,
    /// The score.
    Found(Scored),
    /// Nothing.
    Missed(Missed),
}

/// A row that has to be looked for elsewhere, or computed.
#[derive(Debug)]
pub(super) struct Missed {
    key: Key,
    pub(super) plan: Plan,
    pub(super) status: Status,
}

impl Recall<'_> {
    /// Looks for row `row` in process.
    pub(super) fn look_up(
        &self,
        version: &Version,
        sought: Sought<'_>,
        rows: &FeatureRows,
        row: usize,
    ) -> Looked {
        let (cache, worth) = (self.cache, sought.worth);
        if !cache.is_worth_keys(worth, 1) {
            return Looked::Bypassed;
        }
        let key = self.key(version, sought, rows, row);
        let plan = cache.plan(worth, &[key], self.wish).next();
        let Some(plan) = plan.filter(|plan| !plan.is_empty()) else { return Looked::Bypassed };
        let mut status = Status::default();
        if plan.has_memory() {
            match cache.find(&key, self.wish, plan) {
                Ok((score, left)) => {
                    status.memory = Some(Outcome::Hit(left));
                    return Looked::Found(Scored { score, status });
                }
                Err(outcome) => status.memory = Some(outcome),
            }
        }
        Looked::Missed(Missed { key, plan, status })
    }

    fn key(&self, version: &Version, sought: Sought<'_>, rows: &FeatureRows, row: usize) -> Key {
        self.cache.key(sought.asked, &version.fingerprint, self.caller, &version.reader, rows, row)
    }

    /// Leads for a row that is computed now, if nobody else computes it; whoever wants a score that is fresh or of some age at
    /// most, or one that nobody keeps, computes it alone: what another finds may be too old.
    pub(super) fn join(&self, missed: &Missed) -> Option<Join> {
        let is_shared = !self.wish.fresh && !self.wish.unkept && self.wish.max_age.is_none();
        is_shared.then(|| self.cache.join(&missed.key, missed.plan))
    }

    /// Keeps a score that was just computed, and gives it to those who wait.
    pub(super) fn land(&self, missed: Missed, score: Score, lead: Option<Lead>) -> Scored {
        let Missed { key, plan, mut status } = missed;
        status.stored = !self.wish.unkept && self.cache.store(&key, &score, plan);
        if let Some(lead) = lead {
            lead.land(&score);
        }
        Scored { score, status }
    }

    /// Finds what is sought of one row and is not in process, or has it computed.
    ///
    /// # Errors
    /// [`Error`] if it cannot be computed.
    pub(super) async fn find_or_compute(
        &self,
        engine: &Engine,
        sought: Sought<'_>,
        missed: Missed,
        compute: impl Future<Output = Result<Score, Error>>,
    ) -> Result<Scored, Error> {
        let found = tokio::time::timeout(engine.answer_timeout(), self.seek(sought, missed, compute));
        found.await.map_err(|_| Error::Deadline)?
    }

    async fn seek(
        &self,
        sought: Sought<'_>,
        mut missed: Missed,
        compute: impl Future<Output = Result<Score, Error>>,
    ) -> Result<Scored, Error> {
        let lead = loop {
            match self.join(&missed) {
                None => break None,
                Some(Join::Lead(lead)) => break Some(lead),
                Some(Join::Landed(score, left)) => {
                    missed.status.memory = Some(Outcome::Hit(left));
                    self.notes.end(Stage::Cache);
                    return Ok(Scored { score, status: missed.status });
                }
                Some(Join::Follow(follow)) => {
                    if let Some(score) = follow.score().await {
                        missed.status.collapsed = true;
                        missed.status.memory.get_or_insert(Outcome::Miss);
                        self.cache.count_collapsed();
                        self.notes.end(Stage::Cache);
                        return Ok(Scored { score, status: missed.status });
                    }
                }
            }
        };
        let cache = self.cache;
        if missed.plan.has_redis() && self.wish.fresh {
            missed.status.redis = Some(Outcome::Unwanted);
        } else if missed.plan.has_redis() {
            let asked = [(missed.key, missed.plan)];
            let mut found = cache.find_shared(sought.worth, &asked, 1, sought.width, self.wish).await;
            match found.pop() {
                Some(Some((score, left))) => {
                    let Missed { key, plan, mut status } = missed;
                    status.redis = Some(Outcome::Hit(left));
                    status.stored = !self.wish.unkept && cache.keep(&key, &score, left, plan);
                    if let Some(lead) = lead {
                        lead.land(&score);
                    }
                    self.notes.end(Stage::Cache);
                    return Ok(Scored { score, status });
                }
                Some(None) => missed.status.redis = Some(Outcome::Miss),
                None => missed.status.redis = Some(Outcome::OutOfReach),
            }
        }
        self.notes.end(Stage::Cache);
        let score = compute.await?;
        // What explaining takes is noted by whoever asks for it.
        if let Asked::Score = sought.asked {
            self.notes.end(Stage::Run);
        }
        Ok(self.land(missed, score, lead))
    }

    /// Looks for the scores of a batch; nothing if that is not worth it.
    pub async fn look_up_batch(&self, version: &Version, rows: &FeatureRows) -> Option<Recalled> {
        self.look_up_all(version, Sought::score(version), rows).await
    }

    /// Looks for what is sought of the rows of a batch; nothing if that is not worth it.
    pub(super) async fn look_up_all(
        &self,
        version: &Version,
        sought: Sought<'_>,
        rows: &FeatureRows,
    ) -> Option<Recalled> {
        let (cache, worth, width) = (self.cache, sought.worth, sought.width);
        if !cache.is_worth_keys(worth, rows.len()) {
            return None;
        }
        let key = |row| self.key(version, sought, rows, row);
        let keys: Vec<Key> = (0..rows.len()).map(key).collect();
        let keys: Vec<(Key, Plan)> = keys.iter().copied().zip(cache.plan(worth, &keys, self.wish)).collect();
        if keys.iter().all(|(_, plan)| plan.is_empty()) {
            return None;
        }
        let mut recalled =
            Recalled { values: vec![f64::NAN; rows.len() * width], width, ..Recalled::default() };
        let (mut in_memory, mut in_redis) = (Tally::default(), Tally::default());
        let mut elsewhere = Vec::new();
        let mut first: HashMap<Key, usize> = HashMap::new();
        for (row, (key, plan)) in keys.iter().enumerate() {
            if plan.has_memory() {
                match cache.find(key, self.wish, *plan) {
                    Ok((score, left)) => {
                        in_memory.found(left);
                        recalled.put(row, score.values());
                        continue;
                    }
                    Err(outcome) => in_memory.missed(outcome),
                }
            }
            // What is sent twice is computed once.
            match first.get(key) {
                Some(same) => recalled.copies.push((row, *same)),
                None => {
                    first.insert(*key, row);
                    if plan.has_redis() { elsewhere.push(row) } else { recalled.missing.push(row) }
                }
            }
        }
        if self.wish.fresh && !elsewhere.is_empty() {
            in_redis.missed(Outcome::Unwanted);
            recalled.missing.append(&mut elsewhere);
        } else if !elsewhere.is_empty() {
            let asked: Vec<(Key, Plan)> = elsewhere.iter().map(|row| keys[*row]).collect();
            let mut found = cache.find_shared(worth, &asked, rows.len(), width, self.wish).await.into_iter();
            for row in elsewhere {
                let (key, plan) = &keys[row];
                match found.next() {
                    Some(Some((score, left))) => {
                        in_redis.found(left);
                        recalled.put(row, score.values());
                        if !self.wish.unkept {
                            cache.keep(key, &score, left, *plan);
                        }
                    }
                    not_found => {
                        let is_answered = not_found.is_some();
                        in_redis.missed(if is_answered { Outcome::Miss } else { Outcome::OutOfReach });
                        recalled.missing.push(row);
                    }
                }
            }
        }
        recalled.missing.sort_unstable();
        recalled.levels =
            Levels { rows: rows.len(), memory: in_memory, redis: in_redis, stored: !self.wish.unkept };
        recalled.keys = keys;
        Some(recalled)
    }

    /// Scores the rows of a batch but for those that were `recalled`, and asks `stop` between two parts of a large run; nothing
    /// if it was to stop.
    ///
    /// # Errors
    /// [`Error`] if the run fails.
    pub fn score_batch(
        &self,
        version: &Version,
        rows: &FeatureRows,
        recalled: Option<Recalled>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<(Scores, Levels)>, Error> {
        let Some(mut recalled) = recalled else {
            return Ok(version.run_unless(rows, stop)?.map(|scores| (scores, Levels::of(rows.len()))));
        };
        if !recalled.missing.is_empty() {
            let missing = std::mem::take(&mut recalled.missing);
            let Some(scores) = version.run_unless(&rows.select(&missing), stop)? else { return Ok(None) };
            for (row, score) in missing.into_iter().zip(scores.scores()) {
                recalled.put(row, score.values());
                let (key, plan) = &recalled.keys[row];
                if !self.wish.unkept {
                    self.cache.store(key, &score, *plan);
                }
            }
        }
        recalled.fill_copies();
        Ok(Some((Scores::new(recalled.width, recalled.values), recalled.levels)))
    }
}

/// Runs one row where that costs least.
pub(super) async fn compute(
    engine: &Engine,
    version: &Arc<Version>,
    row: FeatureRows,
) -> Result<Score, Error> {
    let begin = Instant::now();
    let score = if engine.fits_inline(1, version.cost) {
        super::run_one(version, &row)?
    } else {
        let running = Arc::clone(version);
        engine.run(1, false, move |_| super::run_one(&running, &row)).await??
    };
    // The way to another thread is part of what it takes.
    version.worth.computed(begin.elapsed(), 1);
    Ok(score)
}

/// The rows of a batch that were computed before.
#[derive(Debug, Default)]
pub struct Recalled {
    /// Empty where nothing was looked for.
    pub(super) keys: Vec<(Key, Plan)>,
    /// As many numbers for each row as there are; those of rows that are missing are NaN.
    pub(super) values: Vec<f64>,
    width: usize,
    /// Rows to be computed, ascending.
    pub(super) missing: Vec<usize>,
    /// Rows that are the same as another that is missing or was found elsewhere.
    copies: Vec<(usize, usize)>,
    pub(super) levels: Levels,
}

impl Recalled {
    /// Of so many rows none, of each of which so many numbers are sought.
    pub(super) fn nothing(rows: usize, width: usize) -> Self {
        let values = vec![f64::NAN; rows * width];
        Self { values, width, missing: (0..rows).collect(), levels: Levels::of(rows), ..Self::default() }
    }

    /// How many rows have to be computed.
    pub fn missing_rows(&self) -> usize {
        self.missing.len()
    }

    pub(super) fn put(&mut self, row: usize, values: &[f64]) {
        self.values[row * self.width..(row + 1) * self.width].copy_from_slice(values);
    }

    /// Gives rows that are the same as others what those have got.
    pub(super) fn fill_copies(&mut self) {
        for (row, same) in std::mem::take(&mut self.copies) {
            let same = same * self.width..(same + 1) * self.width;
            self.values.copy_within(same, row * self.width);
        }
    }
}

/// What became of rows at both levels.
#[derive(Debug, Default)]
pub struct Levels {
    rows: usize,
    memory: Tally,
    redis: Tally,
    stored: bool,
}

impl Levels {
    /// So many rows that were not looked for.
    fn of(rows: usize) -> Self {
        Self { rows, ..Self::default() }
    }

    /// Of all rows together.
    pub fn status(&self) -> Status {
        Status {
            memory: self.memory.outcome(self.rows),
            redis: self.redis.outcome(self.redis.rows),
            stored: self.stored,
            collapsed: false,
        }
    }
}

impl AddAssign for Levels {
    fn add_assign(&mut self, more: Self) {
        self.rows += more.rows;
        self.memory += more.memory;
        self.redis += more.redis;
        self.stored |= more.stored;
    }
}

/// What became of rows at one level.
#[derive(Debug, Default)]
struct Tally {
    rows: usize,
    found: usize,
    /// The first goes in so much time.
    left: Option<Duration>,
    outcome: Option<Outcome>,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.rows += more.rows;
        self.found += more.found;
        self.left = [self.left, more.left].into_iter().flatten().min();
        self.outcome = more.outcome.or(self.outcome);
    }
}

impl Tally {
    fn found(&mut self, left: Duration) {
        self.rows += 1;
        self.found += 1;
        self.left = Some(self.left.map_or(left, |before| before.min(left)));
    }

    fn missed(&mut self, outcome: Outcome) {
        self.rows += 1;
        self.outcome = Some(outcome);
    }

    /// Of `rows` rows in all; nothing if none was looked for.
    fn outcome(&self, rows: usize) -> Option<Outcome> {
        match (self.found, self.left) {
            (0, _) | (_, None) => self.outcome,
            (found, Some(left)) if found == rows => Some(Outcome::Hit(left)),
            (found, Some(_)) => Some(Outcome::Partial { found, rows }),
        }
    }
}
