//! The local stack while it runs: what it has to do, and to survive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::engine::BUILDER;
use super::running::{PATIENCE, Stack, expect, fetch, put, token, wait};
use super::{image, left};
use crate::http1::{self, Answer};
use crate::load::{Limit, Load, Outcome, Pace};
use crate::requests::{self, PREDICT};
use crate::workspace::{capture, pause, run};

/// From `up` to the first score, where the images are there.
const FIRST_SCORE_LIMIT: Duration = Duration::from_secs(60);
/// How long load goes on after what happens under it is over.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// When nginx asks another gateway than one that says nothing (deploy/compose/nginx.conf), and by when that one has answered.
const FROZEN: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(25)];
/// Between two requests that nginx is to send where it likes.
const SHORTLY: Duration = Duration::from_millis(100);
/// So many bodies of some twelve megabytes each are more than nginx has memory.
const LONG_BODIES: usize = 12;
const LONG_BODY_ROWS: usize = 90_000;
/// How many of them come while a gateway is frozen, which takes them no further than its kernel's memory goes. The other one has to
/// have memory for all of them: there is nobody else to ask.
const LONG_BODIES_FROZEN: usize = 4;
/// What clients send while something is lost: some hundred rows a second, over so many connections.
const RATE: f64 = 200.0;
const CONNECTIONS: usize = 16;
/// What 99 of 100 of them may wait at most; and where a gateway goes, to which nginx tries to connect for a second.
const LATE: Duration = Duration::from_secs(2);
const LATE_WITHOUT_GATEWAY: Duration = Duration::from_secs(5);
/// Rows that a caller of the plan `trial` may send an hour (deploy/compose/gateway/scoregate.toml).
const TRIAL: u64 = 1_000;
/// By how much of a quota two replicas may be off together, each of which holds a lease of 2 %.
const LEASES: f64 = 0.04;

