//! What a delivery claims of its signature.

use aws_lc_rs::hmac as mac;

/// A delivery has this many signatures at most; more are not looked at.
const MOST: usize = 16;

/// The signatures of a delivery, and what they are over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// One that is good is enough.
    pub(crate) signatures: Vec<Signature>,
    /// What is signed; several where the sender may have seen another URL than the relay.
    pub(crate) messages: Vec<Message>,
    /// When it was signed, in milliseconds since 1970.
    pub(crate) signed_ms: Option<i64>,
    /// The SHA-256 that the body must have, in hex, where only that is signed.
    pub(crate) body_sha256: Option<String>,
}

/// What is signed: something before the body, the body or not, something behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) before: Vec<u8>,
    pub(crate) has_body: bool,
    pub(crate) after: Vec<u8>,
}

/// One signature as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) scheme: Scheme,
    /// As encoded. It is compared so, too: what a provider's library refuses must not be found good here.
    pub(crate) text: String,
}

/// How a signature is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// RFC 2104.
    Hmac(Mac, Encoding),
    /// ECDSA on P-256 with SHA-256, ASN.1 DER in base64 (FIPS 186-5, RFC 3279 §2.2.3).
    P256,
    /// RFC 8032.
    Ed25519(Encoding),
    /// The secret itself.
    Secret,
}

/// Hash functions for HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mac {
    /// For what signs so still.
    Sha1,
    Sha256,
    Sha512,
}

impl Mac {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }

    pub(crate) const fn algorithm(self) -> mac::Algorithm {
        match self {
            Self::Sha1 => mac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => mac::HMAC_SHA256,
            Self::Sha512 => mac::HMAC_SHA512,
        }
    }
}

/// How bytes are written in a header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Lower-case hexadecimal digits.
    Hex,
    /// RFC 4648 §4, padded.
    Base64,
}

impl Encoding {
    pub(crate) fn encode(self, bytes: &[u8]) -> String {
        use base64::Engine;
        match self {
            Self::Hex => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            Self::Base64 => base64::prelude::BASE64_STANDARD.encode(bytes),
        }
    }

    /// The bytes; `None` for anything that [`Self::encode`] does not write.
    pub(crate) fn decode(self, text: &str) -> Option<Vec<u8>> {
        use base64::Engine;
        match self {
            Self::Hex => {
                let digit = |byte: u8| match byte {
                    b'0'..=b'9' => Some(byte - b'0'),
                    b'a'..=b'f' => Some(byte - b'a' + 10),
                    _ => None,
                };
                let pairs = text.as_bytes().chunks_exact(2);
                let whole = pairs.remainder().is_empty();
                pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect::<Option<_>>().filter(|_| whole)
            }
            Self::Base64 => base64::prelude::BASE64_STANDARD.decode(text).ok(),
        }
    }
}

/// Why there is nothing to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unsigned {
    /// There is no signature: that field, or that part of the body, is not there.
    Missing(&'static str),
    /// There is one, but it cannot be read, for this reason.
    Malformed(String),
    /// What is signed is known only with the whole body, which is too long to be kept.
    TooLong,
}

impl Claim {
    /// A claim of one signature over the body.
    pub(crate) fn new(scheme: Scheme, text: impl Into<String>) -> Self {
        let message = Message { has_body: true, ..Message::default() };
        Self { signatures: vec![], messages: vec![message], signed_ms: None, body_sha256: None }.or(scheme, text)
    }

    /// One more, any of which may be good.
    pub(crate) fn or(mut self, scheme: Scheme, text: impl Into<String>) -> Self {
        if self.signatures.len() < MOST {
            self.signatures.push(Signature { scheme, text: text.into() });
        }
        self
    }

    /// Over this before the body.
    pub(crate) fn over(self, before: &[&str]) -> Self {
        let before = before.concat().into_bytes();
        Self { messages: vec![Message { before, has_body: true, after: vec![] }], ..self }
    }

    /// Over this alone; any of them.
    pub(crate) fn over_only(self, messages: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let message = |before| Message { before, ..Message::default() };
        Self { messages: messages.into_iter().map(message).collect(), ..self }
    }

    /// Made at that time.
    ///
    /// # Errors
    /// The text is no number.
    pub(crate) fn signed_at(self, seconds: &str) -> Result<Self, Unsigned> {
        let number = seconds.parse::<i64>().ok().filter(|number| *number >= 0).and_then(|s| s.checked_mul(1000));
        match number {
            Some(ms) => Ok(Self { signed_ms: Some(ms), ..self }),
            None => Err(Unsigned::Malformed(format!("its timestamp `{}` is no number of seconds", shortened(seconds)))),
        }
    }
}

/// The values of `key=value` parts, in order.
pub(crate) fn values<'a>(text: &'a str, separator: char, key: &str) -> impl Iterator<Item = &'a str> {
    text.split(separator).filter_map(|part| part.split_once('=')).filter(move |(own, _)| *own == key).map(|(_, v)| v)
}

/// As much of a text from outside as a sentence has room for.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}
