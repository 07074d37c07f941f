//! The PROXY protocol, version 2 (<https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>): a load balancer
//! that passes TLS on says first whose connection it is.

use std::net::{IpAddr, SocketAddr};

use ppp::v2::{Addresses, Command, Header, PROTOCOL_PREFIX, ParseError, Protocol};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Version, command and length are in as many bytes.
const FIXED: usize = 16;
/// A header with all that load balancers add is shorter.
const MAX_REST: usize = 2048;

/// A trusted peer does not say whose connection it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("the connection ended before the PROXY header")]
    Ended(#[from] std::io::Error),
    #[error("it does not begin with a PROXY header of version 2")]
    None,
    #[error("the PROXY header has {0} bytes")]
    TooLong(usize),
    #[error("the PROXY header is broken: {0}")]
    Broken(ParseError),
    #[error("the PROXY header is not of a TCP connection")]
    NotTcp,
    #[error("the PROXY header did not come in time")]
    TimedOut,
}

/// Reads the header that begins a connection of a trusted peer: whose it is. The peer's own when it is for itself, as
/// when it looks whether the relay is well.
pub(super) async fn source(stream: &mut TcpStream, peer: SocketAddr) -> Result<SocketAddr, HeaderError> {
    let mut header = [0; FIXED + MAX_REST];
    // Not a byte more: what follows is the sender's.
    stream.read_exact(&mut header[..FIXED]).await?;
    if !header.starts_with(PROTOCOL_PREFIX) {
        return Err(HeaderError::None);
    }
    let rest = usize::from(u16::from_be_bytes([header[FIXED - 2], header[FIXED - 1]]));
    let all = header.get_mut(..FIXED + rest).ok_or(HeaderError::TooLong(rest))?;
    stream.read_exact(&mut all[FIXED..]).await?;
    let header = Header::try_from(&all[..]).map_err(HeaderError::Broken)?;
    let at = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
    match (header.command, header.protocol, header.addresses) {
        (Command::Local, ..) => Ok(peer),
        (Command::Proxy, Protocol::Stream, Addresses::IPv4(of)) => Ok(at(of.source_address.into(), of.source_port)),
        (Command::Proxy, Protocol::Stream, Addresses::IPv6(of)) => Ok(at(of.source_address.into(), of.source_port)),
        _ => Err(HeaderError::NotTcp),
    }
}
