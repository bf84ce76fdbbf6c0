//! `GET /metrics` on the admin listener: what was counted, for Prometheus.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{ACCEPT, CONTENT_TYPE};

use super::predict::no_parameters;
use super::problem::Error;
use crate::app::App;

/// OpenMetrics for whoever asks for it, else the older type, whose readers understand it too.
pub(super) async fn metrics(State(app): State<Arc<App>>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    no_parameters(&parts)?;
    let accepts = parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_open = accepts.flat_map(|value| value.split(',')).any(|kind| kind.contains("openmetrics-text"));
    let content_type = match is_open {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    };
    Ok(([(CONTENT_TYPE, content_type)], app.metrics.encode(app.auth.tokens.fetches())).into_response())
}
