//! Who may serve what, and for how long.

use std::time::Duration;

use hookway::{ConnectError, Event};
use hookway_protocol::message::Code;
use hookway_tests::{App, World, body, get, post};
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn refusal(result: Result<hookway::Client, ConnectError>) -> Code {
    match result {
        Err(ConnectError::Refused { code, next, .. }) => {
            assert!(!next.is_empty(), "every refusal has a next step");
            code
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_name_stays_with_its_owner_also_while_he_is_away() {
    let world = World::new().await;
    let app = App::echo().await;
    let (ann, bob) = (world.token("ann", &[]).await, world.token("bob", &[]).await);
    world.try_client(&ann, "billing", &app).await.expect("the first comes first").close().await;
    assert_eq!(refusal(world.try_client(&bob, "billing", &app).await), Code::Taken);
    let world = world.restarted().await;
    assert_eq!(refusal(world.try_client(&bob, "billing", &app).await), Code::Taken);
    let another_of_ann = world.token("ann", &[]).await;
    world.try_client(&another_of_ann, "billing", &app).await.expect("a token of the same name").close().await;
}

#[tokio::test]
async fn the_same_owner_takes_over_and_the_other_client_is_told() {
    let world = World::new().await;
    let (old, new) = (
        App::start(|_| async { body(200, "old".into()) }).await,
        App::start(|_| async { body(200, "new".into()) }).await,
    );
    let token = world.token("ann", &[]).await;
    let first = world.try_client(&token, "billing", &old).await.expect("connected");
    assert_eq!(world.send(post("billing", "/").body("{}")).await.text(), "old");
    let _second = world.try_client(&token, "billing", &new).await.expect("taken over");
    assert_eq!(world.send(post("billing", "/").body("{}")).await.text(), "new");
    // The first is told, and ends instead of fighting for the name.
    assert!(matches!(first.next_event().await, Some(Event::Delivered(_))));
    assert!(matches!(first.next_event().await, Some(Event::Released { endpoint, .. }) if endpoint == "billing"));
    while first.next_event().await.is_some() {}
}

#[tokio::test]
async fn a_name_that_was_lost_is_not_taken_back() {
    let world = World::new().await;
    let (old, new) = (
        App::start(|_| async { body(200, "old".into()) }).await,
        App::start(|_| async { body(200, "new".into()) }).await,
    );
    let token = world.token("ann", &[]).await;
    let options = world.options(&token, old.address).name("extra").expect("a name").name("billing").expect("a name");
    let first = hookway::Client::connect(options).await.expect("connected");
    let second = world.try_client(&token, "billing", &new).await.expect("taken over");
    assert!(matches!(first.next_event().await, Some(Event::Released { endpoint, .. }) if endpoint == "billing"));
    let world = world.restarted().await;
    let up = async |client: &hookway::Client| {
        loop {
            match client.next_event().await {
                Some(Event::Up(welcomed)) => return welcomed,
                Some(_) => {}
                None => panic!("the client gave up"),
            }
        }
    };
    let both = async { tokio::join!(up(&first), up(&second)) };
    let (first_up, _) = tokio::time::timeout(Duration::from_secs(15), both).await.expect("both are back");
    assert_eq!(first_up.urls.keys().collect::<Vec<_>>(), ["extra"]);
    assert_eq!(world.send(post("billing", "/").body("{}")).await.expect(200).text(), "new");
    assert_eq!(world.send(post("extra", "/").body("{}")).await.expect(200).text(), "old");
}

#[tokio::test]
async fn many_names_are_taken_over_and_left_at_once() {
    let world = World::new().await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    let client = async || {
        let names = (0..60).map(|number| format!("name-{number}"));
        let options =
            names.fold(world.options(&token, app.address), |options, name| options.name(&name).expect("a name"));
        hookway::Client::connect(options).await.expect("connected")
    };
    let first = client().await;
    let second = client().await;
    // Told of each, it ends by itself and does not come back to fight.
    let ended = async { while first.next_event().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the first ends");
    let _ = world.send(post("name-59", "/").body("{}")).await.expect(200);
    tokio::time::timeout(Duration::from_secs(5), second.close()).await.expect("all are left in time");
    let _ = world.send(get("name-59", "/")).await.expect(503);
}

#[tokio::test]
async fn a_token_has_so_many_clients_and_names() {
    let world = World::with(|config| (config.tunnel.max_sessions, config.tunnel.max_names) = (1, 2)).await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    let first = world.try_client(&token, "one", &app).await.expect("connected");
    assert_eq!(refusal(world.try_client(&token, "one", &app).await), Code::Limit);
    assert_eq!(world.send(post("one", "/").body("kept")).await.expect(200).text(), "kept", "the first stays");
    first.close().await;
    world.try_client(&token, "two", &app).await.expect("room again").close().await;
    assert_eq!(refusal(world.try_client(&token, "three", &app).await), Code::Limit);
    world.try_client(&token, "one", &app).await.expect("its own").close().await;
}

#[tokio::test]
async fn a_token_for_some_names_gets_one_of_them_by_itself() {
    let world = World::new().await;
    let app = App::echo().await;
    for (pattern, start) in [("ci-*", "ci-"), ("exactly-this", "exactly-this")] {
        let token = world.token(pattern, &[pattern]).await;
        let client = hookway::Client::connect(world.options(&token, app.address)).await.expect("connected");
        let name = client.welcomed().first.clone().expect("a name");
        assert!(name.starts_with(start), "{name}");
        let _ = world.send(post(&name, "/").body("{}")).await.expect(200);
    }
}

#[tokio::test]
async fn a_name_released_and_claimed_at_once_is_its_new_owners() {
    let world = World::new().await;
    let app = App::echo().await;
    let old = world.client("billing", &app).await;
    let bob = world.token("bob", &[]).await;
    let store = hookway_relay::store::open(world.ca().parent().expect("the data folder")).expect("the store");
    let (billing, now) = ("billing".parse().expect("a name"), jiff::Timestamp::now());
    assert!(store.release_endpoint(&billing, None, now, now).await.expect("released"));
    // Before the relay has looked whether the store has changed.
    let _new = world.try_client(&bob, "billing", &app).await.expect("free");
    let ended = async { while old.next_event().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the old owner is told");
    // The relay has looked once more when another's release is seen, and the name is still there.
    let _other = world.client("other", &app).await;
    let (name, now) = ("other".parse().expect("a name"), jiff::Timestamp::now());
    assert!(store.release_endpoint(&name, None, now, now).await.expect("released"));
    let seen = async { while world.send(post("other", "/").body("{}")).await.status != 404 {} };
    tokio::time::timeout(Duration::from_secs(5), seen).await.expect("seen within 5 s");
    let _ = world.send(post("billing", "/").body("{}")).await.expect(200);
}

#[rstest]
#[case::reserved("www")]
#[case::not_allowed("accounting")]
#[tokio::test]
async fn some_names_are_not_given(#[case] name: &str) {
    let world = World::new().await;
    let app = App::echo().await;
    let token = world.token("ann", &["billing-*", "www"]).await;
    assert_eq!(refusal(world.try_client(&token, name, &app).await), Code::Name);
    world.try_client(&token, "billing-dev", &app).await.expect("an allowed name").close().await;
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_soon_not_heard() {
    let world = World::new().await;
    let app = App::echo().await;
    let wrong = format!("hwt_{}", "A".repeat(43));
    for _ in 0..10 {
        assert_eq!(refusal(world.try_client(&wrong, "billing", &app).await), Code::Token);
    }
    assert_eq!(refusal(world.try_client(&wrong, "billing", &app).await), Code::Limit);
    let good = world.token("ann", &[]).await;
    assert_eq!(refusal(world.try_client(&good, "billing", &app).await), Code::Limit, "the address has to wait");
}

#[tokio::test]
async fn a_revoked_token_ends_its_sessions() {
    let world = World::new().await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    let client = world.try_client(&token, "billing", &app).await.expect("connected");
    // As `hookway-relay token revoke` does it: from outside the relay's process.
    let store = hookway_relay::store::open(world.ca().parent().expect("the data folder")).expect("the store");
    assert_eq!(store.revoke_tokens("ann", jiff::Timestamp::now()).await.expect("revoked").len(), 1);
    let ended = async { while client.next_event().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("cut off within 5 s");
    let _ = world.send(get("billing", "/")).await.expect(503);
}

#[tokio::test]
async fn a_released_name_is_kept_for_its_owner_and_then_free_for_others() {
    let world = World::new().await;
    let app = App::echo().await;
    let client = world.client("billing", &app).await;
    let store = hookway_relay::store::open(world.ca().parent().expect("the data folder")).expect("the store");
    let name = "billing".parse().expect("a name");
    let now = jiff::Timestamp::now();
    assert!(store.release_endpoint(&name, None, now, now + Duration::from_secs(86_400)).await.expect("released"));
    let ended = async { while client.next_event().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("told within 5 s");
    let _ = world.send(post("billing", "/").body("{}")).await.expect(404);
    let bob = world.token("bob", &[]).await;
    match world.try_client(&bob, "billing", &app).await {
        Err(hookway::ConnectError::Refused { code, reason, .. }) => {
            assert_eq!(code, Code::Taken);
            assert!(reason.contains("kept for its owner until"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    world.client("billing", &app).await.close().await;
    for _ in 0..2 {
        assert!(store.release_endpoint(&name, None, now, now).await.expect("released for good"));
        world.try_client(&bob, "billing", &app).await.expect("free").close().await;
    }
}

#[tokio::test]
async fn a_client_comes_back_after_the_relay_restarted() {
    let world = World::new().await;
    let app = App::echo().await;
    let client = world.client("billing", &app).await;
    let world = world.restarted().await;
    let back = async {
        loop {
            match client.next_event().await {
                Some(Event::Up(welcomed)) => return welcomed,
                Some(_) => {}
                None => panic!("the client gave up"),
            }
        }
    };
    let welcomed = tokio::time::timeout(Duration::from_secs(10), back).await.expect("back in time");
    assert!(welcomed.urls.contains_key("billing"));
    assert_eq!(world.send(post("billing", "/").body("again")).await.expect(200).text(), "again");
}

#[tokio::test]
async fn a_client_without_a_name_gets_a_readable_one_and_keeps_it() {
    let world = World::new().await;
    let app = App::echo().await;
    let token = world.token("ann", &[]).await;
    let client = hookway::Client::connect(world.options(&token, app.address)).await.expect("connected");
    let name = client.welcomed().first.clone().expect("a name");
    assert_eq!(name.split('-').count(), 3, "{name}");
    assert_eq!(client.url(), format!("https://{name}.hooks.test:{}", world.relay.addresses().https.port()));
    let world = world.restarted().await;
    let back = async { while !matches!(client.next_event().await, Some(Event::Up(_))) {} };
    tokio::time::timeout(Duration::from_secs(10), back).await.expect("back in time");
    let _ = world.send(post(&name, "/").body("{}")).await.expect(200);
}

#[tokio::test]
async fn shutdown_finishes_what_is_in_flight() {
    let world = World::new().await;
    let (app, held) = App::held().await;
    let _client = world.client("billing", &app).await;
    let mut tls = world.tls("billing.hooks.test", b"http/1.1").await.expect("a connection");
    let sent = b"POST / HTTP/1.1\r\nhost: billing.hooks.test\r\ncontent-length: 4\r\n\r\nkept";
    tls.write_all(sent).await.expect("written");
    held.arrived().await;
    let read = async {
        let mut got = String::new();
        // The relay lets the app answer only once it is stopping.
        held.go_on();
        let _ = tls.read_to_string(&mut got).await;
        got
    };
    let (finished, got) = tokio::join!(world.relay.shutdown(), read);
    assert!(finished);
    assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("kept"), "{got}");
}
