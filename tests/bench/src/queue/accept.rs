//! Accepting: how many a second are on disk and answered 202.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

use super::world::World;
use super::{SENDERS, disk};
use crate::figures::{Measured, median, ratio, turns};
use crate::load::{self, Load};
use crate::setup::{Setup, Target};

/// The bodies' sizes, in KiB.
const KIB: [usize; 2] = [1, 64];

/// Who keeps the bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    /// The relay, over TLS.
    Tls,
    /// The relay, over plain HTTP.
    Http,
    /// Nobody: the relay, over TLS, answers 503. What TLS and HTTP let through here, at most.
    Nobody,
    /// SQLite alone, committing for many.
    Sqlite,
    /// A file, one at a time.
    File,
}

impl Keeper {
    const ALL: [Self; 5] = [Self::Tls, Self::Http, Self::Nobody, Self::Sqlite, Self::File];

    /// A round, from an empty store.
    async fn measure(self, setup: &Setup, app: &Target, load: &Load) -> anyhow::Result<Measured> {
        if let Self::Tls | Self::Http | Self::Nobody = self {
            let world = World::start(setup)?;
            let (flags, expected): (&[&str], _) = match self {
                Self::Nobody => (&["--no-store", "--on-offline", "error"], StatusCode::SERVICE_UNAVAILABLE),
                _ => (&["--no-store"], StatusCode::ACCEPTED),
            };
            world.leave(world.client(app, flags)?, expected).await?;
            let target = if self == Self::Http { world.over_http()? } else { world.over_tls() };
            return load::run_connected(&target, SENDERS, &Load { expected, ..load.clone() }).await;
        }
        let folder = tempfile::tempdir_in(setup.folder())?;
        match self {
            Self::File => disk::plain(folder.path(), load).await,
            _ => disk::sqlite(folder.path(), SENDERS, load).await,
        }
    }
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls => write!(f, "hookway, TLS, {SENDERS} senders"),
            Self::Http => write!(f, "hookway, plain HTTP, {SENDERS} senders"),
            Self::Nobody => write!(f, "hookway, TLS, 503 and nothing kept"),
            Self::Sqlite => write!(f, "SQLite alone, {SENDERS} threads"),
            Self::File => write!(f, "write and fdatasync, one at a time"),
        }
    }
}

/// Measures, and prints a table.
pub(super) async fn measure(setup: &Setup, time: Duration, rounds: usize) -> anyhow::Result<()> {
    let (_running, app) = setup.app()?;
    println!("Accepted and on disk, the client away; against SQLite alone, the goal is 0.7:\n");
    println!("| body | who | a second | p50 ms | p99 ms | CPU s/10k | against SQLite | against fdatasync |");
    println!("|---|---|---|---|---|---|---|---|");
    for kib in KIB {
        let load = Load::new(kib << 10, StatusCode::ACCEPTED, time);
        let mut all: [Vec<Measured>; 5] = Default::default();
        for round in 0..rounds {
            for at in turns(round, all.len()) {
                all[at].push(Keeper::ALL[at].measure(setup, &app, &load).await?);
            }
        }
        print(kib, &all);
    }
    Ok(())
}

/// A line for each keeper, in their order.
fn print(kib: usize, all: &[Vec<Measured>; 5]) {
    let [.., sqlite, file] = all.each_ref().map(|rounds| median(rounds, |m| m.rate));
    for (keeper, rounds) in Keeper::ALL.iter().zip(all) {
        let own = median(rounds, |m| m.rate);
        println!(
            "| {kib} KiB | {keeper} | {own:.0} | {:.2} | {:.2} | {:.2} | {} | {} |",
            median(rounds, |m| m.p50),
            median(rounds, |m| m.p99),
            median(rounds, |m| m.cpu),
            ratio(own, Some(sqlite)),
            ratio(own, Some(file)),
        );
    }
}
