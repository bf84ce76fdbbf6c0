//! Settings of versions on trial: what is scored beside the answers, and by what a canary is judged.

use std::time::Duration;

pub use scoregate_schemas::rollout::GuardMode;

use super::reader::{Reader, TableReader};
use super::values::{COUNT, count, duration, whole};
use crate::rollout::slots;

/// What is scored beside the answers.
#[derive(Debug, Clone, PartialEq)]
pub struct ShadowSettings {
    /// `SCOREGATE_SHADOW_SAMPLE` (`1`): the share of requests whose rows are scored by another version too, where one is the shadow
    /// or a canary; 0 is none.
    pub sample: f64,
    /// `SCOREGATE_SHADOW_QUEUE_BYTES` (32 MiB): the memory for rows that wait for it. What finds no room is not scored.
    pub max_bytes: usize,
}

/// By what a canary is judged: the table `[guard]`, and `[model.NAME.guard]` for what differs.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardSettings {
    /// `SCOREGATE_GUARD` (`rollback`): what becomes of a canary that breaks a rule, and of one that breaks none.
    pub mode: GuardMode,
    /// `min_rows` (1,000): rows that have to be answered and compared before a canary is good, and before its scores can be bad; and how
    /// many requests, rows and times of requests for one row the live version is known by, each on its own.
    pub min_rows: u64,
    /// `max_error_rate` (0.01): how much larger the share of failed requests may be than the live version's; and that of rows that it does
    /// not take, if it is to be given more.
    pub max_error_rate: f64,
    /// `max_latency_ratio` (2.0): how many times the live version's 99th percentile that of requests for one row may be.
    pub max_latency_ratio: f64,
    /// `latency_floor` (`5ms`): a canary that is slower by less is not too slow, whatever the ratio.
    pub latency_floor: Duration,
    /// `max_psi` (0.25): the population stability index of its scores against the live version's on the same rows.
    pub max_psi: f64,
    /// `max_flips` (0.1): the share of rows of which it decides otherwise than the live version.
    pub max_flips: f64,
    /// `steps` (`[5, 25, 100]`): the shares in percent that a good canary is given one after another before it is promoted.
    pub steps: Vec<f64>,
    /// `hold` (`10m`): how long it keeps each share at least.
    pub hold: Duration,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            mode: GuardMode::Rollback,
            min_rows: 1_000,
            max_error_rate: 0.01,
            max_latency_ratio: 2.0,
            latency_floor: Duration::from_millis(5),
            max_psi: 0.25,
            max_flips: 0.1,
            steps: vec![5.0, 25.0, 100.0],
            hold: Duration::from_secs(600),
        }
    }
}

fn number(value: &toml::Value) -> Option<f64> {
    match value {
        toml::Value::Integer(number) => Some(*number as f64),
        other => other.as_float().filter(|number| number.is_finite()),
    }
}

/// Shares in percent, each larger than the one before.
fn steps(value: &toml::Value) -> Option<Vec<f64>> {
    let steps: Vec<f64> = value.as_array()?.iter().map(number).collect::<Option<_>>()?;
    let is_share = |step: &f64| slots::count(*step).is_some_and(|slots| slots > 0);
    let is_ascending = steps.windows(2).all(|pair| pair[0] < pair[1]);
    (!steps.is_empty() && is_ascending && steps.iter().all(is_share)).then_some(steps)
}

impl Reader {
    pub(super) fn shadow(&mut self) -> ShadowSettings {
        ShadowSettings {
            sample: self.take("SCOREGATE_SHADOW_SAMPLE", "shadow.sample", "1", |text| {
                let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
                share.ok_or_else(|| "a number from 0 to 1".to_string())
            }),
            max_bytes: self.take("SCOREGATE_SHADOW_QUEUE_BYTES", "shadow.queue_bytes", "33554432", count),
        }
    }

    /// The table `[guard]`, whose mode may be said by a variable too.
    pub(super) fn guard(&mut self) -> GuardSettings {
        let mode = self.take("SCOREGATE_GUARD", "guard.mode", "rollback", str::parse);
        let mut table = std::mem::take(&mut self.guard);
        let mut reader = TableReader {
            name: "guard".into(),
            table: &mut table,
            known: Vec::new(),
            mistakes: &mut self.mistakes,
        };
        let guard = reader.rules(&GuardSettings { mode, ..GuardSettings::default() });
        reader.finish();
        guard
    }
}

