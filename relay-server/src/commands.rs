//! What each command does, and how its result and its errors are printed.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use hookway_protocol::host::Host;
use hookway_relay::cli::{EndpointCommand, RunArgs, StoreArgs, TokenCommand};
use hookway_relay::config::ConfigError;
use hookway_relay::store::{self, DomainRow, EndpointRow, ListenerRow, Store, TokenRow};
use hookway_relay::{BindError, CertsError, Server};
use jiff::Timestamp;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// A line of result on stdout. Nobody reads any more: there is nobody to tell.
macro_rules! say {
    ($($text:tt)*) => { drop(writeln!(std::io::stdout().lock(), $($text)*)) };
}

/// A line on stderr.
macro_rules! tell {
    ($($text:tt)*) => { drop(writeln!(std::io::stderr().lock(), $($text)*)) };
}

mod cert;
mod queue;
mod setup;

pub(crate) use cert::cert;
pub(crate) use queue::queue;
pub(crate) use setup::{check, init};

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

pub(crate) fn version() -> ExitCode {
    say!("hookway-relay {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}

/// Runs the relay until a signal stops it.
pub(crate) fn run(args: &RunArgs) -> ExitCode {
    let filter = match tracing_subscriber::EnvFilter::try_new(&args.log) {
        Ok(filter) => filter,
        Err(error) => return fail(&anyhow::Error::new(error).context("--log is no filter"), 2),
    };
    // A name server's nonsense is not the operator's concern: a line for each would be a stranger's way into the log.
    let quiet = (!args.log.contains("hickory")).then(|| "hickory_net=error".parse().expect("a directive"));
    let filter = quiet.into_iter().fold(filter, tracing_subscriber::EnvFilter::add_directive);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    let config = match args.config() {
        Ok(config) => config,
        Err(error) => return fail(&error.into(), 7),
    };
    let domain = config.domain.to_string();
    let serve = async {
        let mut stop = Stop::new()?;
        let server = Server::bind(config).await.map_err(with_next_step)?;
        announce(&server, &domain, args.json());
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        stop.wait().await;
        tracing::info!("stopping: finishing what is in flight");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let finished = tokio::select! {
            finished = server.shutdown() => finished,
            () = stop.wait() => return Ok(ExitCode::from(130)),
        };
        if !finished {
            tracing::warn!("the grace period is over: some requests were cut");
        }
        Ok(ExitCode::SUCCESS)
    };
    block_on(serve).unwrap_or_else(|error| fail(&error, 1))
}

fn announce(server: &Server, domain: &str, json: bool) {
    let addresses = server.addresses();
    let absolute = |path: &std::path::PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let ca = server.ca().map(|path| absolute(path).display().to_string());
    if json {
        let text = |address: Option<std::net::SocketAddr>| address.map(|address| address.to_string());
        let (http, admin) = (text(addresses.http), text(addresses.admin));
        let https = addresses.https.to_string();
        let mut line = json!({"event": "ready", "domain": domain, "https": https, "http": http, "admin": admin});
        if let Some(ca) = ca {
            line["ca"] = ca.into();
        }
        say!("{line}");
        return;
    }
    say!("hookway-relay {}   ready", env!("CARGO_PKG_VERSION"));
    say!("  Endpoints  https://NAME.{domain}   (listening on {}, TCP and UDP)", addresses.https);
    if let Some(admin) = addresses.admin {
        say!("  Admin      http://{admin}/health  /metrics");
    }
    if let Some(ca) = ca {
        say!("  CA         {ca}   (give it to clients:  hookway --relay-ca FILE)");
    }
}

fn with_next_step(error: BindError) -> anyhow::Error {
    let next = match &error {
        BindError::Listen { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a right:  setcap cap_net_bind_service=+ep hookway-relay"
        }
        BindError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            "stop what listens there, or choose another port with --https, --http or --admin"
        }
        BindError::Listen { .. } => "give an address of this machine with --https, --http or --admin",
        BindError::InUse(_) => "stop the other one, or give this one a folder of its own with --data-dir",
        BindError::Store(_) => "check that --data-dir can be written",
        BindError::Certs(CertsError::Ca { path, key, .. }) => {
            &format!("keep the --domain, or let the relay make another CA, for its clients too:  rm {path} {key}")
        }
        BindError::Certs(CertsError::Dns { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a right:  setcap cap_net_bind_service=+ep hookway-relay"
        }
        BindError::Certs(CertsError::Dns { .. }) => {
            "give the address that _acme-challenge.DOMAIN is delegated to with --dns, such as 203.0.113.5:53"
        }
        BindError::Certs(CertsError::KeyFile(_)) => "make one:  tsig-keygen -a hmac-sha256 hookway > FILE",
        BindError::Certs(CertsError::Roots(_)) => "install the system's CA certificates, or name a root with --acme-ca",
        BindError::Certs(CertsError::NoZone(_)) => "use a domain of letters, digits and hyphens",
        BindError::Certs(_) => "check --tls-cert, --tls-key and --acme-ca, or use --tls self-signed",
    };
    let causes: Vec<String> = anyhow::Error::from(error).chain().map(ToString::to_string).collect();
    let cause = if causes.len() > 1 { format!("\n  cause: {}", causes[1..].join(": ")) } else { String::new() };
    anyhow::anyhow!("{}{cause}\n  next:  {next}", causes[0])
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
        TokenCommand::Create { store, name, endpoints, expires } => {
            let expires_at = expires.map(|after| Timestamp::now().checked_add(after)).transpose()?;
            let new = store::open(&store.data_dir)?.create_token(&name, endpoints, expires_at).await?;
            let secret = new.token.reveal();
            if store.json {
                let mut line = serde_json::to_value(&new.row)?;
                line["token"] = secret.into();
                say!("{line}");
            } else {
                say!("{secret}");
                tell!("This is the only time it is shown. On the developer's machine:");
                let relay = store.config.as_deref().and_then(hookway_relay::config::domain_in);
                tell!("  hookway login {}      (it asks for the token)", relay.as_deref().unwrap_or("RELAY"));
            }
        }
        TokenCommand::List { store } => {
            let tokens = open(&store)?.tokens().await?;
            print_rows(&tokens, store.json, "ID                NAME              STATE      ENDPOINTS", |token| {
                let names = if token.endpoints.is_empty() { "any".into() } else { token.endpoints.join(" ") };
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
        let listener = |ListenerRow { name, seen_at, missed, .. }: &ListenerRow| {
            let missed = missed.count;
            json!({"name": name, "last_seen_at": seen_at, "missed": missed})
        };
        let mut shown = serde_json::to_value(row)?;
        shown["domains"] = serde_json::to_value(domains)?;
        shown["listeners"] = listeners.iter().map(listener).collect();
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

/// Opens a store that is there. Only a relay, or a first token, makes one: to look elsewhere is a mistake.
fn open(args: &StoreArgs) -> anyhow::Result<Arc<dyn Store>> {
    let folder = &args.data_dir;
    anyhow::ensure!(
        store::is_in(folder),
        "there is no relay's store in {}\n  cause: a relay, or the first token, makes it\n  next:  name the relay's \
         folder or its configuration:  --data-dir DIR, or --config FILE",
        folder.display()
    );
    Ok(store::open(folder)?)
}

/// Ctrl-C or a service manager's SIGTERM.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
