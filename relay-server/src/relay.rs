//! The decision: what happens to a delivery.

use std::sync::Arc;

use hookway_protocol::link::StreamError;

use crate::delivery::{Body, Delivery, Reply, Undelivered};
use crate::tunnel::Endpoint;

/// How often a delivery is put to a session before the sender is told that nobody is there.
const MAX_ATTEMPTS: u32 = 3;

/// Gets a delivery to the client that serves its endpoint, and the reply back.
///
/// A live session forwards it. When the session is lost before it answered, a whole delivery goes to the session
/// that has taken the endpoint over, marked as a possible duplicate; one that streamed cannot be sent again. What
/// was never sent goes there as it is.
pub(crate) async fn deliver(endpoint: &Arc<Endpoint>, mut delivery: Delivery) -> Result<Reply, Undelivered> {
    let mut outcome = Err(Undelivered::Away);
    for _ in 0..MAX_ATTEMPTS {
        let Some(session) = endpoint.session() else { break };
        outcome = session.forward(&mut delivery).await;
        match &outcome {
            Err(Undelivered::Unsent(_)) => {}
            Err(Undelivered::Lost(StreamError::Lost(_))) if matches!(delivery.body, Body::Whole(..)) => {
                delivery.head.attempt += 1;
                delivery.head.possible_duplicate = true;
            }
            _ => break,
        }
        tracing::debug!(delivery = %delivery.head.id, "trying the delivery over the next session");
        endpoint.left(&session);
    }
    outcome
}
