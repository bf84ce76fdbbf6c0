//! The local stack while it runs: how it is called, asked and removed.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::compose::Compose;
use super::engine::Engine;
use super::left;
use crate::http1::{self, Answer};
use crate::requests::{PREDICT, REFERENCE};
use crate::server::free_address;
use crate::workspace::{Workspace, capture, pause, run};

/// For everything that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// All that may run, for what is asked of the whole stack.
const PROFILES: &str = "scale,observability";
/// An empty file in place of `.env`.
const NO_SETTINGS: &str = "no.env";

/// Containers, networks and volumes under a name of their own.
pub(super) struct Stack<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) engine: &'a Engine,
    pub(super) compose: &'a Compose,
    /// Its secrets, settings and data.
    pub(super) scratch: PathBuf,
    pub(super) gateway: SocketAddr,
    pub(super) balanced: SocketAddr,
    pub(super) issuer: SocketAddr,
    pub(super) prometheus: SocketAddr,
    pub(super) grafana: SocketAddr,
    pub(super) collector: SocketAddr,
}

impl<'a> Stack<'a> {
    /// A stack that nothing of runs yet.
    pub(super) fn new(workspace: &'a Workspace, engine: &'a Engine, compose: &'a Compose) -> Result<Self> {
        let scratch = left::scratch(workspace);
        // One model of data, beside the one that is simulated; and settings that may be changed.
        for (from, to) in
            [("tests/data/saas_churn.csv", "data"), ("deploy/compose/gateway/scoregate.toml", "settings")]
        {
            let (from, to) = (workspace.root.join(from), scratch.join(to));
            fs::create_dir_all(&to)?;
            fs::copy(&from, to.join(from.file_name().context("a file has a name")?))?;
        }
        // Settings of whoever runs this are not the stack's.
        fs::write(scratch.join(NO_SETTINGS), "")?;
        Ok(Self {
            workspace,
            engine,
            compose,
            scratch,
            gateway: free_address(0)?,
            balanced: free_address(0)?,
            issuer: free_address(0)?,
            prometheus: free_address(0)?,
            grafana: free_address(0)?,
            collector: free_address(0)?,
        })
    }

    /// Stops and removes all of it, and looks whether anything is left.
    pub(super) fn remove(&self) -> Result<()> {
        let mut down = self.call(&["down", "--volumes", "--remove-orphans", "--timeout", "5"]);
        let removed = run(down.env("COMPOSE_PROFILES", PROFILES));
        left::remove_scratch(self.workspace)?;
        removed?;
        left::expect_none(self.engine)
    }

    /// Prints the last words of every container.
    pub(super) fn print_logs(&self) {
        let mut logs = self.call(&["logs", "--no-color", "--tail", "50"]);
        if let Err(error) = run(logs.env("COMPOSE_PROFILES", PROFILES)) {
            eprintln!("no logs: {error:#}");
        }
    }

    /// A Compose command for this stack.
    pub(super) fn call(&self, arguments: &[&str]) -> Command {
        let mut command = self.compose.command();
        command.arg("--env-file").arg(self.scratch.join(NO_SETTINGS)).args(arguments);
        self.at_home(command)
    }

    /// A script in which `docker compose` is the Compose of this stack.
    pub(super) fn script(&self, text: &str) -> Result<Command> {
        let no_settings = self.scratch.join(NO_SETTINGS);
        let compose = format!("{} --env-file '{}'", self.compose.in_shell(), no_settings.display());
        let mut command = Command::new("bash");
        command.args(["-e", "-o", "pipefail", "-c", &put(text, "docker compose", &compose)?]);
        Ok(self.at_home(command))
    }

    pub(super) fn secrets(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.arg("deploy/secrets.sh").args(arguments);
        self.at_home(command)
    }

