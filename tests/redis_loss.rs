//! Losing Redis in every way costs no prediction, little time, and is over soon after Redis is back.
//!
//! The lines that are printed are those of the table in `docs/share-through-redis.md`: what was lost, failed predictions, added
//! milliseconds (median and longest of the first twenty requests, then median and 99th percentile), requests that waited for the
//! deadline, and the time until Redis was used again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::cached::KEY;
use crate::support::redis::{
    Cluster, MASTER_RIGHTS, Proxy, RIGHTS, Redis, SECRET, SENTINEL_RIGHTS, free_port,
};
use crate::support::{Client, Gateway, PREDICT, Request, Settings, Stop, customer, is_full, pause, wait_for};

/// The longest that any request waits for Redis, as it is by default.
const DEADLINE: Duration = Duration::from_millis(20);

/// What the machine itself may add, on which all tests run at once: far less than any timeout of the client library.
const NOISE: Duration = Duration::from_millis(200);

/// How many clients send all the time.
const CLIENTS: usize = 2;

/// A gateway each of whose requests asks Redis for rows of a quota and then for a score, and that has all defaults else.
fn asking(url: &str) -> Settings {
    let settings = Settings::new();
    std::fs::write(settings.directory().join("cache.key"), KEY).unwrap();
    settings
        .set("SCOREGATE_REDIS_URL", url)
        .set("SCOREGATE_CACHE", "redis")
        .set("SCOREGATE_CACHE_KEY_FILE", "cache.key")
        // Nobody is refused in half a minute, and rows come back slowly enough that keys stay.
        .set("SCOREGATE_QUOTA", "1000000/day")
        .set("SCOREGATE_QUOTA_LEASE", "off")
}

/// One request: when it was sent, how long it took, and what was answered.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Instant,
    took: Duration,
    status: u16,
}

/// A row that nobody has sent before.
fn fresh_row() -> String {
    static ROWS: AtomicU64 = AtomicU64::new(0);
    customer(&[("tenure_days", &ROWS.fetch_add(1, Ordering::Relaxed).to_string())])
}

/// Sends requests with all `keys` in turn while `run` runs.
fn traffic<T>(gateway: &Gateway, keys: &[String], run: impl FnOnce() -> T) -> (Vec<Sent>, T) {
    let (sent, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for first in 0..CLIENTS {
            let (sent, stop) = (&sent, &stop);
            scope.spawn(move || {
                let mut client = gateway.connect();
                let mut own = Vec::new();
                for key in keys.iter().cycle().skip(first) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let request = Request::post(PREDICT, fresh_row()).header("X-Api-Key", key);
                    let at = Instant::now();
                    let status = client.ask(&request).status;
                    own.push(Sent { at, took: at.elapsed(), status });
                }
                sent.lock().unwrap().extend(own);
            });
        }
        run()
    });
    let mut sent = sent.into_inner().unwrap();
    sent.sort_by_key(|sent| sent.at);
    (sent, done)
}

/// The time that `share` percent of the requests took at most.
fn percentile(took: &[Duration], share: usize) -> Duration {
    took[(took.len() * share / 100).min(took.len() - 1)]
}

/// Loses Redis and brings it back under traffic, and prints a line of the table of losses. `questions` counts what Redis was asked
/// since it was started.
#[expect(clippy::print_stdout, reason = "the table is what one looks at with --nocapture")]
fn measure(
    what: &'static str,
    gateway: &Gateway,
    keys: &[String],
    questions: impl Fn() -> u64,
    lose_and_restore: impl FnOnce(&dyn Fn()),
) {
    let is_used = || {
        let before = questions();
        wait_for("Redis to be used", || (questions() > before).then_some(()));
    };
    let lost_for = Duration::from_secs(if is_full() { 30 } else { 2 });
    let (sent, (lost, restored, used)) = traffic(gateway, keys, || {
        is_used();
        pause(Duration::from_millis(500));
        let lost = Instant::now();
        lose_and_restore(&|| pause(lost_for));
        let restored = Instant::now();
        is_used();
        let used = Instant::now();
        pause(Duration::from_millis(300));
        (lost, restored, used)
    });
    let took = |sent: &mut dyn Iterator<Item = &Sent>| -> Vec<Duration> {
        let mut took: Vec<Duration> = sent.map(|sent| sent.took).collect();
        took.sort();
        took
    };
    let during: Vec<Sent> = sent.iter().filter(|sent| sent.at >= lost && sent.at < used).copied().collect();
    let before = took(&mut sent.iter().filter(|sent| sent.at < lost));
    let (first, later) = (took(&mut during.iter().take(20)), took(&mut during.iter().skip(20)));
    let failed = sent.iter().filter(|sent| sent.status != 200).count();
    // Beyond what was usual before: of the first twenty requests, and of all others while Redis was lost.
    let usual = [50, 99].map(|share| percentile(&before, share));
    let added = |took: Duration, usual: Duration| took.saturating_sub(usual);
    let first = [50, 100].map(|share| added(percentile(&first, share), usual[0]));
    let then = [added(percentile(&later, 50), usual[0]), added(percentile(&later, 99), usual[1])];
    let late = during.iter().filter(|sent| sent.took + Duration::from_millis(2) >= DEADLINE).count();
    let recovery = used - restored;
    let ms = |duration: Duration| format!("{:.1}", duration.as_secs_f64() * 1e3);
    println!(
        "| {what} | {failed} of {} | {} / {} | {} / {} | {late} | {:.2} s |",
        sent.len(),
        ms(first[0]),
        ms(first[1]),
        ms(then[0]),
        ms(then[1]),
        recovery.as_secs_f64()
    );
    assert_eq!(failed, 0, "{what}: no prediction may fail");
    assert!(first[1] <= DEADLINE + NOISE, "{what}: {first:?}");
    // If the breaker did not open, all would wait for the deadline.
    assert!(then[0] <= Duration::from_millis(2), "{what}: {then:?}");
    assert!(late <= 5 * CLIENTS + during.len() / 50, "{what}: {late} of {} requests were late", during.len());
    assert!(recovery <= Duration::from_secs(5), "{what}: {recovery:?}");
}

