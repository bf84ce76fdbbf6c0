//! Lock files, which keep commands and gateways apart that change the same thing, though they run as different users.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;

use crate::owner::{give_to_owner_of, parent};

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

/// The same, beside others who share it.
///
/// # Errors
/// As [`hold`].
pub fn share(path: &Path, patience: Duration) -> io::Result<File> {
    let file = open(path)?;
    wait_until(|| file.try_lock_shared(), patience)?;
    Ok(file)
}

/// Opens the lock file at `path`. Where there is none, one is made that everybody can use who may look into its directory, whatever the
/// umask: who makes the first change must not lock out those who come later.
///
/// # Errors
/// The system's; a link or what is no file is none that is opened.
pub fn open(path: &Path) -> io::Result<File> {
    let file = match open_there(path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => match make(path) {
            // Another has made it meanwhile.
            Err(there) if there.kind() == io::ErrorKind::AlreadyExists => open_there(path),
            made => made,
        },
        opened => opened,
    }?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "found no regular file, expected one"));
    }
    Ok(file)
}

fn open_there(path: &Path) -> io::Result<File> {
    match options().append(true).open(path) {
        // Another user has made it. It is enough to read it, but for network file systems.
        Err(refused) if refused.kind() == io::ErrorKind::PermissionDenied => {
            options().open(path).map_err(|_| refused)
        }
        opened => opened,
    }
}

/// To be read, and by most to be written too: over NFS a shared lock takes the one, any other lock the other. Whoever may write beside it
/// may have put a link or a pipe in its place: neither is followed nor waited for.
fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

fn make(path: &Path) -> io::Result<File> {
    let file = options().append(true).create_new(true).mode(0o644).open(path)?;
    give_to_owner_of(&file, parent(path))?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

/// Locks a file or directory until it is closed, if another lets go of it within `patience`.
///
/// # Errors
/// The system's, or [`io::ErrorKind::TimedOut`] if another holds the lock for longer.
pub fn wait(file: &File, patience: Duration) -> io::Result<()> {
    wait_until(|| file.try_lock(), patience)
}

fn wait_until(lock: impl Fn() -> Result<(), TryLockError>, patience: Duration) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match lock() {
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
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

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
    fn those_who_share_a_lock_keep_out_who_wants_it_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".lock");
        let shared = [(); 2].map(|()| share(&path, Duration::ZERO).unwrap());
        assert_eq!(hold(&path, Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(shared);
        let held = hold(&path, Duration::ZERO).unwrap();
        assert_eq!(share(&path, Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(held);
    }

    #[test]
    fn what_is_no_lock_file_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        symlink("nowhere", place("dangling")).unwrap();
        fs::write(place("file"), "").unwrap();
        symlink("file", place("link")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(place("pipe")).status().unwrap().success());
        fs::create_dir(place("directory")).unwrap();
        for name in ["dangling", "link", "pipe", "directory"] {
            assert!(open(&place(name)).is_err(), "{name}");
        }
        assert!(!place("nowhere").exists(), "nothing is made where a link leads");
    }

    #[test]
    fn a_lock_that_the_superuser_makes_is_its_directory_s() {
        let directory = tempfile::tempdir().unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(directory.path(), Some(12_345), Some(12_345)).unwrap();
        }
        let made = open(&directory.path().join(".lock")).unwrap().metadata().unwrap();
        assert_eq!(made.uid(), fs::metadata(directory.path()).unwrap().uid());
        assert_eq!(made.mode() & 0o7777, 0o644);
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
