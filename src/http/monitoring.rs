//! `GET /v1/monitoring/…` on the admin listener: what was counted so far, and how versions compare, as JSON for pages and scripts.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::http::request::Parts;
use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::form_urlencoded;

use super::admission::verify;
use super::body::accepted;
use super::metrics::document;
use super::models::JSON;
use super::predict::no_parameters;
use super::problem::Error;
use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::limiter::{Loss, PlanDescription};
use crate::rollout::guard::{Decided, Judged};
use crate::rollout::shadow::Report;
use crate::scoring;
use crate::telemetry::samples::Samples;
use crate::telemetry::tally::UNKNOWN_MODEL;

/// What there is to tell.
#[derive(Serialize)]
struct Live {
    at: String,
    /// What `/metrics` tells, of models that the caller may use.
    metrics: Map<String, Value>,
    bounds: Map<String, Value>,
    /// Every plan, or the caller's own if it may use some models only.
    quotas: Vec<PlanDescription>,
    cache: Cache,
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
}

/// How scores are kept.
#[derive(Serialize)]
struct Cache {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_s: Option<f64>,
}

/// Everything at once: whoever asks again and again makes rates of it.
pub(super) async fn live(State(app): State<Arc<App>>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let verified = verify(&app, &parts, Scope::MonitoringRead, None).await?;
    let admitted = verified.admit(&app, None, Loss::CountHere).await?;
    let read = async {
        no_parameters(&parts)?;
        accepted(&parts.headers, &[JSON]).ok_or(Error::NotAcceptable(JSON))?;
        app.registry().ok_or(scoring::Error::NotReady)?;
        let write = {
            let (app, caller) = (Arc::clone(&app), admitted.caller().clone());
            move || serde_json::to_vec(&Live::new(&app, &caller)).expect("counts serialise")
        };
        let body = app.telling.run(write).await?;
        Ok(([(CONTENT_TYPE, JSON), (CACHE_CONTROL, "no-store")], body).into_response())
    };
    Ok(admitted.answer(read.await))
}

/// How shadows and canaries compare with the live versions.
#[derive(Serialize)]
struct Comparisons {
    at: String,
    comparisons: Vec<Report>,
    /// What the guard makes of canaries.
    verdicts: Vec<Judged>,
    /// What it has done with others, the last first.
    past: Vec<Decided>,
}

/// How shadows and canaries compare with the live versions, of one model or of all that the caller may use.
pub(super) async fn comparisons(State(app): State<Arc<App>>, request: Request) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let asked = model_of(&parts);
    // What is wrong with the query is told to callers alone.
    let model = asked.as_ref().ok().and_then(|model| model.as_deref());
    let verified = verify(&app, &parts, Scope::MonitoringRead, model).await?;
    let admitted = verified.admit(&app, None, Loss::CountHere).await?;
    let read = async {
        let model = asked?;
        accepted(&parts.headers, &[JSON]).ok_or(Error::NotAcceptable(JSON))?;
        let models = app.registry().ok_or(scoring::Error::NotReady)?.models();
        if model.as_ref().is_some_and(|model| !models.models.contains_key(model)) {
            return Err(scoring::Error::UnknownModel.into());
        }
        let write = {
            let (app, caller) = (Arc::clone(&app), admitted.caller().clone());
            move || {
                let is_wanted =
                    |name: &str| model.as_ref().map_or_else(|| caller.may_use(name), |model| name == model);
                let comparisons = app.shadows.reports(is_wanted);
                let verdicts = app.shadows.verdicts.of(is_wanted);
                let past = app.shadows.verdicts.past(is_wanted);
                serde_json::to_vec(&Comparisons { at: now(), comparisons, verdicts, past })
                    .expect("counts serialise")
            }
        };
        let body = app.telling.run(write).await?;
        Ok(([(CONTENT_TYPE, JSON), (CACHE_CONTROL, "no-store")], body).into_response())
    };
    Ok(admitted.answer(read.await))
}

/// The model that is asked about, if one is.
fn model_of(parts: &Parts) -> Result<Option<String>, Error> {
    let mut found = None;
    for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
        if name != "model" || value.is_empty() || found.replace(value.into_owned()).is_some() {
            return Err(Error::Parameter("expected model=NAME, at most once, and nothing else".into()));
        }
    }
    Ok(found)
}

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).expect("a time of this century can be written")
}

impl Live {
    fn new(app: &App, caller: &Caller) -> Self {
        let is_allowed = |label: &str, value: &str| match label {
            // What belongs to no model, and what strangers asked for, is nobody's secret. No model is called so.
            "model" => matches!(value, "" | UNKNOWN_MODEL) || caller.may_use(value),
            "policy" => value.strip_prefix("rows-").is_none_or(|model| caller.may_use(model)),
            _ => true,
        };
        let Samples { metrics, bounds } = Samples::read(&document(app), is_allowed);
        let mut quotas = app.limiter.plans();
        if !caller.may_use_all() {
            quotas.retain(|plan| plan.plan.as_deref() == caller.plan());
        }
        for plan in &mut quotas {
            plan.models.retain(|model, _| caller.may_use(model));
        }
        let cache = Cache {
            mode: app.cache.mode().as_str(),
            ttl_s: app.cache.is_on().then(|| app.cache.ttl().as_secs_f64()),
        };
        Self { at: now(), metrics, bounds, quotas, cache, redis: app.limiter.redis() }
    }
}
