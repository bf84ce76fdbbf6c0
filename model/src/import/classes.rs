//! What a graph's columns are called: its classes, their labels, and which of two is the positive one.

use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::{ClassKeys, Task};
use scoregate_schemas::onnx::{GraphProto, NodeProto, TensorProto};
use serde_json::Value;

use super::output::Candidate;
use super::{Fault, Live, Overrides};
use crate::inspect::class_labels;
use crate::package::check_labels;

/// The classes in the order of the columns, where the graph names them.
pub(super) fn classes(
    graph: &GraphProto,
    candidate: &Candidate,
    label: Option<&str>,
) -> Result<Option<ClassKeys>, Fault> {
    let wanted = if candidate.columns == 1 { 2 } else { candidate.columns };
    let found = match (&candidate.keys, label) {
        (Some(keys), _) => Some(keys.clone()),
        // What makes the label knows what it means; estimators within others have classes of their own.
        (None, Some(label)) => label_classes(graph, label, 0),
        (None, None) => match own_classes(graph).as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        },
    };
    let Some(found) = found.filter(|classes| classes.len() == wanted) else { return Ok(None) };
    check_names(&found)?;
    let Some(places) = &candidate.places else { return Ok(Some(found)) };
    let pick = |at: &usize| *at < found.len();
    if places.len() != found.len() || !places.iter().all(pick) {
        return Ok(None);
    }
    Ok(Some(match &found {
        ClassKeys::Integers(keys) => ClassKeys::Integers(places.iter().map(|at| keys[*at]).collect()),
        ClassKeys::Strings(keys) => ClassKeys::Strings(places.iter().map(|at| keys[*at].clone()).collect()),
    }))
}

/// The classes of every classifier node.
fn own_classes(graph: &GraphProto) -> Vec<ClassKeys> {
    graph.node.iter().filter_map(node_classes).collect()
}

fn node_classes(node: &NodeProto) -> Option<ClassKeys> {
    if node.op_type() == "LabelEncoder" {
        return None;
    }
    class_labels(node)
}

fn texts(bytes: &[Vec<u8>]) -> Option<ClassKeys> {
    let names = bytes.iter().map(|name| String::from_utf8(name.clone()).ok());
    names.collect::<Option<Vec<_>>>().map(ClassKeys::Strings)
}

/// The classes that the value `label` is one of, found by walking back from it: a classifier's own, or the constant that it is
/// picked from.
fn label_classes(graph: &GraphProto, label: &str, depth: usize) -> Option<ClassKeys> {
    let node = graph.node.iter().find(|node| node.output.iter().any(|output| output == label))?;
    let first = node.input.first()?;
    if depth > 16 {
        return None;
    }
    match node.op_type() {
        "Cast" | "Reshape" | "Identity" | "Squeeze" | "Unsqueeze" | "Flatten" => {
            label_classes(graph, first, depth + 1)
        }
        "ArrayFeatureExtractor" | "Gather" => {
            let tensor = graph.initializer.iter().find(|tensor| tensor.name() == first)?;
            constant_classes(tensor)
        }
        "LabelEncoder" => {
            let ints = |name: &str| {
                let found = node.attribute.iter().find(|attribute| attribute.name() == name);
                found.map(|attribute| attribute.ints.clone())
            };
            let (keys, values) =
                (ints("keys_int64s")?, node.attribute.iter().find(|a| a.name() == "values_strings")?);
            let ClassKeys::Integers(inner) = label_classes(graph, first, depth + 1)? else { return None };
            let named = inner.iter().map(|class| {
                let at = keys.iter().position(|key| key == class)?;
                values.strings.get(at).cloned()
            });
            texts(&named.collect::<Option<Vec<_>>>()?)
        }
        _ => node_classes(node),
    }
}

/// Class names become labels of answers and words of reports.
pub(super) fn check_names(classes: &ClassKeys) -> Result<(), Fault> {
    match classes {
        ClassKeys::Strings(names) => check_labels(names).map_err(Fault::Labels),
        ClassKeys::Integers(_) => Ok(()),
    }
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
        8 => texts(&tensor.string_data),
        _ => None,
    }
}

/// The labels: in the order of the columns for several classes, `[negative, positive]` for two.
pub(super) fn labels(
    called: &str,
    classes: Option<&ClassKeys>,
    schema: &FeatureSchema,
    task: Task,
    columns: usize,
    positive: usize,
    reasons: &mut Vec<String>,
) -> Result<Vec<String>, Fault> {
    let names = classes.map(ClassKeys::names);
    let own = schema.labels.as_ref();
    let count = if let Task::Multiclass { classes } = task { classes } else { 2 };
    if let Some(own) = own.filter(|own| own.len() != count) {
        return Err(Fault::Labels(format!(
            "the schema has {} labels, but output {called} has {columns} column(s){}",
            own.len(),
            names.as_ref().map_or(String::new(), |names| format!(" for the classes {}", names.join(", ")))
        )));
    }
    // In which order the graph's classes are labelled.
    let ordered = names.as_ref().map(|names| match task {
        Task::Multiclass { .. } => names.clone(),
        _ => {
            let positive = if columns == 1 { 1 } else { positive };
            vec![names[1 - positive].clone(), names[positive].clone()]
        }
    });
    match (own, ordered, classes) {
        (Some(own), Some(ordered), Some(classes)) => {
            let known = own.iter().filter(|label| ordered.contains(label)).count();
            if known == own.len() {
                if matches!(task, Task::Binary) && *own != ordered {
                    return Err(Fault::Labels(format!(
                        "the schema's labels are {}, negative and positive, but the positive class is {}; swap the labels, \
                         or say another class with \"positive\" or --positive",
                        own.join(" and "),
                        ordered[1]
                    )));
                }
                return Ok(ordered);
            }
            if known > 0
                || (matches!(classes, ClassKeys::Strings(_)) && matches!(task, Task::Multiclass { .. }))
            {
                return Err(Fault::Labels(format!(
                    "the schema's labels are {}, but the graph's classes are {}; expected the same names, in any order",
                    own.join(", "),
                    ordered.join(", ")
                )));
            }
            let pairs = ordered.iter().zip(own).map(|(class, label)| format!("{class} is \"{label}\""));
            reasons.push(format!(
                "the schema's labels stand for the graph's classes: {}",
                pairs.collect::<Vec<_>>().join(", ")
            ));
            Ok(own.clone())
        }
        (Some(own), _, _) => {
            if matches!(task, Task::Multiclass { .. }) {
                reasons.push(format!(
                    "the schema's labels {} stand for the columns, in this order",
                    own.join(", ")
                ));
            }
            Ok(own.clone())
        }
        (None, Some(ordered), Some(ClassKeys::Strings(_))) => {
            reasons.push(format!("the graph's own labels: {}", ordered.join(", ")));
            Ok(ordered)
        }
        (None, Some(ordered), _) if matches!(task, Task::Multiclass { .. }) => Ok(ordered),
        (None, _, _) if count == 2 => Ok(FeatureSchema::default_labels()),
        (None, _, _) => Ok((0..count).map(|class| class.to_string()).collect()),
    }
}

