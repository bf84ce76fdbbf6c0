//! Encoded columns: what a graph makes of one feature each, step by step, followed in Rust as ONNX Runtime computes it.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use scoregate_schemas::manifest::Element;

use crate::encoding::Fill;
use crate::features::{CategoryColumn, Column, FeatureRows};

/// A step, by its place in [`Steps`].
pub(super) type Id = u32;

/// Steps of a graph at most.
const MOST_STEPS: usize = 1 << 21;

/// Steps at most that are taken beforehand for the listed values of a category; where there are more, each row takes its own.
const MOST_LISTED_STEPS: usize = 1 << 21;

/// A constant of the graph.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Constant {
    Number(f64),
    Text(Arc<str>),
}

/// What a step makes of a row: numbers and booleans as float64 that hold what the tensor holds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value<'v> {
    Number(f64),
    Text(&'v str),
}

impl Value<'_> {
    fn number(self) -> f64 {
        if let Self::Number(number) = self { number } else { f64::NAN }
    }
}

impl Constant {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Number(number) => Value::Number(*number),
            Self::Text(text) => Value::Text(text),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unary {
    Neg,
    Abs,
    Sqrt,
    Reciprocal,
    Floor,
    Ceil,
    Sign,
    Relu,
    Not,
    IsNan,
    Exp,
    Log,
    Tanh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Pow,
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    Xor,
}

/// One step on the way from a feature to a column.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Constant(Constant),
    /// A column that a feature fills itself: which [`Part`], and which of its columns.
    Feature {
        part: u32,
        at: u32,
    },
    /// To the element of the step.
    Cast(Id),
    Unary(Unary, Id),
    Binary(Binary, Id, Id),
    /// The second where the first is true, else the third.
    Choose(Id, Id, Id),
    LookUp(Id, Arc<Table>),
    /// An entry of a list, from the end where the place is negative.
    Pick(Id, Arc<[f64]>),
}

impl Step {
    fn inputs(&self) -> impl Iterator<Item = Id> {
        let inputs = match self {
            Self::Constant(_) | Self::Feature { .. } => [None; 3],
            Self::Cast(of) | Self::Unary(_, of) | Self::LookUp(of, _) | Self::Pick(of, _) => {
                [Some(*of), None, None]
            }
            Self::Binary(_, one, other) => [Some(*one), Some(*other), None],
            Self::Choose(condition, yes, no) => [Some(*condition), Some(*yes), Some(*no)],
        };
        inputs.into_iter().flatten()
    }

    /// The same step with other inputs.
    fn map(&self, place: impl Fn(Id) -> Id) -> Self {
        match self {
            Self::Constant(_) | Self::Feature { .. } => self.clone(),
            Self::Cast(of) => Self::Cast(place(*of)),
            Self::Unary(operator, of) => Self::Unary(*operator, place(*of)),
            Self::Binary(operator, one, other) => Self::Binary(*operator, place(*one), place(*other)),
            Self::Choose(condition, yes, no) => Self::Choose(place(*condition), place(*yes), place(*no)),
            Self::LookUp(of, table) => Self::LookUp(place(*of), Arc::clone(table)),
            Self::Pick(of, list) => Self::Pick(place(*of), Arc::clone(list)),
        }
    }
}

/// Keys and what they are replaced by.
#[derive(Debug, Clone)]
pub(super) struct Table {
    texts: FxHashMap<Box<str>, Constant>,
    numbers: FxHashMap<u64, Constant>,
    default: Constant,
}

impl Table {
    /// None if a key is there twice, whose meaning only the runtime knows.
    pub(super) fn new(
        entries: impl Iterator<Item = (Constant, Constant)>,
        default: Constant,
    ) -> Option<Self> {
        let mut table = Self { texts: FxHashMap::default(), numbers: FxHashMap::default(), default };
        for (key, value) in entries {
            let before = match key {
                Constant::Text(text) => table.texts.insert(text.as_ref().into(), value),
                Constant::Number(number) => table.numbers.insert(key_of(number), value),
            };
            if before.is_some() {
                return None;
            }
        }
        Some(table)
    }

