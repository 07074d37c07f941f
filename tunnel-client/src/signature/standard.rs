//! Standard Webhooks, and Svix, whose scheme it was:
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::time::Duration;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::{InvalidSecret, Key, KeyKind, Signer};
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider, Tolerance};

#[derive(Debug)]
pub(super) struct Standard;

const HEADER: &str = "webhook-signature";

static FACTS: Facts = Facts {
    name: "standard",
    title: "Standard Webhooks, Svix",
    page: "https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md",
    header: HEADER,
    scheme: "v1: HMAC-SHA256 in base64, the key in base64 after `whsec_`; v1a: Ed25519, the public key in base64 after \
             `whpk_`",
    signed: "`webhook-id.webhook-timestamp.body` (`svix-id`, `svix-timestamp`)",
    secret_env: "WEBHOOK_SECRET",
    tolerance: Some(Tolerance::both(300)),
    deadline: Some(Duration::from_secs(15)),
    retries: "by the sender: often after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h …",
    user_agent: "Svix-Webhooks/1.62",
    content_type: "application/json",
    sample: "user.created",
    retry: &[],
    may_be_unsigned: true,
    developer_key: Some(KeyKind::Ed25519),
};

/// Both libraries take keys with padding and without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The names of the three fields, as one family has them.
struct Names {
    id: &'static str,
    timestamp: &'static str,
    signature: &'static str,
}

const WEBHOOK: Names = Names { id: "webhook-id", timestamp: "webhook-timestamp", signature: HEADER };
const SVIX: Names = Names { id: "svix-id", timestamp: "svix-timestamp", signature: "svix-signature" };

/// The claim of a delivery with these header fields.
pub(super) fn claim(received: &Received<'_>) -> Result<Claim, Unsigned> {
    let names = if received.has(SVIX.signature) { SVIX } else { WEBHOOK };
    let header = received.text(names.signature).ok_or(Unsigned::Missing(names.signature))?;
    let field = |name: &str| {
        let value = received.text(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| Unsigned::Malformed(format!("{name} is missing")))
    };
    let (id, at) = (field(names.id)?, field(names.timestamp)?);
    let mut signatures = header.split(' ').filter_map(|part| {
        let (version, text) = part.split_once(',')?;
        match version {
            "v1" => Some((Scheme::Hmac(Mac::Sha256, Encoding::Base64), text)),
            "v1a" => Some((Scheme::Ed25519(Encoding::Base64), text)),
            _ => None,
        }
    });
    let none = || Unsigned::Malformed(format!("{} has no signature of version v1 or v1a", names.signature));
    let (scheme, text) = signatures.next().ok_or_else(none)?;
    let claim = Claim::new(scheme, text).over(&[id, ".", at, "."]).signed_at(at)?;
    Ok(signatures.fold(claim, |claim, (scheme, text)| claim.or(scheme, text)))
}

/// The key in a secret with its prefix or without.
pub(super) fn key(secret: &str) -> Result<Key, InvalidSecret> {
    if let Some(public) = secret.strip_prefix("whpk_") {
        let key = LENIENT.decode(public).ok().and_then(|key| Key::ed25519(&key));
        return key.ok_or(InvalidSecret("what stands behind `whpk_` is no Ed25519 key in base64"));
    }
    let key = LENIENT.decode(secret.strip_prefix("whsec_").unwrap_or(secret));
    match key {
        Ok(key) if !key.is_empty() => Ok(Key::Mac(key)),
        _ => Err(InvalidSecret("it is no base64 (after `whsec_`)")),
    }
}

/// Signs with the header fields that the request has, else with `webhook-*`.
pub(super) fn sign(request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Option<()> {
    let names = if request.has(SVIX.signature) { SVIX } else { WEBHOOK };
    let at = at.as_second().to_string();
    let id = request.text(names.id).filter(|id| !id.is_empty()).map(str::to_owned);
    let id = id.unwrap_or_else(|| format!("msg_{}", &hookway_protocol::id::DeliveryId::now().to_string()[4..]));
    let parts: [&[u8]; 5] = [id.as_bytes(), b".", at.as_bytes(), b".", &request.body];
    let v1 = signer.hmac(Mac::Sha256, Encoding::Base64, &parts).map(|text| format!("v1,{text}"));
    let v1a = || Some(format!("v1a,{}", Encoding::Base64.encode(&signer.developer(KeyKind::Ed25519, &parts)?)));
    let signature = v1.or_else(v1a)?;
    request.set(names.id, &id);
    request.set(names.timestamp, &at);
    request.set(names.signature, &signature);
    Some(())
}

#[derive(Deserialize)]
struct Event {
    r#type: Option<String>,
}

impl Provider for Standard {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn recognises(&self, received: &Received<'_>) -> bool {
        received.has(WEBHOOK.signature) || received.has(SVIX.signature)
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        claim(received)
    }

    fn key(&self, secret: &str) -> Result<Key, InvalidSecret> {
        key(secret)
    }

    fn named(&self, received: &Received<'_>) -> Named {
        // That of the family whose signature is looked at.
        let names = if received.has(SVIX.signature) { SVIX } else { WEBHOOK };
        let id = received.owned(names.id);
        Named::new(received.json::<Event>().and_then(|event| event.r#type), id)
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        sign(request, signer, at).ok_or(CannotSign::OtherKey("standard"))
    }
}
