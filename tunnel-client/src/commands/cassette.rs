//! `hookway record` and `hookway replay --cassette`: webhooks in the tests of an app, in whatever language.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderName, HeaderValue};
use serde_json::json;

use super::block_on;
use super::history::open;
use super::requests::each_new;
use super::webhooks::{asked_for, keys_folder, read};
use crate::cassette::{self, Recorded, Unrecordable};
use crate::cli::VerifyArgs;
use crate::config::{ConfigError, Files, Verify};
use crate::events::Events;
use crate::exchange::{Exchange, Outcome, RawAttempt};
use crate::filter::Filter;
use crate::forwarder::{Forwarder, OutBody, Settings};
use crate::harmless;
use crate::history::{History, Limits, Query, Which};
use crate::mask::Secrets;
use crate::output::{Failure, Output};
use crate::replay::{own_head, put};
use crate::signature::{Known, Signer};
use crate::target::Target;
use crate::webhook::sign;

/// An app that a test has just started is waited for so long.
const WAIT_APP: Duration = Duration::from_secs(15);

/// What to record.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) ids: Vec<Which>,
    pub(super) out: PathBuf,
    pub(super) follow: bool,
    pub(super) filter: Filter,
}

/// What to put to the app, and what is right.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) file: PathBuf,
    pub(super) to: Target,
    pub(super) expect: Vec<String>,
    pub(super) max_ms: Option<u64>,
    pub(super) junit: Option<PathBuf>,
    pub(super) header: Vec<(HeaderName, HeaderValue)>,
    pub(super) no_resign: bool,
    pub(super) timeout: Duration,
}

pub(super) fn record(wanted: &Wanted, limit: Option<usize>, output: Output) -> Result<ExitCode, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(1, format!("{} cannot be written", wanted.out.display()))
            .cause(error.to_string())
            .next("name a file in a folder that is there:  --out tests/webhooks.jsonl")
    };
    block_on(async {
        let history = open(Limits::NONE, output).await?;
        let mut named = Vec::new();
        for which in &wanted.ids {
            named.push(history.get(which.clone()).await??);
        }
        let (count, left) = if wanted.follow {
            follow(&history, wanted, output).await?
        } else {
            if named.is_empty() {
                let filter = wanted.filter.clone();
                let query = Query { filter, limit: limit.unwrap_or(usize::MAX), bodies: true, ..Query::default() };
                let page = history.read(move |reader| reader.list(&query)).await?;
                // The oldest first, as they came; a replay is nobody's delivery.
                named = page.exchanges.into_iter().rev().filter(|exchange| exchange.replay_of.is_none()).collect();
            }
            if named.is_empty() {
                return Err(Failure::new(1, format!("there is nothing to record in {}", wanted.out.display()))
                    .cause("no request that is kept matches; the file stays as it was")
                    .next("see what there is:  hookway requests list"));
            }
            // Beside it until it is whole: what was recorded before stays when something goes wrong.
            let folder = wanted.out.parent().filter(|folder| !folder.as_os_str().is_empty());
            let new = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
            let mut tape = Tape { file: BufWriter::new(new), count: 0, left: 0 };
            for exchange in &named {
                tape.put(exchange).map_err(failed)?;
            }
            let new = tape.file.into_inner().map_err(|error| failed(error.into_error()))?;
            // For everybody's eyes, as a file of a project is.
            #[cfg(unix)]
            new.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(failed)?;
            new.persist(&wanted.out).map_err(|error| failed(error.error))?;
            (tape.count, tape.left)
        };
        if output.is_json() {
            let out = wanted.out.display().to_string();
            output.json(&json!({"event": "recorded", "file": out, "count": count, "left_out": left}));
        } else {
            let more = if left > 0 {
                format!("; {left} left out, whose bodies are cut, compressed, of several parts, or no UTF-8")
            } else {
                String::new()
            };
            output.note(&format!("{count} recorded in {}{more}", wanted.out.display()));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Records what comes, each at once, until Ctrl-C.
async fn follow(history: &History, wanted: &Wanted, output: Output) -> Result<(u64, u64), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(1, format!("{} cannot be written", wanted.out.display()))
            .cause(error.to_string())
            .next("name a file in a folder that is there:  --out tests/webhooks.jsonl")
    };
    let mut tape = Tape { file: File::create(&wanted.out).map_err(failed)?, count: 0, left: 0 };
    let ready = || {
        if output.is_json() {
            output.json(&json!({"event": "recording", "file": wanted.out.display().to_string()}));
        } else {
            output.note("recording; Ctrl-C ends it");
        }
    };
    let mut broken = None;
    let each = |exchange: &Exchange| {
        if exchange.replay_of.is_none() {
            broken = tape.put(exchange).err();
            output.exchange(exchange, Secrets::Masked);
        }
        broken.is_none()
    };
    each_new(history, &wanted.filter, ready, each).await?;
    broken.map_or(Ok((tape.count, tape.left)), |error| Err(failed(error)))
}

struct Tape<W> {
    file: W,
    count: u64,
    left: u64,
}

impl<W: Write> Tape<W> {
    fn put(&mut self, exchange: &Exchange) -> std::io::Result<()> {
        let mut line = Vec::new();
        match cassette::write(exchange, &mut line)? {
            Ok(()) => self.count += 1,
            Err(Unrecordable::Cut | Unrecordable::Opaque) => self.left += 1,
        }
        self.file.write_all(&line)
    }
}

/// A request of a cassette, and how it went.
struct Played {
    name: String,
    attempt: RawAttempt,
    /// Why it is not right.
    wrong: Option<String>,
}

pub(super) fn replay(asked: &Asked, verify: &VerifyArgs, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let text = String::from_utf8(read(&asked.file)?);
    let name = asked.file.display();
    let wrong = |line: usize, cause: String| {
        Failure::new(1, format!("line {line} of {name} is no request"))
            .cause(cause)
            .next("make the cassette anew:  hookway record --out FILE.jsonl")
    };
    let text = text.map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        wrong(line, "it is no UTF-8".into())
    })?;
    let mut requests = Vec::new();
    for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let recorded = cassette::read(text).map_err(|cause| wrong(line + 1, cause))?;
        let signer = signer(&recorded, asked, verify, files)?;
        requests.push((recorded, signer));
    }
    if requests.is_empty() {
        return Err(Failure::new(1, format!("{name} holds no request"))
            .cause("an empty cassette would pass any test")
            .next("record some:  hookway record --out FILE.jsonl --since 1h"));
    }
    let played = block_on(async {
        wait_for(&asked.to).await;
        let settings = Settings { headers: asked.header.clone(), ..Settings::own(asked.to.clone(), asked.timeout) };
        let forwarder = Forwarder::new(settings, &Events::channel().0);
        let mut played = Vec::new();
        for (recorded, signer) in requests {
            let one = play(&forwarder, recorded, signer, asked).await;
            let same = played
                .iter()
                .filter(|before: &&Played| {
                    before.name == one.name || before.name.starts_with(&format!("{} (", one.name))
                })
                .count();
            // Reports fold those of one name into one.
            let name = if same > 0 { format!("{} ({})", one.name, same + 1) } else { one.name };
            let one = Played { name, ..one };
            tell(&one, output);
            played.push(one);
        }
        Ok(played)
    })?;
    if let Some(path) = &asked.junit {
        std::fs::write(path, junit(&played)).map_err(|error| {
            Failure::new(1, format!("{} cannot be written", path.display()))
                .cause(error.to_string())
                .next("name a file in a folder that is there")
        })?;
    }
    let failed = played.iter().filter(|one| one.wrong.is_some()).count();
    let all = played.len();
    if output.is_json() {
        output.json(&json!({"event": "cassette", "count": all, "failed": failed}));
    }
    if failed == 0 {
        output.note(&format!("all {all} are right"));
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(6, format!("{failed} of {all} went wrong"))
        .cause("the app answered otherwise than --expect and --max-ms say, or not at all")
        .next(
            match played.iter().any(|one| matches!(one.attempt.outcome.status_and_error().0, Some(400 | 403 | 421))) {
                true => {
                    "see the lines above; an app that refuses the recorded host takes its own:  -H 'Host: localhost'"
                }
                false => "see the lines above",
            },
        ))
}

