//! Trying a package that nobody has served yet, from its digests to a thousand rows. What is tried may crash the process or
//! never end, so that this belongs into a [`child`](super::child).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use scoregate_schemas::FeatureSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Golden, Refusal, Tolerance, check_golden, lint};
use crate::features::{FeatureRows, RowReader, probe};
use crate::package::Package;
use crate::runtime::{self, MAX_ROWS_PER_RUN, Runtime, Session, SessionOptions};

/// Counts up when acceptance asks for more than before: what was accepted earlier is tried anew then.
pub const REVISION: u32 = 2;

/// Rows of a large run.
const MANY: usize = 1_000;
/// Rows that are tried one by one.
const SINGLE: usize = 64;
/// How long one row may take: an answer that a client would not wait for holds up all others.
const SLOWEST_ROW: Duration = Duration::from_secs(1);
/// How far a row's answer may be from the one that it gets among others: kernels differ by the number of rows, but not by
/// more than this.
const TOGETHER: f64 = 1e-3;

/// What is known of a package that may be served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// The digest of its manifest.
    pub manifest_digest: String,
    /// How its golden rows came out.
    pub golden: Golden,
    /// The nodes that run, by execution provider, as ONNX Runtime counts them.
    pub execution_providers: BTreeMap<String, usize>,
    /// What one more session holds in memory after a large run.
    pub session_bytes: u64,
    /// How many rows that the schema allows were made up, and how many of them have no usable answer.
    pub drawn: usize,
    /// See `drawn`.
    pub unusable: usize,
}

/// Rows to try a session with: the package's own, or such as its schema allows.
#[derive(Debug)]
pub struct Trial {
    /// Golden rows and background.
    real: FeatureRows,
    /// Rows made up from the schema, the first one typical.
    drawn: FeatureRows,
}

impl Trial {
    /// The rows of `package`, read by `reader`. Rows that do not pass are left out.
    pub fn new(package: &Package, reader: &RowReader) -> Self {
        Self::of(rows_of(package), &package.schema, reader)
    }

    /// A few rows of `package`, for warming sessions of a version that was accepted.
    pub fn few(package: &Package, reader: &RowReader) -> Self {
        Self::of(rows_of(package).take(SINGLE), &package.schema, reader)
    }

    /// Some rows that are known, and rows made up from `schema`.
    pub(crate) fn of<'r>(
        known: impl Iterator<Item = &'r Map<String, Value>>,
        schema: &FeatureSchema,
        reader: &RowReader,
    ) -> Self {
        let mut real = reader.empty(SINGLE);
        for row in known.take(MANY) {
            // A row that does not pass is no row to try a model with.
            reader.read_map(row, &mut real);
        }
        let mut drawn = reader.empty(SINGLE);
        for row in probe::rows(schema, SINGLE) {
            reader.read_map(&row, &mut drawn);
        }
        Self { real, drawn }
    }

    /// Those that the model was made for, as far as is known.
    fn best(&self) -> &FeatureRows {
        if self.real.is_empty() { &self.drawn } else { &self.real }
    }

    /// `count` rows, again from the first where there are fewer.
    pub fn rows(&self, count: usize) -> FeatureRows {
        if self.best().is_empty() { FeatureRows::default() } else { self.best().cycled(count) }
    }

    /// Rows one by one, at most `most`.
    pub fn singles(&self, most: usize) -> Vec<FeatureRows> {
        (0..self.best().len().min(most)).map(|row| self.best().single(row)).collect()
    }
}

fn rows_of(package: &Package) -> impl Iterator<Item = &Map<String, Value>> {
    package.golden.iter().map(|row| &row.features).chain(&package.background)
}

