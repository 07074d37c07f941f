//! Where deliveries go: an app that the person at this machine named.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;
use http::uri::{PathAndQuery, Scheme};

/// The local app: scheme, host, port and perhaps a path in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    tls: bool,
    host: String,
    port: u16,
    /// Without a slash at the end; empty for none.
    prefix: String,
}

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// It is neither a port nor an address.
    #[error("a target is a port (3000, 3000/prefix), host:port, or http(s)://host:port/prefix")]
    Form,
    /// A cloud's metadata service gives its machine's secrets to whoever can ask it.
    #[error("{0} is a cloud's metadata address; webhooks are not put to it")]
    Metadata(String),
}

impl Target {
    /// Whether the app speaks TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host to connect to.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// The port to connect to.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The `Host` that the app would have from a browser beside it.
    #[must_use]
    pub fn authority(&self) -> String {
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// Scheme, host and port.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    /// The request target in origin form, the prefix in front. Only path and query can be chosen from outside.
    pub(crate) fn uri(&self, target: &PathAndQuery) -> Option<Uri> {
        if self.prefix.is_empty() || target == "*" {
            return Some(Uri::from(target.clone()));
        }
        PathAndQuery::try_from(format!("{}{target}", self.prefix)).ok().map(Uri::from)
    }
}

/// Whether a cloud's metadata service is there.
pub(crate) fn is_metadata(ip: IpAddr) -> bool {
    const KNOWN: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];
    KNOWN.contains(&ip.to_canonical())
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let start = &text[..text.find('/').unwrap_or(text.len())];
        let full = match text {
            _ if text.contains("://") => text.to_owned(),
            _ if start.bytes().all(|b| b.is_ascii_digit()) => format!("http://localhost:{text}"),
            // A word alone is a mistyped command sooner than a host.
            _ if !start.contains(':') => return Err(InvalidTarget::Form),
            _ => format!("http://{text}"),
        };
        let uri: Uri = full.parse().map_err(|_| InvalidTarget::Form)?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(InvalidTarget::Form),
        };
        let authority = uri.authority().ok_or(InvalidTarget::Form)?;
        let path = uri.path_and_query();
        if authority.as_str().contains('@') || authority.host().is_empty() || path.is_some_and(|p| p.query().is_some())
        {
            return Err(InvalidTarget::Form);
        }
        let port = match (authority.port_u16(), authority.as_str().len() > authority.host().len()) {
            (Some(0), _) | (None, true) => return Err(InvalidTarget::Form),
            (Some(port), _) => port,
            (None, false) if tls => 443,
            (None, false) => 80,
        };
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        if host == "metadata.google.internal" || ip.as_ref().is_ok_and(|ip| is_metadata(*ip)) {
            return Err(InvalidTarget::Metadata(host));
        }
        // Some resolvers take 2852039166 and 0xa9fea9fe for addresses; people do not.
        let last = host.rsplit('.').next().unwrap_or_default();
        if ip.is_err() && (last.is_empty() || last.starts_with(|c: char| c.is_ascii_digit())) {
            return Err(InvalidTarget::Form);
        }
        let prefix = path.map_or("", PathAndQuery::path).trim_end_matches('/').to_owned();
        Ok(Self { tls, host, port, prefix })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("3000", "http://localhost:3000")]
    #[case("3000/hooks", "http://localhost:3000/hooks")]
    #[case("app.test:8080", "http://app.test:8080")]
    #[case("app:8080/hooks", "http://app:8080/hooks")]
    #[case("https://localhost:8443/hooks/", "https://localhost:8443/hooks")]
    #[case("http://[::1]:3000", "http://[::1]:3000")]
    #[case("https://app.test", "https://app.test")]
    fn targets(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(text.parse::<Target>().map(|t| t.to_string()), Ok(shown.to_owned()));
    }

    #[rstest]
    #[case("")]
    #[case("0")]
    #[case("99999")]
    #[case("ftp://a:1")]
    #[case("http://u@h:1")]
    #[case("http://a:1/?q")]
    #[case("http://169.254.169.254/latest")]
    #[case("169.254.169.254.:80")]
    #[case("2852039166:80")]
    #[case("0xa9fea9fe:80")]
    #[case("http://[::ffff:169.254.169.254]")]
    #[case("logut")]
    fn refused(#[case] text: &str) {
        assert!(text.parse::<Target>().is_err());
    }

    #[rstest]
    #[case("3000", "//evil.test/x?y", "//evil.test/x?y")]
    #[case("3000", "/@evil", "/@evil")]
    #[case("http://localhost:1/p", "/a/../b", "/p/a/../b")]
    #[case("http://localhost:1/p", "*", "*")]
    fn only_path_and_query_come_from_outside(#[case] target: &str, #[case] path: &str, #[case] uri: &str) {
        let made = target.parse::<Target>().expect("a target").uri(&path.parse().expect("a path")).expect("a uri");
        assert_eq!(made.to_string(), uri);
        assert_eq!(made.authority(), None);
    }
}
