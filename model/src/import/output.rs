//! Where a graph's answer is, what it means and whether it still needs a link: told by what it answers to real rows, never
//! by its name alone.

use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::{ClassKeys, Link, Output, Task};
use scoregate_schemas::onnx::{GraphProto, NodeProto, TensorProto};
use serde_json::Value;

use super::{Fault, Overrides, TaskName};
use crate::acceptance::{Tolerance, compare_golden};
use crate::inspect::zipmap_keys;
use crate::package::{Expected, GoldenRow};
use crate::runtime::{Observed, ObservedValue, ROUNDING, apply_link};

/// How far the probabilities of a row's classes may be from 1 together.
const SUM_TOLERANCE: f64 = 1e-3;

/// What was found out about a graph's answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) output: Output,
    /// `[negative, positive]`, one per class, or none.
    pub(super) labels: Vec<String>,
    /// The golden rows, with one number for P(positive) where they had one per class.
    pub(super) golden: Vec<GoldenRow>,
}

/// One or several outputs that together give one line of numbers per row.
struct Candidate {
    names: Vec<String>,
    /// The keys, where they are maps.
    keys: Option<ClassKeys>,
    columns: usize,
    /// One line of `columns` numbers per row.
    values: Vec<f64>,
}

impl Candidate {
    fn called(&self) -> String {
        self.names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    }
}

/// Finds the answer among what was `observed` on some rows, the golden ones first.
///
/// # Errors
/// [`Fault`] with what was found, and the flag that settles it.
pub(super) fn infer(
    graph: &GraphProto,
    observed: &[Observed],
    schema: &FeatureSchema,
    overrides: &Overrides,
    golden: &[GoldenRow],
    reasons: &mut Vec<String>,
) -> Result<Found, Fault> {
    let candidate = choose(graph, observed, schema, &overrides.outputs, reasons)?;
    if let Some(at) = candidate.values.iter().position(|value| !value.is_finite()) {
        return Err(Fault::Answer(format!(
            "output {} is {} for row {} of those that were tried; expected finite numbers",
            candidate.called(),
            candidate.values[at],
            at / candidate.columns + 1
        )));
    }
    let has_label =
        observed.iter().any(|output| matches!(output.value, ObservedValue::Labels { columns: 1 }));
    let classes = classes(graph, &candidate);
    let task = task(graph, &candidate, schema, overrides, has_label, classes.is_some(), reasons)?;
    if task == Task::Regression {
        let name = candidate.names[0].clone();
        return Ok(Found { output: Output::Value { name }, labels: Vec::new(), golden: golden.to_vec() });
    }
    let (labels, positive) = labels(&candidate, classes.as_ref(), schema, overrides, task, reasons)?;
    let golden = per_row(golden, task, positive);
    let link = link(&candidate, task, positive, overrides, &golden, reasons)?;
    let columns = candidate.columns;
    let output = match (candidate.keys, link, candidate.names.as_slice()) {
        (Some(keys), link, [name]) => Output::Zipmap { name: name.clone(), keys, positive, link },
        (_, None, [name]) => Output::Probabilities { name: name.clone(), classes: columns, positive },
        (_, Some(link), [name]) => Output::Margin { name: name.clone(), classes: columns, positive, link },
        (_, None, _) => Output::Columns { names: candidate.names, positive },
        (_, Some(_), _) => {
            return Err(Fault::Link(
                "scores in one output per class cannot be linked; export one output with a column per class"
                    .into(),
            ));
        }
    };
    Ok(Found { output, labels, golden })
}

