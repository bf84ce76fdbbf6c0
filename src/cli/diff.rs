//! `scoregate models diff`: how two versions of a model differ.

use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use scoregate_model::package::{MODEL, Package, Repository};
use scoregate_model::runtime::Runtime;

use super::models::{RepositoryArgs, read, resolve};
use super::print;
use crate::app;
use crate::config::{ExplainMode, Settings};
use crate::diff::golden::{Comparison, GoldenDiff, PART};
use crate::diff::{Side, diff as differences};
use crate::registry::{Version, load_offline};

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The one version, as MODEL@VERSION, or as MODEL for the live one.
    from: String,
    /// The other, as MODEL@VERSION or as VERSION.
    to: String,
    /// Prints the differences as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn diff(args: &DiffArgs) -> anyhow::Result<()> {
    let settings = args.repository.settings()?;
    // ONNX Runtime is loaded while this is the only thread: loading sets variables of the environment.
    let runtime = app::load_runtime(&settings.runtime)?;
    let model = args.from.split_once('@').map_or(args.from.as_str(), |(model, _)| model);
    let repository = read(&settings, Some(model))?;
    let (_, from, _) = resolve(&repository, &args.from)?;
    let to = if args.to.contains('@') { args.to.clone() } else { format!("{model}@{}", args.to) };
    let (of, to, _) = resolve(&repository, &to)?;
    if of != model {
        bail!("found versions of {model} and of {of}, expected two of one model");
    }
    let packages = [package(&repository, model, &from)?, package(&repository, model, &to)?];
    let golden = golden(&settings, &runtime, &packages);
    let serving = settings.serving(model);
    let [from, to] = packages.each_ref().map(|package| {
        let bytes = Some(package.graph.len() as u64);
        Side::new(&package.manifest, &package.schema, bytes, &serving)
    });
    let found = differences(from, to, golden);
    print(&if args.json { serde_json::to_string_pretty(&found)? } else { found.text() })
}

fn package(repository: &Repository, model: &str, version: &str) -> anyhow::Result<Package> {
    let package = Package::read(&repository.directory(model, version))?;
    if !package.manifest.files.contains_key(MODEL) {
        bail!("{model} {version} has no graph");
    }
    Ok(package)
}

/// What both answer to the golden rows of each, or why nobody knows.
fn golden(
    settings: &Settings,
    runtime: &Runtime,
    packages: &[Package; 2],
) -> Result<Vec<GoldenDiff>, String> {
    let load = |package: &Package| -> Result<Version, String> {
        let (model, version) = (&package.manifest.name, &package.manifest.version);
        let mut settings = settings.clone();
        // Nobody asks why.
        settings.model.entry(model.clone()).or_default().explain.mode = Some(ExplainMode::Off);
        load_offline(settings, runtime.clone(), model, version)
            .map_err(|reasons| format!("version {version} cannot be served: {}", reasons.reason))
    };
    let [from, to] = packages.each_ref();
    let mut comparison = Comparison::new(&Arc::new(load(from)?), &Arc::new(load(to)?))?;
    let is_other = from.manifest.version != to.manifest.version;
    for package in [from, to].into_iter().take(1 + usize::from(is_other)) {
        if !package.golden.is_empty() {
            comparison.begin(&package.manifest.version, package.golden.len());
        }
        package.golden.chunks(PART).try_for_each(|rows| comparison.take(rows))?;
    }
    Ok(comparison.finish())
}
