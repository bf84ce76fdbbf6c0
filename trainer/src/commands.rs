//! The commands `simulate`, `fit` and `evaluate`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Parser};
use scoregate_model::metrics::{self, Bootstrap};
use scoregate_model::package::{Package, Published, Repository, check_name};
use scoregate_schemas::feature_schema::FeatureSchema;
use scoregate_schemas::manifest::{Estimate, Evaluation};
use time::OffsetDateTime;

use crate::calibrate::Method;
use crate::console::{self, Progress};
use crate::data::Table;
use crate::fit::ClassWeight;
use crate::publish::{self, Identity};
use crate::report;
use crate::simulate::{self, Simulation};
use crate::train::{self, Options};
use crate::verify::{self, Scorer, Verified};

/// Fits models for Scoregate and publishes them as packages.
#[derive(Debug, Parser)]
#[command(name = "scoregate-trainer", version, about)]
pub enum Command {
    /// Write simulated churn customers whose true probabilities are known.
    Simulate(Simulate),
    /// Fit a logistic regression, calibrate it, export it as ONNX, check it and publish it as a new version.
    Fit(Fit),
    /// Measure a published version on the rows of a CSV file.
    Evaluate(Evaluate),
}

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// Number of customers
    #[arg(long, default_value_t = 20_000)]
    rows: usize,
    /// Seed; the same one gives the same file
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// CSV file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Share of feature cells left empty, 0 to 1; to fit on them, the schema has to say what takes their place
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    missing_rate: f64,
    /// CSV file to write with each customer's true log-odds and probability
    #[arg(long, value_name = "FILE")]
    truth_out: Option<PathBuf>,
}

/// Arguments of `fit`.
#[derive(Debug, Args)]
pub struct Fit {
    /// CSV file with a header; columns that the schema does not name are ignored
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Feature schema
    #[arg(long, value_name = "FILE")]
    schema: PathBuf,
    /// Model repository
    #[arg(long, value_name = "DIR", env = "SCOREGATE_MODELS_DIR", default_value = "onnx_models")]
    models_dir: PathBuf,
    /// Name of the model [default: the schema file's stem]
    #[arg(long)]
    name: Option<String>,
    /// Name of the version [default: YYYY-MM-DD_NN]
    #[arg(long = "version", value_name = "VERSION")]
    version_name: Option<String>,
    /// Seed of the split, the bootstrap intervals and the background
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Weights of the classes in the loss
    #[arg(long, value_enum, default_value_t)]
    class_weight: ClassWeight,
    /// How probabilities are calibrated
    #[arg(long, value_enum, default_value_t)]
    calibration: Method,
    /// Inverse strength of the L2 penalty, as scikit-learn's C
    #[arg(long, default_value_t = 1.0)]
    c: f64,
    #[command(flatten)]
    runtime: Library,
}

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub struct Evaluate {
    /// Directory of a published version
    #[arg(long, value_name = "DIR")]
    package: PathBuf,
    /// CSV file with the features and the outcome
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Seed of the bootstrap intervals
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// HTML file to write the report to
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    runtime: Library,
}

/// Where ONNX Runtime is.
#[derive(Debug, Args)]
struct Library {
    /// ONNX Runtime's shared library [default: where `cargo xtask onnxruntime` puts it]
    #[arg(long, value_name = "FILE", env = "ORT_DYLIB_PATH")]
    onnxruntime: Option<PathBuf>,
}

impl Command {
    /// Does what was asked for.
    ///
    /// # Errors
    /// Whatever stopped it, as one chain of causes.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Simulate(command) => command.run(),
            Self::Fit(command) => command.run(),
            Self::Evaluate(command) => command.run(),
        }
    }
}

impl Simulate {
    fn run(self) -> anyhow::Result<()> {
        if !(0.0..=1.0).contains(&self.missing_rate) {
            bail!("--missing-rate is {}, expected a share from 0 to 1", self.missing_rate);
        }
        let create = |path: &Path| {
            File::create(path)
                .map(BufWriter::new)
                .with_context(|| format!("cannot create {}", path.display()))
        };
        let mut data = create(&self.out)?;
        let mut truth = self.truth_out.as_deref().map(create).transpose()?;
        let simulation = Simulation { rows: self.rows, seed: self.seed, missing_rate: self.missing_rate };
        simulate::write(simulation, &mut data, truth.as_mut().map(|truth| truth as &mut dyn Write))
            .with_context(|| format!("cannot write {}", self.out.display()))?;
        console::note(&format!("wrote {} customers to {}", self.rows, self.out.display()));
        Ok(())
    }
}

