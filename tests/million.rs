//! A million requests through the API, half of them bad: no 5xx, no panic, every answer right, flat memory.
//!
//! The reduced campaign runs fewer; `cargo xtask test --full` runs them all.

use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::support::{Answer, Client, Gateway, Request, Settings, complaints, is_full, repository};

const SEED: u64 = 20_260_517;
const THREADS: usize = 4;
const MIB: u64 = 1 << 20;
/// Requests of more bytes than this cost a lot of work.
const HEAVY: usize = 8_000;
static ALONE: Mutex<()> = Mutex::new(());

/// A body that scores and the probability that it must get.
struct Good {
    body: String,
    probability: f64,
}

/// Golden rows with the answers of the gateway's first pass over them.
fn good(gateway: &Gateway) -> Vec<Good> {
    let text = std::fs::read_to_string(repository().version("churn").join("golden.jsonl")).unwrap();
    let mut client = gateway.connect();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["features"].to_string());
    rows.map(|body| {
        let probability = client.ask(&gateway.with_key(Request::post("/v1/predict", &body))).probability();
        Good { body, probability }
    })
    .collect()
}

/// Whole requests of the bad-input table with the statuses they get; those that cost a lot of work apart.
fn table(gateway: &Gateway) -> [Vec<(Vec<u8>, u16)>; 2] {
    let cases = crate::bad_input::table()
        .into_iter()
        .map(|case| (gateway.with_key(case.request).bytes(), case.status));
    let (heavy, light) = cases.partition(|(bytes, _)| bytes.len() > HEAVY);
    [light, heavy]
}

/// A valid body, damaged in one to four places.
fn mutate(random: &mut StdRng, body: &str) -> Vec<u8> {
    const PIECES: [&str; 20] = [
        "null",
        "true",
        "-",
        "1e999",
        "1e39",
        "NaN",
        "\"",
        "\\",
        "\\u0000",
        "\\ud800",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "16777217",
        "\0",
        "\u{feff}",
        "\"tenure_days\":1,",
    ];
    let mut bytes = body.as_bytes().to_vec();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 => drop(bytes.drain(at..(at + random.random_range(1..12)).min(bytes.len()))),
            2 => drop(bytes.splice(at..at, PIECES.choose(random).unwrap().bytes())),
            3 => bytes.truncate(at),
            4 => {
                let from = random.random_range(0..=at);
                let copied = bytes[from..at].to_vec();
                bytes.splice(at..at, copied);
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            _ => {}
        }
    }
    bytes
}

/// A connection that is opened again where the gateway has closed it.
struct Keeper<'g> {
    gateway: &'g Gateway,
    client: Client,
}

impl Keeper<'_> {
    fn ask(&mut self, bytes: &[u8]) -> Answer {
        self.client.send(bytes);
        let answer = self.client.answer().expect("the connection was closed without an answer");
        if answer.all("connection").iter().any(|value| value.eq_ignore_ascii_case("close")) {
            self.client = self.gateway.connect();
        }
        answer
    }
}

#[derive(Default)]
struct Tally {
    scored: usize,
    refused: usize,
}

/// Sends `count` requests, every second one bad, and checks every answer.
fn campaign(
    gateway: &Gateway,
    seed: u64,
    count: usize,
    good: &[Good],
    [light, heavy]: &[Vec<(Vec<u8>, u16)>; 2],
) -> Tally {
    let mut random = StdRng::seed_from_u64(seed);
    let mut keeper = Keeper { gateway, client: gateway.connect() };
    let mut tally = Tally::default();
    for at in 0..count {
        let row = good.choose(&mut random).unwrap();
        let request = |body: &[u8]| gateway.with_key(Request::post("/v1/predict", body)).bytes();
        let (bytes, status, probability) = match at % 4 {
            0 | 2 => (request(row.body.as_bytes()), Some(200), Some(row.probability)),
            1 => (request(&mutate(&mut random, &row.body)), None, None),
            _ => {
                let cases = if random.random_ratio(1, 500) { heavy } else { light };
                let (bytes, status) = cases.choose(&mut random).unwrap();
                (bytes.clone(), Some(*status), None)
            }
        };
        // Two batches of the largest size fill the gateway's queue, and everyone else is rightly shed: one at a time.
        let alone = (bytes.len() > HEAVY).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
        let answer = keeper.ask(&bytes);
        drop(alone);
        let shown =
            || format!("{}\nto {}", answer.text(), String::from_utf8_lossy(&bytes[..bytes.len().min(2_000)]));
        if let Some(status) = status {
            assert_eq!(answer.status, status, "{}", shown());
        }
        assert!(
            answer.status == 200 || (400..500).contains(&answer.status),
            "{}: {}",
            answer.status,
            shown()
        );
        let complaints = complaints(&answer);
        assert!(complaints.is_empty(), "{complaints:?}: {}", shown());
        if answer.status == 200 {
            let found = answer.probability();
            assert!((0.0..=1.0).contains(&found), "{}", shown());
            assert!(
                probability.is_none_or(|expected| expected == found),
                "expected {probability:?}: {}",
                shown()
            );
            tally.scored += 1;
        } else {
            tally.refused += 1;
        }
    }
    tally
}

#[test]
fn a_million_requests_half_of_them_bad() {
    let requests = if is_full() { 1_000_000 } else { 40_000 };
    println!("{requests} requests on {THREADS} connections, seed {SEED}");
    let gateway = Settings::new().set("SCOREGATE_ANSWER_TIMEOUT", "60s").start();
    let (good, table) = (good(&gateway), table(&gateway));
    let half = |number: u64| -> Vec<Tally> {
        std::thread::scope(|scope| {
            let (gateway, good, table) = (&gateway, &good, &table);
            let run = |thread| {
                move || campaign(gateway, SEED + 10 * number + thread, requests / 2 / THREADS, good, table)
            };
            let threads: Vec<_> = (0..THREADS as u64).map(|thread| scope.spawn(run(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    };
    let mut tallies = half(0);
    let middle = gateway.resident();
    tallies.extend(half(1));
    let end = gateway.resident();
    let (scored, refused) = tallies
        .iter()
        .fold((0, 0), |(scored, refused), tally| (scored + tally.scored, refused + tally.refused));
    println!(
        "{scored} scored, {refused} refused; resident {} KiB in the middle, {} KiB at the end",
        middle / 1024,
        end / 1024
    );
    assert_eq!(scored + refused, requests);
    assert!(scored >= requests / 2 && refused > requests * 2 / 5, "{scored} scored, {refused} refused");
    let log = gateway.log_so_far().join("\n");
    assert!(!log.contains("panicked") && !log.contains("request failed"), "{log}");
    // 16 MiB for a million; few requests say little, so that the reduced run leaves room for an arena or two.
    let slack = if is_full() { 2 * MIB } else { 16 * MIB };
    let allowed = 16 * MIB * (requests as u64 / 2) / 1_000_000 + slack;
    assert!(end.saturating_sub(middle) <= allowed, "resident memory grew by {} bytes", end - middle);
}
