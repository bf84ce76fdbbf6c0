//! Command line → config → app → serve → drain.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match scoregate::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            scoregate::cli::print_error(&error);
            scoregate::cli::exit_code(&error)
        }
    }
}
