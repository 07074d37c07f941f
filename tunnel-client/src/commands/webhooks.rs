//! Secrets for signatures: `hookway verify`, `hookway keys`, and what the flags ask of deliveries.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hookway_protocol::headers::Headers;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderName, HeaderValue, Uri};
use jiff::Timestamp;
use serde_json::json;

use crate::cli::{HistoryArgs, KeysCommand, PolicyArgs, VerifyArgs};
use crate::config::{self, ConfigError, Files, Verify};
use crate::exchange::Verdict;
use crate::harmless;
use crate::output::{Failure, Output};
use crate::signature::{DeveloperKey, Encoding, Known, Received, Rule, Suspects, Verifier};
use crate::webhook::{Keys, KeysError, Policy};

/// What flags and files ask of deliveries.
pub(super) fn policy(args: &VerifyArgs, policy: PolicyArgs, files: &Files) -> Result<Policy, Failure> {
    let (mut rules, mut notes) = (Vec::new(), Vec::new());
    for verify in asked_for(args)?.iter().chain(&files.verify) {
        match verify.rule() {
            Ok(rule) => rules.push(rule),
            // Who shares a project need not have all its secrets.
            Err(error @ ConfigError::NoSecret { .. }) if verify.of_file && !policy.require_signature => {
                let cause = Failure::from(error);
                let provider = verify.provider.facts().title;
                notes.push(format!("deliveries of {provider} are not checked: {}", cause.what));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if policy.require_signature && rules.is_empty() {
        return Err(Failure::new(2, "--require-signature has nothing to check signatures with")
            .cause("no secret was named, so every delivery would be answered 401")
            .next("name the sender and the variable with its secret:  --verify stripe=STRIPE_WEBHOOK_SECRET"));
    }
    let keys = keys_folder()?;
    for provider in Known::names().filter_map(Known::named) {
        if let Ok((key, _)) = keys.find(&provider) {
            rules.push(Rule::own(provider, key.public_key()));
        }
    }
    let PolicyArgs { require_signature, dedupe, breakpoint } = policy;
    Ok(Policy { verifier: Verifier::new(rules), require_signature, dedupe, breakpoint, keys, notes })
}

/// What the client answers 202 must be kept first.
pub(super) fn keeps_what_it_acks(policy: &Policy, history: &HistoryArgs) -> Result<(), Failure> {
    if !policy.breakpoint || !history.no_store {
        return Ok(());
    }
    Err(Failure::new(2, "--breakpoint and --no-store do not go together")
        .cause("what the client answers 202 must be kept first")
        .next("leave one of the two out"))
}

/// The secrets that flags ask for.
pub(super) fn asked_for(args: &VerifyArgs) -> Result<Vec<Verify>, Failure> {
    let parse = |text: &String| {
        text.parse::<Verify>().map_err(|cause| {
            Failure::new(2, "--verify cannot be used as it stands")
                .cause(cause)
                .next("name the sender and the variable with its secret:  --verify stripe=STRIPE_WEBHOOK_SECRET")
        })
    };
    args.verify.iter().map(parse).collect()
}

/// Where the developer's own keys are.
pub(super) fn keys_folder() -> Result<Keys, Failure> {
    match config::data_dir() {
        Ok(folder) => Ok(Keys::new(folder.join("keys"))),
        Err(ConfigError::NoHome) => Ok(Keys::default()),
        Err(error) => Err(error.into()),
    }
}

/// A webhook to check.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) provider: Known,
    pub(super) file: PathBuf,
    /// Variables.
    pub(super) secrets: Vec<String>,
    pub(super) header: Vec<(HeaderName, HeaderValue)>,
    pub(super) url: Option<Uri>,
    pub(super) at: Option<Timestamp>,
}

/// A file's bytes; those of stdin for `-`.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let read = match file.as_os_str().as_encoded_bytes() {
        b"-" => {
            let mut all = Vec::new();
            std::io::stdin().lock().read_to_end(&mut all).map(|_| all)
        }
        _ => std::fs::read(file),
    };
    read.map_err(|error| {
        Failure::new(1, format!("{} cannot be read", file.display()))
            .cause(error.to_string())
            .next("name a file with the body, or - for stdin")
    })
}

/// The rule for the secret in a variable that the command line names.
pub(super) fn named(provider: &Known, variable: &str) -> Result<Rule, Failure> {
    let verify = Verify::of(provider, variable).map_err(|cause| {
        Failure::new(2, "the secret cannot be found")
            .cause(cause)
            .next("put it into a variable and name that:  export MY_SECRET=…   then  --secret-env MY_SECRET")
    })?;
    Ok(verify.rule()?)
}

