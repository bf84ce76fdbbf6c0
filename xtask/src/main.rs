//! The repository's own commands: `cargo xtask demo`, `cargo xtask test` and their siblings.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what these commands are for")]

mod bench;
mod demo;
mod deny;
mod gateway;
mod http1;
mod load;
mod node;
mod onnxruntime;
mod python;
mod requests;
mod server;
mod stack;
mod system;
mod test;
mod tools;
mod usage;
mod wheel;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Builds, shows, tests and measures Scoregate.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch the pinned ONNX Runtime and print where its library is.
    Onnxruntime,
    /// From nothing to a scored customer: build, simulate, fit, serve, score.
    Demo(demo::Options),
    /// Fetch what the tests need, and run them all.
    Test(test::Options),
    /// Send requests at a steady rate and print the latency that callers would see.
    Load(load::command::Options),
    /// Compare the gateway with a bare handler and with its peers, side by side.
    Bench(bench::Options),
    /// Build the container images and run the local stack, with whatever engine there is.
    TestStack(stack::Options),
    /// Check licences, sources, duplicates and, where their database can be reached, advisories.
    Deny,
}

fn main() -> ExitCode {
    match run(CommandLine::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Onnxruntime => {
            println!("{}", onnxruntime::fetch(&workspace)?.display());
            Ok(())
        }
        Task::Demo(options) => demo::run(&workspace, &options),
        Task::Test(options) => test::run(&workspace, &options),
        Task::Load(options) => load::command::run(&options),
        Task::Bench(options) => bench::run(&workspace, &options),
        Task::TestStack(options) => stack::run(&workspace, &options),
        Task::Deny => deny::run(&workspace),
    }
}
