//! Twilio: <https://www.twilio.com/docs/usage/security#validating-requests>.

use std::time::Duration;

use aws_lc_rs::digest;
use jiff::Timestamp;

use super::claim::{Claim, Encoding, Mac, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{MOST_PAIRS, Named, Received, has_many, pairs};
use super::{Facts, Provider};

#[derive(Debug)]
pub(super) struct Twilio;

const HEADER: &str = "x-twilio-signature";
const SETTINGS: &str = "x-twilio-webhooks-signature-settings";
/// The URL's parameter that holds the hash of a body that is no form.
const HASH: &str = "bodySHA256";

static FACTS: Facts = Facts {
    name: "twilio",
    title: "Twilio",
    page: "https://www.twilio.com/docs/usage/security#validating-requests",
    header: HEADER,
    scheme: "HMAC-SHA1 in base64; the key is the auth token",
    signed: "the URL, then a form's fields by name, name and value run together; with a JSON body the URL, whose \
             `bodySHA256` holds the body's hash",
    secret_env: "TWILIO_AUTH_TOKEN",
    tolerance: None,
    deadline: Some(Duration::from_secs(15)),
    retries: "when it cannot connect",
    user_agent: "TwilioProxy/1.1",
    content_type: "application/x-www-form-urlencoded; charset=UTF-8",
    sample: "sms",
    retry: &[],
    may_be_unsigned: false,
    developer_key: None,
};

/// The fields of a form as they are signed.
fn fields(body: &[u8]) -> Vec<u8> {
    let mut fields = pairs(body);
    fields.sort_unstable();
    fields.dedup();
    let mut out = Vec::with_capacity(body.len());
    for (name, value) in &fields {
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
    out
}

/// The hash function that the settings name.
fn algorithm(settings: Option<&str>) -> Mac {
    let mut parts = settings.unwrap_or_default().split(',').filter_map(|part| part.split_once('='));
    let named = parts.find(|(name, _)| name.trim().eq_ignore_ascii_case("algorithm"));
    let is_newer = named.is_some_and(|(_, value)| value.trim().eq_ignore_ascii_case("HMAC_SHA256"));
    if is_newer { Mac::Sha256 } else { Mac::Sha1 }
}

fn hash_in(target: &str) -> Option<String> {
    let (_, query) = target.split_once('?')?;
    let hash = pairs(query.as_bytes()).into_iter().find(|(name, _)| name == HASH.as_bytes());
    Some(String::from_utf8_lossy(&hash?.1).into_owned())
}

/// The URL as Twilio may have it: with its port and without, or with the one that goes without saying.
fn urls(origin: &str, target: &str) -> Vec<String> {
    let (scheme, authority) = origin.split_once("://").unwrap_or(("https", origin));
    // In brackets stands an IPv6 address, whose colons are none.
    let bare = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let default = if scheme == "http" { 80 } else { 443 };
    let with_port = if bare.len() == authority.len() { format!("{bare}:{default}") } else { authority.into() };
    [with_port.as_str(), bare].map(|host| format!("{scheme}://{host}{target}")).into()
}

impl Provider for Twilio {
    fn facts(&self) -> &Facts {
        &FACTS
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let text = received.text(HEADER).ok_or(Unsigned::Missing("X-Twilio-Signature"))?;
        let algorithm = algorithm(received.text(SETTINGS));
        let claim = Claim::new(Scheme::Hmac(algorithm, Encoding::Base64), text);
        let urls = urls(&received.origin(), received.target).into_iter();
        if let Some(hash) = hash_in(received.target) {
            let claim = claim.over_only(urls.map(String::into_bytes));
            return Ok(Claim { body_sha256: Some(hash), ..claim });
        }
        let fields = match received.body {
            Some(body) if received.is_form() && has_many(body) => {
                return Err(Unsigned::Malformed(format!("its form has more than {MOST_PAIRS} fields")));
            }
            Some(body) if received.is_form() => fields(body),
            None if received.is_form() => return Err(Unsigned::TooLong),
            None | Some([]) => vec![],
            // Nothing would cover it.
            Some(_) => return Err(Unsigned::Malformed(format!("the URL has no {HASH}, so the body is not signed"))),
        };
        Ok(claim.over_only(urls.map(|url| [url.as_bytes(), &fields].concat())))
    }

    fn named(&self, received: &Received<'_>) -> Named {
        let pairs = if received.is_form() { pairs(received.body.unwrap_or_default()) } else { vec![] };
        let find = |name: &str| {
            let (_, value) = pairs.iter().find(|(own, _)| own == name.as_bytes())?;
            String::from_utf8(value.clone()).ok()
        };
        let status = ["MessageStatus", "SmsStatus", "CallStatus"].into_iter().find_map(find);
        let id = ["MessageSid", "SmsSid", "CallSid"].into_iter().find_map(find);
        Named { event: status, id, dedup: received.owned("i-twilio-idempotency-token") }
    }

    fn wants_answer(&self, _: &Received<'_>) -> bool {
        // TwiML says what to do with the call or the message.
        true
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, _: Timestamp) -> Result<(), CannotSign> {
        let received = request.received(Timestamp::UNIX_EPOCH);
        let fields = if received.is_form() { fields(&request.body) } else { vec![] };
        // A GET has neither.
        if !received.is_form() && (!request.body.is_empty() || request.has("content-type")) {
            let hash = Encoding::Hex.encode(digest::digest(&digest::SHA256, &request.body).as_ref());
            let (path, query) = request.target.as_str().split_once('?').unwrap_or((request.target.as_str(), ""));
            let name = format!("{HASH}=");
            let others = query.split('&').filter(|part| !part.is_empty() && !part.starts_with(&name));
            let query: Vec<String> = others.map(str::to_owned).chain([format!("{name}{hash}")]).collect();
            let target = format!("{path}?{}", query.join("&")).parse();
            request.target = target.map_err(|_| CannotSign::Body("its URL cannot take the body's hash"))?;
        }
        // Without a port, as Twilio's own library tries it, too.
        let url = urls(&request.origin, request.target.as_str()).pop().unwrap_or_default();
        let algorithm = algorithm(request.text(SETTINGS));
        let text = signer.hmac(algorithm, Encoding::Base64, &[url.as_bytes(), &fields]);
        request.set(HEADER, &text.ok_or(CannotSign::OtherKey("twilio"))?);
        Ok(())
    }
}
