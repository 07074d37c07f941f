use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::events::{Event, Events};
use crate::exchange::{Attempt, Kept, RawAttempt, RawBody, samples};
use crate::filter::Filter;

const LIMITS: Limits = Limits { max_count: 1000, max_age: Duration::from_secs(86_400), max_bytes: 1 << 30 };

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(History::FILE);
    (folder, path)
}

fn start(path: &Path, limits: Limits) -> History {
    History::start(path, limits).expect("a thread")
}

fn carried_out(exchange: &Exchange) -> CarriedOut {
    CarriedOut {
        id: exchange.id,
        head: record::head_of(exchange),
        request: RawBody::of(&exchange.request.body, &exchange.request.trailers),
        unfinished: exchange.request.unfinished,
        webhook: exchange.webhook.clone(),
        replay: Replay::default(),
        attempt: exchange.attempts.first().map_or_else(
            || Tried::Pending { at: exchange.received_at, url: "http://localhost:3000/a".into() },
            |attempt| Tried::Over(RawAttempt::of(attempt)),
        ),
    }
}

/// All exchanges with their bodies, the newest first, without what the file added.
async fn all(history: &History) -> Vec<Exchange> {
    let query = Query { limit: usize::MAX, bodies: true, ..Query::default() };
    let page = history.read(move |reader| reader.list(&query)).await.expect("a list");
    page.exchanges.into_iter().map(|exchange| Exchange { seq: 0, version: 0, ..exchange }).collect()
}

#[tokio::test]
async fn what_is_kept_comes_back_as_it_was() {
    let (_folder, path) = folder();
    let exchange = samples::exchange();
    let history = start(&path, LIMITS);
    history.record(Record::of(&exchange), None);
    history.written().await.expect("written");
    assert_eq!(all(&history).await, std::slice::from_ref(&exchange));
    drop(history);
    // Also for the next program.
    assert_eq!(all(&start(&path, LIMITS)).await, [exchange]);
}

#[tokio::test]
async fn nothing_is_readable_in_the_file() {
    let (folder, path) = folder();
    let history = start(&path, LIMITS);
    history.record(Record::of(&samples::exchange()), None);
    history.written().await.expect("written");
    for file in std::fs::read_dir(folder.path()).expect("files") {
        let bytes = std::fs::read(file.expect("a file").path()).expect("bytes");
        for plain in ["stripe", "evt_1", "billing", "203.0.113.9", "localhost", "received"] {
            assert!(!bytes.windows(plain.len()).any(|part| part == plain.as_bytes()), "{plain}");
        }
    }
}

#[tokio::test]
async fn a_later_attempt_joins_its_exchange() {
    let (_folder, path) = folder();
    let history = start(&path, LIMITS);
    let whole = samples::exchange();
    let pending = Exchange { attempts: vec![], ..whole.clone() };
    history.record(Record::of(&pending), None);
    history.written().await.expect("written");
    assert!(all(&history).await[0].attempts.is_empty());
    history.record(Record::of(&whole), None);
    let mut second = whole.clone();
    second.attempts[0].number = 2;
    history.record(Record::of(&second), None);
    history.written().await.expect("written");
    let kept = all(&history).await;
    let numbers: Vec<_> = kept[0].attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!((kept.len(), numbers), (1, vec![1, 2]));
    assert_eq!(kept[0].request, whole.request);
    assert_eq!(kept[0].attempts[1].reply, whole.attempts[0].reply);
}

#[tokio::test]
async fn what_was_left_out_takes_nothing_from_what_is_kept() {
    let (_folder, path) = folder();
    let history = start(&path, LIMITS);
    let whole = samples::exchange();
    let pending = Exchange { attempts: vec![], ..whole.clone() };
    let recorder = Recorder::new(Events::channel().0, Some(history.clone()), Filter::default());
    recorder.pending(|| carried_out(&pending));
    // The first attempt's record waited for too long, and the second had little room for the request.
    let mut first = Record::of(&whole);
    first.drop_bodies();
    history.record(first, None);
    let mut second = carried_out(&whole);
    second.request.bytes.truncate(3);
    if let Tried::Over(attempt) = &mut second.attempt {
        attempt.number = 2;
    }
    recorder.over(Box::new(whole.delivered()), || second);
    history.written().await.expect("written");
    let kept = all(&history).await.remove(0);
    assert_eq!(kept.request, whole.request);
    let reply = |attempt: &Attempt| attempt.reply.as_ref().map(|reply| reply.body.clone());
    let want = reply(&whole.attempts[0]).expect("an answer");
    let bare = Kept { bytes: Bytes::new(), size: want.size };
    assert_eq!(kept.attempts.iter().filter_map(reply).collect::<Vec<_>>(), [bare, want]);
}

