//! `login`, `logout`, `whoami`, `config`: which relay, and as whom.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use hookway_protocol::message::Domain;
use serde_json::json;

use super::block_on;
use super::webhooks::asked_for;
use crate::cli::{ForwardArgs, GlobalArgs, RelayArgs};
use crate::client::{Client, Options};
use crate::config::{self, Files};
use crate::harmless;
use crate::output::{Failure, Output};
use crate::target::Target;
use crate::tunnel::{self, RelayAddress, Welcomed};

/// Where a token could have come from.
pub(super) const NO_TOKEN: &str = "neither HOOKWAY_TOKEN, --token-file nor a login gives one";

pub(super) fn login(
    global: &GlobalArgs,
    relay: &RelayAddress,
    relay_ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    output: Output,
) -> Result<ExitCode, Failure> {
    let token = match token_file {
        Some(path) => config::read_token(&path)?,
        None => ask_token(relay, output)?,
    };
    let options = Options::from_parts(relay.clone(), token.clone(), vec![]);
    let welcomed = welcomed(match &relay_ca {
        Some(ca) => options.relay_ca(ca),
        None => options,
    })?;
    let path = global.config.clone().map_or_else(config::user_file, Ok)?;
    config::change_user_file(&path, |file| {
        file["relay"] = toml_edit::value(relay.to_string());
        file["token"] = toml_edit::value(token);
        match relay_ca {
            // A folder changed later must not change which CA is meant.
            Some(ca) => {
                file["relay-ca"] = toml_edit::value(std::path::absolute(&ca).unwrap_or(ca).display().to_string());
            }
            None => drop(file.remove("relay-ca")),
        }
    })?;
    if output.is_json() {
        output.json(&json!({"relay": relay.to_string(), "owner": welcomed.owner, "file": path.display().to_string()}));
    } else {
        output.line(&format!("logged in to {relay} as {}", harmless::text(&welcomed.owner, 64)));
        output.note("next:  hookway 3000");
    }
    Ok(ExitCode::SUCCESS)
}

fn ask_token(relay: &RelayAddress, output: Output) -> Result<String, Failure> {
    if let Some(token) = std::env::var("HOOKWAY_TOKEN").ok().filter(|token| !token.is_empty()) {
        return Ok(config::usable_token(&token, "HOOKWAY_TOKEN")?);
    }
    let mut line = String::new();
    let read = if std::io::stdin().is_terminal() {
        output.note(&format!("Token for {relay} (its operator makes one with `hookway-relay token create`):"));
        // Not shown while it is typed.
        rpassword::read_password().map(|token| line = token)
    } else {
        std::io::stdin().lock().read_line(&mut line).map(drop)
    };
    read.map_err(|error| Failure::new(4, "the token cannot be read").cause(error.to_string()).next(from_file(relay)))?;
    let token = line.trim();
    if token.is_empty() {
        return Err(Failure::new(4, "no token was given").cause("the answer was empty").next(from_file(relay)));
    }
    Ok(config::usable_token(token, "what was typed")?)
}

fn from_file(relay: &RelayAddress) -> String {
    format!("hookway login {relay} --token-file FILE")
}

/// Connects without serving anything.
fn welcomed(options: Options) -> Result<Welcomed, Failure> {
    block_on(async {
        let client = Client::start(options).await?;
        let welcomed = client.welcomed().clone();
        client.close().await;
        Ok(welcomed)
    })
}

pub(super) fn logout(global: &GlobalArgs, output: Output) -> Result<ExitCode, Failure> {
    let path = global.config.clone().map_or_else(config::user_file, Ok)?;
    let mut had = false;
    config::change_user_file(&path, |file| had = file.remove("token").is_some())?;
    if output.is_json() {
        output.json(&json!({"logged_out": had}));
    } else {
        output.line(if had { "logged out" } else { "there was no token to forget" });
    }
    Ok(ExitCode::SUCCESS)
}

/// How the relay is reached that the command line or the files name.
pub(super) fn relay_options(args: &RelayArgs, files: &Files) -> Result<Options, Failure> {
    let Some(relay) = args.relay.clone() else {
        let cause = "neither a login, a file, HOOKWAY_RELAY nor --relay names one";
        return Err(Failure::new(3, "no relay is configured").cause(cause).next("hookway login RELAY"));
    };
    let Some(token) = args.token(files)? else {
        return Err(Failure::new(4, format!("there is no token for {relay}"))
            .cause(NO_TOKEN)
            .next(format!("hookway login {relay}")));
    };
    let options = Options::from_parts(relay, token, vec![]).transport(args.transport);
    Ok(match args.ca(files) {
        Some(ca) => options.relay_ca(ca),
        None => options,
    })
}

