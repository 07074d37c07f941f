//! Which header fields and query parameters are secret, and what is shown in their place.

use std::borrow::Cow;

use hookway_protocol::headers::Headers;
use http::HeaderName;
use serde::Serialize;

/// Stands for a value that is not shown.
pub(crate) const MASK: &str = "••••";

/// Whether secret values are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Secrets {
    /// [`MASK`] stands in their place.
    #[default]
    Masked,
    /// As they are: somebody asked for them.
    Shown,
}

/// A header field for display.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The value or the mask.
    pub(crate) value: String,
    /// Whether the value is one to mask.
    pub(crate) secret: bool,
}

/// Whether the values of that header field are secret.
pub(crate) fn is_secret(name: &HeaderName) -> bool {
    /// Only look like secrets: ids, hashes of what all may see, and lists of names.
    const HARMLESS: [&str; 15] = [
        "idempotency-key",
        "x-idempotency-key",
        "sec-websocket-key",
        "x-token-type",
        "signature-input",
        "x-paypal-transmission-id",
        "x-signature-timestamp",
        "x-signature-version",
        "x-twilio-email-event-webhook-timestamp",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "surrogate-key",
        "x-routing-key",
        "x-partition-key",
        "accept-signature",
        "i-twilio-idempotency-token",
    ];
    const SECRET: [&str; 16] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "cookie2",
        "set-cookie",
        "set-cookie2",
        "x-auth",
        "x-authorization",
        "x-forwarded-authorization",
        "x-original-authorization",
        "x-amz-credential",
        "x-shopify-hmac-sha256",
        "x-session-id",
        "x-paypal-transmission-sig",
        "authentication-info",
        "x-jwt-assertion",
    ];
    /// `hmac` and `jwt` are whole words of names; the others stand anywhere in one (`x-gitlab-token`, `svix-signature`).
    const PARTS: [&str; 11] = [
        "signature",
        "token",
        "secret",
        "password",
        "passwd",
        "credential",
        "api-key",
        "apikey",
        "api_key",
        "hmac",
        "jwt",
    ];
    // Underscores are allowed in names, and CGI apps take them for hyphens.
    let name = name.as_str();
    if HARMLESS.contains(&name) {
        return false;
    }
    SECRET.contains(&name)
        || PARTS.iter().any(|part| name.contains(part))
        || ["-key", "_key", "-authorization"].iter().any(|end| name.ends_with(end))
}

/// Whether the values of that query parameter or form field are secret.
pub(crate) fn is_secret_parameter(name: &str) -> bool {
    const SECRET: [&str; 17] = [
        "key",
        "sig",
        "code",
        "auth",
        "authorization",
        "pass",
        "pwd",
        "jwt",
        "sas",
        "hmac",
        "session",
        "sessionid",
        "session_id",
        "sid",
        "otp",
        "assertion",
        "bearer",
    ];
    const PARTS: [&str; 9] =
        ["token", "secret", "password", "passwd", "signature", "credential", "apikey", "api_key", "api-key"];
    const HARMLESS: [&str; 4] = ["token_type", "idempotency_key", "idempotency-key", "signature_version"];
    let name = name.to_ascii_lowercase();
    if HARMLESS.contains(&name.as_str()) {
        return false;
    }
    SECRET.contains(&name.as_str())
        || PARTS.iter().any(|part| name.contains(part))
        || ["_key", "-key"].iter().any(|end| name.ends_with(end))
}

/// A request target with the values of its secret query parameters masked; every other byte is as it was.
pub(crate) fn target(target: &str) -> Cow<'_, str> {
    let Some((path, query)) = target.split_once('?') else { return Cow::Borrowed(target) };
    let secret = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        (!value.is_empty() && is_secret_parameter(&decoded(name))).then_some(name.len())
    };
    // Some apps split at `;` as well.
    let pairs = || query.split_inclusive(['&', ';']);
    let bare = |pair: &str| pair.trim_end_matches(['&', ';']).len();
    if !pairs().any(|pair| secret(&pair[..bare(pair)]).is_some()) {
        return Cow::Borrowed(target);
    }
    let mut masked = format!("{path}?");
    for pair in pairs() {
        let (pair, end) = pair.split_at(bare(pair));
        match secret(pair) {
            Some(name) => masked.extend([&pair[..=name], MASK, end]),
            None => masked.extend([pair, end]),
        }
    }
    Cow::Owned(masked)
}

