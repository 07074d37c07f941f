//! What waits for an endpoint, or for one of those that each get a copy.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hookway_protocol::message::{Queueing, Rule, Share};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backlog::{Backlog, Depth};
use super::room::Room;
use crate::store::{EndpointId, ListenerRow, Missed};

/// What waits for an endpoint, or for one of its listeners that each get a copy.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(super) id: EndpointId,
    pub(super) name: String,
    /// The listener's name; empty for the endpoint itself.
    pub(super) listener: String,
    backlog: Mutex<Backlog>,
    /// Something waits that did not before, or needs to wait no longer.
    pub(super) changed: Notify,
    pub(super) room: Room,
    presence: Mutex<Presence>,
}

/// A client that was there when the process before ended is back within this time, or away.
const EXPECTED_FOR: Duration = Duration::from_secs(8);

/// Who is there to take it.
#[derive(Debug)]
struct Presence {
    sessions: usize,
    /// When the last of them was.
    seen_at: Timestamp,
    missed: Missed,
    /// The store does not know it yet.
    unsaved: bool,
    /// It was there a moment ago, at the process before this one: it is on its way until then.
    expected_until: Option<Instant>,
}

/// A session is there, until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Attached(Arc<Waiting>);

impl Drop for Attached {
    fn drop(&mut self) {
        let mut presence = self.0.presence();
        presence.sessions -= 1;
        (presence.seen_at, presence.unsaved) = (Timestamp::now(), true);
    }
}

impl Waiting {
    /// What waits for an endpoint or a listener.
    pub(super) fn new(id: EndpointId, name: &str, listener: &str, room: Room) -> Self {
        let (seen_at, missed, expected_until) = (Timestamp::now(), Missed::default(), None);
        let presence = Presence { sessions: 0, seen_at, missed, unsaved: false, expected_until };
        Self {
            id,
            name: name.to_owned(),
            listener: listener.to_owned(),
            backlog: Mutex::new(Backlog::new(Queueing::default())),
            changed: Notify::new(),
            room,
            presence: presence.into(),
        }
    }

    pub(super) fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the store knows.
    pub(super) fn restore(&self, row: ListenerRow) {
        self.backlog().set_queueing(Queueing::from_bytes(&row.rules));
        let mut presence = self.presence();
        (presence.seen_at, presence.missed) = (row.seen_at, row.missed);
    }

    /// Whoever was there a moment ago comes back in a moment.
    pub(super) fn expect(&self) {
        self.presence().expected_until = Some(Instant::now() + EXPECTED_FOR);
    }

    /// Until when whoever was there at the process before is to be waited for.
    pub(crate) fn expected_until(&self) -> Option<Instant> {
        self.presence().expected_until.filter(|until| *until > Instant::now())
    }

    /// What the store is to know.
    pub(super) fn row(&self) -> ListenerRow {
        let rules = self.backlog().queueing().to_bytes();
        let presence = self.presence();
        let (seen_at, missed) = (presence.seen_at, presence.missed.clone());
        ListenerRow { endpoint: self.id, name: self.listener.clone(), rules, seen_at, missed }
    }

    /// The same, if it has changed since, or a session has been there for so long since.
    pub(super) fn unsaved(&self, seen_every: Duration) -> Option<ListenerRow> {
        let unsaved = {
            let mut presence = self.presence();
            let (now, was_seen) = (Timestamp::now(), presence.seen_at);
            if presence.sessions > 0 && now.duration_since(was_seen).unsigned_abs() >= seen_every {
                (presence.seen_at, presence.unsaved) = (now, true);
            }
            std::mem::take(&mut presence.unsaved)
        };
        unsaved.then(|| self.row())
    }

    /// The store could not note it.
    pub(super) fn not_saved(&self) {
        self.presence().unsaved = true;
    }

    /// A session is there for it.
    pub(crate) fn attach(self: &Arc<Self>) -> Attached {
        let mut presence = self.presence();
        presence.sessions += 1;
        presence.expected_until = None;
        (presence.seen_at, presence.unsaved) = (Timestamp::now(), true);
        Attached(self.clone())
    }

    /// Notes whoever is there.
    pub(super) fn seen_now(&self) {
        let mut presence = self.presence();
        if presence.sessions > 0 {
            (presence.seen_at, presence.unsaved) = (Timestamp::now(), true);
        }
    }

    /// A session is about to be there.
    pub(super) fn seen(&self) {
        self.presence().seen_at = Timestamp::now();
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.presence().sessions > 0
    }

    /// Whether a session is there for it, or was not long ago.
    pub(super) fn is_current(&self, retention: Duration) -> bool {
        let presence = self.presence();
        let away = Timestamp::now().duration_since(presence.seen_at);
        presence.sessions > 0 || away.unsigned_abs() < retention
    }

    /// A delivery could not be kept for it.
    pub(crate) fn miss(&self, why: &dyn std::fmt::Display) {
        let mut presence = self.presence();
        let Missed { count, since, .. } = presence.missed;
        let since = since.or_else(|| Some(Timestamp::now()));
        presence.missed = Missed { count: count.saturating_add(1), since, why: super::short(&why.to_string()) };
        presence.unsaved = true;
    }

    /// What could not be kept, for the one who tells it.
    pub(crate) fn take_missed(&self) -> Option<Missed> {
        let mut presence = self.presence();
        let missed = std::mem::take(&mut presence.missed);
        presence.unsaved |= missed.count > 0;
        (missed.count > 0).then_some(missed)
    }

    /// It was not told after all.
    pub(crate) fn not_told(&self, before: Missed) {
        let mut presence = self.presence();
        let Missed { count, why, .. } = std::mem::take(&mut presence.missed);
        let why = if count > 0 { why } else { before.why };
        presence.missed = Missed { count: count.saturating_add(before.count), since: before.since, why };
        presence.unsaved = true;
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.backlog().is_empty()
    }

    /// Deliveries that are tried no more.
    pub(crate) fn dead_letters(&self) -> u64 {
        self.backlog().dead_letters()
    }

    /// Whether its client wants others of the endpoint to have copies.
    pub(crate) fn copies(&self) -> bool {
        self.backlog().queueing().share() == Share::Copy
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
}
