//! A relay with an empty store, and an endpoint whose client comes and goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use http::StatusCode;
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::figures::resident;
use crate::load::{self, Load};
use crate::process::Running;
use crate::setup::{HOST, Relay, Setup, Target};

/// Plain HTTP beside HTTPS, and no limit on what waits but the disk.
const FLAGS: [&str; 11] = [
    "--http",
    "127.0.0.1:0",
    "--http-serve",
    "--queue-max-count",
    "100000000",
    "--queue-token-max-count",
    "100000000",
    "--queue-max-bytes",
    "1024GiB",
    "--queue-token-max-bytes",
    "1024GiB",
];
/// After a client has ended, what is sent is queued within this time, or something is wrong.
const GONE: Duration = Duration::from_secs(10);

/// A relay of its own, in a folder of its own.
#[derive(Debug)]
pub(super) struct World<'a> {
    setup: &'a Setup,
    relay: Relay,
    _folder: TempDir,
}

impl<'a> World<'a> {
    pub(super) fn start(setup: &'a Setup) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(setup.folder())?;
        let relay = setup.relay(folder.path(), &FLAGS)?;
        Ok(Self { setup, relay, _folder: folder })
    }

    /// The endpoint's client.
    pub(super) fn client(&self, app: &Target, more: &[&str]) -> anyhow::Result<Running> {
        let (name, _) = HOST.split_once('.').context("a name in a domain")?;
        self.setup.client(&self.relay, name, app, more)
    }

    /// Ends the client. When this returns, what is sent is answered so, and one was the first.
    pub(super) async fn leave(&self, client: Running, status: StatusCode) -> anyhow::Result<()> {
        client.stop()?;
        let target = self.over_http()?;
        let one = Load { count: 1, ..Load::new(1024, status, GONE) };
        let deadline = Instant::now() + GONE;
        loop {
            match load::run_connected(&target, 1, &one).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("the client is away, and that is not noticed"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub(super) fn over_tls(&self) -> Target {
        self.target("hookway, TLS", self.relay.https, Some(self.setup.tls.clone()))
    }

    pub(super) fn over_http(&self) -> anyhow::Result<Target> {
        let address = self.relay.http.context("the relay serves no plain HTTP")?;
        Ok(self.target("hookway, plain HTTP", address, None))
    }

    fn target(&self, name: &'static str, address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Target {
        Target { name, host: HOST, address, tls, pids: vec![self.relay.process.id()] }
    }

    /// The relay's resident memory, in KiB.
    pub(super) fn memory(&self) -> anyhow::Result<u64> {
        resident(self.relay.process.id())
    }
}
