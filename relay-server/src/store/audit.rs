//! The audit log: who changed what, and what was refused.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

/// So many lines are kept; the oldest go first.
pub(crate) const MOST_KEPT: u64 = 100_000;
/// And so many of what was refused: changes stay longer.
pub(crate) const MOST_REFUSED_KEPT: u64 = 20_000;

/// Who acts on a store, and by which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    /// A token's name, or an account of the machine.
    pub actor: Arc<str>,
    /// Which way.
    pub via: Via,
}

/// By which way somebody acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The relay by itself.
    Relay,
    /// `hookway-relay` on the machine.
    Cli,
    /// The admin API.
    Api,
    /// A client, over its session.
    Client,
}

impl By {
    /// The relay by itself.
    #[must_use]
    pub fn relay() -> Self {
        Self { actor: "relay".into(), via: Via::Relay }
    }

    /// Whoever has that name, by that way.
    #[must_use]
    pub fn new(actor: &str, via: Via) -> Self {
        Self { actor: actor.into(), via }
    }
}

impl Via {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Cli => "cli",
            Self::Api => "api",
            Self::Client => "client",
        }
    }
}

/// A line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    /// Its place: lines are counted from 1.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// By which way: `cli`, `api`, `client`, or `relay` for what it does by itself.
    pub via: String,
    /// What was done, or was to be: `token.create`, `endpoint.release`…
    pub action: String,
    /// To what: a name or an id.
    pub target: String,
    /// What more there is to say; for what was refused, why.
    pub detail: String,
    /// Whether it was refused: nothing was changed then.
    pub refused: bool,
}

/// What is written of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What was done, or was to be.
    pub action: &'static str,
    /// To what.
    pub target: String,
    /// What more there is to say.
    pub detail: String,
    /// Whether it was refused.
    pub refused: bool,
}

impl Note {
    /// What was done.
    #[must_use]
    pub fn done(action: &'static str, target: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { action, target: target.into(), detail: detail.into(), refused: false }
    }

    /// What was refused, and why.
    #[must_use]
    pub fn refused(action: &'static str, target: impl Into<String>, why: impl Into<String>) -> Self {
        Self { action, target: target.into(), detail: why.into(), refused: true }
    }
}
