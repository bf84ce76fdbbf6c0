//! `GET /v1/models/{model}/diff`: how two versions of a model differ.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use scoregate_model::package::{GOLDEN, GoldenRow, MODEL, digest_of, max_bytes, read_golden, read_named};
use scoregate_schemas::{FeatureSchema, Manifest};
use url::form_urlencoded;

use super::body::{Format, accepted_format};
use super::models::JSON;
use super::predict::{ModelPath, verify_for_model};
use super::problem::Error;
use crate::app::App;
use crate::auth::Scope;
use crate::diff::{Diff, GoldenDiff, Scorer, Side, compare_golden, diff};
use crate::limiter::Loss;
use crate::registry::{Model, Published, State as Become};
use crate::rollout;
use crate::scoring;

/// Golden rows of a version that are scored for an answer; a command takes all of them.
const MAX_ROWS: usize = 10_000;

/// How much work that is taken for.
const WORTH: usize = 4_096;

/// How two versions of a model differ.
pub(super) async fn versions(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, _) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ModelsRead, &path).await?;
    let admitted = verified.admit(&app, None, Loss::CountHere).await?;
    let read = async {
        let (from, to) = named(&parts)?;
        accepted_format(&parts.headers, &[Format::Json])?;
        let snapshot = app.registry().ok_or(scoring::Error::NotReady)?.models();
        let (of, name) = (Arc::clone(&app), model.to_owned());
        // Files are read and rows scored: not on a thread that serves connections.
        let work = move |_: &dyn Fn() -> bool| {
            let known = snapshot.models.get(&name).ok_or(scoring::Error::UnknownModel)?;
            compare(&of, &name, known, &from, &to)
        };
        let found = app.engine.run(WORTH, false, work).await??;
        let body = serde_json::to_vec(&found).expect("a difference serialises");
        Ok(([(CONTENT_TYPE, HeaderValue::from_static(JSON))], body).into_response())
    };
    Ok(admitted.answer(read.await))
}

/// The versions that the query names.
fn named(parts: &Parts) -> Result<(String, String), Error> {
    let expected =
        || Error::Parameter("expected from=VERSION and to=VERSION, each once, and nothing else".into());
    let (mut from, mut to) = (None, None);
    for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
        let place = match name.as_ref() {
            "from" => &mut from,
            "to" => &mut to,
            _ => return Err(expected()),
        };
        if place.replace(value.into_owned()).is_some() {
            return Err(expected());
        }
    }
    from.zip(to).ok_or_else(expected)
}

/// A version, and what its manifest says.
struct Found<'f> {
    published: &'f Published,
    manifest: &'f Manifest,
    schema: FeatureSchema,
    bytes: Option<u64>,
}

fn compare(app: &App, model: &str, known: &Model, from: &str, to: &str) -> Result<Diff, Error> {
    let repository = app.store.local();
    let find = |version: &str| {
        let published = known.versions.get(version).ok_or(Error::UnknownVersion)?;
        let refused = |reason: String| rollout::Error::Refused { version: version.into(), reason };
        let stated = published.stated.as_ref().ok_or_else(|| {
            refused(match &published.state {
                Become::Refused(why) => why.reason.clone(),
                Become::Checking | Become::Accepted | Become::Loaded(..) => "it is not looked at yet".into(),
            })
        })?;
        let manifest = stated.manifest.as_ref();
        let schema = FeatureSchema::from_document(manifest.schema.clone());
        let schema = schema.map_err(|_| refused("its feature schema is not valid".into()))?;
        let graph = std::fs::metadata(repository.directory(model, version).join(MODEL));
        let bytes = graph.ok().map(|graph| graph.len());
        Ok::<_, Error>(Found { published, manifest, schema, bytes })
    };
    let (one, other) = (find(from)?, find(to)?);
    let rows = |found: &Found<'_>| {
        golden_rows(&repository.directory(model, &found.manifest.version), found.manifest)
    };
    let golden = golden(&one, &other, &rows);
    Ok(diff(one.side(), other.side(), golden))
}

impl Found<'_> {
    fn side(&self) -> Side<'_> {
        Side { manifest: self.manifest, schema: &self.schema, bytes: self.bytes }
    }
}

/// What both answer to the golden rows of each, or why nobody knows.
fn golden(
    one: &Found<'_>,
    other: &Found<'_>,
    rows: &dyn Fn(&Found<'_>) -> Result<Vec<GoldenRow>, String>,
) -> Result<Vec<GoldenDiff>, String> {
    let loaded = |found: &Found<'_>| {
        let name = &found.manifest.version;
        let version = found.published.state.version().cloned();
        version.ok_or_else(|| {
            format!(
                "version {name} is not loaded here; make it a canary of 0 percent or the shadow, or ask `scoregate models diff`"
            )
        })
    };
    let (from, to) = (loaded(one)?, loaded(other)?);
    let mut golden = vec![(one.manifest.version.as_str(), rows(one)?)];
    if one.manifest.version != other.manifest.version {
        golden.push((other.manifest.version.as_str(), rows(other)?));
    }
    compare_golden(&Scorer::new(&from), &Scorer::new(&to), &golden)
}

/// The first golden rows of a version; none where it has none.
fn golden_rows(directory: &Path, manifest: &Manifest) -> Result<Vec<GoldenRow>, String> {
    let Some(digest) = manifest.files.get(GOLDEN) else { return Ok(Vec::new()) };
    let unreadable = |_| format!("the golden rows of version {} cannot be read", manifest.version);
    let path = directory.join(GOLDEN);
    let bytes = read_named(&path, max_bytes(GOLDEN)).map_err(unreadable)?;
    if digest_of(&bytes) != *digest {
        return Err(format!("the golden rows of version {} were changed", manifest.version));
    }
    let end = bytes.split_inclusive(|byte| *byte == b'\n').take(MAX_ROWS).map(<[u8]>::len).sum();
    read_golden(&path, &bytes[..end]).map_err(unreadable)
}
