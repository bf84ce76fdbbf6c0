//! A training run: table → folds → encoding → coefficients → calibration → graph.

use std::collections::BTreeMap;

use anyhow::Context;
use scoregate_schemas::feature_schema::{FeatureSchema, Kind};
use scoregate_schemas::manifest::{Bindings, Output, Training};
use serde_json::{Value, json};

use crate::calibrate::{Calibration, Method};
use crate::console::Progress;
use crate::data::{Table, bindings};
use crate::encode::{Encoder, Encoding};
use crate::export::{self, PROBABILITIES};
use crate::fit::{self, ClassWeight, FittedLogisticRegression};
use crate::minimise::Convergence;
use crate::pipeline::Pipeline;
use crate::split::Folds;

/// What a run may choose.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Seed of the split, the bootstrap and the background.
    pub seed: u64,
    /// Weights of the classes in the loss.
    pub class_weight: ClassWeight,
    /// How probabilities are calibrated.
    pub calibration: Method,
    /// Inverse strength of the L2 penalty, as scikit-learn's `C`.
    pub c: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 42, class_weight: ClassWeight::Balanced, calibration: Method::Platt, c: 1.0 }
    }
}

/// A finished run.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The schema with learned categories.
    pub schema: FeatureSchema,
    /// Which rows served which purpose.
    pub folds: Folds,
    /// Names of the design matrix's columns: `feature`, or `feature=category`.
    pub columns: Vec<String>,
    /// Coefficients of these columns.
    pub fitted: FittedLogisticRegression,
    /// How well Platt's sigmoid converged, where it was fitted.
    pub calibration_convergence: Option<Convergence>,
    /// The whole model in double precision.
    pub pipeline: Pipeline,
    /// The whole model as an ONNX file.
    pub graph: Vec<u8>,
    /// How features reach the graph.
    pub bindings: Bindings,
    /// Where the graph's answer is.
    pub output: Output,
    /// What the manifest says of the run.
    pub training: Training,
}

/// Fits and exports a model on `table`, read by `schema`.
///
/// The same table, schema and options give the same graph, byte for byte.
///
/// # Errors
/// If a class has too few rows, the features make too many columns, or the optimiser fails. Not to converge is no error: it is
/// remarked on and recorded.
pub fn train(
    table: &Table,
    schema: &FeatureSchema,
    options: Options,
    progress: &mut Progress,
) -> anyhow::Result<Trained> {
    let labels = schema.labels.as_ref().map_or(2, Vec::len);
    anyhow::ensure!(labels == 2, "the schema has {labels} labels, expected two: [negative, positive]");
    let folds = Folds::stratified(&table.positives, options.seed)?;
    let sizes = [folds.train.len(), folds.calibration.len(), folds.test.len()];
    progress
        .done("split", &format!("{} training, {} calibration, {} test rows", sizes[0], sizes[1], sizes[2]));

    let encoding = Encoding::learn(table, &folds.train)?;
    let schema = with_learned_categories(schema, table, &encoding)?;
    let matrix = encoding.transform(table, &folds.train);
    let outcomes = |rows: &[usize]| rows.iter().map(|&row| table.positives[row]).collect::<Vec<bool>>();
    progress.done("encode", &format!("{} features, {} columns", table.features.len(), encoding.columns()));

    let fitted = fit::fit(matrix, &outcomes(&folds.train), options.class_weight, options.c)
        .context("fitting failed")?;
    progress.done("fit", &convergence(options.class_weight, &fitted.convergence));
    if !fitted.convergence.converged {
        progress.remark("warning: the fit did not converge; a smaller --c makes it easier");
    }

    let mut pipeline = Pipeline::new(table, &encoding, fitted.coefficients.view(), fitted.intercept);
    let log_odds = pipeline.log_odds(table, &folds.calibration);
    let (calibration, calibration_convergence) =
        Calibration::fit(options.calibration, &log_odds, &outcomes(&folds.calibration))
            .context("calibration failed")?;
    progress.done("calibrate", &describe(&calibration));
    if calibration_convergence.is_some_and(|convergence| !convergence.converged) {
        progress.remark("warning: Platt scaling did not converge");
    }
    pipeline.calibration = calibration;

    let name = schema.document().get("title").and_then(Value::as_str).unwrap_or("model");
    let graph = export::export(&pipeline, schema.threshold, name);
    progress.done("export", &format!("{} bytes of ONNX, opset {}", graph.len(), export::OPSET));

    let training = Training {
        trainer: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).into(),
        rows: table.rows(),
        folds: sizes,
        seed: options.seed,
        data_digest: table.digest.clone(),
        parameters: parameters(options, &fitted, &pipeline.calibration, calibration_convergence),
    };
    Ok(Trained {
        bindings: bindings(&schema),
        output: Output::Probabilities { name: PROBABILITIES.into(), classes: 2, positive: 1 },
        columns: encoding.column_names(table),
        schema,
        folds,
        fitted,
        calibration_convergence,
        pipeline,
        graph,
        training,
    })
}

