//! Why a signature is not good: the known mistakes, tried until one would explain it.

mod bodies;

use std::time::Instant;

use hookway_protocol::headers::Headers;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderName, HeaderValue};

use super::check::{Check, Found};
use super::claim::{Encoding, Mac, Scheme, Unsigned};
use super::key::{Key, Signer};
use super::received::Received;
use super::verifier::{Cause, Judged, Rule, Verifier};
use super::{Facts, Known};
use crate::mask;

/// What else may have had a part in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Suspects {
    /// Where the app is, as `http://localhost:3000`: someone may have signed for that.
    pub(crate) origins: Vec<String>,
    /// Whether only the body's beginning is here.
    pub(crate) is_cut: bool,
    /// Until then mistakes are tried.
    pub(crate) until: Option<Instant>,
}

/// The sentence for what was found.
pub(super) fn explain(
    verifier: &Verifier,
    judged: &Judged,
    received: &Received<'_>,
    suspects: &Suspects,
) -> Option<String> {
    let provider = judged.provider.as_ref()?;
    let Facts { name, page, secret_env, may_be_unsigned, .. } = *provider.facts();
    let who = provider.facts().who();
    Some(match &judged.cause {
        Cause::Good(_) | Cause::Unknown => return None,
        Cause::NoSecret => format!("not checked; to check it: hookway … --verify {name}={secret_env}"),
        Cause::Unsigned(Unsigned::Missing(field)) if may_be_unsigned => {
            format!("there is no {field}: it was sent by somebody else, or no secret is set at {who}; see {page}")
        }
        Cause::Unsigned(Unsigned::Missing(field)) => {
            format!(
                "there is no {field}: it was sent by somebody else, or something on the way took it away; see {page}"
            )
        }
        Cause::Unsigned(Unsigned::TooLong) => {
            format!("not checked: its body passed by in pieces, and the signature of {who} needs all of it at once")
        }
        Cause::Unsigned(Unsigned::Malformed(why)) => {
            format!("{why}: it was sent by somebody else, or changed on its way; {who} sends it as {page} says")
        }
        Cause::Stale(age_ms) => stale(provider.facts(), *age_ms),
        Cause::OtherBody | Cause::NoMatch => {
            let rules: Vec<&Rule> = judged.applied.iter().filter_map(|index| verifier.rules.get(*index)).collect();
            let case = Case { provider, received: *received, rules: &rules, suspects };
            if suspects.is_cut {
                // Of a part of the body nothing can be tried.
                return Some(case.nothing());
            }
            if judged.cause == Cause::OtherBody {
                return Some(
                    case.body(verifier).or_else(|| case.damage(verifier)).unwrap_or_else(|| case.other_body()),
                );
            }
            let found = [Case::other_secret, Case::secret_form, Case::encoding, Case::body, Case::url, Case::damage];
            found.iter().find_map(|find| find(&case, verifier)).unwrap_or_else(|| case.nothing())
        }
    })
}

fn stale(facts: &Facts, age_ms: i64) -> String {
    let seconds = |ms: i64| (ms.unsigned_abs() as f64 / 100.0).round() / 10.0;
    let Some(tolerance) = facts.tolerance else { return String::new() };
    let (age, who) = (seconds(age_ms), facts.who());
    if age_ms > 0 {
        let most = tolerance.past.as_secs();
        return format!(
            "the signature is right but {age} s old, and the check of {who} takes {most} s: it is an old delivery sent once \
             more, or the sender's clock is slow, or the relay's fast; have it sent anew, or set the clock"
        );
    }
    let most = tolerance.future.unwrap_or_default().as_secs();
    format!(
        "the signature is right but made {age} s in the future, and the check of {who} takes {most} s: the sender's clock \
         is fast, or the relay's slow; set the clock"
    )
}

/// A signature that fits to none of its secrets.
#[derive(Clone, Copy)]
struct Case<'a> {
    provider: &'a Known,
    received: Received<'a>,
    rules: &'a [&'a Rule],
    suspects: &'a Suspects,
}

