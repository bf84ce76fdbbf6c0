//! ONNX Runtime alone, in a process of its own: what `session.run` costs on the rows that the gateway is sent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::BATCH_ROWS;
use crate::gateway::Site;
use crate::requests;
use crate::workspace::{self, Workspace};

/// Microseconds of CPU time a run, one entry a round.
#[derive(Default)]
pub(super) struct Runs {
    pub(super) single_us: Vec<f64>,
    pub(super) batch_us: Vec<f64>,
    pub(super) with_tensors_single_us: Vec<f64>,
    pub(super) with_tensors_batch_us: Vec<f64>,
}

/// Which graph of a package is run.
#[derive(Clone, Copy)]
pub(super) enum Graph {
    /// The file as it is.
    Published,
    /// What the gateway makes of it.
    Served,
}

/// The program, and what it is given.
pub(super) struct Raw<'a> {
    program: PathBuf,
    library: &'a Path,
    rows: PathBuf,
}

impl<'a> Raw<'a> {
    /// Writes the rows of the gateway's first batch to where the program reads them.
    pub(super) fn new(workspace: &Workspace, site: &Site, library: &'a Path) -> Result<Self> {
        let rows = site.directory.join("rows.json");
        fs::write(&rows, requests::customers(BATCH_ROWS))
            .with_context(|| format!("could not write {}", rows.display()))?;
        Ok(Self { program: workspace.target.join("release/examples/raw_session"), library, rows })
    }

    /// Adds one round to `runs`.
    pub(super) fn measure(&self, package: &Path, graph: Graph, runs: &mut Runs) -> Result<()> {
        let graph = match graph {
            Graph::Published => "published",
            Graph::Served => "served",
        };
        let mut command = Command::new(&self.program);
        command.args([self.library, package, &self.rows]).arg(graph).env("ORT_DISABLE_TELEMETRY", "1");
        let cost = workspace::capture(&mut command)?;
        let cost: Value =
            serde_json::from_str(&cost).context("raw_session printed something other than JSON")?;
        for (values, name) in [
            (&mut runs.single_us, "run_1_us"),
            (&mut runs.batch_us, "run_1000_us"),
            (&mut runs.with_tensors_single_us, "tensors_and_run_1_us"),
            (&mut runs.with_tensors_batch_us, "tensors_and_run_1000_us"),
        ] {
            values.push(cost[name].as_f64().with_context(|| format!("raw_session gave no {name}"))?);
        }
        Ok(())
    }
}
