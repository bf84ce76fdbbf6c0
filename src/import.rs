//! An ONNX file from outside → a published version, examined in a child process first: `scoregate import`, and what is published over
//! HTTP.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use scoregate_model::acceptance::Golden;
use scoregate_model::acceptance::child::Death;
use scoregate_model::import::{Examined, Live, Overrides, Request, TaskName, one_number};
use scoregate_model::package::{self, GOLDEN, MODEL, REFERENCE, Repository, read_manifest};
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::compatibility::{Difference, breaking};
use scoregate_schemas::manifest::{
    self, Bindings, Link, Manifest, Metrics, Output, Source, SourceKind, Task,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::{self, Actor, Event};
use crate::files;
use crate::repository::Store;
use crate::rollout;
use crate::sandbox::{Finding, ImportJob, Job, Reasons, Sandbox};

/// How often another name is tried, where one that is given by the day is taken meanwhile.
const NAMES: usize = 100;

/// How far answers may be from golden rows unless somebody says it.
pub const TOLERANCE: f64 = 1e-5;

/// What becomes a version, and what it is called.
#[derive(Debug, Args)]
#[group(skip)] // The subcommand has a group of this name.
pub struct Import {
    /// The ONNX file.
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// What the model is called.
    #[arg(long)]
    pub name: String,
    /// The feature schema (JSON Schema).
    #[arg(long, value_name = "FILE")]
    pub schema: PathBuf,
    /// The version's name [default: the date and a number].
    #[arg(long)]
    pub version: Option<String>,
    /// Rows that the model was trained on, as CSV, the target among the columns.
    #[arg(long, value_name = "CSV")]
    pub reference: Option<PathBuf>,
    /// Rows with the answers of the model's own library, one JSON object per line.
    #[arg(long, value_name = "JSONL")]
    pub golden: Option<PathBuf>,
    /// How far answers may be from the golden rows': absolute for probabilities, relative for regression.
    #[arg(long, default_value_t = TOLERANCE, value_parser = tolerance)]
    pub tolerance: f64,
    /// What tells the rest, where the schema is the live version's.
    #[arg(skip)]
    pub live: Option<Live>,
}

/// What to import, and what is said about it rather than inferred.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The files and names.
    #[command(flatten)]
    pub import: Import,
    /// Makes the version live, whatever was.
    #[arg(long)]
    pub promote: bool,
    /// Makes it live even if it refuses rows that the live version takes, or answers otherwise.
    #[arg(long, requires = "promote")]
    pub breaking: bool,
    /// What is said of the graph.
    #[command(flatten)]
    said: Said,
    /// A file that says bindings, output or both as a manifest does: `{"bindings": …, "output": …}`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input", "output", "link", "task", "positive"])]
    bindings: Option<PathBuf>,
    /// Prints the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What is said of a graph rather than inferred.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub struct Said {
    /// The features that a graph input takes, in the order of its columns.
    #[arg(long, value_name = "NAME=FEATURE,…", value_parser = input)]
    input: Vec<(String, Vec<String>)>,
    /// The graph output that holds the answer, or one per class.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    output: Vec<String>,
    /// What turns the output into probabilities.
    #[arg(long)]
    link: Option<LinkArg>,
    /// What is answered.
    #[arg(long)]
    task: Option<TaskArg>,
    /// The positive class, as the graph names it, or its column.
    #[arg(long, value_name = "CLASS")]
    positive: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LinkArg {
    None,
    Sigmoid,
    Softmax,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TaskArg {
    Binary,
    Multiclass,
    Regression,
}

/// What the file of `--bindings` holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    bindings: Option<Bindings>,
    output: Option<Output>,
}

/// Reads a tolerance.
///
/// # Errors
/// What was expected.
pub fn tolerance(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "a number from 0 to 1, such as 1e-5".into())
}

impl Said {
    /// What each flag may say, by its name.
    pub const NAMES: [&str; 5] = ["input", "output", "link", "task", "positive"];

