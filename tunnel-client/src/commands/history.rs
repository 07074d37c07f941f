//! The history as commands start it, and the inspector over it.

use std::process::{Command, Stdio};

use tokio::net::TcpListener;

use crate::cli::{HistoryArgs, InspectArgs};
use crate::config;
use crate::history::{History, Limits};
use crate::inspector::{self, Inspector, Shown};
use crate::output::{Failure, Output};

impl HistoryArgs {
    const fn limits(&self) -> Limits {
        Limits { max_count: self.history_count, max_age: self.history_age, max_bytes: self.history_size }
    }

    /// The history, unless none is wanted or can be: forwarding goes on without.
    pub(super) fn start(&self, output: Output) -> Option<History> {
        if self.no_store {
            return None;
        }
        let started = start(self.limits());
        let told = |failure: Failure| {
            let cause = failure.cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            output.note(&format!("requests are not kept; {}{cause}", failure.what));
        };
        started.map_err(told).ok()
    }
}

/// The history, open; says what has gone wrong with it.
pub(super) async fn open(limits: Limits, output: Output) -> Result<History, Failure> {
    let history = start(limits)?;
    history.look().await?;
    history.state().borrow().warnings.iter().for_each(|warning| output.warn(warning));
    Ok(history)
}

/// The history in the user's data folder.
fn start(limits: Limits) -> Result<History, Failure> {
    let path = config::data_dir()?.join(History::FILE);
    History::start(&path, limits).map_err(|error| {
        Failure::new(1, "the history cannot be used")
            .cause(error.to_string())
            .next(format!("check that {} can be written", path.display()))
    })
}

impl InspectArgs {
    /// A socket for the inspector, unless none is wanted or can be had.
    pub(super) async fn listen(&self, output: Output) -> Option<TcpListener> {
        if self.no_inspect {
            return None;
        }
        let listener = inspector::listen(self.inspect).await;
        let told = |error| output.note(&format!("there is no inspector at {}: {error}; --inspect ADDR", self.inspect));
        listener.map_err(told).ok()
    }

    /// The inspector behind that socket, shown in the browser if that was asked.
    pub(super) fn start(&self, listener: Option<TcpListener>, shown: Shown, output: Output) -> Option<Inspector> {
        let inspector = Inspector::start(listener?, shown);
        let told = |error| output.note(&format!("there is no inspector: {error}"));
        let inspector = inspector.map_err(told).ok()?;
        if self.open {
            browse(inspector.url(), output);
        }
        Some(inspector)
    }
}

/// Opens a page in the user's browser.
fn browse(url: &str, output: Output) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let mut open = Command::new(program);
    open.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = open.spawn() {
        output.note(&format!("{program} does not start ({error}); open {url} by hand"));
    }
}