impl TableReader<'_> {
    /// The table `guard` of a model, which takes what it does not say from `all`.
    pub(super) fn guard(&mut self, all: &GuardSettings) -> Option<GuardSettings> {
        let mut table = self.take("guard", "a table", |value| value.as_table().cloned())?;
        let mut reader = TableReader {
            name: format!("{}.guard", self.name),
            table: &mut table,
            known: Vec::new(),
            mistakes: self.mistakes,
        };
        let mode = reader.take("mode", GuardMode::EXPECTED, |value| value.as_str()?.parse().ok());
        let guard = reader.rules(&GuardSettings { mode: mode.unwrap_or(all.mode), ..all.clone() });
        reader.finish();
        Some(guard)
    }

    fn rules(&mut self, all: &GuardSettings) -> GuardSettings {
        let share = "a number from 0 to 1";
        let is_share = |value: &toml::Value| number(value).filter(|number| (0.0..=1.0).contains(number));
        let ratio = |value: &toml::Value| number(value).filter(|number| *number >= 1.0);
        let psi = |value: &toml::Value| number(value).filter(|number| *number > 0.0);
        let time = |value: &toml::Value| duration(value.as_str()?).ok();
        let durations = "a duration such as 250ms, 15s, 2m, 1h or 90d";
        let shares = "a list of percentages above 0 and up to 100 with at most two decimals, each larger than the one before, such as \
                      [5, 25, 100]";
        GuardSettings {
            mode: all.mode,
            min_rows: self.take("min_rows", COUNT, whole).map_or(all.min_rows, |rows| rows as u64),
            max_error_rate: self.take("max_error_rate", share, is_share).unwrap_or(all.max_error_rate),
            max_latency_ratio: self
                .take("max_latency_ratio", "a number of at least 1", ratio)
                .unwrap_or(all.max_latency_ratio),
            latency_floor: self.take("latency_floor", durations, time).unwrap_or(all.latency_floor),
            max_psi: self.take("max_psi", "a number above 0", psi).unwrap_or(all.max_psi),
            max_flips: self.take("max_flips", share, is_share).unwrap_or(all.max_flips),
            steps: self.take("steps", shares, steps).unwrap_or_else(|| all.steps.clone()),
            hold: self.take("hold", durations, time).unwrap_or(all.hold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    #[test]
    fn a_model_may_be_guarded_otherwise() {
        let settings = load(&[], None).unwrap();
        assert_eq!(settings.guard, GuardSettings::default());
        assert_eq!((settings.shadow.sample, settings.shadow.max_bytes), (1.0, 32 << 20));
        let file = "[guard]\nmode = \"promote\"\nmin_rows = 50\nmax_psi = 1\nsteps = [1, 12.5]\nhold = \"0s\"\n\
                    [shadow]\nsample = \"0.25\"\n[model.a.guard]\nmode = \"off\"\nmax_flips = 0.5\n[model.b]\n";
        let settings = load(&[("SCOREGATE_GUARD", "rollback")], Some(file)).unwrap();
        let (all, own) = (settings.guard_of("b"), settings.guard_of("a"));
        assert_eq!((all.mode, all.min_rows, all.max_psi, all.max_flips), (GuardMode::Rollback, 50, 1.0, 0.1));
        assert_eq!((all.steps.as_slice(), all.hold), (&[1.0, 12.5][..], Duration::ZERO));
        assert_eq!((own.mode, own.min_rows, own.max_flips), (GuardMode::Off, 50, 0.5));
        assert_eq!(load(&[], Some(file)).unwrap().guard.mode, GuardMode::Promote);
        assert_eq!(settings.shadow.sample, 0.25);
    }

    #[test]
    fn every_share_with_two_decimals_is_a_step() {
        for hundredths in 1..=10_000 {
            let share = toml::Value::Float(f64::from(hundredths) / 100.0);
            assert!(steps(&toml::Value::Array(vec![share.clone()])).is_some(), "{share}");
        }
        let file = "[guard]\nsteps = [0.29, 1.1, 55.55]\n";
        assert_eq!(load(&[], Some(file)).unwrap().guard.steps, [0.29, 1.1, 55.55]);
    }

    #[test]
    fn mistakes_say_what_is_expected() {
        for (file, expected) in [
            ("guard = 1\n", "expected a table"),
            ("[guard]\nmode = \"on\"\n", GuardMode::EXPECTED),
            ("[guard]\nmode = 1\n", GuardMode::EXPECTED),
            ("[guard]\nmin_rows = 0\n", COUNT),
            ("[guard]\nmax_error_rate = 2\n", "guard.max_error_rate of the settings file: found 2"),
            ("[guard]\nmax_latency_ratio = 0.5\n", "at least 1"),
            ("[guard]\nmax_psi = \"0.1\"\n", "a number above 0"),
            ("[guard]\nmaxpsi = 0.1\n", "did you mean max_psi?"),
            ("[guard]\nsteps = [25, 5]\n", "each larger"),
            ("[guard]\nsteps = [0]\n", "each larger"),
            ("[guard]\nsteps = [0.001]\n", "at most two decimals"),
            ("[guard]\nsteps = [5, 101]\n", "up to 100"),
            ("[guard]\nsteps = []\n", "each larger"),
            ("[guard]\nhold = 5\n", "a duration"),
            ("[shadow]\nsample = 2\n", "a number from 0 to 1"),
            (
                "[model.a]\nguard = \"off\"\n",
                "model.a.guard of the settings file: found \"off\", expected a table",
            ),
            ("[model.a.guard]\nmax_flips = -1\n", "model.a.guard.max_flips"),
            ("[guard]\nmode = \"promote\"\n[metrics]\nrequests = \"off\"\n", "SCOREGATE_METRICS"),
        ] {
            let mistakes = load(&[], Some(file)).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].contains(expected), "{file}: {mistakes:?}");
        }
    }
}
