//! What callers have taken of their quotas, as all replicas count it together in Redis.
//!
//! A round trip for each request would cost more than its score. So a replica takes a small share of a quota at a time, the
//! lease, and lets requests through from what it holds. Of a quota of q rows, at most q × (1 + share × replicas) are let
//! through, and what comes back in the meantime: each replica may hold up to a lease that was counted before, and no more,
//! because it asks for rows only when those that it holds are too few, one question at a time, which is for all requests that
//! wait. What a replica holds when it
//! ends is not lost: it comes back as everything does that was taken, by time.
//!
//! What Redis answered is remembered. A caller who has nothing left is refused without asking again; while Redis is out of
//! reach, counting goes on here from there; and Redis is told what it may have forgotten when it is back.
//!
//! An answer may be late although Redis is not lost: machines are busy. Then, too, rows are let through from what is known, and
//! Redis is told of them; but no more than a small part of what was left, because others take of it meanwhile. A request of which
//! it is not plain that there is enough waits for the answer, or until Redis is given up.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::plans::Policy;
use super::quota::{Bucket, Quota};
use super::{Ask, Loss, MAX_POLICIES, Verdict, Verdicts};
use crate::redis::{Error, Redis, Script};

/// Tables that are locked apart, so that threads seldom wait for one another.
const PARTS: usize = 64;

/// How long a caller is counted here after Redis failed for it: meanwhile, others find out whether Redis is lost.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// While an answer is late, rows are let through as long as so many times more are left than all that were let through by now
/// without Redis knowing, and all that wait. What a thousand clients could use up meanwhile is not plainly there.
const PLAINLY: u64 = 50;

/// The quotas of every caller, shared through Redis.
pub(super) struct Shared {
    redis: Arc<Redis>,
    script: Script,
    /// The share of a quota that is taken at a time; nothing more than what is needed if zero.
    share: f64,
    /// What times are counted from: the wall clock may jump.
    start: Instant,
    hasher: RandomState,
    parts: Box<[Mutex<Part>]>,
}

/// By caller. The plans that one caller comes with are few: all are configured.
type Part = HashMap<Box<str>, Vec<Arc<Account>>>;

/// What one caller has taken under one plan.
struct Account {
    plan: Option<Arc<str>>,
    /// What all its keys have in common, so that they lie on one server of a cluster.
    tag: String,
    /// When rows were asked for that are not there yet, in nanoseconds; zero if none were. Changes under the lock of `holdings`.
    asked_at: AtomicU64,
    /// Wakes requests that wait for it.
    brought: Notify,
    /// Until when Redis is not asked because it failed, in nanoseconds.
    counted_here_until: AtomicU64,
    holdings: Mutex<Vec<Holding>>,
}

/// What is known of one policy.
struct Holding {
    policy: Arc<str>,
    /// What the numbers below are rows of.
    quota: Quota,
    key: String,
    /// What all replicas have taken, as far as Redis has said so, and what was let through here without it.
    bucket: Bucket,
    /// Rows that are taken and that nobody has used yet.
    held: u64,
    /// What Redis answered last, in its own time.
    known: String,
    /// Rows that were let through here and that Redis has to be told of.
    alone: u64,
    /// Rows of requests that wait: the next question is for all of them.
    waiting: u64,
}

/// What Redis is asked of one policy.
struct Question {
    at: usize,
    quota: Quota,
    /// Rows that were let through here and that it is told of, by this question alone.
    alone: u64,
    lease: u64,
}

/// What Redis is asked at once, policy by policy.
#[derive(Default)]
struct Questions {
    each: Vec<Question>,
    keys: Vec<String>,
    arguments: Vec<String>,
}

/// What Redis answers of one policy.
struct Answer {
    /// In its own time.
    known: String,
    /// How long until the whole quota is there again.
    taken: Duration,
    /// The rows taken, none of any policy if one has too few.
    rows: Option<u64>,
}

