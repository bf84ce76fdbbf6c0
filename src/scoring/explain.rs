//! Explanations of scores: of one row where that costs least, of a batch one row after another within the time that there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scoregate_model::explain::{Ask, Explainer, Explanation, Method};
use scoregate_model::features::FeatureRows;
use scoregate_model::runtime::{self, Score, Scores};

use super::recall::{Levels, Looked, Recall, Recalled, Sought};
use super::{Engine, Error};
use crate::cache::{Asked, Cache, Status};
use crate::registry::{Cost, Prepared, Version};

/// Explaining for so long counts as a row among the work in hand.
const ROW: Duration = Duration::from_micros(100);

/// How rows of a version are explained.
#[derive(Debug, Clone)]
pub struct Explaining {
    version: Arc<Version>,
    prepared: Arc<Prepared>,
    ask: Ask,
}

/// The explanations of a batch's rows.
#[derive(Debug)]
pub struct Explanations {
    prepared: Arc<Prepared>,
    /// As [`Explainer::to_numbers`] makes them, row after row; NaN of rows that are not explained.
    numbers: Vec<f64>,
}

impl Explaining {
    /// By `prepared`, which is that of `version`, what is asked.
    pub fn new(version: &Arc<Version>, prepared: &Arc<Prepared>, ask: Ask) -> Self {
        Self { version: Arc::clone(version), prepared: Arc::clone(prepared), ask }
    }

    /// What explains.
    pub fn explainer(&self) -> &Explainer {
        &self.prepared.explainer
    }

    /// By which method, with all the time there is.
    pub fn method(&self) -> Method {
        self.ask.method()
    }

    /// What explaining a row is expected to take.
    pub fn cost(&self) -> Duration {
        self.explainer().cost(&self.ask, self.version.explain.budget)
    }

    /// What it takes at least, however coarse explanations become.
    pub fn least_cost(&self) -> Duration {
        self.explainer().cost(&self.ask, Duration::ZERO)
    }

    /// As how many rows explaining `rows` rows counts among the work in hand: time that is not spent on scores is bounded as rows are.
    pub fn weight(&self, rows: usize) -> usize {
        let each = self.cost().min(self.version.explain.budget).as_micros() / ROW.as_micros();
        rows.saturating_mul(usize::try_from(each).unwrap_or(usize::MAX))
    }

    /// Whether it may be done on a thread that serves connections: rows of the model are run elsewhere.
    pub fn may_stay(&self) -> bool {
        !self.explainer().runs_model(&self.ask)
    }

    /// How many numbers are held for each row.
    pub fn numbers(&self) -> usize {
        self.explainer().numbers()
    }

    /// Whether explanations of `rows` rows are looked for in the cache.
    pub fn is_looked_up(&self, cache: &Cache, rows: usize) -> bool {
        cache.is_worth_keys(self.sought().worth, rows)
    }

