//! Signatures of webhooks: who signs how, whether a delivery's is good and why not, and signing afresh.
//!
//! A provider is one file: it reads what a delivery claims, names its event, and signs. All checking, all comparing and the
//! looking for causes is here, for all of them alike.

mod check;
mod claim;
mod discord;
mod doctor;
mod github;
mod gitlab;
mod hmac;
mod key;
mod linear;
mod mailgun;
mod outgoing;
mod paddle;
mod received;
mod sendgrid;
mod shopify;
mod slack;
mod square;
mod standard;
mod stripe;
#[cfg(test)]
mod tests;
mod twilio;
mod verifier;
mod zoom;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hookway_protocol::headers::Headers;
use jiff::Timestamp;

use crate::exchange::Verdict;

pub(crate) use claim::{Claim, Encoding, Mac, Unsigned};
pub(crate) use doctor::Suspects;
pub(crate) use hmac::Hmac;
pub use key::InvalidSecret;
pub(crate) use key::{DeveloperKey, Key, KeyKind, Signer};
pub(crate) use outgoing::{CannotSign, Outgoing};
pub(crate) use received::{Named, Received, pairs};
pub(crate) use verifier::{Judged, Look, Rule, Verifier, takes_path};

/// The providers that are known by name, in the order in which they are looked for: GitLab before Standard Webhooks, whose
/// header fields it sends, too.
pub(crate) static PROVIDERS: &[&dyn Provider] = &[
    &stripe::Stripe,
    &github::GitHub,
    &slack::Slack,
    &shopify::Shopify,
    &twilio::Twilio,
    &sendgrid::SendGrid,
    &square::Square,
    &gitlab::GitLab,
    &standard::Standard,
    &discord::Discord,
    &linear::Linear,
    &paddle::Paddle,
    &zoom::Zoom,
    &mailgun::Mailgun,
];

/// A sender of webhooks, or many that sign in one way.
pub(crate) trait Provider: fmt::Debug + Send + Sync {
    /// What is known of it.
    fn facts(&self) -> &Facts;

    /// Whether a delivery is one of its: by header fields, which nobody else sends.
    fn recognises(&self, received: &Received<'_>) -> bool {
        received.has(self.facts().header)
    }

    /// What a delivery claims: its signatures, and what they are over.
    ///
    /// # Errors
    /// It has no signature, or one that cannot be read.
    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned>;

    /// The key that a secret's text stands for; the text itself unless the provider encodes it.
    ///
    /// # Errors
    /// The text is no secret of this provider.
    fn key(&self, secret: &str) -> Result<Key, InvalidSecret> {
        Ok(Key::Mac(secret.as_bytes().into()))
    }

    /// The delivery's event and ids.
    fn named(&self, received: &Received<'_>) -> Named;

    /// Whether it asks for an answer that only the app can give, before any event is sent.
    fn is_challenge(&self, _: &Received<'_>) -> bool {
        false
    }

    /// Whether it is the app's own words that the sender waits for, not only a status.
    fn wants_answer(&self, received: &Received<'_>) -> bool {
        self.is_challenge(received)
    }

    /// Signs a request as the provider would at that moment, in place of what signatures it has.
    ///
    /// # Errors
    /// It cannot be signed with such a key, or at all.
    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign>;
}

/// What is known of a provider, as its documentation says it.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// As flags and files name it.
    pub(crate) name: &'static str,
    /// As people name it.
    pub(crate) title: &'static str,
    /// Where it documents its signatures.
    pub(crate) page: &'static str,
    /// The header field that its deliveries are known by, which holds the signature unless `signed` says otherwise.
    pub(crate) header: &'static str,
    /// Algorithm, encoding and key in words.
    pub(crate) scheme: &'static str,
    /// What is signed, in words.
    pub(crate) signed: &'static str,
    /// The variable that usually holds the secret.
    pub(crate) secret_env: &'static str,
    /// How old or new a signature may be for the provider's own library.
    pub(crate) tolerance: Option<Tolerance>,
    /// An answer that takes longer counts as none.
    pub(crate) deadline: Option<Duration>,
    /// What the provider does when there was no good answer.
    pub(crate) retries: &'static str,
    /// What a sample says sent it.
    pub(crate) user_agent: &'static str,
    /// The content type of a sample.
    pub(crate) content_type: &'static str,
    /// The sample that is sent when none is named.
    pub(crate) sample: &'static str,
    /// Header fields of the first retry after a time-out, beside those of the delivery itself.
    pub(crate) retry: &'static [(&'static str, &'static str)],
    /// Whether it sends unsigned deliveries where no secret is set.
    pub(crate) may_be_unsigned: bool,
    /// What a developer's own key must be, where the provider's cannot be had.
    pub(crate) developer_key: Option<KeyKind>,
}

impl Facts {
    /// As a sentence names it.
    pub(crate) fn who(&self) -> &'static str {
        // These are many.
        if matches!(self.name, "standard" | "hmac") { "the sender" } else { self.title }
    }
}

