//! Bodies that flow, connections that change protocol.

use bytes::Bytes;
use hookway_tests::{App, World, get, post, text};
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A body fed by a test, piece by piece.
pub(crate) fn fed() -> (mpsc::Sender<Bytes>, http_body_util::combinators::BoxBody<Bytes, std::io::Error>) {
    let (pieces, mut next) = mpsc::channel::<Bytes>(1);
    let stream = futures_util::stream::poll_fn(move |cx| {
        next.poll_recv(cx).map(|piece| piece.map(|p| Ok(http_body::Frame::data(p))))
    });
    (pieces, StreamBody::new(stream).boxed())
}

#[tokio::test]
async fn each_piece_of_an_answer_arrives_before_the_next_is_sent() {
    let world = World::new().await;
    let (pieces, body) = fed();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let app = App::start(move |_| {
        let body = body.lock().expect("unpoisoned").take().expect("one request");
        async move { http::Response::new(body) }
    })
    .await;
    let _client = world.client("events", &app).await;
    let mut answer = world.response("events.hooks.test", get("events", "/")).await.expect("a head").into_body();
    for number in 0..5 {
        let event = Bytes::from(format!("data: {number}\n\n"));
        pieces.send(event.clone()).await.expect("the app reads");
        let arrived = answer.frame().await.expect("a piece").expect("whole").into_data().expect("data");
        assert_eq!(arrived, event);
    }
    drop(pieces);
    assert!(answer.frame().await.is_none(), "a clean end");
}

