//! Requests of many tenants, some of them given up midway: nobody is answered with a score of somebody else, of another version,
//! or from too long ago.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scoregate_model::package::Repository;
use scoregate_schemas::Rollout;

use crate::support::cached::{Callers, KEY, post, rows, scores};
use crate::support::graph::publish_share_model;
use crate::support::redis::Redis;
use crate::support::{Client, Gateway, PREDICT, Stop, is_full, pause, scratch, wait_for};

const SEED: u64 = 20_261_122;
const TENANTS: usize = 50;
/// Connections that ask at once.
const CLIENTS: usize = 6;
/// Rows that a tenant shares with nobody, rows that all tenants send, and rows that a tenant sends in batches alone.
const OWN: u32 = 6;
const SHARED: u32 = 6;
const BATCHED: u32 = 6;

/// How long a score is kept.
const TTL: Duration = Duration::from_secs(2);
/// How long after the answer a score may lie before it is written to Redis, from when on its time counts there.
const SLACK: Duration = Duration::from_millis(500);
/// How long after it was given up a request may still be computed.
const AFTERMATH: Duration = Duration::from_secs(1);

/// What became of a request for one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It was computed for this request.
    Computed,
    /// It was found.
    Found,
    /// It was computed for another that asked at the same time.
    Collapsed,
    /// It may have been computed by any version, or not at all.
    GivenUp,
}

/// One request for one row of one tenant.
#[derive(Debug, Clone, Copy)]
struct Event {
    sent: Instant,
    done: Instant,
    version: u8,
    fate: Fate,
}

/// What the requests of one connection came to: single rows, by tenant and row, and how many rows of batches there were.
#[derive(Default)]
struct Log {
    events: HashMap<(usize, u32), Vec<Event>>,
    batches: usize,
    given_up: usize,
}

/// A row of all tenants, or of one alone.
fn top(tenant: usize, row: u32) -> u32 {
    if row < SHARED { row } else { 1_000 + u32::try_from(tenant).unwrap() * 100 + row }
}

fn body(top: u32) -> String {
    format!("{{\"top\":{top},\"bottom\":1048576}}")
}

/// The score of a row by a version; no two rows and versions have the same one.
fn score(top: u32, version: u8) -> f32 {
    let share = top as f32 / 1_048_576.0;
    if version == 1 { share } else { 1.0 - share }
}

/// The version that answered and the scores of the rows, which have to be that version's.
fn check(answer: &str, tops: &[u32]) -> u8 {
    let texts = |name: &str| -> Vec<String> {
        let after = answer.split(name).skip(1);
        after.map(|rest| rest.split([',', '"', '}']).next().unwrap().to_owned()).collect()
    };
    let version: u8 = texts("\"model_version\":\"")[0].parse().unwrap();
    let scores: Vec<f32> =
        texts("\"share_probability\":").iter().map(|score| score.parse().unwrap()).collect();
    let expected: Vec<f32> = tops.iter().map(|top| score(*top, version)).collect();
    assert_eq!(scores, expected, "a foreign score: version {version}, rows {tops:?}");
    version
}

/// Sends `count` requests to both gateways in turn.
fn campaign(gateways: &[Gateway; 2], keys: &[String], seed: u64, count: usize) -> Log {
    let mut random = StdRng::seed_from_u64(seed);
    let mut clients = [gateways[0].connect(), gateways[1].connect()];
    let mut log = Log::default();
    for number in 0..count {
        let at = number % 2;
        let tenant = random.random_range(0..TENANTS);
        let sent = Instant::now();
        if random.random_ratio(1, 20) {
            let first = SHARED + OWN;
            let tops: Vec<u32> =
                (0..4).map(|_| top(tenant, random.random_range(first..first + BATCHED))).collect();
            let rows: Vec<String> = tops.iter().map(|top| body(*top)).collect();
            let request = post("/v1/predict/batch", &keys[tenant], format!("[{}]", rows.join(",")));
            let answer = clients[at].ask(&request);
            assert_eq!(answer.status, 200, "{}", answer.text());
            check(&answer.text(), &tops);
            log.batches += 1;
            continue;
        }
        let row = random.random_range(0..SHARED + OWN);
        let top = top(tenant, row);
        let request = post(PREDICT, &keys[tenant], body(top));
        let events = log.events.entry((tenant, top)).or_default();
        if random.random_ratio(6, 95) {
            give_up(&mut clients[at], &request.bytes(), &mut random);
            clients[at] = gateways[at].connect();
            let done = Instant::now() + AFTERMATH;
            events.push(Event { sent, done, version: 0, fate: Fate::GivenUp });
            log.given_up += 1;
            continue;
        }
        let answer = clients[at].ask(&request);
        let done = Instant::now();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let version = check(&answer.text(), &[top]);
        let status = answer.header("cache-status").unwrap();
        let fate = match () {
            () if status.contains("; hit") => Fate::Found,
            () if status.contains("; collapsed") => Fate::Collapsed,
            () => Fate::Computed,
        };
        events.push(Event { sent, done, version, fate });
    }
    log
}

