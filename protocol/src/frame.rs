//! The frames of one exchange: `HEAD DATA* TRAILERS? END`, then perhaps another exchange on the same stream.
//!
//! A frame is a type and a length, both QUIC varints (RFC 9000 §16), and a payload. No I/O here: bytes in, frames
//! out. A stream that stops without `END` was aborted, so a cut body is never taken for a whole one.

use bytes::{BufMut, Bytes, BytesMut};

/// Carries a [`crate::head`].
const HEAD: u64 = 1;
/// Carries a piece of the body.
const DATA: u64 = 2;
/// Carries the trailers, encoded like a head's header fields.
const TRAILERS: u64 = 3;
/// Ends the exchange in this direction.
pub const END: &[u8] = &[4, 0];

/// A head or trailers may be this long; more is refused before any of it is kept.
pub const MAX_HEAD: usize = 64 << 10;

/// One frame, or as much of a `DATA` frame as has arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The head of the request or reply.
    Head(Bytes),
    /// The next bytes of the body, never empty.
    Data(Bytes),
    /// The trailers.
    Trailers(Bytes),
    /// The clean end.
    End,
}

/// What a peer did wrong. The stream is of no use after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A head or trailers over [`MAX_HEAD`].
    #[error("a head of {0} bytes; at most {MAX_HEAD} are taken")]
    HeadTooLong(u64),
    /// A frame where the grammar has none of its kind.
    #[error("a frame of type {0} out of order")]
    OutOfOrder(u64),
    /// `END` carries nothing.
    #[error("an END frame with a payload")]
    EndWithPayload,
}

/// Takes frames from the front of a buffer that the caller fills.
#[derive(Debug, Default)]
pub struct Decoder {
    place: Place,
    /// What is still to come of a frame whose start has been taken.
    rest: Rest,
}

/// Where in `HEAD DATA* TRAILERS? END` the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Start,
    Body,
    Trailed,
}

#[derive(Clone, Copy, Debug, Default)]
enum Rest {
    #[default]
    None,
    Data(u64),
    Skip(u64),
}

impl Decoder {
    /// The next frame, or `None` until the buffer holds more.
    ///
    /// # Errors
    /// The peer broke the grammar or a limit.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            match self.rest {
                Rest::Data(0) | Rest::Skip(0) => self.rest = Rest::None,
                Rest::Data(_) | Rest::Skip(_) if buffer.is_empty() => return Ok(None),
                Rest::Data(rest) => {
                    let data = take(buffer, rest);
                    self.rest = Rest::Data(rest - data.len() as u64);
                    return Ok(Some(Frame::Data(data.freeze())));
                }
                Rest::Skip(rest) => self.rest = Rest::Skip(rest - take(buffer, rest).len() as u64),
                Rest::None => {
                    let Some((kind, length, start)) = frame_start(buffer) else { return Ok(None) };
                    self.check(kind, length)?;
                    let whole = start as u64 + length;
                    match kind {
                        HEAD | TRAILERS if (buffer.len() as u64) < whole => return Ok(None),
                        DATA => self.rest = Rest::Data(length),
                        HEAD | TRAILERS | 4 => {}
                        _ => self.rest = Rest::Skip(length),
                    }
                    let _ = buffer.split_to(start);
                    match kind {
                        HEAD => {
                            self.place = Place::Body;
                            return Ok(Some(Frame::Head(take(buffer, length).freeze())));
                        }
                        TRAILERS => {
                            self.place = Place::Trailed;
                            return Ok(Some(Frame::Trailers(take(buffer, length).freeze())));
                        }
                        4 => {
                            self.place = Place::Start;
                            return Ok(Some(Frame::End));
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Whether the stream stands between two exchanges.
    #[must_use]
    pub fn at_start(&self) -> bool {
        self.place == Place::Start && matches!(self.rest, Rest::None | Rest::Data(0) | Rest::Skip(0))
    }

    fn check(&self, kind: u64, length: u64) -> Result<(), FrameError> {
        let expected = match kind {
            HEAD => self.place == Place::Start,
            DATA | TRAILERS => self.place == Place::Body,
            4 => self.place != Place::Start,
            _ => true,
        };
        match kind {
            _ if !expected => Err(FrameError::OutOfOrder(kind)),
            HEAD | TRAILERS if length > MAX_HEAD as u64 => Err(FrameError::HeadTooLong(length)),
            4 if length != 0 => Err(FrameError::EndWithPayload),
            _ => Ok(()),
        }
    }
}

/// Up to `most` bytes from the front.
fn take(buffer: &mut BytesMut, most: u64) -> BytesMut {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    buffer.split_to(most.min(buffer.len()))
}

/// Type, length and where the payload starts, once all of that is there.
fn frame_start(buffer: &[u8]) -> Option<(u64, u64, usize)> {
    let (kind, first) = varint(buffer)?;
    let (length, second) = varint(&buffer[first..])?;
    Some((kind, length, first + second))
}

fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte));
    Some((value, length))
}

