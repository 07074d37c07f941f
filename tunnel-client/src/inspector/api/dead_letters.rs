//! Deliveries that the relay tries no more, and how they are tried again.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use hookway_protocol::id::DeliveryId;
use hookway_protocol::message::{DeadLetter, DeadLetters};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asked::{Payload, object};
use super::{Answer, Refused, Shared};
use crate::inspector::Context;
use crate::mask;
use crate::tunnel::{Letters, Retry, Unanswered};
use crate::view;

/// As many as the relay lists: they fit into a message to it.
const MOST_IDS: usize = 100;

/// Which are to wait again: some by their ids, or all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    endpoint: String,
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    all: bool,
}

impl From<Unanswered> for Refused {
    fn from(error: Unanswered) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

fn letters(context: &Context) -> Result<&Letters, Refused> {
    let tunnel = context.shown.tunnel.as_ref();
    let none = || Refused::new(StatusCode::NOT_FOUND, "there is no tunnel: dead letters are at the relay");
    tunnel.map(|tunnel| &tunnel.letters).ok_or_else(none)
}

/// Those of all endpoints that are served now.
pub(super) async fn list(State(context): Shared) -> Answer {
    let letters = letters(&context)?;
    let link = context.recorder().events().link();
    let names = link.welcomed.iter().flat_map(|welcomed| welcomed.urls.keys());
    let mut endpoints = Vec::new();
    for name in names {
        endpoints.push(shown(letters.ask(name, Retry::None).await?));
    }
    Ok(Json(json!({"endpoints": endpoints})).into_response())
}

/// Makes some wait again.
pub(super) async fn retry(State(context): Shared, Payload(body): Payload) -> Answer {
    let Asked { endpoint, ids, all } = object(&body)?;
    let letters = letters(&context)?;
    let link = context.recorder().events().link();
    if !link.welcomed.is_some_and(|welcomed| welcomed.urls.contains_key(&endpoint)) {
        return Err(Refused::new(StatusCode::NOT_FOUND, "this client does not serve that endpoint"));
    }
    if ids.len() > MOST_IDS {
        return Err(Refused::wrong(format!("at most {MOST_IDS} ids at once; or say `all`")));
    }
    let retry = match (all, ids.is_empty()) {
        (true, true) => Retry::All,
        (false, false) => Retry::These(ids.iter().map(|text| id(text)).collect::<Result<_, _>>()?),
        _ => return Err(Refused::wrong("say either `ids` or `all`")),
    };
    Ok(Json(shown(letters.ask(&endpoint, retry).await?)).into_response())
}

fn id(text: &str) -> Result<DeliveryId, Refused> {
    text.parse().map_err(|_| Refused::wrong(format!("`{text}` is no delivery's id")))
}

fn shown(letters: DeadLetters) -> Value {
    let DeadLetters { endpoint, total, letters, retried, .. } = letters;
    let letters: Vec<Value> = letters.into_iter().filter_map(letter).collect();
    json!({"endpoint": endpoint, "total": total, "retried": retried, "letters": letters})
}

/// `None` for one without an id, which a relay does not send.
fn letter(letter: DeadLetter) -> Option<Value> {
    let DeadLetter { id, received_at_us, dead_since_us, method, path, attempts, last, bytes, listener } = letter;
    Some(json!({
        "id": DeliveryId::from_bytes(id[..].try_into().ok()?).to_string(),
        "method": method,
        "path": mask::target(&path),
        "received_at": time(received_at_us),
        "dead_since": time(dead_since_us),
        "attempts": attempts,
        "last": Some(last).filter(|last| !last.is_empty()),
        "bytes": bytes,
        "listener": Some(listener).filter(|listener| !listener.is_empty()),
    }))
}

fn time(us: u64) -> String {
    let at = i64::try_from(us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    view::micros(at.unwrap_or_default())
}
