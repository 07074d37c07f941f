//! Flags of `hookway-relay init`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use hookway_protocol::host::Host;

use super::run::host;
use super::{AcmeChallenge, Tls};

/// What a new configuration says.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// Endpoints are host names directly below this one: hooks.example.com
    #[arg(long, value_parser = domain)]
    pub domain: Host<'static>,
    /// Where to write it
    #[arg(id = "output", long = "config", value_name = "FILE", default_value = "/etc/hookway/relay.toml")]
    pub output: PathBuf,
    /// Where certificates come from
    #[arg(long, default_value = "acme")]
    pub tls: Tls,
    /// Whom the CA writes to
    #[arg(long, value_name = "MAIL", value_parser = mail)]
    pub acme_email: Option<String>,
    /// How the CA is shown that the names are yours
    #[arg(long, default_value = "dns-01")]
    pub acme_challenge: AcmeChallenge,
    /// Where the relay keeps what survives a restart
    #[arg(long, value_name = "DIR", default_value = "/var/lib/hookway")]
    pub data_dir: PathBuf,
    /// The machine's public address, for the records; may be repeated
    #[arg(long, value_name = "IP", value_parser = address)]
    pub address: Vec<IpAddr>,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// One that others can look up.
fn domain(text: &str) -> Result<Host<'static>, String> {
    let parsed = host(text)?;
    let labels_fit = parsed.as_str().split('.').all(|label| !label.starts_with('-') && !label.ends_with('-'));
    let fits = parsed.is_domain_name() && labels_fit && !text.contains(':');
    fits.then_some(parsed).ok_or_else(|| "a domain is a name such as hooks.example.com".into())
}

fn mail(text: &str) -> Result<String, String> {
    let fits = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
        && !text.contains(|c: char| c.is_control() || c.is_whitespace());
    fits.then(|| text.to_owned()).ok_or_else(|| "a mail address is one such as you@example.com".into())
}

fn address(text: &str) -> Result<IpAddr, String> {
    let parsed = text.parse::<IpAddr>().map_err(|error| error.to_string())?;
    (!parsed.is_unspecified()).then_some(parsed).ok_or_else(|| "it is no address that others could reach".into())
}
