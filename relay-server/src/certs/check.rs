//! Whether there is a certificate, or one can be had: `hookway-relay check`.

use std::path::Path;
use std::time::Duration;

use hookway_protocol::finding::Finding;
use hookway_protocol::host::Host;
use jiff::Timestamp;

use super::acme::{self, Proof};
use super::dns::update::Server;
use super::files::Files;
use super::self_signed::SelfSigned;
use super::{Config, Expiry};
use crate::resolver::Resolver;

const CERTIFICATE: &str = "certificate";
const CA: &str = "ca";
/// A CA must have answered within this time.
const ANSWER_IN: Duration = Duration::from_secs(10);
const CLOCK: &str = "clock";
const DNS: &str = "delegation";
/// A clock may be wrong by so much.
const CLOCK_FINE: Duration = Duration::from_secs(60);

/// Looks after the certificates of a configuration. Nothing is changed, and nothing ordered.
pub(crate) async fn check(
    config: &Config,
    data_dir: &Path,
    domain: &Host<'_>,
    resolver: &Resolver,
    is_running: bool,
) -> Vec<Finding> {
    match config {
        Config::SelfSigned => vec![self_signed(data_dir, domain), system_clock()],
        Config::Files { cert, key } => vec![files(cert, key, domain), system_clock()],
        Config::Acme(config) => {
            let (mut findings, proof) =
                tokio::join!(authority(config), proof(&config.proof, domain, resolver, is_running));
            findings.push(proof);
            findings
        }
    }
}

fn self_signed(data_dir: &Path, domain: &Host<'_>) -> Finding {
    let (ca, key) = (data_dir.join("ca.pem"), data_dir.join("ca-key.pem"));
    if ca.exists()
        && key.exists()
        && let Err(error) = SelfSigned::open(data_dir, &domain.clone().into_owned())
    {
        let next =
            format!("keep the --domain, or let the relay make another CA:  rm {} {}", ca.display(), key.display());
        return Finding::fail(CERTIFICATE, with_cause(&error), next);
    }
    let there = if ca.exists() { "in" } else { "made at the first start in" };
    let detail = format!("of the relay's own CA, {there} {}: webhook providers do not trust it", ca.display());
    Finding::warn(CERTIFICATE, detail, "for a public relay:  --tls acme, or --tls files")
}

fn files(cert: &Path, key: &Path, domain: &Host<'_>) -> Finding {
    let files = match Files::open(cert, key) {
        Ok(files) => files,
        Err(error) => return Finding::fail(CERTIFICATE, with_cause(&error), "check --tls-cert and --tls-key"),
    };
    let shown = cert.display();
    let wanted = [domain.to_string(), format!("hookway-check.{domain}")];
    if let Some(missing) = wanted.iter().position(|name| !files.is_for(name)) {
        let name = if missing == 0 { domain.to_string() } else { format!("*.{domain}") };
        let next = format!("get one for both {domain} and *.{domain}");
        return Finding::fail(CERTIFICATE, format!("{shown} is not for {name}"), next);
    }
    if let Some(from) = files.good_from().filter(|from| *from > Timestamp::now()) {
        let next = "wait until then, or check this machine's clock";
        return Finding::fail(CERTIFICATE, format!("{shown} is good from {from:.0} on only"), next);
    }
    match files.expiry() {
        Expiry::At { at, .. } if at <= Timestamp::now() => Finding::fail(
            CERTIFICATE,
            format!("{shown} has ended at {at:.0}"),
            "renew it; the relay reads it again by itself",
        ),
        Expiry::At { at, is_soon: true, .. } => Finding::warn(
            CERTIFICATE,
            format!("{shown} ends at {at:.0}"),
            "renew it; the relay reads it again by itself",
        ),
        Expiry::At { at, .. } => Finding::ok(CERTIFICATE, format!("{shown}, good until {at:.0}")),
        Expiry::Missing { .. } | Expiry::Unknown => Finding::ok(CERTIFICATE, format!("{shown}")),
    }
}

