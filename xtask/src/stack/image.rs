//! What the images are: their size, what runs in them and as whom, what they are made of, and what is known against that.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::engine::Engine;
use super::left;
use crate::onnxruntime;
use crate::system::DEBSECAN;
use crate::workspace::{Workspace, succeeds_within};

/// What the gateway's image may have beyond its base.
const MAX_BYTES: u64 = 70_000_000;
/// What the images are built upon.
pub(super) const BASE: &str = "debian:bookworm-slim";
/// Where an image lists what is in it.
const SBOM: &str = "/usr/local/share/scoregate/sbom.cdx.json";
/// How long the list of Debian's vulnerabilities may take to arrive.
const LIST_LIMIT: Duration = Duration::from_secs(60);

/// What the image of a target is called.
pub(super) fn name(target: &str) -> String {
    let repository = if target == "gateway" { "scoregate" } else { &format!("scoregate-{target}") };
    format!("{repository}:{}", left::tag())
}

/// Prints what the images are, and fails where one is not what it should be.
pub(super) fn report(engine: &Engine, targets: &[&str]) -> Result<()> {
    let base = size(engine, BASE)?;
    for target in targets {
        let image = name(target);
        let whole = size(engine, &image)?;
        let own = whole.saturating_sub(base);
        println!("{image}: {:.1} MB, of which {:.1} MB beyond {BASE}", whole as f64 / 1e6, own as f64 / 1e6);
        println!("{}", engine.ask(&["history", "--format", "  {{.Size}}\t{{.CreatedBy}}", &image])?);
        ensure!(
            *target != "gateway" || own <= MAX_BYTES,
            "the gateway's image has {own} bytes beyond its base, expected at most {MAX_BYTES}"
        );
        check_settings(engine, target)?;
        check_list(engine, target)?;
    }
    println!("for comparison, whole and as published: Triton's 11,000 MB, MLServer's 9,000 MB");
    Ok(())
}

/// As whom an image runs, and what.
fn check_settings(engine: &Engine, target: &str) -> Result<()> {
    let described: Value = serde_json::from_str(&engine.ask(&["image", "inspect", &name(target)])?)?;
    let config = &described[0]["Config"];
    let health = json!(["CMD", "scoregate", "healthcheck"]);
    let (title, entrypoint, command, health) = match target {
        "trainer" => ("Scoregate trainer", "scoregate-trainer", "--help", Value::Null),
        "gpu" => ("Scoregate for GPUs", "scoregate", "serve", health),
        _ => ("Scoregate", "scoregate", "serve", health),
    };
    for (what, found, expected) in [
        ("user", &config["User"], json!("65532:65532")),
        ("entry point", &config["Entrypoint"], json!([entrypoint])),
        ("command", &config["Cmd"], json!([command])),
        ("health check", &config["Healthcheck"]["Test"], health),
        ("title", &config["Labels"]["org.opencontainers.image.title"], json!(title)),
        ("revision", &config["Labels"]["org.opencontainers.image.revision"], json!(left::tag())),
    ] {
        ensure!(*found == expected, "the image of {target} has {found} as its {what}, expected {expected}");
    }
    Ok(())
}

/// What an image lists of what is in it.
fn check_list(engine: &Engine, target: &str) -> Result<()> {
    let sbom: Value = serde_json::from_str(&inside(engine, target, SBOM)?)
        .with_context(|| format!("the SBOM of {target} is no JSON"))?;
    let components =
        sbom["components"].as_array().with_context(|| format!("the SBOM of {target} has no components"))?;
    let purls: Vec<&str> = components.iter().filter_map(|component| component["purl"].as_str()).collect();
    let count = |kind: &str| purls.iter().filter(|purl| purl.starts_with(kind)).count();
    println!(
        "{SBOM} of {target}: {} crates, {} Debian packages, {} of Python's",
        count("pkg:cargo/"),
        count("pkg:deb/"),
        count("pkg:pypi/")
    );
    // Some of each that have to be there: a scanner that finds nothing would list nothing, too.
    let (a_crate, library) = match target {
        "trainer" => ("pkg:cargo/linfa-logistic@", "onnxruntime"),
        "gpu" => ("pkg:cargo/tokio@", "onnxruntime-gpu"),
        _ => ("pkg:cargo/tokio@", "onnxruntime"),
    };
    let library = format!("pkg:pypi/{library}@{}", onnxruntime::VERSION);
    for expected in [a_crate, "pkg:deb/debian/libc6@", &library] {
        ensure!(
            purls.iter().any(|purl| purl.starts_with(expected)),
            "the SBOM of {target} does not list {expected}"
        );
    }
    Ok(())
}

fn size(engine: &Engine, image: &str) -> Result<u64> {
    let size = engine.ask(&["image", "inspect", "--format", "{{.Size}}", image])?;
    size.parse().with_context(|| format!("the engine gives {image}'s size as `{size}`"))
}

/// A file of a target's image.
fn inside(engine: &Engine, target: &str, path: &str) -> Result<String> {
    engine.ask(&["run", "--rm", "--network", "none", "--entrypoint", "cat", &name(target), path])
}

/// Asks Debian's security team about the packages in the image. Crates are asked about by `cargo xtask deny`.
pub(super) fn scan(workspace: &Workspace, engine: &Engine) -> Result<()> {
    let skipped = |why: &str| {
        eprintln!(
            "\nSKIPPED: the image's Debian packages were NOT checked for vulnerabilities, because {why}. Crates are checked by \
             `cargo xtask deny`.\n"
        );
        Ok(())
    };
    if !(DEBSECAN.present)() {
        return skipped("there is no debsecan here, which only Debian and its kin have");
    }
    let directory = left::scratch(workspace);
    fs::create_dir_all(&directory)?;
    let (status, found) = (directory.join("status"), directory.join("found"));
    fs::write(&status, inside(engine, "gateway", "/var/lib/dpkg/status")?)?;
    let mut debsecan = Command::new("debsecan");
    debsecan.args(["--suite", "bookworm", "--only-fixed", "--status"]).arg(&status);
    debsecan.stdout(fs::File::create(&found)?);
    if !succeeds_within(&mut debsecan, LIST_LIMIT)? {
        return skipped("their list could not be fetched; the reason is above");
    }
    let found = fs::read_to_string(found)?;
    if !found.trim().is_empty() {
        let created = engine.ask(&["image", "inspect", "--format", "{{.Created}}", BASE])?;
        bail!(
            "vulnerabilities that Debian has mended, of {BASE} as it was made on {created}; pull a newer one:\n{found}"
        );
    }
    println!("Debian knows of no vulnerability in the image's packages that it has mended");
    Ok(())
}
