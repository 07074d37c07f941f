//! What a client does with a delivery because it is a webhook: its signature is checked, a repeat is known as one, a late one is
//! signed afresh.

mod duplicates;
mod keys;
mod refresh;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookway_protocol::head::RequestHead;
use hookway_protocol::id::DeliveryId;
use http::StatusCode;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::events::{Event, Events};
use crate::exchange::{Outcome, RawBody, Verdict, Webhook};
use crate::signature::{Judged, Known, Look, Received, Suspects, Verifier};
use duplicates::{Duplicates, Repeat, Seen};

pub(crate) use keys::{Keys, KeysError};
pub(crate) use refresh::sign;

/// Causes are looked for in so many deliveries at once; a flood of bad ones must not take all there is.
const DOCTORS: usize = 2;
/// The doctor looks for a cause so long.
const CAUSE_IN: Duration = Duration::from_millis(300);
/// A provider that names no deadline is answered within this time all the same, when somebody steps through code.
const USUAL_DEADLINE: Duration = Duration::from_secs(10);

/// What is asked of deliveries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    /// The secrets.
    pub(crate) verifier: Verifier,
    /// What is not signed well is answered 401.
    pub(crate) require_signature: bool,
    /// A repeat of what the app took is not put to it again.
    pub(crate) dedupe: bool,
    /// The sender is answered just before its deadline while the app takes its time.
    pub(crate) breakpoint: bool,
    /// The developer's own keys.
    pub(crate) keys: Keys,
    /// What a person should know of it.
    pub(crate) notes: Vec<String>,
}

/// Looks at deliveries.
#[derive(Debug)]
pub(crate) struct Webhooks {
    pub(crate) policy: Policy,
    suspects: Suspects,
    duplicates: Arc<Duplicates>,
    doctors: Semaphore,
    /// Providers whose deliveries nobody checks, of which that was said.
    hinted: Mutex<HashSet<&'static str>>,
    events: Events,
}

/// A delivery as a webhook, while it is carried out.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) webhook: Webhook,
    judged: Option<Judged>,
    repeat: Option<Repeat>,
    seen: Option<Seen>,
    /// Whether the sender waits for the app's own words.
    wants_answer: bool,
    /// How long the app may take before the sender is answered in its place.
    ack_after: Option<Duration>,
}

/// An answer that the client gives in the app's place.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) status: StatusCode,
    /// Why, for the sender and the log.
    pub(crate) message: String,
    /// Whether the sender should try again.
    pub(crate) is_for_later: bool,
}

impl Own {
    /// Nothing says that it is from whom it should be.
    pub(crate) fn unsigned() -> Self {
        let message = "there is no signature that can be checked".to_owned();
        Self { status: StatusCode::UNAUTHORIZED, message, is_for_later: false }
    }

    /// An earlier attempt has reached the app meanwhile.
    pub(crate) fn taken_before() -> Self {
        let message = "the app took an earlier attempt".to_owned();
        Self { status: StatusCode::OK, message, is_for_later: false }
    }

    /// A later attempt is under way, or was.
    pub(crate) fn overtaken() -> Self {
        let message = "a later attempt has overtaken this one".to_owned();
        Self { status: StatusCode::SERVICE_UNAVAILABLE, message, is_for_later: true }
    }

    /// A body is too long for its signature to be checked first.
    pub(crate) fn too_large() -> Self {
        let message = "a body over 1 MiB is not taken with --require-signature: it would reach the app before its signature can \
                       be checked";
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, message: message.into(), is_for_later: false }
    }
}

impl Webhooks {
    /// `origins`: where the apps are.
    pub(crate) fn new(mut policy: Policy, origins: Vec<String>, events: Events) -> Self {
        std::mem::take(&mut policy.notes).into_iter().for_each(|text| events.tell(Event::Hint { text }));
        Self {
            policy,
            suspects: Suspects { origins, ..Suspects::default() },
            duplicates: Arc::default(),
            doctors: Semaphore::new(DOCTORS),
            hinted: Mutex::default(),
            events,
        }
    }

    /// Deliveries of earlier runs: a repeat of one of them is one, too.
    pub(crate) fn remember(&self, webhook: &Webhook, kept: &Kept) {
        // One without a signature that could be checked is a forgery, as it would be now.
        let rules = self.policy.verifier.rules.iter().filter(|rule| !rule.is_own);
        let is_checked =
            rules.map(|rule| rule.provider.facts().name).any(|name| webhook.provider.as_deref() == Some(name));
        if webhook.signature == Verdict::Ok || !is_checked {
            self.duplicates.remember(webhook, kept);
        }
    }

