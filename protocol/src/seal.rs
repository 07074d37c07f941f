//! A delivery sealed to its client: what a relay keeps on its disk, nobody but the client can read.
//!
//! The box is one byte of version, the relay's key for this delivery alone (X25519, RFC 7748), and head, trailers and
//! body under AES-256-GCM (SP 800-38D). Its key is HKDF-SHA256 (RFC 5869) over what the two keys agree on, bound to
//! both; each key seals one box, so the nonce is always zero. The delivery's id is authenticated with it: a box put
//! in another's place does not open. This is the shape of HPKE's base mode (RFC 9180) without its negotiation.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, EphemeralPrivateKey, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf;
use aws_lc_rs::rand::SystemRandom;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::id::DeliveryId;

const VERSION: u8 = 1;
const INFO: &[u8] = b"hookway sealed delivery 1";
/// A public key's length, in bytes.
pub const PUBLIC_KEY: usize = 32;

/// A delivery as it is sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The encoding of its head.
    pub head: Bytes,
    /// The encoding of its trailers.
    pub trailers: Bytes,
    /// Its body.
    pub body: Bytes,
}

/// It cannot be sealed, or opened: another key, another delivery, or not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it was sealed to another key, or is damaged")]
pub struct SealError;

impl From<Unspecified> for SealError {
    fn from(_: Unspecified) -> Self {
        Self
    }
}

/// The key that opens what was sealed to its public half.
pub struct OpeningKey(PrivateKey);

impl std::fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpeningKey(…)")
    }
}

impl OpeningKey {
    /// The key of these 32 secret bytes.
    ///
    /// # Errors
    /// They are none.
    pub fn new(secret: &[u8]) -> Result<Self, SealError> {
        PrivateKey::from_private_key(&X25519, secret).map(Self).map_err(|_| SealError)
    }

    /// The half that others seal with.
    ///
    /// # Errors
    /// The key cannot be used.
    pub fn public(&self) -> Result<[u8; PUBLIC_KEY], SealError> {
        self.0.compute_public_key()?.as_ref().try_into().map_err(|_| SealError)
    }

    /// Opens a box.
    ///
    /// # Errors
    /// It is not for this key or this delivery, or was changed.
    pub fn open(&self, id: DeliveryId, sealed: &[u8]) -> Result<Opened, SealError> {
        let (&version, rest) = sealed.split_first().ok_or(SealError)?;
        let (theirs, sealed) = rest.split_at_checked(PUBLIC_KEY).filter(|_| version == VERSION).ok_or(SealError)?;
        let own = self.public()?;
        let peer = UnparsedPublicKey::new(&X25519, theirs);
        let key = agreement::agree(&self.0, peer, SealError, |shared| key(shared, theirs, &own))?;
        let mut plain = BytesMut::from(sealed);
        let length = key.open_in_place(nonce(), Aad::from(id.as_bytes()), &mut plain)?.len();
        plain.truncate(length);
        let mut plain = plain.freeze();
        let mut part = || {
            let length = plain.try_get_u32().map_err(|_| SealError)? as usize;
            (length <= plain.len()).then(|| plain.split_to(length)).ok_or(SealError)
        };
        let (head, trailers) = (part()?, part()?);
        Ok(Opened { head, trailers, body: plain })
    }
}

/// Seals a delivery to a public key.
///
/// # Errors
/// The key is none.
pub fn seal(public: &[u8], id: DeliveryId, delivery: &Opened) -> Result<Bytes, SealError> {
    let own = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new())?;
    let own_public = own.compute_public_key()?;
    let peer = UnparsedPublicKey::new(&X25519, public);
    let key = agreement::agree_ephemeral(own, peer, SealError, |shared| key(shared, own_public.as_ref(), public))?;
    let Opened { head, trailers, body } = delivery;
    let mut plain = BytesMut::with_capacity(head.len() + trailers.len() + body.len() + 64);
    for part in [head, trailers] {
        plain.put_u32(u32::try_from(part.len()).map_err(|_| SealError)?);
        plain.put_slice(part);
    }
    plain.put_slice(body);
    let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(id.as_bytes()), &mut plain)?;
    let mut sealed = BytesMut::with_capacity(1 + PUBLIC_KEY + plain.len() + tag.as_ref().len());
    sealed.put_u8(VERSION);
    sealed.put_slice(own_public.as_ref());
    sealed.put_slice(&plain);
    sealed.put_slice(tag.as_ref());
    Ok(sealed.freeze())
}

/// What a box is under.
fn key(shared: &[u8], sender: &[u8], receiver: &[u8]) -> Result<LessSafeKey, SealError> {
    let salt = [sender, receiver].concat();
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &salt).extract(shared);
    let key = UnboundKey::from(secret.expand(&[INFO], &AES_256_GCM)?);
    Ok(LessSafeKey::new(key))
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(byte: u8) -> OpeningKey {
        OpeningKey::new(&[byte; 32]).expect("a key")
    }

    #[test]
    fn only_its_key_opens_a_box_and_only_as_it_was() {
        let (own, other) = (key_of(7), key_of(8));
        let id = DeliveryId::now();
        let part = |text: &str| Bytes::from(text.to_owned());
        let delivery = Opened { head: part("head"), trailers: Bytes::new(), body: part("the body") };
        let sealed = seal(&own.public().expect("public"), id, &delivery).expect("sealed");
        assert_eq!(own.open(id, &sealed), Ok(delivery.clone()));
        assert_eq!(other.open(id, &sealed), Err(SealError), "another key");
        assert_eq!(own.open(DeliveryId::now(), &sealed), Err(SealError), "another delivery");
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert_eq!(own.open(id, &changed), Err(SealError), "byte {at}");
            assert_eq!(own.open(id, &sealed[..at]), Err(SealError), "cut at {at}");
        }
        assert!(!sealed.windows(8).any(|window| window == b"the body"));
        let twice = seal(&own.public().expect("public"), id, &delivery).expect("sealed");
        assert_ne!(sealed, twice, "each has a key of its own");
        assert_eq!(seal(&[1; 31], id, &delivery), Err(SealError), "no key");
    }
}
