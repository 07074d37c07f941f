//! Keys: what secrets stand for.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac as mac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    ParsedPublicKey,
};
use aws_lc_rs::{digest, error::Unspecified};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::claim::{Encoding, Mac};

/// What a signature is checked with.
#[derive(Clone)]
pub(crate) enum Key {
    /// Of an HMAC.
    Mac(Vec<u8>),
    /// To be sent as it is.
    Secret(Vec<u8>),
    /// The public half on P-256, read from SPKI in DER (RFC 5480).
    P256(Arc<ParsedPublicKey>),
    /// The public half of an Ed25519 key, read from its 32 bytes.
    Ed25519(Arc<ParsedPublicKey>),
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mac(own), Self::Mac(other)) | (Self::Secret(own), Self::Secret(other)) => own == other,
            (Self::P256(own), Self::P256(other)) | (Self::Ed25519(own), Self::Ed25519(other)) => {
                own.as_ref().as_ref() == other.as_ref().as_ref()
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A text that is no secret of its provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSecret(pub(crate) &'static str);

impl Key {
    pub(super) fn is_p256(&self, digest: &digest::Digest, signature: &[u8]) -> bool {
        let Self::P256(key) = self else { return false };
        key.verify_digest_sig(digest, signature).is_ok()
    }

    pub(super) fn is_ed25519(&self, message: &[u8], signature: &[u8]) -> bool {
        let Self::Ed25519(key) = self else { return false };
        key.verify_sig(message, signature).is_ok()
    }

    /// What signs so that this key finds it good; a public half cannot.
    pub(crate) fn signer(&self) -> Option<Signer> {
        match self {
            Self::Mac(bytes) => Some(Signer::Mac(bytes.clone())),
            Self::Secret(bytes) => Some(Signer::Secret(bytes.clone())),
            Self::P256(_) | Self::Ed25519(_) => None,
        }
    }

    /// SPKI on P-256, in base64, with or without PEM's lines around it.
    pub(super) fn p256(text: &str) -> Option<Self> {
        let lines = text.lines().filter(|line| !line.starts_with("-----"));
        let der = BASE64_STANDARD.decode(lines.flat_map(str::split_whitespace).collect::<String>()).ok()?;
        Self::read_p256(&der)
    }

    fn read_p256(der: &[u8]) -> Option<Self> {
        // A point may be written in a third form that RFC 5480 §2.2 forbids: two texts would be one key.
        if matches!(der.get(26), Some(6 | 7)) {
            return None;
        }
        Some(Self::P256(ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, der).ok()?.into()))
    }

    /// The 32 bytes of an Ed25519 public key.
    pub(super) fn ed25519(bytes: &[u8]) -> Option<Self> {
        let key = Some(bytes).filter(|bytes| bytes.len() == 32)?;
        Some(Self::Ed25519(ParsedPublicKey::new(&ED25519, key).ok()?.into()))
    }
}

/// What signs.
pub(crate) enum Signer {
    Mac(Vec<u8>),
    Secret(Vec<u8>),
    Developer(DeveloperKey),
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(…)")
    }
}

impl Signer {
    /// The HMAC of the parts one behind the other, encoded; `None` for another kind of key.
    pub(crate) fn hmac(&self, algorithm: Mac, encoding: Encoding, parts: &[&[u8]]) -> Option<String> {
        let Self::Mac(key) = self else { return None };
        let mut context = mac::Context::with_key(&mac::Key::new(algorithm.algorithm(), key));
        parts.iter().for_each(|part| context.update(part));
        Some(encoding.encode(context.sign().as_ref()))
    }

    /// The signature of a developer's key of that kind.
    pub(crate) fn developer(&self, kind: KeyKind, parts: &[&[u8]]) -> Option<Vec<u8>> {
        match self {
            Self::Developer(key) if key.kind() == kind => key.sign(&parts.concat()).ok(),
            _ => None,
        }
    }
}

/// Kinds of keys of which one half is public.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    P256,
    Ed25519,
}

/// A key that a developer has in place of a provider's own: whose public half the app is told.
pub(crate) enum DeveloperKey {
    P256(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

impl fmt::Debug for DeveloperKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeveloperKey({:?}, …)", self.kind())
    }
}

impl DeveloperKey {
    /// A new one, as PKCS #8 (RFC 5958).
    pub(crate) fn generate(kind: KeyKind) -> Vec<u8> {
        let random = SystemRandom::new();
        let made = match kind {
            KeyKind::P256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random),
            KeyKind::Ed25519 => Ed25519KeyPair::generate_pkcs8(&random),
        };
        made.expect("the system has random bytes").as_ref().to_vec()
    }

    /// Reads PKCS #8.
    pub(crate) fn read(kind: KeyKind, pkcs8: &[u8]) -> Option<Self> {
        Some(match kind {
            KeyKind::P256 => Self::P256(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).ok()?.into()),
            KeyKind::Ed25519 => Self::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8).ok()?.into()),
        })
    }

    pub(crate) const fn kind(&self) -> KeyKind {
        match self {
            Self::P256(_) => KeyKind::P256,
            Self::Ed25519(_) => KeyKind::Ed25519,
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        Ok(match self {
            Self::P256(key) => key.sign(&SystemRandom::new(), message)?.as_ref().to_vec(),
            Self::Ed25519(key) => key.try_sign(message)?.as_ref().to_vec(),
        })
    }

    /// What finds its signatures good.
    pub(crate) fn public_key(&self) -> Key {
        match self {
            Self::P256(_) => Key::read_p256(&self.public()),
            Self::Ed25519(_) => Key::ed25519(&self.public()),
        }
        .expect("a key that was read")
    }

    /// The public half: SPKI in DER for P-256, 32 bytes for Ed25519.
    pub(crate) fn public(&self) -> Vec<u8> {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        match self {
            Self::P256(key) => {
                let der: PublicKeyX509Der<'_> = key.public_key().as_der().expect("a key that was read");
                der.as_ref().to_vec()
            }
            Self::Ed25519(key) => key.public_key().as_ref().to_vec(),
        }
    }
}
