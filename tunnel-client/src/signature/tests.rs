//! All providers through the same questions.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hookway_protocol::headers::Headers;
use http::{HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::exchange::Verdict;

/// 2027-01-15 08:00:00 UTC.
const AT: i64 = 1_800_000_000;

fn at() -> Timestamp {
    Timestamp::from_second(AT).expect("a time")
}

fn known(name: &str) -> Known {
    Known::named(name).expect("a provider")
}

/// What signs for a provider, and the secret that finds it good.
fn keys(name: &str) -> (Signer, String) {
    match known(name).facts().developer_key {
        Some(kind) if name != "standard" => {
            let key = DeveloperKey::read(kind, &DeveloperKey::generate(kind)).expect("a key");
            let encoding = if kind == KeyKind::P256 { Encoding::Base64 } else { Encoding::Hex };
            let secret = encoding.encode(&key.public());
            (Signer::Developer(key), secret)
        }
        _ => {
            let secret =
                if name == "standard" { "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=" } else { "a secret of some length" };
            (known(name).key(secret).expect("a key").signer().expect("it signs"), secret.to_owned())
        }
    }
}

/// A delivery of the provider's usual event, signed.
fn signed(name: &str, signer: &Signer, body: Option<&[u8]>) -> Outgoing {
    let provider = known(name);
    let sample = crate::samples::make(name, provider.facts().sample, &[]).ok();
    let mut headers = Headers::default();
    let mut push = |name: &str, value: &str| {
        headers.push(HeaderName::try_from(name).expect("a name"), HeaderValue::try_from(value).expect("a value"));
    };
    push("host", "billing.hooks.example.com");
    push("user-agent", provider.facts().user_agent);
    push("content-type", provider.facts().content_type);
    for (name, value) in sample.iter().flat_map(|sample| &sample.headers) {
        push(name, value);
    }
    let text = sample.map_or_else(|| "{}".to_owned(), |sample| sample.body);
    let usual = if name == "twilio" { crate::samples::form(&text) } else { text };
    let body = body.map_or_else(|| usual.into(), Bytes::copy_from_slice);
    let target = "/hooks?a=1&b=%20".parse().expect("a target");
    let mut request = Outgoing { headers, origin: "https://billing.hooks.example.com".into(), target, body };
    provider.sign(&mut request, signer, at()).expect("signed");
    request
}

fn verdict(name: &str, secret: &str, request: &Outgoing, at: Timestamp) -> Verdict {
    let rule = Rule::new(known(name), secret, "SECRET").expect("a secret");
    Verifier::new(vec![rule]).judge("billing", &request.received(at)).verdict()
}

fn names() -> impl Iterator<Item = &'static str> {
    Known::names()
}

#[test]
fn what_is_signed_is_good_and_nothing_else_is() {
    for name in names() {
        let (signer, secret) = keys(name);
        let request = signed(name, &signer, None);
        assert_eq!(verdict(name, &secret, &request, at()), Verdict::Ok, "{name}");
        let (_, other) = keys(name);
        let other = if other == secret { "whsec_b3RoZXIgc2VjcmV0IG90aGVy".to_owned() } else { other };
        assert_eq!(verdict(name, &other, &request, at()), Verdict::Bad, "{name}");
        let provider = known(name);
        let recognised = Known::of(&request.received(at())).map(|provider| provider.facts().name);
        assert_eq!(recognised.unwrap_or("hmac"), provider.facts().name, "its header fields tell");
    }
}

