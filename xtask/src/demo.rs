//! `cargo xtask demo`: from nothing to a customer scored by a model that was trained a moment ago.

use anyhow::{Context, Result};
use clap::Args;

use crate::gateway::{DRAIN_LIMIT, READY, READY_LIMIT, Site};
use crate::http1;
use crate::onnxruntime;
use crate::requests::{PREDICT, REFERENCE};
use crate::server::{end_servers_on_signals, free_address};
use crate::workspace::Workspace;

/// How the demonstration ends.
#[derive(Args)]
pub(crate) struct Options {
    /// Stop the gateway after the first answer instead of leaving it running.
    #[arg(long)]
    once: bool,
}

/// Fetches, builds, trains, serves and scores; fails with the reason, and the server's words, at the first mishap.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    end_servers_on_signals()?;
    let library = onnxruntime::fetch(workspace)?;
    let site = Site::prepare(workspace, &library, &workspace.target.join("demo"))?;
    eprintln!("starting the gateway");
    let mut gateway = site.serve(workspace, free_address(8080)?, "gateway")?;
    let ready = gateway.wait_ready(READY, READY_LIMIT)?;
    eprintln!("ready after {} ms\n", ready.as_millis());

    let address = gateway.address;
    println!("POST http://{address}{PREDICT}\n{}\n", pretty(REFERENCE)?);
    let answer = gateway.ask(&http1::post(address, PREDICT, Some(&site.key), REFERENCE))?;
    println!("200 OK\n{}\n", pretty(&answer)?);

    if options.once {
        gateway.stop(DRAIN_LIMIT)?;
        println!("The gateway was told to stop, drained and ended well.");
        return Ok(());
    }
    println!("Score another customer from a second terminal:\n");
    println!(
        "curl -s http://{address}{PREDICT} -H 'x-api-key: {}' -H 'content-type: application/json' \\",
        site.key
    );
    println!("  -d '{REFERENCE}'\n");
    println!("Everything is in {}. Ctrl-C stops the gateway.", site.directory.display());
    gateway.wait_for_end_or_signal()?;
    println!("\nstopping");
    gateway.stop(DRAIN_LIMIT)
}

fn pretty(json: &str) -> Result<String> {
    let value: serde_json::Value = serde_json::from_str(json)
        .with_context(|| format!("the gateway answered something other than JSON: {json}"))?;
    Ok(serde_json::to_string_pretty(&value)?)
}
