//! A collector of traces that others wrote: [Phoenix](https://pypi.org/project/arize-phoenix/), in a process of its own.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::files::provided;
use super::redis::free_port;
use super::{Client, Request, scratch, wait_within};

/// How long it may take to start: it brings a database and a web application along.
const START: Duration = Duration::from_secs(240);

/// A collector; killed when dropped.
#[derive(Debug)]
pub(crate) struct Collector {
    child: Child,
    addr: SocketAddr,
    grpc: u16,
    _directory: TempDir,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        let (http, grpc) = (free_port(), free_port());
        let child = Command::new(provided("phoenix/bin/python"))
            .args(["-m", "phoenix.server.main", "serve"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", directory.path())
            .env("PHOENIX_WORKING_DIR", directory.path())
            .env("PHOENIX_HOST", "127.0.0.1")
            .env("PHOENIX_PORT", http.to_string())
            .env("PHOENIX_GRPC_PORT", grpc.to_string())
            .env("PHOENIX_TELEMETRY_ENABLED", "false")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], http));
        let mut collector = Self { child, addr, grpc, _directory: directory };
        let ready = wait_within(START, || {
            assert_eq!(collector.child.try_wait().unwrap(), None, "the collector has ended");
            std::net::TcpStream::connect(addr).ok()
        });
        assert!(ready.is_some(), "the collector was not there within {START:?}");
        collector
    }

    /// Where it takes OTLP over HTTP.
    pub(crate) fn http(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where it takes OTLP over gRPC.
    pub(crate) fn grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc)
    }

    /// The spans of a trace, as it tells of them, once there are as many as `count`.
    pub(crate) fn spans(&self, trace: &str, count: usize) -> Vec<Value> {
        let spans = wait_within(Duration::from_secs(60), || {
            let answer =
                Client::connect(self.addr).ask(&Request::get("/v1/projects/default/spans?limit=1000"));
            if answer.status != 200 {
                return None;
            }
            let all = answer.json()["data"].as_array().cloned().unwrap_or_default();
            let of_trace = all.into_iter().filter(|span| span["context"]["trace_id"] == trace);
            Some(of_trace.collect::<Vec<_>>()).filter(|spans| spans.len() >= count)
        });
        spans.unwrap_or_else(|| panic!("the collector never had {count} spans of {trace}"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
