//! Explains a package's golden rows by running its graph, and writes the times per row as JSON: how long the whole takes, and how
//! much of that is the graph's.
//!
//! Usage: `general_values LIBRARY PACKAGE [REPEATS]`. LIBRARY is that of ONNX Runtime. Each time is the best of all repeats.
#![expect(clippy::print_stdout, reason = "it is a program of the command line")]

use std::path::Path;
use std::time::{Duration, Instant};

use scoregate_model::explain::general::{General, SEED, Sampling, Subject};
use scoregate_model::features::{FeatureRows, RowReader};
use scoregate_model::package::Package;
use scoregate_model::runtime::{Runtime, SessionOptions};
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

/// Golden rows that are explained.
const ROWS: usize = 20;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, package, rest @ ..] = arguments.as_slice() else {
        return Err("expected LIBRARY PACKAGE [REPEATS]".into());
    };
    let repeats: usize = rest.first().map_or(Ok(20), |text| text.parse())?;
    let runtime = Runtime::load(Path::new(library))?;
    let package = Package::read(Path::new(package))?;
    let manifest = &package.manifest;
    let reader = RowReader::new(&package.schema, &manifest.bindings);
    let options = SessionOptions::default();
    let mut session =
        runtime.session(&package.graph, &reader, &manifest.bindings, &manifest.output, &options)?;

    let read = |rows: Vec<_>| -> Result<FeatureRows, Failure> {
        let count = rows.len();
        Ok(reader.json_rows(serde_json::to_string(&rows)?.as_bytes(), count)?.rows)
    };
    let background = read(package.background.iter().collect())?;
    let rows = read(package.golden.iter().take(ROWS).map(|golden| &golden.features).collect())?;
    let answers = session.run(&background)?.values().to_vec();
    let started = Instant::now();
    let general = General::new(&background, &reader, answers)?;
    let load_s = started.elapsed().as_secs_f64();
    let answers = session.run(&rows)?;
    let mut one = Duration::MAX;
    for _ in 0..1_000 {
        let started = Instant::now();
        session.run(&rows.single(0))?;
        one = one.min(started.elapsed());
    }
    let mut said = json!({
        "features": general.features(), "background_rows": general.background_rows(), "run_us": one.as_secs_f64() * 1e6,
        "exact_rows_expected": general.exact_rows_expected(), "load_s": load_s,
    });

    let rounds = [("sampled_1_round", 1), ("sampled_2_rounds", 2), ("sampled_10_rounds", 10)];
    let methods = general.exact_rows_at_most().map(|_| ("exact", 0)).into_iter().chain(rounds);
    for (method, rounds) in methods {
        let (mut best, mut best_of_graph) = (f64::INFINITY, f64::INFINITY);
        let (mut ran, mut furthest, mut largest_error) = (0, 0.0_f64, 0.0_f64);
        for _ in 0..repeats {
            let (mut of_graph, mut whole) = (Duration::ZERO, Duration::ZERO);
            ran = 0;
            for (row, answer) in answers.rows().enumerate() {
                let subject = Subject { rows: &rows, row, answer };
                let mut run = |rows: &FeatureRows| {
                    let started = Instant::now();
                    let scores = session.run(rows)?;
                    of_graph += started.elapsed();
                    Ok(scores.values().to_vec())
                };
                let started = Instant::now();
                let explained = if rounds == 0 {
                    general.exact(subject, &mut run, &|answer| answer[0])?.ok_or("too many features")?
                } else {
                    let deadline = started + Duration::from_secs(60);
                    let sampling =
                        Sampling { rows: rounds * general.rows_per_round_at_most(), deadline, seed: SEED };
                    general.sampled(subject, sampling, &mut run, &|answer| answer[0])?
                };
                whole += started.elapsed();
                ran += explained.rows;
                let sum = explained.base + explained.values.iter().sum::<f64>();
                furthest = furthest.max((sum - explained.value).abs());
                let errors = explained.standard_errors.unwrap_or_default();
                largest_error = errors.into_iter().fold(largest_error, f64::max);
            }
            best = best.min(whole.as_secs_f64() / rows.len() as f64);
            best_of_graph = best_of_graph.min(of_graph.as_secs_f64() / rows.len() as f64);
        }
        said[method] = json!({
            "rows_run": ran as f64 / rows.len() as f64, "row_us": best * 1e6, "graph_us": best_of_graph * 1e6,
            "additivity_error": furthest, "largest_standard_error": largest_error,
        });
    }
    println!("{said:#}");
    Ok(())
}
