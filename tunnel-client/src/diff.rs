//! What differs between two exchanges.

use std::time::Duration;

use hookway_protocol::headers::Headers;
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use similar::{ChangeTag, TextDiff};

use crate::content::{Kind, Plain, beginning};
use crate::exchange::{Attempt, Exchange, Kept, Outcome, Reply};
use crate::mask::{self, MASK, Secrets};

mod json;

/// A section has at most so many changes; a last one says how many more there are.
const MAX_CHANGES: usize = 2000;
/// A longer text is compared as bytes.
const MAX_TEXT: usize = 1 << 20;
const MAX_LINES: usize = 50_000;
/// A longer value is shown in part.
const MAX_VALUE: usize = 2000;
/// Then a diff of texts is finished roughly.
const PATIENCE: Duration = Duration::from_millis(500);
/// Lines around a change.
const CONTEXT: usize = 3;

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Diff {
    /// Whether nothing does but what is ignored.
    pub(crate) same: bool,
    /// Only those with something to say.
    pub(crate) sections: Vec<Section>,
}

/// What differs in one respect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) kind: SectionKind,
    pub(crate) changes: Vec<Change>,
    /// What differs as well, as it always does.
    pub(crate) ignored: Vec<String>,
}

/// How things were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SectionKind {
    Fields,
    Json,
    Text,
    Bytes,
}

/// A change, or a line of a diff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Change {
    /// Of a field, a JSON value, a property.
    Value { op: Op, path: String, a: Option<String>, b: Option<String> },
    /// A line of text.
    Line { op: Op, line: String },
}

/// What happened to it from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Op {
    Add,
    Remove,
    Change,
    Same,
    /// Lines that are the same are left out, or too many that are not.
    Gap,
}

impl Diff {
    /// What differs from `a` to `b`. Replies are those of the last attempts.
    pub(crate) fn of(a: &Exchange, b: &Exchange, secrets: Secrets) -> Self {
        let (tried_a, tried_b) = (a.attempts.last(), b.attempts.last());
        let reply = |tried: Option<&Attempt>| tried.and_then(|tried| tried.reply.clone()).unwrap_or_else(no_reply);
        let (reply_a, reply_b) = (reply(tried_a), reply(tried_b));
        let sections = [
            request_line(a, b, secrets),
            headers(
                "request headers",
                [(&a.request.headers, &a.request.trailers), (&b.request.headers, &b.request.trailers)],
                secrets,
            ),
            body("request body", (&a.request.headers, &a.request.body), (&b.request.headers, &b.request.body)),
            outcome(tried_a, tried_b),
            headers(
                "reply headers",
                [(&reply_a.headers, &reply_a.trailers), (&reply_b.headers, &reply_b.trailers)],
                secrets,
            ),
            body("reply body", (&reply_a.headers, &reply_a.body), (&reply_b.headers, &reply_b.body)),
        ];
        let sections: Vec<_> =
            sections.into_iter().filter(|s| !s.changes.is_empty() || !s.ignored.is_empty()).collect();
        Self { same: sections.iter().all(|section| section.changes.is_empty()), sections }
    }
}

fn no_reply() -> Reply {
    Reply {
        status: http::StatusCode::OK,
        headers: Headers::default(),
        body: Kept::default(),
        trailers: Headers::default(),
    }
}

/// Collects changes up to the limit.
#[derive(Debug, Default)]
struct Changes {
    list: Vec<Change>,
    more: usize,
}

impl Changes {
    fn push(&mut self, change: Change) {
        if self.list.len() < MAX_CHANGES {
            self.list.push(change);
        } else {
            self.more += 1;
        }
    }

    /// A value that is another, new or gone; nothing when it is neither.
    fn value(&mut self, path: impl Into<String>, a: Option<&str>, b: Option<&str>) {
        let op = match (a, b) {
            (Some(a), Some(b)) if a != b => Op::Change,
            (None, Some(_)) => Op::Add,
            (Some(_), None) => Op::Remove,
            _ => return,
        };
        self.push(Change::Value { op, path: path.into(), a: a.map(shortened), b: b.map(shortened) });
    }

    fn into_section(mut self, name: &'static str, kind: SectionKind, ignored: Vec<String>) -> Section {
        if self.more > 0 {
            let more = format!("{} more", self.more);
            self.list.push(match kind {
                SectionKind::Text => Change::Line { op: Op::Gap, line: more },
                _ => Change::Value { op: Op::Change, path: "…".into(), a: None, b: Some(more) },
            });
        }
        Section { name, kind, changes: self.list, ignored }
    }
}

