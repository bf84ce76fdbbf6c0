//! The local stack while it runs: what it has to do, and to survive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::compose::Compose;
use super::engine::Engine;
use super::image;
use super::tag;
use crate::http1::{self, Answer};
use crate::load::{Limit, Load, Outcome, Pace};
use crate::requests::{self, PREDICT, REFERENCE};
use crate::server::free_address;
use crate::workspace::{Workspace, capture, pause, run};

/// From `up` to the first score, where the images are there.
const FIRST_SCORE_LIMIT: Duration = Duration::from_secs(60);
/// For everything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long load goes on after what happens under it is over.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// When nginx asks another gateway than one that says nothing (deploy/compose/nginx.conf), and by when that one has answered.
const FROZEN: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(25)];
/// So many bodies of some twelve megabytes each are more than nginx has memory.
const LONG_BODIES: usize = 12;
const LONG_BODY_ROWS: usize = 90_000;
/// What clients send while something is lost: some hundred rows a second, over so many connections.
const RATE: f64 = 200.0;
const CONNECTIONS: usize = 16;
/// Rows that a caller of the plan `trial` may send an hour (deploy/compose/scoregate.toml).
const TRIAL: u64 = 1_000;
/// All that may run, for what is asked of the whole stack.
const PROFILES: &str = "scale,observability";
/// By how much of a quota two replicas may be off together, each of which holds a lease of 2 %.
const LEASES: f64 = 0.04;

/// Containers, networks and volumes under a name of their own.
pub(super) struct Stack<'a> {
    workspace: &'a Workspace,
    engine: &'a Engine,
    compose: &'a Compose,
    project: String,
    /// Its secrets and data.
    scratch: tempfile::TempDir,
    gateway: SocketAddr,
    balanced: SocketAddr,
    issuer: SocketAddr,
    prometheus: SocketAddr,
    grafana: SocketAddr,
    collector: SocketAddr,
}

impl<'a> Stack<'a> {
    /// A stack that nothing of runs yet.
    pub(super) fn new(workspace: &'a Workspace, engine: &'a Engine, compose: &'a Compose) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("stack-").tempdir_in(&workspace.target)?;
        let data = scratch.path().join("data");
        fs::create_dir(&data)?;
        // One model of data, beside the one that is simulated.
        fs::copy(workspace.root.join("tests/data/saas_churn.csv"), data.join("saas_churn.csv"))?;
        Ok(Self {
            workspace,
            engine,
            compose,
            project: format!("scoregate-test-{}", std::process::id()),
            scratch,
            gateway: free_address(0)?,
            balanced: free_address(0)?,
            issuer: free_address(0)?,
            prometheus: free_address(0)?,
            grafana: free_address(0)?,
            collector: free_address(0)?,
        })
    }

    /// Everything that the stack is for, as far as the images of its profiles are there.
    pub(super) fn show_all(&self, has_nginx: bool, has_observability: bool) -> Result<()> {
        let token = self.show_first_score()?;
        if has_nginx {
            self.show_scale(&token)?;
        } else {
            self.show_swap(self.gateway, &token)?;
            self.show_lost_redis(self.gateway, &token)?;
        }
        let second = if has_nginx { &["gateway-2"][..] } else { &[] };
        let nginx = if has_nginx { &["nginx"][..] } else { &[] };
        self.show_logs(&[&["gateway", "issuer", "redis"], second, nginx].concat(), &token)?;
        self.show_rest(&[&["gateway", "issuer"], second].concat())?;
        if has_observability { self.show_observability(&token) } else { Ok(()) }
    }

    /// What two gateways and nginx are for.
    fn show_scale(&self, token: &str) -> Result<()> {
        run(&mut self.call(&["--profile", "scale", "up", "--detach", "--no-build"]))?;
        self.wait_healthy(&["gateway", "gateway-2", "nginx"])?;
        self.show_both_answer(token)?;
        self.show_swap(self.balanced, token)?;
        self.show_shared_quota()?;
        self.show_long_bodies(token)?;
        self.show_lost_redis(self.balanced, token)?;
        self.show_lost_gateway(token)?;
        self.show_frozen_gateway(token)?;
        self.show_rolling_restart(token)
    }