    /// Reads the same from texts that are called as the flags are; of several inputs each has a line.
    ///
    /// # Errors
    /// What was expected of which.
    pub fn read<'t>(text: impl Fn(&str) -> Option<&'t str>) -> Result<Self, String> {
        let text = |name: &str| text(name).map(str::trim).filter(|text| !text.is_empty());
        fn one_of<T: ValueEnum>(name: &str, text: Option<&str>) -> Result<Option<T>, String> {
            let expected = |_| {
                let known = T::value_variants().iter().filter_map(T::to_possible_value);
                let known: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
                format!("the part {name} is none of {}", known.join(", "))
            };
            text.map(|text| T::from_str(text, false).map_err(expected)).transpose()
        }
        let inputs = text("input").into_iter().flat_map(str::lines).map(str::trim);
        let inputs = inputs.filter(|line| !line.is_empty()).map(input).collect::<Result<_, _>>();
        Ok(Self {
            input: inputs.map_err(|expected| format!("the part input is not {expected}"))?,
            output: text("output")
                .map(|names| names.split(',').map(Into::into).collect())
                .unwrap_or_default(),
            link: one_of("link", text("link"))?,
            task: one_of("task", text("task"))?,
            positive: text("positive").map(Into::into),
        })
    }

    /// The same with the `bindings` and `output` of a file.
    pub fn overrides(
        self,
        (bindings, output): (Option<Bindings>, Option<Output>),
        tolerance: f64,
    ) -> Overrides {
        Overrides {
            inputs: self.input,
            outputs: self.output,
            link: self.link.map(|link| match link {
                LinkArg::None => None,
                LinkArg::Sigmoid => Some(Link::Sigmoid),
                LinkArg::Softmax => Some(Link::Softmax),
            }),
            task: self.task.map(|task| match task {
                TaskArg::Binary => TaskName::Binary,
                TaskArg::Multiclass => TaskName::Multiclass,
                TaskArg::Regression => TaskName::Regression,
            }),
            positive: self.positive,
            bindings,
            output,
            tolerance,
        }
    }
}

