//! What clients of one version would lose with another: rows that it takes and the other refuses, and answers of another shape.
//!
//! Only what is stated counts, not what the models learned. Nothing is found between two versions only if every row that the first
//! takes passes the second, whether it comes as JSON, NDJSON or CSV; what is found may, at the edges, refuse no row that anybody sends.

use std::collections::HashSet;
use std::fmt;

use crate::feature_schema::{
    FeatureSchema, Field, Kind, MAX_TEXT_BYTES, Missing, Range, Role, Unknown, escape,
};
use crate::manifest::{Element, Manifest, Task};

/// So many categories are named before the others are only counted.
const NAMED: usize = 10;

/// Integers of this magnitude and below are held exactly by float32.
const EXACT_IN_FLOAT32: f64 = 16_777_216.0;

/// Numbers below this magnitude are finite in float32.
const FINITE_IN_FLOAT32: f64 = 3.402_823_567_797_337e38;

/// One thing by which a version refuses what the other takes, or answers otherwise. Its text is a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field that it is about; none where it is about the answer.
    pub field: Option<String>,
    /// What kind of difference.
    pub change: Change,
    /// What was found and what was expected. It names no category of a field that is personal data.
    detail: String,
}

/// What kind of difference there is. `as_str` is the stable code that clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The field is gone: unknown fields are refused.
    Removed,
    /// A new field that every row needs.
    Added,
    /// The value may not be missing any more.
    Missing,
    /// The field is of another type.
    Type,
    /// The field is for something else, and stricter.
    Role,
    /// Fewer numbers are within the bounds.
    Range,
    /// Fewer texts are of an allowed length.
    Length,
    /// Fewer categories are allowed.
    Category,
    /// The graph's input holds fewer numbers.
    Precision,
    /// Another kind of answer.
    Task,
    /// The classes are called otherwise.
    Labels,
    /// The probability is of another class.
    Positive,
}

impl Change {
    /// The stable code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "field_removed",
            Self::Added => "field_required",
            Self::Missing => "missing_refused",
            Self::Type => "type",
            Self::Role => "role",
            Self::Range => "range",
            Self::Length => "length",
            Self::Category => "category",
            Self::Precision => "precision",
            Self::Task => "task",
            Self::Labels => "labels",
            Self::Positive => "positive",
        }
    }
}

impl Difference {
    fn of(field: &Field, change: Change, detail: impl Into<String>) -> Self {
        Self { field: Some(field.name.clone()), change, detail: detail.into() }
    }

    fn of_answer(change: Change, detail: impl Into<String>) -> Self {
        Self { field: None, change, detail: detail.into() }
    }

    /// Where in a row it is: `/tenure_days`, or nothing for the answer.
    pub fn pointer(&self) -> String {
        self.field.as_ref().map_or_else(String::new, |name| format!("/{}", escape(name)))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(formatter, "\"{field}\" {}", self.detail),
            None => formatter.write_str(&self.detail),
        }
    }
}

/// Every way in which `other` refuses rows that `live` takes, or answers them in another shape; the fields in the order of `live`'s
/// schema, then those that only `other` has, then the answer.
pub fn breaking(
    live: &Manifest,
    live_schema: &FeatureSchema,
    other: &Manifest,
    other_schema: &FeatureSchema,
) -> Vec<Difference> {
    let mut found = Vec::new();
    for field in &live_schema.fields {
        match other_schema.fields.iter().find(|other| other.name == field.name) {
            None => {
                found.push(Difference::of(field, Change::Removed, "is gone: rows that name it are refused"))
            }
            Some(narrower) => {
                let inputs = |manifest: &Manifest| manifest.bindings.elements_of(&field.name);
                compare(field, &inputs(live), narrower, &inputs(other), &mut found);
            }
        }
    }
    for field in &other_schema.fields {
        let known = live_schema.fields.iter().any(|live| live.name == field.name);
        if !known && !may_be_missing(field) {
            found.push(Difference::of(field, Change::Added, "is new and may not be missing"));
        }
    }
    compare_answers(live, live_schema, other, other_schema, &mut found);
    found
}

