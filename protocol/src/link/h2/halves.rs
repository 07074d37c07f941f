//! The two halves of a stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

use super::{ONE_FRAME, State};
use crate::link::{Stream, StreamError};

/// A stream that was opened here.
pub(super) fn opened(send: SendStream<Bytes>, response: ResponseFuture, state: &Arc<State>) -> Stream {
    stream(send, Receiving::Awaited(response), state)
}

/// A stream that the other side opened.
pub(super) fn accepted(send: SendStream<Bytes>, recv: RecvStream, state: &Arc<State>) -> Stream {
    stream(send, Receiving::Body(recv), state)
}

fn stream(send: SendStream<Bytes>, recv: Receiving, state: &Arc<State>) -> Stream {
    let sender = Sender { send, finished: false, state: state.clone() };
    (sender, Receiver { recv, state: state.clone() }).into()
}

/// The sending half of a stream.
#[derive(Debug)]
pub(in crate::link) struct Sender {
    send: SendStream<Bytes>,
    finished: bool,
    state: Arc<State>,
}

impl Sender {
    /// Sends all pieces, waiting for the windows.
    pub(in crate::link) async fn send(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamError> {
        let mut small = BytesMut::new();
        for piece in pieces.iter_mut().map(std::mem::take) {
            // A frame costs more than a copy of little.
            if small.len() + piece.len() <= ONE_FRAME {
                small.extend_from_slice(&piece);
                continue;
            }
            self.send_piece(small.split().freeze()).await?;
            self.send_piece(piece).await?;
        }
        self.send_piece(small.freeze()).await
    }

    async fn send_piece(&mut self, mut piece: Bytes) -> Result<(), StreamError> {
        while !piece.is_empty() {
            self.send.reserve_capacity(piece.len());
            let room = match self.send.capacity() {
                // Only a change is told.
                0 => poll_fn(|cx| self.send.poll_capacity(cx)).await,
                room => Some(Ok(room)),
            };
            let room = room.ok_or(StreamError::Aborted)?.map_err(|error| self.state.lost(&error))?;
            let next = piece.split_to(room.min(piece.len()));
            self.send.send_data(next, false).map_err(|error| self.state.lost(&error))?;
        }
        Ok(())
    }

    pub(in crate::link) fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            let _ = self.send.send_data(Bytes::new(), true);
        }
    }

    pub(in crate::link) fn reset(&mut self) {
        self.finished = true;
        self.send.send_reset(Reason::CANCEL);
    }

    pub(in crate::link) async fn stopped(&mut self) {
        let _ = poll_fn(|cx| self.send.poll_reset(cx)).await;
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // The end, be it in the middle of an exchange.
        self.finish();
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(in crate::link) struct Receiver {
    recv: Receiving,
    state: Arc<State>,
}

#[derive(Debug)]
enum Receiving {
    /// The other side has said nothing on it yet.
    Awaited(ResponseFuture),
    Body(RecvStream),
}

impl Receiver {
    /// Waits for an informational answer.
    pub(in crate::link) async fn misbehaves(&mut self) -> StreamError {
        if let Receiving::Awaited(response) = &mut self.recv
            && let Some(Ok(_)) = poll_fn(|cx| response.poll_informational(cx)).await
        {
            return StreamError::Protocol("an informational answer".into());
        }
        std::future::pending().await
    }

    /// The next piece; an empty one is the end.
    pub(in crate::link) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, StreamError>> {
        let recv = match &mut self.recv {
            Receiving::Body(recv) => recv,
            Receiving::Awaited(response) => {
                let response = ready!(Pin::new(response).poll(cx)).map_err(|error| self.state.lost(&error))?;
                self.recv = Receiving::Body(response.into_body());
                return self.poll_piece(cx);
            }
        };
        loop {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(piece)) => {
                    // It is in a buffer of ours from now on, and no more is read before that is used up.
                    let _ = recv.flow_control().release_capacity(piece.len());
                    if !piece.is_empty() {
                        return Poll::Ready(Ok(piece));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(self.state.lost(&error))),
                None => return Poll::Ready(Ok(Bytes::new())),
            }
        }
    }
}
