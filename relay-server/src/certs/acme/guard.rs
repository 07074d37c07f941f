//! How many certificates are ordered for single names that have none: a CA has limits of its own, and one owner must not
//! use up what is there for all.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

/// Orders in [`WINDOW`], for all and for one owner.
const MAX_ORDERS: usize = 80;
const MAX_ORDERS_OF_ONE: usize = 20;
const WINDOW: Duration = Duration::from_secs(3600);

/// Counts orders.
#[derive(Debug, Default)]
pub(super) struct Guard(Mutex<Vec<(Timestamp, String)>>);

/// The orders of the last [`WINDOW`], and for whom they were.
pub(super) struct Orders<'a>(MutexGuard<'a, Vec<(Timestamp, String)>>);

impl Guard {
    /// Those that count now.
    pub(super) fn orders(&self, now: Timestamp) -> Orders<'_> {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orders.retain(|(at, _)| now.duration_since(*at).unsigned_abs() < WINDOW);
        Orders(orders)
    }
}

impl Orders<'_> {
    /// Whether an owner may have another.
    pub(super) fn may_have_one(&self, owner: &str) -> bool {
        let own = self.0.iter().filter(|(_, of)| of == owner).count();
        self.0.len() < MAX_ORDERS && own < MAX_ORDERS_OF_ONE
    }

    /// One is made for him.
    pub(super) fn note(&mut self, now: Timestamp, owner: String) {
        self.0.push((now, owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_leaves_orders_for_others_and_all_have_a_limit() {
        let (guard, now) = (Guard::default(), Timestamp::now());
        let mut orders = guard.orders(now);
        for _ in 0..MAX_ORDERS_OF_ONE {
            assert!(orders.may_have_one("ann"));
            orders.note(now, "ann".into());
        }
        assert!(!orders.may_have_one("ann") && orders.may_have_one("bob"));
        for n in MAX_ORDERS_OF_ONE..MAX_ORDERS {
            orders.note(now, n.to_string());
        }
        assert!(!orders.may_have_one("bob"));
        drop(orders);
        assert!(!guard.orders(now + WINDOW / 2).may_have_one("bob"));
        assert!(guard.orders(now + WINDOW).may_have_one("ann"), "an hour later");
    }
}
