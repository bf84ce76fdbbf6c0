//! [`Follower`]: keeps the mirror in step with the bucket.
//!
//! One list of the bucket says what has changed: every object's tag is in it. Versions that are new or other than before are fetched
//! beside that, two at a time and a live one besides, and put in their place when they are whole. A rollout is mirrored once its live
//! version is, so that the one before answers meanwhile; canaries and shadows that come later are the live version's until then. What
//! goes wrong with one model or version is its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use scoregate_model::package::{self, MANIFEST, MAX_MANIFEST_BYTES, MAX_ROLLOUT_BYTES, ROLLOUT, check_name};
use scoregate_schemas::Rollout;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bucket::Shared;
use super::client::Object;
use super::fetch::{Fetched, fetch};
use super::mirror::Marks;

/// How many versions are fetched at once; a live one finds a place besides.
const AT_ONCE: usize = 2;
/// The longest time between two looks at a store that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a version rests that could not be fetched.
const REST: Duration = Duration::from_secs(5);
/// How long the files of a version may come after its manifest, until that is worth a word.
const COMPLETE: Duration = Duration::from_secs(10);

/// A model and a version of it.
type Key = (String, String);

/// What a bucket lists of one model.
#[derive(Debug, Default)]
pub(super) struct Listed {
    rollout: Option<Object>,
    /// The objects of each version, by their names below it.
    pub(super) versions: BTreeMap<String, BTreeMap<String, Object>>,
}

impl Listed {
    pub(super) fn has(&self, version: &str) -> bool {
        self.versions.get(version).is_some_and(|objects| objects.contains_key(MANIFEST))
    }
}

/// What is known of a version.
#[derive(Debug)]
struct Known {
    /// The objects of the bucket with which that was found.
    listed: Marks,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// There is nothing to do as long as they stay.
    Settled,
    /// Files are missing, since then; whether that was said.
    Incomplete {
        since: Instant,
        said: bool,
        what: String,
    },
    /// It is tried again at this time.
    Resting(Instant),
    Fetching,
}

/// What has come of one look.
#[derive(Debug)]
pub(super) struct Refreshed {
    /// The versions that the bucket lists.
    pub(super) versions: Vec<String>,
    /// What could not be fetched, and why.
    pub(super) failed: Vec<(String, String)>,
}

