//! Which features reach which graph input: inferred from names, types and widths, with the reason in plain words.

use std::collections::BTreeSet;

use scoregate_schemas::FeatureSchema;
use scoregate_schemas::feature_schema::{Field, Kind};
use scoregate_schemas::manifest::{Bindings, ColumnBinding, Element, MatrixBinding};
use scoregate_schemas::onnx::{GraphProto, TensorShapeDimensionValue, TypeValue, ValueInfoProto};

use super::Fault;

/// A graph input as the file declares it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GraphInput {
    /// Its name.
    pub name: String,
    /// Its element type; None for what no feature can fill.
    pub element: Option<Element>,
    /// Columns: 1 for `[N]` and `[N, 1]`, None where the file does not say.
    pub width: Option<usize>,
    /// The number of rows, where the file allows no other.
    pub rows: Option<i64>,
}

impl std::fmt::Display for GraphInput {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let element = self.element.map_or("of another type", Element::as_str);
        match self.width {
            Some(width) => write!(formatter, "\"{}\" (N × {width}, {element})", self.name),
            None => write!(formatter, "\"{}\" (N × ?, {element})", self.name),
        }
    }
}

/// The inputs that callers fill: old files list their weights as inputs too.
pub(super) fn graph_inputs(graph: &GraphProto) -> Vec<GraphInput> {
    let weights: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    let inputs = graph.input.iter().filter(|input| !weights.contains(input.name()));
    inputs.map(graph_input).collect()
}

fn graph_input(value: &ValueInfoProto) -> GraphInput {
    let tensor = match value.r#type.as_ref().and_then(|kind| kind.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => Some(tensor),
        _ => None,
    };
    // `TensorProto.DataType`
    let element = tensor.and_then(|tensor| match tensor.elem_type() {
        1 => Some(Element::Float32),
        6 => Some(Element::Int32),
        7 => Some(Element::Int64),
        8 => Some(Element::String),
        9 => Some(Element::Bool),
        11 => Some(Element::Float64),
        _ => None,
    });
    let dimensions = tensor.and_then(|tensor| tensor.shape.as_ref()).map(|shape| shape.dim.as_slice());
    let width = match dimensions {
        Some([_]) => Some(1),
        Some([_, columns]) => match columns.value {
            Some(TensorShapeDimensionValue::DimValue(columns)) if columns > 0 => {
                usize::try_from(columns).ok()
            }
            _ => None,
        },
        _ => None,
    };
    let rows = dimensions.and_then(<[_]>::first).and_then(|rows| match rows.value {
        Some(TensorShapeDimensionValue::DimValue(rows)) if rows > 0 => Some(rows),
        _ => None,
    });
    GraphInput { name: value.name().into(), element, width, rows }
}

/// Whether `element` can take the field as it is, or by its encoding.
fn takes(element: Element, field: &Field) -> bool {
    match (&field.kind, element) {
        (Kind::Category { .. }, Element::String) => true,
        (Kind::Category { .. }, _) => field.encode.is_some(),
        (_, Element::String) => false,
        (_, _) => true,
    }
}

