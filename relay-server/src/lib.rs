//! The relay: takes webhooks at public HTTPS host names and carries them to the clients that serve those names.
//!
//! [`Server`] is the whole of it; `main` adds the command line. The path of a webhook through these modules is in
//! `ARCHITECTURE.md`.

mod admin;
mod auth;
mod certs;
mod check;
pub mod cli;
pub mod config;
mod delivery;
mod limits;
mod metrics;
mod public;
mod queue;
mod relay;
mod resolver;
mod server;
mod shutdown;
pub mod store;
mod tunnel;

pub use admin::Config as AdminConfig;
pub use auth::{NewToken, Token};
pub use certs::acme::{Binding, Config as AcmeConfig, Proof};
#[cfg(fuzzing)]
pub use certs::check_dns_answers;
pub use certs::{CertsError, Config as CertsConfig, described};
pub use check::check;
pub use config::Config;
pub use limits::{Config as LimitsConfig, Rate};
pub use public::Config as PublicConfig;
pub use queue::Config as QueueConfig;
pub use resolver::is_public;
pub use server::{Addresses, BindError, Server};
pub use tunnel::Config as TunnelConfig;
