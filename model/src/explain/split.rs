//! Splits a graph: what comes before its margin, which is followed by hand, the margin, and what comes after, which is known by what
//! it answers to real rows alone.
//!
//! The margin is the last value that the whole answer goes through and that is a sum over features, or the answer of a tree
//! ensemble over columns which each depend on one feature. Nothing of it is believed before [`Split::check`] has seen ONNX Runtime
//! compute the same.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;
use scoregate_schemas::feature_schema::{Field, Missing, Unknown};
use scoregate_schemas::manifest::{Bindings, Element, Link, Output, Task};
use scoregate_schemas::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, TypeTensorType, TypeValue, ValueInfoProto,
};

use super::encode::{Encoder, Id, Part};
use super::explanation::Space;
use super::follow::{Column, Filled, Opsets, Sum, Tensor, Trace, uses_of};
use super::linear::LinearForm;
use super::trees::{self, Ensemble, Precision, Unsupported};
use crate::acceptance::lint::tensors::{DOUBLE, FLOAT};
use crate::encoding::Fill;
use crate::features::{FeatureRows, RowReader};
use crate::runtime::{self, Runtime, SessionOptions, apply_link};

/// How far the margin that is followed by hand may be from ONNX Runtime's, relative to it, or to the largest one, or to 1: the sum
/// of a thousand trees in float32 is off by some 1e-6 of the largest sum on the way.
const MARGIN_TOLERANCE: f64 = 1e-5;

/// How far it may be off for each unit that the terms of a linear margin add up to: float32 rounds each of them, and each sum of
/// them, by 6e-8 of it at most. Where terms are much larger than their sum, ONNX Runtime itself knows it no better.
const TERM_TOLERANCE: f64 = 1e-6;

/// How far a link may be from the answer, absolute for probabilities and relative for values: both are float32. Small
/// probabilities have to be nearer.
const ANSWER_TOLERANCE: f64 = 1e-5;

/// How far a small probability may be, relative to itself, and by how much more because it may have been taken from 1.
const SMALL_TOLERANCE: (f64, f64) = (1e-3, 2e-7);

/// The name of the trainer's value that is the log-odds before calibration, in graphs that name the trainer as their producer.
const TRAINER: (&str, &str) = ("scoregate-trainer", "log_odds");

/// Why there is no closed form for a graph.
#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    /// The bytes are no ONNX model.
    #[error("the graph cannot be read: {0}")]
    NotOnnx(#[from] prost::DecodeError),
    /// Features that cannot be bound, which no version that is served has.
    #[error("the graph's inputs cannot be followed: {0}")]
    Inputs(String),
    /// No value is a sum over features or an ensemble of trees.
    #[error("the answer goes through no single sum over features and no single ensemble of trees")]
    NoMargin,
    /// Trees, and something else besides.
    #[error("the answer is put together from several models, tree ensembles among them")]
    Ensembles,
    /// Trees over columns that mix features.
    #[error(
        "column {0} of what the trees take depends on several features, or on steps that are not followed"
    )]
    Mixed(usize),
    /// Trees over columns that may differ in the last digit.
    #[error(
        "column {0} of what the trees take goes through a function whose last digit is the runtime's own"
    )]
    Inexact(usize),
    /// Trees that are no plain sum.
    #[error("{0}")]
    Trees(#[from] Unsupported),
    /// The graph cannot be cut at the margin.
    #[error("ONNX Runtime does not run the graph up to its margin: {0}")]
    Cut(#[source] runtime::Error),
    /// The margin is not what was thought.
    #[error("the margin comes out as {found} for a background row, and ONNX Runtime has {expected}")]
    Differs {
        /// As it is followed by hand.
        found: f64,
        /// ONNX Runtime's.
        expected: f64,
    },
    /// The answer is not a function of the margin that is known.
    #[error("the answer does not follow from the margin in a way that is known")]
    Link,
}

/// What margins are computed by.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// Weighted sums of encoded columns.
    Linear(LinearForm),
    /// A sum of trees over them.
    Trees {
        /// The trees.
        ensemble: Ensemble,
        /// What turns rows into columns; its players are those of the trees.
        encoder: Encoder,
    },
}

impl Form {
    /// What turns rows into columns.
    pub(super) fn encoder(&self) -> &Encoder {
        match self {
            Self::Linear(form) => form.encoder(),
            Self::Trees { encoder, .. } => encoder,
        }
    }

