//! `hookway send`: a signed sample, as its provider would send it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::head::Failure as Reason;
use hookway_protocol::headers::Headers;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Uri};
use jiff::Timestamp;
use serde_json::json;

use super::block_on;
use super::webhooks::{keys_folder, named, read};
use crate::config::{Files, Verify};
use crate::events::Events;
use crate::exchange::{Outcome, RawAttempt};
use crate::forwarder::{Forwarder, OutBody, Settings};
use crate::harmless;
use crate::mask::MASK;
use crate::output::{Failure, Output};
use crate::replay::{own_head, put};
use crate::samples::{self, Sample, SampleError};
use crate::signature::{CannotSign, Known, Outgoing, Signer};
use crate::target::Target;

/// As much of an answer that is no success is shown.
const SHOWN: usize = 2000;

/// What to send.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) provider: Known,
    pub(super) event: Option<String>,
    pub(super) to: Uri,
    /// A variable.
    pub(super) secret_env: Option<String>,
    pub(super) file: Option<PathBuf>,
    pub(super) set: Vec<(String, String)>,
    pub(super) header: Vec<(HeaderName, HeaderValue)>,
    pub(super) json_body: bool,
    pub(super) dry_run: bool,
    pub(super) timeout: Duration,
}

#[cfg(feature = "dev")]
impl Asked {
    /// The provider's usual sample.
    pub(super) fn sample(provider: Known, to: Uri) -> Self {
        let (event, secret_env, file, set, header) = Default::default();
        let timeout = Duration::from_secs(30);
        Self { provider, event, to, secret_env, file, set, header, json_body: false, dry_run: false, timeout }
    }

    /// Sends it.
    pub(super) async fn send(&self, signer: Option<&Signer>) -> Result<RawAttempt, Failure> {
        let (origin, target) = place(&self.to)?;
        let request = request(self, &origin, signer)?;
        Ok(send(request, target, self.timeout).await)
    }
}

pub(super) fn list(provider: &Known, output: Output) -> Result<ExitCode, Failure> {
    let facts = provider.facts();
    for name in samples::names(facts.name) {
        match output.is_json() {
            true => output.json(&json!({"provider": facts.name, "sample": name, "usual": name == facts.sample})),
            false => output.line(&name),
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run(asked: &Asked, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let (origin, target) = place(&asked.to)?;
    let signer = signer(asked, files)?;
    let request = request(asked, &origin, signer.as_ref())?;
    let is_signed = signer.is_some();
    if !is_signed {
        let facts = asked.provider.facts();
        let how = match facts.developer_key {
            Some(_) => format!("make a key of your own:  hookway keys create {}", facts.name),
            None => format!(
                "set {} to the secret that your app has, or name its variable:  --secret-env ENV",
                facts.secret_env
            ),
        };
        output.note(&format!("not signed; {how}"));
    }
    if asked.dry_run {
        return show(&request, output);
    }
    let named = asked.provider.named(&request.received(Timestamp::now())).bounded();
    let attempt = block_on(async { Ok(send(request, target, asked.timeout).await) })?;
    let (status, error) = attempt.outcome.status_and_error();
    let millis = attempt.duration.as_secs_f64() * 1000.0;
    let (event, id) = (named.event.unwrap_or_default(), named.id.unwrap_or_default());
    if output.is_json() {
        output.json(&json!({
            "event": "sent",
            "provider": asked.provider.facts().name,
            "event_type": event,
            "event_id": id,
            "signed": is_signed,
            "status": status,
            "error": error,
            "duration_ms": (millis * 10.0).round() / 10.0,
        }));
    } else if let Outcome::Answered(status) = attempt.outcome {
        let (event, id) = (harmless::text(&event, 60), harmless::text(&id, 60));
        output.line(&format!("{}   {millis:.0} ms   {event}   {id}", status.as_u16()));
        if !attempt.outcome.is_ok() {
            let body = &attempt.body.bytes;
            output.text(String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).trim_end());
        }
    }
    match attempt.outcome {
        Outcome::Answered(status) if status.as_u16() < 400 => Ok(ExitCode::SUCCESS),
        Outcome::Answered(status) => Err(Failure::new(6, format!("it was answered {status}"))
            .cause("the app, or a relay before it, did not take the webhook")
            .next("see the answer above, or in the inspector")),
        Outcome::Failed { failure: Reason::Timeout, .. } => {
            Err(Failure::new(6, format!("{} gave no answer in time", asked.to))
                .cause(attempt.message)
                .next("give it longer:  --timeout 60s"))
        }
        Outcome::Cut(_) | Outcome::Failed { .. } => Err(Failure::new(6, format!("{} gave no answer", asked.to))
            .cause(attempt.message)
            .next("start what should listen there, or send elsewhere:  --to URL")),
    }
}

/// The origin, and what to connect to.
fn place(to: &Uri) -> Result<(String, Target), Failure> {
    let wrong = |cause: String| {
        Failure::new(2, format!("`{to}` is no URL to send to"))
            .cause(cause)
            .next("--to http://localhost:3000/webhooks, or the URL that hookway gave you")
    };
    let (Some(scheme), Some(authority)) = (to.scheme_str(), to.authority()) else {
        return Err(wrong("it has no scheme or no host".into()));
    };
    let origin = format!("{scheme}://{authority}");
    let target = origin.parse::<Target>().map_err(|error| wrong(error.to_string()))?;
    Ok((origin, target))
}

/// What signs: the secret that is named, the files', the provider's usual variable's; else a key of the developer's own.
fn signer(asked: &Asked, files: &Files) -> Result<Option<Signer>, Failure> {
    let facts = asked.provider.facts();
    let rule = match &asked.secret_env {
        Some(name) => Some(named(&asked.provider, name)?),
        None => {
            let of_files = files
                .verify
                .iter()
                .filter(|verify| verify.provider.facts().name == facts.name && verify.is_for(None, asked.to.path()));
            let usual = facts.name.parse::<Verify>().ok();
            of_files.chain(&usual).find_map(|verify| verify.rule().ok())
        }
    };
    let signer = rule.as_ref().and_then(|rule| rule.key.signer());
    if signer.is_none() && asked.secret_env.is_some() {
        return Err(Failure::new(
            2,
            format!("{} cannot sign: it is a public key", asked.secret_env.as_deref().unwrap_or_default()),
        )
        .cause(format!("the private half is {}'s alone", facts.title))
        .next(format!(
            "make a key of your own, and give your app its public half:  hookway keys create {}",
            facts.name
        )));
    }
    match signer {
        None if facts.developer_key.is_some() => Ok(keys_folder()?.signer(&asked.provider)),
        signer => Ok(signer),
    }
}

/// The request, signed.
fn request(asked: &Asked, origin: &str, signer: Option<&Signer>) -> Result<Outgoing, Failure> {
    let facts = asked.provider.facts();
    let event = asked.event.as_deref().unwrap_or(facts.sample);
    let mut headers = Headers::default();
    let mut push = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.push(name, value);
        }
    };
    push(HOST, origin.split_once("://").map_or("", |(_, authority)| authority));
    push(USER_AGENT, facts.user_agent);
    push(ACCEPT, "*/*");
    // A file's body has the head of the sample that it stands for.
    let sample = match (&asked.file, asked.event.is_some() || asked.file.is_none()) {
        (_, true) if facts.name != "hmac" || asked.event.is_some() => Some(sample(facts.name, event, &asked.set)?),
        (Some(_), _) => samples::make(facts.name, event, &[]).ok(),
        _ => None,
    };
    let is_form = sample.as_ref().is_some_and(|sample| sample.is_form) || (facts.name == "twilio" && !asked.json_body);
    const FORM: &str = "application/x-www-form-urlencoded; charset=UTF-8";
    let kind = match facts.content_type {
        _ if is_form => FORM,
        // What is sent as JSON instead.
        kind if kind == FORM => "application/json",
        kind => kind,
    };
    push(CONTENT_TYPE, kind);
    for (name, value) in sample.iter().flat_map(|sample| &sample.headers) {
        if let Ok(name) = HeaderName::try_from(name) {
            push(name, value);
        }
    }
    let body: Bytes = match (&asked.file, sample) {
        (Some(file), _) => read(file)?.into(),
        (None, Some(sample)) if is_form => samples::form(&sample.body).into(),
        (None, sample) => sample.map(|sample| sample.body).unwrap_or_else(|| "{}".into()).into(),
    };
    let target = asked.to.path_and_query().cloned().unwrap_or_else(|| "/".parse().expect("a path"));
    let mut request = Outgoing { headers, origin: origin.to_owned(), target, body };
    if let Some(signer) = signer {
        asked.provider.sign(&mut request, signer, Timestamp::now()).map_err(|error| unsigned(&error))?;
    }
    for (name, value) in &asked.header {
        request.put(name, Some(value.clone()));
    }
    let length = request.body.len().to_string();
    request.set("content-length", &length);
    Ok(request)
}

