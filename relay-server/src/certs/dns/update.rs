//! Changes a zone of another name server: dynamic updates (RFC 2136), signed with a key both sides know (TSIG, RFC 8945).

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hickory_proto::op::{Message, Query, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{Name, RData, RecordSet, RecordType, TSigner};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The server must answer within this time.
const ANSWER_IN: Duration = Duration::from_secs(10);
/// Clocks may differ by so much.
const FUDGE_SECONDS: u16 = 300;
const TTL: u32 = 1;
/// Answers to updates have next to no records.
const MAX_RECORDS: u16 = 100;

/// A name server that takes updates.
#[derive(Clone)]
pub(crate) struct Server {
    /// Host and port.
    address: String,
    file: PathBuf,
    signer: TSigner,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).field("file", &self.file).finish_non_exhaustive()
    }
}

/// Why a zone was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateError {
    #[error("the name server {0} cannot be reached")]
    Unreachable(String, #[source] std::io::Error),
    #[error("the name server {0} did not answer within 10 s")]
    TimedOut(String),
    #[error("the name server {server} did not change {record}: {why}")]
    Refused { server: String, record: String, why: String },
    #[error("the name server {server} answered nonsense")]
    Nonsense { server: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl UpdateError {
    /// Whether it may pass by itself.
    pub(crate) const fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(..) | Self::TimedOut(_))
    }
}

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read {}", .0.display())]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// It is none.
    #[error("{}: {why}", .path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong in it.
        why: &'static str,
    },
}

impl Server {
    /// A server, and the key in a file as BIND's `tsig-keygen` writes it:
    /// `key "NAME" { algorithm hmac-sha256; secret "BASE64"; };`.
    pub(crate) fn new(address: &str, file: &Path) -> Result<Self, KeyFileError> {
        let text = std::fs::read_to_string(file).map_err(|error| KeyFileError::Unreadable(file.to_owned(), error))?;
        let signer = key(&text).map_err(|why| KeyFileError::Wrong { path: file.to_owned(), why })?;
        let address = if address.contains(']') || address.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':'))
        {
            address.to_owned()
        } else {
            format!("{address}:53")
        };
        Ok(Self { address, file: file.to_owned(), signer })
    }

    /// Whether it is there and knows the zone of a record, which stays as it is.
    pub(crate) async fn look(&self, record: &str) -> Result<(), UpdateError> {
        let name = Name::from_ascii(format!("{record}.")).map_err(|error| self.nonsense(error))?;
        self.zone(&name).await.map(drop)
    }

    /// Adds a TXT record beside what is there, or takes it away again.
    pub(crate) async fn change(&self, record: &str, value: &str, present: bool) -> Result<(), UpdateError> {
        let name = Name::from_ascii(format!("{record}.")).map_err(|error| self.nonsense(error))?;
        let zone = self.zone(&name).await?;
        let mut set = RecordSet::with_ttl(name, RecordType::TXT, TTL);
        set.add_rdata(RData::TXT(TXT::new(vec![value.to_owned()])));
        let mut message = if present {
            update_message::append(set, zone, false, false)
        } else {
            update_message::delete_by_rdata(set, zone, false)
        };
        let now = Timestamp::now().as_second().unsigned_abs();
        let mut verifier = message.finalize(&self.signer, now).map_err(|error| self.nonsense(error))?;
        let (reply, answer) = self.ask(&message).await?;
        let refused = |why: String| UpdateError::Refused { server: self.address.clone(), record: record.into(), why };
        if answer.metadata.response_code != ResponseCode::NoError {
            return Err(refused(self.in_words(&answer)));
        }
        let verified = verifier.as_mut().map(|verifier| verifier.verify(&reply)).transpose();
        verified.map_err(|error| refused(format!("its answer is not signed as it should be: {error}")))?;
        Ok(())
    }

    fn nonsense(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> UpdateError {
        UpdateError::Nonsense { server: self.address.clone(), source: source.into() }
    }

    /// Why an update was refused. Such answers are not signed (RFC 8945 §5.2): they are only reported.
    fn in_words(&self, answer: &Message) -> String {
        let file = self.file.display();
        match answer.metadata.response_code {
            ResponseCode::NotAuth => match answer.signature().and_then(|signature| signature.data.error.as_ref()) {
                Some(TsigError::BadSig) => format!("the secret of {file} is not the one it knows (BADSIG)"),
                Some(TsigError::BadKey) => {
                    format!("it does not know the key of {file}, or not for this record (BADKEY)")
                }
                Some(TsigError::BadTime) => "its clock and this machine's differ by more than 5 min (BADTIME)".into(),
                _ => format!("it takes no updates with the key of {file}"),
            },
            ResponseCode::Refused => format!("the key of {file} may not change it"),
            ResponseCode::NotZone => "it is not in a zone of that server".into(),
            code => code.to_string(),
        }
    }

    /// The zone that a name is in, as the server says it.
    async fn zone(&self, name: &Name) -> Result<Name, UpdateError> {
        let mut at = name.clone();
        while at.num_labels() > 0 {
            let mut message = Message::query();
            message.metadata.recursion_desired = false;
            message.add_query(Query::query(at.clone(), RecordType::SOA));
            let (_, answer) = self.ask(&message).await?;
            let soa =
                answer.answers.iter().chain(&answer.authorities).find(|record| matches!(record.data, RData::SOA(_)));
            if let Some(soa) = soa.filter(|soa| soa.name.zone_of(name)) {
                return Ok(soa.name.clone());
            }
            at = at.base_name();
        }
        let why = "it has no zone that the name is in".into();
        Err(UpdateError::Refused { server: self.address.clone(), record: name.to_string(), why })
    }

    /// Asks over TCP: nobody else can answer, and nothing is lost.
    async fn ask(&self, message: &Message) -> Result<(Vec<u8>, Message), UpdateError> {
        let unreachable = |error| UpdateError::Unreachable(self.address.clone(), error);
        let question = message.to_vec().map_err(|error| self.nonsense(error))?;
        let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
            let mut reply = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut reply).await?;
            Ok(reply)
        };
        let reply = tokio::time::timeout(ANSWER_IN, exchange).await;
        let reply = reply.map_err(|_| UpdateError::TimedOut(self.address.clone()))?.map_err(unreachable)?;
        // Counts are believed where the signature is looked at.
        let too_many = reply
            .get(6..12)
            .is_none_or(|counts| counts.chunks(2).any(|count| u16::from_be_bytes([count[0], count[1]]) > MAX_RECORDS));
        if too_many {
            return Err(self.nonsense("more records than an answer to this has"));
        }
        let answer = Message::from_vec(&reply).map_err(|error| self.nonsense(error))?;
        if answer.metadata.id != message.metadata.id {
            return Err(self.nonsense("it answers another question"));
        }
        Ok((reply, answer))
    }
}