/// A name without what converters change in it: case, spaces, punctuation.
fn plain(name: &str) -> String {
    name.chars().filter(|letter| letter.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Finds the features of every input. `overrides` are input names with the features that they take.
///
/// # Errors
/// [`Fault`] with what was found in the graph, what the schema has, and the flag that settles it.
pub(super) fn infer(
    inputs: &[GraphInput],
    schema: &FeatureSchema,
    overrides: &[(String, Vec<String>)],
    reasons: &mut Vec<String>,
) -> Result<Bindings, Fault> {
    let fields: Vec<&Field> = schema.features().collect();
    if let Some(input) = inputs.iter().find(|input| input.element.is_none()) {
        return Err(Fault::Bindings(format!(
            "input \"{}\" is no tensor of float, double, int64, int32, bool or string; expected one that features can fill",
            input.name
        )));
    }
    if inputs.is_empty() {
        return Err(Fault::Bindings(
            "the graph has no inputs, expected one for the features at least".into(),
        ));
    }
    if !overrides.is_empty() {
        return overridden(inputs, &fields, overrides, reasons);
    }
    if let Some(bindings) = by_name(inputs, &fields, reasons)? {
        return Ok(bindings);
    }
    match inputs {
        [only] => one_matrix(only, &fields, reasons),
        several => by_type(several, &fields, reasons),
    }
}

fn overridden(
    inputs: &[GraphInput],
    fields: &[&Field],
    overrides: &[(String, Vec<String>)],
    reasons: &mut Vec<String>,
) -> Result<Bindings, Fault> {
    let mut bound = Vec::new();
    for input in inputs {
        let features = match overrides.iter().find(|(name, _)| *name == input.name) {
            Some((_, features)) => features.clone(),
            // An input that is called like a feature needs no flag.
            None if fields.iter().any(|field| field.name == input.name) => vec![input.name.clone()],
            None => {
                return Err(Fault::Bindings(format!(
                    "no flag says what input {input} takes; add --input {}=FEATURE,…",
                    input.name
                )));
            }
        };
        for feature in &features {
            if !fields.iter().any(|field| field.name == *feature) {
                return Err(Fault::Bindings(format!(
                    "--input {}: the schema has no feature \"{feature}\"; it has {}",
                    input.name,
                    names(fields)
                )));
            }
        }
        reasons.push(format!("input {input} takes {}, as the flags say", features.join(", ")));
        bound.push(matrix(input, features));
    }
    if let Some((name, _)) =
        overrides.iter().find(|(name, _)| !inputs.iter().any(|input| input.name == *name))
    {
        let have: Vec<String> = inputs.iter().map(ToString::to_string).collect();
        return Err(Fault::Bindings(format!(
            "--input {name}: the graph has no such input; it has {}",
            have.join(", ")
        )));
    }
    check_widths(inputs, &bound, fields)?;
    Ok(Bindings::Matrix { inputs: bound })
}

/// Whether these inputs are those that `bindings` fill, by name, type and number of columns.
pub(super) fn are_of(bindings: &Bindings, inputs: &[GraphInput], schema: &FeatureSchema) -> bool {
    let bound = bindings.inputs();
    let width = |features: &[String]| -> usize {
        schema.features().filter(|field| features.contains(&field.name)).map(Field::width).sum()
    };
    let is_bound = |input: &GraphInput| {
        let bound = bound.iter().find(|bound| bound.input == input.name);
        bound.is_some_and(|bound| {
            input.element == Some(bound.element)
                && input.width.is_none_or(|found| found == width(bound.features))
        })
    };
    bound.len() == inputs.len() && inputs.iter().all(is_bound)
}

fn matrix(input: &GraphInput, features: Vec<String>) -> MatrixBinding {
    MatrixBinding { input: input.name.clone(), element: input.element.unwrap_or(Element::Float32), features }
}

fn names(fields: &[&Field]) -> String {
    fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// One input per feature, called like it.
fn by_name(
    inputs: &[GraphInput],
    fields: &[&Field],
    reasons: &mut Vec<String>,
) -> Result<Option<Bindings>, Fault> {
    // Names that are equal come first; names that only read alike take what is left.
    let mut found: Vec<Option<&GraphInput>> =
        fields.iter().map(|field| inputs.iter().find(|input| input.name == field.name)).collect();
    for (at, field) in fields.iter().enumerate() {
        if found[at].is_some() {
            continue;
        }
        let fits = |input: &&GraphInput| {
            plain(&input.name) == plain(&field.name) && input.width.is_none_or(|width| width == field.width())
        };
        let free = |input: &&GraphInput| !found.iter().flatten().any(|taken| taken.name == input.name);
        let mut alike = inputs.iter().filter(fits).filter(free);
        let only = alike.next().filter(|_| alike.next().is_none());
        found[at] = only;
    }
    let matched = found.iter().flatten().count();
    // A name in common may be chance; several, or all, are not.
    if matched == 0 || (matched < fields.len() && matched < inputs.len() && inputs.len() < fields.len()) {
        return Ok(None);
    }
    let used: BTreeSet<&str> = found.iter().flatten().map(|input| input.name.as_str()).collect();
    let unused: Vec<&GraphInput> =
        inputs.iter().filter(|input| !used.contains(input.name.as_str())).collect();
    let missing: Vec<&str> = fields
        .iter()
        .zip(&found)
        .filter(|(_, input)| input.is_none())
        .map(|(field, _)| field.name.as_str())
        .collect();
    if unused.iter().any(|input| input.width != Some(1)) && !missing.is_empty() {
        // Some features have inputs of their own and others share one: the types decide.
        return Ok(None);
    }
    if !unused.is_empty() {
        let unused: Vec<String> = unused.iter().map(ToString::to_string).collect();
        return Err(Fault::Bindings(format!(
            "no feature of the schema is called like {}; without input are {}; rename a property of the schema, or say \
             --input NAME=FEATURE for every input",
            unused.join(", "),
            if missing.is_empty() { "none".into() } else { missing.join(", ") }
        )));
    }
    if !missing.is_empty() {
        return Err(Fault::Bindings(format!(
            "the graph takes no {}; take it out of the schema's properties, or give it \"role\": \"ignore\"",
            missing.join(", no ")
        )));
    }
    let mut columns = Vec::new();
    for (field, input) in fields.iter().zip(found.into_iter().flatten()) {
        let element = input.element.unwrap_or(Element::Float32);
        if !takes(element, field) {
            return Err(cannot_take(input, field));
        }
        columns.push(ColumnBinding { feature: field.name.clone(), input: input.name.clone(), element });
    }
    // A one-hot feature fills several columns of an input of its own.
    let one_each = fields.iter().all(|field| field.width() == 1);
    reasons.push(format!("{} inputs, each called like the one feature that it takes", inputs.len()));
    let renamed = columns.iter().filter(|column| column.input != column.feature);
    for column in renamed {
        reasons.push(format!("input \"{}\" takes \"{}\": their letters agree", column.input, column.feature));
    }
    let matrices: Vec<MatrixBinding> = columns
        .iter()
        .map(|column| MatrixBinding {
            input: column.input.clone(),
            element: column.element,
            features: vec![column.feature.clone()],
        })
        .collect();
    check_widths(inputs, &matrices, fields)?;
    Ok(Some(if one_each { Bindings::Columns { columns } } else { Bindings::Matrix { inputs: matrices } }))
}

fn cannot_take(input: &GraphInput, field: &Field) -> Fault {
    let problem = if matches!(field.kind, Kind::Category { .. }) {
        format!(
            "takes numbers, but \"{}\" is a category; say in its \"x-scoregate\" how training turned it into numbers: \
             \"encode\": {{\"category\": number, …}} or \"one_hot\"",
            field.name
        )
    } else {
        format!("takes strings, but \"{}\" is a number in the schema", field.name)
    };
    Fault::Bindings(format!("input {input} {problem}"))
}

/// One input for everything, in the schema's order.
fn one_matrix(input: &GraphInput, fields: &[&Field], reasons: &mut Vec<String>) -> Result<Bindings, Fault> {
    let element = input.element.unwrap_or(Element::Float32);
    if let Some(field) = fields.iter().find(|field| !takes(element, field)) {
        return Err(cannot_take(input, field));
    }
    let filled: usize = fields.iter().map(|field| field.width()).sum();
    let Some(width) = input.width else {
        return Err(Fault::DynamicColumns(format!(
            "input {input} does not say how many columns it has, so that nothing proves which they are; export it with the \
             number of columns, or state them with --input {}={}",
            input.name,
            fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>().join(",")
        )));
    };
    if width != filled {
        return Err(Fault::Bindings(format!(
            "input {input} has {width} columns, but the schema's {} features fill {filled}: {}; properties must be those of \
             the training data, in its order, with \"one_hot\" where it was one-hot",
            fields.len(),
            widths(fields)
        )));
    }
    reasons.push(format!(
        "one input {input}: the schema's {} features fill its columns in the schema's order ({})",
        fields.len(),
        widths(fields)
    ));
    let features = fields.iter().map(|field| field.name.clone()).collect();
    Ok(Bindings::Matrix { inputs: vec![matrix(input, features)] })
}

fn widths(fields: &[&Field]) -> String {
    let described = fields.iter().map(|field| match field.width() {
        1 => field.name.clone(),
        width => format!("{} × {width}", field.name),
    });
    described.collect::<Vec<_>>().join(", ")
}

/// Inputs that group columns by type: what is called like a feature takes it; one wide input takes the other categories as
/// strings, one the other numbers.
fn by_type(inputs: &[GraphInput], fields: &[&Field], reasons: &mut Vec<String>) -> Result<Bindings, Fault> {
    let mut left: Vec<&Field> = fields.to_vec();
    let mut bound: Vec<Option<Vec<String>>> = Vec::new();
    for input in inputs {
        let own = left.iter().position(|field| field.name == input.name);
        bound.push(own.map(|at| vec![left.remove(at).name.clone()]));
    }
    let unclear = |why: String| {
        let have: Vec<String> = inputs.iter().map(ToString::to_string).collect();
        Fault::Bindings(format!(
            "which features the inputs {} take is not clear: {why}; say it with --input NAME=FEATURE,… for each of them",
            have.join(", ")
        ))
    };
    let open = |strings: bool| -> Vec<usize> {
        let is = |at: &usize| (inputs[*at].element == Some(Element::String)) == strings;
        (0..inputs.len()).filter(|at| bound[*at].is_none()).filter(is).collect()
    };
    let (texts, numbers) = (open(true), open(false));
    if texts.len() > 1 {
        return Err(unclear(format!("{} of them take strings", texts.len())));
    }
    // Categories go to the strings where there are some, unless the schema encodes them.
    let textual = |field: &&Field| {
        matches!(field.kind, Kind::Category { .. }) && !texts.is_empty() && field.encode.is_none()
    };
    let (categories, others): (Vec<&Field>, Vec<&Field>) = left.into_iter().partition(textual);
    let listed = |fields: &[&Field]| fields.iter().map(|field| field.name.clone()).collect::<Vec<_>>();
    if let Some(at) = texts.first() {
        bound[*at] = Some(listed(&categories));
    }
    match numbers.as_slice() {
        [] if others.is_empty() => {}
        [] => return Err(unclear(format!("none is left for {}", names(&others)))),
        [at] => bound[*at] = Some(listed(&others)),
        // Several inputs of numbers: integers and booleans may have one of their own.
        [first, second] => {
            let integers =
                |at: usize| !matches!(inputs[at].element, Some(Element::Float32 | Element::Float64));
            let (whole, fractional) = match (integers(*first), integers(*second)) {
                (true, false) => (*first, *second),
                (false, true) => (*second, *first),
                _ => return Err(unclear("two of them take numbers of the same kind".into())),
            };
            let is_whole = |field: &&Field| matches!(field.kind, Kind::Integer | Kind::Boolean);
            let (integers, floats): (Vec<&Field>, Vec<&Field>) = others.into_iter().partition(is_whole);
            bound[whole] = Some(listed(&integers));
            bound[fractional] = Some(listed(&floats));
        }
        _ => return Err(unclear(format!("{} of them take numbers", numbers.len()))),
    }
    let mut matrices = Vec::new();
    for (input, features) in inputs.iter().zip(bound) {
        let features = features.unwrap_or_default();
        if features.is_empty() {
            return Err(unclear(format!("no feature is left for {input}")));
        }
        let element = input.element.unwrap_or(Element::Float32);
        let taken = features.iter().filter_map(|name| fields.iter().find(|field| field.name == *name));
        if let Some(field) = taken.into_iter().find(|field| !takes(element, field)) {
            return Err(cannot_take(input, field));
        }
        reasons.push(format!(
            "input {input} takes {}: the features of its type, in the schema's order",
            features.join(", ")
        ));
        matrices.push(matrix(input, features));
    }
    check_widths(inputs, &matrices, fields)?;
    Ok(Bindings::Matrix { inputs: matrices })
}

/// Whether the features fill as many columns as each input declares.
fn check_widths(inputs: &[GraphInput], bound: &[MatrixBinding], fields: &[&Field]) -> Result<(), Fault> {
    for input in inputs {
        let Some(binding) = bound.iter().find(|binding| binding.input == input.name) else { continue };
        let taken =
            binding.features.iter().filter_map(|name| fields.iter().find(|field| field.name == *name));
        let filled: usize = taken.map(|field| field.width()).sum();
        if input.width.is_some_and(|width| width != filled) {
            return Err(Fault::Bindings(format!(
                "input {input} has another number of columns than {} fill ({filled})",
                binding.features.join(", ")
            )));
        }
    }
    let unbound: Vec<&str> = fields
        .iter()
        .map(|field| field.name.as_str())
        .filter(|name| !bound.iter().any(|binding| binding.features.iter().any(|feature| feature == name)))
        .collect();
    if unbound.is_empty() {
        return Ok(());
    }
    Err(Fault::Bindings(format!(
        "no input takes {}; every feature of the schema has to reach the graph",
        unbound.join(", ")
    )))
}
