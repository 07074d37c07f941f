//! Everything the client prints: results on stdout, diagnostics on stderr. Text from outside is made harmless.

mod delivery;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use hookway_protocol::finding::{Finding, State};
use hookway_protocol::link::Transport;
use hookway_protocol::message::{DomainState, Record, Stage};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cli::{Color, GlobalArgs};
use crate::events::Event;
use crate::exchange::{Delivered, Exchange, Verdict};
use crate::harmless;
use crate::mask::{self, Secrets};
use crate::tunnel::{Backlog, Welcomed};
use crate::view;

/// When the client stops, a reader that has paused is waited for so long.
pub(crate) const PRINTED_IN: Duration = Duration::from_secs(2);
/// Events that wait to be printed: under load the thread that prints is not woken for each.
const PRINTED_NEXT: usize = 64;
/// An error for a person: what happened, the cause, the next step.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) what: String,
    pub(crate) cause: Option<String>,
    pub(crate) next: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: u8, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), cause: None, next: None }
    }

    pub(crate) fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    /// On stdout, and on stderr.
    colour: bool,
    colour_errors: bool,
}

/// Prints events on a thread of its own: whoever reads them may pause, the tunnel may not.
#[derive(Debug)]
pub(crate) struct Printer {
    events: mpsc::Sender<Event>,
    thread: JoinHandle<()>,
}

impl Printer {
    /// Takes the event out of its place and prints it, waiting while those before are being printed. Given up before
    /// that, it leaves the event there.
    pub(crate) async fn print(&self, event: &mut Option<Event>) {
        let Ok(free) = self.events.reserve().await else { return };
        if let Some(event) = event.take() {
            free.send(event);
        }
    }

    /// Waits until all is printed; not for ever, when nobody reads.
    pub(crate) async fn finish(self) {
        drop(self.events);
        let _ = tokio::time::timeout(PRINTED_IN, self.thread).await;
    }
}

