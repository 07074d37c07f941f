//! One connection to the relay: the hello, what the two say to each other, leaving.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hookway_protocol::link::{Control, Link, LinkError, Quiet, StreamError, Transport};
use hookway_protocol::message::{
    self, ClientMessage, Code, DOMAINS, FromClient, FromRelay, Hello, MAX_DOMAINS, Ping, RelayMessage, Released, Seen,
};
use hookway_protocol::{MAX_VERSION, MIN_VERSION, common_version};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::exchanges::Exchanges;
use super::letters::{Pending, Question};
use super::{Backlog, Clock, ConnectError, Settings, Welcomed};
use crate::events::{Event, Events};
use crate::forwarder::Forwarder;
use crate::history::Recorder;

/// The relay must answer a hello, and a ping after a clock jump, within this time.
const ANSWER_IN: Duration = Duration::from_secs(5);
const PONG_IN: Duration = Duration::from_secs(2);
/// The relay must take back a leaving client's endpoints within this time.
const RELEASED_IN: Duration = Duration::from_secs(2);
/// What a leaving client was already passing on may go on for this long: an answer may have no end.
const FLOWS_FOR: Duration = Duration::from_secs(5);
/// What a leaving client has sent must have arrived within this time.
const ARRIVED_IN: Duration = Duration::from_secs(2);
/// A link that is closed says why within this time after its streams have broken off.
const WHY_IN: Duration = Duration::from_millis(500);
/// Exchanges whose link is gone end within this time.
const BROKEN_OFF_IN: Duration = Duration::from_secs(1);

/// A session that was let in.
#[derive(Debug)]
pub(super) struct Session {
    link: Link,
    control: Control,
    held: Arc<Held>,
    exchanges: Arc<Exchanges>,
}

/// The endpoints of a session, as others may see them while it is served.
#[derive(Debug)]
pub(super) struct Held {
    endpoints: Mutex<Vec<String>>,
    moving: Mutex<Moving>,
    /// Another process has taken over at the relay.
    succeeded: CancellationToken,
}

/// Whether another session of this client takes the endpoints over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moving {
    No,
    /// It has said hello, or is about to.
    Now {
        /// Some went to it.
        begun: bool,
    },
    /// It failed, and may take them yet.
    Failed,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their names.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.lock().clone()
    }

    fn state(&self) -> MutexGuard<'_, Moving> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another process has taken over at the relay.
    pub(super) async fn succeeded(&self) {
        self.succeeded.cancelled().await;
    }

    /// Another session of this client takes them over now.
    pub(super) fn moving(&self) {
        *self.state() = Moving::Now { begun: false };
    }

    /// It could not, and says whether this session still has them. A refusal took nothing.
    pub(super) fn stays(&self, was_refused: bool) -> bool {
        let mut state = self.state();
        let stays = was_refused || *state == Moving::Now { begun: false };
        *state = if was_refused { Moving::No } else { Moving::Failed };
        stays
    }
}

/// How a session ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) why: End,
    /// The endpoints it had to the end.
    pub(super) endpoints: Vec<String>,
    /// When the relay wants to see the client again.
    pub(super) back_in: Option<Duration>,
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was asked to, and finished what was in flight.
    Stopped,
    /// The link is gone.
    Lost(String),
    /// Nothing was heard on it any more.
    Silent,
    /// No endpoint is left.
    TakenOver(String),
}

