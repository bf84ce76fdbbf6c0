//! What is left of a body whose request is refused before any of it was read.
//!
//! Hyper closes the connection then, without having said so: of a client that sends head and body apart, the next request on
//! it is lost. So a small body is read away behind the answer, and the answer to a large one announces the end.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, EXPECT, HeaderMap, HeaderValue};

/// The most that is read away.
const MOST_BYTES: u64 = 64 * 1024;

/// How long that may take.
const LONGEST: Duration = Duration::from_secs(5);

/// Where a connection's body goes that nobody wanted: there is one request at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<Mutex<Option<Incoming>>>);

impl Unread {
    /// The body, which comes back here if it is dropped before anybody reads it.
    pub(super) fn watch(&self, body: Incoming, headers: &HeaderMap) -> Body {
        // Who waits to be told to send a body will not send it.
        if body.is_end_stream() || headers.contains_key(EXPECT) {
            return Body::new(body);
        }
        Body::new(Watched { body: Some(body), is_begun: false, unread: self.clone() })
    }

    fn put(&self, body: Option<Incoming>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    /// Sees to a body that came back, now that there is an answer.
    pub(super) fn settle(&self, response: &mut Response) {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(body) = body else { return };
        if body.size_hint().lower() > MOST_BYTES {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return;
        }
        tokio::spawn(tokio::time::timeout(LONGEST, read_away(body)));
    }
}

async fn read_away(mut body: Incoming) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len) as u64;
        if read > MOST_BYTES {
            return;
        }
    }
}

/// A body that goes back if nobody begins to read it.
struct Watched {
    /// There until it goes back.
    body: Option<Incoming>,
    is_begun: bool,
    unread: Unread,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_begun = true;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.is_begun {
            self.unread.put(self.body.take());
        }
    }
}
