//! Where work runs, and how much of it may be in hand at once.
//!
//! A run of some microseconds is cheaper than handing it to another thread, so it stays on the thread that serves the
//! connection. Work that is estimated to take longer than the inline budget goes to the blocking threads, so that health
//! checks and other callers are not kept waiting. The estimate is rows times the model's cost as measured when it was
//! loaded. ARCHITECTURE.md has the measurements behind this.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::Error;
use crate::registry::Cost;
use crate::telemetry::metrics::{Held, InHand, Queue};

/// What parsing a row and writing its answer costs, of which no measurement per model is needed.
const ROW_OVERHEAD: Duration = Duration::from_nanos(700);

/// Bounds the work in hand and decides where it runs.
#[derive(Debug)]
pub struct Engine {
    rows: Arc<AtomicUsize>,
    max_rows: usize,
    /// What explaining has in hand, in rows' worth of time.
    explaining: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
    max_bytes: usize,
    inline_budget: Duration,
    answer_timeout: Duration,
    /// Whose blocking threads take the work that leaves.
    blocking: Handle,
    queue: Queue,
}

/// There is as much work in hand as is allowed. Nothing is wrong with the request: it may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is as much work in hand as this gateway takes")]
pub struct Overloaded;

/// The right to hold some rows or bytes; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    held: usize,
    counter: Arc<AtomicUsize>,
}

