//! The access log: a line for each request, when its answer is out.
//!
//! Lines are written by a thread of their own. Nobody waits for the disk: when it is too slow for the lines they are
//! dropped, and counted.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::sync::oneshot;

/// Lines that wait for the thread.
const MAX_WAITING: usize = 4096;
/// Bytes of lines that are written together.
const MOST_AT_ONCE: usize = 64 << 10;
/// A relay that stops waits so long for lines that wait.
const FINISHED_IN: Duration = Duration::from_secs(2);
/// As much is written of a path or a method, in characters.
const MAX_TEXT: usize = 1024;

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file. It is opened anew at a reload: a program that turns logs over moves it away first.
    File(PathBuf),
}

/// Writes the lines.
#[derive(Debug)]
pub(crate) struct AccessLog {
    messages: SyncSender<Message>,
    is_moved: Arc<AtomicBool>,
    dropped: Counter,
}

#[derive(Debug)]
enum Message {
    Line(Box<Line>),
    /// Look whether the file was moved away, and say when all is written.
    Look(Option<oneshot::Sender<()>>),
}

/// What is written of a request. Of its target the path alone: what stands after the `?` may be a secret.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Line {
    /// When its head was read.
    pub(crate) at: Timestamp,
    /// The delivery.
    pub(crate) id: String,
    /// The endpoint, if there is one.
    pub(crate) endpoint: Option<String>,
    /// The sender's address.
    pub(crate) remote: String,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    /// `1.0`, `1.1` or `2`.
    pub(crate) http: &'static str,
    pub(crate) status: u16,
    /// Why the relay answered itself; unset for the app's answer.
    pub(crate) reason: Option<&'static str>,
    /// Announced bytes of its body, if they were.
    pub(crate) request_bytes: Option<u64>,
    /// Bytes of the answer's body that went out.
    pub(crate) reply_bytes: u64,
    /// Until the answer's head, and its end.
    pub(crate) first_byte_ms: f64,
    pub(crate) duration_ms: f64,
    /// The answer broke off, or its sender did not take all of it.
    pub(crate) cut: bool,
}

impl Line {
    /// As much of a sender's text as is written, without what a terminal takes for a command or turns around.
    pub(crate) fn plain(text: &str) -> String {
        let mut plain = String::with_capacity(text.len().min(MAX_TEXT));
        for c in text.chars().take(MAX_TEXT) {
            if c.is_ascii_graphic() || c.is_alphanumeric() { plain.push(c) } else { plain.extend(c.escape_unicode()) }
        }
        plain
    }
}

impl AccessLog {
    /// Begins to write.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn open(target: Target, dropped: Counter) -> io::Result<Self> {
        let out = output(&target)?;
        let (messages, received) = sync_channel(MAX_WAITING);
        let (is_moved, lines) = (Arc::<AtomicBool>::default(), Vec::new());
        let mut writer = Writer {
            target,
            out,
            is_moved: is_moved.clone(),
            lines,
            count: 0,
            is_failing: false,
            dropped: dropped.clone(),
        };
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&received))?;
        Ok(Self { messages, is_moved, dropped })
    }

    /// Writes a line, unless too many wait.
    pub(crate) fn write(&self, line: Line) {
        match self.messages.try_send(Message::Line(Box::new(line))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => drop(self.dropped.inc()),
        }
    }

    /// Goes on in a new file of the same name.
    pub(crate) fn reopen(&self) {
        self.is_moved.store(true, Ordering::Relaxed);
        // Where lines wait it is seen with the next.
        let _ = self.messages.try_send(Message::Look(None));
    }

    /// Waits until what was to be written is, if the disk takes it.
    pub(crate) async fn finish(&self) {
        let (done, finished) = oneshot::channel();
        let asked = async {
            let mut look = Message::Look(Some(done));
            // Not in a thread: the disk may never take anything again, and the process would not end.
            while let Err(TrySendError::Full(again)) = self.messages.try_send(look) {
                look = again;
                tokio::time::sleep(FINISHED_IN / 100).await;
            }
            let _ = finished.await;
        };
        let _ = tokio::time::timeout(FINISHED_IN, asked).await;
    }
}

