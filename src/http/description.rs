//! What the models routes say of models and versions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use scoregate_model::acceptance::Golden;
use scoregate_model::explain::importance::Importance;
use scoregate_model::explain::{Question, Space};
use scoregate_schemas::manifest::{Manifest, Metrics, Source, Task};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cache::Cache;
use crate::import::{bindings_in_words, output_in_words};
use crate::registry::{self, Model, Published, Refused, State, Version};

/// `GET /v1/models`
#[derive(Serialize)]
pub(super) struct Models<'s> {
    pub(super) models: Vec<ModelDescription<'s, VersionSummary<'s>>>,
}

/// `GET /v1/models/{model}/versions`
#[derive(Serialize)]
pub(super) struct Versions<'s> {
    pub(super) versions: Vec<VersionDescription<'s>>,
}

/// `GET /v1/models/{model}`, and one entry of `GET /v1/models`.
#[derive(Serialize)]
pub(super) struct ModelDescription<'s, V> {
    model: &'s str,
    /// Whether it answers under the paths that name no model.
    default: bool,
    /// The version that answers.
    live: Option<&'s str>,
    /// Why the version that is to answer does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal<'s>>,
    versions: Vec<V>,
}

impl<'s, V> ModelDescription<'s, V> {
    pub(super) fn new(
        name: &'s str,
        model: &'s Model,
        default: &str,
        describe: impl Fn(&'s str, &'s str, &'s Published) -> V,
    ) -> Self {
        Self {
            model: name,
            default: name == default,
            live: model.live().map(|live| live.manifest.version.as_str()),
            refusal: model.refusal.as_ref().map(Refusal::of),
            versions: model.versions.iter().map(|(version, found)| describe(name, version, found)).collect(),
        }
    }
}

/// A version in few words: members of a [`VersionDescription`].
#[derive(Serialize)]
pub(super) struct VersionSummary<'s> {
    model_version: &'s str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal<'s>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'s Source>,
}

impl<'s> VersionSummary<'s> {
    pub(super) fn new(_model: &'s str, version: &'s str, found: &'s Published) -> Self {
        let manifest = found.stated.as_ref().map(|stated| stated.manifest.as_ref());
        Self {
            model_version: version,
            state: found.state.as_str(),
            refusal: Refusal::of_state(&found.state),
            task: manifest.map(|manifest| task(manifest.output.task())),
            digest: found.digest.as_deref(),
            created_at: found.created_at.as_deref(),
            source: manifest.map(|manifest| &manifest.source),
        }
    }
}

/// All that is known of a version: `GET /v1/models/{model}/versions/{version}` and `GET /v1/metadata`.
#[derive(Serialize)]
pub(super) struct VersionDescription<'s> {
    model: &'s str,
    model_version: &'s str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal<'s>>,
    /// Absent where the manifest cannot be read, or the version is refused.
    #[serde(flatten)]
    stated: Option<Stated<'s>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'s Source>,
    /// There for versions that are loaded.
    #[serde(flatten)]
    loaded: Option<Loaded<'s>>,
}

/// Why a version is not served.
#[derive(Serialize)]
pub(super) struct Refusal<'s> {
    code: &'s str,
    reason: &'s str,
}

/// What the manifest says; of a version that is loaded, with what the operator set in its place.
#[derive(Serialize)]
struct Stated<'s> {
    task: &'static str,
    features: &'s [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'s str>,
    labels: &'s [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    training: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<&'s Metrics>,
    schema: &'s Value,
    bindings: String,
    output: String,
    changes: &'s [String],
    tolerance: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    golden: Option<Golden>,
}

/// What is known of a version since it is loaded.
#[derive(Serialize)]
struct Loaded<'s> {
    execution_providers: &'s BTreeMap<String, usize>,
    sessions: usize,
    memory_bytes: u64,
    cost: Cost,
    cache: Cached,
    explanations: Explanations<'s>,
    #[serde(skip_serializing_if = "Option::is_none")]
    importance: Option<&'s Importance>,
    max_batch_rows: usize,
}