fn input(text: &str) -> Result<(String, Vec<String>), String> {
    // Graph inputs may be called anything; features are behind the last equals sign.
    let (name, features) = text.rsplit_once('=').ok_or("NAME=FEATURE,FEATURE,…")?;
    Ok((name.into(), features.split(',').map(Into::into).collect()))
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model, its schema, reference or golden rows were refused.
    #[error("{message}")]
    Refused {
        /// The stable code.
        code: String,
        /// A sentence for clients: without paths, and without text of ONNX Runtime.
        reason: String,
        /// All of it: what was found, what was expected, what to do.
        message: String,
    },
    /// The version cannot be published.
    #[error(transparent)]
    Package(#[from] package::Error),
    /// What was to be done cannot be recorded.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// Something else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// What was published.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// The version.
    pub version: String,
    directory: PathBuf,
    /// Whether it is the live one.
    pub live: bool,
    /// `sha256:…` of its graph.
    pub digest: String,
    /// What of it breaks what clients of the live version rely on, in sentences.
    pub breaking: Vec<String>,
    /// What was found out about it.
    #[serde(flatten)]
    pub examined: Examined,
}

impl ImportArgs {
    /// Reads what the flags say.
    ///
    /// # Errors
    /// [`Error`] for a bindings file that cannot be read.
    pub fn overrides(&self) -> Result<Overrides, Error> {
        let stated = self.bindings.as_deref().map(read_bindings).transpose()?;
        Ok(self.said.clone().overrides(stated.unwrap_or_default(), self.import.tolerance))
    }
}

/// Reads what a file says of bindings and output, as a manifest does: `{"bindings": …, "output": …}`.
///
/// # Errors
/// [`Error::Refused`] if it cannot be read.
pub fn read_bindings(path: &Path) -> Result<(Option<Bindings>, Option<Output>), Error> {
    let refused = |reason: String, found: &dyn std::fmt::Display| Error::Refused {
        code: "invalid_bindings".into(),
        message: format!("{}: {reason}: {found}", path.display()),
        reason,
    };
    let text = std::fs::read(path).map_err(|error| refused("cannot be read".into(), &error))?;
    let stated: Stated = serde_json::from_slice(&text).map_err(|error| {
        // What the error says besides repeats what stands there.
        let (line, column) = (error.line(), error.column());
        let expected = "expected {\"bindings\": …, \"output\": …} as in a manifest";
        refused(format!("{expected}, found something else at line {line}, column {column}"), &error)
    })?;
    Ok((stated.bindings, stated.output))
}

impl Import {
    /// Checks the names.
    ///
    /// # Errors
    /// [`package::Error::Name`] for one that cannot be a directory's.
    pub fn check_names(&self) -> Result<(), package::Error> {
        package::check_name("model", &self.name)?;
        self.version.as_ref().map_or(Ok(()), |version| package::check_name("version", version))
    }

    /// Has the files examined in a child process.
    ///
    /// # Errors
    /// [`Error::Refused`] if they are not to be published, [`Error::Other`] if nobody can tell.
    pub fn examine(
        &self,
        sandbox: &Sandbox,
        library: PathBuf,
        overrides: Overrides,
    ) -> Result<Examined, Error> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let request = Request {
            model: absolute(&self.model),
            schema: absolute(&self.schema),
            reference: self.reference.as_deref().map(absolute),
            golden: self.golden.as_deref().map(absolute),
            overrides,
            live: self.live.clone(),
        };
        let job = Job::Import(Box::new(ImportJob { request, library }));
        let found = match sandbox.run(&job) {
            // That there is no process to look at a model, or no memory for one, says nothing of the model.
            Err(death @ (Death::Start(_) | Death::Killed)) => return Err(Error::Other(death.into())),
            Err(death) => Finding::Refused(death.into()),
            Ok(found) => found,
        };
        match found {
            Finding::Examined(examined) => Ok(*examined),
            Finding::Unknown(why) => Err(Error::Other(anyhow::anyhow!(why))),
            Finding::Refused(Reasons { code, reason, detail }) => {
                Err(Error::Refused { code, reason, message: detail })
            }
        }
    }

    /// Checks that nobody has published this version.
    ///
    /// # Errors
    /// [`package::Error::Exists`] if somebody has.
    pub fn check_new(&self, repository: &Repository, version: &str) -> Result<(), package::Error> {
        if std::fs::symlink_metadata(repository.directory(&self.name, version)).is_err() {
            return Ok(());
        }
        Err(package::Error::Exists { model: self.name.clone(), version: version.into() })
    }

    /// Puts together the version that what was examined is to be published as. Whoever publishes it records that first.
    ///
    /// # Errors
    /// [`Error`] if the version is there already, or a file cannot be read or has changed.
    pub fn prepare(&self, repository: &Repository, examined: Examined) -> Result<Publication, Error> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| Error::Other(anyhow::anyhow!("cannot read {}: {error}", path.display())))
        };
        let graph = read(&self.model)?;
        // The child looked at the file that was there then.
        let digest = package::digest_of(&graph);
        if digest != examined.digest {
            let message = format!("{} changed while it was examined; import it again", self.model.display());
            return Err(Error::Other(anyhow::anyhow!(message)));
        }
        // So it did at the other files.
        let unchanged = |path: &Path, text: &[u8]| {
            if examined.read.contains(&package::digest_of(text)) {
                return Ok(());
            }
            let message = format!("{} changed while it was examined; import it again", path.display());
            Err(Error::Other(anyhow::anyhow!(message)))
        };
        let schema = read(&self.schema)?;
        unchanged(&self.schema, &schema)?;
        let schema = FeatureSchema::parse(&schema).map_err(|error| Error::Other(error.into()))?;
        let now = OffsetDateTime::now_utc();
        let version = match &self.version {
            Some(version) => {
                self.check_new(repository, version)?;
                version.clone()
            }
            None => repository.next_version(&self.name, &now.date().to_string())?,
        };
        let manifest = Manifest {
            format: manifest::FORMAT,
            name: self.name.clone(),
            version,
            created_at: now.format(&Rfc3339).map_err(|error| Error::Other(error.into()))?,
            files: std::collections::BTreeMap::new(),
            schema: Value::Object(schema.document().clone()),
            bindings: examined.bindings.clone(),
            output: examined.output.clone(),
            changes: examined.changes.clone(),
            threshold: schema.threshold,
            labels: examined.labels.clone(),
            tolerance: self.tolerance,
            metrics: examined.metrics.clone(),
            training: None,
            source: Source { kind: SourceKind::Import, producer: examined.producer.clone() },
        };
        let mut golden = String::new();
        if let Some(path) = &self.golden {
            let text = read(path)?;
            unchanged(path, &text)?;
            let rows = package::read_golden(path, &text)?;
            for row in one_number(rows, examined.output.task(), examined.golden_column) {
                golden.push_str(&serde_json::to_string(&row).map_err(|error| Error::Other(error.into()))?);
                golden.push('\n');
            }
        }
        let reference = examined.reference.as_ref().map(serde_json::to_vec).transpose();
        let reference = reference.map_err(|error| Error::Other(error.into()))?;
        let mut files = vec![(MODEL, graph)];
        if !golden.is_empty() {
            files.push((GOLDEN, golden.into_bytes()));
        }
        files.extend(reference.map(|reference| (REFERENCE, reference)));
        let breaking = differences(repository, &manifest, &schema);
        let is_named = self.version.is_some();
        Ok(Publication { manifest, is_named, files, digest, breaking, examined })
    }
}

