//! Stays connected to the relay.

mod answer;
mod collect;
mod dial;
mod endpoints;
mod exchanges;
mod letters;
mod session;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hookway_protocol::host::Host;
use hookway_protocol::link::{Link, LinkError, Transport};
use hookway_protocol::message::{Code, Domain, Queueing};
use hookway_protocol::seal::OpeningKey;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use dial::Transports;
pub(crate) use dial::{Reached, probe, roots};
pub(crate) use endpoints::endpoints;
pub(crate) use letters::{Letters, Retry, Unanswered};

use crate::events::Event;
use crate::forwarder::Forwarder;
use crate::history::Recorder;
use dial::Dialer;
use session::{End, Ended, Session};

/// The first wait before connecting again; it doubles up to [`MAX_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(30);
/// For so long after a loss the wait stays short: a relay that restarts is back within it.
const EAGER: Duration = Duration::from_secs(60);
/// Wall clock and monotonic clock differ by more than this after a sleep.
const JUMP: Duration = Duration::from_secs(3);

/// Where a relay is: a host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayAddress {
    /// The host.
    pub host: String,
    /// The port; 443 unless said.
    pub port: u16,
}

impl FromStr for RelayAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let host = Host::parse(text).map_err(|error| error.to_string())?;
        let port = text.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let port = port.filter(|_| !text.ends_with(']')).map_or(Ok(443), |(_, port)| port.parse());
        Ok(Self { host: host.to_string(), port: port.map_err(|_| "not a port")? })
    }
}

impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            443 => f.write_str(&self.host),
            port => write!(f, "{}:{port}", self.host),
        }
    }
}

impl RelayAddress {
    /// The host, as TLS and the resolver take it.
    fn name(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// Host and port.
    fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// How to reach a relay and what to ask of it.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) relay: RelayAddress,
    /// A CA to trust beside the system's, or instead of it.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) transport: Transports,
    pub(crate) token: String,
    /// Names to serve. An empty one asks for a random name.
    pub(crate) endpoints: Vec<String>,
    /// The developer's own host names for them.
    pub(crate) domains: Vec<Domain>,
    /// What the relay is to do with deliveries.
    pub(crate) queueing: Queueing,
    /// Opens what was sealed to this client.
    pub(crate) opening_key: Option<Arc<OpeningKey>>,
}

impl Settings {
    /// Whether an endpoint is among those to serve; without a name it is the first, whichever that becomes.
    fn serves(&self, endpoint: &str) -> bool {
        endpoint.is_empty() || self.endpoints.iter().any(|name| name == endpoint)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("relay", &self.relay)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// What the relay said when it let the client in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcomed {
    /// The URLs of each endpoint by name, the public one first.
    pub urls: BTreeMap<String, Vec<String>>,
    /// The endpoint asked for first.
    pub first: Option<String>,
    /// The name of the token.
    pub owner: String,
    /// What the operator wants people to read, or empty.
    pub notice: String,
    /// What carries the link.
    pub transport: Transport,
    /// What waited while nobody was connected, by endpoint.
    pub backlogs: Vec<Backlog>,
}

/// What waited for an endpoint while nobody was connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The endpoint.
    pub endpoint: String,
    /// Deliveries that come now.
    pub waiting: u64,
    /// Deliveries that are tried no more.
    pub dead_letters: u64,
}

/// The relay could not be reached, or refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No connection.
    #[error("the relay {relay} cannot be reached")]
    Unreachable {
        /// Which relay.
        relay: String,
        /// Why.
        cause: String,
    },
    /// The relay said no.
    #[error("{reason}")]
    Refused {
        /// The kind of reason.
        code: Code,
        /// Why.
        reason: String,
        /// What to do.
        next: String,
    },
    /// Every endpoint of the session is served by somebody else now.
    #[error("no endpoint is left to serve: {reason}")]
    TakenOver {
        /// Why.
        reason: String,
    },
    /// The CA file cannot be used, or the like.
    #[error("this machine cannot connect to a relay")]
    Local {
        /// Why.
        cause: String,
    },
}

impl ConnectError {
    /// What was in the way.
    fn cause(&self) -> &str {
        match self {
            Self::Unreachable { cause: why, .. }
            | Self::Refused { reason: why, .. }
            | Self::TakenOver { reason: why }
            | Self::Local { cause: why } => why,
        }
    }
}