    fn bytes(&self) -> usize {
        let entry = size_of::<(Box<str>, Constant)>();
        (self.texts.capacity() + self.numbers.capacity()) * entry
            + self.texts.keys().map(|text| text.len()).sum::<usize>()
    }

    fn value(&self, key: Value<'_>) -> Value<'_> {
        let found = match key {
            Value::Text(text) => self.texts.get(text),
            Value::Number(number) => self.numbers.get(&key_of(number)),
        };
        found.unwrap_or(&self.default).value()
    }
}

/// The same for all numbers that are equal, and for all that are none.
fn key_of(number: f64) -> u64 {
    if number == 0.0 {
        0
    } else if number.is_nan() {
        f64::NAN.to_bits()
    } else {
        number.to_bits()
    }
}

/// A feature's columns of an input of the graph.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) feature: u32,
    pub(super) element: Element,
    pub(super) fill: Fill,
    /// Whether a row may have no number of it.
    pub(super) is_optional: bool,
}

impl Part {
    fn value<'v>(&'v self, at: u32, rows: &'v FeatureRows, row: usize) -> Value<'v> {
        let column = &rows.columns[self.feature as usize];
        match (&self.fill, column) {
            (_, Column::Number(numbers)) => Value::Number(held(self.element, numbers[row])),
            (Fill::Text { listed }, Column::Category(column)) => {
                let code = column.codes[row] as usize;
                Value::Text(match listed.get(code) {
                    Some(text) => text,
                    None => &column.others[code - listed.len()],
                })
            }
            (Fill::OneHot { .. }, Column::Category(column)) => {
                Value::Number(f64::from(u8::from(column.codes[row] == at)))
            }
            (fill, column) => {
                let mut cell = [f64::NAN];
                fill.number(column, row, &mut cell);
                Value::Number(held(self.element, cell[0]))
            }
        }
    }
}

/// A feature's number as an input of `element` holds it, see [`crate::runtime`].
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the runtime is given what these casts make"
)]
fn held(element: Element, number: f64) -> f64 {
    match element {
        Element::Float32 => f64::from(number as f32),
        Element::Float64 | Element::String => number,
        Element::Int64 => (number as i64) as f64,
        Element::Int32 => f64::from(number as i32),
        Element::Bool => f64::from(u8::from(number != 0.0)),
    }
}

/// The result of an operator, rounded as its tensor is.
#[expect(clippy::cast_possible_truncation, reason = "the graph rounds as well")]
fn rounded(element: Element, number: f64) -> f64 {
    if element == Element::Float32 { f64::from(number as f32) } else { number }
}

/// What the operator Cast makes of a number. Floats that no integer holds become what the processor says.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the graph casts as well, and truncates towards zero"
)]
fn cast(element: Element, number: f64) -> f64 {
    let within = |limit: f64| number >= -limit && number < limit;
    let is_saturating = !cfg!(any(target_arch = "x86_64", target_arch = "x86"));
    match element {
        Element::Float32 => f64::from(number as f32),
        Element::Float64 | Element::String => number,
        Element::Bool => f64::from(u8::from(number != 0.0)),
        Element::Int64 if is_saturating || within(9_223_372_036_854_775_808.0) => (number as i64) as f64,
        Element::Int64 => i64::MIN as f64,
        Element::Int32 if is_saturating || within(2_147_483_648.0) => f64::from(number as i32),
        Element::Int32 => f64::from(i32::MIN),
    }
}

/// What is known of a step besides what it does.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) step: Step,
    pub(super) element: Element,
    /// The feature that it depends on; none of a constant.
    pub(super) feature: Option<u32>,
    /// Whether it comes out bit by bit as ONNX Runtime computes it; the last digit of a logarithm does not.
    pub(super) is_exact: bool,
    /// Whether it is a number for every row that may be sent.
    pub(super) is_finite: bool,
}

