//! The client's command line.

mod groups;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hookway_protocol::host::EndpointName;
use hookway_protocol::message::Domain;
use hookway_protocol::settings::{duration, size};
use http::{HeaderName, HeaderValue};

pub(crate) use groups::{
    CassetteArgs, FindArgs, HistoryArgs, InspectArgs, PolicyArgs, QueueingArgs, ShareArgs, VerifyArgs,
};
pub(crate) use values::{domain, route};

use crate::config::provider;
use crate::filter::Filter;
use crate::forwarder::HostHeader;
use crate::history::Which;
use crate::signature::Known;
use crate::target::Target;
use crate::tunnel::{RelayAddress, Transports};
use values::{assignment, header, host_header, moment, target, time};

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
    /// Print warnings and errors only
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
    /// How to reach it
    #[arg(long, env = "HOOKWAY_TRANSPORT", default_value = "auto")]
    pub(crate) transport: Transports,
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
    /// A host name of your own that leads to the endpoint; what to set in its DNS is said. May be repeated
    #[arg(long, value_name = "HOST[=NAME]", env = "HOOKWAY_DOMAIN", value_parser = domain, value_delimiter = ',')]
    pub(crate) domain: Vec<Domain>,
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
    #[command(flatten)]
    pub(crate) queueing: QueueingArgs,
    #[command(flatten)]
    pub(crate) share: ShareArgs,
    #[command(flatten)]
    pub(crate) verify: VerifyArgs,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    /// Print only deliveries that match: method:POST path:/stripe status:5xx provider:stripe sig:bad header.x-id:7 …
    #[arg(long, value_name = "EXPR", env = "HOOKWAY_FILTER", allow_hyphen_values = true)]
    pub(crate) filter: Option<Filter>,
    #[command(flatten)]
    pub(crate) history: HistoryArgs,
    #[command(flatten)]
    pub(crate) inspect: InspectArgs,
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

