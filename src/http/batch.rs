//! `POST /v1/predict/batch` and `/v1/models/{model}/predict/batch`: many rows, each on its own.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use scoregate_model::features::{BodyError, FeatureRows};
use tokio::runtime::Handle;

use super::admission::Admitted;
use super::body::{Format, Received, accepted_format, content_format, receive};
use super::cache;
use super::predict::{ModelPath, no_parameters, verify_for_model};
use super::problem::{Error, Fault};
use super::wire::Answers;
use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::cache::{Status, Wish};
use crate::limiter::Loss;
use crate::registry::{Cost, Version};
use crate::scoring::{self, Permit, Recall, Recalled};

pub(super) async fn predict_batch(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ScorePredict, &path).await?;
    let mut admitted = verified.admit(&app, Some(model), Loss::CountHere).await?;
    let answer = score(&app, model, &mut admitted, &parts, body).await;
    Ok(admitted.answer(answer))
}

async fn score(
    app: &Arc<App>,
    model: &str,
    admitted: &mut Admitted,
    parts: &Parts,
    body: Body,
) -> Result<Response, Error> {
    let version = scoring::look_up(app.registry(), model)?;
    no_parameters(parts)?;
    let input = content_format(&parts.headers, &[Format::Json, Format::Ndjson, Format::Csv])?;
    let output = match input {
        Format::Json => accepted_format(&parts.headers, &[Format::Json])?,
        Format::Ndjson => accepted_format(&parts.headers, &[Format::Ndjson])?,
        Format::Csv => accepted_format(&parts.headers, &[Format::Json, Format::Csv])?,
    };
    let received = receive(app, &parts.headers, body).await?;
    let cost = version.cost;
    let work = Work { app: Arc::clone(app), version, input, output };
    // What a compressed body holds is not known before it is decoded, which takes time itself: its rows are counted then.
    let rows = if received.is_gzip() { 0 } else { work.estimate_rows(received.raw()) };
    let looked_up = if app.cache.is_worth_keys(&work.version.worth, rows) { LOOK_UP } else { Duration::ZERO };
    let here = rows > 0 && app.engine.fits_inline(rows, Cost { row: cost.row + looked_up, ..cost });
    let wish = cache::wish(&parts.headers);
    let (answer, status) = if here {
        let read = work.read(received)?;
        let recalled = work.prepare(&read, admitted, wish).await?;
        work.answer(read, recalled, admitted.caller(), wish, &|| false)?
    } else {
        let mut own = admitted.clone();
        let done = move |has_left: &dyn Fn() -> bool| {
            let answer = work.read(received).and_then(|read| {
                // To wait here for others is to wait on a thread that is made for it.
                let recalled = Handle::current().block_on(work.prepare(&read, &mut own, wish))?;
                work.answer(read, recalled, own.caller(), wish, has_left)
            });
            (own, answer)
        };
        let (settled, answer) = app.engine.run(rows, false, done).await?;
        *admitted = settled;
        answer?
    };
    let mut response =
        ([(CONTENT_TYPE, HeaderValue::from_static(output.media_type()))], answer).into_response();
    cache::tell(status, response.headers_mut());
    Ok(response)
}

/// What looking for a row in process and keeping its score takes at the most.
const LOOK_UP: Duration = Duration::from_micros(2);

/// What a row that is looked up takes in memory beside its numbers.
const KEY_BYTES: usize = 128;

struct Work {
    app: Arc<App>,
    version: Arc<Version>,
    input: Format,
    output: Format,
}

impl Work {
    /// How many rows a body holds at the most: what the work is planned by before anything is parsed. A kibibyte counts as
    /// a row whatever is in it, since parsing it is work too.
    fn estimate_rows(&self, body: &[u8]) -> usize {
        let marks = match self.input {
            Format::Json => memchr::memchr_iter(b'{', body).count(),
            Format::Ndjson => memchr::memchr_iter(b'\n', body).count(),
            // CSV takes a bare carriage return for the end of a record too.
            Format::Csv => memchr::memchr2_iter(b'\n', b'\r', body).count(),
        };
        1 + marks.max(body.len() / 1_024).min(self.version.max_batch_rows)
    }

