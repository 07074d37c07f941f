//! The relay's command line.

mod acme;
mod init;
mod run;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use hookway_protocol::settings::{duration, size};

pub use acme::{AcmeArgs, AcmeChallenge};
pub use init::InitArgs;
pub use run::{AccessLog, Listen, LogFormat, RunArgs, Tls};

use crate::auth::{Scope, TokenName, TokenPattern};
use crate::limits::Rate;
use crate::protection::{PathPrefix, Source};

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
