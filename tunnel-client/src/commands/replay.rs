//! `hookway replay`: kept requests once more.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use bytes::Bytes;
use hookway_protocol::headers::Headers;
use hookway_protocol::id::DeliveryId;
use http::{HeaderName, HeaderValue, Method};

use super::block_on;
use super::history::open;
use crate::events::Events;
use crate::exchange::Exchange;
use crate::filter::Filter;
use crate::forwarder::Settings;
use crate::history::{History, Limits, Listed, Recorder, Which};
use crate::mask::Secrets;
use crate::output::{Failure, Output};
use crate::replay::{Edits, ReplayError, Replayer};
use crate::target::Target;
use crate::webhook::Policy;

/// What to replay, and how.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) which: Chosen,
    pub(super) to: Option<Target>,
    pub(super) edit: bool,
    pub(super) header: Vec<(HeaderName, HeaderValue)>,
    pub(super) times: u32,
    pub(super) no_resign: bool,
    pub(super) policy: Policy,
    pub(super) timeout: Duration,
}

/// Which requests.
#[derive(Debug)]
pub(super) enum Chosen {
    These(Vec<Which>),
    /// Those that failed, since then.
    Failed {
        since: Option<String>,
    },
}

/// What puts requests where they went before.
pub(super) fn replayer(history: Option<History>, policy: Policy, timeout: Duration) -> Replayer {
    let (max_body, max_connections) = (u64::MAX, usize::MAX);
    let settings = Settings { timeout, max_body, max_connections, webhooks: policy, ..Settings::new(vec![]) };
    let recorder = Recorder::new(Events::channel().0, history, Filter::default());
    Replayer { settings, forwarder: None, recorder }
}

pub(super) fn run(asked: &Asked, output: Output) -> Result<ExitCode, Failure> {
    asked.policy.notes.iter().for_each(|note| output.note(note));
    block_on(async {
        let history = open(Limits::NONE, output).await?;
        let originals = match &asked.which {
            Chosen::These(ids) => {
                let mut found = Vec::new();
                for id in ids {
                    found.push(history.get(id.clone()).await??.seq);
                }
                found
            }
            Chosen::Failed { since } => failed(&history, since.as_deref()).await?,
        };
        if originals.is_empty() {
            output.note("there is nothing to replay: no request failed that was not replayed with success");
        }
        let replayer = replayer(Some(history.clone()), asked.policy.clone(), asked.timeout);
        let (mut all_ok, many) = (true, originals.len() > 1);
        for seq in originals {
            let original = history.read(move |reader| reader.at(seq)).await?;
            // It may have been too old by now.
            let Some(original) = original else { continue };
            let edits = edits(asked, &original)?;
            for _ in 0..asked.times {
                let id = match replayer.replay(&original, edits.clone()).await {
                    Ok(id) => id,
                    // The others can be had all the same.
                    Err(error @ (ReplayError::Cut | ReplayError::NoTarget)) if many => {
                        output.note(&format!("{} cannot be replayed: {error}", original.id));
                        all_ok = false;
                        break;
                    }
                    Err(error) => return Err(failure(&original, &error)),
                };
                let exchange = history.get(Which::Id(id)).await??;
                all_ok &= !exchange.is_failed();
                output.exchange(&exchange, Secrets::Masked);
            }
        }
        if all_ok {
            return Ok(ExitCode::SUCCESS);
        }
        Err(Failure::new(6, "the local app failed a replay")
            .cause("it answered 400 or above, or not at all")
            .next("see what it said:  hookway requests show @1"))
    })
}

pub(super) fn failure(original: &Exchange, error: &ReplayError) -> Failure {
    let failure = Failure::new(1, format!("{} cannot be replayed", original.id)).cause(error.to_string());
    failure.next(match error {
        ReplayError::Cut => {
            "have its provider send it again; bodies of up to 1 MiB are kept whole, unless very many come at once"
        }
        ReplayError::Unfinished => "have its provider send it again",
        ReplayError::NoTarget => "say where to:  hookway replay ID --to 3000",
        ReplayError::History(_) => "see what is wrong:  hookway -v requests list",
    })
}

/// The places of those that failed and were not replayed with success, the oldest first.
async fn failed(history: &History, since: Option<&str>) -> Result<Vec<u64>, Failure> {
    let since = since.and_then(|since| since.parse::<Filter>().ok()).unwrap_or_default();
    let found = history.read(move |reader| {
        let (mut failed, mut mended): (Vec<(u64, DeliveryId)>, HashSet<DeliveryId>) = Default::default();
        reader.visit(&Filter::default(), None, false, |exchange| {
            match exchange.replay_of {
                Some(original) if !exchange.is_failed() => drop(mended.insert(original)),
                // What the client itself refused is nothing that the app failed.
                None if exchange.is_failed() && !exchange.is_own() && since.matches(&exchange) => {
                    failed.push((exchange.seq, exchange.id))
                }
                _ => {}
            }
            Listed::More
        })?;
        failed.retain(|(_, id)| !mended.contains(id));
        Ok(failed.into_iter().rev().map(|(seq, _)| seq).collect())
    });
    Ok(found.await?)
}

