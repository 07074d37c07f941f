//! Which endpoints there are, who owns them and which sessions serve them now.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::message::{Queueing, Share};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::names;
use super::session::Session;
use crate::auth::{Grant, Owner};
use crate::limits::{self, Gate, Pass, Rate, Refusal};
use crate::protection::{Guard, Protection};
use crate::queue::{self, Attached, Queue, Waiting};
use crate::store::{Claimed, DomainRow, EndpointId, EndpointRow, HELD_FOR, Store, StoreError};

/// A developer's own host names that may lead to one endpoint.
const MAX_DOMAINS: usize = 64;

/// A delivery waits no longer for a client that is expected: senders wait as little as 3 s for their answer.
const AWAITED_FOR: Duration = Duration::from_secs(2);

/// All endpoints, by name.
#[derive(Debug)]
pub(crate) struct Registry {
    names: RwLock<Names>,
    /// Endpoints are host names directly below this one.
    domain: Host<'static>,
    /// One gate an owner, as long as any endpoint of his is known.
    gates: Mutex<HashMap<Owner, Weak<Gate>>>,
    store: Arc<dyn Store>,
    pub(super) queue: Arc<Queue>,
    /// Held while the store is read or changed and what came of it taken over here.
    changes: tokio::sync::RwLock<()>,
    limits: ArcSwap<limits::Config>,
}

#[derive(Debug, Default)]
struct Names {
    endpoints: HashMap<EndpointName, Arc<Endpoint>>,
    /// Developers' own host names, and the endpoints that they lead to: these alone, and not others of their names.
    domains: HashMap<String, (EndpointName, EndpointId)>,
}

impl Names {
    fn at_domain(&self, host: &Host<'_>) -> Option<&Arc<Endpoint>> {
        let (name, id) = self.domains.get(host.as_str())?;
        self.endpoints.get(name).filter(|endpoint| endpoint.id == *id)
    }
}

/// A public host name. It outlives the sessions that serve it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: EndpointId,
    pub(crate) name: EndpointName,
    /// What waits for whoever serves it.
    pub(crate) waiting: Arc<Waiting>,
    pub(super) owner: Owner,
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
    #[error("the endpoint `{0}` was somebody else's, and is kept for its owner until {1:.0}")]
    Held(EndpointName, Timestamp),
    #[error("this token's name has {0} endpoints; it can have no more")]
    TooMany(usize),
    #[error("the endpoint has {0} listeners; it can have no more")]
    TooManyListeners(usize),
    #[error("{MAX_DOMAINS} host names lead to the endpoint; it can have no more")]
    TooManyDomains,
    #[error("the host name was led elsewhere just now")]
    Led,
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
    fn protect(&self, protection: &Protection, limits: &limits::Config) {
        if self.guard.load().protection != *protection {
            self.guard.store(Arc::new(Guard::new(protection.clone())));
        }
        self.limit(limits);
    }

    fn limit(&self, limits: &limits::Config) {
        let own = self.guard.load().protection.rate.unwrap_or(Rate::OFF);
        self.gate.set(limits.rate.min(own), limits.max_concurrent);
    }

    /// A place for one more delivery.
    pub(crate) fn enter(&self) -> Result<Pass, Refusal> {
        Ok(Pass::new(self.gate.enter()?, self.owner_gate.enter()?))
    }

    /// Tells those that serve it that the name is its owner's no more.
    fn released(&self) {
        for serving in self.serving().drain(..) {
            serving.session.released(&self.name, "it was released");
        }
    }

    /// Whether it is the token's owner's, and the token may serve it.
    fn is_for(&self, grant: &Grant) -> bool {
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
    pub(super) waitings: Vec<Arc<Waiting>>,
    _attached: Vec<Attached>,
    /// Cancelled when the session does not serve the endpoint any more.
    pub(super) over: CancellationToken,
    session: Arc<Session>,
}

impl Claim {
    /// What its client may.
    pub(super) fn grant(&self) -> &Grant {
        &self.session.grant
    }

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

impl Registry {
    /// The registry of the endpoints in the store, which are below that domain.
    pub(crate) async fn open(
        domain: Host<'static>,
        store: Arc<dyn Store>,
        queue: Arc<Queue>,
        limits: limits::Config,
    ) -> Result<Self, StoreError> {
        let (names, gates, changes) = (RwLock::default(), Mutex::default(), tokio::sync::RwLock::default());
        let limits = ArcSwap::from_pointee(limits);
        let registry = Self { names, domain, gates, store, queue, changes, limits };
        let rows = registry.store.deliveries().await?;
        registry.refresh().await?;
        registry.queue.load(rows).await?;
        Ok(registry)
    }

