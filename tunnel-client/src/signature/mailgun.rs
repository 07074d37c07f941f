//! Mailgun: <https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks>.

use jiff::Timestamp;
use serde::Deserialize;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received, pairs};
use super::{Facts, Provider};

#[derive(Debug)]
pub(super) struct Mailgun;

const SCHEME: Scheme = Scheme::Hmac(Mac::Sha256, Encoding::Hex);

static FACTS: Facts = Facts {
    name: "mailgun",
    title: "Mailgun",
    page: "https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks",
    header: "user-agent",
    scheme: "HMAC-SHA256 in hex, in the body's `signature`; the key is the HTTP webhook signing key",
    signed: "`timestamp` and `token` of the body's `signature`; the rest of the body is not covered",
    secret_env: "MAILGUN_WEBHOOK_SIGNING_KEY",
    tolerance: None,
    deadline: None,
    retries: "6 within 8 hours; 406 stops them",
    user_agent: "mailgun/treq-20.9.0",
    content_type: "application/json",
    sample: "delivered",
    retry: &[],
    may_be_unsigned: false,
    developer_key: None,
};

#[derive(Deserialize)]
struct Body {
    signature: Option<Signed>,
    #[serde(rename = "event-data")]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Signed {
    timestamp: String,
    token: String,
    signature: String,
    /// Of the account above, for a subaccount.
    #[serde(rename = "parent-signature")]
    parent: Option<Box<Self>>,
}

#[derive(Deserialize)]
struct Data {
    event: Option<String>,
    id: Option<String>,
}

/// What a body is signed with, as JSON or as a form.
fn signed(received: &Received<'_>) -> Option<Signed> {
    if !received.is_form() {
        return received.json::<Body>()?.signature;
    }
    let mut pairs = pairs(received.body?);
    let mut take = |name: &str| {
        let at = pairs.iter().position(|(own, _)| own == name.as_bytes())?;
        String::from_utf8(pairs.swap_remove(at).1).ok()
    };
    Some(Signed { timestamp: take("timestamp")?, token: take("token")?, signature: take("signature")?, parent: None })
}

impl Provider for Mailgun {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn recognises(&self, received: &Received<'_>) -> bool {
        received.text("user-agent").is_some_and(|agent| agent.starts_with("mailgun/"))
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        if received.body.is_none() {
            return Err(Unsigned::TooLong);
        }
        let signed = signed(received).ok_or(Unsigned::Missing("`signature` of the body"))?;
        let message = |signed: &Signed| format!("{}{}", signed.timestamp, signed.token).into_bytes();
        let mut messages = vec![message(&signed)];
        let mut claim = Claim::new(SCHEME, signed.signature);
        if let Some(parent) = signed.parent {
            messages.push(message(&parent));
            claim = claim.or(SCHEME, parent.signature);
        }
        Ok(claim.over_only(messages))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let data = received.json::<Body>().and_then(|body| body.data);
        let (event, id) = data.map_or((None, None), |data| (data.event, data.id));
        Named { event, id, dedup: signed(received).map(|signed| signed.token) }
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        // The token is what it is known by; a sample has none yet, and a cassette none any more.
        let token = signed(&request.received(at))
            .map(|signed| signed.token)
            .filter(|token| !token.is_empty() && token != "redacted");
        let token = token.unwrap_or_else(|| {
            let mut bytes = [0; 25];
            aws_lc_rs::rand::fill(&mut bytes).expect("the system has random bytes");
            Encoding::Hex.encode(&bytes)
        });
        let at = at.as_second().to_string();
        let text = signer.hmac(Mac::Sha256, Encoding::Hex, &[at.as_bytes(), token.as_bytes()]);
        let text = text.ok_or(CannotSign::OtherKey("mailgun"))?;
        let signature = serde_json::json!({"timestamp": at, "token": token, "signature": text}).to_string();
        if request.set_in_body("signature", &signature) {
            return Ok(());
        }
        Err(CannotSign::Body("its body is no JSON with a `signature`, where Mailgun's stands"))
    }
}
