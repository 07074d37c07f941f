//! An endpoint, and who serves it now.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use hookway_protocol::host::EndpointName;
use hookway_protocol::message::{Queueing, Share};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auth::{Grant, Owner};
use crate::limits::{self, Gate, Pass, Rate, Refusal};
use crate::protection::{Guard, Protection};
use crate::queue::{Attached, Queue, Waiting};
use crate::store::{EndpointId, EndpointRow};
use crate::tunnel::session::Session;

/// A delivery waits no longer for a client that is expected: senders wait as little as 3 s for their answer.
const AWAITED_FOR: Duration = Duration::from_secs(2);

/// A public host name. It outlives the sessions that serve it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: EndpointId,
    pub(crate) name: EndpointName,
    /// What waits for whoever serves it.
    pub(crate) waiting: Arc<Waiting>,
    pub(in crate::tunnel) owner: Owner,
    gate: Gate,
    owner_gate: Arc<Gate>,
    guard: ArcSwap<Guard>,
    /// In the order in which they came.
    serving: RwLock<Vec<Serving>>,
    /// Counts deliveries among those that take turns.
    turn: AtomicUsize,
    /// Somebody serves it now who did not before.
    arrived: Notify,
}

/// Who serves an endpoint.
#[derive(Debug)]
struct Serving {
    session: Arc<Session>,
    share: Share,
    listener: String,
    /// What it is handed: the endpoint's own, or the copies for it.
    waiting: Arc<Waiting>,
    /// Cancelled when it does no more.
    over: CancellationToken,
}

