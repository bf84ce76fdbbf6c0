//! What pages of other origins may do with `fetch` (CORS) on the public listener; nothing unless the operator names them.

use std::time::Duration;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::admission::PIN;

/// How long a browser may remember what it was told. Two hours are the most that browsers take.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// What clients may send.
const REQUEST_HEADERS: [HeaderName; 9] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::ACCEPT,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    PIN,
];

/// What pages may read of an answer beside what they always may.
const ANSWER_HEADERS: [HeaderName; 8] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
    header::ALLOW,
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("cache-status"),
];

/// What adds the headers for `origins`; nothing where there are none. Credentials in the sense of CORS, which are cookies and
/// client certificates, stay forbidden: no page of a foreign origin can act as whom the browser knows.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origins = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(REQUEST_HEADERS)
        .expose_headers(ANSWER_HEADERS)
        .max_age(MAX_AGE)
        .vary([header::ORIGIN]);
    Some(layer)
}

/// Whether the layer is to see a request: all but an `OPTIONS` that is no preflight, which no route takes.
pub(super) fn concerns(method: &Method, headers: &HeaderMap) -> bool {
    method != Method::OPTIONS || headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}
