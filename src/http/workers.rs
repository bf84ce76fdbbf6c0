//! The threads that serve connections, each with a runtime of its own.
//!
//! A connection stays on the thread that it was given to. Answers take some ten microseconds, and at that size waking
//! another thread to take work over costs more than the work; ARCHITECTURE.md has the measurements. Work that takes long
//! leaves these threads anyway, see [`crate::scoring::Engine`].

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// Threads that serve connections.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    stop: watch::Sender<()>,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    thread: JoinHandle<()>,
    /// Connections that it serves now.
    connections: Arc<AtomicUsize>,
}

/// A connection in its worker's count; out of it when dropped, after a panic too.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// The system's, if it has no more threads or descriptors.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = watch::Sender::new(());
        let workers = (0..count).map(|at| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let mut stopped = stop.subscribe();
            let run = move || {
                runtime.block_on(async {
                    // Ends when the sender is dropped.
                    while stopped.changed().await.is_ok() {}
                });
            };
            let thread = std::thread::Builder::new().name(format!("scoregate-{at}")).spawn(run)?;
            Ok(Worker { runtime: handle, thread, connections: Arc::default() })
        });
        Ok(Self { workers: workers.collect::<io::Result<_>>()?, stop })
    }

    /// Runs `connection` to its end on the thread that serves the fewest.
    pub fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let least = |worker: &&Worker| worker.connections.load(Ordering::Relaxed);
        let worker = self.workers.iter().min_by_key(least).expect("there is at least one worker");
        worker.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&worker.connections));
        worker.runtime.spawn(async move {
            connection.await;
            drop(counted);
        });
    }

    /// Ends the threads, and with them the connections that are left.
    pub fn stop(self) {
        drop(self.stop);
        for worker in self.workers {
            // A thread that panicked has ended as well.
            let _ = worker.thread.join();
        }
    }
}