/// The CA, and what time it is there.
async fn authority(config: &acme::Config) -> Vec<Finding> {
    let directory = &config.directory;
    let looked = tokio::time::timeout(ANSWER_IN, acme::look(config)).await;
    match looked.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_IN.as_secs()))) {
        Ok(there) => {
            let found = Finding::ok(CA, format!("it answers at {directory}"));
            vec![found, there.map_or_else(system_clock, clock)]
        }
        Err(why) => {
            let next = "let TCP out to it, or check --acme-directory and --acme-ca";
            vec![Finding::fail(CA, format!("{directory}: {why}"), next), system_clock()]
        }
    }
}

fn clock(there: Timestamp) -> Finding {
    let here = Timestamp::now();
    let apart = here.duration_since(there).unsigned_abs();
    let side = if here < there { "behind" } else { "ahead of" };
    if apart <= CLOCK_FINE {
        return Finding::ok(CLOCK, "as the CA's");
    }
    let detail = format!("{} s {side} the CA's", apart.as_secs());
    Finding::fail(CLOCK, detail, "set it right:  timedatectl set-ntp true")
}

/// Without anybody to ask what time it is.
fn system_clock() -> Finding {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Finding::ok(CLOCK, "set by systemd-timesyncd");
    }
    let now = Timestamp::now();
    Finding::ok(CLOCK, format!("it is {now:.0} here; there was nobody to compare with"))
}

/// Whether the CA will find what shows that the names are ours.
async fn proof(proof: &Proof, domain: &Host<'_>, resolver: &Resolver, is_running: bool) -> Finding {
    let record = format!("_acme-challenge.{domain}");
    match proof {
        Proof::Own(_) => delegation(&record, domain, resolver, is_running).await,
        Proof::Update { server, key_file, .. } => match Server::new(server, key_file) {
            Ok(known) => match known.look(&record).await {
                Ok(()) => Finding::ok(DNS, format!("{server} answers for {record}")),
                Err(error) => {
                    let next = "check --dns-update, and that it takes questions from here";
                    Finding::fail(DNS, with_cause(&error), next)
                }
            },
            Err(error) => {
                let next =
                    "check --dns-tsig-file and its rights, or make one:  tsig-keygen -a hmac-sha256 hookway > FILE";
                Finding::fail(DNS, with_cause(&error), next)
            }
        },
        Proof::Hook { command, .. } => match rustix::fs::access(command, rustix::fs::Access::EXEC_OK) {
            Ok(()) if command.is_file() => Finding::ok(DNS, format!("{} can be run", command.display())),
            result => {
                let why = result.err().map_or_else(|| "it is no file".to_owned(), |error| error.to_string());
                let detail = format!("{} cannot be run: {why}", command.display());
                Finding::fail(DNS, detail, "check --dns-hook; it is started without a shell")
            }
        },
        Proof::Http => Finding::ok(DNS, "none is needed: the CA looks at port 80"),
        Proof::TlsAlpn => Finding::ok(DNS, "none is needed: the CA looks at port 443"),
    }
}

/// An error, and what is behind it.
fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Whether questions for the record are sent to this relay.
async fn delegation(record: &str, domain: &Host<'_>, resolver: &Resolver, is_running: bool) -> Finding {
    let next = format!("set this record where the DNS of {domain} is kept:  {record}.   NS   {domain}.");
    match resolver.name_servers(record).await {
        Ok(servers) if servers.iter().any(|server| server == domain.as_str()) => {
            Finding::ok(DNS, format!("{record} is answered by {domain}"))
        }
        Ok(servers) if servers.is_empty() => Finding::fail(DNS, format!("{record} has no NS record"), next),
        Ok(servers) => {
            let detail = format!("{record} is answered by {}", servers.join(", "));
            let next = format!("if that is another name of this machine all is well; else {next}");
            Finding::warn(DNS, detail, next)
        }
        // Whom it is delegated to is asked himself.
        Err(_) if !is_running => {
            let detail = format!("not known before the relay runs: it is the relay that answers for {record}");
            Finding::warn(DNS, detail, format!("start it, and look again. If it was not done yet, {next}"))
        }
        Err(error) => Finding::fail(DNS, error.to_string(), format!("open port 53, UDP and TCP; and {next}")),
    }
}
