//! Which events came before.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hookway_protocol::head::RequestHead;
use hookway_protocol::id::DeliveryId;

use super::Kept;
use crate::exchange::Webhook;

/// So many events are known; the oldest go first.
const MOST: usize = 20_000;

/// The events that came to this client.
#[derive(Debug, Default)]
pub(super) struct Duplicates(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    events: HashMap<String, Entry>,
    order: VecDeque<String>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: DeliveryId,
    /// Whether the app took it; `None` while it is at it.
    outcome: Option<bool>,
}

/// The same event before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeat {
    /// The delivery that it came in first.
    pub(super) of: DeliveryId,
    /// Whether the app took it; `None` while it is at it.
    pub(super) outcome: Option<bool>,
}

/// A delivery of an event that goes on. Dropped, the app did not take it.
#[derive(Debug)]
pub(super) struct Seen {
    duplicates: Arc<Duplicates>,
    key: String,
    over: bool,
}

/// One event to one place: providers send it to each of their subscriptions.
fn key(webhook: &Webhook, endpoint: &str, path: &str) -> Option<String> {
    let (provider, id) = (webhook.provider.as_ref()?, webhook.dedup_id.as_ref()?);
    let path = path.split('?').next().unwrap_or_default();
    Some(format!("{provider} {endpoint} {path} {id}"))
}

impl Duplicates {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A delivery of an earlier run.
    pub(super) fn remember(&self, webhook: &Webhook, kept: &Kept) {
        let Some(key) = key(webhook, &kept.endpoint, &kept.path) else { return };
        let mut known = self.lock();
        match known.events.get_mut(&key) {
            Some(entry) if kept.taken => entry.outcome = Some(true),
            Some(_) => {}
            None => known.insert(key, Entry { id: kept.id, outcome: Some(kept.taken) }),
        }
    }

    /// A delivery came: what it repeats, if it does; and what decides whether the app took the event: the first delivery,
    /// or the next one while the app did not.
    pub(super) fn arrived(self: &Arc<Self>, webhook: &Webhook, head: &RequestHead) -> (Option<Repeat>, Option<Seen>) {
        let Some(key) = key(webhook, head.endpoint.as_str(), head.target.path()) else { return (None, None) };
        let mut known = self.lock();
        let repeat = known.events.get_mut(&key).map(|entry| {
            let repeat = Repeat { of: entry.id, outcome: entry.outcome };
            if entry.outcome == Some(false) {
                entry.outcome = None;
            }
            repeat
        });
        if repeat.is_none() {
            known.insert(key.clone(), Entry { id: head.id, outcome: None });
        }
        let decides = repeat.is_none_or(|repeat| repeat.outcome == Some(false));
        let seen = decides.then(|| Seen { duplicates: self.clone(), key, over: false });
        // The same delivery once more is no other one.
        (repeat.filter(|repeat| repeat.of != head.id), seen)
    }
}

impl Known {
    fn insert(&mut self, key: String, entry: Entry) {
        if self.order.len() >= MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.events.remove(&oldest);
        }
        self.order.push_back(key.clone());
        self.events.insert(key, entry);
    }
}

impl Seen {
    /// It is over.
    pub(super) fn over(mut self, taken: bool) {
        self.end(taken);
    }

    fn end(&mut self, taken: bool) {
        if !std::mem::replace(&mut self.over, true)
            && let Some(entry) = self.duplicates.lock().events.get_mut(&self.key)
        {
            entry.outcome = Some(taken);
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.end(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(duplicates: &Arc<Duplicates>, id: DeliveryId, taken: bool) {
        let kept = Kept { id, endpoint: "billing".into(), path: "/a?x".into(), taken };
        duplicates.remember(&webhook("1"), &kept);
    }

    fn webhook(id: &str) -> Webhook {
        Webhook { provider: Some("stripe".into()), dedup_id: Some(id.into()), ..Webhook::default() }
    }

    fn head(path: &str) -> RequestHead {
        RequestHead {
            id: DeliveryId::now(),
            received_at_us: 0,
            endpoint: "billing".parse().expect("a name"),
            method: http::Method::POST,
            target: path.parse().expect("a path"),
            headers: hookway_protocol::headers::Headers::default(),
            remote: String::new(),
            attempt: 1,
            possible_duplicate: false,
            whole: true,
            upgrade: None,
            http2: false,
            queued: false,
            sealed: false,
        }
    }

    #[test]
    fn a_repeat_knows_what_came_of_the_first() {
        let duplicates = Arc::<Duplicates>::default();
        let (one, first) = (webhook("1"), head("/a"));
        let (none, seen) = duplicates.arrived(&one, &first);
        assert_eq!(none, None);
        let repeat = |head: &RequestHead| duplicates.arrived(&one, head).0.map(|repeat| (repeat.of, repeat.outcome));
        assert_eq!(repeat(&head("/a?again")), Some((first.id, None)));
        assert_eq!(repeat(&first), None, "the same delivery, a second attempt");
        assert_eq!(repeat(&head("/b")), None, "another subscription");
        seen.expect("the first decides").over(true);
        assert_eq!(repeat(&head("/a")), Some((first.id, Some(true))));
        assert!(duplicates.arrived(&Webhook::default(), &first).1.is_none());
    }

    #[test]
    fn what_the_app_did_not_take_is_tried_again() {
        let duplicates = Arc::<Duplicates>::default();
        let (one, first) = (webhook("1"), head("/a"));
        drop(duplicates.arrived(&one, &first));
        let (repeat, seen) = duplicates.arrived(&one, &head("/a"));
        assert_eq!(repeat, Some(Repeat { of: first.id, outcome: Some(false) }));
        let outcome = || duplicates.arrived(&one, &head("/a")).0.expect("a repeat").outcome;
        assert_eq!(outcome(), None);
        seen.expect("it is tried again").over(true);
        assert_eq!(outcome(), Some(true));
    }

    #[test]
    fn earlier_runs_count_and_old_events_go() {
        let duplicates = Arc::<Duplicates>::default();
        let id = DeliveryId::now();
        known(&duplicates, id, false);
        known(&duplicates, DeliveryId::now(), true);
        let repeat = duplicates.arrived(&webhook("1"), &head("/a")).0;
        assert_eq!(repeat, Some(Repeat { of: id, outcome: Some(true) }));
        for n in 0..MOST {
            drop(duplicates.arrived(&webhook(&format!("more {n}")), &head("/a")));
        }
        assert_eq!(duplicates.lock().events.len(), MOST);
        assert_eq!(duplicates.arrived(&webhook("1"), &head("/a")).0, None);
        assert_eq!(duplicates.lock().events.len(), MOST);
    }
}
