//! Deliveries that are tried no more, and how they wait again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hookway_protocol::id::DeliveryId;
use jiff::Timestamp;

use super::{Queue, Waiting, kept};
use crate::store::{Dead, Listing, QueuedRow, Seq, StoreError};

impl Queue {
    /// All that waits in the store.
    pub(crate) async fn kept(&self) -> Result<Vec<QueuedRow>, StoreError> {
        self.store.list(Listing { dead: Some(false), most: usize::MAX, ..Listing::default() }).await
    }

    /// Takes over the dead letters that another process made wait again, and what the process before this one still
    /// accepted. Nothing else comes from elsewhere, and what is gone from the store shows when its turn comes.
    pub(crate) async fn take_over(&self, rows: Vec<QueuedRow>) -> Result<(), StoreError> {
        if self.adopts.load(Ordering::Relaxed) {
            for row in &rows {
                let all = self.waiting().get(&row.delivery.endpoint).cloned().unwrap_or_default();
                if !all.iter().any(|waiting| waiting.backlog().knows(row.seq)) {
                    self.take_in(row).await;
                }
            }
        }
        self.revived(rows.into_iter()).await
    }

    /// The newest dead letters of an endpoint, whichever of its listeners they are for, and how many there are.
    pub(crate) async fn dead_letters(&self, own: &Waiting, most: usize) -> Result<(Vec<QueuedRow>, u64), StoreError> {
        let rows = self.store.dead_letters(own.id, most).await?;
        Ok((rows, self.count_dead(own)))
    }

    /// Dead letters of an endpoint and its listeners.
    pub(crate) fn count_dead(&self, own: &Waiting) -> u64 {
        self.waiting().get(&own.id).into_iter().flatten().map(|waiting| waiting.dead_letters()).sum()
    }

    /// Makes dead letters of an endpoint wait again, these or all, and says how many.
    pub(crate) async fn retry(&self, own: &Waiting, ids: Option<&HashSet<DeliveryId>>) -> Result<u64, StoreError> {
        let mut rows = self.store.dead_letters(own.id, usize::MAX).await?;
        rows.retain(|row| ids.is_none_or(|ids| ids.contains(&row.delivery.id)));
        let at = Timestamp::now();
        let revived = self.store.revive(Dead::These(rows.iter().map(|row| row.seq).collect()), at).await?;
        let revived: HashSet<Seq> = revived.into_iter().collect();
        let rows = rows.into_iter().filter(|row| revived.contains(&row.seq));
        self.revived(rows.map(|row| QueuedRow { since: at, dead_since: None, ..row })).await?;
        Ok(revived.len() as u64)
    }

    /// The store has these waiting again, if they were dead letters. What was for a listener that is not there is for
    /// whoever is.
    async fn revived(&self, rows: impl Iterator<Item = QueuedRow>) -> Result<(), StoreError> {
        let mut for_anyone = Vec::new();
        for row in rows {
            let all = self.waiting().get(&row.delivery.endpoint).cloned().unwrap_or_default();
            if !all.iter().any(|waiting| waiting.backlog().take_revived(row.seq, row.since)) {
                continue;
            }
            let is_there = |waiting: &&Arc<Waiting>| waiting.listener == row.delivery.listener && waiting.is_attached();
            let waiting = all.iter().find(is_there).unwrap_or(&all[0]);
            if waiting.listener != row.delivery.listener {
                for_anyone.push(row.seq);
            }
            let places = waiting.room.take_anyway(row.delivery.bytes);
            waiting.backlog().add(row.seq, kept::entry(&row, places));
            waiting.changed.notify_waiters();
        }
        if for_anyone.is_empty() { Ok(()) } else { self.store.for_anyone(for_anyone).await }
    }
}
