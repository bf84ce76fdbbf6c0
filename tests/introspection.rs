//! Tokens made up in great numbers while their issuer is asked about those that are no JWT: it is not flooded, and a token that it
//! knows scores on.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::authority::{Authority, Reply};
use crate::support::tokens::AUDIENCE;
use crate::support::world::{OPAQUE, active, bearer, introspection, opaque};
use crate::support::{Settings, Stop, pause};

/// More connections than there are places for questions.
const FORGERS: usize = 80;
/// How long an answer of the issuer takes, and how long the gateway believes one.
const LATENCY: Duration = Duration::from_millis(150);
const CACHE: Duration = Duration::from_secs(2);
/// How long the flood goes on: several times as long as an answer is believed.
const FLOOD: Duration = Duration::from_secs(7);
/// The most questions about unknown tokens within a second.
const QUESTIONS: usize = 100;

/// Slow answers, and how many were asked for about tokens that are `opaque` and about others.
fn slow(known: &Arc<AtomicUsize>, made_up: &Arc<AtomicUsize>) -> Reply {
    let (known, made_up) = (Arc::clone(known), Arc::clone(made_up));
    Reply::Made(Arc::new(move |question| {
        let is_known = question.parameter("token").unwrap().starts_with("opaque~");
        (if is_known { &known } else { &made_up }).fetch_add(1, Ordering::Relaxed);
        pause(LATENCY);
        introspection()
    }))
}

#[test]
fn a_flood_of_made_up_tokens_reaches_neither_the_issuer_nor_a_token_that_holds() {
    let counts: [Arc<AtomicUsize>; 2] = Default::default();
    let [known, made_up] = &counts;
    let authority = Authority::start();
    authority.set("/introspect", slow(known, made_up));
    let settings = Settings::new();
    fs::write(settings.directory().join("client-secret.txt"), "sesame").unwrap();
    let file = format!(
        "[[auth.issuer]]\nissuer = \"{OPAQUE}\"\naudience = \"{AUDIENCE}\"\nintrospection = \"{}/introspect\"\n\
         introspection_client_id = \"gateway\"\nintrospection_client_secret_file = \"client-secret.txt\"\n\
         introspection_cache = \"{}s\"\n",
        authority.url(),
        CACHE.as_secs(),
    );
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let mut gateway = settings.start();
    let token = opaque(&active());
    assert_eq!(gateway.ask(&bearer(&token)).status, 200);

    let (start, has_ended) = (Instant::now(), AtomicBool::new(false));
    let [refused, put_off] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let served = std::thread::scope(|scope| {
        let _stop = Stop(&has_ended);
        for forger in 0..FORGERS {
            let (gateway, has_ended, refused, put_off) = (&gateway, &has_ended, &refused, &put_off);
            scope.spawn(move || {
                let mut client = gateway.connect();
                let mut number = 0;
                while !has_ended.load(Ordering::Relaxed) {
                    number += 1;
                    let answer = client.ask(&bearer(&format!("made-up-{forger}-{number}")));
                    match (answer.status, answer.code().as_str()) {
                        (401, "invalid_token") => refused.fetch_add(1, Ordering::Relaxed),
                        (503, "credentials_unavailable") => put_off.fetch_add(1, Ordering::Relaxed),
                        _ => panic!("{} {}", answer.status, answer.text()),
                    };
                    pause(Duration::from_millis(50));
                }
            });
        }
        let mut client = gateway.connect();
        let mut served = 0;
        while start.elapsed() < FLOOD {
            let answer = client.ask(&bearer(&token));
            assert_eq!(answer.status, 200, "after {:?}: {}", start.elapsed(), answer.text());
            served += 1;
            pause(Duration::from_millis(5));
        }
        served
    });
    let [known, asked] = counts.map(|count| count.load(Ordering::Relaxed));
    let (refused, put_off) = (refused.into_inner(), put_off.into_inner());
    println!(
        "{} made-up tokens in {:?}: {asked} questions, {put_off} put off; {served} requests with a token that holds, \
         {known} questions about it",
        refused + put_off,
        start.elapsed()
    );
    // A second may have begun before the flood, and another one just before its end.
    let allowed = QUESTIONS * (2 + start.elapsed().as_secs() as usize);
    assert!((1..=allowed).contains(&asked), "{asked} questions, expected at most {allowed}");
    assert!(put_off > 0, "the flood was none");
    // Each answer is renewed after three quarters of its time at the earliest.
    let renewals = 1 + (start.elapsed().as_secs_f64() / CACHE.mul_f64(0.75).as_secs_f64()) as usize;
    assert!((2..=1 + renewals).contains(&known), "{known} questions about the token that holds");
    assert!(gateway.is_running());
}
