//! Forged tokens in great numbers: none is accepted, nothing breaks, and nobody is asked for keys more often than once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::support::authority::Reply;
use crate::support::forged::forged;
use crate::support::tokens::{Key, Mint, decode, encode, key_set, segments, twin};
use crate::support::world::{PLAIN, World, bearer};
use crate::support::{Settings, Stop, is_full};
use crate::telemetry::{finished, outbound, strace, trace_file};

const SEED: u64 = 20_261_122;
/// Connections that forge at the same time.
const FORGERS: usize = 4;
/// By how much all of it may make the gateway grow.
const GROWTH: u64 = 16 * 1024 * 1024;
/// The least time between two fetches because of unknown keys, as it is by default.
const COOL_DOWN: Duration = Duration::from_secs(30);

fn count() -> usize {
    if is_full() { 100_000 } else { 20_000 }
}

#[test]
fn no_forged_token_is_accepted() {
    // Without an authority that is asked about tokens: then any fetch is one of keys.
    let mut world = World::with(false);
    // Made before anything is counted. What holds for nobody but a proven issuer is in the table as well.
    let table: Vec<String> = forged(&world).into_iter().map(|forged| forged.token).collect();
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let start = Instant::now();
    let fetched = fetches(&world);
    // Everything has been allocated that ever will be.
    forge(&world, &table, SEED, count() / 20, &counts[0]);
    let before = world.gateway.resident();
    let has_ended = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let valid = scope.spawn(|| serve_valid(&world, &has_ended).0);
        let _stop = Stop(&has_ended);
        let forgers: Vec<_> = (0..FORGERS)
            .map(|number| {
                let (world, table, counted) = (&world, &table, &counts[1]);
                scope.spawn(move || forge(world, table, SEED + 1 + number as u64, count() / FORGERS, counted))
            })
            .collect();
        forgers.into_iter().for_each(|forger| forger.join().unwrap());
        has_ended.store(true, Ordering::Relaxed);
        valid.join().unwrap()
    });
    let [warm, counted] = counts.map(AtomicUsize::into_inner);
    let growth = world.gateway.resident().saturating_sub(before);
    println!(
        "{} forged tokens refused in {:?}, {served} valid ones accepted meanwhile, {} KiB of growth",
        warm + counted,
        start.elapsed(),
        growth / 1024
    );
    assert_eq!(counted, count());
    assert!(growth <= GROWTH, "it grew by {growth} bytes");
    assert_eq!(world.trap.connections(), 0, "somebody followed a URL of a token");
    // One per cool-down, for each of the three issuers that have keys.
    let allowed = 3 * (1 + (start.elapsed().as_secs() / COOL_DOWN.as_secs()) as usize);
    let fetched = fetches(&world) - fetched;
    assert!(
        fetched <= allowed,
        "{fetched} fetches of keys in {:?}, expected at most {allowed}",
        start.elapsed()
    );
    assert!(world.gateway.is_running());
    let log = world.gateway.log_so_far();
    assert!(!log.iter().any(|line| line.contains("panicked")), "{}", log.join("\n"));
}

#[test]
fn forged_tokens_make_no_connection_but_those_for_keys() {
    let trace = trace_file("forgery");
    let wrapper = strace(&trace);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let settings =
        Settings::new().set("PATH", "/usr/bin:/bin").set("SCOREGATE_DRAIN_DELAY", "0s").under(&wrapper);
    let world = World::over(settings, false);
    let table: Vec<String> = forged(&world).into_iter().map(|forged| forged.token).collect();
    let mut client = world.gateway.connect();
    for token in &table {
        assert_eq!(client.ask(&bearer(token)).status, 401, "{token}");
    }
    drop(client);
    forge(&world, &table, SEED, 500, &AtomicUsize::new(0));
    world.gateway.signal(Signal::SIGTERM);
    let World { authority, gateway, .. } = world;
    assert_eq!(gateway.exit().code, Some(0));
    let trace = finished(&trace);
    let keys = format!("htons({}), sin_addr=inet_addr(\"127.0.0.1\")", authority.addr.port());
    let (of_keys, others): (Vec<&str>, Vec<&str>) =
        outbound(&trace).into_iter().partition(|line| line.contains(&keys));
    assert_eq!(others, Vec::<&str>::new());
    // The first fetch of each of three key sets, and one more because of unknown keys.
    let connections = of_keys.iter().filter(|line| line.contains("connect(")).count();
    assert!((3..=6).contains(&connections), "{connections} connections for keys");
}

/// How often anything was asked of the authority.
fn fetches(world: &World) -> usize {
    world.authority.questions().len()
}

/// Sends `count` forged tokens over one connection: those of the table in turn, and mutations of valid ones.
fn forge(world: &World, table: &[String], seed: u64, count: usize, counted: &AtomicUsize) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = world.gateway.connect();
    let valid = [world.mint().token(), world.other().token(), Mint::new(&world.rsa, PLAIN).token()];
    let twins = valid.clone().map(|token| {
        let [header, payload, signature] = segments(&token);
        let signature = decode(signature);
        // Only an ECDSA signature on P-256 has one.
        if signature.len() == 64 { format!("{header}.{payload}.{}", encode(twin(&signature))) } else { token }
    });
    let mut sent = 0;
    while sent < count {
        let token = match random.random_range(0..8) {
            0 | 1 => table.choose(&mut random).unwrap().clone(),
            2 => by_attacker(world, &mut random),
            _ => mutated(&valid, &mut random),
        };
        // The other signature that holds for the same text is no forgery.
        if valid.contains(&token) || twins.contains(&token) || token.is_empty() {
            continue;
        }
        let answer = client.ask(&bearer(&token));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "invalid_token"),
            "{token}\n{}",
            answer.text()
        );
        sent += 1;
        counted.fetch_add(1, Ordering::Relaxed);
    }
}

