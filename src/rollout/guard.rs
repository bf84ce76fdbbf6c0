//! Judges canaries by what they have answered, and takes the bad ones back; gives the good ones more, where the operator wants that.
//!
//! Each gateway judges by what it has answered itself. What it decides goes through [`change`](super::change) with the revision that
//! was judged: of two gateways that decide at once, one changes the rollout and the other finds it changed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use scoregate_schemas::rollout::SLOTS;
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Error;
use super::change::{Asked, Change, Serving};
use crate::app::App;
use crate::audit::Actor;
use crate::config::{GuardMode, GuardSettings};
use crate::registry::{LoadedCanary, Split, Version};
use crate::telemetry::tally::Answered;

/// How often canaries are judged.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// By how many standard deviations something has to be beyond its limit, so that it is not so by chance: hardly ever for a version that
/// is well below. One that is exactly at the limit is convicted about once in a thousand looks, and so in the end.
const DEVIATIONS: f64 = 3.0;

/// Fewer failures or slow answers than this convict nobody.
const FEWEST: u64 = 10;

/// The share of requests that may be slow: those above the 99th percentile.
const SLOW: f64 = 0.01;

/// How many seconds are waited after each time that a decision could not be carried out; the last of them from then on.
const PAUSES_S: [u64; 6] = [1, 5, 30, 60, 300, 600];

/// What is known of a canary and of the live version beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// What the live version has answered since, or for as long as it is loaded: see [`beside`].
    pub live: Answered,
    /// What the canary has.
    pub canary: Answered,
    /// What both have scored; nothing where nothing is scored beside the answers.
    pub compared: Option<Agreement>,
    /// How long the canary has had its share.
    pub held: Duration,
}

/// How the scores of two versions agree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Whether they can be held against each other at all.
    pub comparable: bool,
    /// Rows that both have scored.
    pub rows: u64,
    /// The population stability index.
    pub psi: Option<f64>,
    /// Rows of which they decide otherwise.
    pub flips: Option<u64>,
}

/// What is thought of a canary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// It is too early to say.
    Waiting {
        /// Rows that were answered and compared.
        rows: u64,
        /// Rows that have to be.
        need: u64,
    },
    /// It breaks a rule.
    Bad {
        /// Which one.
        rule: Rule,
        /// What was found.
        found: f64,
        /// What may be found.
        limit: f64,
    },
    /// It breaks none, and is given no more of its own accord: it refuses many more rows than the live version, or there is nothing to
    /// hold its failures against. Somebody may have wanted that.
    Doubtful {
        /// Which rule it would break.
        rule: Rule,
        /// What was found.
        found: f64,
        /// What may be found.
        limit: f64,
    },
    /// It breaks none.
    Good,
}

impl Verdict {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Bad { .. } => "bad",
            Self::Doubtful { .. } => "doubtful",
            Self::Good => "good",
        }
    }
}

/// By what a canary is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The share of requests that failed.
    Errors,
    /// The 99th percentile of requests for one row, in seconds.
    Latency,
    /// The population stability index of its scores against the live version's.
    Psi,
    /// The share of rows of which it decides otherwise.
    Flips,
    /// The share of rows that it does not take.
    Refused,
}

impl Rule {
    /// As the audit log calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Errors => "error_rate",
            Self::Latency => "latency",
            Self::Psi => "psi",
            Self::Flips => "flips",
            Self::Refused => "refused_rows",
        }
    }
}

/// The shares that `found` of `all` can be a sample of, give or take [`DEVIATIONS`] standard deviations: the ends of Wilson's interval.
fn shares(found: u64, all: u64) -> [f64; 2] {
    if all == 0 {
        return [0.0, 1.0];
    }
    let (share, all, square) = (found as f64 / all as f64, all as f64, DEVIATIONS * DEVIATIONS);
    let middle = share + square / (2.0 * all);
    let around = DEVIATIONS * (share * (1.0 - share) / all + square / (4.0 * all * all)).sqrt();
    [middle - around, middle + around].map(|end| (end / (1.0 + square / all)).clamp(0.0, 1.0))
}

/// The least of them.
fn least_share(found: u64, all: u64) -> f64 {
    shares(found, all)[0]
}

/// The largest of them.
fn largest_share(found: u64, all: u64) -> f64 {
    shares(found, all)[1]
}

