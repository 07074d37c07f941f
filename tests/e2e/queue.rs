//! Deliveries that wait: answered 202, kept, and handed over later.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hookway::{Client, Options, Outcome, Rule};
use hookway_tests::{App, Seen, World, body, get, post, text};
use http_body_util::{BodyExt, StreamBody};

/// Waits until the app has seen so many.
async fn seen(app: &App, count: usize) -> Vec<Seen> {
    let all = async {
        while app.seen().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("they arrive");
    app.seen()
}

fn field<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.headers.get(name).map(|value| value.to_str().expect("a text"))
}

/// Waits until nothing waits any more.
async fn drained(world: &World) {
    let all = async {
        while world.metric("hookway_relay_queue_depth").await > 0.5 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the queue is empty");
}

async fn connect(world: &World, token: &str, app: SocketAddr, change: impl FnOnce(Options) -> Options) -> Client {
    let options = world.options(token, app).name("billing").expect("a name");
    Client::connect(change(options)).await.expect("connected")
}

fn rule(change: impl FnOnce(&mut Rule)) -> Vec<Rule> {
    let mut rule = Rule::default();
    change(&mut rule);
    vec![rule]
}

#[tokio::test]
async fn what_comes_while_the_client_is_away_arrives_in_order_when_it_is_back() {
    let world = World::new().await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    connect(&world, &token, app.address, |options| options).await.close().await;
    let mut ids = Vec::new();
    for number in 0..20 {
        let sent = post("billing", &format!("/{number}?q=%20")).header("x-sig", "a").header("x-sig", "b");
        let answer = world.send(sent.body(format!("body {number}"))).await.expect(202);
        ids.push(answer.headers["hookway-delivery"].to_str().expect("an id").to_owned());
    }
    // What only reads makes no sense later.
    let _ = world.send(get("billing", "/")).await.expect(503);
    // A restart changes nothing.
    let world = world.restarted().await;
    let _ = world.send(post("billing", "/20?q=%20").body("body 20")).await.expect(202);
    let client = connect(&world, &token, app.address, |options| options).await;
    let all = seen(&app, 21).await;
    for (number, seen) in all.iter().enumerate() {
        assert_eq!(
            (seen.target.clone(), &seen.body[..]),
            (format!("/{number}?q=%20"), format!("body {number}").as_bytes())
        );
        assert_eq!(field(seen, "hookway-attempt"), Some("1"));
        assert!(field(seen, "hookway-received-at").is_some_and(|at| at.ends_with('Z')), "{seen:?}");
        assert_eq!(field(seen, "hookway-possible-duplicate"), None, "{number} was never handed over before");
    }
    assert_eq!(field(&all[3], "hookway-delivery"), Some(ids[3].as_str()));
    assert_eq!(all[3].headers.get_all("x-sig").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert!(client.next_delivery().await.expect("one").queued.is_some());
    drained(&world).await;
}

#[tokio::test]
async fn an_app_that_stays_down_gets_it_when_its_port_opens() {
    let world = World::new().await;
    let token = world.token("ann", &[]).await;
    let app = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let _client = connect(&world, &token, app, |options| {
        options.forward(|forward| forward.wait_app = Duration::from_millis(200))
    })
    .await;
    let _ = world.send(post("billing", "/").body("late")).await.expect(202);
    let app = tokio::net::TcpListener::bind(app).await.expect("the same port");
    let (mut stream, _) = app.accept().await.expect("the delivery");
    let mut head = vec![0; 4096];
    let read = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.expect("a request");
    let head = String::from_utf8_lossy(&head[..read]).into_owned();
    // Nothing of it had reached the app.
    assert!(!head.contains("hookway-possible-duplicate"), "{head}");
    assert!(head.contains("hookway-received-at") && head.contains("hookway-attempt: 2"), "{head}");
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.expect("answered");
    drained(&world).await;
}

#[tokio::test]
async fn what_is_refused_when_offline_gets_503() {
    let world = World::new().await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    let rules = vec![
        Rule { prefix: "/strict".into(), refuse_offline: true, ..Rule::default() },
        Rule { endpoint: "other".into(), refuse_offline: true, ..Rule::default() },
    ];
    connect(&world, &token, app.address, |options| options.queueing(rules, 1)).await.close().await;
    let _ = world.send(post("billing", "/strict/a").body("{}")).await.expect(503);
    let _ = world.send(post("billing", "/stricter").body("{}")).await.expect(202);
    // What a client asked for holds while it is away, and over a restart.
    let world = world.restarted().await;
    let _ = world.send(post("billing", "/strict").body("{}")).await.expect(503);
}

#[tokio::test]
async fn an_early_ack_comes_before_the_app_has_it() {
    let world = World::new().await;
    let (app, held) = App::held().await;
    let token = world.token("ann", &[]).await;
    let rules = rule(|rule| (rule.prefix, rule.ack_early) = ("/slow".into(), true));
    let _client = connect(&world, &token, app.address, |options| options.queueing(rules, 1)).await;
    let _ = world.send(post("billing", "/slow").body("{}")).await.expect(202);
    held.arrived().await;
    held.go_on();
    drained(&world).await;
    let at_once = world.send(post("billing", "/fast").body("{}"));
    let (answer, ()) = tokio::join!(at_once, async {
        held.arrived().await;
        held.go_on();
    });
    let _ = answer.expect(200);
    assert_eq!(app.seen().len(), 2);
}

#[tokio::test]
async fn a_5xx_is_tried_again_from_the_queue_when_asked_for() {
    let world = World::new().await;
    let status = Arc::new(AtomicU16::new(500));
    let now = status.clone();
    let app = App::start(move |seen| {
        let status = now.load(Ordering::Relaxed);
        async move { body(status, seen.body) }
    })
    .await;
    let token = world.token("ann", &[]).await;
    let rules = rule(|rule| rule.retry_5xx = true);
    let _client = connect(&world, &token, app.address, |options| options.queueing(rules, 1)).await;
    let _ = world.send(post("billing", "/").body("{}")).await.expect(202);
    seen(&app, 2).await;
    status.store(400, Ordering::Relaxed);
    let _ = world.send(post("billing", "/other").body("{}")).await.expect(400);
    status.store(200, Ordering::Relaxed);
    drained(&world).await;
    let all = app.seen();
    let attempts: Vec<_> = all.iter().filter(|seen| seen.target == "/").collect();
    assert_eq!(field(attempts[0], "hookway-attempt"), None);
    for (number, seen) in attempts.iter().enumerate().skip(1) {
        assert_eq!(field(seen, "hookway-attempt"), Some((number + 1).to_string().as_str()));
        assert_eq!(field(seen, "hookway-possible-duplicate"), Some("1"), "the app had it");
    }
}

#[tokio::test]
async fn one_that_the_app_fails_stands_in_nobodys_way() {
    let world = World::new().await;
    let app =
        App::start(|seen| async move { if seen.target == "/poison" { text(500, "no") } else { body(200, seen.body) } })
            .await;
    let token = world.token("ann", &[]).await;
    connect(&world, &token, app.address, |options| options).await.close().await;
    for path in ["/poison", "/a", "/b"] {
        let _ = world.send(post("billing", path).body("{}")).await.expect(202);
    }
    let client = connect(&world, &token, app.address, |options| options).await;
    let order: Vec<String> = seen(&app, 3).await.into_iter().map(|seen| seen.target).collect();
    assert_eq!(order, ["/poison", "/a", "/b"]);
    let live = world.send(post("billing", "/live").body("now")).await.expect(200);
    assert_eq!(live.text(), "now");
    let again = seen(&app, 5).await;
    assert_eq!(again[4].target, "/poison");
    assert_eq!(field(&again[4], "hookway-possible-duplicate"), Some("1"));
    client.close().await;
}

#[tokio::test]
async fn a_delivery_whose_client_is_lost_is_queued_and_marked() {
    let world = World::new().await;
    let (app, held) = App::held().await;
    let token = world.token("ann", &[]).await;
    let client = connect(&world, &token, app.address, |options| options).await;
    let sent = world.send(post("billing", "/").body("once more"));
    let (answer, ()) = tokio::join!(sent, async {
        held.arrived().await;
        // As when its machine is switched off.
        drop(client);
    });
    let _ = answer.expect(202);
    let _client = connect(&world, &token, app.address, |options| options).await;
    let all = seen(&app, 2).await;
    held.go_on();
    held.go_on();
    assert_eq!((&all[1].body[..], field(&all[1], "hookway-possible-duplicate")), (&b"once more"[..], Some("1")));
    assert_eq!(field(&all[1], "hookway-delivery"), field(&all[0], "hookway-delivery"));
    drained(&world).await;
}

#[tokio::test]
async fn a_large_body_waits_whole_and_one_over_the_limit_is_413() {
    let world = World::with(|config| config.queue.max_body = 3 << 20).await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    connect(&world, &token, app.address, |options| options).await.close().await;
    let large: Vec<u8> = (0..(2 << 20) + 7).map(|n: u32| (n % 251) as u8).collect();
    let _ = world.send(post("billing", "/large").body(large.clone())).await.expect(202);
    let _ = world.send(post("billing", "/empty")).await.expect(202);
    let _ = world.send(post("billing", "/over").body(vec![0; (3 << 20) + 1])).await.expect(413);
    let _client = connect(&world, &token, app.address, |options| options).await;
    let all = seen(&app, 2).await;
    assert!(all[0].body == large, "byte for byte");
    assert!(all[1].body.is_empty());
    drained(&world).await;
}

#[tokio::test]
async fn a_large_body_arrives_whole_though_the_app_answers_early() {
    let world = World::new().await;
    let token = world.token("ann", &[]).await;
    let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = app.local_addr().expect("an address");
    connect(&world, &token, address, |options| options).await.close().await;
    let length = 3 << 20;
    let _ = world.send(post("billing", "/").body(vec![7; length])).await.expect(202);
    let _client = connect(&world, &token, address, |options| options).await;
    let (mut stream, _) = app.accept().await.expect("the delivery");
    let mut head = vec![0; 64 << 10];
    let mut read = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.expect("a request");
    read -= head[..read].windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.expect("answered");
    let mut rest = vec![0; length];
    let rest = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut rest[read..]);
    tokio::time::timeout(Duration::from_secs(10), rest).await.expect("in time").expect("all of it");
}

#[tokio::test]
async fn a_body_of_unknown_length_waits_too() {
    let world = World::new().await;
    let token = world.token("ann", &[]).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let client = connect(&world, &token, nobody, |options| {
        options.forward(|forward| forward.wait_app = Duration::from_millis(200))
    })
    .await;
    // The app is away, so it has begun to stream; then the client is, too.
    let pieces = |text: &'static str| {
        let pieces = text.split_inclusive(' ').map(|piece| Ok(http_body::Frame::data(Bytes::from(piece))));
        StreamBody::new(futures_util::stream::iter(pieces)).boxed()
    };
    let _ = world.send(post("billing", "/1").stream(pieces("it streams already"))).await.expect(202);
    client.close().await;
    let _ = world.send(post("billing", "/2").stream(pieces("nobody is there"))).await.expect(202);
    let app = App::echo().await;
    let _client = connect(&world, &token, app.address, |options| options).await;
    let all = seen(&app, 2).await;
    assert_eq!((&all[0].body[..], &all[1].body[..]), (&b"it streams already"[..], &b"nobody is there"[..]));
    assert_eq!(field(&all[0], "hookway-possible-duplicate"), None, "nothing reached the app");
}

