use std::path::PathBuf;

use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::exchange::samples;

const LIMITS: Limits = Limits { max_count: 1000, max_age: Duration::from_secs(86_400), max_bytes: 1 << 30 };

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(History::FILE);
    (folder, path)
}

fn start(path: &Path, limits: Limits) -> History {
    History::start(path, limits).expect("a thread")
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
    recorder.over(Box::new(exchange.delivered()), || Record::of(&exchange));
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
    recorder.over(Box::new(exchange.delivered()), || Record::of(&exchange));
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
