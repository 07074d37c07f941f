//! Everything the client prints: results on stdout, diagnostics on stderr. Text from outside is made harmless.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use unicode_width::UnicodeWidthChar;

use crate::cli::{Color, GlobalArgs};
use crate::exchange::{Delivered, Event, Outcome};
use crate::tunnel::Welcomed;

/// When the client stops, a reader that has paused is waited for so long.
pub(crate) const PRINTED_IN: Duration = Duration::from_secs(2);
/// A line has at most this many cells.
const WIDTH: usize = 100;

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
    /// Takes the event out of its place and prints it, waiting while the one before is being printed. Given up
    /// before that, it leaves the event there.
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
    pub(crate) fn printer(self, filter: Option<Filter>) -> Printer {
        let (events, mut next) = mpsc::channel(1);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(event) = next.blocking_recv() {
                self.event(&event, filter.as_ref());
            }
        });
        Printer { events, thread }
    }

    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// A result in JSON. A terminal may take the C1 controls, which JSON lets through, for commands.
    pub(crate) fn json(self, value: &serde_json::Value) {
        let mut text = String::new();
        for c in value.to_string().chars() {
            match c {
                '\u{7f}'..='\u{9f}' => drop(write!(text, "\\u{:04x}", u32::from(c))),
                c => text.push(c),
            }
        }
        self.line(&text);
    }

    /// A result.
    pub(crate) fn line(self, text: &str) {
        // Nobody reads any more: there is nobody to tell.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// Something to know beside the results.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet && !self.json {
            diagnose(&harmless(text, usize::MAX));
        }
    }

    pub(crate) fn fail(self, failure: &Failure) {
        let title = paint("error:", AnsiColor::Red, self.colour_errors);
        let mut text = format!("{title} {}", harmless_lines(&failure.what));
        for (label, more) in [("cause:", &failure.cause), ("next: ", &failure.next)] {
            if let Some(more) = more {
                let _ = write!(text, "\n  {label} {}", harmless(more, usize::MAX));
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
            let transport = welcomed.transport;
            let mut line =
                json!({"event": "ready", "url": url, "urls": urls, "inspector": null, "transport": transport});
            for (key, value) in &banner.more {
                line[key] = value.clone().into();
            }
            self.json(&line);
            self.event(&Event::Up(welcomed.clone()), None);
            return;
        }
        if self.quiet {
            return;
        }
        self.line(&format!("hookway {}   {}", env!("CARGO_PKG_VERSION"), harmless(&banner.title, 200)));
        self.line("");
        for (name, urls) in &welcomed.urls {
            let mut urls: Vec<String> = urls.iter().map(|url| harmless(url, 300)).collect();
            if banner.plain_first {
                urls.reverse();
            }
            let label = if welcomed.urls.len() == 1 { "Webhook URL".into() } else { harmless(name, 63) };
            let more = urls.get(1).map(|url| format!("      ({url})")).unwrap_or_default();
            let first = urls.first().map_or("", String::as_str);
            self.line(&format!("  {label:<13} {}{more}", paint(first, AnsiColor::Cyan, self.colour)));
        }
        for (label, text) in &banner.lines {
            self.line(&format!("  {label:<13} {}", harmless(text, 300)));
        }
        if !welcomed.notice.is_empty() {
            self.line(&format!("  {:<13} {}", "Notice", harmless(&welcomed.notice, 300)));
        }
        self.line(&format!("  {:<13} Ctrl-C\n", "Quit"));
    }

    /// An event after that.
    pub(crate) fn event(self, event: &Event, filter: Option<&Filter>) {
        match event {
            Event::Delivered(delivered) if filter.is_some_and(|filter| !filter.matches(delivered)) => {}
            Event::Delivered(delivered) if self.json => self.json(&delivery_json(delivered)),
            Event::Delivered(delivered) if !self.quiet => {
                let now = jiff::Zoned::now();
                self.line(&self.delivery_line(&now.strftime("%H:%M:%S%.3f").to_string(), delivered));
            }
            Event::Delivered(_) => {}
            Event::Up(welcomed) if self.json => {
                self.json(&json!({"event": "session", "state": "up", "transport": welcomed.transport}));
            }
            Event::Up(_) => self.note("connected again"),
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
            Event::Hint { text } if self.json => self.json(&json!({"event": "hint", "text": text})),
            Event::Hint { text } => self.note(text),
            Event::Missed { count, .. } if self.json => self.json(&json!({"event": "missed", "count": count})),
            Event::Missed { count, .. } => self.note(&format!("{count} events are missing here: they came too fast")),
        }
    }

    fn delivery_line(self, time: &str, delivered: &Delivered) -> String {
        let (status, colour) = match &delivered.outcome {
            Outcome::Answered(status) if status.as_u16() < 400 => (status.as_u16().to_string(), AnsiColor::Green),
            Outcome::Answered(status) => (status.as_u16().to_string(), AnsiColor::Yellow),
            Outcome::Cut(status) => (format!("{} cut", status.as_u16()), AnsiColor::Red),
            Outcome::Failed { short, .. } => (format!("ERR {short}"), AnsiColor::Red),
        };
        let id = delivered.id.to_string();
        let id = format!("{}…{}", &id[..8], &id[id.len() - 3..]);
        let (took, size) = (shown_duration(delivered.duration), shown_size(delivered.bytes));
        let mut end = format!("  {took:>8}  {size:>8}  {id}  sig none");
        if delivered.attempt > 1 {
            let _ = write!(end, "  attempt {}", delivered.attempt);
        }
        let method = harmless(&delivered.method, 7);
        let room = WIDTH - (time.len() + 2 + 7 + 2 + status.len().max(5) + end.chars().count().min(60));
        let cells = room.clamp(8, 34);
        let path = in_cells(&harmless(&delivered.path, cells - 1), cells - 1) + " ";
        let status = paint(&format!("{status:<5}"), colour, self.colour);
        format!("{time}  {method:<7} {path}{status}{end}")
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

/// As much of a text as fits, and blanks up to `cells`.
fn in_cells(text: &str, cells: usize) -> String {
    let mut used = 0;
    let mut shown = String::new();
    for c in text.chars() {
        let width = c.width().unwrap_or(0);
        if used + width > cells {
            break;
        }
        used += width;
        shown.push(c);
    }
    shown + &" ".repeat(cells - used)
}

/// The banner around the URLs.
#[derive(Debug, Default)]
pub(crate) struct Banner {
    pub(crate) title: String,
    pub(crate) plain_first: bool,
    pub(crate) lines: Vec<(&'static str, String)>,
    /// More of the ready line in JSON.
    pub(crate) more: Vec<(&'static str, String)>,
}

fn delivery_json(delivered: &Delivered) -> serde_json::Value {
    let (status, error) = match &delivered.outcome {
        Outcome::Answered(status) => (Some(status.as_u16()), None),
        Outcome::Cut(status) => (Some(status.as_u16()), Some("cut")),
        Outcome::Failed { short, .. } => (None, Some(short.as_str())),
    };
    json!({
        "event": "delivery",
        "id": delivered.id.to_string(),
        "endpoint": delivered.endpoint,
        "method": delivered.method,
        "path": delivered.path,
        "status": status,
        "error": error,
        "duration_ms": (delivered.duration.as_secs_f64() * 10_000.0).round() / 10.0,
        "bytes": delivered.bytes,
        "attempt": delivered.attempt,
        "provider": null,
        "signature": "none",
        "signature_detail": null,
        "replay_of": null,
        "resigned": false,
    })
}

fn shown_duration(duration: Duration) -> String {
    match duration.as_secs_f64() * 1000.0 {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 9_999.5 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

fn shown_size(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1000.0 => format!("{bytes} B"),
        b if b < 999_950.0 => format!("{:.1} kB", b / 1e3),
        b if b < 999_950_000.0 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}

/// Text from outside without what would steer a terminal: control characters, and those that turn the direction of
/// writing. At most `most` characters.
pub(crate) fn harmless(text: &str, most: usize) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
            || matches!(c, '\u{e0000}'..='\u{e0fff}')
    };
    let mut shown: String = text.chars().take(most).map(|c| if steers(c) { '�' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

fn harmless_lines(text: &str) -> String {
    text.lines().map(|line| harmless(line, usize::MAX)).collect::<Vec<_>>().join("\n")
}

/// Which deliveries are printed: terms that must all match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Method(String),
    /// With `*` for anything.
    Path(String),
    /// `404`, `5xx`, or `err`.
    Status(String),
    Endpoint(String),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let term = |word: &str| {
            let at = word.as_ptr() as usize - text.as_ptr() as usize + 1;
            let (key, value) = word.split_once(':').filter(|(_, value)| !value.is_empty()).ok_or_else(|| {
                format!("`{word}` at {at} is no term; a term is method:, path:, status: or endpoint: and a value")
            })?;
            match key {
                "method" => Ok(Term::Method(value.to_ascii_uppercase())),
                "path" => Ok(Term::Path(value.to_owned())),
                "status" => Ok(Term::Status(value.to_ascii_lowercase())),
                "endpoint" => Ok(Term::Endpoint(value.to_owned())),
                _ => Err(format!("`{key}` at {at} is nothing to filter by; method, path, status and endpoint are")),
            }
        };
        text.split_whitespace().map(term).collect::<Result<_, _>>().map(Self)
    }
}

impl Filter {
    fn matches(&self, delivered: &Delivered) -> bool {
        self.0.iter().all(|term| match term {
            Term::Method(method) => delivered.method == *method,
            Term::Path(pattern) => fits(pattern, &delivered.path),
            Term::Status(wanted) => match &delivered.outcome {
                Outcome::Failed { .. } => wanted == "err",
                Outcome::Answered(status) | Outcome::Cut(status) => {
                    let status = status.as_str();
                    wanted == status || wanted.strip_suffix("xx").is_some_and(|class| status.starts_with(class))
                }
            },
            Term::Endpoint(endpoint) => delivered.endpoint == *endpoint,
        })
    }
}

/// Whether a text fits a pattern in which `*` is anything.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    rest.is_empty() || last.is_some_and(|last| last.is_empty() || text.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use rstest::rstest;
    use unicode_width::UnicodeWidthStr;

    fn delivered(path: &str) -> Delivered {
        Delivered {
            id: hookway_protocol::id::DeliveryId::now(),
            endpoint: "billing".into(),
            method: "POST".into(),
            path: path.into(),
            outcome: Outcome::Answered(StatusCode::NOT_FOUND),
            duration: Duration::from_millis(12),
            bytes: 2100,
            attempt: 1,
        }
    }

    const PLAIN: Output = Output { json: false, quiet: false, colour: false, colour_errors: false };

    #[test]
    fn a_line_has_fixed_columns_and_a_bounded_width() {
        let line = PLAIN.delivery_line("14:02:07.318", &delivered("/stripe/webhook"));
        assert!(line.starts_with("14:02:07.318  POST    /stripe/webhook "), "{line}");
        assert!(line.contains(" 404       12 ms    2.1 kB  req_"), "{line}");
        let mut long = delivered(&"/x".repeat(500));
        long.outcome =
            Outcome::Failed { failure: hookway_protocol::head::Failure::Timeout, short: "timeout 30s".into() };
        assert!(PLAIN.delivery_line("14:02:07.318", &long).chars().count() <= WIDTH);
        long.path = "/注".repeat(200);
        long.method = "OPTIONS".into();
        let line = PLAIN.delivery_line("14:02:07.318", &long);
        assert!(line.width() <= WIDTH, "{} cells: {line}", line.width());
        assert!(line.starts_with("14:02:07.318  OPTIONS /注"), "{line}");
    }

    #[test]
    fn text_from_outside_steers_no_terminal() {
        let line = PLAIN.delivery_line("14:02:07.318", &delivered("/\u{1b}[31m\u{9b}\u{202e}\r\n"));
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
    }

    #[rstest]
    #[case("status:4xx", true)]
    #[case("status:404 method:post", true)]
    #[case("status:5xx", false)]
    #[case("path:/stripe*", true)]
    #[case("path:*webhook", true)]
    #[case("path:/stripe", false)]
    #[case("endpoint:other", false)]
    fn filters(#[case] filter: &str, #[case] matches: bool) {
        let filter: Filter = filter.parse().expect("a filter");
        assert_eq!(filter.matches(&delivered("/stripe/webhook")), matches);
    }

    #[test]
    fn a_wrong_filter_says_where() {
        let error = "status:200 metod:POST".parse::<Filter>().expect_err("wrong");
        assert!(error.starts_with("`metod` at 12"), "{error}");
    }
}