impl Session {
    /// Says hello and waits for the answer.
    pub(super) async fn open(
        link: Link,
        settings: &Settings,
        forwarder: Arc<Forwarder>,
        recorder: Recorder,
    ) -> Result<(Self, Welcomed), ConnectError> {
        let relay = settings.relay.to_string();
        let unreachable = |cause: String| ConnectError::Unreachable { relay: relay.clone(), cause };
        let answer = tokio::time::timeout(ANSWER_IN, hello(&link, settings)).await;
        let answer = answer.map_err(|_| unreachable("the relay did not answer the hello".into()))?;
        let (control, answer) = answer.map_err(|error| unreachable(error.to_string()))?;
        let welcome = match answer {
            RelayMessage::Welcome(welcome) => welcome,
            RelayMessage::Refused(refused) => {
                let code = Code::try_from(refused.code).unwrap_or(Code::Unknown);
                return Err(ConnectError::Refused { code, reason: refused.reason, next: refused.next });
            }
            _ => return Err(unreachable("the relay answered the hello with something else".into())),
        };
        if common_version(welcome.version, welcome.version).is_none() {
            let reason = format!("the relay chose protocol {}, which this client does not speak", welcome.version);
            return Err(ConnectError::Refused { code: Code::Version, reason, next: "upgrade hookway".into() });
        }
        let urls = |endpoint: &hookway_protocol::message::Endpoint| {
            std::iter::once(&endpoint.url).chain(&endpoint.more_urls).cloned().collect()
        };
        let welcomed = Welcomed {
            urls: welcome.endpoints.iter().map(|endpoint| (endpoint.name.clone(), urls(endpoint))).collect(),
            first: welcome.endpoints.first().map(|endpoint| endpoint.name.clone()),
            owner: welcome.owner,
            notice: welcome.notice,
            transport: link.transport(),
            backlogs: welcome.endpoints.iter().filter_map(backlog).collect(),
        };
        let endpoints: Vec<_> = welcome.endpoints.into_iter().map(|endpoint| endpoint.name).collect();
        let held = Arc::new(Held {
            endpoints: Mutex::new(endpoints),
            moving: Mutex::new(Moving::No),
            succeeded: CancellationToken::new(),
        });
        let exchanges = Arc::new(Exchanges::new(forwarder, recorder, settings.opening_key.clone()));
        let is_first = exchanges.events().link().welcomed.is_none();
        if is_first && !settings.domains.is_empty() && !welcome.features.iter().any(|feature| feature == DOMAINS) {
            let text = "the relay is too old for --domain: ask its operator to upgrade it".into();
            exchanges.events().tell(Event::Hint { text });
        }
        Ok((Self { link, control, held, exchanges }, welcomed))
    }

    /// What carries it.
    pub(super) fn transport(&self) -> Transport {
        self.link.transport()
    }

    /// Its endpoints.
    pub(super) fn held(&self) -> Arc<Held> {
        self.held.clone()
    }

    /// Serves until the link is gone, or `leave`: then what is in flight is finished, in bounded time once `stop` says
    /// so.
    pub(super) async fn serve(
        self,
        leave: CancellationToken,
        stop: CancellationToken,
        questions: Arc<tokio::sync::Mutex<mpsc::Receiver<Question>>>,
    ) -> Ended {
        let Self { link, control, held, exchanges } = self;
        let open = link.close_on_drop("the client has ended the session");
        let accept = async {
            loop {
                match link.accept().await {
                    Ok(stream) => exchanges.clone().take(stream, &link),
                    Err(error) => return error,
                }
            }
        };
        let (released, back_in) = (CancellationToken::new(), OnceLock::new());
        let events = exchanges.events();
        let questions = &questions;
        let talk = Talk { link: &link, held: &held, events, questions, left: &released, back_in: &back_in };
        let control = talk.run(control, &leave);
        let finish = async {
            leave.cancelled().await;
            // First nothing new comes, then what is in flight is finished.
            let _ = tokio::time::timeout(RELEASED_IN, released.cancelled()).await;
            exchanges.finish(&stop, RELEASED_IN, FLOWS_FOR).await;
            // Closing a link throws away what is still on its way.
            exchanges.end(ARRIVED_IN).await;
            let in_time = async {
                stop.cancelled().await;
                tokio::time::sleep(ARRIVED_IN).await;
            };
            tokio::select! {
                () = link.drained() => {}
                () = in_time => {}
            }
        };
        let why = tokio::select! {
            error = accept => lost(&error),
            end = control => end,
            () = finish => End::Stopped,
        };
        // A link that ends while its client leaves has done its work.
        let why = if leave.is_cancelled() { End::Stopped } else { why };
        drop(open);
        tokio::join!(exchanges.wait(BROKEN_OFF_IN), link.flushed());
        Ended { why, endpoints: held.endpoints(), back_in: back_in.into_inner() }
    }
}

