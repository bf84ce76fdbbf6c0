//! Operators other than trees: those that make a score random, that can fill the memory, and whose lists have to fit.

use std::collections::HashMap;

use scoregate_schemas::onnx::{AttributeProto, GraphProto, NodeProto};

use super::tensors::Constants;
use super::widths::Widths;
use super::{Fault, Limits, called, domain};

/// What the content of a value depends on. Its shape never depends on what is in the inputs: an operator that would make it
/// so is refused. That leaves the number of rows, and whoever tries a graph with one row and with as many as a run may have
/// has seen it at its largest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// On the file alone.
    File,
    /// On the sizes of the inputs, which it carries as they are.
    Sizes,
    /// On anything else.
    Values,
}

/// Checks what nodes draw and how much they make, over the whole graph.
pub(super) fn check(graph: &GraphProto, constants: &Constants<'_>, limits: &Limits) -> Result<(), Fault> {
    let mut sources: HashMap<&str, Source> =
        graph.input.iter().map(|input| (input.name(), Source::Values)).collect();
    // A weight that is listed among the inputs is a weight.
    sources.extend(graph.initializer.iter().map(|tensor| (tensor.name(), Source::File)));
    let mut made_in_all = 0.0;
    for node in &graph.node {
        let core = domain(node.domain()).is_empty();
        if core && is_random(node, constants) {
            return Err(Fault::Random { node: called(node) });
        }
        let source_of = |name: &String| sources.get(name.as_str()).copied().unwrap_or(Source::File);
        let most = node.input.iter().map(source_of).max().unwrap_or(Source::File);
        let mut source = most;
        if core {
            let is_beyond = |at: &[usize], allowed: Source| {
                at.iter().filter_map(|at| node.input.get(*at)).any(|name| source_of(name) > allowed)
            };
            if is_beyond(sizes(node.op_type()), Source::Sizes)
                || is_beyond(fixed(node.op_type()), Source::File)
            {
                return Err(Fault::SizeFromValues { node: called(node) });
            }
            made_in_all += made_of_constants(node, constants);
            // A range whose step is no number or zero has no end.
            if made_in_all.is_nan() || made_in_all > limits.elements as f64 {
                return Err(giant(node, made_in_all, limits));
            }
            source = match node.op_type() {
                "Shape" | "Size" => most.min(Source::Sizes),
                _ if most == Source::Sizes && !carries_sizes(node) => Source::Values,
                _ => most,
            };
        }
        for output in &node.output {
            sources.insert(output, source);
        }
    }
    Ok(())
}

/// Whether a core operator only picks and joins sizes, so that what it makes never falls while they grow. With arithmetic, a
/// model could be small for every number of rows but one.
fn carries_sizes(node: &NodeProto) -> bool {
    match node.op_type() {
        "Concat" | "Gather" | "Identity" | "Reshape" | "Slice" | "Squeeze" | "Unsqueeze" => true,
        // To a type that every size fits into: others begin again from zero.
        "Cast" => attribute(node, "to").is_some_and(|to| matches!(to.i(), 1 | 6 | 7 | 11)),
        _ => false,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, as is wanted"
)]
fn giant(node: &NodeProto, made: f64, limits: &Limits) -> Fault {
    let found = if made.is_nan() { u64::MAX } else { made as u64 };
    Fault::GiantTensor { what: format!("what {} makes", called(node)), found, limit: limits.elements }
}

fn attribute<'g>(node: &'g NodeProto, name: &str) -> Option<&'g AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

/// Whether a node answers something else each time, or mixes the rows of a batch as training does.
fn is_random(node: &NodeProto, constants: &Constants<'_>) -> bool {
    let is = |name, value| attribute(node, name).is_some_and(|attribute| attribute.i() == value);
    match node.op_type() {
        "RandomNormal" | "RandomNormalLike" | "RandomUniform" | "RandomUniformLike" | "Multinomial"
        | "Bernoulli" => true,
        // Of opset 12 an input, of opset 6 and before an attribute.
        "Dropout" => {
            let mode = node.input.get(2).filter(|name| !name.is_empty());
            let is_off = |name: &String| constants.is_false(name);
            mode.is_some_and(|name| !is_off(name)) || is("is_test", 0)
        }
        "BatchNormalization" => is("training_mode", 1) || is("is_test", 0),
        _ => false,
    }
}