/// Whether a class of the graph, or a cell of a CSV, is what a schema's value says.
pub(super) fn is_value(text: &str, value: &Value) -> bool {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    match value {
        Value::String(expected) => {
            text == expected || number(text).is_some_and(|found| Some(found) == number(expected))
        }
        Value::Bool(expected) => {
            let words = if *expected { ["true", "1"] } else { ["false", "0"] };
            words.contains(&text.to_ascii_lowercase().as_str())
                || number(text) == Some(f64::from(u8::from(*expected)))
        }
        Value::Number(expected) => {
            let bool_number = match text.to_ascii_lowercase().as_str() {
                "true" => Some(1.0),
                "false" => Some(0.0),
                _ => None,
            };
            number(text).or(bool_number) == expected.as_f64()
        }
        _ => false,
    }
}

pub(super) enum Positive {
    Column(usize),
    /// Nothing says it but, perhaps, golden rows; the message for when there are none.
    Unclear(String),
}

/// The column of the positive class.
pub(super) fn positive(
    candidate: &Candidate,
    names: Option<&[String]>,
    schema: &FeatureSchema,
    overrides: &Overrides,
    live: Option<&Live>,
    task: Task,
    reasons: &mut Vec<String>,
) -> Result<Positive, Fault> {
    if let (Some(class), true) = (&overrides.positive, candidate.columns != 2) {
        return Err(Fault::Positive(format!(
            "--positive {class}: output {} has {} column(s), of which none can be chosen",
            candidate.called(),
            candidate.columns
        )));
    }
    if candidate.columns == 1 || task != Task::Binary {
        return Ok(Positive::Column(0));
    }
    let place =
        |fits: &dyn Fn(&str) -> bool| names.and_then(|names| names.iter().position(|name| fits(name)));
    if let Some(class) = &overrides.positive {
        let column = || class.parse::<usize>().ok().filter(|at| *at < candidate.columns && names.is_none());
        return place(&|name| name == class).or_else(column).map(Positive::Column).ok_or_else(|| {
            Fault::Positive(format!(
                "--positive {class}: {}",
                names.map_or(
                    "the graph does not name its classes; give a column, 0 or 1".into(),
                    |names| format!("the classes are {}", names.join(", "))
                )
            ))
        });
    }
    if let Some(stated) = schema.stated_positive() {
        if let Some(at) = place(&|name| is_value(name, stated)) {
            let name = names.map_or("", |names| names[at].as_str());
            reasons.push(format!(
                "class {name} is the positive one, as the schema's \"positive\" says: column {at}"
            ));
            return Ok(Positive::Column(at));
        }
        return Ok(Positive::Unclear(format!(
            "the graph's classes are {}, and the schema's \"positive\" ({stated}) is none of them; say which is with --positive, \
             or add golden rows that prove it",
            names.map_or("not named".into(), |names| names.join(", "))
        )));
    }
    if let Some(at) = schema
        .labels
        .as_ref()
        .and_then(|labels| place(&|name| labels.get(1).is_some_and(|label| label == name)))
    {
        reasons.push(format!("the schema's second label is the positive class: column {at}"));
        return Ok(Positive::Column(at));
    }
    match names {
        None => match live {
            Some(live) => Ok(Positive::Column(live.positive(reasons))),
            None => {
                reasons.push("of two columns the second is the positive class's".into());
                Ok(Positive::Column(1))
            }
        },
        Some([negative, positive]) if is_usual(negative, positive) => {
            reasons.push(format!("class {positive} is the positive one: column 1"));
            Ok(Positive::Column(1))
        }
        Some([positive, negative]) if is_usual(negative, positive) => {
            reasons.push(format!("class {positive} is the positive one: column 0"));
            Ok(Positive::Column(0))
        }
        Some(names) => Ok(Positive::Unclear(format!(
            "the graph's classes are {}, and nothing says which is the positive one; set \"positive\" in the schema, or say \
             --positive CLASS",
            names.join(", ")
        ))),
    }
}

/// Whether two classes are no and yes to everyone.
fn is_usual(negative: &str, positive: &str) -> bool {
    let pair = (negative.to_ascii_lowercase(), positive.to_ascii_lowercase());
    [("0", "1"), ("-1", "1"), ("false", "true")].iter().any(|(no, yes)| pair.0 == *no && pair.1 == *yes)
}
