//! What commands and gateways, which may run as different users, need for the files that they share: owners, locks, and
//! stamps that tell whether a file has changed.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::Duration;

use scoregate_model::lock;
pub use scoregate_model::owner::{give_to_owner_of, make_directory, parent};

/// How long another may hold a lock that is waited for.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Whether there is no room for what was to be written.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What tells that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// That of the file that `found` describes.
    pub fn of(found: &fs::Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// Locks a file or directory until it is closed.
///
/// # Errors
/// The system's, or [`io::ErrorKind::TimedOut`] if another holds the lock for longer than [`LOCK_PATIENCE`].
pub fn lock(file: &File) -> io::Result<()> {
    lock::wait(file, LOCK_PATIENCE)
}

/// Gives `file` the owner, group and mode of the one at `path` that it is to replace. Where there is none, it is as
/// [`give_to_owner_of`] its directory makes it.
///
/// # Errors
/// The system's. Who goes on all the same may lock out whoever reads the file.
pub fn take_after(file: &File, path: &Path, directory: &Path) -> io::Result<()> {
    let old = match fs::metadata(path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return give_to_owner_of(file, directory),
        Err(error) => return Err(error),
    };
    let new = file.metadata()?;
    let differs = |old: u32, new: u32| (old != new).then_some(old);
    let (owner, group) = (differs(old.uid(), new.uid()), differs(old.gid(), new.gid()));
    if (owner, group) != (None, None) {
        fchown(file, owner, group)?;
    }
    // After that: a change of owners may take bits away.
    file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody else, where whoever runs this may give files away.
    fn somebody() -> (Option<u32>, Option<u32>) {
        if nix::unistd::geteuid().is_root() { (Some(12_345), Some(12_346)) } else { (None, None) }
    }

    fn owners(path: &Path) -> (u32, u32, u32) {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    }

    #[test]
    fn a_file_takes_after_the_one_that_it_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let old = directory.path().join("old");
        let file = File::create(&old).unwrap();
        let (user, group) = somebody();
        fchown(&file, user, group).unwrap();
        file.set_permissions(Permissions::from_mode(0o640)).unwrap();
        let new = tempfile::NamedTempFile::new_in(directory.path()).unwrap();
        assert_ne!(owners(new.path()), owners(&old));
        take_after(new.as_file(), &old, directory.path()).unwrap();
        assert_eq!(owners(new.path()), owners(&old));
    }

    #[test]
    fn what_the_superuser_makes_is_its_directory_s() {
        let directory = tempfile::tempdir().unwrap();
        let (user, group) = somebody();
        fchown(File::open(directory.path()).unwrap(), user, group).unwrap();
        let made = directory.path().join("a/b");
        make_directory(&made).unwrap();
        make_directory(&made).unwrap();
        let file = tempfile::NamedTempFile::new_in(&made).unwrap();
        take_after(file.as_file(), &made.join("absent"), &made).unwrap();
        let (expected, _, _) = owners(directory.path());
        for path in [made.parent().unwrap(), &made, file.path()] {
            assert_eq!(owners(path).0, expected, "{}", path.display());
        }
        assert_eq!(owners(file.path()).2, 0o600);
    }

    #[test]
    fn a_lock_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let (held, wanted) = (File::open(directory.path()).unwrap(), File::open(directory.path()).unwrap());
        held.lock_shared().unwrap();
        let error = lock(&wanted).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(held);
        lock(&wanted).unwrap();
    }
}
