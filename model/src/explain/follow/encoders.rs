//! Operators of `ai.onnx.ml`: encoders, scalers and linear models.

use std::sync::Arc;

use scoregate_schemas::manifest::Element;

use super::super::encode::{Binary, Constant, Step, Table, Unary};
use super::{Column, Follower, MOST_COLUMNS, Made, Tensor, WHOLE, is_float};

impl Follower<'_, '_> {
    /// The entry for a column of the last dimension, of a list with one entry for all or one for each.
    pub(super) fn per_column(list: &[f64], tensor: &Tensor, at: usize) -> Option<f64> {
        let width = *tensor.dims.last()?;
        match list.len() {
            1 => Some(list[0]),
            length if length == width => Some(list[at % width]),
            _ => None,
        }
    }

    pub(super) fn scaler(&mut self) -> Option<Tensor> {
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
    pub(super) fn converted(&mut self, column: &Column, from: Element, to: Element) -> Column {
        match column {
            Column::Of(id) if from != to => self.push(Step::Cast(*id), to),
            Column::Sum(_) if !is_float(to) => Column::Opaque,
            _ => column.clone(),
        }
    }

    pub(super) fn imputer(&mut self) -> Option<Tensor> {
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

    pub(super) fn one_hot(&mut self) -> Option<Tensor> {
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
        // Of a key that is there twice only the runtime knows which column is meant.
        let none = Constant::Number(0.0);
        Table::new(keys.iter().map(|key| (key.clone(), none.clone())), none.clone())?;
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
    pub(super) fn entries(&mut self, side: &str) -> Option<(Element, Vec<Constant>)> {
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

    pub(super) fn label_encoder(&mut self) -> Option<Tensor> {
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

    pub(super) fn category_mapper(&mut self) -> Option<Tensor> {
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

    pub(super) fn look_up(
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

    pub(super) fn extract(&mut self) -> Option<Tensor> {
        let tensor = self.rows(0)?;
        let places: Vec<i64> = self.numbers(1)?.into_iter().map(|place| place as i64).collect();
        let axis = tensor.dims.len().checked_sub(1)?;
        self.take(&tensor, axis, &places, &[places.len()])
    }

    pub(super) fn vectorizer(&mut self) -> Option<Tensor> {
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

    pub(super) fn binarizer(&mut self) -> Option<Tensor> {
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
    pub(super) fn linear(&mut self, count: usize) -> Option<Tensor> {
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

    pub(super) fn linear_regressor(&mut self) -> Option<Tensor> {
        let transform = self.attribute("post_transform").and_then(|attribute| attribute.s.as_deref());
        if !matches!(transform, None | Some(b"NONE")) {
            return None;
        }
        self.linear(usize::try_from(self.int("targets", 1)).ok()?)
    }

    pub(super) fn linear_classifier(mut self) -> Made {
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
