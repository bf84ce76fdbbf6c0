//! Load on one server, as fast as it answers or at a steady rate, from one thread that spends little CPU itself.
//!
//! [`Load::run`] is one event loop over non-blocking connections. With [`Pace::Steady`] a request's latency counts
//! from the moment it was due, so that a server which stalls cannot hide the requests that waited meanwhile.

pub(crate) mod command;
mod connection;
mod outcome;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use connection::Connection;
pub(crate) use outcome::Outcome;

/// How long a load may go without any answer, or run past its end, before what is open counts as unanswered.
const GIVE_UP: Duration = Duration::from_secs(10);

/// When the next request is sent.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// On each connection as soon as the last answer is there.
    AsAnswered,
    /// So many a second, whatever the server does.
    Steady(f64),
}

/// When a load ends.
#[derive(Clone, Copy)]
pub(crate) enum Limit<'a> {
    For(Duration),
    Requests(u64),
    /// As soon as this is set; what was due by then is still sent.
    Until(&'a AtomicBool),
}

/// A load on one server.
pub(crate) struct Load<'a> {
    pub(crate) address: SocketAddr,
    /// Whole requests, sent in turn.
    pub(crate) requests: &'a [Vec<u8>],
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
    pub(crate) limit: Limit<'a>,
}

/// Marks the timer among the events; connections are marked by their index.
const TIMER: u64 = u64::MAX;

impl Load<'_> {
    /// Runs to the limit. Refused, lost and late answers are counted, not errors.
    pub(crate) fn run(&self) -> Result<Outcome> {
        if !self.address.ip().is_loopback() {
            bail!("{} is not on this machine: load is only ever put on loopback addresses", self.address);
        }
        if self.requests.is_empty() || self.connections == 0 {
            bail!("a load needs at least one request and one connection");
        }
        // Threads of this kind wake up to 50 µs late unless they ask for better.
        nix::sys::prctl::set_timerslack(1_000).context("could not ask for exact timers")?;
        Run::new(self)?.finish()
    }
}

/// A load while it runs.
struct Run<'a> {
    load: &'a Load<'a>,
    epoll: Epoll,
    timer: TimerFd,
    /// The request for whose sending the timer is set.
    armed_for: Option<u64>,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    /// Until when every connection was busy; what was due before then waited for the server, not for this loop.
    starved_until: Instant,
    started: Instant,
    /// When it was told to end.
    told: Option<Instant>,
    sent: u64,
    outcome: Outcome,
}

