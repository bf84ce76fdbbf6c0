//! `POST /v1/predict/batch` and `/v1/models/{model}/predict/batch`: many rows, each on its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use scoregate_model::features::{BodyError, FeatureRows};
use scoregate_model::runtime::Scores;
use tokio::runtime::Handle;

use super::admission::Admitted;
use super::body::{Format, Received, accepted_format, content_format, receive};
use super::cache;
use super::explain::{Explained, Reasons, Wanted, unlisted_bytes, wanted};
use super::predict::{ModelPath, verify_for_model};
use super::problem::{Error, Fault};
use super::wire::Answers;
use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::cache::{Status, Wish};
use crate::limiter::Loss;
use crate::registry::{Cost, Version};
use crate::scoring::{self, Explanations, Permit, Recall, Recalled, Skipped, Within};
use crate::telemetry::notes::{Notes, Stage};

pub(super) async fn predict_batch(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ScorePredict, &path).await?;
    let mut admitted = verified.admit(&app, Some(model), Loss::CountHere).await?;
    Notes::of(&parts).end(Stage::Admission);
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
    let notes = Notes::of(parts);
    let version = scoring::look_up(app.registry(), model)?;
    notes.version(&version.tally);
    let input = content_format(&parts.headers, &[Format::Json, Format::Ndjson, Format::Csv])?;
    let output = match input {
        Format::Json => accepted_format(&parts.headers, &[Format::Json])?,
        Format::Ndjson => accepted_format(&parts.headers, &[Format::Ndjson])?,
        Format::Csv => accepted_format(&parts.headers, &[Format::Json, Format::Csv])?,
    };
    let wanted = wanted(parts, &version, false, app.engine.answer_timeout() / 2).await?;
    let received = receive(app, parts, body).await?;
    let cost = version.cost;
    let begin = Instant::now();
    let work = Work { app: Arc::clone(app), version, input, output, wanted, notes: notes.clone(), begin };
    // What a compressed body holds is not known before it is decoded, which takes time itself: its rows are counted then.
    let rows = if received.is_gzip() { 0 } else { work.estimate_rows(received.raw()) };
    let looked_up = if app.cache.is_worth_keys(&work.version.worth, rows) { LOOK_UP } else { Duration::ZERO };
    let explained = work.wanted.as_ref().map_or(Duration::ZERO, |wanted| wanted.explaining.cost());
    let may_stay = work.wanted.as_ref().is_none_or(|wanted| wanted.explaining.may_stay());
    let row = cost.row.saturating_add(looked_up).saturating_add(explained);
    let here = rows > 0 && may_stay && app.engine.fits_inline(rows, Cost { row, ..cost });
    let wish = cache::wish(&parts.headers);
    let (answer, status) = if here {
        let read = work.read(received)?;
        let recalled = work.prepare(&read, admitted, wish).await?;
        let recall = work.recall(admitted.caller(), wish);
        let scored = work.score(&read, recalled, &recall, &|| false)?;
        let explained = work.look_up_explanations(&scored, &read, &recall).await;
        work.answer(read, scored, explained, &recall, LONE, &|| false)?
    } else {
        let mut own = admitted.clone();
        let done = move |has_left: &dyn Fn() -> bool| {
            let answer = work.read(received).and_then(|read| {
                // To wait here for others is to wait on a thread that is made for it.
                let recalled = Handle::current().block_on(work.prepare(&read, &mut own, wish))?;
                let recall = work.recall(own.caller(), wish);
                let scored = work.score(&read, recalled, &recall, has_left)?;
                let looking = work.look_up_explanations(&scored, &read, &recall);
                let explained = Handle::current().block_on(looking);
                work.answer(read, scored, explained, &recall, Duration::MAX, has_left)
            });
            (own, answer)
        };
        let (settled, answer) = app.engine.run(rows, false, done).await?;
        *admitted = settled;
        answer?
    };
    let mut response =
        ([(CONTENT_TYPE, HeaderValue::from_static(output.media_type()))], answer).into_response();
    notes.cache(status);
    cache::tell(status, response.headers_mut());
    Ok(response)
}

/// What looking for a row in process and keeping its score takes at the most.
const LOOK_UP: Duration = Duration::from_micros(2);

/// What explaining a row may take on a thread that serves connections, where its closed form does not hold.
const LONE: Duration = Duration::from_micros(200);

