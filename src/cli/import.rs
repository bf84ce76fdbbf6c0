//! `scoregate import`: publishes an ONNX model from outside.

use std::time::SystemTime;

use scoregate_model::acceptance::child;

use super::models::{RepositoryArgs, tell_replicas, tell_webhook};
use super::{print, warn};
use crate::app;
use crate::audit::{self, Actor};
use crate::import::{Error, ImportArgs};
use crate::repository::Store;
use crate::rollout::change::{Asked, Change};
use crate::sandbox::Sandbox;

pub(super) fn import_model(repository: &RepositoryArgs, args: &ImportArgs) -> anyhow::Result<()> {
    let settings = repository.settings()?;
    let import = &args.import;
    import.check_names().map_err(Error::Package)?;
    let (overrides, library) = (args.overrides()?, app::library(&settings.runtime)?);
    let store = Store::open(&settings)?;
    store.refresh(Some(&import.name))?;
    let sandbox = Sandbox::new(&settings.models, settings.scoring.workers);
    let examined = import.examine(&sandbox, library, overrides).map_err(advised)?;
    if args.promote {
        // It is the live version of now that must not be broken, not that of a minute ago.
        store.refresh(Some(&import.name))?;
    }
    let publication = import.prepare(store.local(), examined)?;
    let breaking = publication.breaking();
    if args.promote && !args.breaking && !breaking.is_empty() {
        let lost = breaking.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let message = format!(
            "this version breaks what clients of the live one rely on: {lost}; nothing is published: leave out --promote, or say \
             --breaking"
        );
        let code = "breaking_change".into();
        return Err(Error::Refused { code, reason: message.clone(), message }.into());
    }
    let log = audit::Log::new(&settings.state.dir);
    let mut report = publication.carry_out(&store, &log, &Actor::operator())?;
    let mut promoted = None;
    if args.promote {
        let now = SystemTime::now();
        let asked = Asked {
            breaking: args.breaking,
            ..Asked::new(&store, &log, &report.model, Actor::operator(), now)
        };
        let changed = Change::Promote(report.version.clone()).carry_out(&asked)?;
        changed.warnings.iter().for_each(|warning| warn(warning));
        promoted = Some((changed, now));
        report.live = true;
    }
    tell_replicas(&settings);
    if let Some((changed, now)) = promoted {
        tell_webhook(&settings, &report.model, &changed, now);
    }
    print(&if args.json { serde_json::to_string_pretty(&report)? } else { report.text() })
}

/// With what can be done about it here.
fn advised(error: Error) -> Error {
    let Error::Refused { code, reason, message } = error else { return error };
    let advice = match code.as_str() {
        child::MEMORY => {
            "; if the model or its reference is meant to be so large, raise SCOREGATE_MODEL_MEMORY"
        }
        child::TIMEOUT => {
            "; if the model or its reference is meant to take so long, raise SCOREGATE_MODEL_TIMEOUT"
        }
        _ => "",
    };
    let message = format!("{}{advice}", without_sources(&message));
    Error::Refused { code, reason, message }
}

/// ONNX Runtime names the places in its own sources, which are no use to whoever imports a model.
fn without_sources(text: &str) -> String {
    let is_place = |word: &str| [".cc:", ".h:"].iter().any(|end| word.contains(end));
    let words = text.split_inclusive(char::is_whitespace).filter(|word| !is_place(word));
    words.collect::<String>().trim_end().into()
}
