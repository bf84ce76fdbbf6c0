//! `scoregate score` and `scoregate explain`: files scored offline, as the gateway would score them.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use scoregate_model::explain::{Method, Question, Space};
use scoregate_model::features::{BodyError, FeatureRows, RowReader};

use super::models::{RepositoryArgs, read, resolve};
use crate::app;
use crate::config::{ExplainMode, Settings};
use crate::http::explain::{Explained, Reasons, Wanted};
use crate::http::wire::{Answers, Batch};
use crate::registry::{Version, load_offline};
use crate::scoring::Explaining;

/// Rows that are scored at once by one thread.
const PART: usize = 4_096;

/// How often progress is shown.
const SHOWN: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
struct FileArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The version, as MODEL@VERSION, or as MODEL for the live one.
    #[arg(long, value_name = "MODEL[@VERSION]")]
    model: String,
    /// The rows: a .csv, .ndjson (or .jsonl) or .json file. The outcome may be among the columns of a .csv.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the answers go, as the batch route gives them: .csv with columns added (from .csv alone), .ndjson or .jsonl, or
    /// .json (from .json alone). A file that is there is replaced once all is done.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// How many features are named at most (`SCOREGATE_EXPLAIN_TOP_K`) [default: 3].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct ScoreArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Names the features that moved each score most.
    #[arg(long)]
    explain: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    file: FileArgs,
    /// What values add up on: `log_odds`, `margin`, `probability` or `target` [default: the model's own].
    #[arg(long)]
    space: Option<Space>,
    /// How they are computed: `linear`, `tree_interventional`, `tree_path_dependent`, `exact` or `permutation_sampling` [default: as
    /// costs least].
    #[arg(long)]
    method: Option<Method>,
    /// The class that is explained [default: the positive one, of several the most likely].
    #[arg(long, value_name = "LABEL")]
    class: Option<String>,
}

/// What rows are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    Ndjson,
    Json,
}

impl Format {
    fn of(path: &Path) -> anyhow::Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
            "csv" => Ok(Self::Csv),
            "ndjson" | "jsonl" => Ok(Self::Ndjson),
            "json" => Ok(Self::Json),
            _ => bail!("found {}, expected a file called .csv, .ndjson, .jsonl or .json", path.display()),
        }
    }
}

pub(super) fn score(args: &ScoreArgs) -> anyhow::Result<()> {
    if args.file.top_k.is_some() && !args.explain {
        bail!("found --top-k without --explain, of which it says how many features are named");
    }
    run(&args.file, args.explain.then(|| (Question::default(), false)))
}

pub(super) fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let question = Question { space: args.space, method: args.method, class: args.class.clone() };
    run(&args.file, Some((question, true)))
}

