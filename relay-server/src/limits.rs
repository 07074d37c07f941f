//! How much of everything is allowed: rates, deliveries at once, connections of one address.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// What an endpoint and a token may use.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Requests per second to one endpoint.
    pub rate: Rate,
    /// Deliveries of one endpoint in flight at once.
    pub max_concurrent: usize,
    /// Requests per second to all endpoints of one token.
    pub token_rate: Rate,
    /// Deliveries of all endpoints of one token in flight at once.
    pub token_max_concurrent: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rate: Rate::per_second(1000),
            max_concurrent: 1000,
            token_rate: Rate::per_second(5000),
            token_max_concurrent: 2000,
        }
    }
}

/// A number of requests per second, with a burst of the same number; or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(Option<NonZeroU32>);

impl Rate {
    /// The lower of two.
    pub(crate) fn min(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).min())
    }

    /// No limit.
    pub const OFF: Self = Self(None);

    /// So many a second; 0 is no limit.
    #[must_use]
    pub const fn per_second(count: u32) -> Self {
        Self(NonZeroU32::new(count))
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let count = text.strip_suffix("/s").unwrap_or(text);
        let count = if count.starts_with('+') { None } else { count.parse::<NonZeroU32>().ok() };
        let what = "a rate is a number and /s, such as 100/s, or off";
        count.map(|count| Self(Some(count))).ok_or_else(|| what.into())
    }
}

impl serde::Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(count) => write!(f, "{count}/s"),
            None => f.write_str("off"),
        }
    }
}

/// Lets deliveries in: so many a second, so many at once.
#[derive(Debug)]
pub(crate) struct Gate {
    rate: ArcSwap<(Rate, Option<DefaultDirectRateLimiter>)>,
    in_flight: Arc<Counter>,
}

/// A delivery was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many in a short time; one more is let in after that long.
    Rate(Duration),
    /// Too many at once.
    Concurrency,
}

impl Gate {
    pub(crate) fn new(rate: Rate, max_concurrent: usize) -> Self {
        Self { rate: ArcSwap::from_pointee(limiter(rate)), in_flight: Arc::new(Counter::new(max_concurrent)) }
    }

    /// Lets in as many from now on.
    pub(crate) fn set(&self, rate: Rate, max_concurrent: usize) {
        self.in_flight.most.set(max_concurrent);
        // Who is over an unchanged rate stays over it.
        if self.rate.load().0 != rate {
            self.rate.store(Arc::new(limiter(rate)));
        }
    }

    /// A place for one delivery, held until the guard is dropped.
    pub(crate) fn enter(&self) -> Result<Place, Refusal> {
        let place = self.in_flight.take(1).ok_or(Refusal::Concurrency)?;
        match self.rate.load().1.as_ref().map(RateLimiter::check) {
            Some(Err(wait)) => Err(Refusal::Rate(wait.wait_time_from(DefaultClock::default().now()))),
            _ => Ok(place),
        }
    }
}

fn limiter(rate: Rate) -> (Rate, Option<DefaultDirectRateLimiter>) {
    (rate, rate.0.map(|count| RateLimiter::direct(Quota::per_second(count))))
}

/// A number that may be changed while it is in force, for all that have it.
#[derive(Clone, Debug)]
pub(crate) struct Limit(Arc<AtomicUsize>);

impl Limit {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, most: usize) {
        self.0.store(most, Ordering::Relaxed);
    }
}

impl From<usize> for Limit {
    fn from(most: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(most)))
    }
}

/// A delivery's places at the gates it passed.
#[derive(Debug)]
pub(crate) struct Pass {
    _places: [Place; 2],
}

impl Pass {
    pub(crate) const fn new(endpoint: Place, token: Place) -> Self {
        Self { _places: [endpoint, token] }
    }
}

/// Counts up to a limit.
#[derive(Debug)]
pub(crate) struct Counter {
    used: AtomicUsize,
    pub(crate) most: Limit,
}

impl Counter {
    pub(crate) fn new(most: impl Into<Limit>) -> Self {
        Self { used: AtomicUsize::new(0), most: most.into() }
    }

    /// Takes `count` places, or none.
    pub(crate) fn take(self: &Arc<Self>, count: usize) -> Option<Place> {
        let more = |used: usize| (count <= self.most.get().saturating_sub(used)).then(|| used + count);
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more);
        taken.is_ok().then(|| Place { of: self.clone(), count })
    }

    /// Takes `count` places, though it may be over the limit then.
    pub(crate) fn take_anyway(self: &Arc<Self>, count: usize) -> Place {
        self.used.fetch_add(count, Ordering::AcqRel);
        Place { of: self.clone(), count }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn left(&self) -> usize {
        self.most.get().saturating_sub(self.used())
    }
}

