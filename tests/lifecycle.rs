//! From start to drain: readiness, signals, mistakes in the settings, `healthcheck`.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::authority::{Authority, Reply};
use crate::support::tokens::{AUDIENCE, Key, Mint, key_set};
use crate::support::world::bearer;
use crate::support::{
    Client, REFERENCE, Request, Settings, repository, scratch, shared, wait_for, wait_within,
};

/// An address that was free a moment ago, for the few tests that must know it before the gateway says so.
fn free_addr() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A repository of `count` copies of the churn model, which take a while to load.
fn many_models(count: usize) -> tempfile::TempDir {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    for at in 0..count {
        let (copy, version) = repository().copy_of("churn");
        let name = format!("churn{at}");
        let path = version.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        manifest["name"] = name.clone().into();
        std::fs::write(&path, manifest.to_string()).unwrap();
        std::fs::rename(copy.path().join("churn"), models.path().join(name)).unwrap();
    }
    models
}

#[test]
fn it_lives_at_once_and_is_ready_once_its_models_are_loaded() {
    let models = many_models(16);
    let addr = free_addr();
    let settings = Settings::new()
        .models(models.path())
        .set("SCOREGATE_DEFAULT_MODEL", "churn0")
        .set("SCOREGATE_ADDR", &addr.to_string());
    let key = settings.key();
    let mut gateway = settings.spawn();
    let mut client = wait_for("the listener", || {
        std::net::TcpStream::connect(addr).is_ok().then(|| Client::connect(addr))
    });
    let mut unready = 0;
    let predict = Request::post("/v1/predict", REFERENCE).header("X-Api-Key", key);
    loop {
        let ready = client.ask(&Request::get("/health/ready"));
        if ready.status == 200 {
            break;
        }
        assert_eq!((ready.status, ready.code().as_str()), (503, "not_ready"));
        assert_eq!(client.ask(&Request::get("/health/live")).status, 200, "it lives while it loads");
        let early = client.ask(&predict);
        if early.status != 200 {
            assert_eq!((early.status, early.code().as_str()), (503, "not_ready"));
            assert!(early.header("retry-after").is_some());
            unready += 1;
        }
    }
    assert!(unready > 0, "it was ready before its models were loaded");
    assert_eq!(client.ask(&predict).status, 200);
    gateway.wait_for_line("ready");
}

/// Settings with an issuer whose keys are at `jwks`.
fn with_issuer(jwks: &str) -> Settings {
    Settings::new()
        .set("SCOREGATE_JWT_ISSUER", ISSUER)
        .set("SCOREGATE_JWT_AUDIENCE", AUDIENCE)
        .set("SCOREGATE_JWT_JWKS", jwks)
}

const ISSUER: &str = "https://login.example";

#[test]
fn it_is_ready_once_the_keys_of_issuers_were_fetched() {
    let (authority, key) = (Authority::start(), Key::p256("key"));
    let keys = key_set([key.jwk()]);
    authority.set("/keys", Reply::Late(keys, Duration::from_secs(1)));
    let gateway = with_issuer(&format!("{}/keys", authority.url())).start();
    let metrics = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let fetched = format!("scoregate_key_set_fetches_total{{issuer=\"{ISSUER}\",outcome=\"ok\"}} 1");
    assert!(metrics.lines().any(|line| line == fetched), "ready before there are keys:\n{metrics}");
    assert_eq!(gateway.ask(&bearer(&Mint::new(&key, ISSUER).token())).status, 200);
}

