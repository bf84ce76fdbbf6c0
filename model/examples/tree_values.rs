//! Explains rows with the trees of a graph and writes values, memory and times as JSON, for comparisons with other libraries.
//!
//! Usage: `tree_values MODEL.onnx PLAYERS BACKGROUND REFERENCE ROWS [REPEATS [BYTES]]`. PLAYERS names each column's player:
//! `0,1,1,-` (none for `-`). The other files are encoded rows as little-endian float64.
#![expect(clippy::print_stdout, reason = "it is a program of the command line")]

use std::hint::black_box;
use std::time::Instant;

use prost::Message;
use scoregate_model::explain::trees::{Ensemble, Explainer, Matrix, TABLE_BYTES};
use scoregate_schemas::onnx::ModelProto;
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, players, background, reference, rows, rest @ ..] = arguments.as_slice() else {
        return Err("expected MODEL.onnx PLAYERS BACKGROUND REFERENCE ROWS [REPEATS [BYTES]]".into());
    };
    let repeats: usize = rest.first().map_or(Ok(0), |text| text.parse())?;
    let bytes: usize = rest.get(1).map_or(Ok(TABLE_BYTES), |text| text.parse())?;
    let players: Vec<Option<u32>> = players.split(',').map(|player| player.parse().ok()).collect();
    let read = |path: &String| -> Result<Vec<f64>, Failure> {
        Ok(std::fs::read(path)?.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    };
    let [background, reference, rows] = [read(background)?, read(reference)?, read(rows)?];
    let rows = Matrix::new(&rows, players.len())?;

    let started = Instant::now();
    let model = ModelProto::decode(std::fs::read(model)?.as_slice())?;
    let (_, ensemble) = Ensemble::of_graph(model.graph.as_ref().ok_or("no graph")?)?;
    let read_s = started.elapsed().as_secs_f64();
    let mut margin = vec![0.0; ensemble.outputs()];
    let margins: Vec<Vec<f64>> = rows
        .rows()
        .map(|row| {
            ensemble.margin(row, &mut margin);
            margin.clone()
        })
        .collect();
    let answers: Vec<Vec<f64>> = rows.rows().map(|row| ensemble.answer(row)).collect();
    let mut said = json!({
        "trees": ensemble.trees(), "leaves": ensemble.leaves(), "read_s": read_s, "link": format!("{:?}", ensemble.link()),
        "columns": format!("{:?}", ensemble.columns()), "margins": margins, "answers": answers,
    });

    for method in ["interventional", "path_dependent"] {
        let started = Instant::now();
        let explainer = if method == "interventional" {
            Explainer::interventional(&ensemble, &players, &Matrix::new(&background, players.len())?, bytes)?
        } else {
            Explainer::path_dependent(&ensemble, &players, &Matrix::new(&reference, players.len())?, bytes)?
        };
        let load_s = started.elapsed().as_secs_f64();
        let mut scratch = explainer.scratch();
        let mut values = vec![0.0; explainer.outputs() * explainer.players()];
        let mut all = Vec::new();
        for row in rows.rows() {
            explainer.explain(row, &mut scratch, &mut values)?;
            all.push(values.clone());
        }
        // The best of many passes: others use the machine too.
        let mut best = f64::INFINITY;
        for _ in 0..repeats {
            let started = Instant::now();
            for row in rows.rows() {
                explainer.explain(black_box(row), &mut scratch, &mut values)?;
                black_box(&values);
            }
            best = best.min(started.elapsed().as_secs_f64() / rows.rows().len() as f64);
        }
        let base: Vec<f64> = (0..explainer.outputs()).map(|output| explainer.base(output)).collect();
        let row_us = (repeats > 0).then_some(best * 1e6);
        said[method] = json!({"base": base, "values": all, "load_s": load_s, "bytes": explainer.bytes(), "row_us": row_us});
    }
    // Not a number is no JSON: such margins become null.
    println!("{said}");
    Ok(())
}
