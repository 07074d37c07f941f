//! Paddle Billing: <https://developer.paddle.com/webhooks/signature-verification>.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned, values};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider, Tolerance};

#[derive(Debug)]
pub(super) struct Paddle;

const HEADER: &str = "paddle-signature";
const SCHEME: Scheme = Scheme::Hmac(Mac::Sha256, Encoding::Hex);

static FACTS: Facts = Facts {
    name: "paddle",
    title: "Paddle",
    page: "https://developer.paddle.com/webhooks/signature-verification",
    header: HEADER,
    scheme: "HMAC-SHA256 in hex",
    signed: "`ts:body`",
    secret_env: "PADDLE_WEBHOOK_SECRET",
    tolerance: Some(Tolerance::past(5).exact()),
    deadline: Some(Duration::from_secs(5)),
    retries: "60 within 3 days",
    user_agent: "Paddle",
    content_type: "application/json",
    sample: "transaction.completed",
    retry: &[],
    may_be_unsigned: false,
    developer_key: None,
};

#[derive(Deserialize)]
struct Event {
    event_id: Option<String>,
    event_type: Option<String>,
}

impl Provider for Paddle {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let header = received.text(HEADER).ok_or(Unsigned::Missing("Paddle-Signature"))?;
        let no = |part: &str| Unsigned::Malformed(format!("Paddle-Signature has no `{part}=`"));
        let at = values(header, ';', "ts").last().ok_or_else(|| no("ts"))?;
        // More than one while a secret is being replaced.
        let mut signatures = values(header, ';', "h1");
        let first = signatures.next().ok_or_else(|| no("h1"))?;
        let claim = Claim::new(SCHEME, first).over(&[at, ":"]).signed_at(at)?;
        Ok(signatures.fold(claim, |claim, text| claim.or(SCHEME, text)))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let event = received.json::<Event>();
        event.map(|event| Named::new(event.event_type, event.event_id)).unwrap_or_default()
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let at = at.as_second().to_string();
        let text = signer.hmac(Mac::Sha256, Encoding::Hex, &[at.as_bytes(), b":", &request.body]);
        let text = text.ok_or(CannotSign::OtherKey("paddle"))?;
        request.set(HEADER, &format!("ts={at};h1={text}"));
        Ok(())
    }
}
