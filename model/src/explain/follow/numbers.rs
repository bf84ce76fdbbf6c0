//! Operators of the core that compute.

use scoregate_schemas::manifest::Element;

use super::super::encode::{Binary, Constant, Step, Unary};
use super::{Column, Follower, MOST_COLUMNS, MOST_TERMS, Tensor, element, is_float};

impl Follower<'_, '_> {
    pub(super) fn constant(&mut self) -> Option<Tensor> {
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

    pub(super) fn cast(&mut self) -> Option<Tensor> {
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

    pub(super) fn elementwise(&mut self, operator: &str) -> Option<Tensor> {
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
    pub(super) fn broadcast(
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
    pub(super) fn fold(&mut self, operator: &str) -> Option<Tensor> {
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

    pub(super) fn clip(&mut self) -> Option<Tensor> {
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

    pub(super) fn choose(&mut self) -> Option<Tensor> {
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

    /// Rows times a matrix of constants `[inner, outputs]`, plus constants.
    pub(super) fn product(
        &mut self,
        tensor: &Tensor,
        weight: impl Fn(usize, usize) -> f64,
        outputs: usize,
        constants: &[f64],
        element: Element,
    ) -> Option<Tensor> {
        let inner = *tensor.dims.last()?;
        let lines = tensor.columns.len().checked_div(inner)?;
        self.trace.terms = self.trace.terms.saturating_add(tensor.columns.len().saturating_mul(outputs));
        if lines.saturating_mul(outputs) > MOST_COLUMNS || self.trace.terms > MOST_TERMS {
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

    pub(super) fn matmul(&mut self) -> Option<Tensor> {
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

    pub(super) fn gemm(&mut self) -> Option<Tensor> {
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

    pub(super) fn reduce(&mut self, operator: &str) -> Option<Tensor> {
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

    pub(super) fn arg_max(&mut self) -> Option<Tensor> {
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
}
