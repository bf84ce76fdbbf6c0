//! Explanations: what the query asks for, and what answers say of them.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use scoregate_model::explain::plot::waterfall_svg;
use scoregate_model::explain::{Explanation, Method, Question, Space};
use scoregate_model::features::{CategoryColumn, Column, FeatureRows};
use scoregate_schemas::feature_schema::Kind;
use scoregate_schemas::manifest::Task;
use url::form_urlencoded;

use super::body::{Format, SVG};
use super::problem::Error;
use super::wire;
use crate::config::{Condition, ExplainMode};
use crate::registry::Version;
use crate::scoring::{Explaining, Explanations, Skipped};

/// How many features a picture shows unless it is asked for another number.
const SHOWN: usize = 10;

/// How the scores of a request are explained.
pub(crate) struct Wanted {
    pub(crate) explaining: Explaining,
    /// Whether everything is told, or only the features that count most.
    pub(crate) is_full: bool,
    /// How many features are named at most.
    pub(crate) top_k: usize,
    /// Whether the request asks for it, or the model is explained by default.
    pub(crate) is_asked: bool,
}

/// The parameters of a query.
#[derive(Default)]
struct Parameters {
    explain: Option<ExplainMode>,
    top_k: Option<usize>,
    question: Question,
    /// One of those that say how: without explanations they mean nothing.
    how: Option<&'static str>,
}

const KNOWN: [&str; 5] = ["explain", "top_k", "space", "method", "class"];

const NAMES: &str = "explain, top_k, space, method and class, each at most once";

fn wrong(name: &str, expected: &str) -> Error {
    Error::Parameter(format!("found another value of {name}, expected {expected}"))
}

/// A word out of some, of which `expected` tells.
fn word<T: FromStr<Err = E>, E: ToString>(name: &str, value: &str) -> Result<Option<T>, Error> {
    value.parse().map(Some).map_err(|expected: E| wrong(name, &expected.to_string()))
}

impl Parameters {
    /// Values are never repeated, nor are names that nobody knows.
    fn read(query: &str) -> Result<Self, Error> {
        let mut found = Self::default();
        let mut before = [false; KNOWN.len()];
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let Some(at) = KNOWN.iter().position(|known| *known == name) else {
                return Err(Error::Parameter(format!("found a parameter of another name, expected {NAMES}")));
            };
            if std::mem::replace(&mut before[at], true) {
                return Err(Error::Parameter(format!("found {} twice, expected {NAMES}", KNOWN[at])));
            }
            if at > 0 {
                found.how = Some(KNOWN[at]);
            }
            match KNOWN[at] {
                "explain" => {
                    found.explain = Some(match value.as_ref() {
                        "false" => ExplainMode::Off,
                        "true" => ExplainMode::True,
                        "full" => ExplainMode::Full,
                        _ => return Err(wrong("explain", "false, true or full")),
                    });
                }
                "top_k" => {
                    let number = value.parse().ok().filter(|number| *number > 0);
                    found.top_k = Some(number.ok_or_else(|| wrong("top_k", "a whole number of at least 1"))?);
                }
                "space" => found.question.space = word::<Space, _>("space", &value)?,
                "method" => found.question.method = word::<Method, _>("method", &value)?,
                _ => found.question.class = Some(value.into_owned()),
            }
        }
        Ok(found)
    }
}

/// How the scores of `version` are to be explained, as the `query` asks, be it by a picture; nothing if they are not. What is asked for is waited
/// for while it is being prepared, for as long as `patience` lasts.
///
/// # Errors
/// [`Error`] of parameters that are wrong, mean nothing, or ask for what this version has not.
pub(super) async fn wanted(
    query: &str,
    version: &Arc<Version>,
    is_picture: bool,
    patience: Duration,
) -> Result<Option<Wanted>, Error> {
    let default = version.explain.mode;
    let is_default = default.is_default() && version.explainer().is_ok();
    // The usual case, in which there is nothing to read.
    if query.is_empty() && !is_picture && !is_default {
        return Ok(None);
    }
    let Parameters { explain, top_k, question, how } = Parameters::read(query)?;
    let mode = match explain {
        Some(ExplainMode::Off | ExplainMode::True) if is_picture => {
            return Err(wrong("explain", "full, or none: a picture shows everything"));
        }
        Some(mode) => mode,
        None if is_picture => ExplainMode::Full,
        None if is_default => default,
        None => ExplainMode::Off,
    };
    if mode == ExplainMode::Off {
        return match how {
            None => Ok(None),
            Some(name) => {
                let detail = format!(
                    "found {name} without explanations, expected explain=true or explain=full with it"
                );
                Err(Error::Parameter(detail))
            }
        };
    }
    let prepared = version.explainer_within(patience).await?;
    let ask = prepared.explainer.ask(&question, &version.labels)?;
    Ok(Some(Wanted {
        explaining: Explaining::new(version, prepared, ask),
        is_full: mode == ExplainMode::Full,
        top_k: top_k.unwrap_or(if is_picture { SHOWN } else { version.explain.top_k }),
        is_asked: explain.is_some() || is_picture,
    }))
}

