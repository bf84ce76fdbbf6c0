//! How long a connection may keep the gateway waiting: [`Patience`] ends those that stall in a head or stay idle.
//!
//! Hyper has one timeout for both, and arms a timer anew for every request. A stalled head has to go soon, but an idle
//! connection has to outlive the pools of load balancers (often 60 s), or they send requests into its close. Here one
//! timer is armed per connection, and looks at the clock again when it fires.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::framing::{Reading, StrictFraming};

/// A stream that fails to read once the peer has kept it waiting for too long.
pub(crate) struct Patience<S> {
    io: StrictFraming<S>,
    head: Duration,
    idle: Duration,
    waiting: Waiting,
    since: Instant,
    /// The heads that were whole at `since`.
    heads: u64,
    /// Whether bytes have moved since `since`.
    moved: bool,
    /// Set while a request of this connection is being worked on: then it is the gateway that keeps the peer waiting.
    busy: Arc<AtomicBool>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Set while the peer takes nothing of an answer.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// What a connection is waiting for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The rest of a head, or a new connection's first.
    Head,
    /// A body: whoever reads it has a deadline of its own.
    Body,
    /// The next request.
    Next,
}

impl<S> Patience<S> {
    /// Waits `head` for a head from its first byte (or from the start of the connection) to its end, and `idle` between
    /// requests, and for a peer that takes nothing of an answer.
    pub(crate) fn new(io: StrictFraming<S>, head: Duration, idle: Duration, busy: Arc<AtomicBool>) -> Self {
        Self {
            io,
            head,
            idle,
            waiting: Waiting::Head,
            since: Instant::now(),
            heads: 0,
            moved: false,
            busy,
            timer: None,
            stalled: None,
        }
    }

    /// Fails a write, flush or shutdown that has been pending for too long: hyper waits for it without end otherwise, closing
    /// or not. TLS writes into a buffer and waits when that is flushed, or when the connection's end is announced.
    fn limit<T>(&mut self, taken: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if taken.is_ready() {
            self.stalled = None;
            return taken;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.idle)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Nothing can be read now: is that for too long?
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.busy.load(Ordering::Relaxed) {
            // The answer's first bytes start the clock again.
            self.moved = true;
            return Poll::Pending;
        }
        let waiting = match self.io.reading() {
            Reading::Body => Waiting::Body,
            Reading::Head => Waiting::Head,
            Reading::Nothing if self.waiting == Waiting::Head && !self.moved => Waiting::Head,
            Reading::Nothing => Waiting::Next,
        };
        // A head's time is not extended by bytes that trickle in, but the next head has its own.
        let heads = self.io.heads();
        if waiting != self.waiting || heads != self.heads || (self.moved && waiting != Waiting::Head) {
            self.heads = heads;
            self.since = Instant::now();
            self.waiting = waiting;
        }
        self.moved = false;
        let limit = match waiting {
            Waiting::Body => return Poll::Pending,
            Waiting::Head => self.head,
            Waiting::Next => self.idle,
        };
        let deadline = self.since + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(outcome) => {
                this.moved = true;
                Poll::Ready(outcome)
            }
            Poll::Pending => this.poll_deadline(cx),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patience<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.moved |= written.is_ready();
        this.limit(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.moved |= written.is_ready();
        this.limit(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.limit(flushed, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.limit(shut, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const HEAD: Duration = Duration::from_secs(15);
    const IDLE: Duration = Duration::from_secs(75);
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// When reading fails, in seconds from the start, if the peer does `script`: (seconds to wait, bytes to send).
    async fn ends_after(script: &'static [(u64, &'static str)]) -> u64 {
        let (mut peer, io) = tokio::io::duplex(1 << 16);
        let mut patience = Patience::new(StrictFraming::new(io), HEAD, IDLE, Arc::default());
        let start = Instant::now();
        let sender = tokio::spawn(async move {
            for (wait, bytes) in script {
                tokio::time::sleep(Duration::from_secs(*wait)).await;
                peer.write_all(bytes.as_bytes()).await.unwrap();
            }
            peer
        });
        let mut buffer = [0; 1024];
        let error = loop {
            match patience.read(&mut buffer).await {
                Ok(read) => assert_ne!(read, 0),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(sender.await);
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_never_speaks_goes_soon() {
        assert_eq!(ends_after(&[]).await, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_is_not_given_more_time() {
        assert_eq!(ends_after(&[(0, "GET / HT"), (6, "TP/1.1\r\n"), (6, "Ho")]).await, 15);
        // The connection was idle for 70 s before: the head's own time counts.
        assert_eq!(ends_after(&[(0, GET), (70, "GET"), (10, " / ")]).await, 85);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_outlives_the_pools_of_load_balancers() {
        assert_eq!(ends_after(&[(0, GET)]).await, 75);
        assert_eq!(ends_after(&[(14, GET), (60, GET)]).await, 149);
    }

    #[tokio::test(start_paused = true)]
    async fn each_of_many_pipelined_heads_has_its_own_time() {
        const REST: &str = "T / HTTP/1.1\r\nHost: a\r\n\r\nGE";
        assert_eq!(ends_after(&[(0, "GE"), (10, REST), (10, REST), (10, REST)]).await, 45);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_of_an_answer_is_left() {
        let (mut peer, io) = tokio::io::duplex(1_000);
        let mut patience = Patience::new(StrictFraming::new(io), HEAD, IDLE, Arc::default());
        let start = Instant::now();
        let (written, ()) = tokio::join!(patience.write_all(&[b'x'; 3_000]), async {
            // It takes a little, late, and then no more.
            tokio::time::sleep(Duration::from_secs(60)).await;
            peer.read_exact(&mut [0; 500]).await.unwrap();
        });
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 60 + 75);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_of_what_is_buffered_is_left() {
        // Below lies a buffer, as it does with TLS: what is written is taken at once, and waits to be flushed.
        let buffered = || {
            let (peer, io) = tokio::io::duplex(10);
            let io = tokio::io::BufWriter::with_capacity(100, io);
            (peer, Patience::new(StrictFraming::new(io), HEAD, IDLE, Arc::default()))
        };
        for shut in [false, true] {
            let (_peer, mut patience) = buffered();
            let start = Instant::now();
            patience.write_all(&[b'x'; 50]).await.unwrap();
            let ended = if shut { patience.shutdown().await } else { patience.flush().await };
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(start.elapsed(), IDLE);
        }
    }
}
