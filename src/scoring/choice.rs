//! Which version of a model answers which row: the one that the request pins, else that of whoever the row is about, else that of
//! whoever sends it.

use std::sync::Arc;

use super::Error;
use crate::auth::Caller;
use crate::registry::{LoadedCanary, Registry, Split, Version};
use crate::rollout::slots::slot;

/// Which version answers which row of a request.
#[derive(Debug, Clone)]
pub struct Choice {
    split: Arc<Split>,
    by: By,
}

/// By what a version is chosen.
#[derive(Debug, Clone)]
enum By {
    /// There is one for everybody.
    Nothing,
    /// The request names it.
    Pin(Arc<Version>),
    /// By the slot of whoever sends the request: rows of this model are about nobody.
    Caller(u16),
    /// By the slot of whoever a row is about; by that of the caller where it does not say.
    Entity { caller: u16 },
}

impl Choice {
    /// Chooses among the versions of `model` that are loaded: the one that is pinned by name or label, else by `caller` and entity.
    ///
    /// # Errors
    /// [`Error::NotReady`] before the models are loaded, [`Error::UnknownModel`] if none has this name, [`Error::UnknownVersion`],
    /// [`Error::NoCanary`] or [`Error::NotLoaded`] if there is no such version to answer.
    pub fn new(
        registry: Option<&Registry>,
        model: &str,
        pin: Option<&str>,
        caller: &Caller,
    ) -> Result<Self, Error> {
        let registry = registry.ok_or(Error::NotReady)?;
        let split = registry.split(model).ok_or(Error::UnknownModel)?;
        let by = if let Some(name) = pin {
            By::Pin(split.named(name).map(Arc::clone).ok_or_else(|| absent(registry, model, name))?)
        } else if split.is_plain() {
            By::Nothing
        } else {
            let caller = slot(model, caller.id());
            if split.live.reader.has_entity() { By::Entity { caller } } else { By::Caller(caller) }
        };
        Ok(Self { split, by })
    }

    /// Whether the request names the version.
    pub fn is_pinned(&self) -> bool {
        matches!(self.by, By::Pin(_))
    }

    /// Whether what `version` answers is a sample of what it is sent: whoever names a canary that has a share tries it.
    pub fn is_sample(&self, version: &Arc<Version>) -> bool {
        let has_share =
            |canary: &LoadedCanary| Arc::ptr_eq(&canary.version, version) && !canary.slots.is_empty();
        !self.is_pinned() || !self.split.canaries.iter().any(has_share)
    }

    /// The versions that there were to choose among.
    pub fn split(&self) -> &Arc<Split> {
        &self.split
    }

    /// The version that answers every row, where that is known before any is read.
    pub fn known(&self) -> Option<&Arc<Version>> {
        match &self.by {
            By::Nothing => Some(&self.split.live),
            By::Pin(version) => Some(version),
            By::Caller(slot) => Some(self.split.answering(*slot)),
            By::Entity { .. } => None,
        }
    }

    /// The version by which rows are read first: the one that answers, or, as long as that is not known, the live one.
    pub fn first(&self) -> &Arc<Version> {
        self.known().unwrap_or(&self.split.live)
    }

    /// Every version that may answer a row, the first one first.
    pub fn candidates(&self) -> impl Iterator<Item = &Arc<Version>> {
        let has_slots = |canary: &&LoadedCanary| !canary.slots.is_empty();
        let more = self.known().is_none().then(|| self.split.canaries.iter().filter(has_slots));
        std::iter::once(self.first()).chain(more.into_iter().flatten().map(|canary| &canary.version))
    }

    /// The version that answers a row about `entity`, or one that names nobody.
    pub fn of(&self, entity: Option<&str>) -> &Arc<Version> {
        match (&self.by, entity) {
            (By::Entity { .. }, Some(entity)) => {
                self.split.answering(slot(&self.split.live.manifest.name, entity))
            }
            (By::Entity { caller }, None) => self.split.answering(*caller),
            _ => self.first(),
        }
    }

    /// The version that answers a body which is one row.
    pub fn of_row(&self, body: &[u8]) -> &Arc<Version> {
        if let Some(version) = self.known() {
            return version;
        }
        self.of(self.split.live.reader.entity_of(body).as_deref())
    }
}

/// Why the version that is called so, or labelled so, cannot answer.
fn absent(registry: &Registry, model: &str, name: &str) -> Error {
    let models = registry.models();
    let is_published = models.models.get(model).is_some_and(|model| model.versions.contains_key(name));
    match name {
        _ if is_published => Error::NotLoaded,
        "canary" => Error::NoCanary,
        _ => Error::UnknownVersion,
    }
}
