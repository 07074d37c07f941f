//! Checking one delivery, as its body passes.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac as mac};
use jiff::Timestamp;

use super::Tolerance;
use super::claim::{Claim, Encoding, Message, Scheme};
use super::key::Key;

/// As much of a body that comes piece by piece is kept, beside what is passed on, for a signature that needs all of it.
pub(super) const STREAMED: usize = 256 << 10;

/// A check that goes on: the body is still coming.
pub(crate) struct Check {
    claim: Claim,
    runs: Vec<Run>,
    body: Option<digest::Context>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("runs", &self.runs.len()).finish_non_exhaustive()
    }
}

/// One key over one message.
struct Run {
    /// Which key.
    key: usize,
    state: State,
    after: Vec<u8>,
}

enum State {
    Mac(Scheme, Box<mac::Context>, bool),
    P256(Key, digest::Context, bool),
    /// Ed25519 reads what it signs twice: it is kept.
    Ed25519(Key, Encoding, Kept, bool),
    Secret(Vec<u8>),
}

/// What is signed, as far as it has come; nothing once it is too long.
struct Kept {
    bytes: Option<Vec<u8>>,
    most: usize,
}

impl Kept {
    fn add(&mut self, data: &[u8]) {
        self.bytes = self.bytes.take().filter(|bytes| bytes.len() + data.len() <= self.most);
        if let Some(bytes) = &mut self.bytes {
            bytes.extend_from_slice(data);
        }
    }
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A signature is good.
    Good { key: usize },
    /// A signature would be good, but is so many milliseconds old; less than zero: made in time to come.
    Stale { age_ms: i64 },
    /// A signature is good for the URL, but the body is not the one whose hash stands there.
    OtherBody,
    /// None is.
    Bad,
    /// The body is too long for this kind of signature.
    TooLong,
}

impl Check {
    /// Begins to check a claim with these keys, of a body of which so much may be kept.
    pub(super) fn new(claim: Claim, keys: &[&Key], most: usize) -> Self {
        let mut schemes: Vec<Scheme> = Vec::new();
        for signature in &claim.signatures {
            if !schemes.contains(&signature.scheme) {
                schemes.push(signature.scheme);
            }
        }
        let mut runs = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            for scheme in &schemes {
                let messages = claim.messages.iter().filter_map(|message| Run::new(index, key, *scheme, message, most));
                runs.extend(messages);
            }
        }
        let body = claim.body_sha256.is_some().then(|| digest::Context::new(&digest::SHA256));
        Self { claim, runs, body }
    }

    /// More of the body.
    pub(crate) fn update(&mut self, data: &[u8]) {
        if let Some(body) = &mut self.body {
            body.update(data);
        }
        for run in &mut self.runs {
            run.state.update(data);
        }
    }

    /// The body has ended. `at`: when the relay received it, for a signature that is good for so long.
    pub(super) fn finish(self, tolerance: Option<Tolerance>, at: Timestamp) -> Found {
        let Self { claim, runs, body } = self;
        let mut too_long = false;
        for run in runs {
            let (key, scheme) = (run.key, run.state.scheme());
            let texts = claim.signatures.iter().filter(|signature| signature.scheme == scheme);
            let texts: Vec<&str> = texts.map(|signature| signature.text.as_str()).collect();
            match run.state.finish(&run.after, &texts) {
                Some(true) => {}
                Some(false) => continue,
                None => {
                    too_long = true;
                    continue;
                }
            }
            if let (Some(expected), Some(body)) = (&claim.body_sha256, body) {
                let body = Encoding::Hex.encode(body.finish().as_ref());
                if verify_slices_are_equal(body.as_bytes(), expected.as_bytes()).is_err() {
                    return Found::OtherBody;
                }
            }
            // A secret that is sent as it is covers no time.
            let signed_ms = claim.signed_ms.filter(|_| scheme != Scheme::Secret);
            return match tolerance.zip(signed_ms).map_or(0, |(tolerance, signed)| tolerance.age_outside(signed, at)) {
                0 => Found::Good { key },
                age_ms => Found::Stale { age_ms },
            };
        }
        if too_long { Found::TooLong } else { Found::Bad }
    }
}

impl Run {
    fn new(index: usize, key: &Key, scheme: Scheme, message: &Message, most: usize) -> Option<Self> {
        let Message { before, has_body, after } = message;
        let state = match (scheme, key) {
            (Scheme::Hmac(algorithm, _), Key::Mac(secret)) => {
                let mut context = mac::Context::with_key(&mac::Key::new(algorithm.algorithm(), secret));
                context.update(before);
                State::Mac(scheme, context.into(), *has_body)
            }
            (Scheme::P256, Key::P256(_)) => {
                let mut context = digest::Context::new(&digest::SHA256);
                context.update(before);
                State::P256(key.clone(), context, *has_body)
            }
            (Scheme::Ed25519(encoding), Key::Ed25519(_)) => {
                let kept = Kept { bytes: Some(before.clone()), most: most.saturating_add(before.len()) };
                State::Ed25519(key.clone(), encoding, kept, *has_body)
            }
            (Scheme::Secret, Key::Secret(secret)) => State::Secret(secret.clone()),
            _ => return None,
        };
        Some(Self { key: index, state, after: after.clone() })
    }
}

impl State {
    const fn scheme(&self) -> Scheme {
        match self {
            Self::Mac(scheme, ..) => *scheme,
            Self::P256(..) => Scheme::P256,
            Self::Ed25519(_, encoding, ..) => Scheme::Ed25519(*encoding),
            Self::Secret(_) => Scheme::Secret,
        }
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Mac(_, context, true) => context.update(data),
            Self::P256(_, context, true) => context.update(data),
            Self::Ed25519(_, _, kept, true) => kept.add(data),
            _ => {}
        }
    }

    /// Whether one of these is the signature; `None` when that cannot be said.
    fn finish(self, after: &[u8], texts: &[&str]) -> Option<bool> {
        let same = |expected: &[u8]| {
            // Of all of them, so that the time does not tell which.
            texts.iter().fold(false, |good, text| good | verify_slices_are_equal(expected, text.as_bytes()).is_ok())
        };
        Some(match self {
            Self::Mac(Scheme::Hmac(_, encoding), mut context, _) => {
                context.update(after);
                same(encoding.encode(context.sign().as_ref()).as_bytes())
            }
            Self::Mac(..) => false,
            Self::P256(key, mut context, _) => {
                context.update(after);
                let digest = context.finish();
                let mut signatures = texts.iter().filter_map(|text| Encoding::Base64.decode(text));
                signatures.any(|signature| key.is_p256(&digest, &signature))
            }
            Self::Ed25519(key, encoding, kept, _) => {
                let message = [&kept.bytes?, after].concat();
                let mut signatures = texts.iter().filter_map(|text| encoding.decode(text));
                signatures.any(|signature| key.is_ed25519(&message, &signature))
            }
            Self::Secret(secret) => same(&secret),
        })
    }
}
