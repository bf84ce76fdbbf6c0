//! `GET /v1/models` and below it, and `GET /v1/metadata`: which models there are, and what is known of each version.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use scoregate_model::explain::plot::importance_svg;
use serde::Serialize;

use super::admission::{Verified, verify};
use super::body::{SVG, accepted};
use super::description::{ModelDescription, Models, VersionDescription, VersionSummary, Versions};
use super::explain::svg;
use super::predict::{ModelPath, no_parameters, parameter, verify_for_model};
use super::problem::Error;
use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::limiter::Loss;
use crate::registry::{Model, Snapshot};
use crate::scoring;

/// Every model that the caller may use, each version in few words.
pub(super) async fn models(State(app): State<Arc<App>>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let verified = verify(&app, &parts, Scope::ModelsRead, None).await?;
    let answer = |caller: &Caller, snapshot: &Snapshot| {
        let default = &app.settings.models.default;
        let allowed = snapshot.models.iter().filter(|(name, _)| caller.may_use(name));
        let models =
            allowed.map(|(name, model)| ModelDescription::new(name, model, default, VersionSummary::new));
        Ok(json(&Models { models: models.collect() }))
    };
    read(&app, verified, &parts, JSON, answer).await
}

/// One model, with all that is known of each version.
pub(super) async fn model(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let answer = |name: &str, model: &Model| {
        let default = &app.settings.models.default;
        Ok(json(&ModelDescription::new(name, model, default, |name, version, found| {
            VersionDescription::new(name, version, found, &app.cache)
        })))
    };
    read_model(&app, &path, request, answer).await
}

/// All that is known of each version of a model.
pub(super) async fn versions(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let answer = |name: &str, model: &Model| {
        let described = model
            .versions
            .iter()
            .map(|(version, found)| VersionDescription::new(name, version, found, &app.cache));
        Ok(json(&Versions { versions: described.collect() }))
    };
    read_model(&app, &path, request, answer).await
}

/// All that is known of one version.
pub(super) async fn version(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let answer = |name: &str, model: &Model| {
        let wanted = parameter(&path, "version")?;
        let found = wanted.and_then(|version| model.versions.get_key_value(version));
        let (version, found) = found.ok_or(Error::UnknownVersion)?;
        Ok(json(&VersionDescription::new(name, version, found, &app.cache)))
    };
    read_model(&app, &path, request, answer).await
}

/// All that is known of the default model's live version.
pub(super) async fn metadata(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let answer = |name: &str, model: &Model| {
        let live = model.live().and_then(|live| model.versions.get_key_value(&live.manifest.version));
        let (version, found) = live.ok_or(scoring::Error::UnknownModel)?;
        Ok(json(&VersionDescription::new(name, version, found, &app.cache)))
    };
    read_model(&app, &path, request, answer).await
}

/// A picture of how important the features of a model's live version are.
pub(super) async fn importance(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let answer = |name: &str, model: &Model| {
        let live = model.live().ok_or(scoring::Error::UnknownModel)?;
        let importance = live.importance.as_ref().ok_or(Error::NoImportance)?;
        Ok(svg(importance_svg(&format!("{name} {}", live.manifest.version), importance)))
    };
    read_model_as(&app, &path, request, SVG, answer).await
}

/// What routes about one model have in common: the caller may use it, and it is there.
async fn read_model(
    app: &App,
    path: &ModelPath,
    request: Request,
    answer: impl FnOnce(&str, &Model) -> Result<Response, Error>,
) -> Result<Response, Error> {
    read_model_as(app, path, request, JSON, answer).await
}

/// The same, with an answer of this type.
async fn read_model_as(
    app: &App,
    path: &ModelPath,
    request: Request,
    media_type: &'static str,
    answer: impl FnOnce(&str, &Model) -> Result<Response, Error>,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (verified, model) = verify_for_model(app, &parts, Scope::ModelsRead, path).await?;
    let answer = |_: &Caller, snapshot: &Snapshot| {
        let (name, model) = snapshot.models.get_key_value(model).ok_or(scoring::Error::UnknownModel)?;
        answer(name, model)
    };
    read(app, verified, &parts, media_type, answer).await
}

/// What all of them have in common: the caller's quota, and the models as they are at this moment.
async fn read(
    app: &App,
    verified: Verified,
    parts: &Parts,
    media_type: &'static str,
    answer: impl FnOnce(&Caller, &Snapshot) -> Result<Response, Error>,
) -> Result<Response, Error> {
    let admitted = verified.admit(app, None, Loss::CountHere).await?;
    let read = || {
        no_parameters(parts)?;
        accepted(&parts.headers, &[media_type]).ok_or(Error::NotAcceptable(media_type))?;
        let snapshot = app.registry().ok_or(scoring::Error::NotReady)?.models();
        answer(admitted.caller(), &snapshot)
    };
    Ok(admitted.answer(read()))
}

pub(super) const JSON: &str = "application/json";

fn json(document: &impl Serialize) -> Response {
    let body = serde_json::to_vec(document).expect("a description serialises");
    ([(CONTENT_TYPE, HeaderValue::from_static(JSON))], body).into_response()
}
