//! Replies on their way to senders, and an end to those that their senders do not take.
//!
//! What a sender does not take stays in the link's window, which all deliveries of a session share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use hookway_protocol::frame::Frame;
use hookway_protocol::head;
use hookway_protocol::link::{LINK_WINDOW, Receiver, STREAM_WINDOW, Sender, Stream, StreamError};
use tokio_util::sync::CancellationToken;

use super::session::Session;
use crate::delivery::ReplyBody;
use crate::limits::Pass;

/// So many replies may wait for their senders with three quarters of the link's window. The next ones cost the
/// oldest theirs, once it has waited for [`PATIENCE`].
const MAX_WAITING: usize = (LINK_WINDOW / STREAM_WINDOW * 3 / 4) as usize;
const PATIENCE: Duration = Duration::from_secs(1);

/// The rest of a reply, read from its stream as the sender takes it.
#[derive(Debug)]
pub(crate) struct ReplyStream {
    flow: Arc<Flow>,
    session: Arc<Session>,
    done: bool,
    /// Why it broke off, to be told at the next turn.
    error: Option<StreamError>,
}

/// What a reply holds while it flows: nothing when it is done, or was cut.
#[derive(Debug)]
struct Flow(Mutex<Option<Flowing>>);

#[derive(Debug)]
struct Flowing {
    receiver: Receiver,
    /// The other half, when it has ended cleanly: the stream can be used again.
    sender: Option<Sender>,
    _pass: Option<Pass>,
    /// What was read ahead.
    ready: VecDeque<Frame>,
    /// Since when it has been the sender's turn; `None` while it is the client's.
    handed: Option<Instant>,
    /// Ends the sender's connection.
    hang_up: CancellationToken,
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, Option<Flowing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a reply whose head was read, without waiting: whole, if all of it came with the head.
///
/// # Errors
/// It broke off already. Nothing was passed on yet, so the sender can be told.
pub(super) fn body(
    session: &Arc<Session>,
    mut receiver: Receiver,
    sender: Option<Sender>,
    pass: Option<Pass>,
    hang_up: &CancellationToken,
) -> Result<ReplyBody, StreamError> {
    let mut first = None;
    loop {
        match receiver.frame().now_or_never() {
            Some(Ok(Some(Frame::End))) => {
                keep(session, receiver, sender);
                return Ok(ReplyBody::Whole(first));
            }
            Some(Ok(Some(Frame::Data(data)))) if first.is_none() => first = Some(data),
            read => {
                let read = read.transpose()?.map(|frame| frame.ok_or(StreamError::Aborted)).transpose()?;
                let ready = first.map(Frame::Data).into_iter().chain(read).collect();
                let (handed, hang_up) = (Some(Instant::now()), hang_up.clone());
                let flowing = Flowing { receiver, sender, _pass: pass, ready, handed, hang_up };
                let flow = Arc::new(Flow(Mutex::new(Some(flowing))));
                session.replies.add(&flow);
                let stream = ReplyStream { flow, session: session.clone(), done: false, error: None };
                return Ok(ReplyBody::Stream(Box::new(stream)));
            }
        }
    }
}

fn keep(session: &Session, receiver: Receiver, sender: Option<Sender>) {
    if let Some(sender) = sender {
        session.keep(Stream { sender, receiver });
    }
}

impl ReplyStream {
    pub(crate) const fn is_done(&self) -> bool {
        self.done
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, StreamError>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match ready!(self.poll_next(cx)) {
            Some(Err(error)) => {
                // An error ends the connection at once; what was passed on before it is written first.
                self.error = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            next => Poll::Ready(next),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, StreamError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let mut flow = self.flow.lock();
        let Some(flowing) = &mut *flow else { return Poll::Ready(Some(Err(StreamError::Aborted))) };
        flowing.handed = None;
        let frame = match flowing.ready.pop_front() {
            Some(frame) => Ok(Some(frame)),
            None => ready!(flowing.receiver.poll_frame(cx)),
        };
        flowing.handed = Some(Instant::now());
        Poll::Ready(match frame {
            Ok(Some(Frame::Data(data))) => {
                self.session.reply_bytes.inc_by(data.len() as u64);
                Some(Ok(http_body::Frame::data(data)))
            }
            Ok(Some(Frame::Trailers(bytes))) => Some(
                head::decode_trailers(&bytes)
                    .map(|trailers| http_body::Frame::trailers(trailers.into_map()))
                    .map_err(StreamError::from),
            ),
            Ok(Some(Frame::End)) => {
                // The exchange is over: others may have the stream and the place.
                self.done = true;
                if let Some(Flowing { receiver, sender, .. }) = flow.take() {
                    keep(&self.session, receiver, sender);
                }
                None
            }
            // The decoder lets no head through here, and a stream must not stop without END.
            Ok(Some(Frame::Head(_)) | None) => Some(Err(StreamError::Aborted)),
            Err(error) => Some(Err(error)),
        })
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        self.session.replies.remove(&self.flow);
        // Gives the stream and the place back now: a look through all may hold the flow a little longer.
        self.flow.lock().take();
    }
}

/// The replies of one session that flow.
#[derive(Debug, Default)]
pub(super) struct Replies(Mutex<Vec<Arc<Flow>>>);

impl Replies {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Flow>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, flow: &Arc<Flow>) {
        self.lock().push(flow.clone());
    }

    fn remove(&self, flow: &Arc<Flow>) {
        let mut flows = self.lock();
        if let Some(at) = flows.iter().position(|other| Arc::ptr_eq(other, flow)) {
            flows.swap_remove(at);
        }
    }

    /// Cuts the replies that their senders have not gone on taking for `timeout`, and the oldest of too many, and
    /// ends those connections: nothing else would tell a sender that gives a stream no window. Says how many.
    pub(super) fn cut(&self, timeout: Duration) -> usize {
        let mut waiting: Vec<(Instant, Arc<Flow>)> = {
            let flows = self.lock();
            flows.iter().filter_map(|flow| Some((flow.lock().as_ref()?.handed?, flow.clone()))).collect()
        };
        waiting.sort_by_key(|(since, _)| *since);
        let surplus = waiting.len().saturating_sub(MAX_WAITING);
        let late = waiting.iter().enumerate().take_while(|(at, (since, _))| {
            since.elapsed() >= if *at < surplus { PATIENCE.min(timeout) } else { timeout }
        });
        let mut count = 0;
        for (_, (_, flow)) in late {
            if let Some(flowing) = flow.lock().take() {
                flowing.hang_up.cancel();
                count += 1;
            }
        }
        count
    }
}
