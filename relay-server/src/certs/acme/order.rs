//! One order: from the names to the certificate, and what its failure means.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier, NewOrder, Order,
    OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::challenge::{Prover, Shown, Unshown};
use super::http::{Busy, Unanswered};
use super::{LATER, LATER_MOST, SOON, SOON_MOST, random};
use crate::certs::leaf::{Leaf, Unusable};
use crate::store::StoreError;

/// The CA has looked at the challenges, and has made the certificate, within this time each.
const POLLED_FOR: Duration = Duration::from_secs(120);

/// All names are shown to be ours within this time.
const PROVEN_IN: Duration = Duration::from_secs(5 * 60);

/// A new certificate.
pub(super) struct Ordered {
    pub(super) leaf: Leaf,
    /// In PEM, leaf first.
    pub(super) chain: String,
    /// In PEM.
    pub(super) key: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("{}", in_words(.0))]
    Acme(#[from] Error),
    #[error("{record}: the challenge cannot be shown: {}", chain(why))]
    Unshown { record: String, why: Unshown },
    #[error(
        "the CA makes no account bound to the external account {kid} (--acme-eab-kid, --acme-eab-key-file): {}",
        in_words(why)
    )]
    Unbound { kid: String, why: Error },
    #[error("the CA offers no {kind} challenge for {name}")]
    NotOffered { name: String, kind: &'static str },
    #[error("{record}: the CA did not find what it looked for: {why}")]
    Invalid { record: String, why: String },
    #[error("the CA ended the order as {0:?}")]
    Status(OrderStatus),
    #[error("the CA's certificate cannot be used: {0}")]
    Unusable(#[from] Unusable),
    #[error("no key can be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the order took too long: it was given up after {} s", .0.as_secs())]
    Slow(Duration),
}

impl Failed {
    fn problem(&self) -> Option<&str> {
        match self {
            Self::Acme(Error::Api(problem)) => kind(problem),
            _ => None,
        }
    }

    /// The CA does not know the account.
    pub(super) fn is_no_account(&self) -> bool {
        self.problem() == Some("accountDoesNotExist")
    }

    /// Whether it may pass by itself.
    fn is_passing(&self) -> bool {
        match self {
            Self::Acme(Error::Api(problem)) => {
                matches!(
                    kind(problem),
                    Some("badNonce" | "rateLimited" | "serverInternal" | "alreadyReplaced" | "orderNotReady")
                )
            }
            Self::Acme(_) | Self::Store(_) | Self::Slow(_) => true,
            Self::Unshown { why: Unshown::Update(error), .. } => error.is_passing(),
            Self::Unbound { why: Error::Other(_), .. } => true,
            _ => false,
        }
    }

    /// How long to wait after so many failures in a row.
    pub(super) fn wait(&self, failures: u32) -> Duration {
        let (first, most) = if self.is_passing() { (SOON, SOON_MOST) } else { (LATER, LATER_MOST) };
        let own = first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(most);
        // Not all relays at the same time.
        let own = own.mul_f64(0.75 + 0.25 * f64::from(u16::try_from(random(1000)).unwrap_or(0)) / 1000.0);
        let asked = match self {
            Self::Acme(Error::Other(error)) | Self::Unbound { why: Error::Other(error), .. } => {
                busy(error.as_ref()).and_then(|busy| busy.retry_after)
            }
            _ => None,
        };
        own.max(asked.unwrap_or_default())
    }
}

/// Orders a certificate for these names, in place of an old one.
pub(super) async fn order(
    account: &Account,
    prover: &Prover,
    names: &[String],
    old: Option<&Leaf>,
) -> Result<Ordered, Failed> {
    let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
    let replaced = old.and_then(|old| CertificateIdentifier::try_from(&old.key.cert[0]).ok());
    let replacing = match replaced {
        Some(replaced) => account.new_order(&NewOrder::new(&identifiers).replaces(replaced)).await.map(Some),
        None => Ok(None),
    };
    let mut order = match replacing {
        Ok(Some(order)) => order,
        Err(error) if !is_about_replacing(&error) => return Err(error.into()),
        // A CA may have many reasons not to take it for a replacement (RFC 9773 §5); it is a certificate all the same.
        Ok(None) | Err(_) => account.new_order(&NewOrder::new(&identifiers)).await?,
    };
    let mut shown = Vec::new();
    let proven_in = PROVEN_IN + prover.wait();
    let proved = tokio::time::timeout(proven_in, prove(&mut order, prover, &mut shown)).await;
    for shown in shown {
        prover.take_back(shown).await;
    }
    proved.unwrap_or(Err(Failed::Slow(proven_in)))?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&polls()).await?;
    let key = key.serialize_pem();
    Ok(Ordered { leaf: Leaf::read(&chain, &key)?, chain, key })
}

