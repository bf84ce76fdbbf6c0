//! Refuses ambiguous HTTP/1.1 request framing before hyper reads it: [`StrictFraming`] wraps a connection's
//! stream.
//!
//! A request that two servers on one path cut differently lets a client hide a second request in the first.
//! Hyper by itself accepts several of those: Content-Length beside Transfer-Encoding, either of them twice,
//! `gzip, chunked`, bare LF as the end of a line, no Host or two, 16 KiB of chunk extensions. This wrapper
//! follows the framing of RFC 9112 in the bytes that hyper is about to read, and accepts less than hyper
//! does:
//!
//! - Bytes are checked where they lie in hyper's buffer, and bodies are skipped by count. Only a line that a
//!   read cut in two is copied.
//! - Hyper cannot finish a head before an LF, and every line is judged when its LF comes. So hyper has not
//!   finished a head that is refused: a [`Tail`] in place of the refused line makes hyper itself answer 400
//!   (or 414, or 431), after the answers to earlier requests, and close. A tail inside a chunked body is an
//!   error of that body: the handler answers 400 and hyper closes.
//! - After a tail comes the end of the stream. Nothing else that the peer sent is ever delivered.
//! - A connection that is closed in the middle of a message lingers for a moment and discards what the peer
//!   still sends. Otherwise the reset that follows could destroy the answer before the peer reads it.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use memchr::memchr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Bytes in one request head. Below 64 KB in both meanings of KB, so that one header of that size is over it.
const MAX_HEAD: usize = 60 * 1024;
/// Bytes in one chunk-size line with its extensions and CRLF.
const MAX_CHUNK_LINE: usize = 256;
/// Bytes in the trailer section of one chunked body.
const MAX_TRAILERS: usize = 8 * 1024;
/// How long a connection that is closed in the middle of a message discards input.
const LINGER: Duration = Duration::from_secs(1);

/// A byte stream below a hyper `http1` server connection that delivers only well-framed requests.
pub(crate) struct StrictFraming<S> {
    io: S,
    framing: Framing,
    /// What is still to be read in place of refused bytes.
    tail: Option<Tail>,
    /// The peer has closed its side.
    ended: bool,
    /// Set once the answers are sent, if input is to be discarded until then.
    linger: Option<Pin<Box<Sleep>>>,
}

/// Where in a request a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Between two requests, or before the first.
    Nothing,
    Head,
    Body,
}

impl<S> StrictFraming<S> {
    /// Hyper's `pipeline_flush` must stay off: with it, hyper never flushes its answer to a malformed head.
    pub(crate) fn new(io: S) -> Self {
        Self { io, framing: Framing::default(), tail: None, ended: false, linger: None }
    }

    /// What the next byte will belong to.
    pub(crate) fn reading(&self) -> Reading {
        match self.framing.part {
            _ if self.framing.is_between_requests() => Reading::Nothing,
            Part::RequestLine | Part::Field => Reading::Head,
            Part::Body(_) | Part::ChunkSize | Part::ChunkData(_) | Part::ChunkEnd | Part::Trailer => {
                Reading::Body
            }
        }
    }

    /// How many heads have been read whole.
    pub(crate) fn heads(&self) -> u64 {
        self.framing.heads
    }

