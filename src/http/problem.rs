//! Every refusal → `application/problem+json` (RFC 9457), in one exhaustive match.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use scoregate_model::explain;
use scoregate_model::features::{BodyError, FaultCode, FeatureRows, FieldFault, RowReader};
use serde::Serialize;

use super::admission::PIN;
use super::oauth::Refusal;
use super::quota::Told;
use crate::aside::Undone;
use crate::registry::Unexplained;
use crate::{audit, auth, limiter, rollout, scoring};

/// The most faults that one problem document describes.
const MAX_LISTED: usize = 100;

/// What is wrong with a file that is no model at all.
const NO_MODEL: [&str; 5] = ["empty_file", "not_onnx", "truncated", "trailing_bytes", "malformed_model"];

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller is unknown or may not do this.
    #[error("{error}")]
    Auth {
        /// Why.
        #[source]
        error: auth::Error,
        /// The URL of the document that says where tokens come from (RFC 9728).
        resource_metadata: Arc<str>,
    },
    /// No token is given.
    #[error("{refusal}")]
    Token {
        /// Why.
        #[source]
        refusal: Refusal,
        /// Whether the client asked for plain JSON.
        as_json: bool,
    },
    /// Nothing is at this path.
    #[error("there is nothing at this path")]
    NoRoute,
    /// The model has no such version.
    #[error("the model has no version of this name")]
    UnknownVersion,
    /// The version that is to answer cannot be told from the headers.
    #[error("expected at most one {PIN} header, with the name of a version, stable or canary")]
    Pin,
    /// The path does not take this method.
    #[error("this path does not take this method")]
    Method,
    /// The query has parameters that the path does not take, or takes otherwise; the text says what was found and expected.
    #[error("{0}")]
    Parameter(String),
    /// The scores of the model are not explained.
    #[error(transparent)]
    Unexplained(#[from] Unexplained),
    /// The scores of the model are not explained in this way.
    #[error(transparent)]
    Question(#[from] explain::Refusal),
    /// Nobody knows which features count most.
    #[error(
        "the model's package does not say how important its features are; import or fit a version with reference rows: \
         `scoregate import … --reference train.csv`"
    )]
    NoImportance,
    /// To explain so many rows would take longer than an answer may.
    #[error(
        "to explain {rows} rows would take longer than an answer may; send at most {fit} rows at a time, or explain=false"
    )]
    TooManyToExplain {
        /// How many rows there are.
        rows: usize,
        /// How many there is time for.
        fit: usize,
    },
    /// None of the answers that the client accepts can be given.
    #[error("expected an Accept header that allows {0}")]
    NotAcceptable(&'static str),
    /// The body is no rollout, or does not say what is to be taken back.
    #[error("expected {0}, and nothing else")]
    Rollout(&'static str),
    /// The rollout cannot be read, or not be changed to what was asked for.
    #[error(transparent)]
    Change(#[from] rollout::Error),
    /// What was done cannot be recorded.
    #[error("the audit log cannot be written")]
    Audit(#[from] audit::Error),
    /// What is to be published is not sent as it should be; the text says what was found and expected.
    #[error("{0}")]
    Upload(String),
    /// A name that no model or version may have.
    #[error(
        "found no {what} name that may be, expected 1 to 128 letters, digits, '.', '_' or '-', not beginning with '.'"
    )]
    Name {
        /// Model or version.
        what: &'static str,
    },
    /// The model that is to be published is refused.
    #[error("{reason}")]
    Model {
        /// What is wrong with it, by a stable name.
        code: String,
        /// A sentence.
        reason: String,
    },
    /// The version is there already.
    #[error("a version of this name is published already, and versions never change; choose another name")]
    VersionExists,
    /// There is no more room on the disk.
    #[error("there is not enough room for the upload")]
    StorageFull,
    /// A file cannot be written.
    #[error("what is sent cannot be kept")]
    Storage(#[source] std::io::Error),
    /// What was examined cannot be published.
    #[error("the version cannot be published")]
    Publishing(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The body is compressed where that is not taken.
    #[error("expected a body without content encoding")]
    Compressed,
    /// The body is of another type.
    #[error("expected the content type {0}")]
    MediaType(&'static str),
    /// The body is encoded in another way.
    #[error("expected a body without content encoding, or with one layer of gzip")]
    Encoding,
    /// The body is not what its encoding says.
    #[error("the body is not whole gzip data")]
    Gzip,
    /// The body broke off or was framed wrongly.
    #[error("the body broke off or its framing is malformed")]
    BodyBroken,
    /// The body is too large.
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The limit, of decoded bytes.
        limit: usize,
    },
    /// The body came too slowly.
    #[error("the body did not arrive in time")]
    BodyTimeout,
    /// The body cannot be read as rows.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The CSV header does not fit.
    #[error("the CSV header does not fit the model's features")]
    Header(Vec<Fault>),
    /// The one row does not pass.
    #[error("the row does not pass the model's feature schema")]
    Row(Vec<Fault>),
    /// No row of a batch passes.
    #[error("{count} of {count} rows rejected")]
    Rows {
        /// How many rows there were.
        count: usize,
        /// What is wrong with the first of them.
        faults: Vec<Fault>,
    },
    /// The answer would take more memory than there is, whatever else happens.
    #[error(
        "the answer to {rows} rows does not fit the memory that this gateway gives to bodies; send at most {fit} rows at a \
         time"
    )]
    AnswerTooLarge {
        /// How many rows there are.
        rows: usize,
        /// How many would fit.
        fit: usize,
    },
    /// The caller's quota does not let the rows through.
    #[error("{error}")]
    Quota {
        /// Why.
        #[source]
        error: limiter::Error,
        /// Whether the client is told what is left in the older way, too.
        legacy: bool,
    },
    /// Scoring failed.
    #[error(transparent)]
    Scoring(#[from] scoring::Error),
    /// A handler panicked.
    #[error("the request could not be handled")]
    Panicked,
}

impl From<Undone> for Error {
    fn from(_: Undone) -> Self {
        scoring::Error::from(scoring::Overloaded).into()
    }
}

/// One fault as clients see it.
#[derive(Debug, Serialize)]
pub struct Fault {
    pointer: String,
    code: Cow<'static, str>,
    detail: String,
}

impl Fault {
    /// A fault at a JSON pointer.
    pub fn new(pointer: String, code: FaultCode, detail: String) -> Self {
        Self { pointer, code: code.as_str().into(), detail }
    }

    /// The faults of a body that is one row, or of a CSV header.
    pub fn of_row(faults: &[FieldFault], reader: &RowReader) -> Vec<Self> {
        let described = faults.iter().map(|fault| {
            let pointer = format!("#{}", reader.pointer(&fault.place));
            Self::new(pointer, fault.code, reader.detail(fault).into_owned())
        });
        described.collect()
    }

    /// What a version would break, the first hundred of it.
    fn of_differences(differences: &[rollout::Difference]) -> Vec<Self> {
        let described = differences.iter().map(|difference| Self {
            pointer: format!("#{}", difference.pointer()),
            code: difference.change.as_str().into(),
            detail: difference.to_string(),
        });
        described.take(MAX_LISTED).collect()
    }

    /// The faults of refused rows, the first hundred of all that were sent; `prefix` is what the pointer to row 0 begins with,
    /// before the `/0`.
    pub fn of_rows<'f>(
        parts: impl Iterator<Item = (&'f FeatureRows, &'f RowReader)>,
        prefix: &str,
    ) -> Vec<Self> {
        let refused = parts.flat_map(|(rows, reader)| rows.faults.iter().map(move |row| (row, reader)));
        let mut refused: Vec<_> = refused.collect();
        refused.sort_by_key(|(row, _)| row.index);
        let faults = refused
            .into_iter()
            .flat_map(|(row, reader)| row.faults.iter().map(move |fault| (row.index, fault, reader)));
        let described = faults.map(|(index, fault, reader)| {
            let pointer = format!("{prefix}/{index}{}", reader.pointer(&fault.place));
            Self::new(pointer, fault.code, reader.detail(fault).into_owned())
        });
        described.take(MAX_LISTED).collect()
    }
}

/// Declares [`Code`]: the name of each, its status, how it is written, and its title.
macro_rules! codes {
    ($($name:ident = ($status:literal, $text:literal, $title:literal),)*) => {
        /// What a refusal is to a client. Stable: type slug, log field and metric label.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(super) enum Code {
            $($name,)*
        }

        impl Code {
            /// Every code.
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];

            /// Status, how it is written, and title.
            const fn told(self) -> (u16, &'static str, &'static str) {
                match self {
                    $(Self::$name => ($status, $text, $title),)*
                }
            }
        }
    };
}

