//! Changes which version of a model answers whom: the one way that commands, HTTP and the gateway itself take.
//!
//! What is asked for is checked against the rollout that is there, recorded, and only then written; a lock keeps two that change the
//! same rollout at once apart.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use scoregate_model::package::{self, MODEL, Package, Repository, read_manifest};
use scoregate_schemas::compatibility::breaking;
use scoregate_schemas::rollout::Canary;
use scoregate_schemas::{FeatureSchema, Manifest, Rollout};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Error, check, check_published, complete, slots, stated};
use crate::audit::{self, Actor, Event};
use crate::repository::Store;

/// What is to become of a rollout.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Exactly these versions answer.
    Replace {
        /// The live version.
        live: String,
        /// The canaries with their percentages.
        canaries: Vec<(String, f64)>,
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
    },
    /// This version is a canary no more.
    Drop(String),
    /// This version scores what the others answer, or none does.
    Shadow(Option<String>),
    /// What was done last is taken back: the canaries, else the promotion of the live version. The shadow goes in both cases.
    Rollback,
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
        let (expected, breaking, serving, facts) = (None, false, Serving::default(), Map::new());
        Self { store, log, model, actor, now, expected, breaking, serving, facts, patience: None }
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
    /// The version in whose place it is, where the live one was replaced.
    pub from: Option<String>,
}

