//! Scores that were computed before: in this process, and in Redis for all replicas.
//!
//! What is kept is the score of one row for one version and one tenant, by [`Key`], for a fixed time. [`Worth`] says which of
//! the two levels is worth looking at; [`flights`] has concurrent requests for the same row compute it once.

mod flights;
mod key;
mod shared;
mod worth;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scoregate_model::features::{FeatureRows, RowReader};
use scoregate_model::runtime::Score;
use tokio::runtime::Handle;

use self::flights::Flights;
pub use self::flights::{Follow, Join, Lead};
pub use self::key::{Error, Key};
use self::key::{Secret, Spread};
use self::shared::Shared;
use self::worth::Price;
pub use self::worth::{Estimate, Size, Worth};
use crate::auth::Caller;
use crate::config::{CacheMode, CacheSettings};
use crate::redis::Redis;
use crate::telemetry::metrics::CacheCounts;

/// Of this many keys one is always kept, in either level: whether more would be found is known from these.
const SAMPLE: u64 = 32;

/// What an entry takes in process beside the numbers of its score: key, times, and what moka needs for each.
const ENTRY_BYTES: usize = 256;

/// Where scores are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// In this process.
    Memory,
    /// In Redis.
    Redis,
}

impl Level {
    /// Both, the nearer first.
    pub const ALL: [Self; 2] = [Self::Memory, Self::Redis];

    /// A stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }
}

/// What a request wants of the cache, as `Cache-Control` says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    /// `no-cache`: to be computed anew.
    pub fresh: bool,
    /// `no-store`: not to be kept.
    pub unkept: bool,
    /// `max-age`: not to be older than this.
    pub max_age: Option<Duration>,
}

/// What became of a request at one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every row was found; the first goes in so much time.
    Hit(Duration),
    /// Some of the rows were found.
    Partial {
        /// Those that were.
        found: usize,
        /// Of so many.
        rows: usize,
    },
    /// None was.
    Miss,
    /// The request asked for a score that is newer than what is there, or than whatever is there.
    Unwanted,
    /// It could not be asked.
    OutOfReach,
}

/// What became of a request at both levels; nothing at a level that was not consulted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// In this process.
    pub memory: Option<Outcome>,
    /// In Redis.
    pub redis: Option<Outcome>,
    /// Whether the score is kept now that was not found.
    pub stored: bool,
    /// Whether it was computed for another request that asked for the same.
    pub collapsed: bool,
}

/// A score that is kept in process.
#[derive(Debug, Clone)]
struct Kept {
    score: Score,
    until: Instant,
}

/// Which levels are used for a key.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    memory: bool,
    redis: bool,
    /// Whether look-ups are measured.
    timed: bool,
}

impl Plan {
    /// Whether no level is used.
    pub fn is_empty(self) -> bool {
        !self.memory && !self.redis
    }

    /// Whether the one in process is.
    pub fn has_memory(self) -> bool {
        self.memory
    }

    /// Whether Redis is.
    pub fn has_redis(self) -> bool {
        self.redis
    }
}

/// Scores that were computed before.
pub struct Cache {
    mode: CacheMode,
    ttl: Duration,
    secret: Arc<Secret>,
    kept: moka::sync::Cache<Key, Kept, Spread>,
    shared: Option<Shared>,
    flights: Flights,
    memory_price: Price,
    counts: CacheCounts,
}