/// Whether the provider signs that part.
fn covers_body(name: &str) -> bool {
    !matches!(name, "gitlab" | "mailgun")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A flipped bit in the body, in a field that is signed or holds the signature, or in the secret is never good.
    #[test]
    fn a_flipped_bit_is_never_good(place in any::<prop::sample::Index>(), bit in 0..8_u8, whole in any::<prop::sample::Index>()) {
        for name in names() {
            let (signer, secret) = keys(name);
            let request = signed(name, &signer, None);
            if covers_body(name) {
                let mut changed = request.clone();
                let mut body = changed.body.to_vec();
                body[place.index(request.body.len())] ^= 1 << bit;
                changed.body = body.into();
                // A form is signed as it is decoded.
                let decodes_alike = name == "twilio" && same_form(&request, &changed);
                prop_assert!(decodes_alike || verdict(name, &secret, &changed, at()) != Verdict::Ok, "{name}: body");
            }
            let fields = flippable(&request);
            // Its signature stands in the body.
            prop_assert!(name == "mailgun" || !fields.is_empty(), "{name}");
            for (field, value) in fields {
                let mut bytes = value.as_bytes().to_vec();
                bytes[place.index(value.len())] ^= 1 << bit;
                let Ok(value) = HeaderValue::from_bytes(&bytes) else { continue };
                let mut changed = request.clone();
                changed.put(&field, Some(value));
                prop_assert!(verdict(name, &secret, &changed, at()) != Verdict::Ok, "{name}: {field}");
            }
            let key = known(name).key(&secret).expect("a key");
            let mut text = secret.into_bytes();
            let at_byte = whole.index(text.len());
            text[at_byte] ^= 1 << bit;
            let Ok(text) = String::from_utf8(text) else { continue };
            if let Ok(rule) = Rule::new(known(name), &text, "SECRET") {
                // Another text may stand for the same key: hex in upper case.
                let same = rule.key == key;
                let found = Verifier::new(vec![rule]).judge("billing", &request.received(at())).verdict();
                prop_assert!(same || found != Verdict::Ok, "{name}: secret");
            }
        }
    }
}

#[test]
fn a_point_in_the_forbidden_form_is_no_second_text_for_a_key() {
    let (_, secret) = keys("sendgrid");
    let mut der = BASE64_STANDARD.decode(&secret).expect("base64");
    let is_odd = der.last().is_some_and(|last| last % 2 == 1);
    assert_eq!(std::mem::replace(&mut der[26], if is_odd { 7 } else { 6 }), 4);
    assert!(Rule::new(known("sendgrid"), &BASE64_STANDARD.encode(der), "SECRET").is_err());
}

fn same_form(one: &Outgoing, other: &Outgoing) -> bool {
    let fields = |request: &Outgoing| {
        let mut pairs = received::pairs(&request.body);
        pairs.sort();
        pairs.dedup();
        pairs.into_iter().flat_map(|(name, value)| [name, value].concat()).collect::<Vec<u8>>()
    };
    fields(one) == fields(other)
}