/// Places of a [`Counter`], given back on drop.
#[derive(Debug)]
#[must_use]
pub(crate) struct Place {
    of: Arc<Counter>,
    count: usize,
}

impl Place {
    pub(crate) const fn count(&self) -> usize {
        self.count
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.count, Ordering::AcqRel);
    }
}

/// A counter for each address.
#[derive(Debug)]
pub(crate) struct PerAddress {
    counters: Mutex<HashMap<Address, Weak<Counter>>>,
    pub(crate) most: Limit,
}

impl PerAddress {
    pub(crate) fn new(most: usize) -> Self {
        Self { counters: Mutex::default(), most: most.into() }
    }

    /// The counter of an address: the same one as long as anybody holds it, or places of it.
    pub(crate) fn of(&self, ip: IpAddr) -> Arc<Counter> {
        let address = Address::from(ip);
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.get(&address).and_then(Weak::upgrade).unwrap_or_else(|| {
            // Each time their number has doubled, those that nobody holds go.
            if counters.len().is_power_of_two() {
                counters.retain(|_, counter| counter.strong_count() > 0);
            }
            let counter = Arc::new(Counter::new(self.most.clone()));
            counters.insert(address, Arc::downgrade(&counter));
            counter
        })
    }
}

/// What a body takes of its sender's share of the memory, piece by piece.
pub(crate) type Room = Vec<[Place; 2]>;

/// Room for bodies that are kept whole: of all senders together, and of each address a quarter.
#[derive(Debug)]
pub(crate) struct Memory {
    all: Arc<Counter>,
    of_each: PerAddress,
    /// Of those that stand for many addresses.
    of_many: Arc<Counter>,
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Self {
        let of_many = Arc::new(Counter::new(usize::MAX));
        Self { all: Arc::new(Counter::new(bytes)), of_each: PerAddress::new(bytes / 4), of_many }
    }

    /// So many bytes from now on.
    pub(crate) fn set(&self, bytes: usize) {
        self.all.most.set(bytes);
        self.of_each.most.set(bytes / 4);
    }

    /// The share of an address: looked up once, not for every piece of a body. `None`: many are behind it.
    pub(crate) fn share(&self, ip: Option<IpAddr>) -> Share {
        Share { all: self.all.clone(), own: ip.map_or_else(|| self.of_many.clone(), |ip| self.of_each.of(ip)) }
    }
}

/// What an address may use of a [`Memory`].
#[derive(Debug)]
pub(crate) struct Share {
    all: Arc<Counter>,
    own: Arc<Counter>,
}

impl Share {
    /// The same while more than half is free: for what may be needed, where others are in need.
    pub(crate) fn take_spare(&self, bytes: usize) -> Option<[Place; 2]> {
        (self.all.used() < self.all.most.get() / 2).then(|| self.take(bytes))?
    }

    /// Room for so many bytes, if there is some; given back on drop.
    pub(crate) fn take(&self, bytes: usize) -> Option<[Place; 2]> {
        Some([self.all.take(bytes)?, self.own.take(bytes)?])
    }
}

/// Who an address belongs to: the address itself, or an IPv6 /64, which is what one subscriber has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address(IpAddr);

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into()),
            ip => ip,
        })
    }
}

/// Slows down those who keep failing, by key. Holds a bounded number of keys.
#[derive(Debug)]
pub(crate) struct Throttle<K> {
    failures: Mutex<HashMap<K, (u32, Instant)>>,
    most: u32,
    window: Duration,
}

impl<K: Eq + Hash> Throttle<K> {
    /// More keys than this are not remembered: those whose window has passed go first, then all.
    const MAX_KEYS: usize = 10_000;

    pub(crate) fn new(most: u32, window: Duration) -> Self {
        Self { failures: Mutex::default(), most, window }
    }

    /// Whether `key` has failed too often lately.
    pub(crate) fn is_blocked(&self, key: &K, now: Instant) -> bool {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(key).is_some_and(|(count, since)| *count >= self.most && now.duration_since(*since) < self.window)
    }

