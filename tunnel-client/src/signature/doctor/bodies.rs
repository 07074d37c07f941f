//! What a body may have been before something wrote it anew.

use std::borrow::Cow;

use crate::json::{Escapes, Layout, written};

/// Larger ones are tried in fewer forms: each takes a pass over all of it.
const LARGE: usize = 128 << 10;

/// What a body may have been, and what was done to it.
pub(super) fn variants(body: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, String)> {
    let inner = serde_json::from_slice::<String>(body)
        .ok()
        .map(|inner| (inner.into_bytes().into(), "it was written as JSON a second time, into one text".to_owned()));
    plain(body).into_iter().chain(inner).chain(json(body))
}

fn plain(body: &[u8]) -> Vec<(Cow<'_, [u8]>, String)> {
    let mut all: Vec<(Cow<'_, [u8]>, String)> = Vec::new();
    for end in [&b"\r\n"[..], b"\n"] {
        if let Some(bare) = body.strip_suffix(end) {
            all.push((bare.into(), "a line end was added behind it".into()));
        }
        all.push(([body, end].concat().into(), "the line end behind it was lost".into()));
    }
    if let Some(bare) = body.strip_prefix(b"\xef\xbb\xbf") {
        all.push((bare.into(), "a byte order mark was put before it".into()));
    }
    if body.contains(&b'\n') {
        let text = body.split(|byte| *byte == b'\r').collect::<Vec<_>>().concat();
        let crlf = text.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]);
        all.push((text.into(), "its line ends became CR LF".into()));
        all.push((crlf.into(), "its line ends became LF".into()));
    }
    all
}

fn json(body: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, String)> {
    let text = std::str::from_utf8(body).ok().filter(|_| serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok());
    let is_large = body.len() > LARGE;
    let forms = text.into_iter().flat_map(move |text| {
        // Keys of a map in memory are in order.
        let sorted = || serde_json::from_str::<serde_json::Value>(text).ok().map(|value| value.to_string());
        [(Some(text.to_owned()), ""), (if is_large { None } else { sorted() }, " with its keys sorted")]
    });
    forms.filter_map(|(text, order)| Some((text?, order))).flat_map(move |(text, order)| {
        let layouts = [
            (Layout::Compact, "compact"),
            (Layout::Spaced, "with a blank behind each , and :"),
            (Layout::Indented(2), "indented by 2"),
            (Layout::Indented(4), "indented by 4"),
        ];
        let escapes = [
            (Escapes::AsIs, ""),
            (Escapes::Ascii, ", with \\u escapes"),
            (Escapes::Plain, ", without escapes that need not be (\\u…, \\/)"),
            (Escapes::Slashes, ", with escaped slashes"),
        ];
        layouts.into_iter().flat_map(move |(layout, how)| {
            let text = text.clone();
            escapes.into_iter().take(if is_large { 1 } else { 4 }).flat_map(move |(escapes, and)| {
                let bytes = written(&text, layout, escapes);
                let what = format!("the JSON was written anew; the signed one was written {how}{order}{and}");
                let more = [bytes.as_slice(), b"\n"].concat();
                [(bytes.into(), what.clone()), (more.into(), format!("{what}, and ends with a line end"))]
            })
        })
    })
}
