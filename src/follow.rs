//! [`Followed`]: what some files say, read again when they change, and kept as it was while they cannot be used.
//!
//! They are looked at on a thread of their own, so that neither a pipe in a file's place nor a file system that does not
//! answer holds up those that serve.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use scoregate_model::package;
use sha2::{Digest as _, Sha256};

use crate::aside::Aside;
use crate::files::Stamp;

/// The largest file that is read.
pub const MAX_BYTES: usize = 16 << 20;
/// How often files are looked at: a revoked credential must be refused within five seconds. Tests need not wait for it.
const EVERY: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };
/// After how many looks a file that is another one each time is taken as it is.
const MAX_LOOKS: u32 = 3;
/// How many more looks read a file that has changed, whatever its stamp says: it may change again within the resolution of
/// the clock that stamps it.
const WARY: u32 = 3;
/// When it is worth telling that a look has not come to an end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One cannot be read, is too large, or is no file.
    #[error(transparent)]
    Read(#[from] package::Error),
    /// They are not what they should be.
    #[error("{}: {message}", .path.display())]
    Content {
        /// The first of the files.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
}

impl Error {
    fn is_absence(&self) -> bool {
        let Self::Read(package::Error::Io { source, .. }) = self else { return false };
        source.kind() == ErrorKind::NotFound
    }
}

/// A reading of some files' contents, given in the order of their paths.
type Parse<T> = Arc<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// What one or several files say.
pub struct Followed<T> {
    /// What they hold, such as `API keys`; log lines begin with it.
    what: &'static str,
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    /// What the files held when they were opened, if they were there.
    opened: Option<Digest>,
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
        let texts = read_all(&paths)?;
        let value = parse_all(&texts, &paths, &parse)?;
        Ok(Self::with(what, paths, parse, Some(digest(&texts)), value))
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
        let paths = vec![path];
        match read_all(&paths) {
            Err(error) if error.is_absence() => Ok(Self::with(what, paths, parse, None, absent)),
            Err(error) => Err(error),
            Ok(_) => Self::open(what, paths, parse),
        }
    }

    fn with(
        what: &'static str,
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
        opened: Option<Digest>,
        value: T,
    ) -> Self {
        Self { what, paths, parse: Arc::new(parse), opened, value: ArcSwap::from_pointee(value) }
    }

    /// What the files said last.
    pub fn get(&self) -> arc_swap::Guard<Arc<T>> {
        self.value.load()
    }

    /// What the files said last, to keep.
    pub fn get_full(&self) -> Arc<T> {
        self.value.load_full()
    }

    fn path(&self) -> std::path::Display<'_> {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path).display()
    }
}

impl<T: Send + 'static> Followed<T> {
    /// Follows the files for as long as the process runs, and calls `changed` after each change.
    pub async fn follow(&self, mut changed: impl FnMut(&Arc<T>)) {
        let mut complaint = Complaint { what: self.what, last: String::new() };
        let mut timer = tokio::time::interval(EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let thread = loop {
            timer.tick().await;
            // The blocking threads may be busy scoring, and a revocation must not wait for them.
            match Aside::start("scoregate-files") {
                Ok(thread) => break thread,
                Err(error) => complaint.say(format!("cannot start a thread: {error}")),
            }
        };
        let mut taken = self.opened;
        let mut observer = self.observer(taken);
        loop {
            timer.tick().await;
            let mut look = pin!(thread.run(move || {
                let found = observer.look();
                (observer, found)
            }));
            let looked = match tokio::time::timeout(PATIENCE, &mut look).await {
                Ok(looked) => looked,
                Err(_) => {
                    let path = self.path();
                    complaint.say(format!("{path} or the file system that it is on does not answer"));
                    look.await
                }
            };
            let Ok((back, found)) = looked else {
                complaint.say("reading it panicked; this is a mistake in the gateway".into());
                observer = self.observer(taken);
                continue;
            };
            observer = back;
            match found {
                Ok(None) => complaint.last.clear(),
                Ok(Some(value)) => {
                    let value = Arc::new(value);
                    self.value.store(Arc::clone(&value));
                    taken = observer.taken;
                    complaint.last.clear();
                    tracing::info!(path = %self.path(), "{} read again", self.what);
                    changed(&value);
                }
                Err(error) => complaint.say(format!("{:#}", anyhow::Error::from(error))),
            }
        }
    }

    fn observer(&self, taken: Option<Digest>) -> Observer<T> {
        let (paths, parse) = (self.paths.clone(), Arc::clone(&self.parse));
        Observer { paths, parse, taken, stamps: Vec::new(), wary: 0, unsure: None }
    }
}

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Followed").field("what", &self.what).field("paths", &self.paths).finish()
    }
}