    /// Looks at a delivery whose body is whole.
    pub(crate) fn whole(&self, head: &RequestHead, body: &[u8]) -> Case {
        let received = received(head, Some(body));
        let judged = self.policy.verifier.judge(head.endpoint.as_str(), &received);
        self.case(head, &received, judged.provider.clone(), Some(judged))
    }

    /// Looks at one whose body is still coming.
    pub(crate) fn streamed(&self, head: &RequestHead) -> (Case, Look) {
        let received = received(head, None);
        let look = self.policy.verifier.look(head.endpoint.as_str(), &received);
        (self.case(head, &received, look.provider().cloned(), None), look)
    }

    fn case(
        &self,
        head: &RequestHead,
        received: &Received<'_>,
        provider: Option<Known>,
        judged: Option<Judged>,
    ) -> Case {
        let Some(provider) = provider else {
            return Case {
                webhook: Webhook::default(),
                judged,
                repeat: None,
                seen: None,
                wants_answer: true,
                ack_after: None,
            };
        };
        let mut webhook = self.named(&provider, received);
        if let Some(judged) = &judged {
            self.judged(&mut webhook, judged);
        }
        // A forgery must not make the event itself a repeat.
        let counts = judged.as_ref().is_some_and(|judged| judged.is_believable());
        let (repeat, seen) = if counts { self.duplicates.arrived(&webhook, head) } else { (None, None) };
        webhook.duplicate_of = repeat.as_ref().map(|repeat| repeat.of);
        // Only where the client may answer by itself: it takes another look at the body.
        let may_answer = self.policy.breakpoint || self.policy.dedupe;
        let wants_answer = may_answer && (head.method.is_safe() || provider.wants_answer(received));
        let ack_after = if wants_answer { None } else { self.patience(webhook.deadline) };
        Case { webhook, judged, repeat, seen, wants_answer, ack_after }
    }

    fn named(&self, provider: &Known, received: &Received<'_>) -> Webhook {
        let named = provider.named(received).bounded();
        Webhook {
            provider: Some(provider.facts().name.to_owned()),
            event: named.event,
            event_id: named.id,
            dedup_id: named.dedup,
            deadline: provider.facts().deadline,
            ..Webhook::default()
        }
    }

    fn patience(&self, deadline: Option<Duration>) -> Option<Duration> {
        let deadline = deadline.unwrap_or(USUAL_DEADLINE);
        // The way there and back, and writing it down.
        self.policy.breakpoint.then(|| deadline - (deadline / 5).min(Duration::from_secs(1)))
    }

    fn judged(&self, webhook: &mut Webhook, judged: &Judged) {
        webhook.signature = judged.verdict();
        webhook.secret = self.policy.verifier.secret_of(judged).map(|rule| rule.name.clone());
    }

    /// What is answered in the app's place, if something is.
    pub(crate) fn own_answer(&self, case: &Case) -> Option<Own> {
        let own = |status, message: String, is_for_later| Some(Own { status, message, is_for_later });
        if self.policy.require_signature {
            match case.webhook.signature {
                Verdict::Ok => {}
                Verdict::Bad => return own(StatusCode::UNAUTHORIZED, "the signature is not good".into(), false),
                Verdict::None => {
                    return Some(Own::unsigned());
                }
            }
        }
        let repeat = case.repeat.as_ref().filter(|_| self.policy.dedupe && !case.wants_answer)?;
        match repeat.outcome {
            Some(true) => own(StatusCode::OK, format!("a duplicate of {}, which the app took", repeat.of), false),
            // It may fail yet.
            None => {
                let message = format!("a duplicate of {}, which the app is still working on", repeat.of);
                own(StatusCode::SERVICE_UNAVAILABLE, message, true)
            }
            Some(false) => None,
        }
    }

