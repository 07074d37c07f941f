//! The heads of an exchange, in the protobuf encoding that `proto/hookway.proto` writes down.
//!
//! This is the one encoding on the path of every webhook, so it goes straight between the wire and `http`'s types,
//! with values that share the buffer they came in. The tests hold it to prost's reading of the same messages.

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::frame::MAX_HEAD;
use crate::headers::Headers;
use crate::host::EndpointName;
use crate::id::DeliveryId;
use crate::protobuf::{Broken, Value, next_field, put_bytes, put_number};

/// A head that waits in a queue says more when it is handed over: which attempt it is, that it may have been before.
const GROWS_BY: usize = 64;

/// A head may have this many fields.
const MAX_FIELDS: usize = 1024;

/// What the relay says of a delivery before its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Names the delivery.
    pub id: DeliveryId,
    /// When the relay had read the head, in microseconds since 1970 UTC.
    pub received_at_us: u64,
    /// The endpoint it was sent to.
    pub endpoint: EndpointName,
    /// The method, as sent.
    pub method: Method,
    /// Path and query, as sent.
    pub target: PathAndQuery,
    /// The end-to-end header fields, with what the relay added.
    pub headers: Headers,
    /// The sender's address.
    pub remote: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Whether an earlier attempt may have reached the app.
    pub possible_duplicate: bool,
    /// Whether the body is complete and at most [`crate::WHOLE_BODY`] bytes.
    pub whole: bool,
    /// The protocol that the sender asks to upgrade to.
    pub upgrade: Option<String>,
    /// Whether the sender spoke HTTP/2.
    pub http2: bool,
    /// Whether the sender was answered 202 already: it comes from the relay's queue.
    pub queued: bool,
    /// Whether the body is a sealed delivery; see [`crate::seal`].
    pub sealed: bool,
}

/// What the client answers before the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyHead {
    /// The app's own answer.
    App {
        /// Its status.
        status: StatusCode,
        /// Its end-to-end header fields.
        headers: Headers,
    },
    /// The app gave none; the client says why.
    Failed {
        /// What kind of failure it was.
        failure: Failure,
        /// The same, for a person.
        message: String,
    },
}

/// Why the app gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing listens there, or it cannot be reached.
    Refused = 1,
    /// No answer in time.
    Timeout = 2,
    /// What came back is not HTTP, or the app hung up.
    BadAnswer = 3,
    /// The client takes no more at a time.
    Busy = 4,
    /// The body is over the client's own limit.
    TooLarge = 5,
    /// The request cannot be put to the app.
    BadRequest = 6,
}

/// Why bytes are no head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The protobuf encoding is broken.
    #[error("a broken message")]
    Encoding,
    /// A field that must be there is not, or holds what it cannot hold.
    #[error("a bad {0}")]
    Field(&'static str),
}

impl From<Broken> for HeadError {
    fn from(_: Broken) -> Self {
        Self::Encoding
    }
}

