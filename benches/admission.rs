//! What it costs to let a request in: an API key, a token that is remembered, and new tokens beside their signature alone; and
//! what it costs to count its row of a quota, and how exact that is where replicas share it.
//!
//! What is timed happens on one thread, in CPU time, through the functions that the gateway's handlers call. Prints one line of
//! JSON with microseconds and rows. A new token and its bare signature check are timed in turn, and the medians are compared.

#![allow(clippy::print_stdout, reason = "printing the measurement is what this program is for")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use axum::http::Request;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use nix::sys::time::TimeValLike;
use nix::time::ClockId;
use scoregate::app::App;
use scoregate::audit;
use scoregate::auth::file::NewEntry;
use scoregate::auth::keys::KeysFile;
use scoregate::auth::{Caller, Scope};
use scoregate::config::{Settings, Sources};
use scoregate::http::admission::verify;
use scoregate::limiter::Loss;
use serde_json::json;
use tokio::task::JoinSet;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://scores.example";
/// Requests with a credential that is known, per repetition.
const KNOWN: usize = 100_000;
/// New tokens per algorithm.
const NEW: usize = 4_000;
/// Callers whose rows are counted in turn.
const CALLERS: usize = 1_000;
/// The model whose rows are counted apart.
const MODEL: &str = "churn";
/// More rows than are sent, as quotas that hold for all models and for one.
const PLANS: &str =
    "[plan.bench]\nquota = \"1000000000/hour\"\n[plan.bench.models]\nchurn = \"1000000000/min\"\n";
/// Quotas of the usual size, of which leases are taken from Redis.
const LEASED: &str = "[plan.bench]\nquota = \"60000/min\"\n[plan.bench.models]\nchurn = \"60000/min\"\n";
/// Callers whose leased rows are counted in turn, and the rows of each: nearly its whole quota.
const LEASING: (usize, usize) = (20, 50_000);
/// A quota of which two replicas at once let through what they can, and clients of each.
const SHARED: &str = "[plan.bench]\nquota = \"1000/min\"\n";
const REPLICAS: usize = 2;
const CLIENTS: usize = 32;
/// Longer than all leases of that quota take to come back, 2 % of a minute each.
const UNTIL_WHOLE: Duration = Duration::from_secs(3);
/// Each figure of known credentials is the best of so many, because whatever else the machine does only ever adds.
const REPEATS: usize = 5;

/// What makes the signature of a message.
type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// Whoever signs tokens with one key.
struct Signer {
    algorithm: Algorithm,
    key: DecodingKey,
    jwk: serde_json::Value,
    sign: Sign,
}

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let new = NewEntry {
        name: "bench".into(),
        scopes: vec![Scope::ScorePredict],
        models: vec!["*".into()],
        expires: None,
        tenant: None,
        plan: Some("bench".into()),
    };
    let log = audit::Log::new(&path("state"));
    let (_, key) = KeysFile::new(path("keys.json"), log).create(new, SystemTime::now())?;
    let signers = [ecdsa()?, rsa()?];
    let jwks = json!({ "keys": signers.iter().map(|signer| &signer.jwk).collect::<Vec<_>>() });
    fs::write(path("jwks.json"), jwks.to_string())?;
    let text = |name: &str| path(name).to_string_lossy().into_owned();
    let environment = [
        ("SCOREGATE_API_KEYS_FILE", text("keys.json")),
        ("SCOREGATE_STATE_DIR", text("state")),
        ("SCOREGATE_JWT_ISSUER", ISSUER.into()),
        ("SCOREGATE_JWT_AUDIENCE", AUDIENCE.into()),
        ("SCOREGATE_JWT_JWKS", text("jwks.json")),
    ];
    let environment: BTreeMap<String, String> =
        environment.into_iter().map(|(name, value)| (name.into(), value)).collect();
    let settings = |plans: &str, more: &[(&str, &str)]| {
        let mut environment = environment.clone();
        environment.extend(more.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        Settings::load(Sources { environment, file: Some(plans.into()), ..Sources::default() })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(async {
        let app = App::new(settings(PLANS, &[])?)?;
        let mut figures = serde_json::Map::new();
        figures.insert("key_us".into(), known(&app, &key).await?.into());
        for signer in &signers {
            let name = format!("{:?}", signer.algorithm).to_lowercase();
            let token = token(signer, 0);
            verified(&app, &token).await?;
            figures.insert(format!("remembered_{name}_us"), known(&app, &token).await?.into());
            let (new, signature) = new_tokens(&app, signer).await?;
            figures.insert(format!("new_{name}_us"), new.into());
            figures.insert(format!("signature_{name}_us"), signature.into());
        }
        figures.insert("quota_us".into(), counted(&app, &signers[0]).await?.into());
        let redis = Redis::start(directory.path())?;
        let url = redis.url();
        let app = App::new(settings(LEASED, &[("SCOREGATE_REDIS_URL", &url)])?)?;
        figures.insert("leased_us".into(), leased(&app, &signers[0]).await?.into());
        for (lease, name) in [("2%", "rows_with_leases"), ("off", "rows_without_leases")] {
            let more = [
                ("SCOREGATE_REDIS_URL", url.as_str()),
                ("SCOREGATE_QUOTA_LEASE", lease),
                // What a machine that is busy adds to the error is another question.
                ("SCOREGATE_REDIS_TIMEOUT", "5s"),
            ];
            let replicas = (0..REPLICAS).map(|_| settings(SHARED, &more)).collect::<Result<Vec<_>, _>>()?;
            let token = token_of(&signers[0], &format!("sharing-{lease}"), 0);
            figures.insert(name.into(), let_through(replicas, &token)?.into());
        }
        anyhow::Ok(figures)
    })?;
    println!("{}", serde_json::Value::Object(figures));
    Ok(())
}

/// Admission of a credential that is known, in microseconds.
async fn known(app: &App, credential: &str) -> Result<f64> {
    let request = request(credential);
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = cpu_ns()?;
        for _ in 0..KNOWN {
            let verified = verify(app, &request, Scope::ScorePredict, Some(MODEL)).await;
            std::hint::black_box(verified.map_err(|error| anyhow!("{error}"))?);
        }
        best = best.min((cpu_ns()? - start) as f64 / KNOWN as f64 / 1e3);
    }
    Ok(best)
}