/// What a row that is looked up takes in memory beside its numbers.
const KEY_BYTES: usize = 128;

struct Work {
    app: Arc<App>,
    version: Arc<Version>,
    input: Format,
    output: Format,
    /// How scores are explained, where they are.
    wanted: Option<Wanted>,
    notes: Notes,
    /// Since when somebody waits.
    begin: Instant,
}

impl Work {
    /// What writes the answer.
    fn answers(&self) -> Answers<'_> {
        Answers::new(&self.version, self.wanted.as_ref().map(|wanted| Reasons::new(&self.version, wanted)))
    }

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
        self.notes.rows(0, rows.submitted - rows.len());
        self.notes.look(&rows, 0);
        self.notes.end(Stage::Validation);
        // An answer in CSV repeats the body; otherwise its memory makes room for the answer's.
        let sent = (self.output == Format::Csv).then_some((body, received));
        let room = match rows.is_empty() {
            true => None,
            false => {
                let (body, held) =
                    sent.as_ref().map_or((0, 0), |(body, received)| (body.len(), received.held()));
                if let Some(wanted) = self.wanted.as_ref().filter(|wanted| wanted.is_of_all(version)) {
                    self.check_time(wanted, rows.len())?;
                }
                Some(self.room(&rows, body, held)?)
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
        let recalled = self.recall(admitted.caller(), wish).look_up_batch(&self.version, &read.rows).await;
        if recalled.is_some() {
            self.notes.end(Stage::Cache);
        }
        Ok(recalled)
    }

    fn recall<'r>(&'r self, caller: &'r Caller, wish: Wish) -> Recall<'r> {
        Recall { cache: &self.app.cache, caller, wish, notes: &self.notes }
    }

    /// Whether there is time to explain so many rows, be it in the coarsest way; for those who ask for it.
    fn check_time(&self, wanted: &Wanted, rows: usize) -> Result<(), Error> {
        let (least, most) =
            (wanted.explaining.least_cost().as_secs_f64(), self.app.engine.answer_timeout() / 2);
        match (most.as_secs_f64() / least.max(1e-9)) as usize {
            fit if wanted.is_asked && fit < rows => Err(Error::TooManyToExplain { rows, fit: fit.max(1) }),
            _ => Ok(()),
        }
    }

    /// Checked columns → tensors → ONNX Runtime → scores, and which of them are explained. A caller that `has_left` needs none.
    fn score(
        &self,
        read: &Read,
        recalled: Option<Recalled>,
        recall: &Recall<'_>,
        has_left: &dyn Fn() -> bool,
    ) -> Result<BatchScores, Error> {
        let (version, rows) = (&self.version, &read.rows);
        if read.room.is_none() {
            return Err(Error::Rows {
                count: rows.submitted,
                faults: Fault::of_rows(rows, &version.reader, read.prefix),
            });
        }
        if has_left() {
            return Err(scoring::Error::Deadline.into());
        }
        let scored = recall.score_batch(version, rows, recalled, has_left)?;
        let (scores, status) = scored.filter(|_| !has_left()).ok_or(scoring::Error::Deadline)?;
        self.notes.end(Stage::Run);
        self.notes.rows(rows.len(), rows.submitted - rows.len());
        self.notes.scores(scores.rows());
        let some = self.wanted.as_ref().filter(|wanted| !wanted.is_of_all(version));
        let chosen = some.map(|wanted| {
            let rows_of = scores.rows().enumerate();
            let at: Vec<usize> =
                rows_of.filter(|(_, numbers)| wanted.applies(version, numbers)).map(|(row, _)| row).collect();
            let width = version.task.width();
            let numbers = at.iter().flat_map(|row| &scores.values()[row * width..][..width]);
            let scores = Scores::new(width, numbers.copied().collect());
            Chosen { rows: rows.select(&at), scores, at }
        });
        Ok(BatchScores { status, chosen, scores })
    }

    /// Looks for explanations that were computed before.
    async fn look_up_explanations(
        &self,
        scored: &BatchScores,
        read: &Read,
        recall: &Recall<'_>,
    ) -> Option<Recalled> {
        let rows = scored.chosen.as_ref().map_or(&read.rows, |chosen| &chosen.rows);
        self.wanted.as_ref()?.explaining.look_up_batch(recall, rows).await
    }

    /// Scores → explanations, where there are to be any, but for those that were found → answer. `each` is what a row may take whose
    /// closed form does not hold. A caller that `has_left` needs none.
    fn answer(
        &self,
        read: Read,
        scored: BatchScores,
        found: Option<Recalled>,
        recall: &Recall<'_>,
        each: Duration,
        has_left: &dyn Fn() -> bool,
    ) -> Result<(Bytes, Status), Error> {
        let app = &self.app;
        let Read { rows, prefix, sent, room, _decoded } = read;
        let BatchScores { scores, mut status, chosen } = scored;
        let mut answers = self.answers();
        if let Some(wanted) = &self.wanted {
            let begin = Instant::now();
            let (rows, scores) =
                chosen.as_ref().map_or((&rows, &scores), |chosen| (&chosen.rows, &chosen.scores));
            let missing = found.as_ref().map_or(rows.len(), Recalled::missing_rows);
            let weight = wanted.explaining.weight(missing);
            if !rows.is_empty() {
                self.notes.explained(wanted.explaining.method());
            }
            let explanations = match app.engine.hold_explaining(weight) {
                Ok(_permit) => {
                    // The other half is for whatever takes longer than it was expected to.
                    let end = self.begin + app.engine.answer_timeout() / 2;
                    let within = Within { end, each, stop: has_left };
                    let explained = wanted.explaining.explain_batch(recall, rows, scores, found, &within);
                    let (explanations, looked_up) = explained.ok_or(scoring::Error::Deadline)?;
                    if missing > 0 {
                        self.notes.explaining(begin.elapsed());
                    }
                    if !rows.is_empty() {
                        self.notes.end(Stage::Explanation);
                    }
                    status = if looked_up.is_known() { looked_up } else { status };
                    explanations
                }
                Err(error) if wanted.is_asked => return Err(scoring::Error::from(error).into()),
                // Whoever did not ask for it gets the scores all the same.
                Err(_) => Explanations::none(&wanted.explaining, rows.len(), Skipped::Load),
            };
            for (why, rows) in explanations.skipped() {
                self.version.tally.unexplained(why.as_str(), rows);
            }
            answers.explain(Explained { explanations, chosen: chosen.map(|chosen| chosen.at) });
        }
        let body = sent.as_ref().map_or(&[][..], |(body, _)| body);
        let answer = match self.output {
            Format::Json => answers.json_batch(&rows, &scores, prefix),
            Format::Ndjson => answers.ndjson_batch(&rows, &scores),
            Format::Csv => answers.csv_batch(body, &rows, &scores),
        };
        drop((answers, scores, sent));
        let mut room = room.expect("rows that were scored have room");
        room.shrink(answer.len());
        // What is said of refused rows may be longer than scores.
        let more = answer.len() - room.held().min(answer.len());
        let more = app.engine.hold_bytes(more).map_err(scoring::Error::from)?;
        Ok((Bytes::from_owner(Held { answer, _permits: [room, more] }), status))
    }

    /// The memory for scores, explanations and answer, taken before there is any: with many classes they are many times the
    /// body. `body` bytes are repeated in the answer, and `held` bytes are held for the body meanwhile.
    fn room(&self, rows: &FeatureRows, body: usize, held: usize) -> Result<Permit, Error> {
        let (unlisted, rows) = (self.wanted.as_ref().map_or(0, |_| unlisted_bytes(rows)), rows.submitted);
        let cache = &self.app.cache;
        // Rows that are looked up are there twice, with their keys.
        let held_for = |numbers: usize, is_looked_up: bool| {
            let width = numbers * size_of::<f64>();
            if is_looked_up { 3 * width + KEY_BYTES } else { width }
        };
        let score = held_for(self.version.task.width(), cache.is_worth_keys(&self.version.worth, rows));
        let explanation = self.wanted.as_ref().map_or(0, |Wanted { explaining, .. }| {
            held_for(explaining.numbers(), explaining.is_looked_up(cache, rows))
        });
        let per_row = score + explanation + self.answers().row_bytes(self.output);
        let wanted = rows.saturating_mul(per_row).saturating_add(body).saturating_add(unlisted);
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

/// The scores of a batch, and what the cache had to do with them.
struct BatchScores {
    scores: Scores,
    status: Status,
    /// The rows that are explained, where that is not all.
    chosen: Option<Chosen>,
}

/// Some rows of a batch.
struct Chosen {
    /// Their places among all.
    at: Vec<usize>,
    rows: FeatureRows,
    scores: Scores,
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
