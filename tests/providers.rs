//! Execution providers: one that is asked for and missing is an error at start, and what runs where is what ONNX Runtime says.

use std::fs;

use scoregate_schemas::manifest::Output;
use serde_json::json;

use crate::support::graph::{FLOAT, Handmade};
use crate::support::{Settings, scratch};

#[test]
fn a_provider_that_is_missing_is_an_error_at_start() {
    let everywhere = |providers: &str| Settings::new().set("SCOREGATE_EXECUTION_PROVIDERS", providers);
    let own = || {
        let settings = Settings::new();
        let file = "[model.saas_churn]\nexecution_providers = \"cuda,cpu\"\n";
        fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
        settings
    };
    for (settings, name) in [
        (everywhere("cuda"), "cuda"),
        (everywhere("cuda,cpu"), "cuda"),
        (everywhere("tensorrt"), "tensorrt"),
        (everywhere("openvino"), "openvino"),
        (own(), "cuda"),
    ] {
        settings.key();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1), "{name}: {}", exit.log);
        let expected = format!("error: the execution provider {name} cannot be used with ");
        assert!(exit.log.contains(&expected), "{name}: {}", exit.log);
        assert!(
            exit.log.contains("libonnxruntime.so") && exit.log.contains("ORT_DYLIB_PATH"),
            "{}",
            exit.log
        );
        for early in ["model loaded", "version accepted"] {
            assert!(!exit.log.contains(early), "it is found before any model is touched: {}", exit.log);
        }
    }
}

#[test]
fn the_metadata_count_the_nodes_that_onnx_runtime_runs() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    // Four nodes, of which the first leads to no answer and is cut: three are left to run.
    Handmade::new("counted", &["a", "b"])
        .labels(&["no", "yes"])
        .node("Neg", &["a"], "aside", Vec::new())
        .node("Sub", &["a", "b"], "difference", Vec::new())
        .node("Erf", &["difference"], "bent", Vec::new())
        .node("Sigmoid", &["bent"], "probability", Vec::new())
        .output("probability", FLOAT)
        .golden(json!({"a": 1, "b": 1}), json!(0.5))
        .publish(
            models.path(),
            Output::Probabilities { name: "probability".into(), classes: 1, positive: 0 },
        );
    let settings = || Settings::new().models(models.path()).set("SCOREGATE_DEFAULT_MODEL", "counted");
    // Tried by this start, and remembered by the next.
    for providers in ["cpu", "cpu"] {
        let gateway = settings().set("SCOREGATE_EXECUTION_PROVIDERS", providers).start();
        let metadata = gateway.get("/v1/metadata").json();
        assert_eq!(metadata["execution_providers"], json!({"CPUExecutionProvider": 3}), "{metadata}");
    }
}