/// The inputs of a core operator by whose content the shape of what it makes is chosen.
fn sizes(operator: &str) -> &'static [usize] {
    match operator {
        "ConstantOfShape" | "HannWindow" | "HammingWindow" | "BlackmanWindow" => &[0],
        "Expand" | "OneHot" | "Upsample" | "CenterCropPad" | "AffineGrid" | "Reshape" | "TopK" | "Split"
        | "SplitToSequence" | "SequenceAt" | "SequenceErase" => &[1],
        "Tile" | "DFT" | "Col2Im" => &[1, 2],
        "Pad" | "STFT" => &[1, 3],
        "MaxUnpool" | "SequenceInsert" | "Slice" => &[2],
        "Resize" => &[1, 2, 3],
        "MelWeightMatrix" => &[0, 1],
        _ => &[],
    }
}

/// The inputs of a core operator whose content must not even depend on sizes, because what it makes could grow while they fall,
/// or is as large as what it finds in them.
fn fixed(operator: &str) -> &'static [usize] {
    match operator {
        "Slice" => &[1, 3, 4],
        "Range" => &[0, 1, 2],
        "Compress" | "Squeeze" | "Unsqueeze" => &[1],
        // The length of a text counts as its size.
        "NonZero" | "Unique" | "StringSplit" | "StringNormalizer" | "ImageDecoder" => &[0],
        "StringConcat" => &[0, 1],
        "NonMaxSuppression" => &[0, 1, 2, 3, 4],
        _ if operator.starts_with("Reduce") => &[1],
        _ => &[],
    }
}

/// How many elements a node makes at least, as far as constants of the file say; 0 where they do not.
fn made_of_constants(node: &NodeProto, constants: &Constants<'_>) -> f64 {
    let input = |at: usize| node.input.get(at).and_then(|name| constants.numbers(name));
    let listed = |name: &str| {
        let held = attribute(node, name)?;
        let ints = held.ints.iter().map(|value| *value as f64);
        Some(ints.chain(held.floats.iter().map(|value| f64::from(*value))).collect::<Vec<f64>>())
    };
    let product = |values: Vec<f64>| values.into_iter().map(|value| value.max(1.0)).product::<f64>();
    let sum = |values: Vec<f64>| values.into_iter().map(|value| value.max(0.0)).sum::<f64>();
    match node.op_type() {
        "ConstantOfShape" | "HannWindow" | "HammingWindow" | "BlackmanWindow" => {
            input(0).map_or(0.0, product)
        }
        "Expand" | "Tile" | "AffineGrid" | "CenterCropPad" => input(1).map_or(0.0, product),
        "OneHot" => input(1).map_or(0.0, product),
        // By which factor, or how large.
        "Resize" | "Upsample" => [input(1), input(2), input(3), listed("scales")]
            .into_iter()
            .flatten()
            .map(product)
            .fold(0.0, f64::max),
        "Pad" => {
            [input(1), listed("pads"), listed("paddings")].into_iter().flatten().map(sum).fold(0.0, f64::max)
        }
        "Range" => {
            match [input(0), input(1), input(2)].map(|value| value.and_then(|value| value.first().copied())) {
                [Some(start), Some(limit), Some(step)] => ((limit - start) / step).max(0.0),
                _ => 0.0,
            }
        }
        "RandomNormal" | "RandomUniform" | "ConstantFill" => listed("shape").map_or(0.0, product),
        // The highest index is the width of what it makes.
        "TfIdfVectorizer" => listed("ngram_indexes").map_or(0.0, |all| all.into_iter().fold(0.0, f64::max)),
        _ => 0.0,
    }
}