#[tokio::test]
async fn a_full_queue_is_503_and_keeps_what_it_has() {
    let world = World::with(|config| config.queue.max_count = 2).await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    connect(&world, &token, app.address, |options| options).await.close().await;
    for number in 0..2 {
        let _ = world.send(post("billing", &format!("/{number}")).body("{}")).await.expect(202);
    }
    let full = world.send(post("billing", "/2").body("{}")).await.expect(503);
    assert!(full.headers.contains_key("retry-after") && full.text().contains("queue is full"), "{full:?}");
    let client = connect(&world, &token, app.address, |options| options).await;
    let order: Vec<String> = seen(&app, 2).await.into_iter().map(|seen| seen.target).collect();
    assert_eq!(order, ["/0", "/1"]);
    drained(&world).await;
    client.close().await;
    let _ = world.send(post("billing", "/3").body("{}")).await.expect(202);
}

#[tokio::test]
async fn what_waits_too_long_is_a_dead_letter() {
    let world = World::with(|config| config.queue.retention = Duration::from_secs(1)).await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    connect(&world, &token, app.address, |options| options).await.close().await;
    let _ = world.send(post("billing", "/").body("{}")).await.expect(202);
    let dead = async {
        while world.metric("hookway_relay_queue_dead_letters").await < 0.5 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), dead).await.expect("it dies");
    let client = connect(&world, &token, app.address, |options| options).await;
    let _ = world.send(post("billing", "/live").body("{}")).await.expect(200);
    assert_eq!(app.seen().len(), 1, "a dead letter is not handed over");
    assert!(matches!(client.next_delivery().await.map(|d| d.outcome), Some(Outcome::Answered(s)) if s == 200));
}