#[tokio::test]
async fn an_answer_counts_until_it_has_ended() {
    let world = World::new().await;
    let (pieces, body) = fed();
    let first = std::sync::Mutex::new(Some(body));
    let first = std::sync::Arc::new(first);
    let app = App::start(move |_| {
        let first = first.lock().expect("unpoisoned").take();
        async move { first.map_or_else(|| text(200, "second"), http::Response::new) }
    })
    .await;
    let token = world.token("events", &[]).await;
    let options = world.options(&token, app.address).name("events").expect("a name");
    let options = options.forward(|forward| forward.max_connections = 1);
    let _client = hookway::Client::connect(options).await.expect("connected");
    let answer = world.response("events.hooks.test", get("events", "/")).await.expect("a head").into_body();
    let busy = world.send(get("events", "/")).await.expect(503);
    assert!(busy.text().contains("--max-connections") && busy.headers.contains_key("retry-after"), "{busy:?}");
    drop(pieces);
    assert!(answer.collect().await.expect("a clean end").to_bytes().is_empty());
    for _ in 0..100 {
        let answer = world.send(get("events", "/")).await;
        if answer.status == 200 {
            return assert_eq!(answer.text(), "second");
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the place was not given back");
}

#[tokio::test]
async fn each_piece_of_a_request_arrives_before_the_next_is_sent() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let token = world.token("up", &[]).await;
    let options = world.options(&token, listener.local_addr().expect("an address")).name("up").expect("a name");
    let _client = hookway::Client::connect(options).await.expect("connected");
    let (pieces, body) = fed();
    let app = async {
        let (mut stream, _) = listener.accept().await.expect("the delivery");
        let mut got = String::new();
        for piece in ["one", "two", "three"] {
            pieces.send(Bytes::from(piece)).await.expect("the sender's body is read");
            let mut buffer = [0; 4096];
            while !got.contains(piece) {
                let count = stream.read(&mut buffer).await.expect("more of the request");
                assert!(count > 0, "{got}");
                got.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        }
        drop(pieces);
        let mut buffer = [0; 4096];
        while !got.ends_with("0\r\n\r\n") {
            let count = stream.read(&mut buffer).await.expect("the end of the request");
            assert!(count > 0, "{got}");
            got.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("answered");
    };
    let send = async {
        let answer = world.send(post("up", "/").stream(body)).await.expect(200);
        assert_eq!(answer.text(), "ok");
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(app, send) } => {}
        () = tokio::time::sleep(std::time::Duration::from_secs(20)) => panic!("stuck"),
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let world = World::new().await;
    let app = App::start(|seen| async move {
        let sum = seen.trailers.and_then(|trailers| trailers.get("x-sum").cloned());
        let trailers = [("x-seen".parse().expect("a name"), sum.unwrap_or_else(|| "none".parse().expect("a value")))];
        let trailers = http_body::Frame::trailers(trailers.into_iter().collect());
        let pieces = [Ok(http_body::Frame::data(seen.body)), Ok(trailers)];
        let mut response = http::Response::new(StreamBody::new(futures_util::stream::iter(pieces)).boxed());
        response.headers_mut().insert("trailer", "x-seen".parse().expect("a value"));
        response
    })
    .await;
    let _client = world.client("billing", &app).await;
    let trailers = [("x-sum".parse().expect("a name"), "42".parse().expect("a value"))].into_iter().collect();
    let pieces = [Ok(http_body::Frame::data(Bytes::from("x"))), Ok(http_body::Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(pieces)).boxed();
    let answer = world
        .send(post("billing", "/").stream(body).header("te", "trailers").header("trailer", "x-sum").http2())
        .await
        .expect(200);
    assert_eq!(answer.trailers.expect("trailers")["x-seen"], "42");
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let token = world.token("ws", &[]).await;
    let options = world.options(&token, listener.local_addr().expect("an address")).name("ws").expect("a name");
    let _client = hookway::Client::connect(options).await.expect("connected");
    let app = async {
        let (mut stream, _) = listener.accept().await.expect("the delivery");
        let mut head = vec![0; 4096];
        let count = stream.read(&mut head).await.expect("a head");
        let head = String::from_utf8_lossy(&head[..count]).to_lowercase();
        assert!(head.contains("connection: upgrade") && head.contains("upgrade: echo/1"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo/1\r\n\r\nhello";
        stream.write_all(answer).await.expect("answered");
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.expect("echoed");
        write.write_all(b"bye").await.expect("the other direction is still open");
    };
    let sender = async {
        let mut tls = world.tls("ws.hooks.test", b"http/1.1").await.expect("a connection");
        let head = b"GET /chat HTTP/1.1\r\nhost: ws.hooks.test\r\nconnection: Upgrade\r\nupgrade: echo/1\r\n\r\n";
        tls.write_all(head).await.expect("written");
        let mut got = String::new();
        let mut buffer = [0; 1024];
        while !got.ends_with("hello") {
            let count = tls.read(&mut buffer).await.expect("an answer");
            assert!(count > 0, "{got}");
            got.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        assert!(got.starts_with("HTTP/1.1 101"), "{got}");
        let sent: Vec<u8> = (0..200_000).map(|at| (at / 3) as u8).collect();
        let (mut read, mut write) = tokio::io::split(tls);
        let write = async {
            write.write_all(&sent).await.expect("written");
            write.shutdown().await.expect("half closed");
        };
        let read = async {
            let mut back = Vec::new();
            let _ = read.read_to_end(&mut back).await;
            back
        };
        let ((), back) = tokio::join!(write, read);
        assert_eq!(back.len(), sent.len() + 3);
        assert!(back.starts_with(&sent) && back.ends_with(b"bye"));
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(app, sender) } => {}
        () = tokio::time::sleep(std::time::Duration::from_secs(20)) => panic!("stuck"),
    }
}

#[tokio::test]
async fn a_sender_that_hangs_up_ends_a_streaming_answer() {
    let world = World::new().await;
    let (pieces, body) = fed();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let app = App::start(move |_| {
        let body = body.lock().expect("unpoisoned").take().expect("one request");
        async move { http::Response::new(body) }
    })
    .await;
    let client = world.client("events", &app).await;
    pieces.send("first".into()).await.expect("the app reads");
    let mut answer = world.response("events.hooks.test", get("events", "/")).await.expect("a head");
    let _ = answer.body_mut().frame().await.expect("a piece");
    drop(answer);
    // The app's side ends: feeding it fails at last.
    let delivered = client.next_delivery();
    tokio::pin!(delivered);
    let delivered = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        loop {
            tokio::select! {
                delivered = &mut delivered => return delivered,
                sent = pieces.send("more".into()) => if sent.is_err() { return delivered.await },
            }
        }
    });
    let delivered = delivered.await.expect("ended in time").expect("a delivery");
    assert!(matches!(delivered.outcome, hookway::Outcome::Cut(status) if status == 200), "{delivered:?}");
}

#[tokio::test]
async fn large_bodies_pass_both_ways_in_bounded_pieces() {
    let world = World::new().await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    let body: Bytes =
        (0..20 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into();
    for http2 in [false, true] {
        let sent = post("billing", "/").body(body.clone());
        let answer = world.send(if http2 { sent.http2() } else { sent }).await.expect(200);
        assert!(answer.body == body, "http2: {http2}");
    }
}
