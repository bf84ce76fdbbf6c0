//! `GET /metrics` on the admin listener: what was counted, for Prometheus.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;

use super::body::accepted;
use super::predict::no_parameters;
use super::problem::Error;
use crate::app::App;
use crate::registry::{Registry, Split};
use crate::telemetry::metrics::{CacheState, Present, in_older_format};

/// OpenMetrics for whoever asks for it, else the older format.
pub(super) async fn metrics(State(app): State<Arc<App>>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    no_parameters(&parts)?;
    // Whoever takes neither is served all the same: scrapers are not always right about what they take.
    let is_open = accepted(&parts.headers, &["text/plain", "application/openmetrics-text"]) == Some(1);
    let content_type = match is_open {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    };
    let write = {
        let app = Arc::clone(&app);
        move || if is_open { document(&app) } else { in_older_format(&document(&app)) }
    };
    let document = app.telling.run(write).await?;
    Ok(([(CONTENT_TYPE, content_type)], document).into_response())
}

/// Everything that is counted, as OpenMetrics.
pub(super) fn document(app: &App) -> String {
    let (entries, bytes) = app.cache.size();
    let models = app.registry().map(Registry::models).unwrap_or_default();
    let splits = || models.models.values().filter_map(|model| model.split.as_deref());
    let levels = splits().flat_map(Split::versions).flat_map(|version| {
        let name = || (version.manifest.name.clone(), version.manifest.version.clone());
        let estimates = app.cache.estimates(&version.worth);
        estimates.map(move |(level, estimate)| (name().0, name().1, level, estimate))
    });
    let cache = CacheState { entries, bytes, levels: levels.collect() };
    let counted = splits().filter(|_| app.settings.metrics).flat_map(Split::versions);
    let live = counted.map(|version| Arc::clone(&version.tally)).collect();
    let versions = models.models.iter().flat_map(|(name, model)| {
        let mut states = BTreeMap::<&'static str, i64>::new();
        for version in model.versions.values() {
            *states.entry(version.state.as_str()).or_default() += 1;
        }
        states.into_iter().map(|(state, count)| (name.clone(), state, count))
    });
    let work = app.engine.in_hand();
    let present = Present { cache, work, live, versions: versions.collect() };
    app.metrics.encode(app.auth.tokens.fetches(), present)
}
