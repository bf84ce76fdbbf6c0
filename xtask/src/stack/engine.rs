//! A container engine, asked through its command line.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::left;
use crate::workspace::{capture, run, succeeds, succeeds_within};

/// How long an image may take to be pulled, before it counts as out of reach.
const PULL_LIMIT: Duration = Duration::from_secs(300);
/// How long to look for a newer image than the one that is there.
const REFRESH_LIMIT: Duration = Duration::from_secs(60);
/// The builder whose images the engine itself has; others keep them to themselves.
pub(super) const BUILDER: (&str, &str) = ("BUILDX_BUILDER", "default");

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

    /// Pulls `image` again if that can be done soon: an official one is mended without another name.
    pub(super) fn refresh(&self, image: &str) {
        let pulled =
            succeeds_within(self.command(&["pull", "--quiet", image]).stdout(Stdio::null()), REFRESH_LIMIT);
        if !pulled.unwrap_or(false) {
            eprintln!("{image} cannot be pulled again, and is used as it is here");
        }
    }

    /// Builds a target of the Dockerfile, as an image that says of which run it is.
    pub(super) fn build(&self, root: &Path, target: &str, image: &str) -> Result<()> {
        eprintln!("building {image}");
        let revision = format!("org.opencontainers.image.revision={}", left::tag());
        run(self
            .command(&["build", "--label", &revision, "--target", target, "--tag", image, "."])
            .env(BUILDER.0, BUILDER.1)
            .current_dir(root))
        .with_context(|| format!("the target {target} of the Dockerfile cannot be built"))
    }
}
