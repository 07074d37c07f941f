//! `hookway TARGET`: forward until told to stop.

use std::cell::Cell;
use std::process::ExitCode;
use std::time::Duration;

use hookway_protocol::host::EndpointName;
use hookway_protocol::link::Transport;
use hookway_protocol::message::{Code, Domain, Rule, Share};
use hookway_protocol::seal::OpeningKey;

use super::block_on;
use crate::cli::{ForwardArgs, ShareArgs};
use crate::client::{Client, Options};
use crate::config::{self, Files, ProjectEndpoint};
use crate::events::Event;
use crate::forwarder::Route;
use crate::inspector::{Shown, Tunnel};
use crate::output::{Banner, Failure, Output, PRINTED_IN};
use crate::queueing::{self, Queueing};
use crate::target::Target;
use crate::tunnel::ConnectError;
use crate::webhook::Policy;

pub(super) fn run(args: ForwardArgs, files: &Files, output: Output) -> Result<ExitCode, Failure> {
    let policy = super::webhooks::policy(&args.verify, args.policy, files)?;
    super::webhooks::keeps_what_it_acks(&policy, &args.history)?;
    let Asked { options, relay, named } = asked(&args, files, &policy)?;
    let route = |(path, to): &(String, Target)| format!("{path} → {to}");
    let of_endpoint = |endpoint: &ProjectEndpoint| {
        let all = endpoint.routes.iter().map(route).chain(endpoint.target.iter().map(ToString::to_string));
        format!("{} → {}", endpoint.name, all.collect::<Vec<_>>().join(", "))
    };
    let forwards: Vec<String> =
        args.target.iter().map(ToString::to_string).chain(args.route.iter().map(route)).collect();
    let forwards = if forwards.is_empty() { files.endpoints.iter().map(of_endpoint).collect() } else { forwards };
    block_on(async move {
        let mut stop = Stop::new()?;
        let options = options.history(args.history.start(output));
        let listener = args.inspect.listen(output).await;
        let remembered = (!named).then(|| config::remembered_name(&relay)).flatten();
        let first = match &remembered {
            Some(name) => options.clone().name(name.as_str()).map_err(|error| Failure::new(2, error.to_string()))?,
            None => options.clone(),
        };
        let client = match (connect(first, &relay, output, &mut stop).await, &remembered) {
            (Err(ConnectError::Refused { code: Code::Taken | Code::Name, reason, .. }), Some(name)) => {
                // Nobody asked for that name; it was only kept from an earlier start.
                output.note(&format!("{name}, the name this project had here before, cannot be had now: {reason}"));
                connect(options, &relay, output, &mut stop).await
            }
            (connected, _) => connected,
        };
        let Some(client) = client? else { return Ok(ExitCode::SUCCESS) };
        if !named && let Some(name) = &client.welcomed().first {
            // The name is only a convenience; forwarding goes on without.
            if let Err(error) = config::remember_name(&relay, name) {
                output.note(&format!("the name {name} cannot be remembered: {error}"));
            }
        }
        let tunnel = Tunnel {
            relay: relay.clone(),
            forwarder: client.forwarder().clone(),
            letters: client.letters().clone(),
            plain_first: false,
        };
        let shown = Shown { replayer: client.replayer(), tunnel: Some(tunnel) };
        let inspector = args.inspect.start(listener, shown, output);
        let banner = Banner {
            title: format!("connected to {relay}{} as {}", over(client.welcomed().transport), client.welcomed().owner),
            lines: vec![("Forwards to", forwards.join("   "))],
            inspector: inspector.as_ref().map(|inspector| inspector.url().to_owned()),
            ..Banner::default()
        };
        output.ready(client.welcomed(), &banner);
        let until = if args.once { Some(1) } else { args.until };
        follow(client, Watch { until, fail: args.fail }, output, stop).await
    })
}

/// What is worth saying of what carries the link.
const fn over(transport: Transport) -> &'static str {
    match transport {
        Transport::Quic => "",
        Transport::H2 => " over TCP",
    }
}

/// With `--breakpoint` the app may take so long.
pub(super) const STEPPING: Duration = Duration::from_secs(3600);

/// Connects, saying so when it takes a while. `None` when it was told to stop.
pub(super) async fn connect(
    options: Options,
    relay: &str,
    output: Output,
    stop: &mut Stop,
) -> Result<Option<Client>, ConnectError> {
    let connecting = Client::connect(options);
    tokio::pin!(connecting);
    tokio::select! {
        client = &mut connecting => return client.map(Some),
        () = stop.wait() => return Ok(None),
        () = tokio::time::sleep(Duration::from_millis(300)) => output.note(&format!("Connecting to {relay} …")),
    }
    tokio::select! {
        client = connecting => client.map(Some),
        () = stop.wait() => Ok(None),
    }
}

/// How long to follow a client, and what to print.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) until: Option<u64>,
    pub(super) fail: bool,
}