impl RequestHead {
    /// Appends the head's encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        put_bytes(out, 1, self.id.as_bytes());
        put_number(out, 2, self.received_at_us);
        put_bytes(out, 3, self.endpoint.as_str().as_bytes());
        put_bytes(out, 4, self.method.as_str().as_bytes());
        put_bytes(out, 5, self.target.as_str().as_bytes());
        put_fields(out, 6, &self.headers);
        put_bytes(out, 7, self.remote.as_bytes());
        put_number(out, 8, self.attempt.into());
        put_number(out, 9, self.possible_duplicate.into());
        put_number(out, 10, self.whole.into());
        if let Some(upgrade) = &self.upgrade {
            put_bytes(out, 11, upgrade.as_bytes());
        }
        put_number(out, 12, self.http2.into());
        put_number(out, 13, self.queued.into());
        put_number(out, 14, self.sealed.into());
    }

    /// Whether the other side takes a head of this size.
    #[must_use]
    pub fn fits(&self) -> bool {
        let Self { target, method, remote, upgrade, .. } = self;
        let upgrade = upgrade.as_ref().map_or(0, String::len);
        let more = target.as_str().len() + method.as_str().len() + remote.len() + upgrade;
        fits(&self.headers, more, |out| self.encode(out))
    }

    /// Reads a head.
    ///
    /// # Errors
    /// The bytes are no head, or one that cannot be put to an app.
    pub fn decode(from: &Bytes) -> Result<Self, HeadError> {
        let mut rest = &from[..];
        let (mut id, mut endpoint, mut target, mut method) = (None, None, None, None);
        let (mut received_at_us, mut attempt) = (0, 0);
        let (mut possible_duplicate, mut whole, mut http2) = (false, false, false);
        let (mut queued, mut sealed) = (false, false);
        let (mut remote, mut upgrade) = (String::new(), None);
        let mut fields = Fields::default();
        while let Some((tag, value)) = next_field(&mut rest)? {
            match (tag, value) {
                (1, Value::Bytes(bytes)) => id = <[u8; 16]>::try_from(bytes).ok().map(DeliveryId::from_bytes),
                (2, Value::Number(number)) => received_at_us = number,
                (3, Value::Bytes(bytes)) => endpoint = text(bytes)?.parse().ok(),
                (4, Value::Bytes(bytes)) => method = Method::from_bytes(bytes).ok(),
                (5, Value::Bytes(bytes)) => {
                    let read = PathAndQuery::from_maybe_shared(from.slice_ref(bytes)).ok();
                    // `http` leaves a fragment out without a word.
                    target = read.filter(|target| target.as_str().as_bytes() == bytes);
                }
                (6, Value::Bytes(bytes)) => fields.push(from, bytes)?,
                (7, Value::Bytes(bytes)) => text(bytes)?.clone_into(&mut remote),
                (8, Value::Number(number)) => attempt = u32::try_from(number).unwrap_or(u32::MAX),
                (9, Value::Number(number)) => possible_duplicate = number != 0,
                (10, Value::Number(number)) => whole = number != 0,
                (11, Value::Bytes(bytes)) => upgrade = Some(text(bytes)?.to_owned()),
                (12, Value::Number(number)) => http2 = number != 0,
                (13, Value::Number(number)) => queued = number != 0,
                (14, Value::Number(number)) => sealed = number != 0,
                _ => {}
            }
        }
        Ok(Self {
            id: id.ok_or(HeadError::Field("id"))?,
            received_at_us,
            endpoint: endpoint.ok_or(HeadError::Field("endpoint"))?,
            method: method.ok_or(HeadError::Field("method"))?,
            target: target.ok_or(HeadError::Field("target"))?,
            headers: fields.finish()?,
            remote,
            attempt: attempt.max(1),
            possible_duplicate,
            whole,
            upgrade,
            http2,
            queued,
            sealed,
        })
    }
}

/// Whether a head with these fields, and as much else as `more`, is one that the other side takes.
fn fits(headers: &Headers, more: usize, encode: impl FnOnce(&mut BytesMut)) -> bool {
    // A field costs three tags and lengths; the rest of a head is small.
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 16);
    let about = fields.sum::<usize>() + more + 1024;
    let exact = || {
        let mut out = BytesMut::new();
        encode(&mut out);
        out.len()
    };
    headers.len() <= MAX_FIELDS && (about <= MAX_HEAD || exact() + GROWS_BY <= MAX_HEAD)
}

impl ReplyHead {
    /// Whether the other side takes a head of this size.
    #[must_use]
    pub fn fits(&self) -> bool {
        match self {
            Self::App { headers, .. } => fits(headers, 0, |out| self.encode(out)),
            Self::Failed { message, .. } => message.len() < MAX_HEAD / 2,
        }
    }

    /// Appends the head's encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::App { status, headers } => {
                put_number(out, 1, status.as_u16().into());
                put_fields(out, 2, headers);
            }
            Self::Failed { failure, message } => {
                put_number(out, 3, *failure as u64);
                put_bytes(out, 4, message.as_bytes());
            }
        }
    }

    /// Reads a head.
    ///
    /// # Errors
    /// The bytes are no head.
    pub fn decode(from: &Bytes) -> Result<Self, HeadError> {
        let mut rest = &from[..];
        let (mut status, mut failure, mut message) = (0, 0, String::new());
        let mut fields = Fields::default();
        while let Some((tag, value)) = next_field(&mut rest)? {
            match (tag, value) {
                (1, Value::Number(number)) => status = number,
                (2, Value::Bytes(bytes)) => fields.push(from, bytes)?,
                (3, Value::Number(number)) => failure = number,
                (4, Value::Bytes(bytes)) => text(bytes)?.clone_into(&mut message),
                _ => {}
            }
        }
        if status != 0 {
            let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
            let status = status.ok_or(HeadError::Field("status"))?;
            return Ok(Self::App { status, headers: fields.finish()? });
        }
        let failure = match failure {
            0 => return Err(HeadError::Field("status")),
            1 => Failure::Refused,
            2 => Failure::Timeout,
            4 => Failure::Busy,
            5 => Failure::TooLarge,
            6 => Failure::BadRequest,
            // A newer client may know more ways to fail; all of them mean that there is no answer.
            _ => Failure::BadAnswer,
        };
        Ok(Self::Failed { failure, message })
    }
}

/// Appends the encoding of trailers.
pub fn encode_trailers(trailers: &Headers, out: &mut BytesMut) {
    put_fields(out, 1, trailers);
}