/// What waited for an endpoint, if anything did.
fn backlog(endpoint: &hookway_protocol::message::Endpoint) -> Option<Backlog> {
    let hookway_protocol::message::Endpoint { name, waiting, dead_letters, .. } = endpoint;
    let backlog = Backlog { endpoint: name.clone(), waiting: *waiting, dead_letters: *dead_letters };
    (*waiting + *dead_letters > 0).then_some(backlog)
}

fn lost(error: &LinkError) -> End {
    match error {
        LinkError::TimedOut => End::Silent,
        error => End::Lost(error.to_string()),
    }
}

pub(super) async fn hello(link: &Link, settings: &Settings) -> Result<(Control, RelayMessage), StreamError> {
    let mut control = link.control().await.map_err(StreamError::Lost)?;
    let hello = Hello {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        token: settings.token.clone(),
        endpoints: settings.endpoints.clone(),
        domains: settings.domains.iter().filter(|domain| settings.serves(&domain.endpoint)).cloned().collect(),
        queueing: Some(settings.queueing.clone()),
        agent: concat!("hookway/", env!("CARGO_PKG_VERSION")).into(),
        features: vec![],
    };
    control.sender.send(&FromClient::from(ClientMessage::Hello(hello))).await?;
    let answer = control.receiver.receive::<FromRelay>().await?.and_then(|answer| answer.message);
    Ok((control, answer.ok_or(StreamError::Aborted)?))
}

/// What is said on the control stream.
struct Talk<'a> {
    link: &'a Link,
    held: &'a Held,
    events: &'a Events,
    questions: &'a tokio::sync::Mutex<mpsc::Receiver<Question>>,
    /// Cancelled when the endpoints have been left.
    left: &'a CancellationToken,
    back_in: &'a OnceLock<Duration>,
}

