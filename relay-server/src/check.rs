//! Whether all is in place for a relay: `hookway-relay check`. Nothing is changed.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use hookway_protocol::finding::Finding;
use hookway_protocol::host::Host;
use tokio::net::TcpStream;

use crate::config::Config;
use crate::resolver::{LookupError, Resolver};
use crate::{admin, certs, lock};

/// A relay that runs must answer within this time.
const ANSWER_IN: Duration = Duration::from_secs(3);
/// The check of the port for DNS.
const PORT_53: &str = "port 53";

/// Looks at all that a relay with this configuration needs, and tells of it.
pub async fn check(config: &Config, mut tell: impl FnMut(Finding)) {
    let folder = Folder::of(&config.data_dir);
    tell(folder.finding(&config.data_dir));
    tell(disk(&config.data_dir, config.queue.disk_reserve));
    let (resolver, domain) = (Resolver::new(config.tunnel.resolver), &config.domain);
    let below = format!("hookway-check.{domain}");
    let (here, below) = tokio::join!(resolver.addresses(domain.as_str()), resolver.addresses(&below));
    tell(addresses(domain, &here));
    tell(wildcard(domain, &here, &below));
    let here = here.unwrap_or_default();
    ports(config, &folder).into_iter().for_each(&mut tell);
    let is_running = matches!(folder, Folder::InUse(_));
    if is_running {
        tell(reached(config, &here).await);
    }
    let findings = certs::check::check(&config.certs, &config.data_dir, domain, &resolver, is_running);
    findings.await.into_iter().for_each(&mut tell);
    if let Some(admin) = config.admin.admin.filter(|_| is_running) {
        tell(health(admin).await);
    }
}

/// The data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Folder {
    /// A relay runs on it, and listens there.
    InUse(Vec<SocketAddr>),
    Good,
    /// It will be made.
    Missing,
    /// Only another user may look into it.
    Closed,
    Barred,
}

impl Folder {
    fn of(path: &Path) -> Self {
        let may = |path: &Path| {
            let access = rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
            access.map(|()| path.is_dir())
        };
        match lock::running(path) {
            Ok(Some(relay)) => return Self::InUse(relay.addresses()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Self::Closed,
            _ => {}
        }
        match may(path) {
            Ok(true) => Self::Good,
            Err(rustix::io::Errno::NOENT) => {
                let parents = path.ancestors().skip(1);
                let parents = parents.map(|it| if it.as_os_str().is_empty() { Path::new(".") } else { it });
                let parent = parents.into_iter().find(|parent| parent.exists());
                if parent.is_some_and(|parent| may(parent) == Ok(true)) { Self::Missing } else { Self::Barred }
            }
            _ => Self::Barred,
        }
    }

    fn finding(&self, path: &Path) -> Finding {
        let (check, shown) = ("data", path.display());
        match self {
            Self::InUse(_) => Finding::ok(check, format!("{shown}: a relay runs on it")),
            Self::Good => Finding::ok(check, format!("{shown} can be written; no relay runs on it")),
            Self::Missing => Finding::ok(check, format!("{shown} is made at the first start")),
            Self::Closed => {
                let next = "look as the user that runs the relay:  sudo -u hookway hookway-relay check …";
                Finding::fail(check, format!("{shown} is another user's"), next)
            }
            Self::Barred => {
                let next = format!("as root:  install -d -m 700 -o USER {shown}      (USER runs the relay)");
                Finding::fail(check, format!("{shown} is no folder that this user can write"), next)
            }
        }
    }
}

fn disk(folder: &Path, reserve: u8) -> Finding {
    let check = "disk";
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or_else(|| Path::new("."));
    let Ok(fs) = rustix::fs::statvfs(there) else {
        return Finding::warn(check, format!("{} says nothing of its room", there.display()), "look with:  df -h");
    };
    let size = fs.f_frsize.max(1);
    let (free, all) = (fs.f_bavail.saturating_mul(size), fs.f_blocks.saturating_mul(size));
    let detail = format!("{:.1} of {:.1} GiB are free", gib(free), gib(all));
    if free < all / 100 * u64::from(reserve) {
        let next = "make room, or lower --disk-reserve; until then nothing is queued";
        return Finding::fail(check, format!("{detail}, less than the {reserve} % that are kept free"), next);
    }
    Finding::ok(check, detail)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

type Addresses = Result<BTreeSet<IpAddr>, LookupError>;

/// The domain's addresses, and whether they are this machine's.
fn addresses(domain: &Host<'_>, found: &Addresses) -> Finding {
    let check = "dns";
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let next = "check this machine's name servers, or give one:  --resolver";
            return Finding::fail(check, error.to_string(), next);
        }
    };
    let all = listed(found);
    let foreign: BTreeSet<IpAddr> = found.iter().copied().filter(|address| !is_here(*address)).collect();
    match (found.is_empty(), foreign.is_empty()) {
        (true, _) => {
            let next = format!("set this record where the DNS of {domain} is kept:  {domain}.   A   ADDRESS");
            Finding::fail(check, format!("{domain} has no address"), next)
        }
        (_, true) => Finding::ok(check, format!("{domain} is {all}, which this machine has")),
        _ => {
            let detail = format!("{domain} is {all}; this machine does not have {}", listed(&foreign));
            let next = "all is well if a router or load balancer there passes on to this machine; else mend the record";
            Finding::warn(check, detail, next)
        }
    }
}

