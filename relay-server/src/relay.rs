//! The decision: what happens to a delivery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hookway_protocol::head::Failure;
use hookway_protocol::link::StreamError;
use hookway_protocol::message::Rule;

use crate::delivery::{Body, Delivery, Reply, Undelivered, Unqueued};
use crate::queue::{Queue, Waiting};
use crate::tunnel::{Endpoint, SILENT_FOR};

/// How often a delivery is put to a session before the sender is told that nobody is there.
const MAX_ATTEMPTS: u32 = 3;

/// Gets a delivery to the clients of its endpoint, and the reply of one of them back; or into the queue, for later.
/// Where each client gets a copy, the others have theirs on disk before there is a reply.
pub(crate) async fn deliver(
    queue: &Arc<Queue>,
    endpoint: &Arc<Endpoint>,
    mut delivery: Delivery,
) -> Result<Reply, Undelivered> {
    endpoint.expected().await;
    let may_wait = Queue::may_wait(&delivery);
    let mut others = if may_wait { queue.listeners(&endpoint.waiting) } else { vec![] };
    let answering = endpoint.answering().or_else(|| others.first().cloned());
    let waiting = answering.unwrap_or_else(|| endpoint.waiting.clone());
    let path = delivery.head.target.path();
    others.retain(|other| {
        if Arc::ptr_eq(other, &waiting) {
            return false;
        }
        let is_refused = other.rule(path).refuse_offline && !other.is_attached();
        if is_refused {
            other.miss(&Undelivered::Away);
        }
        !is_refused
    });
    let copies = match queue.copy(others.clone(), &mut delivery).await {
        Ok(copies) => copies,
        Err(error) => {
            let error = Undelivered::from(error);
            if let Some(why) = error.missed() {
                others.iter().chain([&waiting]).for_each(|one| one.miss(why));
            }
            return Err(error);
        }
    };
    let outcome = answer(queue, endpoint, &waiting, may_wait, delivery).await;
    let is_copied = copies.kept().await;
    let missed = outcome.as_ref().err().filter(|_| may_wait).and_then(Undelivered::missed);
    if let Some(why) = missed {
        waiting.miss(why);
    }
    let is_away = matches!(outcome, Ok(Reply::Failed(Failure::Refused | Failure::Busy, _)));
    // The others have it: sent again, it would come to them twice.
    if is_copied && (missed.is_some() || is_away) { Ok(Reply::Queued) } else { outcome }
}

/// What the sender is told, by those that `waiting` is for.
async fn answer(
    queue: &Arc<Queue>,
    endpoint: &Arc<Endpoint>,
    waiting: &Arc<Waiting>,
    may_wait: bool,
    mut delivery: Delivery,
) -> Result<Reply, Undelivered> {
    let rule = waiting.rule(delivery.head.target.path());
    if may_wait && rule.ack_early {
        return Ok(queue.push(waiting, &mut delivery).await.map(|()| Reply::Queued)?);
    }
    delivery.keep = (may_wait && !rule.refuse_offline).then_some(queue.config().max_body);
    let patience = if delivery.keep.is_some() { SILENT_FOR } else { Duration::MAX };
    let outcome = live(endpoint, waiting, &mut delivery, patience).await;
    if !may_wait || !is_for_later(&outcome, &rule) {
        return outcome;
    }
    if matches!(outcome, Ok(Reply::App(..))) {
        (delivery.head.attempt, delivery.head.possible_duplicate) = (delivery.head.attempt + 1, true);
    }
    match queue.push(waiting, &mut delivery).await {
        Ok(()) => Ok(Reply::Queued),
        // What has passed by cannot be sent again.
        Err(Unqueued::Passed) => outcome,
        Err(error) => Err(error.into()),
    }
}

/// Over a live session. When it is lost before it answered, a whole delivery goes to the session that has taken the
/// endpoint over, marked as a possible duplicate; one that streamed cannot be sent again. What was never sent goes
/// there as it is, and to the next of those that take turns when an app is away. One link after the other may be found
/// dead: no more is tried when that has taken so long.
async fn live(
    endpoint: &Arc<Endpoint>,
    waiting: &Arc<Waiting>,
    delivery: &mut Delivery,
    patience: Duration,
) -> Result<Reply, Undelivered> {
    let mut outcome = Err(Undelivered::Away);
    let (began, mut tried) = (Instant::now(), Vec::new());
    for _ in 0..MAX_ATTEMPTS {
        let Some(session) = endpoint.session(waiting, &tried) else { break };
        outcome = session.forward(delivery).await;
        match &outcome {
            Err(Undelivered::Unsent(_)) => {}
            Err(Undelivered::Lost(StreamError::Lost(_)) | Undelivered::Silent) => {
                (delivery.head.attempt, delivery.head.possible_duplicate) = (delivery.head.attempt + 1, true);
                // A silent link may come back to life: it keeps its endpoint.
                if matches!(outcome, Err(Undelivered::Silent)) || !matches!(delivery.body, Body::Whole(..)) {
                    break;
                }
            }
            Ok(Reply::Failed(Failure::Refused | Failure::Busy, _)) => {
                delivery.head.attempt += 1;
                if matches!(delivery.body, Body::Whole(..)) {
                    session.app_was_away();
                    tried.push(session);
                    // It has waited for its app meanwhile.
                    if began.elapsed() < patience.saturating_mul(2) {
                        continue;
                    }
                }
                break;
            }
            Ok(Reply::App(status, ..)) if status.is_server_error() => break,
            Ok(_) => {
                waiting.app_is_there(delivery.head.target.path());
                break;
            }
            _ => break,
        }
        endpoint.left(&session);
        if began.elapsed() >= patience {
            break;
        }
        tracing::debug!(delivery = %delivery.head.id, "trying the delivery over the next session");
    }
    outcome
}

/// Whether the sender is told that it is taken, and the app gets it later.
fn is_for_later(outcome: &Result<Reply, Undelivered>, rule: &Rule) -> bool {
    match outcome {
        Ok(Reply::App(status, ..)) => rule.retry_5xx && status.is_server_error(),
        Ok(Reply::Failed(Failure::Refused | Failure::Busy, _)) => !rule.refuse_offline,
        Err(
            Undelivered::Away | Undelivered::Unsent(_) | Undelivered::Silent | Undelivered::Lost(StreamError::Lost(_)),
        ) => !rule.refuse_offline,
        _ => false,
    }
}
