//! Which endpoints there are, who owns them and which sessions serve them now.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard, Weak};

use hookway_protocol::host::EndpointName;
use hookway_protocol::message::{Queueing, Share};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::names;
use super::session::Session;
use crate::auth::{Grant, Owner};
use crate::limits::{self, Gate, Pass, Refusal};
use crate::queue::{self, Attached, Queue, Waiting};
use crate::store::{EndpointId, EndpointRow, Store, StoreError};

/// All endpoints, by name.
#[derive(Debug)]
pub(crate) struct Registry {
    endpoints: RwLock<HashMap<EndpointName, Arc<Endpoint>>>,
    /// One gate an owner, as long as any endpoint of his is known.
    gates: Mutex<HashMap<Owner, Weak<Gate>>>,
    store: Arc<dyn Store>,
    pub(super) queue: Arc<Queue>,
    /// Held while the store is read or changed and what came of it taken over here.
    changes: tokio::sync::Mutex<()>,
    limits: limits::Config,
}

/// A public host name. It outlives the sessions that serve it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    id: EndpointId,
    pub(crate) name: EndpointName,
    /// What waits for whoever serves it.
    pub(crate) waiting: Arc<Waiting>,
    owner: Owner,
    gate: Gate,
    owner_gate: Arc<Gate>,
    /// In the order in which they came.
    serving: RwLock<Vec<Serving>>,
    /// Counts deliveries among those that take turns.
    turn: AtomicUsize,
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

/// Why a name was not given to a client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("`{0}` is not a name an endpoint can have: {1}")]
    Invalid(String, hookway_protocol::host::InvalidName),
    #[error("the name `{0}` is reserved")]
    Reserved(EndpointName),
    #[error("this token may not serve `{0}`; it may serve {1}")]
    NotAllowed(EndpointName, String),
    #[error("the endpoint `{0}` belongs to somebody else")]
    Taken(EndpointName),
    #[error("this token's name has {0} endpoints; it can have no more")]
    TooMany(usize),
    #[error("the endpoint has {0} listeners; it can have no more")]
    TooManyListeners(usize),
    #[error("the endpoint was released just now")]
    Released,
    #[error("the relay cannot look up names just now")]
    Store(#[from] StoreError),
}

impl Endpoint {
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
    pub(super) fn is_shared(&self, waiting: &Arc<Waiting>) -> bool {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.len() > 1 && Arc::ptr_eq(waiting, &self.waiting)
    }

    /// Whose client answers the sender: of those that are there, the one that came first.
    pub(crate) fn answering(&self) -> Option<Arc<Waiting>> {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.first().map(|serving| serving.waiting.clone())
    }

    fn serving(&self) -> RwLockWriteGuard<'_, Vec<Serving>> {
        self.serving.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more delivery.
    pub(crate) fn enter(&self) -> Result<Pass, Refusal> {
        Ok(Pass::new(self.gate.enter()?, self.owner_gate.enter()?))
    }

    /// Tells those that serve it that the name is its owner's no more.
    fn released(&self) {
        for serving in self.serving().drain(..) {
            serving.session.released(&self.name, "the operator released it");
        }
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
    pub(super) waitings: Vec<Arc<Waiting>>,
    _attached: Vec<Attached>,
    /// Cancelled when the session does not serve the endpoint any more.
    pub(super) over: CancellationToken,
    session: Arc<Session>,
}

impl Claim {
    /// What the client asks for its deliveries.
    pub(super) async fn ask(&self, queue: &Queue, asked: Queueing) {
        for waiting in &self.waitings {
            queue.ask(waiting, asked.clone()).await;
        }
    }

