//! What a client is told of deliveries that it has not seen: dead letters, and what could not be kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hookway_protocol::host::EndpointName;
use hookway_protocol::id::DeliveryId;
use hookway_protocol::message::{AskDeadLetters, Backlog, DeadLetter, DeadLetters, Welcome};
use jiff::Timestamp;

use super::registry::Claim;
use crate::queue::{self, Queue, Waiting};
use crate::store::{Missed, QueuedRow, StoreError};

/// The newest are told, so many: with paths and reasons of the longest they fit into a message.
const MOST: usize = 100;

/// What one client has been told so far.
#[derive(Debug)]
pub(super) struct News {
    queue: Arc<Queue>,
    /// The number of dead letters that it was told last, by endpoint.
    dead_letters: HashMap<EndpointName, u64>,
    /// What it is being told, by endpoint.
    telling: HashMap<EndpointName, Telling>,
}

/// What was missed, and is being told to a client until it says that it has told a person. Dropped before that, it is
/// told to the next.
#[derive(Debug, Default)]
struct Telling(Vec<(Arc<Waiting>, Missed)>);

impl Drop for Telling {
    fn drop(&mut self) {
        for (waiting, missed) in self.0.drain(..) {
            waiting.not_told(missed);
        }
    }
}

impl News {
    /// It was welcomed with the numbers of dead letters.
    pub(super) fn new(queue: Arc<Queue>, welcome: &Welcome) -> Self {
        let told = welcome.endpoints.iter().filter_map(|told| Some((told.name.parse().ok()?, told.dead_letters)));
        Self { queue, dead_letters: told.collect(), telling: HashMap::new() }
    }

    /// What is new of an endpoint, if anything is.
    pub(super) fn of(&mut self, claim: &Claim) -> Option<Backlog> {
        let name = &claim.endpoint.name;
        let mut told = Telling::default();
        if !self.telling.contains_key(name) {
            told.0.extend(claim.waitings.iter().filter_map(|waiting| Some((waiting.clone(), waiting.take_missed()?))));
        }
        let dead_letters = self.queue.count_dead(&claim.endpoint.waiting);
        let is_same = self.dead_letters.insert(name.clone(), dead_letters) == Some(dead_letters);
        if is_same && told.0.is_empty() {
            return None;
        }
        let missed = || told.0.iter().map(|(_, missed)| missed);
        let backlog = Backlog {
            endpoint: name.to_string(),
            dead_letters,
            missed: missed().map(|missed| missed.count).sum(),
            missed_since_us: missed().filter_map(|missed| missed.since).min().map_or(0, micros),
            missed_why: missed().next().map(|missed| missed.why.clone()).unwrap_or_default(),
        };
        if !told.0.is_empty() {
            self.telling.insert(name.clone(), told);
        }
        Some(backlog)
    }

    /// The client has told it.
    pub(super) fn seen(&mut self, endpoint: &str) {
        if let Some(mut told) = self.telling.remove(endpoint) {
            told.0.clear();
        }
    }
}

/// Answers a client that asks for the dead letters of one of its endpoints, and has some of them wait again.
pub(super) async fn dead_letters(queue: &Arc<Queue>, claims: &[Claim], asked: AskDeadLetters) -> DeadLetters {
    let AskDeadLetters { number, endpoint, retry, retry_all } = asked;
    let answer = DeadLetters { number, endpoint, ..DeadLetters::default() };
    let Some(claim) = claims.iter().find(|claim| claim.endpoint.name.as_str() == answer.endpoint) else {
        return DeadLetters { problem: "this session does not serve that endpoint".into(), ..answer };
    };
    let ids: HashSet<DeliveryId> =
        retry.iter().filter_map(|id| Some(DeliveryId::from_bytes(id[..].try_into().ok()?))).collect();
    let told = async {
        let retried = match (retry_all, ids.is_empty()) {
            (true, _) => queue.retry(&claim.endpoint.waiting, None).await?,
            (false, false) => queue.retry(&claim.endpoint.waiting, Some(&ids)).await?,
            (false, true) => 0,
        };
        let (rows, total) = queue.dead_letters(&claim.endpoint.waiting, MOST).await?;
        Ok::<_, StoreError>((retried, rows, total))
    };
    match told.await {
        Ok((retried, rows, total)) => {
            DeadLetters { total, retried, letters: rows.into_iter().map(letter).collect(), ..answer }
        }
        Err(error) => {
            tracing::error!(%error, "dead letters cannot be told");
            DeadLetters { problem: "the relay cannot read its store just now".into(), ..answer }
        }
    }
}

fn letter(row: QueuedRow) -> DeadLetter {
    let QueuedRow { delivery, last, dead_since, .. } = row;
    DeadLetter {
        id: delivery.id.as_bytes().to_vec(),
        received_at_us: micros(delivery.received_at),
        dead_since_us: dead_since.map_or(0, micros),
        method: delivery.method,
        path: delivery.path,
        attempts: delivery.attempts,
        last: queue::short(&last),
        bytes: delivery.bytes,
        listener: delivery.listener,
    }
}

/// Microseconds since 1970 UTC.
fn micros(at: Timestamp) -> u64 {
    u64::try_from(at.as_microsecond()).unwrap_or_default()
}