impl Stack<'_> {
    /// Everything that the stack is for, as far as the images of its profiles are there.
    pub(super) fn show_all(&self, has_nginx: bool, has_observability: bool) -> Result<()> {
        let token = self.show_first_score()?;
        self.show_closed_data()?;
        self.show_settings()?;
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

    /// What the README's block says; gives a token.
    pub(super) fn show_first_score(&self) -> Result<String> {
        let readme = fs::read_to_string(self.workspace.root.join("README.md"))?;
        let (build, rest): (Vec<&str>, Vec<&str>) =
            block(&readme)?.lines().partition(|line| line.starts_with("docker compose build"));
        self.show_build(&build.join("\n"))?;

        let block = put(&rest.join("\n"), " secrets/", &format!(" {}/secrets/", self.scratch.display()))?;
        let block = put(&block, "127.0.0.1:8080", &self.gateway.to_string())?;
        let mut shell = self.script(&put(&block, "127.0.0.1:8081", &self.issuer.to_string())?)?;
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

        let shop = fs::read_to_string(self.scratch.join("secrets/shop.json"))?;
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

    /// Compose builds the images as well, from what is there of them.
    fn show_build(&self, line: &str) -> Result<()> {
        let mut build = self.script(line)?;
        if !self.compose.builds() {
            eprintln!(
                "NOT RUN: `docker compose build`, for which {} needs Docker's buildx",
                self.compose.name()
            );
            return Ok(());
        }
        // With the builder that has just built them: docker-compose 1 has one of its own beside it.
        build.env("COMPOSE_DOCKER_CLI_BUILD", "1").env(BUILDER.0, BUILDER.1);
        let begun = Instant::now();
        run(build.env("SCOREGATE_TAG", left::tag_by_compose()))?;
        println!("built by Compose, from what was there: {:.0} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Data that the trainer may not see are left out, and nothing is simulated in their place.
    fn show_closed_data(&self) -> Result<()> {
        let closed = self.scratch.join("closed");
        fs::create_dir(&closed)?;
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700))?;
        let volume = format!("{}:/data:ro", closed.display());
        let train = ["run", "--rm", "--network", "none", "--entrypoint", "train", "--volume", &volume];
        let trained = self.engine.command(&train).args([&image::name("trainer"), "/data"]).output()?;
        let told = String::from_utf8_lossy(&trained.stderr);
        ensure!(
            !trained.status.success() && told.contains("LEFT OUT: all of /data"),
            "with data that it may not see, the trainer ends with {} and says: {told}",
            trained.status
        );
        println!("data that the trainer may not see: left out, and nothing simulated in their place");
        Ok(())
    }

    /// A gateway goes by its settings while it runs, though the file is another one by then.
    fn show_settings(&self) -> Result<()> {
        let file = self.scratch.join("settings/scoregate.toml");
        let other = self.scratch.join("settings/other.toml");
        fs::write(
            &other,
            put(&fs::read_to_string(&file)?, "filter = \"info,", "filter = \"info,scoregate::auth=debug,")?,
        )?;
        fs::rename(&other, &file)?;
        wait(PATIENCE, || {
            let log = self.log("gateway")?;
            ensure!(log.contains("the log's filter has changed"), "the gateway still logs by the old filter");
            Ok(())
        })?;
        println!("a gateway goes by its settings' new filter");
        Ok(())
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
        let elsewhere = self.scratch.join("onnx_models");
        fs::create_dir(&elsewhere)?;
        fs::write(elsewhere.join("churn.tar"), fitted.stdout)?;
        run(Command::new("tar").args(["-x", "--no-same-owner", "-f", "churn.tar"]).current_dir(&elsewhere))?;
        let docs = fs::read_to_string(self.workspace.root.join("docs/run-in-containers.md"))?;
        let copy = docs
            .lines()
            .find(|line| line.starts_with("tar ") && line.contains("docker compose exec"))
            .context("docs/run-in-containers.md does not say how a package is copied")?;
        let copy = put(copy, " onnx_models ", &format!(" '{}' ", elsewhere.display()))?;
        run(&mut self.script(&put(&copy, " fraud ", " churn ")?)?)?;
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
        let audit = fs::read_to_string(self.scratch.join("secrets/issuer/audit.jsonl"))?;
        for action in ["client.created", "client.revoked"] {
            ensure!(audit.contains(action), "{action} is not in the audit log: {audit}");
        }
        println!("a client was revoked, and gets no token any more; both is in the audit log");
        Ok(())
    }

    /// Long bodies at once fill neither memory nor what nginx writes to; what is too long is refused as a gateway would.
    fn show_long_bodies(&self, token: &str) -> Result<()> {
        let path = format!("{PREDICT}/batch");
        let body = requests::customers(LONG_BODY_ROWS);
        let request = http1::post(self.balanced, &path, Some(token), &body);
        let codes = at_once(LONG_BODIES, |_| code_of_long(http1::exchange(self.balanced, &request)))?;
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
        judge("Redis killed", &outcome, 0, LATE)
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
        judge("a gateway killed", &outcome, CONNECTIONS as u64, LATE_WITHOUT_GATEWAY)
    }

    /// A gateway says nothing any more, and the other answers in its place.
    fn show_frozen_gateway(&self, token: &str) -> Result<()> {
        let gateway = self.container("gateway-2")?;
        self.engine.ask(&["pause", &gateway])?;
        let long = http1::post(
            self.balanced,
            &format!("{PREDICT}/batch"),
            Some(token),
            &requests::customers(LONG_BODY_ROWS),
        );
        let answers = at_once(CONNECTIONS + LONG_BODIES_FROZEN, |place| {
            // One shortly after the other: those that wait for nginx to ask for addresses all go to the same one.
            pause(SHORTLY * place as u32);
            let begun = Instant::now();
            if place < CONNECTIONS {
                expect(self.predict(self.balanced, token), 200)?;
            } else {
                code_of_long(http1::exchange(self.balanced, &long))?;
            }
            Ok(begun.elapsed())
        });
        self.engine.ask(&["unpause", &gateway])?;
        let answers = answers.context("with a gateway that is frozen")?;
        let waited = [&answers[..CONNECTIONS], &answers[CONNECTIONS..]]
            .map(|of| of.iter().filter(|took| **took >= FROZEN[0]).count());
        println!(
            "a gateway frozen: {} of {CONNECTIONS} rows and {} of {LONG_BODIES_FROZEN} long bodies waited for it, and the other one \
             answered them all",
            waited[0], waited[1]
        );
        ensure!(waited[0] > 0, "nobody came to the frozen gateway: {answers:?}");
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
        judge("both gateways restarted, one after the other,", &outcome, 0, LATE_WITHOUT_GATEWAY)
    }

    /// Numbers, dashboards and a trace are there to see.
    fn show_observability(&self, token: &str) -> Result<()> {
        run(self
            .call(&["--profile", "observability", "up", "--detach", "--no-build"])
            .env("SCOREGATE_OTLP_ENDPOINT", "http://collector:4318")
            .env("SCOREGATE_TRACE_SAMPLE", "1"))?;
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
        let password = fs::read_to_string(self.scratch.join("secrets/grafana_password"))?;
        let admin = format!("admin:{}", password.trim());
        let dashboards: Value =
            serde_json::from_str(&fetch(self.grafana, "/api/search?type=dash-db", &["--user", &admin])?)?;
        ensure!(
            dashboards.as_array().is_some_and(|all| !all.is_empty()),
            "Grafana has no dashboard: {dashboards}"
        );
        expect(self.predict(self.gateway, token), 200)?;
        wait(PATIENCE, || {
            let traces: Value =
                serde_json::from_str(&fetch(self.collector, "/api/traces?service=scoregate", &[])?)?;
            let all = traces["data"].as_array();
            ensure!(all.is_some_and(|all| !all.is_empty()), "the collector has no trace: {traces}");
            Ok(())
        })?;
        println!("Prometheus scrapes a gateway, Grafana has its dashboard, and the collector shows a trace");
        Ok(())
    }

    /// What gateways log are JSON documents, and no secret is in any log.
    fn show_logs(&self, services: &[&str], token: &str) -> Result<()> {
        let mut secrets = vec![token.to_owned()];
        for name in ["redis_password", "cache_key"] {
            secrets.push(fs::read_to_string(self.scratch.join("secrets").join(name))?.trim().to_owned());
        }
        for service in services {
            let log = self.log(service)?;
            ensure!(!log.trim().is_empty(), "{service} logs nothing");
            let has_secret = secrets.iter().any(|secret| log.contains(secret));
            ensure!(!has_secret, "the log of {service} has a secret in it");
            ensure!(
                !log.contains("/health/ready\",\"method"),
                "the log of {service} has health checks in it"
            );
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

/// Asks so many times at the same moment.
fn at_once<T: Send>(times: usize, ask: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let ask = &ask;
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..times).map(|place| scope.spawn(move || ask(place))).collect();
        let answered = asked.into_iter().map(|asked| asked.join());
        answered.map(|answer| answer.map_err(|_| anyhow::anyhow!("a request panicked"))?).collect()
    })
}

/// The code of a problem document.
fn code(answer: &Answer) -> String {
    let document: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    document["code"].as_str().unwrap_or_default().to_owned()
}

/// The code that a long body is refused with: it has more rows than a caller has a minute, or more bytes than a gateway holds, so
/// either way a gateway has seen it.
fn code_of_long(answer: Result<Answer>) -> Result<String> {
    let answer = answer?;
    let code = code(&answer);
    ensure!(
        matches!(&*code, "too_many_rows" | "quota_exceeded" | "overloaded"),
        "a long body is answered {} with {}, expected a gateway's refusal",
        answer.status,
        answer.body
    );
    Ok(code)
}

/// Says how a load went while something happened; fails if more than so many requests did, or if answers came later than `limit`.
fn judge(what: &str, outcome: &Outcome, may_fail: u64, limit: Duration) -> Result<()> {
    let late = outcome.latency(0.99);
    println!(
        "{what} under load: {} of {} requests failed, and 99 of 100 answers took {:.3} s at most",
        outcome.errors(),
        outcome.requests(),
        late.as_secs_f64()
    );
    ensure!(outcome.errors() <= may_fail, "expected at most {may_fail} to fail: {}", outcome.tally());
    ensure!(late <= limit, "expected 99 of 100 answers within {limit:?}");
    Ok(())
}

/// What has been added.
fn since(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let added = |(name, count): (&String, &u64)| {
        (name.clone(), count - before.get(name).copied().unwrap_or_default())
    };
    now.iter().map(added).filter(|(_, count)| *count > 0).collect()
}