impl Shared {
    /// Quotas counted in `redis`, of which a `share` is taken at a time.
    pub(super) fn new(redis: Arc<Redis>, share: Option<f64>, start: Instant) -> Self {
        Self {
            redis,
            script: Script::new(include_str!("take.lua")),
            share: share.unwrap_or(0.0),
            start,
            hasher: RandomState::new(),
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
        }
    }

    /// What counts.
    pub(super) fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Waits until it is known whether Redis is there.
    pub(super) async fn tried(&self) {
        self.redis.tried().await;
    }

    /// Takes the rows from every policy if all of them let them through, else from none. Nothing if Redis is out of reach and
    /// that is a `loss` to refuse by.
    pub(super) async fn take(self: &Arc<Self>, ask: &Ask<'_>, loss: Loss) -> Option<Verdicts> {
        if loss == Loss::Refuse && self.redis.is_out_of_reach() {
            return None;
        }
        let account = self.account(ask);
        if let Some(verdicts) = account.holdings(ask).take_held(ask, self.nanoseconds(ask.now)) {
            return Some(verdicts);
        }
        match self.ask(&account, ask, loss).await {
            Ok(verdicts) => Some(verdicts),
            Err(_) if loss == Loss::Refuse => None,
            Err(_) => Some(self.take_alone(&mut account.holdings(ask), ask, self.nanoseconds(ask.now))),
        }
    }

    /// Lets rows through without Redis knowing.
    fn take_alone(&self, holdings: &mut Holdings<'_>, ask: &Ask<'_>, now: u64) -> Verdicts {
        let verdicts = holdings.take_alone(ask, now);
        if ask.limits.all_admit(&verdicts) {
            self.redis.counts().alone.inc_by(ask.rows);
        }
        verdicts
    }

    /// Asks Redis for what is missing. The question goes on when this is given up: what it brings is for those who come next.
    async fn ask(
        self: &Arc<Self>,
        account: &Arc<Account>,
        ask: &Ask<'_>,
        loss: Loss,
    ) -> Result<Verdicts, Error> {
        let deadline = tokio::time::Instant::now() + self.redis.timeout();
        let mut waiting = Waiting::new(account, ask, |quota| self.lease(quota));
        loop {
            let mut brought = pin!(account.brought.notified());
            let now = self.nanoseconds(Instant::now()).max(1);
            let present = tokio::time::Instant::now();
            let is_late = present >= deadline || self.redis.is_silent();
            // One deadline after the other, to see what has become of Redis.
            let until = if is_late { present + self.redis.timeout() } else { deadline };
            let question = {
                let mut holdings = account.holdings(ask);
                // Another request may have brought what this one needs, or found out that nothing comes.
                if let Some(verdicts) = holdings.take_held(ask, now) {
                    waiting.end(&mut holdings.0);
                    return Ok(verdicts);
                }
                let asked = account.asked_at.load(Ordering::Relaxed);
                let waited = Duration::from_nanos(if asked > 0 { now.saturating_sub(asked) } else { 0 });
                // Redis as a whole is given up before: this is for one server of a cluster.
                if waited >= 2 * self.redis.patience() {
                    self.count_here(account);
                }
                if self.is_counted_here(account, now) {
                    self.redis.counts().out_of_reach.inc();
                    return Err(Error::OutOfReach);
                }
                let is_late = is_late || waited >= self.redis.timeout();
                if is_late && loss == Loss::CountHere && holdings.is_plain(ask, now) {
                    let verdicts = self.take_alone(&mut holdings, ask, now);
                    waiting.end(&mut holdings.0);
                    return Ok(verdicts);
                }
                if asked > 0 {
                    brought.as_mut().enable();
                    None
                } else {
                    account.asked_at.store(now, Ordering::Relaxed);
                    Some(holdings.questions(ask, now, |quota| self.lease(quota)))
                }
            };
            let Some(questions) = question else {
                // What is asked for is for many: all look whether there is enough when it comes.
                let _ = timeout_at(until, brought).await;
                continue;
            };
            let turn = Turn(Arc::clone(account));
            let shared = Arc::clone(self);
            let answered = self.redis.spawn(async move { shared.bring(&turn.0, questions, now).await });
            match timeout_at(until, answered).await {
                Ok(Ok(refused)) => {
                    let refused = refused?;
                    if !refused.is_empty() {
                        return Ok(account.holdings(ask).refuse(ask, now, &refused));
                    }
                }
                Ok(Err(_)) => return Err(Error::Late),
                // From here on, this request waits as all others do.
                Err(_) => {}
            }
        }
    }

