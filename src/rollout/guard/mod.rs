//! Judges canaries by what they have answered, and takes the bad ones back; gives the good ones more, where the operator wants that.
//!
//! Each gateway judges by what it has answered itself. What it decides goes through [`change`](super::change) with the revision that
//! was judged: of two gateways that decide at once, one changes the rollout and the other finds it changed.

mod judge;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use scoregate_schemas::rollout::SLOTS;
use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use self::judge::Agreement;
use self::judge::{Observed, Verdict, facts, judge, known};
use super::change::{Asked, Change, Changed, Serving};
use super::shadow::Report;
use super::{Error, slots};
use crate::app::App;
use crate::audit::Actor;
use crate::config::{GuardMode, GuardSettings};
use crate::registry::{LoadedCanary, Split, Version};
use crate::telemetry::tally::Answered;

/// How often canaries are judged.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// How many seconds are waited after each time that a decision could not be carried out; the last of them from then on.
const PAUSES_S: [u64; 6] = [1, 5, 30, 60, 300, 600];

/// The longest of these pauses where a bad canary is to be taken back.
const MAX_PAUSE_OF_DROP_S: u64 = 60;

/// How many decisions are told of after they were carried out.
const MAX_PAST: usize = 64;

/// Finding the rollout changed so many times is more than that others were first.
const CHANGED_FOR_LONG: usize = 3;

/// What becomes of a canary with a share of `percent` after a verdict, if anything, where other canaries leave it at most `free`.
fn next(
    mode: GuardMode,
    steps: &[f64],
    version: &str,
    percent: f64,
    free: f64,
    verdict: Verdict,
) -> Option<Change> {
    match (mode, verdict) {
        (GuardMode::Off, _)
        | (_, Verdict::Waiting | Verdict::Doubtful { .. })
        | (GuardMode::Rollback, Verdict::Good) => None,
        (GuardMode::Rollback | GuardMode::Promote, Verdict::Bad { .. }) => Some(Change::Drop(version.into())),
        (GuardMode::Promote, Verdict::Good) => {
            let step = steps.iter().copied().find(|step| *step > percent);
            Some(match step.map(|step| step.min(free)).filter(|step| *step > percent) {
                Some(percent) => Change::Canary { version: version.into(), percent, guard: None },
                None => Change::Promote(version.into()),
            })
        }
    }
}

/// What is thought of the canaries, and what was done with those before, for those who ask.
#[derive(Debug, Default)]
pub struct Verdicts {
    now: Mutex<Vec<Judged>>,
    past: Mutex<VecDeque<Decided>>,
}

impl Verdicts {
    /// Those on canaries of models that are `wanted`.
    pub fn of(&self, wanted: impl Fn(&str) -> bool) -> Vec<Judged> {
        let all = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|judged| wanted(&judged.model)).cloned().collect()
    }

    /// What this gateway has done with canaries of those models, the last first.
    pub fn past(&self, wanted: impl Fn(&str) -> bool) -> Vec<Decided> {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.iter().filter(|decided| wanted(&decided.model)).cloned().collect()
    }

    fn set(&self, all: Vec<Judged>) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    fn keep(&self, decided: Decided) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.push_front(decided);
        past.truncate(MAX_PAST);
    }
}

/// What was done with a canary, and all that was known of it then.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decided {
    /// The model.
    pub model: String,
    /// The canary.
    pub version: String,
    /// `drop`, `step` or `promote`.
    pub action: &'static str,
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// Why.
    pub verdict: Map<String, Value>,
    /// How it compared with the live version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Report>,
}

/// What a change does with a canary.
fn action(change: &Change) -> &'static str {
    match change {
        Change::Drop(_) => "drop",
        Change::Promote(_) => "promote",
        _ => "step",
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
    /// Why what is to be done could not be done yet, without paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Judged {
    /// What speaks against it, in a sentence, if something does.
    pub fn doubt(&self) -> Option<String> {
        let [verdict, rule] = ["verdict", "rule"].map(|name| self.facts.get(name).and_then(Value::as_str));
        let [found, limit] = ["found", "limit"].map(|name| self.facts.get(name).and_then(Value::as_f64));
        let (version, verdict, rule, found, limit) = (&self.version, verdict?, rule?, found?, limit?);
        Some(format!(
            "version {version} is {verdict} by what it has answered at this gateway: {rule} {found:.4}, where {limit:.4} may be"
        ))
    }
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
    /// What was decided last, if it could not be done.
    failed: Option<Failed>,
}

