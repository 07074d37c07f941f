//! The endpoints that the token's owner has: asked of the relay over a link of its own, which serves none.

use std::time::Duration;

use hookway_protocol::link::Link;
use hookway_protocol::message::{
    AskEndpoints, ClientMessage, Code, Endpoints, FromClient, FromRelay, OwnEndpoint, RelayMessage,
};

use super::dial::Dialer;
use super::{ConnectError, Settings, session};

/// The relay answers each question within this time.
const ANSWERED_IN: Duration = Duration::from_secs(5);
/// A relay that always has more is not asked for ever.
const MAX_QUESTIONS: usize = 1000;

/// All endpoints of the token's owner, after one of them, or a host name of the developer's own, was released; and
/// whether it was there to be.
///
/// # Errors
/// The relay cannot be reached, refuses, or knows no such question.
pub(crate) async fn endpoints(
    settings: &Settings,
    release: Option<&str>,
) -> Result<(Vec<OwnEndpoint>, bool), ConnectError> {
    let link = Dialer::new(settings)?.dial().await?;
    let asked = ask(&link, settings, release.unwrap_or_default()).await;
    link.close("the client has ended the session");
    link.flushed().await;
    asked
}

async fn ask(link: &Link, settings: &Settings, release: &str) -> Result<(Vec<OwnEndpoint>, bool), ConnectError> {
    let unreachable = |cause: String| ConnectError::Unreachable { relay: settings.relay.to_string(), cause };
    let refused = |reason: String, next: &str| ConnectError::Refused { code: Code::Limit, reason, next: next.into() };
    let greeted = tokio::time::timeout(ANSWERED_IN, session::hello(link, settings)).await;
    let greeted = greeted.map_err(|_| unreachable("the relay did not answer the hello".into()))?;
    let mut control = match greeted.map_err(|error| unreachable(error.to_string()))? {
        (control, RelayMessage::Welcome(_)) => control,
        (_, RelayMessage::Refused(it)) => {
            let code = Code::try_from(it.code).unwrap_or(Code::Unknown);
            return Err(ConnectError::Refused { code, reason: it.reason, next: it.next });
        }
        _ => return Err(unreachable("the relay answered the hello with something else".into())),
    };
    let (mut all, mut was_released): (Vec<OwnEndpoint>, _) = (Vec::new(), false);
    for question in 0..MAX_QUESTIONS {
        let after = all.last().and_then(|last| Some(last.endpoint.as_ref()?.name.clone())).unwrap_or_default();
        let release = if question == 0 { release.to_owned() } else { String::new() };
        let asked = ClientMessage::AskEndpoints(AskEndpoints { after, release });
        control.sender.send(&FromClient::from(asked)).await.map_err(|error| unreachable(error.to_string()))?;
        let answer = async {
            loop {
                // Others may be on their way.
                match control.receiver.receive::<FromRelay>().await?.map(|message| message.message) {
                    Some(Some(RelayMessage::Endpoints(answer))) => return Ok(Some(answer)),
                    Some(_) => {}
                    None => return Ok::<_, hookway_protocol::link::StreamError>(None),
                }
            }
        };
        let answer = tokio::time::timeout(ANSWERED_IN, answer).await;
        let Ok(answer) = answer else {
            return Err(refused("the relay does not tell its endpoints".into(), "ask its operator to upgrade it"));
        };
        let answer = answer.map_err(|error| unreachable(error.to_string()))?;
        let answer = answer.ok_or_else(|| unreachable("the relay ended the session".into()))?;
        let Endpoints { endpoints, more, released, problem } = answer;
        if !problem.is_empty() {
            return Err(refused(problem, "try again in a minute"));
        }
        was_released |= released;
        let is_last = !more || endpoints.is_empty();
        all.extend(endpoints);
        if is_last {
            break;
        }
    }
    Ok((all, was_released))
}
