//! A model from outside: an unknown graph, a schema and some rows → everything that a package needs, with the reasons in
//! plain words, or the one thing that is in the way.
//!
//! Runs in a child process with limits, since nothing vouches for the file. [`bindings`] says which features reach which
//! input, [`output`] where the answer is and what it means, [`classes`] what
//! its columns are called, [`rows`] reads the reference.

mod bindings;
mod classes;
mod output;
mod rows;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scoregate_schemas::FeatureSchema;
use scoregate_schemas::feature_schema::{self, Kind};
use scoregate_schemas::manifest::{Bindings, Link, Metrics, Output, Task};
use scoregate_schemas::onnx::ModelProto;
use serde::{Deserialize, Serialize};

pub use self::output::one_number;
use self::rows::ReferenceRows;
use crate::acceptance::accept::{Trial, try_rows};
use crate::acceptance::{self, Golden, Refusal, lint};
use crate::explain::importance::Importance;
use crate::explain::trees::TABLE_BYTES;
use crate::explain::{self, Explainer};
use crate::features::{Column, FeatureRows, RowReader, probe};
use crate::metrics::{self, Bootstrap};
use crate::package::{self, GoldenRow, read_golden};
use crate::reference::{self, FeatureReference, Histogram, Observed, Reference};
use crate::runtime::{self, Runtime, Session, SessionOptions};

/// Rows that are run to find out what the outputs hold.
const TRIED_ROWS: usize = 4_000;

/// Rows drawn from the schema where neither golden rows nor a reference show what rows look like.
const PROBE_ROWS: usize = 64;

/// How long explaining reference rows may take.
const EXPLAINED: Duration = Duration::from_secs(5);

/// Rows that all resamples of a bootstrap have together.
const RESAMPLED_ROWS: usize = 20_000_000;

/// What to look at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The ONNX file.
    pub model: PathBuf,
    /// The feature schema's file.
    pub schema: PathBuf,
    /// A CSV of reference rows.
    pub reference: Option<PathBuf>,
    /// Golden rows, one JSON object per line.
    pub golden: Option<PathBuf>,
    /// What is said rather than inferred.
    pub overrides: Overrides,
    /// What tells the rest, where the schema is the live version's.
    pub live: Option<Live>,
}

/// What the live version takes and answers. It tells what neither the graph nor anybody says, where inputs or outputs are called as its
/// are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// How features reach its graph.
    pub bindings: Bindings,
    /// Where its answer is.
    pub output: Output,
}

impl Live {
    /// The column of its positive class, for a graph that does not name its classes and answers in the same output.
    fn positive(&self, reasons: &mut Vec<String>) -> usize {
        let at = self.output.positive();
        reasons.push(format!("column {at} is the positive class's, as it is the live version's"));
        at
    }
}

/// What a person says about a graph, in place of what would be inferred.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Overrides {
    /// Input names with the features that they take, in the order of their columns.
    pub inputs: Vec<(String, Vec<String>)>,
    /// The outputs that hold the answer.
    pub outputs: Vec<String>,
    /// The link, or that there is none.
    pub link: Option<Option<Link>>,
    /// What is answered.
    pub task: Option<TaskName>,
    /// The positive class, by its name in the graph or its column.
    pub positive: Option<String>,
    /// Bindings as the manifest writes them.
    pub bindings: Option<Bindings>,
    /// Output as the manifest writes it.
    pub output: Option<Output>,
    /// How far answers may be from the golden rows'.
    pub tolerance: f64,
}

/// What is answered, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskName {
    /// The probability of one of two classes.
    Binary,
    /// One probability per class.
    Multiclass,
    /// A value.
    Regression,
}

impl TaskName {
    /// As flags and messages say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Multiclass => "multiclass",
            Self::Regression => "regression",
        }
    }
}