    /// A command in the repository, told what is this stack's.
    pub(super) fn at_home(&self, mut command: Command) -> Command {
        command
            .current_dir(&self.workspace.root)
            .env("COMPOSE_PROJECT_NAME", left::project())
            .env("SCOREGATE_TAG", left::tag())
            .env("SCOREGATE_SECRETS", self.scratch.join("secrets"))
            .env("SCOREGATE_SETTINGS", self.scratch.join("settings"))
            .env("SCOREGATE_DATA", self.scratch.join("data"))
            .env("SCOREGATE_PORT", self.gateway.port().to_string())
            .env("SCOREGATE_BALANCED_PORT", self.balanced.port().to_string())
            .env("SCOREGATE_ISSUER_PORT", self.issuer.port().to_string())
            .env("SCOREGATE_PUBLIC_URL", self.public_url())
            .env("PROMETHEUS_PORT", self.prometheus.port().to_string())
            .env("GRAFANA_PORT", self.grafana.port().to_string())
            .env("COLLECTOR_PORT", self.collector.port().to_string())
            .env_remove("SCOREGATE_OTLP_ENDPOINT")
            .env_remove("SCOREGATE_TRACE_SAMPLE")
            .env_remove("SCOREGATE_LOG")
            .env_remove("SCOREGATE_LOG_ACCESS")
            .env_remove("COMPOSE_PROFILES")
            .env_remove("COMPOSE_FILE");
        command
    }

    /// Where clients say that the gateways are.
    pub(super) fn public_url(&self) -> String {
        format!("http://{}", self.balanced)
    }

    pub(super) fn container(&self, service: &str) -> Result<String> {
        let project = format!("label=com.docker.compose.project={}", left::project());
        let service_label = format!("label=com.docker.compose.service={service}");
        let found =
            self.engine.ask(&["ps", "--all", "--quiet", "--filter", &project, "--filter", &service_label])?;
        ensure!(
            !found.is_empty() && !found.contains('\n'),
            "expected one container of {service}, found `{found}`"
        );
        Ok(found)
    }

    pub(super) fn wait_healthy(&self, services: &[&str]) -> Result<()> {
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
    pub(super) fn log(&self, service: &str) -> Result<String> {
        let output = self.engine.command(&["logs", &self.container(service)?]).output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// How many requests to score nginx says each gateway has answered last, by address.
    pub(super) fn answered(&self) -> Result<BTreeMap<String, u64>> {
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

    pub(super) fn predict(&self, address: SocketAddr, token: &str) -> Result<Answer> {
        http1::exchange(address, &http1::post(address, PREDICT, Some(token), REFERENCE))
    }

    /// The version that answers.
    pub(super) fn version(&self, address: SocketAddr, token: &str) -> Result<String> {
        let answer: Value = serde_json::from_str(&expect(self.predict(address, token), 200)?)?;
        Ok(answer["model_version"].as_str().context("an answer without a version")?.to_owned())
    }

    pub(super) fn ask(&self, address: SocketAddr, path: &str, token: &str) -> Result<Value> {
        let answer = http1::exchange(address, &http1::get(address, path, Some(token)));
        Ok(serde_json::from_str(&expect(answer, 200)?)?)
    }
}

/// A token for a client that `clients create` has printed.
pub(super) fn token(issuer: SocketAddr, client: &str) -> Result<String> {
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
pub(super) fn fetch(address: SocketAddr, path: &str, more: &[&str]) -> Result<String> {
    capture(Command::new("curl").args(["-sS", "--fail", &format!("http://{address}{path}")]).args(more))
}

/// The body of an answer that has this status.
pub(super) fn expect(answer: Result<Answer>, status: u16) -> Result<String> {
    let answer = answer?;
    ensure!(answer.status == status, "answered {}, expected {status}: {}", answer.status, answer.body);
    Ok(answer.body)
}

/// Tries until it works.
pub(super) fn wait<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if begun.elapsed() > limit => {
                return Err(error.context(format!("not after {} s", limit.as_secs())));
            }
            // What took long is not seen much later by being looked at rarely.
            Err(_) => {
                pause((begun.elapsed() / 20).clamp(Duration::from_millis(5), Duration::from_millis(500)))
            }
        }
    }
}

/// A text with another word in it. It has to have the word: a page that says something else by now is not taken at its old word.
pub(super) fn put(text: &str, word: &str, other: &str) -> Result<String> {
    ensure!(text.contains(word), "expected `{word}` in: {text}");
    Ok(text.replace(word, other))
}
