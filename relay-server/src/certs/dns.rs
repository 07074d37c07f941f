//! Answers `_acme-challenge.DOMAIN` over DNS (RFC 1035, RFC 8555 §8.4): one zone with nothing in it but its SOA, its NS
//! and, while a certificate is being ordered, TXT records. The parent zone delegates it to this machine.

pub(super) mod update;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hookway_protocol::host::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::limits::{Address, Throttle};
use crate::shutdown::Shutdown;

/// No answer over UDP is longer, whatever the asker says it takes (RFC 9715).
const MOST_OVER_UDP: u16 = 1232;
/// Questions that an address may ask in [`WINDOW`]; then it is sent to TCP, where it cannot be somebody else.
const QUESTIONS: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);
/// TCP connections at once: for one more the oldest goes. And how long one may last.
const CONNECTIONS: usize = 64;
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// A question is short: a name of 255 bytes, an OPT record with a few options.
const MAX_QUESTION: usize = 1024;
/// Nothing is kept by resolvers from one order to the next.
const TTL: u32 = 1;

/// What a question came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
}

/// The zone, and what it holds at present.
#[derive(Debug)]
pub(crate) struct Zone {
    apex: Name,
    host: Name,
    values: Mutex<BTreeSet<String>>,
}

impl Zone {
    /// The zone below a domain. `None`: the domain is no DNS name.
    pub(super) fn of(domain: &Host<'_>) -> Option<Self> {
        let host = Name::from_ascii(format!("{domain}.")).ok()?;
        let apex = Name::from_ascii(format!("_acme-challenge.{domain}.")).ok()?;
        Some(Self { apex, host, values: Mutex::default() })
    }

    pub(super) fn set(&self, value: &str) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert(value.to_owned());
    }

    pub(super) fn unset(&self, value: &str) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).remove(value);
    }

    /// The answer to one message; `None` for what must not be answered.
    fn answer(&self, message: &[u8], over: Over) -> Option<Vec<u8>> {
        let &[id_high, id_low, flags, _, questions_high, questions_low, ..] = message.get(..12)? else { return None };
        if flags & 0x80 != 0 {
            // An answer: two servers would answer each other for ever.
            return None;
        }
        let (id, op_code) = (u16::from_be_bytes([id_high, id_low]), OpCode::from_u8(flags >> 3 & 0xf));
        let refused = |code| Message::error_msg(id, op_code, code).to_vec().ok();
        if op_code != OpCode::Query {
            return refused(ResponseCode::NotImp);
        }
        // Looked at before it is parsed: room is made for as many as it says.
        if [questions_high, questions_low] != [0, 1] {
            return refused(ResponseCode::FormErr);
        }
        let Ok(asked) = Message::from_vec(message) else { return refused(ResponseCode::FormErr) };
        let query = asked.queries.first()?;
        let mut answer = Message::response(id, op_code);
        answer.metadata = Metadata::response_from_request(&asked.metadata);
        answer.add_query(query.clone());
        if let Some(edns) = &asked.edns {
            let mut own = Edns::new();
            own.set_max_payload(MOST_OVER_UDP).set_version(0).set_dnssec_ok(edns.flags().dnssec_ok);
            answer.set_edns(own);
        }
        if asked.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            answer.metadata.response_code = ResponseCode::BADVERS;
        } else if query.query_class() != DNSClass::IN
            || !self.apex.zone_of(query.name())
            || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR)
        {
            answer.metadata.response_code = ResponseCode::Refused;
        } else {
            self.fill(&mut answer, query.name(), query.query_type());
        }
        let most = match over {
            Over::Udp => MOST_OVER_UDP.min(asked.max_payload().max(512)),
            Over::Tcp => u16::MAX,
        };
        let encoded = answer.to_vec().ok()?;
        if encoded.len() <= usize::from(most) { Some(encoded) } else { answer.truncate().to_vec().ok() }
    }

    /// What is in the zone of that name and type.
    fn fill(&self, answer: &mut Message, name: &Name, kind: RecordType) {
        answer.metadata.authoritative = true;
        let record = |data| Record::from_rdata(name.clone(), TTL, data);
        let soa = SOA::new(self.host.clone(), self.host.clone(), 1, 3600, 600, 86_400, TTL);
        let at_apex = *name == self.apex;
        match kind {
            RecordType::TXT if at_apex => {
                let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
                let texts = values.iter().map(|value| record(RData::TXT(TXT::new(vec![value.clone()]))));
                answer.add_answers(texts);
            }
            RecordType::NS if at_apex => {
                answer.add_answer(record(RData::NS(NS(self.host.clone()))));
            }
            // For ANY one record is enough (RFC 8482 §4.1).
            RecordType::SOA | RecordType::ANY if at_apex => {
                answer.add_answer(record(RData::SOA(soa.clone())));
            }
            _ => {}
        }
        if answer.answers.is_empty() {
            if !at_apex {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            answer.add_authority(Record::from_rdata(self.apex.clone(), TTL, RData::SOA(soa)));
        }
    }

    /// What sends an asker to TCP.
    fn truncated(&self, message: &[u8]) -> Option<Vec<u8>> {
        let answer = self.answer(message, Over::Udp)?;
        Message::from_vec(&answer).ok()?.truncate().to_vec().ok()
    }
}