impl<'a> Run<'a> {
    fn new(load: &'a Load<'a>) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("could not create an event queue")?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        let mut run = Self {
            load,
            epoll,
            timer,
            armed_for: None,
            connections: Vec::with_capacity(load.connections),
            idle: (0..load.connections).rev().collect(),
            starved_until: Instant::now(),
            started: Instant::now(),
            told: None,
            sent: 0,
            outcome: Outcome::new()?,
        };
        for index in 0..load.connections {
            let connection = Connection::open(load.address)
                .with_context(|| format!("could not connect to {}; is the server running?", load.address))?;
            run.watch(index, &connection)?;
            run.connections.push(connection);
        }
        run.started = Instant::now();
        run.starved_until = run.started;
        Ok(run)
    }

    fn finish(mut self) -> Result<Outcome> {
        let mut events = vec![EpollEvent::empty(); self.load.connections + 1];
        let mut last_event = self.started;
        loop {
            if let Limit::Until(told) = self.load.limit
                && told.load(Ordering::Relaxed)
            {
                self.told.get_or_insert_with(Instant::now);
            }
            self.send_what_is_due()?;
            let now = Instant::now();
            let busy = self.load.connections - self.idle.len();
            let over = self.is_over(now);
            if over && busy == 0 {
                break;
            }
            let overdue = self.end().is_some_and(|end| now > end + GIVE_UP);
            if overdue || (busy > 0 && now > last_event + GIVE_UP) {
                self.outcome.unanswered("no answer within 10 s", busy as u64);
                break;
            }
            if !over && !self.idle.is_empty() {
                self.arm_timer(now)?;
            }
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(250u16)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("could not wait for answers"),
            };
            if busy == 0 || ready > 0 {
                last_event = Instant::now();
            }
            for event in &events[..ready] {
                if event.data() == TIMER {
                    self.armed_for = None;
                } else {
                    self.advance(event.data() as usize)?;
                }
            }
        }
        self.outcome.elapsed = self.started.elapsed();
        if let (Pace::Steady(_), Some(planned)) = (self.load.pace, self.planned()) {
            self.outcome
                .unanswered("never sent: every connection was busy", planned.saturating_sub(self.sent));
        }
        Ok(self.outcome)
    }

    fn send_what_is_due(&mut self) -> Result<()> {
        while let Some(&index) = self.idle.last() {
            let now = Instant::now();
            if self.is_over(now) {
                return Ok(());
            }
            let due = self.due().unwrap_or(now);
            if due > now {
                return Ok(());
            }
            if due >= self.starved_until {
                self.outcome.sent_late(now - due);
            }
            self.idle.pop();
            let request = (self.sent % self.load.requests.len() as u64) as usize;
            self.sent += 1;
            self.connections[index].begin(request, due);
            self.advance(index)?;
        }
        Ok(())
    }

    /// Writes and reads what one connection can without waiting.
    fn advance(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let was_busy = connection.is_busy();
        match connection.advance(self.load.requests) {
            Ok(None) => return Ok(()),
            Ok(Some(answered)) => {
                self.outcome.answered(answered.status, answered.due.elapsed());
                if answered.closes {
                    self.reopen(index)?;
                }
            }
            Err(error) => {
                if was_busy {
                    self.outcome.unanswered(&error.kind().to_string(), 1);
                }
                self.reopen(index)?;
            }
        }
        if self.idle.is_empty() {
            self.starved_until = Instant::now();
        }
        // A connection that was lost while idle is among the idle ones already.
        if was_busy {
            self.idle.push(index);
        }
        Ok(())
    }

    fn reopen(&mut self, index: usize) -> Result<()> {
        let connection = Connection::open(self.load.address).with_context(|| {
            format!("{} answered before and refuses connections now; did the server end?", self.load.address)
        })?;
        self.watch(index, &connection)?;
        self.connections[index] = connection;
        Ok(())
    }

    fn watch(&self, index: usize, connection: &Connection) -> Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll
            .add(connection.as_fd(), EpollEvent::new(flags, index as u64))
            .context("could not watch a connection")
    }

    /// When the next request is due; `None` if whenever a connection is free.
    fn due(&self) -> Option<Instant> {
        match self.load.pace {
            Pace::AsAnswered => None,
            Pace::Steady(per_second) => {
                Some(self.started + Duration::from_secs_f64(self.sent as f64 / per_second))
            }
        }
    }

    fn arm_timer(&mut self, now: Instant) -> Result<()> {
        let Some(due) = self.due().filter(|_| self.armed_for != Some(self.sent)) else { return Ok(()) };
        self.armed_for = Some(self.sent);
        // Zero would disarm the timer.
        let wait = due.saturating_duration_since(now).max(Duration::from_nanos(1));
        self.timer
            .set(Expiration::OneShot(TimeSpec::from_duration(wait)), TimerSetTimeFlags::empty())
            .context("could not set the timer")
    }

    fn planned(&self) -> Option<u64> {
        match (self.load.limit, self.load.pace) {
            (Limit::Requests(count), _) => Some(count),
            (Limit::For(_) | Limit::Until(_), Pace::Steady(per_second)) => {
                let duration = self.end()? - self.started;
                Some((duration.as_secs_f64() * per_second).round() as u64)
            }
            (Limit::For(_) | Limit::Until(_), Pace::AsAnswered) => None,
        }
    }

    /// The planned end, as far as there is one.
    fn end(&self) -> Option<Instant> {
        match (self.load.limit, self.load.pace) {
            (Limit::For(duration), _) => Some(self.started + duration),
            (Limit::Requests(count), Pace::Steady(per_second)) => {
                Some(self.started + Duration::from_secs_f64(count as f64 / per_second))
            }
            (Limit::Requests(_), Pace::AsAnswered) => None,
            (Limit::Until(_), _) => self.told,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        match self.planned() {
            Some(planned) => self.sent >= planned,
            None => self.end().is_some_and(|end| now >= end),
        }
    }
}

#[cfg(test)]
mod tests;