impl Wanted {
    /// Whether every score is explained, whatever it is.
    pub(super) fn is_of_all(&self, version: &Version) -> bool {
        self.is_asked || version.explain.when.is_none()
    }

    /// Whether a row that the model answered so is explained.
    pub(super) fn applies(&self, version: &Version, numbers: &[f64]) -> bool {
        let Some(when) = version.explain.when.as_ref().filter(|_| !self.is_asked) else { return true };
        let decision = || wire::decide(version, numbers);
        let compare = |comparison: crate::config::Comparison, number: f64, with: f64| {
            // As they are written, so that a condition agrees with what is read.
            match version.float32 {
                true => comparison.holds(f64::from(number as f32), f64::from(with as f32)),
                false => comparison.holds(number, with),
            }
        };
        match when {
            Condition::Prediction(label) => version.labels.get(decision()) == Some(label),
            Condition::Value(comparison, with) => compare(*comparison, numbers[0], *with),
            Condition::Probability(comparison, with) => {
                let number = match version.task {
                    Task::Multiclass { .. } => numbers[decision()],
                    Task::Binary | Task::Regression => numbers[0],
                };
                compare(*comparison, number, *with)
            }
        }
    }
}

/// The columns of an answer in CSV that tell all of an explanation, before the values.
const FULL_COLUMNS: [&str; 7] = [
    "base_value",
    "explanation_method",
    "explanation_space",
    "explanation_class",
    "explanation_stepped_down_from",
    "additivity_error",
    "largest_standard_error",
];

/// Writes the explanations of one request: what stands around the numbers is the same for every row.
pub(crate) struct Reasons<'v> {
    version: &'v Version,
    wanted: &'v Wanted,
    /// The features, in the schema's order.
    names: Vec<&'v str>,
}

impl<'v> Reasons<'v> {
    pub(crate) fn new(version: &'v Version, wanted: &'v Wanted) -> Self {
        Self { version, wanted, names: version.reader.features().map(|field| field.name.as_str()).collect() }
    }

