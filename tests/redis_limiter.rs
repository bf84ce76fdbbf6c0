//! Quotas that several gateways share through Redis: how many rows they let through together, and what they leave there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::redis::{CLUSTER_RIGHTS, Cluster, Proxy, RIGHTS, Redis, free_port};
use crate::support::tls::{Authority, Names, write_pair};
use crate::support::{
    Answer, Client, Gateway, PREDICT, REFERENCE, Request, Settings, Stop, is_full, pause, wait_for,
};

/// A gateway with a quota, shared through the Redis at `url`.
fn sharing(url: &str, quota: &str, lease: &str) -> Settings {
    Settings::new()
        .set("SCOREGATE_REDIS_URL", url)
        .set("SCOREGATE_QUOTA", quota)
        .set("SCOREGATE_QUOTA_LEASE", lease)
}

/// Several gateways that know the same callers.
fn replicas(count: usize, settings: impl Fn() -> Settings) -> Vec<Gateway> {
    let first = settings().start();
    let file = first.keys_file().to_str().unwrap().to_owned();
    let mut all = vec![first];
    for _ in 1..count {
        let mut next = settings().set("SCOREGATE_API_KEYS_FILE", &file).start();
        next.key.clone_from(&all[0].key);
        all.push(next);
    }
    all
}

/// A number of the metrics, by what stands before it.
fn number(gateway: &Gateway, name: &str) -> u64 {
    let metrics = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name} is not in {metrics}")).parse().unwrap()
}

/// How many requests to Redis ended so.
fn metric(gateway: &Gateway, outcome: &str) -> u64 {
    number(gateway, &format!("scoregate_redis_requests_total{{outcome=\"{outcome}\"}} "))
}

/// The rows that `clients` of each of the gateways, which all ask with one key, are let through with until they are refused.
fn admitted(gateways: &[Gateway], clients: usize) -> u64 {
    let admitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for gateway in gateways {
            for _ in 0..clients {
                scope.spawn(|| {
                    let request = gateway.with_key(Request::post(PREDICT, REFERENCE));
                    let mut client = gateway.connect();
                    loop {
                        let answer = client.ask(&request);
                        match answer.status {
                            200 => admitted.fetch_add(1, Ordering::Relaxed),
                            429 => break,
                            _ => panic!("{answer:?}"),
                        };
                    }
                });
            }
        }
    });
    admitted.into_inner()
}

#[test]
fn two_gateways_let_no_more_rows_through_than_one() {
    let redis = Redis::start();
    let gateways = replicas(2, || sharing(&redis.url(), "1000/hour", "off"));
    let begin = Instant::now();
    let admitted = admitted(&gateways, 64);
    // One row comes back in 3.6 s.
    let returned = begin.elapsed().as_secs() / 3 + 1;
    println!("without leases: {admitted} of 1,000 rows in {:?}", begin.elapsed());
    assert!((1_000..=1_000 + returned.min(10)).contains(&admitted), "{admitted}");
    assert_eq!(redis.keys_for_ever(), "");
}

#[test]
fn answers_that_are_late_let_nobody_exceed_a_quota() {
    let redis = Redis::start();
    let proxy = Proxy::before(redis.port);
    let gateways = replicas(2, || sharing(&proxy.url(), "1000/hour", "off"));
    let (begin, stop) = (Instant::now(), AtomicBool::new(false));
    let admitted = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            // Far later than the deadline, again and again, and never for so long that Redis would be given up.
            while !stop.load(Ordering::Relaxed) {
                for delay in [60, 0] {
                    proxy.delay(Duration::from_millis(delay));
                    pause(Duration::from_millis(60));
                }
            }
        });
        admitted(&gateways, 64)
    });
    let returned = begin.elapsed().as_secs() / 3 + 1;
    println!("with answers 60 ms late: {admitted} of 1,000 rows in {:?}", begin.elapsed());
    assert!((1_000..=1_000 + returned.min(10)).contains(&admitted), "{admitted}");
    assert!(gateways.iter().all(|gateway| metric(gateway, "late") > 0), "no answer was late");
    for gateway in &gateways {
        assert!(!gateway.log().iter().any(|line| line.contains("Redis is lost")), "{:?}", gateway.log());
    }
}

