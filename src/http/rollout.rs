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
use scoregate_schemas::rollout::SLOTS;
use serde::{Deserialize, Serialize};
use serde_json::Map;
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
use crate::rollout;
use crate::rollout::change::{Asked, Change, Serving};
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
}

/// What a client is told.
#[derive(Serialize)]
struct Description<'r> {
    model: &'r str,
    live: &'r str,
    canaries: Vec<Canary<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<&'r str>,
    revision: u64,
    versions: Vec<RolledOut<'r>>,
}

#[derive(Serialize)]
struct Canary<'r> {
    version: &'r str,
    percent: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<&'r str>,
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
        describe(&app, model, rollout)
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
    let (parts, _) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ModelsWrite, &path).await?;
    let admitted = verified.admit(&app, None, Loss::Refuse).await?;
    let roll_back = async {
        no_parameters(&parts)?;
        accepted_format(&parts.headers, &[Format::Json])?;
        serving(&app, model)?;
        change(&app, model, &admitted, &parts, Change::Rollback, false).await
    };
    Ok(admitted.answer(roll_back.await))
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
    let Wanted { live, canaries, shadow } = serde_json::from_slice(&decoded).map_err(|_| Error::Rollout)?;
    // Names are repeated in what is refused.
    let names = std::iter::once(&live).chain(canaries.iter().map(|share| &share.version)).chain(&shadow);
    for name in names {
        check_name("version", name).map_err(|_| Error::Rollout)?;
    }
    let canaries = canaries.into_iter().map(|share| (share.version, share.percent)).collect();
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
    describe(app, model, &changed.after)
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

fn describe(app: &App, model: &str, rollout: &Rollout) -> Result<Response, Error> {
    let snapshot = models(app)?;
    let body = serde_json::to_vec(&Description::new(model, rollout, snapshot.models.get(model)))
        .expect("a rollout serialises");
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
        let taken: u16 =
            rollout.canaries.iter().flat_map(|canary| &canary.slots).map(|(first, end)| end - first).sum();
        let rest = f64::from(SLOTS - taken) * 100.0 / f64::from(SLOTS);
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
        let canaries = rollout.canaries.iter().map(|canary| Canary {
            version: &canary.version,
            percent: canary.percent,
            since: canary.since.as_deref(),
        });
        Self {
            model,
            live: &rollout.live,
            canaries: canaries.collect(),
            shadow: rollout.shadow.as_deref(),
            previous: rollout.previous.as_deref(),
            revision: rollout.revision,
            versions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