/// What was found out, ready to be published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Examined {
    /// The digest of the file that was examined, `sha256:…`.
    pub digest: String,
    /// The program that wrote the graph, with its version.
    pub producer: String,
    /// Operator sets, such as `ai.onnx.ml 3`.
    pub opsets: Vec<String>,
    /// The operators and how often each occurs.
    pub operators: Vec<(String, usize)>,
    /// How features reach the graph.
    pub bindings: Bindings,
    /// Where the answer is.
    pub output: Output,
    /// The labels.
    pub labels: Vec<String>,
    /// Why bindings, output and labels are what they are.
    pub reasons: Vec<String>,
    /// What is changed in the graph when it is served.
    pub changes: Vec<String>,
    /// What a person should know before relying on the model.
    pub warnings: Vec<String>,
    /// How the golden rows came out.
    pub golden: Option<Golden>,
    /// Of golden rows that give both classes' probabilities the one that is compared.
    pub golden_column: usize,
    /// The digests of schema and golden rows as they were read, `sha256:…`.
    pub read: Vec<String>,
    /// Metrics on the reference, where it has the target.
    pub metrics: Option<Metrics>,
    /// Distributions and background.
    pub reference: Option<Reference>,
    /// How long a run takes.
    pub latency: Latency,
}

/// The fastest of some runs; microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// One row.
    pub one_us: f64,
    /// 1,000 rows.
    pub thousand_us: f64,
}

/// What is in the way of serving a model.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The schema is none.
    #[error(transparent)]
    Schema(#[from] feature_schema::Error),
    /// The file is no model that is taken.
    #[error(transparent)]
    Lint(#[from] lint::Fault),
    /// Features and inputs do not meet.
    #[error("{0}")]
    Bindings(String),
    /// The number of columns is open.
    #[error("{0}")]
    DynamicColumns(String),
    /// The answer cannot be found.
    #[error("{0}")]
    Output(String),
    /// The answer is unusable.
    #[error("{0}")]
    Answer(String),
    /// Scores without a link.
    #[error("{0}")]
    Link(String),
    /// The positive class cannot be told.
    #[error("{0}")]
    Positive(String),
    /// Labels and columns do not meet.
    #[error("{0}")]
    Labels(String),
    /// The reference is unusable.
    #[error("{}: {problem}", .path.display())]
    Reference {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        problem: String,
    },
    /// The golden rows cannot be read.
    #[error(transparent)]
    Golden(#[from] package::Error),
    /// The model is refused as any version would be.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<runtime::Error> for Fault {
    fn from(error: runtime::Error) -> Self {
        Self::Refused(error.into())
    }
}

impl Fault {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "unreadable",
            Self::Schema(_) => "invalid_schema",
            Self::Lint(fault) => fault.code(),
            Self::Bindings(_) => "bindings_unclear",
            Self::DynamicColumns(_) => "dynamic_columns",
            Self::Output(_) => "output_unclear",
            Self::Answer(_) => "model_output_invalid",
            Self::Link(_) => "link_unproved",
            Self::Positive(_) => "positive_unclear",
            Self::Labels(_) => "labels_mismatch",
            Self::Reference { .. } => "invalid_reference",
            Self::Golden(_) => "invalid_golden",
            Self::Refused(refusal) => refusal.code(),
        }
    }
}

