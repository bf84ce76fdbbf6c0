//! `cargo xtask test-stack`: the images and the local stack, built and run for real by whatever container engine there is.

mod compose;
mod engine;
mod image;
mod show;

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::compose::Compose;
use self::engine::Engine;
use self::show::Stack;
use crate::system::{self, CURL};
use crate::tools;
use crate::workspace::Workspace;

/// What the images are tagged with while they are tested, so that nobody else's are touched, another run's neither.
fn tag() -> String {
    format!("test-stack-{}", std::process::id())
}

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
    system::require(&[&CURL])?;
    let without = [("scale", missing(&[NGINX])), ("observability", missing(&OBSERVABILITY))];
    let composes = Compose::all(tools::compose(workspace)?)?;

    let shown = build_and_show(workspace, &engine, options, &composes, without);
    let removed = image::remove(&engine);
    shown.and(removed)
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
    println!("\nimages built in {:.0} s with {}", started.elapsed().as_secs_f64(), engine.name());
    image::report(engine, targets)?;
    image::scan(workspace, engine)?;

    let [has_nginx, has_observability] = without.map(|(_, missing)| missing.is_none());
    for (place, compose) in composes.iter().enumerate() {
        let stack = Stack::new(workspace, engine, compose)?;
        println!("\n== {}", compose.name());
        // What differs between them is over once the containers run.
        let show = || match place {
            0 => stack.show_all(has_nginx, has_observability),
            _ => stack.show_first_score().map(drop),
        };
        let remove = || stack.remove().and(image::remove(engine));
        removed_in_the_end(&stack, show, remove).with_context(|| format!("with {}", compose.name()))?;
        println!("everything stopped and removed");
    }
    Ok(())
}

/// Does something with a stack and removes it, whatever comes of it; if Ctrl-C and its kin end it, removes everything.
fn removed_in_the_end(
    stack: &Stack<'_>,
    show: impl FnOnce() -> Result<()>,
    remove_everything: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("could not listen for signals")?;
    let handle = signals.handle();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // Nobody is left to hear about a failure here.
                let _ = remove_everything();
                // The status that shells give to a command which a signal ended.
                std::process::exit(128 + signal);
            }
        });
        let shown = show();
        if shown.is_err() {
            stack.print_logs();
        }
        let removed = stack.remove();
        handle.close();
        shown.and(removed)
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