#[tokio::test]
async fn half_a_body_stays_half() {
    let (_folder, path) = folder();
    let history = start(&path, LIMITS);
    let whole = samples::exchange();
    let mut half = Exchange { attempts: vec![], ..whole.clone() };
    half.request.unfinished = true;
    let recorder = Recorder::new(Events::channel().0, Some(history.clone()), Filter::default());
    recorder.pending(|| carried_out(&half));
    history.written().await.expect("written");
    assert!(all(&history).await[0].request.unfinished);
    recorder.over(Box::new(whole.delivered()), || carried_out(&whole));
    history.written().await.expect("written");
    assert!(!all(&history).await[0].request.unfinished, "the rest came");
}

#[tokio::test]
async fn an_exchange_whose_client_was_killed_is_ended_by_the_next_program() {
    let (_folder, path) = folder();
    let whole = samples::exchange();
    let pending = Exchange { attempts: vec![], ..whole.clone() };
    let client = start(&path, LIMITS);
    Recorder::new(Events::channel().0, Some(client.clone()), Filter::default()).pending(|| carried_out(&pending));
    client.written().await.expect("written");
    // As long as somebody may go on with it, nobody ends it.
    for limits in [LIMITS, Limits::NONE] {
        let other = start(&path, limits);
        assert!(all(&other).await[0].attempts.is_empty(), "{limits:?}");
        drop(other);
    }
    let looks = start(&path, Limits::NONE);
    assert_eq!(all(&looks).await.len(), 1);
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(20);
    let ended = loop {
        // Its thread may not have let go yet.
        let next = start(&path, Limits::NONE);
        let found = all(&next).await.remove(0);
        if !found.attempts.is_empty() {
            break found;
        }
        assert!(Instant::now() < deadline, "not ended");
    };
    assert_eq!(all(&looks).await[0].attempts, ended.attempts, "those that look see it at once");
    assert!(ended.is_failed() && ended.attempts.len() == 1, "{ended:?}");
    assert_eq!(ended.attempts[0].url, "http://localhost:3000/a", "where a replay goes");
    assert_eq!(ended.request, whole.request);
    // One that is over stays as it is.
    let history = start(&path, LIMITS);
    assert_eq!(all(&history).await[0].attempts, ended.attempts);
}

#[rstest]
#[case::count(Limits { max_count: 10, ..LIMITS })]
#[case::bytes(Limits { max_bytes: 8 << 10, ..LIMITS })]
#[tokio::test]
async fn the_oldest_go_and_pinned_ones_stay(#[case] limits: Limits) {
    let (_folder, path) = folder();
    let history = start(&path, limits);
    let exchanges: Vec<_> = (0..100).map(|_| samples::exchange()).collect();
    history.record(Record::of(&exchanges[0]), None);
    history.written().await.expect("written");
    let first = history.get(Which::Id(exchanges[0].id)).await.expect("read").expect("there");
    assert!(history.pin(first.seq, true).await.expect("pinned"));
    for exchange in &exchanges[1..] {
        history.record(Record::of(exchange), None);
    }
    history.written().await.expect("written");
    let kept = all(&history).await;
    let total = history.look().await.expect("a total");
    assert!(kept.len() >= 5 && kept.len() <= 40, "{}", kept.len());
    assert!(total.count <= limits.max_count && total.bytes <= limits.max_bytes, "{total:?}");
    assert_eq!(total.count, kept.len() as u64);
    assert_eq!(kept[0].id, exchanges[99].id, "the newest is there");
    assert!(kept.iter().any(|exchange| exchange.id == exchanges[0].id && exchange.pinned));
}

#[tokio::test]
async fn what_is_too_old_goes() {
    let (_folder, path) = folder();
    let history = start(&path, Limits { max_age: Duration::ZERO, ..LIMITS });
    history.record(Record::of(&samples::exchange()), None);
    history.written().await.expect("written");
    history.record(Record::of(&samples::exchange()), None);
    history.written().await.expect("written");
    assert!(all(&history).await.len() <= 1);
}

