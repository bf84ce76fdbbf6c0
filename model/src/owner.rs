//! Whose files and directories are that commands and gateways share, which may run as different users.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

/// Gives what the superuser has made to the owner of the `directory` that it is in: a gateway that runs as that user is to
/// use it.
///
/// # Errors
/// The system's, but for a superuser who may not give things away, who has to use it itself.
pub fn give_to_owner_of(made: &File, directory: &Path) -> io::Result<()> {
    let place = fs::metadata(directory)?;
    if !nix::unistd::geteuid().is_root() || place.uid() == made.metadata()?.uid() {
        return Ok(());
    }
    match fchown(made, Some(place.uid()), Some(place.gid())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Makes a directory and those above it, each for the owner of the one that it is in.
///
/// # Errors
/// The system's.
pub fn make_directory(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    make_directory(above)?;
    match fs::create_dir(path) {
        Ok(()) => give_to_owner_of(&File::open(path)?, above),
        // Another has made it meanwhile.
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The directory that `path` is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
