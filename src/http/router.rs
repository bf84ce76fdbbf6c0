//! Every route on one page. What wraps them all is in [`super::serve`].

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use super::problem::Error;
use super::{batch, health, models, predict};
use crate::app::App;

/// The public routes; the admin listener serves them too.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health::live))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/v1/predict", post(predict::predict))
        .route("/v1/predict/batch", post(batch::predict_batch))
        .route("/v1/models/{model}/predict", post(predict::predict))
        .route("/v1/models/{model}/predict/batch", post(batch::predict_batch))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{model}", get(models::model))
        .route("/v1/models/{model}/versions", get(models::versions))
        .route("/v1/models/{model}/versions/{version}", get(models::version))
        .route("/v1/metadata", get(models::metadata))
        .fallback(async || Error::NoRoute)
        .method_not_allowed_fallback(async || Error::Method)
        .with_state(app)
}
