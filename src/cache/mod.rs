//! Scores that were computed before: in this process, and in Redis for all replicas.
//!
//! What is kept is the score of one row for one version and one tenant, or its explanation, by [`Key`], for a fixed time.
//! [`Worth`] says which of the two levels is worth looking at; [`flights`] has concurrent requests for the same row compute it
//! once.

mod flights;
mod key;
mod seen;
mod shared;
mod worth;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::DefaultLifecycle;
use scoregate_model::features::{FeatureRows, RowReader};
use scoregate_model::runtime::Score;

use self::flights::Flights;
pub use self::flights::{Follow, Join, Lead};
pub use self::key::{Error, Key};
use self::key::{Secret, Spread};
use self::seen::Seen;
use self::shared::Shared;
pub use self::worth::{Estimate, Worth};
use self::worth::{Price, Size};
use crate::auth::Caller;
use crate::config::{CacheMode, CacheSettings};
use crate::redis::Redis;
use crate::telemetry::metrics::CacheCounts;

/// Of this many keys one is always looked for in Redis: whether more would be found is known from these, which are the same
/// for all replicas.
const SAMPLE: u64 = 32;

/// The same where Redis takes longer than computing, only to know if that changes; and in batches, where one key is enough to
/// have all wait for Redis.
const RARE_SAMPLE: u64 = 1_024;

/// Of this many keys the look-up of one is measured in process.
const TIMED: u64 = 32;

/// What an entry takes in process, as measured, beside the numbers of a score that has several.
const ENTRY_BYTES: usize = 104;

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

/// What is kept of a row: numbers, either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Its score.
    Score,
    /// Its explanation, as this question has it.
    Explanation([u8; 6]),
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
    /// Whether what was not found in process is kept there now. What is to be kept in Redis is written later, if it can be.
    pub stored: bool,
    /// Whether it was computed for another request that asked for the same.
    pub collapsed: bool,
}

impl Status {
    /// Whether any level was consulted.
    pub fn is_known(&self) -> bool {
        self.memory.is_some() || self.redis.is_some()
    }

    /// Whether anything had to be computed for this request.
    pub fn is_computed(&self) -> bool {
        let is_hit = |level| matches!(level, Some(Outcome::Hit(_)));
        !(is_hit(self.memory) || is_hit(self.redis) || self.collapsed)
    }
}

/// The bytes that a score takes in process.
fn size(score: &Score) -> usize {
    let more = match score {
        Score::One(_) => 0,
        Score::Classes(numbers) => 16 + size_of_val::<[f64]>(numbers),
    };
    ENTRY_BYTES + more
}

/// What an entry weighs.
#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Key, Kept> for Bytes {
    fn weight(&self, _: &Key, kept: &Kept) -> u64 {
        size(&kept.score) as u64
    }
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
    /// Whether look-ups in process are measured.
    timed: bool,
    /// Whether the key is one of those from which is learned what Redis has.
    sample: bool,
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
    /// Entries that have had their time stay until others need the room: no thread has to look for them.
    kept: quick_cache::sync::Cache<Key, Kept, Bytes, Spread>,
    shared: Option<Shared>,
    flights: Flights,
    /// Where that decides something.
    seen: Option<Seen>,
    memory_price: Price,
    counts: CacheCounts,
}

impl Cache {
    /// A cache as the settings have it, shared through `redis` where there is one and a key for it, whose rows
    /// are counted in `counts`.
    ///
    /// # Errors
    /// [`Error`] if the file with the key cannot be used.
    pub fn open(
        settings: &CacheSettings,
        redis: Option<Arc<Redis>>,
        counts: CacheCounts,
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
        // Where nothing is kept there is no need of room.
        let bytes = if settings.mode == CacheMode::Off { ENTRY_BYTES } else { settings.bytes };
        let kept = quick_cache::sync::Cache::with(
            bytes / ENTRY_BYTES,
            bytes as u64,
            Bytes,
            Spread::default(),
            DefaultLifecycle::default(),
        );
        let shared = redis.map(|redis| Shared::new(redis, Arc::clone(&secret), settings.ttl, counts.clone()));
        Ok(Self {
            mode: settings.mode,
            ttl: settings.ttl,
            secret,
            kept,
            shared,
            flights: Flights::new(),
            seen: (settings.mode == CacheMode::Auto).then(|| Seen::new(settings.ttl, Instant::now())),
            memory_price: Price::guess(Duration::from_nanos(500), Duration::from_nanos(1_500)),
            counts,
        })
    }

    /// Whether anything may be kept at all.
    pub fn is_on(&self) -> bool {
        self.mode != CacheMode::Off
    }

    /// Whether it is worth working out the keys of a request of `rows` rows.
    pub fn is_worth_keys(&self, worth: &Worth, rows: usize) -> bool {
        match self.mode {
            CacheMode::Off => false,
            CacheMode::Auto => worth.is_worth_keys(rows),
            CacheMode::Memory | CacheMode::Redis => rows > 0,
        }
    }

