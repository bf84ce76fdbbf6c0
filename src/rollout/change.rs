//! Changes which version of a model answers whom: the one way that commands, HTTP and the gateway itself take.
//!
//! What is asked for is checked against the rollout that is there, recorded, and only then written; a lock keeps two that change the
//! same rollout at once apart.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use scoregate_model::package::{self, MODEL, Package, Repository, read_manifest};
use scoregate_schemas::compatibility::breaking;
use scoregate_schemas::rollout::{Canary, GuardMode};
use scoregate_schemas::{FeatureSchema, Manifest, Rollout};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Error, check, check_published, complete, first_published, give_slots};
use crate::audit::{self, Actor, Event};
use crate::repository::Store;

/// What is to become of a rollout.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Exactly these versions answer.
    Replace {
        /// The live version.
        live: String,
        /// The canaries; slots and times are not theirs to say.
        canaries: Vec<Canary>,
        /// The shadow.
        shadow: Option<String>,
    },
    /// This version is the live one; other canaries keep their shares.
    Promote(String),
    /// This version answers so many percent of the entities.
    Canary {
        /// The version.
        version: String,
        /// From 0, which is for testers alone, to 100.
        percent: f64,
        /// What becomes of it by what it answers; what was said before holds if nothing is said.
        guard: Option<GuardMode>,
    },
    /// This version is a canary no more.
    Drop(String),
    /// This version scores what the others answer, or none does.
    Shadow(Option<String>),
    /// What was done last is taken back: the canaries, else the promotion of the live version. The shadow goes in both cases. Where a
    /// version is named, only if it is one of those that are taken back.
    Rollback(Option<String>),
}

/// Who changes which rollout, and what is known.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Where the model is published.
    pub store: &'a Store,
    /// Where changes are recorded.
    pub log: &'a audit::Log,
    /// The model.
    pub model: &'a str,
    /// Who asks.
    pub actor: Actor,
    /// When.
    pub now: SystemTime,
    /// The revisions of which the rollout has to have one; any if there are none.
    pub expected: Option<Vec<u64>>,
    /// Whether a version may answer that refuses rows which the live one takes.
    pub breaking: bool,
    /// What the gateway that asks knows of the versions.
    pub serving: Serving,
    /// More facts for the audit log, such as why.
    pub facts: Map<String, Value>,
    /// Why, for whoever reads the rollout later.
    pub because: Option<Map<String, Value>>,
    /// How long versions are waited for that have to be fetched; as long as it takes if nothing is said.
    pub patience: Option<Duration>,
}

/// What a gateway knows of a model's versions; a command knows nothing.
#[derive(Debug, Default)]
pub struct Serving {
    /// The version that answers: it is the live one where there is no rollout.
    pub live: Option<String>,
    /// The versions that it refuses to serve, with a sentence each.
    pub refused: BTreeMap<String, String>,
}

impl<'a> Asked<'a> {
    /// Whatever the revision, and nothing may break.
    pub fn new(store: &'a Store, log: &'a audit::Log, model: &'a str, actor: Actor, now: SystemTime) -> Self {
        let (breaking, serving, facts) = (false, Serving::default(), Map::new());
        let (expected, because, patience) = (None, None, None);
        Self { store, log, model, actor, now, expected, breaking, serving, facts, because, patience }
    }

    /// Records that what was recorded of `revision` was not carried out.
    fn take_back(&self, revision: u64, code: &'static str) {
        let event = Event::new(self.actor.clone(), NOT_CARRIED_OUT, self.model);
        if let Err(error) = self.log.record(&event.with("revision", revision).with("code", code)) {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(
                model.name = self.model,
                revision,
                error,
                "a change that was recorded was not carried out, which cannot be recorded"
            );
        }
    }
}

/// What has come of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// The rollout before; nothing if none could be told.
    pub before: Option<Rollout>,
    /// The rollout as it is now.
    pub after: Rollout,
    /// What was done; nothing if all was as asked for already.
    pub deeds: Vec<Deed>,
    /// What whoever asked for it should know, in sentences.
    pub warnings: Vec<String>,
}

/// One thing that a change has done: an event in the audit log.
#[derive(Debug, Clone, PartialEq)]
pub struct Deed {
    /// What.
    pub action: Action,
    /// To which version.
    pub version: String,
    /// `sha256:…` of its graph, where that is known.
    pub digest: Option<String>,
    /// The share that it has now, of a canary.
    pub percent: Option<f64>,
    /// What becomes of it by what it answers, where the rollout says so of a canary.
    pub guard: Option<GuardMode>,
    /// The version in whose place it is, where the live one was replaced.
    pub from: Option<String>,
}

