//! `GET` and `PUT /v1/models/{model}/rollout`, and `POST /v1/models/{model}/rollback`: which versions of a model answer whom. What
//! changes it is on the admin listener alone.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::HeaderMap;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH};
use hyper::http::request::Parts;
use scoregate_model::package::check_name;
use scoregate_schemas::Rollout;
use scoregate_schemas::rollout::{Author, Canary, GuardMode, SLOTS};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::admission::Admitted;
use super::body::{Format, accepted_format, content_format, receive};
use super::description::Refusal;
use super::models::JSON;
use super::predict::{ModelPath, no_parameters, verify_for_model};
use super::problem::Error;
use crate::app::App;
use crate::audit::Actor;
use crate::auth::Scope;
use crate::limiter::Loss;
use crate::registry::{Model, Role, Snapshot, State as Become};
use crate::rollout::change::{Action, Asked, Change, Changed, Serving};
use crate::rollout::guard::Judged;
use crate::rollout::{self, slots};
use crate::scoring;

/// How long an answer waits until this gateway follows what was changed.
const FOLLOWED: Duration = Duration::from_secs(1);
/// How long a version is waited for that is published and not mirrored here yet.
const FETCHED: Duration = Duration::from_secs(5);

/// What a client asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    live: String,
    #[serde(default)]
    canaries: Vec<Share>,
    #[serde(default)]
    shadow: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    version: String,
    percent: f64,
    #[serde(default)]
    guard: Option<GuardMode>,
}

/// What a client wants to be taken back.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TakenBack {
    version: String,
}

/// What a body that says which versions answer has to be.
const ROLLOUT: &str = "{\"live\":\"VERSION\",\"canaries\":[{\"version\":\"VERSION\",\"percent\":5,\"guard\":\"off\"}],\
                       \"shadow\":\"VERSION\"} with names of published versions, of which only \"live\" has to be there, and of a \
                       canary its version and share";
/// What a body has to be that says what is to be taken back.
const TAKEN_BACK: &str =
    "no body, or {\"version\":\"VERSION\"} with the name of the version that is to be taken back";

/// What a client is told.
#[derive(Serialize)]
struct Description<'r> {
    model: &'r str,
    live: &'r str,
    canaries: Vec<OnTrial<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    taken_back: Option<&'r str>,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_at: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_by: Option<&'r Author>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_for: Option<&'r Map<String, Value>>,
    versions: Vec<RolledOut<'r>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'r [String],
}

#[derive(Serialize)]
struct OnTrial<'r> {
    version: &'r str,
    percent: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guard: Option<GuardMode>,
}

/// A version that has a part in it, and what has become of that here.
#[derive(Serialize)]
struct RolledOut<'r> {
    model_version: &'r str,
    role: &'static str,
    percent: f64,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal<'r>>,
}

/// Which versions of a model answer whom.
pub(super) async fn get_rollout(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ModelsRead, &path).await?;
    let admitted = verified.admit(&app, None, Loss::CountHere).await?;
    let read = async {
        no_parameters(&parts)?;
        accepted_format(&parts.headers, &[Format::Json])?;
        // As it is followed here, which takes no look at a disk.
        let snapshot = models(&app)?;
        let known = snapshot.models.get(model).ok_or(scoring::Error::UnknownModel)?;
        let rollout = known.rollout.as_ref().ok_or_else(|| unclear(known))?;
        describe(&app, model, rollout, &[])
    };
    Ok(admitted.answer(read.await))
}

/// Says which versions of a model answer whom; this gateway and every other on the repository follow within two seconds.
pub(super) async fn put_rollout(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ModelsWrite, &path).await?;
    let admitted = verified.admit(&app, None, Loss::Refuse).await?;
    Ok(admitted.answer(put(&app, model, &admitted, &parts, body).await))
}

/// Takes back what was rolled out last.
pub(super) async fn roll_back(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ModelsWrite, &path).await?;
    let admitted = verified.admit(&app, None, Loss::Refuse).await?;
    Ok(admitted.answer(take_back(&app, model, &admitted, &parts, body).await))
}

