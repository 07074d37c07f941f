//! Any sender that signs with an HMAC: where it stands, how it is written, what it is over.

use std::time::Duration;

use jiff::Timestamp;

use super::claim::{Claim, Encoding, Mac, Message, Scheme, Unsigned};
use super::key::Signer;
use super::outgoing::{CannotSign, Outgoing};
use super::received::{Named, Received};
use super::{Facts, Provider, Tolerance};

/// An HMAC as a file describes it.
#[derive(Debug)]
pub(crate) struct Hmac {
    facts: Facts,
    /// The field that holds the signature, in lower case.
    pub(crate) header: String,
    pub(crate) algorithm: Mac,
    pub(crate) encoding: Encoding,
    /// What stands before the signature in its field: `sha256=`.
    pub(crate) prefix: String,
    /// What is signed.
    template: Vec<Part>,
    /// The field that holds the time, in seconds.
    pub(crate) timestamp: Option<String>,
    /// The field that holds the id.
    pub(crate) id: Option<String>,
}

/// A part of what is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Timestamp,
    Id,
    Url,
    Body,
}

static FACTS: Facts = Facts {
    name: "hmac",
    title: "Any HMAC",
    page: "https://www.rfc-editor.org/rfc/rfc2104",
    header: "x-signature",
    scheme: "HMAC-SHA1, -SHA256 or -SHA512 in hex or base64, as `[[verify]]` says; HMAC-SHA256 in hex unless it does",
    signed: "as `[[verify]]` says, with `{timestamp}`, `{id}`, `{url}` and `{body}`; the body unless it does",
    secret_env: "WEBHOOK_HMAC_SECRET",
    tolerance: None,
    deadline: None,
    retries: "by the sender",
    user_agent: "hookway",
    content_type: "application/json",
    sample: "event",
    retry: &[],
    may_be_unsigned: true,
    developer_key: None,
};

impl Default for Hmac {
    fn default() -> Self {
        Self {
            facts: FACTS.clone(),
            header: FACTS.header.into(),
            algorithm: Mac::Sha256,
            encoding: Encoding::Hex,
            prefix: String::new(),
            template: vec![Part::Body],
            timestamp: None,
            id: None,
        }
    }
}

impl Hmac {
    /// With what is signed: text, and `{timestamp}`, `{id}`, `{url}`, `{body}` in it.
    ///
    /// # Errors
    /// It names something else, or the body not once.
    pub(crate) fn over(self, template: &str) -> Result<Self, String> {
        let (mut parts, mut rest) = (Vec::new(), template);
        while let Some((text, behind)) = rest.split_once('{') {
            let (name, behind) = behind.split_once('}').ok_or("a `{` has no `}`")?;
            if !text.is_empty() {
                parts.push(Part::Text(text.into()));
            }
            parts.push(match name {
                "timestamp" => Part::Timestamp,
                "id" => Part::Id,
                "url" => Part::Url,
                "body" => Part::Body,
                other => return Err(format!("`{{{other}}}` is none of {{timestamp}}, {{id}}, {{url}}, {{body}}")),
            });
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        if parts.iter().filter(|part| **part == Part::Body).count() != 1 {
            return Err("{body} must stand in it once".into());
        }
        Ok(Self { template: parts, ..self })
    }

    /// With so long as a signature is good.
    pub(crate) fn tolerance(self, tolerance: Option<Duration>) -> Self {
        let tolerance = tolerance.map(|most| Tolerance { past: most, future: Some(most), exact: false });
        Self { facts: Facts { tolerance, ..self.facts }, ..self }
    }

    /// Where the time and the id stand must be said if they are signed.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn complete(self) -> Result<Self, String> {
        for (part, field, key) in
            [(Part::Timestamp, &self.timestamp, "timestamp-header"), (Part::Id, &self.id, "id-header")]
        {
            if self.template.contains(&part) && field.is_none() {
                return Err(format!("`{key}` must name the field for what `signed` has"));
            }
        }
        if self.facts.tolerance.is_some() && !self.template.contains(&Part::Timestamp) {
            return Err("`tolerance` needs a {timestamp} in `signed`".into());
        }
        Ok(self)
    }

    /// Whether both describe the same: two secrets for it are a rotation.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let own =
            (&self.header, self.algorithm, self.encoding, &self.prefix, &self.template, &self.timestamp, &self.id);
        let others = (
            &other.header,
            other.algorithm,
            other.encoding,
            &other.prefix,
            &other.template,
            &other.timestamp,
            &other.id,
        );
        own == others && self.facts.tolerance == other.facts.tolerance
    }

    fn message(&self, url: &str, timestamp: &str, id: &str) -> Message {
        let mut message = Message::default();
        for part in &self.template {
            let to = if message.has_body { &mut message.after } else { &mut message.before };
            to.extend_from_slice(match part {
                Part::Text(text) => text.as_bytes(),
                Part::Timestamp => timestamp.as_bytes(),
                Part::Id => id.as_bytes(),
                Part::Url => url.as_bytes(),
                Part::Body => {
                    message.has_body = true;
                    b""
                }
            });
        }
        message
    }
}

impl Provider for Hmac {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn recognises(&self, received: &Received<'_>) -> bool {
        received.has(&self.header)
    }

    fn claim(&self, received: &Received<'_>) -> Result<Claim, Unsigned> {
        let header = received.text(&self.header).ok_or(Unsigned::Missing("its signature's header field"))?;
        let malformed = |why: String| Unsigned::Malformed(why);
        let text = header.strip_prefix(&self.prefix);
        let text = text.ok_or_else(|| malformed(format!("{} does not begin with `{}`", self.header, self.prefix)))?;
        let field = |name: &Option<String>| match name {
            None => Ok(""),
            Some(name) => received.text(name).ok_or_else(|| malformed(format!("{name} is missing"))),
        };
        let (timestamp, id) = (field(&self.timestamp)?, field(&self.id)?);
        let url = format!("{}{}", received.origin(), received.target);
        let messages = vec![self.message(&url, timestamp, id)];
        let claim = Claim { messages, ..Claim::new(Scheme::Hmac(self.algorithm, self.encoding), text) };
        if self.facts.tolerance.is_some() { claim.signed_at(timestamp) } else { Ok(claim) }
    }

    fn named(&self, received: &Received<'_>) -> Named {
        Named::new(None, self.id.as_ref().and_then(|name| received.owned(name)))
    }

    fn sign(&self, request: &mut Outgoing, signer: &Signer, at: Timestamp) -> Result<(), CannotSign> {
        let at = at.as_second().to_string();
        let id = self.id.as_ref().and_then(|name| request.text(name)).unwrap_or_default().to_owned();
        let Message { before, after, .. } = self.message(&request.url(), &at, &id);
        let text = signer.hmac(self.algorithm, self.encoding, &[&before, &request.body, &after]);
        let text = text.ok_or(CannotSign::OtherKey("hmac"))?;
        if let Some(name) = &self.timestamp {
            request.set_named(name, &at);
        }
        request.set_named(&self.header, &format!("{}{text}", self.prefix));
        Ok(())
    }
}