/// Reads trailers.
///
/// # Errors
/// The bytes are no trailers.
pub fn decode_trailers(from: &Bytes) -> Result<Headers, HeadError> {
    let mut rest = &from[..];
    let mut fields = Fields::default();
    while let Some((tag, value)) = next_field(&mut rest)? {
        if let (1, Value::Bytes(bytes)) = (tag, value) {
            fields.push(from, bytes)?;
        }
    }
    fields.finish()
}

/// Name, value, name, value… as they arrive.
#[derive(Default)]
struct Fields {
    name: Option<HeaderName>,
    headers: Headers,
}

impl Fields {
    /// Takes a part of `from`, which values keep alive.
    fn push(&mut self, from: &Bytes, part: &[u8]) -> Result<(), HeadError> {
        match self.name.take() {
            None if self.headers.len() == MAX_FIELDS => return Err(HeadError::Field("number of header fields")),
            None => self.name = Some(HeaderName::from_bytes(part).map_err(|_| HeadError::Field("header name"))?),
            Some(name) => {
                let value = HeaderValue::from_maybe_shared(from.slice_ref(part))
                    .map_err(|_| HeadError::Field("header value"))?;
                self.headers.push(name, value);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Headers, HeadError> {
        if self.name.is_some() { Err(HeadError::Field("header field")) } else { Ok(self.headers) }
    }
}

fn put_fields(out: &mut BytesMut, tag: u8, headers: &Headers) {
    for (name, value) in headers.iter() {
        put_bytes(out, tag, name.as_str().as_bytes());
        put_bytes(out, tag, value.as_bytes());
    }
}

fn text(bytes: &[u8]) -> Result<&str, HeadError> {
    std::str::from_utf8(bytes).map_err(|_| HeadError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    /// prost's reading of `RequestHead`, to hold ours to.
    #[derive(Clone, PartialEq, Message)]
    struct SpecRequest {
        #[prost(bytes = "vec", tag = "1")]
        id: Vec<u8>,
        #[prost(uint64, tag = "2")]
        received_at_us: u64,
        #[prost(string, tag = "3")]
        endpoint: String,
        #[prost(string, tag = "4")]
        method: String,
        #[prost(bytes = "vec", tag = "5")]
        target: Vec<u8>,
        #[prost(bytes = "vec", repeated, tag = "6")]
        fields: Vec<Vec<u8>>,
        #[prost(string, tag = "7")]
        remote: String,
        #[prost(uint32, tag = "8")]
        attempt: u32,
        #[prost(bool, tag = "9")]
        possible_duplicate: bool,
        #[prost(bool, tag = "10")]
        whole: bool,
        #[prost(string, tag = "11")]
        upgrade: String,
        #[prost(bool, tag = "12")]
        http2: bool,
        #[prost(bool, tag = "13")]
        queued: bool,
        #[prost(bool, tag = "14")]
        sealed: bool,
        /// What a later version may add.
        #[prost(fixed64, tag = "77")]
        unknown: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct SpecReply {
        #[prost(uint32, tag = "1")]
        status: u32,
        #[prost(bytes = "vec", repeated, tag = "2")]
        fields: Vec<Vec<u8>>,
        #[prost(uint32, tag = "3")]
        failure: u32,
        #[prost(string, tag = "4")]
        message: String,
    }

    fn headers() -> impl Strategy<Value = Headers> {
        let name = "[a-z][a-z0-9-]{0,20}".prop_map(|n| n.parse::<HeaderName>().expect("a header name"));
        let value = prop::collection::vec(prop_oneof![Just(9u8), 32..=126u8, 128..=255u8], 0..60)
            .prop_map(|v| HeaderValue::from_bytes(&v).expect("a header value"));
        prop::collection::vec((name, value), 0..20).prop_map(|fields| fields.into_iter().collect())
    }

    fn flat(headers: &Headers) -> Vec<Vec<u8>> {
        headers.iter().flat_map(|(n, v)| [n.as_str().as_bytes().to_vec(), v.as_bytes().to_vec()]).collect()
    }

    prop_compose! {
        fn request()(
            id: [u8; 16], received_at_us: u64, headers in headers(),
            endpoint in "[a-z][a-z0-9]{0,62}", method in "[A-Z]{1,20}",
            target in "/[!$-;=?-Z_a-z~]{0,200}", remote in "[0-9a-f:.]{0,40}",
            attempt in 1u32.., possible_duplicate: bool, whole: bool, http2: bool, queued: bool, sealed: bool,
            upgrade in prop::option::of("[a-z]{1,12}"),
        ) -> RequestHead {
            RequestHead {
                id: DeliveryId::from_bytes(id), received_at_us, headers,
                endpoint: endpoint.parse().expect("a name"), method: method.parse().expect("a method"),
                target: target.parse().expect("a target"), remote, attempt, possible_duplicate, whole, upgrade, http2, queued,
                sealed,
            }
        }
    }

    proptest! {
        #[test]
        fn request_heads_follow_the_spec(head in request(), unknown: u64) {
            let mut ours = BytesMut::new();
            head.encode(&mut ours);
            let mut spec = SpecRequest::decode(&ours[..]).expect("protobuf");
            prop_assert_eq!(&spec.fields, &flat(&head.headers));
            prop_assert_eq!(spec.target.as_slice(), head.target.as_str().as_bytes());
            prop_assert_eq!((spec.attempt, spec.received_at_us), (head.attempt, head.received_at_us));
            prop_assert_eq!((spec.http2, spec.queued, spec.sealed), (head.http2, head.queued, head.sealed));
            prop_assert_eq!(RequestHead::decode(&ours.freeze()), Ok(head.clone()));
            spec.unknown = unknown;
            prop_assert_eq!(RequestHead::decode(&spec.encode_to_vec().into()), Ok(head));
        }

        #[test]
        fn reply_heads_follow_the_spec(status in 100u16..1000, headers in headers(), message: String) {
            let mut ours = BytesMut::new();
            let app = ReplyHead::App { status: StatusCode::from_u16(status).expect("a status"), headers: headers.clone() };
            app.encode(&mut ours);
            let spec = SpecReply::decode(&ours[..]).expect("protobuf");
            prop_assert_eq!((spec.status, spec.fields), (u32::from(status), flat(&headers)));
            prop_assert_eq!(ReplyHead::decode(&ours.freeze()), Ok(app));
            let spec = SpecReply { failure: 2, message: message.clone(), ..SpecReply::default() };
            let failed = ReplyHead::Failed { failure: Failure::Timeout, message };
            prop_assert_eq!(ReplyHead::decode(&spec.encode_to_vec().into()), Ok(failed));
        }

        #[test]
        fn trailers_and_back(headers in headers()) {
            let mut out = BytesMut::new();
            encode_trailers(&headers, &mut out);
            prop_assert_eq!(decode_trailers(&out.freeze()), Ok(headers));
        }

        #[test]
        fn any_bytes_are_a_head_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = ReplyHead::decode(&bytes.clone().into());
            if let Ok(head) = RequestHead::decode(&bytes.into()) {
                let mut out = BytesMut::new();
                head.encode(&mut out);
                prop_assert_eq!(RequestHead::decode(&out.freeze()), Ok(head));
            }
        }
    }

    #[test]
    fn the_fuzz_corpus_is_a_head_or_an_error() {
        let corpus = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/head")).expect("a corpus");
        let mut heads = 0;
        for entry in corpus {
            let bytes = Bytes::from(std::fs::read(entry.expect("an entry").path()).expect("a file"));
            let mut out = BytesMut::new();
            if let Ok(head) = RequestHead::decode(&bytes.clone()) {
                head.encode(&mut out);
                assert_eq!(RequestHead::decode(&out.split().freeze()), Ok(head));
                heads += 1;
            }
            if let Ok(head) = ReplyHead::decode(&bytes) {
                head.encode(&mut out);
                assert_eq!(ReplyHead::decode(&out.freeze()), Ok(head));
                heads += 1;
            }
        }
        assert!(heads >= 5, "the corpus has good heads, too");
    }

    #[test]
    fn a_head_fits_only_if_it_still_does_when_it_was_queued() {
        let head = |method: usize| RequestHead {
            id: DeliveryId::from_bytes([1; 16]),
            received_at_us: 1,
            endpoint: "billing".parse().expect("a name"),
            method: "X".repeat(method).parse().expect("a method"),
            target: "/".parse().expect("a target"),
            headers: Headers::default(),
            remote: String::new(),
            attempt: 1,
            possible_duplicate: false,
            whole: false,
            upgrade: None,
            http2: false,
            queued: false,
            sealed: false,
        };
        let longest = (0..MAX_HEAD).rev().find(|method| head(*method).fits()).expect("some fit");
        let mut queued = BytesMut::new();
        let head =
            RequestHead { attempt: u32::MAX, possible_duplicate: true, whole: true, queued: true, ..head(longest) };
        head.encode(&mut queued);
        assert!((MAX_HEAD - GROWS_BY..=MAX_HEAD).contains(&queued.len()), "{longest} {}", queued.len());
    }

    #[test]
    fn fields_are_bounded() {
        let fields = vec![b"a".to_vec(); 2 * (MAX_FIELDS + 1)];
        let spec = SpecReply { status: 200, fields, ..SpecReply::default() };
        let refused = ReplyHead::decode(&spec.encode_to_vec().into());
        assert_eq!(refused, Err(HeadError::Field("number of header fields")));
    }
}
