//! Shapley values of any model, by running it on rows put together of the explained row and background rows.
//!
//! A coalition S of features is worth the mean answer `v(S)` over the background rows, each with the explained row's values
//! for the features in S. [`General::exact`] runs all coalitions, for at most [`MOST_EXACT_FEATURES`] features;
//! [`General::sampled`] runs random orders in which features come in one after the other, for any number of features.
//!
//! A feature whose value the two rows share makes no difference to the row that is put together, so that a row has one name:
//! the features in which it differs from the explained row, and the background's values there. Each is run once, and a feature
//! that has the explained row's value throughout the background gets exactly 0.

mod asking;
mod exact;
mod sampled;
#[cfg(test)]
mod tests;

use std::time::Instant;

use rustc_hash::FxHashMap;
use scoregate_schemas::feature_schema::Kind;

use self::asking::{Asking, Meeting};
use self::exact::Coalitions;
use super::Run;
use crate::features::{Column, FeatureRows, RowReader};
use crate::random::Random;
use crate::reference::BACKGROUND_ROWS;
use crate::runtime;

/// Features at most for which all coalitions are run.
pub const MOST_EXACT_FEATURES: usize = 12;

/// The seed of sampling, unless told otherwise: the same row has the same values again.
pub const SEED: u64 = 20_261_122;

/// Background rows that tell how many rows an explanation takes.
const EXPLAINED_TO_COUNT: usize = 10;

/// Why there can be no explanations against a background.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No rows, or more than can be taken.
    #[error("found {0} background rows, expected 1 to {BACKGROUND_ROWS}")]
    Rows(usize),
    /// The answers are not those of the rows.
    #[error(
        "found {found} numbers as the model's answers, expected as many for each of the {rows} background rows"
    )]
    Answers {
        /// Numbers that are there.
        found: usize,
        /// Background rows.
        rows: usize,
    },
}

/// A background, and everything about it that does not depend on the explained row.
#[derive(Debug)]
pub struct General {
    /// The rows; of unlisted categories each text once.
    background: FeatureRows,
    /// For each feature how many categories the schema lists.
    listed: Vec<usize>,
    /// For each feature and row a random number, the same where the value is.
    keys: Vec<Vec<u128>>,
    /// The model's answers to the rows, `width` numbers each.
    answers: Vec<f64>,
    width: usize,
    /// The rows in the order in which sampling takes them.
    order: Vec<usize>,
    /// Unless there are too many features.
    coalitions: Option<Coalitions>,
    /// Rows that all coalitions take, as a mean over some background rows that are explained.
    expected: usize,
}

/// A row to be explained.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'s> {
    /// Rows of the reader that read the background.
    pub rows: &'s FeatureRows,
    /// Which of them.
    pub row: usize,
    /// The model's answer to it.
    pub answer: &'s [f64],
}

/// How far sampling may go. One pair of orders is always done.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// Rows to run at most.
    pub rows: usize,
    /// When to end, looked at between runs: of a round that is not done by then only pairs of the first one count.
    pub deadline: Instant,
    /// What the orders are drawn by, [`SEED`] for one.
    pub seed: u64,
}

/// How the explained number of one row came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribution {
    /// One per feature, in the schema's order. They add up to `value - base`, but for rounding in double precision.
    pub values: Vec<f64>,
    /// One per value, where they were sampled.
    pub standard_errors: Option<Vec<f64>>,
    /// The mean of the explained number over the background rows.
    pub base: f64,
    /// The explained number of the row.
    pub value: f64,
    /// How many background rows stand for what is absent.
    pub background_rows: usize,
    /// How many rows the model ran.
    pub rows: usize,
}

impl General {
    /// Prepares explanations against `background`, rows of `reader`, to which the model answers `answers`: the same count of
    /// numbers for each.
    ///
    /// # Errors
    /// [`Error`] if there are no rows or more than [`BACKGROUND_ROWS`], or the answers are not as many for each.
    pub fn new(background: &FeatureRows, reader: &RowReader, answers: Vec<f64>) -> Result<Self, Error> {
        let rows = background.len();
        if !(1..=BACKGROUND_ROWS).contains(&rows) {
            return Err(Error::Rows(rows));
        }
        if answers.is_empty() || !answers.len().is_multiple_of(rows) {
            return Err(Error::Answers { found: answers.len(), rows });
        }
        let listed: Vec<usize> = reader
            .features()
            .map(|field| match &field.kind {
                Kind::Category { values: Some(values) } => values.len(),
                _ => 0,
            })
            .collect();
        let mut background = background.select(&(0..rows).collect::<Vec<_>>());
        for (column, listed) in background.columns.iter_mut().zip(&listed) {
            asking::merge_others(column, *listed);
        }
        let firsts: Vec<Vec<u8>> = background.columns.iter().map(|column| first_rows(column, rows)).collect();
        let mut random = Random::new(SEED, "keys of values");
        let mut bits = || random.below(usize::MAX) as u128;
        let keys = firsts.iter().map(|firsts| {
            let keys: Vec<u128> = firsts.iter().map(|_| bits() << 64 | bits()).collect();
            firsts.iter().map(|first| keys[usize::from(*first)]).collect()
        });
        let keys = keys.collect();
        let mut order: Vec<usize> = (0..rows).collect();
        Random::new(SEED, "order of background rows").shuffle(&mut order);
        let coalitions = (firsts.len() <= MOST_EXACT_FEATURES).then(|| Coalitions::new(&firsts, rows));
        let width = answers.len() / rows;
        let mut general = Self { background, listed, keys, answers, width, order, coalitions, expected: 0 };
        general.expected = general.count_rows().unwrap_or(0);
        Ok(general)
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.listed.len()
    }

