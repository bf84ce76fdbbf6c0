//! `scoregate models`: what is done to the model repository.

use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use scoregate_model::package::{Package, Repository};
use scoregate_schemas::Rollout;
use scoregate_schemas::feature_schema::Kind;
use scoregate_schemas::manifest::Task;
use scoregate_schemas::rollout::{Canary, GuardMode};
use serde_json::{Map, Value};

use super::diff::{DiffArgs, diff};
use super::{Common, print, warn};
use crate::audit::{self, Actor};
use crate::config::Settings;
use crate::import;
use crate::registry::Role;
use crate::repository::Store;
use crate::rollout;
use crate::rollout::change::{Asked, Change, Changed};
use crate::webhook::{WebhookCounts, Webhooks};

/// How long a command waits for the webhook.
const TELLING: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub(super) enum ModelsCommand {
    /// List models and versions, and what each is: live, a canary with its share, the shadow, or the one before.
    List {
        #[command(flatten)]
        repository: RepositoryArgs,
    },
    /// Say what a version is: its features, its answer, how good it is and where it comes from.
    Show {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// The version, as MODEL@VERSION, or as MODEL for the live one.
        version: String,
    },
    /// Say how two versions of a model differ: schemas, metrics, and what both answer to their golden rows.
    Diff(DiffArgs),
    /// Make a version the live one; a running gateway that accepts it answers with it within two seconds.
    Promote {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// The version, as MODEL@VERSION.
        version: String,
        #[command(flatten)]
        breaking: BreakingArgs,
    },
    /// Have a version answer a share of the entities: whoever it answers it goes on answering while the share grows.
    Canary {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// The version, as MODEL@VERSION.
        version: String,
        /// The share, from 0 to 100; with 0 it answers requests alone that name it by `x-model-version`.
        #[arg(long, value_name = "SHARE", required_unless_present = "off")]
        percent: Option<f64>,
        /// Take the canary back: the live version answers its entities again.
        #[arg(long, conflicts_with = "percent")]
        off: bool,
        /// What becomes of it by what it answers: off, rollback or promote. Unless said it is guarded as it was, and a new one as the
        /// gateway's settings say.
        #[arg(long, value_name = "MODE", conflicts_with = "off")]
        guard: Option<GuardMode>,
        #[command(flatten)]
        breaking: BreakingArgs,
    },
    /// Have a version score what the others answer, to compare it with them; nobody gets its answers.
    Shadow {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// The version, as MODEL@VERSION; with --off the model is enough.
        version: String,
        /// Have none do so any more.
        #[arg(long)]
        off: bool,
    },
    /// Take back what was rolled out last: the canaries, else the promotion of the live version. The shadow goes, too.
    Rollback {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// The model; or MODEL@VERSION, which takes back this version or nothing.
        model: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct BreakingArgs {
    /// Let it answer though it refuses rows that the live version takes, or answers otherwise.
    #[arg(long)]
    breaking: bool,
}

#[derive(Debug, Args)]
pub(super) struct RepositoryArgs {
    #[command(flatten)]
    common: Common,
    /// The model repository (`SCOREGATE_MODELS_DIR`) [default: onnx_models].
    #[arg(long, value_name = "DIR")]
    models_dir: Option<String>,
}

impl RepositoryArgs {
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let flags = self.models_dir.iter().map(|dir| ("SCOREGATE_MODELS_DIR".into(), dir.clone())).collect();
        self.common.settings(flags)
    }

    /// What can be read of `model`, or of all.
    fn open(&self, model: Option<&str>) -> anyhow::Result<Repository> {
        read(&self.settings()?, model)
    }
}

pub(super) fn models(command: &ModelsCommand) -> anyhow::Result<()> {
    match command {
        ModelsCommand::List { repository } => {
            let repository = repository.open(None)?;
            let mut lines = vec!["MODEL\tVERSION\tROLLOUT\tCHANGED".to_string()];
            for model in repository.models()? {
                let versions = match repository.versions(&model) {
                    Ok(versions) => versions,
                    Err(error) => {
                        lines.push(format!("{model}\t-\tunknown: {:#}", anyhow::Error::from(error)));
                        continue;
                    }
                };
                let rollout = rollout::current(&repository, &model, &versions);
                let task = |version: &String| match &rollout {
                    Ok(rollout) => in_words(rollout, version) + &changed_in_words(rollout, version),
                    Err(error) => format!("unknown: {}", error.reason()),
                };
                lines.extend(versions.iter().map(|version| format!("{model}\t{version}\t{}", task(version))));
            }
            print(&lines.join("\n"))
        }
        ModelsCommand::Show { repository, version } => {
            let model = version.split('@').next();
            print(&show(&repository.open(model)?, version)?)
        }
        ModelsCommand::Diff(args) => diff(args),
        ModelsCommand::Promote { repository, version, breaking } => {
            let (model, name) = split(version)?;
            change(repository, model, &Change::Promote(name.into()), breaking.breaking)?;
            print(&format!(
                "{model} {name} is the live version: a running gateway that accepts it answers with it within 2 seconds"
            ))
        }
        ModelsCommand::Canary { repository, version, percent, guard, breaking, .. } => {
            let (model, name) = split(version)?;
            let Some(percent) = *percent else {
                change(repository, model, &Change::Drop(name.into()), false)?;
                return print(&format!("{model} {name} is no canary any more: the live version answers"));
            };
            let wanted = Change::Canary { version: name.into(), percent, guard: *guard };
            change(repository, model, &wanted, breaking.breaking)?;
            let whom = if percent > 0.0 { "them" } else { "whoever asks for it by x-model-version" };
            print(&format!(
                "{model} {name} is a canary with {percent} % of the entities: a running gateway that accepts it answers {whom} with \
                 it within 2 seconds"
            ))
        }
        ModelsCommand::Shadow { repository, version, off: true } => {
            let model = version.split_once('@').map_or(version.as_str(), |(model, _)| model);
            change(repository, model, &Change::Shadow(None), false)?;
            print(&format!("{model} has no shadow"))
        }
        ModelsCommand::Shadow { repository, version, off: false } => {
            let (model, name) = split(version)?;
            change(repository, model, &Change::Shadow(Some(name.into())), false)?;
            print(&format!(
                "{model} {name} is the shadow: it scores what the others answer, and nobody gets that"
            ))
        }
        ModelsCommand::Rollback { repository, model } => {
            let (model, version) = model
                .split_once('@')
                .map_or((model.as_str(), None), |(model, version)| (model, Some(version)));
            let wanted = Change::Rollback(version.map(ToOwned::to_owned));
            let Changed { after, deeds, .. } = change(repository, model, &wanted, false)?;
            let live = &after.live;
            let from = deeds.iter().find_map(|deed| deed.from.as_ref());
            print(&match from {
                Some(from) => format!("{model} {live} is the live version again, in the place of {from}"),
                None => format!("{model} {live} answers everybody again: there are no canaries any more"),
            })
        }
    }
}

/// What a version is in a rollout; nothing where it has no part in it.
fn in_words(rollout: &Rollout, version: &str) -> String {
    let Some(role) = Role::of(rollout, version) else { return String::new() };
    let taken: f64 = rollout.canaries.iter().map(|canary| canary.percent).sum();
    let canary = rollout.canaries.iter().find(|canary| canary.version == version);
    match (role, canary) {
        (_, Some(Canary { percent, since, guard, .. })) => {
            let since = since.as_ref().map_or_else(String::new, |since| format!(" since {since}"));
            let guard = guard.map_or_else(String::new, |guard| format!(", guard {}", guard.as_str()));
            format!("canary {percent} %{since}{guard}")
        }
        // Shares have two decimals, and sums of them more.
        (Role::Live, None) if taken > 0.0 => format!("live {} %", ((100.0 - taken) * 100.0).round() / 100.0),
        _ => role.as_str().into(),
    }
}

/// Who has changed the rollout when, a column beside its live version.
fn changed_in_words(rollout: &Rollout, version: &str) -> String {
    let Rollout { live, revision, changed_at, changed_by, changed_for, .. } = rollout;
    let (Some(at), Some(by), true) = (changed_at, changed_by, live == version) else { return String::new() };
    let found = |name: &str| changed_for.as_ref()?.get(name);
    let text = |name: &str| found(name).and_then(Value::as_str);
    let number = |name: &str| found(name).and_then(Value::as_f64);
    let because = || Some(format!(": {} {}, {}", text("action")?, text("version")?, text("verdict")?));
    let rule =
        || Some(format!(": {} {:.4}, where {:.4} may be", text("rule")?, number("found")?, number("limit")?));
    let why = because().map(|because| because + &rule().unwrap_or_default());
    format!("\trevision {revision}, {at} by {} {}{}", by.kind, by.id, why.unwrap_or_default())
}

/// Changes the rollout of a model, recorded as the operator's deed.
fn change(
    repository: &RepositoryArgs,
    model: &str,
    change: &Change,
    breaking: bool,
) -> anyhow::Result<Changed> {
    let settings = repository.settings()?;
    let store = Store::open(&settings)?;
    let log = audit::Log::new(&settings.state.dir);
    let now = SystemTime::now();
    let asked = Asked { breaking, ..Asked::new(&store, &log, model, Actor::operator(), now) };
    let changed = change.carry_out(&asked)?;
    changed.warnings.iter().for_each(|warning| warn(warning));
    tell_replicas(&settings);
    tell_webhook(&settings, model, &changed, now);
    Ok(changed)
}

/// Tells whoever is to be told by a webhook what the operator has done to the rollout of `model`. Where that cannot be, it is done all the
/// same.
pub(super) fn tell_webhook(settings: &Settings, model: &str, changed: &Changed, now: SystemTime) {
    let counts = WebhookCounts::default();
    match Webhooks::start(settings.webhook.as_ref(), counts.clone()) {
        Ok(webhooks) => {
            webhooks.tell(model, &Actor::operator(), changed, &Map::new(), now);
            webhooks.flush(TELLING);
            if counts.failed.get() > 0 {
                warn("this is done, and the webhook was not told: it has not taken the event");
            }
        }
        Err(error) => {
            warn(&format!("this is done, and the webhook was not told: {:#}", anyhow::Error::from(error)));
        }
    }
}

/// Tells replicas that something has changed. Where that cannot be, it is done all the same.
pub(super) fn tell_replicas(settings: &Settings) {
    if let Err(error) = Store::tell_once(settings) {
        warn(&format!(
            "replicas are not told through Redis, and find out by looking: {:#}",
            anyhow::Error::from(error)
        ));
    }
}

/// The repository to read `model` of, or all: of a bucket the mirror, brought up to date where that is possible.
pub(super) fn read(settings: &Settings, model: Option<&str>) -> anyhow::Result<Repository> {
    if settings.models.bucket.is_none() {
        return Ok(Repository::new(&settings.models.dir));
    }
    let store = Store::open(settings)?;
    match store.refresh(model) {
        Ok(failed) => failed.iter().for_each(|(what, why)| warn(&format!("{what} cannot be fetched: {why}"))),
        Err(error) => {
            let (store, error) = (store.name(), anyhow::Error::from(error));
            warn(&format!("{store} cannot be read, and this is as it was the last time: {error:#}"));
        }
    }
    Ok(store.local().clone())
}

/// The model and the version that MODEL@VERSION names.
fn split(version: &str) -> anyhow::Result<(&str, &str)> {
    version
        .split_once('@')
        .with_context(|| format!("found \"{version}\", expected MODEL@VERSION such as churn@2026-05-17_01"))
}

/// The model and the version that MODEL@VERSION names, or MODEL for the live one, and whether it is live.
pub(super) fn resolve<'v>(
    repository: &Repository,
    version: &'v str,
) -> anyhow::Result<(&'v str, String, bool)> {
    let (model, named) = match version.split_once('@') {
        Some((model, version)) => (model, Some(version.to_string())),
        None => (version, None),
    };
    let versions = repository.versions(model)?;
    if versions.is_empty() {
        bail!("no version of model \"{model}\" is published in {}", repository.root().display());
    }
    let live = rollout::live(repository, model, &versions);
    let named = match named {
        Some(named) if versions.contains(&named) => named,
        Some(named) => bail!("model {model} has no version {named}; it has {}", versions.join(", ")),
        None => live.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?.clone(),
    };
    let is_live = live.is_ok_and(|live| live == named);
    Ok((model, named, is_live))
}

