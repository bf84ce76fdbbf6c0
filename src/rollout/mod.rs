//! Which version answers: the live one, durable in `rollout.json` beside a model's versions.

pub mod slots;

use scoregate_model::package::{Error as PackageError, Package, Repository, read_manifest};
use scoregate_schemas::Rollout;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::{Actor, Event};

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

    /// Whether it is the request or the version that is at fault, and not the machine.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Package(error) => !matches!(error, PackageError::Io { .. }),
            Self::NoVersion { .. } | Self::Unknown { .. } => true,
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

/// What the choice of the live version has to know of a version.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'c> {
    /// Its name.
    pub version: &'c str,
    /// When it was published, where its manifest says so.
    pub created_at: Option<&'c str>,
}

/// The live version of `model`: what its rollout says. Versions that were copied into a repository without one: the one
/// that is `serving` already, else the one that was published first.
///
/// # Errors
/// [`Error`] if the rollout cannot be read or names a version that is not published, or nothing tells.
pub fn choose(
    repository: &Repository,
    model: &str,
    candidates: &[Candidate<'_>],
    serving: Option<&str>,
) -> Result<String, Error> {
    let names = || candidates.iter().map(|candidate| candidate.version);
    match repository.read_rollout(model)? {
        Some(rollout) => {
            check_published(model, &rollout.live, names())?;
            Ok(rollout.live)
        }
        None => match serving.filter(|serving| names().any(|name| name == *serving)) {
            // A copy with an earlier time promotes nothing.
            Some(serving) => Ok(serving.into()),
            None => first_published(model, candidates),
        },
    }
}

fn first_published(model: &str, candidates: &[Candidate<'_>]) -> Result<String, Error> {
    // One that cannot be read might be the first, so that no other may take its place.
    let dated = candidates.iter().map(|candidate| {
        let at = candidate.created_at.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let unknown = || Error::Unknown { model: model.into(), version: candidate.version.into() };
        Ok((at.ok_or_else(unknown)?, candidate.version))
    });
    let dated = dated.collect::<Result<Vec<_>, Error>>()?;
    Ok(dated.into_iter().min().map_or_else(String::new, |(_, version)| version.into()))
}

fn check_published<'v>(
    model: &str,
    version: &str,
    mut versions: impl Iterator<Item = &'v str> + Clone,
) -> Result<(), Error> {
    let all = versions.clone();
    if versions.any(|found| found == version) {
        return Ok(());
    }
    let versions = all.map(Into::into).collect();
    Err(Error::NoVersion { model: model.into(), version: version.into(), versions })
}

/// The live version of `model`, for whoever serves nothing.
///
/// # Errors
/// As [`choose`]; where nothing tells, why the manifest in question cannot be read.
pub fn live(repository: &Repository, model: &str, versions: &[String]) -> Result<String, Error> {
    let read = |version: &String| read_manifest(&repository.directory(model, version));
    let created: Vec<Option<String>> =
        versions.iter().map(|version| Some(read(version).ok()?.0.created_at)).collect();
    let candidates: Vec<_> = versions
        .iter()
        .zip(&created)
        .map(|(version, created_at)| Candidate { version, created_at: created_at.as_deref() })
        .collect();
    choose(repository, model, &candidates, None).map_err(|error| match &error {
        Error::Unknown { version, .. } => read(version).err().map_or(error, Error::Package),
        _ => error,
    })
}

/// A version that can be made the live one. Whoever does so records it first.
#[derive(Debug)]
pub struct Promotion<'p> {
    repository: &'p Repository,
    model: &'p str,
    version: &'p str,
    digest: String,
}

impl<'p> Promotion<'p> {
    /// Checks that `version` of `model` can be made the live one.
    ///
    /// # Errors
    /// [`Error::NoVersion`] if it is not published, [`Error::Package`] if it is not whole.
    pub fn new(repository: &'p Repository, model: &'p str, version: &'p str) -> Result<Self, Error> {
        let versions = repository.versions(model)?;
        check_published(model, version, versions.iter().map(String::as_str))?;
        let digest = Package::read(&repository.directory(model, version))?.digest().to_owned();
        Ok(Self { repository, model, version, digest })
    }

    /// What the audit log says of it.
    pub fn event(&self, actor: Actor) -> Event {
        let Self { model, version, .. } = self;
        Event::new(actor, "version.promoted", format!("{model}@{version}"))
            .with("digest", self.digest.as_str())
    }

    /// Makes the version the live one, in one step; running gateways follow.
    ///
    /// # Errors
    /// [`Error::Package`] if the rollout cannot be written.
    pub fn carry_out(self) -> Result<(), Error> {
        let rollout = Rollout::of(self.version);
        Ok(self.repository.write_rollout(self.model, &rollout)?)
    }
}
