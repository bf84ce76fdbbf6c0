//! A container engine, asked through its command line.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::workspace::{capture, run, succeeds, succeeds_within};

/// How long an image may take to be pulled, before it counts as out of reach.
const PULL_LIMIT: Duration = Duration::from_secs(300);

/// Docker, or what answers in its place.
pub(super) struct Engine {
    version: String,
}

impl Engine {
    /// The engine, if there is one.
    pub(super) fn find() -> Option<Self> {
        if !succeeds(Command::new("docker").arg("info")) {
            return None;
        }
        let version =
            Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output().ok()?;
        Some(Self { version: String::from_utf8_lossy(&version.stdout).trim().to_owned() })
    }

    pub(super) fn name(&self) -> String {
        format!("Docker {}", self.version)
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(arguments);
        command
    }

    /// What a command prints.
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<String> {
        capture(&mut self.command(arguments))
    }

    /// Whether `image` is there, or can be pulled.
    pub(super) fn provide(&self, image: &str) -> bool {
        if succeeds(&mut self.command(&["image", "inspect", image])) {
            return true;
        }
        eprintln!("pulling {image}");
        succeeds_within(self.command(&["pull", "--quiet", image]).stdout(Stdio::null()), PULL_LIMIT)
            .unwrap_or(false)
    }

    /// Builds a target of the Dockerfile. It may reach what this machine reaches, a proxy on its loopback interface for one.
    pub(super) fn build(&self, root: &Path, target: &str, image: &str) -> Result<()> {
        eprintln!("building {image}");
        let revision = format!("REVISION={}", super::tag());
        run(self
            .command(&["build", "--network", "host", "--build-arg", &revision])
            .args(["--target", target, "--tag", image, "."])
            .current_dir(root))
        .with_context(|| format!("the target {target} of the Dockerfile cannot be built"))
    }
}