    /// What the README's block says, but for the images, which are there; gives a token.
    pub(super) fn show_first_score(&self) -> Result<String> {
        let scratch = self.scratch.path().display();
        let block = block(&fs::read_to_string(self.workspace.root.join("README.md"))?)?
            .lines()
            .filter(|line| !line.starts_with("docker compose build"))
            .collect::<Vec<_>>()
            .join("\n")
            .replace("docker compose", &self.compose.in_shell())
            .replace(" secrets/", &format!(" {scratch}/secrets/"))
            .replace("127.0.0.1:8080", &self.gateway.to_string())
            .replace("127.0.0.1:8081", &self.issuer.to_string());
        let mut shell = Command::new("sh");
        shell.current_dir(&self.workspace.root).args(["-ec", &block]);
        self.set(&mut shell);
        let started = Instant::now();
        let printed = capture(&mut shell).context("the README's block for containers does not work")?;
        let elapsed = started.elapsed();
        println!(
            "from secrets and `up` to the first score: {:.1} s (at most {} s)",
            elapsed.as_secs_f64(),
            FIRST_SCORE_LIMIT.as_secs()
        );
        ensure!(elapsed <= FIRST_SCORE_LIMIT, "that takes too long");
        let answer: Value =
            printed.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        ensure!(answer["churn_probability"].is_number(), "the README's block prints no score: {printed}");

        let shop = fs::read_to_string(self.scratch.path().join("secrets/shop.json"))?;
        let token = token(self.issuer, &shop)?;
        let models = self.ask(self.gateway, "/v1/models", &token)?;
        let names: Vec<&str> = models["models"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|model| model["model"].as_str())
            .collect();
        ensure!(names == ["churn", "saas_churn"], "the trainer is to publish two models, found {models}");
        Ok(token)
    }

    /// nginx gives each gateway its part.
    fn show_both_answer(&self, token: &str) -> Result<()> {
        let before = self.answered()?;
        let outcome = self.load(self.balanced, token, Limit::Requests(400))?;
        ensure!(outcome.errors() == 0, "through nginx: {}", outcome.tally());
        let shares = wait(PATIENCE, || {
            let shares = since(&before, &self.answered()?);
            ensure!(shares.values().sum::<u64>() == 400, "nginx logged {shares:?}, expected 400 in all");
            Ok(shares)
        })?;
        let told: Vec<String> = shares.iter().map(|(gateway, rows)| format!("{rows} by {gateway}")).collect();
        println!("400 rows through nginx: {}", told.join(", "));
        ensure!(
            shares.len() == 2 && shares.values().all(|rows| *rows >= 50),
            "expected both gateways to score"
        );
        let resources = (0..20)
            .map(|_| {
                let answer = self.ask(self.balanced, "/.well-known/oauth-protected-resource", token)?;
                Ok(answer["resource"].as_str().context("an answer without a resource")?.to_owned())
            })
            .collect::<Result<BTreeSet<_>>>()?;
        ensure!(
            resources == BTreeSet::from([self.public_url()]),
            "gateways say that they are {resources:?}, expected {}",
            self.public_url()
        );
        Ok(())
    }

