//! The use case: choose the version, score its rows where that costs least and explain those that are to be, within bounded
//! work.

mod choice;
mod engine;
mod explain;
mod gather;
mod recall;

use scoregate_model::features::FeatureRows;
use scoregate_model::runtime::{self, Score};

pub use self::choice::Choice;
pub use self::engine::{Engine, Overloaded, Permit};
pub use self::explain::{Explaining, Explanations, Skipped, Within, unexplained};
pub use self::gather::{RowError, read_alone, score_alone, score_together};
pub use self::recall::{Levels, Recall, Recalled, Scored};
use crate::registry::Version;

/// Why rows were not scored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such model is served.
    #[error("no model has this name")]
    UnknownModel,
    /// The model has no version that is called so, or labelled so.
    #[error(
        "the model has no version that is called so, and none that is labelled so; stable and canary are labels"
    )]
    UnknownVersion,
    /// The model has no canary.
    #[error("the model has no canary now; which versions answer whom says its rollout under /v1/models")]
    NoCanary,
    /// The version is published, and answers nobody.
    #[error(
        "this version is published, but not loaded; unless it is refused, which its page under /v1/models says, make it a canary, of 0 \
         percent if nobody else is to meet it, or the shadow"
    )]
    NotLoaded,
    /// Models are still being loaded.
    #[error("the models are not loaded yet")]
    NotReady,
    /// There is as much work in hand as is allowed.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// The answer took too long.
    #[error("the answer took too long")]
    Deadline,
    /// The model answered something that is no probability per row.
    #[error("the model's answer is unusable")]
    Output(#[source] runtime::Error),
    /// The run failed.
    #[error("the run failed")]
    Run(#[source] runtime::Error),
    /// The work panicked.
    #[error("scoring panicked")]
    Panicked,
}

impl From<runtime::Error> for Error {
    fn from(error: runtime::Error) -> Self {
        match error {
            runtime::Error::Output(_) => Self::Output(error),
            other => Self::Run(other),
        }
    }
}

/// Runs one checked row here and now.
fn run_one(version: &Version, row: &FeatureRows) -> Result<Score, Error> {
    let scores = version.run(row)?;
    Ok(scores.scores().next().expect("a run answers every row"))
}
