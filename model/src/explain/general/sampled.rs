//! Random orders of features, each with its reverse.
//!
//! Background rows are strata: each is taken equally often, so that their differences are no error of the estimate.

use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::asking::{Asking, Meeting};
use super::{Attribution, General, Sampling, mean};
use crate::random::Random;
use crate::runtime;

/// Estimates the values of the row that `meeting` is about, whose number is `value`; `answers` are the background's.
pub(super) fn estimate(
    general: &General,
    meeting: &Meeting,
    sampling: Sampling,
    asking: &mut Asking<'_, '_>,
    value: f64,
    answers: &[f64],
) -> Result<Attribution, runtime::Error> {
    let (mut strata, mut round_rows) = (Vec::new(), 0);
    for row in &general.order {
        // Both ways begin with the background row and end with the explained one, whose numbers are known.
        let rows = 2 * meeting.differing()[*row].len().saturating_sub(1);
        if round_rows + rows > sampling.rows && !strata.is_empty() {
            break;
        }
        round_rows += rows;
        strata.push(*row);
    }
    let is_whole = strata.len() == general.order.len();
    let rounds = if is_whole { sampling.rows.checked_div(round_rows).unwrap_or(1) } else { 1 };

    let mut walks = Walks::new(general, meeting, sampling, asking.words());
    let mut tally = Tally::new(strata.len(), general.features());
    let mut took = Duration::ZERO;
    for round in 0..rounds.max(1) {
        let started = Instant::now();
        if round > 0 && started + took > sampling.deadline {
            break;
        }
        asking.restart(std::iter::once(value).chain(answers.iter().copied()));
        let pairs = walks.pairs(&strata, asking)?;
        if pairs.len() < strata.len() {
            // Only whole rounds can be put together, but some pairs are better than none.
            if round > 0 {
                break;
            }
            strata.truncate(pairs.len());
            tally = Tally::new(strata.len(), general.features());
        }
        asking.flush()?;
        tally.add(&pairs, asking.numbers());
        took = started.elapsed();
    }
    let taken: Vec<f64> = strata.iter().map(|row| answers[*row]).collect();
    Ok(Attribution {
        values: tally.values(),
        standard_errors: Some(tally.standard_errors()),
        base: mean(&taken),
        value,
        background_rows: taken.len(),
        rows: asking.rows(),
    })
}

/// Ways from background rows to the explained one.
struct Walks<'a> {
    general: &'a General,
    meeting: &'a Meeting,
    deadline: Instant,
    random: Random,
    /// For each background row its key and the features in which it differs, one bit each.
    starts: Vec<(u128, Vec<u64>)>,
    /// Where the numbers of this round's rows are, by key. A row's key is made of those of the values that differ from the explained
    /// row's; of 2^128 keys two rows do not get the same one.
    known: FxHashMap<u128, usize>,
}

/// A background row's way to the explained one in some order of features, and in the reverse of it.
struct Pair {
    /// The features that differ, in the order in which they come in.
    order: Vec<usize>,
    /// Where the numbers before and after each of them are.
    there: Vec<usize>,
    /// The same for the reverse.
    back: Vec<usize>,
}

impl<'a> Walks<'a> {
    fn new(general: &'a General, meeting: &'a Meeting, sampling: Sampling, words: usize) -> Self {
        let start = |(row, differing): (usize, &Vec<usize>)| {
            let mut start = (0, vec![0; words]);
            for feature in differing {
                start.0 ^= general.keys[*feature][row];
                start.1[feature / 64] |= 1 << (feature % 64);
            }
            start
        };
        Self {
            general,
            meeting,
            deadline: sampling.deadline,
            random: Random::new(sampling.seed, "orders of features"),
            starts: meeting.differing().iter().enumerate().map(start).collect(),
            known: FxHashMap::default(),
        }
    }

