//! The sockets that a relay listens on: bound by itself, given by the service manager, or by the process before.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use listenfd::ListenFd;
use rustix::net::sockopt;
use tokio::net::TcpListener as AsyncListener;

use super::{Addresses, BindError};
use crate::config::Config;

/// What each socket is for, as its name says to a successor, and in a systemd socket unit's `FileDescriptorName=`.
const HTTPS: &str = "https";
const QUIC: &str = "quic";
const HTTP: &str = "http";
const ADMIN: &str = "admin";
const DNS: &str = "dns";
const DNS_UDP: &str = "dns-udp";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// What answers DNS questions listens on both.
pub(super) type Dns = (UdpSocket, TcpListener);

/// All that a relay listens on.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) https: TcpListener,
    pub(super) quic: UdpSocket,
    pub(super) http: Option<TcpListener>,
    pub(super) admin: Option<TcpListener>,
    pub(super) dns: Option<Dns>,
}

/// Those that wait for connections, in the runtime.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) https: AsyncListener,
    pub(super) http: Option<AsyncListener>,
    pub(super) admin: Option<AsyncListener>,
}

/// Sockets that others have bound.
#[derive(Debug, Default)]
pub(super) struct Given(Vec<(String, OwnedFd)>);

impl Given {
    /// Those of the process before, each with a label. Where the configuration says something else than it did there,
    /// the socket is not used, and another bound: wherever this one listens, the service manager may have chosen that.
    pub(super) fn by_predecessor(sockets: crate::handover::Sockets, config: &Config) -> Self {
        let wanted = labels(config);
        let named = sockets.into_iter().filter(|(label, _)| wanted.iter().any(|(_, wanted)| wanted == label));
        Self(named.filter_map(|(label, fd)| Some((label.split_once('=')?.0.to_owned(), fd))).collect())
    }

    /// Those of systemd (sd_listen_fds(3)), wherever its unit says that they listen.
    pub(super) fn by_service_manager() -> Self {
        let mut given = ListenFd::from_env();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut all: Vec<(String, OwnedFd)> = Vec::new();
        for index in 0..given.len() {
            let name = names.next().unwrap_or_default();
            let tcp = |given: &mut ListenFd| given.take_tcp_listener(index).ok().flatten().map(OwnedFd::from);
            let udp = |given: &mut ListenFd| given.take_udp_socket(index).ok().flatten().map(OwnedFd::from);
            let fd = match name {
                QUIC | DNS_UDP => udp(&mut given),
                HTTPS | HTTP | ADMIN | DNS => tcp(&mut given),
                // Closed: whoever connects to it would wait for ever.
                _ => {
                    drop((tcp(&mut given), udp(&mut given)));
                    None
                }
            };
            match fd {
                Some(fd) if all.iter().all(|(other, _)| other != name) => all.push((name.to_owned(), fd)),
                _ => tracing::error!(
                    name,
                    "a socket of the service manager is not used: its name says nothing, is there twice, or is for another \
                     kind of socket; FileDescriptorName= is https, quic, http, admin, dns or dns-udp"
                ),
            }
        }
        Self(all)
    }

    fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.swap_remove(index).1)
    }
}

/// What each socket is for, and where the configuration has it: `https=0.0.0.0:443`.
fn labels(config: &Config) -> Vec<(&'static str, String)> {
    let wanted = [
        (HTTPS, Some(config.public.https)),
        (QUIC, Some(config.public.https)),
        (HTTP, config.public.http),
        (ADMIN, config.admin.admin),
        (DNS, config.certs.dns()),
        (DNS_UDP, config.certs.dns()),
    ];
    wanted.into_iter().filter_map(|(name, address)| Some((name, format!("{name}={}", address?)))).collect()
}

