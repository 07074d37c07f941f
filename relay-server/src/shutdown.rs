//! Stopping in order: every task belongs to a tracker, and each stage is a token that the tasks of it watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Clients are served by both processes for so long when another has taken over.
const MOVED_IN: Duration = Duration::from_secs(3);

/// The stages of stopping, shared by everything that runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    /// Take nothing new: listeners close, clients are told to go away.
    pub(crate) stop_accepting: CancellationToken,
    /// The grace period is over, or nothing is in flight any more: links close.
    pub(crate) close: CancellationToken,
    /// Connections of senders and deliveries: finished before links close.
    pub(crate) work: TaskTracker,
    /// Everything else: listeners, sessions, upkeep.
    pub(crate) rest: TaskTracker,
    draining: Arc<AtomicBool>,
    has_successor: Arc<AtomicBool>,
}

impl Shutdown {
    /// Whether another process has taken over.
    pub(crate) fn has_successor(&self) -> bool {
        self.has_successor.load(Ordering::Relaxed)
    }

    /// Another process has taken over: clients are told.
    pub(crate) fn succeeded(&self) {
        self.has_successor.store(true, Ordering::Relaxed);
    }

    /// Whether senders are asked to go elsewhere, though those that come are served.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Asks senders to go elsewhere, or no more: a load balancer looks at `/ready`.
    pub(crate) fn drain(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Stops in order, and says whether all work was finished within `grace`.
    pub(crate) async fn run(&self, grace: Duration) -> bool {
        self.stop_accepting.cancel();
        self.work.close();
        let finished = async {
            if self.has_successor() {
                // Clients go over to it meanwhile.
                tokio::time::sleep(MOVED_IN.min(grace / 2)).await;
            }
            self.work.wait().await;
        };
        let finished = tokio::time::timeout(grace, finished).await.is_ok();
        self.close.cancel();
        self.rest.close();
        // Closing takes no peer's consent, so this bound is never met by a healthy program.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.rest.wait()).await;
        finished
    }
}
