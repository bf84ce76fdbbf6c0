//! Traces on their way to a collector: the messages of [OTLP](https://opentelemetry.io/docs/specs/otlp/), sent over HTTP or gRPC by
//! a thread of its own.
//!
//! One client speaks both, since a call of gRPC is a POST over HTTP/2 with five bytes before the message and a status behind the
//! answer.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, UNIX_EPOCH};

use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use scoregate_model::package::read_named;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use url::Url;

use super::trace::{Trace, TraceCounts, Value};
use crate::config::{OtlpProtocol, TraceSettings};

/// The most requests that are told at once.
const MAX_BATCH: usize = 512;

/// How long the first of them waits for others.
const GATHER: Duration = Duration::from_millis(500);

/// The time that telling them may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// The largest file of headers.
const MAX_HEADERS: usize = 64 * 1024;

/// The most characters of a collector's message that are told.
const MAX_MESSAGE: usize = 200;

/// What the thread is told.
pub(super) enum Message {
    /// A request was answered.
    Trace(Box<Trace>),
    /// Somebody waits for all before to be sent.
    Flush(mpsc::Sender<()>),
}

/// Why a collector did not take something.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no answer")]
    Connection(#[from] reqwest::Error),
    #[error("no whole answer within {} s", DEADLINE.as_secs())]
    Timeout,
    #[error("found status {0}, expected 200")]
    Status(u16),
    #[error("found the status {0} of gRPC, expected 0")]
    Grpc(String),
    #[error("found no whole answer of at most {MAX_ANSWER} bytes")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("it rejects {spans} of the spans: {message}")]
    Rejected { spans: u64, message: String },
}

/// Starts the thread that sends what it is told.
pub(super) fn start(
    settings: &TraceSettings,
    waiting: Receiver<Message>,
    counts: TraceCounts,
) -> std::io::Result<()> {
    let mut exporter = Exporter::new(settings, counts)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("scoregate-trace".into());
    thread.spawn(move || runtime.block_on(exporter.run(waiting))).map(drop)
}

struct Exporter {
    client: reqwest::Client,
    url: Url,
    protocol: OtlpProtocol,
    resource: proto::Resource,
    counts: TraceCounts,
    /// Whether the last batch was taken: what fails again and again is told once.
    is_failing: bool,
}

impl Exporter {
    fn new(settings: &TraceSettings, counts: TraceCounts) -> std::io::Result<Self> {
        let headers = settings.headers_file.as_deref().map(read_headers).transpose()?.unwrap_or_default();
        let builder = || {
            let builder = reqwest::Client::builder()
                .default_headers(headers.clone())
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .timeout(DEADLINE)
                .user_agent(concat!("scoregate/", env!("CARGO_PKG_VERSION")));
            match settings.protocol {
                OtlpProtocol::Grpc => builder.http2_prior_knowledge(),
                OtlpProtocol::Http => builder.http1_only(),
            }
        };
        // A machine without certificate authorities has collectors without TLS.
        let client = builder().build().or_else(|_| builder().tls_certs_only([]).build());
        let mut url = settings.endpoint.clone();
        let path = match settings.protocol {
            OtlpProtocol::Grpc => "/opentelemetry.proto.collector.trace.v1.TraceService/Export".into(),
            OtlpProtocol::Http if url.path().ends_with("/v1/traces") => url.path().to_owned(),
            OtlpProtocol::Http => format!("{}/v1/traces", url.path().trim_end_matches('/')),
        };
        url.set_path(&path);
        let resource = proto::Resource {
            attributes: vec![
                text("service.name", settings.service_name.clone()),
                text("service.version", env!("CARGO_PKG_VERSION").into()),
                // Replicas are told apart by it.
                text("service.instance.id", format!("{:032x}", rand::random::<u128>())),
            ],
        };
        let client = client.map_err(std::io::Error::other)?;
        Ok(Self { client, url, protocol: settings.protocol, resource, counts, is_failing: false })
    }

    async fn run(&mut self, mut waiting: Receiver<Message>) {
        let (mut batch, mut flushed) = (Vec::new(), Vec::new());
        while let Some(first) = waiting.recv().await {
            let mut next = Some(first);
            let gathered = tokio::time::Instant::now() + GATHER;
            while let Some(message) = next.take() {
                match message {
                    Message::Trace(trace) => batch.push(*trace),
                    Message::Flush(done) => {
                        flushed.push(done);
                        break;
                    }
                }
                if batch.len() < MAX_BATCH {
                    next = tokio::time::timeout_at(gathered, waiting.recv()).await.ok().flatten();
                }
            }
            self.tell(std::mem::take(&mut batch)).await;
            for done in flushed.drain(..) {
                let _ = done.send(());
            }
        }
    }

