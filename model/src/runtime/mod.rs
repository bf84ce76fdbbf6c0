//! ONNX Runtime: loading the library, sessions over a graph, and running checked rows through them.
//!
//! [`inputs`] turns columns into tensors, [`outputs`] tensors, maps and sequences into scores, [`providers`] says on what
//! hardware. This is the only module that names `ort`.

mod inputs;
mod outputs;
mod providers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ort::session::builder::GraphOptimizationLevel;
use ort::session::{HasSelectedOutputs, RunOptions, SessionInputValue};
use ort::value::{TensorElementType, ValueType};
use scoregate_schemas::manifest::{Bindings, Output, Task};

use self::inputs::{Input, bind};
use self::outputs::Reading;
pub use self::outputs::{Observed, ObservedValue, ROUNDING, apply as apply_link};
pub use self::providers::{ExecutionProvider, UnknownProvider};
use crate::features::{FeatureRows, RowReader};
use crate::inspect::{self, Served};

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
    /// A run of somebody's rows failed, of which nothing is said that may hold a value of them.
    #[error("ONNX Runtime failed to run the graph")]
    RunOfRows(#[source] RunFault),
    /// The graph answered something that is no probability or value per row.
    #[error("the model answered {0}")]
    Output(OutputFault),
    /// An execution provider that was asked for cannot be used.
    #[error(
        "the execution provider {name} cannot be used with {}; install an ONNX Runtime that was built with it and what it \
         needs, point ORT_DYLIB_PATH there, or do without {name}",
        .library.display()
    )]
    Provider {
        /// As the settings call it.
        name: &'static str,
        /// The library of ONNX Runtime.
        library: PathBuf,
        /// What ONNX Runtime said.
        #[source]
        source: ort::Error,
    },
    /// What ONNX Runtime noted of a run cannot be read.
    #[error("cannot tell which execution provider runs which node")]
    Profile(#[source] std::io::Error),
}

impl Error {
    /// Whether ONNX Runtime could not get the memory that it asked for.
    pub fn is_memory(&self) -> bool {
        match self {
            Self::Graph(source) | Self::Run(source) => is_of_memory(source.message()),
            Self::RunOfRows(fault) => fault.is_memory,
            _ => false,
        }
    }

    /// The same without what may be a value of a row: ONNX Runtime's own message of a failed run may quote any.
    #[must_use]
    pub fn without_values(self) -> Self {
        match self {
            Self::Run(source) => Self::RunOfRows(RunFault::new(source.code(), source.message())),
            other => other,
        }
    }
}

/// What failed of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFault {
    code: ort::ErrorCode,
    node: Option<Node>,
    is_memory: bool,
}

impl RunFault {
    fn new(code: ort::ErrorCode, message: &str) -> Self {
        Self { code, node: Node::named_in(message), is_memory: is_of_memory(message) }
    }
}

fn is_of_memory(message: &str) -> bool {
    ["bad_alloc", "bad allocation", "Failed to allocate memory"].iter().any(|text| message.contains(text))
}

impl std::fmt::Display for RunFault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.node {
            Some(Node { operator, name }) => {
                write!(formatter, "{:?} in the {operator} node {name:?}", self.code)
            }
            None => write!(formatter, "{:?}", self.code),
        }
    }
}

impl std::error::Error for RunFault {}

/// A node of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    operator: String,
    /// As the graph has it, which may be nothing.
    name: String,
}

impl Node {
    /// The node that a message of ONNX Runtime names before it comes to what is wrong.
    fn named_in(message: &str) -> Option<Self> {
        let named = message.strip_prefix("Non-zero status code returned while running ")?;
        let (operator, rest) = named.split_once(" node. Name:'")?;
        let (name, _) = rest.split_once("' Status Message: ")?;
        let is_word = operator.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        is_word.then(|| Self { operator: operator.into(), name: name.into() })
    }
}