/// Writes what the training fold taught into the schema, for features whose categories it does not list.
fn with_learned_categories(
    schema: &FeatureSchema,
    table: &Table,
    encoding: &Encoding,
) -> anyhow::Result<FeatureSchema> {
    let mut schema = schema.clone();
    for (feature, encoder) in std::iter::zip(&table.features, &encoding.encoders) {
        if let (Kind::Category { values: None }, Encoder::OneHot { categories }) =
            (&feature.field.kind, encoder)
        {
            schema = schema
                .with_categories(&feature.field.name, categories)
                .with_context(|| format!("the categories of {} do not fit the schema", feature.field.name))?;
        }
    }
    Ok(schema)
}

fn convergence(class_weight: ClassWeight, convergence: &Convergence) -> String {
    let Convergence { gradient, lbfgs_iterations, newton_steps, .. } = convergence;
    let start = match class_weight {
        ClassWeight::None => "linfa-logistic".to_owned(),
        ClassWeight::Balanced => format!("{lbfgs_iterations} L-BFGS iterations"),
    };
    format!("gradient {gradient:.1e} after {start} and {newton_steps} Newton steps")
}

fn describe(calibration: &Calibration) -> String {
    match calibration {
        Calibration::None => "none".into(),
        Calibration::Platt { slope, intercept } => {
            format!("Platt, slope {slope:.4}, intercept {intercept:.4}")
        }
        Calibration::Isotonic(curve) => format!("isotonic, {} knots", curve.knots.len()),
    }
}

fn parameters(
    options: Options,
    fitted: &FittedLogisticRegression,
    calibration: &Calibration,
    calibrated: Option<Convergence>,
) -> BTreeMap<String, Value> {
    let mut parameters = BTreeMap::from([
        ("algorithm".to_owned(), json!("logistic_regression")),
        ("c".to_owned(), json!(options.c)),
        (
            "converged".to_owned(),
            json!(fitted.convergence.converged && calibrated.is_none_or(|fit| fit.converged)),
        ),
        ("gradient".to_owned(), json!(fitted.convergence.gradient)),
        ("newton_steps".to_owned(), json!(fitted.convergence.newton_steps)),
    ]);
    let class_weight = match options.class_weight {
        ClassWeight::None => "none",
        ClassWeight::Balanced => "balanced",
    };
    parameters.insert("class_weight".into(), json!(class_weight));
    let method = match calibration {
        Calibration::None => "none",
        Calibration::Platt { slope, intercept } => {
            parameters.insert("platt_slope".into(), json!(slope));
            parameters.insert("platt_intercept".into(), json!(intercept));
            "platt"
        }
        Calibration::Isotonic(curve) => {
            parameters.insert("isotonic_knots".into(), json!(curve.knots.len()));
            "isotonic"
        }
    };
    parameters.insert("calibration".into(), json!(method));
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{self, Simulation};
    use scoregate_model::package::digest_of;

    fn trained(missing_rate: f64, options: Options) -> anyhow::Result<Trained> {
        let mut schema: Value = serde_json::from_str(include_str!("../../schemas/churn.json"))?;
        for (name, value) in [
            ("tenure_days", json!(300)),
            ("monthly_spend", json!(30)),
            ("support_tickets_30d", json!(0)),
            ("plan_tier", json!("basic")),
            ("country", json!("US")),
            ("last_login_hours", json!(30)),
        ] {
            schema["properties"][name]["x-scoregate"]["missing"] = json!({ "impute": value });
        }
        let schema = FeatureSchema::from_document(schema)?;
        let mut text = Vec::new();
        simulate::write(Simulation { rows: 3_000, seed: 1, missing_rate }, &mut text, None)?;
        train(&Table::parse(&text, &schema)?, &schema, options, &mut Progress::quiet())
    }

    #[test]
    fn the_same_run_gives_the_same_bytes_and_another_seed_others() {
        let [first, again, other] =
            [42, 42, 43].map(|seed| trained(0.0, Options { seed, ..Options::default() }).unwrap());
        assert_eq!(digest_of(&first.graph), digest_of(&again.graph));
        assert_ne!(digest_of(&first.graph), digest_of(&other.graph));
    }

    #[test]
    fn learned_categories_are_written_into_the_schema() {
        let trained = trained(0.1, Options { calibration: Method::Isotonic, ..Options::default() }).unwrap();
        let country = &trained.schema.document()["properties"]["country"];
        let learned: Vec<&str> =
            country["enum"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(learned.len() > 15 && learned.is_sorted() && learned.contains(&"US"), "{learned:?}");
        assert_eq!(country["x-scoregate"], json!({"unknown": "pass", "missing": {"impute": "US"}}));
        assert!(!learned.contains(&""), "a missing country is imputed, not learned");
    }

    /// The simulated truth, per standard deviation or category, is what the coefficients estimate.
    #[test]
    fn coefficients_have_the_signs_of_the_truth() {
        let trained = trained(0.0, Options::default()).unwrap();
        let coefficient = |name: &str| {
            let at = trained.columns.iter().position(|column| column == name).unwrap();
            trained.fitted.coefficients[at]
        };
        assert!(coefficient("tenure_days") < -0.3 && coefficient("last_login_hours") > 0.1);
        assert!(coefficient("support_tickets_30d") > 0.2);
        assert!(coefficient("plan_tier=basic") > coefficient("plan_tier=business"));
    }
}