/// What a live version is known to do beside a canary: what it has answered `since`, and where that are not as many as are `needed`,
/// because it has little or nothing left to answer, what it has answered in `all`.
fn beside(since: Answered, all: Answered, needed: u64) -> Answered {
    let singles = if since.singles.count() < needed { all.singles.clone() } else { since.singles.clone() };
    let known = if since.requests < needed { all } else { since };
    Answered { singles, ..known }
}

fn share(found: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { found as f64 / all as f64 }
}

/// Judges a canary by `rules`: errors and latency as soon as they are beyond their limits by more than chance, scores once there are
/// enough of them.
pub fn judge(rules: &GuardSettings, observed: &Observed) -> Verdict {
    let Observed { live, canary, compared, held } = observed;
    // Both are samples. Where the live one has answered next to nothing, only a canary that mostly fails is to blame for it.
    let is_alone = live.requests < FEWEST;
    let failing = if is_alone { 0.5 } else { largest_share(live.failed, live.requests) };
    let limit = failing + rules.max_error_rate;
    if canary.failed >= FEWEST && least_share(canary.failed, canary.requests) > limit {
        return Verdict::Bad { rule: Rule::Errors, found: share(canary.failed, canary.requests), limit };
    }
    if let Some(live) = live.singles.quantile(1.0 - SLOW).filter(|_| live.singles.count() >= rules.min_rows) {
        let limit = live.mul_f64(rules.max_latency_ratio).max(live + rules.latency_floor);
        let slow = canary.singles.above(limit);
        if slow >= FEWEST && least_share(slow, canary.singles.count()) > SLOW {
            let found = canary.singles.quantile(1.0 - SLOW).unwrap_or_default();
            let (found, limit) = (found.as_secs_f64(), limit.as_secs_f64());
            return Verdict::Bad { rule: Rule::Latency, found, limit };
        }
    }
    let rows = compared.map_or(u64::MAX, |compared| compared.rows);
    if let Some(Agreement { psi, flips, .. }) = compared
        && rows >= rules.min_rows
    {
        if let Some(found) = psi.filter(|psi| *psi > rules.max_psi) {
            return Verdict::Bad { rule: Rule::Psi, found, limit: rules.max_psi };
        }
        if let Some(flips) = flips.filter(|flips| least_share(*flips, rows) > rules.max_flips) {
            return Verdict::Bad { rule: Rule::Flips, found: share(flips, rows), limit: rules.max_flips };
        }
    }
    let rows = rows.min(canary.rows);
    if rows < rules.min_rows || *held < rules.hold {
        return Verdict::Waiting { rows, need: rules.min_rows };
    }
    let found = share(canary.failed, canary.requests);
    if is_alone && found > rules.max_error_rate {
        return Verdict::Doubtful { rule: Rule::Errors, found, limit: rules.max_error_rate };
    }
    let sent = |answered: &Answered| answered.rows + answered.refused;
    let limit = largest_share(live.refused, sent(live)) + rules.max_error_rate;
    if least_share(canary.refused, sent(canary)) > limit {
        let found = share(canary.refused, sent(canary));
        return Verdict::Doubtful { rule: Rule::Refused, found, limit };
    }
    Verdict::Good
}

/// What becomes of a canary with a share of `percent` after a verdict, if anything, where other canaries leave it at most `free`.
fn next(rules: &GuardSettings, version: &str, percent: f64, free: f64, verdict: Verdict) -> Option<Change> {
    match (rules.mode, verdict) {
        (GuardMode::Off, _)
        | (_, Verdict::Waiting { .. } | Verdict::Doubtful { .. })
        | (GuardMode::Rollback, Verdict::Good) => None,
        (GuardMode::Rollback | GuardMode::Promote, Verdict::Bad { .. }) => Some(Change::Drop(version.into())),
        (GuardMode::Promote, Verdict::Good) => {
            let step = rules.steps.iter().copied().find(|step| *step > percent);
            Some(match step.map(|step| step.min(free)).filter(|step| *step > percent) {
                Some(percent) => Change::Canary { version: version.into(), percent },
                None => Change::Promote(version.into()),
            })
        }
    }
}

/// How many slots are in these ranges.
fn count(slots: &[(u16, u16)]) -> u16 {
    slots.iter().map(|(first, end)| end - first).sum()
}