    /// Whether the caller's rows are counted here at the moment.
    fn is_counted_here(&self, account: &Account, now: u64) -> bool {
        self.redis.is_out_of_reach() || now < account.counted_here_until.load(Ordering::Relaxed)
    }

    /// Has the caller's rows counted here for a while, or until the answer is there.
    fn count_here(&self, account: &Account) {
        let until = self.nanoseconds(Instant::now() + AFTER_FAILURE);
        account.counted_here_until.store(until, Ordering::Relaxed);
    }

    /// Asks `questions` and notes the answers. Returns the policies that have too little.
    async fn bring(&self, account: &Account, questions: Questions, asked: u64) -> Result<Vec<usize>, Error> {
        let texts = self.redis.run(&self.script, &questions.keys, &questions.arguments).await;
        let answers = texts.and_then(|texts| answers(&texts, questions.each.len()));
        let mut holdings = Holdings(lock(&account.holdings));
        match answers {
            Ok(answers) => {
                account.counted_here_until.store(0, Ordering::Relaxed);
                Ok(holdings.note(&questions.each, answers, asked))
            }
            Err(error) => {
                self.count_here(account);
                holdings.keep(&questions.each);
                Err(error)
            }
        }
    }

    /// Forgets callers whose quotas are whole again: they are as if never seen.
    pub(super) fn sweep(&self, part: usize, now: Instant) {
        let now = self.nanoseconds(now);
        let mut part = lock(&self.parts[part % PARTS]);
        part.retain(|_, accounts| {
            accounts.retain(|account| {
                let is_used = Arc::strong_count(account) > 1;
                is_used || lock(&account.holdings).iter().any(|holding| !holding.bucket.is_full(now))
            });
            !accounts.is_empty()
        });
        // A crowd that has gone does not keep its room.
        if part.capacity() > 64 && part.capacity() / 8 > part.len() {
            part.shrink_to_fit();
        }
    }

    /// How many parts [`Shared::sweep`] goes through one by one.
    pub(super) fn parts(&self) -> usize {
        PARTS
    }

    /// How many rows of a quota are taken at a time.
    fn lease(&self, quota: &Quota) -> u64 {
        (quota.rows as f64 * self.share) as u64
    }

    fn account(&self, ask: &Ask<'_>) -> Arc<Account> {
        let mut part = lock(&self.parts[self.hasher.hash_one(ask.caller) as usize % PARTS]);
        let plan = ask.limits.plan();
        let accounts = match part.get_mut(ask.caller) {
            Some(accounts) => accounts,
            None => part.entry(ask.caller.into()).or_default(),
        };
        if let Some(account) = accounts.iter().find(|account| account.plan.as_ref() == plan) {
            return Arc::clone(account);
        }
        let account = Arc::new(Account::new(ask.caller, plan));
        accounts.push(Arc::clone(&account));
        account
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("redis", &self.redis)
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}

/// A question under way. When it ends, however it does, others may ask.
struct Turn(Arc<Account>);

impl Drop for Turn {
    fn drop(&mut self) {
        let holdings = lock(&self.0.holdings);
        self.0.asked_at.store(0, Ordering::Relaxed);
        drop(holdings);
        self.0.brought.notify_waiters();
    }
}

/// A request that rows are being asked for.
struct Waiting<'a> {
    account: &'a Account,
    /// Where the holdings are, and how much they may hold when nobody waits.
    each: [Option<(usize, u64)>; MAX_POLICIES],
    rows: u64,
}