    /// Remembers one more failure.
    pub(crate) fn failed(&self, key: K, now: Instant) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= Self::MAX_KEYS {
            failures.retain(|_, (_, since)| now.duration_since(*since) < self.window);
        }
        if failures.len() >= Self::MAX_KEYS {
            // Every place is taken by a fresh failure: an attack from many addresses. Memory stays bounded.
            failures.clear();
        }
        let entry = failures.entry(key).or_insert((0, now));
        if now.duration_since(entry.1) >= self.window {
            *entry = (0, now);
        }
        entry.0 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_counts_and_gives_back() {
        let gate = Gate::new(Rate::OFF, 2);
        let first = gate.enter().expect("a place");
        let _second = gate.enter().expect("a place");
        assert_eq!(gate.enter().err(), Some(Refusal::Concurrency));
        drop(first);
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn a_gate_has_a_rate_and_says_when_to_come_again() {
        let gate = Gate::new(Rate::OFF, 1);
        gate.set(Rate::per_second(3), 100);
        let let_in = (0..10).filter(|_| gate.enter().is_ok()).count();
        assert_eq!(let_in, 3);
        assert!(matches!(gate.enter(), Err(Refusal::Rate(wait)) if wait <= Duration::from_secs(1)));
        assert_eq!(gate.in_flight.used(), 0, "a refused delivery holds no place");
    }

    #[test]
    fn an_address_has_so_many() {
        let connections = PerAddress::new(1);
        let v4 = "192.0.2.1".parse().expect("an address");
        let same_64: [IpAddr; 2] = ["2001:db8::1", "2001:db8::ffff:2"].map(|ip| ip.parse().expect("an address"));
        let first = connections.of(v4).take(1);
        assert!(first.is_some());
        assert!(
            connections.of("::ffff:192.0.2.1".parse().expect("an address")).take(1).is_none(),
            "mapped, yet the same"
        );
        drop(first);
        assert!(connections.of(v4).take(1).is_some());
        let _held = connections.of(same_64[0]).take(1);
        assert!(connections.of(same_64[1]).take(1).is_none(), "one subscriber");
    }

    #[test]
    fn room_for_bodies_is_bounded_for_all_and_for_each() {
        let memory = Memory::new(100);
        let [one, other]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().expect("an address"));
        let (first, second) = (memory.share(Some(one)), memory.share(Some(one)));
        let held: Vec<_> = (0..5).map_while(|_| first.take(10)).collect();
        assert_eq!(held.len(), 2, "a quarter for one address");
        assert!(second.take(10).is_none(), "on all its connections");
        assert!(memory.share(Some(other)).take(25).is_some(), "another has its own");
        assert!(memory.share(Some(other)).take(usize::MAX).is_none());
        drop(held);
        assert_eq!(memory.all.used(), 0, "what was refused holds nothing");
        let shares: Vec<_> = (0..=4).map(|n| memory.share(Some(IpAddr::from([198, 51, 100, n])))).collect();
        let filled: Vec<_> = shares.iter().filter_map(|share| share.take(25)).collect();
        assert_eq!(filled.len(), 4, "a hundred for all");
        drop((first, second, filled, shares));
        for n in 0..100 {
            let _ = memory.share(Some(IpAddr::from([203, 0, 113, n])));
        }
        assert!(memory.of_each.counters.lock().expect("unpoisoned").len() <= 8, "who is gone is forgotten");
    }

    #[test]
    fn a_throttle_blocks_and_forgets() {
        let throttle = Throttle::new(3, Duration::from_secs(60));
        let now = Instant::now();
        for _ in 0..3 {
            assert!(!throttle.is_blocked(&1, now));
            throttle.failed(1, now);
        }
        assert!(throttle.is_blocked(&1, now));
        assert!(!throttle.is_blocked(&2, now));
        assert!(!throttle.is_blocked(&1, now + Duration::from_secs(61)));
        for key in 0..50_000 {
            throttle.failed(key, now);
        }
        assert!(throttle.failures.lock().expect("unpoisoned").len() <= Throttle::<i32>::MAX_KEYS);
    }

    #[test]
    fn limits_change_while_they_are_in_force() {
        let addresses = PerAddress::new(1);
        let one = addresses.of([192, 0, 2, 1].into());
        let _held = one.take(1).expect("a place");
        assert!(one.take(1).is_none());
        addresses.most.set(2);
        let _second = one.take(1).expect("one more");
        addresses.most.set(1);
        assert!(one.take(1).is_none(), "over the limit now, and no more is let in");
        assert_eq!(Rate::OFF.min(Rate::per_second(5)), Rate::per_second(5));
        assert_eq!(Rate::per_second(2).min(Rate::per_second(5)), Rate::per_second(2));
        assert_eq!(Rate::OFF.min(Rate::OFF), Rate::OFF);
    }

    #[test]
    fn rates() {
        assert_eq!("5/s".parse(), Ok(Rate::per_second(5)));
        assert_eq!("off".parse(), Ok(Rate::OFF));
        assert!("0/s".parse::<Rate>().is_err());
        assert!("-1".parse::<Rate>().is_err());
        assert!("+1/s".parse::<Rate>().is_err());
    }
}
