//! Explanations of scores: of one row where that costs least, of a batch one row after another within the time that there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scoregate_model::explain::{Ask, Explainer, Explanation, Method};
use scoregate_model::features::FeatureRows;
use scoregate_model::runtime::{self, Score, Scores};

use super::recall::{Looked, Recall, Recalled, Sought};
use super::{Engine, Error};
use crate::cache::{Asked, Cache, Status};
use crate::registry::{Cost, Version};

/// Explaining for so long counts as a row among the work in hand.
const ROW: Duration = Duration::from_micros(100);

/// How rows of a version are explained.
#[derive(Debug, Clone)]
pub struct Explaining {
    version: Arc<Version>,
    explainer: Arc<Explainer>,
    ask: Ask,
}

/// The explanations of a batch's rows.
#[derive(Debug)]
pub struct Explanations {
    explainer: Arc<Explainer>,
    ask: Ask,
    /// As [`Explainer::to_numbers`] makes them, row after row; NaN of rows that are not explained.
    numbers: Vec<f64>,
}

impl Explaining {
    /// By `explainer`, which is that of `version`, what is asked.
    pub fn new(version: &Arc<Version>, explainer: &Arc<Explainer>, ask: Ask) -> Self {
        Self { version: Arc::clone(version), explainer: Arc::clone(explainer), ask }
    }

    /// What explains.
    pub fn explainer(&self) -> &Explainer {
        &self.explainer
    }

    /// By which method, with all the time there is.
    pub fn method(&self) -> Method {
        self.ask.method()
    }

    /// What explaining a row is expected to take.
    pub fn cost(&self) -> Duration {
        self.explainer.cost(&self.ask, self.version.explain.budget)
    }

    /// What it takes at least, however coarse explanations become.
    pub fn least_cost(&self) -> Duration {
        self.explainer.cost(&self.ask, Duration::ZERO)
    }

    /// As how many rows explaining `rows` rows counts among the work in hand: time that is not spent on rows is bounded as rows are.
    pub fn weight(&self, rows: usize) -> usize {
        let each = self.cost().min(self.version.explain.budget).as_micros() / ROW.as_micros();
        rows.saturating_mul(usize::try_from(each).unwrap_or(usize::MAX))
    }

    /// Whether it may be done on a thread that serves connections: rows of the model are run elsewhere.
    pub fn may_stay(&self) -> bool {
        !self.explainer.runs_model(&self.ask)
    }

    /// How many numbers are held for each row.
    pub fn numbers(&self) -> usize {
        self.explainer.numbers()
    }

    /// Whether explanations of `rows` rows are looked for in the cache.
    pub fn is_looked_up(&self, cache: &Cache, rows: usize) -> bool {
        cache.is_worth_keys(self.sought().worth, rows)
    }

