//! The relay's command line.

mod acme;
mod init;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use hookway_protocol::host::Host;
use hookway_protocol::settings::{duration, size};
use ipnet::IpNet;

pub use acme::{AcmeArgs, AcmeChallenge};
pub use init::InitArgs;

use crate::access_log::Target;
use crate::auth::{Scope, TokenName, TokenPattern};
use crate::limits::Rate;
use crate::protection::{self, PathPrefix, Source};

/// Takes webhooks at public HTTPS names and carries them to the clients that serve those names.
#[derive(Debug, Parser)]
#[command(name = "hookway-relay", version, disable_help_subcommand = true, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The relay's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a configuration, and say which DNS records it wants
    Init(InitArgs),
    /// Is all in place: DNS, ports, clock, certificate, disk? Nothing is changed
    ///
    /// It takes the flags of `run`, and reads the same file. Exits 0 if all is well, 1 if something fails.
    Check(Box<RunArgs>),
    /// Run the relay
    Run(Box<RunArgs>),
    /// Make, list and revoke the tokens that clients connect with
    Token {
        /// What to do with tokens.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// List, show, protect and release endpoints
    Endpoint {
        /// What to do with endpoints.
        #[command(subcommand)]
        command: EndpointCommand,
    },
    /// What waits for clients that are away
    Queue {
        /// What to do with it.
        #[command(subcommand)]
        command: QueueCommand,
    },
    /// Certificates from a CA
    Cert {
        /// What to do with them.
        #[command(subcommand)]
        command: CertCommand,
    },
    /// What the relay on this machine is doing; exits 1 when it is not well
    Status {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Have the relay on this machine read its configuration and certificates again, as SIGHUP does
    Reload {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Write all that survives a restart into one file, while the relay runs or not
    Backup {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// The file to write
        file: PathBuf,
    },
    /// Make a data folder of a backup
    Restore {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// The backup
        file: PathBuf,
    },
    /// Have the relay on this machine hand over to the program on disk, without a gap
    ///
    /// The new process gets the sockets and the store; the one before finishes what it has in flight, and ends. It takes
    /// the flags of `run`, and reads the same file.
    Upgrade {
        /// The settings that the relay runs with.
        #[command(flatten)]
        run: Box<RunArgs>,
        /// Only look whether this program can take over: version, configuration, store
        #[arg(long)]
        check: bool,
    },
    /// Who changed what, and what was refused: newest last
    Audit {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// So many lines at most
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Print a completion script
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Manual {
        /// The folder.
        folder: PathBuf,
    },
    /// Print the version
    Version,
}

/// Which store a command works on.
#[derive(Args, Clone, Debug)]
pub struct StoreArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "HOOKWAY_RELAY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where the relay keeps what survives a restart
    #[arg(long, value_name = "DIR", env = "HOOKWAY_RELAY_DATA_DIR", default_value = "/var/lib/hookway")]
    pub data_dir: PathBuf,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it: the only time it can be seen
    Create {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// Who it is for. Tokens of one name own the same endpoints
        #[arg(long)]
        name: TokenName,
        /// Names it may serve, such as billing-*; any, if none is given
        #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
        endpoints: Vec<TokenPattern>,
        /// What it is for
        #[arg(long, default_value = "client")]
        scope: Scope,
        /// When it stops to be valid, from now: 90d
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        expires: Option<Duration>,
    },
    /// List tokens, without their secret
    List {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Revoke a token, or all of a name; its clients are cut off within seconds
    Revoke {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// The token's id or name
        token: String,
    },
}

/// What to do with endpoints.
#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// List endpoints and their owners
    List {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show one endpoint
    Show {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// Its name
        name: String,
    },
    /// Protect an endpoint, in place of what protects it now; without flags, show what does
    Protect {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// Its name
        name: String,
        /// What it is protected with.
        #[command(flatten)]
        protect: Box<ProtectArgs>,
    },
    /// Take a name from its owner: an endpoint's, or a host name of a developer's own
    Release {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// Its name
        name: String,
        /// An endpoint's name can be had by others after this time; its owner can have it again at once
        #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = duration)]
        hold: Duration,
    },
}

/// What an endpoint is protected with. No key of the configuration has one of these names: it would be its default.
#[derive(Args, Clone, Debug, Default)]
pub struct ProtectArgs {
    /// Take requests from there alone: an address, a network, or a provider such as github; may be repeated
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', action = ArgAction::Append)]
    pub allow_ip: Vec<Source>,
    /// Take no requests from there; may be repeated
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', action = ArgAction::Append)]
    pub deny_ip: Vec<Source>,
    /// Take requests at this path and below it alone; may be repeated
    #[arg(long, value_name = "PATH", action = ArgAction::Append)]
    pub allow_path: Vec<PathPrefix>,
    /// Want a name and a password: the environment variable that holds NAME:PASSWORD; may be repeated
    #[arg(long, value_name = "VARIABLE", action = ArgAction::Append)]
    pub basic_auth: Vec<String>,
    /// Take so many requests a second
    #[arg(long, value_name = "RATE")]
    pub limit_rate: Option<Rate>,
    /// Take bodies of so many bytes
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub limit_body: Option<u64>,
    /// Protect it with nothing
    #[arg(long, conflicts_with_all = ["allow_ip", "deny_ip", "allow_path", "basic_auth", "limit_rate", "limit_body"])]
    pub none: bool,
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// List them: whose they are, until when, and what went wrong
    Status {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Order new ones now; a running relay begins within seconds
    Renew {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// What to do with the queue.
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// How much waits for each endpoint, and for how long
    Stats {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// Only for this endpoint
        endpoint: Option<String>,
    },
    /// List what waits, in the order of acceptance
    List {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// Only for this endpoint
        endpoint: Option<String>,
    },
    /// List dead letters: what has waited too long, and what no attempt can help
    DeadLetters {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// Only of this endpoint
        endpoint: Option<String>,
    },
    /// Make dead letters wait again; a running relay hands them over within seconds
    Retry {
        /// Which store.
        #[command(flatten)]
        store: StoreArgs,
        /// These, by id or a part of it that only one has
        #[arg(required_unless_present_any = ["all", "endpoint"])]
        ids: Vec<String>,
        /// All of this endpoint
        #[arg(long, value_name = "NAME", conflicts_with = "ids")]
        endpoint: Option<String>,
        /// All
        #[arg(long, conflicts_with_all = ["ids", "endpoint"])]
        all: bool,
    },
}

/// Where certificates come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tls {
    /// A CA of the relay's own
    SelfSigned,
    /// PEM files, read again when they change
    Files,
    /// From a CA, by ACME: ordered and renewed without anybody's doing
    Acme,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog(pub Option<Target>);

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people
    Text,
    /// An object a line
    Json,
}

/// An address, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            text => text.parse().map(|address| Self(Some(address))).map_err(|_| "an address and port, or off".into()),
        }
    }
}

/// Settings of a running relay. Each is a key of the same name in the configuration file.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Endpoints are host names directly below this one
    #[arg(long, env = "HOOKWAY_RELAY_DOMAIN", value_parser = host)]
    pub(crate) domain: Option<Host<'static>>,
    /// Where HTTPS listens, and QUIC for clients on UDP
    #[arg(long, value_name = "ADDR", env = "HOOKWAY_RELAY_HTTPS", default_value = "0.0.0.0:443")]
    pub(crate) https: SocketAddr,
    /// Where plain HTTP listens, or off; it redirects
    #[arg(long, value_name = "ADDR", env = "HOOKWAY_RELAY_HTTP", default_value = "0.0.0.0:80")]
    pub(crate) http: Listen,
    /// Serve plain HTTP instead of redirecting it
    #[arg(long, env = "HOOKWAY_RELAY_HTTP_SERVE", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) http_serve: bool,
    /// Where health, metrics, the admin API and its status page are served, or off
    #[arg(long, value_name = "ADDR", env = "HOOKWAY_RELAY_ADMIN", default_value = "127.0.0.1:9480")]
    pub(crate) admin: Listen,
    /// The HTTPS port that senders see, when it is another
    #[arg(long, value_name = "PORT", env = "HOOKWAY_RELAY_PUBLIC_PORT")]
    pub(crate) public_port: Option<u16>,
    /// Proxies and load balancers that are believed when they say whose request they pass on; may be repeated
    #[arg(long, value_name = "CIDR", env = "HOOKWAY_RELAY_TRUSTED_PROXY", value_delimiter = ',', value_parser = network, action = ArgAction::Append)]
    pub(crate) trusted_proxy: Vec<IpNet>,
    /// Connections of trusted proxies begin with a header of the PROXY protocol, version 2
    #[arg(long, env = "HOOKWAY_RELAY_PROXY_PROTOCOL", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) proxy_protocol: bool,
    /// Who may not send to any endpoint: an address, a network or a provider; may be repeated
    #[arg(long, value_name = "SOURCE", env = "HOOKWAY_RELAY_DENY", value_delimiter = ',', action = ArgAction::Append)]
    pub(crate) deny: Vec<Source>,
    /// Whom to write to about abuse: a mail address or a URL, shown to browsers where no endpoint is
    #[arg(long, value_name = "MAIL|URL", env = "HOOKWAY_RELAY_ABUSE_CONTACT", value_parser = contact)]
    pub(crate) abuse_contact: Option<String>,
    /// Pass no web pages of apps back: their senders get the status, and a line that says so
    #[arg(long, env = "HOOKWAY_RELAY_WEBHOOKS_ONLY", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) webhooks_only: bool,
    /// Let search engines keep apps' pages
    #[arg(long, env = "HOOKWAY_RELAY_ALLOW_INDEXING", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) allow_indexing: bool,
    /// Where certificates come from
    #[arg(long, env = "HOOKWAY_RELAY_TLS", default_value = "self-signed")]
    pub(crate) tls: Tls,
    /// The certificate chain, leaf first (with --tls files)
    #[arg(long, value_name = "FILE", env = "HOOKWAY_RELAY_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key (with --tls files)
    #[arg(long, value_name = "FILE", env = "HOOKWAY_RELAY_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) acme: AcmeArgs,
    /// Where developers' own host names are looked up, instead of this machine's name servers
    #[arg(long, value_name = "IP:PORT", env = "HOOKWAY_RELAY_RESOLVER")]
    pub(crate) resolver: Option<SocketAddr>,
    /// How long work in flight may take when the relay stops
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_GRACE", default_value = "30s", value_parser = duration)]
    pub(crate) grace: Duration,
    /// What is logged, such as info or hookway_relay=debug
    #[arg(long, value_name = "FILTER", env = "HOOKWAY_RELAY_LOG", default_value = "info")]
    pub log: String,
    /// How it is written
    #[arg(long, value_name = "FORMAT", env = "HOOKWAY_RELAY_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Write a line of JSON for each request: a file, - for standard output, or off
    #[arg(long, value_name = "FILE", env = "HOOKWAY_RELAY_ACCESS_LOG", default_value = "off", value_parser = access_log)]
    pub(crate) access_log: AccessLog,

    /// Bytes of a request's head, at most 64KiB
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_RELAY_MAX_HEAD", default_value = "64KiB", value_parser = head_size, help_heading = "Limits")]
    pub(crate) max_head: u64,
    /// Bytes of a request's body
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_RELAY_MAX_BODY", default_value = "1GiB", value_parser = size, help_heading = "Limits")]
    pub(crate) max_body: u64,
    /// Bytes of all bodies up to 1 MiB that are being delivered; those of one address may be a quarter of it
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_RELAY_BODY_MEMORY", default_value = "256MiB", value_parser = size, help_heading = "Limits")]
    pub(crate) body_memory: u64,
    /// Requests a second to one endpoint, or off
    #[arg(long, env = "HOOKWAY_RELAY_RATE", default_value = "1000/s", help_heading = "Limits")]
    pub(crate) rate: Rate,
    /// Deliveries of one endpoint at once
    #[arg(
        long,
        value_name = "N",
        env = "HOOKWAY_RELAY_MAX_CONCURRENT",
        default_value_t = 1000,
        help_heading = "Limits"
    )]
    pub(crate) max_concurrent: usize,
    /// Requests a second to all endpoints of one token, or off
    #[arg(
        long,
        value_name = "RATE",
        env = "HOOKWAY_RELAY_TOKEN_RATE",
        default_value = "5000/s",
        help_heading = "Limits"
    )]
    pub(crate) token_rate: Rate,
    /// Deliveries of one token at once
    #[arg(
        long,
        value_name = "N",
        env = "HOOKWAY_RELAY_TOKEN_MAX_CONCURRENT",
        default_value_t = 2000,
        help_heading = "Limits"
    )]
    pub(crate) token_max_concurrent: usize,
    /// A head must have come within this time, and a connection's first request; HTTP/1.1 is kept no longer unused
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_HEADER_TIMEOUT", default_value = "10s", value_parser = duration, help_heading = "Limits")]
    pub(crate) header_timeout: Duration,
    /// A body of announced length must go on within this time, and one up to 1 MiB be whole
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_BODY_TIMEOUT", default_value = "30s", value_parser = duration, help_heading = "Limits")]
    pub(crate) body_timeout: Duration,
    /// Bytes a second that a body of announced length must come with
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_RELAY_MIN_BODY_RATE", default_value = "1KiB", value_parser = size, help_heading = "Limits")]
    pub(crate) min_body_rate: u64,
    /// A sender must go on taking its answer within this time
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_WRITE_TIMEOUT", default_value = "30s", value_parser = duration, help_heading = "Limits")]
    pub(crate) write_timeout: Duration,
    /// An HTTP/2 connection is closed when its last answer is this old
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_IDLE_TIMEOUT", default_value = "75s", value_parser = duration, help_heading = "Limits")]
    pub(crate) idle_timeout: Duration,
    /// Requests at once on one HTTP/2 connection
    #[arg(long, value_name = "N", env = "HOOKWAY_RELAY_MAX_STREAMS", default_value_t = 100, help_heading = "Limits")]
    pub(crate) max_streams: u32,
    /// Connections of all senders
    #[arg(
        long,
        value_name = "N",
        env = "HOOKWAY_RELAY_MAX_CONNECTIONS",
        default_value_t = 20_000,
        help_heading = "Limits"
    )]
    pub(crate) max_connections: usize,
    /// Connections of one address (an IPv6 /64)
    #[arg(
        long,
        value_name = "N",
        env = "HOOKWAY_RELAY_MAX_CONNECTIONS_PER_IP",
        default_value_t = 500,
        help_heading = "Limits"
    )]
    pub(crate) max_connections_per_ip: usize,
    /// A client must be let in within this time
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_HANDSHAKE_TIMEOUT", default_value = "5s", value_parser = duration, help_heading = "Limits")]
    pub(crate) handshake_timeout: Duration,
    /// Clients that have not said yet who they are
    #[arg(
        long,
        value_name = "N",
        env = "HOOKWAY_RELAY_MAX_HANDSHAKES",
        default_value_t = 512,
        help_heading = "Limits"
    )]
    pub(crate) max_handshakes: usize,
    /// The same, of one address that has proven to be real
    #[arg(
        long,
        value_name = "N",
        env = "HOOKWAY_RELAY_MAX_HANDSHAKES_PER_IP",
        default_value_t = 32,
        help_heading = "Limits"
    )]
    pub(crate) max_handshakes_per_ip: usize,
    /// Endpoints of one client
    #[arg(long, value_name = "N", env = "HOOKWAY_RELAY_MAX_ENDPOINTS", default_value_t = 64, help_heading = "Limits")]
    pub(crate) max_endpoints: usize,
    /// Clients of one token's name
    #[arg(long, value_name = "N", env = "HOOKWAY_RELAY_MAX_SESSIONS", default_value_t = 100, help_heading = "Limits")]
    pub(crate) max_sessions: usize,
    /// Endpoint names of one token's name
    #[arg(long, value_name = "N", env = "HOOKWAY_RELAY_MAX_NAMES", default_value_t = 1000, help_heading = "Limits")]
    pub(crate) max_names: usize,
    /// A client must have taken a delivery, and its reply have begun, within this time
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_REPLY_TIMEOUT", default_value = "10m", value_parser = duration, help_heading = "Limits")]
    pub(crate) reply_timeout: Duration,

    /// Deliveries that wait for one endpoint
    #[arg(
        long,
        value_name = "N",
        env = "HOOKWAY_RELAY_QUEUE_MAX_COUNT",
        default_value_t = 10_000,
        help_heading = "Queue"
    )]
    pub(crate) queue_max_count: usize,
    /// Their bytes
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_RELAY_QUEUE_MAX_BYTES", default_value = "1GiB", value_parser = size, help_heading = "Queue")]
    pub(crate) queue_max_bytes: u64,
    /// Deliveries that wait for all endpoints of one token
    #[arg(
        long,
        value_name = "N",
        env = "HOOKWAY_RELAY_QUEUE_TOKEN_MAX_COUNT",
        default_value_t = 100_000,
        help_heading = "Queue"
    )]
    pub(crate) queue_token_max_count: usize,
    /// Their bytes
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_RELAY_QUEUE_TOKEN_MAX_BYTES", default_value = "10GiB", value_parser = size, help_heading = "Queue")]
    pub(crate) queue_token_max_bytes: u64,
    /// Bytes of a body that may wait
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_RELAY_QUEUE_MAX_BODY", default_value = "32MiB", value_parser = size, help_heading = "Queue")]
    pub(crate) queue_max_body: u64,
    /// A delivery that has waited for so long is a dead letter
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_QUEUE_RETENTION", default_value = "24h", value_parser = duration, help_heading = "Queue")]
    pub(crate) queue_retention: Duration,
    /// How long dead letters are kept
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_DEAD_LETTER_RETENTION", default_value = "14d", value_parser = duration, help_heading = "Queue")]
    pub(crate) dead_letter_retention: Duration,
    /// The part of the disk that is left free: 5%
    #[arg(long, value_name = "PERCENT", env = "HOOKWAY_RELAY_DISK_RESERVE", default_value = "5%", value_parser = percent, help_heading = "Queue")]
    pub(crate) disk_reserve: u8,
}

