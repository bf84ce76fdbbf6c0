//! Every route on one page. What wraps them all is in [`super::serve`]; what clients are told of them in [`super::openapi`], which
//! is made from the same table.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::routing::{MethodRouter, get, post, put};
use hyper::Method;

use super::openapi::{Documents, Operation};
use super::predict::ModelPath;
use super::problem::Error;
use super::serve::Side;
use super::{
    batch, console, diff, docs, health, metrics, models, monitoring, oauth, openapi, predict, publish,
    rollout,
};
use crate::app::App;
use crate::config::Settings;
use crate::telemetry::metrics::RequestCounts;

/// What the public listener serves.
pub fn public(app: Arc<App>) -> Router {
    router(Side::Public, app)
}

/// What the admin listener serves: the public routes too, and alone those of an operator.
pub fn admin(app: Arc<App>) -> Router {
    router(Side::Admin, app)
}

/// A route: how it is asked, what is documented of it, and what answers.
pub(super) struct Route {
    pub(super) method: Method,
    /// As axum writes it.
    pub(super) path: &'static str,
    pub(super) operation: Operation,
    handler: MethodRouter<Arc<App>>,
}

impl Route {
    /// Has failures of what scores counted from now on, so that the first is seen to be one more than before.
    pub(super) fn begin(&self, counts: &RequestCounts) {
        if matches!(self.operation, Operation::Predict | Operation::PredictBatch) {
            for code in self.operation.codes().into_iter().filter(|code| code.status().is_server_error()) {
                counts.begin(self.path, code.status().as_u16(), code.as_str());
            }
        }
    }
}

/// Every route of a listener, where the settings are these.
pub(super) fn routes(side: Side, settings: &Settings) -> Vec<Route> {
    use Operation as Op;
    let documents = Arc::new(Documents::new(side));
    let of_models = Arc::clone(&documents);
    let document = async move |State(app): State<Arc<App>>, request: Request| {
        openapi::document(&app, &documents, request).await
    };
    let model_document = async move |State(app): State<Arc<App>>, path: ModelPath, request: Request| {
        openapi::model_document(&app, &of_models, &path, request).await
    };
    let mut routes = vec![
        read("/health", Op::Health, health::live),
        read("/health/live", Op::Live, health::live),
        read("/health/ready", Op::Ready, health::ready),
        send("/v1/predict", Op::Predict, predict::predict),
        send("/v1/predict/batch", Op::PredictBatch, batch::predict_batch),
        send("/v1/models/{model}/predict", Op::Predict, predict::predict),
        send("/v1/models/{model}/predict/batch", Op::PredictBatch, batch::predict_batch),
        read("/v1/models", Op::Models, models::models),
        read("/v1/models/{model}", Op::Model, models::model),
        read("/v1/models/{model}/importance.svg", Op::Importance, models::importance),
        read("/v1/models/{model}/versions", Op::Versions, models::versions),
        read("/v1/models/{model}/versions/{version}", Op::Version, models::version),
        read("/v1/models/{model}/rollout", Op::GetRollout, rollout::get_rollout),
        read("/v1/models/{model}/diff", Op::Diff, diff::versions),
        read("/v1/models/{model}/openapi.json", Op::ModelDocument, model_document),
        read("/v1/metadata", Op::Metadata, models::metadata),
        read("/openapi.json", Op::Document, document),
        read("/docs", Op::Docs, docs::page),
        read("/docs/{file}", Op::DocsFile, docs::file_of_page),
        read("/.well-known/oauth-protected-resource", Op::Resource, oauth::resource),
        read("/.well-known/oauth-protected-resource/{*path}", Op::ResourceAt, oauth::resource),
    ];
    if settings.oauth.is_some() {
        routes.extend([
            send("/oauth/token", Op::Token, oauth::token),
            read("/.well-known/jwks.json", Op::KeySet, oauth::jwks),
            read("/.well-known/oauth-authorization-server", Op::Server, oauth::server),
            read("/.well-known/oauth-authorization-server/{*path}", Op::ServerAt, oauth::server),
        ]);
    }
    if side == Side::Admin {
        routes.extend([
            send("/v1/models/{model}/versions", Op::Publish, publish::publish),
            change("/v1/models/{model}/rollout", Op::PutRollout, rollout::put_rollout),
            send("/v1/models/{model}/rollback", Op::Rollback, rollout::roll_back),
            read("/metrics", Op::Metrics, metrics::metrics),
            read("/v1/monitoring/live", Op::LiveCounts, monitoring::live),
            read("/v1/monitoring/comparisons", Op::Comparisons, monitoring::comparisons),
            read("/console", Op::Console, console::page),
            read("/console/{file}", Op::ConsoleFile, console::file_of_page),
        ]);
    }
    routes
}

/// A route that is asked by `GET`.
fn read<H: Handler<T, Arc<App>>, T: 'static>(path: &'static str, operation: Operation, handler: H) -> Route {
    Route { method: Method::GET, path, operation, handler: get(handler) }
}

/// A route that is asked by `POST`.
fn send<H: Handler<T, Arc<App>>, T: 'static>(path: &'static str, operation: Operation, handler: H) -> Route {
    Route { method: Method::POST, path, operation, handler: post(handler) }
}

/// A route that is asked by `PUT`.
fn change<H: Handler<T, Arc<App>>, T: 'static>(
    path: &'static str,
    operation: Operation,
    handler: H,
) -> Route {
    Route { method: Method::PUT, path, operation, handler: put(handler) }
}

fn router(side: Side, app: Arc<App>) -> Router {
    let routes = routes(side, &app.settings).into_iter();
    let router = routes.fold(Router::new(), |router, route| router.route(route.path, route.handler));
    router
        .fallback(async || Error::NoRoute)
        .method_not_allowed_fallback(async || Error::Method)
        .with_state(app)
}
