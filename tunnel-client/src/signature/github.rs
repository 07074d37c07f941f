//! GitHub: <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider};

#[derive(Debug)]
pub(super) struct GitHub;

const HEADER: &str = "x-hub-signature-256";

static FACTS: Facts = Facts {
    name: "github",
    title: "GitHub",
    page: "https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries",
    header: HEADER,
    scheme: "HMAC-SHA256 in hex after `sha256=`",
    signed: "the body",
    secret_env: "GITHUB_WEBHOOK_SECRET",
    tolerance: None,
    deadline: Some(Duration::from_secs(10)),
    retries: "none; deliveries can be sent again by hand for 3 days",
    user_agent: "GitHub-Hookshot/0123abc",
    content_type: "application/json",
    sample: "push",
    retry: &[],
    may_be_unsigned: true,
    developer_key: None,
};

#[derive(Deserialize)]
struct Event {
    action: Option<String>,
}

impl Provider for GitHub {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn recognises(&self, received: &Received<'_>) -> bool {
        received.has(HEADER) || received.has("x-github-event")
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let header = received.text(HEADER).ok_or(Unsigned::Missing("X-Hub-Signature-256"))?;
        let text = header.strip_prefix("sha256=");
        let text =
            text.ok_or_else(|| Unsigned::Malformed("X-Hub-Signature-256 does not begin with `sha256=`".into()))?;
        Ok(Claim::new(Scheme::Hmac(Mac::Sha256, Encoding::Hex), text))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let event = received.text("x-github-event").map(|event| {
            let action = received.json::<Event>().and_then(|event| event.action);
            action.map_or_else(|| event.to_owned(), |action| format!("{event}.{action}"))
        });
        Named::new(event, received.owned("x-github-delivery"))
    }

    fn is_challenge(&self, received: &Received<'_>) -> bool {
        received.text("x-github-event") == Some("ping")
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, _: Timestamp) -> Result<(), CannotSign> {
        let text = signer.hmac(Mac::Sha256, Encoding::Hex, &[&request.body]).ok_or(CannotSign::OtherKey("github"))?;
        request.set(HEADER, &format!("sha256={text}"));
        if request.has("x-hub-signature") {
            let old = signer.hmac(Mac::Sha1, Encoding::Hex, &[&request.body]).ok_or(CannotSign::OtherKey("github"))?;
            request.set("x-hub-signature", &format!("sha1={old}"));
        }
        Ok(())
    }
}
