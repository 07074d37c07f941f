//! How the values of flags are read.

use hookway_protocol::host::{EndpointName, Host};
use hookway_protocol::message::{Domain, MAX_LISTENER, Share};
use hookway_protocol::settings::nearest;
use http::{HeaderName, HeaderValue};

use super::Cli;
use crate::filter::Filter;
use crate::forwarder::HostHeader;
use crate::target::Target;

/// A target, or what was probably meant.
pub(crate) fn target(text: &str) -> Result<Target, String> {
    text.parse::<Target>().map_err(|error| {
        let command = <Cli as clap::CommandFactory>::command();
        let nearest = nearest(text, command.get_subcommands().map(clap::Command::get_name));
        match nearest.filter(|_| !text.contains([':', '/'])) {
            Some(command) => format!("{error}; did you mean the command `{command}`?"),
            None => error.to_string(),
        }
    })
}

pub(crate) fn route(text: &str) -> Result<(String, Target), String> {
    let (prefix, target) = text.split_once('=').ok_or("a route is PATH=TARGET, such as /stripe=3001")?;
    if !prefix.starts_with('/') || prefix.contains(['?', '#', ' ']) {
        return Err("a route's path begins with / and has no query".into());
    }
    Ok((prefix.to_owned(), target.parse::<Target>().map_err(|error| error.to_string())?))
}

/// `HOST`, or `HOST=NAME`.
pub(crate) fn domain(text: &str) -> Result<Domain, String> {
    let (host, endpoint) = text.split_once('=').map_or((text, None), |(host, name)| (host, Some(name)));
    if !host.is_ascii() {
        return Err("write an international name as DNS has it: xn--…".into());
    }
    let parsed = Host::parse(host).ok().filter(|parsed| parsed.is_domain_name() && !host.contains(':'));
    let what = "a host name of your own is one such as hooks.example.com: no URL, address, port or *";
    let parsed = parsed.ok_or(what)?;
    let endpoint = endpoint.map(str::parse::<EndpointName>).transpose().map_err(|error| error.to_string())?;
    let endpoint = endpoint.map(|name| name.to_string()).unwrap_or_default();
    Ok(Domain { host: parsed.to_string(), endpoint })
}

pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("a header field is 'Name: value'")?;
    let name = name.trim().parse().map_err(|_| "the name has a character that no header has")?;
    let mut value: HeaderValue = value.trim().parse().map_err(|_| "the value has a character that no header has")?;
    // It may be a secret: not to be shown by `Debug`.
    value.set_sensitive(true);
    Ok((name, value))
}

pub(crate) fn share(text: &str) -> Result<Share, String> {
    match text {
        "takeover" => Ok(Share::Takeover),
        "balance" => Ok(Share::Balance),
        "copy" => Ok(Share::Copy),
        _ => Err("takeover, balance or copy".into()),
    }
}

pub(crate) fn listener(text: &str) -> Result<String, String> {
    let is_name = (1..=MAX_LISTENER).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    is_name.then(|| text.to_owned()).ok_or_else(|| format!("a name is 1 to {MAX_LISTENER} letters, digits and signs"))
}

/// `2xx` or `404`.
pub(crate) fn expected(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let fits = |byte: u8, first: bool| (byte.is_ascii_digit() && (!first || byte != b'0')) || (!first && byte == b'x');
    match lower.as_bytes() {
        [a, b, c] if fits(*a, true) && fits(*b, false) && fits(*c, false) => Ok(lower),
        _ => Err(format!("`{text}` is no status, such as 2xx or 404")),
    }
}

/// `path=value`.
pub(crate) fn assignment(text: &str) -> Result<(String, String), String> {
    let (path, value) = text.split_once('=').ok_or("it is PATH=VALUE, such as data.object.amount=500")?;
    if path.is_empty() || path.split('.').any(str::is_empty) {
        return Err("the path is names and numbers with points between, such as data.object.amount".into());
    }
    Ok((path.to_owned(), value.to_owned()))
}

pub(crate) fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    let seconds = text.parse::<i64>().ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    seconds.or_else(|| text.parse().ok()).ok_or_else(|| "a time is 2026-11-21T10:00:00Z, or seconds since 1970".into())
}

/// A term of a filter that takes this value.
pub(crate) fn term(key: &str, value: &str) -> Result<String, String> {
    let term = format!("{key}:\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
    term.parse::<Filter>().map(|_| term).map_err(|error| error.message)
}

pub(crate) fn time(text: &str) -> Result<String, String> {
    term("since", text)
}

pub(crate) fn host_header(text: &str) -> Result<HostHeader, String> {
    Ok(match text {
        "keep" => HostHeader::Keep,
        "rewrite" => HostHeader::Rewrite,
        value => HostHeader::Value(value.parse().map_err(|_| "keep, rewrite, or a host name")?),
    })
}
