//! Sample events, in the shape that their providers document.
//!
//! A file holds header fields and a body. `{{…}}` in it is filled in anew each time: `now`, `now_ms`, `iso`, `iso_ms`, `uuid`, and
//! `hex`, `alnum`, `upper`, `digits` with a length. The same words mean the same value throughout one sample; a further word
//! makes another one. `"{{#…}}"` becomes a number.

use std::collections::HashMap;

use hookway_protocol::settings::nearest;
use jiff::Timestamp;
use rust_embed::RustEmbed;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::json::{self, Escapes, Layout, NoPlace};

#[derive(RustEmbed)]
#[folder = "src/samples"]
struct Files;

/// An event that nobody sent before.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// What the event puts into the head.
    pub(crate) headers: Vec<(String, String)>,
    /// The body as JSON; a form's fields as an object.
    pub(crate) body: String,
    /// Whether the body is sent as a form.
    pub(crate) is_form: bool,
}

/// Why there is no such sample.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SampleError {
    /// It is none of those that there are.
    #[error("there is no sample `{event}` of {provider}")]
    None { provider: String, event: String, near: Option<String> },
    /// Something cannot be set in it.
    #[error("`{path}` cannot be set")]
    Set {
        path: String,
        #[source]
        source: NoPlace,
    },
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    headers: HashMap<String, String>,
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(default)]
    form: bool,
}