    /// Whether the peer may still be sending a message that nobody will read.
    fn is_cut_short(&self) -> bool {
        !self.ended && (self.tail.is_some() || !self.framing.is_between_requests())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StrictFraming<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(tail) = &mut this.tail {
            tail.read(buf);
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        let had_room = buf.remaining() > 0;
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let fresh = &buf.filled()[start..];
        this.ended = had_room && fresh.is_empty();
        if let Err(Refusal { at, mut tail }) = this.framing.follow(fresh) {
            buf.set_filled(start + at);
            tail.read(buf);
            this.tail = Some(tail);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for StrictFraming<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            if !this.is_cut_short() {
                return Poll::Ready(Ok(()));
            }
        }
        // The deadline is looked at first: a peer that never stops sending must not keep it from being seen.
        let deadline = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut discarded = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut discarded);
            let outcome = ready!(Pin::new(&mut this.io).poll_read(cx, &mut buf));
            if outcome.is_err() || buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// What hyper reads in place of refused bytes: `filler` times `x`, then `end`, then the end of the stream.
struct Tail {
    filler: usize,
    end: &'static [u8],
}

impl Tail {
    /// Wrong wherever hyper is. NUL is allowed nowhere but in a chunk extension, and there bare LF is not.
    /// The empty line ends the head or trailer section, whose end hyper awaits before it looks.
    const MALFORMED: Self = Self { filler: 0, end: b"\0\n\r\n\r\n" };
    /// Lengthens the request target beyond the 65,534 bytes that hyper accepts, for its 414.
    const URI_TOO_LONG: Self = Self { filler: 65_535, end: b" HTTP/1.1\r\n\r\n" };
    /// Lengthens the head beyond hyper's own bound, whichever is set, for its 431.
    const TOO_LARGE: Self = Self { filler: 1 << 20, end: b"" };

    fn read(&mut self, buf: &mut ReadBuf<'_>) {
        let filler = self.filler.min(buf.remaining());
        buf.initialize_unfilled_to(filler).fill(b'x');
        buf.advance(filler);
        self.filler -= filler;
        let (now, later) = self.end.split_at(self.end.len().min(buf.remaining()));
        buf.put_slice(now);
        self.end = later;
    }
}

/// Of the bytes just read, those before `at` may be delivered; `tail` follows them.
struct Refusal {
    at: usize,
    tail: Tail,
}

/// A line that RFC 9112, or this server, does not accept.
#[derive(Debug)]
struct Malformed;

/// How far a connection's requests have been followed.
#[derive(Default)]
struct Framing {
    /// The part of a request that the next byte belongs to.
    part: Part,
    /// The beginning of a line whose end has not been read yet.
    cut: Vec<u8>,
    /// Heads that are complete.
    heads: u64,
    /// Bytes of complete lines in the current head or trailer section.
    used: usize,
    head: Head,
}

#[derive(Default)]
enum Part {
    #[default]
    RequestLine,
    Field,
    /// So many bytes are left of a body with a Content-Length.
    Body(u64),
    ChunkSize,
    /// So many bytes are left of a chunk.
    ChunkData(u64),
    /// The CRLF after a chunk's data.
    ChunkEnd,
    Trailer,
}

impl Framing {
    fn is_between_requests(&self) -> bool {
        matches!(self.part, Part::RequestLine) && self.used == 0 && self.cut.is_empty()
    }

    /// Follows the bytes of one read. Must not be called again after a refusal.
    fn follow(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let (left, next) = match &mut self.part {
                Part::Body(left) => (left, Part::RequestLine),
                Part::ChunkData(left) => (left, Part::ChunkEnd),
                _ => {
                    let followed = self.follow_line(rest);
                    at += followed.map_err(|refusal| Refusal { at: at + refusal.at, ..refusal })?;
                    continue;
                }
            };
            let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
            *left -= skipped as u64;
            if *left == 0 {
                self.part = next;
            }
            at += skipped;
        }
        Ok(())
    }

    /// Follows one line, or as much of it as has been read, and returns how many bytes that is.
    fn follow_line(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let (limit, tail_if_over) = match self.part {
            Part::RequestLine => (MAX_HEAD, Tail::URI_TOO_LONG),
            Part::Field => (MAX_HEAD, Tail::TOO_LARGE),
            Part::ChunkSize => (MAX_CHUNK_LINE, Tail::MALFORMED),
            Part::Trailer => (MAX_TRAILERS, Tail::MALFORMED),
            Part::ChunkEnd | Part::Body(_) | Part::ChunkData(_) => (2, Tail::MALFORMED),
        };
        let malformed = |Malformed| Refusal { at: 0, tail: Tail::MALFORMED };
        let room = limit.saturating_sub(self.used + self.cut.len());
        let within = &bytes[..bytes.len().min(room)];
        let after_cr = self.cut.ends_with(b"\r");
        let control = if after_cr { 0 } else { find_control(within) };
        let end = match (&within[control..], after_cr) {
            ([b'\r', b'\n', ..], false) => control + 2,
            ([b'\n', ..], true) => 1,
            ([], _) | ([b'\r'], false) if bytes.len() >= room => {
                return Err(Refusal { at: room, tail: tail_if_over });
            }
            ([], _) | ([b'\r'], false) => {
                self.cut.extend_from_slice(bytes);
                return Ok(bytes.len());
            }
            _ => return Err(malformed(Malformed)),
        };
        if self.cut.is_empty() {
            self.end_line(&bytes[..end - 2]).map_err(malformed)?;
        } else {
            let mut line = mem::take(&mut self.cut);
            line.extend_from_slice(&bytes[..end]);
            self.end_line(&line[..line.len() - 2]).map_err(malformed)?;
        }
        Ok(end)
    }

    /// Judges one complete line, given without its CRLF, and moves on to the part that follows it.
    fn end_line(&mut self, text: &[u8]) -> Result<(), Malformed> {
        let used = self.used + text.len() + 2;
        (self.part, self.used) = match (&self.part, text.is_empty()) {
            // RFC 9112 section 2.2: empty lines before a request are ignored.
            (Part::RequestLine, true) => (Part::RequestLine, used),
            (Part::RequestLine, false) => {
                self.head = Head::from_request_line(text)?;
                (Part::Field, used)
            }
            (Part::Field, false) => {
                self.head.add_field(text)?;
                (Part::Field, used)
            }
            (Part::Field, true) => {
                self.heads = self.heads.wrapping_add(1);
                (self.head.body()?, 0)
            }
            (Part::ChunkSize, _) => match chunk_size(text)? {
                0 => (Part::Trailer, 0),
                size => (Part::ChunkData(size), 0),
            },
            (Part::ChunkEnd, true) => (Part::ChunkSize, 0),
            (Part::Trailer, true) => (Part::RequestLine, 0),
            (Part::Trailer, false) => match FramingField::of(split_field(text)?.0) {
                None => (Part::Trailer, used),
                Some(_) => return Err(Malformed),
            },
            (Part::ChunkEnd, false) | (Part::Body(_) | Part::ChunkData(_), _) => return Err(Malformed),
        };
        Ok(())
    }
}

/// What a request head says about framing.
#[derive(Default)]
struct Head {
    is_http_11: bool,
    has_host: bool,
    content_length: Option<u64>,
    is_chunked: bool,
}

impl Head {
    fn from_request_line(text: &[u8]) -> Result<Self, Malformed> {
        let (rest, is_http_11) = match text.strip_suffix(b" HTTP/1.1") {
            Some(rest) => (rest, true),
            None => (text.strip_suffix(b" HTTP/1.0").ok_or(Malformed)?, false),
        };
        let space = memchr(b' ', rest).ok_or(Malformed)?;
        let (method, target) = (&rest[..space], &rest[space + 1..]);
        let is_well_formed = !method.is_empty()
            && method.iter().all(|&b| IS_TOKEN[usize::from(b)])
            && !target.is_empty()
            // A fragment is not sent; hyper would drop it.
            && target.iter().all(|&b| b.is_ascii_graphic() && b != b'#');
        if is_well_formed { Ok(Self { is_http_11, ..Self::default() }) } else { Err(Malformed) }
    }

