//! `GET /v1/models/{model}/diff`: how two versions of a model differ.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use scoregate_model::package::{
    self, GOLDEN, GoldenRow, MODEL, digest_of, max_bytes, read_golden, read_named,
};
use scoregate_schemas::{FeatureSchema, Manifest};
use url::form_urlencoded;

use super::body::{Format, accepted_format};
use super::models::JSON;
use super::predict::{ModelPath, verify_for_model};
use super::problem::Error;
use crate::app::App;
use crate::auth::Scope;
use crate::diff::golden::{Comparison, GoldenDiff, PART};
use crate::diff::{Diff, Side, diff};
use crate::limiter::Loss;
use crate::registry::{Published, State as Become, Version};
use crate::rollout;
use crate::scoring;

/// Golden rows of a version that are scored for an answer, at most; a command takes all of them.
const MAX_ROWS: usize = 1_000;

/// How long scoring those of one version may take, by both, as it was measured.
const WORK: Duration = Duration::from_secs(1);

/// How long scoring a part of them may take: so long a batch may wait for it.
const TURN: Duration = Duration::from_millis(50);

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
        let found = tokio::time::timeout(app.engine.answer_timeout(), find(&app, model, &from, &to));
        let found = found.await.map_err(|_| scoring::Error::Deadline)??;
        let body = serde_json::to_vec(&found).expect("a difference serialises");
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(JSON)),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        Ok((headers, body).into_response())
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

async fn find(app: &Arc<App>, model: &str, from: &str, to: &str) -> Result<Diff, Error> {
    let snapshot = app.registry().ok_or(scoring::Error::NotReady)?.models();
    let known = snapshot.models.get(model).ok_or(scoring::Error::UnknownModel)?;
    let published = |version: &str| known.versions.get(version).ok_or(Error::UnknownVersion);
    let (one, other) = (published(from)?, published(to)?);
    let stated = (manifest_of(from, one)?, manifest_of(to, other)?);
    let golden = match (loaded(from, one), loaded(to, other)) {
        (Ok(one), Ok(other)) => golden(app, model, &one, &other).await?,
        (Err(why), _) | (_, Err(why)) => Err(why),
    };
    let (of, model) = (Arc::clone(app), model.to_owned());
    // Files are looked at and schemas read: not on a thread that serves connections.
    let work = move || {
        let (from, to) = stated;
        let serving = of.settings.serving(&model);
        let read = |manifest: &Manifest| {
            let refused = || rollout::Error::Refused {
                version: manifest.version.clone(),
                reason: "its feature schema is not valid".into(),
            };
            let schema = FeatureSchema::from_document(manifest.schema.clone()).map_err(|_| refused())?;
            let graph = of.store.local().directory(&model, &manifest.version).join(MODEL);
            Ok::<_, Error>((schema, std::fs::metadata(graph).ok().map(|graph| graph.len())))
        };
        let ((from_schema, from_bytes), (to_schema, to_bytes)) = (read(&from)?, read(&to)?);
        let from = Side::new(&from, &from_schema, from_bytes, &serving);
        Ok(diff(from, Side::new(&to, &to_schema, to_bytes, &serving), golden))
    };
    app.diffs.files.run(work).await?
}

/// What a version says of itself.
fn manifest_of(version: &str, published: &Published) -> Result<Arc<Manifest>, Error> {
    let stated = published.stated.as_ref().ok_or_else(|| {
        let reason = match &published.state {
            Become::Refused(why) => why.reason.clone(),
            Become::Checking | Become::Accepted | Become::Loaded(..) => "it is not looked at yet".into(),
        };
        rollout::Error::Refused { version: version.into(), reason }
    })?;
    Ok(Arc::clone(&stated.manifest))
}

/// The version, if it is loaded, or what to do so that it is.
fn loaded(version: &str, published: &Published) -> Result<Arc<Version>, String> {
    published.state.version().cloned().ok_or_else(|| {
        format!(
            "version {version} is not loaded here; make it a canary of 0 percent or the shadow, or ask `scoregate models diff`"
        )
    })
}

