//! The language in which exchanges are looked for: terms that must all hold. One for the command line and the page.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::settings::{duration, nearest};
use http::header::CONTENT_ENCODING;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

use crate::content::Plain;
use crate::exchange::{Exchange, Outcome};

/// Which exchanges are wanted; the default takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Method(String),
    /// The beginning, or with `*` for anything the whole.
    Path(String),
    Status(Status),
    Endpoint(String),
    Signature(String),
    /// A provider's name.
    Provider(String),
    /// The kind of event: its beginning, or with `*` for anything the whole.
    Event(String),
    Body(String),
    Header(String, String),
    Since(Moment),
    Until(Moment),
    Latency(Compared, Duration),
    Is(State),
    /// A part of the id.
    Id(String),
    /// Anywhere in path, header fields or bodies.
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Status {
    /// `404`, or `4xx` by its first digit.
    Like(String),
    /// No answer from the app.
    Error,
    Compared(Compared, u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Above,
    AtLeast,
    Below,
    AtMost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// So long before the filter is used.
    Ago(Duration),
    At(Timestamp),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Replay,
    Edited,
    Failed,
    Pending,
    Pinned,
    Duplicate,
    Resigned,
    Queued,
}

const STATES: [(&str, State); 8] = [
    ("replay", State::Replay),
    ("edited", State::Edited),
    ("failed", State::Failed),
    ("pending", State::Pending),
    ("pinned", State::Pinned),
    ("duplicate", State::Duplicate),
    ("resigned", State::Resigned),
    ("queued", State::Queued),
];
const KEYS: [&str; 13] = [
    "method", "path", "status", "sig", "provider", "event", "endpoint", "body", "since", "until", "latency", "is", "id",
];
const SIGNATURES: [&str; 3] = ["ok", "bad", "none"];

/// Why a text is no filter, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at {})", .at + 1)]
pub(crate) struct InvalidFilter {
    /// What is wrong.
    pub(crate) message: String,
    /// Where, in UTF-16 units from 0, as a page counts.
    pub(crate) at: usize,
    /// How much of it, likewise.
    pub(crate) length: usize,
}

impl Filter {
    /// Whether it takes everything.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it looks into bodies.
    pub(crate) fn needs_bodies(&self) -> bool {
        self.0.iter().any(|term| matches!(term.test, Test::Body(_) | Test::Text(_)))
    }

    /// Whether it takes this exchange.
    pub(crate) fn matches(&self, exchange: &Exchange) -> bool {
        self.0.iter().all(|term| term.test.holds(exchange) != term.negated)
    }

    /// This filter, and what else must hold: exchanges with this text anywhere.
    pub(crate) fn and_text(mut self, text: &str) -> Self {
        self.0.push(Term { negated: false, test: Test::Text(text.to_owned()) });
        self
    }

    /// Both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl Test {
    fn holds(&self, exchange: &Exchange) -> bool {
        let last = exchange.attempts.last();
        let request = &exchange.request;
        match self {
            Self::Method(method) => request.method.as_str().eq_ignore_ascii_case(method),
            Self::Path(pattern) => fits(pattern, request.target.as_str()),
            Self::Status(wanted) => last.is_some_and(|last| wanted.is(&last.outcome)),
            Self::Endpoint(pattern) => match pattern.contains('*') {
                true => fits(pattern, exchange.endpoint.as_str()),
                false => exchange.endpoint.as_str() == pattern,
            },
            Self::Signature(wanted) => wanted == exchange.webhook.signature.as_str(),
            Self::Provider(name) => {
                exchange.webhook.provider.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(name))
            }
            Self::Event(pattern) => exchange.webhook.event.as_ref().is_some_and(|event| fits(pattern, event)),
            Self::Body(text) => bodies(exchange).any(|body| contains(&body, text)),
            Self::Header(name, text) => {
                headers(exchange).any(|(own, value)| own.eq_ignore_ascii_case(name) && contains(value, text))
            }
            Self::Since(moment) => exchange.received_at >= moment.timestamp(),
            Self::Until(moment) => exchange.received_at <= moment.timestamp(),
            Self::Latency(compared, limit) => last.is_some_and(|last| compared.is(&last.duration, limit)),
            Self::Is(state) => match state {
                State::Replay => exchange.replay_of.is_some(),
                State::Edited => exchange.edited,
                State::Failed => exchange.is_failed(),
                State::Pending => last.is_none(),
                State::Pinned => exchange.pinned,
                State::Duplicate => exchange.webhook.duplicate_of.is_some(),
                State::Resigned => exchange.webhook.resigned,
                State::Queued => exchange.queued_for().is_some(),
            },
            Self::Id(part) => contains(exchange.id.to_string().as_bytes(), part),
            Self::Text(text) => {
                contains(request.target.as_str().as_bytes(), text)
                    || headers(exchange).any(|(name, value)| contains(name.as_bytes(), text) || contains(value, text))
                    || bodies(exchange).any(|body| contains(&body, text))
            }
        }
    }
}