/// Whether a row may do without the field, as the reader of rows has it.
fn may_be_missing(field: &Field) -> bool {
    match field.role {
        Role::Feature => field.missing != Missing::Reject,
        Role::Entity | Role::Ignore => !field.required,
    }
}

/// What one field takes and the other refuses. `live_inputs` and `other_inputs` are what the graphs take it as.
fn compare(
    live: &Field,
    live_inputs: &[Element],
    other: &Field,
    other_inputs: &[Element],
    found: &mut Vec<Difference>,
) {
    if may_be_missing(live) && !may_be_missing(other) {
        found.push(Difference::of(other, Change::Missing, "may not be missing any more"));
    }
    match (live.role, other.role) {
        (Role::Ignore, Role::Feature | Role::Entity) => {
            found.push(Difference::of(
                other,
                Change::Role,
                "was ignored, whatever it was, and is now looked at",
            ));
        }
        (Role::Feature, Role::Entity) => {
            let detail = "names who is scored now: no two rows of a body may have the same";
            found.push(Difference::of(other, Change::Role, detail));
        }
        _ => {}
    }
    match (&live.kind, &other.kind) {
        (Kind::Number, Kind::Number) | (Kind::Integer, Kind::Number | Kind::Integer) => {
            compare_numbers(live, live_inputs, other, other_inputs, found);
        }
        (Kind::Boolean, Kind::Boolean) => {}
        (Kind::Category { values: known }, Kind::Category { values: taken }) => {
            compare_texts(live, known.as_deref(), other, taken.as_deref(), found);
        }
        _ if is_ignored(live, other) => {}
        (live, kind) => {
            let detail = format!("was {}, and is {}", named(live), named(kind));
            found.push(Difference::of(other, Change::Type, detail));
        }
    }
}

/// Whether whatever `live` takes, which is of another type, is ignored by `other`. In CSV all is text: a text that is ignored may still not
/// be any text, and one that looks like a number may be too large.
fn is_ignored(live: &Field, other: &Field) -> bool {
    let takes_texts = match &other.kind {
        Kind::Boolean => true,
        Kind::Category { values } => {
            let is_open = values.is_none() || other.unknown == Unknown::Pass;
            is_open
                && other.length.minimum.is_none()
                && other.length.maximum.is_none()
                && live.role != Role::Ignore
        }
        Kind::Number | Kind::Integer => false,
    };
    other.role == Role::Ignore && takes_texts
}

/// A type as a schema writes it.
fn named(kind: &Kind) -> &'static str {
    match kind {
        Kind::Number => "a number",
        Kind::Integer => "an integer",
        Kind::Boolean => "a boolean",
        Kind::Category { .. } => "a string",
    }
}

/// The numbers that a field takes: from `least` to `most`, either or both left out where they are open.
#[derive(Clone, Copy)]
struct Interval {
    least: f64,
    least_open: bool,
    most: f64,
    most_open: bool,
}

impl Interval {
    const ALL: Self = Self { least: f64::MIN, least_open: false, most: f64::MAX, most_open: false };

    fn of(range: &Range) -> Self {
        let mut all = Self::ALL;
        if let Some(bound) = range.minimum {
            all = all.at_least(bound, false);
        }
        if let Some(bound) = range.exclusive_minimum {
            all = all.at_least(bound, true);
        }
        if let Some(bound) = range.maximum {
            all = all.at_most(bound, false);
        }
        if let Some(bound) = range.exclusive_maximum {
            all = all.at_most(bound, true);
        }
        all
    }

    fn at_least(mut self, bound: f64, open: bool) -> Self {
        if bound > self.least || (bound == self.least && open) {
            (self.least, self.least_open) = (bound, open);
        }
        self
    }