#[test]
fn who_may_have_nothing_left_waits_until_redis_is_given_up() {
    let redis = Redis::start();
    let gateway = sharing(&redis.url(), "100/day", "off").start();
    for _ in 0..90 {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    }
    redis.signal(Signal::SIGSTOP);
    let begin = Instant::now();
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    assert!(begin.elapsed() > Duration::from_millis(200), "{:?}: it was not waited for", begin.elapsed());
    assert_eq!(admitted(std::slice::from_ref(&gateway), 8), 9);
    redis.signal(Signal::SIGCONT);
}

#[test]
fn rows_that_a_gateway_let_through_alone_come_back_as_all_others_do() {
    let mut redis = Redis::start();
    let gateway = sharing(&redis.url(), "100/s", "off").start();
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    redis.kill();
    let begin = Instant::now();
    let mut alone = 0;
    // Three quotas in all, at a third of the pace.
    while begin.elapsed() < Duration::from_secs(9) && alone < 300 {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
        alone += 1;
        pause(Duration::from_millis(29));
    }
    assert!(alone > 100, "{alone} rows are no more than a quota: the machine is too busy");
    redis.start_again();
    let told = wait_for("Redis to be told", || {
        let answer = gateway.post(PREDICT, REFERENCE);
        assert_eq!(answer.status, 200, "{answer:?}");
        (redis.questions() > 0).then_some(answer)
    });
    let left = told.header("ratelimit").unwrap().to_owned();
    let left: u64 = left.strip_prefix("\"rows\";r=").unwrap().split(';').next().unwrap().parse().unwrap();
    assert!(left > 50, "{left}");
    let counted = metric(&gateway, "out_of_reach");
    assert!(counted >= 100, "{counted} of {alone}");
    assert!(number(&gateway, "scoregate_quota_rows_alone_total ") >= alone - 5);
}

#[test]
fn leases_shrink_with_their_quota() {
    let redis = Redis::start();
    let settings = sharing(&redis.url(), "1000000/day", "2%");
    let file = settings.directory().join("scoregate.toml");
    let plan = |quota: &str| std::fs::write(&file, format!("[plan.gold]\nquota = \"{quota}\"\n")).unwrap();
    plan("1000000/day");
    let gold = settings.key_with(&["--name", "gold", "--scopes", "score:predict", "--plan", "gold"]);
    let mut gateway = settings.start();
    gateway.key = gold;
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    plan("10/day");
    wait_for("the new quota", || {
        let answer = gateway.post(PREDICT, REFERENCE);
        let policy = answer.header("ratelimit-policy").unwrap_or_default();
        policy.starts_with("\"rows\";q=10;").then_some(())
    });
    let admitted = admitted(std::slice::from_ref(&gateway), 1);
    assert!(admitted <= 10, "{admitted}");
}

#[test]
fn what_others_write_under_a_quotas_key_costs_nobody_anything() {
    let redis = Redis::start();
    let gateway = sharing(&redis.url(), "100/day", "off").start();
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    let keys = redis.keys();
    let key = keys.iter().find(|key| key.starts_with("scoregate:quota:")).unwrap();
    let list = ["RPUSH", key, "1"];
    for (at, garbled) in
        [&list[..], &["SET", key, "nan"], &["SET", key, "inf"], &["SET", key, "soon"]].iter().enumerate()
    {
        redis.ask(&["DEL", key]);
        redis.ask(garbled);
        let answer = gateway.post(PREDICT, REFERENCE);
        let left = answer.header("ratelimit").unwrap();
        assert!(left.starts_with(&format!("\"rows\";r={};", 98 - at)), "{garbled:?}: {left}");
        assert_eq!(redis.keys_for_ever(), "", "{garbled:?}");
    }
    assert_eq!(metric(&gateway, "failed"), 0);
}

