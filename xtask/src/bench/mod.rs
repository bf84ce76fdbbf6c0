//! `cargo xtask bench`: the gateway, a bare handler and its peers side by side, in rounds, models from outside, the cache,
//! explanations, what it costs to be seen, and to change versions.
//!
//! Whatever else a machine does disturbs whoever is measured at that moment, so everyone is measured for a short
//! while in turn, several times over, and the medians are compared.

mod admission;
mod cache;
mod explain;
mod outside;
mod peers;
mod raw;
mod report;
mod rollout;
mod sample;
mod telemetry;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::gateway::{DRAIN_LIMIT, READY, READY_LIMIT, Site};
use crate::load::{Limit, Load, Pace};
use crate::server::{Server, end_servers_on_signals, free_address};
use crate::workspace::{self, Workspace};
use crate::{onnxruntime, requests, usage};
use admission::Admission;
use outside::TREES;
use raw::{Graph, Raw};
use report::Figures;
use sample::Contender;

/// How much is measured.
#[derive(Args)]
pub(crate) struct Options {
    /// This part alone.
    #[arg(value_enum)]
    part: Option<Part>,
    /// Fewer and shorter rounds, and a tenth of the requests before memory is read.
    #[arg(long)]
    quick: bool,
}

/// What can be measured apart from the rest.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The gateway beside a bare handler and its peers, and models from outside.
    Gateway,
    /// What it costs to let a request in and to count it, and how exact shared quotas are.
    Admission,
    /// The gateway with its cache of scores beside itself without it.
    Cache,
    /// Shapley values beside other libraries', and what explaining adds to a request.
    Explain,
    /// What lines of the log and traces add to a request.
    Telemetry,
    /// Latency while versions change, and throughput with another version in the shadow.
    Rollout,
}

/// Connections of a single-row load: enough to keep two cores busy, few enough not to queue for its own sake.
const CONNECTIONS: usize = 32;
/// Connections of a batch load: one for each core.
const BATCH_CONNECTIONS: usize = 2;
/// Rows a batch.
const BATCH_ROWS: usize = 1000;

/// The shortest turn in which a version is seen, loaded and has answered for a while.
const MIN_SWAP_TURN: Duration = Duration::from_secs(2);

/// The counts of one run.
struct Plan {
    rounds: usize,
    turn: Duration,
    starts: usize,
    /// Requests before memory is read, and again before its growth is.
    memory_requests: u64,
    /// Starts with many models after the first one.
    later_starts: usize,
}

impl Plan {
    fn new(quick: bool) -> Self {
        if quick {
            let turn = Duration::from_secs(1);
            Self { rounds: 3, turn, starts: 5, memory_requests: 100_000, later_starts: 2 }
        } else {
            let turn = Duration::from_secs(3);
            Self { rounds: 7, turn, starts: 10, memory_requests: 1_000_000, later_starts: 5 }
        }
    }
}

/// Measures, prints the tables, and keeps them in `<target>/bench/report.md`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    end_servers_on_signals()?;
    let plan = Plan::new(options.quick);
    let library = onnxruntime::fetch(workspace)?;
    let site = Site::prepare(workspace, &library, &workspace.target.join("bench"))?;
    eprintln!("building the bare handler, the bare session, the admission by itself and the slow model");
    workspace::run(workspace.cargo().args([
        "build",
        "--locked",
        "--release",
        "--example=bare_axum",
        "--example=raw_session",
        "--example=admission",
        "--example=slow_model",
    ]))?;

    let is_wanted = |part| options.part.is_none_or(|only| only == part);
    let mut tables = Vec::new();
    if is_wanted(Part::Gateway) {
        let figures = gateway(workspace, &site, &library, &plan)?;
        tables.extend([figures.table(), figures.outside_table()]);
    }
    if is_wanted(Part::Admission) {
        let mut admission = Admission::default();
        for round in 1..=plan.rounds {
            eprintln!("admission, round {round} of {}", plan.rounds);
            admission.measure(workspace)?;
        }
        tables.push(admission.table());
    }
    if is_wanted(Part::Cache) {
        tables.push(cache::run(workspace, &site, &library, cache::Plan::new(options.quick))?.table());
    }
    if is_wanted(Part::Explain) {
        tables.push(explain::run(workspace, &site, &library, explain::Plan::new(options.quick))?.tables());
    }
    if is_wanted(Part::Telemetry) {
        tables.push(telemetry::run(workspace, &site, plan.rounds, plan.turn)?.table());
    }
    if is_wanted(Part::Rollout) {
        // A turn has to hold the half second within which a change is seen, and what loads the version.
        tables.push(rollout::run(workspace, &site, plan.rounds, plan.turn.max(MIN_SWAP_TURN))?.table());
    }
    let report = tables.join("\n");
    let path = site.directory.join("report.md");
    fs::write(&path, &report).with_context(|| format!("could not write {}", path.display()))?;
    println!("{report}");
    eprintln!("also in {}", path.display());
    Ok(())
}