    fn add_field(&mut self, text: &[u8]) -> Result<(), Malformed> {
        let (name, value) = split_field(text)?;
        let Some(field) = FramingField::of(name) else { return Ok(()) };
        let value = value.trim_ascii();
        let is_well_formed = match field {
            FramingField::Host => {
                !mem::replace(&mut self.has_host, true) && value.iter().all(|&b| IS_HOST[usize::from(b)])
            }
            FramingField::ContentLength => {
                self.content_length.replace(content_length(value)?).is_none() && !self.is_chunked
            }
            FramingField::TransferEncoding => {
                !mem::replace(&mut self.is_chunked, true)
                    && self.is_http_11
                    && self.content_length.is_none()
                    && value.eq_ignore_ascii_case(b"chunked")
            }
        };
        if is_well_formed { Ok(()) } else { Err(Malformed) }
    }

    /// The part that follows the complete head.
    fn body(&self) -> Result<Part, Malformed> {
        if self.is_http_11 && !self.has_host {
            return Err(Malformed);
        }
        Ok(match self.content_length {
            _ if self.is_chunked => Part::ChunkSize,
            None | Some(0) => Part::RequestLine,
            Some(length) => Part::Body(length),
        })
    }
}

/// The fields that decide where a request ends or for whom it is. None may be repeated or stand in a trailer.
enum FramingField {
    Host,
    ContentLength,
    TransferEncoding,
}

impl FramingField {
    fn of(name: &[u8]) -> Option<Self> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => Some(Self::Host),
            14 if name.eq_ignore_ascii_case(b"content-length") => Some(Self::ContentLength),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => Some(Self::TransferEncoding),
            _ => None,
        }
    }
}

