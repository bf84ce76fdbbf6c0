//! Makes a model whose run of one row takes a given time on this machine: a graph, its schema and golden rows to import.
//!
//! Every row is multiplied with random weights, and `tanh` is applied to the products again and again: as often as
//! it takes until the run is as slow as wanted. The cost grows with the rows, as that of an ensemble of trees does.
//! Arguments: the library, a feature schema, a JSON array of rows, the microseconds wanted, and a directory for the three
//! files. Prints one line of JSON: how often `tanh` is applied, and the microseconds of CPU time that were measured.

#![allow(clippy::print_stdout, reason = "printing the measurement is what this program is for")]

use std::fs;
use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::time::TimeValLike;
use nix::time::ClockId;
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;
use prost::Message;
use scoregate_model::random::Random;
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::feature_schema::{Encode, Field};
use scoregate_schemas::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeDimension,
    TensorShapeDimensionValue, TensorShapeProto, TypeProto, TypeTensorType, TypeValue, ValueInfoProto,
};
use serde_json::{Map, Value, json};

/// Numbers per row between the layers.
const WIDTH: usize = 2_048;
/// How much of a layer goes into the next one; below 1, so that rounding does not add up.
const DECAY: f32 = 0.5;
/// How far the cost may be from what is wanted.
const TOLERANCE: f64 = 0.1;
/// How often layers are added or taken away before this gives up.
const ATTEMPTS: usize = 10;
/// Runs of which one measurement is the mean, and measurements of which the best counts: whatever else the machine does only
/// ever adds.
const RUNS: (usize, usize) = (200, 5);
const SEED: u64 = 42;

/// `TensorProto.DataType.FLOAT`
const FLOAT: i32 = 1;

/// A row as clients send it.
type Row = Map<String, Value>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, schema, rows, wanted, directory] = arguments.as_slice() else {
        bail!("five arguments are expected: library, schema, rows, microseconds and directory");
    };
    let wanted: f64 = wanted.parse().context("the microseconds are no number")?;
    let rows = fs::read(rows).with_context(|| format!("could not read {rows}"))?;
    let rows: Vec<Row> = serde_json::from_slice(&rows).context("the rows are no JSON array of objects")?;
    let schema = fs::read(schema).with_context(|| format!("could not read {schema}"))?;
    let schema = encoded(serde_json::from_slice(&schema).context("the schema is no JSON")?, &rows)?;
    let features = FeatureSchema::from_document(schema.clone())?;
    let numbers = |row| features.features().map(|feature| number(feature, row)).collect();
    let matrix: Vec<Vec<f32>> = rows.iter().map(numbers).collect::<Result<_>>()?;
    let environment = ort::init_from(library)?.with_telemetry(false).build()?;

    let mut model = Layers::new(&matrix)?;
    let mut cost = f64::NAN;
    for _ in 0..ATTEMPTS {
        cost = model.cost(&environment, &matrix)?;
        if (cost / wanted - 1.0).abs() <= TOLERANCE {
            let golden = rows.iter().zip(&matrix).map(|(row, numbers)| {
                format!("{}\n", json!({ "features": row, "expected": model.probability(numbers) }))
            });
            let directory = Path::new(directory);
            fs::create_dir_all(directory)?;
            fs::write(directory.join("model.onnx"), model.graph().encode_to_vec())?;
            fs::write(directory.join("schema.json"), schema.to_string())?;
            fs::write(directory.join("golden.jsonl"), golden.collect::<String>())?;
            println!("{}", json!({ "layers": model.depth, "run_us": cost }));
            return Ok(());
        }
        model.depth = ((model.depth as f64 * wanted / cost).round() as usize).max(1);
    }
    bail!("the cost of a run stays at {cost:.0} µs, expected {wanted} µs; is the machine busy?")
}

/// The schema with a number for each category that the rows have.
fn encoded(mut schema: Value, rows: &[Row]) -> Result<Value> {
    let properties = schema["properties"].as_object_mut().context("the schema has no properties")?;
    for (name, property) in properties {
        let mut categories: Vec<&str> = rows.iter().filter_map(|row| row.get(name)?.as_str()).collect();
        categories.sort_unstable();
        categories.dedup();
        if !categories.is_empty() {
            let numbers: Row = categories
                .iter()
                .zip(0..)
                .map(|(category, number)| ((*category).to_owned(), json!(number)))
                .collect();
            property["x-scoregate"]["encode"] = numbers.into();
        }
    }
    Ok(schema)
}

/// What the graph is given for a feature of a row.
fn number(feature: &Field, row: &Row) -> Result<f32> {
    let value = row.get(&feature.name).unwrap_or(&Value::Null);
    let number = match (&feature.encode, value.as_str()) {
        (Some(Encode::Map(numbers)), Some(text)) => {
            numbers.iter().find(|(category, _)| category == text).map(|(_, number)| *number)
        }
        _ => value.as_f64(),
    };
    Ok(number.with_context(|| format!("`{}` is {value}, expected a number or a text", feature.name))? as f32)
}

