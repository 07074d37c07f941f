//! Those that each get a copy of an endpoint's deliveries, and what each asks for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::head::RequestHead;
use hookway_protocol::message::Queueing;
use http::HeaderMap;
use tokio::task::JoinHandle;

use super::{Queue, Waiting, kept};
use crate::delivery::{Body, Delivery, Unqueued};
use crate::store::ListenerRow;

/// An endpoint may have so many listeners that each get a copy.
pub(crate) const MAX_LISTENERS: usize = 16;

/// The copies of a delivery that are being kept.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Copies(Vec<JoinHandle<bool>>);

impl Copies {
    /// Waits until they are on disk, and says whether any is.
    pub(crate) async fn kept(self) -> bool {
        let mut any = false;
        for copy in self.0 {
            any |= copy.await.unwrap_or(false);
        }
        any
    }
}

impl Queue {
    /// What waits for that listener beside the endpoint's own, unless there are too many of them.
    pub(crate) fn listener(&self, own: &Arc<Waiting>, name: &str) -> Option<Arc<Waiting>> {
        let mut all = self.waiting();
        let of_endpoint = all.get_mut(&own.id)?;
        if let Some(known) = of_endpoint.iter().find(|waiting| waiting.listener == name) {
            // Not forgotten before its client is there.
            known.seen();
            return Some(known.clone());
        }
        // Beside the endpoint's own.
        if of_endpoint.len() > MAX_LISTENERS {
            return None;
        }
        let waiting = Arc::new(Waiting::new(own.id, &own.name, name, self.rooms.another(&own.room)));
        of_endpoint.push(waiting.clone());
        Some(waiting)
    }

    /// The same, if it is known.
    pub(crate) fn known_listener(&self, own: &Waiting, name: &str) -> Option<Arc<Waiting>> {
        let all = self.waiting();
        let known = all.get(&own.id)?.iter().find(|waiting| waiting.listener == name && !name.is_empty())?;
        known.seen();
        Some(known.clone())
    }

    /// The listeners of an endpoint that each get a copy, if its clients want that: those that are there, or were not
    /// long ago; all that are known if none was.
    pub(crate) fn listeners(&self, own: &Waiting) -> Vec<Arc<Waiting>> {
        if !own.copies() {
            return vec![];
        }
        let all = self.waiting();
        let named = all.get(&own.id).and_then(|all| all.get(1..)).unwrap_or_default();
        let is_current = |waiting: &&Arc<Waiting>| waiting.is_current(self.config().retention);
        let current: Vec<Arc<Waiting>> = named.iter().filter(is_current).cloned().collect();
        if current.is_empty() { named.to_vec() } else { current }
    }

    /// What a client asks for its deliveries, kept while it is away.
    pub(crate) async fn ask(&self, waiting: &Waiting, queueing: Queueing) {
        if waiting.backlog().queueing() == &queueing {
            return;
        }
        waiting.backlog().set_queueing(queueing);
        self.save(waiting, waiting.row()).await;
    }

    /// A client that comes to fetch what waits is not kept out by a disk that is full.
    pub(super) async fn save(&self, waiting: &Waiting, row: ListenerRow) {
        if let Err(error) = self.store.put_listener(row).await {
            tracing::debug!(%error, endpoint = waiting.name, "what is known of a listener cannot be noted; later again");
            waiting.not_saved();
        }
    }

    /// Keeps a copy for each of these, beside what becomes of the delivery itself. What cannot be kept for one of them
    /// is noted as missed by it.
    pub(crate) async fn copy(
        self: &Arc<Self>,
        to: Vec<Arc<Waiting>>,
        delivery: &mut Delivery,
    ) -> Result<Copies, Unqueued> {
        if to.is_empty() {
            return Ok(Copies::default());
        }
        delivery.read_whole(self.config().max_body).await?;
        let Body::Whole(bytes, trailers) = &delivery.body else { return Err(Unqueued::Passed) };
        // One for all of them; what it takes of the memory is given back after the last.
        let made = Arc::new((delivery.head.clone(), bytes.clone(), trailers.clone(), delivery.room.take()));
        let copy = |waiting: Arc<Waiting>| {
            let (queue, made) = (self.clone(), made.clone());
            self.shutdown.work.spawn(async move {
                let (head, bytes, trailers, _) = &*made;
                let kept = queue.keep_copy(&waiting, head, bytes, trailers.as_ref()).await;
                kept.inspect_err(|error| waiting.miss(error)).is_ok()
            })
        };
        Ok(Copies(to.into_iter().map(copy).collect()))
    }

    async fn keep_copy(
        &self,
        waiting: &Arc<Waiting>,
        head: &RequestHead,
        bytes: &Bytes,
        trailers: Option<&HeaderMap>,
    ) -> Result<(), Unqueued> {
        if self.is_full() {
            return Err(Unqueued::DiskFull);
        }
        if !waiting.room.has_room_for_copies() {
            return Err(Unqueued::Full);
        }
        // What is sealed is a copy in memory, too: one at a time.
        let is_sealed = !waiting.backlog().queueing().seal_key.is_empty();
        let _alone = if is_sealed { Some(self.sealing.lock().await) } else { None };
        let (row, payload) = kept::of(waiting, head, bytes, trailers)?;
        self.keep(waiting, row, payload).await
    }

    /// Notes who is there, and what was missed.
    pub(super) async fn save_listeners(&self, seen_every: Duration) {
        let all: Vec<Arc<Waiting>> = self.waiting().values().flatten().cloned().collect();
        let unsaved = all.iter().filter_map(|waiting| Some((waiting, waiting.unsaved(seen_every)?)));
        // Together, so that they wait for the disk once.
        futures_util::future::join_all(unsaved.map(|(waiting, row)| self.save(waiting, row))).await;
    }

    /// Listeners that have not come for long, and for which nothing waits, are no more. Their dead letters are the
    /// endpoint's own then.
    pub(super) async fn forget_listeners(&self) {
        let retention = self.config().retention;
        let stays = |waiting: &Arc<Waiting>| {
            waiting.listener.is_empty() || waiting.is_current(retention) || !waiting.is_empty()
        };
        let mut gone = Vec::new();
        for all in self.waiting().values_mut() {
            let own = all[0].clone();
            for waiting in all.extract_if(.., |waiting| !stays(waiting)) {
                own.backlog().take_dead_of(&mut waiting.backlog());
                gone.push(waiting);
            }
        }
        for waiting in gone {
            if let Err(error) = self.store.remove_listener(waiting.id, &waiting.listener).await {
                tracing::debug!(%error, endpoint = waiting.name, "a listener comes back with the relay's next start");
            }
        }
    }
}
