//! What an explanation says, and in which words.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The scale that values add up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Log-odds of the positive class, before calibration; natural logarithm.
    LogOdds,
    /// The score of a class before the link, where that is no log-odds: before a softmax, or before calibration.
    Margin,
    /// The probability of the class.
    Probability,
    /// The target's own unit: regression.
    Target,
}

/// How values were computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Closed form of a margin that is a sum over features.
    Linear,
    /// Interventional TreeSHAP.
    TreeInterventional,
    /// Path-dependent TreeSHAP.
    TreePathDependent,
    /// All coalitions of features against the background.
    Exact,
    /// Antithetic permutations of features against the background.
    PermutationSampling,
}

/// A word that is none of those expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {0}")]
pub struct UnknownWord(&'static str);

impl Space {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::LogOdds, Self::Margin, Self::Probability, Self::Target];

    /// As answers and requests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LogOdds => "log_odds",
            Self::Margin => "margin",
            Self::Probability => "probability",
            Self::Target => "target",
        }
    }
}

impl FromStr for Space {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let found = Self::ALL.into_iter().find(|space| space.as_str() == text);
        found.ok_or(UnknownWord("log_odds, margin, probability, target"))
    }
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Linear,
        Self::TreeInterventional,
        Self::TreePathDependent,
        Self::Exact,
        Self::PermutationSampling,
    ];

    /// As answers and requests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::TreeInterventional => "tree_interventional",
            Self::TreePathDependent => "tree_path_dependent",
            Self::Exact => "exact",
            Self::PermutationSampling => "permutation_sampling",
        }
    }
}

impl FromStr for Method {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        // People who ask for it mean trees.
        let text = if text == "path_dependent" { "tree_path_dependent" } else { text };
        let found = Self::ALL.into_iter().find(|method| method.as_str() == text);
        found.ok_or(UnknownWord(
            "linear, tree_interventional, tree_path_dependent, exact, permutation_sampling",
        ))
    }
}

/// How one answer about one row came about, feature by feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// How the values were computed.
    pub method: Method,
    /// How they would have been, with more time.
    pub stepped_down_from: Option<Method>,
    /// What they add up on.
    pub space: Space,
    /// The class that is explained, by its place among the labels; none for regression.
    pub class: Option<usize>,
    /// The explained number when every feature is unknown: its mean over the background, or by covers.
    pub base_value: f64,
    /// The explained number of this row.
    pub value: f64,
    /// How much each feature moves it away from the base, in the schema's order of features.
    pub values: Vec<f64>,
    /// The standard error of each value, where they were sampled.
    pub standard_errors: Option<Vec<f64>>,
    /// How many background rows stand for what is unknown; 0 where covers do.
    pub background_rows: usize,
}

impl Explanation {
    /// How far base and values together are from the explained number.
    pub fn additivity_error(&self) -> f64 {
        (self.base_value + self.values.iter().sum::<f64>() - self.value).abs()
    }

    /// The features that move the number most, by absolute value, at most `most` of them; of equals the first. Those that do not
    /// move it at all are left out.
    pub fn top(&self, most: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.values.len()).filter(|at| self.values[*at] != 0.0).collect();
        order.sort_by(|a, b| self.values[*b].abs().total_cmp(&self.values[*a].abs()));
        order.truncate(most);
        order
    }
}
