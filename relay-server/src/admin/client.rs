//! Asks a relay's admin listener: for commands on the same machine.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

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
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let ask = Request::get(path).header(http::header::HOST, address.to_string());
        let ask = ask.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let answered = async {
            let answer = sender.send_request(ask).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
            Ok::<_, String>((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
        };
        let (mut answered, mut connection) = (std::pin::pin!(answered), std::pin::pin!(connection));
        tokio::select! {
            biased;
            answer = &mut answered => answer,
            _ = &mut connection => answered.await,
        }
    };
    tokio::time::timeout(ANSWER_IN, asked).await.unwrap_or_else(|_| Err("no answer in time".into()))
}
