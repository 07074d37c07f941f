//! Flags for certificates from a CA.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hookway_protocol::settings::duration;

const HEADING: &str = "ACME (with --tls acme)";

/// Which CA, and how it is shown that the names are ours.
#[derive(Args, Clone, Debug)]
pub struct AcmeArgs {
    /// The CA's directory; Let's Encrypt, if none is given
    #[arg(
        long = "acme-directory",
        value_name = "URL",
        env = "HOOKWAY_RELAY_ACME_DIRECTORY",
        value_parser = directory,
        help_heading = HEADING
    )]
    pub(crate) directory: Option<String>,
    /// Let's Encrypt's staging CA, for trying things out: nobody trusts it
    #[arg(long = "acme-staging", env = "HOOKWAY_RELAY_ACME_STAGING", value_parser = clap::builder::BoolishValueParser::new(), help_heading = HEADING)]
    pub(crate) staging: bool,
    /// Whom the CA writes to
    #[arg(long = "acme-email", value_name = "MAIL", env = "HOOKWAY_RELAY_ACME_EMAIL", help_heading = HEADING)]
    pub(crate) email: Option<String>,
    /// A root to trust for the CA's own HTTPS, instead of the system's
    #[arg(long = "acme-ca", value_name = "FILE", env = "HOOKWAY_RELAY_ACME_CA", help_heading = HEADING)]
    pub(crate) ca: Option<PathBuf>,
    /// The account that the CA gave you: its key's id
    #[arg(long = "acme-eab-kid", value_name = "KID", env = "HOOKWAY_RELAY_ACME_EAB_KID", help_heading = HEADING)]
    pub(crate) eab_kid: Option<String>,
    /// Its MAC key: a file with it in base64url, as CAs hand it out
    #[arg(long = "acme-eab-key-file", value_name = "FILE", env = "HOOKWAY_RELAY_ACME_EAB_KEY_FILE", help_heading = HEADING)]
    pub(crate) eab_key_file: Option<PathBuf>,
    /// How the CA is shown that the names are yours
    #[arg(
        long = "acme-challenge",
        env = "HOOKWAY_RELAY_ACME_CHALLENGE",
        default_value = "dns-01",
        help_heading = HEADING
    )]
    pub(crate) challenge: AcmeChallenge,
    /// Where the relay answers for _acme-challenge.DOMAIN, over UDP and TCP
    #[arg(
        long,
        value_name = "ADDR",
        env = "HOOKWAY_RELAY_DNS",
        default_value = "0.0.0.0:53",
        help_heading = HEADING
    )]
    pub(crate) dns: SocketAddr,
    /// Instead: the name server whose zone is changed (RFC 2136)
    #[arg(long, value_name = "HOST[:PORT]", env = "HOOKWAY_RELAY_DNS_UPDATE", help_heading = HEADING)]
    pub(crate) dns_update: Option<String>,
    /// The key for that, as tsig-keygen writes it
    #[arg(long, value_name = "FILE", env = "HOOKWAY_RELAY_DNS_TSIG_FILE", help_heading = HEADING)]
    pub(crate) dns_tsig_file: Option<PathBuf>,
    /// Instead: a command that is given set or unset, the record's name and its value
    #[arg(long, value_name = "COMMAND", env = "HOOKWAY_RELAY_DNS_HOOK", help_heading = HEADING)]
    pub(crate) dns_hook: Option<PathBuf>,
    /// How long name servers may take to have a changed record everywhere
    #[arg(long, value_name = "DURATION", env = "HOOKWAY_RELAY_DNS_WAIT", default_value = "5s", value_parser = duration, help_heading = HEADING)]
    pub(crate) dns_wait: Duration,
}

/// How a CA is shown that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AcmeChallenge {
    /// TXT records: one certificate for the domain and all names below it
    #[value(name = "dns-01")]
    Dns,
    /// Plain HTTP: a certificate a name, when somebody asks for it
    #[value(name = "http-01")]
    Http,
    /// TLS: the same
    #[value(name = "tls-alpn-01")]
    TlsAlpn,
}

fn directory(text: &str) -> Result<String, String> {
    let fits = text.starts_with("https://") && text.parse::<http::Uri>().is_ok();
    fits.then(|| text.to_owned()).ok_or_else(|| "the URL of a CA's directory begins with https://".into())
}
