//! What each command does, and how its result and its errors are printed.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::CommandFactory;
use hookway_protocol::host::Host;
use hookway_relay::Scope;
use hookway_relay::cli::{Cli, EndpointCommand, ProtectArgs, StoreArgs, TokenCommand};
use hookway_relay::config::ConfigError;
use hookway_relay::protection::{Protection, Shown, User};
use hookway_relay::store::{self, By, DomainRow, EndpointRow, ListenerRow, Store, TokenRow, Via};
use jiff::Timestamp;
use serde_json::json;

/// A line of result on stdout. Nobody reads any more: there is nobody to tell.
macro_rules! say {
    ($($text:tt)*) => { drop(writeln!(std::io::stdout().lock(), $($text)*)) };
}

/// A line on stderr.
macro_rules! tell {
    ($($text:tt)*) => { drop(writeln!(std::io::stderr().lock(), $($text)*)) };
}

mod backup;
mod cert;
mod operate;
mod queue;
mod run;
mod setup;
mod upgrade;

pub(crate) use backup::{backup, restore};
pub(crate) use cert::cert;
pub(crate) use operate::{audit, reload, status};
pub(crate) use queue::queue;
pub(crate) use run::run;
pub(crate) use setup::{check, init};
pub(crate) use upgrade::upgrade;

/// Prints an error with its causes.
pub(crate) fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    tell!("error: {error}");
    let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    if !causes.is_empty() {
        tell!("  cause: {}", causes.join(": "));
    }
    if let Some(next) = error.downcast_ref::<ConfigError>().map(ConfigError::next) {
        tell!("  next:  {next}");
    }
    ExitCode::from(code)
}

/// An error with its causes and what to do about it.
fn with_next(error: impl Into<anyhow::Error>, next: &str) -> anyhow::Error {
    let error = error.into();
    let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    let cause = if causes.is_empty() { String::new() } else { format!("\n  cause: {}", causes.join(": ")) };
    anyhow::anyhow!("{error}{cause}\n  next:  {next}")
}

pub(crate) fn version() -> ExitCode {
    say!("hookway-relay {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}

pub(crate) fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hookway-relay", &mut script);
    drop(std::io::stdout().write_all(&script));
    ExitCode::SUCCESS
}

/// Writes a manual page a command.
pub(crate) fn manual(folder: &std::path::Path) -> ExitCode {
    match clap_mangen::generate_to(Cli::command(), folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&anyhow::Error::new(error).context("the manual pages cannot be written"), 1),
    }
}

pub(crate) fn on_store(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    block_on(work).unwrap_or_else(|error| fail(&error, 1))
}

/// Everything runs on one thread: a relay's work is many small pieces, and handing them between threads costs more
/// than it gains (see ARCHITECTURE.md).
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

