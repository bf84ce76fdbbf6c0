//! Judges canaries by what they have answered, and takes the bad ones back; gives the good ones more, where the operator wants that.
//!
//! Each gateway judges by what it has answered itself. What it decides goes through [`change`](super::change) with the revision that
//! was judged: of two gateways that decide at once, one changes the rollout and the other finds it changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use scoregate_schemas::rollout::SLOTS;
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

/// By how many standard deviations something has to be beyond its limit, so that it is not so by chance: about once in a thousand
/// looks at a version that is exactly at the limit, and hardly ever for one that is well below.
const DEVIATIONS: f64 = 3.0;

/// Fewer failures or slow answers than this convict nobody.
const FEWEST: u64 = 10;

/// The share of requests that may be slow: those above the 99th percentile.
const SLOW: f64 = 0.01;

/// What is known of a canary and of the live version beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// What the live version has answered since.
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
    /// It breaks none.
    Good,
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
}

impl Rule {
    /// As the audit log calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Errors => "error_rate",
            Self::Latency => "latency",
            Self::Psi => "psi",
            Self::Flips => "flips",
        }
    }
}

/// The least share that `found` of `all` can be a sample of, give or take [`DEVIATIONS`] standard deviations: the lower end of
/// Wilson's interval.
fn least_share(found: u64, all: u64) -> f64 {
    if all == 0 {
        return 0.0;
    }
    let (share, all, square) = (found as f64 / all as f64, all as f64, DEVIATIONS * DEVIATIONS);
    let middle = share + square / (2.0 * all);
    let around = DEVIATIONS * (share * (1.0 - share) / all + square / (4.0 * all * all)).sqrt();
    ((middle - around) / (1.0 + square / all)).max(0.0)
}

fn share(found: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { found as f64 / all as f64 }
}

/// Judges a canary by `rules`: errors and latency as soon as they are beyond their limits by more than chance, scores once there are
/// enough of them.
pub fn judge(rules: &GuardSettings, observed: &Observed) -> Verdict {
    let Observed { live, canary, compared, held } = observed;
    let limit = share(live.failed, live.requests) + rules.max_error_rate;
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
    Verdict::Good
}

/// What becomes of a canary with a share of `percent` after a verdict, if anything.
fn next(rules: &GuardSettings, version: &str, percent: f64, verdict: Verdict) -> Option<Change> {
    match (rules.mode, verdict) {
        (GuardMode::Off, _) | (_, Verdict::Waiting { .. }) | (GuardMode::Rollback, Verdict::Good) => None,
        (GuardMode::Rollback | GuardMode::Promote, Verdict::Bad { .. }) => Some(Change::Drop(version.into())),
        (GuardMode::Promote, Verdict::Good) => {
            let step = rules.steps.iter().copied().find(|step| *step > percent);
            Some(match step {
                Some(percent) => Change::Canary { version: version.into(), percent },
                None => Change::Promote(version.into()),
            })
        }
    }
}

/// Watches canaries, one look after another.
#[derive(Debug, Default)]
pub struct Guard {
    /// By model and version.
    trials: BTreeMap<(String, String), Trial>,
}

/// A canary with one share beside one live version.
#[derive(Debug)]
struct Trial {
    live: Arc<Version>,
    canary: Arc<Version>,
    slots: Vec<(u16, u16)>,
    since: Option<String>,
    /// When it was first seen so, at most a second after it was so.
    begin: SystemTime,
    /// What the live version and the canary had answered by then, which does not count.
    before: [Answered; 2],
    /// The revision that was decided on: nothing is decided twice.
    decided: Option<u64>,
    /// What went wrong last, which is told once.
    complaint: Option<String>,
}

impl Trial {
    fn new(split: &Split, canary: &LoadedCanary, now: SystemTime) -> Self {
        Self {
            live: Arc::clone(&split.live),
            canary: Arc::clone(&canary.version),
            slots: canary.slots.clone(),
            since: canary.since.clone(),
            begin: now,
            before: [split.live.tally.answered(), canary.version.tally.answered()],
            decided: None,
            complaint: None,
        }
    }

    fn is_of(&self, split: &Split, canary: &LoadedCanary) -> bool {
        Arc::ptr_eq(&self.live, &split.live)
            && Arc::ptr_eq(&self.canary, &canary.version)
            && self.since == canary.since
            && self.slots == canary.slots
    }

    fn observe(&self, app: &App, model: &str, now: SystemTime) -> Observed {
        let [live, canary] = &self.before;
        let since = self.since.as_deref();
        let report = || {
            let (live, canary) = (&self.live.manifest.version, &self.canary.manifest.version);
            let report = app.shadows.report(model, live, canary, since);
            report.map_or(Agreement { rows: 0, psi: None, flips: None }, |report| Agreement {
                rows: report.scores.rows,
                psi: report.scores.psi,
                flips: report.scores.flips.map(|flips| flips.rows),
            })
        };
        // By the rollout's own clock, so that a gateway that has just started does not begin anew.
        let written = since.and_then(|since| OffsetDateTime::parse(since, &Rfc3339).ok());
        let begin = written.map_or(self.begin, SystemTime::from);
        Observed {
            live: self.live.tally.answered().since(live),
            canary: self.canary.tally.answered().since(canary),
            compared: (app.settings.shadow.sample > 0.0).then(report),
            held: now.duration_since(begin).unwrap_or_default(),
        }
    }
}

