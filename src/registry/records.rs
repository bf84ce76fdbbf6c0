//! What the state directory remembers: which packages were accepted, so that a start need not try them again.

use std::io::Write;
use std::path::{Path, PathBuf};

use scoregate_model::acceptance::accept::{Accepted, REVISION};
use scoregate_model::package::digest_of;
use scoregate_model::runtime::Runtime;

/// Files `accepted/<key>.json` of the state directory.
#[derive(Debug)]
pub(super) struct Records {
    /// Absent if nothing can be written there: then everything is tried anew at each start.
    directory: Option<PathBuf>,
    /// What the answers of every package depend on besides the package.
    build: String,
}

impl Records {
    /// Those of the state directory, which is made. One that cannot be written to is named in the log, once.
    pub(super) fn open(state: &Path, runtime: &Runtime) -> Self {
        let directory = state.join("accepted");
        let writable = std::fs::create_dir_all(&directory)
            .and_then(|()| tempfile::Builder::new().prefix(".probe-").tempfile_in(&directory).map(drop));
        let build = runtime.build().to_string();
        match writable {
            Ok(()) => Self { directory: Some(directory), build },
            Err(error) => {
                tracing::warn!(
                    directory = %directory.display(),
                    error = %error,
                    "the state directory cannot be written (SCOREGATE_STATE_DIR): every package is tried anew at each start"
                );
                Self { directory: None, build }
            }
        }
    }

    /// The file of a package: another manifest, library, acceptance or way of running it is another file.
    fn file(&self, manifest_digest: &str, intra_op_threads: usize) -> Option<PathBuf> {
        let key = format!("{REVISION}\n{}\n{manifest_digest}\n{intra_op_threads}\n", self.build);
        let digest = digest_of(key.as_bytes());
        let name = digest.strip_prefix("sha256:").unwrap_or(&digest);
        Some(self.directory.as_ref()?.join(name).with_extension("json"))
    }

    /// What is known of a package, if it was accepted before.
    pub(super) fn find(&self, manifest_digest: &str, intra_op_threads: usize) -> Option<Accepted> {
        let text = std::fs::read(self.file(manifest_digest, intra_op_threads)?).ok()?;
        // One that cannot be read is as good as none: the package is tried again.
        let accepted: Accepted = serde_json::from_slice(&text).ok()?;
        (accepted.manifest_digest == manifest_digest).then_some(accepted)
    }

    /// Remembers that a package was accepted.
    pub(super) fn keep(&self, accepted: &Accepted, intra_op_threads: usize) {
        let Some(file) = self.file(&accepted.manifest_digest, intra_op_threads) else { return };
        if let Err(error) = write(&file, accepted) {
            tracing::warn!(
                file = %file.display(),
                error = %error,
                "a package was accepted and this could not be written down: it is tried anew at the next start"
            );
        }
    }
}

/// Writes a record in one step.
fn write(file: &Path, accepted: &Accepted) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    let mut fresh = tempfile::Builder::new().prefix(".record-").tempfile_in(directory)?;
    fresh.write_all(&serde_json::to_vec(accepted)?)?;
    fresh.as_file().sync_all()?;
    fresh.persist(file)?;
    Ok(())
}