/// Checks that the lists of a node fit each other and, where it is known, the width of its input.
pub(super) fn check_lengths(node: &NodeProto, widths: &Widths<'_>, limits: &Limits) -> Result<(), Fault> {
    let width = node.input.first().and_then(|name| widths.get(name.as_str())).copied();
    let problem = match (domain(node.domain()), node.op_type()) {
        ("ai.onnx.ml", "LinearClassifier") => linear_classifier(node, width),
        ("ai.onnx.ml", "LinearRegressor") => linear_regressor(node, width),
        ("ai.onnx.ml", "SVMClassifier" | "SVMRegressor") => support_vectors(node, width),
        ("ai.onnx.ml", "Scaler") => per_column(node, &["offset", "scale"], width),
        ("ai.onnx.ml", "Imputer") => {
            per_column(node, &["imputed_value_floats", "imputed_value_int64s"], width)
        }
        ("ai.onnx.ml", "LabelEncoder") => label_encoder(node),
        ("ai.onnx.ml", "CategoryMapper") => equal(
            ("cats_strings", length(node, "cats_strings")),
            ("cats_int64s", length(node, "cats_int64s")),
        ),
        ("ai.onnx.ml", "OneHotEncoder") => one_of(node, &["cats_strings", "cats_int64s"]),
        ("ai.onnx.ml", "ZipMap") => one_of(node, &["classlabels_strings", "classlabels_int64s"]),
        ("ai.onnx.ml", "FeatureVectorizer") => feature_vectorizer(node, limits),
        ("", "TfIdfVectorizer") => tf_idf(node),
        _ => return Ok(()),
    };
    problem.map_err(|problem| Fault::Lengths { node: called(node), problem })
}

/// The length of an attribute that is a list, 0 if it is not there.
fn length(node: &NodeProto, name: &str) -> usize {
    attribute(node, name).map_or(0, |held| held.ints.len().max(held.floats.len()).max(held.strings.len()))
}

fn equal((one, found): (&str, usize), (other, expected): (&str, usize)) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{one} has {found} entries, {other} has {expected}")) }
}

fn one_of(node: &NodeProto, names: &[&str; 2]) -> Result<(), String> {
    let there = names.iter().filter(|name| length(node, name) > 0).count();
    if there == 1 {
        Ok(())
    } else {
        Err(format!("found {there} of {} and {}, expected one", names[0], names[1]))
    }
}

/// `count` rows of coefficients, each as long as a row of the input.
fn coefficients(node: &NodeProto, count: usize, width: Option<usize>) -> Result<(), String> {
    let found = length(node, "coefficients");
    let per_row = found.checked_div(count).unwrap_or(0);
    if count == 0 || found == 0 || !found.is_multiple_of(count) || width.is_some_and(|width| width != per_row)
    {
        let columns = width.map_or(String::new(), |width| format!(" of {width} columns"));
        return Err(format!("found {found} coefficients for {count} outcomes{columns}"));
    }
    Ok(())
}

fn linear_classifier(node: &NodeProto, width: Option<usize>) -> Result<(), String> {
    let labels = length(node, "classlabels_strings").max(length(node, "classlabels_ints"));
    let intercepts = length(node, "intercepts");
    let classes = if intercepts > 0 { intercepts } else { labels };
    // Two classes may be told apart by one row of coefficients.
    if labels > 0 && labels != classes && !(labels == 2 && classes == 1) {
        return Err(format!("found {labels} labels for {classes} intercepts"));
    }
    coefficients(node, classes, width)
}

fn linear_regressor(node: &NodeProto, width: Option<usize>) -> Result<(), String> {
    let targets = attribute(node, "targets").map_or(1, AttributeProto::i);
    let targets =
        usize::try_from(targets).map_err(|_| format!("targets is {targets}, expected 1 or more"))?;
    let intercepts = length(node, "intercepts");
    if intercepts > 0 {
        equal(("intercepts", intercepts), ("targets", targets))?;
    }
    coefficients(node, targets, width)
}

