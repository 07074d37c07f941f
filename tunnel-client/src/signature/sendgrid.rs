//! SendGrid's Event Webhook: <https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features>.

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Scheme, Unsigned};
use super::key::{InvalidSecret, Key, KeyKind, Signer};
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider};

#[derive(Debug)]
pub(super) struct SendGrid;

const HEADER: &str = "x-twilio-email-event-webhook-signature";
const TIMESTAMP: &str = "x-twilio-email-event-webhook-timestamp";

static FACTS: Facts = Facts {
    name: "sendgrid",
    title: "SendGrid",
    page: "https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features",
    header: HEADER,
    scheme: "ECDSA on P-256 with SHA-256, DER in base64; the key is the public one, SPKI in base64",
    signed: "`X-Twilio-Email-Event-Webhook-Timestamp` and the body",
    secret_env: "SENDGRID_WEBHOOK_PUBLIC_KEY",
    tolerance: None,
    deadline: None,
    retries: "for about 24 hours",
    user_agent: "SendGrid Event API",
    content_type: "application/json;charset=utf-8",
    sample: "delivered",
    retry: &[],
    may_be_unsigned: true,
    developer_key: Some(KeyKind::P256),
};

#[derive(Deserialize)]
struct Item {
    event: Option<String>,
    sg_event_id: Option<String>,
}

impl Provider for SendGrid {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let text = received.text(HEADER).ok_or(Unsigned::Missing("X-Twilio-Email-Event-Webhook-Signature"))?;
        let at = received.text(TIMESTAMP);
        let missing = || Unsigned::Malformed("X-Twilio-Email-Event-Webhook-Timestamp is missing".into());
        Ok(Claim::new(Scheme::P256, text).over(&[at.ok_or_else(missing)?]))
    }

    fn key(&self, secret: &str) -> Result<Key, InvalidSecret> {
        Key::p256(secret).ok_or(InvalidSecret("it is no P-256 public key in base64, as SendGrid's settings show it"))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let items = received.json::<Vec<Item>>().unwrap_or_default();
        let more = items.len().saturating_sub(1);
        let Some(first) = items.into_iter().next() else { return Named::default() };
        let event = first.event.map(|event| if more > 0 { format!("{event} and {more} more") } else { event });
        Named::new(event, first.sg_event_id)
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let at = at.as_second().to_string();
        let signature = signer.developer(KeyKind::P256, &[at.as_bytes(), &request.body]);
        let signature = signature.ok_or(CannotSign::OtherKey("sendgrid"))?;
        request.set(TIMESTAMP, &at);
        request.set(HEADER, &Encoding::Base64.encode(&signature));
        Ok(())
    }
}
