//! Which version answers: the live one, durable in `rollout.json` beside a model's versions.

use scoregate_model::package::{Error as PackageError, MANIFEST, Package, Repository};
use scoregate_schemas::manifest::{Manifest, Rollout};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Why a model has no live version, or cannot be given one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rollout or a version cannot be read or written.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// No such version is published.
    #[error("model {model} has no version {version}; it has {}", .versions.join(", "))]
    NoVersion {
        /// The model.
        model: String,
        /// The version that was asked for.
        version: String,
        /// The versions that are there.
        versions: Vec<String>,
    },
    /// There is no rollout, and which version was published first cannot be told.
    #[error(
        "model {model} has no rollout, and version {version} does not say when it was published; choose one with \
         `scoregate models promote {model}@VERSION`"
    )]
    Unknown {
        /// The model.
        model: String,
        /// The version whose manifest cannot be read.
        version: String,
    },
}

impl Error {
    /// A stable name for what is wrong.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Package(error) => error.code(),
            Self::NoVersion { .. } => "unknown_version",
            Self::Unknown { .. } => "no_rollout",
        }
    }

    /// A sentence for clients, without paths.
    pub fn reason(&self) -> String {
        match self {
            Self::Package(error) => error.reason(),
            Self::NoVersion { .. } | Self::Unknown { .. } => self.to_string(),
        }
    }
}

/// The live version of `model`: what its rollout says. Versions that were copied into a repository without one: the one
/// that was published first.
///
/// # Errors
/// [`Error`] if the rollout cannot be read or names a version that is not published, or nothing tells.
pub fn live(repository: &Repository, model: &str, versions: &[String]) -> Result<String, Error> {
    let Some(rollout) = repository.read_rollout(model)? else {
        return first_published(repository, model, versions);
    };
    check_published(model, &rollout.live, versions)?;
    Ok(rollout.live)
}

fn first_published(repository: &Repository, model: &str, versions: &[String]) -> Result<String, Error> {
    let published = |version: &String| {
        let path = repository.directory(model, version).join(MANIFEST);
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        OffsetDateTime::parse(&manifest.created_at, &Rfc3339).ok()
    };
    // One that cannot be read might be the first, so that no other may take its place.
    let dated = versions.iter().map(|version| match published(version) {
        Some(at) => Ok((at, version)),
        None => {
            Package::read(&repository.directory(model, version))?;
            Err(Error::Unknown { model: model.into(), version: version.clone() })
        }
    });
    let dated = dated.collect::<Result<Vec<_>, _>>()?;
    Ok(dated.into_iter().min().map_or_else(String::new, |(_, version)| version.clone()))
}

fn check_published(model: &str, version: &str, versions: &[String]) -> Result<(), Error> {
    if versions.iter().any(|found| found == version) {
        return Ok(());
    }
    Err(Error::NoVersion { model: model.into(), version: version.into(), versions: versions.to_vec() })
}

/// Makes `version` the live one, in one step; running gateways follow.
///
/// # Errors
/// [`Error::NoVersion`] if it is not published, [`Error::Package`] if it is not whole or the rollout cannot be written.
pub fn promote(repository: &Repository, model: &str, version: &str) -> Result<(), Error> {
    let versions = repository.list()?.remove(model).unwrap_or_default();
    check_published(model, version, &versions)?;
    Package::read(&repository.directory(model, version))?;
    Ok(repository.write_rollout(model, &Rollout { live: version.into() })?)
}