/// The bodies as they can be read: inflated.
fn bodies(exchange: &Exchange) -> impl Iterator<Item = Bytes> {
    let replies = exchange.attempts.iter().filter_map(|attempt| attempt.reply.as_ref());
    let request = (&exchange.request.headers, &exchange.request.body);
    std::iter::once(request).chain(replies.map(|reply| (&reply.headers, &reply.body))).map(|(headers, body)| {
        match headers.get(&CONTENT_ENCODING) {
            Some(_) => Plain::of(headers, body).bytes,
            None => body.bytes.clone(),
        }
    })
}

fn headers(exchange: &Exchange) -> impl Iterator<Item = (&str, &[u8])> {
    let replies = exchange.attempts.iter().filter_map(|attempt| attempt.reply.as_ref());
    let all = std::iter::once(&exchange.request.headers).chain(replies.map(|reply| &reply.headers));
    all.flat_map(|headers| headers.iter()).map(|(name, value)| (name.as_str(), value.as_bytes()))
}

/// Whether the text is in there, in whatever case.
fn contains(bytes: &[u8], text: &str) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes()))
}

/// Whether a text begins so, or fits a pattern in which `*` is anything.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    last.is_none_or(|last| last.is_empty() || text.ends_with(last))
}

impl Status {
    fn is(&self, outcome: &Outcome) -> bool {
        let status = match outcome {
            Outcome::Failed { .. } => return *self == Self::Error,
            Outcome::Answered(status) | Outcome::Cut(status) => status,
        };
        match self {
            Self::Like(text) => {
                text.strip_suffix("xx").map_or(text == status.as_str(), |c| status.as_str().starts_with(c))
            }
            Self::Error => false,
            Self::Compared(compared, limit) => compared.is(&status.as_u16(), limit),
        }
    }
}

impl Compared {
    fn is<T: PartialOrd>(self, value: &T, limit: &T) -> bool {
        match self {
            Self::Above => value > limit,
            Self::AtLeast => value >= limit,
            Self::Below => value < limit,
            Self::AtMost => value <= limit,
        }
    }

    /// What stands before a value, and the value.
    fn split(text: &str) -> (Option<Self>, &str) {
        let all = [(">=", Self::AtLeast), ("<=", Self::AtMost), (">", Self::Above), ("<", Self::Below)];
        let found = all.into_iter().find_map(|(sign, compared)| Some((Some(compared), text.strip_prefix(sign)?)));
        found.unwrap_or((None, text))
    }
}

impl Moment {
    fn timestamp(self) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => Timestamp::now().saturating_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    /// `15m`, `2026-11-21T10:00:00Z`, or without a zone or date: this machine's, today.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ago) = duration(text) {
            return Ok(Self::Ago(ago));
        }
        let zone = TimeZone::system;
        let local = |at: DateTime| at.to_zoned(zone()).map(|at| at.timestamp()).ok();
        let today = || jiff::Zoned::now().date();
        let at = text.parse::<Timestamp>().ok();
        let at = at.or_else(|| local(text.parse::<DateTime>().ok()?));
        let at = at.or_else(|| local(text.parse::<Date>().ok()?.to_datetime(Time::midnight())));
        let at = at.or_else(|| local(today().to_datetime(text.parse::<Time>().ok()?)));
        at.map(Self::At).ok_or_else(|| {
            format!("`{text}` is no time; a time is such as 15m, 2h, 10:30, 2026-11-21T10:00 or 2026-11-21T10:00:00Z")
        })
    }
}

/// A word of a filter: where it stands, and its parts.
struct Word {
    start: usize,
    end: usize,
    negated: bool,
    key: Option<String>,
    value: String,
    /// Where the value begins.
    value_at: usize,
}