/// Whether names below the domain lead where the domain does.
fn wildcard(domain: &Host<'_>, here: &Addresses, below: &Addresses) -> Finding {
    let check = "wildcard";
    let (here, below) = match (here, below) {
        (Ok(here), Ok(below)) => (here, below),
        (Err(_), _) => return Finding::warn(check, "not known: see dns", "mend that first"),
        (_, Err(error)) => return Finding::fail(check, error.to_string(), "look again; then at the name servers"),
    };
    let record =
        |address: &IpAddr| format!("*.{domain}.   {}   {address}", if address.is_ipv6() { "AAAA" } else { "A" });
    let records: Vec<_> = here.iter().map(record).collect();
    let records = if records.is_empty() { format!("*.{domain}.   A   ADDRESS") } else { records.join(",   ") };
    let next = format!("set where the DNS of {domain} is kept:  {records}");
    match below {
        below if below.is_empty() => Finding::fail(check, format!("names below {domain} have no address"), next),
        below if below == here => Finding::ok(check, format!("names below {domain} lead there, too")),
        below => {
            let detail = format!("names below {domain} are {}, and {domain} is {}", listed(below), listed(here));
            Finding::warn(check, detail, next)
        }
    }
}

fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether an address is this machine's: only those can be bound.
fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Whether each port can be listened on, or the relay that runs does.
fn ports(config: &Config, folder: &Folder) -> Vec<Finding> {
    let https = config.public.https;
    let mut all = vec![
        port("https", "TCP", https, folder, TcpListener::bind(https).map(drop)),
        port("quic", "UDP", https, folder, UdpSocket::bind(https).map(drop)),
    ];
    for (check, address) in [("http", config.public.http), ("admin", config.admin.admin)] {
        all.extend(address.map(|address| port(check, "TCP", address, folder, TcpListener::bind(address).map(drop))));
    }
    if let certs::Config::Acme(acme) = &config.certs
        && let certs::acme::Proof::Own(address) = acme.proof
    {
        let both = TcpListener::bind(address).and_then(|_| UdpSocket::bind(address)).map(drop);
        all.push(port(PORT_53, "UDP and TCP", address, folder, both));
    }
    all
}

fn port(check: &'static str, kind: &str, address: SocketAddr, folder: &Folder, bound: io::Result<()>) -> Finding {
    let own = if let Folder::InUse(own) = folder { Some(own) } else { None };
    let shown = format!("{address}, {kind}");
    let error = match (bound, own) {
        (Ok(()), None) => return Finding::ok(check, format!("{shown}, can be listened on")),
        (Ok(()), Some(_)) => {
            let detail = format!("{shown}: nobody listens; the relay that runs was started with other settings");
            return Finding::warn(check, detail, "start it anew:  systemctl restart hookway-relay");
        }
        (Err(error), _) => error,
    };
    let detail = format!("{shown}: {error}");
    match (error.kind(), own) {
        (io::ErrorKind::AddrInUse, Some(own)) if own.contains(&address) => {
            Finding::ok(check, format!("{shown}: the relay listens"))
        }
        (io::ErrorKind::AddrInUse, _) if *folder == Folder::Closed => {
            Finding::warn(check, format!("{shown}: taken, by your relay perhaps"), "see data")
        }
        (io::ErrorKind::AddrInUse, _) if check == PORT_53 => {
            let next = "systemd-resolved has it on many machines: give the public address alone with  --dns IP:53";
            Finding::fail(check, detail, next)
        }
        (io::ErrorKind::AddrInUse, _) => {
            let next = format!("stop what listens there (ss -tulpn 'sport = :{}'), or choose another", address.port());
            Finding::fail(check, detail, next)
        }
        (io::ErrorKind::PermissionDenied, _) => {
            let next = "run it by the systemd unit, or:  setcap cap_net_bind_service=+ep $(command -v hookway-relay)";
            Finding::fail(check, detail, next)
        }
        _ => Finding::fail(check, detail, "give an address of this machine, or 0.0.0.0"),
    }
}

/// Whether the relay that runs can be reached at its public address, from here at least.
async fn reached(config: &Config, here: &BTreeSet<IpAddr>) -> Finding {
    let check = "reach";
    let port = config.public.public_port.unwrap_or_else(|| config.public.https.port());
    let Some(address) = here.first() else {
        return Finding::warn(check, "the domain has no address to try", "set its A record first");
    };
    let address = SocketAddr::new(*address, port);
    let connected = tokio::time::timeout(ANSWER_IN, TcpStream::connect(address)).await;
    match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(_) => Finding::ok(check, format!("{address} takes connections, from this machine at least")),
        Err(error) => {
            let next = format!("let TCP {port} and UDP {port} in; some routers do not lead a machine back to itself");
            Finding::warn(check, format!("{address} cannot be reached from here: {error}"), next)
        }
    }
}

/// What the relay that runs says of itself.
async fn health(admin: SocketAddr) -> Finding {
    let check = "health";
    match admin::client::get(admin, "/health").await {
        Ok((status, _)) if status.is_success() => Finding::ok(check, format!("the relay at {admin} is well")),
        Ok((_, reasons)) => {
            let reasons = reasons.trim().replace('\n', "; ");
            Finding::fail(check, reasons, "its log says more:  journalctl -u hookway-relay")
        }
        Err(why) => {
            Finding::warn(check, format!("{admin}: {why}"), "check --admin: is it the setting of the relay that runs?")
        }
    }
}