#[test]
fn leases_let_through_what_is_documented_and_no_more() {
    let redis = Redis::start();
    let gateways = replicas(2, || sharing(&redis.url(), "1000/hour", "2%"));
    let before = redis.questions();
    let admitted = admitted(&gateways, 64);
    let asked = redis.questions() - before;
    println!("with leases of 2 %: {admitted} of 1,000 rows, {asked} questions to Redis");
    // What the replicas hold is counted already: it is let through later by those who hold it.
    assert!((1_000 - 2 * 20..=1_000 + 2 * 20 + 10).contains(&admitted), "{admitted}");
    assert!(asked < 200, "a lease is for many rows: {asked}");
    let unused = self::admitted(&gateways, 1);
    assert!(admitted + unused <= 1_000 + 2 * 20 + 10, "{admitted} and {unused}");
}

#[test]
fn leases_that_are_held_are_all_that_exceeds_a_quota() {
    let redis = Redis::start();
    let gateways = replicas(2, || sharing(&redis.url(), "100/s", "50%"));
    for gateway in &gateways {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    }
    // Then the whole quota is there again, and each of the replicas holds 49 rows besides: the worst that can be.
    wait_for("the quota to be whole", || {
        let is_whole = !redis.keys().iter().any(|key| key.starts_with("scoregate:quota:"));
        is_whole.then_some(())
    });
    let begin = Instant::now();
    let admitted = admitted(&gateways, 2);
    let returned = (begin.elapsed().as_secs_f64() * 100.0) as u64 + 1;
    println!("with two leases of 50 rows held: {admitted} of 100 rows and {returned} that came back");
    let bound = 100 + 2 * 50 + returned;
    assert!((100 + 2 * 49..=bound).contains(&admitted), "{admitted}, at most {bound}");
}

#[test]
fn what_lies_in_redis_says_nothing_and_expires() {
    let redis = Redis::start();
    let settings = sharing(&redis.url(), "1000/hour", "off");
    let plan = "[plan.gold]\nquota = \"1000/hour\"\n[plan.gold.models]\nchurn = \"3/hour\"\n";
    std::fs::write(settings.directory().join("scoregate.toml"), plan).unwrap();
    let gold = settings.key_with(&["--name", "gold", "--scopes", "score:predict", "--plan", "gold"]);
    let gateway = settings.start();
    let ask = |model: &str| {
        let request = Request::post(&format!("/v1/models/{model}/predict"), REFERENCE);
        gateway.ask(&request.header("X-Api-Key", &gold))
    };
    for left in [2, 1, 0] {
        let answer = ask("churn");
        let said = answer.header("ratelimit").unwrap();
        let expected = format!("\"rows\";r={};t=", 997 + left);
        assert!(
            said.starts_with(&expected) && said.contains(&format!("\"rows-churn\";r={left};t=")),
            "{said}"
        );
    }
    let refused = ask("churn");
    assert_eq!(
        (refused.status, &refused.json()["violated-policies"]),
        (429, &serde_json::json!(["rows-churn"]))
    );
    // The rows that one policy refuses are not gone from the other.
    assert!(refused.header("ratelimit").unwrap().starts_with("\"rows\";r=997;t="), "{refused:?}");
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);

    let keys = redis.keys();
    let quotas: Vec<&String> = keys.iter().filter(|key| key.starts_with("scoregate:quota:")).collect();
    assert_eq!(quotas.len(), 3, "{keys:?}");
    for key in &quotas {
        let (tag, policy) = key["scoregate:quota:{".len()..].split_once("}:").unwrap();
        let is_digest = |text: &str| text.len() == 22 && !text.contains("churn") && !text.contains("gold");
        assert!(is_digest(tag) && is_digest(policy), "{key}");
        let value = redis.ask(&["--raw", "GET", key]);
        assert!(value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'), "{key}: {value}");
    }
    assert_eq!(redis.keys_for_ever(), "");
}

