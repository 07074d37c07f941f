//! `hookway-relay run`: the relay, and the signals that it listens to.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use hookway_relay::cli::{Command, LogFormat, RunArgs};
use hookway_relay::config::ConfigError;
use hookway_relay::store::Note;
use hookway_relay::{BindError, CertsError, Config, Predecessor, Server};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::{block_on, fail, with_next};

/// Name a reload and a hand-over in the audit log.
pub(super) const RELOAD: &str = "config.reload";
pub(super) const HAND_OVER: &str = "relay.upgrade";

/// Puts another filter on the log.
type Refilter = Box<dyn Fn(EnvFilter) -> anyhow::Result<()>>;

/// Runs the relay until a signal stops it.
pub(crate) fn run(args: &RunArgs) -> ExitCode {
    let refilter = match filter(&args.log) {
        Ok(filter) => log(filter, args.log_format),
        Err(error) => return fail(&error, 2),
    };
    let config = match args.config() {
        Ok(config) => config,
        Err(error) => return end(&error.into(), 7, args.log_format),
    };
    let domain = config.domain.to_string();
    // The file may be another by the time of a hand-over; its name is the same.
    let program = std::env::current_exe();
    let serve = async {
        let mut signals = Signals::new()?;
        let predecessor = Predecessor::find().context("the process before cannot be spoken to")?;
        let is_successor = predecessor.is_some();
        let server = Server::bind_given(config, predecessor).await.map_err(with_next_step)?;
        if is_successor {
            tracing::info!(version = env!("CARGO_PKG_VERSION"), "taken over from the process before");
        }
        announce(&server, &domain, args.json());
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let mut is_over = false;
        loop {
            match signals.next().await {
                Told::Reload => reload(&server, &refilter, args.log_format).await,
                Told::HandOver => {
                    let handed = tokio::select! {
                        handed = hand_over(&server, program.as_deref().ok()) => Some(handed),
                        () = signals.stop() => None,
                    };
                    is_over = handed == Some(true);
                    if handed != Some(false) {
                        // Who does not serve by then does not come to it.
                        break;
                    }
                }
                Told::Stop => {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                    break;
                }
            }
        }
        tracing::info!("stopping: finishing what is in flight");
        let finished = tokio::select! {
            finished = server.shutdown() => finished,
            () = async {
                // Nobody has asked this process to stop before: it does so by itself.
                if is_over {
                    signals.stop().await;
                }
                signals.stop().await;
            } => return Ok(ExitCode::from(130)),
        };
        if !finished {
            tracing::warn!("the grace period is over: some requests were cut");
        }
        Ok(ExitCode::SUCCESS)
    };
    block_on(serve).unwrap_or_else(|error| end(&error, 1, args.log_format))
}

/// Says why it does not run, in the form of the log.
fn end(error: &anyhow::Error, code: u8, format: LogFormat) -> ExitCode {
    if format == LogFormat::Text || !tracing::enabled!(tracing::Level::ERROR) {
        return fail(error, code);
    }
    let next = error.downcast_ref::<ConfigError>().map(ConfigError::next);
    tracing::error!(next, "{error:#}");
    ExitCode::from(code)
}

fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    let filter = EnvFilter::try_new(text).map_err(|error| anyhow::Error::new(error).context("--log is no filter"))?;
    // A name server's nonsense is not the operator's concern: a line for each would be a stranger's way into the log.
    let quiet = (!text.contains("hickory")).then(|| "hickory_net=error".parse().expect("a directive"));
    Ok(quiet.into_iter().fold(filter, EnvFilter::add_directive))
}

/// Begins to log to stderr.
fn log(filter: EnvFilter, format: LogFormat) -> Refilter {
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Box::new(move |filter| Ok(handle.reload(filter)?))
}

/// Reads the configuration again, and takes over what is good; or nothing, when something is not.
async fn reload(server: &Server, refilter: &Refilter, format: LogFormat) {
    server.reopen();
    let read = || -> anyhow::Result<(Config, EnvFilter, LogFormat)> {
        match hookway_relay::config::parse(std::env::args_os())??.command {
            Command::Run(args) => Ok((args.config()?, filter(&args.log)?, args.log_format)),
            _ => anyhow::bail!("this is no relay that runs"),
        }
    };
    let taken = read().and_then(|(config, filter, wanted)| {
        let mut later = server.reload(config)?;
        refilter(filter)?;
        later.extend((wanted != format).then_some("log-format"));
        Ok(later)
    });
    let note = match taken {
        Ok(later) if later.is_empty() => {
            tracing::info!("configuration reloaded");
            Note::done(RELOAD, "", "")
        }
        Ok(later) => {
            let later = later.join(", ");
            tracing::warn!(settings = later, "configuration reloaded; these settings wait for a restart");
            Note::done(RELOAD, "", format!("waits for a restart: {later}"))
        }
        Err(error) => {
            let why = format!("{error:#}");
            tracing::error!(why, "configuration not reloaded; the one before stays in force");
            Note::refused(RELOAD, "", why)
        }
    };
    if let Err(error) = server.store().note(note).await {
        tracing::error!(%error, "the reload cannot be noted in the audit log");
    }
}

/// Hands over to the program on disk, and says whether it has.
async fn hand_over(server: &Server, program: Option<&Path>) -> bool {
    let pid = std::process::id();
    let note = match program {
        None => Err("it is not known where the program is".to_owned()),
        Some(program) => {
            tracing::info!(program = %program.display(), "handing over to a new process");
            let taken = server.hand_over(program, std::env::args_os().skip(1).collect()).await;
            taken.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
        }
    };
    let (note, is_over) = match note {
        Ok(new) => {
            tracing::info!(pid = new, "a new process has taken over");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::MainPid(new)]);
            (Note::done(HAND_OVER, new.to_string(), format!("from process {pid}")), true)
        }
        Err(why) => {
            tracing::error!(why, "nobody took over: this process goes on");
            (Note::refused(HAND_OVER, "", why), false)
        }
    };
    if let Err(error) = server.store().note(note).await {
        tracing::error!(%error, "the hand-over cannot be noted in the audit log");
    }
    is_over
}

fn announce(server: &Server, domain: &str, json: bool) {
    let addresses = server.addresses();
    let ca = server.ca().map(|path| std::path::absolute(&path).unwrap_or(path).display().to_string());
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
        BindError::Trace(_) => {
            "set OTEL_EXPORTER_OTLP_ENDPOINT to a collector such as http://127.0.0.1:4318, or not at all"
        }
        BindError::AccessLog(_) => "check that the file of --access-log can be written",
        BindError::Predecessor(_) => "see what its log says, and start this one again",
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
    let next = next.to_owned();
    with_next(error, &next)
}

/// What a signal asks for.
enum Told {
    Reload,
    HandOver,
    Stop,
}

/// SIGHUP reloads; SIGUSR2 hands over to the program on disk; Ctrl-C and a service manager's SIGTERM stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.hangup.recv() => Told::Reload,
            _ = self.user.recv() => Told::HandOver,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
        }
    }

    /// Leaves what else was asked for to be done later.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