/// With a digit behind the point.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

fn output(target: &Target) -> io::Result<Box<dyn Write + Send>> {
    Ok(match target {
        Target::Stdout => Box::new(io::stdout()),
        Target::File(path) => Box::new(file(path)?),
    })
}

fn file(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o640).open(path)
}

/// Writes whole lines, as many at once as there are: while one process takes over from another, both append.
struct Writer {
    target: Target,
    out: Box<dyn Write + Send>,
    is_moved: Arc<AtomicBool>,
    lines: Vec<u8>,
    count: u64,
    is_failing: bool,
    dropped: Counter,
}

impl Writer {
    fn run(&mut self, received: &Receiver<Message>) {
        while let Ok(first) = received.recv() {
            let mut next = Some(first);
            while let Some(message) = next {
                if self.is_moved.swap(false, Ordering::Relaxed) {
                    self.reopen();
                }
                match message {
                    Message::Line(line) => self.add(&line),
                    Message::Look(None) => {}
                    Message::Look(Some(done)) => {
                        self.put();
                        let _ = done.send(());
                    }
                }
                next = received.try_recv().ok();
            }
            self.put();
        }
    }

    fn add(&mut self, line: &Line) {
        serde_json::to_writer(&mut self.lines, line).expect("plain values");
        self.lines.push(b'\n');
        self.count += 1;
        if self.lines.len() >= MOST_AT_ONCE {
            self.put();
        }
    }

    fn put(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let done = self.out.write_all(&self.lines).and_then(|()| self.out.flush());
        if let Err(error) = &done {
            self.dropped.inc_by(self.count);
            if !self.is_failing {
                tracing::error!(%error, "the access log cannot be written");
            }
        }
        // Once is enough, until it can be.
        self.is_failing = done.is_err();
        self.lines.clear();
        self.count = 0;
    }

    fn reopen(&mut self) {
        self.put();
        match output(&self.target) {
            Ok(out) => self.out = out,
            Err(error) => {
                tracing::error!(%error, "the access log cannot be written anew: it goes on in the file before")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_ends_though_its_log_stands_still() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).expect("a pipe");
        // Held open, and never read.
        let _reader = File::options().read(true).write(true).open(&fifo).expect("opened");
        let dropped = Counter::default();
        let log = AccessLog::open(Target::File(fifo), dropped.clone()).expect("a log");
        while dropped.get() == 0 {
            log.write(line(&"x".repeat(MAX_TEXT)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(log.finish());
        drop(runtime);
    }

    fn line(path: &str) -> Line {
        Line {
            at: Timestamp::UNIX_EPOCH,
            id: "req_1".into(),
            endpoint: None,
            remote: "192.0.2.1".into(),
            method: "POST".into(),
            host: "billing.hooks.test".into(),
            path: Line::plain(path),
            http: "1.1",
            status: 200,
            reason: None,
            request_bytes: Some(3),
            reply_bytes: 5,
            first_byte_ms: 1.5,
            duration_ms: 2.5,
            cut: false,
        }
    }

    #[test]
    fn lines_are_whole_and_a_file_is_opened_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let [path, moved] = ["access.log", "access.log.1"].map(|name| folder.path().join(name));
        let log = AccessLog::open(Target::File(path.clone()), Counter::default()).expect("a log");
        log.write(line("/one\nline"));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let wait = |what: &dyn Fn() -> bool| {
            (0..500).any(|_| {
                what() || {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    false
                }
            })
        };
        assert!(wait(&|| read(&path).contains("one")));
        assert_eq!(read(&path).lines().count(), 1, "one request is one line");
        std::fs::rename(&path, &moved).expect("moved");
        log.reopen();
        log.write(line("/two"));
        assert!(wait(&|| read(&path).contains("two")));
        assert!(!read(&moved).contains("two"));
        assert_eq!(line(&format!("/{}", "é".repeat(MAX_TEXT))).path.chars().count(), MAX_TEXT);
    }
}
