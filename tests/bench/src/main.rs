//! Hookway as a whole under load, beside nginx and the bare app in the same run. Only the ratios mean anything on
//! another machine.
//!
//! ```sh
//! cargo build --profile dist -p hookway -p hookway-relay -p hookway-bench && target/dist/hookway-bench
//! ```
#![expect(clippy::print_stdout, reason = "a program whose result is a table")]

mod app;
mod load;
mod programs;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use load::{Case, Measured};
use programs::{Programs, Target};

/// Measures the whole of Hookway.
#[derive(Debug, Parser)]
struct Args {
    /// Where the programs are; beside this one, if not said
    #[arg(long)]
    bin_dir: Option<PathBuf>,
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
    /// Serve as the local app (the benchmark starts itself so)
    #[arg(long, hide = true)]
    app: bool,
}

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if args.app { runtime.block_on(app::serve()) } else { runtime.block_on(measure(args)) }
}

async fn measure(args: Args) -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let beside = own.parent().context("this program has a folder")?.to_owned();
    let programs = Programs::start(&own, &args.bin_dir.unwrap_or(beside).canonicalize()?)?;
    let (relay, client) = programs.memory()?;
    // Before any load, for afterwards there is freed memory to take.
    let each = programs.memory_of_a_client(args.clients)?;
    println!("| case | target | requests/s | p50 ms | p99 ms | CPU s/10k | against nginx | against the app |");
    println!("|---|---|---|---|---|---|---|---|");
    let time = Duration::from_secs_f64(args.seconds);
    for case in Case::ALL {
        let mut all: Vec<Vec<Measured>> = programs.targets.iter().map(|_| Vec::new()).collect();
        for round in 0..args.rounds {
            // There and back again, so that none always comes after the same other.
            let turn = |n: usize| if round % 2 == 0 { n } else { programs.targets.len() - 1 - n };
            for at in (0..programs.targets.len()).map(turn) {
                let target = &programs.targets[at];
                if target.tls.is_some() || !case.needs_tls() {
                    all[at].push(load::run(target, case, time).await?);
                }
            }
        }
        print_case(case, &programs.targets, &all);
    }
    println!("\n| {} MiB | target | MB/s | against nginx |\n|---|---|---|---|", args.mib);
    for (name, up) in [("upload", true), ("download", false)] {
        let mut rates = Vec::new();
        for target in programs.targets.iter().filter(|target| target.tls.is_some()) {
            let mut rounds = Vec::new();
            for _ in 0..args.rounds {
                rounds.push(load::transfer(target, args.mib << 20, up).await?);
            }
            rates.push((target.name, median(rounds)));
        }
        let nginx = rates.iter().find(|(name, _)| *name == "nginx").map(|(_, rate)| *rate);
        for (target, rate) in rates {
            println!("| {name} | {target} | {rate:.0} | {} |", ratio(rate, nginx));
        }
    }
    println!("\nResident, idle before any load: relay {relay} KiB, client {client} KiB.");
    let (relay, client) = programs.memory()?;
    println!("After the load: relay {relay} KiB, client {client} KiB.");
    println!("On the relay, each of {} idle clients: {each:.0} KiB.", args.clients);
    Ok(())
}

fn print_case(case: Case, targets: &[Target], all: &[Vec<Measured>]) {
    let rate = |name: &str| {
        let at = targets.iter().position(|target| target.name == name)?;
        (!all[at].is_empty()).then(|| median(all[at].iter().map(|m| m.rate).collect()))
    };
    for (target, rounds) in targets.iter().zip(all).filter(|(_, rounds)| !rounds.is_empty()) {
        let of = |value: fn(&Measured) -> f64| median(rounds.iter().map(value).collect());
        let own = of(|m| m.rate);
        println!(
            "| {case} | {} | {own:.0} | {:.2} | {:.2} | {:.2} | {} | {} |",
            target.name,
            of(|m| m.p50),
            of(|m| m.p99),
            of(|m| m.cpu),
            ratio(own, rate("nginx")),
            ratio(own, rate("app")),
        );
    }
}

fn ratio(own: f64, other: Option<f64>) -> String {
    other.map_or_else(|| "–".into(), |other| format!("{:.2} ×", own / other))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
