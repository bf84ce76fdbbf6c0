//! Scores that were computed before: who is answered with them, when they are computed anew, and what lies in Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use scoregate_model::package::Repository;
use scoregate_schemas::Rollout;
use scoregate_schemas::manifest::Output;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cached::{Callers, KEY, metric, post, rows, scores, told, without_ids};
use crate::support::graph::{FLOAT, Handmade, publish_share_model};
use crate::support::redis::Redis;
use crate::support::{
    Answer, Client, Gateway, PREDICT, REFERENCE, Request, Settings, Stop, customer, pause,
    publish_ratio_model, scratch, wait_for,
};

const BATCH: &str = "/v1/predict/batch";

/// How many layers make a model slow: some milliseconds.
const SLOW: usize = 24;

const MEMORY_MISS: &str = "scoregate-memory; fwd=miss; stored";
const MEMORY_HIT: &str = "scoregate-memory; hit; ttl=T";
const BOTH_MISS: &str = "scoregate-redis; fwd=miss, scoregate-memory; fwd=miss; stored";
const REDIS_HIT: &str = "scoregate-redis; hit; ttl=T, scoregate-memory; fwd=miss; stored";

fn empty() -> TempDir {
    tempfile::tempdir_in(scratch()).unwrap()
}

/// A repository with one version of the model `share`.
fn share(layers: usize) -> TempDir {
    let models = empty();
    publish_share_model(models.path(), "1", false, layers);
    models
}

/// A gateway of the models of this repository, whose names others use for other models.
fn serving(settings: Settings, models: &TempDir, default: &str) -> Settings {
    settings.models(models.path()).set("SCOREGATE_STATE_DIR", "state").set("SCOREGATE_DEFAULT_MODEL", default)
}

/// What stands in an answer but for the identifier of the prediction.
fn text(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    without_ids(&answer.text())
}

/// A row of the model `share`, and its score.
fn part(top: u32) -> (String, f32) {
    (format!("{{\"top\":{top},\"bottom\":1048576}}"), top as f32 / 1_048_576.0)
}

#[test]
fn a_row_is_computed_once_for_all_of_a_tenant() {
    let callers = Callers::new();
    let (north, north_too, south) =
        (callers.of("a", "north"), callers.of("b", "north"), callers.of("c", "south"));
    let (alone, alone_too) = (callers.alone("alone"), callers.alone("alone too"));
    // A tenant that is called as a caller is.
    let namesake = callers.of("namesake", &callers.id("alone"));
    let gateway = callers.gateway("memory").start();
    let first = gateway.ask(&post(PREDICT, &north, REFERENCE));
    assert_eq!(first.header("cache-status"), Some(MEMORY_MISS));
    let id = |answer: &Answer| answer.json()["prediction_id"].as_str().unwrap().to_owned();
    let mut ids = BTreeSet::from([id(&first)]);
    for (body, key, expected) in [
        (REFERENCE, &north, MEMORY_HIT),
        // The same row.
        (
            r#" {"last_login_hours":5e0, "country":"\u0055S","plan_tier":"pro",
                 "support_tickets_30d":1.0,"monthly_spend":49,"tenure_days":214.0}"#,
            &north,
            MEMORY_HIT,
        ),
        (REFERENCE, &north_too, MEMORY_HIT),
        (REFERENCE, &south, MEMORY_MISS),
        (REFERENCE, &south, MEMORY_HIT),
        (REFERENCE, &alone, MEMORY_MISS),
        (REFERENCE, &alone_too, MEMORY_MISS),
        (REFERENCE, &namesake, MEMORY_MISS),
        (REFERENCE, &alone, MEMORY_HIT),
        (REFERENCE, &alone_too, MEMORY_HIT),
    ] {
        let answer = gateway.ask(&post(PREDICT, key, body));
        assert_eq!(told(&answer), expected, "{body} {key}");
        assert_eq!(text(&answer), text(&first));
        assert!(ids.insert(id(&answer)), "a prediction's identifier is its own");
    }
    assert_eq!([rows(&gateway, "memory", "hit"), rows(&gateway, "memory", "miss")], [6, 5]);
    assert_eq!(metric(&gateway, "scoregate_cache_entries"), 5);
}

#[test]
fn rows_that_differ_in_anything_are_told_apart() {
    let callers = Callers::new();
    let key = callers.alone("a");
    let (cached, plain) = (callers.gateway("memory").start(), callers.gateway("off").start());
    let long = |country: &str, plan: &str| customer(&[("country", country), ("plan_tier", plan)]);
    let different = [
        REFERENCE.to_owned(),
        customer(&[("tenure_days", "214.00000000000003")]),
        customer(&[("monthly_spend", "49.5")]),
        customer(&[("support_tickets_30d", "2")]),
        customer(&[("plan_tier", "\"basic\"")]),
        customer(&[("country", "\"DE\"")]),
        customer(&[("last_login_hours", "6")]),
        // The model knows none of these, and scores them alike.
        customer(&[("plan_tier", "\"new\"")]),
        customer(&[("plan_tier", "\"newer\"")]),
        long("\"XY\"", "\"Zcanary\""),
        long("\"XYZ\"", "\"canary\""),
    ];
    for expected in [MEMORY_MISS, MEMORY_HIT] {
        for row in &different {
            let answer = cached.ask(&post(PREDICT, &key, row));
            assert_eq!(told(&answer), expected, "{row}");
            assert_eq!(text(&answer), text(&plain.ask(&post(PREDICT, &key, row))), "{row}");
        }
    }
    // Whom a row is about does not reach the model.
    for customer_id in ["\"c-1\"", "\"c-2\""] {
        let row = customer(&[("customer_id", customer_id)]);
        assert_eq!(told(&cached.ask(&post(PREDICT, &key, row))), MEMORY_HIT);
    }
    assert_eq!(plain.ask(&post(PREDICT, &key, REFERENCE)).header("cache-status"), None);
}

