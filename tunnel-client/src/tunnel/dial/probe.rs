//! The way to the relay, looked at step by step: `hookway doctor`.

mod witness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hookway_protocol::common_version;
use hookway_protocol::finding::{Finding, State};
use hookway_protocol::host::Host;
use hookway_protocol::link::{Link, Transport};
use hookway_protocol::message::{Refused, RelayMessage, Welcome};
use http::header::{DATE, HOST, HeaderValue};
use http::{Request, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, Error};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::{ALONE, Dialer, TRY_FOR, Transports, no_answer, tls};
use crate::tunnel::{RelayAddress, Settings, session};
use witness::{Shown, Witness};

/// How large packets can be is found out within this time, or not at all.
const SIZED_IN: Duration = Duration::from_millis(1500);
/// The largest that is tried.
const LARGEST: u16 = 1452;
/// A clock may be wrong by so much, and by so much before signatures fail.
const CLOCK_FINE: Duration = Duration::from_secs(30);
const CLOCK_BAD: Duration = Duration::from_secs(5 * 60);
/// A certificate that ends within this time should have been renewed.
const ENDS_SOON: Duration = Duration::from_secs(7 * 86_400);

/// The check of the relay's certificate, which others follow.
const TLS: &str = "tls";

/// What came of looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// The relay lets this client in.
    Yes,
    /// No transport gets through.
    No,
    /// It was reached, and refused.
    Refused,
}

/// Looks at each step of the way to the relay by itself, and tells of it.
pub(crate) async fn probe(settings: &Settings, mut tell: impl FnMut(Finding)) -> Reached {
    let relay = &settings.relay;
    let dialer = match Dialer::new(settings) {
        Ok(dialer) => dialer,
        Err(error) => {
            tell(Finding::fail(TLS, error.cause(), "give the relay's ca.pem with --relay-ca, or leave it out"));
            return Reached::No;
        }
    };
    let proxy = tls::proxy(relay);
    let is_proxied = !matches!(proxy, Ok(None));
    let started = Instant::now();
    let addresses = match dialer.addresses().await {
        Ok(addresses) => {
            let all = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
            tell(Finding::ok("dns", format!("{relay} is {all}   ({})", millis(started.elapsed()))));
            addresses
        }
        Err(why) if is_proxied => {
            tell(Finding::warn("dns", why, "nothing must be done: the proxy looks the name up"));
            vec![]
        }
        Err(why) => {
            let next =
                "check the name, and this machine's connection; the relay's operator sets its A and AAAA records";
            tell(Finding::fail("dns", why, next));
            return Reached::No;
        }
    };
    tell(match &proxy {
        Ok(Some(proxy)) => Finding::ok("proxy", format!("TCP goes through {proxy}; UDP does not")),
        Ok(None) => Finding::ok("proxy", "none is set for the relay (HTTPS_PROXY, ALL_PROXY, NO_PROXY)"),
        Err(why) => Finding::fail("proxy", why.clone(), "export HTTPS_PROXY=http://HOST:PORT, or unset it"),
    });
    let mut next = match &proxy {
        Ok(None) => format!(
            "ask the relay's operator whether it runs, and whoever runs this network to let UDP and TCP {} out",
            relay.port
        ),
        _ => format!("check HTTPS_PROXY, or ask whoever runs that proxy to let CONNECT {} pass", relay.authority()),
    };
    if !is_proxied {
        let (tcp, stream) = tcp(&addresses).await;
        tell(tcp);
        if let Some(stream) = stream {
            for finding in certificate_and_clock(settings, stream).await {
                if (finding.check, finding.state) == (TLS, State::Fail) {
                    next = "see the line tls: it is one cause".into();
                }
                tell(finding);
            }
        }
    }
    // One hello: a wrong token counts, and so do sessions.
    let greeted = tokio::sync::Mutex::new(None);
    let (quic, h2) = tokio::join!(
        tried(settings, Transports::H2, dialer.quic(), &greeted),
        tried(settings, Transports::Quic, dialer.h2(), &greeted)
    );
    let is_up = |tried: &Option<Result<Tried, String>>| tried.as_ref().is_some_and(Result::is_ok);
    udp(quic.as_ref(), is_up(&h2), is_proxied, &next).into_iter().for_each(&mut tell);
    tell(fallback(h2.as_ref(), is_up(&quic), &next));
    if !is_up(&quic) && !is_up(&h2) {
        return Reached::No;
    }
    match greeted.into_inner() {
        Some((over, Ok(welcome))) => {
            let detail = format!("it lets you in as {}, protocol {}, over {over}", welcome.owner, welcome.version);
            tell(Finding::ok("relay", detail));
            tell(match addresses.is_empty() {
                true => Finding::ok("wildcard", "not looked up: this network's DNS does not know the relay either"),
                false => wildcard(relay, &welcome.domain).await,
            });
            Reached::Yes
        }
        Some((_, Err(finding))) => {
            tell(finding);
            Reached::Refused
        }
        // Without a token there is nothing to say.
        None => Reached::Refused,
    }
}

