//! Where a request comes from: its connection's peer, or whom a proxy names that the operator trusts.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::sender::Sender;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Proxies between the sender and the relay that are looked at.
const MAX_HOPS: usize = 16;

/// Where a request comes from.
#[derive(Debug)]
pub(super) struct Origin<'a> {
    /// The sender.
    pub(super) node: Cow<'a, Node>,
    /// Whether the sender spoke HTTPS, to the relay or to the proxy in front of it.
    pub(super) https: bool,
}

/// A sender's address as it is told: made once for all requests of a connection, but for those of a proxy.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) ip: IpAddr,
    pub(super) text: String,
    /// The sender and the proxies after it, for `X-Forwarded-For`.
    pub(super) chain: HeaderValue,
    /// The sender as RFC 7239 §6 writes it.
    pub(super) quoted: String,
    /// The proxies after it, as RFC 7239 §4 adds them.
    pub(super) proxies: String,
}

impl Node {
    /// The sender, and the proxies that its request came through.
    fn new(ip: IpAddr, proxies: &[IpAddr]) -> Self {
        let text = ip.to_string();
        let chain = proxies.iter().fold(text.clone(), |chain, proxy| chain + ", " + &proxy.to_string());
        Self {
            ip,
            chain: HeaderValue::from_str(&chain).expect("digits, points, colons and commas"),
            quoted: quoted(ip),
            proxies: proxies.iter().map(|proxy| format!(", for={}", quoted(*proxy))).collect(),
            text,
        }
    }
}

fn quoted(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("\"[{ip}]\"") } else { ip.to_string() }
}

impl From<IpAddr> for Node {
    fn from(ip: IpAddr) -> Self {
        Self::new(ip, &[])
    }
}

impl<'a> Origin<'a> {
    /// Where a request of a connection comes from. What its fields say of that counts only where the peer is trusted,
    /// and only as far as those are that say it: a sender can put anything in front.
    pub(super) fn of(sender: &'a Sender, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let https = sender.tls.is_some();
        if !sender.is_proxy {
            return Self { node: Cow::Borrowed(&sender.node), https };
        }
        let proto = headers.get_all(X_FORWARDED_PROTO).iter().next_back();
        let proto = proto.and_then(|value| backwards(value).next().flatten());
        let https = match proto {
            Some(proto) if proto.eq_ignore_ascii_case("https") => true,
            Some(proto) if proto.eq_ignore_ascii_case("http") => false,
            _ => https,
        };
        let named = headers.get_all(X_FORWARDED_FOR).iter().rev().flat_map(backwards).map(|part| address(part?));

        let mut chain = vec![sender.node.ip];
        for ip in named.take(MAX_HOPS).map_while(|ip| ip) {
            chain.push(ip);
            if !is_in(trusted, ip) {
                break;
            }
        }
        let client = chain.pop().expect("the peer is there");
        chain.reverse();
        Self { node: Cow::Owned(Node::new(client, &chain)), https }
    }
}

/// Whether an address is in one of the networks.
pub(super) fn is_in(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|net| net.contains(&ip))
}

/// The parts of a list, the last first; none for what is no text. In bytes: what a sender put in front of the proxy's own
/// word must not hide that.
fn backwards(value: &HeaderValue) -> impl Iterator<Item = Option<&str>> {
    value.as_bytes().rsplit(|byte| *byte == b',').map(|part| std::str::from_utf8(part).ok().map(str::trim))
}

/// An address as proxies write it, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    ip.map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("192.0.2.1", Some("192.0.2.1"))]
    #[case(" 192.0.2.1:4711", Some("192.0.2.1"))]
    #[case("2001:db8::1", Some("2001:db8::1"))]
    #[case("[2001:db8::1]", Some("2001:db8::1"))]
    #[case("\"[2001:db8::1]:80\"", Some("2001:db8::1"))]
    #[case("::ffff:192.0.2.1", Some("192.0.2.1"))]
    #[case("unknown", None)]
    #[case("", None)]
    #[case("192.0.2.1 192.0.2.2", None)]
    fn addresses(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(address(text), expected.map(|ip| ip.parse().expect("an address")));
    }

    #[test]
    fn what_stands_in_front_hides_nothing() {
        let value = HeaderValue::from_bytes(b"\xff, 203.0.113.7 ,\x80\xff").expect("a value");
        assert_eq!(backwards(&value).collect::<Vec<_>>(), [None, Some("203.0.113.7"), None]);
    }

    #[test]
    fn a_sender_behind_proxies_is_told_in_both_ways() {
        let [ip, one, two]: [IpAddr; 3] =
            ["2001:db8::1", "192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().expect("an address"));
        let node = Node::new(ip, &[one, two]);
        assert_eq!(node.chain, "2001:db8::1, 192.0.2.1, 192.0.2.2");
        assert_eq!(node.quoted.clone() + &node.proxies, "\"[2001:db8::1]\", for=192.0.2.1, for=192.0.2.2");
    }
}
