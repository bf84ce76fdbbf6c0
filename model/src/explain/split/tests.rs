//! What is followed by hand, against what ONNX Runtime computes.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::{ClassKeys, MatrixBinding};
use scoregate_schemas::onnx::{
    OperatorSetIdProto, TensorProto, TensorShapeDimension, TensorShapeDimensionValue, TensorShapeProto,
};
use serde_json::json;

use super::*;
use crate::acceptance::lint::tensors::{BOOL, INT32, INT64, STRING};
use crate::features::{CategoryColumn, Column as FeatureColumn};
use crate::runtime::{Observed, ObservedValue, locate_library};

/// How far a sum in float32 may be from the same in float64, relative to its largest term.
const SUM_TOLERANCE: f64 = 1e-6;

/// The inputs that a graph may take, and the features that fill them.
const INPUTS: [(&str, Element, &[&str]); 10] = [
    ("x", Element::Float32, &["a", "b"]),
    ("d", Element::Float64, &["c", "e"]),
    ("n", Element::Int64, &["count"]),
    ("k", Element::Int32, &["small"]),
    ("flag", Element::Bool, &["flag"]),
    ("text", Element::String, &["plan", "tier"]),
    ("v", Element::Float32, &["flat"]),
    ("mapped", Element::Float32, &["land", "a2"]),
    ("hot", Element::Float32, &["device", "b2"]),
    ("zones", Element::Float32, &["zone"]),
];

/// Operators that are not of the core.
const MACHINE_LEARNING: [&str; 14] = [
    "ArrayFeatureExtractor",
    "Binarizer",
    "CategoryMapper",
    "FeatureVectorizer",
    "Imputer",
    "LabelEncoder",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "OneHotEncoder",
    "Scaler",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
    "ZipMap",
];

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let library = locate_library(&std::env::current_exe().unwrap());
        Runtime::load(&library.unwrap_or_else(|error| panic!("{error}"))).unwrap()
    })
}

fn schema() -> FeatureSchema {
    let number = json!({"type": ["number", "null"], "x-scoregate": {"missing": "pass"}});
    let text = |values: &[&str]| {
        json!({"type": ["string", "null"], "enum": values,
               "x-scoregate": {"missing": "pass", "unknown": "pass"}})
    };
    let mut encoded = [text(&["de", "us"]), text(&["phone", "web", "tv"])];
    encoded[0]["x-scoregate"]["encode"] = json!({"de": 0.1, "us": 7});
    encoded[1]["x-scoregate"]["encode"] = json!("one_hot");
    let zone = json!({"type": "string", "enum": ["north", "south"],
                      "x-scoregate": {"unknown": "pass", "encode": {"north": 1, "south": 2}}});
    FeatureSchema::from_document(json!({"properties": {
        "a": number, "b": number, "c": number, "e": number, "flat": {"type": "number"},
        "count": {"type": "integer"}, "small": {"type": "integer"}, "flag": {"type": "boolean"},
        "plan": text(&["basic", "pro"]), "tier": text(&["gold", "silver", "7"]),
        "land": encoded[0], "a2": number, "device": encoded[1], "b2": number, "zone": zone,
    }}))
    .unwrap()
}

/// Rows with missing values, extremes, zeros of both signs and texts that nobody listed.
fn rows(reader: &RowReader) -> FeatureRows {
    let numbers = [0.1, f64::NAN, -0.0, 1.0, -2.25, 3e38, 1.0 / 3.0, -1e-40, 16_777_217.0, 2.5, -7.5, 0.0];
    let mut rows = reader.empty(numbers.len());
    let count = numbers.len();
    for (at, field) in reader.features().enumerate() {
        let turned = |row: usize| (row * 5 + at * 7) % count;
        let whole = |most: i64| (0..count).map(|row| (turned(row) as i64 * 37 % most) as f64).collect();
        rows.columns[at] = match (field.name.as_str(), &mut rows.columns[at]) {
            ("count", _) => FeatureColumn::Number(whole(9)),
            ("small", _) => FeatureColumn::Number(whole(4)),
            ("flag", _) => FeatureColumn::Number(whole(2)),
            ("flat", _) => FeatureColumn::Number(
                (0..count)
                    .map(|row| Some(numbers[turned(row)]).filter(|x| !x.is_nan()).unwrap_or(4.5))
                    .collect(),
            ),
            (_, FeatureColumn::Number(_)) => {
                FeatureColumn::Number((0..count).map(|row| numbers[turned(row)]).collect())
            }
            (_, FeatureColumn::Category(_)) => {
                let listed = if matches!(field.name.as_str(), "plan" | "land" | "zone") { 2 } else { 3 };
                // Three texts beyond the listed ones, the empty one among them.
                let others = vec!["fr".into(), "".into(), "stranger".into()];
                let codes = (0..count).map(|row| turned(row) as u32 % (listed + 3)).collect();
                FeatureColumn::Category(CategoryColumn { codes, others })
            }
        };
    }
    rows.indices = (0..count as u32).collect();
    rows
}

fn tensor(name: &str, kind: &str, dims: Vec<i64>, words: &[&str]) -> TensorProto {
    let made = TensorProto { name: Some(name.into()), dims, ..TensorProto::default() };
    let whole = || words.iter().map(|word| word.parse::<i64>().unwrap());
    match kind {
        "f32" => TensorProto {
            data_type: Some(FLOAT),
            float_data: words.iter().map(|word| word.parse().unwrap()).collect(),
            ..made
        },
        "f64" => TensorProto {
            data_type: Some(DOUBLE),
            double_data: words.iter().map(|word| word.parse().unwrap()).collect(),
            ..made
        },
        "i64" => TensorProto { data_type: Some(INT64), int64_data: whole().collect(), ..made },
        "i32" => {
            TensorProto { data_type: Some(INT32), int32_data: whole().map(|x| x as i32).collect(), ..made }
        }
        "bool" => {
            TensorProto { data_type: Some(BOOL), int32_data: whole().map(|x| x as i32).collect(), ..made }
        }
        "text" => TensorProto {
            data_type: Some(STRING),
            string_data: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
            ..made
        },
        other => panic!("{other} is no element"),
    }
}

