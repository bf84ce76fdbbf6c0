//! Lock files, which keep commands and gateways apart that change the same thing, though they run as different users.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often it is looked whether a lock is free.
const LOCK_EVERY: Duration = Duration::from_millis(10);

/// Opens the lock file at `path` and locks it until it is closed.
///
/// # Errors
/// As [`open`] and [`wait`].
pub fn hold(path: &Path, patience: Duration) -> io::Result<File> {
    let file = open(path)?;
    wait(&file, patience)?;
    Ok(file)
}

/// Opens the lock file at `path`. Where there is none, one is made that everybody can use who may look into its directory, whatever the
/// umask: who makes the first change must not lock out those who come later.
///
/// # Errors
/// The system's.
pub fn open(path: &Path) -> io::Result<File> {
    match File::options().append(true).open(path) {
        // Another user has made it. It is enough to read it, but for network file systems.
        Err(refused) if refused.kind() == io::ErrorKind::PermissionDenied => {
            File::open(path).map_err(|_| refused)
        }
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => match make(path) {
            // Another has made it meanwhile.
            Err(there) if there.kind() == io::ErrorKind::AlreadyExists => open(path),
            made => made,
        },
        opened => opened,
    }
}

fn make(path: &Path) -> io::Result<File> {
    let file = File::options().append(true).create_new(true).mode(0o644).open(path)?;
    if nix::unistd::geteuid().is_root()
        && let Some(directory) = path.parent()
    {
        let place = fs::metadata(directory)?;
        match fchown(&file, Some(place.uid()), Some(place.gid())) {
            // A superuser who may not give things away.
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    }
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

/// Locks a file or directory until it is closed, if another lets go of it within `patience`.
///
/// # Errors
/// The system's, or [`io::ErrorKind::TimedOut`] if another holds the lock for longer.
pub fn wait(file: &File, patience: Duration) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= patience => {
                let text = format!("another process holds its lock for longer than {patience:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(LOCK_EVERY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_everybody_s_and_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".lock");
        let held = hold(&path, Duration::ZERO).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        let refused = hold(&path, Duration::from_millis(30)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        drop(held);
        hold(&path, Duration::ZERO).unwrap();
        let missing = open(&directory.path().join("no/.lock")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn who_may_only_read_a_lock_can_hold_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".lock");
        drop(open(&path).unwrap());
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        hold(&path, Duration::ZERO).unwrap();
    }
}
