//! Compose, of either generation.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::workspace::{capture, succeeds};

/// A Compose that works.
pub(super) struct Compose {
    words: Vec<PathBuf>,
    version: String,
}

impl Compose {
    /// What people call on this machine, and the one that was `fetched`: of each generation the first.
    pub(super) fn all(fetched: PathBuf) -> Result<Vec<Self>> {
        let mut found: Vec<Self> = Vec::new();
        for words in [vec!["docker".into(), "compose".into()], vec!["docker-compose".into()], vec![fetched]] {
            let mut compose = Self { words, version: String::new() };
            if !succeeds(compose.command().arg("version")) {
                continue;
            }
            compose.version = capture(compose.command().args(["version", "--short"]))?;
            if !found.iter().any(|other| other.is_old() == compose.is_old()) {
                found.push(compose);
            }
        }
        Ok(found)
    }

    /// Whether it is docker-compose 1.
    pub(super) fn is_old(&self) -> bool {
        self.version.trim_start_matches('v').starts_with("1.")
    }

    /// Whether it can build images here: the new one leaves that to a plugin of Docker's.
    pub(super) fn builds(&self) -> bool {
        self.is_old() || succeeds(Command::new("docker").args(["buildx", "version"]))
    }

    pub(super) fn name(&self) -> String {
        format!("Compose {}", self.version)
    }

    /// How it is called from a shell.
    pub(super) fn in_shell(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|word| format!("'{}'", word.display())).collect();
        words.join(" ")
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }
}
