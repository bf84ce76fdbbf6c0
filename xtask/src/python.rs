//! Python for fetching wheels and for the libraries that tests and benchmarks compare with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::system::{self, PYTHON, PYTHON_VENV};
use crate::wheel::hex;
use crate::workspace::{Workspace, capture, run, succeeds};

/// The oldest Python for which the pinned libraries have wheels.
const OLDEST: (u32, u32) = (3, 11);

/// A Python command that can run `-m pip`: the system's where it has pip, else a virtual environment's.
pub(crate) fn with_pip(workspace: &Workspace) -> Result<Command> {
    check_version()?;
    let mut python = Command::new("python3");
    if !succeeds(Command::new("python3").args(["-m", "pip", "--version"])) {
        let directory = workspace.target.join("pip");
        if !succeeds(Command::new(interpreter(&directory)).args(["-m", "pip", "--version"])) {
            create(&directory)?;
        }
        python = Command::new(interpreter(&directory));
    }
    // Somebody who forbids pip outside virtual environments means installing, and this only downloads.
    python.env("PIP_REQUIRE_VIRTUALENV", "0").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    Ok(python)
}

/// A virtual environment with exactly the packages of `requirements`, made anew only when that file changes.
///
/// Returns its interpreter. Debian forbids pip outside virtual environments, and nothing here needs it there.
pub(crate) fn environment(directory: &Path, requirements: &Path) -> Result<PathBuf> {
    let version = check_version()?;
    let wanted =
        fs::read(requirements).with_context(|| format!("could not read {}", requirements.display()))?;
    let wanted = hex(&Sha256::new().chain_update(&wanted).chain_update(&version).finalize());
    let stamp = directory.join("requirements.sha256");
    let python = interpreter(directory);
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) && python.exists() {
        return Ok(python);
    }
    eprintln!("preparing {} for {}", directory.display(), requirements.display());
    create(directory)?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"])
        .arg("--requirement")
        .arg(requirements))
    .context("could not install the pinned Python packages; is the package index in reach?")?;
    fs::write(&stamp, wanted).with_context(|| format!("could not write {}", stamp.display()))?;
    Ok(python)
}

fn create(directory: &Path) -> Result<()> {
    system::require(&[&PYTHON_VENV])?;
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(directory))
}

fn interpreter(directory: &Path) -> PathBuf {
    directory.join("bin/python")
}

fn check_version() -> Result<String> {
    system::require(&[&PYTHON])?;
    let version = capture(Command::new("python3").args(["-c", "import sys; print(*sys.version_info[:2])"]))?;
    let mut parts = version.split(' ').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
        bail!("python3 gave its version as `{version}`, expected two numbers");
    };
    if (major, minor) < OLDEST {
        bail!("python3 is {major}.{minor}; the pinned packages need {}.{} or newer", OLDEST.0, OLDEST.1);
    }
    Ok(version)
}
