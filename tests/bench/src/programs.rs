//! What is measured: the programs, started on free ports and ended with this one.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;

/// The hosts: of the client that keeps a history, and of the one that keeps none.
const HOST: &str = "bench.hooks.test";
const NO_STORE: &str = "plain.hooks.test";

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

/// The running programs.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) targets: Vec<Target>,
    relay: Running,
    client: Running,
    _others: Vec<Running>,
    token: String,
    bin: PathBuf,
    folder: TempDir,
}

/// A process, ended on drop.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Programs {
    pub(crate) fn start(own: &Path, bin: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        make_certificate(folder.path())?;
        let tls = Arc::new(trusting(&at("cert.pem"))?);
        let (app, line) = started(Command::new(own).arg("--app"))?;
        let app_address: SocketAddr = format!("127.0.0.1:{}", line.trim()).parse()?;

        let mut run = Command::new(bin.join("hookway-relay"));
        run.args(["run", "--domain", "hooks.test", "--https", "127.0.0.1:0", "--http", "off", "--admin", "off"]);
        run.args(["--json", "--rate", "off", "--token-rate", "off", "--tls", "files", "--log", "warn"]);
        run.args([
            "--max-sessions",
            "100000",
            "--max-connections-per-ip",
            "100000",
            "--max-handshakes-per-ip",
            "1000",
            "--data-dir",
        ]);
        run.arg(at("relay")).arg("--tls-cert").arg(at("cert.pem")).arg("--tls-key").arg(at("key.pem"));
        let (relay, line) = started(&mut run)?;
        let ready: serde_json::Value = serde_json::from_str(&line)?;
        let https: SocketAddr = ready["https"].as_str().context("the relay's address")?.parse()?;
        let mut create = Command::new(bin.join("hookway-relay"));
        create.args(["token", "create", "--name", "bench", "--json", "--data-dir"]).arg(at("relay"));
        let created: serde_json::Value = serde_json::from_slice(&create.output()?.stdout)?;
        let token = created["token"].as_str().context("a token")?.to_owned();
        let start = |name, more: &[&str]| client(bin, folder.path(), &token, https, name, app_address, more);
        let (client, no_store) = (start("bench", &[])?, start("plain", &["--no-store"])?);

        let mut targets = vec![Target { name: "app", host: HOST, address: app_address, tls: None, pids: vec![] }];
        let nginx = start_nginx(folder.path(), app_address)?;
        if let Some((nginx, address)) = &nginx {
            let (tls, pids) = (Some(tls.clone()), vec![nginx.0.id()]);
            targets.push(Target { name: "nginx", host: HOST, address: *address, tls, pids });
        }
        for (name, host, client) in [("hookway --no-store", NO_STORE, &no_store), ("hookway", HOST, &client)] {
            let pids = vec![relay.0.id(), client.0.id()];
            targets.push(Target { name, host, address: https, tls: Some(tls.clone()), pids });
        }
        let others = [app, no_store].into_iter().chain(nginx.map(|(nginx, _)| nginx)).collect();
        Ok(Self { targets, relay, client, _others: others, token, bin: bin.to_owned(), folder })
    }

    /// Resident memory of relay and client, in KiB.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        Ok((resident(self.relay.0.id())?, resident(self.client.0.id())?))
    }

    /// What each of so many idle clients costs the relay, in KiB.
    pub(crate) fn memory_of_a_client(&self, count: usize) -> anyhow::Result<f64> {
        let hookway = self.targets.last().context("a relay")?;
        let before = resident(self.relay.0.id())?;
        let clients = (0..count).map(|n| {
            let name = format!("idle-{n}");
            let app = self.targets[0].address;
            client(&self.bin, self.folder.path(), &self.token, hookway.address, &name, app, &["--no-store"])
        });
        let clients = clients.collect::<anyhow::Result<Vec<_>>>()?;
        // Handshakes leave buffers behind that an idle connection gives back.
        std::thread::sleep(Duration::from_secs(3));
        let after = resident(self.relay.0.id())?;
        drop(clients);
        Ok(after.saturating_sub(before) as f64 / count as f64)
    }
}

/// A connected client.
fn client(
    bin: &Path,
    folder: &Path,
    token: &str,
    relay: SocketAddr,
    name: &str,
    app: SocketAddr,
    more: &[&str],
) -> anyhow::Result<Running> {
    let mut run = Command::new(bin.join("hookway"));
    run.arg(app.to_string()).args(more).args(["--inspect", "127.0.0.1:0"]).args([
        "--relay",
        &relay.to_string(),
        "-n",
        name,
        "--json",
    ]);
    run.arg("--relay-ca").arg(folder.join("cert.pem")).env("HOOKWAY_TOKEN", token).current_dir(folder);
    for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        run.env(variable, folder);
    }
    Ok(started(&mut run)?.0)
}

/// A process and the first line that it prints.
fn started(command: &mut Command) -> anyhow::Result<(Running, String)> {
    let mut running = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    let mut stdout = BufReader::with_capacity(1 << 20, running.0.stdout.take().context("its output")?);
    stdout.read_line(&mut line)?;
    ensure!(!line.is_empty(), "{command:?} printed nothing");
    // A client prints a line for each delivery: somebody reads it.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    Ok((running, line))
}

fn start_nginx(folder: &Path, app: SocketAddr) -> anyhow::Result<Option<(Running, SocketAddr)>> {
    let Some(nginx) = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists()) else {
        return Ok(None);
    };
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let text = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; client_max_body_size 0; client_body_temp_path {0}/b; proxy_temp_path {0}/p;\n\
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; keepalive_requests 10000000;\n\
         upstream app {{ server {app}; keepalive 256; keepalive_requests 10000000; }}\n\
         server {{ listen {address} ssl http2; ssl_certificate {0}/cert.pem; ssl_certificate_key {0}/key.pem;\n\
         ssl_protocols TLSv1.3;\n\
         location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection '';\n\
         proxy_request_buffering off; proxy_buffering off; }} }} }}\n",
        folder.display()
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text)?;
    let mut nginx = Command::new(nginx);
    nginx.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = nginx.spawn()?;
    let running = Running(child);
    for _ in 0..100 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(Some((running, address)));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("nginx does not listen; see {}/nginx.log", folder.display())
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

fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time that these processes have used, in seconds.
pub(crate) fn cpu(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / 100.0
}
