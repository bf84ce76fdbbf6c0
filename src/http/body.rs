//! Receiving request bodies: bounded in size, time and total memory; content types and encodings.

use std::io::{self, Read};
use std::time::Instant;

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body as _, Bytes};
use hyper::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE};
use hyper::http::request::Parts;

use super::problem::Error;
use crate::app::App;
use crate::rollout::shadow::Form;
use crate::scoring::{self, Permit};
use crate::telemetry::notes::{Notes, Stage};

/// A body that has arrived, not yet decoded.
#[derive(Debug)]
pub(super) struct Received {
    bytes: Bytes,
    gzip: bool,
    /// Held until the row or rows are scored.
    permits: Vec<Permit>,
}

/// Receives a body.
///
/// # Errors
/// [`Error`] if it is encoded unusually, too large, too slow, broken, or more than there is memory for.
pub(super) async fn receive(app: &App, parts: &Parts, body: Body) -> Result<Received, Error> {
    receive_at_most(app, parts, body, app.settings.server.max_body_bytes).await
}

/// Receives a body of at most `limit` bytes.
///
/// # Errors
/// See [`receive`].
pub(super) async fn receive_at_most(
    app: &App,
    parts: &Parts,
    body: Body,
    limit: usize,
) -> Result<Received, Error> {
    let gzip = is_gzip(&parts.headers)?;
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > limit {
        return Err(Error::BodyTooLarge { limit });
    }
    let (notes, begin) = (Notes::of(parts), Instant::now());
    let mut permits = Vec::new();
    let receive = collect(app, body, limit, &mut permits, &notes);
    let received = tokio::time::timeout(app.settings.server.body_timeout, receive).await;
    notes.receiving(begin.elapsed());
    notes.end(Stage::Body);
    match received {
        Ok(bytes) => Ok(Received { bytes: bytes?, gzip, permits }),
        Err(_) => Err(Error::BodyTimeout),
    }
}

/// Whether a body broke off because its client has left, rather than by what it sent.
pub(super) fn has_left(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let is_end = |kind| matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| is_end(cause.kind()))
}

fn hold(app: &App, bytes: usize) -> Result<Permit, Error> {
    app.engine.hold_bytes(bytes).map_err(|overloaded| scoring::Error::from(overloaded).into())
}

/// Reads all frames. Permits are taken for what has arrived: what is only announced holds no memory, and must not keep
/// others out.
async fn collect(
    app: &App,
    mut body: Body,
    limit: usize,
    permits: &mut Vec<Permit>,
    notes: &Notes,
) -> Result<Bytes, Error> {
    /// Beyond a first frame, permits are taken for so many bytes at a time.
    const STEP: usize = 256 * 1024;
    let mut held = 0;
    let mut first: Option<Bytes> = None;
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        // Framing errors, resets, and bodies shorter than announced all end up here.
        let frame = frame.map_err(|error| {
            if has_left(&error) {
                notes.left();
            }
            Error::BodyBroken
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let have = first.as_ref().map_or(0, Bytes::len) + rest.len() + data.len();
        if have > limit {
            return Err(Error::BodyTooLarge { limit });
        }
        if have > held {
            // In steps, but never for more than a body may have.
            let more = if held == 0 { have } else { STEP.max(have - held).min(limit - held) };
            permits.push(hold(app, more)?);
            held += more;
        }
        match &first {
            None => first = Some(data),
            Some(start) => {
                if rest.is_empty() {
                    rest.extend_from_slice(start);
                    first = Some(Bytes::new());
                }
                rest.extend_from_slice(&data);
            }
        }
    }
    let bytes: Bytes = if rest.is_empty() { first.unwrap_or_default() } else { rest.into() };
    notes.received(bytes.len());
    Ok(bytes)
}

impl Received {
    /// The body without its content encoding. Decoding takes processor time: call it where the work is done.
    ///
    /// # Errors
    /// [`Error::BodyTooLarge`] if it is larger than `limit` once decoded, [`Error::Gzip`] if it is not whole gzip data.
    pub(super) fn decode(&self, limit: usize) -> Result<Bytes, Error> {
        if !self.gzip {
            return Ok(self.bytes.clone());
        }
        /// Empty members cost time and add no bytes; real encoders write one, or one per megabyte.
        const MAX_MEMBERS: usize = 1_000;
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let mut decoded = Vec::new();
        let mut rest = &self.bytes[..];
        for _ in 0..MAX_MEMBERS {
            let mut member = flate2::bufread::GzDecoder::new(rest);
            member
                .by_ref()
                .take(most - decoded.len() as u64)
                .read_to_end(&mut decoded)
                .map_err(|_| Error::Gzip)?;
            if decoded.len() > limit {
                return Err(Error::BodyTooLarge { limit });
            }
            rest = member.into_inner();
            if rest.is_empty() {
                // Whoever keeps it counts what it holds, not what it has room for.
                decoded.shrink_to_fit();
                return Ok(decoded.into());
            }
        }
        Err(Error::Gzip)
    }

    /// The memory that is held for it.
    pub(super) fn held(&self) -> usize {
        self.permits.iter().map(Permit::held).sum()
    }

    /// The bytes as they came; compressed, they are still the best guess of how much work there is.
    pub(super) fn raw(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the body is compressed.
    pub(super) fn is_gzip(&self) -> bool {
        self.gzip
    }
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, Error> {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    let encoding = encodings.next();
    if encodings.next().is_some() {
        return Err(Error::Encoding);
    }
    match encoding.map(|value| value.to_str().unwrap_or("?").trim().to_ascii_lowercase()).as_deref() {
        None | Some("identity") => Ok(false),
        Some("gzip" | "x-gzip") => Ok(true),
        Some(_) => Err(Error::Encoding),
    }
}

/// How rows are written in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Ndjson,
    Csv,
}

/// The media type of pictures.
pub(super) const SVG: &str = "image/svg+xml";

impl Format {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
        }
    }

    /// How rows are written, for whoever compares versions.
    pub(super) fn form(self) -> Form {
        match self {
            Self::Json => Form::Json,
            Self::Ndjson => Form::Ndjson,
            Self::Csv => Form::Csv,
        }
    }

    fn of(media_type: &str) -> Option<Self> {
        Some(match media_type {
            "application/json" => Self::Json,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/jsonlines" => {
                Self::Ndjson
            }
            "text/csv" => Self::Csv,
            _ => return None,
        })
    }
}

