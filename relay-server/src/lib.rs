//! The relay: takes webhooks at public HTTPS host names and carries them to the clients that serve those names.
//!
//! [`Server`] is the whole of it; `main` adds the command line. The path of a webhook through these modules is in
//! `ARCHITECTURE.md`.

mod access_log;
mod admin;
mod auth;
mod certs;
mod check;
pub mod cli;
pub mod config;
mod delivery;
mod fetch;
mod handover;
mod limits;
mod lock;
mod metrics;
pub mod protection;
mod public;
mod queue;
mod relay;
mod resolver;
mod server;
mod shutdown;
pub mod store;
mod trace;
mod tunnel;

pub use access_log::Target as AccessLogTarget;
pub use admin::Config as AdminConfig;
pub use admin::client::get as ask_admin;
pub use auth::{NewToken, Scope, Token, TokenName, TokenPattern};
pub use certs::acme::{Binding, Config as AcmeConfig, Proof};
#[cfg(fuzzing)]
pub use certs::check_dns_answers;
pub use certs::{CertsError, Config as CertsConfig, described, shown as shown_certificate};
pub use check::check;
pub use config::Config;
pub use handover::{HandOverError, Predecessor};
pub use limits::{Config as LimitsConfig, Rate};
pub use lock::{Running, is_seen, running};
pub use public::Config as PublicConfig;
pub use queue::Config as QueueConfig;
pub use resolver::is_public;
pub use server::{Addresses, BindError, Server};
pub use trace::TraceError;
pub use tunnel::Config as TunnelConfig;
