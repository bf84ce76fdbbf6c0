//! Models from outside: a tree ensemble beside churn, and a hundred models in one gateway.

mod table;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Plan;
use super::raw::Runs;
use super::sample::Sample;
use crate::gateway::{DRAIN_LIMIT, READY, Site};
use crate::server::{Server, free_address};
use crate::workspace::{self, Workspace};
use crate::{http1, python, usage};

/// The tree ensemble's name.
pub(super) const TREES: &str = "churn_trees";
/// An everyday size: LightGBM's own number of leaves, and three times its number of trees.
const TREE_COUNT: usize = 300;
const LEAVES: usize = 31;
/// Models of one gateway.
const MODELS: usize = 100;
/// How long the first start of all of them may take, each being tried in a process of its own.
const FIRST_START_LIMIT: Duration = Duration::from_secs(600);

/// What was measured of models from outside.
#[derive(Default)]
pub(super) struct Outside {
    pub(super) single: Vec<Sample>,
    pub(super) batch: Vec<Sample>,
    /// The file as LightGBM's converter wrote it, its maps read.
    pub(super) published: Runs,
    /// The graph as it is served.
    pub(super) served: Runs,
    pub(super) first_start_ms: f64,
    pub(super) later_start_ms: Vec<f64>,
    /// Resident bytes of a gateway with churn alone.
    pub(super) resident_one: u64,
    /// Resident bytes with all models.
    pub(super) resident_all: u64,
    /// What the gateway itself says of the sessions' memory, by model.
    pub(super) reported: Vec<u64>,
}

/// Fits the tree ensemble on the gateway's own training data, and imports it.
pub(super) fn import(workspace: &Workspace, site: &Site) -> Result<()> {
    let environment = workspace.target.join("venv");
    let python = python::environment(&environment, &workspace.root.join("tests/requirements.txt"))?;
    let directory = site.directory.join("trees");
    eprintln!("fitting and importing {TREE_COUNT} trees");
    workspace::run(
        Command::new(&python)
            .arg(workspace.root.join("benches/trees.py"))
            .arg(&site.data)
            .arg(workspace.root.join("schemas/churn.json"))
            .arg(&directory)
            .args([TREE_COUNT, LEAVES].map(|count| count.to_string()))
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    )?;
    let [model, schema, golden] =
        ["model.onnx", "schema.json", "golden.jsonl"].map(|file| directory.join(file).into_os_string());
    site.import(
        workspace,
        [
            model,
            "--name".into(),
            TREES.into(),
            "--schema".into(),
            schema,
            "--golden".into(),
            golden,
            "--reference".into(),
            site.data.clone().into_os_string(),
        ],
    )
}

/// Starts a gateway with many models: nothing is known of them the first time, and all were accepted later on.
pub(super) fn many(workspace: &Workspace, site: &Site, plan: &Plan, outside: &mut Outside) -> Result<()> {
    let models = site.directory.join("many_models");
    let mut names = Vec::new();
    for at in 0..MODELS {
        let model = ["churn", TREES][at % 2];
        let name = if at < 2 { model.to_owned() } else { format!("{model}_{at}") };
        copy(&site.package(model)?, &models, &name)?;
        names.push(name);
    }
    let start = || site.serve_from(&models, workspace, free_address(0)?, "many");
    eprintln!("starting with {MODELS} models, once unknown and {} times known", plan.later_starts);
    for known in 0..=plan.later_starts {
        let mut gateway = start()?;
        // A gateway is ready before the last of many unknown models was tried: counted is until every one answers.
        let ready = gateway.wait_ready(READY, FIRST_START_LIMIT)?;
        let since = Instant::now();
        while !all_answer(&gateway, &site.key, names.len())? {
            if since.elapsed() > FIRST_START_LIMIT {
                bail!("not every one of {} models answers after {FIRST_START_LIMIT:?}", names.len());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let ready_ms = (ready + since.elapsed()).as_secs_f64() * 1e3;
        if known == 0 {
            outside.first_start_ms = ready_ms;
        } else {
            outside.later_start_ms.push(ready_ms);
        }
        outside.resident_all = usage::resident(gateway.pid())?;
        outside.reported = memory_bytes(&gateway, &site.key, &names)?;
        gateway.stop(DRAIN_LIMIT)?;
    }
    Ok(())
}

/// Whether each of `count` models has a version that answers.
fn all_answer(gateway: &Server, key: &str, count: usize) -> Result<bool> {
    let answer = gateway.ask(&http1::get(gateway.address, "/v1/models", Some(key)))?;
    let document: Value =
        serde_json::from_str(&answer).context("/v1/models answered something other than JSON")?;
    let models = document["models"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(models.iter().filter(|model| model["live"].is_string()).count() == count)
}

/// Copies a package into the repository `models` under another name.
fn copy(package: &Path, models: &Path, name: &str) -> Result<()> {
    let version = package.file_name().context("a package has a name")?;
    let (model, rollout) = (models.join(name), package.with_file_name("rollout.json"));
    let copied = model.join(version);
    let copy = || -> Result<()> {
        fs::create_dir_all(&copied)?;
        for file in fs::read_dir(package)? {
            let file = file?;
            fs::copy(file.path(), copied.join(file.file_name()))?;
        }
        let manifest = copied.join("manifest.json");
        let mut document: Value = serde_json::from_slice(&fs::read(&manifest)?)?;
        document["name"] = name.into();
        fs::write(&manifest, serde_json::to_vec(&document)?)?;
        fs::copy(&rollout, model.join("rollout.json"))?;
        Ok(())
    };
    copy().with_context(|| format!("could not copy {} to {}", package.display(), copied.display()))
}

/// What the gateway says of each model's memory; a model that does not answer is an error.
fn memory_bytes(gateway: &Server, key: &str, names: &[String]) -> Result<Vec<u64>> {
    let ask = |name: &String| {
        let path = format!("/v1/models/{name}");
        let answer = gateway.ask(&http1::get(gateway.address, &path, Some(key)))?;
        let document: Value = serde_json::from_str(&answer)
            .with_context(|| format!("{path} answered something other than JSON"))?;
        match document["versions"][0]["memory_bytes"].as_u64() {
            Some(bytes) => Ok(bytes),
            None => bail!("{path} says no memory_bytes of its one version, which was to be live: {answer}"),
        }
    };
    names.iter().map(ask).collect()
}
