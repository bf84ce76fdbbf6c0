//! Checked columns → input tensors: which features fill which input, and how.

use std::collections::BTreeMap;
use std::sync::Arc;

use ort::session::SessionInputValue;
use ort::value::{PrimitiveTensorElementType, Tensor, TensorElementType, ValueType};
use scoregate_schemas::feature_schema::Field;
use scoregate_schemas::manifest::{Bindings, Element};

use super::Error;
use crate::encoding::{self, Fill};
use crate::features::{Column, FeatureRows, RowReader};
use crate::inspect::Lookup;

/// One input of the graph: a tensor `[N, width]` that features fill from left to right.
#[derive(Debug)]
pub(super) struct Input {
    element: Element,
    width: usize,
    /// Whether the graph takes `[N]` rather than `[N, 1]`.
    flat: bool,
    parts: Vec<Part>,
}

/// A feature's columns within an input.
#[derive(Debug)]
struct Part {
    /// The feature, by its place among the schema's.
    feature: usize,
    /// Its first column.
    at: usize,
    fill: Fill,
}

/// Finds the features of every input, and checks that each is of the element that the bindings say. An input among `lookups`
/// takes codes.
pub(super) fn bind(
    inner: &ort::session::Session,
    reader: &RowReader,
    bindings: &Bindings,
    lookups: &BTreeMap<String, Lookup>,
) -> Result<Vec<Input>, Error> {
    let bound = bindings.inputs();
    for binding in &bound {
        if !inner.inputs().iter().any(|input| input.name() == binding.input) {
            return Err(Error::Binding(format!("it has no input \"{}\"", binding.input)));
        }
    }
    let fields: Vec<&Field> = reader.features().collect();
    let mut inputs = Vec::with_capacity(bound.len());
    for input in inner.inputs() {
        let wrong = |problem: String| Error::Binding(format!("its input \"{}\" {problem}", input.name()));
        let Some(binding) = bound.iter().find(|binding| binding.input == input.name()) else {
            return Err(Error::Binding(format!("no feature is bound to its input \"{}\"", input.name())));
        };
        let lookup = lookups.get(input.name());
        let expected = match binding.element {
            Element::Float32 => TensorElementType::Float32,
            Element::Float64 => TensorElementType::Float64,
            Element::Int32 => TensorElementType::Int32,
            Element::Bool => TensorElementType::Bool,
            Element::String if lookup.is_none() => TensorElementType::String,
            Element::Int64 | Element::String => TensorElementType::Int64,
        };
        let shape = match input.dtype() {
            ValueType::Tensor { ty, shape, .. } if *ty == expected => shape,
            other => return Err(wrong(format!("is {other}, expected a tensor of {expected}"))),
        };
        let mut parts = Vec::with_capacity(binding.features.len());
        let mut width = 0;
        for name in binding.features {
            let found = fields.iter().position(|field| field.name == *name);
            let feature = found.ok_or_else(|| wrong(format!("takes \"{name}\", which is no feature")))?;
            let fill = Fill::new(binding.element, fields[feature], lookup).map_err(&wrong)?;
            parts.push(Part { feature, at: width, fill });
            width += parts.last().map_or(0, |part| part.fill.width());
        }
        // A declared width is a promise; the first dimension counts rows.
        if let Some(declared) = shape.get(1).filter(|declared| **declared >= 0)
            && usize::try_from(*declared) != Ok(width)
        {
            return Err(wrong(format!("has {declared} columns, but its features fill {width}")));
        }
        if shape.len() > 2 || shape.first().is_some_and(|rows| *rows > 1) {
            return Err(wrong(format!(
                "is of shape {shape:?}, expected any number of rows of {width} columns"
            )));
        }
        let flat = shape.len() == 1;
        if flat && width != 1 {
            return Err(wrong(format!("takes one value per row, but its features fill {width} columns")));
        }
        inputs.push(Input { element: binding.element, width, flat, parts });
    }
    Ok(inputs)
}

#[expect(clippy::cast_possible_truncation, reason = "the reader refused what the element cannot hold")]
impl Input {
    /// The shape of a tensor of `rows` rows.
    fn shape(&self, rows: usize) -> Vec<usize> {
        if self.flat { vec![rows] } else { vec![rows, self.width] }
    }

