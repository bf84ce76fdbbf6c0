//! What it costs to change versions: latency while one takes another's place, and throughput while another scores in the shadow.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::CONNECTIONS;
use super::report::{at_least, at_most, conditions, figure, heading, other, served};
use super::sample::{Contender, Sample, measure, median, quantile};
use crate::gateway::{DRAIN_LIMIT, READY, READY_LIMIT, Site};
use crate::load::{Limit, Load, Pace};
use crate::server::{Server, free_address};
use crate::workspace::Workspace;
use crate::{http1, requests};

/// The least of the throughput that is left while another version scores everything in the shadow.
const SHADOWED_SHARE: f64 = 0.9;
/// The share of what the gateway can answer that is sent while versions change: there is room for what loads them.
const STEADY_SHARE: f64 = 0.3;
/// Versions that take each other's place: the next one is neither live nor the one before, so that it is loaded anew.
const VERSIONS: [&str; 3] = ["bench_1", "bench_2", "bench_3"];
/// How many pairs of seconds, one without a change and one with, are measured for each round.
const PAIRS: usize = 4;
/// How long each of them is, and when in it the rollout changes.
const WINDOW: Duration = Duration::from_millis(1_500);
const MOMENT: Duration = Duration::from_millis(500);
/// Of how many windows without a change the p99 is at most what one with a change may have: the others are noise.
const CALM_SHARE: f64 = 0.9;
/// How long nothing has to come out of a shadow for its queue to be empty.
const STILL: Duration = Duration::from_millis(200);
/// How long a version may take to be tried and to answer.
const SWAP_LIMIT: Duration = Duration::from_secs(60);

/// What is measured, in turn.
#[derive(Default)]
pub(super) struct Rollout {
    rounds: usize,
    turn: Duration,
    /// Requests a second while versions change.
    steady: f64,
    /// One version answers.
    calm: Vec<Sample>,
    /// Another takes its place meanwhile, each right after one of those.
    swapped: Vec<Sample>,
    /// At full load, nothing in the shadow.
    alone: Vec<Sample>,
    /// At full load, another version in the shadow.
    shadowed: Vec<Sample>,
    /// Rows in the shadow by what became of them.
    shadows: Vec<(String, f64)>,
}

/// Measures both.
pub(super) fn run(workspace: &Workspace, site: &Site, rounds: usize, turn: Duration) -> Result<Rollout> {
    let mut measured = Rollout { rounds, turn, ..Rollout::default() };
    swaps(workspace, site, &mut measured)?;
    shadows(workspace, site, &mut measured)?;
    Ok(measured)
}

fn swaps(workspace: &Workspace, site: &Site, measured: &mut Rollout) -> Result<()> {
    let models = site.directory.join("swapped_models");
    publish(&site.package("churn")?, &models)?;
    write_rollout(&models, &json!({"live": VERSIONS[0]}))?;
    let mut gateway = site.serve_from(&models, workspace, free_address(0)?, "swapped")?;
    gateway.wait_ready(READY, READY_LIMIT)?;
    let requests = requests::build(gateway.address, Some(&site.key), 1);
    let load = |pace, limit| Load {
        address: gateway.address,
        requests: &requests,
        connections: CONNECTIONS,
        pace,
        limit,
    };
    // Every version was tried once before anything is measured.
    for version in VERSIONS.iter().cycle().skip(1).take(VERSIONS.len()) {
        write_rollout(&models, &json!({"live": version}))?;
        wait_live(&gateway, &site.key, version)?;
    }
    let full = measure(&gateway, || load(Pace::AsAnswered, Limit::For(measured.turn)).run())?;
    measured.steady = (full.per_second * STEADY_SHARE).round();
    let versions = VERSIONS.iter().cycle().skip(1);
    for (pair, version) in (1..=measured.rounds * PAIRS).zip(versions) {
        eprintln!("swaps, pair {pair} of {}", measured.rounds * PAIRS);
        let window = || load(Pace::Steady(measured.steady), Limit::For(WINDOW)).run();
        measured.calm.push(measure(&gateway, window)?);
        let promote = || {
            std::thread::park_timeout(MOMENT);
            write_rollout(&models, &json!({"live": version}))?;
            wait_live(&gateway, &site.key, version)?;
            anyhow::Ok(Instant::now())
        };
        let sample = measure(&gateway, || {
            std::thread::scope(|scope| {
                let promoted = scope.spawn(promote);
                let (outcome, over) = (window(), Instant::now());
                let promoted = promoted.join().expect("asking a gateway does not panic")?;
                anyhow::ensure!(promoted < over, "version {version} answered only after {WINDOW:?}");
                outcome
            })
        })?;
        measured.swapped.push(sample);
    }
    gateway.stop(DRAIN_LIMIT)
}

