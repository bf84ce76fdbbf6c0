//! [`Bucket`]: a repository in a bucket of an S3-compatible store.
//!
//! A version is `MODEL/VERSION/manifest.json` and the files that it lists. What this gateway publishes has the digest of each file in
//! its name (`MODEL/VERSION/DIGEST/model.onnx`): of two that publish the same version at once neither can touch the other's files, and
//! what one that was killed has left is in nobody's way. The manifest comes last, and only where there is none yet; until then there is no
//! such version. Files may also lie beside the manifest, as they do in a directory, for whoever copies one into the bucket.
//!
//! A rollout is replaced only in place of the one that was read.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::PutMode;
use scoregate_model::package::{
    self, MANIFEST, MAX_MANIFEST_BYTES, MAX_ROLLOUT_BYTES, ROLLOUT, Repository, digest_of,
};
use scoregate_schemas::{Manifest, Rollout};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, oneshot};

use super::Candidate;
use super::OpenError;
use super::client::{Client, Object, Put, in_place_of};
use super::fetch::is_whole;
use super::follow::{Follower, sort};
use super::mirror::{Marks, Mirror};
use crate::config::BucketSettings;

/// How often a rollout is read and written anew because others change it at the same time.
const TRIES: usize = 20;
/// How long a start waits for a store that does not answer, where something was mirrored before.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// A bucket, its mirror, and the thread on which it is talked to.
#[derive(Debug)]
pub(super) struct Bucket {
    shared: Arc<Shared>,
    runtime: Handle,
    /// That thread ends when this is dropped.
    _open: oneshot::Sender<Infallible>,
}

/// What the follower needs as well.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) mirror: Mirror,
    /// Has the follower look at once.
    pub(super) wake: Notify,
    /// When the follower last read the bucket.
    last_read: Mutex<SystemTime>,
}

