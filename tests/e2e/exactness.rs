//! What arrives is what was sent.

use bytes::Bytes;
use hookway_tests::{App, World, post, request};
use http::Method;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rstest::rstest;

/// Names that the path of a webhook itself has a use for.
const SPOKEN_FOR: [&str; 12] = [
    "host",
    "te",
    "trailer",
    "upgrade",
    "connection",
    "content-length",
    "transfer-encoding",
    "forwarded",
    "expect",
    "keep-alive",
    "x-real-ip",
    "date",
];

fn fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let name = "[a-z][a-z0-9-]{0,15}".prop_filter("not one of ours", |name| {
        !SPOKEN_FOR.contains(&name.as_str()) && !name.starts_with("hookway-") && !name.starts_with("x-forwarded")
    });
    // White space around a value is not part of it (RFC 9110 §5.5).
    let inner = prop_oneof![Just(9u8), 32..=126u8, 128..=255u8];
    let value = prop::collection::vec(inner, 0..40).prop_map(|value| value.trim_ascii().to_vec());
    prop::collection::vec((name, value), 0..12)
}

fn whole() -> impl Strategy<Value = Bytes> {
    let small = prop::collection::vec(any::<u8>(), 0..5_000);
    let large = (0usize..3 << 20, any::<u8>())
        .prop_map(|(length, first)| (0..length).map(|at| first.wrapping_add((at / 7) as u8)).collect::<Vec<_>>());
    prop_oneof![3 => small, 1 => large].prop_map(Bytes::from)
}

/// Arbitrary heads and bodies, over both versions of HTTP, with their length announced and not.
#[tokio::test]
async fn arbitrary_heads_and_bodies_arrive_unchanged() {
    let world = World::new().await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    let mut runner = TestRunner::deterministic();
    let target = "/[!$-;=?-Z_a-z~]{0,100}";
    let case = (fields(), whole(), target, any::<bool>(), any::<bool>());
    for round in 0..150 {
        let drawn = case.new_tree(&mut runner).expect("a case").current();
        let (fields, body, target, http2, announced) = drawn;
        let mut sent = post("billing", &target);
        for (name, value) in &fields {
            sent = sent.header(name, value);
        }
        sent = if announced { sent.body(body.clone()) } else { sent.stream(chunks(&body)) };
        let answer = world.send(if http2 { sent.http2() } else { sent }).await.expect(200);
        assert_eq!(answer.body, body, "round {round}");
        let seen = app.seen().pop().expect("a request");
        assert_eq!((seen.target.as_str(), &seen.body), (target.as_str(), &body), "round {round}");
        for (name, _) in &fields {
            let sent: Vec<_> = fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_slice()).collect();
            let arrived: Vec<_> = seen.headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
            assert_eq!(arrived, sent, "round {round}: {name}");
        }
    }
}

fn chunks(body: &Bytes) -> http_body_util::combinators::BoxBody<Bytes, std::io::Error> {
    use http_body_util::BodyExt;
    let pieces: Vec<_> = body.chunks(30_000).map(|piece| Ok(http_body::Frame::data(body.slice_ref(piece)))).collect();
    http_body_util::StreamBody::new(futures_util::stream::iter(pieces)).boxed()
}

#[rstest]
#[case::get("GET")]
#[case::put("PUT")]
#[case::patch("PATCH")]
#[case::delete("DELETE")]
#[case::options("OPTIONS")]
#[case::custom("PURGE")]
#[tokio::test]
async fn every_method_passes(#[case] method: &str) {
    let world = World::new().await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    let method: Method = method.parse().expect("a method");
    for http2 in [false, true] {
        let sent = request(method.clone(), "billing", "/m?x");
        let _ = world.send(if http2 { sent.http2() } else { sent }).await.expect(200);
        assert_eq!(app.seen().pop().expect("a request").method, method);
    }
}

#[tokio::test]
async fn where_it_came_from_cannot_be_forged() {
    let world = World::new().await;
    let app = App::echo().await;
    let _client = world.client("billing", &app).await;
    let forged = [
        "x-forwarded-for",
        "X-Forwarded-Host",
        "x-forwarded-proto",
        "x-forwarded-port",
        "x_forwarded_for",
        "forwarded",
        "x-real-ip",
        "hookway-delivery",
        "hookway-attempt",
        "hookway-possible-duplicate",
        "hookway_delivery",
    ];
    let sent = forged.iter().fold(post("billing", "/"), |sent, name| sent.header(name, "6.6.6.6"));
    let _ = world.send(sent.body("{}")).await.expect(200);
    let seen = app.seen().pop().expect("a request");
    for (name, value) in &seen.headers {
        assert!(!value.as_bytes().windows(7).any(|w| w == b"6.6.6.6"), "{name}: {value:?}");
    }
    let one = |name: &str| {
        let values: Vec<_> = seen.headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect();
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        values[0].to_owned()
    };
    let host = format!("billing.hooks.test:{}", world.relay.addresses().https.port());
    assert_eq!(one("x-forwarded-for"), "127.0.0.1");
    assert_eq!((one("x-forwarded-proto"), one("x-forwarded-host")), ("https".into(), host.clone()));
    assert_eq!(one("forwarded"), format!("for=127.0.0.1;host=\"{host}\";proto=https"));
    assert!(one("hookway-delivery").starts_with("req_"));
    assert_eq!(one("host"), host);
}
