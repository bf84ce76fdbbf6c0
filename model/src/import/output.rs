//! Where a graph's answer is, what it means and whether it still needs a link: told by what it answers to real rows, never
//! by its name alone.

use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::{ClassKeys, Link, Output, Task};
use scoregate_schemas::onnx::{GraphProto, NodeProto};

use super::classes::{Positive, check_names, classes, labels, positive};
use super::{Fault, Live, Overrides, TaskName};
use crate::acceptance::{Refusal, Tolerance, compare_golden};
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
    /// The classes as the graph names them, in the order of the columns.
    pub(super) classes: Option<Vec<String>>,
}

/// One or several outputs that together give one line of numbers per row.
pub(super) struct Candidate {
    names: Vec<String>,
    /// The keys, where they are maps.
    pub(super) keys: Option<ClassKeys>,
    pub(super) columns: usize,
    /// For several outputs the place of each column's output in the graph.
    pub(super) places: Option<Vec<usize>>,
    /// One line of `columns` numbers per row.
    values: Vec<f64>,
}

impl Candidate {
    /// The live version, if its answer is in outputs of these names and of as many columns.
    pub(super) fn of_live<'l>(&self, live: Option<&'l Live>) -> Option<&'l Live> {
        live.filter(|Live { output, .. }| {
            output.columns() == self.columns && output.names().into_iter().eq(self.names.iter())
        })
    }

    pub(super) fn called(&self) -> String {
        self.names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    }
}

/// What an inference has to go by.
pub(super) struct Evidence<'e> {
    pub(super) graph: &'e GraphProto,
    /// What every output held on some rows, the golden ones first.
    pub(super) observed: &'e [Observed],
    pub(super) schema: &'e FeatureSchema,
    pub(super) overrides: &'e Overrides,
    /// The golden rows among those.
    pub(super) golden: &'e [GoldenRow],
    /// Whether the rows are anybody's, not made up from the schema.
    pub(super) is_real: bool,
    /// The live version.
    pub(super) live: Option<&'e Live>,
}

/// Finds the answer.
///
/// # Errors
/// [`Fault`] with what was found, and the flag that settles it.
pub(super) fn infer(evidence: &Evidence<'_>, reasons: &mut Vec<String>) -> Result<Found, Fault> {
    let Evidence { graph, observed, schema, overrides, golden, live, .. } = *evidence;
    let of_live = live.filter(|_| overrides.outputs.is_empty()).map(|live| live.output.names());
    let are_there =
        |names: &Vec<&str>| names.iter().all(|name| observed.iter().any(|output| output.name == *name));
    let named = match of_live.filter(are_there) {
        Some(names) => {
            reasons.push(format!(
                "the live version's answer is in {}, which this graph has too",
                names.join(", ")
            ));
            names.into_iter().map(Into::into).collect()
        }
        None => overrides.outputs.clone(),
    };
    let candidate = choose(graph, observed, schema, &named, reasons)?;
    let live = candidate.of_live(live);
    if let Some(at) = candidate.values.iter().position(|value| !value.is_finite()) {
        return Err(Fault::Answer(format!(
            "output {} is {} for row {} of those that were tried; expected finite numbers",
            candidate.called(),
            candidate.values[at],
            at / candidate.columns + 1
        )));
    }
    let label = observed.iter().find(|output| matches!(output.value, ObservedValue::Labels { columns: 1 }));
    let label = label.map(|output| output.name.as_str());
    let classes = classes(graph, &candidate, label)?;
    let is_classifier = label.is_some() || classes.is_some();
    let task = task(graph, &candidate, schema, overrides, live, is_classifier, reasons)?;
    if task == Task::Regression {
        if overrides.positive.is_some() || overrides.link.flatten().is_some() {
            return Err(Fault::Output(
                "--positive and --link are for probabilities, and this is a value; say --task binary if it is none".into(),
            ));
        }
        let name = candidate.names[0].clone();
        return Ok(Found { output: Output::Value { name }, labels: Vec::new(), classes: None });
    }
    let names = classes.as_ref().map(ClassKeys::names);
    if let Some(expected) = golden
        .iter()
        .map(|row| row.expected.values().len())
        .find(|found| *found != task.width() && !(task == Task::Binary && *found == 2))
    {
        let row = golden.iter().position(|row| row.expected.values().len() == expected).unwrap_or(0) + 1;
        let (found, expected) = (expected, task.width());
        return Err(Fault::Refused(Refusal::GoldenWidth { row, found, expected }));
    }
    let (positive, link) =
        match positive(&candidate, names.as_deref(), schema, overrides, live, task, reasons)? {
            Positive::Column(at) => (at, link(evidence, &candidate, task, at, reasons)?),
            Positive::Unclear(why) => match proved_column(evidence, &candidate, task, reasons) {
                Some(proved) => proved,
                None => {
                    let live = live.filter(|_| names.is_none()).ok_or(Fault::Positive(why))?;
                    let at = live.positive(reasons);
                    (at, link(evidence, &candidate, task, at, reasons)?)
                }
            },
        };
    let labels =
        labels(&candidate.called(), classes.as_ref(), schema, task, candidate.columns, positive, reasons)?;
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
    Ok(Found { output, labels, classes: names })
}