impl Bucket {
    pub(super) fn open(settings: &BucketSettings, mirror: Repository) -> Result<Self, OpenError> {
        let path = mirror.root().to_path_buf();
        let mirror = Mirror::open(mirror).map_err(|source| OpenError::Mirror { path, source })?;
        let client = Client::new(settings)?;
        let runtime = Builder::new_current_thread()
            .thread_name("scoregate-bucket-files")
            .max_blocking_threads(2)
            .enable_all()
            .build()
            .map_err(OpenError::Thread)?;
        let handle = runtime.handle().clone();
        let (open, dropped) = oneshot::channel::<Infallible>();
        let work = move || {
            runtime.block_on(async {
                let _ = dropped.await;
            });
            // Nobody waits for what is under way.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("scoregate-bucket".into()).spawn(work).map_err(OpenError::Thread)?;
        let shared =
            Arc::new(Shared { client, mirror, wake: Notify::new(), last_read: Mutex::new(UNIX_EPOCH) });
        Ok(Self { shared, runtime: handle, _open: open })
    }

    pub(super) fn name(&self) -> &str {
        self.shared.client.name()
    }

    pub(super) fn mirror(&self) -> &Repository {
        self.shared.mirror.repository()
    }

    /// When the follower last read the bucket; 1970 if it never did.
    pub(super) fn last_read(&self) -> SystemTime {
        *self.shared.last_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the follower look at once.
    pub(super) fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Brings the mirror up to date, and says what could not be fetched, and why.
    pub(super) fn refresh(&self, model: Option<&str>) -> Result<Vec<(String, String)>, package::Error> {
        let refreshed = self.wait(Follower::new(Arc::clone(&self.shared)).refresh(model, None))?;
        Ok(refreshed.failed)
    }

    /// Fetches the versions of `model` that are `named` and not mirrored yet, and says which ones are published.
    pub(super) fn bring(
        &self,
        model: &str,
        named: &BTreeSet<&str>,
        patience: Option<Duration>,
    ) -> Result<Vec<String>, package::Error> {
        let mirror = &self.shared.mirror;
        let absent = |version: &str| mirror.bytes(model, version, MANIFEST).is_none();
        let wanted = named.iter().filter(|version| package::check_name("version", version).is_ok());
        let wanted: BTreeSet<String> =
            wanted.filter(|version| absent(version)).map(|version| (*version).to_owned()).collect();
        if wanted.is_empty() {
            return self.mirror().versions(model);
        }
        let fetch = Follower::new(Arc::clone(&self.shared)).refresh(Some(model), Some(wanted.clone()));
        let mut fetched = self.wait_within(patience, model, fetch)?;
        for version in wanted.iter().filter(|version| absent(version)) {
            let what = format!("{model}@{version}");
            if let Some((_, why)) = fetched.failed.iter().find(|(failed, _)| *failed == what) {
                let path = self.shared.client.place(&format!("{model}/{version}"));
                let source = io::Error::other(why.clone());
                return Err(package::Error::Io { action: "fetch", path, source });
            }
            // Not all of it is there.
            fetched.versions.retain(|found| found != version);
        }
        Ok(fetched.versions)
    }

    /// The versions of `model` that the bucket has, whatever of them is mirrored. One of which files are missing says nothing of itself.
    pub(super) fn candidates(
        &self,
        model: &str,
        patience: Option<Duration>,
    ) -> Result<Vec<Candidate>, package::Error> {
        let client = &self.shared.client;
        let read = async {
            let mut found = Vec::new();
            let Some(listed) = sort(client.list(Some(model)).await?).remove(model) else { return Ok(found) };
            for (version, objects) in listed.versions.iter().filter(|(version, _)| listed.has(version)) {
                let key = format!("{model}/{version}/{MANIFEST}");
                let Some((text, _)) = client.read(&key, MAX_MANIFEST_BYTES).await? else { continue };
                let manifest = serde_json::from_slice::<Manifest>(&text).ok();
                let manifest = manifest.filter(|manifest| is_whole(manifest, objects));
                let created_at = manifest.map(|manifest| manifest.created_at);
                found.push(Candidate { version: version.clone(), created_at });
            }
            Ok(found)
        };
        self.wait_within(patience, model, read)
    }

    /// Follows the bucket; `changed` is called whenever something in the mirror has.
    pub(super) fn follow(&self, interval: Duration, changed: impl Fn() + Send + 'static) {
        self.shared.mirror.sweep();
        let was_empty = self.shared.mirror.is_empty();
        let (first, told) = channel();
        let follower = Follower::new(Arc::clone(&self.shared));
        self.runtime.spawn(follower.follow(interval, first, changed));
        // What is mirrored can be served. Without it there is nothing to do but to wait.
        let early = told.recv_timeout(START_PATIENCE);
        if early != Err(RecvTimeoutError::Timeout) {
            return;
        }
        if was_empty {
            let _ = told.recv();
        } else {
            tracing::warn!(
                repository = self.name(),
                "the bucket takes its time; the gateway starts with what was mirrored before"
            );
        }
    }

    pub(super) fn change_rollout<E: From<package::Error>>(
        &self,
        model: &str,
        mut change: impl FnMut(Option<&Rollout>) -> Result<Rollout, E>,
    ) -> Result<Rollout, E> {
        package::check_name("model", model)?;
        let key = format!("{model}/{ROLLOUT}");
        let client = &self.shared.client;
        for _ in 0..TRIES {
            let found = self.wait(client.read(&key, MAX_ROLLOUT_BYTES))?;
            let before = found.as_ref().map(|(text, _)| self.parse(&key, text)).transpose()?;
            let after = change(before.as_ref())?;
            if before.as_ref() == Some(&after) {
                return Ok(after);
            }
            let text = text_of(&after)
                .map_err(|source| package::Error::Rollout { path: client.place(&key), source })?;
            if text.len() > MAX_ROLLOUT_BYTES {
                let (path, found) = (client.place(&key), text.len() as u64);
                return Err(package::Error::TooLarge { path, found, limit: MAX_ROLLOUT_BYTES }.into());
            }
            let mode = found.as_ref().map_or(PutMode::Create, |(_, object)| in_place_of(object));
            let done = match self.wait(client.write(&key, text.clone(), mode)) {
                Ok((put, _)) => put == Put::Done,
                // Whether it was written is not known: what is there now tells, if it can be read.
                Err(error) => match self.wait(client.read(&key, MAX_ROLLOUT_BYTES)) {
                    Ok(Some((found, _))) if found == text => true,
                    _ => return Err(error.into()),
                },
            };
            if done {
                self.mirror_rollout(model);
                return Ok(after);
            }
        }
        let text = format!("others have changed it {TRIES} times meanwhile; try again");
        Err(package::Error::Io { action: "write", path: client.place(&key), source: io::Error::other(text) }
            .into())
    }

    fn parse(&self, key: &str, text: &[u8]) -> Result<Rollout, package::Error> {
        let path = || self.shared.client.place(key);
        serde_json::from_slice(text).map_err(|source| package::Error::Rollout { path: path(), source })
    }

    /// Takes what has been written into the mirror. Where that fails, the follower does it later.
    fn mirror_rollout(&self, model: &str) {
        if let Err(error) = self.wait(self.shared.pull_rollout(model)) {
            tracing::warn!(
                model.name = model,
                error = %error,
                "a rollout is written and not mirrored yet"
            );
        }
        self.wake();
    }

    pub(super) fn publish(
        &self,
        mut manifest: Manifest,
        files: &[(&str, &[u8])],
    ) -> Result<PathBuf, package::Error> {
        package::check_name("model", &manifest.name)?;
        package::check_name("version", &manifest.version)?;
        let (model, version) = (manifest.name.clone(), manifest.version.clone());
        let exists = || package::Error::Exists { model: model.clone(), version: version.clone() };
        let client = &self.shared.client;
        let key = format!("{model}/{version}/{MANIFEST}");
        if self.wait(client.read(&key, MAX_MANIFEST_BYTES))?.is_some() {
            return Err(exists());
        }
        for (name, bytes) in files {
            package::check_name("file", name)?;
            manifest.files.insert((*name).into(), digest_of(bytes));
        }
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|source| package::Error::Manifest { path: client.place(&key), source })?;
        if text.len() > MAX_MANIFEST_BYTES {
            let (path, found) = (client.place(&key), text.len() as u64);
            return Err(package::Error::TooLarge { path, found, limit: MAX_MANIFEST_BYTES });
        }
        for (name, bytes) in files {
            let file = addressed(name, &manifest.files[*name]);
            self.wait(client.upload(&format!("{model}/{version}/{file}"), bytes))?;
        }
        let object = self.commit(&key, &text)?.ok_or_else(exists)?;
        self.mirror_version(&manifest, &text, files, &object);
        // It is published, whatever becomes of the rest.
        if let Err(error) = self.begin_rollout(&model, &version) {
            tracing::warn!(
                model.name = model,
                model.version = version,
                error = format!("{:#}", anyhow::Error::from(error)),
                "a version is published, and whether it is to be live cannot be told or written; promote one"
            );
        }
        self.mirror_rollout(&model);
        Ok(client.place(&format!("{model}/{version}")))
    }

    /// The first version of a model goes live; later ones wait to be promoted.
    fn begin_rollout(&self, model: &str, version: &str) -> Result<(), package::Error> {
        let client = &self.shared.client;
        let listed = self.wait(client.list(Some(model)))?;
        let manifests = listed.iter().filter(|(key, _)| {
            let parts: Vec<&str> = key.split('/').collect();
            matches!(parts.as_slice(), [_, _, file] if *file == MANIFEST)
        });
        let rollout = format!("{model}/{ROLLOUT}");
        if manifests.count() == 1 && !listed.iter().any(|(key, _)| *key == rollout) {
            let text = text_of(&Rollout::of(version))
                .map_err(|source| package::Error::Rollout { path: client.place(&rollout), source })?;
            self.wait(client.write(&rollout, text, PutMode::Create))?;
        }
        Ok(())
    }

    /// Writes the manifest, with which there is a version, only where there is none; then it says what was written.
    fn commit(&self, key: &str, text: &[u8]) -> Result<Option<Object>, package::Error> {
        let client = &self.shared.client;
        let mut failure = None;
        for _ in 0..TRIES {
            match self.wait(client.write(key, text.to_vec(), PutMode::Create)) {
                Ok((Put::Done, Some(object))) => return Ok(Some(object)),
                Ok((Put::Done | Put::Conflict, _)) => {}
                Err(error) => failure = Some(error),
            }
            // Ours, where the first answer was lost or says little; another's; or none, while two write at once.
            match self.wait(client.read(key, MAX_MANIFEST_BYTES))? {
                Some((found, object)) if found == text => return Ok(Some(object)),
                Some(_) => return Ok(None),
                None => {}
            }
            if let Some(error) = failure {
                return Err(error);
            }
        }
        let source = io::Error::other("another publishes it at this moment; try again");
        Err(package::Error::Io { action: "write", path: client.place(key), source })
    }

    /// Takes what was published into the mirror. Where that fails, the follower fetches it.
    fn mirror_version(&self, manifest: &Manifest, text: &[u8], files: &[(&str, &[u8])], object: &Object) {
        let Manifest { name: model, version, .. } = manifest;
        let mirror = &self.shared.mirror;
        let place = || -> anyhow::Result<()> {
            let staging = mirror.staging(model)?;
            for (name, bytes) in files {
                std::fs::write(staging.path().join(name), bytes)?;
            }
            std::fs::write(staging.path().join(MANIFEST), text)?;
            let listed = self.wait(self.shared.client.list(Some(&format!("{model}/{version}"))))?;
            let mark = |file: String| {
                let key = format!("{model}/{version}/{file}");
                let found = listed.iter().find(|(listed, _)| *listed == key)?;
                Some((file, found.1.mark.clone()))
            };
            let files = manifest.files.iter().map(|(name, digest)| addressed(name, digest));
            let mut marks: Marks = files.filter_map(mark).collect();
            marks.insert(MANIFEST.into(), object.mark.clone());
            Ok(mirror.place(model, version, staging, &marks)?)
        };
        if let Err(error) = place() {
            tracing::warn!(
                model.name = model,
                model.version = version,
                error = format!("{error:#}"),
                "a version is published and not mirrored yet"
            );
        }
    }

    /// The same, within `patience` where that is limited.
    fn wait_within<T>(
        &self,
        patience: Option<Duration>,
        model: &str,
        question: impl Future<Output = Result<T, package::Error>>,
    ) -> Result<T, package::Error> {
        let Some(patience) = patience else { return self.wait(question) };
        let late = |_| {
            let path = self.shared.client.place(model);
            Err(package::Error::Io { action: "fetch", path, source: io::ErrorKind::TimedOut.into() })
        };
        self.wait(async { tokio::time::timeout(patience, question).await.unwrap_or_else(late) })
    }

    /// Waits for what is asked of the store. The threads that do are none of those that serve connections.
    fn wait<T>(&self, question: impl Future<Output = T>) -> T {
        self.runtime.block_on(question)
    }
}

impl Shared {
    /// That the bucket was read at this time.
    pub(super) fn was_read(&self, now: SystemTime) {
        *self.last_read.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Takes the rollout of `model`, as it is at this moment, into the mirror. True if it is another one than before.
    pub(super) async fn pull_rollout(&self, model: &str) -> Result<(bool, Option<Object>), package::Error> {
        let _lock = self.lock().await?;
        let found = self.client.read(&format!("{model}/{ROLLOUT}"), MAX_ROLLOUT_BYTES).await?;
        let (text, object) = found.unzip();
        Ok((self.mirror.put_rollout(model, text.as_deref())?, object))
    }

    /// Holds the mirror's lock, which another process may have for a moment.
    pub(super) async fn lock(&self) -> Result<std::fs::File, package::Error> {
        let mirror = self.mirror.clone();
        let path = self.mirror.repository().root().to_path_buf();
        let locked = tokio::task::spawn_blocking(move || mirror.lock()).await;
        locked.unwrap_or_else(|panic| {
            Err(package::Error::Io { action: "lock", path, source: io::Error::other(panic) })
        })
    }
}

/// What a file of a version is called in a bucket: its digest is in its name.
pub(super) fn addressed(name: &str, digest: &str) -> String {
    format!("{}/{name}", digest.strip_prefix("sha256:").unwrap_or(digest))
}

/// A rollout as it is written.
fn text_of(rollout: &Rollout) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(rollout)?;
    text.push(b'\n');
    Ok(text)
}