/// What signs a request: a secret that is named, a file's, the one in the provider's usual variable.
fn signer(
    recorded: &Recorded,
    asked: &Asked,
    verify: &VerifyArgs,
    files: &Files,
) -> Result<Option<(Known, Signer)>, Failure> {
    let name = recorded.provider.as_deref().filter(|_| recorded.signed && !asked.no_resign);
    let Some(name) = name else { return Ok(None) };
    let named = asked_for(verify)?;
    let asked_for = named.iter().chain(&files.verify).filter(|verify| {
        verify.provider.facts().name == name && verify.is_for(recorded.endpoint.as_deref(), recorded.target.path())
    });
    let usual = name.parse::<Verify>().map_err(|cause| Failure::new(1, "a request cannot be signed").cause(cause))?;
    let provider = usual.provider.clone();
    let mut missing: Option<ConfigError> = None;
    for verify in asked_for.chain([&usual]) {
        match verify.rule() {
            Ok(rule) => {
                if let Some(signer) = rule.key.signer() {
                    return Ok(Some((verify.provider.clone(), signer)));
                }
            }
            Err(error) => missing = missing.or(Some(error)),
        }
    }
    if let Some(signer) = keys_folder()?.signer(&provider) {
        return Ok(Some((provider, signer)));
    }
    let no_key = || {
        Failure::new(7, format!("the requests of {} cannot be signed", provider.facts().title))
            .cause("the provider signs with a key that only it has")
            .next(format!("make one of your own, for the tests:  hookway keys create {name}"))
    };
    // A public key would not sign either.
    let missing = missing.filter(|_| provider.facts().developer_key.is_none() || name == "standard");
    Err(missing.map_or_else(no_key, Failure::from))
}