    fn sought(&self) -> Sought<'_> {
        let worth = self.prepared.worth(&self.ask);
        Sought { asked: Asked::Explanation(self.ask.bytes()), width: self.numbers(), worth }
    }

    /// Explains row `row`, for which the model answered `answer`, here and now.
    fn explain(
        &self,
        rows: &FeatureRows,
        row: usize,
        answer: &[f64],
        budget: Duration,
    ) -> Result<Explanation, runtime::Error> {
        let mut run = |rows: &FeatureRows| Ok(self.version.run(rows)?.values().to_vec());
        self.explainer().explain(&self.ask, rows, row, answer, budget, &mut run)
    }

    /// Explains one row where that costs least.
    async fn compute(
        &self,
        engine: &Engine,
        row: &Arc<FeatureRows>,
        answer: &[f64],
    ) -> Result<Explanation, Error> {
        let begin = Instant::now();
        // The other half is for whatever takes longer than it was expected to.
        let budget = self.version.explain.budget.min(engine.answer_timeout() / 2);
        let cost = Cost { run: Duration::ZERO, row: self.cost() };
        let here = match self.may_stay() && engine.fits_inline(1, cost) {
            true => self.explainer().explain_closed(&self.ask, row, 0, answer),
            false => None,
        };
        let explanation = if let Some(explanation) = here {
            explanation
        } else {
            let permit = engine.hold_explaining(self.weight(1))?;
            let (own, row, answer) = (self.clone(), Arc::clone(row), answer.to_vec());
            let explain = move |_: &dyn Fn() -> bool| {
                let _permit = permit;
                own.explain(&row, 0, &answer, budget)
            };
            engine.run(1, false, explain).await??
        };
        self.sought().worth.computed(begin.elapsed(), 1);
        Ok(explanation)
    }

    /// Explains one checked row by itself, for which the model answered `answer`, if it was not before; and says what the
    /// cache had to do with it.
    ///
    /// # Errors
    /// [`Error`] if that fails.
    pub async fn explain_one(
        &self,
        recall: &Recall<'_>,
        engine: &Engine,
        row: &Arc<FeatureRows>,
        answer: &[f64],
    ) -> Result<(Explanation, Status), Error> {
        let sought = self.sought();
        let found = match recall.look_up(&self.version, sought, row, 0) {
            Looked::Bypassed => return Ok((self.compute(engine, row, answer).await?, Status::default())),
            Looked::Found(found) => found,
            Looked::Missed(missed) => {
                let compute = async {
                    let explanation = self.compute(engine, row, answer).await?;
                    Ok(Score::Classes(self.explainer().to_numbers(&explanation).into()))
                };
                recall.find_or_compute(engine, sought, missed, compute).await?
            }
        };
        match self.explainer().from_numbers(found.score.values()) {
            Some(explanation) => Ok((explanation, found.status)),
            None => Ok((self.compute(engine, row, answer).await?, Status::default())),
        }
    }

    /// Looks for the explanations of a batch's rows; nothing if that is not worth it.
    pub async fn look_up_batch(&self, recall: &Recall<'_>, rows: &FeatureRows) -> Option<Recalled> {
        recall.look_up_all(&self.version, self.sought(), rows).await
    }

    /// Explains all rows here and now, none of which is looked for or kept; a row that cannot be explained is left out.
    pub fn explain_rows(&self, rows: &FeatureRows, scores: &Scores) -> Explanations {
        let mut numbers = Vec::with_capacity(rows.len() * self.numbers());
        for (row, answer) in scores.rows().enumerate() {
            match self.explain(rows, row, answer, self.version.explain.budget) {
                Ok(explanation) => numbers.extend(self.explainer().to_numbers(&explanation)),
                Err(_) => numbers.extend(Skipped::Unusable.to_numbers(self.numbers())),
            }
        }
        Explanations { prepared: Arc::clone(&self.prepared), numbers }
    }

    /// Explains the rows of a batch but for those that were `recalled`, all of them within `time` if that can be, and asks
    /// `stop` between two of them; nothing if it was to stop. A row that cannot be explained is left out, and so are those for which no
    /// time is left.
    pub fn explain_batch(
        &self,
        recall: &Recall<'_>,
        rows: &FeatureRows,
        scores: &Scores,
        recalled: Option<Recalled>,
        within: &Within<'_>,
    ) -> Option<(Explanations, Levels)> {
        let width = self.explainer().numbers();
        let mut recalled = recalled.unwrap_or_else(|| Recalled::nothing(rows.len(), width));
        let missing = std::mem::take(&mut recalled.missing);
        let most = self.version.explain.budget;
        let (mut left, mut failed) = (missing.len(), None);
        for row in missing {
            if (within.stop)() {
                return None;
            }
            // What one row takes less, or more, than its share the others share.
            let time = within.end.saturating_duration_since(Instant::now());
            let budget = most.min(time / u32::try_from(left).unwrap_or(u32::MAX)).min(within.each);
            left -= 1;
            if time.is_zero() {
                recalled.put(row, &Skipped::Time.to_numbers(width));
                continue;
            }
            let answer = &scores.values()[row * self.version.task.width()..][..self.version.task.width()];
            let explanation = match self.explain(rows, row, answer, budget) {
                Ok(explanation) => explanation,
                Err(error) => {
                    failed = Some(error);
                    recalled.put(row, &Skipped::Unusable.to_numbers(width));
                    continue;
                }
            };
            let numbers = self.explainer().to_numbers(&explanation);
            recalled.put(row, &numbers);
            // What is coarser than what single rows get is not kept for them.
            let is_coarse = explanation.stepped_down_from.is_some() || explanation.standard_errors.is_some();
            let is_kept = !(recall.wish.unkept || is_coarse && budget < most);
            if let Some((key, plan)) = recalled.keys.get(row).filter(|_| is_kept) {
                recall.cache.store(key, &Score::Classes(numbers.into()), *plan);
            }
        }
        if let Some(error) = failed {
            unexplained(&self.version, &error);
        }
        recalled.fill_copies();
        let levels = recalled.levels;
        let prepared = Arc::clone(&self.prepared);
        Some((Explanations { prepared, numbers: recalled.values }, levels))
    }
}