/// The same of a whole URL; a password in it is masked too.
pub(crate) fn url(url: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = url.split_once("://") else { return target(url) };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    match authority.rsplit_once('@') {
        Some((_, host)) => Cow::Owned(format!("{scheme}://{MASK}@{host}{}", target(&rest[authority.len()..]))),
        None => target(url),
    }
}

/// A header value for display, bytes that are not UTF-8 replaced.
pub(crate) fn value<'a>(name: &HeaderName, value: &'a [u8], secrets: Secrets) -> Cow<'a, str> {
    match secrets {
        Secrets::Masked if is_secret(name) => Cow::Borrowed(MASK),
        _ => String::from_utf8_lossy(value),
    }
}

/// Header fields for display, in their order.
pub(crate) fn rows(headers: &Headers, secrets: Secrets) -> Vec<Row> {
    let row = |(name, bytes): (&HeaderName, &http::HeaderValue)| Row {
        name: name.to_string(),
        value: value(name, bytes.as_bytes(), secrets).into_owned(),
        secret: is_secret(name),
    };
    headers.iter().map(row).collect()
}

/// The bytes of a percent-encoded name or value, `+` being a blank; what is not UTF-8 is replaced.
pub(crate) fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = |i: usize| bytes.get(i).and_then(|b| (*b as char).to_digit(16));
        at += 1;
        plain.push(match (byte, hex(at), hex(at + 1)) {
            (b'+', ..) => b' ',
            (b'%', Some(high), Some(low)) => {
                at += 2;
                (high << 4 | low) as u8
            }
            _ => byte,
        });
    }
    String::from_utf8(plain).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("authorization", true)]
    #[case("cookie", true)]
    #[case("set-cookie", true)]
    #[case("x-api-key", true)]
    #[case("stripe-signature", true)]
    #[case("x-hub-signature-256", true)]
    #[case("x-shopify-hmac-sha256", true)]
    #[case("x-gitlab-token", true)]
    #[case("ocp-apim-subscription-key", true)]
    #[case("idempotency-key", false)]
    #[case("sec-websocket-key", false)]
    #[case("webhook-id", false)]
    #[case("x-github-event", false)]
    #[case("host", false)]
    fn names(#[case] name: &'static str, #[case] secret: bool) {
        assert_eq!(is_secret(&HeaderName::from_static(name)), secret);
    }

    #[rstest]
    #[case("/a", "/a")]
    #[case("/a?", "/a?")]
    #[case("/token=1?b=%20&c", "/token=1?b=%20&c")]
    #[case("/a?token=1&b=2", "/a?token=••••&b=2")]
    #[case("/a?b=2&&API_KEY=x=y&", "/a?b=2&&API_KEY=••••&")]
    #[case("/a?%74oken=1;sig=2", "/a?%74oken=••••;sig=••••")]
    #[case("/a?user[password]=x&token=&code", "/a?user[password]=••••&token=&code")]
    fn queries(#[case] from: &str, #[case] to: &str) {
        assert_eq!(target(from), to);
    }

    #[test]
    fn a_url_has_no_password() {
        assert_eq!(url("http://me:pw@host/a?key=1"), "http://••••@host/a?key=••••");
        assert_eq!(url("http://host/@?a=1"), "http://host/@?a=1");
    }

    #[test]
    fn values() {
        let name = HeaderName::from_static("x-api-key");
        assert_eq!(value(&name, b"k", Secrets::Masked), MASK);
        assert_eq!(value(&name, b"k\xff", Secrets::Shown), "k\u{fffd}");
    }

    #[rstest]
    #[case("a%20b+c", "a b c")]
    #[case("%zz%4%é%", "%zz%4%é%")]
    #[case("%ff", "\u{fffd}")]
    fn percents(#[case] from: &str, #[case] to: &str) {
        assert_eq!(decoded(from), to);
    }
}