impl Talk<'_> {
    /// Follows the control stream until the link is gone, leaving the endpoints at `leave`; after a clock jump, asks
    /// whether the relay still knows us.
    async fn run(self, control: Control, leave: &CancellationToken) -> End {
        let Control { mut sender, mut receiver } = control;
        let mut clock = Clock::new();
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let (mut pinged, mut pending): (Option<Instant>, _) = (None, Pending::default());
        let (mut leaving, mut over) = (false, false);
        let mut quiet = Quiet::on(self.link);
        loop {
            if leaving && self.held.lock().is_empty() {
                self.left.cancel();
            }
            let say = tokio::select! {
                () = leave.cancelled(), if !leaving => {
                    leaving = true;
                    sender.leave();
                    None
                }
                message = receiver.receive::<FromRelay>(), if !over => match message {
                    Ok(Some(FromRelay { message: Some(RelayMessage::Released(released)) })) => {
                        if let Some(end) = self.released(released, leaving) {
                            return end;
                        }
                        None
                    }
                    Ok(Some(FromRelay { message: Some(RelayMessage::Pong(_)) })) => {
                        pinged = None;
                        None
                    }
                    // The relay is stopping: it closes the link when what is in flight is done.
                    Ok(Some(FromRelay { message: Some(RelayMessage::GoAway(goaway)) })) => {
                        let _ = self.back_in.set(Duration::from_millis(goaway.reconnect_after_ms.into()));
                        if goaway.successor {
                            self.held.succeeded.cancel();
                        }
                        None
                    }
                    Ok(Some(FromRelay { message: Some(RelayMessage::Backlog(backlog)) })) => self.backlog(backlog),
                    Ok(Some(FromRelay { message: Some(RelayMessage::DomainState(state)) })) => {
                        // At each session again; it is told when it has changed. No more are kept than can be asked for.
                        let known = self.events.link().domains;
                        let is_new = known.get(&state.host) != Some(&state);
                        if is_new && (known.len() < MAX_DOMAINS || known.contains_key(&state.host)) {
                            self.events.tell(Event::Domain(state));
                        }
                        None
                    }
                    Ok(Some(FromRelay { message: Some(RelayMessage::DeadLetters(letters)) })) => {
                        pending.answered(letters);
                        None
                    }
                    Ok(Some(_)) => None,
                    // It has said all that it has to say to one that leaves.
                    Ok(None) if leaving => {
                        over = true;
                        self.left.cancel();
                        None
                    }
                    Ok(None) => return End::Lost("the relay ended the session".into()),
                    Err(StreamError::Lost(error)) => return lost(&error),
                    Err(error) => {
                        // Why is said by the end of the link, which may come a moment later.
                        let end = tokio::time::timeout(WHY_IN, self.link.closed()).await;
                        return end.map_or_else(|_| End::Lost(error.to_string()), |end| lost(&end));
                    }
                },
                Some(question) = async { self.questions.lock().await.recv().await }, if !leaving => {
                    pending.ask(question).map(ClientMessage::AskDeadLetters)
                }
                _ = ticks.tick() => {
                    self.events.measured(self.link.rtt());
                    if quiet.ends(self.link) {
                        return End::Silent;
                    }
                    if pinged.is_some_and(|at| at.elapsed() > PONG_IN) {
                        return End::Lost("the relay did not answer after the clock had jumped".into());
                    }
                    let ask = clock.jumped() && !leaving;
                    ask.then(|| {
                        pinged = Some(Instant::now());
                        ClientMessage::Ping(Ping { number: 1 })
                    })
                }
            };
            if let Some(say) = say.filter(|_| !leaving)
                && sender.send(&FromClient::from(say)).await.is_err()
            {
                return End::Lost("the relay cannot be reached".into());
            }
        }
    }

    /// An endpoint is no longer ours; the end, if it was the last.
    fn released(&self, released: Released, leaving: bool) -> Option<End> {
        let Released { endpoint, reason } = released;
        let moving = {
            let mut state = self.held.state();
            if let Moving::Now { begun } = &mut *state {
                *begun = true;
                return None;
            }
            *state
        };
        let is_last = {
            let mut endpoints = self.held.lock();
            let before = endpoints.len();
            endpoints.retain(|name| *name != endpoint);
            endpoints.is_empty() && before > 0
        };
        if leaving {
            return None;
        }
        let why = format!("`{endpoint}`: {reason}");
        if moving == Moving::Failed {
            // Most likely it went to our own session that failed: the next has it again.
            return is_last.then_some(End::Lost(why));
        }
        self.events.tell(Event::Released { endpoint, reason });
        is_last.then_some(End::TakenOver(why))
    }

    /// Tells of what this client has not seen, and the relay that it did.
    fn backlog(&self, backlog: message::Backlog) -> Option<ClientMessage> {
        let message::Backlog { endpoint, dead_letters: count, missed, missed_since_us, missed_why: why } = backlog;
        if !self.held.lock().contains(&endpoint) {
            return None;
        }
        let before = self.events.link().dead_letters.get(&endpoint).copied().unwrap_or(0);
        if count != before {
            self.events.tell(Event::DeadLetters { endpoint: endpoint.clone(), count });
        }
        let since = i64::try_from(missed_since_us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
        (missed > 0).then(|| {
            self.events.tell(Event::Lost { endpoint: endpoint.clone(), count: missed, since, why });
            ClientMessage::Seen(Seen { endpoint })
        })
    }
}
