//! The relay of a test, and what is around it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use hookway::{Client, ConnectError, Options, Transports};
use hookway_protocol::host::Host;
use hookway_relay::{Config, Rate, Server};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::app::App;
use crate::sender::{Answer, Request};

/// The domain of every world.
pub(crate) const DOMAIN: &str = "hooks.test";

/// What carries the links of this run: `HOOKWAY_TRANSPORT`, else QUIC.
#[must_use]
pub fn transport() -> Transports {
    match std::env::var("HOOKWAY_TRANSPORT").as_deref() {
        Ok("h2") => Transports::H2,
        _ => Transports::Quic,
    }
}

/// A relay on port 0 with a folder of its own.
#[derive(Debug)]
pub struct World {
    /// The relay.
    pub relay: Server,
    folder: Arc<TempDir>,
}

impl World {
    /// A relay with few limits.
    pub async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// A relay whose configuration a test has changed.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        Self::at(folder, ([127, 0, 0, 1], 0).into(), change).await
    }

    async fn at(folder: Arc<TempDir>, https: SocketAddr, change: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let domain = Host::parse(DOMAIN).expect("a host").into_owned();
        let mut config = Config::new(domain, folder.path().join("relay"));
        config.public.https = https;
        config.public.http = Some(([127, 0, 0, 1], 0).into());
        config.admin.admin = Some(([127, 0, 0, 1], 0).into());
        config.limits.rate = Rate::OFF;
        config.limits.token_rate = Rate::OFF;
        change(&mut config);
        let relay = Server::bind(config).await.expect("the relay starts");
        Self { relay, folder }
    }

    /// The same relay after a restart: same port, same folder.
    pub async fn restarted(self) -> Self {
        let (folder, https) = (self.folder.clone(), self.relay.addresses().https);
        self.relay.shutdown().await;
        Self::at(folder, https, |_| ()).await
    }

    /// A new token of that name.
    pub async fn token(&self, name: &str, endpoints: &[&str]) -> String {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        let new = self.relay.store().create_token(name, endpoints, None).await.expect("a token");
        new.token.reveal().to_owned()
    }

    /// The relay's CA file.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.relay.ca().expect("the relay has its own CA")
    }

    /// Options for a client of this relay.
    #[must_use]
    pub fn options(&self, token: &str, app: SocketAddr) -> Options {
        let relay = self.relay.addresses().https.to_string();
        let options = Options::new(&relay, token, &app.to_string()).expect("good options");
        options.relay_ca(self.ca()).transport(transport())
    }

    /// A client that serves an endpoint from an app, with a token of its own.
    pub async fn client(&self, name: &str, app: &App) -> Client {
        let token = self.token(name, &[]).await;
        self.try_client(&token, name, app).await.expect("the client connects")
    }

    /// A client, if the relay lets it in.
    ///
    /// # Errors
    /// It does not.
    pub async fn try_client(&self, token: &str, name: &str, app: &App) -> Result<Client, ConnectError> {
        Client::connect(self.options(token, app.address).name(name).expect("a name")).await
    }

    /// Sends a request over a connection of its own.
    pub async fn send(&self, request: Request) -> Answer {
        self.try_send(request).await.expect("an answer")
    }

    /// Sends a request; an answer without a clean end is an error.
    ///
    /// # Errors
    /// No connection, or no whole answer.
    pub async fn try_send(&self, request: Request) -> anyhow::Result<Answer> {
        let host = format!("{}.{DOMAIN}", request.endpoint);
        let response = self.response(&host, request).await?;
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.context("the answer's body")?;
        let trailers = collected.trailers().cloned();
        Ok(Answer { status: parts.status, headers: parts.headers, body: collected.to_bytes(), trailers })
    }

    /// Sends a request and returns when the head of the answer is there.
    ///
    /// # Errors
    /// No connection, or no answer.
    pub async fn response(
        &self,
        host: &str,
        request: Request,
    ) -> anyhow::Result<http::Response<hyper::body::Incoming>> {
        let alpn: &[u8] = if request.http2 { b"h2" } else { b"http/1.1" };
        let io = TokioIo::new(self.tls(host, alpn).await?);
        let port = self.relay.addresses().https.port();
        let mut sent = http::Request::new(request.body);
        *sent.method_mut() = request.method;
        *sent.headers_mut() = request.headers;
        if request.http2 {
            *sent.uri_mut() = format!("https://{host}:{port}{}", request.target).parse()?;
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            spawn(connection);
            Ok(sender.send_request(sent).await?)
        } else {
            *sent.uri_mut() = request.target.parse()?;
            sent.headers_mut().insert(http::header::HOST, format!("{host}:{port}").parse()?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            spawn(connection);
            Ok(sender.send_request(sent).await?)
        }
    }

    /// A TLS connection to the public port.
    ///
    /// # Errors
    /// There is none.
    pub async fn tls(&self, host: &str, alpn: &[u8]) -> anyhow::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca())?)?;
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.relay.addresses().https).await?;
        let name = ServerName::try_from(host.to_owned())?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)
    }

    /// What `/metrics` says of one metric with exactly this name and these labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.admin("/metrics", &[]).await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }

    /// Asks the admin listener.
    pub async fn admin(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let address = self.relay.addresses().admin.expect("an admin listener");
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        spawn(connection);
        let mut request = http::Request::get(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

fn spawn(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move { drop(connection.await) });
}
