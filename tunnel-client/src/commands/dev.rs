//! `hookway dev`: relay and client in one process, on this machine only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::id::DeliveryId;
use hookway_relay::{BindError, Config, NewToken, Rate, Server};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::forward::{STEPPING, Stop, Watch, connect, follow, sealing};
use super::{block_on, send};
use crate::cli::{HistoryArgs, InspectArgs, QueueingArgs};
use crate::client::Options;
use crate::config;
use crate::forwarder::HostHeader;
use crate::inspector::{Shown, Tunnel};
use crate::output::{Banner, Failure, Output};
use crate::queueing::Queueing;
use crate::signature::{Known, Rule, Signer};
use crate::target::Target;
use crate::webhook::Policy;

/// Ports after the one asked for that are tried when it is taken.
const MORE_PORTS: u16 = 20;
/// What `dev` was asked for.
#[derive(Debug)]
pub(super) struct Dev {
    pub(super) target: Option<Target>,
    pub(super) demo: bool,
    pub(super) name: EndpointName,
    pub(super) host_header: HostHeader,
    pub(super) http: SocketAddr,
    pub(super) https: SocketAddr,
    pub(super) once: bool,
    pub(super) queueing: QueueingArgs,
    pub(super) policy: Policy,
    pub(super) history: HistoryArgs,
    pub(super) inspect: InspectArgs,
}

pub(super) fn run(mut dev: Dev, output: Output) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    super::webhooks::keeps_what_it_acks(&dev.policy, &dev.history)?;
    let secret = DeliveryId::now().to_string();
    if dev.demo {
        // Of this run only: the sample is signed with it.
        let rule = Rule::new(github(), &secret, "the demo").map_err(|error| Failure::new(1, error.to_string()))?;
        dev.policy.verifier.rules = dev.policy.verifier.rules.iter().cloned().chain([rule]).collect();
    }
    block_on(async move {
        let stop = Stop::new()?;
        let server = start_relay(&dev).await?;
        let token = make_token(&server).await?;
        let end = forward(&dev, &secret, &server, &token, started, output, stop).await;
        // Only its own: another `hookway dev` may run beside this one.
        let _ = server.store().revoke_tokens(&token.row.id, jiff::Timestamp::now()).await;
        server.shutdown().await;
        end
    })
}

/// Forwards until told to stop.
async fn forward(
    dev: &Dev,
    secret: &str,
    server: &Server,
    token: &NewToken,
    started: Instant,
    output: Output,
    mut stop: Stop,
) -> Result<ExitCode, Failure> {
    let tasks = TaskTracker::new();
    let demo = if dev.demo { Some(start_demo_app(&tasks).await?) } else { None };
    let target = match (demo, &dev.target) {
        (Some(address), _) => address.to_string().parse().map_err(|e| Failure::new(1, format!("{e}")))?,
        (None, Some(target)) => target.clone(),
        (None, None) => {
            return Err(Failure::new(2, "there is nothing to forward to")
                .cause("no target was given")
                .next("hookway dev 3000      (the port your app listens on), or:  hookway dev --demo"));
        }
    };
    let listener = dev.inspect.listen(output).await;
    let options = options(server, dev, &target, token)?.history(dev.history.start(output));
    let relay = "this machine".to_owned();
    let Some(client) = connect(options, &relay, output, &mut stop).await? else { return Ok(ExitCode::SUCCESS) };
    let http = server.addresses().http;
    let listening = TcpStream::connect((target.host(), target.port())).await.is_ok();
    let wait = if listening { "" } else { "           not listening yet" };
    let (mut lines, mut more) = (vec![("Forwards to", format!("{target}{wait}"))], vec![]);
    if let Some(ca) = server.ca() {
        let ca = ca.display().to_string();
        lines.push(("CA", ca.clone()));
        more.push(("ca", ca));
    }
    if let Some(http) = http {
        let url = format!("http://localhost:{}/github", http.port());
        more.push(("http", format!("http://localhost:{}", http.port())));
        lines.push(("Try it", format!("hookway send github --to {url}")));
    }
    let tunnel =
        Tunnel { relay, forwarder: client.forwarder().clone(), letters: client.letters().clone(), plain_first: true };
    let shown = Shown { replayer: client.replayer(), tunnel: Some(tunnel) };
    let inspector = dev.inspect.start(listener, shown, output);
    let took = started.elapsed().as_millis();
    let banner = Banner {
        title: format!("local relay, nothing leaves this machine          ready in {took} ms"),
        plain_first: true,
        inspector: inspector.as_ref().map(|inspector| inspector.url().to_owned()),
        lines,
        more,
    };
    output.ready(client.welcomed(), &banner);
    if let (true, Some(http)) = (dev.demo, http) {
        let secret = secret.to_owned();
        tasks.spawn(async move {
            if let Err(error) = send_sample(http, &secret).await {
                output.note(&format!("the sample could not be sent: {}", error.what));
            }
        });
    }
    let watch = Watch { until: dev.once.then_some(1), ..Watch::default() };
    follow(client, watch, output, stop).await
}