fn run(args: &FileArgs, explain: Option<(Question, bool)>) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (input, output) = (Format::of(&args.input)?, Format::of(&args.output)?);
    if output != input && output != Format::Ndjson {
        bail!(
            "found {} for rows from {}, expected the same kind of file, or .ndjson",
            args.output.display(),
            args.input.display()
        );
    }
    let mut settings = args.repository.settings()?;
    // ONNX Runtime is loaded while this is the only thread: loading sets variables of the environment.
    let runtime = app::load_runtime(&settings.runtime)?;
    let repository = read(&settings, args.model.split('@').next())?;
    let (model, name, _) = resolve(&repository, &args.model)?;
    allow(&mut settings, model, explain.is_some());
    let workers = settings.scoring.workers;
    let version = load_offline(settings, runtime, model, &name)
        .map_err(|reasons| anyhow::anyhow!("{model} {name} cannot be served: {}", reasons.detail))?;
    let version = Arc::new(version);
    let wanted = explain.map(|(question, is_full)| wanted(&version, &question, is_full, args.top_k));
    // A file may name the same entity more than once: no outcome will be reported of its rows.
    let reader = RowReader::new(&version.schema.with_ignored_entity(), &version.manifest.bindings);
    let path = args.input.as_path();
    let scorer = Scorer { path, version: &version, reader, wanted: wanted.transpose()?, input, output };

    let mut source = Source::open(&args.input, input)?;
    let directory = args.output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let file = tempfile::Builder::new()
        .prefix(".scoregate-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory.unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write beside {}", args.output.display()))?;
    // Nothing is left behind by whoever is told to stop.
    let unfinished = file.path().to_path_buf();
    super::on_signal(move || drop(std::fs::remove_file(&unfinished)))?;
    let mut sink = BufWriter::new(file);
    let mut progress = Progress::new(source.bytes);
    let (mut rows, mut refused) = (0, 0);
    loop {
        let parts: Vec<Vec<u8>> =
            (0..workers).map_while(|_| source.part().transpose()).collect::<Result<_, _>>()?;
        if parts.is_empty() {
            break;
        }
        let first = rows;
        let scored = std::thread::scope(|scope| {
            let scorer = &scorer;
            let scoring: Vec<_> = parts
                .iter()
                .enumerate()
                .map(|(at, part)| scope.spawn(move || scorer.score(part, first + at * PART)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<Part>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            scoring.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
        })?;
        for part in scored {
            let answer =
                if rows > 0 && output == Format::Csv { without_header(&part.answer) } else { &part.answer };
            sink.write_all(answer).context("cannot write the answers")?;
            rows += part.rows;
            refused += part.refused;
        }
        progress.show(rows, source.read);
    }
    progress.end();
    if rows == 0 {
        bail!("found no rows in {}, expected at least one", args.input.display());
    }
    let file =
        sink.into_inner().map_err(std::io::IntoInnerError::into_error).context("cannot write the answers")?;
    file.as_file().sync_all().context("cannot write the answers")?;
    file.persist(&args.output).with_context(|| format!("cannot write {}", args.output.display()))?;
    let summary = format!(
        "scored {} of {rows} rows with {model} {name} in {:.1} s: {}",
        rows - refused,
        begin.elapsed().as_secs_f64(),
        args.output.display()
    );
    if rows == refused {
        bail!("{summary} says why none of them could be");
    }
    super::print(&summary)
}

/// Has explanations made for a command that asks for them, whatever the gateway is told; none else, which take memory.
fn allow(settings: &mut Settings, model: &str, is_explained: bool) {
    let mode = if is_explained { ExplainMode::OnRequest } else { ExplainMode::Off };
    let own = settings.model.entry(model.into()).or_default();
    own.explain.mode = Some(mode);
    own.explain.when = None;
}

fn wanted(
    version: &Arc<Version>,
    question: &Question,
    is_full: bool,
    top_k: Option<u32>,
) -> anyhow::Result<Wanted> {
    let prepared = version.explainer()?;
    let ask = prepared.explainer.ask(question, &version.labels)?;
    let top_k = top_k.map_or(version.explain.top_k, |top_k| top_k as usize);
    Ok(Wanted { explaining: Explaining::new(version, prepared, ask), is_full, top_k, is_asked: true })
}

/// Scores parts of a file.
struct Scorer<'s> {
    path: &'s Path,
    version: &'s Arc<Version>,
    reader: RowReader,
    wanted: Option<Wanted>,
    input: Format,
    output: Format,
}

/// A part that was scored.
struct Part {
    answer: Vec<u8>,
    rows: usize,
    refused: usize,
}

impl Scorer<'_> {
    /// Scores a part whose first row is number `first` of all.
    fn score(&self, part: &[u8], first: usize) -> anyhow::Result<Part> {
        let version = self.version;
        let (rows, prefix) = match self.without_outcome(part)? {
            Some(part) => self.read(&part)?,
            None => self.read(part)?,
        };
        let scores = version.run(&rows)?;
        let reasons = self.wanted.as_ref().map(|wanted| Reasons::new(version, wanted));
        let mut answers = Answers::new(version, reasons);
        if let Some(wanted) = &self.wanted {
            let explanations = wanted.explaining.explain_rows(&rows, &scores);
            answers.explain(Explained { explanations, chosen: None });
        }
        let batch = Batch::new(vec![answers.to(&rows, Ok(&scores))], &[]).starting_at(first);
        let answer = match self.output {
            Format::Csv => batch.csv(part),
            Format::Ndjson => batch.ndjson(),
            Format::Json => batch.json(prefix),
        };
        Ok(Part { answer, rows: rows.submitted, refused: rows.faults.len() })
    }

    fn read(&self, part: &[u8]) -> anyhow::Result<(FeatureRows, &'static str)> {
        let reader = &self.reader;
        let read = match self.input {
            Format::Csv => reader.csv_rows(part, PART).map(|rows| (rows, "#")),
            Format::Ndjson => reader.ndjson_rows(part, PART).map(|rows| (rows, "#")),
            Format::Json => reader.json_rows(part, usize::MAX).map(|read| (read.rows, read.prefix)),
        };
        read.map_err(|error| match error {
            BodyError::Header(faults) => {
                let columns = faults.iter().map(|fault| {
                    let column = reader.pointer(&fault.place);
                    format!("{} {}", column.trim_start_matches('/'), reader.detail(fault))
                });
                let columns = columns.collect::<Vec<_>>().join("; ");
                anyhow::anyhow!(
                    "the header of {} does not fit the model's features: {columns}; rename or remove these columns",
                    self.path.display()
                )
            }
            other => other.into(),
        })
    }

    /// The records without the outcome, which rows that a model was trained on have and no request; nothing if there is none.
    fn without_outcome(&self, part: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        let schema = &self.version.schema;
        let Some(target) = schema.target.as_deref().filter(|_| self.input == Format::Csv) else {
            return Ok(None);
        };
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(part);
        let mut record = csv::ByteRecord::new();
        reader.read_byte_record(&mut record)?;
        let is_field = schema.fields.iter().any(|field| field.name == target);
        let Some(outcome) = record.iter().position(|name| name == target.as_bytes()).filter(|_| !is_field)
        else {
            return Ok(None);
        };
        let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::with_capacity(part.len()));
        let width = record.len();
        loop {
            if record.len() == width {
                let cells = record.iter().enumerate().filter(|(at, _)| *at != outcome).map(|(_, cell)| cell);
                writer.write_record(cells)?;
            } else {
                // Which cell is the outcome's is not known: such a record is to be refused, however many cells are left.
                record.push_field(b"");
                record.push_field(b"");
                writer.write_byte_record(&record)?;
            }
            if !reader.read_byte_record(&mut record)? {
                break;
            }
        }
        Ok(Some(writer.into_inner()?))
    }
}