/// The key in a text of BIND's form.
fn key(text: &str) -> Result<TSigner, &'static str> {
    let mut words = words(text).into_iter();
    if words.next().as_deref() != Some("key") {
        return Err("a key file begins with:  key \"NAME\" {");
    }
    let name = words.next().ok_or("the key has no name")?;
    let (mut algorithm, mut secret) = (None, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "algorithm" => algorithm = words.next(),
            "secret" => secret = words.next(),
            _ => {}
        }
    }
    let algorithm = match algorithm.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("hmac-sha256") => TsigAlgorithm::HmacSha256,
        Some("hmac-sha384") => TsigAlgorithm::HmacSha384,
        Some("hmac-sha512") => TsigAlgorithm::HmacSha512,
        Some(_) => return Err("its algorithm is none of hmac-sha256, hmac-sha384 and hmac-sha512"),
        None => return Err("it names no algorithm"),
    };
    let secret = BASE64_STANDARD.decode(secret.ok_or("it has no secret")?).map_err(|_| "its secret is not base64")?;
    let name = Name::from_ascii(format!("{}.", name.trim_end_matches('.'))).map_err(|_| "the key's name is no name")?;
    TSigner::new(secret, algorithm, name, FUDGE_SECONDS).map_err(|_| "its secret cannot be used")
}

/// The words of a text, without comments, quotes and punctuation.
fn words(text: &str) -> Vec<String> {
    let (mut all, mut word, mut rest) = (Vec::new(), String::new(), text);
    while let Some(next) = rest.chars().next() {
        let (is_end, length) = match next {
            // What is quoted is one word, whatever is in it.
            '"' => {
                let quoted = rest[1..].split('"').next().unwrap_or_default();
                word.push_str(quoted);
                (true, quoted.len() + 2)
            }
            '#' => (true, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("//") => (true, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (true, rest.find("*/").map_or(rest.len(), |end| end + 2)),
            '{' | '}' | ';' => (true, 1),
            space if space.is_whitespace() => (true, space.len_utf8()),
            other => {
                word.push(other);
                (false, other.len_utf8())
            }
        };
        rest = rest.get(length..).unwrap_or_default();
        if is_end && !word.is_empty() {
            all.push(std::mem::take(&mut word));
        }
    }
    all.extend(Some(word).filter(|word| !word.is_empty()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("key \"relay\" {\n\talgorithm hmac-sha256;\n\tsecret \"c2VjcmV0\";\n};\n")]
    #[case("// of the relay\nkey relay. { secret c2VjcmV0; /* before */ algorithm HMAC-SHA256; }; # the end")]
    fn key_files(#[case] text: &str) {
        assert!(key(text).is_ok(), "{:?}", key(text).err());
    }

    #[rstest]
    #[case("", "begins with")]
    #[case("zone x {};", "begins with")]
    #[case("key", "no name")]
    #[case("key a { algorithm hmac-md5; secret c2VjcmV0; };", "none of")]
    #[case("key a { secret c2VjcmV0; };", "no algorithm")]
    #[case("key a { algorithm hmac-sha256; };", "no secret")]
    #[case("key a { algorithm hmac-sha256; secret a/b%; };", "not base64")]
    fn wrong_key_files(#[case] text: &str, #[case] why: &str) {
        let error = key(text).err().expect("refused");
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_slash_in_a_secret_is_no_comment() {
        assert_eq!(words("secret \"a//b+c==\"; // x"), ["secret", "a//b+c=="]);
    }
}
