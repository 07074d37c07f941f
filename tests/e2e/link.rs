//! A link over HTTP/2, both sides in one process: what the end-to-end cases cannot bring about on purpose.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hookway_protocol::frame::{self, Frame};
use hookway_protocol::link::{Link, LinkError, STREAM_WINDOW, Side, Stream, StreamError, Transport};
use hookway_protocol::message::{ClientMessage, FromClient, Hello};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Relay and client, over a pipe.
async fn links() -> (Link, Link) {
    let (near, far) = tokio::io::duplex(64 << 10);
    both(near, far).await
}

async fn both(near: DuplexStream, far: DuplexStream) -> (Link, Link) {
    let address = ([127, 0, 0, 1], 1).into();
    let (relay, client) = tokio::join!(Link::h2(Side::Relay, near, address), Link::h2(Side::Client, far, address));
    (relay.expect("the relay's side"), client.expect("the client's side"))
}

/// A stream as both sides have it; nothing is sent by opening it.
async fn stream(relay: &Link, client: &Link) -> (Stream, Stream) {
    let opened = relay.open().await.expect("opened");
    (opened, client.accept().await.expect("accepted"))
}

/// A head, and the start of a body of this length.
fn start(length: usize) -> Bytes {
    let mut out = BytesMut::new();
    frame::put_head(&mut out, |out| out.extend_from_slice(b"head"));
    frame::put_data_start(&mut out, length);
    out.freeze()
}

/// A head and a body, without its end.
fn data(text: &'static [u8]) -> Bytes {
    [start(text.len()), Bytes::from_static(text)].concat().into()
}

fn more(length: usize) -> Bytes {
    let mut out = BytesMut::new();
    frame::put_data_start(&mut out, length);
    out.freeze()
}

