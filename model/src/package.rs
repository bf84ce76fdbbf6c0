//! Reads, verifies and publishes model packages, and lists a repository of them.
//!
//! A package is a directory `<repository>/<model>/<version>` that never changes once published. It appears in one step (a
//! rename within the repository), so that a reader sees all of it or nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scoregate_schemas::Rollout;
use scoregate_schemas::feature_schema::{self, FeatureSchema};
use scoregate_schemas::manifest::{self, Bindings, Manifest, SourceKind, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::acceptance::lint;
use crate::explain::importance::Importance;
use crate::reference::{FeatureReference, Histogram};
use crate::{lock, owner};

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";
/// The graph's file name.
pub const MODEL: &str = "model.onnx";
/// The golden rows' file name.
pub const GOLDEN: &str = "golden.jsonl";
/// The rollout's file name, beside the versions of a model.
pub const ROLLOUT: &str = "rollout.json";
/// The reference's file name.
pub const REFERENCE: &str = "reference.json";

/// What a version's directory is called until it is whole, and what a rollout is.
const STAGING: &str = ".publishing-";
const STAGED_ROLLOUT: &str = ".rollout-";
/// When such a thing must be of a publisher that is dead.
const DEAD: Duration = Duration::from_secs(86_400);
/// How long another may hold the lock of a rollout, who reads and syncs the files of a version meanwhile.
const ROLLOUT_PATIENCE: Duration = Duration::from_secs(10);
/// The largest manifest that is read.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// The largest rollout that is read or written: it may name each of ten thousand slots.
pub const MAX_ROLLOUT_BYTES: usize = 256 << 10;
/// The largest file of golden rows or reference that is read.
const MAX_ROWS_BYTES: usize = 256 << 20;
/// The longest label: every row's answer repeats it.
const MAX_LABEL_BYTES: usize = 256;

/// What can be wrong with a package or a repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("{} is not a manifest of format {}", .path.display(), manifest::FORMAT)]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The rollout is not one.
    #[error("{} is no rollout", .path.display())]
    Rollout {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest's feature schema is not one.
    #[error("the manifest's feature schema is not valid")]
    Schema(#[from] feature_schema::Error),
    /// A file differs from its digest, is missing, or is not listed.
    #[error("{}: {problem}", .path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        problem: String,
    },
    /// A file is larger than any of its kind.
    #[error("{} has {found} bytes and at most {limit} are taken", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// How many are taken.
        limit: usize,
    },
    /// The version exists already.
    #[error(
        "version {version} of model {model} is published already and versions never change; choose another --version"
    )]
    Exists {
        /// The model.
        model: String,
        /// The version.
        version: String,
    },
    /// A name that cannot be a directory of the repository.
    #[error("found the {what} name \"{}\", expected 1 to 128 letters, digits, '.', '_' or '-', not beginning with '.'", .name.escape_debug())]
    Name {
        /// Model or version.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A golden row that cannot be read.
    #[error("{} line {line}: {message}", .path.display())]
    Golden {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

impl Error {
    /// A stable name for what is wrong.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "package_incomplete",
            Self::Io { .. } => "package_unreadable",
            Self::Manifest { .. } => "invalid_manifest",
            Self::Rollout { .. } => "invalid_rollout",
            Self::Schema(_) => "invalid_schema",
            Self::Altered { .. } => "package_altered",
            Self::TooLarge { .. } => "too_large",
            Self::Exists { .. } => "version_exists",
            Self::Name { .. } => "invalid_name",
            Self::Golden { .. } => "invalid_golden",
        }
    }

    /// A sentence for clients, with the names of files and without their paths.
    pub fn reason(&self) -> String {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self {
            Self::Io { action, path, .. } => format!("cannot {action} {}", name(path)),
            Self::Manifest { path, .. } => {
                format!("{} is not a manifest of format {}", name(path), manifest::FORMAT)
            }
            Self::Rollout { path, .. } => format!("{} is no rollout", name(path)),
            Self::Altered { path, problem } => format!("{}: {problem}", name(path)),
            Self::TooLarge { path, found, limit } => {
                format!("{} has {found} bytes and at most {limit} are taken", name(path))
            }
            Self::Golden { path, line, message } => format!("{} line {line}: {message}", name(path)),
            Self::Schema(_) | Self::Exists { .. } | Self::Name { .. } => self.to_string(),
        }
    }
}

