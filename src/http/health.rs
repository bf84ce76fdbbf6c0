//! `GET /health`, `/health/live`, `/health/ready`: open to all, and about this process alone.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;

use super::problem::Error;
use crate::app::App;
use crate::scoring;

/// The process answers.
pub(super) async fn live() -> Response {
    ok()
}

/// Models are loaded and warm, and the gateway is not about to stop.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response, Error> {
    if app.is_ready() { Ok(ok()) } else { Err(scoring::Error::NotReady.into()) }
}

fn ok() -> Response {
    ([(CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#).into_response()
}