impl Cache {
    /// A cache as the settings have it, shared through `redis` where there is one and a key for it, whose work is done on
    /// `runtime` and counted in `counts`.
    ///
    /// # Errors
    /// [`Error`] if the file with the key cannot be used.
    pub fn open(
        settings: &CacheSettings,
        redis: Option<Arc<Redis>>,
        counts: CacheCounts,
        runtime: &Handle,
    ) -> Result<Self, Error> {
        let is_shared = matches!(settings.mode, CacheMode::Auto | CacheMode::Redis);
        let secret = settings.key_file.as_deref().filter(|_| is_shared).map(Secret::open).transpose()?;
        if is_shared && redis.is_some() && secret.is_none() {
            tracing::info!(
                "scores are cached in this process alone: to share them through Redis, give all replicas the same \
                 SCOREGATE_CACHE_KEY_FILE"
            );
        }
        let redis = redis.filter(|_| secret.is_some());
        let secret = Arc::new(secret.unwrap_or_else(Secret::random));
        let weigh = |_: &Key, kept: &Kept| {
            u32::try_from(ENTRY_BYTES + 8 * kept.score.values().len()).unwrap_or(u32::MAX)
        };
        let kept = moka::sync::Cache::builder()
            .max_capacity(settings.bytes as u64)
            .weigher(weigh)
            .time_to_live(settings.ttl)
            .build_with_hasher(Spread::default());
        let shared =
            redis.map(|redis| Shared::new(redis, Arc::clone(&secret), settings.ttl, counts.clone(), runtime));
        Ok(Self {
            mode: settings.mode,
            ttl: settings.ttl,
            secret,
            kept,
            shared,
            flights: Flights::new(),
            memory_price: Price::guess(Duration::from_nanos(500), Duration::from_nanos(1_500)),
            counts,
        })
    }

    /// Whether anything may be kept at all.
    pub fn is_on(&self) -> bool {
        self.mode != CacheMode::Off
    }

    /// Whether it is worth working out keys for requests of this size.
    pub fn is_worth_a_key(&self, worth: &Worth, size: Size) -> bool {
        match self.mode {
            CacheMode::Off => false,
            CacheMode::Auto => worth.is_worth_a_key(size),
            CacheMode::Memory | CacheMode::Redis => true,
        }
    }

