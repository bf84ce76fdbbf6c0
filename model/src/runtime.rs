//! ONNX Runtime: loading the library, sessions over a graph, and running checked rows through them.
//!
//! This is the only file that names `ort`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::session::builder::GraphOptimizationLevel;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueType};
use scoregate_schemas::feature_schema::{Field, Kind};
use scoregate_schemas::manifest::{Bindings, Element, Output};

use crate::features::{CategoryColumn, Column, FeatureRows, RowReader};
use crate::inspect::{self, Lookup};

/// The version of ONNX Runtime that this build is made and tested for.
pub const ONNX_RUNTIME_VERSION: &str = "1.31.1";

/// The most rows that one `run` takes; longer columns are cut into runs of this many, which bounds the memory that ONNX
/// Runtime's arena keeps.
pub const MAX_ROWS_PER_RUN: usize = 4_096;

/// Where the library of ONNX Runtime is when nobody says: beside the executable, or where `cargo xtask onnxruntime` puts it.
///
/// # Errors
/// [`Error::LibraryMissing`] with every place that was tried.
pub fn locate_library(executable: &Path) -> Result<PathBuf, Error> {
    let directory = executable.parent().unwrap_or(Path::new("."));
    let mut tried = Vec::new();
    for place in [".", "../lib", "../onnxruntime", "../../onnxruntime"] {
        let candidate = directory.join(place).join("libonnxruntime.so");
        if candidate.is_file() {
            return Ok(candidate);
        }
        tried.push(candidate);
    }
    Err(Error::LibraryMissing { tried })
}

