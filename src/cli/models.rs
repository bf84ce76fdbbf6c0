//! `scoregate import` and `scoregate models`: what is done to the model repository.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use scoregate_model::acceptance::child;
use scoregate_model::package::{Package, Repository};
use scoregate_schemas::feature_schema::Kind;
use scoregate_schemas::manifest::Task;

use super::{Common, print};
use crate::audit::{self, Actor};
use crate::config::Settings;
use crate::import::{self, ImportArgs};
use crate::rollout::Promotion;
use crate::sandbox::{Finding, ImportJob, Job, Reasons, Sandbox};
use crate::{app, rollout};

#[derive(Debug, Subcommand)]
pub(super) enum ModelsCommand {
    /// List models and versions; the live one is marked.
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
    /// Make a version the live one; a running gateway that accepts it answers with it within two seconds.
    Promote {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// The version, as MODEL@VERSION.
        version: String,
    },
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

    fn open(&self) -> anyhow::Result<Repository> {
        Ok(Repository::new(self.settings()?.models.dir))
    }
}

pub(super) fn import_model(repository: &RepositoryArgs, args: &ImportArgs) -> anyhow::Result<()> {
    let settings = repository.settings()?;
    let job = ImportJob { request: args.request()?, library: app::library(&settings.runtime)? };
    let sandbox = Sandbox::new(&settings.models, settings.scoring.workers);
    let finding =
        sandbox.run(&Job::Import(Box::new(job))).unwrap_or_else(|death| Finding::Refused(death.into()));
    let examined = match finding {
        Finding::Examined(examined) => *examined,
        Finding::Refused(Reasons { code, detail, .. }) => {
            let advice = match code.as_str() {
                child::MEMORY => {
                    "; if the model or its reference is meant to be so large, raise SCOREGATE_MODEL_MEMORY"
                }
                child::TIMEOUT => {
                    "; if the model or its reference is meant to take so long, raise SCOREGATE_MODEL_TIMEOUT"
                }
                _ => "",
            };
            let message = format!("{}{advice}", without_sources(&detail));
            return Err(import::Error::Refused { code, message }.into());
        }
    };
    let repository = Repository::new(&settings.models.dir);
    let publication = args.prepare(&repository, examined)?;
    audit::Log::new(&settings.state.dir).record(&publication.event(Actor::operator()))?;
    let report = publication.carry_out(&repository)?;
    print(&if args.json { serde_json::to_string_pretty(&report)? } else { report.text() })
}

/// ONNX Runtime names the places in its own sources, which are no use to whoever imports a model.
fn without_sources(text: &str) -> String {
    let is_place = |word: &str| [".cc:", ".h:"].iter().any(|end| word.contains(end));
    let words = text.split_inclusive(char::is_whitespace).filter(|word| !is_place(word));
    words.collect::<String>().trim_end().into()
}

pub(super) fn models(command: &ModelsCommand) -> anyhow::Result<()> {
    match command {
        ModelsCommand::List { repository } => {
            let repository = repository.open()?;
            let mut lines = vec!["MODEL\tVERSION\tLIVE".to_string()];
            for model in repository.models()? {
                let versions = match repository.versions(&model) {
                    Ok(versions) => versions,
                    Err(error) => {
                        lines.push(format!("{model}\t-\tunknown: {:#}", anyhow::Error::from(error)));
                        continue;
                    }
                };
                let live = rollout::live(&repository, &model, &versions);
                let state = |version: &String| match &live {
                    Ok(live) if live == version => "live".to_string(),
                    Ok(_) => String::new(),
                    Err(error) => format!("unknown: {}", error.reason()),
                };
                lines
                    .extend(versions.iter().map(|version| format!("{model}\t{version}\t{}", state(version))));
            }
            print(&lines.join("\n"))
        }
        ModelsCommand::Show { repository, version } => print(&show(&repository.open()?, version)?),
        ModelsCommand::Promote { repository, version } => {
            let (model, name) = version.split_once('@').with_context(|| {
                format!("found \"{version}\", expected MODEL@VERSION such as churn@2026-05-17_01")
            })?;
            let settings = repository.settings()?;
            let repository = Repository::new(&settings.models.dir);
            let promotion = Promotion::new(&repository, model, name)?;
            audit::Log::new(&settings.state.dir).record(&promotion.event(Actor::operator()))?;
            promotion.carry_out()?;
            print(&format!(
                "{model} {name} is the live version: a running gateway that accepts it answers with it within 2 seconds"
            ))
        }
    }
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
    let (model, named, live) = resolve(repository, version)?;
    let package = Package::read(&repository.directory(model, &named))?;
    let manifest = &package.manifest;
    let state = if live { " (live)" } else { "" };
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