    /// What the features that count most are called, those first.
    fn top<'r>(
        &'r self,
        explanation: &'r Explanation,
        rows: &'r FeatureRows,
        row: usize,
    ) -> impl Iterator<Item = String> + 'r {
        let label = move |feature| self.wanted.explaining.explainer().label(feature, rows, row);
        explanation.top(self.wanted.top_k).into_iter().map(label)
    }

    /// `{"top_features":[…]}`, or all that is known.
    pub(super) fn write(&self, out: &mut Vec<u8>, explanation: &Explanation, rows: &FeatureRows, row: usize) {
        out.extend_from_slice(b"{\"top_features\":[");
        for (at, label) in self.top(explanation, rows, row).enumerate() {
            if at > 0 {
                out.push(b',');
            }
            wire::json(out, &label);
        }
        out.push(b']');
        if self.wanted.is_full {
            self.write_rest(out, explanation);
        }
        out.push(b'}');
    }

    /// `{"top_features":[],"skipped":"time"}`
    pub(super) fn write_skipped(out: &mut Vec<u8>, why: Skipped) {
        out.extend_from_slice(b"{\"top_features\":[],\"skipped\":");
        wire::json(out, why.as_str());
        out.push(b'}');
    }

    fn write_rest(&self, out: &mut Vec<u8>, explanation: &Explanation) {
        let member = |out: &mut Vec<u8>, name: &str| {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
        };
        member(out, "method");
        wire::json(out, explanation.method.as_str());
        if let Some(method) = explanation.stepped_down_from {
            member(out, "stepped_down_from");
            wire::json(out, method.as_str());
        }
        member(out, "space");
        wire::json(out, explanation.space.as_str());
        if let Some(class) = self.class(explanation) {
            member(out, "class");
            wire::json(out, class);
        }
        member(out, "base_value");
        wire::json(out, &explanation.base_value);
        member(out, "values");
        self.write_values(out, &explanation.values);
        member(out, "additivity_error");
        wire::json(out, &explanation.additivity_error());
        if let Some(errors) = &explanation.standard_errors {
            member(out, "standard_errors");
            self.write_values(out, errors);
        }
    }

    /// The class that is explained, where that goes without saying no more: of several, and the negative one of two.
    fn class(&self, explanation: &Explanation) -> Option<&'v str> {
        let class = explanation.class?;
        let is_told = match self.version.task {
            Task::Binary => class == 0,
            Task::Multiclass { .. } | Task::Regression => true,
        };
        self.version.labels.get(class).filter(|_| is_told).map(String::as_str)
    }

    /// `{"tenure_days":-0.41,…}`
    fn write_values(&self, out: &mut Vec<u8>, values: &[f64]) {
        out.push(b'{');
        for (at, (name, value)) in self.names.iter().zip(values).enumerate() {
            if at > 0 {
                out.push(b',');
            }
            wire::json(out, name);
            out.push(b':');
            wire::json(out, value);
        }
        out.push(b'}');
    }

    /// The columns that an answer in CSV has for it.
    pub(super) fn columns(&self) -> Vec<String> {
        let mut columns = vec!["top_features".to_owned()];
        if self.wanted.is_full {
            columns.extend(FULL_COLUMNS.map(String::from));
            columns.extend(self.names.iter().map(|name| format!("explain_{name}")));
        }
        columns
    }

    /// Writes these columns of a row; empty ones if it has no explanation.
    pub(super) fn write_cells(
        &self,
        record: &mut csv::ByteRecord,
        explanation: Option<&Explanation>,
        rows: &FeatureRows,
        row: usize,
    ) {
        let Some(explanation) = explanation else {
            let full = FULL_COLUMNS.len() + self.names.len();
            let columns = if self.wanted.is_full { 1 + full } else { 1 };
            return (0..columns).for_each(|_| record.push_field(b""));
        };
        // A category may have a semicolon of its own.
        let escaped = |label: String| label.replace('\\', r"\\").replace(';', r"\;");
        let top: Vec<String> = self.top(explanation, rows, row).map(escaped).collect();
        record.push_field(top.join(";").as_bytes());
        if !self.wanted.is_full {
            return;
        }
        let mut cell = Vec::new();
        let mut number = |record: &mut csv::ByteRecord, value: f64| {
            cell.clear();
            wire::json(&mut cell, &value);
            record.push_field(&cell);
        };
        number(record, explanation.base_value);
        record.push_field(explanation.method.as_str().as_bytes());
        record.push_field(explanation.space.as_str().as_bytes());
        record.push_field(self.class(explanation).unwrap_or_default().as_bytes());
        record.push_field(explanation.stepped_down_from.map_or("", Method::as_str).as_bytes());
        number(record, explanation.additivity_error());
        let errors = explanation.standard_errors.iter().flatten();
        match errors.copied().reduce(f64::max) {
            Some(largest) => number(record, largest),
            None => record.push_field(b""),
        }
        explanation.values.iter().for_each(|value| number(record, *value));
    }

    /// How many bytes it takes in an answer at the most, but for values that the schema does not list.
    pub(super) fn bytes(&self, format: Format) -> usize {
        /// A number as ryu writes it, and the comma.
        const NUMBER: usize = 25;
        let labels = self.version.reader.features().map(|field| match &field.kind {
            Kind::Category { values } => {
                let longest = values.iter().flatten().map(String::len).max().unwrap_or_default();
                field.name.len() + longest + 4
            }
            _ => field.name.len() + 3,
        });
        let mut labels: Vec<usize> = labels.collect();
        labels.sort_unstable_by(|a, b| b.cmp(a));
        let top: usize = labels.iter().take(self.wanted.top_k).sum();
        let names: usize = self.names.iter().map(|name| name.len() + 3).sum();
        let class = self.version.labels.iter().map(String::len).max().unwrap_or_default();
        match (self.wanted.is_full, format) {
            (false, _) => top,
            (true, Format::Csv) => top + (self.names.len() + 3) * NUMBER + class + 100,
            (true, _) => {
                // Names and numbers twice: the second time as standard errors.
                top + 2 * (names + self.names.len() * NUMBER) + 2 * NUMBER + class + 240
            }
        }
    }
}