/// The outputs that hold the answer.
fn choose(
    graph: &GraphProto,
    observed: &[Observed],
    schema: &FeatureSchema,
    named: &[String],
    reasons: &mut Vec<String>,
) -> Result<Candidate, Fault> {
    let have = || {
        let described = observed.iter().map(|output| format!("\"{}\" ({})", output.name, output.value));
        described.collect::<Vec<_>>().join(", ")
    };
    for name in named {
        if !observed.iter().any(|output| output.name == *name) {
            return Err(Fault::Output(format!(
                "--output {name}: the graph has no such output; it has {}",
                have()
            )));
        }
    }
    let open: Vec<&Observed> =
        observed.iter().filter(|output| named.is_empty() || named.contains(&output.name)).collect();
    let maps: Vec<&&Observed> =
        open.iter().filter(|output| matches!(output.value, ObservedValue::Maps { .. })).collect();
    if let Some(output) = maps.first() {
        let ObservedValue::Maps { keys, values } = &output.value else { unreachable!("filtered for maps") };
        let ordered = zipmap_order(graph, &output.name, keys);
        reasons.push(format!(
            "output \"{}\" is a sequence of maps (ZipMap) with the classes {}",
            output.name,
            ordered.names().join(", ")
        ));
        let values = reorder(values, keys, &ordered);
        let columns = ordered.len();
        return Ok(Candidate { names: vec![output.name.clone()], keys: Some(ordered), columns, values });
    }
    let numbers: Vec<(&Observed, usize, &Vec<f64>)> = open
        .iter()
        .filter_map(|output| match &output.value {
            ObservedValue::Numbers { columns, values } => Some((*output, *columns, values)),
            _ => None,
        })
        .collect();
    let one = |(output, columns, values): &(&Observed, usize, &Vec<f64>)| Candidate {
        names: vec![output.name.clone()],
        keys: None,
        columns: *columns,
        values: (*values).clone(),
    };
    match numbers.as_slice() {
        [] => {
            let labels =
                observed.iter().any(|output| matches!(output.value, ObservedValue::Labels { columns: 1 }));
            Err(Fault::Output(format!(
                "no output holds a line of numbers per row: found {}; {}",
                have(),
                if labels {
                    "a label alone is no score: export the probabilities as well"
                } else {
                    "expected a float tensor [N, classes] or [N, 1], or ZipMap's sequence of maps"
                }
            )))
        }
        [only] => {
            reasons
                .push(format!("output \"{}\" is the only one with numbers ({})", only.0.name, only.0.value));
            Ok(one(only))
        }
        several => {
            let labels = schema.labels.as_ref().map_or(0, Vec::len);
            let has_label =
                observed.iter().any(|output| matches!(output.value, ObservedValue::Labels { columns: 1 }));
            let columns = several.iter().all(|(_, columns, _)| *columns == 1);
            if columns && (several.len() == named.len() || has_label || several.len() == labels) {
                let rows = several[0].2.len();
                let values = (0..rows).flat_map(|row| several.iter().map(move |(_, _, values)| values[row]));
                let names: Vec<String> = if named.is_empty() {
                    several.iter().map(|(output, ..)| output.name.clone()).collect()
                } else {
                    named.to_vec()
                };
                let values: Vec<f64> = values.collect();
                reasons.push(format!("{} outputs of one column each: one per class", several.len()));
                return Ok(Candidate { columns: names.len(), names, keys: None, values });
            }
            let mut called =
                several.iter().filter(|(output, ..)| output.name.to_lowercase().contains("prob"));
            match (called.next(), called.next()) {
                (Some(found), None) => {
                    reasons.push(format!(
                        "output \"{}\" is called a probability ({})",
                        found.0.name, found.0.value
                    ));
                    Ok(one(found))
                }
                _ => Err(Fault::Output(format!(
                    "several outputs could be the answer: {}; say which with --output NAME",
                    have()
                ))),
            }
        }
    }
}

/// The order of a ZipMap's classes: the node's own where it makes the output, else as the maps have it.
fn zipmap_order(graph: &GraphProto, output: &str, keys: &ClassKeys) -> ClassKeys {
    let makes = |node: &&NodeProto| node.output.iter().any(|name| name == output);
    let own = graph.node.iter().find(makes).and_then(zipmap_keys);
    // Behind other nodes, the one ZipMap of the graph.
    let own = own.or_else(|| graph.node.iter().find_map(zipmap_keys));
    own.filter(|own| same_keys(own, keys)).unwrap_or_else(|| keys.clone())
}

fn same_keys(a: &ClassKeys, b: &ClassKeys) -> bool {
    let sorted = |keys: &ClassKeys| {
        let mut names = keys.names();
        names.sort();
        names
    };
    std::mem::discriminant(a) == std::mem::discriminant(b) && sorted(a) == sorted(b)
}

/// Lines of values by `from` → lines by `to`.
fn reorder(values: &[f64], from: &ClassKeys, to: &ClassKeys) -> Vec<f64> {
    let from = from.names();
    let places: Vec<usize> =
        to.names().iter().filter_map(|name| from.iter().position(|found| found == name)).collect();
    values.chunks_exact(from.len().max(1)).flat_map(|line| places.iter().map(move |at| line[*at])).collect()
}

