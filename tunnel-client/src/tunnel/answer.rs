//! Answers on their way to senders: the app's, the client's own, or why there is none.

use bytes::{Bytes, BytesMut};
use hookway_protocol::body::{self, Unsent};
use hookway_protocol::frame;
use hookway_protocol::head::{Failure, ReplyHead};
use hookway_protocol::headers::{ANSWERED_BY, Headers};
use hookway_protocol::link::{Sender, StreamError};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;

use crate::exchange::Outcome;
use crate::forwarder::{AppBody, Failed};
use crate::webhook::Own;

/// Who answers.
pub(super) enum Given {
    App(Result<Response<AppBody>, Failed>),
    Own(Own),
}

/// How an answer went to the sender.
pub(super) struct Passed {
    pub(super) outcome: Outcome,
    /// Why there is no answer, in a sentence; empty else.
    pub(super) message: String,
    /// The answer's head as encoded; empty for none.
    pub(super) head: Bytes,
    pub(super) then: Then,
}

/// What becomes of the stream after an answer.
pub(super) enum Then {
    /// It is ready for the next exchange.
    Next,
    /// It goes on as another protocol.
    Switched(OnUpgrade),
    /// It ends.
    End,
}

/// Passes the app's answer on, or why there is none.
pub(super) async fn pass_on(sender: &mut Sender, answer: Result<Response<AppBody>, Failed>, upgrade: bool) -> Passed {
    let then = |sent: bool| if sent { Then::Next } else { Then::End };
    let (head, mut response) = match answer.and_then(|response| Ok((app_head(&response)?, response))) {
        Ok(answer) => answer,
        Err(Failed { failure, short, message }) => {
            let sent = send_failure(sender, failure, message.clone()).await.is_ok();
            let outcome = Outcome::Failed { failure, short };
            return Passed { outcome, message, head: Bytes::new(), then: then(sent) };
        }
    };
    let status = response.status();
    let passed = |outcome, then| Passed { outcome, message: String::new(), head: head.clone(), then };
    if upgrade && status == StatusCode::SWITCHING_PROTOCOLS {
        let switched = hyper::upgrade::on(&mut response);
        let sent = send_head(sender, &head).await.is_ok();
        return passed(Outcome::Answered(status), if sent { Then::Switched(switched) } else { Then::End });
    }
    match send_reply(sender, &head, response).await {
        Ok(true) => passed(Outcome::Answered(status), Then::Next),
        sent => passed(Outcome::Cut(status), then(sent.is_ok())),
    }
}

/// Answers in the app's place.
pub(super) async fn answer_oneself(sender: &mut Sender, own: Own, is_head: bool) -> Passed {
    let Own { status, message, is_for_later } = own;
    let text = |text: &'static str| HeaderValue::from_static(text);
    let mut headers = Headers::default();
    headers.push(CONTENT_TYPE, text("text/plain; charset=utf-8"));
    headers.push(ANSWERED_BY, text("client"));
    if is_for_later {
        headers.push(RETRY_AFTER, text("30"));
    }
    let mut out = BytesMut::new();
    frame::put_head(&mut out, |out| ReplyHead::App { status, headers }.encode(out));
    let line = if is_head { Bytes::new() } else { Bytes::from(format!("{message}\n")) };
    if !is_head {
        frame::put_data_start(&mut out, line.len());
    }
    let sent = sender.send(&mut [out.freeze(), line, Bytes::from_static(frame::END)]).await.is_ok();
    let then = if sent { Then::Next } else { Then::End };
    Passed { outcome: Outcome::Answered(status), message, head: Bytes::new(), then }
}

/// Reads the answer of an app whose sender was answered before: it is kept all the same.
pub(super) async fn read_out(answer: Result<Response<AppBody>, Failed>) -> Passed {
    let passed = |outcome, message, head| Passed { outcome, message, head, then: Then::Next };
    match answer.and_then(|response| Ok((app_head(&response)?, response))) {
        Ok((head, response)) => {
            let status = response.status();
            match response.into_body().collect().await {
                Ok(_) => passed(Outcome::Answered(status), String::new(), head),
                Err(error) => passed(Outcome::Cut(status), format!("the answer broke off: {error}"), head),
            }
        }
        Err(Failed { failure, short, message }) => passed(Outcome::Failed { failure, short }, message, Bytes::new()),
    }
}

/// The encoded head of the app's answer.
fn app_head(response: &Response<AppBody>) -> Result<Bytes, Failed> {
    // A length beside chunks is a lie about one of them; the chunks were what was read (RFC 9112 §6.3).
    let chunked = response.headers().contains_key(TRANSFER_ENCODING);
    let mut headers = Headers::end_to_end(response.headers(), None, |name| !(chunked && *name == CONTENT_LENGTH));
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Of this connection only, but so is what follows.
        response.headers().get_all(UPGRADE).iter().for_each(|chosen| headers.push(UPGRADE, chosen.clone()));
    }
    let head = ReplyHead::App { status: response.status(), headers };
    if head.fits() {
        return Ok(encode(&head));
    }
    let message = "the header fields of the local app's answer are too many or too long (64 KiB)".to_owned();
    Err(Failed { failure: Failure::BadAnswer, short: "head too large".into(), message })
}

fn encode(head: &ReplyHead) -> Bytes {
    let mut out = BytesMut::with_capacity(512);
    head.encode(&mut out);
    out.freeze()
}

async fn send_head(sender: &mut Sender, head: &Bytes) -> Result<(), StreamError> {
    let mut out = BytesMut::with_capacity(head.len() + 16);
    frame::put_head(&mut out, |out| out.extend_from_slice(head));
    sender.send(&mut [out.freeze()]).await
}

async fn send_failure(sender: &mut Sender, failure: Failure, message: String) -> Result<(), StreamError> {
    send_head(sender, &encode(&ReplyHead::Failed { failure, message })).await?;
    sender.send(&mut [Bytes::from_static(frame::END)]).await
}

/// Sends the app's answer as it comes. `Ok(true)` when it was complete, `Ok(false)` when it broke off before any of it
/// was sent: then the sender can still be told.
async fn send_reply(sender: &mut Sender, head: &Bytes, response: Response<AppBody>) -> Result<bool, StreamError> {
    let mut out = BytesMut::with_capacity(head.len() + 64);
    frame::put_head(&mut out, |out| out.extend_from_slice(head));
    match body::send(sender, out, response.into_body()).await {
        Ok(()) => Ok(true),
        Err(Unsent::Stream(error)) => Err(error),
        Err(Unsent::Body { begun: true, error }) => {
            tracing::debug!(%error, "the app's answer broke off");
            Err(StreamError::Aborted)
        }
        Err(Unsent::Body { begun: false, error }) => {
            tracing::debug!(%error, "the app's answer broke off");
            let message = "the local app's answer broke off".to_owned();
            send_failure(sender, Failure::BadAnswer, message).await?;
            Ok(false)
        }
    }
}