async fn take_back(
    app: &Arc<App>,
    model: &str,
    admitted: &Admitted,
    parts: &Parts,
    body: Body,
) -> Result<Response, Error> {
    no_parameters(parts)?;
    accepted_format(&parts.headers, &[Format::Json])?;
    serving(app, model)?;
    let received = receive(app, parts, body).await?;
    let decoded = received.decode(app.settings.server.max_body_bytes)?;
    let mut version = None;
    if !decoded.is_empty() {
        content_format(&parts.headers, &[Format::Json])?;
        let wanted: TakenBack = serde_json::from_slice(&decoded).map_err(|_| Error::Rollout(TAKEN_BACK))?;
        check_name("version", &wanted.version).map_err(|_| Error::Rollout(TAKEN_BACK))?;
        version = Some(wanted.version);
    }
    change(app, model, admitted, parts, Change::Rollback(version), false).await
}

async fn put(
    app: &Arc<App>,
    model: &str,
    admitted: &Admitted,
    parts: &Parts,
    body: Body,
) -> Result<Response, Error> {
    let breaking = may_break(parts)?;
    content_format(&parts.headers, &[Format::Json])?;
    accepted_format(&parts.headers, &[Format::Json])?;
    // A model that nobody knows needs no body to be refused.
    serving(app, model)?;
    let received = receive(app, parts, body).await?;
    let decoded = received.decode(app.settings.server.max_body_bytes)?;
    let Wanted { live, canaries, shadow } =
        serde_json::from_slice(&decoded).map_err(|_| Error::Rollout(ROLLOUT))?;
    // Names are repeated in what is refused.
    let names = std::iter::once(&live).chain(canaries.iter().map(|share| &share.version)).chain(&shadow);
    for name in names {
        check_name("version", name).map_err(|_| Error::Rollout(ROLLOUT))?;
    }
    let canary = |Share { version, percent, guard }| Canary { guard, ..Canary::of(version, percent) };
    let canaries = canaries.into_iter().map(canary).collect();
    change(app, model, admitted, parts, Change::Replace { live, canaries, shadow }, breaking).await
}

async fn change(
    app: &Arc<App>,
    model: &str,
    admitted: &Admitted,
    parts: &Parts,
    change: Change,
    breaking: bool,
) -> Result<Response, Error> {
    let (expected, serving) = (expected(&parts.headers), serving(app, model)?);
    let verdicts = app.shadows.verdicts.of(|name| name == model);
    let actor = Actor::caller(admitted.caller().id());
    let work = {
        let (app, model) = (Arc::clone(app), model.to_owned());
        move || {
            let now = SystemTime::now();
            let asked = Asked {
                expected,
                breaking,
                serving,
                patience: Some(FETCHED),
                ..Asked::new(&app.store, &app.audit, &model, actor.clone(), now)
            };
            let changed = change.carry_out(&asked)?;
            app.webhooks.tell(&model, &actor, &changed, &Map::new(), now);
            if let Some(registry) = app.registry() {
                registry.wake();
            }
            Ok::<_, rollout::Error>(changed)
        }
    };
    // Digests are checked and files synced, which is not for a thread that serves connections; nor does a rollback wait behind batches.
    let work = tokio::time::timeout(app.engine.answer_timeout(), app.changing.run(work));
    let changed = work.await.map_err(|_| scoring::Error::Deadline)???;
    if let Some(registry) = app.registry() {
        // What is answered after this is answered by it, unless looking at the repository takes long.
        let revision = changed.after.revision;
        let is_followed = |snapshot: &Snapshot| {
            let rollout = snapshot.models.get(model).and_then(|known| known.rollout.as_ref());
            rollout.is_none_or(|rollout| rollout.revision >= revision)
        };
        let _ = tokio::time::timeout(FOLLOWED, registry.until(is_followed)).await;
    }
    let warnings: Vec<String> = changed.warnings.iter().cloned().chain(doubts(&verdicts, &changed)).collect();
    describe(app, model, &changed.after, &warnings)
}

