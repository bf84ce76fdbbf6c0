//! Which version of a model answers whom, durable in `rollout.json` beside its versions: [`change`] changes it, [`slots`] deals entities
//! out, [`shadow`] compares versions beside the answers, and [`guard`] takes back canaries that do worse.

pub mod change;
pub mod guard;
pub mod shadow;
pub mod slots;

use scoregate_model::package::{Error as PackageError, Repository, read_manifest};
use scoregate_schemas::Rollout;
pub use scoregate_schemas::compatibility::Difference;
use scoregate_schemas::rollout::Canary;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit;
use crate::repository::Candidate;

/// The most canaries of a model.
pub const MAX_CANARIES: usize = 8;

/// Why a model has no rollout, or cannot be given one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rollout or a version cannot be read or written.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// Nothing of the model is published.
    #[error("no version of model {model} is published")]
    NoModel {
        /// The model.
        model: String,
    },
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
    /// There is no rollout, and which version was published first cannot be told.
    #[error(
        "model {model} has no rollout, and version {version} is not all there, or does not say when it was published; choose one \
         with `scoregate models promote {model}@VERSION`"
    )]
    Unknown {
        /// The model.
        model: String,
        /// The version whose manifest cannot be read.
        version: String,
    },
    /// Which version answers whom cannot be told.
    #[error("which version answers whom cannot be told: {reason}")]
    Unclear {
        /// Why, in a sentence for clients.
        reason: String,
    },
    /// The shares of canaries are none, or too much.
    #[error(transparent)]
    Shares(#[from] slots::Error),
    /// A version would have two tasks.
    #[error("found version {version} as {one} and as {other}, expected one of them")]
    Twice {
        /// The version.
        version: String,
        /// Its first task.
        one: &'static str,
        /// Its second task.
        other: &'static str,
    },
    /// There are more canaries than a model may have.
    #[error("found {found} canaries, expected at most {MAX_CANARIES}; promote or drop some first")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// There is nothing to take back.
    #[error("version {version} is no canary; `scoregate models list` shows which versions are")]
    NoCanary {
        /// The version.
        version: String,
    },
    /// There is no version to return to.
    #[error("there are no canaries to take back, and no version to return to: {reason}")]
    NoPrevious {
        /// Why, in a few words.
        reason: String,
    },
    /// A rollback would take back something else than was asked for.
    #[error(
        "a rollback would not take back version {version}, and nothing was done: {live} is live, {}; read the rollout again, and say \
         what is to be taken back now",
        canaries_in_words(.canaries)
    )]
    NotTaken {
        /// What was to be taken back.
        version: String,
        /// The live version.
        live: String,
        /// The canaries.
        canaries: Vec<String>,
    },
    /// Somebody else has changed the rollout.
    #[error("the rollout is at revision {revision} by now; read it again, and change that")]
    Changed {
        /// The revision that it has.
        revision: u64,
    },
    /// The gateway refuses to serve the version.
    #[error("version {version} is refused: {reason}")]
    Refused {
        /// The version.
        version: String,
        /// Why, in a sentence.
        reason: String,
    },
    /// The version refuses rows that the live one takes, or answers otherwise.
    #[error(
        "version {version} breaks what clients of {live} rely on: {}; to go on all the same say so, by --breaking or ?breaking=true",
        .differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Breaking {
        /// The version.
        version: String,
        /// The live one.
        live: String,
        /// In which ways.
        differences: Vec<Difference>,
    },
    /// The change cannot be recorded.
    #[error(transparent)]
    Audit(audit::Error),
}

impl Error {
    /// A stable name for what is wrong.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Package(error) => error.code(),
            Self::NoModel { .. } => "unknown_model",
            Self::NoVersion { .. } => "unknown_version",
            Self::Unknown { .. } | Self::Unclear { .. } => "no_rollout",
            Self::Shares(_) | Self::Twice { .. } | Self::TooMany { .. } | Self::NoCanary { .. } => {
                "invalid_rollout"
            }
            Self::NoPrevious { .. } => "no_previous_version",
            Self::Changed { .. } | Self::NotTaken { .. } => "rollout_changed",
            Self::Refused { .. } => "version_refused",
            Self::Breaking { .. } => "breaking_change",
            Self::Audit(_) => "audit_unavailable",
        }
    }

    /// Whether it is the request or the version that is at fault, and not the machine.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Package(error) => !matches!(error, PackageError::Io { .. }),
            Self::Audit(_) => false,
            _ => true,
        }
    }

    /// A sentence for clients, without paths.
    pub fn reason(&self) -> String {
        match self {
            Self::Package(error) => error.reason(),
            Self::Shares(_) => {
                "expected shares from 0 to 100 percent with at most two decimals, and at most 100 together"
                    .into()
            }
            Self::Audit(_) => "the audit log cannot be written".into(),
            _ => self.to_string(),
        }
    }
}

fn canaries_in_words(canaries: &[String]) -> String {
    match canaries {
        [] => "and there are no canaries".into(),
        canaries => format!("and a rollback would take back the canaries: {}", canaries.join(", ")),
    }
}

