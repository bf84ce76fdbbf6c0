//! A model that answers one number, whatever it is asked: which of its versions has answered can be told by that.

use std::fs;
use std::path::{Path, PathBuf};

use scoregate_schemas::manifest::Output;
use scoregate_schemas::onnx::AttributeProto;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::graph::{FLOAT, Handmade};
use super::{Gateway, scratch};

/// A `Constant` node's number.
pub(crate) fn number(value: f32) -> AttributeProto {
    /// `AttributeProto.AttributeType.FLOAT`
    const FLOAT: i32 = 1;
    AttributeProto {
        name: Some("value_float".into()),
        r#type: Some(FLOAT),
        f: Some(value),
        ..AttributeProto::default()
    }
}

/// A version that answers `probability`, whatever it is asked.
pub(crate) fn constant(model: &str, version: &str, probability: f32) -> Handmade {
    Handmade::new(model, &["a"])
        .version(version)
        .labels(&["no", "yes"])
        .node("Constant", &[], "score", vec![number(probability)])
        .node("Sub", &["a", "a"], "nothing", Vec::new())
        .node("Add", &["nothing", "score"], "probability", Vec::new())
        .output("probability", FLOAT)
        .golden(json!({"a": 0.5}), json!(f64::from(probability)))
}

/// What its answer is.
pub(crate) fn probability() -> Output {
    Output::Probabilities { name: "probability".into(), classes: 1, positive: 0 }
}

/// Publishes one in the directory `models`, and says where it is.
pub(crate) fn publish(models: &Path, model: &str, version: &str, score: f32) -> PathBuf {
    constant(model, version, score).publish(models, probability());
    models.join(model).join(version)
}

/// The version and score that a model answers with, or the code of its problem.
pub(crate) fn ask(gateway: &Gateway, model: &str) -> Result<(String, f32), String> {
    let answer = gateway.post(&format!("/v1/models/{model}/predict"), r#"{"a":0.5}"#);
    if answer.status != 200 {
        return Err(answer.code());
    }
    Ok(version_and_score(model, &answer.json()))
}

/// The version and score in an answer of a model.
pub(crate) fn version_and_score(model: &str, answer: &Value) -> (String, f32) {
    #[expect(clippy::cast_possible_truncation, reason = "it was a float32")]
    let score = answer[format!("{model}_probability")].as_f64().unwrap() as f32;
    (answer["model_version"].as_str().unwrap().into(), score)
}

/// Files from which `scoregate import` makes a version.
#[derive(Debug)]
pub(crate) struct Importable {
    directory: TempDir,
    model: String,
}

impl Importable {
    /// Of `model`, which answers `probability`.
    pub(crate) fn new(model: &str, probability: f32) -> Self {
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        let package = publish(directory.path(), model, "1", probability);
        let manifest: Value =
            serde_json::from_slice(&fs::read(package.join("manifest.json")).unwrap()).unwrap();
        fs::write(package.join("schema.json"), manifest["schema"].to_string()).unwrap();
        let bindings = json!({"bindings": manifest["bindings"], "output": manifest["output"]});
        fs::write(package.join("bindings.json"), bindings.to_string()).unwrap();
        Self { directory, model: model.into() }
    }

    /// The arguments of `scoregate` that publish it as `version`.
    pub(crate) fn arguments(&self, version: &str) -> Vec<String> {
        let file = |name: &str| {
            let path = self.directory.path().join(&self.model).join("1").join(name);
            path.to_str().unwrap().to_owned()
        };
        let graph = file("model.onnx");
        let (schema, golden, bindings) = (file("schema.json"), file("golden.jsonl"), file("bindings.json"));
        let words = [
            "import",
            &graph,
            "--name",
            &self.model,
            "--version",
            version,
            "--schema",
            &schema,
            "--golden",
            &golden,
            "--bindings",
            &bindings,
        ];
        words.iter().map(ToString::to_string).collect()
    }
}