fn sample(provider: &str, event: &str, set: &[(String, String)]) -> Result<Sample, Failure> {
    samples::make(provider, event, set).map_err(|error| {
        let failure = Failure::new(2, error.to_string());
        match error {
            SampleError::None { near: Some(near), .. } => failure
                .cause(format!("did you mean {near}?"))
                .next(format!("see what there is:  hookway send {provider} --list")),
            SampleError::None { .. } => failure
                .cause(format!("there are: {}", samples::names(provider).join(", ")))
                .next(format!("hookway send {provider} --list, or send your own:  --file FILE")),
            SampleError::Set { source, .. } => failure
                .cause(source.to_string())
                .next(format!("see the sample:  hookway send {provider} {event} --to http://localhost --dry-run")),
        }
    })
}

fn unsigned(error: &CannotSign) -> Failure {
    Failure::new(2, "the webhook cannot be signed")
        .cause(error.to_string())
        .next("send another body, or a sample without --file")
}

/// Prints the request.
fn show(request: &Outgoing, output: Output) -> Result<ExitCode, Failure> {
    if output.is_json() {
        let headers: Vec<(&str, String)> = request
            .headers
            .iter()
            .map(|(name, value)| match name.as_str() {
                name @ "x-gitlab-token" => (name, MASK.to_owned()),
                name => (name, String::from_utf8_lossy(value.as_bytes()).into_owned()),
            })
            .collect();
        let body = String::from_utf8_lossy(&request.body);
        output.json(&json!({"event": "unsent", "url": request.url(), "headers": headers, "body": body}));
        return Ok(ExitCode::SUCCESS);
    }
    output.text(&format!("POST {}", request.url()));
    for (name, value) in request.headers.iter() {
        // The others are made with the secret; this one is it.
        if *name == "x-gitlab-token" {
            output.text(&format!("{name}: {MASK}"));
            continue;
        }
        output.text(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
    }
    output.line("");
    output.text(&String::from_utf8_lossy(&request.body));
    Ok(ExitCode::SUCCESS)
}

async fn send(request: Outgoing, target: Target, timeout: Duration) -> RawAttempt {
    let head = own_head(Method::POST, request.target, request.headers);
    let room = std::sync::Arc::new(crate::exchange::Room::new(SHOWN * 4));
    let forwarder = Forwarder::new(Settings::own(target, timeout), &Events::channel().0);
    put(&forwarder, head, OutBody::Whole(Some(request.body), None), Some(&room)).await
}
