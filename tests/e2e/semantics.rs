//! The rows of the README's table of what happens when.

use std::time::Duration;

use hookway::Outcome;
use hookway_tests::{App, World, get, post, text};

#[tokio::test]
async fn the_apps_answer_goes_back_verbatim() {
    let world = World::new().await;
    let app = App::start(|_| async {
        let mut response = text(418, "short and stout");
        response.headers_mut().append("x-two", "1".parse().expect("a value"));
        response.headers_mut().append("x-two", "2".parse().expect("a value"));
        response
    })
    .await;
    let client = world.client("billing", &app).await;
    let answer = world.send(post("billing", "/stripe").body("{}")).await.expect(418);
    assert_eq!(answer.text(), "short and stout");
    let twice: Vec<_> = answer.headers.get_all("x-two").iter().collect();
    assert_eq!(twice, ["1", "2"]);
    assert!(matches!(client.next_delivery().await.map(|d| d.outcome), Some(Outcome::Answered(s)) if s == 418));
}

#[tokio::test]
async fn an_app_that_starts_late_is_waited_for() {
    let world = World::new().await;
    let later = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = later.local_addr().expect("an address");
    drop(later);
    let token = world.token("billing", &[]).await;
    let options = world.options(&token, address).name("billing").expect("a name");
    let client = hookway::Client::connect(options).await.expect("connected");
    let sent = world.send(post("billing", "/").body("early"));
    let start = async {
        // The client says that it waits; only then does the app start.
        while !matches!(client.next_event().await, Some(hookway::Event::App { up: false, .. })) {}
        let listener = tokio::net::TcpListener::bind(address).await.expect("the same port");
        let (mut stream, _) = listener.accept().await.expect("the delivery");
        let mut head = [0; 1024];
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await.expect("a request");
        assert!(head[..read].starts_with(b"POST / HTTP/1.1\r\n"));
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nup";
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.expect("answered");
    };
    let (answer, ()) = tokio::join!(sent, start);
    assert_eq!(answer.expect(200).text(), "up");
}

#[tokio::test]
async fn an_app_that_stays_down_is_503_and_never_a_4xx() {
    let world = World::new().await;
    let token = world.token("billing", &[]).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let options = world.options(&token, nobody).name("billing").expect("a name");
    let options = options.forward(|forward| forward.wait_app = Duration::from_millis(200));
    let client = hookway::Client::connect(options).await.expect("connected");
    let answer = world.send(get("billing", "/")).await.expect(503);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.headers.contains_key("hookway-delivery"));
    let delivered = client.next_delivery().await.expect("a delivery");
    assert!(matches!(delivered.outcome, Outcome::Failed { short, .. } if short == "refused"));
}

#[tokio::test]
async fn a_slow_app_is_504_and_named() {
    let world = World::new().await;
    let app = App::start(|_| async { std::future::pending().await }).await;
    let token = world.token("billing", &[]).await;
    let options = world.options(&token, app.address).name("billing").expect("a name");
    let options = options.forward(|forward| forward.timeout = Duration::from_millis(200));
    let client = hookway::Client::connect(options).await.expect("connected");
    let answer = world.send(post("billing", "/").body("{}")).await.expect(504);
    assert!(answer.text().contains(&app.address.to_string()), "{}", answer.text());
    let delivered = client.next_delivery().await.expect("a delivery");
    assert!(matches!(delivered.outcome, Outcome::Failed { short, .. } if short == "timeout 0.2s"));
}

