//! The command line: one file for each subcommand.
//!
//! A wrong flag or an unreadable file is one line on stderr and exit code 2. What can pass by itself (no
//! Kubernetes, no Consul) is not an error of the command line: `run` waits for it.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::settings::RunArgs;

mod crd;
mod run;

/// Keeps what Consul says about your pods true.
#[derive(Debug, Parser)]
#[command(name = "lictor", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator.
    Run(Box<RunArgs>),
    /// Print the `CustomResourceDefinition` of `ConsulService`, for `kubectl apply -f -`.
    Crd,
}

/// The exit code for bad input: above 1, which is kept for "something to say" as in diff.
const BAD_INPUT: u8 = 2;

/// Parses the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return usage(&error),
    };
    let done = match command {
        Command::Run(args) => run::run(*args),
        Command::Crd => crd::print(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lictor: {error:#}");
            ExitCode::from(BAD_INPUT)
        }
    }
}

/// Help and version as they are; a mistake as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed pipe is the reader's choice.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprintln!("lictor: a subcommand is missing; see 'lictor --help'");
        return ExitCode::from(BAD_INPUT);
    }
    let text = error.to_string();
    let words: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    eprintln!("lictor: {}; see 'lictor --help'", words.join(" ").trim_start_matches("error: "));
    ExitCode::from(BAD_INPUT)
}
