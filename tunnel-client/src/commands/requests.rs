//! `hookway requests` and `hookway inspect`: what was kept.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use hookway_protocol::headers::Headers;

use super::block_on;
use super::forward::Stop;
use super::history::open;
use super::replay::replayer;
use crate::cli::{FindArgs, InspectArgs, RequestsCommand};
use crate::content::{Content, Kind};
use crate::diff::{Change, Diff, Op};
use crate::exchange::{Attempt, Exchange, Kept, Webhook};
use crate::export::curl::curl;
use crate::export::har::har;
use crate::export::jsonl::{self, Imported};
use crate::filter::Filter;
use crate::history::{FileError, History, Limits, Query, Record, Which};
use crate::inspector::Shown;
use crate::mask::{self, Secrets};
use crate::output::{Banner, Failure, Output};
use crate::private;
use crate::view;
use crate::webhook::Policy;

/// What is listed unless a number is given.
const LISTED: usize = 50;
/// How often another program's changes are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes of a body that are shown where it is no text.
const DUMPED: usize = 256;
/// Exchanges imported at once.
const BATCH: usize = 100;

pub(super) fn run(find: &FindArgs, what: Option<RequestsCommand>, output: Output) -> Result<ExitCode, Failure> {
    block_on(async {
        let history = open(Limits::NONE, output).await?;
        let secrets = if find.secrets { Secrets::Shown } else { Secrets::Masked };
        match what.unwrap_or(RequestsCommand::List) {
            RequestsCommand::List => list(&history, find, secrets, output).await,
            RequestsCommand::Show { id, body } => show(&history, id, body, secrets, output).await,
            RequestsCommand::Follow => follow(&history, find, secrets, output).await,
            RequestsCommand::Diff { a, b } => diff(&history, a, b, secrets, output).await,
            RequestsCommand::Export { ids, har, curl, output: file, .. } => {
                let format = if har {
                    Format::Har
                } else if curl {
                    Format::Curl
                } else {
                    Format::Jsonl
                };
                export(&history, find, Export { ids, format, secrets, file }, output).await
            }
            RequestsCommand::Import { file } => import(&history, &file, output).await,
            RequestsCommand::Delete { ids, all } => delete(&history, find, ids, all, output).await,
        }
    })
}