/// Prints what happens until a signal, the last delivery, or the client's end.
pub(super) async fn follow(client: Client, watch: Watch, output: Output, mut stop: Stop) -> Result<ExitCode, Failure> {
    let printer = output.printer();
    let (seen, failed) = (Cell::new(0), Cell::new(false));
    let count = |event: &Event| {
        let (more, bad) = match event {
            // A replay is nobody's delivery, and what the client answers by itself is not the app's.
            Event::Delivered(delivered) if delivered.replay_of.is_none() && !delivered.is_own => {
                (1, !delivered.is_ok())
            }
            Event::Missed { count, failed } => (*count, *failed > 0),
            _ => (0, false),
        };
        seen.set(seen.get() + more);
        failed.set(failed.get() || bad);
    };
    let mut event;
    loop {
        event = tokio::select! {
            event = client.next_event() => event,
            () = stop.wait() => None,
        };
        let Some(happened) = &event else { break };
        count(happened);
        tokio::select! {
            () = printer.print(&mut event) => {}
            () = stop.wait() => break,
        }
        if watch.until.is_some_and(|until| seen.get() >= until) {
            break;
        }
    }
    client.stop();
    // What is finished while stopping is reported, too.
    let drain = async {
        let mut reads = true;
        loop {
            if reads && event.is_some() {
                reads = tokio::time::timeout(PRINTED_IN, printer.print(&mut event)).await.is_ok();
            }
            event = client.next_event().await;
            let Some(happened) = &event else { break };
            count(happened);
        }
        let end = client.finish().await;
        printer.finish().await;
        end
    };
    tokio::pin!(drain);
    let ended = tokio::select! {
        ended = &mut drain => ended,
        () = stop.wait() => return Ok(ExitCode::from(130)),
        () = tokio::time::sleep(Duration::from_millis(500)) => {
            output.note("finishing what is in flight; Ctrl-C again stops at once");
            tokio::select! {
                ended = drain => ended,
                () = stop.wait() => return Ok(ExitCode::from(130)),
            }
        }
    };
    ended?;
    if watch.fail && failed.get() {
        return Err(Failure::new(6, "the local app failed a delivery")
            .cause("it answered 400 or above, or not at all")
            .next("see its line above; without --fail this is no error"));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the command line and the files ask for.
struct Asked {
    options: Options,
    relay: String,
    /// Whether names were given; else the project's own is remembered.
    named: bool,
}

fn asked(args: &ForwardArgs, files: &Files, policy: &Policy) -> Result<Asked, Failure> {
    let strip = args.strip_prefix;
    let mut routes = Vec::new();
    let mut names: Vec<&EndpointName> = args.name.iter().collect();
    for ProjectEndpoint { name, target, routes: more, .. } in &files.endpoints {
        let own = |prefix: &str, target: &Target| {
            let (endpoint, prefix, target) = (Some(name.to_string()), prefix.to_owned(), target.clone());
            Route { endpoint, prefix, target, strip }
        };
        // Names on the command line choose among the file's.
        if args.name.is_empty() || args.name.contains(name) {
            routes.extend(more.iter().map(|(prefix, target)| own(prefix, target)));
            routes.extend(target.iter().map(|target| own("", target)));
            if args.name.is_empty() {
                names.push(name);
            }
        }
    }
    let for_all = |prefix: &str, target: &Target| Route {
        endpoint: None,
        prefix: prefix.to_owned(),
        target: target.clone(),
        strip,
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
    let mut options = Options::from_parts(relay, token, routes).forward(|forward| {
        forward.headers.clone_from(&args.header);
        forward.host.clone_from(&args.host_header);
        forward.timeout = args.timeout;
        forward.wait_app = args.wait_app;
        forward.max_body = args.max_body;
        forward.max_connections = args.max_connections;
        forward.webhooks.clone_from(policy);
        if policy.breakpoint {
            // Whoever steps through code takes the time that it takes.
            forward.timeout = forward.timeout.max(STEPPING);
        }
    });
    options = options.queueing(rules(args, files), args.queueing.drain_concurrency);
    options = sealing(options, args.queueing.seal)?;
    options = sharing(options, args)?;
    options = options.transport(args.relay.transport).filter(args.filter.clone().unwrap_or_default());
    options = own_domains(options, args, files, &names)?;
    let named = !names.is_empty();
    for name in names {
        options = options.name(name.as_str()).map_err(|error| Failure::new(2, error.to_string()))?;
    }
    if let Some(ca) = args.relay.ca(files) {
        options = options.relay_ca(ca);
    }
    Ok(Asked { options, relay: shown, named })
}

/// The developer's own host names, of the command line and of the endpoints in the project's file.
fn own_domains(
    mut options: Options,
    args: &ForwardArgs,
    files: &Files,
    names: &[&EndpointName],
) -> Result<Options, Failure> {
    for Domain { host, endpoint } in &args.domain {
        if endpoint.is_empty() && names.len() > 1 {
            let next = format!("hookway TARGET --domain {host}={}", names[0]);
            return Err(Failure::new(2, format!("which endpoint is {host} for?"))
                .cause(format!("this client serves {} of them", names.len()))
                .next(next));
        }
        if !endpoint.is_empty() && !names.iter().any(|name| name.as_str() == endpoint) {
            return Err(Failure::new(2, format!("{host} is for `{endpoint}`, which this client does not serve"))
                .cause("no --name and no endpoint of hookway.toml says so")
                .next(format!("hookway TARGET --name {endpoint} --domain {host}={endpoint}")));
        }
        options = options.domain(host, Some(endpoint));
    }
    let twice = args.domain.iter().enumerate().find(|(at, domain)| {
        let same = |other: &Domain| other.host == domain.host && other.endpoint != domain.endpoint;
        args.domain[..*at].iter().any(same)
    });
    if let Some((_, Domain { host, .. })) = twice {
        return Err(Failure::new(2, format!("{host} is given to two endpoints"))
            .cause("a host name leads to one")
            .next("leave one of the two --domain out"));
    }
    for endpoint in files.endpoints.iter().filter(|endpoint| names.contains(&&endpoint.name)) {
        for domain in &endpoint.domains {
            options = options.domain(&domain.host, Some(endpoint.name.as_str()));
        }
    }
    Ok(options)
}

/// Shares the endpoints with other clients, if that is wanted.
fn sharing(options: Options, args: &ForwardArgs) -> Result<Options, Failure> {
    let ShareArgs { share, listener } = &args.share;
    if *share == Share::Balance && args.queueing.seal {
        return Err(Failure::new(2, "--seal and --share balance do not go together")
            .cause("what is sealed to one client cannot be handed to another")
            .next("leave one of them out, or use --share copy"));
    }
    let forwards: Vec<String> = args.target.iter().map(ToString::to_string).collect();
    let listener = listener.clone().unwrap_or_else(|| queueing::listener(*share, &forwards.join(" ")));
    Ok(options.share(*share, listener))
}

/// Opens what was sealed to this machine's key, if it has one; asked to seal, it makes one.
pub(super) fn sealing(options: Options, seal: bool) -> Result<Options, Failure> {
    let failed = |error: std::io::Error| Failure::new(1, "the key for --seal cannot be used").cause(error.to_string());
    let path = config::data_dir()?.join("seal.key");
    let secret = match std::fs::read(&path) {
        Ok(secret) => secret,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !seal => return Ok(options),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => config::create_key(&path).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    };
    let next = "move the file away; what was sealed to it cannot be opened without it";
    let no_key = |_| Failure::new(1, format!("{} is no key", path.display())).next(next);
    let key = OpeningKey::new(&secret).map_err(no_key)?;
    let public = key.public().map_err(no_key)?;
    Ok(options.opening_key(key, seal.then_some(public)))
}

/// What the relay is asked to do with deliveries: of all endpoints, and of those that the project's file says more of.
fn rules(args: &ForwardArgs, files: &Files) -> Vec<Rule> {
    let all = args.queueing.asked();
    let routes = |own: &'_ [(String, Target)]| -> Vec<String> {
        own.iter().chain(&args.route).map(|(prefix, _)| prefix.clone()).collect()
    };
    let of = |name: &str, own: &[(String, Target)], asked: &Queueing| {
        let routes = routes(own);
        asked.rules(name, routes.iter().map(String::as_str), &all)
    };
    let own = files.endpoints.iter().filter(|endpoint| args.name.is_empty() || args.name.contains(&endpoint.name));
    let own = own.flat_map(|endpoint| of(endpoint.name.as_str(), &endpoint.routes, &endpoint.queueing));
    of("", &[], &Queueing::default()).into_iter().chain(own).collect()
}

/// Ctrl-C, SIGTERM, or the terminal's end. On Windows Ctrl-C, Ctrl-Break, or the window's end.
#[derive(Debug)]
pub(super) struct Stop {
    interrupt: signals::Interrupt,
    terminate: signals::Terminate,
    hangup: signals::Hangup,
}

#[cfg(unix)]
mod signals {
    use std::io::Result;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    pub(super) type Interrupt = Signal;
    pub(super) type Terminate = Signal;
    pub(super) type Hangup = Signal;

    pub(super) fn all() -> Result<(Interrupt, Terminate, Hangup)> {
        Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?))
    }
}

#[cfg(windows)]
mod signals {
    use std::io::Result;

    use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, ctrl_break, ctrl_c, ctrl_close};

    pub(super) type Interrupt = CtrlC;
    pub(super) type Terminate = CtrlBreak;
    pub(super) type Hangup = CtrlClose;

    pub(super) fn all() -> Result<(Interrupt, Terminate, Hangup)> {
        Ok((ctrl_c()?, ctrl_break()?, ctrl_close()?))
    }
}

impl Stop {
    pub(super) fn new() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(1, "signals cannot be watched").cause(error.to_string());
        let (interrupt, terminate, hangup) = signals::all().map_err(failed)?;
        Ok(Self { interrupt, terminate, hangup })
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
