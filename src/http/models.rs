//! `GET /v1/metadata`: what the default model is, what it takes and how good it is.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;

use super::admission::admit;
use super::body::{Format, accepted_format};
use super::predict::{ModelPath, no_parameters, version_for};
use super::problem::Error;
use super::wire::Metadata;
use crate::app::App;
use crate::auth::Scope;

pub(super) async fn metadata(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let admitted = admit(&app, &parts, Scope::ModelsRead)?;
    let version = version_for(&app, &path, &admitted)?;
    no_parameters(&parts)?;
    accepted_format(&parts.headers, &[Format::Json])?;
    let body = serde_json::to_vec(&Metadata::of(version)).expect("metadata serialises");
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}
