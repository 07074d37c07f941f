//! JSON as text: written in another form, or changed in one place; every other letter stays.

use std::collections::HashMap;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// White space between the parts of JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    Compact,
    /// One blank behind `,` and `:`, as Python writes it.
    Spaced,
    /// A part a line, so many blanks deep.
    Indented(usize),
}

/// How characters are written in JSON's strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Escapes {
    AsIs,
    /// What is no ASCII as `\u…`, as Python and PHP write it.
    Ascii,
    /// Characters for `\u…`, as JavaScript writes it.
    Plain,
    /// `\/` for `/`, as PHP writes it.
    Slashes,
}

/// Lines are indented for so many levels at most: of thousands of brackets in a row the blanks alone would fill the memory.
const DEEPEST: usize = 32;

/// The same JSON in another form. Its strings and numbers stay letter by letter.
pub(crate) fn written(text: &str, layout: Layout, escapes: Escapes) -> Vec<u8> {
    let mut out = String::with_capacity(text.len() + text.len() / 4);
    let (mut depth, mut rest) = (0_usize, text);
    let line = |out: &mut String, depth: usize| {
        if let Layout::Indented(by) = layout {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', by * depth.min(DEEPEST)));
        }
    };
    // Nobody writes more blanks than that; of nothing but brackets it would be a hundred times as much.
    let most = text.len() * 8 + (64 << 10);
    while out.len() < most {
        rest = rest.trim_start_matches([' ', '\n', '\r', '\t']);
        let Some(first) = rest.bytes().next() else { break };
        let next = match first {
            b'"' => {
                let end = string_end(rest);
                string(&rest[..end], escapes, &mut out);
                end
            }
            b'{' | b'[' => {
                let inner = rest[1..].trim_start_matches([' ', '\n', '\r', '\t']);
                out.push_str(&rest[..1]);
                if inner.starts_with(['}', ']']) {
                    out.push_str(&inner[..1]);
                    rest.len() - inner.len() + 1
                } else {
                    depth += 1;
                    line(&mut out, depth);
                    1
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push_str(&rest[..1]);
                1
            }
            b',' => {
                out.push(',');
                line(&mut out, depth);
                if matches!(layout, Layout::Spaced) {
                    out.push(' ');
                }
                1
            }
            b':' => {
                out.push(':');
                if !matches!(layout, Layout::Compact) {
                    out.push(' ');
                }
                1
            }
            // A number, or a word.
            _ => {
                let end = rest.find([' ', '\n', '\r', '\t', ',', ':', '}', ']', '"']).unwrap_or(rest.len());
                out.push_str(&rest[..end]);
                end
            }
        };
        rest = &rest[next..];
    }
    out.into_bytes()
}

/// Where the string ends that begins here.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn string(string: &str, escapes: Escapes, out: &mut String) {
    use std::fmt::Write as _;
    match escapes {
        Escapes::AsIs => out.push_str(string),
        Escapes::Ascii => string.chars().for_each(|c| {
            if c.is_ascii() {
                out.push(c);
            } else {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                    let _ = write!(out, "\\u{unit:04x}");
                });
            }
        }),
        Escapes::Plain => match serde_json::from_str::<String>(string) {
            Ok(value) => out.push_str(&serde_json::Value::from(value).to_string()),
            Err(_) => out.push_str(string),
        },
        Escapes::Slashes => {
            let bare = string.replace("\\/", "/");
            out.push_str(&bare.replace('/', "\\/"));
        }
    }
}

/// The text with another in the place of those values whose key says so, be they texts, numbers, lists or objects; `None` if it
/// is no JSON.
pub(crate) fn replaced(text: &str, is_meant: &dyn Fn(&str) -> bool, by: &str) -> Option<String> {
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find('"') {
        let end = start + string_end(&rest[start..]);
        out.push_str(&rest[..end]);
        let string = &rest[start..end];
        rest = &rest[end..];
        let Some(value) = rest.trim_start().strip_prefix(':').map(str::trim_start) else { continue };
        let is_secret = serde_json::from_str::<String>(string).is_ok_and(|key| is_meant(&key));
        if !is_secret && !value.starts_with('"') {
            continue;
        }
        let mut values = serde_json::Deserializer::from_str(value).into_iter::<IgnoredAny>();
        let length = if values.next().is_some_and(|value| value.is_ok()) { values.byte_offset() } else { 0 };
        let is_empty = matches!(&value[..length], "" | "\"\"" | "null" | "true" | "false" | "[]" | "{}");
        if !is_secret {
            // JSON in a text, as some services wrap it.
            let inner =
                serde_json::from_str::<String>(&value[..length]).ok().filter(|inner| inner.starts_with(['{', '[']));
            let clean = inner.as_ref().and_then(|inner| replaced(inner, is_meant, by));
            if let Some(clean) = clean.filter(|clean| Some(clean) != inner.as_ref()) {
                out.push_str(&rest[..rest.len() - value.len()]);
                out.push_str(&serde_json::Value::from(clean).to_string());
                rest = &value[length..];
            }
        } else if !is_empty {
            out.push_str(&rest[..rest.len() - value.len()]);
            out.push_str(&serde_json::Value::from(by).to_string());
            rest = &value[length..];
        }
    }
    Some(out + rest)
}

