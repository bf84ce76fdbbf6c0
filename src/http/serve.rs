//! Listeners, connections, and what wraps every request: TLS, framing, request id, panics, problem documents, CORS, drain.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::{Layer, ServiceExt, service_fn as tower_service};
use tower_http::cors::CorsLayer;
use ulid::ULID_LEN;

use super::cors;
use super::framing::StrictFraming;
use super::patience::Patience;
use super::problem::{Error, Pending};
use super::route::Templates;
use super::router::routes;
use super::tls::{self, Tls};
use super::unread::Unread;
use super::wire::Ids;
use super::workers::Workers;
use crate::app::App;
use crate::auth::certificates::ClientCertificate;
use crate::config::ServerSettings;
use crate::telemetry::metrics::ConnectionCounts;
use crate::telemetry::notes::Notes;

/// The longest request id of a client that is kept.
const MAX_REQUEST_ID: usize = 128;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Of which trace an answer is a part ([Trace Context](https://www.w3.org/TR/trace-context/)).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// When a gateway stops: first it is no longer ready, then it takes no new connections.
#[derive(Debug, Clone)]
pub struct Stop(watch::Sender<bool>);

impl Default for Stop {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Stop {
    /// Ends the accepting of connections and lets open ones finish their request.
    pub fn now(&self) {
        self.0.send_replace(true);
    }

    async fn asked(&self) {
        // The sender lives in `self`, so that waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|stop| *stop).await;
    }
}

/// Which of the two listeners a connection was made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Where callers come.
    Public,
    /// Where operators come.
    Admin,
}

/// One of the two listeners, and what its connections are served with.
struct Listener {
    side: Side,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    service: Service,
}

/// What a connection is served with.
#[derive(Clone)]
struct Service {
    app: Arc<App>,
    templates: Arc<Templates>,
    router: Router,
    cors: Option<Arc<CorsLayer>>,
    /// How long a head may take, and the time between two requests.
    timeouts: (Duration, Duration),
}

/// What can go wrong on a connection.
type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Serves `listener` until `stop`, then waits for open requests up to the drain timeout.
async fn serve(listener: Listener, settings: ServerSettings, stop: Stop, workers: Arc<Workers>) {
    let Listener { side, listener, tls, service } = listener;
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(settings.max_connections));
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
            () = stop.asked() => break,
        };
        let stream = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = stop.asked() => break,
        };
        let (service, watcher) = (service.clone(), graceful.watcher());
        let app = Arc::clone(&service.app);
        // Two tasks of different types: what TLS needs makes plain connections no larger.
        match &tls {
            None => workers.spawn(async move {
                let ended = async { connection(TcpStream::from_std(stream)?, None, service, watcher).await };
                report(ended.await, app.metrics.connections());
                drop(place);
            }),
            Some(tls) => {
                let (acceptor, stop) = (tls.acceptor(side), stop.clone());
                workers.spawn(async move {
                    let ended = encrypted(stream, acceptor, service, watcher, stop).await;
                    report(ended, app.metrics.connections());
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(settings.drain_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still busy at the end of the drain timeout and are cut");
    }
}

fn report(ended: Ended, counts: &ConnectionCounts) {
    let Err(error) = ended else {
        counts.served.inc();
        return;
    };
    // What goes wrong on a connection is the peer's affair: it left, stalled, or sent what is no HTTP.
    tracing::debug!(error = %error, "connection ended");
    let mut causes = std::iter::successors(Some(&*error as &dyn std::error::Error), |cause| cause.source());
    let is_late = |cause: &io::Error| cause.kind() == io::ErrorKind::TimedOut;
    let outcome = match error.downcast_ref::<hyper::Error>() {
        _ if causes.any(|cause| cause.downcast_ref().is_some_and(is_late)) => &counts.timeout,
        Some(error) if error.is_parse() => &counts.framing,
        Some(_) => &counts.served,
        // It came to no HTTP.
        None => &counts.tls,
    };
    outcome.inc();
}

/// Makes TLS of a connection and serves it, on the thread that this runs on.
async fn encrypted(
    stream: std::net::TcpStream,
    acceptor: TlsAcceptor,
    service: Service,
    watcher: Watcher,
    stop: Stop,
) -> Ended {
    let (limit, _) = service.timeouts;
    let stream = tokio::select! {
        made = tls::handshake(acceptor, TcpStream::from_std(stream)?, limit) => made?,
        // A connection without a request is closed at once, as one without TLS is.
        () = stop.asked() => return Ok(()),
    };
    let certificate = tls::client_certificate(&stream);
    connection(stream, certificate, service, watcher).await
}

/// Serves one connection, on the thread that this runs on.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    certificate: Option<Arc<ClientCertificate>>,
    Service { app, templates, router, cors, timeouts: (head, idle) }: Service,
    watcher: Watcher,
) -> Ended {
    let (busy, unread) = (Arc::new(AtomicBool::new(false)), Unread::default());
    let stream = Patience::new(StrictFraming::new(stream), head, idle, Arc::clone(&busy));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (app, templates) = (Arc::clone(&app), Arc::clone(&templates));
        let (router, cors) = (router.clone(), cors.clone());
        let (busy, unread) = (Arc::clone(&busy), unread.clone());
        if let Some(certificate) = &certificate {
            request.extensions_mut().insert(Arc::clone(certificate));
        }
        async move {
            // Hyper begins a pipelined request once the answer before it is written.
            busy.store(true, Ordering::Relaxed);
            let (parts, body) = request.into_parts();
            let body = unread.watch(body, &parts.headers);
            let request = Request::from_parts(parts, body);
            let mut response = answer(&app, &templates, router, cors, request).await;
            unread.settle(&mut response);
            busy.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    // Hyper's own timer stays off: Patience does its work.
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    Ok(watcher.watch(connection).await?)
}

/// Accepts the next connection; errors that concern the process (no file descriptors) are waited out.
async fn accept(listener: &TcpListener) -> std::net::TcpStream {
    loop {
        let accepted = listener.accept().await.and_then(|(stream, _)| {
            // Answers are written whole; waiting to fill a segment would only delay them.
            stream.set_nodelay(true)?;
            // The stream leaves this thread's reactor, to be taken up by its worker's.
            stream.into_std()
        });
        match accepted {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One request: id, handler, panic → 500, refusal → problem document, and what CORS adds to any of them.
async fn answer(
    app: &App,
    templates: &Templates,
    router: Router,
    cors: Option<Arc<CorsLayer>>,
    mut request: Request<Body>,
) -> Response {
    let id = request_id(request.headers());
    let route = templates.of(request.uri().path());
    let id_text = id.to_str().unwrap_or_default();
    let watched = app.requests.watch(request.method(), route, id_text, request.headers());
    request.extensions_mut().insert(watched.notes().clone());
    let mut response = match cors.filter(|_| cors::concerns(request.method(), request.headers())) {
        None => handled(router, request, &id, watched.notes()).await,
        Some(cors) => {
            let handler = async |request| {
                Ok::<_, Infallible>(handled(router.clone(), request, &id, watched.notes()).await)
            };
            // Boxed, so that requests without it carry none of its state.
            let Ok(response) = Box::pin(cors.layer(tower_service(handler)).oneshot(request)).await;
            response
        }
    };
    if let Some(traceparent) = watched.traceparent() {
        let traceparent = HeaderValue::try_from(traceparent).expect("it is plain ASCII");
        response.headers_mut().insert(TRACEPARENT, traceparent);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    watched.finish(response.status().as_u16(), response.body().size_hint().lower());
    response
}

/// What a handler answers, or why it does not.
async fn handled(router: Router, request: Request<Body>, id: &HeaderValue, notes: &Notes) -> Response {
    let id = id.to_str().unwrap_or_default();
    let path = request.uri().clone();
    let mut response = match caught(router.oneshot(request)).await {
        Some(Ok(response)) => response,
        None => {
            notes.refused(Error::Panicked.code().as_str());
            Error::Panicked.into_answer(path.path(), id)
        }
    };
    if let Some(error) = response.extensions_mut().remove::<Pending>().and_then(Pending::take) {
        notes.refused(error.code().as_str());
        let told = std::mem::take(response.headers_mut());
        response = error.into_answer(path.path(), id);
        // What else the client is told: the methods of the path, its quota. The length was that of no body.
        for (name, value) in told.iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
            response.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
    }
    response
}

/// What `future` answers, or nothing if it panics: one panic costs one request.
async fn caught<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| {
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

/// The client's request id if it is short and visible ASCII, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let theirs = headers.get(REQUEST_ID).filter(|id| {
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    theirs.cloned().unwrap_or_else(|| {
        let mut buffer = [0; ULID_LEN];
        HeaderValue::from_str(Ids::new().write(&mut buffer)).expect("an identifier is ASCII")
    })
}

/// Binds an address.
///
/// # Errors
/// A message that names the address and what to do.
pub async fn bind(addr: SocketAddr, variable: &str) -> Result<TcpListener, String> {
    TcpListener::bind(addr).await.map_err(|error| {
        format!("cannot listen on {addr}: {error}; set {variable} to an address that is free")
    })
}

/// Serves both listeners, with TLS if there is any, until the process is told to stop, then drains.
pub async fn run(
    app: Arc<App>,
    workers: Workers,
    tls: Option<Tls>,
    public: TcpListener,
    admin: TcpListener,
    signal: impl Future<Output = bool>,
) {
    let settings = app.settings.server.clone();
    let stop = Stop::default();
    let workers = Arc::new(workers);
    let tls = tls.map(Arc::new);
    let following = tls.clone().map(|tls| tokio::spawn(async move { tls.follow().await }));
    let public = (public, super::router::public(Arc::clone(&app)), Side::Public);
    let admin = (admin, super::router::admin(Arc::clone(&app)), Side::Admin);
    let listeners = [public, admin].map(|(listener, router, side)| {
        let tls = tls.clone();
        // No page has any business with the admin listener, which operators' browsers reach and others do not.
        let cors = match side {
            Side::Public => cors::layer(&settings.cors_origins).map(Arc::new),
            Side::Admin => None,
        };
        let routes = routes(side, &app.settings);
        for route in routes.iter().filter(|_| app.settings.metrics) {
            route.begin(&app.metrics.requests());
        }
        let templates = Arc::new(Templates::new(routes.into_iter().map(|route| route.path)));
        let app = Arc::clone(&app);
        let service = Service {
            app,
            templates,
            router,
            cors,
            timeouts: (settings.body_timeout, settings.idle_timeout),
        };
        let listener = Listener { side, listener, tls, service };
        tokio::spawn(serve(listener, settings.clone(), stop.clone(), Arc::clone(&workers)))
    });
    let patient = signal.await;
    app.start_draining();
    if patient {
        tracing::info!(
            delay_ms = settings.drain_delay.as_millis(),
            "stopping: no longer ready, serving on for a while"
        );
        tokio::time::sleep(settings.drain_delay).await;
    }
    stop.now();
    for listener in listeners {
        let _ = listener.await;
    }
    if let Some(following) = following {
        following.abort();
    }
    if let Ok(workers) = Arc::try_unwrap(workers) {
        workers.stop();
    }
    tracing::info!("stopped");
}