/// Why files cannot be used: told once, tried again every time.
struct Complaint {
    what: &'static str,
    last: String,
}

impl Complaint {
    fn say(&mut self, error: String) {
        if error != self.last {
            tracing::error!(error, "{} not changed: the file cannot be used", self.what);
            self.last = error;
        }
    }
}

/// What tells contents apart, without keeping them: some are secret.
type Digest = [u8; 32];

/// Looks at files, and remembers what it saw.
struct Observer<T> {
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    /// The contents that were taken up last.
    taken: Option<Digest>,
    /// How the files were when they were read last.
    stamps: Vec<Stamp>,
    /// How many more looks read them whatever their stamps say.
    wary: u32,
    /// Contents that are not taken up yet, and how many looks in a row have found others than those taken up.
    unsure: Option<(Digest, u32)>,
}

impl<T> Observer<T> {
    /// What the files say if that has changed. Who writes a file in its place leaves it empty or half-written for a moment:
    /// two looks have to find the same, unless it goes on and on.
    fn look(&mut self) -> Result<Option<T>, Error> {
        let texts = match self.read() {
            Ok(Some(texts)) => texts,
            Ok(None) => return Ok(None),
            Err(error) => {
                (self.stamps, self.unsure) = (Vec::new(), None);
                // A file that has never been there is no failure.
                return if error.is_absence() && self.taken.is_none() { Ok(None) } else { Err(error) };
            }
        };
        let found = digest(&texts);
        if self.taken == Some(found) {
            self.unsure = None;
            return Ok(None);
        }
        let (is_sure, looks) = match self.unsure {
            Some((before, looks)) => (before == found || looks + 1 >= MAX_LOOKS, looks + 1),
            None => (false, 1),
        };
        self.unsure = Some((found, looks));
        if !is_sure {
            return Ok(None);
        }
        let value = parse_all(&texts, &self.paths, &*self.parse)?;
        (self.taken, self.unsure) = (Some(found), None);
        Ok(Some(value))
    }

    /// The files' contents, unless they are what they were.
    fn read(&mut self) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let stamp = |path: &PathBuf| {
            let found = fs::metadata(path).map_err(|source| package::Error::Io {
                action: "read",
                path: path.clone(),
                source,
            })?;
            Ok::<_, Error>(Stamp::of(&found))
        };
        let stamps = self.paths.iter().map(stamp).collect::<Result<Vec<_>, _>>()?;
        if stamps != self.stamps {
            (self.stamps, self.wary) = (stamps, WARY);
        } else if self.wary == 0 {
            return Ok(None);
        } else {
            self.wary -= 1;
        }
        read_all(&self.paths).map(Some)
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, Error> {
    paths.iter().map(|path| Ok(package::read_named(path, MAX_BYTES)?)).collect()
}

fn parse_all<T>(
    texts: &[Vec<u8>],
    paths: &[PathBuf],
    parse: impl Fn(&[Vec<u8>]) -> Result<T, String>,
) -> Result<T, Error> {
    parse(texts)
        .map_err(|message| Error::Content { path: paths.first().cloned().unwrap_or_default(), message })
}

fn digest(texts: &[Vec<u8>]) -> Digest {
    let add = |hash: Sha256, text: &Vec<u8>| hash.chain_update(text.len().to_le_bytes()).chain_update(text);
    texts.iter().fold(Sha256::new(), add).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn number(texts: &[Vec<u8>]) -> Result<u32, String> {
        let text = String::from_utf8_lossy(&texts[0]);
        text.trim().parse().map_err(|_| format!("found {text}, expected a number"))
    }

    struct Place {
        directory: tempfile::TempDir,
        path: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("number");
            Self { directory, path }
        }

        fn write(&self, text: &str) {
            fs::write(&self.path, text).unwrap();
        }

        fn open(&self) -> Followed<u32> {
            self.write("1");
            Followed::open("numbers", vec![self.path.clone()], number).unwrap()
        }

        fn observer(&self) -> Observer<u32> {
            let followed = self.open();
            followed.observer(followed.opened)
        }
    }

    async fn until(followed: &Followed<u32>, expected: u32) {
        let begun = Instant::now();
        while **followed.get() != expected {
            assert!(begun.elapsed() < Duration::from_secs(10), "it is {} for ever", followed.get());
            tokio::time::sleep(EVERY).await;
        }
    }