/// Tries the package in `directory`: digests, [`lint`], sessions, golden rows, rows of its own background or such as its
/// schema allows, one by one, a thousand at once and as many as a run may have. ONNX Runtime writes its notes into `scratch`.
///
/// Call this on a stack that is large enough for deep trees; the runs are made on a thread with the usual one, as
/// requests are.
///
/// # Errors
/// [`Refusal`] saying what is wrong.
pub fn accept(
    directory: &Path,
    runtime: &Runtime,
    options: &SessionOptions,
    scratch: &Path,
) -> Result<Accepted, Refusal> {
    let package = Package::read(directory)?;
    drop(lint::lint(&package.graph, &lint::Limits::default())?);
    // Golden rows and background need not say whom they are about.
    let reader = RowReader::new(&package.schema.with_optional_entity(), &package.manifest.bindings);
    let trial = Trial::new(&package, &reader);
    let Some(single) = trial.singles(1).pop() else { return Err(Refusal::NoRow) };
    let Package { graph, manifest, .. } = &package;
    let (bindings, output) = (&manifest.bindings, &manifest.output);
    let served = runtime::prepare(graph, output)?;
    let open = || runtime.session_of(&served, &reader, bindings, output, options);
    let mut session = open()?;
    let (golden, unusable) = on_usual_stack(|| {
        // Before all golden rows, which might take longer than there is time for.
        check_speed(&single, &mut session)?;
        let golden = check_golden(&package.golden, manifest.tolerance, &reader, &mut session)?;
        let unusable = try_rows(&trial, &mut session)?;
        Ok::<_, Refusal>((golden, unusable))
    })?;
    // The second session shows what one more takes: the first one's peak is there already.
    let before = resident();
    let mut second = open()?;
    // What the graph answers was looked at: made-up rows may have no usable answer.
    on_usual_stack(|| second.run_raw(&trial.rows(MAX_ROWS_PER_RUN)))?;
    let session_bytes = resident().saturating_sub(before);
    drop((session, second));
    let execution_providers =
        runtime.nodes_by_provider(graph, &reader, bindings, output, options, &single, scratch)?;
    Ok(Accepted {
        manifest_digest: package.manifest_digest.clone(),
        golden,
        execution_providers,
        session_bytes,
        drawn: trial.drawn.len(),
        unusable,
    })
}

/// Does `work` on a thread with the stack that threads have who serve requests.
fn on_usual_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Checks that a row is answered in time, by the better of two runs. One that fails is named by those who look at answers.
fn check_speed(single: &FeatureRows, session: &mut Session) -> Result<(), Refusal> {
    let took = |session: &mut Session| {
        let started = Instant::now();
        let _ = session.run_raw(single);
        started.elapsed()
    };
    let mut best = took(session);
    if best > SLOWEST_ROW {
        best = best.min(took(session));
    }
    if best > SLOWEST_ROW { Err(Refusal::TooSlow { took: best, limit: SLOWEST_ROW }) } else { Ok(()) }
}

/// Runs rows one by one and a thousand at once; how many of the made-up ones have no usable answer.
///
/// Real rows must all have one. Of made-up rows the typical one must, and no more than half may lack one, where there are no
/// real rows: nobody said that every row which the schema allows is one that the model was made for.
pub(crate) fn try_rows(trial: &Trial, session: &mut Session) -> Result<usize, Refusal> {
    let Trial { real, drawn } = trial;
    if let Some(single) = trial.singles(1).pop() {
        check_speed(&single, session)?;
    }
    if !real.is_empty() {
        session.run(&real.cycled(MANY))?;
        check_alone(real, session)?;
    }
    let (mut unusable, mut first, mut typical, mut runs) = (0, None, true, true);
    for row in 0..drawn.len() {
        match session.run(&drawn.single(row)) {
            Ok(_) => {}
            Err(error) if !is_of_row(&error) => return Err(error.into()),
            Err(error) => {
                unusable += 1;
                typical &= row > 0;
                runs &= !matches!(error, runtime::Error::Run(_));
                first.get_or_insert(error);
            }
        }
    }
    let rows = drawn.len();
    match first {
        Some(first) if real.is_empty() && (!typical || unusable * 2 > rows) => {
            return Err(Refusal::Drawn { unusable, rows, first });
        }
        // A row that cannot be run takes a large run down with it.
        _ if runs && rows > 0 => check_alone(drawn, session)?,
        _ => {}
    }
    Ok(unusable)
}

/// Checks that rows are answered among others as they are alone.
fn check_alone(rows: &FeatureRows, session: &mut Session) -> Result<(), Refusal> {
    let together = session.run_raw(&rows.cycled(MANY))?;
    let columns = together.len() / MANY;
    for (row, together) in together.chunks_exact(columns.max(1)).enumerate().take(rows.len().min(SINGLE)) {
        for (alone, together) in session.run_raw(&rows.single(row))?.into_iter().zip(together.iter().copied())
        {
            let same = alone == together || (alone.is_nan() && together.is_nan());
            if !same && Tolerance::Relative(TOGETHER).is_exceeded(alone, together) {
                return Err(Refusal::Together { row: row + 1, alone, together });
            }
        }
    }
    Ok(())
}

/// Whether another row may well have an answer.
fn is_of_row(error: &runtime::Error) -> bool {
    use runtime::OutputFault::{Map, NotFinite, OutOfRange, Shape};
    match error {
        runtime::Error::Output(NotFinite { .. } | OutOfRange { .. }) => true,
        runtime::Error::Output(Shape { .. } | Map { .. }) => false,
        runtime::Error::Run(_) => !error.is_memory(),
        _ => false,
    }
}

/// Resident memory of this process in bytes; 0 where the system does not say.
fn resident() -> u64 {
    let pages = || -> Option<u64> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    };
    pages().unwrap_or(0) * 1024
}
