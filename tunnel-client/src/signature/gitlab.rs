//! GitLab: <https://docs.gitlab.com/user/project/integrations/webhooks/>.

use std::time::Duration;

use jiff::Timestamp;

use super::claim::{Claim, Scheme, Unsigned};
use super::key::{InvalidSecret, Key, Signer};
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider, Tolerance, standard};

#[derive(Debug)]
pub(super) struct GitLab;

const HEADER: &str = "x-gitlab-token";

static FACTS: Facts = Facts {
    name: "gitlab",
    title: "GitLab",
    page: "https://docs.gitlab.com/user/project/integrations/webhooks/",
    header: HEADER,
    scheme: "the secret token itself; with a signing token (`whsec_…`) as Standard Webhooks",
    signed: "nothing; with a signing token `webhook-id.webhook-timestamp.body`",
    secret_env: "GITLAB_WEBHOOK_TOKEN",
    tolerance: Some(Tolerance::both(300)),
    deadline: Some(Duration::from_secs(10)),
    retries: "none; four failures in a row disable the hook for a while, a 4xx for good",
    user_agent: "GitLab/18.0.0",
    content_type: "application/json",
    sample: "push",
    retry: &[],
    may_be_unsigned: true,
    developer_key: None,
};

impl Provider for GitLab {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn recognises(&self, received: &Received<'_>) -> bool {
        received.has(HEADER) || received.has("x-gitlab-event")
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let token = received.text(HEADER);
        match (standard::claim(received), token) {
            (Err(Unsigned::Missing(_)), None) => Err(Unsigned::Missing("X-Gitlab-Token")),
            // The token says enough, whatever else stands there.
            (Err(_), Some(token)) => Ok(Claim::new(Scheme::Secret, token)),
            (Ok(claim), Some(token)) => Ok(claim.or(Scheme::Secret, token)),
            (claim, _) => claim,
        }
    }

    fn key(&self, secret: &str) -> Result<Key, InvalidSecret> {
        if secret.starts_with("whsec_") { standard::key(secret) } else { Ok(Key::Secret(secret.as_bytes().into())) }
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let (event, id) = (received.owned("x-gitlab-event"), received.owned("x-gitlab-event-uuid"));
        let dedup = received.owned("idempotency-key").or_else(|| id.clone());
        Named { event, id, dedup }
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let other = CannotSign::OtherKey("gitlab");
        match signer {
            Signer::Secret(token) => {
                request.set(HEADER, std::str::from_utf8(token).map_err(|_| other)?);
                Ok(())
            }
            signer => standard::sign(request, signer, at).ok_or(other),
        }
    }
}
