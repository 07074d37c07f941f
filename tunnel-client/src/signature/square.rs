//! Square: <https://developer.squareup.com/docs/webhooks/step3validate>.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider};

#[derive(Debug)]
pub(super) struct Square;

const HEADER: &str = "x-square-hmacsha256-signature";

static FACTS: Facts = Facts {
    name: "square",
    title: "Square",
    page: "https://developer.squareup.com/docs/webhooks/step3validate",
    header: HEADER,
    scheme: "HMAC-SHA256 in base64; the key is the subscription's signature key",
    signed: "the notification URL and the body",
    secret_env: "SQUARE_WEBHOOK_SIGNATURE_KEY",
    tolerance: None,
    deadline: Some(Duration::from_secs(10)),
    retries: "for 24 hours",
    user_agent: "Square Connect v2",
    content_type: "application/json",
    sample: "payment.created",
    retry: &[("square-retry-number", "1"), ("square-retry-reason", "http_timeout")],
    may_be_unsigned: false,
    developer_key: None,
};

#[derive(Deserialize)]
struct Event {
    event_id: Option<String>,
    r#type: Option<String>,
}

impl Provider for Square {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let text = received.text(HEADER).ok_or(Unsigned::Missing("x-square-hmacsha256-signature"))?;
        Ok(Claim::new(Scheme::Hmac(Mac::Sha256, Encoding::Base64), text).over(&[&received.origin(), received.target]))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let event = received.json::<Event>();
        event.map(|event| Named::new(event.r#type, event.event_id)).unwrap_or_default()
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, _: Timestamp) -> Result<(), CannotSign> {
        let text = signer.hmac(Mac::Sha256, Encoding::Base64, &[request.url().as_bytes(), &request.body]);
        request.set(HEADER, &text.ok_or(CannotSign::OtherKey("square"))?);
        Ok(())
    }
}