fn one_key(gateway: &Gateway) -> Vec<String> {
    vec![gateway.key.clone()]
}

#[test]
fn a_server_that_is_lost_costs_no_prediction() {
    let mut redis = Redis::start();
    let proxy = Proxy::before(redis.port);
    // Far more rows are let through in half a minute without Redis than with it.
    let gateway = asking(&proxy.url()).set("SCOREGATE_QUOTA", "100000000/day").start();
    let keys = one_key(&gateway);
    measure(
        "wire cut",
        &gateway,
        &keys,
        || redis.questions(),
        |stay| {
            proxy.cut();
            stay();
            proxy.mend();
        },
    );
    measure(
        "slow: 200 ms",
        &gateway,
        &keys,
        || redis.questions(),
        |stay| {
            proxy.delay(Duration::from_millis(200));
            stay();
            proxy.delay(Duration::ZERO);
        },
    );
    measure(
        "stopped (SIGSTOP)",
        &gateway,
        &keys,
        || redis.questions(),
        |stay| {
            redis.signal(Signal::SIGSTOP);
            stay();
            redis.signal(Signal::SIGCONT);
        },
    );
    measure(
        "full, refusing writes",
        &gateway,
        &keys,
        || redis.questions(),
        |stay| {
            assert_eq!(redis.ask(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
            stay();
            assert_eq!(redis.ask(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
        },
    );
    let redis = std::cell::RefCell::new(&mut redis);
    let questions = || redis.borrow().questions();
    measure("killed, started empty", &gateway, &keys, questions, |stay| {
        redis.borrow_mut().kill();
        stay();
        redis.borrow_mut().start_again();
    });
    measure("restarted at once, empty", &gateway, &keys, questions, |_| {
        redis.borrow_mut().kill();
        redis.borrow_mut().start_again();
    });
    assert_eq!(redis.borrow().keys_for_ever(), "");
}

#[test]
fn sentinels_are_followed_to_the_new_master() {
    let secret = ["--requirepass", SECRET, "--masterauth", SECRET];
    let mut master = Redis::with(&secret);
    let port = master.port.to_string();
    let replica = Redis::with(&[&secret[..], &["--replicaof", "127.0.0.1", &port]].concat());
    wait_for("the replica", || {
        replica.ask(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
    });
    let sentinel = Redis::sentinel(master.port);
    wait_for("the sentinel to know the replica", || {
        let replicas = sentinel.ask(&["--raw", "SENTINEL", "REPLICAS", "main"]);
        replicas.contains(&replica.port.to_string()).then_some(())
    });
    for server in [&master, &replica] {
        server.allow(&[&RIGHTS, &MASTER_RIGHTS]);
    }
    sentinel.allow(&[&SENTINEL_RIGHTS]);
    // One sentinel of the two is not there.
    let url =
        format!("redis+sentinel://gate:secret@127.0.0.1:{},127.0.0.1:{}/main", free_port(), sentinel.port);
    let gateway = asking(&url).start();
    let keys = one_key(&gateway);
    let (old, new) = (std::cell::RefCell::new(&mut master), &replica);
    // The old one's count ends with it, and the new one's begins with the failover.
    let questions = || old.borrow().questions() + new.questions();
    let begin = std::cell::Cell::new(Instant::now());
    measure("Sentinel failover", &gateway, &keys, questions, |_| {
        begin.set(Instant::now());
        old.borrow_mut().kill();
        wait_for("the failover", || new.ask(&["ROLE"]).contains("master").then_some(()));
        println!("  (the failover itself took {:?})", begin.get().elapsed());
    });
    assert_eq!(replica.keys_for_ever(), "");
    for server in [&replica, &sentinel] {
        assert_eq!(server.denied(), Vec::<String>::new());
    }
}

#[test]
fn a_cluster_may_be_rearranged() {
    let cluster = Cluster::start();
    let settings = asking(&cluster.url());
    let mut keys: Vec<String> = (0..5)
        .map(|at| settings.key_with(&["--name", &format!("c{at}"), "--scopes", "score:predict"]))
        .collect();
    let gateway = settings.start();
    keys.extend(one_key(&gateway));
    let questions = || cluster.0.iter().map(Redis::questions).sum();
    measure("Cluster resharding", &gateway, &keys, questions, |_| {
        let quotas: Vec<String> =
            cluster.keys().into_iter().filter(|key| key.starts_with("scoregate:quota:")).collect();
        assert_eq!(quotas.len(), keys.len(), "{quotas:?}");
        for key in &quotas {
            let to = (cluster.owner(key) + 1) % 3;
            cluster.move_slot(key, to, Duration::from_millis(100));
            assert_eq!(cluster.owner(key), to);
        }
    });
    // Quotas were shared all the time, and not counted here while keys were on their way.
    let metrics = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let count = |outcome: &str| -> u64 {
        let name = format!("scoregate_redis_requests_total{{outcome=\"{outcome}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
    };
    let [answered, failed, others] =
        [count("answered"), count("failed"), count("late") + count("out_of_reach")];
    println!("  ({answered} requests to the cluster answered, {failed} failed, {others} late or not sent)");
    assert!((failed + others) * 20 < answered, "{metrics}");
    for node in &cluster.0 {
        assert_eq!(node.keys_for_ever(), "");
    }
}
