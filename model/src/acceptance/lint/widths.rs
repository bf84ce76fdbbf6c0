//! How many columns the values of a graph have, as far as that follows from what the file states.

use std::collections::HashMap;

use scoregate_schemas::onnx::{GraphProto, NodeProto, TensorShapeDimensionValue, TypeValue, ValueInfoProto};

use super::tensors::Constants;
use super::{Fault, Limits, domain};

/// The values of the form rows × columns whose columns are known, by name.
pub(super) type Widths<'g> = HashMap<&'g str, usize>;

/// Follows the columns from the declared inputs through the nodes that converters put before trees and linear models.
///
/// # Errors
/// [`Fault::TooMany`] if a value has more than it may: a few nodes that put a value beside itself make any number of them.
pub(super) fn of<'g>(
    graph: &'g GraphProto,
    constants: &Constants<'g>,
    limits: &Limits,
) -> Result<Widths<'g>, Fault> {
    let mut widths: Widths<'g> = graph
        .input
        .iter()
        // What is given in the file may be replaced only by what has its shape, but its rows are no rows of ours.
        .filter(|value| constants.shape(value.name()).is_none())
        .filter_map(|value| Some((value.name(), declared(value)?)))
        .collect();
    let within = |found: usize| match limits.columns {
        limit if found > limit => Err(Fault::TooMany { what: "columns of one value", found, limit }),
        _ => Ok(found),
    };
    for width in widths.values() {
        within(*width)?;
    }
    for node in &graph.node {
        let width = made(node, &widths, constants);
        if let (Some(width), Some(output)) = (width, node.output.first()) {
            widths.insert(output, within(width)?);
        }
    }
    Ok(widths)
}

/// The columns that an input declares: the second of two dimensions, where it is a number.
fn declared(value: &ValueInfoProto) -> Option<usize> {
    let Some(TypeValue::TensorType(tensor)) = value.r#type.as_ref()?.value.as_ref() else { return None };
    match tensor.shape.as_ref()?.dim.as_slice() {
        [_, columns] => match columns.value.as_ref()? {
            TensorShapeDimensionValue::DimValue(columns) => {
                usize::try_from(*columns).ok().filter(|columns| *columns > 0)
            }
            TensorShapeDimensionValue::DimParam(_) => None,
        },
        _ => None,
    }
}

/// The columns of what a node makes.
fn made(node: &NodeProto, widths: &Widths<'_>, constants: &Constants<'_>) -> Option<usize> {
    let input = |at: usize| node.input.get(at).map(String::as_str);
    let width = |at: usize| widths.get(input(at)?).copied();
    let axis =
        || node.attribute.iter().find(|attribute| attribute.name() == "axis").map(|attribute| attribute.i());
    let columns = |dims: &[i64]| dims.last().and_then(|columns| usize::try_from(*columns).ok());
    match (domain(node.domain()), node.op_type()) {
        (
            "",
            "Abs" | "Cast" | "Ceil" | "Clip" | "Exp" | "Floor" | "Identity" | "IsInf" | "IsNaN" | "Log"
            | "Neg" | "Not" | "Relu" | "Round" | "Sigmoid" | "Sign" | "Sqrt" | "Tanh",
        )
        | ("ai.onnx.ml", "Binarizer" | "Imputer" | "Normalizer" | "Scaler") => width(0),
        ("", "Add" | "Div" | "Max" | "Min" | "Mul" | "Pow" | "Sub") if node.input.len() == 2 => {
            match (width(0), width(1)) {
                (Some(one), Some(other)) => {
                    (one == other || other == 1).then_some(one).or((one == 1).then_some(other))
                }
                (Some(known), None) => broadcast(known, &constants.shape(input(1)?)?),
                (None, Some(known)) => broadcast(known, &constants.shape(input(0)?)?),
                (None, None) => None,
            }
        }
        ("", "Concat") if matches!(axis(), Some(1 | -1)) => (0..node.input.len()).map(width).sum(),
        ("ai.onnx.ml", "FeatureVectorizer") => {
            let sizes = node.attribute.iter().find(|attribute| attribute.name() == "inputdimensions")?;
            sizes.ints.iter().try_fold(0_usize, |sum, size| sum.checked_add(usize::try_from(*size).ok()?))
        }
        ("ai.onnx.ml", "ArrayFeatureExtractor") => {
            width(0)?;
            columns_taken(&constants.shape(input(1)?)?)
        }
        ("", "Gather") if axis() == Some(1) => {
            width(0)?;
            let indices = constants.shape(input(1)?)?;
            if indices.len() == 1 { columns_taken(&indices) } else { None }
        }
        ("", "Reshape") => match constants.numbers(input(1)?)?.as_slice() {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is a small whole number"
            )]
            [_, columns] if (1.0..1e9).contains(columns) => Some(*columns as usize),
            _ => None,
        },
        ("", "MatMul") => {
            width(0)?;
            let weights = constants.shape(input(1)?)?;
            if weights.len() == 2 { columns(&weights) } else { None }
        }
        _ => None,
    }
}

/// The columns of rows of `known` columns together with a constant of shape `dims`.
fn broadcast(known: usize, dims: &[i64]) -> Option<usize> {
    if dims.len() > 2 {
        return None;
    }
    let columns = dims.last().map_or(Some(1), |columns| usize::try_from(*columns).ok())?;
    if columns == 1 || columns == known { Some(known) } else { (known == 1).then_some(columns) }
}

fn columns_taken(indices: &[i64]) -> Option<usize> {
    indices.iter().try_fold(1_usize, |count, dim| count.checked_mul(usize::try_from(*dim).ok()?))
}
