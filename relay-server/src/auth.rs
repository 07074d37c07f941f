//! Tokens: who may connect, and which names they may serve.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hookway_protocol::host::EndpointName;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::store::TokenRow;

/// Secret scanners know a token by this.
const PREFIX: &str = "hwt_";

/// A token as its holder has it: 256 random bits. Never stored, never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new token.
    ///
    /// # Panics
    /// When the operating system gives no random bytes.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).expect("the operating system gives random bytes");
        Self(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The token's text, for its holder.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored of it. Plain SHA-256 is enough: nobody guesses 256 random bits.
    pub(crate) fn hash(&self) -> [u8; 32] {
        digest::digest(&digest::SHA256, self.0.as_bytes()).as_ref().try_into().expect("SHA-256 is 32 bytes")
    }
}

impl FromStr for Token {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let fits = text.len() == PREFIX.len() + 43 && text.starts_with(PREFIX);
        fits.then(|| Self(text.to_owned())).ok_or(())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What a token is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Clients: to connect, and to serve endpoints
    #[default]
    Client,
    /// The admin API: to look at everything, and to change it
    Admin,
    /// The admin API: to look at everything
    Read,
}

impl Scope {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Admin => "admin",
            Self::Read => "read",
        }
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        [Self::Client, Self::Admin, Self::Read].into_iter().find(|scope| scope.name() == text).ok_or(UnknownScope)
    }
}

/// A token is for something that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token is for client, admin or read")]
pub struct UnknownScope;

/// Who a token is for: 1 to 64 letters, digits and `-_.@+`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenName(pub String);

/// Names that a token may serve: an endpoint's name in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPattern(pub String);

impl FromStr for TokenName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@+".contains(&b);
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(is_plain);
        fits.then(|| Self(text.to_owned())).ok_or_else(|| "a name is 1 to 64 letters, digits and -_.@+".into())
    }
}

impl FromStr for TokenPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-*".contains(&b);
        let fits = (1..=63).contains(&text.len()) && text.bytes().all(is_plain);
        let what = "a pattern is an endpoint name in which * stands for anything";
        fits.then(|| Self(text.to_owned())).ok_or_else(|| what.into())
    }
}

impl<'de> Deserialize<'de> for TokenName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for TokenPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A token just made: the only time its text is known.
#[derive(Debug)]
pub struct NewToken {
    /// The secret text.
    pub token: Token,
    /// What is known of it from now on.
    pub row: crate::store::TokenRow,
}

/// Who owns endpoints: the name of a token. Tokens of one name are one owner, so a token is replaced by making
/// another of the same name and revoking the first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner(Arc<str>);

impl Owner {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Owner {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a valid token allows.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) token_id: String,
    pub(crate) hash: [u8; 32],
    pub(crate) owner: Owner,
    pub(crate) expires_at: Option<Timestamp>,
    patterns: Vec<String>,
}

impl Grant {
    /// What a client's token allows; those of operators let no client in.
    pub(crate) fn of(row: TokenRow) -> Option<Self> {
        let TokenRow { id: token_id, name, hash, endpoints: patterns, scope, expires_at, .. } = row;
        let owner = Owner::from(name.as_str());
        (scope == Scope::Client).then_some(Self { token_id, hash, owner, expires_at, patterns })
    }

    /// Whether the token may serve this name.
    pub(crate) fn allows(&self, name: &EndpointName) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| matches(pattern, name.as_str()))
    }

    pub(crate) fn patterns(&self) -> String {
        self.patterns.join(", ")
    }

    /// A name that the token may serve, made of `random` and the first pattern.
    pub(crate) fn fill_in(&self, random: &str) -> String {
        self.patterns
            .first()
            .map_or_else(|| random.to_owned(), |pattern| pattern.replacen('*', random, 1).replace('*', ""))
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= Timestamp::now())
    }
}

/// Whether a name fits a pattern, in which `*` stands for any number of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or("");
    for part in parts {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.len() >= end.len() && name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("billing-*", "billing-a", true)]
    #[case("billing-*", "billing-", true)]
    #[case("billing-*", "billing", false)]
    #[case("*", "anything", true)]
    #[case("*-dev", "a-dev", true)]
    #[case("a*a", "a", false)]
    #[case("a*b*c", "a-b-c", true)]
    #[case("a*b*c", "a-c-b", false)]
    #[case("exact", "exact", true)]
    #[case("exact", "exactly", false)]
    fn patterns(#[case] pattern: &str, #[case] name: &str, #[case] fits: bool) {
        assert_eq!(matches(pattern, name), fits);
    }

    #[test]
    fn a_token_has_256_bits_and_is_not_shown() {
        let token = Token::random();
        assert_ne!(token, Token::random());
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert!("hwt_short".parse::<Token>().is_err());
    }
}
