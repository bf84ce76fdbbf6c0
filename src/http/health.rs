//! `GET /health`, `/health/live`, `/health/ready`: open to all, and about this process alone; and [`probe`], which asks.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;

use super::problem::Error;
use super::tls;
use crate::app::App;
use crate::config::Settings;
use crate::scoring;

/// The process answers.
pub(super) async fn live() -> Response {
    ok()
}

/// Models are loaded and warm, and the gateway is not about to stop.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response, Error> {
    if app.is_ready() { Ok(ok()) } else { Err(scoring::Error::NotReady.into()) }
}

fn ok() -> Response {
    ([(CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#).into_response()
}

/// How long a gateway may take to be connected to, and again to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a gateway is not called ready.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody is there.
    #[error("no gateway listens on {addr} (SCOREGATE_ADMIN_ADDR)")]
    Connect {
        /// Where one was looked for.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// This process cannot.
    #[error("cannot speak TLS with the gateway")]
    Tls(#[source] rustls::Error),
    /// It does not speak as it should.
    #[error("the gateway on {addr} gave no answer that can be read")]
    Answer {
        /// Where it listens.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says so.
    #[error("the gateway on {addr} is not ready: it answered {status}")]
    NotReady {
        /// Where it listens.
        addr: SocketAddr,
        /// The status of its answer.
        status: String,
    },
}

/// Asks the admin listener of the gateway that has these settings, on this machine, whether it is ready.
///
/// # Errors
/// [`ProbeError`] if it is not, or is not there.
pub fn probe(settings: &Settings) -> Result<(), ProbeError> {
    let mut addr = settings.server.admin_addr;
    if addr.ip().is_unspecified() {
        let loopback: IpAddr =
            if addr.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        addr.set_ip(loopback);
    }
    let stream = TcpStream::connect_timeout(&addr, PROBE_TIMEOUT)
        .and_then(|stream| stream.set_read_timeout(Some(PROBE_TIMEOUT)).map(|()| stream))
        .map_err(|source| ProbeError::Connect { addr, source })?;
    let status = if settings.tls.is_some() {
        ask(tls::connect_to_own(stream).map_err(ProbeError::Tls)?, addr)
    } else {
        ask(stream, addr)
    };
    match status.map_err(|source| ProbeError::Answer { addr, source })? {
        status if status == "200" => Ok(()),
        status => Err(ProbeError::NotReady { addr, status }),
    }
}

/// The status that `/health/ready` answers with.
fn ask(mut stream: impl Read + Write, addr: SocketAddr) -> io::Result<String> {
    write!(stream, "GET /health/ready HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer.split_whitespace().nth(1).unwrap_or("no status").to_owned())
}