/// Holds the answers to a message to what they must never be. For tests, and for `fuzz/fuzz_targets/dns.rs`.
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "reached by the fuzz target"))]
pub fn check_answers(message: &[u8], values: &[&str]) {
    let zone = Host::parse("hooks.test").ok().and_then(|host| Zone::of(&host)).expect("a zone");
    values.iter().for_each(|value| zone.set(value));
    let over_udp = [zone.answer(message, Over::Udp), zone.truncated(message)];
    for answer in over_udp.into_iter().flatten() {
        assert!(answer.len() <= usize::from(MOST_OVER_UDP), "{} bytes", answer.len());
        held(message, &answer);
    }
    if let Some(answer) = zone.answer(message, Over::Tcp) {
        held(message, &answer);
    }
}

#[cfg(any(test, fuzzing))]
fn held(message: &[u8], answer: &[u8]) {
    assert!(message[2] & 0x80 == 0, "an answer is answered");
    assert!(answer[2] & 0x80 != 0, "answers are no questions");
    assert_eq!(answer[..2], message[..2], "the id is the question's");
    Message::from_vec(answer).expect("an answer can be read");
}

/// What listens for questions.
#[derive(Debug)]
pub(crate) struct Responder {
    zone: Arc<Zone>,
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Responder {
    /// Answers on two sockets that do not block.
    pub(super) fn new(zone: Arc<Zone>, udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> std::io::Result<Self> {
        Ok(Self { zone, udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)? })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.tcp.local_addr().ok()
    }

    /// Answers until the relay stops.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let Self { zone, udp, tcp } = self;
        let over_tcp = over_tcp(zone.clone(), tcp, &shutdown);
        let served = async { tokio::join!(over_udp(&zone, &udp), over_tcp) };
        shutdown.stop_accepting.run_until_cancelled(served).await;
    }
}

async fn over_udp(zone: &Zone, socket: &UdpSocket) {
    let throttle = Throttle::new(QUESTIONS, WINDOW);
    let mut buffer = [0; MAX_QUESTION];
    loop {
        let (count, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Of an earlier answer that did not arrive, most likely.
                tracing::debug!(%error, "no question");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (from_ip, now) = (Address::from(from.ip()), Instant::now());
        let answer = if throttle.is_blocked(&from_ip, now) {
            zone.truncated(&buffer[..count])
        } else {
            zone.answer(&buffer[..count], Over::Udp)
        };
        throttle.failed(from_ip, now);
        if let Some(answer) = answer {
            // Answers that the socket does not take now are asked for again.
            let _ = socket.try_send_to(&answer, from);
        }
    }
}

async fn over_tcp(zone: Arc<Zone>, listener: TcpListener, shutdown: &Shutdown) {
    let mut all = VecDeque::<CancellationToken>::with_capacity(CONNECTIONS);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        if all.len() == CONNECTIONS
            && let Some(oldest) = all.pop_front()
        {
            oldest.cancel();
        }
        // Who is being answered when another process takes over gets that answer.
        let (zone, close) = (zone.clone(), shutdown.close.child_token());
        all.push_back(close.clone());
        shutdown.rest.spawn(async move {
            let conversation = tokio::time::timeout(CONNECTION_TIME, talk(&zone, stream));
            let _ = close.run_until_cancelled(conversation).await;
        });
    }
}

