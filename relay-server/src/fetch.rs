//! One HTTP/1.1 request, over a connection that is for it alone.

use std::error::Error;
use std::pin::pin;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

type AnyError = Box<dyn Error + Send + Sync>;

/// Sends a request to where its URL says, which `io` leads to, and reads the answer: of `most` bytes at most. How long
/// that may take is the caller's concern.
///
/// # Errors
/// There was no answer, or a longer one.
pub(crate) async fn fetch<B>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut request: Request<B>,
    most: usize,
) -> Result<Response<Bytes>, AnyError>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<AnyError>,
{
    let uri = std::mem::take(request.uri_mut());
    let authority = uri.authority().ok_or("the URL has no host")?;
    request.headers_mut().insert(HOST, authority.as_str().parse()?);
    *request.uri_mut() = uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| path.clone().into());
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let answered = async {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(parts, Limited::new(body, most).collect().await?.to_bytes()))
    };
    let (mut answered, mut connection) = (pin!(answered), pin!(connection));
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        // It ends with the answer, whose rest is in memory then; else the answer says what was wrong.
        _ = &mut connection => answered.await,
    }
}