/// The body up to its end.
async fn body(stream: &mut Stream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    loop {
        match stream.receiver.frame().await? {
            Some(Frame::Head(_)) => {}
            Some(Frame::Data(data)) => all.extend_from_slice(&data),
            Some(Frame::End) => return Ok(all),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn exchanges_follow_each_other_on_one_stream() {
    let (relay, client) = links().await;
    assert_eq!((relay.transport(), client.transport()), (Transport::H2, Transport::H2));
    let (mut near, mut far) = stream(&relay, &client).await;
    for text in [&b"one"[..], b"two"] {
        near.sender.send(&mut [data(text), Bytes::from_static(frame::END)]).await.expect("sent");
        assert_eq!(body(&mut far).await.expect("it arrives"), text);
        far.sender.send(&mut [data(text), Bytes::from_static(frame::END)]).await.expect("sent");
        assert_eq!(body(&mut near).await.expect("it comes back"), text);
    }
    assert!(relay.signs().heard > 0 && client.signs().heard > 0);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_stands_still_and_stops_no_other() {
    let (relay, client) = links().await;
    let (mut stalled, mut unread) = stream(&relay, &client).await;
    let most = 4 * STREAM_WINDOW as usize;
    let mut sent = 0;
    let piece = Bytes::from(vec![7; 64 << 10]);
    while sent < most {
        let mut pieces = if sent == 0 { vec![start(piece.len())] } else { vec![more(piece.len())] };
        pieces.push(piece.clone());
        let sending = stalled.sender.send(&mut pieces);
        if tokio::time::timeout(Duration::from_millis(200), sending).await.is_err() {
            break;
        }
        sent += piece.len();
    }
    assert!(sent < most, "it took {sent} bytes that nobody read");
    let (mut near, mut far) = stream(&relay, &client).await;
    near.sender.send(&mut [data(b"through"), Bytes::from_static(frame::END)]).await.expect("sent");
    assert_eq!(body(&mut far).await.expect("it arrives"), b"through");
    // What was broken off is no whole body.
    drop(stalled);
    assert_eq!(body(&mut unread).await, Err(StreamError::Aborted));
}

#[tokio::test]
async fn an_end_in_the_middle_is_an_abort_either_way() {
    let (relay, client) = links().await;
    for from_relay in [true, false] {
        let (near, far) = stream(&relay, &client).await;
        let (mut from, mut to) = if from_relay { (near, far) } else { (far, near) };
        from.sender.send(&mut [data(b"half")]).await.expect("sent");
        from.sender.finish();
        assert_eq!(body(&mut to).await, Err(StreamError::Aborted));
        drop(from);
        tokio::time::timeout(Duration::from_secs(5), to.sender.stopped()).await.expect("the other half ends, too");
    }
}

#[tokio::test]
async fn what_was_sent_before_a_close_arrives_and_the_reason_too() {
    let (relay, client) = links().await;
    let (control, mut taken) = tokio::join!(relay.control(), client.control());
    let hello = FromClient::from(ClientMessage::Hello(Hello { token: "hwt_x".into(), ..Hello::default() }));
    taken.as_mut().expect("the client's").sender.send(&hello).await.expect("sent");
    let received = control.expect("the relay's").receiver.receive::<FromClient>().await.expect("the hello");
    assert_eq!(received, Some(hello));
    let (mut near, mut far) = stream(&relay, &client).await;
    let text = vec![b'x'; 300 << 10];
    near.sender
        .send(&mut [start(text.len()), text.clone().into(), Bytes::from_static(frame::END)])
        .await
        .expect("sent");
    near.sender.finish();
    let read = tokio::join!(body(&mut far), async { relay.close("the token was revoked") }).0;
    assert_eq!(read.expect("it arrives"), text);
    assert_eq!(client.closed().await, LinkError::Closed("the token was revoked".into()));
    assert_eq!(relay.closed().await, LinkError::ClosedHere);
    assert!(relay.open().await.is_err());
    tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(relay.flushed(), client.flushed()) })
        .await
        .expect("both tasks end");
}

#[tokio::test]
async fn a_client_that_closes_has_sent_all_and_refuses_what_it_did_not_look_at() {
    let (relay, client) = links().await;
    let (near, mut far) = stream(&relay, &client).await;
    let mut unseen = relay.open().await.expect("opened");
    unseen.sender.send(&mut [data(b"never looked at")]).await.expect("sent");
    let reading = async {
        let mut near = near;
        body(&mut near).await
    };
    let sending = async {
        // Large enough that the pipe does not hold it.
        let text = vec![b'y'; 300 << 10];
        far.sender.send(&mut [start(text.len()), text.into(), Bytes::from_static(frame::END)]).await.expect("sent");
        drop(far);
        client.close("the client has ended the session");
    };
    let (read, ()) = tokio::join!(reading, sending);
    assert_eq!(read.expect("it arrives").len(), 300 << 10);
    assert!(matches!(unseen.receiver.frame().await, Err(StreamError::Untaken(_))));
    assert!(matches!(relay.closed().await, LinkError::Closed(_)));
}

#[tokio::test]
async fn a_dropped_link_is_closed() {
    let (relay, client) = links().await;
    drop(client);
    assert!(matches!(relay.closed().await, LinkError::Closed(_)));
}

#[tokio::test]
async fn a_link_that_falls_silent_is_dead_within_six_seconds() {
    let (near, middle) = tokio::io::duplex(64 << 10);
    let (other, far) = tokio::io::duplex(64 << 10);
    let cut = tokio_util::sync::CancellationToken::new();
    let wire = async {
        let ((mut a, mut b), (mut c, mut d)) = (tokio::io::split(middle), tokio::io::split(other));
        let copied = async { tokio::join!(tokio::io::copy(&mut a, &mut d), tokio::io::copy(&mut c, &mut b)) };
        // Neither end nor error: nothing passes any more.
        cut.run_until_cancelled(copied).await;
        std::future::pending::<()>().await;
    };
    let noticed = async {
        let (relay, client) = both(near, far).await;
        let (mut near, mut far) = stream(&relay, &client).await;
        near.sender.send(&mut [data(b"x")]).await.expect("sent");
        assert_eq!(far.receiver.frame().await, Ok(Some(Frame::Head(Bytes::from_static(b"head")))));
        cut.cancel();
        let dead = async { tokio::join!(relay.closed(), client.closed()) };
        let dead = tokio::time::timeout(Duration::from_secs(6), dead).await.expect("both sides notice");
        assert_eq!(dead, (LinkError::TimedOut, LinkError::TimedOut));
    };
    tokio::select! {
        () = noticed => {}
        () = wire => unreachable!("it has no end"),
    }
}

#[tokio::test]
async fn a_peer_that_speaks_something_else_ends_the_link() {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let link = Link::h2(Side::Relay, near, ([127, 0, 0, 1], 1).into()).await.expect("the relay speaks first");
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("written");
    assert!(matches!(link.closed().await, LinkError::Broken(_)));
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).await.expect("it hangs up");
}
