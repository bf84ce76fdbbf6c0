//! `PUT /v1/models/{model}/rollout` on the admin listener: which version is live.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use scoregate_model::package::Repository;
use scoregate_schemas::Rollout;

use super::admission::Admitted;
use super::body::{Format, accepted_format, content_format, receive};
use super::predict::{ModelPath, no_parameters, verify_for_model};
use super::problem::Error;
use crate::app::App;
use crate::audit::Actor;
use crate::auth::Scope;
use crate::limiter::Loss;
use crate::rollout::Promotion;
use crate::scoring;

/// Makes a published version the live one; this gateway and every other on the repository follow within two seconds.
pub(super) async fn put_rollout(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ModelsWrite, &path).await?;
    let admitted = verified.admit(&app, None, Loss::Refuse).await?;
    Ok(admitted.answer(change(&app, model, &admitted, &parts, body).await))
}

async fn change(
    app: &Arc<App>,
    model: &str,
    admitted: &Admitted,
    parts: &Parts,
    body: Body,
) -> Result<Response, Error> {
    no_parameters(parts)?;
    content_format(&parts.headers, &[Format::Json])?;
    accepted_format(&parts.headers, &[Format::Json])?;
    let known = app.registry().ok_or(scoring::Error::NotReady)?.models();
    if !known.models.contains_key(model) {
        return Err(scoring::Error::UnknownModel.into());
    }
    let received = receive(app, parts, body).await?;
    let decoded = received.decode(app.settings.server.max_body_bytes)?;
    let rollout: Rollout = serde_json::from_slice(&decoded).map_err(|_| Error::Rollout)?;
    let caller = admitted.caller().id().to_owned();
    let answer = serde_json::to_vec(&rollout).expect("a rollout serialises");
    let work = {
        let (app, model) = (Arc::clone(app), model.to_owned());
        move |_: &dyn Fn() -> bool| -> Result<(), Error> {
            let repository = Repository::new(&app.settings.models.dir);
            let promotion = Promotion::new(&repository, &model, &rollout.live)?;
            app.audit.record(&promotion.event(Actor::caller(&caller)))?;
            Ok(promotion.carry_out()?)
        }
    };
    // Digests are checked and files synced: not on a thread that serves connections.
    app.engine.run(1, false, work).await??;
    Ok(([(CONTENT_TYPE, "application/json")], answer).into_response())
}