#[test]
fn an_outage_of_an_issuer_puts_readiness_off_for_seconds_and_no_longer() {
    let authority = Authority::start();
    authority.set("/hangs", Reply::Hang);
    authority.set("/fails", Reply::status(500));
    let nobody = format!("http://{}/keys", free_addr());
    for (jwks, at_least) in
        [(format!("{}/hangs", authority.url()), 3), (format!("{}/fails", authority.url()), 0), (nobody, 0)]
    {
        let settings = with_issuer(&jwks);
        let begun = Instant::now();
        let gateway = settings.start();
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(at_least), "{jwks}: ready after {took:?}");
        assert!(took < Duration::from_secs(at_least + 20), "{jwks}: ready after {took:?}");
        assert_eq!(gateway.ask(&Request::get("/health/ready")).status, 200, "{jwks}");
        assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200, "{jwks}: who has a key scores");
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    let fifo = directory.path().join("log");
    let made = Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    // Open for both, so that neither end waits for the other; what is written stays in the pipe.
    let _stalled = File::options().read(true).write(true).open(&fifo).unwrap();
    let [addr, admin_addr] = [free_addr(), free_addr()];
    let script = format!("exec \"$@\" 2>'{}'", fifo.display());
    let settings = Settings::new()
        .set("SCOREGATE_ADDR", &addr.to_string())
        .set("SCOREGATE_ADMIN_ADDR", &admin_addr.to_string())
        .set("SCOREGATE_DRAIN_DELAY", "0s")
        .under(&["/bin/sh", "-c", &script, "sh"]);
    let key = settings.key();
    let gateway = settings.spawn();
    wait_for("readiness", || {
        let reached = std::net::TcpStream::connect(addr).is_ok();
        (reached && Client::connect(addr).ask(&Request::get("/health/ready")).status == 200).then_some(())
    });
    let (mut client, mut admin) = (Client::connect(addr), Client::connect(admin_addr));
    // A pipe holds 64 KiB, the queue some thousand lines.
    let refused = Request::post("/v1/predict", REFERENCE)
        .header("X-Api-Key", "sg_wrong")
        .header("X-Request-Id", "x".repeat(128));
    let mut count = 0;
    let dropped = wait_for("lines to be dropped", || {
        for _ in 0..500 {
            count += 1;
            assert_eq!(client.ask(&refused).status, 401);
        }
        let metrics = admin.ask(&Request::get("/metrics")).text();
        let mut lines = metrics.lines();
        let dropped = lines.find_map(|line| line.strip_prefix("scoregate_log_lines_dropped_total "));
        dropped.unwrap().parse::<usize>().ok().filter(|dropped| *dropped > 0)
    });
    assert!(dropped < count, "{dropped} of {count}: none waits");
    let scored = Request::post("/v1/predict", REFERENCE).header("X-Api-Key", key);
    assert_eq!(Client::connect(addr).ask(&scored).status, 200);
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.exit().code, Some(0), "it stops without a reader, too");
}

#[test]
fn sigterm_ends_readiness_serves_on_finishes_what_is_in_flight_and_exits_0() {
    let mut gateway = Settings::new().set("SCOREGATE_DRAIN_DELAY", "2s").start();
    let request = gateway.with_key(Request::post("/v1/predict", REFERENCE));
    let (mut busy, mut idle) = (gateway.connect(), gateway.connect());
    assert_eq!(idle.ask(&Request::get("/health/ready")).status, 200);
    busy.send(request.head());
    busy.send(&REFERENCE[..10]);
    gateway.signal(Signal::SIGTERM);
    let told = Instant::now();
    wait_for("readiness to end", || (idle.ask(&Request::get("/health/ready")).status == 503).then_some(()));
    assert_eq!(gateway.ask(&request).status, 200, "load balancers have not noticed yet: it serves on");
    assert_eq!(idle.ask(&Request::get("/health/live")).status, 200);
    assert!(told.elapsed() < Duration::from_secs(2), "too slow for this test to mean anything");
    wait_for("new connections to be refused", || std::net::TcpStream::connect(gateway.addr).err());
    assert!(told.elapsed() >= Duration::from_secs(2), "it stopped listening before the delay was over");
    assert!(idle.answer().is_none(), "an idle connection is closed");
    assert!(gateway.is_running(), "it waits for what is in flight");
    busy.send(&REFERENCE[10..]);
    assert_eq!(busy.answer().unwrap().status, 200);
    let exit = gateway.exit();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(exit.log.contains("stopped"), "{}", exit.log);
}

#[test]
fn sigint_stops_without_delay() {
    let gateway = Settings::new().set("SCOREGATE_DRAIN_DELAY", "60s").start();
    assert_eq!(gateway.post("/v1/predict", REFERENCE).status, 200);
    let told = Instant::now();
    gateway.signal(Signal::SIGINT);
    assert_eq!(gateway.exit().code, Some(0));
    assert!(told.elapsed() < Duration::from_secs(20), "{:?}", told.elapsed());
}

#[test]
fn a_request_that_never_ends_is_cut_at_the_drain_timeout() {
    let gateway = Settings::new()
        .set("SCOREGATE_DRAIN_DELAY", "0s")
        .set("SCOREGATE_DRAIN_TIMEOUT", "1s")
        .set("SCOREGATE_BODY_TIMEOUT", "1h")
        .start();
    let mut client = gateway.connect();
    client.send(gateway.with_key(Request::post("/v1/predict", REFERENCE)).head());
    assert_eq!(gateway.ask(&Request::get("/health")).status, 200);
    let told = Instant::now();
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.exit().code, Some(0));
    assert!(told.elapsed() < Duration::from_secs(20), "{:?}", told.elapsed());
}

