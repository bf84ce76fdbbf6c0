//! What a graph answers → checked scores: tensors, one tensor per class, or a sequence of maps; with a link where the graph
//! stops at margins.

use ort::session::{OutputSelector, RunOptions, SessionOutputs};
use ort::value::{DynMapValueType, Tensor, TensorElementType, Value, ValueType};
use scoregate_schemas::manifest::{ClassKeys, Link, Output, Task};

use super::{Error, HasSelectedOutputs, OutputFault};
use crate::inspect::Served;

/// How far rounding may take a probability out of [0, 1]: what a float32 sum over hundreds of trees is off by. Such a one is
/// brought back.
pub const ROUNDING: f64 = 1e-5;

/// How to read a graph's answer.
#[derive(Debug)]
pub(super) struct Reading {
    names: Vec<String>,
    source: Source,
    /// Numbers per row that the graph gives.
    columns: usize,
    /// The one that is asked for, of a binary classifier.
    positive: usize,
    link: Option<Link>,
    task: Task,
    float32: bool,
}

#[derive(Debug)]
enum Source {
    /// One tensor, or one per column.
    Tensors,
    /// A sequence of maps with these keys.
    Maps(ClassKeys),
}

impl Reading {
    /// Checks that the outputs of `inner` are those of the manifest, as they were `served`.
    pub(super) fn new(
        inner: &ort::session::Session,
        output: &Output,
        served: &Served,
    ) -> Result<Self, Error> {
        let wrong = |message: String| Err(Error::Binding(message));
        let (mut columns, mut positive) = (output.columns(), output.positive());
        if columns == 0 {
            return wrong("its output has no classes".into());
        }
        if positive >= columns {
            return wrong(format!("column {positive} of {columns} cannot be the positive class"));
        }
        if served.one_column {
            (columns, positive) = (1, 0);
        }
        let mut float32 = true;
        for name in &served.outputs {
            let found = inner.outputs().iter().find(|found| found.name() == name);
            let Some(found) = found.map(ort::value::Outlet::dtype) else {
                return wrong(format!("it has no output \"{name}\""));
            };
            match (found, served.maps) {
                (ValueType::Tensor { ty: TensorElementType::Float32, .. }, false) => {}
                (ValueType::Tensor { ty: TensorElementType::Float64, .. }, false) => float32 = false,
                (ValueType::Sequence(inside), true) if is_map(inside, output) => {}
                (other, maps) => {
                    let expected = if maps {
                        "a sequence of maps from its classes to float32"
                    } else {
                        "a tensor of floats"
                    };
                    return wrong(format!("its output \"{name}\" is {other}, expected {expected}"));
                }
            }
        }
        let source = match output {
            Output::Zipmap { keys, .. } if served.maps => Source::Maps(keys.clone()),
            _ => Source::Tensors,
        };
        Ok(Self {
            names: served.outputs.clone(),
            source,
            columns,
            positive,
            link: output.link(),
            task: output.task(),
            float32,
        })
    }

    pub(super) fn task(&self) -> Task {
        self.task
    }

    pub(super) fn is_float32(&self) -> bool {
        self.float32
    }

    /// Options that make every run of one row write into the same tensor, which is of the shape that `outputs` shows. None
    /// where there is no single tensor of such a shape.
    pub(super) fn preallocate(
        &self,
        outputs: &SessionOutputs<'_>,
    ) -> ort::Result<Option<RunOptions<HasSelectedOutputs>>> {
        let ([name], Source::Tensors) = (self.names.as_slice(), &self.source) else { return Ok(None) };
        let ValueType::Tensor { ty, shape, .. } = outputs[name.as_str()].dtype() else { return Ok(None) };
        if !self.fits(shape, 1) {
            return Ok(None);
        }
        let shape: Vec<i64> = shape.to_vec();
        let selector = OutputSelector::no_default().with(name);
        let selector = match ty {
            TensorElementType::Float32 => {
                selector.preallocate(name, Tensor::from_array((shape, vec![0_f32; self.columns]))?)
            }
            TensorElementType::Float64 => {
                selector.preallocate(name, Tensor::from_array((shape, vec![0_f64; self.columns]))?)
            }
            _ => return Ok(None),
        };
        Ok(Some(RunOptions::new()?.with_outputs(selector)))
    }

    /// Whether a tensor holds one line of numbers per row: `[N, columns]`, or `[N]` for one column.
    fn fits(&self, shape: &[i64], rows: usize) -> bool {
        let columns = if self.names.len() > 1 { 1 } else { self.columns };
        let is = |dimension: i64, expected: usize| usize::try_from(dimension) == Ok(expected);
        match shape {
            [found] => is(*found, rows) && columns == 1,
            [found, of] => is(*found, rows) && is(*of, columns),
            _ => false,
        }
    }