impl Serving {
    /// Whether both serve the endpoint: they want to share it in the same way, and are not the same client.
    fn is_beside(&self, other: &Self) -> bool {
        let same = self.listener == other.listener && !self.listener.is_empty();
        self.share == other.share && self.share != Share::Takeover && !same
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Endpoint {
    /// That of a row, which nobody serves yet.
    pub(super) fn new(
        name: EndpointName,
        row: &EndpointRow,
        waiting: Arc<Waiting>,
        owner_gate: Arc<Gate>,
        limits: &limits::Config,
    ) -> Arc<Self> {
        let endpoint = Self {
            id: row.id,
            name,
            waiting,
            owner: Owner::from(row.owner.as_str()),
            gate: Gate::new(limits.rate, limits.max_concurrent),
            owner_gate,
            guard: ArcSwap::from_pointee(Guard::new(row.protection.clone())),
            serving: RwLock::default(),
            turn: AtomicUsize::default(),
            arrived: Notify::new(),
        };
        endpoint.limit(limits);
        Arc::new(endpoint)
    }

    /// The session that is handed the next of these; of several that were not tried with it, each in its turn.
    pub(crate) fn session(&self, waiting: &Arc<Waiting>, tried: &[Arc<Session>]) -> Option<Arc<Session>> {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        let is_new = |session: &Arc<Session>| !tried.iter().any(|other| Arc::ptr_eq(other, session));
        let serves = |serving: &&Serving| Arc::ptr_eq(&serving.waiting, waiting) && is_new(&serving.session);
        let all = serving.iter().filter(serves).map(|serving| &serving.session);
        let next = |app_is_away| {
            let mut some = all.clone().filter(|session| session.is_app_away() == app_is_away);
            let count = some.clone().count();
            let turn = if count > 1 { self.turn.fetch_add(1, Ordering::Relaxed) % count } else { 0 };
            some.nth(turn).cloned()
        };
        // Rather one whose app was there last.
        next(false).or_else(|| next(true))
    }

    /// Whether several hand over what waits there.
    pub(in crate::tunnel) fn is_shared(&self, waiting: &Arc<Waiting>) -> bool {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.len() > 1 && Arc::ptr_eq(waiting, &self.waiting)
    }

    /// Whose it is.
    pub(crate) fn owner(&self) -> &str {
        self.owner.as_str()
    }

    /// Whose client answers the sender: of those that are there, the one that came first.
    pub(crate) fn answering(&self) -> Option<Arc<Waiting>> {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.first().map(|serving| serving.waiting.clone())
    }

    fn serving(&self) -> RwLockWriteGuard<'_, Vec<Serving>> {
        self.serving.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What protects it.
    pub(crate) fn guard(&self) -> Arc<Guard> {
        self.guard.load_full()
    }

    /// Protects it so from now on, within the relay's own limits.
    pub(super) fn protect(&self, protection: &Protection, limits: &limits::Config) {
        if self.guard.load().protection != *protection {
            self.guard.store(Arc::new(Guard::new(protection.clone())));
        }
        self.limit(limits);
    }

    pub(super) fn limit(&self, limits: &limits::Config) {
        let own = self.guard.load().protection.rate.unwrap_or(Rate::OFF);
        self.gate.set(limits.rate.min(own), limits.max_concurrent);
    }

    /// A place for one more delivery.
    pub(crate) fn enter(&self) -> Result<Pass, Refusal> {
        Ok(Pass::new(self.gate.enter()?, self.owner_gate.enter()?))
    }

    /// Tells those that serve it that the name is its owner's no more.
    pub(super) fn released(&self) {
        for serving in self.serving().drain(..) {
            serving.session.released(&self.name, "it was released");
        }
    }

    /// Whether it is the token's owner's, and the token may serve it.
    pub(super) fn is_for(&self, grant: &Grant) -> bool {
        self.owner == grant.owner && grant.allows(&self.name)
    }

    /// Waits for the client that was there when the process before this one ended: it is on its way.
    pub(crate) async fn expected(&self) {
        let Some(until) = self.waiting.expected_until().filter(|_| self.clients() == 0) else { return };
        let until = until.min(Instant::now() + AWAITED_FOR);
        let arrived = self.arrived.notified();
        tokio::pin!(arrived);
        arrived.as_mut().enable();
        if self.clients() == 0 {
            let _ = tokio::time::timeout_at(until, arrived).await;
        }
    }

    /// The sessions that serve it now.
    pub(crate) fn served_by(&self) -> Vec<String> {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.iter().map(|serving| serving.session.id.clone()).collect()
    }

    /// How many sessions serve it now.
    pub(crate) fn clients(&self) -> usize {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Takes `session` off the endpoint, if it is still on it.
    pub(crate) fn left(&self, session: &Arc<Session>) {
        self.serving().retain(|serving| !Arc::ptr_eq(&serving.session, session));
    }
}

/// A session's hold on an endpoint, given back on drop.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claim {
    pub(crate) endpoint: Arc<Endpoint>,
    /// All that it is handed: what comes for it, what is for whoever comes, and what it had copied before.
    pub(in crate::tunnel) waitings: Vec<Arc<Waiting>>,
    _attached: Vec<Attached>,
    /// Cancelled when the session does not serve the endpoint any more.
    pub(in crate::tunnel) over: CancellationToken,
    session: Arc<Session>,
}

impl Claim {
    /// What its client may.
    pub(in crate::tunnel) fn grant(&self) -> &Grant {
        &self.session.grant
    }

    /// What the client asks for its deliveries.
    pub(in crate::tunnel) async fn ask(&self, queue: &Queue, asked: Queueing) {
        for waiting in &self.waitings {
            queue.ask(waiting, asked.clone()).await;
        }
    }

    /// Whether another has the endpoint by now, or nobody.
    pub(in crate::tunnel) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }
}

/// What a session is about to serve: nobody has lost anything by it yet.
#[derive(Debug)]
pub(in crate::tunnel) struct Claimable {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) waitings: Vec<Arc<Waiting>>,
}

impl Claimable {
    /// Those that served it until now and do not share it are told.
    pub(in crate::tunnel) fn claim(self, session: &Arc<Session>, asked: &Queueing) -> Claim {
        let Self { endpoint, waitings } = self;
        let attached = waitings.iter().map(Waiting::attach).collect();
        let over = CancellationToken::new();
        let (share, listener, waiting) = (asked.share(), asked.listener.clone(), waitings[0].clone());
        let new = Serving { session: session.clone(), share, listener, waiting, over: over.clone() };
        let mut serving = endpoint.serving();
        let gone: Vec<Serving> = serving.extract_if(.., |other| !other.is_beside(&new)).collect();
        serving.push(new);
        drop(serving);
        endpoint.arrived.notify_waiters();
        for before in gone {
            before.session.released(&endpoint.name, "another client of the same token has taken it over");
        }
        Claim { endpoint, waitings, _attached: attached, over, session: session.clone() }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.endpoint.left(&self.session);
    }
}