impl FromStr for Filter {
    type Err = InvalidFilter;

    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        let units = |bytes: &str| bytes.encode_utf16().count();
        let wrong = |message: String, start: usize, end: usize| InvalidFilter {
            message,
            at: units(&text[..start]),
            length: units(&text[start..end]),
        };
        let term = |word: Word| {
            let value_at = word.value_at;
            let test = test(word.key.as_deref(), &word.value).map_err(|Wrong { message, in_key }| match in_key {
                true => wrong(message, word.start, value_at),
                false => wrong(message, value_at.min(word.end), word.end),
            })?;
            Ok(Term { negated: word.negated, test })
        };
        words(text)
            .map_err(|start| wrong("the quote has no end".into(), start, text.len()))?
            .into_iter()
            .map(term)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// The words; where a quote begins that does not end.
fn words(text: &str) -> Result<Vec<Word>, usize> {
    let mut words = Vec::new();
    let mut rest = text.char_indices().peekable();
    while let Some(&(start, c)) = rest.peek() {
        if c.is_whitespace() {
            rest.next();
            continue;
        }
        let mut word = Word { start, end: start, negated: false, key: None, value: String::new(), value_at: start };
        if c == '-' && text[start + 1..].chars().next().is_some_and(|next| !next.is_whitespace()) {
            rest.next();
            (word.negated, word.value_at) = (true, start + 1);
        }
        while let Some(&(at, c)) = rest.peek()
            && !c.is_whitespace()
        {
            rest.next();
            word.end = at + c.len_utf8();
            match c {
                ':' if word.key.is_none() && !word.value.is_empty() && !text[word.value_at..].starts_with('"') => {
                    (word.key, word.value_at) = (Some(std::mem::take(&mut word.value)), word.end);
                }
                '"' => {
                    let mut closed = false;
                    while let Some((inner, c)) = rest.next() {
                        word.end = inner + c.len_utf8();
                        match c {
                            '"' => {
                                closed = true;
                                break;
                            }
                            '\\' if rest.peek().is_some_and(|(_, next)| matches!(next, '"' | '\\')) => {
                                word.value.extend(rest.next().map(|(_, next)| next));
                            }
                            c => word.value.push(c),
                        }
                    }
                    if !closed {
                        return Err(at);
                    }
                }
                c => word.value.push(c),
            }
        }
        words.push(word);
    }
    Ok(words)
}

/// What is wrong with a word, and whether it is its key.
struct Wrong {
    message: String,
    in_key: bool,
}

fn test(key: Option<&str>, value: &str) -> Result<Test, Wrong> {
    let in_value = |message: String| Wrong { message, in_key: false };
    let Some(key) = key else { return Ok(Test::Text(value.to_owned())) };
    let one_of = |known: &[&str]| format!("`{value}` is none of {}", known.join(", "));
    if value.is_empty() {
        return Err(Wrong { message: format!("`{key}:` wants a value"), in_key: true });
    }
    let owned = value.to_owned();
    Ok(match key {
        "method" => Test::Method(owned),
        "path" => Test::Path(owned),
        "status" => Test::Status(status(value).map_err(in_value)?),
        "endpoint" => Test::Endpoint(owned),
        "sig" if SIGNATURES.contains(&value) => Test::Signature(owned),
        "sig" => return Err(in_value(one_of(&SIGNATURES))),
        "provider" => Test::Provider(owned),
        "event" => Test::Event(owned),
        "body" => Test::Body(owned),
        "since" => Test::Since(value.parse().map_err(in_value)?),
        "until" => Test::Until(value.parse().map_err(in_value)?),
        "latency" => {
            let (compared, limit) = Compared::split(value);
            let limit = duration(limit).map_err(|_| in_value(format!("`{value}` is no latency, such as >200ms")))?;
            Test::Latency(compared.unwrap_or(Compared::AtLeast), limit)
        }
        "is" => {
            let state = STATES.iter().find(|(name, _)| *name == value);
            let names = STATES.map(|(name, _)| name);
            Test::Is(state.ok_or_else(|| in_value(one_of(&names)))?.1)
        }
        "id" => Test::Id(owned),
        _ => match key.strip_prefix("header.").filter(|name| !name.is_empty()) {
            Some(name) => Test::Header(name.to_owned(), owned),
            None => return Err(Wrong { message: unknown(key), in_key: true }),
        },
    })
}

fn unknown(key: &str) -> String {
    match nearest(key, KEYS) {
        Some(near) => format!("`{key}:` is nothing to filter by; did you mean `{near}:`?"),
        None => format!("`{key}:` is nothing to filter by; there are {}: and header.NAME:", KEYS.join(":, ")),
    }
}

fn status(value: &str) -> Result<Status, String> {
    let wrong = || format!("`{value}` is no status, such as 404, 5xx, >=400 or err");
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| (100..1000).contains(number));
    let lower = value.to_ascii_lowercase();
    match Compared::split(value) {
        _ if lower == "err" => Ok(Status::Error),
        (Some(compared), limit) => Ok(Status::Compared(compared, number(limit).ok_or_else(wrong)?)),
        (None, text) if number(text).is_some() => Ok(Status::Like(lower)),
        _ if matches!(lower.as_bytes(), [b'1'..=b'9', b'x', b'x']) => Ok(Status::Like(lower)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::samples;
    use rstest::rstest;

    #[rstest]
    #[case("", true)]
    #[case("method:post status:200", true)]
    #[case("-method:post", false)]
    #[case("path:/stripe", true)]
    #[case("path:/stripe*hook?x=1", true)]
    #[case("path:*hook?x=1", true)]
    #[case("path:/s*pe", false)]
    #[case("path:/hook", false)]
    #[case("status:2xx", true)]
    #[case("status:>=400", false)]
    #[case("status:<300", true)]
    #[case("status:err", false)]
    #[case("sig:ok", true)]
    #[case("sig:none", false)]
    #[case("provider:Stripe event:charge", true)]
    #[case("provider:str", false)]
    #[case("event:*.succeeded is:duplicate is:resigned", true)]
    #[case("endpoint:billing", true)]
    #[case("endpoint:bill", false)]
    #[case("endpoint:bill*", true)]
    #[case("body:EVT_1", true)]
    #[case(r#"body:"\"evt_1\"""#, true)]
    #[case("body:received", true)]
    #[case("header.X-Id:7", true)]
    #[case("header.x-id:8", false)]
    #[case("since:1h", true)]
    #[case("until:1h", false)]
    #[case("since:2020-01-01 until:2100-01-01T00:00:00Z", true)]
    #[case("latency:>10ms", true)]
    #[case("latency:<10ms", false)]
    #[case("latency:12ms", true)]
    #[case("is:failed", false)]
    #[case("is:pending", false)]
    #[case("is:queued", false)]
    #[case("is:replay", false)]
    #[case("evt_1", true)]
    #[case("\"a blank\"", true)]
    #[case("nowhere", false)]
    fn exchanges_are_found(#[case] filter: &str, #[case] found: bool) {
        let filter: Filter = filter.parse().expect("a filter");
        assert_eq!(filter.matches(&samples::exchange()), found);
    }

    #[test]
    fn what_has_waited_at_the_relay_is_found() {
        let filter: Filter = "is:queued".parse().expect("a filter");
        assert!(filter.matches(&Exchange { queued: true, ..samples::exchange() }));
    }

    #[rstest]
    #[case("status:200 metod:POST", 11, 6, "did you mean `method:`?")]
    #[case("é status:7000", 9, 4, "`7000` is no status")]
    #[case("is:gone", 3, 4, "`gone` is none of replay, ")]
    #[case("latency:fast", 8, 4, "is no latency")]
    #[case("since:yesterday", 6, 9, "is no time")]
    #[case("path:", 0, 5, "wants a value")]
    #[case("a body:\"b c", 7, 4, "the quote has no end")]
    #[case("header.:x", 0, 8, "nothing to filter by")]
    fn what_is_wrong_is_said_with_its_place(
        #[case] text: &str,
        #[case] at: usize,
        #[case] length: usize,
        #[case] why: &str,
    ) {
        let error = text.parse::<Filter>().expect_err("wrong");
        assert!(error.message.contains(why), "{error}");
        assert_eq!((error.at, error.length), (at, length), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            if let Err(error) = text.parse::<Filter>() {
                proptest::prop_assert!(error.at + error.length <= text.encode_utf16().count());
            }
        }
    }
}