/// What can be done to a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is the live one.
    Promoted,
    /// It is a canary with another share than before.
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
            *found.borrow_mut() = Some(Changed { before, after: after.clone(), deeds });
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
            Self::Rollback if error.is_refusal() => Error::NoPrevious { reason: error.reason() },
            _ => error,
        }
    }

    /// What a rollout begins with that was never written: the live version, as gateways tell it.
    fn begin(&self, asked: &Asked<'_>) -> Result<Option<Rollout>, Error> {
        let repository = asked.store.local();
        // Each of them may be the live one.
        asked.store.refresh(Some(asked.model))?;
        let versions = repository.versions(asked.model)?;
        if versions.is_empty() {
            return Err(Error::NoModel { model: asked.model.into() });
        }
        match stated(repository, asked.model, &versions, asked.serving.live.as_deref()) {
            Ok(rollout) => Ok(Some(rollout).filter(|rollout| !rollout.live.is_empty())),
            // Whoever says which version is to be live need not know which one is.
            Err(Error::Unknown { .. }) if matches!(self, Self::Replace { .. } | Self::Promote(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What becomes of the rollout, as far as that hangs on the rollout alone.
    fn apply(&self, before: Option<&Rollout>, asked: &Asked<'_>) -> Result<Rollout, Error> {
        let none = Rollout::default();
        let current = before.unwrap_or(&none);
        let (mut live, mut shadow) = (current.live.clone(), current.shadow.clone());
        let shares = current.canaries.iter().map(|canary| (canary.version.clone(), canary.percent));
        let mut canaries: Vec<(String, f64)> = shares.collect();
        match self {
            Self::Replace { live: wanted, canaries: shares, shadow: other } => {
                (live, canaries, shadow) = (wanted.clone(), shares.clone(), other.clone());
            }
            Self::Promote(version) => {
                live.clone_from(version);
                canaries.retain(|(canary, _)| canary != version);
                shadow = shadow.filter(|shadow| shadow != version);
            }
            Self::Canary { version, percent } => {
                match canaries.iter_mut().find(|(canary, _)| canary == version) {
                    Some((_, share)) => *share = *percent,
                    None => canaries.push((version.clone(), *percent)),
                }
                shadow = shadow.filter(|shadow| shadow != version);
            }
            Self::Drop(version) => {
                let is_canary = |(canary, _): &(String, f64)| canary == version;
                let at = canaries.iter().position(is_canary);
                let at = at.ok_or_else(|| Error::NoCanary { version: version.clone() })?;
                canaries.remove(at);
            }
            Self::Shadow(version) => shadow.clone_from(version),
            Self::Rollback => {
                if canaries.is_empty() {
                    let previous = current.previous.clone();
                    let reason = || "none was live before the one that is".into();
                    live = previous.ok_or_else(|| Error::NoPrevious { reason: reason() })?;
                }
                canaries.clear();
                shadow = None;
            }
        }
        let replaced = Some(&current.live).filter(|before| !before.is_empty() && **before != live);
        // One that this gateway never served is nothing to return to.
        let replaced = replaced.filter(|before| !asked.serving.refused.contains_key(*before));
        let previous = replaced.or(current.previous.as_ref()).filter(|previous| **previous != live);
        let revision = current.revision.saturating_add(1);
        let wanted = |(version, percent): &(String, f64)| Canary {
            version: version.clone(),
            percent: *percent,
            slots: Vec::new(),
            since: None,
        };
        let wanted = canaries.iter().map(wanted).collect();
        let mut after = Rollout { previous: previous.cloned(), live, canaries: wanted, shadow, revision };
        // Before slots are given, of which nobody gets any with a thousand canaries.
        check(&after)?;
        after.canaries = slots::assign(&current.canaries, &canaries)?;
        for canary in &mut after.canaries {
            let known = current.canaries.iter().find(|known| known.version == canary.version);
            let known = known.filter(|known| known.percent == canary.percent);
            canary.since = known.map_or_else(|| Some(written(asked.now)), |known| known.since.clone());
        }
        // What could never be done is refused for that (RFC 9110, section 13.2.1).
        match &asked.expected {
            Some(expected) if !expected.contains(&current.revision) => {
                Err(Error::Changed { revision: current.revision })
            }
            _ => Ok(after),
        }
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
            from: None,
        };
        let mut deeds = Vec::new();
        let replaced = before.live != after.live;
        if replaced || matches!(self, Self::Rollback) {
            let action = if matches!(self, Self::Rollback) { Action::RolledBack } else { Action::Promoted };
            let from = Some(before.live.clone()).filter(|from| replaced && !from.is_empty());
            deeds.push(Deed { from, ..deed(action, &after.live) });
        }
        for canary in &after.canaries {
            if !has_share(before, canary) {
                let percent = Some(canary.percent);
                deeds.push(Deed { percent, ..deed(Action::CanarySet, &canary.version) });
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
        let Self { action, version, digest, percent, from } = self;
        let target = format!("{}@{version}", asked.model);
        let mut event = Event::new(asked.actor.clone(), action.as_str(), target).with("revision", revision);
        if let Some(digest) = digest {
            event = event.with("digest", digest.as_str());
        }
        if let Some(percent) = percent {
            event = event.with("percent", *percent);
        }
        if let Some(from) = from {
            event = event.with("from", from.as_str());
        }
        asked.facts.iter().fold(event, |event, (name, fact)| event.with(name.clone(), fact.clone()))
    }
}

/// Whether nothing would change but the revision.
fn is_same(before: &Rollout, after: &Rollout) -> bool {
    *before == Rollout { revision: before.revision, ..after.clone() }
}

/// Whether `canary` had the same share before.
fn has_share(before: &Rollout, canary: &Canary) -> bool {
    before.canaries.iter().any(|known| known.version == canary.version && known.percent == canary.percent)
}

fn written(now: SystemTime) -> String {
    // The clock of a machine that is set beyond the year 9999.
    OffsetDateTime::from(now).format(&Rfc3339).unwrap_or_default()
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
mod tests {
    use std::path::Path;
    use std::sync::Barrier;

    use scoregate_model::package::ROLLOUT;
    use scoregate_schemas::manifest::{self, Bindings, Output, Source, SourceKind};
    use serde_json::json;

    use super::*;

    const MODEL_NAME: &str = "churn";

    /// A repository with versions a, b, c and d, of which d needs a field that the others do not know.
    struct World {
        directory: tempfile::TempDir,
        store: Store,
        log: audit::Log,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let repository = Repository::new(directory.path().join("models"));
            for version in ["a", "b", "c", "d"] {
                publish(&repository, version);
            }
            let log = audit::Log::new(&directory.path().join("state"));
            Self { store: repository.into(), log, directory }
        }

        fn ask(&self) -> Asked<'_> {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
            Asked::new(&self.store, &self.log, MODEL_NAME, Actor::operator(), now)
        }

        /// Makes a change, and says in words what the rollout is then and what was done.
        fn change(&self, change: &Change) -> Result<(String, Vec<String>), &'static str> {
            self.change_as(change, self.ask())
        }

        fn change_as(
            &self,
            change: &Change,
            asked: Asked<'_>,
        ) -> Result<(String, Vec<String>), &'static str> {
            let recorded = self.events().len();
            let changed = change.carry_out(&asked).map_err(|error| error.code());
            let events = self.events().split_off(recorded);
            match &changed {
                Ok(changed) => {
                    let read = self.store.local().read_rollout(MODEL_NAME).unwrap().unwrap();
                    assert_eq!(read, changed.after, "what is written is what was told");
                    assert_eq!(events.len(), changed.deeds.len());
                }
                Err(_) => assert!(events.is_empty(), "nothing is done, and nothing recorded: {events:?}"),
            }
            let done = events.iter().map(|event| {
                let digest = event["digest"].as_str().unwrap();
                assert!(digest.starts_with("sha256:"), "{event}");
                format!("{} {}", event["action"].as_str().unwrap(), event["target"].as_str().unwrap())
            });
            changed.map(|changed| (in_words(&changed.after), done.collect()))
        }

        fn events(&self) -> Vec<Value> {
            let path = self.directory.path().join("state/audit.jsonl");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }

        fn path(&self) -> std::path::PathBuf {
            self.store.local().root().join(MODEL_NAME)
        }
    }

    fn publish(repository: &Repository, version: &str) {
        let mut properties = json!({"x": {"type": "number"}});
        if version == "d" {
            properties["y"] = json!({"type": "number"});
        }
        let schema = json!({"type": "object", "properties": properties});
        let parsed = FeatureSchema::from_document(schema.clone()).unwrap();
        let manifest = Manifest {
            format: manifest::FORMAT,
            name: MODEL_NAME.into(),
            version: version.into(),
            created_at: "2026-05-17T00:00:00Z".into(),
            files: BTreeMap::new(),
            bindings: Bindings::columns_of(&parsed, str::to_owned),
            schema,
            output: Output::Probabilities { name: "p".into(), classes: 2, positive: 1 },
            changes: Vec::new(),
            threshold: 0.5,
            labels: vec!["no".into(), "yes".into()],
            tolerance: 1e-6,
            metrics: None,
            training: None,
            source: Source { kind: SourceKind::Import, producer: "test".into() },
        };
        repository.publish(manifest, &[(MODEL, version.as_bytes())]).unwrap();
    }

    /// `live a, canary b 5, shadow c, previous d, revision 7`
    fn in_words(rollout: &Rollout) -> String {
        let canaries = rollout.canaries.iter().map(|canary| {
            assert_eq!(canary.since.as_deref(), Some("2026-11-18T11:06:40Z"));
            format!("canary {} {}", canary.version, canary.percent)
        });
        let named = |what: &str, version: &Option<String>| {
            version.iter().map(|version| format!("{what} {version}")).collect::<Vec<_>>()
        };
        let words = std::iter::once(format!("live {}", rollout.live))
            .chain(canaries)
            .chain(named("shadow", &rollout.shadow))
            .chain(named("previous", &rollout.previous));
        format!("{}, revision {}", words.collect::<Vec<_>>().join(", "), rollout.revision)
    }

    fn canary(version: &str, percent: f64) -> Change {
        Change::Canary { version: version.into(), percent }
    }

    fn shadow(version: &str) -> Change {
        Change::Shadow(Some(version.into()))
    }

    fn replace(live: &str, canaries: &[(&str, f64)], shadow: Option<&str>) -> Change {
        let canaries = canaries.iter().map(|(version, percent)| ((*version).into(), *percent)).collect();
        Change::Replace { live: live.into(), canaries, shadow: shadow.map(Into::into) }
    }

    #[test]
    fn changes_lead_from_one_rollout_to_the_next() {
        let world = World::new();
        let promote = |version: &str| Change::Promote(version.into());
        // What is asked for, what the rollout is then, and what was done.
        let steps: [(Change, &str, &[&str]); 19] = [
            (canary("b", 5.0), "live a, canary b 5, revision 1", &["canary.set b"]),
            (canary("b", 25.0), "live a, canary b 25, revision 2", &["canary.set b"]),
            (canary("b", 25.0), "live a, canary b 25, revision 2", &[]),
            (shadow("c"), "live a, canary b 25, shadow c, revision 3", &["shadow.set c"]),
            (promote("b"), "live b, shadow c, previous a, revision 4", &["version.promoted b"]),
            (canary("c", 0.0), "live b, canary c 0, previous a, revision 5", &["canary.set c"]),
            (canary("a", 10.0), "live b, canary c 0, canary a 10, previous a, revision 6", &["canary.set a"]),
            (Change::Drop("a".into()), "live b, canary c 0, previous a, revision 7", &["canary.dropped a"]),
            (shadow("a"), "live b, canary c 0, shadow a, previous a, revision 8", &["shadow.set a"]),
            // The canaries go first, and the version before comes back after that.
            (
                Change::Rollback,
                "live b, previous a, revision 9",
                &["rollout.rolled_back b", "canary.dropped c", "shadow.dropped a"],
            ),
            (Change::Rollback, "live a, previous b, revision 10", &["rollout.rolled_back a"]),
            (Change::Rollback, "live b, previous a, revision 11", &["rollout.rolled_back b"]),
            (promote("b"), "live b, previous a, revision 11", &[]),
            (
                replace("a", &[("b", 1.5), ("c", 98.5)], None),
                "live a, canary b 1.5, canary c 98.5, previous b, revision 12",
                &["version.promoted a", "canary.set b", "canary.set c"],
            ),
            (
                replace("a", &[("c", 98.5)], Some("b")),
                "live a, canary c 98.5, shadow b, previous b, revision 13",
                &["shadow.set b"],
            ),
            (
                replace("a", &[("c", 98.5)], Some("b")),
                "live a, canary c 98.5, shadow b, previous b, revision 13",
                &[],
            ),
            (shadow("d"), "live a, canary c 98.5, shadow d, previous b, revision 14", &["shadow.set d"]),
            (Change::Shadow(None), "live a, canary c 98.5, previous b, revision 15", &["shadow.dropped d"]),
            // Other canaries stay when one is promoted.
            (promote("b"), "live b, canary c 98.5, previous a, revision 16", &["version.promoted b"]),
        ];
        for (change, rollout, done) in steps {
            let done = done.iter().map(|done| done.replace(' ', " churn@")).collect();
            assert_eq!(world.change(&change), Ok((rollout.into(), done)), "{change:?}");
        }
    }

    #[test]
    fn a_change_that_cannot_be_carried_out_changes_nothing() {
        let world = World::new();
        world.change(&canary("b", 60.0)).unwrap();
        let rollout = std::fs::read_to_string(world.path().join(ROLLOUT)).unwrap();
        let many: Vec<String> = (0..=super::super::MAX_CANARIES).map(|at| format!("v{at}")).collect();
        let many: Vec<(&str, f64)> = many.iter().map(|version| (version.as_str(), 1.0)).collect();
        let cases = [
            (canary("c", 40.01), "invalid_rollout"),
            (canary("c", -1.0), "invalid_rollout"),
            (canary("c", 0.001), "invalid_rollout"),
            (canary("c", f64::NAN), "invalid_rollout"),
            (canary("a", 1.0), "invalid_rollout"),
            (shadow("a"), "invalid_rollout"),
            (shadow("b"), "invalid_rollout"),
            (replace("a", &[("b", 1.0), ("b", 1.0)], None), "invalid_rollout"),
            (replace("a", &many, None), "invalid_rollout"),
            (Change::Drop("c".into()), "invalid_rollout"),
            (canary("e", 1.0), "unknown_version"),
            (shadow("e"), "unknown_version"),
            (Change::Promote("../churn/a".into()), "unknown_version"),
            (replace("e", &[], None), "unknown_version"),
        ];
        for (change, code) in cases {
            assert_eq!(world.change(&change), Err(code), "{change:?}");
        }
        let broken = world.path().join("c").join(MODEL);
        std::fs::write(&broken, "another").unwrap();
        for change in [canary("c", 1.0), shadow("c"), Change::Promote("c".into())] {
            assert_eq!(world.change(&change), Err("package_altered"), "{change:?}");
        }
        // What one gateway refuses is not made to answer through it.
        let refused = BTreeMap::from([("b".to_owned(), "it has no labels".to_owned())]);
        let serving = Serving { refused, ..Serving::default() };
        let asked = Asked { serving, ..world.ask() };
        assert_eq!(world.change_as(&Change::Promote("b".into()), asked), Err("version_refused"));
        assert_eq!(std::fs::read_to_string(world.path().join(ROLLOUT)).unwrap(), rollout);
        // Taking back needs no version to be whole.
        std::fs::write(world.path().join("b").join(MODEL), "another").unwrap();
        assert_eq!(world.change(&Change::Rollback).unwrap().0, "live a, revision 2");
        assert_eq!(world.change(&Change::Rollback), Err("no_previous_version"));
    }

    #[test]
    fn there_is_no_way_back_to_a_version_that_is_gone() {
        let world = World::new();
        world.change(&Change::Promote("b".into())).unwrap();
        std::fs::write(world.path().join("a").join(MODEL), "another").unwrap();
        assert_eq!(world.change(&Change::Rollback), Err("no_previous_version"));
        std::fs::remove_dir_all(world.path().join("a")).unwrap();
        assert_eq!(world.change(&Change::Rollback), Err("no_previous_version"));
        assert_eq!(world.change(&Change::Promote("c".into())).unwrap().0, "live c, previous b, revision 2");
    }

    #[test]
    fn nobody_overwrites_what_was_not_read() {
        let world = World::new();
        world.change(&canary("b", 5.0)).unwrap();
        let expect = |revisions: &[u64]| Asked { expected: Some(revisions.to_vec()), ..world.ask() };
        assert_eq!(world.change_as(&canary("b", 6.0), expect(&[0])), Err("rollout_changed"));
        assert_eq!(world.change_as(&canary("b", 6.0), expect(&[])), Err("rollout_changed"));
        assert!(world.change_as(&canary("b", 6.0), expect(&[0, 1])).is_ok());
    }

    #[test]
    fn what_breaks_clients_has_to_be_wanted() {
        let world = World::new();
        for change in [canary("d", 5.0), Change::Promote("d".into()), replace("b", &[("d", 5.0)], None)] {
            assert_eq!(world.change(&change), Err("breaking_change"), "{change:?}");
            let error = change.carry_out(&world.ask()).unwrap_err().to_string();
            assert!(error.contains("\"y\" is new") && error.contains("--breaking"), "{error}");
        }
        // Its answers are nobody's.
        world.change(&shadow("d")).unwrap();
        let breaking = || Asked { breaking: true, ..world.ask() };
        world.change_as(&canary("d", 5.0), breaking()).unwrap();
        // A smaller share breaks nothing that is whole.
        world.change(&canary("d", 4.0)).unwrap();
        assert_eq!(world.change(&canary("d", 6.0)), Err("breaking_change"));
        world.change_as(&Change::Promote("d".into()), breaking()).unwrap();
        // Whoever lets clients send more breaks nothing; and there is a way back in any case.
        assert_eq!(world.change(&Change::Rollback).unwrap().0, "live a, previous d, revision 5");
        assert_eq!(world.change(&Change::Rollback).unwrap().0, "live d, previous a, revision 6");
    }

    #[test]
    fn a_rollout_that_was_never_written_begins_with_what_answers() {
        let world = World::new();
        std::fs::remove_file(world.path().join(ROLLOUT)).unwrap();
        // All were published at once: the first name it is, unless a gateway serves another one.
        let serving = Serving { live: Some("c".into()), ..Serving::default() };
        let asked = Asked { serving, ..world.ask() };
        assert_eq!(world.change_as(&canary("b", 5.0), asked).unwrap().0, "live c, canary b 5, revision 1");
        std::fs::remove_file(world.path().join(ROLLOUT)).unwrap();
        assert_eq!(world.change(&Change::Promote("a".into())).unwrap().0, "live a, revision 1");
        // One whose time nobody knows might be the first.
        std::fs::remove_file(world.path().join(ROLLOUT)).unwrap();
        std::fs::write(world.path().join("a").join(package::MANIFEST), "{").unwrap();
        assert_eq!(world.change(&canary("c", 5.0)), Err("no_rollout"));
        assert_eq!(world.change(&Change::Promote("b".into())).unwrap().0, "live b, revision 1");
    }

    #[test]
    fn what_cannot_be_recorded_is_not_done() {
        let world = World::new();
        std::fs::create_dir(world.directory.path().join("state")).unwrap();
        let full = world.directory.path().join("state/audit.jsonl");
        std::os::unix::fs::symlink("/dev/full", full).unwrap();
        let refused = canary("b", 5.0).carry_out(&world.ask()).unwrap_err();
        assert_eq!((refused.code(), refused.is_refusal()), ("audit_unavailable", false));
        assert_eq!(world.store.local().read_rollout(MODEL_NAME).unwrap(), Some(Rollout::of("a")));
    }

    #[test]
    fn what_was_recorded_and_not_written_is_taken_back() {
        let world = World::new();
        // One more member, and nobody would read it.
        let long = "x".repeat(package::MAX_ROLLOUT_BYTES - 100);
        let text = json!({"live": "a", "previous": long}).to_string();
        std::fs::write(world.path().join(ROLLOUT), &text).unwrap();
        let error = canary("b", 5.0).carry_out(&world.ask()).unwrap_err();
        assert!(matches!(error, Error::Package(package::Error::TooLarge { .. })), "{error}");
        assert_eq!(std::fs::read_to_string(world.path().join(ROLLOUT)).unwrap(), text);
        let [set, failed] = world.events().try_into().unwrap();
        assert_eq!((&set["action"], &set["revision"]), (&json!("canary.set"), &json!(1)));
        assert_eq!((&failed["action"], &failed["revision"]), (&json!(NOT_CARRIED_OUT), &json!(1)));
        assert_eq!((&failed["code"], &failed["target"]), (&json!(error.code()), &json!(MODEL_NAME)));
    }

    #[test]
    fn who_is_answered_stays_so_when_a_rollout_written_by_hand_is_changed() {
        let world = World::new();
        let by_hand =
            r#"{"live":"a","canaries":[{"version":"b","percent":5},{"version":"c","percent":0.5}]}"#;
        std::fs::write(world.path().join(ROLLOUT), by_hand).unwrap();
        let slots = |version: &str, changed: &Changed| {
            let canary = changed.after.canaries.iter().find(|canary| canary.version == version);
            canary.map(|canary| canary.slots.clone())
        };
        // As every gateway completes it; the same again changes nothing.
        let same = canary("b", 5.0).carry_out(&world.ask()).unwrap();
        assert_eq!((same.deeds.len(), slots("c", &same)), (0, Some(vec![(500, 550)])));
        let more = canary("b", 25.0).carry_out(&world.ask()).unwrap();
        assert_eq!(slots("b", &more), Some(vec![(0, 500), (550, 2_550)]));
        assert_eq!(slots("c", &more), Some(vec![(500, 550)]));
        let fewer = Change::Drop("b".into()).carry_out(&world.ask()).unwrap();
        assert_eq!(slots("c", &fewer), Some(vec![(500, 550)]));
    }

    #[test]
    fn thousands_of_canaries_are_refused_before_any_slot_is_given() {
        let world = World::new();
        let many: Vec<(&str, f64)> = vec![("", 0.0); 40_000];
        let begun = std::time::Instant::now();
        assert_eq!(world.change(&replace("a", &many, None)), Err("invalid_rollout"));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[test]
    fn canaries_that_stay_take_what_the_next_live_version_takes() {
        let world = World::new();
        world.change(&canary("b", 5.0)).unwrap();
        // Clients of d may send what b does not know.
        let breaking = || Asked { breaking: true, ..world.ask() };
        world.change_as(&canary("d", 1.0), breaking()).unwrap();
        assert_eq!(world.change(&replace("d", &[("b", 5.0)], None)), Err("breaking_change"));
        world.change_as(&Change::Promote("d".into()), breaking()).unwrap();
        let error = Change::Promote("c".into()).carry_out(&world.ask()).unwrap_err();
        assert_eq!(error.code(), "breaking_change");
        // Back to the version before, nobody is held up.
        assert!(world.change(&Change::Promote("a".into())).is_ok());
    }

    #[test]
    fn a_version_that_was_never_served_is_none_to_return_to() {
        let world = World::new();
        world.change(&Change::Promote("b".into())).unwrap();
        let refused = BTreeMap::from([("b".to_owned(), "it has no labels".to_owned())]);
        let asked = Asked { serving: Serving { refused, ..Serving::default() }, ..world.ask() };
        let after = world.change_as(&Change::Promote("c".into()), asked).unwrap().0;
        assert_eq!(after, "live c, previous a, revision 2");
    }

    #[test]
    fn why_it_was_done_is_recorded_too() {
        let world = World::new();
        let facts = json!({"rule": "error_rate", "found": 0.5, "rows": 1_000});
        let asked = Asked { facts: facts.as_object().unwrap().clone(), ..world.ask() };
        canary("b", 5.0).carry_out(&asked).unwrap();
        Change::Promote("b".into()).carry_out(&world.ask()).unwrap();
        let [set, promoted] = world.events().try_into().unwrap();
        assert_eq!((&set["rule"], &set["rows"]), (&json!("error_rate"), &json!(1_000)));
        assert_eq!((&set["percent"], &set["revision"]), (&json!(5.0), &json!(1)));
        assert_eq!((&promoted["from"], &promoted["revision"]), (&json!("a"), &json!(2)));
    }

    #[test]
    fn two_who_change_a_rollout_at_once_lose_no_change() {
        const CHANGES: u64 = 100;
        let world = World::new();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            for version in ["b", "c"] {
                let (world, start) = (&world, &start);
                scope.spawn(move || {
                    start.wait();
                    for at in 1..=CHANGES {
                        canary(version, at as f64 / 100.0).carry_out(&world.ask()).unwrap();
                    }
                });
            }
        });
        let rollout = world.store.local().read_rollout(MODEL_NAME).unwrap().unwrap();
        assert_eq!(rollout.revision, 2 * CHANGES);
        let mut shares: Vec<_> =
            rollout.canaries.iter().map(|canary| (canary.version.as_str(), canary.percent)).collect();
        shares.sort_by_key(|(version, _)| *version);
        assert_eq!(shares, [("b", 1.0), ("c", 1.0)]);
        let revisions: Vec<u64> =
            world.events().iter().map(|event| event["revision"].as_u64().unwrap()).collect();
        assert_eq!(
            revisions,
            (1..=2 * CHANGES).collect::<Vec<_>>(),
            "recorded in the order in which it was done"
        );
        assert!(!left_behind(&world.path()), "nothing but the rollout, its lock and the versions is left");
    }

    /// Whether there are files that a change should have taken away.
    fn left_behind(model: &Path) -> bool {
        let names = std::fs::read_dir(model).unwrap().map(|entry| entry.unwrap().file_name());
        let known = ["a", "b", "c", "d", ROLLOUT, ".rollout.lock"];
        names.into_iter().any(|name| !known.contains(&name.to_str().unwrap()))
    }

    #[test]
    fn a_rollout_written_by_hand_gets_the_same_slots_everywhere() {
        let world = World::new();
        let read = |text: &str| {
            std::fs::write(world.path().join(ROLLOUT), text).unwrap();
            stated(world.store.local(), MODEL_NAME, &["a".into(), "b".into(), "c".into()], None)
        };
        let by_hand =
            r#"{"live":"a","canaries":[{"version":"b","percent":5},{"version":"c","percent":0.5}]}"#;
        let rollout = read(by_hand).unwrap();
        assert_eq!(rollout.canaries[0].slots, [(0, 500)]);
        assert_eq!(rollout.canaries[1].slots, [(500, 550)]);
        assert_eq!(read(by_hand).unwrap(), rollout);
        // Slots that do not come to the share, or are another's, or are none at all, are mended alike.
        let wrong = r#"{"live":"a","canaries":[{"version":"b","percent":0.02,"slots":[[9,4],[5,6],[20000,30000]]},
            {"version":"c","percent":0.02,"slots":[[5,9]]}]}"#;
        let rollout = read(wrong).unwrap();
        assert_eq!(rollout.canaries[0].slots, [(0, 1), (5, 6)]);
        assert_eq!(rollout.canaries[1].slots, [(6, 8)]);
        // As gateways wrote it that knew no canaries.
        assert_eq!(read(r#"{"live":"b"}"#).unwrap(), Rollout::of("b"));
        for broken in [
            r#"{"live":"a","canaries":[{"version":"b","percent":101}]}"#,
            r#"{"live":"a","canaries":[{"version":"a","percent":1}]}"#,
            r#"{"live":"a","shadow":"a"}"#,
            r#"{"live":"a","canary":"b"}"#,
        ] {
            assert_eq!(read(broken).unwrap_err().code(), "invalid_rollout", "{broken}");
        }
    }
}
