//! What callers have taken of their quotas, as this process alone counts it.
//!
//! The `governor` crate has this algorithm and no more of it: two of its limits cannot be asked together, so that rows which
//! the second refuses would be gone from the first, it does not say what is left of a quota that refuses a batch, and a quota
//! that is changed forgets what was taken. What is left to do without it is [`Bucket`] and a table.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::quota::Bucket;
use super::{Ask, Verdicts};

/// Tables that are locked apart, so that threads seldom wait for one another.
const SHARDS: usize = 64;

/// The quotas of every caller that has taken anything which has not come back.
pub struct Memory {
    /// What times are counted from: the wall clock may jump.
    start: Instant,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

/// By caller. The plans that one caller comes with are few: all are configured.
type Shard = HashMap<Box<str>, Vec<Account>>;

/// What one caller has taken under one plan, by policy.
struct Account {
    plan: Option<Arc<str>>,
    buckets: Vec<(Arc<str>, Bucket)>,
}

impl Account {
    fn bucket(&mut self, policy: &Arc<str>) -> &mut Bucket {
        let at = self.buckets.iter().position(|(name, _)| name == policy).unwrap_or_else(|| {
            self.buckets.push((Arc::clone(policy), Bucket::default()));
            self.buckets.len() - 1
        });
        &mut self.buckets[at].1
    }
}

impl Memory {
    /// Nothing is taken yet.
    pub fn new(start: Instant) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { start, hasher: RandomState::new(), shards }
    }

    /// Takes the rows from every policy if all of them let them through, else from none.
    pub fn take(&self, ask: &Ask<'_>) -> Verdicts {
        let now = self.nanoseconds(ask.now);
        let mut shard = self.shard(ask.caller);
        if !shard.contains_key(ask.caller) {
            shard.insert(ask.caller.into(), Vec::new());
        }
        let accounts = shard.get_mut(ask.caller).expect("it has just been there");
        let plan = ask.limits.plan();
        let at = accounts.iter().position(|account| account.plan.as_ref() == plan).unwrap_or_else(|| {
            accounts.push(Account { plan: plan.cloned(), buckets: Vec::new() });
            accounts.len() - 1
        });
        let account = &mut accounts[at];
        let mut verdicts = Verdicts::default();
        for (verdict, policy) in verdicts.iter_mut().zip(ask.limits.policies()) {
            *verdict = account.bucket(&policy.name).ask(&policy.quota, ask.rows, ask.before, now);
        }
        if ask.limits.all_admit(&verdicts) {
            for (verdict, policy) in verdicts.iter_mut().zip(ask.limits.policies()) {
                *verdict = account.bucket(&policy.name).take(&policy.quota, ask.rows, now);
            }
        }
        verdicts
    }

    /// Forgets callers whose quotas are whole again: they are as if never seen.
    pub fn sweep(&self, part: usize, now: Instant) {
        let now = self.nanoseconds(now);
        let mut shard = lock(&self.shards[part]);
        shard.retain(|_, accounts| {
            accounts.retain(|account| account.buckets.iter().any(|(_, bucket)| !bucket.is_full(now)));
            !accounts.is_empty()
        });
        // A crowd that has gone does not keep its room.
        if shard.capacity() > 64 && shard.capacity() / 8 > shard.len() {
            shard.shrink_to_fit();
        }
    }

    /// How many parts there are to [`Memory::sweep`].
    pub fn parts(&self) -> usize {
        self.shards.len()
    }

    /// How many callers are remembered.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, caller: &str) -> MutexGuard<'_, Shard> {
        lock(&self.shards[self.hasher.hash_one(caller) as usize % SHARDS])
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Memory").field("callers", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::plans::{Limits, Plans};
    use super::*;
    use crate::config::PlanSettings;
    use crate::telemetry::metrics::QuotaRows;