/// Follows a bucket.
#[derive(Debug)]
pub(super) struct Follower {
    shared: Arc<Shared>,
    known: HashMap<Key, Known>,
    /// What tells the rollout of each model that is mirrored from others.
    rollouts: BTreeMap<String, Option<String>>,
    fetching: JoinSet<(Key, Result<Fetched, package::Error>)>,
    /// What a start waits for: versions that may be to answer.
    urgent: BTreeSet<Key>,
    /// Models whose rollout could not be mirrored: when that is tried again, and what was said of it.
    resting: BTreeMap<String, (Instant, String)>,
    /// What is fetched of the versions of a model; all if nothing is said.
    wanted: Option<BTreeSet<String>>,
    /// What could not be fetched and why, for somebody who looks once.
    failed: Option<Vec<(String, String)>>,
    /// Whether anything in the mirror has changed that nobody was told of.
    changed: bool,
    /// Whether files of the mirror were compared with the bucket's, which is done once.
    compared: bool,
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            known: HashMap::new(),
            rollouts: BTreeMap::new(),
            fetching: JoinSet::new(),
            urgent: BTreeSet::new(),
            resting: BTreeMap::new(),
            wanted: None,
            failed: None,
            changed: false,
            compared: false,
        }
    }

    /// Brings the mirror up to date once, of one model or of all, or `wanted` versions of it alone.
    pub(super) async fn refresh(
        mut self,
        model: Option<&str>,
        wanted: Option<BTreeSet<String>>,
    ) -> Result<Refreshed, package::Error> {
        (self.wanted, self.failed) = (wanted, Some(Vec::new()));
        loop {
            let listed = self.look(model).await?;
            let Some(done) = self.fetching.join_next().await else {
                let versions = listed.into_values().flat_map(|of_model| {
                    let is_there: Vec<String> =
                        of_model.versions.keys().filter(|version| of_model.has(version)).cloned().collect();
                    is_there
                });
                return Ok(Refreshed {
                    versions: versions.collect(),
                    failed: self.failed.unwrap_or_default(),
                });
            };
            match done {
                Ok((key, fetched)) => self.take(key, fetched),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }

    /// Follows the bucket for ever. `first` hears once what is to answer is in the mirror, or cannot be fetched at the moment.
    pub(super) async fn follow(mut self, interval: Duration, first: Sender<()>, changed: impl Fn()) {
        let (mut pause, mut is_told, mut first) = (interval, false, Some(first));
        loop {
            let looked = self.look(None).await;
            match &looked {
                Ok(_) => {
                    pause = interval;
                    self.shared.was_read(SystemTime::now());
                    if std::mem::take(&mut is_told) {
                        tracing::info!(
                            repository = self.shared.client.name(),
                            "the bucket can be read again"
                        );
                    }
                }
                Err(error) => {
                    pause = (pause * 2).min(LONGEST_PAUSE.max(interval));
                    let (repository, error) = (self.shared.client.name(), in_words(error));
                    // A store that is away fails in one way now and in another then.
                    if std::mem::replace(&mut is_told, true) {
                        tracing::debug!(repository, error, "the bucket still cannot be read");
                    } else {
                        tracing::warn!(
                            repository,
                            error,
                            "the bucket cannot be read; what was mirrored is served on"
                        );
                    }
                }
            }
            if std::mem::take(&mut self.changed) {
                changed();
            }
            if (looked.is_err() || self.is_settled())
                && let Some(first) = first.take()
            {
                // Who waited may have gone on without it.
                let _ = first.send(());
            }
            let rest = tokio::time::sleep(pause);
            tokio::select! {
                () = rest => {}
                () = self.shared.wake.notified() => {}
                Some(done) = self.fetching.join_next(), if !self.fetching.is_empty() => match done {
                    Ok((key, fetched)) => self.take(key, fetched),
                    Err(panic) => {
                        tracing::error!(error = %panic, "fetching a version panicked; this is a mistake in the gateway");
                        self.known.retain(|_, known| !matches!(known.stage, Stage::Fetching));
                    }
                },
            }
        }
    }

    /// Whether every version that may be to answer is mirrored, or waits for a reason.
    fn is_settled(&self) -> bool {
        let mut stages = self.urgent.iter().map(|key| self.known.get(key).map(|known| &known.stage));
        stages.all(|stage| stage.is_some_and(|stage| !matches!(stage, Stage::Fetching)))
    }

    /// Looks at the bucket once: starts to fetch what is new, and mirrors what needs no fetching. Says what it lists.
    async fn look(&mut self, only: Option<&str>) -> Result<BTreeMap<String, Listed>, package::Error> {
        let listed = sort(self.shared.client.list(only).await?);
        self.start_fetching(&listed).await;
        for (model, of_model) in &listed {
            self.follow_rollout(model, of_model).await;
        }
        self.remove_others(&listed, only).await?;
        self.compared = true;
        Ok(listed)
    }

    /// Whether the rollout of `model` rests, which could not be mirrored.
    fn rests(&self, model: &str) -> bool {
        self.resting.get(model).is_some_and(|(until, _)| *until > Instant::now())
    }

    /// Has the rollout of `model` rest, which is no matter of other models.
    fn rest(&mut self, model: &str, error: &package::Error) {
        let error = in_words(error);
        let rest = (Instant::now() + self.how_long(), error.clone());
        let before = self.resting.insert(model.to_owned(), rest);
        if before.is_none_or(|(_, said)| said != error) {
            tracing::warn!(
                model.name = model,
                error,
                "a rollout cannot be mirrored, and the one before holds; it is tried again"
            );
            self.failed.iter_mut().for_each(|failed| failed.push((model.to_owned(), error.clone())));
        }
    }

    /// How long something rests that failed: whoever looks once does not try it twice.
    fn how_long(&self) -> Duration {
        if self.failed.is_some() { Duration::from_secs(86_400) } else { REST }
    }

    /// Starts to fetch what is new or other than before: first live versions, for which there is a place more, then what else is to
    /// answer.
    async fn start_fetching(&mut self, listed: &BTreeMap<String, Listed>) {
        let mut wanted = Vec::new();
        for (model, of_model) in listed {
            for (version, objects) in of_model.versions.iter().filter(|(version, _)| of_model.has(version)) {
                let marks: Marks =
                    objects.iter().map(|(name, object)| (name.clone(), object.mark.clone())).collect();
                let key = (model.clone(), version.clone());
                let is_wanted = self.wanted.as_ref().is_none_or(|wanted| wanted.contains(version));
                if self.has_to_fetch(&key, &marks, objects) && is_wanted {
                    wanted.push((key, marks, objects.clone()));
                }
            }
        }
        if wanted.is_empty() {
            return;
        }
        let mut live = BTreeSet::new();
        for model in wanted.iter().map(|(key, ..)| key.0.clone()).collect::<BTreeSet<_>>() {
            let rollout = match listed[&model].rollout {
                Some(_) if !self.rests(&model) => self.rollout(&model).await.unwrap_or_else(|error| {
                    self.rest(&model, &error);
                    None
                }),
                _ => None,
            };
            let of_model = wanted.iter().map(|(key, ..)| key).filter(|(of, _)| *of == model);
            let is_named =
                |version: &str| rollout.as_ref().is_none_or(|rollout| rollout.versions().contains(&version));
            self.urgent.extend(of_model.filter(|(_, version)| is_named(version)).cloned());
            live.extend(rollout.map(|rollout| (model, rollout.live)));
        }
        wanted.sort_by_key(|(key, ..)| (!live.contains(key), !self.urgent.contains(key)));
        for (key, listed, objects) in wanted {
            if self.fetching.len() >= AT_ONCE + usize::from(live.contains(&key)) {
                break;
            }
            let shared = Arc::clone(&self.shared);
            self.known.insert(key.clone(), Known { listed, stage: Stage::Fetching });
            self.fetching.spawn(async move {
                let fetched = fetch(&shared, (&key.0, &key.1), &objects).await;
                (key, fetched)
            });
        }
    }

    /// Whether a version has to be fetched whose objects have such marks.
    fn has_to_fetch(&mut self, key: &Key, marks: &Marks, objects: &BTreeMap<String, Object>) -> bool {
        match self.known.get_mut(key) {
            Some(Known { stage: Stage::Fetching, .. }) => false,
            Some(Known { stage: Stage::Resting(until), .. }) => *until <= Instant::now(),
            Some(Known { listed, stage }) if listed == marks => {
                match stage {
                    Stage::Incomplete { since, said, what } if !*said && since.elapsed() >= COMPLETE => {
                        *said = true;
                        let (model, version) = key;
                        tracing::warn!(
                            model.name = model,
                            model.version = version,
                            missing = what,
                            "not all files that the manifest lists are in the bucket"
                        );
                    }
                    _ => {}
                }
                // Somebody may have emptied the mirror.
                matches!(stage, Stage::Settled)
                    && self.shared.mirror.bytes(&key.0, &key.1, MANIFEST).is_none()
            }
            _ => {
                // What another process has mirrored, or this one before it was started again.
                let is_here = self.shared.mirror.marks(&key.0, &key.1).is_some_and(|made_of| {
                    let mut made_of = made_of.iter();
                    made_of.all(|(name, mark)| {
                        let file = name.rsplit('/').next().unwrap_or(name);
                        marks.get(name) == Some(mark)
                            && (self.compared
                                || self.shared.mirror.bytes(&key.0, &key.1, file)
                                    == objects.get(name).map(|object| object.bytes))
                    })
                });
                if is_here {
                    let known = Known { listed: marks.clone(), stage: Stage::Settled };
                    self.known.insert(key.clone(), known);
                }
                !is_here
            }
        }
    }

    /// Takes up what has come of fetching a version.
    fn take(&mut self, key: Key, fetched: Result<Fetched, package::Error>) {
        let (model, version) = (key.0.clone(), key.1.clone());
        let how_long = self.how_long();
        let Some(known) = self.known.get_mut(&key) else { return };
        known.stage = match fetched {
            Ok(Fetched::Placed) => {
                tracing::info!(model.name = model, model.version = version, "version mirrored");
                self.changed = true;
                Stage::Settled
            }
            Ok(Fetched::Same) => Stage::Settled,
            Ok(Fetched::Kept(error)) => {
                tracing::error!(
                    model.name = model,
                    model.version = version,
                    error = in_words(&error),
                    "a version was altered in the bucket; it is served on as it was"
                );
                Stage::Settled
            }
            Ok(Fetched::Incomplete(what)) => Stage::Incomplete { since: Instant::now(), said: false, what },
            Err(error) => {
                tracing::warn!(
                    model.name = model,
                    model.version = version,
                    error = in_words(&error),
                    "a version cannot be fetched; it is tried again"
                );
                let (what, error) = (format!("{model}@{version}"), in_words(&error));
                self.failed.iter_mut().for_each(|failed| failed.push((what.clone(), error.clone())));
                Stage::Resting(Instant::now() + how_long)
            }
        };
    }

    /// The rollout of `model` as the bucket has it, if it is one.
    async fn rollout(&self, model: &str) -> Result<Option<Rollout>, package::Error> {
        let found = self.shared.client.read(&format!("{model}/{ROLLOUT}"), MAX_ROLLOUT_BYTES).await?;
        Ok(found.and_then(|(text, _)| serde_json::from_slice(&text).ok()))
    }

    /// Mirrors the rollout of `model` if it is another one; where that fails, it rests.
    async fn follow_rollout(&mut self, model: &str, listed: &Listed) {
        let mark = listed.rollout.as_ref().map(|object| object.mark.clone());
        // Somebody may have emptied the mirror.
        let is_as_known = self.rollouts.get(model) == Some(&mark)
            && self.shared.mirror.has_rollout(model) == mark.is_some();
        if is_as_known || self.rests(model) {
            return;
        }
        match self.try_rollout(model, listed).await {
            Ok(()) => drop(self.resting.remove(model)),
            Err(error) => self.rest(model, &error),
        }
    }

    /// Mirrors the rollout of `model`, unless its live version is on its way: then the one that is here holds until that has come. Where
    /// there is none, it is mirrored at once, so that no other version answers in the place of the live one.
    async fn try_rollout(&mut self, model: &str, listed: &Listed) -> Result<(), package::Error> {
        let has_one = self.shared.mirror.repository().read_rollout(model).is_ok_and(|found| found.is_some());
        if has_one && let Some(rollout) = self.rollout(model).await? {
            let stage = self.known.get(&(model.to_owned(), rollout.live.clone())).map(|known| &known.stage);
            let may_come = stage.is_none_or(|stage| matches!(stage, Stage::Fetching | Stage::Resting(_)));
            if listed.has(&rollout.live) && may_come {
                return Ok(());
            }
        }
        let (is_news, object) = self.shared.pull_rollout(model).await?;
        self.changed |= is_news;
        self.rollouts.insert(model.to_owned(), object.map(|object| object.mark));
        Ok(())
    }

    /// Removes from the mirror what is in the bucket no more.
    async fn remove_others(
        &mut self,
        listed: &BTreeMap<String, Listed>,
        only: Option<&str>,
    ) -> Result<(), package::Error> {
        let shared = Arc::clone(&self.shared);
        let repository = shared.mirror.repository();
        for model in repository.models()?.iter().filter(|model| only.is_none_or(|only| only == *model)) {
            let of_model = listed.get(model);
            for version in repository.versions(model)? {
                if of_model.is_some_and(|listed| listed.has(&version)) {
                    continue;
                }
                // It may have been published since the bucket was listed.
                let _lock = shared.lock().await?;
                let key = format!("{model}/{version}/{MANIFEST}");
                if shared.client.read(&key, MAX_MANIFEST_BYTES).await?.is_none() {
                    shared.mirror.remove(model, &version)?;
                    tracing::info!(
                        model.name = model,
                        model.version = version,
                        "version is in the bucket no more"
                    );
                    self.changed = true;
                }
            }
            if of_model.is_none() {
                self.follow_rollout(model, &Listed::default()).await;
            }
        }
        self.urgent.retain(|(model, version)| listed.get(model).is_some_and(|listed| listed.has(version)));
        self.known.retain(|(model, version), known| {
            matches!(known.stage, Stage::Fetching)
                || listed.get(model).is_some_and(|listed| listed.has(version))
                || only.is_some_and(|only| only != model)
        });
        Ok(())
    }
}

/// Sorts objects by models and versions. What is no part of a repository is passed over.
pub(super) fn sort(objects: Vec<(String, Object)>) -> BTreeMap<String, Listed> {
    let mut models: BTreeMap<String, Listed> = BTreeMap::new();
    for (name, object) in objects {
        let parts: Vec<&str> = name.split('/').collect();
        if parts.iter().any(|part| check_name("object", part).is_err()) {
            continue;
        }
        match parts.as_slice() {
            [model, file] if *file == ROLLOUT => {
                models.entry((*model).to_owned()).or_default().rollout = Some(object);
            }
            [model, version, file @ ..] if (1..=2).contains(&file.len()) => {
                let of_model = models.entry((*model).to_owned()).or_default();
                of_model.versions.entry((*version).to_owned()).or_default().insert(file.join("/"), object);
            }
            _ => {}
        }
    }
    models
}

/// An error with all its causes, on one line.
fn in_words(error: &package::Error) -> String {
    match error {
        package::Error::Io { source, .. } => format!("{error}: {source}"),
        package::Error::Manifest { source, .. } | package::Error::Rollout { source, .. } => {
            format!("{error}: {source}")
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_sorted_and_strangers_passed_over() {
        let object = |mark: &str| Object { mark: mark.into(), e_tag: Some(mark.into()), bytes: 1 };
        let names = [
            "a/rollout.json",
            "a/v1/manifest.json",
            "a/v1/0123/model.onnx",
            "a/v2/model.onnx",
            "a/v1/x/y/z",
            "a/../secret/manifest.json",
            "a/.hidden/manifest.json",
            "a/v 3/manifest.json",
            "readme.txt",
            "b/v1/",
        ];
        let sorted = sort(names.iter().map(|name| ((*name).to_owned(), object(name))).collect());
        assert_eq!(sorted.keys().collect::<Vec<_>>(), ["a"]);
        let a = &sorted["a"];
        assert_eq!(a.rollout, Some(object("a/rollout.json")));
        assert_eq!(a.versions.keys().collect::<Vec<_>>(), ["v1", "v2"]);
        assert_eq!(a.versions["v1"].keys().collect::<Vec<_>>(), ["0123/model.onnx", "manifest.json"]);
        assert!(a.has("v1") && !a.has("v2"), "without a manifest there is no version");
    }
}