/// What speaks against versions that were given more all the same, by what this gateway has seen of them.
fn doubts<'a>(verdicts: &'a [Judged], changed: &'a Changed) -> impl Iterator<Item = String> + 'a {
    let is_given_more = |judged: &Judged| {
        changed.deeds.iter().filter(|deed| deed.version == judged.version).any(|deed| match deed.action {
            Action::Promoted => true,
            Action::CanarySet => deed.percent > Some(judged.percent),
            _ => false,
        })
    };
    verdicts.iter().filter(move |judged| is_given_more(judged)).filter_map(Judged::doubt)
}

/// What is known here of a model's versions.
fn serving(app: &App, model: &str) -> Result<Serving, Error> {
    let snapshot = models(app)?;
    let known = snapshot.models.get(model).ok_or(scoring::Error::UnknownModel)?;
    let refused = known.versions.iter().filter_map(|(name, published)| match &published.state {
        Become::Refused(refused) => Some((name.clone(), refused.reason.clone())),
        Become::Checking | Become::Accepted | Become::Loaded(..) => None,
    });
    let live = known.live().map(|live| live.manifest.version.clone());
    Ok(Serving { live, refused: refused.collect() })
}

fn models(app: &App) -> Result<Arc<Snapshot>, Error> {
    Ok(app.registry().ok_or(scoring::Error::NotReady)?.models())
}

/// Why nothing can be told of a model's rollout.
fn unclear(known: &Model) -> Error {
    let reason = known.refusal.as_ref().map_or_else(String::new, |refused| refused.reason.clone());
    rollout::Error::Unclear { reason }.into()
}

/// Whether a version may answer that breaks what clients rely on.
fn may_break(parts: &Parts) -> Result<bool, Error> {
    let expected = "breaking=true or breaking=false, at most once";
    let mut found = None;
    for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
        if name != "breaking" {
            return Err(Error::Parameter(format!("found a parameter of another name, expected {expected}")));
        }
        let value = match value.as_ref() {
            "true" => true,
            "false" => false,
            _ => {
                let text = format!("found another value of breaking, expected {expected}");
                return Err(Error::Parameter(text));
            }
        };
        if found.replace(value).is_some() {
            return Err(Error::Parameter(format!("found breaking twice, expected {expected}")));
        }
    }
    Ok(found.unwrap_or(false))
}

/// The revisions of which the rollout has to have one, where the client says so (RFC 9110, section 13.1.1). What is no revision's tag
/// is none that the rollout has.
fn expected(headers: &HeaderMap) -> Option<Vec<u64>> {
    let lines: Vec<&HeaderValue> = headers.get_all(IF_MATCH).iter().collect();
    let tags: Vec<&str> =
        lines.iter().flat_map(|line| line.to_str().unwrap_or_default().split(',')).map(str::trim).collect();
    if lines.is_empty() || tags.contains(&"*") {
        return None;
    }
    let revision = |tag: &&str| {
        let revision: u64 = tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()?;
        (format!("\"{revision}\"") == **tag).then_some(revision)
    };
    Some(tags.iter().filter_map(revision).collect())
}

fn describe(app: &App, model: &str, rollout: &Rollout, warnings: &[String]) -> Result<Response, Error> {
    let snapshot = models(app)?;
    let description = Description::new(model, rollout, snapshot.models.get(model));
    let body = serde_json::to_vec(&Description { warnings, ..description }).expect("a rollout serialises");
    let tag = HeaderValue::try_from(format!("\"{}\"", rollout.revision)).expect("a number is visible ASCII");
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(JSON)),
        (ETAG, tag),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, body).into_response())
}