/// An output that was stated whole: only what the schema says of its classes is left to check.
///
/// # Errors
/// [`Fault::Labels`] if schema and output do not meet.
pub(super) fn stated(
    output: &Output,
    evidence: &Evidence<'_>,
    reasons: &mut Vec<String>,
) -> Result<Found, Fault> {
    let task = output.task();
    reasons.push("the output is that of the file".into());
    if output.columns() == 0 || output.positive() >= output.columns() {
        return Err(Fault::Output(format!(
            "the stated output has {} column(s), and column {} is to be the positive class's",
            output.columns(),
            output.positive()
        )));
    }
    if task == Task::Regression {
        return Ok(Found { output: output.clone(), labels: Vec::new(), classes: None });
    }
    let label =
        evidence.observed.iter().find(|found| matches!(found.value, ObservedValue::Labels { columns: 1 }));
    let candidate = Candidate {
        names: output.names().into_iter().map(Into::into).collect(),
        keys: if let Output::Zipmap { keys, .. } = output { Some(keys.clone()) } else { None },
        columns: output.columns(),
        places: match output {
            Output::Columns { names, .. } => Some(places(evidence.observed, names)),
            _ => None,
        },
        values: Vec::new(),
    };
    let classes = classes(evidence.graph, &candidate, label.map(|output| output.name.as_str()))?;
    let (called, columns, positive) = (candidate.called(), output.columns(), output.positive());
    let labels = labels(&called, classes.as_ref(), evidence.schema, task, columns, positive, reasons)?;
    Ok(Found { output: output.clone(), labels, classes: classes.as_ref().map(ClassKeys::names) })
}

