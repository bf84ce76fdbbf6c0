//! One kept-alive connection of a load, with at most one request in flight.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::http1::Head;

/// A connection to the server under load.
pub(super) struct Connection {
    stream: TcpStream,
    flight: Option<Flight>,
    inbox: Vec<u8>,
    filled: usize,
    head: Option<Head>,
}

/// A request on its way.
struct Flight {
    request: usize,
    due: Instant,
    written: usize,
}

/// A request that came back.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) due: Instant,
    pub(super) closes: bool,
}

impl Connection {
    pub(super) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, flight: None, inbox: vec![0; 16 * 1024], filled: 0, head: None })
    }

    pub(super) fn is_busy(&self) -> bool {
        self.flight.is_some()
    }

    /// Makes a request the one in flight; [`Self::advance`] then writes it.
    pub(super) fn begin(&mut self, request: usize, due: Instant) {
        self.flight = Some(Flight { request, due, written: 0 });
        (self.filled, self.head) = (0, None);
    }

    /// Writes, then reads, as far as that goes without waiting. `None` until the answer is complete.
    pub(super) fn advance(&mut self, requests: &[Vec<u8>]) -> io::Result<Option<Answered>> {
        let Some(flight) = &mut self.flight else {
            return self.expect_silence().map(|()| None);
        };
        let request = &requests[flight.request];
        let fresh = flight.written == 0;
        while flight.written < request.len() {
            match self.stream.write(&request[flight.written..]) {
                Ok(count) => flight.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // The answer to what was written just now cannot be here yet, and the event queue tells when it is.
        if fresh && flight.written == request.len() {
            return Ok(None);
        }
        loop {
            if self.filled == self.inbox.len() {
                self.inbox.resize(self.inbox.len() * 2, 0);
            }
            match self.stream.read(&mut self.inbox[self.filled..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if self.head.is_none() {
                self.head = Head::parse(&self.inbox[..self.filled])?;
            }
            if let (Some(head), Some(flight)) = (self.head, &self.flight)
                && self.filled >= head.length()
            {
                if self.filled > head.length() {
                    return Err(io::Error::new(ErrorKind::InvalidData, "more bytes than one answer"));
                }
                let unfinished = flight.written < requests[flight.request].len();
                let answered =
                    Answered { status: head.status, due: flight.due, closes: head.closes || unfinished };
                self.flight = None;
                return Ok(Some(answered));
            }
        }
    }

    /// Nothing may arrive while no request is in flight, except the end of the connection.
    fn expect_silence(&mut self) -> io::Result<()> {
        match self.stream.read(&mut self.inbox) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => Err(io::Error::new(ErrorKind::InvalidData, "bytes that nobody asked for")),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
