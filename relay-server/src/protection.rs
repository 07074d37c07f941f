//! What protects an endpoint: who may send to it, whereto, how much and how often.

mod basic_auth;
mod guard;
mod paths;
mod source;

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

pub use basic_auth::{InvalidUser, User};
pub(crate) use guard::{Barred, Guard};
pub(crate) use paths::decode;
pub use paths::{InvalidPath, PathPrefix};
pub(crate) use source::network;
pub use source::{InvalidSource, PRESETS, Preset, Source};

use crate::limits::Rate;

/// Entries of a list at most.
pub const MAX_ENTRIES: usize = 1000;
/// Users of an endpoint at most.
pub const MAX_USERS: usize = 32;

/// What protects an endpoint beside the relay's own limits. Nothing of it is on by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Protection {
    /// Who may send: networks and presets. Empty: everybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Source>,
    /// Who may not, though he stands in `allow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Source>,
    /// Who may send with a name and a password (RFC 7617). Empty: nobody is asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    /// Whereto may be sent: these paths and what is below them. Empty: everywhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathPrefix>,
    /// Requests a second; the relay's own limit stays above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Bytes of a body; the relay's own limit stays above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<u64>,
}

/// It cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProtection {
    /// A list is too long.
    #[error("{what} has {count} entries; it can have {most}")]
    TooLong {
        /// Which.
        what: &'static str,
        /// So many it has.
        count: usize,
        /// So many it may have.
        most: usize,
    },
    /// Two users have one name: one of them would never get in.
    #[error("users has the name `{0}` twice")]
    Twice(String),
}

impl Protection {
    /// Whether it protects from nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it can be kept.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), InvalidProtection> {
        let lists = [
            ("allow", self.allow.len(), MAX_ENTRIES),
            ("deny", self.deny.len(), MAX_ENTRIES),
            ("paths", self.paths.len(), MAX_ENTRIES),
            ("users", self.users.len(), MAX_USERS),
        ];
        if let Some((what, count, most)) = lists.into_iter().find(|(_, count, most)| count > most) {
            return Err(InvalidProtection::TooLong { what, count, most });
        }
        let names = self.users.iter().map(User::name).enumerate();
        let twice = names.clone().find(|(at, name)| names.clone().take(*at).any(|(_, other)| other == *name));
        twice.map_or(Ok(()), |(_, name)| Err(InvalidProtection::Twice(name.to_owned())))
    }

    /// As it is kept; nothing for none.
    pub(crate) fn kept(text: &str) -> serde_json::Result<Self> {
        if text.is_empty() { Ok(Self::default()) } else { serde_json::from_str(text) }
    }
}

/// As it is shown: of users, the names.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a Protection);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Protection { allow, deny, users, paths, rate, max_body } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("allow", allow)?;
        map.serialize_entry("deny", deny)?;
        map.serialize_entry("users", &users.iter().map(User::name).collect::<Vec<_>>())?;
        map.serialize_entry("paths", paths)?;
        map.serialize_entry("rate", rate)?;
        map.serialize_entry("max_body", max_body)?;
        map.end()
    }
}

/// In a line, without secrets.
impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(what: &str, all: &[T]) -> Option<String> {
            const SHOWN: usize = 8;
            let mut shown: Vec<String> = all.iter().take(SHOWN).map(ToString::to_string).collect();
            if all.len() > SHOWN {
                shown.push(format!("and {} more", all.len() - SHOWN));
            }
            (!all.is_empty()).then(|| format!("{what} {}", shown.join(" ")))
        }
        let parts = [
            list("allow", &self.allow),
            list("deny", &self.deny),
            list("users", &self.users.iter().map(User::name).collect::<Vec<_>>()),
            list("paths", &self.paths),
            self.rate.map(|rate| format!("rate {rate}")),
            self.max_body.map(|bytes| format!("max-body {bytes}")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_and_shown_without_its_secrets() {
        let protection = Protection {
            allow: vec!["github".parse().expect("a preset"), "192.0.2.7".parse().expect("an address")],
            users: vec![User::new("ann:hunter2-secret").expect("a user")],
            paths: vec!["/stripe".parse().expect("a path")],
            rate: Some(Rate::per_second(5)),
            max_body: Some(10),
            ..Protection::default()
        };
        let kept = serde_json::to_string(&protection).expect("JSON");
        assert!(!kept.contains("hunter2"), "{kept}");
        assert_eq!(Protection::kept(&kept).expect("read"), protection);
        assert_eq!(protection.to_string(), "allow github 192.0.2.7, users ann, paths /stripe, rate 5/s, max-body 10");
        assert_eq!(Protection::kept("").expect("none").to_string(), "nothing");
        assert!(Protection::kept(r#"{"alow": []}"#).is_err());
        let long =
            Protection { deny: vec!["192.0.2.7".parse().expect("one"); MAX_ENTRIES + 1], ..Protection::default() };
        assert_eq!(long.check().expect_err("too long").to_string(), "deny has 1001 entries; it can have 1000");
    }
}