    /// Number of margins.
    pub(super) fn outputs(&self) -> usize {
        match self {
            Self::Linear(form) => form.outputs(),
            Self::Trees { ensemble, .. } => ensemble.outputs(),
        }
    }

    /// Writes the margins of an encoded row, one per output.
    ///
    /// # Panics
    /// If there is not one column for each of the encoder's, or not one margin per output.
    pub(super) fn margin(&self, encoded: &[f64], margins: &mut [f64]) {
        match self {
            Self::Linear(form) => form.margin(encoded, margins),
            Self::Trees { ensemble, .. } => ensemble.margin(encoded, margins),
        }
    }

    /// The one margin that is the outputs' sum with these weights, plus a constant.
    fn combine(self, weights: &[f64], constant: f64) -> Self {
        match self {
            Self::Linear(form) => Self::Linear(form.combine(weights, constant)),
            Self::Trees { ensemble, encoder } => {
                Self::Trees { ensemble: ensemble.combine(weights, constant), encoder }
            }
        }
    }
}

/// A graph that was cut at its margin, before anything of it is proved.
#[derive(Debug)]
pub(super) struct Split {
    form: Form,
    /// The graph up to the margin, the bytes of an ONNX file.
    cut: Vec<u8>,
    /// The name of the value that holds the margin, or what a node makes of it without its link.
    value: String,
    /// Whether the margin is log-odds where the answer only rises with it.
    is_logistic: bool,
}

/// A margin that was found to be ONNX Runtime's, and what it is to the answer.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    /// The margin: of the positive class, one per class in the order of the labels, or the value.
    pub(super) form: Form,
    /// What it is measured in.
    pub(super) space: Space,
    /// What the answer is to it.
    pub(super) follows: Follows,
}

/// How the answer follows from the margin, or from those of all classes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Follows {
    /// It is the same. Differences are held against a number's size, or this where it is smaller; none for probabilities.
    Same(Option<f64>),
    /// Its logistic function.
    Logistic,
    /// The softmax of all.
    Softmax,
    /// The logistic functions of all, over their sum.
    Normalised,
    /// It rises with the margin: calibrated. Margins and answers of background rows, ascending.
    Rises(Vec<(f64, f64)>),
}

impl Follows {
    /// Whether the answer is a known function of the margin and of nothing else.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self, Self::Rises(_))
    }

    /// Whether `answer` is what follows from `margins`, as many numbers each as there are classes, or one: told for a row that was
    /// not there when the margin was found.
    pub(super) fn confirms(&self, margins: &[f64], answer: &[f64]) -> bool {
        let (relative, absolute) = SMALL_TOLERANCE;
        let is_near = |(found, expected): (f64, &f64)| {
            // Near 1 as near 0: there log-odds are told by what is left.
            let least = expected.min(1.0 - expected).abs();
            let tolerance = (LATER * (relative * least + absolute)).min(LATER * ANSWER_TOLERANCE);
            (found - expected).abs() <= tolerance
        };
        let mut line = margins.to_vec();
        match self {
            Self::Same(Some(unit)) => margins.iter().zip(answer).all(|(margin, expected)| {
                (margin - expected).abs() <= LATER * ANSWER_TOLERANCE * expected.abs().max(*unit)
            }),
            Self::Same(None) => line.into_iter().zip(answer).all(is_near),
            Self::Logistic => line.into_iter().map(logistic).zip(answer).all(is_near),
            Self::Softmax => {
                apply_link(Some(Link::Softmax), &mut line);
                line.into_iter().zip(answer).all(is_near)
            }
            Self::Normalised => {
                normalise(&mut line);
                line.into_iter().zip(answer).all(is_near)
            }
            Self::Rises(known) => {
                let ([margin], [answer]) = (margins, answer) else { return false };
                let above = known.partition_point(|(other, _)| other < margin);
                let below = known[..above].last();
                let reaches = below.is_none_or(|(_, low)| *answer >= low - LATER * ANSWER_TOLERANCE);
                // Of equal margins the answers are equal, but for rounding.
                let above = known[above..].iter().find(|(other, _)| other > margin);
                reaches && above.is_none_or(|(_, high)| *answer <= high + LATER * ANSWER_TOLERANCE)
            }
        }
    }
}