/// A token that nobody made, out of those that hold.
fn mutated(valid: &[String], random: &mut StdRng) -> String {
    // All that a token may be in a header without being taken for several, or for none.
    const LETTERS: &[u8] =
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/~!\"#$%&'()*:;<>?@[]^`{|}";
    let token = valid.choose(random).unwrap();
    let mut letters = token.clone().into_bytes();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..letters.len());
        let letter = *LETTERS.choose(random).unwrap();
        match random.random_range(0..8) {
            0 => letters[at] = letter,
            1 => letters.insert(at, letter),
            2 => drop(letters.remove(at)),
            3 => letters.truncate(at + 1),
            4 => {
                let piece: Vec<u8> = letters[at..].iter().take(random.random_range(1..40)).copied().collect();
                letters.splice(at..at, piece);
            }
            5 => letters[at..].reverse(),
            // A bit of what the segment stands for, which stays base64.
            6 => return flipped(token, random),
            // The segments of several.
            _ => {
                let of = |segment: usize, random: &mut StdRng| {
                    segments(valid.choose(random).unwrap())[segment].to_owned()
                };
                return [0, 1, 2].map(|segment| of(segment, random)).join(".");
            }
        }
    }
    String::from_utf8(letters).unwrap()
}

fn flipped(token: &str, random: &mut StdRng) -> String {
    let mut segments = segments(token).map(decode);
    let segment = random.random_range(0..3);
    let at = random.random_range(0..segments[segment].len());
    segments[segment][at] ^= 1 << random.random_range(0..8);
    segments.map(encode).join(".")
}

/// A token that says of itself what it likes, signed by somebody else.
fn by_attacker(world: &World, random: &mut StdRng) -> String {
    let mut mint = Mint::new(&world.attacker, PLAIN);
    let kid = ["p256", "rsa", "ed25519", "", "octets", "exponent-one"].choose(random).unwrap();
    mint = mint.header("kid", json!(kid));
    if random.random() {
        let alg = ["ES256", "RS256", "HS256", "EdDSA", "none", "PS256", "ES384"].choose(random).unwrap();
        mint = mint.alg(alg);
    }
    if random.random() {
        let member = ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "cty"].choose(random).unwrap();
        mint = mint.header(member, json!(format!("{}/{}", world.trap.url(), random.random::<u32>())));
    }
    if random.random() {
        let claim = ["iss", "aud", "sub", "exp", "nbf", "iat", "cnf", "scope", "jti"].choose(random).unwrap();
        mint = mint.claim(claim, json!(random.random::<u64>()));
    }
    mint.with_signature(|message| match random.random_range(0..4) {
        0 => (0..random.random_range(0..300)).map(|_| random.random()).collect(),
        1 => Key::secret("", &world.p256.public_der()[0]).sign("HS256", message),
        _ => world.attacker.sign("ES256", message),
    })
}

/// Asks with tokens that hold until `has_ended`: how many were answered, and how long the slowest took.
fn serve_valid(world: &World, has_ended: &AtomicBool) -> (usize, Duration) {
    let mut client = world.gateway.connect();
    let mut token = world.mint().token();
    let (mut served, mut slowest) = (0, Duration::ZERO);
    while !has_ended.load(Ordering::Relaxed) {
        let start = Instant::now();
        let answer = client.ask(&bearer(&token));
        slowest = slowest.max(start.elapsed());
        assert_eq!(answer.status, 200, "{}", answer.text());
        served += 1;
        // Now and then one that is not remembered.
        if served % 32 == 0 {
            token = world.mint().token();
        }
    }
    (served, slowest)
}

#[test]
fn a_flood_of_unknown_keys_makes_one_fetch() {
    const FLOOD: usize = 1_000;
    // So slow that whoever waits for it would be seen.
    const SLOW: Duration = Duration::from_secs(2);
    let world = World::with(false);
    let keys = key_set([world.p256.jwk()]);
    world.authority.set("/plain", Reply::Late(keys, SLOW));
    let fetched = fetches(&world);
    let start = Instant::now();
    let has_ended = AtomicBool::new(false);
    let (served, slowest) = std::thread::scope(|scope| {
        let valid = scope.spawn(|| serve_valid(&world, &has_ended));
        let _stop = Stop(&has_ended);
        let flood: Vec<_> = (0..FORGERS)
            .map(|forger| {
                let world = &world;
                scope.spawn(move || {
                    let mut client = world.gateway.connect();
                    for number in 0..FLOOD / FORGERS {
                        let kid = json!(format!("unknown-{forger}-{number}"));
                        let token = Mint::new(&world.attacker, PLAIN).header("kid", kid).token();
                        assert_eq!(client.ask(&bearer(&token)).status, 401);
                    }
                })
            })
            .collect();
        flood.into_iter().for_each(|flood| flood.join().unwrap());
        has_ended.store(true, Ordering::Relaxed);
        valid.join().unwrap()
    });
    let fetched = fetches(&world) - fetched;
    println!(
        "{FLOOD} unknown keys: {fetched} fetch in {:?}; {served} valid tokens, the slowest {slowest:?}",
        start.elapsed()
    );
    assert!(start.elapsed() < COOL_DOWN, "the flood took {:?}", start.elapsed());
    assert_eq!(fetched, 1, "fetches of keys");
    assert!(slowest < SLOW, "a valid token waited {slowest:?}");
    assert!(served > 0);
}
