//! Where models are published: a directory that replicas may share, or a bucket of an S3-compatible store, of which there is a mirror
//! on this machine.
//!
//! Everything reads a directory; only what is published and changed goes to the store as well. Who changes something says so to the
//! gateway's own watcher and, where there is Redis, to all others: looking at the repository from time to time is what they can
//! rely on, being told is what makes them quick.

mod bucket;
mod client;
mod fetch;
mod follow;
mod mirror;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use scoregate_model::package::{self, Published, Repository, read_manifest};
use scoregate_schemas::{Manifest, Rollout};

use self::bucket::Bucket;
use crate::config::Settings;
use crate::redis::{self, Notices, Redis};

/// What notices among replicas are sent under.
pub const CHANNEL: &str = "scoregate:models";

/// How long a command waits until Redis has passed on that something has changed.
const TOLD: Duration = Duration::from_secs(1);

/// Where models are published.
#[derive(Debug, Clone)]
pub struct Store {
    place: Place,
    bell: Arc<Bell>,
}

#[derive(Debug, Clone)]
enum Place {
    Directory(Repository),
    Bucket(Arc<Bucket>),
}

/// A published version, which may be the live one where there is no rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub version: String,
    /// When it was published, where its manifest says so.
    pub created_at: Option<String>,
}

impl Candidate {
    /// A version in a directory.
    pub fn read(repository: &Repository, model: &str, version: &str) -> Self {
        let manifest = read_manifest(&repository.directory(model, version)).ok();
        Self { version: version.into(), created_at: manifest.map(|(manifest, _)| manifest.created_at) }
    }
}