async fn list(history: &History, find: &FindArgs, secrets: Secrets, output: Output) -> Result<ExitCode, Failure> {
    let limit = find.limit.unwrap_or(LISTED);
    let query = Query { filter: find.filter(), limit, ..Query::default() };
    let page = history.read(move |reader| reader.list(&query)).await?;
    for exchange in page.exchanges.iter().rev() {
        output.exchange(exchange, secrets);
    }
    if page.exchanges.is_empty() {
        output.note(match page.total.count {
            0 => "there are no requests yet",
            _ => "no request matches",
        });
    }
    if page.next.is_some() && find.limit.is_none() {
        output.note(&format!("the newest {LISTED} are shown; --limit N for more"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(history: &History, id: Which, body: bool, secrets: Secrets, output: Output) -> Result<ExitCode, Failure> {
    let exchange = history.get(id).await??;
    if body {
        let failed = |error: io::Error| Failure::new(1, "the body cannot be written").cause(error.to_string());
        output.bytes(&exchange.request.body.bytes).map_err(failed)?;
    } else if output.is_json() {
        output.json(&view::detail(&exchange, secrets));
    } else {
        print(&exchange, secrets, output);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(exchange: &Exchange, secrets: Secrets, output: Output) {
    let request = &exchange.request;
    let http = if exchange.http2 { "HTTP/2" } else { "HTTP/1.1" };
    let at = exchange.received_at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%.3f");
    output.exchange(exchange, secrets);
    output.text(&format!("{}   {} at {at}, from {} over {http}", exchange.id, exchange.endpoint, exchange.remote));
    if let Some(original) = exchange.replay_of {
        let edited = if exchange.edited { ", edited" } else { "" };
        output.text(&format!("replay of {original}{edited}"));
    }
    print_webhook(&exchange.webhook, output);
    let target = view::shown(request.target.as_str(), secrets);
    output.text(&format!("\n{} {target}", request.method));
    print_message(&request.headers, &request.body, &request.trailers, secrets, output);
    if request.unfinished {
        output.text("  [the end of the body did not come]");
    }
    for attempt in &exchange.attempts {
        print_attempt(attempt, secrets, output);
    }
    if exchange.attempts.is_empty() {
        output.text("\nthe app has not answered yet");
    }
}

/// What it is as a webhook, if it is one.
fn print_webhook(webhook: &Webhook, output: Output) {
    let Some(provider) = &webhook.provider else { return };
    let named = [webhook.event.as_deref(), webhook.event_id.as_deref()].into_iter().flatten().collect::<Vec<_>>();
    let by = webhook.secret.as_ref().map(|secret| format!(", made with {secret}")).unwrap_or_default();
    let again = if webhook.resigned { ", signed afresh" } else { "" };
    output.text(&format!("{provider} {}   sig {}{by}{again}", named.join(" "), webhook.signature.as_str()));
    if let Some(detail) = &webhook.detail {
        output.text(&format!("  {detail}"));
    }
    if let Some(original) = webhook.duplicate_of {
        output.text(&format!("duplicate of {original}"));
    }
    if let Some(acked) = webhook.acked {
        output.text(&format!("the sender was answered 202 after {} ms (--breakpoint)", view::millis(acked)));
    }
}

fn print_attempt(attempt: &Attempt, secrets: Secrets, output: Output) {
    let ms = view::millis;
    let connect = attempt.connect.map_or("a kept connection".into(), |took| format!("connect {} ms", ms(took)));
    let first = attempt.first_byte.map(|took| format!(", first byte {} ms", ms(took))).unwrap_or_default();
    let url = view::shown(&attempt.url, secrets);
    let took = view::took(attempt.duration).map(|took| format!("   {took} ms ({connect}{first})"));
    output.text(&format!("\nAttempt {}   {url}{}", attempt.number, took.unwrap_or_default()));
    if !attempt.message.is_empty() {
        output.text(&attempt.message);
    }
    if let Some(reply) = &attempt.reply {
        output.text(&format!("\n{}", reply.status));
        print_message(&reply.headers, &reply.body, &reply.trailers, secrets, output);
    }
}

/// Header fields, body and trailers.
fn print_message(headers: &Headers, body: &Kept, trailers: &Headers, secrets: Secrets, output: Output) {
    let rows = |headers| {
        for row in mask::rows(headers, secrets) {
            output.text(&format!("  {}: {}", row.name, row.value));
        }
    };
    rows(headers);
    let content = Content::of(headers, body);
    if content.kind != Kind::Empty {
        output.text("");
    }
    let inflated =
        content.inflated_size.map(|size| format!("inflated from {}, {size} bytes", content.encodings.join(", ")));
    let cut = body.is_cut().then(|| format!("cut: {} of {} bytes are kept", body.bytes.len(), body.size));
    for note in [inflated, content.encoding_error.clone(), cut].into_iter().flatten() {
        output.text(&format!("  [{note}]"));
    }
    match &content.text {
        Some(text) if content.kind == Kind::Json && content.json_error.is_none() => output.text(&pretty_json(text)),
        Some(text) => output.text(text),
        None if content.kind == Kind::Empty => {}
        None => {
            output.text(&format!("  [{} bytes that are no text]", body.size));
            output.text(&dump(&body.bytes[..body.bytes.len().min(DUMPED)]));
        }
    }
    if let Some(error) = &content.json_error {
        output.text(&format!("  [no JSON: {} at line {}, column {}]", error.message, error.line, error.column));
    }
    if !trailers.is_empty() {
        output.text("\n  trailers:");
        rows(trailers);
    }
}

/// JSON with a line for each member; its tokens stay as they were written.
fn pretty_json(text: &str) -> String {
    let (mut pretty, mut depth, mut quoted, mut escaped) = (String::new(), 0_usize, false, false);
    let line = |pretty: &mut String, depth: usize| pretty.extend(["\n", &"  ".repeat(depth.min(64))]);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if quoted {
            pretty.push(c);
            (quoted, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        match c {
            '{' | '[' => {
                pretty.push(c);
                while rest.next_if(|next| next.is_whitespace()).is_some() {}
                if let Some(end) = rest.next_if(|next| matches!(next, '}' | ']')) {
                    pretty.push(end);
                } else {
                    depth += 1;
                    line(&mut pretty, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut pretty, depth);
                pretty.push(c);
            }
            ',' => {
                pretty.push(c);
                line(&mut pretty, depth);
            }
            ':' => pretty.push_str(": "),
            c if c.is_whitespace() => {}
            c => {
                pretty.push(c);
                quoted = c == '"';
            }
        }
    }
    pretty
}

/// Bytes in hexadecimal, 16 a line, with what can be read beside them.
fn dump(bytes: &[u8]) -> String {
    let line = |(number, line): (usize, &[u8])| {
        let hex: String = line.iter().map(|byte| format!("{byte:02x} ")).collect();
        let text: String =
            line.iter().map(|b| if b.is_ascii_graphic() || *b == b' ' { *b as char } else { '.' }).collect();
        format!("  {:08x}  {hex:<48} {text}", number * 16)
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}

async fn follow(history: &History, find: &FindArgs, secrets: Secrets, output: Output) -> Result<ExitCode, Failure> {
    let print = |exchange: &Exchange| {
        output.exchange(exchange, secrets);
        true
    };
    each_new(history, &find.filter(), || {}, print).await?;
    Ok(ExitCode::SUCCESS)
}

/// Shows each exchange to `each` that is over and matches, as they come from when `ready` is told; until it says no, or a
/// signal.
pub(super) async fn each_new(
    history: &History,
    filter: &Filter,
    ready: impl FnOnce(),
    mut each: impl FnMut(&Exchange) -> bool,
) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let mut version = history.read(|reader| reader.total()).await?.version;
    ready();
    let mut is_last = false;
    // What was printed already; a change of another kind, such as a pin, is no news.
    let mut printed: VecDeque<(u64, usize)> = VecDeque::new();
    loop {
        let after = version;
        for exchange in history.read(move |reader| reader.changes(after, BATCH, true)).await? {
            version = exchange.version;
            let key = (exchange.seq, exchange.attempts.len());
            if exchange.attempts.is_empty() || printed.contains(&key) || !filter.matches(&exchange) {
                continue;
            }
            if !each(&exchange) {
                return Ok(());
            }
            printed.push_back(key);
            if printed.len() > 1000 {
                printed.pop_front();
            }
        }
        if version > after {
            continue;
        }
        if is_last {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.wait() => {
                // What was answered just now is about to be kept.
                is_last = true;
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

async fn diff(history: &History, a: Which, b: Which, secrets: Secrets, output: Output) -> Result<ExitCode, Failure> {
    let (a, b) = (history.get(a).await??, history.get(b).await??);
    let diff = Diff::of(&a, &b, secrets);
    if output.is_json() {
        output.json(&serde_json::to_value(&diff).unwrap_or_default());
    } else {
        print_diff(&diff, output);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_diff(diff: &Diff, output: Output) {
    for section in diff.sections.iter().filter(|section| !section.changes.is_empty()) {
        output.text(section.name);
        for change in &section.changes {
            match change {
                Change::Value { op: Op::Add, path, b, .. } => {
                    output.text(&format!("  + {path}: {}", b.as_deref().unwrap_or_default()));
                }
                Change::Value { op: Op::Remove, path, a, .. } => {
                    output.text(&format!("  - {path}: {}", a.as_deref().unwrap_or_default()));
                }
                Change::Value { path, a, b, .. } => {
                    let [a, b] = [a, b].map(|text| text.as_deref().unwrap_or_default());
                    output.text(&format!("  ~ {path}: {a} → {b}"));
                }
                Change::Line { op, line } => {
                    let sign = match op {
                        Op::Add => '+',
                        Op::Remove => '-',
                        _ => ' ',
                    };
                    output.text(&format!("  {sign} {line}"));
                }
            }
        }
    }
    if diff.same {
        output.note("there is no difference");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Har,
    Jsonl,
    Curl,
}

#[derive(Debug)]
struct Export {
    ids: Vec<Which>,
    format: Format,
    secrets: Secrets,
    file: Option<std::path::PathBuf>,
}

async fn export(history: &History, find: &FindArgs, export: Export, output: Output) -> Result<ExitCode, Failure> {
    let chosen = chosen(history, find, &export.ids).await?;
    let Export { format, secrets, file, .. } = export;
    let count = chosen.len();
    let failed = |error: FileError| {
        let cause = match &error {
            FileError::Io(error) => error.to_string(),
            error => error.sentence(),
        };
        Failure::new(1, "the export broke off").cause(cause).next("check the file that --output names, and the disk")
    };
    let into = file.clone();
    let beside = history.read(move |reader| {
        let mut broken = None;
        let exchanges = reader.all(&chosen, &mut broken);
        let mut out: Box<dyn Write> = match &into {
            Some(path) => Box::new(BufWriter::new(private(path)?)),
            None => Box::new(BufWriter::new(io::stdout())),
        };
        let mut beside = Vec::new();
        match format {
            Format::Har => har(exchanges, secrets, &mut out)?,
            Format::Jsonl => {
                for exchange in exchanges {
                    jsonl::write(&exchange, secrets, &mut out)?;
                }
            }
            Format::Curl => {
                let folder = into.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
                for exchange in exchanges {
                    let made = curl(&exchange, None, secrets);
                    writeln!(out, "{}", made.command)?;
                    if let Some((name, bytes)) = made.file {
                        private(&folder.join(&name))?.write_all(&bytes)?;
                        beside.push(name);
                    }
                }
            }
        }
        out.flush()?;
        broken.map_or(Ok(beside), Err)
    });
    for name in beside.await.map_err(failed)? {
        output.note(&format!("the body is in {name}"));
    }
    if secrets == Secrets::Masked && count > 0 {
        output.note("secrets are masked; --secrets writes them");
    }
    Ok(ExitCode::SUCCESS)
}

/// A file for its owner's eyes: what is written may be secret.
fn private(path: &Path) -> io::Result<File> {
    private::options().write(true).create(true).truncate(true).open(path)
}

/// The places of these, or of all that the flags find, the oldest first.
async fn chosen(history: &History, find: &FindArgs, ids: &[Which]) -> Result<Vec<u64>, Failure> {
    let mut chosen = Vec::new();
    for id in ids {
        chosen.push(history.get(id.clone()).await??.seq);
    }
    if ids.is_empty() {
        let filter = find.filter();
        chosen = history.read(move |reader| reader.sequence(&filter)).await?;
        let over = chosen.len().saturating_sub(find.limit.unwrap_or(usize::MAX));
        chosen.drain(..over);
    }
    Ok(chosen)
}

async fn import(history: &History, file: &Path, output: Output) -> Result<ExitCode, Failure> {
    let failed = |error: io::Error| {
        let next = "name a file that this wrote:  hookway requests export --jsonl --secrets";
        Failure::new(1, format!("{} cannot be read", file.display())).cause(error.to_string()).next(next)
    };
    let input: Box<dyn BufRead> = match file.as_os_str() == "-" {
        true => Box::new(BufReader::new(io::stdin())),
        false => Box::new(BufReader::new(File::open(file).map_err(failed)?)),
    };
    let (mut records, mut read, mut new) = (Vec::new(), 0, 0);
    for (number, line) in input.lines().enumerate() {
        let line = line.map_err(failed)?;
        if line.trim().is_empty() {
            continue;
        }
        let Imported { exchange, masked } = jsonl::read(&line).map_err(|error| {
            Failure::new(1, format!("line {} of {} is no request", number + 1, file.display()))
                .cause(error.to_string())
                .next("import takes what this writes:  hookway requests export --jsonl --secrets")
        })?;
        if masked {
            return Err(Failure::new(1, format!("line {} of {} has masked secrets", number + 1, file.display()))
                .cause("a request without its secrets is another one")
                .next("export it with them:  hookway requests export --jsonl --secrets"));
        }
        records.push(Record::of(&exchange));
        read += 1;
        if records.len() == BATCH {
            new += history.import(std::mem::take(&mut records)).await?;
        }
    }
    new += history.import(records).await?;
    match output.is_json() {
        true => output.json(&serde_json::json!({"read": read, "imported": new})),
        false => output.line(&format!("{new} imported; {} were here already", read - new)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn delete(
    history: &History,
    find: &FindArgs,
    ids: Vec<Which>,
    all: bool,
    output: Output,
) -> Result<ExitCode, Failure> {
    let filter = find.filter();
    if ids.is_empty() && filter.is_empty() && find.limit.is_none() && !all {
        return Err(Failure::new(2, "nothing says which requests to delete")
            .cause("neither an id, nor a filter, nor --all was given")
            .next("hookway requests delete ID …, or:  hookway requests delete --all"));
    }
    let chosen = match ids.is_empty() {
        true => history.read(move |reader| reader.unpinned(&filter)).await?,
        false => chosen(history, find, &ids).await?,
    };
    let newest = find.limit.filter(|_| ids.is_empty()).unwrap_or(usize::MAX);
    let deleted = history.delete(chosen.into_iter().take(newest).collect()).await?;
    match output.is_json() {
        true => output.json(&serde_json::json!({"deleted": deleted})),
        false => output.line(&format!("{deleted} deleted")),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn inspect(args: &InspectArgs, policy: Policy, output: Output) -> Result<ExitCode, Failure> {
    block_on(async {
        let mut stop = Stop::new()?;
        let history = open(Limits::NONE, output).await?;
        let count = history.look().await?.count;
        let listener = args.listen(output).await;
        let shown = Shown { replayer: replayer(Some(history.clone()), policy, Duration::from_secs(30)), tunnel: None };
        let inspector = args.start(listener, shown, output).ok_or_else(|| {
            Failure::new(1, "the inspector cannot start")
                .cause(format!("it cannot listen at {}", args.inspect))
                .next("hookway inspect --inspect 127.0.0.1:0")
        })?;
        let lines = vec![("History", format!("{count} requests in {}", history.path().display()))];
        let inspector_url = Some(inspector.url().to_owned());
        output.inspecting(&Banner {
            title: "stored history, no tunnel".into(),
            lines,
            inspector: inspector_url,
            ..Banner::default()
        });
        stop.wait().await;
        history.flush().await;
        Ok(ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("{}", "{}")]
    #[case("[ ]", "[]")]
    #[case(
        r#"{"a":12345678901234567890,"b":[1,{"c":"x, \"y\": {"}]}"#,
        "{\n  \"a\": 12345678901234567890,\n  \"b\": [\n    1,\n    {\n      \"c\": \"x, \\\"y\\\": {\"\n    }\n  ]\n}"
    )]
    fn pretty(#[case] text: &str, #[case] wanted: &str) {
        assert_eq!(pretty_json(text), wanted);
    }

    #[test]
    fn a_dump_shows_bytes_and_what_can_be_read() {
        assert_eq!(dump(b"GIF\x00\xff"), format!("  00000000  {:<48} GIF..", "47 49 46 00 ff "));
    }
}
