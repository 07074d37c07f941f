//! Which CA is asked, and how it is shown that names are ours.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Which CA, and how names are shown to be ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CA's directory, an `https://` URL.
    pub directory: String,
    /// Whom the CA writes to.
    pub email: Option<String>,
    /// A root to trust for the CA's own HTTPS, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The account that the CA knows already.
    pub binding: Option<Binding>,
    /// How names are shown to be ours.
    pub proof: Proof,
    /// Whether the CA could look at port 80, too.
    pub http: bool,
}

/// An account at the CA that the ACME account is bound to (RFC 8555 §7.3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct Binding {
    /// Its key's id.
    pub kid: String,
    /// Its MAC key.
    pub key: Vec<u8>,
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// How names are shown to be ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By TXT records that the relay serves here: one certificate for the domain and all names below it.
    Own(SocketAddr),
    /// By TXT records in the zone of another name server (RFC 2136).
    Update {
        /// Host and port.
        server: String,
        /// A key file of BIND's form.
        key_file: PathBuf,
        /// How long its secondaries may take.
        wait: Duration,
    },
    /// By TXT records that a command makes.
    Hook {
        /// The command: it is given `set` or `unset`, the record's name and its value.
        command: PathBuf,
        /// How long name servers may take.
        wait: Duration,
    },
    /// By plain HTTP: a certificate a name, when a handshake asks for it.
    Http,
    /// By TLS: the same.
    TlsAlpn,
}
