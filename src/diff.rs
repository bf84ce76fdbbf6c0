//! How two versions of a model differ: what they take, what they answer, how good they are, and what both say of their golden rows.
//! Rows are told of by their number, never by what is in them.

pub mod golden;

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;

use scoregate_model::package::MODEL;
use scoregate_schemas::compatibility::{Difference, breaking};
use scoregate_schemas::feature_schema::{FeatureSchema, Field};
use scoregate_schemas::manifest::{Manifest, Metrics, Task};
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::golden::GoldenDiff;
use crate::config::Serving;
use crate::import::output_in_words;

/// So many categories are named before the others are only counted.
const NAMED: usize = 20;

/// One of the two versions.
#[derive(Debug, Clone, Copy)]
pub struct Side<'s> {
    /// Its manifest.
    pub manifest: &'s Manifest,
    /// Its schema.
    pub schema: &'s FeatureSchema,
    /// Bytes of its graph, where they are known.
    pub bytes: Option<u64>,
    /// The labels that it answers with: its own, or the operator's.
    pub labels: &'s [String],
    /// The threshold by which it decides: its own, or the operator's.
    pub threshold: f64,
}

impl<'s> Side<'s> {
    /// A version as it is served here.
    pub fn new(
        manifest: &'s Manifest,
        schema: &'s FeatureSchema,
        bytes: Option<u64>,
        serving: &'s Serving,
    ) -> Self {
        let labels = serving.labels.as_ref().unwrap_or(&manifest.labels);
        let threshold = serving.threshold.unwrap_or(manifest.threshold);
        Self { manifest, schema, bytes, labels, threshold }
    }
}

/// How two versions differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// The model.
    pub model: String,
    /// The one version.
    pub from: Facts,
    /// The other.
    pub to: Facts,
    /// What clients of the one would lose with the other.
    pub breaking: Vec<Broken>,
    /// Fields that are not the same.
    pub fields: Vec<FieldDiff>,
    /// Every metric that either has.
    pub metrics: Vec<MetricDiff>,
    /// What both answer to the golden rows of each.
    pub golden: Vec<GoldenDiff>,
    /// Why there is nothing of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub golden_unknown: Option<String>,
}

/// What a version says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    /// Its name.
    pub model_version: String,
    /// When it was published.
    pub created_at: String,
    /// `sha256:…` of its graph.
    pub digest: String,
    /// Bytes of its graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What made it.
    pub producer: String,
    /// Where the answer is and what it means.
    pub output: String,
    /// The labels.
    pub labels: Vec<String>,
    /// The probability from which on a row is labelled positive, of two classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// How far answers may be from the golden rows'.
    pub tolerance: f64,
}

/// One thing that clients would lose.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Broken {
    /// The field that it is about; none where it is about the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// A stable name for it.
    pub code: &'static str,
    /// A sentence.
    pub detail: String,
}

/// How a field differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldDiff {
    /// Its name.
    pub name: String,
    /// What has become of it.
    pub change: FieldChange,
    /// Whether rows are refused for it that passed.
    pub breaking: bool,
    /// What the schemas say of it; of a field that both have, where they differ.
    pub members: Vec<Member>,
}

/// What has become of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldChange {
    /// Only the other version has it.
    Added,
    /// Only the one version has it.
    Removed,
    /// Both have it.
    Changed,
}

/// What the two schemas say of a field under one name. Of `enum` it is the categories that only one has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Member {
    /// The name.
    pub name: String,
    /// What the one says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What the other says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// A metric of both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricDiff {
    /// What is measured.
    pub name: &'static str,
    /// That of the one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<f64>,
    /// That of the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<f64>,
    /// By how much the other is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<f64>,
    /// Whether more is better; nothing of what is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more_is_better: Option<bool>,
}

