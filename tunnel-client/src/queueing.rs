//! What is asked of the relay for deliveries that cannot be handed over, by path.

use std::collections::BTreeSet;
use std::str::FromStr;

use aws_lc_rs::digest;
use hookway_protocol::id::DeliveryId;
use hookway_protocol::message::{Rule, Share, is_below};

/// What becomes of a delivery while the client or its app is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnOffline {
    /// It is kept, and the sender told 202.
    #[default]
    Queue,
    /// The sender is told 503.
    Error,
}

/// When the sender is told that its delivery has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ack {
    /// When the app has answered, and what it did.
    #[default]
    App,
    /// When the relay has it on disk.
    Early,
}

/// A choice for all paths, or those below one: `early`, `/slow=early`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct At<T> {
    pub(crate) prefix: String,
    pub(crate) choice: T,
}

/// What is asked for an endpoint, or for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queueing {
    pub(crate) on_offline: Vec<At<OnOffline>>,
    pub(crate) ack: Vec<At<Ack>>,
    pub(crate) retry_5xx: Option<bool>,
}

impl FromStr for OnOffline {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "queue" => Ok(Self::Queue),
            "error" => Ok(Self::Error),
            _ => Err("queue or error, or PATH=queue, PATH=error"),
        }
    }
}

impl FromStr for Ack {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "app" => Ok(Self::App),
            "early" => Ok(Self::Early),
            _ => Err("app or early, or PATH=app, PATH=early"),
        }
    }
}

impl<T: FromStr<Err = &'static str>> FromStr for At<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (prefix, choice) = text.rsplit_once('=').unwrap_or(("", text));
        if !prefix.is_empty() && !prefix.starts_with('/') {
            return Err(format!("`{prefix}` is no path: it begins with /"));
        }
        // "/" is every path, as none is.
        let prefix = if prefix == "/" { "" } else { prefix };
        Ok(Self { prefix: prefix.to_owned(), choice: choice.parse()? })
    }
}

impl Queueing {
    /// The rules of an endpoint, or of all if its name is empty: one for each path that something is said of, so that
    /// deliveries to one app do not wait for another's. What is not said here, `rest` says.
    pub(crate) fn rules<'a>(
        &'a self,
        endpoint: &str,
        routes: impl Iterator<Item = &'a str>,
        rest: &'a Self,
    ) -> Vec<Rule> {
        let both = [self, rest];
        let mut prefixes: BTreeSet<&str> = routes.chain([""]).collect();
        for queueing in both {
            prefixes.extend(queueing.on_offline.iter().map(|at| at.prefix.as_str()));
            prefixes.extend(queueing.ack.iter().map(|at| at.prefix.as_str()));
        }
        let rule = |prefix: &str| Rule {
            endpoint: endpoint.to_owned(),
            prefix: prefix.to_owned(),
            refuse_offline: chosen(both.map(|queueing| &queueing.on_offline[..]), prefix) == OnOffline::Error,
            ack_early: chosen(both.map(|queueing| &queueing.ack[..]), prefix) == Ack::Early,
            retry_5xx: both.iter().find_map(|queueing| queueing.retry_5xx).unwrap_or_default(),
        };
        prefixes.into_iter().map(rule).collect()
    }
}

/// This machine's name.
fn machine() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    return std::env::var("COMPUTERNAME").unwrap_or_default();
}

/// The name of a client among those that share an endpoint. It is the same at each start, made of this machine, the
/// folder and where deliveries go, so that copies for it are its own; only one that takes turns has one for this run.
pub(crate) fn listener(share: Share, forwards: &str) -> String {
    let host: String = machine().chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    let tail = match share {
        Share::Balance => DeliveryId::now().to_string().to_lowercase(),
        Share::Takeover | Share::Copy => {
            let folder = std::env::current_dir().unwrap_or_default();
            let digest = digest::digest(&digest::SHA256, format!("{}\n{forwards}", folder.display()).as_bytes());
            digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
        }
    };
    format!("{host}-{}", &tail[tail.len().saturating_sub(8)..])
}

/// The choice for a path: an endpoint's own before the rest, the longest prefix first, the last of two.
fn chosen<T: Copy + Default>(all: [&[At<T>]; 2], path: &str) -> T {
    let best = |some: &[At<T>]| {
        let fitting = some.iter().filter(|at| is_below(path, &at.prefix));
        fitting.max_by_key(|at| at.prefix.len()).map(|at| at.choice)
    };
    all.into_iter().find_map(best).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queueing(on_offline: &[&str], ack: &[&str]) -> Queueing {
        Queueing {
            on_offline: on_offline.iter().map(|text| text.parse().expect("a choice")).collect(),
            ack: ack.iter().map(|text| text.parse().expect("a choice")).collect(),
            retry_5xx: None,
        }
    }

    #[test]
    fn the_longest_prefix_decides_and_the_endpoints_own_before_the_rest() {
        let rest = queueing(&["error", "/a=queue"], &["/a/slow=early"]);
        let own = queueing(&["/b=error"], &["app"]);
        let shown = |rules: Vec<Rule>| -> Vec<String> {
            let word = |yes, word| if yes { word } else { "" };
            let line =
                |rule: &Rule| format!("{}{}", word(rule.refuse_offline, "error "), word(rule.ack_early, "early"));
            rules.iter().map(|rule| format!("{:?} {}", rule.prefix, line(rule)).trim_end().to_owned()).collect()
        };
        let none = Queueing::default();
        assert_eq!(
            shown(none.rules("", ["/github"].into_iter(), &rest)),
            [r#""" error"#, r#""/a""#, r#""/a/slow" early"#, r#""/github" error"#]
        );
        assert_eq!(
            shown(own.rules("billing", [].into_iter(), &rest)),
            [r#""" error"#, r#""/a""#, r#""/a/slow""#, r#""/b" error"#]
        );
    }

    #[test]
    fn a_listener_that_gets_copies_is_known_again_and_one_that_takes_turns_is_not() {
        let (first, other) = (listener(Share::Copy, "localhost:3000"), listener(Share::Copy, "localhost:3001"));
        assert_eq!(first, listener(Share::Copy, "localhost:3000"));
        assert_ne!(first, other);
        assert_ne!(listener(Share::Balance, "localhost:3000"), listener(Share::Balance, "localhost:3000"));
        assert!(first.len() <= hookway_protocol::message::MAX_LISTENER && first.is_ascii(), "{first}");
    }

    #[test]
    fn what_is_no_choice_is_said() {
        assert!("a=queue".parse::<At<OnOffline>>().expect_err("no path").contains("begins with /"));
        assert!("later".parse::<At<OnOffline>>().expect_err("no choice").contains("queue or error"));
        assert_eq!("/=early".parse::<At<Ack>>(), Ok(At { prefix: String::new(), choice: Ack::Early }));
    }
}