impl<'a> Waiting<'a> {
    fn new(account: &'a Account, ask: &Ask<'_>, lease: impl Fn(&Quota) -> u64) -> Self {
        let mut holdings = account.holdings(ask);
        let mut each = [None; MAX_POLICIES];
        for (slot, (at, policy)) in each.iter_mut().zip(holdings.each(ask)) {
            *slot = Some((at, lease(&policy.quota)));
            holdings.0[at].waiting += ask.rows;
        }
        Self { account, each, rows: ask.rows }
    }

    /// Has what it waited for, so that the next question is not for it as well.
    fn end(&mut self, holdings: &mut [Holding]) {
        for (at, lease) in std::mem::take(&mut self.each).into_iter().flatten() {
            holdings[at].waiting -= self.rows;
            holdings[at].cut(lease);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.each[0].is_some() {
            let account = self.account;
            self.end(&mut lock(&account.holdings));
        }
    }
}

impl Account {
    fn new(caller: &str, plan: Option<&Arc<str>>) -> Self {
        let plan_text = plan.map_or("", |plan| plan);
        let parts = [caller.as_bytes(), &[u8::from(plan.is_some())], plan_text.as_bytes()];
        Self {
            plan: plan.cloned(),
            tag: digest(&parts),
            asked_at: AtomicU64::new(0),
            brought: Notify::new(),
            counted_here_until: AtomicU64::new(0),
            holdings: Mutex::default(),
        }
    }

    /// What is known of the policies of `ask`, and perhaps of others.
    fn holdings(&self, ask: &Ask<'_>) -> Holdings<'_> {
        let mut holdings = lock(&self.holdings);
        for policy in ask.limits.policies() {
            match holdings.iter_mut().find(|holding| holding.policy == policy.name) {
                Some(holding) if holding.quota == policy.quota => {}
                Some(holding) => holding.change(policy.quota),
                None => holdings.push(Holding::new(&self.tag, policy)),
            }
        }
        Holdings(holdings)
    }
}

impl Holding {
    fn new(tag: &str, policy: &Policy) -> Self {
        Self {
            policy: Arc::clone(&policy.name),
            quota: policy.quota,
            // Nobody who reads keys learns who calls.
            key: format!("scoregate:quota:{{{tag}}}:{}", digest(&[policy.name.as_bytes()])),
            bucket: Bucket::default(),
            held: 0,
            known: "0".into(),
            alone: 0,
            waiting: 0,
        }
    }

    /// Goes on with another quota, of which the same share is held.
    fn change(&mut self, quota: Quota) {
        let share = quota.rows as f64 / self.quota.rows as f64;
        for rows in [&mut self.held, &mut self.alone] {
            *rows = (*rows as f64 * share) as u64;
        }
        self.quota = quota;
    }

    /// Gives up what is held beyond the `lease` and what requests wait for: it comes back by time.
    fn cut(&mut self, lease: u64) {
        self.held = self.held.min(lease.max(self.waiting));
    }

    /// What the policy says to a request that needs `need` rows beyond those held.
    fn verdict(&self, quota: &Quota, need: u64, before: u64, now: u64) -> Verdict {
        let verdict = self.bucket.ask(quota, need, before, now);
        Verdict { remaining: (verdict.remaining + self.held).min(quota.rows), ..verdict }
    }
}

/// The holdings of an account, locked.
struct Holdings<'a>(MutexGuard<'a, Vec<Holding>>);

impl Holdings<'_> {
    /// Where the holding of `policy` is.
    fn position(&self, policy: &Policy) -> usize {
        let position = self.0.iter().position(|holding| holding.policy == policy.name);
        position.expect("each policy that is asked about has one")
    }

