//! What is measured side by side: the bare app, nginx, and Hookway with and without a history.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::figures::resident;
use crate::process::Running;
use crate::setup::{HOST, NO_STORE, Relay, Setup, Target};

/// The running programs.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) targets: Vec<Target>,
    relay: Relay,
    client: Running,
    _others: Vec<Running>,
    setup: Setup,
}

impl Programs {
    pub(crate) fn start(setup: Setup) -> anyhow::Result<Self> {
        let (app, app_target) = setup.app()?;
        let relay = setup.relay(setup.folder(), &["--http", "off"])?;
        let client = setup.client(&relay, "bench", &app_target, &[])?;
        let no_store = setup.client(&relay, "plain", &app_target, &["--no-store"])?;

        let nginx = start_nginx(setup.folder(), app_target.address)?;
        let mut targets = vec![app_target];
        if let Some((nginx, address)) = &nginx {
            let (tls, pids) = (Some(setup.tls.clone()), vec![nginx.id()]);
            targets.push(Target { name: "nginx", host: HOST, address: *address, tls, pids });
        }
        for (name, host, client) in [("hookway --no-store", NO_STORE, &no_store), ("hookway", HOST, &client)] {
            let (tls, pids) = (Some(setup.tls.clone()), vec![relay.process.id(), client.id()]);
            targets.push(Target { name, host, address: relay.https, tls, pids });
        }
        let others = [app, no_store].into_iter().chain(nginx.map(|(nginx, _)| nginx)).collect();
        Ok(Self { targets, relay, client, _others: others, setup })
    }

    /// Resident memory of relay and client, in KiB.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        Ok((resident(self.relay.process.id())?, resident(self.client.id())?))
    }

    /// What each of so many idle clients costs the relay, in KiB.
    pub(crate) fn memory_of_a_client(&self, count: usize) -> anyhow::Result<f64> {
        let app = self.targets.first().context("an app")?;
        let before = resident(self.relay.process.id())?;
        let clients = (0..count).map(|n| self.setup.client(&self.relay, &format!("idle-{n}"), app, &["--no-store"]));
        let clients = clients.collect::<anyhow::Result<Vec<_>>>()?;
        // Handshakes leave buffers behind that an idle connection gives back.
        std::thread::sleep(Duration::from_secs(3));
        let after = resident(self.relay.process.id())?;
        drop(clients);
        Ok(after.saturating_sub(before) as f64 / count as f64)
    }
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
    let running = Running::start(Command::new(nginx).arg("-c").arg(&file))?;
    for _ in 0..100 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(Some((running, address)));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("nginx does not listen; see {}/nginx.log", folder.display())
}