async fn verified(app: &App, credential: &str) -> Result<Caller> {
    let verified = verify(app, &request(credential), Scope::ScorePredict, Some(MODEL)).await;
    Ok(verified.map_err(|error| anyhow!("{error}"))?.caller().clone())
}

/// One row of a quota for all models and of one for this model, in microseconds, with what the clock costs.
async fn counted(app: &App, signer: &Signer) -> Result<f64> {
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        callers.push(verified(app, &token_of(signer, &format!("client-{number:08x}"), number)).await?);
    }
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = cpu_ns()?;
        for caller in callers.iter().cycle().take(KNOWN) {
            let standing = app.limiter.admit(caller, Some(MODEL), Loss::CountHere, Instant::now()).await;
            std::hint::black_box(standing?);
        }
        best = best.min((cpu_ns()? - start) as f64 / KNOWN as f64 / 1e3);
    }
    Ok(best)
}

/// The same with leases from Redis, in microseconds that pass: with the waits for Redis, which is asked for every 1,200th row.
async fn leased(app: &App, signer: &Signer) -> Result<f64> {
    // Until it is connected, rows are counted here.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (callers, rows) = LEASING;
    let mut best = f64::INFINITY;
    for repeat in 0..REPEATS {
        let mut leasing = Vec::new();
        for number in 0..callers {
            let name = format!("leasing-{repeat}-{number:08x}");
            leasing.push(verified(app, &token_of(signer, &name, number)).await?);
        }
        let (start, asked) = (Instant::now(), app.metrics.redis().answered.get());
        for caller in leasing.iter().cycle().take(callers * rows) {
            let standing = app.limiter.admit(caller, Some(MODEL), Loss::CountHere, Instant::now()).await;
            std::hint::black_box(standing?);
        }
        let (took, asked) = (start.elapsed(), app.metrics.redis().answered.get() - asked);
        let expected = (callers * rows / 1_200) as u64;
        ensure!(asked >= expected, "Redis was asked {asked} times instead of {expected}");
        best = best.min(took.as_secs_f64() * 1e6 / (callers * rows) as f64);
    }
    Ok(best)
}

/// The rows of one quota that replicas let through at once, each of which had let a row through before, holds what remains of its
/// lease if it has one, and sees the quota whole again: the worst that can be. Without what comes back meanwhile.
fn let_through(replicas: Vec<Settings>, token: &str) -> Result<u64> {
    let together = Barrier::new(replicas.len());
    let (mut rows, mut took) = (0, Duration::ZERO);
    std::thread::scope(|scope| {
        let start = |settings| {
            scope.spawn(|| -> Result<(u64, Duration)> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let app = runtime.block_on(async { App::new(settings) })?;
                runtime.block_on(replica(Arc::new(app), token, &together))
            })
        };
        let running: Vec<_> = replicas.into_iter().map(start).collect();
        for replica in running {
            let (admitted, during) = replica.join().map_err(|_| anyhow!("a replica panicked"))??;
            (rows, took) = (rows + admitted, took.max(during));
        }
        anyhow::Ok(())
    })?;
    let came_back = (took.as_secs_f64() * 1_000.0 / 60.0) as u64;
    Ok(rows - came_back)
}

