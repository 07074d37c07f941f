//! Header fields and bodies of any bytes, as every provider's: judged and explained without a panic.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, Request};
use libfuzzer_sys::fuzz_target;

const PROVIDERS: [(&str, &str); 15] = [
    ("stripe", "secret"),
    ("github", "secret"),
    ("slack", "secret"),
    ("shopify", "secret"),
    ("twilio", "secret"),
    ("square", "secret"),
    ("gitlab", "secret"),
    ("standard", "whsec_c2VjcmV0"),
    ("standard", "whpk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    ("discord", "0000000000000000000000000000000000000000000000000000000000000000"),
    ("linear", "secret"),
    ("paddle", "secret"),
    ("zoom", "secret"),
    ("mailgun", "secret"),
    ("hmac", "secret"),
];

fuzz_target!(|input: &[u8]| {
    let end = input.windows(2).position(|end| end == b"\n\n").unwrap_or(input.len());
    let (head, body) = (&input[..end], input.get(end + 2..).unwrap_or_default());
    let mut lines = head.split(|byte| *byte == b'\n');
    let target = lines.next().and_then(|line| line.strip_prefix(b"POST https://billing.hooks.example.com"));
    let mut request = Request::new(body);
    if let Some(uri) = target.and_then(|target| std::str::from_utf8(target).ok()?.parse().ok()) {
        *request.uri_mut() = uri;
    }
    for line in lines.take(64) {
        let Some(at) = line.windows(2).position(|end| end == b": ") else { continue };
        let field = (HeaderName::from_bytes(&line[..at]), HeaderValue::from_bytes(&line[at + 2..]));
        if let (Ok(name), Ok(value)) = field {
            request.headers_mut().append(name, value);
        }
    }
    let at = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for (provider, secret) in PROVIDERS {
        let secret = hookway::Secret::new(provider, secret).expect("a provider and its secret");
        let found = secret.verify(&request, at);
        assert!(found.detail.is_none_or(|detail| detail.len() < 2000));
    }
});
