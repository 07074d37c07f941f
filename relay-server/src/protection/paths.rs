//! Whereto may be sent: a path and what is below it, held against what an app could take a path for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path's length at most, in bytes.
const MAX_LENGTH: usize = 256;

/// A path, and all below it: `/stripe` is `/stripe`, `/stripe?a=1` and `/stripe/events`, not `/stripes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPrefix(String);

/// It is no path that can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a path is one such as /stripe: it begins with /, is at most {MAX_LENGTH} long, and has no ?, #, %, \\, dots alone or spaces"
)]
pub struct InvalidPath;

impl PathPrefix {
    /// Whether a request's path is it or below it. What an app could take for another path is not: it decodes `%2e`,
    /// turns `\` into `/`, cuts `;…` off and goes back at `..` (RFC 3986 §5.2.4).
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(self.0.trim_end_matches('/')) else { return false };
        (rest.is_empty() && !self.0.ends_with('/') || rest.starts_with('/')) && !is_ambiguous(path)
    }
}

fn is_ambiguous(path: &str) -> bool {
    let Some(decoded) = decode(path.as_bytes()) else { return true };
    let is_dots = |segment: &[u8]| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    };
    decoded.iter().any(|byte| matches!(byte, b'\\' | b'%' | 0..0x20 | 0x7f))
        || decoded.split(|byte| *byte == b'/').any(is_dots)
        // A slash that was written otherwise parts the path for some.
        || decoded.iter().filter(|byte| **byte == b'/').count() != path.matches('/').count()
}

/// What `%XX` stands for; `None` where it stands for nothing.
pub(crate) fn decode(path: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(byte) = rest.next() {
        let hex = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
        decoded.push(match byte {
            b'%' => u8::try_from(hex(rest.next())? * 16 + hex(rest.next())?).ok()?,
            byte => *byte,
        });
    }
    Some(decoded)
}

impl FromStr for PathPrefix {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let is_plain = |b: u8| b.is_ascii_graphic() && !b"?#%\\\"<>".contains(&b);
        let fits =
            text.starts_with('/') && text.len() <= MAX_LENGTH && text.bytes().all(is_plain) && !is_ambiguous(text);
        fits.then(|| Self(text.to_owned())).ok_or(InvalidPath)
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PathPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PathPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/stripe", "/stripe", true)]
    #[case("/stripe", "/stripe/events", true)]
    #[case("/stripe", "/stripe/", true)]
    #[case("/stripe", "/stripe/caf%C3%A9", true)]
    #[case("/stripe", "/stripes", false)]
    #[case("/stripe", "/Stripe", false)]
    #[case("/stripe", "/", false)]
    #[case("/stripe", "/%73tripe", false)]
    #[case("/stripe", "//stripe", false)]
    #[case("/stripe", "*", false)]
    #[case("/stripe/", "/stripe/x", true)]
    #[case("/stripe/", "/stripe", false)]
    #[case("/", "/anything", true)]
    #[case("/", "/", true)]
    #[case("/stripe", "/stripe/../admin", false)]
    #[case("/stripe", "/stripe/./x", false)]
    #[case("/stripe", "/stripe/..", false)]
    #[case("/stripe", "/stripe/%2e%2e/admin", false)]
    #[case("/stripe", "/stripe/%2E./admin", false)]
    #[case("/stripe", "/stripe/%252e%252e/admin", false)]
    #[case("/stripe", "/stripe%2f..%2fadmin", false)]
    #[case("/stripe", "/stripe/..;/admin", false)]
    #[case("/stripe", "/stripe/..;a=b/admin", false)]
    #[case("/stripe", "/stripe/..%3b/admin", false)]
    #[case("/stripe", "/stripe/..\\admin", false)]
    #[case("/stripe", "/stripe\\..\\admin", false)]
    #[case("/stripe", "/stripe/%5c..%5cadmin", false)]
    #[case("/stripe", "/stripe/a%2fb", false)]
    #[case("/stripe", "/stripe/%00", false)]
    #[case("/stripe", "/stripe/%zz", false)]
    #[case("/stripe", "/stripe/%2", false)]
    #[case("/stripe", "/stripe/..x", true)]
    fn what_is_below(#[case] prefix: &str, #[case] path: &str, #[case] is_below: bool) {
        assert_eq!(prefix.parse::<PathPrefix>().expect("a path").has(path), is_below);
    }

    #[rstest]
    #[case("stripe")]
    #[case("")]
    #[case("/a b")]
    #[case("/a?b")]
    #[case("/a/../b")]
    #[case("/%61")]
    #[case("/ü")]
    fn what_is_no_path(#[case] text: &str) {
        assert_eq!(text.parse::<PathPrefix>(), Err(InvalidPath));
    }
}
