//! Where models are published: a directory that replicas may share.

use std::path::PathBuf;

use scoregate_model::package::{self, Repository};
use scoregate_schemas::{Manifest, Rollout};

/// Where models are published.
#[derive(Debug, Clone)]
pub enum Store {
    /// A directory.
    Directory(Repository),
}

impl Store {
    /// What is read: the directory itself.
    pub fn local(&self) -> &Repository {
        match self {
            Self::Directory(repository) => repository,
        }
    }

    /// Replaces the rollout of `model` by what `change` makes of the one that is there, in one step: of two that change it at
    /// once the second sees what the first has written.
    ///
    /// # Errors
    /// [`package::Error`] if it cannot be read or written, and what `change` refuses; then nothing has changed.
    pub fn change_rollout<E: From<package::Error>>(
        &self,
        model: &str,
        change: impl FnMut(Option<&Rollout>) -> Result<Rollout, E>,
    ) -> Result<Rollout, E> {
        match self {
            Self::Directory(repository) => repository.change_rollout(model, change),
        }
    }

    /// Publishes `files` as a new version; see [`Repository::publish`].
    ///
    /// # Errors
    /// As [`Repository::publish`].
    pub fn publish(&self, manifest: Manifest, files: &[(&str, &[u8])]) -> Result<PathBuf, package::Error> {
        match self {
            Self::Directory(repository) => repository.publish(manifest, files),
        }
    }
}
