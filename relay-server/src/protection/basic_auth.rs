//! Names and passwords (RFC 7617). A password is kept as PBKDF2 of it: people choose them.

use std::num::NonZeroU32;

use aws_lc_rs::{pbkdf2, rand};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use http::HeaderValue;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// OWASP's figure for PBKDF2-HMAC-SHA256 (Password Storage Cheat Sheet).
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("it is not 0");
const MAX_LENGTH: usize = 256;

/// Somebody who may send, and how his password is known again.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    rounds: NonZeroU32,
    salt: [u8; 16],
    hash: [u8; 32],
}

/// It is no name and password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a user is NAME:PASSWORD, without control characters, both at most {MAX_LENGTH} bytes, the password at least 8"
)]
pub struct InvalidUser;

impl User {
    /// Somebody with that name and password, given as `NAME:PASSWORD`.
    ///
    /// # Errors
    /// It is too short, too long, or cannot be sent so.
    ///
    /// # Panics
    /// When the operating system gives no random bytes.
    pub fn new(text: &str) -> Result<Self, InvalidUser> {
        let (name, password) = text.split_once(':').ok_or(InvalidUser)?;
        let fits = (1..=MAX_LENGTH).contains(&name.len()) && (8..=MAX_LENGTH).contains(&password.len());
        if !fits || text.contains(char::is_control) {
            return Err(InvalidUser);
        }
        let (mut salt, mut hash) = ([0; 16], [0; 32]);
        rand::fill(&mut salt).expect("the operating system gives random bytes");
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, password.as_bytes(), &mut hash);
        Ok(Self { name: name.to_owned(), rounds: ROUNDS, salt, hash })
    }

    /// His name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is his password. Takes about a fifth of a second.
    pub(super) fn has(&self, password: &[u8]) -> bool {
        pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, self.rounds, &self.salt, password, &self.hash).is_ok()
    }

    fn read(text: &str) -> Option<Self> {
        let [kind, rounds, salt, hash, name] = text.splitn(5, '$').collect::<Vec<_>>().try_into().ok()?;
        let bytes = |text: &str| BASE64_STANDARD_NO_PAD.decode(text).ok();
        (kind == "pbkdf2-sha256").then_some(())?;
        Some(Self {
            name: name.to_owned(),
            rounds: rounds.parse().ok()?,
            salt: bytes(salt)?.try_into().ok()?,
            hash: bytes(hash)?.try_into().ok()?,
        })
    }
}

/// What a request says who sends it: `NAME:PASSWORD`. Nobody has one with control characters: with zeros at its end, say,
/// another text would pass for the password (RFC 2104 §2 fills keys up with them).
pub(super) fn credentials(authorization: &HeaderValue) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = authorization.to_str().ok()?.split_once(' ')?;
    let decoded = scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(encoded.trim()).ok())??;
    let text = String::from_utf8(decoded).ok().filter(|text| !text.contains(char::is_control))?;
    let (name, password) = text.split_once(':')?;
    (password.len() <= MAX_LENGTH).then(|| (name.to_owned(), password.as_bytes().to_vec()))
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("User").field(&self.name).finish()
    }
}

impl Serialize for User {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |bytes: &[u8]| BASE64_STANDARD_NO_PAD.encode(bytes);
        let Self { name, rounds, salt, hash } = self;
        serializer.collect_str(&format_args!("pbkdf2-sha256${rounds}${}${}${name}", text(salt), text(hash)))
    }
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::read(&text).ok_or_else(|| serde::de::Error::custom("no user as it is kept"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_again_and_not_kept() {
        let user = User::new("ann:pass:word 1").expect("a user");
        assert!(user.has(b"pass:word 1"));
        assert!(!user.has(b"pass:word 2"));
        let kept = serde_json::to_string(&user).expect("JSON");
        assert!(!kept.contains("word"), "{kept}");
        let read: User = serde_json::from_str(&kept).expect("read");
        assert_eq!(read, user);
        assert_eq!(format!("{user:?}"), "User(\"ann\")");
    }

    #[test]
    fn what_is_no_user() {
        let long = format!("ann:{}", "x".repeat(MAX_LENGTH + 1));
        for text in ["ann", "ann:short", ":password", "ann:pass\nword", &long] {
            assert_eq!(User::new(text).expect_err("none"), InvalidUser, "{text:?}");
        }
    }

    #[test]
    fn what_a_request_says() {
        let said = |text: &str| credentials(&HeaderValue::from_str(text).expect("a value"));
        let encoded = BASE64_STANDARD.encode("ann:pass:word");
        let ann = Some(("ann".to_owned(), b"pass:word".to_vec()));
        assert_eq!(said(&format!("Basic {encoded}")), ann);
        assert_eq!(said(&format!("bAsIc  {encoded}")), ann);
        let nul = BASE64_STANDARD.encode("ann:password\0");
        for text in ["Basic", "Basic !", "Bearer abc", "Basic YW5u", "Basic ", &format!("Basic {nul}")] {
            assert_eq!(said(text), None, "{text}");
        }
    }
}
