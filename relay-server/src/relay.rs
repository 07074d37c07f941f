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
/// that has taken the endpoint over, marked as a possible duplicate; one that streamed cannot be sent again.
pub(crate) async fn deliver(endpoint: &Arc<Endpoint>, mut delivery: Delivery) -> Result<Reply, Undelivered> {
    let mut lost = None;
    loop {
        let session = endpoint.session().ok_or_else(|| lost.take().unwrap_or(Undelivered::Away))?;
        match session.forward(&mut delivery).await {
            Err(Undelivered::Lost(error @ StreamError::Lost(_))) if again(&delivery) => {
                tracing::debug!(delivery = %delivery.head.id, %error, "trying the delivery over the next session");
                endpoint.left(&session);
                lost = Some(Undelivered::Lost(error));
                delivery.head.attempt += 1;
                delivery.head.possible_duplicate = true;
            }
            outcome => return outcome,
        }
    }
}

fn again(delivery: &Delivery) -> bool {
    matches!(delivery.body, Body::Whole(..)) && delivery.head.upgrade.is_none() && delivery.head.attempt < MAX_ATTEMPTS
}