    /// The key of what is `asked` of checked row `row` for the version of this `fingerprint` and the tenant of `caller`.
    pub fn key(
        &self,
        asked: Asked,
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
            // The first byte says how many of what is asked follow.
            match asked {
                Asked::Score => bytes.push(b's'),
                Asked::Explanation(question) => {
                    bytes.push(b'e');
                    bytes.extend_from_slice(&question);
                }
            }
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

    /// Which levels are used for each of the `keys` of a request.
    pub fn plan<'k>(
        &self,
        worth: &Worth,
        keys: &'k [Key],
        wish: Wish,
    ) -> impl Iterator<Item = Plan> + use<'k> {
        // Whoever wants a fresh score would find nothing anyway.
        if let Some(seen) = self.seen.as_ref().filter(|_| !wish.fresh) {
            let now = Instant::now();
            let again = keys.iter().filter(|key| seen.note(key, now)).count();
            worth.looked_up(Level::Memory, Size::of(keys.len()), again as f64 / keys.len().max(1) as f64);
        }
        let estimate = |level| self.estimate(worth, level, keys.len());
        let is_chosen = self.mode == CacheMode::Auto;
        let memory = self.is_on() && (!is_chosen || estimate(Level::Memory).used);
        let (redis, sample) = match self.shared.as_ref().map(|_| estimate(Level::Redis)) {
            None => (false, None),
            Some(_) if !is_chosen => (true, Some(SAMPLE)),
            Some(estimate) if estimate.could_pay && keys.len() == 1 => (estimate.used, Some(SAMPLE)),
            Some(estimate) => (estimate.used, Some(RARE_SAMPLE)),
        };
        keys.iter().map(move |key| {
            let sample = sample.is_some_and(|sample| key.spread(3).is_multiple_of(sample));
            Plan { memory, redis: redis || sample, timed: key.spread(0).is_multiple_of(TIMED), sample }
        })
    }

    /// What a level costs and saves, in requests of `rows` rows.
    fn estimate(&self, worth: &Worth, level: Level, rows: usize) -> Estimate {
        let price = match (level, &self.shared) {
            (Level::Redis, Some(shared)) => shared.price(Size::of(rows)),
            _ => &self.memory_price,
        };
        worth.estimate(level, rows, price)
    }

    /// The score that is kept in process under `key`, and how long it is.
    pub fn find(&self, key: &Key, wish: Wish, plan: Plan) -> Result<(Score, Duration), Outcome> {
        if wish.fresh {
            return Err(Outcome::Unwanted);
        }
        let begin = plan.timed.then(Instant::now);
        let found = self.kept(key);
        if let Some(begin) = begin {
            self.memory_price.looked_up(begin.elapsed(), 1);
        }
        let outcome = if found.is_some() { Outcome::Unwanted } else { Outcome::Miss };
        let wanted = found.filter(|(_, left)| self.is_wanted(wish, *left));
        self.count(Level::Memory, usize::from(wanted.is_some()), 1);
        wanted.ok_or(outcome)
    }

    /// What is kept in process.
    fn kept(&self, key: &Key) -> Option<(Score, Duration)> {
        let Kept { score, until } = self.kept.get(key)?;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some((score, left))
    }

    /// The scores that are kept in Redis under the keys of some of a request's `rows` rows, and how long they are: of the first
    /// so many as Redis has answered for.
    pub async fn find_shared(
        &self,
        worth: &Worth,
        keys: &[(Key, Plan)],
        rows: usize,
        width: usize,
        wish: Wish,
    ) -> Vec<Option<(Score, Duration)>> {
        let Some(shared) = self.shared.as_ref() else { return Vec::new() };
        let size = Size::of(rows);
        let asked: Vec<Key> = keys.iter().map(|(key, _)| *key).collect();
        let mut found = shared.find(size, &asked, width).await;
        let sample = || keys.iter().zip(&found).filter(|((_, plan), _)| plan.sample);
        let of_sample = sample().count();
        if of_sample > 0 {
            let hits = sample().filter(|(_, found)| found.is_some()).count();
            worth.looked_up(Level::Redis, size, hits as f64 / of_sample as f64);
        }
        for found in &mut found {
            found.take_if(|(_, left)| !self.is_wanted(wish, *left));
        }
        self.count(Level::Redis, found.iter().flatten().count(), found.len());
        found
    }

    fn is_wanted(&self, wish: Wish, left: Duration) -> bool {
        wish.max_age.is_none_or(|most| self.ttl.saturating_sub(left) <= most)
    }

    fn count(&self, level: Level, found: usize, rows: usize) {
        let counts = &self.counts.levels[level as usize];
        counts.hits.inc_by(found as u64);
        counts.misses.inc_by((rows - found) as u64);
    }

    /// Counts a row that is answered with what somebody else computed.
    pub fn count_collapsed(&self) {
        self.counts.collapsed.inc();
    }

    /// Who computes the row of `key`, for which nothing was found.
    pub fn join(&self, key: &Key, plan: Plan) -> Join {
        let join = self.flights.join(key);
        // A score is kept before it lands: whoever leads after that finds it.
        if let (Join::Lead(_), true) = (&join, plan.memory)
            && let Some((score, left)) = self.kept(key)
        {
            return Join::Landed(score, left);
        }
        join
    }

    /// Keeps a score that was just computed. Returns whether it is kept in process.
    pub fn store(&self, key: &Key, score: &Score, plan: Plan) -> bool {
        if plan.redis
            && let Some(shared) = &self.shared
        {
            shared.store(*key, score.clone());
        }
        self.keep(key, score, self.ttl, plan)
    }

    /// Keeps a score in process for the time that is `left` of its own. Returns whether it does.
    pub fn keep(&self, key: &Key, score: &Score, left: Duration, plan: Plan) -> bool {
        if plan.memory {
            let begin = Instant::now();
            self.kept.insert(*key, Kept { score: score.clone(), until: begin + left });
            if plan.timed {
                self.memory_price.stored(begin.elapsed(), 1);
            }
        }
        plan.memory
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
            let estimate = self.estimate(worth, level, 1);
            (level, Estimate { used: estimate.used || self.mode != CacheMode::Auto, ..estimate })
        })
    }

    /// How many scores are kept in process, and the bytes that they take, about.
    pub fn size(&self) -> (u64, u64) {
        (self.kept.len() as u64, self.kept.weight())
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