/// Something that was decided and could not be done.
#[derive(Debug)]
struct Failed {
    change: Change,
    /// How often.
    times: usize,
    /// When it is tried again.
    again: SystemTime,
    /// What went wrong last that is worth telling, without paths.
    told: Option<String>,
}

impl Failed {
    /// What is known of `change` after what failed `last`: to take a canary back has nothing to do with what came of giving it more.
    fn again(last: Option<Self>, change: &Change, now: SystemTime) -> Self {
        let same = last.filter(|failed| failed.change == *change);
        same.unwrap_or_else(|| Self { change: change.clone(), times: 0, again: now, told: None })
    }

    fn put_off(&mut self, now: SystemTime) {
        let pause = PAUSES_S[self.times.min(PAUSES_S.len() - 1)];
        let most = if matches!(self.change, Change::Drop(_)) { MAX_PAUSE_OF_DROP_S } else { u64::MAX };
        self.again = now + Duration::from_secs(pause.min(most));
        self.times += 1;
    }

    /// Says what went wrong, once.
    fn complain(&mut self, model: &str, version: &str, error: Error) {
        // Another gateway, or a person, was first; what has become of it is seen in a moment, if it can be followed.
        let told = match is_of_others(&error) {
            true if self.times < CHANGED_FOR_LONG => return,
            true => "the rollout in the repository is another than this gateway follows; GET /v1/models/{model} and the log say why \
                     it cannot be followed"
                .into(),
            false => error.reason(),
        };
        // A store that is away says so in other words each time.
        if self.told.as_ref() != Some(&told) {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(
                model.name = model,
                model.version = version,
                error,
                "what was decided on a canary cannot be done; it is tried again, ever more rarely: {told}"
            );
            self.told = Some(told);
        }
    }
}

/// Whether somebody else has changed the rollout meanwhile.
fn is_of_others(error: &Error) -> bool {
    // What is left for a step is told by the rollout that is followed.
    matches!(error, Error::Changed { .. } | Error::NoCanary { .. } | Error::Shares(_))
}

/// One look at the canaries of one model.
struct Look<'a> {
    app: &'a App,
    model: &'a str,
    rules: &'a GuardSettings,
    split: &'a Split,
    now: SystemTime,
}

