//! The client as a library: a public URL in a few lines.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hookway_protocol::host::{EndpointName, InvalidName};
use hookway_protocol::message::{Domain, Queueing, Rule, Share};
use hookway_protocol::seal::{OpeningKey, PUBLIC_KEY};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::events::{Event, Events, Listener};
use crate::exchange::{Attempt, Delivered, Outcome, Verdict};
use crate::filter::Filter;
use crate::forwarder::{Forwarder, Route, Settings as ForwardSettings};
use crate::history::{History, Listed, Recorder};
use crate::replay::Replayer;
use crate::target::{InvalidTarget, Target};
use crate::tunnel::{self, ConnectError, Letters, RelayAddress, Transports, Tunnel, Welcomed};
use crate::webhook::{Kept, Webhooks};

/// So many events of earlier runs are known.
const REMEMBERED: usize = 10_000;
/// A history that is locked is not waited for longer, also where repeats must not pass.
const REMEMBERED_IN: Duration = Duration::from_secs(3);

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    tunnel: tunnel::Settings,
    forward: ForwardSettings,
    history: Option<History>,
    filter: Filter,
}

/// Options that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// The relay is no host name.
    #[error("the relay is not HOST[:PORT]: {0}")]
    Relay(String),
    /// The target is none.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
}

impl Options {
    /// A client of this relay, with this token, for this target, under a random name.
    ///
    /// # Errors
    /// The relay or the target cannot be read.
    pub fn new(relay: &str, token: impl Into<String>, target: &str) -> Result<Self, InvalidOptions> {
        let relay = relay.parse().map_err(InvalidOptions::Relay)?;
        Ok(Self::from_parts(relay, token.into(), vec![Route::to(target.parse::<Target>()?)]))
    }

    pub(crate) fn from_parts(relay: RelayAddress, token: String, routes: Vec<Route>) -> Self {
        Self {
            tunnel: tunnel::Settings {
                relay,
                ca: None,
                transport: Transports::Auto,
                token,
                endpoints: vec![],
                domains: vec![],
                queueing: Queueing::default(),
                opening_key: None,
            },
            forward: ForwardSettings::new(routes),
            history: None,
            filter: Filter::default(),
        }
    }

    /// Serves this endpoint, too.
    ///
    /// # Errors
    /// It is no name.
    pub fn name(mut self, name: &str) -> Result<Self, InvalidName> {
        self.tunnel.endpoints.push(name.parse::<EndpointName>()?.to_string());
        Ok(self)
    }

    /// Leads a host name of the developer's own to an endpoint, the first unless `name` says another: what is still to
    /// be done for it comes as [`Event::Domain`].
    #[must_use]
    pub fn domain(mut self, host: &str, name: Option<&str>) -> Self {
        let (host, endpoint) = (host.to_owned(), name.unwrap_or_default().to_owned());
        self.tunnel.domains.push(Domain { host, endpoint });
        self
    }

    /// Trusts this CA for the relay.
    #[must_use]
    pub fn relay_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.tunnel.ca = Some(file.into());
        self
    }

    /// Reaches the relay this way.
    #[must_use]
    pub const fn transport(mut self, choice: Transports) -> Self {
        self.tunnel.transport = choice;
        self
    }

    /// What the relay is to do with deliveries that cannot be handed over: a rule a path, and how many it hands over at
    /// once later.
    #[must_use]
    pub fn queueing(mut self, rules: Vec<Rule>, drain_concurrency: u32) -> Self {
        self.tunnel.queueing = Queueing { rules, drain_concurrency, ..self.tunnel.queueing };
        self
    }

    /// Shares its endpoints with other clients that ask for the same: each delivery goes to one of them
    /// ([`Share::Balance`]), or to each of these listeners ([`Share::Copy`], by its name, which has 1 to 64 printable
    /// ASCII characters).
    #[must_use]
    pub fn share(mut self, share: Share, listener: impl Into<String>) -> Self {
        (self.tunnel.queueing.share, self.tunnel.queueing.listener) = (share.into(), listener.into());
        if share != Share::Takeover {
            // While it waits here for its app, others wait for it: those that take turns.
            self.forward.queued_wait = Duration::ZERO;
        }
        self
    }

    /// Opens what was sealed to this key; with `public`, its other half, what waits from now on is.
    #[must_use]
    pub(crate) fn opening_key(mut self, key: OpeningKey, public: Option<[u8; PUBLIC_KEY]>) -> Self {
        self.tunnel.queueing.seal_key = public.map(Vec::from).unwrap_or_default();
        self.tunnel.opening_key = Some(Arc::new(key));
        self
    }

    /// Which relay, and how it is reached.
    pub(crate) const fn relay_settings(&self) -> &tunnel::Settings {
        &self.tunnel
    }

    /// Keeps exchanges there.
    pub(crate) fn history(mut self, history: Option<History>) -> Self {
        self.history = history;
        self
    }

    /// Which deliveries are wanted; see [`Delivered::is_wanted`].
    pub(crate) fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Changes how deliveries are put to the app.
    #[must_use]
    pub fn forward(mut self, change: impl FnOnce(&mut ForwardSettings)) -> Self {
        change(&mut self.forward);
        self
    }
}