    #[tokio::test]
    async fn changes_are_taken_up_and_mistakes_change_nothing() {
        let place = Place::new();
        let path = place.path.clone();
        assert!(Followed::open("numbers", vec![path.clone()], number).is_err(), "there is no such file");
        let followed = Followed::open_or("numbers", path.clone(), 1, number).unwrap();
        let wait = || tokio::time::sleep(EVERY * 10);
        let script = async {
            place.write("2");
            until(&followed, 2).await;
            place.write("x");
            wait().await;
            assert_eq!(**followed.get(), 2, "a file that is none");
            place.write("3");
            until(&followed, 3).await;
            fs::remove_file(&path).unwrap();
            wait().await;
            assert_eq!(**followed.get(), 3, "a file that is gone");
            // Nobody writes to the pipe: reading it would take for ever.
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            wait().await;
            fs::remove_file(&path).unwrap();
            place.write("4");
            until(&followed, 4).await;
        };
        let mut changes = Vec::new();
        tokio::select! {
            () = followed.follow(|value| changes.push(**value)) => {}
            () = script => {}
        }
        assert_eq!(changes, [2, 3, 4]);
    }

    #[tokio::test]
    async fn a_file_system_that_does_not_answer_holds_up_nobody_else() {
        let place = Place::new();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = std::sync::Mutex::new(released);
        place.write("1");
        // Where the reading stands still does not matter.
        let slow = move |texts: &[Vec<u8>]| {
            let number = number(texts)?;
            if number == 2 {
                released.lock().unwrap().recv().unwrap();
            }
            Ok(number)
        };
        let followed = Followed::open("numbers", vec![place.path.clone()], slow).unwrap();
        let script = async {
            place.write("2");
            tokio::time::sleep(EVERY * 10).await;
            assert_eq!(**followed.get(), 1, "this thread goes on");
            release.send(()).unwrap();
            until(&followed, 2).await;
        };
        tokio::select! {
            () = followed.follow(|_| ()) => {}
            () = script => {}
        }
    }

    #[test]
    fn what_is_written_in_two_steps_is_taken_up_as_a_whole() {
        let place = Place::new();
        let mut observer = place.observer();
        assert_eq!(observer.look().unwrap(), None);
        place.write("12");
        assert_eq!(observer.look().unwrap(), None, "it may not be all");
        place.write("123");
        assert_eq!(observer.look().unwrap(), None, "it was not");
        assert_eq!(observer.look().unwrap(), Some(123));
        assert_eq!(observer.look().unwrap(), None);
        // Back before it was believed.
        place.write("");
        assert_eq!(observer.look().unwrap(), None);
        place.write("123");
        assert_eq!(observer.look().unwrap(), None);
        assert_eq!(observer.look().unwrap(), None);
    }

    #[test]
    fn a_file_that_never_rests_is_taken_up_all_the_same() {
        let place = Place::new();
        let mut observer = place.observer();
        let mut taken = Vec::new();
        for at in 10..10 + 3 * MAX_LOOKS {
            place.write(&at.to_string());
            taken.extend(observer.look().unwrap());
        }
        assert_eq!(taken, [12, 15, 18]);
    }

    #[test]
    fn a_change_within_the_clock_s_resolution_is_seen_and_a_file_at_rest_is_not_read() {
        let place = Place::new();
        let mut observer = place.observer();
        place.write("2");
        let seen: Vec<u32> = (0..2).filter_map(|_| observer.look().unwrap()).collect();
        assert_eq!(seen, [2]);
        // As if the clock had not gone on: the stamp is what it will be.
        place.write("3");
        observer.stamps = vec![Stamp::of(&fs::metadata(&place.path).unwrap())];
        let seen: Vec<u32> = (0..2).filter_map(|_| observer.look().unwrap()).collect();
        assert_eq!(seen, [3]);
        while observer.read().unwrap().is_some() {}
        assert!(observer.read().unwrap().is_none());
        place.write("4");
        assert!(observer.read().unwrap().is_some());
    }

    #[test]
    fn only_regular_files_of_a_reasonable_size_are_read() {
        let place = Place::new();
        let open = |path: &Path| Followed::open("numbers", vec![path.into()], number);
        assert!(open(place.directory.path()).unwrap_err().to_string().contains("no regular file"));
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("no regular file"));
        let large = fs::File::create(&place.path).unwrap();
        large.set_len(MAX_BYTES as u64 + 1).unwrap();
        assert!(open(&place.path).unwrap_err().to_string().contains("at most"));
        // As volumes of orchestrators have them.
        place.write("5");
        let link = place.directory.path().join("link");
        std::os::unix::fs::symlink(&place.path, &link).unwrap();
        assert_eq!(**open(&link).unwrap().get(), 5);
    }
}
