//! Handing over: the delivery whose turn it is, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::backlog::Turn;
use super::room::InMemory;
use super::{Outcome, Queue, Waiting, kept, short};
use crate::delivery::Delivery;
use crate::metrics;
use crate::store::{Seq, Settled, StoreError};

/// After the store failed to give a delivery, it is asked again after this long.
const STORE_AGAIN: Duration = Duration::from_secs(1);

impl Queue {
    /// Waits for the next delivery whose turn it is.
    pub(crate) async fn next(self: &Arc<Self>, waiting: &Arc<Waiting>) -> Handed {
        loop {
            if *self.paused.borrow() {
                let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
            }
            let changed = waiting.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let taken = waiting.backlog().take(Instant::now());
            let turn = match taken {
                Ok(turn) => turn,
                Err(None) => {
                    changed.await;
                    continue;
                }
                Err(Some(at)) => {
                    let _ = tokio::time::timeout_at(at, changed).await;
                    continue;
                }
            };
            // Put back, should this be dropped.
            let guard =
                Taken { queue: self.clone(), waiting: waiting.clone(), seq: turn.seq, outcome: Some(Outcome::Unsent) };
            match self.fetch(waiting, &turn).await {
                Ok(Some((delivery, room))) => return Handed { taken: guard, delivery, _room: room },
                Ok(None) => {
                    guard.settled();
                    waiting.backlog().forget(turn.seq);
                }
                Err(error) => {
                    tracing::error!(%error, "a delivery that waits cannot be read");
                    drop(guard);
                    tokio::time::sleep(STORE_AGAIN).await;
                }
            }
        }
    }

    /// The delivery itself, after the store has noted that the app may have it.
    async fn fetch(&self, waiting: &Waiting, turn: &Turn) -> Result<Option<(Delivery, InMemory)>, StoreError> {
        let room = waiting.room.in_memory(turn.bytes).await.ok_or(StoreError::Closed)?;
        if !turn.to_mark.is_empty() {
            self.store.mark_handed(turn.to_mark.clone(), true).await?;
            waiting.backlog().marked(&turn.to_mark);
        }
        let Some(payload) = self.store.payload(turn.seq).await? else { return Ok(None) };
        let delivery = kept::delivery(payload, turn.attempt, turn.handed);
        if delivery.is_none() {
            tracing::error!(seq = turn.seq, "a delivery that waits cannot be read: it is a dead letter");
            let last = "it cannot be read".to_owned();
            self.settle(turn.seq, Settled::Dead { attempts: turn.attempt, last, at: Timestamp::now() }).await;
        }
        Ok(delivery.map(|delivery| (delivery, room)))
    }

    /// Notes what came of one.
    fn back(self: &Arc<Self>, waiting: &Waiting, seq: Seq, outcome: Outcome) {
        let [.., random] = *hookway_protocol::id::DeliveryId::now().as_bytes();
        let jitter = f64::from(random) / f64::from(u8::MAX);
        let mut backlog = waiting.backlog();
        let attempts = backlog.attempts(seq);
        let entry = backlog.back(seq, &outcome, Instant::now(), jitter);
        drop(backlog);
        waiting.changed.notify_waiters();
        metrics::count_outcome(&self.metrics.handed_over, outcome.name());
        let settled = match (outcome, entry) {
            // Nothing has changed.
            (Outcome::Unsent, _) => return,
            (Outcome::Done, _) => Settled::Done,
            (Outcome::Hopeless(last), _) => Settled::Dead { attempts, last: short(&last), at: Timestamp::now() },
            (Outcome::AppAway(last) | Outcome::Lost(last) | Outcome::Failed(last), Some((attempts, handed))) => {
                Settled::Again { attempts, handed, last: short(&last) }
            }
            (_, None) => return,
        };
        let queue = self.clone();
        self.shutdown.rest.spawn(async move { queue.settle(seq, settled).await });
    }
}

/// A delivery whose turn it is. Dropped, it is as if the client had been lost.
#[derive(Debug)]
pub(crate) struct Handed {
    taken: Taken,
    pub(crate) delivery: Delivery,
    _room: InMemory,
}

impl Handed {
    /// From now on the app may have it.
    pub(crate) fn begin(&mut self) {
        self.taken.outcome = Some(Outcome::Lost("the session ended".into()));
    }

    /// What came of it.
    pub(crate) fn settle(mut self, outcome: Outcome) {
        self.taken.outcome = Some(outcome);
    }
}

/// Says what came of a delivery when it is dropped.
#[derive(Debug)]
struct Taken {
    queue: Arc<Queue>,
    waiting: Arc<Waiting>,
    seq: Seq,
    outcome: Option<Outcome>,
}

impl Taken {
    fn settled(mut self) {
        self.outcome = None;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            self.queue.back(&self.waiting, self.seq, outcome);
        }
    }
}
