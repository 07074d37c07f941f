//! `hookway-relay init` and `check`: from a machine and a domain to a relay.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::ExitCode;

use anyhow::Context;
use hookway_protocol::finding::{Finding, State};
use hookway_relay::cli::{AcmeChallenge, InitArgs, RunArgs, Tls};
use serde_json::json;

use super::{block_on, fail};

/// Where the certificate and its key are, with `--tls files`.
const CERT: &str = "/etc/hookway/fullchain.pem";
const KEY: &str = "/etc/hookway/privkey.pem";

/// A DNS record to be set: its name, type and value.
type Record = (String, &'static str, String);

/// Writes a configuration, and says which DNS records it wants.
pub(crate) fn init(args: &InitArgs) -> ExitCode {
    match written(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn written(args: &InitArgs) -> anyhow::Result<()> {
    let path = &args.output;
    let shown = path.display();
    let data_dir = std::path::absolute(&args.data_dir).context("the working folder is not there")?;
    let data_dir = data_dir.to_str().context("--data-dir is no text")?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|error| {
            let next = "be root, or choose another place:  --config FILE";
            anyhow::anyhow!("cannot make the folder {}\n  cause: {error}\n  next:  {next}", folder.display())
        })?;
    }
    let was_there = path.exists();
    let mut file = std::fs::File::options();
    let file = file.write(true).create_new(!args.force).create(args.force).truncate(true).mode(0o644);
    let opened = file.open(path).map_err(|error| {
        let next = match error.kind() {
            std::io::ErrorKind::AlreadyExists if !path.is_dir() => {
                format!("hookway-relay check --config {shown}      (is it good?), or write it anew with --force")
            }
            _ => "be root, or choose another place:  --config FILE".to_owned(),
        };
        anyhow::anyhow!("cannot write {shown}\n  cause: {error}\n  next:  {next}")
    });
    let written = opened?;
    // It holds no secret, and a service that is a user of its own reads it: whatever the umask. One that was there keeps
    // what it was given.
    let mode = std::fs::Permissions::from_mode(0o644);
    let readable = if was_there { Ok(()) } else { written.set_permissions(mode) };
    let written = readable.and_then(|()| (&written).write_all(content(args, data_dir).as_bytes()));
    written.with_context(|| format!("cannot write {shown}"))?;
    let (addresses, are_known) = addresses(args);
    let records = records(args, &addresses);
    if args.json {
        let records: Vec<_> =
            records.iter().map(|(name, kind, value)| json!({"name": name, "type": kind, "value": value})).collect();
        say!(
            "{}",
            json!({"event": "init", "config": path.to_string_lossy(), "domain": args.domain.as_str(), "records": records})
        );
        return Ok(());
    }
    say!("wrote {shown}");
    say!("\nSet these records where the DNS of {} is kept:\n", args.domain);
    let width = records.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, kind, value) in &records {
        say!("  {name:<width$}   {kind:<4}   {value}");
    }
    if !are_known {
        say!("\nADDRESS is the public address of this machine, which does not know it itself.");
    }
    if args.tls == Tls::Files {
        let domain = &args.domain;
        say!("\nPut a certificate for both {domain} and *.{domain} into {CERT}, and its key into {KEY}.");
    }
    let dns = if wants_port_53(args) { ", UDP and TCP 53 (the CA's questions)" } else { "" };
    say!("\nOpen in the firewall: TCP 443 and UDP 443 (senders and clients), TCP 80 (redirects){dns}. Then:\n");
    say!("  hookway-relay check --config {shown}");
    say!("  hookway-relay run --config {shown}                    (or:  systemctl start hookway-relay)");
    say!("  hookway-relay token create --config {shown} --name YOU");
    say!("\nAnd on your own machine:\n");
    say!("  hookway login {}", args.domain);
    say!("  hookway 3000");
    Ok(())
}