impl Fault {
    /// Whether it is the model's or that of what was sent with it; else nobody could look at them.
    pub fn is_known(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. }
                | Self::Refused(Refusal::Runtime(
                    runtime::Error::LibraryMissing { .. }
                        | runtime::Error::Library { .. }
                        | runtime::Error::Provider { .. }
                ))
        )
    }

    /// A sentence for clients: without paths, and without what stands in a row.
    pub fn reason(&self) -> String {
        match self {
            Self::Io { path, .. } => {
                format!("cannot read {}", path.file_name().unwrap_or_default().to_string_lossy())
            }
            Self::Golden(package::Error::Golden { line, .. }) => format!(
                "line {line} of the golden rows is no {{\"features\":{{…}},\"expected\":number or one number per class}}"
            ),
            Self::Golden(error) => error.reason(),
            Self::Reference { problem, .. } => format!("the reference cannot be used: {problem}"),
            Self::Refused(refusal) => refusal.reason(),
            other => other.to_string(),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Fault> {
    std::fs::read(path).map_err(|source| Fault::Io { path: path.into(), source })
}

/// Finds out what `request`'s model is and whether it may be served.
///
/// # Errors
/// The [`Fault`] that is in the way.
pub fn examine(runtime: &Runtime, request: &Request) -> Result<Examined, Fault> {
    let schema_text = read_file(&request.schema)?;
    // Rows of a reference need not say whom they are about.
    let schema = FeatureSchema::parse(&schema_text)?.with_optional_entity();
    let graph = read_file(&request.model)?;
    let model = lint::lint(&graph, &lint::Limits::default())?;
    let proto = model.graph.as_ref().ok_or(lint::Fault::NoGraph)?;
    let mut read = vec![package::digest_of(&schema_text)];
    let golden = match &request.golden {
        Some(path) => {
            let text = read_file(path)?;
            read.push(package::digest_of(&text));
            read_golden(path, &text)?
        }
        None => Vec::new(),
    };
    let overrides = &request.overrides;
    let (mut reasons, mut warnings) = (Vec::new(), Vec::new());
    let bindings = match &overrides.bindings {
        Some(bindings) => {
            package::check_bindings(bindings, &schema).map_err(Fault::Bindings)?;
            reasons.push("the bindings are those of the file".into());
            bindings.clone()
        }
        None => {
            let inputs = bindings::graph_inputs(proto);
            let live = request.live.as_ref().filter(|_| overrides.inputs.is_empty());
            match live.filter(|live| bindings::are_of(&live.bindings, &inputs, &schema)) {
                Some(live) => {
                    reasons.push(
                        "the inputs are called as the live version's: they take the same features".into(),
                    );
                    live.bindings.clone()
                }
                None => bindings::infer(&inputs, &schema, &overrides.inputs, &mut reasons)?,
            }
        }
    };
    let reader = RowReader::new(&schema, &bindings);
    let reference =
        request.reference.as_deref().map(|path| rows::read(path, &schema, &reader)).transpose()?;
    let golden_rows = acceptance::read_rows(golden.iter().map(|row| &row.features), &reader)
        .map_err(|(row, message)| Refusal::GoldenRow { row: row + 1, message })?;
    let tried = tried(&schema, &reader, &golden, reference.as_ref())?;
    let observed = runtime.observe(&graph, &reader, &bindings, &tried)?;
    let evidence = output::Evidence {
        graph: proto,
        observed: &observed,
        schema: &schema,
        overrides,
        golden: &golden[..golden.len().min(TRIED_ROWS)],
        is_real: !golden.is_empty() || reference.is_some(),
        live: request.live.as_ref(),
    };
    let found = match &overrides.output {
        Some(output) => output::stated(output, &evidence, &mut reasons)?,
        None => output::infer(&evidence, &mut reasons)?,
    };
    let output::Found { output, labels, classes } = found;
    package::check_labels(&labels).map_err(Fault::Labels)?;
    let golden_column = if output.columns() == 1 { 1 } else { output.positive() };
    let golden_list = output::one_number(golden, output.task(), golden_column);
    let mut session = runtime.session(&graph, &reader, &bindings, &output, &SessionOptions::default())?;
    // The same rows through the path that serves, whatever was observed on the way.
    session.run(&tried)?;
    let golden = if golden_list.is_empty() {
        warnings.push(no_golden(&model, output.task()));
        None
    } else {
        let scores = session.run(&golden_rows)?;
        let tolerance = acceptance::Tolerance::of(output.task(), overrides.tolerance);
        Some(acceptance::compare_golden(&golden_list, scores.rows(), tolerance)?)
    };
    let changes = crate::inspect::prepare(&graph, &output)
        .map_err(|error| runtime::Error::Binding(error.to_string()))?
        .changes;
    let (mut metrics, mut kept) = (None, None);
    match &reference {
        None => warnings.push(
            "no reference rows: there are no metrics, no distributions to compare live traffic with, and no background for \
             explanations; add --reference train.csv"
                .into(),
        ),
        Some(rows) => {
            if let Some((count, first)) = &rows.refused {
                warnings.push(format!("{count} reference row(s) do not pass the schema and are left out; {first}"));
            }
            if !rows.ignored.is_empty() {
                warnings.push(format!("reference columns that the schema does not name: {}", rows.ignored.join(", ")));
            }
            let scores = session.run(&rows.checked)?;
            let named = Named { labels: &labels, classes: classes.as_deref() };
            metrics = measure(rows, scores.values(), &schema, &output, named, &mut warnings);
            let mut frozen = freeze(rows, scores.values(), &reader, output.task());
            let source = explain::Source {
                graph: &graph,
                bindings: &bindings,
                output: &output,
                reader: &reader,
                background: &frozen.background,
                covers: None,
                runtime,
                table_bytes: TABLE_BYTES,
            };
            let found = explainable(&source, &rows.checked, scores.values(), &mut session)?;
            (frozen.importance, frozen.covers) = found;
            kept = Some(frozen);
        }
    }
    // As every gateway tries a version before it serves it: one that would be refused there is not published here.
    let golden_features = golden_list.iter().map(|row| &row.features);
    let background = kept.iter().flat_map(|reference: &Reference| &reference.background);
    try_rows(&Trial::of(golden_features.chain(background), &schema, &reader), &mut session)?;
    let latency = time(&mut session, &tried)?;
    Ok(Examined {
        digest: package::digest_of(&graph),
        producer: producer(&model),
        opsets: opsets(&model),
        operators: operators(&model),
        bindings,
        output,
        labels,
        reasons,
        changes,
        warnings,
        golden,
        golden_column,
        read,
        metrics,
        reference: kept,
        latency,
    })
}

/// Which features move the model's answers most, and which rows take which branch of its trees; nothing where its answers cannot
/// be explained, or it has none.
fn explainable(
    source: &explain::Source<'_>,
    rows: &FeatureRows,
    answers: &[f64],
    session: &mut Session,
) -> Result<(Option<Importance>, Option<Vec<u64>>), runtime::Error> {
    let Some(explainer) = Explainer::new(source, session)? else { return Ok((None, None)) };
    let covers = explainer.covers(rows);
    let mut run = |rows: &FeatureRows| Ok(session.run(rows)?.values().to_vec());
    match explainer.importance(rows, answers, EXPLAINED, &mut run) {
        // What the model makes of rows that no client ever sent is no reason to refuse it.
        Err(runtime::Error::Output(_)) => Ok((None, covers)),
        found => Ok((found?, covers)),
    }
}

/// The rows that show what the outputs hold: the golden ones first, then the reference's; else some drawn from the schema.
fn tried(
    schema: &FeatureSchema,
    reader: &RowReader,
    golden: &[GoldenRow],
    reference: Option<&ReferenceRows>,
) -> Result<FeatureRows, Fault> {
    let more = TRIED_ROWS.saturating_sub(golden.len());
    let mut others = reference.map_or_else(Vec::new, |rows| rows.raw(0..rows.len().min(more)));
    if golden.is_empty() && others.is_empty() {
        others = probe::rows(schema, PROBE_ROWS);
    }
    let rows: Vec<_> = golden.iter().take(TRIED_ROWS).map(|row| &row.features).chain(&others).collect();
    acceptance::read_rows(rows, reader)
        .map_err(|(row, message)| Fault::Refused(Refusal::GoldenRow { row: row + 1, message }))
}

/// What is missed without golden rows, and how to write them.
fn no_golden(model: &ModelProto, task: Task) -> String {
    let producer = model.producer_name().to_lowercase();
    let library = if producer.contains("catboost") {
        "CatBoost's"
    } else if producer.contains("onnxmltools") {
        "XGBoost's or LightGBM's"
    } else if producer.contains("skl2onnx") {
        "scikit-learn's"
    } else {
        "the model's own library's"
    };
    let (call, expected) = match task {
        Task::Binary => ("predict_proba(X)[:, 1]", "0.18"),
        Task::Multiclass { .. } => ("predict_proba(X)", "[0.1, 0.7, 0.2]"),
        Task::Regression => ("predict(X)", "12.5"),
    };
    format!(
        "no golden rows: nothing proves that the graph answers as the model did before it was converted. Write some 200 rows \
         of {library} {call}, one JSON object per line: {{\"features\": {{…}}, \"expected\": {expected}}}, and add --golden \
         golden.jsonl"
    )
}

/// The program that wrote the graph and its version, on one line: both come out of a file that nobody vouches for.
fn producer(model: &ModelProto) -> String {
    let clean = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (name, version) = (clean(model.producer_name()), clean(model.producer_version()));
    let name: String =
        if name.is_empty() { "an unnamed producer".into() } else { name.chars().take(60).collect() };
    // CatBoost puts its whole build log here.
    if version.is_empty() || version.len() > 40 { name } else { format!("{name} {version}") }
}

fn opsets(model: &ModelProto) -> Vec<String> {
    let domain = |name: &str| if name.is_empty() { "ai.onnx".to_string() } else { name.to_string() };
    model.opset_import.iter().map(|opset| format!("{} {}", domain(opset.domain()), opset.version())).collect()
}

fn operators(model: &ModelProto) -> Vec<(String, usize)> {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for node in model.graph.iter().flat_map(|graph| &graph.node) {
        *counts.entry(node.op_type().to_string()).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// The classes by their names.
#[derive(Clone, Copy)]
struct Named<'n> {
    labels: &'n [String],
    /// As the graph names them, in the order of its columns.
    classes: Option<&'n [String]>,
}

impl Named<'_> {
    /// Whether a cell of the target column says the positive class of two, where it says either.
    fn is_positive(&self, cell: &str, schema: &FeatureSchema, output: &Output) -> Option<bool> {
        if let Some(stated) = schema.stated_positive() {
            return Some(classes::is_value(cell, stated));
        }
        let positive = if output.columns() == 1 { 1 } else { output.positive() };
        let is = |place: usize, usual: bool| {
            let class =
                self.classes.and_then(|classes| classes.get(if usual { positive } else { 1 - positive }));
            self.labels.get(place).is_some_and(|label| label == cell)
                || class.is_some_and(|class| classes::is_value(cell, &class.as_str().into()))
        };
        match (is(1, true), is(0, false)) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            // Neither name is there: no and yes as everyone writes them.
            _ if classes::is_value(cell, &true.into()) => Some(true),
            _ if classes::is_value(cell, &false.into()) => Some(false),
            _ => None,
        }
    }

    /// The column of the class that a cell of the target column says.
    fn column(&self, cell: &str) -> Option<usize> {
        let of_graph =
            || self.classes?.iter().position(|class| classes::is_value(cell, &class.as_str().into()));
        let of_labels = || self.labels.iter().position(|label| label == cell);
        of_graph().or_else(of_labels)
    }
}

/// Metrics on the reference; none where it has no target, or none that can be read.
fn measure(
    rows: &ReferenceRows<'_>,
    scores: &[f64],
    schema: &FeatureSchema,
    output: &Output,
    named: Named<'_>,
    warnings: &mut Vec<String>,
) -> Option<Metrics> {
    let outcomes = rows.outcomes.as_ref()?;
    let width = output.task().width();
    let known = outcomes
        .iter()
        .zip(scores.chunks_exact(width))
        .filter_map(|(outcome, line)| Some((outcome.as_deref()?, line)));
    let (measured, used) = match output.task() {
        Task::Binary => {
            let (probabilities, outcomes): (Vec<f64>, Vec<bool>) = known
                .filter_map(|(outcome, line)| Some((line[0], named.is_positive(outcome, schema, output)?)))
                .unzip();
            // Intervals of many rows are narrow: they need fewer resamples, each of which costs more.
            let resamples = (RESAMPLED_ROWS / probabilities.len().max(1)).clamp(20, metrics::RESAMPLES);
            let bootstrap = Bootstrap { resamples, seed: 42 };
            let measured = metrics::evaluate(&probabilities, &outcomes, schema.threshold, bootstrap);
            (measured.map(|found| Metrics::Binary(Box::new(found))), probabilities.len())
        }
        Task::Multiclass { .. } => {
            let known: Vec<(usize, &[f64])> =
                known.filter_map(|(outcome, line)| Some((named.column(outcome)?, line))).collect();
            (metrics::evaluate_classes(&known).map(Metrics::Multiclass), known.len())
        }
        Task::Regression => {
            let number = |cell: &str| cell.parse::<f64>().ok().filter(|number| number.is_finite());
            let known: Vec<(f64, f64)> =
                known.filter_map(|(outcome, line)| Some((number(outcome)?, line[0]))).collect();
            (metrics::evaluate_values(&known).map(Metrics::Regression), known.len())
        }
    };
    if used > 0 && used < outcomes.len() {
        warnings.push(format!(
            "{} of {} reference rows are in no metric: their target is empty or no class of the model",
            outcomes.len() - used,
            outcomes.len()
        ));
    }
    measured
        .map_err(|error| {
            warnings.push(format!("no metrics: the reference's target column cannot be used: {error}"));
        })
        .ok()
}

/// Distributions and background of the reference.
fn freeze(rows: &ReferenceRows<'_>, scores: &[f64], reader: &RowReader, task: Task) -> Reference {
    let columns = rows.checked.columns.iter().zip(&rows.missing);
    let features = reader.features().zip(columns).map(|(field, (column, missing))| {
        let missing = |row: usize| missing[row];
        let observed = match column {
            Column::Number(values) => Observed::Numbers(
                values.iter().enumerate().map(|(row, value)| (!missing(row)).then_some(*value)).collect(),
            ),
            Column::Category(column) => {
                let listed = match &field.kind {
                    Kind::Category { values: Some(values) } => values.as_slice(),
                    _ => &[],
                };
                let text = |code: u32| -> &str {
                    let code = code as usize;
                    listed
                        .get(code)
                        .map_or_else(|| column.others[code - listed.len()].as_ref(), String::as_str)
                };
                let codes = column.codes.iter().enumerate();
                Observed::Categories(codes.map(|(row, code)| (!missing(row)).then(|| text(*code))).collect())
            }
        };
        FeatureReference::freeze(&field.name, &observed)
    });
    // Of several classes the most likely one's probability: what a label would be taken from.
    let score =
        scores.chunks_exact(task.width()).map(|line| line.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    Reference {
        format: reference::FORMAT,
        rows: rows.len() as u64,
        features: features.collect(),
        score: Histogram::freeze(score),
        background: rows.raw(reference::background_rows(rows.len(), 42)),
        importance: None,
        covers: None,
    }
}

/// The fastest of some passes over single rows, and of some runs of 1,000. The rows differ: a processor that sees the same
/// path through a tree again and again foresees it.
fn time(session: &mut Session, rows: &FeatureRows) -> Result<Latency, Fault> {
    let singles: Vec<FeatureRows> = (0..rows.len().min(200)).map(|row| rows.single(row)).collect();
    let thousand = [rows.cycled(1_000)];
    let mut fastest = |runs: &[FeatureRows], passes: usize| -> Result<f64, Fault> {
        let mut best = Duration::MAX;
        for _ in 0..passes {
            let started = Instant::now();
            for rows in runs {
                session.run(rows)?;
            }
            best = best.min(started.elapsed());
        }
        Ok(best.as_secs_f64() * 1e6 / runs.len().max(1) as f64)
    };
    Ok(Latency { one_us: fastest(&singles, 5)?, thousand_us: fastest(&thousand, 5)? })
}