impl Sockets {
    /// Takes what was given, and binds the rest.
    pub(super) fn bind(config: &Config, mut given: Given) -> Result<Self, BindError> {
        let (https, quic) = match (given.take(HTTPS).map(TcpListener::from), given.take(QUIC).map(UdpSocket::from)) {
            (Some(https), Some(quic)) => (https, quic),
            (https, quic) => bind_both(config.public.https, https, quic)?,
        };
        let mut tcp = |name, address: Option<SocketAddr>| {
            let given = given.take(name).map(TcpListener::from);
            address.map(|address| given.map_or_else(|| bind_tcp(name, address), Ok)).transpose()
        };
        let (http, admin) = (tcp(HTTP, config.public.http)?, tcp(ADMIN, config.admin.admin)?);
        let dns = match config.certs.dns() {
            None => None,
            Some(address) => Some(match (given.take(DNS_UDP), given.take(DNS)) {
                (Some(udp), Some(tcp)) => (udp.into(), tcp.into()),
                (udp, tcp) => {
                    // Both or none.
                    drop((udp, tcp));
                    bind_dns(address).map_err(|source| crate::CertsError::Dns { address, source })?
                }
            }),
        };
        let sockets = Self { https, quic, http, admin, dns };
        sockets.all().into_iter().try_for_each(|(what, fd)| {
            let set = rustix::io::ioctl_fionbio(fd, true);
            set.map_err(|error| BindError::Listen { what, address: config.public.https, source: error.into() })
        })?;
        Ok(sockets)
    }

    /// Where they listen.
    pub(super) fn addresses(&self) -> Addresses {
        let at = |listener: &TcpListener| listener.local_addr().ok();
        let https = at(&self.https).expect("it is bound");
        Addresses { https, http: self.http.as_ref().and_then(at), admin: self.admin.as_ref().and_then(at) }
    }

    /// What serves on them: TCP, QUIC, DNS.
    pub(super) fn listeners(self) -> Result<(Listeners, UdpSocket, Option<Dns>), BindError> {
        let taken = |what, listener: TcpListener| {
            let address = listener.local_addr().unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
            AsyncListener::from_std(listener).map_err(|source| BindError::Listen { what, address, source })
        };
        let Self { https, quic, http, admin, dns } = self;
        let (http, admin) = (http.map(|http| taken(HTTP, http)), admin.map(|admin| taken(ADMIN, admin)));
        let listeners = Listeners { https: taken(HTTPS, https)?, http: http.transpose()?, admin: admin.transpose()? };
        Ok((listeners, quic, dns))
    }

    /// The same sockets once more, with their labels, to be given to a successor.
    pub(super) fn kept(&self, config: &Config) -> Vec<(String, OwnedFd)> {
        let labels = labels(config);
        let label = |name| labels.iter().find(|(known, _)| *known == name).map(|(_, label)| label.clone());
        self.all().into_iter().filter_map(|(name, fd)| Some((label(name)?, fd.try_clone_to_owned().ok()?))).collect()
    }

    fn all(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let mut all = vec![(HTTPS, self.https.as_fd()), (QUIC, self.quic.as_fd())];
        all.extend(self.http.as_ref().map(|http| (HTTP, http.as_fd())));
        all.extend(self.admin.as_ref().map(|admin| (ADMIN, admin.as_fd())));
        all.extend(self.dns.iter().flat_map(|(udp, tcp)| [(DNS_UDP, udp.as_fd()), (DNS, tcp.as_fd())]));
        all
    }
}

/// TCP and UDP on one port number. With port 0, one that is free for both.
fn bind_both(
    address: SocketAddr,
    mut https: Option<TcpListener>,
    mut quic: Option<UdpSocket>,
) -> Result<(TcpListener, UdpSocket), BindError> {
    let mut tries = 0;
    loop {
        let tcp = https.take().map_or_else(|| bind_tcp(HTTPS, address), Ok)?;
        let at = tcp.local_addr().map_err(|source| BindError::Listen { what: HTTPS, address, source })?;
        match quic.take().map_or_else(|| UdpSocket::bind(at), Ok) {
            Ok(udp) => return Ok((tcp, udp)),
            Err(_) if address.port() == 0 && tries < 20 => tries += 1,
            Err(source) => return Err(BindError::Listen { what: QUIC, address: at, source }),
        }
    }
}

fn bind_tcp(what: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || -> std::io::Result<TcpListener> {
        let family = match address {
            SocketAddr::V4(_) => rustix::net::AddressFamily::INET,
            SocketAddr::V6(_) => rustix::net::AddressFamily::INET6,
        };
        let (kind, flags) = (rustix::net::SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        // A restart must not wait for old connections to be forgotten.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket.into())
    };
    bind().map_err(|source| BindError::Listen { what, address, source })
}

fn bind_dns(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let tcp = TcpListener::bind(address)?;
    let udp = UdpSocket::bind(tcp.local_addr()?)?;
    Ok((udp, tcp))
}
