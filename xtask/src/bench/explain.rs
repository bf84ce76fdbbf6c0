//! Explanations: trees beside other libraries, and what explaining adds to a request.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::CONNECTIONS;
use super::raw::{Graph, Raw, Runs};
use super::report::{at_most, conditions, figure, heading, middle, served, thousands};
use super::sample::{Contender, Sample, median};
use crate::gateway::{DRAIN_LIMIT, READY, READY_LIMIT, Site};
use crate::server::free_address;
use crate::workspace::{self, Workspace};
use crate::{python, requests};

/// The least multiple of the speed of shap's interventional code.
const SHAP_TIMES: f64 = 20.0;
/// The most that a row of the largest ensembles may take, in microseconds.
const LARGEST_US: f64 = 2_000.0;
/// The trees of those.
const LARGEST: u64 = 1_000;
/// The most CPU of a request that is explained by a closed form, as a multiple of one that is not.
const LINEAR_TIMES: f64 = 1.3;
/// The most that a row may take by all coalitions of six features, in milliseconds.
const EXACT_MS: f64 = 3.0;

/// Where rows are scored, and how they are explained there.
const EXPLAINED: &str = "/v1/predict?explain=true";
const FULLY: &str = "/v1/predict?explain=full";
const BY_COALITIONS: &str = "/v1/predict?explain=true&space=probability&method=exact";

/// The counts of this part.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    rounds: usize,
    turn: Duration,
    /// How often libraries explain the same rows, of which the best counts.
    passes: usize,
}

impl Plan {
    pub(super) fn new(quick: bool) -> Self {
        // Many short ones: it is the ratios within rounds that count.
        match quick {
            true => Self { rounds: 9, turn: Duration::from_millis(300), passes: 2 },
            false => Self { rounds: 31, turn: Duration::from_millis(500), passes: 5 },
        }
    }
}

/// Requests of one row over so many connections, each list with one sample a round.
#[derive(Default)]
struct Block {
    connections: usize,
    plain: Vec<Sample>,
    explained: Vec<Sample>,
    fully: Vec<Sample>,
}

/// What was measured of explanations.
pub(super) struct Explain {
    plan: Plan,
    /// What benches/tree_values.py says of each ensemble.
    trees: Vec<Value>,
    blocks: [Block; 2],
    by_coalitions: Vec<Sample>,
    run: Runs,
}

/// Measures trees first, then a gateway.
pub(super) fn run(workspace: &Workspace, site: &Site, library: &Path, plan: Plan) -> Result<Explain> {
    let trees = trees(workspace, site, plan)?;
    let mut measured = Explain {
        plan,
        trees,
        blocks: [1, CONNECTIONS].map(|connections| Block { connections, ..Block::default() }),
        by_coalitions: Vec::new(),
        run: Runs::default(),
    };
    requests_of_churn(workspace, site, library, &mut measured)?;
    Ok(measured)
}

