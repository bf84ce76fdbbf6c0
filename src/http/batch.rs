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
use super::predict::{ModelPath, choose, verify_for_model};
use super::problem::{Code, Error, Fault, chain};
use super::wire::{self, Answers, tells_version};
use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::cache::{Status, Wish};
use crate::limiter::Loss;
use crate::registry::{Cost, Version};
use crate::rollout::shadow::Answered;
use crate::scoring::{self, Choice, Explanations, Levels, Permit, Recall, Recalled, Skipped, Within};
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
    let choice = choose(app, model, admitted.caller(), parts)?;
    notes.version(&choice.first().tally);
    if choice.is_pinned() {
        notes.pinned();
    }
    let input = content_format(&parts.headers, &[Format::Json, Format::Ndjson, Format::Csv])?;
    let output = match input {
        Format::Json => accepted_format(&parts.headers, &[Format::Json])?,
        Format::Ndjson => accepted_format(&parts.headers, &[Format::Ndjson])?,
        Format::Csv => accepted_format(&parts.headers, &[Format::Json, Format::Csv])?,
    };
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let wanted = match choice.known() {
        Some(version) => wanted(&query, version, false, app.engine.answer_timeout() / 2).await?,
        // Each version is asked once it is known to have rows.
        None => None,
    };
    let received = receive(app, parts, body).await?;
    let (app, begin) = (Arc::clone(app), Instant::now());
    let mut work =
        Work { app: Arc::clone(&app), choice, input, output, query, wanted, notes: notes.clone(), begin };
    // What a compressed body holds is not known before it is decoded, which takes time itself: its rows are counted then.
    let rows = if received.is_gzip() { 0 } else { work.estimate_rows(received.raw()) };
    let here = rows > 0 && work.fits_inline(rows);
    let wish = cache::wish(&parts.headers);
    let (answer, status) = if here {
        let mut read = work.read(received)?;
        work.prepare(&mut read, admitted, wish).await?;
        let caller = admitted.caller();
        work.score(&mut read, caller, wish, &|| false)?;
        work.look_up_explanations(&mut read, caller, wish).await;
        work.answer(read, caller, wish, LONE, &|| false)?
    } else {
        let mut own = admitted.clone();
        let done = move |has_left: &dyn Fn() -> bool| {
            let answer = work.read(received).and_then(|mut read| {
                // To wait here for others is to wait on a thread that is made for it.
                Handle::current().block_on(work.prepare(&mut read, &mut own, wish))?;
                let caller = own.caller();
                work.score(&mut read, caller, wish, has_left)?;
                Handle::current().block_on(work.look_up_explanations(&mut read, caller, wish));
                work.answer(read, caller, wish, Duration::MAX, has_left)
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
    choice: Choice,
    input: Format,
    output: Format,
    query: String,
    /// How scores are explained, where they are, and one version answers all rows.
    wanted: Option<Wanted>,
    notes: Notes,
    /// Since when somebody waits.
    begin: Instant,
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
        1 + marks.max(body.len() / 1_024).min(self.choice.first().max_batch_rows)
    }

    /// Whether so many rows are estimated to be answered within what may be done on a thread that serves connections.
    fn fits_inline(&self, rows: usize) -> bool {
        let may_be_explained = |version: &Arc<Version>| version.explain.mode.is_default();
        let may_stay = match (&self.wanted, self.choice.known()) {
            (Some(wanted), _) => wanted.explaining.may_stay(),
            (None, Some(_)) => true,
            (None, None) => self.query.is_empty() && !self.choice.candidates().any(may_be_explained),
        };
        let is_looked_up = self.app.cache.is_worth_keys(&self.choice.first().worth, rows);
        let looked_up = if is_looked_up { LOOK_UP } else { Duration::ZERO };
        let explained = self.wanted.as_ref().map_or(Duration::ZERO, |wanted| wanted.explaining.cost());
        // Each version that may answer some of them has a run of its own.
        let candidates = self.choice.candidates().map(|version| version.cost);
        let cost =
            candidates.reduce(|all, cost| Cost { run: all.run + cost.run, row: all.row.max(cost.row) });
        cost.is_some_and(|cost| {
            let row = cost.row.saturating_add(looked_up).saturating_add(explained);
            may_stay && self.app.engine.fits_inline(rows, Cost { row, ..cost })
        })
    }

    /// Bytes → checked columns, of each version that answers some of them.
    fn read(&mut self, received: Received) -> Result<Read, Error> {
        let body = received.decode(self.app.settings.server.max_body_bytes)?;
        let decoded = if received.is_gzip() {
            let rows = self.estimate_rows(&body);
            Some(self.app.engine.hold_rows(rows).map_err(scoring::Error::from)?)
        } else {
            None
        };
        let first = self.choice.first();
        let (rows, prefix) = self.rows(first, &body).map_err(|error| match error {
            BodyError::Header(faults) => Error::Header(Fault::of_row(&faults, &first.reader)),
            other => other.into(),
        })?;
        let submitted = rows.submitted;
        let (parts, owners) = match self.choice.known() {
            Some(version) => {
                let (version, notes) = (Arc::clone(version), self.notes.clone());
                (vec![Part::new(version, rows, notes, self.wanted.take())], Vec::new())
            }
            None => self.distribute(rows, &body)?,
        };
        for Part { notes, rows, .. } in &parts {
            notes.rows(0, rows.faults.len());
            notes.look(rows, 0);
        }
        self.notes.end(Stage::Validation);
        let is_compared = || parts.iter().any(|part| self.is_compared(&part.version));
        // An answer in CSV repeats the body, and whoever compares versions reads it; otherwise its memory makes room for the answer's.
        let sent = (self.output == Format::Csv || is_compared()).then_some((body, received));
        Ok(Read { parts, owners, submitted, prefix, sent, room: None, _decoded: decoded })
    }

    /// Whether anybody wants to know what `version` answers.
    fn is_compared(&self, version: &Arc<Version>) -> bool {
        self.app.shadows.wants(self.choice.split(), version) && self.choice.is_sample(version)
    }

    /// The rows of a body as `version` reads them, and what pointers to them begin with.
    fn rows(&self, version: &Version, body: &[u8]) -> Result<(FeatureRows, &'static str), BodyError> {
        let (reader, most) = (&version.reader, version.max_batch_rows);
        Ok(match self.input {
            Format::Json => reader.json_rows(body, most).map(|read| (read.rows, read.prefix))?,
            Format::Ndjson => (reader.ndjson_rows(body, most)?, "#"),
            Format::Csv => (reader.csv_rows(body, most)?, "#"),
        })
    }

    /// Gives each of the `rows`, as the first version reads them, to the version that answers it; says whose each is, where they are
    /// not all of one.
    fn distribute(&self, mut rows: FeatureRows, body: &[u8]) -> Result<(Vec<Part>, Vec<u8>), Error> {
        let candidates: Vec<&Arc<Version>> = self.choice.candidates().collect();
        let candidate = |entity| {
            let version = self.choice.of(entity);
            candidates.iter().position(|other| Arc::ptr_eq(other, version)).unwrap_or_default()
        };
        let chosen: Vec<usize> = rows.entities_sent().map(candidate).collect();
        let answering = (0..candidates.len()).filter(|candidate| chosen.contains(candidate));
        let answering: Vec<usize> = answering.collect();
        let reads_alike = |version: &Version| version.reader.reads_as(&self.choice.first().reader);
        let last = answering.iter().rposition(|candidate| reads_alike(candidates[*candidate]));
        let mut parts = Vec::with_capacity(answering.len());
        for (at, candidate) in answering.iter().enumerate() {
            let version = candidates[*candidate];
            let is_own = |index: usize| chosen[index] == *candidate;
            let own = if Some(at) == last {
                // Nobody else needs them: all parts together hold each row once.
                let mut own = std::mem::take(&mut rows);
                rows.submitted = own.submitted;
                own.retain(is_own);
                own
            } else if reads_alike(version) {
                rows.part(&version.reader, is_own)
            } else {
                match self.rows(version, body) {
                    Ok((mut rows, _)) => {
                        rows.retain(is_own);
                        rows
                    }
                    // Whom the header fits are answered all the same.
                    Err(BodyError::Header(faults)) => {
                        let places = (0..rows.submitted).filter(|index| is_own(*index));
                        FeatureRows::refused(rows.submitted, places, &faults)
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            let notes = self.notes.of_part(at, &version.tally);
            parts.push(Part::new(Arc::clone(version), own, notes, None));
        }
        let owner = |candidate: usize| answering.iter().position(|other| *other == candidate);
        let owners = match parts.len() {
            1 => Vec::new(),
            // There are a few canaries at the most.
            _ => chosen.into_iter().map(|candidate| owner(candidate).unwrap_or_default() as u8).collect(),
        };
        Ok((parts, owners))
    }

    /// Takes the memory that the answer needs and the rows of the caller's quota, and looks for scores that were computed before.
    async fn prepare(&self, read: &mut Read, admitted: &mut Admitted, wish: Wish) -> Result<(), Error> {
        if self.choice.known().is_none() {
            let end = Instant::now() + self.app.engine.answer_timeout() / 2;
            for part in &mut read.parts {
                // However many there are to be waited for, the caller waits no longer.
                let patience = end.saturating_duration_since(Instant::now());
                part.wanted = wanted(&self.query, &part.version, false, patience).await?;
            }
        }
        if read.parts.iter().any(|part| !part.rows.is_empty()) {
            self.check_time(&read.parts)?;
            read.room = Some(self.room(read)?);
        }
        admitted.settle(&self.app, read.submitted).await?;
        for part in &mut read.parts {
            let recall = self.recall(&part.notes, admitted.caller(), wish);
            part.recalled = recall.look_up_batch(&part.version, &part.rows).await;
        }
        if read.parts.iter().any(|part| part.recalled.is_some()) {
            self.notes.end(Stage::Cache);
        }
        Ok(())
    }

    fn recall<'r>(&'r self, notes: &'r Notes, caller: &'r Caller, wish: Wish) -> Recall<'r> {
        Recall { cache: &self.app.cache, caller, wish, notes }
    }

    /// Whether there is time to explain so many rows, be it in the coarsest way; for those who ask for it.
    fn check_time(&self, parts: &[Part]) -> Result<(), Error> {
        let (mut rows, mut least) = (0, 0.0);
        for part in parts {
            let asked = part.wanted.as_ref().filter(|wanted| wanted.is_asked);
            rows += asked.map_or(0, |_| part.rows.len());
            least += asked
                .map_or(0.0, |wanted| wanted.explaining.least_cost().as_secs_f64() * part.rows.len() as f64);
        }
        let most = self.app.engine.answer_timeout() / 2;
        match (most.as_secs_f64() / (least / rows.max(1) as f64).max(1e-9)) as usize {
            fit if fit < rows => Err(Error::TooManyToExplain { rows, fit: fit.max(1) }),
            _ => Ok(()),
        }
    }

    /// Checked columns → tensors → ONNX Runtime → scores, and which of them are explained. A caller that `has_left` needs none.
    fn score(
        &self,
        read: &mut Read,
        caller: &Caller,
        wish: Wish,
        has_left: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        if read.room.is_none() {
            let rows = read.parts.iter().map(|part| (&part.rows, &part.version.reader));
            return Err(Error::Rows { count: read.submitted, faults: Fault::of_rows(rows, read.prefix) });
        }
        let are_several = read.parts.len() > 1;
        let mut failure = None;
        for part in read.parts.iter_mut().filter(|part| !part.rows.is_empty()) {
            let begin = Instant::now();
            part.notes.begin_work();
            let recalled = part.recalled.take();
            let recall = self.recall(&part.notes, caller, wish);
            let scored = part.version_scores(recalled, &recall, has_left);
            part.scored = Some(match scored {
                Ok(scored) => Ok(scored),
                Err(error) if are_several && !matches!(error, scoring::Error::Deadline) => {
                    Err(part.fail(error, &mut failure))
                }
                Err(error) => return Err(error.into()),
            });
            if are_several {
                part.notes.end_work(begin.elapsed());
            }
        }
        self.notes.end(Stage::Run);
        let is_scored = |part: &Part| matches!(part.scored, Some(Ok(_)));
        if let Some(failure) = failure.filter(|_| !read.parts.iter().any(is_scored)) {
            return Err(failure);
        }
        if let Some((body, _)) = &read.sent {
            let answered =
                read.parts.iter().filter(|part| self.is_compared(&part.version)).filter_map(|part| {
                    let Some(Ok(scored)) = &part.scored else { return None };
                    let (version, places) = (&part.version, &part.rows.indices[..]);
                    Some(Answered { version, places, scores: scored.scores.values() })
                });
            self.app.shadows.offer(self.choice.split(), body, self.input.form(), answered);
        }
        Ok(())
    }

    /// Looks for explanations that were computed before.
    async fn look_up_explanations(&self, read: &mut Read, caller: &Caller, wish: Wish) {
        for part in &mut read.parts {
            let (Some(wanted), Some(Ok(scored))) = (&part.wanted, &part.scored) else { continue };
            let rows = scored.chosen.as_ref().map_or(&part.rows, |chosen| &chosen.rows);
            let recall = self.recall(&part.notes, caller, wish);
            part.found = wanted.explaining.look_up_batch(&recall, rows).await;
        }
    }

    /// Scores → explanations, where there are to be any, but for those that were found → answer. `each` is what a row may take whose
    /// closed form does not hold. A caller that `has_left` needs none.
    fn answer(
        &self,
        read: Read,
        caller: &Caller,
        wish: Wish,
        each: Duration,
        has_left: &dyn Fn() -> bool,
    ) -> Result<(Bytes, Status), Error> {
        let Read { mut parts, owners, prefix, sent, room, _decoded, .. } = read;
        let are_several = parts.len() > 1;
        // What the cache had to do with scores and with explanations.
        let (mut scored, mut explained) = (Levels::default(), Levels::default());
        let mut explanations = Vec::with_capacity(parts.len());
        for part in &mut parts {
            let begin = Instant::now();
            if are_several {
                part.notes.begin_work();
            }
            let of_part = self.explain(part, caller, wish, each, has_left)?;
            explanations.push(of_part.map(|(of_part, levels)| {
                explained += levels;
                of_part
            }));
            if let Some(Ok(scores)) = &mut part.scored {
                scored += std::mem::take(&mut scores.levels);
            }
            if are_several {
                part.notes.end_work(begin.elapsed());
            }
        }
        let status = Some(explained.status()).filter(Status::is_known).unwrap_or(scored.status());
        let answered = parts.iter().zip(explanations).map(|(part, explained)| {
            let mut answers = part.answers();
            if let Some(explained) = explained {
                answers.explain(explained);
            }
            let scores = match &part.scored {
                Some(Ok(scored)) => Ok(&scored.scores),
                Some(Err(code)) => Err(*code),
                // Nobody asks for them.
                None => Err(Code::Internal.as_str()),
            };
            answers.to(&part.rows, scores)
        });
        let batch = wire::Batch::new(answered.collect(), &owners);
        let answer = match self.output {
            Format::Json => batch.json(prefix),
            Format::Ndjson => batch.ndjson(),
            Format::Csv => batch.csv(sent.as_ref().map_or(&[][..], |(body, _)| body)),
        };
        drop((parts, sent));
        let mut room = room.expect("rows that were scored have room");
        room.shrink(answer.len());
        // What is said of refused rows may be longer than scores.
        let more = answer.len() - room.held().min(answer.len());
        let more = self.app.engine.hold_bytes(more).map_err(scoring::Error::from)?;
        Ok((Bytes::from_owner(Held { answer, _permits: [room, more] }), status))
    }

    /// The explanations of a part, where there are to be any, and what the cache had to do with them.
    fn explain(
        &self,
        part: &mut Part,
        caller: &Caller,
        wish: Wish,
        each: Duration,
        has_left: &dyn Fn() -> bool,
    ) -> Result<Option<(Explained, Levels)>, Error> {
        let (Some(wanted), Some(Ok(scored))) = (&part.wanted, &mut part.scored) else { return Ok(None) };
        let (begin, engine) = (Instant::now(), &self.app.engine);
        let chosen = scored.chosen.take();
        let (rows, scores) = match &chosen {
            None => (&part.rows, &scored.scores),
            Some(chosen) => (&chosen.rows, &chosen.scores),
        };
        let found = part.found.take();
        let missing = found.as_ref().map_or(rows.len(), Recalled::missing_rows);
        if !rows.is_empty() {
            part.notes.explained(wanted.explaining.method());
        }
        let (explanations, levels) = match engine.hold_explaining(wanted.explaining.weight(missing)) {
            Ok(_permit) => {
                // The other half is for whatever takes longer than it was expected to.
                let end = self.begin + engine.answer_timeout() / 2;
                let within = Within { end, each, stop: has_left };
                let recall = self.recall(&part.notes, caller, wish);
                let explained = wanted.explaining.explain_batch(&recall, rows, scores, found, &within);
                let explained = explained.ok_or(scoring::Error::Deadline)?;
                if missing > 0 {
                    part.notes.explaining(begin.elapsed());
                }
                if !rows.is_empty() {
                    part.notes.end(Stage::Explanation);
                }
                explained
            }
            Err(error) if wanted.is_asked => return Err(scoring::Error::from(error).into()),
            // Whoever did not ask for it gets the scores all the same.
            Err(_) => {
                let none = Explanations::none(&wanted.explaining, rows.len(), Skipped::Load);
                (none, Levels::default())
            }
        };
        for (why, rows) in explanations.skipped() {
            part.version.tally.unexplained(why.as_str(), rows);
        }
        Ok(Some((Explained { explanations, chosen: chosen.map(|chosen| chosen.at) }, levels)))
    }

    /// The memory for scores, explanations and answer, taken before there is any: with many classes they are many times the
    /// body, which an answer in CSV repeats.
    fn room(&self, read: &Read) -> Result<Permit, Error> {
        let cache = &self.app.cache;
        // Rows that are looked up are there twice, with their keys.
        let held_for = |numbers: usize, is_looked_up: bool| {
            let width = numbers * size_of::<f64>();
            if is_looked_up { 3 * width + KEY_BYTES } else { width }
        };
        let (body, held) = match &read.sent {
            Some((body, received)) if self.output == Format::Csv => (body.len(), received.held()),
            // What was decoded is kept beside what was sent.
            Some((body, received)) => (if received.is_gzip() { body.len() } else { 0 }, received.held()),
            None => (0, 0),
        };
        let mut wanted = body;
        for (at, part) in read.parts.iter().enumerate() {
            let rows = part.rows.len() + part.rows.faults.len();
            let unlisted = part.wanted.as_ref().map_or(0, |_| unlisted_bytes(&part.rows));
            let version = &part.version;
            let score = held_for(version.task.width(), cache.is_worth_keys(&version.worth, rows));
            let explanation = part.wanted.as_ref().map_or(0, |Wanted { explaining, .. }| {
                held_for(explaining.numbers(), explaining.is_looked_up(cache, rows))
            });
            let answer = part.answers().row_bytes(self.output, tells_version(self.output, at));
            let all = rows.saturating_mul(score + explanation + answer);
            wanted = wanted.saturating_add(all).saturating_add(unlisted);
        }
        let most = self.app.engine.max_bytes().saturating_sub(held);
        if wanted > most {
            // To wait for others would not help.
            let rows = read.submitted;
            let fit = most / (wanted / rows.max(1)).max(1);
            return Err(Error::AnswerTooLarge { rows, fit });
        }
        Ok(self.app.engine.hold_bytes(wanted).map_err(scoring::Error::from)?)
    }
}

/// A batch that has been read.
struct Read {
    /// The rows of each version that answers some of them.
    parts: Vec<Part>,
    /// Which part each row that was sent belongs to, where there are several.
    owners: Vec<u8>,
    /// How many rows were sent.
    submitted: usize,
    /// What pointers to its rows begin with.
    prefix: &'static str,
    /// The body, where it is needed once more.
    sent: Option<(Bytes, Received)>,
    /// None if no row can be scored.
    room: Option<Permit>,
    _decoded: Option<Permit>,
}

/// The rows of a batch that one version answers, and what has become of them so far.
struct Part {
    version: Arc<Version>,
    notes: Notes,
    /// In the places where they were sent.
    rows: FeatureRows,
    /// How their scores are explained, where they are.
    wanted: Option<Wanted>,
    /// Scores that were computed before.
    recalled: Option<Recalled>,
    /// Nothing if no row has passed; a code if the version failed where others did not.
    scored: Option<Result<BatchScores, &'static str>>,
    /// Explanations that were computed before.
    found: Option<Recalled>,
}

impl Part {
    fn new(version: Arc<Version>, rows: FeatureRows, notes: Notes, wanted: Option<Wanted>) -> Self {
        Self { version, notes, rows, wanted, recalled: None, scored: None, found: None }
    }

    /// What writes the answers.
    fn answers(&self) -> Answers<'_> {
        Answers::new(&self.version, self.wanted.as_ref().map(|wanted| Reasons::new(&self.version, wanted)))
    }

    /// The scores of its rows, and which of them are explained.
    fn version_scores(
        &self,
        recalled: Option<Recalled>,
        recall: &Recall<'_>,
        has_left: &dyn Fn() -> bool,
    ) -> Result<BatchScores, scoring::Error> {
        let (version, rows) = (&self.version, &self.rows);
        if has_left() {
            return Err(scoring::Error::Deadline);
        }
        let scored = recall.score_batch(version, rows, recalled, has_left)?;
        let (scores, levels) = scored.filter(|_| !has_left()).ok_or(scoring::Error::Deadline)?;
        self.notes.rows(rows.len(), rows.faults.len());
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
        Ok(BatchScores { levels, chosen, scores })
    }

    /// Its rows are refused, since it failed where others need not; the code of why.
    fn fail(&self, error: scoring::Error, failure: &mut Option<Error>) -> &'static str {
        let error = Error::from(error);
        let (code, causes) = (error.code().as_str(), chain(&error));
        let (model, version) = (&self.version.manifest.name, &self.version.manifest.version);
        tracing::error!(
            model.name = model,
            model.version = version,
            code,
            error = causes,
            "a version failed with its rows of a batch"
        );
        self.notes.failed();
        failure.get_or_insert(error);
        code
    }
}

/// The scores of a part, and what the cache had to do with them.
struct BatchScores {
    scores: Scores,
    levels: Levels,
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
