//! Where secrets are compared with their hashes: on threads of their own, a few at a time, so that a flood of wrong ones
//! takes neither the memory nor the threads that scoring needs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::{PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, oneshot};

/// How many secrets are compared at a time at most; each takes some 19 MiB meanwhile.
const MAX_THREADS: usize = 2;
/// How many more may wait.
const QUEUE: usize = 32;
/// How many of them may be strangers: clients of which no secret has been right yet.
const MAX_STRANGERS: usize = 24;

type Job = Box<dyn FnOnce(&mut Memory) + Send>;

/// There are as many waiting as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

/// What a thread compares in. It is kept: taken anew each time, 19 MiB leave more behind than they are.
#[derive(Default)]
pub(super) struct Memory(Vec<Block>);

impl Memory {
    /// Whether `hash`, a PHC string, is that of `secret`.
    pub(super) fn is_hash_of(&mut self, hash: &str, secret: &str) -> bool {
        self.compare(hash, secret).unwrap_or(false)
    }

    /// How much it has needed so far.
    #[cfg(test)]
    pub(super) fn kibibytes(&self) -> usize {
        self.0.len() * Block::SIZE / 1_024
    }

    fn compare(&mut self, hash: &str, secret: &str) -> Option<bool> {
        let hash = PasswordHash::new(hash).ok()?;
        let (params, expected) = (Params::try_from(&hash).ok()?, hash.hash?);
        let version = hash.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
        let mut salt = [0; Salt::MAX_LENGTH];
        let salt = hash.salt?.decode_b64(&mut salt).ok()?;
        let mut found = vec![0; expected.len()];
        self.hash(params, version, secret, salt, &mut found)?;
        Some(found.ct_eq(expected.as_bytes()).into())
    }

    /// The work that comparing `secret` with `another`'s hash takes, for a client that there is not. New hashes set the
    /// measure where there are no others.
    pub(super) fn work_in_vain(&mut self, another: Option<&str>, secret: &str) {
        if let Some(hash) = another {
            self.is_hash_of(hash, secret);
            return;
        }
        let mut found = [0; Params::DEFAULT_OUTPUT_LEN];
        self.hash(Params::DEFAULT, Version::default(), secret, b"no client's salt", &mut found);
    }

    fn hash(
        &mut self,
        params: Params,
        version: Version,
        secret: &str,
        salt: &[u8],
        into: &mut [u8],
    ) -> Option<()> {
        let blocks = params.block_count();
        if self.0.len() < blocks {
            self.0.resize(blocks, Block::default());
        }
        let argon2 = Argon2::new(Algorithm::Argon2id, version, params);
        argon2.hash_password_into_with_memory(secret.as_bytes(), salt, into, &mut self.0[..blocks]).ok()
    }
}

/// The threads.
#[derive(Debug)]
pub(super) struct Comparer {
    jobs: SyncSender<Job>,
    /// Places for strangers.
    places: Arc<Semaphore>,
}

impl Comparer {
    /// Starts the threads; they end with the comparer. Half the processors at most: the others score.
    ///
    /// # Errors
    /// The system's, if it has no more threads.
    pub(super) fn start() -> std::io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_threads((processors / 2).clamp(1, MAX_THREADS))
    }

    fn with_threads(threads: usize) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel::<Job>(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads {
            let waiting = Arc::clone(&waiting);
            std::thread::Builder::new().name("scoregate-secrets".into()).spawn(move || {
                let mut memory = Memory::default();
                while let Some(job) = next(&waiting) {
                    // One that panics costs the request that it was for.
                    let _ = catch_unwind(AssertUnwindSafe(|| job(&mut memory)));
                }
            })?;
        }
        Ok(Self { jobs, places: Arc::new(Semaphore::new(MAX_STRANGERS)) })
    }

    /// Does `work` on one of the threads, unless whoever asked has left by then. Strangers leave room for others.
    ///
    /// # Errors
    /// [`Busy`] if too many are waiting.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        is_stranger: bool,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let place = || Arc::clone(&self.places).try_acquire_owned().map_err(|_| Busy);
        let place = is_stranger.then(place).transpose()?;
        let (answer, answered) = oneshot::channel();
        let job = move |memory: &mut Memory| {
            // It waits no more.
            drop(place);
            if !answer.is_closed() {
                let _ = answer.send(work(memory));
            }
        };
        self.jobs.try_send(Box::new(job)).map_err(|_| Busy)?;
        answered.await.map_err(|_| Busy)
    }
}

fn next(waiting: &Mutex<Receiver<Job>>) -> Option<Job> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn few_wait_and_the_others_are_turned_away_at_once() {
        let comparer = Arc::new(Comparer::with_threads(1).unwrap());
        let (release, released) = channel::<()>();
        let (begun, has_begun) = channel::<()>();
        let job = Box::new(move |_: &mut Memory| {
            begun.send(()).unwrap();
            released.recv().unwrap();
        });
        comparer.jobs.try_send(job).unwrap();
        has_begun.recv().unwrap();
        let wait = |is_stranger: bool, count: usize| -> Vec<_> {
            let run = |at| {
                let comparer = Arc::clone(&comparer);
                tokio::spawn(async move { comparer.run(is_stranger, move |_| at).await })
            };
            (0..count).map(run).collect()
        };
        let mut waiting = wait(true, MAX_STRANGERS);
        tokio::task::yield_now().await;
        assert_eq!(comparer.run(true, |_| ()).await, Err(Busy));
        waiting.extend(wait(false, QUEUE - MAX_STRANGERS));
        tokio::task::yield_now().await;
        assert_eq!(comparer.run(false, |_| ()).await, Err(Busy));
        release.send(()).unwrap();
        for waited in waiting {
            assert!(waited.await.unwrap().is_ok());
        }
        assert_eq!(comparer.run(true, |_| panic!("on purpose")).await, Err::<(), _>(Busy));
        for _ in 0..2 * MAX_STRANGERS {
            assert_eq!(comparer.run(true, |_| 7).await, Ok(7));
        }
    }
}
