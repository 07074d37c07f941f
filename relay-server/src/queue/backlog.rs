//! What waits for one endpoint, and whose turn it is. No clock, no disk: times are told, and what is decided here is
//! carried out by [`super::Queue`].
//!
//! Deliveries under one rule are a lane: handed over in the order of acceptance, so many at once. One that the app
//! failed leaves the order and is tried again beside it, later and later; a lane whose app is not there waits as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hookway_protocol::message::{Queueing, Rule};
use jiff::Timestamp;
use tokio::time::Instant;

use super::room::Places;
use crate::store::Seq;

/// The first wait after a failed attempt; it doubles up to [`LAST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(300);
/// A lane whose app is not there is tried again after this long, and later after [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// So many are noted as about to be handed over at once: each note is a wait for the disk.
const MARKED_TOGETHER: usize = 32;

/// What waits for an endpoint.
#[derive(Debug)]
pub(super) struct Backlog {
    entries: BTreeMap<Seq, Entry>,
    dead: BTreeMap<Seq, DeadLetter>,
    lanes: Vec<Lane>,
    /// The lane after the one that was served last.
    turn: usize,
    queueing: Queueing,
}

/// A delivery that waits.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Box<str>,
    pub(super) bytes: u64,
    /// How often it was handed over.
    pub(super) attempts: u32,
    /// Whether the app may have had it.
    pub(super) handed: bool,
    /// Whether the store knows that it may have.
    pub(super) marked: bool,
    /// Since when it waits.
    pub(super) since: Instant,
    /// The same by the clock on the wall, as the store knows it.
    pub(super) noted_since: Timestamp,
    /// What it takes of the limits.
    pub(super) places: Places,
    pub(super) state: State,
}

/// A delivery that is tried no more.
#[derive(Debug)]
pub(super) struct DeadLetter {
    since: Timestamp,
    places: Places,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// In the order of its lane.
    #[default]
    Ready,
    /// Being handed over.
    Out,
    /// The app failed it so often; it is tried again then.
    Later(u32, Instant),
    /// The same, and being handed over.
    OutAgain(u32),
}

#[derive(Debug, Default)]
struct Lane {
    ready: BTreeSet<Seq>,
    later: BTreeSet<(Instant, Seq)>,
    out: usize,
    out_again: usize,
    /// Nothing is handed over until then.
    paused: Option<Instant>,
    pause: Duration,
}

/// A delivery whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) seq: Seq,
    /// Which attempt it will be.
    pub(super) attempt: u32,
    /// Whether the app may have had it before.
    pub(super) handed: bool,
    pub(super) bytes: u64,
    /// What the store has to note first: this one, and some of those that follow.
    pub(super) to_mark: Vec<Seq>,
}

/// What came of handing a delivery over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The app has it.
    Done,
    /// Nothing of it was sent.
    Unsent,
    /// The app is not there: nothing reached it.
    AppAway(String),
    /// The client was lost before it answered.
    Lost(String),
    /// The app, or the client, failed it.
    Failed(String),
    /// It makes no sense to try again.
    Hopeless(String),
}

/// What waits, in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depth {
    /// Deliveries that wait.
    pub(crate) count: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// How long the oldest has waited.
    pub(crate) oldest: Duration,
    /// Dead letters.
    pub(crate) dead: u64,
}

impl Depth {
    /// Both together.
    pub(crate) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.bytes += other.bytes;
        self.dead += other.dead;
        self.oldest = self.oldest.max(other.oldest);
    }
}

impl Outcome {
    /// For the metric.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unsent => "unsent",
            Self::AppAway(_) => "app_away",
            Self::Lost(_) => "lost",
            Self::Failed(_) => "failed",
            Self::Hopeless(_) => "dead",
        }
    }
}

impl Backlog {
    /// Nothing, for a client that asks for this.
    pub(super) fn new(queueing: Queueing) -> Self {
        let (entries, dead, lanes) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut backlog = Self { entries, dead, lanes, turn: 0, queueing: Queueing::default() };
        backlog.set_queueing(queueing);
        backlog
    }

