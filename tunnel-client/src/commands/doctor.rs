//! `hookway doctor`: is everything in place, from the local app to the relay?

use std::process::ExitCode;

use hookway_protocol::finding::{Finding, State};
use serde_json::json;

use super::block_on;
use crate::cli::RelayArgs;
use crate::client::Options;
use crate::config::Files;
use crate::forwarder;
use crate::output::{Failure, Output};
use crate::target::Target;
use crate::tunnel::{self, Reached};

pub(super) fn run(
    target: Option<&Target>,
    args: &RelayArgs,
    files: &Files,
    output: Output,
) -> Result<ExitCode, Failure> {
    let mut worst = State::Ok;
    let mut tell = |finding: Finding| {
        worst = worst.max(finding.state);
        output.finding(&finding);
    };
    let of_files = files
        .endpoints
        .iter()
        .flat_map(|endpoint| endpoint.target.iter().chain(endpoint.routes.iter().map(|(_, target)| target)));
    let mut targets: Vec<&Target> = Vec::new();
    for target in target.into_iter().chain(of_files) {
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    let reached = block_on(async {
        for target in targets {
            tell(app(target).await);
        }
        let Some(relay) = args.relay.clone() else {
            let next = "hookway login RELAY;  or, without one:  hookway dev 3000";
            tell(Finding::fail(
                "relay",
                "none is configured: no login, file, HOOKWAY_RELAY or --relay names one",
                next,
            ));
            return Ok(Reached::No);
        };
        let token = args.token(files)?;
        if token.is_none() {
            tell(Finding::fail("token", super::account::NO_TOKEN, format!("hookway login {relay}")));
        }
        let mut options = Options::from_parts(relay, token.unwrap_or_default(), vec![]).transport(args.transport);
        if let Some(ca) = args.ca(files) {
            options = options.relay_ca(ca);
        }
        Ok::<_, Failure>(tunnel::probe(options.relay_settings(), tell).await)
    })?;
    if output.is_json() {
        output.json(&json!({"event": "doctor", "state": worst.name()}));
    }
    Ok(match (reached, worst) {
        (Reached::No, _) => ExitCode::from(3),
        (Reached::Refused, _) => ExitCode::from(4),
        (Reached::Yes, State::Fail) => ExitCode::FAILURE,
        (Reached::Yes, _) => ExitCode::SUCCESS,
    })
}

/// Whether the app is there.
async fn app(target: &Target) -> Finding {
    match forwarder::reach(target).await {
        Ok(()) => Finding::ok("app", format!("{target} listens")),
        Err(error) => {
            let next = "start your app, or give the address where it listens:  hookway doctor 8080";
            Finding::warn("app", format!("nothing answers on {target}: {error}"), next)
        }
    }
}
