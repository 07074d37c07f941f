//! A client's hello: who it is, what it wants to serve, and the answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hookway_protocol::host::EndpointName;
use hookway_protocol::link::{Control, Link, StreamError};
use hookway_protocol::message::{ClientMessage, Code, Endpoint, FromClient, FromRelay, Hello, Refused, Welcome};
use hookway_protocol::{MAX_VERSION, MIN_VERSION, common_version};

use super::registry::{ClaimError, Registry};
use crate::auth::{self, Grant, Token};
use crate::limits::{Address, Throttle};
use crate::metrics::{self, Metrics};
use crate::store::Store;

/// Wrong tokens from one address before it is not heard for a while.
const MAX_FAILURES: u32 = 10;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);

/// Checks hellos.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    pub(super) store: Store,
    pub(super) registry: Arc<Registry>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) max_endpoints: usize,
    pub(super) urls: Urls,
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
    fn of(&self, name: &EndpointName) -> Endpoint {
        let url = |scheme, port, usual| match port {
            port if port == usual => format!("{scheme}://{name}.{}", self.domain),
            port => format!("{scheme}://{name}.{}:{port}", self.domain),
        };
        Endpoint {
            name: name.to_string(),
            url: url("https", self.https_port, 443),
            more_urls: self.http_port.map(|port| url("http", port, 80)).into_iter().collect(),
        }
    }
}

/// A client that was let in, before it has its endpoints.
#[derive(Debug)]
#[must_use]
pub(super) struct Admitted {
    pub(super) grant: Grant,
    pub(super) names: Vec<EndpointName>,
    pub(super) version: u32,
}

impl Doorkeeper {
    pub(super) fn new(
        store: Store,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        max_endpoints: usize,
        urls: Urls,
    ) -> Self {
        let failures = Throttle::new(MAX_FAILURES, FAILURE_WINDOW);
        Self { store, registry, metrics, max_endpoints, urls, failures }
    }

    /// Reads the hello and lets the client in, or tells it why not.
    pub(super) async fn admit(&self, link: &Link) -> Result<(Control, Admitted), StreamError> {
        let mut control = Control::from(link.accept().await.map_err(StreamError::Lost)?);
        let first = control.receiver.receive::<FromClient>().await?;
        let Some(ClientMessage::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(StreamError::Protocol("the first message is no hello".into()));
        };
        match self.check(&hello, link.remote().ip()).await {
            Ok(admitted) => Ok((control, admitted)),
            Err((refused, metric)) => {
                metrics::count(&self.metrics.handshakes_refused, metric);
                tracing::debug!(remote = %link.remote(), reason = refused.reason, "client refused");
                let reason = refused.reason.clone();
                control.sender.send(&FromRelay::from(refused_message(refused))).await?;
                control.sender.finish().await;
                Err(StreamError::Protocol(reason))
            }
        }
    }

    /// The answer to a client that was let in.
    pub(super) fn welcome(&self, admitted: &Admitted, session: &str) -> Welcome {
        Welcome {
            version: admitted.version,
            session: session.to_owned(),
            endpoints: admitted.names.iter().map(|name| self.urls.of(name)).collect(),
            notice: String::new(),
            owner: admitted.grant.owner.as_str().to_owned(),
            features: vec![],
        }
    }

    async fn check(&self, hello: &Hello, ip: IpAddr) -> Result<Admitted, (Refused, &'static str)> {
        let version = common_version(hello.min_version, hello.max_version).ok_or_else(|| wrong_version(hello))?;
        let address = Address::from(ip);
        if self.failures.is_blocked(&address, Instant::now()) {
            let next = "wait a minute, then try again with the right token";
            return Err((refused(Code::Limit, "too many wrong tokens from this address", next), "throttled"));
        }
        let Some(grant) = self.grant(&hello.token).await.map_err(|()| unavailable())? else {
            self.failures.failed(address, Instant::now());
            let next = "ask the relay's operator for a token, then:  hookway login RELAY";
            return Err((refused(Code::Token, "the token is unknown, expired or revoked", next), "token"));
        };
        if hello.endpoints.len() > self.max_endpoints {
            let reason =
                format!("{} endpoints asked for; a session has at most {}", hello.endpoints.len(), self.max_endpoints);
            return Err((refused(Code::Limit, &reason, "ask for fewer"), "endpoints"));
        }
        let mut names = Vec::with_capacity(hello.endpoints.len());
        for text in &hello.endpoints {
            names.push(self.name(text, &grant).await.map_err(|error| claim_refused(text, &error))?);
        }
        Ok(Admitted { grant, names, version })
    }

    async fn grant(&self, text: &str) -> Result<Option<Grant>, ()> {
        let Ok(token) = text.parse::<Token>() else { return Ok(None) };
        let rows = self.store.tokens().await.map_err(|error| tracing::error!(%error, "tokens cannot be read"))?;
        Ok(auth::check(&rows, &token))
    }

    async fn name(&self, text: &str, grant: &Grant) -> Result<EndpointName, ClaimError> {
        // A random name may be somebody's already; three in a row are not.
        for _ in 0..3 {
            let name = Registry::asked_for(text)?;
            match self.registry.own(&name, grant).await {
                Err(ClaimError::Taken(_)) if text.is_empty() => {}
                owned => return owned.map(|()| name),
            }
        }
        Err(ClaimError::Taken(Registry::asked_for(text)?))
    }
}

fn refused_message(refused: Refused) -> hookway_protocol::message::RelayMessage {
    hookway_protocol::message::RelayMessage::Refused(refused)
}

fn refused(code: Code, reason: &str, next: &str) -> Refused {
    Refused { code: code.into(), reason: reason.to_owned(), next: next.to_owned(), endpoint: String::new() }
}

fn wrong_version(hello: &Hello) -> (Refused, &'static str) {
    let (min, max) = (hello.min_version, hello.max_version);
    let reason = format!("the relay speaks protocol {MIN_VERSION} to {MAX_VERSION}, this client {min} to {max}");
    let next = if max < MIN_VERSION { "upgrade hookway" } else { "ask the relay's operator to upgrade it" };
    (refused(Code::Version, &reason, next), "version")
}

fn unavailable() -> (Refused, &'static str) {
    (refused(Code::Limit, "the relay cannot check tokens just now", "try again in a minute"), "store")
}

fn claim_refused(text: &str, error: &ClaimError) -> (Refused, &'static str) {
    let (code, next, metric) = match error {
        ClaimError::Taken(_) => (Code::Taken, "choose another name:  hookway TARGET --name NAME", "taken"),
        ClaimError::Store(_) => (Code::Limit, "try again in a minute", "store"),
        _ => (Code::Name, "choose another name:  hookway TARGET --name NAME", "name"),
    };
    let refused = refused(code, &error.to_string(), next);
    (Refused { endpoint: text.to_owned(), ..refused }, metric)
}
