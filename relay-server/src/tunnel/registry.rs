//! Which endpoints there are, who owns them and which session serves them now.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use hookway_protocol::host::EndpointName;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::names;
use super::session::Session;
use crate::auth::{Grant, Owner};
use crate::limits::{self, Gate, Pass, Refusal};
use crate::queue::{Queue, Waiting};
use crate::store::{EndpointId, EndpointRow, Store, StoreError};

/// All endpoints, by name.
#[derive(Debug)]
pub(crate) struct Registry {
    endpoints: RwLock<HashMap<EndpointName, Arc<Endpoint>>>,
    /// One gate an owner, as long as any endpoint of his is known.
    gates: Mutex<HashMap<Owner, Weak<Gate>>>,
    store: Arc<dyn Store>,
    queue: Arc<Queue>,
    /// Held while the store is read or changed and what came of it taken over here.
    changes: tokio::sync::Mutex<()>,
    limits: limits::Config,
}

/// A public host name. It outlives the sessions that serve it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    id: EndpointId,
    pub(crate) name: EndpointName,
    /// What waits for it.
    pub(crate) waiting: Arc<Waiting>,
    owner: Owner,
    gate: Gate,
    owner_gate: Arc<Gate>,
    serving: RwLock<Option<Serving>>,
}

/// Who serves an endpoint.
#[derive(Debug)]
struct Serving {
    session: Arc<Session>,
    /// Cancelled when it does no more.
    over: CancellationToken,
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
    #[error("the relay cannot look up names just now")]
    Store(#[from] StoreError),
}

impl Endpoint {
    /// The session that serves it now.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.as_ref().map(|serving| serving.session.clone())
    }

    /// A place for one more delivery.
    pub(crate) fn enter(&self) -> Result<Pass, Refusal> {
        Ok(Pass::new(self.gate.enter()?, self.owner_gate.enter()?))
    }

    /// Tells the session that serves it that the name is its owner's no more.
    fn released(&self) {
        if let Some(serving) = self.serving.write().unwrap_or_else(PoisonError::into_inner).take() {
            serving.session.released(&self.name, "the operator released it");
        }
    }

    /// Takes `session` off the endpoint, unless another has it by now.
    pub(crate) fn left(&self, session: &Arc<Session>) {
        let mut current = self.serving.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.session, session)) {
            *current = None;
        }
    }
}

/// A session's hold on an endpoint, given back on drop.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claim {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Cancelled when the session does not serve the endpoint any more.
    pub(super) over: CancellationToken,
    session: Arc<Session>,
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

    /// Lets a session serve a name, if its owner still has it. A session that served it until now is told.
    pub(super) fn claim(&self, name: &EndpointName, session: &Arc<Session>) -> Option<Claim> {
        let endpoint = self.find(name.as_str()).filter(|endpoint| endpoint.owner == session.grant.owner)?;
        let over = CancellationToken::new();
        let serving = Serving { session: session.clone(), over: over.clone() };
        let before = endpoint.serving.write().unwrap_or_else(PoisonError::into_inner).replace(serving);
        if let Some(before) = before {
            before.session.released(name, "another client of the same token has taken it over");
        }
        Some(Claim { endpoint, over, session: session.clone() })
    }

    fn endpoint(&self, name: EndpointName, row: &EndpointRow) -> Arc<Endpoint> {
        let owner = Owner::from(row.owner.as_str());
        let waiting = self.queue.of(row);
        let gate = Gate::new(self.limits.rate, self.limits.max_concurrent);
        let owner_gate = self.owner_gate(&owner);
        Arc::new(Endpoint { id: row.id, name, waiting, owner, gate, owner_gate, serving: RwLock::default() })
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