codes! {
    MissingCredentials = (401, "missing_credentials", "Credentials needed"),
    InvalidRequest = (400, "invalid_request", "Malformed request"),
    CredentialTooLarge = (431, "credential_too_large", "Credential too large"),
    InvalidKey = (401, "invalid_key", "Invalid API key"),
    InvalidToken = (401, "invalid_token", "Invalid access token"),
    CredentialsUnavailable = (503, "credentials_unavailable", "Access tokens cannot be checked"),
    InsufficientScope = (403, "insufficient_scope", "Insufficient scope"),
    ModelNotAllowed = (403, "model_not_allowed", "Model not allowed"),
    UnsupportedGrantType = (400, "unsupported_grant_type", "Unsupported grant type"),
    InvalidClient = (401, "invalid_client", "Invalid client"),
    InvalidScope = (400, "invalid_scope", "Invalid scope"),
    TemporarilyUnavailable = (503, "temporarily_unavailable", "Temporarily unavailable"),
    ServerError = (500, "server_error", "Internal error"),
    NotFound = (404, "not_found", "Not found"),
    UnknownVersion = (404, "unknown_version", "Unknown version"),
    MethodNotAllowed = (405, "method_not_allowed", "Method not allowed"),
    InvalidParameter = (400, "invalid_parameter", "Invalid query parameter"),
    ExplanationsOff = (409, "explanations_off", "No explanations"),
    NoBackground = (409, "no_background", "No background rows"),
    BackgroundUnusable = (409, "background_unusable", "Unusable background rows"),
    ExplanationsPreparing = (503, "explanations_preparing", "Explanations are being prepared"),
    NoImportance = (404, "no_importance", "No importance of features"),
    NotAcceptable = (406, "not_acceptable", "Not acceptable"),
    InvalidRollout = (422, "invalid_rollout", "Invalid rollout"),
    VersionUnusable = (409, "version_unusable", "Unusable version"),
    BreakingChange = (409, "breaking_change", "Breaking change"),
    NoPreviousVersion = (409, "no_previous_version", "No previous version"),
    RolloutChanged = (412, "rollout_changed", "Rollout changed"),
    RepositoryUnavailable = (500, "repository_unavailable", "Repository unavailable"),
    AuditUnavailable = (500, "audit_unavailable", "Audit log unavailable"),
    UnsupportedMediaType = (415, "unsupported_media_type", "Unsupported media type"),
    UnsupportedEncoding = (415, "unsupported_encoding", "Unsupported content encoding"),
    MalformedGzip = (400, "malformed_gzip", "Malformed gzip"),
    MalformedBody = (400, "malformed_body", "Malformed body"),
    BodyTooLarge = (413, "body_too_large", "Body too large"),
    BodyTimeout = (408, "body_timeout", "Body timeout"),
    InvalidUpload = (400, "invalid_upload", "Invalid upload"),
    InvalidName = (400, "invalid_name", "Invalid name"),
    InvalidModel = (400, "invalid_model", "No ONNX model"),
    ModelRefused = (422, "model_refused", "Model refused"),
    VersionExists = (409, "version_exists", "Version exists"),
    StorageFull = (507, "storage_full", "Not enough storage"),
    MalformedJson = (400, "malformed_json", "Malformed JSON"),
    TooManyRows = (413, "too_many_rows", "Too many rows"),
    InvalidRows = (422, "invalid_rows", "Invalid rows"),
    InvalidRow = (422, "invalid_row", "Invalid row"),
    QuotaExceeded = (429, "quota_exceeded", "Request cannot be satisfied as assigned quota has been exceeded"),
    QuotaUnavailable = (503, "quota_unavailable", "The quota cannot be checked"),
    VersionNotLoaded = (409, "version_not_loaded", "Version not loaded"),
    UnknownModel = (404, "unknown_model", "Unknown model"),
    NotReady = (503, "not_ready", "Not ready"),
    Overloaded = (503, "overloaded", "Overloaded"),
    Deadline = (504, "deadline", "Deadline exceeded"),
    ModelOutputInvalid = (500, "model_output_invalid", "Invalid model output"),
    Internal = (500, "internal", "Internal error"),
}