/// A tunnel that does not run yet.
#[derive(Debug)]
pub(crate) struct Tunnel {
    settings: Settings,
    questions: mpsc::Receiver<letters::Question>,
}

impl Tunnel {
    /// It, and what asks its relay for dead letters.
    pub(crate) fn new(settings: Settings) -> (Self, Letters) {
        let (letters, questions) = Letters::channel();
        (Self { settings, questions }, letters)
    }
}

/// Connects, serves, and connects again, for ever; until `stop`, or the relay says no for good.
pub(crate) async fn run(
    tunnel: Tunnel,
    forwarder: Arc<Forwarder>,
    recorder: Recorder,
    stop: CancellationToken,
) -> Result<(), ConnectError> {
    let Tunnel { settings, questions } = tunnel;
    let dialer = Dialer::new(&settings)?;
    let questions = Arc::new(tokio::sync::Mutex::new(questions));
    let over = stop.child_token();
    let left = TaskTracker::new();
    let keeper = Keeper { settings, dialer, forwarder, recorder, questions, over, left: left.clone() };
    // Also when nobody waits for its end any more.
    let over = keeper.over.clone().drop_guard();
    let end = keeper.run().await;
    drop(over);
    left.close();
    left.wait().await;
    end
}

/// Keeps a session.
struct Keeper {
    settings: Settings,
    dialer: Dialer,
    forwarder: Arc<Forwarder>,
    recorder: Recorder,
    questions: Arc<tokio::sync::Mutex<mpsc::Receiver<letters::Question>>>,
    /// No session is wanted any more.
    over: CancellationToken,
    /// Sessions that were left for a better link, until what they had in flight is done.
    left: TaskTracker,
}

impl Keeper {
    async fn run(mut self) -> Result<(), ConnectError> {
        let events = self.recorder.events().clone();
        let over = self.over.clone();
        let (mut lost, mut last): (Option<Instant>, Option<String>) = (None, None);
        let mut wait = FIRST_WAIT;
        loop {
            let attempt = async { self.open(self.dialer.dial().await?, self.settings.endpoints.clone()).await };
            let Some(attempt) = over.run_until_cancelled(attempt).await else { return Ok(()) };
            match attempt {
                Ok(session) => {
                    lost = None;
                    if let Some(first) = session.held().endpoints().first() {
                        // It stays the first when others are gone.
                        let unnamed = self.settings.domains.iter_mut().filter(|domain| domain.endpoint.is_empty());
                        unnamed.for_each(|domain| domain.endpoint.clone_from(first));
                    }
                    let ended = self.serve(session).await;
                    // A random name is kept when the client comes back; one that was lost is somebody else's now.
                    self.settings.endpoints = ended.endpoints;
                    wait = ended.back_in.unwrap_or(FIRST_WAIT).min(MAX_WAIT);
                    match ended.why {
                        End::Stopped => return Ok(()),
                        End::TakenOver(reason) => return Err(ConnectError::TakenOver { reason }),
                        End::Lost(reason) => events.tell(Event::Down { reason }),
                        End::Silent => events.tell(Event::Down { reason: LinkError::TimedOut.to_string() }),
                    }
                }
                Err(
                    ConnectError::Unreachable { cause: reason, .. }
                    | ConnectError::Refused { code: Code::Limit, reason, .. },
                ) if lost.is_some() => {
                    tracing::debug!(reason, "trying again");
                    if last.as_ref() != Some(&reason) {
                        events.tell(Event::Down { reason: reason.clone() });
                        last = Some(reason);
                    }
                }
                Err(error) => return Err(error),
            }
            let since = *lost.get_or_insert_with(Instant::now);
            let [.., random] = *hookway_protocol::id::DeliveryId::now().as_bytes();
            let jitter = 0.5 + 0.5 * f64::from(random) / f64::from(u8::MAX);
            let pause = pause(wait.mul_f64(jitter), &self.settings.relay);
            if over.run_until_cancelled(pause).await.is_none() {
                return Ok(());
            }
            wait = if since.elapsed() > EAGER { (wait * 2).min(MAX_WAIT) } else { FIRST_WAIT };
        }
    }

    /// Says hello on a link, asking for these endpoints.
    async fn open(&self, link: Link, endpoints: Vec<String>) -> Result<Session, ConnectError> {
        let settings = Settings { endpoints, ..self.settings.clone() };
        let (session, welcomed) = Session::open(link, &settings, self.forwarder.clone(), self.recorder.clone()).await?;
        self.recorder.events().tell(Event::Up(welcomed));
        Ok(session)
    }

