//! The client's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hookway_protocol::host::EndpointName;
use hookway_protocol::settings::{duration, nearest, size};
use http::{HeaderName, HeaderValue};

use crate::forwarder::HostHeader;
use crate::target::Target;
use crate::tunnel::RelayAddress;

/// Receive webhooks on your own machine: `hookway 3000` puts what is sent to a public URL to port 3000.
#[derive(Debug, Parser)]
#[command(name = "hookway", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(flatten)]
    pub(crate) forward: ForwardArgs,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct GlobalArgs {
    /// Configuration file, instead of the usual one
    #[arg(long, value_name = "FILE", env = "HOOKWAY_CONFIG", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colour
    #[arg(long, env = "HOOKWAY_COLOR", default_value = "auto", global = true)]
    pub(crate) color: Color,
    /// Print errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log what happens on the way; twice for more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
}

impl Cli {
    /// The flags of every command as they are before any is read.
    pub(crate) const fn default_globals() -> GlobalArgs {
        GlobalArgs { config: None, json: false, color: Color::Auto, quiet: false, verbose: 0 }
    }
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal
    Auto,
    /// Also into a file or pipe
    Always,
    /// Not at all
    Never,
}

/// How to reach the relay.
#[derive(Args, Clone, Debug)]
pub struct RelayArgs {
    /// The relay
    #[arg(long, value_name = "HOST[:PORT]", env = "HOOKWAY_RELAY")]
    pub(crate) relay: Option<RelayAddress>,
    /// A CA to trust for it, when its certificate is self-signed
    #[arg(long, value_name = "FILE", env = "HOOKWAY_RELAY_CA")]
    pub(crate) relay_ca: Option<PathBuf>,
    /// A file with the token; else HOOKWAY_TOKEN, else what `hookway login` kept
    #[arg(long, value_name = "FILE", env = "HOOKWAY_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// What to forward, and how.
#[derive(Args, Clone, Debug)]
pub struct ForwardArgs {
    /// Where to: 3000, host:port, or http(s)://host:port/prefix
    #[arg(value_name = "TARGET", value_parser = target)]
    pub(crate) target: Option<Target>,
    #[command(flatten)]
    pub(crate) relay: RelayArgs,
    /// Endpoint name; may be repeated
    #[arg(short, long, env = "HOOKWAY_NAME", value_delimiter = ',')]
    pub(crate) name: Vec<EndpointName>,
    /// Paths that go elsewhere: /stripe=3001; may be repeated, the longest prefix wins
    #[arg(long, value_name = "PATH=TARGET", env = "HOOKWAY_ROUTE", value_parser = route, value_delimiter = ',')]
    pub(crate) route: Vec<(String, Target)>,
    /// Take a route's prefix off the path
    #[arg(long, env = "HOOKWAY_STRIP_PREFIX", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) strip_prefix: bool,
    /// Add or replace a header field towards the app; may be repeated (a line each in HOOKWAY_HEADER)
    #[arg(short = 'H', long, value_name = "K: V", env = "HOOKWAY_HEADER", value_parser = header, value_delimiter = '\n')]
    pub(crate) header: Vec<(HeaderName, HeaderValue)>,
    /// The Host that the app sees: keep, rewrite (the target's own), or a value
    #[arg(long, value_name = "HOST", env = "HOOKWAY_HOST_HEADER", default_value = "keep", value_parser = host_header)]
    pub(crate) host_header: HostHeader,
    /// How long to wait for an app that does not listen yet
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_WAIT_APP", default_value = "3s", value_parser = duration)]
    pub(crate) wait_app: Duration,
    /// The app must begin to answer within this time after it got the request
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// A body may be this large
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_MAX_BODY", default_value = "1GiB", value_parser = size)]
    pub(crate) max_body: u64,
    /// Deliveries at once
    #[arg(long, value_name = "N", env = "HOOKWAY_MAX_CONNECTIONS", default_value_t = 1024)]
    pub(crate) max_connections: usize,
    /// Print only deliveries that match: method:POST path:/stripe* status:5xx endpoint:NAME
    #[arg(long, value_name = "EXPR", env = "HOOKWAY_FILTER")]
    pub(crate) filter: Option<crate::output::Filter>,
    /// Stop after one delivery
    #[arg(long, conflicts_with = "until")]
    pub(crate) once: bool,
    /// Stop after N deliveries
    #[arg(long, value_name = "N")]
    pub(crate) until: Option<u64>,
    /// With --once or --until: exit 6 if a delivery failed
    #[arg(long)]
    pub(crate) fail: bool,
}

/// The client's other commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Relay and client on this machine; no account, nothing leaves it
    #[cfg(feature = "dev")]
    Dev {
        /// Where to: 3000, host:port, or http(s)://host:port/prefix
        #[arg(value_name = "TARGET")]
        target: Option<Target>,
        /// Start a small app as the target and send it one sample
        #[arg(long, conflicts_with = "target")]
        demo: bool,
        /// Endpoint name
        #[arg(short, long, env = "HOOKWAY_NAME", default_value = "demo")]
        name: EndpointName,
        /// The Host that the app sees: keep, rewrite (the target's own), or a value
        #[arg(long, value_name = "HOST", env = "HOOKWAY_HOST_HEADER", default_value = "keep", value_parser = host_header)]
        host_header: HostHeader,
        /// Where plain HTTP listens; the next free port when it is taken
        #[arg(long, value_name = "ADDR", env = "HOOKWAY_HTTP", default_value = "127.0.0.1:8080")]
        http: SocketAddr,
        /// Where HTTPS listens; the next free port when it is taken
        #[arg(long, value_name = "ADDR", env = "HOOKWAY_HTTPS", default_value = "127.0.0.1:8443")]
        https: SocketAddr,
        /// Stop after one delivery
        #[arg(long)]
        once: bool,
    },
    /// Keep a relay and a token for later; asks for the token
    Login {
        /// The relay: hooks.example.com
        url: RelayAddress,
        /// A CA to trust for it, when its certificate is self-signed
        #[arg(long, value_name = "FILE", env = "HOOKWAY_RELAY_CA")]
        relay_ca: Option<PathBuf>,
        /// A file with the token, instead of asking
        #[arg(long, value_name = "FILE", env = "HOOKWAY_TOKEN_FILE")]
        token_file: Option<PathBuf>,
    },
    /// Forget the token
    Logout,
    /// Ask the relay who the token belongs to
    Whoami {
        #[command(flatten)]
        relay: RelayArgs,
    },
    /// Where the configuration is, what it says, whether it is good
    Config {
        /// What of it.
        #[arg(default_value = "show")]
        what: ConfigCommand,
    },
    /// Print a completion script
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// What of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConfigCommand {
    /// The file's path
    Path,
    /// The settings in force, the token masked
    Show,
    /// Whether everything can be used
    Check,
}