/// Leaves after half a request, after a whole one, or with the answer half read.
fn give_up(client: &mut Client, request: &[u8], random: &mut StdRng) {
    match random.random_range(0..3) {
        0 => client.send(&request[..random.random_range(1..request.len())]),
        1 => client.send(request),
        _ => {
            client.send(request);
            while !client.has_answer() {
                std::thread::yield_now();
            }
        }
    }
}

/// Whatever was found has been computed for this tenant, by this version, and not too long ago. Counts what was found among
/// events in the order in which they were sent.
fn judge(events: &[Event]) -> usize {
    let mut count = 0;
    for found in events {
        let oldest = match found.fate {
            Fate::Found => found.sent.checked_sub(TTL + SLACK).unwrap(),
            // Whom it shares a run with was there at the same time, and may have found it in Redis.
            Fate::Collapsed => found.sent,
            Fate::Computed | Fate::GivenUp => continue,
        };
        let is_maker = |event: &&Event| {
            let made = match event.fate {
                Fate::Computed => event.version == found.version,
                Fate::GivenUp => true,
                Fate::Found => found.fate == Fate::Collapsed && event.version == found.version,
                Fate::Collapsed => false,
            };
            made && event.done >= oldest
        };
        let before = events.partition_point(|event| event.sent <= found.done);
        let maker = events[..before].iter().rev().find(is_maker);
        assert!(
            maker.is_some(),
            "foreign or stale: {found:?} after {:?}",
            &events[before.saturating_sub(20)..before]
        );
        count += usize::from(found.fate == Fate::Found);
    }
    count
}

#[test]
fn a_million_requests_of_fifty_tenants_meet_no_foreign_and_no_stale_score() {
    let requests = if is_full() { 1_000_000 } else { 40_000 };
    let models = tempfile::tempdir_in(scratch()).unwrap();
    for version in ["1", "2"] {
        publish_share_model(models.path(), version, version == "2", 0);
    }
    let promote = |version: &str| {
        Repository::new(models.path()).write_rollout("share", &Rollout::of(version)).unwrap();
    };
    promote("1");
    let (redis, callers) = (Redis::start(), Callers::new());
    let keys: Vec<String> = (0..TENANTS)
        .map(|tenant| callers.of(&format!("caller{tenant}"), &format!("tenant{tenant}")))
        .collect();
    let gateways = [0, 1].map(|_| {
        let settings = callers.replica(&redis.url(), KEY).models(models.path());
        let settings = settings.set("SCOREGATE_STATE_DIR", "state").set("SCOREGATE_DEFAULT_MODEL", "share");
        settings.set("SCOREGATE_CACHE_TTL", "2s").set("SCOREGATE_POLL_INTERVAL", "50ms").start()
    });
    let begin = Instant::now();
    let stop = AtomicBool::new(false);
    let logs: Vec<Log> = std::thread::scope(|scope| {
        let over = Stop(&stop);
        let (gateways, keys, stop, promote) = (&gateways, &keys, &stop, &promote);
        scope.spawn(move || {
            for version in ["2", "1"].into_iter().cycle() {
                for _ in 0..10 {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    pause(Duration::from_millis(100));
                }
                promote(version);
            }
        });
        let run = |client: u64| move || campaign(gateways, keys, SEED + client, requests / CLIENTS);
        let running: Vec<_> = (0..CLIENTS as u64).map(|client| scope.spawn(run(client))).collect();
        let logs = running.into_iter().map(|running| running.join().unwrap()).collect();
        drop(over);
        logs
    });
    let took = begin.elapsed();
    let (mut events, mut batches, mut given_up) = (HashMap::<_, Vec<Event>>::new(), 0, 0);
    for log in logs {
        batches += log.batches;
        given_up += log.given_up;
        for (row, more) in log.events {
            events.entry(row).or_default().extend(more);
        }
    }
    assert_eq!(events.len(), TENANTS * (OWN + SHARED) as usize, "every tenant sent every row");
    let found: usize = events
        .values_mut()
        .map(|events| {
            events.sort_by_key(|event| event.sent);
            judge(events)
        })
        .sum();
    let single: usize = events.values().map(Vec::len).sum();
    let in_redis: u64 = gateways.iter().map(|gateway| rows(gateway, "redis", "hit")).sum();
    println!(
        "{} requests in {took:.1?}, {given_up} given up, {batches} batches; of {single} rows {found} were found, {in_redis} rows in \
         Redis",
        single + batches
    );
    assert!(given_up * 20 > requests, "{given_up} of {requests} were given up");
    assert!(found * 2 > single, "{found} of {single} were found");
    assert!(in_redis > 500, "{in_redis}");
    for gateway in &gateways {
        assert_eq!([rows(gateway, "redis", "garbled"), rows(gateway, "redis", "failed")], [0, 0]);
    }
    wait_for("what was kept to go", || scores(&redis).is_empty().then_some(()));
}
