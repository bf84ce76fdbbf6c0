//! Which model versions exist and are loaded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use scoregate_model::acceptance::{self, Refusal};
use scoregate_model::features::{FeatureRows, RowReader};
use scoregate_model::package::{self, Package, Repository};
use scoregate_model::runtime::{self, Runtime, Scores, Session, SessionOptions};
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::Manifest;

use crate::rollout;

/// The models that are served, by name.
#[derive(Debug, Default)]
pub struct Registry {
    models: BTreeMap<String, Arc<Version>>,
}

/// A model version, loaded, checked and warm.
#[derive(Debug)]
pub struct Version {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its schema.
    pub schema: FeatureSchema,
    /// Reads rows for it.
    pub reader: RowReader,
    /// `sha256:…` of the graph.
    pub digest: String,
    /// What one row, or one more row of many, costs on this machine.
    pub cost: Cost,
    /// The nodes that run, by execution provider.
    pub execution_providers: BTreeMap<String, usize>,
    sessions: Mutex<Vec<Session>>,
}

/// What scoring costs, measured when the version was warmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// A run of one row.
    pub run: Duration,
    /// Each row of a large run.
    pub row: Duration,
}

/// Why a repository cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository cannot be listed.
    #[error(transparent)]
    Package(#[from] package::Error),
    /// There is no model in it.
    #[error(
        "no model is published in {directory}; train one with `scoregate-trainer fit --data churn.csv --schema \
         schemas/churn.json --models-dir {directory}`, or set SCOREGATE_MODELS_DIR"
    )]
    NoModel {
        /// The repository.
        directory: String,
    },
    /// None of its models can be served.
    #[error("none of the models can be served:{}", .0.iter().map(|(model, why)| format!("\n  {model}: {why}")).collect::<String>())]
    NoneServable(Vec<(String, String)>),
}

/// Why one version cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The package is not whole.
    #[error(transparent)]
    Package(#[from] package::Error),
    /// Nothing says which version is live.
    #[error(transparent)]
    Rollout(#[from] rollout::Error),
    /// The graph was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Registry {
    /// Loads the live version of every model in `repository`. A model that cannot be served is left out and logged.
    ///
    /// # Errors
    /// [`Error`] if that leaves no model.
    pub fn load(
        repository: &Repository,
        runtime: &Runtime,
        options: &SessionOptions,
        sessions: usize,
    ) -> Result<Self, Error> {
        let listed = repository.list()?;
        if listed.is_empty() {
            return Err(Error::NoModel { directory: repository.root().display().to_string() });
        }
        let mut models = BTreeMap::new();
        let mut refused = Vec::new();
        for (model, versions) in listed {
            let started = Instant::now();
            let load =
                |live: &str| Version::load(&repository.directory(&model, live), runtime, options, sessions);
            let live = rollout::live(repository, &model, &versions).map_err(LoadError::from);
            match live.and_then(|live| load(&live)) {
                Ok((version, golden)) => {
                    tracing::info!(
                        model.name = model,
                        model.version = version.manifest.version,
                        model.digest = version.digest,
                        golden.rows = golden.rows,
                        golden.worst = golden.worst,
                        run_us = version.cost.run.as_secs_f64() * 1e6,
                        row_ns = version.cost.row.as_secs_f64() * 1e9,
                        duration_ms = started.elapsed().as_secs_f64() * 1e3,
                        "model loaded"
                    );
                    models.insert(model, Arc::new(version));
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(model.name = model, error, "model not served");
                    refused.push((model, error));
                }
            }
        }
        if models.is_empty() { Err(Error::NoneServable(refused)) } else { Ok(Self { models }) }
    }

    /// The version of `model` that answers.
    pub fn live(&self, model: &str) -> Option<&Arc<Version>> {
        self.models.get(model)
    }
}

impl Version {
    fn load(
        directory: &std::path::Path,
        runtime: &Runtime,
        options: &SessionOptions,
        sessions: usize,
    ) -> Result<(Self, acceptance::Golden), LoadError> {
        let package = Package::read(directory)?;
        let Package { manifest, schema, graph, .. } = &package;
        let reader = RowReader::new(schema, &manifest.bindings);
        let open = || runtime.session(graph, &reader, &manifest.bindings, &manifest.output, options);
        let mut first = open().map_err(Refusal::Runtime)?;
        let golden = acceptance::check_golden(&package, &reader, &mut first)?;
        let cost = measure(&mut first, &reader, &package).map_err(Refusal::Runtime)?;
        let nodes = first.nodes();
        let mut pool = vec![first];
        for _ in 1..sessions {
            let mut session = open().map_err(Refusal::Runtime)?;
            warm(&mut session, &reader, &package).map_err(Refusal::Runtime)?;
            pool.push(session);
        }
        let digest = package.digest().to_string();
        let version = Self {
            reader,
            digest,
            cost,
            execution_providers: BTreeMap::from([("CPUExecutionProvider".into(), nodes)]),
            sessions: Mutex::new(pool),
            manifest: package.manifest,
            schema: package.schema,
        };
        Ok((version, golden))
    }

    /// Scores checked rows on a session of the pool.
    ///
    /// # Errors
    /// [`runtime::Error`] if the run fails or answers no probabilities.
    pub fn run(&self, rows: &FeatureRows) -> Result<Scores, runtime::Error> {
        self.session().run(rows)
    }

    fn session(&self) -> Lease<'_> {
        let mut pool = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        // There are as many sessions as threads that score, so that one is always free.
        Lease { session: Some(pool.pop().expect("a session per scoring thread")), pool: &self.sessions }
    }
}

