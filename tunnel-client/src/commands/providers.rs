//! `hookway providers`: who signs how, and what of it matters to whom gets it.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::json;

use crate::output::{Failure, Output};
use crate::samples;
use crate::signature::{Facts, Known, Tolerance};

pub(super) fn run(provider: Option<&Known>, markdown: bool, output: Output) -> Result<ExitCode, Failure> {
    if markdown {
        output.bytes(page().as_bytes()).map_err(|error| {
            Failure::new(1, "the page cannot be written")
                .cause(error.to_string())
                .next("write it elsewhere:  hookway providers --markdown > FILE")
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let all: Vec<Known> =
        provider.map_or_else(|| Known::names().filter_map(Known::named).collect(), |own| vec![own.clone()]);
    for known in &all {
        let facts = known.facts();
        match (output.is_json(), provider) {
            (true, _) => output.json(&json!({
                "provider": facts.name,
                "title": facts.title,
                "page": facts.page,
                "header": header(facts),
                "scheme": facts.scheme,
                "signed": facts.signed,
                "secret_env": facts.secret_env,
                "tolerance_s": facts.tolerance.map(|tolerance| tolerance.past.as_secs()),
                "deadline_ms": facts.deadline.map(|deadline| deadline.as_millis() as u64),
                "retries": facts.retries,
                "late": late(facts),
                "samples": samples::names(facts.name),
            })),
            (false, None) => {
                let deadline = deadline(facts);
                output.line(&format!("{:<10} {:<24} {deadline:<8} {}", facts.name, facts.title, facts.secret_env));
            }
            (false, Some(_)) => describe(facts, output),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(facts: &Facts, output: Output) {
    let samples = samples::names(facts.name).join(", ");
    let rows = [
        ("Provider", facts.title.to_owned()),
        ("Signature", header(facts)),
        ("Scheme", facts.scheme.to_owned()),
        ("Signed", facts.signed.to_owned()),
        ("Secret", format!("{}   (--verify {}=ENV for another variable)", facts.secret_env, facts.name)),
        ("Good for", tolerance(facts)),
        ("Waits", deadline(facts)),
        ("Retries", facts.retries.to_owned()),
        ("Late", late(facts).to_owned()),
        ("Samples", samples),
        ("See", facts.page.to_owned()),
    ];
    for (label, text) in rows.into_iter().filter(|(_, text)| !text.is_empty()) {
        output.text(&format!("{label:<10} {text}"));
    }
}

/// Where the signature stands.
fn header(facts: &Facts) -> String {
    match facts.name {
        "standard" => "webhook-signature, svix-signature".into(),
        "mailgun" => "in the body".into(),
        "hmac" => "as [[verify]] says".into(),
        _ => facts.header.into(),
    }
}

fn tolerance(facts: &Facts) -> String {
    match facts.tolerance {
        None => "any time".into(),
        Some(Tolerance { past, future: Some(_), .. }) => format!("{} s, both ways", past.as_secs()),
        Some(Tolerance { past, future: None, .. }) => format!("{} s", past.as_secs()),
    }
}

fn deadline(facts: &Facts) -> String {
    facts.deadline.map_or_else(|| "not said".into(), |deadline| format!("{} s", deadline.as_secs()))
}

/// What is done with a delivery that comes late.
fn late(facts: &Facts) -> &'static str {
    match (facts.tolerance, facts.developer_key) {
        (Some(_), Some(_)) => "signed afresh; v1a with a key of your own",
        (Some(_), None) if facts.name == "linear" => "signed afresh, the time in the body too",
        (Some(_), None) => "signed afresh",
        (None, Some(_)) => "as it came; an edited one is signed with a key of your own",
        (None, None) => "as it came; an edited one is signed afresh",
    }
}

/// The page of all providers.
fn page() -> String {
    let mut page = String::from(
        "# Providers\n\n\
         <!-- Made by `hookway providers --markdown`; a test holds it to the program. -->\n\n\
         Whose signatures Hookway checks and makes. `hookway providers NAME` prints one of them, `hookway send NAME --list` its\n\
         sample events. *Good for* is how long the provider's own library takes a signature for fresh; *waits* how long the provider\n\
         waits for an answer; *late* what Hookway does with a delivery that was kept and is handed over later.\n\n\
         | name | provider | signature | good for | waits | retries | late |\n|---|---|---|---|---|---|---|\n",
    );
    let all: Vec<Known> = Known::names().filter_map(Known::named).collect();
    for facts in all.iter().map(|known| known.facts()) {
        let (header, tolerance, deadline) = (header(facts), tolerance(facts), deadline(facts));
        let Facts { name, title, page: link, retries, .. } = facts;
        let late = late(facts);
        let _ = writeln!(
            page,
            "| `{name}` | [{title}]({link}) | {header} | {tolerance} | {deadline} | {retries} | {late} |"
        );
    }
    page.push_str("\n| name | scheme | what is signed | variable | samples |\n|---|---|---|---|---|\n");
    for facts in all.iter().map(|known| known.facts()) {
        let Facts { name, scheme, signed, secret_env, .. } = facts;
        let samples = samples::names(name).join(", ");
        let _ = writeln!(page, "| `{name}` | {scheme} | {signed} | `{secret_env}` | {samples} |");
    }
    page
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_what_the_program_says() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../PROVIDERS.md");
        let kept = std::fs::read_to_string(path).expect("PROVIDERS.md");
        assert_eq!(
            kept,
            super::page(),
            "make it anew:  cargo run --bin hookway -- providers --markdown > PROVIDERS.md"
        );
    }
}
