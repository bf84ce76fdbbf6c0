//! Losing Redis in every way costs no prediction, little time, and is over soon after Redis is back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::redis::{Cluster, Proxy, Redis, SECRET, free_port};
use crate::support::{
    Client, Gateway, PREDICT, REFERENCE, Request, Settings, Stop, is_full, pause, wait_for,
};

/// The longest that any request waits for Redis, as it is by default.
const DEADLINE: Duration = Duration::from_millis(20);

/// What the machine itself may add, on which all tests run at once: far less than any timeout of the client library.
const NOISE: Duration = Duration::from_millis(200);

/// How many clients send all the time.
const CLIENTS: usize = 2;

/// A gateway each of whose requests asks Redis, and that has all defaults else.
fn asking(url: &str) -> Settings {
    Settings::new()
        .set("SCOREGATE_REDIS_URL", url)
        // Nobody is refused, and a key is there for longer than the test takes.
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

/// Sends requests with all `keys` in turn while `run` runs.
fn traffic<T>(gateway: &Gateway, keys: &[String], run: impl FnOnce() -> T) -> (Vec<Sent>, T) {
    let (sent, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for first in 0..CLIENTS {
            let (sent, stop) = (&sent, &stop);
            scope.spawn(move || {
                let mut client = gateway.connect();
                let requests: Vec<Request> = keys
                    .iter()
                    .map(|key| Request::post(PREDICT, REFERENCE).header("X-Api-Key", key))
                    .collect();
                let mut own = Vec::new();
                for request in requests.iter().cycle().skip(first) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let at = Instant::now();
                    let status = client.ask(request).status;
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

/// What one loss did.
struct Loss {
    what: &'static str,
    sent: usize,
    failed: usize,
    /// The median before.
    usual: Duration,
    /// The longest of the first twenty requests.
    first: Duration,
    /// How many took about as long as the deadline, or longer.
    late: usize,
    /// The longest but for one in twenty, and but for one in a hundred, of the requests after the first twenty.
    later: [Duration; 2],
    /// From when Redis was there again until it was used again.
    recovery: Duration,
}

/// Loses Redis and brings it back under traffic. `scripts` counts what Redis has done for the gateway since it was started.
#[expect(clippy::print_stdout, reason = "the table is what one looks at with --nocapture")]
fn measure(
    what: &'static str,
    gateway: &Gateway,
    keys: &[String],
    scripts: impl Fn() -> u64,
    lose_and_restore: impl FnOnce(&dyn Fn()),
) -> Loss {
    let is_used = || {
        let before = scripts();
        wait_for("Redis to be used", || (scripts() > before).then_some(()));
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
    let loss = Loss {
        what,
        sent: sent.len(),
        failed: sent.iter().filter(|sent| sent.status != 200).count(),
        usual: before[before.len() / 2],
        first: *first.last().unwrap(),
        late: during.iter().filter(|sent| sent.took + Duration::from_millis(2) >= DEADLINE).count(),
        later: [95, 99].map(|share| later[later.len() * share / 100]),
        recovery: used - restored,
    };
    let [most, nearly_all] = loss.later;
    println!(
        "| {:<24} | {:>5} sent, {} failed | usually {:.1?} | first 20 at most {:.1?} | {} of at least the deadline | then \
         95 % {most:.1?}, 99 % {nearly_all:.1?} | used again after {:.2?} |",
        loss.what, loss.sent, loss.failed, loss.usual, loss.first, loss.late, loss.recovery
    );
    assert_eq!(loss.failed, 0, "{what}: no prediction may fail");
    assert!(loss.first <= loss.usual + DEADLINE + NOISE, "{what}: {:?}", loss.first);
    // If the breaker did not open, all would wait for the deadline.
    assert!(loss.later[0] < loss.usual + DEADLINE, "{what}: {:?}", loss.later);
    assert!(loss.recovery <= Duration::from_secs(5), "{what}: {:?}", loss.recovery);
    loss
}

fn one_key(gateway: &Gateway) -> Vec<String> {
    vec![gateway.key.clone()]
}

#[test]
fn a_server_that_is_lost_costs_no_prediction() {
    let mut redis = Redis::start();
    let proxy = Proxy::before(redis.port);
    let gateway = asking(&proxy.url()).start();
    let keys = one_key(&gateway);
    measure(
        "wire cut",
        &gateway,
        &keys,
        || redis.scripts(),
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
        || redis.scripts(),
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
        || redis.scripts(),
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
        || redis.scripts(),
        |stay| {
            assert_eq!(redis.ask(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
            stay();
            assert_eq!(redis.ask(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
        },
    );
    let redis = std::cell::RefCell::new(&mut redis);
    let scripts = || redis.borrow().scripts();
    measure("killed, started empty", &gateway, &keys, scripts, |stay| {
        redis.borrow_mut().kill();
        stay();
        redis.borrow_mut().start_again();
    });
    measure("restarted at once, empty", &gateway, &keys, scripts, |_| {
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
    // One sentinel of the two is not there.
    let url =
        format!("redis+sentinel://:{SECRET}@127.0.0.1:{},127.0.0.1:{}/main", free_port(), sentinel.port);
    let gateway = asking(&url).start();
    let keys = one_key(&gateway);
    let (old, new) = (std::cell::RefCell::new(&mut master), &replica);
    // The old one's count ends with it, and the new one's begins with the failover.
    let scripts = || old.borrow().scripts() + new.scripts();
    let begin = std::cell::Cell::new(Instant::now());
    measure("Sentinel failover", &gateway, &keys, scripts, |_| {
        begin.set(Instant::now());
        old.borrow_mut().kill();
        wait_for("the failover", || new.ask(&["ROLE"]).contains("master").then_some(()));
        println!("  (the failover itself took {:?})", begin.get().elapsed());
    });
    assert_eq!(replica.keys_for_ever(), "");
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
    let scripts = || cluster.0.iter().map(Redis::scripts).sum();
    measure("Cluster resharding", &gateway, &keys, scripts, |_| {
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
