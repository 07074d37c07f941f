//! The queue: deliveries that were answered 202 and wait for their client. Each is on disk before its sender is
//! told; whose turn it is, [`backlog`] decides.

mod backlog;
mod dead_letters;
mod handed;
mod kept;
mod listeners;
mod room;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hookway_protocol::head::RequestHead;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use backlog::{Depth, Outcome};
pub(crate) use handed::Handed;
pub(crate) use listeners::MAX_LISTENERS;
pub(crate) use waiting::{Attached, Waiting};

use crate::delivery::{Body, Delivery, Unqueued};
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::store::{Dead, EndpointId, EndpointRow, NewDelivery, Payload, QueuedRow, Seq, Settled, Store, StoreError};
use backlog::{Entry, State};
use room::{Places, Rooms};

/// That a listener is there is noted so often in the time for which it is known while it is away.
const SEEN_PER_RETENTION: u32 = 24;

/// Whoever was there so short a time ago is expected back.
const JUST_NOW: Duration = Duration::from_secs(10);
/// What is being handed over may take so long when another process takes over.
const SETTLED_IN: Duration = Duration::from_secs(5);

/// As much is noted of what came of an attempt, in bytes.
const MAX_LAST: usize = 200;

/// With less room than this the disk counts as full whatever part of it that is: the store's log needs some, too.
const MIN_FREE: u64 = 8 << 20;

/// What the queue may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Deliveries of one endpoint.
    pub max_count: usize,
    /// Their bytes.
    pub max_bytes: usize,
    /// Deliveries of all endpoints of one token.
    pub token_max_count: usize,
    /// Their bytes.
    pub token_max_bytes: usize,
    /// Bytes of one body.
    pub max_body: u64,
    /// How long one waits before it is a dead letter.
    pub retention: Duration,
    /// How long dead letters are kept.
    pub dead_retention: Duration,
    /// The part of the disk that is left free, in percent.
    pub disk_reserve: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_count: 10_000,
            max_bytes: 1 << 30,
            token_max_count: 100_000,
            token_max_bytes: 10 << 30,
            max_body: 32 << 20,
            retention: Duration::from_secs(86_400),
            dead_retention: Duration::from_secs(14 * 86_400),
            disk_reserve: 5,
        }
    }
}

/// The queue of all endpoints.
#[derive(Debug)]
pub(crate) struct Queue {
    store: Arc<dyn Store>,
    config: ArcSwap<Config>,
    data_dir: PathBuf,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// The endpoint's own first, then those of its listeners that each get a copy.
    waiting: Mutex<HashMap<EndpointId, Vec<Arc<Waiting>>>>,
    rooms: Rooms,
    /// What the store found no room to note; it is told again.
    unsettled: Mutex<Vec<(Seq, Settled)>>,
    disk_is_full: AtomicBool,
    /// Nothing is handed over: another process does, or is about to.
    paused: watch::Sender<bool>,
    /// The process before this one may still put deliveries into the store.
    adopts: AtomicBool,
    /// Held while a sealed copy is made.
    sealing: tokio::sync::Mutex<()>,
    /// Whether the log says already that nothing can be kept.
    is_failing: AtomicBool,
}

