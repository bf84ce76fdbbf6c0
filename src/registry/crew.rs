//! Threads that try, load and prepare versions, one piece of work each at a time. They are kept: what a version that was let go has given
//! back to the allocator is found again by the next one that is loaded on the same thread, and memory does not grow from swap to swap.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::version::STACK_BYTES;

/// Work; what it comes to is told by what it returns.
type Job = Box<dyn FnOnce() -> Box<dyn FnOnce() + Send> + Send>;

/// Gives a thread work, and itself with it: whoever works is not idle, and nobody holds on to a thread that nobody needs.
#[derive(Debug)]
struct Hand(Sender<(Job, Hand)>);

/// Those who have nothing to do; last comes whoever worked last.
type Idle = Mutex<Vec<Hand>>;

/// The threads. They end with it, each once its work is done.
#[derive(Debug, Default)]
pub(super) struct Crew {
    idle: Arc<Idle>,
}

impl Crew {
    /// Has `work` done by a thread, and `tell` told what it comes to.
    ///
    /// # Errors
    /// The system's, if it has no more threads; then nothing is done.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        tell: impl FnOnce(T) + Send + 'static,
    ) -> std::io::Result<()> {
        let job: Job = Box::new(|| {
            let done = work();
            Box::new(|| tell(done))
        });
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let hand = idle.map_or_else(|| self.hire(), Ok)?;
        let thread = hand.0.clone();
        // It waits for nothing else.
        let _ = thread.send((job, hand));
        Ok(())
    }

    fn hire(&self) -> std::io::Result<Hand> {
        let (hand, jobs) = channel();
        let idle = Arc::downgrade(&self.idle);
        let thread = std::thread::Builder::new().name("scoregate-model".into()).stack_size(STACK_BYTES);
        thread.spawn(move || labour(&jobs, &idle))?;
        Ok(Hand(hand))
    }
}

fn labour(jobs: &Receiver<(Job, Hand)>, idle: &Weak<Idle>) {
    while let Ok((job, hand)) = jobs.recv() {
        let tell = job();
        // Whoever is told finds it idle.
        if let Some(idle) = idle.upgrade() {
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(hand);
        }
        tell();
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use super::*;

    #[test]
    fn a_thread_is_kept_for_the_next_work_and_ends_with_the_crew() {
        let crew = Crew::default();
        let run = || {
            let (sender, told) = channel::<ThreadId>();
            crew.run(|| std::thread::current().id(), move |id| sender.send(id).unwrap()).unwrap();
            told.recv().unwrap()
        };
        let first = run();
        assert!((0..10).all(|_| run() == first), "it had nothing else to do");
        // While one works another one is hired.
        let (release, released) = channel::<()>();
        let (sender, told) = channel();
        let held = move || released.recv().map(|()| std::thread::current().id());
        crew.run(held, move |id| sender.send(id.unwrap()).unwrap()).unwrap();
        assert_ne!(run(), first);
        release.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), first);
        // Nobody holds what the threads hold once they have ended.
        let (kept, ended) = channel::<()>();
        crew.run(
            move || {
                thread_local!(static KEPT: std::cell::RefCell<Option<Sender<()>>> = const { std::cell::RefCell::new(None) });
                KEPT.set(Some(kept));
            },
            |()| (),
        )
        .unwrap();
        drop(crew);
        assert!(ended.recv().is_err());
    }
}