/// The rows of a file, part by part.
struct Source {
    rows: Rows,
    /// Bytes of the file, and those that were read.
    bytes: u64,
    read: u64,
}

enum Rows {
    /// With the header that each part begins with.
    Csv(csv::Reader<File>, csv::ByteRecord),
    Ndjson(BufReader<File>),
    /// Read as a whole.
    Json(Option<File>),
}

impl Source {
    fn open(path: &Path, format: Format) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let bytes = file.metadata().map_or(0, |found| found.len());
        let rows = match format {
            Format::Csv => {
                let mut reader =
                    csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(file);
                let mut header = csv::ByteRecord::new();
                if !reader.read_byte_record(&mut header)? {
                    bail!("{} is empty, expected a header with the names of columns", path.display());
                }
                Rows::Csv(reader, header)
            }
            Format::Ndjson => Rows::Ndjson(BufReader::with_capacity(1 << 20, file)),
            Format::Json => Rows::Json(Some(file)),
        };
        Ok(Self { rows, bytes, read: 0 })
    }

    /// The next rows; none at the end.
    fn part(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut part = Vec::new();
        match &mut self.rows {
            Rows::Csv(reader, header) => {
                let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(&mut part);
                writer.write_byte_record(header)?;
                let (mut record, mut rows) = (csv::ByteRecord::new(), 0);
                while rows < PART && reader.read_byte_record(&mut record)? {
                    writer.write_byte_record(&record)?;
                    rows += 1;
                }
                writer.flush()?;
                drop(writer);
                self.read = reader.position().byte();
                if rows == 0 {
                    return Ok(None);
                }
            }
            Rows::Ndjson(reader) => {
                let mut rows = 0;
                while rows < PART {
                    let begin = part.len();
                    if reader.read_until(b'\n', &mut part)? == 0 {
                        break;
                    }
                    // Blank lines are no rows.
                    rows += usize::from(!part[begin..].trim_ascii().is_empty());
                }
                self.read += part.len() as u64;
                if rows == 0 {
                    return Ok(None);
                }
            }
            Rows::Json(file) => {
                let Some(mut file) = file.take() else { return Ok(None) };
                file.read_to_end(&mut part)?;
                self.read = part.len() as u64;
            }
        }
        Ok(Some(part))
    }
}

/// The records of CSV but for the first.
fn without_header(answer: &[u8]) -> &[u8] {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(answer);
    let _ = reader.read_byte_record(&mut csv::ByteRecord::new());
    let begin = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX);
    answer.get(begin..).unwrap_or_default()
}

/// How far the work is, for a person who watches.
struct Progress {
    bytes: u64,
    shown: Option<Instant>,
    is_watched: bool,
}

impl Progress {
    fn new(bytes: u64) -> Self {
        Self { bytes, shown: None, is_watched: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, rows: usize, read: u64) {
        if !self.is_watched || self.shown.is_some_and(|shown| shown.elapsed() < SHOWN) {
            return;
        }
        self.shown = Some(Instant::now());
        let share = (read as f64 / self.bytes.max(1) as f64).min(1.0);
        let filled = (share * 30.0) as usize;
        let bar = format!("{}{}", "█".repeat(filled), "░".repeat(30 - filled));
        // Nobody is told less if it cannot be shown.
        let _ = write!(std::io::stderr(), "\r{bar} {:>3.0} %, {rows} rows ", 100.0 * share);
    }

    fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