fn shadows(workspace: &Workspace, site: &Site, measured: &mut Rollout) -> Result<()> {
    let serve = |name: &str, rollout: &Value| {
        let models = site.directory.join(format!("{name}_models"));
        publish(&site.package("churn")?, &models)?;
        write_rollout(&models, rollout)?;
        let admin = free_address(0)?;
        let settings = [
            ("SCOREGATE_CACHE", "off".to_owned()),
            ("SCOREGATE_MODELS_DIR", models.display().to_string()),
            ("SCOREGATE_ADMIN_ADDR", admin.to_string()),
        ];
        let mut gateway = site.serve_with(workspace, free_address(0)?, name, &settings)?;
        gateway.wait_ready(READY, READY_LIMIT)?;
        anyhow::Ok((gateway, admin))
    };
    let (alone, _) = serve("alone", &json!({"live": VERSIONS[0]}))?;
    let (shadowed, admin) = serve("shadowed", &json!({"live": VERSIONS[0], "shadow": VERSIONS[1]}))?;
    let since = Instant::now();
    while !metrics(admin)?.contains(&format!("version=\"{}\"", VERSIONS[1])) {
        anyhow::ensure!(
            since.elapsed() < SWAP_LIMIT,
            "version {} is not loaded after {SWAP_LIMIT:?}",
            VERSIONS[1]
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let requests = |gateway: &Server| requests::build(gateway.address, Some(&site.key), 1);
    let mut contenders = [
        Contender::new(&mut measured.alone, &alone, requests(&alone), CONNECTIONS),
        Contender::new(&mut measured.shadowed, &shadowed, requests(&shadowed), CONNECTIONS),
    ];
    for contender in &contenders {
        contender.warm_up()?;
    }
    for round in 1..=measured.rounds {
        eprintln!("shadows, round {round} of {}", measured.rounds);
        for contender in &mut contenders {
            contender.take_turn(measured.turn)?;
            // What waits for the shadow is not to be scored while the other one is measured.
            settle(admin)?;
        }
    }
    measured.shadows = outcomes(&metrics(admin)?);
    alone.stop(DRAIN_LIMIT)?;
    shadowed.stop(DRAIN_LIMIT)
}

/// Publishes a package as several versions of one model in a repository of its own.
fn publish(package: &Path, models: &Path) -> Result<()> {
    for version in VERSIONS {
        let directory = models.join("churn").join(version);
        fs::create_dir_all(&directory)?;
        for file in fs::read_dir(package)? {
            let file = file?;
            fs::copy(file.path(), directory.join(file.file_name()))?;
        }
        let manifest = directory.join("manifest.json");
        let mut document: Value = serde_json::from_slice(&fs::read(&manifest)?)?;
        document["version"] = version.into();
        fs::write(&manifest, serde_json::to_vec(&document)?)?;
    }
    Ok(())
}

/// Replaces the rollout in one step.
fn write_rollout(models: &Path, rollout: &Value) -> Result<()> {
    let path = models.join("churn/rollout.json");
    let fresh = models.join("churn/.rollout.bench");
    let write = || fs::write(&fresh, serde_json::to_vec(rollout)?).and_then(|()| fs::rename(&fresh, &path));
    write().with_context(|| format!("could not write {}", path.display()))
}

/// Waits until `version` answers.
fn wait_live(gateway: &Server, key: &str, version: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        let answer = gateway.ask(&http1::get(gateway.address, "/v1/metadata", Some(key)))?;
        let document: Value =
            serde_json::from_str(&answer).context("/v1/metadata answered something other than JSON")?;
        if document["model_version"] == version {
            return Ok(());
        }
        anyhow::ensure!(
            since.elapsed() < SWAP_LIMIT,
            "version {version} does not answer after {SWAP_LIMIT:?}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn metrics(admin: std::net::SocketAddr) -> Result<String> {
    let answer = http1::exchange(admin, &http1::get(admin, "/metrics", None))?;
    anyhow::ensure!(answer.status == 200, "/metrics answers {}, expected 200", answer.status);
    Ok(answer.body)
}

/// Waits until nothing waits for the shadow.
fn settle(admin: std::net::SocketAddr) -> Result<()> {
    let since = Instant::now();
    let mut before = outcomes(&metrics(admin)?);
    loop {
        std::thread::park_timeout(STILL);
        let now = outcomes(&metrics(admin)?);
        if now == before {
            return Ok(());
        }
        anyhow::ensure!(since.elapsed() < SWAP_LIMIT, "the shadow is not done after {SWAP_LIMIT:?}");
        before = now;
    }
}

/// Rows in the shadow, by outcome.
fn outcomes(metrics: &str) -> Vec<(String, f64)> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("scoregate_shadow_rows_total{"));
    let outcome = |line: &str| {
        let (labels, count) = line.split_once("} ")?;
        let (_, outcome) = labels.split_once("outcome=\"")?;
        Some((outcome.split('"').next()?.to_owned(), count.parse().ok()?))
    };
    lines.filter_map(outcome).collect()
}

impl Rollout {
    /// A Markdown table in the form of the others. That a swap adds nothing is said where its p99 lies among those of windows without, the
    /// worst tenth of them left out.
    pub(super) fn table(&self) -> String {
        let p99 = |samples: &[Sample]| median(samples.iter().map(|sample| sample.p99_ms));
        let worst = quantile(self.calm.iter().map(|sample| sample.p99_ms), CALM_SHARE);
        let swapped = p99(&self.swapped);
        let pairs = self.calm.iter().zip(&self.swapped);
        let slower = pairs.filter(|(calm, swapped)| swapped.p99_ms > calm.p99_ms).count();
        let rate = |samples: &[Sample]| median(samples.iter().map(|sample| sample.per_second));
        let share = rate(&self.shadowed) / rate(&self.alone);
        let rows: f64 = self.shadows.iter().map(|(_, rows)| rows).sum();
        let told = self.shadows.iter().filter(|(_, rows)| *rows > 0.0);
        let told: Vec<_> =
            told.map(|(outcome, found)| format!("{outcome} {:.0} %", 100.0 * found / rows)).collect();
        let rows = [
            heading(),
            served("one version answers, steady load", &self.calm, None),
            served(
                "another takes its place meanwhile",
                &self.swapped,
                Some(at_most(
                    format!("{worst:.2} ms, the p99 of nine in ten without"),
                    swapped,
                    worst,
                    format!("{swapped:.2} ms"),
                )),
            ),
            served("one version answers, full load", &self.alone, None),
            served(
                "another scores in the shadow",
                &self.shadowed,
                Some(at_least(format!("{SHADOWED_SHARE}×"), share, SHADOWED_SHARE, format!("{share:.2}×"))),
            ),
            other(
                "windows whose p99 was above that of the one before",
                None,
                Some(figure(format!("{slower} of {}", self.calm.len()))),
            ),
            other("rows in the shadow at full load", None, Some(figure(told.join(", ")))),
        ];
        let (rounds, turn) = (self.rounds, self.turn.as_secs_f64());
        let (pairs, window, moment) = (self.calm.len(), WINDOW.as_secs_f64(), MOMENT.as_secs_f64());
        let about = format!(
            "One row a request. Steady load: {:.0} requests a second, {pairs} pairs of {window} s in turn; in the second of each the rollout \
             changes after {moment} s, to a version that is read, loaded and warmed anew (each was tried once before: that is done in a \
             process of its own, at a lower priority). Full load: {rounds} rounds of {turn} s each in turn. {}",
            self.steady,
            conditions()
        );
        format!("{}\n\n{about}\n", rows.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadows_are_told_by_outcome() {
        let metrics = "# TYPE scoregate_shadow_rows counter\n\
            scoregate_shadow_rows_total{model=\"churn\",version=\"b\",outcome=\"scored\"} 30\n\
            scoregate_shadow_rows_total{model=\"churn\",version=\"b\",outcome=\"dropped\"} 10\n\
            scoregate_rows_total{route=\"/v1/predict\"} 100\n";
        assert_eq!(outcomes(metrics), [("scored".to_owned(), 30.0), ("dropped".to_owned(), 10.0)]);
    }
}
