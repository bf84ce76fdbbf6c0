//! A list in a JSON file that commands and gateways edit: locked while it is changed, replaced in one step, and readable by
//! its owner only, unless it was readable by others before.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rand::TryRngCore;
use scoregate_model::package;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Scope;
use crate::follow::MAX_BYTES;
use crate::{audit, files};

/// Why a list cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Whoever reads it could not do so afterwards.
    #[error("cannot keep the owner, group and mode of {}; run this as its owner, or as root", .path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{} is no list of {what}: {message}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should list.
        what: &'static str,
        /// What was found and what was expected.
        message: String,
    },
    /// The system gave no random bytes.
    #[error("no randomness from the system")]
    Random(#[source] rand::rand_core::OsError),
    /// An entry cannot be valid for that long.
    #[error("found an end of validity beyond the year 9999, expected an earlier one such as 90d")]
    Expiry,
    /// A name that scopes cannot carry.
    #[error("found the model \"{}\", expected a model's name, or * for all", .0.escape_debug())]
    Model(String),
    /// No entry has this name or id.
    #[error("none of the {what} in {} has the name or id \"{}\"", .path.display(), .wanted.escape_debug())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it lists.
        what: &'static str,
        /// What was looked for.
        wanted: String,
    },
    /// Several entries have this name.
    #[error("several of {} have the name \"{}\"; name one by its id", .path.display(), .wanted.escape_debug())]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: String,
    },
    /// A client's tokens would be larger than the gateway takes.
    #[error(
        "found more models than a token has room for, expected some 4,000 characters at most; make several clients, or one for all (*)"
    )]
    TooManyModels,
    /// Another holds the lock.
    #[error(
        "{} is locked for longer than {:?}; another gateway or command may hang while it changes the list: fuser -v tells which",
        .path.display(), files::LOCK_PATIENCE
    )]
    Locked {
        /// What is locked.
        path: PathBuf,
    },
    /// A secret could not be hashed.
    #[error("the secret cannot be hashed: {0}")]
    Hash(argon2::password_hash::Error),
    /// A key could not be made.
    #[error("no signing key could be made")]
    Key(#[source] aws_lc_rs::error::Unspecified),
    /// The change could not be recorded, and was not made.
    #[error(transparent)]
    Audit(#[from] audit::Error),
}

/// What the operator says of a new entry, be it a key or a client.
#[derive(Debug, Clone, Default)]
pub struct NewEntry {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The models that it may use; `*` is all.
    pub models: Vec<String>,
    /// How long it is valid; until it is revoked if nothing is said.
    pub expires: Option<Duration>,
    /// The tenant that its caller belongs to.
    pub tenant: Option<String>,
    /// The plan that its caller is on.
    pub plan: Option<String>,
}

/// An entry that can be found.
pub trait Named {
    /// Unique.
    fn id(&self) -> &str;
    /// What it is for; several may be for the same.
    fn name(&self) -> &str;
}

/// A file that holds a list.
#[derive(Debug, Clone)]
pub struct ListFile {
    path: PathBuf,
    /// What it lists, such as `API keys`.
    what: &'static str,
}

impl ListFile {
    /// The list of `what` at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>, what: &'static str) -> Self {
        Self { path: path.into(), what }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The entries; none if there is no file.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Content`].
    pub fn read<T: DeserializeOwned>(&self) -> Result<Vec<T>, Error> {
        match package::read_named(&self.path, MAX_BYTES) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| self.content_error(error.to_string())),
            Err(package::Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(package::Error::Io { source, .. }) => Err(self.io_error("read", source)),
            Err(other) => Err(self.content_error(other.reason())),
        }
    }

    /// Reads the list, has it changed and writes it back, while nobody else can. Nothing is written if `change` fails.
    ///
    /// # Errors
    /// Those of `change`, [`Error::Io`] and [`Error::Content`].
    pub fn edit<T: Serialize + DeserializeOwned, R>(
        &self,
        change: impl FnOnce(&mut Vec<T>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let _lock = self.lock()?;
        let mut entries = self.read()?;
        // Made before the change: what cannot be done is not recorded.
        let successor = self.successor()?;
        let result = change(&mut entries)?;
        self.write(successor, &entries)?;
        Ok(result)
    }

    /// Removes every entry of this name, or the one with this id, and returns their ids. Each is recorded first.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none, those of [`ListFile::edit`], and [`Error::Audit`].
    pub fn remove<T: Named + Serialize + DeserializeOwned>(
        &self,
        name_or_id: &str,
        record: impl Fn(&T) -> Result<(), audit::Error>,
    ) -> Result<Vec<String>, Error> {
        self.edit(|entries: &mut Vec<T>| {
            let is_meant = |entry: &mut T| entry.name() == name_or_id || entry.id() == name_or_id;
            let removed: Vec<T> = entries.extract_if(.., is_meant).collect();
            if removed.is_empty() {
                return Err(self.unknown(name_or_id));
            }
            removed.iter().try_for_each(record)?;
            Ok(removed.iter().map(|entry| entry.id().to_owned()).collect())
        })
    }

    /// The error that says what is wrong with the list.
    pub fn content_error(&self, message: String) -> Error {
        Error::Content { path: self.path.clone(), what: self.what, message }
    }

    /// The error that says that no entry is called `wanted`.
    pub fn unknown(&self, wanted: &str) -> Error {
        Error::Unknown { path: self.path.clone(), what: self.what, wanted: wanted.into() }
    }

    /// Makes the directory that the file is in.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn make_directory(&self) -> Result<(), Error> {
        files::make_directory(self.directory())
            .map_err(|source| self.io_error("make the directory of", source))
    }

    fn directory(&self) -> &Path {
        files::parent(&self.path)
    }

    /// Keeps others from editing the list until the lock is dropped. What is locked is a file beside it, which only those who
    /// may edit can open: the list itself is replaced, and anybody may open the directory.
    fn lock(&self) -> Result<fs::File, Error> {
        let mut path = self.path.clone().into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |source| Error::Io { action: "lock", path: path.clone(), source };
        let file = match fs::File::options().write(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => self.make_lock(&path)?,
            opened => opened.map_err(failed)?,
        };
        files::lock(&file).map_err(|source| match source.kind() {
            ErrorKind::TimedOut => Error::Locked { path: path.clone() },
            _ => failed(source),
        })?;
        Ok(file)
    }

    /// Makes the file that is locked. It is its owner's from the beginning, whoever runs this.
    fn make_lock(&self, path: &Path) -> Result<fs::File, Error> {
        let file = self.successor()?;
        let make = || -> std::io::Result<fs::File> {
            file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
            match file.persist_noclobber(path) {
                Ok(file) => Ok(file),
                // Another has made it meanwhile.
                Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                    fs::File::options().write(true).open(path)
                }
                Err(error) => Err(error.error),
            }
        };
        make().map_err(|source| Error::Io { action: "make", path: path.into(), source })
    }

    /// An empty file that may replace the present one: whoever reads that can read this.
    fn successor(&self) -> Result<NamedTempFile, Error> {
        let file =
            NamedTempFile::new_in(self.directory()).map_err(|source| self.io_error("replace", source))?;
        files::take_after(file.as_file(), &self.path, self.directory())
            .map_err(|source| Error::Owner { path: self.path.clone(), source })?;
        Ok(file)
    }

    /// Replaces the file in one step.
    fn write(&self, mut successor: NamedTempFile, entries: &[impl Serialize]) -> Result<(), Error> {
        let mut text =
            serde_json::to_vec_pretty(entries).map_err(|error| self.content_error(error.to_string()))?;
        text.push(b'\n');
        let write = || -> std::io::Result<()> {
            successor.write_all(&text)?;
            successor.as_file().sync_all()?;
            successor.persist(&self.path)?;
            fs::File::open(self.directory())?.sync_all()
        };
        write().map_err(|source| self.io_error("write", source))
    }

    fn io_error(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Io { action, path: self.path.clone(), source }
    }
}

/// Random bytes that nobody can foretell.
///
/// # Errors
/// [`Error::Random`].
pub fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}

/// Bytes as lower-case digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The time `after` `now` as entries say it, RFC 3339 in whole seconds.
///
/// # Errors
/// [`Error::Expiry`] if there is no such time.
pub fn time_after(now: SystemTime, after: Duration) -> Result<String, Error> {
    let at = || {
        let after = time::Duration::try_from(after).ok()?;
        let at = OffsetDateTime::from(now).checked_add(after)?;
        at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok()
    };
    at().ok_or(Error::Expiry)
}

/// The time that an entry says.
///
/// # Errors
/// What was expected.
pub fn parse_time(text: &str) -> Result<SystemTime, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339).map(Into::into).map_err(|_| "an RFC 3339 time")
}

/// Checks that scopes can name `models`.
///
/// # Errors
/// [`Error::Model`] with the first that they cannot.
pub fn check_models(models: &[String]) -> Result<(), Error> {
    let is_name = |model: &String| model == "*" || package::check_name("model", model).is_ok();
    match models.iter().find(|model| !is_name(model)) {
        None => Ok(()),
        Some(model) => Err(Error::Model(model.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn whoever_can_read_the_directory_cannot_keep_others_from_editing() {
        let directory = tempfile::tempdir().unwrap();
        let list = ListFile::new(directory.path().join("list.json"), "numbers");
        let add = |number: u32| {
            list.edit(|numbers: &mut Vec<u32>| {
                numbers.push(number);
                Ok(())
            })
        };
        fs::write(list.path(), "[0]").unwrap();
        fs::set_permissions(list.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let anybodys = [directory.path(), list.path()].map(|path| fs::File::open(path).unwrap());
        anybodys.iter().for_each(|file| file.lock_shared().unwrap());
        add(1).unwrap();
        let lock = directory.path().join("list.json.lock");
        assert_eq!((mode(list.path()), mode(&lock)), (0o644, 0o600));
        let held = fs::File::options().write(true).open(&lock).unwrap();
        held.lock().unwrap();
        let error = add(2).unwrap_err();
        assert!(matches!(&error, Error::Locked { path } if *path == lock), "{error}");
        drop(held);
        add(3).unwrap();
        assert_eq!(list.read::<u32>().unwrap(), [0, 1, 3]);
    }
}