    /// The key of checked row `row` for the version of this `fingerprint` and the tenant of `caller`.
    pub fn key(
        &self,
        fingerprint: &[u8; 32],
        caller: &Caller,
        reader: &RowReader,
        rows: &FeatureRows,
        row: usize,
    ) -> Key {
        thread_local! {
            static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BYTES.with_borrow_mut(|bytes| {
            bytes.clear();
            bytes.extend_from_slice(fingerprint);
            // What is asked for: a score.
            bytes.push(b's');
            let (kind, owner) = match caller.tenant() {
                Some(tenant) => (b't', tenant),
                // A caller without a tenant is its own.
                None => (b'c', caller.id()),
            };
            bytes.push(kind);
            bytes.extend_from_slice(&(owner.len() as u64).to_le_bytes());
            bytes.extend_from_slice(owner.as_bytes());
            reader.write_canonical(rows, row, bytes);
            self.secret.key(bytes)
        })
    }

    /// Which levels are used for `key`, in a request of this size.
    pub fn plan(&self, worth: &Worth, size: Size, key: &Key) -> Plan {
        let is_sample = |part| key.spread(part).is_multiple_of(SAMPLE);
        let is_used = |level, part| match self.mode {
            CacheMode::Off => false,
            CacheMode::Auto => is_sample(part) || self.estimate(worth, level, size).used,
            CacheMode::Memory | CacheMode::Redis => true,
        };
        let memory = is_used(Level::Memory, 1);
        let redis = self.shared.is_some() && is_used(Level::Redis, 3);
        Plan { memory, redis, timed: is_sample(1) }
    }

    /// What a level costs and saves.
    fn estimate(&self, worth: &Worth, level: Level, size: Size) -> Estimate {
        let price = match (level, &self.shared) {
            (Level::Redis, Some(shared)) => shared.price(size),
            _ => &self.memory_price,
        };
        worth.estimate(level, size, price)
    }

    /// The score that is kept in process under `key`, and how long it is.
    pub fn find(
        &self,
        worth: &Worth,
        key: &Key,
        wish: Wish,
        plan: Plan,
    ) -> Result<(Score, Duration), Outcome> {
        if wish.fresh {
            return Err(Outcome::Unwanted);
        }
        let begin = plan.timed.then(Instant::now);
        let kept = self.kept.get(key);
        let now = Instant::now();
        if let Some(begin) = begin {
            self.memory_price.looked_up(now - begin, 1);
        }
        let found = kept.map(|kept| (kept.score, kept.until.saturating_duration_since(now)));
        let found = found.filter(|(_, left)| !left.is_zero());
        self.note(worth, Level::Memory, usize::from(found.is_some()), 1);
        let (score, left) = found.ok_or(Outcome::Miss)?;
        if self.is_wanted(wish, left) { Ok((score, left)) } else { Err(Outcome::Unwanted) }
    }

    /// The scores that are kept in Redis under `keys`, and how long they are.
    pub async fn find_shared(
        &self,
        worth: &Worth,
        size: Size,
        keys: &[Key],
        width: usize,
        wish: Wish,
    ) -> Result<Vec<Option<(Score, Duration)>>, Outcome> {
        let Some(shared) = self.shared.as_ref() else { return Err(Outcome::OutOfReach) };
        if wish.fresh {
            return Err(Outcome::Unwanted);
        }
        let mut found = shared.find(size, keys, width).await.ok_or(Outcome::OutOfReach)?;
        self.note(worth, Level::Redis, found.iter().flatten().count(), found.len());
        for found in &mut found {
            found.take_if(|(_, left)| !self.is_wanted(wish, *left));
        }
        Ok(found)
    }

    fn is_wanted(&self, wish: Wish, left: Duration) -> bool {
        wish.max_age.is_none_or(|most| self.ttl.saturating_sub(left) <= most)
    }

    fn note(&self, worth: &Worth, level: Level, found: usize, rows: usize) {
        if rows == 0 {
            return;
        }
        worth.looked_up(level, found as f64 / rows as f64, rows);
        let counts = &self.counts.levels[level as usize];
        counts.hits.inc_by(found as u64);
        counts.misses.inc_by((rows - found) as u64);
    }

    /// Who computes the row of `key`, for which nothing was found.
    pub fn join(&self, key: &Key, plan: Plan) -> Join {
        let join = self.flights.join(key);
        // A score is kept before it lands: whoever leads after that finds it.
        if let (Join::Lead(_), true) = (&join, plan.memory)
            && let Some(kept) = self.kept.get(key)
            && let left = kept.until.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            return Join::Landed(kept.score, left);
        }
        join
    }

    /// Keeps a score that was just computed.
    pub fn store(&self, key: &Key, score: &Score, plan: Plan) {
        self.keep(key, score, self.ttl, plan);
        if plan.redis
            && let Some(shared) = &self.shared
        {
            shared.store(*key, score.clone());
        }
    }

    /// Keeps a score in process for the time that is `left` of its own.
    pub fn keep(&self, key: &Key, score: &Score, left: Duration, plan: Plan) {
        if plan.memory {
            let begin = Instant::now();
            self.kept.insert(*key, Kept { score: score.clone(), until: begin + left });
            if plan.timed {
                self.memory_price.stored(begin.elapsed(), 1);
            }
        }
    }

    /// How scores are kept.
    pub fn mode(&self) -> CacheMode {
        self.mode
    }

    /// How long.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// What each level that there is costs and saves a version, for requests of one row.
    pub fn estimates(&self, worth: &Worth) -> impl Iterator<Item = (Level, Estimate)> {
        let levels = Level::ALL.into_iter().filter(|level| match level {
            Level::Memory => self.is_on(),
            Level::Redis => self.is_on() && self.shared.is_some(),
        });
        levels.map(move |level| {
            let estimate = self.estimate(worth, level, Size::Single);
            (level, Estimate { used: estimate.used || self.mode != CacheMode::Auto, ..estimate })
        })
    }

    /// How many scores are kept in process, and the bytes that they take, about.
    pub fn size(&self) -> (u64, u64) {
        self.kept.run_pending_tasks();
        (self.kept.entry_count(), self.kept.weighted_size())
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Cache")
            .field("mode", &self.mode)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}
