//! `scoregate openapi`: the document that a gateway with these settings and models serves.

use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use scoregate_model::package::Package;

use super::models::{self, RepositoryArgs, resolve};
use super::print;
use crate::config::DEFAULT_MODELS_DIR;
use crate::http::openapi::{Described, of_model, whole};
use crate::http::serve::Side;

#[derive(Debug, Args)]
pub(super) struct OpenapiArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The document of this model alone: of its live version, or of MODEL@VERSION.
    #[arg(long, value_name = "MODEL[@VERSION]")]
    model: Option<String>,
    /// With the routes that the admin listener alone serves.
    #[arg(long)]
    admin: bool,
}

pub(super) fn openapi(args: &OpenapiArgs) -> anyhow::Result<()> {
    let settings = args.repository.settings()?;
    let named = args.model.as_ref().and_then(|named| named.split('@').next());
    let repository = models::read(&settings, named)?;
    let root = repository.root();
    // One that nobody named need not be there yet: it has no models then.
    if !root.is_dir() && root != Path::new(DEFAULT_MODELS_DIR) {
        bail!("there is no model repository at {}; --models-dir names another", root.display());
    }
    let side = if args.admin { Side::Admin } else { Side::Public };
    let read = |named: &str| {
        let (model, version, _) = resolve(&repository, named)?;
        let directory = repository.directory(model, &version);
        Package::read(&directory).with_context(|| format!("{} cannot be described", directory.display()))
    };
    let document = match &args.model {
        Some(named) => of_model(side, &settings, &Described::published(&read(named)?, &settings)),
        None => {
            // Whoever makes clients of it has to hear of a model that would be missing.
            let mut packages = Vec::new();
            for model in repository.models()? {
                if !repository.versions(&model)?.is_empty() {
                    packages.push(read(&model)?);
                }
            }
            let described: Vec<_> =
                packages.iter().map(|package| Described::published(package, &settings)).collect();
            whole(side, &settings, &described)
        }
    };
    print(&serde_json::to_string_pretty(&document).context("a document serialises")?)
}
