//! Which endpoints there are, who owns them and which sessions serve them now.

mod endpoint;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use arc_swap::ArcSwap;
use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::message::{Queueing, Share};
use jiff::Timestamp;

use endpoint::Claimable;
pub(crate) use endpoint::{Claim, Endpoint};

use super::names;
use super::session::Session;
use crate::auth::{Grant, Owner};
use crate::limits::{self, Gate};
use crate::queue::{self, Queue};
use crate::store::{Claimed, DomainRow, EndpointId, EndpointRow, HELD_FOR, Store, StoreError};

/// A developer's own host names that may lead to one endpoint.
const MAX_DOMAINS: usize = 64;

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
        let owner_gate = self.owner_gate(&Owner::from(row.owner.as_str()));
        Endpoint::new(name, row, self.queue.of(row), owner_gate, &self.limits.load())
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
