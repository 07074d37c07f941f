//! What a client tells whoever listens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hookway_protocol::message::{DomainState, Stage};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::exchange::Delivered;
use crate::tunnel::Welcomed;

/// Events that wait for whoever listens; more are missed.
const MAX_EVENTS: usize = 4096;

/// Where events go. Nothing waits for the listener: one that does not keep up is told how many it missed.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    sender: mpsc::Sender<Event>,
    missed: Arc<Missed>,
    ended: CancellationToken,
    link: Arc<Mutex<LinkNow>>,
}

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Listener {
    receiver: mpsc::Receiver<Event>,
    missed: Arc<Missed>,
    ended: CancellationToken,
}

/// How the link to the relay is by the events so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkNow {
    /// What the relay said last; `None` before it did.
    pub(crate) welcomed: Option<Welcomed>,
    /// Why there is no session, when there is none.
    pub(crate) down: Option<String>,
    /// The time of a round trip.
    pub(crate) rtt: Option<Duration>,
    /// Dead letters by endpoint.
    pub(crate) dead_letters: BTreeMap<String, u64>,
    /// How the developer's own host names are doing.
    pub(crate) domains: BTreeMap<String, DomainState>,
}

impl LinkNow {
    /// The relay has let the client in.
    fn up(&mut self, welcomed: Welcomed) {
        let dead = welcomed.backlogs.iter().map(|backlog| (backlog.endpoint.clone(), backlog.dead_letters));
        let (dead_letters, domains) = (dead.collect(), std::mem::take(&mut self.domains));
        *self = Self { welcomed: Some(welcomed), dead_letters, domains, ..Self::default() };
    }

    /// The URLs of each endpoint by name, those of the developer's own host names that are ready at their end.
    pub(crate) fn urls(&self) -> BTreeMap<String, Vec<String>> {
        let mut urls = self.welcomed.as_ref().map(|welcomed| welcomed.urls.clone()).unwrap_or_default();
        for state in self.domains.values().filter(|state| state.state() == Stage::Ready) {
            if let Some(all) = urls.get_mut(&state.endpoint) {
                all.push(state.url.clone());
            }
        }
        urls
    }
}

#[derive(Debug, Default)]
struct Missed {
    count: AtomicU64,
    failed: AtomicU64,
}

impl Events {
    pub(crate) fn channel() -> (Self, Listener) {
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        let (missed, ended) = (Arc::<Missed>::default(), CancellationToken::new());
        let events = Self { sender, missed: missed.clone(), ended: ended.clone(), link: Arc::default() };
        (events, Listener { receiver, missed, ended })
    }

    fn lock(&self) -> MutexGuard<'_, LinkNow> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the link is now.
    pub(crate) fn link(&self) -> LinkNow {
        self.lock().clone()
    }

    /// What a round trip takes at present.
    pub(crate) fn measured(&self, rtt: Duration) {
        self.lock().rtt = Some(rtt);
    }

    /// Nothing more is told: the listener has what there is, and then the end.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    /// Tells the listener, if it keeps up.
    pub(crate) fn tell(&self, event: Event) {
        match &event {
            Event::Up(welcomed) => {
                self.lock().up(welcomed.clone());
            }
            Event::Domain(state) => drop(self.lock().domains.insert(state.host.clone(), state.clone())),
            Event::DeadLetters { endpoint, count } => {
                self.lock().dead_letters.insert(endpoint.clone(), *count);
            }
            Event::Down { reason } => self.lock().down = Some(reason.clone()),
            Event::Released { endpoint, .. } => {
                if let Some(welcomed) = &mut self.lock().welcomed {
                    welcomed.urls.remove(endpoint);
                }
            }
            _ => {}
        }
        if let Err(mpsc::error::TrySendError::Full(event)) = self.sender.try_send(event) {
            self.missed.count.fetch_add(1, Ordering::Relaxed);
            if matches!(event, Event::Delivered(delivered) if !delivered.is_ok()) {
                self.missed.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Listener {
    /// The next event; what was missed when all others have been told. `None` after the last. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        if let Ok(event) = self.receiver.try_recv() {
            return Some(event);
        }
        let missed = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        match missed(&self.missed.count) {
            0 => tokio::select! {
                biased;
                event = self.receiver.recv() => event,
                () = self.ended.cancelled() => self.receiver.try_recv().ok(),
            },
            count => Some(Event::Missed { count, failed: missed(&self.missed.failed) }),
        }
    }
}

/// Something a person or a script may want to know.
#[derive(Clone, Debug)]
pub enum Event {
    /// The session is up. The first one makes the client ready.
    Up(Welcomed),
    /// The session is gone, or could not be had again for another reason than before; the client is trying to come
    /// back.
    Down {
        /// Why.
        reason: String,
    },
    /// Another client took an endpoint, or it was released.
    Released {
        /// The endpoint.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The app went down or came up.
    App {
        /// Whether it answers now.
        up: bool,
        /// Where it is.
        target: String,
    },
    /// There are now so many dead letters of an endpoint: deliveries that are tried no more.
    DeadLetters {
        /// The endpoint.
        endpoint: String,
        /// So many.
        count: u64,
    },
    /// Deliveries never reached this client, nor could the relay keep them for it.
    Lost {
        /// The endpoint.
        endpoint: String,
        /// So many.
        count: u64,
        /// When the first of them came.
        since: Option<jiff::Timestamp>,
        /// Why the last of them could not be kept.
        why: String,
    },
    /// How a host name of the developer's own is doing has changed.
    Domain(DomainState),
    /// Something that would help the person at the client.
    Hint {
        /// What to do, in a sentence.
        text: String,
    },
    /// Whoever listens did not keep up.
    Missed {
        /// So many events are missing here.
        count: u64,
        /// So many of them were deliveries that failed.
        failed: u64,
    },
    /// A delivery is done.
    Delivered(Box<Delivered>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missed_is_counted() {
        let (events, mut listener) = Events::channel();
        let hint = || Event::Hint { text: String::new() };
        for _ in 0..MAX_EVENTS + 3 {
            events.tell(hint());
        }
        for _ in 0..MAX_EVENTS {
            assert!(matches!(listener.next().await, Some(Event::Hint { .. })));
        }
        assert!(matches!(listener.next().await, Some(Event::Missed { count: 3, failed: 0 })));
        events.tell(hint());
        events.end();
        assert!(matches!(listener.next().await, Some(Event::Hint { .. })));
        assert!(listener.next().await.is_none());
    }
}
