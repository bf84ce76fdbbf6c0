//! The fitted pipeline → one ONNX graph of core operators, preprocessing and calibration inside.
//!
//! ```text
//! numbers ─ Concat ─ Cast ─ scale ─ weigh ─┐
//! plan_tier ─ one_hot/plan_tier ───────────┼─ log_odds ─ calibrate ─ probability ─┬─ probabilities [N, 2]
//! country ─ one_hot/country ───────────────┘                                      └─ label [N]
//! ```
//!
//! Everything between the inputs (float32 and strings) and the probability (float32) is computed in double: subtracting a mean
//! that is large against the deviation costs float32 most of its digits. One-hot encoding and the product with its coefficients
//! are one look-up, category → index → coefficient, whose index 0 is the unknown category with coefficient 0. The index comes
//! from `ai.onnx.ml`'s LabelEncoder, the only operator that turns a string into a number, and the only one here that is
//! not of the core domain. The same pipeline gives the same bytes.

use prost::Message;
use scoregate_schemas::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeDimension,
    TensorShapeDimensionValue, TensorShapeProto, TypeProto, TypeTensorType, TypeValue, ValueInfoProto,
};

use crate::calibrate::{Calibration, Isotonic};
use crate::pipeline::{Effect, Pipeline};

/// Version of the core operators that graphs use.
pub const OPSET: i64 = 21;
/// Version of the `ai.onnx.ml` operators that graphs use.
pub const ML_OPSET: i64 = 3;
/// Version of the file format, the one that came with [`OPSET`].
const IR_VERSION: i64 = 10;

/// Output with the class per row: 1 from the threshold on, else 0; int64 `[N]`.
pub const LABEL: &str = "label";
/// Output with P(negative) and P(positive) per row; float32 `[N, 2]`.
pub const PROBABILITIES: &str = "probabilities";
/// The value inside the graph that holds the log-odds before calibration; double `[N, 1]`.
pub const LOG_ODDS: &str = "log_odds";

// Element types of the ONNX specification's `TensorProto.DataType`.
const FLOAT: i32 = 1;
const INT64: i32 = 7;
const STRING: i32 = 8;
const DOUBLE: i32 = 11;

// Attribute types of the ONNX specification's `AttributeProto.AttributeType`.
const ATTRIBUTE_INT: i32 = 2;
const ATTRIBUTE_INTS: i32 = 7;
const ATTRIBUTE_STRINGS: i32 = 8;

/// Names of values inside the graph that carry no `/`, which no input may take.
const RESERVED: [&str; 4] = [LABEL, PROBABILITIES, LOG_ODDS, "probability"];

/// The name of the graph's input for `feature`: its own, unless the graph needs that name itself.
pub fn input_name(feature: &str) -> String {
    if RESERVED.contains(&feature) || feature.contains('/') {
        format!("input/{feature}")
    } else {
        feature.into()
    }
}

/// The graph of `pipeline` as the bytes of an ONNX file. `threshold` is the probability from which on a row is labelled 1,
/// `name` the graph's name.
pub fn export(pipeline: &Pipeline, threshold: f64, name: &str) -> Vec<u8> {
    let mut graph = Builder::default();
    let mut addends = Vec::new();
    if let Some(numbers) = graph.numbers(pipeline) {
        addends.push(numbers);
    }
    for term in &pipeline.terms {
        if let Effect::Categorical { categories, coefficients } = &term.effect {
            addends.push(graph.category(&term.feature, categories, coefficients));
        }
    }
    addends.push(graph.doubles("log_odds/intercept", &[1, 1], &[pipeline.intercept]));
    graph.node("log_odds", "Sum", &addends, LOG_ODDS);
    let probability = graph.calibration(&pipeline.calibration);
    graph.answer(&probability, threshold);
    graph.finish(pipeline, name).encode_to_vec()
}

#[derive(Default)]
struct Builder {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl Builder {
    /// Adds an operator of one output and returns the output's name.
    fn node(&mut self, name: &str, operator: &str, inputs: &[String], output: &str) -> String {
        self.nodes.push(NodeProto {
            input: inputs.to_vec(),
            output: vec![output.into()],
            name: Some(name.into()),
            op_type: Some(operator.into()),
            ..NodeProto::default()
        });
        output.into()
    }

    /// Gives the operator that was added last an attribute.
    fn attribute(&mut self, attribute: AttributeProto) {
        if let Some(node) = self.nodes.last_mut() {
            node.attribute.push(attribute);
        }
    }