/// The rollout of `model`, if it can be followed, with the slots of its canaries. Versions that were copied into a repository without
/// one: the one that is `serving` already answers everybody, else the one that was published first.
///
/// # Errors
/// [`Error`] if the rollout cannot be read or never be followed, nothing tells, or the live version is not published.
pub fn choose(
    repository: &Repository,
    model: &str,
    candidates: &[Candidate],
    serving: Option<&str>,
) -> Result<Rollout, Error> {
    let rollout = read(repository, model, candidates, serving)?;
    check_published(model, &rollout.live, names(candidates))?;
    Ok(rollout)
}

fn read(
    repository: &Repository,
    model: &str,
    candidates: &[Candidate],
    serving: Option<&str>,
) -> Result<Rollout, Error> {
    let is_there = |name: &&str| names(candidates).any(|version| version == *name);
    match repository.read_rollout(model)? {
        Some(rollout) => complete(rollout),
        None => match serving.filter(is_there) {
            // A copy with an earlier time promotes nothing.
            Some(serving) => Ok(Rollout::of(serving)),
            None => first_published(model, candidates).map(Rollout::of),
        },
    }
}

/// Checks that no version has two tasks, and that there are not too many.
fn check(rollout: &Rollout) -> Result<(), Error> {
    if rollout.canaries.len() > MAX_CANARIES {
        return Err(Error::TooMany { found: rollout.canaries.len() });
    }
    let canaries = rollout.canaries.iter().map(|canary| (&canary.version, "a canary"));
    let shadow = rollout.shadow.iter().map(|shadow| (shadow, "the shadow"));
    let mut tasks: Vec<(&String, &'static str)> = vec![(&rollout.live, "the live version")];
    for (version, other) in canaries.chain(shadow) {
        if let Some((_, one)) = tasks.iter().find(|(known, _)| *known == version) {
            return Err(Error::Twice { version: version.clone(), one, other });
        }
        tasks.push((version, other));
    }
    Ok(())
}

/// A rollout as it is followed. One that was written by hand may say nothing of slots, or what does not fit the shares: every gateway
/// gives the same ones.
fn complete(mut rollout: Rollout) -> Result<Rollout, Error> {
    check(&rollout)?;
    let before = rollout.canaries.clone();
    give_slots(&mut rollout.canaries, &before)?;
    Ok(rollout)
}

/// Gives canaries their slots: those that they had `before`, as far as that fits their shares.
fn give_slots(canaries: &mut [Canary], before: &[Canary]) -> Result<(), slots::Error> {
    let shares = canaries.iter().map(|canary| (canary.version.clone(), canary.percent));
    let assigned = slots::assign(before, &shares.collect::<Vec<_>>())?;
    for (canary, assigned) in canaries.iter_mut().zip(assigned) {
        canary.slots = assigned.slots;
    }
    Ok(())
}

fn first_published(model: &str, candidates: &[Candidate]) -> Result<String, Error> {
    // One that cannot be read might be the first, so that no other may take its place.
    let dated = candidates.iter().map(|Candidate { version, created_at }| {
        let at = created_at.as_ref().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let unknown = || Error::Unknown { model: model.into(), version: version.clone() };
        Ok((at.ok_or_else(unknown)?, version))
    });
    let dated = dated.collect::<Result<Vec<_>, Error>>()?;
    Ok(dated.into_iter().min().map_or_else(String::new, |(_, version)| version.clone()))
}

fn names(candidates: &[Candidate]) -> impl Iterator<Item = &str> + Clone {
    candidates.iter().map(|candidate| candidate.version.as_str())
}

fn check_published<'v>(
    model: &str,
    version: &str,
    mut versions: impl Iterator<Item = &'v str> + Clone,
) -> Result<(), Error> {
    let all = versions.clone();
    if versions.any(|found| found == version) {
        return Ok(());
    }
    let versions = all.map(Into::into).collect();
    Err(Error::NoVersion { model: model.into(), version: version.into(), versions })
}

/// The live version of `model`, for whoever serves nothing.
///
/// # Errors
/// As [`current`].
pub fn live(repository: &Repository, model: &str, versions: &[String]) -> Result<String, Error> {
    current(repository, model, versions).map(|rollout| rollout.live)
}

/// The rollout of `model`, for whoever serves nothing.
///
/// # Errors
/// As [`choose`]; where nothing tells, why the manifest in question cannot be read.
pub fn current(repository: &Repository, model: &str, versions: &[String]) -> Result<Rollout, Error> {
    let candidates: Vec<_> =
        versions.iter().map(|version| Candidate::read(repository, model, version)).collect();
    let rollout = read(repository, model, &candidates, None).map_err(|error| match &error {
        Error::Unknown { version, .. } => {
            read_manifest(&repository.directory(model, version)).err().map_or(error, Error::Package)
        }
        _ => error,
    })?;
    check_published(model, &rollout.live, names(&candidates))?;
    Ok(rollout)
}