/// How much farther than the background's a later row's answer may be from what follows from its margin: it may be larger.
const LATER: f64 = 10.0;

/// Finds the margin of a graph, the bytes of an ONNX file as it was published.
///
/// # Errors
/// [`Reason`] if there is none that has a closed form.
pub(super) fn split(
    graph: &[u8],
    reader: &RowReader,
    bindings: &Bindings,
    output: &Output,
) -> Result<Split, Reason> {
    let mut model = ModelProto::decode(graph)?;
    let is_trainers = model.producer_name() == TRAINER.0;
    let opsets = Opsets::of(&model);
    let graph = model.graph.take().ok_or_else(|| Reason::Inputs("there is no graph".into()))?;
    let found = {
        let trace = Trace::new(&graph, opsets, fill(&graph, reader, bindings)?);
        find(&graph, &trace, &output.names(), is_trainers)?
    };
    let Found { form, value, element, node, is_logistic } = found;
    model.graph = Some(cut(graph, &value, element, node));
    Ok(Split { form, cut: model.encode_to_vec(), value, is_logistic })
}

/// What fills each input of a graph.
fn fill<'g>(
    graph: &'g GraphProto,
    reader: &RowReader,
    bindings: &Bindings,
) -> Result<Vec<Filled<'g>>, Reason> {
    let fields: Vec<&Field> = reader.features().collect();
    let bound = bindings.inputs();
    let inputs = graph.input.iter().filter_map(|input| {
        let binding = bound.iter().find(|binding| binding.input == input.name())?;
        let Some(TypeValue::TensorType(tensor)) = input.r#type.as_ref().and_then(|kind| kind.value.as_ref())
        else {
            return None;
        };
        let parts = binding.features.iter().map(|name| {
            let feature = fields.iter().position(|field| field.name == *name);
            let feature = feature.ok_or_else(|| Reason::Inputs(format!("\"{name}\" is no feature")))?;
            let fill = Fill::new(binding.element, fields[feature], None).map_err(Reason::Inputs)?;
            // A text that no number was given has none.
            let has_unknown = matches!(fill, Fill::Mapped { .. }) && fields[feature].unknown == Unknown::Pass;
            Ok(Part {
                feature: u32::try_from(feature).unwrap_or(u32::MAX),
                element: binding.element,
                fill,
                is_optional: has_unknown || fields[feature].missing == Missing::Pass,
            })
        });
        let is_flat = tensor.shape.as_ref().is_some_and(|shape| shape.dim.len() == 1);
        Some(parts.collect::<Result<_, Reason>>().map(|parts| Filled {
            name: input.name(),
            element: binding.element,
            is_flat,
            parts,
        }))
    });
    inputs.collect()
}

/// A margin within a graph.
struct Found {
    form: Form,
    value: String,
    element: Element,
    /// The node whose link is to be left out, by its position.
    node: Option<usize>,
    is_logistic: bool,
}

/// Goes from the answer towards the inputs, past everything that the whole answer goes through, up to the first margin.
fn find(graph: &GraphProto, trace: &Trace<'_>, outputs: &[&str], is_trainers: bool) -> Result<Found, Reason> {
    // The values that are needed for what has been passed; where there is only one, the whole answer goes through it.
    let mut open: HashSet<&str> = outputs.iter().copied().filter(|name| trace.is_of_inputs(name)).collect();
    let (mut passed_trees, mut linear): (_, Option<(&str, &Tensor)>) = (false, None);
    let uses: Vec<HashSet<String>> = graph.node.iter().map(uses_of).collect();
    for (at, node) in graph.node.iter().enumerate().rev() {
        let made = node.output.iter().filter(|name| open.contains(name.as_str())).count();
        if made == 0 {
            continue;
        }
        if made == open.len() {
            if linear.is_none() && is_ensemble(node) {
                return trees_at(graph, trace, at);
            }
            if linear.is_none()
                && let Some(sums) = trace.scores.get(&at)
            {
                let value = node.output.get(1).ok_or(Reason::NoMargin)?.clone();
                let form = Form::Linear(form_of(trace, sums)?);
                return Ok(Found {
                    is_logistic: is_logistic_node(node) || feeds_sigmoid(graph, &value),
                    form,
                    value,
                    element: Element::Float32,
                    node: Some(at),
                });
            }
            let value = open.iter().next().copied().filter(|_| open.len() == 1);
            let sums =
                value.and_then(|name| Some((name, trace.value(name).filter(|value| is_linear(value))?)));
            match (sums, linear) {
                (Some(found), None) => linear = Some(found),
                // The trainer says which of several linear values its log-odds are, before their calibration.
                (Some(found), Some(_)) if is_trainers && found.0 == TRAINER.1 => linear = Some(found),
                (Some(_), Some(_)) => {}
                (None, Some(_)) => break,
                (None, None) => {}
            }
            if linear.is_some() && !is_trainers {
                break;
            }
        }
        passed_trees |= is_ensemble(node);
        open.retain(|name| !node.output.iter().any(|made| made == name));
        open.extend(uses[at].iter().map(String::as_str).filter(|name| trace.is_of_inputs(name)));
    }
    if passed_trees {
        return Err(Reason::Ensembles);
    }
    let (name, tensor) = linear.ok_or(Reason::NoMargin)?;
    let sums = tensor.columns.iter().map(|column| trace.sum(column).map(Arc::new));
    let sums: Vec<_> = sums.collect::<Option<_>>().ok_or(Reason::NoMargin)?;
    Ok(Found {
        form: Form::Linear(form_of(trace, &sums)?),
        value: name.into(),
        element: tensor.element,
        node: None,
        is_logistic: feeds_sigmoid(graph, name) || (is_trainers && name == TRAINER.1),
    })
}

