//! `POST /v1/predict` and `/v1/models/{model}/predict`: one row.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use scoregate_model::features::{BodyError, FeatureRows};
use scoregate_model::runtime::Score;

use super::admission::{PIN, Verified, verify};
use super::body::{Format, Received, accepts_picture, content_format, receive};
use super::explain::{self, Reasons, Wanted};
use super::problem::{Error, Fault};
use super::{cache, wire};
use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::cache::Status;
use crate::limiter::Loss;
use crate::registry::Version;
use crate::rollout::shadow::{Answered, Form};
use crate::scoring::{self, Choice, Recall, RowError, Scored, Skipped};
use crate::telemetry::notes::{Notes, Stage};

pub(super) async fn predict(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ScorePredict, &path).await?;
    let admitted = verified.admit(&app, Some(model), Loss::CountHere).await?;
    Notes::of(&parts).end(Stage::Admission);
    Ok(admitted.answer(score(&app, model, admitted.caller(), &parts, body).await))
}

async fn score(
    app: &Arc<App>,
    model: &str,
    caller: &Caller,
    parts: &Parts,
    body: Body,
) -> Result<Response, Error> {
    let notes = &Notes::of(parts);
    let choice = choose(app, model, caller, parts)?;
    notes.version(&choice.first().tally);
    if choice.is_pinned() {
        notes.pinned();
    }
    content_format(&parts.headers, &[Format::Json])?;
    let is_picture = accepts_picture(&parts.headers)?;
    let (query, patience) = (parts.uri.query().unwrap_or_default(), app.engine.answer_timeout() / 2);
    let mut wanted = match choice.known() {
        Some(version) => explain::wanted(query, version, is_picture, patience).await?,
        None => None,
    };
    let received = receive(app, parts, body).await?;
    let recall = Recall { cache: &app.cache, caller, wish: cache::wish(&parts.headers), notes };
    let limit = app.settings.server.max_body_bytes;
    // A row is a few hundred bytes; a body of megabytes is work, whatever is in it.
    let rows = 1 + received.raw().len() / 1_024;
    let is_small = rows == 1 && !received.is_gzip();
    let (small, large) = if is_small { (Some(received), None) } else { (None, Some(received)) };
    let body = small.as_ref().map_or(&[][..], Received::raw);
    // A large body, and what it holds, as long as somebody needs it.
    let mut sent = None;
    let elsewhere;
    let (version, row) = match large {
        None => (choice.of_row(body), None),
        Some(received) => {
            let choice = choice.clone();
            let read = move |_: &dyn Fn() -> bool| -> Result<_, Error> {
                let body = received.decode(limit)?;
                let version = Arc::clone(choice.of_row(&body));
                let row = scoring::read_alone(&version, &body);
                Ok((version, row, (body, received)))
            };
            let (version, row, read) = app.engine.run(rows, false, read).await??;
            sent = Some(read);
            elsewhere = version;
            (&elsewhere, Some(row))
        }
    };
    let is_wanted = app.shadows.wants(choice.split(), version) && choice.is_sample(version);
    sent = sent.filter(|_| is_wanted);
    if choice.known().is_none() {
        notes.version(&version.tally);
        // Boxed, so that requests of models without canaries carry none of its state.
        wanted = Box::pin(explain::wanted(query, version, is_picture, patience)).await?;
    }
    // The row, for whoever explains it.
    let mut copy = FeatureRows::default();
    notes.begin_work();
    let scored = match row {
        None if app.engine.fits_inline(rows, version.cost) => {
            let copy = wanted.as_ref().map(|_| &mut copy);
            scoring::score_together(version, body, &app.engine, &recall, copy).await
        }
        row => match row.unwrap_or_else(|| scoring::read_alone(version, body)) {
            Ok(row) => {
                if wanted.is_some() {
                    copy = row.clone();
                }
                Ok(scoring::score_alone(version, row, &app.engine, &recall).await?)
            }
            Err(error) => Err(error),
        },
    };
    let Scored { score, status } = scored.map_err(|error| {
        notes.rows(0, usize::from(matches!(error, RowError::Row(_))));
        refusal(error, version)
    })?;
    notes.rows(1, 0);
    notes.scores(std::iter::once(score.values()));
    if is_wanted {
        let body = sent.take().map_or_else(|| Bytes::copy_from_slice(body), |(body, _)| body);
        let answered = Answered { version, places: &[0], scores: score.values() };
        app.shadows.offer(choice.split(), &body, Form::Row, [answered]);
    }
    let (mut response, status) = match wanted.filter(|wanted| wanted.applies(version, score.values())) {
        None => (json(wire::one(version, score.values(), None)), status),
        // Boxed, so that requests without it carry none of its state.
        Some(wanted) => {
            let explained = Box::pin(explained(app, version, &wanted, &recall, is_picture, copy, &score));
            let (response, looked_up) = explained.await?;
            (response, if looked_up.is_known() { looked_up } else { status })
        }
    };
    notes.cache(status);
    cache::tell(status, response.headers_mut());
    Ok(response)
}

