//! An endpoint's protection at work.

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use http::HeaderValue;
use tokio::sync::Semaphore;

use super::{Protection, basic_auth};
use crate::limits::{Address, Throttle};

/// Wrong passwords from one address before it is not heard for a while.
const MAX_FAILURES: u32 = 10;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// A password must have been looked at within this time; one after the other, for each takes a core for a while.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(10);
/// Of all endpoints' at once so many are looked at: half of the cores. An endpoint has one of them at most.
static LOOKS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(available_parallelism().map_or(1, NonZeroUsize::get).div_ceil(2))));
/// Right passwords that are remembered, by their hash.
const MAX_KNOWN: usize = 64;

/// Holds requests against a [`Protection`].
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) protection: Protection,
    failures: Throttle<Address>,
    looking: Arc<tokio::sync::Mutex<()>>,
    /// Those that were right: a sender shows the same with every request.
    known: Mutex<HashSet<[u8; 32]>>,
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barred {
    /// Its sender's address.
    Address,
    /// Its path.
    Path,
    /// It has no name and password, or wrong ones.
    Credentials,
    /// It may have the right ones; too many wrong ones came from its address.
    Throttled,
    /// It may have the right ones; too many are to be looked at.
    Busy,
}

impl Guard {
    pub(crate) fn new(protection: Protection) -> Self {
        let failures = Throttle::new(MAX_FAILURES, FAILURE_WINDOW);
        Self { protection, failures, looking: Arc::default(), known: Mutex::default() }
    }

    /// Whether a request may pass.
    pub(crate) async fn check(
        self: &Arc<Self>,
        ip: IpAddr,
        path: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), Barred> {
        let Protection { allow, deny, users, paths, .. } = &self.protection;
        if deny.iter().any(|source| source.has(ip)) || !(allow.is_empty() || allow.iter().any(|source| source.has(ip)))
        {
            return Err(Barred::Address);
        }
        if !(paths.is_empty() || paths.iter().any(|prefix| prefix.has(path))) {
            return Err(Barred::Path);
        }
        if users.is_empty() { Ok(()) } else { self.knows(ip, authorization.ok_or(Barred::Credentials)?).await }
    }

    async fn knows(self: &Arc<Self>, ip: IpAddr, authorization: &HeaderValue) -> Result<(), Barred> {
        let shown = digest::digest(&digest::SHA256, authorization.as_bytes());
        let shown: [u8; 32] = shown.as_ref().try_into().expect("SHA-256 is 32 bytes");
        if self.is_known(&shown) {
            return Ok(());
        }
        let (name, password) = basic_auth::credentials(authorization).ok_or(Barred::Credentials)?;
        let address = Address::from(ip);
        let turn = async { (self.looking.clone().lock_owned().await, LOOKS.clone().acquire_owned().await) };
        let turn = tokio::time::timeout(LOOKED_AT_WITHIN, turn).await.map_err(|_| Barred::Busy)?;
        // The one before may have shown the same.
        if self.is_known(&shown) {
            return Ok(());
        }
        if self.failures.is_blocked(&address, Instant::now()) {
            return Err(Barred::Throttled);
        }
        let guard = self.clone();
        // To its end, with all that comes of it: a sender that hangs up drops the request, and not what it costs.
        let look = move || {
            let _turn = turn;
            let user = guard.protection.users.iter().find(|user| user.name() == name);
            // As long for a name that nobody has.
            let hash_of = user.or(guard.protection.users.first());
            let is_right = hash_of.is_some_and(|user| user.has(&password)) && user.is_some();
            if is_right {
                guard.remember(shown)
            } else {
                guard.failures.failed(address, Instant::now())
            }
            is_right
        };
        let is_right = tokio::task::spawn_blocking(look).await.unwrap_or(false);
        is_right.then_some(()).ok_or(Barred::Credentials)
    }

    fn remember(&self, shown: [u8; 32]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(shown);
    }

    fn is_known(&self, shown: &[u8; 32]) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(shown)
    }
}

#[cfg(test)]
mod tests {
    use super::super::User;
    use super::*;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    fn basic(text: &str) -> HeaderValue {
        format!("Basic {}", BASE64_STANDARD.encode(text)).parse().expect("a value")
    }

    #[tokio::test]
    async fn who_keeps_guessing_is_not_heard() {
        let users = vec![User::new("ann:password").expect("a user")];
        let guard = Arc::new(Guard::new(Protection { users, ..Protection::default() }));
        let [one, other]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().expect("an address"));
        let ask = async |ip, text: &str| guard.check(ip, "/", Some(&basic(text))).await;
        assert_eq!(guard.check(one, "/", None).await, Err(Barred::Credentials));
        assert_eq!(ask(other, "ann:password").await, Ok(()));
        assert_eq!(ask(one, "bob:password").await, Err(Barred::Credentials), "another's name");
        for n in 1..MAX_FAILURES {
            assert_eq!(ask(one, &format!("ann:guess-{n}")).await, Err(Barred::Credentials));
        }
        assert_eq!(ask(one, "ann:guess").await, Err(Barred::Throttled));
        assert_eq!(ask(other, "ann:password").await, Ok(()), "who is known is heard on");
        assert_eq!(ask(one, "ann:password").await, Ok(()), "and what is known is right from anywhere");
    }

    #[tokio::test]
    async fn deny_beats_allow() {
        let source = |text: &str| vec![text.parse().expect("a source")];
        let protection =
            Protection { allow: source("192.0.2.0/24"), deny: source("192.0.2.7"), ..Protection::default() };
        let guard = Arc::new(Guard::new(protection));
        for (ip, expected) in
            [("192.0.2.1", Ok(())), ("192.0.2.7", Err(Barred::Address)), ("198.51.100.1", Err(Barred::Address))]
        {
            assert_eq!(guard.check(ip.parse().expect("an address"), "/", None).await, expected, "{ip}");
        }
    }
}