/// The bytes of values that the schema does not list: each may be a reason, besides quotes and what they need.
pub(super) fn unlisted_bytes(rows: &FeatureRows) -> usize {
    let others = rows.columns.iter().filter_map(|column| match column {
        Column::Category(CategoryColumn { others, .. }) => Some(others),
        Column::Number(_) => None,
    });
    // A control character takes six bytes in JSON.
    others.flatten().map(|text| 6 * text.len()).sum()
}

/// A picture of how the answer to one row came about.
pub(super) fn picture(
    wanted: &Wanted,
    version: &Version,
    numbers: &[f64],
    explanation: &Explanation,
    row: &FeatureRows,
) -> Response {
    let (name, decision) = (&version.manifest.name, wire::decide(version, numbers));
    let label = version.labels.get(decision).map(String::as_str).unwrap_or_default();
    let number = |at: usize| wire::number_text(version, numbers[at]);
    let answer = match version.task {
        Task::Binary => format!("{name}_probability {}, prediction {label}", number(0)),
        Task::Multiclass { .. } => {
            let class = explanation.class.unwrap_or(decision);
            format!("probability of {} {}, prediction {label}", version.labels[class], number(class))
        }
        Task::Regression => format!("value {}", number(0)),
    };
    let explainer = wanted.explaining.explainer();
    let labels: Vec<String> =
        (0..explanation.values.len()).map(|feature| explainer.described(feature, row, 0)).collect();
    let title = format!("{name} {}", version.manifest.version);
    svg(waterfall_svg(&title, &answer, explanation, &labels, wanted.top_k))
}

/// A picture as an answer, which browsers take for nothing else and which loads nothing.
pub(super) fn svg(picture: String) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(SVG)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, picture).into_response()
}

/// The explanations of a batch: of all its rows, or of those that were chosen.
pub(crate) struct Explained {
    pub(crate) explanations: Explanations,
    /// Ascending; none if all were.
    pub(crate) chosen: Option<Vec<usize>>,
}

impl Explained {
    /// The explanation of row `row`, or why it has none; nothing where it was not to have one.
    pub(super) fn of(&self, row: usize) -> Option<Result<Explanation, Skipped>> {
        let at = match &self.chosen {
            None => row,
            Some(chosen) => chosen.binary_search(&row).ok()?,
        };
        self.explanations.of(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_known_and_stand_once() {
        for (query, expected) in [
            ("", None),
            ("explain=true&top_k=2&space=log_odds&method=path_dependent&class=no+way", None),
            ("explain=t%72ue", None),
            ("explain=yes", Some("false, true or full")),
            ("explain", Some("false, true or full")),
            ("Explain=true", Some("another name")),
            ("explain=true&explain=true", Some("explain twice")),
            ("top_k=0", Some("at least 1")),
            ("top_k=-1", Some("at least 1")),
            ("top_k=1.5", Some("at least 1")),
            ("space=logodds", Some("log_odds, margin")),
            ("method=shap", Some("linear, tree_interventional")),
            ("canary=canary", Some("another name")),
        ] {
            match (Parameters::read(query), expected) {
                (Ok(_), None) => {}
                (Err(Error::Parameter(detail)), Some(expected)) => {
                    assert!(detail.contains(expected) && !detail.contains("canary"), "{query}: {detail}");
                }
                (found, _) => panic!("{query}: {:?}", found.err()),
            }
        }
        let read = Parameters::read("explain=full&class=no+way&top_k=7").ok().unwrap();
        assert_eq!((read.explain, read.top_k), (Some(ExplainMode::Full), Some(7)));
        assert_eq!(read.question.class.as_deref(), Some("no way"));
        assert!(read.how.is_some());
    }
}
