//! A client's hello: who it is, what it wants to serve, and the answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::id::DeliveryId;
use hookway_protocol::link::{Control, Link, StreamError};
use hookway_protocol::message::{
    AskEndpoints, ClientMessage, Code, DOMAINS, Domain, Endpoint, Endpoints, FromClient, FromRelay, Hello, MAX_DOMAINS,
    MAX_LISTENER, OwnEndpoint, Queueing, Refused, RelayMessage, Share, Welcome,
};
use hookway_protocol::seal;
use hookway_protocol::{MAX_VERSION, MIN_VERSION, common_version};

use super::Config;
use super::domains::Asked;
use super::registry::{self, Claim, ClaimError, Registry};
use crate::auth::{Grant, Token};
use crate::limits::{Address, Throttle};
use crate::metrics::{self, Metrics};
use crate::store::{MAX_PATH, Store, TokenRow};

/// Wrong tokens from one address before it is not heard for a while.
const MAX_FAILURES: u32 = 10;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);

/// Endpoints told at once at most, and their bytes: they fit into a message.
const MOST_TOLD: usize = 100;
const BYTES_TOLD: usize = 60_000;

/// Paths of an endpoint that a client may ask something of.
const MAX_RULES: usize = 64;

/// Checks hellos.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    pub(super) store: Arc<dyn Store>,
    pub(super) registry: Arc<Registry>,
    pub(super) metrics: Arc<Metrics>,
    config: Arc<ArcSwap<Config>>,
    urls: Urls,
    failures: Throttle<Address>,
}

/// How endpoints are reached from outside.
#[derive(Clone, Debug)]
pub(crate) struct Urls {
    pub(crate) domain: String,
    pub(crate) https_port: u16,
    /// When plain HTTP is served, too.
    pub(crate) http_port: Option<u16>,
}

impl Urls {
    fn shown(&self, name: &EndpointName, waiting: u64, dead_letters: u64) -> Endpoint {
        let host = format!("{name}.{}", self.domain);
        let more_urls = self.http_port.map(|port| url("http", &host, port, 80)).into_iter().collect();
        Endpoint { name: name.to_string(), url: self.https(&host), waiting, dead_letters, more_urls }
    }

    /// The HTTPS URL of an endpoint.
    pub(crate) fn of(&self, endpoint: &str) -> String {
        self.https(&format!("{endpoint}.{}", self.domain))
    }

    /// The HTTPS URL of a host name.
    pub(crate) fn https(&self, host: &str) -> String {
        url("https", host, self.https_port, 443)
    }
}