/// What both answer to the golden rows of each, or why nobody knows. It is found out once, as versions never change, and by one question
/// after the other; what is known is told at once. Rows are scored where those of batches are and in small parts, between which theirs have
/// their turn; when whoever asked has left, no other part is begun.
async fn golden(
    app: &Arc<App>,
    model: &str,
    from: &Arc<Version>,
    to: &Arc<Version>,
) -> Result<Result<Vec<GoldenDiff>, String>, Error> {
    let pair = [from.fingerprint, to.fingerprint];
    if let Some(found) = app.diffs.known(&pair) {
        return Ok(Ok(found));
    }
    let _turn = app.diffs.turn.lock().await;
    // Somebody else may have asked the same.
    if let Some(found) = app.diffs.known(&pair) {
        return Ok(Ok(found));
    }
    let is_other = from.manifest.version != to.manifest.version;
    let versions = [from, to].into_iter().take(1 + usize::from(is_other));
    let named: Vec<(PathBuf, Arc<Manifest>)> = versions
        .map(|version| {
            let manifest = &version.manifest;
            (app.store.local().directory(model, &manifest.version), Arc::clone(manifest))
        })
        .collect();
    let cost = from.cost.row + to.cost.row;
    let (most, part_rows) = (rows_within(WORK, cost, MAX_ROWS), rows_within(TURN, cost, PART));
    let (one, other) = (Arc::clone(from), Arc::clone(to));
    let prepare = move || {
        let comparison = Comparison::new(&one, &other)?;
        let golden = named.iter().map(|(directory, manifest)| {
            let (count, rows) = golden_rows(directory, manifest, most)?;
            Ok((manifest.version.clone(), count, rows))
        });
        Ok::<_, String>((comparison, golden.collect::<Result<Vec<_>, String>>()?))
    };
    let (mut comparison, golden) = match app.diffs.files.run(prepare).await? {
        Ok(prepared) => prepared,
        Err(why) => return Ok(Err(why)),
    };
    for (rows_of, count, mut rows) in golden {
        if count > 0 {
            comparison.begin(&rows_of, count);
        }
        while !rows.is_empty() {
            let part: Vec<GoldenRow> = rows.drain(..rows.len().min(part_rows)).collect();
            let scored = 2 * part.len();
            let score = move |_: &dyn Fn() -> bool| {
                let taken = comparison.take(&part);
                taken.map(|()| comparison)
            };
            comparison = match app.engine.run(scored, false, score).await? {
                Ok(comparison) => comparison,
                Err(why) => return Ok(Err(why)),
            };
        }
    }
    let found = comparison.finish();
    app.diffs.remember(pair, &found);
    Ok(Ok(found))
}

/// How many rows are scored within `time` that cost so much each; one at least, and `most` at most.
fn rows_within(time: Duration, cost: Duration, most: usize) -> usize {
    let fit = time.as_nanos() / cost.as_nanos().max(1);
    usize::try_from(fit).unwrap_or(most).clamp(1, most)
}

/// How many golden rows a version has, and the first of them, `most` at most.
fn golden_rows(
    directory: &Path,
    manifest: &Manifest,
    most: usize,
) -> Result<(usize, Vec<GoldenRow>), String> {
    let Some(digest) = manifest.files.get(GOLDEN) else { return Ok((0, Vec::new())) };
    let unreadable = |_| format!("the golden rows of version {} cannot be read", manifest.version);
    let path = directory.join(GOLDEN);
    let bytes = read_named(&path, max_bytes(GOLDEN)).map_err(unreadable)?;
    if digest_of(&bytes) != *digest {
        return Err(format!("the golden rows of version {} were changed", manifest.version));
    }
    first_rows(&path, &bytes, most).map_err(unreadable)
}

/// How many rows these are, and the first of them.
fn first_rows(path: &Path, bytes: &[u8], most: usize) -> Result<(usize, Vec<GoldenRow>), package::Error> {
    let lines = || bytes.split_inclusive(|byte| *byte == b'\n');
    let count = lines().filter(|line| !line.trim_ascii().is_empty()).count();
    let end = lines().take(most).map(<[u8]>::len).sum();
    Ok((count, read_golden(path, &bytes[..end])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rows_are_taken_and_all_are_counted() {
        let text = r#"{"features":{"a":1},"expected":0.5}"#.to_owned() + "\n";
        let (count, rows) = first_rows(Path::new(GOLDEN), text.repeat(5).as_bytes(), 3).unwrap();
        assert_eq!((count, rows.len()), (5, 3));
        let (count, rows) = first_rows(Path::new(GOLDEN), text.trim_end().as_bytes(), 3).unwrap();
        assert_eq!((count, rows.len()), (1, 1));
        let wrong = [text.repeat(2), "{\n".into(), text].concat();
        assert!(first_rows(Path::new(GOLDEN), wrong.as_bytes(), 3).is_err());
        assert_eq!(first_rows(Path::new(GOLDEN), wrong.as_bytes(), 2).unwrap().0, 4);
    }

    #[test]
    fn of_slow_versions_fewer_rows_are_scored_and_fewer_at_once() {
        for (cost, most, part) in [
            (Duration::from_micros(1), MAX_ROWS, PART),
            (Duration::from_millis(10), 100, 5),
            (Duration::from_secs(60), 1, 1),
            (Duration::ZERO, MAX_ROWS, PART),
        ] {
            let found = (rows_within(WORK, cost, MAX_ROWS), rows_within(TURN, cost, PART));
            assert_eq!(found, (most, part), "{cost:?}");
        }
    }
}