/// A session on loan from its pool; goes back when dropped, after a panic too.
struct Lease<'p> {
    session: Option<Session>,
    pool: &'p Mutex<Vec<Session>>,
}

impl Lease<'_> {
    fn run(&mut self, rows: &FeatureRows) -> Result<Scores, runtime::Error> {
        self.session.as_mut().expect("a lease holds its session until it is dropped").run(rows)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).extend(self.session.take());
    }
}

/// Rows that resemble requests: the golden ones.
fn sample(reader: &RowReader, package: &Package, count: usize) -> Option<FeatureRows> {
    let rows = package.golden.iter().cycle().take(count.min(package.golden.len() * 10));
    let rows: Vec<_> = rows.map(|row| serde_json::Value::Object(row.features.clone())).collect();
    if rows.is_empty() {
        return None;
    }
    let text = serde_json::Value::Array(rows).to_string();
    reader.json_rows(text.as_bytes(), usize::MAX).ok().map(|read| read.rows)
}

fn warm(session: &mut Session, reader: &RowReader, package: &Package) -> Result<(), runtime::Error> {
    for count in [1, 1, 1_000] {
        if let Some(rows) = sample(reader, package, count) {
            session.run(&rows)?;
        }
    }
    Ok(())
}

/// The cost of one row and of each row of many: the fastest of a few runs, which noise disturbs least.
fn measure(session: &mut Session, reader: &RowReader, package: &Package) -> Result<Cost, runtime::Error> {
    let mut fastest = |count: usize, runs: u32| -> Result<Option<Duration>, runtime::Error> {
        let Some(rows) = sample(reader, package, count) else { return Ok(None) };
        let mut best = Duration::MAX;
        for _ in 0..runs {
            let started = Instant::now();
            session.run(&rows)?;
            best = best.min(started.elapsed());
        }
        Ok(Some(best / u32::try_from(rows.len().max(1)).unwrap_or(1)))
    };
    // A version without golden rows is taken for a slow one until something is known of it.
    let unknown = Duration::from_millis(1);
    Ok(Cost { run: fastest(1, 20)?.unwrap_or(unknown), row: fastest(1_000, 3)?.unwrap_or(unknown) })
}