/// What is wrong with a graph's answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputFault {
    /// Another shape than one line of so many values per row.
    #[error("a tensor of shape {found:?}, expected [{rows}, {columns}]")]
    Shape {
        /// The shape found.
        found: Vec<i64>,
        /// Rows expected.
        rows: usize,
        /// Values expected per row.
        columns: usize,
    },
    /// A sequence of maps that has not one map per row, with one number per class.
    #[error("maps that do not give each of the {classes} classes one number, for row {row}")]
    Map {
        /// The row, by its place among the checked rows.
        row: usize,
        /// Classes expected.
        classes: usize,
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
    library: PathBuf,
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
        // What fails comes back as an error; ONNX Runtime would write it to standard error as well, in a form of its own.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        Ok(Self { environment, library: library.to_path_buf() })
    }

    /// The library that was loaded.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// What the library says about itself: its version's commit and how it was built.
    pub fn build(&self) -> &'static str {
        ort::info()
    }

    /// Checks that sessions can use `provider`, with a graph of one node.
    ///
    /// # Errors
    /// [`Error::Provider`] saying why not.
    pub fn check_provider(&self, provider: ExecutionProvider) -> Result<(), Error> {
        let options = SessionOptions { execution_providers: vec![provider], ..SessionOptions::default() };
        match self.open(&providers::smallest_graph(), &options, None) {
            Ok(_) => Ok(()),
            // One that registers and cannot open the smallest session cannot be used either.
            Err(Error::Graph(source)) => {
                Err(Error::Provider { name: provider.as_str(), library: self.library.clone(), source })
            }
            Err(error) => Err(error),
        }
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
        self.session_of(&prepare(graph, output)?, reader, bindings, output, options)
    }

    /// Opens a session over a graph that [`prepare`] has rewritten, for opening several of one graph.
    ///
    /// # Errors
    /// As [`Runtime::session`].
    pub fn session_of(
        &self,
        served: &Served,
        reader: &RowReader,
        bindings: &Bindings,
        output: &Output,
        options: &SessionOptions,
    ) -> Result<Session, Error> {
        let mut inner = self.open(&served.graph, options, None)?;
        let inputs = bind(&inner, reader, bindings, &served.lookups)?;
        let reading = Reading::new(&inner, output, served)?;
        let single = Single::new(&mut inner, &inputs, &reading).map_err(Error::Run)?;
        Ok(Session { inner, nodes: served.nodes, inputs, single, reading })
    }

    /// Which execution provider runs how many nodes, as ONNX Runtime notes it itself while it scores `rows`: a file in
    /// `scratch`, which is removed again.
    ///
    /// # Errors
    /// As [`Runtime::session`] and [`Session::run`]; [`Error::Profile`] if ONNX Runtime's notes cannot be read.
    #[expect(clippy::too_many_arguments, reason = "what a session takes, and what to run through it")]
    pub fn nodes_by_provider(
        &self,
        graph: &[u8],
        reader: &RowReader,
        bindings: &Bindings,
        output: &Output,
        options: &SessionOptions,
        rows: &FeatureRows,
        scratch: &Path,
    ) -> Result<BTreeMap<String, usize>, Error> {
        let served = prepare(graph, output)?;
        let directory = tempfile::Builder::new().prefix("profile-").tempdir_in(scratch);
        let directory = directory.map_err(Error::Profile)?;
        let mut inner = self.open(&served.graph, options, Some(&directory.path().join("run")))?;
        let inputs = bind(&inner, reader, bindings, &served.lookups)?;
        let tensors = inputs.iter().map(|input| input.tensor(rows, 0, rows.len()));
        let tensors = tensors.collect::<ort::Result<Vec<_>>>().map_err(Error::Run)?;
        drop(inner.run(tensors.as_slice()).map_err(Error::Run)?);
        let file = inner.end_profiling().map_err(Error::Run)?;
        providers::count_nodes(Path::new(&file)).map_err(Error::Profile)
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
        let Output::Probabilities { name, classes, .. } = output else {
            return Err(Error::Binding("expected an output of probabilities".into()));
        };
        let inner = self.open(graph, &SessionOptions::default(), None)?;
        let inputs = bind(&inner, reader, bindings, &BTreeMap::new())?;
        check_output(&inner, name, TensorElementType::Float32)?;
        check_output(&inner, label, TensorElementType::Int64)?;
        Ok(Unmodified { inner, inputs, probabilities: name.clone(), classes: *classes, label: label.into() })
    }

    /// Runs `rows` through `graph` as it is and describes every output, for finding out which of them is the answer.
    ///
    /// # Errors
    /// [`Error::Graph`], [`Error::Binding`] or [`Error::Run`] as [`Runtime::session`] and [`Session::run`].
    pub fn observe(
        &self,
        graph: &[u8],
        reader: &RowReader,
        bindings: &Bindings,
        rows: &FeatureRows,
    ) -> Result<Vec<Observed>, Error> {
        let mut inner = self.open(graph, &SessionOptions::default(), None)?;
        let inputs = bind(&inner, reader, bindings, &BTreeMap::new())?;
        let tensors = inputs.iter().map(|input| input.tensor(rows, 0, rows.len()));
        let tensors = tensors.collect::<ort::Result<Vec<_>>>().map_err(Error::Run)?;
        let names: Vec<String> = inner.outputs().iter().map(|output| output.name().to_string()).collect();
        let outputs = inner.run(tensors.as_slice()).map_err(Error::Run)?;
        let observe = |name: &String| {
            let value = outputs::observe(&outputs[name.as_str()], rows.len()).map_err(Error::Run)?;
            Ok(Observed { name: name.clone(), value })
        };
        names.iter().map(observe).collect()
    }

    fn open(
        &self,
        graph: &[u8],
        options: &SessionOptions,
        profile: Option<&Path>,
    ) -> Result<ort::session::Session, Error> {
        let build = || -> ort::Result<ort::session::builder::SessionBuilder> {
            let mut builder = ort::session::Session::builder(&self.environment)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(options.intra_op_threads)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?;
            if let Some(profile) = profile {
                builder = builder.with_profiling(profile)?;
            }
            Ok(builder)
        };
        let mut builder = build().map_err(Error::Graph)?;
        for provider in &options.execution_providers {
            provider.register(&mut builder).map_err(|source| Error::Provider {
                name: provider.as_str(),
                library: self.library.clone(),
                source,
            })?;
        }
        builder.commit_from_memory(graph).map_err(Error::Graph)
    }
}

