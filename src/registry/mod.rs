//! Which model versions exist, which of them are loaded, and which one answers.
//!
//! What requests see is a [`Snapshot`] that never changes; [`watch`] puts another in its place when something is published,
//! promoted or refused.

mod crew;
mod explainer;
mod records;
mod seen;
mod tools;
mod version;
pub mod watch;
mod watched;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use scoregate_model::acceptance::Golden;
use scoregate_model::package;
use scoregate_schemas::manifest::Manifest;
use scoregate_schemas::rollout::GuardMode;
use scoregate_schemas::{FeatureSchema, Rollout};
use tokio::sync::Notify;

pub use self::explainer::{Prepared, Unexplained};
pub use self::tools::load_offline;
pub use self::version::{Cost, STACK_BYTES, Version};
use self::watch::Waker;

/// Why a repository cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository cannot be listed.
    #[error(transparent)]
    Package(#[from] package::Error),
    /// There is no model in it.
    #[error("no model is published in {directory}; {}, or set SCOREGATE_MODELS_DIR", first_model(.directory))]
    NoModel {
        /// The repository.
        directory: String,
    },
    /// None of its models can be served.
    #[error("none of the models can be served:{}", .0.iter().map(|(model, why)| format!("\n  {model}: {why}")).collect::<String>())]
    NoneServable(Vec<(String, String)>),
}

/// How a repository comes to its first model.
fn first_model(directory: &str) -> String {
    if directory.starts_with("s3://") {
        return "where it could not be read the log says so above; else publish one with `scoregate import`"
            .into();
    }
    format!(
        "train one with `scoregate-trainer fit --data churn.csv --schema schemas/churn.json --models-dir {directory}`"
    )
}

/// The models that are served.
#[derive(Debug, Default)]
pub struct Registry {
    snapshot: ArcSwap<Snapshot>,
    /// Tells that there is another.
    shown: Notify,
    /// Wakes whoever follows the repository, where somebody does.
    waker: Option<Waker>,
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
    /// The versions that are loaded, and which of them answers whom; nothing as long as the live one is not.
    pub split: Option<Arc<Split>>,
    /// The rollout that is followed.
    pub rollout: Option<Arc<Rollout>>,
    /// Every version that is published, by name, and the one that answers.
    pub versions: BTreeMap<String, Published>,
    /// Why the version that is to answer does not.
    pub refusal: Option<Refused>,
}

impl Model {
    /// The version that answers everybody for whom no other one is named.
    pub fn live(&self) -> Option<&Arc<Version>> {
        self.split.as_ref().map(|split| &split.live)
    }
}

/// The versions of a model that are loaded, and which of them answers whom. A version that is to answer and is not loaded is not
/// among them: its callers are the live one's until it is. As long as nothing of this changes it is the same split in every snapshot.
#[derive(Debug, Clone)]
pub struct Split {
    /// How many times the rollout had changed that this follows.
    pub revision: u64,
    /// Answers everybody for whom no other one is named.
    pub live: Arc<Version>,
    /// Answer the entities in their slots.
    pub canaries: Vec<LoadedCanary>,
    /// Scores what the others answer, and nobody gets that.
    pub shadow: Option<Arc<Version>>,
    /// Loaded besides: the version before, which a rollback returns to.
    pub kept: Vec<Arc<Version>>,
}

/// A canary that is loaded.
#[derive(Debug, Clone)]
pub struct LoadedCanary {
    /// The version.
    pub version: Arc<Version>,
    /// Its slots, each range from the first to the one before the second.
    pub slots: Vec<(u16, u16)>,
    /// How much of everything they are, in percent.
    pub percent: f64,
    /// Since when it is to answer them, RFC 3339 in UTC; nothing where the rollout does not say.
    pub since: Option<String>,
    /// What becomes of it by what it answers; as the settings say if nothing is said.
    pub guard: Option<GuardMode>,
}