/// The classes in the order of the columns, where the graph names them.
fn classes(graph: &GraphProto, candidate: &Candidate) -> Option<ClassKeys> {
    if let Some(keys) = &candidate.keys {
        return Some(keys.clone());
    }
    let wanted = if candidate.columns == 1 { 2 } else { candidate.columns };
    let of_nodes = graph.node.iter().rev().filter_map(|node| {
        node.attribute.iter().find_map(|attribute| match attribute.name() {
            "classlabels_int64s" | "classlabels_ints" if attribute.ints.len() == wanted => {
                Some(ClassKeys::Integers(attribute.ints.clone()))
            }
            "classlabels_strings" if attribute.strings.len() == wanted => {
                let names = attribute.strings.iter().map(|name| String::from_utf8(name.clone()).ok());
                names.collect::<Option<Vec<_>>>().map(ClassKeys::Strings)
            }
            _ => None,
        })
    });
    // Pipelines that put probabilities together themselves keep the classes as a constant that the label is picked from.
    let picks =
        graph.node.iter().rev().filter(|node| matches!(node.op_type(), "ArrayFeatureExtractor" | "Gather"));
    let of_constants = picks.filter_map(|node| {
        let name = node.input.first()?;
        let tensor = graph.initializer.iter().find(|tensor| tensor.name() == name)?;
        constant_classes(tensor).filter(|classes| classes.len() == wanted)
    });
    of_nodes.chain(of_constants).next()
}

fn constant_classes(tensor: &TensorProto) -> Option<ClassKeys> {
    // `TensorProto.DataType`: int64 and string.
    match tensor.data_type() {
        7 => {
            let raw = tensor.raw_data.as_deref().unwrap_or_default();
            let of_raw = || {
                raw.chunks_exact(8)
                    .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap_or_default()))
                    .collect()
            };
            let values = if tensor.int64_data.is_empty() { of_raw() } else { tensor.int64_data.clone() };
            Some(ClassKeys::Integers(values))
        }
        8 => {
            let names = tensor.string_data.iter().map(|name| String::from_utf8(name.clone()).ok());
            names.collect::<Option<Vec<_>>>().map(ClassKeys::Strings)
        }
        _ => None,
    }
}

/// Whether the numbers are probabilities of two classes, of several, or values.
fn task(
    graph: &GraphProto,
    candidate: &Candidate,
    schema: &FeatureSchema,
    overrides: &Overrides,
    has_label: bool,
    has_classes: bool,
    reasons: &mut Vec<String>,
) -> Result<Task, Fault> {
    let columns = candidate.columns;
    let by_columns = if columns <= 2 { Task::Binary } else { Task::Multiclass { classes: columns } };
    let labels = schema.labels.as_ref().map(Vec::len);
    let told = overrides.task.or(match labels {
        Some(0) => Some(TaskName::Regression),
        Some(2) => Some(TaskName::Binary),
        Some(_) => Some(TaskName::Multiclass),
        None => None,
    });
    let found = match told {
        Some(TaskName::Regression) if columns == 1 => Task::Regression,
        Some(TaskName::Binary) if columns <= 2 => Task::Binary,
        Some(TaskName::Multiclass) if columns > 2 => by_columns,
        Some(told) => {
            return Err(Fault::Labels(format!(
                "output {} has {columns} column(s), which {} cannot be; the schema has {} label(s)",
                candidate.called(),
                told.as_str(),
                labels.map_or("no".to_string(), |count| count.to_string())
            )));
        }
        None if has_label || has_classes || columns > 1 => by_columns,
        None => match last_operator(graph, &candidate.names[0]) {
            Some(operator) if operator.is_probability => {
                reasons.push(format!(
                    "one column that {} ends in: the probability of the positive class",
                    operator.name
                ));
                Task::Binary
            }
            Some(operator) => {
                reasons.push(format!("one column from {} and no label: a value (regression)", operator.name));
                Task::Regression
            }
            None => {
                return Err(Fault::Output(format!(
                    "output {} has one column, and nothing tells a probability from a value; say --task binary or --task \
                     regression, or \"labels\" in the schema",
                    candidate.called()
                )));
            }
        },
    };
    Ok(found)
}

struct LastOperator {
    name: String,
    is_probability: bool,
}