/// Waits until an app listens there, or so long: a test may just have started it, and that is not its time to answer.
async fn wait_for(target: &Target) {
    let tried = async {
        while tokio::net::TcpStream::connect((target.host(), target.port())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let _ = tokio::time::timeout(WAIT_APP, tried).await;
}

async fn play(forwarder: &Forwarder, recorded: Recorded, signer: Option<(Known, Signer)>, asked: &Asked) -> Played {
    let name = [recorded.provider.as_deref(), recorded.event.as_deref()].into_iter().flatten().collect::<Vec<_>>();
    let name = format!("{} {} {}", recorded.method, recorded.target.path(), name.join(" ")).trim_end().to_owned();
    let mut head = own_head(recorded.method, recorded.target, recorded.headers);
    if head.headers.get(&HOST).is_none()
        && let Ok(host) = HeaderValue::try_from(asked.to.authority())
    {
        head.headers.push(HOST, host);
    }
    // As the relay says where it came from: some apps put the URL together from that, which is signed.
    let host = head.headers.get(&HOST).cloned();
    let seen = [("x-forwarded-proto", Some(HeaderValue::from_static("https"))), ("x-forwarded-host", host)];
    for (name, value) in seen {
        value.into_iter().for_each(|value| head.headers.push(HeaderName::from_static(name), value));
    }
    if signer.is_some() {
        let redacted = HeaderValue::from_static(cassette::REDACTED);
        recorded.signatures.into_iter().for_each(|name| head.headers.push(name, redacted.clone()));
    }
    let mut body = recorded.body;
    let signed = signer.map_or(Ok(()), |(provider, signer)| sign(&provider, &mut head, &mut body, &signer));
    // Those that nobody signs any more.
    let kept = head.headers.iter().filter(|(_, value)| *value != cassette::REDACTED);
    head.headers = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    let length = HeaderValue::try_from(body.len().to_string()).expect("a number");
    head.headers.push(http::header::CONTENT_LENGTH, length);
    let room = std::sync::Arc::new(crate::exchange::Room::new(1 << 16));
    let attempt = put(forwarder, head, OutBody::Whole(Some(body), None), Some(&room)).await;
    let wrong = signed.err().map(|error| error.to_string()).or_else(|| wrong(&attempt, asked));
    Played { name, attempt, wrong }
}

/// What is wrong with an answer.
fn wrong(attempt: &RawAttempt, asked: &Asked) -> Option<String> {
    let status = match &attempt.outcome {
        Outcome::Answered(status) => status.as_str(),
        Outcome::Cut(_) | Outcome::Failed { .. } => return Some(attempt.message.clone()),
    };
    let fits = |expected: &String| expected.bytes().zip(status.bytes()).all(|(e, s)| e == b'x' || e == s);
    if !asked.expect.iter().any(fits) {
        let body = &attempt.body.bytes;
        let said = harmless::text(&String::from_utf8_lossy(&body[..body.len().min(200)]), 120);
        let said = if said.trim().is_empty() { said } else { format!(": {}", said.trim()) };
        return Some(format!("answered {status}, expected {}{said}", asked.expect.join(" or ")));
    }
    let took = attempt.duration.as_millis();
    asked.max_ms.filter(|most| took > u128::from(*most)).map(|most| format!("took {took} ms, more than {most} ms"))
}

fn tell(one: &Played, output: Output) {
    let (status, error) = one.attempt.outcome.status_and_error();
    let millis = one.attempt.duration.as_secs_f64() * 1000.0;
    if output.is_json() {
        output.json(&json!({
            "event": "replayed",
            "name": one.name,
            "status": status,
            "error": error,
            "duration_ms": (millis * 10.0).round() / 10.0,
            "ok": one.wrong.is_none(),
            "wrong": one.wrong,
        }));
        return;
    }
    let status = status.map_or_else(|| "ERR".into(), |status| status.to_string());
    let wrong = one.wrong.as_ref().map(|why| format!("   WRONG: {why}")).unwrap_or_default();
    output.text(&format!("{status:<4}{millis:>7.0} ms   {}{wrong}", one.name));
}

/// A report as CI systems read it.
fn junit(played: &[Played]) -> String {
    let escaped = |text: &str| {
        let text = harmless::text(text, usize::MAX).replace(['\u{fffe}', '\u{ffff}'], "");
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    let seconds = |one: &Played| one.attempt.duration.as_secs_f64();
    let failures = played.iter().filter(|one| one.wrong.is_some()).count();
    let all: f64 = played.iter().map(seconds).sum();
    let cases: String = played
        .iter()
        .map(|one| {
            let head = format!(
                "    <testcase classname=\"hookway\" name=\"{}\" time=\"{:.3}\"",
                escaped(&one.name),
                seconds(one)
            );
            match &one.wrong {
                None => format!("{head}/>\n"),
                Some(why) => format!("{head}><failure message=\"{}\"/></testcase>\n", escaped(why)),
            }
        })
        .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"hookway\" tests=\"{}\" failures=\"{failures}\" \
         errors=\"0\" time=\"{all:.3}\">\n{cases}  </testsuite>\n</testsuites>\n",
        played.len()
    )
}
