//! Stopping in order: every task belongs to a tracker, and each stage is a token that the tasks of it watch.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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
}

impl Shutdown {
    /// Stops in order, and says whether all work was finished within `grace`.
    pub(crate) async fn run(&self, grace: Duration) -> bool {
        self.stop_accepting.cancel();
        self.work.close();
        let finished = tokio::time::timeout(grace, self.work.wait()).await.is_ok();
        self.close.cancel();
        self.rest.close();
        // Closing takes no peer's consent, so this bound is never met by a healthy program.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.rest.wait()).await;
        finished
    }
}
