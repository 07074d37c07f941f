//! The API under `/api`, for the page, editors and scripts. `openapi.json` is its description; a test holds it to the
//! routes.

mod asked;
mod dead_letters;
mod export;
mod replay;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Context, events, status};
use crate::diff::Diff;
use crate::exchange::{Exchange, Kept};
use crate::export::curl::curl;
use crate::history::{FileError, Query, Reader, Which, WhichError};
use crate::mask::Secrets;
use crate::view;
use asked::{At, Params, Payload, filter, object, secrets};

type Shared = State<Arc<Context>>;
type Answer = Result<Response, Refused>;

/// A request's body may have so many bytes: a kept one in JSON, every byte of it escaped.
pub(super) const MAX_BODY: usize = 8 << 20;
/// A list's page is at most so long.
const MAX_PAGE: usize = 2000;
const DESCRIPTION: &str = include_str!("openapi.json");

/// What is answered when a path does not take the method.
pub(super) async fn no_method() -> Refused {
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method; see /api/openapi.json")
}

/// A path and what answers there.
pub(super) struct Route {
    pub(super) path: &'static str,
    /// Held to the description by a test.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the test"))]
    methods: &'static [&'static str],
    pub(super) to: MethodRouter<Arc<Context>>,
}

pub(super) fn routes() -> Vec<Route> {
    let route = |path, methods, to| Route { path, methods, to };
    vec![
        route("/api/status", &["get"], get(status_now)),
        route("/api/exchanges", &["get", "delete"], get(list).delete(delete_many)),
        route("/api/exchanges/{id}", &["get", "delete"], get(one).delete(delete_one)),
        route("/api/exchanges/{id}/pin", &["put"], put(pin)),
        route("/api/exchanges/{id}/replay", &["post"], post(replay::replay)),
        route("/api/exchanges/{id}/curl", &["get"], get(curl_command)),
        route("/api/exchanges/{id}/request/body", &["get"], get(request_body)),
        route("/api/exchanges/{id}/attempts/{number}/reply/body", &["get"], get(reply_body)),
        route("/api/dead-letters", &["get"], get(dead_letters::list)),
        route("/api/dead-letters/retry", &["post"], post(dead_letters::retry)),
        route("/api/diff", &["get"], get(diff)),
        route("/api/export", &["get"], get(export::export)),
        route("/api/events", &["get"], get(follow)),
        route("/api/openapi.json", &["get"], get(description)),
    ]
}

/// An answer that says why not.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    error: Value,
}

impl Refused {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, error: json!({"message": message.into()}) }
    }

    fn wrong(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"error": self.error}))).into_response()
    }
}

impl From<WhichError> for Refused {
    fn from(error: WhichError) -> Self {
        let status = match error {
            WhichError::None(_) => StatusCode::NOT_FOUND,
            WhichError::Several(..) => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string())
    }
}

impl From<FileError> for Refused {
    fn from(error: FileError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.sentence())
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct List {
    filter: String,
    before: Option<u64>,
    limit: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Follow {
    filter: String,
    after: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    /// Empty for all that are not pinned.
    filter: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Show {
    #[serde(deserialize_with = "secrets")]
    secrets: Secrets,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Compare {
    a: String,
    b: String,
    #[serde(default, deserialize_with = "secrets")]
    secrets: Secrets,
}

impl Context {
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader<'_>) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, Refused> {
        let history = self.history().ok_or_else(no_history)?;
        Ok(history.read(work).await?)
    }

    async fn exchange(&self, id: &str) -> Result<Exchange, Refused> {
        let which: Which = id.parse().map_err(Refused::wrong)?;
        let history = self.history().ok_or_else(no_history)?;
        Ok(history.get(which).await??)
    }
}

fn no_history() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "no history is kept (--no-store)")
}

async fn status_now(State(context): Shared) -> Json<Value> {
    Json(status::status(&context))
}

async fn description() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION).into_response()
}

async fn follow(State(context): Shared, Params(asked): Params<Follow>, headers: HeaderMap) -> Answer {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    Ok(events::follow(context, filter(&asked.filter)?, last.or(asked.after)).into_response())
}

