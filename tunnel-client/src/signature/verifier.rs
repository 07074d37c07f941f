//! Which deliveries are checked with which secrets, and what comes of it.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::check::{Check, Found, STREAMED};
use super::claim::Unsigned;
use super::doctor;
use super::key::{InvalidSecret, Key};
use super::received::Received;
use super::{Known, Suspects};
use crate::exchange::Verdict;

/// A secret, and the deliveries that are checked with it.
#[derive(Clone)]
pub(crate) struct Rule {
    pub(crate) provider: Known,
    pub(crate) key: Key,
    /// The secret as it was given: its form may be what is wrong.
    pub(super) text: String,
    /// Where it is from: a variable, a file, the keyring.
    pub(crate) name: String,
    /// Of this endpoint only.
    pub(crate) endpoint: Option<String>,
    /// Of paths that begin so only.
    pub(crate) path: Option<String>,
    /// Whether it is the developer's own, which only their own requests are signed with.
    pub(crate) is_own: bool,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, name, endpoint, path, .. } = self;
        let provider = provider.facts().name;
        f.debug_struct("Rule")
            .field("provider", &provider)
            .field("name", name)
            .field("endpoint", endpoint)
            .field("path", path)
            .finish_non_exhaustive()
    }
}

impl Rule {
    /// A rule for all deliveries of the provider. `name` says where the secret is from.
    ///
    /// # Errors
    /// The text is no secret of the provider.
    pub(crate) fn new(provider: Known, secret: &str, name: &str) -> Result<Self, InvalidSecret> {
        if secret.trim().is_empty() {
            return Err(InvalidSecret("it is empty"));
        }
        let key = provider.key(secret)?;
        Ok(Self {
            provider,
            key,
            text: secret.to_owned(),
            name: name.to_owned(),
            endpoint: None,
            path: None,
            is_own: false,
        })
    }

    /// The same for deliveries of that endpoint, or to paths that begin so, only.
    pub(crate) fn only_for(self, endpoint: Option<String>, path: Option<String>) -> Self {
        Self { endpoint, path, ..self }
    }

    /// A rule for what the developer signs with a key of their own.
    pub(crate) fn own(provider: Known, key: Key) -> Self {
        let name = "your own key (hookway keys)".to_owned();
        Self { provider, key, text: String::new(), name, endpoint: None, path: None, is_own: true }
    }

    fn takes(&self, endpoint: &str, path: &str) -> bool {
        self.endpoint.as_deref().is_none_or(|own| own == endpoint)
            && self.path.as_deref().is_none_or(|own| takes_path(own, path))
    }
}

/// Whether a path begins so, whole segments that is.
pub(crate) fn takes_path(prefix: &str, path: &str) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}

/// The secrets that deliveries are checked with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verifier {
    pub(crate) rules: Arc<[Rule]>,
}

/// A delivery that is being looked at, while its body comes.
#[derive(Debug)]
pub(crate) struct Look {
    provider: Option<Known>,
    /// Whether none but the developer's own key is known for it.
    only_own: bool,
    /// Which rules hold, in the order of the check's keys.
    applied: Vec<usize>,
    /// When the relay received it.
    at: Timestamp,
    state: State,
}

#[derive(Debug)]
enum State {
    Checking(Box<Check>),
    Done(Cause),
}

/// What a look found.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub(crate) provider: Option<Known>,
    pub(super) applied: Vec<usize>,
    pub(super) cause: Cause,
}

/// Why a signature is good, bad, or neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It is good: this rule's secret made it.
    Good(usize),
    /// It is of no provider that is known.
    Unknown,
    /// No secret is known for it.
    NoSecret,
    /// There is nothing to check, or it cannot be read.
    Unsigned(Unsigned),
    /// It is as old as that, in milliseconds.
    Stale(i64),
    /// It is good for another body.
    OtherBody,
    /// It fits to none of the secrets.
    NoMatch,
}

