//! A version, as the repository was last seen to hold it, and how far it has come since.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scoregate_model::acceptance::accept::Accepted;
use scoregate_model::acceptance::child;
use scoregate_model::package::{self, MANIFEST, MODEL};
use scoregate_schemas::FeatureSchema;

use super::tools::{Tools, reasons_of};
use super::{Published, Refused, State, Stated};
use crate::files::Stamp;
use crate::sandbox::Reasons;

/// How long a version rests that was not tried or loaded for want of something that the machine could not give.
const REST: Duration = Duration::from_secs(5);
/// The same where memory was short.
const LONG_REST: Duration = Duration::from_secs(300);
/// The longest time of publication and digest that are remembered of a version which is not served.
const MAX_SHOWN_BYTES: usize = 128;

/// A version, as it was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Which sight of it this is.
    pub(super) id: u64,
    /// Its files, taken before any of them was read.
    files: BTreeMap<String, Stamp>,
    pub(super) manifest_digest: String,
    /// The digest of the manifest when a version of this name was accepted: it may have no other from then on.
    accepted_digest: Option<String>,
    /// Of the manifest, where it can be read.
    pub(super) created_at: Option<String>,
    /// Of the graph, as the manifest says.
    digest: Option<String>,
    /// All that the manifest says, unless the version is refused: who made that one up may have made it large.
    stated: Option<Arc<Stated>>,
    pub(super) stage: Stage,
    /// What was logged about why it is refused.
    pub(super) said: Option<String>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// To be tried.
    New,
    /// It is being tried.
    Trying,
    /// It may be served.
    Accepted(Arc<Accepted>),
    /// It is being loaded.
    Loading(Arc<Accepted>),
    /// It may not be served, unless its files change; or it rests, where that is [the machine's](is_of_machine) fault.
    Refused { reasons: Reasons, since: Instant },
}

/// The stamp of what is at `path` itself, be it a link.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::symlink_metadata(path).ok().map(|found| Stamp::of(&found))
}

/// Those of every file of a directory.
fn stamps(directory: &Path) -> BTreeMap<String, Stamp> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_string_lossy().into_owned(), stamp(&entry.path())?)))
        .collect()
}

/// Whether a package is refused for files that are missing or not what the manifest says.
pub(super) fn is_of_files(code: &str) -> bool {
    matches!(code, "package_incomplete" | "package_altered" | "package_unreadable" | "invalid_manifest")
}

/// Whether the machine could not do its part, which says nothing of the model and may be over soon.
pub(super) fn is_of_machine(code: &str) -> bool {
    rest(code).is_some()
}

/// How long a version rests then.
fn rest(code: &str) -> Option<Duration> {
    match code {
        "no_process" | "no_thread" | "no_scratch" | "package_unreadable" | "runtime_unavailable" => {
            Some(REST)
        }
        // It may be the one that takes the memory.
        child::KILLED => Some(LONG_REST),
        _ => None,
    }
}

impl Refused {
    pub(super) fn of(reasons: &Reasons) -> Self {
        Self { code: reasons.code.clone(), reason: reasons.reason.clone() }
    }
}

impl Seen {
    /// Looks at a version that is new, has changed, or has rested, after it was `known`.
    pub(super) fn look(id: u64, directory: &Path, tools: &Tools, model: &str, known: Option<&Self>) -> Self {
        let rested =
            known.filter(|known| known.reasons().is_some_and(|reasons| is_of_machine(&reasons.code)));
        let mut seen = Self {
            id,
            files: stamps(directory),
            manifest_digest: String::new(),
            accepted_digest: known.and_then(|known| known.accepted_digest.clone()),
            created_at: None,
            digest: None,
            stated: None,
            stage: Stage::New,
            said: rested.and_then(|known| known.said.clone()),
        };
        if let Err(reasons) = seen.read(directory, tools, model) {
            seen.refuse(reasons);
        }
        seen
    }

    fn read(&mut self, directory: &Path, tools: &Tools, model: &str) -> Result<(), Reasons> {
        let (manifest, manifest_digest) = package::read_manifest(directory).map_err(reasons_of)?;
        let short = |text: &&String| text.len() <= MAX_SHOWN_BYTES;
        self.created_at = Some(&manifest.created_at).filter(short).cloned();
        self.digest = manifest.files.get(MODEL).filter(short).cloned();
        self.manifest_digest = manifest_digest;
        package::check_place(&manifest, directory).map_err(reasons_of)?;
        if self.accepted_digest.as_ref().is_some_and(|accepted| *accepted != self.manifest_digest) {
            let reason = "the version is another than the one that was accepted under this name, and versions never \
                          change; publish it under a new name";
            let code = "version_changed".into();
            return Err(Reasons { code, reason: reason.into(), detail: reason.into() });
        }
        // A name that is no plain one is not looked for.
        let absent =
            |name: &&String| !self.files.contains_key(*name) && package::check_name("file", name).is_ok();
        if let Some(name) = manifest.files.keys().find(absent) {
            let (path, source) = (directory.join(name), std::io::ErrorKind::NotFound.into());
            return Err(reasons_of(package::Error::Io { action: "read", path, source }));
        }
        let schema = FeatureSchema::from_document(manifest.schema.clone());
        let schema = schema.map_err(|error| reasons_of(error.into()))?;
        self.stated = Some(Arc::new(Stated::new(Arc::new(manifest), &schema)));
        let threads = tools.settings.serving(model).intra_op_threads;
        if let Some(accepted) = tools.records.find(&self.manifest_digest, threads) {
            self.accept(accepted);
        }
        Ok(())
    }

    pub(super) fn accept(&mut self, accepted: Accepted) {
        self.accepted_digest = Some(accepted.manifest_digest.clone());
        self.stage = Stage::Accepted(Arc::new(accepted));
    }

    pub(super) fn refuse(&mut self, reasons: Reasons) {
        if !is_of_machine(&reasons.code) {
            self.stated = None;
        }
        self.stage = Stage::Refused { reasons, since: Instant::now() };
    }

    /// Whether there is nothing new to see: its files are as they were, and it has not rested long enough to be tried again.
    /// Of a version that was accepted only the manifest is looked at: the digests in it hold the rest, and are checked when
    /// it is loaded.
    pub(super) fn is_unchanged(&self, directory: &Path) -> bool {
        match &self.stage {
            Stage::Accepted(_) | Stage::Loading(_) => {
                self.files.get(MANIFEST).copied() == stamp(&directory.join(MANIFEST))
            }
            Stage::Refused { reasons, since }
                if rest(&reasons.code).is_some_and(|rest| since.elapsed() >= rest) =>
            {
                false
            }
            _ => self.files == stamps(directory),
        }
    }

    pub(super) fn reasons(&self) -> Option<&Reasons> {
        match &self.stage {
            Stage::Refused { reasons, .. } => Some(reasons),
            _ => None,
        }
    }

    pub(super) fn show(&self) -> Published {
        let (golden, state) = match &self.stage {
            Stage::New | Stage::Trying => (None, State::Checking),
            Stage::Accepted(accepted) | Stage::Loading(accepted) => (Some(accepted.golden), State::Accepted),
            Stage::Refused { reasons, .. } if is_of_machine(&reasons.code) => (None, State::Checking),
            Stage::Refused { reasons, .. } => (None, State::Refused(Refused::of(reasons))),
        };
        let (created_at, digest) = (self.created_at.clone(), self.digest.clone());
        Published { stated: self.stated.clone(), created_at, digest, golden, state }
    }
}
