//! A model as it is watched: what its rollout asks for, which of its versions are loaded, and what requests see of that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use scoregate_model::package::{ROLLOUT, Repository};
use scoregate_schemas::Rollout;

use super::seen::{Seen, Stage, is_of_files, is_of_machine, stamp};
use super::{LoadedCanary, Model, Published, Refused, Role, Split, State, Stated, Version};
use crate::files::Stamp;
use crate::repository::Candidate;
use crate::rollout;
use crate::sandbox::Reasons;

/// A model, as it is watched.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) versions: BTreeMap<String, Seen>,
    /// What the rollout hangs on, as it was when it was chosen.
    basis: Basis,
    /// Which version is to answer whom, as far as that could be told last.
    plan: Option<Arc<Rollout>>,
    /// Why that cannot be told any more, if it cannot.
    unclear: Option<Reasons>,
    /// The versions that are loaded, by name: those of the plan, and the one that answers until another can.
    loaded: BTreeMap<String, Loaded>,
    /// Which of them answers whom.
    split: Option<Arc<Split>>,
    /// What was last logged about why the wanted version does not answer, and of which version.
    complaint: Option<(Option<String>, String)>,
}

#[derive(Debug)]
struct Loaded {
    version: Arc<Version>,
    manifest_digest: String,
    stated: Arc<Stated>,
}

#[derive(Debug, Default, PartialEq)]
struct Basis {
    rollout: Option<Stamp>,
    /// Every version and which sight of it this is.
    versions: Vec<(String, u64)>,
}

/// What has come of putting versions where the plan has them.
#[derive(Debug, Default)]
pub(super) struct Arranged {
    /// Whether anything has changed.
    pub(super) changed: bool,
    /// The version that answers from now on, if it did not before.
    pub(super) live: Option<Arc<Version>>,
    /// Versions that are loaded for nothing any more.
    pub(super) retired: Vec<Arc<Version>>,
}

impl Watched {
    /// Notes why nothing can be said of its versions any more. True if that is news.
    pub(super) fn lose(&mut self, reasons: Reasons) -> bool {
        self.basis = Basis::default();
        let news = self.unclear.as_ref() != Some(&reasons);
        self.unclear = Some(reasons);
        news
    }

    /// Finds out which version is to answer whom, if what that hangs on has changed. True if it comes out differently.
    pub(super) fn choose(&mut self, repository: &Repository, model: &str) -> bool {
        let basis = Basis {
            rollout: stamp(&repository.root().join(model).join(ROLLOUT)),
            versions: self.versions.iter().map(|(name, seen)| (name.clone(), seen.id)).collect(),
        };
        // What could not be read may be readable by now.
        let unread = self.unclear.as_ref().is_some_and(|reasons| reasons.code == "package_unreadable");
        if basis == self.basis && !unread {
            return false;
        }
        self.basis = basis;
        let candidates = self.versions.iter().map(|(version, seen)| Candidate {
            version: version.clone(),
            created_at: seen.created_at.clone(),
        });
        match rollout::choose(repository, model, &candidates.collect::<Vec<_>>(), self.serving()) {
            Ok(rollout) => {
                let news = self.unclear.is_some() || self.plan.as_deref() != Some(&rollout);
                (self.plan, self.unclear) = (Some(Arc::new(rollout)), None);
                news
            }
            Err(error) => {
                // Why a manifest does not say when it was published says more than that it does not.
                let unread = match &error {
                    rollout::Error::Unknown { version, .. } => self.versions.get(version),
                    _ => None,
                };
                let reasons = unread.and_then(Seen::reasons).cloned().unwrap_or_else(|| Reasons {
                    code: error.code().into(),
                    reason: error.reason(),
                    detail: format!("{:#}", anyhow::Error::from(error)),
                });
                let news = self.unclear.as_ref() != Some(&reasons);
                self.unclear = Some(reasons);
                news
            }
        }
    }

    /// What a version is to be, if anything, as long as that is clear.
    pub(super) fn role(&self, version: &str) -> Option<Role> {
        let plan = self.plan.as_ref().filter(|_| self.unclear.is_none())?;
        Role::of(plan, version)
    }