/// Splits a field line at its colon. Folded lines and white space before the colon are no names.
fn split_field(text: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    match text.iter().position(|&b| !IS_TOKEN[usize::from(b)]) {
        Some(colon) if colon > 0 && text[colon] == b':' => Ok((&text[..colon], &text[colon + 1..])),
        _ => Err(Malformed),
    }
}

/// `1*DIGIT` up to `i64::MAX`. Hyper counts in `u64` but keeps its largest values for itself.
fn content_length(value: &[u8]) -> Result<u64, Malformed> {
    number(value, 10).filter(|&length| i64::try_from(length).is_ok()).ok_or(Malformed)
}

/// `1*HEXDIG`, then nothing, or white space and extensions that begin with a semicolon.
fn chunk_size(text: &[u8]) -> Result<u64, Malformed> {
    let end = text.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(text.len());
    let extension = text[end..].trim_ascii_start();
    if text.len() > end && extension.first() != Some(&b';') {
        return Err(Malformed);
    }
    number(&text[..end], 16).ok_or(Malformed)
}

/// One or more digits and nothing else. The parsers of the standard library accept a sign.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, &b| {
        sum.checked_mul(u64::from(radix))?.checked_add(u64::from(char::from(b).to_digit(radix)?))
    })
}

/// Where the first control character other than a tab is, or the end. Looks at eight bytes at a time: each
/// mask has the top bit set in the bytes that match and perhaps in some above, so its lowest bit is exact.
fn find_control(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        let no_delete = word ^ (ONES * 0x7f);
        let below_space = word.wrapping_sub(ONES * 0x20) & !word;
        let marks = (below_space | (no_delete.wrapping_sub(ONES) & !no_delete)) & (ONES * 0x80);
        if marks == 0 {
            at += 8;
            continue;
        }
        at += marks.trailing_zeros() as usize / 8;
        if bytes[at] != b'\t' {
            return at;
        }
        at += 1;
    }
    bytes[at..].iter().position(|&b| b.is_ascii_control() && b != b'\t').map_or(bytes.len(), |end| at + end)
}

/// `tchar` of RFC 9110 section 5.6.2.
static IS_TOKEN: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");
/// Bytes of `uri-host [":" port]` in RFC 3986 sections 3.2.2 and 3.2.3.
static IS_HOST: [bool; 256] = alphanumeric_and(b"-._~%!$&'()*+,;=:[]");

const fn alphanumeric_and(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 128_u8 {
        table[b as usize] = b.is_ascii_alphanumeric();
        b += 1;
    }
    let mut mark = 0;
    while mark < marks.len() {
        table[marks[mark] as usize] = true;
        mark += 1;
    }
    table
}

#[cfg(test)]
mod tests;
