//! Discord: <https://discord.com/developers/docs/interactions/overview#setting-up-an-endpoint-validating-security-request-headers>.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Scheme, Unsigned};
use super::key::{InvalidSecret, Key, KeyKind, Signer};
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider};

#[derive(Debug)]
pub(super) struct Discord;

const HEADER: &str = "x-signature-ed25519";
const TIMESTAMP: &str = "x-signature-timestamp";

static FACTS: Facts = Facts {
    name: "discord",
    title: "Discord",
    page: "https://discord.com/developers/docs/interactions/overview#setting-up-an-endpoint-validating-security-request-headers",
    header: HEADER,
    scheme: "Ed25519 in hex; the key is the application's public key, in hex",
    signed: "`X-Signature-Timestamp` and the body",
    secret_env: "DISCORD_PUBLIC_KEY",
    tolerance: None,
    deadline: Some(Duration::from_secs(3)),
    retries: "of events for up to 10 minutes; it sends bad signatures on purpose and wants 401",
    user_agent: "Discord-Interactions/1.0 (+https://discord.com)",
    content_type: "application/json",
    sample: "command",
    retry: &[],
    may_be_unsigned: false,
    developer_key: Some(KeyKind::Ed25519),
};

#[derive(Deserialize)]
struct Interaction {
    id: Option<String>,
    r#type: Option<u64>,
    data: Option<Data>,
    event: Option<Event>,
}

#[derive(Deserialize)]
struct Data {
    name: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    r#type: Option<String>,
}

impl Provider for Discord {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let text = received.text(HEADER).ok_or(Unsigned::Missing("X-Signature-Ed25519"))?;
        let at = received.text(TIMESTAMP);
        let at = at.ok_or_else(|| Unsigned::Malformed("X-Signature-Timestamp is missing".into()))?;
        Ok(Claim::new(Scheme::Ed25519(Encoding::Hex), text).over(&[at]))
    }

    fn key(&self, secret: &str) -> Result<Key, InvalidSecret> {
        let key = Encoding::Hex.decode(&secret.to_ascii_lowercase()).and_then(|key| Key::ed25519(&key));
        key.ok_or(InvalidSecret("it is no public key: 64 hex digits, from the application's page"))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let Some(body) = received.json::<Interaction>() else { return Named::default() };
        let kind = match body.r#type {
            Some(2) => Some("command".to_owned()),
            Some(3) => Some("component".to_owned()),
            Some(4) => Some("autocomplete".to_owned()),
            Some(5) => Some("modal".to_owned()),
            _ => Some("ping".to_owned()).filter(|_| body.event.is_none() && self.is_challenge(received)),
        };
        let name = body.data.and_then(|data| data.name);
        let event = body.event.and_then(|event| event.r#type);
        let event = event.or_else(|| kind.map(|kind| name.map_or(kind.clone(), |name| format!("{kind} {name}"))));
        Named { event, dedup: body.id.clone(), id: body.id }
    }

    fn is_challenge(&self, received: &Received<'_>) -> bool {
        // An interaction's PING is 1, a webhook event's 0.
        received.json::<Interaction>().is_some_and(|body| match body.r#type {
            Some(0) => true,
            Some(1) => body.event.is_none(),
            _ => false,
        })
    }

    fn wants_answer(&self, received: &Received<'_>) -> bool {
        // An interaction's answer is what the person sees; an event has a version instead.
        received.json::<Interaction>().is_none_or(|body| body.event.is_none())
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let at = at.as_second().to_string();
        let signature = signer.developer(KeyKind::Ed25519, &[at.as_bytes(), &request.body]);
        let signature = signature.ok_or(CannotSign::OtherKey("discord"))?;
        request.set(HEADER, &Encoding::Hex.encode(&signature));
        request.set(TIMESTAMP, &at);
        Ok(())
    }
}
