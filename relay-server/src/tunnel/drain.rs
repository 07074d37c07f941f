//! Hands over what waits for an endpoint or a listener, as long as a session serves it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hookway_protocol::head::Failure;
use hookway_protocol::link::StreamError;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::registry::Endpoint;
use super::session::Session;
use crate::delivery::{Reply, ReplyBody, Undelivered};
use crate::queue::{Handed, Outcome, Queue, Waiting};
use crate::shutdown::Shutdown;

/// At once over one session, whatever the client asks for.
const MOST_AT_ONCE: usize = 256;
/// The app's answer to a delivery from the queue is read to its end, for so long: nobody waits for it.
const READ_FOR: Duration = Duration::from_secs(60);

/// A session whose app is away lets the others that take turns go first, for so long, doubling up to [`LAST_PAUSE`].
const OTHERS_FIRST: Duration = Duration::from_secs(2);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Hands over what waits, one after the other or as many at once as the client takes, until the session does not serve
/// the endpoint any more, or the relay stops: then what was begun is finished.
pub(super) async fn drain(
    queue: &Arc<Queue>,
    endpoint: &Endpoint,
    waiting: &Arc<Waiting>,
    session: &Arc<Session>,
    over: &CancellationToken,
    shutdown: &Shutdown,
) {
    waiting.wake();
    let mut out = FuturesUnordered::new();
    let stopped = async {
        tokio::select! {
            () = over.cancelled() => {}
            () = shutdown.stop_accepting.cancelled() => {}
        }
    };
    let mut stopped = std::pin::pin!(stopped);
    // Kept over the turns: begun anew, it would read the same delivery again.
    let mut next = std::pin::pin!(queue.next(waiting));
    let (mut others_first, mut pause) = (None, OTHERS_FIRST);
    loop {
        let is_turn = async {
            if let Some(until) = others_first {
                tokio::time::sleep_until(until).await;
            }
        };
        tokio::select! {
            () = &mut stopped => break,
            handed = async { is_turn.await; (&mut next).await }, if out.len() < MOST_AT_ONCE => {
                next.set(queue.next(waiting));
                // A relay that stops waits for it.
                let token = shutdown.work.token();
                out.push(async move {
                    let _token = token;
                    hand_over(session, handed).await
                });
            }
            Some(away) = out.next() => match away.filter(|_| endpoint.is_shared(waiting)) {
                None => (others_first, pause) = (None, OTHERS_FIRST),
                Some(path) => {
                    others_first = Some(Instant::now() + pause);
                    pause = (pause * 2).min(LAST_PAUSE);
                    // What it may have taken meanwhile goes back.
                    next.set(queue.next(waiting));
                    // Its own app is away, which says nothing of theirs.
                    waiting.app_is_there(&path);
                }
            }
        }
    }
    next.set(queue.next(waiting));
    while out.next().await.is_some() {}
}

/// Gives the path back if the app behind it was away.
async fn hand_over(session: &Arc<Session>, mut handed: Handed) -> Option<String> {
    handed.begin();
    let outcome = match session.forward(&mut handed.delivery).await {
        Ok(Reply::App(status, headers, body)) => {
            // Whoever is cut off before the end may do the same work again.
            let _ = tokio::time::timeout(READ_FOR, read_out(body)).await;
            let is_own = headers.get(&hookway_protocol::headers::ANSWERED_BY).is_some();
            match status.as_u16() {
                200..300 => Outcome::Done,
                status @ 400..500 if is_own => Outcome::Hopeless(format!("the client refused it: {status}")),
                status => Outcome::Failed(format!("the app answered {status}")),
            }
        }
        Ok(Reply::Failed(Failure::Refused | Failure::Busy, message)) => Outcome::AppAway(message),
        Ok(Reply::Failed(Failure::TooLarge | Failure::BadRequest, message)) => Outcome::Hopeless(message),
        Ok(Reply::Failed(Failure::Timeout | Failure::BadAnswer, message)) => Outcome::Failed(message),
        Ok(Reply::Switched(..) | Reply::Queued) => Outcome::Failed("the app changed the protocol".into()),
        Err(Undelivered::Away | Undelivered::Unsent(_)) => Outcome::Unsent,
        // What the client cannot take it will not take at once again.
        Err(Undelivered::Lost(error @ (StreamError::Aborted | StreamError::Protocol(_)))) => {
            Outcome::Failed(error.to_string())
        }
        Err(error @ Undelivered::TimedOut) => Outcome::Failed(error.to_string()),
        Err(error) => Outcome::Lost(error.to_string()),
    };
    let away = matches!(outcome, Outcome::AppAway(_)).then(|| handed.delivery.head.target.path().to_owned());
    handed.settle(outcome);
    away
}

async fn read_out(mut body: ReplyBody) {
    while let Some(Ok(_)) = body.frame().await {}
}
