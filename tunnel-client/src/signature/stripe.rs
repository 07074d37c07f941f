//! Stripe: <https://docs.stripe.com/webhooks/signatures>.

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned, values};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider, Tolerance};

#[derive(Debug)]
pub(super) struct Stripe;

const HEADER: &str = "stripe-signature";
const SCHEME: Scheme = Scheme::Hmac(Mac::Sha256, Encoding::Hex);

static FACTS: Facts = Facts {
    name: "stripe",
    title: "Stripe",
    page: "https://docs.stripe.com/webhooks/signatures",
    header: HEADER,
    scheme: "HMAC-SHA256 in hex; the key is the whole `whsec_…` text",
    signed: "`t.body`",
    secret_env: "STRIPE_WEBHOOK_SECRET",
    tolerance: Some(Tolerance::past(300)),
    deadline: None,
    retries: "for 3 days, ever more slowly",
    user_agent: "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
    content_type: "application/json; charset=utf-8",
    sample: "payment_intent.succeeded",
    retry: &[],
    may_be_unsigned: false,
    developer_key: None,
};

#[derive(Deserialize)]
struct Event {
    id: Option<String>,
    r#type: Option<String>,
}

impl Provider for Stripe {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let header = received.text(HEADER).ok_or(Unsigned::Missing("Stripe-Signature"))?;
        let no = |part: &str| Unsigned::Malformed(format!("Stripe-Signature has no `{part}=`"));
        let at = values(header, ',', "t").next().ok_or_else(|| no("t"))?;
        let mut signatures = values(header, ',', "v1");
        let first = signatures.next().ok_or_else(|| no("v1"))?;
        let claim = Claim::new(SCHEME, first).over(&[at, "."]).signed_at(at)?;
        Ok(signatures.fold(claim, |claim, text| claim.or(SCHEME, text)))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let event = received.json::<Event>();
        event.map(|event| Named::new(event.r#type, event.id)).unwrap_or_default()
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let at = at.as_second().to_string();
        let text = signer.hmac(Mac::Sha256, Encoding::Hex, &[at.as_bytes(), b".", &request.body]);
        let text = text.ok_or(CannotSign::OtherKey("stripe"))?;
        request.set(HEADER, &format!("t={at},v1={text}"));
        Ok(())
    }
}