    fn at_most(mut self, bound: f64, open: bool) -> Self {
        if bound < self.most || (bound == self.most && open) {
            (self.most, self.most_open) = (bound, open);
        }
        self
    }

    /// The same whole numbers, with bounds that are among them.
    fn whole(self) -> Self {
        let next = |bound: f64, open: bool, step: f64| {
            if open && bound.fract() == 0.0 { bound + step } else { bound }
        };
        Self {
            least: next(self.least, self.least_open, 1.0).ceil(),
            least_open: false,
            most: next(self.most, self.most_open, -1.0).floor(),
            most_open: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.least > self.most || (self.least == self.most && (self.least_open || self.most_open))
    }

    /// Whether everything in `self` is at least, and at most, as `other` has it.
    fn is_within(&self, other: &Self) -> (bool, bool) {
        let least =
            self.least > other.least || (self.least == other.least && (self.least_open || !other.least_open));
        let most =
            self.most < other.most || (self.most == other.most && (self.most_open || !other.most_open));
        (least, most)
    }

    /// Whether there are numbers in it whose magnitude is more than `magnitude`.
    fn reaches_beyond(&self, magnitude: f64) -> bool {
        self.least < -magnitude || self.most > magnitude
    }
}

fn compare_numbers(
    live: &Field,
    live_inputs: &[Element],
    other: &Field,
    other_inputs: &[Element],
    found: &mut Vec<Difference>,
) {
    let has = |inputs: &[Element], element| inputs.contains(&element);
    let mut taken = Interval::of(&live.range);
    if live.kind == Kind::Integer {
        taken =
            taken.at_least(-9_223_372_036_854_775_808.0, false).at_most(9_223_372_036_854_775_808.0, true);
        taken = taken.whole();
    }
    let (int32, float32) = (has(live_inputs, Element::Int32), has(live_inputs, Element::Float32));
    // What is written as an integer is held against the graph's input; a number with a fraction is not, where it is an int32.
    let mut integers = taken.whole();
    if int32 {
        integers = integers.at_least(-2_147_483_648.0, false).at_most(2_147_483_647.0, false);
    }
    if live.kind == Kind::Integer {
        taken = integers;
    } else if float32 {
        taken = taken.at_least(-FINITE_IN_FLOAT32, false).at_most(FINITE_IN_FLOAT32, false);
    }
    if taken.is_empty() {
        return;
    }
    let (least, most) = taken.is_within(&Interval::of(&other.range));
    if !(least && most) {
        let (was, is) = (bounds(&live.range), bounds(&other.range));
        found.push(Difference::of(other, Change::Range, format!("was {was}, and is {is}")));
    }
    let narrowed = if has(other_inputs, Element::Int32)
        && !int32
        && !integers.is_empty()
        && (integers.least < -2_147_483_648.0 || integers.most > 2_147_483_647.0)
    {
        Some("int32")
    } else if has(other_inputs, Element::Float32) && !float32 && taken.reaches_beyond(EXACT_IN_FLOAT32) {
        Some("float32")
    } else {
        None
    };
    if let Some(narrow) = narrowed {
        let detail =
            format!("is {narrow} for the graph now, which does not hold every integer that was taken");
        found.push(Difference::of(other, Change::Precision, detail));
    }
}

/// The bounds as a schema gives them.
fn bounds(range: &Range) -> String {
    let bounds = [
        range.minimum.map(|bound| format!("at least {bound}")),
        range.exclusive_minimum.map(|bound| format!("more than {bound}")),
        range.maximum.map(|bound| format!("at most {bound}")),
        range.exclusive_maximum.map(|bound| format!("less than {bound}")),
    ];
    let bounds: Vec<String> = bounds.into_iter().flatten().collect();
    if bounds.is_empty() { "without bounds".into() } else { bounds.join(" and ") }
}

/// `known` and `taken` are the categories that the fields list.
fn compare_texts(
    live: &Field,
    known: Option<&[String]>,
    other: &Field,
    taken: Option<&[String]>,
    found: &mut Vec<Difference>,
) {
    let is_open =
        |field: &Field, values: Option<&[String]>| values.is_none() || field.unknown == Unknown::Pass;
    let (was_open, open) = (is_open(live, known), is_open(other, taken));
    let taken: HashSet<&String> = taken.unwrap_or_default().iter().collect();
    let (least, most) = (other.length.minimum.unwrap_or(0), other.length.maximum.unwrap_or(usize::MAX));
    // A category that is listed passes, whatever its length; one that is not has to be as any text.
    let passes = |value: &String| {
        taken.contains(value)
            || (open
                && value.len() <= MAX_TEXT_BYTES
                && (least..=most).contains(&value.chars().count())
                && !(other.role == Role::Entity && value.contains(char::is_control)))
    };
    let gone: Vec<&String> = known.unwrap_or_default().iter().filter(|value| !passes(value)).collect();
    if was_open && !open {
        let detail = "took any text, and takes only the categories that are listed";
        found.push(Difference::of(other, Change::Category, detail));
    } else if !gone.is_empty() {
        let detail = if live.pii || other.pii {
            format!("does not take {} categories any more", gone.len())
        } else {
            let mut names: Vec<String> = gone.iter().take(NAMED).map(|value| format!("{value:?}")).collect();
            if gone.len() > NAMED {
                names.push(format!("{} more", gone.len() - NAMED));
            }
            format!("does not take {} any more", names.join(", "))
        };
        found.push(Difference::of(other, Change::Category, detail));
    }
    let longest = live.length.maximum.unwrap_or(MAX_TEXT_BYTES).min(MAX_TEXT_BYTES);
    if was_open && open && (least > live.length.minimum.unwrap_or(0) || most < longest) {
        let range = |minimum: Option<usize>, maximum: Option<usize>| match (minimum, maximum) {
            (None, None) => "of any length".to_owned(),
            (Some(least), None) => format!("of at least {least} characters"),
            (None, Some(most)) => format!("of at most {most} characters"),
            (Some(least), Some(most)) => format!("of {least} to {most} characters"),
        };
        let was = range(live.length.minimum, live.length.maximum);
        let is = range(other.length.minimum, other.length.maximum);
        found.push(Difference::of(other, Change::Length, format!("was {was}, and is {is}")));
    }
}

/// A task as people call it.
fn task_name(task: Task) -> String {
    match task {
        Task::Binary => "the probability of one of two classes".into(),
        Task::Multiclass { classes } => format!("the probabilities of {classes} classes"),
        Task::Regression => "a value".into(),
    }
}

fn compare_answers(
    live: &Manifest,
    live_schema: &FeatureSchema,
    other: &Manifest,
    other_schema: &FeatureSchema,
    found: &mut Vec<Difference>,
) {
    let (was, task) = (live.output.task(), other.output.task());
    if was != task {
        let detail = format!("the answer was {}, and is {}", task_name(was), task_name(task));
        return found.push(Difference::of_answer(Change::Task, detail));
    }
    // Of two labels the second is the one whose probability is answered; of more each probability has its label with it.
    let sorted = |labels: &[String]| {
        let mut labels = labels.to_vec();
        if matches!(task, Task::Multiclass { .. }) {
            labels.sort_unstable();
        }
        labels
    };
    if sorted(&live.labels) != sorted(&other.labels) {
        let detail =
            format!("the labels were {}, and are {}", live.labels.join(", "), other.labels.join(", "));
        found.push(Difference::of_answer(Change::Labels, detail));
    }
    if task == Task::Binary
        && live_schema.target == other_schema.target
        && live_schema.positive != other_schema.positive
    {
        let (was, is) = (&live_schema.positive, &other_schema.positive);
        let detail = format!("the probability was of {was} in the target's column, and is of {is}");
        found.push(Difference::of_answer(Change::Positive, detail));
    }
}