/// Within what a batch is explained.
pub struct Within<'w> {
    /// When the time for all its rows is over.
    pub end: Instant,
    /// What a row may take whose closed form does not hold, where others wait for this thread.
    pub each: Duration,
    /// Whether nobody waits for it any longer.
    pub stop: &'w dyn Fn() -> bool,
}

/// Notes that a score goes without the explanation that nobody asked for.
pub fn unexplained(version: &Version, error: &dyn std::error::Error) {
    let (model, version) = (&version.manifest.name, &version.manifest.version);
    let causes = std::iter::successors(Some(error), |error| error.source());
    let error = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    tracing::warn!(model.name = model, model.version = version, error, "a score could not be explained");
}

/// Why a row that was to be explained is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// There was no time left.
    Time,
    /// There was too much to explain in hand.
    Load,
    /// The model has no usable answer to some mix of the row and a background row.
    Unusable,
}

impl Skipped {
    const ALL: [Self; 3] = [Self::Time, Self::Load, Self::Unusable];

    /// As answers write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Load => "load",
            Self::Unusable => "unusable",
        }
    }

    /// In the place of an explanation's numbers, the first of which is one.
    fn to_numbers(self, width: usize) -> Vec<f64> {
        let mut numbers = vec![0.0; width];
        numbers[0] = f64::NAN;
        numbers[1] = self as u8 as f64;
        numbers
    }

    fn of_numbers(numbers: &[f64]) -> Self {
        Self::ALL.get(numbers[1] as usize).copied().unwrap_or(Self::Unusable)
    }
}

impl Explanations {
    /// The explanation of row `row`, or why it has none; nothing where it was not to have one.
    pub fn of(&self, row: usize) -> Option<Result<Explanation, Skipped>> {
        let width = self.prepared.explainer.numbers();
        let numbers = self.numbers.get(row * width..(row + 1) * width)?;
        if numbers[0].is_nan() {
            return Some(Err(Skipped::of_numbers(numbers)));
        }
        Some(self.prepared.explainer.from_numbers(numbers).ok_or(Skipped::Unusable))
    }

    /// How many rows that were to be explained are not, by why.
    pub fn skipped(&self) -> impl Iterator<Item = (Skipped, usize)> {
        let rows = self.numbers.chunks_exact(self.prepared.explainer.numbers());
        let mut counts = [0; Skipped::ALL.len()];
        for numbers in rows.filter(|numbers| numbers[0].is_nan()) {
            counts[Skipped::of_numbers(numbers) as usize] += 1;
        }
        Skipped::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }

    /// None of `rows` rows, for one reason.
    pub fn none(explaining: &Explaining, rows: usize, why: Skipped) -> Self {
        let numbers = why.to_numbers(explaining.numbers()).repeat(rows);
        Self { prepared: Arc::clone(&explaining.prepared), numbers }
    }
}