async fn list(State(context): Shared, Params(asked): Params<List>) -> Answer {
    let filter = filter(&asked.filter)?;
    if context.history().is_none() {
        let nothing = json!({"exchanges": [], "total": 0, "matched": 0, "next": null, "generation": 0, "version": 0});
        return Ok(Json(nothing).into_response());
    }
    let limit = asked.limit.unwrap_or(200).clamp(1, MAX_PAGE);
    let query = Query { filter, before: asked.before, limit, count: asked.before.is_none(), bodies: false };
    // Written where it was read: a large page keeps no delivery waiting.
    let text = context.read(move |reader| {
        let page = reader.list(&query)?;
        let exchanges = page.exchanges.iter().map(|exchange| view::summary(exchange, Secrets::Masked));
        let page = json!({
            "exchanges": exchanges.collect::<Vec<_>>(),
            "total": page.total.count,
            "matched": page.matched,
            "next": page.next,
            "generation": page.total.generation,
            "version": page.total.version,
        });
        Ok(page.to_string())
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], text.await?).into_response())
}

async fn one(State(context): Shared, At(id): At<String>, Params(asked): Params<Show>) -> Answer {
    let exchange = context.exchange(&id).await?;
    detail(exchange, asked.secrets).await
}

/// Bodies may take a while to be made readable.
async fn detail(exchange: Exchange, secrets: Secrets) -> Answer {
    let text = tokio::task::spawn_blocking(move || view::detail(&exchange, secrets).to_string()).await;
    let text = text.map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

async fn delete_one(State(context): Shared, At(id): At<String>) -> Answer {
    let exchange = context.exchange(&id).await?;
    context.history().ok_or_else(no_history)?.delete(vec![exchange.seq]).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn delete_many(State(context): Shared, Params(asked): Params<Delete>) -> Answer {
    let filter = filter(&asked.filter)?;
    let all = context.read(move |reader| reader.unpinned(&filter)).await?;
    let deleted = context.history().ok_or_else(no_history)?.delete(all).await?;
    Ok(Json(json!({"deleted": deleted})).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    pinned: bool,
}

async fn pin(State(context): Shared, At(id): At<String>, Payload(body): Payload) -> Answer {
    let pin: Pin = object(&body)?;
    let exchange = context.exchange(&id).await?;
    context.history().ok_or_else(no_history)?.pin(exchange.seq, pin.pinned).await?;
    let exchange = context.exchange(&exchange.id.to_string()).await?;
    Ok(Json(view::summary(&exchange, Secrets::Masked)).into_response())
}

async fn curl_command(State(context): Shared, At(id): At<String>, Params(asked): Params<Show>) -> Answer {
    let exchange = context.exchange(&id).await?;
    let command = curl(&exchange, None, asked.secrets).command;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], command).into_response())
}

async fn request_body(State(context): Shared, At(id): At<String>) -> Answer {
    let exchange = context.exchange(&id).await?;
    Ok(download(&format!("{}.bin", exchange.id), exchange.request.body))
}

async fn reply_body(State(context): Shared, At((id, number)): At<(String, String)>) -> Answer {
    let number: u32 = number.parse().map_err(|_| Refused::wrong(format!("`{number}` is no attempt's number")))?;
    let exchange = context.exchange(&id).await?;
    let attempt = exchange.attempts.into_iter().find(|attempt| attempt.number == number);
    let reply = attempt.and_then(|attempt| attempt.reply);
    let reply = reply.ok_or_else(|| Refused::new(StatusCode::NOT_FOUND, "that attempt had no answer"))?;
    Ok(download(&format!("{}-reply.bin", exchange.id), reply.body))
}

/// Bytes to be saved: nothing that a browser would show.
fn download(name: &str, body: Kept) -> Response {
    let disposition = format!("attachment; filename=\"{name}\"");
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    (headers, body.bytes).into_response()
}

async fn diff(State(context): Shared, Params(asked): Params<Compare>) -> Answer {
    let (a, b) = (context.exchange(&asked.a).await?, context.exchange(&asked.b).await?);
    let secrets = asked.secrets;
    let compare = move || {
        let diff = Diff::of(&a, &b, secrets);
        let mut shown = serde_json::to_value(&diff).unwrap_or_default();
        (shown["a"], shown["b"]) = (view::summary(&a, secrets), view::summary(&b, secrets));
        shown
    };
    let shown = tokio::task::spawn_blocking(compare).await;
    Ok(Json(shown.map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_description_and_the_routes_are_the_same() {
        let description: Value = serde_json::from_str(DESCRIPTION).expect("JSON");
        let paths = description["paths"].as_object().expect("paths");
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("methods");
                methods.keys().filter(|key| *key != "parameters").map(|method| (path.clone(), method.clone()))
            })
            .collect();
        let routed: BTreeSet<(String, String)> = routes()
            .iter()
            .flat_map(|route| route.methods.iter().map(|method| (route.path.to_owned(), (*method).to_owned())))
            .collect();
        assert_eq!(described, routed);
    }
}
