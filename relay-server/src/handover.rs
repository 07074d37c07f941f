//! One process after the other, without a gap: the one that runs begins its successor, gives it the sockets that it
//! listens on, and finishes what it has in flight.
//!
//! The two talk over the successor's standard input. It says that its configuration is good; then it gets the sockets
//! and the right to the data folder, and says that it serves. Whatever goes wrong before that, the one that runs goes
//! on as if nothing had been.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// Tells a process that it is a successor.
pub(crate) const VARIABLE: &str = "HOOKWAY_RELAY_SUCCESSOR";
/// Sockets that are given at most.
const MAX_SOCKETS: usize = 32;
/// Their names are shorter.
const MAX_NAMES: usize = 1024;

/// What a successor says.
const PREPARED: u8 = b'p';
const SERVES: u8 = b's';
/// It reads its configuration within this time, and begins to serve within that: a store may have to be changed.
const PREPARED_IN: Duration = Duration::from_secs(30);
const SERVES_IN: Duration = Duration::from_secs(300);
/// It gets the sockets within this time.
const GIVEN_IN: Duration = Duration::from_secs(60);

/// Sockets, with a word that says what each is for.
pub(crate) type Sockets = Vec<(String, OwnedFd)>;

/// Why nobody took over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The program on disk does not run.
    #[error("the new process cannot be begun")]
    Spawn(#[source] io::Error),
    /// It ended, or said nothing for too long.
    #[error("the new process did not {0}; its log says why")]
    Silent(&'static str),
    /// A container ends with its first process.
    #[error("this is the first process of a container, which ends with it; start another container in its place")]
    First,
    /// The sockets cannot be given.
    #[error("the sockets cannot be given to the new process")]
    Give(#[source] io::Error),
}

/// The process that is to take over. Dropped before it serves, it is ended.
#[derive(Debug)]
pub(crate) struct Successor {
    child: Child,
    line: Arc<tokio::net::UnixStream>,
    serves: bool,
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.serves {
            let _ = self.child.start_kill();
        }
    }
}

impl Successor {
    /// Begins a program with the arguments of this process, and waits until it has read its configuration.
    pub(crate) async fn begin(program: &Path, args: Vec<OsString>) -> Result<Self, HandOverError> {
        let (own, other) = UnixStream::pair().map_err(HandOverError::Spawn)?;
        own.set_nonblocking(true).map_err(HandOverError::Spawn)?;
        let line = tokio::net::UnixStream::from_std(own).map_err(HandOverError::Spawn)?;
        let mut command = Command::new(program);
        command.args(args).env(VARIABLE, "1").stdin(Stdio::from(OwnedFd::from(other)));
        let child = command.spawn().map_err(HandOverError::Spawn)?;
        // Else the line would not end with the child.
        drop(command);
        let successor = Self { child, line: Arc::new(line), serves: false };
        successor.hear(PREPARED, PREPARED_IN, "read its configuration").await?;
        Ok(successor)
    }

    /// Gives it the sockets, and waits until it serves. It is on its own then.
    pub(crate) async fn take_over(mut self, sockets: &[(&str, BorrowedFd<'_>)]) -> Result<Heir, HandOverError> {
        let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, fd)| *fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let text = names.join(" ");
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) || text.len() > MAX_NAMES {
            return Err(HandOverError::Give(io::ErrorKind::InvalidInput.into()));
        }
        let sent =
            rustix::net::sendmsg(&*self.line, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::empty());
        sent.map_err(|error| HandOverError::Give(error.into()))?;
        self.hear(SERVES, SERVES_IN, "begin to serve").await?;
        self.serves = true;
        Ok(Heir { pid: self.child.id().unwrap_or_default(), _line: self.line.clone() })
    }

    async fn hear(&self, word: u8, within: Duration, what: &'static str) -> Result<(), HandOverError> {
        let heard = async {
            loop {
                self.line.readable().await?;
                let mut heard = [0];
                match self.line.try_read(&mut heard) {
                    Ok(count) => return Ok(heard[..count] == [word]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        match tokio::time::timeout(within, heard).await {
            Ok(Ok(true)) => Ok(()),
            _ => Err(HandOverError::Silent(what)),
        }
    }
}

/// The process that has taken over. It waits for the end of this one, for what only one of them can have.
#[derive(Debug)]
pub(crate) struct Heir {
    pub(crate) pid: u32,
    _line: Arc<tokio::net::UnixStream>,
}

/// The process that this one is to take over from.
#[derive(Debug)]
pub struct Predecessor {
    line: UnixStream,
    /// To those before it that had not ended when it began this one: they may have what only one can have.
    before: Vec<UnixStream>,
}

/// Among the sockets, a line to a process that is still to end.
pub(crate) const BEFORE: &str = "before";

impl Predecessor {
    /// The process that has begun this one to be taken over from, if one has.
    ///
    /// # Errors
    /// It cannot be spoken to.
    pub fn find() -> io::Result<Option<Self>> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        line.set_read_timeout(Some(GIVEN_IN))?;
        Ok(Some(Self { line, before: Vec::new() }))
    }

    /// Says that the configuration is good, and gets the sockets. Blocks until the other is ready to give them.
    ///
    /// # Errors
    /// The other has ended, or thought better of it.
    pub(crate) fn sockets(&mut self) -> io::Result<Sockets> {
        self.line.write_all(&[PREPARED])?;
        let mut text = [0; MAX_NAMES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = {
            let mut buffers = [IoSliceMut::new(&mut text)];
            rustix::net::recvmsg(&self.line, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let names = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
        let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        if names.is_empty() || names.len() != fds.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no sockets came"));
        }
        let all = names.into_iter().zip(fds);
        let (before, sockets): (Sockets, Sockets) = all.partition(|(name, _)| name == BEFORE);
        self.before = before.into_iter().map(|(_, fd)| fd.into()).collect();
        Ok(sockets)
    }

    /// Lines to all that are still to end, for a successor.
    pub(crate) fn lines(&self) -> Sockets {
        let all = std::iter::once(&self.line).chain(&self.before);
        all.filter_map(|line| Some((BEFORE.to_owned(), line.as_fd().try_clone_to_owned().ok()?))).collect()
    }

    /// Says that this process serves.
    pub(crate) fn serves(&mut self) -> io::Result<()> {
        self.line.write_all(&[SERVES])
    }

    /// Told when it has ended, and all before it.
    pub(crate) fn gone(self) -> CancellationToken {
        let gone = CancellationToken::new();
        let told = gone.clone().drop_guard();
        // A thread of its own: it waits as long as the other lives, and nobody is to wait for it.
        let waits = move || {
            let _told = told;
            for mut line in std::iter::once(self.line).chain(self.before) {
                let _ = line.set_read_timeout(None);
                let _ = line.read(&mut [0]);
            }
        };
        // Without it the other is as good as gone.
        let _ = std::thread::Builder::new().name("predecessor".into()).spawn(waits);
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn sockets_are_given() {
        let (own, other) = UnixStream::pair().expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("an address");
        own.set_nonblocking(true).expect("set");
        let line = tokio::net::UnixStream::from_std(own).expect("a stream");
        let heir = tokio::task::spawn_blocking(move || {
            let mut predecessor = Predecessor { line: other, before: Vec::new() };
            let mut sockets = predecessor.sockets().expect("sockets");
            predecessor.serves().expect("said");
            let (name, fd) = sockets.pop().expect("one");
            (name, TcpListener::from(fd).local_addr().expect("an address"))
        });
        let child = Command::new("true").spawn().expect("a process");
        let successor = Successor { child, line: Arc::new(line), serves: false };
        successor.hear(PREPARED, PREPARED_IN, "prepare").await.expect("prepared");
        successor.take_over(&[("https", listener.as_fd())]).await.expect("taken over");
        assert_eq!(heir.await.expect("it ends"), ("https".to_owned(), at));
    }

    #[tokio::test]
    async fn a_program_that_ends_takes_nothing_over() {
        let end = Successor::begin(Path::new("/bin/true"), vec![]).await;
        assert!(matches!(end, Err(HandOverError::Silent(_))), "{end:?}");
        let none = Successor::begin(Path::new("/nonexistent/program"), vec![]).await;
        assert!(matches!(none, Err(HandOverError::Spawn(_))), "{none:?}");
    }
}