/// All steps of a graph, each after those that it uses.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) parts: Vec<Part>,
    all: Vec<Described>,
}

impl Steps {
    pub(super) fn get(&self, id: Id) -> &Described {
        &self.all[id as usize]
    }

    /// The constant that a step is.
    pub(super) fn constant(&self, id: Id) -> Option<&Constant> {
        if let Step::Constant(constant) = &self.get(id).step { Some(constant) } else { None }
    }

    /// The number that a step always is.
    pub(super) fn number(&self, id: Id) -> Option<f64> {
        if let Some(Constant::Number(number)) = self.constant(id) { Some(*number) } else { None }
    }

    /// Adds a step whose result is of `element`; what depends on no feature is computed at once. None if it would depend on
    /// two features, or if there are too many already.
    pub(super) fn push(&mut self, step: Step, element: Element) -> Option<Id> {
        if self.all.len() >= MOST_STEPS {
            return None;
        }
        let mut feature = match step {
            Step::Feature { part, .. } => Some(self.parts[part as usize].feature),
            _ => None,
        };
        let mut is_exact = !matches!(
            step,
            Step::Unary(Unary::Exp | Unary::Log | Unary::Tanh, _) | Step::Binary(Binary::Pow, ..)
        );
        let is_finite = match &step {
            Step::Constant(Constant::Number(number)) => number.is_finite(),
            Step::Feature { part, .. } => !self.parts[*part as usize].is_optional,
            Step::Cast(from) => self.get(*from).is_finite && self.get(*from).element != Element::Float64,
            _ => false,
        };
        for input in step.inputs() {
            let input = self.get(input);
            is_exact &= input.is_exact;
            match (feature, input.feature) {
                (Some(one), Some(other)) if one != other => return None,
                (None, found) => feature = found,
                _ => {}
            }
        }
        let step = if feature.is_none() && !matches!(step, Step::Constant(_)) {
            let value = |id: Id| self.constant(id).map_or(Value::Number(f64::NAN), Constant::value);
            Step::Constant(match evaluate(&step, element, value, |_, _| Value::Number(f64::NAN)) {
                Value::Number(number) => Constant::Number(number),
                Value::Text(text) => Constant::Text(text.into()),
            })
        } else {
            step
        };
        self.all.push(Described { step, element, feature, is_exact, is_finite });
        Id::try_from(self.all.len() - 1).ok()
    }
}

/// The result of one step. `of` knows those before it, `feature` what a feature fills.
#[inline]
fn evaluate<'v>(
    step: &'v Step,
    element: Element,
    of: impl Fn(Id) -> Value<'v>,
    feature: impl Fn(u32, u32) -> Value<'v>,
) -> Value<'v> {
    // Texts are compared and looked up, and never computed with.
    let number = |id: Id| of(id).number();
    Value::Number(match step {
        Step::Constant(constant) => return constant.value(),
        Step::Feature { part, at } => return feature(*part, *at),
        Step::LookUp(key, table) => return table.value(of(*key)),
        Step::Choose(condition, yes, no) => return of(if number(*condition) == 0.0 { *no } else { *yes }),
        Step::Cast(from) => cast(element, number(*from)),
        Step::Unary(operator, from) => rounded(element, unary(*operator, number(*from))),
        Step::Binary(Binary::Equal, one, other) => f64::from(u8::from(of(*one) == of(*other))),
        Step::Binary(operator, one, other) => {
            rounded(element, binary(*operator, element, number(*one), number(*other)))
        }
        Step::Pick(place, list) => {
            let place = number(*place);
            let place = if place < 0.0 { place + list.len() as f64 } else { place };
            list.get(place as usize).copied().filter(|_| place >= 0.0).unwrap_or(f64::NAN)
        }
    })
}

