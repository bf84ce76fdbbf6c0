//! What a canary's answers say of it: pure numbers, and by which of them it is bad, doubtful or good.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::GuardSettings;
use crate::telemetry::tally::Answered;

/// By how many standard deviations something has to be beyond its limit, so that it is not so by chance: hardly ever for a version that
/// is well below. One that is exactly at the limit is convicted about once in a thousand looks, and so in the end.
const DEVIATIONS: f64 = 3.0;

/// Fewer failures or slow answers than this convict nobody.
const FEWEST: u64 = 10;

/// The share of requests that may be slow: those above the 99th percentile.
const SLOW: f64 = 0.01;

/// What is known of a canary and of the live version beside it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Observed {
    /// What the live version has answered since, or for as long as it is loaded: see [`known`].
    pub(super) live: Answered,
    /// Whether its times are those of the same while: of other hours they say little about what is slow now.
    pub(super) is_timed_beside: bool,
    /// What the canary has.
    pub(super) canary: Answered,
    /// What both have scored; nothing where nothing is scored beside the answers.
    pub(super) compared: Option<Agreement>,
    /// How long the canary has had its share.
    pub(super) held: Duration,
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
pub(super) enum Verdict {
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
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Bad { .. } => "bad",
            Self::Doubtful { .. } => "doubtful",
            Self::Good => "good",
        }
    }

    /// The rule that is broken, or nothing.
    pub(super) fn rule(self) -> &'static str {
        match self {
            Self::Bad { rule, .. } => rule.as_str(),
            _ => "",
        }
    }
}

/// By what a canary is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
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
    pub(super) fn as_str(self) -> &'static str {
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
pub(super) fn known(since: Answered, all: Answered, needed: u64) -> Answered {
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
pub(super) fn judge(rules: &GuardSettings, observed: &Observed) -> Verdict {
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

/// What the audit log, the webhook and whoever asks are told of why something is done, or not yet.
pub(super) fn facts(rules: &GuardSettings, observed: &Observed, verdict: Verdict) -> Map<String, Value> {
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
    use serde_json::json;

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
