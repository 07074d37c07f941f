//! `hookway-relay status` and `reload`: what a running relay is doing, and that it takes its configuration over.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use hookway_relay::Running;
use hookway_relay::cli::StoreArgs;
use hookway_relay::store::{self, AuditRow};
use serde_json::json;

use super::{is_older, open, run};

/// A relay takes its configuration over within this time, and hands over within that.
const RELOADED_IN: Duration = Duration::from_secs(10);
const HANDED_OVER_IN: Duration = Duration::from_secs(340);

/// A relay that has the data folder says within this time which it is.
const SAID_IN: Duration = Duration::from_secs(1);

/// The relay that runs on the data folder.
pub(super) fn running(args: &StoreArgs) -> anyhow::Result<Running> {
    let (folder, until) = (args.data_dir.display(), Instant::now() + SAID_IN);
    loop {
        let found = hookway_relay::running(&args.data_dir).with_context(|| format!("cannot look into {folder}"))?;
        let relay = found.with_context(|| {
            format!(
                "no relay runs on {folder}\n  next:  systemctl start hookway-relay, or name its folder with --data-dir"
            )
        })?;
        if relay.pid != 0 {
            return Ok(relay);
        }
        anyhow::ensure!(
            Instant::now() < until,
            "{folder} is in use, and by whom is not said\n  next:  try again in a moment, or systemctl restart hookway-relay"
        );
        std::thread::sleep(SAID_IN / 20);
    }
}

pub(crate) async fn status(args: StoreArgs) -> anyhow::Result<ExitCode> {
    let relay = running(&args)?;
    let store = open(&args)?;
    let (endpoints, tokens, deliveries) = (store.endpoints().await?, store.tokens().await?, store.deliveries().await?);
    let dead = deliveries.iter().filter(|row| row.dead_since.is_some()).count();
    let waiting = deliveries.len() - dead;
    let valid = tokens.iter().filter(|token| token.is_valid()).count();
    let (health, sessions) = match relay.admin {
        Some(admin) => (health(admin).await, sessions(admin).await),
        None => (Err("unknown: it has no admin listener".to_owned()), None),
    };
    let well = health.is_ok();
    let reasons: Vec<&str> = health.as_ref().err().map(|why| why.lines().collect()).unwrap_or_default();
    if args.json {
        say!(
            "{}",
            json!({
                "running": true, "pid": relay.pid, "version": relay.version, "https": relay.https, "http": relay.http,
                "admin": relay.admin, "dns": relay.dns, "well": well, "problems": reasons, "sessions": sessions,
                "endpoints": endpoints.len(), "tokens": valid, "waiting": waiting, "dead_letters": dead,
            })
        );
    } else {
        let at = |address: Option<std::net::SocketAddr>| address.map_or("off".to_owned(), |at| at.to_string());
        let count = sessions.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        say!("hookway-relay {}   runs as process {}", relay.version, relay.pid);
        say!("  Health     {}", if well { "well".to_owned() } else { reasons.join("; ") });
        say!("  Listens    https {}   http {}   admin {}", at(relay.https), at(relay.http), at(relay.admin));
        say!("  Clients    {count}");
        say!("  Endpoints  {}   tokens {valid}", endpoints.len());
        say!("  Queue      {waiting} waiting   {dead} dead");
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why it is not well, a reason a line.
async fn health(admin: std::net::SocketAddr) -> Result<(), String> {
    let (status, text) = hookway_relay::ask_admin(admin, "/health").await.map_err(|why| format!("admin: {why}"))?;
    if status.is_success() { Ok(()) } else { Err(text.trim().to_owned()) }
}

async fn sessions(admin: std::net::SocketAddr) -> Option<u64> {
    let (_, text) = hookway_relay::ask_admin(admin, "/metrics").await.ok()?;
    text.lines().find_map(|line| line.strip_prefix("hookway_relay_sessions ")?.trim().parse().ok())
}

pub(crate) async fn reload(args: StoreArgs) -> anyhow::Result<ExitCode> {
    let relay = running(&args)?;
    let kept = "the configuration was not taken over; the one before stays in force";
    told(&args, &relay, rustix::process::Signal::HUP, run::RELOAD, kept).await
}

/// Sends the relay a signal, and waits for what it notes of that in the audit log.
pub(super) async fn told(
    args: &StoreArgs,
    relay: &Running,
    signal: rustix::process::Signal,
    action: &str,
    refused: &str,
) -> anyhow::Result<ExitCode> {
    // A relay of an earlier version is told by this program, too, and may know of no audit log until it has handed over.
    let (store, is_older) = (store::open_as_it_is(&args.data_dir)?, is_older(&args.data_dir)?);
    let newest = async |count| match store.audit_log(None, count).await {
        Err(_) if is_older => Ok(Vec::new()),
        rows => rows,
    };
    let before = newest(1).await?.first().map_or(0, |row| row.seq);
    let pid = i32::try_from(relay.pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.filter(|_| hookway_relay::is_seen(&args.data_dir, relay)).with_context(|| {
        let folder = args.data_dir.display();
        format!(
            "the relay that runs on {folder} is process {} elsewhere, and cannot be told from here\n  next:  run this \
             where it runs: in its container, or on its machine",
            relay.pid
        )
    })?;
    rustix::process::kill_process(pid, signal)
        .context("the relay cannot be told\n  next:  be the user that runs it, or root")?;
    let told = async {
        loop {
            if let Some(row) = newest(20).await?.into_iter().find(|row| row.seq > before && row.action == action) {
                return Ok::<_, anyhow::Error>(row);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let within = if action == run::RELOAD { RELOADED_IN } else { HANDED_OVER_IN };
    let row = tokio::time::timeout(within, told)
        .await
        .context("the relay has not said what came of it\n  next:  journalctl -u hookway-relay")??;
    if row.refused {
        anyhow::bail!("{refused}\n  cause: {}\n  next:  mend it, then try again; its log may say more", row.detail);
    }
    let (what, key) = if action == run::RELOAD { ("reloaded", "reloaded") } else { ("handed over", "handed_over") };
    if args.json {
        let mut line = json!({"at": row.at, "detail": row.detail});
        line[key] = true.into();
        if let Ok(pid) = row.target.parse::<u32>() {
            line["pid"] = pid.into();
        }
        say!("{line}");
    } else {
        let to = if row.target.is_empty() { String::new() } else { format!(" to process {}", row.target) };
        say!("{what}{to}{}", if row.detail.is_empty() { String::new() } else { format!("; {}", row.detail) });
    }
    Ok(ExitCode::SUCCESS)
}

/// The audit log, newest last.
pub(crate) async fn audit(args: StoreArgs, limit: usize) -> anyhow::Result<ExitCode> {
    let mut rows = open(&args)?.audit_log(None, limit).await?;
    rows.reverse();
    for row in &rows {
        if args.json { say!("{}", serde_json::to_value(row)?) } else { say!("{}", in_words(row)) }
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(row: &AuditRow) -> String {
    let AuditRow { at, actor, via, action, target, detail, refused, .. } = row;
    let refused = if *refused { "REFUSED  " } else { "" };
    let detail = if detail.is_empty() { String::new() } else { format!("   {detail}") };
    super::queue::harmless(&format!("{at:.0}  {via:<6}  {actor:<16}  {refused}{action:<18}  {target}{detail}"))
}