    async fn tell(&mut self, batch: Vec<Trace>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let sent = timeout(DEADLINE, self.send(&self.message(&batch))).await;
        let sent = sent.unwrap_or(Err(Error::Timeout));
        let lost = match &sent {
            Ok(()) => 0,
            // Of which requests they are it does not say.
            Err(Error::Rejected { spans, .. }) => count.min(*spans),
            Err(_) => count,
        };
        self.counts.sent.inc_by(count - lost);
        self.counts.failed.inc_by(lost);
        match sent {
            Ok(()) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(url = %self.url, "the collector takes traces again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::warn!(url = %self.url, error, "traces are lost: the collector does not take them");
                }
            }
        }
    }

    async fn send(&self, message: &[u8]) -> Result<(), Error> {
        let request = self.client.post(self.url.clone());
        let response = match self.protocol {
            OtlpProtocol::Http => {
                request.header(CONTENT_TYPE, "application/x-protobuf").body(message.to_vec()).send().await?
            }
            OtlpProtocol::Grpc => {
                let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
                let mut framed = Vec::with_capacity(5 + message.len());
                framed.push(0);
                framed.extend_from_slice(&length.to_be_bytes());
                framed.extend_from_slice(message);
                request
                    .header(CONTENT_TYPE, "application/grpc")
                    .header(TE, "trailers")
                    .body(framed)
                    .send()
                    .await?
            }
        };
        if !response.status().is_success() {
            return Err(Error::Status(response.status().as_u16()));
        }
        let head = response.headers().clone();
        let body = Limited::new(reqwest::Body::from(response), MAX_ANSWER).collect();
        let body = body.await.map_err(Error::Answer)?;
        if self.protocol == OtlpProtocol::Grpc {
            let status = |headers: &HeaderMap| Some(headers.get("grpc-status")?.to_str().ok()?.to_owned());
            let status = body.trailers().and_then(status).or_else(|| status(&head));
            match status.as_deref() {
                Some("0") => {}
                other => return Err(Error::Grpc(other.unwrap_or("unknown").into())),
            }
        }
        self.check(&body.to_bytes())
    }

    /// Whether an answer says that everything was taken. What is no such answer says nothing else.
    fn check(&self, body: &Bytes) -> Result<(), Error> {
        let before = if self.protocol == OtlpProtocol::Grpc { 5 } else { 0 };
        let answer = proto::Answer::decode(body.get(before..).unwrap_or_default()).unwrap_or_default();
        let rejected = answer.partial_success.unwrap_or_default();
        match u64::try_from(rejected.spans) {
            Ok(spans) if spans > 0 => {
                Err(Error::Rejected { spans, message: rejected.message.chars().take(MAX_MESSAGE).collect() })
            }
            _ => Ok(()),
        }
    }

    fn message(&self, batch: &[Trace]) -> Vec<u8> {
        let spans = batch.iter().flat_map(spans).collect();
        let scope = proto::Scope { name: "scoregate".into(), version: env!("CARGO_PKG_VERSION").into() };
        let scopes = vec![proto::ScopeSpans { scope: Some(scope), spans }];
        let resource_spans = vec![proto::ResourceSpans { resource: Some(self.resource.clone()), scopes }];
        proto::Request { resource_spans }.encode_to_vec()
    }
}

/// The headers that the collector asks for; what is wrong is said without what they say.
fn read_headers(file: &Path) -> std::io::Result<HeaderMap> {
    let text = read_named(file, MAX_HEADERS).map_err(std::io::Error::other)?;
    let wrong = |line: usize| {
        let (file, line) = (file.display(), line + 1);
        let expected = "expected lines of `name: value`, as the collector asks for them";
        std::io::Error::other(format!("found no header in line {line} of {file}, {expected}"))
    };
    let mut headers = HeaderMap::new();
    for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| wrong(at))?;
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        let name = HeaderName::from_bytes(name).map_err(|_| wrong(at))?;
        let mut value = HeaderValue::from_bytes(value).map_err(|_| wrong(at))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

