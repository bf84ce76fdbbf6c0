//! Files that tests share: freshly fitted models, and what `cargo xtask test` puts beside cargo's own output.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Cargo's target directory.
pub(crate) fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// A directory of this run of the tests. Those of earlier runs are cleared away.
pub(crate) fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for entry in fs::read_dir(parent).unwrap().filter_map(Result::ok) {
            let name = entry.file_name().into_string().unwrap_or_default();
            let Some(process) = name.strip_prefix("run-") else { continue };
            if !Path::new("/proc").join(process).exists() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let own = parent.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&own).unwrap();
        own
    })
}

/// The interpreter of the virtual environment with the pinned Python packages.
pub(crate) fn python() -> PathBuf {
    provided("venv/bin/python")
}

/// Node.
pub(crate) fn node_program() -> PathBuf {
    provided("node/node")
}

/// The directory with the pinned packages for Node.
pub(crate) fn node_packages() -> PathBuf {
    provided("node/node_modules").parent().unwrap().into()
}

pub(super) fn provided(name: &str) -> PathBuf {
    let path = target().join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask test`, which fetches what the tests need",
        path.display()
    );
    path
}

/// The trainer's own binary, which cargo builds beside the gateway's.
pub(crate) fn trainer_binary() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_scoregate")).with_file_name("scoregate-trainer");
    assert!(path.exists(), "{} is missing: run `cargo xtask test`, which builds it", path.display());
    path
}

/// Two models, fitted once per run of the tests.
#[derive(Debug)]
pub(crate) struct Repository {
    /// The model repository: `churn` and `saas_churn`.
    pub(crate) models: PathBuf,
    /// The simulated customers that `churn` was fitted on.
    pub(crate) churn_csv: PathBuf,
}

/// The version of both models.
const VERSION: &str = "2026-05-17_01";

impl Repository {
    /// Where the one version of `model` is.
    pub(crate) fn version(&self, model: &str) -> PathBuf {
        self.models.join(model).join(VERSION)
    }

    /// A copy of `model`'s version in a repository of its own, to be altered.
    pub(crate) fn copy_of(&self, model: &str) -> (tempfile::TempDir, PathBuf) {
        let copy = tempfile::tempdir_in(scratch()).unwrap();
        let version = copy.path().join(model).join(VERSION);
        fs::create_dir_all(&version).unwrap();
        for file in fs::read_dir(self.version(model)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), version.join(file.file_name())).unwrap();
        }
        (copy, version)
    }
}

/// Fits both models when it is first asked.
pub(crate) fn repository() -> &'static Repository {
    static REPOSITORY: OnceLock<Repository> = OnceLock::new();
    REPOSITORY.get_or_init(|| {
        // The trainer and the gateway find it by themselves; what is missing is said once and plainly here.
        provided("onnxruntime/libonnxruntime.so");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (models, churn_csv) = (scratch().join("models"), scratch().join("churn.csv"));
        train(&["simulate", "--rows", "4000", "--seed", "42", "--out", text(&churn_csv)]);
        for (csv, schema) in [
            (&churn_csv, "schemas/churn.json"),
            (&root.join("tests/data/saas_churn.csv"), "schemas/saas_churn.json"),
        ] {
            let schema = root.join(schema);
            train(&[
                "fit",
                "--data",
                text(csv),
                "--schema",
                text(&schema),
                "--models-dir",
                text(&models),
                "--version",
                VERSION,
            ]);
        }
        Repository { models, churn_csv }
    })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command of the trainer, which takes its own process: ONNX Runtime can be loaded once per process only.
fn train(arguments: &[&str]) {
    let output = Command::new(trainer_binary()).args(arguments).env_clear().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
