//! `hookway drill`: is the handler idempotent? The same event again, as providers send it again.

use std::process::ExitCode;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::json;
use tokio::process::Command;

use super::block_on;
use super::history::open;
use super::replay::{failure, replayer};
use crate::config::Verify;
use crate::exchange::{Attempt, Exchange, Verdict};
use crate::filter::Filter;
use crate::history::{History, Limits, Listed, Which};
use crate::mask;
use crate::output::{Failure, Output};
use crate::replay::{Edits, Replayer, obstacle};
use crate::signature::{Known, Received, Verifier};
use crate::target::Target;
use crate::webhook::Policy;

/// A probe may take so long.
const PROBE_IN: Duration = Duration::from_secs(30);

/// What to drill with.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) which: Which,
    pub(super) to: Option<Target>,
    /// A command that tells the app's state: by its exit code and what it prints.
    pub(super) probe: Option<String>,
    pub(super) policy: Policy,
    pub(super) timeout: Duration,
}

/// A way in which an event comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    InARow,
    AtOnce,
    Retry,
    OutOfOrder,
}

impl Scenario {
    const fn name(self) -> &'static str {
        match self {
            Self::InARow => "in_a_row",
            Self::AtOnce => "at_once",
            Self::Retry => "retry",
            Self::OutOfOrder => "out_of_order",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::InARow => "twice in a row",
            Self::AtOnce => "twice at once",
            Self::Retry => "a retry after a time-out",
            Self::OutOfOrder => "after a later event",
        }
    }
}

/// What a probe said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Probed {
    exit: Option<i32>,
    printed: Vec<u8>,
}

/// A drill that goes on.
struct Drill<'a> {
    asked: &'a Asked,
    output: Output,
    history: &'a History,
    replayer: Replayer,
    original: &'a Exchange,
    /// The answer to the first delivery.
    first: Option<Attempt>,
    /// What the probe said last.
    state: Option<Probed>,
    reasons: Vec<String>,
}

pub(super) fn run(asked: &Asked, output: Output) -> Result<ExitCode, Failure> {
    asked.policy.notes.iter().for_each(|note| output.note(note));
    block_on(async {
        let history = open(Limits::NONE, output).await?;
        let original = history.get(asked.which.clone()).await??;
        refuse_challenge(&original)?;
        if let Some(obstacle) = obstacle(&original) {
            return Err(failure(&original, &obstacle));
        }
        if asked.to.is_none() && original.attempts.iter().all(|attempt| attempt.url.is_empty()) {
            return Err(Failure::new(1, format!("{} cannot be drilled", original.id))
                .cause("it reached no app, so there is none to put it to again")
                .next("say where to:  hookway drill ID --to 3000"));
        }
        let policy = with_usual_secret(asked.policy.clone(), &original);
        let replayer = replayer(Some(history.clone()), policy, asked.timeout);
        let mut drill = Drill {
            asked,
            output,
            history: &history,
            replayer,
            original: &original,
            first: None,
            state: None,
            reasons: vec![],
        };
        drill.run().await
    })
}

/// With the secret in the provider's usual variable, if none is known for it.
fn with_usual_secret(mut policy: Policy, original: &Exchange) -> Policy {
    let Some(name) = original.webhook.provider.as_deref() else { return policy };
    let rules = &policy.verifier.rules;
    let is_known = rules.iter().any(|rule| !rule.is_own && rule.provider.facts().name == name);
    let usual = || name.parse::<Verify>().ok().and_then(|verify| verify.rule().ok());
    if let Some(rule) = (!is_known).then(usual).flatten() {
        policy.verifier = Verifier::new(rules.iter().cloned().chain([rule]).collect());
    }
    policy
}

/// A challenge has no effect that could come twice.
fn refuse_challenge(original: &Exchange) -> Result<(), Failure> {
    if !is_challenge(original) {
        return Ok(());
    }
    Err(Failure::new(2, format!("{} is a challenge, not an event", original.id))
        .cause("it asks whether the endpoint is there; nothing happens by it that could happen twice")
        .next("drill an event:  hookway requests list"))
}

fn is_challenge(exchange: &Exchange) -> bool {
    let received = Received::from(exchange);
    Known::of(&received).is_some_and(|provider| provider.is_challenge(&received))
}

