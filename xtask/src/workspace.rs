//! Where the repository and cargo's target directory are, and how commands are run there.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The repository and what cargo makes of it.
pub(crate) struct Workspace {
    /// The directory of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, which also keeps what the tasks fetch.
    pub(crate) target: PathBuf,
    cargo: OsString,
}

impl Workspace {
    /// Asks cargo, which knows about `CARGO_TARGET_DIR` and its own configuration files.
    pub(crate) fn locate() -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "cargo tells its children which cargo they run under")]
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the xtask crate lies in no workspace")?
            .to_path_buf();
        let described = capture(Command::new(&cargo).current_dir(&root).args([
            "metadata",
            "--no-deps",
            "--format-version=1",
        ]))?;
        let described: serde_json::Value =
            serde_json::from_str(&described).context("cargo metadata printed something other than JSON")?;
        let target = described["target_directory"]
            .as_str()
            .context("cargo metadata named no target_directory")?
            .into();
        Ok(Self { root, target, cargo })
    }

    /// A cargo command at the root of the repository.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        command
    }

    /// The path of a binary that `cargo build` made.
    pub(crate) fn binary(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }

    /// A command that sees none of the caller's own gateway settings, so that a task always does the same.
    pub(crate) fn clean_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        #[expect(
            clippy::disallowed_methods,
            reason = "what is not known by name can only be found by looking"
        )]
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("SCOREGATE_") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// Runs a command to its end; what it prints goes to standard error, which leaves standard output to the task.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("could not start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}; its own words are above");
    }
    Ok(())
}

/// Runs a command to its end and gives back what it printed on standard output, trimmed.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}; its own words are above", output.status);
    }
    let printed = String::from_utf8(output.stdout)
        .with_context(|| format!("`{shown}` printed something other than UTF-8"))?;
    Ok(printed.trim().to_owned())
}

/// Whether a command starts and succeeds; it prints nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether a command succeeds before `limit`; one that takes longer is ended.
pub(crate) fn succeeds_within(command: &mut Command, limit: Duration) -> Result<bool> {
    let shown = show(command);
    let mut child =
        command.stdin(Stdio::null()).spawn().with_context(|| format!("could not start `{shown}`"))?;
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        pause(Duration::from_millis(50));
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

/// Waits between two looks at another process, which has no other way of saying that something happened.
pub(crate) fn pause(duration: Duration) {
    #[expect(clippy::disallowed_methods, reason = "another process can only be polled")]
    std::thread::sleep(duration);
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let mut shown = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        shown.push(' ');
        shown.push_str(&argument.to_string_lossy());
    }
    shown
}