/// Rewrites `graph` for serving, see [`inspect::prepare`].
///
/// # Errors
/// [`Error::Binding`] if it is no graph with this output.
pub fn prepare(graph: &[u8], output: &Output) -> Result<Served, Error> {
    inspect::prepare(graph, output).map_err(|error| Error::Binding(error.to_string()))
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionOptions {
    /// Threads within one operator; 1 runs on the calling thread.
    pub intra_op_threads: usize,
    /// What runs the nodes, the preferred first. The CPU runs what none of them can.
    pub execution_providers: Vec<ExecutionProvider>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { intra_op_threads: 1, execution_providers: Vec::new() }
    }
}

/// A graph ready to run, for one thread at a time.
pub struct Session {
    inner: ort::session::Session,
    nodes: usize,
    /// In the order of the graph's inputs.
    inputs: Vec<Input>,
    single: Single,
    reading: Reading,
}

/// The tensors of a run of one row, made once and filled anew for each: making them would cost half as much as the run.
struct Single {
    inputs: Vec<SessionInputValue<'static>>,
    /// Names the output and the tensor that takes it, where the graph can be told.
    options: Option<RunOptions<HasSelectedOutputs>>,
}

impl Single {
    fn new(inner: &mut ort::session::Session, inputs: &[Input], reading: &Reading) -> ort::Result<Self> {
        let inputs = inputs.iter().map(Input::blank).collect::<ort::Result<Vec<_>>>()?;
        // A declared shape may be wrong, so that a run has to tell it; a graph that a blank row fails tells nothing.
        let options = match inner.run(inputs.as_slice()) {
            Ok(outputs) => reading.preallocate(&outputs)?,
            Err(_) => None,
        };
        let options = options.filter(|options| inner.run_with_options(inputs.as_slice(), options).is_ok());
        Ok(Self { inputs, options })
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

/// The answers to some rows: as many numbers each as [`Task::width`] says.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    width: usize,
    values: Vec<f64>,
}

/// The answer to one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Score {
    /// The probability of the positive class, or the value.
    One(f64),
    /// One probability per class.
    Classes(Box<[f64]>),
}

impl Score {
    /// The numbers.
    pub fn values(&self) -> &[f64] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Classes(values) => values,
        }
    }
}

impl Scores {
    /// The answers to rows, as many numbers each as `width`, row after row.
    ///
    /// # Panics
    /// If the last row has fewer.
    pub fn new(width: usize, values: Vec<f64>) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "{} values, {width} a row", values.len());
        Self { width, values }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The numbers of each row.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.values.chunks_exact(self.width)
    }

    /// All numbers, row after row: the probabilities of the positive class of a binary model, the values of a regression.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The answer to each row.
    pub fn scores(&self) -> impl ExactSizeIterator<Item = Score> {
        self.rows().map(|row| match row {
            [one] => Score::One(*one),
            many => Score::Classes(many.into()),
        })
    }
}

impl Session {
    /// How many nodes of the graph run.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// What is answered about a row.
    pub fn task(&self) -> Task {
        self.reading.task()
    }

