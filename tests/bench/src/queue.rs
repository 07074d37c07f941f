//! What is queued while the client is away: how fast it is accepted, beside what the same disk can do, and how fast the
//! client has it when it is back.

mod accept;
mod disk;
mod drain;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;

use crate::setup::Setup;

/// Senders, and producers of the loop that they are compared with.
const SENDERS: usize = 64;

/// How it is measured. Everything is kept below the temporary folder: `TMPDIR` has to be on the disk that counts
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each case of accepting runs in a round, at most 60
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds, in which the cases take turns; the medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Deliveries that wait when the client comes
    #[arg(long, default_value_t = 5000)]
    count: usize,
}

/// Measures, and prints tables.
pub(crate) async fn measure(bin: Option<PathBuf>, args: &Args) -> anyhow::Result<()> {
    ensure!(args.seconds > 0.0 && args.seconds <= 60.0, "--seconds is from 0 to 60");
    ensure!(args.rounds > 0 && args.count > 1, "there is nothing to measure");
    let setup = Setup::new(bin)?;
    println!("Below {}, medians of {} rounds.\n", setup.folder().display(), args.rounds);
    accept::measure(&setup, Duration::from_secs_f64(args.seconds), args.rounds).await?;
    println!();
    drain::measure(&setup, args.count, args.rounds).await
}