#[test]
fn a_missing_library_names_the_command_that_fetches_it() {
    // The same binary in a place beside which no library lies.
    let elsewhere = tempfile::tempdir_in(scratch()).unwrap();
    let directory = elsewhere.path().join("a/b/c");
    std::fs::create_dir_all(&directory).unwrap();
    let binary = directory.join("scoregate");
    if std::fs::hard_link(env!("CARGO_BIN_EXE_scoregate"), &binary).is_err() {
        std::fs::copy(env!("CARGO_BIN_EXE_scoregate"), &binary).unwrap();
    }
    let settings = Settings::new().binary(&binary);
    settings.key();
    let exit = settings.spawn().exit();
    assert_eq!(exit.code, Some(1));
    assert!(
        exit.log.contains("cargo xtask onnxruntime") && exit.log.contains("ORT_DYLIB_PATH"),
        "{}",
        exit.log
    );
    for library in ["/nowhere/libonnxruntime.so", "/etc/hostname"] {
        let settings = Settings::new().set("ORT_DYLIB_PATH", library);
        settings.key();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1));
        assert!(exit.log.contains(library) && exit.log.contains("1.31.1"), "{}", exit.log);
    }
}

#[test]
fn an_empty_repository_says_how_to_fill_it() {
    let empty = tempfile::tempdir_in(scratch()).unwrap();
    for models in [empty.path().to_path_buf(), empty.path().join("missing")] {
        let settings = Settings::new().models(&models);
        settings.key();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1));
        assert!(exit.log.contains("scoregate-trainer fit"), "{}", exit.log);
        assert!(exit.log.contains(models.to_str().unwrap()), "{}", exit.log);
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_its_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for variable in ["SCOREGATE_ADDR", "SCOREGATE_ADMIN_ADDR"] {
        let settings = Settings::new().set(variable, &addr);
        settings.key();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1));
        assert!(exit.log.contains(&addr) && exit.log.contains(variable), "{}", exit.log);
    }
}

#[test]
fn every_mistake_in_the_settings_is_reported_at_once() {
    let settings = Settings::new()
        .set("SCOREGATE_ADR", "127.0.0.1:1")
        .set("SCOREGATE_BODY_TIMEOUT", "15")
        .set("SCOREGATE_WORKERS", "0")
        .set("SCOREGATE_EXECUTION_PROVIDERS", "abacus");
    settings.key();
    std::fs::write(settings.directory().join("scoregate.toml"), "[server]\nadmin_adr = \"127.0.0.1:2\"\n")
        .unwrap();
    let exit = settings.spawn().exit();
    assert_eq!(exit.code, Some(1));
    for expected in [
        "5 setting(s)",
        "SCOREGATE_ADR is no setting; did you mean SCOREGATE_ADDR?",
        "SCOREGATE_BODY_TIMEOUT: found \"15\"",
        "SCOREGATE_WORKERS: found \"0\"",
        "SCOREGATE_EXECUTION_PROVIDERS: found \"abacus\"",
        "server.admin_adr",
        "did you mean server.admin_addr?",
    ] {
        assert!(exit.log.contains(expected), "{expected} is missing in:\n{}", exit.log);
    }
}

#[test]
fn the_settings_file_is_read_below_the_environment() {
    let settings = Settings::new();
    let file = "[server]\nmax_body_bytes = 10\naddr = \"127.0.0.1:1\"\n[models]\ndefault = \"saas_churn\"\n";
    std::fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let gateway = settings.start();
    assert_eq!(gateway.get("/v1/metadata").json()["model"], "saas_churn");
    assert_eq!(gateway.post("/v1/models/churn/predict", REFERENCE).status, 413);
}

#[test]
fn flags_win_over_the_environment() {
    let settings =
        Settings::new().set("SCOREGATE_MODELS_DIR", "/nowhere").set("SCOREGATE_DEFAULT_MODEL", "nobody");
    let models = repository().models.to_str().unwrap();
    let gateway = settings.flags(&["--models-dir", models, "--default-model", "saas_churn"]).start();
    assert_eq!(gateway.get("/v1/metadata").json()["model"], "saas_churn");
}

#[test]
fn healthcheck_exits_0_only_if_the_gateway_is_ready() {
    let gateway = shared();
    let check = |addr: SocketAddr| {
        let output = Settings::bare().set("SCOREGATE_ADMIN_ADDR", &addr.to_string()).run(&["healthcheck"]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(check(gateway.admin_addr), (Some(0), "ready\n".into(), String::new()));
    let nobody = free_addr();
    let (code, _, said) = check(nobody);
    assert_eq!(code, Some(1));
    assert!(said.contains(&nobody.to_string()), "{said}");

    let draining = Settings::new().set("SCOREGATE_DRAIN_DELAY", "60s").start();
    draining.signal(Signal::SIGTERM);
    let answered =
        wait_within(Duration::from_secs(10), || (check(draining.admin_addr).0 == Some(1)).then_some(()));
    assert!(answered.is_some(), "a draining gateway is still called ready");
    assert!(check(draining.admin_addr).2.contains("503"));
}

#[test]
fn the_log_is_json_without_secrets() {
    let gateway = shared();
    for line in gateway.log() {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
    let log = gateway.log();
    let loaded = log.iter().filter(|line| line.contains("model loaded")).count();
    assert_eq!(loaded, 2, "{log:?}");
    assert!(!log.join("\n").contains(&gateway.key[3..]));
}
