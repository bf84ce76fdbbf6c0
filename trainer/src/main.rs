//! The trainer's command line.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    scoregate_trainer::commands::Command::parse().run()
}
