//! Names that nobody may ask for, and random ones for those who do not mind.

use hookway_protocol::host::EndpointName;

/// Names that would pass for the operator's own, or that software asks for by itself.
const RESERVED: [&str; 45] = [
    "abuse",
    "account",
    "accounts",
    "acme",
    "admin",
    "administrator",
    "api",
    "app",
    "auth",
    "autoconfig",
    "autodiscover",
    "billing-portal",
    "blog",
    "cdn",
    "dashboard",
    "dns",
    "docs",
    "ftp",
    "help",
    "hostmaster",
    "hookway",
    "imap",
    "info",
    "isatap",
    "localhost",
    "login",
    "mail",
    "mta-sts",
    "mx",
    "news",
    "noc",
    "ns1",
    "ns2",
    "pop",
    "postmaster",
    "relay",
    "root",
    "security",
    "smtp",
    "status",
    "support",
    "webmaster",
    "wpad",
    "www",
    "www1",
];

const FIRST: [&str; 32] = [
    "amber", "brave", "brisk", "calm", "clever", "coral", "crisp", "dapper", "eager", "early", "fleet", "gentle",
    "golden", "happy", "indigo", "jolly", "keen", "lively", "lucky", "mellow", "merry", "misty", "noble", "olive",
    "plucky", "quick", "quiet", "rapid", "silver", "sunny", "swift", "vivid",
];
const SECOND: [&str; 32] = [
    "badger", "beacon", "brook", "canyon", "cedar", "comet", "dune", "falcon", "fern", "finch", "fjord", "grove",
    "harbor", "heron", "island", "lagoon", "lantern", "maple", "meadow", "otter", "pebble", "pine", "prairie", "quail",
    "raven", "ridge", "river", "sparrow", "summit", "thistle", "tundra", "willow",
];

/// Whether the operator keeps this name.
pub(super) fn is_reserved(name: &EndpointName) -> bool {
    RESERVED.contains(&name.as_str())
}

/// A readable name such as `brisk-otter-4821`.
pub(super) fn random() -> EndpointName {
    let mut bytes = [0; 6];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    let [a, b, rest @ ..] = bytes;
    let word = |list: [&'static str; 32], byte: u8| list[usize::from(byte) % 32];
    let number = u32::from_be_bytes(rest) % 10_000;
    let name = format!("{}-{}-{number:04}", word(FIRST, a), word(SECOND, b));
    name.parse().expect("words and digits follow the rules")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_names_follow_the_rules_and_differ() {
        let names: std::collections::HashSet<_> = (0..100).map(|_| random()).collect();
        assert!(names.len() > 95);
    }

    #[test]
    fn reserved_names_are_names() {
        for name in RESERVED {
            assert!(is_reserved(&name.parse().expect("a name")), "{name}");
        }
        assert!(!is_reserved(&"billing".parse().expect("a name")));
    }
}
