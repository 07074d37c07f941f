//! The decision: what happens to a delivery.

use std::sync::Arc;

use hookway_protocol::head::Failure;
use hookway_protocol::link::StreamError;
use hookway_protocol::message::Rule;

use crate::delivery::{Body, Delivery, Reply, Undelivered, Unqueued};
use crate::queue::Queue;
use crate::tunnel::Endpoint;

/// How often a delivery is put to a session before the sender is told that nobody is there.
const MAX_ATTEMPTS: u32 = 3;

/// Gets a delivery to the client that serves its endpoint, and the reply back; or into the queue, for later.
pub(crate) async fn deliver(
    queue: &Arc<Queue>,
    endpoint: &Arc<Endpoint>,
    mut delivery: Delivery,
) -> Result<Reply, Undelivered> {
    let rule = endpoint.waiting.rule(delivery.head.target.path());
    let may_wait = Queue::may_wait(&delivery);
    if may_wait && rule.ack_early {
        return Ok(queue.push(&endpoint.waiting, &mut delivery).await.map(|()| Reply::Queued)?);
    }
    delivery.keep = (may_wait && !rule.refuse_offline).then_some(queue.config.max_body);
    let outcome = live(endpoint, &mut delivery).await;
    if !may_wait || !is_for_later(&outcome, &rule) {
        return outcome;
    }
    if matches!(outcome, Ok(Reply::App(..))) {
        (delivery.head.attempt, delivery.head.possible_duplicate) = (delivery.head.attempt + 1, true);
    }
    match queue.push(&endpoint.waiting, &mut delivery).await {
        Ok(()) => Ok(Reply::Queued),
        // What has passed by cannot be sent again.
        Err(Unqueued::Passed) => outcome,
        Err(error) => Err(error.into()),
    }
}

/// Over a live session. When it is lost before it answered, a whole delivery goes to the session that has taken the
/// endpoint over, marked as a possible duplicate; one that streamed cannot be sent again. What was never sent goes
/// there as it is.
async fn live(endpoint: &Arc<Endpoint>, delivery: &mut Delivery) -> Result<Reply, Undelivered> {
    let mut outcome = Err(Undelivered::Away);
    for _ in 0..MAX_ATTEMPTS {
        let Some(session) = endpoint.session() else { break };
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
                break;
            }
            Ok(Reply::App(status, ..)) if status.is_server_error() => break,
            Ok(_) => {
                endpoint.waiting.app_is_there(delivery.head.target.path());
                break;
            }
            _ => break,
        }
        tracing::debug!(delivery = %delivery.head.id, "trying the delivery over the next session");
        endpoint.left(&session);
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
