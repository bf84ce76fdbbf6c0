//! Lines on their way to standard error: put into one buffer by whoever has something to say, written by a thread of its own.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// The most bytes that wait to be written. Where there are more, their reader has stopped reading.
const MAX_BYTES: usize = 2 << 20;

/// How long the first of many requests' lines waits for others: writing them costs as much as writing one.
const GATHER: Duration = Duration::from_millis(10);

/// How long lines that are left are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where lines go. Whoever has one never waits for a reader; what finds no place is dropped and counted.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Told when there is something to write, and when it is written.
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Whether there is a line among them that is not to wait for others.
    is_urgent: bool,
    is_writing: bool,
    is_closed: bool,
}

/// The thread that writes. What is left when it is dropped is written then, if that takes no longer than a second.
#[derive(Debug)]
pub(super) struct Writer {
    lines: Lines,
    _thread: JoinHandle<()>,
}

impl Lines {
    /// Puts whole lines behind the others, with which they may wait for more unless that `is_urgent`.
    pub(super) fn put(&self, lines: &[u8], is_urgent: bool) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes.len() + lines.len() > MAX_BYTES {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let is_news = waiting.bytes.is_empty() || (is_urgent && !waiting.is_urgent);
        waiting.is_urgent |= is_urgent;
        waiting.bytes.extend_from_slice(lines);
        drop(waiting);
        if is_news {
            self.0.changed.notify_all();
        }
    }

    /// How many were dropped, or could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Starts the thread that writes them to `out`.
    pub(super) fn write_to(&self, out: impl Write + Send + 'static) -> io::Result<Writer> {
        let lines = self.clone();
        let thread = std::thread::Builder::new().name("scoregate-log".into());
        let thread = thread.spawn(move || lines.write_all(out))?;
        Ok(Writer { lines: self.clone(), _thread: thread })
    }

    fn write_all(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        loop {
            let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let is_idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.is_closed;
            let waiting = self.0.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
            let may_wait = |waiting: &mut Waiting| !waiting.is_closed && !waiting.is_urgent;
            let gathered = self.0.changed.wait_timeout_while(waiting, GATHER, may_wait);
            let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut waiting.bytes, &mut batch);
            waiting.is_urgent = false;
            waiting.is_writing = true;
            let is_last = waiting.is_closed && batch.is_empty();
            drop(waiting);
            // Where standard error is closed or its disk is full, the counts alone tell of it.
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                let lines = memchr::memchr_iter(b'\n', &batch).count();
                self.0.dropped.fetch_add(lines as u64, Ordering::Relaxed);
            }
            batch.clear();
            self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_writing = false;
            self.0.changed.notify_all();
            if is_last {
                return;
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let shared = &self.lines.0;
        let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.is_closed = true;
        shared.changed.notify_all();
        let until = Instant::now() + PATIENCE;
        while !waiting.bytes.is_empty() || waiting.is_writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = shared.changed.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One event's line; events are written whole.
#[derive(Debug)]
pub(super) struct Line<'l>(&'l Lines);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes, true);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'l> MakeWriter<'l> for Lines {
    type Writer = Line<'l>;

    fn make_writer(&'l self) -> Line<'l> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A reader that takes what it is given once it is let.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A disk that is full.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let lines = Lines::default();
        let writer = lines.write_to(Full).unwrap();
        lines.put(b"first\nsecond\n", true);
        lines.put(b"third\n", false);
        drop(writer);
        assert_eq!(lines.dropped(), 3);
    }

    #[test]
    fn lines_are_written_in_order_and_nobody_waits_for_a_reader() {
        let (let_it, may) = mpsc::channel();
        let (written, taken) = mpsc::channel();
        let lines = Lines::default();
        let writer = lines.write_to(Slow(may, written)).unwrap();
        lines.put(b"first\n", true);
        let line = vec![b'x'; 1 << 16];
        // The first batch is with the reader at some moment, and no more than the buffer waits behind it.
        for _ in 0..100 {
            lines.put(&line, false);
        }
        let dropped = lines.dropped();
        assert!(
            (35..=69).contains(&dropped),
            "{dropped} of 100 lines of 64 KiB dropped, of which 32 may wait"
        );
        drop(let_it);
        drop(writer);
        let all: Vec<u8> = taken.try_iter().flatten().collect();
        assert!(all.starts_with(b"first\n"));
        assert_eq!(all.len(), 6 + (100 - usize::try_from(dropped).unwrap()) * line.len());
    }
}
