//! Frames of any bytes, however they are cut: the same frames or the same refusal.
#![no_main]

use bytes::BytesMut;
use hookway_protocol::frame::{Decoder, Frame, FrameError, MAX_HEAD};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let whole = decode(input, input.len().max(1));
    assert_eq!(decode(input, 1), whole);
    assert_eq!(decode(input, 7), whole);
});

fn decode(mut input: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
    let (mut decoder, mut buffer, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
    while !input.is_empty() {
        let (now, later) = input.split_at(piece.min(input.len()));
        buffer.extend_from_slice(now);
        input = later;
        while let Some(frame) = decoder.next(&mut buffer)? {
            match (frames.last_mut(), frame) {
                (Some(Frame::Data(last)), Frame::Data(more)) => *last = [&last[..], &more[..]].concat().into(),
                (_, frame) => frames.push(frame),
            }
        }
        assert!(buffer.len() <= MAX_HEAD + 16, "what waits for more is bounded");
    }
    Ok(frames)
}