#[test]
fn a_server_that_forgot_everything_is_told_what_a_gateway_knows() {
    let redis = Redis::start();
    let gateways = replicas(2, || sharing(&redis.url(), "100/day", "off"));
    for gateway in gateways.iter().cycle().take(60) {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    }
    assert_eq!(redis.ask(&["FLUSHALL"]), "OK");
    // The one that asked last knows of all sixty rows.
    assert_eq!(gateways[1].post(PREDICT, REFERENCE).status, 200);
    assert_eq!(admitted(&gateways, 2), 39);
}

#[test]
fn one_gateway_alone_counts_by_itself_what_redis_does_not() {
    let gateway = sharing(&format!("redis://127.0.0.1:{}", free_port()), "50/day", "2%").start();
    let admitted = admitted(std::slice::from_ref(&gateway), 8);
    assert_eq!(admitted, 50);
}

#[test]
fn operators_are_refused_while_redis_is_out_of_reach() {
    let mut redis = Redis::start();
    let settings = sharing(&redis.url(), "50/day", "2%");
    let operator = settings.key_with(&["--name", "operator", "--scopes", "models:write"]);
    let gateway = settings.start();
    // A promotion of what is not there: it is looked for only if the quota lets it.
    let promote = || {
        let body = r#"{"live":"nothing"}"#;
        let request = Request::new("PUT", "/v1/models/churn/rollout").header("X-Api-Key", &operator);
        let request = request.header("Content-Type", "application/json");
        let request = request.header("Content-Length", body.len().to_string()).body(body);
        Client::connect(gateway.admin_addr).ask(&request)
    };
    let known = promote().status;
    assert!((400..500).contains(&known), "{known}");
    redis.kill();
    let refused: Answer =
        wait_for("the loss to be noticed", || Some(promote()).filter(|answer| answer.status != known));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200);
    redis.start_again();
    wait_for("operators to be let in again", || (promote().status == known).then_some(()));
}

#[test]
fn a_user_of_few_rights_over_tls_is_enough() {
    let authority = Authority::new("authority");
    let directory = tempfile::tempdir_in(crate::support::scratch()).unwrap();
    let (cert, key) = write_pair(directory.path(), "redis", &authority.server());
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let (cert, key, ca) = (cert.to_str().unwrap(), key.to_str().unwrap(), ca.to_str().unwrap());
    let port = free_port();
    let redis = Redis::with(
        &[
            &["--tls-port", &port.to_string(), "--tls-cert-file", cert, "--tls-key-file", key][..],
            &["--tls-ca-cert-file", ca, "--tls-auth-clients", "yes"],
        ]
        .concat(),
    );
    redis.allow(&[&RIGHTS]);
    let settings = sharing(&format!("rediss://gate@localhost:{port}"), "10/day", "off");
    std::fs::write(settings.directory().join("password"), "secret\n").unwrap();
    let (own, own_key) = write_pair(settings.directory(), "gateway", &authority.client(Names::default()));
    let gateway = settings
        .set("SCOREGATE_REDIS_PASSWORD_FILE", "password")
        .set("SCOREGATE_REDIS_CA", ca)
        .set("SCOREGATE_REDIS_CERT", own.to_str().unwrap())
        .set("SCOREGATE_REDIS_KEY", own_key.to_str().unwrap())
        .start();
    wait_for("the gateway to ask Redis", || {
        assert_eq!(gateway.post(PREDICT, REFERENCE).status, 200, "{:?}", gateway.log());
        (redis.questions() > 0).then_some(())
    });
    let log = gateway.log().join("\n");
    assert!(!log.contains("secret"), "{log}");
    assert_eq!(redis.denied(), Vec::<String>::new());

    // Another authority's certificate is nobody's.
    let other = sharing(&format!("rediss://gate@localhost:{port}"), "10/day", "off");
    std::fs::write(other.directory().join("ca.pem"), Authority::new("other").pem()).unwrap();
    let other = other.set("SCOREGATE_REDIS_CA", "ca.pem").start();
    wait_for("the certificate to be refused", || {
        let is_told = |line: &String| line.contains("out of reach") && line.contains("certificate");
        other.log().iter().any(is_told).then_some(())
    });
}

