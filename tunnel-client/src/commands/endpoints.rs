//! `hookway endpoints`: what the token's owner has at the relay.

use std::process::ExitCode;

use hookway_protocol::message::OwnEndpoint;
use serde_json::json;

use super::{account, block_on};
use crate::cli::RelayArgs;
use crate::client::Options;
use crate::config::Files;
use crate::harmless;
use crate::output::{Failure, Output};
use crate::tunnel;

pub(super) fn run(
    to_release: Option<&str>,
    args: &RelayArgs,
    files: &Files,
    output: Output,
) -> Result<ExitCode, Failure> {
    let options = account::relay_options(args, files)?;
    match to_release {
        None => list(&options, output),
        Some(name) => release(&options, &name.to_ascii_lowercase(), output),
    }
}

fn list(options: &Options, output: Output) -> Result<ExitCode, Failure> {
    let (all, _) = block_on(async { Ok(tunnel::endpoints(options.relay_settings(), None).await?) })?;
    if !output.is_json() && !all.is_empty() {
        output.line("ENDPOINT                  CLIENTS  WAITING  DEAD  URL");
    }
    for OwnEndpoint { endpoint, clients, domains } in &all {
        let Some(endpoint) = endpoint else { continue };
        if output.is_json() {
            output.json(&json!({
                "endpoint": endpoint.name, "url": endpoint.url, "domains": domains, "clients": clients,
                "waiting": endpoint.waiting, "dead_letters": endpoint.dead_letters,
            }));
            continue;
        }
        let (name, url) = (harmless::text(&endpoint.name, 63), harmless::text(&endpoint.url, 300));
        let (waiting, dead) = (endpoint.waiting, endpoint.dead_letters);
        output.line(&format!("{name:<24}  {clients:>7}  {waiting:>7}  {dead:>4}  {url}"));
        let port = url.rsplit_once(':').map(|(_, port)| port).filter(|port| port.parse::<u16>().is_ok());
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        for host in domains {
            output.line(&format!("{:>50}https://{}{port}", "", harmless::text(host, 253)));
        }
    }
    if all.is_empty() {
        output.note("you have no endpoint there yet; next:  hookway 3000");
    }
    Ok(ExitCode::SUCCESS)
}

fn release(options: &Options, name: &str, output: Output) -> Result<ExitCode, Failure> {
    let (_, released) = block_on(async { Ok(tunnel::endpoints(options.relay_settings(), Some(name)).await?) })?;
    if !released {
        return Err(Failure::new(
            5,
            format!("you have no endpoint or host name `{}` there", harmless::text(name, 253)),
        )
        .cause("it is free, or somebody else's")
        .next("hookway endpoints"));
    }
    if output.is_json() {
        output.json(&json!({"released": name}));
    } else {
        output.line(&format!("released {name}"));
        if !name.contains('.') {
            output.note("it is kept for you for 30 days; what waited for it is now among the dead letters");
        }
    }
    Ok(ExitCode::SUCCESS)
}
