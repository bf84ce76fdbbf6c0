//! What clients are told of the routes: an OpenAPI 3.1 document, made from the table of routes and from each model's feature schema.
//!
//! [`operation`] says what each route does and how it may refuse, [`row`] what a model's rows and answers are, [`mod@document`] puts both
//! together. Documents are made once models have changed and somebody asks, away from the threads that serve connections, and kept
//! until models change again.

mod document;
mod operation;
mod row;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{HeaderMap, StatusCode};

pub(crate) use self::document::{of_model, whole};
pub(super) use self::operation::Operation;
pub(crate) use self::row::Described;
use super::body::accepted;
use super::models::JSON;
use super::predict::{ModelPath, no_parameters, verify_for_model};
use super::problem::Error;
use super::serve::Side;
use crate::app::App;
use crate::auth::Scope;
use crate::config::Settings;
use crate::limiter::Loss;
use crate::registry::Snapshot;
use crate::scoring;

/// The documents of one listener.
#[derive(Debug)]
pub(super) struct Documents {
    side: Side,
    kept: Mutex<Kept>,
    /// Whoever makes one, for whom the others wait.
    making: tokio::sync::Mutex<()>,
}

/// The documents of the models at one moment, those that were asked for.
#[derive(Debug, Default)]
struct Kept {
    /// Weak, so that versions which were replaced are not held.
    of: Weak<Snapshot>,
    /// By the name of the model that they are about; the whole one is about none.
    documents: BTreeMap<Option<String>, Tagged>,
}

impl Kept {
    fn are_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(snapshot))
    }
}

/// Something to be sent again and again, and what tells it from others.
#[derive(Debug, Clone)]
pub(super) struct Tagged {
    pub(super) body: Bytes,
    pub(super) tag: HeaderValue,
}

impl Tagged {
    pub(super) fn new(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let digest = blake3::hash(&body).to_hex();
        let tag = HeaderValue::try_from(format!("\"{}\"", &digest[..32])).expect("a digest is ASCII");
        Self { body, tag }
    }

    /// The answer: 304 to whoever has it.
    pub(super) fn answer(&self, known: &HeaderMap, media_type: &'static str, kept: &'static str) -> Response {
        let headers = [(ETAG, self.tag.clone()), (CACHE_CONTROL, HeaderValue::from_static(kept))];
        if is_known(known, &self.tag) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let content_type = [(CONTENT_TYPE, HeaderValue::from_static(media_type))];
        (headers, content_type, self.body.clone()).into_response()
    }
}

/// Whether `If-None-Match` names the tag ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2)).
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.trim_start_matches("W/").as_bytes() == tag.as_bytes())
}

impl Documents {
    pub(super) fn new(side: Side) -> Self {
        Self { side, kept: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    /// The document of the models of `snapshot` that is about `model`, or about all of them.
    async fn of(
        &self,
        app: &Arc<App>,
        snapshot: Arc<Snapshot>,
        model: Option<&str>,
    ) -> Result<Tagged, Error> {
        let name = model.map(str::to_owned);
        if let Some(found) = self.find(&snapshot, &name) {
            return Ok(found);
        }
        let _making = self.making.lock().await;
        if let Some(found) = self.find(&snapshot, &name) {
            return Ok(found);
        }
        let make = {
            let (app, side, snapshot, name) =
                (Arc::clone(app), self.side, Arc::clone(&snapshot), name.clone());
            move || make(side, &app.settings, &snapshot, name.as_deref())
        };
        let made = app.telling.run(make).await?.ok_or(scoring::Error::UnknownModel)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.are_of(&snapshot) {
            *kept = Kept { of: Arc::downgrade(&snapshot), documents: BTreeMap::new() };
        }
        kept.documents.insert(name, made.clone());
        Ok(made)
    }

    /// The one that was made before.
    fn find(&self, snapshot: &Arc<Snapshot>, name: &Option<String>) -> Option<Tagged> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.documents.get(name).filter(|_| kept.are_of(snapshot)).cloned()
    }
}

/// The document about one model, if it answers, or about all.
fn make(side: Side, settings: &Settings, snapshot: &Snapshot, model: Option<&str>) -> Option<Tagged> {
    let document = match model {
        Some(name) => {
            let live = snapshot.models.get(name)?.live().map(AsRef::as_ref)?;
            of_model(side, settings, &Described::loaded(live))
        }
        None => {
            let live = snapshot.models.values().filter_map(|model| model.live().map(AsRef::as_ref));
            let described: Vec<Described<'_>> = live.map(Described::loaded).collect();
            whole(side, settings, &described)
        }
    };
    Some(Tagged::new(document.to_string()))
}

/// Whoever has it asks again whether it is still so: it changes with the models.
const KEPT: &str = "no-cache";

/// `GET /openapi.json`: every route.
pub(super) async fn document(
    app: &Arc<App>,
    documents: &Documents,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    no_parameters(&parts)?;
    accepted(&parts.headers, &[JSON]).ok_or(Error::NotAcceptable(JSON))?;
    let snapshot = app.registry().ok_or(scoring::Error::NotReady)?.models();
    let document = documents.of(app, snapshot, None).await?;
    Ok(document.answer(&parts.headers, JSON, KEPT))
}

/// `GET /v1/models/{model}/openapi.json`: the routes that are about one model.
pub(super) async fn model_document(
    app: &Arc<App>,
    documents: &Documents,
    path: &ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (verified, model) = verify_for_model(app, &parts, Scope::ModelsRead, path).await?;
    let admitted = verified.admit(app, None, Loss::CountHere).await?;
    let answer = async {
        no_parameters(&parts)?;
        accepted(&parts.headers, &[JSON]).ok_or(Error::NotAcceptable(JSON))?;
        let snapshot = app.registry().ok_or(scoring::Error::NotReady)?.models();
        let document = documents.of(app, snapshot, Some(model)).await?;
        Ok(document.answer(&parts.headers, JSON, KEPT))
    };
    Ok(admitted.answer(answer.await))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_has_it_says_so() {
        let tagged = Tagged::new("document");
        let tag = tagged.tag.to_str().unwrap();
        for (value, expected) in [
            (tag.to_owned(), true),
            (format!("W/{tag}"), true),
            (format!("\"other\", {tag}"), true),
            ("*".to_owned(), true),
            ("\"other\"".to_owned(), false),
            (tag.trim_matches('"').to_owned(), false),
            (String::new(), false),
        ] {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, value.parse().unwrap())]);
            assert_eq!(is_known(&headers, &tagged.tag), expected, "{value}");
        }
        assert!(!is_known(&HeaderMap::new(), &tagged.tag));
        assert_ne!(Tagged::new("other").tag, tagged.tag);
    }
}