/// What can be done to a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is the live one.
    Promoted,
    /// It is a canary with another share than before, or guarded otherwise.
    CanarySet,
    /// It is a canary no more.
    CanaryDropped,
    /// It is the shadow.
    ShadowSet,
    /// It is the shadow no more.
    ShadowDropped,
    /// It is live alone again.
    RolledBack,
}

impl Action {
    /// As the audit log calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "version.promoted",
            Self::CanarySet => "canary.set",
            Self::CanaryDropped => "canary.dropped",
            Self::ShadowSet => "shadow.set",
            Self::ShadowDropped => "shadow.dropped",
            Self::RolledBack => "rollout.rolled_back",
        }
    }
}

/// What the audit log says where what was recorded before was not carried out, or where nobody can say whether it was.
const NOT_CARRIED_OUT: &str = "rollout.change_failed";

/// Why a rollout is not written.
enum Halt {
    Refused(Error),
    /// It is as asked for already.
    Unchanged,
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<package::Error> for Halt {
    fn from(error: package::Error) -> Self {
        Self::Refused(error.into())
    }
}

impl Change {
    /// Changes the rollout; running gateways follow. Digests are checked and files synced: this may take a while.
    ///
    /// # Errors
    /// [`Error`] if a version is not published or not whole, the rollout is another than expected, rows would be refused that the live
    /// version takes, or it cannot be recorded or written; then nothing has changed.
    pub fn carry_out(&self, asked: &Asked<'_>) -> Result<Changed, Error> {
        // It has no place for a rollout either.
        if !asked.store.may_have(asked.model)? {
            return Err(Error::NoModel { model: asked.model.into() });
        }
        let repository = asked.store.local();
        let packages = Packages { repository, model: asked.model, read: RefCell::default() };
        let found = RefCell::new(None);
        // The revision of which the audit log says that it comes.
        let recorded = RefCell::new(None);
        let change = |current: Option<&Rollout>| {
            // Others have written first, and all is found out anew.
            if let Some(revision) = recorded.take() {
                asked.take_back(revision, "rollout_changed");
            }
            let before = match current {
                // One that was written by hand may say nothing of slots; gateways follow it as it is completed.
                Some(rollout) => Some(complete(rollout.clone()).unwrap_or_else(|_| rollout.clone())),
                None => self.begin(asked)?,
            };
            let after = self.apply(before.as_ref(), asked)?;
            let is_same = current.is_some() && before.as_ref().is_some_and(|before| is_same(before, &after));
            let deeds = if is_same {
                Vec::new()
            } else {
                check_versions(asked, &packages, before.as_ref(), &after)
                    .map_err(|error| self.told(error))?;
                let deeds = self.deeds(&packages, before.as_ref(), &after);
                for deed in &deeds {
                    asked.log.record(&deed.event(asked, after.revision)).map_err(Error::Audit)?;
                    *recorded.borrow_mut() = Some(after.revision);
                }
                deeds
            };
            let after = if is_same { before.clone().unwrap_or_default() } else { after };
            let warnings = warnings(&packages, &after);
            *found.borrow_mut() = Some(Changed { before, after: after.clone(), deeds, warnings });
            if is_same { Err(Halt::Unchanged) } else { Ok(after) }
        };
        match asked.store.change_rollout(asked.model, change) {
            Ok(_) | Err(Halt::Unchanged) => {}
            Err(Halt::Refused(error)) => {
                if let Some(revision) = recorded.take() {
                    asked.take_back(revision, error.code());
                }
                return Err(error);
            }
        }
        Ok(found.into_inner().expect("what was written or left was found out before"))
    }

    /// What is said of versions that cannot do what they are to do: of one that nobody has named, that there is none to return to.
    fn told(&self, error: Error) -> Error {
        match self {
            Self::Rollback(_) if error.is_refusal() => {
                Error::NoPrevious { reason: format!("{}; promote another one", error.reason()) }
            }
            _ => error,
        }
    }

