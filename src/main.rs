//! Hands over to [`lictor::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    lictor::cli::main()
}