/// Why a store cannot be used in any case.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What the settings say cannot be put together.
    #[error("the settings of the bucket cannot be used")]
    Settings(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The mirror has no place.
    #[error("cannot make {} for what is mirrored of the bucket", .path.display())]
    Mirror {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The system has no more threads.
    #[error("cannot start a thread for the bucket")]
    Thread(#[source] std::io::Error),
}

impl Store {
    /// The store that `settings` name. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`OpenError`] if it could never be used.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let models = &settings.models;
        let repository = Repository::new(&models.dir);
        let bell = Arc::new(Bell::default());
        let place = match &models.bucket {
            None => Place::Directory(repository),
            Some(bucket) => Place::Bucket(Arc::new(Bucket::open(bucket, repository)?)),
        };
        Ok(Self { place, bell })
    }

    /// What is read: the directory itself, or the mirror of the bucket.
    pub fn local(&self) -> &Repository {
        match &self.place {
            Place::Directory(repository) => repository,
            Place::Bucket(bucket) => bucket.mirror(),
        }
    }

    /// What the repository is called.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Directory(repository) => repository.root().display().to_string(),
            Place::Bucket(bucket) => bucket.name().to_owned(),
        }
    }

    /// Replaces the rollout of `model` by what `change` makes of the one that is there, in one step: of two that change it at
    /// once the second sees what the first has written. `change` may be asked more than once, and what it said last holds.
    ///
    /// # Errors
    /// [`package::Error`] if it cannot be read or written, and what `change` refuses; then nothing has changed.
    pub fn change_rollout<E: From<package::Error>>(
        &self,
        model: &str,
        change: impl FnMut(Option<&Rollout>) -> Result<Rollout, E>,
    ) -> Result<Rollout, E> {
        let changed = match &self.place {
            Place::Directory(repository) => repository.change_rollout(model, change),
            Place::Bucket(bucket) => bucket.change_rollout(model, change),
        }?;
        self.bell.ring();
        Ok(changed)
    }

    /// Publishes `files` as a new version, and says where; see [`Repository::publish`].
    ///
    /// # Errors
    /// As [`Repository::publish`].
    pub fn publish(&self, manifest: Manifest, files: &[(&str, &[u8])]) -> Result<PathBuf, package::Error> {
        let published = match &self.place {
            Place::Directory(repository) => publish_in(repository, manifest, files),
            Place::Bucket(bucket) => bucket.publish(manifest, files),
        }?;
        self.bell.ring();
        Ok(published)
    }

    /// Brings the mirror of a bucket up to date, of one `model` or of all, for a command that is about to read it, and says what of it
    /// could not be fetched, and why. Where nothing can be, the mirror is as it was.
    ///
    /// # Errors
    /// [`package::Error`] if the store cannot be read.
    pub fn refresh(&self, model: Option<&str>) -> Result<Vec<(String, String)>, package::Error> {
        match &self.place {
            Place::Directory(_) => Ok(Vec::new()),
            Place::Bucket(bucket) => bucket.refresh(model),
        }
    }

    /// Sees to it that the versions of `model` that are `named` can be read, if they are published, within `patience` where that is
    /// limited; and says which ones are published.
    ///
    /// # Errors
    /// [`package::Error`] if the store cannot be read.
    pub fn bring(
        &self,
        model: &str,
        named: &BTreeSet<&str>,
        patience: Option<Duration>,
    ) -> Result<Vec<String>, package::Error> {
        match &self.place {
            Place::Directory(repository) => repository.versions(model),
            Place::Bucket(bucket) => bucket.bring(model, named, patience),
        }
    }

    /// The versions of `model` that are published, whether or not they are mirrored, found out within `patience` where that is
    /// limited.
    ///
    /// # Errors
    /// [`package::Error`] if the store cannot be read.
    pub fn candidates(
        &self,
        model: &str,
        patience: Option<Duration>,
    ) -> Result<Vec<Candidate>, package::Error> {
        match &self.place {
            Place::Directory(repository) => {
                let versions = repository.versions(model)?;
                Ok(versions.iter().map(|version| Candidate::read(repository, model, version)).collect())
            }
            Place::Bucket(bucket) => bucket.candidates(model, patience),
        }
    }

    /// Whether there may be a `model` of this name: of a bucket its mirror cannot say.
    ///
    /// # Errors
    /// [`package::Error`] if the repository cannot be read.
    pub fn may_have(&self, model: &str) -> Result<bool, package::Error> {
        match &self.place {
            Place::Directory(repository) => Ok(!repository.versions(model)?.is_empty()),
            Place::Bucket(_) => Ok(true),
        }
    }

    /// Follows a bucket from now on, looking at it once in each `interval`. Comes back once what is to answer is in the mirror; where
    /// the store is out of reach and something was mirrored before, soon.
    pub fn follow(&self, interval: Duration) {
        if let Place::Bucket(bucket) = &self.place {
            let bell = Arc::clone(&self.bell);
            bucket.follow(interval, move || bell.ring_here());
        }
    }

    /// When a bucket was last read by whoever follows it, 1970 if that never worked; nothing of a directory.
    pub fn last_read(&self) -> Option<SystemTime> {
        match &self.place {
            Place::Directory(_) => None,
            Place::Bucket(bucket) => Some(bucket.last_read()),
        }
    }

    /// Has `hear` called whenever something may have changed in what is read.
    pub fn on_change(&self, hear: impl Fn() + Send + Sync + 'static) {
        // There is one watcher.
        let _ = self.bell.here.set(Box::new(hear));
    }

    /// Tells other replicas through `redis` what changes here, and hears it from them.
    pub fn share(&self, redis: &Redis) {
        let store = self.clone_for_notices();
        let notices = redis.notices(CHANNEL, store);
        let _ = self.bell.others.set(notices);
    }

    /// What is done about a notice of another replica.
    fn clone_for_notices(&self) -> impl Fn() + Send + Sync + 'static {
        // Neither may keep the other: the bell holds what sends notices.
        let (place, bell) = (self.place.clone(), Arc::downgrade(&self.bell));
        move || match &place {
            Place::Directory(_) => {
                if let Some(bell) = bell.upgrade() {
                    bell.ring_here();
                }
            }
            Place::Bucket(bucket) => bucket.wake(),
        }
    }

    /// Tells replicas once through Redis that something has changed, for a command: gateways that it cannot tell find out by
    /// looking.
    ///
    /// # Errors
    /// [`redis::OpenError`] if the settings of Redis cannot be used, or it refuses the notice; that it is not there is none, since
    /// replicas hear of it half a second later.
    pub fn tell_once(settings: &Settings) -> Result<(), redis::OpenError> {
        match &settings.redis {
            Some(redis) => redis::publish_once(redis, CHANNEL, TOLD),
            None => Ok(()),
        }
    }
}

fn publish_in(
    repository: &Repository,
    manifest: Manifest,
    files: &[(&str, &[u8])],
) -> Result<PathBuf, package::Error> {
    let (model, version) = (manifest.name.clone(), manifest.version.clone());
    let Published { directory, unfinished } = repository.publish(manifest, files)?;
    // It is published, whatever becomes of the rest.
    if let Some(error) = unfinished {
        tracing::warn!(
            model.name = model,
            model.version = version,
            error = format!("{:#}", anyhow::Error::from(error)),
            "a version is published, but not all that comes after that was done: see that a version is live"
        );
    }
    Ok(directory)
}

impl From<Repository> for Store {
    fn from(repository: Repository) -> Self {
        Self { place: Place::Directory(repository), bell: Arc::default() }
    }
}

/// Rings when something may have been published or changed.
#[derive(Default)]
struct Bell {
    /// In this process.
    here: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Through Redis, at all replicas.
    others: OnceLock<Notices>,
}

impl Bell {
    fn ring(&self) {
        self.ring_here();
        if let Some(others) = self.others.get() {
            others.send();
        }
    }

    fn ring_here(&self) {
        if let Some(hear) = self.here.get() {
            hear();
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Bell").finish_non_exhaustive()
    }
}
