//! How many rows a caller may have scored, in which time: quotas, counted by GCRA.
//!
//! [`quota`] has the arithmetic, [`plans`] says which policies hold for whom, and [`memory`] counts, or [`redis`] for all replicas together. [`Limiter`] holds them
//! together; an answer says with [`Standing`] what is left.

pub mod memory;
pub mod plans;
pub mod quota;
mod redis;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::memory::Memory;
pub use self::plans::PlanDescription;
use self::plans::{Limits, Plans};
pub use self::quota::{Quota, Verdict};
use self::redis::Shared;
use crate::auth::Caller;
use crate::config::{self, Settings};
use crate::follow::{self, Followed};
use crate::redis::Redis;
use crate::telemetry::metrics::QuotaRows;

/// The most policies that hold for one request: the caller's whole quota, and that of one model.
pub const MAX_POLICIES: usize = 2;

/// What each policy of [`Limits`] says, in their order.
pub type Verdicts = [Verdict; MAX_POLICIES];

/// How often callers whose quota is whole again are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// What one request asks of whoever counts.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The caller's id.
    pub caller: &'a str,
    /// The policies, all of which have to let it through.
    pub limits: &'a Limits,
    /// How many rows.
    pub rows: u64,
    /// How many the same request has taken before: what is refused is sent again as a whole, and has to wait for these too.
    pub before: u64,
    /// When.
    pub now: Instant,
}

/// What to do for a caller while the rows cannot be counted where they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Count here.
    CountHere,
    /// Refuse.
    Refuse,
}

/// Why rows are not let through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The quota is used up.
    #[error("{}", .0.exceeded())]
    Exceeded(Standing),
    /// More rows than the quota ever lets through at once.
    #[error(
        "{rows} rows are more than the caller's quota ever lets through at once; send at most {fit} rows at a time"
    )]
    TooManyRows {
        /// How many rows there are.
        rows: u64,
        /// How many would fit.
        fit: u64,
    },
    /// They cannot be counted, and this is nothing to be done without.
    #[error("the quota cannot be checked at the moment; try again later")]
    Unavailable,
}

/// How a caller stands under its quota after a request; nothing to be said if it has none.
#[derive(Debug, Clone, Default)]
pub struct Standing(Option<Counted>);

#[derive(Debug, Clone)]
struct Counted {
    limits: Arc<Limits>,
    verdicts: Verdicts,
    loss: Loss,
}

impl Counted {
    fn is_admitted(&self) -> bool {
        self.limits.all_admit(&self.verdicts)
    }

    /// Each policy's name with what it says.
    fn each(&self) -> impl Iterator<Item = (&str, Verdict)> {
        self.limits.policies().iter().map(|policy| &*policy.name).zip(self.verdicts)
    }
}

/// What an answer says of the quota: `RateLimit-Policy` and `RateLimit`.
#[derive(Debug, PartialEq, Eq)]
pub struct Description<'s> {
    /// The policies.
    pub policy: &'s str,
    /// What is left of each, and in how many seconds all of it is there again or, if the request is refused, as many rows
    /// would be let through.
    pub left: String,
}

/// The one policy that binds most, as older clients know quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tightest {
    /// Its rows.
    pub limit: u64,
    /// Those left.
    pub remaining: u64,
    /// In how many seconds, see [`Description::left`].
    pub reset: u64,
}