/// The operator that makes an output, behind those that only change its form.
fn last_operator(graph: &GraphProto, output: &str) -> Option<LastOperator> {
    let mut value = output.to_string();
    for _ in 0..16 {
        let node = graph.node.iter().find(|node| node.output.contains(&value))?;
        let transform = node.attribute.iter().find(|attribute| attribute.name() == "post_transform");
        let transform = transform.and_then(|attribute| attribute.s.as_deref()).unwrap_or_default();
        match node.op_type() {
            "Cast" | "Reshape" | "Identity" | "Squeeze" | "Unsqueeze" | "Flatten" | "Clip" => {
                value = node.input.first()?.clone();
            }
            "Sigmoid" | "Softmax" => {
                return Some(LastOperator { name: node.op_type().into(), is_probability: true });
            }
            other => {
                let is_probability = matches!(transform, b"LOGISTIC" | b"SOFTMAX" | b"PROBIT");
                let name = if is_probability {
                    format!("{other} with {}", String::from_utf8_lossy(transform))
                } else {
                    other.to_string()
                };
                return Some(LastOperator { name, is_probability });
            }
        }
    }
    None
}

/// The labels, in the order of the columns for several classes, and the place of the positive class.
fn labels(
    candidate: &Candidate,
    classes: Option<&ClassKeys>,
    schema: &FeatureSchema,
    overrides: &Overrides,
    task: Task,
    reasons: &mut Vec<String>,
) -> Result<(Vec<String>, usize), Fault> {
    let names = classes.map(ClassKeys::names);
    let own = schema.labels.as_ref();
    if let Task::Multiclass { classes: count } = task {
        let labels = match (own, &names) {
            (Some(own), _) if own.len() != count => {
                return Err(Fault::Labels(format!(
                    "the schema has {} labels, but the output has {count} columns{}",
                    own.len(),
                    names
                        .as_ref()
                        .map_or(String::new(), |names| format!(" for the classes {}", names.join(", ")))
                )));
            }
            // The same names in another order: the graph's order is that of the columns.
            (Some(own), Some(names)) if own.iter().all(|label| names.contains(label)) => names.clone(),
            (Some(own), names) => {
                let of = names.as_ref().map_or(String::new(), |names| format!(" ({})", names.join(", ")));
                reasons.push(format!(
                    "the schema's labels {} stand for the columns{of}, in this order",
                    own.join(", ")
                ));
                own.clone()
            }
            (None, Some(names)) => {
                reasons.push(format!("the graph's own labels: {}", names.join(", ")));
                names.clone()
            }
            (None, None) => (0..count).map(|class| class.to_string()).collect(),
        };
        return Ok((labels, 0));
    }
    let positive = positive(candidate, names.as_deref(), schema, overrides, reasons)?;
    let labels = match (own, classes) {
        (Some(own), _) => own.clone(),
        (None, Some(ClassKeys::Strings(names))) if names.len() == 2 => {
            let positive = if candidate.columns == 1 { 1 } else { positive };
            vec![names[1 - positive].clone(), names[positive].clone()]
        }
        _ => FeatureSchema::default_labels(),
    };
    Ok((labels, positive))
}

/// The column of the positive class.
fn positive(
    candidate: &Candidate,
    names: Option<&[String]>,
    schema: &FeatureSchema,
    overrides: &Overrides,
    reasons: &mut Vec<String>,
) -> Result<usize, Fault> {
    if candidate.columns == 1 {
        return Ok(0);
    }
    let place = |class: &str| names.and_then(|names| names.iter().position(|name| name == class));
    let as_text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToString::to_string);
    if let Some(class) = &overrides.positive {
        let column = || class.parse::<usize>().ok().filter(|at| *at < candidate.columns);
        return place(class).or_else(column).ok_or_else(|| {
            Fault::Positive(format!(
                "--positive {class}: the classes are {}",
                names.map_or("not named; give a column, 0 or 1".into(), |names| names.join(", "))
            ))
        });
    }
    if let Some(at) = place(&as_text(&schema.positive)) {
        let name = names.map_or("", |names| names[at].as_str());
        reasons.push(format!(
            "class {name} is the positive one, as the schema's \"positive\" says: column {at}"
        ));
        return Ok(at);
    }
    if let Some(at) = schema.labels.as_ref().and_then(|labels| place(labels.get(1)?)) {
        reasons.push(format!("the schema's second label is the positive one: column {at}"));
        return Ok(at);
    }
    match names {
        Some(names) if names != ["0", "1"] && names != ["False", "True"] => Err(Fault::Positive(format!(
            "the classes are {}, and the schema's \"positive\" ({}) is none of them; set it, or say --positive CLASS",
            names.join(", "),
            as_text(&schema.positive)
        ))),
        _ => {
            reasons.push("of two columns the second is the positive class's".into());
            Ok(1)
        }
    }
}

