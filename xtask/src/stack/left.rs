//! What a run leaves, by names that its process gives it, so that all of it is found however the run ends.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::engine::Engine;
use crate::workspace::Workspace;

/// What tags of images begin with while they are tested, so that nobody else's are touched.
const TAG: &str = "test-stack-";
/// Stages that the classic builder leaves without a name; the first is built upon the second.
const STAGES: [&str; 2] = ["cuda", "build"];

/// What the images are tagged with.
pub(super) fn tag() -> String {
    format!("{TAG}{}", std::process::id())
}

/// What the images are tagged with that Compose builds.
pub(super) fn tag_by_compose() -> String {
    format!("compose-{}", tag())
}

/// What Compose calls the stack.
pub(super) fn project() -> String {
    format!("scoregate-test-{}", std::process::id())
}

/// Where the stack's secrets and data are.
pub(super) fn scratch(workspace: &Workspace) -> PathBuf {
    workspace.target.join(format!("stack-{}", std::process::id()))
}

/// Removes everything.
pub(super) fn remove(workspace: &Workspace, engine: &Engine) -> Result<()> {
    let containers = remove_containers(engine);
    let images = remove_images(engine, |process| process == std::process::id());
    let scratch = remove_scratch(workspace);
    remove_outdated_stages(engine)?;
    containers.and(images).and(scratch)
}

/// Removes the secrets and data.
pub(super) fn remove_scratch(workspace: &Workspace) -> Result<()> {
    match fs::remove_dir_all(scratch(workspace)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
    .context("the stack's secrets and data are left behind")
}

/// Removes images of runs that were ended before they could do it; one that a container still uses stays.
pub(super) fn remove_forgotten(engine: &Engine) {
    let is_gone = |process: u32| kill(Pid::from_raw(process.cast_signed()), None) == Err(Errno::ESRCH);
    if let Err(error) = remove_images(engine, is_gone) {
        eprintln!("images of a run that is over are left: {error:#}");
    }
}

/// Fails if a container, a network or a volume is there.
pub(super) fn expect_none(engine: &Engine) -> Result<()> {
    for (kind, list, _) in kinds() {
        let left = of_project(engine, list)?;
        ensure!(left.is_empty(), "left behind ({kind}): {left}");
    }
    Ok(())
}

type Words = &'static [&'static str];

/// What Compose makes: what it is, how it is listed and removed.
fn kinds() -> [(&'static str, Words, Words); 3] {
    [
        ("containers", &["ps", "--all", "--quiet"], &["rm", "--force"]),
        ("networks", &["network", "ls", "--quiet"], &["network", "rm"]),
        ("volumes", &["volume", "ls", "--quiet"], &["volume", "rm"]),
    ]
}

fn of_project(engine: &Engine, list: Words) -> Result<String> {
    let filter = format!("label=com.docker.compose.project={}", project());
    engine.ask(&[list, &["--filter", &filter]].concat())
}

fn remove_containers(engine: &Engine) -> Result<()> {
    for (_, list, remove) in kinds() {
        for each in of_project(engine, list)?.lines() {
            engine.ask(&[remove, &[each]].concat())?;
        }
    }
    Ok(())
}

/// Removes the images of those runs of which this is true.
fn remove_images(engine: &Engine, of: impl Fn(u32) -> bool) -> Result<()> {
    let reference = format!("reference=scoregate*:*{TAG}*");
    let list = ["image", "ls", "--filter", &reference, "--format", "{{.Repository}}:{{.Tag}}"];
    for name in engine.ask(&list)?.lines() {
        let process = name.rsplit('-').next().and_then(|process| process.parse().ok());
        if process.is_some_and(&of) {
            engine.ask(&["image", "rm", name])?;
        }
    }
    Ok(())
}

/// Removes stages without a name, but for the newest, which the next build begins with.
fn remove_outdated_stages(engine: &Engine) -> Result<()> {
    for stage in STAGES {
        let filter = format!("label=scoregate.stage={stage}");
        let list = ["image", "ls", "--quiet", "--filter", "dangling=true", "--filter", &filter];
        for outdated in engine.ask(&list)?.lines().skip(1) {
            // One that something else is built upon, or that another run uses, stays.
            if engine.ask(&["image", "rm", outdated]).is_ok() {
                println!("removed an outdated stage `{stage}`: {outdated}");
            }
        }
    }
    Ok(())
}
