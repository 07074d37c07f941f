//! The backlog as a state machine, against a plain model of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hookway_protocol::message::{Queueing, Rule};
use jiff::Timestamp;
use proptest::prelude::*;
use tokio::time::Instant;

use super::backlog::{Backlog, Entry, Outcome, State};
use crate::limits::Counter;
use crate::store::Seq;

/// What a test does.
#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Take,
    /// The n-th of those that are out comes back.
    Back(u8, Outcome),
    Wait(u16),
    Wake,
    AppIsThere(u8),
    Expire,
    Concurrency(u8),
}

const PATHS: [&str; 3] = ["/stripe/a", "/github", "/else"];
const RETENTION: Duration = Duration::from_secs(3600);

fn outcome() -> impl Strategy<Value = Outcome> {
    let text = || "why".to_owned();
    prop_oneof![
        4 => Just(Outcome::Done),
        1 => Just(Outcome::Unsent),
        1 => Just(Outcome::AppAway(text())),
        1 => Just(Outcome::Lost(text())),
        2 => Just(Outcome::Failed(text())),
        1 => Just(Outcome::Hopeless(text())),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3u8).prop_map(Step::Push),
        6 => Just(Step::Take),
        4 => (any::<u8>(), outcome()).prop_map(|(n, outcome)| Step::Back(n, outcome)),
        2 => any::<u16>().prop_map(Step::Wait),
        1 => Just(Step::Wake),
        1 => (0..3u8).prop_map(Step::AppIsThere),
        1 => Just(Step::Expire),
        1 => (1..5u8).prop_map(Step::Concurrency),
    ]
}

fn queueing(concurrency: u8) -> Queueing {
    let rule = |prefix: &str| Rule { prefix: prefix.into(), ..Rule::default() };
    let rules = vec![rule("/stripe"), rule("/github")];
    Queueing { rules, drain_concurrency: concurrency.into(), ..Queueing::default() }
}

/// One delivery, as the model knows it.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    lane: u8,
    since: Instant,
    attempts: u32,
    /// The app may have had it.
    handed: bool,
    failed: bool,
    out: bool,
    /// It left the order once: it came back without having been handed over.
    marked: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_the_order_is_kept(steps in prop::collection::vec(step(), 1..200)) {
        let start = Instant::now();
        let mut now = start;
        let counter = Arc::new(Counter::new(usize::MAX));
        let mut backlog = Backlog::new(queueing(1));
        let mut most = 1usize;
        let mut known: BTreeMap<Seq, Known> = BTreeMap::new();
        let (mut pushed, mut gone, mut dead) = (0u64, 0u64, 0u64);
        for step in steps {
            match step {
                Step::Push(lane) => {
                    pushed += 1;
                    let places = [(); 4].map(|()| counter.take_anyway(1));
                    let path = PATHS[usize::from(lane)].into();
                    backlog.add(pushed, Entry {
                        path, bytes: 1, attempts: 0, handed: false, marked: false, since: now, noted_since: Timestamp::UNIX_EPOCH, places,
                        state: State::Ready,
                    });
                    known.insert(pushed, Known {
                        lane, since: now, attempts: 0, handed: false, failed: false, out: false, marked: false,
                    });
                }
                Step::Take => {
                    let Ok(turn) = backlog.take(now) else { continue };
                    let this = known.get(&turn.seq).expect("it was pushed").clone();
                    prop_assert!(!this.out, "one at a time");
                    prop_assert_eq!(turn.handed, this.handed, "the mark is there when the app may have had it");
                    prop_assert_eq!(turn.attempt, this.attempts + 1);
                    prop_assert_eq!(turn.to_mark.first(), (!this.marked).then_some(&turn.seq));
                    let beside = known.values().filter(|other| other.lane == this.lane && other.out);
                    let (again, first): (Vec<_>, Vec<_>) = beside.partition(|other| other.failed);
                    if this.failed {
                        prop_assert!(again.is_empty(), "one of those that failed at a time");
                    } else {
                        prop_assert!(first.len() < most, "so many at once");
                        let before = known.range(..turn.seq);
                        let skipped = before.filter(|(_, other)| other.lane == this.lane && !other.out && !other.failed);
                        prop_assert_eq!(skipped.count(), 0, "the order is kept");
                    }
                    backlog.marked(&turn.to_mark);
                    for seq in &turn.to_mark {
                        known.get_mut(seq).expect("it is there").marked = true;
                    }
                    let this = known.get_mut(&turn.seq).expect("it is there");
                    (this.out, this.attempts) = (true, this.attempts + 1);
                }
                Step::Back(n, outcome) => {
                    let out: Vec<Seq> = known.iter().filter(|(_, known)| known.out).map(|(seq, _)| *seq).collect();
                    let Some(seq) = out.get(usize::from(n) % out.len().max(1)).copied() else { continue };
                    let back = backlog.back(seq, &outcome, now, 0.5);
                    let this = known.get_mut(&seq).expect("it is out");
                    this.out = false;
                    match &outcome {
                        Outcome::Done => {
                            gone += 1;
                            known.remove(&seq);
                        }
                        Outcome::Hopeless(_) => {
                            dead += 1;
                            known.remove(&seq);
                        }
                        Outcome::Unsent => this.attempts -= 1,
                        Outcome::AppAway(_) => {}
                        Outcome::Lost(_) => this.handed = true,
                        Outcome::Failed(_) => (this.handed, this.failed) = (true, true),
                    }
                    prop_assert_eq!(back, known.get(&seq).map(|known| (known.attempts, known.handed || known.marked)));
                }
                Step::Wait(seconds) => now += Duration::from_secs(u64::from(seconds) % 2000),
                Step::Wake => backlog.wake(now),
                Step::AppIsThere(lane) => drop(backlog.app_is_there(PATHS[usize::from(lane)])),
                Step::Expire => {
                    for (seq, attempts) in backlog.expire(now, RETENTION) {
                        let old = known.remove(&seq).expect("it was there");
                        prop_assert!(!old.out && now - old.since >= RETENTION);
                        prop_assert_eq!(attempts, old.attempts);
                        dead += 1;
                    }
                    prop_assert!(known.values().all(|known| known.out || now - known.since < RETENTION));
                }
                Step::Concurrency(count) => {
                    most = count.into();
                    backlog.set_queueing(queueing(count));
                }
            }
            let depth = backlog.depth(now);
            prop_assert_eq!(depth.count, known.len() as u64);
            prop_assert_eq!((depth.count + gone, depth.dead), (pushed - dead, dead), "nothing is lost");
            prop_assert_eq!(counter.used() as u64, 4 * (pushed - gone), "the limits know what is there");
        }
        // Whatever happened: with a client and an app, everything arrives.
        for seq in known.iter().filter(|(_, known)| known.out).map(|(seq, _)| *seq).collect::<Vec<_>>() {
            backlog.back(seq, &Outcome::Unsent, now, 0.0);
        }
        backlog.wake(now);
        let mut left = known.len();
        while let Ok(turn) = backlog.take(now) {
            prop_assert_eq!(backlog.back(turn.seq, &Outcome::Done, now, 0.0), None);
            left -= 1;
        }
        prop_assert_eq!(left, 0);
    }
}