/// `name=7`, `name=7.5`, `name=word`, `name=[1,2]`, `name=[1.0,2]`, `name=[a,b]`, or `name=f32[1.0,2]` for a tensor.
fn attribute(text: &str) -> AttributeProto {
    let (name, value) = text.split_once('=').unwrap();
    let mut made = AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
    if let Some((kind, list)) = value.trim_end_matches(']').split_once('[') {
        let words: Vec<&str> = list.split(',').collect();
        let is_float = |word: &&str| word.parse::<f32>().is_ok();
        if !kind.is_empty() {
            let count = words.len() as i64;
            (made.r#type, made.t) = (Some(4), Some(tensor("", kind, vec![count], &words)));
        } else if words.iter().all(|word| word.parse::<i64>().is_ok()) {
            (made.r#type, made.ints) = (Some(7), words.iter().map(|word| word.parse().unwrap()).collect());
        } else if words.iter().all(is_float) {
            (made.r#type, made.floats) = (Some(6), words.iter().map(|word| word.parse().unwrap()).collect());
        } else {
            (made.r#type, made.strings) =
                (Some(8), words.iter().map(|word| word.as_bytes().to_vec()).collect());
        }
    } else if let Ok(whole) = value.parse() {
        (made.r#type, made.i) = (Some(2), Some(whole));
    } else if let Ok(number) = value.parse() {
        (made.r#type, made.f) = (Some(1), Some(number));
    } else {
        (made.r#type, made.s) = (Some(3), Some(value.as_bytes().to_vec()));
    }
    made
}

/// A graph of lines like `y = Add(x, c)`, with attributes behind, and constants like `c: f32[1,2] = 0.5 nan`. The inputs are
/// those of [`INPUTS`] that it uses. Returns the model, and how features reach it.
fn model(text: &str, opset: i64, ml: i64) -> (ModelProto, Bindings) {
    let mut graph = GraphProto { name: Some("graph".into()), ..GraphProto::default() };
    let mut used = BTreeSet::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (left, right) = line.split_once(" = ").unwrap();
        if let Some((name, kind)) = left.split_once(": ") {
            let (kind, dims) = kind.trim_end_matches(']').split_once('[').unwrap();
            let dims =
                dims.split(',').filter(|dim| !dim.is_empty()).map(|dim| dim.parse().unwrap()).collect();
            let words: Vec<&str> = right.split(' ').collect();
            graph.initializer.push(tensor(name, kind, dims, &words));
            continue;
        }
        let (call, attributes) = right.split_once(')').unwrap();
        let (operator, inputs) = call.split_once('(').unwrap();
        let inputs: Vec<String> =
            inputs.split(", ").filter(|name| !name.is_empty()).map(Into::into).collect();
        let inputs: Vec<String> =
            inputs.into_iter().map(|name| if name == "-" { String::new() } else { name }).collect();
        used.extend(inputs.iter().cloned());
        graph.node.push(NodeProto {
            input: inputs,
            output: left.split(", ").map(Into::into).collect(),
            op_type: Some(operator.into()),
            domain: MACHINE_LEARNING.contains(&operator).then(|| "ai.onnx.ml".into()),
            attribute: attributes.split_whitespace().map(attribute).collect(),
            ..NodeProto::default()
        });
    }
    let mut inputs = Vec::new();
    for (name, element, features) in INPUTS.into_iter().filter(|(name, ..)| used.contains(*name)) {
        let width = if name == "hot" { 4 } else { features.len() as i64 };
        let dim = |value| TensorShapeDimension { value: Some(value), ..TensorShapeDimension::default() };
        let mut shape = vec![dim(TensorShapeDimensionValue::DimParam("N".into()))];
        if name != "v" {
            shape.push(dim(TensorShapeDimensionValue::DimValue(width)));
        }
        let data_type = match element {
            Element::Float32 => FLOAT,
            Element::Float64 => DOUBLE,
            Element::Int64 => INT64,
            Element::Int32 => INT32,
            Element::Bool => BOOL,
            Element::String => STRING,
        };
        let shape = Some(TensorShapeProto { dim: shape });
        let kind = TypeValue::TensorType(TypeTensorType { elem_type: Some(data_type), shape });
        graph.input.push(ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(TypeProto { value: Some(kind), ..TypeProto::default() }),
            ..ValueInfoProto::default()
        });
        let features = features.iter().map(ToString::to_string).collect();
        inputs.push(MatrixBinding { input: name.into(), element, features });
    }
    let import =
        |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![import("", opset), import("ai.onnx.ml", ml)],
        graph: Some(graph),
        ..ModelProto::default()
    };
    (model, Bindings::Matrix { inputs })
}

/// The model whose only output is `value`; a tensor of floats, of whatever shape.
fn with_output(mut model: ModelProto, value: &str) -> ModelProto {
    let graph = model.graph.take().unwrap();
    model.graph = Some(cut(graph, value, Element::Float64, None));
    model
}

/// What is made of a value that a graph calls `y`: columns that are followed bit by bit, sums, and others.
fn problem(text: &str, opset: i64, ml: i64, expected: [usize; 3]) -> Result<(), String> {
    let (mut model, bindings) = model(text, opset, ml);
    let reader = RowReader::new(&schema(), &bindings);
    let rows = rows(&reader);
    let graph = model.graph.clone().unwrap();
    let trace = Trace::new(&graph, Opsets::of(&model), fill(&graph, &reader, &bindings).unwrap());
    let found = trace.value("y");
    let columns = found.map_or(&[][..], |tensor| &tensor.columns);
    let kinds = |is: fn(&Column) -> bool| columns.iter().filter(|column| is(column)).count();
    let found_kinds = [
        kinds(|column| matches!(column, Column::Of(_))),
        kinds(|column| matches!(column, Column::Sum(_))),
        kinds(|column| matches!(column, Column::Opaque)),
    ];
    if found_kinds != expected {
        return Err(format!("{text}: followed as {found_kinds:?}, expected {expected:?}"));
    }
    // Whatever the shape and the element, ONNX Runtime gives a line of doubles for each row.
    let width = columns.len().max(1) as i64;
    let inner = model.graph.as_mut().unwrap();
    for (output, operator, inputs, to) in
        [("y/double", "Cast", vec!["y"], Some(11)), ("y/lines", "Reshape", vec!["y/double", "y/shape"], None)]
    {
        inner.node.push(NodeProto {
            input: inputs.into_iter().map(Into::into).collect(),
            output: vec![output.into()],
            op_type: Some(operator.into()),
            attribute: to.map(|to| attribute(&format!("to={to}"))).into_iter().collect(),
            ..NodeProto::default()
        });
    }
    inner.initializer.push(tensor("y/shape", "i64", vec![2], &["-1", &width.to_string()]));
    let bytes = with_output(model, "y/lines").encode_to_vec();
    let observed = runtime().observe(&bytes, &reader, &bindings, &rows);
    let observed = observed.map_err(|error| format!("{text}: {error:?}"))?;
    let [Observed { value: ObservedValue::Numbers { columns: wide, values }, .. }] = observed.as_slice()
    else {
        return if columns.is_empty() { Ok(()) } else { Err(format!("{text}: {observed:?}")) };
    };
    if columns.is_empty() {
        return Ok(());
    }
    assert_eq!(*wide, columns.len(), "{text}");
    let sums: Vec<_> = columns.iter().map(|column| trace.sum(column).map(Arc::new)).collect();
    for (at, (column, sum)) in columns.iter().zip(&sums).enumerate() {
        let Some(sum) = sum else { continue };
        let form = form_of(&trace, &[sum]).unwrap();
        let is_exact = matches!(column, Column::Of(id) if trace.steps.get(*id).is_exact);
        let mut encoded = vec![0.0; form.encoder().width()];
        let with_listed = form.encoder().clone().with_listed();
        for row in 0..rows.len() {
            with_listed.encode(&rows, row, &mut encoded);
            let looked_up: Vec<u64> = encoded.iter().map(|number| (number + 0.0).to_bits()).collect();
            form.encoder().encode(&rows, row, &mut encoded);
            let computed: Vec<u64> = encoded.iter().map(|number| (number + 0.0).to_bits()).collect();
            assert_eq!(looked_up, computed, "{text}: row {row}");
            let mut margin = [0.0];
            form.margin(&encoded, &mut margin);
            let expected = values[row * wide + at];
            let (found, size) = (margin[0], form.size(&encoded, 0));
            let is_same = found == expected || (found.is_nan() && expected.is_nan());
            // What overflows or is missing in a sum is nobody's answer.
            let is_near = (found - expected).abs() <= SUM_TOLERANCE * size || !expected.is_finite();
            if !(is_same || (!is_exact && is_near)) {
                return Err(format!("{text}: row {row}, column {at} is {found}, the runtime has {expected}"));
            }
        }
    }
    Ok(())
}

/// Checks all graphs, and names those that are not followed as expected.
fn check<T: AsRef<str>>(cases: impl IntoIterator<Item = (T, i64, i64, [usize; 3])>) {
    let problems =
        cases.into_iter().map(|(text, opset, ml, expected)| problem(text.as_ref(), opset, ml, expected));
    let problems: Vec<String> = problems.filter_map(Result::err).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn inputs_are_what_the_runtime_is_given() {
    let numbers = INPUTS.into_iter().filter(|(name, ..)| *name != "text");
    check(numbers.map(|(name, _, features)| {
        let width = if name == "hot" { 4 } else { features.len() };
        (format!("y = Identity({name})"), 13, 2, [width, 0, 0])
    }));
}

#[test]
fn what_may_be_no_number_is_not_left_out() {
    // An unknown category has no number, and 0 times that is none either.
    check([("zero: f32[1] = 0\ny = Mul(zones, zero)", 13, 2, [1, 0, 0])]);
    let (mut model, bindings) = model("zero: f32[1] = 0\ny = Mul(zones, zero)", 13, 2);
    let reader = RowReader::new(&schema(), &bindings);
    let graph = model.graph.take().unwrap();
    let trace = Trace::new(&graph, Opsets::of(&model), fill(&graph, &reader, &bindings).unwrap());
    let Column::Of(id) = trace.value("y").unwrap().columns[0] else { panic!("it is followed") };
    assert!(trace.steps.get(id).feature.is_some(), "it depends on the zone");
}

#[test]
fn trees_without_decisions_are_explained() {
    let text = "y = TreeEnsembleRegressor(x) nodes_treeids=[0] nodes_nodeids=[0] nodes_featureids=[0] nodes_modes=[LEAF] \
                nodes_values=[0.0] nodes_truenodeids=[0] nodes_falsenodeids=[0] target_treeids=[0] target_nodeids=[0] \
                target_ids=[0] target_weights=[2.5] n_targets=1";
    let found = checked(text, &Output::Value { name: "y".into() }).unwrap();
    let Form::Trees { ensemble, encoder } = found.form else { panic!("it is a tree") };
    let encoded = encoder.encode_all(&rows(&RowReader::new(&schema(), &model(text, 13, 2).1)));
    let matrix = trees::Matrix::new(&encoded, encoder.width()).unwrap();
    let explainer = trees::Explainer::interventional(&ensemble, encoder.players(), &matrix, 1 << 20).unwrap();
    let mut values = vec![1.0; explainer.players()];
    explainer.explain(&encoded[..encoder.width()], &mut explainer.scratch(), &mut values).unwrap();
    assert_eq!((explainer.base(0), values.iter().sum::<f64>()), (2.5, 0.0));
}

#[test]
fn values_change_their_shape_and_their_element() {
    let cases = [
        ("y = Cast(x) to=7", [2, 0, 0]),
        ("y = Cast(x) to=6", [2, 0, 0]),
        ("y = Cast(x) to=9", [2, 0, 0]),
        ("y = Cast(x) to=11", [2, 0, 0]),
        ("y = Cast(d) to=1", [2, 0, 0]),
        ("y = Cast(d) to=7", [2, 0, 0]),
        ("y = Cast(n) to=1", [1, 0, 0]),
        ("y = Cast(k) to=9", [1, 0, 0]),
        ("y = Cast(flag) to=1", [1, 0, 0]),
        ("y = Cast(x) to=10", [0, 0, 0]),
        ("y = Concat(x, mapped, hot) axis=1", [8, 0, 0]),
        ("y = Concat(x, mapped) axis=-1", [4, 0, 0]),
        ("s: i64[2] = -1 2\ny = Reshape(x, s)", [2, 0, 0]),
        ("s: i64[2] = 0 -1\ny = Reshape(hot, s)", [4, 0, 0]),
        ("s: i64[3] = 0 2 -1\ny = Reshape(hot, s)", [4, 0, 0]),
        ("s: i64[3] = -1 2 2\ny = Reshape(hot, s)", [4, 0, 0]),
        ("s: i64[1] = -1\nu = Identity(n)\ny = Reshape(u, s)", [1, 0, 0]),
        // Rows would no longer be rows.
        ("s: i64[2] = -1 1\ny = Reshape(x, s)", [0, 0, 0]),
        ("s: i64[2] = -1 1\ny = Reshape(v, s)", [1, 0, 0]),
        ("y = Flatten(hot)", [4, 0, 0]),
        ("a: i64[1] = 1\ny = Unsqueeze(x, a)", [2, 0, 0]),
        ("a: i64[1] = -1\ny = Unsqueeze(v, a)", [1, 0, 0]),
        ("a: i64[1] = 1\nu = Unsqueeze(x, a)\ny = Squeeze(u, a)", [2, 0, 0]),
        ("a: i64[1] = 1\ny = Squeeze(n, a)", [1, 0, 0]),
        ("i: i64[3] = 3 0 -2\ny = Gather(hot, i) axis=1", [3, 0, 0]),
        ("i: i64[] = 2\ny = Gather(hot, i) axis=1", [1, 0, 0]),
        ("t: f32[9] = 1 2.5 3 4 5 6 7 8 -9\ny = Gather(t, n) axis=0", [1, 0, 0]),
        ("t: f64[4,2] = 1 2 3 4 5 6 7 8\ny = Gather(t, k)", [2, 0, 0]),
        ("s: i64[1] = 1\ne: i64[1] = 9\na: i64[1] = 1\ny = Slice(hot, s, e, a)", [3, 0, 0]),
        ("s: i64[2] = 0 0\ne: i64[2] = 9 2\ny = Slice(hot, s, e)", [0, 0, 0]),
        (
            "s: i64[1] = -4\ne: i64[1] = -1\na: i64[1] = -1\nt: i64[1] = 2\ny = Slice(hot, s, e, a, t)",
            [2, 0, 0],
        ),
        ("l: i64[2] = 1 3\nu, y = Split(hot, l) axis=1", [3, 0, 0]),
        ("y, u = Split(hot) axis=1", [2, 0, 0]),
        ("y = ArrayFeatureExtractor(hot, i)\ni: i64[2] = 3 1", [2, 0, 0]),
        ("y = FeatureVectorizer(x, mapped) inputdimensions=[2,2]", [4, 0, 0]),
        ("u = Identity(x)\ny = Transpose(u) perm=[0,1]", [0, 0, 0]),
    ];
    check(cases.map(|(text, expected)| (text, 13, 2, expected)));
    check([
        ("y = Slice(hot) starts=[1] ends=[3] axes=[1]", 9, 1, [2, 0, 0]),
        ("y = Unsqueeze(x) axes=[2]", 11, 1, [2, 0, 0]),
        ("y, u = Split(hot) axis=1 split=[3,1]", 11, 1, [3, 0, 0]),
    ]);
}

#[test]
fn numbers_are_computed_as_the_graph_computes_them() {
    let constants = "c: f32[2] = 0.7 -3\nz: f64[1,2] = 0.1 3\no: f32[] = 0.30000001\nm: i64[1] = 3\n";
    let cases = [
        ("y = Add(x, c)", [2, 0, 0]),
        ("y = Sub(c, x)", [2, 0, 0]),
        ("y = Mul(x, o)", [2, 0, 0]),
        ("y = Div(x, c)", [2, 0, 0]),
        ("y = Div(o, x)", [2, 0, 0]),
        ("y = Sub(d, z)", [2, 0, 0]),
        ("y = Div(d, z)", [2, 0, 0]),
        ("y = Add(n, m)", [1, 0, 0]),
        ("y = Mul(n, m)", [1, 0, 0]),
        ("y = Div(n, m)", [0, 0, 0]),
        ("y = Add(v, o)", [1, 0, 0]),
        ("y = Mul(x, x)", [2, 0, 0]),
        ("y = Sub(x, x)", [2, 0, 0]),
        // The columns of two features, one product of two features, and a sum of the same feature.
        ("y = Add(x, mapped)", [0, 2, 0]),
        ("y = Mul(x, mapped)", [0, 0, 2]),
        ("u = Add(x, mapped)\ny = Mul(u, o)", [0, 2, 0]),
        ("u = Add(x, mapped)\ny = Div(u, o)", [0, 2, 0]),
        ("u = Add(x, mapped)\ny = Div(o, u)", [0, 0, 2]),
        ("u = Add(x, mapped)\ny = Neg(u)", [0, 2, 0]),
        ("u = Add(x, mapped)\ny = Relu(u)", [0, 0, 2]),
        ("u = Add(x, mapped)\ny = Cast(u) to=11", [0, 2, 0]),
        ("u = Add(x, mapped)\ny = Cast(u) to=7", [0, 0, 2]),
        ("y = Neg(x)", [2, 0, 0]),
        ("y = Abs(x)", [2, 0, 0]),
        ("y = Sqrt(x)", [2, 0, 0]),
        ("y = Reciprocal(x)", [2, 0, 0]),
        ("y = Floor(x)", [2, 0, 0]),
        ("y = Ceil(x)", [2, 0, 0]),
        ("y = Sign(x)", [2, 0, 0]),
        ("y = Relu(x)", [2, 0, 0]),
        ("y = IsNaN(x)", [2, 0, 0]),
        ("u = IsNaN(x)\ny = Not(u)", [2, 0, 0]),
        ("y = Log(x)", [2, 0, 0]),
        ("u = Exp(o)\ny = Add(x, u)", [2, 0, 0]),
        ("y = Sigmoid(x)", [0, 0, 0]),
        ("y = Equal(n, m)", [1, 0, 0]),
        ("y = Less(x, c)", [2, 0, 0]),
        ("y = LessOrEqual(x, c)", [2, 0, 0]),
        ("y = Greater(c, x)", [2, 0, 0]),
        ("y = GreaterOrEqual(x, x)", [2, 0, 0]),
        ("u = Less(x, c)\nw = IsNaN(x)\ny = Or(u, w)", [2, 0, 0]),
        ("u = Less(x, c)\nw = IsNaN(x)\ny = And(u, w)", [2, 0, 0]),
        ("u = Less(x, c)\nw = IsNaN(x)\ny = Xor(u, w)", [2, 0, 0]),
        ("u = IsNaN(x)\ny = Where(u, c, x)", [2, 0, 0]),
        ("u = IsNaN(x)\ny = Where(u, o, mapped)", [0, 0, 2]),
        ("y = Min(x, c)", [2, 0, 0]),
        ("y = Max(x, c, o)", [2, 0, 0]),
        ("y = Clip(x, o)", [2, 0, 0]),
        ("h: f32[] = 2\ny = Clip(x, o, h)", [2, 0, 0]),
        ("h: f32[] = 2\ny = Clip(x, -, h)", [2, 0, 0]),
        ("y = Sum(x, c, x)", [2, 0, 0]),
        ("y = Sum(x, c, mapped)", [0, 2, 0]),
        ("a: i64[1] = 1\ny = ReduceSum(x, a)", [0, 1, 0]),
        ("y = ReduceMean(hot) axes=[1] keepdims=0", [0, 1, 0]),
        (
            "e: f32[1,3] = -1 0 1\ni: i64[1] = 0\nu = Gather(x, i) axis=1\nw = Less(u, e)\nf = Cast(w) to=1\ny = ArgMax(f) axis=1",
            [1, 0, 0],
        ),
        ("y = ArgMax(hot) axis=1", [0, 0, 0]),
        ("w: f32[2,3] = 1 2 3 -4 5 6\ny = MatMul(x, w)", [0, 3, 0]),
        ("w: f32[2,2] = 1 0 0 1\ny = MatMul(x, w)", [0, 2, 0]),
        ("w: f64[2,1] = 0.5 0.25\ny = MatMul(d, w)", [0, 1, 0]),
        ("w: f32[2] = 0.5 0.25\ny = MatMul(x, w)", [0, 1, 0]),
        (
            "w: f32[3,2] = 1 2 3 -4 5 6\nb: f32[3] = 1 0 -1\ny = Gemm(x, w, b) transB=1 alpha=0.5 beta=2.0",
            [0, 3, 0],
        ),
        ("w: f32[2,1] = 0.5 2\ny = Gemm(x, w)", [0, 1, 0]),
        // Whatever the first feature is, nothing of it is left; it may be missing in the second graph.
        ("q: f32[] = 0\nu = Mul(v, q)\ny = Add(u, o)", [1, 0, 0]),
        ("q: f32[] = 0\nu = Mul(x, q)\ny = Add(u, mapped)", [0, 2, 0]),
        (
            "q: f32[] = 0\ni: i64[1] = 1\nw = Gather(x, i) axis=1\nu = Mul(v, q)\na: i64[1] = 1\nr = Unsqueeze(u, a)\ny = Add(r, w)",
            [1, 0, 0],
        ),
    ];
    check(cases.map(|(text, expected)| (format!("{constants}{text}"), 13, 2, expected)));
    check([("y = Clip(x) min=-1.5 max=1.0", 10, 1, [2, 0, 0])]);
}

#[test]
fn encoders_are_followed() {
    let cases = [
        ("y = Scaler(x) offset=[0.1,3.0] scale=[0.33,7.0]", 2, [2, 0, 0]),
        ("y = Scaler(x) offset=[0.1] scale=[0.33]", 2, [2, 0, 0]),
        ("y = Scaler(d) offset=[0.1,3.0] scale=[0.33,7.0]", 2, [2, 0, 0]),
        ("y = Scaler(n) offset=[0.1] scale=[0.33]", 2, [1, 0, 0]),
        ("y = Scaler(k) offset=[0.1] scale=[0.33]", 2, [1, 0, 0]),
        ("u = Add(x, mapped)\ny = Scaler(u) offset=[0.1] scale=[0.33]", 2, [0, 2, 0]),
        ("y = Normalizer(x) norm=L2", 2, [0, 0, 0]),
        ("y = Imputer(x) imputed_value_floats=[0.1,5.0] replaced_value_float=nan", 2, [2, 0, 0]),
        ("y = Imputer(x) imputed_value_floats=[0.1] replaced_value_float=2.5", 2, [2, 0, 0]),
        ("y = Imputer(n) imputed_value_int64s=[3] replaced_value_int64=0", 2, [1, 0, 0]),
        ("y = OneHotEncoder(text) cats_strings=[pro,gold,fr] zeros=1", 2, [6, 0, 0]),
        ("y = OneHotEncoder(n) cats_int64s=[0,4,7] zeros=1", 2, [3, 0, 0]),
        ("y = OneHotEncoder(x) cats_int64s=[0,1,-2] zeros=1", 2, [6, 0, 0]),
        ("y = OneHotEncoder(text) cats_strings=[pro,gold,pro] zeros=1", 2, [0, 0, 0]),
        ("y = Binarizer(v) threshold=0.1", 2, [1, 0, 0]),
        (
            "y = LabelEncoder(text) keys_strings=[pro,gold] values_floats=[1.5,2.5] default_float=-7.0",
            2,
            [2, 0, 0],
        ),
        ("y = LabelEncoder(text) keys_strings=[pro,gold] values_floats=[1.5,2.5]", 2, [2, 0, 0]),
        (
            "u = LabelEncoder(text) keys_strings=[pro,gold] values_strings=[a,b] default_string=c\ny = OneHotEncoder(u) cats_strings=[a,c] zeros=1",
            2,
            [4, 0, 0],
        ),
        (
            "u = LabelEncoder(text) keys_strings=[pro,gold] values_strings=[a,b]\ny = OneHotEncoder(u) cats_strings=[a,_Unused] zeros=1",
            2,
            [4, 0, 0],
        ),
        ("y = LabelEncoder(n) keys_int64s=[0,4] values_floats=[1.5,2.5]", 2, [1, 0, 0]),
        (
            "u = LabelEncoder(n) keys_int64s=[0,4] values_strings=[a,b]\ny = OneHotEncoder(u) cats_strings=[a,b] zeros=1",
            2,
            [2, 0, 0],
        ),
        ("y = LabelEncoder(x) keys_floats=[0.0,2.5,nan] values_int64s=[3,4,5]", 2, [2, 0, 0]),
        ("y = LabelEncoder(x) keys_floats=[0.0,2.5,nan] values_int64s=[3,4,5]", 4, [2, 0, 0]),
        ("y = LabelEncoder(x) keys_floats=[1.0,2.5] values_floats=[3.5,nan]", 2, [2, 0, 0]),
        (
            "y = LabelEncoder(text) keys_tensor=text[pro,gold] values_tensor=f64[0.1,2] default_tensor=f64[nan]",
            4,
            [2, 0, 0],
        ),
        (
            "y = LabelEncoder(d) keys_tensor=f64[0.1,nan] values_tensor=f64[0.3,2] default_tensor=f64[9]",
            4,
            [2, 0, 0],
        ),
        ("y = LabelEncoder(text) keys_strings=[pro,gold] values_int64s=[1,2]", 4, [2, 0, 0]),
        ("y = LabelEncoder(text) classes_strings=[pro,gold] default_int64=-3", 1, [2, 0, 0]),
        (
            "u = LabelEncoder(n) classes_strings=[pro,gold] default_string=fr\ny = OneHotEncoder(u) cats_strings=[gold,fr] zeros=1",
            1,
            [2, 0, 0],
        ),
        ("y = LabelEncoder(text) keys_strings=[pro,pro] values_int64s=[1,2]", 2, [0, 0, 0]),
        ("y = CategoryMapper(text) cats_strings=[pro,gold] cats_int64s=[5,6]", 2, [2, 0, 0]),
        (
            "u = CategoryMapper(n) cats_strings=[pro,gold] cats_int64s=[4,0] default_string=fr\ny = OneHotEncoder(u) cats_strings=[gold,fr] zeros=1",
            2,
            [2, 0, 0],
        ),
        ("y = LinearRegressor(x) coefficients=[0.5,-2.0] intercepts=[0.1]", 2, [0, 1, 0]),
        (
            "y = LinearRegressor(x) coefficients=[0.5,-2.0,1.0,1.0] intercepts=[0.1,0.2] targets=2",
            2,
            [0, 2, 0],
        ),
        (
            "u, y = LinearClassifier(x) coefficients=[0.5,-2.0,1.0,1.0] intercepts=[0.1,0.2] classlabels_ints=[0,1] post_transform=NONE",
            2,
            [0, 2, 0],
        ),
        (
            "u, y = LinearClassifier(x) coefficients=[0.5,-2.0,1.0,1.0] intercepts=[0.1,0.2] classlabels_ints=[0,1] post_transform=LOGISTIC",
            2,
            [0, 0, 0],
        ),
    ];
    check(cases.map(|(text, ml, expected)| (text, 13, ml, expected)));
}

// What follows splits whole graphs.

fn probabilities(classes: usize) -> Output {
    Output::Probabilities { name: "y".into(), classes, positive: classes - 1 }
}

/// The rows, with numbers that are there and of a usual size, and categories that are encoded.
fn complete(mut rows: FeatureRows) -> FeatureRows {
    for (at, column) in rows.columns.iter_mut().enumerate() {
        match column {
            FeatureColumn::Number(numbers) => {
                let is_whole = numbers.iter().all(|number| number.fract() == 0.0 && number.abs() < 10.0);
                let number = |row: usize| ((row * (at + 3)) % 11) as f64 / 4.0 - 1.0;
                if !is_whole {
                    *numbers = (0..numbers.len()).map(number).collect();
                }
            }
            FeatureColumn::Category(column) if at == 10 => {
                column.codes.iter_mut().for_each(|code| *code %= 2);
            }
            FeatureColumn::Category(_) => {}
        }
    }
    rows
}

/// The margin of a graph that answers with `y`, held against ONNX Runtime's over rows without missing values.
fn checked(text: &str, output: &Output) -> Result<Checked, Reason> {
    let (model, bindings) = model(text, 13, 2);
    let mut model = with_output(model, output.names()[0]);
    let element = if text.contains("f64") { DOUBLE } else { FLOAT };
    let value = model.graph.as_mut().unwrap().output[0].r#type.as_mut().unwrap().value.as_mut().unwrap();
    if let TypeValue::TensorType(tensor) = value {
        tensor.elem_type = Some(element);
    }
    if let Output::Zipmap { .. } = output {
        model.graph.as_mut().unwrap().output[0].r#type = None;
    }
    let bytes = model.encode_to_vec();
    let reader = RowReader::new(&schema(), &bindings);
    let rows = complete(rows(&reader));
    let mut session =
        runtime().session(&bytes, &reader, &bindings, output, &SessionOptions::default()).unwrap();
    let answers = session.run(&rows).unwrap().values().to_vec();
    let checked = split(&bytes, &reader, &bindings, output)?.check(
        runtime(),
        &reader,
        &bindings,
        output,
        &rows,
        &answers,
    )?;
    // Linear values add up to the margin, and their mean is none.
    if let Form::Linear(form) = &checked.form {
        let features = reader.features().count();
        let linear = super::super::linear::Linear::new(form.clone(), features, &rows);
        let mut encoded = vec![0.0; form.encoder().width()];
        for output in 0..form.outputs() {
            let mut means = vec![0.0; features];
            for row in 0..rows.len() {
                let mut values = vec![0.0; features];
                let (base, value) = linear.explain(&rows, row, output, &mut values);
                form.encoder().encode(&rows, row, &mut encoded);
                let mut margins = vec![0.0; form.outputs()];
                form.margin(&encoded, &mut margins);
                assert!(
                    (value - margins[output]).abs() <= 1e-12 * (1.0 + form.size(&encoded, output)),
                    "{text}"
                );
                assert!((base - linear.bases[output]).abs() == 0.0, "{text}");
                means.iter_mut().zip(values).for_each(|(mean, value)| *mean += value);
            }
            assert!(means.iter().all(|mean| mean.abs() < 1e-9), "{text}: {means:?}");
            // Another value of one feature moves that feature's own part alone.
            for feature in 0..features {
                let mut mixed = rows.select(&[1]);
                mixed.columns[feature] = rows.select(&[2]).columns.swap_remove(feature);
                let [mut own, mut other, mut both] = [(); 3].map(|()| vec![0.0; features]);
                linear.explain(&rows, 1, output, &mut own);
                linear.explain(&rows, 2, output, &mut other);
                linear.explain(&mixed, 0, output, &mut both);
                own[feature] = other[feature];
                assert_eq!(both, own, "{text}");
            }
        }
    }
    Ok(checked)
}

fn kind(checked: &Result<Checked, Reason>) -> String {
    match checked {
        Ok(Checked { form, space, follows }) => {
            let form = if matches!(form, Form::Linear(_)) { "linear" } else { "trees" };
            format!("{form} {} {}", space.as_str(), if follows.is_known() { "answer" } else { "calibrated" })
        }
        Err(reason) => format!("{reason:?}").split([' ', '(']).next().unwrap().into(),
    }
}

const TREES: &str = "nodes_treeids=[0,0,0,0,0] nodes_nodeids=[0,1,2,3,4] nodes_featureids=[0,1,0,0,0] \
                     nodes_modes=[BRANCH_LEQ,BRANCH_LT,LEAF,LEAF,LEAF] nodes_values=[0.25,0.5,0.0,0.0,0.0] \
                     nodes_truenodeids=[1,2,0,0,0] nodes_falsenodeids=[4,3,0,0,0]";

#[test]
fn graphs_are_split_at_their_margin() {
    let regressor = format!(
        "TreeEnsembleRegressor(s) {TREES} n_targets=1 target_treeids=[0,0,0] target_nodeids=[2,3,4] target_ids=[0,0,0] target_weights=[-1.5,0.5,2.0]"
    );
    let classifier = |transform: &str| {
        format!(
            "TreeEnsembleClassifier(s) {TREES} class_treeids=[0,0,0] class_nodeids=[2,3,4] class_ids=[0,0,0] class_weights=[-1.5,0.5,2.0] classlabels_int64s=[0,1] post_transform={transform}"
        )
    };
    let logistic = classifier("LOGISTIC");
    let linear = "LinearClassifier(s) coefficients=[-0.5,2.0,0.5,-2.0] intercepts=[-0.1,0.1] classlabels_ints=[0,1] post_transform=LOGISTIC";
    let scaled = "s = Scaler(x) offset=[0.1,0.2] scale=[2.0,0.5]\n";
    let value = Output::Value { name: "y".into() };
    let zipmap =
        Output::Zipmap { name: "y".into(), keys: ClassKeys::Integers(vec![0, 1]), positive: 1, link: None };
    let mut problems = Vec::new();
    for (text, output, expected) in [
        (format!("{scaled}l, y = {linear}"), probabilities(2), "linear log_odds answer"),
        (format!("{scaled}l, p = {linear}\ny = ZipMap(p) classlabels_int64s=[0,1]"), zipmap, "linear log_odds answer"),
        (format!("{scaled}l, y = {logistic}"), probabilities(2), "trees log_odds answer"),
        (format!("{scaled}y = {regressor}"), value.clone(), "trees target answer"),
        // A link that the answer does not undo.
        (format!("{scaled}r = {regressor}\ny = Exp(r)"), value.clone(), "Link"),
        (format!("{scaled}r = {regressor}\ny = Sigmoid(r)"), probabilities(1), "trees log_odds answer"),
        // Calibration, rising and falling, and none that is either.
        (format!("{scaled}m: f32[] = 0.7\nb: f32[] = 0.2\nr = {regressor}\np = Mul(r, m)\nq = Add(p, b)\ny = Sigmoid(q)"), probabilities(1), "trees log_odds answer"),
        (format!("{scaled}m: f32[] = -0.7\nr = {regressor}\np = Mul(r, m)\ny = Sigmoid(p)"), probabilities(1), "trees log_odds answer"),
        (format!("{scaled}h: f32[] = 1\nl: f32[] = 0\nm: f32[] = 0.4\nr = {regressor}\np = Mul(r, m)\ny = Clip(p, l, h)"), probabilities(1), "trees margin calibrated"),
        (format!("{scaled}m: f32[] = 0.2\nr = {regressor}\np = Mul(r, r)\ny = Mul(p, m)"), probabilities(1), "Link"),
        // The last linear value before a link.
        ("w: f32[2,1] = 0.5 -2\nb: f32[1] = 0.1\nm = MatMul(x, w)\na = Add(m, b)\ny = Sigmoid(a)".into(), probabilities(1), "linear log_odds answer"),
        ("w: f64[2,1] = 0.5 -2\ny = MatMul(d, w)".into(), value.clone(), "linear target answer"),
        // Two features in one column; two models; a network.
        (format!("w: f32[2,2] = 1 2 3 4\ns = MatMul(x, w)\ny = {regressor}"), value.clone(), "Mixed"),
        (format!("{scaled}q = {regressor}\nr = {regressor}\ny = Add(q, r)"), value.clone(), "Ensembles"),
        (format!("s = Log(x)\ny = {regressor}"), value.clone(), "Inexact"),
        ("w: f32[2,3] = 1 2 3 -4 5 6\nu: f32[3,1] = 1 -1 1\ns = MatMul(x, w)\nr = Relu(s)\ny = MatMul(r, u)".into(), value.clone(), "Link"),
        (format!("{scaled}y = {regressor} aggregate_function=MIN"), value.clone(), "Trees"),
    ] {
        let found = checked(&text, &output);
        if kind(&found) != expected {
            problems.push(format!("{text}: {found:?}, expected {expected}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What the trainer exports, up to its log-odds, and what its calibrations make of them.
#[test]
fn the_trainers_graph_is_split_at_its_log_odds() {
    let log_odds = "
        t = ArrayFeatureExtractor(text, one)
        one: i64[1] = 0
        both = Concat(x, mapped) axis=1
        double = Cast(both) to=11
        means: f64[1,4] = 0.2 -0.1 3 0.4
        deviations: f64[1,4] = 1.5 0.5 4 3
        weights: f64[4,1] = 0.7 -0.4 0.2 -3
        centred = Sub(double, means)
        scaled = Div(centred, deviations)
        sum = MatMul(scaled, weights)
        index = LabelEncoder(t) keys_strings=[basic,pro] values_int64s=[1,2] default_int64=0
        table: f64[3] = 0 0.5 -0.25
        plan = Gather(table, index) axis=0
        intercept: f64[1,1] = -1.5
        log_odds = Sum(sum, plan, intercept)
    ";
    let answer = "
        y1 = Cast(p) to=1
        whole: f32[] = 1
        y0 = Sub(whole, y1)
        y = Concat(y0, y1) axis=1
    ";
    let platt = "
        slope: f64[1,1] = 1.3
        shift: f64[1,1] = -0.2
        sloped = Mul(log_odds, slope)
        calibrated = Add(sloped, shift)
        p = Sigmoid(calibrated)
    ";
    let isotonic = "
        knots: f64[1,3] = -3 -1 0.5
        passed = Greater(log_odds, knots)
        ones = Cast(passed) to=1
        axis: i64[1] = 1
        count = ReduceSum(ones, axis) keepdims=1
        segment = Cast(count) to=7
        base: f64[4] = 0.1 0.1 0.3 0.8
        slopes: f64[4] = 0 0.1 0.3333 0
        from: f64[4] = -3 -3 -1 0.5
        f = Gather(from, segment) axis=0
        b = Gather(base, segment) axis=0
        s = Gather(slopes, segment) axis=0
        along = Sub(log_odds, f)
        rise = Mul(along, s)
        p = Add(b, rise)
    ";
    for (calibration, expected) in [
        ("p = Sigmoid(log_odds)", "linear log_odds answer"),
        (platt, "linear log_odds calibrated"),
        (isotonic, "linear log_odds calibrated"),
    ] {
        let text = format!("{log_odds}{calibration}{answer}");
        let (mut model, bindings) = model(&text, 21, 3);
        model.producer_name = Some("scoregate-trainer".into());
        model = with_output(model, "y");
        let value = model.graph.as_mut().unwrap().output[0].r#type.as_mut().unwrap().value.as_mut().unwrap();
        if let TypeValue::TensorType(tensor) = value {
            tensor.elem_type = Some(FLOAT);
        }
        let (bytes, output) = (model.encode_to_vec(), probabilities(2));
        let reader = RowReader::new(&schema(), &bindings);
        let rows = complete(rows(&reader));
        let options = SessionOptions::default();
        let mut session = runtime().session(&bytes, &reader, &bindings, &output, &options).unwrap();
        let answers = session.run(&rows).unwrap().values().to_vec();
        let split = split(&bytes, &reader, &bindings, &output).unwrap();
        assert_eq!(split.value, "log_odds");
        let found = split.check(runtime(), &reader, &bindings, &output, &rows, &answers);
        assert_eq!(kind(&found), expected, "{found:?}");
        let Ok(Checked { form: Form::Linear(form), .. }) = found else { panic!("{found:?}") };
        // Four numbers and a category, whose coefficients are not those of the graph but of what comes out of its table.
        let players: Vec<_> = form.encoder().players().iter().flatten().collect();
        assert_eq!((players.len(), form.intercepts.as_slice()), (5, &[-1.5][..]));
        // The log-odds are computed as the graph does, in double.
        let mut encoded = vec![0.0; form.encoder().width()];
        let mut margin = [0.0];
        form.encoder().encode(&rows, 3, &mut encoded);
        form.margin(&encoded, &mut margin);
        let positive = 1.0 / (1.0 + (-margin[0]).exp());
        assert!(calibration.starts_with("p = ") == ((positive - answers[3]).abs() < 1e-7));
    }
}

/// A step that pipelines of numbers may have, `@` standing for the value before.
fn step() -> impl Strategy<Value = String> {
    let number = -3.0..3.0_f32;
    prop_oneof![
        (number.clone(), 0.1..3.0_f32).prop_map(|(a, b)| format!("Scaler(@) offset=[{a:?}] scale=[{b:?}]")),
        number
            .clone()
            .prop_map(|a| format!("Imputer(@) imputed_value_floats=[{a:?}] replaced_value_float=nan")),
        number.prop_map(|a| format!("Clip(@) min={a:?} max=3.5")),
        Just("Abs(@)".into()),
        Just("Neg(@)".into()),
        Just("Relu(@)".into()),
        Just("Sign(@)".into()),
        Just("Floor(@)".into()),
        Just("Add(@, @)".into()),
        Just("Mul(@, @)".into()),
        Just("Sqrt(@)".into()),
        Just("IsNaN(@)".into()),
        Just("OneHotEncoder(@) cats_int64s=[-1,0,1,2] zeros=1".into()),
        Just("LabelEncoder(@) keys_floats=[0.0,1.0,nan] values_floats=[0.5,0.25,-1.0]".into()),
        Just("Concat(@, @) axis=1".into()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, rng_seed: RngSeed::Fixed(20_261_122), failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever steps there are, every column that is followed is ONNX Runtime's, bit by bit.
    #[test]
    fn random_pipelines_are_followed(steps in proptest::collection::vec(step(), 1..7)) {
        let (mut text, mut width, mut rank) = (String::new(), 2, 2);
        let mut before = "x".to_string();
        for (at, step) in steps.iter().enumerate() {
            // Columns are put side by side while they are few, and lines of lines are laid flat.
            if step.starts_with("Concat") && width > 64 {
                continue;
            }
            let name = format!("s{at}");
            if step.starts_with("IsNaN") {
                text += &format!("{name}/is = {}\n{name} = Cast({name}/is) to=1\n", step.replace('@', &before));
            } else if step.starts_with("OneHot") {
                if width > 32 {
                    continue;
                }
                width *= 4;
                text += &format!("{name}/shape: i64[2] = -1 {width}\n{name}/hot = {}\n", step.replace('@', &before));
                text += &format!("{name} = Reshape({name}/hot, {name}/shape)\n");
                rank = 2;
            } else {
                text += &format!("{name} = {}\n", step.replace('@', &before));
            }
            if step.starts_with("Concat") {
                width *= 2;
            }
            before = name;
        }
        assert_eq!(rank, 2);
        text += &format!("y = Identity({before})");
        check([(text, 10, 2, [width, 0, 0])]);
    }
}