/// Questions and answers, each after its length (RFC 1035 §4.2.2).
async fn talk(zone: &Zone, mut stream: TcpStream) -> Option<()> {
    loop {
        let length = usize::from(stream.read_u16().await.ok()?);
        let mut question = vec![0; length.min(MAX_QUESTION)];
        if length > MAX_QUESTION {
            return None;
        }
        stream.read_exact(&mut question).await.ok()?;
        let answer = zone.answer(&question, Over::Tcp)?;
        let length = u16::try_from(answer.len()).ok()?;
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use proptest::prelude::*;

    fn zone() -> Zone {
        let zone = Zone::of(&Host::parse("hooks.test").expect("a host")).expect("a zone");
        zone.set("first");
        zone.set("second");
        zone
    }

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        message.to_vec().expect("a question")
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Message {
        let answer = zone.answer(&question(name, kind), Over::Udp).expect("an answer");
        Message::from_vec(&answer).expect("a message")
    }

    #[test]
    fn it_has_what_is_set_and_nothing_else() {
        let zone = zone();
        let texts = |answer: &Message| answer.answers.len();
        assert_eq!(texts(&ask(&zone, "_acme-challenge.hooks.test.", RecordType::TXT)), 2);
        assert_eq!(texts(&ask(&zone, "_ACME-challenge.HOOKS.test.", RecordType::TXT)), 2);
        zone.unset("first");
        assert_eq!(texts(&ask(&zone, "_acme-challenge.hooks.test.", RecordType::TXT)), 1);
        let below = ask(&zone, "x._acme-challenge.hooks.test.", RecordType::TXT);
        assert_eq!((below.metadata.response_code, below.authorities.len()), (ResponseCode::NXDomain, 1));
        for other in ["hooks.test.", "billing.hooks.test.", ".", "_acme-challenge.hooks.test.org."] {
            let refused = ask(&zone, other, RecordType::TXT);
            assert_eq!(
                (refused.metadata.response_code, refused.metadata.authoritative),
                (ResponseCode::Refused, false)
            );
        }
    }

    #[test]
    fn what_is_too_long_is_cut_and_whoever_asks_too_often_is_sent_to_tcp() {
        let zone = zone();
        (0..40).for_each(|n| zone.set(&format!("{n:043}")));
        let asked = question("_acme-challenge.hooks.test.", RecordType::TXT);
        let cut = zone.answer(&asked, Over::Udp).expect("an answer");
        let (length, cut) = (cut.len(), Message::from_vec(&cut).expect("a message"));
        assert!(length <= 512 && cut.metadata.truncation && cut.answers.is_empty(), "{length}");
        assert_eq!(
            Message::from_vec(&zone.answer(&asked, Over::Tcp).expect("over TCP")).expect("a message").answers.len(),
            42
        );
        let truncated = zone.truncated(&asked).expect("an answer");
        assert!(truncated.len() <= asked.len(), "it is no amplifier then");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_answer_at_length(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0..40usize) {
            // Noise, and a question with noise in it.
            let mut asked = question("_acme-challenge.hooks.test.", RecordType::TXT);
            let end = (at + bytes.len()).min(asked.len());
            if at < end {
                asked[at..end].copy_from_slice(&bytes[..end - at]);
            }
            for message in [&bytes, &asked] {
                check_answers(message, &["first", "second"]);
            }
        }
    }

    #[test]
    fn the_fuzz_corpus_is_answered_within_bounds() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/dns");
        for entry in std::fs::read_dir(folder).expect("a corpus") {
            let message = std::fs::read(entry.expect("an entry").path()).expect("a file");
            check_answers(&message, &["first", "second"]);
        }
    }
}