/// How `from` and `to` differ; `golden` is what was found out about their golden rows, or why that was not.
pub fn diff(from: Side<'_>, to: Side<'_>, golden: Result<Vec<GoldenDiff>, String>) -> Diff {
    let lost = breaking(from.manifest, from.schema, to.manifest, to.schema);
    let fields = fields(from.schema, to.schema, &lost);
    let broken = lost.iter().map(|difference| Broken {
        field: difference.field.clone(),
        code: difference.change.as_str(),
        detail: difference.to_string(),
    });
    let (golden, golden_unknown) = match golden {
        Ok(golden) => (golden, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    Diff {
        model: from.manifest.name.clone(),
        from: Facts::new(from),
        to: Facts::new(to),
        breaking: broken.collect(),
        fields,
        metrics: metrics(from.manifest.metrics.as_ref(), to.manifest.metrics.as_ref()),
        golden,
        golden_unknown,
    }
}

impl Facts {
    fn new(side: Side<'_>) -> Self {
        let manifest = side.manifest;
        Self {
            model_version: manifest.version.clone(),
            created_at: manifest.created_at.clone(),
            digest: manifest.files.get(MODEL).cloned().unwrap_or_default(),
            bytes: side.bytes,
            producer: manifest.source.producer.clone(),
            output: output_in_words(&manifest.output, side.labels),
            labels: side.labels.to_vec(),
            threshold: (manifest.output.task() == Task::Binary).then_some(side.threshold),
            tolerance: manifest.tolerance,
        }
    }
}

fn fields(from: &FeatureSchema, to: &FeatureSchema, lost: &[Difference]) -> Vec<FieldDiff> {
    let find = |schema: &FeatureSchema, name: &str| schema.fields.iter().any(|field| field.name == name);
    let added = to.fields.iter().filter(|field| !find(from, &field.name));
    let all = from.fields.iter().chain(added);
    let compared = all.filter_map(|field| {
        let name = &field.name;
        let change = match (find(from, name), find(to, name)) {
            (true, true) => FieldChange::Changed,
            (true, false) => FieldChange::Removed,
            _ => FieldChange::Added,
        };
        let members = members(from, to, name);
        let breaking = lost.iter().any(|difference| difference.field.as_ref() == Some(name));
        let is_same = change == FieldChange::Changed && members.is_empty() && !breaking;
        (!is_same).then(|| FieldDiff { name: name.clone(), change, breaking, members })
    });
    compared.collect()
}

/// What the schemas say differently of field `name`.
fn members(from: &FeatureSchema, to: &FeatureSchema, name: &str) -> Vec<Member> {
    let (was, is) = (stated(from, name), stated(to, name));
    let mut names: Vec<&String> = was.keys().chain(is.keys()).collect();
    let mut known = BTreeSet::new();
    names.retain(|name| known.insert(*name));
    let is_private = [from, to]
        .iter()
        .any(|schema| schema.fields.iter().any(|field: &Field| field.name == name && field.pii));
    let differing = names.into_iter().filter(|member| was.get(*member) != is.get(*member));
    let member = |member: &String| {
        let (mut from, mut to) = (was.get(member).cloned(), is.get(member).cloned());
        if member == "enum" {
            (from, to) = (only(&was, &is, is_private), only(&is, &was, is_private));
        } else if is_private && matches!(member.as_str(), "encode" | "missing") {
            // Both may name values.
            (from, to) = (from.map(|_| "personal data".into()), to.map(|_| "personal data".into()));
        }
        Member { name: member.clone(), from, to }
    };
    differing.map(member).collect()
}

/// What a schema says of a field that a row can meet, under one name each.
fn stated(schema: &FeatureSchema, name: &str) -> Map<String, Value> {
    const ENFORCED: [&str; 8] = [
        "type",
        "enum",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
    ];
    let document = schema.document();
    let mut stated = Map::new();
    let property = document.get("properties").and_then(|properties| properties.get(name));
    let Some(Value::Object(property)) = property else { return stated };
    for enforced in ENFORCED {
        stated.extend(property.get(enforced).map(|value| (enforced.to_owned(), value.clone())));
    }
    let required = schema.fields.iter().any(|field| field.name == name && field.required);
    if required {
        stated.insert("required".into(), true.into());
    }
    if let Some(Value::Object(extension)) = property.get("x-scoregate") {
        stated.extend(extension.clone());
    }
    stated
}

/// The categories that `these` lists and `those` does not: by name, or only counted.
fn only(these: &Map<String, Value>, those: &Map<String, Value>, is_private: bool) -> Option<Value> {
    let listed = |stated: &Map<String, Value>| stated.get("enum").and_then(Value::as_array).cloned();
    let (these, those) = (listed(these)?, listed(those).unwrap_or_default());
    let those: HashSet<&str> = those.iter().filter_map(Value::as_str).collect();
    let is_only = |value: &Value| value.as_str().is_some_and(|value| !those.contains(value));
    let only: Vec<Value> = these.into_iter().filter(is_only).collect();
    if is_private {
        return Some(format!("{} categories", only.len()).into());
    }
    let more = only.len().saturating_sub(NAMED);
    let mut named: Vec<Value> = only.into_iter().take(NAMED).collect();
    if more > 0 {
        named.push(format!("… {more} more").into());
    }
    Some(named.into())
}

/// Every metric, by name, and whether more of it is better.
fn measured(metrics: Option<&Metrics>) -> Vec<(&'static str, f64, Option<bool>)> {
    let rows = |rows: usize| ("rows", rows as f64, None);
    let (more, less) = (Some(true), Some(false));
    match metrics {
        None => Vec::new(),
        Some(Metrics::Binary(found)) => vec![
            ("roc_auc", found.roc_auc.value, more),
            ("pr_auc", found.pr_auc.value, more),
            ("brier", found.brier.value, less),
            ("log_loss", found.log_loss.value, less),
            ("expected_calibration_error", found.expected_calibration_error.value, less),
            rows(found.rows),
        ],
        Some(Metrics::Multiclass(found)) => vec![
            ("accuracy", found.accuracy, more),
            ("log_loss", found.log_loss, less),
            ("brier", found.brier, less),
            rows(found.rows),
        ],
        Some(Metrics::Regression(found)) => {
            let mut all = vec![("rmse", found.rmse, less), ("mae", found.mae, less)];
            all.extend(found.r2.map(|r2| ("r2", r2, more)));
            all.push(rows(found.rows));
            all
        }
    }
}

fn metrics(from: Option<&Metrics>, to: Option<&Metrics>) -> Vec<MetricDiff> {
    let (was, is) = (measured(from), measured(to));
    let find = |all: &[(&'static str, f64, Option<bool>)], name: &str| {
        all.iter().find(|(known, ..)| *known == name).map(|(_, value, _)| *value)
    };
    let added = is.iter().filter(|(name, ..)| find(&was, name).is_none());
    let all = was.iter().chain(added).map(|(name, _, more_is_better)| {
        let (from, to) = (find(&was, name), find(&is, name));
        let difference = from.zip(to).map(|(from, to)| to - from);
        MetricDiff { name, from, to, difference, more_is_better: *more_is_better }
    });
    all.collect()
}

impl Diff {
    /// The same in plain words.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            let _ = writeln!(text, "{}", line.trim_end());
        };
        let (from, to) = (&self.from, &self.to);
        line(format!("{}: {} → {}", self.model, from.model_version, to.model_version));
        line(String::new());
        let mut fact = |name: &str, was: String, is: String| {
            let told = if was == is { was } else { format!("{was} → {is}") };
            line(format!("{name:<11}{told}"));
        };
        fact("published", from.created_at.clone(), to.created_at.clone());
        fact("made by", from.producer.clone(), to.producer.clone());
        fact("digest", from.digest.clone(), to.digest.clone());
        let bytes = |facts: &Facts| facts.bytes.map_or("unknown".into(), |bytes| format!("{bytes} bytes"));
        fact("graph", bytes(from), bytes(to));
        fact("answers", from.output.clone(), to.output.clone());
        fact("labels", from.labels.join(", "), to.labels.join(", "));
        let threshold =
            |facts: &Facts| facts.threshold.map_or("none".into(), |threshold| threshold.to_string());
        fact("threshold", threshold(from), threshold(to));
        fact("tolerance", from.tolerance.to_string(), to.tolerance.to_string());
        line(String::new());
        match self.breaking.as_slice() {
            [] => line(format!(
                "breaking   nothing: every row that {} takes passes {}",
                from.model_version, to.model_version
            )),
            broken => broken.iter().for_each(|broken| line(format!("breaking   {}", broken.detail))),
        }
        for field in &self.fields {
            let mark = if field.breaking { " (breaking)" } else { "" };
            let change = match field.change {
                FieldChange::Added => "added",
                FieldChange::Removed => "removed",
                FieldChange::Changed => "changed",
            };
            line(format!("field      {} {change}{mark}", field.name));
            for Member { name, from, to } in &field.members {
                line(match (from, to) {
                    (Some(from), Some(to)) => format!("             {name}: {from} → {to}"),
                    (Some(from), None) => format!("             {name}: {from}, and no more"),
                    (None, to) => format!("             {name}: {}", to.as_ref().unwrap_or(&json!(null))),
                });
            }
        }
        for metric in &self.metrics {
            let number = |value: Option<f64>| value.map_or("none".into(), in_digits);
            let told = match (metric.difference, metric.more_is_better) {
                (Some(difference), Some(more)) if difference != 0.0 => {
                    let better = if (difference > 0.0) == more { "better" } else { "worse" };
                    let sign = if difference > 0.0 { "+" } else { "" };
                    format!(" ({sign}{}, {better})", in_digits(difference))
                }
                _ => String::new(),
            };
            line(format!(
                "metric     {}: {} → {}{told}",
                metric.name,
                number(metric.from),
                number(metric.to)
            ));
        }
        for golden in &self.golden {
            let refused = [(golden.refused_by_from, from), (golden.refused_by_to, to)];
            let refused = refused
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, facts)| format!("; {count} refused by {}", facts.model_version));
            let left = match golden.left_out {
                0 => String::new(),
                left => format!("; the last {left} are left out"),
            };
            line(format!(
                "golden     {} rows of {}{}{left}",
                golden.rows,
                golden.rows_of,
                refused.collect::<String>()
            ));
            if let (Some(mean), Some(largest), Some(row)) =
                (golden.mean_difference, golden.largest_difference, golden.worst_row)
            {
                let flips = golden.flips.map_or(String::new(), |flips| format!(", {flips} other labels"));
                line(format!(
                    "             apart by {} on average, by {} at most (row {row}){flips}",
                    in_digits(mean),
                    in_digits(largest)
                ));
            }
        }
        match (&self.golden_unknown, self.golden.is_empty()) {
            (Some(why), _) => line(format!("golden     not compared: {why}")),
            (None, true) => line("golden     neither has golden rows".into()),
            (None, false) => {}
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// A number with as many digits as are worth reading.
fn in_digits(number: f64) -> String {
    if number != 0.0 && number.abs() < 1e-3 {
        return format!("{number:.2e}");
    }
    let text = format!("{number:.4}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.into()
}
