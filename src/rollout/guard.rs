//! Judges canaries by what they have answered, and takes the bad ones back; gives the good ones more, where the operator wants that.
//!
//! Each gateway judges by what it has answered itself. What it decides goes through [`change`](super::change) with the revision that
//! was judged: of two gateways that decide at once, one changes the rollout and the other finds it changed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use scoregate_schemas::rollout::SLOTS;
use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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

/// By how many standard deviations something has to be beyond its limit, so that it is not so by chance: hardly ever for a version that
/// is well below. One that is exactly at the limit is convicted about once in a thousand looks, and so in the end.
const DEVIATIONS: f64 = 3.0;

/// Fewer failures or slow answers than this convict nobody.
const FEWEST: u64 = 10;

/// The share of requests that may be slow: those above the 99th percentile.
const SLOW: f64 = 0.01;

/// How many seconds are waited after each time that a decision could not be carried out; the last of them from then on.
const PAUSES_S: [u64; 6] = [1, 5, 30, 60, 300, 600];

/// The longest of these pauses where a bad canary is to be taken back.
const MAX_PAUSE_OF_DROP_S: u64 = 60;

/// How many decisions are told of after they were carried out.
const MAX_PAST: usize = 64;

/// Finding the rollout changed so many times is more than that others were first.
const CHANGED_FOR_LONG: usize = 3;

