//! `GET /v1/models` and below it, and `GET /v1/metadata`: which models there are, and what is known of each version.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use serde::Serialize;

use super::admission::admit;
use super::body::{Format, accepted_format};
use super::description::{ModelDescription, Models, VersionDescription, VersionSummary, Versions};
use super::predict::{ModelPath, admit_to_model, no_parameters, parameter};
use super::problem::Error;
use crate::app::App;
use crate::auth::Scope;
use crate::registry::{Model, Snapshot};
use crate::scoring;

/// Every model that the caller may use, each version in few words.
pub(super) async fn models(State(app): State<Arc<App>>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let admitted = admit(&app, &parts, Scope::ModelsRead, None).await?;
    let snapshot = read(&app, &parts)?;
    let default = &app.settings.models.default;
    let allowed = snapshot.models.iter().filter(|(name, _)| admitted.caller().may_use(name));
    let models =
        allowed.map(|(name, model)| ModelDescription::new(name, model, default, VersionSummary::new));
    Ok(json(&Models { models: models.collect() }))
}

/// One model, with all that is known of each version.
pub(super) async fn model(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (_, name) = admit_to_model(&app, &parts, Scope::ModelsRead, &path).await?;
    let snapshot = read(&app, &parts)?;
    let (name, model) = find(&snapshot, name)?;
    let default = &app.settings.models.default;
    Ok(json(&ModelDescription::new(name, model, default, VersionDescription::new)))
}

/// All that is known of each version of a model.
pub(super) async fn versions(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (_, name) = admit_to_model(&app, &parts, Scope::ModelsRead, &path).await?;
    let snapshot = read(&app, &parts)?;
    let (name, model) = find(&snapshot, name)?;
    let described =
        model.versions.iter().map(|(version, found)| VersionDescription::new(name, version, found));
    Ok(json(&Versions { versions: described.collect() }))
}

/// All that is known of one version.
pub(super) async fn version(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (_, name) = admit_to_model(&app, &parts, Scope::ModelsRead, &path).await?;
    let snapshot = read(&app, &parts)?;
    let (name, model) = find(&snapshot, name)?;
    let wanted = parameter(&path, "version")?;
    let found = wanted.and_then(|version| model.versions.get_key_value(version));
    let (version, found) = found.ok_or(Error::UnknownVersion)?;
    Ok(json(&VersionDescription::new(name, version, found)))
}

/// All that is known of the default model's live version.
pub(super) async fn metadata(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (_, name) = admit_to_model(&app, &parts, Scope::ModelsRead, &path).await?;
    let snapshot = read(&app, &parts)?;
    let (name, model) = find(&snapshot, name)?;
    let live = model.live.as_ref().and_then(|live| model.versions.get_key_value(&live.manifest.version));
    let (version, found) = live.ok_or(scoring::Error::UnknownModel)?;
    Ok(json(&VersionDescription::new(name, version, found)))
}

/// What each of these routes goes on with: the models as they are at this moment.
fn read(app: &App, parts: &Parts) -> Result<Arc<Snapshot>, Error> {
    no_parameters(parts)?;
    accepted_format(&parts.headers, &[Format::Json])?;
    Ok(app.registry().ok_or(scoring::Error::NotReady)?.models())
}

fn find<'s>(snapshot: &'s Snapshot, model: &str) -> Result<(&'s str, &'s Model), Error> {
    let (name, model) = snapshot.models.get_key_value(model).ok_or(scoring::Error::UnknownModel)?;
    Ok((name, model))
}

fn json(document: &impl Serialize) -> Response {
    let body = serde_json::to_vec(document).expect("a description serialises");
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
