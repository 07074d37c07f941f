//! The messages of the control stream. `proto/hookway.proto` says what each field means.

use prost::{Enumeration, Message, Oneof};

/// A message may be this long, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// What a client sends.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FromClient {
    /// Which message it is; `None` for one this version does not know.
    #[prost(oneof = "ClientMessage", tags = "1, 2, 3, 4, 5")]
    pub message: Option<ClientMessage>,
}

/// The messages of a client.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum ClientMessage {
    /// The first message.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// Asks for a [`Pong`]: is the link alive?
    #[prost(message, tag = "2")]
    Ping(Ping),
    /// Asks for [`DeadLetters`].
    #[prost(message, tag = "3")]
    AskDeadLetters(AskDeadLetters),
    /// What [`Backlog`] said was missed has been told.
    #[prost(message, tag = "4")]
    Seen(Seen),
    /// Asks for [`Endpoints`].
    #[prost(message, tag = "5")]
    AskEndpoints(AskEndpoints),
}

/// Who the client is and what it wants to serve.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct Hello {
    /// The lowest version the client speaks.
    #[prost(uint32, tag = "1")]
    pub min_version: u32,
    /// The highest version the client speaks.
    #[prost(uint32, tag = "2")]
    pub max_version: u32,
    /// The token, a secret.
    #[prost(string, tag = "3")]
    pub token: String,
    /// Names to serve; an empty one asks for a random name.
    #[prost(string, repeated, tag = "4")]
    pub endpoints: Vec<String>,
    /// Program and version.
    #[prost(string, tag = "5")]
    pub agent: String,
    /// Optional abilities of the client.
    #[prost(string, repeated, tag = "6")]
    pub features: Vec<String>,
    /// What becomes of deliveries.
    #[prost(message, optional, tag = "7")]
    pub queueing: Option<Queueing>,
    /// The developer's own host names.
    #[prost(message, repeated, tag = "8")]
    pub domains: Vec<Domain>,
}

/// A host name of the developer's own, for an endpoint of the session.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Domain {
    /// In lower case, as A-labels.
    #[prost(string, tag = "1")]
    pub host: String,
    /// Its name; empty for the first.
    #[prost(string, tag = "2")]
    pub endpoint: String,
}

/// The ability of a relay to lead host names of the developer's own to an endpoint.
pub const DOMAINS: &str = "domains";

/// So many host names of the developer's own a session may ask for.
pub const MAX_DOMAINS: usize = 64;

/// What becomes of deliveries: kept by the relay while the client is away.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Queueing {
    /// By path.
    #[prost(message, repeated, tag = "1")]
    pub rules: Vec<Rule>,
    /// Queued deliveries under one rule handed over at once; 0 is 1.
    #[prost(uint32, tag = "2")]
    pub drain_concurrency: u32,
    /// An X25519 public key that what waits is sealed to; empty for none.
    #[prost(bytes = "vec", tag = "3")]
    pub seal_key: Vec<u8>,
    /// What becomes of other clients of the same endpoint.
    #[prost(enumeration = "Share", tag = "4")]
    pub share: i32,
    /// Names the client: copies are kept under it; [`MAX_LISTENER`] bytes at most, printable ASCII.
    #[prost(string, tag = "5")]
    pub listener: String,
}

/// A listener's name may be this long, in bytes.
pub const MAX_LISTENER: usize = 64;

/// What becomes of other clients of the same endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
pub enum Share {
    /// They are told that it is taken over.
    Takeover = 0,
    /// Each delivery goes to one of those that ask for the same.
    Balance = 1,
    /// Each listener gets every delivery that may wait; the first answers the sender.
    Copy = 2,
}

/// What becomes of deliveries whose path begins with a prefix. The longest prefix decides, and a rule of the endpoint's
/// own before one for all.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Rule {
    /// Only of this endpoint; empty for all.
    #[prost(string, tag = "1")]
    pub endpoint: String,
    /// The path's beginning, at a `/`; empty for all.
    #[prost(string, tag = "2")]
    pub prefix: String,
    /// 503 instead of the queue when the client or its app is away.
    #[prost(bool, tag = "3")]
    pub refuse_offline: bool,
    /// 202 once it is on disk, before the app has it.
    #[prost(bool, tag = "4")]
    pub ack_early: bool,
    /// An app's 5xx is retried from the queue, and the sender told 202.
    #[prost(bool, tag = "5")]
    pub retry_5xx: bool,
}