/// What can go wrong between a package and its probabilities.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No library was found.
    #[error(
        "ONNX Runtime is missing: looked for {}; fetch it with `cargo xtask onnxruntime`, or set ORT_DYLIB_PATH to a \
         libonnxruntime.so of version {ONNX_RUNTIME_VERSION}",
        .tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    LibraryMissing {
        /// The places that were tried.
        tried: Vec<PathBuf>,
    },
    /// The library is there and cannot be used.
    #[error("cannot load ONNX Runtime from {}: {message}; expected version {ONNX_RUNTIME_VERSION}", .path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        message: String,
    },
    /// ONNX Runtime refuses the graph.
    #[error("ONNX Runtime refuses the graph")]
    Graph(#[source] ort::Error),
    /// The graph's inputs or outputs are not those of the manifest.
    #[error("the graph does not fit its manifest: {0}")]
    Binding(String),
    /// A run failed.
    #[error("ONNX Runtime failed to run the graph")]
    Run(#[source] ort::Error),
    /// The graph answered something that is no probability per row.
    #[error("the model answered {0}")]
    Output(OutputFault),
}

/// What is wrong with a graph's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutputFault {
    /// Another number of values than rows times classes.
    #[error("{found} values, expected {expected}")]
    Count {
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// NaN or infinity.
    #[error("a value that is not finite, for row {row}")]
    NotFinite {
        /// The row, by its place among the checked rows.
        row: usize,
    },
    /// A probability outside [0, 1].
    #[error("a probability outside [0, 1], for row {row}")]
    OutOfRange {
        /// The row, by its place among the checked rows.
        row: usize,
    },
}

/// ONNX Runtime, loaded. There is one per process.
#[derive(Debug, Clone)]
pub struct Runtime {
    environment: ort::environment::Environment,
}

impl Runtime {
    /// Loads ONNX Runtime from `library`, with its telemetry switched off.
    ///
    /// Call this before any other thread reads the environment: it sets `ORT_DISABLE_TELEMETRY`, which Microsoft's builds
    /// read when they initialise.
    ///
    /// # Errors
    /// [`Error::Library`] if the library cannot be loaded or is too old.
    pub fn load(library: &Path) -> Result<Self, Error> {
        let failed = |message: String| Error::Library { path: library.to_path_buf(), message };
        #[expect(unsafe_code, reason = "ONNX Runtime reads its switches from the process environment only")]
        // SAFETY: callers load the runtime at start, before threads are spawned that could read the environment.
        unsafe {
            std::env::set_var("ORT_DISABLE_TELEMETRY", "1");
            // A model file must not be able to choose session options.
            std::env::remove_var("ORT_LOAD_CONFIG_FROM_MODEL");
        }
        let environment = ort::init_from(library)
            .map_err(|error| failed(error.to_string()))?
            .with_name("scoregate")
            .with_telemetry(false)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        environment.set_log_level(ort::logging::LogLevel::Error);
        Ok(Self { environment })
    }

    /// Opens a session over `graph`, the bytes of an ONNX file, rewritten by [`inspect::prepare`]: ONNX Runtime would
    /// compute what nobody asks for at every run.
    ///
    /// # Errors
    /// [`Error::Graph`] if ONNX Runtime refuses it, [`Error::Binding`] if inputs or outputs are not as the manifest says.
    pub fn session(
        &self,
        graph: &[u8],
        reader: &RowReader,
        bindings: &Bindings,
        output: &Output,
        options: &SessionOptions,
    ) -> Result<Session, Error> {
        let Output::Probabilities { name, classes, positive } = output;
        let served = inspect::prepare(graph, name, *positive, *classes)
            .map_err(|error| Error::Binding(error.to_string()))?;
        let inner = self.open(&served.graph, options)?;
        let inputs = bind(&inner, reader, bindings, &served.lookups)?;
        if *positive >= *classes {
            return Err(Error::Binding(format!(
                "column {positive} of {classes} cannot be the positive class"
            )));
        }
        check_output(&inner, &served.output, TensorElementType::Float32)?;
        let (classes, positive) = if served.one_column { (1, 0) } else { (*classes, *positive) };
        let single = Single::new(&inputs, &served.output, classes).map_err(Error::Run)?;
        Ok(Session { inner, nodes: served.nodes, inputs, single, classes, positive })
    }

    /// Opens a session over `graph` as it is, with the class per row that its output `label` gives: for holding a graph to
    /// what it claims, and slower than [`Runtime::session`].
    ///
    /// # Errors
    /// As [`Runtime::session`].
    pub fn unmodified(
        &self,
        graph: &[u8],
        reader: &RowReader,
        bindings: &Bindings,
        output: &Output,
        label: &str,
    ) -> Result<Unmodified, Error> {
        let Output::Probabilities { name, classes, .. } = output;
        let inner = self.open(graph, &SessionOptions::default())?;
        let inputs = bind(&inner, reader, bindings, &BTreeMap::new())?;
        check_output(&inner, name, TensorElementType::Float32)?;
        check_output(&inner, label, TensorElementType::Int64)?;
        Ok(Unmodified { inner, inputs, probabilities: name.clone(), classes: *classes, label: label.into() })
    }

    fn open(&self, graph: &[u8], options: &SessionOptions) -> Result<ort::session::Session, Error> {
        let build = || -> ort::Result<ort::session::Session> {
            ort::session::Session::builder(&self.environment)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(options.intra_op_threads)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?
                .commit_from_memory(graph)
        };
        build().map_err(Error::Graph)
    }
}

/// Finds the feature of every input, and checks that each is of the element that the bindings say. An input among `lookups`
/// takes codes.
fn bind(
    inner: &ort::session::Session,
    reader: &RowReader,
    bindings: &Bindings,
    lookups: &BTreeMap<String, Lookup>,
) -> Result<Vec<Input>, Error> {
    let Bindings::Columns { columns } = bindings;
    for binding in columns {
        let Some(input) = inner.inputs().iter().find(|input| input.name() == binding.input) else {
            return Err(Error::Binding(format!("it has no input \"{}\"", binding.input)));
        };
        let expected = match binding.element {
            Element::Float32 => TensorElementType::Float32,
            Element::Float64 => TensorElementType::Float64,
            Element::String if !lookups.contains_key(&binding.input) => TensorElementType::String,
            Element::Int64 | Element::String => TensorElementType::Int64,
        };
        match input.dtype() {
            ValueType::Tensor { ty, .. } if *ty == expected => {}
            other => {
                return Err(Error::Binding(format!(
                    "its input \"{}\" is {other}, expected a tensor of {expected}",
                    binding.input
                )));
            }
        }
    }
    let kinds: Vec<_> = reader.features().collect();
    let mut inputs = Vec::with_capacity(columns.len());
    for input in inner.inputs() {
        let Some(feature) = columns.iter().position(|column| column.input == input.name()) else {
            return Err(Error::Binding(format!("no feature is bound to its input \"{}\"", input.name())));
        };
        let fill = Fill::new(columns[feature].element, kinds[feature], lookups.get(input.name()));
        let fill =
            fill.map_err(|problem| Error::Binding(format!("its input \"{}\" {problem}", input.name())))?;
        inputs.push(Input { feature, fill });
    }
    Ok(inputs)
}

fn check_output(inner: &ort::session::Session, name: &str, expected: TensorElementType) -> Result<(), Error> {
    match inner.outputs().iter().find(|found| found.name() == name).map(ort::value::Outlet::dtype) {
        Some(ValueType::Tensor { ty, .. }) if *ty == expected => Ok(()),
        Some(other) => {
            Err(Error::Binding(format!("its output \"{name}\" is {other}, expected a tensor of {expected}")))
        }
        None => Err(Error::Binding(format!("it has no output \"{name}\""))),
    }
}

/// How a session runs.
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Threads within one operator; 1 runs on the calling thread.
    pub intra_op_threads: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { intra_op_threads: 1 }
    }
}