/// A relay on the loopback, its store and CA kept for the next time.
async fn start_relay(dev: &Dev) -> Result<Server, Failure> {
    let domain = Host::parse("localhost").expect("a host name").into_owned();
    let mut config = Config::new(domain, config::data_dir()?.join("dev"));
    config.grace = Duration::from_secs(5);
    config.public.http_serve = true;
    config.public.default_endpoint = Some(dev.name.clone());
    config.admin.admin = None;
    config.limits.rate = Rate::OFF;
    config.limits.token_rate = Rate::OFF;
    let (mut http, mut https, mut folders) = (dev.http, dev.https, 1);
    for _ in 0..=3 * MORE_PORTS {
        config.public.http = Some(http);
        config.public.https = https;
        match Server::bind(config.clone()).await {
            Ok(server) => return Ok(server),
            Err(BindError::Listen { address, source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                let taken = if address == http { &mut http } else { &mut https };
                taken.set_port(taken.port().saturating_add(1));
            }
            // Another `hookway dev` has that one.
            Err(BindError::InUse(_)) if folders < MORE_PORTS => {
                folders += 1;
                config.data_dir = config::data_dir()?.join(format!("dev-{folders}"));
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let next = "check the addresses and the data folder; other ports:  --http ADDR --https ADDR";
                return Err(Failure::new(1, error.to_string()).cause(cause).next(next));
            }
        }
    }
    Err(Failure::new(1, "no free port was found")
        .cause("all that were tried are taken")
        .next("hookway dev 3000 --http 127.0.0.1:0 --https 127.0.0.1:0"))
}

/// A token for the client of this run.
async fn make_token(server: &Server) -> Result<NewToken, Failure> {
    let until = jiff::Timestamp::now() + Duration::from_secs(366 * 86_400);
    server.store().create_token("dev", vec![], Some(until)).await.map_err(|error| {
        Failure::new(1, "the local relay's store failed")
            .cause(error.to_string())
            .next("check that the folder can be written:  $XDG_DATA_HOME/hookway/dev, or ~/.local/share/hookway/dev")
    })
}

fn options(server: &Server, dev: &Dev, target: &Target, token: &NewToken) -> Result<Options, Failure> {
    let relay = format!("localhost:{}", server.addresses().https.port());
    let relay = match server.addresses().https.ip() {
        ip if ip.is_unspecified() => relay,
        _ => server.addresses().https.to_string(),
    };
    let options = Options::new(&relay, token.token.reveal(), &target.to_string());
    let options = options.map_err(|error| Failure::new(1, error.to_string()))?;
    let options = options.forward(|forward| {
        forward.host.clone_from(&dev.host_header);
        forward.webhooks.clone_from(&dev.policy);
        if dev.policy.breakpoint {
            forward.timeout = STEPPING;
        }
    });
    let rules = dev.queueing.asked().rules("", std::iter::empty(), &Queueing::default());
    let options = options.queueing(rules, dev.queueing.drain_concurrency);
    let options = sealing(options, dev.queueing.seal)?;
    let options = options.name(dev.name.as_str()).map_err(|error| Failure::new(2, error.to_string()))?;
    Ok(match server.ca() {
        Some(ca) => options.relay_ca(ca),
        None => options,
    })
}

/// An app that answers everything with what it got.
async fn start_demo_app(tasks: &TaskTracker) -> Result<SocketAddr, Failure> {
    let failed = |error: std::io::Error| Failure::new(1, "the demo app cannot start").cause(error.to_string());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let connections = tasks.clone();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = hyper::server::conn::http1::Builder::new();
            let connection = serve.serve_connection(TokioIo::new(stream), service_fn(demo_answer));
            connections.spawn(async move { drop(connection.await) });
        }
    });
    Ok(address)
}

async fn demo_answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let length = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
    let text = format!("the demo app got {method} {path} with {length} bytes\n");
    Ok(Response::new(Full::new(text.into())))
}

/// Sends one webhook to the public side, signed as GitHub would.
async fn send_sample(to: SocketAddr, secret: &str) -> Result<(), Failure> {
    let to = format!("http://localhost:{}/github", to.port());
    let to = to.parse().map_err(|error| Failure::new(1, format!("{error}")))?;
    let asked = send::Asked::sample(github(), to);
    let attempt = asked.send(Some(&Signer::Mac(secret.as_bytes().to_vec()))).await?;
    if attempt.outcome.is_ok() { Ok(()) } else { Err(Failure::new(1, attempt.message)) }
}

fn github() -> Known {
    Known::named("github").expect("it is in the table")
}
