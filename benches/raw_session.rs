//! What ONNX Runtime alone costs: `session.run` on prepared tensors, in CPU time, for one row and for a thousand.
//!
//! Arguments: the library, the graph. Prints one line of JSON with microseconds of CPU time per run.

#![allow(clippy::print_stdout, reason = "printing the measurement is what this program is for")]

use std::hint::black_box;

use anyhow::{Context, Result, bail};
use nix::sys::time::TimeValLike;
use nix::time::ClockId;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor, TensorElementType};

/// Each measurement is the best of so many, because whatever else the machine does only ever adds.
const REPEATS: usize = 3;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(library), Some(graph)) = (arguments.next(), arguments.next()) else {
        bail!("two arguments are expected: the ONNX Runtime library and the graph");
    };
    let environment = ort::init_from(&library)?.with_telemetry(false).build()?;
    let mut session = Session::builder(&environment)?
        .with_intra_threads(1)
        .map_err(ort::Error::<()>::from)?
        .with_inter_threads(1)
        .map_err(ort::Error::<()>::from)?
        .commit_from_file(&graph)
        .with_context(|| format!("could not load {graph}"))?;
    let one = cost(&mut session, 1, 20_000)?;
    let thousand = cost(&mut session, 1000, 200)?;
    println!(
        "{}",
        serde_json::json!({
            "run_1_us": one.run,
            "tensors_and_run_1_us": one.tensors_and_run,
            "run_1000_us": thousand.run,
            "tensors_and_run_1000_us": thousand.tensors_and_run,
        })
    );
    Ok(())
}

/// Microseconds of CPU time.
struct Cost {
    run: f64,
    tensors_and_run: f64,
}

fn cost(session: &mut Session, rows: usize, runs: u32) -> Result<Cost> {
    let mut cost = Cost { run: f64::INFINITY, tensors_and_run: f64::INFINITY };
    for _ in 0..REPEATS {
        let prepared = tensors(session, rows)?;
        cost.run = cost.run.min(per_run(runs, || {
            let inputs: Vec<SessionInputValue<'_>> = prepared.iter().map(SessionInputValue::from).collect();
            black_box(session.run(&inputs[..])?);
            Ok(())
        })?);
        cost.tensors_and_run = cost.tensors_and_run.min(per_run(runs, || {
            let inputs: Vec<SessionInputValue<'_>> =
                tensors(session, rows)?.into_iter().map(SessionInputValue::from).collect();
            black_box(session.run(&inputs[..])?);
            Ok(())
        })?);
    }
    Ok(cost)
}

/// One `[rows, 1]` tensor for each input of the graph, in its order.
fn tensors(session: &Session, rows: usize) -> Result<Vec<DynValue>> {
    let shape = [rows, 1];
    let tensor = |input: &ort::value::Outlet| -> Result<DynValue> {
        Ok(match input.dtype().tensor_type() {
            Some(TensorElementType::Float32) => {
                Tensor::from_array((shape, (0..rows).map(|row| row as f32).collect::<Vec<_>>()))?.into_dyn()
            }
            Some(TensorElementType::Float64) => {
                Tensor::from_array((shape, (0..rows).map(|row| row as f64).collect::<Vec<_>>()))?.into_dyn()
            }
            Some(TensorElementType::Int64) => Tensor::from_array((shape, vec![1_i64; rows]))?.into_dyn(),
            Some(TensorElementType::String) => {
                let value = if input.name() == "country" { "US" } else { "pro" };
                Tensor::from_string_array((shape, &vec![value; rows][..]))?.into_dyn()
            }
            other => {
                bail!("input `{}` is of type {other:?}, which this benchmark does not prepare", input.name())
            }
        })
    };
    session.inputs().iter().map(tensor).collect()
}

fn per_run(runs: u32, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let before = cpu_ns()?;
    for _ in 0..runs {
        run()?;
    }
    Ok((cpu_ns()? - before) as f64 / f64::from(runs) / 1e3)
}

/// Nanoseconds that this thread has been on a processor. The files in `/proc` are only as fine as the timer tick.
fn cpu_ns() -> Result<i64> {
    let now = ClockId::CLOCK_THREAD_CPUTIME_ID.now().context("this thread has no CPU clock")?;
    Ok(now.num_nanoseconds())
}