/// A graph ready to run, for one thread at a time.
pub struct Session {
    inner: ort::session::Session,
    nodes: usize,
    /// In the order of the graph's inputs.
    inputs: Vec<Input>,
    single: Single,
    classes: usize,
    positive: usize,
}

/// The tensors of a run of one row, made once and filled anew for each: making them would cost half as much as the run.
struct Single {
    inputs: Vec<SessionInputValue<'static>>,
    /// Names the output and the tensor that takes it.
    options: RunOptions<HasSelectedOutputs>,
}

impl Single {
    fn new(inputs: &[Input], output: &str, classes: usize) -> ort::Result<Self> {
        let answer = Tensor::from_array(([1, classes], vec![0_f32; classes]))?;
        let outputs = OutputSelector::no_default().with(output).preallocate(output, answer);
        let inputs = inputs.iter().map(Input::blank).collect::<ort::Result<_>>()?;
        Ok(Self { inputs, options: RunOptions::new()?.with_outputs(outputs) })
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

/// One input of the graph and the feature that fills it.
#[derive(Debug)]
struct Input {
    feature: usize,
    fill: Fill,
}

/// How a column becomes a tensor.
#[derive(Debug)]
enum Fill {
    Float32,
    Float64,
    Int64,
    /// Categories as text. The listed ones are the session's own copies, so that sessions share no reference counts.
    Text {
        listed: Vec<Arc<str>>,
    },
    /// Categories as the integers of a look-up that was cut from the graph: those of listed values, and the look-up for
    /// the others.
    Code {
        listed: Vec<i64>,
        lookup: Lookup,
    },
}

impl Fill {
    fn new(element: Element, field: &Field, lookup: Option<&Lookup>) -> Result<Self, &'static str> {
        let values = match &field.kind {
            Kind::Category { values } => Some(values.as_deref().unwrap_or_default()),
            _ => None,
        };
        Ok(match (element, values, lookup) {
            (Element::Float32, None, _) => Self::Float32,
            (Element::Float64, None, _) => Self::Float64,
            (Element::Int64, None, _) => Self::Int64,
            (Element::String, Some(values), Some(lookup)) => {
                let listed = values.iter().map(|value| lookup.code(value)).collect();
                Self::Code { listed, lookup: lookup.clone() }
            }
            (Element::String, Some(values), None) => {
                Self::Text { listed: values.iter().map(|value| value.as_str().into()).collect() }
            }
            (Element::String, None, _) => return Err("takes strings, but its feature is a number"),
            (_, Some(_), _) => return Err("takes numbers, but its feature is a category"),
        })
    }
}

/// Probabilities, one row of classes per feature row.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    classes: usize,
    positive: usize,
    values: Vec<f32>,
}

impl Scores {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.classes
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The probability of the positive class, per row.
    pub fn positive(&self) -> impl ExactSizeIterator<Item = f32> {
        self.values.chunks_exact(self.classes).map(|row| row[self.positive])
    }
}