impl Output {
    pub(crate) fn new(args: &GlobalArgs) -> Self {
        let colour = |is_terminal: bool| match args.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let wanted = std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
                let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                !unwanted && (wanted || is_terminal)
            }
        };
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Self { json: args.json, quiet: args.quiet, colour: colour(out), colour_errors: colour(err) }
    }

    /// Prints the events that match.
    pub(crate) fn printer(self) -> Printer {
        let (events, mut next) = mpsc::channel(PRINTED_NEXT);
        let thread = tokio::task::spawn_blocking(move || {
            let mut told = None;
            while let Some(event) = next.blocking_recv() {
                self.event(&event);
                if let Event::Delivered(delivered) = event {
                    self.why_bad(*delivered, &mut told);
                }
            }
        });
        Printer { events, thread }
    }

    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// A result in JSON. What JSON lets through and a terminal may take for a command is escaped.
    pub(crate) fn json(self, value: &serde_json::Value) {
        let mut line = Vec::new();
        // A value in memory always can be.
        let _ = harmless::json(&mut line, value);
        line.push(b'\n');
        let _ = self.bytes(&line);
    }

    /// A result.
    pub(crate) fn line(self, text: &str) {
        // Nobody reads any more: there is nobody to tell.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// A result of several lines, from outside in part.
    pub(crate) fn text(self, text: &str) {
        self.line(&harmless::lines(&text.replace('\t', "    ")));
    }

    /// A result as it is.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn bytes(self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// What is said when the inspector runs without a tunnel.
    pub(crate) fn inspecting(self, banner: &Banner) {
        if self.json {
            return self.json(&json!({"event": "ready", "url": null, "inspector": banner.inspector}));
        }
        if !self.quiet {
            self.title(banner);
            self.lines(banner);
            self.line(&format!("  {:<13} Ctrl-C\n", "Quit"));
        }
    }

    /// What a check found.
    pub(crate) fn finding(self, finding: &Finding) {
        let Finding { check, state, detail, next } = finding;
        if self.json {
            let (state, event) = (state.name(), "check");
            return self.json(&json!({"event": event, "check": check, "state": state, "detail": detail, "next": next}));
        }
        if self.quiet && *state == State::Ok {
            return;
        }
        let text = finding.to_string();
        let (word, rest) = text.split_at(state.name().len());
        let colour = match state {
            State::Ok => AnsiColor::Green,
            State::Warn => AnsiColor::Yellow,
            State::Fail => AnsiColor::Red,
        };
        self.line(&format!("{}{rest}", paint(word, colour, self.colour)));
    }

    /// Something that has gone wrong, though there are results.
    pub(crate) fn warn(self, text: &str) {
        let title = paint("warning:", AnsiColor::Yellow, self.colour_errors);
        diagnose(&format!("{title} {}", harmless::text(text, usize::MAX)));
    }

    /// Something to know beside the results.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet && !self.json {
            diagnose(&harmless::text(text, usize::MAX));
        }
    }

    pub(crate) fn fail(self, failure: &Failure) {
        let title = paint("error:", AnsiColor::Red, self.colour_errors);
        let mut text = format!("{title} {}", harmless::lines(&failure.what));
        for (label, more) in [("cause:", &failure.cause), ("next: ", &failure.next)] {
            if let Some(more) = more {
                let _ = write!(text, "\n  {label} {}", harmless::text(more, usize::MAX));
            }
        }
        diagnose(&text);
    }

    /// What is said when the client is ready.
    pub(crate) fn ready(self, welcomed: &Welcomed, banner: &Banner) {
        if self.json {
            let url = welcomed.first.as_ref().and_then(|name| welcomed.urls.get(name)?.first());
            let urls: serde_json::Map<_, _> =
                welcomed.urls.iter().map(|(name, urls)| (name.clone(), urls.first().cloned().into())).collect();
            let transport = welcomed.transport.name();
            let mut line = json!({"event": "ready", "url": url, "urls": urls, "inspector": banner.inspector, "transport": transport});
            for (key, value) in &banner.more {
                line[key] = value.clone().into();
            }
            self.json(&line);
            self.event(&Event::Up(welcomed.clone()));
            return;
        }
        if self.quiet {
            return;
        }
        self.title(banner);
        for (name, urls) in &welcomed.urls {
            let mut urls: Vec<String> = urls.iter().map(|url| harmless::text(url, 300)).collect();
            if banner.plain_first {
                urls.reverse();
            }
            let label = if welcomed.urls.len() == 1 { "Webhook URL".into() } else { harmless::text(name, 63) };
            let more = urls.get(1).map(|url| format!("      ({url})")).unwrap_or_default();
            let first = urls.first().map_or("", String::as_str);
            self.line(&format!("  {label:<13} {}{more}", paint(first, AnsiColor::Cyan, self.colour)));
        }
        self.lines(banner);
        if !welcomed.notice.is_empty() {
            self.line(&format!("  {:<13} {}", "Notice", harmless::text(&welcomed.notice, 300)));
        }
        self.line(&format!("  {:<13} Ctrl-C\n", "Quit"));
        self.backlogs(welcomed);
    }

    /// What waited while nobody was connected.
    fn backlogs(self, welcomed: &Welcomed) {
        for Backlog { endpoint, waiting, dead_letters } in &welcomed.backlogs {
            if self.json {
                self.json(&json!({
                    "event": "backlog", "endpoint": endpoint, "waiting": waiting, "dead_letters": dead_letters,
                }));
                continue;
            }
            let endpoint = harmless::text(endpoint, 63);
            match waiting {
                0 => {}
                1 => self.note(&format!("{endpoint}: 1 delivery has waited and comes now")),
                many => self.note(&format!("{endpoint}: {many} deliveries have waited and come now")),
            }
            self.dead_letters(&endpoint, *dead_letters);
        }
    }

    fn dead_letters(self, endpoint: &str, count: u64) {
        let endpoint = harmless::text(endpoint, 63);
        let next = "to see them and try them again: the inspector, or  hookway-relay queue retry --endpoint";
        match count {
            0 => {}
            1 => self.note(&format!("{endpoint}: 1 dead letter; {next} {endpoint}")),
            many => self.note(&format!("{endpoint}: {many} dead letters; {next} {endpoint}")),
        }
    }

    /// What never came.
    fn lost(self, endpoint: &str, count: u64, since: Option<jiff::Timestamp>, why: &str) {
        let endpoint = harmless::text(endpoint, 63);
        let since =
            since.map(|at| at.to_zoned(jiff::tz::TimeZone::system()).strftime(" since %m-%d %H:%M").to_string());
        let (since, why) = (since.unwrap_or_default(), harmless::text(why, 200));
        let what = match count {
            1 => "1 delivery never came".to_owned(),
            many => format!("{many} deliveries never came"),
        };
        self.warn(&format!("{endpoint}: {what}{since}, and could not be kept for this client ({why})"));
    }

    /// How a host name of the developer's own is doing, and what is to be set in its DNS.
    fn domain(self, state: &DomainState) {
        let DomainState { host, endpoint, detail, records, url, .. } = state;
        let stage = match state.state() {
            Stage::Waiting => "waiting",
            Stage::Ready => "ready",
            Stage::Refused => "refused",
        };
        if self.json {
            let records = records.iter().map(|it| json!({"name": it.name, "type": it.kind, "value": it.value}));
            self.json(&json!({
                "event": "domain", "domain": host, "endpoint": endpoint, "state": stage, "url": url, "detail": detail,
                "records": records.collect::<Vec<_>>(),
            }));
            return;
        }
        let (host, detail) = (harmless::text(host, 253), harmless::text(detail, 400));
        match state.state() {
            Stage::Refused => self.warn(&format!("{host} cannot lead here: {detail}")),
            Stage::Waiting => self.note(&format!("{host} waits: {detail}")),
            Stage::Ready if detail.is_empty() => self.note(&format!("{url} leads to {endpoint}, too")),
            Stage::Ready => self.note(&format!("{url} leads to {endpoint}, too; {detail}")),
        }
        for Record { name, kind, value } in records {
            let value = if kind == "TXT" { format!("\"{value}\"") } else { format!("{value}.") };
            self.note(&format!("    {name}.   {kind}   {value}"));
        }
    }

    fn title(self, banner: &Banner) {
        self.line(&format!("hookway {}   {}", env!("CARGO_PKG_VERSION"), harmless::text(&banner.title, 200)));
        self.line("");
    }

    fn lines(self, banner: &Banner) {
        let inspector = banner.inspector.as_ref().map(|inspector| ("Inspector", inspector.clone()));
        for (label, text) in banner.lines.iter().cloned().chain(inspector) {
            self.line(&format!("  {label:<13} {}", harmless::text(&text, 300)));
        }
    }

    /// An event after that.
    pub(crate) fn event(self, event: &Event) {
        match event {
            Event::Delivered(delivered) if !delivered.is_wanted => {}
            Event::Delivered(delivered) if self.json => self.json(&delivery::json(delivered)),
            Event::Delivered(delivered) if !self.quiet => {
                let now = jiff::Zoned::now().strftime("%H:%M:%S%.3f").to_string();
                let path = mask::target(&delivered.path).into_owned();
                self.line(&delivery::line(&now, &Delivered { path, ..Delivered::clone(delivered) }, self.colour));
            }
            Event::Delivered(_) => {}
            Event::Up(welcomed) if self.json => {
                self.json(&json!({"event": "session", "state": "up", "transport": welcomed.transport.name()}));
                self.backlogs(welcomed);
            }
            Event::Up(welcomed) => {
                self.note(match welcomed.transport {
                    Transport::Quic => "connected again",
                    Transport::H2 => "connected again, over TCP",
                });
                self.backlogs(welcomed);
            }
            Event::Down { reason } if self.json => {
                self.json(&json!({"event": "session", "state": "down", "reason": reason}));
            }
            Event::Down { reason } => self.note(&format!("not connected ({reason}); connecting again …")),
            Event::Released { endpoint, reason } if self.json => {
                self.json(&json!({"event": "released", "endpoint": endpoint, "reason": reason}));
            }
            Event::Released { endpoint, reason } => self.note(&format!("{endpoint} is served no longer: {reason}")),
            Event::App { up, target } if self.json => {
                let state = if *up { "up" } else { "down" };
                self.json(&json!({"event": "app", "state": state, "target": target}));
            }
            Event::App { up: true, target } => self.note(&format!("{target} answers")),
            Event::App { up: false, target } => self.note(&format!("waiting for {target}")),
            Event::DeadLetters { endpoint, count } if self.json => {
                self.json(&json!({"event": "dead_letters", "endpoint": endpoint, "count": count}));
            }
            Event::DeadLetters { endpoint, count } => self.dead_letters(endpoint, *count),
            Event::Lost { endpoint, count, since, why } if self.json => {
                self.json(&json!({"event": "lost", "endpoint": endpoint, "count": count, "since": since, "why": why}));
            }
            Event::Lost { endpoint, count, since, why } => self.lost(endpoint, *count, *since, why),
            Event::Domain(state) => self.domain(state),
            Event::Hint { text } if self.json => self.json(&json!({"event": "hint", "text": text})),
            Event::Hint { text } => self.note(text),
            Event::Missed { count, .. } if self.json => self.json(&json!({"event": "missed", "count": count})),
            Event::Missed { count, .. } => self.note(&format!("{count} events are missing here: they came too fast")),
        }
    }

    /// Why a signature is not good; not for each delivery of many that have the same fault.
    fn why_bad(self, delivered: Delivered, told: &mut Option<String>) {
        let Delivered { id, webhook, is_wanted, .. } = delivered;
        if self.json || !is_wanted || webhook.signature != Verdict::Bad || webhook.detail == *told {
            return;
        }
        if let Some(detail) = &webhook.detail {
            self.warn(&format!("{}: {detail}", delivery::short_id(id)));
        }
        *told = webhook.detail;
    }

    /// An exchange of the history, at the time when it came.
    pub(crate) fn exchange(self, exchange: &Exchange, secrets: Secrets) {
        if self.json {
            let mut line = view::summary(exchange, secrets);
            line["event"] = "delivery".into();
            return self.json(&line);
        }
        let at = exchange.received_at.to_zoned(jiff::tz::TimeZone::system());
        let format = if at.date() == jiff::Zoned::now().date() { "%H:%M:%S%.3f" } else { "%m-%d %H:%M:%S" };
        let mut delivered = exchange.delivered();
        delivered.path = view::shown(&delivered.path, secrets).into_owned();
        self.line(&delivery::line(&at.strftime(format).to_string(), &delivered, self.colour));
    }
}

fn paint(text: &str, colour: AnsiColor, wanted: bool) -> String {
    if !wanted {
        return text.to_owned();
    }
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{text}{style:#}")
}

/// Writes to stderr. Nobody reads any more: there is nobody to tell.
fn diagnose(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The banner around the URLs.
#[derive(Debug, Default)]
pub(crate) struct Banner {
    pub(crate) title: String,
    pub(crate) plain_first: bool,
    /// Where the inspector is.
    pub(crate) inspector: Option<String>,
    pub(crate) lines: Vec<(&'static str, String)>,
    /// More of the ready line in JSON.
    pub(crate) more: Vec<(&'static str, String)>,
}