fn put_varint(out: &mut BytesMut, value: u64) {
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(value as u16 | 0x4000),
        0x4000..0x4000_0000 => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// Writes a `HEAD` frame whose payload `write` appends.
pub fn put_head(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    put_sized(out, HEAD, write);
}

/// Writes a `TRAILERS` frame whose payload `write` appends.
pub fn put_trailers(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    put_sized(out, TRAILERS, write);
}

/// Writes the start of a `DATA` frame of `length` bytes; the caller sends those next.
pub fn put_data_start(out: &mut BytesMut, length: usize) {
    put_varint(out, DATA);
    put_varint(out, length as u64);
}

fn put_sized(out: &mut BytesMut, kind: u64, write: impl FnOnce(&mut BytesMut)) {
    put_varint(out, kind);
    // The length is known only afterwards: keep four bytes, the varint's size up to 2^30.
    let at = out.len();
    out.put_u32(0);
    write(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&(length | 0x8000_0000).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn decode_all(mut bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
        let (mut decoder, mut buffer, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(piece.min(bytes.len()));
            buffer.extend_from_slice(now);
            bytes = later;
            while let Some(frame) = decoder.next(&mut buffer)? {
                match (frames.last_mut(), frame) {
                    (Some(Frame::Data(last)), Frame::Data(more)) => *last = [&last[..], &more[..]].concat().into(),
                    (_, frame) => frames.push(frame),
                }
            }
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_they_are_cut(
            head in prop::collection::vec(any::<u8>(), 0..300),
            body in prop::collection::vec(any::<u8>(), 1..40_000),
            unknown in 5u64..1 << 61,
            piece in 1usize..5_000,
        ) {
            let mut out = BytesMut::new();
            put_head(&mut out, |out| out.put_slice(&head));
            put_varint(&mut out, unknown);
            put_varint(&mut out, 3);
            out.put_slice(b"???");
            put_data_start(&mut out, body.len());
            out.put_slice(&body);
            put_trailers(&mut out, |out| out.put_slice(&head));
            out.put_slice(END);
            let frames = decode_all(&out, piece).expect("good frames");
            prop_assert_eq!(frames, vec![
                Frame::Head(head.clone().into()), Frame::Data(body.into()), Frame::Trailers(head.into()), Frame::End,
            ]);
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2_000), piece in 1usize..64) {
            let whole = decode_all(&bytes, bytes.len().max(1));
            prop_assert_eq!(decode_all(&bytes, piece), whole);
        }
    }

    #[test]
    fn the_fuzz_corpus_is_the_same_however_it_is_cut() {
        let corpus = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/frame")).expect("a corpus");
        for entry in corpus {
            let path = entry.expect("an entry").path();
            let bytes = std::fs::read(&path).expect("a file");
            assert_eq!(decode_all(&bytes, 1), decode_all(&bytes, bytes.len()), "{}", path.display());
        }
    }

    #[rstest]
    #[case::data_first(&[2, 0], FrameError::OutOfOrder(2))]
    #[case::end_first(&[4, 0], FrameError::OutOfOrder(4))]
    #[case::two_heads(&[1, 0, 1, 0], FrameError::OutOfOrder(1))]
    #[case::data_after_trailers(&[1, 0, 3, 0, 2, 0], FrameError::OutOfOrder(2))]
    #[case::end_with_payload(&[1, 0, 4, 1], FrameError::EndWithPayload)]
    #[case::endless_head(&[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], FrameError::HeadTooLong((1 << 62) - 1))]
    fn refused(#[case] bytes: &[u8], #[case] why: FrameError) {
        assert_eq!(decode_all(bytes, 1), Err(why));
    }
}