impl Queue {
    /// The queue of what the store has.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        config: Config,
        data_dir: PathBuf,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            config: ArcSwap::from_pointee(config),
            data_dir,
            metrics,
            shutdown,
            waiting: Mutex::default(),
            rooms: Rooms::new(config),
            unsettled: Mutex::default(),
            disk_is_full: AtomicBool::new(false),
            paused: watch::Sender::new(false),
            adopts: AtomicBool::new(false),
            sealing: tokio::sync::Mutex::default(),
            is_failing: AtomicBool::new(false),
        })
    }

    /// What it may hold, now.
    pub(crate) fn config(&self) -> Config {
        **self.config.load()
    }

    /// It may hold so much from now on. What is over it stays.
    pub(crate) fn limit(&self, config: Config) {
        self.rooms.limit(&config);
        self.config.store(Arc::new(config));
    }

    /// What waits for an endpoint: the same one for every row of it.
    pub(crate) fn of(&self, row: &EndpointRow) -> Arc<Waiting> {
        let mut all = self.waiting();
        let of_endpoint = all.entry(row.id).or_insert_with(|| {
            let room = self.rooms.of(row.owner.as_str().into());
            vec![Arc::new(Waiting::new(row.id, &row.name, "", room))]
        });
        of_endpoint[0].clone()
    }

    /// Forgets endpoints that are no more.
    pub(crate) fn retain(&self, is_there: impl Fn(EndpointId) -> bool) {
        self.waiting().retain(|id, _| is_there(*id));
    }

    /// Takes over all that the store has: called once, with deliveries that were read before the endpoints.
    pub(crate) async fn load(&self, rows: Vec<QueuedRow>) -> Result<(), StoreError> {
        for row in self.store.listeners().await? {
            let own = self.waiting().get(&row.endpoint).map(|all| all[0].clone());
            if Timestamp::now().duration_since(row.seen_at).unsigned_abs() < JUST_NOW {
                own.iter().for_each(|own| own.expect());
            }
            if let Some(waiting) = own.and_then(|own| self.listener(&own, &row.name)) {
                waiting.restore(row);
            }
        }
        for row in &rows {
            self.take_in(row).await;
        }
        Ok(())
    }

    /// Takes over one that is on disk.
    async fn take_in(&self, row: &QueuedRow) {
        match (self.place(row), row.dead_since) {
            (Some((waiting, places)), Some(_)) => waiting.backlog().add_dead(row.seq, row.since, places),
            (Some((waiting, places)), None) => {
                waiting.backlog().add(row.seq, kept::entry(row, places));
                waiting.changed.notify_waiters();
            }
            (None, Some(_)) => {}
            (None, None) => {
                // It was accepted while its endpoint was being released.
                let (attempts, last) = (row.delivery.attempts, "the endpoint was released".to_owned());
                self.settle(row.seq, Settled::Dead { attempts, last, at: Timestamp::now() }).await;
            }
        }
    }

    /// Where a row belongs, and what it takes of the limits: it is here already, so it is let in. What was for a
    /// listener that is forgotten is for any.
    fn place(&self, row: &QueuedRow) -> Option<(Arc<Waiting>, Places)> {
        let all = self.waiting().get(&row.delivery.endpoint).cloned()?;
        let waiting = all.iter().find(|waiting| waiting.listener == row.delivery.listener).unwrap_or(&all[0]).clone();
        let places = waiting.room.take_anyway(row.delivery.bytes);
        Some((waiting, places))
    }

    /// Whether a delivery of this kind may wait: what only reads, and what wants to talk, makes no sense later.
    pub(crate) fn may_wait(delivery: &Delivery) -> bool {
        let RequestHead { method, headers, upgrade, .. } = &delivery.head;
        let kind = headers.get(&CONTENT_TYPE).map(HeaderValue::as_bytes);
        let is_call = kind.is_some_and(|kind| kind.starts_with(b"application/grpc"));
        upgrade.is_none() && !method.is_safe() && *method != Method::CONNECT && !is_call
    }

    /// Keeps a delivery until its client has it; on disk when this returns. A body that streams is read whole first.
    pub(crate) async fn push(
        self: &Arc<Self>,
        waiting: &Arc<Waiting>,
        delivery: &mut Delivery,
    ) -> Result<(), Unqueued> {
        if self.disk_is_full.load(Ordering::Relaxed) {
            return Err(Unqueued::DiskFull);
        }
        delivery.read_whole(self.config().max_body).await?;
        let Body::Whole(bytes, trailers) = &delivery.body else { return Err(Unqueued::Passed) };
        let (row, payload) = kept::of(waiting, &delivery.head, bytes, trailers.as_ref())?;
        // Carried out even if nobody waits any more: what is on disk must be known here, too.
        let (queue, waiting) = (self.clone(), waiting.clone());
        let held = (delivery.pass.take(), delivery.room.take());
        let kept = self.shutdown.work.spawn(async move {
            let _held = held;
            queue.keep(&waiting, row, payload).await
        });
        kept.await.unwrap_or(Err(Unqueued::Closed))
    }

    async fn keep(&self, waiting: &Arc<Waiting>, row: NewDelivery, payload: Payload) -> Result<(), Unqueued> {
        let places = loop {
            if let Some(places) = waiting.room.take(row.bytes) {
                break places;
            }
            // The oldest dead letter makes room for what can still arrive.
            if !waiting.room.would_fit(row.bytes, waiting.backlog().taken_by_dead()) {
                return Err(Unqueued::Full);
            }
            let Some((seq, letter)) = waiting.backlog().drop_oldest_dead() else { return Err(Unqueued::Full) };
            let removed = self.store.remove(Dead::These(vec![seq])).await;
            if !matches!(&removed, Ok(removed) if removed.contains(&seq)) {
                // It may have been made to wait again meanwhile, which is to be taken over.
                waiting.backlog().put_back(seq, letter);
                return Err(removed.err().map_or(Unqueued::Full, |error| self.failed(error)));
            }
        };
        let now = Instant::now();
        let (path, bytes, attempts, handed) = (row.path.as_str().into(), row.bytes, row.attempts, row.handed);
        let noted_since = row.received_at;
        let seq = self.store.push(row, payload).await.map_err(|error| self.failed(error))?;
        let (since, state, marked) = (now, State::Ready, handed);
        waiting.backlog().add(seq, Entry { path, bytes, attempts, handed, marked, since, noted_since, places, state });
        waiting.changed.notify_waiters();
        self.metrics.queued.inc();
        Ok(())
    }

    fn failed(&self, error: StoreError) -> Unqueued {
        // Not for each of many.
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "deliveries cannot be kept");
        }
        match error {
            StoreError::Full => {
                self.disk_is_full.store(true, Ordering::Relaxed);
                Unqueued::DiskFull
            }
            error => Unqueued::Store(error),
        }
    }

    async fn settle(&self, seq: Seq, settled: Settled) {
        if let Err(error) = self.store.settle(seq, settled.clone()).await {
            tracing::debug!(%error, seq, "what came of a delivery cannot be noted");
            self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).push((seq, settled));
        }
    }

    /// Dead letters of what has waited too long, what could not be noted, and the disk: called every second.
    pub(crate) async fn upkeep(self: &Arc<Self>) {
        let before = self.disk_is_full.load(Ordering::Relaxed);
        let reserve = self.config().disk_reserve;
        let full = is_nearly_full(&self.data_dir, reserve, 0)
            && is_nearly_full(&self.data_dir, reserve, self.store.reusable().await.unwrap_or(0));
        if full && !before {
            tracing::error!(folder = %self.data_dir.display(), "the disk is full: nothing is queued until there is room");
        }
        self.disk_is_full.store(full, Ordering::Relaxed);
        self.is_failing.store(false, Ordering::Relaxed);
        let all: Vec<Arc<Waiting>> = self.waiting().values().flatten().cloned().collect();
        let (now, at) = (Instant::now(), Timestamp::now());
        let mut sum = Depth::default();
        for waiting in &all {
            let gone = waiting.backlog().expire(now, self.config().retention);
            if !gone.is_empty() {
                let count = gone.len();
                tracing::warn!(
                    endpoint = waiting.name,
                    count,
                    "deliveries have waited for too long: they are dead letters"
                );
            }
            let dead = gone.into_iter().map(|(seq, attempts)| {
                let last = "it waited for too long".to_owned();
                self.settle(seq, Settled::Dead { attempts, last, at })
            });
            // Together, so that they wait for the disk once.
            futures_util::future::join_all(dead).await;
            sum.add(&waiting.depth());
        }
        self.metrics.queue_depth([sum.count, sum.bytes, sum.oldest.as_secs(), sum.dead]);
        self.settle_again().await;
        if let Ok(before) = at.checked_sub(self.config().dead_retention)
            && let Ok(gone) = self.store.remove(Dead::Before(before)).await
        {
            self.forget(&gone);
        }
        self.forget_listeners().await;
        self.save_listeners(self.config().retention / SEEN_PER_RETENTION).await;
    }

    /// Notes what could not be noted when it came.
    pub(crate) async fn settle_again(&self) {
        let unsettled = std::mem::take(&mut *self.unsettled.lock().unwrap_or_else(PoisonError::into_inner));
        if !unsettled.is_empty() {
            let count = unsettled.len();
            tracing::error!(count, "what came of deliveries could not be noted; trying again");
        }
        futures_util::future::join_all(unsettled.into_iter().map(|(seq, settled)| self.settle(seq, settled))).await;
    }

    /// The store has these no more.
    pub(crate) fn forget(&self, gone: &[Seq]) {
        for waiting in self.waiting().values().flatten() {
            let mut backlog = waiting.backlog();
            gone.iter().for_each(|seq| backlog.forget(*seq));
        }
    }

    /// What waits for an endpoint, whichever of its listeners it is for.
    pub(crate) fn depth_of(&self, own: &Waiting) -> Depth {
        let all = self.waiting().get(&own.id).cloned().unwrap_or_default();
        all.iter().fold(Depth::default(), |mut sum, waiting| {
            sum.add(&waiting.depth());
            sum
        })
    }

    /// Hands nothing over from now on, and waits a while for what is being handed over; notes who is there.
    pub(crate) async fn pause(&self) {
        self.paused.send_replace(true);
        let all = || self.waiting().values().flatten().cloned().collect::<Vec<_>>();
        let settled = async {
            while all().iter().any(|waiting| waiting.backlog().is_out()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(SETTLED_IN, settled).await;
        all().iter().for_each(|waiting| waiting.seen_now());
        self.settle_again().await;
        self.save_listeners(Duration::ZERO).await;
        self.unmark().await;
    }

    /// Hands over again.
    pub(crate) fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Whether what the process before puts into the store is looked for.
    pub(crate) fn adopt(&self, adopts: bool) {
        self.adopts.store(adopts, Ordering::Relaxed);
    }

    /// Whether there is no room on the disk.
    pub(crate) fn is_full(&self) -> bool {
        self.disk_is_full.load(Ordering::Relaxed)
    }

    /// Tells the store who was there, and that what it noted as about to be handed over was not. Without that, as after
    /// a power cut, those are marked as possible duplicates.
    pub(crate) async fn close(&self) {
        self.settle_again().await;
        // Another process has the queue by now, and has noted what it hands over.
        if self.shutdown.has_successor() {
            return;
        }
        self.save_listeners(Duration::ZERO).await;
        self.unmark().await;
    }

    async fn unmark(&self) {
        let vain = |waiting: &Arc<Waiting>| waiting.backlog().marked_in_vain();
        let all: Vec<Seq> = self.waiting().values().flatten().flat_map(vain).collect();
        if !all.is_empty()
            && let Err(error) = self.store.mark_handed(all, false).await
        {
            tracing::warn!(%error, "some deliveries will be marked as possible duplicates without need");
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<EndpointId, Vec<Arc<Waiting>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a delivery, as it is noted: a client may say a lot.
pub(crate) fn short(text: &str) -> String {
    kept::cut(text, MAX_LAST).to_owned()
}

/// Whether less than that part of the file system is free to us, or hardly anything. The store can use so many bytes of
/// its file again, besides.
fn is_nearly_full(folder: &Path, reserve_percent: u8, reusable: u64) -> bool {
    let Ok(fs) = rustix::fs::statvfs(folder) else { return false };
    let size = fs.f_frsize.max(1);
    let free = fs.f_bavail.saturating_add(reusable / size);
    free.saturating_mul(size) < MIN_FREE
        || free.saturating_mul(100) < fs.f_blocks.saturating_mul(reserve_percent.into())
}