fn url(scheme: &str, host: &str, port: u16, usual: u16) -> String {
    if port == usual { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
}

/// What a good hello gets.
#[derive(Debug)]
#[must_use]
pub(super) struct Granted {
    pub(super) grant: Grant,
    pub(super) names: Vec<EndpointName>,
    version: u32,
}

/// What a client is told that is not let in, and the reason for the metric.
pub(super) type Refusal = (Refused, &'static str);

impl Doorkeeper {
    pub(super) fn new(
        store: Arc<dyn Store>,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        config: Arc<ArcSwap<Config>>,
        urls: Urls,
    ) -> Self {
        let failures = Throttle::new(MAX_FAILURES, FAILURE_WINDOW);
        Self { store, registry, metrics, config, urls, failures }
    }

    /// Reads the hello.
    pub(super) async fn hello(&self, link: &Link) -> Result<(Control, Hello), StreamError> {
        let mut control = link.control().await.map_err(StreamError::Lost)?;
        let first = control.receiver.receive::<FromClient>().await?;
        match first.and_then(|first| first.message) {
            Some(ClientMessage::Hello(hello)) => Ok((control, hello)),
            _ => Err(StreamError::Protocol("the first message is no hello".into())),
        }
    }

    /// Tells a client why it is not let in; the same as an error.
    pub(super) async fn refuse(&self, mut control: Control, (refused, metric): Refusal) -> StreamError {
        metrics::count(&self.metrics.handshakes_refused, metric);
        let reason = refused.reason.clone();
        if control.sender.send(&FromRelay::from(RelayMessage::Refused(refused))).await.is_ok() {
            control.sender.finish().await;
        }
        StreamError::Protocol(reason)
    }

    /// An owner's endpoints, after he has released what he asks for.
    pub(super) async fn endpoints(&self, grant: &Grant, asked: &AskEndpoints) -> Endpoints {
        let mut released = false;
        if !asked.release.is_empty() {
            match self.registry.release(&asked.release, grant).await {
                Ok(was_his) => released = was_his,
                Err(error) => {
                    tracing::error!(%error, "a name cannot be released");
                    let problem = "the relay cannot change its store just now; try again in a minute".into();
                    return Endpoints { problem, ..Endpoints::default() };
                }
            }
        }
        let (own, more) = self.registry.owned(grant, &asked.after, MOST_TOLD);
        let shown = |endpoint: &Arc<registry::Endpoint>| {
            let (waiting, dead) = (endpoint.waiting.depth().count, self.registry.queue.count_dead(&endpoint.waiting));
            let clients = u32::try_from(endpoint.clients()).unwrap_or(u32::MAX);
            let domains = self.registry.domains_of(endpoint);
            OwnEndpoint { endpoint: Some(self.urls.shown(&endpoint.name, waiting, dead)), clients, domains }
        };
        let mut room = BYTES_TOLD;
        let fits = |shown: &OwnEndpoint| {
            // The URLs repeat the name and the domain.
            let size = 1024 + shown.domains.iter().map(|host| host.len() + 4).sum::<usize>();
            room.checked_sub(size).inspect(|left| room = *left).is_some()
        };
        let told: Vec<_> = own.iter().map(shown).take_while(fits).collect();
        let more = more || told.len() < own.len();
        Endpoints { endpoints: told, more, released, problem: String::new() }
    }

    /// The answer to a client that was let in.
    pub(super) fn welcome(&self, granted: &Granted, claims: &[Claim], session: String) -> Welcome {
        let endpoint = |claim: &Claim| {
            let waiting = claim.waitings.iter().map(|waiting| waiting.depth().count).sum();
            self.urls.shown(&claim.endpoint.name, waiting, self.registry.queue.count_dead(&claim.endpoint.waiting))
        };
        Welcome {
            version: granted.version,
            session,
            endpoints: claims.iter().map(endpoint).collect(),
            notice: String::new(),
            owner: granted.grant.owner.as_str().to_owned(),
            features: vec![DOMAINS.into()],
            domain: self.urls.domain.clone(),
        }
    }

    /// Whether a hello is good, and what it gets.
    pub(super) async fn check(&self, hello: &Hello, ip: IpAddr) -> Result<Granted, Refusal> {
        let version = common_version(hello.min_version, hello.max_version).ok_or_else(|| wrong_version(hello))?;
        let address = Address::from(ip);
        if self.failures.is_blocked(&address, Instant::now()) {
            let next = "wait a minute, then try again with the right token";
            return Err((refused(Code::Limit, "too many wrong tokens from this address", next), "throttled"));
        }
        let grant = match hello.token.parse::<Token>() {
            Ok(token) => self.token(token.hash()).await?.and_then(Grant::of),
            Err(()) => None,
        };
        let Some(grant) = grant else {
            self.failures.failed(address, Instant::now());
            return Err(wrong_token());
        };
        let (asked, most) = (hello.endpoints.len(), self.config.load().max_endpoints);
        if asked > most {
            let reason = format!("{asked} endpoints asked for; a session has at most {most}");
            return Err((refused(Code::Limit, &reason, "ask for fewer"), "endpoints"));
        }
        let mut names = Vec::with_capacity(asked);
        for text in &hello.endpoints {
            let name = self.name(text, &grant).await.map_err(|error| claim_refused(text, &error))?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(Granted { grant, names, version })
    }

    /// Whether a token that was good is still.
    pub(super) async fn check_again(&self, grant: &Grant) -> Result<(), Refusal> {
        self.token(grant.hash).await?.map(drop).ok_or_else(wrong_token)
    }

    /// The token with this hash, if it is good now.
    async fn token(&self, hash: [u8; 32]) -> Result<Option<TokenRow>, Refusal> {
        let row = self.store.token(hash).await.map_err(|error| {
            tracing::error!(%error, "tokens cannot be read");
            let next = "try again in a minute";
            (refused(Code::Limit, "the relay cannot check tokens just now", next), "store")
        })?;
        Ok(row.filter(TokenRow::is_valid))
    }

    /// The name that a text asks for, reserved for its owner; the empty text asks for one of the relay's choice.
    async fn name(&self, text: &str, grant: &Grant) -> Result<EndpointName, ClaimError> {
        // A random name may be somebody's already; three in a row are not.
        let mut tries = 3;
        loop {
            let name = Registry::asked_for(text, grant)?;
            tries -= 1;
            match self.registry.own(&name, grant, self.config.load().max_names).await {
                Err(ClaimError::Taken(_) | ClaimError::Held(..)) if text.is_empty() && tries > 0 => {}
                owned => return owned.map(|()| name),
            }
        }
    }
}

/// The developer's own host names that a client asks for.
pub(super) fn domains_of(hello: &Hello, names: &[EndpointName]) -> Result<Vec<Asked>, Refusal> {
    if hello.domains.len() > MAX_DOMAINS {
        let reason = format!("{} host names asked for; a session has at most {MAX_DOMAINS}", hello.domains.len());
        return Err((refused(Code::Limit, &reason, "ask for fewer with --domain"), "domains"));
    }
    let mut all: Vec<Asked> = Vec::with_capacity(hello.domains.len());
    for Domain { host, endpoint } in &hello.domains {
        let name = names.iter().find(|name| endpoint.is_empty() || name.as_str() == endpoint);
        let Ok(parsed) = Host::parse(host).map(Host::into_owned) else {
            let reason = format!("`{}` is no host name", harmless(host));
            return Err((refused(Code::Name, &reason, "give one such as hooks.example.com with --domain"), "domains"));
        };
        let Some(name) = name else {
            let reason = format!("`{parsed}` is for an endpoint that this client does not ask for");
            let next = "name one that it does:  hookway TARGET --name NAME --domain HOST=NAME";
            return Err((refused(Code::Name, &reason, next), "domains"));
        };
        match all.iter().find(|asked| asked.host == parsed) {
            None => all.push(Asked { host: parsed, endpoint: name.clone() }),
            Some(other) if other.endpoint == *name => {}
            Some(other) => {
                let reason = format!("`{parsed}` is asked for two endpoints, `{}` and `{name}`", other.endpoint);
                return Err((refused(Code::Name, &reason, "leave one of the two --domain out"), "domains"));
            }
        }
    }
    Ok(all)
}

/// As much of a peer's text as a person needs.
fn harmless(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// What a client asks for that endpoint's deliveries.
pub(super) fn asked_for(hello: &Hello, name: &EndpointName) -> Result<Queueing, Refusal> {
    let mut asked = hello.queueing.clone().unwrap_or_default();
    asked.rules.retain(|rule| rule.endpoint.is_empty() || rule.endpoint == name.as_str());
    if asked.rules.len() > MAX_RULES || asked.rules.iter().any(|rule| rule.prefix.len() > MAX_PATH) {
        let reason =
            format!("something is asked of more than {MAX_RULES} paths of `{name}`, or of one over {MAX_PATH} bytes");
        return Err((refused(Code::Limit, &reason, "name fewer or shorter paths in routes and choices"), "rules"));
    }
    // Else each delivery would show that nothing can be sealed to it.
    let opened = seal::Opened::default();
    if !asked.seal_key.is_empty() && seal::seal(&asked.seal_key, DeliveryId::from_bytes([0; 16]), &opened).is_err() {
        let next = "move seal.key in the client's data folder away, and start it again";
        return Err((
            refused(Code::Limit, "the key that deliveries are to be sealed to cannot be used", next),
            "seal_key",
        ));
    }
    let is_printable = asked.listener.bytes().all(|b| matches!(b, b' '..=b'~'));
    if asked.listener.len() > MAX_LISTENER
        || !is_printable
        || (asked.share() == Share::Copy && asked.listener.is_empty())
    {
        let reason = format!("a listener's name is 1 to {MAX_LISTENER} printable ASCII characters");
        return Err((refused(Code::Limit, &reason, "choose another:  hookway TARGET --listener NAME"), "listener"));
    }
    if asked.share() == Share::Balance && !asked.seal_key.is_empty() {
        let reason = "what is sealed to one client cannot be handed to another";
        return Err((refused(Code::Limit, reason, "leave out --seal, or use --share copy"), "seal_key"));
    }
    Ok(asked)
}

fn wrong_token() -> Refusal {
    let next = "ask the relay's operator for a token, then:  hookway login RELAY";
    (refused(Code::Token, "the token is unknown, expired or revoked", next), "token")
}

pub(super) fn too_many_sessions(most: usize) -> Refusal {
    let reason = format!("{most} clients of this token's name are connected; there can be no more");
    (refused(Code::Limit, &reason, "end one of them, then try again"), "sessions")
}

fn refused(code: Code, reason: &str, next: &str) -> Refused {
    Refused { code: code.into(), reason: reason.to_owned(), next: next.to_owned(), endpoint: String::new() }
}

fn wrong_version(hello: &Hello) -> Refusal {
    let (min, max) = (hello.min_version, hello.max_version);
    let reason = format!("the relay speaks protocol {MIN_VERSION} to {MAX_VERSION}, this client {min} to {max}");
    let next = if max < MIN_VERSION { "upgrade hookway" } else { "ask the relay's operator to upgrade it" };
    (refused(Code::Version, &reason, next), "version")
}

pub(super) fn claim_refused(text: &str, error: &ClaimError) -> Refusal {
    let (code, next, metric) = match error {
        ClaimError::Taken(_) | ClaimError::Held(..) => {
            (Code::Taken, "choose another name:  hookway TARGET --name NAME", "taken")
        }
        ClaimError::Store(_) => (Code::Limit, "try again in a minute", "store"),
        ClaimError::Released => (Code::Limit, "try again", "released"),
        ClaimError::TooManyListeners(_) => {
            (Code::Limit, "use a name again that one of them had:  hookway TARGET --listener NAME", "listeners")
        }
        ClaimError::TooMany(_) => {
            (Code::Limit, "give some back; names that were released count for 30 days:  hookway endpoints", "names")
        }
        _ => (Code::Name, "choose another name:  hookway TARGET --name NAME", "name"),
    };
    let refused = refused(code, &error.to_string(), next);
    (Refused { endpoint: text.to_owned(), ..refused }, metric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookway_protocol::message::Rule;

    fn hello(change: impl FnOnce(&mut Queueing)) -> Hello {
        let mut queueing = Queueing::default();
        change(&mut queueing);
        Hello { queueing: Some(queueing), ..Hello::default() }
    }

    #[test]
    fn what_cannot_be_kept_of_a_clients_choices_is_refused_and_not_left_out() {
        let name = "billing".parse().expect("a name");
        let rule = |endpoint: &str, prefix: String| Rule { endpoint: endpoint.into(), prefix, ..Rule::default() };
        let rules = |endpoint: &str, count: usize| (0..count).map(|n| rule(endpoint, format!("/{n}"))).collect();
        let refused = |hello: &Hello| asked_for(hello, &name).err().map(|(refused, metric)| (refused.code(), metric));
        let kept = asked_for(&hello(|asked| asked.rules = rules("", MAX_RULES)), &name).expect("as many as may be");
        assert_eq!(kept.rules.len(), MAX_RULES);
        assert_eq!(
            refused(&hello(|asked| asked.rules = rules("billing", MAX_RULES + 1))),
            Some((Code::Limit, "rules"))
        );
        let others =
            asked_for(&hello(|asked| asked.rules = rules("other", MAX_RULES + 1)), &name).expect("not its own");
        assert!(others.rules.is_empty());
        let long = hello(|asked| asked.rules = vec![rule("", "/".repeat(MAX_PATH + 1))]);
        assert_eq!(refused(&long), Some((Code::Limit, "rules")));
        for no_key in [vec![9; seal::PUBLIC_KEY - 1], vec![0; seal::PUBLIC_KEY]] {
            assert_eq!(refused(&hello(|asked| asked.seal_key = no_key)), Some((Code::Limit, "seal_key")));
        }
        assert!(asked_for(&hello(|asked| asked.seal_key = vec![9; seal::PUBLIC_KEY]), &name).is_ok());
        let listener = |share: Share, listener: &str| {
            let hello = hello(|asked| (asked.share, asked.listener) = (share.into(), listener.into()));
            refused(&hello)
        };
        assert_eq!(listener(Share::Copy, "laptop"), None);
        assert_eq!(listener(Share::Balance, ""), None);
        for (share, text) in [(Share::Copy, ""), (Share::Copy, "a\nb"), (Share::Balance, &"a".repeat(65))] {
            assert_eq!(listener(share, text), Some((Code::Limit, "listener")), "{text:?}");
        }
        let both = hello(|asked| {
            (asked.share, asked.seal_key) = (Share::Balance.into(), vec![9; seal::PUBLIC_KEY]);
        });
        assert_eq!(refused(&both), Some((Code::Limit, "seal_key")));
    }
}
