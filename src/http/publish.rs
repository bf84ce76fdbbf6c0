//! `POST /v1/models/{model}/versions` on the admin listener: publishes a model that is sent, once it was examined in a process of its
//! own. It answers nobody before it is promoted, unless it is the first.

use std::fs::File;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as _, Bytes};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::http::request::Parts as Head;
use scoregate_model::import::Live;
use scoregate_model::package::{self, GOLDEN, MODEL, Repository, read_manifest};
use scoregate_schemas::manifest::{Bindings, Output};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::admission::Admitted;
use super::body::{Format, accepted_format, has_left};
use super::models::JSON;
use super::multipart::{self, Malformed, Parts, Reader};
use super::predict::{ModelPath, no_parameters, verify_for_model};
use super::problem::Error;
use crate::app::{self, App};
use crate::audit::Actor;
use crate::auth::Scope;
use crate::files;
use crate::import::{
    Error as ImportError, Import, Report, Said, TOLERANCE, bindings_in_words, output_in_words, read_bindings,
    tolerance,
};
use crate::limiter::Loss;
use crate::rollout;
use crate::sandbox::Sandbox;
use crate::scoring;
use crate::telemetry::notes::{Notes, Stage};
use crate::uploads::{Place, Upload};

/// Pieces of a body that wait to be written.
const QUEUE: usize = 4;

/// As much has to come within each body timeout: whoever is slower is not sending.
const PROGRESS: usize = 1 << 20;

/// How long an upload may take in all: it has one of few places.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// The largest schema, and as much about bindings.
const MAX_SCHEMA_BYTES: usize = 4 << 20;

/// How long what is left of a body is read away that nobody takes any more.
const READ_AWAY: Duration = Duration::from_secs(5);

/// The longest text among the parts.
const MAX_TEXT_BYTES: usize = 16 << 10;

/// The longest reason that a client is told.
const MAX_REASON_CHARS: usize = 2_000;

/// A piece of a body.
enum Piece {
    Bytes(Bytes),
    /// The body has ended as it should.
    End,
}

/// Publishes what is sent as a version of the model.
pub(super) async fn publish(
    State(app): State<Arc<App>>,
    path: ModelPath,
    request: Request,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts();
    let (verified, model) = verify_for_model(&app, &parts, Scope::ModelsWrite, &path).await?;
    let admitted = verified.admit(&app, None, Loss::Refuse).await?;
    Ok(admitted.answer(receive(&app, model, &admitted, &parts, body).await))
}

async fn receive(
    app: &Arc<App>,
    model: &str,
    admitted: &Admitted,
    parts: &Head,
    body: Body,
) -> Result<Response, Error> {
    no_parameters(parts)?;
    accepted_format(&parts.headers, &[Format::Json])?;
    let boundary = boundary(parts)?;
    app.registry().ok_or(scoring::Error::NotReady)?;
    package::check_name("model", model)?;
    let limit = app.settings.server.max_upload_bytes;
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > limit {
        return Err(Error::BodyTooLarge { limit });
    }
    let place = app.uploads.place().ok_or(scoring::Error::from(scoring::Overloaded))?;
    let (pieces, coming) = mpsc::channel(QUEUE);
    let (answer, answered) = oneshot::channel();
    let work = Work { app: Arc::clone(app), model: model.into(), caller: admitted.caller().id().into() };
    let thread = std::thread::Builder::new().name("scoregate-publish".into());
    // A thread of its own: it writes files and waits for processes, and neither those that serve nor those that score may wait for it.
    let work = move || {
        let done = catch_unwind(AssertUnwindSafe(|| {
            work.carry_out(place, &boundary, coming, &|| answer.is_closed())
        }));
        if let Some(done) = done.unwrap_or(Some(Err(Error::Panicked))) {
            let _ = answer.send(done);
        }
    };
    thread.spawn(work).map_err(|error| Error::Publishing(Box::new(error)))?;
    let has_ended = forward(body, pieces, app.settings.server.body_timeout, limit, &Notes::of(parts)).await?;
    let report = match answered.await.map_err(|_| Error::Panicked)? {
        Ok(report) => report,
        Err(error) => {
            let mut refusal = error.into_response();
            if !has_ended {
                refusal.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            return Ok(refusal);
        }
    };
    let location = format!("/v1/models/{}/versions/{}", report.model, report.version);
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(JSON)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (LOCATION, HeaderValue::try_from(location).expect("names of models and versions are plain ASCII")),
    ];
    Ok((StatusCode::CREATED, headers, told(&report).to_string()).into_response())
}

