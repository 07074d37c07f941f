//! The control stream: messages with their length in front.

use bytes::BytesMut;
use prost::Message;

use super::StreamError;
use super::stream::{Receiving, Sender, Stream};
use crate::message::MAX_MESSAGE;

/// The control stream: messages with their length in front.
#[derive(Debug)]
pub struct Control {
    /// Sends messages.
    pub sender: ControlSender,
    /// Receives messages.
    pub receiver: ControlReceiver,
}

impl From<Stream> for Control {
    fn from(stream: Stream) -> Self {
        let (recv, buffer) = stream.receiver.into_parts();
        Self { sender: ControlSender(stream.sender), receiver: ControlReceiver { recv, buffer } }
    }
}

/// The sending half of the control stream.
#[derive(Debug)]
pub struct ControlSender(Sender);

impl ControlSender {
    /// Sends one message.
    ///
    /// # Errors
    /// The stream or the link is gone.
    pub async fn send(&mut self, message: &impl Message) -> Result<(), StreamError> {
        self.0.send(&mut [message.encode_length_delimited_to_vec().into()]).await
    }

    /// Says that nothing more will be sent. From a client it means that it is leaving: it serves nothing new.
    pub fn leave(&mut self) {
        self.0.finish();
    }

    /// Says that nothing more will be sent and waits until the other side has it all, or no longer cares. Over HTTP/2
    /// that is when it closes the link.
    pub async fn finish(mut self) {
        self.0.finish();
        self.0.stopped().await;
    }
}

/// The receiving half of the control stream.
#[derive(Debug)]
pub struct ControlReceiver {
    recv: Receiving,
    buffer: BytesMut,
}

impl ControlReceiver {
    /// The next message, or `None` when the other side has finished. Safe to cancel: nothing is lost.
    ///
    /// # Errors
    /// The link is gone, or the message too long or broken.
    pub async fn receive<M: Message + Default>(&mut self) -> Result<Option<M>, StreamError> {
        let broken = |error: prost::DecodeError| StreamError::Protocol(error.to_string());
        loop {
            if let Some((length, start)) = message_start(&self.buffer)? {
                if self.buffer.len() >= start + length {
                    let message = self.buffer.split_to(start + length);
                    return M::decode(&message[start..]).map(Some).map_err(broken);
                }
                self.buffer.reserve(start + length - self.buffer.len());
            }
            // Room for a piece is taken when there is one: most of its life a link is idle.
            let piece = self.recv.piece().await?;
            if piece.is_empty() {
                return if self.buffer.is_empty() { Ok(None) } else { Err(StreamError::Aborted) };
            }
            self.buffer.extend_from_slice(&piece);
        }
    }
}

/// A message's length and where it starts, once both are there.
fn message_start(buffer: &[u8]) -> Result<Option<(usize, usize)>, StreamError> {
    let Some(end) = buffer.iter().take(10).position(|byte| *byte < 0x80) else {
        let endless = buffer.len() >= 10;
        return if endless { Err(StreamError::Protocol("a length without end".into())) } else { Ok(None) };
    };
    let length = prost::decode_length_delimiter(&buffer[..=end]).map_err(|e| StreamError::Protocol(e.to_string()))?;
    if length > MAX_MESSAGE {
        return Err(StreamError::Protocol(format!("a message of {length} bytes; at most {MAX_MESSAGE} are taken")));
    }
    Ok(Some((length, end + 1)))
}
