//! Follows a graph from its inputs by hand: which columns of which value depend on one feature, which are sums over features,
//! and which are anything else.

mod encoders;
mod numbers;
mod shapes;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use scoregate_schemas::manifest::Element;
use scoregate_schemas::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

use super::encode::{Binary, Constant, Id, Part, Step, Steps, Unary};
use crate::acceptance::lint::tensors::{self, BOOL, DOUBLE, FLOAT, INT32, INT64, STRING};

/// Columns that a value may have to be followed.
const MOST_COLUMNS: usize = 1 << 16;
/// Numbers of a constant, which as columns take more memory. The weights of a network are no columns, and there are many.
const MOST_CONSTANTS: usize = 1 << 18;
/// Columns that all values of a graph may have together.
const MOST_COLUMNS_IN_ALL: usize = 1 << 22;
/// Terms that all sums of a graph may have together, those counted that weigh nothing.
const MOST_TERMS: usize = 1 << 23;
/// Integers up to here are held exactly.
const WHOLE: f64 = 9_007_199_254_740_992.0;

/// A column of a value.
#[derive(Debug, Clone)]
pub(super) enum Column {
    /// The result of steps, bit by bit, that depend on at most one feature.
    Of(Id),
    /// A sum over the results of such steps, rounded in its own way.
    Sum(Arc<Sum>),
    /// Anything else.
    Opaque,
}

/// A constant and weighted results of steps.
#[derive(Debug, Clone, Default)]
pub(super) struct Sum {
    pub(super) constant: f64,
    /// In the order of the steps, each of them once; none is a constant.
    pub(super) terms: Vec<(Id, f64)>,
}

/// A value of the graph: a line of columns for each row, or the same for all.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) element: Element,
    /// Whether its first dimension counts rows; `dims` are the others then.
    pub(super) per_row: bool,
    pub(super) dims: Vec<usize>,
    pub(super) columns: Vec<Column>,
}

/// An input of the graph, and what fills it.
pub(super) struct Filled<'b> {
    pub(super) name: &'b str,
    pub(super) element: Element,
    /// Whether it is `[N]` rather than `[N, columns]`.
    pub(super) is_flat: bool,
    pub(super) parts: Vec<Part>,
}

/// The versions of the operator sets that a graph uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opsets {
    pub(super) core: i64,
    pub(super) machine_learning: i64,
}

impl Opsets {
    pub(super) fn of(model: &ModelProto) -> Self {
        let version = |names: [&str; 2]| {
            let opset = model.opset_import.iter().find(|opset| names.contains(&opset.domain()));
            opset.map_or(0, |opset| opset.version())
        };
        Self { core: version(["", "ai.onnx"]), machine_learning: version(["ai.onnx.ml"; 2]) }
    }
}

/// What is known of a graph's values.
#[derive(Debug, Default)]
pub(super) struct Trace<'g> {
    pub(super) steps: Steps,
    /// The values that can be followed; the others are missing.
    values: HashMap<&'g str, Arc<Tensor>>,
    /// The values that depend on the graph's inputs in any way.
    inputs: HashSet<&'g str>,
    /// The sums that a LinearClassifier's scores are made of, by the node's position.
    pub(super) scores: HashMap<usize, Vec<Arc<Sum>>>,
    /// How many columns and terms there are already.
    columns: usize,
    terms: usize,
}

impl<'g> Trace<'g> {
    /// Follows a graph from what fills its inputs.
    pub(super) fn new(graph: &'g GraphProto, opsets: Opsets, inputs: Vec<Filled<'g>>) -> Self {
        let mut trace = Self::default();
        for tensor in &graph.initializer {
            let constant = trace.tensor(tensor).map(Arc::new);
            trace.values.extend(constant.map(|constant| (tensor.name(), constant)));
        }
        for value in &graph.input {
            if !graph.initializer.iter().any(|tensor| tensor.name() == value.name()) {
                trace.inputs.insert(value.name());
            }
        }
        for input in inputs {
            let mut columns = Vec::new();
            for part in input.parts {
                let width = u32::try_from(part.fill.width()).unwrap_or(0);
                trace.steps.parts.push(part);
                let part = u32::try_from(trace.steps.parts.len() - 1).unwrap_or(u32::MAX);
                for at in 0..width {
                    let step = trace.steps.push(Step::Feature { part, at }, input.element);
                    columns.push(step.map_or(Column::Opaque, Column::Of));
                }
            }
            let dims = if input.is_flat { Vec::new() } else { vec![columns.len()] };
            let tensor = Tensor { element: input.element, per_row: true, dims, columns };
            trace.values.insert(input.name, Arc::new(tensor));
        }
        for (at, node) in graph.node.iter().enumerate() {
            let depends = uses_of(node).iter().any(|name| trace.inputs.contains(name.as_str()));
            if depends {
                trace.inputs.extend(node.output.iter().map(String::as_str));
            }
            if trace.columns > MOST_COLUMNS_IN_ALL {
                continue;
            }
            let follower = Follower { trace: &mut trace, node, at, opsets };
            let made = follower.follow().unwrap_or_default();
            for (name, tensor) in node.output.iter().zip(made) {
                if let Some(tensor) = tensor.filter(|tensor| tensor.columns.len() <= MOST_COLUMNS) {
                    trace.columns += tensor.columns.len();
                    trace.values.insert(name, Arc::new(tensor));
                }
            }
        }
        trace
    }

