//! A delivery as it is printed: a line in columns, or an object.

use std::time::Duration;

use anstyle::AnsiColor;
use hookway_protocol::id::DeliveryId;
use serde_json::json;
use unicode_width::UnicodeWidthChar;

use super::paint;
use crate::exchange::{Delivered, Outcome, Verdict};
use crate::harmless;
use crate::mask;
use crate::view;

/// A line has at most this many cells.
const WIDTH: usize = 100;

/// A delivery as a line, in columns; with colours if that is wanted.
pub(super) fn line(time: &str, delivered: &Delivered, colours: bool) -> String {
    let (status, colour) = match &delivered.outcome {
        Outcome::Answered(status) if status.as_u16() < 400 => (status.as_u16().to_string(), AnsiColor::Green),
        Outcome::Answered(status) => (status.as_u16().to_string(), AnsiColor::Yellow),
        Outcome::Cut(status) => (format!("{} cut", status.as_u16()), AnsiColor::Red),
        Outcome::Failed { short, .. } if delivered.attempt == 0 => (harmless::text(short, 16), AnsiColor::Yellow),
        Outcome::Failed { short, .. } => (format!("ERR {}", harmless::text(short, 16)), AnsiColor::Red),
    };
    let (took, size) = (shown_duration(delivered.duration), shown_size(delivered.bytes));
    let mut end = format!("  {took:>8}  {size:>8}  {}", short_id(delivered.id));
    let method = harmless::text(&delivered.method, 7);
    let fixed = time.len() + 2 + 7 + 1 + status.len().max(5);
    // The path keeps a little room; what does not fit beside it is in the history.
    let most = WIDTH.saturating_sub(fixed + 7);
    for tag in tags(delivered) {
        if end.chars().count() + 2 + tag.chars().count() <= most {
            end.push_str("  ");
            end.push_str(&tag);
        }
    }
    let room = WIDTH.saturating_sub(fixed + end.chars().count());
    let cells = room.clamp(7, 34);
    let path = in_cells(&harmless::text(&delivered.path, cells - 1), cells - 1) + " ";
    let status = paint(&format!("{status:<5}"), colour, colours);
    format!("{time}  {method:<7} {path}{status}{end}")
}

/// The same for scripts.
pub(super) fn json(delivered: &Delivered) -> serde_json::Value {
    let webhook = &delivered.webhook;
    let (status, error) = delivered.outcome.status_and_error();
    json!({
        "event": "delivery",
        "id": delivered.id.to_string(),
        "endpoint": delivered.endpoint,
        "method": delivered.method,
        "path": mask::target(&delivered.path),
        "status": status,
        "error": error,
        "duration_ms": (delivered.duration.as_secs_f64() * 10_000.0).round() / 10.0,
        "bytes": delivered.bytes,
        "attempt": delivered.attempt,
        "provider": webhook.provider,
        "event_type": webhook.event,
        "event_id": webhook.event_id,
        "signature": webhook.signature.as_str(),
        "signature_detail": webhook.detail,
        "replay_of": delivered.replay_of.map(|id| id.to_string()),
        "resigned": webhook.resigned,
        "duplicate_of": webhook.duplicate_of.map(|id| id.to_string()),
        "deadline_ms": webhook.deadline.map(view::millis),
        "acked_ms": webhook.acked.map(view::millis),
        "queued_ms": delivered.queued.map(view::millis),
    })
}

fn shown_duration(duration: Duration) -> String {
    match duration.as_secs_f64() * 1000.0 {
        0.0 => "–".into(),
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 9_999.5 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// A wait as people say it: `40 s`, `4 min`, `3 h`.
fn shown_wait(wait: Duration) -> String {
    match wait.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6000 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
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

/// What there is to say of a delivery beside its columns, the most telling first.
fn tags(delivered: &Delivered) -> Vec<String> {
    let webhook = &delivered.webhook;
    let mut tags = Vec::new();
    match delivered.replay_of {
        Some(original) if webhook.resigned => tags.push(format!("replay of {}", shortest_id(original))),
        Some(original) => tags.push(format!("replay of {}", short_id(original))),
        None => tags.push(format!("sig {}", webhook.signature.as_str())),
    }
    if let Some(deadline) = webhook.deadline {
        let limit = format!("{} s", deadline.as_secs_f64());
        if webhook.acked.is_some() {
            tags.push(format!("202 sent before {limit}"));
        } else if delivered.duration > deadline {
            tags.push(format!("of {limit}: would time out"));
        } else if delivered.duration > deadline / 2 {
            tags.push(format!("of {limit}"));
        }
    }
    if delivered.replay_of.is_some() && webhook.signature != Verdict::None && !webhook.resigned {
        tags.push(format!("sig {}", webhook.signature.as_str()));
    }
    if webhook.resigned {
        tags.push("re-signed".into());
    }
    if let Some(original) = webhook.duplicate_of {
        tags.push(format!("duplicate of {}", shortest_id(original)));
    }
    if let Some(queued) = delivered.queued {
        let is_short = queued < Duration::from_secs(1);
        tags.push(if is_short { "queued".to_owned() } else { format!("queued {}", shown_wait(queued)) });
    }
    if delivered.attempt > 1 && delivered.replay_of.is_none() {
        tags.push(format!("attempt {}", delivered.attempt));
    }
    tags
}

/// An id as a line has room for; commands take it so.
pub(super) fn short_id(id: DeliveryId) -> String {
    let id = id.to_string();
    format!("{}…{}", &id[..8], &id[id.len() - 3..])
}

/// The same where there is less room.
fn shortest_id(id: DeliveryId) -> String {
    let id = id.to_string();
    format!("req_…{}", &id[id.len() - 4..])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Webhook;
    use http::StatusCode;
    use unicode_width::UnicodeWidthStr;

    fn delivered(path: &str) -> Delivered {
        Delivered {
            id: hookway_protocol::id::DeliveryId::now(),
            endpoint: "billing".into(),
            method: "POST".into(),
            path: path.into(),
            outcome: Outcome::Answered(StatusCode::NOT_FOUND),
            webhook: Webhook::default(),
            replay_of: None,
            duration: Duration::from_millis(12),
            bytes: 2100,
            attempt: 1,
            queued: None,
            is_wanted: true,
            is_own: false,
        }
    }

    fn plain(delivered: &Delivered) -> String {
        line("14:02:07.318", delivered, false)
    }

    #[test]
    fn a_line_has_fixed_columns_and_a_bounded_width() {
        let line = plain(&delivered("/stripe/webhook"));
        assert!(line.starts_with("14:02:07.318  POST    /stripe/webhook "), "{line}");
        assert!(line.contains(" 404       12 ms    2.1 kB  req_"), "{line}");
        let mut long = delivered(&"/x".repeat(500));
        long.outcome =
            Outcome::Failed { failure: hookway_protocol::head::Failure::Timeout, short: "timeout 30s".into() };
        assert!(plain(&long).chars().count() <= WIDTH);
        long.path = "/注".repeat(200);
        long.method = "OPTIONS".into();
        let line = plain(&long);
        assert!(line.width() <= WIDTH, "{} cells: {line}", line.width());
        assert!(line.starts_with("14:02:07.318  OPTIONS /注"), "{line}");
    }

    #[test]
    fn text_from_outside_steers_no_terminal() {
        let line = plain(&delivered("/\u{1b}[31m\u{9b}\u{202e}\r\n"));
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
    }
}
