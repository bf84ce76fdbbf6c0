//! [`Shared`]: scores in Redis, where all replicas find them. Nothing of a row can be read there, and what is not as it was
//! written is not found.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use scoregate_model::runtime::Score;
use tokio::sync::mpsc;

use super::key::{Key, Secret};
use super::size;
use super::worth::{Price, Size};
use crate::redis::{Error, Redis};
use crate::telemetry::metrics::CacheCounts;

/// The memory that scores may take which wait to be written: enough for a large batch. Beyond, they are left out: they will be
/// computed again.
const QUEUED_BYTES: usize = 32 * 1024 * 1024;

/// How many scores are asked for, or written, at once: the deadline is for all of them.
const AT_ONCE: usize = 512;

/// How far the clocks of replicas may be apart.
const CLOCKS: Duration = Duration::from_secs(1);

/// A score, its key, and when it was computed, since 1970.
type Computed = (Key, Score, Duration);

/// Scores in Redis.
pub(super) struct Shared {
    redis: Arc<Redis>,
    secret: Arc<Secret>,
    ttl: Duration,
    /// By size.
    prices: Arc<[Price; 2]>,
    queue: mpsc::UnboundedSender<Computed>,
    /// The bytes that wait in it.
    queued: Arc<AtomicUsize>,
    counts: CacheCounts,
}

impl Shared {
    pub(super) fn new(redis: Arc<Redis>, secret: Arc<Secret>, ttl: Duration, counts: CacheCounts) -> Self {
        let guess =
            |look_up, store| Price::guess(Duration::from_micros(look_up), Duration::from_micros(store));
        let prices = Arc::new([guess(150, 5), guess(5, 1)]);
        let (queue, computed) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            redis: Arc::clone(&redis),
            secret: Arc::clone(&secret),
            ttl,
            prices: Arc::clone(&prices),
            queued: Arc::clone(&queued),
            counts: counts.clone(),
        };
        drop(redis.spawn(writer.write(computed)));
        Self { redis, secret, ttl, prices, queue, queued, counts }
    }

    /// What it costs to look up and store a row, in requests of this size.
    pub(super) fn price(&self, size: Size) -> &Price {
        &self.prices[size as usize]
    }

    /// The scores under `keys`, and how long they are kept yet; of the first so many as Redis has answered for within its
    /// deadline, which is one for all of them.
    pub(super) async fn find(
        &self,
        size: Size,
        keys: &[Key],
        width: usize,
    ) -> Vec<Option<(Score, Duration)>> {
        let mut found = Vec::with_capacity(keys.len());
        let asking = async {
            for part in keys.chunks(AT_ONCE) {
                let (begin, names) = (Instant::now(), part.iter().map(Key::name).collect::<Vec<_>>());
                let values = match self.redis.get_many(&names).await {
                    // An answer of another length is about other keys.
                    Ok(values) if values.len() == part.len() => values,
                    Err(Error::Late) => {
                        self.price(size).looked_up(begin.elapsed(), part.len());
                        break;
                    }
                    Ok(_) | Err(_) => break,
                };
                found.extend(part.iter().zip(values).map(|(key, value)| self.open(key, value?, width)));
                self.price(size).looked_up(begin.elapsed(), part.len());
            }
        };
        // What was answered by then is answered.
        let _ = tokio::time::timeout(self.redis.timeout(), asking).await;
        self.counts.failed.inc_by((keys.len() - found.len()) as u64);
        found
    }

    fn open(&self, key: &Key, value: Vec<u8>, width: usize) -> Option<(Score, Duration)> {
        let Some((score, at)) = self.secret.open_sealed(key, value, width) else {
            self.counts.garbled.inc();
            return None;
        };
        // What is older than it may be, and what another clock says is still to come, is not kept any longer.
        let now = since_1970();
        let left = self.ttl.saturating_sub(now.saturating_sub(at));
        if left.is_zero() || at > now + CLOCKS {
            self.counts.expired.inc();
            return None;
        }
        Some((score, left))
    }

    /// Writes a score that was just computed, when there is time.
    pub(super) fn store(&self, key: Key, score: Score) {
        let size = size(&score);
        let room = |queued: usize| queued.checked_add(size).filter(|queued| *queued <= QUEUED_BYTES);
        let is_taken = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok();
        if !is_taken || self.queue.send((key, score, since_1970())).is_err() {
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
    queued: Arc<AtomicUsize>,
    counts: CacheCounts,
}

impl Writer {
    /// Writes for as long as there is anybody who stores.
    async fn write(self, mut computed: mpsc::UnboundedReceiver<Computed>) {
        let mut scores = Vec::with_capacity(AT_ONCE);
        while computed.recv_many(&mut scores, AT_ONCE).await > 0 {
            let (begin, count) = (Instant::now(), scores.len());
            let bytes: usize = scores.iter().map(|(_, score, _)| size(score)).sum();
            self.queued.fetch_sub(bytes, Ordering::Relaxed);
            let sealed =
                scores.drain(..).map(|(key, score, at)| (key.name(), self.secret.seal(&key, &score, at)));
            let sealed: Vec<(String, Vec<u8>)> = sealed.collect();
            // Nobody waits for the rest: what storing costs is the work.
            for price in self.prices.iter() {
                price.stored(begin.elapsed(), count);
            }
            match self.redis.set_many(&sealed, self.ttl).await {
                Ok(()) => self.counts.stored.inc_by(count as u64),
                Err(_) => self.counts.dropped.inc_by(count as u64),
            };
        }
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