    /// A value, if it can be followed.
    pub(super) fn value(&self, name: &str) -> Option<&Tensor> {
        self.values.get(name).map(Arc::as_ref)
    }

    /// Whether a value depends on the graph's inputs.
    pub(super) fn is_of_inputs(&self, name: &str) -> bool {
        self.inputs.contains(name)
    }

    /// A column as a sum; none if it is neither that nor a number.
    pub(super) fn sum(&self, column: &Column) -> Option<Sum> {
        match column {
            Column::Of(id) => Some(match self.steps.number(*id) {
                Some(constant) => Sum { constant, terms: Vec::new() },
                None => Sum { constant: 0.0, terms: vec![(*id, 1.0)] },
            }),
            Column::Sum(sum) => Some(sum.as_ref().clone()),
            Column::Opaque => None,
        }
    }

    fn tensor(&mut self, tensor: &TensorProto) -> Option<Tensor> {
        let element = element(tensor.data_type())?;
        let dims = tensor.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<Vec<_>>>()?;
        let count: usize = dims.iter().product();
        let constants: Vec<Constant> = if element == Element::String {
            let texts = tensor.string_data.iter().map(|text| String::from_utf8(text.clone()).ok());
            texts.map(|text| Some(Constant::Text(text?.into()))).collect::<Option<_>>()?
        } else {
            numbers(tensor)?.into_iter().map(Constant::Number).collect()
        };
        (constants.len() == count).then(|| self.constants(element, dims, constants)).flatten()
    }

    fn constants(&mut self, element: Element, dims: Vec<usize>, constants: Vec<Constant>) -> Option<Tensor> {
        if constants.len() > MOST_CONSTANTS {
            return None;
        }
        let is_held = |constant: &Constant| match constant {
            Constant::Number(number) => is_float(element) || number.abs() <= WHOLE,
            Constant::Text(_) => true,
        };
        let columns = constants.into_iter().map(|constant| {
            let step = is_held(&constant).then_some(Step::Constant(constant));
            step.and_then(|step| self.steps.push(step, element)).map_or(Column::Opaque, Column::Of)
        });
        Some(Tensor { element, per_row: false, dims, columns: columns.collect() })
    }
}

/// The values that a node takes, those that its subgraphs take from around it included.
pub(super) fn uses_of(node: &NodeProto) -> HashSet<String> {
    let mut names: HashSet<String> = node.input.iter().cloned().collect();
    crate::inspect::subgraphs(node).for_each(|inner| crate::inspect::uses(inner, &mut names));
    names
}

fn element(data_type: i32) -> Option<Element> {
    Some(match data_type {
        FLOAT => Element::Float32,
        DOUBLE => Element::Float64,
        INT64 => Element::Int64,
        INT32 => Element::Int32,
        BOOL => Element::Bool,
        STRING => Element::String,
        _ => return None,
    })
}

fn numbers(tensor: &TensorProto) -> Option<Vec<f64>> {
    if tensor.data_type() != BOOL {
        return tensors::numbers(tensor, usize::MAX);
    }
    let truth = |holds: bool| f64::from(u8::from(holds));
    Some(match &tensor.raw_data {
        Some(raw) => raw.iter().map(|byte| truth(*byte != 0)).collect(),
        None => tensor.int32_data.iter().map(|number| truth(*number != 0)).collect(),
    })
}

fn is_float(element: Element) -> bool {
    matches!(element, Element::Float32 | Element::Float64)
}

/// Makes one node's values of those before it. Whatever returns none is not followed.
struct Follower<'t, 'g> {
    trace: &'t mut Trace<'g>,
    node: &'g NodeProto,
    at: usize,
    opsets: Opsets,
}

type Made = Option<Vec<Option<Tensor>>>;