fn unary(operator: Unary, x: f64) -> f64 {
    match operator {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sqrt => x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Sign if x > 0.0 => 1.0,
        Unary::Sign if x < 0.0 => -1.0,
        Unary::Sign => x,
        Unary::Relu if x > 0.0 || x.is_nan() => x,
        Unary::Relu => 0.0,
        Unary::Not => f64::from(u8::from(x == 0.0)),
        Unary::IsNan => f64::from(u8::from(x.is_nan())),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Tanh => x.tanh(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "integers wrap in the graph as well"
)]
fn binary(operator: Binary, element: Element, x: f64, y: f64) -> f64 {
    let integer = |whole: i64| {
        if element == Element::Int32 { f64::from(whole as i32) } else { whole as f64 }
    };
    let is_integer = matches!(element, Element::Int64 | Element::Int32);
    let truth = |holds: bool| f64::from(u8::from(holds));
    match operator {
        Binary::Add if is_integer => integer((x as i64).wrapping_add(y as i64)),
        Binary::Sub if is_integer => integer((x as i64).wrapping_sub(y as i64)),
        Binary::Mul if is_integer => integer((x as i64).wrapping_mul(y as i64)),
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Min | Binary::Max if x.is_nan() || y.is_nan() => f64::NAN,
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::Pow => x.powf(y),
        Binary::Equal => truth(x == y),
        Binary::Less => truth(x < y),
        Binary::LessOrEqual => truth(x <= y),
        Binary::Greater => truth(x > y),
        Binary::GreaterOrEqual => truth(x >= y),
        Binary::And => truth(x != 0.0 && y != 0.0),
        Binary::Or => truth(x != 0.0 || y != 0.0),
        Binary::Xor => truth((x != 0.0) != (y != 0.0)),
    }
}

/// Turns a row's features into the encoded columns that a margin is computed from.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    players: Vec<Option<u32>>,
    /// What does not depend on the row, by column.
    constants: Vec<(u32, f64)>,
    features: Vec<OfFeature>,
}

/// The columns that depend on one feature.
#[derive(Debug, Clone)]
pub(super) struct OfFeature {
    feature: u32,
    columns: Vec<u32>,
    parts: Vec<Part>,
    /// Those that are needed, in order; their inputs are places in this list.
    steps: Vec<(Step, Element)>,
    /// Whether any step is a text.
    has_text: bool,
    /// The places of the columns' steps.
    results: Vec<u32>,
    /// Of a category: what the columns are for each listed value.
    listed: Listed,
}

/// Lines of numbers, most of which are zero where a category is one column for each of its values.
#[derive(Debug, Clone, Default)]
struct Listed {
    /// Where the numbers of each line end; those of the first begin at 0.
    ends: Vec<u32>,
    /// Those that are not zero, and at which of the columns.
    numbers: Vec<(u32, f64)>,
}

impl Listed {
    fn line(&self, at: usize) -> Option<&[(u32, f64)]> {
        let end = *self.ends.get(at)? as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        Some(&self.numbers[start..end])
    }
}

/// Steps whose results need no memory of their own.
const FEW: usize = 32;

impl Encoder {
    /// An encoder of columns that are each the result of a step.
    pub(super) fn new(steps: &Steps, columns: &[Id]) -> Self {
        let players: Vec<_> = columns.iter().map(|id| steps.get(*id).feature).collect();
        let constants =
            (0_u32..).zip(columns).filter_map(|(at, id)| Some((at, steps.number(*id)?))).collect();
        let mut by_feature: Vec<(u32, Vec<u32>)> = Vec::new();
        for (at, player) in (0_u32..).zip(&players) {
            let Some(feature) = player else { continue };
            match by_feature.iter_mut().find(|(found, _)| found == feature) {
                Some((_, places)) => places.push(at),
                None => by_feature.push((*feature, vec![at])),
            }
        }
        let features = by_feature.into_iter();
        let features =
            features.map(|(feature, places)| OfFeature::new(steps, feature, places, columns)).collect();
        Self { players, constants, features }
    }

