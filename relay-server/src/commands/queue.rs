//! `hookway-relay queue`: what waits, and what is dead.

use std::io::Write;
use std::process::ExitCode;

use hookway_relay::cli::{QueueCommand, StoreArgs};
use hookway_relay::store::{Dead, EndpointRow, Listing, QueuedRow, Store};
use jiff::Timestamp;
use serde_json::json;

use super::{open, print_rows};

pub(crate) async fn queue(command: QueueCommand) -> anyhow::Result<ExitCode> {
    match command {
        QueueCommand::Stats { store, endpoint } => {
            let opened = open(&store)?;
            let (endpoints, rows) = (opened.endpoints().await?, opened.deliveries().await?);
            known(&endpoints, &rows, endpoint.as_deref())?;
            let of = |name: &str| Stats::of(name, rows.iter().filter(|row| row.delivery.name == name));
            let wanted = endpoints.iter().filter(|row| endpoint.as_ref().is_none_or(|name| *name == row.name));
            let stats: Vec<Stats> = wanted.map(|row| of(&row.name)).collect();
            let title = "ENDPOINT                   DEPTH       BYTES    OLDEST     DEAD";
            print_rows(&stats, store.json, title, |stats| {
                let Stats { endpoint, depth, bytes, oldest_s, dead } = stats;
                format!("{endpoint:<24}  {depth:>6}  {bytes:>10}  {oldest_s:>6.0} s  {dead:>7}")
            })?;
        }
        QueueCommand::List { store, endpoint } => {
            list(&store, endpoint, false).await?;
        }
        QueueCommand::DeadLetters { store, endpoint } => {
            list(&store, endpoint, true).await?;
        }
        QueueCommand::Retry { store, ids, endpoint, all } => {
            let opened = open(&store)?;
            let is_any = all || endpoint.is_some();
            let (endpoints, dead) = (opened.endpoints().await?, listed(&*opened, endpoint, true).await?);
            let wanted: Vec<&QueuedRow> = if is_any {
                dead.iter().collect()
            } else {
                ids.iter().map(|id| one_of(&dead, id)).collect::<anyhow::Result<Vec<_>>>()?.concat()
            };
            // What waited for a name that was released is for nobody.
            let is_there = |row: &&QueuedRow| endpoints.iter().any(|endpoint| endpoint.id == row.delivery.endpoint);
            let (there, gone): (Vec<&QueuedRow>, Vec<&QueuedRow>) = wanted.into_iter().partition(is_there);
            for row in gone {
                tell!("{}: the endpoint {} was released since", row.delivery.id, row.delivery.name);
            }
            let seqs = there.iter().map(|row| row.seq).collect();
            let revived = opened.revive(Dead::These(seqs), Timestamp::now()).await?;
            if store.json {
                say!("{}", json!({"retried": revived.len()}));
            } else {
                say!("{} to be tried again", revived.len());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What waits for an endpoint, in figures.
#[derive(serde::Serialize)]
struct Stats {
    endpoint: String,
    depth: usize,
    bytes: u64,
    oldest_s: f64,
    dead: usize,
}

impl Stats {
    fn of<'a>(endpoint: &str, rows: impl Iterator<Item = &'a QueuedRow>) -> Self {
        let (dead, waiting): (Vec<_>, Vec<_>) = rows.partition(|row| row.dead_since.is_some());
        let age = |row: &&QueuedRow| Timestamp::now().duration_since(row.since).as_secs_f64().max(0.0);
        Self {
            endpoint: endpoint.to_owned(),
            depth: waiting.len(),
            bytes: waiting.iter().map(|row| row.delivery.bytes).sum(),
            oldest_s: (waiting.iter().map(age).fold(0.0, f64::max) * 10.0).round() / 10.0,
            dead: dead.len(),
        }
    }
}

/// Refuses a name that neither an endpoint has nor a delivery.
fn known(endpoints: &[EndpointRow], rows: &[QueuedRow], name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else { return Ok(()) };
    let there = endpoints.iter().any(|row| row.name == name) || rows.iter().any(|row| row.delivery.name == name);
    anyhow::ensure!(there, "there is no endpoint `{name}`\n  next:  hookway-relay endpoint list");
    Ok(())
}

/// The dead letter that an id or a part of it names: all copies of it.
fn one_of<'a>(dead: &'a [QueuedRow], id: &str) -> anyhow::Result<Vec<&'a QueuedRow>> {
    let wanted = id.to_ascii_lowercase();
    let named = |row: &&QueuedRow| {
        let own = row.delivery.id.to_string().to_ascii_lowercase();
        own.starts_with(&wanted) || own.ends_with(&wanted)
    };
    let next = "next:  hookway-relay queue dead-letters";
    let found: Vec<&QueuedRow> = dead.iter().filter(named).collect();
    let Some(first) = found.first() else { anyhow::bail!("no dead letter has the id `{id}`\n  {next}") };
    let are_one = found.iter().all(|row| row.delivery.id == first.delivery.id);
    anyhow::ensure!(are_one, "several dead letters have an id like `{id}`\n  {next}");
    Ok(found)
}

/// Dead letters, or those that wait; of one endpoint, or of all.
async fn listed(store: &dyn Store, endpoint: Option<String>, dead: bool) -> anyhow::Result<Vec<QueuedRow>> {
    let listing = Listing { endpoint: endpoint.clone(), dead: Some(dead), most: usize::MAX, ..Listing::default() };
    let rows = store.list(listing).await?;
    if rows.is_empty() && endpoint.is_some() {
        // Perhaps it has others.
        known(&store.endpoints().await?, &store.deliveries().await?, endpoint.as_deref())?;
    }
    Ok(rows)
}

async fn list(store: &StoreArgs, endpoint: Option<String>, dead: bool) -> anyhow::Result<()> {
    let rows = listed(&*open(store)?, endpoint, dead).await?;
    let title = "ID                              ENDPOINT          RECEIVED              TRIED  WHAT";
    print_rows(&rows, store.json, title, |QueuedRow { delivery, last, .. }| {
        let last = if last.is_empty() { String::new() } else { format!("   {last}") };
        let listener =
            if delivery.listener.is_empty() { String::new() } else { format!("   for {}", delivery.listener) };
        let what = harmless(&format!("{} {}{listener}{last}", delivery.method, delivery.path));
        let (id, at, tried) = (delivery.id.to_string(), delivery.received_at, delivery.attempts);
        format!("{id}  {:<16}  {at:.0}  {tried:>5}  {what}", delivery.name)
    })
}

/// A text from outside without what a terminal could take for a command.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