/// The gateway, its peers, and models from outside.
fn gateway(workspace: &Workspace, site: &Site, library: &Path, plan: &Plan) -> Result<Figures> {
    let mut figures = Figures { rounds: plan.rounds, turn: plan.turn, ..Figures::default() };
    // With churn alone, before there are others.
    starts(workspace, site, plan, &mut figures)?;
    memory(workspace, site, plan, &mut figures)?;
    outside::import(workspace, site)?;
    side_by_side(workspace, site, library, plan, &mut figures)?;
    outside::many(workspace, site, plan, &mut figures.outside)?;
    Ok(figures)
}

/// Everyone who answers requests, whatever the model, and ONNX Runtime alone, in turn.
fn side_by_side(
    workspace: &Workspace,
    site: &Site,
    library: &Path,
    plan: &Plan,
    figures: &mut Figures,
) -> Result<()> {
    let mut gateway = site.serve(workspace, free_address(0)?, "gateway")?;
    gateway.wait_ready(READY, READY_LIMIT)?;
    let address = free_address(0)?;
    let mut bare = Server::start(
        "the bare handler",
        workspace.clean_command(workspace.target.join("release/examples/bare_axum")).arg(address.to_string()),
        address,
        &site.directory.join("bare_axum.log"),
    )?;
    bare.wait_ready(READY, READY_LIMIT)?;
    let peers = peers::start(workspace, site)?;

    let key = Some(site.key.as_str());
    let single = |server: &Server| requests::build(server.address, key, 1);
    let mut contenders = [
        Contender::new(&mut figures.bare, &bare, single(&bare), CONNECTIONS),
        Contender::new(&mut figures.single, &gateway, single(&gateway), CONNECTIONS),
        Contender::new(&mut figures.fastapi_onnx, &peers.onnx, single(&peers.onnx), CONNECTIONS),
        Contender::new(
            &mut figures.fastapi_onnx_async,
            &peers.onnx_async,
            single(&peers.onnx_async),
            CONNECTIONS,
        ),
        Contender::new(&mut figures.fastapi_sklearn, &peers.sklearn, single(&peers.sklearn), CONNECTIONS),
        Contender::new(
            &mut figures.batch,
            &gateway,
            requests::build(gateway.address, key, BATCH_ROWS),
            BATCH_CONNECTIONS,
        ),
        Contender::new(
            &mut figures.outside.single,
            &gateway,
            requests::build_for(TREES, gateway.address, key, 1),
            CONNECTIONS,
        ),
        Contender::new(
            &mut figures.outside.batch,
            &gateway,
            requests::build_for(TREES, gateway.address, key, BATCH_ROWS),
            BATCH_CONNECTIONS,
        ),
    ];
    eprintln!("warming up");
    for contender in &mut contenders {
        contender.warm_up()?;
    }
    let raw = Raw::new(workspace, site, library)?;
    let (churn, trees) = (site.package("churn")?, site.package(TREES)?);
    for round in 1..=plan.rounds {
        eprintln!("round {round} of {}", plan.rounds);
        for contender in &mut contenders {
            contender.take_turn(plan.turn)?;
        }
        raw.measure(&churn, Graph::Published, &mut figures.run)?;
        raw.measure(&trees, Graph::Published, &mut figures.outside.published)?;
        raw.measure(&trees, Graph::Served, &mut figures.outside.served)?;
    }
    gateway.stop(DRAIN_LIMIT)
}

/// From the start of the process to the first 200 of its readiness.
fn starts(workspace: &Workspace, site: &Site, plan: &Plan, figures: &mut Figures) -> Result<()> {
    eprintln!("starting {} times", plan.starts);
    for _ in 0..plan.starts {
        let mut gateway = site.serve(workspace, free_address(0)?, "start")?;
        figures.ready_ms.push(gateway.wait_ready(READY, READY_LIMIT)?.as_secs_f64() * 1e3);
        figures.outside.resident_one = usage::resident(gateway.pid())?;
        gateway.stop(DRAIN_LIMIT)?;
    }
    Ok(())
}

/// Resident memory of a fresh gateway after many requests, and after as many again.
fn memory(workspace: &Workspace, site: &Site, plan: &Plan, figures: &mut Figures) -> Result<()> {
    eprintln!("twice {} requests for its memory", plan.memory_requests);
    let mut gateway = site.serve(workspace, free_address(0)?, "memory")?;
    gateway.wait_ready(READY, READY_LIMIT)?;
    let requests = requests::build(gateway.address, Some(&site.key), 1);
    let load = Load {
        address: gateway.address,
        requests: &requests,
        connections: CONNECTIONS,
        pace: Pace::AsAnswered,
        limit: Limit::Requests(plan.memory_requests),
    };
    figures.memory_requests = plan.memory_requests;
    sample::all_answered(&load.run()?)?;
    figures.resident_mib = mebibytes(usage::resident(gateway.pid())?);
    sample::all_answered(&load.run()?)?;
    figures.growth_mib = mebibytes(usage::resident(gateway.pid())?) - figures.resident_mib;
    gateway.stop(DRAIN_LIMIT)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
