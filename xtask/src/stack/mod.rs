//! `cargo xtask test-stack`: the images and the local stack, built and run for real by whatever container engine there is.

mod compose;
mod engine;
mod image;
mod left;
mod running;
mod show;

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::compose::Compose;
use self::engine::Engine;
use self::running::Stack;
use crate::system::{self, CURL, DEBSECAN};
use crate::tools;
use crate::workspace::Workspace;

/// What is built on and run beside, by the names of the Dockerfile and of docker-compose.yml.
const OFFICIAL: [&str; 3] = ["rust:1.95-bookworm", image::BASE, "redis:7-bookworm"];
/// What more the profile `scale` needs.
const NGINX: &str = "nginx:1.28-bookworm";
/// What more the profile `observability` needs.
const OBSERVABILITY: [&str; 3] =
    ["prom/prometheus:v3.5.0", "grafana/grafana:12.1.1", "jaegertracing/jaeger:2.21.0"];

/// What is tested.
#[derive(Args)]
pub(crate) struct Options {
    /// Build the `gpu` target too, which fetches some gigabytes.
    #[arg(long)]
    gpu: bool,
}

/// Builds the images, says what is in them, and shows what the stack does; without an engine it says loudly that it did not.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let Some(engine) = Engine::find() else {
        skipped("no engine answers to `docker`");
        return Ok(());
    };
    let missing = |images: &[&'static str]| images.iter().copied().find(|image| !engine.provide(image));
    if let Some(missing) = missing(&OFFICIAL) {
        skipped(&format!("{} has no image {missing} and cannot pull it", engine.name()));
        return Ok(());
    }
    // debsecan is Debian's own; elsewhere the scan is left out.
    system::require(if system::can_install() { &[&CURL, &DEBSECAN] } else { &[&CURL] })?;
    let without = [("scale", missing(&[NGINX])), ("observability", missing(&OBSERVABILITY))];
    let composes = Compose::all(tools::compose(workspace)?)?;
    left::remove_forgotten(&engine);
    engine.refresh(image::BASE);
    removed_in_the_end(
        || build_and_show(workspace, &engine, options, &composes, without),
        || left::remove(workspace, &engine),
    )
}

fn build_and_show(
    workspace: &Workspace,
    engine: &Engine,
    options: &Options,
    composes: &[Compose],
    without: [(&str, Option<&str>); 2],
) -> Result<()> {
    let targets = if options.gpu { &["gateway", "trainer", "gpu"][..] } else { &["gateway", "trainer"] };
    let started = Instant::now();
    for target in targets {
        engine.build(&workspace.root, target, &image::name(target))?;
    }
    if !options.gpu {
        eprintln!(
            "\nNOT BUILT: the target gpu (--gpu builds it); `cargo xtask test` reads it with a linter."
        );
    }
    for (profile, missing) in without {
        if let Some(missing) = missing {
            eprintln!(
                "NOT RUN: the profile {profile}, since {} has no image {missing} and cannot pull it; `cargo xtask test` has \
                 Compose read it.",
                engine.name()
            );
        }
    }
    if !composes.iter().any(Compose::is_old) {
        eprintln!("NOT RUN: docker-compose 1, which this machine does not have.");
    }
    println!("\nimages built in {:.0} s with {}", started.elapsed().as_secs_f64(), engine.name());
    image::report(engine, targets)?;
    image::scan(workspace, engine)?;

    let [has_nginx, has_observability] = without.map(|(_, missing)| missing.is_none());
    for (place, compose) in composes.iter().enumerate() {
        let stack = Stack::new(workspace, engine, compose)?;
        println!("\n== {}", compose.name());
        // What differs between them is over once the containers run.
        let shown = match place {
            0 => stack.show_all(has_nginx, has_observability),
            _ => stack.show_first_score().map(drop),
        };
        if shown.is_err() {
            stack.print_logs();
        }
        let removed = stack.remove();
        shown.and(removed).with_context(|| format!("with {}", compose.name()))?;
        println!("everything stopped and removed");
    }
    Ok(())
}

/// Does something and removes what it leaves, whatever comes of it, be it ended by Ctrl-C and its kin.
fn removed_in_the_end(
    run: impl FnOnce() -> Result<()>,
    remove: impl Fn() -> Result<()> + Sync,
) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("could not listen for signals")?;
    let handle = signals.handle();
    let remove = &remove;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // Nobody is left to hear about a failure here.
                let _ = remove();
                // The status that shells give to a command which a signal ended.
                std::process::exit(128 + signal);
            }
        });
        let done = run();
        let removed = remove();
        handle.close();
        done.and(removed)
    })
}

fn skipped(why: &str) {
    eprintln!(
        "\nSKIPPED: the images were NOT built and the local stack was NOT run, because {why}. Dockerfile, docker-compose.yml and \
         manifests are read by `cargo xtask test` all the same.\n"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_official_images_are_those_of_the_files() {
        let files =
            [include_str!("../../../Dockerfile"), include_str!("../../../docker-compose.yml")].concat();
        let mut named: Vec<&str> = files
            .lines()
            .filter_map(|line| line.strip_prefix("FROM ").or_else(|| line.trim().strip_prefix("image: ")))
            .filter_map(|line| line.split(' ').next())
            .filter(|image| image.contains(':') && !image.contains('$'))
            .collect();
        named.sort_unstable();
        named.dedup();
        let mut expected = [&OFFICIAL[..], &[NGINX], &OBSERVABILITY].concat();
        expected.sort_unstable();
        assert_eq!(named, expected);
    }
}
