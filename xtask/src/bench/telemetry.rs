//! What it costs to be seen: a gateway whose requests are counted, leave a line each and are traced, beside itself without any of it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::CONNECTIONS;
use super::report::{at_most, conditions, cpu, heading, other, served};
use super::sample::{Contender, Sample, median};
use crate::gateway::{DRAIN_LIMIT, READY, READY_LIMIT, Site};
use crate::requests;
use crate::server::free_address;
use crate::workspace::Workspace;

/// The most CPU of a request that everything together may add to nothing of it, in microseconds.
const ALL_US: f64 = 4.0;
/// The most that its line may.
const LINE_US: f64 = 2.0;

/// What is measured, in turn.
#[derive(Default)]
pub(super) struct Telemetry {
    rounds: usize,
    turn: Duration,
    /// Nothing is noted of requests.
    off: Vec<Sample>,
    /// They are counted.
    counts: Vec<Sample>,
    /// Counts and lines.
    lines: Vec<Sample>,
    /// Counts, lines, and the share of requests traced that is as it comes.
    all: Vec<Sample>,
    /// Counts, lines, and every request traced.
    every: Vec<Sample>,
}

/// Measures gateways that differ in nothing else.
pub(super) fn run(workspace: &Workspace, site: &Site, rounds: usize, turn: Duration) -> Result<Telemetry> {
    let mut measured = Telemetry { rounds, turn, ..Telemetry::default() };
    let collector = collector()?;
    let serve = |name: &str, settings: &[(&str, String)]| {
        let cache = ("SCOREGATE_CACHE", "off".to_owned());
        let settings = [&[cache][..], settings].concat();
        let mut gateway = site.serve_with(workspace, free_address(0)?, name, &settings)?;
        gateway.wait_ready(READY, READY_LIMIT)?;
        anyhow::Ok(gateway)
    };
    let endpoint = || ("SCOREGATE_OTLP_ENDPOINT", collector.clone());
    let off = serve(
        "unseen",
        &[("SCOREGATE_METRICS", "off".to_owned()), ("SCOREGATE_LOG_ACCESS", "off".to_owned())],
    )?;
    let counts = serve("counted", &[("SCOREGATE_LOG_ACCESS", "off".to_owned())])?;
    let lines = serve("lines", &[])?;
    let all = serve("seen", &[endpoint()])?;
    let every = serve("traced", &[endpoint(), ("SCOREGATE_TRACE_SAMPLE", "1".to_owned())])?;
    let Telemetry { off: a, counts: b, lines: c, all: d, every: e, .. } = &mut measured;
    let pairs = [(a, &off), (b, &counts), (c, &lines), (d, &all), (e, &every)];
    let mut contenders = pairs.map(|(samples, gateway)| {
        let requests = requests::build(gateway.address, Some(&site.key), 1);
        Contender::new(samples, gateway, requests, CONNECTIONS)
    });
    for contender in &contenders {
        contender.warm_up()?;
    }
    for round in 1..=rounds {
        eprintln!("telemetry, round {round} of {rounds}");
        for contender in &mut contenders {
            contender.take_turn(turn)?;
        }
    }
    for gateway in [off, counts, lines, all, every] {
        gateway.stop(DRAIN_LIMIT)?;
    }
    Ok(measured)
}

/// A collector that takes whatever comes and looks at nothing.
fn collector() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || take_all(stream));
        }
    });
    Ok(format!("http://{address}"))
}

/// Answers each request of a connection once all of it is there.
fn take_all(mut stream: TcpStream) {
    let (mut held, mut chunk) = (Vec::new(), [0; 64 * 1024]);
    loop {
        let head = held.windows(4).position(|window| window == b"\r\n\r\n").map(|end| end + 4);
        let whole = head.map(|head| {
            let text = String::from_utf8_lossy(&held[..head]).to_ascii_lowercase();
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            head + length.unwrap_or(0)
        });
        match whole.filter(|whole| *whole <= held.len()) {
            Some(whole) => {
                held.drain(..whole);
                if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                    return;
                }
            }
            None => match stream.read(&mut chunk) {
                Ok(read) if read > 0 => held.extend_from_slice(&chunk[..read]),
                _ => return,
            },
        }
    }
}

impl Telemetry {
    /// A Markdown table in the form of the others. Costs are differences within rounds, of which the median counts.
    pub(super) fn table(&self) -> String {
        let bar = |with: &[Sample], without: &[Sample], most: f64| {
            let found = median(with.iter().zip(without).map(|(with, without)| with.cpu_us - without.cpu_us));
            Some(at_most(format!("{most} µs"), found, most, format!("{found:.1} µs")))
        };
        let rows = [
            heading(),
            served("nothing is noted", &self.off, None),
            served("requests are counted", &self.counts, None),
            served("and leave a line each", &self.lines, None),
            served("and one request in a hundred traced", &self.all, None),
            served("and every request traced", &self.every, None),
            other("what a line adds", None, bar(&self.lines, &self.counts, LINE_US)),
            other("what counts, lines and traces add", None, bar(&self.all, &self.off, ALL_US)),
        ];
        let (rounds, turn) = (self.rounds, self.turn.as_secs_f64());
        let about = format!(
            "One row a request over {CONNECTIONS} connections, {rounds} rounds of {turn} s each in turn; {:.1} µs of CPU per \
             request of which nothing is noted. {}",
            cpu(&self.off),
            conditions()
        );
        format!("{}\n\n{about}\n", rows.join("\n"))
    }
}