/// Whether an order that replaces a certificate may have failed for that.
fn is_about_replacing(error: &Error) -> bool {
    match error {
        Error::Api(problem) => {
            !matches!(kind(problem), Some("rateLimited" | "accountDoesNotExist" | "badNonce" | "serverInternal"))
        }
        Error::Other(error) => !error.is::<Unanswered>(),
        _ => true,
    }
}

fn polls() -> RetryPolicy {
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(2.0).timeout(POLLED_FOR)
}

/// Shows the CA that the names are ours.
async fn prove(order: &mut Order, prover: &Prover, shown: &mut Vec<Shown>) -> Result<(), Failed> {
    let kind = prover.kind();
    // All of it can be seen before the CA looks at any: two records of one name are asked for at once.
    for is_ready in [false, true] {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let Identifier::Dns(name) = authorization.identifier().identifier.clone() else { continue };
            let not_offered = || Failed::NotOffered { name: name.clone(), kind: kind_name(&kind) };
            let mut challenge = authorization.challenge(kind.clone()).ok_or_else(not_offered)?;
            if is_ready {
                challenge.set_ready().await?;
            } else {
                let (token, key) = (challenge.token.clone(), challenge.key_authorization());
                // Whatever becomes of it is taken back.
                shown.push(prover.shown(&name, &token, &key));
                let is_shown = prover.show(&shown[shown.len() - 1], &key).await;
                is_shown.map_err(|why| Failed::Unshown { record: record(&kind, name), why })?;
            }
        }
        if !is_ready {
            tokio::time::sleep(prover.wait()).await;
        }
    }
    match order.poll_ready(&polls()).await {
        Ok(OrderStatus::Ready | OrderStatus::Valid) => Ok(()),
        Ok(status) => Err(why(order, &kind).await.unwrap_or(Failed::Status(status))),
        Err(Error::Api(problem)) => Err(why(order, &kind).await.unwrap_or(Failed::Acme(Error::Api(problem)))),
        Err(error) => Err(error.into()),
    }
}

/// What the CA says of the challenge that it did not find met.
async fn why(order: &mut Order, kind: &ChallengeType) -> Option<Failed> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization.ok()?;
        let Identifier::Dns(name) = authorization.identifier().identifier.clone() else { continue };
        let Some(problem) = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref()) else {
            continue;
        };
        return Some(Failed::Invalid { record: record(kind, name), why: said(problem) });
    }
    None
}

/// What the CA looks for, for a name.
fn record(kind: &ChallengeType, name: String) -> String {
    match kind {
        ChallengeType::Dns01 => format!("_acme-challenge.{name}"),
        _ => name,
    }
}

const fn kind_name(kind: &ChallengeType) -> &'static str {
    match kind {
        ChallengeType::Http01 => "http-01",
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        _ => "dns-01",
    }
}

/// The last word of a problem's type.
fn kind(problem: &Problem) -> Option<&str> {
    problem.r#type.as_deref()?.rsplit(':').next()
}

fn said(problem: &Problem) -> String {
    let parts = [problem.detail.as_deref(), kind(problem)];
    let mut text = parts.into_iter().flatten().collect::<Vec<_>>().join(" — ");
    for problem in &problem.subproblems {
        text = format!("{text}; {problem}");
    }
    // It comes from the CA, and goes into logs and onto terminals.
    let harmless = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    text.chars().take(500).map(harmless).collect()
}

/// What a person can do something with.
pub(super) fn in_words(error: &Error) -> String {
    match error {
        Error::Api(problem) => {
            let hint = match kind(problem) {
                Some("externalAccountRequired") => "; it wants --acme-eab-kid and --acme-eab-key-file",
                _ if problem.detail.as_deref().is_some_and(|text| text.to_lowercase().contains("external account")) => {
                    "; look at --acme-eab-kid and --acme-eab-key-file"
                }
                _ => "",
            };
            format!("the CA refused: {}{hint}", said(problem))
        }
        Error::Other(error) => match busy(error.as_ref()) {
            Some(busy) => busy.in_words(),
            None => {
                let text = chain(error.as_ref());
                let untrusted = text.contains("certificate") || text.contains("UnknownIssuer");
                let hint = if untrusted { "; a CA of your own is trusted by --acme-ca" } else { "" };
                format!("the CA cannot be reached: {text}{hint}")
            }
        },
        Error::Timeout(_) => format!("the CA did not get on with the order in time ({} s)", POLLED_FOR.as_secs()),
        error => format!("the CA answered nonsense: {error}"),
    }
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        if !text.contains(&error.to_string()) {
            text = format!("{text}: {error}");
        }
        next = error.source();
    }
    text
}

/// The answer of a CA that takes nothing at present.
fn busy<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Busy> {
    error.downcast_ref::<Unanswered>()?.error.get_ref()?.downcast_ref()
}

impl Busy {
    fn in_words(&self) -> String {
        match &self.problem {
            Some(problem) => format!("the CA answered {}: {}", self.status, said(problem)),
            None => self.to_string(),
        }
    }
}
