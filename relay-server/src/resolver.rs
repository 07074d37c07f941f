//! What DNS says of a name, to whoever asks the name servers of this machine, or another.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

/// A name server must have answered within this time, of which it gets two.
const ANSWERED_IN: Duration = Duration::from_secs(3);

/// So many name servers of a zone are asked, at so many addresses.
const MAX_SERVERS: usize = 4;

/// Looks names up. What it finds is not kept: it is asked for when somebody has just changed it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolver {
    /// Instead of those of this machine.
    servers: Vec<SocketAddr>,
}

/// Why nothing is known of a name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("this machine's name servers are not known: {0}")]
    Config(#[source] NetError),
    #[error("{name} cannot be looked up: {why}")]
    Failed { name: String, why: String },
}

impl Resolver {
    /// Asks this name server, or those of this machine.
    pub(crate) fn new(server: Option<SocketAddr>) -> Self {
        Self { servers: server.into_iter().collect() }
    }

    /// The texts of a name's TXT records, from the name servers of its zone themselves: others keep for long that there
    /// was none. All of them, for one may lag behind; and the others where those say nothing.
    pub(crate) async fn fresh_texts(&self, name: &str) -> Result<Vec<String>, LookupError> {
        let own = if self.servers.is_empty() { self.of_zone(name).await } else { vec![] };
        let texts = futures_util::future::join_all(own.iter().map(|own| own.texts(name))).await;
        let texts: Vec<_> = texts.into_iter().flatten().flatten().collect();
        if texts.is_empty() { self.texts(name).await } else { Ok(texts) }
    }

    /// What asks the name servers of the zone that a name is in, each by itself, as far as they are the Internet's.
    async fn of_zone(&self, name: &str) -> Vec<Self> {
        let mut zone = name;
        let names = loop {
            match self.name_servers(zone).await {
                Ok(names) if names.is_empty() => {}
                Ok(names) => break names,
                Err(_) => return vec![],
            }
            match zone.split_once('.') {
                Some((_, parent)) if parent.contains('.') => zone = parent,
                _ => return vec![],
            }
        };
        let addresses = names.iter().take(MAX_SERVERS).map(|name| self.addresses(name));
        let addresses = futures_util::future::join_all(addresses).await.into_iter().flatten().flatten();
        let addresses = addresses.filter(is_public).take(MAX_SERVERS);
        addresses.map(|address| Self { servers: vec![SocketAddr::new(address, 53)] }).collect()
    }

    /// The texts of a name's TXT records.
    async fn texts(&self, name: &str) -> Result<Vec<String>, LookupError> {
        let text = |(_, data)| match data {
            RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
            _ => None,
        };
        Ok(self.look(name, RecordType::TXT).await?.into_iter().filter_map(text).collect())
    }

    /// The name that a name is another name of.
    pub(crate) async fn alias(&self, name: &str) -> Result<Option<String>, LookupError> {
        let alias = |(_, data)| match data {
            RData::CNAME(name) => Some(shown(&name)),
            _ => None,
        };
        Ok(self.look(name, RecordType::CNAME).await?.into_iter().find_map(alias))
    }

    /// The name servers that a name is delegated to.
    pub(crate) async fn name_servers(&self, name: &str) -> Result<Vec<String>, LookupError> {
        // Those of a name that this is only another name of have no say here.
        let server = |(of, data)| match data {
            RData::NS(server) if shown(&of) == name.to_ascii_lowercase() => Some(shown(&server)),
            _ => None,
        };
        Ok(self.look(name, RecordType::NS).await?.into_iter().filter_map(server).collect())
    }

    /// The addresses of a name, through its aliases.
    pub(crate) async fn addresses(&self, name: &str) -> Result<BTreeSet<IpAddr>, LookupError> {
        let (v4, v6) = tokio::join!(self.look(name, RecordType::A), self.look(name, RecordType::AAAA));
        let address = |(_, data): (Name, RData)| data.ip_addr();
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            // One of them is enough.
            (v4, v6) => Ok(v4.into_iter().chain(v6).flatten().filter_map(address).collect()),
        }
    }

    /// The records of that type, and whose they are; none, when there is none.
    async fn look(&self, name: &str, kind: RecordType) -> Result<Vec<(Name, RData)>, LookupError> {
        let failed = |why: String| LookupError::Failed { name: name.to_owned(), why };
        let mut asked = Name::from_ascii(name).map_err(|error| failed(error.to_string()))?;
        // No search list: it is a whole name.
        asked.set_fqdn(true);
        match self.resolver()?.lookup(asked, kind).await {
            Ok(found) => Ok(found.answers().iter().map(|it| (it.name.clone(), it.data.clone())).collect()),
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(failed(in_words(&error))),
        }
    }

    /// Made anew each time: a machine's name servers change, and nothing is to be remembered.
    fn resolver(&self) -> Result<TokioResolver, LookupError> {
        let provider = TokioRuntimeProvider::default();
        let server = |address: &SocketAddr| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = address.port());
            server
        };
        let mut builder = if self.servers.is_empty() {
            TokioResolver::builder(provider).map_err(LookupError::Config)?
        } else {
            let servers = self.servers.iter().map(server).collect();
            TokioResolver::builder_with_config(ResolverConfig::from_parts(None, vec![], servers), provider)
        };
        let options: &mut ResolverOpts = builder.options_mut();
        (options.timeout, options.attempts, options.cache_size) = (ANSWERED_IN, 2, 0);
        options.use_hosts_file = ResolveHosts::Never;
        builder.build().map_err(LookupError::Config)
    }
}

/// Whether an address is one of the Internet's.
#[must_use]
pub fn is_public(address: &IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => {
            // Shared by a provider's customers, for protocols, for measuring, reserved (RFC 6890).
            let is_special = match ip.octets() {
                [0 | 240.., ..] | [192, 0, 0, _] | [198, 18 | 19, ..] => true,
                [100, second, ..] => second & 0xc0 == 64,
                _ => false,
            };
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || is_special)
        }
        // Global unicast, and no IPv4 inside.
        IpAddr::V6(ip) => ip.segments()[0] & 0xe000 == 0x2000 && ip.segments()[0] != 0x2002,
    }
}

/// Why there was no answer, for a person.
fn in_words(error: &NetError) -> String {
    match error {
        NetError::Timeout => "its name servers do not answer".into(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("its name servers answer {code}"),
        NetError::Dns(DnsError::NoRecordsFound(none)) => format!("its name servers answer {}", none.response_code),
        error => error.to_string(),
    }
}

/// Without the dot at its end, in lower case.
fn shown(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("203.0.113.5", true)]
    #[case("2a00::5", true)]
    #[case("10.0.0.53", false)]
    #[case("127.0.0.1", false)]
    #[case("100.64.0.1", false)]
    #[case("169.254.169.254", false)]
    #[case("0.1.2.3", false)]
    #[case("198.18.0.1", false)]
    #[case("255.255.255.255", false)]
    #[case("::ffff:10.0.0.53", false)]
    #[case("fd00::5", false)]
    #[case("2002:a00:35::1", false)]
    fn only_the_internets_addresses_are_public(#[case] address: IpAddr, #[case] expected: bool) {
        assert_eq!(is_public(&address), expected);
    }
}