/// The boundary of a form that is not compressed.
fn boundary(parts: &Head) -> Result<String, Error> {
    let mut encodings = parts.headers.get_all(CONTENT_ENCODING).iter();
    if encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Error::Compressed);
    }
    let mut types = parts.headers.get_all(CONTENT_TYPE).iter();
    let found = types.next().filter(|_| types.next().is_none()).and_then(|found| found.to_str().ok());
    found.and_then(multipart::boundary).ok_or(Error::MediaType("multipart/form-data with a boundary"))
}

/// Passes a body on as it comes, until it ends; whether it has. Where nobody takes it any more, what is left is read away for a while,
/// so that a client which sends everything before it listens hears why.
async fn forward(
    mut body: Body,
    pieces: mpsc::Sender<Piece>,
    timeout: Duration,
    limit: usize,
    notes: &Notes,
) -> Result<bool, Error> {
    let (begin, mut have) = (Instant::now(), 0);
    let forwarded = forward_pieces(&mut body, pieces, timeout, limit, &mut have).await;
    notes.received(have);
    notes.receiving(begin.elapsed());
    notes.end(Stage::Body);
    forwarded.map_err(|stopped| match stopped {
        Stopped::Broken(error) => {
            if has_left(&error) {
                notes.left();
            }
            Error::BodyBroken
        }
        Stopped::Slow => Error::BodyTimeout,
        Stopped::Long => Error::BodyTooLarge { limit },
    })
}

/// Why a body is read no further.
enum Stopped {
    Broken(axum::Error),
    Slow,
    Long,
}

async fn forward_pieces(
    body: &mut Body,
    pieces: mpsc::Sender<Piece>,
    timeout: Duration,
    limit: usize,
    have: &mut usize,
) -> Result<bool, Stopped> {
    let (mut since_deadline, mut is_wanted) = (0, true);
    let last = Instant::now() + LONGEST.max(timeout);
    let mut deadline = Instant::now() + timeout;
    loop {
        let frame = tokio::select! {
            () = pieces.closed(), if is_wanted => {
                is_wanted = false;
                deadline = deadline.min(Instant::now() + READ_AWAY);
                continue;
            }
            frame = tokio::time::timeout_at(deadline, body.frame()) => frame,
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(_) if is_wanted => return Err(Stopped::Slow),
            Err(_) => return Ok(false),
        };
        let Some(frame) = frame else { break };
        let Ok(bytes) = frame.map_err(Stopped::Broken)?.into_data() else { continue };
        *have = have.saturating_add(bytes.len());
        if *have > limit {
            return if is_wanted { Err(Stopped::Long) } else { Ok(false) };
        }
        since_deadline += bytes.len();
        let came = Instant::now();
        // That nobody takes it is seen above.
        if is_wanted && pieces.send(Piece::Bytes(bytes)).await.is_ok() {
            // While it waits to be written, the client cannot send.
            deadline += came.elapsed();
            if since_deadline >= PROGRESS {
                (since_deadline, deadline) = (0, Instant::now() + timeout);
            }
            deadline = deadline.min(last);
        }
    }
    let _ = pieces.send(Piece::End).await;
    Ok(true)
}

/// What is done on a thread of its own.
struct Work {
    app: Arc<App>,
    model: String,
    caller: String,
}

impl Work {
    /// Takes in an upload and publishes it; nothing if the client has left. Whatever comes of it, the upload's directory goes.
    fn carry_out(
        &self,
        place: Place,
        boundary: &str,
        mut coming: mpsc::Receiver<Piece>,
        has_left: &dyn Fn() -> bool,
    ) -> Option<Result<Report, Error>> {
        let upload = match place.open() {
            Ok(upload) => upload,
            Err(error) => return Some(Err(Error::of_storage(error))),
        };
        let mut received = Received::new(&upload);
        let mut reader = Reader::new(boundary);
        loop {
            match coming.blocking_recv() {
                None => return None,
                Some(Piece::End) => break,
                Some(Piece::Bytes(bytes)) => {
                    if let Err(error) = reader.feed(&bytes, &mut received) {
                        return Some(Err(error));
                    }
                }
            }
        }
        if let Err(malformed) = reader.finish() {
            return Some(Err(malformed.into()));
        }
        // Whoever sends the next piece is told that none is wanted.
        drop(coming);
        self.publish(received, has_left).transpose()
    }