/// What one transport came to.
struct Tried {
    remote: SocketAddr,
    rtt: Duration,
    /// The largest packet that passes, if it was found out.
    mtu: Option<u16>,
}

/// What the relay said, and over what.
type Greeted = Option<(&'static str, Result<Welcome, Finding>)>;

/// Tries a transport to its end, unless the other one is asked for.
async fn tried(
    settings: &Settings,
    other: Transports,
    dial: impl Future<Output = Result<Link, String>>,
    greeted: &tokio::sync::Mutex<Greeted>,
) -> Option<Result<Tried, String>> {
    if settings.transport == other {
        return None;
    }
    let link = match dial.await {
        Ok(link) => link,
        Err(why) => return Some(Err(why)),
    };
    let over = match link.transport() {
        Transport::Quic => "QUIC",
        Transport::H2 => "HTTP/2 over TLS",
    };
    if link.transport() == Transport::H2 && settings.transport == Transports::Auto {
        // QUIC has the first word where it gets through.
        let greeted_over_quic = async {
            while greeted.lock().await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(ALONE, greeted_over_quic).await;
    }
    let is_open = {
        let mut greeted = greeted.lock().await;
        if greeted.is_none() && !settings.token.is_empty() {
            *greeted = Some((over, hello(&link, settings).await));
        }
        // Whoever was refused is hung up on.
        !matches!(&*greeted, Some((by, Err(_))) if *by == over)
    };
    let until = Instant::now() + SIZED_IN;
    while is_open && link.mtu().is_some_and(|mtu| mtu < LARGEST) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (remote, rtt, mtu) = (link.remote(), link.rtt(), link.mtu().filter(|_| is_open));
    link.close("the doctor has seen enough");
    link.flushed().await;
    Some(Ok(Tried { remote, rtt, mtu }))
}

/// How QUIC does.
fn udp(quic: Option<&Result<Tried, String>>, is_fallback_good: bool, is_proxied: bool, next: &str) -> Vec<Finding> {
    match quic {
        None => vec![Finding::ok("udp", "not looked at: --transport h2")],
        Some(Ok(Tried { remote, rtt, mtu })) => {
            let found = Finding::ok("udp", format!("QUIC to {remote}, a round trip takes {}", millis(*rtt)));
            let size = mtu.map(|mtu| {
                let more = if mtu < LARGEST { "; a VPN, or a tunnel on the way, takes the rest" } else { "" };
                Finding::ok("mtu", format!("QUIC packets of {mtu} bytes pass{more}"))
            });
            std::iter::once(found).chain(size).collect()
        }
        Some(Err(why)) if is_fallback_good => {
            let next = match is_proxied {
                true => "nothing must be done: UDP does not go through a proxy, and the link goes over TCP",
                false => "nothing must be done: the link goes over TCP here. For QUIC, let UDP out to that port",
            };
            vec![Finding::warn("udp", why.clone(), next)]
        }
        Some(Err(why)) => vec![Finding::fail("udp", why.clone(), next)],
    }
}

/// How HTTP/2 does.
fn fallback(h2: Option<&Result<Tried, String>>, is_quic_good: bool, next: &str) -> Finding {
    let check = "fallback";
    match h2 {
        None => Finding::ok(check, "not looked at: --transport quic"),
        Some(Ok(tried)) => Finding::ok(check, format!("HTTP/2 over TLS, a round trip takes {}", millis(tried.rtt))),
        Some(Err(why)) if is_quic_good => {
            let next = "nothing must be done while UDP gets through; else let TCP out to that port";
            Finding::warn(check, why.clone(), next)
        }
        Some(Err(why)) => Finding::fail(check, why.clone(), next),
    }
}

/// Whether TCP connections are taken, and the first that was.
async fn tcp(addresses: &[SocketAddr]) -> (Finding, Option<TcpStream>) {
    let started = Instant::now();
    let attempts = addresses.iter().map(async |address| {
        let connected = tokio::time::timeout(TRY_FOR, TcpStream::connect(address)).await;
        let connected = connected.unwrap_or_else(|_| Err(no_answer()));
        (address, connected, started.elapsed())
    });
    let (mut good, mut bad, mut first) = (Vec::new(), Vec::new(), None);
    for (address, connected, took) in futures_util::future::join_all(attempts).await {
        match connected {
            Ok(stream) => {
                good.push(format!("{address} in {}", millis(took)));
                first = first.or(Some(stream));
            }
            Err(why) => bad.push(format!("{address}: {why}")),
        }
    }
    let next = "the addresses that do not answer are wrong, or this network does not reach them: ask the operator";
    let finding = match (good.is_empty(), bad.is_empty()) {
        (false, true) => Finding::ok("tcp", good.join(", ")),
        (false, false) => Finding::warn("tcp", format!("{}; but {}", good.join(", "), bad.join(", ")), next),
        _ => {
            let next = "ask the relay's operator whether it runs there, and whoever runs this network to let TCP out";
            Finding::warn("tcp", bad.join(", "), next)
        }
    };
    (finding, first)
}

/// What certificate is shown, whether it is trusted, and what time it is there.
async fn certificate_and_clock(settings: &Settings, stream: TcpStream) -> Vec<Finding> {
    let (relay, check) = (&settings.relay, TLS);
    let remark = |why: String| Finding::fail(check, why, "give another --relay, or another --relay-ca");
    let witness = match Witness::new(settings) {
        Ok(witness) => Arc::new(witness),
        Err(why) => return vec![remark(why)],
    };
    let mut config =
        ClientConfig::builder().dangerous().with_custom_certificate_verifier(witness.clone()).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let Ok(name) = ServerName::try_from(relay.name().to_owned()) else {
        return vec![remark(format!("{relay} is no name that a certificate could have"))];
    };
    let connected = tokio::time::timeout(TRY_FOR, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    let shown = witness.shown();
    let stream = match connected.unwrap_or_else(|_| Err(no_answer())) {
        Ok(stream) => stream,
        Err(error) => return vec![untrusted(settings, &error, shown.as_ref())],
    };
    let version = stream.get_ref().1.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
    let version = version.replace('_', ".").replace("TLSv", "TLS ");
    let mut findings = vec![match &shown {
        Some(Shown { issuer, ends, .. }) => {
            let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
            let days = left.as_secs() / 86_400;
            let detail = format!("{version}, a certificate of {issuer}, good for {days} days");
            if left < ENDS_SOON {
                let next = "ask the relay's operator to renew it:  hookway-relay cert status";
                Finding::warn(check, detail, next)
            } else {
                Finding::ok(check, detail)
            }
        }
        None => Finding::ok(check, version),
    }];
    let asked = Instant::now();
    if let Some(there) = date(stream, relay).await {
        findings.push(clock(there, asked.elapsed()));
    }
    findings
}

/// Why a handshake came to nothing.
fn untrusted(settings: &Settings, error: &std::io::Error, shown: Option<&Shown>) -> Finding {
    let reason = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    let (issuer, names) = shown.map_or(("nobody known", String::new()), |it| (it.issuer.as_str(), it.names.join(" ")));
    let relay = &settings.relay;
    let (detail, next) = match reason {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) if settings.ca.is_some() => (
            format!("the certificate is of {issuer}, which is not the CA in --relay-ca"),
            "get the relay's ca.pem from its operator anew: it has another CA now".to_owned(),
        ),
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => (
            format!("the certificate is of {issuer}, which this machine does not trust"),
            "if the relay signs itself, get its ca.pem from its operator, and give it with --relay-ca FILE; if not, \
             something on the way opens TLS"
                .to_owned(),
        ),
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => (
            format!("the certificate is not for {}, but for {names}", relay.host),
            "name the relay as its operator does, with --relay".to_owned(),
        ),
        Some(Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => (
            "the certificate is not good at this machine's time".to_owned(),
            "check this machine's clock; if it is right, ask the operator:  hookway-relay cert status".to_owned(),
        ),
        _ => (
            format!("no TLS there: {error}"),
            "check host and port; a proxy or a portal that wants a login may be in between".to_owned(),
        ),
    };
    Finding::fail(TLS, detail, next)
}

/// What time it is at the relay, by its answer to a request for nothing.
async fn date(stream: tokio_rustls::client::TlsStream<TcpStream>, relay: &RelayAddress) -> Option<SystemTime> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let authority = HeaderValue::try_from(relay.authority()).ok()?;
    let ask = Request::head(Uri::from_static("/")).header(HOST, authority).body(Empty::<Bytes>::new()).ok()?;
    let answered = async {
        let (mut answer, mut connection) = (std::pin::pin!(sender.send_request(ask)), std::pin::pin!(connection));
        tokio::select! {
            biased;
            answer = &mut answer => answer.ok(),
            // It ends with the answer, or without one.
            _ = &mut connection => answer.await.ok(),
        }
    };
    let answer = tokio::time::timeout(TRY_FOR, answered).await.ok()??;
    let text = answer.headers().get(DATE)?.to_str().ok()?;
    let at = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(SystemTime::from(at.timestamp()))
}

fn clock(there: SystemTime, took: Duration) -> Finding {
    let here = SystemTime::now();
    let apart = here.duration_since(there).unwrap_or_else(|error| error.duration());
    // Theirs is in whole seconds, and as old as the answer.
    let apart = apart.saturating_sub(Duration::from_secs(1) + took);
    let side = if here < there { "behind" } else { "ahead of" };
    let next = "set it right:  timedatectl set-ntp true      (macOS: System Settings, General, Date & Time)";
    match apart {
        apart if apart <= CLOCK_FINE => Finding::ok("clock", "as the relay's"),
        apart if apart <= CLOCK_BAD => {
            Finding::warn("clock", format!("{} s {side} the relay's", apart.as_secs()), next)
        }
        apart => {
            let detail = format!("{} s {side} the relay's: signatures will be too old or too new", apart.as_secs());
            Finding::fail("clock", detail, next)
        }
    }
}

/// What the relay says to this client; else the finding that it does not let it in.
async fn hello(link: &Link, settings: &Settings) -> Result<Welcome, Finding> {
    let failed = |detail: String, next: &str| Err(Finding::fail("relay", detail, next));
    match tokio::time::timeout(TRY_FOR, session::hello(link, settings)).await {
        Ok(Ok((_control, RelayMessage::Welcome(welcome)))) => {
            if common_version(welcome.version, welcome.version).is_none() {
                let detail = format!("it chose protocol {}, which this client does not speak", welcome.version);
                return failed(detail, "upgrade hookway");
            }
            Ok(welcome)
        }
        Ok(Ok((_, RelayMessage::Refused(Refused { reason, next, .. })))) => {
            let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
            failed(or(reason, "it refused, and does not say why"), &or(next, "ask its operator"))
        }
        Ok(Ok(_)) => failed("it answered the hello with something else".into(), "upgrade hookway, or the relay"),
        Ok(Err(error)) => failed(error.to_string(), "upgrade hookway, or the relay"),
        Err(_) => failed("it did not answer the hello".into(), "ask its operator whether it is well"),
    }
}

/// Whether names below the relay's domain can be looked up: senders do.
async fn wildcard(relay: &RelayAddress, domain: &str) -> Finding {
    let check = "wildcard";
    if !domain.contains('.') || Host::parse(domain).is_err() {
        return Finding::ok(check, "the relay is not a public one: its names are for this machine or network");
    }
    let host = format!("hookway-doctor.{domain}");
    let found = tokio::time::timeout(TRY_FOR, tokio::net::lookup_host((host.as_str(), relay.port))).await;
    match found.unwrap_or_else(|_| Err(no_answer())).map(|mut all| all.next()) {
        Ok(Some(address)) => Finding::ok(check, format!("names below {domain} are {}", address.ip())),
        Ok(None) => Finding::warn(check, format!("names below {domain} have no address"), no_wildcard(domain)),
        Err(why) => {
            let detail = format!("names below {domain} cannot be looked up here: {why}");
            Finding::warn(check, detail, no_wildcard(domain))
        }
    }
}

fn no_wildcard(domain: &str) -> String {
    format!("senders find your endpoint by such a name: ask the operator for the record *.{domain}")
}

fn millis(took: Duration) -> String {
    format!("{:.0} ms", took.as_secs_f64() * 1000.0)
}