pub(crate) async fn token(command: TokenCommand) -> anyhow::Result<ExitCode> {
    match command {
        TokenCommand::Create { store, name, endpoints, scope, expires } => {
            let expires_at = expires.map(|after| Timestamp::now().checked_add(after)).transpose()?;
            let opened = open_or_make(&store)?;
            let endpoints = endpoints.into_iter().map(|pattern| pattern.0).collect();
            let new = opened.create_scoped_token(&name.0, scope, endpoints, expires_at).await?;
            let secret = new.token.reveal();
            if store.json {
                let mut line = serde_json::to_value(&new.row)?;
                line["token"] = secret.into();
                say!("{line}");
            } else {
                say!("{secret}");
                tell!(
                    "This is the only time it is shown. {}",
                    match scope {
                        Scope::Client => "On the developer's machine:",
                        Scope::Admin | Scope::Read => "For the admin API:",
                    }
                );
                let relay = store.config.as_deref().and_then(hookway_relay::config::domain_in);
                match scope {
                    Scope::Client => {
                        tell!("  hookway login {}      (it asks for the token)", relay.as_deref().unwrap_or("RELAY"));
                    }
                    Scope::Admin | Scope::Read => {
                        let admin =
                            hookway_relay::running(&store.data_dir).ok().flatten().and_then(|relay| relay.admin);
                        let admin = admin.map_or_else(|| "ADDRESS".to_owned(), |address| address.to_string());
                        tell!("  curl -H 'Authorization: Bearer TOKEN' http://{admin}/api/status");
                    }
                }
            }
        }
        TokenCommand::List { store } => {
            let tokens = open(&store)?.tokens().await?;
            print_rows(&tokens, store.json, "ID                NAME              STATE      ENDPOINTS", |token| {
                let names = match token.scope {
                    Scope::Client if token.endpoints.is_empty() => "any".into(),
                    Scope::Client => token.endpoints.join(" "),
                    Scope::Admin => "none: admin API, may change things".into(),
                    Scope::Read => "none: admin API, may look".into(),
                };
                format!("{:<16}  {:<16}  {:<9}  {names}", token.id, token.name, state(token))
            })?;
        }
        TokenCommand::Revoke { store, token } => {
            let revoked = open(&store)?.revoke_tokens(&token, Timestamp::now()).await?;
            if revoked.is_empty() {
                anyhow::bail!("no valid token has the id or name `{token}`\n  next:  hookway-relay token list");
            }
            print_rows(&revoked, store.json, "REVOKED", |token| format!("{}  {}", token.id, token.name))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn state(token: &TokenRow) -> &'static str {
    match (token.revoked_at, token.is_valid()) {
        (Some(_), _) => "revoked",
        (None, true) => "valid",
        (None, false) => "expired",
    }
}

pub(crate) async fn endpoint(command: EndpointCommand) -> anyhow::Result<ExitCode> {
    let unknown = |name: &str| anyhow::anyhow!("there is no endpoint `{name}`\n  next:  hookway-relay endpoint list");
    match command {
        EndpointCommand::List { store } => print_endpoints(&open(&store)?.endpoints().await?, store.json)?,
        EndpointCommand::Show { store, name } => {
            let opened = open(&store)?;
            let row = opened.endpoints().await?.into_iter().find(|row| row.name == name);
            let row = row.ok_or_else(|| unknown(&name))?;
            let mut listeners = opened.listeners().await?;
            listeners.retain(|listener| listener.endpoint == row.id && !listener.name.is_empty());
            let mut domains = opened.domains().await?;
            domains.retain(|domain| domain.endpoint == row.id);
            print_endpoint(row, &domains, &listeners, store.json)?;
        }
        EndpointCommand::Protect { store, name, protect } => {
            let (opened, parsed) =
                (open(&store)?, name.parse().with_context(|| format!("`{name}` is no endpoint name"))?);
            if let Some(protection) = protection(&protect)?
                && !opened.put_protection(&parsed, protection).await?
            {
                return Err(unknown(&name));
            }
            let row = opened.endpoints().await?.into_iter().find(|row| row.name == name);
            let row = row.ok_or_else(|| unknown(&name))?;
            if store.json {
                say!("{}", json!({"endpoint": name, "protection": Shown(&row.protection)}));
            } else {
                say!("{name}: {}", row.protection);
            }
        }
        EndpointCommand::Release { store, name, hold } if !name.contains('.') => {
            let parsed = name.parse().with_context(|| format!("`{name}` is no endpoint name"))?;
            let now = Timestamp::now();
            let held = now.checked_add(hold)?;
            if !open(&store)?.release_endpoint(&parsed, None, now, held).await? {
                return Err(unknown(&name));
            }
            if store.json {
                say!("{}", json!({"released": name, "held_until": held}));
            } else {
                say!("released {name}");
                if !hold.is_zero() {
                    tell!("Others can have it from {held:.0}, or at once after:");
                    tell!("  hookway-relay endpoint release {name} --hold 0s");
                }
            }
        }
        EndpointCommand::Release { store, name, .. } => {
            let host = Host::parse(&name).with_context(|| format!("`{name}` is no host name"))?;
            if !open(&store)?.remove_domain(host.as_str(), None).await? {
                let next = "hookway-relay endpoint show NAME";
                anyhow::bail!("no endpoint has the host name `{name}`\n  next:  {next}");
            }
            if store.json {
                say!("{}", json!({"released": name}));
            } else {
                say!("released {name}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the flags ask for, if they ask for anything.
fn protection(args: &ProtectArgs) -> anyhow::Result<Option<Protection>> {
    let user = |variable: &String| {
        let text = std::env::var(variable).with_context(|| format!("the environment variable {variable} is not set"));
        let user = text.and_then(|text| User::new(&text).with_context(|| format!("{variable} cannot be used")));
        user.map_err(|error| with_next(error, &format!("export {variable}=NAME:PASSWORD")))
    };
    let protection = Protection {
        allow: args.allow_ip.clone(),
        deny: args.deny_ip.clone(),
        users: args.basic_auth.iter().map(user).collect::<anyhow::Result<_>>()?,
        paths: args.allow_path.clone(),
        rate: args.limit_rate,
        max_body: args.limit_body,
    };
    protection.check()?;
    Ok((args.none || !protection.is_none()).then_some(protection))
}

fn print_endpoints(rows: &[EndpointRow], json: bool) -> anyhow::Result<()> {
    print_rows(rows, json, "NAME                      OWNER             LAST SEEN", |row| {
        format!("{:<24}  {:<16}  {:.0}", row.name, row.owner, row.last_seen_at)
    })
}

/// With its other host names, and those that each get a copy.
fn print_endpoint(
    row: EndpointRow,
    domains: &[DomainRow],
    listeners: &[ListenerRow],
    json: bool,
) -> anyhow::Result<()> {
    if json {
        let mut shown = serde_json::to_value(row)?;
        shown["domains"] = serde_json::to_value(domains)?;
        shown["listeners"] = serde_json::to_value(listeners)?;
        say!("{shown}");
        return Ok(());
    }
    print_endpoints(&[row], false)?;
    if !domains.is_empty() {
        say!("\nHOST NAME                                         SINCE");
    }
    for DomainRow { host, proved_at, .. } in domains {
        say!("{host:<48}  {proved_at:.0}");
    }
    if !listeners.is_empty() {
        say!("\nLISTENER                          LAST SEEN               MISSED");
    }
    for ListenerRow { name, seen_at, missed, .. } in listeners {
        say!("{name:<32}  {seen_at:.0}  {:>8}", missed.count);
    }
    Ok(())
}

fn print_rows<T: serde::Serialize>(
    rows: &[T],
    json: bool,
    title: &str,
    line: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    if !json {
        say!("{title}");
    }
    for row in rows {
        say!("{}", if json { serde_json::to_string(row)? } else { line(row) });
    }
    Ok(())
}

/// What to do where no store is.
const NAME_IT: &str = "name the relay's folder or its configuration:  --data-dir DIR, or --config FILE";

/// Opens a store that is there. Only a relay, or a first token, makes one: to look elsewhere is a mistake.
fn open(args: &StoreArgs) -> anyhow::Result<Arc<dyn Store>> {
    let folder = &args.data_dir;
    anyhow::ensure!(
        store::is_in(folder),
        "there is no relay's store in {}\n  cause: a relay, or the first token, makes it\n  next:  {NAME_IT}",
        folder.display()
    );
    open_or_make(args)
}

/// The same, and makes it if there is none. That of an earlier version is changed to this one's, but not under a relay.
fn open_or_make(args: &StoreArgs) -> anyhow::Result<Arc<dyn Store>> {
    let folder = &args.data_dir;
    let config = args.config.as_deref().unwrap_or(Path::new("/etc/hookway/relay.toml")).display();
    anyhow::ensure!(
        !is_older(folder)? || hookway_relay::running(folder)?.is_none(),
        "the relay that runs on {} is of an earlier version than this program\n  next:  hookway-relay upgrade --config \
         {config}, or systemctl restart hookway-relay",
        folder.display()
    );
    Ok(store::open(folder)?.acting(this_account()))
}

/// Whether an earlier version's store is there.
fn is_older(folder: &Path) -> anyhow::Result<bool> {
    let (found, newest) = store::versions(folder)?;
    Ok(found.is_some_and(|found| found < newest))
}

/// Who runs this, for the audit log.
fn this_account() -> By {
    let uid = rustix::process::getuid().as_raw();
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let name = name.filter(|name| !name.is_empty() && name.len() <= 64 && !name.contains(char::is_control));
    By::new(&name.map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})")), Via::Cli)
}