fn io_error<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + 'p {
    move |source| Error::Io { action, path: path.into(), source }
}

/// One golden row: features as a client sends them, and what the model's own library answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRow {
    /// The row, as a JSON object.
    pub features: Map<String, Value>,
    /// What the answer has to be.
    pub expected: Expected,
}

/// What a golden row's answer has to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// P(positive class), or the value of a regression.
    One(f64),
    /// One probability per class.
    Classes(Vec<f64>),
}

impl Expected {
    /// The numbers.
    pub fn values(&self) -> &[f64] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Classes(values) => values,
        }
    }
}

/// The parts of a reference that serving needs.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Needed {
    rows: u64,
    features: Vec<FeatureReference>,
    score: Option<Histogram>,
    background: Vec<Map<String, Value>>,
    importance: Option<Importance>,
    covers: Option<Vec<u64>>,
}

/// How many reference rows took which branch of a model's trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covers {
    /// How many there were.
    pub rows: u64,
    /// How many of them took the true branch of each node; see [`Reference::covers`](crate::reference::Reference::covers).
    pub yes: Vec<u64>,
}

/// A package that was read and whose digests hold.
#[derive(Debug, Clone)]
pub struct Package {
    /// Where it is.
    pub directory: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The manifest's schema, checked.
    pub schema: FeatureSchema,
    /// The bytes of `model.onnx`.
    pub graph: Vec<u8>,
    /// The rows of `golden.jsonl`; empty if there is none.
    pub golden: Vec<GoldenRow>,
    /// The background of `reference.json`, rows as clients send them; empty if there is none.
    pub background: Vec<Map<String, Value>>,
    /// The importance of features that `reference.json` says, if it does.
    pub importance: Option<Importance>,
    /// The covers of trees that `reference.json` says, if it does.
    pub covers: Option<Covers>,
    /// How features were distributed, as `reference.json` says; empty if there is none.
    pub distributions: Vec<FeatureReference>,
    /// The edges between which `reference.json` counts scores, ascending; empty if there is none.
    pub score_edges: Vec<f64>,
    /// The digest of the manifest, `sha256:…`: with the digests in it that of the whole package.
    pub manifest_digest: String,
}

impl Package {
    /// Reads the package in `directory` and checks every file against its digest, and name and version against the path.
    ///
    /// # Errors
    /// [`Error`] naming the file and what is wrong with it.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        refuse_link(directory)?;
        let (manifest, manifest_digest) = read_manifest(directory)?;
        check_place(&manifest, directory)?;
        let path = directory.join(MANIFEST);
        let altered = |path: &Path, problem: String| Error::Altered { path: path.into(), problem };
        let mut graph = None;
        let (mut golden, mut reference) = (Vec::new(), Needed::default());
        for (name, digest) in &manifest.files {
            if !is_plain_name(name) {
                return Err(altered(
                    &path,
                    format!("it lists the file \"{}\"; expected a plain name", name.escape_debug()),
                ));
            }
            let file = directory.join(name);
            let bytes = read_regular(&file, max_bytes(name))?;
            let found = digest_of(&bytes);
            if &found != digest {
                return Err(altered(
                    &file,
                    format!("found digest {found}, expected {digest} of the manifest"),
                ));
            }
            match name.as_str() {
                MODEL => graph = Some(bytes),
                GOLDEN => golden = read_golden(&file, &bytes)?,
                REFERENCE => {
                    reference = serde_json::from_slice(&bytes)
                        .map_err(|error| altered(&file, format!("it is no reference: {error}")))?;
                }
                _ => {}
            }
        }
        let graph = graph.ok_or_else(|| altered(&path, format!("it does not list {MODEL}")))?;
        let schema = FeatureSchema::from_document(manifest.schema.clone())?;
        check_contents(&manifest, &schema, golden.len()).map_err(|problem| altered(&path, problem))?;
        let Needed { rows, features, score, background, importance, covers } = reference;
        if let Some(score) = &score
            && !(score.edges.len() < 10 && score.edges.is_sorted_by(|one, next| one < next))
        {
            let problem = "found other edges of its scores, expected nine at most, each above the one before";
            return Err(altered(&directory.join(REFERENCE), problem.into()));
        }
        if let Some(importance) = &importance {
            let features = schema.features().map(|field| field.name.as_str());
            importance.check(features).map_err(|problem| altered(&directory.join(REFERENCE), problem))?;
        }
        Ok(Self {
            directory: directory.into(),
            manifest,
            schema,
            graph,
            golden,
            background,
            importance,
            covers: covers.map(|yes| Covers { rows, yes }),
            distributions: features,
            score_edges: score.map_or_else(Vec::new, |score| score.edges),
            manifest_digest,
        })
    }

    /// The digest of the graph, `sha256:…`.
    pub fn digest(&self) -> &str {
        self.manifest.files.get(MODEL).map_or("", String::as_str)
    }
}

