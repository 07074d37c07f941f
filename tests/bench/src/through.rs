//! What goes through at once: Hookway under load, beside nginx and the bare app in the same run.

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;

use crate::figures::{Measured, median, ratio, turns};
use crate::load::{self, Case, Load};
use crate::programs::Programs;
use crate::setup::{Setup, Target};

/// How it is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each case runs in a round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds, in which the targets take turns; the medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// MiB of the upload and the download
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Clients that connect at once for the memory of each
    #[arg(long, default_value_t = 100)]
    clients: usize,
}

/// Measures, and prints tables.
pub(crate) async fn measure(bin: Option<PathBuf>, args: Args) -> anyhow::Result<()> {
    let programs = Programs::start(Setup::new(bin)?)?;
    let (relay, client) = programs.memory()?;
    // Before any load, for afterwards there is freed memory to take.
    let each = programs.memory_of_a_client(args.clients)?;
    println!("| case | target | requests/s | p50 ms | p99 ms | CPU s/10k | against nginx | against the app |");
    println!("|---|---|---|---|---|---|---|---|");
    let load = Load::new(1024, StatusCode::OK, Duration::from_secs_f64(args.seconds));
    for case in Case::ALL {
        let mut all: Vec<Vec<Measured>> = programs.targets.iter().map(|_| Vec::new()).collect();
        for round in 0..args.rounds {
            for at in turns(round, programs.targets.len()) {
                let target = &programs.targets[at];
                if target.tls.is_some() || !case.needs_tls() {
                    all[at].push(load::run(target, case, &load).await?);
                }
            }
        }
        print_case(case, &programs.targets, &all);
    }
    measure_transfers(&programs.targets, &args).await?;
    println!("\nResident, idle before any load: relay {relay} KiB, client {client} KiB.");
    let (relay, client) = programs.memory()?;
    println!("After the load: relay {relay} KiB, client {client} KiB.");
    println!("On the relay, each of {} idle clients: {each:.0} KiB.", args.clients);
    Ok(())
}

async fn measure_transfers(targets: &[Target], args: &Args) -> anyhow::Result<()> {
    println!("\n| {} MiB | target | MB/s | against nginx |\n|---|---|---|---|", args.mib);
    for (name, up) in [("upload", true), ("download", false)] {
        let mut rates = Vec::new();
        for target in targets.iter().filter(|target| target.tls.is_some()) {
            let mut rounds = Vec::new();
            for _ in 0..args.rounds {
                rounds.push(load::transfer(target, args.mib << 20, up).await?);
            }
            rates.push((target.name, median(&rounds, |rate| *rate)));
        }
        let nginx = rates.iter().find(|(name, _)| *name == "nginx").map(|(_, rate)| *rate);
        for (target, rate) in rates {
            println!("| {name} | {target} | {rate:.0} | {} |", ratio(rate, nginx));
        }
    }
    Ok(())
}

fn print_case(case: Case, targets: &[Target], all: &[Vec<Measured>]) {
    let rate = |name: &str| {
        let at = targets.iter().position(|target| target.name == name)?;
        (!all[at].is_empty()).then(|| median(&all[at], |m| m.rate))
    };
    for (target, rounds) in targets.iter().zip(all).filter(|(_, rounds)| !rounds.is_empty()) {
        let own = median(rounds, |m| m.rate);
        println!(
            "| {case} | {} | {own:.0} | {:.2} | {:.2} | {:.2} | {} | {} |",
            target.name,
            median(rounds, |m| m.p50),
            median(rounds, |m| m.p99),
            median(rounds, |m| m.cpu),
            ratio(own, rate("nginx")),
            ratio(own, rate("app")),
        );
    }
}
