//! What is inferred from inputs and observed answers, and what is refused for being unclear.

use scoregate_schemas::manifest::{ClassKeys, Element, MatrixBinding};
use scoregate_schemas::onnx::{AttributeProto, NodeProto};
use serde_json::{Value, json};

use super::bindings::GraphInput;
use super::*;
use crate::package::Expected;
use crate::runtime::{Observed, ObservedValue};
use scoregate_schemas::onnx::GraphProto;

fn schema(extension: Value) -> FeatureSchema {
    FeatureSchema::from_document(json!({
        "properties": {
            "age": {"type": "number"},
            "visits": {"type": "integer"},
            "plan": {"type": "string", "enum": ["basic", "pro"]},
            "land": {"type": "string", "enum": ["DE", "US", "FR"], "x-scoregate": {"encode": "one_hot"}}
        },
        "x-scoregate": extension
    }))
    .unwrap()
}

fn numbers() -> FeatureSchema {
    FeatureSchema::from_document(json!({
        "properties": {"age": {"type": "number"}, "visits": {"type": "integer"}}
    }))
    .unwrap()
}

fn input(name: &str, element: Element, width: usize) -> GraphInput {
    GraphInput { name: name.into(), element: Some(element), width: (width > 0).then_some(width), rows: None }
}

/// The features by input, or the fault's code and message.
type Bound = Result<Vec<(String, Vec<String>)>, (&'static str, String)>;

fn bind(schema: &FeatureSchema, inputs: &[GraphInput], flags: &[(&str, &str)]) -> Bound {
    let flags: Vec<(String, Vec<String>)> = flags
        .iter()
        .map(|(name, features)| ((*name).into(), features.split(',').map(Into::into).collect()))
        .collect();
    let mut reasons = Vec::new();
    let bound = bindings::infer(inputs, schema, &flags, &mut reasons);
    let bound = bound.map_err(|fault| (fault.code(), fault.to_string()))?;
    assert!(!reasons.is_empty(), "every inference has a reason");
    Ok(bound.inputs().iter().map(|input| (input.input.into(), input.features.to_vec())).collect())
}

fn bound(pairs: &[(&str, &str)]) -> Bound {
    Ok(pairs
        .iter()
        .map(|(name, features)| ((*name).into(), features.split(',').map(Into::into).collect()))
        .collect())
}

#[test]
fn inputs_called_like_features_take_them() {
    use Element::{Float32, Int64, String};
    let inputs = [
        input("visits", Int64, 1),
        input("age", Float32, 1),
        input("plan", String, 1),
        input("Land", Float32, 3),
    ];
    let expected = bound(&[("age", "age"), ("visits", "visits"), ("plan", "plan"), ("Land", "land")]);
    assert_eq!(bind(&schema(json!({})), &inputs, &[]), expected, "whatever their order and case");
    // A width that nobody declares is the features' own.
    let inputs = [input("age", Float32, 0), input("visits", Int64, 1)];
    assert_eq!(bind(&numbers(), &inputs, &[]), bound(&[("age", "age"), ("visits", "visits")]));
}

#[test]
fn one_matrix_takes_the_features_in_the_schemas_order() {
    let expected = bound(&[("X", "age,visits")]);
    assert_eq!(bind(&numbers(), &[input("X", Element::Float32, 2)], &[]), expected);
}

#[test]
fn inputs_that_group_columns_take_the_features_of_their_type() {
    use Element::{Float32, Int64, String};
    let grouped = FeatureSchema::from_document(json!({"properties": {
        "age": {"type": "number"}, "plan": {"type": "string"}, "visits": {"type": "integer"}, "land": {"type": "string"},
        "spend": {"type": "number"}
    }}))
    .unwrap();
    let two = [input("numeric", Float32, 3), input("categorical", String, 2)];
    let expected = bound(&[("numeric", "age,visits,spend"), ("categorical", "plan,land")]);
    assert_eq!(bind(&grouped, &two, &[]), expected);
    let three = [input("floats", Float32, 2), input("ints", Int64, 1), input("texts", String, 2)];
    let expected = bound(&[("floats", "age,spend"), ("ints", "visits"), ("texts", "plan,land")]);
    assert_eq!(bind(&grouped, &three, &[]), expected);
    let own = [input("age", Float32, 1), input("rest", Float32, 2), input("texts", String, 2)];
    let expected = bound(&[("age", "age"), ("rest", "visits,spend"), ("texts", "plan,land")]);
    assert_eq!(bind(&grouped, &own, &[]), expected);
}

#[test]
fn flags_say_it_in_place_of_names() {
    use Element::Float32;
    let inputs = [input("x1", Float32, 1), input("x2", Float32, 1)];
    let expected = bound(&[("x1", "visits"), ("x2", "age")]);
    assert_eq!(bind(&numbers(), &inputs, &[("x1", "visits"), ("x2", "age")]), expected);
    let open = [input("X", Float32, 0)];
    assert_eq!(bind(&numbers(), &open, &[("X", "visits,age")]), bound(&[("X", "visits,age")]));
}

#[test]
fn what_is_unclear_is_refused_with_what_settles_it() {
    use Element::{Float32, String};
    let x = |width| input("X", Float32, width);
    let other = GraphInput { name: "image".into(), element: None, width: Some(1), rows: None };
    type Case<'c> = (&'c FeatureSchema, Vec<GraphInput>, &'c [(&'c str, &'c str)], &'c str, &'c str);
    let cases: [Case<'_>; 13] = [
        (&numbers(), vec![], &[], "bindings_unclear", "no inputs"),
        (&numbers(), vec![other], &[], "bindings_unclear", "\"image\" is no tensor of"),
        (&numbers(), vec![x(0)], &[], "dynamic_columns", "--input X=age,visits"),
        (
            &numbers(),
            vec![x(3)],
            &[],
            "bindings_unclear",
            "has 3 columns, but the schema's 2 features fill 2",
        ),
        (&schema(json!({})), vec![x(6)], &[], "bindings_unclear", "\"plan\" is a category"),
        (
            &numbers(),
            vec![input("S", String, 2)],
            &[],
            "bindings_unclear",
            "takes strings, but \"age\" is a number",
        ),
        (&numbers(), vec![x(1), input("Y", Float32, 1)], &[], "bindings_unclear", "--input NAME=FEATURE"),
        (
            &numbers(),
            vec![input("age", Float32, 1), input("extra", Float32, 1), input("visits", Float32, 1)],
            &[],
            "bindings_unclear",
            "no feature of the schema is called like \"extra\"",
        ),
        (&numbers(), vec![input("age", Float32, 1)], &[], "bindings_unclear", "takes no visits"),
        (&numbers(), vec![x(2)], &[("Z", "age,visits")], "bindings_unclear", "no flag says what input \"X\""),
        (&numbers(), vec![x(2)], &[("X", "age,visitors")], "bindings_unclear", "no feature \"visitors\""),
        (&numbers(), vec![x(2)], &[("X", "age")], "bindings_unclear", "another number of columns"),
        (&numbers(), vec![x(0)], &[("X", "age")], "bindings_unclear", "no input takes visits"),
    ];
    for (schema, inputs, flags, code, says) in cases {
        let (found, message) = bind(schema, &inputs, flags).unwrap_err();
        assert!(found == code && message.contains(says), "expected {code} … {says}, found {found} {message}");
    }
}

fn tensor(name: &str, columns: usize, values: &[f64]) -> Observed {
    Observed { name: name.into(), value: ObservedValue::Numbers { columns, values: values.to_vec() } }
}

fn label() -> Observed {
    Observed { name: "label".into(), value: ObservedValue::Labels { columns: 1 } }
}

fn maps(keys: &[&str], values: &[f64]) -> Observed {
    let keys = ClassKeys::Strings(keys.iter().map(ToString::to_string).collect());
    Observed { name: "probabilities".into(), value: ObservedValue::Maps { keys, values: values.to_vec() } }
}

/// A graph whose output `y` comes from `operator`, and whose classes are `classes`.
fn graph(operator: &str, classes: &[&str]) -> GraphProto {
    let classes = AttributeProto {
        name: Some("classlabels_strings".into()),
        strings: classes.iter().map(|class| class.as_bytes().to_vec()).collect(),
        ..AttributeProto::default()
    };
    let node = NodeProto {
        op_type: Some(operator.into()),
        input: vec!["x".into()],
        output: vec!["label".into(), "y".into()],
        attribute: vec![classes],
        ..NodeProto::default()
    };
    GraphProto { node: vec![node], ..GraphProto::default() }
}

fn golden(expected: &[Expected]) -> Vec<GoldenRow> {
    let row =
        |expected: &Expected| GoldenRow { features: serde_json::Map::new(), expected: expected.clone() };
    expected.iter().map(row).collect()
}

/// What is answered and how it is labelled, or the fault's code and message.
type Answer = Result<(Output, Vec<String>), (&'static str, String)>;

fn answer(
    graph: &GraphProto,
    observed: &[Observed],
    extension: Value,
    overrides: Overrides,
    golden: &[GoldenRow],
) -> Answer {
    answer_after(None, graph, observed, extension, overrides, golden)
}

/// The same where a version is live.
fn answer_after(
    live: Option<&Output>,
    graph: &GraphProto,
    observed: &[Observed],
    extension: Value,
    overrides: Overrides,
    golden: &[GoldenRow],
) -> Answer {
    answer_to(true, live, graph, observed, extension, overrides, golden)
}

/// The same, to rows that are real or made up from the schema.
fn answer_to(
    is_real: bool,
    live: Option<&Output>,
    graph: &GraphProto,
    observed: &[Observed],
    extension: Value,
    overrides: Overrides,
    golden: &[GoldenRow],
) -> Answer {
    let (schema, overrides) = (schema(extension), Overrides { tolerance: 1e-5, ..overrides });
    let bindings = Bindings::columns_of(&schema, str::to_owned);
    let live = live.map(|output| Live { bindings, output: output.clone() });
    let evidence = output::Evidence {
        graph,
        observed,
        schema: &schema,
        overrides: &overrides,
        golden,
        is_real,
        live: live.as_ref(),
    };
    let found = output::infer(&evidence, &mut Vec::new());
    found.map(|found| (found.output, found.labels)).map_err(|fault| (fault.code(), fault.to_string()))
}

fn probabilities(classes: usize, positive: usize) -> Output {
    Output::Probabilities { name: "y".into(), classes, positive }
}

fn text(labels: &[&str]) -> Vec<String> {
    labels.iter().map(ToString::to_string).collect()
}

#[test]
fn the_answer_is_told_by_what_the_outputs_hold() {
    let none = graph("Gemm", &[]);
    let two = [0.25, 0.75, 0.9, 0.1];
    let default = Overrides::default;
    let check = |graph: &GraphProto, observed: &[Observed], extension, output, labels: &[&str]| {
        assert_eq!(answer(graph, observed, extension, default(), &[]), Ok((output, text(labels))));
    };
    let negative_positive = ["negative", "positive"];
    check(&none, &[label(), tensor("y", 2, &two)], json!({}), probabilities(2, 1), &negative_positive);
    // The schema's positive class is the graph's first: so is its column.
    let churn = graph("TreeEnsembleClassifier", &["churn", "stay"]);
    let positive = json!({"positive": "churn"});
    check(&churn, &[label(), tensor("y", 2, &two)], positive, probabilities(2, 0), &["stay", "churn"]);
    let sigmoid = graph("Sigmoid", &[]);
    check(&sigmoid, &[tensor("y", 1, &[0.5, 0.2])], json!({}), probabilities(1, 0), &negative_positive);
    check(&none, &[tensor("y", 1, &[0.5, 0.2])], json!({}), Output::Value { name: "y".into() }, &[]);
    check(&none, &[tensor("y", 1, &[3.0])], json!({"labels": []}), Output::Value { name: "y".into() }, &[]);
    let three = [0.2, 0.3, 0.5];
    check(&none, &[tensor("y", 3, &three)], json!({}), probabilities(3, 0), &["0", "1", "2"]);
    let fruit = graph("TreeEnsembleClassifier", &["apple", "pear", "plum"]);
    check(&fruit, &[tensor("y", 3, &three)], json!({}), probabilities(3, 0), &["apple", "pear", "plum"]);
    // Labels in another order are the same labels: the columns keep the graph's.
    let labels = json!({"labels": ["plum", "pear", "apple"]});
    check(&fruit, &[tensor("y", 3, &three)], labels, probabilities(3, 0), &["apple", "pear", "plum"]);
    let keys = ClassKeys::Strings(text(&["no", "yes"]));
    let zipmap = Output::Zipmap { name: "probabilities".into(), keys, positive: 1, link: None };
    check(
        &none,
        &[label(), maps(&["no", "yes"], &two)],
        json!({"labels": ["no", "yes"]}),
        zipmap,
        &["no", "yes"],
    );
    let each = [label(), tensor("i0", 1, &[0.25, 0.9]), tensor("i1", 1, &[0.75, 0.1])];
    let columns = Output::Columns { names: text(&["i0", "i1"]), positive: 1 };
    check(&none, &each, json!({}), columns, &negative_positive);
}

#[test]
fn a_link_is_proved_or_named_and_never_guessed() {
    let none = graph("Gemm", &[]);
    let scores = [-2.0, 2.0, 1.0, -1.0];
    let observed = [label(), tensor("y", 2, &scores)];
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let one = |values: &[f64]| golden(&values.iter().map(|value| Expected::One(*value)).collect::<Vec<_>>());
    let margin = |link| Output::Margin { name: "y".into(), classes: 2, positive: 1, link };
    let ask = |overrides: Overrides, golden: &[GoldenRow]| {
        answer(&none, &observed, json!({}), overrides, golden).map(|(output, _)| output)
    };
    let default = Overrides::default;
    assert_eq!(ask(default(), &one(&[sigmoid(2.0), sigmoid(-1.0)])), Ok(margin(Link::Sigmoid)));
    assert_eq!(ask(default(), &one(&[sigmoid(4.0), sigmoid(-2.0)])), Ok(margin(Link::Softmax)));
    // Both classes' probabilities say the same.
    let both = |x: f64| Expected::Classes(vec![1.0 - sigmoid(x), sigmoid(x)]);
    assert_eq!(ask(default(), &golden(&[both(2.0), both(-1.0)])), Ok(margin(Link::Sigmoid)));
    let named = Overrides { link: Some(Some(Link::Softmax)), ..default() };
    assert_eq!(ask(named, &[]), Ok(margin(Link::Softmax)));
    for (overrides, golden, says) in [
        (default(), vec![], "--link sigmoid or --link softmax"),
        (default(), one(&[0.3, 0.4]), "neither as they are nor through sigmoid or softmax"),
        (Overrides { link: Some(None), ..default() }, vec![], "which are no probabilities"),
    ] {
        let (code, message) = ask(overrides, &golden).unwrap_err();
        assert!(code == "link_unproved" && message.contains(says), "{code} {message}");
    }
    // Scores that happen to lie in [0, 1] do not add up to 1.
    let within = [label(), tensor("y", 2, &[0.2, 0.4, 0.9, 0.8])];
    let (code, message) = answer(&none, &within, json!({}), default(), &[]).unwrap_err();
    assert!(code == "link_unproved" && message.contains("do not add up to 1"), "{message}");
}

#[test]
fn an_answer_that_is_unclear_or_unusable_is_refused() {
    let none = graph("Gemm", &[]);
    let fruit = graph("TreeEnsembleClassifier", &["apple", "pear"]);
    let two = [0.25, 0.75];
    let other =
        Observed { name: "z".into(), value: ObservedValue::Other("a tensor of shape [2, 2, 2]".into()) };
    let output = |name: &str| Overrides { outputs: vec![name.into()], ..Overrides::default() };
    let positive = Overrides { positive: Some("plum".into()), ..Overrides::default() };
    let binary = Overrides { task: Some(TaskName::Binary), ..Overrides::default() };
    let default = Overrides::default;
    type Case<'c> = (&'c GraphProto, Vec<Observed>, Value, Overrides, &'c str, &'c str);
    let cases: [Case<'_>; 10] = [
        (&none, vec![label()], json!({}), default(), "output_unclear", "a label alone is no score"),
        (&none, vec![other], json!({}), default(), "output_unclear", "a tensor of shape [2, 2, 2]"),
        (
            &none,
            vec![tensor("a", 2, &two), tensor("b", 3, &[0.1; 3])],
            json!({}),
            default(),
            "output_unclear",
            "--output NAME",
        ),
        (&none, vec![tensor("y", 2, &two)], json!({}), output("x"), "output_unclear", "it has \"y\""),
        (
            &none,
            vec![tensor("y", 2, &[0.5, f64::NAN])],
            json!({}),
            default(),
            "model_output_invalid",
            "for row 1",
        ),
        (&none, vec![tensor("q", 1, &[0.5])], json!({}), default(), "output_unclear", "--task binary"),
        (&fruit, vec![tensor("y", 2, &two)], json!({}), default(), "positive_unclear", "apple, pear"),
        (&fruit, vec![tensor("y", 2, &two)], json!({}), positive, "positive_unclear", "--positive plum"),
        (
            &none,
            vec![tensor("y", 3, &[0.2, 0.3, 0.5])],
            json!({"labels": ["a", "b", "c", "d"]}),
            default(),
            "labels_mismatch",
            "4 labels",
        ),
        (&none, vec![tensor("y", 3, &[0.2, 0.3, 0.5])], json!({}), binary, "labels_mismatch", "binary"),
    ];
    for (graph, observed, extension, overrides, code, says) in cases {
        let (found, message) = answer(graph, &observed, extension, overrides, &[]).unwrap_err();
        assert!(found == code && message.contains(says), "expected {code} … {says}, found {found} {message}");
    }
}

/// The label and `y` of a voting classifier: inner estimators with classes of their own, the label picked from a constant.
fn voting(classes: &[&str]) -> GraphProto {
    let mut inner = graph("LinearClassifier", &["zero", "one"]);
    inner.node[0].output = vec!["inner_label".into(), "inner".into()];
    let pick = NodeProto {
        op_type: Some("ArrayFeatureExtractor".into()),
        input: vec!["classes".into(), "best".into()],
        output: vec!["picked".into()],
        ..NodeProto::default()
    };
    let cast = NodeProto {
        op_type: Some("Reshape".into()),
        input: vec!["picked".into(), "shape".into()],
        output: vec!["label".into()],
        ..NodeProto::default()
    };
    inner.node.extend([pick, cast]);
    inner.initializer.push(scoregate_schemas::onnx::TensorProto {
        name: Some("classes".into()),
        data_type: Some(8),
        string_data: classes.iter().map(|class| class.as_bytes().to_vec()).collect(),
        ..Default::default()
    });
    inner
}

/// A classifier of `classes` that answers integers.
fn integers(classes: &[i64]) -> GraphProto {
    let mut graph = graph("TreeEnsembleClassifier", &[]);
    graph.node[0].attribute = vec![AttributeProto {
        name: Some("classlabels_int64s".into()),
        ints: classes.to_vec(),
        ..AttributeProto::default()
    }];
    graph
}

const TWO: [f64; 4] = [0.25, 0.75, 0.9, 0.1];

#[test]
fn the_positive_class_is_known_or_proved_and_never_assumed() {
    let observed = [label(), tensor("y", 2, &TWO)];
    let default = Overrides::default;
    let column = |graph: &GraphProto, extension: Value, golden: &[GoldenRow]| {
        answer(graph, &observed, extension, default(), golden)
            .map(|(output, labels)| (output.positive(), labels))
    };
    let unclear = |graph: &GraphProto, extension: Value| {
        assert_eq!(column(graph, extension, &[]).map_err(|(code, _)| code), Err("positive_unclear"));
    };
    // What makes the label counts, not what the estimators within call their classes.
    let churn = json!({"positive": "churn"});
    assert_eq!(column(&voting(&["churn", "stay"]), churn.clone(), &[]), Ok((0, text(&["stay", "churn"]))));
    // The graph's 0 and 1 may stand for anything: "churn" is none of them.
    let labelled = json!({"positive": "churn", "labels": ["stay", "churn"]});
    unclear(&integers(&[0, 1]), labelled.clone());
    let one = |values: &[f64]| golden(&values.iter().map(|value| Expected::One(*value)).collect::<Vec<_>>());
    assert_eq!(column(&integers(&[0, 1]), labelled.clone(), &one(&[0.25, 0.9])).unwrap().0, 0);
    assert_eq!(column(&integers(&[0, 1]), labelled, &one(&[0.75, 0.1])).unwrap().0, 1);
    for (classes, positive, at) in [
        ([0, 1], json!(false), 0),
        ([0, 1], json!(true), 1),
        ([0, 1], json!(0.0), 0),
        ([1, 2], json!(1), 0),
        ([1, 2], json!("2"), 1),
        ([1, 0], json!(1), 0),
    ] {
        assert_eq!(
            column(&integers(&classes), json!({"positive": positive}), &[]).unwrap().0,
            at,
            "{classes:?}"
        );
    }
    // Unstated: 0 and 1 are no and yes; 1 and 2 are not.
    assert_eq!(column(&integers(&[1, 0]), json!({}), &[]).unwrap().0, 0);
    assert_eq!(column(&integers(&[-1, 1]), json!({}), &[]).unwrap().0, 1);
    let truth = graph("TreeEnsembleClassifier", &["False", "True"]);
    assert_eq!(column(&truth, json!({"positive": true, "labels": ["no", "yes"]}), &[]).unwrap().0, 1);
    unclear(&integers(&[1, 2]), json!({}));
    unclear(&integers(&[1, 2]), json!({"labels": ["bad", "good"]}));
}

#[test]
fn the_live_version_tells_what_nothing_else_does() {
    let (none, named) = (graph("Gemm", &[]), graph("TreeEnsembleClassifier", &["stay", "churn"]));
    let default = Overrides::default;
    let positive = || json!({"positive": "churn", "labels": ["stay", "churn"]});
    let one = |values: &[f64]| golden(&values.iter().map(|value| Expected::One(*value)).collect::<Vec<_>>());
    let observed = [label(), tensor("y", 2, &TWO)];
    let after = |live: &Output, graph: &GraphProto, extension, overrides, golden: &[GoldenRow]| {
        answer_after(Some(live), graph, &observed, extension, overrides, golden)
            .map(|(output, _)| output)
            .map_err(|(code, _)| code)
    };
    // Which column is the positive class's, where the graph does not name its classes and no golden row proves it.
    for at in [0, 1] {
        let live = probabilities(2, at);
        assert_eq!(after(&live, &none, positive(), default(), &[]), Ok(probabilities(2, at)));
        assert_eq!(after(&live, &none, json!({}), default(), &[]), Ok(probabilities(2, at)));
        let proved = one(&[0.75, 0.1]);
        assert_eq!(after(&live, &none, positive(), default(), &proved), Ok(probabilities(2, 1)));
        let said = Overrides { positive: Some("1".into()), ..default() };
        assert_eq!(after(&live, &none, positive(), said, &[]), Ok(probabilities(2, 1)));
        assert_eq!(after(&live, &named, positive(), default(), &[]), Ok(probabilities(2, 1)), "by its name");
    }
    // In an output of another name, or of other columns, it may mean anything.
    for other in [Output::Probabilities { name: "z".into(), classes: 2, positive: 1 }, probabilities(3, 1)] {
        assert_eq!(after(&other, &none, positive(), default(), &[]), Err("positive_unclear"));
    }
    // Classes that have names are not told by their place.
    let unclear = after(&probabilities(2, 1), &integers(&[0, 1]), positive(), default(), &[]);
    assert_eq!(unclear, Err("positive_unclear"));

    // Through which link scores become probabilities; what are probabilities already need none.
    let margin = Output::Margin { name: "y".into(), classes: 2, positive: 1, link: Link::Softmax };
    let scores = [label(), tensor("y", 2, &[-2.0, 2.0, 1.0, -1.0])];
    let linked = |live| answer_after(Some(live), &none, &scores, json!({}), default(), &[]);
    assert_eq!(linked(&margin).map(|(output, _)| output), Ok(margin.clone()));
    assert_eq!(linked(&probabilities(2, 1)).map_err(|(code, _)| code), Err("link_unproved"));
    assert_eq!(after(&margin, &none, json!({}), default(), &[]), Ok(probabilities(2, 1)));

    // Which of several outputs it is, and what is answered in one column.
    let two = [tensor("a", 2, &TWO), tensor("y", 2, &TWO)];
    let found = answer_after(Some(&probabilities(2, 1)), &none, &two, json!({}), default(), &[]);
    assert_eq!(found.map(|(output, _)| output), Ok(probabilities(2, 1)));
    let column = [tensor("y", 1, &[0.5, 0.2])];
    for live in [probabilities(1, 0), Output::Value { name: "y".into() }] {
        let found = answer_after(Some(&live), &none, &column, json!({}), default(), &[]);
        assert_eq!(found.map(|(output, _)| output), Ok(live));
    }
    // Values between 0 and 1 may be anything where they are of made-up rows, and scores where the live version's are.
    let made_up = |live: Option<&Output>| {
        let found = answer_to(false, live, &none, &column, positive(), default(), &[]);
        found.map(|(output, _)| output).map_err(|(code, _)| code)
    };
    assert_eq!(made_up(None), Err("link_unproved"));
    assert_eq!(made_up(Some(&probabilities(1, 0))), Ok(probabilities(1, 0)));
    let margin = Output::Margin { name: "y".into(), classes: 1, positive: 0, link: Link::Sigmoid };
    assert_eq!(made_up(Some(&margin)), Err("link_unproved"));
    let real = answer_after(Some(&margin), &none, &column, positive(), default(), &[]);
    assert_eq!(real.map(|(output, _)| output).map_err(|(code, _)| code), Err("link_unproved"));
}

#[test]
fn inputs_that_are_called_as_the_live_version_s_are_its() {
    use Element::{Float32, Float64};
    let of = |features: &[&str]| Bindings::Matrix {
        inputs: vec![MatrixBinding { input: "X".into(), element: Float32, features: text(features) }],
    };
    // In another order than the schema's.
    let live = of(&["visits", "age"]);
    for (inputs, are) in [
        (vec![input("X", Float32, 2)], true),
        (vec![input("X", Float32, 0)], true),
        (vec![input("X", Float32, 3)], false),
        (vec![input("X", Float64, 2)], false),
        (vec![input("Y", Float32, 2)], false),
        (vec![input("X", Float32, 2), input("Y", Float32, 1)], false),
        (vec![], false),
    ] {
        assert_eq!(bindings::are_of(&live, &inputs, &numbers()), are, "{inputs:?}");
    }
}

#[test]
fn labels_are_the_graphs_classes_or_stand_for_them_all() {
    let observed = |columns: usize| [label(), tensor("y", columns, &vec![1.0 / columns as f64; columns])];
    let labels = |graph: &GraphProto, columns: usize, extension: Value| {
        let found = answer(graph, &observed(columns), extension, Overrides::default(), &[]);
        found.map(|(_, labels)| labels).map_err(|(code, _)| code)
    };
    let churn = graph("TreeEnsembleClassifier", &["churn", "stay"]);
    let positive = |labels: [&str; 2]| json!({"positive": "churn", "labels": labels});
    assert_eq!(labels(&churn, 2, positive(["stay", "churn"])), Ok(text(&["stay", "churn"])));
    // Swapped, the right number would get the wrong name, and no golden row would tell.
    assert_eq!(labels(&churn, 2, positive(["churn", "stay"])), Err("labels_mismatch"));
    assert_eq!(labels(&churn, 2, positive(["no", "churn"])), Err("labels_mismatch"));
    assert_eq!(labels(&churn, 2, positive(["no", "yes"])), Ok(text(&["no", "yes"])));
    let iris = graph("TreeEnsembleClassifier", &["setosa", "versicolor", "virginica"]);
    for (own, expected) in [
        (json!(["virginica", "setosa", "versicolor"]), Ok(text(&["setosa", "versicolor", "virginica"]))),
        (json!(["virginica", "versicolour", "setosa"]), Err("labels_mismatch")),
        (json!(["a", "b", "c"]), Err("labels_mismatch")),
    ] {
        assert_eq!(labels(&iris, 3, json!({"labels": own})), expected, "{own}");
    }
    let low_mid_high = text(&["low", "mid", "high"]);
    assert_eq!(labels(&integers(&[1, 2, 3]), 3, json!({"labels": ["low", "mid", "high"]})), Ok(low_mid_high));
    // A name that would forge a line of the report, or of an answer.
    let forged = graph("TreeEnsembleClassifier", &["a", "b", "yes\ngolden    900 rows"]);
    assert_eq!(labels(&forged, 3, json!({})), Err("labels_mismatch"));
}

#[test]
fn flags_that_cannot_be_followed_are_refused() {
    let none = graph("Gemm", &[]);
    let value = [tensor("y", 1, &[3.0, -1.0])];
    let ask = |observed: &[Observed], overrides: Overrides| {
        answer(&none, observed, json!({}), overrides, &[]).map(|(output, _)| output).map_err(|(code, _)| code)
    };
    let default = Overrides::default;
    let link = Overrides { link: Some(Some(Link::Sigmoid)), ..default() };
    let margin = Output::Margin { name: "y".into(), classes: 1, positive: 0, link: Link::Sigmoid };
    assert_eq!(ask(&value, link), Ok(margin), "a link makes a probability of what would be a value");
    let positive = |class: &str| Overrides { positive: Some(class.into()), ..default() };
    assert_eq!(ask(&value, positive("1")), Err("output_unclear"));
    let probability = Overrides { task: Some(TaskName::Binary), ..positive("nonsense") };
    assert_eq!(ask(&[tensor("y", 1, &[0.5])], probability), Err("positive_unclear"));
    // One output per class, in the flag's order.
    let each = [label(), tensor("p_no", 1, &[0.25, 0.9]), tensor("p_yes", 1, &[0.75, 0.1])];
    let order = Overrides { outputs: vec!["p_yes".into(), "p_no".into()], ..default() };
    let yes = graph("TreeEnsembleClassifier", &["no", "yes"]);
    let found = answer(&yes, &each, json!({"positive": "yes"}), order, &[]);
    let columns = Output::Columns { names: text(&["p_yes", "p_no"]), positive: 0 };
    assert_eq!(found, Ok((columns, text(&["no", "yes"]))));
}

#[test]
fn golden_rows_that_fit_several_links_prove_none() {
    let none = graph("Gemm", &[]);
    let observed = [label(), tensor("y", 2, &[0.0, 0.0, -2.0, 2.0])];
    let half = golden(&[Expected::One(0.5)]);
    let (code, message) = answer(&none, &observed, json!({}), Overrides::default(), &half).unwrap_err();
    assert!(code == "link_unproved" && message.contains("do not tell sigmoid from softmax"), "{message}");
    let three = golden(&[Expected::Classes(vec![0.2, 0.3, 0.5])]);
    let (code, message) = answer(&none, &observed, json!({}), Overrides::default(), &three).unwrap_err();
    assert!(code == "invalid_golden" && message.contains("expects 3 number(s)"), "{message}");
}
