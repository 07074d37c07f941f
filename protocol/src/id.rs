//! The name of a delivery: a UUIDv7 (RFC 9562 §5.7), written `req_` and 26 Crockford base-32 digits.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const PREFIX: &str = "req_";

/// Names one delivery for ever: on the relay, on the wire, in the app's `Hookway-Delivery` header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId(Uuid);

impl DeliveryId {
    /// A new id, made of the current time and random bits.
    #[must_use]
    pub fn now() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id's 16 bytes, as they go over the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id made of these 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 128 bits in 26 digits of 5: the first digit holds the top 3.
        let mut text = *b"req_00000000000000000000000000";
        let mut rest = self.0.as_u128();
        for digit in text[PREFIX.len()..].iter_mut().rev() {
            *digit = DIGITS[(rest & 31) as usize];
            rest >>= 5;
        }
        f.pad(std::str::from_utf8(&text).expect("the digits are ASCII"))
    }
}

impl fmt::Debug for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no delivery id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a delivery id: it is req_ and 26 letters and digits")]
pub struct InvalidId;

impl FromStr for DeliveryId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let digits = text.strip_prefix(PREFIX).ok_or(InvalidId)?.as_bytes();
        if digits.len() != 26 || digits[0] > b'7' {
            return Err(InvalidId);
        }
        let value = digits.iter().try_fold(0u128, |value, digit| {
            let upper = digit.to_ascii_uppercase();
            let five = DIGITS.iter().position(|d| *d == upper).ok_or(InvalidId)?;
            Ok((value << 5) | five as u128)
        })?;
        Ok(Self(Uuid::from_u128(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_back(bytes: [u8; 16]) {
            let id = DeliveryId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().to_lowercase().parse(), Ok(id));
        }

        #[test]
        fn any_text_is_an_id_or_refused(text in "(req_)?[0-9A-Za-z]{20,30}") {
            if let Ok(id) = text.parse::<DeliveryId>() {
                prop_assert!(id.to_string().eq_ignore_ascii_case(&text));
            }
        }
    }

    #[test]
    fn text_sorts_like_time() {
        let ids: Vec<_> = (0..1000).map(|_| DeliveryId::now()).collect();
        assert!(ids.windows(2).all(|pair| pair[0].to_string() < pair[1].to_string()));
    }
}
