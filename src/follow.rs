//! [`Followed`]: what some files say, read again when they change, and kept as it was while they cannot be used.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

/// How often files are looked at: a revoked credential must be refused within five seconds.
const EVERY: Duration = Duration::from_secs(1);

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// They are not what they should be.
    #[error("{}: {message}", .path.display())]
    Content {
        /// The first of the files.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
}

/// A reading of some files' contents, given in the order of their paths.
type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// What one or several files say.
pub struct Followed<T> {
    /// What they hold, such as `API keys`; log lines begin with it.
    what: &'static str,
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    value: ArcSwap<T>,
}

impl<T> Followed<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// [`Error`] if one cannot be read or `parse` refuses what they hold.
    pub fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let value = parse_all(&read_all(&paths)?, &paths, &parse)?;
        Ok(Self { what, paths, parse: Box::new(parse), value: ArcSwap::from_pointee(value) })
    }

    /// Like [`Followed::open`], but a single file that is not there (yet) is taken to hold `absent`.
    ///
    /// # Errors
    /// See [`Followed::open`].
    pub fn open_or(
        what: &'static str,
        path: PathBuf,
        absent: T,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let value = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => absent,
            Err(source) => return Err(Error::Read { path, source }),
            Ok(text) => parse_all(&[text], std::slice::from_ref(&path), &parse)?,
        };
        Ok(Self { what, paths: vec![path], parse: Box::new(parse), value: ArcSwap::from_pointee(value) })
    }

    /// What the files said last.
    pub fn get(&self) -> arc_swap::Guard<Arc<T>> {
        self.value.load()
    }

    /// What the files said last, to keep.
    pub fn get_full(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Follows the files for as long as the process runs, and calls `changed` after each change.
    pub async fn follow(&self, mut changed: impl FnMut(&Arc<T>)) {
        let mut seen: Option<Vec<Vec<u8>>> = None;
        let mut failed = String::new();
        let mut timer = tokio::time::interval(EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            // Read here: the blocking threads may be busy scoring, and a revocation must not wait for them. The text itself
            // is compared: a file that is replaced within the clock's resolution has changed all the same.
            let read = match read_all(&self.paths) {
                Ok(texts) if seen.as_ref() == Some(&texts) => continue,
                Ok(texts) => parse_all(&texts, &self.paths, &self.parse).map(|value| (value, texts)),
                Err(error) => Err(error),
            };
            match read {
                Ok((value, texts)) => {
                    let value = Arc::new(value);
                    self.value.store(Arc::clone(&value));
                    failed.clear();
                    if seen.replace(texts).is_some() {
                        tracing::info!(path = %self.path(), "{} read again", self.what);
                    }
                    changed(&value);
                }
                // A file that has never been there is no failure.
                Err(Error::Read { source, .. })
                    if seen.is_none() && source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    // Told once, tried again every time.
                    let error = format!("{:#}", anyhow::Error::from(error));
                    if error != failed {
                        tracing::error!(error, "{} not changed: the file cannot be used", self.what);
                        failed = error;
                    }
                }
            }
        }
    }

    fn path(&self) -> std::path::Display<'_> {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path).display()
    }
}

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Followed").field("what", &self.what).field("paths", &self.paths).finish()
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, Error> {
    let read = |path: &PathBuf| fs::read(path).map_err(|source| Error::Read { path: path.clone(), source });
    paths.iter().map(read).collect()
}

fn parse_all<T>(
    texts: &[Vec<u8>],
    paths: &[PathBuf],
    parse: impl Fn(&[Vec<u8>]) -> Result<T, String>,
) -> Result<T, Error> {
    parse(texts)
        .map_err(|message| Error::Content { path: paths.first().cloned().unwrap_or_default(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(texts: &[Vec<u8>]) -> Result<u32, String> {
        let text = String::from_utf8_lossy(&texts[0]);
        text.trim().parse().map_err(|_| format!("found {text}, expected a number"))
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_taken_up_and_mistakes_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("number");
        assert!(Followed::open("numbers", vec![path.clone()], number).is_err(), "there is no such file");
        let followed = Followed::open_or("numbers", path.clone(), 1, number).unwrap();
        let wait = || tokio::time::sleep(EVERY * 2);
        let script = async {
            for (text, expected) in [("2", 2), ("x", 2), ("3", 3)] {
                fs::write(&path, text).unwrap();
                wait().await;
                assert_eq!(**followed.get(), expected, "{text}");
            }
            fs::remove_file(&path).unwrap();
            wait().await;
            assert_eq!(**followed.get(), 3, "a file that is gone");
        };
        let mut changes = Vec::new();
        tokio::select! {
            () = followed.follow(|value| changes.push(**value)) => {}
            () = script => {}
        }
        assert_eq!(changes, [2, 3]);
    }
}