    fn publish(&self, received: Received<'_>, has_left: &dyn Fn() -> bool) -> Result<Option<Report>, Error> {
        let (app, settings) = (&self.app, &self.app.settings);
        let repository = app.store.local();
        let import = received.import(&self.model, repository)?;
        import.check_names()?;
        if let Some(version) = &import.version {
            import.check_new(repository, version)?;
        }
        let library = app::library(&settings.runtime).map_err(|error| Error::Publishing(Box::new(error)))?;
        let sandbox = Sandbox::new(&settings.models, settings.scoring.workers);
        let overrides = received.said()?.overrides(received.stated()?, import.tolerance);
        let examined = import.examine(&sandbox, library, overrides).inspect_err(|error| self.log(error))?;
        let publication = import.prepare(repository, examined)?;
        if has_left() {
            return Ok(None);
        }
        Ok(Some(publication.carry_out(&app.store, &app.audit, &Actor::caller(&self.caller))?))
    }

    /// Tells the operator why an upload is refused: all of it, of which the client hears the reason alone.
    fn log(&self, error: &ImportError) {
        let ImportError::Refused { code, reason, message } = error else { return };
        // What is said of rows may repeat what stands in them.
        let is_of_rows = ["invalid_reference", "invalid_golden", "golden_mismatch"].contains(&code.as_str());
        let error = if is_of_rows { reason } else { message };
        tracing::warn!(model.name = self.model, caller = self.caller, code, error, "upload refused");
    }
}

