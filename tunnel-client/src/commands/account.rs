//! `login`, `logout`, `whoami`, `config`: which relay, and as whom.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use super::block_on;
use crate::cli::{ForwardArgs, GlobalArgs, RelayArgs};
use crate::client::{Client, Options};
use crate::config::{self, Files};
use crate::output::{Failure, Output};
use crate::tunnel::{RelayAddress, Welcomed};

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
    let welcomed = ask_relay(relay.clone(), token.clone(), relay_ca.clone())?;
    let path = global.config.clone().map_or_else(config::user_file, Ok)?;
    // A folder changed later must not change which CA is meant.
    let ca = relay_ca.map(|ca| std::path::absolute(&ca).unwrap_or(ca));
    config::change_login(&path, |login| {
        login.relay = Some(relay.to_string());
        login.relay_ca = ca;
        login.token = Some(token);
    })?;
    if output.is_json() {
        let line = serde_json::json!({"relay": relay.to_string(), "owner": welcomed.owner, "file": path.display().to_string()});
        output.line(&line.to_string());
    } else {
        output.line(&format!("logged in to {relay} as {}", welcomed.owner));
        output.note("next:  hookway 3000");
    }
    Ok(ExitCode::SUCCESS)
}

fn ask_token(relay: &RelayAddress, output: Output) -> Result<String, Failure> {
    if let Ok(token) = std::env::var("HOOKWAY_TOKEN") {
        return Ok(token);
    }
    if std::io::stdin().is_terminal() {
        output.note(&format!("Token for {relay} (its operator makes one with `hookway-relay token create`):"));
    }
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Failure::new(4, "the token cannot be read").cause(error.to_string()))?;
    let token = line.trim();
    if token.is_empty() {
        return Err(Failure::new(4, "no token was given").next(format!("hookway login {relay} --token-file FILE")));
    }
    Ok(token.to_owned())
}

/// Connects without serving anything.
fn ask_relay(relay: RelayAddress, token: String, ca: Option<PathBuf>) -> Result<Welcomed, Failure> {
    let mut options = Options::from_parts(relay, token, vec![]);
    if let Some(ca) = ca {
        options = options.relay_ca(ca);
    }
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
    config::change_login(&path, |login| had = login.token.take().is_some())?;
    if output.is_json() {
        output.line(&serde_json::json!({"logged_out": had}).to_string());
    } else {
        output.line(if had { "logged out" } else { "there was no token to forget" });
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn whoami(args: &RelayArgs, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let Some(relay) = args.relay.clone() else {
        let cause = "neither a login, a file, HOOKWAY_RELAY nor --relay names one";
        return Err(Failure::new(3, "no relay is configured").cause(cause).next("hookway login RELAY"));
    };
    let Some(token) = args.token(files)? else {
        return Err(Failure::new(4, format!("there is no token for {relay}"))
            .cause(NO_TOKEN)
            .next(format!("hookway login {relay}")));
    };
    let welcomed = ask_relay(relay.clone(), token, args.relay_ca.clone())?;
    if output.is_json() {
        let line =
            serde_json::json!({"relay": relay.to_string(), "owner": welcomed.owner, "transport": welcomed.transport});
        output.line(&line.to_string());
    } else {
        output.line(&format!("{} at {relay}", welcomed.owner));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn config_path(global: &GlobalArgs, output: Output) -> Result<ExitCode, Failure> {
    let path = global.config.clone().map_or_else(config::user_file, Ok)?;
    output.line(&path.display().to_string());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn config_show(args: &ForwardArgs, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let shown = |value: Option<String>| value.unwrap_or_else(|| "not set".into());
    let relay = args.relay.relay.as_ref().map(ToString::to_string);
    let ca = args.relay.relay_ca.as_ref().map(|path| path.display().to_string());
    let token = args.relay.token(files)?.map(|_| "set (not shown)".to_owned());
    let target = args.target.as_ref().map(ToString::to_string);
    let endpoints: Vec<&str> = files.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
    if output.is_json() {
        let line = serde_json::json!({
            "relay": relay, "relay_ca": ca, "token": token.is_some(), "target": target, "endpoints": endpoints,
        });
        output.line(&line.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    output.line(&format!("relay     {}", shown(relay)));
    output.line(&format!("relay-ca  {}", shown(ca)));
    output.line(&format!("token     {}", shown(token)));
    output.line(&format!("target    {}", shown(target)));
    output.line(&format!(
        "endpoints {}",
        if endpoints.is_empty() { "none in hookway.toml".into() } else { endpoints.join(" ") }
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn config_check(files: &Files, output: Output) -> Result<ExitCode, Failure> {
    for endpoint in &files.endpoints {
        endpoint.parsed().map_err(|error| Failure::new(7, format!("[[endpoint]] {}: {error}", endpoint.name)))?;
    }
    output.line("the configuration is good");
    Ok(ExitCode::SUCCESS)
}
