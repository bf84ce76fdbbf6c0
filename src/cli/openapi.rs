//! `scoregate openapi`: the document that a gateway with these settings and models serves.

use anyhow::Context;
use clap::Args;
use scoregate_model::package::{Package, Repository};

use super::models::{RepositoryArgs, resolve};
use super::print;
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
    let repository = Repository::new(&settings.models.dir);
    let side = if args.admin { Side::Admin } else { Side::Public };
    let read = |named: &str| {
        let (model, version, _) = resolve(&repository, named)?;
        Ok::<_, anyhow::Error>(Package::read(&repository.directory(model, &version))?)
    };
    let document = match &args.model {
        Some(named) => of_model(side, &settings, &Described::published(&read(named)?, &settings)),
        None => {
            // A repository that is not there yet has no models; one whose version cannot be read is not served either.
            let models = repository.list().unwrap_or_default();
            let packages: Vec<Package> = models.keys().filter_map(|model| read(model).ok()).collect();
            let described: Vec<_> =
                packages.iter().map(|package| Described::published(package, &settings)).collect();
            whole(side, &settings, &described)
        }
    };
    print(&serde_json::to_string_pretty(&document).context("a document serialises")?)
}