fn shortened(value: &str) -> String {
    let shown = beginning(value, MAX_VALUE);
    let more = if shown.len() < value.len() { "…" } else { "" };
    format!("{shown}{more}")
}

fn request_line(a: &Exchange, b: &Exchange, secrets: Secrets) -> Section {
    let mut changes = Changes::default();
    changes.value("method", Some(a.request.method.as_str()), Some(b.request.method.as_str()));
    let (path_a, path_b) = (a.request.target.as_str(), b.request.target.as_str());
    match secrets {
        Secrets::Masked if path_a != path_b && mask::target(path_a) == mask::target(path_b) => {
            changes.value("path", Some(&mask::target(path_a)), Some(&format!("{} (differs)", mask::target(path_b))));
        }
        Secrets::Masked => changes.value("path", Some(&mask::target(path_a)), Some(&mask::target(path_b))),
        Secrets::Shown => changes.value("path", Some(path_a), Some(path_b)),
    }
    changes.into_section("request", SectionKind::Fields, Vec::new())
}

fn outcome(a: Option<&Attempt>, b: Option<&Attempt>) -> Section {
    let status = |tried: Option<&Attempt>| Some(tried?.reply.as_ref()?.status.as_u16().to_string());
    let error = |tried: Option<&Attempt>| match &tried?.outcome {
        Outcome::Answered(_) => None,
        Outcome::Cut(_) => Some("cut".to_owned()),
        Outcome::Failed { short, .. } => Some(short.clone()),
    };
    let mut changes = Changes::default();
    changes.value("status", status(a).as_deref(), status(b).as_deref());
    changes.value("error", error(a).as_deref(), error(b).as_deref());
    changes.into_section("reply", SectionKind::Fields, Vec::new())
}

/// Compares fields as sets of values under each name, trailers too.
fn headers(name: &'static str, [a, b]: [(&Headers, &Headers); 2], secrets: Secrets) -> Section {
    let mut changes = Changes::default();
    let mut ignored = Vec::new();
    for (prefix, a, b) in [("", a.0, b.0), ("trailer ", a.1, b.1)] {
        let mut names: Vec<&HeaderName> = a.iter().chain(b.iter()).map(|(name, _)| name).collect();
        names.sort_by_key(|name| name.as_str());
        names.dedup();
        for name in names {
            let mut left: Vec<_> = values(a, name);
            let mut right = values(b, name);
            left.retain(|value| match right.iter().position(|other| other == value) {
                Some(at) => {
                    right.remove(at);
                    false
                }
                None => true,
            });
            let path = format!("{prefix}{name}");
            if !(left.is_empty() && right.is_empty()) && is_volatile(name) {
                ignored.push(path);
                continue;
            }
            for at in 0..left.len().max(right.len()) {
                let shown = |value: Option<&&HeaderValue>| {
                    value.map(|value| mask::value(name, value.as_bytes(), secrets).into_owned())
                };
                let (a, mut b) = (shown(left.get(at)), shown(right.get(at)));
                if a.is_some() && a == b {
                    b = Some(if secrets == Secrets::Masked && mask::is_secret(name) {
                        format!("{MASK} (differs)")
                    } else {
                        format!("{} (other bytes)", b.unwrap_or_default())
                    });
                }
                changes.value(path.as_str(), a.as_deref(), b.as_deref());
            }
        }
    }
    changes.into_section(name, SectionKind::Fields, ignored)
}

fn values<'a>(headers: &'a Headers, name: &HeaderName) -> Vec<&'a HeaderValue> {
    headers.iter().filter(|(n, _)| *n == name).map(|(_, value)| value).collect()
}

/// Whether a field differs from one exchange to the next without meaning anything.
fn is_volatile(name: &HeaderName) -> bool {
    const NAMES: [&str; 15] = [
        "age",
        "cf-ray",
        "content-length",
        "date",
        "forwarded",
        "traceparent",
        "tracestate",
        "via",
        "x-amzn-trace-id",
        "x-cloud-trace-context",
        "x-correlation-id",
        "x-forwarded-for",
        "x-real-ip",
        "x-request-id",
        "x-runtime",
    ];
    let name = name.as_str();
    NAMES.contains(&name) || name.starts_with("hookway-") || name.starts_with("x-b3-")
}