/// A version in words, one fact per line.
fn show(repository: &Repository, version: &str) -> anyhow::Result<String> {
    let (model, named, _) = resolve(repository, version)?;
    let versions = repository.versions(model)?;
    let rollout = rollout::current(repository, model, &versions).unwrap_or_default();
    let task = in_words(&rollout, &named);
    let package = Package::read(&repository.directory(model, &named))?;
    let manifest = &package.manifest;
    let state = if task.is_empty() { task } else { format!(" ({task})") };
    let mut facts = vec![
        ("model", manifest.name.clone()),
        ("version", format!("{named}{state}")),
        ("published", manifest.created_at.clone()),
        ("digest", package.digest().to_string()),
        ("made by", manifest.source.producer.clone()),
        ("answers", import::output_in_words(&manifest.output, &manifest.labels)),
    ];
    if manifest.output.task() == Task::Binary {
        facts.push(("threshold", manifest.threshold.to_string()));
    }
    let features = package.schema.features().map(|field| {
        let kind = match &field.kind {
            Kind::Number => "number".into(),
            Kind::Integer => "integer".into(),
            Kind::Boolean => "boolean".into(),
            Kind::Category { values: None } => "text".into(),
            Kind::Category { values: Some(values) } => format!("one of {}", values.join(", ")),
        };
        ("feature", format!("{}: {kind}", field.name))
    });
    facts.extend(features);
    facts.push(("inputs", import::bindings_in_words(&manifest.bindings)));
    facts.extend(manifest.changes.iter().map(|change| ("changed", change.clone())));
    facts.extend(manifest.metrics.as_ref().map(|metrics| ("metrics", import::metrics_in_words(metrics))));
    facts.push(("golden", format!("{} rows, tolerance {}", package.golden.len(), manifest.tolerance)));
    let lines = facts.iter().map(|(name, fact)| format!("{name:<10}{fact}"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