/// A connected client. Dropped, it stops at once; [`Self::close`] finishes what is in flight.
#[derive(Debug)]
pub struct Client {
    welcomed: Welcomed,
    events: tokio::sync::Mutex<Listener>,
    forwarder: Arc<Forwarder>,
    recorder: Recorder,
    letters: Letters,
    task: Task,
    stop: CancellationToken,
}

/// What runs a client; dropped, also while it is still connecting, it stops.
#[derive(Debug)]
struct Task(JoinHandle<Result<(), ConnectError>>);

impl Task {
    /// Waits for its end, which nobody asked for.
    async fn ended(&mut self) -> ConnectError {
        match (&mut self.0).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => ConnectError::Local { cause: "the client was stopped".into() },
            Err(error) => ConnectError::Local { cause: error.to_string() },
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Connects, and returns when the endpoints are served. The client then stays connected by itself.
    ///
    /// # Errors
    /// The relay cannot be reached, or refused.
    pub async fn connect(mut options: Options) -> Result<Self, ConnectError> {
        // The first provider wins, and ours is the only one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        if options.tunnel.endpoints.is_empty() {
            options.tunnel.endpoints.push(String::new());
        }
        Self::start(options).await
    }

    /// As [`Self::connect`], but with no endpoint when none was asked for.
    pub(crate) async fn start(options: Options) -> Result<Self, ConnectError> {
        let (sender, mut events) = Events::channel();
        let stop = CancellationToken::new();
        let forwarder = Forwarder::new(options.forward, &sender);
        let recorder = Recorder::new(sender, options.history, options.filter);
        let (own, target, ended) = (recorder.clone(), forwarder.clone(), stop.clone());
        let known = forwarder.clone();
        let (tunnel, letters) = Tunnel::new(options.tunnel);
        let run = async move {
            if known.settings.webhooks.dedupe {
                // What came before must be known before the first delivery.
                let _ = tokio::time::timeout(REMEMBERED_IN, remember(own.history(), &known.webhooks)).await;
            }
            let end = tokio::select! {
                end = tunnel::run(tunnel, target, own.clone(), ended) => end,
                _ = async { tokio::join!(remember(own.history(), &known.webhooks), tell_of(own.history(), own.events())) } => Ok(()),
            };
            let left = match own.history() {
                Some(history) => history.flush().await,
                None => 0,
            };
            if left > 0 {
                let text = format!("{left} of the last requests are not kept: the history could not be written");
                own.events().tell(Event::Hint { text });
            }
            own.events().end();
            end
        };
        #[expect(clippy::disallowed_methods, reason = "owned by the client, ended with it")]
        let mut task = Task(tokio::spawn(run));
        let mut early = Vec::new();
        let welcomed = loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Event::Up(welcomed)) => break welcomed,
                    Some(event) => early.push(event),
                    None => return Err(task.ended().await),
                },
                error = task.ended() => return Err(error),
            }
        };
        early.into_iter().for_each(|event| recorder.events().tell(event));
        Ok(Self { welcomed, events: events.into(), forwarder, recorder, letters, task, stop })
    }

    /// The public URL of the first endpoint.
    #[must_use]
    pub fn url(&self) -> &str {
        let first = self.welcomed.first.as_ref().and_then(|name| self.welcomed.urls.get(name));
        first.and_then(|urls| urls.first()).map_or("", String::as_str)
    }

    /// What the relay said.
    #[must_use]
    pub const fn welcomed(&self) -> &Welcomed {
        &self.welcomed
    }

    /// What puts deliveries to the app.
    pub(crate) const fn forwarder(&self) -> &Arc<Forwarder> {
        &self.forwarder
    }

    /// What asks the relay for dead letters.
    pub(crate) const fn letters(&self) -> &Letters {
        &self.letters
    }

    /// What puts kept requests to it again.
    pub(crate) fn replayer(&self) -> Replayer {
        let (settings, forwarder) = (self.forwarder.settings.clone(), Some(self.forwarder.clone()));
        Replayer { settings, forwarder, recorder: self.recorder.clone() }
    }

    /// The next event, or `None` when the client has ended.
    pub async fn next_event(&self) -> Option<Event> {
        self.events.lock().await.next().await
    }

    /// The next delivery that is done, or `None` when the client has ended.
    pub async fn next_delivery(&self) -> Option<Delivered> {
        loop {
            if let Event::Delivered(delivered) = self.next_event().await? {
                return Some(*delivered);
            }
        }
    }

    /// Stops: what is in flight is finished first.
    pub async fn close(self) {
        let _ = self.finish().await;
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Stops and says why the client had ended, if it had by itself.
    pub(crate) async fn finish(mut self) -> Result<(), ConnectError> {
        self.stop.cancel();
        (&mut self.task.0).await.unwrap_or_else(|error| Err(ConnectError::Local { cause: error.to_string() }))
    }
}