fn is_ensemble(node: &NodeProto) -> bool {
    node.domain() == "ai.onnx.ml" && node.op_type().starts_with("TreeEnsemble")
}

fn is_logistic_node(node: &NodeProto) -> bool {
    let mut attributes = node.attribute.iter();
    attributes.any(|held| held.name() == "post_transform" && held.s.as_deref() == Some(b"LOGISTIC"))
}

/// Whether a logistic function is taken of a value as it is.
fn feeds_sigmoid(graph: &GraphProto, value: &str) -> bool {
    graph.node.iter().any(|node| node.op_type() == "Sigmoid" && node.input.iter().any(|name| name == value))
}

/// Whether all columns of a value are sums over features.
fn is_linear(tensor: &Tensor) -> bool {
    tensor.per_row
        && tensor.dims.len() <= 1
        && matches!(tensor.element, Element::Float32 | Element::Float64)
        && !tensor.columns.is_empty()
        && tensor.columns.iter().all(|column| !matches!(column, Column::Opaque))
}

/// The sums as weighted columns.
fn form_of<S: AsRef<Sum>>(trace: &Trace<'_>, sums: &[S]) -> Result<LinearForm, Reason> {
    let mut ids: Vec<Id> = sums.iter().flat_map(|sum| sum.as_ref().terms.iter().map(|(id, _)| *id)).collect();
    ids.sort_unstable();
    ids.dedup();
    let size = ids.len().checked_mul(sums.len()).filter(|size| *size <= MOST_COEFFICIENTS);
    let mut coefficients = vec![0.0; size.ok_or(Reason::NoMargin)?];
    for (output, sum) in sums.iter().enumerate() {
        for (id, coefficient) in &sum.as_ref().terms {
            if let Ok(at) = ids.binary_search(id) {
                coefficients[output * ids.len() + at] = *coefficient;
            }
        }
    }
    let intercepts = sums.iter().map(|sum| sum.as_ref().constant).collect();
    Ok(LinearForm { encoder: Encoder::new(&trace.steps, &ids), coefficients, intercepts })
}

/// Coefficients that a linear margin may have.
const MOST_COEFFICIENTS: usize = 1 << 22;

