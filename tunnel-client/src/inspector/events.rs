//! Changes as they happen: server-sent events whose ids are the history's versions, so that a gap can be filled.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use serde_json::json;

use super::Context;
use super::status;
use crate::filter::Filter;
use crate::history::{FileError, Total};
use crate::mask::Secrets;
use crate::view;

/// What other programs write into the history is looked for this often, and whether the status is another.
const LOOK: Duration = Duration::from_secs(1);
/// Events are gathered for so long: a page draws no faster.
const GATHER: Duration = Duration::from_millis(50);
/// Changes sent at once.
const BATCH: usize = 500;
/// After a gap of so many changes a page rather loads its list again.
const MAX_GAP: u64 = 2000;
/// A page that has lost the stream comes back after so long.
const AGAIN_IN: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(10);

struct Follower {
    context: Arc<Context>,
    filter: Filter,
    /// The last version that was sent; `None` for where the history is now.
    version: Option<u64>,
    generation: Option<u64>,
    status: String,
    waiting: std::collections::VecDeque<Event>,
}

/// A stream of events after this version, or from now on.
pub(super) fn follow(
    context: Arc<Context>,
    filter: Filter,
    after: Option<u64>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let waiting = std::collections::VecDeque::new();
    let follower = Follower { context, filter, version: after, generation: None, status: String::new(), waiting };
    let events = futures_util::stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await;
        Some((Ok(event), follower))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

impl Follower {
    async fn next(&mut self) -> Event {
        let mut state = self.context.history().map(|history| history.state());
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "the history cannot be followed");
            }
            if !self.waiting.is_empty() {
                continue;
            }
            let changed = async {
                let Some(state) = &mut state else { return std::future::pending().await };
                match state.changed().await {
                    Ok(()) => tokio::time::sleep(GATHER).await,
                    Err(_) => std::future::pending().await,
                }
            };
            let _ = tokio::time::timeout(LOOK, changed).await;
        }
    }

    /// Collects what is new.
    async fn look(&mut self) -> Result<(), FileError> {
        let total = self.total().await;
        if self.generation.is_none() {
            self.version = self.version.or(Some(total.version));
            self.generation = Some(total.generation);
            let hello = json!({"version": total.version, "generation": total.generation});
            self.waiting.push_back(Event::default().event("hello").retry(AGAIN_IN).data(hello.to_string()));
        }
        let status = status::status(&self.context).to_string();
        if status != self.status {
            self.waiting.push_back(Event::default().event("status").data(&status));
            self.status = status;
        }
        let sent = self.version.unwrap_or(0);
        if self.generation != Some(total.generation)
            || total.version.saturating_sub(sent) > MAX_GAP
            || sent > total.version
        {
            self.generation = Some(total.generation);
            self.version = Some(total.version);
            self.waiting.push_back(Event::default().event("reset").data("{}"));
            return Ok(());
        }
        let Some(history) = self.context.history().filter(|_| total.version > sent) else { return Ok(()) };
        let bodies = self.filter.needs_bodies();
        for exchange in history.read(move |reader| reader.changes(sent, BATCH, bodies)).await? {
            let matches = self.filter.matches(&exchange);
            let data = json!({"exchange": view::summary(&exchange, Secrets::Masked), "matches": matches});
            let event = Event::default().event("exchange").id(exchange.version.to_string()).data(data.to_string());
            self.waiting.push_back(event);
            self.version = Some(exchange.version);
        }
        // Changes of what is gone by now leave nothing to send.
        if self.waiting.is_empty() {
            self.version = Some(total.version);
        }
        Ok(())
    }

    async fn total(&self) -> Total {
        match self.context.history() {
            Some(history) => history.look().await.unwrap_or_default(),
            None => Total::default(),
        }
    }
}
