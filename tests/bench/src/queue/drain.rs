//! Draining: how fast a client that is back has what waited for it.

use std::time::{Duration, Instant};

use anyhow::Context;
use http::{HeaderMap, StatusCode};

use super::SENDERS;
use super::world::World;
use crate::app::{COUNT, TAKEN, TOOK};
use crate::connection::ask;
use crate::figures::{median, resident, turns};
use crate::load::{self, Load};
use crate::setup::{Setup, Target};

/// The clients: what they are called, and their flags.
const CLIENTS: [(&str, &[&str]); 4] = [
    ("no history, 1 at once", &["--no-store", "--drain-concurrency", "1"]),
    ("no history, 16 at once", &["--no-store", "--drain-concurrency", "16"]),
    ("history, 1 at once", &["--drain-concurrency", "1"]),
    ("history, 16 at once", &["--drain-concurrency", "16"]),
];
/// Queueing stops after this time, however many wait.
const FILLING: Duration = Duration::from_secs(20);
/// What has not come within this time is no longer waited for.
const DRAINING: Duration = Duration::from_secs(10);
/// Programs give back what work left behind, and note what came of it.
const REST: Duration = Duration::from_millis(500);

/// What a round came to. Memory is in MiB.
#[derive(Clone, Copy, Debug)]
struct Drained {
    /// How many waited.
    waited: usize,
    /// How many came, also after the clock stopped.
    came: u64,
    /// A second, from the first to the last.
    rate: f64,
    /// From the client's start to the first, in milliseconds.
    first: f64,
    /// The relay before anything waited, when all waited, and afterwards.
    relay: [f64; 3],
    /// The client before anything waited, and afterwards.
    client: [f64; 2],
}

/// Measures, and prints a table.
pub(super) async fn measure(setup: &Setup, count: usize, rounds: usize) -> anyhow::Result<()> {
    let (_running, app) = setup.app()?;
    println!("{count} deliveries of 1 KiB wait when the client comes; what came is of the worst round:\n");
    println!(
        "| client | deliveries/s | first after ms | came | relay MiB: idle | all wait | after | client MiB: idle | after |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut all: [Vec<Drained>; 4] = Default::default();
    for round in 0..rounds {
        for at in turns(round, all.len()) {
            let (name, flags) = CLIENTS[at];
            all[at].push(drain(setup, &app, flags, count).await.context(name)?);
        }
    }
    for ((name, _), rounds) in CLIENTS.iter().zip(&all) {
        print(name, rounds);
    }
    Ok(())
}

async fn drain(setup: &Setup, other_app: &Target, flags: &[&str], count: usize) -> anyhow::Result<Drained> {
    let world = World::start(setup)?;
    let client = world.client(other_app, flags)?;
    tokio::time::sleep(REST).await;
    let (relay_idle, client_idle) = (world.memory()?, resident(client.id())?);
    world.leave(client, StatusCode::ACCEPTED).await?;
    let load = Load { count: count - 1, ..Load::new(1024, StatusCode::ACCEPTED, FILLING) };
    let waited = 1 + load::run_connected(&world.over_http()?, SENDERS, &load).await?.count;
    let relay_full = world.memory()?;

    let (_app, app) = setup.app()?;
    let started = Instant::now();
    let client = world.client(&app, flags)?;
    let all_came = format!("{TAKEN}{waited}");
    let answer = match tokio::time::timeout(DRAINING, ask(&app, &all_came)).await {
        Ok(answer) => answer?,
        Err(_) => taken_so_far(&app).await?,
    };
    let (came, took) = (number(&answer, COUNT)?, Duration::from_micros(number(&answer, TOOK)?));
    let first = started.elapsed().saturating_sub(took);
    tokio::time::sleep(REST).await;
    let mib = |kib: u64| kib as f64 / 1024.0;
    Ok(Drained {
        waited,
        came: number(&taken_so_far(&app).await?, COUNT)?,
        rate: came as f64 / took.as_secs_f64(),
        first: first.as_secs_f64() * 1000.0,
        relay: [relay_idle, relay_full, world.memory()?].map(mib),
        client: [client_idle, resident(client.id())?].map(mib),
    })
}

async fn taken_so_far(app: &Target) -> anyhow::Result<HeaderMap> {
    ask(app, &format!("{TAKEN}0")).await
}

fn number(header: &HeaderMap, name: &str) -> anyhow::Result<u64> {
    let value = header.get(name).context("a figure of the app's")?;
    Ok(value.to_str()?.parse()?)
}

fn print(name: &str, rounds: &[Drained]) {
    let of = |value: fn(&Drained) -> f64| median(rounds, value);
    let off = |round: &&Drained| round.came.abs_diff(round.waited as u64);
    let came =
        rounds.iter().max_by_key(off).map_or_else(String::new, |round| format!("{} of {}", round.came, round.waited));
    println!(
        "| {name} | {:.0} | {:.0} | {came} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
        of(|round| round.rate),
        of(|round| round.first),
        of(|round| round.relay[0]),
        of(|round| round.relay[1]),
        of(|round| round.relay[2]),
        of(|round| round.client[0]),
        of(|round| round.client[1]),
    );
}