impl Drill<'_> {
    async fn run(&mut self) -> Result<ExitCode, Failure> {
        if !self.output.is_json() {
            let Exchange { id, webhook, request, .. } = self.original;
            let event =
                [webhook.provider.as_deref(), webhook.event.as_deref()].into_iter().flatten().collect::<Vec<_>>();
            let path = mask::target(request.target.as_str());
            self.output.text(&format!("Drilling {id}   {} {path}   {}\n", request.method, event.join(" ")));
        }
        self.state = self.probe().await?;
        if let Some(probed) = &self.state {
            self.tell_probe("before", probed);
        }
        let first = self.deliver(self.original, vec![]).await?;
        let now = self.probe().await?;
        self.tell(Scenario::InARow, 1, &first, now.as_ref());
        self.state = now;
        let Some(attempt) = first.attempts.last().filter(|attempt| attempt.outcome.is_ok()) else {
            let last = first.attempts.last().map(|attempt| attempt.outcome.status_and_error().0);
            let refused = matches!(last, Some(Some(400 | 401 | 403)));
            let unsigned = refused && first.webhook.signature != Verdict::Ok;
            let next = match &first.webhook.provider {
                Some(name) if unsigned => {
                    format!(
                        "if it wants a signature that is good, name the secret:  hookway drill {} --verify {name}=ENV",
                        self.original.id
                    )
                }
                _ if last.flatten().is_none() => "start the app, or drill another:  --to 3000".into(),
                _ => format!("see what it said:  hookway requests show {}", first.id),
            };
            return Err(Failure::new(6, "the app did not take the event, so nothing can be said of repeats")
                .cause("it answered 400 or above, or not at all")
                .next(next));
        };
        self.first = Some(attempt.clone());
        self.repeat(Scenario::InARow, 2, vec![]).await?;
        self.at_once().await?;
        self.repeat(Scenario::Retry, 1, self.retry_fields()).await?;
        self.out_of_order().await?;
        Ok(self.verdict())
    }

    /// Puts an event to the app as its provider would, signed as of now.
    async fn deliver(
        &self,
        event: &Exchange,
        more_headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Exchange, Failure> {
        let edits = Edits { more_headers, to: self.asked.to.clone(), as_sent: true, ..Edits::default() };
        let id = self.replayer.replay(event, edits).await.map_err(|error| failure(event, &error))?;
        Ok(self.history.get(Which::Id(id)).await??)
    }

    async fn repeat(
        &mut self,
        scenario: Scenario,
        n: u32,
        fields: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<(), Failure> {
        let repeat = self.deliver(self.original, fields).await?;
        let now = self.probe().await?;
        self.tell(scenario, n, &repeat, now.as_ref());
        self.judge(scenario, &repeat);
        self.look(scenario, now);
        Ok(())
    }

    async fn at_once(&mut self) -> Result<(), Failure> {
        let both = tokio::join!(self.deliver(self.original, vec![]), self.deliver(self.original, vec![]));
        let (one, other) = (both.0?, both.1?);
        let now = self.probe().await?;
        self.tell(Scenario::AtOnce, 1, &one, None);
        self.tell(Scenario::AtOnce, 2, &other, now.as_ref());
        self.judge(Scenario::AtOnce, &one);
        self.judge(Scenario::AtOnce, &other);
        self.look(Scenario::AtOnce, now);
        Ok(())
    }

    async fn out_of_order(&mut self) -> Result<(), Failure> {
        let Some(later) = self.later().await? else {
            self.output.note("no later event of the same sender is in the history, so the order was not tried");
            return Ok(());
        };
        let later = self.deliver(&later, vec![]).await?;
        let now = self.probe().await?;
        self.tell(Scenario::OutOfOrder, 1, &later, now.as_ref());
        // Another event may change what it likes.
        self.state = now;
        self.repeat(Scenario::OutOfOrder, 2, vec![]).await
    }

    /// The event that came next from the same sender to the same path.
    async fn later(&self) -> Result<Option<Exchange>, Failure> {
        let original = self.original.clone();
        let found = self.history.read(move |reader| {
            let mut next = None;
            reader.visit(&Filter::default(), None, true, |exchange| {
                if exchange.seq <= original.seq {
                    return Listed::Enough;
                }
                let same = exchange.endpoint == original.endpoint
                    && exchange.webhook.provider == original.webhook.provider
                    && exchange.request.target.path() == original.request.target.path();
                let other = exchange.replay_of.is_none()
                    && (exchange.webhook.dedup_id.is_none() || exchange.webhook.dedup_id != original.webhook.dedup_id);
                if same && other && !is_challenge(&exchange) {
                    next = Some(exchange.seq);
                }
                Listed::More
            })?;
            Ok(match next {
                Some(seq) => reader.at(seq)?,
                None => None,
            })
        });
        Ok(found.await?.filter(|exchange| obstacle(exchange).is_none()))
    }

    /// What the provider adds when it tries once more.
    fn retry_fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        let provider = self.original.webhook.provider.as_deref().and_then(Known::named);
        let fields = provider.map_or(&[][..], |provider| provider.facts().retry);
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    async fn probe(&self) -> Result<Option<Probed>, Failure> {
        let Some(command) = &self.asked.probe else { return Ok(None) };
        let failed = |cause: String| {
            Failure::new(1, "the probe cannot be run").cause(cause).next(format!("try it by hand:  {command}"))
        };
        let run = Command::new("sh").arg("-c").arg(command).kill_on_drop(true).output();
        let run = tokio::time::timeout(PROBE_IN, run).await;
        let done = run.map_err(|_| failed(format!("it was not done after {} s", PROBE_IN.as_secs())))?;
        let done = done.map_err(|error| failed(error.to_string()))?;
        // The shell's word for a command that it does not find, or may not run.
        if matches!(done.status.code(), Some(126 | 127)) {
            return Err(failed(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
        }
        Ok(Some(Probed { exit: done.status.code(), printed: done.stdout }))
    }

    /// Whether an answer's body is the first one's.
    fn body_is_same(&self, attempt: &Attempt) -> Option<bool> {
        let body = |attempt: &Attempt| attempt.reply.as_ref().map(|reply| reply.body.clone());
        self.first.as_ref().map(|first| body(first) == body(attempt))
    }

    fn judge(&mut self, scenario: Scenario, repeat: &Exchange) {
        let Some(attempt) = repeat.attempts.last().filter(|attempt| !attempt.outcome.is_ok()) else { return };
        let (status, error) = attempt.outcome.status_and_error();
        let answer = status.map(|status| status.to_string()).or_else(|| error.map(str::to_owned)).unwrap_or_default();
        let title = scenario.title();
        self.reasons.push(format!("{title}: the app answered {answer}, so the sender would try again and again"));
    }

    /// Whether the app's state is still what it was.
    fn look(&mut self, scenario: Scenario, now: Option<Probed>) {
        if now != self.state {
            self.reasons.push(format!("{}: the probe says that something changed", scenario.title()));
        }
        self.state = now;
    }

    fn tell(&self, scenario: Scenario, n: u32, exchange: &Exchange, now: Option<&Probed>) {
        let Some(attempt) = exchange.attempts.last() else { return };
        let (status, error) = attempt.outcome.status_and_error();
        let millis = attempt.duration.as_secs_f64() * 1000.0;
        let same = self.body_is_same(attempt);
        // What the first delivery changes is what it is for.
        let changed = now.zip(self.state.as_ref()).map(|(now, state)| now != state).filter(|_| self.first.is_some());
        if self.output.is_json() {
            self.output.json(&json!({
                "event": "drill",
                "scenario": scenario.name(),
                "n": n,
                "id": exchange.id.to_string(),
                "status": status,
                "error": error,
                "duration_ms": (millis * 10.0).round() / 10.0,
                "slower": self.first.as_ref().map(|first| millis - first.duration.as_secs_f64() * 1000.0).map(|ms| (ms * 10.0).round() / 10.0),
                "body": same.map(|same| if same { "same" } else { "other" }),
                "resigned": exchange.webhook.resigned,
                "probe": now.map(|now| json!({"exit": now.exit, "changed": changed})),
            }));
            return;
        }
        let status = status.map_or_else(|| format!("ERR {}", error.unwrap_or_default()), |status| status.to_string());
        let body = match same {
            None => "",
            Some(true) => "same answer",
            Some(false) => "another answer",
        };
        let probe = match (now, changed) {
            (Some(now), Some(true)) => format!("probe {}, changed", exit(now)),
            (Some(now), _) => format!("probe {}", exit(now)),
            (None, _) => String::new(),
        };
        let title = if n == 1 { scenario.title() } else { "" };
        let line = format!("  {title:<26}{n}  {status:<12}{millis:>7.0} ms   {body:<16}{probe}");
        self.output.text(line.trim_end());
    }

    fn tell_probe(&self, when: &str, probed: &Probed) {
        if self.output.is_json() {
            self.output.json(&json!({"event": "probe", "when": when, "exit": probed.exit}));
        } else {
            self.output.text(&format!("  {when:<26}   {:<12}{:>10}   {:<16}probe {}", "", "", "", exit(probed)));
        }
    }

    fn verdict(&self) -> ExitCode {
        let idempotent = self.reasons.is_empty();
        if self.output.is_json() {
            let id = self.original.id.to_string();
            let probed = self.asked.probe.is_some();
            self.output.json(&json!({
                "event": "drilled", "id": id, "idempotent": idempotent, "probed": probed, "reasons": self.reasons,
            }));
        } else if idempotent {
            self.output.line("\nThe handler looks idempotent.");
            if self.asked.probe.is_none() {
                self.output.note(
                    "by its answers; to look at what it does, too:  --probe 'psql -tc \"select count(*) from orders\"'",
                );
            }
        } else {
            self.output.line("\nThe handler does not look idempotent:");
            self.reasons.iter().for_each(|reason| self.output.text(&format!("  {reason}")));
        }
        ExitCode::from(u8::from(!idempotent))
    }
}

fn exit(probed: &Probed) -> String {
    probed.exit.map_or_else(|| "killed".into(), |exit| format!("exit {exit}"))
}