impl Permit {
    /// Takes `wanted` more, or all that there is for a request larger than the limit itself while nothing else is held.
    fn take(counter: &Arc<AtomicUsize>, wanted: usize, limit: usize) -> Result<Self, Overloaded> {
        let wanted = wanted.min(limit);
        let fits = |held: usize| held.checked_add(wanted).filter(|held| *held <= limit);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| Overloaded)?;
        Ok(Self { held: wanted, counter: Arc::clone(counter) })
    }

    /// How many rows or bytes it is for.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Gives back what is more than `wanted`.
    pub fn shrink(&mut self, wanted: usize) {
        let spare = self.held.saturating_sub(wanted);
        self.counter.fetch_sub(spare, Ordering::Relaxed);
        self.held -= spare;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl Engine {
    /// An engine with these bounds.
    pub fn new(
        max_rows: usize,
        max_bytes: usize,
        inline_budget: Duration,
        answer_timeout: Duration,
        blocking: Handle,
        queue: Queue,
    ) -> Self {
        let (rows, explaining, bytes) = (Arc::default(), Arc::default(), Arc::default());
        Self { rows, max_rows, explaining, bytes, max_bytes, inline_budget, answer_timeout, blocking, queue }
    }

    /// How many bytes may be held in memory by all requests together.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// The right to hold `bytes` in memory for a body or an answer.
    ///
    /// # Errors
    /// [`Overloaded`] if bodies in memory would exceed their bound.
    pub fn hold_bytes(&self, bytes: usize) -> Result<Permit, Overloaded> {
        Permit::take(&self.bytes, bytes, self.max_bytes)
    }

    /// The right to score `rows` rows.
    ///
    /// # Errors
    /// [`Overloaded`] if the rows in hand would exceed their bound.
    pub fn hold_rows(&self, rows: usize) -> Result<Permit, Overloaded> {
        Permit::take(&self.rows, rows, self.max_rows)
    }

    /// The right to explain for as long as `weight` rows are worth: at most a quarter of the work in hand may be explaining, of which
    /// no request counts for more than another quarter, however much it has, so that scores alone go on.
    ///
    /// # Errors
    /// [`Overloaded`] if more than that would be in hand.
    pub fn hold_explaining(&self, weight: usize) -> Result<Permit, Overloaded> {
        let limit = self.max_explaining();
        Permit::take(&self.explaining, weight.min((limit / 4).max(1)), limit)
    }

    fn max_explaining(&self) -> usize {
        (self.max_rows / 4).max(1)
    }

    /// How much of the work that is bounded is in hand.
    pub fn in_hand(&self) -> InHand {
        let held = |counter: &AtomicUsize, limit| Held { held: counter.load(Ordering::Relaxed), limit };
        InHand {
            scoring: held(&self.rows, self.max_rows),
            explaining: held(&self.explaining, self.max_explaining()),
            bytes: held(&self.bytes, self.max_bytes),
        }
    }

    /// The time to answer.
    pub fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// What work may take on a thread that serves connections.
    pub fn inline_budget(&self) -> Duration {
        self.inline_budget
    }

    /// Does `work` on at most `rows` rows, here or on a blocking thread.
    ///
    /// Work whose caller has left before it began is not done; `work` is given a way to ask whether that has happened since,
    /// so that it can end early.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if the rows waiting for a blocking thread would exceed their bound, [`Error::Deadline`] past the
    /// answer timeout.
    pub async fn run<T: Send + 'static>(
        &self,
        rows: usize,
        here: bool,
        work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Result<T, Error> {
        if here {
            // Nothing queues here, so that nothing needs a place in the queue.
            return Ok(work(&|| false));
        }
        let permit = self.hold_rows(rows)?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        let (queue, queued) = (self.queue.clone(), Instant::now());
        let task = move || {
            queue.waited(queued.elapsed());
            // A caller that has left drops the receiver.
            if !answer.is_closed() {
                let done = work(&|| answer.is_closed());
                // Before the caller hears of it, and may send the next.
                drop(permit);
                let _ = answer.send(done);
            }
        };
        self.blocking.spawn_blocking(task);
        match tokio::time::timeout(self.answer_timeout, answered).await {
            Err(_) => Err(Error::Deadline),
            Ok(Err(_)) => Err(Error::Panicked),
            Ok(Ok(done)) => Ok(done),
        }
    }

    /// Whether `rows` rows of a model that costs `cost` are estimated to fit the inline budget.
    pub fn fits_inline(&self, rows: usize, cost: Cost) -> bool {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        cost.run.saturating_add((cost.row.saturating_add(ROW_OVERHEAD)).saturating_mul(rows))
            <= self.inline_budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost { run: Duration::from_micros(10), row: Duration::from_nanos(100) };

    fn engine(max_rows: usize) -> Arc<Engine> {
        with_timeout(max_rows, Duration::from_secs(60))
    }

    fn with_timeout(max_rows: usize, timeout: Duration) -> Arc<Engine> {
        Arc::new(Engine::new(
            max_rows,
            100,
            Duration::from_micros(200),
            timeout,
            Handle::current(),
            Queue::default(),
        ))
    }

    #[tokio::test]
    async fn short_work_stays_and_long_work_leaves_the_thread() {
        let here = std::thread::current().id();
        let engine = engine(1_000_000);
        let slow = Cost { run: Duration::from_millis(1), row: Duration::from_millis(1) };
        for (rows, cost, stays) in [(1, CHEAP, true), (10_000, CHEAP, false), (1, slow, false)] {
            let fits = engine.fits_inline(rows, cost);
            let thread = engine.run(rows, fits, |_| std::thread::current().id()).await.unwrap();
            assert_eq!((fits, thread == here), (stays, stays), "{rows} rows at {cost:?}");
        }
    }

    #[tokio::test]
    async fn rows_in_hand_are_bounded_and_given_back() {
        let engine = engine(10_000);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { engine.run(9_999, false, move |_| released.recv()).await }
        });
        while engine.rows.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(engine.run(1, false, |_| ()).await.is_ok());
        assert!(matches!(engine.run(2, false, |_| ()).await, Err(Error::Overloaded(Overloaded))));
        assert!(engine.run(2, true, |_| ()).await.is_ok(), "what runs here does not queue");
        release.send(()).unwrap();
        busy.await.unwrap().unwrap().unwrap();
        assert_eq!(engine.rows.load(Ordering::Relaxed), 0);
        // More rows than the bound itself are taken alone, rather than never.
        assert!(engine.run(1_000_000, false, |_| ()).await.is_ok());
    }

    #[tokio::test]
    async fn an_answer_that_takes_too_long_is_given_up() {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let late = with_timeout(1_000_000, Duration::from_millis(50))
            .run(10_000, false, move |_| released.recv())
            .await;
        assert!(matches!(late, Err(Error::Deadline)));
        release.send(()).unwrap_or_default();
        let panicked = engine(1_000_000).run(10_000, false, |_| panic!("on purpose")).await;
        assert!(matches!(panicked, Err::<(), _>(Error::Panicked)));
    }

    #[tokio::test]
    async fn work_can_tell_that_its_caller_has_left() {
        let (report, reported) = std::sync::mpsc::channel();
        let work = move |has_left: &dyn Fn() -> bool| {
            let before = has_left();
            let until = std::time::Instant::now() + Duration::from_secs(10);
            while !has_left() && std::time::Instant::now() < until {
                std::thread::yield_now();
            }
            report.send((before, has_left())).unwrap();
        };
        let late = with_timeout(1_000_000, Duration::from_millis(50)).run(10_000, false, work).await;
        assert!(matches!(late, Err(Error::Deadline)));
        assert_eq!(reported.recv().unwrap(), (false, true));
        assert!(!engine(1).run(1, true, |has_left| has_left()).await.unwrap(), "who waits here has not left");
    }

    #[tokio::test]
    async fn bytes_in_memory_are_bounded() {
        let engine = engine(1);
        let mut first = engine.hold_bytes(60).unwrap();
        assert!(engine.hold_bytes(41).is_err());
        first.shrink(70);
        assert!(engine.hold_bytes(41).is_err(), "nothing is given back that was not taken");
        first.shrink(59);
        assert_eq!(first.held(), 59);
        assert!(engine.hold_bytes(41).is_ok());
        drop(first);
        assert!(engine.hold_bytes(41).is_ok());
    }
}