impl Standing {
    /// What to tell the client; nothing if it has no quota.
    pub fn describe(&self) -> Option<Description<'_>> {
        let counted = self.0.as_ref()?;
        let is_admitted = counted.is_admitted();
        let mut left = String::with_capacity(48);
        for (name, verdict) in counted.each() {
            let comma = if left.is_empty() { "" } else { ", " };
            let (rows, seconds) = (verdict.remaining, wait(&verdict, is_admitted));
            write!(left, "{comma}\"{name}\";r={rows};t={seconds}").expect("a text can always be appended to");
        }
        Some(Description { policy: counted.limits.description(), left })
    }

    /// The policy with the fewest rows left.
    pub fn tightest(&self) -> Option<Tightest> {
        let counted = self.0.as_ref()?;
        let is_admitted = counted.is_admitted();
        let policies = counted.limits.policies().iter().zip(&counted.verdicts);
        let (policy, verdict) = policies.min_by_key(|(_, verdict)| verdict.remaining)?;
        let reset = wait(verdict, is_admitted);
        Some(Tightest { limit: policy.quota.rows, remaining: verdict.remaining, reset })
    }

    /// The names of the policies that refuse the request.
    pub fn violated(&self) -> impl Iterator<Item = &str> {
        let each = self.0.iter().flat_map(Counted::each);
        each.filter(|(_, verdict)| !verdict.admitted).map(|(name, _)| name)
    }

    /// In how many seconds as many rows would be let through: at least one.
    pub fn retry_after(&self) -> u64 {
        let waits = self.0.iter().flat_map(Counted::each).map(|(_, verdict)| wait(&verdict, false));
        waits.max().unwrap_or(0).max(1)
    }

    fn exceeded(&self) -> String {
        let quotas = self.0.iter().flat_map(|counted| counted.limits.policies().iter().zip(counted.verdicts));
        let mut quotas = quotas.filter(|(_, verdict)| !verdict.admitted).map(|(policy, _)| policy);
        let quota = quotas.next().map_or_else(String::new, |policy| format!(" of {}", policy.quota));
        format!("the quota{quota} rows is used up; as many rows are let through in {} s", self.retry_after())
    }
}

