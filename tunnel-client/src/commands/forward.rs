//! `hookway TARGET`: forward until told to stop.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::block_on;
use crate::cli::ForwardArgs;
use crate::client::{Client, Options};
use crate::config::{self, Files};
use crate::exchange::Event;
use crate::forwarder::Route;
use crate::output::{Banner, Failure, Filter, Output};

pub(super) fn run(args: ForwardArgs, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let (options, relay, remember) = options(&args, files)?;
    let targets = args.target.iter().map(ToString::to_string);
    let targets: Vec<String> = targets.chain(args.route.iter().map(|(path, to)| format!("{path} → {to}"))).collect();
    let forwards = match targets.is_empty() {
        false => targets.join("   "),
        true => files
            .endpoints
            .iter()
            .map(|e| format!("{} → {}", e.name, e.target.as_deref().unwrap_or("routes")))
            .collect::<Vec<_>>()
            .join("   "),
    };
    block_on(async move {
        let mut stop = Stop::new()?;
        let connecting = Client::connect(options);
        tokio::pin!(connecting);
        let client = tokio::select! {
            client = &mut connecting => client,
            () = stop.wait() => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(Duration::from_millis(300)) => {
                output.note(&format!("Connecting to {relay} …"));
                tokio::select! {
                    client = connecting => client,
                    () = stop.wait() => return Ok(ExitCode::SUCCESS),
                }
            }
        }?;
        if remember && let Some(name) = &client.welcomed().first {
            // The name is only a convenience; forwarding goes on without.
            if let Err(error) = config::remember_name(&relay, name) {
                output.note(&format!("the name {name} cannot be remembered: {error}"));
            }
        }
        let banner = Banner {
            title: format!("connected to {relay} as {}", client.welcomed().owner),
            lines: vec![("Forwards to", forwards)],
            ..Banner::default()
        };
        output.ready(client.welcomed(), &banner);
        let until = if args.once { Some(1) } else { args.until };
        follow(client, Watch { until, fail: args.fail, filter: args.filter }, output, stop).await
    })
}

/// How long to follow a client, and what to print.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) until: Option<u64>,
    pub(super) fail: bool,
    pub(super) filter: Option<Filter>,
}

/// Prints what happens until a signal, the last delivery, or the client's end.
pub(super) async fn follow(client: Client, watch: Watch, output: Output, mut stop: Stop) -> Result<ExitCode, Failure> {
    let (mut seen, mut failed) = (0, false);
    while watch.until.is_none_or(|until| seen < until) {
        let event = tokio::select! {
            event = client.next_event() => event,
            () = stop.wait() => break,
        };
        let Some(event) = event else { break };
        if let Event::Delivered(delivered) = &event {
            seen += 1;
            failed |= !delivered.is_ok();
        }
        output.event(&event, watch.filter.as_ref());
    }
    client.stop();
    // What is finished while stopping is reported, too.
    let drain = async {
        while let Some(event) = client.next_event().await {
            output.event(&event, watch.filter.as_ref());
        }
        client.finish().await
    };
    tokio::select! {
        ended = drain => ended?,
        () = stop.wait() => return Ok(ExitCode::from(130)),
    }
    if watch.fail && failed {
        return Err(Failure::new(6, "the local app failed a delivery")
            .cause("it answered 400 or above, or not at all")
            .next("see its line above; without --fail this is no error"));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the command line and the files ask for, the relay, and whether the name given is to be remembered.
fn options(args: &ForwardArgs, files: &Files) -> Result<(Options, String, bool), Failure> {
    let mut routes = Vec::new();
    let mut names: Vec<String> = args.name.iter().map(ToString::to_string).collect();
    for endpoint in &files.endpoints {
        let (name, target, more) =
            endpoint.parsed().map_err(|error| Failure::new(7, format!("[[endpoint]] {}: {error}", endpoint.name)))?;
        let own = |prefix: String, target| Route {
            endpoint: Some(name.to_string()),
            prefix,
            target,
            strip: args.strip_prefix,
        };
        // Names on the command line choose among the file's.
        if args.name.is_empty() || args.name.contains(&name) {
            routes.extend(more.into_iter().map(|(prefix, target)| own(prefix, target)));
            routes.extend(target.map(|target| own(String::new(), target)));
            if args.name.is_empty() {
                names.push(name.to_string());
            }
        }
    }
    let for_all = |prefix: &str, target: &crate::target::Target| Route {
        endpoint: None,
        prefix: prefix.to_owned(),
        target: target.clone(),
        strip: args.strip_prefix,
    };
    routes.extend(args.route.iter().map(|(prefix, target)| for_all(prefix, target)));
    routes.extend(args.target.iter().map(|target| for_all("", target)));
    if routes.is_empty() {
        return Err(Failure::new(2, "there is nothing to forward to")
            .cause("neither a target nor a route was given")
            .next("hookway 3000      (the port your app listens on)"));
    }
    let Some(relay) = args.relay.relay.clone() else {
        return Err(Failure::new(3, "no relay is configured")
            .cause("a webhook needs a public address, and only a relay has one")
            .next(
                "one of:  hookway dev 3000   (this machine only, no account);  hookway login RELAY   (a relay you \
                 have a token for);  hookway-relay run   (a relay of your own)",
            ));
    };
    let Some(token) = args.relay.token(files)? else {
        return Err(Failure::new(4, format!("there is no token for {relay}"))
            .cause(super::account::NO_TOKEN)
            .next(format!("hookway login {relay}")));
    };
    let shown = relay.to_string();
    let remember = names.is_empty();
    if remember {
        names.extend(config::remembered_name(&shown).map(|name| name.to_string()));
    }
    let mut options = Options::from_parts(relay, token, routes).forward(|forward| {
        forward.headers.clone_from(&args.header);
        forward.host.clone_from(&args.host_header);
        forward.timeout = args.timeout;
        forward.wait_app = args.wait_app;
        forward.max_body = args.max_body;
        forward.max_connections = args.max_connections;
    });
    for name in names {
        options = options.name(&name).map_err(|error| Failure::new(2, error.to_string()))?;
    }
    if let Some(ca) = &args.relay.relay_ca {
        options = options.relay_ca(ca);
    }
    Ok((options, shown, remember))
}

/// Ctrl-C or SIGTERM.
#[derive(Debug)]
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(super) fn new() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(1, "signals cannot be watched").cause(error.to_string());
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
