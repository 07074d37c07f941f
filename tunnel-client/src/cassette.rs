//! Cassettes: requests in a file that tests put to an app, without secrets, to be signed afresh.

use std::borrow::Cow;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hookway_protocol::headers::{Headers, is_of_the_relay};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::exchange::{Exchange, Verdict};
use crate::harmless;
use crate::json;
use crate::mask;
use crate::samples;
use crate::signature::{Known, Received, pairs};

/// The version of the format.
const VERSION: u32 = 1;
/// What stands in the place of a secret.
pub(crate) const REDACTED: &str = "redacted";

/// A request of a cassette.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    /// Whose it is, as flags name it.
    pub(crate) provider: Option<String>,
    pub(crate) event: Option<String>,
    /// The endpoint that it came to.
    pub(crate) endpoint: Option<String>,
    /// Whether it is to be signed.
    pub(crate) signed: bool,
    /// The fields that held its signature: of several names that a provider has, it is signed under these.
    pub(crate) signatures: Vec<HeaderName>,
    pub(crate) method: Method,
    pub(crate) target: PathAndQuery,
    pub(crate) headers: Headers,
    pub(crate) body: Bytes,
}

/// Why a request cannot be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unrecordable {
    /// Its end is missing.
    #[error("its body is not kept whole")]
    Cut,
    /// What is secret in it cannot be taken out.
    #[error("its body is compressed, or of several parts")]
    Opaque,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    cassette: u32,
    #[serde(default)]
    provider: Option<String>,
    #[serde(default)]
    event: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(default)]
    signed: bool,
    #[serde(default = "post")]
    method: String,
    path: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// What was taken out, for whoever reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    redacted: Vec<String>,
}

fn post() -> String {
    "POST".into()
}

/// Writes a request as a line.
///
/// # Errors
/// Its body is not whole, or the line cannot be written.
pub(crate) fn write(exchange: &Exchange, out: &mut dyn Write) -> io::Result<Result<(), Unrecordable>> {
    let request = &exchange.request;
    if request.unfinished || request.body.is_cut() {
        return Ok(Err(Unrecordable::Cut));
    }
    let kind = request.headers.get(&CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    let text = String::from_utf8_lossy(&request.body.bytes);
    // Where it is no UTF-8, what is secret could be left out only with what is not.
    let is_unclean = matches!(text, Cow::Owned(_)) && clean(&text, request.headers.get(&CONTENT_TYPE)) != text;
    if is_unclean
        || kind.starts_with(b"multipart/")
        || request.headers.get(&CONTENT_ENCODING).is_some_and(|coding| coding != "identity")
    {
        return Ok(Err(Unrecordable::Opaque));
    }
    let received = Received::from(exchange);
    let known = exchange.webhook.provider.as_deref().and_then(Known::named).or_else(|| Known::of(&received));
    // One that was bad is never made good.
    let signed = match exchange.webhook.signature {
        Verdict::Ok => true,
        Verdict::Bad => false,
        Verdict::None => known.as_ref().is_some_and(|provider| provider.claim(&received).is_ok()),
    };
    let mut redacted = Vec::new();
    let mut headers = Vec::new();
    for (name, value) in request.headers.iter() {
        if is_of_the_relay(name) || *name == CONTENT_LENGTH {
            continue;
        }
        match value.to_str() {
            Ok(value) if !mask::is_secret(name) => headers.push((name.to_string(), value.to_owned())),
            _ => redacted.push(name.to_string()),
        }
    }
    let target = request.target.as_str();
    let path = mask::target(target).replace(mask::MASK, REDACTED);
    if path != target {
        redacted.push("query".into());
    }
    let (text, body_redacted) = match std::str::from_utf8(&request.body.bytes) {
        Ok(text) => {
            let clean = clean(text, request.headers.get(&CONTENT_TYPE));
            let changed = clean != text;
            (Some(clean), changed)
        }
        Err(_) => (None, false),
    };
    if body_redacted {
        redacted.push("body".into());
    }
    let base64 = text.is_none().then(|| STANDARD.encode(&request.body.bytes));
    let line = Line {
        cassette: VERSION,
        provider: known.as_ref().map(|provider| provider.facts().name.to_owned()),
        event: known.and_then(|provider| provider.named(&received).bounded().event),
        endpoint: Some(exchange.endpoint.to_string()),
        signed,
        method: request.method.to_string(),
        path,
        headers,
        body: text,
        base64,
        redacted,
    };
    harmless::json(&mut *out, &line)?;
    out.write_all(b"\n")?;
    Ok(Ok(()))
}

/// A body without what looks like a secret in it: in JSON, in lines of JSON, and in forms.
fn clean(text: &str, kind: Option<&HeaderValue>) -> String {
    // A byte order mark is no JSON.
    if let Some(text) = text.strip_prefix('\u{feff}') {
        return format!("\u{feff}{}", clean(text, kind));
    }
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    if !kind.starts_with("application/x-www-form-urlencoded") {
        let json = |text: &str| json::replaced(text, &is_secret, REDACTED);
        let lines = || text.split_inclusive('\n').map(|line| json(line).unwrap_or_else(|| line.to_owned())).collect();
        return json(text).unwrap_or_else(lines);
    }
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, value)) if !value.is_empty() && is_secret(&mask::decoded(name)) => format!("{name}={REDACTED}"),
        // Slack sends JSON in a form's field.
        Some((name, value)) if value.starts_with("%7B") || value.starts_with('{') => {
            let text = pairs(pair.as_bytes()).pop().and_then(|(_, value)| String::from_utf8(value).ok());
            let clean = text.as_ref().and_then(|text| json::replaced(text, &is_secret, REDACTED));
            match clean.filter(|clean| Some(clean) != text.as_ref()) {
                Some(clean) => format!("{name}={}", samples::encoded(&clean)),
                None => format!("{name}={value}"),
            }
        }
        _ => pair.to_owned(),
    };
    text.split('&').map(pair).collect::<Vec<_>>().join("&")
}