/// What clients of the live version would lose; nothing where there is none, or where nobody can tell.
fn differences(repository: &Repository, manifest: &Manifest, schema: &FeatureSchema) -> Vec<Difference> {
    let live = || {
        let versions = repository.versions(&manifest.name).ok()?;
        let live = rollout::live(repository, &manifest.name, &versions).ok()?;
        let (live, _) = read_manifest(&repository.directory(&manifest.name, &live)).ok()?;
        let schema = FeatureSchema::from_document(live.schema.clone()).ok()?;
        Some((live, schema))
    };
    live().map_or_else(Vec::new, |(live, live_schema)| breaking(&live, &live_schema, manifest, schema))
}

/// A version that can be published.
#[derive(Debug)]
pub struct Publication {
    manifest: Manifest,
    /// Whether somebody has given it its name; else it is called by the day.
    is_named: bool,
    files: Vec<(&'static str, Vec<u8>)>,
    digest: String,
    breaking: Vec<Difference>,
    examined: Examined,
}

impl Publication {
    /// What clients of the live version would lose with it.
    pub fn breaking(&self) -> &[Difference] {
        &self.breaking
    }

    /// What the audit log says of it.
    fn event(&self, actor: &Actor, action: &'static str) -> Event {
        let Manifest { name, version, .. } = &self.manifest;
        Event::new(actor.clone(), action, format!("{name}@{version}")).with("digest", self.digest.as_str())
    }

    /// Records that what was recorded was not done.
    fn take_back(&self, log: &audit::Log, actor: &Actor, code: &'static str) {
        if let Err(error) = log.record(&self.event(actor, "version.publish_failed").with("code", code)) {
            tracing::error!(
                model.name = self.manifest.name,
                model.version = self.manifest.version,
                error = format!("{:#}", anyhow::Error::from(error)),
                "a version that was recorded was not published, which cannot be recorded"
            );
        }
    }