pub(super) fn verify(asked: &Asked, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let Asked { file, secrets, header, url, at, .. } = asked;
    let provider = &files.described(&asked.provider, url.as_ref().map_or("/", Uri::path));
    let facts = provider.facts();
    let mut rules = secrets.iter().map(|name| named(provider, name)).collect::<Result<Vec<_>, _>>()?;
    if rules.is_empty() {
        let of_files = files.verify.iter().filter(|verify| verify.provider.facts().name == facts.name);
        rules = of_files.map(Verify::rule).collect::<Result<_, _>>()?;
    }
    if rules.is_empty() {
        rules.push(named(provider, facts.secret_env)?);
    }
    if url.is_none() && matches!(facts.name, "twilio" | "square") {
        return Err(Failure::new(2, format!("{} signs the URL, too", facts.title))
            .cause("which one it was sent to was not said")
            .next("name it, just as it is entered there:  --url https://…"));
    }
    let body = read(file)?;
    let mut headers: Headers = header.iter().cloned().collect();
    if let (Some(url), None) = (url, headers.get(&HOST))
        && let Some(host) = url.authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok())
    {
        headers.push(HOST, host);
    }
    if url.as_ref().is_some_and(|url| url.scheme_str() == Some("http")) {
        headers.push(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("http"));
    }
    if headers.get(&CONTENT_TYPE).is_none() {
        // What it usually is.
        let is_json = body.starts_with(b"{") || body.starts_with(b"[");
        let kind = if is_json { "application/json" } else { facts.content_type };
        headers.push(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    let target = url.as_ref().and_then(Uri::path_and_query).map_or("/", |target| target.as_str());
    let at = at.unwrap_or_else(Timestamp::now);
    let received = Received { headers: &headers, target, body: Some(&body), at };
    let verifier = Verifier::new(rules);
    let judged = verifier.judge_as(provider, &received);
    let detail = verifier.explain(&judged, &received, &Suspects::default());
    let secret = verifier.secret_of(&judged).map(|rule| rule.name.clone());
    let named = provider.named(&received).bounded();
    if output.is_json() {
        output.json(&json!({
            "event": "verified",
            "provider": facts.name,
            "event_type": named.event,
            "event_id": named.id,
            "signature": judged.verdict().as_str(),
            "signature_detail": detail,
            "signature_secret": secret,
        }));
    } else {
        let event = named.event.map(|event| format!("   {}", harmless::text(&event, 80))).unwrap_or_default();
        let secret = secret.map(|secret| format!(", made with {secret}")).unwrap_or_default();
        output.line(&format!("{}  sig {}{secret}{event}", facts.name, judged.verdict().as_str()));
        if let Some(detail) = &detail {
            output.line(&format!("  {}", harmless::text(detail, usize::MAX)));
        }
    }
    Ok(ExitCode::from(u8::from(judged.verdict() != Verdict::Ok)))
}

pub(super) fn keys(what: KeysCommand, provider: &Known, output: Output) -> Result<ExitCode, Failure> {
    let folder = keys_folder()?;
    let name = provider.facts().name;
    let failed = |error: KeysError| {
        let failure = Failure::new(1, error.to_string());
        match error {
            KeysError::NotNeeded(_) => Failure { code: 2, ..failure }
                .cause("a key of one's own is for providers of whom everybody has the public half only")
                .next("hookway keys create sendgrid   (or discord, standard)"),
            KeysError::None(_) => failure.cause("it was not made yet").next(format!("hookway keys create {name}")),
            KeysError::NoKey(path) => failure.cause("the file holds something else").next(format!(
                "take it away:  rm {}   and make a new one:  hookway keys create {name}",
                path.display()
            )),
            KeysError::Io(error) => {
                failure.cause(error.to_string()).next("check that $XDG_DATA_HOME/hookway can be written")
            }
        }
    };
    let is_new = match what {
        KeysCommand::Create => folder.create(provider).map_err(failed)?,
        KeysCommand::Show => false,
    };
    let (key, path) = folder.find(provider).map_err(failed)?;
    let public = printed(&key, name);
    if output.is_json() {
        let path = path.display().to_string();
        output.json(&json!({"provider": name, "public_key": public, "path": path, "created": is_new}));
        return Ok(ExitCode::SUCCESS);
    }
    output.line(&public);
    output.note(&format!("the private half is in {}; give your app the line above as its public key", path.display()));
    Ok(ExitCode::SUCCESS)
}

/// The public half as the provider's library takes it.
fn printed(key: &DeveloperKey, provider: &str) -> String {
    let public = key.public();
    match provider {
        "standard" => format!("whpk_{}", Encoding::Base64.encode(&public)),
        "sendgrid" => Encoding::Base64.encode(&public),
        _ => Encoding::Hex.encode(&public),
    }
}
