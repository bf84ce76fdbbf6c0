//! The cache of scores: gateways with it beside one without, on rows that are all new and on rows of which most came before.
//!
//! All of them answer the same requests in each round, one after the other and the other way round in the next, and it is
//! the ratios within the rounds that count: what disturbs the machine for longer than a round disturbs both sides of a ratio.

mod scraped;
mod table;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::sample::{Sample, all_answered, measure};
use super::{BATCH_CONNECTIONS, CONNECTIONS};
use crate::gateway::{DRAIN_LIMIT, READY, READY_LIMIT, Site};
use crate::load::{Limit, Load, Outcome, Pace};
use crate::requests::{self, Target, Visitors};
use crate::server::{Server, free_address};
use crate::system::{self, REDIS};
use crate::wheel::hex;
use crate::workspace::{self, Workspace};
use scraped::Looked;

/// The model of the reference contract, and one that takes much longer for a row.
const QUICK: &str = "churn";
const SLOW: &str = "churn_slow";
/// What a run of one row of the slow one is to take, in microseconds.
const SLOW_US: f64 = 500.0;
/// Golden rows of the slow one.
const GOLDEN_ROWS: usize = 200;
/// Rows a batch.
const BATCH_ROWS: usize = 100;
/// Of ten rows so many came before, where most did.
const REPEATED: usize = 9;
/// Rows before anything is measured, after which a gateway knows what its cache is worth.
const SETTLING_ROWS: usize = 10_000;
/// How long it may take until a model that is tried first is loaded.
const LOADED_LIMIT: Duration = Duration::from_secs(120);
/// Over which time it is found out how many requests make a turn.
const RATE_OVER: Duration = Duration::from_millis(500);
/// The fewest requests of a round: of only a few, the last one alone would show.
const FEWEST: usize = 12;
/// The most that the requests of a round may take in memory.
const MOST_BYTES: usize = 64 << 20;

/// The counts of this part.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    rounds: usize,
    /// How long the gateway without a cache is to take for the requests of a round.
    turn: Duration,
}

impl Plan {
    pub(super) fn new(quick: bool) -> Self {
        // Many short ones: what two gateways show right after one another has the same disturbances in it.
        match quick {
            true => Self { rounds: 21, turn: Duration::from_millis(100) },
            false => Self { rounds: 61, turn: Duration::from_millis(150) },
        }
    }
}

/// How a gateway caches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caching {
    Off,
    Auto,
    AutoWithRedis,
    /// The first once more, as a process of its own: how far two may differ that do the same.
    OffAgain,
    Memory,
    Redis,
}

impl Caching {
    /// The one that the others are compared with comes first.
    const ALL: [Self; 6] =
        [Self::Off, Self::Auto, Self::AutoWithRedis, Self::OffAgain, Self::Memory, Self::Redis];

    fn mode(self) -> &'static str {
        match self {
            Self::Off | Self::OffAgain => "off",
            Self::Auto | Self::AutoWithRedis => "auto",
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }

    /// What its files are called.
    fn name(self) -> &'static str {
        match self {
            Self::Off => "cache_off",
            Self::Auto => "cache_auto",
            Self::AutoWithRedis => "cache_auto_redis",
            Self::OffAgain => "cache_off_again",
            Self::Memory => "cache_memory",
            Self::Redis => "cache_redis",
        }
    }
}

/// Whose rows are sent, how many in a request, and how many of ten came before.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Traffic {
    model: &'static str,
    rows: usize,
    known: usize,
}

/// What one kind of traffic showed: for each of [`Caching::ALL`] a sample a round, and what became of the rows.
struct Block {
    traffic: Traffic,
    samples: Vec<Vec<Sample>>,
    looked: Vec<Looked>,
}

/// What was measured of the cache.
pub(super) struct Cache {
    plan: Plan,
    /// What a run of one row of the slow model took when it was made, in microseconds.
    slow_us: f64,
    /// Of the quick and of the slow model.
    costs: [Cost; 2],
    blocks: Vec<Block>,
}

