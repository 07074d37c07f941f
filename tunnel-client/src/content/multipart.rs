//! Multipart bodies, taken apart.

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, stream};
use hookway_protocol::headers::Headers;
use serde::Serialize;

use super::Content;
use crate::mask::{self, Row, Secrets};

/// So many parts are shown.
const MAX_PARTS: usize = 100;

/// A part of a multipart body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Part {
    pub(crate) name: Option<String>,
    pub(crate) file_name: Option<String>,
    /// Secret ones are masked.
    pub(crate) headers: Vec<Row>,
    pub(crate) body: Content,
}

/// The parts of a body, as far as they can be read.
pub(super) fn parts(bytes: &Bytes, boundary: &str) -> Vec<Part> {
    let end = format!("--{boundary}--");
    let closed = bytes.windows(end.len()).any(|window| window == end.as_bytes());
    // multer shows nothing of a part whose end is missing: end it.
    let end = if closed { Bytes::new() } else { format!("\r\n{end}\r\n").into() };
    let input = stream::iter([bytes.clone(), end].map(Ok::<_, std::convert::Infallible>));
    let mut multipart = multer::Multipart::new(input, boundary);
    let mut parts = Vec::new();
    // All input is there, so nothing is ever pending, unless something is wrong with it.
    while let Some(Ok(Some(field))) = multipart.next_field().now_or_never() {
        parts.push(part(field));
        if parts.len() == MAX_PARTS {
            break;
        }
    }
    parts
}

fn part(mut field: multer::Field<'_>) -> Part {
    let headers: Headers = field.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let name = field.name().map(str::to_owned);
    let file_name = field.file_name().map(str::to_owned);
    let mut body = BytesMut::new();
    while let Some(Ok(Some(chunk))) = field.chunk().now_or_never() {
        body.extend_from_slice(&chunk);
    }
    let rows = mask::rows(&headers, Secrets::Masked);
    Part { name, file_name, headers: rows, body: Content::of_part(&headers, body.freeze()) }
}
