//! Room for what is sent to be published: a directory for each upload in the state directory, for a few at once, that goes with it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use scoregate_model::lock;
use tempfile::TempDir;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::files;

/// How many uploads are taken in at once: each may take as much memory as a model has bytes, and a process to try it in.
const AT_ONCE: usize = 2;

/// What is locked while there are uploads.
const LOCK: &str = ".lock";
/// How long whoever sweeps may hold it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where uploads go.
#[derive(Debug)]
pub struct Uploads {
    directory: PathBuf,
    places: Arc<Semaphore>,
}

/// The right to take in one upload.
#[derive(Debug)]
pub struct Place {
    directory: PathBuf,
    permit: OwnedSemaphorePermit,
}

/// A directory for one upload, which goes when this is dropped.
#[derive(Debug)]
pub struct Upload {
    // The order is that in which they go: the directory, then the lock, then the place.
    directory: TempDir,
    _lock: File,
    _permit: OwnedSemaphorePermit,
}

impl Uploads {
    /// Uploads under `state_dir`. What a gateway that was killed has left there is removed.
    pub fn new(state_dir: &Path) -> Self {
        let (directory, places) = (state_dir.join("uploads"), Arc::new(Semaphore::new(AT_ONCE)));
        let uploads = Self { directory, places };
        if let Err(error) = uploads.sweep() {
            let directory = uploads.directory.display().to_string();
            tracing::warn!(directory, error = %error, "what is left of uploads could not be removed");
        }
        uploads
    }

    /// A place, if there is one.
    pub fn place(&self) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place { directory: self.directory.clone(), permit })
    }

    /// Removes what is left of uploads, unless there are any now: gateways may share the directory.
    fn sweep(&self) -> io::Result<()> {
        let path = self.directory.join(LOCK);
        if !path.try_exists()? {
            return Ok(());
        }
        let lock = lock::open(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Place {
    /// Makes a directory for the upload.
    ///
    /// # Errors
    /// The system's.
    pub fn open(self) -> io::Result<Upload> {
        let Self { directory, permit } = self;
        files::make_directory(&directory)?;
        let lock = lock::share(&directory.join(LOCK), PATIENCE)?;
        let directory = tempfile::Builder::new().prefix("upload-").tempdir_in(&directory)?;
        Ok(Upload { directory, _lock: lock, _permit: permit })
    }
}

impl Upload {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(state: &Path) -> usize {
        let directory = fs::read_dir(state.join("uploads")).unwrap();
        directory.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    }

    #[test]
    fn what_is_left_is_swept_and_what_is_in_hand_is_not() {
        let state = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(state.path());
        assert!(!state.path().join("uploads").exists(), "nothing is made before it is needed");
        let upload = uploads.place().unwrap().open().unwrap();
        fs::write(upload.path().join("model.onnx"), "half").unwrap();
        // As a gateway that was killed leaves it.
        fs::create_dir(state.path().join("uploads/upload-left")).unwrap();
        Uploads::new(state.path());
        assert_eq!(entries(state.path()), 2, "another gateway is at it");
        drop(upload);
        assert_eq!(entries(state.path()), 1, "an upload leaves nothing");
        Uploads::new(state.path());
        assert_eq!(entries(state.path()), 0);
    }

    #[test]
    fn places_are_few_and_come_back() {
        let state = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(state.path());
        let taken: Vec<Place> = std::iter::from_fn(|| uploads.place()).collect();
        assert_eq!(taken.len(), AT_ONCE);
        drop(taken);
        assert!(uploads.place().is_some());
    }
}