impl Split {
    /// One version that answers everybody.
    pub fn of(live: Arc<Version>) -> Self {
        Self { revision: 0, live, canaries: Vec::new(), shadow: None, kept: Vec::new() }
    }

    /// Whether one version answers everybody, so that nothing has to be known of who is scored.
    pub fn is_plain(&self) -> bool {
        self.canaries.iter().all(|canary| canary.slots.is_empty())
    }

    /// The version that answers whoever is in `slot`.
    pub fn answering(&self, slot: u16) -> &Arc<Version> {
        let is_in =
            |canary: &&LoadedCanary| canary.slots.iter().any(|(first, end)| (*first..*end).contains(&slot));
        self.canaries.iter().find(is_in).map_or(&self.live, |canary| &canary.version)
    }

    /// Every version that is loaded, the live one first; each once.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        let others = self.canaries.iter().map(|canary| &canary.version).chain(&self.shadow).chain(&self.kept);
        std::iter::once(&self.live).chain(others)
    }

    /// The version that is called so, or else labelled so: `stable` is the live one, `canary` the first of the canaries.
    pub fn named(&self, name: &str) -> Option<&Arc<Version>> {
        let called = self.versions().find(|version| version.manifest.version == name);
        called.or_else(|| match name {
            "stable" => Some(&self.live),
            "canary" => self.canaries.first().map(|canary| &canary.version),
            _ => None,
        })
    }
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
    /// It may be served, and is loaded once the rollout names it.
    Accepted,
    /// It is loaded, for what the rollout names it.
    Loaded(Role, Arc<Version>),
    /// It is never served as it is.
    Refused(Refused),
}

/// What a version is in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It answers everybody for whom no other one is named.
    Live,
    /// It answers a share of the entities.
    Canary,
    /// It scores what the others answer, and nobody gets that.
    Shadow,
    /// It was live before, and a rollback returns to it.
    Previous,
}

impl Role {
    /// What `version` is in `rollout`, if it is anything.
    pub fn of(rollout: &Rollout, version: &str) -> Option<Self> {
        let is = |named: &Option<String>| named.as_deref() == Some(version);
        if rollout.live == version {
            Some(Self::Live)
        } else if rollout.canaries.iter().any(|canary| canary.version == version) {
            Some(Self::Canary)
        } else if is(&rollout.shadow) {
            Some(Self::Shadow)
        } else if is(&rollout.previous) {
            Some(Self::Previous)
        } else {
            None
        }
    }

    /// As clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Canary => "canary",
            Self::Shadow => "shadow",
            Self::Previous => "previous",
        }
    }
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
            Self::Loaded(role, _) => role.as_str(),
            Self::Refused(_) => "refused",
        }
    }

    /// The version, where it is loaded.
    pub fn version(&self) -> Option<&Arc<Version>> {
        match self {
            Self::Loaded(_, version) => Some(version),
            Self::Checking | Self::Accepted | Self::Refused(_) => None,
        }
    }
}

impl Registry {
    /// An empty one, whose follower `waker` wakes.
    fn new(waker: Waker) -> Self {
        Self { waker: Some(waker), ..Self::default() }
    }

    /// The version of `model` that answers everybody for whom no other one is named.
    pub fn live(&self, model: &str) -> Option<Arc<Version>> {
        self.snapshot.load().models.get(model)?.live().cloned()
    }

    /// The versions of `model` that are loaded, and which of them answers whom.
    pub fn split(&self, model: &str) -> Option<Arc<Split>> {
        self.snapshot.load().models.get(model)?.split.clone()
    }

    /// The models as they are now.
    pub fn models(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Has the repository looked at now, because something in it is known to have changed.
    pub fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }

    /// Waits until the models are as `wanted`.
    pub async fn until(&self, wanted: impl Fn(&Snapshot) -> bool) {
        loop {
            let mut shown = pin!(self.shown.notified());
            // From here on it is heard.
            shown.as_mut().enable();
            if wanted(&self.models()) {
                return;
            }
            shown.await;
        }
    }

    fn put(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.shown.notify_waiters();
    }
}
