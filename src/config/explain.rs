//! Settings of explanations: whether scores come with reasons, which of them, and how long reasons may take.

use std::str::FromStr;
use std::time::Duration;

use scoregate_schemas::manifest::Task;

use super::reader::{Reader, TableReader};
use super::values::{COUNT, count, duration, whole};

/// Whether and how scores are explained.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainSettings {
    /// `SCOREGATE_EXPLAIN` (`on_request`): what is explained unless a request says otherwise.
    pub mode: ExplainMode,
    /// `explain_when` of `[model.NAME]` (none): which scores are, of those that no request asks to be.
    pub when: Option<Condition>,
    /// `SCOREGATE_EXPLAIN_TOP_K` (3): how many features are named at most.
    pub top_k: usize,
    /// `SCOREGATE_EXPLAIN_BUDGET` (20ms): what explaining one row may take, from 1us to 10s. A method that would take longer steps
    /// down to one that does not.
    pub budget: Duration,
}

/// What is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExplainMode {
    /// Nothing.
    Off,
    /// What requests ask to be.
    OnRequest,
    /// Every score, by the features that count most.
    True,
    /// Every score, by all that is known.
    Full,
}

impl ExplainMode {
    /// As it is written in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::OnRequest => "on_request",
            Self::True => "true",
            Self::Full => "full",
        }
    }

    /// Whether scores are explained that nobody asks to be.
    pub fn is_default(self) -> bool {
        matches!(self, Self::True | Self::Full)
    }
}

const MODES: &str = "off, on_request, true or full";

fn mode(text: &str) -> Result<ExplainMode, String> {
    let modes = [ExplainMode::Off, ExplainMode::OnRequest, ExplainMode::True, ExplainMode::Full];
    modes.into_iter().find(|mode| mode.as_str() == text).ok_or(MODES.into())
}

/// Which scores are explained: `probability >= 0.8`, `value < 10`, `prediction = churn`.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// Those whose probability compares so: of the positive class, or of the most likely of several.
    Probability(Comparison, f64),
    /// Those whose value compares so.
    Value(Comparison, f64),
    /// Those of this label.
    Prediction(String),
}

/// How two numbers compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `>=`
    AtLeast,
    /// `>`
    Above,
    /// `<=`
    AtMost,
    /// `<`
    Below,
    /// `=`
    Equal,
}

impl Comparison {
    /// Whether `number` compares so with `other`.
    pub fn holds(self, number: f64, other: f64) -> bool {
        match self {
            Self::AtLeast => number >= other,
            Self::Above => number > other,
            Self::AtMost => number <= other,
            Self::Below => number < other,
            Self::Equal => number == other,
        }
    }
}

/// What a condition has to be.
const CONDITION: &str = "such as \"probability >= 0.8\", \"value < 10\" or \"prediction = churn\"";

impl FromStr for Condition {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let at = text.find(['<', '>', '=']).ok_or(())?;
        let (what, rest) = text.split_at(at);
        let comparisons = [
            (">=", Comparison::AtLeast),
            (">", Comparison::Above),
            ("<=", Comparison::AtMost),
            ("<", Comparison::Below),
            ("=", Comparison::Equal),
        ];
        let found = comparisons.iter().find_map(|(sign, found)| Some((*found, rest.strip_prefix(sign)?)));
        let (comparison, with) = found.ok_or(())?;
        let with = with.trim();
        let number = || with.parse().ok().filter(|number: &f64| number.is_finite()).ok_or(());
        match what.trim() {
            "probability" => {
                let number = number().ok().filter(|number| (0.0..=1.0).contains(number)).ok_or(())?;
                Ok(Self::Probability(comparison, number))
            }
            "value" => Ok(Self::Value(comparison, number()?)),
            "prediction" if comparison == Comparison::Equal && !with.is_empty() => {
                Ok(Self::Prediction(with.into()))
            }
            _ => Err(()),
        }
    }
}

