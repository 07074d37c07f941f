//! What a body is, for showing it: inflated, decoded, told apart. What is kept is never altered.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hookway_protocol::headers::Headers;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde::Serialize;
use serde::de::IgnoredAny;

use crate::exchange::Kept;
use crate::mask;
use multipart::Part;

pub(crate) mod charset;
pub(crate) mod inflate;
mod multipart;

/// So much text is shown.
const MAX_TEXT: usize = 2 << 20;
/// So much is shown as hex.
const MAX_HEX: usize = 256 << 10;
/// A data URL is at most so long.
const MAX_IMAGE: usize = 4 << 20;
/// So many fields of a form are shown.
const MAX_FIELDS: usize = 10_000;

/// A body for display.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Content {
    /// The size of the whole body as sent.
    pub(crate) size: u64,
    /// So many bytes of it are kept.
    pub(crate) kept: usize,
    pub(crate) content_type: Option<String>,
    /// The codings in the order in which they were applied.
    pub(crate) encodings: Vec<String>,
    /// `None` when nothing was inflated.
    pub(crate) inflated_size: Option<usize>,
    /// There would be more to inflate.
    pub(crate) inflated_cut: bool,
    pub(crate) encoding_error: Option<String>,
    pub(crate) kind: Kind,
    pub(crate) charset: Option<&'static str>,
    pub(crate) text: Option<String>,
    pub(crate) text_cut: bool,
    pub(crate) json_error: Option<JsonError>,
    pub(crate) fields: Option<Vec<FormField>>,
    pub(crate) parts: Option<Vec<Part>>,
    /// A data URL.
    pub(crate) image: Option<String>,
    /// The beginning of the inflated bytes.
    pub(crate) base64: String,
    pub(crate) base64_cut: bool,
}

/// What a body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    #[default]
    Empty,
    Json,
    Form,
    Multipart,
    Xml,
    Text,
    Image,
    Binary,
}

/// Where JSON is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct JsonError {
    /// From 1.
    pub(crate) line: usize,
    /// From 1, in UTF-16 units.
    pub(crate) column: usize,
    /// From 0, in UTF-16 units of the text.
    pub(crate) offset: usize,
    pub(crate) message: String,
}

/// A field of a form, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct FormField {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl Content {
    /// What a body with these headers is.
    pub(crate) fn of(headers: &Headers, kept: &Kept) -> Self {
        Plain::of(headers, kept).describe(Level::Whole)
    }

    /// What a part of a multipart body is: never inflated or taken apart again, which a hundred parts would make costly.
    fn of_part(headers: &Headers, bytes: Bytes) -> Self {
        let kept = Kept { size: bytes.len() as u64, bytes };
        Plain::as_sent(headers, &kept).describe(Level::Part)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Whole,
    Part,
}

/// A body without its content codings.
#[derive(Clone, Debug)]
pub(crate) struct Plain {
    pub(crate) bytes: Bytes,
    /// Whether its end is missing.
    pub(crate) cut: bool,
    media: Media,
    /// What is known of it so far.
    content: Content,
}

impl Plain {
    /// The bytes that the content codings of a body hide, as far as they can be had; else the body as sent.
    pub(crate) fn of(headers: &Headers, kept: &Kept) -> Self {
        let mut plain = Self::as_sent(headers, kept);
        plain.content.encodings = encodings(headers);
        if plain.content.encodings.is_empty() || kept.bytes.is_empty() {
            return plain;
        }
        let inflated = inflate::inflate(&kept.bytes, &plain.content.encodings, kept.is_cut());
        plain.content.inflated_cut = inflated.cut;
        plain.content.encoding_error = inflated.error;
        // Nothing came out of it: it may be that the header lies and the body is plain.
        if plain.content.encoding_error.is_none() || !inflated.bytes.is_empty() {
            plain.content.inflated_size = Some(inflated.bytes.len());
            plain.cut |= inflated.cut;
            plain.bytes = inflated.bytes.into();
        }
        plain
    }

    fn as_sent(headers: &Headers, kept: &Kept) -> Self {
        let content_type = headers.get(&CONTENT_TYPE).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let media = Media::of(content_type.as_deref().unwrap_or_default());
        let content = Content { size: kept.size, kept: kept.bytes.len(), content_type, ..Content::default() };
        Self { bytes: kept.bytes.clone(), cut: kept.is_cut(), media, content }
    }

    /// Its text, if it is text of any kind.
    pub(crate) fn text(&self) -> Option<(Kind, String)> {
        let (kind, decoded) = self.kind();
        matches!(kind, Kind::Json | Kind::Form | Kind::Xml | Kind::Text).then(|| (kind, decoded.text.into_owned()))
    }

    fn kind(&self) -> (Kind, charset::Decoded<'_>) {
        let none = charset::Decoded::default;
        if self.bytes.is_empty() {
            return (if self.content.size == 0 || !self.cut { Kind::Empty } else { Kind::Binary }, none());
        }
        if self.media.is_svg() || image_type(&self.bytes).is_some() {
            return (Kind::Image, none());
        }
        if self.media.is_framed() {
            return (Kind::Binary, none());
        }
        if self.media.essence.starts_with("multipart/") && self.media.parameter("boundary").is_some() {
            return (Kind::Multipart, none());
        }
        let decoded = charset::decode(&self.bytes, self.media.parameter("charset"));
        let kind = self.kind_of_text(&decoded);
        (kind, decoded)
    }

