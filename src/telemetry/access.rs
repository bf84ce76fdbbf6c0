//! The line that each request leaves in the log, written by hand: through the subscriber of other events it would cost several
//! times as much.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

use super::lines::Lines;
use super::notes::Record;
use super::trace::TraceId;
use crate::config::AccessLog;

/// What filters know the lines by.
const TARGET: &str = "scoregate::access";

/// And those of probes and scrapes, which come for ever.
const ROUTINE: &str = "scoregate::access::routine";

/// Where lines of requests go.
#[derive(Debug, Clone)]
pub struct Access {
    pub(super) lines: Lines,
    pub(super) is_json: bool,
    pub(super) which: AccessLog,
}

/// What is told of a request.
#[derive(Debug)]
pub(super) struct Line<'l> {
    pub(super) now: SystemTime,
    pub(super) id: &'l str,
    pub(super) method: &'static str,
    pub(super) route: &'static str,
    pub(super) status: u16,
    /// Without the time that its body was waited for.
    pub(super) took: Duration,
    /// Whether it is a probe or a scrape.
    pub(super) is_routine: bool,
    pub(super) cache: &'static str,
    pub(super) bytes: u64,
    pub(super) trace: Option<TraceId>,
    pub(super) record: &'l Record,
}

thread_local! {
    /// Where a line is put together; its memory is kept.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The last second that a line was of, since 1970, and how that is written: many lines are of the same.
    static SECOND: Cell<(u64, [u8; SECOND_LEN])> = const { Cell::new((u64::MAX, [0; SECOND_LEN])) };
}

/// How long `2026-11-22T10:00:00.` is.
const SECOND_LEN: usize = 20;

impl Access {
    pub(super) fn write(&self, line: &Line<'_>) {
        let is_wanted = match self.which {
            AccessLog::On => true,
            AccessLog::Errors => line.status >= 400,
            AccessLog::Off => false,
        };
        let passes = || match line.is_routine {
            true => tracing::enabled!(target: ROUTINE, tracing::Level::INFO),
            false => tracing::enabled!(target: TARGET, tracing::Level::INFO),
        };
        if is_wanted && passes() {
            BUFFER.with_borrow_mut(|buffer| {
                buffer.clear();
                line.write(buffer, self.is_json);
                self.lines.put(buffer, false);
            });
        }
    }
}

/// What a value is called: in front of it, as a member of an object and as a word.
type Name = [&'static str; 2];

macro_rules! name {
    ($name:literal) => {
        [concat!(",\"", $name, "\":"), concat!(" ", $name, "=")]
    };
}

/// What [`Findings::counts`](scoregate_model::watch::Findings::counts) are called, in its order.
const FINDINGS: [Name; 4] = [name!("missing"), name!("unseen"), name!("rare"), name!("out_of_range")];

/// A line that is being written: as members of an object, or as words.
struct Writer<'w> {
    out: &'w mut Vec<u8>,
    is_json: bool,
}

impl Writer<'_> {
    fn name(&mut self, [member, word]: Name) {
        self.out.extend_from_slice(if self.is_json { member } else { word }.as_bytes());
    }

    /// Text that may hold anything.
    fn text(&mut self, name: Name, value: &str) {
        self.name(name);
        // The escapes of JSON keep control characters out of terminals, too.
        serde_json::to_writer(&mut *self.out, value).expect("a text can always be appended to");
    }

    /// Text of our own, with nothing to escape.
    fn word(&mut self, name: Name, value: &str) {
        self.name(name);
        if self.is_json {
            self.out.push(b'"');
        }
        self.out.extend_from_slice(value.as_bytes());
        if self.is_json {
            self.out.push(b'"');
        }
    }

    /// A time in milliseconds.
    fn time(&mut self, name: Name, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.number(name, micros / 1_000);
        self.out.push(b'.');
        digits(micros % 1_000, 3, self.out);
    }

    fn number(&mut self, name: Name, value: u64) {
        self.name(name);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}

impl Line<'_> {
    fn write(&self, out: &mut Vec<u8>, is_json: bool) {
        let target = if self.is_routine { ROUTINE } else { TARGET }.as_bytes();
        if is_json {
            out.extend_from_slice(b"{\"timestamp\":\"");
            timestamp(self.now, out);
            out.extend_from_slice(b"\",\"level\":\"INFO\",\"message\":\"request\",\"target\":\"");
            out.extend_from_slice(target);
            out.push(b'"');
        } else {
            timestamp(self.now, out);
            out.extend_from_slice(b"  INFO ");
            out.extend_from_slice(target);
            out.extend_from_slice(b": request");
        }
        let record = self.record;
        let mut writer = Writer { out, is_json };
        writer.text(name!("request_id"), self.id);
        writer.word(name!("route"), self.route);
        writer.word(name!("method"), self.method);
        writer.number(name!("status"), self.status.into());
        if let Some(code) = record.code {
            writer.word(name!("code"), code);
        }
        writer.time(name!("latency_ms"), self.took);
        if let Some(receiving) = record.receiving {
            writer.time(name!("receive_ms"), receiving);
        }
        if let Some(caller) = &record.caller {
            writer.text(name!("caller"), caller.id());
        }
        if let Some(tally) = &record.first.tally {
            let [scored, rejected] = record.rows();
            writer.text(name!("model"), &tally.model);
            writer.text(name!("version"), &tally.version);
            if !record.others.is_empty() {
                writer.number(name!("versions"), record.parts().count() as u64);
            }
            writer.number(name!("rows"), (scored + rejected) as u64);
            writer.number(name!("rows_rejected"), rejected as u64);
            writer.word(name!("cache"), self.cache);
            for (name, count) in FINDINGS.into_iter().zip(record.all_findings().counts()) {
                writer.number(name, count);
            }
        }
        if let Some(method) = record.explained() {
            writer.word(name!("explanation"), method.as_str());
        }
        writer.number(name!("bytes_in"), record.received as u64);
        writer.number(name!("bytes_out"), self.bytes);
        if let Some(trace) = self.trace {
            let mut text = String::with_capacity(32);
            write!(text, "{trace}").expect("a text can always be appended to");
            writer.word(name!("trace_id"), &text);
        }
        out.extend_from_slice(if is_json { b"}\n" } else { b"\n" });
    }
}