    /// What a rollout begins with that was never written: the live version, as gateways tell it.
    fn begin(&self, asked: &Asked<'_>) -> Result<Option<Rollout>, Error> {
        let model = asked.model;
        if let Some(serving) = &asked.serving.live
            && asked.store.local().versions(model)?.contains(serving)
        {
            return Ok(Some(Rollout::of(serving)));
        }
        // Each of them may be the live one, whether or not it can be fetched at the moment.
        let candidates = asked.store.candidates(model, asked.patience)?;
        if candidates.is_empty() {
            return Err(Error::NoModel { model: model.into() });
        }
        match first_published(model, &candidates) {
            Ok(live) => Ok(Some(Rollout::of(live))),
            // Whoever says which version is to be live need not know which one is.
            Err(Error::Unknown { .. }) if matches!(self, Self::Replace { .. } | Self::Promote(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What becomes of the rollout, as far as that hangs on the rollout alone.
    fn apply(&self, before: Option<&Rollout>, asked: &Asked<'_>) -> Result<Rollout, Error> {
        let none = Rollout::default();
        let current = before.unwrap_or(&none);
        let Rollout { mut live, mut canaries, mut shadow, .. } = current.clone();
        match self {
            Self::Replace { live: wanted, canaries: shares, shadow: other } => {
                (live, canaries, shadow) = (wanted.clone(), shares.clone(), other.clone());
            }
            Self::Promote(version) => {
                live.clone_from(version);
                canaries.retain(|canary| canary.version != *version);
                shadow = shadow.filter(|shadow| shadow != version);
            }
            Self::Canary { version, percent, guard } => {
                let at = canaries.iter().position(|canary| canary.version == *version);
                let at = at.unwrap_or_else(|| {
                    canaries.push(Canary::of(version, *percent));
                    canaries.len() - 1
                });
                let canary = &mut canaries[at];
                (canary.percent, canary.guard) = (*percent, guard.or(canary.guard));
                shadow = shadow.filter(|shadow| shadow != version);
            }
            Self::Drop(version) => {
                let at = canaries.iter().position(|canary| canary.version == *version);
                let at = at.ok_or_else(|| Error::NoCanary { version: version.clone() })?;
                canaries.remove(at);
            }
            Self::Shadow(version) => shadow.clone_from(version),
            Self::Rollback(version) => {
                check_taken(current, version.as_deref())?;
                if canaries.is_empty() {
                    live = current.previous.clone().ok_or_else(|| nothing_before(current))?;
                }
                canaries.clear();
                shadow = None;
            }
        }
        let revision = current.revision.saturating_add(1);
        let (changed_at, changed_by) = (written(asked.now), Some(asked.actor.author()));
        let mut after = Rollout { live, canaries, shadow, revision, changed_by, ..Rollout::default() };
        // Before slots are given, of which nobody gets any with a thousand canaries.
        check(&after)?;
        give_slots(&mut after.canaries, &current.canaries)?;
        for canary in &mut after.canaries {
            let known = current.canaries.iter().find(|known| known.version == canary.version);
            let known = known.filter(|known| known.percent == canary.percent);
            canary.since = known.map_or_else(|| changed_at.clone(), |known| known.since.clone());
        }
        after.changed_at = changed_at;
        after.changed_for.clone_from(&asked.because);
        (after.previous, after.taken_back) = self.returns(current, &after, asked);
        // What could never be done is refused for that (RFC 9110, section 13.2.1).
        match &asked.expected {
            Some(expected) if !expected.contains(&current.revision) => {
                Err(Error::Changed { revision: current.revision })
            }
            _ => Ok(after),
        }
    }

    /// The version that a rollback returns to; or else, if that was taken back, which one it was.
    fn returns(
        &self,
        before: &Rollout,
        after: &Rollout,
        asked: &Asked<'_>,
    ) -> (Option<String>, Option<String>) {
        let live = Some(&before.live).filter(|live| !live.is_empty() && **live != after.live);
        let is_rollback = matches!(self, Self::Rollback(_));
        let (previous, taken_back) = match live {
            // Whoever rolls back twice, by mistake or to be sure, does not bring back what was taken back.
            Some(live) if is_rollback => (None, Some(live)),
            // One that this gateway never served is nothing to return to.
            Some(live) if !asked.serving.refused.contains_key(live) => (Some(live), None),
            _ => (before.previous.as_ref(), before.taken_back.as_ref()),
        };
        // Nor is a canary that was taken back, by whomever.
        let roles = after.versions();
        let is_dropped = |version: &String| {
            let was_canary = before.canaries.iter().any(|canary| canary.version == *version);
            was_canary && !roles.contains(&version.as_str())
        };
        let (previous, taken_back) = match previous {
            Some(previous) if is_dropped(previous) => (None, Some(previous)),
            _ => (previous, taken_back),
        };
        let previous = previous.filter(|previous| **previous != after.live);
        let taken_back =
            taken_back.filter(|version| previous.is_none() && !roles.contains(&version.as_str()));
        (previous.cloned(), taken_back.cloned())
    }

    /// What is done on the way from one rollout to the next.
    fn deeds(&self, packages: &Packages<'_>, before: Option<&Rollout>, after: &Rollout) -> Vec<Deed> {
        let none = Rollout::default();
        let before = before.unwrap_or(&none);
        let deed = |action, version: &str| Deed {
            action,
            version: version.into(),
            digest: packages.digest(version),
            percent: None,
            guard: None,
            from: None,
        };
        let mut deeds = Vec::new();
        let replaced = before.live != after.live;
        let is_rollback = matches!(self, Self::Rollback(_));
        if replaced || is_rollback {
            let action = if is_rollback { Action::RolledBack } else { Action::Promoted };
            let from = Some(before.live.clone()).filter(|from| replaced && !from.is_empty());
            deeds.push(Deed { from, ..deed(action, &after.live) });
        }
        for canary in &after.canaries {
            if !has_share(before, canary) {
                let (percent, guard) = (Some(canary.percent), canary.guard);
                deeds.push(Deed { percent, guard, ..deed(Action::CanarySet, &canary.version) });
            }
        }
        let roles = after.versions();
        let dropped = |version: &str| !roles.contains(&version);
        for canary in before.canaries.iter().filter(|canary| dropped(&canary.version)) {
            deeds.push(deed(Action::CanaryDropped, &canary.version));
        }
        match &after.shadow {
            Some(shadow) if before.shadow.as_ref() != Some(shadow) => {
                deeds.push(deed(Action::ShadowSet, shadow));
            }
            Some(_) => {}
            None => {
                let gone = before.shadow.iter().filter(|shadow| dropped(shadow));
                deeds.extend(gone.map(|shadow| deed(Action::ShadowDropped, shadow)));
            }
        }
        deeds
    }
}

impl Deed {
    /// What the audit log says of it.
    fn event(&self, asked: &Asked<'_>, revision: u64) -> Event {
        let Self { action, version, digest, percent, guard, from } = self;
        let target = format!("{}@{version}", asked.model);
        let mut event = Event::new(asked.actor.clone(), action.as_str(), target).with("revision", revision);
        if let Some(digest) = digest {
            event = event.with("digest", digest.as_str());
        }
        if let Some(percent) = percent {
            event = event.with("percent", *percent);
        }
        if let Some(guard) = guard {
            event = event.with("guard", guard.as_str());
        }
        if let Some(from) = from {
            event = event.with("from", from.as_str());
        }
        asked.facts.iter().fold(event, |event, (name, fact)| event.with(name.clone(), fact.clone()))
    }
}

/// Whether nothing would change but the revision, and who has changed it when.
fn is_same(before: &Rollout, after: &Rollout) -> bool {
    let Rollout { revision, changed_at, changed_by, changed_for, .. } = before.clone();
    *before == Rollout { revision, changed_at, changed_by, changed_for, ..after.clone() }
}

/// Whether `canary` had the same share before, and was guarded alike.
fn has_share(before: &Rollout, canary: &Canary) -> bool {
    let told = |canary: &Canary| (canary.version.clone(), canary.percent, canary.guard);
    before.canaries.iter().any(|known| told(known) == told(canary))
}

fn written(now: SystemTime) -> Option<String> {
    // The clock of a machine may be set beyond the year 9999.
    OffsetDateTime::from(now).format(&Rfc3339).ok()
}

/// Checks that a rollback takes back `version`, where one is named.
fn check_taken(current: &Rollout, version: Option<&str>) -> Result<(), Error> {
    let Some(version) = version else { return Ok(()) };
    let canaries: Vec<String> = current.canaries.iter().map(|canary| canary.version.clone()).collect();
    let taken = if canaries.is_empty() { std::slice::from_ref(&current.live) } else { &canaries };
    if taken.iter().any(|taken| taken == version) {
        return Ok(());
    }
    Err(Error::NotTaken { version: version.into(), live: current.live.clone(), canaries })
}

/// Why a rollback has no version to return to.
fn nothing_before(current: &Rollout) -> Error {
    let reason = match &current.taken_back {
        Some(version) => format!("version {version} was taken back already; to have it back, promote it"),
        None => "none was live before the one that is; promote another one".into(),
    };
    Error::NoPrevious { reason }
}

/// What whoever has changed a rollout should know.
fn warnings(packages: &Packages<'_>, after: &Rollout) -> Vec<String> {
    let is_shared = |canary: &Canary| canary.percent > 0.0 && canary.percent < 100.0;
    let names_nobody = || packages.stated(&after.live).is_some_and(|(_, schema)| schema.entity().is_none());
    if !after.canaries.iter().any(is_shared) || !names_nobody() {
        return Vec::new();
    }
    let live = &after.live;
    vec![format!(
        "rows of this model are about nobody: the schema of its live version {live} has no field of role entity, so that a canary's \
         share is one of callers, each of whom has all rows answered by one version; where few callers send most rows, the share is \
         hardly met, and may be none or all of them"
    )]
}

/// Checks every version that is to do more than before: it is published and whole, no gateway refuses it, and what is to answer takes
/// the rows that the live one takes.
fn check_versions(
    asked: &Asked<'_>,
    packages: &Packages<'_>,
    before: Option<&Rollout>,
    after: &Rollout,
) -> Result<(), Error> {
    let none = Rollout::default();
    let current = before.unwrap_or(&none);
    let is_replaced = after.live != current.live;
    let is_return = current.previous.as_ref() == Some(&after.live);
    let growing = after.canaries.iter().filter(|canary| grows(current, canary)).map(|canary| &canary.version);
    let shadow = after.shadow.iter().filter(|shadow| current.shadow.as_ref() != Some(shadow));
    let fresh = Some(&after.live).filter(|_| is_replaced).into_iter().chain(growing.clone()).chain(shadow);
    let fresh: Vec<&str> = fresh.map(String::as_str).collect();
    // Clients of whoever is live keep to it: whoever becomes so takes what the one before took, and canaries what is live then.
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    if !asked.breaking {
        // What has answered before may answer again: whoever takes back a version must not be held up.
        if is_replaced && !is_return && !current.live.is_empty() {
            pairs.push((&current.live, &after.live));
        }
        let all = after.canaries.iter().map(|canary| &canary.version).filter(|_| is_replaced && !is_return);
        let canaries: BTreeSet<&String> = growing.chain(all).collect();
        pairs.extend(canaries.into_iter().map(|canary| (after.live.as_str(), canary.as_str())));
    }
    let named: BTreeSet<&str> =
        pairs.iter().flat_map(|(one, other)| [*one, *other]).chain(fresh.iter().copied()).collect();
    let versions = asked.store.bring(asked.model, &named, asked.patience)?;
    for version in fresh {
        check_published(asked.model, version, versions.iter().map(String::as_str))?;
        if let Some(reason) = asked.serving.refused.get(version) {
            return Err(Error::Refused { version: version.into(), reason: reason.clone() });
        }
        packages.check(version)?;
    }
    for (live, version) in pairs {
        let differences = packages.differences(live, version);
        if !differences.is_empty() {
            let (version, live) = (version.into(), live.into());
            return Err(Error::Breaking { version, live, differences });
        }
    }
    Ok(())
}

/// Whether `canary` answers more than it did.
fn grows(current: &Rollout, canary: &Canary) -> bool {
    let known = current.canaries.iter().find(|known| known.version == canary.version);
    known.is_none_or(|known| canary.percent > known.percent)
}

/// The versions of a model, each read once.
struct Packages<'r> {
    repository: &'r Repository,
    model: &'r str,
    read: RefCell<BTreeMap<String, (Manifest, FeatureSchema)>>,
}

impl Packages<'_> {
    /// Checks that a version is whole.
    fn check(&self, version: &str) -> Result<(), Error> {
        let package = Package::read(&self.repository.directory(self.model, version))?;
        self.read.borrow_mut().insert(version.into(), (package.manifest, package.schema));
        Ok(())
    }

    /// What a version says of itself, where that can be read.
    fn stated(&self, version: &str) -> Option<(Manifest, FeatureSchema)> {
        if let Some(known) = self.read.borrow().get(version) {
            return Some(known.clone());
        }
        let (manifest, _) = read_manifest(&self.repository.directory(self.model, version)).ok()?;
        let schema = FeatureSchema::from_document(manifest.schema.clone()).ok()?;
        self.read.borrow_mut().insert(version.into(), (manifest.clone(), schema.clone()));
        Some((manifest, schema))
    }

    /// The digest of a version's graph, where its manifest can be read.
    fn digest(&self, version: &str) -> Option<String> {
        self.stated(version)?.0.files.get(MODEL).cloned()
    }

    /// What `version` refuses that `live` takes; nothing if the live one cannot be read, so that a damaged one can be replaced.
    fn differences(&self, live: &str, version: &str) -> Vec<super::Difference> {
        let (Some(live), Some(other)) = (self.stated(live), self.stated(version)) else { return Vec::new() };
        breaking(&live.0, &live.1, &other.0, &other.1)
    }
}

#[cfg(test)]
mod tests;