    /// Takes up a version that was loaded from what was `seen`, if the plan still names it. Whatever was loaded under that name before,
    /// or this one, is returned: nobody needs it.
    pub(super) fn take_up(&mut self, version: Arc<Version>) -> Option<Arc<Version>> {
        let name = &version.manifest.version;
        let is_named = self.plan.as_ref().is_some_and(|plan| Role::of(plan, name).is_some());
        let seen = self.versions.get(name).filter(|_| is_named);
        let Some(seen) = seen else { return Some(version) };
        let loaded = Loaded {
            stated: Arc::new(Stated::new(Arc::clone(&version.manifest), &version.schema)),
            manifest_digest: seen.manifest_digest.clone(),
            version: Arc::clone(&version),
        };
        self.loaded.insert(name.clone(), loaded).map(|before| before.version)
    }

    /// Puts the versions that are loaded where the plan has them. A live version that is not loaded leaves the one before; a canary that
    /// is not gets nobody.
    pub(super) fn arrange(&mut self) -> Arranged {
        let Some(plan) = &self.plan else { return Arranged::default() };
        let find = |name: &str| self.loaded.get(name).map(|loaded| &loaded.version);
        let before = self.split.as_ref().map(|split| split.live.manifest.version.as_str());
        let Some(live) = find(&plan.live).or_else(|| find(before?)).cloned() else {
            return Arranged::default();
        };
        // The one that answers in the place of another is not counted twice.
        let other = |name: &str| find(name).filter(|version| !Arc::ptr_eq(version, &live)).cloned();
        let canaries = plan.canaries.iter().filter_map(|canary| {
            Some(LoadedCanary {
                version: other(&canary.version)?,
                slots: canary.slots.clone(),
                percent: canary.percent,
                since: canary.since.clone(),
                guard: canary.guard,
            })
        });
        let canaries: Vec<LoadedCanary> = canaries.collect();
        let shadow = plan.shadow.as_deref().and_then(other);
        let is_placed = |version: &Arc<Version>| {
            let mut placed = canaries.iter().map(|canary| &canary.version).chain(&shadow);
            placed.any(|placed| Arc::ptr_eq(placed, version))
        };
        let kept = plan.previous.as_deref().and_then(other).filter(|previous| !is_placed(previous));
        let split =
            Split { revision: plan.revision, kept: kept.into_iter().collect(), live, canaries, shadow };
        let is_needed = |name: &str| Role::of(plan, name).is_some() || split.live.manifest.version == name;
        let gone: Vec<String> = self.loaded.keys().filter(|name| !is_needed(name)).cloned().collect();
        let retired = gone.iter().filter_map(|name| self.loaded.remove(name)).map(|gone| gone.version);
        let retired: Vec<Arc<Version>> = retired.collect();
        let (changed, is_news) = match &self.split {
            Some(before) => (!is_same(before, &split), !Arc::ptr_eq(&before.live, &split.live)),
            None => (true, true),
        };
        let live = is_news.then(|| Arc::clone(&split.live));
        if changed {
            self.split = Some(Arc::new(split));
        }
        Arranged { changed, live, retired }
    }

    /// Whether a version answers everybody for whom no other one is named.
    pub(super) fn is_served(&self) -> bool {
        self.split.is_some()
    }

    /// The name of that version.
    fn serving(&self) -> Option<&str> {
        self.split.as_ref().map(|split| split.live.manifest.version.as_str())
    }

    /// The name of the version that is to do so.
    fn wanted(&self) -> Option<&str> {
        self.plan.as_ref().filter(|_| self.unclear.is_none()).map(|plan| plan.live.as_str())
    }

    /// Whether `seen` is loaded under this name, as it is.
    pub(super) fn is_loaded(&self, name: &str, seen: &Seen) -> bool {
        self.loaded.get(name).is_some_and(|loaded| loaded.manifest_digest == seen.manifest_digest)
    }

    /// Why the version that is to answer does not.
    pub(super) fn obstacle(&self) -> Option<&Reasons> {
        self.unclear.as_ref().or_else(|| self.versions.get(self.wanted()?)?.reasons())
    }

    /// Whether the version that is to answer does.
    fn is_at_its_best(&self) -> bool {
        self.wanted()
            .is_some_and(|name| self.versions.get(name).is_some_and(|seen| self.is_loaded(name, seen)))
    }

