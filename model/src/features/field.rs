//! One field of the schema, compiled: a value of any type → a checked cell, or the code of what is wrong with it.

use std::borrow::Cow;

use rustc_hash::FxHashMap;
use scoregate_schemas::feature_schema::{Field, Kind, Missing, Unknown};
use scoregate_schemas::manifest::Element;
use serde_json::Value;

use super::{FaultCode, MAX_TEXT_BYTES};

/// One field of the schema, compiled.
#[derive(Debug)]
pub(super) struct FieldReader {
    pub(super) field: Field,
    /// Where its values go.
    pub(super) slot: Slot,
    /// Category → code, for fields with listed values.
    pub(super) codes: FxHashMap<Box<str>, u32>,
    /// The largest magnitude below which every integer is held exactly by the graph's input.
    exact_below: f64,
    /// Whether the graph's input is float32.
    float32: bool,
    /// Whether the graph's input is int32.
    int32: bool,
    /// What takes the place of a missing value.
    substitute: Option<Substitute>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Feature(usize),
    Entity,
    Ignored,
}

#[derive(Debug, Clone, PartialEq)]
enum Substitute {
    Number(f64),
    Text(String),
    /// Nothing is stored: an absent entity, an ignored field.
    Nothing,
}

/// One checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'t> {
    /// A number; NaN where a missing value passes.
    Number(f64),
    /// A listed category, by its index.
    Listed(u32),
    /// Text that the schema does not list.
    Text(Cow<'t, str>),
    /// Nothing: an absent entity, an ignored field.
    Nothing,
}

impl Cell<'_> {
    pub(super) fn into_owned(self) -> Cell<'static> {
        match self {
            Self::Number(number) => Cell::Number(number),
            Self::Listed(code) => Cell::Listed(code),
            Self::Text(text) => Cell::Text(Cow::Owned(text.into_owned())),
            Self::Nothing => Cell::Nothing,
        }
    }
}

impl FieldReader {
    pub(super) fn new(field: Field, slot: Slot, elements: &[Element]) -> Self {
        let codes = match &field.kind {
            Kind::Category { values: Some(values) } => {
                values.iter().zip(0..).map(|(value, code)| (value.as_str().into(), code)).collect()
            }
            _ => FxHashMap::default(),
        };
        let (float32, int32) = (elements.contains(&Element::Float32), elements.contains(&Element::Int32));
        let substitute = match (&field.missing, slot) {
            (_, Slot::Entity | Slot::Ignored) => (!field.required).then_some(Substitute::Nothing),
            (Missing::Reject, _) => None,
            (Missing::Pass, _) if matches!(field.kind, Kind::Category { .. }) => {
                Some(Substitute::Text(String::new()))
            }
            (Missing::Pass, _) => Some(Substitute::Number(f64::NAN)),
            (Missing::Impute(Value::String(text)), _) => Some(Substitute::Text(text.clone())),
            (Missing::Impute(Value::Bool(value)), _) => Some(Substitute::Number(f64::from(u8::from(*value)))),
            (Missing::Impute(value), _) => value.as_f64().map(Substitute::Number),
        };
        let exact_below = if float32 { 16_777_216.0 } else { 9_007_199_254_740_992.0 };
        Self { field, slot, codes, exact_below, float32, int32, substitute }
    }