/// What is written: only what is not the default.
fn content(args: &InitArgs, data_dir: &str) -> String {
    // TOML takes what JSON writes, but for DEL.
    let text = |text: &str| serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f");
    let mut all =
        "# The configuration of hookway-relay. All settings, with their defaults:  hookway-relay run --help\n\n\
                   # Endpoints are host names directly below this one.\n"
            .to_owned();
    let mut set = |key: &str, value: String| all.push_str(&format!("{key} = {}\n", text(&value)));
    set("domain", args.domain.to_string());
    if data_dir != "/var/lib/hookway" {
        set("data-dir", data_dir.to_owned());
    }
    match args.tls {
        Tls::Acme => {
            set("tls", "acme".into());
            if let Some(email) = &args.acme_email {
                set("acme-email", email.clone());
            }
            match args.acme_challenge {
                AcmeChallenge::Dns => {}
                AcmeChallenge::Http => set("acme-challenge", "http-01".into()),
                AcmeChallenge::TlsAlpn => set("acme-challenge", "tls-alpn-01".into()),
            }
        }
        Tls::Files => {
            set("tls", "files".into());
            set("tls-cert", CERT.into());
            set("tls-key", KEY.into());
        }
        Tls::SelfSigned => set("tls", "self-signed".into()),
    }
    all
}

fn wants_port_53(args: &InitArgs) -> bool {
    args.tls == Tls::Acme && args.acme_challenge == AcmeChallenge::Dns
}

fn records(args: &InitArgs, addresses: &[String]) -> Vec<Record> {
    let domain = &args.domain;
    let mut records: Vec<Record> = Vec::new();
    for name in [format!("{domain}."), format!("*.{domain}.")] {
        let kind = |address: &str| if address.contains(':') { "AAAA" } else { "A" };
        records.extend(addresses.iter().map(|address| (name.clone(), kind(address), address.clone())));
    }
    if wants_port_53(args) {
        records.push((format!("_acme-challenge.{domain}."), "NS", format!("{domain}.")));
    }
    records
}

/// The addresses that the domain is to have, and whether they are known.
fn addresses(args: &InitArgs) -> (Vec<String>, bool) {
    let mut found: Vec<IpAddr> = Vec::new();
    for address in args.address.iter().map(IpAddr::to_canonical) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        found = own_addresses();
    }
    match found.is_empty() {
        true => (vec!["ADDRESS".into()], false),
        false => (found.iter().map(ToString::to_string).collect(), true),
    }
}

/// This machine's public addresses: those that it would send from. Nothing is sent.
fn own_addresses() -> Vec<IpAddr> {
    let from = |any: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((to, 53)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let v4 = from(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = from(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    v4.into_iter().chain(v6).filter(is_told).collect()
}

/// Whether others could reach it, as far as can be told.
fn is_told(address: &IpAddr) -> bool {
    let is_example = matches!(address, IpAddr::V4(ip) if ip.is_documentation());
    hookway_relay::is_public(address) && !is_example
}

/// Looks whether all is in place.
pub(crate) fn check(args: &RunArgs) -> ExitCode {
    let config = match args.config() {
        Ok(config) => config,
        Err(error) => return fail(&error.into(), 7),
    };
    let mut worst = State::Ok;
    let looked = async {
        hookway_relay::check(&config, |finding| {
            worst = worst.max(finding.state);
            print(&finding, args.json());
        })
        .await;
        Ok(())
    };
    if let Err(error) = block_on(looked) {
        return fail(&error, 1);
    }
    if args.json() {
        say!("{}", json!({"event": "checked", "state": worst.name()}));
    }
    if worst == State::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

pub(super) fn print(finding: &Finding, json: bool) {
    if json {
        let Finding { check, state, detail, next } = finding;
        say!("{}", json!({"event": "check", "check": check, "state": state.name(), "detail": detail, "next": next}));
    } else {
        say!("{finding}");
    }
}