#[test]
fn missing_values_are_values_of_their_own() {
    let models = empty();
    // `top / bottom`, times `extra` where it is there.
    Handmade::new("patchy", &["top", "bottom", "extra"])
        .optional("extra")
        .labels(&["no", "yes"])
        .node("Div", &["top", "bottom"], "share", Vec::new())
        .node("Mul", &["share", "extra"], "product", Vec::new())
        .node("IsNaN", &["extra"], "is_missing", Vec::new())
        .node("Where", &["is_missing", "share", "product"], "probability", Vec::new())
        .output("probability", FLOAT)
        .golden(json!({"top": 1, "bottom": 4, "extra": 0.5}), json!(0.125))
        .publish(
            models.path(),
            Output::Probabilities { name: "probability".into(), classes: 1, positive: 0 },
        );
    let callers = Callers::new();
    let key = callers.alone("a");
    let gateway = serving(callers.gateway("memory"), &models, "patchy").start();
    for (row, expected, score) in [
        (r#"{"top":1,"bottom":2}"#, MEMORY_MISS, 0.5),
        (r#"{"top":1,"bottom":2,"extra":null}"#, MEMORY_HIT, 0.5),
        (r#"{"top":1,"bottom":2,"extra":0}"#, MEMORY_MISS, 0.0),
        (r#"{"top":1,"bottom":2,"extra":1}"#, MEMORY_MISS, 0.5),
        (r#"{"extra":0.0,"bottom":2,"top":1}"#, MEMORY_HIT, 0.0),
        (r#"{"extra":null,"bottom":2,"top":1}"#, MEMORY_HIT, 0.5),
    ] {
        let answer = gateway.ask(&post(PREDICT, &key, row));
        assert_eq!((told(&answer).as_str(), &answer.json()["patchy_probability"]), (expected, &json!(score)));
    }
}

#[test]
fn scores_are_forgotten_in_time() {
    let ttl = Duration::from_secs(1);
    let callers = Callers::new();
    let key = callers.alone("a");
    let gateway = callers.gateway("memory").set("SCOREGATE_CACHE_TTL", "1s").start();
    let (mut client, request) = (gateway.connect(), post(PREDICT, &key, REFERENCE));
    let (mut hits, mut computed) = (0, Vec::new());
    wait_for("three scores in turn", || {
        let sent = Instant::now();
        let answer = client.ask(&request);
        match told(&answer).as_str() {
            MEMORY_HIT => {
                let last = *computed.last().unwrap();
                assert!(sent < last + ttl, "kept for {:?}", sent - last);
                hits += 1;
            }
            MEMORY_MISS => computed.push(Instant::now()),
            other => panic!("{other}"),
        }
        (computed.len() == 3).then_some(())
    });
    // All that is less than a minute old might be found: with a second, hits end after one.
    assert!(hits > 10, "{hits}");
}

#[test]
fn clients_say_what_they_take() {
    let callers = Callers::new();
    let key = callers.alone("a");
    let gateway = callers.gateway("memory").start();
    let mut client = gateway.connect();
    let mut ask = |control: &str| {
        let request = post(PREDICT, &key, REFERENCE);
        let request = if control.is_empty() { request } else { request.header("Cache-Control", control) };
        told(&client.ask(&request))
    };
    let fresh = "scoregate-memory; fwd=request; stored";
    for (control, expected) in [
        ("no-store", "scoregate-memory; fwd=miss"),
        ("no-cache, no-store", "scoregate-memory; fwd=request"),
        ("max-age=0, no-store", "scoregate-memory; fwd=request"),
        // Nothing was kept of these.
        ("", MEMORY_MISS),
        ("", MEMORY_HIT),
        ("no-store", MEMORY_HIT),
        ("no-transform, only-if-cached", MEMORY_HIT),
        ("no-cache", fresh),
        ("No-Cache", fresh),
        ("max-age=0", fresh),
        ("max-age=60", MEMORY_HIT),
        ("private, max-age=\"60\"", MEMORY_HIT),
        ("", MEMORY_HIT),
    ] {
        assert_eq!(ask(control), expected, "{control}");
    }
    // What is older than a second is taken by those alone who do not mind.
    let begin = Instant::now();
    wait_for("an age of more than a second", || {
        assert_eq!(ask(""), MEMORY_HIT);
        let answer = ask("max-age=1");
        if answer == MEMORY_HIT {
            return None;
        }
        assert_eq!(answer, fresh);
        Some(())
    });
    assert!(begin.elapsed() >= Duration::from_millis(800), "{:?}", begin.elapsed());
    assert_eq!(ask("max-age=1"), MEMORY_HIT, "the newer score took the place of the older");
}

#[test]
fn a_score_is_as_old_wherever_it_was_found() {
    let (redis, callers) = (Redis::start(), Callers::new());
    let key = callers.alone("a");
    let gateways = [0, 1].map(|_| callers.replica(&redis.url(), KEY).start());
    let request = |control: &str| post(PREDICT, &key, REFERENCE).header("Cache-Control", control);
    assert_eq!(told(&gateways[0].ask(&request("max-age=60"))), BOTH_MISS);
    wait_for("the score", || (scores(&redis).len() == 1).then_some(()));
    wait_for("an age of more than a second", || {
        let answer = told(&gateways[0].ask(&request("no-store, max-age=1")));
        (answer != MEMORY_HIT).then_some(())
    });
    // There it lies in Redis, and is found by those alone who do not mind its age.
    for _ in 0..2 {
        let status = told(&gateways[1].ask(&request("no-store, max-age=1")));
        assert!(!status.contains("; hit"), "{status}");
    }
    assert_eq!(told(&gateways[1].ask(&request("max-age=60"))), REDIS_HIT);
    // What one replica keeps of it is as old as it is.
    let status = told(&gateways[1].ask(&request("max-age=1")));
    assert!(!status.contains("; hit"), "{status}");
}

#[test]
fn failures_are_not_kept_and_say_nothing_of_the_cache() {
    let models = empty();
    publish_ratio_model(models.path());
    let callers = Callers::new();
    let key = callers.alone("a");
    let gateway = serving(callers.gateway("memory"), &models, "ratio").start();
    let faulty = "[{\"top\":\"a\",\"bottom\":1}]";
    for _ in 0..3 {
        for (target, body, status) in [
            (PREDICT, "{\"top\":1}", 422),
            (PREDICT, "{\"top\":1,", 400),
            // Infinite, not a number, and no probability.
            (PREDICT, "{\"top\":1,\"bottom\":0}", 500),
            (PREDICT, "{\"top\":0,\"bottom\":0}", 500),
            (PREDICT, "{\"top\":2,\"bottom\":1}", 500),
            (BATCH, faulty, 422),
            (BATCH, "[]", 422),
            (BATCH, "[{\"top\":2,\"bottom\":1},{\"top\":2,\"bottom\":1}]", 500),
        ] {
            let answer = gateway.ask(&post(target, &key, body));
            assert_eq!((answer.status, answer.header("cache-status")), (status, None), "{body}");
        }
    }
    assert_eq!(metric(&gateway, "scoregate_cache_entries"), 0);
    assert_eq!(rows(&gateway, "memory", "hit"), 0);
    let good = post(PREDICT, &key, "{\"top\":1,\"bottom\":4}");
    assert_eq!(told(&gateway.ask(&good)), MEMORY_MISS);
    assert_eq!(metric(&gateway, "scoregate_cache_entries"), 1);
}

/// Rows of customers, from row `first` on.
fn customers(first: usize, count: usize) -> Vec<String> {
    let row = |number: usize| {
        let tenure = (number * 7 % 3_001).to_string();
        let spend = format!("{}.25", number % 97);
        let plan = ["\"basic\"", "\"pro\"", "\"business\"", "\"never seen\""][number % 4];
        customer(&[("tenure_days", &tenure), ("monthly_spend", &spend), ("plan_tier", plan)])
    };
    (first..first + count).map(row).collect()
}

fn array(rows: &[String]) -> String {
    format!("[{}]", rows.join(","))
}

#[test]
fn batches_are_looked_up_row_by_row() {
    let models = share(0);
    let callers = Callers::new();
    let key = callers.alone("a");
    let gateway = serving(callers.gateway("memory"), &models, "share").start();
    let plain = serving(callers.gateway("off"), &models, "share").start();
    let ask = |expected: &str, body: &str, control: &str| {
        let answer = gateway.ask(&post(BATCH, &key, body).header("Cache-Control", control));
        assert_eq!(told(&answer), expected, "{body}");
        assert_eq!(text(&answer), text(&plain.ask(&post(BATCH, &key, body))), "{body}");
    };
    let row = |top: u32| part(top).0;
    let batch = |tops: &[u32]| array(&tops.iter().map(|top| row(*top)).collect::<Vec<_>>());
    for top in [3, 5, 7, 9] {
        assert_eq!(told(&gateway.ask(&post(PREDICT, &key, row(top)))), MEMORY_MISS);
    }
    let ten = batch(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    ask("scoregate-memory; fwd=partial; detail=\"4 of 10 rows\"", &ten, "no-store");
    ask("scoregate-memory; fwd=partial; detail=\"4 of 10 rows\"; stored", &ten, "private");
    ask(MEMORY_HIT, &ten, "private");
    ask("scoregate-memory; fwd=request; stored", &ten, "no-cache");
    assert_eq!(told(&gateway.ask(&post(PREDICT, &key, row(8)))), MEMORY_HIT);
    // What is sent twice is computed and kept once; what was found and what is new keep their places.
    let entries = metric(&gateway, "scoregate_cache_entries");
    ask(MEMORY_MISS, &batch(&[20, 20, 21, 20, 21]), "private");
    assert_eq!(metric(&gateway, "scoregate_cache_entries"), entries + 2);
    ask(
        "scoregate-memory; fwd=partial; detail=\"3 of 7 rows\"; stored",
        &batch(&[30, 21, 31, 30, 5, 20, 31]),
        "private",
    );
    // Rows that are refused are not looked up, and are told of in their places.
    let mixed = format!("[{},{{\"top\":\"a\"}},{},7,{}]", row(5), row(40), row(20));
    ask("scoregate-memory; fwd=partial; detail=\"2 of 3 rows\"; stored", &mixed, "private");
    ask(MEMORY_HIT, &mixed, "private");
    // Each with its own score, as anybody can work it out.
    let answer = gateway.ask(&post(BATCH, &key, batch(&[31, 40, 2, 31, 50]))).json();
    let found: Vec<f32> = answer["predictions"].as_array().unwrap().iter().map(share_of).collect();
    assert_eq!(found, [31, 40, 2, 31, 50].map(|top| part(top).1));
}

fn share_of(answer: &Value) -> f32 {
    // As it is written, it has no more digits than a float32.
    answer["share_probability"].as_f64().unwrap_or_else(|| panic!("{answer}")) as f32
}

#[test]
fn a_batch_is_answered_in_every_format_as_without_a_cache() {
    let callers = Callers::new();
    let key = callers.alone("a");
    let (cached, plain) = (callers.gateway("memory").start(), callers.gateway("off").start());
    let rows = customers(0, 12);
    // A few of them are there already.
    cached.ask(&post(BATCH, &key, array(&rows[3..7])));
    let ndjson = format!("{}\nnothing\n{}\n", rows[..6].join("\n"), rows[6..].join("\n"));
    let names =
        ["tenure_days", "monthly_spend", "support_tickets_30d", "plan_tier", "country", "last_login_hours"];
    let record = |row: &String| {
        let row: Value = serde_json::from_str(row).unwrap();
        let cell = |name: &&str| row[*name].as_str().map_or_else(|| row[*name].to_string(), str::to_owned);
        names.iter().map(cell).collect::<Vec<_>>().join(",")
    };
    let mut records: Vec<String> = rows.iter().map(record).collect();
    records.insert(4, "a,b".into());
    let csv = format!("{}\n{}\n", names.join(","), records.join("\n"));
    for (kind, accept, body) in [
        ("application/x-ndjson", "application/x-ndjson", &ndjson),
        ("text/csv", "application/json", &csv),
        ("text/csv", "text/csv", &csv),
        ("application/json", "application/json", &array(&rows)),
    ] {
        // Partly found at first, then all of it.
        for round in 0..2 {
            let request = post(BATCH, &key, body).content_type(kind).header("Accept", accept);
            let (found, expected) = (cached.ask(&request), plain.ask(&request));
            let status = told(&found);
            assert!(status.contains("fwd=partial") || status == MEMORY_HIT, "{status}");
            assert!(round == 0 || status == MEMORY_HIT, "{status}");
            assert_eq!(text(&found), text(&expected), "{kind} {accept}");
        }
    }
}

#[test]
fn what_one_replica_computed_the_others_find() {
    let (redis, callers) = (Redis::start(), Callers::new());
    let (key, other) = (callers.of("a", "north"), callers.of("b", "south"));
    let start =
        |file: &[u8], ttl: &str| callers.replica(&redis.url(), file).set("SCOREGATE_CACHE_TTL", ttl).start();
    let (first, second) = (start(KEY, "60s"), start(KEY, "60s"));
    let plain = callers.gateway("off").start();
    let expected = text(&plain.ask(&post(PREDICT, &key, REFERENCE)));
    let ask = |gateway: &Gateway, key: &str, control: &str| {
        let answer = gateway.ask(&post(PREDICT, key, REFERENCE).header("Cache-Control", control));
        assert_eq!(text(&answer), expected);
        told(&answer)
    };
    assert_eq!(ask(&first, &key, "private"), BOTH_MISS);
    wait_for("the score", || (scores(&redis).len() == 1).then_some(()));
    let written = Instant::now();
    assert_eq!(ask(&second, &key, "no-store"), "scoregate-redis; hit; ttl=T, scoregate-memory; fwd=miss");
    assert_eq!(ask(&second, &key, "private"), REDIS_HIT);
    assert_eq!(ask(&second, &key, "private"), MEMORY_HIT);
    assert_eq!(
        ask(&second, &key, "no-cache"),
        "scoregate-redis; fwd=request, scoregate-memory; fwd=request; stored"
    );
    assert_eq!(ask(&second, &other, "private"), BOTH_MISS);
    wait_for("the other's score", || (scores(&redis).len() == 2).then_some(()));
    // With another key nothing is found, and nothing fails.
    let stranger = start(&KEY[1..], "60s");
    assert_eq!(ask(&stranger, &key, "private"), BOTH_MISS);
    assert_eq!(ask(&stranger, &key, "private"), MEMORY_HIT);
    wait_for("the stranger's score", || (scores(&redis).len() == 3).then_some(()));
    // Whoever keeps scores for a shorter time takes none that is older, whoever wrote it.
    let brief = start(KEY, "1s");
    wait_for("the score to be too old", || (!ask(&brief, &key, "no-store").contains("; hit")).then_some(()));
    assert!(written.elapsed() > Duration::from_secs(1));
    assert_eq!(ask(&first, &key, "private"), MEMORY_HIT);
    assert_eq!(ask(&brief, &key, "private"), BOTH_MISS);
    assert_eq!(ask(&brief, &key, "private"), MEMORY_HIT);
    assert_eq!([&first, &second, &stranger, &brief].map(|gateway| rows(gateway, "redis", "garbled")), [0; 4]);
    assert_eq!([&first, &second, &stranger, &brief].map(|gateway| rows(gateway, "redis", "failed")), [0; 4]);
}

#[test]
fn a_large_batch_asks_redis_a_few_times() {
    const ROWS: usize = 2_000;
    let (redis, callers) = (Redis::start(), Callers::new());
    let key = callers.alone("a");
    let models = share(0);
    let [first, second] =
        [0, 1].map(|_| serving(callers.replica(&redis.url(), KEY), &models, "share").start());
    let tops: Vec<u32> = (0..ROWS).map(|at| u32::try_from(at).unwrap() * 501).collect();
    let body = array(&tops.iter().map(|top| part(*top).0).collect::<Vec<_>>());
    let ask = |gateway: &Gateway, expected: &str| {
        let answer = gateway.ask(&post(BATCH, &key, &body));
        assert_eq!(told(&answer), expected);
        let found: Vec<f32> = answer.json()["predictions"].as_array().unwrap().iter().map(share_of).collect();
        // Of two thousand numbers nobody wants to see all.
        assert!(found.iter().zip(&tops).all(|(found, top)| *found == part(*top).1) && found.len() == ROWS);
    };
    ask(&first, BOTH_MISS);
    wait_for("the scores", || (rows(&first, "redis", "stored") == ROWS as u64).then_some(()));
    let asked = || -> u64 {
        let statistics = redis.ask(&["INFO", "commandstats"]);
        let line = statistics.lines().find_map(|line| line.strip_prefix("cmdstat_mget:calls="));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    let before = asked();
    ask(&second, REDIS_HIT);
    assert_eq!(asked() - before, 4, "512 rows at a time");
    ask(&second, MEMORY_HIT);
    assert_eq!(asked() - before, 4);
    assert_eq!([rows(&second, "redis", "hit"), rows(&second, "memory", "hit")], [ROWS as u64; 2]);
}

/// What somebody did to what lies in Redis.
#[derive(Debug)]
enum Harm {
    /// Nothing.
    None,
    /// This in its place.
    Value(Vec<u8>),
    /// A hash in its place.
    Hash,
}

#[test]
fn what_was_garbled_in_redis_is_computed_anew() {
    let (redis, callers) = (Redis::start(), Callers::new());
    let key = callers.alone("a");
    let models = share(0);
    let [first, second] =
        [0, 1].map(|_| serving(callers.replica(&redis.url(), KEY), &models, "share").start());
    let mut known = BTreeSet::new();
    let mut write = |top: u32| {
        assert_eq!(told(&first.ask(&post(PREDICT, &key, part(top).0))), BOTH_MISS);
        wait_for("the score", || scores(&redis).into_iter().find(|name| known.insert(name.clone())))
    };
    let length = redis.value(&write(1)).unwrap().len();
    let [one, two] = [2, 3].map(|top| redis.value(&write(top)).unwrap());
    let mut harms: Vec<(String, Harm)> = Vec::new();
    let mut top = 10;
    let mut harm = |make: &dyn Fn(Vec<u8>) -> Harm| {
        top += 1;
        let name = write(top);
        let value = redis.value(&name).unwrap();
        harms.push((name, make(value)));
    };
    harm(&|_| Harm::None);
    for at in 0..length {
        harm(&|mut value| {
            value[at] ^= 1 << (at % 8);
            Harm::Value(value)
        });
        harm(&|value| Harm::Value(value[..at].to_vec()));
    }
    harm(&|value| Harm::Value([&value[..], b"\0"].concat()));
    harm(&|value| Harm::Value([&value[..], &value[..]].concat()));
    harm(&|value| Harm::Value([&[0], &value[..]].concat()));
    harm(&|_| Harm::Value(one.clone()));
    harm(&|_| Harm::Value(two.clone()));
    harm(&|_| Harm::Value(vec![b'x'; 1 << 20]));
    harm(&|_| Harm::Value(0.5_f64.to_le_bytes().to_vec()));
    harm(&|_| Harm::Hash);
    harm(&|_| Harm::None);
    let mut garbled = 0;
    for (name, harm) in &harms {
        match harm {
            Harm::None => {}
            Harm::Value(value) => {
                redis.put(name, value);
                garbled += 1;
            }
            Harm::Hash => {
                redis.ask(&["DEL", name]);
                assert_eq!(redis.ask(&["HSET", name, "field", "value"]), "1");
            }
        }
    }
    for (at, (_, harm)) in harms.iter().enumerate() {
        let (row, score) = part(11 + u32::try_from(at).unwrap());
        let answer = second.ask(&post(PREDICT, &key, row));
        let expected = if matches!(harm, Harm::None) { REDIS_HIT } else { BOTH_MISS };
        assert_eq!((told(&answer).as_str(), share_of(&answer.json())), (expected, score), "{harm:?}");
    }
    assert_eq!(rows(&second, "redis", "garbled"), garbled);
    assert_eq!([rows(&second, "redis", "failed"), rows(&second, "redis", "hit")], [0, 2]);
    // What was computed anew has taken its place, whatever was there.
    wait_for("the scores", || (rows(&second, "redis", "stored") == garbled + 1).then_some(()));
    let third = serving(callers.replica(&redis.url(), KEY), &models, "share").start();
    for at in 0..harms.len() {
        let (row, score) = part(11 + u32::try_from(at).unwrap());
        let answer = third.ask(&post(PREDICT, &key, row));
        assert_eq!((told(&answer).as_str(), share_of(&answer.json())), (REDIS_HIT, score));
    }
}

/// The bytes of a number as they may lie anywhere; in four bytes only if it is to be `short`, since those of many numbers come
/// about by chance.
fn spellings(number: f64, short: bool) -> Vec<Vec<u8>> {
    let single = number as f32;
    let mut all = vec![number.to_string().into_bytes(), single.to_string().into_bytes()];
    let shorts = short.then(|| single.to_le_bytes().to_vec());
    for mut bytes in
        [number, f64::from(single)].map(|wide| wide.to_le_bytes().to_vec()).into_iter().chain(shorts)
    {
        all.push(bytes.clone());
        bytes.reverse();
        all.push(bytes);
    }
    all
}

#[test]
fn nothing_legible_lies_in_redis() {
    let (redis, callers) = (Redis::start(), Callers::new());
    let keys = [callers.of("canarycaller", "canarytenant"), callers.of("canaryother", "canaryothertenant")];
    let gateway = callers.replica(&redis.url(), KEY).start();
    let numbers = ["987654336", "87654321.5", "7654321", "654321"];
    let row = customer(&[
        ("tenure_days", numbers[0]),
        ("monthly_spend", numbers[1]),
        ("support_tickets_30d", numbers[2]),
        ("last_login_hours", numbers[3]),
        ("country", "\"CANARYLAND\""),
        ("plan_tier", "\"canaryplan\""),
        ("customer_id", "\"canarycustomer\""),
    ]);
    let mut needles: Vec<Vec<u8>> = vec![KEY.to_vec(), KEY[..16].to_vec(), KEY[32..].to_vec()];
    needles.extend(
        ["canary", "churn", "2026-05-17", "retain", "tenure", "north"].map(|text| text.as_bytes().to_vec()),
    );
    needles.extend([keys[0].as_bytes().to_vec(), callers.id("canarycaller").into_bytes()]);
    needles.extend(numbers.iter().flat_map(|number| spellings(number.parse().unwrap(), true)));
    let many: Vec<String> = customers(0, 40).into_iter().chain([row.clone()]).collect();
    let mut seen = 0;
    for key in &keys {
        let answers = [
            gateway.ask(&post(PREDICT, key, REFERENCE)).json(),
            gateway.ask(&post(PREDICT, key, &row)).json(),
            gateway.ask(&post(BATCH, key, array(&many))).json(),
        ];
        let batch = answers[2]["predictions"].as_array().unwrap().clone();
        for (at, answer) in answers[..2].iter().chain(&batch).enumerate() {
            let score = answer["churn_probability"].as_f64().unwrap_or_else(|| panic!("{answer}"));
            // Of 0 and 1 and their like there are bytes everywhere.
            if score > 1e-9 && score < 1.0 - 1e-9 {
                seen += 1;
                needles.extend(spellings(score, at == 0));
            }
        }
    }
    assert!(seen > 40, "{seen}");
    wait_for("the scores", || (scores(&redis).len() == 2 * 42).then_some(()));
    // Whatever else may lie there.
    let names = redis.keys();
    let values: Vec<Vec<u8>> = names.iter().filter_map(|name| redis.value(name)).collect();
    assert!(values.len() >= 2 * 42);
    assert_eq!(values.iter().collect::<BTreeSet<_>>().len(), values.len(), "equal scores look alike");
    for bytes in names.iter().map(String::as_bytes).chain(values.iter().map(Vec::as_slice)) {
        // A key's own beginning says that it is a score.
        let bytes = bytes.strip_prefix(b"scoregate:score:").unwrap_or(bytes);
        let lower = bytes.to_ascii_lowercase();
        for needle in needles.iter().filter(|needle| needle.len() >= 4) {
            let is_in = |text: &[u8]| text.windows(needle.len()).any(|window| window == needle);
            assert!(!is_in(bytes) && !is_in(&lower), "{:?}", String::from_utf8_lossy(needle));
        }
    }
    for name in &names {
        // What Redis is tried with lies there for a second, and may be gone (-2); a key for ever would be -1.
        let left: i64 = redis.ask(&["PTTL", name]).parse().unwrap();
        assert!(left == -2 || (0..=60_000).contains(&left), "{name}: {left}");
    }
    assert_eq!(redis.keys_for_ever(), "");
}

#[test]
fn a_quick_model_is_not_looked_for_in_redis() {
    const ROWS: usize = 960;
    let (redis, callers) = (Redis::start(), Callers::new());
    let key = callers.alone("a");
    // With all that a user has to say, and nothing else.
    let gateway = callers.replica(&redis.url(), KEY).set("SCOREGATE_CACHE", "auto").start();
    let metadata = gateway.ask(&Request::get("/v1/metadata").header("X-Api-Key", &key)).json();
    let version = metadata["model_version"].as_str().unwrap().to_owned();
    let mut client = gateway.connect();
    let mut asked = 0;
    for row in &customers(0, ROWS) {
        let answer = client.ask(&post(PREDICT, &key, row));
        asked += usize::from(told(&answer).contains("redis"));
    }
    // A few always are, so that the gateway notices when that begins to pay.
    assert!(asked <= 100, "{asked} of {ROWS} rows were looked for in Redis");
    wait_for("the scores", || (rows(&gateway, "redis", "stored") >= asked as u64).then_some(()));
    assert_eq!(scores(&redis).len(), asked);
    let used = |level: &str| {
        let labels = format!("model=\"churn\",version=\"{version}\",level=\"{level}\"");
        metric(&gateway, &format!("scoregate_cache_level_used{{{labels}}}"))
    };
    assert_eq!(used("redis"), 0);
    let cache = gateway.ask(&Request::get("/v1/metadata").header("X-Api-Key", &key)).json()["cache"].clone();
    assert_eq!((&cache["mode"], &cache["ttl_s"]), (&json!("auto"), &json!(60.0)));
    let redis_level = &cache["levels"]["redis"];
    assert_eq!(redis_level["used"], false, "{cache}");
    assert!(redis_level["saving_us"].as_f64().unwrap() < 0.0, "{cache}");
    assert!(redis_level["cost_us"].as_f64().unwrap() > cache["compute_us"].as_f64().unwrap(), "{cache}");
    assert_eq!(cache["levels"]["memory"]["used"], used("memory") == 1, "{cache}");
}

#[test]
fn a_slow_model_is_always_looked_for() {
    let (models, callers) = (share(SLOW), Callers::new());
    let key = callers.alone("a");
    // Nothing is set of the cache.
    let gateway = serving(callers.gateway("auto"), &models, "share").start();
    let mut client = gateway.connect();
    for expected in [MEMORY_MISS, MEMORY_HIT] {
        for top in 0..100 {
            let (row, score) = part(top);
            let answer = client.ask(&post(PREDICT, &key, row));
            assert_eq!((told(&answer).as_str(), share_of(&answer.json())), (expected, score));
        }
    }
    let cache = gateway.ask(&Request::get("/v1/metadata").header("X-Api-Key", &key)).json()["cache"].clone();
    let levels = cache["levels"].as_object().unwrap();
    assert!(
        levels.contains_key("memory") && levels.len() == 1,
        "without a Redis there is one level: {cache}"
    );
    assert_eq!((&cache["mode"], &levels["memory"]["used"]), (&json!("auto"), &json!(true)), "{cache}");
    assert!(cache["compute_us"].as_f64().unwrap() > 300.0, "{cache}");
    assert!(levels["memory"]["saving_us"].as_f64().unwrap() > 0.0, "{cache}");
    assert_eq!(
        metric(&gateway, "scoregate_cache_level_used{model=\"share\",version=\"1\",level=\"memory\"}"),
        1
    );
}

/// How many of these answers were computed, found, and computed for another.
fn tally(answers: &[Answer]) -> [usize; 3] {
    let mut tally = [0; 3];
    for answer in answers {
        let status = told(answer);
        let kind = if status.contains("collapsed") { 2 } else { usize::from(status.contains("; hit")) };
        tally[kind] += 1;
    }
    tally
}

/// Sends the same row on all connections at once, and leaves the first without waiting for its answer if it is to be `left`.
fn at_once(gateway: &Gateway, key: &str, top: u32, left: bool) -> Vec<Answer> {
    let (row, score) = part(top);
    let request = post(PREDICT, key, row).bytes();
    let mut clients: Vec<Client> = (0..8).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(&request);
    }
    if left {
        drop(clients.remove(0));
    }
    let answers: Vec<Answer> = clients.iter_mut().map(|client| client.answer().unwrap()).collect();
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(share_of(&answer.json()), score);
    }
    answers
}

#[test]
fn concurrent_requests_for_a_row_compute_it_once() {
    let (redis, models, callers) = (Redis::start(), share(SLOW), Callers::new());
    let key = callers.alone("a");
    for settings in [
        callers.gateway("memory"),
        // Where runs of one row share a run with others.
        callers.gateway("memory").set("SCOREGATE_INLINE_BUDGET", "1s"),
        callers.replica(&redis.url(), KEY),
    ] {
        let gateway = serving(settings, &models, "share").start();
        let mut all = [0; 3];
        for top in 0..20 {
            let found = tally(&at_once(&gateway, &key, top, false));
            assert_eq!(found[0], 1, "{found:?} computed, found, shared");
            all = [0, 1, 2].map(|kind| all[kind] + found[kind]);
        }
        println!("{all:?} computed, found, shared");
        assert!(all[2] >= 20, "{all:?}");
        // Whoever wants it computed anew shares with nobody.
        let request = post(PREDICT, &key, part(1).0).header("Cache-Control", "no-cache").bytes();
        let mut clients: Vec<Client> = (0..4).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.send(&request);
        }
        for client in &mut clients {
            let status = told(&client.answer().unwrap());
            assert!(status.ends_with("scoregate-memory; fwd=request; stored"), "{status}");
        }
    }
}

#[test]
fn when_whoever_computes_a_row_has_left_another_does() {
    let (redis, models, callers) = (Redis::start(), share(SLOW), Callers::new());
    let key = callers.alone("a");
    for settings in [callers.gateway("memory"), callers.replica(&redis.url(), KEY)] {
        let gateway = serving(settings, &models, "share").start();
        let mut taken_over = 0;
        let mut top = 0;
        wait_for("ten rows that were given up and computed by another", || {
            top += 1;
            let begin = Instant::now();
            let [computed, _, shared] = tally(&at_once(&gateway, &key, top, true));
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
            // None, where the first was answered before it was seen to have left.
            assert!(computed <= 1, "{computed} computed");
            taken_over += u32::from(computed == 1 && shared > 0);
            (taken_over == 10).then_some(())
        });
        println!("{taken_over} of {top} rows were taken over");
    }
}

/// Promotes a version of the model `share`.
fn promote(models: &TempDir, version: &str) {
    Repository::new(models.path()).write_rollout("share", &Rollout::of(version)).unwrap();
}

#[test]
fn a_new_version_never_answers_with_an_old_ones_score() {
    const SWAPS: u32 = 12;
    let (redis, models, callers) = (Redis::start(), share(0), Callers::new());
    publish_share_model(models.path(), "2", true, 0);
    promote(&models, "1");
    let key = callers.alone("a");
    let start = || {
        let settings = serving(callers.replica(&redis.url(), KEY), &models, "share");
        settings.set("SCOREGATE_POLL_INTERVAL", "20ms").start()
    };
    let gateways = [start(), start()];
    let (stop, hits) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let check = |version: &str, top: u32, answer: &Value| {
        let share = part(top).1;
        let expected = match version {
            "1" => share,
            "2" => 1.0 - share,
            other => panic!("{other}"),
        };
        assert_eq!(share_of(answer), expected, "version {version}, row {top}");
    };
    std::thread::scope(|scope| {
        let over = Stop(&stop);
        for (at, gateway) in gateways.iter().cycle().take(4).enumerate() {
            let (stop, hits, key, check) = (&stop, &hits, &key, &check);
            scope.spawn(move || {
                let mut client = gateway.connect();
                let tops: [u32; 8] = std::array::from_fn(|top| u32::try_from(top).unwrap() + 1);
                let batch = array(&tops.map(|top| part(top).0));
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let top = tops[(round + at) % 8];
                    let answer = client.ask(&post(PREDICT, key, part(top).0));
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let found = answer.json();
                    let version = found["model_version"].as_str().unwrap();
                    check(version, top, &found);
                    if told(&answer).contains("; hit") {
                        hits[usize::from(version == "2")].fetch_add(1, Ordering::Relaxed);
                    }
                    if round % 8 == at {
                        let answer = client.ask(&post(BATCH, key, &batch)).json();
                        let version = answer["model_version"].as_str().unwrap();
                        for (top, row) in tops.iter().zip(answer["predictions"].as_array().unwrap()) {
                            check(version, *top, row);
                        }
                    }
                }
            });
        }
        for swap in 1..=SWAPS {
            let version = if swap % 2 == 0 { "1" } else { "2" };
            promote(&models, version);
            for gateway in &gateways {
                wait_for(version, || {
                    let answer = gateway.ask(&post(PREDICT, &key, part(1).0)).json();
                    (answer["model_version"] == version).then_some(())
                });
            }
            pause(Duration::from_millis(100));
        }
        drop(over);
    });
    let hits = hits.map(AtomicU64::into_inner);
    println!("{hits:?} hits of the two versions");
    assert!(hits.iter().all(|hits| *hits > 50), "{hits:?}");
    assert_eq!(scores(&redis).len(), 2 * 8, "a row has a score of each version");
}

#[test]
fn losing_redis_costs_no_score() {
    let (mut redis, models, callers) = (Redis::start(), share(0), Callers::new());
    let key = callers.alone("a");
    let gateway = serving(callers.replica(&redis.url(), KEY), &models, "share")
        // As it comes: a request waits for Redis no longer than this.
        .set("SCOREGATE_REDIS_TIMEOUT", "20ms")
        .start();
    let (stop, next) = (AtomicBool::new(false), AtomicU32::new(1));
    let losses: BTreeMap<&str, u64> = std::thread::scope(|scope| {
        let _over = Stop(&stop);
        for batches in [false, false, true] {
            let (gateway, stop, next, key) = (&gateway, &stop, &next, &key);
            scope.spawn(move || {
                let mut client = gateway.connect();
                while !stop.load(Ordering::Relaxed) {
                    // Rows that nobody has sent before, and so are looked for in Redis, and some that were.
                    let top = next.fetch_add(1, Ordering::Relaxed) % 1_000_000;
                    let tops = [top, top / 2, top / 3];
                    if batches {
                        let body = array(&tops.map(|top| part(top).0));
                        let answer = client.ask(&post(BATCH, key, body));
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        let answer = answer.json();
                        let found = answer["predictions"].as_array().unwrap().iter().map(share_of);
                        assert!(found.eq(tops.map(|top| part(top).1)), "{answer}");
                    } else {
                        let begin = Instant::now();
                        let answer = client.ask(&post(PREDICT, key, part(top).0));
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        assert_eq!(share_of(&answer.json()), part(top).1);
                        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
                    }
                }
            });
        }
        let stored = || rows(&gateway, "redis", "stored");
        let dropped = || rows(&gateway, "redis", "dropped");
        let is_used = || {
            let before = stored();
            wait_for("scores in Redis", || (stored() > before + 20).then_some(()));
        };
        let is_missed = || {
            let before = dropped();
            wait_for("scores that Redis does not take", || (dropped() > before + 100).then_some(()));
            // And what is answered says so.
            let top = next.fetch_add(1, Ordering::Relaxed);
            let status = told(&gateway.ask(&post(PREDICT, &key, part(top).0)));
            let expected =
                "scoregate-redis; fwd=bypass; detail=out-of-reach, scoregate-memory; fwd=miss; stored";
            assert_eq!(status, expected);
            dropped() - before
        };
        is_used();
        redis.signal(Signal::SIGSTOP);
        let stopped = is_missed();
        redis.signal(Signal::SIGCONT);
        is_used();
        redis.kill();
        let killed = is_missed();
        redis.start_again();
        is_used();
        BTreeMap::from([("stopped", stopped), ("killed", killed)])
    });
    println!("{losses:?} scores that were not written");
    assert_eq!(redis.keys_for_ever(), "");
}

#[test]
fn scores_in_redis_need_a_redis_and_a_key() {
    let redis = Redis::start();
    let start = |settings: Settings| {
        let _ = settings.key();
        settings.spawn().exit()
    };
    for (name, value) in
        [("SCOREGATE_REDIS_URL", redis.url()), ("SCOREGATE_CACHE_KEY_FILE", "cache.key".to_owned())]
    {
        let exit = start(Settings::new().set("SCOREGATE_CACHE", "redis").set(name, &value));
        let missing = if name.ends_with("URL") { "SCOREGATE_CACHE_KEY_FILE" } else { "SCOREGATE_REDIS_URL" };
        assert!(exit.code != Some(0) && exit.log.contains(missing), "{exit:?}");
    }
    let callers = Callers::new();
    callers.alone("a");
    let exit = start(callers.replica(&redis.url(), &KEY[..31]));
    assert!(exit.code != Some(0) && exit.log.contains("31 bytes"), "{exit:?}");
}