impl Guard {
    /// Looks at every canary, and does what follows.
    pub fn look(&mut self, app: &App, now: SystemTime) {
        let Some(models) = app.registry().map(|registry| registry.models()) else { return };
        app.shadows.keep(&models);
        let mut seen = Vec::new();
        for (name, model) in &models.models {
            let Some(split) = &model.split else { continue };
            let rules = app.settings.guard_of(name);
            // One that answers nobody is for testers, who judge themselves.
            let on_trial = |canary: &&LoadedCanary| rules.mode != GuardMode::Off && !canary.slots.is_empty();
            for canary in split.canaries.iter().filter(on_trial) {
                let key = (name.clone(), canary.version.manifest.version.clone());
                seen.push(key.clone());
                let trial = self.trials.entry(key).or_insert_with(|| Trial::new(split, canary, now));
                if !trial.is_of(split, canary) {
                    *trial = Trial::new(split, canary, now);
                }
                if trial.decided.is_none_or(|decided| split.revision > decided) {
                    let observed = trial.observe(app, name, now);
                    let verdict = judge(rules, &observed);
                    trial.act(app, name, rules, split, &observed, verdict, now);
                }
            }
        }
        self.trials.retain(|key, _| seen.contains(key));
    }
}

impl Trial {
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
        let slots: u16 = self.slots.iter().map(|(first, end)| end - first).sum();
        let percent = f64::from(slots) * 100.0 / f64::from(SLOTS);
        let Some(change) = next(rules, version, percent, verdict) else { return };
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
                self.decided = Some(split.revision);
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
                        "what was decided on a canary cannot be done; it is tried again every second"
                    );
                    self.complaint = Some(error);
                }
            }
        }
    }
}

/// What the audit log and the webhook say of why something was done.
fn facts(observed: &Observed, verdict: Verdict) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut add = |name: &str, fact: Value| drop(facts.insert(name.into(), fact));
    match verdict {
        Verdict::Bad { rule, found, limit } => {
            add("verdict", "bad".into());
            add("rule", rule.as_str().into());
            add("found", found.into());
            add("limit", limit.into());
        }
        Verdict::Good => add("verdict", "good".into()),
        Verdict::Waiting { .. } => {}
    }
    add("rows", observed.canary.rows.into());
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
        Answered { requests, failed, rows: requests - failed, singles: Spread::default() }
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
        let compared = Some(Agreement { rows, psi: Some(psi), flips: Some(flips) });
        Observed { live, canary, compared, held: Duration::from_secs(3_600) }
    }

    /// The rule that is broken, `good`, or `waiting`.
    fn verdict(observed: &Observed) -> &'static str {
        match judge(&GuardSettings::default(), observed) {
            Verdict::Waiting { .. } => "waiting",
            Verdict::Bad { rule, .. } => rule.as_str(),
            Verdict::Good => "good",
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
            ((10_000, 0), (10_000, 140), "error_rate"),
            // Where everything fails, it is nobody's fault.
            ((1_000, 900), (1_000, 905), "waiting"),
            ((10_000, 500), (10_000, 550), "good"),
            ((10_000, 500), (10_000, 700), "error_rate"),
            // What was never asked does not fail.
            ((0, 0), (0, 0), "waiting"),
            ((0, 0), (5_000, 500), "error_rate"),
        ] {
            let (one, two) = (answered(live.0, live.1), answered(canary.0, canary.1));
            let found = verdict(&observed(one, two, (10_000, 0.0, 0)));
            assert_eq!(found, expected, "live {live:?}, canary {canary:?}");
        }
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
        let regression = Some(Agreement { rows: 5_000, psi: Some(0.1), flips: None });
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
        for (mode, percent, verdict, expected) in [
            (GuardMode::Promote, 1.0, Verdict::Good, more(5.0)),
            (GuardMode::Promote, 5.0, Verdict::Good, more(25.0)),
            (GuardMode::Promote, 50.0, Verdict::Good, more(100.0)),
            (GuardMode::Promote, 100.0, Verdict::Good, Some(Change::Promote("b".into()))),
            (GuardMode::Promote, 5.0, bad, dropped.clone()),
            (GuardMode::Promote, 5.0, Verdict::Waiting { rows: 1, need: 2 }, None),
            (GuardMode::Rollback, 5.0, Verdict::Good, None),
            (GuardMode::Rollback, 5.0, bad, dropped),
            (GuardMode::Off, 5.0, bad, None),
        ] {
            let rules = GuardSettings { mode, ..promote.clone() };
            assert_eq!(next(&rules, "b", percent, verdict), expected, "{mode:?} {percent} {verdict:?}");
        }
    }

    #[test]
    fn shares_that_are_sampled_have_a_lower_end() {
        // scipy.stats.binomtest(k, n).proportion_ci(0.9973002, "wilson").low
        for (found, all, expected) in [(10, 10, 0.526_316), (40, 2_000, 0.012_536), (0, 5, 0.0)] {
            assert!((least_share(found, all) - expected).abs() < 1e-6, "{found} of {all}");
        }
        assert_eq!(least_share(0, 0), 0.0);
    }
}