    /// The narrowest of the graph's inputs that take the field.
    pub(super) fn element_name(&self) -> &'static str {
        match (self.int32, self.float32) {
            (true, _) => "int32",
            (false, true) => "float32",
            (false, false) => "float64",
        }
    }

    /// Whether every value becomes the same as with `other`.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        // All else follows from these.
        let inputs = |reader: &Self| (reader.float32, reader.int32);
        self.field == other.field && self.slot == other.slot && inputs(self) == inputs(other)
    }

    pub(super) fn missing(&self) -> Result<Cell<'_>, FaultCode> {
        match &self.substitute {
            None => Err(FaultCode::Required),
            Some(Substitute::Number(number)) => Ok(Cell::Number(*number)),
            Some(Substitute::Text(text)) => Ok(self
                .codes
                .get(text.as_str())
                .map_or(Cell::Text(Cow::Borrowed(text)), |code| Cell::Listed(*code))),
            Some(Substitute::Nothing) => Ok(Cell::Nothing),
        }
    }

    /// A JSON integer, or a CSV cell written as one. `exact` says whether `value` is what was written.
    pub(super) fn integer(&self, value: f64, exact: bool) -> Result<Cell<'static>, FaultCode> {
        if !matches!(self.field.kind, Kind::Number | Kind::Integer) {
            return self.other();
        }
        // An integer field is a 64-bit integer, whatever the graph's input could hold.
        if self.field.kind == Kind::Integer
            && !(-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&value)
        {
            return Err(FaultCode::Precision);
        }
        if self.int32 && !(-2_147_483_648.0..2_147_483_648.0).contains(&value) {
            return Err(FaultCode::Precision);
        }
        if value.abs() > self.exact_below && (!exact || !self.holds(value)) {
            return Err(FaultCode::Precision);
        }
        self.bounded(value)
    }

    /// A JSON number written with a fraction or an exponent. From 2^64 on it may have been written as an integer, so it has
    /// to be exact there, as far as its digits are still known.
    pub(super) fn float(&self, value: f64) -> Result<Cell<'static>, FaultCode> {
        match self.field.kind {
            Kind::Number => {}
            Kind::Integer if value.fract() == 0.0 => return self.integer(value, true),
            Kind::Integer => return Err(FaultCode::Type),
            _ => return self.other(),
        }
        #[expect(clippy::cast_possible_truncation, reason = "an overflow to infinity is what is looked for")]
        if self.float32 && (value as f32).is_infinite() {
            return Err(FaultCode::Overflow);
        }
        if value.abs() >= 18_446_744_073_709_551_616.0 && !self.holds(value) {
            return Err(FaultCode::Precision);
        }
        self.bounded(value)
    }

    /// Whether the graph's input holds `value` without rounding.
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what is looked for")]
    fn holds(&self, value: f64) -> bool {
        !self.float32 || f64::from(value as f32) == value
    }

    fn bounded(&self, value: f64) -> Result<Cell<'static>, FaultCode> {
        if self.field.range.contains(value) { Ok(Cell::Number(value)) } else { Err(FaultCode::Range) }
    }

    pub(super) fn boolean(&self, value: bool) -> Result<Cell<'static>, FaultCode> {
        match self.field.kind {
            Kind::Boolean => Ok(Cell::Number(f64::from(u8::from(value)))),
            _ => self.other(),
        }
    }

    /// A value of a type that is not the field's.
    pub(super) fn other(&self) -> Result<Cell<'static>, FaultCode> {
        if self.slot == Slot::Ignored { Ok(Cell::Nothing) } else { Err(FaultCode::Type) }
    }

    pub(super) fn string<'t>(&self, text: &'t str) -> Result<Cell<'t>, FaultCode> {
        let Kind::Category { values } = &self.field.kind else { return self.other() };
        if let Some(code) = self.codes.get(text) {
            return Ok(Cell::Listed(*code));
        }
        if values.is_some() && self.field.unknown == Unknown::Reject {
            return Err(FaultCode::Category);
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(FaultCode::Length);
        }
        let length = self.field.length;
        if (length.minimum.is_some() || length.maximum.is_some())
            && !(length.minimum.unwrap_or(0)..=length.maximum.unwrap_or(usize::MAX))
                .contains(&text.chars().count())
        {
            return Err(FaultCode::Length);
        }
        if text.contains('\0') || (self.slot == Slot::Entity && text.contains(char::is_control)) {
            return Err(FaultCode::Character);
        }
        Ok(Cell::Text(Cow::Borrowed(text)))
    }

    /// A CSV cell that is not empty.
    pub(super) fn text<'t>(&self, text: &'t str) -> Result<Cell<'t>, FaultCode> {
        match self.field.kind {
            Kind::Category { .. } => self.string(text),
            Kind::Boolean => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" => self.boolean(true),
                "false" | "0" => self.boolean(false),
                _ => self.other(),
            },
            Kind::Number | Kind::Integer => {
                let text = text.trim();
                // `parse` would read "inf" and "NaN" as well.
                if !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) {
                    return self.other();
                }
                let Ok(value) = text.parse::<f64>() else { return self.other() };
                if value.is_infinite() {
                    return Err(FaultCode::Overflow);
                }
                if text.contains(['.', 'e', 'E']) {
                    self.float(value)
                } else {
                    // The digits of an integer beyond 2^53 may differ from the number that was read.
                    self.integer(
                        value,
                        text.parse::<i64>().is_ok_and(|whole| whole as f64 as i128 == i128::from(whole)),
                    )
                }
            }
        }
    }
}

pub(super) fn describe_range(field: &Field) -> String {
    let range = field.range;
    let bounds = [
        range.minimum.map(|bound| format!("of at least {bound}")),
        range.exclusive_minimum.map(|bound| format!("greater than {bound}")),
        range.maximum.map(|bound| format!("of at most {bound}")),
        range.exclusive_maximum.map(|bound| format!("less than {bound}")),
    ];
    bounds.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}