    /// Adds the answers to `rows` rows, the first of them row `from` of all, to `values`.
    pub(super) fn read(
        &self,
        outputs: &SessionOutputs<'_>,
        from: usize,
        rows: usize,
        values: &mut Vec<f64>,
    ) -> Result<(), Error> {
        let begin = values.len();
        if self.columns == 1 && self.link.is_none() {
            self.read_raw(outputs, from, rows, values)?;
        } else {
            let mut raw = Vec::with_capacity(rows * self.columns);
            self.read_raw(outputs, from, rows, &mut raw)?;
            for line in raw.chunks_exact_mut(self.columns) {
                apply(self.link, line);
                match self.task {
                    Task::Multiclass { .. } => values.extend_from_slice(line),
                    Task::Binary | Task::Regression => values.push(line[self.positive]),
                }
            }
        }
        let width = self.task.width();
        for (at, value) in values[begin..].iter_mut().enumerate() {
            let row = from + at / width;
            if !value.is_finite() {
                return Err(Error::Output(OutputFault::NotFinite { row }));
            }
            if self.task != Task::Regression {
                if !(-ROUNDING..=1.0 + ROUNDING).contains(value) {
                    return Err(Error::Output(OutputFault::OutOfRange { row }));
                }
                *value = value.clamp(0.0, 1.0);
            }
        }
        Ok(())
    }

    /// Adds the graph's own numbers, one line of columns per row, to `values`.
    pub(super) fn read_raw(
        &self,
        outputs: &SessionOutputs<'_>,
        from: usize,
        rows: usize,
        values: &mut Vec<f64>,
    ) -> Result<(), Error> {
        if let Source::Maps(keys) = &self.source {
            return read_maps(outputs, &self.names[0], keys, from, rows, values);
        }
        let several = self.names.len() > 1;
        let begin = values.len();
        if several {
            values.resize(begin + rows * self.columns, 0.0);
        }
        for (column, name) in self.names.iter().enumerate() {
            let output = &outputs[name.as_str()];
            let mut put = |numbers: &mut dyn Iterator<Item = f64>| {
                if several {
                    let cells = values[begin..].iter_mut().skip(column).step_by(self.columns);
                    cells.zip(numbers).for_each(|(cell, number)| *cell = number);
                } else {
                    values.extend(numbers);
                }
            };
            let shape = if let Ok((shape, numbers)) = output.try_extract_tensor::<f32>() {
                if self.fits(shape, rows) {
                    put(&mut numbers.iter().map(|number| f64::from(*number)));
                    continue;
                }
                shape
            } else {
                let (shape, numbers) = output.try_extract_tensor::<f64>().map_err(Error::Run)?;
                if self.fits(shape, rows) {
                    put(&mut numbers.iter().copied());
                    continue;
                }
                shape
            };
            let columns = if several { 1 } else { self.columns };
            return Err(Error::Output(OutputFault::Shape { found: shape.to_vec(), rows, columns }));
        }
        Ok(())
    }
}

fn is_map(inside: &ValueType, output: &Output) -> bool {
    let Output::Zipmap { keys, .. } = output else { return false };
    let expected = match keys {
        ClassKeys::Integers(_) => TensorElementType::Int64,
        ClassKeys::Strings(_) => TensorElementType::String,
    };
    matches!(inside, ValueType::Map { key, value } if *key == expected && *value == TensorElementType::Float32)
}

/// Reads a sequence of one map per row.
fn read_maps(
    outputs: &SessionOutputs<'_>,
    name: &str,
    keys: &ClassKeys,
    from: usize,
    rows: usize,
    values: &mut Vec<f64>,
) -> Result<(), Error> {
    let maps: Vec<Value<DynMapValueType>> = outputs[name].try_extract_sequence().map_err(Error::Run)?;
    let wrong = |row| Error::Output(OutputFault::Map { row, classes: keys.len() });
    if maps.len() != rows {
        return Err(wrong(from + maps.len().min(rows)));
    }
    maps_to_lines(&maps, keys, from, values)
}

/// One line of a number per key from each map.
fn maps_to_lines(
    maps: &[Value<DynMapValueType>],
    keys: &ClassKeys,
    from: usize,
    values: &mut Vec<f64>,
) -> Result<(), Error> {
    let wrong = |row| Error::Output(OutputFault::Map { row, classes: keys.len() });
    for (row, map) in (from..).zip(maps) {
        let begin = values.len();
        match keys {
            ClassKeys::Integers(keys) => {
                let found = map.try_extract_map::<i64, f32>().map_err(Error::Run)?;
                values.extend(keys.iter().filter_map(|key| found.get(key)).map(|number| f64::from(*number)));
            }
            ClassKeys::Strings(keys) => {
                let found = map.try_extract_map::<String, f32>().map_err(Error::Run)?;
                values.extend(keys.iter().filter_map(|key| found.get(key)).map(|number| f64::from(*number)));
            }
        }
        if values.len() - begin != keys.len() {
            return Err(wrong(row));
        }
    }
    Ok(())
}