    /// Encoded columns of a row.
    pub(super) fn width(&self) -> usize {
        self.players.len()
    }

    /// For each column the feature that it depends on, by its place among the schema's; none for a constant.
    pub(super) fn players(&self) -> &[Option<u32>] {
        &self.players
    }

    /// Writes the columns of row `row`: numbers that hold what the graph's tensor holds.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length than [`Encoder::width`].
    pub(super) fn encode(&self, rows: &FeatureRows, row: usize, out: &mut [f64]) {
        assert_eq!(out.len(), self.players.len(), "one number per column");
        for (at, number) in &self.constants {
            out[*at as usize] = *number;
        }
        for feature in &self.features {
            feature.each(rows, row, |at, number| out[at] = number);
        }
    }

    /// What does not depend on the row: columns and their numbers.
    pub(super) fn constants(&self) -> &[(u32, f64)] {
        &self.constants
    }

    /// The features that any column depends on, in no order.
    pub(super) fn features(&self) -> &[OfFeature] {
        &self.features
    }

    /// The same encoder, which has computed beforehand what listed values of categories become.
    #[must_use]
    pub(super) fn with_listed(mut self) -> Self {
        self.features.iter_mut().for_each(OfFeature::list);
        self
    }

    /// Memory that it takes, in bytes. What it shares with the one that it was cloned from counts as well.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.players.as_slice())
            + size_of_val(self.constants.as_slice())
            + size_of_val(self.features.as_slice())
            + self.features.iter().map(OfFeature::bytes).sum::<usize>()
    }

    /// The columns of all rows, one line each.
    pub(super) fn encode_all(&self, rows: &FeatureRows) -> Vec<f64> {
        let mut lines = vec![0.0; rows.len() * self.width()];
        for (row, line) in lines.chunks_exact_mut(self.width().max(1)).enumerate() {
            self.encode(rows, row, line);
        }
        lines
    }
}

impl OfFeature {
    fn new(steps: &Steps, feature: u32, places: Vec<u32>, columns: &[Id]) -> Self {
        let mut needed = std::collections::BTreeSet::new();
        let mut open: Vec<Id> = places.iter().map(|at| columns[*at as usize]).collect();
        while let Some(id) = open.pop() {
            if needed.insert(id) {
                open.extend(steps.get(id).step.inputs());
            }
        }
        let order: FxHashMap<Id, Id> = needed.iter().copied().zip(0..).collect();
        let (mut parts, mut part_places) = (Vec::new(), FxHashMap::default());
        let mut own = Vec::with_capacity(needed.len());
        for id in needed {
            let Described { step, element, .. } = steps.get(id);
            let step = match step {
                Step::Feature { part, at } => {
                    let place = *part_places.entry(*part).or_insert_with(|| {
                        parts.push(steps.parts[*part as usize].clone());
                        parts.len() as u32 - 1
                    });
                    Step::Feature { part: place, at: *at }
                }
                step => step.map(|id| order[&id]),
            };
            own.push((step, *element));
        }
        let results = places.iter().map(|at| order[&columns[*at as usize]]).collect();
        let has_text = own.iter().any(|(_, element)| *element == Element::String);
        let listed = Listed::default();
        Self { feature, columns: places, parts, steps: own, has_text, results, listed }
    }

    fn list(&mut self) {
        let (rows, mut listed) = (self.listed_rows(), Listed::default());
        for row in 0..rows.len() {
            self.compute(&rows, row, |at, number| {
                if number != 0.0 {
                    listed.numbers.push((at as u32, number));
                }
            });
            listed.ends.push(listed.numbers.len() as u32);
        }
        listed.numbers.shrink_to_fit();
        self.listed = listed;
    }