    /// Whether another has the endpoint by now, or nobody.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }
}

/// What a session is about to serve: nobody has lost anything by it yet.
#[derive(Debug)]
pub(super) struct Claimable {
    endpoint: Arc<Endpoint>,
    waitings: Vec<Arc<Waiting>>,
}

impl Claimable {
    /// Those that served it until now and do not share it are told.
    pub(super) fn claim(self, session: &Arc<Session>, asked: &Queueing) -> Claim {
        let Self { endpoint, waitings } = self;
        let attached = waitings.iter().map(Waiting::attach).collect();
        let over = CancellationToken::new();
        let (share, listener, waiting) = (asked.share(), asked.listener.clone(), waitings[0].clone());
        let new = Serving { session: session.clone(), share, listener, waiting, over: over.clone() };
        let mut serving = endpoint.serving();
        let gone: Vec<Serving> = serving.extract_if(.., |other| !other.is_beside(&new)).collect();
        serving.push(new);
        drop(serving);
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

impl Registry {
    /// The registry of the endpoints in the store.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        queue: Arc<Queue>,
        limits: limits::Config,
    ) -> Result<Self, StoreError> {
        let (endpoints, gates, changes) = (RwLock::default(), Mutex::default(), tokio::sync::Mutex::default());
        let registry = Self { endpoints, gates, store, queue, changes, limits };
        registry.refresh().await?;
        registry.queue.load().await?;
        Ok(registry)
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Endpoint>> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Takes over what another process changed: released names go, and whoever serves them is told; dead letters wait
    /// again.
    pub(crate) async fn reload(&self) -> Result<(), StoreError> {
        self.refresh().await?;
        self.queue.take_over().await
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        let _changes = self.changes.lock().await;
        let rows = self.store.endpoints().await?;
        let rows: HashMap<EndpointName, EndpointRow> =
            rows.into_iter().filter_map(|row| Some((row.name.parse().ok()?, row))).collect();
        let mut gone = Vec::new();
        {
            let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
            endpoints.retain(|name, endpoint| {
                let stays = rows.get(name).is_some_and(|row| row.id == endpoint.id);
                if !stays {
                    gone.push(endpoint.clone());
                }
                stays
            });
            let ids: HashSet<EndpointId> = rows.values().map(|row| row.id).collect();
            for (name, row) in rows {
                endpoints.entry(name.clone()).or_insert_with(|| self.endpoint(name, &row));
            }
            self.queue.retain(|id| ids.contains(&id));
        }
        gone.iter().for_each(|endpoint| endpoint.released());
        Ok(())
    }

    /// The name that a text asks for; the empty one asks for any that the token may serve.
    pub(super) fn asked_for(text: &str, grant: &Grant) -> Result<EndpointName, ClaimError> {
        let text = match text {
            "" => grant.fill_in(names::random().as_str()),
            text => text.to_owned(),
        };
        text.parse().map_err(|error| ClaimError::Invalid(text, error))
    }

    /// Reserves a name for an owner, who may have `most`, on disk.
    pub(super) async fn own(&self, name: &EndpointName, grant: &Grant, most: usize) -> Result<(), ClaimError> {
        if names::is_reserved(name) {
            return Err(ClaimError::Reserved(name.clone()));
        }
        if !grant.allows(name) {
            return Err(ClaimError::NotAllowed(name.clone(), grant.patterns()));
        }
        let _changes = self.changes.lock().await;
        let claimed = self.store.claim_endpoint(name, grant.owner.as_str(), most, Timestamp::now()).await;
        if let (Err(error), Some(known)) = (&claimed, self.find(name.as_str()))
            && known.owner == grant.owner
        {
            // On a full disk, too, he can fetch what waits for him.
            tracing::error!(%error, endpoint = %name, "when a client was there last cannot be noted");
            return Ok(());
        }
        let row = match claimed? {
            None => return Err(ClaimError::TooMany(most)),
            Some(row) if row.owner != grant.owner.as_str() => return Err(ClaimError::Taken(name.clone())),
            Some(row) => row,
        };
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        if endpoints.get(name).is_none_or(|endpoint| endpoint.id != row.id) {
            let before = endpoints.insert(name.clone(), self.endpoint(name.clone(), &row));
            drop(endpoints);
            // Another owner's, released a moment ago.
            before.iter().for_each(|endpoint| endpoint.released());
        }
        Ok(())
    }

    /// What a session can serve of what it asks for, if its owner still has the name.
    pub(super) fn claimable(
        &self,
        name: &EndpointName,
        session: &Session,
        asked: &Queueing,
    ) -> Result<Claimable, ClaimError> {
        let known = self.find(name.as_str()).filter(|endpoint| endpoint.owner == session.grant.owner);
        let endpoint = known.ok_or(ClaimError::Released)?;
        let own = endpoint.waiting.clone();
        let waitings = match asked.share() {
            Share::Copy => {
                let listener = self.queue.listener(&own, &asked.listener);
                vec![listener.ok_or(ClaimError::TooManyListeners(queue::MAX_LISTENERS))?, own]
            }
            // What it had copied while it asked for that is still its own.
            Share::Takeover | Share::Balance => {
                let copied = self.queue.known_listener(&own, &asked.listener);
                std::iter::once(own).chain(copied).collect()
            }
        };
        Ok(Claimable { endpoint, waitings })
    }

    fn endpoint(&self, name: EndpointName, row: &EndpointRow) -> Arc<Endpoint> {
        let owner = Owner::from(row.owner.as_str());
        let waiting = self.queue.of(row);
        let gate = Gate::new(self.limits.rate, self.limits.max_concurrent);
        let owner_gate = self.owner_gate(&owner);
        let (id, serving, turn) = (row.id, RwLock::default(), AtomicUsize::default());
        Arc::new(Endpoint { id, name, waiting, owner, gate, owner_gate, serving, turn })
    }

    fn owner_gate(&self, owner: &Owner) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(owner).and_then(Weak::upgrade) {
            return gate;
        }
        let gate = Arc::new(Gate::new(self.limits.token_rate, self.limits.token_max_concurrent));
        gates.retain(|_, gate| gate.strong_count() > 0);
        gates.insert(owner.clone(), Arc::downgrade(&gate));
        gate
    }
}