fn json(answer: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], answer).into_response()
}

/// The answer with its explanation, and what the cache had to do with that.
async fn explained(
    app: &App,
    version: &Version,
    wanted: &Wanted,
    recall: &Recall<'_>,
    is_picture: bool,
    row: FeatureRows,
    score: &Score,
) -> Result<(Response, Status), Error> {
    let row = Arc::new(row);
    let numbers = score.values();
    recall.notes.explained(wanted.explaining.method());
    let begin = Instant::now();
    let (explanation, status) = match wanted.explaining.explain_one(recall, &app.engine, &row, numbers).await
    {
        Ok(explained) => explained,
        // Whoever did not ask for it gets the score all the same.
        Err(error) if !wanted.is_asked => {
            let why = match error {
                scoring::Error::Overloaded(_) => Skipped::Load,
                scoring::Error::Deadline => Skipped::Time,
                _ => Skipped::Unusable,
            };
            version.tally.unexplained(why.as_str(), 1);
            if why == Skipped::Unusable {
                scoring::unexplained(version, &error);
            }
            let reasons = Reasons::new(version, wanted);
            return Ok((
                json(wire::one(version, numbers, Some((&reasons, Err(why), &row)))),
                Status::default(),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    recall.notes.explained(explanation.method);
    if status.is_computed() {
        recall.notes.explaining(begin.elapsed());
    }
    recall.notes.end(Stage::Explanation);
    if is_picture {
        return Ok((explain::picture(wanted, version, numbers, &explanation, &row), status));
    }
    let reasons = Reasons::new(version, wanted);
    Ok((json(wire::one(version, numbers, Some((&reasons, Ok(&explanation), &row)))), status))
}

fn refusal(error: RowError, version: &Version) -> Error {
    match error {
        RowError::Body(BodyError::Shape { pointer, code, detail }) => {
            Error::Row(vec![Fault::new(pointer, code, detail)])
        }
        RowError::Body(error) => error.into(),
        RowError::Scoring(error) => error.into(),
        RowError::Row(row) => Error::Row(Fault::of_row(&row.faults, &version.reader)),
    }
}

/// The path's parameters, where it can be decoded.
pub(super) type ModelPath = Result<RawPathParams, RawPathParamsRejection>;

/// The path's parameter `name`.
pub(super) fn parameter<'p>(path: &'p ModelPath, name: &str) -> Result<Option<&'p str>, Error> {
    // A path that is no UTF-8 names no model.
    let path = path.as_ref().map_err(|_| scoring::Error::UnknownModel)?;
    Ok(path.iter().find(|(found, _)| *found == name).map(|(_, value)| value))
}

/// Verifies that the caller may use the model of the path, or the default model, and says which one it is.
pub(super) async fn verify_for_model<'p>(
    app: &'p App,
    parts: &Parts,
    scope: Scope,
    path: &'p ModelPath,
) -> Result<(Verified, &'p str), Error> {
    let model = parameter(path, "model").map(|model| model.unwrap_or(&app.settings.models.default));
    // What is wrong with the path is told to callers alone.
    let verified = verify(app, parts, scope, model.as_ref().ok().copied()).await?;
    Ok((verified, model?))
}

/// Which version of `model` answers which row: the one that the request pins, else by whom it is from and about.
///
/// # Errors
/// [`Error`] if none answers, or what is pinned does not.
pub(super) fn choose(app: &App, model: &str, caller: &Caller, parts: &Parts) -> Result<Choice, Error> {
    let mut pins = parts.headers.get_all(&PIN).iter();
    let pin = match (pins.next(), pins.next()) {
        (None, _) => None,
        (Some(pin), None) => Some(pin.to_str().ok().filter(|name| !name.is_empty()).ok_or(Error::Pin)?),
        (Some(_), Some(_)) => return Err(Error::Pin),
    };
    Ok(Choice::new(app.registry(), model, pin, caller)?)
}

/// Refuses query parameters, where there are none: a parameter that is ignored silently misleads.
pub(super) fn no_parameters(parts: &Parts) -> Result<(), Error> {
    match parts.uri.query() {
        None | Some("") => Ok(()),
        Some(_) => Err(Error::Parameter("this path takes no query parameters".into())),
    }
}
