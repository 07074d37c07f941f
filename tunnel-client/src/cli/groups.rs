//! Flags that several commands have, or that belong together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hookway_protocol::message::Share;
use hookway_protocol::settings::{duration, size};

use super::values::{expected, listener, share, term, time};
use crate::filter::Filter;
use crate::queueing::{Ack, At, OnOffline, Queueing};

/// What becomes of deliveries that cannot be handed over.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct QueueingArgs {
    /// While this client or its app is away: queue (202, delivered later) or error (503); PATH=… for a path; may be
    /// repeated [default: queue]
    #[arg(long, value_name = "[PATH=]queue|error", env = "HOOKWAY_ON_OFFLINE", value_delimiter = ',')]
    pub(crate) on_offline: Vec<At<OnOffline>>,
    /// When the sender is answered: app (by the app) or early (202 once it is on the relay's disk); PATH=… for a path;
    /// may be repeated [default: app]
    #[arg(long, value_name = "[PATH=]app|early", env = "HOOKWAY_ACK", value_delimiter = ',')]
    pub(crate) ack: Vec<At<Ack>>,
    /// Answer 202 to what the app answered 5xx, and try again from the queue
    #[arg(long, env = "HOOKWAY_RETRY_5XX", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) retry_5xx: bool,
    /// Queued deliveries handed over at once; with more than one the order is not kept
    #[arg(long, value_name = "N", env = "HOOKWAY_DRAIN_CONCURRENCY", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) drain_concurrency: u32,
    /// What waits for this client is kept so that only it can read it: its key is in its data folder
    #[arg(long, env = "HOOKWAY_SEAL", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) seal: bool,
}

/// Other clients of the same endpoint.
#[derive(Args, Clone, Debug)]
pub(crate) struct ShareArgs {
    /// Other clients of the endpoint: takeover (they lose it), balance (each delivery to one of those that ask for the
    /// same), or copy (each gets all that can wait; the first answers the sender)
    #[arg(long, value_name = "MODE", env = "HOOKWAY_SHARE", default_value = "takeover", value_parser = share)]
    pub(crate) share: Share,
    /// Names this client: with --share copy the relay keeps its copies under that name [default: made of this machine,
    /// folder and targets]
    #[arg(long, value_name = "NAME", env = "HOOKWAY_LISTENER", value_parser = listener)]
    pub(crate) listener: Option<String>,
}

impl QueueingArgs {
    /// The same without the flags' form.
    pub(crate) fn asked(&self) -> Queueing {
        let (on_offline, ack) = (self.on_offline.clone(), self.ack.clone());
        Queueing { on_offline, ack, retry_5xx: self.retry_5xx.then_some(true) }
    }
}

/// The secrets that signatures are checked and made with.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct VerifyArgs {
    /// Check signatures with the secret in that variable: stripe, github=MY_SECRET, …; may be repeated, also for one
    /// provider
    #[arg(long, value_name = "PROVIDER[=ENV]", env = "HOOKWAY_VERIFY", value_delimiter = ',')]
    // As text: what cannot be read may be the secret itself, and clap would repeat it.
    pub(crate) verify: Vec<String>,
}

/// What is asked of deliveries.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct PolicyArgs {
    /// Answer 401 to what is not signed well, before it reaches the app
    #[arg(long, env = "HOOKWAY_REQUIRE_SIGNATURE", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) require_signature: bool,
    /// Do not put an event to the app again that it took before
    #[arg(long, env = "HOOKWAY_DEDUPE", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) dedupe: bool,
    /// Answer 202 just before the sender's deadline while the app takes its time: you are stepping through its code
    #[arg(long, env = "HOOKWAY_BREAKPOINT", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) breakpoint: bool,
}

/// A file of requests, for tests.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct CassetteArgs {
    /// Put the requests of this file, which `hookway record` wrote, to the app: no history, no relay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ids", "failed", "edit", "times"], requires = "to")]
    pub(crate) cassette: Option<PathBuf>,
    /// With --cassette: the statuses that are right: 2xx, 200, 200,404
    #[arg(long, value_name = "STATUS", default_value = "2xx", requires = "cassette", value_delimiter = ',', value_parser = expected)]
    pub(crate) expect: Vec<String>,
    /// With --cassette: an answer must be there within so many milliseconds
    #[arg(long, value_name = "MS", requires = "cassette")]
    pub(crate) max_ms: Option<u64>,
    /// With --cassette: write a JUnit report
    #[arg(long, value_name = "FILE", requires = "cassette")]
    pub(crate) junit: Option<PathBuf>,
}

/// What is kept of requests.
#[derive(Args, Clone, Debug)]
pub(crate) struct HistoryArgs {
    /// Keep no history
    #[arg(long, env = "HOOKWAY_NO_STORE", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) no_store: bool,
    /// Requests that are kept; the oldest go first
    #[arg(long, value_name = "N", env = "HOOKWAY_HISTORY_COUNT", default_value_t = 10_000)]
    pub(crate) history_count: u64,
    /// How long requests are kept
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_HISTORY_AGE", default_value = "7d", value_parser = duration)]
    pub(crate) history_age: Duration,
    /// What kept requests may take of the disk
    #[arg(long, value_name = "SIZE", env = "HOOKWAY_HISTORY_SIZE", default_value = "512MiB", value_parser = size)]
    pub(crate) history_size: u64,
}

/// The inspector.
#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Where the inspector listens; the next free port when it is taken
    #[arg(long, value_name = "ADDR", env = "HOOKWAY_INSPECT", default_value = "127.0.0.1:4040")]
    pub(crate) inspect: SocketAddr,
    /// No inspector
    #[arg(long, env = "HOOKWAY_NO_INSPECT", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) no_inspect: bool,
    /// Open the inspector in the browser
    #[arg(long)]
    pub(crate) open: bool,
}

/// Which requests of the history.
#[derive(Args, Clone, Debug)]
pub(crate) struct FindArgs {
    /// Those since then: 1h, 10:30, 2026-11-21T10:00
    #[arg(long, value_name = "TIME", global = true, value_parser = time)]
    pub(crate) since: Option<String>,
    /// Those with this status: 404, 5xx, >=400, err
    #[arg(long, global = true, value_parser = |text: &str| term("status", text))]
    pub(crate) status: Option<String>,
    /// Those of this endpoint
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) endpoint: Option<String>,
    /// Those with this text in path, header fields or body
    #[arg(long, value_name = "TEXT", global = true, allow_hyphen_values = true)]
    pub(crate) grep: Option<String>,
    /// Those that match: method:POST path:/stripe status:5xx is:failed latency:>1s …
    #[arg(long, value_name = "EXPR", global = true, allow_hyphen_values = true)]
    pub(crate) filter: Option<Filter>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", global = true)]
    pub(crate) limit: Option<usize>,
    /// Show secrets: authorization, cookies, tokens, signatures
    #[arg(long, global = true)]
    pub(crate) secrets: bool,
}

impl FindArgs {
    /// The filter that they make together.
    pub(crate) fn filter(&self) -> Filter {
        let endpoint = self.endpoint.as_ref().and_then(|name| term("endpoint", name).ok());
        let terms = [&self.since, &self.status, &endpoint];
        let filters = terms.into_iter().flatten().filter_map(|term| term.parse::<Filter>().ok());
        let all = filters.chain(self.filter.clone()).fold(Filter::default(), Filter::and);
        self.grep.iter().fold(all, |all, text| all.and_text(text))
    }
}
