//! Reads, verifies and publishes model packages, and lists a repository of them.
//!
//! A package is a directory `<repository>/<model>/<version>` that never changes once published. It appears in one step (a
//! rename within the repository), so that a reader sees all of it or nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use scoregate_schemas::feature_schema::{self, FeatureSchema};
use scoregate_schemas::manifest::{self, Bindings, Manifest, Output, Rollout, SourceKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

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

fn io_error<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + 'p {
    move |source| Error::Io { action, path: path.into(), source }
}

/// One golden row: features as a client sends them, and the probability that the model's own library gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRow {
    /// The row, as a JSON object.
    pub features: Map<String, Value>,
    /// P(positive class).
    pub expected: f64,
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
}

impl Package {
    /// Reads the package in `directory` and checks every file against its digest, and name and version against the path.
    ///
    /// # Errors
    /// [`Error`] naming the file and what is wrong with it.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(MANIFEST);
        refuse_link(directory)?;
        refuse_link(&path)?;
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|source| Error::Manifest { path: path.clone(), source })?;
        let altered = |path: &Path, problem: String| Error::Altered { path: path.into(), problem };
        if manifest.format != manifest::FORMAT {
            let problem = format!("found manifest format {}, expected {}", manifest.format, manifest::FORMAT);
            return Err(altered(&path, problem));
        }
        let parts: Vec<_> =
            directory.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy()).collect();
        for (found, expected, what) in
            [(parts.first(), &manifest.version, "version"), (parts.get(1), &manifest.name, "name")]
        {
            if found.is_none_or(|found| found != expected) {
                let problem = format!("its {what} is \"{expected}\", which is not the name of its directory");
                return Err(altered(&path, problem));
            }
        }
        let mut graph = None;
        let mut golden = Vec::new();
        for (name, digest) in &manifest.files {
            if !is_plain_name(name) {
                return Err(altered(
                    &path,
                    format!("it lists the file \"{}\"; expected a plain name", name.escape_debug()),
                ));
            }
            let file = directory.join(name);
            refuse_link(&file)?;
            let bytes = fs::read(&file).map_err(io_error("read", &file))?;
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
                _ => {}
            }
        }
        let graph = graph.ok_or_else(|| altered(&path, format!("it does not list {MODEL}")))?;
        let schema = FeatureSchema::from_document(manifest.schema.clone())?;
        check_contents(&manifest, &schema, golden.len()).map_err(|problem| altered(&path, problem))?;
        Ok(Self { directory: directory.into(), manifest, schema, graph, golden })
    }

    /// The digest of the graph, `sha256:…`.
    pub fn digest(&self) -> &str {
        self.manifest.files.get(MODEL).map_or("", String::as_str)
    }
}