fn digit(number: u64) -> u8 {
    b'0' + u8::try_from(number % 10).unwrap_or(0)
}

/// Writes a time as other lines have it: `2026-11-22T10:00:00.123456Z`.
fn timestamp(now: SystemTime, out: &mut Vec<u8>) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = SECOND.get();
    if second != since.as_secs() {
        (second, text) = (since.as_secs(), up_to_second(UNIX_EPOCH + Duration::from_secs(since.as_secs())));
        SECOND.set((second, text));
    }
    out.extend_from_slice(&text);
    digits(since.subsec_micros().into(), 6, out);
    out.push(b'Z');
}

/// A time up to its point.
fn up_to_second(time: SystemTime) -> [u8; SECOND_LEN] {
    let time = OffsetDateTime::from(time);
    let parts = [
        (u64::from(time.year().unsigned_abs()), 4, b'-'),
        (u8::from(time.month()).into(), 2, b'-'),
        (time.day().into(), 2, b'T'),
        (time.hour().into(), 2, b':'),
        (time.minute().into(), 2, b':'),
        (time.second().into(), 2, b'.'),
    ];
    let mut text = Vec::with_capacity(SECOND_LEN);
    for (part, count, behind) in parts {
        digits(part, count, &mut text);
        text.push(behind);
    }
    text.try_into().expect("each part has as many digits as it says")
}

/// Writes the last `count` digits of a number.
fn digits(number: u64, count: u32, out: &mut Vec<u8>) {
    for place in (0..count).rev() {
        out.push(digit(number / 10_u64.pow(place)));
    }
}

#[cfg(test)]
mod tests {
    use scoregate_model::watch::Findings;

    use super::*;

    fn written(record: &Record, is_json: bool) -> String {
        let line = Line {
            now: UNIX_EPOCH + Duration::from_micros(1_795_341_600_012_345),
            id: "a\"b\\c",
            method: "POST",
            route: "/v1/predict",
            status: 401,
            took: Duration::from_micros(1_042),
            is_routine: false,
            cache: "none",
            bytes: 17,
            trace: Some(TraceId(0xab)),
            record,
        };
        let mut out = Vec::new();
        line.write(&mut out, is_json);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_are_written_as_other_lines_have_them() {
        for (micros, expected) in [
            (1_795_341_600_012_345, "2026-11-22T10:00:00.012345Z"),
            (1_795_341_600_999_999, "2026-11-22T10:00:00.999999Z"),
            (1_795_341_601_000_000, "2026-11-22T10:00:01.000000Z"),
            (1_709_251_199_000_001, "2024-02-29T23:59:59.000001Z"),
            (0, "1970-01-01T00:00:00.000000Z"),
        ] {
            let mut out = Vec::new();
            timestamp(UNIX_EPOCH + Duration::from_micros(micros), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn findings_are_called_as_elsewhere() {
        assert_eq!(FINDINGS.map(|[_, word]| word.trim_matches([' ', '='])), Findings::NAMES);
    }

    #[test]
    fn a_line_is_one_object_or_words() {
        let record = Record { code: Some("invalid_key"), received: 3, ..Record::default() };
        let json = written(&record, true);
        assert!(json.ends_with("}\n"));
        let object: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(object["timestamp"], "2026-11-22T10:00:00.012345Z");
        assert_eq!((&object["request_id"], &object["target"]), (&"a\"b\\c".into(), &TARGET.into()));
        assert_eq!((object["latency_ms"].as_f64(), object["status"].as_u64()), (Some(1.042), Some(401)));
        assert_eq!(object["trace_id"], "000000000000000000000000000000ab");
        let text = written(&record, false);
        let expected = "2026-11-22T10:00:00.012345Z  INFO scoregate::access: request request_id=\"a\\\"b\\\\c\" \
                        route=/v1/predict method=POST status=401 code=invalid_key latency_ms=1.042 bytes_in=3 bytes_out=17 \
                        trace_id=000000000000000000000000000000ab\n";
        assert_eq!(text, expected);
    }
}
