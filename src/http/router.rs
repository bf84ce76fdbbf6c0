//! Every route on one page. What wraps them all is in [`super::serve`].

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post, put};

use super::problem::Error;
use super::{batch, health, metrics, models, oauth, predict, rollout};
use crate::app::App;

/// What the public listener serves.
pub fn public(app: Arc<App>) -> Router {
    finished(routes(&app), app)
}

/// What the admin listener serves: the public routes too, and alone those of an operator.
pub fn admin(app: Arc<App>) -> Router {
    let routes = routes(&app)
        .route("/v1/models/{model}/rollout", put(rollout::put_rollout))
        .route("/metrics", get(metrics::metrics));
    finished(routes, app)
}

fn routes(app: &App) -> Router<Arc<App>> {
    let routes = Router::new()
        .route("/health", get(health::live))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/v1/predict", post(predict::predict))
        .route("/v1/predict/batch", post(batch::predict_batch))
        .route("/v1/models/{model}/predict", post(predict::predict))
        .route("/v1/models/{model}/predict/batch", post(batch::predict_batch))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{model}", get(models::model))
        .route("/v1/models/{model}/importance.svg", get(models::importance))
        .route("/v1/models/{model}/versions", get(models::versions))
        .route("/v1/models/{model}/versions/{version}", get(models::version))
        .route("/v1/metadata", get(models::metadata));
    // Below /.well-known, and /oauth/token where the built-in issuer is switched on.
    oauth::routes(app, routes)
}

fn finished(routes: Router<Arc<App>>, app: Arc<App>) -> Router {
    routes
        .fallback(async || Error::NoRoute)
        .method_not_allowed_fallback(async || Error::Method)
        .with_state(app)
}