impl RunArgs {
    /// Whether the ready line is JSON.
    #[must_use]
    pub const fn json(&self) -> bool {
        self.store.json
    }

    /// Which store.
    #[must_use]
    pub const fn store(&self) -> &StoreArgs {
        &self.store
    }

    /// Where the relay keeps what survives a restart.
    #[must_use]
    pub fn data_dir(&self) -> &std::path::Path {
        &self.store.data_dir
    }
}

fn host(text: &str) -> Result<Host<'static>, String> {
    Host::parse(text).map(Host::into_owned).map_err(|error| error.to_string())
}

/// A head travels in one frame of the link.
fn head_size(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    let fits = bytes <= hookway_protocol::frame::MAX_HEAD as u64;
    fits.then_some(bytes).ok_or_else(|| "at most 64KiB: no more fits in a head on the link".into())
}

/// A network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    protection::network(text).ok_or_else(|| "a network is one such as 10.0.0.0/8, or an address".into())
}

#[expect(clippy::unnecessary_wraps, reason = "clap wants it so")]
fn access_log(text: &str) -> Result<AccessLog, String> {
    Ok(AccessLog(match text {
        "off" => None,
        "-" => Some(Target::Stdout),
        path => Some(Target::File(path.into())),
    }))
}

fn contact(text: &str) -> Result<String, String> {
    let is_plain = !text.contains(|c: char| c.is_control() || c.is_whitespace() || "<>\"'".contains(c));
    let is_url = text.starts_with("https://") || text.starts_with("http://");
    let is_mail = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    let fits = is_plain && (is_url || is_mail);
    fits.then(|| text.to_owned()).ok_or_else(|| "a contact is abuse@example.com or https://example.com/abuse".into())
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<u8>().ok().filter(|number| *number < 100);
    number.ok_or_else(|| "a part of the disk is 0% to 99%".into())
}