/// Why a value cannot be put there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// The text is no JSON.
    #[error("it is no JSON")]
    NoJson,
    /// A part of the path leads nowhere.
    #[error("there is no `{part}` in it; there is {there}")]
    None { part: String, there: String },
}

/// Puts a value (itself JSON) in the place of the one at the path: keys of objects, numbers from 0 of lists. An object gets
/// the last key of the path if it has none such.
///
/// # Errors
/// There is no such place.
pub(crate) fn set(text: &str, path: &[&str], value: &str) -> Result<String, NoPlace> {
    let (mut at, mut length) = (0, text.len());
    for (depth, part) in path.iter().enumerate() {
        let here = &text[at..at + length];
        let raw = match here.trim_start().as_bytes().first() {
            Some(b'{') => {
                let fields: HashMap<String, &RawValue> = serde_json::from_str(here).map_err(|_| NoPlace::NoJson)?;
                match fields.get(*part) {
                    Some(raw) => *raw,
                    None if depth + 1 == path.len() => {
                        let end = at + here.rfind('}').ok_or(NoPlace::NoJson)?;
                        let comma = if fields.is_empty() { "" } else { "," };
                        let key = serde_json::Value::from(*part);
                        return Ok(format!("{}{comma}{key}:{value}{}", &text[..end], &text[end..]));
                    }
                    None => {
                        let mut there: Vec<&str> = fields.keys().map(String::as_str).collect();
                        there.sort_unstable();
                        return Err(NoPlace::None { part: (*part).to_owned(), there: there.join(", ") });
                    }
                }
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(here).map_err(|_| NoPlace::NoJson)?;
                let item = part.parse::<usize>().ok().and_then(|index| items.get(index).copied());
                item.ok_or_else(|| NoPlace::None {
                    part: (*part).to_owned(),
                    there: match items.len() {
                        0 => "an empty list".into(),
                        count => format!("a list of {count}"),
                    },
                })?
            }
            _ => return Err(NoPlace::None { part: (*part).to_owned(), there: "a plain value".into() }),
        };
        // The value is a part of the text: it begins there as far behind the text's beginning as it lies behind it.
        at = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        length = raw.get().len();
    }
    Ok([&text[..at], value, &text[at + length..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(Layout::Compact, Escapes::AsIs, r#"{"b":[1,2.50,{}],"a":"é/\"x","c":[]}"#)]
    #[case(Layout::Spaced, Escapes::Ascii, r#"{"b": [1, 2.50, {}], "a": "\u00e9/\"x", "c": []}"#)]
    #[case(Layout::Compact, Escapes::Slashes, r#"{"b":[1,2.50,{}],"a":"é\/\"x","c":[]}"#)]
    #[case(
        Layout::Indented(2),
        Escapes::AsIs,
        "{\n  \"b\": [\n    1,\n    2.50,\n    {}\n  ],\n  \"a\": \"é/\\\"x\",\n  \"c\": []\n}"
    )]
    fn json_is_written_anew(#[case] layout: Layout, #[case] escapes: Escapes, #[case] expected: &str) {
        let text = "{ \"b\" :[1 , 2.50,{ } ],\n\"a\":\"é/\\\"x\" , \"c\" : [\n] }";
        assert_eq!(String::from_utf8_lossy(&written(text, layout, escapes)), expected);
    }

    #[rstest]
    #[case(&["b", "1", "c"], "5", r#"{"a": 1.0, "b" :[0,{"c": 5}]}"#)]
    #[case(&["a"], "null", r#"{"a": null, "b" :[0,{"c": "x"}]}"#)]
    #[case(&["b", "1", "d"], "true", r#"{"a": 1.0, "b" :[0,{"c": "x","d":true}]}"#)]
    fn one_value_is_changed(#[case] path: &[&str], #[case] value: &str, #[case] expected: &str) {
        assert_eq!(set(r#"{"a": 1.0, "b" :[0,{"c": "x"}]}"#, path, value).as_deref(), Ok(expected));
    }

    #[rstest]
    #[case(&["x", "y"], "there is no `x` in it; there is a, b")]
    #[case(&["b", "7"], "there is no `7` in it; there is a list of 1")]
    #[case(&["a", "y"], "there is no `y` in it; there is a plain value")]
    fn a_path_that_leads_nowhere(#[case] path: &[&str], #[case] expected: &str) {
        assert_eq!(set(r#"{"a":1,"b":[2]}"#, path, "1").expect_err("no place").to_string(), expected);
        assert_eq!(set("{", path, "1"), Err(NoPlace::NoJson));
    }

    #[test]
    fn escapes_can_be_taken_back() {
        assert_eq!(written(r#"["\u00e9\/"]"#, Layout::Compact, Escapes::Plain), r#"["é/"]"#.as_bytes());
    }
}
