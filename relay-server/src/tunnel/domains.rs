//! Developers' own host names: shown to be theirs by a TXT record, and then led to an endpoint.
//!
//! The record's value is made of the host name and the owner alone, so nothing is kept before it is found, and a
//! released endpoint's host names cannot be had by whoever has its name next.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use futures_util::future::join_all;
use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::message::{DomainState, Record, Stage};
use tokio::sync::{Semaphore, mpsc};

use super::Parts;
use super::handshake::Urls;
use super::registry::{Claim, ClaimError, Endpoint, Registry};
use crate::auth::{Grant, Owner};
use crate::certs::Certs;
use crate::resolver::{LookupError, Resolver, is_public};
use crate::store::EndpointId;

/// What waits for its records is looked up again after this time, which doubles to the other; what is ready, then.
const FIRST_LOOK: Duration = Duration::from_secs(3);
const LAST_LOOK: Duration = Duration::from_secs(120);
const READY_LOOK: Duration = Duration::from_secs(3600);
/// What the relay knows itself is looked at so often.
const OWN_LOOK: Duration = Duration::from_secs(1);
/// Host names that are looked up at once, of all and of one session: each is some questions.
const LOOKS: usize = 64;
const LOOKS_OF_ONE: usize = 4;
/// Before the developer's name, for the record.
const LABEL: &str = "_hookway-challenge";

/// Leads developers' own host names to endpoints.
#[derive(Debug)]
pub(super) struct Domains {
    registry: Arc<Registry>,
    certs: Arc<Certs>,
    resolver: Resolver,
    urls: Urls,
    /// Makes the values of records; the same for every run.
    key: hmac::Key,
    looks: Semaphore,
}

/// A host name that a client asks for, and its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) host: Host<'static>,
    pub(super) endpoint: EndpointName,
}

/// One that is looked after while a session lasts.
struct Watched {
    host: Host<'static>,
    endpoint: Arc<Endpoint>,
    grant: Grant,
    /// What was known when it was looked up last.
    known: Known,
    /// It led to the endpoint before: if it does not, somebody has taken it away.
    was_ours: bool,
    was_ready: bool,
    /// DNS led it here before.
    was_here: bool,
}

/// What the relay knows of a host name itself.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    /// The endpoint that it leads to.
    led: Option<EndpointId>,
    /// Why there is no certificate that is good for it, if one is wanted.
    wanting: Option<String>,
}

/// Why a host name cannot be had.
struct Refusal(String);

