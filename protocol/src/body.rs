//! Bodies on their way over a stream, either way.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;

use crate::frame;
use crate::head;
use crate::headers::{Headers, allowed_in_trailers};
use crate::link::{Sender, StreamError};

/// A write gathers up to about this many bytes.
const GATHER: usize = 64 << 10;

/// Why a body was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum Unsent<E> {
    /// The other side does not want it, or is gone.
    #[error("the exchange broke off")]
    Stream(#[source] StreamError),
    /// The body itself broke off.
    #[error("the body broke off")]
    Body {
        /// Why.
        #[source]
        error: E,
        /// Whether anything was sent, be it the head.
        begun: bool,
    },
}

/// Sends the frames in `out`, usually a head, then a body as it comes, and `END`. What is there already goes in one
/// write. Waiting for more of the body ends when the other side no longer wants it.
///
/// # Errors
/// Either side gave up. No `END` was sent then, so the other side does not take the body for whole.
pub async fn send<B: Body<Data = Bytes>>(
    sender: &mut Sender,
    mut out: BytesMut,
    body: B,
) -> Result<(), Unsent<B::Error>> {
    let mut body = pin!(body);
    let (mut pieces, mut gathered, mut begun) = (Vec::new(), 0, false);
    loop {
        let next = match poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await {
            Poll::Ready(next) => next,
            Poll::Pending => {
                if !(out.is_empty() && pieces.is_empty()) {
                    pieces.push(out.split().freeze());
                    sender.send(&mut pieces).await.map_err(Unsent::Stream)?;
                    pieces.clear();
                    (gathered, begun) = (0, true);
                }
                tokio::select! {
                    biased;
                    next = poll_fn(|cx| body.as_mut().poll_frame(cx)) => next,
                    () = sender.stopped() => return Err(Unsent::Stream(StreamError::Aborted)),
                }
            }
        };
        match next {
            Some(Ok(next)) => match next.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    frame::put_data_start(&mut out, data.len());
                    gathered += data.len();
                    pieces.extend([out.split().freeze(), data]);
                    if gathered >= GATHER {
                        sender.send(&mut pieces).await.map_err(Unsent::Stream)?;
                        pieces.clear();
                        (gathered, begun) = (0, true);
                    }
                }
                Err(next) => next.into_trailers().iter().for_each(|trailers| put_trailers(&mut out, trailers)),
            },
            Some(Err(error)) => return Err(Unsent::Body { error, begun }),
            None => {
                out.extend_from_slice(frame::END);
                pieces.push(out.freeze());
                return sender.send(&mut pieces).await.map_err(Unsent::Stream);
            }
        }
    }
}

/// The frames after a body.
#[must_use]
pub fn end(trailers: Option<&HeaderMap>) -> Bytes {
    let Some(trailers) = trailers else { return Bytes::from_static(frame::END) };
    let mut out = BytesMut::new();
    put_trailers(&mut out, trailers);
    out.extend_from_slice(frame::END);
    out.freeze()
}

/// Appends those trailers that may be passed on.
fn put_trailers(out: &mut BytesMut, trailers: &HeaderMap) {
    let trailers = Headers::end_to_end(trailers, None, allowed_in_trailers);
    frame::put_trailers(out, |out| head::encode_trailers(&trailers, out));
}
