//! Clients: how they connect, what they serve, and how deliveries reach them.

mod domains;
mod drain;
mod endpoint;
mod handshake;
mod letters;
mod names;
mod registry;
mod reply;
mod session;

use std::net::SocketAddr;
use std::time::Duration;

pub(crate) use endpoint::{Listener, Parts, Tunnel};
pub(crate) use handshake::Urls;
pub(crate) use registry::{Endpoint, Registry};
pub(crate) use reply::{ReplyStream, SessionId};
pub(crate) use session::SILENT_FOR;

/// How clients are taken.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A client must have said hello, and have taken its welcome, within this time.
    pub handshake_timeout: Duration,
    /// Clients that have not said hello yet, all together; half of it makes address validation a must.
    pub max_handshakes: usize,
    /// The same, of one address that has proven to be real; of others, a few.
    pub max_handshakes_per_ip: usize,
    /// Endpoints that one session may serve.
    pub max_endpoints: usize,
    /// Sessions of one token's name.
    pub max_sessions: usize,
    /// Endpoint names that one token's name may have.
    pub max_names: usize,
    /// A client must have taken a delivery, and its reply have begun, within this time. Clients have their own,
    /// shorter limit for the app.
    pub reply_timeout: Duration,
    /// The name server that developers' own host names are looked up at, instead of this machine's.
    pub resolver: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 512,
            max_handshakes_per_ip: 32,
            max_endpoints: 64,
            max_sessions: 100,
            max_names: 1000,
            reply_timeout: Duration::from_secs(600),
            resolver: None,
        }
    }
}