    /// A package that is copied into the volume as the documentation says is served by both once it is promoted.
    fn show_swap(&self, address: SocketAddr, token: &str) -> Result<()> {
        let before = self.version(address, token)?;
        // Made somewhere else, and here as files of whoever runs this.
        let fit = "{ scoregate-trainer simulate --rows 5000 --seed 7 --out /tmp/churn.csv && scoregate-trainer fit \
                   --data /tmp/churn.csv --schema /usr/local/share/scoregate/schemas/churn.json --version dropped; } >&2; \
                   tar -c -C \"$SCOREGATE_MODELS_DIR\" churn";
        let fitted = self
            .engine
            .command(&["run", "--rm", "--network", "none", "--entrypoint", "sh", &image::name("trainer")])
            .args(["-ec", fit])
            .output()?;
        ensure!(fitted.status.success(), "no package: {}", String::from_utf8_lossy(&fitted.stderr));
        let elsewhere = self.scratch.path().join("onnx_models");
        fs::create_dir(&elsewhere)?;
        fs::write(elsewhere.join("churn.tar"), fitted.stdout)?;
        run(Command::new("tar").args(["-x", "--no-same-owner", "-f", "churn.tar"]).current_dir(&elsewhere))?;
        let docs = fs::read_to_string(self.workspace.root.join("docs/run-in-containers.md"))?;
        let copy = docs
            .lines()
            .find(|line| line.starts_with("tar ") && line.contains("docker compose exec"))
            .context("docs/run-in-containers.md does not say how a package is copied")?
            .replace("onnx_models fraud", &format!("'{}' churn", elsewhere.display()))
            .replace("docker compose", &self.compose.in_shell());
        let mut shell = Command::new("sh");
        shell.current_dir(&self.workspace.root).args(["-ec", &copy]);
        self.set(&mut shell);
        run(&mut shell)?;
        wait(PATIENCE, || {
            let version = self.ask(self.gateway, "/v1/models/churn/versions/dropped", token)?;
            ensure!(version["state"] == "accepted", "the version dropped is {}", version["state"]);
            Ok(())
        })?;
        ensure!(self.version(address, token)? == before, "a version answers that nobody promoted");
        let promoted = Instant::now();
        let gateway = self.container("gateway")?;
        run(&mut self.engine.command(&[
            "exec",
            &gateway,
            "scoregate",
            "models",
            "promote",
            "churn@dropped",
        ]))?;
        wait(PATIENCE, || {
            for _ in 0..20 {
                let version = self.version(address, token)?;
                ensure!(version == "dropped", "{version} answers");
            }
            Ok(())
        })?;
        println!(
            "churn: {before}, then dropped, {:.1} s after it was promoted",
            promoted.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// A caller has its quota once, whichever gateway it comes to.
    fn show_shared_quota(&self) -> Result<()> {
        let create = ["clients", "create", "--name", "trial", "--scopes", "score:predict", "--plan", "trial"];
        let trial = capture(&mut self.secrets(&create))?;
        let token_of_trial = || token(self.issuer, &trial);
        let token = wait(PATIENCE, token_of_trial)?;
        let before = self.answered()?;
        let begun = Instant::now();
        let outcome = self.load(self.balanced, &token, Limit::Requests(2 * TRIAL))?;
        let shares = since(&before, &self.answered()?);
        // What comes back meanwhile.
        let back = begun.elapsed().as_secs_f64() * TRIAL as f64 / 3_600.0;
        let scored = outcome.statuses.get(&200).copied().unwrap_or_default();
        let (least, most) = (TRIAL as f64 * (1.0 - LEASES), TRIAL as f64 * (1.0 + LEASES) + back + 1.0);
        println!(
            "{scored} rows of {TRIAL} an hour scored by two gateways ({least:.0} to {most:.0} may be): {shares:?}"
        );
        ensure!((least..=most).contains(&(scored as f64)), "the quota is not shared: {}", outcome.tally());
        ensure!(shares.len() == 2, "expected both gateways to be asked");
        let limited = outcome.statuses.get(&429).copied().unwrap_or_default();
        ensure!(scored + limited == 2 * TRIAL, "expected scores and 429: {}", outcome.tally());
        capture(&mut self.secrets(&["clients", "revoke", "trial"]))?;
        wait(PATIENCE, || {
            ensure!(token_of_trial().is_err(), "a client that was revoked still gets tokens");
            Ok(())
        })?;
        println!("a client was revoked, and gets no token any more");
        Ok(())
    }

    /// Long bodies at once fill neither memory nor what nginx writes to; what is too long is refused as a gateway would.
    fn show_long_bodies(&self, token: &str) -> Result<()> {
        let code = |answer: &Answer| -> String {
            let document: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            document["code"].as_str().unwrap_or_default().to_owned()
        };
        let path = format!("{PREDICT}/batch");
        let body = requests::customers(LONG_BODY_ROWS);
        let request = http1::post(self.balanced, &path, Some(token), &body);
        let codes = std::thread::scope(|scope| {
            let sent: Vec<_> =
                (0..LONG_BODIES).map(|_| scope.spawn(|| http1::exchange(self.balanced, &request))).collect();
            sent.into_iter()
                .map(|sent| {
                    let answer = sent.join().map_err(|_| anyhow::anyhow!("a request panicked"))??;
                    // More rows than a caller has a minute, or more bytes than a gateway holds: either way it has seen them.
                    let code = code(&answer);
                    ensure!(
                        matches!(&*code, "too_many_rows" | "quota_exceeded" | "overloaded"),
                        "a long body is answered {} with {}, expected a gateway's refusal",
                        answer.status,
                        answer.body
                    );
                    Ok(code)
                })
                .collect::<Result<Vec<_>>>()
        })?;
        println!(
            "{LONG_BODIES} bodies of {:.1} MB at once through nginx: {}",
            body.len() as f64 / 1e6,
            codes.join(", ")
        );
        let longer = requests::customers(2 * LONG_BODY_ROWS);
        let refused =
            http1::exchange(self.balanced, &http1::post(self.balanced, &path, Some(token), &longer))?;
        ensure!(
            (refused.status, &*code(&refused)) == (413, "body_too_large"),
            "a body that is too long is answered {}: {}",
            refused.status,
            refused.body
        );
        Ok(())
    }

    /// Redis is killed, and no prediction fails.
    fn show_lost_redis(&self, address: SocketAddr, token: &str) -> Result<()> {
        let redis = self.container("redis")?;
        let outcome = self.load_while(address, token, || {
            pause(Duration::from_secs(2));
            self.engine.ask(&["kill", &redis])?;
            pause(Duration::from_secs(4));
            self.engine.ask(&["start", &redis])?;
            self.wait_healthy(&["redis"])
        })?;
        println!("Redis killed under load: {} of {} requests failed", outcome.errors(), outcome.answers());
        ensure!(outcome.errors() == 0, "expected none to fail: {}", outcome.tally());
        Ok(())
    }

    /// A gateway is killed, and no prediction fails but those that died with it.
    fn show_lost_gateway(&self, token: &str) -> Result<()> {
        let gateway = self.container("gateway-2")?;
        let outcome = self.load_while(self.balanced, token, || {
            pause(Duration::from_secs(2));
            self.engine.ask(&["kill", &gateway])?;
            pause(Duration::from_secs(3));
            self.engine.ask(&["start", &gateway])?;
            self.wait_healthy(&["gateway-2"])
        })?;
        println!(
            "a gateway killed under load: {} of {} requests failed",
            outcome.errors(),
            outcome.answers()
        );
        ensure!(
            outcome.errors() <= CONNECTIONS as u64,
            "expected at most the {CONNECTIONS} in flight to fail: {}",
            outcome.tally()
        );
        Ok(())
    }

    /// A gateway says nothing any more, and the other answers in its place.
    fn show_frozen_gateway(&self, token: &str) -> Result<()> {
        let gateway = self.container("gateway-2")?;
        self.engine.ask(&["pause", &gateway])?;
        let answers = std::thread::scope(|scope| {
            let ask = || {
                let begun = Instant::now();
                expect(self.predict(self.balanced, token), 200).map(|_| begun.elapsed())
            };
            let asked: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(ask)).collect();
            let joined = asked.into_iter().map(|asked| asked.join());
            joined
                .map(|answer| answer.map_err(|_| anyhow::anyhow!("a request panicked"))?)
                .collect::<Result<Vec<Duration>>>()
        });
        self.engine.ask(&["unpause", &gateway])?;
        let answers = answers.context("with a gateway that is frozen")?;
        let slow: Vec<_> = answers.iter().filter(|took| **took >= FROZEN[0]).collect();
        println!(
            "a gateway frozen: {} of {CONNECTIONS} requests waited for it, and the other one answered them all",
            slow.len()
        );
        ensure!(!slow.is_empty(), "nobody came to the frozen gateway: {answers:?}");
        ensure!(answers.iter().all(|took| *took < FROZEN[1]), "that takes too long: {answers:?}");
        self.wait_healthy(&["gateway-2"])
    }

    /// One gateway after the other is restarted, and no prediction fails.
    fn show_rolling_restart(&self, token: &str) -> Result<()> {
        let outcome = self.load_while(self.balanced, token, || {
            for service in ["gateway", "gateway-2"] {
                run(self.call(&["restart", "-t", "30", service]).env("COMPOSE_PROFILES", "scale"))?;
                self.wait_healthy(&[service])?;
            }
            Ok(())
        })?;
        println!("rolling restart under load: {} of {} requests failed", outcome.errors(), outcome.answers());
        ensure!(outcome.errors() == 0, "expected none to fail: {}", outcome.tally());
        Ok(())
    }

    /// Numbers, dashboards and a trace are there to see.
    fn show_observability(&self, token: &str) -> Result<()> {
        run(self
            .call(&["--profile", "observability", "up", "--detach", "--no-build"])
            .env("SCOREGATE_OTLP_ENDPOINT", "http://collector:4318"))?;
        self.wait_healthy(&["gateway", "prometheus", "grafana", "collector"])?;
        fetch(self.prometheus, "/-/ready", &[])?;
        wait(PATIENCE, || {
            let up: Value = serde_json::from_str(&fetch(self.prometheus, "/api/v1/query?query=up", &[])?)?;
            let seen = up["data"]["result"].as_array().into_iter().flatten();
            ensure!(seen.into_iter().any(|target| target["value"][1] == "1"), "no gateway is scraped: {up}");
            Ok(())
        })?;
        let health: Value = serde_json::from_str(&fetch(self.grafana, "/api/health", &[])?)?;
        ensure!(health["database"] == "ok", "Grafana is not well: {health}");
        let password = fs::read_to_string(self.scratch.path().join("secrets/grafana_password"))?;
        let admin = format!("admin:{}", password.trim());
        let dashboards: Value =
            serde_json::from_str(&fetch(self.grafana, "/api/search?type=dash-db", &["--user", &admin])?)?;
        ensure!(
            dashboards.as_array().is_some_and(|all| !all.is_empty()),
            "Grafana has no dashboard: {dashboards}"
        );
        // A trace that its client wants kept.
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01");
        let bearer = format!("authorization: Bearer {token}");
        let row = ["-H", &parent, "-H", &bearer, "-H", "content-type: application/json", "-d", REFERENCE];
        fetch(self.gateway, PREDICT, &row)?;
        wait(PATIENCE, || fetch(self.collector, &format!("/api/traces/{trace}"), &[]))?;
        println!("Prometheus scrapes a gateway, Grafana has its dashboard, and the collector shows a trace");
        Ok(())
    }

    /// What gateways log are JSON documents, and no secret is in any log.
    fn show_logs(&self, services: &[&str], token: &str) -> Result<()> {
        let mut secrets = vec![token.to_owned()];
        for name in ["redis_password", "cache_key"] {
            secrets
                .push(fs::read_to_string(self.scratch.path().join("secrets").join(name))?.trim().to_owned());
        }
        for service in services {
            let log = self.log(service)?;
            ensure!(!log.trim().is_empty(), "{service} logs nothing");
            let has_secret = secrets.iter().any(|secret| log.contains(secret));
            ensure!(!has_secret, "the log of {service} has a secret in it");
            if matches!(*service, "redis" | "nginx") {
                continue;
            }
            for line in log.lines() {
                let document: Result<Value, _> = serde_json::from_str(line);
                let is_document = document.is_ok_and(|document| document.is_object());
                ensure!(is_document, "{service} logs what is no JSON: {line}");
            }
            println!(
                "the log of {service}: {} lines, all of them JSON, without a secret",
                log.lines().count()
            );
        }
        Ok(())
    }

    /// Time to start and memory at rest.
    fn show_rest(&self, services: &[&str]) -> Result<()> {
        for service in services {
            let container = self.container(service)?;
            let memory =
                self.engine.ask(&["stats", "--no-stream", "--format", "{{.MemUsage}}", &container])?;
            println!("memory of {service} at rest: {memory}");
        }
        let gateway = self.container("gateway")?;
        self.engine.ask(&["stop", "-t", "30", &gateway])?;
        let begun = Instant::now();
        self.engine.ask(&["start", &gateway])?;
        let started = begun.elapsed();
        wait(PATIENCE, || {
            let ready = http1::exchange(self.gateway, &http1::get(self.gateway, "/health/ready", None));
            expect(ready, 200)
        })?;
        println!(
            "ready {:.2} s after the engine was told to start it, which took {:.2} s of that",
            begun.elapsed().as_secs_f64(),
            started.as_secs_f64()
        );
        Ok(())
    }

    /// Stops and removes all of it, and looks whether anything is left.
    pub(super) fn remove(&self) -> Result<()> {
        let removed = self.remove_containers();
        let secrets = match fs::remove_dir_all(&self.scratch) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        removed.and(secrets.context("the stack's secrets and data are left behind"))
    }

    fn remove_containers(&self) -> Result<()> {
        run(self
            .call(&["down", "--volumes", "--remove-orphans", "--timeout", "5"])
            .env("COMPOSE_PROFILES", PROFILES))?;
        let label = format!("label=com.docker.compose.project={}", self.project);
        for list in
            [&["ps", "--all", "--quiet"][..], &["network", "ls", "--quiet"], &["volume", "ls", "--quiet"]]
        {
            let left = self.engine.ask(&[list, &["--filter", &label]].concat())?;
            ensure!(left.is_empty(), "left behind ({}): {left}", list[0]);
        }
        Ok(())
    }

    /// Prints the last words of every container.
    pub(super) fn print_logs(&self) {
        let mut logs = self.call(&["logs", "--no-color", "--tail", "20"]);
        if let Err(error) = run(logs.env("COMPOSE_PROFILES", PROFILES)) {
            eprintln!("no logs: {error:#}");
        }
    }

    /// A Compose command for this stack.
    fn call(&self, arguments: &[&str]) -> Command {
        let mut command = self.compose.command();
        command.current_dir(&self.workspace.root).args(arguments);
        self.set(&mut command);
        command
    }

    fn secrets(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.current_dir(&self.workspace.root).arg("deploy/secrets.sh").args(arguments);
        self.set(&mut command);
        command
    }

    fn set(&self, command: &mut Command) {
        let scratch = |name: &str| -> PathBuf { self.scratch.path().join(name) };
        command
            .env("COMPOSE_PROJECT_NAME", &self.project)
            .env("SCOREGATE_TAG", tag())
            .env("SCOREGATE_SECRETS", scratch("secrets"))
            .env("SCOREGATE_DATA", scratch("data"))
            .env("SCOREGATE_PORT", self.gateway.port().to_string())
            .env("SCOREGATE_BALANCED_PORT", self.balanced.port().to_string())
            .env("SCOREGATE_ISSUER_PORT", self.issuer.port().to_string())
            .env("SCOREGATE_PUBLIC_URL", self.public_url())
            .env("PROMETHEUS_PORT", self.prometheus.port().to_string())
            .env("GRAFANA_PORT", self.grafana.port().to_string())
            .env("COLLECTOR_PORT", self.collector.port().to_string())
            .env_remove("SCOREGATE_OTLP_ENDPOINT")
            .env_remove("SCOREGATE_LOG")
            .env_remove("COMPOSE_PROFILES")
            .env_remove("COMPOSE_FILE");
    }

    /// Where clients say that the gateways are.
    fn public_url(&self) -> String {
        format!("http://{}", self.balanced)
    }

    fn container(&self, service: &str) -> Result<String> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service_label = format!("label=com.docker.compose.service={service}");
        let found =
            self.engine.ask(&["ps", "--all", "--quiet", "--filter", &project, "--filter", &service_label])?;
        ensure!(
            !found.is_empty() && !found.contains('\n'),
            "expected one container of {service}, found `{found}`"
        );
        Ok(found)
    }