    /// A tensor of one row to be filled later.
    pub(super) fn blank(&self) -> ort::Result<SessionInputValue<'static>> {
        let shape = self.shape(1);
        Ok(match self.kind() {
            Element::Float32 => Tensor::from_array((shape, vec![0_f32; self.width]))?.into(),
            Element::Float64 => Tensor::from_array((shape, vec![0_f64; self.width]))?.into(),
            Element::Int64 => Tensor::from_array((shape, vec![0_i64; self.width]))?.into(),
            Element::Int32 => Tensor::from_array((shape, vec![0_i32; self.width]))?.into(),
            Element::Bool => Tensor::from_array((shape, vec![false; self.width]))?.into(),
            Element::String => Tensor::from_string_array((shape, vec![""; self.width].as_slice()))?.into(),
        })
    }

    /// Puts row `row` into a tensor of one row.
    pub(super) fn refill(
        &self,
        tensor: &mut SessionInputValue<'static>,
        rows: &FeatureRows,
        row: usize,
    ) -> ort::Result<()> {
        let SessionInputValue::Owned(value) = &mut *tensor else {
            unreachable!("`blank` makes owned tensors")
        };
        match self.kind() {
            Element::Float32 => self.line(rows, row, value.try_extract_tensor_mut()?.1, |x| x as f32),
            Element::Float64 => self.line(rows, row, value.try_extract_tensor_mut()?.1, |x| x),
            Element::Int64 => self.integers(rows, row, value.try_extract_tensor_mut()?.1),
            Element::Int32 => self.line(rows, row, value.try_extract_tensor_mut()?.1, |x| x as i32),
            Element::Bool => self.line(rows, row, value.try_extract_tensor_mut()?.1, |x| x != 0.0),
            Element::String => *tensor = self.tensor(rows, row, row + 1)?,
        }
        Ok(())
    }

    /// Rows `from..to` as a tensor `[N, width]`.
    pub(super) fn tensor(
        &self,
        rows: &FeatureRows,
        from: usize,
        to: usize,
    ) -> ort::Result<SessionInputValue<'static>> {
        match self.kind() {
            Element::Float32 => self.numbers(rows, from, to, |x| x as f32),
            Element::Float64 => self.numbers(rows, from, to, |x| x),
            Element::Int32 => self.numbers(rows, from, to, |x| x as i32),
            Element::Bool => self.numbers(rows, from, to, |x| x != 0.0),
            Element::Int64 => {
                if let [Part { feature, fill: Fill::Code { listed, lookup }, .. }] = self.parts.as_slice()
                    && let Column::Category(column) = &rows.columns[*feature]
                {
                    let codes = column.codes[from..to].iter();
                    let values: Vec<i64> =
                        codes.map(|found| encoding::code(column, *found, listed, lookup)).collect();
                    return Ok(Tensor::from_array((self.shape(to - from), values))?.into());
                }
                let mut values = vec![0_i64; (to - from) * self.width];
                for (line, row) in values.chunks_exact_mut(self.width).zip(from..) {
                    self.integers(rows, row, line);
                }
                Ok(Tensor::from_array((self.shape(to - from), values))?.into())
            }
            Element::String => {
                let texts: Vec<Arc<str>> = (from..to)
                    .flat_map(|row| {
                        self.parts.iter().map(move |part| part.fill.text(&rows.columns[part.feature], row))
                    })
                    .collect();
                Ok(Tensor::from_string_array((self.shape(to - from), texts.as_slice()))?.into())
            }
        }
    }

    /// The element of the tensor: codes are integers.
    fn kind(&self) -> Element {
        match self.parts.first() {
            Some(Part { fill: Fill::Code { .. }, .. }) => Element::Int64,
            _ => self.element,
        }
    }

    fn numbers<T>(
        &self,
        rows: &FeatureRows,
        from: usize,
        to: usize,
        convert: impl Fn(f64) -> T + Copy,
    ) -> ort::Result<SessionInputValue<'static>>
    where
        T: PrimitiveTensorElementType + Clone + Default + std::fmt::Debug + 'static,
    {
        if let ([part], 1) = (self.parts.as_slice(), self.width)
            && let Column::Number(numbers) = &rows.columns[part.feature]
        {
            let values: Vec<T> = numbers[from..to].iter().map(|number| convert(*number)).collect();
            return Ok(Tensor::from_array((self.shape(to - from), values))?.into());
        }
        let mut values = vec![T::default(); (to - from) * self.width];
        // Column by column: what a column is is asked once, and its values are read in order.
        for part in &self.parts {
            let lines = values[part.at..].chunks_mut(self.width).zip(from..to);
            match (&rows.columns[part.feature], &part.fill) {
                (Column::Number(numbers), _) => {
                    for (line, row) in lines {
                        line[0] = convert(numbers[row]);
                    }
                }
                (column, fill) => {
                    let mut cells = vec![0.0; fill.width()];
                    for (line, row) in lines {
                        fill.number(column, row, &mut cells);
                        for (cell, number) in line.iter_mut().zip(&cells) {
                            *cell = convert(*number);
                        }
                    }
                }
            }
        }
        Ok(Tensor::from_array((self.shape(to - from), values))?.into())
    }

    /// Puts row `row` into one line of numbers.
    fn line<T>(&self, rows: &FeatureRows, row: usize, line: &mut [T], convert: impl Fn(f64) -> T) {
        for part in &self.parts {
            match (&rows.columns[part.feature], &part.fill) {
                (Column::Number(numbers), _) => line[part.at] = convert(numbers[row]),
                (Column::Category(column), Fill::OneHot { columns }) => {
                    for (at, cell) in line[part.at..part.at + columns].iter_mut().enumerate() {
                        *cell = convert(f64::from(u8::from(column.codes[row] as usize == at)));
                    }
                }
                (column, fill) => {
                    let mut cell = [0.0];
                    fill.number(column, row, &mut cell);
                    line[part.at] = convert(cell[0]);
                }
            }
        }
    }

    /// Puts row `row` into one line of integers.
    fn integers(&self, rows: &FeatureRows, row: usize, line: &mut [i64]) {
        for part in &self.parts {
            if let (Column::Category(column), Fill::Code { listed, lookup }) =
                (&rows.columns[part.feature], &part.fill)
            {
                line[part.at] = encoding::code(column, column.codes[row], listed, lookup);
            } else {
                return self.line(rows, row, line, |x| x as i64);
            }
        }
    }
}