/// What the clients of one replica are let through with until they are refused, and how long that takes.
async fn replica(app: Arc<App>, token: &str, together: &Barrier) -> Result<(u64, Duration)> {
    let caller = verified(&app, token).await?;
    let begun = Instant::now();
    while app.metrics.redis().answered.get() == 0 {
        ensure!(begun.elapsed() < Duration::from_secs(10), "Redis does not answer");
        let _ = app.limiter.admit(&caller, Some(MODEL), Loss::CountHere, Instant::now()).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(UNTIL_WHOLE).await;
    together.wait();
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (app, caller) = (Arc::clone(&app), caller.clone());
        clients.spawn(async move {
            let mut admitted = 0;
            while app.limiter.admit(&caller, Some(MODEL), Loss::CountHere, Instant::now()).await.is_ok() {
                admitted += 1;
            }
            admitted
        });
    }
    Ok((clients.join_all().await.into_iter().sum(), begun.elapsed()))
}

/// A Redis server; killed when dropped.
struct Redis(Child, u16);

impl Redis {
    fn start(directory: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()]);
        command.current_dir(directory).stdout(Stdio::null());
        Ok(Self(command.spawn().context("redis-server (Debian's package of that name) cannot be run")?, port))
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.1)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Admission of tokens that were never seen, and the check of their signatures alone: medians, in microseconds.
async fn new_tokens(app: &App, signer: &Signer) -> Result<(f64, f64)> {
    let tokens: Vec<String> = (1..=NEW).map(|number| token(signer, number)).collect();
    let (mut news, mut signatures) = (Vec::new(), Vec::new());
    for (number, token) in tokens.iter().enumerate() {
        let request = request(token);
        let (message, signature) = token.rsplit_once('.').context("a token has three parts")?;
        // Whoever comes second finds the token in the processor's caches: they take turns.
        for part in [number, number + 1] {
            let start = cpu_ns()?;
            if part % 2 == 0 {
                let message = message.as_bytes();
                let verified =
                    jsonwebtoken::crypto::verify(signature, message, &signer.key, signer.algorithm);
                signatures.push(cpu_ns()? - start);
                assert!(verified?, "the signature alone holds");
            } else {
                let verified = verify(app, &request, Scope::ScorePredict, Some(MODEL)).await;
                news.push(cpu_ns()? - start);
                verified.map_err(|error| anyhow!("{error}"))?;
            }
        }
    }
    Ok((median(news), median(signatures)))
}

fn median(mut nanoseconds: Vec<i64>) -> f64 {
    nanoseconds.sort_unstable();
    nanoseconds[nanoseconds.len() / 2] as f64 / 1e3
}

fn cpu_ns() -> Result<i64> {
    Ok(nix::time::clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.num_nanoseconds())
}

fn request(credential: &str) -> Parts {
    let request =
        Request::builder().uri("/v1/predict").header("authorization", format!("Bearer {credential}"));
    request.body(()).expect("the request is well-formed").into_parts().0
}

/// A token as RFC 9068 has them, the `number`th.
fn token(signer: &Signer, number: usize) -> String {
    token_of(signer, "client-8f14e45f", number)
}

fn token_of(signer: &Signer, client: &str, number: usize) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let header = json!({ "typ": "at+jwt", "alg": signer.algorithm, "kid": signer.jwk["kid"] });
    let claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": client, "client_id": client, "plan": "bench",
        "iat": now, "exp": now + 3_600, "jti": format!("3f2504e0-4f89-11d3-9a0c-{number:012}"),
        "scope": "score:predict models:read",
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature = URL_SAFE_NO_PAD.encode((signer.sign)(message.as_bytes()));
    format!("{message}.{signature}")
}

fn ecdsa() -> Result<Signer> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let point = pair.public_key().as_ref().to_vec();
    let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (x, y) = (coordinate(&point[1..33]), coordinate(&point[33..]));
    Ok(Signer {
        algorithm: Algorithm::ES256,
        key: DecodingKey::from_ec_components(&x, &y)?,
        jwk: json!({ "kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "alg": "ES256", "x": x, "y": y }),
        sign: Box::new(move |message| {
            pair.sign(&SystemRandom::new(), message).expect("the key signs").as_ref().to_vec()
        }),
    })
}

fn rsa() -> Result<Signer> {
    let pair = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048)?;
    let public = pair.public_key();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let n = number(public.modulus().big_endian_without_leading_zero());
    let e = number(public.exponent().big_endian_without_leading_zero());
    Ok(Signer {
        algorithm: Algorithm::RS256,
        key: DecodingKey::from_rsa_components(&n, &e)?,
        jwk: json!({ "kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": n, "e": e }),
        sign: Box::new(move |message| {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
                .expect("the key signs");
            signature
        }),
    })
}