    /// Serves until the session has ended, moving to a better link as soon as there is one: the relay hands over what
    /// comes to the new one, and what the old one has is finished there. And to another process of the relay that has
    /// taken over: both are served until the one before has ended.
    async fn serve(&self, mut session: Session) -> Ended {
        loop {
            let (held, transport, since) = (session.held(), session.transport(), Instant::now());
            let leave = self.over.child_token();
            let serving = session.serve(leave.clone(), self.over.clone(), self.questions.clone());
            let mut serving = Box::pin(serving);
            let (moved, is_over) = loop {
                let better = async {
                    let (link, is_over) = tokio::select! {
                        link = self.dialer.better(transport) => (link, true),
                        link = async { held.succeeded().await; self.dialer.successor().await } => (link, false),
                    };
                    held.moving();
                    let opened = self.open(link, held.endpoints()).await;
                    if opened.is_err() && !is_over {
                        tokio::time::sleep(FIRST_WAIT).await;
                    }
                    (opened, is_over)
                };
                let moved = tokio::select! {
                    ended = &mut serving => {
                        self.dialer.ended(transport, since.elapsed(), matches!(ended.why, End::Silent));
                        return ended;
                    }
                    moved = better => moved,
                };
                let (Err(error), is_over) = &moved else { break moved };
                if *is_over {
                    self.dialer.failed_over_quic();
                }
                if !held.stays(matches!(error, ConnectError::Refused { .. })) {
                    break moved;
                }
                tracing::debug!(%error, "not moved");
            };
            // What it has in flight is finished there, whoever serves the endpoints now.
            if is_over {
                leave.cancel();
            }
            self.left.spawn(serving);
            session = match moved {
                Ok(next) => next,
                Err(error) => {
                    let why = End::Lost(format!("moving to another link failed: {}", error.cause()));
                    return Ended { why, endpoints: held.endpoints(), back_in: None };
                }
            };
        }
    }
}

/// Waits; a wall clock that jumps or a new address of this machine cuts it short.
async fn pause(length: Duration, relay: &RelayAddress) {
    let end = Instant::now() + length;
    let mut clock = Clock::new();
    let address = local_address(relay);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1).min(end - Instant::now())).await;
        if clock.jumped() || local_address(relay) != address {
            return;
        }
    }
}

/// The address this machine would speak to the relay from; nothing is sent. Names are not looked up for it: any
/// far address shows whether there is a network.
fn local_address(relay: &RelayAddress) -> Option<std::net::IpAddr> {
    let ip = relay.name().parse().unwrap_or_else(|_| std::net::Ipv4Addr::new(192, 0, 2, 1).into());
    let any: std::net::SocketAddr = match ip {
        std::net::IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        std::net::IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any).ok()?;
    socket.connect((ip, relay.port)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Notices that the machine slept: the wall clock went on, the monotonic one did not.
#[derive(Debug)]
pub(crate) struct Clock {
    wall: SystemTime,
    steady: std::time::Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { wall: SystemTime::now(), steady: std::time::Instant::now() }
    }

    /// Whether the two differ since the last call.
    pub(crate) fn jumped(&mut self) -> bool {
        let now = Self::new();
        let steady = now.steady - self.steady;
        let jumped = match now.wall.duration_since(self.wall) {
            Ok(wall) => wall.abs_diff(steady) > JUMP,
            Err(_) => true,
        };
        *self = now;
        jumped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("hooks.example.com", "hooks.example.com")]
    #[case("https://hooks.example.com/", "hooks.example.com")]
    #[case("hooks.example.com:8443", "hooks.example.com:8443")]
    #[case("127.0.0.1:1234", "127.0.0.1:1234")]
    #[case("[::1]:1234", "[::1]:1234")]
    #[case("[::1]", "[::1]")]
    fn relays(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(text.parse::<RelayAddress>().map(|r| r.to_string()), Ok(shown.to_owned()));
    }

    #[test]
    fn a_clock_that_did_not_jump() {
        assert!(!Clock::new().jumped());
        let mut slept = Clock { wall: SystemTime::now() - Duration::from_secs(60), ..Clock::new() };
        assert!(slept.jumped());
        assert!(!slept.jumped());
    }
}