/// Whether the parts of a manifest fit each other: nothing else vouches for them.
fn check_contents(manifest: &Manifest, schema: &FeatureSchema, golden: usize) -> Result<(), String> {
    check_bindings(&manifest.bindings, schema)?;
    let (task, labels) = (manifest.output.task(), manifest.labels.len());
    let expected = match task {
        Task::Binary => 2,
        Task::Multiclass { classes } => classes,
        Task::Regression => 0,
    };
    if labels != expected {
        return Err(format!("found {labels} labels, expected {expected}"));
    }
    check_labels(&manifest.labels)?;
    if manifest.output.columns() == 0 || manifest.output.positive() >= manifest.output.columns() {
        return Err("its output has no such column as the positive class's".into());
    }
    if !(0.0..=1.0).contains(&manifest.threshold) {
        return Err(format!("found {} as threshold, expected 0 to 1", manifest.threshold));
    }
    if !(0.0..=1.0).contains(&manifest.tolerance) {
        return Err(format!("found {} as tolerance, expected 0 to 1", manifest.tolerance));
    }
    if golden == 0 && manifest.source.kind == SourceKind::Trainer {
        return Err(format!("it has no {GOLDEN}, which every version of the trainer has"));
    }
    Ok(())
}

/// Whether labels can be told apart and written into every answer.
///
/// # Errors
/// What is wrong, in words.
pub fn check_labels(labels: &[String]) -> Result<(), String> {
    if let Some(long) = labels.iter().find(|label| label.len() > MAX_LABEL_BYTES) {
        return Err(format!("found a label of {} bytes, expected at most {MAX_LABEL_BYTES}", long.len()));
    }
    if let Some(odd) = labels.iter().find(|label| label.chars().any(char::is_control)) {
        return Err(format!("found a control character in the label \"{}\"", odd.escape_debug()));
    }
    if let Some(twice) = (1..labels.len()).find(|at| labels[..*at].contains(&labels[*at])) {
        return Err(format!("found the label \"{}\" twice", labels[twice].escape_debug()));
    }
    Ok(())
}

/// Whether every feature reaches the graph, and nothing else does.
///
/// # Errors
/// What is wrong, in words.
pub fn check_bindings(bindings: &Bindings, schema: &FeatureSchema) -> Result<(), String> {
    let features: Vec<&str> = schema.features().map(|field| field.name.as_str()).collect();
    match bindings {
        Bindings::Columns { columns } => {
            if !columns.iter().map(|column| column.feature.as_str()).eq(features) {
                return Err("its bindings are not the schema's features, one by one in their order".into());
            }
        }
        Bindings::Matrix { inputs } => {
            for (at, input) in inputs.iter().enumerate() {
                if inputs[..at].iter().any(|other| other.input == input.input) {
                    return Err(format!("its bindings name the input \"{}\" twice", input.input));
                }
                if input.features.is_empty() {
                    return Err(format!("its bindings give the input \"{}\" no feature", input.input));
                }
            }
            let bound: Vec<&str> =
                inputs.iter().flat_map(|input| &input.features).map(String::as_str).collect();
            if let Some(unknown) = bound.iter().find(|name| !features.contains(name)) {
                return Err(format!("its bindings take \"{unknown}\", which is no feature of its schema"));
            }
            if let Some(unbound) = features.iter().find(|name| !bound.contains(name)) {
                return Err(format!("its bindings leave out the feature \"{unbound}\""));
            }
        }
    }
    Ok(())
}

fn refuse_link(path: &Path) -> Result<(), Error> {
    let found = fs::symlink_metadata(path).map_err(io_error("read", path))?;
    if found.is_symlink() {
        return Err(Error::Altered {
            path: path.into(),
            problem: "found a symbolic link, expected the thing itself".into(),
        });
    }
    Ok(())
}