fn trees_at(graph: &GraphProto, trace: &Trace<'_>, at: usize) -> Result<Found, Reason> {
    let node = &graph.node[at];
    let tensor = node.input.first().and_then(|name| trace.value(name)).ok_or(Reason::Mixed(0))?;
    let precision = match tensor.element {
        Element::Float64 => Precision::Double,
        Element::Float32 | Element::Int64 | Element::Int32 => Precision::Single,
        Element::Bool | Element::String => return Err(Reason::Mixed(0)),
    };
    let ensemble = Ensemble::of_node(node, precision)?;
    let (mut ids, used) = (Vec::with_capacity(tensor.columns.len()), ensemble.columns_used());
    let any =
        tensor.columns.iter().find_map(|column| if let Column::Of(id) = column { Some(*id) } else { None });
    // Trees without decisions take a column as well: rows of none could not be told apart.
    for (column, found) in tensor.columns.iter().enumerate().take(ensemble.width().max(1)) {
        match found {
            Column::Of(id) if trace.steps.get(*id).is_exact => ids.push(*id),
            // No tree asks for it; any other column will do in its place.
            found => match (found, any) {
                (_, Some(any)) if !used.contains(&column) => ids.push(any),
                (Column::Of(_), _) => return Err(Reason::Inexact(column)),
                _ => return Err(Reason::Mixed(column)),
            },
        }
    }
    if tensor.dims.len() != 1 || ids.len() < ensemble.width() {
        return Err(Reason::Mixed(ids.len()));
    }
    let place = usize::from(node.op_type() == "TreeEnsembleClassifier");
    let element = match (node.op_type(), precision) {
        ("TreeEnsemble", Precision::Double) => Element::Float64,
        _ => Element::Float32,
    };
    let value = node.output.get(place).ok_or(Reason::NoMargin)?.clone();
    let is_logistic = ensemble.link() == trees::Link::Logistic || feeds_sigmoid(graph, &value);
    let form = Form::Trees { ensemble, encoder: Encoder::new(&trace.steps, &ids).with_listed() };
    Ok(Found { form, value, element, node: Some(at), is_logistic })
}