/// What to do with requests of the history.
#[derive(Debug, Subcommand)]
pub(crate) enum RequestsCommand {
    /// List them, the newest last
    List,
    /// Show one: its head, body, attempts
    Show {
        /// An id, a part of it, or @1 for the newest
        id: Which,
        /// Print the request's body as it was received, and nothing else
        #[arg(long)]
        body: bool,
    },
    /// Print new ones as they come
    Follow,
    /// What is different between two
    Diff {
        /// The one
        a: Which,
        /// The other
        b: Which,
    },
    /// Write them as HAR, JSON lines, or a curl command
    Export {
        /// These; all that match, if none is named
        ids: Vec<Which>,
        /// HTTP Archive 1.2, for browsers and other tools
        #[arg(long, group = "format")]
        har: bool,
        /// One JSON object a line, whole: `import` reads it
        #[arg(long, group = "format")]
        jsonl: bool,
        /// A command that sends the request again
        #[arg(long, group = "format")]
        curl: bool,
        /// Into this file instead of stdout
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Read what `export --jsonl --secrets` wrote; - for stdin
    Import {
        /// The file
        file: PathBuf,
    },
    /// Delete these, or all that match
    Delete {
        /// These
        ids: Vec<Which>,
        /// All, if neither ids nor a filter is given; pinned ones stay
        #[arg(long)]
        all: bool,
    },
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
        http: std::net::SocketAddr,
        /// Where HTTPS listens; the next free port when it is taken
        #[arg(long, value_name = "ADDR", env = "HOOKWAY_HTTPS", default_value = "127.0.0.1:8443")]
        https: std::net::SocketAddr,
        #[command(flatten)]
        queueing: QueueingArgs,
        #[command(flatten)]
        verify: VerifyArgs,
        #[command(flatten)]
        policy: PolicyArgs,
        #[command(flatten)]
        history: HistoryArgs,
        #[command(flatten)]
        inspect: InspectArgs,
        /// Stop after one delivery
        #[arg(long)]
        once: bool,
    },
    /// Look into the history
    Requests {
        #[command(flatten)]
        find: FindArgs,
        #[command(subcommand)]
        what: Option<RequestsCommand>,
    },
    /// Put kept requests to the app again
    ///
    /// Exits 6 if the app failed one, 7 if a secret is missing that a cassette needs.
    Replay {
        /// An id, a part of it, or @1 for the newest
        #[arg(required_unless_present_any = ["failed", "cassette"])]
        ids: Vec<Which>,
        /// Those that failed and were not replayed with success since, the oldest first
        #[arg(long, conflicts_with = "ids")]
        failed: bool,
        /// With --failed: since then (1h, 10:30)
        #[arg(long, value_name = "TIME", value_parser = time, requires = "failed")]
        since: Option<String>,
        /// Where to, instead of where it went before: 4000, http(s)://host:port/prefix
        #[arg(long, value_name = "URL")]
        to: Option<Target>,
        /// Change the request in $EDITOR first
        #[arg(long, conflicts_with = "failed")]
        edit: bool,
        /// Add or replace a header field; may be repeated
        #[arg(short = 'H', long, value_name = "K: V", value_parser = header)]
        header: Vec<(HeaderName, HeaderValue)>,
        /// So many times
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        times: u32,
        #[command(flatten)]
        verify: VerifyArgs,
        /// Send the signature as it was kept
        #[arg(long)]
        no_resign: bool,
        #[command(flatten)]
        cassette: CassetteArgs,
        /// The app must begin to answer within this time
        #[arg(long, value_name = "DURATION", env = "HOOKWAY_TIMEOUT", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Send a signed sample webhook
    Send {
        /// stripe, github, slack, …
        #[arg(value_parser = provider)]
        provider: Known,
        /// The event; the provider's usual one, if none is named
        event: Option<String>,
        /// Where to: http(s)://host:port/path
        #[arg(long, value_name = "URL", required_unless_present = "list")]
        to: Option<http::Uri>,
        /// The variable that holds the secret; else what `[[verify]]` says, else the provider's usual one
        #[arg(long, value_name = "ENV")]
        secret_env: Option<String>,
        /// Send this body instead; - for stdin
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Change a value of the sample: data.object.amount=500; may be repeated
        #[arg(long, value_name = "PATH=VALUE", value_parser = assignment, conflicts_with = "file")]
        set: Vec<(String, String)>,
        /// Add or replace a header field; may be repeated
        #[arg(short = 'H', long, value_name = "K: V", value_parser = header)]
        header: Vec<(HeaderName, HeaderValue)>,
        /// With twilio: JSON instead of a form
        #[arg(long)]
        json_body: bool,
        /// Print what would be sent, and send nothing
        #[arg(long)]
        dry_run: bool,
        /// List the samples there are
        #[arg(long)]
        list: bool,
        /// The app must begin to answer within this time
        #[arg(long, value_name = "DURATION", env = "HOOKWAY_TIMEOUT", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Check the signature of a webhook in a file, and say what is wrong with it
    Verify {
        /// stripe, github, slack, …
        #[arg(value_parser = provider)]
        provider: Known,
        /// The body as it was received; - for stdin
        file: PathBuf,
        /// The variable that holds the secret; may be repeated
        #[arg(long, value_name = "ENV")]
        secret_env: Vec<String>,
        /// A header field as it was received; may be repeated
        #[arg(short = 'H', long, value_name = "K: V", value_parser = header)]
        header: Vec<(HeaderName, HeaderValue)>,
        /// The URL that it was sent to, for providers that sign it
        #[arg(long)]
        url: Option<http::Uri>,
        /// When it was received, if not now: 2026-11-21T10:00:00Z, or seconds since 1970
        #[arg(long, value_name = "TIME", value_parser = moment)]
        at: Option<jiff::Timestamp>,
    },
    /// Put the same event to the app in all the ways in which it may come again: is the handler idempotent?
    ///
    /// Exits 0 if it looked so, 1 if not, 6 if the app did not take the event in the first place.
    Drill {
        /// An id, a part of it, or @1 for the newest
        id: Which,
        /// Where to, instead of where it went before: 4000, http(s)://host:port/prefix
        #[arg(long, value_name = "URL")]
        to: Option<Target>,
        /// A command that tells the app's state, by its exit code and what it prints; run before and after
        #[arg(long, value_name = "CMD")]
        probe: Option<String>,
        #[command(flatten)]
        verify: VerifyArgs,
        /// The app must begin to answer within this time
        #[arg(long, value_name = "DURATION", env = "HOOKWAY_TIMEOUT", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Write requests into a file that tests replay: without secrets, to be signed afresh
    Record {
        /// These; all that match, if none is named
        ids: Vec<Which>,
        /// The file
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        /// Go on with those that come, until Ctrl-C
        #[arg(long, conflicts_with_all = ["ids", "limit"])]
        follow: bool,
        /// Those since then: 1h, 10:30, 2026-11-21T10:00
        #[arg(long, value_name = "TIME", conflicts_with = "ids", value_parser = time)]
        since: Option<String>,
        /// Those that match: provider:stripe path:/stripe status:2xx …
        #[arg(long, value_name = "EXPR", conflicts_with = "ids", allow_hyphen_values = true)]
        filter: Option<Filter>,
        /// At most so many, the newest
        #[arg(long, value_name = "N", conflicts_with = "ids")]
        limit: Option<usize>,
    },
    /// Who signs how: the providers whose signatures can be checked
    Providers {
        /// This one, with all there is to say
        #[arg(value_parser = provider)]
        provider: Option<Known>,
        /// All of them as a page in Markdown
        #[arg(long, conflicts_with = "provider")]
        markdown: bool,
    },
    /// A key of your own, for providers whose own nobody else has
    Keys {
        /// What of it
        what: KeysCommand,
        /// sendgrid, discord, standard
        #[arg(value_parser = provider)]
        provider: Known,
    },
    /// The inspector over the history, without a tunnel
    Inspect {
        #[command(flatten)]
        verify: VerifyArgs,
        #[command(flatten)]
        inspect: InspectArgs,
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
    /// Is everything in place, from the local app to the relay?
    ///
    /// Exits 0 if it is, 3 if no way leads to the relay, 4 if it does not let this client in, 1 for the rest.
    Doctor {
        /// Where your app listens: 3000, host:port, or http(s)://host:port/prefix
        #[arg(value_name = "TARGET")]
        target: Option<Target>,
        #[command(flatten)]
        relay: RelayArgs,
    },
    /// Forget the token
    Logout,
    /// Ask the relay who the token belongs to
    Whoami {
        #[command(flatten)]
        relay: RelayArgs,
    },
    /// Your endpoints at the relay
    Endpoints {
        /// What to do
        #[arg(default_value = "list")]
        what: EndpointsCommand,
        /// What to release: an endpoint's name, or a host name such as hooks.example.com
        #[arg(required_if_eq("what", "release"))]
        name: Option<String>,
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
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Manual {
        /// The folder.
        folder: PathBuf,
    },
    /// Print the version
    Version,
}

/// What of the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointsCommand {
    /// List them: who serves them, what waits, and your own host names that lead there
    List,
    /// Give a name back, which is kept for you for 30 days; or a host name of your own
    Release,
}

/// What of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeysCommand {
    /// Print its public half, as the provider's library takes it
    Show,
    /// Make it, if there is none
    Create,
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