    fn kind_of_text(&self, decoded: &charset::Decoded<'_>) -> Kind {
        let start = decoded.text.trim_start();
        if self.media.is_json() && !start.starts_with('<') && !(decoded.wrong && decoded.has_controls()) {
            return Kind::Json;
        }
        // A cut body may end in the middle of a character.
        let wrong = decoded.wrong && !self.media.is_text() && !self.cut;
        if wrong || decoded.has_controls() {
            return Kind::Binary;
        }
        if self.media.essence == "application/x-www-form-urlencoded" {
            return Kind::Form;
        }
        if self.media.is_xml() || start.starts_with("<?xml") {
            return Kind::Xml;
        }
        if start.starts_with(['{', '[']) && self.is_json(&decoded.text) { Kind::Json } else { Kind::Text }
    }

    fn is_json(&self, text: &str) -> bool {
        match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => true,
            Err(e) => self.cut && e.is_eof(),
        }
    }

    fn describe(self, level: Level) -> Content {
        let (kind, decoded) = self.kind();
        let kind = if kind == Kind::Multipart && level == Level::Part { Kind::Binary } else { kind };
        let mut content = Content { kind, ..self.content.clone() };
        match kind {
            Kind::Multipart => {
                let boundary = self.media.parameter("boundary").unwrap_or_default();
                content.parts = Some(multipart::parts(&self.bytes, boundary));
            }
            Kind::Image => content.image = data_url(&self.bytes),
            Kind::Json if !self.cut => content.json_error = json_error(&decoded.text),
            Kind::Form => content.fields = Some(form(&decoded.text)),
            _ => {}
        }
        if matches!(kind, Kind::Json | Kind::Form | Kind::Xml | Kind::Text) {
            content.charset = Some(decoded.charset);
            let shown = beginning(&decoded.text, MAX_TEXT);
            content.text_cut = shown.len() < decoded.text.len();
            content.text = Some(shown.to_owned());
        }
        let hex = &self.bytes[..self.bytes.len().min(MAX_HEX)];
        content.base64 = STANDARD.encode(hex);
        content.base64_cut = hex.len() < self.bytes.len();
        content
    }
}

/// The content codings but `identity`, lower case, in the order in which they were applied.
fn encodings(headers: &Headers) -> Vec<String> {
    let lists = headers.iter().filter(|(name, _)| **name == CONTENT_ENCODING).filter_map(|(_, v)| v.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(|coding| coding.trim().to_ascii_lowercase())
        .filter(|coding| !coding.is_empty() && coding != "identity")
        .collect()
}

/// A content type taken apart.
#[derive(Clone, Debug)]
struct Media {
    /// Type and subtype in lower case.
    essence: String,
    parameters: Vec<(String, String)>,
}

impl Media {
    fn of(content_type: &str) -> Self {
        let (essence, mut rest) = content_type.split_once(';').unwrap_or((content_type, ""));
        let mut parameters = Vec::new();
        while let Some((name, value)) = rest.split_once('=') {
            let value = value.trim_start();
            let (value, after) = match value.strip_prefix('"').and_then(|v| v.split_once('"')) {
                Some((quoted, after)) => (quoted, after.split_once(';').map_or("", |(_, after)| after)),
                None => value.split_once(';').unwrap_or((value, "")),
            };
            parameters.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            rest = after;
        }
        Self { essence: essence.trim().to_ascii_lowercase(), parameters }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find_map(|(n, v)| (n == name && !v.is_empty()).then_some(v.as_str()))
    }

    fn is_json(&self) -> bool {
        matches!(
            self.essence.as_str(),
            "application/json" | "text/json" | "application/x-json" | "application/csp-report"
        ) || self.essence.ends_with("+json")
    }

    fn is_xml(&self) -> bool {
        matches!(self.essence.as_str(), "application/xml" | "text/xml") || self.essence.ends_with("+xml")
    }

    fn is_svg(&self) -> bool {
        self.essence == "image/svg+xml"
    }

    fn is_text(&self) -> bool {
        self.essence.starts_with("text/") || self.is_xml() || self.essence == "application/x-www-form-urlencoded"
    }

    /// Whether it is messages with their lengths before them, which may look like text by chance.
    fn is_framed(&self) -> bool {
        ["application/grpc", "application/connect+", "application/x-protobuf", "application/protobuf"]
            .iter()
            .any(|start| self.essence.starts_with(start))
    }
}

/// The type of an image by its first bytes.
fn image_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

fn data_url(bytes: &[u8]) -> Option<String> {
    let start = format!("data:{};base64,", image_type(bytes).unwrap_or("image/svg+xml"));
    (start.len() + bytes.len().div_ceil(3) * 4 <= MAX_IMAGE).then(|| start + &STANDARD.encode(bytes))
}

/// The fields of a form in their order, duplicates too.
pub(crate) fn form(text: &str) -> Vec<FormField> {
    let pairs = text.trim_end_matches(['\r', '\n']).split('&').filter(|pair| !pair.is_empty());
    let field = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        FormField { name: mask::decoded(name), value: mask::decoded(value) }
    };
    pairs.take(MAX_FIELDS).map(field).collect()
}

/// At most so many bytes of a text, whole characters.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn json_error(text: &str) -> Option<JsonError> {
    let e = serde_json::from_str::<IgnoredAny>(text).err()?;
    let start: usize = text.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum();
    // serde_json counts the bytes of the line up to and with the wrong one.
    let at = if e.is_eof() { text.len() } else { beginning(text, start + e.column().saturating_sub(1)).len() };
    let before = |from: usize| text.get(from..at).map_or(0, |part| part.encode_utf16().count());
    let message = e.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message).to_owned();
    Some(JsonError { line: e.line(), column: before(start) + 1, offset: before(0), message })
}

#[cfg(test)]
mod tests;