    /// The model's answers to the background rows, as many numbers for each.
    pub fn answers(&self) -> &[f64] {
        &self.answers
    }

    /// Bytes that what is known beforehand takes, without the background itself.
    pub fn bytes(&self) -> usize {
        let of_values = self.keys.len() * self.background.len() * size_of::<u128>();
        of_values
            + size_of_val(self.answers.as_slice())
            + self.coalitions.as_ref().map_or(0, Coalitions::bytes)
    }

    /// Number of background rows.
    pub fn background_rows(&self) -> usize {
        self.background.len()
    }

    /// How many rows [`General::exact`] runs at most; none where there are more than [`MOST_EXACT_FEATURES`] features.
    pub fn exact_rows_at_most(&self) -> Option<usize> {
        self.coalitions.as_ref().map(Coalitions::rows_at_most)
    }

    /// How many rows [`General::exact`] runs for a row like those of the background, where many values are shared; none where
    /// there are more than [`MOST_EXACT_FEATURES`] features.
    pub fn exact_rows_expected(&self) -> Option<usize> {
        self.coalitions.as_ref().map(|_| self.expected)
    }

    /// How many rows [`General::exact`] runs for `subject`; none where there are more than [`MOST_EXACT_FEATURES`] features.
    pub fn exact_rows(&self, subject: Subject<'_>) -> Option<usize> {
        self.coalitions.as_ref().map(|coalitions| coalitions.rows(&Meeting::new(self, subject)))
    }

    /// How many rows [`General::sampled`] runs at most to take each background row once. Twice as many make good standard errors.
    pub fn rows_per_round_at_most(&self) -> usize {
        2 * self.features().saturating_sub(1) * self.background.len()
    }

    /// Shapley values from all coalitions; none where there are more than [`MOST_EXACT_FEATURES`] features. `run` answers rows,
    /// and `pick` takes the explained number out of an answer.
    ///
    /// # Errors
    /// Those of `run`, and [`runtime::Error::Output`] if it does not answer as many numbers per row as to the background.
    pub fn exact(
        &self,
        subject: Subject<'_>,
        run: &mut Run<'_>,
        pick: &dyn Fn(&[f64]) -> f64,
    ) -> Result<Option<Attribution>, runtime::Error> {
        let Some(coalitions) = &self.coalitions else { return Ok(None) };
        let meeting = Meeting::new(self, subject);
        let (value, answers) = (pick(subject.answer), self.picked(pick));
        let mut asking = Asking::new(self, &meeting, run, pick);
        let values = coalitions.values(&meeting, &mut asking, value, &answers)?;
        Ok(Some(Attribution {
            values,
            standard_errors: None,
            base: mean(&answers),
            value,
            background_rows: answers.len(),
            rows: asking.rows(),
        }))
    }

    /// Shapley values estimated from random orders of features. A *round* takes every background row once, with an order of its
    /// own and the reverse of that (an antithetic pair): features come in one after the other until the background row has
    /// become the explained one, and each is paid what its coming changes. So even one round adds up.
    ///
    /// There are as many rounds as `sampling` allows. Where it does not allow one, the pairs that it does allow are done with
    /// background rows drawn evenly, and these alone make the base. The same subject and sampling have the same values, unless the
    /// deadline ends them earlier.
    ///
    /// Standard errors come from how much pairs with the same background row differ between rounds. After one round alone they
    /// come from how much all its pairs differ, which counts as error what is different between background rows as well, and
    /// so tells too much for all rows, but also covers what other background rows would have said. Of a single pair the difference
    /// of its two orders has to do.
    ///
    /// # Errors
    /// As [`General::exact`].
    pub fn sampled(
        &self,
        subject: Subject<'_>,
        sampling: Sampling,
        run: &mut Run<'_>,
        pick: &dyn Fn(&[f64]) -> f64,
    ) -> Result<Attribution, runtime::Error> {
        let meeting = Meeting::new(self, subject);
        let mut asking = Asking::new(self, &meeting, run, pick);
        sampled::estimate(self, &meeting, sampling, &mut asking, pick(subject.answer), &self.picked(pick))
    }

    /// The mean of [`General::exact_rows`] over some of the background rows.
    fn count_rows(&self) -> Option<usize> {
        let some = &self.order[..self.order.len().min(EXPLAINED_TO_COUNT)];
        let rows = some.iter().map(|row| {
            let subject = Subject { rows: &self.background, row: *row, answer: &[] };
            self.exact_rows(subject)
        });
        rows.sum::<Option<usize>>().map(|rows| rows / some.len())
    }

    /// The explained number of each background row.
    fn picked(&self, pick: &dyn Fn(&[f64]) -> f64) -> Vec<f64> {
        self.answers.chunks_exact(self.width).map(pick).collect()
    }
}

/// For each row the first one with the same value.
fn first_rows(column: &Column, rows: usize) -> Vec<u8> {
    let mut first = FxHashMap::default();
    (0..rows).map(|row| *first.entry(asking::bits(column, row)).or_insert(row as u8)).collect()
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}