/// How far a signature's time may be from the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tolerance {
    pub(crate) past: Duration,
    /// `None`: any time to come.
    pub(crate) future: Option<Duration>,
    /// Whether fractions of a second count.
    pub(crate) exact: bool,
}

impl Tolerance {
    /// So many seconds, in whole seconds as most libraries count.
    pub(crate) const fn past(seconds: u64) -> Self {
        Self { past: Duration::from_secs(seconds), future: None, exact: false }
    }

    /// The same to both sides.
    pub(crate) const fn both(seconds: u64) -> Self {
        Self { future: Some(Duration::from_secs(seconds)), ..Self::past(seconds) }
    }

    /// By the millisecond.
    pub(crate) const fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    /// The age in milliseconds of a signature made at `signed_ms` if it is too old at `at`, or, less than zero, too new; else 0.
    pub(crate) fn age_outside(self, signed_ms: i64, at: Timestamp) -> i64 {
        let at = at.as_millisecond();
        let now = if self.exact { at } else { at.div_euclid(1000) * 1000 };
        let age = now.saturating_sub(signed_ms);
        let most = |most: Duration| i64::try_from(most.as_millis()).unwrap_or(i64::MAX);
        match self.future.map(most) {
            _ if age > most(self.past) => age,
            Some(future) if age < -future => age,
            _ => 0,
        }
    }
}

/// What a signature cannot be checked with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVerify {
    /// There is no such provider.
    #[error("{0} is no provider that is known")]
    Provider(String),
    /// The text is no secret of it.
    #[error("the secret cannot be used: {0}")]
    Secret(#[from] InvalidSecret),
}

/// What is known of a webhook's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whether it is good.
    pub signature: Verdict,
    /// Why not, and what to do, in a sentence.
    pub detail: Option<String>,
}

/// A secret of a provider, for webhooks to be checked with.
#[derive(Clone, Debug)]
pub struct Secret {
    provider: Known,
    verifier: Verifier,
}

impl Secret {
    /// Reads a secret. `provider` is a name as `--verify` takes it.
    ///
    /// # Errors
    /// The provider is not known, or the text is no secret of its.
    pub fn new(provider: &str, secret: &str) -> Result<Self, InvalidVerify> {
        let known = Known::named(provider).ok_or_else(|| InvalidVerify::Provider(provider.to_owned()))?;
        let verifier = Verifier::new(vec![Rule::new(known.clone(), secret, "the secret")?]);
        Ok(Self { provider: known, verifier })
    }

    /// Whether a webhook that was received at that time is signed with it, as its provider documents it; and why not. The
    /// URL of providers that sign it is `https://`, the `Host` field, and the request's path and query.
    ///
    /// ```
    /// let secret = hookway::Secret::new("stripe", "whsec_secret")?;
    /// let webhook = http::Request::post("/stripe").header("stripe-signature", "t=1800000000,v1=00").body("{}")?;
    /// let found = secret.verify(&webhook, std::time::SystemTime::now());
    /// assert_eq!(found.signature, hookway::Verdict::Bad);
    /// println!("{}", found.detail.unwrap_or_default());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn verify<B: AsRef<[u8]>>(&self, webhook: &http::Request<B>, received: SystemTime) -> Verified {
        let headers: Headers = webhook.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let target = webhook.uri().path_and_query().map_or("/", |target| target.as_str());
        let at = Timestamp::try_from(received).unwrap_or(Timestamp::MAX);
        let received = Received { headers: &headers, target, body: Some(webhook.body().as_ref()), at };
        let judged = self.verifier.judge_as(&self.provider, &received);
        let detail = self.verifier.explain(&judged, &received, &Suspects::default());
        Verified { signature: judged.verdict(), detail }
    }
}

/// A provider of the table, or one that a file describes.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    Listed(&'static dyn Provider),
    Described(Arc<Hmac>),
}

impl Deref for Known {
    type Target = dyn Provider;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Listed(provider) => *provider,
            Self::Described(hmac) => &**hmac,
        }
    }
}

impl Known {
    /// The provider of that name; the plain HMAC for `hmac`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "hmac" => Some(Self::Described(Arc::default())),
            _ => {
                PROVIDERS.iter().find(|provider| provider.facts().name == name).map(|provider| Self::Listed(*provider))
            }
        }
    }

    /// The provider that a delivery is of, by its header fields.
    pub(crate) fn of(received: &Received<'_>) -> Option<Self> {
        PROVIDERS.iter().find(|provider| provider.recognises(received)).map(|provider| Self::Listed(*provider))
    }

    /// The names of all.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        PROVIDERS.iter().map(|provider| provider.facts().name).chain(["hmac"])
    }

    /// Whether it is that one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Described(own), Self::Described(other)) => own.is_same(other),
            (Self::Listed(own), Self::Listed(other)) => own.facts().name == other.facts().name,
            _ => false,
        }
    }
}