fn edits(asked: &Asked, original: &Exchange) -> Result<Edits, Failure> {
    let edits = if asked.edit { edit(original)? } else { Edits::default() };
    let (more_headers, to, no_resign) = (asked.header.clone(), asked.to.clone(), asked.no_resign);
    Ok(Edits { more_headers, to, no_resign, ..edits })
}

/// Lets the person change the request in an editor.
fn edit(original: &Exchange) -> Result<Edits, Failure> {
    let failed = |error: std::io::Error| {
        let next = "nothing was sent; edit it again, or with another editor:  EDITOR=nano hookway replay ID --edit";
        Failure::new(1, "the request cannot be edited").cause(error.to_string()).next(next)
    };
    let text = text_of(original);
    // Only its owner can read a temporary file; the ending tells editors what it is.
    let mut file = tempfile::Builder::new().prefix("hookway-").suffix(".http").tempfile().map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.flush().map_err(failed)?;
    let wanted = ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok().filter(|e| !e.is_empty()));
    let editor = wanted.unwrap_or_else(|| "vi".into());
    // The variable may hold arguments, as the shell would split them.
    let status = Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(file.path()).status();
    let status = status.map_err(failed)?;
    if !status.success() {
        return Err(Failure::new(1, format!("the editor `{editor}` ended with {status}"))
            .cause("nothing was sent")
            .next("name another one:  EDITOR=nano hookway replay ID --edit"));
    }
    // Anew by its name: editors often write another file and rename it.
    let changed = std::fs::read_to_string(file.path()).map_err(failed)?;
    if changed == text {
        return Ok(Edits::default());
    }
    parse(&changed, original).map_err(|why| {
        Failure::new(1, "the edited request cannot be read").cause(why).next("edit it again; nothing was sent")
    })
}

const NOT_TEXT: &str = "# The body is no text and stays as it is; what stands below the empty line would replace it.\n";

/// The request as lines: what an editor shows.
fn text_of(original: &Exchange) -> String {
    let request = &original.request;
    let body = std::str::from_utf8(&request.body.bytes).ok();
    let mut text =
        String::from("# Method and path, header fields, an empty line, the body. An empty file sends nothing.\n");
    if body.is_none() {
        text.push_str(NOT_TEXT);
    }
    let _ = writeln!(text, "{} {}", request.method, request.target);
    for (name, value) in request.headers.iter() {
        // Set for each request anew.
        if !name.as_str().starts_with("hookway-") && *name != http::header::CONTENT_LENGTH {
            let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
    }
    text.push('\n');
    text.push_str(body.unwrap_or_default());
    text
}

/// What an edited text says, where it differs.
fn parse(text: &str, original: &Exchange) -> Result<Edits, String> {
    let request = &original.request;
    let ends = ["\n\n", "\r\n\r\n"].into_iter().filter_map(|end| Some((text.find(end)?, end.len())));
    let (at, length) = ends.min().unwrap_or((text.len(), 0));
    let (head, body) = (&text[..at], &text[at + length..]);
    let mut lines = head.lines();
    // Below the request line a field's name may begin with # as well.
    let first = lines
        .find(|line| !line.starts_with('#') && !line.trim().is_empty())
        .ok_or("the file is empty: nothing was sent")?;
    let (method, target) = first.trim().split_once(' ').ok_or_else(|| format!("`{first}` is no method and path"))?;
    let method: Method = method.parse().map_err(|_| format!("`{method}` is no method"))?;
    let target = target.trim();
    let target =
        target.parse().ok().filter(|_| target.starts_with('/')).ok_or_else(|| format!("`{target}` is no path"))?;
    let field = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("`{line}` is no header field"))?;
        let name = name.trim().parse::<HeaderName>().map_err(|_| format!("`{name}` is no header name"))?;
        // A value that is no text keeps its bytes where it was not touched.
        let same = request
            .headers
            .iter()
            .find(|(own, kept)| **own == name && String::from_utf8_lossy(kept.as_bytes()) == value.trim());
        let value = match same {
            Some((_, kept)) => kept.clone(),
            None => value.trim().parse::<HeaderValue>().map_err(|_| format!("`{value}` cannot be a header's value"))?,
        };
        Ok::<_, String>((name, value))
    };
    let headers: Headers = lines.filter(|line| !line.trim().is_empty()).map(field).collect::<Result<_, _>>()?;
    let old = &request.body.bytes;
    let is_text = std::str::from_utf8(old).is_ok();
    // Editors end a file with a line feed; one more than there was is theirs.
    let body = match body.strip_suffix('\n') {
        Some(rest) if !old.ends_with(b"\n") => rest,
        _ => body,
    };
    let new_body =
        (body.as_bytes() != &old[..] && (is_text || !body.is_empty())).then(|| Bytes::copy_from_slice(body.as_bytes()));
    Ok(Edits { method: Some(method), target: Some(target), headers: Some(headers), body: new_body, ..Edits::default() })
}