    /// What is known of a delivery when its attempt is over: the cause, too, if its signature is not good.
    pub(crate) async fn over(
        &self,
        mut case: Case,
        look: Option<Look>,
        encoded: &Bytes,
        body: &RawBody,
        outcome: &Outcome,
    ) -> Webhook {
        if let Some(look) = look {
            let is_whole = body.bytes.len() as u64 == body.size;
            let head = RequestHead::decode(encoded).ok().filter(|_| is_whole);
            match head {
                // It came piece by piece, but is kept whole: all can be said of it that is said of others.
                Some(head) => case = self.whole(&head, &body.bytes),
                None => {
                    let judged = look.finish();
                    self.judged(&mut case.webhook, &judged);
                    case.judged = Some(judged);
                }
            }
        }
        if let Some(seen) = case.seen.take() {
            seen.over(matches!(outcome, Outcome::Answered(status) if status.is_success()));
        }
        let Some(judged) = case.judged.take().filter(|judged| judged.provider.is_some()) else { return case.webhook };
        if case.webhook.signature != Verdict::Ok {
            case.webhook.detail = self.explain(judged, encoded.clone(), body.clone()).await;
            self.hint(&case.webhook);
        }
        case.webhook
    }

    /// What a request is that comes from no relay.
    pub(crate) async fn examined(&self, head: &RequestHead, body: &Bytes, resigned: bool, is_edit: bool) -> Webhook {
        let judged = self.policy.verifier.judge(head.endpoint.as_str(), &received(head, Some(body)));
        let Some(provider) = judged.provider.clone() else { return Webhook::default() };
        let mut webhook = self.named(&provider, &received(head, Some(body)));
        self.judged(&mut webhook, &judged);
        webhook.resigned = resigned;
        if webhook.signature == Verdict::Bad && is_edit && !resigned {
            webhook.detail = Some("it was edited and not signed afresh".into());
        } else if webhook.signature != Verdict::Ok {
            let encoded = crate::exchange::encoded(|out| head.encode(out));
            let body = RawBody { size: body.len() as u64, bytes: body.clone(), trailers: Bytes::new() };
            webhook.detail = self.explain(judged, encoded, body).await;
        }
        webhook
    }

    async fn explain(&self, judged: Judged, encoded: Bytes, body: RawBody) -> Option<String> {
        let is_cut = body.bytes.len() as u64 != body.size;
        let until = Some(Instant::now() + CAUSE_IN);
        let (verifier, suspects) = (self.policy.verifier.clone(), Suspects { is_cut, until, ..self.suspects.clone() });
        let is_puzzling = judged.is_puzzling();
        let explain = move || {
            let head = RequestHead::decode(&encoded).ok()?;
            verifier.explain(&judged, &received(&head, Some(&body.bytes)), &suspects)
        };
        if !is_puzzling {
            return explain();
        }
        let Ok(_doctor) = self.doctors.try_acquire() else {
            return Some("too many come at once to look for the cause of each; replay one:  hookway replay ID".into());
        };
        // Every known mistake is tried, which takes milliseconds with a large body.
        tokio::task::spawn_blocking(explain).await.ok().flatten()
    }

    fn hint(&self, webhook: &Webhook) {
        let known = webhook.provider.as_deref().and_then(Known::named);
        let Some(Known::Listed(provider)) = known else { return };
        let facts = provider.facts();
        let checks = self.policy.verifier.rules.iter().any(|rule| rule.provider.facts().name == facts.name);
        if checks || !self.hinted.lock().unwrap_or_else(PoisonError::into_inner).insert(facts.name) {
            return;
        }
        let (title, name, env) = (facts.title, facts.name, facts.secret_env);
        let text = format!("{title} signs its deliveries; to have them checked: hookway … --verify {name}={env}");
        self.events.tell(Event::Hint { text });
    }
}

impl Case {
    /// Whether finding out what is wrong with its signature takes a while.
    pub(crate) fn is_puzzling(&self) -> bool {
        self.judged.as_ref().is_some_and(Judged::is_puzzling)
    }

    /// How long the app may take before the sender is answered 202 in its place.
    pub(crate) const fn ack_after(&self) -> Option<Duration> {
        self.ack_after
    }
}

/// A delivery of an earlier run.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) id: DeliveryId,
    pub(crate) endpoint: String,
    pub(crate) path: String,
    /// Whether the app took it.
    pub(crate) taken: bool,
}

/// The delivery as a provider's file looks at it.
pub(crate) fn received<'a>(head: &'a RequestHead, body: Option<&'a [u8]>) -> Received<'a> {
    let at = i64::try_from(head.received_at_us).ok().and_then(|us| Timestamp::from_microsecond(us).ok());
    Received { headers: &head.headers, target: head.target.as_str(), body, at: at.unwrap_or_default() }
}
