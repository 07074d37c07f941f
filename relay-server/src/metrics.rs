//! What the relay counts, for Prometheus. Labels are of bounded size: never a host, a path or an address.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The metrics, each documented where it is registered.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Counter,
    pub(crate) replies: Replies,
    pub(crate) refused: By,
    pub(crate) in_flight: Gauge,
    pub(crate) request_bytes: Counter,
    pub(crate) reply_bytes: Counter,
    pub(crate) first_byte: Histogram,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: By,
    pub(crate) sessions: Gauge,
    pub(crate) handshakes_refused: By,
    pub(crate) replies_cut: Counter,
    pub(crate) links_lost: Counter,
    /// Deliveries that were put into the queue.
    pub(crate) queued: Counter,
    /// In seconds since 1970.
    pub(crate) certificate_expiry: Gauge,
    pub(crate) handed_over: By,
    pub(crate) admin_refused: By,
    pub(crate) access_log_dropped: Counter,
    queue: QueueGauges,
}

#[derive(Debug, Default)]
struct QueueGauges {
    depth: Gauge,
    bytes: Gauge,
    oldest: Gauge,
    dead: Gauge,
}

/// A counter for each value of one label.
pub(crate) type By = Family<[(&'static str, &'static str); 1], Counter>;

/// The apps' answers by the first digit of their status. Looked up once, not at every request.
#[derive(Debug)]
pub(crate) struct Replies([Counter; 6]);

impl Replies {
    pub(crate) fn count(&self, status: http::StatusCode) {
        self.0.get(usize::from(status.as_u16() / 100)).unwrap_or(&self.0[0]).inc();
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("hookway_relay");
        let by_class = By::default();
        let classes = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let metrics = Self {
            requests: Counter::default(),
            replies: Replies(classes.map(|class| by_class.get_or_create_owned(&[("class", class)]))),
            refused: Family::default(),
            in_flight: Gauge::default(),
            request_bytes: Counter::default(),
            reply_bytes: Counter::default(),
            // 1 ms to 65 s.
            first_byte: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            connections: Gauge::default(),
            connections_refused: Family::default(),
            sessions: Gauge::default(),
            handshakes_refused: Family::default(),
            replies_cut: Counter::default(),
            links_lost: Counter::default(),
            queued: Counter::default(),
            certificate_expiry: Gauge::default(),
            handed_over: Family::default(),
            admin_refused: Family::default(),
            access_log_dropped: Counter::default(),
            queue: QueueGauges::default(),
            registry: Registry::default(),
        };
        let info = [("version", env!("CARGO_PKG_VERSION"))];
        let info = prometheus_client::metrics::info::Info::new(info.to_vec());
        registry.register("build", "The program", info);
        registry.register("requests", "Requests whose head was read", metrics.requests.clone());
        registry.register("replies", "Answers of apps passed back, by status class", by_class);
        registry.register("refused", "Requests answered by the relay itself, by reason", metrics.refused.clone());
        registry.register("in_flight", "Deliveries on their way now", metrics.in_flight.clone());
        let bytes = Unit::Bytes;
        let help = "Bytes of bodies taken from senders";
        registry.register_with_unit("request", help, bytes.clone(), metrics.request_bytes.clone());
        let help = "Bytes of bodies passed back to senders";
        registry.register_with_unit("reply", help, bytes, metrics.reply_bytes.clone());
        let help = "Time from a request's head to its reply's head";
        registry.register_with_unit("first_byte", help, Unit::Seconds, metrics.first_byte.clone());
        let help = "When the certificate that ends first does, in seconds since 1970; 0 when that is not known";
        registry.register("certificate_expiry_timestamp", help, metrics.certificate_expiry.clone());
        registry.register("connections", "Connections of senders open now", metrics.connections.clone());
        let help = "Connections of senders refused or ended, by reason";
        registry.register("connections_refused", help, metrics.connections_refused.clone());
        registry.register("sessions", "Clients connected now", metrics.sessions.clone());
        let help = "Clients refused, by reason";
        registry.register("handshakes_refused", help, metrics.handshakes_refused.clone());
        registry.register(
            "replies_cut",
            "Replies that their senders did not take in time",
            metrics.replies_cut.clone(),
        );
        registry.register("links_lost", "Sessions that ended without a goodbye", metrics.links_lost.clone());
        registry.register("queued", "Deliveries put into the queue", metrics.queued.clone());
        let help = "Deliveries of the queue handed to a client, by what came of it";
        registry.register("queue_handed_over", help, metrics.handed_over.clone());
        let help = "Requests to the admin API that were refused, by reason";
        registry.register("admin_refused", help, metrics.admin_refused.clone());
        let help = "Lines of the access log that could not be written in time";
        registry.register("access_log_dropped", help, metrics.access_log_dropped.clone());
        registry.register("queue_depth", "Deliveries that wait in the queue", metrics.queue.depth.clone());
        let (unit, help) = (Unit::Bytes, "Bytes of deliveries that wait in the queue");
        registry.register_with_unit("queue", help, unit, metrics.queue.bytes.clone());
        let (unit, help) = (Unit::Seconds, "How long the oldest delivery of the queue has waited");
        registry.register_with_unit("queue_oldest", help, unit, metrics.queue.oldest.clone());
        registry.register("queue_dead_letters", "Dead letters that are kept", metrics.queue.dead.clone());
        Self { registry, ..metrics }
    }

    /// What waits in the queue now: deliveries, bytes, seconds of the oldest, dead letters.
    pub(crate) fn queue_depth(&self, [depth, bytes, oldest, dead]: [u64; 4]) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.queue.depth, depth);
        set(&self.queue.bytes, bytes);
        set(&self.queue.oldest, oldest);
        set(&self.queue.dead, dead);
    }

    /// The metrics in OpenMetrics text.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

/// Counts one while it lives.
#[derive(Debug)]
pub(crate) struct Up(Gauge<i64, AtomicI64>);

impl Up {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts one more of a reason.
pub(crate) fn count(family: &By, reason: &'static str) {
    family.get_or_create(&[("reason", reason)]).inc();
}

/// Counts one more that ended so.
pub(crate) fn count_outcome(family: &By, outcome: &'static str) {
    family.get_or_create(&[("outcome", outcome)]).inc();
}
