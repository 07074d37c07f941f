//! How the programs are started: on free ports, with folders of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

use crate::process::Running;

/// The hosts: of the client that keeps a history, and of the one that keeps none.
pub(crate) const HOST: &str = "bench.hooks.test";
pub(crate) const NO_STORE: &str = "plain.hooks.test";

/// Something that answers requests.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) host: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// The processes whose work is counted.
    pub(crate) pids: Vec<u32>,
}

/// Where the programs are, and what they share.
#[derive(Debug)]
pub(crate) struct Setup {
    own: PathBuf,
    bin: PathBuf,
    folder: TempDir,
    /// For senders: trusts the certificate of relay and nginx.
    pub(crate) tls: Arc<ClientConfig>,
}

/// A relay, and what clients need to know of it.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) process: Running,
    pub(crate) https: SocketAddr,
    /// Where it serves plain HTTP, if it was told to.
    pub(crate) http: Option<SocketAddr>,
    token: String,
    /// Where it and its clients keep what they keep.
    home: PathBuf,
}

impl Setup {
    /// With the programs in that folder; beside this one, if not said.
    pub(crate) fn new(bin: Option<PathBuf>) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let beside = own.parent().context("this program has a folder")?.to_owned();
        let bin = bin.unwrap_or(beside).canonicalize()?;
        let folder = tempfile::tempdir()?;
        make_certificate(folder.path())?;
        let tls = Arc::new(trusting(&folder.path().join("cert.pem"))?);
        Ok(Self { own, bin, folder, tls })
    }

    /// The folder of everything that is kept; it goes with this.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An app of its own.
    pub(crate) fn app(&self) -> anyhow::Result<(Running, Target)> {
        let (app, line) = Running::ready(Command::new(&self.own).arg("--app"))?;
        let address = format!("127.0.0.1:{}", line.trim()).parse()?;
        Ok((app, Target { name: "app", host: HOST, address, tls: None, pids: vec![] }))
    }

    /// A relay without limits on what is sent, and a token of it.
    pub(crate) fn relay(&self, home: &Path, more: &[&str]) -> anyhow::Result<Relay> {
        let (data, certificates) = (home.join("relay"), self.folder.path());
        let mut run = Command::new(self.bin.join("hookway-relay"));
        run.args(["run", "--domain", "hooks.test", "--https", "127.0.0.1:0", "--admin", "off", "--json"]);
        run.args(["--rate", "off", "--token-rate", "off", "--tls", "files", "--log", "warn"]);
        run.args(["--max-sessions", "100000", "--max-connections-per-ip", "100000", "--max-handshakes-per-ip", "1000"]);
        run.args(more).arg("--data-dir").arg(&data);
        run.arg("--tls-cert").arg(certificates.join("cert.pem")).arg("--tls-key").arg(certificates.join("key.pem"));
        let (process, line) = Running::ready(&mut run)?;
        let ready: serde_json::Value = serde_json::from_str(&line)?;
        let https = ready["https"].as_str().context("the relay's address")?.parse()?;
        let http = ready["http"].as_str().map(str::parse).transpose()?;
        let mut create = Command::new(self.bin.join("hookway-relay"));
        create.args(["token", "create", "--name", "bench", "--json", "--data-dir"]).arg(data);
        let created: serde_json::Value = serde_json::from_slice(&create.output()?.stdout)?;
        let token = created["token"].as_str().context("a token")?.to_owned();
        Ok(Relay { process, https, http, token, home: home.to_owned() })
    }

    /// A connected client.
    pub(crate) fn client(&self, relay: &Relay, name: &str, app: &Target, more: &[&str]) -> anyhow::Result<Running> {
        let mut run = Command::new(self.bin.join("hookway"));
        run.arg(app.address.to_string()).args(more).args(["--inspect", "127.0.0.1:0", "--json", "-n", name]);
        run.arg("--relay").arg(relay.https.to_string()).arg("--relay-ca").arg(self.folder.path().join("cert.pem"));
        run.env("HOOKWAY_TOKEN", &relay.token).current_dir(&relay.home);
        for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            run.env(variable, &relay.home);
        }
        Ok(Running::ready(&mut run)?.0)
    }
}

fn make_certificate(folder: &Path) -> anyhow::Result<()> {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=bench", "-addext", "basicConstraints=critical,CA:FALSE", "-addext"]);
    openssl.arg(format!("subjectAltName=DNS:{HOST},DNS:{NO_STORE},IP:127.0.0.1"));
    openssl.arg("-keyout").arg(folder.join("key.pem")).arg("-out").arg(folder.join("cert.pem"));
    ensure!(openssl.stderr(Stdio::null()).status()?.success(), "openssl made no certificate");
    Ok(())
}

fn trusting(certificate: &Path) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}
