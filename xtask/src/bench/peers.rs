//! The peers: FastAPI in front of ONNX Runtime and of scikit-learn, two workers each.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::gateway::{READY, Site};
use crate::python;
use crate::server::{Server, free_address};
use crate::wheel::hex;
use crate::workspace::{self, Workspace};

/// The peers, ready.
pub(super) struct Peers {
    pub(super) onnx: Server,
    /// The same application with its handler on the event loop.
    pub(super) onnx_async: Server,
    pub(super) sklearn: Server,
}

/// Fits the scikit-learn pipeline on the gateway's own training data and starts them all.
pub(super) fn start(workspace: &Workspace, site: &Site) -> Result<Peers> {
    let source = workspace.root.join("benches/peers");
    let python = python::environment(&workspace.target.join("bench-venv"), &source.join("requirements.txt"))?;
    let pipeline = site.directory.join("pipeline.joblib");
    eprintln!("fitting scikit-learn's pipeline");
    workspace::run(
        Command::new(&python).arg(source.join("fastapi_sklearn.py")).arg(&site.data).arg(&pipeline),
    )?;

    let start = |app: &str, style: &str, model: &Path| -> Result<Server> {
        let address = free_address(0)?;
        let mut command = workspace.clean_command(&python);
        command
            .args([
                "-m",
                "uvicorn",
                &format!("{app}:app"),
                "--workers=2",
                "--loop=uvloop",
                "--http=httptools",
            ])
            .args(["--no-access-log", "--log-level=warning", "--host=127.0.0.1"])
            .arg(format!("--port={}", address.port()))
            .arg("--app-dir")
            .arg(&source)
            .env("PEER_MODEL", model)
            .env("PEER_STYLE", style)
            .env("PEER_KEY_SHA256", hex(&Sha256::digest(&site.key)))
            // Two workers on two cores: more threads in each would only be in each other's way.
            .env("OMP_NUM_THREADS", "1")
            .env("OPENBLAS_NUM_THREADS", "1")
            .env("ORT_DISABLE_TELEMETRY", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let mut server =
            Server::start(app, &mut command, address, &site.directory.join(format!("{app}_{style}.log")))?;
        server.wait_ready(READY, Duration::from_secs(60))?;
        Ok(server)
    };
    let graph = site.package("churn")?.join("model.onnx");
    Ok(Peers {
        onnx: start("fastapi_onnx", "def", &graph)?,
        onnx_async: start("fastapi_onnx", "async", &graph)?,
        sklearn: start("fastapi_sklearn", "def", &pipeline)?,
    })
}