impl Queueing {
    /// Its encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads what [`Self::to_bytes`] wrote; what cannot be read asks for nothing.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::decode(bytes).unwrap_or_default()
    }
}

/// Whether a path is that prefix, or goes on at a `/` after it. Everything is below the empty prefix.
#[must_use]
pub fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello").field("endpoints", &self.endpoints).field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// Asks for a [`Pong`] of the same number.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Ping {
    /// Any number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
}

/// Asks for the [`DeadLetters`] of an endpoint, after these of them have been made to wait again.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AskDeadLetters {
    /// Any; the answer has the same.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The endpoint's name.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// Ids of deliveries, 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub retry: Vec<Vec<u8>>,
    /// All of them.
    #[prost(bool, tag = "4")]
    pub retry_all: bool,
}

/// What the last [`Backlog`] said was missed has been told to a person.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Seen {
    /// The endpoint's name.
    #[prost(string, tag = "1")]
    pub endpoint: String,
}

/// Asks for the [`Endpoints`] of the token's owner, after one of them has been released.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AskEndpoints {
    /// Those whose names come after it.
    #[prost(string, tag = "1")]
    pub after: String,
    /// This endpoint, or host name of the developer's own; empty for none.
    #[prost(string, tag = "2")]
    pub release: String,
}

/// What a relay sends.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FromRelay {
    /// Which message it is; `None` for one this version does not know.
    #[prost(oneof = "RelayMessage", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub message: Option<RelayMessage>,
}

/// The messages of a relay.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum RelayMessage {
    /// The hello was taken.
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// The hello was not.
    #[prost(message, tag = "2")]
    Refused(Refused),
    /// The answer to a [`Ping`].
    #[prost(message, tag = "3")]
    Pong(Pong),
    /// The relay is about to stop.
    #[prost(message, tag = "4")]
    GoAway(GoAway),
    /// An endpoint is no longer served by this session.
    #[prost(message, tag = "5")]
    Released(Released),
    /// What the client has not seen.
    #[prost(message, tag = "6")]
    Backlog(Backlog),
    /// The answer to [`AskDeadLetters`].
    #[prost(message, tag = "7")]
    DeadLetters(DeadLetters),
    /// How a host name of the developer's own is doing.
    #[prost(message, tag = "8")]
    DomainState(DomainState),
    /// The answer to [`AskEndpoints`].
    #[prost(message, tag = "9")]
    Endpoints(Endpoints),
}

/// The session is up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Welcome {
    /// The version both sides speak from now on.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Names the session in the relay's log.
    #[prost(string, tag = "2")]
    pub session: String,
    /// The endpoints served, in the order asked for.
    #[prost(message, repeated, tag = "3")]
    pub endpoints: Vec<Endpoint>,
    /// Something the operator wants people to read, or empty.
    #[prost(string, tag = "4")]
    pub notice: String,
    /// The name of the token.
    #[prost(string, tag = "5")]
    pub owner: String,
    /// Optional abilities of the relay.
    #[prost(string, repeated, tag = "6")]
    pub features: Vec<String>,
    /// Endpoints are host names directly below it.
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// An endpoint and where it is reached.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Endpoint {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its public URL, with the port unless it is 443.
    #[prost(string, tag = "2")]
    pub url: String,
    /// Other URLs of the same endpoint.
    #[prost(string, repeated, tag = "3")]
    pub more_urls: Vec<String>,
    /// Deliveries that wait for it, and come now.
    #[prost(uint64, tag = "4")]
    pub waiting: u64,
    /// Deliveries that are tried no more.
    #[prost(uint64, tag = "5")]
    pub dead_letters: u64,
}

/// Why a hello was not taken.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refused {
    /// The kind of reason.
    #[prost(enumeration = "Code", tag = "1")]
    pub code: i32,
    /// What is wrong, for a person.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// What to do about it.
    #[prost(string, tag = "3")]
    pub next: String,
    /// The name that was refused, or empty.
    #[prost(string, tag = "4")]
    pub endpoint: String,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
