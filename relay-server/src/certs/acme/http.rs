//! HTTPS to the CA: a connection a request, bounded in time and size. What it does not take at present comes back as
//! [`Busy`], with the time at which it wants to be asked again.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{DATE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::certs::CertsError;
use crate::fetch::fetch;

/// A request must be answered within this time.
const ANSWER_IN: Duration = Duration::from_secs(30);
/// An answer, a chain of certificates at most, may be this long.
const MAX_ANSWER: usize = 1 << 20;

/// A CA that wants to be left alone for longer is asked again all the same.
const WAIT_MOST: Duration = Duration::from_secs(7 * 86_400);

/// Speaks to the CA.
#[derive(Clone)]
pub(super) struct Https(TlsConnector);

impl fmt::Debug for Https {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Https").finish_non_exhaustive()
    }
}

/// The CA did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {error}")]
pub(super) struct Unanswered {
    at: String,
    pub(super) error: io::Error,
}

/// The CA does not take the request now.
#[derive(Debug, thiserror::Error)]
#[error("the CA answered {status}{}", problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default())]
pub(super) struct Busy {
    pub(super) status: StatusCode,
    /// When it wants to be asked again.
    pub(super) retry_after: Option<Duration>,
    pub(super) problem: Option<Problem>,
}

impl Https {
    /// Trusting the system's CAs, or those of a file.
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, CertsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the usual versions");
        let config = match ca {
            Some(path) => {
                let content = |source: Box<dyn std::error::Error + Send + Sync>| CertsError::Content {
                    path: path.display().to_string(),
                    what: "CA certificate",
                    source,
                };
                let pem = std::fs::read(path)
                    .map_err(|source| CertsError::File { path: path.display().to_string(), source })?;
                let mut roots = RootCertStore::empty();
                for root in CertificateDer::pem_slice_iter(&pem) {
                    let root = root.map_err(|error| content(error.to_string().into()))?;
                    roots.add(root).map_err(|error| content(error.into()))?;
                }
                if roots.is_empty() {
                    return Err(content("it has no CERTIFICATE section".into()));
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            None => {
                builder.with_platform_verifier().map_err(|error| CertsError::Roots(error.into()))?.with_no_client_auth()
            }
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// What is at a URL, and what time it is there.
    pub(super) async fn get(&self, url: &str) -> Result<(StatusCode, Bytes, Option<Timestamp>), Error> {
        let mut answer = self.request(Request::get(url).body(BodyWrapper::default())?).await?;
        let date = answer.parts.headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| date.timestamp());
        Ok((answer.parts.status, answer.body.into_bytes().await.map_err(Error::Other)?, date))
    }

    async fn ask(self, uri: Uri, mut request: Request<BodyWrapper<Bytes>>) -> io::Result<BytesResponse> {
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
        let host = host.ok_or_else(|| io::Error::other(format!("{uri} is no https:// URL")))?;
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(443))).await?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(io::Error::other)?;
        let stream = self.0.connect(name, stream).await?;
        let agent = HeaderValue::from_static(concat!("hookway-relay/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        let answer = fetch(stream, request, MAX_ANSWER).await.map_err(io::Error::other)?;
        let (mut parts, body) = answer.into_parts();
        if retry_after(&parts.headers).is_some_and(|after| after > WAIT_MOST) {
            parts.headers.insert(RETRY_AFTER, WAIT_MOST.as_secs().into());
        }
        if parts.status == StatusCode::TOO_MANY_REQUESTS || parts.status.is_server_error() {
            return Err(io::Error::other(Busy {
                status: parts.status,
                retry_after: retry_after(&parts.headers),
                problem: serde_json::from_slice(&body).ok(),
            }));
        }
        Ok(BytesResponse { parts, body: Box::new(body) })
    }
}

/// Seconds, or a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(at.duration_since(Timestamp::now())).ok()
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let uri = request.uri().clone();
        let asked = self.clone().ask(uri.clone(), request);
        Box::pin(async move {
            let answer = tokio::time::timeout(ANSWER_IN, asked).await;
            let answer = answer.unwrap_or_else(|_| {
                let text = format!("it took more time than {} s to answer", ANSWER_IN.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            });
            let at = uri.authority().map(ToString::to_string).unwrap_or_default();
            answer.map_err(|error| Error::Other(Box::new(Unanswered { at, error })))
        })
    }
}
