//! Shopify: <https://shopify.dev/docs/apps/build/webhooks/subscribe/https>.

use std::time::Duration;

use jiff::Timestamp;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider};

#[derive(Debug)]
pub(super) struct Shopify;

const HEADER: &str = "x-shopify-hmac-sha256";
/// What newer subscriptions send; where both are there, Shopify's library reads this one.
const NEWER: &str = "shopify-hmac-sha256";

static FACTS: Facts = Facts {
    name: "shopify",
    title: "Shopify",
    page: "https://shopify.dev/docs/apps/build/webhooks/subscribe/https",
    header: HEADER,
    scheme: "HMAC-SHA256 in base64; the key is the app's client secret",
    signed: "the body",
    secret_env: "SHOPIFY_API_SECRET",
    tolerance: None,
    deadline: Some(Duration::from_secs(5)),
    retries: "8 within 4 hours, then the subscription may be deleted",
    user_agent: "Shopify-Captain-Next",
    content_type: "application/json",
    sample: "orders-create",
    retry: &[],
    may_be_unsigned: false,
    developer_key: None,
};

impl Provider for Shopify {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn recognises(&self, received: &Received<'_>) -> bool {
        received.has(HEADER) || received.has(NEWER) || received.has("x-shopify-topic")
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let text = received.text(NEWER).or_else(|| received.text(HEADER));
        let text = text.ok_or(Unsigned::Missing("X-Shopify-Hmac-Sha256"))?;
        Ok(Claim::new(Scheme::Hmac(Mac::Sha256, Encoding::Base64), text))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let either = |name: &str| received.owned(name).or_else(|| received.owned(&name["x-".len()..]));
        Named {
            event: either("x-shopify-topic"),
            id: either("x-shopify-event-id"),
            dedup: either("x-shopify-webhook-id"),
        }
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, _: Timestamp) -> Result<(), CannotSign> {
        let text = signer.hmac(Mac::Sha256, Encoding::Base64, &[&request.body]);
        let text = text.ok_or(CannotSign::OtherKey("shopify"))?;
        if request.has(NEWER) {
            request.set(NEWER, &text);
        }
        if request.has(HEADER) || !request.has(NEWER) {
            request.set(HEADER, &text);
        }
        Ok(())
    }
}