impl Condition {
    /// Checks that a model which answers `task` with `labels` has what the condition is about.
    ///
    /// # Errors
    /// What was found and what was expected.
    pub fn check(&self, task: Task, labels: &[String]) -> Result<(), String> {
        match (self, task) {
            (Self::Value(..), Task::Regression)
            | (Self::Probability(..), Task::Binary | Task::Multiclass { .. }) => Ok(()),
            (Self::Prediction(label), Task::Binary | Task::Multiclass { .. }) => match labels.contains(label)
            {
                true => Ok(()),
                false => Err(format!(
                    "explain_when: found a prediction that the model does not make, expected one of {}",
                    labels.join(", ")
                )),
            },
            (Self::Value(..), _) => {
                Err("explain_when: found value, expected probability or prediction: the \
                                         model tells classes apart"
                    .into())
            }
            (_, Task::Regression) => {
                Err("explain_when: expected value: the model has neither probabilities nor predictions"
                    .into())
            }
        }
    }
}

/// What one model is told differently.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnExplainSettings {
    /// See [`ExplainSettings::mode`].
    pub mode: Option<ExplainMode>,
    /// See [`ExplainSettings::when`].
    pub when: Option<Condition>,
    /// See [`ExplainSettings::top_k`].
    pub top_k: Option<usize>,
    /// See [`ExplainSettings::budget`].
    pub budget: Option<Duration>,
}

impl ExplainSettings {
    /// With what one model is told differently.
    pub(super) fn of(&self, own: OwnExplainSettings) -> Self {
        Self {
            mode: own.mode.unwrap_or(self.mode),
            when: own.when,
            top_k: own.top_k.unwrap_or(self.top_k),
            budget: own.budget.unwrap_or(self.budget),
        }
    }
}

/// What a budget has to be.
const BUDGET: &str = "a duration from 1us to 10s";

fn budget(text: &str) -> Result<Duration, String> {
    let found = duration(text)?;
    let is_sensible = (Duration::from_micros(1)..=Duration::from_secs(10)).contains(&found);
    if is_sensible { Ok(found) } else { Err(BUDGET.into()) }
}

impl Reader {
    pub(super) fn explain(&mut self) -> ExplainSettings {
        ExplainSettings {
            mode: self.take("SCOREGATE_EXPLAIN", "explain.mode", "on_request", mode),
            when: None,
            top_k: self.take("SCOREGATE_EXPLAIN_TOP_K", "explain.top_k", "3", count),
            budget: self.take("SCOREGATE_EXPLAIN_BUDGET", "explain.budget", "20ms", budget),
        }
    }
}