/// Whether and how its scores are explained.
#[derive(Serialize)]
struct Explanations<'s> {
    mode: &'static str,
    methods: Vec<&'static str>,
    spaces: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_space: Option<&'static str>,
    background_rows: usize,
    /// What explaining a row takes where a request says nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_us: Option<f64>,
    /// Why there are none, or no closed form.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'s, str>>,
}

impl<'s> Explanations<'s> {
    fn new(version: &'s Version) -> Self {
        let mode = version.explain.mode.as_str();
        let explainer = match version.explainer() {
            Ok(prepared) => &prepared.explainer,
            Err(why) => {
                let reason = Some(why.to_string().into());
                let (methods, spaces) = (Vec::new(), Vec::new());
                return Self {
                    mode,
                    methods,
                    spaces,
                    default_space: None,
                    background_rows: 0,
                    cost_us: None,
                    reason,
                };
            }
        };
        let spaces = explainer.spaces();
        let mut methods: Vec<&'static str> = Vec::new();
        for method in spaces.iter().flat_map(|space| explainer.methods(*space)) {
            if !methods.contains(&method.as_str()) {
                methods.push(method.as_str());
            }
        }
        let spaces: Vec<_> = spaces.into_iter().map(Space::as_str).collect();
        let (background_rows, reason) = (explainer.background_rows(), explainer.reason().map(Cow::Borrowed));
        let ask = explainer.ask(&Question::default(), &version.labels).ok();
        let cost = ask.map(|ask| explainer.cost(&ask, version.explain.budget));
        Self {
            mode,
            methods,
            default_space: spaces.first().copied(),
            spaces,
            background_rows,
            cost_us: cost.map(|cost| cost.as_nanos() as f64 / 1e3),
            reason,
        }
    }
}

/// Whether and where its scores are kept, and what that costs and saves, in microseconds for each look-up of one row.
#[derive(Serialize)]
struct Cached {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_s: Option<f64>,
    /// What it takes to compute a score.
    #[serde(skip_serializing_if = "Option::is_none")]
    compute_us: Option<f64>,
    levels: BTreeMap<&'static str, LevelUse>,
}

#[derive(Serialize)]
struct LevelUse {
    used: bool,
    hit_ratio: f64,
    cost_us: f64,
    saving_us: f64,
}

impl Cached {
    fn new(cache: &Cache, version: &Version) -> Self {
        let round = |number: f64, digits: i32| (number * 10_f64.powi(digits)).round() / 10_f64.powi(digits);
        let microseconds = |seconds: f64| round(seconds * 1e6, 2);
        let levels = cache.estimates(&version.worth).map(|(level, estimate)| {
            let level_use = LevelUse {
                used: estimate.used,
                hit_ratio: round(estimate.hit_ratio, 3),
                cost_us: microseconds(estimate.cost),
                saving_us: microseconds(estimate.saving),
            };
            (level.as_str(), level_use)
        });
        let is_on = cache.is_on();
        Self {
            mode: cache.mode().as_str(),
            ttl_s: is_on.then(|| cache.ttl().as_secs_f64()),
            compute_us: is_on.then(|| microseconds(version.worth.compute(1))),
            levels: levels.collect(),
        }
    }
}

/// A run of one row in microseconds, and each row of a large run in nanoseconds.
#[derive(Serialize)]
struct Cost {
    run_us: f64,
    row_ns: u128,
}

impl<'s> VersionDescription<'s> {
    pub(super) fn new(model: &'s str, version: &'s str, found: &'s Published, cache: &Cache) -> Self {
        let loaded = found.state.version().map(AsRef::as_ref);
        Self {
            model,
            model_version: version,
            state: found.state.as_str(),
            refusal: Refusal::of_state(&found.state),
            stated: found.stated.as_ref().map(|stated| Stated::new(stated, found, loaded)),
            digest: found.digest.as_deref(),
            created_at: found.created_at.as_deref(),
            source: found.stated.as_ref().map(|stated| &stated.manifest.source),
            loaded: loaded.map(|loaded| Loaded::new(loaded, cache)),
        }
    }
}