/// Has the events of earlier runs known, so that a repeat of one is seen as that.
async fn remember(history: Option<&History>, webhooks: &Webhooks) {
    let Some(history) = history else { return };
    let read = history.read(|reader| {
        let mut known = Vec::new();
        reader.visit(&Filter::default(), None, false, |exchange| {
            let webhook = &exchange.webhook;
            let is_bad = webhook.signature == Verdict::Bad;
            if webhook.dedup_id.is_some() && !is_bad && exchange.replay_of.is_none() {
                let taken = |attempt: &Attempt| {
                    matches!(attempt.outcome, Outcome::Answered(status) if status.is_success() && attempt.reply.is_some())
                };
                let taken = exchange.attempts.iter().any(taken);
                let (endpoint, path) = (exchange.endpoint.to_string(), exchange.request.target.path().to_owned());
                known.push((exchange.webhook, Kept { id: exchange.id, endpoint, path, taken }));
            }
            if known.len() < REMEMBERED { Listed::More } else { Listed::Enough }
        })?;
        Ok(known)
    });
    // What cannot be read was told already; without it only repeats of this run are known.
    let known = read.await.unwrap_or_default();
    // The oldest first: the others repeat it.
    known.iter().rev().for_each(|(webhook, kept)| webhooks.remember(webhook, kept));
}

/// Tells what a person should know of the history: once each, for ever.
async fn tell_of(history: Option<&History>, events: &Events) {
    let Some(history) = history else { return std::future::pending().await };
    let mut state = history.state();
    let (mut notes, mut warnings, mut problem) = (0, 0, None);
    loop {
        let new = {
            let state = state.borrow_and_update();
            let mut new = state.warnings[warnings..].to_vec();
            new.extend_from_slice(&state.notes[notes..]);
            (notes, warnings) = (state.notes.len(), state.warnings.len());
            if state.problem != problem {
                new.push(match &state.problem {
                    Some(why) => format!("requests are not kept at present: {why}; forwarding goes on"),
                    None => "requests are kept again".into(),
                });
                problem.clone_from(&state.problem);
            }
            new
        };
        for text in new {
            events.tell(Event::Hint { text });
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = tokio::time::sleep(Duration::from_secs(1)) => history.tell_overdue(),
        }
    }
}
