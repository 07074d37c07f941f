//! Each limit refuses what is over it, and says so.

use std::sync::Arc;
use std::time::Duration;

use hookway_relay::Rate;
use hookway_tests::{App, World, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_body_over_the_limit_is_413_before_it_is_read() {
    let world = World::with(|config| config.public.max_body = 1000).await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    let _ = world.send(post("billing", "/").body(vec![b'x'; 1000])).await.expect(200);
    let answer = world.send(post("billing", "/").body(vec![b'x'; 1001])).await.expect(413);
    assert!(answer.text().contains("1000 bytes"), "{}", answer.text());
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test]
async fn a_body_of_unknown_length_is_413_when_it_gets_too_long() {
    use http_body_util::BodyExt;
    let world = World::with(|config| config.public.max_body = 1000).await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    let pieces = (0..4).map(|_| Ok(http_body::Frame::data(bytes::Bytes::from(vec![b'x'; 400]))));
    let stream = http_body_util::StreamBody::new(futures_util::stream::iter(pieces)).boxed();
    let _ = world.send(post("billing", "/").stream(stream)).await.expect(413);
    assert!(app.seen().is_empty(), "the app never sees a whole body");
}

#[tokio::test]
async fn too_many_a_second_is_429_with_a_time_to_come_again() {
    let world = World::with(|config| config.limits.rate = Rate::per_second(2)).await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    for _ in 0..2 {
        let _ = world.send(post("billing", "/").body("{}")).await.expect(200);
    }
    let answer = world.send(post("billing", "/").body("{}")).await.expect(429);
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(app.seen().len(), 2);
}

#[tokio::test]
async fn a_token_has_a_rate_over_all_its_endpoints() {
    let world = World::with(|config| config.limits.token_rate = Rate::per_second(2)).await;
    let app = App::echo().await;
    let token = world.token("team", &[]).await;
    let options = world.options(&token, app.address).name("one").and_then(|o| o.name("two")).expect("names");
    let _client = hookway::Client::connect(options).await.expect("connected");
    let mut statuses = Vec::new();
    for endpoint in ["one", "two", "one", "two"] {
        statuses.push(world.send(post(endpoint, "/").body("{}")).await.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
}

#[tokio::test]
async fn too_many_at_once_is_429() {
    let world = World::with(|config| config.limits.max_concurrent = 1).await;
    let (app, held) = App::held().await;
    let _client = world.client("billing", &app).await;
    let second = async {
        held.arrived().await;
        let _ = world.send(post("billing", "/").body("2")).await.expect(429);
        held.go_on();
    };
    let (first, ()) = tokio::join!(world.send(post("billing", "/").body("1")), second);
    let _ = first.expect(200);
    held.go_on();
    let _ = world.send(post("billing", "/").body("3")).await.expect(200);
}

#[tokio::test]
async fn an_address_has_so_many_connections() {
    let world = World::with(|config| config.public.max_connections_per_ip = 2).await;
    let first = world.tls("billing.hooks.test", b"http/1.1").await.expect("a connection");
    let _second = world.tls("billing.hooks.test", b"http/1.1").await.expect("a connection");
    assert!(world.tls("billing.hooks.test", b"http/1.1").await.is_err());
    drop(first);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while world.tls("billing.hooks.test", b"http/1.1").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the place is not given back");
        tokio::task::yield_now().await;
    }
    assert!(world.metric("hookway_relay_connections_refused_total{reason=\"too_many\"}").await >= 1.0);
}

/// What a connection got until the relay closed it; fails after ten seconds.
async fn until_closed(world: &World, bytes: &[u8]) -> String {
    let mut tls = world.tls("billing.hooks.test", b"http/1.1").await.expect("a connection");
    tls.write_all(bytes).await.expect("written");
    let mut got = Vec::new();
    // A connection closed without TLS' goodbye is closed, too.
    let _ = tokio::time::timeout(Duration::from_secs(10), tls.read_to_end(&mut got)).await.expect("closed in time");
    String::from_utf8_lossy(&got).into_owned()
}

#[tokio::test]
async fn a_head_that_does_not_end_is_given_up() {
    let world = World::with(|config| config.public.header_timeout = Duration::from_millis(300)).await;
    let got = until_closed(&world, b"POST / HTTP/1.1\r\nhost: billing.hooks.test\r\nx-slow: ").await;
    assert!(!got.contains("200"), "{got}");
}

#[tokio::test]
async fn a_body_that_does_not_go_on_is_given_up() {
    let world = World::with(|config| config.public.body_timeout = Duration::from_millis(300)).await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    for length in [100, 5 << 20] {
        let head = format!("POST / HTTP/1.1\r\nhost: billing.hooks.test\r\ncontent-length: {length}\r\n\r\nbegin");
        let got = until_closed(&world, head.as_bytes()).await;
        assert!(got.starts_with("HTTP/1.1 408"), "{got}");
    }
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn a_head_over_64_kib_is_refused() {
    let world = World::new().await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    let head = |size: usize| {
        format!(
            "POST / HTTP/1.1\r\nhost: billing.hooks.test\r\nconnection: close\r\nx-big: {}\r\n\r\n",
            "a".repeat(size)
        )
    };
    assert!(until_closed(&world, head(60_000).as_bytes()).await.starts_with("HTTP/1.1 200"));
    let got = until_closed(&world, head(70_000).as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 431"), "{got}");
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test]
async fn clients_that_say_nothing_are_few_and_short_lived() {
    let world = World::with(|config| {
        config.tunnel.handshake_timeout = Duration::from_secs(2);
        config.tunnel.max_handshakes_per_ip = 2;
    })
    .await;
    let mut tls = rustls::ClientConfig::builder()
        .with_root_certificates({
            use rustls::pki_types::pem::PemObject;
            let mut roots = rustls::RootCertStore::empty();
            roots.add(rustls::pki_types::CertificateDer::from_pem_file(world.ca()).expect("a CA")).expect("a root");
            roots
        })
        .with_no_client_auth();
    tls.alpn_protocols = vec![hookway_protocol::link::ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("QUIC's TLS");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    let dial = || endpoint.connect_with(config.clone(), world.relay.addresses().https, "localhost").expect("dialling");
    // One that need not prove its address, and two that do (RFC 9000 §8.1.2).
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(dial().await.expect("connected"));
    }
    assert!(dial().await.is_err(), "a fourth of one address is refused");
    // The silent ones are closed, and then there is room again.
    for connection in silent {
        let _ = tokio::time::timeout(Duration::from_secs(10), connection.closed()).await.expect("closed in time");
    }
    assert!(dial().await.is_ok());
}
