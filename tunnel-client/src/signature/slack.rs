//! Slack: <https://docs.slack.dev/authentication/verifying-requests-from-slack>.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received, pairs};
use super::{Facts, Provider, Tolerance};

#[derive(Debug)]
pub(super) struct Slack;

const HEADER: &str = "x-slack-signature";
const TIMESTAMP: &str = "x-slack-request-timestamp";

static FACTS: Facts = Facts {
    name: "slack",
    title: "Slack",
    page: "https://docs.slack.dev/authentication/verifying-requests-from-slack",
    header: HEADER,
    scheme: "HMAC-SHA256 in hex after `v0=`",
    signed: "`v0:X-Slack-Request-Timestamp:body`",
    secret_env: "SLACK_SIGNING_SECRET",
    tolerance: Some(Tolerance::both(300)),
    deadline: Some(Duration::from_secs(3)),
    retries: "3: at once, after 1 min, after 5 min",
    user_agent: "Slackbot 1.0 (+https://api.slack.com/robots)",
    content_type: "application/json",
    sample: "message",
    retry: &[("x-slack-retry-num", "1"), ("x-slack-retry-reason", "http_timeout")],
    may_be_unsigned: false,
    developer_key: None,
};

#[derive(Deserialize)]
struct Outer {
    r#type: Option<String>,
    event_id: Option<String>,
    event: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    r#type: Option<String>,
}

impl Provider for Slack {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let header = received.text(HEADER).ok_or(Unsigned::Missing("X-Slack-Signature"))?;
        let malformed = |why: &str| Unsigned::Malformed(why.into());
        let text = header.strip_prefix("v0=");
        let text = text.ok_or_else(|| malformed("X-Slack-Signature does not begin with `v0=`"))?;
        let at = received.text(TIMESTAMP).ok_or_else(|| malformed("X-Slack-Request-Timestamp is missing"))?;
        Claim::new(Scheme::Hmac(Mac::Sha256, Encoding::Hex), text).over(&["v0:", at, ":"]).signed_at(at)
    }

    fn named(&self, received: &Received<'_>) -> Named {
        if received.is_form() {
            // Slash commands, and what people click, which comes as JSON in a field.
            let pairs = pairs(received.body.unwrap_or_default());
            let command = pairs.into_iter().find(|(name, _)| name == b"command");
            let event = command.and_then(|(_, command)| String::from_utf8(command).ok());
            return Named { event: event.or_else(|| Some("interaction".into())), ..Named::default() };
        }
        let Some(outer) = received.json::<Outer>() else { return Named::default() };
        Named::new(outer.event.and_then(|event| event.r#type).or(outer.r#type), outer.event_id)
    }

    fn is_challenge(&self, received: &Received<'_>) -> bool {
        received.json::<Outer>().and_then(|outer| outer.r#type).as_deref() == Some("url_verification")
    }

    fn wants_answer(&self, received: &Received<'_>) -> bool {
        // Commands, and what people click, are answered with what they see.
        received.is_form() || self.is_challenge(received)
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let at = at.as_second().to_string();
        let parts: [&[u8]; 4] = [b"v0:", at.as_bytes(), b":", &request.body];
        let text = signer.hmac(Mac::Sha256, Encoding::Hex, &parts).ok_or(CannotSign::OtherKey("slack"))?;
        request.set(TIMESTAMP, &at);
        request.set(HEADER, &format!("v0={text}"));
        Ok(())
    }
}
