//! Values that are stored and read back many at a time, from one server and from a cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use scoregate::config::RedisSettings;
use scoregate::redis::{Redis, Script};
use scoregate::telemetry::metrics::RedisCounts;
use tokio::runtime::{Builder, Runtime};

use crate::support::redis::{Cluster, Redis as Server};

/// Redis as the gateway's own code has it, and a runtime for those who ask.
fn open(url: &str) -> (Redis, Runtime) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let settings = RedisSettings {
        address: url.parse().unwrap(),
        password_file: None,
        ca: None,
        identity: None,
        timeout: Duration::from_secs(5),
    };
    let redis = Redis::open(&settings, RedisCounts::default()).unwrap();
    (redis, runtime)
}

#[test]
fn many_values_come_back_in_the_order_of_their_keys() {
    let (server, cluster) = (Server::start(), Cluster::start());
    for url in [server.url(), cluster.url()] {
        let (redis, runtime) = open(&url);
        let entries: Vec<(String, Vec<u8>)> =
            (0..500_u16).map(|at| (format!("scoregate:value:{at}"), at.to_le_bytes().to_vec())).collect();
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        keys.insert(7, "scoregate:value:none");
        runtime.block_on(async {
            redis.set_many(&entries, Duration::from_secs(60)).await.unwrap();
            let mut values = redis.get_many(&keys).await.unwrap();
            assert_eq!(values.remove(7), None);
            let expected: Vec<Option<Vec<u8>>> =
                entries.iter().map(|(_, value)| Some(value.clone())).collect();
            assert!(values == expected, "{url}");

            // A server that has lost its scripts is given them again.
            let script = Script::new("return {KEYS[1], ARGV[1]}");
            for _ in 0..2 {
                let answer =
                    redis.run(&script, &["scoregate:value:1".into()], &["one".into()]).await.unwrap();
                assert_eq!(answer, ["scoregate:value:1", "one"]);
                for node in cluster.0.iter().chain([&server]) {
                    assert_eq!(node.ask(&["SCRIPT", "FLUSH"]), "OK");
                }
            }
        });
    }
    let shares: BTreeSet<bool> = cluster.0.iter().map(|node| node.keys().len() > 50).collect();
    assert_eq!(shares, BTreeSet::from([true]), "each node has its share");
    for node in cluster.0.iter().chain([&server]) {
        assert_eq!(node.keys_for_ever(), "");
    }
}

#[test]
fn nothing_waits_longer_than_it_may_for_a_server_that_hangs_from_the_beginning() {
    // Connections are made by the system, and never taken.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (redis, runtime) = open(&format!("redis://{}", listener.local_addr().unwrap()));
    runtime.block_on(async {
        // The first waits for as long as it may; from then on nobody does.
        assert!(redis.get_many(&["a"]).await.is_err());
        let begin = std::time::Instant::now();
        for _ in 0..100 {
            assert!(redis.get_many(&["a"]).await.is_err());
        }
        assert!(begin.elapsed() < redis.timeout(), "{:?}", begin.elapsed());
    });
}
