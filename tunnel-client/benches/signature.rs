//! What checking one signature of a 10 KiB body costs, a provider each.

use std::hint::black_box;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use criterion::{Criterion, criterion_group, criterion_main};
use http::Request;

const AT: u64 = 1_800_000_000;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signed(before: &str, body: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    hmac::sign(&key, &[before.as_bytes(), body].concat()).as_ref().to_vec()
}

fn body() -> Vec<u8> {
    let item = r#"{"id":"evt_1","type":"charge.succeeded","webhookTimestamp":1800000000000,"more":""#;
    let rest = "x".repeat((10 << 10) - item.len() - 2);
    format!("{item}{rest}\"}}").into_bytes()
}

/// Each kind of signature over a body of 10 KiB, with what finds it good.
fn webhooks() -> Vec<(&'static str, String, Request<Vec<u8>>)> {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    let body = body();
    let request = |fields: &[(&str, String)]| {
        let mut request = Request::post("/hooks").header("host", "billing.hooks.example.com");
        for (name, value) in fields {
            request = request.header(*name, value);
        }
        request.header("content-type", "application/json").body(body.clone()).expect("a request")
    };
    let secret = || "secret".to_owned();
    let stripe = format!("t={AT},v1={}", hex(&signed(&format!("{AT}."), &body)));
    let slack = format!("v0={}", hex(&signed(&format!("v0:{AT}:"), &body)));
    let square = BASE64_STANDARD.encode(signed("https://billing.hooks.example.com/hooks", &body));
    let ecdsa = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key");
    let message = [AT.to_string().as_bytes(), &body].concat();
    let sendgrid = BASE64_STANDARD.encode(ecdsa.sign(&SystemRandom::new(), &message).expect("signed"));
    let ed25519 = Ed25519KeyPair::generate().expect("a key");
    let discord = hex(ed25519.sign(&message).as_ref());
    let spki = {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        let der: PublicKeyX509Der<'_> = ecdsa.public_key().as_der().expect("a key");
        BASE64_STANDARD.encode(der.as_ref())
    };
    let at = || ("x-slack-request-timestamp", AT.to_string());
    vec![
        ("stripe", secret(), request(&[("stripe-signature", stripe)])),
        ("github", secret(), request(&[("x-hub-signature-256", format!("sha256={}", hex(&signed("", &body))))])),
        ("slack", secret(), request(&[("x-slack-signature", slack), at()])),
        ("square", secret(), request(&[("x-square-hmacsha256-signature", square)])),
        ("linear", secret(), request(&[("linear-signature", hex(&signed("", &body)))])),
        (
            "sendgrid",
            spki,
            request(&[
                ("x-twilio-email-event-webhook-signature", sendgrid),
                ("x-twilio-email-event-webhook-timestamp", AT.to_string()),
            ]),
        ),
        (
            "discord",
            hex(ed25519.public_key().as_ref()),
            request(&[("x-signature-ed25519", discord), ("x-signature-timestamp", AT.to_string())]),
        ),
    ]
}

fn verify(c: &mut Criterion) {
    let at: SystemTime = UNIX_EPOCH + Duration::from_secs(AT);
    let mut group = c.benchmark_group("verify 10 KiB");
    for (provider, secret, webhook) in webhooks() {
        let secret = hookway::Secret::new(provider, &secret).expect("a secret");
        let found = secret.verify(&webhook, at);
        assert_eq!(found.signature, hookway::Verdict::Ok, "{provider}: {:?}", found.detail);
        group.bench_function(provider, |b| b.iter(|| secret.verify(black_box(&webhook), at)));
    }
    group.finish();
}

criterion_group!(benches, verify);
criterion_main!(benches);