#[tokio::test]
async fn a_client_that_is_away_is_503_with_a_page_for_browsers() {
    let world = World::new().await;
    let app = App::echo().await;
    world.client("billing", &app).await.close().await;
    let answer = world.send(get("billing", "/")).await.expect(503);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.text().lines().count() == 1, "{}", answer.text());
    let page = world.send(get("billing", "/").header("accept", "text/html,*/*")).await.expect(503);
    assert!(page.text().starts_with("<!doctype html>"), "{}", page.text());
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn an_unknown_endpoint_is_404_in_one_line() {
    let world = World::new().await;
    let answer = world.send(post("nobody", "/").body("{}")).await.expect(404);
    assert_eq!(answer.text().lines().count(), 1);
    assert!((world.metric("hookway_relay_refused_total{reason=\"unknown\"}").await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_sender_that_hangs_up_does_not_cut_a_whole_delivery() {
    let world = World::new().await;
    let (app, held) = App::held().await;
    let client = world.client("billing", &app).await;
    tokio::select! {
        _ = world.send(post("billing", "/").body("kept")) => unreachable!("the app has not answered"),
        () = held.arrived() => {}
    }
    // The sender's connection is gone now; the app goes on and its answer is recorded.
    held.go_on();
    let delivered = client.next_delivery().await.expect("a delivery");
    assert_eq!(delivered.bytes, 4);
    assert_eq!(app.seen().len(), 1);
    assert_eq!(app.seen()[0].body, "kept");
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let world = World::new().await;
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n",
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let app = listener.local_addr().expect("an address");
        let token = world.token("billing", &[]).await;
        let options = world.options(&token, app).name("billing").expect("a name");
        let _client = hookway::Client::connect(options).await.expect("connected");
        let cut = async {
            let (mut stream, _) = listener.accept().await.expect("the delivery");
            let mut request = [0; 2048];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await;
            tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("written");
        };
        let (answer, ()) = tokio::join!(world.try_send(post("billing", "/").body("{}")), cut);
        assert!(is_not_whole(&answer), "{answer:?}");
        for http2 in [post("billing", "/").body("{}").http2()] {
            let cut = async {
                let (mut stream, _) = listener.accept().await.expect("the delivery");
                let mut request = [0; 2048];
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await;
                tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("written");
            };
            let (answer, ()) = tokio::join!(world.try_send(http2), cut);
            assert!(is_not_whole(&answer), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn an_app_that_talks_nonsense_is_502() {
    let world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let token = world.token("billing", &[]).await;
    let options = world.options(&token, listener.local_addr().expect("an address")).name("billing").expect("a name");
    let _client = hookway::Client::connect(options).await.expect("connected");
    let talk = async {
        let (mut stream, _) = listener.accept().await.expect("the delivery");
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-nonsense\r\n").await.expect("written");
    };
    let (answer, ()) = tokio::join!(world.send(post("billing", "/").body("{}")), talk);
    let _ = answer.expect(502);
}

#[tokio::test]
async fn a_client_that_is_not_waited_for_does_not_come() {
    let world = World::new().await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    let options = world.options(&token, app.address).name("billing").expect("a name");
    let given_up = tokio::time::timeout(Duration::from_millis(1), hookway::Client::connect(options)).await;
    assert!(given_up.is_err());
    // Others that connect one after the other give it all the time it would have needed.
    for name in ["first", "second", "third"] {
        world.try_client(&token, name, &app).await.expect("connected").close().await;
    }
    let _ = world.send(post("billing", "/").body("{}")).await.expect(404);
}

#[tokio::test]
async fn the_apps_time_begins_when_it_has_the_request() {
    let world = World::new().await;
    let app = App::echo().await;
    let token = world.token("billing", &[]).await;
    let options = world.options(&token, app.address).name("billing").expect("a name");
    let options = options.forward(|forward| forward.timeout = Duration::from_millis(600));
    let _client = hookway::Client::connect(options).await.expect("connected");
    let (pieces, body) = crate::streaming::fed();
    let send = async {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            pieces.send("piece".into()).await.expect("the relay reads");
        }
        drop(pieces);
    };
    let (answer, ()) = tokio::join!(world.send(post("billing", "/").stream(body)), send);
    assert_eq!(answer.expect(200).body.len(), 40);
}

#[tokio::test]
async fn an_app_that_refuses_the_public_host_is_hinted_at() {
    let world = World::new().await;
    let app = App::start(|seen| async move {
        let host = seen.headers["host"].to_str().expect("text").to_owned();
        hookway_tests::body(403, format!("Blocked request. This host ({host}) is not allowed.").into())
    })
    .await;
    let client = world.client("billing", &app).await;
    let _ = world.send(post("billing", "/").body("{}")).await.expect(403);
    let hinted = matches!(client.next_event().await, Some(hookway::Event::Hint { text }) if text.contains("rewrite"));
    assert!(hinted);
}

/// Whether a sender could not take this for the app's whole answer.
fn is_not_whole(answer: &anyhow::Result<hookway_tests::Answer>) -> bool {
    answer.as_ref().map_or(true, |answer| answer.status == 502)
}
