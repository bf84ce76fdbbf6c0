//! [`Aside`]: a thread beside those that serve, for work on files, which may take as long as a disk or a lock does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};

use tokio::sync::oneshot;

/// How much work may wait for the thread.
const QUEUE: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// The thread did not do its work: too much of it waits, or it panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undone;

/// A thread that does one thing after the other. It ends once it is not needed any more.
#[derive(Debug)]
pub struct Aside {
    jobs: SyncSender<Job>,
}

impl Aside {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's, if it has no more threads.
    pub fn start(name: &str) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel::<Job>(QUEUE);
        std::thread::Builder::new().name(name.into()).spawn(move || {
            for job in waiting {
                // One that panics drops the sender of its answer, and costs nobody else.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        })?;
        Ok(Self { jobs })
    }

    /// Does `work` on the thread, unless whoever asked has left by then.
    ///
    /// # Errors
    /// [`Undone`].
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Undone> {
        let (answer, answered) = oneshot::channel();
        let job = move || {
            if !answer.is_closed() {
                let _ = answer.send(work());
            }
        };
        self.jobs.try_send(Box::new(job)).map_err(|_| Undone)?;
        answered.await.map_err(|_| Undone)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn as_much_waits_as_may_and_a_panic_costs_nobody_else() {
        let aside = Aside::start("test").unwrap();
        assert_eq!(aside.run(|| panic!("on purpose")).await, Err::<(), _>(Undone));
        let (release, released) = channel::<()>();
        let (begun, has_begun) = channel::<()>();
        let stuck = aside.run(move || {
            begun.send(()).unwrap();
            released.recv().unwrap();
        });
        let fill = async {
            tokio::task::yield_now().await;
            has_begun.recv().unwrap();
            for _ in 0..QUEUE {
                aside.jobs.try_send(Box::new(|| ())).unwrap();
            }
            assert_eq!(aside.run(|| 1).await, Err(Undone));
            release.send(()).unwrap();
        };
        assert_eq!(tokio::join!(stuck, fill).0, Ok(()));
        let done = async {
            loop {
                if let Ok(done) = aside.run(|| 7).await {
                    break done;
                }
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(done.await, 7);
    }
}