    /// What its client asks for. Lanes follow the rules.
    pub(super) fn set_queueing(&mut self, queueing: Queueing) {
        self.queueing = queueing;
        self.lanes.clear();
        self.lanes.resize_with(self.queueing.rules.len() + 1, Lane::default);
        for (seq, entry) in &self.entries {
            let lane = &mut self.lanes[lane_of(&self.queueing, &entry.path)];
            match entry.state {
                State::Ready => drop(lane.ready.insert(*seq)),
                State::Out => lane.out += 1,
                State::Later(_, at) => drop(lane.later.insert((at, *seq))),
                State::OutAgain(_) => lane.out_again += 1,
            }
        }
    }

    /// The beginning of a path that its rule is for: as much as the order needs to know.
    pub(super) fn prefix<'a>(&self, path: &'a str) -> &'a str {
        let rule = self.queueing.rules.get(lane_of(&self.queueing, path));
        rule.and_then(|rule| path.get(..rule.prefix.len())).unwrap_or_default()
    }

    /// The rule for a path.
    pub(super) fn rule(&self, path: &str) -> Rule {
        self.queueing.rules.get(lane_of(&self.queueing, path)).cloned().unwrap_or_default()
    }

    pub(super) fn add(&mut self, seq: Seq, entry: Entry) {
        // It was found in the store a moment ago, and may be on its way.
        if self.entries.contains_key(&seq) {
            return;
        }
        let lane = lane_of(&self.queueing, &entry.path);
        self.lanes[lane].ready.insert(seq);
        self.entries.insert(seq, entry);
    }

    /// What its client asks for.
    pub(super) const fn queueing(&self) -> &Queueing {
        &self.queueing
    }

    /// How often it was handed over.
    pub(super) fn attempts(&self, seq: Seq) -> u32 {
        self.entries.get(&seq).map_or(0, |entry| entry.attempts)
    }

    /// Forgets it if it is a dead letter here, and was made to wait again since; says whether it was.
    pub(super) fn take_revived(&mut self, seq: Seq, since: Timestamp) -> bool {
        let is_revived = self.dead.get(&seq).is_some_and(|dead| since > dead.since);
        if is_revived {
            self.dead.remove(&seq);
        }
        is_revived
    }

    /// The next one whose turn it is, or when to ask again if nothing happens.
    pub(super) fn take(&mut self, now: Instant) -> Result<Turn, Option<Instant>> {
        let most = usize::try_from(self.queueing.drain_concurrency).unwrap_or(usize::MAX).max(1);
        let count = self.lanes.len();
        let mut ask_again: Option<Instant> = None;
        for index in (0..count).map(|n| (self.turn + n) % count) {
            let lane = &mut self.lanes[index];
            if let Some(until) = lane.paused.filter(|until| *until > now) {
                if !lane.ready.is_empty() || !lane.later.is_empty() {
                    ask_again = Some(ask_again.map_or(until, |at| at.min(until)));
                }
                continue;
            }
            // One at a time of those that the app failed, so that they stand in nobody's way.
            let due = lane.later.first().copied().filter(|_| lane.out_again == 0);
            let seq = match due {
                Some((at, seq)) if at <= now => {
                    lane.later.remove(&(at, seq));
                    lane.out_again += 1;
                    seq
                }
                _ if lane.out < most && !lane.ready.is_empty() => {
                    lane.out += 1;
                    lane.ready.pop_first().unwrap_or_default()
                }
                Some((at, _)) => {
                    ask_again = Some(ask_again.map_or(at, |before| before.min(at)));
                    continue;
                }
                None => continue,
            };
            self.turn = (index + 1) % count;
            return Ok(self.turn_of(seq, index));
        }
        Err(ask_again)
    }

    fn turn_of(&mut self, seq: Seq, lane: usize) -> Turn {
        let entry = self.entries.get_mut(&seq).expect("what is in a lane is here");
        entry.state = match entry.state {
            State::Later(failures, _) => State::OutAgain(failures),
            _ => State::Out,
        };
        entry.attempts = entry.attempts.saturating_add(1);
        let (attempt, handed, bytes) = (entry.attempts, entry.handed, entry.bytes);
        let mut turn = Turn { seq, attempt, handed, bytes, to_mark: vec![] };
        if !entry.marked {
            let next = self.lanes[lane].ready.iter().take(MARKED_TOGETHER - 1);
            let next = next.filter(|seq| self.entries.get(seq).is_some_and(|entry| !entry.marked));
            turn.to_mark = std::iter::once(seq).chain(next.copied()).collect();
        }
        turn
    }

    /// The store has noted these.
    pub(super) fn marked(&mut self, all: &[Seq]) {
        for seq in all {
            if let Some(entry) = self.entries.get_mut(seq) {
                entry.marked = true;
            }
        }
    }

    /// Those that the store has noted, though they were never handed over: it is to note them anew, if they are.
    pub(super) fn marked_in_vain(&mut self) -> Vec<Seq> {
        let vain = |entry: &Entry| entry.marked && !entry.handed && entry.state == State::Ready;
        let all = self.entries.iter_mut().filter(|(_, entry)| vain(entry));
        all.map(|(seq, entry)| {
            entry.marked = false;
            *seq
        })
        .collect()
    }

    /// One that was taken is back: how often it was handed over by now, and whether the store is to go on saying that
    /// the app may have had it, unless it waits no longer.
    pub(super) fn back(&mut self, seq: Seq, outcome: &Outcome, now: Instant, jitter: f64) -> Option<(u32, bool)> {
        let entry = self.entries.get_mut(&seq)?;
        let lane = &mut self.lanes[lane_of(&self.queueing, &entry.path)];
        let failures = match entry.state {
            State::Out => {
                lane.out -= 1;
                None
            }
            State::OutAgain(failures) => {
                lane.out_again -= 1;
                Some(failures)
            }
            State::Ready | State::Later(..) => return Some((entry.attempts, entry.handed || entry.marked)),
        };
        entry.handed |= matches!(outcome, Outcome::Lost(_) | Outcome::Failed(_));
        match outcome {
            Outcome::AppAway(_) => {
                let pause = lane.pause.max(FIRST_PAUSE);
                (lane.paused, lane.pause) = (Some(now + pause), (pause * 2).min(LAST_PAUSE));
            }
            Outcome::Done | Outcome::Failed(_) | Outcome::Hopeless(_) => {
                (lane.paused, lane.pause) = (None, Duration::ZERO);
            }
            Outcome::Unsent => entry.attempts = entry.attempts.saturating_sub(1),
            Outcome::Lost(_) => {}
        }
        let now_is = Some((entry.attempts, entry.handed || entry.marked));
        match (outcome, failures) {
            (Outcome::Done, _) => {
                self.entries.remove(&seq);
                return None;
            }
            (Outcome::Hopeless(_), _) => {
                self.bury(seq);
                return None;
            }
            (Outcome::Failed(_), failures) => {
                let failures = failures.unwrap_or(0) + 1;
                let at = now + wait(failures, jitter);
                entry.state = State::Later(failures, at);
                lane.later.insert((at, seq));
            }
            (_, Some(failures)) => {
                entry.state = State::Later(failures, now);
                lane.later.insert((now, seq));
            }
            (_, None) => {
                entry.state = State::Ready;
                lane.ready.insert(seq);
            }
        }
        now_is
    }

    /// Forgets one that the store does not have any more.
    pub(super) fn forget(&mut self, seq: Seq) {
        if let Some(entry) = self.entries.remove(&seq) {
            let lane = &mut self.lanes[lane_of(&self.queueing, &entry.path)];
            match entry.state {
                State::Ready => drop(lane.ready.remove(&seq)),
                State::Out => lane.out -= 1,
                State::Later(_, at) => drop(lane.later.remove(&(at, seq))),
                State::OutAgain(_) => lane.out_again -= 1,
            }
        }
        self.dead.remove(&seq);
    }

    /// A client is back: nothing waits for its time.
    pub(super) fn wake(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            (lane.paused, lane.pause) = (None, Duration::ZERO);
            for (_, seq) in std::mem::take(&mut lane.later) {
                lane.later.insert((now, seq));
                if let Some(Entry { state: State::Later(_, at), .. }) = self.entries.get_mut(&seq) {
                    *at = now;
                }
            }
        }
    }

    /// The app behind that path answers.
    pub(super) fn app_is_there(&mut self, path: &str) -> bool {
        let lane = &mut self.lanes[lane_of(&self.queueing, path)];
        lane.pause = Duration::ZERO;
        lane.paused.take().is_some()
    }

    /// Those that have waited for too long become dead letters: these.
    pub(super) fn expire(&mut self, now: Instant, retention: Duration) -> Vec<(Seq, u32)> {
        let old = |entry: &Entry| {
            let waits = matches!(entry.state, State::Ready | State::Later(..));
            waits && now.saturating_duration_since(entry.since) >= retention
        };
        let gone: Vec<(Seq, u32)> =
            self.entries.iter().filter(|(_, entry)| old(entry)).map(|(seq, entry)| (*seq, entry.attempts)).collect();
        gone.iter().for_each(|(seq, _)| self.bury(*seq));
        gone
    }

    fn bury(&mut self, seq: Seq) {
        if let Some(entry) = self.entries.get(&seq) {
            let lane = &mut self.lanes[lane_of(&self.queueing, &entry.path)];
            lane.ready.remove(&seq);
            if let State::Later(_, at) = entry.state {
                lane.later.remove(&(at, seq));
            }
        }
        if let Some(Entry { places, noted_since, .. }) = self.entries.remove(&seq) {
            self.dead.insert(seq, DeadLetter { since: noted_since, places });
        }
    }

    /// Lists a dead letter.
    pub(super) fn add_dead(&mut self, seq: Seq, since: Timestamp, places: Places) {
        self.dead.insert(seq, DeadLetter { since, places });
    }

    /// What dead letters take of the limits.
    pub(super) fn taken_by_dead(&self) -> impl Iterator<Item = &Places> {
        self.dead.values().map(|dead| &dead.places)
    }

    /// The oldest dead letter goes, to make room.
    pub(super) fn drop_oldest_dead(&mut self) -> Option<(Seq, DeadLetter)> {
        self.dead.pop_first()
    }

    /// It did not go.
    pub(super) fn put_back(&mut self, seq: Seq, letter: DeadLetter) {
        self.dead.insert(seq, letter);
    }

    /// Takes over the dead letters of another.
    pub(super) fn take_dead_of(&mut self, other: &mut Self) {
        self.dead.append(&mut other.dead);
    }

    pub(super) fn depth(&self, now: Instant) -> Depth {
        let oldest = self.entries.values().map(|entry| entry.since).min();
        Depth {
            count: self.entries.len() as u64,
            bytes: self.entries.values().map(|entry| entry.bytes).sum(),
            oldest: oldest.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            dead: self.dead.len() as u64,
        }
    }

    /// Deliveries that are tried no more.
    pub(super) fn dead_letters(&self) -> u64 {
        self.dead.len() as u64
    }

    /// Whether one is being handed over.
    pub(super) fn is_out(&self) -> bool {
        self.lanes.iter().any(|lane| lane.out + lane.out_again > 0)
    }

    /// Whether it is known, as one that waits or as a dead letter.
    pub(super) fn knows(&self, seq: Seq) -> bool {
        self.entries.contains_key(&seq) || self.dead.contains_key(&seq)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Which rule is for a path: the endpoint's own and the longest go first. One past the last when none is.
fn lane_of(queueing: &Queueing, path: &str) -> usize {
    let rules = queueing.rules.iter().enumerate();
    let fitting = rules.filter(|(_, rule)| hookway_protocol::message::is_below(path, &rule.prefix));
    let best = fitting.max_by_key(|(_, rule)| (!rule.endpoint.is_empty(), rule.prefix.len()));
    best.map_or(queueing.rules.len(), |(index, _)| index)
}

/// The wait after so many failures: doubling, and shortened by up to half so that many do not come at once.
fn wait(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LAST_WAIT);
    doubled.mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0))
}