/// What is known of a canary and of the live version beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// What the live version has answered since, or for as long as it is loaded: see [`known`].
    pub live: Answered,
    /// Whether its times are those of the same while: of other hours they say little about what is slow now.
    pub is_timed_beside: bool,
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
    Waiting,
    /// It breaks a rule.
    Bad {
        /// Which one.
        rule: Rule,
        /// What was found.
        found: f64,
        /// What may be found.
        limit: f64,
    },
    /// It may break one, be it by chance, or refuses more rows than the live version, which somebody may have wanted: it is not taken
    /// back, and given no more of its own accord.
    Doubtful {
        /// Which rule it may break.
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
            Self::Waiting => "waiting",
            Self::Bad { .. } => "bad",
            Self::Doubtful { .. } => "doubtful",
            Self::Good => "good",
        }
    }

    /// The rule that is broken, or nothing.
    fn rule(self) -> &'static str {
        match self {
            Self::Bad { rule, .. } => rule.as_str(),
            _ => "",
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

/// What a live version is known to do beside a canary: what it has answered `since`, and where that is less than is `needed`, because
/// it has little or nothing left to answer, what it has answered in `all`; of requests, of rows and of times each on its own.
fn known(since: Answered, all: Answered, needed: u64) -> Answered {
    let requests = if since.requests < needed { &all } else { &since };
    let rows = if sent(&since) < needed { &all } else { &since };
    let (requests, failed, rows, refused) = (requests.requests, requests.failed, rows.rows, rows.refused);
    let singles = if since.singles.count() < needed { all.singles } else { since.singles };
    Answered { requests, failed, rows, refused, singles }
}

/// The rows that a version was sent.
fn sent(answered: &Answered) -> u64 {
    answered.rows + answered.refused
}

fn share(found: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { found as f64 / all as f64 }
}

/// Judges a canary by `rules`: errors and latency as soon as they are beyond their limits by more than chance, scores once there are
/// enough of them.
pub fn judge(rules: &GuardSettings, observed: &Observed) -> Verdict {
    let Observed { live, is_timed_beside, canary, compared, held } = observed;
    let quantile = |answered: &Answered| answered.singles.quantile(1.0 - SLOW).unwrap_or_default();
    // Both are samples. Where the live one has answered next to nothing, only a canary that mostly fails is to blame for it.
    let failing = if live.requests < FEWEST { 0.5 } else { largest_share(live.failed, live.requests) };
    let limit = failing + rules.max_error_rate;
    if canary.failed >= FEWEST && least_share(canary.failed, canary.requests) > limit {
        return Verdict::Bad { rule: Rule::Errors, found: share(canary.failed, canary.requests), limit };
    }
    // Of what little is known is taken for one that fails nothing, refuses nothing and takes no time; that convicts nobody.
    let is_known = |count: u64| count >= rules.min_rows;
    let usual = if is_known(live.singles.count()) { quantile(live) } else { Duration::ZERO };
    let longest = usual.mul_f64(rules.max_latency_ratio).max(usual + rules.latency_floor);
    let latency = (quantile(canary).as_secs_f64(), longest.as_secs_f64());
    let slow = canary.singles.above(longest);
    if *is_timed_beside && slow >= FEWEST && least_share(slow, canary.singles.count()) > SLOW {
        return Verdict::Bad { rule: Rule::Latency, found: latency.0, limit: latency.1 };
    }
    let (mut rows, mut flips) = (canary.rows, 0.0);
    if let Some(compared) = compared {
        flips = share(compared.flips.unwrap_or(0), compared.rows);
        rows = rows.min(compared.rows);
        if is_known(compared.rows) {
            if let Some(found) = compared.psi.filter(|psi| *psi > rules.max_psi) {
                return Verdict::Bad { rule: Rule::Psi, found, limit: rules.max_psi };
            }
            let is_beyond = |flips: u64| least_share(flips, compared.rows) > rules.max_flips;
            if compared.flips.is_some_and(is_beyond) {
                return Verdict::Bad { rule: Rule::Flips, found: flips, limit: rules.max_flips };
            }
        }
    }
    if !is_known(rows) || *held < rules.hold {
        return Verdict::Waiting;
    }
    // What may be chance convicts nobody, and promotes nobody: a good one keeps to its limits by the numbers as they are.
    let usual = |found: u64, all: u64| if is_known(all) { share(found, all) } else { 0.0 };
    let failing = usual(live.failed, live.requests) + rules.max_error_rate;
    let refusing = usual(live.refused, sent(live)) + rules.max_error_rate;
    let doubts = [
        (Rule::Errors, share(canary.failed, canary.requests), failing),
        (Rule::Latency, latency.0, latency.1),
        (Rule::Flips, flips, rules.max_flips),
        (Rule::Refused, share(canary.refused, sent(canary)), refusing),
    ];
    let doubt = doubts.into_iter().find(|(_, found, limit)| found > limit);
    doubt.map_or(Verdict::Good, |(rule, found, limit)| Verdict::Doubtful { rule, found, limit })
}

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

/// What the audit log, the webhook and whoever asks are told of why something is done, or not yet.
fn facts(rules: &GuardSettings, observed: &Observed, verdict: Verdict) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut add = |name: &str, fact: Value| drop(facts.insert(name.into(), fact));
    add("verdict", verdict.as_str().into());
    match verdict {
        Verdict::Bad { rule, found, limit } | Verdict::Doubtful { rule, found, limit } => {
            add("rule", rule.as_str().into());
            add("found", found.into());
            add("limit", limit.into());
        }
        Verdict::Waiting => {
            add("rows_needed", rules.min_rows.into());
            add("held_s", observed.held.as_secs().into());
            add("hold_s", rules.hold.as_secs_f64().into());
        }
        Verdict::Good => {}
    }
    add("rows", observed.canary.rows.into());
    add("rows_refused", observed.canary.refused.into());
    add("requests", observed.canary.requests.into());
    if let Some(compared) = observed.compared {
        add("comparable", compared.comparable.into());
        add("rows_compared", compared.rows.into());
    }
    facts
}

