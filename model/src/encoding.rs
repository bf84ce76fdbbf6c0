//! How a feature's values become columns of a graph's input, for running the graph and for following it by hand.

use std::sync::Arc;

use scoregate_schemas::feature_schema::{Encode, Field, Kind, Missing, Unknown};
use scoregate_schemas::manifest::Element;

use crate::features::{CategoryColumn, Column};
use crate::inspect::Lookup;

/// How a column of values becomes columns of a tensor.
#[derive(Debug, Clone)]
pub(crate) enum Fill {
    /// Numbers as they are.
    Number,
    /// Categories as text. The listed ones are the session's own copies, so that sessions share no reference counts.
    Text { listed: Vec<Arc<str>> },
    /// Categories as the integers of a look-up that was cut from the graph: those of listed values, and the look-up for
    /// the others.
    Code { listed: Vec<i64>, lookup: Lookup },
    /// Categories as the numbers that the schema gives them; `missing` is that of the empty text.
    Mapped { listed: Vec<f64>, missing: f64 },
    /// Categories as one column of 0 and 1 each.
    OneHot { columns: usize },
}

impl Fill {
    /// How `field` fills its columns of an input of `element`; text that a look-up turns into integers takes `lookup`. What an
    /// input cannot take is told as the end of a sentence about it.
    pub(crate) fn new(element: Element, field: &Field, lookup: Option<&Lookup>) -> Result<Self, String> {
        let name = &field.name;
        let integers = matches!(element, Element::Int64 | Element::Int32 | Element::Bool);
        let Kind::Category { values } = &field.kind else {
            return match element {
                Element::String => Err(format!("takes strings, but its feature \"{name}\" is a number")),
                Element::Bool if field.kind != Kind::Boolean => {
                    Err(format!("takes booleans; declare its feature \"{name}\" as \"boolean\""))
                }
                Element::Int64 | Element::Int32 if field.kind == Kind::Number => Err(format!(
                    "takes integers; declare its feature \"{name}\" as \"integer\", so that fractions are refused"
                )),
                _ if integers && field.missing == Missing::Pass => {
                    Err(format!("takes integers, which cannot hold the missing values of \"{name}\""))
                }
                _ => {
                    if let Missing::Impute(value) = &field.missing
                        && !value.as_f64().is_none_or(|number| is_held(element, number))
                    {
                        return Err(format!("cannot hold the number that \"impute\" of \"{name}\" gives"));
                    }
                    Ok(Self::Number)
                }
            };
        };
        let values = values.as_deref().unwrap_or_default();
        if element == Element::String {
            return Ok(match lookup {
                Some(lookup) => {
                    let listed = values.iter().map(|value| lookup.code(value)).collect();
                    Self::Code { listed, lookup: lookup.clone() }
                }
                None => Self::Text { listed: values.iter().map(|value| value.as_str().into()).collect() },
            });
        }
        match &field.encode {
            None => Err(format!(
                "takes numbers, but its feature \"{name}\" is a category; say with \"encode\" in its \"x-scoregate\" how \
                 training turned it into numbers"
            )),
            Some(Encode::OneHot) => Ok(Self::OneHot { columns: values.len() }),
            Some(Encode::Map(map)) => {
                let number = |text: &str| map.iter().find(|(category, _)| category == text).map(|(_, x)| *x);
                let missing = number("").unwrap_or(f64::NAN);
                let listed: Vec<f64> = values.iter().map(|value| number(value).unwrap_or(f64::NAN)).collect();
                let unlisted = field.unknown == Unknown::Pass;
                let absent = field.missing == Missing::Pass && missing.is_nan();
                if integers && (unlisted || absent) {
                    return Err(format!(
                        "takes integers, which cannot hold the unknown or missing values of \"{name}\""
                    ));
                }
                if integers && listed.iter().any(|number| number.fract() != 0.0) {
                    return Err(format!("takes integers, but \"encode\" of \"{name}\" has fractions"));
                }
                if let Some((category, number)) = map.iter().find(|(_, number)| !is_held(element, *number)) {
                    return Err(format!(
                        "cannot hold the number {number} that \"encode\" of \"{name}\" gives \"{category}\""
                    ));
                }
                Ok(Self::Mapped { listed, missing })
            }
        }
    }

    /// How many columns it fills.
    pub(crate) fn width(&self) -> usize {
        if let Self::OneHot { columns } = self { *columns } else { 1 }
    }

    /// Puts row `row` of a column of numbers or encoded categories into its columns of one line.
    pub(crate) fn number(&self, column: &Column, row: usize, line: &mut [f64]) {
        match (self, column) {
            (Self::OneHot { .. }, Column::Category(column)) => {
                line.fill(0.0);
                if let Some(cell) = line.get_mut(column.codes[row] as usize) {
                    *cell = 1.0;
                }
            }
            (Self::Mapped { listed, missing }, Column::Category(column)) => {
                let code = column.codes[row] as usize;
                let other =
                    || if column.others[code - listed.len()].is_empty() { *missing } else { f64::NAN };
                line[0] = listed.get(code).copied().unwrap_or_else(other);
            }
            (_, Column::Number(values)) => line[0] = values[row],
            // A code that is looked up is an integer of its own, see `integer`.
            (_, Column::Category(_)) => line[0] = f64::NAN,
        }
    }

    /// Row `row` of a column of categories as text.
    pub(crate) fn text(&self, column: &Column, row: usize) -> Arc<str> {
        let (Column::Category(column), Self::Text { listed }) = (column, self) else {
            unreachable!("a tensor of strings takes categories as text")
        };
        let code = column.codes[row] as usize;
        let other = || column.others[code - listed.len()].as_ref().into();
        listed.get(code).map_or_else(other, Arc::clone)
    }
}

/// Whether an input of `element` holds a number that the schema states: whole ones exactly, fractions as nearly as can be.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is looked for")]
fn is_held(element: Element, number: f64) -> bool {
    match element {
        Element::Float32 => {
            (number as f32).is_finite() && (number.fract() != 0.0 || f64::from(number as f32) == number)
        }
        Element::Float64 | Element::String => number.is_finite(),
        Element::Int64 => number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0,
        Element::Int32 => number.fract() == 0.0 && (-2_147_483_648.0..2_147_483_648.0).contains(&number),
        Element::Bool => number == 0.0 || number == 1.0,
    }
}

/// The look-up's integer for one category of a column.
pub(crate) fn code(column: &CategoryColumn, code: u32, listed: &[i64], lookup: &Lookup) -> i64 {
    let code = code as usize;
    listed.get(code).copied().unwrap_or_else(|| lookup.code(&column.others[code - listed.len()]))
}