impl Domains {
    pub(super) fn new(parts: &Parts, resolver: Option<SocketAddr>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &parts.reset_key);
        let (registry, certs, urls) = (parts.registry.clone(), parts.certs.clone(), parts.urls.clone());
        let looks = Semaphore::new(LOOKS);
        Self { registry, certs, resolver: Resolver::new(resolver), urls, key, looks }
    }

    /// Looks after a session's host names, and tells of each when it changes.
    pub(super) fn watch<'a>(
        &'a self,
        claims: &[Claim],
        all: Vec<Asked>,
        tell: &mpsc::Sender<DomainState>,
    ) -> impl Future<Output = Infallible> + use<'a> {
        let own_looks = Arc::new(Semaphore::new(LOOKS_OF_ONE));
        let watched = all.into_iter().filter_map(|Asked { host, endpoint }| {
            let claim = claims.iter().find(|claim| claim.endpoint.name == endpoint)?;
            let (over, tell, own_looks) = (claim.over.clone(), tell.clone(), own_looks.clone());
            let (endpoint, grant) = (claim.endpoint.clone(), claim.grant().clone());
            let known = Known { led: None, wanting: None };
            let mut one = Watched { host, endpoint, grant, known, was_ours: false, was_ready: false, was_here: false };
            Some(async move { over.run_until_cancelled(self.watch_one(&mut one, &own_looks, &tell)).await })
        });
        let watched: Vec<_> = watched.collect();
        async move {
            join_all(watched).await;
            std::future::pending().await
        }
    }

    async fn watch_one(&self, one: &mut Watched, own_looks: &Semaphore, tell: &mpsc::Sender<DomainState>) {
        let (mut told, mut wait) = (None, FIRST_LOOK);
        loop {
            let state = {
                let _turns = (own_looks.acquire().await, self.looks.acquire().await);
                // What changes from now on is seen.
                one.known = self.known(one);
                match self.look(one).await {
                    Ok(state) => state,
                    // What is in its way may go.
                    Err(Refusal(why)) => self.state(one, Stage::Refused, why, vec![]),
                }
            };
            let again = match state.state() {
                Stage::Ready => READY_LOOK,
                Stage::Waiting if !state.records.is_empty() => wait,
                Stage::Waiting | Stage::Refused => LAST_LOOK,
            };
            wait = (wait * 2).min(LAST_LOOK);
            one.was_ours |= one.known.led == Some(one.endpoint.id);
            one.was_ready = state.state() == Stage::Ready;
            if told.as_ref() != Some(&state) {
                if tell.send(state.clone()).await.is_err() {
                    return;
                }
                told = Some(state);
            }
            let changed = async {
                while self.known(one) == one.known {
                    tokio::time::sleep(OWN_LOOK).await;
                }
            };
            let _ = tokio::time::timeout(again, changed).await;
        }
    }

    fn known(&self, one: &Watched) -> Known {
        let led = self.registry.at_domain(&one.host).map(|led| led.id);
        // A load balancer before us has the certificates, if we serve plain HTTP.
        let wanting = self.urls.http_port.map_or_else(|| self.certs.wanting(one.host.as_str()), |_| None);
        Known { led, wanting }
    }

    /// How far a host name is.
    async fn look(&self, one: &mut Watched) -> Result<DomainState, Refusal> {
        self.possible(&one.host)?;
        let host = one.host.as_str();
        let own = format!("{}.{}", one.endpoint.name, self.urls.domain);
        let (proof, alias) = (self.proof(&one.host, &one.endpoint.owner), cname(host, &own));
        let texts = self.resolver.fresh_texts(&proof.name).await;
        let here = self.points_here(host, &own).await;
        if one.known.led != Some(one.endpoint.id) {
            let texts = match texts.as_ref() {
                Ok(texts) => texts,
                Err(error) => return Ok(self.waiting(one, error.to_string(), vec![proof, alias])),
            };
            self.may_have(one, texts)?;
            if !texts.contains(&proof.value) {
                let is_here = matches!(here, Ok(Where::Here));
                let detail = match is_here {
                    true => "set this record, which shows that it is yours",
                    false => "set these records: one shows that it is yours, the other leads it here",
                };
                let records = std::iter::once(proof).chain((!is_here).then_some(alias)).collect();
                return Ok(self.waiting(one, detail.into(), records));
            }
            match self.registry.lead(&one.host, one.known.led, &one.endpoint, &one.grant).await {
                Ok(()) => tracing::info!(host, endpoint = %one.endpoint.name, "host name leads to the endpoint"),
                Err(error @ (ClaimError::Store(_) | ClaimError::Led)) => {
                    return Ok(self.waiting(one, error.to_string(), vec![]));
                }
                Err(error) => return Err(Refusal(error.to_string())),
            }
            one.known.led = Some(one.endpoint.id);
        }
        let remark = match here {
            Ok(Where::Here) => None,
            // Who does not answer says nothing else than before.
            Err(_) if one.was_ready => None,
            Err(error) => return Ok(self.waiting(one, error.to_string(), vec![alias])),
            // A proxy there passes it on, as the CA has seen.
            Ok(elsewhere) if self.certs.acme().is_some() && one.known.wanting.is_none() => Some(elsewhere.to_string()),
            Ok(elsewhere) => {
                one.was_here = false;
                return Ok(self.waiting(one, elsewhere.to_string(), vec![alias]));
            }
        };
        if let Some(why) = &one.known.wanting {
            // What failed before was for want of DNS, most likely.
            let at_once = !std::mem::replace(&mut one.was_here, true);
            self.certs.want(host, at_once);
            return Ok(self.waiting(one, why.clone(), vec![]));
        }
        let is_gone = texts.is_ok_and(|texts| !texts.contains(&proof.value));
        let gone = is_gone.then(|| "the record that shows that it is yours is gone: another may have it".to_owned());
        let detail = [remark, gone].into_iter().flatten().collect::<Vec<_>>().join("; ");
        Ok(self.state(one, Stage::Ready, detail, if is_gone { vec![proof] } else { vec![] }))
    }

    /// Whether it is a name that could lead to an endpoint.
    fn possible(&self, host: &Host<'_>) -> Result<(), Refusal> {
        let why = if !host.is_domain_name() {
            "it is no name that others could look up".into()
        } else if LABEL.len() + 1 + host.as_str().len() > 253 {
            format!("it is too long: {LABEL}.{host} would be no name")
        } else if self.registry.is_own(host) {
            format!("names below {} are endpoints: ask for one with --name", self.urls.domain)
        } else {
            return Ok(());
        };
        Err(Refusal(why))
    }

    /// Whether nobody else has it, or took it away.
    fn may_have(&self, one: &Watched, texts: &[String]) -> Result<(), Refusal> {
        let before = self.registry.at_domain(&one.host);
        let why = match before {
            Some(before) if before.owner != one.endpoint.owner => {
                let theirs = self.proof(&one.host, &before.owner);
                if !texts.contains(&theirs.value) {
                    return Ok(());
                }
                let record = format!("{} TXT \"{}\"", theirs.name, theirs.value);
                format!("another owner has shown that it is his; this record says so: {record}")
            }
            Some(before) if one.was_ours => format!("another client has led it to `{}`", before.name),
            None if one.was_ours => "it was released".into(),
            _ => return Ok(()),
        };
        Err(Refusal(why))
    }

    /// Where DNS leads a host name.
    async fn points_here(&self, host: &str, own: &str) -> Result<Where, LookupError> {
        if self.resolver.alias(host).await?.as_deref() == Some(own) {
            return Ok(Where::Here);
        }
        let (theirs, ours) = tokio::join!(self.resolver.addresses(host), self.resolver.addresses(own));
        let (theirs, ours) = (theirs?, ours?);
        Ok(match theirs.is_empty() {
            true => Where::Nowhere(ours),
            false if theirs.is_disjoint(&ours) => Where::Elsewhere(theirs),
            false => Where::Here,
        })
    }

    /// The record that shows that a host name is an owner's.
    fn proof(&self, host: &Host<'_>, owner: &Owner) -> Record {
        let mut context = hmac::Context::with_key(&self.key);
        for part in ["domain", host.as_str(), owner.as_str()] {
            context.update(part.as_bytes());
            context.update(&[0]);
        }
        let hex = context.sign().as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Record { name: format!("{LABEL}.{host}"), kind: "TXT".into(), value: format!("hookway={hex}") }
    }

    fn waiting(&self, one: &Watched, detail: String, records: Vec<Record>) -> DomainState {
        self.state(one, Stage::Waiting, detail, records)
    }

    fn state(&self, one: &Watched, stage: Stage, detail: String, records: Vec<Record>) -> DomainState {
        let (host, endpoint) = (one.host.to_string(), one.endpoint.name.to_string());
        DomainState { url: self.urls.https(&host), host, endpoint, state: stage.into(), detail, records }
    }
}

/// Where DNS leads a host name.
enum Where {
    /// To this relay.
    Here,
    /// To no address; and these would be the relay's.
    Nowhere(BTreeSet<IpAddr>),
    /// To others.
    Elsewhere(BTreeSet<IpAddr>),
}

impl std::fmt::Display for Where {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.write_str("it leads here"),
            Self::Nowhere(ours) if ours.is_empty() => f.write_str("it leads nowhere yet"),
            Self::Nowhere(ours) => {
                write!(f, "it leads nowhere yet; where no CNAME can be set, give it the address {}", listed(ours))
            }
            Self::Elsewhere(theirs) => {
                write!(f, "it leads to {}, which is not this relay; a proxy there may pass it on", listed(theirs))
            }
        }
    }
}

fn cname(host: &str, own: &str) -> Record {
    Record { name: host.to_owned(), kind: "CNAME".into(), value: own.to_owned() }
}

/// Some addresses. Those of a network that is not the Internet are nobody's concern.
fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    let some: Vec<_> = addresses.iter().filter(|it| is_public(it)).take(4).map(ToString::to_string).collect();
    if some.is_empty() { "one that is not public".into() } else { some.join(", ") }
}