/// What a model costs, as the gateway without a cache measured it, in microseconds.
#[derive(Clone, Copy)]
struct Cost {
    /// A run of one row.
    run_us: f64,
    /// Each row of a large run.
    row_us: f64,
}

/// A gateway, and where it tells its counts.
struct Gateway {
    server: Server,
    admin: SocketAddr,
}

/// Imports the slow model, starts the gateways and a Redis, and measures.
pub(super) fn run(workspace: &Workspace, site: &Site, library: &Path, plan: Plan) -> Result<Cache> {
    system::require(&[&REDIS])?;
    let slow_us = import_slow(workspace, site, library)?;
    let redis = start_redis(site)?;
    let start = |caching| start(workspace, site, caching, redis.address);
    let gateways = Caching::ALL.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let costs = [gateways[0].wait_for(QUICK, &site.key)?, gateways[0].wait_for(SLOW, &site.key)?];

    let mut visitors = Visitors::new();
    let mut blocks = Vec::new();
    for rows in [1, BATCH_ROWS] {
        for model in [QUICK, SLOW] {
            for known in [0, REPEATED] {
                let traffic = Traffic { model, rows, known };
                blocks.push(measured(&gateways, site, &mut visitors, traffic, plan)?);
            }
        }
    }
    for gateway in gateways {
        gateway.server.stop(DRAIN_LIMIT)?;
    }
    redis.stop(DRAIN_LIMIT)?;
    Ok(Cache { plan, slow_us, costs, blocks })
}

impl Gateway {
    /// Waits until `model` is loaded, and says what it costs.
    fn wait_for(&self, model: &str, key: &str) -> Result<Cost> {
        let since = Instant::now();
        loop {
            match self.cost(model, key) {
                Ok(cost) => return Ok(cost),
                Err(error) if since.elapsed() > LOADED_LIMIT => return Err(error),
                Err(_) => workspace::pause(Duration::from_millis(50)),
            }
        }
    }
}

/// All rounds of one kind of traffic.
fn measured(
    gateways: &[Gateway],
    site: &Site,
    visitors: &mut Visitors,
    traffic: Traffic,
    plan: Plan,
) -> Result<Block> {
    let Traffic { model, rows, known } = traffic;
    // All of them are sent the same bytes: a `host` is all that could tell them apart.
    let target = Target { address: gateways[0].server.address, key: &site.key, model, rows };
    let load = |gateway: &Gateway, requests: &[Vec<u8>], limit| -> Result<Outcome> {
        let connections = if rows == 1 { CONNECTIONS } else { BATCH_CONNECTIONS };
        let address = gateway.server.address;
        Load { address, requests, connections, pace: Pace::AsAnswered, limit }.run()
    };
    let all = |gateway: &Gateway, requests: &[Vec<u8>]| {
        load(gateway, requests, Limit::Requests(requests.len() as u64))
    };
    eprintln!("{}: warming up", traffic.describe());
    let settling = visitors.next(target, SETTLING_ROWS / rows, known);
    for gateway in gateways {
        all_answered(&all(gateway, &settling)?)?;
        if known > 0 {
            // Once more those who come again and again, now that it is decided whether to keep their scores.
            all_answered(&all(gateway, &visitors.known(target))?)?;
        }
    }
    let rate = load(&gateways[0], &settling, Limit::For(RATE_OVER))?.rate();
    let most = MOST_BYTES / settling.iter().map(Vec::len).max().unwrap_or(1);
    let count = ((rate * plan.turn.as_secs_f64()) as usize).clamp(FEWEST, most);

    let before: Vec<_> = gateways.iter().map(Gateway::looked).collect::<Result<_>>()?;
    let mut samples: Vec<Vec<Sample>> = gateways.iter().map(|_| Vec::new()).collect();
    eprintln!("{}: {} rounds of {count} requests", traffic.describe(), plan.rounds);
    for round in 0..plan.rounds {
        let requests = visitors.next(target, count, known);
        let mut turns: Vec<usize> = (0..gateways.len()).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for turn in turns {
            let gateway = &gateways[turn];
            samples[turn].push(measure(&gateway.server, || all(gateway, &requests))?);
        }
    }
    let sent = (count * rows * plan.rounds) as f64;
    let looked = |(gateway, before): (&Gateway, Looked)| Ok(gateway.looked()?.since(before).of(sent));
    let looked = gateways.iter().zip(before).map(looked).collect::<Result<_>>()?;
    Ok(Block { traffic, samples, looked })
}

