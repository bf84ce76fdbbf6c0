//! Fetches the pinned ONNX Runtime to where the gateway, the trainer and the tests look for it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::wheel::{Build, Wheel};
use crate::workspace::Workspace;

/// The version of ONNX Runtime that everything is tested with.
pub(crate) const VERSION: &str = "1.31.1";

/// Microsoft's own library as the Python package carries it. Every wheel of one version and processor holds
/// the same library, so any interpreter's wheel will do.
const ONNXRUNTIME: Wheel = Wheel {
    project: "onnxruntime",
    version: VERSION,
    member_suffix: "/capi/libonnxruntime.so.1.31.1",
    interpreter: &["--implementation=cp", "--python-version=3.12", "--abi=cp312"],
    builds: &[
        Build {
            arch: "x86_64",
            platform: "manylinux_2_28_x86_64",
            wheel_sha256: "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536",
            member_sha256: "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3",
        },
        Build {
            arch: "aarch64",
            platform: "manylinux_2_28_aarch64",
            wheel_sha256: "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc",
            member_sha256: "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467",
        },
    ],
};

/// Makes sure of the library and returns its path, or the one that `ORT_DYLIB_PATH` names instead.
pub(crate) fn fetch(workspace: &Workspace) -> Result<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "the one variable that the gateway and its tasks share")]
    if let Some(own) = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from) {
        if !own.is_file() {
            bail!("ORT_DYLIB_PATH names {}, where no file is; correct it or unset it", own.display());
        }
        eprintln!("using ONNX Runtime from ORT_DYLIB_PATH");
        return Ok(own);
    }
    provide(workspace).with_context(|| {
        format!(
            "could not provide ONNX Runtime; another copy of {VERSION} is used where ORT_DYLIB_PATH names it"
        )
    })
}

/// Makes sure of the library where the tests look for it, whatever `ORT_DYLIB_PATH` names, and returns its path.
pub(crate) fn provide(workspace: &Workspace) -> Result<PathBuf> {
    let library = workspace.target.join("onnxruntime").join("libonnxruntime.so");
    ONNXRUNTIME.fetch(workspace, &library)?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_same_library() {
        let pins = include_str!("../../deploy/image/onnxruntime.txt");
        let wheels = ONNXRUNTIME.builds.iter().map(|build| format!("--hash=sha256:{}", build.wheel_sha256));
        let expected: Vec<String> =
            [format!("{}=={}", ONNXRUNTIME.project, ONNXRUNTIME.version)].into_iter().chain(wheels).collect();
        let found: Vec<&str> = pins
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.trim().trim_end_matches(" \\"))
            .collect();
        assert_eq!(found, expected);
    }
}