/// The graph whose only answer is `value`; the node at `node` leaves its link out.
fn cut(mut graph: GraphProto, value: &str, element: Element, node: Option<usize>) -> GraphProto {
    if let Some(node) = node.and_then(|at| graph.node.get_mut(at)) {
        node.attribute.retain(|attribute| attribute.name() != "post_transform");
        let name = Some("post_transform".to_string());
        node.attribute.push(if node.op_type() == "TreeEnsemble" {
            AttributeProto { name, r#type: Some(2), i: Some(0), ..AttributeProto::default() }
        } else {
            AttributeProto { name, r#type: Some(3), s: Some(b"NONE".to_vec()), ..AttributeProto::default() }
        });
    }
    let element = if element == Element::Float64 { DOUBLE } else { FLOAT };
    let kind = TypeValue::TensorType(TypeTensorType { elem_type: Some(element), shape: None });
    graph.output = vec![ValueInfoProto {
        name: Some(value.into()),
        r#type: Some(TypeProto { value: Some(kind), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }];
    graph
}

impl Split {
    /// Holds the margin against ONNX Runtime's for `rows`, and finds out what it is to their `answers`, the model's own: as
    /// many numbers for each row as [`Task::width`] says. Background rows will do.
    ///
    /// # Errors
    /// [`Reason`] if it is not the same, or if the answer is not a function of it that is known.
    pub(super) fn check(
        self,
        runtime: &Runtime,
        reader: &RowReader,
        bindings: &Bindings,
        output: &Output,
        rows: &FeatureRows,
        answers: &[f64],
    ) -> Result<Checked, Reason> {
        let task = output.task();
        let (outputs, width) = (self.form.outputs(), self.form.encoder().width());
        let mut margins = vec![0.0; rows.len() * outputs];
        let mut tolerances = Vec::with_capacity(margins.len());
        let mut encoded = vec![0.0; width];
        for (row, line) in margins.chunks_exact_mut(outputs.max(1)).enumerate() {
            self.form.encoder().encode(rows, row, &mut encoded);
            self.form.margin(&encoded, line);
            tolerances.extend((0..outputs).map(|output| match &self.form {
                Form::Linear(form) => TERM_TOLERANCE * form.size(&encoded, output),
                Form::Trees { .. } => 0.0,
            }));
        }
        let unit = unit(&margins);
        for (tolerance, margin) in tolerances.iter_mut().zip(&margins) {
            *tolerance = tolerance.max(MARGIN_TOLERANCE * margin.abs().max(unit));
        }
        self.compare(runtime, reader, bindings, rows, &margins, &tolerances)?;
        let Self { form, is_logistic, .. } = self;
        match task {
            Task::Regression => regression(form, &margins, answers),
            Task::Binary => binary(form, &margins, answers, output.positive(), is_logistic),
            Task::Multiclass { classes } => multiclass(form, classes, &margins, answers),
        }
    }

    /// Holds margins, one line per row, against what the graph computes up to there.
    fn compare(
        &self,
        runtime: &Runtime,
        reader: &RowReader,
        bindings: &Bindings,
        rows: &FeatureRows,
        margins: &[f64],
        tolerances: &[f64],
    ) -> Result<(), Reason> {
        let outputs = self.form.outputs();
        let open = |classes| {
            // A link keeps the graph from being rewritten for one class; nobody follows it here.
            let output =
                Output::Margin { name: self.value.clone(), classes, positive: 0, link: Link::Sigmoid };
            let options = SessionOptions::default();
            let mut session = runtime.session(&self.cut, reader, bindings, &output, &options)?;
            session.run_raw(rows)
        };
        // Of two classes with one margin ONNX Runtime gives two columns, the second of which is the margin.
        let (columns, found) = match open(outputs) {
            Err(runtime::Error::Output(_)) if outputs == 1 => (2, open(2).map_err(Reason::Cut)?),
            found => (outputs, found.map_err(Reason::Cut)?),
        };
        let found = found.chunks_exact(columns).flat_map(|line| &line[columns - outputs..]);
        for ((margin, tolerance), expected) in margins.iter().zip(tolerances).zip(found) {
            // Both being no number is no agreement: such rows have no answer to be explained.
            let is_near = (margin - expected).abs() <= *tolerance;
            if !is_near {
                return Err(Reason::Differs { found: *margin, expected: *expected });
            }
        }
        Ok(())
    }
}

/// Whether two lists of probabilities are the same, but for rounding.
fn agree(found: impl Iterator<Item = f64>, expected: &[f64]) -> bool {
    let (relative, absolute) = SMALL_TOLERANCE;
    found.zip(expected).all(|(found, expected)| {
        (found - expected).abs() <= (relative * expected.abs() + absolute).min(ANSWER_TOLERANCE)
    })
}

/// The size that differences of numbers are held against where a number itself is smaller: that of the largest, at most 1.
fn unit(numbers: &[f64]) -> f64 {
    numbers.iter().fold(0.0_f64, |largest, number| largest.max(number.abs())).min(1.0)
}

fn logistic(margin: f64) -> f64 {
    1.0 / (1.0 + (-margin).exp())
}

fn regression(form: Form, margins: &[f64], answers: &[f64]) -> Result<Checked, Reason> {
    let unit = unit(answers);
    let is_near =
        |(margin, answer): (&f64, &f64)| (margin - answer).abs() <= ANSWER_TOLERANCE * answer.abs().max(unit);
    if form.outputs() != 1 || margins.is_empty() || !margins.iter().zip(answers).all(is_near) {
        return Err(Reason::Link);
    }
    Ok(Checked { form, space: Space::Target, follows: Follows::Same(Some(unit)) })
}

fn binary(
    form: Form,
    margins: &[f64],
    answers: &[f64],
    positive: usize,
    is_logistic: bool,
) -> Result<Checked, Reason> {
    // The ways in which margins may speak of the positive class: weights, and a constant.
    let ways: Vec<(Vec<f64>, f64)> = match form.outputs() {
        1 => vec![(vec![1.0], 0.0), (vec![-1.0], 0.0), (vec![-1.0], 1.0)],
        2 => {
            let only = |at: usize, sign: f64| {
                let mut weights = vec![0.0; 2];
                weights[at] = sign;
                weights
            };
            let difference = if positive == 0 { vec![1.0, -1.0] } else { vec![-1.0, 1.0] };
            vec![(only(positive, 1.0), 0.0), (difference, 0.0), (only(1 - positive, 1.0), 0.0)]
        }
        _ => return Err(Reason::Link),
    };
    let of = |(weights, constant): &(Vec<f64>, f64)| -> Vec<f64> {
        let lines = margins.chunks_exact(weights.len());
        lines.map(|line| constant + line.iter().zip(weights).map(|(m, w)| m * w).sum::<f64>()).collect()
    };
    let made = |form: Form, (weights, constant): &(Vec<f64>, f64), space, follows| {
        let form = if *constant == 0.0 && weights.as_slice() == [1.0] {
            form
        } else {
            form.combine(weights, *constant)
        };
        Ok(Checked { form, space, follows })
    };
    for way in &ways {
        let margin = of(way);
        if agree(margin.iter().copied(), answers) {
            return made(form, way, Space::Probability, Follows::Same(None));
        }
        if agree(margin.iter().copied().map(logistic), answers) {
            return made(form, way, Space::LogOdds, Follows::Logistic);
        }
    }
    let rises_with = |way: &(Vec<f64>, f64)| {
        let mut known: Vec<(f64, f64)> = of(way).into_iter().zip(answers.iter().copied()).collect();
        known.sort_by(|one, other| one.0.total_cmp(&other.0));
        Follows::Rises(known)
    };
    let rising = || ways.iter().filter(|(_, constant)| *constant == 0.0).find(|way| rises(&of(way), answers));
    if is_logistic && let Some(way) = rising() {
        return made(form, way, Space::LogOdds, rises_with(way));
    }
    for (weights, constant) in ways.iter().filter(|(_, constant)| *constant == 0.0) {
        let margin = of(&(weights.clone(), *constant));
        if let Some((slope, intercept)) = platt(&margin, answers) {
            let way = (weights.iter().map(|weight| slope * weight).collect(), intercept);
            return made(form, &way, Space::LogOdds, Follows::Logistic);
        }
    }
    rising().map_or(Err(Reason::Link), |way| made(form, way, Space::Margin, rises_with(way)))
}

/// Slope and intercept of a logistic calibration, if that is how answers come of margins: told by the two most distant answers
/// whose log-odds float32 still holds well, and true of all.
fn platt(margins: &[f64], answers: &[f64]) -> Option<(f64, f64)> {
    let is_inner = |answer: f64| (0.01..=0.99).contains(&answer);
    let inner = || margins.iter().zip(answers).filter(|(_, answer)| is_inner(**answer));
    let low = inner().min_by(|one, other| one.1.total_cmp(other.1))?;
    let high = inner().max_by(|one, other| one.1.total_cmp(other.1))?;
    let log_odds = |answer: f64| (answer / (1.0 - answer)).ln();
    let slope = (log_odds(*high.1) - log_odds(*low.1)) / (high.0 - low.0);
    let intercept = log_odds(*low.1) - slope * low.0;
    let calibrated = margins.iter().map(|margin| logistic(slope * margin + intercept));
    // Two rows lie on every line.
    let is_proved = inner().count() > 2 && high.1 - low.1 > 1e3 * ANSWER_TOLERANCE;
    (is_proved && slope.is_finite() && agree(calibrated, answers)).then_some((slope, intercept))
}

/// Whether answers rise with margins: never fall, and are not all the same.
fn rises(margins: &[f64], answers: &[f64]) -> bool {
    let mut pairs: Vec<(f64, f64)> = margins.iter().copied().zip(answers.iter().copied()).collect();
    pairs.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut highest = f64::NEG_INFINITY;
    for (_, answer) in &pairs {
        if *answer < highest - ANSWER_TOLERANCE {
            return false;
        }
        highest = highest.max(*answer);
    }
    matches!((pairs.first(), pairs.last()), (Some(first), Some(last)) if last.1 > first.1 + ANSWER_TOLERANCE)
}

fn multiclass(form: Form, classes: usize, margins: &[f64], answers: &[f64]) -> Result<Checked, Reason> {
    if form.outputs() != classes || margins.is_empty() {
        return Err(Reason::Link);
    }
    let agrees = |link: &dyn Fn(&mut [f64])| {
        let mut all = margins.to_vec();
        all.chunks_exact_mut(classes).for_each(link);
        agree(all.into_iter(), answers)
    };
    let (space, follows) = if agrees(&|_| {}) {
        (Space::Probability, Follows::Same(None))
    } else if agrees(&|line| apply_link(Some(Link::Softmax), line)) {
        (Space::Margin, Follows::Softmax)
    } else if agrees(&normalise) {
        (Space::Margin, Follows::Normalised)
    } else if agrees(&|line| apply_link(Some(Link::Sigmoid), line)) {
        (Space::LogOdds, Follows::Logistic)
    } else {
        return Err(Reason::Link);
    };
    Ok(Checked { form, space, follows })
}

/// The logistic functions of a line, over their sum.
fn normalise(line: &mut [f64]) {
    apply_link(Some(Link::Sigmoid), line);
    let sum: f64 = line.iter().sum();
    line.iter_mut().for_each(|number| *number /= sum);
}

#[cfg(test)]
mod tests;