#[cfg(test)]
mod tests {
    use scoregate_model::package;

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
        Observed { live, is_timed_beside: true, canary, compared, held: Duration::from_secs(3_600) }
    }

    /// The rule that is broken, or the verdict.
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
            ((10_000, 0), (10_000, 120), "doubtful"),
            ((10_000, 0), (10_000, 150), "error_rate"),
            // Too few failures to convict it, and too many to promote it.
            ((10_000, 0), (30, 9), "waiting"),
            // Where everything fails, it is nobody's fault.
            ((1_000, 900), (1_000, 905), "waiting"),
            ((10_000, 500), (10_000, 550), "good"),
            ((10_000, 500), (10_000, 700), "doubtful"),
            ((10_000, 500), (10_000, 800), "error_rate"),
            // Of a live version that is hardly asked little is known, which convicts nobody and acquits nobody.
            ((100, 2), (9_900, 495), "doubtful"),
            ((100, 0), (5_000, 500), "doubtful"),
            ((10, 0), (5_000, 500), "doubtful"),
            ((1_000, 40), (9_000, 540), "doubtful"),
            ((1_000, 40), (9_000, 440), "good"),
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
        // The others of its requests may have been batches.
        let batches = Answered { rows: 1_050, ..answered(30, 9) };
        assert_eq!(verdict(&observed(answered(10_000, 0), batches, (10_000, 0.0, 0))), "doubtful");
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
                        let known = known(live.since(&before), live.clone(), rules.min_rows);
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
            (rows(5_000, 250), rows(5_000, 330), "doubtful"),
            (rows(0, 0), rows(5_000, 500), "doubtful"),
            (rows(0, 0), rows(5_000, 50), "good"),
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
        assert_eq!(known(few, all.clone(), 1_000), all);
        let enough = all.since(&before(1_000));
        assert_eq!(known(enough.clone(), all.clone(), 1_000), enough);
        // Many rows in few requests.
        let batches = Answered { rows: 4_000, refused: 10, ..answered(4, 0) };
        let found = known(batches, all.clone(), 1_000);
        assert_eq!((found.requests, found.rows, found.refused), (all.requests, 4_000, 10));
        assert_eq!(found.singles, all.singles);
    }

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
        // Three times nearly nothing is nearly nothing.
        let quick = times(2_000, Duration::from_micros(50), 0, millis(0));
        let slower = times(2_000, Duration::from_micros(150), 0, millis(0));
        assert_eq!(verdict(&observed(quick, slower.clone(), (10_000, 0.0, 0))), "good");
        // Where nothing is known of the live version's times, one that takes long is not promoted.
        let unknown = || times(999, millis(10), 0, millis(0));
        assert_eq!(verdict(&observed(unknown(), slower, (10_000, 0.0, 0))), "good");
        let slow = times(2_000, millis(12), 0, millis(0));
        let found = Observed { is_timed_beside: false, ..observed(unknown(), slow, (10_000, 0.0, 0)) };
        let limit = GuardSettings::default().latency_floor.as_secs_f64();
        match judge(&GuardSettings::default(), &found) {
            Verdict::Doubtful { rule: Rule::Latency, limit: found, .. } => assert_eq!(found, limit),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn quiet_hours_of_the_live_version_convict_nobody() {
        let (rules, millis) = (GuardSettings::default(), Duration::from_millis);
        // Nobody has asked it since the canary was given everything, and then comes the morning.
        let night = times(50_000, millis(3), 0, millis(0));
        let peak = times(20_000, millis(12), 0, millis(0));
        for (asked, expected) in [(0, "doubtful"), (999, "doubtful"), (1_000, "latency")] {
            let since = times(asked, millis(3), 0, millis(0));
            let found = Observed {
                is_timed_beside: since.singles.count() >= rules.min_rows,
                ..observed(known(since, night.clone(), rules.min_rows), peak.clone(), (10_000, 0.0, 0))
            };
            assert_eq!(verdict(&found), expected, "{asked} beside it");
        }
        let beside = observed(times(1_000, millis(12), 0, millis(0)), peak, (10_000, 0.0, 0));
        assert_eq!(verdict(&beside), "good");
    }

    #[test]
    fn scores_convict_once_there_are_enough() {
        for (compared, expected) in [
            ((999, 9.0, 999), "waiting"),
            ((1_000, 0.26, 0), "psi"),
            ((1_000, 0.24, 0), "good"),
            ((1_000, 0.0, 100), "good"),
            ((1_000, 0.0, 120), "doubtful"),
            ((1_000, 0.0, 140), "flips"),
            ((10_000, 0.0, 1_120), "flips"),
            ((10_000, 0.0, 1_050), "doubtful"),
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
        let rules = GuardSettings::default();
        assert_eq!(judge(&rules, &early), Verdict::Waiting);
        // Whoever asks what it waits for is told.
        let told = Value::Object(facts(&rules, &early, Verdict::Waiting));
        let expected = json!({"verdict": "waiting", "rows_needed": 1_000, "held_s": 599, "hold_s": 600.0, "rows": 2_000,
                              "rows_refused": 0, "requests": 2_000});
        assert_eq!(told, expected);
        let nothing = Agreement { comparable: false, rows: 0, psi: None, flips: None };
        let apart = Observed { compared: Some(nothing), held: Duration::from_secs(3_600), ..early };
        assert_eq!(judge(&rules, &apart), Verdict::Waiting);
        let told = facts(&rules, &apart, Verdict::Waiting);
        assert_eq!((&told["comparable"], &told["rows_compared"]), (&json!(false), &json!(0)));
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
