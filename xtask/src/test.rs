//! `cargo xtask test`: fetches what the tests need, and runs every one of them.

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::system::{self, CHROMIUM, CURL, PROMETHEUS, REDIS, STRACE};
use crate::workspace::{self, Workspace};
use crate::{node, onnxruntime, python, tools};

/// Which tests, and how thoroughly.
#[derive(Args)]
pub(crate) struct Options {
    /// Long campaigns with their full counts, on optimised binaries, instead of reduced ones.
    #[arg(long)]
    full: bool,
    /// Passed on to the test binaries: names to run only some tests, `--nocapture`, ….
    #[arg(last = true)]
    filters: Vec<String>,
}

/// Runs everything: unit, integration and documentation tests of every member.
///
/// The integration tests find ONNX Runtime, Python, Node and the trainer by themselves, beside cargo's own output.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    system::require(&[&STRACE, &CURL, &CHROMIUM, &REDIS, &PROMETHEUS])?;
    onnxruntime::provide(workspace).context("could not provide ONNX Runtime")?;
    let requirements = workspace.root.join("tests/requirements.txt");
    let python = python::environment(&workspace.target.join("venv"), &requirements)?;
    // Of its own, since it has other ideas of what its libraries are.
    python::environment(&workspace.target.join("phoenix"), &workspace.root.join("tests/phoenix.txt"))?;
    node::packages(workspace, &python)?;
    tools::provide_all(workspace)?;

    let profile: &[&str] = if options.full { &["--release"] } else { &[] };
    // Cargo builds the binaries of the package under test only, and the tests start the trainer's as well. Built
    // with the tests, it shares their dependencies instead of having its own features' worth of them.
    workspace::run(
        workspace.cargo().args(["build", "--locked", "--workspace", "--bins", "--tests"]).args(profile),
    )?;

    let campaigns = if options.full { "full" } else { "reduced (the full ones: cargo xtask test --full)" };
    eprintln!("long campaigns run with their {campaigns} counts");
    let mut test = workspace.cargo();
    test.args(["test", "--locked", "--workspace"]).args(profile).arg("--").args(&options.filters);
    test.env_remove("SCOREGATE_TEST_FULL").env_remove("ORT_DYLIB_PATH");
    if options.full {
        test.env("SCOREGATE_TEST_FULL", "1");
    }
    let status = test.status().context("could not start cargo test")?;
    if !status.success() {
        bail!("tests failed ({status})");
    }
    Ok(())
}
