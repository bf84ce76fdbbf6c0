//! Which model versions exist, which of them are loaded, and which one answers.
//!
//! What requests see is a [`Snapshot`] that never changes; [`watch`] puts another in its place when something is published,
//! promoted or refused.

mod explainer;
mod records;
mod tools;
mod version;
pub mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use scoregate_model::acceptance::Golden;
use scoregate_model::package;
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::Manifest;

pub use self::explainer::{Prepared, Unexplained};
pub use self::tools::load_offline;
pub use self::version::{Cost, STACK_BYTES, Version};

/// Why a repository cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository cannot be listed.
    #[error(transparent)]
    Package(#[from] package::Error),
    /// There is no model in it.
    #[error(
        "no model is published in {directory}; train one with `scoregate-trainer fit --data churn.csv --schema \
         schemas/churn.json --models-dir {directory}`, or set SCOREGATE_MODELS_DIR"
    )]
    NoModel {
        /// The repository.
        directory: String,
    },
    /// None of its models can be served.
    #[error("none of the models can be served:{}", .0.iter().map(|(model, why)| format!("\n  {model}: {why}")).collect::<String>())]
    NoneServable(Vec<(String, String)>),
}

/// The models that are served.
#[derive(Debug, Default)]
pub struct Registry {
    snapshot: ArcSwap<Snapshot>,
}

/// The models at one moment.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// Every model, by name.
    pub models: BTreeMap<String, Model>,
}

/// A model at one moment.
#[derive(Debug, Default, Clone)]
pub struct Model {
    /// The version that answers.
    pub live: Option<Arc<Version>>,
    /// Every version that is published, by name, and the one that answers.
    pub versions: BTreeMap<String, Published>,
    /// Why the version that is to answer does not.
    pub refusal: Option<Refused>,
}

/// A version at one moment.
#[derive(Debug, Clone)]
pub struct Published {
    /// What its manifest says, where that can be read and the version is not refused.
    pub stated: Option<Arc<Stated>>,
    /// When it was published, where its manifest says so.
    pub created_at: Option<String>,
    /// `sha256:…` of the graph, where its manifest says so.
    pub digest: Option<String>,
    /// How its golden rows came out, once it was accepted.
    pub golden: Option<Golden>,
    /// What has become of it.
    pub state: State,
}

/// A manifest, and what its schema says, worked out once.
#[derive(Debug)]
pub struct Stated {
    /// The manifest.
    pub manifest: Arc<Manifest>,
    /// The names of the fields that reach the graph, in order.
    pub features: Vec<String>,
    /// The column of the outcome.
    pub target: Option<String>,
}

impl Stated {
    /// What `manifest` says, whose schema is `schema`.
    fn new(manifest: Arc<Manifest>, schema: &FeatureSchema) -> Self {
        let features = schema.features().map(|field| field.name.clone()).collect();
        Self { manifest, features, target: schema.target.clone() }
    }
}

/// What has become of a version.
#[derive(Debug, Clone)]
pub enum State {
    /// It is being tried in a process of its own, or waits for that.
    Checking,
    /// It may be served, and answers once it is promoted.
    Accepted,
    /// It answers.
    Live(Arc<Version>),
    /// It is never served as it is.
    Refused(Refused),
}

/// Why a version is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// A stable name for what is wrong.
    pub code: String,
    /// A sentence for clients: it holds no path and no text of ONNX Runtime. The log has all of it.
    pub reason: String,
}

impl State {
    /// As clients see it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Accepted => "accepted",
            Self::Live(_) => "live",
            Self::Refused(_) => "refused",
        }
    }
}

impl Registry {
    /// The version of `model` that answers.
    pub fn live(&self, model: &str) -> Option<Arc<Version>> {
        self.snapshot.load().models.get(model)?.live.clone()
    }

    /// The models as they are now.
    pub fn models(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    fn put(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }
}
