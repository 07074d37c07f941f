//! What waits for one endpoint.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hookway_protocol::message::{Queueing, Rule};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backlog::{Backlog, Depth, Places};
use crate::limits::{Counter, Place};
use crate::store::{EndpointId, EndpointRow};

/// What waits for one endpoint.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(super) id: EndpointId,
    pub(super) name: String,
    backlog: Mutex<Backlog>,
    /// Something waits that did not before, or needs to wait no longer.
    pub(super) changed: Notify,
    /// Deliveries and bytes of the endpoint and of its owner.
    counters: [Arc<Counter>; 4],
}

impl Waiting {
    /// What waits for an endpoint, of which there may be as much as the counters allow.
    pub(super) fn new(row: &EndpointRow, counters: [Arc<Counter>; 4]) -> Self {
        let backlog = Mutex::new(Backlog::new(Queueing::from_bytes(&row.rules)));
        let changed = Notify::new();
        Self { id: row.id, name: row.name.clone(), backlog, changed, counters }
    }

    pub(super) fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rule for a path.
    pub(crate) fn rule(&self, path: &str) -> Rule {
        self.backlog().rule(path)
    }

    /// What is there, in figures.
    pub(crate) fn depth(&self) -> Depth {
        self.backlog().depth(Instant::now())
    }

    /// A client is back, or new: nothing waits for its time.
    pub(crate) fn wake(&self) {
        self.backlog().wake(Instant::now());
        self.changed.notify_waiters();
    }

    /// The app behind that path answers.
    pub(crate) fn app_is_there(&self, path: &str) {
        let mut backlog = self.backlog();
        // Nearly always nothing waits.
        if !backlog.is_empty() && backlog.app_is_there(path) {
            drop(backlog);
            self.changed.notify_waiters();
        }
    }

    /// What a delivery takes of the limits.
    pub(super) fn places(&self, bytes: u64, take: impl Fn(&Arc<Counter>, usize) -> Option<Place>) -> Option<Places> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let [count, sum, owner_count, owner_sum] = &self.counters;
        Some([take(count, 1)?, take(sum, bytes)?, take(owner_count, 1)?, take(owner_sum, bytes)?])
    }
}