/// Ensembles fitted by XGBoost and LightGBM, explained by shap, by themselves and here, all in one run.
fn trees(workspace: &Workspace, site: &Site, plan: Plan) -> Result<Vec<Value>> {
    let build = ["build", "--locked", "--release", "-p", "scoregate-model", "--example=tree_values"];
    workspace::run(workspace.cargo().args(build))?;
    let environment = workspace.target.join("venv");
    let python = python::environment(&environment, &workspace.root.join("tests/requirements.txt"))?;
    eprintln!("fitting ensembles of trees, and explaining them");
    let printed = workspace::capture(
        Command::new(&python)
            .arg(workspace.root.join("benches/tree_values.py"))
            .arg(&site.data)
            .arg(workspace.target.join("release/examples/tree_values"))
            .arg(site.directory.join("tree_values"))
            .arg(plan.passes.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    )?;
    let lines = printed.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    lines.context("tree_values.py printed something other than JSON")
}

/// The linear model of the reference contract, with and without explanations.
fn requests_of_churn(
    workspace: &Workspace,
    site: &Site,
    library: &Path,
    measured: &mut Explain,
) -> Result<()> {
    // What is measured is the method: with a budget it would step down on a slow machine.
    let settings = [("SCOREGATE_CACHE", "off".to_owned()), ("SCOREGATE_EXPLAIN_BUDGET", "5s".to_owned())];
    let mut gateway = site.serve_with(workspace, free_address(0)?, "explain", &settings)?;
    gateway.wait_ready(READY, READY_LIMIT)?;
    let to = |path: &str| requests::to(path, gateway.address, Some(&site.key), 1);
    let mut contenders = Vec::new();
    for Block { connections, plain, explained, fully } in &mut measured.blocks {
        for (samples, path) in [(plain, requests::PREDICT), (explained, EXPLAINED), (fully, FULLY)] {
            contenders.push(Contender::new(samples, &gateway, to(path), *connections));
        }
    }
    contenders.push(Contender::new(&mut measured.by_coalitions, &gateway, to(BY_COALITIONS), 1));
    eprintln!("warming up");
    for contender in &contenders {
        contender.warm_up()?;
    }
    let raw = Raw::new(workspace, site, library)?;
    let churn = site.package("churn")?;
    for round in 1..=measured.plan.rounds {
        eprintln!("explanations, round {round} of {}", measured.plan.rounds);
        for contender in &mut contenders {
            contender.take_turn(measured.plan.turn)?;
        }
    }
    raw.measure(&churn, Graph::Published, &mut measured.run)?;
    gateway.stop(DRAIN_LIMIT)
}

impl Explain {
    /// Two Markdown tables: trees, and requests.
    pub(super) fn tables(&self) -> String {
        format!("{}\n{}", self.trees_table(), self.requests_table())
    }

    fn trees_table(&self) -> String {
        let mut rows = vec![
            "| one row, µs | trees, leaves | shap, interventional | native, path-dependent | **interventional** | × shap | \
             × native | **path-dependent** | × native | tables, MiB | load, s | bars | met |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|---|"
                .to_owned(),
        ];
        rows.extend(self.trees.iter().map(of_ensemble));
        format!(
            "Shapley values of trees beside other libraries, one thread each:\n\n{}\n\nFour ensembles over churn's 6 \
             features and four over 30 of which a tenth is missing; 100 background rows. Each time is the best of {} or \
             more passes over the same rows. Native are the library's own contributions, by paths alone; ours by paths have \
             the same kind of covers. Tables and load are those of either method: interventional, path-dependent.\n",
            rows.join("\n"),
            self.plan.passes,
        )
    }

    fn requests_table(&self) -> String {
        let mut rows = vec![heading()];
        for block in &self.blocks {
            let over = match block.connections {
                1 => "one connection".to_owned(),
                connections => format!("{connections} connections"),
            };
            rows.push(served(&format!("churn, one row over {over}"), &block.plain, None));
            let times = |samples: &[Sample]| {
                median(samples.iter().zip(&block.plain).map(|(with, without)| with.cpu_us / without.cpu_us))
            };
            let found = times(&block.explained);
            let bar =
                at_most(format!("{LINEAR_TIMES}× its CPU"), found, LINEAR_TIMES, format!("{found:.2}×"));
            rows.push(served("**the same with `explain=true`**", &block.explained, Some(bar)));
            let bar = figure(format!("{:.2}×", times(&block.fully)));
            rows.push(served("the same with `explain=full`", &block.fully, Some(bar)));
        }
        let found = median(self.by_coalitions.iter().map(|sample| sample.p50_ms));
        let bar = at_most(format!("{EXACT_MS} ms"), found, EXACT_MS, format!("{found:.2} ms"));
        rows.push(served(
            "**by all coalitions of its 6 features**, 100 background rows, one connection",
            &self.by_coalitions,
            Some(bar),
        ));
        format!(
            "What explaining adds to a request:\n\n{}\n\nMedians of {} rounds of {} ms each in turn; CPU is compared within \
             rounds. A run of one row of churn takes {:.1} µs alone, one of 1,000 rows {:.0} µs. The last line's latency is \
             that of whole requests; {}\n",
            rows.join("\n"),
            self.plan.rounds,
            self.plan.turn.as_millis(),
            middle(&self.run.single_us),
            middle(&self.run.batch_us),
            conditions(),
        )
    }
}

/// One ensemble: what everybody takes for a row, and whether ours are quick enough.
fn of_ensemble(told: &Value) -> String {
    let number = |name: &str| told[name].as_f64().unwrap_or(f64::NAN);
    let text = |name: &str| told[name].as_str().unwrap_or("?").to_owned();
    let [shap, native] = [number("shap_us"), number("native_us")];
    let [ours, by_path] = [number("interventional_row_us"), number("path_dependent_row_us")];
    let is_largest = told["trees"].as_u64() == Some(LARGEST);
    let mut bars = vec![format!("≥ {SHAP_TIMES}× shap"), "> 1× native".to_owned()];
    let mut is_met = shap / ours >= SHAP_TIMES && native > ours && native > by_path;
    if is_largest {
        bars.push(format!("< {} µs", thousands(LARGEST_US)));
        is_met &= ours < LARGEST_US;
    }
    let of_both = |name: &str, digits: usize, unit: f64| {
        let [one, other] =
            ["interventional", "path_dependent"].map(|method| number(&format!("{method}_{name}")) / unit);
        format!("{one:.digits$}, {other:.digits$}")
    };
    format!(
        "| {} | {}, {} | {} | {} {} | {ours:.1} | {:.0} | {:.0} | {by_path:.1} | {:.0} | {} | {} | {} | {} |",
        text("model"),
        thousands(number("trees")),
        thousands(number("leaves")),
        thousands(shap),
        text("native"),
        thousands(native),
        shap / ours,
        native / ours,
        native / by_path,
        of_both("bytes", 1, f64::from(1 << 20)),
        of_both("load_s", 2, 1.0),
        bars.join(", "),
        if is_met { "yes" } else { "**no**" },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn samples(cpu_us: [f64; 3], p50_ms: f64) -> Vec<Sample> {
        cpu_us.map(|cpu_us| Sample { per_second: 1_000.0, cpu_us, p50_ms, p99_ms: 2.0 * p50_ms }).into()
    }

    fn ensemble(trees: u64, ours: f64, by_path: f64) -> Value {
        json!({
            "model": "xgb", "trees": trees, "leaves": 6200, "shap_us": 3400.0, "native": "XGBoost", "native_us": 460.0,
            "interventional_row_us": ours, "interventional_load_s": 0.1, "interventional_bytes": 5 << 20,
            "path_dependent_row_us": by_path, "path_dependent_load_s": 0.25, "path_dependent_bytes": 3 << 20,
        })
    }

    #[test]
    fn everything_is_held_against_its_bar() {
        let block = |connections, times: f64| Block {
            connections,
            plain: samples([20.0, 40.0, 80.0], 0.1),
            // Each round is compared with itself.
            explained: samples([20.0, 40.0, 80.0].map(|cpu_us| cpu_us * times), 0.1),
            fully: samples([30.0, 60.0, 120.0], 0.1),
        };
        let explain = Explain {
            plan: Plan::new(true),
            trees: vec![
                ensemble(200, 100.0, 230.0),
                ensemble(200, 171.0, 100.0),
                ensemble(200, 100.0, 461.0),
                ensemble(1_000, 2_001.0, 100.0),
            ],
            blocks: [block(1, 1.25), block(32, 1.4)],
            by_coalitions: samples([900.0; 3], 3.1),
            run: Runs { single_us: vec![13.9], batch_us: vec![109.2], ..Runs::default() },
        };
        let tables = explain.tables();
        for expected in [
            "| xgb | 200, 6,200 | 3,400 | XGBoost 460 | 100.0 | 34 | 5 | 230.0 | 2 | 5.0, 3.0 | 0.10, 0.25 | \
             ≥ 20× shap, > 1× native | yes |",
            "| 171.0 | 20 | 3 | 100.0 | 5 | 5.0, 3.0 | 0.10, 0.25 | ≥ 20× shap, > 1× native | **no** |",
            "| 100.0 | 34 | 5 | 461.0 | 1 | 5.0, 3.0 | 0.10, 0.25 | ≥ 20× shap, > 1× native | **no** |",
            "| ≥ 20× shap, > 1× native, < 2,000 µs | **no** |",
            "| churn, one row over one connection | 1,000 | 0 % | 40.0 | 0.10 | 0.20 | | | |",
            "| **the same with `explain=true`** | 1,000 | 0 % | 50.0 | 0.10 | 0.20 | ≤ 1.3× its CPU | 1.25× | yes |",
            "| the same with `explain=full` | 1,000 | 0 % | 60.0 | 0.10 | 0.20 | | 1.50× | |",
            "| **the same with `explain=true`** | 1,000 | 0 % | 56.0 | 0.10 | 0.20 | ≤ 1.3× its CPU | 1.40× | **no** |",
            "one connection | 1,000 | 0 % | 900.0 | 3.10 | 6.20 | ≤ 3 ms | 3.10 ms | **no** |",
        ] {
            assert!(tables.contains(expected), "{expected}\nis not in\n{tables}");
        }
    }
}