    /// Publishes the version, and records that first, and afterwards if it failed. Where its name is given by the day and somebody else
    /// has taken that meanwhile, the next one is tried.
    ///
    /// # Errors
    /// [`Error`] if another one has the name that was asked for, a file cannot be written or nothing can be recorded; then nothing is
    /// published.
    pub fn carry_out(mut self, store: &Store, log: &audit::Log, actor: &Actor) -> Result<Report, Error> {
        let files: Vec<(&str, &[u8])> =
            self.files.iter().map(|(name, text)| (*name, text.as_slice())).collect();
        let mut left = if self.is_named { 0 } else { NAMES };
        let directory = loop {
            log.record(&self.event(actor, "version.published"))?;
            let error = match store.publish(self.manifest.clone(), &files) {
                Ok(directory) => break directory,
                Err(error) => error,
            };
            let is_taken = matches!(error, package::Error::Exists { .. });
            let code = match &error {
                package::Error::Exists { .. } => error.code(),
                package::Error::Io { source, .. } if files::is_full(source) => "storage_full",
                _ => "repository_unavailable",
            };
            self.take_back(log, actor, code);
            if !is_taken || left == 0 {
                return Err(error.into());
            }
            left -= 1;
            self.manifest.version = following(&self.manifest.version);
        };
        let (model, version) = (self.manifest.name, self.manifest.version);
        // It is published, whether or not anybody can tell this.
        let rollout = store.local().read_rollout(&model).ok().flatten();
        let live = rollout.is_some_and(|rollout| rollout.live == version);
        let breaking = self.breaking.iter().map(ToString::to_string).collect();
        let (digest, examined) = (self.digest, self.examined);
        Ok(Report { model, version, directory, live, digest, breaking, examined })
    }
}

/// The name after one that was given by the day: `2026-11-23_10` after `2026-11-23_09`.
fn following(version: &str) -> String {
    let (date, number) = version.rsplit_once('_').unwrap_or((version, "0"));
    format!("{date}_{:02}", number.parse::<u32>().unwrap_or(0).saturating_add(1))
}

impl Report {
    /// The report in plain words.
    pub fn text(&self) -> String {
        let Self { examined, .. } = self;
        let mut text = String::new();
        let mut line = |line: String| {
            let _ = writeln!(text, "{line}");
        };
        let operators = examined.operators.iter().map(|(name, count)| match count {
            1 => name.clone(),
            count => format!("{count} {name}"),
        });
        line(format!("graph     {} ({})", examined.producer, examined.opsets.join(", ")));
        line(format!("          operators: {}", operators.collect::<Vec<_>>().join(", ")));
        line(format!("inputs    {}", bindings_in_words(&examined.bindings)));
        line(format!("answer    {}", output_in_words(&examined.output, &examined.labels)));
        for reason in &examined.reasons {
            line(format!("          because: {reason}"));
        }
        for change in &examined.changes {
            line(format!("change    {change}"));
        }
        if let Some(Golden { rows, worst }) = &examined.golden {
            line(format!("golden    {rows} rows, largest difference {worst:.1e}"));
        }
        if let Some(metrics) = &examined.metrics {
            line(format!("metrics   on the reference: {}", metrics_in_words(metrics)));
        }
        line(format!(
            "latency   {:.1} µs for 1 row, {:.0} µs for 1,000 rows on this machine",
            examined.latency.one_us, examined.latency.thousand_us
        ));
        for warning in &examined.warnings {
            line(format!("warning   {warning}"));
        }
        for difference in &self.breaking {
            line(format!("breaking  {difference}"));
        }
        line(format!("published {} {} in {}", self.model, self.version, self.directory.display()));
        line(if self.live {
            "          live: it answers within 2 seconds where a gateway serves this repository".into()
        } else {
            let more = if self.breaking.is_empty() { "" } else { " --breaking" };
            format!(
                "          not live: `scoregate models promote {}@{}{more}` makes it so",
                self.model, self.version
            )
        });
        text.truncate(text.trim_end().len());
        text
    }
}

/// How features reach the graph, on one line.
pub fn bindings_in_words(bindings: &Bindings) -> String {
    let inputs = bindings.inputs().into_iter().map(|input| match input.features {
        [only] if only == input.input => format!("{only} ({})", input.element.as_str()),
        features => format!("{} ({}) ← {}", input.input, input.element.as_str(), features.join(", ")),
    });
    inputs.collect::<Vec<_>>().join("; ")
}

/// Where the answer is and what it means, on one line.
pub fn output_in_words(output: &Output, labels: &[String]) -> String {
    let names = output.names().into_iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let link = match output.link() {
        None => "",
        Some(Link::Sigmoid) => " through sigmoid",
        Some(Link::Softmax) => " through softmax",
    };
    match output.task() {
        Task::Regression => format!("a value, from {names}"),
        Task::Multiclass { classes } => {
            format!("probabilities of {classes} classes ({}), from {names}{link}", labels.join(", "))
        }
        Task::Binary => {
            let column = match output.columns() {
                1 => String::new(),
                columns => format!(", column {} of {columns}", output.positive()),
            };
            format!(
                "the probability of \"{}\", from {names}{column}{link}",
                labels.get(1).map_or("", String::as_str)
            )
        }
    }
}

/// The metrics on one line.
pub fn metrics_in_words(metrics: &Metrics) -> String {
    match metrics {
        Metrics::Binary(found) => format!(
            "ROC AUC {:.4}, PR AUC {:.4}, Brier score {:.4}, log loss {:.4}, calibration error {:.4} ({} rows, {} positive)",
            found.roc_auc.value,
            found.pr_auc.value,
            found.brier.value,
            found.log_loss.value,
            found.expected_calibration_error.value,
            found.rows,
            found.positives
        ),
        Metrics::Multiclass(found) => format!(
            "accuracy {:.4}, log loss {:.4}, Brier score {:.4} ({} rows)",
            found.accuracy, found.log_loss, found.brier, found.rows
        ),
        Metrics::Regression(found) => format!(
            "RMSE {:.4}, MAE {:.4}, R² {} ({} rows)",
            found.rmse,
            found.mae,
            found.r2.map_or("undefined".into(), |r2| format!("{r2:.4}")),
            found.rows
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_day_go_on() {
        assert_eq!(following("2026-11-23_01"), "2026-11-23_02");
        assert_eq!(following("2026-11-23_09"), "2026-11-23_10");
        assert_eq!(following("2026-11-23_99"), "2026-11-23_100");
    }

    #[test]
    fn what_is_said_in_texts_is_what_flags_say() {
        let texts = [
            ("input", "floats=a,b\n a=b=c , \n"),
            ("output", "label,probabilities"),
            ("link", " sigmoid\n"),
            ("task", "binary"),
            ("positive", "yes"),
        ];
        let text = |name: &str| texts.iter().find(|(known, _)| *known == name).map(|(_, text)| *text);
        let read = Said::read(text).unwrap().overrides((None, None), TOLERANCE);
        assert_eq!(read.inputs[0], ("floats".into(), vec!["a".into(), "b".into()]));
        assert_eq!(read.inputs[1].0, "a=b");
        assert_eq!(read.outputs, ["label", "probabilities"]);
        assert_eq!((read.link, read.task), (Some(Some(Link::Sigmoid)), Some(TaskName::Binary)));
        assert_eq!(read.positive.as_deref(), Some("yes"));
        let nothing = Said::read(|_| None).unwrap().overrides((None, None), TOLERANCE);
        assert_eq!(nothing, Overrides { tolerance: TOLERANCE, ..Overrides::default() });
        for (name, text, expected) in [
            ("link", "logit", "the part link is none of none, sigmoid, softmax"),
            ("task", "Binary", "the part task is none of binary, multiclass, regression"),
            ("input", "floats", "the part input is not NAME=FEATURE,FEATURE,…"),
        ] {
            let error = Said::read(|asked| (asked == name).then_some(text)).unwrap_err();
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn clients_are_not_told_again_what_their_bindings_say() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"bindings": "canary-7f3a"}"#).unwrap();
        let Err(Error::Refused { code, reason, message }) = read_bindings(file.path()) else {
            panic!("a text is no bindings")
        };
        assert_eq!(code, "invalid_bindings");
        assert!(reason.contains("line 1, column 26") && !reason.contains("canary"), "{reason}");
        assert!(message.contains("canary-7f3a"), "who imports a file is told: {message}");
    }
}
