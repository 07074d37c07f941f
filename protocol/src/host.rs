//! Host names: what a sender addressed, and the endpoint that it means.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A host name as senders mean it: lower case, no port, no trailing dot (RFC 3986 §3.2.2, RFC 9110 §4.2.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host<'a>(Cow<'a, str>);

/// Why an authority names no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHost {
    /// Nothing before the port.
    #[error("the host is empty")]
    Empty,
    /// Over 253 bytes, or a label over 63.
    #[error("the host is longer than DNS allows")]
    TooLong,
    /// A byte that no host name has; international names come as A-labels (`xn--…`).
    #[error("the host has a character that no host name has")]
    Character,
    /// What follows the colon is no port.
    #[error("the port is not a number from 0 to 65535")]
    Port,
}

impl<'a> Host<'a> {
    /// The host of an authority such as `Billing.example.com.:443`. Allocates only to lower a letter's case.
    ///
    /// # Errors
    /// Says what is wrong with the authority; user information (`u@host`) is refused with it.
    pub fn parse(authority: &'a str) -> Result<Self, InvalidHost> {
        let (name, port) = split_port(authority)?;
        if let Some(port) = port
            && (port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err())
        {
            return Err(InvalidHost::Port);
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            return Err(InvalidHost::Empty);
        }
        if name.len() > 253 {
            return Err(InvalidHost::TooLong);
        }
        if !name.starts_with('[') {
            check_labels(name)?;
        }
        Ok(Self(if name.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        }))
    }

    /// The host as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a name that DNS could have for everybody: of several labels, and no address.
    #[must_use]
    pub fn is_domain_name(&self) -> bool {
        let top = self.0.rsplit('.').next().unwrap_or_default();
        self.0.contains('.') && !self.0.starts_with('[') && !top.bytes().all(|b| b.is_ascii_digit())
    }

    /// The same host, owned.
    #[must_use]
    pub fn into_owned(self) -> Host<'static> {
        Host(Cow::Owned(self.0.into_owned()))
    }

    /// `NAME` of `NAME.DOMAIN`, when this host is directly below the domain.
    #[must_use]
    pub fn below(&self, domain: &Host<'_>) -> Option<&str> {
        let name = self.0.strip_suffix(domain.as_str())?.strip_suffix('.')?;
        (!name.contains('.')).then_some(name)
    }
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), InvalidHost> {
    if authority.starts_with('[') {
        let end = authority.find(']').ok_or(InvalidHost::Character)?;
        let (name, rest) = authority.split_at(end + 1);
        let address = &name[1..end];
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(InvalidHost::Character);
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((name, Some(port))),
            None if rest.is_empty() => Ok((name, None)),
            None => Err(InvalidHost::Character),
        };
    }
    Ok(match authority.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (authority, None),
    })
}

fn check_labels(name: &str) -> Result<(), InvalidHost> {
    for label in name.split('.') {
        if label.is_empty() || !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(InvalidHost::Character);
        }
        if label.len() > 63 {
            return Err(InvalidHost::TooLong);
        }
    }
    Ok(())
}

/// The name of an endpoint: one DNS label of letters, digits and inner hyphens, in lower case (RFC 1123 §2.1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointName(Arc<str>);

/// Why a text is no endpoint name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint name is 1 to 63 letters a-z, digits and hyphens, with no hyphen first or last, and not xn--")]
pub struct InvalidName;

impl EndpointName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EndpointName {
    type Err = InvalidName;

    /// Upper-case letters are lowered; everything else must follow the rules.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let text = text.to_ascii_lowercase();
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-')
            // A-labels look like other people's names (RFC 5891); nobody needs one for a webhook.
            && text.get(2..4) != Some("--");
        fits.then(|| Self(text.into())).ok_or(InvalidName)
    }
}

impl Borrow<str> for EndpointName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("Billing.Example.COM", "billing.example.com")]
    #[case("billing.example.com:443", "billing.example.com")]
    #[case("billing.example.com.", "billing.example.com")]
    #[case("billing.example.com.:8443", "billing.example.com")]
    #[case("127.0.0.1:80", "127.0.0.1")]
    #[case("[::1]:80", "[::1]")]
    #[case("xn--bcher-kva.example", "xn--bcher-kva.example")]
    fn hosts(#[case] authority: &str, #[case] host: &str) {
        assert_eq!(Host::parse(authority).map(|h| h.to_string()), Ok(host.to_owned()));
    }

    #[rstest]
    #[case("", InvalidHost::Empty)]
    #[case(":443", InvalidHost::Empty)]
    #[case(".", InvalidHost::Empty)]
    #[case("a..b", InvalidHost::Character)]
    #[case("a b", InvalidHost::Character)]
    #[case("u@host", InvalidHost::Character)]
    #[case("bücher.example", InvalidHost::Character)]
    #[case("host:x", InvalidHost::Port)]
    #[case("host:", InvalidHost::Port)]
    #[case("host:+80", InvalidHost::Port)]
    #[case("host:65536", InvalidHost::Port)]
    #[case("host:80:80", InvalidHost::Port)]
    #[case("[::1", InvalidHost::Character)]
    #[case("[::1]x", InvalidHost::Character)]
    #[case("[evil]", InvalidHost::Character)]
    fn refused(#[case] authority: &str, #[case] why: InvalidHost) {
        assert_eq!(Host::parse(authority), Err(why));
    }

    #[rstest]
    #[case("a.hooks.test", Some("a"))]
    #[case("hooks.test", None)]
    #[case("b.a.hooks.test", None)]
    #[case("ahooks.test", None)]
    #[case("a.hooks.test.evil", None)]
    fn below(#[case] host: &str, #[case] name: Option<&str>) {
        let domain = Host::parse("hooks.test").expect("a host");
        assert_eq!(Host::parse(host).expect("a host").below(&domain), name);
    }

    #[rstest]
    #[case("billing", true)]
    #[case("Billing-2", true)]
    #[case("a", true)]
    #[case("", false)]
    #[case("-a", false)]
    #[case("a-", false)]
    #[case("a.b", false)]
    #[case("a_b", false)]
    #[case("xn--bcher-kva", false)]
    #[case("ab--c", false)]
    #[case("0123456789012345678901234567890123456789012345678901234567890123", false)]
    fn names(#[case] text: &str, #[case] fits: bool) {
        assert_eq!(text.parse::<EndpointName>().is_ok(), fits);
    }

    #[rstest]
    #[case("hooks.example.com", true)]
    #[case("xn--bcher-kva.example", true)]
    #[case("localhost", false)]
    #[case("203.0.113.5", false)]
    #[case("[2001:db8::5]", false)]
    fn domain_names_are_no_addresses(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(Host::parse(text).expect("a host").is_domain_name(), expected);
    }
}
