//! Follows a graph from its inputs by hand: which columns of which value depend on one feature, which are sums over features,
//! and which are anything else.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use scoregate_schemas::manifest::Element;
use scoregate_schemas::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

use super::encode::{Binary, Constant, Id, Part, Step, Steps, Table, Unary};
use crate::acceptance::lint::tensors::{self, BOOL, DOUBLE, FLOAT, INT32, INT64, STRING};

/// Columns that a value may have to be followed.
const MOST_COLUMNS: usize = 1 << 16;
/// Numbers of a constant, which as columns take more memory. The weights of a network are no columns, and there are many.
const MOST_CONSTANTS: usize = 1 << 18;
/// Terms that all sums of a graph may have together.
const MOST_TERMS: usize = 1 << 22;
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
            let follower = Follower { trace: &mut trace, node, at, opsets };
            let made = follower.follow().unwrap_or_default();
            for (name, tensor) in node.output.iter().zip(made) {
                if let Some(tensor) = tensor.filter(|tensor| tensor.columns.len() <= MOST_COLUMNS) {
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

    // Operators of the core.

    fn constant(&mut self) -> Option<Tensor> {
        let attribute = self.node.attribute.first()?;
        let whole = |number: &i64| Constant::Number(*number as f64);
        let float = |number: &f32| Constant::Number(f64::from(*number));
        let (element, dims, constants) = match attribute.name() {
            "value" => return self.trace.tensor(attribute.t.as_ref()?),
            "value_float" => (Element::Float32, vec![], attribute.f.iter().map(float).collect()),
            "value_floats" => {
                (Element::Float32, vec![attribute.floats.len()], attribute.floats.iter().map(float).collect())
            }
            "value_int" => (Element::Int64, vec![], attribute.i.iter().map(whole).collect()),
            "value_ints" => {
                (Element::Int64, vec![attribute.ints.len()], attribute.ints.iter().map(whole).collect())
            }
            _ => return None,
        };
        self.trace.constants(element, dims, constants)
    }

    fn cast(&mut self) -> Option<Tensor> {
        let tensor = self.input(0)?;
        let to = element(i32::try_from(self.int("to", 0)).ok()?)?;
        let from = tensor.element;
        if from == to {
            return Some(tensor.as_ref().clone());
        }
        // Numbers in words are the runtime's own affair.
        if from == Element::String || to == Element::String {
            return None;
        }
        Some(self.map(&tensor, to, |follower, _, column| match column {
            Column::Of(id) => follower.push(Step::Cast(*id), to),
            Column::Sum(_) if is_float(to) => column.clone(),
            Column::Sum(_) | Column::Opaque => Column::Opaque,
        }))
    }

    fn elementwise(&mut self, operator: &str) -> Option<Tensor> {
        let unary = match operator {
            "Neg" => Some(Unary::Neg),
            "Abs" => Some(Unary::Abs),
            "Sqrt" => Some(Unary::Sqrt),
            "Reciprocal" => Some(Unary::Reciprocal),
            "Floor" => Some(Unary::Floor),
            "Ceil" => Some(Unary::Ceil),
            "Sign" => Some(Unary::Sign),
            "Relu" => Some(Unary::Relu),
            "Not" => Some(Unary::Not),
            "IsNaN" => Some(Unary::IsNan),
            "Exp" => Some(Unary::Exp),
            "Log" => Some(Unary::Log),
            "Tanh" => Some(Unary::Tanh),
            _ => None,
        };
        if let Some(unary) = unary {
            let tensor = self.input(0)?;
            let element = match unary {
                Unary::Not | Unary::IsNan => Element::Bool,
                _ if is_float(tensor.element) => tensor.element,
                _ => return None,
            };
            return Some(
                self.map(&tensor, element, |follower, _, column| follower.unary(unary, column, element)),
            );
        }
        let (binary, is_question) = match operator {
            "Add" => (Binary::Add, false),
            "Sub" => (Binary::Sub, false),
            "Mul" => (Binary::Mul, false),
            "Div" => (Binary::Div, false),
            "Pow" => (Binary::Pow, false),
            "Equal" => (Binary::Equal, true),
            "Less" => (Binary::Less, true),
            "LessOrEqual" => (Binary::LessOrEqual, true),
            "Greater" => (Binary::Greater, true),
            "GreaterOrEqual" => (Binary::GreaterOrEqual, true),
            "And" => (Binary::And, true),
            "Or" => (Binary::Or, true),
            "Xor" => (Binary::Xor, true),
            _ => return None,
        };
        let (one, other) = (self.input(0)?, self.input(1)?);
        let element = if is_question { Element::Bool } else { one.element };
        let is_plain =
            matches!(binary, Binary::Add | Binary::Sub | Binary::Mul) && element != Element::String;
        if self.opsets.core < 7
            || one.element != other.element
            || !(is_question || is_plain || is_float(element))
        {
            return None;
        }
        self.broadcast(&[&one, &other], element, |follower, columns| {
            follower.binary(binary, columns[0], columns[1], element)
        })
    }

    /// What an operator makes of the columns that stand in the same place once tensors are of one shape.
    fn broadcast(
        &mut self,
        tensors: &[&Tensor],
        element: Element,
        mut each: impl FnMut(&mut Self, &[&Column]) -> Column,
    ) -> Option<Tensor> {
        let per_row = tensors.iter().any(|tensor| tensor.per_row);
        let rank = |tensor: &Tensor| tensor.dims.len() + usize::from(tensor.per_row);
        let most = tensors.iter().map(|tensor| rank(tensor)).max()?;
        // Dimensions line up from the last one on.
        let mut shapes = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let mut shape = vec![1; most - rank(tensor)];
            match (per_row, tensor.per_row, shape.is_empty()) {
                // Rows have to be rows everywhere, or one line for all of them.
                (true, true, true) => shape.extend_from_slice(&tensor.dims),
                (true, true, false) => return None,
                (true, false, true) if tensor.dims.first() == Some(&1) => {
                    shape.extend_from_slice(&tensor.dims[1..])
                }
                (true, false, true) => return None,
                (true, false, false) => {
                    shape.pop();
                    shape.extend_from_slice(&tensor.dims);
                }
                (false, ..) => shape.extend_from_slice(&tensor.dims),
            }
            shapes.push(shape);
        }
        let mut dims = shapes[0].clone();
        for shape in &shapes {
            for (dim, found) in dims.iter_mut().zip(shape) {
                match (*dim, *found) {
                    (one, other) if one == other => {}
                    (1, other) => *dim = other,
                    (_, 1) => {}
                    _ => return None,
                }
            }
        }
        let count: usize = dims.iter().product();
        if count > MOST_COLUMNS {
            return None;
        }
        let columns = (0..count).map(|at| {
            let of = |(tensor, shape): (&&'_ Tensor, &Vec<usize>)| {
                let (mut rest, mut place, mut stride) = (at, 0, 1);
                for (dim, own) in dims.iter().zip(shape).rev() {
                    let index = rest % dim;
                    rest /= dim;
                    if *own != 1 {
                        place += index * stride;
                    }
                    stride *= own;
                }
                tensor.columns[place].clone()
            };
            let found: Vec<Column> = tensors.iter().zip(&shapes).map(of).collect();
            each(self, &found.iter().collect::<Vec<_>>())
        });
        let columns = columns.collect();
        Some(Tensor { element, per_row, dims, columns })
    }

    /// Any number of tensors, one after the other.
    fn fold(&mut self, operator: &str) -> Option<Tensor> {
        let binary = match operator {
            "Sum" => Binary::Add,
            "Min" => Binary::Min,
            _ => Binary::Max,
        };
        let tensors = (0..self.node.input.len()).map(|at| self.input(at)).collect::<Option<Vec<_>>>()?;
        let element = tensors.first()?.element;
        if !is_float(element) || self.opsets.core < 8 {
            return None;
        }
        let tensors: Vec<&Tensor> = tensors.iter().map(AsRef::as_ref).collect();
        self.broadcast(&tensors, element, |follower, columns| {
            let mut all = columns[0].clone();
            for column in &columns[1..] {
                all = follower.binary(binary, &all, column, element);
            }
            all
        })
    }

    fn clip(&mut self) -> Option<Tensor> {
        let tensor = self.input(0)?;
        let element = tensor.element;
        if !is_float(element) {
            return None;
        }
        let bound = |follower: &Self, name: &str, at: usize| {
            if follower.has_input(at) {
                return follower
                    .numbers(at)
                    .filter(|numbers| numbers.len() == 1)
                    .map(|numbers| Some(numbers[0]));
            }
            Some(follower.attribute(name).and_then(|attribute| attribute.f).map(f64::from))
        };
        let (least, most) = (bound(self, "min", 1)?, bound(self, "max", 2)?);
        let least = least.map(|number| self.number(number, element));
        let most = most.map(|number| self.number(number, element));
        Some(self.map(&tensor, element, |follower, _, column| {
            let mut clipped = column.clone();
            for (operator, bound) in [(Binary::Max, &least), (Binary::Min, &most)] {
                if let Some(bound) = bound {
                    clipped = follower.binary(operator, &clipped, bound, element);
                }
            }
            clipped
        }))
    }

    fn choose(&mut self) -> Option<Tensor> {
        let (condition, yes, no) = (self.input(0)?, self.input(1)?, self.input(2)?);
        if yes.element != no.element || condition.element != Element::Bool {
            return None;
        }
        let element = yes.element;
        self.broadcast(&[&condition, &yes, &no], element, |follower, columns| match columns {
            [Column::Of(condition), Column::Of(yes), Column::Of(no)] => {
                follower.push(Step::Choose(*condition, *yes, *no), element)
            }
            _ => Column::Opaque,
        })
    }

    fn concat(&mut self) -> Option<Tensor> {
        let tensors = (0..self.node.input.len()).map(|at| self.input(at)).collect::<Option<Vec<_>>>()?;
        let first = tensors.first()?;
        let axis = self.axis(first, self.int("axis", 1))?;
        let is_like_first = |tensor: &Arc<Tensor>| {
            let without = |tensor: &Tensor| (tensor.dims[..axis].to_vec(), tensor.dims[axis + 1..].to_vec());
            tensor.per_row == first.per_row
                && tensor.element == first.element
                && tensor.dims.len() == first.dims.len()
                && without(tensor) == without(first)
        };
        if !tensors.iter().all(is_like_first) {
            return None;
        }
        let mut dims = first.dims.clone();
        dims[axis] = tensors.iter().map(|tensor| tensor.dims[axis]).sum();
        let mut columns = Vec::new();
        for block in 0..dims[..axis].iter().product() {
            for tensor in &tensors {
                let size: usize = tensor.dims[axis..].iter().product();
                columns.extend_from_slice(&tensor.columns[block * size..(block + 1) * size]);
            }
        }
        Some(Tensor { dims, columns, ..first.as_ref().clone() })
    }

    fn reshape(&mut self) -> Option<Tensor> {
        let tensor = self.input(0)?;
        let shape = self.list("shape", 1)?;
        if self.int("allowzero", 0) != 0 {
            return None;
        }
        let count = tensor.columns.len();
        let mut wanted = shape.as_slice();
        if tensor.per_row {
            // As many rows as before: what is left over, where each row keeps its columns.
            let (rows, rest) = shape.split_first()?;
            wanted = rest;
            if !(*rows == 0 || (*rows == -1 && rest.iter().all(|dim| *dim != -1))) {
                return None;
            }
        }
        let first = usize::from(tensor.per_row);
        let mut dims = Vec::with_capacity(wanted.len());
        for (at, dim) in wanted.iter().enumerate() {
            dims.push(match dim {
                0 => *tensor.dims.get((at + first).checked_sub(first)?)?,
                -1 => 1,
                dim => usize::try_from(*dim).ok()?,
            });
        }
        if let Some(open) = wanted.iter().position(|dim| *dim == -1) {
            dims[open] = count.checked_div(dims.iter().product())?;
        }
        (dims.iter().product::<usize>() == count).then(|| Tensor { dims, ..tensor.as_ref().clone() })
    }

    fn flatten(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        (self.int("axis", 1) == 1)
            .then(|| Tensor { dims: vec![tensor.columns.len()], ..tensor.as_ref().clone() })
    }

    fn squeeze(&mut self) -> Option<Tensor> {
        let tensor = self.input(0)?;
        // Without axes, a single row would lose its dimension as well.
        let mut dims = tensor.dims.clone();
        let axes = self.list("axes", 1)?;
        let axes = axes.iter().map(|axis| self.axis(&tensor, *axis)).collect::<Option<Vec<_>>>()?;
        for axis in &axes {
            (dims[*axis] == 1).then_some(())?;
        }
        let mut at = 0..;
        dims.retain(|_| at.next().is_some_and(|at| !axes.contains(&at)));
        Some(Tensor { dims, ..tensor.as_ref().clone() })
    }

    fn unsqueeze(&mut self) -> Option<Tensor> {
        let tensor = self.input(0)?;
        let axes = self.list("axes", 1)?;
        let first = usize::from(tensor.per_row);
        let rank = tensor.dims.len() + first + axes.len();
        let places = axes.iter().map(|axis| {
            let axis = if *axis < 0 { axis + rank as i64 } else { *axis };
            usize::try_from(axis).ok().filter(|axis| *axis < rank)?.checked_sub(first)
        });
        let mut places = places.collect::<Option<Vec<_>>>()?;
        places.sort_unstable();
        let mut dims = tensor.dims.clone();
        for place in places {
            (place <= dims.len()).then(|| dims.insert(place, 1))?;
        }
        Some(Tensor { dims, ..tensor.as_ref().clone() })
    }

    /// The entries at `places` along an axis of `dims`, which becomes `new`.
    fn take(&self, tensor: &Tensor, axis: usize, places: &[i64], new: &[usize]) -> Option<Tensor> {
        let size = tensor.dims[axis];
        let inner: usize = tensor.dims[axis + 1..].iter().product();
        let outer: usize = tensor.dims[..axis].iter().product();
        let mut columns = Vec::with_capacity(outer * places.len() * inner);
        for block in 0..outer {
            for place in places {
                let place = if *place < 0 { place + size as i64 } else { *place };
                let place = usize::try_from(place).ok().filter(|place| *place < size)?;
                let from = (block * size + place) * inner;
                columns.extend_from_slice(&tensor.columns[from..from + inner]);
            }
        }
        let dims = [&tensor.dims[..axis], new, &tensor.dims[axis + 1..]].concat();
        Some(Tensor { element: tensor.element, per_row: tensor.per_row, dims, columns })
    }

    fn gather(&mut self) -> Option<Tensor> {
        let (data, places) = (self.input(0)?, self.input(1)?);
        let axis = self.axis(&data, self.int("axis", 0))?;
        if let Some(found) = self.constants(&places) {
            let found: Vec<i64> = found.into_iter().map(|place| place as i64).collect();
            return self.take(&data, axis, &found, &places.dims);
        }
        // A table, and a row's place in it.
        let entries = self.constants(&data)?;
        let (size, element) = (*data.dims.first()?, data.element);
        if axis != 0 || !matches!(places.element, Element::Int64 | Element::Int32) {
            return None;
        }
        let inner: usize = data.dims[1..].iter().product();
        let lists: Vec<Arc<[f64]>> =
            (0..inner).map(|at| entries.iter().skip(at).step_by(inner).copied().collect()).collect();
        debug_assert!(lists.iter().all(|list| list.len() == size), "one entry per place");
        if places.columns.len() * inner > MOST_COLUMNS {
            return None;
        }
        let mut columns = Vec::with_capacity(places.columns.len() * inner);
        for place in &places.columns {
            for list in &lists {
                columns.push(match place {
                    Column::Of(id) => self.push(Step::Pick(*id, Arc::clone(list)), element),
                    Column::Sum(_) | Column::Opaque => Column::Opaque,
                });
            }
        }
        let dims = [&places.dims[..], &data.dims[1..]].concat();
        Some(Tensor { element, per_row: true, dims, columns })
    }

    fn slice(&mut self) -> Option<Tensor> {
        let mut tensor = self.input(0)?.as_ref().clone();
        let (starts, ends) = (self.list("starts", 1)?, self.list("ends", 2)?);
        let axes = if self.has_input(3) || self.attribute("axes").is_some() {
            self.list("axes", 3)?
        } else {
            (0..starts.len() as i64).collect()
        };
        let steps = if self.has_input(4) { self.list("steps", 4)? } else { vec![1; starts.len()] };
        if [ends.len(), axes.len(), steps.len()].iter().any(|length| *length != starts.len()) {
            return None;
        }
        for (at, axis) in axes.iter().enumerate() {
            let axis = self.axis(&tensor, *axis)?;
            let size = tensor.dims[axis] as i64;
            let within =
                |place: i64| (if place < 0 { place.saturating_add(size) } else { place }).clamp(0, size);
            if steps[at] < 1 {
                return None;
            }
            let places: Vec<i64> =
                (within(starts[at])..within(ends[at])).step_by(usize::try_from(steps[at]).ok()?).collect();
            tensor = self.take(&tensor, axis, &places, &[places.len()])?;
        }
        Some(tensor)
    }

    fn split(self) -> Made {
        let tensor = self.input(0)?;
        let axis = self.axis(&tensor, self.int("axis", 0))?;
        let (size, count) = (tensor.dims[axis], self.node.output.len());
        let sizes = match self.list("split", 1) {
            Some(sizes) => {
                sizes.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<Vec<_>>>()?
            }
            None if count > 0 && size.is_multiple_of(count) => vec![size / count; count],
            None => return None,
        };
        if sizes.iter().sum::<usize>() != size || sizes.len() != count {
            return None;
        }
        let mut from = 0;
        let part = |size: usize| {
            let places: Vec<i64> = (from as i64..(from + size) as i64).collect();
            from += size;
            self.take(&tensor, axis, &places, &[size])
        };
        Some(sizes.into_iter().map(part).collect())
    }

    /// Rows times a matrix of constants `[inner, outputs]`, plus constants.
    fn product(
        &mut self,
        tensor: &Tensor,
        weight: impl Fn(usize, usize) -> f64,
        outputs: usize,
        constants: &[f64],
        element: Element,
    ) -> Option<Tensor> {
        let inner = *tensor.dims.last()?;
        let lines = tensor.columns.len().checked_div(inner)?;
        if lines.saturating_mul(outputs) > MOST_COLUMNS || lines.saturating_mul(outputs * inner) > MOST_TERMS
        {
            return None;
        }
        let mut columns = Vec::with_capacity(lines * outputs);
        for line in tensor.columns.chunks_exact(inner) {
            for output in 0..outputs {
                let weighted: Vec<_> = line
                    .iter()
                    .enumerate()
                    .map(|(at, column)| (column.clone(), weight(at, output)))
                    .collect();
                let constant = constants.get(output).copied().unwrap_or(0.0);
                columns.push(self.weigh(&weighted, constant, element)?);
            }
        }
        let mut dims = tensor.dims.clone();
        *dims.last_mut()? = outputs;
        Some(Tensor { element, per_row: true, dims, columns })
    }

    fn matmul(&mut self) -> Option<Tensor> {
        let (tensor, matrix) = (self.rows(0)?, self.input(1)?);
        let weights = self.constants(&matrix)?;
        let (inner, outputs) = match *matrix.dims.as_slice() {
            [inner, outputs] => (inner, outputs),
            [inner] => (inner, 1),
            _ => return None,
        };
        if tensor.dims.last() != Some(&inner) || !is_float(tensor.element) {
            return None;
        }
        let weight = |at, output| weights[at * outputs + output];
        let mut made = self.product(&tensor, weight, outputs, &[], tensor.element)?;
        if matrix.dims.len() == 1 {
            made.dims.pop();
        }
        Some(made)
    }

    fn gemm(&mut self) -> Option<Tensor> {
        let (tensor, matrix) = (self.rows(0)?, self.input(1)?);
        let weights = self.constants(&matrix)?;
        let [rows, columns] = *matrix.dims.as_slice() else { return None };
        let is_turned = self.int("transB", 0) != 0;
        let (inner, outputs) = if is_turned { (columns, rows) } else { (rows, columns) };
        if self.int("transA", 0) != 0 || tensor.dims != [inner] || !is_float(tensor.element) {
            return None;
        }
        let (alpha, beta) = (self.float("alpha", 1.0), self.float("beta", 1.0));
        let mut constants = vec![0.0; outputs];
        if self.has_input(2) {
            let added = self.numbers(2)?;
            let dims = &self.input(2)?.dims;
            if !(added.len() == 1 || (added.len() == outputs && dims.last() == Some(&outputs))) {
                return None;
            }
            for (at, constant) in constants.iter_mut().enumerate() {
                *constant = beta * added[if added.len() == 1 { 0 } else { at }];
            }
        }
        let weight =
            |at, output| alpha * weights[if is_turned { output * inner + at } else { at * outputs + output }];
        self.product(&tensor, weight, outputs, &constants, tensor.element)
    }

    fn reduce(&mut self, operator: &str) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let axes = self.list("axes", 1)?;
        let [count] = *tensor.dims.as_slice() else { return None };
        let [axis] = axes.as_slice() else { return None };
        self.axis(&tensor, *axis)?;
        if !is_float(tensor.element) || count == 0 {
            return None;
        }
        let weight = if operator == "ReduceMean" { 1.0 / count as f64 } else { 1.0 };
        let weighted: Vec<_> = tensor.columns.iter().map(|column| (column.clone(), weight)).collect();
        let columns = vec![self.weigh(&weighted, 0.0, tensor.element)?];
        let dims = if self.int("keepdims", 1) != 0 { vec![1] } else { Vec::new() };
        Some(Tensor { element: tensor.element, per_row: true, dims, columns })
    }

    fn arg_max(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let [_] = tensor.dims.as_slice() else { return None };
        self.axis(&tensor, self.int("axis", 0))?;
        if self.int("select_last_index", 0) != 0 || !is_float(tensor.element) {
            return None;
        }
        let mut best = tensor.columns.first()?.clone();
        let mut place = self.number(0.0, Element::Int64);
        for (at, column) in tensor.columns.iter().enumerate().skip(1) {
            let Column::Of(is_more) = self.binary(Binary::Greater, column, &best, Element::Bool) else {
                return None;
            };
            let here = self.number(at as f64, Element::Int64);
            let better = |follower: &mut Self, yes: &Column, no: &Column, element| match (yes, no) {
                (Column::Of(yes), Column::Of(no)) => follower.push(Step::Choose(is_more, *yes, *no), element),
                _ => Column::Opaque,
            };
            place = better(self, &here, &place, Element::Int64);
            best = better(self, column, &best, tensor.element);
        }
        let dims = if self.int("keepdims", 1) != 0 { vec![1] } else { Vec::new() };
        Some(Tensor { element: Element::Int64, per_row: true, dims, columns: vec![place] })
    }

    // Operators of ai.onnx.ml.

    /// The entry for a column of the last dimension, of a list with one entry for all or one for each.
    fn per_column(list: &[f64], tensor: &Tensor, at: usize) -> Option<f64> {
        let width = *tensor.dims.last()?;
        match list.len() {
            1 => Some(list[0]),
            length if length == width => Some(list[at % width]),
            _ => None,
        }
    }

    fn scaler(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let (offsets, scales) = (self.floats("offset"), self.floats("scale"));
        // Doubles are computed as such and rounded at the end; the others are made float32 first.
        let within = if tensor.element == Element::Float64 { Element::Float64 } else { Element::Float32 };
        if !matches!(tensor.element, Element::Float32 | Element::Float64 | Element::Int64 | Element::Int32) {
            return None;
        }
        let numbers = (0..tensor.columns.len()).map(|at| {
            Some((Self::per_column(&offsets, &tensor, at)?, Self::per_column(&scales, &tensor, at)?))
        });
        let numbers = numbers.collect::<Option<Vec<_>>>()?;
        Some(self.map(&tensor, Element::Float32, |follower, at, column| {
            let [offset, scale] =
                [numbers[at].0, numbers[at].1].map(|number| follower.number(number, within));
            let mut scaled = follower.converted(column, tensor.element, within);
            scaled = follower.binary(Binary::Sub, &scaled, &offset, within);
            scaled = follower.binary(Binary::Mul, &scaled, &scale, within);
            follower.converted(&scaled, within, Element::Float32)
        }))
    }

    /// A column of numbers as another element.
    fn converted(&mut self, column: &Column, from: Element, to: Element) -> Column {
        match column {
            Column::Of(id) if from != to => self.push(Step::Cast(*id), to),
            Column::Sum(_) if !is_float(to) => Column::Opaque,
            _ => column.clone(),
        }
    }

    fn imputer(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let (values, replaced) = match tensor.element {
            Element::Float32 => {
                (self.floats("imputed_value_floats"), self.float("replaced_value_float", 0.0))
            }
            Element::Int64 => {
                let values = self.ints("imputed_value_int64s").iter().map(|value| *value as f64).collect();
                (values, self.int("replaced_value_int64", 0) as f64)
            }
            _ => return None,
        };
        let element = tensor.element;
        let values = (0..tensor.columns.len()).map(|at| Self::per_column(&values, &tensor, at));
        let values = values.collect::<Option<Vec<_>>>()?;
        Some(self.map(&tensor, element, |follower, at, column| {
            let is_replaced = if replaced.is_nan() {
                follower.unary(Unary::IsNan, column, Element::Bool)
            } else {
                let replaced = follower.number(replaced, element);
                follower.binary(Binary::Equal, column, &replaced, Element::Bool)
            };
            match (is_replaced, follower.number(values[at], element), column) {
                (Column::Of(is_replaced), Column::Of(value), Column::Of(id)) => {
                    follower.push(Step::Choose(is_replaced, value, *id), element)
                }
                _ => Column::Opaque,
            }
        }))
    }

    fn one_hot(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let (keys, key) = if tensor.element == Element::String {
            (self.texts("cats_strings")?, Element::String)
        } else {
            (
                self.ints("cats_int64s").iter().map(|key| Constant::Number(*key as f64)).collect(),
                Element::Int64,
            )
        };
        if keys.is_empty() || tensor.columns.len().saturating_mul(keys.len()) > MOST_COLUMNS {
            return None;
        }
        let is_there_twice = |at: usize| keys[..at].contains(&keys[at]);
        if keys.len() < 4_096 && (0..keys.len()).any(is_there_twice) {
            return None;
        }
        let keys: Vec<Column> = keys.into_iter().map(|text| self.push(Step::Constant(text), key)).collect();
        let mut columns = Vec::with_capacity(tensor.columns.len() * keys.len());
        for column in &tensor.columns {
            let asked = self.converted(column, tensor.element, key);
            for key in &keys {
                let equal = self.binary(Binary::Equal, &asked, key, Element::Bool);
                columns.push(self.converted(&equal, Element::Bool, Element::Float32));
            }
        }
        let dims = [&tensor.dims[..], &[keys.len()]].concat();
        Some(Tensor { element: Element::Float32, per_row: true, dims, columns })
    }

    /// The entries of an attribute's list, by which element they are.
    fn entries(&mut self, side: &str) -> Option<(Element, Vec<Constant>)> {
        let mut found = Vec::new();
        for attribute in &self.node.attribute {
            let Some(kind) = attribute.name().strip_prefix(side) else { continue };
            found.push(match kind {
                "strings" => (Element::String, self.texts(attribute.name())?),
                "int64s" => {
                    let numbers = attribute.ints.iter().map(|number| Constant::Number(*number as f64));
                    (Element::Int64, numbers.collect())
                }
                "floats" => {
                    let numbers = attribute.floats.iter().map(|number| Constant::Number(f64::from(*number)));
                    (Element::Float32, numbers.collect())
                }
                "tensor" => {
                    let tensor = self.trace.tensor(attribute.t.as_ref()?)?;
                    let constants = tensor.columns.iter().map(|column| match column {
                        Column::Of(id) => self.trace.steps.constant(*id).cloned(),
                        Column::Sum(_) | Column::Opaque => None,
                    });
                    (tensor.element, constants.collect::<Option<_>>()?)
                }
                _ => continue,
            });
        }
        (found.len() == 1).then(|| found.pop())?
    }

    fn label_encoder(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        // Of the first version there is one list, and a text's number is its place in it.
        let (keys, values) = if self.attribute("classes_strings").is_some() {
            let texts = (Element::String, self.texts("classes_strings")?);
            let places = (0..texts.1.len()).map(|at| Constant::Number(at as f64));
            let places = (Element::Int64, places.collect());
            if tensor.element == Element::String { (texts, places) } else { (places, texts) }
        } else {
            (self.entries("keys_")?, self.entries("values_")?)
        };
        let default = match self.attribute("default_tensor") {
            Some(attribute) => {
                let tensor = self.trace.tensor(attribute.t.as_ref()?)?;
                let [Column::Of(id)] = tensor.columns.as_slice() else { return None };
                self.trace.steps.constant(*id)?.clone()
            }
            None => match values.0 {
                Element::String => self.text("default_string", "_Unused")?,
                Element::Int64 => Constant::Number(self.int("default_int64", -1) as f64),
                Element::Float32 => Constant::Number(self.float("default_float", -0.0)),
                _ => return None,
            },
        };
        self.look_up(&tensor, keys, values, default)
    }

    fn category_mapper(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let (keys, values) = (self.entries("cats_strings"), self.entries("cats_int64s"));
        let texts =
            (Element::String, keys.map_or_else(|| self.texts("cats_strings"), |found| Some(found.1))?);
        let numbers = self.ints("cats_int64s").iter().map(|number| Constant::Number(*number as f64));
        let numbers = (Element::Int64, values.map_or_else(|| numbers.collect(), |found| found.1));
        if tensor.element == Element::String {
            let default = Constant::Number(self.int("default_int64", -1) as f64);
            self.look_up(&tensor, texts, numbers, default)
        } else {
            let default = self.text("default_string", "_Unused")?;
            self.look_up(&tensor, numbers, texts, default)
        }
    }

    fn look_up(
        &mut self,
        tensor: &Tensor,
        keys: (Element, Vec<Constant>),
        values: (Element, Vec<Constant>),
        default: Constant,
    ) -> Option<Tensor> {
        if keys.0 != tensor.element || keys.1.len() != values.1.len() {
            return None;
        }
        let is_held = |constant: &Constant| !matches!(constant, Constant::Number(x) if x.abs() > WHOLE);
        if values.0 == Element::Int64 && !(values.1.iter().all(is_held) && is_held(&default)) {
            return None;
        }
        // What is no number is found from version 4 on.
        let is_found = |key: &Constant| {
            self.opsets.machine_learning >= 4 || !matches!(key, Constant::Number(key) if key.is_nan())
        };
        let entries = keys.1.into_iter().zip(values.1).filter(|(key, _)| is_found(key));
        let table = Arc::new(Table::new(entries, default)?);
        Some(self.map(tensor, values.0, |follower, _, column| match column {
            Column::Of(id) => follower.push(Step::LookUp(*id, Arc::clone(&table)), values.0),
            Column::Sum(_) | Column::Opaque => Column::Opaque,
        }))
    }

    fn extract(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let places: Vec<i64> = self.numbers(1)?.into_iter().map(|place| place as i64).collect();
        let axis = tensor.dims.len().checked_sub(1)?;
        self.take(&tensor, axis, &places, &[places.len()])
    }

    fn vectorizer(&mut self) -> Option<Tensor> {
        let mut columns = Vec::new();
        for (at, size) in self.ints("inputdimensions").iter().enumerate() {
            let tensor = self.rows(at)?;
            if tensor.element == Element::String || usize::try_from(*size) != Ok(tensor.columns.len()) {
                return None;
            }
            for column in &tensor.columns {
                columns.push(self.converted(column, tensor.element, Element::Float32));
            }
        }
        Some(Tensor { element: Element::Float32, per_row: true, dims: vec![columns.len()], columns })
    }

    fn binarizer(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let element = tensor.element;
        if !is_float(element) {
            return None;
        }
        let threshold = self.float("threshold", 0.0);
        Some(self.map(&tensor, element, |follower, _, column| {
            let threshold = follower.number(threshold, element);
            let is_more = follower.binary(Binary::Greater, column, &threshold, Element::Bool);
            follower.converted(&is_more, Element::Bool, element)
        }))
    }

    /// One sum for each row of coefficients.
    fn linear(&mut self, count: usize) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let (coefficients, intercepts) = (self.floats("coefficients"), self.floats("intercepts"));
        let [inner] = *tensor.dims.as_slice() else { return None };
        if coefficients.len() != count * inner || tensor.element == Element::String {
            return None;
        }
        let single = self.map(&tensor, Element::Float32, |follower, _, column| {
            follower.converted(column, tensor.element, Element::Float32)
        });
        let weight = |at, output| coefficients[output * inner + at];
        self.product(&single, weight, count, &intercepts, Element::Float32)
    }

    fn linear_regressor(&mut self) -> Option<Tensor> {
        let transform = self.attribute("post_transform").and_then(|attribute| attribute.s.as_deref());
        if !matches!(transform, None | Some(b"NONE")) {
            return None;
        }
        self.linear(usize::try_from(self.int("targets", 1)).ok()?)
    }

    fn linear_classifier(mut self) -> Made {
        let labels = self.ints("classlabels_ints").len() + self.texts("classlabels_strings")?.len();
        let (rows, intercepts) = (self.rows(0)?.columns.len(), self.floats("intercepts").len());
        let count = self.floats("coefficients").len().checked_div(rows)?;
        if intercepts != count {
            return None;
        }
        let scores = self.linear(count)?;
        let sums = scores.columns.iter().map(|column| self.trace.sum(column).map(Arc::new));
        let sums = sums.collect::<Option<Vec<_>>>()?;
        self.trace.scores.insert(self.at, sums);
        let transform = self.attribute("post_transform").and_then(|attribute| attribute.s.as_deref());
        let is_plain = matches!(transform, None | Some(b"NONE")) && count == labels && count > 1;
        Some(vec![None, is_plain.then_some(scores)])
    }
}
