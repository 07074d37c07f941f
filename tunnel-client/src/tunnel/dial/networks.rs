//! What is known of the networks that this machine was in: whether UDP gets through there.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hookway_protocol::link::Transport;

use crate::tunnel::{RelayAddress, local_address};

/// So many networks are known.
const MAX_NETWORKS: usize = 64;
/// A link over QUIC that is lost before it was this old speaks against UDP; an older one for it.
const STEADY: Duration = Duration::from_secs(60);
/// The first wait before QUIC is tried again; it doubles with each failure.
const AGAIN_IN: Duration = Duration::from_secs(5);
const AGAIN_IN_MOST: Duration = Duration::from_secs(5 * 60);

/// How often in a row UDP failed, by this machine's address.
#[derive(Debug)]
pub(super) struct Networks {
    relay: RelayAddress,
    failures: Mutex<HashMap<Option<IpAddr>, u32>>,
}

impl Networks {
    pub(super) fn new(relay: RelayAddress) -> Self {
        Self { relay, failures: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<IpAddr>, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> u32 {
        self.lock().get(&local_address(&self.relay)).copied().unwrap_or(0)
    }

    /// What is tried first. Where UDP failed, it does not even race: a network may let its first packets through.
    pub(super) fn first(&self) -> Transport {
        if self.failures() == 0 { Transport::Quic } else { Transport::H2 }
    }

    pub(super) fn udp_failed(&self) {
        let network = local_address(&self.relay);
        let mut failures = self.lock();
        if failures.len() >= MAX_NETWORKS {
            failures.clear();
        }
        let count = failures.entry(network).or_default();
        *count = count.saturating_add(1);
    }

    /// A link over QUIC was made; whether it lasts is to be seen.
    pub(super) fn udp_passes(&self) {
        if let Some(count) = self.lock().get_mut(&local_address(&self.relay)) {
            *count = (*count).min(1);
        }
    }

    /// A link over QUIC lasted so long, and then may have fallen silent.
    pub(super) fn udp_worked(&self, lasted: Duration, fell_silent: bool) {
        if lasted >= STEADY {
            self.lock().remove(&local_address(&self.relay));
        } else if fell_silent {
            self.udp_failed();
        }
    }

    pub(super) fn try_again_in(&self) -> Duration {
        AGAIN_IN.saturating_mul(1 << self.failures().min(10)).min(AGAIN_IN_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_where_udp_fails_is_remembered_until_it_works_there() {
        let networks = Networks::new("127.0.0.1:1".parse().expect("an address"));
        assert_eq!((networks.first(), networks.try_again_in()), (Transport::Quic, AGAIN_IN));
        networks.udp_worked(Duration::from_secs(1), false);
        assert_eq!(networks.first(), Transport::Quic);
        networks.udp_worked(Duration::from_secs(1), true);
        assert_eq!((networks.first(), networks.try_again_in()), (Transport::H2, AGAIN_IN * 2));
        networks.udp_failed();
        assert_eq!((networks.first(), networks.try_again_in()), (Transport::H2, AGAIN_IN * 4));
        (0..100).for_each(|_| networks.udp_failed());
        assert_eq!(networks.try_again_in(), AGAIN_IN_MOST);
        // It worked for long, and died only then.
        networks.udp_worked(STEADY, true);
        assert_eq!((networks.first(), networks.try_again_in()), (Transport::Quic, AGAIN_IN));
    }
}