/// The fields that are signed, or hold the signature.
fn flippable(request: &Outgoing) -> Vec<(HeaderName, HeaderValue)> {
    const FIELDS: [&str; 20] = [
        "x-signature",
        "stripe-signature",
        "x-hub-signature-256",
        "x-slack-signature",
        "x-slack-request-timestamp",
        "x-shopify-hmac-sha256",
        "x-twilio-signature",
        "x-twilio-email-event-webhook-signature",
        "x-twilio-email-event-webhook-timestamp",
        "x-square-hmacsha256-signature",
        "x-gitlab-token",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "x-signature-ed25519",
        "x-signature-timestamp",
        "linear-signature",
        "paddle-signature",
        "x-zm-signature",
        "x-zm-request-timestamp",
    ];
    let fields = request.headers.iter().filter(|(name, _)| FIELDS.contains(&name.as_str()));
    fields.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[rstest]
#[case("stripe", 300_000, None, 1_000)]
#[case("slack", 300_000, Some(300_000), 1_000)]
#[case("standard", 300_000, Some(300_000), 1_000)]
#[case("zoom", 300_000, None, 1_000)]
#[case("linear", 60_000, Some(60_000), 1)]
#[case("paddle", 5_000, None, 1)]
fn both_edges_of_each_tolerance(#[case] name: &str, #[case] past: i64, #[case] future: Option<i64>, #[case] step: i64) {
    let (signer, secret) = keys(name);
    let request = signed(name, &signer, None);
    let found = |ms: i64| verdict(name, &secret, &request, at() + SignedDuration::from_millis(ms));
    assert_eq!(found(past), Verdict::Ok);
    // Where seconds are counted, the last one is whole.
    assert_eq!(found(past + step - 1), Verdict::Ok);
    assert_eq!(found(past + step), Verdict::Bad);
    match future {
        Some(future) => {
            assert_eq!(found(-future), Verdict::Ok);
            assert_eq!(found(-future - 1), Verdict::Bad);
        }
        None => assert_eq!(found(-86_400_000), Verdict::Ok),
    }
}

#[test]
fn providers_without_a_time_take_any() {
    for name in names().filter(|name| known(name).facts().tolerance.is_none()) {
        let (signer, secret) = keys(name);
        let request = signed(name, &signer, None);
        assert_eq!(verdict(name, &secret, &request, Timestamp::UNIX_EPOCH), Verdict::Ok, "{name}");
    }
}

#[test]
fn any_of_several_secrets_will_do() {
    let (signer, secret) = keys("stripe");
    let request = signed("stripe", &signer, None);
    let rule = |secret: &str, name: &str| Rule::new(known("stripe"), secret, name).expect("a secret");
    let verifier = Verifier::new(vec![rule("whsec_old", "OLD"), rule(&secret, "NEW")]);
    let judged = verifier.judge("billing", &request.received(at()));
    assert_eq!(verifier.secret_of(&judged).map(|rule| rule.name.as_str()), Some("NEW"));
}

#[test]
fn a_body_may_come_in_pieces() {
    for name in names().filter(|name| !matches!(*name, "twilio" | "linear" | "mailgun")) {
        let (signer, secret) = keys(name);
        let request = signed(name, &signer, None);
        let rule = Rule::new(known(name), &secret, "SECRET").expect("a secret");
        let verifier = Verifier::new(vec![rule]);
        let mut look = verifier.look("billing", &Received { body: None, ..request.received(at()) });
        request.body.chunks(7).for_each(|piece| look.update(piece));
        assert_eq!(look.finish().verdict(), Verdict::Ok, "{name}");
    }
}

#[test]
fn rules_hold_where_they_are_for() {
    let (signer, secret) = keys("stripe");
    let request = signed("stripe", &signer, None);
    let judge = |endpoint: Option<&str>, path: Option<&str>| {
        let rule = Rule::new(known("stripe"), &secret, "SECRET").expect("a secret");
        let rule = rule.only_for(endpoint.map(str::to_owned), path.map(str::to_owned));
        Verifier::new(vec![rule]).judge("billing", &request.received(at())).verdict()
    };
    assert_eq!(judge(Some("billing"), Some("/hooks")), Verdict::Ok);
    assert_eq!(judge(Some("other"), None), Verdict::None);
    assert_eq!(judge(None, Some("/hook")), Verdict::None);
}

#[test]
fn the_developers_own_key_says_nothing_of_the_providers() {
    let (signer, _) = keys("discord");
    let request = signed("discord", &signer, None);
    let (_, own) = keys("discord");
    let rule = Rule::own(known("discord"), known("discord").key(&own).expect("a key"));
    let judged = Verifier::new(vec![rule]).judge("billing", &request.received(at()));
    assert_eq!(judged.verdict(), Verdict::None);
    let why = Verifier::default().explain(&judged, &request.received(at()), &Suspects::default());
    assert!(why.is_some_and(|why| why.contains("--verify discord=DISCORD_PUBLIC_KEY")));
}

#[rstest]
#[case("stripe", "stripe-signature", "v1=00", "has no `t=`")]
#[case("stripe", "stripe-signature", "t=1", "has no `v1=`")]
#[case("stripe", "stripe-signature", "t=x,v1=00", "`x` is no number")]
#[case("github", "x-hub-signature-256", "sha1=00", "does not begin with `sha256=`")]
#[case("slack", "x-slack-signature", "v0=00", "X-Slack-Request-Timestamp is missing")]
#[case("standard", "webhook-signature", "v1,x", "webhook-id is missing")]
#[case("paddle", "paddle-signature", "ts=1", "has no `h1=`")]
#[case("zoom", "x-zm-signature", "00", "does not begin with `v0=`")]
fn a_field_that_cannot_be_read_is_bad(
    #[case] name: &str,
    #[case] field: &'static str,
    #[case] value: &str,
    #[case] why: &str,
) {
    let headers: Headers =
        [(HeaderName::from_static(field), HeaderValue::try_from(value).expect("a value"))].into_iter().collect();
    let received = Received { headers: &headers, target: "/", body: Some(b"{}"), at: at() };
    let (_, secret) = keys(name);
    let verifier = Verifier::new(vec![Rule::new(known(name), &secret, "SECRET").expect("a secret")]);
    let judged = verifier.judge("billing", &received);
    assert_eq!(judged.verdict(), Verdict::Bad);
    let found = verifier.explain(&judged, &received, &Suspects::default()).expect("a reason");
    assert!(found.contains(why), "{found}");
}

#[test]
fn linears_time_is_the_bodys() {
    let (signer, secret) = keys("linear");
    let request = signed("linear", &signer, Some(br#"{ "webhookTimestamp" : 1,"a":1.0}"#));
    assert_eq!(request.body, format!(r#"{{ "webhookTimestamp" : {AT}000,"a":1.0}}"#), "every other byte stays");
    assert_eq!(verdict("linear", &secret, &request, at()), Verdict::Ok);
}

#[test]
fn every_provider_has_its_facts() {
    for provider in PROVIDERS {
        let facts = provider.facts();
        assert!(facts.page.starts_with("https://"), "{}", facts.name);
        assert!(crate::samples::names(facts.name).len() >= 3, "{}", facts.name);
        assert!(crate::samples::names(facts.name).iter().any(|name| name == facts.sample), "{}", facts.name);
    }
}

#[test]
fn the_fuzz_corpus_is_judged_and_explained() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/signature");
    let untimed = ["github", "shopify", "twilio", "square", "gitlab", "mailgun", "hmac"];
    for entry in std::fs::read_dir(folder).expect("a corpus") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read(&path).expect("a file");
        let end = text.windows(2).position(|end| end == b"\n\n").expect("an empty line");
        let head = String::from_utf8_lossy(&text[..end]).into_owned();
        let mut lines = head.lines();
        let target = lines.next().and_then(|line| line.strip_prefix("POST https://billing.hooks.example.com"));
        let headers: Headers = lines
            .filter_map(|line| line.split_once(": "))
            .filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
            .collect();
        let received =
            Received { headers: &headers, target: target.unwrap_or("/"), body: Some(&text[end + 2..]), at: at() };
        for name in names() {
            let secret = if name == "standard" { "whsec_c2VjcmV0" } else { "secret" };
            let Ok(rule) = Rule::new(known(name), secret, "SECRET") else { continue };
            let verifier = Verifier::new(vec![rule]);
            let judged = verifier.judge("billing", &received);
            let is_own = path.ends_with(name) && untimed.contains(&name) && name != "gitlab";
            assert!(!is_own || judged.verdict() == Verdict::Ok, "{name}");
            let why = verifier.explain(&judged, &received, &Suspects::default());
            assert!(judged.verdict() != Verdict::Bad || why.is_some(), "{}", path.display());
        }
    }
}

#[test]
fn a_paths_rule_is_not_for_the_sender_to_choose() {
    let rule = |name: &str, secret: &str| Rule::new(known(name), secret, name).expect("a secret");
    let (signer, secret) = keys("mailgun");
    let mailgun = signed("mailgun", &signer, None);
    let rules = vec![rule("stripe", "whsec_x").only_for(None, Some("/hooks".into())), rule("mailgun", &secret)];
    let judged = Verifier::new(rules).judge("billing", &mailgun.received(at()));
    assert_eq!(judged.verdict(), Verdict::None, "good for another sender, at a path that is Stripe's");
    assert_eq!(judged.provider.map(|provider| provider.facts().name), Some("stripe"));
}

#[test]
fn what_a_file_describes_goes_before_what_is_listed() {
    let described = || {
        let mut hmac = Hmac::default();
        (hmac.header, hmac.prefix) = ("x-hub-signature-256".into(), "sha256=".into());
        Known::Described(Arc::new(hmac))
    };
    let (signer, secret) = keys("github");
    let request = signed("github", &signer, None);
    let rule = |secret: &str, name: &str| Rule::new(described(), secret, name).expect("a secret");
    let verifier = Verifier::new(vec![rule("old", "OLD"), rule(&secret, "NEW")]);
    let judged = verifier.judge("billing", &request.received(at()));
    assert_eq!(judged.provider.as_ref().map(|provider| provider.facts().name), Some("hmac"));
    // Two of the same description are a rotation.
    assert_eq!(verifier.secret_of(&judged).map(|rule| rule.name.as_str()), Some("NEW"));
}