    /// Bytes → checked columns, and the memory that their answer takes.
    fn read(&self, received: Received) -> Result<Read, Error> {
        let Self { app, version, .. } = self;
        let max_rows = version.max_batch_rows;
        let body = received.decode(app.settings.server.max_body_bytes)?;
        let decoded = if received.is_gzip() {
            Some(app.engine.hold_rows(self.estimate_rows(&body)).map_err(scoring::Error::from)?)
        } else {
            None
        };
        let (rows, prefix) = match self.input {
            Format::Json => version.reader.json_rows(&body, max_rows).map(|read| (read.rows, read.prefix))?,
            Format::Ndjson => (version.reader.ndjson_rows(&body, max_rows)?, "#"),
            Format::Csv => (self.csv_rows(&body)?, "#"),
        };
        // An answer in CSV repeats the body; otherwise its memory makes room for the answer's.
        let sent = (self.output == Format::Csv).then_some((body, received));
        let room = match rows.is_empty() {
            true => None,
            false => {
                let (body, held) =
                    sent.as_ref().map_or((0, 0), |(body, received)| (body.len(), received.held()));
                Some(self.room(&Answers::new(version), rows.submitted, body, held)?)
            }
        };
        Ok(Read { rows, prefix, sent, room, _decoded: decoded })
    }

    /// Takes the rows of the caller's quota, and looks for those that were scored before.
    async fn prepare(
        &self,
        read: &Read,
        admitted: &mut Admitted,
        wish: Wish,
    ) -> Result<Option<Recalled>, Error> {
        admitted.settle(&self.app, read.rows.submitted).await?;
        Ok(self.recall(admitted.caller(), wish).look_up_batch(&self.version, &read.rows).await)
    }

    fn recall<'r>(&'r self, caller: &'r Caller, wish: Wish) -> Recall<'r> {
        Recall { cache: &self.app.cache, caller, wish }
    }

    /// Checked columns → tensors → ONNX Runtime → answer. A caller that `has_left` needs none.
    fn answer(
        &self,
        read: Read,
        recalled: Option<Recalled>,
        caller: &Caller,
        wish: Wish,
        has_left: &dyn Fn() -> bool,
    ) -> Result<(Bytes, Status), Error> {
        let Self { app, version, .. } = self;
        let Read { rows, prefix, sent, room, _decoded } = read;
        let Some(mut room) = room else {
            return Err(Error::Rows {
                count: rows.submitted,
                faults: Fault::of_rows(&rows, &version.reader, prefix),
            });
        };
        if has_left() {
            return Err(scoring::Error::Deadline.into());
        }
        let scored = self.recall(caller, wish).score_batch(version, &rows, recalled, has_left)?;
        let (scores, status) = scored.filter(|_| !has_left()).ok_or(scoring::Error::Deadline)?;
        let mut answers = Answers::new(version);
        let body = sent.as_ref().map_or(&[][..], |(body, _)| body);
        let answer = match self.output {
            Format::Json => answers.json_batch(&rows, &scores, prefix),
            Format::Ndjson => answers.ndjson_batch(&rows, &scores),
            Format::Csv => answers.csv_batch(body, &rows, &scores),
        };
        drop((scores, sent));
        room.shrink(answer.len());
        // What is said of refused rows may be longer than scores.
        let more = answer.len() - room.held().min(answer.len());
        let more = app.engine.hold_bytes(more).map_err(scoring::Error::from)?;
        Ok((Bytes::from_owner(Held { answer, _permits: [room, more] }), status))
    }

    /// The memory for scores and answer, taken before there is any: with many classes they are many times the body. `body`
    /// bytes are repeated in the answer, and `held` bytes are held for the body meanwhile.
    fn room(&self, answers: &Answers<'_>, rows: usize, body: usize, held: usize) -> Result<Permit, Error> {
        let width = self.version.task.width() * size_of::<f64>();
        // Rows that are looked up are there twice, with their keys.
        let is_looked_up = self.app.cache.is_worth_keys(&self.version.worth, rows);
        let looked_up = if is_looked_up { 2 * width + KEY_BYTES } else { 0 };
        let per_row = width + looked_up + answers.row_bytes(self.output);
        let wanted = rows.saturating_mul(per_row).saturating_add(body);
        let most = self.app.engine.max_bytes().saturating_sub(held);
        if wanted > most {
            // To wait for others would not help.
            let fit = most / (wanted / rows.max(1)).max(1);
            return Err(Error::AnswerTooLarge { rows, fit });
        }
        Ok(self.app.engine.hold_bytes(wanted).map_err(scoring::Error::from)?)
    }

    fn csv_rows(&self, body: &[u8]) -> Result<FeatureRows, Error> {
        let reader = &self.version.reader;
        reader.csv_rows(body, self.version.max_batch_rows).map_err(|error| match error {
            BodyError::Header(faults) => Error::Header(Fault::of_row(&faults, reader)),
            other => other.into(),
        })
    }
}

/// A batch that has been read.
struct Read {
    rows: FeatureRows,
    /// What pointers to its rows begin with.
    prefix: &'static str,
    /// The body, where the answer repeats it.
    sent: Option<(Bytes, Received)>,
    /// None if no row can be scored.
    room: Option<Permit>,
    _decoded: Option<Permit>,
}

/// An answer whose memory counts until the client has taken it.
struct Held {
    answer: Vec<u8>,
    _permits: [Permit; 2],
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}