impl Verifier {
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        Self { rules: rules.into() }
    }

    /// Begins to look at a delivery.
    pub(crate) fn look(&self, endpoint: &str, received: &Received<'_>) -> Look {
        let path = received.target.split('?').next().unwrap_or_default();
        let Some(provider) = self.whose(endpoint, path, received) else {
            return Look {
                provider: None,
                only_own: false,
                applied: vec![],
                at: received.at,
                state: State::Done(Cause::Unknown),
            };
        };
        let rules = self.rules.iter().enumerate();
        let applied = rules.filter(|(_, rule)| rule.provider.is(&provider) && rule.takes(endpoint, path));
        let applied = applied.map(|(index, _)| index).collect();
        self.check(provider, applied, received)
    }

    /// Whose delivery it is: what a rule says of its path, before what its header fields say, which its sender chose.
    fn whose(&self, endpoint: &str, path: &str, received: &Received<'_>) -> Option<Known> {
        let rules = || self.rules.iter().filter(|rule| rule.takes(endpoint, path));
        let of_path = || rules().filter(|rule| rule.path.is_some());
        let recognised = of_path().find(|rule| rule.provider.recognises(received)).or_else(|| of_path().next());
        let described = || {
            let is_described = |rule: &&Rule| matches!(rule.provider, Known::Described(_));
            rules().filter(is_described).find(|rule| rule.provider.recognises(received))
        };
        if let Some(rule) = recognised.or_else(described) {
            return Some(rule.provider.clone());
        }
        Known::of(received).or_else(|| {
            // Of whom all deliveries of an endpoint are; or whose signature stands in the body.
            let mut rules = rules().filter(|rule| rule.endpoint.is_some() || rule.provider.claim(received).is_ok());
            rules.next().map(|rule| rule.provider.clone())
        })
    }

    /// Looks at one as that provider's, with all the secrets.
    pub(crate) fn judge_as(&self, provider: &Known, received: &Received<'_>) -> Judged {
        let mut look = self.check(provider.clone(), (0..self.rules.len()).collect(), received);
        look.update(received.body.unwrap_or_default());
        look.finish()
    }

    fn check(&self, provider: Known, applied: Vec<usize>, received: &Received<'_>) -> Look {
        let done = |provider, cause| Look {
            provider,
            only_own: false,
            applied: vec![],
            at: received.at,
            state: State::Done(cause),
        };
        if applied.is_empty() {
            return done(Some(provider), Cause::NoSecret);
        }
        match provider.claim(received) {
            Err(unsigned) => done(Some(provider), Cause::Unsigned(unsigned)),
            Ok(claim) => {
                let keys: Vec<&Key> = applied.iter().map(|index| &self.rules[*index].key).collect();
                let check = Check::new(claim, &keys, received.body.map_or(STREAMED, <[u8]>::len));
                let only_own = applied.iter().all(|index| self.rules[*index].is_own);
                Look {
                    provider: Some(provider),
                    only_own,
                    applied,
                    at: received.at,
                    state: State::Checking(check.into()),
                }
            }
        }
    }

    /// Looks at a delivery whose body is whole.
    pub(crate) fn judge(&self, endpoint: &str, received: &Received<'_>) -> Judged {
        let mut look = self.look(endpoint, received);
        look.update(received.body.unwrap_or_default());
        look.finish()
    }

    /// Where the good signature's secret is from.
    pub(crate) fn secret_of(&self, judged: &Judged) -> Option<&Rule> {
        match judged.cause {
            Cause::Good(rule) => self.rules.get(rule),
            _ => None,
        }
    }

    /// The sentence that says why, and what to do; `None` where all is well, or nothing is known.
    pub(crate) fn explain(&self, judged: &Judged, received: &Received<'_>, suspects: &Suspects) -> Option<String> {
        doctor::explain(self, judged, received, suspects)
    }
}

impl Look {
    /// Whose delivery it is.
    pub(crate) const fn provider(&self) -> Option<&Known> {
        self.provider.as_ref()
    }

    /// Whether it is clear before its body that it cannot be found good.
    pub(crate) const fn is_refused(&self) -> bool {
        // Of a body that must be known first nothing is clear.
        !matches!(self.state, State::Checking(_) | State::Done(Cause::Unsigned(Unsigned::TooLong)))
    }

    /// More of the body.
    pub(crate) fn update(&mut self, data: &[u8]) {
        if let State::Checking(check) = &mut self.state {
            check.update(data);
        }
    }

    /// The body has ended.
    pub(crate) fn finish(self) -> Judged {
        let Self { provider, only_own, applied, at, state } = self;
        let tolerance = provider.as_ref().and_then(|provider| provider.facts().tolerance);
        let cause = match state {
            State::Done(cause) => cause,
            State::Checking(check) => match check.finish(tolerance, at) {
                Found::Good { key } => Cause::Good(applied[key]),
                Found::Stale { age_ms } => Cause::Stale(age_ms),
                Found::OtherBody => Cause::OtherBody,
                Found::Bad if only_own => Cause::NoSecret,
                Found::Bad => Cause::NoMatch,
                Found::TooLong => Cause::Unsigned(Unsigned::TooLong),
            },
        };
        Judged { provider, applied, cause }
    }
}

impl Judged {
    /// The same in a word.
    pub(crate) const fn verdict(&self) -> Verdict {
        match &self.cause {
            Cause::Good(_) => Verdict::Ok,
            Cause::Unknown | Cause::NoSecret | Cause::Unsigned(Unsigned::Missing(_) | Unsigned::TooLong) => {
                Verdict::None
            }
            Cause::Unsigned(Unsigned::Malformed(_)) | Cause::Stale(_) | Cause::OtherBody | Cause::NoMatch => {
                Verdict::Bad
            }
        }
    }

    /// Whether it is from whom it says it is, as far as that can be known here.
    pub(crate) const fn is_believable(&self) -> bool {
        matches!(self.cause, Cause::Good(_) | Cause::NoSecret)
    }

    /// Whether finding out why takes a while: mistakes are tried one after the other.
    pub(crate) fn is_puzzling(&self) -> bool {
        matches!(self.cause, Cause::NoMatch | Cause::OtherBody)
    }
}