/// A target, or what was probably meant.
fn target(text: &str) -> Result<Target, String> {
    text.parse::<Target>().map_err(|error| {
        let command = <Cli as clap::CommandFactory>::command();
        let nearest = nearest(text, command.get_subcommands().map(clap::Command::get_name));
        match nearest.filter(|_| !text.contains([':', '/'])) {
            Some(command) => format!("{error}; did you mean the command `{command}`?"),
            None => error.to_string(),
        }
    })
}

pub(crate) fn route(text: &str) -> Result<(String, Target), String> {
    let (prefix, target) = text.split_once('=').ok_or("a route is PATH=TARGET, such as /stripe=3001")?;
    if !prefix.starts_with('/') || prefix.contains(['?', '#', ' ']) {
        return Err("a route's path begins with / and has no query".into());
    }
    Ok((prefix.to_owned(), target.parse::<Target>().map_err(|error| error.to_string())?))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("a header field is 'Name: value'")?;
    let name = name.trim().parse().map_err(|_| "the name has a character that no header has")?;
    let mut value: HeaderValue = value.trim().parse().map_err(|_| "the value has a character that no header has")?;
    // It may be a secret: not to be shown by `Debug`.
    value.set_sensitive(true);
    Ok((name, value))
}

fn host_header(text: &str) -> Result<HostHeader, String> {
    Ok(match text {
        "keep" => HostHeader::Keep,
        "rewrite" => HostHeader::Rewrite,
        value => HostHeader::Value(value.parse().map_err(|_| "keep, rewrite, or a host name")?),
    })
}