/// The parts of a form, as far as they have come.
struct Received<'u> {
    directory: &'u Path,
    open: Option<Open>,
    files: Vec<(&'static str, PathBuf)>,
    texts: Vec<(&'static str, String)>,
}

/// The part that is coming.
enum Open {
    File { name: &'static str, path: PathBuf, file: File, left: usize, limit: usize },
    Text { name: &'static str, bytes: Vec<u8> },
}

/// The parts: what each is called, and in which file it is kept, if it is one.
const PARTS: [(&str, Option<&str>); 12] = [
    ("model", Some(MODEL)),
    ("schema", Some(SCHEMA)),
    ("reference", Some("reference.csv")),
    ("golden", Some(GOLDEN)),
    ("bindings", Some(BINDINGS)),
    ("version", None),
    ("tolerance", None),
    ("input", None),
    ("output", None),
    ("link", None),
    ("task", None),
    ("positive", None),
];

/// What the schema is kept as.
const SCHEMA: &str = "schema.json";

/// What is said of bindings and output is kept as this.
const BINDINGS: &str = "bindings.json";

/// How many bytes such a file may have: as many as a package's.
fn limit_of(file: &str) -> usize {
    if [SCHEMA, BINDINGS].contains(&file) { MAX_SCHEMA_BYTES } else { package::max_bytes(file) }
}

impl<'u> Received<'u> {
    fn new(upload: &'u Upload) -> Self {
        Self { directory: upload.path(), open: None, files: Vec::new(), texts: Vec::new() }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.files.iter().find(|(known, _)| *known == name).map(|(_, path)| path.clone())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.texts.iter().find(|(known, _)| *known == name).map(|(_, text)| text.as_str())
    }

    /// What is said of the graph in words.
    fn said(&self) -> Result<Said, Error> {
        if self.file("bindings").is_some()
            && let Some(name) = Said::NAMES.into_iter().find(|name| self.text(name).is_some())
        {
            let words =
                format!("found the parts bindings and {name}, expected one of them: bindings say it all");
            return Err(Error::Upload(words));
        }
        Said::read(|name| self.text(name)).map_err(Error::Upload)
    }

    /// What is said of it as a manifest does.
    fn stated(&self) -> Result<(Option<Bindings>, Option<Output>), Error> {
        let stated = self.file("bindings").map(|path| read_bindings(&path)).transpose()?;
        Ok(stated.unwrap_or_default())
    }

    /// What is to be published. Without a schema of its own a version has the live one's.
    fn import(&self, model: &str, repository: &Repository) -> Result<Import, Error> {
        let file = self.file("model").ok_or_else(|| Error::Upload("expected a part called model".into()))?;
        let (schema, live) = match self.file("schema") {
            Some(schema) => (schema, None),
            None => self.live(model, repository).map(|(schema, live)| (schema, Some(live)))?,
        };
        let tolerance = match self.text("tolerance") {
            None => TOLERANCE,
            Some(text) => {
                let wrong = |expected| Error::Upload(format!("the part tolerance is not {expected}"));
                tolerance(text.trim()).map_err(wrong)?
            }
        };
        Ok(Import {
            model: file,
            name: model.into(),
            schema,
            version: self.text("version").map(|version| version.trim().to_owned()),
            reference: self.file("reference"),
            golden: self.file("golden"),
            tolerance,
            live,
        })
    }

    /// The live version's schema, in a file, and what else it tells.
    fn live(&self, model: &str, repository: &Repository) -> Result<(PathBuf, Live), Error> {
        let none = || {
            let words = "expected a part called schema: there is no live version of this model whose schema could be taken";
            Error::Upload(words.into())
        };
        let versions = repository.versions(model).map_err(|error| Error::Publishing(Box::new(error)))?;
        if versions.is_empty() {
            return Err(none());
        }
        let live = rollout::live(repository, model, &versions).map_err(|_| none())?;
        let (manifest, _) = read_manifest(&repository.directory(model, &live)).map_err(|_| none())?;
        let path = self.directory.join(SCHEMA);
        let text = serde_json::to_vec(&manifest.schema).expect("a schema was JSON");
        std::fs::write(&path, text).map_err(Error::of_storage)?;
        Ok((path, Live { bindings: manifest.bindings, output: manifest.output }))
    }
}

impl Parts for Received<'_> {
    type Refusal = Error;

    fn begin(&mut self, name: &str) -> Result<(), Error> {
        let Some((name, kept)) = PARTS.iter().find(|(known, _)| *known == name) else {
            // What the client calls its parts may be told to it, as far as it is short and plain.
            let found: String = name.chars().filter(|found| !found.is_control()).take(64).collect();
            let known = PARTS.map(|(known, _)| known).join(", ");
            return Err(Error::Upload(format!("found a part called \"{found}\", expected {known}")));
        };
        if self.files.iter().any(|(known, _)| known == name) || self.text(name).is_some() {
            return Err(Error::Upload(format!("found the part {name} twice, expected it once")));
        }
        self.open = Some(match kept {
            None => Open::Text { name, bytes: Vec::new() },
            Some(kept) => {
                let (path, limit) = (self.directory.join(kept), limit_of(kept));
                let file = File::create_new(&path).map_err(Error::of_storage)?;
                Open::File { name, path, file, left: limit, limit }
            }
        });
        Ok(())
    }

    fn take(&mut self, more: &[u8]) -> Result<(), Error> {
        match &mut self.open {
            None => Ok(()),
            Some(Open::File { file, left, limit, .. }) => {
                *left = left.checked_sub(more.len()).ok_or(Error::BodyTooLarge { limit: *limit })?;
                file.write_all(more).map_err(Error::of_storage)
            }
            Some(Open::Text { name, bytes }) => {
                if bytes.len() + more.len() > MAX_TEXT_BYTES {
                    let words = format!("the part {name} has more than {MAX_TEXT_BYTES} bytes");
                    return Err(Error::Upload(words));
                }
                bytes.extend_from_slice(more);
                Ok(())
            }
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        match self.open.take() {
            None => {}
            Some(Open::File { name, path, .. }) => self.files.push((name, path)),
            Some(Open::Text { name, bytes }) => {
                let text = String::from_utf8(bytes);
                let text = text.map_err(|_| Error::Upload(format!("the part {name} is no UTF-8")))?;
                self.texts.push((name, text));
            }
        }
        Ok(())
    }
}

/// What the client is told of its version. Neither places on this machine nor rows are in it.
fn told(report: &Report) -> Value {
    let examined = &report.examined;
    json!({
        "model": report.model,
        "model_version": report.version,
        "live": report.live,
        "digest": report.digest,
        "producer": examined.producer,
        "opsets": examined.opsets,
        "operators": examined.operators.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "bindings": bindings_in_words(&examined.bindings),
        "output": output_in_words(&examined.output, &examined.labels),
        "labels": examined.labels,
        "reasons": examined.reasons,
        "changes": examined.changes,
        "warnings": examined.warnings,
        "breaking": report.breaking,
        "golden": examined.golden,
        "metrics": examined.metrics,
        "latency": examined.latency,
    })
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Upload(format!("the body is no whole multipart/form-data: expected {}", malformed.0))
    }
}

impl From<ImportError> for Error {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Refused { code, reason, .. } => {
                Self::Model { code, reason: reason.chars().take(MAX_REASON_CHARS).collect() }
            }
            ImportError::Package(error) => error.into(),
            ImportError::Audit(error) => error.into(),
            ImportError::Other(error) => Self::Publishing(error.into()),
        }
    }
}