impl<'s> Refusal<'s> {
    fn of(refused: &'s Refused) -> Self {
        Self { code: &refused.code, reason: &refused.reason }
    }

    pub(super) fn of_state(state: &'s State) -> Option<Self> {
        match state {
            State::Refused(refused) => Some(Self::of(refused)),
            State::Checking | State::Accepted | State::Loaded(..) => None,
        }
    }
}

impl<'s> Stated<'s> {
    fn new(stated: &'s registry::Stated, found: &'s Published, loaded: Option<&'s Version>) -> Self {
        let manifest = stated.manifest.as_ref();
        let labels = loaded.map_or(&manifest.labels, |loaded| &loaded.labels);
        let output = &manifest.output;
        let threshold = loaded.map_or(manifest.threshold, |loaded| loaded.threshold);
        Self {
            task: task(output.task()),
            features: &stated.features,
            target: stated.target.as_deref(),
            labels,
            threshold: (output.task() == Task::Binary).then_some(threshold),
            training: training(manifest),
            metrics: manifest.metrics.as_ref(),
            schema: &manifest.schema,
            bindings: bindings_in_words(&manifest.bindings),
            output: output_in_words(output, labels),
            changes: &manifest.changes,
            tolerance: manifest.tolerance,
            golden: found.golden,
        }
    }
}

impl<'s> Loaded<'s> {
    fn new(version: &'s Version, cache: &Cache) -> Self {
        let crate::registry::Cost { run, row } = version.cost;
        // Whole nanoseconds, so that no digits appear which nobody measured.
        let cost = Cost { run_us: run.as_nanos() as f64 / 1e3, row_ns: row.as_nanos() };
        Self {
            execution_providers: &version.execution_providers,
            sessions: version.sessions,
            memory_bytes: version.memory_bytes(),
            cost,
            cache: Cached::new(cache, version),
            explanations: Explanations::new(version),
            importance: version.importance.as_ref(),
            max_batch_rows: version.max_batch_rows,
        }
    }
}

fn task(task: Task) -> &'static str {
    match task {
        Task::Binary => "binary",
        Task::Multiclass { .. } => "multiclass",
        Task::Regression => "regression",
    }
}

/// How the model was fitted and how good it is, in one number each.
fn training(manifest: &Manifest) -> Map<String, Value> {
    let mut training = Map::new();
    let mut measured = |rows: usize, values: &[(&str, f64)]| {
        training.extend(values.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        training.insert("holdout_rows".into(), rows.into());
    };
    match &manifest.metrics {
        Some(Metrics::Binary(metrics)) => measured(
            metrics.rows,
            &[
                ("roc_auc", metrics.roc_auc.value),
                ("pr_auc", metrics.pr_auc.value),
                ("brier", metrics.brier.value),
                ("log_loss", metrics.log_loss.value),
                ("expected_calibration_error", metrics.expected_calibration_error.value),
            ],
        ),
        Some(Metrics::Multiclass(metrics)) => measured(
            metrics.rows,
            &[("accuracy", metrics.accuracy), ("log_loss", metrics.log_loss), ("brier", metrics.brier)],
        ),
        Some(Metrics::Regression(metrics)) => {
            measured(metrics.rows, &[("rmse", metrics.rmse), ("mae", metrics.mae)]);
            training.extend(metrics.r2.map(|r2| ("r2".into(), r2.into())));
        }
        None => {}
    }
    if let Some(facts) = &manifest.training {
        training.insert("rows".into(), facts.rows.into());
        training.insert("seed".into(), facts.seed.into());
        training.insert("trainer".into(), facts.trainer.as_str().into());
        training.insert("data_digest".into(), facts.data_digest.as_str().into());
    }
    training
}