/// How much of everything so many slots are, in percent.
fn percent_of(slots: u16) -> f64 {
    f64::from(slots) * 100.0 / f64::from(SLOTS)
}

/// What is thought of the canaries, for those who ask.
#[derive(Debug, Default)]
pub struct Verdicts(Mutex<Vec<Judged>>);

impl Verdicts {
    /// Those on canaries of models that are `wanted`.
    pub fn of(&self, wanted: impl Fn(&str) -> bool) -> Vec<Judged> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|judged| wanted(&judged.model)).cloned().collect()
    }

    fn set(&self, all: Vec<Judged>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

/// What is thought of a canary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// The model.
    pub model: String,
    /// The canary.
    pub version: String,
    /// Its share.
    pub percent: f64,
    /// How it came out, by what, and of how much.
    #[serde(flatten)]
    pub facts: Map<String, Value>,
    /// Why what was decided could not be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Watches canaries, one look after another.
#[derive(Debug, Default)]
pub struct Guard {
    /// By model and version.
    trials: BTreeMap<(String, String), Trial>,
    /// Whether it has looked before.
    has_looked: bool,
}

/// A canary with one share beside one live version.
#[derive(Debug)]
struct Trial {
    live: Arc<Version>,
    canary: Arc<Version>,
    slots: Vec<(u16, u16)>,
    since: Option<String>,
    /// When it was first seen so, at most a second after it was so; of one that was there before the gateway, when the rollout says that
    /// it was given its share.
    begin: SystemTime,
    /// What the live version and the canary had answered by then, which does not count.
    before: [Answered; 2],
    /// The revision that was decided on: nothing is decided twice, nor anything else on the same revision.
    decided: Option<u64>,
    /// What was thought of it last.
    verdict: &'static str,
    /// Whether it was told that it cannot be compared.
    is_told: bool,
    retry: Retry,
    /// What went wrong last, which is told once.
    complaint: Option<String>,
}

/// How often something could not be done, and when it is tried again.
#[derive(Debug, Default)]
struct Retry {
    failures: usize,
    again: Option<SystemTime>,
}

impl Retry {
    fn is_due(&self, now: SystemTime) -> bool {
        self.again.is_none_or(|again| again <= now)
    }

    fn put_off(&mut self, now: SystemTime) {
        let pause = PAUSES_S[self.failures.min(PAUSES_S.len() - 1)];
        self.again = Some(now + Duration::from_secs(pause));
        self.failures += 1;
    }
}

impl Trial {
    fn new(split: &Split, canary: &LoadedCanary, was_there: bool, now: SystemTime) -> Self {
        // A share that is given from now on is held by this machine's clock, whichever machine has written it.
        let written = canary.since.as_deref().filter(|_| was_there);
        let written = written.and_then(|since| OffsetDateTime::parse(since, &Rfc3339).ok());
        Self {
            live: Arc::clone(&split.live),
            canary: Arc::clone(&canary.version),
            slots: canary.slots.clone(),
            since: canary.since.clone(),
            begin: written.map_or(now, SystemTime::from).min(now),
            before: [split.live.tally.answered(), canary.version.tally.answered()],
            decided: None,
            verdict: "waiting",
            is_told: false,
            retry: Retry::default(),
            complaint: None,
        }
    }

    fn is_of(&self, split: &Split, canary: &LoadedCanary) -> bool {
        Arc::ptr_eq(&self.live, &split.live)
            && Arc::ptr_eq(&self.canary, &canary.version)
            && self.since == canary.since
            && self.slots == canary.slots
    }

    fn observe(&self, app: &App, rules: &GuardSettings, split: &Split, now: SystemTime) -> Observed {
        let [live, canary] = &self.before;
        let nothing = Agreement { comparable: true, rows: 0, psi: None, flips: None };
        let compare = || app.shadows.agreement(split, &self.canary).unwrap_or(nothing);
        let all = self.live.tally.answered();
        Observed {
            live: beside(all.since(live), all, rules.min_rows),
            canary: self.canary.tally.answered().since(canary),
            compared: (app.settings.shadow.sample > 0.0).then(compare),
            held: now.duration_since(self.begin).unwrap_or_default(),
        }
    }
}

impl Guard {
    /// Looks at every canary, and does what follows.
    pub fn look(&mut self, app: &App, now: SystemTime) {
        let Some(models) = app.registry().map(|registry| registry.models()) else { return };
        app.shadows.keep(&models);
        let (mut seen, mut verdicts) = (Vec::new(), Vec::new());
        let was_there = !std::mem::replace(&mut self.has_looked, true);
        for (name, model) in &models.models {
            let Some(split) = &model.split else { continue };
            let rules = app.settings.guard_of(name);
            // One that answers nobody is for testers, who judge themselves.
            let on_trial = |canary: &&LoadedCanary| rules.mode != GuardMode::Off && !canary.slots.is_empty();
            // What is seen of the rollout after a change is what it was before, for a moment.
            let of_model = self.trials.iter().filter(|((model, _), _)| model == name);
            let mut is_decided =
                of_model.map(|(_, trial)| trial).any(|trial| trial.decided == Some(split.revision));
            for canary in split.canaries.iter().filter(on_trial) {
                let key = (name.clone(), canary.version.manifest.version.clone());
                seen.push(key.clone());
                let fresh = || Trial::new(split, canary, was_there, now);
                let trial = self.trials.entry(key).or_insert_with(fresh);
                if !trial.is_of(split, canary) {
                    *trial = fresh();
                }
                let observed = trial.observe(app, rules, split, now);
                let verdict = judge(rules, &observed);
                trial.say(name, &observed, verdict);
                if !is_decided && trial.retry.is_due(now) {
                    trial.act(app, name, rules, split, &observed, verdict, now);
                    is_decided = trial.decided == Some(split.revision);
                }
                verdicts.push(Judged {
                    model: name.clone(),
                    version: canary.version.manifest.version.clone(),
                    percent: percent_of(count(&canary.slots)),
                    facts: facts(&observed, verdict),
                    error: trial.complaint.clone(),
                });
            }
        }
        app.shadows.verdicts.set(verdicts);
        self.trials.retain(|key, _| seen.contains(key));
    }
}

impl Trial {
    /// Says what is thought of it, if that is news.
    fn say(&mut self, model: &str, observed: &Observed, verdict: Verdict) {
        let version = &self.canary.manifest.version;
        if std::mem::replace(&mut self.verdict, verdict.as_str()) != verdict.as_str() {
            let facts = Value::Object(facts(observed, verdict)).to_string();
            let word = verdict.as_str();
            tracing::info!(model.name = model, model.version = version, facts, "a canary is {word}");
        }
        let is_comparable = observed.compared.is_none_or(|compared| compared.comparable);
        if !is_comparable && !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(
                model.name = model,
                model.version = version,
                "a canary has another task or other labels than the live version: its scores cannot be compared, so that it is never \
                 given more of its own accord"
            );
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what is decided and all that it is told with")]
    fn act(
        &mut self,
        app: &App,
        model: &str,
        rules: &GuardSettings,
        split: &Split,
        observed: &Observed,
        verdict: Verdict,
        now: SystemTime,
    ) {
        let version = &self.canary.manifest.version;
        let others = split.canaries.iter().filter(|other| !Arc::ptr_eq(&other.version, &self.canary));
        let free = percent_of(SLOTS.saturating_sub(others.map(|other| count(&other.slots)).sum()));
        let percent = percent_of(count(&self.slots));
        let Some(change) = next(rules, version, percent, free, verdict) else { return };
        let facts = facts(observed, verdict);
        let asked = Asked {
            expected: Some(vec![split.revision]),
            // Whoever made it a canary has said so.
            breaking: true,
            serving: Serving { live: Some(split.live.manifest.version.clone()), ..Serving::default() },
            facts: facts.clone(),
            ..Asked::new(&app.store, &app.audit, model, Actor::gateway(), now)
        };
        match change.carry_out(&asked) {
            Ok(changed) => {
                (self.decided, self.complaint) = (Some(split.revision), None);
                let verdict = Value::Object(facts.clone()).to_string();
                let deed = match change {
                    Change::Drop(_) => "a canary broke a rule and was taken back",
                    Change::Promote(_) => "a canary broke no rule and was promoted",
                    _ => "a canary broke no rule and was given more",
                };
                tracing::warn!(model.name = model, model.version = version, verdict, "{deed}");
                app.webhooks.tell(model, &Actor::gateway(), &changed, &facts, now);
                if let Some(registry) = app.registry() {
                    registry.wake();
                }
            }
            // Another gateway, or a person, was first; what has become of it is seen in a moment.
            Err(Error::Changed { .. } | Error::NoCanary { .. }) => self.decided = Some(split.revision),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                if self.complaint.as_ref() != Some(&error) {
                    tracing::error!(
                        model.name = model,
                        model.version = version,
                        error,
                        "what was decided on a canary cannot be done; it is tried again, every ten minutes in the end"
                    );
                    self.complaint = Some(error);
                }
                self.retry.put_off(now);
            }
        }
    }
}

/// What the audit log and the webhook say of why something was done.
fn facts(observed: &Observed, verdict: Verdict) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut add = |name: &str, fact: Value| drop(facts.insert(name.into(), fact));
    add("verdict", verdict.as_str().into());
    match verdict {
        Verdict::Bad { rule, found, limit } | Verdict::Doubtful { rule, found, limit } => {
            add("rule", rule.as_str().into());
            add("found", found.into());
            add("limit", limit.into());
        }
        Verdict::Waiting { need, .. } => add("rows_needed", need.into()),
        Verdict::Good => {}
    }
    add("rows", observed.canary.rows.into());
    add("rows_refused", observed.canary.refused.into());
    add("requests", observed.canary.requests.into());
    if let Some(compared) = observed.compared {
        add("rows_compared", compared.rows.into());
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Spread;

    fn answered(requests: u64, failed: u64) -> Answered {
        Answered { requests, failed, rows: requests - failed, refused: 0, singles: Spread::default() }
    }

    fn times(count: u64, usual: Duration, slow: u64, slowly: Duration) -> Answered {
        let mut singles = Spread::default();
        for at in 0..count {
            singles.observe(if at < slow { slowly } else { usual });
        }
        Answered { singles, ..answered(count, 0) }
    }

    fn observed(live: Answered, canary: Answered, compared: (u64, f64, u64)) -> Observed {
        let (rows, psi, flips) = compared;
        let compared = Some(Agreement { comparable: true, rows, psi: Some(psi), flips: Some(flips) });
        Observed { live, canary, compared, held: Duration::from_secs(3_600) }
    }

    /// The rule that is broken, `good`, or `waiting`.
    fn verdict(observed: &Observed) -> &'static str {
        match judge(&GuardSettings::default(), observed) {
            Verdict::Bad { rule, .. } => rule.as_str(),
            verdict => verdict.as_str(),
        }
    }

    #[test]
    fn errors_convict_once_they_are_no_chance() {
        for (live, canary, expected) in [
            // One that answers nothing is found out at once.
            ((1_000, 0), (9, 9), "waiting"),
            ((1_000, 0), (10, 10), "error_rate"),
            ((1_000, 0), (100, 10), "error_rate"),
            ((10_000, 0), (500, 10), "waiting"),
            ((10_000, 0), (2_000, 40), "error_rate"),
            // One percent more than the live version is allowed, and what is by chance a little more.
            ((10_000, 0), (10_000, 100), "good"),
            ((10_000, 0), (10_000, 120), "good"),
            ((10_000, 0), (10_000, 150), "error_rate"),
            // Where everything fails, it is nobody's fault.
            ((1_000, 900), (1_000, 905), "waiting"),
            ((10_000, 500), (10_000, 550), "good"),
            ((10_000, 500), (10_000, 700), "good"),
            ((10_000, 500), (10_000, 800), "error_rate"),
            // Of a live version that is hardly asked little is known.
            ((100, 2), (9_900, 495), "good"),
            ((1_000, 40), (9_000, 540), "good"),
            // Where it never was, one that fails now and then is not promoted, and one that mostly fails is taken back.
            ((0, 0), (0, 0), "waiting"),
            ((0, 0), (5_000, 40), "good"),
            ((0, 0), (5_000, 500), "doubtful"),
            ((0, 0), (5_000, 2_800), "error_rate"),
        ] {
            let (one, two) = (answered(live.0, live.1), answered(canary.0, canary.1));
            let found = verdict(&observed(one, two, (10_000, 0.0, 0)));
            assert_eq!(found, expected, "live {live:?}, canary {canary:?}");
        }
    }

    /// Draws that look random, always the same ones.
    fn draws() -> impl FnMut() -> f64 {
        let mut state = 0x2026_1123_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    #[test]
    fn versions_that_fail_alike_convict_nobody() {
        let rules = GuardSettings::default();
        let mut draw = draws();
        for percent in [0.05, 0.5, 0.9, 0.99, 1.0] {
            for failing in [0.02, 0.05] {
                let mut convicted = 0;
                for _ in 0..200 {
                    // What the live version has answered before there was a canary.
                    let fails = |draw: &mut dyn FnMut() -> f64| u64::from(draw() < failing);
                    let before = answered(2_000, (0..2_000).map(|_| fails(&mut draw)).sum());
                    let (mut live, mut canary) = (before.clone(), answered(0, 0));
                    for _ in 0..60 {
                        for _ in 0..200 {
                            let one = if draw() < percent { &mut canary } else { &mut live };
                            one.requests += 1;
                            one.failed += fails(&mut draw);
                        }
                        let known = beside(live.since(&before), live.clone(), rules.min_rows);
                        if let Verdict::Bad { .. } =
                            judge(&rules, &observed(known, canary.clone(), (0, 0.0, 0)))
                        {
                            convicted += 1;
                            break;
                        }
                    }
                }
                assert!(convicted <= 1, "{convicted} of 200 at {percent}, both failing {failing}");
            }
        }
    }

    #[test]
    fn one_that_refuses_what_the_live_version_takes_is_given_no_more() {
        let rows = |rows, refused| Answered { rows, refused, ..answered(5_000, 0) };
        for (live, canary, expected) in [
            (rows(5_000, 0), rows(5_000, 0), "good"),
            (rows(5_000, 250), rows(5_000, 260), "good"),
            (rows(5_000, 250), rows(5_000, 5_000), "doubtful"),
            (rows(0, 0), rows(5_000, 500), "good"),
            (rows(5_000, 0), rows(999, 9_000), "waiting"),
        ] {
            let found = verdict(&observed(live.clone(), canary.clone(), (10_000, 0.0, 0)));
            assert_eq!(found, expected, "{} and {} refused", live.refused, canary.refused);
        }
    }

    #[test]
    fn a_live_version_that_has_little_left_is_known_by_what_it_did_before() {
        let all = times(5_000, Duration::from_millis(10), 0, Duration::ZERO);
        let before = |count: u64| times(5_000 - count, Duration::from_millis(10), 0, Duration::ZERO);
        let few = all.since(&before(999));
        assert_eq!((few.requests, few.singles.count()), (999, 999));
        assert_eq!(beside(few, all.clone(), 1_000), all);
        let enough = all.since(&before(1_000));
        assert_eq!(beside(enough.clone(), all, 1_000), enough);
    }

    #[test]
    fn what_cannot_be_done_is_tried_again_ever_more_rarely() {
        let mut retry = Retry::default();
        let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let mut tried = Vec::new();
        for second in 0..24 * 3_600 {
            if retry.is_due(at(second)) {
                tried.push(second);
                retry.put_off(at(second));
            }
        }
        assert_eq!(tried[..6], [0, 1, 6, 36, 96, 396]);
        assert!(tried.len() < 160, "{} times a day", tried.len());
    }

    #[test]
    fn slow_answers_convict_once_they_are_no_chance() {
        let millis = Duration::from_millis;
        let live = times(2_000, millis(10), 10, millis(100));
        for (canary, expected) in [
            (times(2_000, millis(10), 10, millis(100)), "good"),
            (times(2_000, millis(10), 20, millis(100)), "good"),
            (times(2_000, millis(10), 60, millis(100)), "latency"),
            (times(2_000, millis(18), 0, millis(0)), "good"),
            (times(2_000, millis(30), 0, millis(0)), "latency"),
            // Before there are many rows, if all are slow.
            (times(20, millis(30), 0, millis(0)), "latency"),
            (times(9, millis(30), 0, millis(0)), "waiting"),
        ] {
            let found = verdict(&observed(live.clone(), canary.clone(), (10_000, 0.0, 0)));
            assert_eq!(found, expected, "p99 {:?}", canary.singles.quantile(0.99));
        }
        // Three times nearly nothing is nearly nothing; and without a live version beside it nothing is slow.
        let quick = times(2_000, Duration::from_micros(50), 0, millis(0));
        let slower = times(2_000, Duration::from_micros(150), 0, millis(0));
        assert_eq!(verdict(&observed(quick, slower.clone(), (10_000, 0.0, 0))), "good");
        assert_eq!(verdict(&observed(times(900, millis(0), 0, millis(0)), slower, (10_000, 0.0, 0))), "good");
    }

    #[test]
    fn scores_convict_once_there_are_enough() {
        for (compared, expected) in [
            ((999, 9.0, 999), "waiting"),
            ((1_000, 0.21, 0), "psi"),
            ((1_000, 0.19, 0), "good"),
            ((1_000, 0.0, 100), "good"),
            ((1_000, 0.0, 120), "good"),
            ((1_000, 0.0, 140), "flips"),
            ((10_000, 0.0, 1_120), "flips"),
            ((10_000, 0.0, 1_050), "good"),
        ] {
            let found = verdict(&observed(answered(2_000, 0), answered(2_000, 0), compared));
            assert_eq!(found, expected, "{compared:?}");
        }
        let regression = Some(Agreement { comparable: true, rows: 5_000, psi: Some(0.1), flips: None });
        let without = observed(answered(2_000, 0), answered(2_000, 0), (0, 0.0, 0));
        assert_eq!(verdict(&Observed { compared: regression, ..without.clone() }), "good");
        assert_eq!(verdict(&without), "waiting", "nothing was compared yet");
        assert_eq!(verdict(&Observed { compared: None, ..without.clone() }), "good", "nothing ever is");
        let early = Observed { compared: None, held: Duration::from_secs(599), ..without };
        assert_eq!(judge(&GuardSettings::default(), &early), Verdict::Waiting { rows: 2_000, need: 1_000 });
    }

    #[test]
    fn a_good_one_goes_up_the_steps() {
        let promote = GuardSettings { mode: GuardMode::Promote, ..GuardSettings::default() };
        let bad = Verdict::Bad { rule: Rule::Psi, found: 1.0, limit: 0.2 };
        let more = |percent| Some(Change::Canary { version: "b".into(), percent });
        let dropped = Some(Change::Drop("b".into()));
        let promoted = Some(Change::Promote("b".into()));
        let doubtful = Verdict::Doubtful { rule: Rule::Refused, found: 1.0, limit: 0.2 };
        for (mode, percent, free, verdict, expected) in [
            (GuardMode::Promote, 1.0, 100.0, Verdict::Good, more(5.0)),
            (GuardMode::Promote, 5.0, 100.0, Verdict::Good, more(25.0)),
            (GuardMode::Promote, 50.0, 100.0, Verdict::Good, more(100.0)),
            (GuardMode::Promote, 100.0, 100.0, Verdict::Good, promoted.clone()),
            // Where another one has a share, what is left of all is the last step.
            (GuardMode::Promote, 5.0, 70.0, Verdict::Good, more(25.0)),
            (GuardMode::Promote, 25.0, 70.0, Verdict::Good, more(70.0)),
            (GuardMode::Promote, 70.0, 70.0, Verdict::Good, promoted),
            (GuardMode::Promote, 5.0, 100.0, bad, dropped.clone()),
            (GuardMode::Promote, 5.0, 100.0, doubtful, None),
            (GuardMode::Promote, 5.0, 100.0, Verdict::Waiting { rows: 1, need: 2 }, None),
            (GuardMode::Rollback, 5.0, 100.0, Verdict::Good, None),
            (GuardMode::Rollback, 5.0, 100.0, bad, dropped),
            (GuardMode::Off, 5.0, 100.0, bad, None),
        ] {
            let rules = GuardSettings { mode, ..promote.clone() };
            assert_eq!(next(&rules, "b", percent, free, verdict), expected, "{mode:?} {percent} {verdict:?}");
        }
    }

    #[test]
    fn shares_that_are_sampled_have_a_lower_end() {
        // scipy.stats.binomtest(k, n).proportion_ci(0.9973002, "wilson")
        for (found, all, low, high) in
            [(10, 10, 0.526_316, 1.0), (40, 2_000, 0.012_536, 0.031_764), (0, 5, 0.0, 9.0 / 14.0)]
        {
            assert!((least_share(found, all) - low).abs() < 1e-6, "{found} of {all}");
            assert!((largest_share(found, all) - high).abs() < 1e-6, "{found} of {all}");
        }
        assert_eq!(shares(0, 0), [0.0, 1.0]);
    }
}
