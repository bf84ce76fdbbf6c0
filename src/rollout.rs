//! Which version answers: the live one, durable in `rollout.json` beside a model's versions.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use scoregate_model::package::{self, Repository};
use scoregate_schemas::manifest::Manifest;
use serde::{Deserialize, Serialize};

/// The file's name.
const FILE: &str = "rollout.json";

/// The rollout of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The version that answers.
    pub live: String,
}

/// Why a rollout cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is no rollout.
    #[error("{} is no rollout: {message}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The version cannot answer.
    #[error(transparent)]
    Package(#[from] package::Error),
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
}

/// The live version of `model`: the one that was promoted, else the one that was published first.
///
/// # Errors
/// [`Error`] if the rollout cannot be read or names a version that is not published.
pub fn live(repository: &Repository, model: &str, versions: &[String]) -> Result<String, Error> {
    let path = repository.root().join(model).join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(first_published(repository, model, versions));
        }
        Err(source) => return Err(Error::Io { action: "read", path, source }),
    };
    let rollout: Rollout =
        serde_json::from_slice(&text).map_err(|error| Error::Content { path, message: error.to_string() })?;
    check_published(model, &rollout.live, versions)?;
    Ok(rollout.live)
}

/// The version that was published first: later ones wait to be promoted.
fn first_published(repository: &Repository, model: &str, versions: &[String]) -> String {
    let created_at = |version: &String| {
        let path = repository.directory(model, version).join(package::MANIFEST);
        let manifest: Option<Manifest> =
            fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        // A manifest that cannot be read is no candidate while there is another.
        (manifest.is_none(), manifest.map(|manifest| manifest.created_at))
    };
    versions.iter().min_by_key(|version| created_at(version)).cloned().unwrap_or_default()
}

fn check_published(model: &str, version: &str, versions: &[String]) -> Result<(), Error> {
    if versions.iter().any(|found| found == version) {
        return Ok(());
    }
    Err(Error::NoVersion { model: model.into(), version: version.into(), versions: versions.to_vec() })
}

/// Makes `version` the live one, in one step; a gateway serves it from its next start.
///
/// # Errors
/// [`Error::NoVersion`] if it is not published, [`Error::Package`] if it is not whole, [`Error::Io`] otherwise.
pub fn promote(repository: &Repository, model: &str, version: &str) -> Result<(), Error> {
    let versions = repository.list()?.remove(model).unwrap_or_default();
    check_published(model, version, &versions)?;
    package::Package::read(&repository.directory(model, version))?;
    let directory = repository.root().join(model);
    let path = directory.join(FILE);
    let text = serde_json::to_vec(&Rollout { live: version.into() })
        .map_err(|error| Error::Content { path: path.clone(), message: error.to_string() })?;
    write(&directory, &path, &text).map_err(|source| Error::Io { action: "write", path, source })
}

fn write(directory: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".rollout-").tempfile_in(directory)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(directory)?.sync_all()
}