fn body(name: &'static str, a: (&Headers, &Kept), b: (&Headers, &Kept)) -> Section {
    if a.1 == b.1 && a.0.get(&http::header::CONTENT_ENCODING) == b.0.get(&http::header::CONTENT_ENCODING) {
        return Changes::default().into_section(name, SectionKind::Bytes, Vec::new());
    }
    let plain = [Plain::of(a.0, a.1), Plain::of(b.0, b.1)];
    let text = |plain: &Plain| match plain.text() {
        None if plain.bytes.is_empty() => Some((Kind::Empty, String::new())),
        text => text,
    };
    let small = |text: &str| text.len() <= MAX_TEXT && text.bytes().filter(|byte| *byte == b'\n').count() <= MAX_LINES;
    let section = match (text(&plain[0]), text(&plain[1])) {
        (Some((kind_a, a)), Some((kind_b, b))) if small(&a) && small(&b) => {
            texts(name, if kind_a == kind_b { kind_a } else { Kind::Text }, &a, &b)
        }
        _ => None,
    };
    // Texts that are the same in other charsets, or differ where they are not kept, differ in their bytes.
    section.unwrap_or_else(|| bytes(name, &plain, [a.1.size, b.1.size]))
}

fn texts(name: &'static str, kind: Kind, a: &str, b: &str) -> Option<Section> {
    let mut changes = Changes::default();
    match kind {
        Kind::Json => {
            if let (Some(tree_a), Some(tree_b)) = (json::parse(a), json::parse(b)) {
                json::compare(&tree_a, &tree_b, &mut changes);
                let formatting = changes.list.is_empty() && a != b;
                let ignored = if formatting { vec!["formatting".to_owned()] } else { Vec::new() };
                return Some(changes.into_section(name, SectionKind::Json, ignored));
            }
        }
        Kind::Form => {
            form(a, b, &mut changes);
            return Some(changes.into_section(name, SectionKind::Fields, Vec::new()));
        }
        _ => {}
    }
    if a == b {
        return None;
    }
    lines(a, b, &mut changes);
    Some(changes.into_section(name, SectionKind::Text, Vec::new()))
}

/// Compares the values of each name one after the other.
fn form(a: &str, b: &str, changes: &mut Changes) {
    let (mut a, mut b) = (crate::content::form(a), crate::content::form(b));
    // Stable, so that the values of a name keep their order.
    a.sort_by(|x, y| x.name.cmp(&y.name));
    b.sort_by(|x, y| x.name.cmp(&y.name));
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let (left, right) = match (a.peek(), b.peek()) {
            (None, None) => return,
            (Some(left), Some(right)) if left.name == right.name => (a.next(), b.next()),
            (Some(left), Some(right)) if left.name > right.name => (None, b.next()),
            (None, Some(_)) => (None, b.next()),
            _ => (a.next(), None),
        };
        let name = left.or(right).map_or("", |field| &field.name);
        changes.value(shortened(name), left.map(|f| f.value.as_str()), right.map(|f| f.value.as_str()));
    }
}

fn lines(a: &str, b: &str, changes: &mut Changes) {
    let diff = TextDiff::configure().timeout(PATIENCE).diff_lines(a, b);
    let mut end = None;
    for group in diff.grouped_ops(CONTEXT) {
        let start = group.first().map_or(0, |op| op.old_range().start);
        if let Some(end) = end.replace(group.last().map_or(0, |op| op.old_range().end)) {
            changes.push(Change::Line { op: Op::Gap, line: format!("{} lines", start.saturating_sub(end)) });
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let op = match change.tag() {
                ChangeTag::Equal => Op::Same,
                ChangeTag::Delete => Op::Remove,
                ChangeTag::Insert => Op::Add,
            };
            let line = change.value();
            // The other line ends and a missing one at the end are seen only where they are the difference.
            let line = if op == Op::Same { line.trim_end_matches(['\r', '\n']) } else { line.trim_end_matches('\n') };
            changes.push(Change::Line { op, line: line.to_owned() });
        }
    }
}

fn bytes(name: &'static str, plain: &[Plain; 2], sizes: [u64; 2]) -> Section {
    let [a, b] = [&plain[0].bytes, &plain[1].bytes];
    let mut changes = Changes::default();
    changes.value("size", Some(&sizes[0].to_string()), Some(&sizes[1].to_string()));
    let common = a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count();
    if common < a.len() || common < b.len() {
        let shown = |bytes: &[u8]| {
            let hex: Vec<_> = bytes[common..].iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            format!("at {common}: {}", if hex.is_empty() { "the end".to_owned() } else { hex.join(" ") })
        };
        changes.value("first difference", Some(&shown(a)), Some(&shown(b)));
    }
    changes.into_section(name, SectionKind::Bytes, Vec::new())
}

#[cfg(test)]
mod tests;
