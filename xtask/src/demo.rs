//! `cargo xtask demo`: from nothing to a token, and a customer scored by a model that was trained a moment ago.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::gateway::{Client, DRAIN_LIMIT, READY, READY_LIMIT, Site};
use crate::http1;
use crate::onnxruntime;
use crate::requests::{PREDICT, REFERENCE};
use crate::server::{end_servers_on_signals, free_address};
use crate::workspace::Workspace;

/// Where tokens are given.
const TOKEN: &str = "/oauth/token";
/// What the demonstration asks to be allowed.
const SCOPE: &str = "score:predict";

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
    eprintln!("making a client of the built-in issuer");
    let client = site.make_client(workspace)?;
    eprintln!("starting the gateway");
    let mut gateway = site.serve_and_issue(workspace, free_address(8080)?, "gateway")?;
    let ready = gateway.wait_ready(READY, READY_LIMIT)?;
    eprintln!("ready after {} ms\n", ready.as_millis());

    let address = gateway.address;
    let Client { id, secret } = &client;
    println!("POST http://{address}{TOKEN} as client {id}");
    let form = format!("grant_type=client_credentials&scope={SCOPE}&client_id={id}&client_secret={secret}");
    let answer = gateway.ask(&http1::post_form(address, TOKEN, &form))?;
    let answer: Value = serde_json::from_str(&answer).context("the answer is no JSON")?;
    let token = answer["access_token"].as_str().context("the answer has no access token")?;
    println!("200 OK, a token for {}, valid for {} s\n", answer["scope"], answer["expires_in"]);

    println!("POST http://{address}{PREDICT}\n{}\n", pretty(REFERENCE)?);
    let answer = gateway.ask(&http1::post(address, PREDICT, Some(token), REFERENCE))?;
    println!("200 OK\n{}\n", pretty(&answer)?);

    if options.once {
        gateway.stop(DRAIN_LIMIT)?;
        println!("The gateway was told to stop, drained and ended well.");
        return Ok(());
    }
    println!("From a second terminal, get a token, score a customer:\n");
    println!(
        "TOKEN=$(curl -s http://{address}{TOKEN} -u {id}:{secret} -d grant_type=client_credentials \\\n  \
         | sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')"
    );
    println!(
        "curl -s http://{address}{PREDICT} -H \"authorization: Bearer $TOKEN\" -H 'content-type: application/json' \\"
    );
    println!("  -d '{REFERENCE}'\n");
    println!("Or with the API key:\n");
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