/// Makes a model that takes so much time for a row, publishes it, and says what a run of one row took.
fn import_slow(workspace: &Workspace, site: &Site, library: &Path) -> Result<f64> {
    let directory = site.directory.join("slow");
    let rows = site.directory.join("golden_rows.json");
    fs::write(&rows, requests::customers(GOLDEN_ROWS))
        .with_context(|| format!("could not write {}", rows.display()))?;
    eprintln!("making and importing a model of {SLOW_US} µs a row");
    let printed = workspace::capture(
        Command::new(workspace.target.join("release/examples/slow_model"))
            .arg(library)
            .arg(workspace.root.join("schemas/churn.json"))
            .arg(rows)
            .arg(SLOW_US.to_string())
            .arg(&directory)
            .env("ORT_DISABLE_TELEMETRY", "1"),
    )?;
    let printed: Value =
        serde_json::from_str(&printed).context("slow_model printed something other than JSON")?;
    eprintln!("{} layers take {} µs", printed["layers"], printed["run_us"]);
    let [model, schema, golden] =
        ["model.onnx", "schema.json", "golden.jsonl"].map(|file| directory.join(file).into_os_string());
    site.import(
        workspace,
        [model, "--name".into(), SLOW.into(), "--schema".into(), schema, "--golden".into(), golden],
    )?;
    printed["run_us"].as_f64().context("slow_model gave no run_us")
}

fn start(workspace: &Workspace, site: &Site, caching: Caching, redis: SocketAddr) -> Result<Gateway> {
    let admin = free_address(0)?;
    let mut settings = vec![
        ("SCOREGATE_ADMIN_ADDR", admin.to_string()),
        ("SCOREGATE_CACHE", caching.mode().to_owned()),
        // Those with a Redis would share quotas through it, which is no matter of the cache.
        ("SCOREGATE_QUOTA", "off".to_owned()),
    ];
    if matches!(caching, Caching::AutoWithRedis | Caching::Redis) {
        settings.push(("SCOREGATE_REDIS_URL", format!("redis://{redis}")));
        settings.push(("SCOREGATE_CACHE_KEY_FILE", key_file(site, caching)?.display().to_string()));
    }
    let mut server = site.serve_with(workspace, free_address(0)?, caching.name(), &settings)?;
    server.wait_ready(READY, READY_LIMIT)?;
    let gateway = Gateway { server, admin };
    // It is ready as soon as any model answers, while another is still tried in a process of its own. The next gateway waits
    // for that: each measures what its models cost.
    gateway.wait_for(SLOW, &site.key)?;
    Ok(gateway)
}

/// A key of its own: what one gateway keeps in Redis is of no use to another.
fn key_file(site: &Site, caching: Caching) -> Result<PathBuf> {
    let path = site.directory.join(format!("{}.key", caching.name()));
    let key = hex(&Sha256::new().chain_update(&site.key).chain_update(caching.name()).finalize());
    fs::write(&path, key).with_context(|| format!("could not write {}", path.display()))?;
    Ok(path)
}

fn start_redis(site: &Site) -> Result<Server> {
    let address = free_address(0)?;
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--port", &address.port().to_string()])
        .current_dir(&site.directory);
    let mut redis = Server::start("Redis", &mut command, address, &site.directory.join("redis.log"))?;
    redis.wait_until(READY_LIMIT, || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        if answer != *b"+PONG\r\n" {
            bail!("it answers {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    })?;
    Ok(redis)
}