#[test]
fn a_cluster_shares_quotas_of_many_callers() {
    let cluster = Cluster::start();
    for node in &cluster.0 {
        node.allow(&[&RIGHTS, &CLUSTER_RIGHTS]);
    }
    let url = cluster.url().replace("://", "://gate:secret@");
    let callers = 12;
    let keys = std::cell::RefCell::new(Vec::new());
    let gateways = replicas(2, || {
        let settings = sharing(&url, "20/day", "off");
        let mut keys = keys.borrow_mut();
        if keys.is_empty() {
            for at in 0..callers {
                keys.push(settings.key_with(&["--name", &format!("c{at}"), "--scopes", "score:predict"]));
            }
        }
        settings
    });
    for key in keys.borrow().iter() {
        let mut admitted = 0;
        for gateway in gateways.iter().cycle().take(24) {
            let answer = gateway.ask(&Request::post(PREDICT, REFERENCE).header("X-Api-Key", key));
            admitted += u32::from(answer.status == 200);
        }
        assert_eq!(admitted, 20);
    }
    let quotas = cluster.keys().into_iter().filter(|key| key.starts_with("scoregate:quota:"));
    assert_eq!(quotas.count(), callers);
    assert!(cluster.0.iter().filter(|node| !node.keys().is_empty()).count() > 1, "{:?}", cluster.keys());
    for node in &cluster.0 {
        assert_eq!(node.denied(), Vec::<String>::new());
    }
}

#[test]
fn a_user_with_too_few_rights_is_told_of_once() {
    let redis = Redis::start();
    redis.allow(&[&RIGHTS, &["-evalsha"]]);
    let gateway = sharing(&redis.url().replace("://", "://gate:secret@"), "10/day", "off").start();
    let begin = Instant::now();
    // Several attempts.
    while begin.elapsed() < Duration::from_secs(2) || redis.denied().is_empty() {
        gateway.post(PREDICT, REFERENCE);
        pause(Duration::from_millis(50));
    }
    let told = |text: &str| gateway.log().iter().filter(|line| line.contains(text)).count();
    assert_eq!((told("Redis is out of reach"), told("Redis is there"), told("Redis is lost")), (1, 0, 0));
    assert!(told("evalsha") == 1, "{:?}", gateway.log());
}

#[test]
fn gateways_that_are_killed_leave_no_key_without_expiry() {
    let redis = Redis::start();
    let rounds = if is_full() { 100 } else { 4 };
    for round in 0..rounds {
        let lease = if round % 2 == 0 { "off" } else { "1%" };
        let gateways = replicas(2, || sharing(&redis.url(), "1000000/day", lease));
        let before = redis.questions();
        std::thread::scope(|scope| {
            for gateway in &gateways {
                for _ in 0..2 {
                    scope.spawn(|| {
                        let request = gateway.with_key(Request::post(PREDICT, REFERENCE));
                        let mut client = gateway.connect();
                        // Until the gateway is gone.
                        loop {
                            client.send(request.bytes());
                            let Some(answer) = client.answer() else { break };
                            assert_eq!(answer.status, 200);
                        }
                    });
                }
            }
            // Of leases there is one question for 10,000 rows.
            wait_for("Redis to be asked", || (redis.questions() >= before + 2).then_some(()));
            pause(Duration::from_millis(7 * (round % 13)));
            for gateway in &gateways {
                gateway.signal(Signal::SIGKILL);
            }
        });
        assert!(redis.keys().iter().any(|key| key.starts_with("scoregate:quota:")));
        assert_eq!(redis.keys_for_ever(), "", "round {round}");
    }
    println!(
        "two gateways killed {rounds} times under load: {} keys, all of which expire",
        redis.keys().len()
    );
    // What a gateway had taken and not used comes back by time: all keys go by themselves once their quotas are whole.
    let script = "for _, key in ipairs(redis.call('KEYS', '*')) do \
                  local left = redis.call('PTTL', key) if left > 86400001 then return left end end return 0";
    assert_eq!(redis.ask(&["EVAL", script, "0"]), "0");
}
