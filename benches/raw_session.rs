//! What ONNX Runtime alone costs: `session.run` on prepared tensors, in CPU time, for one row and for a thousand.
//!
//! Arguments: the library, a model package, a JSON array of rows as clients send them, and which graph to run: `published`
//! for the file as it is, `served` for what the gateway makes of it. Prints one line of JSON with microseconds of CPU time.

#![allow(clippy::print_stdout, reason = "printing the measurement is what this program is for")]

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::time::TimeValLike;
use nix::time::ClockId;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynMapValueType, DynValue, Tensor, ValueType};
use scoregate_model::inspect;
use scoregate_model::package::Package;
use scoregate_schemas::feature_schema::Encode;
use scoregate_schemas::manifest::Element;
use serde_json::{Map, Value};

/// Each measurement is the best of so many, because whatever else the machine does only ever adds.
const REPEATS: usize = 3;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, package, rows, graph] = arguments.as_slice() else {
        bail!("four arguments are expected: library, package, rows, and `published` or `served`");
    };
    let package = Package::read(Path::new(package))?;
    let rows = std::fs::read(rows).with_context(|| format!("could not read {rows}"))?;
    let rows: Vec<Map<String, Value>> =
        serde_json::from_slice(&rows).context("the rows are no JSON array of objects")?;
    let bytes = match graph.as_str() {
        "published" => package.graph.clone(),
        "served" => inspect::prepare(&package.graph, &package.manifest.output)?.graph,
        other => bail!("found the graph `{other}`, expected `published` or `served`"),
    };
    let environment = ort::init_from(library)?.with_telemetry(false).build()?;
    let session = Session::builder(&environment)?
        .with_intra_threads(1)
        .map_err(ort::Error::<()>::from)?
        .with_inter_threads(1)
        .map_err(ort::Error::<()>::from)?
        .commit_from_memory(&bytes)
        .with_context(|| format!("could not load the {graph} graph"))?;
    let mut raw = Raw { session, package: &package, rows: &rows };
    let one = raw.cost(1, 10_000)?;
    let thousand = raw.cost(1000, 100)?;
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

/// A session, the package that says what it takes, and what to give it.
struct Raw<'a> {
    session: Session,
    package: &'a Package,
    rows: &'a [Map<String, Value>],
}

impl Raw<'_> {
    /// The cost of a run of `size` rows, over all rows in turn: the processor would foresee what the same row does again.
    fn cost(&mut self, size: usize, runs: u32) -> Result<Cost> {
        let filled: Vec<_> =
            self.rows.chunks_exact(size).map(|rows| self.fill(rows)).collect::<Result<_>>()?;
        if filled.is_empty() {
            bail!("found {} rows, expected {size} or more", self.rows.len());
        }
        let prepared: Vec<_> = filled.iter().map(|inputs| tensors(inputs)).collect::<Result<_>>()?;
        let mut cost = Cost { run: f64::INFINITY, tensors_and_run: f64::INFINITY };
        for _ in 0..REPEATS {
            let mut turns = prepared.iter().cycle();
            cost.run = cost.run.min(per_run(runs, || {
                let inputs = turns.next().into_iter().flatten().map(SessionInputValue::from);
                run(&mut self.session, inputs.collect())
            })?);
            let mut turns = filled.iter().cycle();
            cost.tensors_and_run = cost.tensors_and_run.min(per_run(runs, || {
                let made = turns.next().map(|inputs| tensors(inputs)).transpose()?;
                let inputs = made.into_iter().flatten().map(SessionInputValue::from);
                run(&mut self.session, inputs.collect())
            })?);
        }
        Ok(cost)
    }

    /// The cells of `rows` for each input of the graph, in its order.
    fn fill(&self, rows: &[Map<String, Value>]) -> Result<Vec<Filled>> {
        let bound = self.package.manifest.bindings.inputs();
        let fill = |input: &ort::value::Outlet| {
            let bound = bound.iter().find(|bound| bound.input == input.name());
            let bound = bound.with_context(|| format!("nothing is bound to input `{}`", input.name()))?;
            let cell = |row, name| (name, Map::get(row, name).unwrap_or(&Value::Null));
            let cells = rows.iter().flat_map(|row| bound.features.iter().map(move |name| cell(row, name)));
            let shape = [rows.len(), bound.features.len()];
            Ok(match bound.element {
                Element::Float32 => {
                    let numbers = cells.map(|(name, value)| Ok(self.number(name, value)? as f32));
                    Filled::Numbers(shape, numbers.collect::<Result<_>>()?)
                }
                Element::String => {
                    let texts = cells.map(|(_, value)| value.as_str().unwrap_or_default().to_owned());
                    Filled::Texts(shape, texts.collect())
                }
                other => {
                    bail!("input `{}` takes {other:?}, which this benchmark does not prepare", input.name())
                }
            })
        };
        self.session.inputs().iter().map(fill).collect()
    }

    /// A value as a matrix takes it: numbers as they are, categories by the schema's map.
    fn number(&self, name: &str, value: &Value) -> Result<f64> {
        let encode = self.package.schema.features().find(|field| field.name == *name);
        match (value, encode.and_then(|field| field.encode.as_ref())) {
            (Value::String(text), Some(Encode::Map(map))) => {
                let found = map.iter().find(|(category, _)| category == text);
                Ok(found.map_or(f64::NAN, |(_, number)| *number))
            }
            (value, None) => {
                value.as_f64().with_context(|| format!("`{name}` is {value}, expected a number"))
            }
            (value, Some(_)) => bail!("`{name}` is {value}, which this benchmark does not encode"),
        }
    }
}

/// What fills an input, with the shape of its tensor.
enum Filled {
    Numbers([usize; 2], Vec<f32>),
    Texts([usize; 2], Vec<String>),
}

fn tensors(inputs: &[Filled]) -> Result<Vec<DynValue>> {
    let tensor = |input: &Filled| -> Result<DynValue> {
        Ok(match input {
            Filled::Numbers(shape, numbers) => Tensor::from_array((*shape, numbers.clone()))?.into_dyn(),
            Filled::Texts(shape, texts) => Tensor::from_string_array((*shape, &texts[..]))?.into_dyn(),
        })
    };
    inputs.iter().map(tensor).collect()
}

/// One run, its answer read: maps have to be taken out one by one, while a tensor lies there.
fn run(session: &mut Session, inputs: Vec<SessionInputValue<'_>>) -> Result<()> {
    let outputs = session.run(&inputs[..])?;
    for (_, output) in &outputs {
        if matches!(output.dtype(), ValueType::Sequence(_)) {
            let maps: Vec<ort::value::Value<DynMapValueType>> = output.try_extract_sequence()?;
            for map in &maps {
                black_box(map.try_extract_map::<i64, f32>()?);
            }
        }
    }
    black_box(outputs);
    Ok(())
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
