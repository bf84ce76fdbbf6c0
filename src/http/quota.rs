//! What an answer says of the caller's quota: `RateLimit` and `RateLimit-Policy` as
//! [draft-ietf-httpapi-ratelimit-headers](https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/) has them.

use axum::response::{IntoResponse, Response};
use hyper::header::{HeaderName, HeaderValue};

use super::problem::Error;
use crate::limiter::Standing;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
/// What clients were told before there was a draft.
const LEGACY: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

/// How to tell a client what is left of its quota.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) standing: Standing,
    /// Whether to tell it in the older way, too.
    pub(super) legacy: bool,
}

impl Told {
    /// The headers; none without a quota.
    pub(super) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let description = self.standing.describe().and_then(|description| {
            let policy = HeaderValue::from_str(description.policy).ok()?;
            Some([(POLICY, policy), (LEFT, HeaderValue::try_from(description.left).ok()?)])
        });
        let legacy = self.legacy.then(|| self.standing.tightest()).flatten().map(|tightest| {
            let values = [tightest.limit, tightest.remaining, tightest.reset];
            LEGACY.into_iter().zip(values.map(HeaderValue::from))
        });
        description.into_iter().flatten().chain(legacy.into_iter().flatten())
    }

    /// The answer with these headers, be it a refusal.
    pub(super) fn answer(&self, answer: Result<Response, Error>) -> Response {
        let mut response = answer.into_response();
        response.headers_mut().extend(self.headers());
        response
    }
}
