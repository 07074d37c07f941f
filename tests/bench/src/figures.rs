//! Figures: what a round came to, and what is made of several.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// What a round came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// How many were done.
    pub(crate) count: usize,
    /// Done in a second.
    pub(crate) rate: f64,
    /// Milliseconds.
    pub(crate) p50: f64,
    /// Milliseconds.
    pub(crate) p99: f64,
    /// Processor seconds for 10 000.
    pub(crate) cpu: f64,
}

/// A round that runs.
#[derive(Debug)]
pub(crate) struct Clock {
    pids: Vec<u32>,
    cpu: f64,
    started: Instant,
}

impl Clock {
    /// Starts a round in which the work of these processes is counted.
    pub(crate) fn start(pids: &[u32]) -> Self {
        Self { pids: pids.to_vec(), cpu: cpu(pids), started: Instant::now() }
    }

    /// When a round of this length ends.
    pub(crate) fn until(&self, time: Duration) -> Instant {
        self.started + time
    }

    /// Ends the round, when the processes have done what they put off.
    pub(crate) async fn stop(self, mut took: Vec<Duration>) -> anyhow::Result<Measured> {
        ensure!(!took.is_empty(), "nothing was done");
        let seconds = self.started.elapsed().as_secs_f64();
        settle(&self.pids).await;
        took.sort_unstable();
        let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
        let count = took.len() as f64;
        Ok(Measured {
            count: took.len(),
            rate: count / seconds,
            p50: at(0.5),
            p99: at(0.99),
            cpu: (cpu(&self.pids) - self.cpu) / count * 10_000.0,
        })
    }
}

/// Waits until the processes have done what they put off, so that it counts as theirs and not as the next one's.
async fn settle(pids: &[u32]) {
    for _ in 0..100 {
        let before = cpu(pids);
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Not a tick: what works a tenth of the time has one.
        if cpu(pids) - before < 0.005 {
            return;
        }
    }
}

/// Processor time that these processes have used, in seconds.
fn cpu(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / 100.0
}

/// A process' resident memory, in KiB.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The median of what `value` says of each round.
pub(crate) fn median<T>(rounds: &[T], value: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One rate beside another.
pub(crate) fn ratio(own: f64, other: Option<f64>) -> String {
    other.map_or_else(|| "–".into(), |other| format!("{:.2} ×", own / other))
}

/// The order of so many targets in a round: there and back again, so that none always comes after the same other.
pub(crate) fn turns(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| if round.is_multiple_of(2) { n } else { count - 1 - n })
}