impl<'g> Follower<'_, 'g> {
    fn follow(mut self) -> Made {
        let node = self.node;
        let made = match (node.domain(), node.op_type()) {
            ("" | "ai.onnx", operator) => return self.core(operator),
            ("ai.onnx.ml", "Scaler") => self.scaler(),
            ("ai.onnx.ml", "Imputer") => self.imputer(),
            ("ai.onnx.ml", "OneHotEncoder") => self.one_hot(),
            ("ai.onnx.ml", "LabelEncoder") => self.label_encoder(),
            ("ai.onnx.ml", "CategoryMapper") => self.category_mapper(),
            ("ai.onnx.ml", "ArrayFeatureExtractor") => self.extract(),
            ("ai.onnx.ml", "FeatureVectorizer") => self.vectorizer(),
            ("ai.onnx.ml", "Binarizer") => self.binarizer(),
            ("ai.onnx.ml", "LinearRegressor") => self.linear_regressor(),
            ("ai.onnx.ml", "LinearClassifier") => return self.linear_classifier(),
            _ => None,
        };
        Some(vec![Some(made?)])
    }

    fn core(mut self, operator: &str) -> Made {
        let made = match operator {
            "Constant" => self.constant(),
            "Identity" | "Dropout" => Some(self.input(0)?.as_ref().clone()),
            "Cast" => self.cast(),
            "Concat" => self.concat(),
            "Reshape" => self.reshape(),
            "Flatten" => self.flatten(),
            "Squeeze" => self.squeeze(),
            "Unsqueeze" => self.unsqueeze(),
            "Gather" => self.gather(),
            "Slice" => self.slice(),
            "Split" => return self.split(),
            "MatMul" => self.matmul(),
            "Gemm" => self.gemm(),
            "Sum" | "Min" | "Max" => self.fold(operator),
            "ReduceSum" | "ReduceMean" => self.reduce(operator),
            "ArgMax" => self.arg_max(),
            "Clip" => self.clip(),
            "Where" => self.choose(),
            _ => self.elementwise(operator),
        };
        Some(vec![Some(made?)])
    }

    // What a node is given.

    fn input(&self, at: usize) -> Option<Arc<Tensor>> {
        self.trace.values.get(self.node.input.get(at)?.as_str()).cloned()
    }

    /// An input that depends on the row.
    fn rows(&self, at: usize) -> Option<Arc<Tensor>> {
        self.input(at).filter(|tensor| tensor.per_row)
    }

    /// An input of constant numbers.
    fn numbers(&self, at: usize) -> Option<Vec<f64>> {
        self.constants(self.input(at)?.as_ref())
    }

    fn constants(&self, tensor: &Tensor) -> Option<Vec<f64>> {
        let number = |column: &Column| match column {
            Column::Of(id) => self.trace.steps.number(*id),
            Column::Sum(_) | Column::Opaque => None,
        };
        (!tensor.per_row).then(|| tensor.columns.iter().map(number).collect())?
    }

    fn has_input(&self, at: usize) -> bool {
        self.node.input.get(at).is_some_and(|name| !name.is_empty())
    }

    fn attribute(&self, name: &str) -> Option<&'g AttributeProto> {
        self.node.attribute.iter().find(|attribute| attribute.name() == name)
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, AttributeProto::i)
    }

    fn float(&self, name: &str, default: f32) -> f64 {
        f64::from(self.attribute(name).and_then(|attribute| attribute.f).unwrap_or(default))
    }

    fn ints(&self, name: &str) -> &'g [i64] {
        self.attribute(name).map_or(&[], |attribute| &attribute.ints)
    }

    fn floats(&self, name: &str) -> Vec<f64> {
        self.attribute(name).map_or(&[][..], |held| &held.floats).iter().map(|x| f64::from(*x)).collect()
    }

    fn texts(&self, name: &str) -> Option<Vec<Constant>> {
        let texts = self.attribute(name).map_or(&[][..], |attribute| &attribute.strings);
        texts.iter().map(|text| Some(Constant::Text(String::from_utf8(text.clone()).ok()?.into()))).collect()
    }

    fn text(&self, name: &str, default: &str) -> Option<Constant> {
        let text = self.attribute(name).and_then(|attribute| attribute.s.clone());
        let text = text.map_or(Ok(default.into()), String::from_utf8).ok()?;
        Some(Constant::Text(text.into()))
    }

    /// Integers that an attribute holds before some version, and an input from there on.
    fn list(&self, name: &str, at: usize) -> Option<Vec<i64>> {
        if self.has_input(at) {
            return Some(self.numbers(at)?.into_iter().map(|number| number as i64).collect());
        }
        self.attribute(name).map(|attribute| attribute.ints.clone())
    }

    /// The place among `dims` of an axis; none if it is the rows' own or not there.
    fn axis(&self, tensor: &Tensor, axis: i64) -> Option<usize> {
        let first = i64::from(tensor.per_row);
        let rank = tensor.dims.len() as i64 + first;
        let axis = if axis < 0 { axis + rank } else { axis };
        usize::try_from(axis - first).ok().filter(|axis| *axis < tensor.dims.len())
    }

    // Columns.

    fn push(&mut self, step: Step, element: Element) -> Column {
        self.trace.steps.push(step, element).map_or(Column::Opaque, Column::Of)
    }

    fn number(&mut self, number: f64, element: Element) -> Column {
        self.push(Step::Constant(Constant::Number(number)), element)
    }

    fn unary(&mut self, operator: Unary, column: &Column, element: Element) -> Column {
        match column {
            Column::Of(id) => self.push(Step::Unary(operator, *id), element),
            Column::Sum(_) if operator == Unary::Neg => {
                self.weigh(&[(column.clone(), -1.0)], 0.0, element).unwrap_or(Column::Opaque)
            }
            Column::Sum(_) | Column::Opaque => Column::Opaque,
        }
    }

    fn binary(&mut self, operator: Binary, one: &Column, other: &Column, element: Element) -> Column {
        if let (Column::Of(x), Column::Of(y)) = (one, other) {
            let (step, steps) = (Step::Binary(operator, *x, *y), &mut self.trace.steps);
            // Nothing times zero is a number other than zero, but for what is none.
            let is_none = |id, zero| steps.number(zero) == Some(0.0) && steps.get(id).is_finite;
            if operator == Binary::Mul && (is_none(*x, *y) || is_none(*y, *x)) {
                return self.number(0.0, element);
            }
            if let Some(id) = steps.push(step, element) {
                return Column::Of(id);
            }
        }
        if !is_float(element) {
            return Column::Opaque;
        }
        let constant = |column: &Column| match column {
            Column::Of(id) => self.trace.steps.number(*id),
            Column::Sum(_) | Column::Opaque => None,
        };
        let weighted = match operator {
            Binary::Add => vec![(one.clone(), 1.0), (other.clone(), 1.0)],
            Binary::Sub => vec![(one.clone(), 1.0), (other.clone(), -1.0)],
            Binary::Mul => match (constant(one), constant(other)) {
                (_, Some(weight)) => vec![(one.clone(), weight)],
                (Some(weight), _) => vec![(other.clone(), weight)],
                _ => return Column::Opaque,
            },
            Binary::Div => match constant(other) {
                Some(divisor) => vec![(one.clone(), 1.0 / divisor)],
                None => return Column::Opaque,
            },
            _ => return Column::Opaque,
        };
        self.weigh(&weighted, 0.0, element).unwrap_or(Column::Opaque)
    }

    /// A weighted sum of columns. None if there are too many terms in the graph already.
    fn weigh(&mut self, columns: &[(Column, f64)], constant: f64, element: Element) -> Option<Column> {
        let mut sum = Sum { constant, terms: Vec::new() };
        for (column, weight) in columns.iter().filter(|(_, weight)| *weight != 0.0) {
            let Some(added) = self.trace.sum(column) else { return Some(Column::Opaque) };
            sum.constant += weight * added.constant;
            sum.terms.extend(added.terms.iter().map(|(id, coefficient)| (*id, weight * coefficient)));
        }
        sum.terms.sort_by_key(|(id, _)| *id);
        sum.terms.dedup_by(|(id, coefficient), (kept, into)| {
            let is_same = id == kept;
            if is_same {
                *into += *coefficient;
            }
            is_same
        });
        match (sum.terms.as_slice(), sum.constant) {
            ([], constant) => return Some(self.number(constant, element)),
            // Of several columns, one that counts for nothing would still make this no number where it is none.
            ([(id, 1.0)], 0.0) if columns.len() == 1 && self.trace.steps.get(*id).element == element => {
                return Some(Column::Of(*id));
            }
            _ => {}
        }
        self.trace.terms += sum.terms.len();
        (self.trace.terms <= MOST_TERMS).then(|| Column::Sum(Arc::new(sum)))
    }

    /// Columns that are each made of one column of a tensor.
    fn map(
        &mut self,
        tensor: &Tensor,
        element: Element,
        mut each: impl FnMut(&mut Self, usize, &Column) -> Column,
    ) -> Tensor {
        let columns = tensor.columns.iter().enumerate().map(|(at, column)| each(self, at, column)).collect();
        Tensor { element, columns, per_row: tensor.per_row, dims: tensor.dims.clone() }
    }
}
