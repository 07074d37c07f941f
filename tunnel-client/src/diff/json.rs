//! JSON compared by its structure: numbers as they are written, keys as often as they are there.

use std::collections::HashMap;

use serde::de::IgnoredAny;

use super::Changes;
use crate::content::beginning;

/// Deeper JSON is compared as text: the walk through it recurses.
const MAX_DEPTH: usize = 100;
/// Longer keys are shown in part.
const MAX_KEY: usize = 100;

/// A value and how it is written.
#[derive(Debug)]
pub(super) struct Node<'a> {
    written: &'a str,
    value: Value<'a>,
}

#[derive(Debug)]
enum Value<'a> {
    /// A number, `true`, `false` or `null`.
    Bare,
    String(String),
    Array(Vec<Node<'a>>),
    Object(Vec<(String, Node<'a>)>),
}

/// The tree of a text; `None` if it is no JSON or too deep.
pub(super) fn parse(text: &str) -> Option<Node<'_>> {
    // From here on the text is known to be right, and only has to be taken apart.
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    Parser { text, at: 0 }.node(0)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn node(&mut self, depth: usize) -> Option<Node<'a>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let first = self.peek()?;
        let start = self.at;
        let value = match first {
            b'{' => {
                let mut fields = Vec::new();
                self.list(b'}', |parser| {
                    parser.peek()?;
                    let key = parser.string()?;
                    parser.peek()?;
                    parser.at += 1; // the colon
                    fields.push((key, parser.node(depth + 1)?));
                    Some(())
                })?;
                Value::Object(fields)
            }
            b'[' => {
                let mut items = Vec::new();
                self.list(b']', |parser| {
                    items.push(parser.node(depth + 1)?);
                    Some(())
                })?;
                Value::Array(items)
            }
            b'"' => Value::String(self.string()?),
            _ => {
                let rest = &self.text[self.at..];
                self.at += rest.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(rest.len());
                Value::Bare
            }
        };
        Some(Node { written: self.text.get(start..self.at)?, value })
    }

    /// Items with commas between them, up to `end`.
    fn list(&mut self, end: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.at += 1;
        while self.peek()? != end {
            item(self)?;
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        self.at += 1;
        while *bytes.get(self.at)? != b'"' {
            self.at += if bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        let written = self.text.get(start..self.at)?;
        // Half a surrogate pair is right by the grammar, and no text.
        Some(serde_json::from_str(written).unwrap_or_else(|_| written.to_owned()))
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..)?;
        self.at += rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count();
        self.text.as_bytes().get(self.at).copied()
    }
}

/// Adds what differs from `a` to `b`.
pub(super) fn compare(a: &Node<'_>, b: &Node<'_>, changes: &mut Changes) {
    at(&mut "$".to_owned(), a, b, changes);
}

/// One path grows and shrinks: to build it anew for each value would cost gigabytes of copying.
fn at(path: &mut String, a: &Node<'_>, b: &Node<'_>, changes: &mut Changes) {
    match (&a.value, &b.value) {
        (Value::Object(fields_a), Value::Object(fields_b)) => objects(path, fields_a, fields_b, changes),
        (Value::Array(items_a), Value::Array(items_b)) => {
            let length = path.len();
            for i in 0..items_a.len().max(items_b.len()) {
                path.push_str(&format!("[{i}]"));
                pair(path, items_a.get(i), items_b.get(i), changes);
                path.truncate(length);
            }
        }
        (Value::String(text_a), Value::String(text_b)) if text_a == text_b => {}
        _ => changes.value(path.as_str(), Some(a.written), Some(b.written)),
    }
}

fn pair(path: &mut String, a: Option<&Node<'_>>, b: Option<&Node<'_>>, changes: &mut Changes) {
    match (a, b) {
        (Some(a), Some(b)) => at(path, a, b, changes),
        (a, b) => changes.value(path.as_str(), a.map(|a| a.written), b.map(|b| b.written)),
    }
}

/// Compares the values of each key, the first one with the first one and so on.
fn objects(path: &mut String, a: &[(String, Node<'_>)], b: &[(String, Node<'_>)], changes: &mut Changes) {
    let length = path.len();
    let mut others: HashMap<_, _> = numbered(b).collect();
    for ((key, time), node) in numbered(a) {
        push_member(path, key, time);
        pair(path, Some(node), others.remove(&(key, time)), changes);
        path.truncate(length);
    }
    for ((key, time), node) in numbered(b).filter(|(place, _)| others.contains_key(place)) {
        push_member(path, key, time);
        pair(path, None, Some(node), changes);
        path.truncate(length);
    }
}

/// The fields and the how-manieth of its key each one is.
fn numbered<'n, 'a>(fields: &'n [(String, Node<'a>)]) -> impl Iterator<Item = ((&'n str, usize), &'n Node<'a>)> {
    let mut seen = HashMap::<&str, usize>::new();
    fields.iter().map(move |(key, node)| {
        let times = seen.entry(key).or_default();
        *times += 1;
        ((key.as_str(), *times), node)
    })
}

fn push_member(path: &mut String, key: &str, time: usize) {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let key = beginning(key, MAX_KEY);
    if plain {
        path.extend([".", key]);
    } else {
        path.push_str(&format!("[{}]", serde_json::Value::from(key)));
    }
    if time > 1 {
        path.push_str(&format!(" (again, {time})"));
    }
}