impl TableReader<'_> {
    /// What a model is told differently from `all`.
    pub(super) fn explain(&mut self, all: &ExplainSettings) -> OwnExplainSettings {
        let own = OwnExplainSettings {
            mode: self.take("explain", MODES, |value| match value {
                toml::Value::Boolean(true) => Some(ExplainMode::True),
                toml::Value::Boolean(false) => Some(ExplainMode::OnRequest),
                value => mode(value.as_str()?).ok(),
            }),
            when: self.take("explain_when", CONDITION, |value| value.as_str()?.parse().ok()),
            top_k: self.take("explain_top_k", COUNT, whole),
            budget: self.take("explain_budget", BUDGET, |value| budget(value.as_str()?).ok()),
        };
        if own.when.is_some() && !own.mode.unwrap_or(all.mode).is_default() {
            self.mistake("explain_when says which scores are explained by default: expected explain = \"true\" or \"full\" with it");
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    #[test]
    fn a_model_may_be_explained_otherwise() {
        let file = "[explain]\nmode = \"full\"\ntop_k = 5\n[model.a]\nexplain = \"off\"\n[model.b]\nexplain = true\n\
                    explain_when = \"probability>=0.8\"\nexplain_top_k = 2\nexplain_budget = \"5ms\"\n\
                    [model.c]\nexplain_when = \"prediction = no way = no\"\n";
        let settings = load(&[("SCOREGATE_EXPLAIN_BUDGET", "1s")], Some(file)).unwrap();
        let [a, b, c, other] = ["a", "b", "c", "other"].map(|model| settings.serving(model).explain);
        assert_eq!((a.mode, b.mode, other.mode), (ExplainMode::Off, ExplainMode::True, ExplainMode::Full));
        assert_eq!(b.when, Some(Condition::Probability(Comparison::AtLeast, 0.8)));
        assert_eq!((b.top_k, b.budget), (2, Duration::from_millis(5)));
        assert_eq!((other.top_k, other.budget, other.when), (5, Duration::from_secs(1), None));
        assert_eq!(c.when, Some(Condition::Prediction("no way = no".into())));
        let untold = load(&[], None).unwrap().serving("a").explain;
        assert_eq!((untold.mode, untold.top_k), (ExplainMode::OnRequest, 3));
        assert_eq!(untold.budget, Duration::from_millis(20));
    }

    #[test]
    fn mistakes_say_what_is_expected() {
        for (file, expected) in [
            ("[explain]\nmode = \"on\"\n", MODES),
            ("[explain]\nbudget = \"0s\"\n", BUDGET),
            ("[explain]\ntop_k = 0\n", COUNT),
            ("[explain]\nwhen = \"probability > 0\"\n", "explain.when of the settings file is no setting"),
            ("[model.a]\nexplain = 1\n", MODES),
            ("[model.a]\nexplain_budget = \"11s\"\n", BUDGET),
            ("[model.a]\nexplain_when = \"probability > 0.5\"\n", "expected explain = \"true\" or \"full\""),
        ] {
            let mistakes = load(&[], Some(file)).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].contains(expected), "{file}: {mistakes:?}");
        }
    }

    #[test]
    fn a_condition_compares_one_thing() {
        use Comparison::{Above, AtLeast, AtMost, Below, Equal};
        for (text, expected) in [
            ("probability >= 0.8", Some(Condition::Probability(AtLeast, 0.8))),
            (" probability>0 ", Some(Condition::Probability(Above, 0.0))),
            ("value<=-1e3", Some(Condition::Value(AtMost, -1e3))),
            ("value < 10", Some(Condition::Value(Below, 10.0))),
            ("probability = 1", Some(Condition::Probability(Equal, 1.0))),
            ("prediction=churn", Some(Condition::Prediction("churn".into()))),
            ("prediction > churn", None),
            ("prediction =", None),
            ("probability >= 1.1", None),
            ("probability => 0.8", None),
            ("probability >= NaN", None),
            ("value >= inf", None),
            ("score >= 1", None),
            ("probability", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
        for (comparison, expected) in
            [(AtLeast, [false, true, true]), (Above, [false, false, true]), (AtMost, [true, true, false])]
        {
            assert_eq!([1.0, 2.0, 3.0].map(|number| comparison.holds(number, 2.0)), expected);
        }
        assert!(Below.holds(1.0, 2.0) && !Below.holds(2.0, 2.0) && Equal.holds(2.0, 2.0));
    }

    #[test]
    fn a_condition_has_to_fit_the_model() {
        let labels = ["retain".to_owned(), "churn".to_owned()];
        for (text, task, fits) in [
            ("probability > 0.5", Task::Binary, true),
            ("probability > 0.5", Task::Multiclass { classes: 2 }, true),
            ("probability > 0.5", Task::Regression, false),
            ("prediction = churn", Task::Binary, true),
            ("prediction = Churn", Task::Binary, false),
            ("prediction = churn", Task::Regression, false),
            ("value > 0.5", Task::Regression, true),
            ("value > 0.5", Task::Binary, false),
        ] {
            let condition: Condition = text.parse().unwrap();
            assert_eq!(condition.check(task, &labels).is_ok(), fits, "{text} {task:?}");
        }
    }
}