pub enum Code {
    /// One this version does not know.
    Unknown = 0,
    /// No version in common.
    Version = 1,
    /// The token is unknown, expired or revoked.
    Token = 2,
    /// The endpoint is somebody else's.
    Taken = 3,
    /// The name breaks the rules, is reserved, or not allowed to this token.
    Name = 4,
    /// Too many of something; try later.
    Limit = 5,
}

/// The answer to a [`Ping`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Pong {
    /// The ping's number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
}

/// Exchanges in flight are finished; new ones go elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GoAway {
    /// When to connect again, in milliseconds from now.
    #[prost(uint32, tag = "1")]
    pub reconnect_after_ms: u32,
    /// Another process has taken over at the same address, over TCP from now on: to be connected to at once, while this
    /// session goes on until the relay ends it.
    #[prost(bool, tag = "2")]
    pub successor: bool,
}

/// An endpoint is no longer served by this session.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Released {
    /// Its name.
    #[prost(string, tag = "1")]
    pub endpoint: String,
    /// Why, for a person.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// How a host name of the developer's own is doing; sent after the welcome, and when it changes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DomainState {
    /// The host name.
    #[prost(string, tag = "1")]
    pub host: String,
    /// The endpoint that it is for.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// How it is doing.
    #[prost(enumeration = "Stage", tag = "3")]
    pub state: i32,
    /// What it waits for, or why it was refused, for a person.
    #[prost(string, tag = "4")]
    pub detail: String,
    /// DNS records that are wanting.
    #[prost(message, repeated, tag = "5")]
    pub records: Vec<Record>,
    /// Where it answers when it is ready.
    #[prost(string, tag = "6")]
    pub url: String,
}

/// How far a host name of the developer's own is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
pub enum Stage {
    /// It waits for DNS, or for a certificate.
    Waiting = 0,
    /// It leads to the endpoint.
    Ready = 1,
    /// It cannot.
    Refused = 2,
}

/// A DNS record.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Record {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// `TXT` or `CNAME`.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// What it says.
    #[prost(string, tag = "3")]
    pub value: String,
}

/// What became of deliveries of an endpoint that this client has not seen; sent when it changes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Backlog {
    /// The endpoint's name.
    #[prost(string, tag = "1")]
    pub endpoint: String,
    /// Deliveries that are tried no more.
    #[prost(uint64, tag = "2")]
    pub dead_letters: u64,
    /// Deliveries that could not be kept for it: their senders were not told that they were.
    #[prost(uint64, tag = "3")]
    pub missed: u64,
    /// When the first of them came, in microseconds since 1970 UTC.
    #[prost(uint64, tag = "4")]
    pub missed_since_us: u64,
    /// Why the last of them could not, for a person.
    #[prost(string, tag = "5")]
    pub missed_why: String,
}

/// The answer to [`AskDeadLetters`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeadLetters {
    /// The question's number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The endpoint's name.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// So many there are.
    #[prost(uint64, tag = "3")]
    pub total: u64,
    /// The newest.
    #[prost(message, repeated, tag = "4")]
    pub letters: Vec<DeadLetter>,
    /// So many wait again.
    #[prost(uint64, tag = "5")]
    pub retried: u64,
    /// Why the relay cannot tell, for a person; empty when it can.
    #[prost(string, tag = "6")]
    pub problem: String,
}

/// A delivery that is tried no more.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeadLetter {
    /// The delivery's id, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// When the relay had its head, in microseconds since 1970 UTC.
    #[prost(uint64, tag = "2")]
    pub received_at_us: u64,
    /// Since when it is dead, likewise.
    #[prost(uint64, tag = "3")]
    pub dead_since_us: u64,
    /// Its method.
    #[prost(string, tag = "4")]
    pub method: String,
    /// Its path, or the beginning of it.
    #[prost(string, tag = "5")]
    pub path: String,
    /// How often it was handed over.
    #[prost(uint32, tag = "6")]
    pub attempts: u32,
    /// What came of the last attempt, for a person.
    #[prost(string, tag = "7")]
    pub last: String,
    /// The size of head and body.
    #[prost(uint64, tag = "8")]
    pub bytes: u64,
    /// Which listener it is for; empty without names.
    #[prost(string, tag = "9")]
    pub listener: String,
}