impl Session {
    /// How many nodes of the graph run.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Runs every checked row and checks what comes back.
    ///
    /// # Errors
    /// [`Error::Run`] if ONNX Runtime fails, [`Error::Output`] if the answer is not one finite probability in [0, 1] per row
    /// and class.
    pub fn run(&mut self, rows: &FeatureRows) -> Result<Scores, Error> {
        let mut values = Vec::with_capacity(rows.len() * self.classes);
        let mut from = 0;
        while from < rows.len() {
            let to = rows.len().min(from + MAX_ROWS_PER_RUN);
            self.run_part(rows, from, to, &mut values)?;
            from = to;
        }
        Ok(Scores { classes: self.classes, positive: self.positive, values })
    }

    fn run_part(
        &mut self,
        rows: &FeatureRows,
        from: usize,
        to: usize,
        values: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let Self { inner, inputs, single, classes, .. } = self;
        let count = to - from;
        let outputs = if count == 1 {
            for (input, tensor) in inputs.iter().zip(&mut single.inputs) {
                input.refill(tensor, &rows.columns[input.feature], from).map_err(Error::Run)?;
            }
            inner.run_with_options(single.inputs.as_slice(), &single.options)
        } else {
            let tensors = inputs.iter().map(|input| input.tensor(&rows.columns[input.feature], from, to));
            let tensors = tensors.collect::<ort::Result<Vec<_>>>().map_err(Error::Run)?;
            inner.run(tensors.as_slice())
        };
        let outputs = outputs.map_err(Error::Run)?;
        let (_, answer) = outputs[0].try_extract_tensor::<f32>().map_err(Error::Run)?;
        let expected = count * *classes;
        if answer.len() != expected {
            return Err(Error::Output(OutputFault::Count { found: answer.len(), expected }));
        }
        if let Some(at) = answer.iter().position(|value| !(0.0..=1.0).contains(value)) {
            let row = from + at / *classes;
            let fault = if answer[at].is_finite() {
                OutputFault::OutOfRange { row }
            } else {
                OutputFault::NotFinite { row }
            };
            return Err(Error::Output(fault));
        }
        values.extend_from_slice(answer);
        Ok(())
    }
}

/// A graph that runs as it was written, with everything it answers.
pub struct Unmodified {
    inner: ort::session::Session,
    inputs: Vec<Input>,
    probabilities: String,
    classes: usize,
    label: String,
}

impl std::fmt::Debug for Unmodified {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Unmodified").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

/// What a graph answers about some rows, not checked but for its shape.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers {
    /// One probability per class, row after row.
    pub probabilities: Vec<f32>,
    /// One class per row.
    pub labels: Vec<i64>,
}

impl Unmodified {
    /// Runs every checked row.
    ///
    /// # Errors
    /// [`Error::Run`] if ONNX Runtime fails, [`Error::Binding`] if an output is of another shape than one probability per row
    /// and class, or one label per row.
    pub fn run(&mut self, rows: &FeatureRows) -> Result<Answers, Error> {
        let mut answers = Answers::default();
        for from in (0..rows.len()).step_by(MAX_ROWS_PER_RUN) {
            let to = rows.len().min(from + MAX_ROWS_PER_RUN);
            let tensors =
                self.inputs.iter().map(|input| input.tensor(&rows.columns[input.feature], from, to));
            let tensors = tensors.collect::<ort::Result<Vec<_>>>().map_err(Error::Run)?;
            let outputs = self.inner.run(tensors.as_slice()).map_err(Error::Run)?;
            let (shape, probabilities) =
                outputs[self.probabilities.as_str()].try_extract_tensor::<f32>().map_err(Error::Run)?;
            check_shape(&self.probabilities, shape, &[to - from, self.classes])?;
            let (shape, labels) =
                outputs[self.label.as_str()].try_extract_tensor::<i64>().map_err(Error::Run)?;
            check_shape(&self.label, shape, &[to - from])?;
            answers.probabilities.extend_from_slice(probabilities);
            answers.labels.extend_from_slice(labels);
        }
        Ok(answers)
    }
}

