//! `POST /v1/predict/batch` and `/v1/models/{model}/predict/batch`: many rows, each on its own.

use std::sync::Arc;

use axum::extract::{RawPathParams, Request, State};
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;
use scoregate_model::features::BodyError;

use super::admission::admit;
use super::body::{Format, Received, accepted_format, content_format, receive};
use super::predict::{no_parameters, version_for};
use super::problem::{Error, Fault};
use super::wire::Answers;
use crate::app::App;
use crate::auth::Scope;
use crate::registry::Version;
use crate::scoring;

pub(super) async fn predict_batch(
    State(app): State<Arc<App>>,
    path: RawPathParams,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let admitted = admit(&app, &parts, Scope::ScorePredict)?;
    let version = version_for(&app, &path, &admitted)?;
    no_parameters(&parts)?;
    let input = content_format(&parts.headers, &[Format::Json, Format::Ndjson, Format::Csv])?;
    let output = match input {
        Format::Json => accepted_format(&parts.headers, &[Format::Json])?,
        Format::Ndjson => accepted_format(&parts.headers, &[Format::Ndjson])?,
        Format::Csv => accepted_format(&parts.headers, &[Format::Json, Format::Csv])?,
    };
    let received = receive(&app, &parts.headers, body).await?;
    let work = Work {
        version: Arc::clone(version),
        input,
        output,
        max_bytes: app.settings.server.max_body_bytes,
        max_rows: app.settings.server.max_batch_rows,
    };
    let rows = estimate_rows(&received, input).min(work.max_rows);
    let answer = app.engine.run(rows, version.cost, move || work.score(&received)).await??;
    Ok(([(CONTENT_TYPE, HeaderValue::from_static(output.media_type()))], answer).into_response())
}

/// About how many rows a body holds, from above: what the work is planned by before anything is parsed.
fn estimate_rows(received: &Received, input: Format) -> usize {
    /// Compressed rows are taken to be this many times smaller.
    const COMPRESSION: usize = 10;
    let body = received.raw();
    if received.is_gzip() {
        return 1 + body.len() * COMPRESSION / 100;
    }
    let mark = if input == Format::Json { b'{' } else { b'\n' };
    1 + memchr::memchr_iter(mark, body).count()
}

struct Work {
    version: Arc<Version>,
    input: Format,
    output: Format,
    max_bytes: usize,
    max_rows: usize,
}

impl Work {
    /// Bytes → checked columns → tensors → ONNX Runtime → answer.
    fn score(&self, received: &Received) -> Result<Vec<u8>, Error> {
        let Self { version, .. } = self;
        let body = received.decode(self.max_bytes)?;
        let (rows, prefix) = match self.input {
            Format::Json => {
                version.reader.json_rows(&body, self.max_rows).map(|read| (read.rows, read.prefix))?
            }
            Format::Ndjson => (version.reader.ndjson_rows(&body, self.max_rows)?, "#"),
            Format::Csv => (self.csv_rows(&body)?, "#"),
        };
        if rows.is_empty() {
            return Err(Error::Rows {
                count: rows.submitted,
                faults: Fault::of_rows(&rows, &version.reader, prefix),
            });
        }
        let scores = version.run(&rows).map_err(scoring::Error::from)?;
        let probabilities: Vec<f32> = scores.positive().collect();
        let mut answers = Answers::new(version);
        Ok(match self.output {
            Format::Json => answers.json_batch(&rows, &probabilities, prefix),
            Format::Ndjson => answers.ndjson_batch(&rows, &probabilities),
            Format::Csv => answers.csv_batch(&body, &rows, &probabilities),
        })
    }

    fn csv_rows(&self, body: &[u8]) -> Result<scoregate_model::features::FeatureRows, Error> {
        let reader = &self.version.reader;
        reader.csv_rows(body, self.max_rows).map_err(|error| match error {
            BodyError::Header(faults) => {
                let faults = faults.iter().map(|fault| {
                    let pointer = format!("#{}", reader.pointer(&fault.place));
                    Fault::new(pointer, fault.code, reader.detail(fault).into_owned())
                });
                Error::Header(faults.collect())
            }
            other => other.into(),
        })
    }
}
