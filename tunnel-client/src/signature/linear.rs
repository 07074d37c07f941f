//! Linear: <https://linear.app/developers/webhooks#securing-webhooks>.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider, Tolerance};

#[derive(Debug)]
pub(super) struct Linear;

const HEADER: &str = "linear-signature";

static FACTS: Facts = Facts {
    name: "linear",
    title: "Linear",
    page: "https://linear.app/developers/webhooks#securing-webhooks",
    header: HEADER,
    scheme: "HMAC-SHA256 in hex",
    signed: "the body, whose `webhookTimestamp` is the time",
    secret_env: "LINEAR_WEBHOOK_SECRET",
    tolerance: Some(Tolerance::both(60).exact()),
    deadline: Some(Duration::from_secs(5)),
    retries: "3: after 1 min, 1 h, 6 h",
    user_agent: "Linear-Webhook",
    content_type: "application/json; charset=utf-8",
    sample: "issue.create",
    retry: &[],
    may_be_unsigned: false,
    developer_key: None,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    r#type: Option<String>,
    action: Option<String>,
    webhook_timestamp: Option<serde_json::Number>,
}

impl Provider for Linear {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let text = received.text(HEADER).ok_or(Unsigned::Missing("linear-signature"))?;
        if received.body.is_none() {
            return Err(Unsigned::TooLong);
        }
        let signed_ms = received.json::<Event>().and_then(|event| event.webhook_timestamp);
        let signed_ms = signed_ms.and_then(|number| {
            // Fractions of a millisecond do not matter.
            number.as_i64().or_else(|| number.as_f64().map(|number| number as i64))
        });
        let missing = || Unsigned::Malformed("the body has no `webhookTimestamp`".into());
        let claim = Claim::new(Scheme::Hmac(Mac::Sha256, Encoding::Hex), text);
        Ok(Claim { signed_ms: Some(signed_ms.ok_or_else(missing)?), ..claim })
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let event = received.json::<Event>().map(|event| match (event.r#type, event.action) {
            (Some(kind), Some(action)) => format!("{kind}.{action}"),
            (kind, action) => kind.or(action).unwrap_or_default(),
        });
        Named::new(event.or_else(|| received.owned("linear-event")), received.owned("linear-delivery"))
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let at = at.as_millisecond().to_string();
        if !request.set_in_body("webhookTimestamp", &at) {
            return Err(CannotSign::Body("its body has no `webhookTimestamp`, without which Linear's is not accepted"));
        }
        if request.has("linear-timestamp") {
            request.set("linear-timestamp", &at);
        }
        let text = signer.hmac(Mac::Sha256, Encoding::Hex, &[&request.body]);
        request.set(HEADER, &text.ok_or(CannotSign::OtherKey("linear"))?);
        Ok(())
    }
}
