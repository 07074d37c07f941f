//! Hookway as a whole under load: beside nginx and the bare app, or, with `queue`, beside what the disk can do. Only the
//! ratios mean anything on another machine.
//!
//! ```sh
//! cargo build --profile dist -p hookway -p hookway-relay -p hookway-bench && target/dist/hookway-bench
//! target/dist/hookway-bench queue
//! ```
#![expect(clippy::print_stdout, reason = "a program whose result is a table")]

mod app;
mod connection;
mod figures;
mod load;
mod process;
mod programs;
mod queue;
mod setup;
mod through;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Measures the whole of Hookway.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    /// Where the programs are; beside this one, if not said
    #[arg(long, global = true)]
    bin_dir: Option<PathBuf>,
    #[command(flatten)]
    through: through::Args,
    /// Serve as the local app (the benchmark starts itself so)
    #[arg(long, hide = true)]
    app: bool,
    #[command(subcommand)]
    mode: Option<Mode>,
}

/// What else is measured.
#[derive(Debug, Subcommand)]
enum Mode {
    /// What is queued while the client is away, and how fast it has it afterwards
    Queue(queue::Args),
}

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.mode {
        None if args.app => runtime.block_on(app::serve()),
        None => runtime.block_on(through::measure(args.bin_dir, args.through)),
        Some(Mode::Queue(queue)) => runtime.block_on(queue::measure(args.bin_dir, &queue)),
    }
}
