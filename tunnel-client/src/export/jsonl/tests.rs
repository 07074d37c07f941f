use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::exchange::samples;

fn line(exchange: &Exchange, secrets: Secrets) -> String {
    let mut out = Vec::new();
    write(exchange, secrets, &mut out).expect("it is memory");
    String::from_utf8(out).expect("text")
}

fn fields() -> impl Strategy<Value = Headers> {
    let value = vec(any::<u8>().prop_filter("not of a value", |b| *b == b'\t' || (*b >= 32 && *b != 127)), 0..20);
    vec(("[a-z][a-z0-9-]{0,12}", value), 0..4).prop_map(|fields| {
        let parsed = |(name, value): (String, Vec<u8>)| {
            Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(&value).ok()?))
        };
        fields.into_iter().filter_map(parsed).collect()
    })
}

fn body() -> impl Strategy<Value = Kept> {
    let bytes = prop_oneof![vec(any::<u8>(), 0..50), "\\PC{0,20}".prop_map(String::into_bytes)];
    (bytes, 0..9u64).prop_map(|(bytes, more)| Kept { size: bytes.len() as u64 + more, bytes: bytes.into() })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let status = (100..1000u16).prop_map(|code| StatusCode::from_u16(code).expect("a status"));
    prop_oneof![
        status.clone().prop_map(Outcome::Answered),
        status.prop_map(Outcome::Cut),
        (0..FAILURES.len(), ".{0,9}").prop_map(|(i, short)| Outcome::Failed { failure: FAILURES[i].0, short }),
    ]
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let duration = || any::<u64>().prop_map(Duration::from_nanos);
    let reply = (100..1000u16, fields(), body(), fields()).prop_map(|(code, headers, body, trailers)| Reply {
        status: StatusCode::from_u16(code).expect("a status"),
        headers,
        body,
        trailers,
    });
    let times = (option::of(duration()), option::of(duration()), duration());
    (any::<u32>(), time(), ".{0,20}", outcome(), ".{0,20}", times, option::of(reply)).prop_map(
        |(number, at, url, outcome, message, (connect, first_byte, duration), reply)| Attempt {
            number,
            at,
            url,
            outcome,
            message,
            connect,
            first_byte,
            duration,
            reply,
        },
    )
}

fn time() -> impl Strategy<Value = Timestamp> {
    (0..4_000_000_000_000_000i64).prop_map(|us| Timestamp::from_microsecond(us).expect("a time"))
}

fn id() -> impl Strategy<Value = DeliveryId> {
    any::<[u8; 16]>().prop_map(DeliveryId::from_bytes)
}

prop_compose! {
    fn exchange()(
        (seq, version) in any::<(u64, u64)>(),
        (http2, queued, edited, pinned, unfinished) in any::<(bool, bool, bool, bool, bool)>(),
        (id, replay_of, received_at) in (id(), option::of(id()), time()),
        (endpoint, remote, method, target) in ("[a-z][a-z0-9]{0,9}", ".{0,9}", "[A-Z!]{1,9}", "/[a-z%?&=\\[\\]{}é.]{0,20}"),
        (headers, body, trailers) in (fields(), body(), fields()),
        attempts in vec(attempt(), 0..3),
    ) -> Exchange {
        let endpoint = endpoint.parse().expect("a name");
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = Request { method, target: target.parse().expect("a target"), headers, body, trailers, unfinished };
        Exchange {
            webhook: crate::exchange::Webhook {
                provider: Some("stripe".into()),
                event: Some("charge.succeeded".into()),
                event_id: Some("evt_1".into()),
                dedup_id: Some("evt_1".into()),
                signature: crate::exchange::Verdict::Bad,
                detail: Some("why".into()),
                secret: Some("NAME".into()),
                resigned: true,
                duplicate_of: Some(DeliveryId::from_bytes([3; 16])),
                deadline: Some(Duration::from_secs(5)),
                acked: Some(Duration::from_millis(4100)),
            },
            seq, version, id, endpoint, remote, received_at, http2, queued, request, attempts, replay_of, edited, pinned
        }
    }
}

proptest! {
    #[test]
    fn there_and_back(exchange in exchange()) {
        let line = line(&exchange, Secrets::Shown);
        prop_assert_eq!(line.matches('\n').count(), 1);
        let back = read(&line).expect("a line");
        prop_assert!(!back.masked);
        // Debug shows header values that are sensitive as such only; these are not.
        prop_assert_eq!(format!("{:?}", back.exchange), format!("{exchange:?}"));
    }

    #[test]
    fn any_text_is_a_line_or_refused(text in ".{0,200}") {
        let _ = read(&text);
    }
}

#[test]
fn a_masked_line_says_so() {
    let mut exchange =
        samples::request("POST", "/a?b=1&token=s3cr3t", &[("authorization", b"s3cr3t"), ("x", b"1")], b"");
    exchange.attempts = vec![samples::attempt("http://u:s3cr3t@host/?key=s3cr3t", &[("set-cookie", b"s3cr3t")], b"")];
    let text = line(&exchange, Secrets::Masked);
    assert!(!text.contains("s3cr3t"), "{text}");
    let back = read(&text).expect("a line");
    assert!(back.masked);
    assert_eq!(back.exchange.request.target, "/a?b=1&token=••••");
    let harmless = samples::request("POST", "/", &[("x", b"1")], b"");
    assert!(!read(&line(&harmless, Secrets::Masked)).expect("a line").masked);
}

#[test]
fn times_have_microseconds() {
    let text = line(&samples::request("POST", "/", &[], b""), Secrets::Shown);
    assert!(text.starts_with("{\"hookway\":1,"), "{text}");
    assert!(text.contains("\"received_at\":\"2027-01-15T08:00:00.000001Z\""), "{text}");
}

#[test]
fn what_is_missing_has_its_default() {
    let exchange = read("{\"new\":[1]}").expect("a line").exchange;
    assert_eq!((exchange.request.method, exchange.request.target.as_str()), (Method::POST, "/"));
    let line = r#"{"request":{"body":{"bytes":"abc"}},"attempts":[{"url":"http://x","more":1}]}"#;
    let exchange = read(line).expect("a line").exchange;
    assert_eq!((exchange.request.body.size, exchange.attempts[0].duration), (3, Duration::ZERO));
}

#[rstest]
#[case("", 0, "EOF while parsing a value")]
#[case("{\"seq\":-1}", 9, "invalid value")]
#[case("{\"hookway\":2}", 0, "format 2 is newer")]
#[case("{\"id\":\"req_1\"}", 0, "req_1: not a delivery id")]
#[case("{\"request\":{\"method\":\"A B\"}}", 0, "a bad method")]
#[case("{\"request\":{\"path\":\"a b\"}}", 0, "a bad path")]
#[case("{\"request\":{\"headers\":[[\"a\",\"\\n\"]]}}", 0, "\"a\" is a header field with a bad value")]
#[case("{\"request\":{\"body\":{\"bytes\":{\"base64\":\"?\"}}}}", 0, "not base64")]
#[case("{\"request\":{\"body\":{\"bytes\":\"abc\",\"size\":2}}}", 0, "a body is larger")]
#[case("{\"attempts\":[{\"outcome\":{\"state\":\"answered\",\"status\":1}}]}", 0, "1 is no status")]
fn what_is_wrong_is_said(#[case] line: &str, #[case] column: usize, #[case] what: &str) {
    let e = read(line).expect_err("it is wrong");
    assert!(e.column == column && e.what.starts_with(what), "{e:?}");
}