fn check_shape(output: &str, found: &[i64], expected: &[usize]) -> Result<(), Error> {
    if found.iter().map(|dimension| usize::try_from(*dimension)).eq(expected.iter().copied().map(Ok)) {
        return Ok(());
    }
    Err(Error::Binding(format!("its output \"{output}\" has the shape {found:?}, expected {expected:?}")))
}

#[expect(clippy::cast_possible_truncation, reason = "the reader refused what float32 or int64 cannot hold")]
impl Input {
    /// A tensor of one row to be filled later.
    fn blank(&self) -> ort::Result<SessionInputValue<'static>> {
        Ok(match &self.fill {
            Fill::Float32 => Tensor::from_array(([1, 1], vec![0_f32]))?.into(),
            Fill::Float64 => Tensor::from_array(([1, 1], vec![0_f64]))?.into(),
            Fill::Int64 | Fill::Code { .. } => Tensor::from_array(([1, 1], vec![0_i64]))?.into(),
            Fill::Text { .. } => Tensor::from_string_array(([1, 1], [""].as_slice()))?.into(),
        })
    }

    /// Puts row `row` of a column into a tensor of one row.
    fn refill(
        &self,
        tensor: &mut SessionInputValue<'static>,
        column: &Column,
        row: usize,
    ) -> ort::Result<()> {
        match (column, &self.fill, &mut *tensor) {
            (Column::Number(values), Fill::Float32, SessionInputValue::Owned(value)) => {
                value.try_extract_tensor_mut::<f32>()?.1[0] = values[row] as f32;
            }
            (Column::Number(values), Fill::Float64, SessionInputValue::Owned(value)) => {
                value.try_extract_tensor_mut::<f64>()?.1[0] = values[row];
            }
            (Column::Number(values), Fill::Int64, SessionInputValue::Owned(value)) => {
                value.try_extract_tensor_mut::<i64>()?.1[0] = values[row] as i64;
            }
            (Column::Category(column), Fill::Code { listed, lookup }, SessionInputValue::Owned(value)) => {
                value.try_extract_tensor_mut::<i64>()?.1[0] = code(column, column.codes[row], listed, lookup);
            }
            _ => *tensor = self.tensor(column, row, row + 1)?,
        }
        Ok(())
    }

    /// Rows `from..to` of a column as a `[N, 1]` tensor.
    fn tensor(&self, column: &Column, from: usize, to: usize) -> ort::Result<SessionInputValue<'static>> {
        let shape = [to - from, 1];
        Ok(match (column, &self.fill) {
            (Column::Number(values), Fill::Float64) => {
                Tensor::from_array((shape, values[from..to].to_vec()))?.into()
            }
            (Column::Number(values), Fill::Int64) => {
                let values: Vec<i64> = values[from..to].iter().map(|value| *value as i64).collect();
                Tensor::from_array((shape, values))?.into()
            }
            (Column::Number(values), _) => {
                let values: Vec<f32> = values[from..to].iter().map(|value| *value as f32).collect();
                Tensor::from_array((shape, values))?.into()
            }
            (Column::Category(column), Fill::Code { listed, lookup }) => {
                let codes = column.codes[from..to].iter();
                let codes: Vec<i64> = codes.map(|found| code(column, *found, listed, lookup)).collect();
                Tensor::from_array((shape, codes))?.into()
            }
            (Column::Category(column), fill) => {
                let listed = if let Fill::Text { listed } = fill { listed.as_slice() } else { &[] };
                let text = |code: &u32| {
                    let code = *code as usize;
                    let other = || column.others[code - listed.len()].as_ref().into();
                    listed.get(code).map_or_else(other, Arc::clone)
                };
                let texts: Vec<Arc<str>> = column.codes[from..to].iter().map(text).collect();
                Tensor::from_string_array((shape, texts.as_slice()))?.into()
            }
        })
    }
}

/// The look-up's integer for one category of a column.
fn code(column: &CategoryColumn, code: u32, listed: &[i64], lookup: &Lookup) -> i64 {
    let code = code as usize;
    listed.get(code).copied().unwrap_or_else(|| lookup.code(&column.others[code - listed.len()]))
}