impl<'r> Description<'r> {
    fn new(model: &'r str, rollout: &'r Rollout, known: Option<&'r Model>) -> Self {
        let rolled_out = |version: &'r str, role: Role, percent: f64| {
            let published = known.and_then(|known| known.versions.get(version));
            RolledOut {
                model_version: version,
                role: role.as_str(),
                percent,
                state: published.map_or("missing", |published| published.state.as_str()),
                refusal: published.and_then(|published| Refusal::of_state(&published.state)),
            }
        };
        let taken: u16 = rollout.canaries.iter().map(|canary| slots::len(&canary.slots)).sum();
        let rest = slots::percent(SLOTS - taken);
        let mut versions = vec![rolled_out(&rollout.live, Role::Live, rest)];
        for canary in &rollout.canaries {
            versions.push(rolled_out(&canary.version, Role::Canary, canary.percent));
        }
        let others = [(&rollout.shadow, Role::Shadow), (&rollout.previous, Role::Previous)];
        for (version, role) in others {
            let version = version.as_deref();
            // A version is told of once.
            let version =
                version.filter(|version| versions.iter().all(|known| known.model_version != *version));
            versions.extend(version.map(|version| rolled_out(version, role, 0.0)));
        }
        let canaries = rollout.canaries.iter().map(|canary| OnTrial {
            version: &canary.version,
            percent: canary.percent,
            since: canary.since.as_deref(),
            guard: canary.guard,
        });
        Self {
            model,
            live: &rollout.live,
            canaries: canaries.collect(),
            shadow: rollout.shadow.as_deref(),
            previous: rollout.previous.as_deref(),
            taken_back: rollout.taken_back.as_deref(),
            revision: rollout.revision,
            changed_at: rollout.changed_at.as_deref(),
            changed_by: rollout.changed_by.as_ref(),
            changed_for: rollout.changed_for.as_ref(),
            versions,
            warnings: &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rollout::change::Deed;

    #[test]
    fn whoever_gives_more_to_what_is_doubted_is_told() {
        let judged = |verdict: &str| {
            let facts =
                json!({"verdict": verdict, "rule": "psi", "found": 0.25, "limit": 0.2, "rows": 1_000});
            let facts = facts.as_object().unwrap().clone();
            Judged { model: "m".into(), version: "b".into(), percent: 25.0, facts, error: None }
        };
        let warned = |judged: Judged, action, version: &str, percent| {
            let deed =
                Deed { action, version: version.into(), digest: None, percent, guard: None, from: None };
            let (after, warnings) = (Rollout::of("a"), Vec::new());
            let changed = Changed { before: None, after, deeds: vec![deed], warnings };
            doubts(&[judged], &changed).collect::<Vec<_>>()
        };
        for (action, version, percent, expected) in [
            (Action::Promoted, "b", None, 1),
            (Action::Promoted, "c", None, 0),
            (Action::CanarySet, "b", Some(26.0), 1),
            (Action::CanarySet, "b", Some(25.0), 0),
            (Action::CanarySet, "c", Some(26.0), 0),
            (Action::CanaryDropped, "b", None, 0),
        ] {
            let found = warned(judged("bad"), action, version, percent);
            assert_eq!(found.len(), expected, "{action:?} {version} {percent:?}: {found:?}");
        }
        let found = warned(judged("doubtful"), Action::Promoted, "b", None);
        assert_eq!(
            found,
            [
                "version b is doubtful by what it has answered at this gateway: psi 0.2500, where 0.2000 may be"
            ]
        );
        let mut good = judged("good");
        good.facts.retain(|name, _| name == "verdict" || name == "rows");
        assert_eq!(warned(good, Action::Promoted, "b", None), Vec::<String>::new());
    }

    #[test]
    fn a_rollout_may_be_expected_to_have_one_of_some_revisions() {
        let cases: [(&[&str], Option<&[u64]>); 8] = [
            (&[], None),
            (&["*"], None),
            (&["\"7\""], Some(&[7])),
            (&["\"7\", \"8\"", "\"9\""], Some(&[7, 8, 9])),
            // A weak tag is no match, nor is what was never one.
            (&["W/\"7\""], Some(&[])),
            (&["7"], Some(&[])),
            (&["\"seven\""], Some(&[])),
            (&["\"+7\"", "\"007\""], Some(&[])),
        ];
        for (lines, wanted) in cases {
            let lines = lines.iter().map(|line| (IF_MATCH, HeaderValue::from_static(line)));
            assert_eq!(expected(&lines.collect()).as_deref(), wanted);
        }
    }
}
