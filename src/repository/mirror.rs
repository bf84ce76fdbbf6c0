//! [`Mirror`]: what a bucket holds, as a repository on this machine.
//!
//! Gateways and commands that run here share it. A version is put in its place by one rename, once all of it is on the disk; beside it
//! stands which objects it was made of. Where what is written depends on what the store says at that moment, a lock is held from the
//! question on, so that nobody puts back what was there before.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use scoregate_model::lock;
use scoregate_model::package::{self, MANIFEST, ROLLOUT, Repository};
use tempfile::TempDir;

use crate::files::{self, give_to_owner_of, make_directory};

/// What directories are called until they are in their place, or after they were taken from it.
const STAGING: &str = ".mirroring-";
/// What the lock is called.
const LOCK: &str = ".lock";
/// How long another may hold it, who asks the store meanwhile.
const PATIENCE: Duration = Duration::from_secs(15);
/// When a directory that is left must be of a process that is dead.
const DEAD: Duration = Duration::from_secs(3_600);

/// The objects that a version was made of, by their names below its directory, and what tells their contents from others.
pub(super) type Marks = BTreeMap<String, String>;

/// The mirror of a bucket.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    repository: Repository,
}

impl Mirror {
    /// The mirror in the directory of `repository`, which is made where it is not there yet.
    pub(super) fn open(repository: Repository) -> io::Result<Self> {
        make_directory(repository.root())?;
        Ok(Self { repository })
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Whether there is anything in it.
    pub(super) fn is_empty(&self) -> bool {
        self.repository.list().is_ok_and(|models| models.is_empty())
    }

    /// Holds the lock until what is given is dropped.
    pub(super) fn lock(&self) -> Result<File, package::Error> {
        let path = self.repository.root().join(LOCK);
        // Somebody may have removed all of it.
        let made = make_directory(self.repository.root());
        made.and_then(|()| lock::hold(&path, PATIENCE)).map_err(|source| package::Error::Io {
            action: "lock",
            path,
            source,
        })
    }

    fn marks_file(&self, model: &str, version: &str) -> PathBuf {
        self.repository.root().join(model).join(format!(".{version}.objects.json"))
    }

    /// What the version in its place was made of; nothing if it is not there.
    pub(super) fn marks(&self, model: &str, version: &str) -> Option<Marks> {
        let directory = self.repository.directory(model, version);
        fs::symlink_metadata(directory.join(MANIFEST)).ok()?;
        serde_json::from_slice(&fs::read(self.marks_file(model, version)).ok()?).ok()
    }

    /// The bytes of a file of a version; nothing if it is not there.
    pub(super) fn bytes(&self, model: &str, version: &str, file: &str) -> Option<u64> {
        let found = fs::symlink_metadata(self.repository.directory(model, version).join(file)).ok()?;
        found.is_file().then_some(found.len())
    }

    /// A directory in which a version of `model` can be put together.
    pub(super) fn staging(&self, model: &str) -> Result<TempDir, package::Error> {
        let parent = self.repository.root().join(model);
        let make = || {
            make_directory(&parent)?;
            let staging = tempfile::Builder::new().prefix(STAGING).tempdir_in(&parent)?;
            give_to_owner_of(&File::open(staging.path())?, &parent)?;
            Ok(staging)
        };
        make().map_err(|source| package::Error::Io {
            action: "create a directory in",
            path: parent.clone(),
            source,
        })
    }

    /// Makes what is in `staging` the version, in place of what may be there. All of it is on the disk before that.
    pub(super) fn place(
        &self,
        model: &str,
        version: &str,
        staging: TempDir,
        marks: &Marks,
    ) -> Result<(), package::Error> {
        let target = self.repository.directory(model, version);
        let place = || -> io::Result<()> {
            for entry in fs::read_dir(staging.path())? {
                let file = File::open(entry?.path())?;
                give_to_owner_of(&file, files::parent(&target))?;
                file.sync_all()?;
            }
            let directory = File::open(staging.path())?;
            {
                use std::os::unix::fs::PermissionsExt;
                directory.set_permissions(fs::Permissions::from_mode(0o755))?;
            }
            directory.sync_all()?;
            let _lock = self.lock().map_err(io::Error::other)?;
            if self.marks(model, version).as_ref() == Some(marks) {
                // Another has done the same.
                return Ok(());
            }
            self.move_away(model, version)?;
            fs::rename(staging.path(), &target)?;
            File::open(files::parent(&target))?.sync_all()?;
            self.write(&self.marks_file(model, version), &serde_json::to_vec(marks)?)
        };
        place().map_err(|source| package::Error::Io { action: "write", path: target.clone(), source })?;
        // What has moved is not there to be removed.
        drop(staging);
        Ok(())
    }

    /// Notes that the version in its place is made of these objects as well.
    pub(super) fn note(&self, model: &str, version: &str, marks: &Marks) -> Result<(), package::Error> {
        let path = self.marks_file(model, version);
        let write = || self.write(&path, &serde_json::to_vec(marks)?);
        write().map_err(|source| package::Error::Io { action: "write", path: path.clone(), source })
    }

    /// Removes a version. The lock is held.
    pub(super) fn remove(&self, model: &str, version: &str) -> Result<(), package::Error> {
        let path = self.repository.directory(model, version);
        self.move_away(model, version).map_err(|source| package::Error::Io { action: "remove", path, source })
    }

    /// Takes a version out of its place, so that nobody sees half of it, and deletes it.
    fn move_away(&self, model: &str, version: &str) -> io::Result<()> {
        let target = self.repository.directory(model, version);
        if fs::symlink_metadata(&target).is_err() {
            return Ok(());
        }
        match fs::remove_file(self.marks_file(model, version)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let aside = tempfile::Builder::new().prefix(STAGING).tempdir_in(files::parent(&target))?;
        fs::rename(&target, aside.path().join(version))
        // What cannot be deleted is left for the next start.
    }

    /// Whether there is a rollout of `model`.
    pub(super) fn has_rollout(&self, model: &str) -> bool {
        fs::symlink_metadata(self.rollout_file(model)).is_ok()
    }

    fn rollout_file(&self, model: &str) -> PathBuf {
        self.repository.root().join(model).join(ROLLOUT)
    }

    /// Makes `text` the rollout of `model`, or that there is none. True if that is another one than before. The lock is held.
    pub(super) fn put_rollout(&self, model: &str, text: Option<&[u8]>) -> Result<bool, package::Error> {
        let path = self.rollout_file(model);
        let before = fs::read(&path).ok();
        if before.as_deref() == text {
            return Ok(false);
        }
        let put = || match text {
            None => fs::remove_file(&path),
            Some(text) => {
                make_directory(files::parent(&path))?;
                self.write(&path, text)
            }
        };
        put().map_err(|source| package::Error::Io { action: "write", path: path.clone(), source })?;
        Ok(true)
    }

    /// Replaces the file at `path` in one step.
    fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let directory = files::parent(path);
        let mut file = tempfile::Builder::new().prefix(STAGING).tempfile_in(directory)?;
        file.write_all(text)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        give_to_owner_of(file.as_file(), directory)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(directory)?.sync_all()
    }

    /// Removes what processes that were killed have left.
    pub(super) fn sweep(&self) {
        for model in self.repository.models().unwrap_or_default() {
            let directory = self.repository.root().join(model);
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let is_ours = entry.file_name().to_string_lossy().starts_with(STAGING);
                let age = entry.metadata().and_then(|found| found.modified()).ok();
                let age = age.and_then(|at| at.elapsed().ok());
                if !is_ours || age.is_none_or(|age| age < DEAD) {
                    continue;
                }
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                if let Err(error) = removed {
                    tracing::warn!(path = %path.display(), error = %error, "what an earlier run has left cannot be removed");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> (TempDir, Mirror) {
        let directory = tempfile::tempdir().unwrap();
        let mirror = Mirror::open(Repository::new(directory.path().join("a/b"))).unwrap();
        (directory, mirror)
    }

    fn staged(mirror: &Mirror, manifest: &str) -> TempDir {
        let staging = mirror.staging("m").unwrap();
        fs::write(staging.path().join(MANIFEST), manifest).unwrap();
        staging
    }

    fn names(mirror: &Mirror) -> Vec<String> {
        let entries = fs::read_dir(mirror.repository.root().join("m")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_version_takes_its_place_and_leaves_nothing_behind() {
        let (_directory, mirror) = mirror();
        assert!(mirror.is_empty());
        assert_eq!(mirror.marks("m", "v"), None);
        let marks = Marks::from([("manifest.json".into(), "1".into())]);
        mirror.place("m", "v", staged(&mirror, "one"), &marks).unwrap();
        assert!(!mirror.is_empty());
        assert_eq!(mirror.marks("m", "v"), Some(marks));
        assert_eq!(mirror.bytes("m", "v", MANIFEST), Some(3));
        let other = Marks::from([("manifest.json".into(), "2".into())]);
        mirror.place("m", "v", staged(&mirror, "other"), &other).unwrap();
        assert_eq!((mirror.marks("m", "v"), mirror.bytes("m", "v", MANIFEST)), (Some(other), Some(5)));
        assert_eq!(names(&mirror), [".v.objects.json", "v"]);
        let _lock = mirror.lock().unwrap();
        mirror.remove("m", "v").unwrap();
        assert_eq!(mirror.marks("m", "v"), None);
        assert!(names(&mirror).is_empty());
        mirror.remove("m", "v").unwrap();
    }

    #[test]
    fn a_rollout_is_written_only_where_it_changes() {
        let (_directory, mirror) = mirror();
        assert!(!mirror.put_rollout("m", None).unwrap());
        assert!(mirror.put_rollout("m", Some(b"{\"live\":\"v\"}")).unwrap());
        assert!(!mirror.put_rollout("m", Some(b"{\"live\":\"v\"}")).unwrap());
        assert_eq!(mirror.repository.read_rollout("m").unwrap().unwrap().live, "v");
        assert!(mirror.put_rollout("m", None).unwrap());
        assert!(names(&mirror).is_empty());
    }

    #[test]
    fn what_dead_processes_left_is_removed_and_what_live_ones_use_is_not() {
        let (_directory, mirror) = mirror();
        let used = mirror.staging("m").unwrap();
        let left = mirror.staging("m").unwrap().keep();
        let file = File::open(&left).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * DEAD).unwrap();
        mirror.sweep();
        assert!(used.path().is_dir() && !left.exists());
    }
}