/// Whether a field of a body holds a secret by its name. Not as much as in a query: `code`, `key` and `sid` are everyday words
/// there.
fn is_secret(name: &str) -> bool {
    // Slack's `response_url` lets whoever has it answer.
    const PARTS: [&str; 8] =
        ["secret", "password", "passwd", "credential", "apikey", "privatekey", "authorization", "responseurl"];
    let name: String = name.chars().filter(|c| !matches!(c, '_' | '-')).collect::<String>().to_ascii_lowercase();
    PARTS.iter().any(|part| name.contains(part)) || name.ends_with("token") || name == "signature"
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(line: &str) -> Result<Recorded, String> {
    #[derive(Deserialize)]
    struct Format {
        cassette: u32,
    }
    let said = |error: serde_json::Error| {
        let said = error.to_string();
        said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said).to_owned()
    };
    // A newer one may have what is not known here.
    let Format { cassette } = serde_json::from_str(line).map_err(said)?;
    if cassette > VERSION {
        return Err(format!("format {cassette} is newer than this program, which reads up to {VERSION}"));
    }
    let line: Line = serde_json::from_str(line).map_err(said)?;
    let field = |(name, value): (String, String)| {
        let name = HeaderName::try_from(&name).map_err(|_| format!("`{name}` is no header's name"))?;
        let value = HeaderValue::try_from(value).map_err(|_| format!("the value of {name} is none"))?;
        Ok::<_, String>((name, value))
    };
    let body = match (line.body, line.base64) {
        (Some(_), Some(_)) => return Err("a request has one body".into()),
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => STANDARD.decode(text).map_err(|_| "the body is not in base64")?,
        (None, None) => vec![],
    };
    Ok(Recorded {
        provider: line.provider,
        event: line.event,
        endpoint: line.endpoint,
        signed: line.signed,
        signatures: line
            .redacted
            .iter()
            .filter(|name| name.contains("signature") || name.contains("hmac"))
            .filter_map(|name| name.parse().ok())
            .collect(),
        method: Method::from_bytes(line.method.as_bytes()).map_err(|_| "a bad method")?,
        target: line.path.parse().ok().filter(|_| line.path.starts_with('/')).ok_or("a bad path")?,
        headers: line.headers.into_iter().map(field).collect::<Result<_, _>>()?,
        body: body.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::samples;

    fn recorded(fields: &[(&str, &[u8])], target: &str, body: &[u8]) -> (String, Recorded) {
        let mut line = Vec::new();
        write(&samples::request("POST", target, fields, body), &mut line).expect("in memory").expect("whole");
        let line = String::from_utf8(line).expect("JSON");
        (line.clone(), read(line.trim_end()).expect("a line"))
    }

    #[test]
    fn secrets_are_taken_out() {
        let fields: [(&str, &[u8]); 6] = [
            ("content-type", b"application/json"),
            ("authorization", b"Bearer s3cret"),
            ("stripe-signature", b"t=1,v1=s3cret"),
            ("hookway-delivery", b"req_1"),
            ("x-forwarded-for", b"203.0.113.9"),
            ("x-own", b"kept"),
        ];
        let body = br#"{"id": "evt_1", "data": {"client_secret":"s3cret", "tokens":3, "token": "s3cret", "n": 1.0}}"#;
        let (line, read) = recorded(&fields, "/stripe?token=s3cret&a=1", body);
        assert!(!line.contains("s3cret"), "{line}");
        assert_eq!(read.target, "/stripe?token=redacted&a=1");
        let names: Vec<_> = read.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["content-type", "x-own"]);
        let clean =
            r#"{"id": "evt_1", "data": {"client_secret":"redacted", "tokens":3, "token": "redacted", "n": 1.0}}"#;
        assert_eq!(read.body, clean, "every other byte stays");
        assert_eq!(read.signatures, ["stripe-signature"]);
        let body = br#"{"secrets" : ["a", {"b": 1}], "password":94716205, "secret":null, "api-key":"", "a":{"accessToken" :"s"}}"#;
        let clean = r#"{"secrets" : "redacted", "password":"redacted", "secret":null, "api-key":"", "a":{"accessToken" :"redacted"}}"#;
        assert_eq!(recorded(&[], "/", body).1.body, clean);
    }

    #[test]
    fn bodies_come_back_byte_for_byte() {
        let form: [(&str, &[u8]); 1] = [("content-type", b"application/x-www-form-urlencoded")];
        assert_eq!(recorded(&form, "/", b"token=x&text=%F0%9F%8E%89+a").1.body, "token=redacted&text=%F0%9F%8E%89+a");
        for body in [&b""[..], b"\xff\x00", b"{\r\n}", "🎉".as_bytes()] {
            assert_eq!(&recorded(&[], "/", body).1.body[..], body);
        }
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for (line, why) in [
            ("{", "EOF"),
            (r#"{"cassette":2,"path":"/"}"#, "newer"),
            (r#"{"cassette":1,"path":"x"}"#, "path"),
            (r#"{"cassette":1,"path":"/","body":"","base64":""}"#, "one body"),
            (r#"{"cassette":1,"path":"/","headers":[["a b",""]]}"#, "no header's name"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
