//! Who sends: a network, or a provider's published addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::LazyLock;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The presets: addresses that providers say their webhooks come from.
pub static PRESETS: LazyLock<BTreeMap<String, Preset>> =
    LazyLock::new(|| toml::from_str(include_str!("presets.toml")).expect("a test reads it, too"));

/// A provider's addresses.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// The page that says so.
    pub source: String,
    /// When it was last seen to say so, as year and month.
    pub seen: String,
    /// The networks.
    pub ranges: Vec<IpNet>,
}

/// Some of those who send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A network, or one address.
    Net(IpNet),
    /// A provider, by its name among the [`PRESETS`].
    Preset(String),
    /// Everybody.
    All,
}

/// It is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a source is an address, a network such as 192.0.2.0/24, or one of: all, {}", known())]
pub struct InvalidSource;

fn known() -> String {
    PRESETS.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

impl Source {
    /// Whether an address is among them. One that is an IPv4 address in an IPv6 one is that IPv4 address.
    #[must_use]
    pub fn has(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match self {
            Self::Net(net) => net.contains(&ip),
            Self::Preset(name) => {
                PRESETS.get(name).is_some_and(|preset| preset.ranges.iter().any(|net| net.contains(&ip)))
            }
            Self::All => true,
        }
    }
}

impl FromStr for Source {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        if text == "all" {
            return Ok(Self::All);
        }
        if PRESETS.contains_key(text) {
            return Ok(Self::Preset(text.to_owned()));
        }
        network(text).map(Self::Net).ok_or(InvalidSource)
    }
}

/// A network, or one address. Of IPv4 addresses in IPv6 ones, those IPv4 addresses: as they are they match nobody.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?.trunc();
    match net.addr().to_canonical() {
        ip @ IpAddr::V4(_) if net.addr().is_ipv6() => IpNet::new(ip, net.prefix_len() - 96).ok(),
        _ => Some(net),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Preset(name) => f.write_str(name),
            Self::All => f.write_str("all"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("192.0.2.0/24", "192.0.2.9", true)]
    #[case("192.0.2.0/24", "192.0.3.9", false)]
    #[case("192.0.2.7/24", "192.0.2.9", true)]
    #[case("192.0.2.7", "192.0.2.7", true)]
    #[case("192.0.2.7", "::ffff:192.0.2.7", true)]
    #[case("::ffff:192.0.2.7", "192.0.2.7", true)]
    #[case("::ffff:192.0.2.0/120", "192.0.2.9", true)]
    #[case("::ffff:192.0.2.0/120", "192.0.3.9", false)]
    #[case("::ffff:0.0.0.0/96", "192.0.2.9", true)]
    #[case("2001:db8::/32", "2001:db8:1::1", true)]
    #[case("2001:db8::/32", "192.0.2.7", false)]
    #[case("all", "2001:db8::1", true)]
    #[case("github", "140.82.115.1", true)]
    #[case("github", "192.0.2.7", false)]
    fn who_is_among_them(#[case] source: &str, #[case] ip: &str, #[case] is_in: bool) {
        let source: Source = source.parse().expect("a source");
        assert_eq!(source.has(ip.parse().expect("an address")), is_in);
        assert_eq!(source.to_string().parse(), Ok(source));
    }

    #[rstest]
    #[case("")]
    #[case("github ")]
    #[case("GitHub")]
    #[case("192.0.2.0/33")]
    #[case("192.0.2")]
    #[case("example.com")]
    fn what_is_none(#[case] text: &str) {
        let error = text.parse::<Source>().expect_err("none").to_string();
        assert!(error.contains("one of: all, ") && error.contains("github"), "{error}");
    }

    #[test]
    fn the_presets_are_networks_of_the_internet() {
        assert!(PRESETS.len() >= 2);
        for (name, preset) in PRESETS.iter() {
            assert!(!preset.ranges.is_empty() && preset.source.starts_with("https://"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
            assert_eq!(preset.seen.len(), 7, "{name}: year and month");
            assert!(include_str!("../../../README.md").contains(&format!("`{name}`")), "{name} is not in the README");
            for net in &preset.ranges {
                assert_eq!(*net, net.trunc(), "{name}");
                assert!(crate::is_public(&net.addr()), "{name}: {net}");
                let least = if net.addr().is_ipv4() { 16 } else { 24 };
                assert!(net.prefix_len() >= least, "{name}: {net} is half the internet");
            }
        }
    }
}