    fn sought(&self) -> Sought<'_> {
        let worth = &self.version.explanation_worth[usize::from(self.explainer.runs_model(&self.ask))];
        Sought { asked: Asked::Explanation(self.ask.bytes()), width: self.explainer.numbers(), worth }
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
        self.explainer.explain(&self.ask, rows, row, answer, budget, &mut run)
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
        let explanation = if self.may_stay() && engine.fits_inline(1, cost) {
            self.explain(row, 0, answer, budget)?
        } else {
            let (own, row, answer) = (self.clone(), Arc::clone(row), answer.to_vec());
            engine.run(1 + self.weight(1), false, move |_| own.explain(&row, 0, &answer, budget)).await??
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
                    Ok(Score::Classes(self.explainer.to_numbers(&explanation).into()))
                };
                recall.find_or_compute(engine, sought, missed, compute).await?
            }
        };
        match self.explainer.from_numbers(&self.ask, found.score.values()) {
            Some(explanation) => Ok((explanation, found.status)),
            None => Ok((self.compute(engine, row, answer).await?, Status::default())),
        }
    }

    /// Looks for the explanations of a batch's rows; nothing if that is not worth it.
    pub async fn look_up_batch(&self, recall: &Recall<'_>, rows: &FeatureRows) -> Option<Recalled> {
        recall.look_up_all(&self.version, self.sought(), rows).await
    }

    /// Explains all rows here and now, none of which is looked for or kept.
    ///
    /// # Errors
    /// [`runtime::Error`] if one cannot be explained.
    pub fn explain_rows(&self, rows: &FeatureRows, scores: &Scores) -> Result<Explanations, runtime::Error> {
        let mut numbers = Vec::with_capacity(rows.len() * self.numbers());
        for (row, answer) in scores.rows().enumerate() {
            let explanation = self.explain(rows, row, answer, self.version.explain.budget)?;
            numbers.extend(self.explainer.to_numbers(&explanation));
        }
        Ok(Explanations { explainer: Arc::clone(&self.explainer), ask: self.ask, numbers })
    }

    /// Explains the rows of a batch but for those that were `recalled`, all of them within `time` if that can be, and asks
    /// `stop` between two of them; nothing if it was to stop. A row that cannot be explained is left out where that is
    /// `lenient`.
    ///
    /// # Errors
    /// [`Error`] if a row cannot be explained.
    pub fn explain_batch(
        &self,
        recall: &Recall<'_>,
        rows: &FeatureRows,
        scores: &Scores,
        recalled: Option<Recalled>,
        within: &Within<'_>,
    ) -> Result<Option<(Explanations, Status)>, Error> {
        let width = self.explainer.numbers();
        let mut recalled = recalled.unwrap_or_else(|| Recalled::nothing(rows.len(), width));
        let missing = std::mem::take(&mut recalled.missing);
        let most = self.version.explain.budget;
        let budget = most.min(within.time / u32::try_from(missing.len().max(1)).unwrap_or(u32::MAX));
        let mut failed = None;
        for row in missing {
            if (within.stop)() {
                return Ok(None);
            }
            let answer = &scores.values()[row * self.version.task.width()..][..self.version.task.width()];
            let explanation = match self.explain(rows, row, answer, budget) {
                Ok(explanation) => explanation,
                Err(error) if within.lenient => {
                    failed = Some(error);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let numbers = self.explainer.to_numbers(&explanation);
            recalled.put(row, &numbers);
            // What is coarser than what single rows get is not kept for them.
            let is_coarse = explanation.stepped_down_from.is_some() && budget < most;
            if let Some((key, plan)) = recalled.keys.get(row).filter(|_| !recall.wish.unkept && !is_coarse) {
                recall.cache.store(key, &Score::Classes(numbers.into()), *plan);
            }
        }
        if let Some(error) = failed {
            unexplained(&self.version, &error);
        }
        recalled.fill_copies();
        let status = recalled.status;
        let (explainer, ask) = (Arc::clone(&self.explainer), self.ask);
        Ok(Some((Explanations { explainer, ask, numbers: recalled.values }, status)))
    }
}

/// Within what a batch is explained.
pub struct Within<'w> {
    /// The time for all its rows together.
    pub time: Duration,
    /// Whether a row that cannot be explained is left out.
    pub lenient: bool,
    /// Whether nobody waits for it any longer.
    pub stop: &'w dyn Fn() -> bool,
}

/// Notes that a score goes without the explanation that nobody asked for.
pub fn unexplained(version: &Version, error: &dyn std::error::Error) {
    let (model, version) = (&version.manifest.name, &version.manifest.version);
    let error = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    tracing::warn!(model.name = model, model.version = version, error, "a score could not be explained");
}

impl Explanations {
    /// The explanation of row `row`, if it has one.
    pub fn of(&self, row: usize) -> Option<Explanation> {
        let width = self.explainer.numbers();
        let numbers = self.numbers.get(row * width..(row + 1) * width)?;
        if numbers[0].is_nan() { None } else { self.explainer.from_numbers(&self.ask, numbers) }
    }
}