    /// Whether the graph answers in float32: its numbers then have no more digits than that.
    pub fn is_float32(&self) -> bool {
        self.reading.is_float32()
    }

    /// Runs every checked row and checks what comes back.
    ///
    /// # Errors
    /// [`Error::Run`] if ONNX Runtime fails, [`Error::Output`] if the answer is not one finite number, in [0, 1] for
    /// probabilities, per row and class.
    pub fn run(&mut self, rows: &FeatureRows) -> Result<Scores, Error> {
        Ok(self.run_unless(rows, &|| false)?.expect("nothing stops it"))
    }

    /// As [`Session::run`], but asks before each further part of [`MAX_ROWS_PER_RUN`] rows whether to stop; None if it did.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_unless(
        &mut self,
        rows: &FeatureRows,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Scores>, Error> {
        let width = self.reading.task().width();
        let mut values = Vec::with_capacity(rows.len() * width);
        let whole = self.parts(rows, stop, |reading, outputs, from, count| {
            reading.read(outputs, from, count, &mut values)
        })?;
        Ok(whole.then_some(Scores { width, values }))
    }

    /// Runs every checked row and returns the graph's own numbers, before a link and unchecked but for their shape: one line
    /// of [`Output::columns`] per row.
    ///
    /// # Errors
    /// [`Error::Run`] if ONNX Runtime fails, [`Error::Output`] if the answer is of another shape.
    pub fn run_raw(&mut self, rows: &FeatureRows) -> Result<Vec<f64>, Error> {
        let mut values = Vec::new();
        self.parts(rows, &|| false, |reading, outputs, from, count| {
            reading.read_raw(outputs, from, count, &mut values)
        })?;
        Ok(values)
    }

    /// False if it was stopped before the last part.
    fn parts(
        &mut self,
        rows: &FeatureRows,
        stop: &dyn Fn() -> bool,
        mut read: impl FnMut(&Reading, &ort::session::SessionOutputs<'_>, usize, usize) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let Self { inner, inputs, single, reading, .. } = self;
        for from in (0..rows.len()).step_by(MAX_ROWS_PER_RUN) {
            if from > 0 && stop() {
                return Ok(false);
            }
            let to = rows.len().min(from + MAX_ROWS_PER_RUN);
            let outputs = if to - from == 1 {
                for (input, tensor) in inputs.iter().zip(&mut single.inputs) {
                    input.refill(tensor, rows, from).map_err(Error::Run)?;
                }
                if let Some(options) = &single.options
                    && let Ok(outputs) = inner.run_with_options(single.inputs.as_slice(), options)
                {
                    read(reading, &outputs, from, 1)?;
                    continue;
                }
                // An answer that does not fit the tensor made for it fails the run; it has to be seen to be named.
                inner.run(single.inputs.as_slice())
            } else {
                let tensors = inputs.iter().map(|input| input.tensor(rows, from, to));
                let tensors = tensors.collect::<ort::Result<Vec<_>>>().map_err(Error::Run)?;
                inner.run(tensors.as_slice())
            };
            read(reading, &outputs.map_err(Error::Run)?, from, to - from)?;
        }
        Ok(true)
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
            let tensors = self.inputs.iter().map(|input| input.tensor(rows, from, to));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_run_of_rows_holds_no_value() {
        let said = |message: &str| RunFault::new(ort::ErrorCode::InvalidArgument, message).to_string();
        let message = "Non-zero status code returned while running Gather node. Name:'table/at' Status Message: indices \
                       element out of data bounds, idx=4815162 must be within the inclusive range [-100,99]";
        assert_eq!(said(message), "InvalidArgument in the Gather node \"table/at\"");
        for other in [
            "4815162",
            "Non-zero status code returned while running 4815162 node 4815162",
            "Non-zero status code returned while running Gather node. Name:'' 4815162",
            "Non-zero status code returned while running a 4815162 node. Name:'' Status Message: 4815162",
        ] {
            assert_eq!(said(other), "InvalidArgument", "{other}");
        }
    }

    #[test]
    fn that_memory_ran_out_is_known_without_the_message() {
        let of = |message| Error::RunOfRows(RunFault::new(ort::ErrorCode::GenericFailure, message));
        assert!(of("Failed to allocate memory for requested buffer of size 17179869184").is_memory());
        assert!(!of("idx=4815162 must be within the inclusive range [-100,99]").is_memory());
    }
}
