//! QUIC as a link: how it is tuned, and the halves of its streams.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, TransportConfig, VarInt, WriteError};

use super::{DEAD_AFTER, FIRST_STREAMS, KEEP_ALIVE, LINK_WINDOW, STREAM_WINDOW, Side, StreamError};

/// How a side tunes its QUIC transport.
#[must_use]
pub fn transport(side: Side) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let streams = match side {
        Side::Relay => 1, // the control stream
        Side::Client => FIRST_STREAMS,
    };
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(LINK_WINDOW.into())
        .send_window(LINK_WINDOW.into())
        // Each side looks by itself; this is for what no session looks after.
        .max_idle_timeout(Some((DEAD_AFTER * 2).try_into().expect("8 s fit a varint")))
        .keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(transport)
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Lost(error.into()),
            _ => Self::Aborted,
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Lost(error.into()),
            _ => Self::Aborted,
        }
    }
}

/// Sends all pieces.
pub(super) async fn send(stream: &mut SendStream, pieces: &mut [Bytes]) -> Result<(), StreamError> {
    // quinn does not always wake a write that waits for the link's window when its stream is stopped.
    let stopped = stream.stopped();
    tokio::select! {
        biased;
        sent = stream.write_all_chunks(pieces) => Ok(sent?),
        _ = stopped => Err(StreamError::Aborted),
    }
}

/// Aborts: what is still on its way is of no use.
pub(super) fn reset(stream: &mut SendStream) {
    let _ = stream.reset(VarInt::from_u32(0));
}

/// Reads what is there, at most the buffer's spare room; 0 is the end.
///
/// Reading into one buffer costs a copy, and makes one piece of the many that QUIC's packets come in.
pub(super) fn poll_fill(
    stream: &mut RecvStream,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<Result<usize, StreamError>> {
    let read = tokio_util::io::poll_read_buf(Pin::new(stream), cx, buffer);
    Poll::Ready(ready!(read).map_err(|error| match error.downcast::<ReadError>() {
        Ok(error) => error.into(),
        Err(error) => StreamError::Protocol(error.to_string()),
    }))
}
