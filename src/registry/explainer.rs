//! What explains the scores of a version: prepared once the version answers, which it does not wait for.

use std::sync::Arc;
use std::time::Duration;

use scoregate_model::explain::{Ask, Explainer, Question, Source};
use scoregate_model::features::RowReader;
use scoregate_model::inspect::Served;
use scoregate_model::package::Covers;
use scoregate_model::runtime::{self, Runtime, SessionOptions};
use scoregate_schemas::manifest::Manifest;
use serde_json::{Map, Value};

use super::version::Cost;
use crate::cache::Worth;
use crate::config::ExplainSettings;

/// The most memory that an explainer may take for tables, in bytes.
const TABLE_BYTES: u64 = 64 << 20;

/// Why the scores of a version are not explained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unexplained {
    /// The operator has switched it off.
    #[error("explanations are switched off for this model")]
    Off,
    /// There is nothing to compare rows with.
    #[error(
        "the model's package has no background rows, against which rows are explained; import or fit a version with them: \
         `scoregate import … --reference train.csv`"
    )]
    NoBackground,
    /// The model has no usable answer to its background rows.
    #[error(
        "the model has no usable answer to the background rows of its package, against which rows are explained; import a \
         version with other rows as --reference"
    )]
    Unusable,
    /// The version has begun to answer moments ago.
    #[error(
        "what explains this version is still being prepared; ask again in a moment, or send explain=false"
    )]
    Preparing,
}

/// What explains the scores of a version.
#[derive(Debug)]
pub struct Prepared {
    /// Explains.
    pub explainer: Explainer,
    /// What caching explanations costs and saves: those of a closed form, and those that run the model.
    worth: [Worth; 2],
}

impl Prepared {
    /// What caching explanations of this kind costs and saves.
    pub fn worth(&self, ask: &Ask) -> &Worth {
        &self.worth[usize::from(self.explainer.runs_model(ask))]
    }
}

/// What it takes to prepare an explainer: parts of the package, for as long as they are needed.
#[derive(Debug)]
pub(super) struct Unprepared {
    pub(super) manifest: Arc<Manifest>,
    /// As it was published.
    pub(super) graph: Vec<u8>,
    /// As it is run.
    pub(super) served: Served,
    /// Reads rows that need not say whom they are about.
    pub(super) reader: RowReader,
    pub(super) background: Vec<Map<String, Value>>,
    pub(super) covers: Option<Covers>,
    pub(super) options: SessionOptions,
    pub(super) settings: ExplainSettings,
    /// What scoring costs.
    pub(super) cost: Cost,
    /// Memory that it may take, in bytes.
    pub(super) spare: u64,
}

impl Unprepared {
    /// Prepares it, on a session of its own: those of the version are for scoring. Call this on a stack of
    /// [`STACK_BYTES`](super::STACK_BYTES).
    pub(super) fn prepare(self, runtime: &Runtime) -> Result<Arc<Prepared>, Unexplained> {
        let Manifest { name, version, .. } = &*self.manifest;
        let made = match self.explainer(runtime) {
            Ok(Some(explainer)) => {
                let worth = self.worth(&explainer);
                return Ok(Arc::new(Prepared { explainer, worth }));
            }
            Ok(None) => Unexplained::NoBackground,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                let why = Unexplained::Unusable;
                tracing::warn!(model.name = name, model.version = version, error, "{why}");
                why
            }
        };
        if self.settings.mode.is_default() {
            tracing::warn!(
                model.name = name,
                model.version = version,
                "scores are to be explained and cannot be: {made}"
            );
        }
        Err(made)
    }

    fn explainer(&self, runtime: &Runtime) -> Result<Option<Explainer>, runtime::Error> {
        let Manifest { bindings, output, .. } = &*self.manifest;
        let mut session = runtime.session_of(&self.served, &self.reader, bindings, output, &self.options)?;
        let source = Source {
            graph: &self.graph,
            bindings,
            output,
            reader: &self.reader,
            background: &self.background,
            covers: self.covers.as_ref(),
            runtime,
            table_bytes: usize::try_from(self.spare.min(TABLE_BYTES)).unwrap_or(usize::MAX),
        };
        Explainer::new(&source, &mut session)
    }

    /// What caching explanations saves, to begin with.
    fn worth(&self, explainer: &Explainer) -> [Worth; 2] {
        let ask = explainer.ask(&Question::default(), &[]).ok();
        let known = ask.map(|ask| (explainer.runs_model(&ask), explainer.cost(&ask, self.settings.budget)));
        [false, true].map(|runs_model| {
            let cost: Duration = match known {
                Some((found, cost)) if found == runs_model => cost,
                // Until it was measured.
                _ if runs_model => self.cost.run.saturating_add(self.cost.row.saturating_mul(1_000)),
                _ => self.cost.row,
            };
            Worth::new(cost, cost)
        })
    }
}