/// Reads the manifest of the package in `directory`, and gives its digest with it.
///
/// # Errors
/// [`Error`] if it cannot be read, is too large, or is no manifest.
pub fn read_manifest(directory: &Path) -> Result<(Manifest, String), Error> {
    let path = directory.join(MANIFEST);
    let text = read_regular(&path, MAX_MANIFEST_BYTES)?;
    let manifest = serde_json::from_slice(&text).map_err(|source| Error::Manifest { path, source })?;
    Ok((manifest, digest_of(&text)))
}

/// Checks that `manifest` is of this format, and of the version whose package `directory` is.
///
/// # Errors
/// [`Error::Altered`] if it is not: a copy under another name is not the version that was accepted.
pub fn check_place(manifest: &Manifest, directory: &Path) -> Result<(), Error> {
    let altered = |problem: String| Err(Error::Altered { path: directory.join(MANIFEST), problem });
    if manifest.format != manifest::FORMAT {
        return altered(format!("found manifest format {}, expected {}", manifest.format, manifest::FORMAT));
    }
    let parts: Vec<_> =
        directory.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy()).collect();
    for (found, expected, what) in
        [(parts.first(), &manifest.version, "version"), (parts.get(1), &manifest.name, "name")]
    {
        if found.is_none_or(|found| found != expected) {
            return altered(format!("its {what} is \"{expected}\", which is not the name of its directory"));
        }
    }
    Ok(())
}

/// Reads a file that somebody else has put there: nothing but a regular file, and no more of it than `limit` bytes. Neither
/// a pipe nor a device is waited for.
fn read_regular(path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
    refuse_link(path)?;
    // What stands there by now may be another thing.
    read_with(path, limit, nix::libc::O_NOFOLLOW)
}

/// Reads a file that the operator named, by a link too: nothing but a regular file, and no more of it than `limit` bytes.
/// Neither a pipe nor a device is waited for.
///
/// # Errors
/// [`Error`] if it cannot be read, is too large, or is no regular file.
pub fn read_named(path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
    read_with(path, limit, 0)
}