/// The format that the content type names, if it is one of `accepted`.
///
/// # Errors
/// [`Error::MediaType`] if it is another, absent, given twice, or in another character set than UTF-8.
pub(super) fn content_format(headers: &HeaderMap, accepted: &[Format]) -> Result<Format, Error> {
    let refused = || {
        Error::MediaType(match accepted {
            [Format::Json] => "application/json",
            _ => "application/json, application/x-ndjson or text/csv",
        })
    };
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let text = types
        .next()
        .and_then(|value| value.to_str().ok())
        .filter(|_| types.next().is_none())
        .ok_or_else(refused)?;
    // The common case without allocation.
    if text == "application/json" {
        return Ok(Format::Json);
    }
    let mut parts = text.split(';');
    let essence = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let format = Format::of(&essence).filter(|format| accepted.contains(format)).ok_or_else(refused)?;
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let is_charset = name.trim().eq_ignore_ascii_case("charset");
        if is_charset && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8") {
            return Err(refused());
        }
    }
    Ok(format)
}

/// The first of `offered` that the client likes best; the first of all if it does not say.
///
/// # Errors
/// [`Error::NotAcceptable`] if the client accepts none of them.
pub(super) fn accepted_format(headers: &HeaderMap, offered: &[Format]) -> Result<Format, Error> {
    let types: Vec<&str> = offered.iter().map(|format| format.media_type()).collect();
    accepted(headers, &types).map(|at| offered[at]).ok_or(Error::NotAcceptable(match offered {
        [Format::Json] => "application/json",
        [Format::Ndjson] => "application/x-ndjson",
        _ => "application/json or text/csv",
    }))
}

/// Whether the client likes a picture better than JSON.
///
/// # Errors
/// [`Error::NotAcceptable`] if the client accepts neither.
pub(super) fn accepts_picture(headers: &HeaderMap) -> Result<bool, Error> {
    // What most clients send, if anything.
    if headers.get(ACCEPT).is_none_or(|value| value == "*/*" || value == "application/json")
        && headers.get_all(ACCEPT).iter().nth(1).is_none()
    {
        return Ok(false);
    }
    let accepted = accepted(headers, &[Format::Json.media_type(), SVG]);
    accepted.map(|at| at == 1).ok_or(Error::NotAcceptable("application/json or image/svg+xml"))
}

/// Which of the media types `offered` the client likes best, of equals the first; the first of all if it does not say, none if
/// it accepts none of them.
pub(super) fn accepted(headers: &HeaderMap, offered: &[&str]) -> Option<usize> {
    if !headers.contains_key(ACCEPT) {
        return Some(0);
    }
    let mut best: Option<(f32, usize)> = None;
    for (at, media_type) in offered.iter().enumerate() {
        // The most specific range that matches decides (RFC 9110, 12.5.1).
        let mut quality: Option<(u8, f32)> = None;
        for range in headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','))
        {
            let mut parts = range.split(';');
            let name = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
            let is_of = |kind: &str| media_type.strip_prefix(kind).is_some_and(|rest| rest.starts_with('/'));
            let specificity = match name.as_str() {
                "*/*" | "*" => 0,
                range if range.strip_suffix("/*").is_some_and(is_of) => 1,
                other if other == *media_type => 2,
                // Some have several names.
                other if Format::of(other).is_some_and(|format| format.media_type() == *media_type) => 2,
                _ => continue,
            };
            let weight =
                parts.find_map(|part| part.trim().strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
            if quality.is_none_or(|(found, _)| specificity > found) {
                quality = Some((specificity, weight));
            }
        }
        if let Some((_, weight)) = quality
            && weight > 0.0
            && best.is_none_or(|(found, _)| weight > found)
        {
            best = Some((weight, at));
        }
    }
    best.map(|(_, at)| at)
}