    /// The limits of a model, by the whole quota and the model's own.
    fn limits(plan: &str, whole: Option<&str>, own: Option<&str>) -> Arc<Limits> {
        let models = own.map(|own| ("churn".to_owned(), own.parse().unwrap())).into_iter().collect();
        let settings = PlanSettings { quota: whole.map(|whole| whole.parse().unwrap()), models };
        let plans = BTreeMap::from([(plan.to_owned(), settings)]);
        let plans = Plans::new(None, &plans, &QuotaRows::default());
        plans.limits(Some(plan), Some("churn")).unwrap()
    }

    fn ask<'a>(caller: &'a str, limits: &'a Limits, rows: u64, now: Instant) -> Ask<'a> {
        Ask { caller, limits, rows, before: 0, now }
    }

    #[test]
    fn of_two_policies_either_both_give_rows_or_neither() {
        let start = Instant::now();
        let memory = Memory::new(start);
        let limits = limits("free", Some("100/min"), Some("10/min"));
        let [whole, own] = memory.take(&ask("a", &limits, 10, start));
        assert_eq!((whole.admitted, whole.remaining), (true, 90));
        assert_eq!((own.admitted, own.remaining), (true, 0));
        for _ in 0..50 {
            let [whole, own] = memory.take(&ask("a", &limits, 5, start));
            assert_eq!(
                (whole.admitted, whole.remaining),
                (true, 90),
                "what one refuses is not taken of the other"
            );
            assert_eq!((own.admitted, own.retry_after), (false, Duration::from_secs(30)));
        }
        let later = start + Duration::from_secs(30);
        let verdicts = memory.take(&ask("a", &limits, 5, later));
        assert!(limits.all_admit(&verdicts));
        let other = super::tests::limits("free", Some("100/min"), None);
        let [whole, _] = memory.take(&ask("a", &other, 96, later));
        assert_eq!((whole.admitted, whole.remaining), (false, 95), "rows of one model count for all of them");
    }

    #[test]
    fn callers_and_plans_are_counted_apart() {
        let start = Instant::now();
        let memory = Memory::new(start);
        let (free, gold) = (limits("free", Some("2/min"), None), limits("gold", Some("3/min"), None));
        for (caller, limits, left) in [("a", &free, 0), ("b", &free, 0), ("a", &gold, 1)] {
            assert_eq!(memory.take(&ask(caller, limits, 2, start))[0].remaining, left, "{caller}");
        }
        // A caller that comes with one plan and then another gets nothing anew.
        assert!(!memory.take(&ask("a", &free, 1, start))[0].admitted);
        assert!(!memory.take(&ask("a", &gold, 2, start))[0].admitted);
        assert_eq!(memory.len(), 2);
    }

    #[test]
    fn threads_that_race_get_exactly_the_quota() {
        let start = Instant::now();
        let memory = Memory::new(start);
        let limits = limits("free", Some("1000/hour"), Some("1000/hour"));
        let admitted: usize = std::thread::scope(|scope| {
            let take = || {
                let asks = (0..1_000).map(|_| memory.take(&ask("a", &limits, 1, start)));
                asks.filter(|verdicts| limits.all_admit(verdicts)).count()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 1_000);
    }

    #[test]
    fn callers_whose_quota_is_whole_again_are_forgotten() {
        let start = Instant::now();
        let memory = Memory::new(start);
        let limits = limits("free", Some("10/min"), None);
        for number in 0..10_000 {
            memory.take(&ask(&format!("caller {number}"), &limits, 1, start));
        }
        memory.take(&ask("busy", &limits, 10, start));
        let sweep = |now| (0..memory.parts()).for_each(|part| memory.sweep(part, now));
        sweep(start + Duration::from_millis(5_999));
        assert_eq!(memory.len(), 10_001);
        sweep(start + Duration::from_secs(6));
        assert_eq!(memory.len(), 1);
        let verdict = memory.take(&ask("busy", &limits, 10, start + Duration::from_secs(6)))[0];
        assert_eq!((verdict.admitted, verdict.remaining), (false, 1), "what is taken is not forgotten");
        sweep(start + Duration::from_secs(60));
        assert!(memory.is_empty());
        let room: usize = memory.shards.iter().map(|shard| lock(shard).capacity()).sum();
        assert!(room < 1_000, "room for {room} callers is kept");
    }
}