fn read_with(path: &Path, limit: usize, flags: i32) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io { action: "read", path: path.into(), source };
    let irregular = || {
        let problem = "found no regular file, expected one: neither a directory nor a pipe nor a device";
        Error::Altered { path: path.into(), problem: problem.into() }
    };
    let too_large = |found| Error::TooLarge { path: path.into(), found, limit };
    // Opening a device may do something.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(irregular());
    }
    let flags = nix::libc::O_NONBLOCK | flags;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?;
    if !found.is_file() {
        return Err(irregular());
    }
    let most = limit as u64;
    if found.len() > most {
        return Err(too_large(found.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(limit));
    file.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() > limit { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Parses golden rows, one JSON object per line. Whether a row's numbers are as many as the model answers is for the check.
///
/// # Errors
/// [`Error::Golden`] naming the line of `path`.
pub fn read_golden(path: &Path, bytes: &[u8]) -> Result<Vec<GoldenRow>, Error> {
    let lines =
        bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    lines
        .map(|(at, line)| {
            let wrong = |message| Error::Golden { path: path.into(), line: at + 1, message };
            serde_json::from_slice(line).map_err(|error| {
                wrong(format!(
                    "expected {{\"features\":{{…}},\"expected\":number or one number per class}}: {error}"
                ))
            })
        })
        .collect()
}

/// The digest of `bytes` as manifests write it.
pub fn digest_of(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The largest file of this name that a version may list.
pub fn max_bytes(name: &str) -> usize {
    if name == MODEL { lint::Limits::default().file_bytes } else { MAX_ROWS_BYTES }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Checks a model's or a version's name.
///
/// # Errors
/// [`Error::Name`] if it cannot be a directory of the repository.
pub fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    if is_plain_name(name) { Ok(()) } else { Err(Error::Name { what, name: name.into() }) }
}

/// A version that was published.
#[derive(Debug)]
pub struct Published {
    /// Where it is.
    pub directory: PathBuf,
    /// What could not be done after that: a power cut may undo it, or nothing says that the first version is live.
    pub unfinished: Option<Error>,
}

/// A directory of packages: `<model>/<version>/`.
#[derive(Debug, Clone)]
pub struct Repository {
    root: PathBuf,
}

impl Repository {
    /// The repository at `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every model and its versions that have a manifest, both in the order of their names. A model that cannot be listed is
    /// left out.
    ///
    /// # Errors
    /// [`Error::Io`] if the repository cannot be read.
    pub fn list(&self) -> Result<BTreeMap<String, Vec<String>>, Error> {
        let listed = self.models()?.into_iter().filter_map(|model| {
            let versions = self.versions(&model).ok().filter(|versions| !versions.is_empty())?;
            Some((model, versions))
        });
        Ok(listed.collect())
    }

    /// The directories that may hold a model's versions, in the order of their names. Names that begin with a dot are passed
    /// over, as is everything that is no directory.
    ///
    /// # Errors
    /// [`Error::Io`] if the repository cannot be read; one that does not exist has no models.
    pub fn models(&self) -> Result<Vec<String>, Error> {
        directories(&self.root)
    }

    /// The versions of `model` that have a manifest, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Io`] if its directory cannot be read; a model that does not exist has no versions.
    pub fn versions(&self, model: &str) -> Result<Vec<String>, Error> {
        if !is_plain_name(model) {
            return Ok(Vec::new());
        }
        let directory = self.root.join(model);
        let mut versions = directories(&directory)?;
        // Whatever is called so: what is no file is refused with a reason.
        versions.retain(|version| fs::symlink_metadata(directory.join(version).join(MANIFEST)).is_ok());
        Ok(versions)
    }

    /// Where a version is.
    pub fn directory(&self, model: &str, version: &str) -> PathBuf {
        self.root.join(model).join(version)
    }

    /// The first name `YYYY-MM-DD_NN` that `model` has no version of, for `date` (`YYYY-MM-DD`).
    ///
    /// # Errors
    /// [`Error::Io`] if the model's directory cannot be read.
    pub fn next_version(&self, model: &str, date: &str) -> Result<String, Error> {
        let taken = directories(&self.root.join(model))?;
        let numbers =
            taken.iter().filter_map(|name| name.strip_prefix(date)?.strip_prefix('_')?.parse::<u32>().ok());
        Ok(format!("{date}_{:02}", numbers.max().unwrap_or(0) + 1))
    }

    /// Publishes `files` as a new version: writes them with a manifest of their digests into a hidden directory, syncs
    /// them, and renames it into place.
    ///
    /// `manifest.files` is filled here.
    ///
    /// # Errors
    /// [`Error::Exists`] if the version is there already, [`Error::Name`] for a bad name, [`Error::Io`] otherwise; then nothing is
    /// published.
    pub fn publish(&self, mut manifest: Manifest, files: &[(&str, &[u8])]) -> Result<Published, Error> {
        check_name("model", &manifest.name)?;
        check_name("version", &manifest.version)?;
        let parent = self.root.join(&manifest.name);
        let target = parent.join(&manifest.version);
        let exists = || Error::Exists { model: manifest.name.clone(), version: manifest.version.clone() };
        if fs::symlink_metadata(&target).is_ok() {
            return Err(exists());
        }
        owner::make_directory(&parent).map_err(io_error("create", &parent))?;
        sweep(&parent);
        let staging = tempfile::Builder::new()
            .prefix(STAGING)
            .tempdir_in(&parent)
            .map_err(io_error("create a directory in", &parent))?;
        for (name, bytes) in files {
            check_name("file", name)?;
            manifest.files.insert((*name).into(), digest_of(bytes));
            write_synced(&staging.path().join(name), bytes)?;
        }
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|source| Error::Manifest { path: target.join(MANIFEST), source })?;
        if text.len() > MAX_MANIFEST_BYTES {
            let (path, found) = (target.join(MANIFEST), text.len() as u64);
            return Err(Error::TooLarge { path, found, limit: MAX_MANIFEST_BYTES });
        }
        write_synced(&staging.path().join(MANIFEST), &text)?;
        set_readable(staging.path())?;
        sync_directory(staging.path())?;
        // Renaming onto a directory that is not empty fails, so that of two publishers one wins and none overwrites.
        match fs::rename(staging.path(), &target) {
            Ok(()) => {}
            Err(_) if fs::symlink_metadata(&target).is_ok() => {
                return Err(Error::Exists { model: manifest.name, version: manifest.version });
            }
            Err(source) => return Err(Error::Io { action: "publish", path: target, source }),
        }
        // The directory has moved: there is nothing left to remove.
        let _ = staging.keep();
        let unfinished = self.finish(&manifest.name, &manifest.version).err();
        Ok(Published { directory: target, unfinished })
    }

    /// What is done once a version is in its place: that is on the disk, and the first version of a model goes live. Later ones wait to
    /// be promoted.
    fn finish(&self, model: &str, version: &str) -> Result<(), Error> {
        let directory = self.root.join(model);
        sync_directory(&directory)?;
        sync_directory(&self.root)?;
        let versions = directories(&directory)?;
        if versions.len() == 1 && fs::symlink_metadata(directory.join(ROLLOUT)).is_err() {
            // Somebody may have said meanwhile who answers.
            let begin = |found: Option<&Rollout>| {
                Ok::<_, Error>(found.cloned().unwrap_or_else(|| Rollout::of(version)))
            };
            self.change_rollout(model, begin)?;
        }
        Ok(())
    }

    /// The rollout of `model`, where there is one.
    ///
    /// # Errors
    /// [`Error`] if it cannot be read, is a symbolic link, or is no rollout.
    pub fn read_rollout(&self, model: &str) -> Result<Option<Rollout>, Error> {
        let path = self.root.join(model).join(ROLLOUT);
        if matches!(fs::symlink_metadata(&path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let text = read_regular(&path, MAX_ROLLOUT_BYTES)?;
        serde_json::from_slice(&text).map(Some).map_err(|source| Error::Rollout { path, source })
    }

    /// Replaces the rollout of `model` by what `change` makes of the one that is there, and returns it. A lock keeps two that
    /// change it at once apart.
    ///
    /// # Errors
    /// [`Error`] if it cannot be read or written, or another holds the lock for too long, and what `change` refuses; then nothing has
    /// changed.
    pub fn change_rollout<E: From<Error>>(
        &self,
        model: &str,
        mut change: impl FnMut(Option<&Rollout>) -> Result<Rollout, E>,
    ) -> Result<Rollout, E> {
        let path = self.root.join(model).join(".rollout.lock");
        let _lock = lock::hold(&path, ROLLOUT_PATIENCE).map_err(io_error("lock", &path))?;
        let before = self.read_rollout(model)?;
        let rollout = change(before.as_ref())?;
        if before.as_ref() != Some(&rollout) {
            self.write_rollout(model, &rollout)?;
        }
        Ok(rollout)
    }

    /// Replaces the rollout of `model` in one step.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, [`Error::TooLarge`] if nobody would read it.
    pub fn write_rollout(&self, model: &str, rollout: &Rollout) -> Result<(), Error> {
        use std::os::unix::fs::PermissionsExt;
        let directory = self.root.join(model);
        let path = directory.join(ROLLOUT);
        let mut text =
            serde_json::to_vec(rollout).map_err(|source| Error::Rollout { path: path.clone(), source })?;
        text.push(b'\n');
        if text.len() > MAX_ROLLOUT_BYTES {
            return Err(Error::TooLarge { path, found: text.len() as u64, limit: MAX_ROLLOUT_BYTES });
        }
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(STAGED_ROLLOUT).tempfile_in(&directory)?;
            file.write_all(&text)?;
            // Temporary files are private; a rollout is for every reader of the repository.
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(io_error("write", &path))?;
        sync_directory(&directory)
    }
}

/// Removes what publishers that were killed have left among a model's versions. What cannot be removed is in nobody's way.
fn sweep(model: &Path) {
    for entry in fs::read_dir(model).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_left = [STAGING, STAGED_ROLLOUT]
            .iter()
            .any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
        let age = entry.metadata().and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
        if is_left && age.is_some_and(|age| age > DEAD) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

fn directories(path: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Io { action: "list", path: path.into(), source }),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("list", path))?;
        // The type of the entry itself: symbolic links are no directories here.
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match entry.file_name().into_string() {
            Ok(name) if is_directory && is_plain_name(&name) => names.push(name),
            _ => {}
        }
    }
    names.sort();
    Ok(names)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = File::create_new(path).map_err(io_error("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", path))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error("sync", path))
}

/// Temporary directories are private; a published package is for every reader of the repository.
fn set_readable(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(io_error("publish", path))
}

#[cfg(test)]
mod tests;