/// The request's own span, and one for each of its stages.
fn spans(trace: &Trace) -> Vec<proto::Span> {
    let end = nanoseconds(trace.end.duration_since(UNIX_EPOCH).unwrap_or_default());
    let begin = end.saturating_sub(nanoseconds(trace.took));
    let id = trace.context.trace.0.to_be_bytes().to_vec();
    let span_id = trace.context.span.to_be_bytes().to_vec();
    let mut attributes = vec![
        text("http.request.method", trace.method.into()),
        text("http.route", trace.route.into()),
        number("http.response.status_code", trace.status.into()),
    ];
    attributes.extend(trace.code.map(|code| text("error.type", code.into())));
    attributes.extend(trace.attributes.iter().map(|(name, value)| match value {
        Value::Text(value) => text(name, value.clone()),
        Value::Number(value) => number(name, *value),
    }));
    // Of what goes wrong, a server is to blame for its own part only.
    let status = (trace.status >= 500).then_some(proto::Status { code: proto::ERROR });
    let request = proto::Span {
        trace_id: id.clone(),
        span_id: span_id.clone(),
        trace_state: trace.state.clone(),
        parent_span_id: trace.context.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: format!("{} {}", trace.method, trace.route),
        kind: proto::SERVER,
        start: begin,
        end,
        attributes,
        status,
    };
    let mut all = vec![request];
    let mut at = begin;
    for (stage, took) in &trace.stages {
        let start = at;
        at += nanoseconds(*took);
        all.push(proto::Span {
            trace_id: id.clone(),
            span_id: rand::random::<u64>().max(1).to_be_bytes().to_vec(),
            trace_state: trace.state.clone(),
            parent_span_id: span_id.clone(),
            name: stage.as_str().into(),
            kind: proto::INTERNAL,
            start,
            end: at,
            ..proto::Span::default()
        });
    }
    all
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn text(key: &str, value: String) -> proto::KeyValue {
    let value = proto::AnyValue { value: Some(proto::any_value::Value::Text(value)) };
    proto::KeyValue { key: key.into(), value: Some(value) }
}

fn number(key: &str, value: i64) -> proto::KeyValue {
    let value = proto::AnyValue { value: Some(proto::any_value::Value::Number(value)) };
    proto::KeyValue { key: key.into(), value: Some(value) }
}

/// The messages of OTLP, as far as they are written and read here; field numbers as in
/// [opentelemetry-proto](https://github.com/open-telemetry/opentelemetry-proto) 1.x.
mod proto {
    use prost::{Message, Oneof};

    pub(super) const INTERNAL: i32 = 1;
    pub(super) const SERVER: i32 = 2;
    pub(super) const ERROR: i32 = 2;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Request {
        #[prost(message, repeated, tag = "1")]
        pub(super) resource_spans: Vec<ResourceSpans>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Answer {
        #[prost(message, optional, tag = "1")]
        pub(super) partial_success: Option<PartialSuccess>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct PartialSuccess {
        #[prost(int64, tag = "1")]
        pub(super) spans: i64,
        #[prost(string, tag = "2")]
        pub(super) message: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        pub(super) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub(super) scopes: Vec<ScopeSpans>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub(super) attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ScopeSpans {
        #[prost(message, optional, tag = "1")]
        pub(super) scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        pub(super) spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Scope {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) version: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) span_id: Vec<u8>,
        #[prost(string, tag = "3")]
        pub(super) trace_state: String,
        #[prost(bytes = "vec", tag = "4")]
        pub(super) parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(super) name: String,
        #[prost(int32, tag = "6")]
        pub(super) kind: i32,
        #[prost(fixed64, tag = "7")]
        pub(super) start: u64,
        #[prost(fixed64, tag = "8")]
        pub(super) end: u64,
        #[prost(message, repeated, tag = "9")]
        pub(super) attributes: Vec<KeyValue>,
        #[prost(message, optional, tag = "15")]
        pub(super) status: Option<Status>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Status {
        #[prost(int32, tag = "3")]
        pub(super) code: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct KeyValue {
        #[prost(string, tag = "1")]
        pub(super) key: String,
        #[prost(message, optional, tag = "2")]
        pub(super) value: Option<AnyValue>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct AnyValue {
        #[prost(oneof = "any_value::Value", tags = "1, 3")]
        pub(super) value: Option<any_value::Value>,
    }

    pub(super) mod any_value {
        use super::Oneof;

        #[derive(Clone, PartialEq, Oneof)]
        pub(in super::super) enum Value {
            #[prost(string, tag = "1")]
            Text(String),
            #[prost(int64, tag = "3")]
            Number(i64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_what_is_wrong_is_said_without_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("headers");
        std::fs::write(&file, "x-api-key: abc=: d\r\n\nAuthorization:Bearer s3cret\n").unwrap();
        let headers = read_headers(&file).unwrap();
        assert_eq!((headers.len(), &headers["x-api-key"]), (2, &HeaderValue::from_static("abc=: d")));
        assert_eq!(headers["authorization"], "Bearer s3cret");
        assert!(!format!("{headers:?}").contains("s3cret"));
        for wrong in ["a: b\ns3cret", "a: b\ns3cret\x01: b", "a: b\nname: s3cret\x01"] {
            std::fs::write(&file, wrong).unwrap();
            let said = read_headers(&file).unwrap_err().to_string();
            assert!(said.contains("line 2 of ") && !said.contains("s3cret"), "{said}");
        }
        assert!(read_headers(directory.path()).is_err());
    }
}