impl Look<'_> {
    /// What other canaries leave, in percent.
    fn free(&self, canary: &Arc<Version>) -> f64 {
        let others = self.split.canaries.iter().filter(|other| !Arc::ptr_eq(&other.version, canary));
        slots::percent(SLOTS.saturating_sub(others.map(|other| slots::len(&other.slots)).sum()))
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
            let look = Look { app, model: name, rules: app.settings.guard_of(name), split, now };
            // One that answers nobody is for testers, who judge themselves.
            let mode = |canary: &LoadedCanary| canary.guard.unwrap_or(look.rules.mode);
            let on_trial =
                |canary: &&LoadedCanary| mode(canary) != GuardMode::Off && !canary.slots.is_empty();
            // What is seen of the rollout after a change is what it was before, for a moment.
            let of_model = self.trials.iter().filter(|((model, _), _)| model == name);
            let mut is_decided =
                of_model.map(|(_, trial)| trial).any(|trial| trial.decided == Some(split.revision));
            for canary in split.canaries.iter().filter(on_trial) {
                let version = &canary.version.manifest.version;
                let key = (name.clone(), version.clone());
                seen.push(key.clone());
                let fresh = || Trial::new(split, canary, was_there, now);
                let trial = self.trials.entry(key).or_insert_with(fresh);
                if !trial.is_of(split, canary) {
                    *trial = fresh();
                }
                let observed = trial.observe(&look);
                let verdict = judge(look.rules, &observed);
                let facts = facts(look.rules, &observed, verdict);
                trial.say(&look, &observed, verdict, &facts);
                let percent = slots::percent(slots::len(&canary.slots));
                let change = next(
                    mode(canary),
                    &look.rules.steps,
                    version,
                    percent,
                    look.free(&canary.version),
                    verdict,
                );
                if let Some(change) = change.as_ref().filter(|_| !is_decided) {
                    trial.act(&look, change, verdict, &facts);
                    is_decided = trial.decided == Some(split.revision);
                }
                verdicts.push(Judged {
                    model: name.clone(),
                    version: version.clone(),
                    percent,
                    facts,
                    error: trial.error(change.as_ref()),
                });
            }
        }
        app.shadows.verdicts.set(verdicts);
        self.trials.retain(|key, _| seen.contains(key));
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
            verdict: Verdict::Waiting.as_str(),
            is_told: false,
            failed: None,
        }
    }

    fn is_of(&self, split: &Split, canary: &LoadedCanary) -> bool {
        Arc::ptr_eq(&self.live, &split.live)
            && Arc::ptr_eq(&self.canary, &canary.version)
            && self.since == canary.since
            && self.slots == canary.slots
    }

    fn observe(&self, look: &Look<'_>) -> Observed {
        let (app, [live, canary]) = (look.app, &self.before);
        let nothing = Agreement { comparable: true, rows: 0, psi: None, flips: None };
        let compare = || app.shadows.agreement(look.split, &self.canary).unwrap_or(nothing);
        let all = self.live.tally.answered();
        let since = all.since(live);
        Observed {
            is_timed_beside: since.singles.count() >= look.rules.min_rows,
            live: known(since, all, look.rules.min_rows),
            canary: self.canary.tally.answered().since(canary),
            compared: (app.settings.shadow.sample > 0.0).then(compare),
            held: look.now.duration_since(self.begin).unwrap_or_default(),
        }
    }

    /// Says what is thought of it, if that is news.
    fn say(&mut self, look: &Look<'_>, observed: &Observed, verdict: Verdict, facts: &Map<String, Value>) {
        let (model, version) = (look.model, &self.canary.manifest.version);
        let word = verdict.as_str();
        if std::mem::replace(&mut self.verdict, word) != word {
            let facts = json!(facts).to_string();
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

    /// Why it could not be done yet, if this is what is to be done.
    fn error(&self, change: Option<&Change>) -> Option<String> {
        let failed = self.failed.as_ref().filter(|failed| Some(&failed.change) == change)?;
        failed.told.clone()
    }

    /// How it compares with the live version at this moment.
    fn comparison(&self, look: &Look<'_>) -> Option<Report> {
        let reports = look.app.shadows.reports(|model| model == look.model);
        reports.into_iter().find(|report| report.version == self.canary.manifest.version)
    }

    /// Does what was decided, unless that has just failed.
    fn act(&mut self, look: &Look<'_>, change: &Change, verdict: Verdict, facts: &Map<String, Value>) {
        let Look { app, model, split, now, .. } = *look;
        let mut failed = Failed::again(self.failed.take(), change, now);
        if failed.again > now {
            self.failed = Some(failed);
            return;
        }
        let step = action(change);
        let mut because = facts.clone();
        for (name, fact) in [("action", step), ("version", &self.canary.manifest.version)] {
            because.insert(name.into(), fact.into());
        }
        let asked = Asked {
            expected: Some(vec![split.revision]),
            // Whoever made it a canary has said so.
            breaking: true,
            serving: Serving { live: Some(split.live.manifest.version.clone()), ..Serving::default() },
            facts: facts.clone(),
            because: Some(because),
            ..Asked::new(&app.store, &app.audit, model, Actor::gateway(), now)
        };
        // Once it is done the next comparison may begin.
        let comparison = self.comparison(look);
        match change.carry_out(&asked) {
            Ok(changed) => {
                self.decided = Some(split.revision);
                app.metrics.count_decision(model, step, verdict.rule());
                let version = self.canary.manifest.version.clone();
                let at = OffsetDateTime::from(now).format(&Rfc3339);
                let at = at.expect("a time of this century can be written");
                let (model, verdict) = (model.into(), facts.clone());
                app.shadows.verdicts.keep(Decided { model, version, action: step, at, verdict, comparison });
                self.tell(look, change, &changed, facts);
            }
            Err(error) => {
                failed.put_off(now);
                if !is_of_others(&error) || failed.times >= CHANGED_FOR_LONG {
                    app.metrics.count_decision(model, "failed", verdict.rule());
                }
                failed.complain(model, &self.canary.manifest.version, error);
                self.failed = Some(failed);
            }
        }
    }

    fn tell(&self, look: &Look<'_>, change: &Change, changed: &Changed, facts: &Map<String, Value>) {
        let deed = match change {
            Change::Drop(_) => "a canary broke a rule and was taken back",
            Change::Promote(_) => "a canary broke no rule and was promoted",
            _ => "a canary broke no rule and was given more",
        };
        let (app, model, version) = (look.app, look.model, &self.canary.manifest.version);
        let told = json!(facts).to_string();
        tracing::warn!(model.name = model, model.version = version, facts = told, "{deed}");
        app.webhooks.tell(model, &Actor::gateway(), changed, facts, look.now);
        if let Some(registry) = look.app.registry() {
            registry.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use scoregate_model::package;

    use super::judge::Rule;
    use super::*;

    #[test]
    fn what_cannot_be_done_is_tried_again_ever_more_rarely() {
        let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let tries = |change: &Change| {
            let mut failed = None;
            let tried = (0..24 * 3_600).filter(|second| {
                let mut found = Failed::again(failed.take(), change, at(*second));
                let is_due = found.again <= at(*second);
                if is_due {
                    found.put_off(at(*second));
                }
                failed = Some(found);
                is_due
            });
            tried.collect::<Vec<u64>>()
        };
        let tried = tries(&Change::Promote("b".into()));
        assert_eq!(tried[..7], [0, 1, 6, 36, 96, 396, 996]);
        assert!(tried.len() < 160, "{} times a day", tried.len());
        // A bad one does harm meanwhile.
        let tried = tries(&Change::Drop("b".into()));
        assert_eq!(tried[..7], [0, 1, 6, 36, 96, 156, 216]);
        // Nor does it wait for what came of something else.
        let mut failed = Failed::again(None, &Change::Promote("b".into()), at(0));
        (0..9).for_each(|_| failed.put_off(at(0)));
        let again = Failed::again(Some(failed), &Change::Drop("b".into()), at(1));
        assert_eq!((again.times, again.again), (0, at(1)));
    }

    #[test]
    fn what_goes_wrong_is_told_without_paths_and_what_is_seen_in_a_moment_is_not() {
        let source = || std::io::Error::other("found status 403 by store.example");
        let package = package::Error::Io {
            action: "write",
            path: "/srv/models/churn/rollout.json".into(),
            source: source(),
        };
        let fresh = || Failed::again(None, &Change::Drop("b".into()), SystemTime::UNIX_EPOCH);
        let mut failed = fresh();
        failed.complain("churn", "b", package.into());
        assert_eq!(failed.told.as_deref(), Some("cannot write rollout.json"));
        let (mut failed, mut found) = (fresh(), Vec::new());
        for _ in 0..4 {
            failed.put_off(SystemTime::UNIX_EPOCH);
            failed.complain("churn", "b", Error::Changed { revision: 7 });
            found.push(failed.told.is_some());
        }
        assert_eq!(found, [false, false, true, true]);
    }

    #[test]
    fn a_good_one_goes_up_the_steps() {
        let steps = GuardSettings::default().steps;
        let bad = Verdict::Bad { rule: Rule::Psi, found: 1.0, limit: 0.2 };
        let more = |percent| Some(Change::Canary { version: "b".into(), percent, guard: None });
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
            (GuardMode::Promote, 5.0, 100.0, Verdict::Waiting, None),
            (GuardMode::Rollback, 5.0, 100.0, Verdict::Good, None),
            (GuardMode::Rollback, 5.0, 100.0, bad, dropped),
            (GuardMode::Off, 5.0, 100.0, bad, None),
        ] {
            let found = next(mode, &steps, "b", percent, free, verdict);
            assert_eq!(found, expected, "{mode:?} {percent} {verdict:?}");
        }
    }
}