impl Fit {
    fn run(self) -> anyhow::Result<()> {
        // A directory of that name would be made, and no gateway would look there.
        if let Some(bucket) = self.models_dir.to_str().filter(|dir| dir.starts_with("s3://")) {
            bail!(
                "found the bucket {bucket} (SCOREGATE_MODELS_DIR), expected a directory; say --models-dir fitted, and copy the version from \
                 there into the bucket"
            );
        }
        let mut progress = Progress::start();
        let schema = read_schema(&self.schema)?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => self.schema.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let repository = Repository::new(self.models_dir);
        // What can be refused at once is refused before the work.
        check_name("model", &name)?;
        if let Some(version) = &self.version_name {
            check_name("version", version)?;
            let directory = repository.directory(&name, version);
            if directory.exists() {
                bail!(
                    "{} exists already, and versions never change; choose another --version",
                    directory.display()
                );
            }
        }
        let runtime = verify::load_runtime(self.runtime.onnxruntime.as_deref())?;
        let table = Table::read(&self.data, &schema)
            .with_context(|| format!("{} does not fit {}", self.data.display(), self.schema.display()))?;
        progress.done("read", &format!("{} rows of {}", table.rows(), self.data.display()));
        if !table.ignored.is_empty() {
            progress.remark(&format!(
                "ignoring columns that the schema does not name: {}",
                table.ignored.join(", ")
            ));
        }
        let options = Options {
            seed: self.seed,
            class_weight: self.class_weight,
            calibration: self.calibration,
            c: self.c,
        };
        let trained = train::train(&table, &schema, options, &mut progress)?;

        let test = &trained.folds.test;
        let Verified { served, worst } = verify::verify(&runtime, &trained, &table)?;
        progress.done(
            "verify",
            &format!("ONNX Runtime differs by at most {worst:.1e} on {} test rows", test.len()),
        );

        let outcomes: Vec<bool> = test.iter().map(|&row| table.positives[row]).collect();
        let bootstrap = Bootstrap { resamples: metrics::RESAMPLES, seed: self.seed };
        let evaluation = metrics::evaluate(&served, &outcomes, trained.schema.threshold, bootstrap)?;
        progress.done("evaluate", &format!("{} bootstrap resamples", metrics::RESAMPLES));
        print_evaluation(&evaluation);

        let identity = Identity {
            name,
            version: self.version_name,
            now: OffsetDateTime::now_utc().truncate_to_second(),
        };
        let importance = verify::importance(&runtime, &trained, &table)?;
        let Published { directory, unfinished } =
            publish::publish(&repository, &identity, &table, &trained, &evaluation, &served, importance)?;
        progress.done("publish", &format!("{} with {}", directory.display(), publish::REPORT));
        if let Some(error) = unfinished {
            console::note(&format!(
                "the version is published, but not all that comes after that was done: {:#}",
                anyhow::Error::from(error)
            ));
        }
        console::result(&directory.display().to_string())?;
        Ok(())
    }
}

impl Evaluate {
    fn run(self) -> anyhow::Result<()> {
        // The path's last two names are the model's and the version's, which "." and ".." would hide.
        let directory = std::path::absolute(&self.package)
            .with_context(|| format!("cannot find {}", self.package.display()))?;
        let package = Package::read(&directory)?;
        let runtime = verify::load_runtime(self.runtime.onnxruntime.as_deref())?;
        let table = Table::read(&self.data, &package.schema)
            .with_context(|| format!("{} does not fit the package's schema", self.data.display()))?;
        let manifest = &package.manifest;
        let mut scorer =
            Scorer::open(&runtime, &package.graph, &package.schema, &manifest.bindings, &manifest.output)?;
        let rows: Vec<usize> = (0..table.rows()).collect();
        let served = scorer.probabilities(&table, &rows)?;
        let bootstrap = Bootstrap { resamples: metrics::RESAMPLES, seed: self.seed };
        let evaluation = metrics::evaluate(&served, &table.positives, manifest.threshold, bootstrap)?;
        print_evaluation(&evaluation);
        if let Some(path) = &self.report {
            let importance = package.importance.as_ref();
            let html = report::html(manifest, &evaluation, &served, &table.positives, importance, None)?;
            std::fs::write(path, html).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let text = serde_json::to_string_pretty(&evaluation).context("the metrics cannot be written")?;
        console::result(&text)?;
        Ok(())
    }
}

fn read_schema(path: &Path) -> anyhow::Result<FeatureSchema> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    FeatureSchema::parse(&text).with_context(|| path.display().to_string())
}

fn print_evaluation(evaluation: &Evaluation) {
    console::note(&format!(
        "{} rows, {} positive; 95 % intervals by bootstrap",
        evaluation.rows, evaluation.positives
    ));
    for (name, Estimate { value, lower, upper }) in report::metrics(evaluation) {
        console::note(&format!("  {name:<28} {value:>8.4}  [{lower:.4}, {upper:.4}]"));
    }
    let confusion = &evaluation.confusion;
    console::note(&format!("  at the threshold of {}:", confusion.threshold));
    for (name, Estimate { value, lower, upper }) in report::counts(confusion) {
        console::note(&format!("  {name:<28} {value:>8.0}  [{lower:.0}, {upper:.0}]"));
    }
}