#[tokio::test]
async fn two_programs_share_the_file() {
    let (_folder, path) = folder();
    let (one, other) = (start(&path, LIMITS), start(&path, LIMITS));
    for _ in 0..50 {
        one.record(Record::of(&samples::exchange()), None);
        other.record(Record::of(&samples::exchange()), None);
    }
    one.written().await.expect("written");
    other.written().await.expect("written");
    assert_eq!(all(&one).await.len(), 100);
    let versions: std::collections::BTreeSet<_> =
        one.read(|reader| reader.changes(0, 1000, false)).await.expect("changes").iter().map(|e| e.version).collect();
    assert_eq!(versions.len(), 100, "a version of its own for each change");
}

#[tokio::test]
async fn whoever_listens_is_told_when_it_is_kept() {
    let (_folder, path) = folder();
    let (events, mut listener) = Events::channel();
    let history = start(&path, LIMITS);
    let recorder = Recorder::new(events, Some(history.clone()), "status:5xx".parse().expect("a filter"));
    let exchange = samples::exchange();
    recorder.over(Box::new(exchange.delivered()), || carried_out(&exchange));
    let Some(Event::Delivered(delivered)) = listener.next().await else { panic!("an event") };
    assert_eq!((delivered.id, delivered.is_wanted), (exchange.id, false));
    assert!(history.get(Which::Id(exchange.id)).await.expect("read").is_ok());
}

#[tokio::test]
async fn deliveries_are_told_also_when_nothing_can_be_written() {
    let (folder, path) = folder();
    // A folder where the file should be.
    std::fs::create_dir(&path).expect("a folder");
    let (events, mut listener) = Events::channel();
    let history = start(&path, LIMITS);
    let recorder = Recorder::new(events, Some(history.clone()), Filter::default());
    let exchange = samples::exchange();
    recorder.over(Box::new(exchange.delivered()), || carried_out(&exchange));
    assert!(matches!(listener.next().await, Some(Event::Delivered(_))));
    assert!(history.state().borrow().problem.is_some());
    // It is kept as soon as that is possible.
    std::fs::remove_dir(&path).expect("removed");
    let deadline = Instant::now() + Duration::from_secs(20);
    while history.state().borrow().problem.is_some() {
        assert!(Instant::now() < deadline, "not kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(all(&history).await, [exchange]);
    drop(folder);
}

#[rstest]
#[case("@1", true)]
#[case("@0", false)]
#[case("@x", false)]
#[case("req_01M7", true)]
#[case("req_", false)]
#[case("N7H", true)]
#[case("n7", false)]
#[case("req_01M7…N7H", true)]
#[case("req_01M7…", false)]
#[case("a/b", false)]
fn names_of_exchanges(#[case] text: &str, #[case] is_one: bool) {
    assert_eq!(text.parse::<Which>().is_ok(), is_one);
}

#[tokio::test]
async fn an_exchange_is_found_by_any_name_of_it() {
    let (_folder, path) = folder();
    let history = start(&path, LIMITS);
    let (one, other) = (samples::exchange(), samples::exchange());
    history.record(Record::of(&one), None);
    history.record(Record::of(&other), None);
    history.written().await.expect("written");
    let id = one.id.to_string();
    for name in [id.clone(), id.to_lowercase(), id[4..].into(), format!("{}…{}", &id[..8], &id[20..]), "@2".into()] {
        let which: Which = name.parse().expect("a name");
        assert_eq!(history.get(which).await.expect("read").map(|found| found.id), Ok(one.id), "{name}");
    }
    let both: Which = id[..10].parse().expect("a name");
    assert!(matches!(history.get(both).await.expect("read"), Err(WhichError::Several(..))));
    let none: Which = "req_ZZZZ".parse().expect("a name");
    assert!(matches!(history.get(none).await.expect("read"), Err(WhichError::None(_))));
}

#[tokio::test]
async fn pages_follow_each_other() {
    let (_folder, path) = folder();
    let history = start(&path, LIMITS);
    for _ in 0..25 {
        history.record(Record::of(&samples::exchange()), None);
    }
    history.written().await.expect("written");
    let (mut before, mut sizes) = (None, vec![]);
    loop {
        let query = Query { before, limit: 10, count: before.is_none(), ..Query::default() };
        let page = history.read(move |reader| reader.list(&query)).await.expect("a page");
        sizes.push((page.exchanges.len(), page.matched));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [(10, Some(25)), (10, None), (5, None)]);
}