/// Whole seconds, so that whoever waits for as long does not come too early.
fn wait(verdict: &Verdict, is_admitted: bool) -> u64 {
    let wait = if is_admitted { verdict.reset_after } else { verdict.retry_after };
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Where rows are counted.
#[derive(Debug)]
enum Store {
    /// In this process.
    Memory(Memory),
    /// In Redis, for all replicas.
    Redis(Arc<Shared>),
}

impl Store {
    /// How many parts [`Store::sweep`] goes through one by one.
    fn parts(&self) -> usize {
        match self {
            Self::Memory(memory) => memory.parts(),
            Self::Redis(shared) => shared.parts(),
        }
    }

    /// Forgets callers whose quotas are whole again.
    fn sweep(&self, part: usize, now: Instant) {
        match self {
            Self::Memory(memory) => memory.sweep(part, now),
            Self::Redis(shared) => shared.sweep(part, now),
        }
    }
}

/// Quotas: who may have how many rows scored.
#[derive(Debug)]
pub struct Limiter {
    plans: Followed<Plans>,
    store: Store,
}

impl Limiter {
    /// A limiter with the quotas of the settings, shared through `redis` where there is one, whose rows are counted in
    /// `counts`.
    ///
    /// # Errors
    /// [`follow::Error`] if the settings file cannot be read again.
    pub fn open(
        settings: &Settings,
        redis: Option<Arc<Redis>>,
        counts: QuotaRows,
    ) -> Result<Self, follow::Error> {
        let default = settings.quota.default;
        let initial = Plans::new(default, &settings.plan, &counts);
        let set = settings.plan.clone();
        let parse = move |texts: &[Vec<u8>]| {
            let read = texts.first().map(|text| config::plans(text, default)).transpose()?;
            Ok(Plans::new(default, read.as_ref().unwrap_or(&set), &counts))
        };
        // A pipe (`--config <(…)`) has been read to its end, and says nothing any more.
        let is_gone = |path: &PathBuf| path.metadata().is_ok_and(|found| !found.is_file());
        let plans = match &settings.file {
            Some(path) if is_gone(path) => {
                tracing::info!(path = %path.display(), "plans are not followed: the settings file is no regular file");
                Followed::open("plans", Vec::new(), parse)?
            }
            Some(path) => Followed::open_or("plans", path.clone(), initial, parse)?,
            None => Followed::open("plans", Vec::new(), parse)?,
        };
        let start = Instant::now();
        let store = match redis {
            None => Store::Memory(Memory::new(start)),
            Some(redis) => Store::Redis(Arc::new(Shared::new(redis, settings.quota.lease, start))),
        };
        Ok(Self { plans, store })
    }

    /// The plans as they are at this moment, that for whoever has none first.
    pub fn plans(&self) -> Vec<PlanDescription> {
        self.plans.get().describe()
    }

    /// How Redis is, in a word; nothing where quotas are not shared through it.
    pub fn redis(&self) -> Option<&'static str> {
        match &self.store {
            Store::Memory(_) => None,
            Store::Redis(shared) => Some(shared.redis().state()),
        }
    }

    /// Waits until it is known whether Redis is there, if there is to be one.
    pub async fn tried(&self) {
        if let Store::Redis(shared) = &self.store {
            shared.tried().await;
        }
    }

    /// Keeps plans up to date, and forgets callers that have not been seen for longer than their quota lasts, for as long as
    /// the gateway runs.
    pub async fn follow(&self) {
        let sweeping = async {
            let mut timer = tokio::time::interval(SWEEP);
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                timer.tick().await;
                for part in 0..self.store.parts() {
                    self.store.sweep(part, Instant::now());
                    // The thread that this runs on has other things to do.
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::join!(self.plans.follow(|_| ()), sweeping);
    }

    /// Takes one row of the caller's quota for a request, scoring with `model` if it does.
    ///
    /// # Errors
    /// [`Error::Exceeded`] if there is none left, [`Error::Unavailable`] if nobody knows and that is a `loss` to refuse by.
    pub async fn admit(
        &self,
        caller: &Caller,
        model: Option<&str>,
        loss: Loss,
        now: Instant,
    ) -> Result<Standing, Error> {
        let Some(limits) = self.plans.get().limits(caller.plan(), model) else {
            return Ok(Standing::default());
        };
        self.take(caller, limits, 1, 0, loss, now).await
    }

    /// Takes the rest of the `rows` of a batch that was let in as one row, with which it has the `standing`. Returns how it
    /// stands then, if that is another.
    ///
    /// # Errors
    /// [`Error::Exceeded`] if they are not there, [`Error::TooManyRows`] if they never are. Both leave the one row taken.
    pub async fn settle(
        &self,
        caller: &Caller,
        standing: &Standing,
        rows: usize,
        now: Instant,
    ) -> Result<Option<Standing>, Error> {
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        let Some(counted) = standing.0.as_ref().filter(|_| rows > 1) else { return Ok(None) };
        let fit = counted.limits.policies().iter().map(|policy| policy.quota.rows).min();
        if let Some(fit) = fit.filter(|fit| rows > *fit) {
            return Err(Error::TooManyRows { rows, fit });
        }
        self.take(caller, Arc::clone(&counted.limits), rows - 1, 1, counted.loss, now).await.map(Some)
    }

    async fn take(
        &self,
        caller: &Caller,
        limits: Arc<Limits>,
        rows: u64,
        before: u64,
        loss: Loss,
        now: Instant,
    ) -> Result<Standing, Error> {
        let ask = Ask { caller: caller.id(), limits: &limits, rows, before, now };
        let verdicts = match &self.store {
            Store::Memory(memory) => memory.take(&ask),
            Store::Redis(shared) => shared.take(&ask, loss).await.ok_or(Error::Unavailable)?,
        };
        let is_admitted = limits.all_admit(&verdicts);
        for (policy, verdict) in limits.policies().iter().zip(&verdicts) {
            match (is_admitted, verdict.admitted) {
                (true, _) => drop(policy.admitted.inc_by(rows)),
                (false, false) => drop(policy.refused.inc_by(rows)),
                // What another policy refuses is nothing to this one.
                (false, true) => {}
            }
        }
        let standing = Standing(Some(Counted { limits, verdicts, loss }));
        if is_admitted { Ok(standing) } else { Err(Error::Exceeded(standing)) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::config::Sources;

    fn settings(file: &str) -> Settings {
        Settings::load(Sources { file: Some(file.into()), ..Sources::default() }).unwrap()
    }

    fn limiter(file: &str) -> Limiter {
        Limiter::open(&settings(file), None, QuotaRows::default()).unwrap()
    }

    /// What a client is told.
    fn told(standing: &Standing) -> (String, String) {
        let described = standing.describe().unwrap();
        (described.policy.to_owned(), described.left)
    }

    const PLANS: &str = "[quota]\ndefault = \"10/min\"\n[plan.free]\nquota = \"100/hour\"\n\
                         [plan.free.models]\nchurn = \"6/min\"\n[plan.open]\nquota = \"off\"\n";

    #[tokio::test]
    async fn answers_say_what_is_left_of_each_policy() {
        let (limiter, start) = (limiter(PLANS), Instant::now());
        let (nobody, free) = (Caller::named("a", None), Caller::named("b", Some("free")));
        for (caller, model, policy, left) in [
            (&nobody, None, r#""rows";q=10;w=60;scorer-unit="rows""#, r#""rows";r=9;t=6"#),
            (&nobody, Some("churn"), r#""rows";q=10;w=60;scorer-unit="rows""#, r#""rows";r=8;t=12"#),
            (&free, Some("other"), r#""rows";q=100;w=3600;scorer-unit="rows""#, r#""rows";r=99;t=36"#),
            (
                &free,
                Some("churn"),
                r#""rows";q=100;w=3600;scorer-unit="rows", "rows-churn";q=6;w=60;scorer-unit="rows""#,
                r#""rows";r=98;t=72, "rows-churn";r=5;t=10"#,
            ),
        ] {
            let standing = limiter.admit(caller, model, Loss::CountHere, start).await.unwrap();
            assert_eq!(told(&standing), (policy.to_owned(), left.to_owned()));
        }
        let open =
            limiter.admit(&Caller::named("c", Some("open")), Some("churn"), Loss::CountHere, start).await;
        let open = open.unwrap();
        assert_eq!((open.describe(), open.tightest(), open.violated().count()), (None, None, 0));
        assert!(limiter.settle(&nobody, &open, 1_000_000, start).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_batch_is_let_in_as_one_row_and_settled_once_counted() {
        let (limiter, start) = (limiter(PLANS), Instant::now());
        let caller = Caller::named("a", Some("free"));
        let first = limiter.admit(&caller, Some("churn"), Loss::CountHere, start).await.unwrap();
        let settled = limiter.settle(&caller, &first, 4, start).await.unwrap().unwrap();
        assert_eq!(told(&settled).1, r#""rows";r=96;t=144, "rows-churn";r=2;t=40"#);
        for rows in [0, 1] {
            assert!(limiter.settle(&caller, &settled, rows, start).await.unwrap().is_none());
        }
        let large = limiter.settle(&caller, &settled, 7, start).await.unwrap_err();
        assert!(matches!(large, Error::TooManyRows { rows: 7, fit: 6 }), "{large}");
        // One of its rows has been taken at admission; all six have to be there when it comes again.
        let next = limiter.admit(&caller, Some("churn"), Loss::CountHere, start).await.unwrap();
        let Error::Exceeded(refused) = limiter.settle(&caller, &next, 6, start).await.unwrap_err() else {
            panic!("expected the quota to be exceeded")
        };
        assert_eq!(refused.violated().collect::<Vec<_>>(), ["rows-churn"]);
        assert_eq!(
            (refused.retry_after(), told(&refused).1.as_str()),
            (50, r#""rows";r=95;t=0, "rows-churn";r=1;t=50"#)
        );
        assert_eq!(refused.tightest(), Some(Tightest { limit: 6, remaining: 1, reset: 50 }));
        let later = start + Duration::from_secs(50);
        let again = limiter.admit(&caller, Some("churn"), Loss::CountHere, later).await.unwrap();
        assert!(limiter.settle(&caller, &again, 6, later).await.is_ok());
    }

    #[tokio::test]
    async fn rows_are_counted_by_the_policy_that_refuses_them() {
        let counts = QuotaRows::default();
        let limiter = Limiter::open(&settings(PLANS), None, counts.clone()).unwrap();
        let (caller, start) = (Caller::named("a", Some("free")), Instant::now());
        for _ in 0..8 {
            let _ = limiter.admit(&caller, Some("churn"), Loss::CountHere, start).await;
        }
        let found = |policy| counts.of(policy).map(|count| count.get());
        assert_eq!((found("rows"), found("rows-churn")), ([6, 0], [6, 2]));
    }

    #[tokio::test]
    async fn plans_are_followed_and_mistakes_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scoregate.toml");
        let mut settings = settings("[quota]\ndefault = \"1000/min\"");
        settings.file = Some(path.clone());
        let limiter = Limiter::open(&settings, None, QuotaRows::default()).unwrap();
        let caller = Caller::named("a", Some("free"));
        let begun = Instant::now();
        let limit = async || {
            let standing = limiter.admit(&caller, None, Loss::CountHere, begun).await.unwrap();
            standing.tightest().map(|tightest| tightest.limit)
        };
        let until = async |expected, why: &str| {
            while limit().await != expected {
                assert!(begun.elapsed() < Duration::from_secs(20), "{why}: {:?} for ever", limit().await);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let unchanged = async |expected, why: &str| {
            // Files are looked at many times in so long.
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(limit().await, expected, "{why}");
        };
        let script = async {
            assert_eq!(limit().await, Some(1_000), "an unknown plan means the default");
            fs::write(&path, "[plan.free]\nquota = \"2000/min\"").unwrap();
            until(Some(2_000), "a plan").await;
            for mistake in ["[plan.free]\nquota = \"twenty\"", "[plan.free"] {
                fs::write(&path, mistake).unwrap();
                unchanged(Some(2_000), mistake).await;
            }
            // The rest of the file is read at a start only; it need not be right here.
            fs::write(&path, "[server]\nadr = 1\n[plan.free]\nquota = \"3000/min\"").unwrap();
            until(Some(3_000), "another mistake in the file").await;
            fs::write(&path, "[plan.free]\nquota = \"off\"").unwrap();
            until(None, "no quota").await;
            fs::write(&path, "[plan.gold]\nquota = \"4000/min\"").unwrap();
            until(Some(1_000), "a plan that is gone").await;
            fs::write(&path, "[plan.free]\nquota = \"2000/min\"").unwrap();
            until(Some(2_000), "a plan that is back").await;
            fs::remove_file(&path).unwrap();
            unchanged(Some(2_000), "a file that is gone").await;
        };
        tokio::select! {
            () = limiter.follow() => {}
            () = script => {}
        }
    }

    #[tokio::test]
    async fn a_settings_file_that_is_a_pipe_is_read_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings("[plan.free]\nquota = \"2000/min\"");
        let path = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        settings.file = Some(path);
        let limiter = Limiter::open(&settings, None, QuotaRows::default()).unwrap();
        let free = Caller::named("a", Some("free"));
        let standing = limiter.admit(&free, None, Loss::CountHere, Instant::now()).await.unwrap();
        assert_eq!(standing.tightest().unwrap().limit, 2_000);
    }

    #[test]
    fn unknown_plans_are_remembered_up_to_a_bound() {
        let plans = Plans::new("5/s".parse().ok(), &BTreeMap::new(), &QuotaRows::default());
        for number in 0..1_000 {
            let limits = plans.limits(Some(&format!("plan {number}")), None).unwrap();
            assert_eq!(limits.plan(), None, "it counts with those who have none");
        }
        assert_eq!(plans.unknown(), 100);
    }
}