    /// Other limits, from now on.
    pub(crate) fn limit(&self, limits: limits::Config) {
        self.limits.store(Arc::new(limits));
        self.names().endpoints.values().for_each(|endpoint| endpoint.limit(&limits));
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let all = gates.values().filter_map(Weak::upgrade);
        all.for_each(|gate| gate.set(limits.token_rate, limits.token_max_concurrent));
    }

    /// All endpoints.
    pub(crate) fn all(&self) -> Vec<Arc<Endpoint>> {
        self.names().endpoints.values().cloned().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Endpoint>> {
        self.names().endpoints.get(name).cloned()
    }

    /// The endpoint that a host name leads to: the relay's own, or a developer's.
    pub(crate) fn at(&self, host: &Host<'_>) -> Option<Arc<Endpoint>> {
        match host.below(&self.domain) {
            Some(name) => self.find(name),
            None => self.at_domain(host),
        }
    }

    /// The endpoint that a developer's own host name leads to.
    pub(super) fn at_domain(&self, host: &Host<'_>) -> Option<Arc<Endpoint>> {
        self.names().at_domain(host).cloned()
    }

    fn names(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn names_mut(&self) -> RwLockWriteGuard<'_, Names> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// An owner's endpoints that come after a name and that the token may serve, so many at most, and whether there are
    /// more.
    pub(super) fn owned(&self, grant: &Grant, after: &str, most: usize) -> (Vec<Arc<Endpoint>>, bool) {
        let names = self.names();
        let own = names.endpoints.values().filter(|it| it.is_for(grant));
        let mut own: Vec<_> = own.filter(|it| it.name.as_str() > after).cloned().collect();
        drop(names);
        own.sort_by(|a, b| a.name.cmp(&b.name));
        let more = own.len() > most;
        own.truncate(most);
        (own, more)
    }

    /// The developers' own host names that lead to an endpoint.
    pub(crate) fn domains_of(&self, endpoint: &Endpoint) -> Vec<String> {
        let names = self.names();
        let led = names.domains.iter().filter(|(_, (_, id))| *id == endpoint.id);
        let mut own: Vec<_> = led.map(|(host, _)| host.clone()).collect();
        drop(names);
        own.sort();
        own
    }

    /// Takes a name from its owner, who asks for it: an endpoint's, or a host name of the developer's own. Says whether he
    /// had it.
    pub(super) async fn release(&self, name: &str, grant: &Grant) -> Result<bool, StoreError> {
        let host = Host::parse(name).ok();
        let led = host.as_ref().and_then(|host| self.at_domain(host)).filter(|it| it.is_for(grant));
        // Also by its whole name.
        let label = host.as_ref().and_then(|host| host.below(&self.domain)).unwrap_or(name);
        let endpoint = self.find(label).filter(|it| it.is_for(grant));
        // By its number: the name may be another's a moment later.
        let was_there = match (host.as_ref().zip(led), endpoint) {
            (Some((host, led)), _) => self.store.remove_domain(host.as_str(), Some(led.id)).await?,
            (None, Some(endpoint)) => {
                let now = Timestamp::now();
                self.store.release_endpoint(&endpoint.name, Some(endpoint.id), now, now + HELD_FOR).await?
            }
            (None, None) => return Ok(false),
        };
        self.refresh().await?;
        Ok(was_there)
    }

    /// Whether it is the relay's domain, or below it.
    pub(super) fn is_own(&self, host: &Host<'_>) -> bool {
        let rest = host.as_str().strip_suffix(self.domain.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Leads a developer's own host name to an endpoint, on disk, if it leads where it did `before`. Not away from one that
    /// the token may not serve.
    pub(super) async fn lead(
        &self,
        host: &Host<'_>,
        before: Option<EndpointId>,
        endpoint: &Endpoint,
        grant: &Grant,
    ) -> Result<(), ClaimError> {
        let _changes = self.changes.write().await;
        {
            let names = self.names();
            if names.endpoints.get(&endpoint.name).is_none_or(|known| known.id != endpoint.id) {
                return Err(ClaimError::Released);
            }
            if names.at_domain(host).map(|led| led.id) != before {
                return Err(ClaimError::Led);
            }
            if let Some(before) = names.at_domain(host)
                && before.owner == grant.owner
                && !grant.allows(&before.name)
            {
                return Err(ClaimError::NotAllowed(before.name.clone(), grant.patterns()));
            }
            let others = names.domains.iter().filter(|(other, (_, id))| *id == endpoint.id && *other != host.as_str());
            if others.count() >= MAX_DOMAINS {
                return Err(ClaimError::TooManyDomains);
            }
        }
        let (host, proved_at) = (host.to_string(), Timestamp::now());
        self.store.put_domain(DomainRow { host: host.clone(), endpoint: endpoint.id, proved_at }).await?;
        self.names_mut().domains.insert(host, (endpoint.name.clone(), endpoint.id));
        Ok(())
    }

    /// Takes over what another process changed: released names go, and whoever serves them is told; dead letters wait
    /// again.
    pub(crate) async fn reload(&self) -> Result<(), StoreError> {
        // Before the endpoints: then what is of none of them is of one that is gone.
        let rows = self.queue.kept().await?;
        self.refresh().await?;
        self.queue.take_over(rows).await
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        let _changes = self.changes.write().await;
        let (rows, domains) = (self.store.endpoints().await?, self.store.domains().await?);
        let rows: HashMap<EndpointName, EndpointRow> =
            rows.into_iter().filter_map(|row| Some((row.name.parse().ok()?, row))).collect();
        let mut gone = Vec::new();
        {
            let mut names = self.names_mut();
            let Names { endpoints, domains: led } = &mut *names;
            endpoints.retain(|name, endpoint| {
                let stays = rows.get(name).is_some_and(|row| row.id == endpoint.id);
                if !stays {
                    gone.push(endpoint.clone());
                }
                stays
            });
            let by_id: HashMap<EndpointId, EndpointName> =
                rows.iter().map(|(name, row)| (row.id, name.clone())).collect();
            let limits = self.limits.load();
            for (name, row) in rows {
                let endpoint = endpoints.entry(name.clone()).or_insert_with(|| self.endpoint(name, &row));
                endpoint.protect(&row.protection, &limits);
            }
            self.queue.retain(|id| by_id.contains_key(&id));
            let all = domains.into_iter().filter_map(|row| {
                let name = by_id.get(&row.endpoint)?.clone();
                Some((row.host, (name, row.endpoint)))
            });
            *led = all.collect();
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
        // Beside others who do the same: the store writes down together what they ask for.
        let _changes = self.changes.read().await;
        let claimed = self.store.claim_endpoint(name, grant.owner.as_str(), most, Timestamp::now()).await;
        if let (Err(error), Some(known)) = (&claimed, self.find(name.as_str()))
            && known.owner == grant.owner
        {
            // On a full disk, too, he can fetch what waits for him.
            tracing::error!(%error, endpoint = %name, "when a client was there last cannot be noted");
            return Ok(());
        }
        let row = match claimed? {
            Claimed::TooMany => return Err(ClaimError::TooMany(most)),
            Claimed::Held(until) => return Err(ClaimError::Held(name.clone(), until)),
            Claimed::Has(row) if row.owner != grant.owner.as_str() => return Err(ClaimError::Taken(name.clone())),
            Claimed::Has(row) => row,
        };
        let mut names = self.names_mut();
        // Numbers grow: the greatest is who has the name now.
        if names.endpoints.get(name).is_none_or(|endpoint| endpoint.id < row.id) {
            let before = names.endpoints.insert(name.clone(), self.endpoint(name.clone(), &row));
            drop(names);
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
        let limits = self.limits.load();
        let gate = Gate::new(limits.rate, limits.max_concurrent);
        let owner_gate = self.owner_gate(&owner);
        let guard = ArcSwap::from_pointee(Guard::new(row.protection.clone()));
        let (id, serving, turn, arrived) = (row.id, RwLock::default(), AtomicUsize::default(), Notify::new());
        let endpoint = Endpoint { id, name, waiting, owner, gate, owner_gate, guard, serving, turn, arrived };
        endpoint.limit(&limits);
        Arc::new(endpoint)
    }

    fn owner_gate(&self, owner: &Owner) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(owner).and_then(Weak::upgrade) {
            return gate;
        }
        let limits = self.limits.load();
        let gate = Arc::new(Gate::new(limits.token_rate, limits.token_max_concurrent));
        gates.retain(|_, gate| gate.strong_count() > 0);
        gates.insert(owner.clone(), Arc::downgrade(&gate));
        gate
    }
}