fn support_vectors(node: &NodeProto, width: Option<usize>) -> Result<(), String> {
    let (vectors, weights) = (length(node, "support_vectors"), length(node, "coefficients"));
    let (rho, classes) = (length(node, "rho"), length(node, "vectors_per_class"));
    let (prob_a, prob_b) = (length(node, "prob_a"), length(node, "prob_b"));
    let counts = attribute(node, "vectors_per_class").map_or(&[][..], |held| &held.ints);
    let is_regressor = node.op_type() == "SVMRegressor";
    let count = if is_regressor {
        attribute(node, "n_supports").map_or(0, AttributeProto::i)
    } else {
        counts
            .iter()
            .try_fold(0_i64, |sum, count| sum.checked_add(*count).filter(|_| *count >= 0))
            .unwrap_or(-1)
    };
    let count =
        usize::try_from(count).map_err(|_| "found a negative number of support vectors".to_owned())?;
    if count == 0 {
        // Without support vectors it is linear, one row of coefficients for each class.
        let labels = length(node, "classlabels_strings").max(length(node, "classlabels_ints"));
        return coefficients(node, if is_regressor { 1 } else { labels.max(1) }, width);
    }
    let per_vector = vectors / count;
    if !vectors.is_multiple_of(count) || per_vector == 0 || width.is_some_and(|width| width != per_vector) {
        return Err(format!("found {vectors} numbers for {count} support vectors"));
    }
    equal(("prob_a", prob_a), ("prob_b", prob_b))?;
    if is_regressor {
        equal(("coefficients", weights), ("n_supports", count))?;
        return if rho == 1 { Ok(()) } else { Err(format!("found {rho} entries of rho, expected 1")) };
    }
    let pairs = classes * classes.saturating_sub(1) / 2;
    equal(
        ("coefficients", weights),
        ("vectors_per_class, once for each other class,", (classes.max(1) - 1) * count),
    )?;
    equal(("rho", rho), ("the pairs of vectors_per_class", pairs))?;
    if prob_a > 0 { equal(("prob_a", prob_a), ("the pairs of vectors_per_class", pairs)) } else { Ok(()) }
}

/// Lists with one entry for all columns, or one for each.
fn per_column(node: &NodeProto, names: &[&str], width: Option<usize>) -> Result<(), String> {
    let lengths = || names.iter().map(|name| (*name, length(node, name))).filter(|(_, found)| *found > 1);
    for (name, found) in lengths() {
        if let Some(width) = width.filter(|width| *width != found) {
            return Err(format!("{name} has {found} entries for {width} columns"));
        }
    }
    match (lengths().next(), lengths().next_back()) {
        (Some(one), Some(other)) => equal(one, other),
        _ => Ok(()),
    }
}

fn label_encoder(node: &NodeProto) -> Result<(), String> {
    let side = |prefix: &str| {
        let lists = node.attribute.iter().filter(|held| held.name().starts_with(prefix));
        let lengths: Vec<usize> = lists
            .map(|held| match &held.t {
                Some(tensor) => tensor.dims.iter().product::<i64>().try_into().unwrap_or(usize::MAX),
                None => held.ints.len().max(held.floats.len()).max(held.strings.len()),
            })
            .collect();
        match lengths.as_slice() {
            [length] => Ok(*length),
            others => Err(format!("found {} lists of {prefix}…, expected one", others.len())),
        }
    };
    // Of version 1 there is one list, and a class's number is its place in it.
    if attribute(node, "classes_strings").is_some() {
        return Ok(());
    }
    equal(("its list of keys", side("keys_")?), ("its list of values", side("values_")?))
}

fn feature_vectorizer(node: &NodeProto, limits: &Limits) -> Result<(), String> {
    equal(("inputdimensions", length(node, "inputdimensions")), ("its inputs", node.input.len()))?;
    let sizes = attribute(node, "inputdimensions").map_or(&[][..], |held| &held.ints);
    let wide = sizes.iter().find(|size| !usize::try_from(**size).is_ok_and(|size| size <= limits.values));
    wide.map_or(Ok(()), |size| Err(format!("inputdimensions has {size}, expected 0 to {}", limits.values)))
}

fn tf_idf(node: &NodeProto) -> Result<(), String> {
    let ints = |name| attribute(node, name).map_or(&[][..], |held: &AttributeProto| &held.ints);
    let (indexes, weights) = (ints("ngram_indexes"), length(node, "weights"));
    if indexes.iter().any(|index| *index < 0) {
        return Err("ngram_indexes has a negative entry".into());
    }
    if weights > 0 {
        equal(("weights", weights), ("ngram_indexes", indexes.len()))?;
    }
    let pool = length(node, "pool_strings") + length(node, "pool_int64s");
    let counts = ints("ngram_counts");
    let fits = |start: &i64| usize::try_from(*start).is_ok_and(|start| start <= pool);
    if !counts.is_sorted() || !counts.iter().all(fits) {
        return Err(format!("ngram_counts has entries that do not go up from 0 to the {pool} of the pool"));
    }
    Ok(())
}