impl Code {
    /// The status of the answer.
    pub(super) fn status(self) -> StatusCode {
        StatusCode::from_u16(self.told().0).expect("every status of the list is one")
    }

    /// As clients see it.
    pub(super) fn as_str(self) -> &'static str {
        self.told().1
    }

    /// What it is called.
    pub(super) fn title(self) -> &'static str {
        self.told().2
    }
}

impl Error {
    /// What it is to a client.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Auth { error, .. } => match error {
                auth::Error::Missing => Code::MissingCredentials,
                auth::Error::InvalidRequest(_) => Code::InvalidRequest,
                auth::Error::TooLarge => Code::CredentialTooLarge,
                auth::Error::InvalidKey => Code::InvalidKey,
                auth::Error::InvalidToken(_) | auth::Error::ExpiredToken => Code::InvalidToken,
                auth::Error::Unavailable { .. } => Code::CredentialsUnavailable,
                auth::Error::InsufficientScope(_) => Code::InsufficientScope,
                auth::Error::ModelNotAllowed => Code::ModelNotAllowed,
            },
            // The codes are those of RFC 6749, section 5.2.
            Self::Token { refusal, .. } => match refusal {
                Refusal::Request(_) => Code::InvalidRequest,
                Refusal::GrantType => Code::UnsupportedGrantType,
                Refusal::Client(_) => Code::InvalidClient,
                Refusal::Scope(_) => Code::InvalidScope,
                Refusal::Busy | Refusal::Unrecorded => Code::TemporarilyUnavailable,
                Refusal::Failed(_) => Code::ServerError,
                Refusal::Other(error) => error.code(),
            },
            Self::NoRoute => Code::NotFound,
            Self::UnknownVersion => Code::UnknownVersion,
            Self::Pin => Code::InvalidRequest,
            Self::Method => Code::MethodNotAllowed,
            Self::Parameter(_) | Self::Question(_) => Code::InvalidParameter,
            Self::Unexplained(Unexplained::Off) => Code::ExplanationsOff,
            Self::Unexplained(Unexplained::NoBackground) => Code::NoBackground,
            Self::Unexplained(Unexplained::Unusable) => Code::BackgroundUnusable,
            Self::Unexplained(Unexplained::Preparing) => Code::ExplanationsPreparing,
            Self::NoImportance => Code::NoImportance,
            Self::NotAcceptable(_) => Code::NotAcceptable,
            Self::Rollout(_) => Code::InvalidRollout,
            Self::Change(error) => match error {
                rollout::Error::NoModel { .. } => Code::UnknownModel,
                rollout::Error::NoVersion { .. } => Code::UnknownVersion,
                rollout::Error::Shares(_)
                | rollout::Error::Twice { .. }
                | rollout::Error::TooMany { .. }
                | rollout::Error::NoCanary { .. } => Code::InvalidRollout,
                rollout::Error::NoPrevious { .. } => Code::NoPreviousVersion,
                rollout::Error::Changed { .. } | rollout::Error::NotTaken { .. } => Code::RolloutChanged,
                rollout::Error::Breaking { .. } => Code::BreakingChange,
                rollout::Error::Audit(_) => Code::AuditUnavailable,
                rollout::Error::Unknown { .. }
                | rollout::Error::Unclear { .. }
                | rollout::Error::Refused { .. } => Code::VersionUnusable,
                rollout::Error::Package(_) if error.is_refusal() => Code::VersionUnusable,
                rollout::Error::Package(_) => Code::RepositoryUnavailable,
            },
            Self::Audit(_) => Code::AuditUnavailable,
            Self::Upload(_) => Code::InvalidUpload,
            Self::Name { .. } => Code::InvalidName,
            Self::Model { code, .. } if NO_MODEL.contains(&code.as_str()) => Code::InvalidModel,
            Self::Model { .. } => Code::ModelRefused,
            Self::VersionExists => Code::VersionExists,
            Self::StorageFull => Code::StorageFull,
            Self::Storage(_) | Self::Publishing(_) => Code::RepositoryUnavailable,
            Self::MediaType(_) => Code::UnsupportedMediaType,
            Self::Encoding | Self::Compressed => Code::UnsupportedEncoding,
            Self::Gzip => Code::MalformedGzip,
            Self::BodyBroken => Code::MalformedBody,
            Self::BodyTooLarge { .. } => Code::BodyTooLarge,
            Self::BodyTimeout => Code::BodyTimeout,
            Self::Body(BodyError::Json(_) | BodyError::DuplicateField { .. } | BodyError::Root { .. }) => {
                Code::MalformedJson
            }
            Self::Body(BodyError::TooManyRows { .. })
            | Self::AnswerTooLarge { .. }
            | Self::TooManyToExplain { .. } => Code::TooManyRows,
            Self::Body(BodyError::Shape { .. } | BodyError::Header(_) | BodyError::Empty)
            | Self::Header(_)
            | Self::Rows { .. } => Code::InvalidRows,
            Self::Row(_) => Code::InvalidRow,
            Self::Quota { error: limiter::Error::Exceeded(_), .. } => Code::QuotaExceeded,
            Self::Quota { error: limiter::Error::TooManyRows { .. }, .. } => Code::TooManyRows,
            Self::Quota { error: limiter::Error::Unavailable, .. } => Code::QuotaUnavailable,
            Self::Scoring(scoring::Error::UnknownModel) => Code::UnknownModel,
            Self::Scoring(scoring::Error::UnknownVersion | scoring::Error::NoCanary) => Code::UnknownVersion,
            Self::Scoring(scoring::Error::NotLoaded) => Code::VersionNotLoaded,
            Self::Scoring(scoring::Error::NotReady) => Code::NotReady,
            Self::Scoring(scoring::Error::Overloaded(_)) => Code::Overloaded,
            Self::Scoring(scoring::Error::Deadline) => Code::Deadline,
            Self::Scoring(scoring::Error::Output(_)) => Code::ModelOutputInvalid,
            Self::Scoring(scoring::Error::Run(_) | scoring::Error::Panicked) | Self::Panicked => {
                Code::Internal
            }
        }
    }

    /// The challenge or hint that goes with the status.
    fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        match self {
            Self::Auth { error, resource_metadata } => challenges(*error, resource_metadata),
            Self::Scoring(scoring::Error::Overloaded(_) | scoring::Error::NotReady)
            | Self::Unexplained(Unexplained::Preparing) => {
                vec![(header::RETRY_AFTER, HeaderValue::from_static("1"))]
            }
            Self::Quota { error: limiter::Error::Exceeded(standing), legacy } => {
                let told = Told { standing: standing.clone(), legacy: *legacy };
                let retry = (header::RETRY_AFTER, HeaderValue::from(standing.retry_after()));
                std::iter::once(retry).chain(told.headers()).collect()
            }
            Self::Quota { error: limiter::Error::Unavailable, .. } => {
                vec![(header::RETRY_AFTER, HeaderValue::from_static("1"))]
            }
            Self::Token { refusal: Refusal::Other(error), .. } => error.headers(),
            Self::Token { refusal: Refusal::Client(_), .. } => {
                vec![(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"scoregate\""))]
            }
            Self::Token { refusal: Refusal::Busy | Refusal::Unrecorded, .. } => {
                vec![(header::RETRY_AFTER, HeaderValue::from_static("1"))]
            }
            Self::Encoding => vec![(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, identity"))],
            // What is left of the body is not worth reading.
            Self::BodyTimeout | Self::BodyBroken | Self::BodyTooLarge { .. } => {
                vec![(header::CONNECTION, HeaderValue::from_static("close"))]
            }
            _ => Vec::new(),
        }
    }

    /// Why the caller is unknown or may not do this, if that is it.
    fn refusal(&self) -> Option<auth::Error> {
        match self {
            Self::Auth { error, .. } => Some(*error),
            _ => None,
        }
    }

    /// What OAuth clients know the refusal of a token by: its own code, else the closest that there is.
    fn oauth_error(&self, status: StatusCode) -> Option<&'static str> {
        match self {
            Self::Token { refusal: Refusal::Other(_), .. } => Some(match status {
                StatusCode::SERVICE_UNAVAILABLE => "temporarily_unavailable",
                _ if status.is_server_error() => "server_error",
                _ => "invalid_request",
            }),
            Self::Token { .. } => Some(self.code().as_str()),
            _ => None,
        }
    }

    /// The type of the problem: a registered one, else ours.
    fn kind(&self, code: &str) -> String {
        match self {
            Self::Quota { error: limiter::Error::Exceeded(_), .. } => {
                "https://iana.org/assignments/http-problem-types#quota-exceeded".into()
            }
            _ => format!("/problems/{}", code.replace('_', "-")),
        }
    }

    /// The policies that refuse the request.
    fn violated_policies(&self) -> Vec<String> {
        match self {
            Self::Quota { error: limiter::Error::Exceeded(standing), .. } => {
                standing.violated().map(ToOwned::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }

    fn faults(&mut self) -> Vec<Fault> {
        match self {
            Self::Row(faults) | Self::Rows { faults, .. } | Self::Header(faults) => std::mem::take(faults),
            Self::Body(BodyError::Shape { pointer, code, detail }) => {
                vec![Fault::new(std::mem::take(pointer), *code, std::mem::take(detail))]
            }
            Self::Change(rollout::Error::Breaking { differences, .. }) => Fault::of_differences(differences),
            Self::Model { code, reason } => {
                let pointer = format!("#/{}", part_of(code));
                vec![Fault { pointer, code: std::mem::take(code).into(), detail: reason.clone() }]
            }
            Self::Body(error @ BodyError::Empty) => {
                vec![Fault { pointer: "#".into(), code: "empty".into(), detail: error.to_string() }]
            }
            _ => Vec::new(),
        }
    }

    /// The sentence for the client. What only the operator can act on stays in the log.
    fn detail(&self) -> String {
        match self {
            Self::Body(BodyError::Shape { .. }) => "the body is not of the shape expected".into(),
            Self::Scoring(scoring::Error::Output(_) | scoring::Error::Run(_) | scoring::Error::Panicked) => {
                "the request was well-formed; the operator finds the cause in the log under this request id"
                    .into()
            }
            Self::Change(error) if error.is_refusal() => error.reason(),
            Self::Change(_) | Self::Audit(_) | Self::Storage(_) | Self::Publishing(_) => {
                "the operator finds the cause in the log under this request id".into()
            }
            other => other.to_string(),
        }
    }

    /// Writes the problem document.
    pub fn into_answer(mut self, path: &str, request_id: &str) -> Response {
        let (problem, status) = (self.code(), self.code().status());
        let (code, title) = (problem.as_str(), problem.title());
        match status {
            // Anybody who passes by has none; the metrics count them.
            _ if matches!(self.refusal(), Some(auth::Error::Missing)) => {
                tracing::debug!(request_id, code, reason = "missing", "credential refused");
            }
            // What the answer does not tell, the operator finds here.
            _ if self.refusal().is_some() => {
                let reason = self.refusal().map_or("", auth::Error::reason);
                tracing::info!(request_id, code, reason, "credential refused");
            }
            _ if matches!(self, Self::Token { refusal: Refusal::Client(_), .. }) => {
                tracing::info!(request_id, code, "client refused");
            }
            // Shedding load and not being ready are states of the gateway, not failures of it.
            StatusCode::SERVICE_UNAVAILABLE => {
                tracing::debug!(request_id, code, "request turned away")
            }
            _ if status.is_server_error() => {
                let error = chain(&self);
                tracing::error!(request_id, code, error, "request failed");
            }
            _ => {}
        }
        let headers = self.headers();
        let document = Document {
            kind: self.kind(code),
            title,
            status: status.as_u16(),
            code,
            detail: self.detail(),
            instance: path,
            request_id,
            violated_policies: self.violated_policies(),
            errors: self.faults(),
            error: self.oauth_error(status),
            error_description: self.oauth_error(status).map(|_| self.detail()),
        };
        let media_type = match self {
            Self::Token { as_json: true, .. } => "application/json",
            _ => "application/problem+json",
        };
        let body = serde_json::to_vec(&document).expect("a problem document serialises");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let all: &mut HeaderMap = response.headers_mut();
        all.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        all.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in headers {
            all.append(name, value);
        }
        response
    }
}

/// Which part of an upload is at fault, where an import gives this code.
fn part_of(code: &str) -> &'static str {
    match code {
        "invalid_schema" => "schema",
        "invalid_bindings" => "bindings",
        "invalid_reference" => "reference",
        "invalid_golden" | "golden_mismatch" => "golden",
        _ => "model",
    }
}

/// What RFC 6750 section 3 and RFC 9728 section 5.1 have a refused client told, and nothing that would help another.
fn challenges(error: auth::Error, resource_metadata: &str) -> Vec<(HeaderName, HeaderValue)> {
    const API_KEY: HeaderValue = HeaderValue::from_static("ApiKey realm=\"scoregate\"");
    let bearer = |parameters: &str| {
        let value = format!("Bearer {parameters}, resource_metadata=\"{resource_metadata}\"");
        let value = HeaderValue::try_from(value).unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
        (header::WWW_AUTHENTICATE, value)
    };
    match error {
        auth::Error::Missing => {
            vec![bearer("realm=\"scoregate\""), (header::WWW_AUTHENTICATE, API_KEY)]
        }
        auth::Error::InvalidRequest(_) => vec![bearer("error=\"invalid_request\"")],
        auth::Error::TooLarge => Vec::new(),
        auth::Error::InvalidKey => vec![(header::WWW_AUTHENTICATE, API_KEY)],
        auth::Error::InvalidToken(_) => vec![bearer("error=\"invalid_token\"")],
        auth::Error::ExpiredToken => {
            vec![bearer("error=\"invalid_token\", error_description=\"the access token has expired\"")]
        }
        auth::Error::InsufficientScope(scope) => {
            vec![bearer(&format!("error=\"insufficient_scope\", scope=\"{scope}\""))]
        }
        auth::Error::ModelNotAllowed => vec![bearer("error=\"insufficient_scope\"")],
        auth::Error::Unavailable { retry_after } => {
            vec![(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)))]
        }
    }
}

/// An error and its causes on one line.
pub(super) fn chain(error: &Error) -> String {
    Chain(error).to_string()
}

/// An error and its causes on one line.
struct Chain<'e>(&'e dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(formatter, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Document<'d> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: String,
    instance: &'d str,
    request_id: &'d str,
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_description: Option<String>,
}

/// A refusal on its way to [`super::serve`], which knows path and request id and writes it.
#[derive(Clone)]
pub(super) struct Pending(std::sync::Arc<std::sync::Mutex<Option<Error>>>);

impl Pending {
    pub(super) fn take(self) -> Option<Error> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.code().status();
        response.extensions_mut().insert(Pending(std::sync::Arc::new(std::sync::Mutex::new(Some(self)))));
        response
    }
}
