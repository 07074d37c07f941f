//! Signing afresh what comes late: the app's own check would find it too old.

use bytes::Bytes;
use hookway_protocol::head::RequestHead;
use hookway_protocol::headers::Headers;
use http::HeaderName;
use http::header::CONTENT_LENGTH;
use jiff::Timestamp;

use super::{Case, Webhooks};
use crate::exchange::{Exchange, Verdict};
use crate::signature::{CannotSign, Judged, Known, Outgoing, Received, Signer};

/// Signs a request as of now, and sees to a length that holds.
///
/// # Errors
/// It cannot be signed.
pub(crate) fn sign(
    provider: &Known,
    head: &mut RequestHead,
    body: &mut Bytes,
    signer: &Signer,
) -> Result<(), CannotSign> {
    let mut signed = Outgoing::new(head.headers.clone(), head.target.clone(), body.clone());
    provider.sign(&mut signed, signer, Timestamp::now())?;
    if signed.body.len() != body.len() && signed.has("content-length") {
        signed.set("content-length", &signed.body.len().to_string());
    }
    (head.headers, head.target, *body) = (signed.headers, signed.target, signed.body);
    Ok(())
}

impl Webhooks {
    /// Signs a late delivery afresh if its signature was good and would be too old by now.
    pub(crate) fn refresh_late(&self, case: &mut Case, head: &mut RequestHead, body: &mut Bytes) {
        if is_late(head)
            && case.webhook.signature == Verdict::Ok
            && let Some(judged) = &case.judged
        {
            case.webhook.resigned = self.refresh(judged, head, body, false);
        }
    }

    /// The same for a replay. `always`: whatever its age; an edited one has lost its signature. Whether it was signed.
    pub(crate) fn refresh_replay(
        &self,
        original: &Exchange,
        head: &mut RequestHead,
        body: &mut Bytes,
        always: bool,
    ) -> bool {
        if original.request.body.is_cut() {
            return false;
        }
        // By the secrets that are known now: there may have been none then.
        let judged = self.policy.verifier.judge(original.endpoint.as_str(), &Received::from(original));
        if judged.verdict() != Verdict::Ok {
            return false;
        }
        let (unsigned, own_body) = (head.clone(), body.clone());
        if !self.refresh(&judged, head, body, always) {
            return false;
        }
        // A signature that somebody typed is to stay as it is.
        let value = |headers: &Headers, name: &HeaderName| headers.get(name).cloned();
        let is_typed = head.headers.iter().any(|(name, signed)| {
            let before = value(&unsigned.headers, name);
            before.as_ref() != Some(signed)
                && *name != CONTENT_LENGTH
                && before != value(&original.request.headers, name)
        });
        if is_typed {
            (*head, *body) = (unsigned, own_body);
        }
        !is_typed
    }

    fn refresh(&self, judged: &Judged, head: &mut RequestHead, body: &mut Bytes, always: bool) -> bool {
        let found = judged.provider.as_ref().zip(self.policy.verifier.secret_of(judged));
        let Some((provider, rule)) = found else { return false };
        if !always && provider.facts().tolerance.is_none() {
            return false;
        }
        let signer = match rule.key.signer() {
            // It is the same at all times.
            Some(Signer::Secret(_)) if !always => return false,
            Some(signer) => Some(signer),
            // An app that has the provider's public key takes no other's while that is still good.
            None if is_late(head) && !always && !rule.is_own && is_fresh(provider, head, body) => None,
            None => self.policy.keys.signer(provider),
        };
        signer.is_some_and(|signer| sign(provider, head, body, &signer).is_ok())
    }
}

/// Whether its signature is not too old yet.
fn is_fresh(provider: &Known, head: &RequestHead, body: &Bytes) -> bool {
    let now = Timestamp::now();
    let received = Received { headers: &head.headers, target: head.target.as_str(), body: Some(body), at: now };
    let signed = provider.claim(&received).ok().and_then(|claim| claim.signed_ms);
    provider.facts().tolerance.zip(signed).is_none_or(|(tolerance, signed)| tolerance.age_outside(signed, now) == 0)
}

/// Whether its signature may be too old for the app by now.
const fn is_late(head: &RequestHead) -> bool {
    head.attempt > 1 || head.queued
}
