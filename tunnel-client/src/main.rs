//! `hookway`: the command line around the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hookway::commands::main(std::env::args_os().collect())
}