    /// Whether all is done that can be done for an answer, those of canaries too: an entity is not to meet the live version in between.
    pub(super) fn is_settled(&self) -> bool {
        let mut canaries = self.plan.iter().flat_map(|plan| &plan.canaries);
        let is_settled = |name: &str| {
            let seen = self.versions.get(name);
            seen.is_none_or(|seen| seen.reasons().is_some() || self.is_loaded(name, seen))
        };
        self.obstacle().is_some()
            || self.is_at_its_best() && canaries.all(|canary| is_settled(&canary.version))
    }

    /// Whether nothing has to be tried again, and nothing is waited for that is to answer.
    pub(super) fn is_at_rest(&self) -> bool {
        let rests = |seen: &Seen| seen.reasons().is_some_and(|reasons| is_of_machine(&reasons.code));
        self.is_settled() && !self.versions.values().any(rests)
    }

    /// Logs once why versions are refused, and why the one that is to answer does not. A package whose files are not whole
    /// may be in the middle of being copied: it is given `grace`.
    pub(super) fn complain(&mut self, model: &str, grace: Duration) {
        let mut copying = false;
        let named = self.wanted().map(ToOwned::to_owned);
        for (name, seen) in &mut self.versions {
            let Stage::Refused { reasons, since } = &seen.stage else { continue };
            let wanted = named.as_ref() == Some(name);
            if is_of_files(&reasons.code) && since.elapsed() < grace {
                copying |= wanted || self.unclear.is_some();
            } else if !wanted && seen.said.as_ref() != Some(&reasons.detail) {
                let Reasons { code, detail, .. } = reasons;
                tracing::warn!(
                    model.name = model,
                    model.version = name,
                    code,
                    error = detail,
                    "version refused"
                );
                seen.said = Some(detail.clone());
            }
        }
        let Some(Reasons { code, detail, .. }) = self.obstacle() else {
            // What is tried again may fail again, which is no news.
            if self.is_at_its_best() {
                self.complaint = None;
            }
            return;
        };
        let complaint = Some((named.clone(), detail.clone()));
        if copying || self.complaint == complaint {
            return;
        }
        let version = named.as_deref().unwrap_or_default();
        match self.serving() {
            None => tracing::error!(
                model.name = model,
                model.version = version,
                code,
                error = detail,
                "model not served"
            ),
            Some(serving) => tracing::error!(
                model.name = model,
                model.version = version,
                serving,
                code,
                error = detail,
                "what is to answer cannot be served; the version before serves on"
            ),
        }
        let said = Some(detail.clone());
        self.complaint = complaint;
        let wanted = named.and_then(|named| self.versions.get_mut(&named));
        if let Some(wanted) = wanted.filter(|wanted| matches!(wanted.stage, Stage::Refused { .. })) {
            wanted.said = said;
        }
    }

    /// What requests see of it.
    pub(super) fn show(&self) -> Model {
        let mut versions: BTreeMap<String, Published> =
            self.versions.iter().map(|(name, seen)| (name.clone(), seen.show())).collect();
        for (name, Loaded { version, stated, .. }) in &self.loaded {
            let role = match self.serving() {
                Some(serving) if serving == name => Some(Role::Live),
                _ => self.plan.as_ref().and_then(|plan| Role::of(plan, name)),
            };
            let Some(role) = role else { continue };
            let published = Published {
                stated: Some(Arc::clone(stated)),
                created_at: Some(version.manifest.created_at.clone()),
                digest: Some(version.digest.clone()),
                golden: Some(version.golden),
                state: State::Loaded(role, Arc::clone(version)),
            };
            versions.insert(name.clone(), published);
        }
        let refusal = self.obstacle().map(Refused::of);
        Model { split: self.split.clone(), rollout: self.plan.clone(), versions, refusal }
    }
}

/// Whether the same versions do the same.
fn is_same(one: &Split, other: &Split) -> bool {
    let same = |one: &[Arc<Version>], other: &[Arc<Version>]| {
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
    };
    let same_canaries = one.canaries.len() == other.canaries.len()
        && one.canaries.iter().zip(&other.canaries).all(|(one, other)| {
            let told = |canary: &LoadedCanary| {
                (canary.slots.clone(), canary.percent, canary.since.clone(), canary.guard)
            };
            Arc::ptr_eq(&one.version, &other.version) && told(one) == told(other)
        });
    one.revision == other.revision
        && Arc::ptr_eq(&one.live, &other.live)
        && same_canaries
        && same(one.shadow.as_slice(), other.shadow.as_slice())
        && same(&one.kept, &other.kept)
}