    fn bytes(&self) -> usize {
        let texts = |texts: &[Arc<str>]| texts.iter().map(|text| size_of_val(text) + text.len()).sum();
        let parts = self.parts.iter().map(|part| match &part.fill {
            Fill::Text { listed } => texts(listed),
            Fill::Code { listed, .. } => size_of_val(listed.as_slice()),
            Fill::Mapped { listed, .. } => size_of_val(listed.as_slice()),
            Fill::OneHot { .. } | Fill::Number => 0,
        });
        let shared = self.steps.iter().map(|(step, _)| match step {
            Step::LookUp(_, table) => table.bytes(),
            Step::Pick(_, list) => size_of_val(list.as_ref()),
            Step::Constant(Constant::Text(text)) => text.len(),
            _ => 0,
        });
        size_of_val(self.columns.as_slice())
            + size_of_val(self.parts.as_slice())
            + parts.sum::<usize>()
            + size_of_val(self.steps.as_slice())
            + shared.sum::<usize>()
            + size_of_val(self.results.as_slice())
            + size_of_val(self.listed.ends.as_slice())
            + size_of_val(self.listed.numbers.as_slice())
    }

    /// The feature, by its place among the schema's.
    pub(super) fn number(&self) -> usize {
        self.feature as usize
    }

    /// One row for each listed value of a category; none for a feature of numbers, nor where the steps that they take are too many.
    /// Other columns are missing.
    pub(super) fn listed_rows(&self) -> FeatureRows {
        let count = self.parts.iter().map(|part| match &part.fill {
            Fill::Text { listed } => listed.len(),
            Fill::Code { listed, .. } => listed.len(),
            Fill::Mapped { listed, .. } => listed.len(),
            Fill::OneHot { columns } => *columns,
            Fill::Number => 0,
        });
        let count = count.min().filter(|count| count.saturating_mul(self.steps.len()) <= MOST_LISTED_STEPS);
        let count = u32::try_from(count.unwrap_or(0)).unwrap_or(0);
        let mut columns = vec![Column::Number(Vec::new()); self.number() + 1];
        columns[self.number()] =
            Column::Category(CategoryColumn { codes: (0..count).collect(), others: Vec::new() });
        let mut rows = FeatureRows::default();
        (rows.columns, rows.indices) = (columns, (0..count).collect());
        rows
    }

    /// Calls `put` with each column and its number for row `row`; of what was computed beforehand with 0 first.
    pub(super) fn each(&self, rows: &FeatureRows, row: usize, mut put: impl FnMut(usize, f64)) {
        if let Column::Category(column) = &rows.columns[self.number()]
            && let Some(line) = self.listed.line(column.codes[row] as usize)
        {
            self.columns.iter().for_each(|at| put(*at as usize, 0.0));
            return line.iter().for_each(|(at, number)| put(self.columns[*at as usize] as usize, *number));
        }
        self.compute(rows, row, |at, number| put(self.columns[at] as usize, number));
    }

    /// Takes all steps, and gives the number of each column.
    fn compute(&self, rows: &FeatureRows, row: usize, mut put: impl FnMut(usize, f64)) {
        let feature = |part: u32, at| self.parts[part as usize].value(at, rows, row);
        if self.has_text {
            let mut results: Vec<Value<'_>> = Vec::with_capacity(self.steps.len());
            for (step, element) in &self.steps {
                results.push(evaluate(step, *element, |id| results[id as usize], feature));
            }
            for (at, place) in self.results.iter().enumerate() {
                put(at, results[*place as usize].number());
            }
            return;
        }
        let (mut few, mut many) = ([0.0; FEW], Vec::new());
        let results: &mut [f64] = if self.steps.len() <= FEW {
            &mut few
        } else {
            many.resize(self.steps.len(), 0.0);
            &mut many
        };
        for (at, (step, element)) in self.steps.iter().enumerate() {
            let of = |id: Id| Value::Number(results[id as usize]);
            results[at] = evaluate(step, *element, of, feature).number();
        }
        for (at, place) in self.results.iter().enumerate() {
            put(at, results[*place as usize]);
        }
    }
}

#[cfg(test)]
mod tests;
