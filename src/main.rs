//! Command line → config → app → serve → drain.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    scoregate::cli::Cli::parse().run()
}