impl Case<'_> {
    fn is_in_time(&self) -> bool {
        self.suspects.until.is_none_or(|until| Instant::now() < until)
    }

    /// Which of the keys makes the signature good, time aside.
    fn good(&self, received: &Received<'_>, keys: &[&Key]) -> Option<usize> {
        // A try of a large form takes a while.
        if !self.is_in_time() {
            return None;
        }
        let claim = self.provider.claim(received).ok()?;
        let body = received.body?;
        let mut check = Check::new(claim, keys, body.len());
        check.update(body);
        match check.finish(None, received.at) {
            Found::Good { key } => Some(key),
            _ => None,
        }
    }

    /// The same with the keys that are the right ones.
    fn fits(&self, received: &Received<'_>) -> Option<&Rule> {
        let keys: Vec<&Key> = self.rules.iter().map(|rule| &rule.key).collect();
        self.good(received, &keys).map(|key| self.rules[key])
    }

    /// The secret of another rule.
    fn other_secret(&self, verifier: &Verifier) -> Option<String> {
        let own = |rule: &&Rule| rule.is_own || self.rules.iter().any(|own| std::ptr::eq(*own, *rule));
        for rule in verifier.rules.iter().filter(|rule| !own(rule)) {
            // Of another provider maybe, whose keys have another form.
            let key = self.provider.key(&rule.text).unwrap_or_else(|_| rule.key.clone());
            if self.good(&self.received, &[&key]).is_some() {
                let whose = match (&rule.endpoint, &rule.path) {
                    (Some(endpoint), Some(path)) => format!("endpoint {endpoint}, path {path}"),
                    (Some(endpoint), None) => format!("endpoint {endpoint}"),
                    (None, Some(path)) => format!("path {path}"),
                    (None, None) => rule.provider.facts().title.to_owned(),
                };
                let name = &rule.name;
                return Some(format!(
                    "it was signed with the secret in {name}, which is set for {whose}: exchange the two"
                ));
            }
        }
        None
    }

    /// The secret is right, but not as it stands there.
    fn secret_form(&self, _: &Verifier) -> Option<String> {
        use base64::Engine;
        let who = self.provider.facts().who();
        let good = |key: Option<Key>| key.is_some_and(|key| self.good(&self.received, &[&key]).is_some());
        let as_text = |text: &str| Some(Key::Mac(text.as_bytes().to_vec()));
        let decoded = |text: &str| base64::prelude::BASE64_STANDARD.decode(text).ok().map(Key::Mac);
        if good(as_text("")) {
            return Some("it was signed with an empty secret: set the secret at the sender".into());
        }
        for rule in self.rules.iter().filter(|rule| !rule.is_own) {
            let (text, name) = (rule.text.as_str(), &rule.name);
            let tries = |text: &str| good(self.provider.key(text).ok());
            let bare = text.trim();
            if bare != text && tries(bare) {
                return Some(format!("{name} has white space around the secret: take it away"));
            }
            let unquoted = bare.trim_matches(['"', '\'']);
            if unquoted != bare && tries(unquoted) {
                return Some(format!("{name} has quotation marks around the secret: take them away"));
            }
            let spoilt = ["{}\n", "{}\r\n", "{} ", " {}", "{}\t", "\t{}", " {} ", "\"{}\"", "'{}'"];
            if spoilt.iter().any(|form| tries(&form.replace("{}", text)) || good(as_text(&form.replace("{}", text)))) {
                return Some(format!(
                    "the sender's secret has white space or quotation marks around it that {name} has not: enter it anew at \
                     the sender"
                ));
            }
            if !matches!(rule.key, Key::Mac(_)) {
                continue;
            }
            let raw = text.strip_prefix("whsec_");
            if self.provider.facts().name == "standard" {
                if good(as_text(text)) || good(raw.and_then(as_text)) {
                    return Some(format!(
                        "the sender signed with the text of {name}, and the key is what it decodes to from base64 (behind \
                         `whsec_`): mend the sender"
                    ));
                }
                continue;
            }
            if raw.is_none() && tries(&format!("whsec_{text}")) {
                return Some(format!("{name} lacks the `whsec_` that the secret begins with: put it before it"));
            }
            if good(raw.and_then(as_text)) {
                return Some(format!(
                    "the sender signed with the text behind `whsec_` of {name}, and the secret of {who} is the whole text: \
                     mend the sender"
                ));
            }
            if good(raw.and_then(decoded)) {
                return Some(format!(
                    "the sender signed with what {name} decodes to from base64 behind `whsec_`, and the secret of {who} is \
                     the whole text: mend the sender; or it signs as Standard Webhooks do: --verify standard"
                ));
            }
            if good(decoded(text)) || good(lenient(text).map(Key::Mac)) {
                return Some(format!(
                    "the sender signed with the bytes that {name} decodes to, not with its text: mend the sender"
                ));
            }
        }
        None
    }

    /// The signature is right, but written otherwise, or made with another hash function.
    fn encoding(&self, _: &Verifier) -> Option<String> {
        let claim = self.provider.claim(&self.received).ok()?;
        let body = self.received.body?;
        for rule in self.rules {
            let Some(signer @ Signer::Mac(_)) = rule.key.signer() else { continue };
            for signature in &claim.signatures {
                let Scheme::Hmac(right, encoding) = signature.scheme else { continue };
                let Some(sent) = lenient(&signature.text).map(|bytes| Encoding::Hex.encode(&bytes)) else { continue };
                for (algorithm, name) in [Mac::Sha256, Mac::Sha1, Mac::Sha512].map(|mac| (mac, mac.name())) {
                    let made = claim.messages.iter().any(|message| {
                        let body = if message.has_body { body } else { &[] };
                        let parts = [&message.before, body, &message.after];
                        signer.hmac(algorithm, Encoding::Hex, &parts).as_deref() == Some(&sent)
                    });
                    if !made {
                        continue;
                    }
                    let who = self.provider.facts().who();
                    if algorithm != right {
                        let right = right.name();
                        return Some(format!(
                            "it was signed with HMAC-{name}, and {who} signs with HMAC-{right}: mend the sender"
                        ));
                    }
                    let wanted = match encoding {
                        Encoding::Hex => "in lower-case hex",
                        Encoding::Base64 => "in base64 with padding",
                    };
                    let sent = match signature.text.as_bytes() {
                        text if text.iter().all(u8::is_ascii_hexdigit) => match encoding {
                            Encoding::Hex => "in upper-case hex",
                            Encoding::Base64 => "in hex",
                        },
                        text if text.iter().any(|byte| b"-_".contains(byte)) => "in base64url",
                        _ => match encoding {
                            Encoding::Hex => "in base64",
                            Encoding::Base64 => "without its padding",
                        },
                    };
                    return Some(format!(
                        "the signature is right but came {sent}: {who} writes it {wanted}; mend the sender"
                    ));
                }
            }
        }
        None
    }

    /// The body was written anew on its way.
    fn body(&self, _: &Verifier) -> Option<String> {
        let body = self.received.body?;
        bodies::variants(body).take_while(|_| self.is_in_time()).find_map(|(variant, what)| {
            let rule = self.fits(&Received { body: Some(&variant), ..self.received })?;
            let name = &rule.name;
            Some(format!(
                "the body was changed after it was signed (with {name}): {what}; sign the very bytes that are sent, and let \
                 no proxy or test tool rewrite them"
            ))
        })
    }

    /// It was signed for another URL.
    fn url(&self, _: &Verifier) -> Option<String> {
        let elsewhere = self.seen_as("http", "elsewhere.invalid");
        let elsewhere = Received { headers: &elsewhere, ..self.received };
        if self.provider.claim(&elsewhere) == self.provider.claim(&self.received) {
            // The URL is not signed.
            return None;
        }
        let target = self.received.target;
        let host = self.received.text("host").unwrap_or_default();
        let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
        let mut origins = Vec::new();
        for scheme in ["https", "http"] {
            origins.extend(
                [host.to_owned(), bare.to_owned(), format!("{bare}:443"), format!("{bare}:80")]
                    .map(|host| (scheme, host)),
            );
        }
        let local = self.suspects.origins.iter().filter_map(|origin| origin.split_once("://"));
        for (_, authority) in local {
            let (bare, port) =
                authority.rsplit_once(':').map_or((authority, ""), |(bare, _)| (bare, &authority[bare.len()..]));
            const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
            let names = if LOOPBACK.contains(&bare) { LOOPBACK.to_vec() } else { vec![bare] };
            for (scheme, name) in
                ["http", "https"].into_iter().flat_map(|scheme| names.iter().map(move |name| (scheme, name)))
            {
                origins.extend([format!("{name}{port}"), (*name).to_owned()].map(|host| (scheme, host)));
            }
        }
        let path = target.split('?').next().unwrap_or_default();
        let slash = |target: &str| match target.split_once('?') {
            Some((path, query)) => format!("{path}/?{query}"),
            None => format!("{target}/"),
        };
        let bare_target = match target.split_once('?') {
            Some((path, query)) => format!("{}?{query}", path.trim_end_matches('/')),
            None => target.trim_end_matches('/').to_owned(),
        };
        let targets = [target.to_owned(), path.to_owned(), slash(target), bare_target, String::new(), "/".into()];
        for (scheme, host) in &origins {
            for target in &targets {
                let headers = self.seen_as(scheme, host);
                let seen = Received { headers: &headers, target, ..self.received };
                if let Some(rule) = self.fits(&seen) {
                    let here = self.received.origin();
                    return Some(format!(
                        "it was signed (with {}) for {scheme}://{host}{}, but was sent to {here}{}: enter that URL at \
                         the sender, just so",
                        rule.name,
                        mask::target(target),
                        mask::target(self.received.target),
                    ));
                }
            }
        }
        None
    }

    /// The header fields as if it had been sent there.
    fn seen_as(&self, scheme: &str, host: &str) -> Headers {
        let proto = HeaderName::from_static("x-forwarded-proto");
        let kept = self.received.headers.iter().filter(|(name, _)| **name != HOST && **name != proto);
        let mut headers: Headers = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        for (name, value) in [(HOST, host), (proto, scheme)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.push(name, value);
            }
        }
        headers
    }

    /// The body did not come as it was sent.
    fn damage(&self, _: &Verifier) -> Option<String> {
        let body = self.received.body?;
        let field = |name: &HeaderName| self.received.headers.get(name).and_then(|value| value.to_str().ok());
        let length = field(&CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
        if let Some(length) = length.filter(|length| *length > body.len()) {
            let here = body.len();
            return Some(format!(
                "the body is cut short: {here} bytes came of the {length} that Content-Length announced; look for a limit on \
                 the way"
            ));
        }
        let coding = field(&CONTENT_ENCODING).unwrap_or_default().to_ascii_lowercase();
        let is_packed = match coding.as_str() {
            "gzip" | "x-gzip" => body.starts_with(&[0x1f, 0x8b]),
            "zstd" => body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
            // These have no mark; text is what they never look like.
            "deflate" | "br" => std::str::from_utf8(body).is_err(),
            _ => true,
        };
        if !is_packed {
            return Some(format!(
                "Content-Encoding says {coding} but the bytes are plain: something on the way unpacked the body that was \
                 signed; have it pass bodies on as they are"
            ));
        }
        let is_json = field(&CONTENT_TYPE).is_some_and(|kind| kind.contains("json")) || body.starts_with(b"{");
        let ends =
            |body: &[u8]| !serde_json::from_slice::<serde::de::IgnoredAny>(body).is_err_and(|error| error.is_eof());
        if is_json && !body.is_empty() && !ends(body) {
            return Some("the body is cut short: its JSON does not end; look for a limit on the way".into());
        }
        None
    }

    /// The body has not the hash that its signed URL says.
    fn other_body(&self) -> String {
        "the body is not the one whose hash (bodySHA256) stands in the signed URL: it was changed on its way; have it passed on \
         as it is"
            .into()
    }

    /// None of them.
    fn nothing(&self) -> String {
        let facts = self.provider.facts();
        let (who, page) = (facts.who(), facts.page);
        let names: Vec<&str> = self.rules.iter().map(|rule| rule.name.as_str()).collect();
        let names = names.join(" or ");
        let wrong_kind = self.rules.iter().find_map(|rule| {
            let starts = |starts: &[&str]| starts.iter().any(|start| rule.text.starts_with(start));
            match facts.name {
                "stripe" if starts(&["sk_", "rk_", "pk_"]) => Some(format!(
                    "{} holds an API key, and webhooks are signed with the endpoint's own secret, whsec_…",
                    rule.name
                )),
                "slack" if starts(&["xox", "xapp-"]) => {
                    Some(format!("{} holds a token, and requests are signed with the app's signing secret", rule.name))
                }
                "shopify" if starts(&["shpat_", "shpca_"]) => {
                    Some(format!("{} holds an access token, and webhooks are signed with the client secret", rule.name))
                }
                _ => None,
            }
        });
        if let Some(wrong_kind) = wrong_kind {
            return format!("{wrong_kind}: put that there; see {page}");
        }
        let cut = if self.suspects.is_cut { " (only its beginning is kept, so none could be tried)" } else { "" };
        let is_public = self.rules.iter().any(|rule| matches!(rule.key, Key::P256(_) | Key::Ed25519(_)));
        let secret = if is_public { "public key" } else { "secret" };
        let most_likely = match facts.name {
            "twilio" | "square" => {
                let here = format!("{}{}", self.received.origin(), mask::target(self.received.target));
                format!("most likely {who} has another {secret}, or another URL than {here}, for this endpoint")
            }
            "gitlab" | "mailgun" => format!("most likely {who} has another {secret} for this endpoint"),
            _ => {
                format!("most likely {who} has another {secret} for this endpoint, or the body was changed on its way")
            }
        };
        format!("it does not match {names}, and no known mistake explains it{cut}: {most_likely}; compare the two")
    }
}

/// The bytes of a text in whatever encoding they are written in.
fn lenient(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD_NO_PAD;
    let lower = text.trim().to_ascii_lowercase();
    Encoding::Hex.decode(&lower).filter(|bytes| bytes.len() >= 16).or_else(|| {
        let standard = text.trim().trim_end_matches('=').replace('-', "+").replace('_', "/");
        BASE64_STANDARD_NO_PAD.decode(standard).ok()
    })
}