/// The place of each of `names` among the outputs that hold one number per row.
fn places(observed: &[Observed], names: &[String]) -> Vec<usize> {
    let columns: Vec<&str> = observed
        .iter()
        .filter(|output| matches!(output.value, ObservedValue::Numbers { columns: 1, .. }))
        .map(|output| output.name.as_str())
        .collect();
    names.iter().filter_map(|name| columns.iter().position(|column| column == name)).collect()
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
        check_names(&ordered)?;
        reasons.push(format!(
            "output \"{}\" is a sequence of maps (ZipMap) with the classes {}",
            output.name,
            ordered.names().join(", ")
        ));
        let values = reorder(values, keys, &ordered);
        let columns = ordered.len();
        let names = vec![output.name.clone()];
        return Ok(Candidate { names, keys: Some(ordered), columns, places: None, values });
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
        places: None,
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
            let is = if named.is_empty() { "is the only one with" } else { "holds" };
            reasons.push(format!("output \"{}\" {is} numbers ({})", only.0.name, only.0.value));
            Ok(one(only))
        }
        several => {
            let labels = schema.labels.as_ref().map_or(0, Vec::len);
            let has_label =
                observed.iter().any(|output| matches!(output.value, ObservedValue::Labels { columns: 1 }));
            let columns = several.iter().all(|(_, columns, _)| *columns == 1);
            if columns && (several.len() == named.len() || has_label || several.len() == labels) {
                let mut several: Vec<&(&Observed, usize, &Vec<f64>)> = several.iter().collect();
                // Flags may say another order than the graph's.
                several.sort_by_key(|(output, ..)| named.iter().position(|name| *name == output.name));
                let rows = several[0].2.len();
                let values = (0..rows).flat_map(|row| several.iter().map(move |(_, _, values)| values[row]));
                let values: Vec<f64> = values.collect();
                let names: Vec<String> = several.iter().map(|(output, ..)| output.name.clone()).collect();
                reasons.push(format!("{} outputs of one column each: one per class", names.len()));
                let places = Some(places(observed, &names));
                return Ok(Candidate { columns: names.len(), names, keys: None, places, values });
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

/// Whether the numbers are probabilities of two classes, of several, or values.
fn task(
    graph: &GraphProto,
    candidate: &Candidate,
    schema: &FeatureSchema,
    overrides: &Overrides,
    live: Option<&Live>,
    is_classifier: bool,
    reasons: &mut Vec<String>,
) -> Result<Task, Fault> {
    let columns = candidate.columns;
    let by_columns = if columns <= 2 { Task::Binary } else { Task::Multiclass { classes: columns } };
    let labels = schema.labels.as_ref().map(Vec::len);
    // A link makes probabilities.
    let linked = overrides.link.flatten().map(|_| match by_columns {
        Task::Multiclass { .. } => TaskName::Multiclass,
        Task::Binary | Task::Regression => TaskName::Binary,
    });
    let told = overrides.task.or(linked).or(match labels {
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
        None if is_classifier || columns > 1 => by_columns,
        None => match (live, last_operator(graph, &candidate.names[0])) {
            (Some(live), _) => live.output.task(),
            (None, Some(operator)) if operator.is_probability => {
                reasons.push(format!(
                    "one column that {} ends in: the probability of the positive class",
                    operator.name
                ));
                Task::Binary
            }
            (None, Some(operator)) => {
                reasons.push(format!("one column from {} and no label: a value (regression)", operator.name));
                Task::Regression
            }
            (None, None) => {
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

/// The one column whose numbers give the golden rows' probabilities, and through which link.
fn proved_column(
    evidence: &Evidence<'_>,
    candidate: &Candidate,
    task: Task,
    reasons: &mut Vec<String>,
) -> Option<(usize, Option<Link>)> {
    if evidence.golden.is_empty() {
        return None;
    }
    let proved = |at: usize| {
        let mut own = Vec::new();
        let link = link(evidence, candidate, task, at, &mut own).ok()?;
        reproduces(evidence, candidate, task, at, link).then_some((at, link, own))
    };
    let (at, link, own) = match (proved(0), proved(1)) {
        (Some(found), None) | (None, Some(found)) => found,
        _ => return None,
    };
    reasons
        .push(format!("column {at} is the positive class's: it alone gives the golden rows' probabilities"));
    reasons.extend(own);
    Some((at, link))
}

/// Golden rows of two classes may give both probabilities: the one of column `positive` is compared.
pub fn one_number(golden: Vec<GoldenRow>, task: Task, positive: usize) -> Vec<GoldenRow> {
    let one = |row: GoldenRow| match &row.expected {
        Expected::Classes(values) if task == Task::Binary && values.len() == 2 => {
            // A graph of one column has the positive class's, which is the second everywhere.
            GoldenRow { expected: Expected::One(values[positive]), features: row.features }
        }
        _ => row,
    };
    golden.into_iter().map(one).collect()
}

/// Whether the numbers, through `link`, are the golden rows' answers.
fn reproduces(
    evidence: &Evidence<'_>,
    candidate: &Candidate,
    task: Task,
    positive: usize,
    link: Option<Link>,
) -> bool {
    let lines: Vec<Vec<f64>> = candidate
        .values
        .chunks_exact(candidate.columns)
        .take(evidence.golden.len())
        .map(|line| {
            let mut line = line.to_vec();
            apply_link(link, &mut line);
            if task == Task::Binary { vec![line[positive]] } else { line }
        })
        .collect();
    let place = if candidate.columns == 1 { 1 } else { positive };
    let golden = one_number(evidence.golden.to_vec(), task, place);
    let tolerance = Tolerance::of(task, evidence.overrides.tolerance);
    compare_golden(&golden, lines.iter().map(Vec::as_slice), tolerance).is_ok()
}

/// What turns the numbers into probabilities, if they are none yet.
fn link(
    evidence: &Evidence<'_>,
    candidate: &Candidate,
    task: Task,
    positive: usize,
    reasons: &mut Vec<String>,
) -> Result<Option<Link>, Fault> {
    let Evidence { graph, overrides, golden, is_real, live, .. } = *evidence;
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
    let reproduces = |link: Option<Link>| reproduces(evidence, candidate, task, positive, link);
    let plausible = within && sums;
    if golden.is_empty() {
        let ends_in_one =
            || last_operator(graph, &candidate.names[0]).is_some_and(|operator| operator.is_probability);
        let of_live = candidate.of_live(live).map(|live| live.output.link());
        if plausible
            && candidate.columns == 1
            && !ends_in_one()
            && let Some(Some(link)) = of_live
        {
            return Err(Fault::Link(format!(
                "output {called} lies in [0, 1] on every row that was tried, and the live version's output that is called so holds \
                 scores ({}); add --golden, or say --link",
                describe(link)
            )));
        }
        if plausible && candidate.columns == 1 && !is_real && !ends_in_one() && of_live.is_none() {
            return Err(Fault::Link(format!(
                "output {called} lies in [0, 1] on rows made up from the schema, which proves nothing, and does not end in a \
                 sigmoid; add --reference or --golden, or say --link none"
            )));
        }
        if plausible {
            reasons.push(format!(
                "its values lie in [0, 1] on every row that was tried{}: probabilities",
                match (candidate.columns > 1, of_live) {
                    (true, _) => " and add up to 1",
                    (false, Some(None)) => ", as those of the live version's output of this name",
                    _ => "",
                }
            ));
            return Ok(None);
        }
        if let Some(Some(link)) = of_live {
            reasons.push(format!(
                "its values (from {least} to {greatest}) are scores: {} of them, as in the live version, whose output is called \
                 the same",
                describe(link)
            ));
            return Ok(Some(link));
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
    match links.filter(|link| reproduces(Some(*link))).collect::<Vec<_>>().as_slice() {
        [] => {}
        [link] => {
            reasons.push(format!(
                "its values (from {least} to {greatest}) are scores: {} of them gives the golden rows' probabilities ({} rows)",
                describe(*link),
                golden.len()
            ));
            return Ok(Some(*link));
        }
        _ => {
            return Err(Fault::Link(format!(
                "output {called} holds scores, and the golden rows ({}) do not tell sigmoid from softmax; add more of them, or \
                 say --link",
                golden.len()
            )));
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