/// Whether the parts of a manifest fit each other: nothing else vouches for them.
fn check_contents(manifest: &Manifest, schema: &FeatureSchema, golden: usize) -> Result<(), String> {
    let Bindings::Columns { columns } = &manifest.bindings;
    let bound = columns.iter().map(|column| column.feature.as_str());
    if !bound.eq(schema.features().map(|field| field.name.as_str())) {
        return Err("its bindings are not the schema's features, one by one in their order".into());
    }
    let Output::Probabilities { classes, positive, .. } = manifest.output;
    if classes != 2 || manifest.labels.len() != 2 || positive > 1 {
        return Err(format!(
            "found {} labels for {classes} classes, expected 2 for 2",
            manifest.labels.len()
        ));
    }
    for (name, value) in [("threshold", manifest.threshold), ("tolerance", manifest.tolerance)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(format!("found {value} as {name}, expected 0 to 1"));
        }
    }
    if golden == 0 && manifest.source.kind == SourceKind::Trainer {
        return Err(format!("it has no {GOLDEN}, which every version of the trainer has"));
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

/// Parses golden rows, one JSON object per line.
fn read_golden(path: &Path, bytes: &[u8]) -> Result<Vec<GoldenRow>, Error> {
    let lines =
        bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    lines
        .map(|(at, line)| {
            let wrong = |message| Error::Golden { path: path.into(), line: at + 1, message };
            let row: GoldenRow = serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
            if (0.0..=1.0).contains(&row.expected) {
                Ok(row)
            } else {
                Err(wrong(format!("expected a probability in [0, 1], found {}", row.expected)))
            }
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

    /// Every model and its versions that have a manifest, both in the order of their names. Names that begin with a dot are
    /// passed over, as is everything that is no directory.
    ///
    /// # Errors
    /// [`Error::Io`] if a directory cannot be read; a repository that does not exist has no models.
    pub fn list(&self) -> Result<BTreeMap<String, Vec<String>>, Error> {
        let mut models = BTreeMap::new();
        for model in directories(&self.root)? {
            let mut versions = directories(&self.root.join(&model))?;
            versions.retain(|version| self.root.join(&model).join(version).join(MANIFEST).is_file());
            if !versions.is_empty() {
                models.insert(model, versions);
            }
        }
        Ok(models)
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
    /// [`Error::Exists`] if the version is there already, [`Error::Name`] for a bad name, [`Error::Io`] otherwise.
    pub fn publish(&self, mut manifest: Manifest, files: &[(&str, &[u8])]) -> Result<PathBuf, Error> {
        check_name("model", &manifest.name)?;
        check_name("version", &manifest.version)?;
        let parent = self.root.join(&manifest.name);
        let target = parent.join(&manifest.version);
        let exists = || Error::Exists { model: manifest.name.clone(), version: manifest.version.clone() };
        if fs::symlink_metadata(&target).is_ok() {
            return Err(exists());
        }
        fs::create_dir_all(&parent).map_err(io_error("create", &parent))?;
        let staging = tempfile::Builder::new()
            .prefix(".publishing-")
            .tempdir_in(&parent)
            .map_err(io_error("create a directory in", &parent))?;
        for (name, bytes) in files {
            check_name("file", name)?;
            manifest.files.insert((*name).into(), digest_of(bytes));
            write_synced(&staging.path().join(name), bytes)?;
        }
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|source| Error::Manifest { path: target.join(MANIFEST), source })?;
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
        sync_directory(&parent)?;
        sync_directory(&self.root)?;
        // The first version of a model goes live; later ones wait to be promoted.
        let versions = directories(&parent)?;
        if versions.len() == 1 && fs::symlink_metadata(parent.join(ROLLOUT)).is_err() {
            self.write_rollout(&manifest.name, &Rollout { live: manifest.version })?;
        }
        Ok(target)
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
        refuse_link(&path)?;
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        serde_json::from_slice(&text).map(Some).map_err(|source| Error::Rollout { path, source })
    }

    /// Replaces the rollout of `model` in one step.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write_rollout(&self, model: &str, rollout: &Rollout) -> Result<(), Error> {
        use std::os::unix::fs::PermissionsExt;
        let directory = self.root.join(model);
        let path = directory.join(ROLLOUT);
        let mut text =
            serde_json::to_vec(rollout).map_err(|source| Error::Rollout { path: path.clone(), source })?;
        text.push(b'\n');
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".rollout-").tempfile_in(&directory)?;
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
mod tests {
    use super::*;
    use scoregate_schemas::manifest::{Bindings, Output, Source, SourceKind};
    use serde_json::json;

    fn manifest(version: &str) -> Manifest {
        let schema = json!({"type": "object", "properties": {"x": {"type": "number"}}});
        let parsed = FeatureSchema::from_document(schema.clone()).unwrap();
        Manifest {
            format: manifest::FORMAT,
            name: "churn".into(),
            version: version.into(),
            created_at: "2026-05-17T00:00:00Z".into(),
            files: BTreeMap::new(),
            schema,
            bindings: Bindings::columns_of(&parsed),
            output: Output::Probabilities { name: "probabilities".into(), classes: 2, positive: 1 },
            threshold: 0.5,
            labels: vec!["retain".into(), "churn".into()],
            tolerance: 1e-6,
            metrics: None,
            training: None,
            source: Source { kind: SourceKind::Trainer, producer: "test".into() },
        }
    }

    const GOLDEN_ROW: &[u8] = b"{\"features\":{\"x\":1},\"expected\":0.5}\n";

    fn published() -> (tempfile::TempDir, Repository, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::new(directory.path());
        let path = repository.publish(manifest("v1"), &[(MODEL, b"graph"), (GOLDEN, GOLDEN_ROW)]).unwrap();
        (directory, repository, path)
    }

    #[test]
    fn what_is_published_is_read_back() {
        let (_directory, repository, path) = published();
        let package = Package::read(&path).unwrap();
        assert_eq!((package.graph.as_slice(), package.golden.len()), (&b"graph"[..], 1));
        // SHA-256 of "graph", from sha256sum.
        assert_eq!(
            package.digest(),
            "sha256:eef93e1d14482804277fca0172464032d1a4fdbcc338524059fa1e861454ad4d"
        );
        assert_eq!(repository.list().unwrap(), BTreeMap::from([("churn".into(), vec!["v1".to_string()])]));
    }

    #[test]
    fn a_version_is_published_once() {
        let (_directory, repository, path) = published();
        let again = repository.publish(manifest("v1"), &[(MODEL, b"other")]);
        assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
        assert_eq!(fs::read(path.join(MODEL)).unwrap(), b"graph");
        let left = fs::read_dir(repository.root().join("churn")).unwrap().count();
        assert_eq!(left, 2, "the version and the rollout: nothing of the second attempt stays behind");
        assert_eq!(repository.read_rollout("churn").unwrap(), Some(Rollout { live: "v1".into() }));
    }

    #[test]
    fn of_many_publishers_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::new(directory.path());
        let won: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8_u8)
                .map(|publisher| {
                    let repository = &repository;
                    scope.spawn(move || {
                        let files: [(&str, &[u8]); 2] = [(MODEL, &[publisher]), (GOLDEN, GOLDEN_ROW)];
                        repository.publish(manifest("v1"), &files).is_ok()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        });
        assert_eq!(won, 1);
        assert!(Package::read(&repository.directory("churn", "v1")).is_ok());
    }

    #[test]
    fn every_alteration_is_noticed() {
        type Alter = fn(&Path);
        let alterations: [(&str, Alter); 10] = [
            ("bindings are not", |path| edit(path, "\"feature\": \"x\"", "\"feature\": \"y\"")),
            ("1 labels", |path| edit(path, "\"retain\",", "")),
            ("as threshold", |path| edit(path, "\"threshold\": 0.5", "\"threshold\": 1.5")),
            ("found digest", |path| fs::write(path.join(MODEL), b"grapH").unwrap()),
            ("cannot read", |path| fs::remove_file(path.join(GOLDEN)).unwrap()),
            ("is not a manifest", |path| fs::write(path.join(MANIFEST), b"{}").unwrap()),
            ("not the name of its directory", |path| edit(path, "\"v1\"", "\"v2\"")),
            ("not the name of its directory", |path| {
                edit(path, "\"churn\",\n  \"version\"", "\"other\",\n  \"version\"")
            }),
            ("expected a plain name", |path| edit(path, "\"model.onnx\"", "\"../model.onnx\"")),
            ("symbolic link", |path| {
                fs::rename(path.join(MODEL), path.join("elsewhere")).unwrap();
                std::os::unix::fs::symlink("elsewhere", path.join(MODEL)).unwrap();
            }),
        ];
        for (expected, alter) in alterations {
            let (_directory, _repository, path) = published();
            alter(&path);
            let error = Package::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    fn edit(path: &Path, from: &str, to: &str) {
        let text = fs::read_to_string(path.join(MANIFEST)).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(path.join(MANIFEST), text.replacen(from, to, 1)).unwrap();
    }

    #[test]
    fn the_first_version_goes_live_and_later_ones_wait() {
        let (_directory, repository, _) = published();
        repository.publish(manifest("v0"), &[(MODEL, b"graph"), (GOLDEN, GOLDEN_ROW)]).unwrap();
        assert_eq!(repository.read_rollout("churn").unwrap(), Some(Rollout { live: "v1".into() }));
        repository.write_rollout("churn", &Rollout { live: "v0".into() }).unwrap();
        assert_eq!(repository.read_rollout("churn").unwrap(), Some(Rollout { live: "v0".into() }));
        fs::write(repository.root().join("churn").join(ROLLOUT), b"{}").unwrap();
        assert!(matches!(repository.read_rollout("churn"), Err(Error::Rollout { .. })));
        assert_eq!(repository.read_rollout("other").unwrap(), None);
    }

    #[test]
    fn names_cannot_leave_the_repository() {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::new(directory.path().join("inner"));
        let long = "x".repeat(129);
        for name in ["", ".", "..", ".hidden", "a/b", "../x", "a\0", "%2e%2e", "ü", &long] {
            assert!(matches!(repository.publish(manifest(name), &[]), Err(Error::Name { .. })), "{name}");
        }
        assert!(!directory.path().join("inner").exists());
    }

    #[test]
    fn hidden_linked_and_unfinished_directories_are_passed_over() {
        let (_directory, repository, path) = published();
        let model = repository.root().join("churn");
        fs::create_dir(model.join("no-manifest-yet")).unwrap();
        fs::create_dir(model.join(".publishing-x")).unwrap();
        std::os::unix::fs::symlink(&path, model.join("linked")).unwrap();
        fs::write(repository.root().join("file"), b"").unwrap();
        assert_eq!(repository.list().unwrap()["churn"], ["v1"]);
    }

    #[test]
    fn versions_of_a_day_are_counted_up() {
        let (_directory, repository, _) = published();
        assert_eq!(repository.next_version("churn", "2026-05-17").unwrap(), "2026-05-17_01");
        for taken in ["2026-05-17_01", "2026-05-17_09", "2026-05-16_40"] {
            repository.publish(manifest(taken), &[(MODEL, b"graph")]).unwrap();
        }
        assert_eq!(repository.next_version("churn", "2026-05-17").unwrap(), "2026-05-17_10");
        assert_eq!(repository.next_version("other", "2026-05-17").unwrap(), "2026-05-17_01");
    }
}