pub(super) fn whoami(args: &RelayArgs, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let options = relay_options(args, files)?;
    let relay = options.relay_settings().relay.clone();
    let welcomed = welcomed(options)?;
    if output.is_json() {
        let (owner, transport) = (welcomed.owner, welcomed.transport.name());
        output.json(&json!({"relay": relay.to_string(), "owner": owner, "transport": transport}));
    } else {
        output.line(&format!("{} at {relay}", harmless::text(&welcomed.owner, 64)));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn config_path(global: &GlobalArgs, output: Output) -> Result<ExitCode, Failure> {
    let path = global.config.clone().map_or_else(config::user_file, Ok)?.display().to_string();
    if output.is_json() {
        output.json(&json!({"path": path}));
    } else {
        output.line(&path);
    }
    Ok(ExitCode::SUCCESS)
}

/// What forwarding would use. Of secrets it is only said that they are set.
pub(super) fn config_show(args: &ForwardArgs, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let route = |(path, target): &(String, Target)| format!("{path}={target}");
    let endpoints = files.endpoints.iter().map(|endpoint| {
        let to = endpoint.routes.iter().map(route).chain(endpoint.target.iter().map(ToString::to_string));
        let to = to.chain(endpoint.domains.iter().map(|domain| domain.host.clone()));
        format!("{} ({})", endpoint.name, to.collect::<Vec<_>>().join(" "))
    });
    let settings: Vec<(&str, Option<String>)> = vec![
        ("relay", args.relay.relay.as_ref().map(ToString::to_string)),
        ("relay-ca", args.relay.ca(files).map(|path| path.display().to_string())),
        ("token", args.relay.token(files)?.map(|_| "set (not shown)".to_owned())),
        ("target", args.target.as_ref().map(ToString::to_string)),
        ("name", some(args.name.iter().map(ToString::to_string))),
        ("domain", some(args.domain.iter().map(domain))),
        ("route", some(args.route.iter().map(route))),
        ("strip-prefix", Some(args.strip_prefix.to_string())),
        ("header", some(args.header.iter().map(|(name, _)| format!("{name}: (not shown)")))),
        ("host-header", Some(args.host_header.to_string())),
        ("wait-app", Some(format!("{:?}", args.wait_app))),
        ("timeout", Some(format!("{:?}", args.timeout))),
        ("max-body", Some(format!("{} B", args.max_body))),
        ("max-connections", Some(args.max_connections.to_string())),
        (
            "verify",
            some(
                args.verify
                    .verify
                    .iter()
                    .map(|_| "set (not shown)".to_owned())
                    .chain(files.verify.iter().map(ToString::to_string)),
            ),
        ),
        ("require-signature", Some(args.policy.require_signature.to_string())),
        ("dedupe", Some(args.policy.dedupe.to_string())),
        ("breakpoint", Some(args.policy.breakpoint.to_string())),
        ("endpoint", some(endpoints)),
    ];
    if output.is_json() {
        let settings = settings.into_iter().map(|(key, value)| (key.to_owned(), value.into()));
        output.json(&serde_json::Value::Object(settings.collect()));
        return Ok(ExitCode::SUCCESS);
    }
    for (key, value) in settings {
        output.line(&format!("{key:<16} {}", value.unwrap_or_else(|| "not set".into())));
    }
    Ok(ExitCode::SUCCESS)
}

/// As it is written.
fn domain(Domain { host, endpoint }: &Domain) -> String {
    if endpoint.is_empty() { host.clone() } else { format!("{host}={endpoint}") }
}

fn some(values: impl Iterator<Item = String>) -> Option<String> {
    Some(values.collect::<Vec<_>>().join(", ")).filter(|all| !all.is_empty())
}

/// The files were read already; what they name must be there, too.
pub(super) fn config_check(args: &ForwardArgs, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    args.relay.token(files)?;
    for verify in asked_for(&args.verify)?.iter().chain(&files.verify) {
        verify.rule()?;
    }
    if let Some(ca) = args.relay.ca(files) {
        tunnel::roots(&ca)?;
    }
    if output.is_json() {
        output.json(&json!({"good": true}));
    } else {
        output.line("the configuration is good");
    }
    Ok(ExitCode::SUCCESS)
}