    fn wait_healthy(&self, services: &[&str]) -> Result<()> {
        for service in services {
            let container = self.container(service)?;
            wait(PATIENCE, || {
                let state =
                    self.engine.ask(&["inspect", "--format", "{{.State.Health.Status}}", &container])?;
                ensure!(state == "healthy", "{service} is {state}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// What a service has written, on either stream.
    fn log(&self, service: &str) -> Result<String> {
        let output = self.engine.command(&["logs", &self.container(service)?]).output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// How many requests to score nginx says each gateway has answered last, by address.
    fn answered(&self) -> Result<BTreeMap<String, u64>> {
        let mut shares = BTreeMap::new();
        for line in self.log("nginx")?.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            if line["path"] == PREDICT
                && let Some(gateway) = line["upstream"].as_str().and_then(|tried| tried.split(", ").last())
            {
                *shares.entry(gateway.to_owned()).or_default() += 1;
            }
        }
        Ok(shares)
    }

    fn predict(&self, address: SocketAddr, token: &str) -> Result<Answer> {
        http1::exchange(address, &http1::post(address, PREDICT, Some(token), REFERENCE))
    }

    /// The version that answers.
    fn version(&self, address: SocketAddr, token: &str) -> Result<String> {
        let answer: Value = serde_json::from_str(&expect(self.predict(address, token), 200)?)?;
        Ok(answer["model_version"].as_str().context("an answer without a version")?.to_owned())
    }

    fn ask(&self, address: SocketAddr, path: &str, token: &str) -> Result<Value> {
        let answer = http1::exchange(address, &http1::get(address, path, Some(token)));
        Ok(serde_json::from_str(&expect(answer, 200)?)?)
    }

    /// Rows at a steady rate.
    fn load(&self, address: SocketAddr, token: &str, limit: Limit<'_>) -> Result<Outcome> {
        let requests = requests::build(address, Some(token), 1);
        let pace = Pace::Steady(RATE);
        Load { address, requests: &requests, connections: CONNECTIONS, pace, limit }.run()
    }

    /// Rows while `happening` happens, and a little longer.
    fn load_while(
        &self,
        address: SocketAddr,
        token: &str,
        happening: impl FnOnce() -> Result<()>,
    ) -> Result<Outcome> {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| self.load(address, token, Limit::Until(&is_over)));
            let happened = happening();
            pause(AFTERWARDS);
            is_over.store(true, Ordering::Relaxed);
            let outcome = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
            happened?;
            outcome
        })
    }
}

/// The shell block of the README's section on containers.
fn block(readme: &str) -> Result<&str> {
    let section =
        readme.split("\n## In containers\n").nth(1).context("the README has no section `In containers`")?;
    let block = section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next());
    block.context("the README's section `In containers` has no shell block")
}

/// A token for a client that `clients create` has printed.
fn token(issuer: SocketAddr, client: &str) -> Result<String> {
    let client: Value = serde_json::from_str(client).context("a client is printed as JSON")?;
    let member = |name: &str| client[name].as_str().unwrap_or_default().to_owned();
    let form = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}",
        member("client_id"),
        member("client_secret")
    );
    let answer = expect(http1::exchange(issuer, &http1::post_form(issuer, "/oauth/token", &form)), 200)?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["access_token"].as_str().context("an answer without a token")?.to_owned())
}

/// What is there at a path, with what else curl is told.
fn fetch(address: SocketAddr, path: &str, more: &[&str]) -> Result<String> {
    capture(Command::new("curl").args(["-sS", "--fail", &format!("http://{address}{path}")]).args(more))
}

/// The body of an answer that has this status.
fn expect(answer: Result<Answer>, status: u16) -> Result<String> {
    let answer = answer?;
    ensure!(answer.status == status, "answered {}, expected {status}: {}", answer.status, answer.body);
    Ok(answer.body)
}

/// Tries until it works.
fn wait<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not after {} s", limit.as_secs())));
            }
            Err(_) => pause(Duration::from_millis(20)),
        }
    }
}

/// What has been added.
fn since(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let added = |(name, count): (&String, &u64)| {
        (name.clone(), count - before.get(name).copied().unwrap_or_default())
    };
    now.iter().map(added).filter(|(_, count)| *count > 0).collect()
}