    /// Each policy with where its holding is.
    fn each<'a>(&self, ask: &Ask<'a>) -> impl Iterator<Item = (usize, &'a Policy)> + use<'a> {
        let positions: [usize; MAX_POLICIES] = std::array::from_fn(|at| {
            ask.limits.policies().get(at).map_or(usize::MAX, |policy| self.position(policy))
        });
        positions.into_iter().zip(ask.limits.policies())
    }

    /// What all policies say, should they be asked for what is missing.
    fn verdicts(&self, ask: &Ask<'_>, now: u64) -> Verdicts {
        let mut verdicts = Verdicts::default();
        for (verdict, (at, policy)) in verdicts.iter_mut().zip(self.each(ask)) {
            let holding = &self.0[at];
            *verdict = holding.verdict(&policy.quota, ask.rows.saturating_sub(holding.held), ask.before, now);
        }
        verdicts
    }

    /// Lets rows through that are held, or refuses such as cannot be there. Nothing if Redis has to be asked.
    fn take_held(&mut self, ask: &Ask<'_>, now: u64) -> Option<Verdicts> {
        if self.each(ask).all(|(at, _)| self.0[at].held >= ask.rows) {
            for (at, _) in self.each(ask) {
                self.0[at].held -= ask.rows;
            }
            let mut verdicts = self.verdicts(&Ask { rows: 0, ..*ask }, now);
            verdicts.iter_mut().for_each(|verdict| verdict.retry_after = Duration::ZERO);
            return Some(verdicts);
        }
        let verdicts = self.verdicts(ask, now);
        (!ask.limits.all_admit(&verdicts)).then_some(verdicts)
    }

    /// Whether there is plainly enough, whatever others take while an answer is late.
    fn is_plain(&self, ask: &Ask<'_>, now: u64) -> bool {
        self.each(ask).all(|(at, policy)| {
            let holding = &self.0[at];
            let need = ask.rows.saturating_sub(holding.held);
            let left = holding.bucket.ask(&policy.quota, need, 0, now).remaining;
            need == 0 || (holding.alone + holding.waiting).saturating_mul(PLAINLY) <= left
        })
    }

    /// Lets rows through that are held or, as far as is known here, there.
    fn take_alone(&mut self, ask: &Ask<'_>, now: u64) -> Verdicts {
        let mut verdicts = self.verdicts(ask, now);
        if !ask.limits.all_admit(&verdicts) {
            return verdicts;
        }
        for (verdict, (at, policy)) in verdicts.iter_mut().zip(self.each(ask)) {
            let holding = &mut self.0[at];
            let need = ask.rows.saturating_sub(holding.held);
            holding.held -= ask.rows - need;
            if need > 0 {
                holding.bucket.take(&policy.quota, need, now);
                holding.alone += need;
            }
            *verdict = holding.verdict(&policy.quota, 0, 0, now);
        }
        verdicts
    }

    /// What to ask Redis: about which policies, under which keys, with which arguments.
    fn questions(&mut self, ask: &Ask<'_>, now: u64, lease: impl Fn(&Quota) -> u64) -> Questions {
        let mut questions = Questions::default();
        for (at, policy) in self.each(ask) {
            let holding = &mut self.0[at];
            let need = ask.rows.saturating_sub(holding.held);
            if need == 0 {
                continue;
            }
            // Of what was let through here in a long time, most has come back.
            let alone = std::mem::take(&mut holding.alone).min(holding.bucket.rows(&policy.quota, now));
            let lease = lease(&policy.quota);
            let want = need.max(lease).max(holding.waiting.saturating_sub(holding.held));
            questions.each.push(Question { at, quota: policy.quota, alone, lease });
            questions.keys.push(holding.key.clone());
            questions.arguments.extend([
                policy.quota.per.as_micros().to_string(),
                policy.quota.rows.to_string(),
                need.to_string(),
                want.to_string(),
                holding.known.clone(),
                alone.to_string(),
            ]);
        }
        questions
    }

    /// Notes that Redis was not told of what was let through here.
    fn keep(&mut self, questions: &[Question]) {
        for question in questions {
            self.0[question.at].alone += question.alone;
        }
    }

    /// Notes what Redis answered to questions that were asked at `asked`. Returns the policies that have too little.
    fn note(&mut self, questions: &[Question], answers: Vec<Answer>, asked: u64) -> Vec<usize> {
        let mut refused = Vec::new();
        for (question, answer) in questions.iter().zip(answers) {
            let holding = &mut self.0[question.at];
            match answer.rows {
                Some(rows) => holding.held += rows,
                None => refused.push(question.at),
            }
            // What was let through here while the answer was late is paid from what it brings.
            let paid = holding.alone.min(holding.held);
            holding.held -= paid;
            holding.alone -= paid;
            holding.cut(question.lease);
            // As of when it was asked, which was before Redis answered: time is on the caller's side.
            holding.bucket = Bucket::of(answer.taken, asked);
            holding.bucket.take(&question.quota, holding.alone, asked);
            holding.known = answer.known;
        }
        refused
    }

    /// What to say when Redis has refused by some policies: it has the last word where rounding differs.
    fn refuse(&self, ask: &Ask<'_>, now: u64, refused: &[usize]) -> Verdicts {
        let mut verdicts = self.verdicts(ask, now);
        for (verdict, (at, _)) in verdicts.iter_mut().zip(self.each(ask)) {
            verdict.admitted = !refused.contains(&at);
            if !verdict.admitted {
                verdict.retry_after = verdict.retry_after.max(Duration::from_millis(1));
            }
        }
        verdicts
    }
}

