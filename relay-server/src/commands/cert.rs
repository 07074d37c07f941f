//! `hookway-relay cert`: certificates from a CA.

use std::io::Write;
use std::process::ExitCode;

use hookway_relay::cli::CertCommand;
use hookway_relay::store::CertificateRow;
use jiff::Timestamp;
use serde_json::json;

use super::open;

pub(crate) async fn cert(command: CertCommand) -> anyhow::Result<ExitCode> {
    match command {
        CertCommand::Status { store } => {
            let rows = open(&store)?.certificates().await?;
            for row in &rows {
                if store.json { say!("{}", hookway_relay::shown_certificate(row)) } else { in_words(row) }
            }
            if rows.is_empty() && !store.json {
                say!("There are no certificates from a CA here.");
                tell!("  next:  hookway-relay run --tls acme");
            }
        }
        CertCommand::Renew { store } => {
            let count = open(&store)?.renew_certificates(Timestamp::now()).await?;
            if store.json {
                say!("{}", json!({"due": count}));
            } else {
                say!("{count} to be renewed; a running relay begins now, and says so in its log and in  cert status");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(row: &CertificateRow) {
    say!("{}", row.names.replace(' ', ", "));
    match hookway_relay::described(row) {
        Some((issuer, not_after)) => {
            say!("  Issuer     {issuer}");
            say!("  Good until {}", minute(not_after));
            say!("  Renewal    {}", minute(row.due));
        }
        None => say!("  None yet; the next try is at {}", minute(row.due)),
    }
    if !row.last_error.is_empty() {
        say!("  Failed     {} times in a row; the last:", row.failures);
        wrapped(&row.last_error).iter().for_each(|line| say!("    {line}"));
    }
}

/// Lines of at most 90 characters, broken at spaces.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= 90 {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}
