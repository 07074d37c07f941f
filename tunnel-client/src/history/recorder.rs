//! Where exchanges go: into the history, and to whoever listens.

use std::sync::{Arc, Mutex, PoisonError};

use super::record::{CarriedOut, Shelf};
use super::{History, Record};
use crate::events::{Event, Events};
use crate::exchange::{Delivered, Room};
use crate::filter::Filter;

/// The bodies of deliveries in flight may keep so many bytes in memory for the history, all together.
const ROOM: usize = 64 << 20;

/// Takes exchanges.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    history: Option<History>,
    /// One count for the two: it is taken for each exchange.
    teller: Arc<Teller>,
    /// Where bodies are kept that are on their way; none when nobody wants them.
    room: Option<Arc<Room>>,
}

#[derive(Debug)]
struct Teller {
    events: Events,
    filter: Filter,
    shelf: Mutex<Shelf>,
}

impl Recorder {
    /// `filter`: which deliveries whoever listens wants.
    pub(crate) fn new(events: Events, history: Option<History>, filter: Filter) -> Self {
        let room = (history.is_some() || !filter.is_empty()).then(|| Arc::new(Room::new(ROOM)));
        Self { history, teller: Arc::new(Teller { events, filter, shelf: Mutex::default() }), room }
    }

    pub(crate) fn events(&self) -> &Events {
        &self.teller.events
    }

    pub(crate) const fn history(&self) -> Option<&History> {
        self.history.as_ref()
    }

    /// Where bodies are kept that are on their way, if heads and bodies are wanted.
    pub(crate) const fn room(&self) -> Option<&Arc<Room>> {
        self.room.as_ref()
    }

    /// An exchange that has gone on for a while: it can be looked at before it is over.
    pub(crate) fn pending(&self, carried_out: impl FnOnce() -> CarriedOut) {
        if let Some(history) = &self.history {
            history.record(self.teller.record(carried_out()), None);
        }
    }

    /// An exchange is over.
    pub(crate) fn over(&self, delivered: Box<Delivered>, carried_out: impl FnOnce() -> CarriedOut) {
        let record = self.room.is_some().then(|| self.teller.record(carried_out()));
        match (&self.history, record) {
            (Some(history), Some(record)) => {
                history.record(record, Some(Told { teller: self.teller.clone(), delivered }));
            }
            (_, record) => self.teller.tell(delivered, record.as_ref()),
        }
    }
}

impl Teller {
    fn record(&self, carried_out: CarriedOut) -> Record {
        Record::new(&mut self.shelf.lock().unwrap_or_else(PoisonError::into_inner), carried_out)
    }

    fn tell(&self, mut delivered: Box<Delivered>, record: Option<&Record>) {
        if !self.filter.is_empty() {
            let exchange = record.and_then(|record| record.exchange().ok());
            delivered.is_wanted = exchange.is_some_and(|exchange| self.filter.matches(&exchange));
        }
        self.events.tell(Event::Delivered(delivered));
    }
}

/// Who is told of an exchange, and what.
#[derive(Debug)]
pub(super) struct Told {
    teller: Arc<Teller>,
    delivered: Box<Delivered>,
}

impl Told {
    /// Tells.
    pub(super) fn tell(self, record: &Record) {
        self.teller.tell(self.delivered, Some(record));
    }
}
