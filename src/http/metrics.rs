//! `GET /metrics` on the admin listener: what was counted, for Prometheus.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use scoregate_schemas::rollout::SLOTS;

use super::body::accepted;
use super::predict::no_parameters;
use super::problem::Error;
use crate::app::App;
use crate::registry::{LoadedCanary, Registry, Role, Split, Version};
use crate::rollout::slots;
use crate::telemetry::metrics::{CacheState, Present, RolledOut, in_older_format};

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
    let rolled_out = models.models.iter().filter_map(|(name, model)| {
        let split = model.split.as_deref()?;
        Some(RolledOut { model: name.clone(), revision: split.revision, shares: shares(split) })
    });
    let rollouts = rolled_out.collect();
    let work = app.engine.in_hand();
    let last_read = app.store.last_read();
    let present = Present { cache, work, live, versions: versions.collect(), rollouts, last_read };
    app.metrics.encode(app.auth.tokens.fetches(), present)
}

/// The versions of a model that are loaded: what each of them is, and how much of everything it answers, from 0 to 1.
fn shares(split: &Split) -> Vec<(String, &'static str, f64)> {
    let share = |version: &Version, role: Role, slots: u16| {
        (version.manifest.version.clone(), role.as_str(), slots::percent(slots) / 100.0)
    };
    let taken: u16 = split.canaries.iter().map(|canary| slots::len(&canary.slots)).sum();
    let mut shares = vec![share(&split.live, Role::Live, SLOTS.saturating_sub(taken))];
    let canary = |canary: &LoadedCanary| share(&canary.version, Role::Canary, slots::len(&canary.slots));
    shares.extend(split.canaries.iter().map(canary));
    shares.extend(split.shadow.iter().map(|shadow| share(shadow, Role::Shadow, 0)));
    shares.extend(split.kept.iter().map(|kept| share(kept, Role::Previous, 0)));
    shares
}