/// The answer to [`AskEndpoints`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Endpoints {
    /// By name.
    #[prost(message, repeated, tag = "1")]
    pub endpoints: Vec<OwnEndpoint>,
    /// There are more after the last of these.
    #[prost(bool, tag = "2")]
    pub more: bool,
    /// What was to be released was.
    #[prost(bool, tag = "3")]
    pub released: bool,
    /// Why the relay cannot tell or release, for a person; empty when it can.
    #[prost(string, tag = "4")]
    pub problem: String,
}

/// An endpoint as its owner sees it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OwnEndpoint {
    /// Its name, where it is reached, and what waits for it.
    #[prost(message, optional, tag = "1")]
    pub endpoint: Option<Endpoint>,
    /// Clients that serve it now.
    #[prost(uint32, tag = "2")]
    pub clients: u32,
    /// Host names of the developer's own that lead to it.
    #[prost(string, repeated, tag = "3")]
    pub domains: Vec<String>,
}

impl From<ClientMessage> for FromClient {
    fn from(message: ClientMessage) -> Self {
        Self { message: Some(message) }
    }
}

impl From<RelayMessage> for FromRelay {
    fn from(message: RelayMessage) -> Self {
        Self { message: Some(message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name = tag` of every field in the spec is what prost was told here, read off the source itself.
    #[test]
    fn the_messages_are_those_of_the_spec() {
        let spec = fields_of_spec(include_str!("../proto/hookway.proto"));
        let code = fields_of_code(include_str!("message.rs"));
        let all = "Hello Domain Queueing Rule Ping AskDeadLetters Seen AskEndpoints Welcome Endpoint Refused Pong GoAway Released
            DomainState Record Backlog DeadLetters DeadLetter Endpoints
            OwnEndpoint";
        for message in all.split_whitespace() {
            let of = |all: &[(String, String, u32)]| -> Vec<(String, u32)> {
                all.iter().filter(|(m, ..)| m == message).map(|(_, f, t)| (f.clone(), *t)).collect()
            };
            assert!(!of(&spec).is_empty(), "{message} is not in the spec");
            assert_eq!(of(&spec), of(&code), "{message}");
        }
    }

    fn fields_of_spec(text: &str) -> Vec<(String, String, u32)> {
        let (mut message, mut depth, mut fields) = (String::new(), 0, Vec::new());
        for line in text.lines().map(|line| line.split("//").next().unwrap_or("").trim()) {
            if let Some(name) = line.strip_prefix("message ") {
                message = name.trim_end_matches(" {").to_owned();
            }
            if depth == 1
                && let Some((left, tag)) = line.trim_end_matches(';').rsplit_once(" = ")
                && let (Some(name), Ok(tag)) = (left.split(' ').next_back(), tag.parse())
            {
                fields.push((message.clone(), name.to_owned(), tag));
            }
            depth += line.matches('{').count();
            depth -= line.matches('}').count();
        }
        fields
    }

    fn fields_of_code(text: &str) -> Vec<(String, String, u32)> {
        let (mut message, mut tag, mut fields) = (String::new(), None, Vec::new());
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("pub struct ") {
                message = name.trim_end_matches(" {").to_owned();
            } else if let Some((_, rest)) = line.split_once("tag = \"") {
                tag = rest.split('"').next().and_then(|tag| tag.parse().ok());
            } else if let (Some(name), Some(number)) = (line.strip_prefix("pub ").and_then(|l| l.split_once(':')), tag)
            {
                fields.push((message.clone(), name.0.to_owned(), number));
                tag = None;
            }
        }
        fields
    }

    #[test]
    fn the_token_is_not_shown() {
        let hello = Hello { token: "hwt_secret".into(), ..Hello::default() };
        let shown = format!("{:?}", FromClient::from(ClientMessage::Hello(hello)));
        assert!(!shown.contains("hwt_secret"), "{shown}");
    }

    #[test]
    fn an_unknown_message_is_no_error() {
        let later = [0xFA, 0x01, 0x02, 0x08, 0x01]; // field 31, a message
        assert_eq!(FromRelay::decode(&later[..]), Ok(FromRelay { message: None }));
    }
}