    /// Asks for what one round needs: a pair for each of the background rows `strata`, or fewer where the deadline passes. The
    /// first number that is known is the explained row's, the others are those of the background.
    fn pairs(&mut self, strata: &[usize], asking: &mut Asking<'_, '_>) -> Result<Vec<Pair>, runtime::Error> {
        self.known.clear();
        self.known.insert(0, 0);
        for (row, (key, _)) in self.starts.iter().enumerate() {
            self.known.entry(*key).or_insert(row + 1);
        }
        let mut pairs = Vec::with_capacity(strata.len());
        let mut rows = asking.rows();
        for row in strata {
            let mut order = self.meeting.differing()[*row].clone();
            self.random.shuffle(&mut order);
            let there = self.walk(*row, order.iter(), asking)?;
            let back = self.walk(*row, order.iter().rev(), asking)?;
            pairs.push(Pair { order, there, back });
            if asking.rows() > rows {
                rows = asking.rows();
                if Instant::now() > self.deadline {
                    break;
                }
            }
        }
        Ok(pairs)
    }

    /// Where the numbers are of the rows on the way from a background row to the explained one.
    fn walk<'o>(
        &mut self,
        row: usize,
        order: impl ExactSizeIterator<Item = &'o usize>,
        asking: &mut Asking<'_, '_>,
    ) -> Result<Vec<usize>, runtime::Error> {
        let (mut key, mut absent) = self.starts[row].clone();
        let mut places = Vec::with_capacity(order.len() + 1);
        places.push(self.known[&key]);
        for feature in order {
            key ^= self.general.keys[*feature][row];
            absent[feature / 64] &= !(1 << (feature % 64));
            places.push(match self.known.entry(key) {
                Entry::Occupied(place) => *place.get(),
                Entry::Vacant(place) => *place.insert(asking.ask(row, &absent)?),
            });
        }
        Ok(places)
    }
}

/// What pairs paid to features, for each background row.
struct Tally {
    features: usize,
    rounds: usize,
    /// For each row and feature the mean over the rounds.
    means: Vec<f64>,
    /// For each row and feature the sum of squared distances from the mean.
    squares: Vec<f64>,
    /// For each feature half of what the last pair's two orders differed by.
    apart: Vec<f64>,
}

impl Tally {
    fn new(rows: usize, features: usize) -> Self {
        let zeros = vec![0.0; rows * features];
        Self { features, rounds: 0, means: zeros.clone(), squares: zeros, apart: vec![0.0; features] }
    }

    /// Adds a round.
    fn add(&mut self, pairs: &[Pair], numbers: &[f64]) {
        self.rounds += 1;
        let paid = |places: &[usize]| numbers[places[1]] - numbers[places[0]];
        for (at, pair) in pairs.iter().enumerate() {
            let ways = pair.there.windows(2).zip(pair.back.windows(2).rev());
            for (feature, (there, back)) in pair.order.iter().zip(ways) {
                let (there, back) = (paid(there), paid(back));
                let (mean, apart) = ((there + back) / 2.0, (there - back) / 2.0);
                let cell = at * self.features + feature;
                // Welford's way: what is far from 0 and differs little keeps its digits.
                let distance = mean - self.means[cell];
                self.means[cell] += distance / self.rounds as f64;
                self.squares[cell] += distance * (mean - self.means[cell]);
                self.apart[*feature] = apart;
            }
        }
    }

    fn rows(&self) -> usize {
        self.means.len() / self.features.max(1)
    }

    /// For each feature the mean over the rows.
    fn values(&self) -> Vec<f64> {
        (0..self.features)
            .map(|feature| self.of(&self.means, feature).sum::<f64>() / self.rows() as f64)
            .collect()
    }

    fn standard_errors(&self) -> Vec<f64> {
        let (rows, rounds) = (self.rows() as f64, self.rounds as f64);
        if self.rounds > 1 {
            let variance = |feature| {
                self.of(&self.squares, feature).sum::<f64>() / (rounds - 1.0) / rounds / (rows * rows)
            };
            return (0..self.features).map(|feature| variance(feature).sqrt()).collect();
        }
        if self.rows() == 1 {
            return self.apart.iter().map(|apart| apart.abs()).collect();
        }
        let spread = |(feature, mean): (usize, f64)| {
            let squares = self.of(&self.means, feature).map(|paid| (paid - mean).powi(2));
            (squares.sum::<f64>() / (rows - 1.0) / rows).sqrt()
        };
        self.values().into_iter().enumerate().map(spread).collect()
    }

    /// One feature's cells.
    fn of<'t>(&self, cells: &'t [f64], feature: usize) -> impl Iterator<Item = f64> + use<'t> {
        cells.iter().skip(feature).step_by(self.features).copied()
    }
}
