//! Text from outside without what would steer a terminal: control characters, and those that turn the direction of
//! writing.

use std::io::{self, Write};

use serde::Serialize;

/// At most `most` characters.
pub(crate) fn text(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).map(|c| if steers(c) { '�' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

/// The same, line by line.
pub(crate) fn lines(all: &str) -> String {
    all.lines().map(|line| text(line, usize::MAX)).collect::<Vec<_>>().join("\n")
}

/// Writes a value in JSON: what JSON lets through and a terminal does not is escaped, and so stays what it is.
///
/// # Errors
/// It cannot be written.
pub(crate) fn json(out: impl Write, value: &impl Serialize) -> io::Result<()> {
    Ok(value.serialize(&mut serde_json::Serializer::with_formatter(out, Escaped))?)
}

struct Escaped;

impl serde_json::ser::Formatter for Escaped {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| steers(*c)) {
            out.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        out.write_all(rest.as_bytes())
    }
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut() {
        assert_eq!(text("abc\u{202e}", 4), "abc�");
        assert_eq!(text("abcde", 4), "abc…");
        assert_eq!(lines("a\u{9b}\r\nb"), "a�\nb");
    }

    #[test]
    fn json_means_the_same_and_steers_nothing() {
        let value = serde_json::json!({"a\u{202e}\u{e0041}": "\u{9b}\n\u{1b}[31m\"é", "b": [1, null]});
        let mut out = Vec::new();
        json(&mut out, &value).expect("written");
        let text = String::from_utf8(out).expect("text");
        assert!(!text.chars().any(steers), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }
}
