//! [`Shared`]: scores in Redis, where all replicas find them. Nothing of a row can be read there, and what is not as it was
//! written is not found.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use scoregate_model::runtime::Score;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::key::{Key, Secret};
use super::worth::{Price, Size};
use crate::redis::Redis;
use crate::telemetry::metrics::CacheCounts;

/// How many scores may wait to be written: those of a large batch. Beyond, they are left out: they will be computed again.
const QUEUE: usize = 128 * 1024;

/// How many scores are asked for, or written, at once: the deadline is for all of them.
const AT_ONCE: usize = 512;

/// Scores in Redis.
pub(super) struct Shared {
    redis: Arc<Redis>,
    secret: Arc<Secret>,
    ttl: Duration,
    /// By size.
    prices: Arc<[Price; 2]>,
    queue: mpsc::Sender<(Key, Score)>,
    counts: CacheCounts,
}

impl Shared {
    pub(super) fn new(
        redis: Arc<Redis>,
        secret: Arc<Secret>,
        ttl: Duration,
        counts: CacheCounts,
        runtime: &Handle,
    ) -> Self {
        let guess =
            |look_up, store| Price::guess(Duration::from_micros(look_up), Duration::from_micros(store));
        let prices = Arc::new([guess(150, 50), guess(5, 5)]);
        let (queue, queued) = mpsc::channel(QUEUE);
        let writer = Writer {
            redis: Arc::clone(&redis),
            secret: Arc::clone(&secret),
            ttl,
            prices: Arc::clone(&prices),
            counts: counts.clone(),
        };
        runtime.spawn(writer.write(queued));
        Self { redis, secret, ttl, prices, queue, counts }
    }

    /// What it costs to look up and store a row, in requests of this size.
    pub(super) fn price(&self, size: Size) -> &Price {
        &self.prices[size as usize]
    }

    /// The scores under `keys`, and how long they are kept yet; nothing if Redis did not answer.
    pub(super) async fn find(
        &self,
        size: Size,
        keys: &[Key],
        width: usize,
    ) -> Option<Vec<Option<(Score, Duration)>>> {
        let begin = Instant::now();
        let mut found = Vec::with_capacity(keys.len());
        for part in keys.chunks(AT_ONCE) {
            let names: Vec<String> = part.iter().map(Key::name).collect();
            let Ok(values) = self.redis.get_many(&names).await else {
                self.counts.failed.inc_by((keys.len() - found.len()) as u64);
                break;
            };
            found.extend(part.iter().zip(values).map(|(key, value)| self.open(key, value?, width)));
        }
        let took = begin.elapsed();
        self.price(size).looked_up(took, found.len().max(1));
        if found.is_empty() && !keys.is_empty() {
            return None;
        }
        found.resize(keys.len(), None);
        Some(found)
    }

    fn open(&self, key: &Key, value: Vec<u8>, width: usize) -> Option<(Score, Duration)> {
        let Some((score, at)) = self.secret.open_sealed(key, value, width) else {
            self.counts.garbled.inc();
            return None;
        };
        // The clocks of replicas may differ: nothing is kept for longer than the time that is set.
        let age = since_1970().saturating_sub(at);
        let left = self.ttl.saturating_sub(age);
        (!left.is_zero()).then_some((score, left))
    }

    /// Writes a score that was just computed, when there is time.
    pub(super) fn store(&self, key: Key, score: Score) {
        if self.queue.try_send((key, score)).is_err() {
            self.counts.dropped.inc();
        }
    }
}

/// Writes scores, as many at once as have come in the meantime.
struct Writer {
    redis: Arc<Redis>,
    secret: Arc<Secret>,
    ttl: Duration,
    prices: Arc<[Price; 2]>,
    counts: CacheCounts,
}

impl Writer {
    /// Writes for as long as there is anybody who stores.
    async fn write(self, mut queued: mpsc::Receiver<(Key, Score)>) {
        let mut scores = Vec::with_capacity(AT_ONCE);
        while queued.recv_many(&mut scores, AT_ONCE).await > 0 {
            let (begin, count) = (Instant::now(), scores.len());
            let at = since_1970();
            let sealed =
                scores.drain(..).map(|(key, score)| (key.name(), self.secret.seal(&key, &score, at)));
            let sealed: Vec<(String, Vec<u8>)> = sealed.collect();
            match self.redis.set_many(&sealed, self.ttl).await {
                Ok(()) => self.counts.stored.inc_by(count as u64),
                Err(_) => self.counts.dropped.inc_by(count as u64),
            };
            // Rows are written together whatever they came from.
            for price in self.prices.iter() {
                price.stored(begin.elapsed(), count);
            }
        }
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
