//! A process, ended with this one.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end when it is asked to.
const MOST: Duration = Duration::from_secs(10);

/// A process, ended on drop.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts a process that says nothing.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// Starts a process, and waits for the first line that it prints.
    pub(crate) fn ready(command: &mut Command) -> anyhow::Result<(Self, String)> {
        let mut running = Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        let mut stdout = BufReader::with_capacity(1 << 20, running.0.stdout.take().context("its output")?);
        stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{command:?} printed nothing");
        // A client prints a line for each delivery: somebody reads it.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        Ok((running, line))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let started = Instant::now();
        while started.elapsed() < MOST {
            if self.0.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("process {} does not end", self.id())
    }
}