fn backlog_of(count: u64) -> (Backlog, Instant) {
    let (mut backlog, now, counter) = (Backlog::new(Queueing::default()), Instant::now(), Arc::new(Counter::new(0)));
    for seq in 1..=count {
        let places = [(); 4].map(|()| counter.take_anyway(1));
        let (handed, marked, state, noted_since) = (false, false, State::Ready, Timestamp::UNIX_EPOCH);
        let path = "/".into();
        backlog.add(seq, Entry { path, bytes: 1, attempts: 0, handed, marked, since: now, noted_since, places, state });
    }
    (backlog, now)
}

#[test]
fn one_that_fails_is_tried_later_and_later_and_stands_in_nobodys_way() {
    let (mut backlog, mut now) = backlog_of(2);
    let mut waits = Vec::new();
    assert_eq!(backlog.take(now).map(|turn| turn.seq), Ok(1));
    backlog.back(1, &Outcome::Failed("500".into()), now, 0.0);
    assert_eq!(backlog.take(now).map(|turn| turn.seq), Ok(2), "the next is not held up");
    backlog.back(2, &Outcome::Done, now, 0.0);
    for _ in 0..11 {
        let at = backlog.take(now).expect_err("it waits").expect("until then");
        waits.push((at - now).as_secs());
        now = at;
        assert!(backlog.take(now).is_ok_and(|turn| turn.handed), "it is marked");
        backlog.back(1, &Outcome::Failed("500".into()), now, 0.0);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    backlog.wake(now);
    assert!(backlog.take(now).is_ok(), "a client that comes back gets it at once");
}

#[test]
fn an_app_that_is_away_stops_its_lane_and_no_other() {
    let (mut backlog, now) = backlog_of(2);
    let away = Outcome::AppAway("refused".into());
    assert!(backlog.take(now).is_ok());
    backlog.back(1, &away, now, 0.0);
    let at = backlog.take(now).expect_err("the lane waits").expect("for a moment");
    assert_eq!(at - now, Duration::from_millis(500));
    let turn = backlog.take(at).expect("the same again");
    assert_eq!((turn.seq, turn.attempt, turn.handed), (1, 2, false), "nothing reached the app");
    backlog.back(1, &away, at, 0.0);
    assert_eq!(backlog.take(at), Err(Some(at + Duration::from_secs(1))));
    assert!(backlog.app_is_there("/"));
    assert_eq!(backlog.take(at).map(|turn| turn.seq), Ok(1), "the order is kept");
}
