//! Requests that are read whole, and those that were sealed while they waited.

use bytes::{Bytes, BytesMut};
use hookway_protocol::WHOLE_BODY;
use hookway_protocol::frame::Frame;
use hookway_protocol::head::{self, Failure, HeadError, RequestHead};
use hookway_protocol::link::{Receiver, StreamError};
use hookway_protocol::seal::{OpeningKey, SealError};
use http::HeaderMap;

use crate::exchange::{RawBody, encoded};
use crate::forwarder::Failed;

/// A sealed delivery may be this long: what a relay takes into its queue, and more.
const MAX_SEALED: usize = 64 << 20;

/// Why a body is no value.
pub(super) enum Uncollected {
    /// It is over the limit.
    TooLong,
    /// It broke off.
    Broken,
}

impl From<StreamError> for Uncollected {
    fn from(_: StreamError) -> Self {
        Self::Broken
    }
}

impl From<HeadError> for Uncollected {
    fn from(_: HeadError) -> Self {
        Self::Broken
    }
}

/// A body as it came, and its trailers.
pub(super) type Body = (RawBody, Option<HeaderMap>);

/// A delivery that was sealed to this client.
pub(super) struct Opened {
    pub(super) head: RequestHead,
    /// The head's encoding.
    pub(super) encoded: Bytes,
    pub(super) body: Body,
}

/// A body that the relay has whole, or that is to be, of so many bytes at most.
pub(super) async fn collect(receiver: &mut Receiver, most: usize) -> Result<Body, Uncollected> {
    let (mut body, mut trailers, mut encoded): (Option<Bytes>, _, _) = (None, None, Bytes::new());
    loop {
        match receiver.frame().await? {
            Some(Frame::Data(data)) => {
                let length = body.as_ref().map_or(0, Bytes::len) + data.len();
                if length > most {
                    return Err(Uncollected::TooLong);
                }
                body = Some(match body {
                    None => data,
                    // Pieces of one buffer grow in place.
                    Some(first) => {
                        let mut all = first.try_into_mut().unwrap_or_else(|first| BytesMut::from(&first[..]));
                        all.extend_from_slice(&data);
                        all.freeze()
                    }
                });
            }
            Some(Frame::Trailers(bytes)) => {
                trailers = Some(head::decode_trailers(&bytes)?.into_map());
                encoded = bytes;
            }
            Some(Frame::End) => {
                let bytes = body.unwrap_or_default();
                return Ok((RawBody { size: bytes.len() as u64, bytes, trailers: encoded }, trailers));
            }
            Some(Frame::Head(_)) | None => return Err(Uncollected::Broken),
        }
    }
}

/// Opens a delivery that was sealed while it waited. `None`: it broke off.
pub(super) async fn open(
    key: Option<&OpeningKey>,
    outer: &RequestHead,
    receiver: &mut Receiver,
) -> Option<Result<Opened, Failed>> {
    let opened = match key {
        Some(key) => key.open(outer.id, &collect(receiver, MAX_SEALED).await.ok()?.0.bytes),
        None => Err(SealError),
    };
    let read = opened.ok().and_then(|opened| {
        let head = RequestHead::decode(&opened.head).ok()?;
        let trailers = head::decode_trailers(&opened.trailers).ok()?;
        Some((opened, head, trailers))
    });
    let Some((opened, head, trailers)) = read else {
        let message = "it was sealed to another client's key".to_owned();
        return Some(Err(Failed { failure: Failure::BadAnswer, short: "sealed".into(), message }));
    };
    let RequestHead { attempt, possible_duplicate, queued, .. } = *outer;
    let whole = opened.body.len() <= WHOLE_BODY;
    let head = RequestHead { attempt, possible_duplicate, queued, whole, ..head };
    let size = opened.body.len() as u64;
    let has_trailers = !opened.trailers.is_empty();
    let body = RawBody { bytes: opened.body, size, trailers: opened.trailers };
    let encoded = encoded(|out| head.encode(out));
    Some(Ok(Opened { head, encoded, body: (body, has_trailers.then(|| trailers.into_map())) }))
}