/// The model: `h₀` is a row times the weights, `hₙ` is `h₀` and a part of `tanh` of the one before, and the last one decides.
struct Layers {
    /// For each feature its weights.
    weights: Vec<Vec<f32>>,
    answer: Vec<f32>,
    depth: usize,
}

impl Layers {
    fn new(matrix: &[Vec<f32>]) -> Result<Self> {
        let mut random = Random::new(SEED, "slow_model");
        let columns = matrix.first().context("found no rows, expected some")?.len();
        let weights = (0..columns).map(|column| {
            let largest = matrix.iter().map(|row| row[column].abs()).fold(f32::MIN_POSITIVE, f32::max);
            (0..WIDTH).map(|_| random.normal() as f32 / largest).collect()
        });
        let weights = weights.collect();
        let answer = (0..WIDTH).map(|_| random.normal() as f32 / (WIDTH as f32).sqrt()).collect();
        Ok(Self { weights, answer, depth: 16 })
    }

    /// The answer to a row, as computed here.
    fn probability(&self, row: &[f32]) -> f64 {
        let log_odds = (0..WIDTH).map(|at| {
            let products = row.iter().zip(&self.weights);
            let first: f64 =
                products.map(|(number, weights)| f64::from(*number) * f64::from(weights[at])).sum();
            let last = (0..self.depth).fold(first, |last, _| first + f64::from(DECAY) * last.tanh());
            last * f64::from(self.answer[at])
        });
        1.0 / (1.0 + (-log_odds.sum::<f64>()).exp())
    }

    fn graph(&self) -> ModelProto {
        let columns = self.weights.len();
        let mut nodes = vec![node("MatMul", &["input", "weights"], "layer_0")];
        for depth in 1..=self.depth {
            let [bent, decayed] = ["bent", "decayed"].map(|name| format!("{name}_{depth}"));
            nodes.push(node("Tanh", &[&format!("layer_{}", depth - 1)], &bent));
            nodes.push(node("Mul", &[&bent, "decay"], &decayed));
            nodes.push(node("Add", &[&decayed, "layer_0"], &format!("layer_{depth}")));
        }
        nodes.push(node("MatMul", &[&format!("layer_{}", self.depth), "answer"], "log_odds"));
        nodes.push(node("Sigmoid", &["log_odds"], "probability"));
        let initializer = vec![
            tensor("weights", &[columns, WIDTH], self.weights.iter().flatten()),
            tensor("decay", &[], [&DECAY]),
            tensor("answer", &[WIDTH, 1], &self.answer),
        ];
        ModelProto {
            ir_version: Some(10),
            producer_name: Some("scoregate-bench".into()),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(21) }],
            graph: Some(GraphProto {
                name: Some("slow_model".into()),
                node: nodes,
                initializer,
                input: vec![value("input", columns)],
                output: vec![value("probability", 1)],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    /// Microseconds of CPU time that a run of one row takes, over all rows in turn.
    fn cost(&self, environment: &Environment, matrix: &[Vec<f32>]) -> Result<f64> {
        let mut session = Session::builder(environment)?
            .with_intra_threads(1)
            .map_err(ort::Error::<()>::from)?
            .with_inter_threads(1)
            .map_err(ort::Error::<()>::from)?
            .commit_from_memory(&self.graph().encode_to_vec())?;
        let tensor = |row: &Vec<f32>| Tensor::from_array(([1, row.len()], row.clone()));
        let inputs = matrix.iter().map(tensor).collect::<ort::Result<Vec<_>>>()?;
        let (runs, measurements) = RUNS;
        let mut best = f64::INFINITY;
        for _ in 0..measurements {
            let before = ClockId::CLOCK_THREAD_CPUTIME_ID.now()?;
            for input in inputs.iter().cycle().take(runs) {
                black_box(session.run([SessionInputValue::from(input)])?);
            }
            let took = ClockId::CLOCK_THREAD_CPUTIME_ID.now()? - before;
            best = best.min(took.num_nanoseconds() as f64 / runs as f64 / 1e3);
        }
        Ok(best)
    }
}

fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(operator.into()),
        input: inputs.iter().map(|input| (*input).to_owned()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

fn tensor<'a>(name: &str, dims: &[usize], values: impl IntoIterator<Item = &'a f32>) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(FLOAT),
        dims: dims.iter().map(|dim| *dim as i64).collect(),
        raw_data: Some(values.into_iter().flat_map(|value| value.to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

/// An input or output of as many rows as there are, and so many columns.
fn value(name: &str, columns: usize) -> ValueInfoProto {
    let dimension = |value| TensorShapeDimension { value: Some(value), ..TensorShapeDimension::default() };
    let shape = TensorShapeProto {
        dim: vec![
            dimension(TensorShapeDimensionValue::DimParam("N".into())),
            dimension(TensorShapeDimensionValue::DimValue(columns as i64)),
        ],
    };
    let tensor = TypeTensorType { elem_type: Some(FLOAT), shape: Some(shape) };
    let value = Some(TypeValue::TensorType(tensor));
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value, ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}
