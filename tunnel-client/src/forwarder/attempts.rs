//! Attempts at one delivery that come at once. After a silence the relay tries again while the first attempt is still on
//! its way, and the network keeps no order between them: the app must not get the first one, which bears no mark, after
//! the second, nor both at a time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hookway_protocol::id::DeliveryId;
use tokio::sync::oneshot;

/// So many deliveries are remembered that were tried more than once.
const REMEMBERED: usize = 1024;

/// The attempts that are under way, and the last ones of deliveries that were tried more than once.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Deliveries under way, and who waits to hear whether the app took them.
    here: HashMap<DeliveryId, Vec<oneshot::Sender<bool>>>,
    last: HashMap<DeliveryId, u32>,
    order: VecDeque<DeliveryId>,
}

/// What becomes of an attempt that has come.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// It goes to the app.
    Goes(Place),
    /// An earlier one is under way: whether the app takes it.
    Joins(oneshot::Receiver<bool>),
    /// A later one has come.
    Overtaken,
}

/// An attempt under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    attempts: Arc<Attempts>,
    id: DeliveryId,
    taken: bool,
}

impl Place {
    /// The app took it.
    pub(crate) const fn taken(&mut self) {
        self.taken = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let waiting = self.attempts.seen().here.remove(&self.id).unwrap_or_default();
        for one in waiting {
            // It may have given up.
            let _ = one.send(self.taken);
        }
    }
}

impl Attempts {
    /// An attempt has come.
    pub(crate) fn arrive(self: &Arc<Self>, id: DeliveryId, attempt: u32) -> Arrival {
        let mut seen = self.seen();
        if seen.last.get(&id).is_some_and(|last| *last > attempt) {
            return Arrival::Overtaken;
        }
        seen.note(id, attempt);
        if let Some(waiting) = seen.here.get_mut(&id) {
            let (told, hear) = oneshot::channel();
            waiting.push(told);
            return Arrival::Joins(hear);
        }
        seen.here.insert(id, Vec::new());
        Arrival::Goes(Place { attempts: self.clone(), id, taken: false })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn note(&mut self, id: DeliveryId, attempt: u32) {
        // Nothing comes before a first one.
        if attempt > 1 && self.last.insert(id, attempt).is_none() {
            self.order.push_back(id);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.last.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_waits_for_the_one_before_and_gives_way_to_the_one_after() {
        let attempts = Arc::new(Attempts::default());
        let id = DeliveryId::now();
        let Arrival::Goes(mut first) = attempts.arrive(id, 1) else { panic!("nothing else is there") };
        let Arrival::Joins(mut second) = attempts.arrive(id, 2) else { panic!("the first is under way") };
        assert!(matches!(attempts.arrive(id, 1), Arrival::Overtaken));
        assert!(second.try_recv().is_err(), "not yet");
        first.taken();
        drop(first);
        assert_eq!(second.try_recv(), Ok(true));
        let Arrival::Goes(again) = attempts.arrive(id, 2) else { panic!("it is free again") };
        let Arrival::Joins(mut third) = attempts.arrive(id, 3) else { panic!("the second is under way") };
        drop(again);
        assert_eq!(third.try_recv(), Ok(false), "it came to nothing");
    }

    #[test]
    fn memory_is_bounded() {
        let attempts = Arc::new(Attempts::default());
        let id = DeliveryId::now();
        drop(attempts.arrive(id, 2));
        for _ in 0..REMEMBERED {
            drop(attempts.arrive(DeliveryId::now(), 2));
        }
        let arrival = attempts.arrive(id, 1);
        assert!(matches!(arrival, Arrival::Goes(_)), "it is forgotten");
        drop(arrival);
        let seen = attempts.seen();
        assert_eq!((seen.here.len(), seen.last.len(), seen.order.len()), (0, REMEMBERED, REMEMBERED));
    }
}
