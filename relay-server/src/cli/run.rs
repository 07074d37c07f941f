//! Flags of `hookway-relay run`: the relay's settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use hookway_protocol::host::Host;
use hookway_protocol::settings::{duration, size};
use ipnet::IpNet;

use super::{AcmeArgs, StoreArgs};
use crate::access_log::Target;
use crate::limits::Rate;
use crate::protection::{self, Source};

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

pub(super) fn host(text: &str) -> Result<Host<'static>, String> {
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