/// What a graph's output held for some rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The output's name.
    pub name: String,
    /// What it held.
    pub value: ObservedValue,
}

/// What an output held for some rows.
#[derive(Debug, Clone, PartialEq)]
pub enum ObservedValue {
    /// Floats, one line of `columns` per row.
    Numbers {
        /// Columns of a line.
        columns: usize,
        /// Row after row.
        values: Vec<f64>,
    },
    /// Integers, booleans or strings, so many per row: a single one is a label.
    Labels {
        /// How many.
        columns: usize,
    },
    /// One map per row, all with the same keys.
    Maps {
        /// The keys, in the first map's order.
        keys: ClassKeys,
        /// One line of a number per key, row after row.
        values: Vec<f64>,
    },
    /// Anything else, in words.
    Other(String),
}

impl std::fmt::Display for ObservedValue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Numbers { columns, .. } => write!(formatter, "float, N × {columns}"),
            Self::Labels { columns: 1 } => formatter.write_str("a label per row"),
            Self::Labels { columns } => write!(formatter, "labels, N × {columns}"),
            Self::Maps { keys, .. } => write!(formatter, "maps of {} classes", keys.len()),
            Self::Other(what) => formatter.write_str(what),
        }
    }
}

/// Describes one output of a run over `rows` rows.
pub(super) fn observe(output: &ort::value::DynValue, rows: usize) -> ort::Result<ObservedValue> {
    let kind = output.dtype().clone();
    let other = || Ok(ObservedValue::Other(kind.to_string()));
    match &kind {
        ValueType::Tensor { ty, shape, .. } => {
            let columns = match &shape[..] {
                [found] if usize::try_from(*found) == Ok(rows) => 1,
                [found, columns] if usize::try_from(*found) == Ok(rows) && *columns > 0 => *columns as usize,
                _ => return Ok(ObservedValue::Other(format!("a tensor of shape {shape:?} for {rows} rows"))),
            };
            match ty {
                TensorElementType::Float32 => {
                    let values =
                        output.try_extract_tensor::<f32>()?.1.iter().map(|x| f64::from(*x)).collect();
                    Ok(ObservedValue::Numbers { columns, values })
                }
                TensorElementType::Float64 => {
                    let values = output.try_extract_tensor::<f64>()?.1.to_vec();
                    Ok(ObservedValue::Numbers { columns, values })
                }
                TensorElementType::Int64
                | TensorElementType::Int32
                | TensorElementType::Bool
                | TensorElementType::String => Ok(ObservedValue::Labels { columns }),
                _ => other(),
            }
        }
        ValueType::Sequence(inside) => match inside.as_ref() {
            ValueType::Map { key, value: TensorElementType::Float32 } => {
                let maps: Vec<Value<DynMapValueType>> = output.try_extract_sequence()?;
                let Some(first) = maps.first().filter(|_| maps.len() == rows) else {
                    return Ok(ObservedValue::Other(format!("{} maps for {rows} rows", maps.len())));
                };
                let keys = match key {
                    TensorElementType::Int64 => ClassKeys::Integers(
                        first.try_extract_key_values::<i64, f32>()?.into_iter().map(|(key, _)| key).collect(),
                    ),
                    TensorElementType::String => ClassKeys::Strings(
                        first
                            .try_extract_key_values::<String, f32>()?
                            .into_iter()
                            .map(|(key, _)| key)
                            .collect(),
                    ),
                    _ => return other(),
                };
                let mut values = Vec::with_capacity(rows * keys.len());
                match maps_to_lines(&maps, &keys, 0, &mut values) {
                    Ok(()) => Ok(ObservedValue::Maps { keys, values }),
                    Err(_) => Ok(ObservedValue::Other("maps with different classes".into())),
                }
            }
            _ => other(),
        },
        _ => other(),
    }
}

/// Turns a row of scores into probabilities.
pub fn apply(link: Option<Link>, line: &mut [f64]) {
    match link {
        None => {}
        Some(Link::Sigmoid) => line.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
        Some(Link::Softmax) => {
            let greatest = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            line.iter_mut().for_each(|score| *score = (*score - greatest).exp());
            let sum: f64 = line.iter().sum();
            line.iter_mut().for_each(|score| *score /= sum);
        }
    }
}
