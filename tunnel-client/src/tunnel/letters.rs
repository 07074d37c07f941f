//! Asks the relay for dead letters, over the session that there is.

use std::collections::HashMap;
use std::time::Duration;

use hookway_protocol::id::DeliveryId;
use hookway_protocol::message::{AskDeadLetters, DeadLetters};
use tokio::sync::{mpsc, oneshot};

/// Questions that wait for a session; who asks more waits to be among them.
const MAX_QUESTIONS: usize = 8;
/// The relay answers within this time, or it is not there.
const ANSWERED_IN: Duration = Duration::from_secs(5);

/// Asks the relay.
#[derive(Clone, Debug)]
pub(crate) struct Letters(mpsc::Sender<Question>);

/// Which dead letters are to wait again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// None.
    None,
    /// These, of all listeners.
    These(Vec<DeliveryId>),
    /// All of the endpoint.
    All,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("the relay does not answer just now; try again when the client is connected")]
    Silent,
    #[error("{0}")]
    Refused(String),
}

/// A question on its way.
#[derive(Debug)]
pub(super) struct Question {
    asked: AskDeadLetters,
    answer: oneshot::Sender<DeadLetters>,
}

/// Questions that were asked, until they are answered.
#[derive(Debug, Default)]
pub(super) struct Pending {
    last: u64,
    all: HashMap<u64, oneshot::Sender<DeadLetters>>,
}

impl Letters {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Question>) {
        let (sender, questions) = mpsc::channel(MAX_QUESTIONS);
        (Self(sender), questions)
    }

    /// The dead letters of an endpoint, after these have been made to wait again.
    pub(crate) async fn ask(&self, endpoint: &str, retry: Retry) -> Result<DeadLetters, Unanswered> {
        let (retry, retry_all) = match retry {
            Retry::None => (vec![], false),
            Retry::These(ids) => (ids.iter().map(|id| id.as_bytes().to_vec()).collect(), false),
            Retry::All => (vec![], true),
        };
        let (answer, answered) = oneshot::channel();
        let asked = AskDeadLetters { number: 0, endpoint: endpoint.to_owned(), retry, retry_all };
        let answered = async {
            self.0.send(Question { asked, answer }).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(ANSWERED_IN, answered).await {
            Ok(Some(DeadLetters { problem, .. })) if !problem.is_empty() => Err(Unanswered::Refused(problem)),
            Ok(Some(letters)) => Ok(letters),
            _ => Err(Unanswered::Silent),
        }
    }
}

impl Pending {
    /// The message of a question, unless nobody waits for its answer any more.
    pub(super) fn ask(&mut self, question: Question) -> Option<AskDeadLetters> {
        self.all.retain(|_, answer| !answer.is_closed());
        let Question { asked, answer } = question;
        if answer.is_closed() {
            return None;
        }
        self.last += 1;
        self.all.insert(self.last, answer);
        Some(AskDeadLetters { number: self.last, ..asked })
    }

    pub(super) fn answered(&mut self, letters: DeadLetters) {
        if let Some(answer) = self.all.remove(&letters.number) {
            // Whoever asked may have given up.
            let _ = answer.send(letters);
        }
    }
}
