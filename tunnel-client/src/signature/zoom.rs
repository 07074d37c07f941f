//! Zoom: <https://developers.zoom.us/docs/api/webhooks/#verify-webhook-events>.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider, Tolerance};

#[derive(Debug)]
pub(super) struct Zoom;

const HEADER: &str = "x-zm-signature";
const TIMESTAMP: &str = "x-zm-request-timestamp";

static FACTS: Facts = Facts {
    name: "zoom",
    title: "Zoom",
    page: "https://developers.zoom.us/docs/api/webhooks/#verify-webhook-events",
    header: HEADER,
    scheme: "HMAC-SHA256 in hex after `v0=`; the key is the app's secret token",
    signed: "`v0:x-zm-request-timestamp:body`",
    secret_env: "ZOOM_WEBHOOK_SECRET_TOKEN",
    // Zoom names none and its library checks none; most apps follow Slack, whose scheme it is.
    tolerance: Some(Tolerance::past(300)),
    deadline: Some(Duration::from_secs(3)),
    retries: "3: after 5, 20 and 60 min",
    user_agent: "Zoom Marketplace/1.0a",
    content_type: "application/json; charset=utf-8",
    sample: "meeting.started",
    retry: &[],
    may_be_unsigned: false,
    developer_key: None,
};

#[derive(Deserialize)]
struct Event {
    event: Option<String>,
}

impl Provider for Zoom {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let header = received.text(HEADER).ok_or(Unsigned::Missing("x-zm-signature"))?;
        let malformed = |why: &str| Unsigned::Malformed(why.into());
        let text = header.strip_prefix("v0=").ok_or_else(|| malformed("x-zm-signature does not begin with `v0=`"))?;
        let at = received.text(TIMESTAMP).ok_or_else(|| malformed("x-zm-request-timestamp is missing"))?;
        Claim::new(Scheme::Hmac(Mac::Sha256, Encoding::Hex), text).over(&["v0:", at, ":"]).signed_at(at)
    }

    fn named(&self, received: &Received<'_>) -> Named {
        Named { event: received.json::<Event>().and_then(|event| event.event), ..Named::default() }
    }

    fn is_challenge(&self, received: &Received<'_>) -> bool {
        received.json::<Event>().and_then(|event| event.event).as_deref() == Some("endpoint.url_validation")
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let at = at.as_second().to_string();
        let parts: [&[u8]; 4] = [b"v0:", at.as_bytes(), b":", &request.body];
        let text = signer.hmac(Mac::Sha256, Encoding::Hex, &parts).ok_or(CannotSign::OtherKey("zoom"))?;
        request.set(TIMESTAMP, &at);
        request.set(HEADER, &format!("v0={text}"));
        Ok(())
    }
}