/// The names of a provider's samples.
pub(crate) fn names(provider: &str) -> Vec<String> {
    let folder = format!("{provider}/");
    let mut names: Vec<String> = Files::iter()
        .filter_map(|path| Some(path.strip_prefix(folder.as_str())?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort_unstable();
    names
}

/// A new event of that kind, with these values in place of the sample's.
///
/// # Errors
/// There is no such sample, or no such place in it.
pub(crate) fn make(provider: &str, event: &str, set: &[(String, String)]) -> Result<Sample, SampleError> {
    // Names as the provider writes them: `orders/create`.
    let name: String = event.to_ascii_lowercase();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' }).collect();
    let Some(file) = Files::get(&format!("{provider}/{name}.json")) else {
        let names = names(provider);
        let near = nearest(&name, names.iter().map(String::as_str)).map(str::to_owned);
        return Err(SampleError::None { provider: provider.into(), event: event.into(), near });
    };
    let text = filled(&String::from_utf8_lossy(&file.data));
    let file: File<'_> = serde_json::from_str(&text).expect("a test reads all of them");
    let body = json::written(file.body.get(), Layout::Compact, Escapes::AsIs);
    let mut body = String::from_utf8(body).expect("JSON is UTF-8");
    for (path, value) in set {
        let parts: Vec<&str> = path.split('.').collect();
        // A word is a text; a form has nothing else.
        let is_json = !file.form && serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok();
        let value = if is_json { value.clone() } else { serde_json::Value::from(value.as_str()).to_string() };
        body = json::set(&body, &parts, &value).map_err(|source| SampleError::Set { path: path.clone(), source })?;
    }
    let mut headers: Vec<(String, String)> = file.headers.into_iter().collect();
    headers.sort_unstable();
    Ok(Sample { headers, body, is_form: file.form })
}

/// A text as it stands in a form (WHATWG URL, `application/x-www-form-urlencoded` serializing).
pub(crate) fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => char::from(byte).to_string(),
        b' ' => "+".to_owned(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A form's fields, one behind the other.
pub(crate) fn form(body: &str) -> String {
    let fields: Vec<(String, String)> = ordered(body);
    let pairs = fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// The fields of an object of texts, in order.
fn ordered(body: &str) -> Vec<(String, String)> {
    struct Fields(Vec<(String, String)>);
    impl<'de> Deserialize<'de> for Fields {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Fields;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object of texts")
                }

                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                    let mut fields = Vec::new();
                    while let Some((name, value)) = map.next_entry::<String, serde_json::Value>()? {
                        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                        fields.push((name, value));
                    }
                    Ok(Fields(fields))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    serde_json::from_str::<Fields>(body).map(|fields| fields.0).unwrap_or_default()
}

/// The text with its placeholders filled in.
fn filled(text: &str) -> String {
    let now = Timestamp::now();
    let mut values: HashMap<String, String> = HashMap::new();
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find("{{") {
        let Some(length) = rest[start..].find("}}") else { break };
        let words = &rest[start + 2..start + length];
        let (is_number, words) = words.strip_prefix('#').map_or((false, words), |words| (true, words));
        let value = values.entry(words.to_owned()).or_insert_with(|| value(words, now));
        let before = &rest[..start];
        let after = &rest[start + length + 2..];
        if is_number && let (Some(before), Some(after)) = (before.strip_suffix('"'), after.strip_prefix('"')) {
            out.push_str(before);
            out.push_str(value);
            rest = after;
        } else {
            out.push_str(before);
            out.push_str(value);
            rest = after;
        }
    }
    out + rest
}

fn value(words: &str, now: Timestamp) -> String {
    let mut words = words.split(' ');
    let kind = words.next().unwrap_or_default();
    let length = words.next().and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
    let random = |letters: &[u8]| {
        let mut bytes = vec![0; length];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system has random bytes");
        // Not all letters are as likely; nothing here is secret.
        bytes.iter().map(|byte| char::from(letters[usize::from(*byte) % letters.len()])).collect::<String>()
    };
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    match kind {
        "now" => now.as_second().to_string(),
        "now_ms" => now.as_millisecond().to_string(),
        "iso" => now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "iso_ms" => now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        "hex" => random(b"0123456789abcdef"),
        "alnum" => random(LETTERS),
        "upper" => random(&LETTERS[..36]),
        // Numbers do not begin with 0.
        "digits" => random(b"123456789"),
        "uuid" => {
            let mut bytes = [0; 16];
            aws_lc_rs::rand::fill(&mut bytes).expect("the system has random bytes");
            // Version 4 (RFC 9562 §5.4).
            (bytes[6], bytes[8]) = (bytes[6] & 0x0f | 0x40, bytes[8] & 0x3f | 0x80);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_can_be_made() {
        for path in Files::iter() {
            let (provider, name) = path.split_once('/').expect("a folder a provider");
            let name = name.strip_suffix(".json").expect("JSON");
            let sample = make(provider, name, &[]).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(!sample.body.contains("{{"), "{path}");
            serde_json::from_str::<serde_json::Value>(&sample.body).unwrap_or_else(|error| panic!("{path}: {error}"));
            let again = make(provider, name, &[]).expect("again");
            // A few have nothing that tells two of them apart but the time.
            let text =
                Files::get(&path).map(|file| String::from_utf8_lossy(&file.data).into_owned()).unwrap_or_default();
            let has_ids = ["uuid", "hex", "alnum", "upper", "digits"].iter().any(|kind| text.contains(kind));
            assert!(!has_ids || (sample.body, sample.headers) != (again.body, again.headers), "{path}: the same twice");
        }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let text =
            filled(r#"{"a":"{{#now}}","b":"x {{uuid}}","c":"{{uuid}}","d":"{{uuid other}}","e":"{{digits 9}}"}"#);
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert!(read["a"].is_i64(), "{text}");
        assert_eq!(read["b"], format!("x {}", read["c"].as_str().expect("a text")));
        assert_ne!(read["c"], read["d"]);
        assert_eq!(read["e"].as_str().map(str::len), Some(9));
    }

    #[test]
    fn values_are_set() {
        let set = |path: &str, value: &str| {
            let sample = make("stripe", "payment_intent.succeeded", &[(path.into(), value.into())]);
            sample.map(|sample| serde_json::from_str::<serde_json::Value>(&sample.body).expect("JSON"))
        };
        assert_eq!(set("data.object.amount", "77").expect("set")["data"]["object"]["amount"], 77);
        assert_eq!(set("data.object.currency", "chf").expect("set")["data"]["object"]["currency"], "chf");
        assert!(matches!(set("data.nothing.here", "1"), Err(SampleError::Set { .. })));
        let near = make("github", "pusch", &[]).expect_err("no such event");
        assert!(matches!(near, SampleError::None { near: Some(near), .. } if near == "push"));
    }

    #[test]
    fn forms_keep_their_order() {
        assert_eq!(form(r#"{"b":"1 &ü","a":"+49"}"#), "b=1+%26%C3%BC&a=%2B49");
    }
}
