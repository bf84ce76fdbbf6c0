//! What must come from the operating system: root gets it installed, everyone else is told the one line.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{run, succeeds};

/// A Debian package, and how to see that what it brings is there already (from wherever it came).
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) present: fn() -> bool,
}

/// `strace`, with which tests prove what the gateway opens and connects to.
pub(crate) const STRACE: Package =
    Package { name: "strace", present: || succeeds(Command::new("strace").arg("--version")) };

/// `curl`, which the pages of the documentation call.
pub(crate) const CURL: Package =
    Package { name: "curl", present: || succeeds(Command::new("curl").arg("--version")) };

/// `redis-server`, which is sentinel and cluster as well, and brings `redis-cli` along.
pub(crate) const REDIS: Package = Package {
    name: "redis-server",
    present: || {
        let is_there = |program: &str| succeeds(Command::new(program).arg("--version"));
        is_there("redis-server") && is_there("redis-cli")
    },
};

/// `debsecan`, which knows of vulnerabilities in Debian's packages.
pub(crate) const DEBSECAN: Package =
    Package { name: "debsecan", present: || succeeds(Command::new("debsecan").arg("--help")) };

/// `chromium`, which shows that pages may call the gateway where they should, and only there.
pub(crate) const CHROMIUM: Package =
    Package { name: "chromium", present: || succeeds(Command::new("chromium").arg("--version")) };

/// `promtool`, which checks and plays the rules of `deploy/prometheus`, and comes with Prometheus.
pub(crate) const PROMETHEUS: Package =
    Package { name: "prometheus", present: || succeeds(Command::new("promtool").arg("--version")) };

/// Python itself.
pub(crate) const PYTHON: Package =
    Package { name: "python3", present: || succeeds(Command::new("python3").arg("--version")) };

/// Virtual environments that bring pip along, which Debian splits from Python.
pub(crate) const PYTHON_VENV: Package = Package {
    name: "python3-venv",
    present: || succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"])),
};

/// Whether packages can be installed here.
pub(crate) fn can_install() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

/// Makes sure of every package: installs what is missing as root, otherwise fails with the line that does.
pub(crate) fn require(packages: &[&Package]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !(package.present)()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let line = format!("apt-get update && apt-get install --yes --no-install-recommends {names}");
    if !can_install() {
        bail!("missing on this system: {names} (Debian's names); install them and run this again");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("missing on this system: {names}; run this once, then try again:\n  sudo sh -c '{line}'");
    }
    eprintln!("installing {names}");
    run(Command::new("sh").args(["-ec", &line]).env("DEBIAN_FRONTEND", "noninteractive"))
        .with_context(|| format!("could not install {names}; the line was: {line}"))?;
    for package in packages {
        if !(package.present)() {
            bail!("{} is installed and still not usable; look at what apt-get printed above", package.name);
        }
    }
    Ok(())
}