/// Reads what the script answers, three texts for each of `count` policies.
fn answers(texts: &[String], count: usize) -> Result<Vec<Answer>, Error> {
    let read = |texts: &[String]| {
        let [known, taken, rows] = texts else { return None };
        // It is sent back one day.
        known.parse::<f64>().ok().filter(|known| known.is_finite())?;
        let taken = taken.parse::<f64>().ok()?.max(0.0) / 1e6;
        let rows: i64 = rows.parse().ok()?;
        Some(Answer {
            known: known.clone(),
            taken: Duration::try_from_secs_f64(taken).ok()?,
            rows: u64::try_from(rows).ok(),
        })
    };
    let answers: Option<Vec<Answer>> = texts.chunks(3).map(read).collect();
    answers.filter(|answers| answers.len() == count).ok_or(Error::Garbled)
}

/// A digest of `parts`, none of which can be mistaken for another's end.
fn digest(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    URL_SAFE_NO_PAD.encode(&hasher.finalize()[..16])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_three_texts_for_each_policy() {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let read = answers(&texts(&["5.000", "1500000.000", "20", "6.000", "-0.001", "-1"]), 2).unwrap();
        assert_eq!(read[0].taken, Duration::from_millis(1_500));
        assert_eq!((read[0].known.as_str(), read[0].rows), ("5.000", Some(20)));
        assert_eq!((read[1].taken, read[1].rows), (Duration::ZERO, None));
        for wrong in [
            &["5", "1", "20"][..],
            &["5", "1", "20", "5", "1"],
            &["5", "1", "20", "5", "soon", "1"],
            &["nan", "1", "20", "5", "1", "1"],
            &["", "1", "20", "5", "1", "1"],
            &["5", "1", "20", "5", "1e300", "1"],
            &["5", "1", "20", "5", "1", "1.5"],
        ] {
            assert!(answers(&texts(wrong), 2).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn no_two_callers_share_an_account() {
        let plan = |name: &str| Some(Arc::from(name));
        let accounts = [
            ("ab", None),
            ("ab", plan("")),
            ("a", plan("b")),
            ("", plan("ab")),
            ("a", None),
            ("ab", plan("b")),
        ];
        let tags: Vec<String> =
            accounts.iter().map(|(caller, plan)| Account::new(caller, plan.as_ref()).tag).collect();
        let different: std::collections::BTreeSet<&String> = tags.iter().collect();
        assert_eq!(different.len(), accounts.len(), "{tags:?}");
        assert!(tags.iter().all(|tag| tag.len() == 22), "{tags:?}");
    }
}