    fn int_attribute(&mut self, name: &str, value: i64) {
        self.attribute(AttributeProto {
            name: Some(name.into()),
            r#type: Some(ATTRIBUTE_INT),
            i: Some(value),
            ..AttributeProto::default()
        });
    }

    fn constant(&mut self, name: &str, data_type: i32, dims: &[usize], raw: Vec<u8>) -> String {
        self.initializers.push(TensorProto {
            name: Some(name.into()),
            data_type: Some(data_type),
            dims: dims.iter().map(|dim| *dim as i64).collect(),
            raw_data: Some(raw),
            ..TensorProto::default()
        });
        name.into()
    }

    fn doubles(&mut self, name: &str, dims: &[usize], values: &[f64]) -> String {
        self.constant(name, DOUBLE, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn float(&mut self, name: &str, value: f32) -> String {
        self.constant(name, FLOAT, &[], value.to_le_bytes().to_vec())
    }

    fn integers(&mut self, name: &str, values: &[i64]) -> String {
        self.constant(
            name,
            INT64,
            &[values.len()],
            values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        )
    }

    fn cast(&mut self, name: &str, input: String, to: i32, output: &str) -> String {
        let output = self.node(name, "Cast", &[input], output);
        self.int_attribute("to", i64::from(to));
        output
    }

    /// All numbers, scaled and weighed: double `[N, 1]`. None if there are no numbers.
    fn numbers(&mut self, pipeline: &Pipeline) -> Option<String> {
        let (mut inputs, mut means, mut scales, mut coefficients) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for term in &pipeline.terms {
            if let Effect::Linear { mean, scale, coefficient } = &term.effect {
                inputs.push(input_name(&term.feature));
                means.push(*mean);
                scales.push(*scale);
                coefficients.push(*coefficient);
            }
        }
        let count = inputs.len();
        let together = match count {
            0 => return None,
            1 => inputs.remove(0),
            _ => {
                let output = self.node("numbers", "Concat", &inputs, "numbers/float");
                self.int_attribute("axis", 1);
                output
            }
        };
        let means = self.doubles("scale/mean", &[1, count], &means);
        let scales = self.doubles("scale/deviation", &[1, count], &scales);
        let coefficients = self.doubles("weigh/coefficients", &[count, 1], &coefficients);
        let doubles = self.cast("numbers/double", together, DOUBLE, "numbers/double");
        let centred = self.node("scale/centre", "Sub", &[doubles, means], "scale/centred");
        let scaled = self.node("scale", "Div", &[centred, scales], "scale/scaled");
        // ONNX Runtime folds a single scale into a neighbouring MatMul as a float32 factor, which costs the double its digits.
        let product = if count == 1 { "Mul" } else { "MatMul" };
        Some(self.node("weigh", product, &[scaled, coefficients], "weigh/sum"))
    }

    /// The coefficient of a category: double `[N, 1]`.
    fn category(&mut self, feature: &str, categories: &[String], coefficients: &[f64]) -> String {
        let node = format!("one_hot/{feature}");
        let index = self.node(&node, "LabelEncoder", &[input_name(feature)], &format!("{node}/index"));
        if let Some(encoder) = self.nodes.last_mut() {
            encoder.domain = Some("ai.onnx.ml".into());
        }
        self.attribute(AttributeProto {
            name: Some("keys_strings".into()),
            r#type: Some(ATTRIBUTE_STRINGS),
            strings: categories.iter().map(|category| category.clone().into_bytes()).collect(),
            ..AttributeProto::default()
        });
        self.attribute(AttributeProto {
            name: Some("values_int64s".into()),
            r#type: Some(ATTRIBUTE_INTS),
            ints: (1..=categories.len() as i64).collect(),
            ..AttributeProto::default()
        });
        self.int_attribute("default_int64", 0);
        let table: Vec<f64> = std::iter::once(0.0).chain(coefficients.iter().copied()).collect();
        let table = self.doubles(&format!("{node}/coefficients"), &[table.len()], &table);
        let output =
            self.node(&format!("weigh/{feature}"), "Gather", &[table, index], &format!("{node}/log_odds"));
        self.int_attribute("axis", 0);
        output
    }

    /// The probability of the positive class: double `[N, 1]`.
    fn calibration(&mut self, calibration: &Calibration) -> String {
        match calibration {
            Calibration::None => {
                self.node("probability", "Sigmoid", &[LOG_ODDS.into()], "probability/double")
            }
            Calibration::Platt { slope, intercept } => {
                let slope = self.doubles("calibrate/slope", &[1, 1], &[*slope]);
                let intercept = self.doubles("calibrate/intercept", &[1, 1], &[*intercept]);
                let sloped =
                    self.node("calibrate/slope", "Mul", &[LOG_ODDS.into(), slope], "calibrate/sloped");
                let calibrated = self.node("calibrate", "Add", &[sloped, intercept], "calibrate/log_odds");
                self.node("probability", "Sigmoid", &[calibrated], "probability/double")
            }
            Calibration::Isotonic(curve) => self.isotonic(curve),
        }
    }

    /// Counts the knots below the log-odds, which tells the segment, and follows that segment's line.
    fn isotonic(&mut self, curve: &Isotonic) -> String {
        let knots = &curve.knots;
        let (mut from, mut base, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..=knots.len() {
            let below = knots[at.saturating_sub(1)];
            let slope = match knots.get(at) {
                Some(above) if at > 0 => (above.1 - below.1) / (above.0 - below.0),
                _ => 0.0,
            };
            from.push(below.0);
            base.push(below.1);
            slopes.push(slope);
        }
        let places: Vec<f64> = knots.iter().map(|knot| knot.0).collect();
        let places = self.doubles("calibrate/knots", &[1, places.len()], &places);
        let from = self.doubles("calibrate/from", &[from.len()], &from);
        let base = self.doubles("calibrate/base", &[base.len()], &base);
        let slopes = self.doubles("calibrate/slopes", &[slopes.len()], &slopes);
        let one = self.integers("calibrate/axis", &[1]);
        let passed = self.node("calibrate/passed", "Greater", &[LOG_ODDS.into(), places], "calibrate/passed");
        // Summed as float32, which is three times as fast as int64 and exact up to 2^24 knots.
        let passed = self.cast("calibrate/ones", passed, FLOAT, "calibrate/ones");
        let count = self.node("calibrate/count", "ReduceSum", &[passed, one], "calibrate/count");
        self.int_attribute("keepdims", 1);
        let segment = self.cast("calibrate/segment", count, INT64, "calibrate/segment");
        let gather = |builder: &mut Self, name: &str, table: String| {
            let name = format!("calibrate/segment_{name}");
            let output = builder.node(&name, "Gather", &[table, segment.clone()], &name);
            builder.int_attribute("axis", 0);
            output
        };
        let from = gather(self, "from", from);
        let base = gather(self, "base", base);
        let slope = gather(self, "slope", slopes);
        let along = self.node("calibrate/along", "Sub", &[LOG_ODDS.into(), from], "calibrate/along");
        let rise = self.node("calibrate/rise", "Mul", &[along, slope], "calibrate/rise");
        self.node("calibrate", "Add", &[base, rise], "probability/double")
    }

    /// Both outputs from the positive class's probability.
    fn answer(&mut self, probability: &str, threshold: f64) {
        let positive = self.cast("probability/float", probability.into(), FLOAT, "probability");
        let one = self.float("probability/one", 1.0);
        let negative =
            self.node("probability/negative", "Sub", &[one, positive.clone()], "probability/negative");
        self.node("probabilities", "Concat", &[negative, positive.clone()], PROBABILITIES);
        self.int_attribute("axis", 1);
        let threshold = self.float("label/threshold", nearest(threshold));
        let shape = self.integers("label/shape", &[-1]);
        let reached = self.node("label/reached", "GreaterOrEqual", &[positive, threshold], "label/reached");
        let class = self.cast("label/class", reached, INT64, "label/class");
        self.node("label", "Reshape", &[class, shape], LABEL);
    }

    fn finish(self, pipeline: &Pipeline, name: &str) -> ModelProto {
        let inputs = pipeline.terms.iter().map(|term| {
            let element = if matches!(term.effect, Effect::Linear { .. }) { FLOAT } else { STRING };
            value(&input_name(&term.feature), element, Some(1))
        });
        let graph = GraphProto {
            name: Some(name.into()),
            node: self.nodes,
            initializer: self.initializers,
            input: inputs.collect(),
            output: vec![value(LABEL, INT64, None), value(PROBABILITIES, FLOAT, Some(2))],
            value_info: vec![value(LOG_ODDS, DOUBLE, Some(1))],
            ..GraphProto::default()
        };
        let opset = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.into()),
            version: Some(version),
        };
        ModelProto {
            ir_version: Some(IR_VERSION),
            opset_import: vec![opset("", OPSET), opset("ai.onnx.ml", ML_OPSET)],
            producer_name: Some(env!("CARGO_PKG_NAME").into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            graph: Some(graph),
            ..ModelProto::default()
        }
    }
}

/// The float32 nearest to `threshold`: a probability that is written 0.7 reaches a threshold of 0.7, as in the gateway.
#[expect(clippy::cast_possible_truncation, reason = "probabilities are written as float32")]
pub(crate) fn nearest(threshold: f64) -> f32 {
    threshold as f32
}

/// A value of shape `[N]`, or `[N, columns]`.
fn value(name: &str, element: i32, columns: Option<i64>) -> ValueInfoProto {
    let rows = TensorShapeDimension {
        value: Some(TensorShapeDimensionValue::DimParam("N".into())),
        ..TensorShapeDimension::default()
    };
    let columns = columns.map(|columns| TensorShapeDimension {
        value: Some(TensorShapeDimensionValue::DimValue(columns)),
        ..TensorShapeDimension::default()
    });
    let shape = TensorShapeProto { dim: std::iter::once(rows).chain(columns).collect() };
    let tensor = TypeTensorType { elem_type: Some(element), shape: Some(shape) };
    let r#type = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(r#type), ..ValueInfoProto::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Term;

    fn pipeline(calibration: Calibration) -> Pipeline {
        let linear = |feature: &str, mean, scale, coefficient| Term {
            feature: feature.into(),
            effect: Effect::Linear { mean, scale, coefficient },
        };
        let plan = Effect::Categorical {
            categories: vec!["basic".into(), "pro".into()],
            coefficients: vec![0.5, -0.5],
        };
        Pipeline {
            terms: vec![
                linear("days", 400.0, 300.0, -0.7),
                Term { feature: "plan".into(), effect: plan.clone() },
                Term { feature: "sum".into(), effect: plan },
                linear("label", 1.0, 2.0, 0.1),
            ],
            intercept: -1.0,
            calibration,
        }
    }

    fn graph(calibration: Calibration) -> GraphProto {
        let bytes = export(&pipeline(calibration.clone()), 0.5, "churn");
        assert_eq!(
            bytes,
            export(&pipeline(calibration), 0.5, "churn"),
            "the same pipeline gives the same bytes"
        );
        let model = ModelProto::decode(bytes.as_slice()).unwrap();
        assert_eq!(model.ir_version, Some(10));
        let opsets: Vec<_> =
            model.opset_import.iter().map(|opset| (opset.domain(), opset.version())).collect();
        assert_eq!(opsets, [("", 21), ("ai.onnx.ml", 3)]);
        model.graph.unwrap()
    }

    #[test]
    fn inputs_are_the_features_in_the_schemas_order() {
        let graph = graph(Calibration::None);
        let names: Vec<_> = graph.input.iter().map(ValueInfoProto::name).collect();
        // A feature called like an output gets an input of another name.
        assert_eq!(names, ["days", "plan", "sum", "input/label"]);
        assert_eq!(graph.output.iter().map(ValueInfoProto::name).collect::<Vec<_>>(), [LABEL, PROBABILITIES]);
    }

    #[test]
    fn one_operator_is_not_of_the_core_domain() {
        for calibration in [
            Calibration::None,
            Calibration::Platt { slope: 0.9, intercept: -1.2 },
            Calibration::Isotonic(Isotonic { knots: vec![(-1.0, 0.1), (1.0, 0.6)] }),
        ] {
            let graph = graph(calibration);
            let other: Vec<_> = graph.node.iter().filter(|node| !node.domain().is_empty()).collect();
            assert_eq!(other.iter().map(|node| node.op_type()).collect::<Vec<_>>(), ["LabelEncoder"; 2]);
            let names: Vec<_> = graph.node.iter().map(NodeProto::name).collect();
            for name in ["scale", "one_hot/plan", "log_odds", "probabilities", "label"] {
                assert!(names.contains(&name), "{name} is not in {names:?}");
            }
            let values = graph.node.iter().flat_map(|node| &node.output);
            let mut values: Vec<_> =
                values.chain(graph.initializer.iter().filter_map(|tensor| tensor.name.as_ref())).collect();
            let count = values.len();
            values.sort();
            values.dedup();
            assert_eq!(values.len(), count, "every value is computed once");
            let free = |name: &&&String| input_name(name) == ***name;
            assert_eq!(values.iter().find(free), None, "no feature's input is called like a value inside");
        }
    }

    #[test]
    fn a_threshold_between_two_float32_is_the_one_that_is_written_like_it() {
        for threshold in [0.0, 0.3, 0.5, 0.7, 1.0] {
            assert_eq!(nearest(threshold).to_string(), threshold.to_string());
        }
    }
}
