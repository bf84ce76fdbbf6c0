//! [`Flights`]: rows that are being computed, so that others who ask for the same wait instead of computing them too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use scoregate_model::runtime::Score;
use tokio::sync::watch;

use super::key::{Key, Spread};

/// Tables that are locked apart, so that threads seldom wait for one another.
const PARTS: usize = 64;

type Part = HashMap<Key, watch::Receiver<Option<Score>>, Spread>;

/// The rows that are being computed.
#[derive(Debug)]
pub(super) struct Flights(Arc<[Mutex<Part>]>);

/// Whoever computes a row. When it goes away without a score, those who wait try for themselves.
#[derive(Debug)]
pub struct Lead {
    flights: Arc<[Mutex<Part>]>,
    key: Key,
    score: watch::Sender<Option<Score>>,
}

/// Whoever waits for a row that somebody else computes.
#[derive(Debug)]
pub struct Follow(watch::Receiver<Option<Score>>);

/// What there is to do for a row.
#[derive(Debug)]
pub enum Join {
    /// Compute it.
    Lead(Lead),
    /// Wait for it.
    Follow(Follow),
    /// Nothing: it was computed in the meantime.
    Landed(Score, Duration),
}

impl Flights {
    pub(super) fn new() -> Self {
        Self((0..PARTS).map(|_| Mutex::default()).collect())
    }

    /// Leads, or follows whoever does.
    pub(super) fn join(&self, key: &Key) -> Join {
        let mut part = part(&self.0, key);
        if let Some(score) = part.get(key) {
            return Join::Follow(Follow(score.clone()));
        }
        let (score, waiting) = watch::channel(None);
        part.insert(*key, waiting);
        Join::Lead(Lead { flights: Arc::clone(&self.0), key: *key, score })
    }
}

impl Lead {
    /// Gives the score to those who wait.
    pub fn land(self, score: &Score) {
        // Where nobody waits, nobody needs a copy.
        if self.score.receiver_count() > 1 {
            self.score.send_replace(Some(score.clone()));
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        part(&self.flights, &self.key).remove(&self.key);
    }
}

impl Follow {
    /// The score; none if whoever computed it failed or was given up.
    pub async fn score(mut self) -> Option<Score> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

fn part<'f>(flights: &'f [Mutex<Part>], key: &Key) -> MutexGuard<'f, Part> {
    flights[key.spread(2) as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::key::Secret;
    use super::*;

    fn lead(flights: &Flights, key: &Key) -> Lead {
        match flights.join(key) {
            Join::Lead(lead) => lead,
            other => panic!("{other:?}"),
        }
    }

    fn follow(flights: &Flights, key: &Key) -> Follow {
        match flights.join(key) {
            Join::Follow(follow) => follow,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_score_is_computed_by_one_for_all_who_wait() {
        let (flights, secret) = (Flights::new(), Secret::random());
        let (key, other) = (secret.key(b"a"), secret.key(b"b"));
        let (first, second) = (lead(&flights, &key), lead(&flights, &other));
        let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(follow(&flights, &key).score())).collect();
        let late = follow(&flights, &key);
        first.land(&Score::One(0.5));
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), Some(Score::One(0.5)));
        }
        assert_eq!(late.score().await, Some(Score::One(0.5)));
        // Whoever comes next computes it anew: what is kept is the cache's business.
        drop((lead(&flights, &key), second));
        assert!(flights.0.iter().all(|part| part.lock().unwrap().is_empty()));
    }

    #[tokio::test]
    async fn who_waits_for_one_that_fails_tries_for_itself() {
        let (flights, key) = (Flights::new(), Secret::random().key(b"a"));
        let first = lead(&flights, &key);
        let waiting = tokio::spawn(follow(&flights, &key).score());
        drop(first);
        assert_eq!(waiting.await.unwrap(), None);
        lead(&flights, &key).land(&Score::One(1.0));
    }
}
