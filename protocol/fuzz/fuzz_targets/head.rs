//! Heads and trailers of any bytes: refused, or the same again after encoding.
#![no_main]

use bytes::{Bytes, BytesMut};
use hookway_protocol::head::{ReplyHead, RequestHead, decode_trailers, encode_trailers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let input = Bytes::copy_from_slice(input);
    let mut out = BytesMut::new();
    if let Ok(head) = RequestHead::decode(&input) {
        head.encode(&mut out);
        assert_eq!(RequestHead::decode(&out.split().freeze()), Ok(head));
    }
    if let Ok(head) = ReplyHead::decode(&input) {
        head.encode(&mut out);
        assert_eq!(ReplyHead::decode(&out.split().freeze()), Ok(head));
    }
    if let Ok(trailers) = decode_trailers(&input) {
        encode_trailers(&trailers, &mut out);
        assert_eq!(decode_trailers(&out.freeze()), Ok(trailers));
    }
});
