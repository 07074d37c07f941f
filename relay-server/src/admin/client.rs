//! Asks a relay's admin listener: for commands on the same machine.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use tokio::net::TcpStream;

use crate::fetch::fetch;

/// A relay that runs must answer within this time.
const ANSWER_IN: Duration = Duration::from_secs(3);
const MAX_ANSWER: usize = 1 << 20;

/// The answer to a GET.
///
/// # Errors
/// There is none; the text says why.
pub async fn get(admin: SocketAddr, path: &str) -> Result<(StatusCode, String), String> {
    let here = match admin {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let ip = if admin.ip().is_unspecified() { here } else { admin.ip() };
    let address = SocketAddr::new(ip, admin.port());
    let asked = async {
        let request = Request::get(format!("http://{address}{path}")).body(Empty::<Bytes>::new())?;
        let answer = fetch(TcpStream::connect(address).await?, request, MAX_ANSWER).await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
    };
    let answer = tokio::time::timeout(ANSWER_IN, asked).await.unwrap_or_else(|_| Err("no answer in time".into()));
    let answer = answer.map_err(|error| error.to_string())?;
    Ok((answer.status(), String::from_utf8_lossy(answer.body()).into_owned()))
}
