//! A model that answers one number, whatever it is asked: which of its versions has answered can be told by that.

use std::fs;
use std::path::{Path, PathBuf};

use scoregate_schemas::manifest::Output;
use scoregate_schemas::onnx::AttributeProto;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::graph::{FLOAT, Handmade};
use super::{Gateway, scratch};

/// The version `version` of `model`, which answers `probability`, and what its answer is.
fn constant(model: &str, version: &str, probability: f32) -> (Handmade, Output) {
    /// `AttributeProto.AttributeType.FLOAT`
    const KIND: i32 = 1;
    let number = AttributeProto {
        name: Some("value_float".into()),
        r#type: Some(KIND),
        f: Some(probability),
        ..AttributeProto::default()
    };
    let graph = Handmade::new(model, &["a"])
        .version(version)
        .labels(&["no", "yes"])
        .node("Constant", &[], "score", vec![number])
        .node("Sub", &["a", "a"], "nothing", Vec::new())
        .node("Add", &["nothing", "score"], "probability", Vec::new())
        .output("probability", FLOAT)
        .golden(json!({"a": 0.5}), json!(f64::from(probability)));
    (graph, Output::Probabilities { name: "probability".into(), classes: 1, positive: 0 })
}

/// Publishes a version in the directory `models`, and says where it is.
pub(crate) fn publish_constant(models: &Path, model: &str, version: &str, probability: f32) -> PathBuf {
    let (graph, output) = constant(model, version, probability);
    graph.publish(models, output);
    models.join(model).join(version)
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
        let package = publish_constant(directory.path(), model, "1", probability);
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

/// The version and the number that `model` answers with, or the code of its problem.
pub(crate) fn ask_constant(gateway: &Gateway, model: &str) -> Result<(String, f32), String> {
    let answer = gateway.post(&format!("/v1/models/{model}/predict"), r#"{"a":0.5}"#);
    if answer.status != 200 {
        return Err(answer.code());
    }
    let answer = answer.json();
    #[expect(clippy::cast_possible_truncation, reason = "it was a float32")]
    let score = answer[format!("{model}_probability")].as_f64().unwrap() as f32;
    Ok((answer["model_version"].as_str().unwrap().into(), score))
}
