//! How much may wait: for an endpoint or a listener, and for all of an owner.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Config;
use crate::auth::Owner;
use crate::limits::{Counter, Limit, Place};

/// What may be in memory of those that are being handed over, all together; and of one owner.
const MAX_OUT_KIB: u32 = 256 << 10;
const MAX_OUT_KIB_OF_OWNER: u32 = 64 << 10;

/// What a delivery takes of the limits, given back when it goes.
pub(super) type Places = [Place; 4];

/// The limits of all.
#[derive(Debug)]
pub(super) struct Rooms {
    count: Limit,
    bytes: Limit,
    owner_count: Limit,
    owner_bytes: Limit,
    /// While there are endpoints of theirs.
    owners: Mutex<HashMap<Owner, Weak<OwnerRoom>>>,
    out: Arc<Semaphore>,
}

/// What one owner's deliveries take.
#[derive(Debug)]
struct OwnerRoom {
    count: Arc<Counter>,
    bytes: Arc<Counter>,
    out: Arc<Semaphore>,
}

/// What the deliveries of one endpoint or listener take, in it and in its owner's.
#[derive(Clone, Debug)]
pub(super) struct Room {
    count: Arc<Counter>,
    bytes: Arc<Counter>,
    owner: Arc<OwnerRoom>,
    out: Arc<Semaphore>,
}

/// A delivery's place in memory, given back on drop.
#[derive(Debug)]
#[must_use]
pub(super) struct InMemory(#[expect(dead_code, reason = "given back on drop")] [OwnedSemaphorePermit; 2]);

impl Rooms {
    pub(super) fn new(config: Config) -> Self {
        let [count, bytes] = [config.max_count, config.max_bytes].map(Limit::from);
        let [owner_count, owner_bytes] = [config.token_max_count, config.token_max_bytes].map(Limit::from);
        let (owners, out) = (Mutex::default(), Arc::new(Semaphore::new(MAX_OUT_KIB as usize)));
        Self { count, bytes, owner_count, owner_bytes, owners, out }
    }

    /// Other limits, from now on.
    pub(super) fn limit(&self, config: &Config) {
        self.count.set(config.max_count);
        self.bytes.set(config.max_bytes);
        self.owner_count.set(config.token_max_count);
        self.owner_bytes.set(config.token_max_bytes);
    }

    /// Of one more endpoint of an owner.
    pub(super) fn of(&self, owner: Owner) -> Room {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, room| room.strong_count() > 0);
        let known = owners.get(&owner).and_then(Weak::upgrade);
        let room = known.unwrap_or_else(|| {
            let room = Arc::new(OwnerRoom {
                count: Arc::new(Counter::new(self.owner_count.clone())),
                bytes: Arc::new(Counter::new(self.owner_bytes.clone())),
                out: Arc::new(Semaphore::new(MAX_OUT_KIB_OF_OWNER as usize)),
            });
            owners.insert(owner, Arc::downgrade(&room));
            room
        });
        self.beside(room)
    }

    /// Of another listener of the same owner.
    pub(super) fn another(&self, room: &Room) -> Room {
        self.beside(room.owner.clone())
    }

    fn beside(&self, owner: Arc<OwnerRoom>) -> Room {
        let [count, bytes] = [&self.count, &self.bytes].map(|most| Arc::new(Counter::new(most.clone())));
        Room { count, bytes, owner, out: self.out.clone() }
    }
}

impl Room {
    fn counters(&self) -> [&Arc<Counter>; 4] {
        [&self.count, &self.bytes, &self.owner.count, &self.owner.bytes]
    }

    /// What a delivery takes, if there is as much left.
    pub(super) fn take(&self, bytes: u64) -> Option<Places> {
        let [count, sum, owner_count, owner_sum] = self.counters();
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Some([count.take(1)?, sum.take(bytes)?, owner_count.take(1)?, owner_sum.take(bytes)?])
    }

    /// The same for one that is here already: it is let in.
    pub(super) fn take_anyway(&self, bytes: u64) -> Places {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let needed = [1, bytes, 1, bytes];
        std::array::from_fn(|at| self.counters()[at].take_anyway(needed[at]))
    }

    /// Whether a delivery would fit if these others were gone.
    pub(super) fn would_fit<'a>(&self, bytes: u64, without: impl Iterator<Item = &'a Places>) -> bool {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let sum =
            |sum: [usize; 4], places: &Places| std::array::from_fn(|at| sum[at].saturating_add(places[at].count()));
        let gone: [usize; 4] = without.fold([0; 4], sum);
        let mut all = self.counters().into_iter().zip([1, bytes, 1, bytes]).zip(gone);
        all.all(|((counter, needed), gone)| counter.left().saturating_add(gone) >= needed)
    }

    /// Whether copies take no more than half of what their owner has: the rest is for what nobody else gets.
    pub(super) fn has_room_for_copies(&self) -> bool {
        let is_half = |counter: &Counter| counter.left() < counter.used();
        !is_half(&self.owner.count) && !is_half(&self.owner.bytes)
    }

    /// Room in memory while a delivery of that size is handed over.
    pub(super) async fn in_memory(&self, bytes: u64) -> Option<InMemory> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(MAX_OUT_KIB_OF_OWNER);
        // Its owner's first: who has much on its way keeps nobody else waiting.
        let own = self.owner.out.clone().acquire_many_owned(kib).await.ok()?;
        let of_all = self.out.clone().acquire_many_owned(kib).await.ok()?;
        Some(InMemory([own, of_all]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_share_and_what_makes_no_room_is_not_dropped() {
        let config =
            Config { max_count: 3, max_bytes: 100, token_max_count: 4, token_max_bytes: 1000, ..Config::default() };
        let rooms = Rooms::new(config);
        let (first, second, other) = (rooms.of("ann".into()), rooms.of("ann".into()), rooms.of("bob".into()));
        let held: Vec<Places> = (0..3).filter_map(|_| first.take(10)).collect();
        assert_eq!(held.len(), 3);
        assert!(first.take(10).is_none(), "the endpoint is full");
        let last = second.take(10).expect("the owner's last place");
        assert!(second.take(10).is_none(), "the owner is full");
        assert!(other.take(10).is_some(), "that is nobody else's matter");
        assert!(first.would_fit(10, held[..1].iter()));
        assert!(!first.would_fit(10, std::iter::empty()));
        assert!(!first.would_fit(101, held.iter()), "larger than all there is");
        assert!(!second.would_fit(10, std::iter::empty()), "the owner is full");
        drop(last);
        assert!(second.would_fit(10, std::iter::empty()));
        let anyway = second.take_anyway(5000);
        assert!(second.take(1).is_none());
        drop(anyway);
    }

    #[tokio::test]
    async fn an_owner_with_much_on_its_way_keeps_nobody_else_waiting() {
        let rooms = Rooms::new(Config::default());
        let (ann, bob) = (rooms.of("ann".into()), rooms.of("bob".into()));
        let held = ann.in_memory(u64::MAX).await.expect("room");
        assert!(futures_util::FutureExt::now_or_never(ann.in_memory(1)).is_none(), "all of hers is taken");
        assert!(futures_util::FutureExt::now_or_never(bob.in_memory(1 << 20)).flatten().is_some());
        drop(held);
        assert!(futures_util::FutureExt::now_or_never(ann.in_memory(1)).flatten().is_some());
    }
}