/// Golden rows of two classes may give both probabilities: the positive one is compared.
fn per_row(golden: &[GoldenRow], task: Task, positive: usize) -> Vec<GoldenRow> {
    let one = |row: &GoldenRow| match &row.expected {
        Expected::Classes(values) if task == Task::Binary && values.len() == 2 => {
            GoldenRow { features: row.features.clone(), expected: Expected::One(values[positive.min(1)]) }
        }
        _ => row.clone(),
    };
    golden.iter().map(one).collect()
}

/// What turns the numbers into probabilities, if they are none yet.
fn link(
    candidate: &Candidate,
    task: Task,
    positive: usize,
    overrides: &Overrides,
    golden: &[GoldenRow],
    reasons: &mut Vec<String>,
) -> Result<Option<Link>, Fault> {
    let (least, greatest) =
        candidate.values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), value| {
            (least.min(*value), greatest.max(*value))
        });
    let within = least >= -ROUNDING && greatest <= 1.0 + ROUNDING;
    let sums = candidate.columns == 1
        || candidate
            .values
            .chunks_exact(candidate.columns)
            .all(|line| (line.iter().sum::<f64>() - 1.0).abs() <= SUM_TOLERANCE);
    let called = candidate.called();
    if let Some(link) = overrides.link {
        if link.is_none() && !within {
            return Err(Fault::Link(format!(
                "--link none: output {called} holds values from {least} to {greatest}, which are no probabilities"
            )));
        }
        reasons.push(format!("{}, as the flag says", link.map_or("no link", describe)));
        return Ok(link);
    }
    let reproduces = |link: Option<Link>| {
        let lines: Vec<Vec<f64>> = candidate
            .values
            .chunks_exact(candidate.columns)
            .take(golden.len())
            .map(|line| {
                let mut line = line.to_vec();
                apply_link(link, &mut line);
                if task == Task::Binary { vec![line[positive]] } else { line }
            })
            .collect();
        let tolerance = Tolerance::of(task, overrides.tolerance);
        compare_golden(golden, lines.iter().map(Vec::as_slice), tolerance).is_ok()
    };
    let plausible = within && sums;
    if golden.is_empty() {
        if plausible {
            reasons.push(format!(
                "its values lie in [0, 1] on every row that was tried{}: probabilities",
                if candidate.columns > 1 { " and add up to 1" } else { "" }
            ));
            return Ok(None);
        }
        let found = if within {
            format!("rows whose {} values do not add up to 1", candidate.columns)
        } else {
            format!("values from {least} to {greatest}")
        };
        return Err(Fault::Link(format!(
            "output {called} should hold probabilities and holds {found}: scores, which a link function turns into \
             probabilities. Add golden rows that prove which (--golden), or say --link sigmoid or --link softmax"
        )));
    }
    if within && reproduces(None) {
        reasons.push(format!("its values are the golden rows' probabilities ({} rows)", golden.len()));
        return Ok(None);
    }
    let links = [Link::Sigmoid, Link::Softmax];
    let links = links.into_iter().filter(|link| *link == Link::Sigmoid || candidate.columns > 1);
    for link in links {
        if reproduces(Some(link)) {
            reasons.push(format!(
                "its values (from {least} to {greatest}) are scores: {} of them gives the golden rows' probabilities ({} rows)",
                describe(link),
                golden.len()
            ));
            return Ok(Some(link));
        }
    }
    if plausible {
        // The golden check names the worst row.
        return Ok(None);
    }
    Err(Fault::Link(format!(
        "output {called} holds values from {least} to {greatest}, and neither as they are nor through sigmoid or softmax do \
         they give the golden rows' probabilities; check that golden rows and graph are of the same model"
    )))
}

fn describe(link: Link) -> &'static str {
    match link {
        Link::Sigmoid => "sigmoid",
        Link::Softmax => "softmax",
    }
}