impl From<package::Error> for Error {
    fn from(error: package::Error) -> Self {
        match error {
            package::Error::Exists { .. } => Self::VersionExists,
            package::Error::Name { what, .. } => Self::Name { what },
            package::Error::Io { source, .. } if files::is_full(&source) => Self::StorageFull,
            other => Self::Publishing(Box::new(other)),
        }
    }
}

impl Error {
    /// That a file could not be written.
    fn of_storage(error: io::Error) -> Self {
        if files::is_full(&error) { Self::StorageFull } else { Self::Storage(error) }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    use hyper::body::Frame;
    use tokio::time::{Sleep, sleep};

    use super::super::problem::Code;
    use super::*;

    /// A body of pieces of one byte, each of which comes so long after the one before was taken.
    struct Trickle {
        left: usize,
        each: Duration,
        next: Pin<Box<Sleep>>,
    }

    impl hyper::body::Body for Trickle {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            if self.left == 0 {
                return Poll::Ready(None);
            }
            ready!(self.next.as_mut().poll(context));
            self.left -= 1;
            self.next = Box::pin(sleep(self.each));
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b".")))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_the_disk_takes_is_not_the_client_s() {
        let timeout = Duration::from_secs(10);
        // How long each piece takes to come and to be written, and whether all of them are taken.
        for (comes, written, is_taken) in [(1, 60, true), (4, 0, false), (4, 60, false)] {
            let [each, written] = [comes, written].map(Duration::from_secs);
            let mut body = Body::new(Trickle { left: 4, each, next: Box::pin(sleep(each)) });
            let (pieces, mut coming) = mpsc::channel(1);
            let write = async {
                while let Some(Piece::Bytes(_)) = coming.recv().await {
                    sleep(written).await;
                }
            };
            let mut received = 0;
            let forward = forward_pieces(&mut body, pieces, timeout, 1_000, &mut received);
            let (forwarded, ()) = tokio::join!(forward, write);
            match forwarded {
                Ok(has_ended) => assert!(has_ended && is_taken, "{comes} s"),
                Err(stopped) => assert!(matches!(stopped, Stopped::Slow) && !is_taken, "{comes} s"),
            }
        }
    }

    #[test]
    fn a_full_disk_is_told_from_one_that_fails() {
        let code = |kind: io::ErrorKind| Error::of_storage(kind.into()).code();
        assert_eq!(code(io::ErrorKind::StorageFull), Code::StorageFull);
        assert_eq!(code(io::ErrorKind::QuotaExceeded), Code::StorageFull);
        assert_eq!(code(io::ErrorKind::PermissionDenied), Code::RepositoryUnavailable);
        let published = |kind: io::ErrorKind| {
            let (action, path) = ("write", PathBuf::from("model.onnx"));
            Error::from(package::Error::Io { action, path, source: kind.into() }).code()
        };
        assert_eq!(published(io::ErrorKind::StorageFull), Code::StorageFull);
        assert_eq!(published(io::ErrorKind::PermissionDenied), Code::RepositoryUnavailable);
    }
}
